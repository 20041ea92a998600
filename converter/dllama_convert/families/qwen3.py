"""Qwen3 and Qwen3-MoE."""

from ..hf_config import HfConfig
from .blocks import attention, base_config, ends, expert_count, experts, experts_per_token, mlp
from .plan import Builder, Plan


def qwen3(c: HfConfig, b: Builder) -> Plan:
    moe = c.class_name == "Qwen3MoeForCausalLM"
    c.expect("attention_bias", False)
    c.expect("partial_rotary_factor", 1.0)
    cfg = base_config(c, bias=False, rotary=1.0)
    cfg["max_position_embeddings"] = c.full_attention(cfg["max_position_embeddings"])
    if moe:
        c.expect("decoder_sparse_step", 1)
        c.expect("mlp_only_layers", [])
        n_experts = expert_count(c, cfg["num_hidden_layers"])
        cfg |= {
            "n_routed_experts": n_experts,
            "num_experts_per_tok": experts_per_token(c, n_experts),
            "n_shared_experts": 0,
            "moe_intermediate_size": c.count("moe_intermediate_size", low=32, high=1 << 20),
            "first_k_dense_replace": 0,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": c.flag("norm_topk_prob", False),
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
        }

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
