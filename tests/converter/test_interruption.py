"""A conversion that ends early leaves no file that looks whole."""

import json
import signal
import struct
import subprocess
import sys
import time

import pytest
from checkpoints import ROOT, golden
from dllama_convert.model_file import TensorEntry, described_layout, write_model

VOCAB = 1 << 20


def large_folder(folder):
    """A reference model whose embedding and head are a hole of 268 MB each in the file."""
    config, tensors = golden("glm4-dense")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCAB}))
    header, at = {}, 0
    large = ("model.embed_tokens.weight", "lm_head.weight")
    small = [name for name in tensors if name not in large]
    for name in (*small, *large):
        dtype, shape, data = ("BF16", [VOCAB, 128], None) if name in large else tensors[name]
        size = VOCAB * 128 * 2 if data is None else len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(tensors[name][2] for name in small))
        file.truncate(8 + len(text) + at)
    return folder


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_signal(kind, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, ROOT / "converter" / "convert-hf.py", large_folder(tmp_path / "model"), "q80", "model"]
    process = subprocess.Popen([*command, "--output-dir", output], stderr=subprocess.PIPE, text=True)
    part = output / "dllama_model_model_q80.m.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 0):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0
    left = [path.name for path in output.iterdir()]
    if kind == signal.SIGKILL:
        # The header is written last: what is left is not even a .m file by its first bytes.
        assert left == [part.name]
        assert part.read_bytes()[:48] == bytes(48)
    else:
        assert left == []
        assert "Traceback" not in errors


def test_failure_of_the_source(tmp_path):
    entries = [TensorEntry("a", "F32", (4,)), TensorEntry("b", "F32", (4,))]
    path = tmp_path / "model.m"

    def fill(entry):
        yield bytes(8)
        if entry.name == "b":
            raise OSError("the disk went away")
        yield bytes(8)

    with pytest.raises(OSError, match="the disk went away"):
        write_model(path, described_layout("model", "glm4", {}, entries), fill)
    assert list(tmp_path.iterdir()) == []
