"""config.json of transformers 4 and 5, read field by field: what nobody asked for is refused by name."""

import math
import pathlib

from . import ConversionError
from .checkpoint import read_json

# Fields that do not change the forward pass, or only training.
HARMLESS = {
    "_name_or_path", "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
    "use_cache", "use_grouped_mm", "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout",
    "dropout", "bos_token_id", "pad_token_id", "pretraining_tp", "router_aux_loss_coef", "output_router_logits",
    "rms_norm_eps", "id2label", "label2id", "task_specific_params", "unsloth_fixed", "unsloth_version",
    "max_window_layers", "bias_dropout_fusion", "classifier_dropout", "fp32_residual_connection", "original_rope",
    "attention_softmax_in_fp32", "apply_query_key_layer_scaling", "prefix_projection", "head_dim",
    "kv_channels", "num_layers", "num_hidden_layers", "seq_length", "tie_word_embeddings", "router_jitter_noise",
    "mtp_loss_scaling_factor", "quantization_bit", "layer_norm_eps", "return_dict",
}  # fmt: skip


class HfConfig:
    """config.json with generation_config.json's end-of-text ids."""

    def __init__(self, path: pathlib.Path, fields: dict, generation: dict):
        self.path = path
        self.fields = fields
        self.generation = generation
        self._known = set(HARMLESS)
        if self.fields.get("quantization_config"):
            raise self.error("quantization_config", "weights that are already quantised are not supported")
        if self.fields.get("quantization_bit"):
            raise self.error("quantization_bit", "weights that are already quantised are not supported")

    @classmethod
    def read(cls, folder: pathlib.Path) -> "HfConfig":
        generation = folder / "generation_config.json"
        path = folder / "config.json"
        return cls(path, read_json(path), read_json(generation) if generation.exists() else {})

    def error(self, key: str, reason: str) -> ConversionError:
        return ConversionError(f"{self.path}: {key} = {self.fields.get(key)!r}: {reason}")

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def get(self, key: str, default=None):
        self._known.add(key)
        value = self.fields.get(key)
        return default if value is None else value

    def need(self, key: str):
        self._known.add(key)
        if self.fields.get(key) is None:
            raise ConversionError(f"{self.path}: {key} is missing")
        return self.fields[key]

    def expect(self, key: str, *allowed) -> None:
        """The field is absent, null or one of `allowed`."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.error(key, f"not supported ({', '.join(repr(a) for a in allowed)})")

    def refuse_unknown(self) -> None:
        unknown = sorted(set(self.fields) - self._known)
        if unknown:
            listed = ", ".join(f"{key} = {self.fields[key]!r}"[:80] for key in unknown)
            raise ConversionError(f"{self.path}: unknown fields: {listed} (--ignore-unknown converts all the same)")

    def eos_ids(self) -> list[int]:
        ids = self.generation.get("eos_token_id", self.get("eos_token_id"))
        self.get("eos_token_id")
        if ids is None:
            return []
        return [int(i) for i in ids] if isinstance(ids, list) else [int(ids)]

    def rope(self) -> tuple[float, dict | None]:
        """Theta and scaling, of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters)."""
        parameters = self.get("rope_parameters") or {}
        scaling = self.get("rope_scaling") or parameters
        theta = self.get("rope_theta", parameters.get("rope_theta"))
        if theta is None:
            raise ConversionError(f"{self.path}: rope_theta is missing")
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        if kind == "default":
            result = None
        elif kind == "llama3":
            keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            known |= set(keys)
            for key in keys:
                if key not in scaling:
                    raise ConversionError(f"{self.path}: rope scaling has no {key}")
            result = {"type": "llama3"} | {key: float(scaling[key]) for key in keys}
        elif kind == "yarn":
            known |= {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"}
            if not scaling.get("factor"):
                raise ConversionError(f"{self.path}: rope scaling has no factor")
            factor = float(scaling["factor"])
            original = scaling.get("original_max_position_embeddings") or self.need("max_position_embeddings")
            result = {
                "type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": float(original),
                "beta_fast": float(scaling.get("beta_fast") or 32),
                "beta_slow": float(scaling.get("beta_slow") or 1),
                "attention_factor": float(scaling.get("attention_factor") or 0.1 * math.log(factor) + 1),
            }
        else:
            raise ConversionError(f"{self.path}: rope scaling {kind!r} is not supported (default, llama3, yarn)")
        unknown = set(scaling) - known
        if unknown:
            raise ConversionError(f"{self.path}: rope scaling has unknown fields: {', '.join(sorted(unknown))}")
        return float(theta), result

    def partial_rotary_factor(self, default: float) -> float:
        parameters = self.get("rope_parameters") or {}
        return float(self.get("partial_rotary_factor", parameters.get("partial_rotary_factor", default)))
