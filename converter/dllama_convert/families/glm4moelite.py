"""GLM-4.7-Flash: the experts of GLM-4.5 behind multi-head latent attention."""

import numpy as np

from ..hf_config import HfConfig
from .blocks import base_config, moe_config
from .glm4moe import moe_layers
from .plan import Builder, Plan


def glm4moelite(c: HfConfig, b: Builder) -> Plan:
    cfg = latent_config(c)
    moe_layers(c, b, cfg, lambda src, dst: latent_attention(b, cfg, src, dst))
    return Plan("glm4moelite", cfg, b.outputs)


def latent_config(c: HfConfig) -> dict:
    """The fields of a model of latent attention and experts. Raises ConversionError. A config's head_dim means several
    things: the qk_ fields count."""
    c.expect("attention_bias", False)
    c.expect("mlp_bias", False)
    c.expect("rope_interleave", True)
    plain = c.count("qk_nope_head_dim", low=32, high=256)
    turned = c.count("qk_rope_head_dim", low=8, high=224)
    head_dim = plain + turned
    if head_dim % 8 or head_dim > 256:
        raise c.error("qk_nope_head_dim", f"with qk_rope_head_dim {turned} must be a multiple of 8, at most 256")
    c.expect("qk_head_dim", head_dim)
    heads = c.count("num_attention_heads", high=4096)
    if c.count("num_key_value_heads", default=heads, high=4096) != heads:
        raise c.error("num_key_value_heads", f"must be num_attention_heads, which is {heads}")
    if c.partial_rotary_factor(1.0) != 1.0:
        raise c.error("partial_rotary_factor", "must be 1: qk_rope_head_dim says how much of a head is rotated")
    cfg = base_config(c, bias=False, rotary=turned / head_dim, head_dim=head_dim)
    cfg |= moe_config(c, cfg["num_hidden_layers"])
    cfg |= {
        "use_qk_norm": False,
        "q_lora_rank": c.count("q_lora_rank", default=0, low=0, high=1 << 14),
        "kv_lora_rank": c.count("kv_lora_rank", low=32, high=4096),
        "qk_nope_head_dim": plain,
        "v_head_dim": c.count("v_head_dim", low=32, high=512),
    }
    for key in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "v_head_dim"):
        if cfg[key] % 32:
            raise c.error(key, "must be a multiple of 32")
    return cfg


def latent_attention(b: Builder, cfg: dict, src: str, dst: str) -> None:
    """kv_b_proj is cut in two, and each head's part that makes keys is transposed: decoding multiplies queries with
    it."""
    hidden, heads, head_dim = cfg["hidden_size"], cfg["num_attention_heads"], cfg["head_dim"]
    rank, query_rank = cfg["kv_lora_rank"], cfg["q_lora_rank"]
    plain, value = cfg["qk_nope_head_dim"], cfg["v_head_dim"]
    if query_rank:
        b.matrix(f"{dst}attn.q_a.weight", query_rank, hidden, f"{src}self_attn.q_a_proj.weight")
    else:
        b.matrix(f"{dst}attn.q.weight", heads * head_dim, hidden, f"{src}self_attn.q_proj.weight")
    latent = rank + cfg["rotary_dim"]
    b.matrix(f"{dst}attn.kv_a.weight", latent, hidden, f"{src}self_attn.kv_a_proj_with_mqa.weight")
    if query_rank:
        b.vector(f"{dst}attn.q_a_norm.weight", query_rank, f"{src}self_attn.q_a_layernorm.weight")
        b.matrix(f"{dst}attn.q_b.weight", heads * head_dim, query_rank, f"{src}self_attn.q_b_proj.weight")
    b.vector(f"{dst}attn.kv_a_norm.weight", rank, f"{src}self_attn.kv_a_layernorm.weight")
    if b.has(f"{src}self_attn.k_b_proj.weight"):  # as llama.cpp writes them
        b.matrix(f"{dst}attn.k_b.weight", heads * rank, plain, f"{src}self_attn.k_b_proj.weight")
        b.matrix(f"{dst}attn.v_b.weight", heads * value, rank, f"{src}self_attn.v_b_proj.weight")
    else:
        both, total = f"{src}self_attn.kv_b_proj.weight", heads * (plain + value)
        rows = np.arange(total).reshape(heads, plain + value)
        b.turned(f"{dst}attn.k_b.weight", heads * rank, plain, both, rows[:, :plain].reshape(-1), total)
        b.matrix(f"{dst}attn.v_b.weight", heads * value, rank, both, rows[:, plain:].reshape(-1), total_rows=total)
    b.matrix(f"{dst}attn.o.weight", hidden, heads * value, f"{src}self_attn.o_proj.weight")
