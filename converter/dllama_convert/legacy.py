"""distributed-llama's own form of a .m file: when it can be used, its header and its order of tensors."""

from .families import Output, Plan

_WEIGHT_TYPES = {"F32": 0, "F16": 1, "Q40": 2, "Q80": 3}
_ARCHITECTURES = {"llama": 0xABCD00, "qwen3": 0xABCD01, "qwen3moe": 0xABCD02}


def legacy_header(plan: Plan, weight_type: str) -> list[tuple[int, int]] | None:
    """Key/value pairs in the order of distributed-llama's converter, or None if they cannot state every value
    (docs/file-format.md)."""
    c = plan.config
    scaling = c["rope_scaling"]
    integral = [c["rope_theta"]] + [v for k, v in (scaling or {}).items() if k != "type"]
    if not plan.legacy_ok or weight_type not in _WEIGHT_TYPES or c["norm_eps"] not in (1e-5, 1e-6):
        return None
    if any(value != int(value) or value >= 2**31 for value in integral) or c["attention_bias"]:
        return None
    if scaling and (scaling["type"] != "llama3" or plan.architecture != "llama" or scaling["factor"] == 1):
        return None
    moe = plan.architecture == "qwen3moe"
    if moe and not c["norm_topk_prob"]:
        return None
    pairs = [
        (0, 0),
        (1, _ARCHITECTURES[plan.architecture]),
        (11, 1),
        (2, c["hidden_size"]),
        (3, c["intermediate_size"]),
        (4, c["num_hidden_layers"]),
        (5, c["num_attention_heads"]),
        (6, c["num_key_value_heads"]),
        (13, _WEIGHT_TYPES[weight_type]),
        (10, c["max_position_embeddings"]),
        (9, c["vocab_size"]),
        (7, c["n_routed_experts"] if moe else 0),
        (8, c["num_experts_per_tok"] if moe else 0),
        (12, int(c["rope_theta"])),
    ]
    if scaling:
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        pairs += [(14 + i, int(scaling[key])) for i, key in enumerate(keys)] + [(18, 2)]
    pairs += [(19, c["head_dim"]), (20, 5 if c["norm_eps"] == 1e-5 else 6)]
    if moe:
        pairs.append((21, c["moe_intermediate_size"]))
    return pairs


def legacy_order(plan: Plan) -> list[Output]:
    """The outputs in the legacy order; a tied head repeats the embedding."""
    by_name = {output.name: output for output in plan.outputs}
    c = plan.config
    names = ["token_embedding.weight"]
    for i in range(c["num_hidden_layers"]):
        layer = f"layers.{i}."
        names += [f"{layer}attn.{letter}.weight" for letter in "qkvo"]
        if plan.architecture == "qwen3moe":
            prefixes = [f"{layer}moe.experts.{e}." for e in range(c["n_routed_experts"])]
            names.append(f"{layer}moe.router.weight")
        else:
            prefixes = [f"{layer}ffn."]
        names += [f"{prefix}{part}.weight" for prefix in prefixes for part in ("gate", "down", "up")]
        if plan.architecture != "llama":
            names += [f"{layer}attn.q_norm.weight", f"{layer}attn.k_norm.weight"]
        names += [f"{layer}attn_norm.weight", f"{layer}ffn_norm.weight"]
    names.append("final_norm.weight")
    outputs = [by_name[name] for name in names]
    embedding = by_name["token_embedding.weight"]
    head = by_name.get("head.weight") or Output("head.weight", embedding.shape, embedding.source, embedding.index, True)
    outputs[0] = Output(embedding.name, embedding.shape, embedding.source, embedding.index, False)
    return [*outputs, head]
