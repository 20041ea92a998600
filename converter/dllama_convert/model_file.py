"""Writes .m files, described and legacy (docs/file-format.md).

All offsets are known before the first tensor is written. The file grows under the name `<path>.part` and gets its name
only when it is complete."""

import dataclasses
import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterable

import xxhash

from . import ConversionError
from .quants import stored_bytes

MAGIC = 0x0A00ABCD
ARCH_DESCRIBED = 0xABCD10
_HEADER_BYTES = 8 + 8 * 5


@dataclasses.dataclass
class TensorEntry:
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return stored_bytes(self.dtype, count)


def _aligned(offset: int) -> int:
    return (offset + 63) // 64 * 64


def _describe(name: str, architecture: str, config: dict, tensors: list[TensorEntry], hashes: list[int]) -> bytes:
    """The JSON document. Offsets depend on its own length, which depends on the digits of the offsets: a few rounds."""
    length = 0
    while True:
        end = _aligned(_HEADER_BYTES + length)
        entries = []
        for tensor, value in zip(tensors, hashes, strict=True):
            begin = _aligned(end)
            entries.append([tensor.name, tensor.dtype, list(tensor.shape), begin, f"{value:016x}"])
            end = begin + tensor.bytes
        document = {"format": 1, "name": name, "architecture": architecture, "config": config, "tensors": entries}
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) == length:
            return text
        length = len(text)


def _header(pairs: Iterable[tuple[int, int]]) -> bytes:
    pairs = list(pairs)
    head = struct.pack("<II", MAGIC, 8 + 8 * len(pairs))
    return head + b"".join(struct.pack("<II", key & 0xFFFFFFFF, value & 0xFFFFFFFF) for key, value in pairs)


# Called with each tensor; yields its bytes in pieces.
Fill = Callable[[TensorEntry], Iterable[bytes]]


def write_atomically(path: pathlib.Path, write: Callable) -> None:
    """Calls `write` with the open file `<path>.part`, which gets its name when all is on the disk. Raises
    ConversionError if `path` exists."""
    if path.exists():
        raise ConversionError(f"{path}: exists already: remove it, or choose another name")
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@dataclasses.dataclass
class Layout:
    """Where everything lies in a .m file. `header` makes its first bytes, always equally many, from the hashes."""

    tensors: list[TensorEntry]
    offsets: list[int]
    size: int
    header: Callable[[list[int]], bytes]


def described_layout(name: str, architecture: str, config: dict, tensors: list[TensorEntry]) -> Layout:
    def header(hashes: list[int]) -> bytes:
        text = _describe(name, architecture, config, tensors, hashes)
        value = xxhash.xxh3_64_intdigest(text)
        return _header([(0, 1), (1, ARCH_DESCRIBED), (100, len(text)), (101, value), (102, value >> 32)]) + text

    return _laid_out(tensors, header, _aligned)


def legacy_layout(pairs: list[tuple[int, int]], tensors: list[TensorEntry]) -> Layout:
    return _laid_out(tensors, lambda hashes: _header(pairs), lambda offset: offset)


def _laid_out(tensors: list[TensorEntry], header: Callable[[list[int]], bytes], align: Callable[[int], int]) -> Layout:
    offsets = []
    end = len(header([0] * len(tensors)))
    for tensor in tensors:
        offsets.append(align(end))
        end = offsets[-1] + tensor.bytes
    return Layout(tensors, offsets, end, header)


def write_tensor(file, layout: Layout, i: int, pieces: Iterable[bytes]) -> int:
    """Writes tensor `i` at its place and returns its hash."""
    tensor = layout.tensors[i]
    digest = xxhash.xxh3_64()
    written = 0
    file.seek(layout.offsets[i])
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
        written += len(piece)
    if written != tensor.bytes:
        raise AssertionError(f"{tensor.name}: wrote {written} bytes of {tensor.bytes}")
    return digest.intdigest()


def write_model(path: pathlib.Path, layout: Layout, fill: Fill) -> None:
    """Writes the whole file, its header last: what an interruption leaves does not begin as a .m file does."""

    def write(file) -> None:
        hashes = [write_tensor(file, layout, i, fill(tensor)) for i, tensor in enumerate(layout.tensors)]
        # Gaps between tensors were skipped, which leaves zero bytes.
        file.seek(0)
        file.write(layout.header(hashes))

    write_atomically(path, write)
