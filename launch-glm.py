#!/usr/bin/env python3
"""From a model's name to a running model: downloads, converts, chooses flags and starts dllama.

    ./launch-glm.py list                    models, what they need, and what fits this machine
    ./launch-glm.py chat glm-4-9b-0414      download and convert it if it is not here, then talk to it
    ./launch-glm.py doctor                  this machine, and what would run on it how fast

A name is one of the list, `demo`, or OWNER/NAME of any repository with a supported architecture. Everything behind `--`
goes to dllama as it is. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are heeded; DLLAMA_PROGRAM names another program."""

import argparse
import concurrent.futures
import ctypes
import dataclasses
import difflib
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

HOME = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HOME / "converter"))

from dllama_convert import ConversionError  # noqa: E402
from dllama_convert.paths import below, printable  # noqa: E402

# An installed launcher (/usr/share/dllama) keeps what it makes with the user's files, a checkout's with the checkout.
INSTALLED = not (HOME / "Makefile").exists()
USER_DATA = pathlib.Path(os.environ.get("XDG_DATA_HOME", pathlib.Path.home() / ".local" / "share"))
DATA = USER_DATA / "dllama" if INSTALLED else HOME
VENV = DATA / ".venv"
CONVERTER = HOME / "converter"
ME = "launch-glm.py" if INSTALLED else "./launch-glm.py"
DEFAULT_PORT = 9999
DEFAULT_CONTEXT = 8192  # dllama's
SPARE_BYTES = 512 << 20  # activations, the program, and something for everybody else
BITS = {"q40": 4.5, "q80": 8.5, "f16": 16, "bf16": 16, "f32": 32}  # of a weight
DEMO = HOME / "demo" if INSTALLED else HOME / "models" / "demo"


# The hub's own rule for OWNER/NAME; the second part becomes a folder.
REPOSITORY = r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.-]{0,95}(?<![.-])/[A-Za-z0-9_][\w.-]{0,95}(?<![.-])"


class LaunchError(Exception):
    """Becomes one line and exit code 1."""


# -------------------------------------------------------------------------------------------------------------- models


@dataclasses.dataclass
class Model:
    """An entry of converter/models.json. Sizes are 10^9 bytes, parameters 10^9; None where nobody knows yet."""

    name: str
    repository: str | None
    about: str = ""
    parameters: float | None = None
    active: float | None = None  # parameters read for a token
    download_gb: float | None = None
    q40_gb: float | None = None
    kv_bytes_per_token: int = 0
    context: int = DEFAULT_CONTEXT
    ready_made: bool = False  # the repository has a .m file

    def memory(self, context: int = DEFAULT_CONTEXT) -> float | None:
        """Bytes needed to run it in Q40."""
        if self.q40_gb is None:
            return None
        return self.q40_gb * 1e9 + self.kv_bytes_per_token * min(context, self.context) + SPARE_BYTES

    @property
    def token_bytes(self) -> float | None:
        """Bytes of weights read for a token in Q40."""
        return None if self.active is None else self.active * 1e9 * 18 / 32


def registry() -> list[Model]:
    entries = json.loads((CONVERTER / "models.json").read_text(encoding="utf-8"))
    return [Model(**entry) for entry in entries]


def find_model(name: str) -> Model:
    if name == "demo":
        return Model("demo", None, "the demo model that comes with the program")
    wanted = re.sub("^thudm/", "zai-org/", name.lower())  # the owner's former name, which many pages still have
    for model in registry():
        if wanted in (model.name, model.repository.lower()):
            return model
    if re.fullmatch(REPOSITORY, name, re.ASCII):
        return Model(name.split("/")[1].lower(), name)
    known = ["demo", *(model.name for model in registry())]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else f"{ME} list shows the names"
    raise LaunchError(f"{name} is not a known model and not OWNER/NAME of a repository: {meant}")


# ------------------------------------------------------------------------------------------------------------- machine


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


