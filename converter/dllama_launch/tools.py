"""The programs that the launcher runs: dllama, built if need be, and a Python with the converter's packages."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys

from . import machine
from .errors import LaunchError
from .places import CONVERTER, HOME, VENV


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


def usable_gpus(program: str) -> list[machine.Gpu]:
    """The GPUs that the program can compute on: none if it was built without CUDA."""
    version = version_of(program)
    return machine.gpus() if version is None or "CUDA" in version else []


def converter_python(dry_run: bool = False) -> str:
    """A Python with the converter's packages: this one, or that of .venv, which is made at the first time."""
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
