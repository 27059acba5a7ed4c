"""How a value becomes a code (DIA-QUANTIZE, DIA-DYNAMIC-QUANTIZE), vectorised.

Rules take (x, scale, zero_point, qmin, qmax), already broadcast, and give codes.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from quantspec.numerics import affine
from quantspec.numerics.affine import Float32, Int32, along, saturate

from .float32 import ONE, away, fma, twice_inverted


def quantize_divide(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    return saturate(np.rint(x / scale).astype(np.float64) + zero_point, qmin, qmax)


def quantize_reciprocal(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    return saturate(np.rint(x * (ONE / scale)).astype(np.float64) + zero_point, qmin, qmax)


def quantize_add(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    return saturate(np.rint(x * (ONE / scale) + zero_point.astype(np.float32)), qmin, qmax)


def quantize_fused(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    return saturate(np.rint(fma(x, ONE / scale, zero_point)), qmin, qmax)


def quantize_divide_away(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    return saturate(away((x / scale).astype(np.float64)) + zero_point, qmin, qmax)


def quantize_levels(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    low, high = scale * (qmin - zero_point).astype(np.float32), scale * (qmax - zero_point).astype(np.float32)
    per_step = np.float32(qmax - qmin) / (high - low)
    steps = np.clip(x, low, high) * per_step
    return np.where(zero_point == 0, np.rint(steps), np.rint(steps + -low * per_step) + qmin)


def quantize_inverted(x: Float32, scale: Float32, zero_point: Int32, qmin: int, qmax: int) -> np.ndarray:
    per_step = ONE / twice_inverted(scale)
    return saturate(np.rint(x * per_step + zero_point.astype(np.float32)), qmin, qmax)


QUANTIZE: dict[str, Callable[[Float32, Float32, Int32, int, int], np.ndarray]] = {
    "divide": quantize_divide,
    "reciprocal": quantize_reciprocal,
    "add": quantize_add,
    "fused": quantize_fused,
    "divide-away": quantize_divide_away,
    "levels": quantize_levels,
    "inverted": quantize_inverted,
}



def quantize(
    rule: str, x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, qmin: int, qmax: int, axis: int | None
) -> np.ndarray:
    """Codes of real values by one alternative of DIA-DYNAMIC-QUANTIZE.

    Only ``inverted`` looks at a float64 scale's digits.
    """
    if rule == "exact":
        return affine.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    single, points = affine.checked_qparams(scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    x = affine.float32_array(x)
    if np.isnan(x).any():
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    given = np.asarray(scale) if rule == "inverted" else along(axis, single, x.shape)
    with np.errstate(over="ignore"):
        codes = QUANTIZE[rule](x, given, along(axis, points, x.shape), qmin, qmax)
    return codes.astype(affine.code_dtype(qmin, qmax))
