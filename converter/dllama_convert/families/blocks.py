"""Parts that several families have in common: config fields, attention, MLP, experts, embedding and head."""

import numpy as np

from .. import ConversionError
from ..hf_config import HfConfig
from .plan import Builder


def base_config(
    c: HfConfig, *, bias: bool, rotary: float, default_theta: float | None = None, head_dim: int | None = None
) -> dict:
    """The fields that all families have. `rotary`: share of a head that is rotated. `head_dim`: where the config's
    field of that name means something else."""
    heads = c.count("num_attention_heads", high=4096)
    hidden = c.count("hidden_size", low=32, high=1 << 17)
    if head_dim is None:
        head_dim = c.count("head_dim", default=hidden // heads, low=0) or hidden // heads
    if not 8 <= head_dim <= 256 or head_dim % 8:
        raise ConversionError(f"{c.path}: head_dim is {head_dim}, must be a multiple of 8 from 8 to 256")
    kv_heads = c.count("num_key_value_heads", default=heads, high=4096)
    if heads % kv_heads:
        raise c.error("num_key_value_heads", f"must divide num_attention_heads, which is {heads}")
    rotary_dim = int(head_dim * rotary)
    if rotary_dim < 2 or rotary_dim % 2:
        raise ConversionError(
            f"{c.path}: partial_rotary_factor {rotary} of head_dim {head_dim} is {rotary_dim} dimensions: must be even"
        )
    theta, scaling = c.rope(default_theta)
    c.expect("hidden_act", "silu")
    return {
        "hidden_size": hidden,
        "num_hidden_layers": c.count("num_hidden_layers", high=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": c.count("intermediate_size", low=32, high=1 << 20),
        "vocab_size": c.count("vocab_size", high=1 << 24),
        "max_position_embeddings": c.context(scaling),
        "norm_eps": c.number("rms_norm_eps", high=0.5),
        "rope_theta": theta,
        "rotary_dim": rotary_dim,
        "rope_scaling": scaling,
        "attention_bias": bias,
        "tie_word_embeddings": c.flag("tie_word_embeddings", False),
        "hidden_act": "silu",
        "eos_token_ids": c.eos_ids(),
    }


def moe_config(c: HfConfig, layers: int) -> dict:
    """The fields of the experts in the families whose router is a sigmoid with a balancing bias."""
    c.expect("topk_method", "noaux_tc")
    c.expect("scoring_func", "sigmoid")
    c.expect("moe_layer_freq", 1)
    experts = expert_count(c, layers)
    groups = c.count("n_group", default=1, high=experts)
    open_groups = c.count("topk_group", default=1, high=groups)
    per_token = experts_per_token(c, experts)
    if experts % groups or per_token > experts // groups * open_groups:
        raise c.error("n_group", f"{experts} experts, {open_groups} open groups and {per_token} a token do not agree")
    return {
        "n_routed_experts": experts,
        "num_experts_per_tok": per_token,
        "n_shared_experts": c.count("n_shared_experts", "num_shared_experts", low=0, high=64),
        "moe_intermediate_size": c.count("moe_intermediate_size", low=32, high=1 << 20),
        "first_k_dense_replace": c.first_sparse_layer(layers),
        "n_group": groups,
        "topk_group": open_groups,
        "norm_topk_prob": c.flag("norm_topk_prob", True),
        "routed_scaling_factor": c.number("routed_scaling_factor", 1.0, high=1e6),
        "scoring_func": "sigmoid",
    }


# The number of experts in different families and versions of transformers.
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")


def expert_count(c: HfConfig, layers: int) -> int:
    return c.count(*_EXPERTS, high=min(1024, (1 << 17) // layers))


def experts_per_token(c: HfConfig, experts: int) -> int:
    per_token = c.count("num_experts_per_tok")
    if per_token > experts:
        raise c.error("num_experts_per_tok", f"{next(key for key in _EXPERTS if key in c)} is {experts}")
    return per_token


def _interleave_rows(heads: int, head_dim: int) -> np.ndarray:
    """Rows of q or k so that the pairs (j, j + head_dim/2) lie side by side: Llama as distributed-llama has it."""
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def attention(b: Builder, cfg: dict, src: str, dst: str, *, interleave: bool = False, qk_norm: bool = False) -> None:
    hidden, head_dim = cfg["hidden_size"], cfg["head_dim"]
    heads_of = {"q": cfg["num_attention_heads"], "k": cfg["num_key_value_heads"], "v": cfg["num_key_value_heads"]}
    for letter, heads in heads_of.items():
        index = _interleave_rows(heads, head_dim) if interleave and letter != "v" else None
        b.matrix(f"{dst}attn.{letter}.weight", heads * head_dim, hidden, f"{src}self_attn.{letter}_proj.weight", index)
        if cfg["attention_bias"]:
            b.vector(f"{dst}attn.{letter}.bias", heads * head_dim, f"{src}self_attn.{letter}_proj.bias", index)
    if qk_norm:
        for letter in "qk":
            b.vector(f"{dst}attn.{letter}_norm.weight", head_dim, f"{src}self_attn.{letter}_norm.weight")
    b.matrix(f"{dst}attn.o.weight", hidden, cfg["num_attention_heads"] * head_dim, f"{src}self_attn.o_proj.weight")


def mlp(b: Builder, hidden: int, width: int, src: str, dst: str) -> None:
    fused = f"{src}gate_up_proj.weight"
    if b.has(fused):
        b.matrix(f"{dst}gate.weight", width, hidden, fused, total_rows=2 * width)
        b.matrix(f"{dst}up.weight", width, hidden, fused, first_row=width, total_rows=2 * width)
    else:
        b.matrix(f"{dst}gate.weight", width, hidden, f"{src}gate_proj.weight")
        b.matrix(f"{dst}up.weight", width, hidden, f"{src}up_proj.weight")
    b.matrix(f"{dst}down.weight", hidden, width, f"{src}down_proj.weight")


def experts(b: Builder, cfg: dict, src: str, dst: str) -> None:
    """Routed experts: one tensor each, or all in one ([E, 2 * width, hidden], gate first; [E, hidden, width])."""
    n, width, hidden = cfg["n_routed_experts"], cfg["moe_intermediate_size"], cfg["hidden_size"]
    fused_up, fused_down = f"{src}experts.gate_up_proj", f"{src}experts.down_proj"
    for e in range(n):
        name = f"{dst}experts.{e}."
        if not b.has(fused_up):
            mlp(b, hidden, width, f"{src}experts.{e}.", name)
            continue
        rows = 2 * width * n
        b.matrix(f"{name}gate.weight", width, hidden, fused_up, first_row=2 * e * width, total_rows=rows)
        b.matrix(f"{name}up.weight", width, hidden, fused_up, first_row=(2 * e + 1) * width, total_rows=rows)
        b.matrix(f"{name}down.weight", hidden, width, fused_down, first_row=e * hidden, total_rows=hidden * n)


def ends(b: Builder, cfg: dict, layers) -> None:
    """Embedding, the layers, final norm and head."""
    b.matrix("token_embedding.weight", cfg["vocab_size"], cfg["hidden_size"], "model.embed_tokens.weight")
    layers()
    b.vector("final_norm.weight", cfg["hidden_size"], "model.norm.weight")
    if cfg["tie_word_embeddings"] and b.has("lm_head.weight"):
        cfg["tie_word_embeddings"] = b.repeats("lm_head.weight", "model.embed_tokens.weight")
    if not cfg["tie_word_embeddings"]:
        b.matrix("head.weight", cfg["vocab_size"], cfg["hidden_size"], "lm_head.weight")
