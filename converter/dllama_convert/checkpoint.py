"""Reads the weights of a Hugging Face checkpoint folder row by row: safetensors (one file or shards) or PyTorch .bin."""

import json
import pathlib
import struct
from typing import Protocol

import numpy as np

from . import ConversionError


class Checkpoint(Protocol):
    """Weights by name. Every tensor is seen as rows: the last dimension is the width, all others are rows; a vector
    has rows of one value."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def rows(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        """The rows as float32 (n, width)."""
        ...

    def input_bytes(self, name: str) -> int: ...


def open_checkpoint(folder: pathlib.Path) -> Checkpoint:
    """The checkpoint in `folder`. Raises ConversionError if there is none or a shard is missing."""
    for index_name, single, reader in (
        ("model.safetensors.index.json", "model.safetensors", SafetensorsCheckpoint),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", TorchCheckpoint),
    ):
        if (folder / index_name).exists():
            shards = sorted(set(read_json(folder / index_name)["weight_map"].values()))
        elif (folder / single).exists():
            shards = [single]
        else:
            continue
        missing = [s for s in shards if not (folder / s).exists()]
        if missing:
            raise ConversionError(f"{folder}: shard {missing[0]} is missing")
        return reader([folder / s for s in shards])
    raise ConversionError(f"{folder}: there is neither model.safetensors nor pytorch_model.bin")


def read_json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: {error}") from error


def _to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return raw.astype(np.float32)


class SafetensorsCheckpoint:
    """Maps the shards: rows are read when they are asked for. (safetensors' own reader gives BF16 only to torch.)"""

    _NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}

    def __init__(self, paths: list[pathlib.Path]):
        self._tensors: dict[str, tuple[np.memmap, str, tuple[int, ...], int]] = {}
        for path in paths:
            size = path.stat().st_size
            with open(path, "rb") as file:
                head = file.read(8)
                length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
                if length > size - 8:
                    raise ConversionError(f"{path}: not a safetensors file, or truncated")
                try:
                    header = json.loads(file.read(length))
                except ValueError as error:
                    raise ConversionError(f"{path}: its header is damaged: {error}") from error
            data = np.memmap(path, np.uint8, "r")
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                if 8 + length + end > size:
                    raise ConversionError(f"{path}: tensor {name} ends behind the file: it is truncated")
                self._tensors[name] = (data, entry["dtype"], tuple(entry["shape"]), 8 + length + begin)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][2]

    def input_bytes(self, name: str) -> int:
        _, dtype, shape, _ = self._tensors[name]
        return int(np.prod(shape)) * np.dtype(self._NUMPY.get(dtype, np.uint8)).itemsize

    def rows(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        data, dtype, shape, offset = self._tensors[name]
        if dtype not in self._NUMPY:
            raise ConversionError(f"tensor {name} has type {dtype}, which is not supported (F32, F16, BF16)")
        item = np.dtype(self._NUMPY[dtype])
        width = shape[-1] if len(shape) > 1 else 1
        count = int(np.prod(shape))
        raw = data[offset : offset + count * item.itemsize].view(item).reshape(-1, width)
        return _to_float32(raw[index], dtype)


class TorchCheckpoint:
    """PyTorch .bin shards, loaded without running code from them (weights_only), one at a time."""

    def __init__(self, paths: list[pathlib.Path]):
        try:
            import torch
        except ImportError as error:
            raise ConversionError(f"{paths[0]}: .bin shards need PyTorch: pip install torch") from error
        self._torch = torch
        self._where: dict[str, tuple[pathlib.Path, tuple[int, ...]]] = {}
        self._shard: tuple[pathlib.Path, dict] | None = None
        for path in paths:
            for name, tensor in self._load(path).items():
                self._where[name] = (path, tuple(tensor.shape))

    def _load(self, path: pathlib.Path) -> dict:
        if self._shard is None or self._shard[0] != path:
            self._shard = None
            self._shard = (path, self._torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        return self._shard[1]

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._where[name][1]

    def input_bytes(self, name: str) -> int:
        return int(np.prod(self.shape(name))) * 2

    def rows(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        path, shape = self._where[name]
        tensor = self._load(path)[name]
        if not tensor.dtype.is_floating_point or tensor.element_size() == 1:
            raise ConversionError(f"tensor {name} has type {tensor.dtype}, which is not supported")
        rows = tensor.reshape(-1, shape[-1] if len(shape) > 1 else 1)
        part = rows[index] if isinstance(index, slice) else rows[self._torch.from_numpy(index)]
        return part.to(self._torch.float32).numpy()
