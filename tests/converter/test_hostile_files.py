"""Small files that ask for much: each is refused in a line, in 1 GB of memory, in less than 2 seconds."""

import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile

import fuzz_files
import pytest
from checkpoints import ROOT, golden, run_converter, write_folder

FUZZ = pathlib.Path(fuzz_files.__file__)
ROUNDS = os.environ.get("DLLAMA_FUZZ_ROUNDS", "400")


def in_bounds(*command, timeout=120) -> subprocess.CompletedProcess:
    """A program in 1 GB of address space."""
    limit = f"import resource, sys, runpy; resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30})); "
    run = limit + "sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    run += "runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    arguments = [sys.executable, "-c", run, *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, env=environment)


@pytest.mark.parametrize("target", fuzz_files.TARGETS)
def test_mutated_files(target):
    """DLLAMA_FUZZ_ROUNDS for more."""
    result = in_bounds(FUZZ, target, ROUNDS, os.environ.get("DLLAMA_FUZZ_SEED", "1"), timeout=7200)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def bomb(path: pathlib.Path, member: str, size: int, pickle: bytes = b"\x80\x02}.") -> None:
    """A zip of which one member unpacks to `size` bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        if not member.endswith("data.pkl"):
            archive.writestr("archive/data.pkl", pickle)
        with (
            archive.open(zipfile.ZipInfo(member), "w")
            if not size
            else archive.open(_deflated(member), "w", force_zip64=True) as file
        ):
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))


def _deflated(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


PICKLES = {
    "memo 2^28": b"\x80\x02}r\xff\xff\xff\x0f.",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100 + b".",
    "bytes of 2^60": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
    "a key that is a tower": b"\x80\x02})" + b"\x862" .replace(b"2", b"") * 40 + b"Ns.",
    "an integer of a megabyte": b"\x80\x02\x8b" + struct.pack("<I", 1 << 20) + b"\xff" * (1 << 20) + b".",
}  # fmt: skip


@pytest.mark.parametrize("case", PICKLES)
def test_pickles(case, tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", PICKLES[case])
    # What only announces much is an empty dictionary.
    empty = case in ("memo 2^28", "frame of 2^60")
    refused(tmp_path, "the checkpoint has no tensor" if empty else "its pickle is damaged")


def refused(folder: pathlib.Path, words: str) -> None:
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(golden("llama")[0]))
    tool = ROOT / "converter" / "convert-hf.py"
    result = in_bounds(tool, folder, "q40", "m", "--output-dir", folder / "out", timeout=10)
    assert result.returncode == 1 and words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr


@pytest.mark.parametrize("member", ["archive/byteorder", "archive/data.pkl"])
def test_zips_that_unpack_to_gigabytes(member, tmp_path):
    bomb(tmp_path / "pytorch_model.bin", member, 1 << 30)
    assert (tmp_path / "pytorch_model.bin").stat().st_size < 2 << 20
    refused(tmp_path, f"pytorch_model.bin: {member} is compressed, or larger than its file")


def test_pipes_and_devices(tmp_path):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "pipe", config, tensors)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        kept = (folder / name).read_bytes() if (folder / name).exists() else None
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        refused(folder, f"{name}: is not a regular file")
        (folder / name).unlink()
        if kept is not None:
            (folder / name).write_bytes(kept)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    refused(folder, "config.json: is not a regular file")


def test_deep_json(tmp_path):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "deep", config, tensors)
    (folder / "config.json").write_text("[" * 200000)
    refused(folder, "config.json: is nested too deeply")


def test_token_ids_far_apart(tmp_path):
    (tmp_path / "model").mkdir()
    vocab = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 10**9}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel"},
    }
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(vocab))
    tool = ROOT / "converter" / "convert-tokenizer-hf.py"
    result = in_bounds(tool, tmp_path / "model", "m", "--output-dir", tmp_path / "out", timeout=10)
    assert result.returncode == 1 and "token id 1000000000 among 2 tokens" in result.stderr, result.stderr


def test_tensors_on_the_same_bytes(tmp_path):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, tensors)
    data = (folder / "model.safetensors").read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if name.endswith("up_proj.weight")]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    result = run_converter(folder, tmp_path / "out")
    assert result.returncode == 1 and "lie on the same bytes" in result.stderr
