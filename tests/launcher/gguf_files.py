"""Writes a Hugging Face folder as GGUF the way llama.cpp's converter does: its names, its row order, its metadata."""

import json
import pathlib

import gguf
import numpy as np
from dllama_convert.checkpoint import open_checkpoint

_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "Qwen3MoeForCausalLM": gguf.MODEL_ARCH.QWEN3MOE,
    "GlmForCausalLM": gguf.MODEL_ARCH.CHATGLM,
    "ChatGLMModel": gguf.MODEL_ARCH.CHATGLM,
    "Glm4ForCausalLM": gguf.MODEL_ARCH.GLM4,
    "Glm4vForConditionalGeneration": gguf.MODEL_ARCH.GLM4,
    "GlmOcrForConditionalGeneration": gguf.MODEL_ARCH.GLM4,
    "Glm4MoeForCausalLM": gguf.MODEL_ARCH.GLM4_MOE,
    "Glm4vMoeForConditionalGeneration": gguf.MODEL_ARCH.GLM4_MOE,
    "SolarOpenForCausalLM": gguf.MODEL_ARCH.GLM4_MOE,
}


def config_of(folder: pathlib.Path) -> dict:
    """config.json's fields, those of a nested language model with the class around it."""
    config = json.loads((folder / "config.json").read_text())
    return config.get("text_config", config) | {"architectures": config["architectures"]}


def rope_of(config: dict) -> dict:
    """The rope's fields, as transformers 5 or 4 writes them."""
    return config | (config.get("rope_scaling") or {}) | config.get("rope_parameters", {})


def turned_dims(config: dict, head_dim: int) -> int:
    default = 0.5 if "ChatGLM" in config["architectures"][0] else 1
    return int(head_dim * rope_of(config).get("partial_rotary_factor", default))


def start(path: pathlib.Path, config: dict) -> gguf.GGUFWriter:
    """A writer with the metadata of `config` (config.json's fields)."""
    architecture = _ARCHITECTURES[config["architectures"][0]]
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    nextn = config.get("num_nextn_predict_layers", 0)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config.get("kv_channels") or config["hidden_size"] // heads
    rope = rope_of(config)
    w.add_block_count(config.get("num_hidden_layers", config.get("num_layers")) + nextn)
    w.add_context_length(config.get("max_position_embeddings", config.get("seq_length")))
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config.get("intermediate_size", config.get("ffn_hidden_size")))
    w.add_head_count(heads)
    w.add_head_count_kv(config.get("num_key_value_heads", config.get("multi_query_group_num")))
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(config.get("rms_norm_eps", config.get("layernorm_epsilon")))
    w.add_rope_freq_base(rope.get("rope_theta") or 10000.0 * config.get("rope_ratio", 1))
    w.add_rope_dimension_count(turned_dims(config, head_dim))
    if sections := rope.get("mrope_section"):
        w.add_rope_dimension_sections([*sections, 0])
    if rope.get("type") == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    experts = config.get("n_routed_experts") or config.get("num_experts") or config.get("num_local_experts")
    if experts:
        w.add_expert_count(experts)
        w.add_expert_used_count(config["num_experts_per_tok"])
        w.add_expert_feed_forward_length(config["moe_intermediate_size"])
    if architecture == gguf.MODEL_ARCH.GLM4_MOE:
        w.add_expert_shared_count(config["n_shared_experts"])
        w.add_leading_dense_block_count(config["first_k_dense_replace"])
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        w.add_expert_weights_scale(config["routed_scaling_factor"])
        w.add_expert_weights_norm(config["norm_topk_prob"])
    if architecture in (gguf.MODEL_ARCH.GLM4_MOE, gguf.MODEL_ARCH.GLM4):
        w.add_nextn_predict_layers(nextn)
    return w


def tensors(folder: pathlib.Path, config: dict) -> dict[str, np.ndarray]:
    """GGUF name to values, as llama.cpp has them."""
    checkpoint = open_checkpoint(folder)
    architecture = _ARCHITECTURES[config["architectures"][0]]
    layers = config.get("num_hidden_layers", config.get("num_layers")) + config.get("num_nextn_predict_layers", 0)
    names = gguf.get_tensor_name_map(architecture, layers)
    result: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name in checkpoint.names():
        if name.endswith("inv_freq") or ".visual." in name:  # pictures are a file of their own
            continue
        shape = checkpoint.shape(name)
        values = checkpoint.rows(name, slice(0, int(np.prod(shape[:-1] if len(shape) > 1 else shape)))).reshape(shape)
        if architecture == gguf.MODEL_ARCH.LLAMA and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            values = values.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        if architecture == gguf.MODEL_ARCH.GLM4 and "mrope_section" in rope_of(config):
            values = halves_of_pairs(config, name, values)
        if ".experts." in name and name.split(".experts.")[1][0].isdigit():
            head, _, tail = name.partition(".experts.")
            experts.setdefault(f"{head}.experts.{tail.partition('.')[2]}", []).append(
                (int(tail.partition(".")[0]), values)
            )
            continue
        result[_mapped(names, name)] = values
    for name, parts in experts.items():
        result[_mapped(names, name)] = np.stack([values for _, values in sorted(parts, key=lambda part: part[0])])
    return result


def halves_of_pairs(config: dict, name: str, values: np.ndarray) -> np.ndarray:
    """q and k of GLM's models that see pictures: the even of the rotated rows of a head, then the odd ones."""
    kinds = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = next((key for part, key in kinds.items() if f"self_attn.{part}." in name), None)
    if key is None:
        return values
    heads = values.reshape(config[key], -1, values.size // len(values))
    turned = turned_dims(config, heads.shape[1])
    parts = (heads[:, 0:turned:2], heads[:, 1:turned:2], heads[:, turned:])
    return np.concatenate(parts, axis=1).reshape(values.shape)


def _mapped(names: gguf.TensorNameMap, name: str) -> str:
    name = name.removeprefix("transformer.").replace("model.language_model.", "model.")
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    mapped = names.get_name(name, (".weight", ".bias"))
    assert mapped, f"the gguf package does not know {name}"
    return mapped


def write(path: pathlib.Path, folder: pathlib.Path, kind: gguf.GGMLQuantizationType) -> dict[str, np.ndarray]:
    """Writes all matrices as `kind` and everything else as F32; returns the bytes of each tensor."""
    config = config_of(folder)
    w = start(path, config)
    generation = folder / "generation_config.json"
    eos = (json.loads(generation.read_text()) if generation.exists() else config)["eos_token_id"]
    for add, token in zip(
        (w.add_eos_token_id, w.add_eot_token_id, w.add_eom_token_id),
        eos if isinstance(eos, list) else [eos],
        strict=False,
    ):
        add(token)
    written = {}
    for name, values in tensors(folder, config).items():
        kept = gguf.GGMLQuantizationType.F32 if values.ndim == 1 or "ffn_gate_inp" in name else kind
        data = gguf.quantize(values, kept)
        w.add_tensor(name, data, raw_dtype=kept)
        written[name] = data
    finish(w)
    return written


def finish(w: gguf.GGUFWriter) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
