"""Shared by the tests of the launcher, the downloads and the GGUF import."""

import os
import pathlib
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "converter"))


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
