"""LoRA adapters of PEFT, added to the weights while they are read: W + alpha / r * B A, in float32."""

import copy
import math
import pathlib
import re

import numpy as np
import xxhash

from . import ConversionError
from .checkpoint import Checkpoint, read_json, read_safetensors
from .families.plan import plain_name
from .files import open_regular
from .printing import shown
from .torch_file import read_torch

# What would change the result in another way; each is refused unless it is absent or one of these.
_UNLESS = {
    "peft_type": ["LORA"], "use_dora": [False], "fan_in_fan_out": [False], "bias": ["none"],
    "modules_to_save": [[]], "target_parameters": [[]], "layer_replication": [[]], "trainable_token_indices": [[]],
    "alora_invocation_tokens": [[]], "lora_bias": [False], "use_qalora": [False], "use_bdlora": [False],
}  # fmt: skip


def refuse_adapter(folder: pathlib.Path) -> None:
    """Raises ConversionError if the folder holds an adapter and no model."""
    path = folder / "adapter_config.json"
    if path.exists() and not (folder / "config.json").exists():
        base = shown(read_json(path).get("base_model_name_or_path"))
        raise ConversionError(f"{folder}: this is an adapter for {base}: convert that with --lora {folder}")


class LoraCheckpoint:
    """A checkpoint with an adapter's products added (the same functions as Checkpoint)."""

    def __init__(self, base: Checkpoint, folder: pathlib.Path):
        """Raises ConversionError if the adapter is no plain LoRA, or changes what the checkpoint has not."""
        self._base = base
        config_path = folder / "adapter_config.json"
        config = read_json(config_path)
        for key, allowed in _UNLESS.items():
            if config.get(key) is not None and config[key] not in allowed:
                raise ConversionError(f"{config_path}: {key} = {shown(config[key])} is not supported ({allowed[0]!r})")
        self._config, self._config_path = config, config_path
        names = {plain_name(name): name for name in base.names()}
        self._factors: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by the checkpoint's name: A, scale * B
        halves = _halves(folder)
        for module, parts in halves.items():
            target = names.get(plain_name(f"{module}.weight"))
            if target is None:
                raise ConversionError(f"{folder}: changes {module}, which the checkpoint has not")
            self._factors[target] = self._factor(module, parts, base.shape(target))
        self.notes = [f"{folder}: adds {len(halves)} products of rank {self._rank('')} to the weights"]

    def over(self, base: Checkpoint) -> "LoraCheckpoint":
        """The same adapter over a part of its checkpoint."""
        part = copy.copy(self)
        part._base = base
        return part

    def names(self) -> list[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def equal(self, name: str, other: str) -> bool:
        return not {name, other} & self._factors.keys() and self._base.equal(name, other)

    def rows(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        """The rows as float32 (n, width)."""
        rows = self._base.rows(name, index)
        if name not in self._factors:
            return rows
        a, b = self._factors[name]
        return rows + b[index] @ a

    def _factor(self, module: str, parts: dict[str, np.ndarray], shape: tuple[int, ...]):
        if set(parts) != {"A", "B"}:
            raise ConversionError(f"{self._config_path.parent}: {module} has only lora_{'/'.join(parts)}")
        a, b, rank = parts["A"], parts["B"], self._rank(module)
        if len(shape) != 2 or a.shape != (rank, shape[1]) or b.shape != (shape[0], rank):
            raise ConversionError(
                f"{self._config_path.parent}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)} of rank "
                f"{rank}: the weight has {list(shape)}"
            )
        alpha = self._of_module("lora_alpha", "alpha_pattern", module, 8)
        return a, b * np.float32(alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank))

    def _rank(self, module: str) -> int:
        rank = self._of_module("r", "rank_pattern", module, 8)
        if type(rank) is not int or not 1 <= rank <= 65536:
            raise ConversionError(f"{self._config_path}: r = {shown(rank)}: must be an integer from 1 to 65536")
        return rank

    def _of_module(self, key: str, pattern_key: str, module: str, default):
        """A pattern is the end of a module's name."""
        value = self._config.get(key, default)
        for pattern, special in (self._config.get(pattern_key) or {}).items():
            if module and (module == pattern or module.endswith(f".{pattern.lstrip('^')}")):
                value = special
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise ConversionError(f"{self._config_path}: {key} = {shown(value)}: must be a number above 0")
        return value


def adapter_id(folder: pathlib.Path) -> str:
    """Tells adapters apart: a hash of what the folder holds."""
    digest = xxhash.xxh3_64()
    for path in sorted(folder.glob("adapter_*")):
        digest.update(path.name.encode())
        with open_regular(path) as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _halves(folder: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """A and B of each module."""
    readers = {"adapter_model.safetensors": read_safetensors, "adapter_model.bin": read_torch}
    path = next((folder / name for name in readers if (folder / name).exists()), None)
    if path is None:
        raise ConversionError(f"{folder}: there is neither {' nor '.join(readers)}")
    checkpoint = Checkpoint({path: readers[path.name](path)})
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name in checkpoint.names():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        shape = checkpoint.shape(name)
        if match is None or len(shape) != 2:
            raise ConversionError(f"{path}: tensor {name} is none of a LoRA's A and B")
        halves.setdefault(match[1], {})[match[2]] = checkpoint.rows(name, slice(0, shape[0]))
    checkpoint.close()
    return halves
