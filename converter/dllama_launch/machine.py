"""What this machine has: GPUs, memory, cores, networks."""

import concurrent.futures
import ctypes
import dataclasses
import os
import pathlib
import platform
import subprocess
import time


@dataclasses.dataclass
class Gpu:
    index: int
    name: str
    memory: int
    free: int
    driver: str


def gpus() -> list[Gpu]:
    query = [
        "nvidia-smi",
        "--query-gpu=index,name,memory.total,memory.free,driver_version",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(query, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        index, _, rest = line.partition(",")
        name, total, free, driver = (part.strip() for part in rest.rsplit(",", 3))
        if total.isdigit() and free.isdigit():
            found.append(Gpu(int(index), name, int(total) << 20, int(free) << 20, driver))
    # A program counts only those that it may see, from 0.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    by_index = {str(gpu.index): gpu for gpu in found}
    seen = [by_index[word.strip()] for word in visible.split(",") if word.strip() in by_index]
    return [dataclasses.replace(gpu, index=i) for i, gpu in enumerate(seen)]


def equal_gpus(found: list[Gpu]) -> list[Gpu]:
    """The largest group of the same kind: several GPUs of a machine share a model in equal parts."""
    groups: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in found:
        groups.setdefault((gpu.name, gpu.memory), []).append(gpu)
    return max(groups.values(), key=lambda group: sum(gpu.memory for gpu in group), default=[])


def memory_bytes() -> tuple[int, int]:
    """Total and available."""
    values = {}
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        key, _, rest = line.partition(":")
        values[key] = int(rest.split()[0]) * 1024
    return values["MemTotal"], values.get("MemAvailable", values["MemFree"])


def cores() -> tuple[int, int]:
    """Physical cores and hardware threads that this process may use."""
    usable = os.sched_getaffinity(0)
    found = set()
    for cpu in usable:
        siblings = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            found.add(siblings.read_text().strip())
        except OSError:
            found.add(str(cpu))
    return len(found), len(usable)


def cpu_name() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return entries.get("model name") or entries.get("Model") or platform.machine()  # x86; Raspberry Pi


def networks() -> list[str]:
    """Interfaces that are up, with their speed where they have one."""
    found = []
    for folder in sorted(pathlib.Path("/sys/class/net").glob("*")):
        state, speed = "", 0
        try:
            state = (folder / "operstate").read_text().strip()
            speed = int((folder / "speed").read_text())
        except (OSError, ValueError):
            pass  # virtual and wireless ones have no speed
        if folder.name != "lo" and state == "up":
            kind = "wireless" if (folder / "wireless").exists() else f"{speed} Mbit/s" if speed > 0 else "speed unknown"
            found.append(f"{folder.name} ({kind})")
    return found


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that all threads together move by copying, reads and writes counted; about 0.3 s."""
    size = 32 << 20
    buffers = [(ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)) for _ in range(threads)]

    def copy(pair, rounds: int) -> int:
        for _ in range(rounds):  # ctypes lets go of Python's lock
            ctypes.memmove(pair[0], pair[1], size)
        return 2 * size * rounds

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda pair: copy(pair, 1), buffers))
        best = 0.0
        for _ in range(3):
            started = time.perf_counter()
            moved = sum(pool.map(lambda pair: copy(pair, 4), buffers))
            best = max(best, moved / (time.perf_counter() - started))
    return best


def existing(folder: pathlib.Path) -> pathlib.Path:
    """The folder, or the nearest above it that exists."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def gb(value: float) -> str:
    return f"{value / 1e9:.1f} GB"
