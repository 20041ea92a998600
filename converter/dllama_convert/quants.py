"""The weight types of .m files: float32 values to stored bytes. Layouts and rounding: docs/file-format.md, Blocks.

Bit-identical to src/tensor/blocks.cpp; tests/converter/test_quants.py holds a scalar reference."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import ConversionError

# Values worked on at once: few enough for the caches, and so many that threads seldom wait for Python's lock.
_CHUNK = 1 << 19


def block_values(dtype: str) -> int:
    """Values that are stored together; rows of a tensor are whole blocks."""
    return BLOCK_TYPES[dtype].values if dtype in BLOCK_TYPES else 1


def stored_bytes(dtype: str, values: int) -> int:
    """Bytes of `values` consecutive values; a multiple of block_values(dtype)."""
    return values // block_values(dtype) * (BLOCK_TYPES[dtype].bytes if dtype in BLOCK_TYPES else FLOAT_TYPES[dtype])


def turn(rows: np.ndarray, group: int) -> np.ndarray:
    """Each `group` rows transposed, or `rows` as they are if it is 0."""
    return rows.reshape(-1, group, rows.shape[-1]).swapaxes(1, 2).reshape(-1, group) if group else rows


def encode(dtype: str, values: np.ndarray, quality: str = "fast") -> np.ndarray:
    """float32 values (any shape, rows of whole blocks) to a flat uint8 array. `quality` "best" tries several scales for
    each block of Q40. Raises ConversionError for NaN, infinities and, in F16 and quantised types, for values that leave
    the range."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype in BLOCK_TYPES:
        kind = BLOCK_TYPES[dtype]
        encode_blocks = kind.encode_best if quality == "best" else kind.encode
        out = np.empty(stored_bytes(dtype, flat.size), np.uint8)
        for begin in range(0, flat.size, _CHUNK):
            part = flat[begin : begin + _CHUNK]
            at = stored_bytes(dtype, begin)
            out[at : at + stored_bytes(dtype, part.size)] = encode_blocks(part.reshape(-1, kind.values)).reshape(-1)
        return out
    if not np.isfinite(flat).all():
        raise ConversionError("holds values that are not numbers")
    if dtype == "F32":
        return flat.view(np.uint8)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            halves = flat.astype(np.float16)
        if not np.isfinite(halves).all():
            raise ConversionError(f"holds {np.abs(flat).max():g}, above F16's largest value 65504")
        return halves.view(np.uint8)
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16).view(np.uint8)


def _scales(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored f16 scale of each block and 1/d; 0 where d is so small that 1/d is infinite: all values become 0."""
    if not np.isfinite(d).all():
        raise ConversionError("holds values that are not numbers")
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
        half = d.astype(np.float16)
    inverse[np.isinf(inverse)] = 0
    if not np.isfinite(half).all():
        raise ConversionError("holds values too large for a block's F16 scale")
    return half, inverse


def _transposed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A copy with the blocks as columns, and their largest and smallest values: numpy is fast along long rows only."""
    columns = np.ascontiguousarray(x.T)
    return columns, columns.max(axis=0), columns.min(axis=0)


def _encode_q40(x: np.ndarray) -> np.ndarray:
    y, high, low = _transposed(x)
    half, inverse = _scales(np.where(-low > high, low, high) / np.float32(-8))
    y *= inverse
    y += np.float32(8.5)
    np.clip(y, 0, 15, out=y)
    return _q40_blocks(half, y.astype(np.uint8))


def _q40_blocks(half: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Stored blocks of f16 scales (n) and nibbles (32, n), which are overwritten."""
    q[16:] <<= 4
    q[:16] |= q[16:]
    out = np.empty((half.size, 18), np.uint8)
    out[:, :2] = half.view(np.uint8).reshape(-1, 2)
    out[:, 2:] = q[:16].T
    return out


# How much finer or coarser than usual the steps of a block may become: finer ones clip its largest values. The usual
# ones come first: others must be better.
_FACTORS = [np.float32(1 + 0.0375 * k) for k in (0, -1, 1, -2, 2, -3, 3, -4, 4)]


def _encode_q40_best(x: np.ndarray) -> np.ndarray:
    """The scale of each block with the smallest squared error. For given q the best scale is d = x.q / q.q, and the
    error is then x.x - (x.q)^2 / q.q: the larger the last term, the better."""
    columns, high, low = _transposed(x)
    usual = np.where(-low > high, low, high) / np.float32(-8)
    _, inverse = _scales(usual)
    chosen, best = inverse, np.zeros_like(inverse)

    def rounded(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        q = columns * inverse
        np.rint(q, out=q)
        np.clip(q, -8, 7, out=q)
        return q, np.einsum("ij,ij->j", columns, q), np.maximum(np.einsum("ij,ij->j", q, q), np.float32(1))

    for factor in _FACTORS:
        _, xq, qq = rounded(inverse * factor)
        gain = xq * xq / qq
        chosen, best = np.where(gain > best, inverse * factor, chosen), np.maximum(gain, best)
    q, xq, qq = rounded(chosen)
    half, _ = _scales(xq / qq)
    q += 8
    return _q40_blocks(half, q.astype(np.uint8))


def _encode_q80(x: np.ndarray) -> np.ndarray:
    y, high, low = _transposed(x)
    # + 0: a block of zeros has the scale 0, not -0.
    half, inverse = _scales(np.maximum(high, -low) / np.float32(127) + np.float32(0))
    y *= inverse
    np.rint(y, out=y)
    np.clip(y, -127, 127, out=y)
    out = np.empty((x.shape[0], 34), np.uint8)
    out[:, :2] = half.view(np.uint8).reshape(-1, 2)
    out[:, 2:] = y.astype(np.int8).view(np.uint8).T
    return out


class BlockType(NamedTuple):
    values: int  # of a block
    bytes: int
    head_bytes: int  # before the values: f16 scales
    encode: Callable[[np.ndarray], np.ndarray]  # (blocks, values) float32 to (blocks, bytes) uint8
    encode_best: Callable[[np.ndarray], np.ndarray]


FLOAT_TYPES = {"F32": 4, "F16": 2, "BF16": 2}
BLOCK_TYPES = {
    "Q80": BlockType(32, 34, 2, _encode_q80, _encode_q80),
    "Q40": BlockType(32, 18, 2, _encode_q40, _encode_q40_best),
}
TYPES = (*FLOAT_TYPES, *BLOCK_TYPES)
