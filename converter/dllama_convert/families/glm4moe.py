"""GLM-4.5 to 4.7 and INTELLECT-3."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, experts, mlp
from .plan import Builder, Plan


def glm4moe(c: HfConfig, b: Builder) -> Plan:
    """GLM-4.5, 4.5-Air, 4.6, 4.7, INTELLECT-3. The next-token layers are kept where the checkpoint has them."""
    c.expect("topk_method", "noaux_tc")
    c.expect("scoring_func", "sigmoid")
    c.expect("moe_layer_freq", 1)
    cfg = base_config(c, bias=bool(c.get("attention_bias", False)), rotary=c.partial_rotary_factor(0.5))
    cfg |= {
        "n_routed_experts": c.need("n_routed_experts"),
        "num_experts_per_tok": c.need("num_experts_per_tok"),
        "n_shared_experts": c.need("n_shared_experts"),
        "moe_intermediate_size": c.need("moe_intermediate_size"),
        "first_k_dense_replace": c.need("first_k_dense_replace"),
        "n_group": c.get("n_group", 1),
        "topk_group": c.get("topk_group", 1),
        "norm_topk_prob": bool(c.get("norm_topk_prob", True)),
        "routed_scaling_factor": float(c.get("routed_scaling_factor", 1.0)),
        "scoring_func": "sigmoid",
        "use_qk_norm": bool(c.get("use_qk_norm", False)),
        "num_nextn_predict_layers": 0,
    }
    main_layers = cfg["num_hidden_layers"]
    for i in range(main_layers, main_layers + c.get("num_nextn_predict_layers", 0)):
        cfg["num_nextn_predict_layers"] += b.has(f"model.layers.{i}.eh_proj.weight")
    hidden = cfg["hidden_size"]

    def layer(i: int) -> None:
        src, dst = f"model.layers.{i}.", f"layers.{i}."
        if i >= main_layers:
            b.vector(f"{dst}nextn.embed_norm.weight", hidden, f"{src}enorm.weight")
            b.vector(f"{dst}nextn.hidden_norm.weight", hidden, f"{src}hnorm.weight")
            b.matrix(f"{dst}nextn.proj.weight", hidden, 2 * hidden, f"{src}eh_proj.weight")
            b.vector(f"{dst}nextn.head_norm.weight", hidden, f"{src}shared_head.norm.weight")
            b.ignore(f"{src}embed_tokens.weight", f"{src}shared_head.head.weight")  # repeat the main ones
        b.vector(f"{dst}attn_norm.weight", hidden, f"{src}input_layernorm.weight")
        attention(b, cfg, src, dst, qk_norm=cfg["use_qk_norm"])
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
    return Plan("glm4moe", cfg, b.outputs)
