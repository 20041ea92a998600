"""list and doctor: the models, this machine, and which fit on it."""

import os
import shutil
import time
import urllib.error
import urllib.request

from . import machine, tools
from .errors import LaunchError
from .files import home_of, model_files
from .flags import choose_gpus
from .machine import equal_gpus, existing, gb
from .models import DEFAULT_CONTEXT, SPARE_BYTES, registry
from .places import VENV
from .tools import converter_python, find_program, usable_gpus


def list_models(args) -> int:
    found = usable_gpus(find_program(dry_run=True))
    room = max([machine.memory_bytes()[1], *(gpu.free for gpu in found), sum(gpu.free for gpu in equal_gpus(found))])
    free = shutil.disk_usage(existing(args.models_dir)).free
    print(f"{'name':<30}{'parameters':>11}{'download':>10}{'disk':>10}{'memory':>10}  here")
    for model in registry():
        memory = model.memory()
        # One shard or part, usually 5 GB, lies beside the growing file.
        disk = model.q40_gb * 1e9 + min(5.4e9, model.download_gb * 1e9)
        here = bool(model_files(home_of(model, args), "q40"))
        fits = memory <= room
        mark = "✅ is here" if here and fits else "✅ fits" if fits and disk <= free else "❌"
        if mark == "❌":
            mark += " memory" if not fits else " disk"
        columns = f"{model.parameters:>9.1f} B{gb(model.download_gb * 1e9):>10}{gb(disk):>10}{gb(memory):>10}"
        print(f"{model.name:<30}{columns}  {mark}")
    print(f"\nDisk and memory are for Q40 weights, and a context of up to {DEFAULT_CONTEXT}. `demo` is always here.")
    return 0


def doctor(args) -> int:
    physical, threads = machine.cores()
    total, available = machine.memory_bytes()
    print(f"🧠 {machine.cpu_name()}: {physical} cores, {threads} threads")
    bandwidth = machine.memory_bandwidth(physical)
    print(f"📀 Memory: {gb(total)}, {gb(available)} available, {bandwidth / 1e9:.0f} GB/s copying")
    try:
        program = find_program(dry_run=True)
        version = tools.version_of(program)
        there = f"🟢 Program: {program}, {version}"
        state = there if version else "🔴 Program: not built yet; the first run builds it (make)"
    except LaunchError as error:
        version, state = None, f"🔴 Program: {error}"
    found = machine.gpus()
    for gpu in found:
        print(f"🎮 GPU {gpu.index}, {gpu.name}: {gb(gpu.memory)}, {gb(gpu.free)} free, driver {gpu.driver}")
    if not found:
        print("🎮 No NVIDIA GPU: nvidia-smi finds none")
    elif version and "CUDA" not in version:
        print("🔴 GPU: not used, for this build of dllama has no CUDA: make BUILD_CUDA=1 (needs the CUDA toolkit)")
    place = existing(args.models_dir)
    writable = "" if os.access(place, os.W_OK) else "; 🔴 not writable: --models-dir or DLLAMA_MODELS names another"
    print(f"💿 Disk at {args.models_dir}: {gb(shutil.disk_usage(place).free)} free{writable}")
    print(state)
    python = converter_python(dry_run=True)
    if os.access(python, os.X_OK):
        print(f"🟢 Python for the converter: {python}")
    else:
        print(f"⭕ Python for the converter: the first conversion makes {VENV}")
    print(f"⭕ Network: {', '.join(machine.networks()) or 'no interface is up'}")
    print(hub_state())
    print("\nFits in memory, with the speed at which the CPU can read it for every token:")
    for model in registry():
        if model.memory() <= available:
            speed = bandwidth / model.token_bytes
            print(f"   {model.name:<30}{gb(model.memory()):>9}  {speed:6.1f} tokens/s")
    if found and version and "CUDA" in version:
        fits = [model.name for model in registry() if choose_gpus(found, model.memory() - SPARE_BYTES, 0)]
        print(f"\nFits on the GPU{'s' if len(found) > 1 else ''}: {', '.join(fits) or 'none of the list'}")
    return 0


def hub_state() -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "⭕ Hub: offline (HF_HUB_OFFLINE)"
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        started = time.perf_counter()
        with urllib.request.urlopen(request, timeout=5):
            pass
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"🔴 Hub: {endpoint} does not answer: {getattr(reason, 'strerror', None) or reason}"
    return f"🟢 Hub: {endpoint} answers in {(time.perf_counter() - started) * 1e3:.0f} ms"
