"""Llama, Mistral, Qwen2 and what was trained from them: two norms a layer, one gated FFN."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, mlp
from .plan import Builder, Plan


def llama(c: HfConfig, b: Builder) -> Plan:
    """LlamaForCausalLM and MistralForCausalLM have no biases, Qwen2ForCausalLM has them on q, k and v."""
    qwen2 = c.class_name == "Qwen2ForCausalLM"
    c.expect("mlp_bias", False)
    c.expect("attention_bias", *([True] if qwen2 else [False]))
    c.expect("partial_rotary_factor", 1.0)
    # What transformers' classes have where the first configs did not name it.
    cfg = base_config(c, bias=qwen2, rotary=1.0, default_theta=10000.0)
    cfg["max_position_embeddings"] = c.full_attention(cfg["max_position_embeddings"])

    def layers():
        for i in range(cfg["num_hidden_layers"]):
            src, dst = f"model.layers.{i}.", f"layers.{i}."
            b.vector(f"{dst}attn_norm.weight", cfg["hidden_size"], f"{src}input_layernorm.weight")
            attention(b, cfg, src, dst, interleave=True)
            b.vector(f"{dst}ffn_norm.weight", cfg["hidden_size"], f"{src}post_attention_layernorm.weight")
            mlp(b, cfg["hidden_size"], cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")

    ends(b, cfg, layers)
    return Plan("llama", cfg, b.outputs, legacy_ok=True)
