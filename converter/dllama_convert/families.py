"""Model families: what each architecture's config and tensors become in a .m file.

A family function returns a Plan: our config and every output tensor with the rows of the checkpoint it is made of."""

import dataclasses
import math
import pathlib

import numpy as np

from . import ConversionError
from .checkpoint import Checkpoint
from .hf_config import HfConfig


@dataclasses.dataclass
class Output:
    """A tensor of the .m file: rows `index` of the checkpoint's tensor `source` (a vector is rows of one value)."""

    name: str
    shape: tuple[int, ...]
    source: str
    index: slice | np.ndarray
    is_weight: bool  # has the chosen weight type; the others are F32


@dataclasses.dataclass
class Plan:
    architecture: str
    config: dict
    outputs: list[Output]
    legacy_ok: bool = False  # the family exists in distributed-llama


class Builder:
    """Collects outputs and checks that the checkpoint has each source in the shape the config asks for."""

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint
        self.unused = set(checkpoint.names())
        self.present = frozenset(self.unused)
        self.outputs: list[Output] = []

    def has(self, name: str) -> bool:
        return name in self.present

    def ignore(self, *names: str) -> None:
        """Tensors that repeat others, or that can be computed."""
        self.unused.difference_update(names)

    def refuse_unused(self) -> None:
        left = sorted(name for name in self.unused if not name.endswith(".inv_freq"))  # RoPE's table is computed
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ConversionError(
                f"the checkpoint has tensors that this architecture has not: {', '.join(left[:3])}{more} "
                "(--ignore-unknown converts all the same)"
            )

    def _source(self, name: str, expected: list[int]) -> None:
        """`expected`: rows and width, or the length of a vector."""
        if name not in self.present:
            raise ConversionError(f"the checkpoint has no tensor {name}")
        shape = self.checkpoint.shape(name)
        actual = [math.prod(shape[:-1]), shape[-1]] if len(shape) > 1 else list(shape)
        if actual != expected:
            raise ConversionError(f"tensor {name} has shape {list(shape)}, the configuration asks for {expected}")
        self.unused.discard(name)

    def matrix(
        self, name: str, rows: int, cols: int, source: str, index=None, *, first_row=0, total_rows=None, weight=True
    ) -> None:
        """`rows` x `cols`: from row `first_row` of the `total_rows` (default: `rows`) of `source`, or rows `index`."""
        self._source(source, [total_rows or rows, cols])
        index = slice(first_row, first_row + rows) if index is None else index
        self.outputs.append(Output(name, (rows, cols), source, index, weight))

    def vector(self, name: str, size: int, source: str, index=None, *, first_row=0, total_rows=None) -> None:
        self._source(source, [total_rows or size])
        index = slice(first_row, first_row + size) if index is None else index
        self.outputs.append(Output(name, (size,), source, index, False))


def _base_config(c: HfConfig, *, eps_key: str = "rms_norm_eps", bias: bool, rotary: float) -> dict:
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


def _no_sliding_window(c: HfConfig) -> None:
    if c.get("use_sliding_window", c.get("sliding_window") is not None) and c.get("sliding_window") is not None:
        raise c.error("sliding_window", "sliding-window attention is not supported")
    for kind in c.get("layer_types", []):
        if kind != "full_attention":
            raise ConversionError(f"{c.path}: layer_types has {kind!r}: only full_attention is supported")