# --------------------------------------------------------------------------------------------------- program and Python


def find_program(dry_run: bool = False) -> str:
    """dllama: $DLLAMA_PROGRAM, beside this file, on the PATH, or built now."""
    named = os.environ.get("DLLAMA_PROGRAM")
    candidates = [named] if named else [str(HOME / "dllama"), shutil.which("dllama")]
    for path in candidates:
        if path and os.access(path, os.X_OK):
            return path
    if named:
        raise LaunchError(f"DLLAMA_PROGRAM is {named}: there is no such program")
    if dry_run:
        return str(HOME / "dllama")
    if not shutil.which("make"):
        raise LaunchError(
            "the program dllama is not built, and there is no make to build it (apt install make g++ cmake)"
        )
    say("the program is not built yet: make")
    if subprocess.run(["make", "-C", HOME], check=False).returncode != 0:
        raise LaunchError("dllama could not be built: see above")
    return str(HOME / "dllama")


def version_of(program: str) -> str | None:
    """What `dllama --version` says: version and backends; None if it is not built yet."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, encoding="utf-8", timeout=10, check=True)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def usable_gpus(program: str) -> list[Gpu]:
    """The GPUs that the program can compute on: none if it was built without CUDA."""
    version = version_of(program)
    return gpus() if version is None or "CUDA" in version else []


def converter_python(dry_run: bool = False) -> str:
    """A Python with the converter's packages: this one, or that of .venv, which is made at the first time."""
    import importlib.util

    wanted = (CONVERTER / "requirements.txt").read_text(encoding="utf-8")
    packages = [re.split(r"[<>=]", line)[0] for line in wanted.split()]
    if all(importlib.util.find_spec(package) for package in packages):
        return sys.executable
    python = VENV / "bin" / "python"
    # `make test` makes the same environment, with the tests' packages behind ours.
    stamps = [VENV / "converter-requirements", VENV / "installed-requirements"]
    if any(stamp.exists() and stamp.read_text().startswith(wanted.rstrip()) for stamp in stamps) or dry_run:
        return str(python)
    say(f"first run: Python packages for the converter go to {VENV}: {' '.join(packages)}")
    try:
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-r", CONVERTER / "requirements.txt"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        hint = "is there a network?" if (VENV / "bin" / "pip").exists() else "on Debian: apt install python3-venv"
        raise LaunchError(f"the Python packages in {VENV} could not be made: see above; {hint}") from error
    stamps[0].write_text(wanted)
    return str(python)


def say(text: str) -> None:
    print(f"⭕ {text}", flush=True)


def start(command: list, dry_run: bool) -> int:
    """Runs a command, or prints it."""
    words = [str(word) for word in command]
    # CUDA's own order is by speed; the numbers here are nvidia-smi's.
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if "--gpu-index" in words else {}
    if dry_run:
        print(shlex.join([*(f"{name}={value}" for name, value in order.items()), *words]))
        return 0
    # Ctrl-C is the command's: in a chat it ends an answer, not the program.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run(words, env=os.environ | order, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


# --------------------------------------------------------------------------------------------------- download, convert


def model_files(folder: pathlib.Path, kind: str) -> tuple[pathlib.Path, pathlib.Path | None] | None:
    """The .m file of that type (or the only one) in a model's folder, and its tokenizer."""
    found = sorted(folder.glob(f"dllama_model_*_{kind}.m")) or sorted(folder.glob("dllama_model_*.m"))
    tokenizers = sorted(folder.glob("dllama_tokenizer_*.t"))
    return (found[0], tokenizers[0] if tokenizers else None) if found else None


def home_of(model: Model, args) -> pathlib.Path:
    """The model's folder, which may be a link: users move large ones to another disk."""
    return below(args.models_dir, model.name, follow_links=True)


