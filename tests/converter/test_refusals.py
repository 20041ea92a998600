"""What cannot be converted: one line that names it, exit code 1, and no file."""

import json
import os
import pickle
import struct
import zipfile

import pytest
from checkpoints import golden, run_converter, write_folder, write_safetensors, write_torch, zeros


def refused(folder, output, *words: str, weight_type: str = "f32", flags=()) -> None:
    result = run_converter(folder, output, weight_type, *flags)
    lines = [line for line in result.stderr.splitlines() if not line.startswith("dllama_model_")]  # the progress bar
    assert result.returncode == 1, result.stdout
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]
    assert not output.exists() or not any(output.iterdir())


CONFIGS = {
    "architecture": (
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
        ["['MambaForCausalLM'] is not supported", "Glm4MoeForCausalLM"],
    ),
    "unknown field": ({"use_sparse_thoughts": 3}, ["use_sparse_thoughts = 3"]),
    "activation": ({"hidden_act": "relu2"}, ["hidden_act = 'relu2'"]),
    "rope kind": ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, ["'longrope' is not supported"]),
    "rope field": ({"rope_parameters": {"rope_theta": 1e4, "spin": 2}}, ["unknown fields: spin"]),
    "rope theta": ({"rope_parameters": {}}, ["rope_theta is missing"]),
    "missing field": ({"num_attention_heads": None}, ["num_attention_heads is missing"]),
    "router": ({"scoring_func": "softmax"}, ["scoring_func = 'softmax'"]),
    "quantised": ({"quantization_config": {"bits": 4}}, ["quantization_config", "already quantised"]),
    "layers": (
        {"num_hidden_layers": 4, "num_nextn_predict_layers": 0},
        ["no tensor model.layers.3.input_layernorm.weight"],
    ),
    "width": ({"moe_intermediate_size": 32}, ["mlp.experts.0.gate_proj.weight has shape [64, 128]", "[32, 128]"]),
    "bias": ({"attention_bias": False}, ["tensors that this architecture has not", "self_attn.k_proj.bias"]),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configuration(case, tmp_path):
    changes, words = CONFIGS[case]
    config, tensors = golden("glm4moe-16x2")
    refused(write_folder(tmp_path / "model", config | changes, tensors), tmp_path / "out", *words)


def test_unknown_fields_can_be_ignored(tmp_path):
    config, tensors = golden("llama")
    extra = tensors | {"model.layers.0.self_attn.extra.weight": zeros(4, 4)}
    folder = write_folder(tmp_path / "model", config | {"mystery": 1}, extra)
    refused(folder, tmp_path / "out", "mystery = 1")
    assert run_converter(folder, tmp_path / "out", "f32", "--ignore-unknown").returncode == 0


def test_other_families_refuse_what_they_do_not_compute(tmp_path):
    config, tensors = golden("llama")
    refused(write_folder(tmp_path / "a", config | {"mlp_bias": True}, tensors), tmp_path / "out", "mlp_bias = True")
    refused(
        write_folder(tmp_path / "b", config | {"partial_rotary_factor": 0.5}, tensors),
        tmp_path / "out", "partial_rotary_factor = 0.5",
    )  # fmt: skip
    config, tensors = golden("chatglm-6b")
    refused(write_folder(tmp_path / "d", config | {"pre_seq_len": 64}, tensors), tmp_path / "out", "pre_seq_len = 64")
    flat = {"position_encoding_2d": False}
    refused(write_folder(tmp_path / "e", config | flat, tensors), tmp_path / "out", "position_encoding_2d = False")


def test_missing_files(tmp_path):
    config, tensors = golden("llama")
    output = tmp_path / "out"
    refused(tmp_path / "nowhere", output, "nowhere: there is no such folder")
    refused(tmp_path, output, "neither model.safetensors nor pytorch_model.bin")
    folder = write_folder(tmp_path / "shards", config, tensors, shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, output, "model-00002-of-00002.safetensors: this shard is missing")
    folder = write_folder(tmp_path / "no-config", config, tensors)
    (folder / "config.json").unlink()
    refused(folder, output, "config.json: there is no such file")
    (folder / "config.json").write_text("[1, 2")
    refused(folder, output, "config.json")


