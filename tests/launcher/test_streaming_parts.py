"""What a conversion from the hub must know of other shards: scales, a head that repeats the embedding, an adapter."""

import json
import sys

import numpy as np
import pytest
from conftest import REPOSITORY
from dllama_convert import ConversionError
from dllama_convert.streaming import StreamingConversion
from stand_in_hub import Fault

sys.path.append(str(REPOSITORY / "tests" / "converter"))
from checkpoints import converted, document, golden, write_safetensors  # noqa: E402


def folder_of(path, config: dict, *shards: dict):
    """A checkpoint of these shards."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    weight_map = {}
    for i, tensors in enumerate(shards, 1):
        name = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_safetensors(path / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def streamed(output, lora=None) -> bytes:
    return StreamingConversion("owner/model", "F32", "model", output, lora=lora).run().read_bytes()


def halves(tensors: dict) -> tuple[dict, dict]:
    names = sorted(tensors)
    first = names[: len(names) // 2]
    return {n: tensors[n] for n in first}, {n: tensors[n] for n in names if n not in first}


def test_scales_in_another_shard(hub, tmp_path):
    """Each shard needs scales of the other."""
    config, tensors = golden("llama")
    rng, shards = np.random.default_rng(3), ({}, {})
    for i, (name, (_, shape, _)) in enumerate(tensors.items()):
        own, other = shards[i % 2], shards[1 - i % 2]
        if not name.endswith("_proj.weight"):
            own[name] = tensors[name]
            continue
        own[name] = ("F8_E4M3", shape, rng.integers(0, 0x7F, shape).astype(np.uint8).tobytes())
        scales = rng.random([-(-n // 128) for n in shape]).astype(np.float32)
        other[f"{name}_scale_inv"] = ("F32", list(scales.shape), scales.tobytes())
    config |= {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    hub.repositories["owner/model"] = folder_of(tmp_path / "repo", config, *shards)
    assert streamed(tmp_path / "out") == converted(hub.repositories["owner/model"])


@pytest.mark.parametrize("repeats", [True, False])
def test_a_tied_head_in_another_shard_is_compared(repeats, hub, tmp_path, capsys):
    config, tensors = golden("glm4-dense")
    config |= {"tie_word_embeddings": True}
    if repeats:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    first, second = halves(tensors)
    hub.repositories["owner/model"] = folder_of(tmp_path / "repo", config, first, second)
    model = streamed(tmp_path / "out")
    assert document(model)["config"]["tie_word_embeddings"] == repeats
    said = capsys.readouterr().out
    assert ("left out: lm_head.weight: it repeats" if repeats else "lm_head.weight is kept") in said
    assert model == converted(hub.repositories["owner/model"])


def test_an_adapter_is_added_shard_by_shard(hub, tmp_path):
    config, tensors = golden("llama")
    rng, factors = np.random.default_rng(4), {}
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        rows, cols = tensors[f"{module}.weight"][1]
        for letter, shape in (("A", [4, cols]), ("B", [rows, 4])):
            value = rng.standard_normal(shape).astype(np.float32)
            factors[f"base_model.model.{module}.lora_{letter}.weight"] = ("F32", shape, value.tobytes())
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
    write_safetensors(lora / "adapter_model.safetensors", factors)
    repo = hub.repositories["owner/model"] = folder_of(tmp_path / "repo", config, *halves(tensors))
    assert streamed(tmp_path / "out", lora) == converted(repo, "f32", "--lora", str(lora))
    # What was begun with an adapter is not gone on with without it.
    hub.faults["model-00002-of-00002.safetensors"] = Fault(times=9, status=404)
    with pytest.raises(ConversionError):
        streamed(tmp_path / "out2", lora)
    hub.faults.clear()
    with pytest.raises(ConversionError, match="belongs to the conversion of"):
        streamed(tmp_path / "out2")
