"""A GGUF file's metadata as the config.json of the checkpoint that it was made from."""

import numpy as np

from . import ConversionError
from .gguf_checkpoint import GgufCheckpoint, GgufFile, damage_refused
from .hf_config import HfConfig

_HF_NAMES = {
    "llama": "LlamaForCausalLM",  # Mistral's too
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
    "chatglm": "GlmForCausalLM",  # ChatGLM2, ChatGLM3, glm-4-9b-chat and GLM-Edge alike
    "glm4": "Glm4ForCausalLM",  # and the text parts of GLM-4.1V, 4.6V-Flash, GLM-OCR
    "glm4moe": "Glm4MoeForCausalLM",  # and the text parts of GLM-4.5V, 4.6V; Solar-Open
}


def read_config(file: GgufFile, checkpoint: GgufCheckpoint) -> HfConfig:
    """Raises ConversionError for what the families cannot state."""
    with damage_refused(file.path):
        return _read_config(file, checkpoint)


def _read_config(file: GgufFile, checkpoint: GgufCheckpoint) -> HfConfig:
    names = set(checkpoint.names())
    heads = file.need("{arch}.attention.head_count")
    hidden = file.need("{arch}.embedding_length")
    head_dim = file.get("{arch}.attention.key_length", hidden // heads)
    fields = {
        "architectures": [_HF_NAMES[file.architecture]],
        "hidden_size": hidden,
        "num_hidden_layers": file.need("{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get("{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": file.need("{arch}.feed_forward_length"),
        "vocab_size": checkpoint.shape("model.embed_tokens.weight")[0],
        "max_position_embeddings": file.need("{arch}.context_length"),
        "rms_norm_eps": _decimal(file.need("{arch}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(file.get("{arch}.rope.freq_base", 10000.0)),
        "rope_scaling": _rope_scaling(file),
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "tie_word_embeddings": "lm_head.weight" not in names,
        "sliding_window": file.get("{arch}.attention.sliding_window") or None,
        "hidden_act": "silu",
    }
    if file.architecture in ("chatglm", "glm4", "glm4moe"):
        fields["partial_rotary_factor"] = file.get("{arch}.rope.dimension_count", head_dim // 2) / head_dim
        del fields["sliding_window"]
    elif file.get("{arch}.rope.dimension_count", head_dim) != head_dim:
        raise ConversionError(
            f"{file.path}: rope.dimension_count is {file.get('{arch}.rope.dimension_count')}, must be {head_dim}"
        )
    if file.architecture == "llama" and file.get("{arch}.expert_count"):
        raise ConversionError(f"{file.path}: a llama with experts (Mixtral) is not supported")
    if file.architecture in ("glm4moe", "qwen3moe"):
        fields |= _moe(file, names)
    elif file.architecture == "glm4":
        fields |= _nextn(file)
    elif file.get("{arch}.nextn_predict_layers"):
        raise ConversionError(f"{file.path}: next-token layers of a dense model are not supported")
    return HfConfig(file.path, fields, {"eos_token_id": eos_ids(file)})


def _nextn(file: GgufFile) -> dict:
    """llama.cpp counts the next-token layers as layers."""
    nextn = file.get("{arch}.nextn_predict_layers", 0)
    return {"num_hidden_layers": file.need("{arch}.block_count") - nextn, "num_nextn_predict_layers": nextn}


def _moe(file: GgufFile, names: set[str]) -> dict:
    fields = {
        "num_experts_per_tok": file.need("{arch}.expert_used_count"),
        "moe_intermediate_size": file.need("{arch}.expert_feed_forward_length"),
        "norm_topk_prob": file.get("{arch}.expert_weights_norm", True),
    }
    if file.architecture == "qwen3moe":
        return fields | {"num_experts": file.need("{arch}.expert_count")}
    gating = file.get("{arch}.expert_gating_func", 2)
    if gating != 2:
        raise ConversionError(f"{file.path}: expert_gating_func {gating} is not supported (2: sigmoid)")
    return fields | _nextn(file) | {
        "n_routed_experts": file.need("{arch}.expert_count"),
        "n_shared_experts": file.get("{arch}.expert_shared_count", 0),
        "first_k_dense_replace": file.get("{arch}.leading_dense_block_count", 0),
        "n_group": file.get("{arch}.expert_group_count", 1),
        "topk_group": file.get("{arch}.expert_group_used_count", 1),
        "routed_scaling_factor": _decimal(file.get("{arch}.expert_weights_scale", 1.0)),
        "use_qk_norm": "model.layers.0.self_attn.q_norm.weight" in names,
    }


def _decimal(value: float) -> float:
    """The short decimal number that was rounded to f32: 1e-5, where the f32 is 9.99999974e-6."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile) -> dict | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_scaling(file)
    kind = file.get("{arch}.rope.scaling.type", "none")
    if kind in ("none", ""):
        return None
    if kind != "yarn":
        raise ConversionError(f"{file.path}: rope scaling {kind!r} is not supported (yarn)")
    scaling = {
        "type": "yarn",
        "factor": _decimal(file.need("{arch}.rope.scaling.factor")),
        "original_max_position_embeddings": file.need("{arch}.rope.scaling.original_context_length"),
    }
    for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if (value := file.get(f"{{arch}}.rope.scaling.{theirs}")) is not None:
            scaling[ours] = _decimal(value)
    return scaling


def _llama3_scaling(file: GgufFile) -> dict:
    """Llama 3's scaling, of which a GGUF keeps only the divisor of each frequency. All published models have the same
    parameters but for the factor."""
    divisors = np.asarray(file.tensors["rope_freqs.weight"].data, np.float64)
    low, high, original = 1.0, 4.0, 8192
    factor = round(float(divisors.max()), 3)
    theta = _decimal(file.get("{arch}.rope.freq_base", 10000.0))
    wavelength = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-4):
        raise ConversionError(f"{file.path}: rope_freqs are not those of a Llama 3 (factor {factor}): not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def eos_ids(file: GgufFile) -> list[int]:
    """Ids that end an answer. GGUF names one of each kind; GLM's chat models end a turn in several ways."""
    ids = [file.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    if file.architecture in ("chatglm", "glm4", "glm4moe"):
        chatml = "<|im_start|>" in file.get("tokenizer.chat_template", "")
        ends = ("<|im_end|>",) if chatml else ("<|user|>", "<|observation|>")
        ids += [i for i, token in enumerate(file.get("tokenizer.ggml.tokens", [])) if token in ends]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))