def model_folder(model: Model, args) -> pathlib.Path:
    """The model's folder, made if it is not there."""
    folder = home_of(model, args)
    if not args.dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ".gitignore").exists():
            (folder / ".gitignore").write_text("*\n")
    return folder


def convert(model: Model, args) -> int:
    """Makes the .m and .t file if they are not here."""
    if model.repository is None:
        raise LaunchError("the demo model comes with the program: there is nothing to do")
    folder = model_folder(model, args)
    python = converter_python(args.dry_run)
    to = ["--output-dir", folder]
    if args.quality != "fast" and (args.gguf or model.ready_made):
        raise LaunchError("--quality best is for checkpoints: GGUF and .m files are quantised already")
    if args.ignore_unknown and (args.gguf or model.ready_made):
        raise LaunchError("--ignore-unknown is for checkpoints: GGUF and .m files have no config.json")
    unknown = ["--ignore-unknown"] if args.ignore_unknown else []
    quality = (["--quality", args.quality] if args.quality != "fast" else []) + unknown
    if args.gguf:
        fetch = [python, CONVERTER / "download-hub.py", model.repository, model.name, "--file", args.gguf, *to]
        kind = args.type if args.type_given else "keep"
        file = below(folder, args.gguf, deep=True)
        make = [python, CONVERTER / "convert-gguf.py", file, kind, model.name, *to]
        if found := model_files(folder, args.type):
            raise LaunchError(f"{found[0]} is there already: remove it to convert again")
        status = start(fetch, args.dry_run) or start(make, args.dry_run)
        if status == 0 and not args.dry_run:  # the .m file holds the same
            stem, count = re.fullmatch(r"(.*?)(?:-\d{5}-of-(\d{5}))?\.gguf", args.gguf).groups()
            parts = [f"{stem}-{i:05}-of-{count}.gguf" for i in range(1, int(count) + 1)] if count else [args.gguf]
            for part in parts:
                (folder / part).unlink()
        return status
    if model.ready_made:
        return start([python, CONVERTER / "download-hub.py", model.repository, model.name, *to], args.dry_run)
    if (folder / "checkpoint" / "complete").exists():
        checkpoint = folder / "checkpoint"
        if not list(folder.glob("dllama_tokenizer_*.t")):
            start([python, CONVERTER / "convert-tokenizer-hf.py", checkpoint, model.name, *to], args.dry_run)
        command = [python, CONVERTER / "convert-hf.py", checkpoint, args.type, model.name, *to, *quality]
    else:
        command = [python, CONVERTER / "convert-hub.py", model.repository, args.type, model.name, *to, *quality]
    return start(command, args.dry_run)


def ensure_model(model: Model, args) -> tuple[pathlib.Path, pathlib.Path | None]:
    status = convert(model, args)
    folder = home_of(model, args)
    if args.dry_run:
        names = f"dllama_model_{model.name}_{args.type}.m", f"dllama_tokenizer_{model.name}.t"
        return folder / names[0], folder / names[1]
    found = model_files(folder, args.type)
    if status != 0 or not found:
        raise LaunchError(f"{model.name} is not complete: the same command goes on where it stopped")
    return found


# ----------------------------------------------------------------------------------------------------------------- run


def choose_gpus(found: list[Gpu], weights: float, cache: float) -> list[Gpu]:
    """The GPUs for a model of so many bytes: the first that holds it, else all equal ones if they hold it together."""
    for gpu in found:
        if gpu.free > weights + cache + SPARE_BYTES:
            return [gpu]
    group = equal_gpus(found)
    share = (weights + cache) / max(1, len(group))
    return group if len(group) > 1 and all(gpu.free > share + SPARE_BYTES for gpu in group) else []


def gpu_flags(chosen: list[Gpu]) -> list:
    """dllama itself takes the first GPU, if it has room."""
    if not chosen or [gpu.index for gpu in chosen] == [0]:
        return []
    return ["--gpu-index", ",".join(str(gpu.index) for gpu in chosen)]


