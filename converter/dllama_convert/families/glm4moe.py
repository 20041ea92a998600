"""GLM-4.5 to 4.7, INTELLECT-3, Solar-Open."""

from collections.abc import Callable

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, experts, mlp, moe_config
from .plan import Builder, Plan

# Adds the outputs of a layer's attention, from the checkpoint's prefix to ours.
Attend = Callable[[str, str], None]


def glm4moe(c: HfConfig, b: Builder) -> Plan:
    """GLM-4.5, 4.5-Air, 4.6, 4.7, INTELLECT-3, the text parts of GLM-4.5V and 4.6V; Solar-Open, which rotates whole
    heads and has no biases."""
    solar = c.class_name == "SolarOpenForCausalLM"
    if solar:
        c.expect("attention_bias", False)
        c.expect("use_qk_norm", False)
        c.expect("first_k_dense_replace", 0)  # transformers' class has no dense layers
    if c.class_name == "Glm4vMoeForConditionalGeneration":
        c.expect("use_qk_norm", False)
    bias = c.flag("attention_bias", c.class_name == "Glm4vMoeForConditionalGeneration")
    cfg = base_config(c, bias=bias, rotary=c.partial_rotary_factor(1.0 if solar else 0.5))
    cfg |= moe_config(c, cfg["num_hidden_layers"])
    cfg["use_qk_norm"] = c.flag("use_qk_norm", False)
    moe_layers(c, b, cfg, lambda src, dst: attention(b, cfg, src, dst, qk_norm=cfg["use_qk_norm"]))
    return Plan("glm4moe", cfg, b.outputs)


def moe_layers(c: HfConfig, b: Builder, cfg: dict, attend: Attend) -> None:
    """All tensors of a model whose layers are those of GLM-4.5 but for the attention. The next-token layers are kept
    where the checkpoint has them."""
    main_layers = cfg["num_hidden_layers"]
    cfg["num_nextn_predict_layers"] = 0
    for i in range(main_layers, main_layers + c.count("num_nextn_predict_layers", default=0, low=0, high=16)):
        cfg["num_nextn_predict_layers"] += b.has(f"model.layers.{i}.eh_proj.weight")
    hidden = cfg["hidden_size"]

    def layer(i: int) -> None:
        src, dst = f"model.layers.{i}.", f"layers.{i}."
        if i >= main_layers:
            b.vector(f"{dst}nextn.embed_norm.weight", hidden, f"{src}enorm.weight")
            b.vector(f"{dst}nextn.hidden_norm.weight", hidden, f"{src}hnorm.weight")
            b.matrix(f"{dst}nextn.proj.weight", hidden, 2 * hidden, f"{src}eh_proj.weight")
            b.vector(f"{dst}nextn.head_norm.weight", hidden, f"{src}shared_head.norm.weight")
            b.leave_out("the main one is used", [f"{src}embed_tokens.weight", f"{src}shared_head.head.weight"])
        b.vector(f"{dst}attn_norm.weight", hidden, f"{src}input_layernorm.weight")
        attend(src, dst)
        b.vector(f"{dst}ffn_norm.weight", hidden, f"{src}post_attention_layernorm.weight")
        if i < cfg["first_k_dense_replace"]:
            mlp(b, hidden, cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")
            return
        n = cfg["n_routed_experts"]
        b.matrix(f"{dst}moe.router.weight", n, hidden, f"{src}mlp.gate.weight", weight=False)
        b.vector(f"{dst}moe.router.bias", n, f"{src}mlp.gate.e_score_correction_bias")
        experts(b, cfg, f"{src}mlp.", f"{dst}moe.")
        if cfg["n_shared_experts"] > 0:
            width = cfg["n_shared_experts"] * cfg["moe_intermediate_size"]
            mlp(b, hidden, width, f"{src}mlp.shared_experts.", f"{dst}moe.shared.")

    def layers():
        for i in range(main_layers + cfg["num_nextn_predict_layers"]):
            layer(i)

    ends(b, cfg, layers)
