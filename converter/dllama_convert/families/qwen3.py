"""Qwen3 and Qwen3-MoE."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, experts, mlp, no_sliding_window
from .plan import Builder, Plan


def qwen3(c: HfConfig, b: Builder) -> Plan:
    moe = c.need("architectures")[0] == "Qwen3MoeForCausalLM"
    c.expect("attention_bias", False)
    c.expect("partial_rotary_factor", 1.0)
    no_sliding_window(c)
    cfg = base_config(c, bias=False, rotary=1.0)
    if moe:
        c.expect("decoder_sparse_step", 1)
        c.expect("mlp_only_layers", [])
        cfg |= {
            "n_routed_experts": c.get("num_experts") or c.need("num_local_experts"),
            "num_experts_per_tok": c.need("num_experts_per_tok"),
            "n_shared_experts": 0,
            "moe_intermediate_size": c.need("moe_intermediate_size"),
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": bool(c.get("norm_topk_prob", False)),
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
        }
        c.get("num_local_experts")

    def layers():
        for i in range(cfg["num_hidden_layers"]):
            src, dst = f"model.layers.{i}.", f"layers.{i}."
            b.vector(f"{dst}attn_norm.weight", cfg["hidden_size"], f"{src}input_layernorm.weight")
            attention(b, cfg, src, dst, qk_norm=True)
            b.vector(f"{dst}ffn_norm.weight", cfg["hidden_size"], f"{src}post_attention_layernorm.weight")
            if moe:
                n, hidden = cfg["n_routed_experts"], cfg["hidden_size"]
                b.matrix(f"{dst}moe.router.weight", n, hidden, f"{src}mlp.gate.weight", weight=False)
                experts(b, cfg, f"{src}mlp.", f"{dst}moe.")
            else:
                mlp(b, cfg["hidden_size"], cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")

    ends(b, cfg, layers)
    return Plan("qwen3moe" if moe else "qwen3", cfg, b.outputs, legacy_ok=True)
