"""The converter rounds as docs/file-format.md says, bit for bit as the engine's own quantisers do."""

import os
import struct
import subprocess

import numpy as np
import pytest
from dllama_convert import ConversionError
from dllama_convert.quants import TYPES, encode, stored_bytes

F32 = np.float32


def blocks() -> np.ndarray:
    """Blocks of all kinds: usual weights, ties, equal extremes, zeros of both signs, denormal and large numbers."""
    random = np.random.default_rng(5)
    usual = random.standard_normal((1500, 32)).astype(F32) * F32(2) ** random.integers(-20, 10, (1500, 1)).astype(F32)
    steps = random.integers(-16, 17, (500, 32)).astype(F32) / F32(2)  # many lie halfway between two numbers of a block
    special = np.zeros((8, 32), F32)
    special[1] = -0.0
    special[2, 5] = -1e-45
    special[3] = 1e-40
    special[4, ::2], special[4, 1::2] = 3.0, -3.0
    special[5, 31] = 5e5
    special[6, 0] = -5e5
    special[7] = np.linspace(-1, 1, 32, dtype=F32)
    return np.concatenate([usual, steps, special])


def inverse_of(d: np.float32) -> np.float32:
    inverse = F32(np.inf) if d == 0 else F32(F32(1) / d)
    return inverse if np.isfinite(inverse) else F32(0)


def scalar_q40(x: np.ndarray) -> bytes:
    extreme = min(x) if -min(x) > max(x) else max(x)
    d = F32(extreme / F32(-8))
    inverse = inverse_of(d)
    nibbles = [int(min(max(np.trunc(F32(F32(value * inverse) + F32(8.5))), 0), 15)) for value in x]
    return np.float16(d).tobytes() + bytes(nibbles[j] | nibbles[j + 16] << 4 for j in range(16))


def scalar_q80(x: np.ndarray) -> bytes:
    d = F32(max(abs(x)) / F32(127))
    inverse = inverse_of(d)
    values = [min(max(round(float(F32(v * inverse))), -127), 127) for v in x]
    return np.float16(d).tobytes() + struct.pack("32b", *values)


@pytest.mark.parametrize(("dtype", "scalar"), [("Q40", scalar_q40), ("Q80", scalar_q80)])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_blocks_equal_the_scalar_definition(dtype, scalar):
    x = blocks()
    assert encode(dtype, x).tobytes() == b"".join(scalar(block) for block in x)


@pytest.mark.parametrize("dtype", TYPES)
def test_bits_equal_the_engine(dtype):
    """tests/converter/quantize.cpp calls src/tensor/blocks.cpp."""
    if "DLLAMA_QUANTIZE" not in os.environ:
        pytest.skip("DLLAMA_QUANTIZE does not name the program: CTest does")
    x = blocks() if dtype != "F16" else np.clip(blocks(), -65504, 65504)
    if dtype in ("Q80", "Q40"):
        x = x[(np.abs(x).max(axis=1) > 1e-36) | ~x.any(axis=1)]  # scales whose inverse is finite
    engine = subprocess.run([os.environ["DLLAMA_QUANTIZE"], dtype], input=x.tobytes(), capture_output=True, check=True)
    assert len(engine.stdout) == stored_bytes(dtype, x.size)
    assert encode(dtype, x).tobytes() == engine.stdout


def values_of_q40(stored: np.ndarray) -> np.ndarray:
    """Stored Q40 blocks to float32 (n, 32)."""
    stored = stored.reshape(-1, 18)
    nibbles = np.concatenate([stored[:, 2:] & 15, stored[:, 2:] >> 4], axis=1)
    return (nibbles.astype(F32) - 8) * np.ascontiguousarray(stored[:, :2]).view(np.float16).astype(F32)


def test_best_quality_is_never_further_away():
    x = blocks()
    x = x[np.abs(x).max(axis=1) > 1e-2]  # above this an f16 scale is exact to 11 bits, as the search supposes
    fast, best = (np.square(values_of_q40(encode("Q40", x, quality)) - x).sum(axis=1) for quality in ("fast", "best"))
    assert (best <= fast * F32(1.01) + F32(1e-12)).all()
    normal = slice(0, 1000)
    assert best[normal].sum() < 0.95 * fast[normal].sum()


def test_best_quality_of_zeros_and_limits():
    x = np.zeros((3, 32), F32)
    x[1, 3] = 4e5
    x[2] = 1e-42
    back = values_of_q40(encode("Q40", x, "best"))
    assert (back[[0, 2]] == 0).all()
    assert back[1, 3] == pytest.approx(4e5, rel=1e-3) and np.count_nonzero(back) == 1
    with pytest.raises(ConversionError, match="not numbers"):
        encode("Q40", np.full((1, 32), np.nan, F32), "best")


@pytest.mark.parametrize("rows", [1, 7, 8192, 8193, 20000])
@pytest.mark.parametrize("dtype", TYPES)
def test_long_arrays_equal_their_parts(dtype, rows):
    x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(F32)
    assert encode(dtype, x).tobytes() == b"".join(encode(dtype, row).tobytes() for row in x)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 31, 600000])
def test_no_number_is_refused(dtype, bad, at):
    x = np.ones(1 << 20, F32)
    x[at] = bad
    with pytest.raises(ConversionError, match="not numbers"):
        encode(dtype, x)


@pytest.mark.parametrize(("dtype", "largest"), [("F16", 65504.0), ("Q40", 65504.0 * 8), ("Q80", 65504.0 * 127)])
def test_range_of_f16(dtype, largest):
    x = np.zeros(64, F32)
    x[40] = largest
    encode(dtype, x)
    x[40] = largest * 1.01
    with pytest.raises(ConversionError, match=r"65504|too large"):
        encode(dtype, x)
