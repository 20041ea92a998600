"""Mutated config.json of all families: converted to what the config says, or refused in a line that names the field."""

import copy
import json
import os
import pathlib
import random
import subprocess

import numpy as np
import pytest
from checkpoints import ROOT
from dllama_convert import ConversionError
from dllama_convert.checkpoint import open_checkpoint
from dllama_convert.convert import ModelImage, convert, encode_rows_of
from dllama_convert.families import Plan, plan_of
from dllama_convert.hf_config import HfConfig

GOLDEN = ROOT / "tests" / "data" / "golden"
MODELS = sorted(path.name for path in GOLDEN.iterdir() if path.name != "glm4moe-128x8")
ROUNDS = int(os.environ.get("DLLAMA_FUZZ_CONFIGS", "2000")) // len(MODELS)

# What of our configuration a field may change when it is accepted; every other field must change nothing at all.
EFFECTS = {
    "max_position_embeddings": {"max_position_embeddings", "rope_scaling"},
    "max_sequence_length": {"max_position_embeddings"},
    "seq_length": {"max_position_embeddings"},
    "sliding_window": {"max_position_embeddings"},
    "use_sliding_window": {"max_position_embeddings"},
    "layer_types": {"max_position_embeddings"},
    "rms_norm_eps": {"norm_eps"},
    "layernorm_epsilon": {"norm_eps"},
    "rope_theta": {"rope_theta"},
    "rope_ratio": {"rope_theta"},
    "rope_parameters": {"rope_theta", "rope_scaling", "rotary_dim", "max_position_embeddings"},
    "rope_scaling": {"rope_theta", "rope_scaling", "rotary_dim", "max_position_embeddings"},
    "partial_rotary_factor": {"rotary_dim"},
    "eos_token_id": {"eos_token_ids"},
    "tie_word_embeddings": {"tie_word_embeddings"},
    "num_attention_heads": {"num_attention_heads", "num_key_value_heads", "head_dim", "rotary_dim"},
    "num_key_value_heads": {"num_key_value_heads"},
    "head_dim": {"head_dim", "rotary_dim"},
    "num_experts_per_tok": {"num_experts_per_tok"},
    "n_group": {"n_group"},
    "topk_group": {"topk_group"},
    "norm_topk_prob": {"norm_topk_prob"},
    "routed_scaling_factor": {"routed_scaling_factor"},
    "bos_token_id": {"bos_token_id"},
    "gmask_token_id": {"gmask_token_id"},
    "mask_token_id": {"mask_token_id"},
    "intermediate_size": {"intermediate_size"},  # no layer is dense
    "first_k_dense_replace": {"first_k_dense_replace"},
    "text_config": set(),
}
# Fields of ours that no logits depend on: what is converted must give the same ones, to the bit.
NEUTRAL = {"max_position_embeddings", "eos_token_ids"}
# Fields that are taken as they stand.
DIRECT = {
    "rms_norm_eps": "norm_eps", "layernorm_epsilon": "norm_eps", "rope_theta": "rope_theta",
    "num_experts_per_tok": "num_experts_per_tok", "n_group": "n_group", "topk_group": "topk_group",
    "norm_topk_prob": "norm_topk_prob", "routed_scaling_factor": "routed_scaling_factor",
    "first_k_dense_replace": "first_k_dense_replace", "num_key_value_heads": "num_key_value_heads",
}  # fmt: skip
# Conversions that are run, a family; each distinct file once.
RUNS = int(os.environ.get("DLLAMA_FUZZ_LOGITS", "3"))
VALUES = [
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 1 << 31, 1 << 70, 0.0, -0.5, 0.5, 1.5, 1e300, float("nan"), float("inf"),
    "", "silu", "1", "\x1b[31m", "x" * 5000, [], [1], [[]], {}, {"a": {}}, {"type": "yarn"}, {"rope_type": "llama3"},
    [0.5], ["full_attention"], 1e-9, "float32", 10**400,
]  # fmt: skip


