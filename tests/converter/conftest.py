import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "converter"))

# Conversions here do not ask a program that happens to be built or installed; the tests of chat formats do.
PROGRAM = os.environ.get("DLLAMA_PROGRAM")
os.environ["DLLAMA_PROGRAM"] = ""


@pytest.fixture
def program(monkeypatch) -> str:
    """The built dllama, which the converter finds too."""
    if not PROGRAM:
        pytest.skip("DLLAMA_PROGRAM does not name the program: CTest does")
    monkeypatch.setenv("DLLAMA_PROGRAM", PROGRAM)
    return PROGRAM
