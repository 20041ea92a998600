"""FP8 weights (E4M3) with scales, as they are published: one scale for 128 x 128 values, for a row, or for the tensor.

A weight X has its scales in X_scale_inv (DeepSeek's and GLM's form; a factor, whatever its name says) or X_scale
(compressed-tensors). Values times scale in float32 are what the publisher's own kernels compute with."""

import numpy as np

from . import ConversionError

BLOCK = 128
_SCALES = ("_scale_inv", "_scale")
# Scales of activations and of the cache: both are computed unquantised here.
UNUSED_SCALES = (".input_scale", ".input_global_scale", ".k_scale", ".v_scale", ".output_scale")


def _table() -> np.ndarray:
    """The 256 values: sign, 4 bits of exponent (bias 7), 3 of mantissa; 0x7F and 0xFF are no numbers."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    value[127] = np.nan
    return np.concatenate([value, -value]).astype(np.float32)


E4M3 = _table()


def check_quantization(config: object) -> str | None:
    """Why weights of this quantization_config cannot be read, or None if they can."""
    if not isinstance(config, dict):
        return "must be an object"
    method = config.get("quant_method")
    if method == "fp8":
        if config.get("fmt", "e4m3") != "e4m3" or config.get("weight_block_size") not in (None, [BLOCK, BLOCK]):
            return f"of fp8 only e4m3 in blocks of {BLOCK} x {BLOCK} is supported"
        return None
    if method == "compressed-tensors":
        groups = config.get("config_groups")
        schemes = (
            [g.get("weights") if isinstance(g, dict) else None for g in groups.values()]
            if isinstance(groups, dict)
            else [None]
        )
        for scheme in schemes:
            if not isinstance(scheme, dict) or scheme.get("type") != "float" or scheme.get("num_bits") != 8:
                return "of compressed-tensors only 8-bit floats are supported"
        return None
    return "weights that are already quantised are not supported, but for fp8 (e4m3)"


def pair_scales(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """The scale tensor of each FP8 weight, of tensors by name: (dtype, shape). Raises ConversionError if one has none,
    or one whose shape does not fit."""
    pairs = {}
    for name, (dtype, shape) in tensors.items():
        if dtype != "F8_E4M3":
            continue
        scale = next((name + end for end in _SCALES if name + end in tensors), None)
        if scale is None:
            raise ConversionError(f"tensor {name} has type F8_E4M3, and there is no {name}_scale_inv")
        if tensors[scale][0] not in ("F32", "F16", "BF16"):
            raise ConversionError(f"tensor {scale} has type {tensors[scale][0]}: only F32, F16, BF16 are supported")
        _blocks(name, shape, tensors[scale][1])
        pairs[name] = scale
    return pairs


def _blocks(name: str, shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that have one scale."""
    if len(shape) < 2 or min(shape) < 1:
        raise ConversionError(f"tensor {name} has type F8_E4M3 and shape {list(shape)}: only matrices are supported")
    *outer, rows, cols = shape
    if scale in ((), (1,)):
        return rows, cols
    if len(scale) == len(shape) - 1:  # one a row, without the last dimension
        scale = (*scale, 1)
    for block_rows, block_cols in ((BLOCK, BLOCK), (1, cols), (rows, cols)):
        if scale == (*outer, -(-rows // block_rows), -(-cols // block_cols)):
            return block_rows, block_cols
    raise ConversionError(f"tensor {name} of shape {list(shape)} has scales of shape {list(scale)}")


def dequantise(
    codes: np.ndarray, rows: np.ndarray, shape: tuple[int, ...], scales: np.ndarray, scale_shape: tuple[int, ...]
) -> np.ndarray:
    """Float32 of `codes` (n, width), which are rows `rows` of a tensor of `shape`; `scales`: all of its scales."""
    values = E4M3[codes]
    block_rows, block_cols = _blocks("", shape, scale_shape)
    if scales.size == 1:
        return values * scales.reshape(())
    height = shape[-2]
    per_matrix = -(-height // block_rows)
    scales = scales.reshape(-1, -(-shape[-1] // block_cols))
    mine = scales[rows // height * per_matrix + rows % height // block_rows]
    return values * np.repeat(mine, block_cols, axis=1)[:, : shape[-1]]