def mutated(config: dict, rng: random.Random) -> tuple[dict, str]:
    """A copy with one field changed, removed or added, and the field's name."""
    config = copy.deepcopy(config)
    target = config
    while isinstance(target.get("text_config"), dict) and rng.random() < 0.8:
        target = target["text_config"]
    for inner in ("rope_parameters", "rope_scaling"):
        if isinstance(target.get(inner), dict) and rng.random() < 0.2:
            key = rng.choice([*target[inner], "factor", "beta_fast", "spin"])
            target[inner][key] = rng.choice(VALUES)
            return config, inner
    key = rng.choice(
        [*target, *EFFECTS, "quantization_config", "rope_scaling", "mlp_bias", "hidden_act", "use_qk_norm"]
    )
    old, kind = target.get(key), rng.random()
    if kind < 0.15:
        target.pop(key, None)
    elif kind < 0.3 and isinstance(old, int | float):
        target[key] = rng.choice([old + 1, old * 2, -old, old // 2, float(old), str(old), [old]])
    elif kind < 0.35:
        key = "mystery"
        target[key] = rng.choice(VALUES)
    else:
        target[key] = rng.choice(VALUES)
    return config, key


def other_ends(config: dict) -> tuple[dict, str]:
    """A change that no logits depend on, for every family."""
    config = copy.deepcopy(config)
    target = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    target["eos_token_id"] = [0, 3]
    return config, "eos_token_id"


def logits(program: str, plan: Plan, checkpoint, folder: pathlib.Path, ids: list[int]) -> bytes:
    """What the program computes of the converted model."""
    model = convert(encode_rows_of(checkpoint), ModelImage(plan, "F32", "m"), folder)
    command = [program, "logits", "--model", model, "--ids", ",".join(map(str, ids)), "--out", folder / "rows"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    model.unlink()
    return (folder / "rows").read_bytes()


def outcome(config: dict, checkpoint, path: pathlib.Path):
    plan = plan_of(HfConfig(path, config, {}), checkpoint)
    outputs = [
        (o.name, o.shape, o.source, o.index if isinstance(o.index, slice) else o.index.tobytes(), o.is_weight)
        for o in plan.outputs
    ]
    return plan.architecture, plan.config, outputs


@pytest.mark.parametrize("model", MODELS)
def test_mutated_configs(model, program, tmp_path):
    seed = int(os.environ.get("DLLAMA_FUZZ_SEED", "1"))
    rng = random.Random(f"{model} {seed}")
    path = GOLDEN / model / "config.json"
    original = json.loads(path.read_text())
    checkpoint = open_checkpoint(path.parent)
    architecture, expected, outputs = outcome(original, checkpoint, path)
    ids = json.loads((path.parent / "golden.json").read_text())["cases"][0]["prompt"]
    expected_logits = logits(program, plan_of(HfConfig(path, original, {}), checkpoint), checkpoint, tmp_path, ids)
    accepted = refused = 0
    ran: set[str] = set()
    for i in range(ROUNDS):
        config, key = mutated(original, rng) if i else other_ends(original)
        what = f"seed {seed}, round {i}: {key} of {json.dumps(config)[:3000]}"
        try:
            result = outcome(json.loads(json.dumps(config)), checkpoint, path)
        except ConversionError as error:
            assert key in str(error) or _other_name(key, str(error)), what + f"\n{error}"
            assert "\n" not in str(error) and str(error).isprintable() and len(str(error)) < 2500, what
            refused += 1
            continue
        accepted += 1
        assert result[0] == architecture, what
        changed = {name for name in expected | result[1] if result[1].get(name) != expected.get(name)}
        assert changed <= EFFECTS.get(key, set()), f"{what}\n{changed}"
        for name in changed:
            value = result[1][name]
            assert not isinstance(value, float) or np.isfinite(value) and value > 0, what
        if key in DIRECT and config.get(key) is not None and DIRECT[key] in changed:
            assert result[1][DIRECT[key]] == config[key], what
        # Without a change the file is the same one.
        file = json.dumps(result[1], sort_keys=True)
        room = result[1]["max_position_embeddings"] >= len(ids)
        if changed and changed <= NEUTRAL and room and file not in ran and len(ran) < RUNS:
            ran.add(file)
            plan = plan_of(HfConfig(path, json.loads(json.dumps(config)), {}), checkpoint)
            assert logits(program, plan, checkpoint, tmp_path, ids) == expected_logits, what
        if key not in ("tie_word_embeddings", "num_attention_heads", "num_key_value_heads", "head_dim"):
            assert result[2] == outputs, what
    assert accepted > ROUNDS // 20 and refused > ROUNDS // 20
    assert ran


def _other_name(key: str, error: str) -> bool:
    """The class may be said in three ways; of a nested part its fields are named."""
    spellings = {
        "architectures": ("architecture ", "different models"),
        "model_type": ("architecture ", "different models"),
        "auto_map": ("different models",),
        "text_config": ("is missing", "architecture ", "unknown fields", "is "),
        "rope_parameters": ("rope_theta", "partial_rotary_factor", "head_dim"),
        "rope_scaling": ("rope_theta", "partial_rotary_factor", "head_dim"),
        "num_attention_heads": ("head_dim is",),
    }
    return any(words in error for words in spellings.get(key, ()))
