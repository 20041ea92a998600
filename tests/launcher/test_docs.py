"""Every command in README.md and docs/HOW_TO_*.md runs, or is known to the launcher, make or the program."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import dllama_launch.machine
import gguf
import gguf_files
import pytest
from conftest import REPOSITORY, free_port, write_tokenizer

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("HOW_TO_*.md"))]
COMMANDS = [
    (path.name, line)
    for path in DOCUMENTS
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def flags(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--") and word != "--"}


def test_there_are_commands():
    assert {name for name, _ in COMMANDS} == {path.name for path in DOCUMENTS}


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_command(document, line, launch, machine, tmp_path, monkeypatch):
    """The launcher's are run dry; the others' flags are looked up in --help."""
    monkeypatch.setattr(dllama_launch.machine, "memory_bytes", lambda: (128_000_000_000, 120_000_000_000))
    words = shlex.split(line)
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        for word in words[1:]:
            assert re.search(rf"^{word.split('=')[0]}\b", makefile, re.MULTILINE), line
    elif words[0] == "./launch-glm.py":
        if "--cluster" in words:
            folder = tmp_path / "models" / words[2] / "cluster"
            folder.mkdir(parents=True)
            (folder / "cluster.json").write_text(json.dumps({"workers": ["a:9999"], "secret_file": "secret"}))
        if "--lora" in words:
            monkeypatch.chdir(tmp_path)
            lora = tmp_path / words[words.index("--lora") + 1]
            lora.mkdir(parents=True)
            (lora / "adapter_config.json").write_text("{}")
        if words[1] == "doctor":
            assert len(words) == 2
            return
        status, _, err = launch(*words[1:2], "--dry-run", *words[2:])
        assert status == 0, err
    elif words[0] == "python3":
        text = subprocess.run(
            [sys.executable, REPOSITORY / words[1], "--help"], capture_output=True, text=True, check=True
        )
        assert flags(words) <= set(re.findall(r"--[a-z-]+", text.stdout)), line
    else:
        assert (REPOSITORY / words[0]).exists() or words[0] == "./dllama", line


@pytest.mark.parametrize(("document", "line"), [c for c in COMMANDS if "./dllama " in c[1] or " -- " in c[1]])
def test_flags_of_the_program(document, line, program):
    words = shlex.split(line)
    command, given = (words[1], words[2:]) if words[0] == "./dllama" else (words[1], words[words.index("--") + 1 :])
    text = subprocess.run([program, command, "--help"], capture_output=True, text=True, check=True).stdout
    assert flags(given) <= set(re.findall(r"--[a-z-]+", text)), line


def set_the_stage(folder: pathlib.Path, golden: pathlib.Path, program: str) -> None:
    """What the documents take for granted: the program, a model, a checkpoint, a GGUF file."""
    (folder / "dllama").symlink_to(program)
    (folder / "converter").symlink_to(REPOSITORY / "converter")
    (folder / "model.m").symlink_to(REPOSITORY / "models" / "demo" / "demo-q40.m")
    (folder / "tokenizer.t").symlink_to(REPOSITORY / "models" / "demo" / "demo.t")
    shutil.copytree(golden / "glm4-dense", folder / "path" / "to" / "checkpoint")
    write_tokenizer(folder / "path" / "to" / "checkpoint")
    quants = gguf.GGMLQuantizationType.Q4_0
    gguf_files.write(folder / "GLM-4.5-Air-Q4_0.gguf", golden / "glm4moe-16x2", quants)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_run_here(document, golden, tmp_path, program):
    """The program's and the converters', one after another in one folder. A worker's line runs on two nodes."""
    lines = [line for name, line in COMMANDS if name == document.name and line.startswith(("./dllama", "python3"))]
    lines = [line for line in lines if "--gpu-index" not in line]  # these machines have none
    if not lines:
        pytest.skip(f"{document.name} has no command that could run here by itself")
    set_the_stage(tmp_path, golden, program)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ports = [free_port(), free_port()]
    with contextlib.ExitStack() as stack:
        for line in lines:
            words = [sys.executable if word == "python3" else word for word in shlex.split(line)]
            if words[1] == "worker":
                for port in ports:
                    command = [str(port) if word == "9999" else word for word in words]
                    node = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
                    stack.enter_context(node)
                    stack.callback(node.terminate)
                    assert any("Listening" in said for said in iter(node.stdout.readline, ""))
                continue
            here = {f"10.0.0.{2 + i}:9999": f"127.0.0.1:{port}" for i, port in enumerate(ports)}
            words = [here.get(word, word) for word in words]
            if words[1] == "chat":
                words += ["--max-tokens", "8"]
            options = {"input": "\nHello\n", "capture_output": True, "text": True, "timeout": 120}
            done = subprocess.run(words, cwd=tmp_path, env=environment, check=False, **options)
            assert done.returncode == 0, f"{line}: {done.stderr}"
