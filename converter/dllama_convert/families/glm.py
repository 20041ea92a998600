"""The dense GLMs: GLM-Edge, glm-4-9b-chat-hf, GLM-4-0414 and Z1."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, mlp
from .plan import Builder, Plan


def glm(c: HfConfig, b: Builder) -> Plan:
    """GlmForCausalLM (glm-4-9b-chat-hf, GLM-Edge) and Glm4ForCausalLM (0414, Z1), which adds sandwich norms."""
    sandwich = c.need("architectures")[0] == "Glm4ForCausalLM"
    cfg = base_config(c, bias=bool(c.get("attention_bias", False)), rotary=c.partial_rotary_factor(0.5))
    # The next-token layers of a dense GLM are not converted.
    for i in range(c.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{cfg['num_hidden_layers'] + i}."
        b.ignore(*(name for name in b.present if name.startswith(prefix)))

    def layers():
        hidden = cfg["hidden_size"]
        for i in range(cfg["num_hidden_layers"]):
            src, dst = f"model.layers.{i}.", f"layers.{i}."
            b.vector(f"{dst}attn_norm.weight", hidden, f"{src}input_layernorm.weight")
            attention(b, cfg, src, dst)
            if sandwich:
                b.vector(f"{dst}post_attn_norm.weight", hidden, f"{src}post_self_attn_layernorm.weight")
            b.vector(f"{dst}ffn_norm.weight", hidden, f"{src}post_attention_layernorm.weight")
            mlp(b, hidden, cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")
            if sandwich:
                b.vector(f"{dst}post_ffn_norm.weight", hidden, f"{src}post_mlp_layernorm.weight")

    ends(b, cfg, layers)
    return Plan("glm4" if sandwich else "glm", cfg, b.outputs)