def thread_flags() -> tuple[list, str]:
    physical, threads = cores()
    why = f"{physical} threads, one for each {'physical core' if physical < threads else 'core'}"
    return ["--nthreads", physical], why


def choose_flags(model: Model, weights: float, in_cluster: bool, found: list[Gpu]) -> tuple[list, str]:
    """Flags for this machine with these GPUs, and why; `weights` are the file's bytes. Raises LaunchError if it does
    not fit."""
    if in_cluster:
        return node_flags(found)
    flags, why = thread_flags()
    if weights == 0:
        return flags, why
    total, available = memory_bytes()
    context, kv = min(model.context, DEFAULT_CONTEXT), model.kv_bytes_per_token
    # A GPU with a shorter context before the CPU with a longer one.
    lengths = [context, *(n for n in (4096, 2048) if n < context)]
    fitting = ((n, choose_gpus(found, weights, kv * n)) for n in lengths)
    context, chosen = next(((n, some) for n, some in fitting if some), (context, []))
    flags += gpu_flags(chosen)
    room = sum(gpu.free for gpu in chosen) if chosen else available
    while kv and not chosen and context > 512 and weights + kv * context + SPARE_BYTES > room:
        context //= 2
    if weights + kv * context + SPARE_BYTES > room:
        on_gpu = f", {gb(max(gpu.free for gpu in found))} on a GPU" if found else ""
        raise LaunchError(
            f"{model.name} needs {gb(weights + kv * context + SPARE_BYTES)} of memory, "
            f"{gb(available)} of {gb(total)} are available{on_gpu}: "
            f"add machines ({ME} setup-cluster {model.name} --nodes ...), or --force"
        )
    where = f"{gb(room)} of {gpu_names(chosen)}" if chosen else f"{gb(room)} of memory"
    if not kv:
        return flags, f"{why}; {gb(weights)} of weights in {where}"
    why += f"; context {context}: {gb(weights)} of weights and {gb(kv * context)} of cache in {where}"
    return [*flags, "--max-seq-len", context], why


def node_flags(found: list[Gpu]) -> tuple[list, str]:
    """Flags of a cluster's node, and why: what its share of the model will be is not known here."""
    flags, why = thread_flags()
    group = equal_gpus(found)
    chosen = gpu_flags(group) if len(group) > 1 else []
    return flags + chosen, f"{why}; {gpu_names(group)}" if chosen else why


def gpu_names(chosen: list[Gpu]) -> str:
    return f"{len(chosen)} x {chosen[0].name}" if len(chosen) > 1 else chosen[0].name


def model_line(model: Model, program: str, args) -> tuple[list, str]:
    """dllama's flags for the model, which is brought here if it has to be, and why."""
    here = model_files(home_of(model, args), args.type)
    if model.repository is None:
        here = (DEMO / "demo-q40.m", DEMO / "demo.t") if (DEMO / "demo-q40.m").exists() else None
    weights = here[0].stat().st_size if here else (model.q40_gb or 0) * 1e9 * BITS[args.type] / BITS["q40"]
    try:
        # Before a download of hours.
        flags, why = choose_flags(model, weights, args.cluster, usable_gpus(program))
    except LaunchError:
        if not args.force:
            raise
        flags, why = [], "--force: what dllama chooses"
    if not here and model.repository is not None:
        here = ensure_model(model, args)
    files = ["--model", here[0]] if here else []
    if here and here[1]:
        files += ["--tokenizer", here[1]]
    return files + flags, why


def run_model(command: str, args) -> int:
    model = find_model(args.name)
    cluster = read_cluster(model, args) if args.cluster else None
    program = find_program(args.dry_run)
    flags, why = model_line(model, program, args)
    line = [program, command, *flags]
    if cluster:
        line += ["--workers", *cluster["workers"], "--secret-file", cluster["secret_file"]]
        why += f"; {len(cluster['workers'])} workers, talking in secret"
    if command == "inference":
        line += ["--prompt", args.prompt, "--steps", args.steps]
    say(why)
    return start(with_rest(line, args.rest), args.dry_run)


