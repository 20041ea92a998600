"""Llama and Mistral."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, mlp, no_sliding_window
from .plan import Builder, Plan


def llama(c: HfConfig, b: Builder) -> Plan:
    c.expect("mlp_bias", False)
    c.expect("attention_bias", False)
    c.expect("partial_rotary_factor", 1.0)
    no_sliding_window(c)
    cfg = base_config(c, bias=False, rotary=1.0)

    def layers():
        for i in range(cfg["num_hidden_layers"]):
            src, dst = f"model.layers.{i}.", f"layers.{i}."
            b.vector(f"{dst}attn_norm.weight", cfg["hidden_size"], f"{src}input_layernorm.weight")
            attention(b, cfg, src, dst, interleave=True)
            b.vector(f"{dst}ffn_norm.weight", cfg["hidden_size"], f"{src}post_attention_layernorm.weight")
            mlp(b, cfg["hidden_size"], cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")

    ends(b, cfg, layers)
    return Plan("llama", cfg, b.outputs, legacy_ok=True)
