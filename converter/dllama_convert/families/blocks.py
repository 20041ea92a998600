"""Parts that several families have in common: config fields, attention, MLP, experts, embedding and head."""

import numpy as np

from .. import ConversionError
from ..hf_config import HfConfig
from .plan import Builder


def base_config(c: HfConfig, *, eps_key: str = "rms_norm_eps", bias: bool, rotary: float) -> dict:
    heads = c.need("num_attention_heads")
    head_dim = c.get("head_dim") or c.need("hidden_size") // heads
    theta, scaling = c.rope()
    c.expect("hidden_act", "silu")
    return {
        "hidden_size": c.need("hidden_size"),
        "num_hidden_layers": c.need("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": c.get("num_key_value_heads", heads),
        "head_dim": head_dim,
        "intermediate_size": c.need("intermediate_size"),
        "vocab_size": c.need("vocab_size"),
        "max_position_embeddings": c.need("max_position_embeddings"),
        "norm_eps": float(c.need(eps_key)),
        "rope_theta": theta,
        "rotary_dim": int(head_dim * rotary),
        "rope_scaling": scaling,
        "attention_bias": bias,
        "tie_word_embeddings": bool(c.get("tie_word_embeddings", False)),
        "hidden_act": "silu",
        "eos_token_ids": c.eos_ids(),
    }


def no_sliding_window(c: HfConfig) -> None:
    if c.get("use_sliding_window", c.get("sliding_window") is not None) and c.get("sliding_window") is not None:
        raise c.error("sliding_window", "sliding-window attention is not supported")
    for kind in c.get("layer_types", []):
        if kind != "full_attention":
            raise ConversionError(f"{c.path}: layer_types has {kind!r}: only full_attention is supported")


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
    if cfg["tie_word_embeddings"]:
        b.ignore("lm_head.weight")
    else:
        b.matrix("head.weight", cfg["vocab_size"], cfg["hidden_size"], "lm_head.weight")