def with_rest(line: list, rest: list[str]) -> list:
    """The command with the user's own flags, which take the place of ours (each of these has one value)."""
    kept, given = [], {word for word in rest if word.startswith("--")}
    if "--device" in given:
        given.add("--gpu-index")
    for i, word in enumerate(line):
        if word not in given and (i == 0 or line[i - 1] not in given):
            kept.append(word)
    return [*kept, *rest]


# ------------------------------------------------------------------------------------------------------------- cluster

UNIT = """[Unit]
Description=dllama worker on port {port}
After=network-online.target
Wants=network-online.target
# Try for ever: a GPU's driver or an address may come late.
StartLimitIntervalSec=0

[Service]
# Found in /usr/local/bin or /usr/bin.
ExecStart=dllama worker --port {port} --secret-file %d/secret --cache-dir %C/dllama
LoadCredential=secret:/etc/dllama/secret
Restart=always
RestartSec=2
# A user of its own that owns the cache folder and nothing else, in a file system that it cannot change. (Not hidden:
# /dev, for GPUs, and /proc/meminfo.)
DynamicUser=yes
CacheDirectory=dllama
CacheDirectoryMode=0700
UMask=0077
CapabilityBoundingSet=
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""

START = """#!/bin/sh
# Starts this node's worker; dllama is beside this file, on the PATH, or named by DLLAMA_PROGRAM.
here=$(cd "$(dirname "$0")" && pwd)
program=${{DLLAMA_PROGRAM:-dllama}}
[ -x "$here/dllama" ] && program=$here/dllama
exec "$program" worker --port {port} --secret-file "$here/secret" "$@"
"""


def parse_node(text: str) -> tuple[str, int] | None:
    """Host and port; None for what is neither host nor host:port."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9_][\w.-]*)(?::(\d{1,5}))?", text, re.ASCII)
    if not match or not 0 < int(match[2] or DEFAULT_PORT) < 65536:
        return None
    return match[1], int(match[2] or DEFAULT_PORT)


def cluster_folder(model: Model, args) -> pathlib.Path:
    return home_of(model, args) / "cluster"


def read_cluster(model: Model, args) -> dict:
    """The workers and the secret of setup-cluster. They go into dllama's command line: none may be a flag there."""
    path = cluster_folder(model, args) / "cluster.json"
    again = f"{ME} setup-cluster {model.name} --nodes ..."
    try:
        cluster = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}: {again}") from error
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"{path}: is damaged ({error}): {again}") from error
    workers = cluster.get("workers") if isinstance(cluster, dict) else None
    if not isinstance(workers, list) or not workers or not all(isinstance(worker, str) for worker in workers):
        raise LaunchError(f"{path}: has no list of workers: {again}")
    for worker in workers:
        if not parse_node(worker):
            raise LaunchError(f"{path}: {worker!r} is not the address of a worker: {again}")
    secret = cluster.get("secret_file")
    if not isinstance(secret, str) or not secret or secret.startswith("-") or not secret.isprintable():
        raise LaunchError(f"{path}: secret_file is {secret!r}, must be the secret's path: {again}")
    return {"workers": workers, "secret_file": secret}


