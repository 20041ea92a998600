"""The dense GLMs: GLM-Edge, glm-4-9b-chat-hf, GLM-4-0414, Z1, and the text parts of GLM-4.1V and GLM-OCR."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, mlp
from .plan import Builder, Plan


def glm(c: HfConfig, b: Builder) -> Plan:
    """GlmForCausalLM (glm-4-9b-chat-hf, GLM-Edge) and, with sandwich norms, Glm4ForCausalLM (0414, Z1) and the text
    parts of Glm4vForConditionalGeneration (GLM-4.1V, GLM-4.6V-Flash) and GlmOcrForConditionalGeneration."""
    sandwich = c.class_name != "GlmForCausalLM"
    # transformers' Glm4v has the biases whatever the config says, and GlmOcr has none.
    bias = c.flag("attention_bias", c.class_name == "Glm4vForConditionalGeneration")
    if c.class_name == "Glm4vForConditionalGeneration":
        c.expect("attention_bias", True)
    if c.class_name == "GlmOcrForConditionalGeneration":
        c.expect("attention_bias", False)
    c.expect("rope_interleave", True)
    cfg = base_config(c, bias=bias, rotary=c.partial_rotary_factor(0.5))
    first = cfg["num_hidden_layers"]
    for i in range(first, first + c.count("num_nextn_predict_layers", default=0, low=0, high=16)):
        names = [name for name in b.present if name.startswith(f"model.layers.{i}.")]
        b.leave_out("the next-token layer of a dense model is not used", names)

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
