"""Every command in README.md and docs/HOW_TO_*.md is known to the launcher, the converters, make or the program."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY, launcher

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
    monkeypatch.setattr(launcher, "memory_bytes", lambda: (128_000_000_000, 120_000_000_000))
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
