"""ChatGLM 1 to 3 and glm-4-9b-chat, in the form of their own code."""

import numpy as np

from ..hf_config import HfConfig
from .plan import Builder, Plan


def chatglm(c: HfConfig, b: Builder) -> Plan:
    """ChatGLMModel: the original GLM says inner_hidden_size and position_encoding_2d, later ones ffn_hidden_size."""
    return _chatglm1(c, b) if "inner_hidden_size" in c or "position_encoding_2d" in c else _chatglm2(c, b)


def _chatglm1(c: HfConfig, b: Builder) -> Plan:
    c.expect("position_encoding_2d", True)
    c.expect("pre_seq_len", 0)
    hidden, heads = c.count("hidden_size", low=32, high=1 << 17), c.count("num_attention_heads", high=4096)
    inner, stored_vocab = c.count("inner_hidden_size", low=32, high=1 << 20), c.count("vocab_size", high=1 << 24)
    head_dim = hidden // heads
    if hidden % heads or head_dim % 8 or head_dim > 256:
        raise c.error("num_attention_heads", f"must divide hidden_size {hidden} into multiples of 8, at most 256")
    # The oldest checkpoints keep 20000 image tokens before the text's and need not name the special ids. The later ones
    # left these rows out, and so do we: the tokenizer's ids are the same from there on.
    images = 20000 if stored_vocab == 150528 else 0
    vocab = stored_vocab - images
    cfg = {
        "hidden_size": hidden,
        "num_hidden_layers": c.count("num_layers", "num_hidden_layers", high=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": c.count("max_sequence_length", high=1 << 24),
        "norm_eps": c.number("layernorm_epsilon", high=0.5),
        "rope_theta": 10000.0,
        "rotary_dim": head_dim,
        "rope_scaling": None,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_act": "gelu_tanh",
        "eos_token_ids": [i - images for i in c.eos_ids() or [130005 + images]],
        "gmask_token_id": c.count("gmask_token_id", default=130001 + images, low=images) - images,
        "mask_token_id": c.count("mask_token_id", default=130000 + images, low=images) - images,
        "bos_token_id": c.count("bos_token_id", default=130004 + images, low=images) - images,
    }
    fused_rows = np.arange(3 * hidden).reshape(heads, 3, head_dim)  # per head: q, k, v

    def norm(name: str, source: str) -> None:
        for kind in ("weight", "bias"):
            b.vector(f"{name}.{kind}", hidden, f"{source}.{kind}")

    def linear(name: str, rows: int, cols: int, source: str, index=None) -> None:
        total = rows if index is None else 3 * hidden
        b.matrix(f"{name}.weight", rows, cols, f"{source}.weight", index, total_rows=total)
        b.vector(f"{name}.bias", rows, f"{source}.bias", index, total_rows=total)

    def table(name: str, source: str) -> None:
        b.matrix(name, vocab, hidden, source, first_row=images, total_rows=stored_vocab)

    table("token_embedding.weight", "transformer.word_embeddings.weight")
    for i in range(cfg["num_hidden_layers"]):
        src, dst = f"transformer.layers.{i}.", f"layers.{i}."
        norm(f"{dst}attn_norm", f"{src}input_layernorm")
        for j, letter in enumerate("qkv"):
            linear(
                f"{dst}attn.{letter}", hidden, hidden, f"{src}attention.query_key_value", fused_rows[:, j].reshape(-1)
            )
        linear(f"{dst}attn.o", hidden, hidden, f"{src}attention.dense")
        norm(f"{dst}ffn_norm", f"{src}post_attention_layernorm")
        linear(f"{dst}ffn.up", inner, hidden, f"{src}mlp.dense_h_to_4h")
        linear(f"{dst}ffn.down", hidden, inner, f"{src}mlp.dense_4h_to_h")
    norm("final_norm", "transformer.final_layernorm")
    # The head repeats the embedding; some checkpoints leave it out.
    table("head.weight", "lm_head.weight" if b.has("lm_head.weight") else "transformer.word_embeddings.weight")
    return Plan("chatglm", cfg, b.outputs)


def _chatglm2(c: HfConfig, b: Builder) -> Plan:
    """ChatGLM2-6B, ChatGLM3-6B, glm-4-9b-chat: fused [q | k | v] and [gate | up]."""
    for key, value in {
        "rmsnorm": True, "post_layer_norm": True, "multi_query_attention": True, "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
    }.items():  # fmt: skip
        c.expect(key, value)
    c.expect("pre_seq_len", 0)
    hidden, heads = c.count("hidden_size", low=32, high=1 << 17), c.count("num_attention_heads", high=4096)
    head_dim, groups = c.count("kv_channels", low=8, high=256), c.count("multi_query_group_num", high=heads)
    if head_dim % 8:
        raise c.error("kv_channels", "must be a multiple of 8")
    if heads % groups:
        raise c.error("multi_query_group_num", f"must divide num_attention_heads, which is {heads}")
    width = c.count("ffn_hidden_size", low=32, high=1 << 20)
    bias = c.flag("add_qkv_bias", False)
    cfg = {
        "hidden_size": hidden,
        "num_hidden_layers": c.count("num_layers", "num_hidden_layers", high=1024),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "intermediate_size": width,
        "vocab_size": c.count("padded_vocab_size", high=1 << 24),
        "max_position_embeddings": c.count("seq_length", high=1 << 24),
        "norm_eps": c.number("layernorm_epsilon", high=0.5),
        "rope_theta": 10000.0 * c.number("rope_ratio", 1.0),
        "rotary_dim": head_dim // 2,
        "rope_scaling": None,
        "attention_bias": bias,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "eos_token_ids": c.eos_ids(),
    }
    c.get("vocab_size")
    b.matrix("token_embedding.weight", cfg["vocab_size"], hidden, "transformer.embedding.word_embeddings.weight")
    fused = (heads + 2 * groups) * head_dim
    for i in range(cfg["num_hidden_layers"]):
        src, dst = f"transformer.encoder.layers.{i}.", f"layers.{i}."
        b.vector(f"{dst}attn_norm.weight", hidden, f"{src}input_layernorm.weight")
        first = 0
        for letter, count in (("q", heads), ("k", groups), ("v", groups)):
            rows, source = count * head_dim, f"{src}self_attention.query_key_value"
            b.matrix(f"{dst}attn.{letter}.weight", rows, hidden, f"{source}.weight", first_row=first, total_rows=fused)
            if bias:
                b.vector(f"{dst}attn.{letter}.bias", rows, f"{source}.bias", first_row=first, total_rows=fused)
            first += rows
        b.matrix(f"{dst}attn.o.weight", hidden, heads * head_dim, f"{src}self_attention.dense.weight")
        b.vector(f"{dst}ffn_norm.weight", hidden, f"{src}post_attention_layernorm.weight")
        up = f"{src}mlp.dense_h_to_4h.weight"
        b.matrix(f"{dst}ffn.gate.weight", width, hidden, up, total_rows=2 * width)
        b.matrix(f"{dst}ffn.up.weight", width, hidden, up, first_row=width, total_rows=2 * width)
        b.matrix(f"{dst}ffn.down.weight", hidden, width, f"{src}mlp.dense_4h_to_h.weight")
    b.vector("final_norm.weight", hidden, "transformer.encoder.final_layernorm.weight")
    b.matrix("head.weight", cfg["vocab_size"], hidden, "transformer.output_layer.weight")
    return Plan("glm", cfg, b.outputs)
