"""Reads the weights of a Hugging Face checkpoint folder: safetensors or PyTorch .bin, one file or shards.

Both kinds are headers in front of plain arrays. Only the headers are read at first; rows are read when they are asked
for, so that no tensor is ever in memory as a whole. (safetensors' own reader gives BF16 only to torch.)"""

import itertools
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterable

import numpy as np

from . import ConversionError
from .files import open_regular, read_regular
from .fp8 import UNUSED_SCALES, dequantise, pair_scales
from .paths import below
from .printing import shown
from .torch_file import StoredTensor, read_torch

_NUMPY = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "F8_E4M3": np.dtype(np.uint8),
}
# Tokenizers are the longest JSON: 40 MB at most; of safetensors the format itself has this limit.
_JSON_BYTES = 256 << 20
_HEADER_BYTES = 100_000_000
READABLE = "F32, F16, BF16, F8_E4M3 with scales"


class Checkpoint:
    """Weights by name. Every tensor is seen as rows: the last dimension is the width, all others are rows; a vector
    has rows of one value. Threads may read at the same time."""

    def __init__(self, shards: dict[pathlib.Path, dict[str, StoredTensor]]):
        self._tensors: dict[str, StoredTensor] = {}
        self._files = {path: open_regular(path) for path in shards}
        for path, tensors in shards.items():
            size = os.fstat(self._files[path].fileno()).st_size
            for name, tensor in tensors.items():
                item = _NUMPY.get(tensor.dtype, np.dtype(np.uint8)).itemsize
                if tensor.offset < 0 or tensor.offset + math.prod(tensor.shape) * item > size:
                    raise ConversionError(f"{path}: tensor {name} ends behind the file: it is truncated or damaged")
                self._tensors[name] = tensor
        self._scale_of = pair_scales({name: (t.dtype, t.shape) for name, t in self._tensors.items()})
        self._scales = {name: self.rows(scale, self._all(scale)) for name, scale in self._scale_of.items()}

    def close(self) -> None:
        """Lets go of the files: the room of a deleted shard is free only then."""
        for file in self._files.values():
            file.close()

    def names(self) -> list[str]:
        """The tensors, without the scales that belong to others."""
        return without_scales(self._tensors, self._scale_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ConversionError if nobody can read the tensor's type."""
        tensor = self._tensors[name]
        if tensor.dtype not in _NUMPY:
            raise ConversionError(f"tensor {name} has type {tensor.dtype}: only {READABLE} are supported")
        return tensor.shape

    def _all(self, name: str) -> slice:
        shape = self._tensors[name].shape
        return slice(0, math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape))

    def rows(self, name: str, index: slice | np.ndarray) -> np.ndarray:
        """The rows as float32 (n, width)."""
        tensor = self._tensors[name]
        item = _NUMPY[tensor.dtype]
        width = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        whole = isinstance(index, slice)
        # An index picks from rows that lie close together: heads, or the q, k and v of a head.
        first, last = (index.start, index.stop) if whole else (int(index.min()), int(index.max()) + 1)
        raw = np.empty((last - first, width), item)
        self._read(tensor, first * width * item.itemsize, memoryview(raw).cast("B"))
        raw = raw if whole else raw[index - first]
        if tensor.dtype != "F8_E4M3":
            return _to_float32(raw, tensor.dtype)
        rows = np.arange(first, last) if whole else index
        scale = self._tensors[self._scale_of[name]]
        return dequantise(raw, rows, tensor.shape, self._scales[name], scale.shape)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors have the same values, whatever their types. Reads both, piece by piece."""
        shape = self.shape(name)
        if self.shape(other) != shape or len(shape) != 2:
            return False
        rows, width = shape
        step = max(1, (1 << 20) // max(width, 1))
        pieces = (slice(at, min(rows, at + step)) for at in range(0, rows, step))
        return all(np.array_equal(self.rows(name, piece), self.rows(other, piece)) for piece in pieces)

    def _read(self, tensor: StoredTensor, begin: int, buffer: memoryview) -> None:
        file, done = self._files[tensor.path].fileno(), 0
        while done < len(buffer):
            n = os.preadv(file, [buffer[done:]], tensor.offset + begin + done)
            if n == 0:
                raise ConversionError(f"{tensor.path}: became shorter while it was read")
            done += n


def without_scales(names: Iterable[str], scale_of: dict[str, str]) -> list[str]:
    scales = set(scale_of.values())
    return [name for name in names if name not in scales and not (scales and name.endswith(UNUSED_SCALES))]


def _to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "BF16":
        return raw.astype(np.float32, copy=False)
    wide = raw.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def open_checkpoint(folder: pathlib.Path) -> Checkpoint:
    """The checkpoint in `folder`. Raises ConversionError if there is none or a shard is missing."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: there is no such folder")
    for index_name, single, read in (
        ("model.safetensors.index.json", "model.safetensors", read_safetensors),
        ("pytorch_model.bin.index.json", "pytorch_model.bin", read_torch),
    ):
        if (folder / index_name).exists():
            weight_map = read_json(folder / index_name).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
                raise ConversionError(f"{folder / index_name}: has no weight_map from tensors to files")
            shards = sorted(set(weight_map.values()))
        elif (folder / single).exists():
            shards = [single]
        else:
            continue
        paths = [below(folder, shard, deep=True, follow_links=True) for shard in shards]
        for path in paths:
            if not path.exists():
                raise ConversionError(f"{path}: this shard is missing")
        return Checkpoint({path: read(path) for path in paths})
    raise ConversionError(f"{folder}: there is neither model.safetensors nor pytorch_model.bin")


def read_json(path: pathlib.Path) -> dict:
    try:
        document = json.loads(read_regular(path, _JSON_BYTES))
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: there is no such file") from error
    except RecursionError as error:
        raise ConversionError(f"{path}: is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise ConversionError(f"{path}: not a JSON object")
    return document


def read_safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    """u64 length of a JSON header, the header, then the tensors at offsets from the header's end."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > min(size - 8, _HEADER_BYTES):
            raise ConversionError(f"{path}: not a safetensors file, or truncated")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise ConversionError(f"{path}: its header is damaged: {shown(error)}") from error
    if not isinstance(header, dict):
        raise ConversionError(f"{path}: its header is damaged: it is no object")
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConversionError(f"{path}: its header is damaged: tensor {name} has no {error}"[:400]) from error
        numbers = [begin, end, *shape] if isinstance(shape, list) and len(shape) <= 8 else [-1]
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or not isinstance(dtype, str):
            raise ConversionError(f"{path}: its header is damaged: tensor {name} is {shown(entry)}")
        item_bytes = _NUMPY[dtype].itemsize if dtype in _NUMPY else None
        if item_bytes and math.prod(shape) * item_bytes != end - begin:
            raise ConversionError(f"{path}: tensor {name} has {end - begin} bytes for shape {list(shape)}")
        tensors[name] = StoredTensor(path, dtype, tuple(shape), 8 + length + begin)
        spans.append((begin, end, name))
    spans.sort()
    for (_, end, name), (begin, _, other) in itertools.pairwise(spans):
        if begin < end:
            raise ConversionError(f"{path}: tensors {name} and {other} lie on the same bytes")
    return tensors