def test_missing_tensor_type_and_values(tmp_path):
    config, tensors = golden("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    without = {key: tensor for key, tensor in tensors.items() if key != name}
    refused(write_folder(tmp_path / "missing", config, without), tmp_path / "out", f"no tensor {name}")
    dtype, shape, data = tensors[name]
    eighth = tensors | {name: ("F8_E4M3", shape, data[: len(data) // 2])}
    refused(write_folder(tmp_path / "type", config, eighth), tmp_path / "out", f"tensor {name} has type F8_E4M3")
    nan = tensors | {name: (dtype, shape, b"\xc0\x7f" + data[2:])}
    refused(write_folder(tmp_path / "nan", config, nan), tmp_path / "out", name, "not numbers", weight_type="q40")
    large = tensors | {name: ("F32", shape, struct.pack("<f", 70000.0) + 2 * data[2:])}
    refused(write_folder(tmp_path / "large", config, large), tmp_path / "out", name, "65504", weight_type="f16")


def test_columns_must_be_whole_blocks(tmp_path):
    config, tensors = golden("llama")
    narrow = {f"model.layers.{i}.mlp.{x}_proj.weight": zeros(48, 128) for i in range(3) for x in ("gate", "up")}
    narrow |= {f"model.layers.{i}.mlp.down_proj.weight": zeros(128, 48) for i in range(3)}
    folder = write_folder(tmp_path / "model", config | {"intermediate_size": 48}, tensors | narrow)
    refused(folder, tmp_path / "out", "layers.0.ffn.down.weight is 48 wide", "multiple of 32", weight_type="q80")
    assert run_converter(folder, tmp_path / "out", "f16").returncode == 0


def test_damaged_safetensors(tmp_path):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, tensors)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content, words in (
        (whole[:-5], "is truncated"),
        (whole[:4], "not a safetensors file"),
        (struct.pack("<Q", 1 << 60) + whole[8:], "not a safetensors file"),
        (whole[:8] + b"x" + whole[9:], "its header is damaged"),
        (whole.replace(b'"data_offsets": [0, ', b'"data_offsets": [4, ', 1), "bytes for shape"),
        (whole.replace(b'"shape"', b'"shipe"', 1), "its header is damaged"),
    ):
        file.write_bytes(content)
        refused(folder, tmp_path / "out", "model.safetensors", words)


class Exploit:
    def __reduce__(self):
        return os.system, ("touch exploited",)


def test_damaged_and_hostile_bin(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, tensors = golden("chatglm-6b")
    folder = write_folder(tmp_path / "model", config, tensors, torch=True)
    file, output = folder / "pytorch_model.bin", tmp_path / "out"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(folder, output, "not a file of torch.save since PyTorch 1.6, or truncated")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Exploit()}, protocol=2))
    refused(folder, output, "system: only tensors by name are read")
    assert not (tmp_path / "exploited").exists()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"epoch": 3}, protocol=2))
    refused(folder, output, "'epoch' is a int, not a tensor")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02garbage")
    refused(folder, output, "its pickle is damaged")
    write_torch(file, {"transposed": zeros(4, 8)}, strides=(1, 4))
    refused(folder, output, "a tensor of shape [4, 8] is not stored row by row")


def test_existing_output_is_kept(tmp_path):
    config, tensors = golden("llama")
    folder, output = write_folder(tmp_path / "model", config, tensors), tmp_path / "out"
    output.mkdir()
    existing = output / "dllama_model_model_f32.m"
    existing.write_text("mine")
    result = run_converter(folder, output)
    assert (result.returncode, existing.read_text()) == (1, "mine")
    assert f"{existing}: exists already" in result.stderr


def test_index_that_is_no_index(tmp_path):
    config, tensors = golden("llama")
    folder = write_folder(tmp_path / "model", config, {})
    write_safetensors(folder / "part", tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part"}}))
    assert run_converter(folder, tmp_path / "whole").returncode == 0
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    refused(folder, tmp_path / "out", "model.safetensors.index.json", "weight_map")
