"""Converts tokenizer folders and runs the engine's tokenizer on the .t files."""

import json
import os
import pathlib
import struct
import subprocess

import pytest
from checkpoints import ROOT, Result, run_tool

SHARED = pathlib.Path(os.environ.get("DLLAMA_SHARED", ROOT.parent / "shared"))

OWN_TEXTS = [
    "", " ", "a", "Hello, world!", "The quick brown fox  jumps over the lazy dog's back.", "I'LL don't WE'VE it's",
    "   leading and trailing   ", "tabs\tand\n\nline feeds\r\n\n \n  x", "3.14159 12345678 ½ Ⅷ ²",
    "for (int i = 0; i < n; i++) {\n    sum += a[i];\n}\n", "你好，世界！今天天气怎么样？", "Привет, мир", "नमस्ते दुनिया",
    "🚀 👩‍👩‍👧 🇩🇪 é e\u0301 \u00a0 \u3000 \u200b", "<|user|> [gMASK]<sop> <think>\n</think>",
    "naïve café ﬁ Å", "\x00\x01\x7f", "x" * 70 + " " * 90 + "y", "abababababab" * 20,
]  # fmt: skip
# What published tokenizers were recorded with: many scripts, white space of all kinds, broken emoji.
PUBLISHED_TEXTS = json.loads((ROOT / "tests" / "data" / "text" / "tokenizer-texts.json").read_text(encoding="utf-8"))
TEXTS = OWN_TEXTS + PUBLISHED_TEXTS


def with_white_space_pieces(text: str) -> str:
    """A text as the original ChatGLM hands it to sentencepiece: line feeds, tabs and runs of blanks are pieces."""
    text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
    for n in range(80, 1, -1):
        text = text.replace(" " * n, f"<|blank_{n}|>")
    return text


def with_white_space(text: str) -> str:
    text = text.replace("<n>", "\n").replace("<|tab|>", "\t")
    for n in range(2, 81):
        text = text.replace(f"<|blank_{n}|>", " " * n)
    return text


def run_tokenizer_converter(folder: pathlib.Path, output: pathlib.Path) -> Result:
    return run_tool("convert-tokenizer-hf", folder, "tok", "--output-dir", output)


def converted_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    output = folder.with_name(f"{folder.name}-converted")
    result = run_tokenizer_converter(folder, output)
    assert result.returncode == 0, result.stderr
    return output / "dllama_tokenizer_tok.t"


def engine(file: pathlib.Path, texts: list[str], *flags: str) -> list[dict]:
    """What tests/converter/tokenize.cpp says of each text: its `ids`, those of it as a `prompt`, what comes `back`."""
    if "DLLAMA_TOKENIZE" not in os.environ:
        pytest.skip("DLLAMA_TOKENIZE does not name the program: CTest does")
    command = [os.environ["DLLAMA_TOKENIZE"], file, *flags]
    result = subprocess.run(command, input=json.dumps(texts).encode(), capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def end_ids(file: pathlib.Path) -> set[int]:
    """The ids that end a text, in the header of a .t file."""
    data = file.read_bytes()
    size = struct.unpack_from("<i", data, 4)[0]
    pairs = dict(struct.unpack_from("<ii", data, at) for at in range(8, size, 8))
    return set(struct.unpack_from(f"<{pairs[9]}i", data, size + pairs.get(7, 0)))


def trailer(file: pathlib.Path) -> dict:
    """The JSON document of a .t file."""
    data = file.read_bytes()
    at = data.rindex((0x4A544C44).to_bytes(4, "little"))
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    return json.loads(data[at + 8 : at + 8 + length])