def setup_cluster(args) -> int:
    model = find_model(args.name)
    # As dllama's --workers: apart by blanks or commas.
    texts = [text for word in args.nodes for text in word.split(",")]
    nodes = [parse_node(text) for text in texts]
    if None in nodes:
        text = texts[nodes.index(None)]
        raise LaunchError(f"--nodes {text}: must be host or host:port, an IPv6 address in brackets")
    if len(set(nodes)) != len(nodes):
        raise LaunchError("--nodes: a node is named twice")
    program = find_program(args.dry_run)
    folder = model_folder(model, args) / "cluster"
    secret = folder / "secret"
    addresses = [f"{host}:{port}" for host, port in nodes]
    if args.dry_run:
        return start([program, "keygen", secret], True)
    folder.mkdir(exist_ok=True)
    if not secret.exists() and start([program, "keygen", secret], False) != 0:
        return 1
    for host, port in nodes:
        node = node_folder(folder, host, port)
        node.mkdir(exist_ok=True)
        copy = node / "secret"
        copy.unlink(missing_ok=True)
        with open(os.open(copy, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(secret.read_bytes())
        (node / "start-worker.sh").write_text(START.format(port=port))
        (node / "start-worker.sh").chmod(0o755)
        (node / "dllama-worker.service").write_text(UNIT.format(port=port))
    cluster = {"model": model.name, "workers": addresses, "secret_file": str(secret)}
    (folder / "cluster.json").write_text(json.dumps(cluster, indent=2) + "\n")
    return check_cluster(model, program, nodes, secret)


def node_folder(folder: pathlib.Path, host: str, port: int) -> pathlib.Path:
    return below(folder, f"{host.strip('[]').replace(':', '_')}-{port}")


def check_cluster(model: Model, program: str, nodes: list[tuple[str, int]], secret: pathlib.Path) -> int:
    """Whether every node answers, has the secret and fits in version: the demo model says four tokens on each."""
    silent = []
    for host, port in nodes:
        try:
            socket.create_connection((host.strip("[]"), port), timeout=3).close()
        except OSError as error:
            silent.append((host, port))
            print(f"🔴 {host}:{port} does not answer yet: {error.strerror or error}")
            continue
        line = [program, "inference", "--prompt", "Once", "--steps", "4", "--workers", f"{host}:{port}"]
        line += ["--secret-file", str(secret), "--model", str(DEMO / "demo-q40.m"), "--tokenizer", str(DEMO / "demo.t")]
        try:
            done = subprocess.run(line, capture_output=True, timeout=120, check=False)
            said = done.stderr.decode(errors="replace").strip().splitlines()
            why = (said or ["no reason given"])[-1] if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = "no answer within two minutes"
        if why:
            silent.append((host, port))
            print(f"🔴 {host}:{port}: {printable(why).removeprefix('🚨 ').removeprefix(f'{host}:{port}: ')}")
        else:
            print(f"🟢 {host}:{port} answers, with this secret and version")
    for host, port in silent:
        folder = node_folder(secret.parent, host, port)
        say(f"{host}:{port}: copy {folder} to it and run start-worker.sh there, or install the systemd unit")
    if silent:
        say("then run the same command again")
        return 1
    say(f"ready: {ME} chat {model.name} --cluster")
    return 0


def worker(args) -> int:
    program = find_program(args.dry_run)
    flags, why = node_flags(usable_gpus(program))
    line = [program, "worker", "--port", args.port, *flags]
    if args.secret_file:
        line += ["--secret-file", args.secret_file]
    say(why)
    return start(with_rest(line, args.rest), args.dry_run)


# -------------------------------------------------------------------------------------------------------- list, doctor


def list_models(args) -> int:
    found = usable_gpus(find_program(dry_run=True))
    room = max([memory_bytes()[1], *(gpu.free for gpu in found), sum(gpu.free for gpu in equal_gpus(found))])
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
    physical, threads = cores()
    total, available = memory_bytes()
    print(f"🧠 {cpu_name()}: {physical} cores, {threads} threads")
    bandwidth = memory_bandwidth(physical)
    print(f"📀 Memory: {gb(total)}, {gb(available)} available, {bandwidth / 1e9:.0f} GB/s copying")
    try:
        program = find_program(dry_run=True)
        version = version_of(program)
        there = f"🟢 Program: {program}, {version}"
        state = there if version else "🔴 Program: not built yet; the first run builds it (make)"
    except LaunchError as error:
        version, state = None, f"🔴 Program: {error}"
    found = gpus()
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
    print(f"⭕ Network: {', '.join(networks()) or 'no interface is up'}")
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


# -------------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise LaunchError(f"{message} ({self.prog} --help)")


def gguf_name(text: str) -> str:
    if not text.endswith(".gguf"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .gguf")
    return text


def parse(argv: list[str]) -> argparse.Namespace:
    rest = []
    if "--" in argv:
        at = argv.index("--")
        argv, rest = argv[:at], argv[at + 1 :]
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, run, model: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if model:
            command.add_argument("name", metavar="NAME", help="a name of the list, demo, or OWNER/NAME on the hub")
        command.add_argument("--dry-run", action="store_true", help="print the commands instead of running them")
        default = pathlib.Path(os.environ.get("DLLAMA_MODELS", DATA / "models"))
        command.add_argument("--models-dir", type=pathlib.Path, default=default, metavar="FOLDER", help=f"({default})")
        return command

    def add_conversion(command: argparse.ArgumentParser) -> None:
        command.add_argument("--type", choices=list(BITS), help="type of the weights (q40)")
        command.add_argument(
            "--quality", choices=["fast", "best"], default="fast", help="best: q40 closer to the checkpoint, slower"
        )
        command.add_argument(
            "--ignore-unknown", action="store_true", help="convert although there are unknown fields or tensors"
        )
        command.add_argument("--gguf", metavar="FILE", type=gguf_name, help="convert this GGUF file of the repository")

    def add_run(name: str, text: str) -> argparse.ArgumentParser:
        command = add(name, text, lambda args: run_model(name, args))
        add_conversion(command)
        command.add_argument("--cluster", action="store_true", help="with the workers of setup-cluster")
        command.add_argument("--force", action="store_true", help="even if the memory is too small")
        return command

    add("list", "Models and what they need", list_models, model=False)
    add("doctor", "This machine, and what would run on it", doctor, model=False)
    add("download", "Fetch the checkpoint without converting it", download)
    add_conversion(
        add("convert", "Make the model's files, shard by shard", lambda args: convert(find_model(args.name), args))
    )
    inference = add_run("inference", "Continue a prompt")
    inference.add_argument("--prompt", required=True, metavar="TEXT")
    inference.add_argument("--steps", type=int, default=256, metavar="N", help="tokens of prompt and answer (256)")
    add_run("chat", "Talk to the model")
    add_run("benchmark", "Measure prompts and answers")
    cluster = add("setup-cluster", "Write what each machine of a cluster needs, and check them", setup_cluster)
    cluster.add_argument("--nodes", nargs="+", required=True, metavar="HOST[:PORT]", help=f"workers ({DEFAULT_PORT})")
    serve = add("worker", "Compute along with a root on another machine", worker, model=False)
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, metavar="N")
    serve.add_argument("--secret-file", metavar="FILE", help="the cluster's secret, from setup-cluster")
    if not argv:
        parser.print_help()
        sys.exit(1)
    args = parser.parse_args(argv)
    args.rest = rest
    args.type_given = getattr(args, "type", None) is not None
    if not args.type_given:
        args.type = "q40"
    return args


def download(args) -> int:
    model = find_model(args.name)
    if model.repository is None:
        raise LaunchError("the demo model comes with the program: there is nothing to do")
    folder = model_folder(model, args)
    python = converter_python(args.dry_run)
    return start(
        [python, CONVERTER / "download-hub.py", model.repository, model.name, "--output-dir", folder], args.dry_run
    )


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? in place of our signs
    try:
        args = parse(sys.argv[1:])
        return args.run(args)
    except BrokenPipeError:  # ./launch-glm.py list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"🚨 {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}", file=sys.stderr)
        return 1
    except (LaunchError, ConversionError) as error:
        print(printable(f"🚨 {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
