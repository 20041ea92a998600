"""One model in every form that its publishers use becomes one and the same .m file."""

import math

import numpy as np
import pytest
from checkpoints import ROOT, Tensors, converted, document, golden, run_converter, write_folder, zeros
from dllama_convert import ConversionError
from dllama_convert.checkpoint import Checkpoint
from dllama_convert.torch_file import read_torch

MODELS = [
    "chatglm-6b", "glm-4-9b-chat", "glm-hf-bias", "glm4-dense", "glm4moe-16x2", "llama", "qwen3", "qwen3moe", "qwen2",
    "solar-open", "glm45v-text", "glm41v-text", "glm-ocr-text",
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_shards_and_kinds_of_files(model, tmp_path):
    config, tensors = golden(model)
    single = converted(write_folder(tmp_path / "single", config, tensors))
    assert converted(write_folder(tmp_path / "shards", config, tensors, shards=3)) == single
    assert converted(write_folder(tmp_path / "bin", config, tensors, torch=True)) == single
    assert converted(write_folder(tmp_path / "bins", config, tensors, shards=2, torch=True)) == single


def test_file_of_pytorch_itself():
    """Saved by PyTorch 2.15: a Linear's state, two halves of floats, a view, a tied tensor, a Parameter, integers."""
    path = ROOT / "tests" / "data" / "torch" / "state-dict.bin"
    tensors = read_torch(path)
    checkpoint = Checkpoint({path: tensors})
    base = np.arange(48, dtype=np.float32).reshape(6, 8) / 8
    expected = {
        "weight": np.arange(16).reshape(2, 8) / 4,
        "bias": np.array([[1.5], [-2.5]]),
        "f16": base,
        "bf16": base,
        "view": base[2:4],
        "tied": base,
        "parameter": base[:, :1],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.rows(name, slice(0, len(values))), values, name)
    assert tensors["tied"] == tensors["bf16"]
    assert set(checkpoint.names()) == {*expected, "scalar", "position_ids"}
    with pytest.raises(ConversionError, match="tensor position_ids has type Long"):
        checkpoint.shape("position_ids")


ROPE = {
    "default": {},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
}


@pytest.mark.parametrize(
    ("model", "rope"),
    [
        ("llama", "llama3"),
        ("qwen3", "default"),
        ("qwen3moe", "yarn"),
        ("glm4-dense", "yarn"),
        ("glm4moe-16x2", "default"),
    ],
)
def test_config_of_transformers_4_and_5(model, rope, tmp_path):
    config, tensors = golden(model)
    parameters = config.pop("rope_parameters")
    config.pop("dtype", None)
    partial = config.pop("partial_rotary_factor", None)
    new = config | {"dtype": "bfloat16", "rope_parameters": parameters | ROPE[rope] | {"rope_type": rope}}
    old = config | {"torch_dtype": "bfloat16", "rope_theta": parameters["rope_theta"], "rope_scaling": None}
    if partial:
        old["partial_rotary_factor"] = partial
    if rope != "default":
        old["rope_scaling"] = {"type": rope} | ROPE[rope]
    fifth = converted(write_folder(tmp_path / "v5", new, tensors), "q40")
    assert converted(write_folder(tmp_path / "v4", old, tensors), "q40") == fifth
    unscaled = converted(write_folder(tmp_path / "unscaled", old | {"rope_scaling": None}, tensors), "q40")
    assert (unscaled == fifth) == (rope == "default")


def fused_experts(tensors: Tensors) -> Tensors:
    """All experts of a layer in one tensor, gate before up, as transformers 5 writes them."""
    fused = {name: tensor for name, tensor in tensors.items() if ".mlp.experts." not in name}
    layers = sorted({name.split(".experts.")[0] for name in tensors if ".mlp.experts." in name})
    for layer in layers:
        count = len([name for name in tensors if name.startswith(f"{layer}.experts.") and "up_proj" in name])
        for source, target in ((("gate_proj", "up_proj"), "gate_up_proj"), (("down_proj",), "down_proj")):
            parts = [tensors[f"{layer}.experts.{e}.{part}.weight"] for e in range(count) for part in source]
            dtype, (rows, width), _ = parts[0]
            shape = [count, len(source) * rows, width]
            fused[f"{layer}.experts.{target}"] = (dtype, shape, b"".join(data for _, _, data in parts))
    return fused


@pytest.mark.parametrize("model", ["glm4moe-16x2", "qwen3moe"])
def test_experts_single_and_fused(model, tmp_path):
    config, tensors = golden(model)
    fused = fused_experts(tensors)
    assert len(fused) < len(tensors)
    single = converted(write_folder(tmp_path / "single", config, tensors))
    assert converted(write_folder(tmp_path / "fused", config, fused)) == single


def with_next_token_layer(config: dict, tensors: Tensors) -> Tensors:
    """A next-token layer behind the last one: a copy of it, and what such a layer has of its own."""
    hidden, vocab, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"] - 1
    own, result = f"model.layers.{last + 1}.", dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith(f"model.layers.{last}."):
            result[name.replace(f"model.layers.{last}.", own)] = tensor
    for name in ("enorm", "hnorm", "shared_head.norm"):
        result[f"{own}{name}.weight"] = ("F32", [hidden], bytes(4 * hidden))
    result[f"{own}eh_proj.weight"] = zeros(hidden, 2 * hidden)
    for name in ("embed_tokens", "shared_head.head"):  # repeat the main ones
        result[f"{own}{name}.weight"] = zeros(vocab, hidden)
    return result


def test_next_token_layer_is_kept_where_there_is_one(tmp_path):
    config, tensors = golden("glm4moe-16x2")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.layers.3.")}
    assert config["num_nextn_predict_layers"] == 1
    without = document(converted(write_folder(tmp_path / "without", config, tensors)))
    complete = with_next_token_layer(config, tensors)
    model = converted(write_folder(tmp_path / "with", config, complete))
    document_with = document(model)
    assert without["config"]["num_nextn_predict_layers"] == 0
    assert document_with["config"]["num_nextn_predict_layers"] == 1

    hashes = {entry[0]: entry[4] for entry in document_with["tensors"]}
    assert hashes.items() >= {entry[0]: entry[4] for entry in without["tensors"]}.items()
    added = [entry[0] for entry in document_with["tensors"] if entry[0].startswith("layers.3.")]
    assert added[:4] == [f"layers.3.nextn.{x}.weight" for x in ("embed_norm", "hidden_norm", "proj", "head_norm")]
    # Attention with biases, router, 16 experts, shared expert and the two norms: as many as layer 2 has.
    assert len(added) - 4 == len([entry for entry in without["tensors"] if entry[0].startswith("layers.2.")])
    assert hashes["layers.3.attn.q.weight"] == hashes["layers.2.attn.q.weight"]
    # The tensors lie one behind the other up to the end of the file.
    name, dtype, shape, offset, _ = document_with["tensors"][-1]
    assert (name, dtype, len(model)) == ("head.weight", "F32", offset + 4 * math.prod(shape))


def test_old_vocabulary_of_the_original_chatglm(tmp_path):
    """20000 image tokens before the text's: they are left out, which is what the later checkpoints are."""
    config, tensors = golden("chatglm-6b")
    tables = ("transformer.word_embeddings.weight", "lm_head.weight")
    new_size, old_size, hidden = 130528, 150528, config["hidden_size"]
    text = np.random.default_rng(3).integers(0, 0x3C00, (new_size, hidden), np.uint16).tobytes()  # F16 from 0 to 1
    images = bytes(2 * 20000 * hidden)
    ids = {"bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001}
    new = tensors | {name: ("F16", [new_size, hidden], text) for name in tables}
    slim = converted(write_folder(tmp_path / "new", config | ids | {"vocab_size": new_size}, new), "q40")
    # The oldest config.json names neither mask; the head is left out where it repeats the embedding.
    del config["mask_token_id"], config["gmask_token_id"]
    old_config = config | {"vocab_size": old_size, "bos_token_id": 150004, "eos_token_id": 150005}
    old = tensors | {tables[0]: ("F16", [old_size, hidden], images + text)}
    del old[tables[1]]
    assert converted(write_folder(tmp_path / "old", old_config, old), "q40") == slim
    assert (
        document(slim)["config"].items()
        >= {
            "vocab_size": new_size,
            "eos_token_ids": [130005],
            **{key: ids[key] for key in ("bos_token_id", "mask_token_id", "gmask_token_id")},
        }.items()
    )


def test_best_quality_changes_only_q40(tmp_path):
    folder = write_folder(tmp_path / "model", *golden("glm4-dense"))
    for weight_type in ("q40", "q80"):
        best = converted(folder, weight_type, "--quality", "best")
        (tmp_path / f"model-{weight_type}").rename(tmp_path / f"best-{weight_type}")
        assert (converted(folder, weight_type) == best) == (weight_type == "q80")
        assert len(best) == len(
            (tmp_path / f"model-{weight_type}" / f"dllama_model_model_{weight_type}.m").read_bytes()
        )


def test_tied_head_is_stored_where_it_differs(tmp_path):
    """tie_word_embeddings is true in all three; a head of other values is what the model was trained with."""
    config, tensors = golden("glm4-dense")
    config |= {"tie_word_embeddings": True}
    repeated = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    without = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    tied = converted(write_folder(tmp_path / "without", config, without))
    assert document(tied)["config"]["tie_word_embeddings"]
    assert "head.weight" not in {entry[0] for entry in document(tied)["tensors"]}
    result = run_converter(write_folder(tmp_path / "repeated", config, repeated), tmp_path / "out")
    assert "left out: lm_head.weight: it repeats model.embed_tokens.weight" in result.stdout
    assert (tmp_path / "out" / "dllama_model_model_f32.m").read_bytes() == tied
    result = run_converter(write_folder(tmp_path / "differs", config, tensors), tmp_path / "out2")
    assert "lm_head.weight is kept" in result.stdout
    untied = write_folder(tmp_path / "untied", config | {"tie_word_embeddings": False}, tensors)
    assert (tmp_path / "out2" / "dllama_model_model_f32.m").read_bytes() == converted(untied)