def _interleave_rows(heads: int, head_dim: int) -> np.ndarray:
    """Rows of q or k so that the pairs (j, j + head_dim/2) lie side by side: Llama as distributed-llama has it."""
    rows = np.arange(heads * head_dim).reshape(heads, 2, head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _attention(b: Builder, cfg: dict, src: str, dst: str, *, interleave: bool = False, qk_norm: bool = False) -> None:
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


def _mlp(b: Builder, hidden: int, width: int, src: str, dst: str) -> None:
    fused = f"{src}gate_up_proj.weight"
    if b.has(fused):
        b.matrix(f"{dst}gate.weight", width, hidden, fused, total_rows=2 * width)
        b.matrix(f"{dst}up.weight", width, hidden, fused, first_row=width, total_rows=2 * width)
    else:
        b.matrix(f"{dst}gate.weight", width, hidden, f"{src}gate_proj.weight")
        b.matrix(f"{dst}up.weight", width, hidden, f"{src}up_proj.weight")
    b.matrix(f"{dst}down.weight", hidden, width, f"{src}down_proj.weight")


def _experts(b: Builder, cfg: dict, src: str, dst: str) -> None:
    """Routed experts: one tensor each, or all in one ([E, 2 * width, hidden], gate first; [E, hidden, width])."""
    n, width, hidden = cfg["n_routed_experts"], cfg["moe_intermediate_size"], cfg["hidden_size"]
    fused_up, fused_down = f"{src}experts.gate_up_proj", f"{src}experts.down_proj"
    for e in range(n):
        name = f"{dst}experts.{e}."
        if not b.has(fused_up):
            _mlp(b, hidden, width, f"{src}experts.{e}.", name)
            continue
        rows = 2 * width * n
        b.matrix(f"{name}gate.weight", width, hidden, fused_up, first_row=2 * e * width, total_rows=rows)
        b.matrix(f"{name}up.weight", width, hidden, fused_up, first_row=(2 * e + 1) * width, total_rows=rows)
        b.matrix(f"{name}down.weight", hidden, width, fused_down, first_row=e * hidden, total_rows=hidden * n)


def _ends(b: Builder, cfg: dict, layers) -> None:
    """Embedding, the layers, final norm and head."""
    b.matrix("token_embedding.weight", cfg["vocab_size"], cfg["hidden_size"], "model.embed_tokens.weight")
    layers()
    b.vector("final_norm.weight", cfg["hidden_size"], "model.norm.weight")
    if cfg["tie_word_embeddings"]:
        b.ignore("lm_head.weight")
    else:
        b.matrix("head.weight", cfg["vocab_size"], cfg["hidden_size"], "lm_head.weight")


def llama(c: HfConfig, b: Builder) -> Plan:
    c.expect("mlp_bias", False)
    c.expect("attention_bias", False)
    c.expect("partial_rotary_factor", 1.0)
    _no_sliding_window(c)
    cfg = _base_config(c, bias=False, rotary=1.0)

    def layers():
        for i in range(cfg["num_hidden_layers"]):
            src, dst = f"model.layers.{i}.", f"layers.{i}."
            b.vector(f"{dst}attn_norm.weight", cfg["hidden_size"], f"{src}input_layernorm.weight")
            _attention(b, cfg, src, dst, interleave=True)
            b.vector(f"{dst}ffn_norm.weight", cfg["hidden_size"], f"{src}post_attention_layernorm.weight")
            _mlp(b, cfg["hidden_size"], cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")

    _ends(b, cfg, layers)
    return Plan("llama", cfg, b.outputs, legacy_ok=True)


def qwen3(c: HfConfig, b: Builder) -> Plan:
    moe = c.need("architectures")[0] == "Qwen3MoeForCausalLM"
    c.expect("attention_bias", False)
    c.expect("partial_rotary_factor", 1.0)
    _no_sliding_window(c)
    cfg = _base_config(c, bias=False, rotary=1.0)
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
            _attention(b, cfg, src, dst, qk_norm=True)
            b.vector(f"{dst}ffn_norm.weight", cfg["hidden_size"], f"{src}post_attention_layernorm.weight")
            if moe:
                n, hidden = cfg["n_routed_experts"], cfg["hidden_size"]
                b.matrix(f"{dst}moe.router.weight", n, hidden, f"{src}mlp.gate.weight", weight=False)
                _experts(b, cfg, f"{src}mlp.", f"{dst}moe.")
            else:
                _mlp(b, cfg["hidden_size"], cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")

    _ends(b, cfg, layers)
    return Plan("qwen3moe" if moe else "qwen3", cfg, b.outputs, legacy_ok=True)


def glm(c: HfConfig, b: Builder) -> Plan:
    """GlmForCausalLM (glm-4-9b-chat-hf, GLM-Edge) and Glm4ForCausalLM (0414, Z1), which adds sandwich norms."""
    sandwich = c.need("architectures")[0] == "Glm4ForCausalLM"
    cfg = _base_config(c, bias=bool(c.get("attention_bias", False)), rotary=c.partial_rotary_factor(0.5))
    # The next-token layers of a dense GLM are not converted.
    for i in range(c.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{cfg['num_hidden_layers'] + i}."
        b.ignore(*(name for name in b.present if name.startswith(prefix)))

    def layers():
        hidden = cfg["hidden_size"]
        for i in range(cfg["num_hidden_layers"]):
            src, dst = f"model.layers.{i}.", f"layers.{i}."
            b.vector(f"{dst}attn_norm.weight", hidden, f"{src}input_layernorm.weight")
            _attention(b, cfg, src, dst)
            if sandwich:
                b.vector(f"{dst}post_attn_norm.weight", hidden, f"{src}post_self_attn_layernorm.weight")
            b.vector(f"{dst}ffn_norm.weight", hidden, f"{src}post_attention_layernorm.weight")
            _mlp(b, hidden, cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")
            if sandwich:
                b.vector(f"{dst}post_ffn_norm.weight", hidden, f"{src}post_mlp_layernorm.weight")

    _ends(b, cfg, layers)
    return Plan("glm4" if sandwich else "glm", cfg, b.outputs)


def glm4moe(c: HfConfig, b: Builder) -> Plan:
    """GLM-4.5, 4.5-Air, 4.6, 4.7, INTELLECT-3. The next-token layers are kept where the checkpoint has them."""
    c.expect("topk_method", "noaux_tc")
    c.expect("scoring_func", "sigmoid")
    c.expect("moe_layer_freq", 1)
    cfg = _base_config(c, bias=bool(c.get("attention_bias", False)), rotary=c.partial_rotary_factor(0.5))
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
        _attention(b, cfg, src, dst, qk_norm=cfg["use_qk_norm"])
        b.vector(f"{dst}ffn_norm.weight", hidden, f"{src}post_attention_layernorm.weight")
        if i < cfg["first_k_dense_replace"]:
            _mlp(b, hidden, cfg["intermediate_size"], f"{src}mlp.", f"{dst}ffn.")
            return
        n = cfg["n_routed_experts"]
        b.matrix(f"{dst}moe.router.weight", n, hidden, f"{src}mlp.gate.weight", weight=False)
        b.vector(f"{dst}moe.router.bias", n, f"{src}mlp.gate.e_score_correction_bias")
        _experts(b, cfg, f"{src}mlp.", f"{dst}moe.")
        if cfg["n_shared_experts"] > 0:
            width = cfg["n_shared_experts"] * cfg["moe_intermediate_size"]
            _mlp(b, hidden, width, f"{src}mlp.shared_experts.", f"{dst}moe.shared.")

    def layers():
        for i in range(main_layers + cfg["num_nextn_predict_layers"]):
            layer(i)

    _ends(b, cfg, layers)
    return Plan("glm4moe", cfg, b.outputs)


def chatglm(c: HfConfig, b: Builder) -> Plan:
    """ChatGLMModel: the original GLM says inner_hidden_size, ChatGLM2 and later ffn_hidden_size."""
    return _chatglm1(c, b) if "inner_hidden_size" in c else _chatglm2(c, b)


def _chatglm1(c: HfConfig, b: Builder) -> Plan:
    c.expect("position_encoding_2d", True)
    c.expect("pre_seq_len", 0)
    hidden, heads, inner = c.need("hidden_size"), c.need("num_attention_heads"), c.need("inner_hidden_size")
    head_dim, stored_vocab = hidden // heads, c.need("vocab_size")
    # The oldest checkpoints keep 20000 image tokens before the text's and need not name the special ids. The later ones
    # left these rows out, and so do we: the tokenizer's ids are the same from there on.
    images = 20000 if stored_vocab == 150528 else 0
    vocab = stored_vocab - images
    cfg = {
        "hidden_size": hidden,
        "num_hidden_layers": c.need("num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "max_position_embeddings": c.need("max_sequence_length"),
        "norm_eps": float(c.need("layernorm_epsilon")),
        "rope_theta": 10000.0,
        "rotary_dim": head_dim,
        "rope_scaling": None,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "hidden_act": "gelu_tanh",
        "eos_token_ids": [i - images for i in c.eos_ids() or [130005 + images]],
        "gmask_token_id": c.get("gmask_token_id", 130001 + images) - images,
        "mask_token_id": c.get("mask_token_id", 130000 + images) - images,
        "bos_token_id": c.get("bos_token_id", 130004 + images) - images,
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
    hidden, heads, head_dim = c.need("hidden_size"), c.need("num_attention_heads"), c.need("kv_channels")
    groups, width = c.need("multi_query_group_num"), c.need("ffn_hidden_size")
    bias = bool(c.get("add_qkv_bias", False))
    cfg = {
        "hidden_size": hidden,
        "num_hidden_layers": c.need("num_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "intermediate_size": width,
        "vocab_size": c.need("padded_vocab_size"),
        "max_position_embeddings": c.need("seq_length"),
        "norm_eps": float(c.need("layernorm_epsilon")),
        "rope_theta": 10000.0 * float(c.get("rope_ratio", 1)),
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


FAMILIES = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": llama,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3MoeForCausalLM": qwen3,
    "GlmForCausalLM": glm,
    "Glm4ForCausalLM": glm,
    "Glm4MoeForCausalLM": glm4moe,
    "ChatGLMModel": chatglm,
    "ChatGLMForConditionalGeneration": chatglm,
}


def make_plan(folder: pathlib.Path, checkpoint: Checkpoint, ignore_unknown: bool = False) -> Plan:
    """What the checkpoint in `folder` becomes. Raises ConversionError, naming what is not supported."""
    return plan_of(HfConfig.read(folder), checkpoint, ignore_unknown)


def plan_of(config: HfConfig, checkpoint: Checkpoint, ignore_unknown: bool = False) -> Plan:
    names = config.get("architectures") or ["(none)"]
    if names[0] not in FAMILIES:
        raise ConversionError(f"{config.path}: architecture {names[0]} is not supported ({', '.join(FAMILIES)})")
    builder = Builder(checkpoint)
    plan = FAMILIES[names[0]](config, builder)
    if not ignore_unknown:
        config.refuse_unknown()
        builder.refuse_unused()
    return plan
