"""How a value becomes a code (DIA-QUANTIZE, DIA-DYNAMIC-QUANTIZE), vectorised.

Rules take (x, scale, zero_point, qmin, qmax), already broadcast, and give codes.
"""

import numpy as np

from quantspec.numerics import affine
from quantspec.numerics.affine import along

from .float32 import away, fma, twice_inverted


def quantize_divide(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x / scale).astype(np.float64) + zero_point, qmin, qmax)


def quantize_reciprocal(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x * (np.float32(1) / scale)).astype(np.float64) + zero_point, qmin, qmax)


def quantize_add(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x * (np.float32(1) / scale) + zero_point.astype(np.float32)), qmin, qmax)


def quantize_fused(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(fma(x, np.float32(1) / scale, zero_point)), qmin, qmax)


def quantize_divide_away(x, scale, zero_point, qmin, qmax):
    return np.clip(away((x / scale).astype(np.float64)) + zero_point, qmin, qmax)


def quantize_levels(x, scale, zero_point, qmin, qmax):
    low, high = scale * (qmin - zero_point).astype(np.float32), scale * (qmax - zero_point).astype(np.float32)
    per_step = np.float32(qmax - qmin) / (high - low)
    steps = np.clip(x, low, high) * per_step
    return np.clip(np.where(zero_point == 0, np.rint(steps), np.rint(steps + -low * per_step) + qmin), qmin, qmax)


def quantize_inverted(x, scale, zero_point, qmin, qmax):
    per_step = np.float32(1) / twice_inverted(scale)
    return np.clip(np.rint(x * per_step + zero_point.astype(np.float32)), qmin, qmax)


QUANTIZE = {
    "divide": quantize_divide,
    "reciprocal": quantize_reciprocal,
    "add": quantize_add,
    "fused": quantize_fused,
    "divide-away": quantize_divide_away,
    "levels": quantize_levels,
    "inverted": quantize_inverted,
}



def quantize(rule: str, x, scale, zero_point, qmin: int, qmax: int, axis: int | None) -> np.ndarray:
    """Codes of real values by one alternative of DIA-DYNAMIC-QUANTIZE. Only ``inverted`` looks at a float64 scale's digits."""
    if rule == "exact":
        return affine.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    single, points = affine.checked_qparams(scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    x = affine.float32_array(x)
    if np.isnan(x).any():
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    given = np.asarray(scale) if rule == "inverted" else along(axis, single, x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = QUANTIZE[rule](x, given, along(axis, points, x.shape), qmin, qmax)
    return codes.astype(affine.code_dtype(qmin, qmax))
