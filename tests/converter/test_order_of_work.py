"""What can be refused is refused before the first weight is written, and a failure leaves nothing in the way."""

import collections
import json
import os
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from checkpoints import ROOT, converted, golden, run_converter, run_tool, write_folder, write_safetensors
from dllama_convert import model_file
from test_tokenizers import train_byte_level, write_json

CL100K = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+"


@pytest.fixture
def writes():
    """Counts the .m files that were begun."""
    with mock.patch("dllama_convert.convert.write_model", side_effect=model_file.write_model) as write:
        yield write


def test_a_tokenizer_of_one_token_more_than_the_embedding(tmp_path, writes):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, tensors)
    document = json.loads(train_byte_level(CL100K, 300).to_str())
    document["added_tokens"] = [{"id": config["vocab_size"], "content": "<|x|>", "special": True}]
    write_json(folder / "tokenizer.json", document)
    result = run_converter(folder, tmp_path / "out")
    assert result.returncode == 1 and "513 tokens, the embedding 512 rows" in result.stderr
    assert not writes.called and not (tmp_path / "out").exists()
    assert run_converter(folder, tmp_path / "out", "f32", "--weights-only").returncode == 0


def test_names_that_are_no_names_of_files(tmp_path, writes):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, tensors)
    for name in ("org/model", "..", "a b", "", "x" * 300):
        result = run_tool("convert-hf", folder, "q40", name, "--output-dir", tmp_path / "out")
        assert result.returncode == 1 and "is no name for a file" in result.stderr
    assert not writes.called


def test_a_full_disk_is_told_before(tmp_path, writes):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, tensors)
    usage = collections.namedtuple("usage", "total used free")
    with mock.patch.object(shutil, "disk_usage", return_value=usage(10, 9, 1234567)):
        result = run_converter(folder, tmp_path / "out")
    assert result.returncode == 1 and "GB are needed" in result.stderr and "1234567 bytes" in result.stderr
    assert not writes.called
    assert run_converter(folder, tmp_path / "out").returncode == 0


def test_a_conversion_that_fails_blocks_nothing(tmp_path):
    config, tensors = golden("llama")
    folder, out = write_folder(tmp_path / "model", config, tensors), tmp_path / "out"
    with mock.patch("dllama_convert.model_file.os.fsync", side_effect=OSError(28, "No space left on device")):
        assert run_converter(folder, out).returncode == 1
    assert not any(out.iterdir())
    assert run_converter(folder, out).returncode == 0


def adapter(folder, products: dict, **config):
    """An adapter's folder: by module A (r, in) and B (out, r)."""
    folder.mkdir()
    defaults = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "base_model_name_or_path": "someone/base"}
    (folder / "adapter_config.json").write_text(json.dumps(defaults | config))
    tensors = {}
    for module, (a, b) in products.items():
        for letter, value in (("A", a), ("B", b)):
            name = f"base_model.model.{module}.lora_{letter}.weight"
            tensors[name] = ("F32", list(value.shape), value.astype(np.float32).tobytes())
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def values_of(tensor) -> np.ndarray:
    dtype, shape, data = tensor
    assert dtype == "BF16"
    return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_added_in_float32(rslora, tmp_path):
    """As a checkpoint of the sums becomes; q's rows are permuted on the way."""
    config, tensors = golden("llama")
    rng, products, merged = np.random.default_rng(4), {}, dict(tensors)
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        weight = values_of(tensors[f"{module}.weight"])
        a = rng.standard_normal((4, weight.shape[1])).astype(np.float32)
        b = rng.standard_normal((weight.shape[0], 4)).astype(np.float32)
        products[module] = (a, b)
        total = weight + (b * np.float32(6 / (2 if rslora else 4))) @ a
        merged[f"{module}.weight"] = ("F32", list(total.shape), total.astype(np.float32).tobytes())
    expected = converted(write_folder(tmp_path / "merged", config, merged))
    lora = adapter(tmp_path / "lora", products, use_rslora=rslora)
    folder = write_folder(tmp_path / "model", config, tensors)
    model = converted(folder, "f32", "--lora", str(lora))
    difference = np.frombuffer(model[-40000:], np.float32) - np.frombuffer(expected[-40000:], np.float32)
    assert len(model) == len(expected) and np.abs(difference).max() < 1e-5
    shutil.rmtree(tmp_path / "model-f32")
    assert model != converted(folder)


def test_adapters_that_are_not_plain(tmp_path):
    config, tensors = golden("llama")
    folder, product = write_folder(tmp_path / "model", config, tensors), (np.ones((4, 128)), np.ones((256, 4)))
    module = "model.layers.0.mlp.up_proj"
    for i, (products, changes, words) in enumerate((
        ({module: product}, {"use_dora": True}, "use_dora = True is not supported"),
        ({module: product}, {"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head']"),
        ({module: product}, {"r": 8}, "of rank 8"),
        ({module: product}, {"r": "x"}, "r = 'x'"),
        ({"model.layers.9.mlp.up_proj": product}, {}, "changes model.layers.9.mlp.up_proj"),
        ({module: (np.ones((4, 64)), np.ones((256, 4)))}, {}, "the weight has [256, 128]"),
    )):  # fmt: skip
        lora = adapter(tmp_path / f"lora{i}", products, **changes)
        result = run_converter(folder, tmp_path / "out", "f32", "--lora", str(lora))
        assert result.returncode == 1 and words in result.stderr, result.stderr
    for tool, arguments in (("convert-hf", ("q40", "x")), ("convert-tokenizer-hf", ("x",))):
        result = run_tool(tool, tmp_path / "lora0", *arguments, "--output-dir", tmp_path / "out")
        assert "this is an adapter for 'someone/base'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_terminals_that_are_not_utf_8(encoding, tmp_path):
    """What the terminal cannot show is no reason to end in an error when the file is written."""
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, tensors)
    command = [
        sys.executable,
        ROOT / "converter" / "convert-hf.py",
        folder,
        "q40",
        "m",
        "--output-dir",
        tmp_path / "out",
    ]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for code, words in ((0, b"\\u2705"), (1, b"exists already")):
        result = subprocess.run(command, capture_output=True, timeout=60, env=environment)
        assert result.returncode == code and words in result.stdout + result.stderr
        assert b"Traceback" not in result.stderr
