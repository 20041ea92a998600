"""Shared by the tests of the launcher, the downloads and the GGUF import."""

import importlib.util
import json
import os
import pathlib
import socket
import sys

import pytest
from stand_in_hub import Hub, running_hub

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "converter"))

import dllama_launch.machine  # noqa: E402

spec = importlib.util.spec_from_file_location("launcher", REPOSITORY / "launch-glm.py")
launcher = importlib.util.module_from_spec(spec)
sys.modules["launcher"] = launcher
spec.loader.exec_module(launcher)


def pytest_configure(config) -> None:
    """The stand-in hub runs throughout: huggingface_hub reads HF_ENDPOINT when it is imported."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        del os.environ[name]
    config.running_hub = running_hub()
    config.hub = config.running_hub.__enter__()
    os.environ |= {"HF_ENDPOINT": config.hub.endpoint, "HF_HOME": "/nonexistent", "HF_HUB_DISABLE_TELEMETRY": "1"}


def pytest_unconfigure(config) -> None:
    config.running_hub.__exit__(None, None, None)


@pytest.fixture
def hub(request, monkeypatch) -> Hub:
    """The stand-in hub, empty and well; attempts follow each other at once."""
    monkeypatch.setattr("dllama_convert.hub._PAUSES", (0.0,) * 7)
    hub = request.config.hub
    hub.reset()
    return hub


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """Folder of the tiny reference models."""
    return REPOSITORY / "tests" / "data" / "golden"


@pytest.fixture(scope="session")
def program() -> str:
    """The built dllama."""
    path = os.environ.get("DLLAMA_PROGRAM")
    if not path:
        pytest.skip("DLLAMA_PROGRAM does not name the program: nothing is run")
    return path


@pytest.fixture
def launch(monkeypatch, tmp_path, capfd):
    """Runs launch-glm.py in this process: (exit code, output, errors)."""
    monkeypatch.setenv("DLLAMA_MODELS", str(tmp_path / "models"))

    def run(*argv: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch-glm.py", *argv])
        status = launcher.main(launcher.__doc__)
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def machine(monkeypatch):
    """A machine of 64 GB and 8 cores with two threads each, without a GPU."""
    monkeypatch.setattr(dllama_launch.machine, "memory_bytes", lambda: (64_000_000_000, 60_000_000_000))
    monkeypatch.setattr(dllama_launch.machine, "cores", lambda: (8, 16))
    monkeypatch.setattr(dllama_launch.machine, "gpus", list)
    monkeypatch.setenv("DLLAMA_PROGRAM", sys.executable)  # some program; nothing is run


def write_tokenizer(folder: pathlib.Path) -> None:
    """A byte-level tokenizer without merges for the tiny models, whose answers end at 1 or 2."""
    from dllama_convert.tokenizers import _BYTES

    document = {
        "added_tokens": [{"id": i, "content": f"<|{i}|>", "special": True} for i in range(3)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": {char: i for i, char in enumerate(_BYTES, 3)}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    template = "[gMASK]<sop>{{ messages }}<|assistant|><think></think>/nothink"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
