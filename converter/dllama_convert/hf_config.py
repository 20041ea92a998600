"""config.json of transformers 4 and 5, read field by field: what nobody asked for is refused by name."""

import math
import pathlib

from . import ConversionError
from .checkpoint import read_json
from .config_fields import HARMLESS, PICTURES, UNLESS
from .fp8 import check_quantization
from .model_names import class_of, text_fields
from .printing import shown


class HfConfig:
    """config.json with generation_config.json's end-of-text ids. Every getter refuses a value of another type or
    outside its limits: ConversionError names the field, the value and the limit."""

    def __init__(self, path: pathlib.Path, fields: dict, generation: dict):
        self.path = path
        self.generation = generation
        self.notes: list[str] = []  # what whoever converts should know
        self._known = set(HARMLESS)
        self._read: set[str] = set()
        try:
            self.fields = text_fields(fields)
            self.class_name = class_of(self.fields)
        except ConversionError as error:
            raise ConversionError(f"{path}: {error}") from error
        # A model that sees pictures: the text part is converted, and what belongs to the pictures is left out.
        self.sees_pictures = self.fields is not fields
        self._known |= PICTURES if self.sees_pictures else set()
        quantization = self.get("quantization_config") or None
        if quantization is not None and (reason := check_quantization(quantization)):
            raise self.error("quantization_config", reason)
        for key, allowed in UNLESS.items():
            self.expect(key, *allowed)

    @classmethod
    def read(cls, folder: pathlib.Path) -> "HfConfig":
        generation = folder / "generation_config.json"
        path = folder / "config.json"
        return cls(path, read_json(path), read_json(generation) if generation.exists() else {})

    def error(self, key: str, reason: str) -> ConversionError:
        return ConversionError(f"{self.path}: {key} = {shown(self.fields.get(key))}: {reason}")

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def asked_for(self, key: str) -> bool:
        """Whether the family has read the field."""
        return key in self._read

    def get(self, key: str, default=None):
        """The field as it stands in the file; `default` where it is absent or null."""
        self._known.add(key)
        self._read.add(key)
        value = self.fields.get(key)
        return default if value is None else value

    def count(self, *keys: str, default: int | None = None, low: int = 1, high: int = 1 << 30) -> int:
        """An integer, of the first of `keys` (spellings of one thing) that is there; without a default it must be.
        Raises ConversionError if two of them differ."""
        key = self._first(keys, default is not None)
        value = default if key is None else self.fields[key]
        if key is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
            raise self.error(key, f"must be an integer from {low} to {high}")
        for other in keys:
            if key is not None and self.fields.get(other) not in (None, value):
                raise self.error(other, f"{key} says {shown(value)}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number above `low`, at most `high`."""
        value = default if self._first((key,), default is not None) is None else self.fields[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            raise self.error(key, f"must be a number above {low:g}, at most {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def _first(self, keys: tuple[str, ...], optional: bool) -> str | None:
        self._known.update(keys)
        self._read.update(keys)
        found = next((key for key in keys if self.fields.get(key) is not None), None)
        if found is None and not optional:
            raise ConversionError(f"{self.path}: {' or '.join(keys)} is missing")
        return found

    def expect(self, key: str, *allowed) -> None:
        """The field is absent, null or one of `allowed`."""
        value = self.get(key)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            raise self.error(key, f"not supported ({', '.join(repr(a) for a in allowed)})")

    def refuse_unknown(self) -> None:
        unknown = sorted(set(self.fields) - self._known - {k for k in self.fields if k.startswith("_attn_impl")})
        if unknown:
            listed = ", ".join(f"{key} = {shown(self.fields[key])}" for key in unknown[:20])
            raise ConversionError(
                f"{self.path}: unknown fields, which may change the result: {listed} "
                "(convert-hf.py and convert-hub.py convert all the same with --ignore-unknown)"
            )

    def eos_ids(self) -> list[int]:
        own = self.get("eos_token_id", [])
        ids = self.generation.get("eos_token_id")
        ids = own if ids is None else ids
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(i) is int and 0 <= i < 1 << 30 for i in ids):
            raise ConversionError(f"{self.path}: eos_token_id = {shown(ids)}: must be token ids")
        return ids

    def rope(self, default_theta: float | None = None) -> tuple[float, dict | None]:
        """Theta and scaling, of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters). `default_theta`: of
        the class in transformers; without it a config that names none is refused."""
        self._rope_object("rope_scaling")
        parameters = self._rope_object("rope_parameters")
        key = "rope_scaling" if self.get("rope_scaling") else "rope_parameters"
        rope = _RopeFields(self, key, self._rope_object(key))
        # mrope_section deals rotary pairs to time, height and width: equal for text.
        rope.known |= {"mrope_section"} if self.sees_pictures else set()
        theta = self.get("rope_theta", parameters.get("rope_theta", default_theta))
        if theta is None:
            raise ConversionError(f"{self.path}: rope_theta is missing")
        if isinstance(theta, bool) or not isinstance(theta, int | float) or not 1 < theta <= 1e15:
            raise ConversionError(f"{self.path}: rope_theta = {shown(theta)}: must be a number above 1, at most 1e15")
        kinds = ("default", "llama3", "yarn") + (("mrope",) if self.sees_pictures else ())
        kind = rope.fields.get("rope_type", rope.fields.get("type", "default"))
        if kind in ("default", "mrope") and kind in kinds:
            result = None
        elif kind == "llama3":
            keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            result = {"type": "llama3"} | {key: rope.number(key) for key in keys}
        elif kind == "yarn":
            factor = rope.number("factor")
            result = {
                "type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": rope.number(
                    "original_max_position_embeddings", float(self.count("max_position_embeddings"))
                ),
                "beta_fast": rope.number("beta_fast", 32.0),
                "beta_slow": rope.number("beta_slow", 1.0),
                "attention_factor": rope.number("attention_factor", 0.1 * math.log(max(factor, 1.0)) + 1),
            }
        else:
            raise ConversionError(f"{self.path}: {key}: type {shown(kind)} is not supported ({', '.join(kinds)})")
        rope.refuse_unknown()
        return float(theta), result

    def context(self, scaling: dict | None) -> int:
        """Positions that the model is made for. Recipes for YaRN leave max_position_embeddings as it was before."""
        positions = self.count("max_position_embeddings", high=1 << 24)
        if scaling and scaling["type"] == "yarn":
            longer = int(min(scaling["factor"] * scaling["original_max_position_embeddings"], 1 << 24))
            if longer > positions:
                self.notes.append(f"context {longer} by YaRN, where max_position_embeddings says {positions}")
            positions = max(positions, longer)
        return positions

    def full_attention(self, positions: int) -> int:
        """The context in which every token sees all before it: sliding windows are the same up to their width."""
        for kind in self._list("layer_types"):
            if kind not in ("full_attention", "sliding_attention"):
                raise self.error("layer_types", f"{shown(kind)} is not supported (full_attention)")
        window = self.count("sliding_window", default=1 << 30)
        slides = self.flag("use_sliding_window", self.get("sliding_window") is not None)
        if not slides and "sliding_attention" in self._list("layer_types"):
            raise self.error("layer_types", "has sliding_attention, and there is no sliding_window")
        if slides and window < positions:
            self.notes.append(
                f"context {window} instead of {positions}: attention in a sliding window is the same up to its width"
            )
            return window
        return positions

    def _list(self, key: str) -> list:
        value = self.get(key, [])
        if not isinstance(value, list):
            raise self.error(key, "must be a list")
        return value

    def first_sparse_layer(self, layers: int) -> int:
        """first_k_dense_replace, or what mlp_layer_types says instead in transformers 5."""
        kinds = self._list("mlp_layer_types")
        if not kinds:
            return self.count("first_k_dense_replace", low=0, high=layers)
        first = kinds.index("sparse") if "sparse" in kinds else len(kinds)
        if len(kinds) != layers or kinds != ["dense"] * first + ["sparse"] * (layers - first):
            raise self.error("mlp_layer_types", f"must be dense layers and then sparse ones, {layers} in all")
        if self.count("first_k_dense_replace", default=first, low=0) != first:
            raise self.error("first_k_dense_replace", f"mlp_layer_types has {first} dense layers")
        return first

    def partial_rotary_factor(self, default: float) -> float:
        parameters = self._rope_object("rope_parameters") | self._rope_object("rope_scaling")
        factor = self.get("partial_rotary_factor", parameters.get("partial_rotary_factor", default))
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
            raise ConversionError(f"{self.path}: partial_rotary_factor = {shown(factor)}: must be above 0, at most 1")
        return float(factor)

    def _rope_object(self, key: str) -> dict:
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "must be an object")
        return value


class _RopeFields:
    """The fields of rope_scaling or rope_parameters."""

    def __init__(self, config: HfConfig, key: str, fields: dict):
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
        self._config, self._key = config, key

    def number(self, name: str, default: float | None = None) -> float:
        self.known.add(name)
        value = self.fields.get(name, default)
        if value is None:
            raise ConversionError(f"{self._config.path}: {self._key} has no {name}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e9:
            raise ConversionError(
                f"{self._config.path}: {self._key}: {name} = {shown(value)}: must be above 0, at most 1e9"
            )
        return float(value)

    def refuse_unknown(self) -> None:
        unknown = sorted(set(self.fields) - self.known)
        if unknown:
            raise ConversionError(f"{self._config.path}: {self._key} has unknown fields: {', '.join(unknown)}"[:400])
