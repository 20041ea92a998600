"""One model under the names and in the spellings of other versions, classes and wrappers; what a config changes."""

import numpy as np
import pytest
from checkpoints import converted, document, golden, run_converter, write_folder
from dllama_convert.fp8 import E4M3

BOOKKEEPING = {
    "_attn_implementation_autoset": True, "_attn_implementation": "sdpa", "_attn_implementation_foo": None,
    "tokenizer_class": "LlamaTokenizer", "max_length": 20, "output_attentions": False, "output_hidden_states": True,
    "output_scores": False, "use_return_dict": True, "torchscript": False, "num_beams": 4, "temperature": 0.6,
    "is_encoder_decoder": False, "pruned_heads": {}, "transformers_version": "4.33.0", "_name_or_path": "x/y",
}  # fmt: skip


@pytest.mark.parametrize("model", ["llama", "glm4moe-16x2", "qwen2", "glm45v-text"])
def test_bookkeeping_of_transformers_changes_nothing(model, tmp_path):
    config, tensors = golden(model)
    plain = converted(write_folder(tmp_path / "plain", config, tensors))
    assert converted(write_folder(tmp_path / "more", config | BOOKKEEPING, tensors)) == plain


def test_classes_that_have_a_default_theta(tmp_path):
    """10000 in transformers' Llama, Mistral and Qwen2; a GLM that names none stays refused (test_refusals.py)."""
    config, tensors = golden("llama")
    config["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "default"}
    named = converted(write_folder(tmp_path / "named", config, tensors))
    del config["rope_parameters"]
    assert converted(write_folder(tmp_path / "silent", config, tensors)) == named


NAMES = {
    "model_type only": ({"architectures": None}, {}),
    "class only": ({"model_type": None}, {}),
    "another class": ({"architectures": ["FSDPGlm4MoeForConditionalGeneration"]}, {}),
    "a class of nobody": ({"architectures": ["MyFineTunedModel"]}, {}),
    "remote code only": (
        {"architectures": None, "model_type": "mine",
         "auto_map": {"AutoConfig": "c.MyConfig", "AutoModelForCausalLM": "m.Glm4MoeForCausalLM"}}, {}),
    "experts of transformers 5": ({"n_routed_experts": None, "num_local_experts": 16}, {}),
    "kinds of layers": ({"first_k_dense_replace": None, "mlp_layer_types": ["dense", "sparse", "sparse"]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_the_same_model_under_other_names(case, tmp_path):
    config, tensors = golden("glm4moe-16x2")
    plain = converted(write_folder(tmp_path / "plain", config, tensors))
    changes, _ = NAMES[case]
    assert converted(write_folder(tmp_path / "other", config | changes, tensors)) == plain


def test_the_same_tensors_under_other_names(tmp_path):
    config, tensors = golden("glm4moe-16x2")
    plain = converted(write_folder(tmp_path / "plain", config, tensors))
    nested = {"architectures": ["SomeVisionModel"], "model_type": "some_vlm", "text_config": config}
    for i, rename in enumerate((
        lambda name: name.replace("model.", "model.language_model."),
        lambda name: "language_model." + name,
        lambda name: "_orig_mod." + name,
        lambda name: name.removeprefix("model."),
    )):  # fmt: skip
        renamed = {rename(name): tensor for name, tensor in tensors.items()}
        assert converted(write_folder(tmp_path / str(i), config if i > 1 else nested, renamed)) == plain


def test_two_models_in_one_config_are_refused(tmp_path):
    config, tensors = golden("glm4moe-16x2")
    result = run_converter(write_folder(tmp_path / "m", config | {"model_type": "llama"}, tensors), tmp_path / "out")
    assert result.returncode == 1 and "are different models" in result.stderr


def test_pictures_are_left_out_and_named_once(tmp_path):
    config, tensors = golden("glm45v-text")
    result = run_converter(write_folder(tmp_path / "m", config, tensors), tmp_path / "out")
    lines = [line for line in result.stdout.splitlines() if "left out" in line]
    n = len([name for name in tensors if name.startswith("model.visual.")])
    assert len(lines) == 1 and f"model.visual.blocks.0.attn.proj.weight and {n - 1} more" in lines[0]


def test_yarn_lengthens_the_context(tmp_path):
    """Qwen's recipe: factor 4 of 32768, where max_position_embeddings stays 40960."""
    config, tensors = golden("qwen3")
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config |= {"max_position_embeddings": 40960, "rope_scaling": scaling, "rope_theta": 1e6}
    del config["rope_parameters"]
    folder = write_folder(tmp_path / "m", config, tensors)
    result = run_converter(folder, tmp_path / "out")
    assert "context 131072 by YaRN, where max_position_embeddings says 40960" in result.stdout
    assert document(converted(folder))["config"]["max_position_embeddings"] == 131072


def test_sliding_windows_limit_the_context(tmp_path):
    config, tensors = golden("llama")
    window = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 128}
    folder = write_folder(tmp_path / "m", config | window | {"attention_bias": True}, tensors)
    assert "attention_bias = True" in run_converter(folder, tmp_path / "out").stderr
    biased = config | window | {"rms_norm_eps": 2e-5}  # which distributed-llama's header cannot say
    folder = write_folder(tmp_path / "w", biased, tensors)
    assert "context 128 instead of 512" in run_converter(folder, tmp_path / "out").stdout
    assert document(converted(folder))["config"]["max_position_embeddings"] == 128
    whole = write_folder(tmp_path / "whole", biased | {"use_sliding_window": False}, tensors)
    assert document(converted(whole))["config"]["max_position_embeddings"] == 512


def test_values_of_e4m3():
    assert [E4M3[i] for i in (0, 1, 8, 0x38, 0x7E)] == [0.0, 2.0**-9, 2.0**-6, 1.0, 448.0]
    assert E4M3[0xC8] == -4.0 and np.isnan(E4M3[0x7F]) and np.isnan(E4M3[0xFF])


def quantised(tensors, pick, scale_of):
    """The tensors that `pick` names in FP8, and the same dequantised by hand in float64."""
    rng, codes, plain = np.random.default_rng(5), dict(tensors), dict(tensors)
    for name in filter(pick, tensors):
        _, shape, _ = tensors[name]
        bits = rng.integers(0, 0x70, shape, np.uint8) | rng.integers(0, 2, shape, np.uint8) << 7
        scales, suffix, wide = scale_of(shape, rng)
        codes[name] = ("F8_E4M3", shape, bits.tobytes())
        codes[name + suffix] = ("F32", list(scales.shape), scales.astype(np.float32).tobytes())
        values = (E4M3.astype(np.float64)[bits] * wide.astype(np.float32)).astype(np.float32)
        plain[name] = ("F32", shape, values.tobytes())
    return codes, plain


def in_blocks(shape, rng):
    rows, cols = (-(-n // 128) for n in shape)
    scales = rng.random((rows, cols)).astype(np.float32) / 64
    wide = np.repeat(np.repeat(scales, 128, 0), 128, 1)[: shape[0], : shape[1]]
    return scales, "_scale_inv", wide


def in_rows(shape, rng):
    scales = rng.random((shape[0], 1)).astype(np.float32) / 64
    return scales, "_scale", np.broadcast_to(scales, shape)


def of_the_tensor(shape, rng):
    scales = rng.random(1).astype(np.float32) / 64
    return scales, "_scale", np.broadcast_to(scales, shape)


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}},
}


@pytest.mark.parametrize(
    ("scale_of", "quantization"),
    [
        (in_blocks, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}),
        (in_rows, COMPRESSED),
        (of_the_tensor, {"quant_method": "fp8", "weight_block_size": None}),
    ],
)
@pytest.mark.parametrize("model", ["glm4moe-16x2", "chatglm-6b", "llama"])
def test_fp8_is_dequantised_exactly(model, scale_of, quantization, tmp_path):
    """Also where q and k are permuted and where q, k and v are picked from one tensor."""
    config, tensors = golden(model)
    pick = lambda name: name.endswith(("_proj.weight", "query_key_value.weight", "4h.weight"))  # noqa: E731
    codes, plain = quantised(tensors, pick, scale_of)
    assert len(codes) > len(tensors)
    expected = converted(write_folder(tmp_path / "plain", config, plain))
    folder = write_folder(tmp_path / "fp8", config | {"quantization_config": quantization}, codes)
    assert converted(folder) == expected


def test_fp8_that_cannot_be_read(tmp_path):
    config, tensors = golden("llama")
    name = "model.layers.1.mlp.up_proj.weight"
    _, shape, data = tensors[name]
    eighth = tensors | {name: ("F8_E4M3", shape, data[: len(data) // 2])}
    for i, (scale, words) in enumerate((
        ({}, f"there is no {name}_scale_inv"),
        ({name + "_scale_inv": ("F32", [7, 7], bytes(196))}, "has scales of shape [7, 7]"),
        ({name + "_scale_inv": ("I32", [2, 1], bytes(8))}, "has type I32"),
    )):  # fmt: skip
        result = run_converter(write_folder(tmp_path / str(i), config, eighth | scale), tmp_path / "out")
        assert result.returncode == 1 and words in result.stderr
    for i, quantization in enumerate(({"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8", "fmt": "e5m2"}, 3)):
        folder = write_folder(tmp_path / f"q{i}", config | {"quantization_config": quantization}, tensors)
        assert "quantization_config" in run_converter(folder, tmp_path / "out").stderr
