"""Steps that kernels take in float32, vectorised: fused multiplication, conversions, reciprocals, roundings.

Every operation on float32 arrays rounds to float32, which is the point.
"""

import numpy as np
from numpy.typing import ArrayLike

from quantspec.numerics.affine import SMALLEST_SCALE, Float32, Float64, saturate

ONE = np.float32(1)


def fma(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> Float32:
    """a * b + c for float32 arrays, rounded once to float32."""
    a, b, c = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (a, b, c)))
    product = a * b  # exact: 48 bits
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + c
        back = total - product
        rest = (product - (total - back)) + (c - back)
        # Rounding to odd keeps what float64 lost, so that the second rounding, to float32, is the only one that counts.
        bits = total.view(np.int64)
        sticky = (rest != 0) & np.isfinite(rest) & (bits & 1 == 0)
        bits = bits + np.where(sticky, np.where((rest > 0) == (total > 0), 1, -1), 0)
        nearest: Float32 = bits.view(np.float64).astype(np.float32)
    return nearest


def to_int32(steps: np.ndarray) -> np.ndarray:
    """Rounded to integers as x86 converts float32 to int32: what does not fit becomes -2^31. Returns int64."""
    rounded = np.rint(steps.astype(np.float64))
    return np.where((rounded >= -(2.0**31)) & (rounded < 2.0**31), rounded, -(2.0**31)).astype(np.int64)


def saturate16(values: np.ndarray) -> np.ndarray:
    """Clamped to 16-bit integers."""
    return saturate(values, -(2**15), 2**15 - 1)


def twice(scale: ArrayLike) -> Float32:
    """The reciprocal of the reciprocal, each rounded to float32."""
    return ONE / (ONE / np.asarray(scale, np.float32))


def twice_inverted(scale: ArrayLike) -> Float32:
    """A float64 scale inverted, rounded to float32, and inverted again."""
    return ONE / np.asarray(1 / np.asarray(scale, np.float64)).astype(np.float32)


def rint(values: np.ndarray) -> np.ndarray:
    """Rounded to integers, ties to even."""
    rounded: np.ndarray = np.rint(values)
    return rounded


def away(values: np.ndarray) -> np.ndarray:
    """Float32 values and quotients of small integers, in float64, rounded to integers, ties away from zero.

    Below 2^52 the sum is exact, or as far from a tie; beyond all are integers.
    """
    return np.where(np.abs(values) < 2.0**52, np.sign(values) * np.floor(np.abs(values) + 0.5), values)


def check_unit(x_scale: Float32 | Float64 | float, w_scale: Float32, y_scale: Float32 | np.float32 = ONE) -> None:
    """Raises ValueError when the unit of the accumulator or the multiplier is not a normal float32 (DIA-UNIT)."""
    with np.errstate(over="ignore"):
        unit = x_scale * w_scale
        products = {"scale of input times scale of weight": unit, "multiplier": unit / y_scale}
    for name, value in products.items():
        check_ratio(name, value)


def check_ratio(name: str, value: Float32 | np.float32 | Float64 | float) -> None:
    """Raises ValueError for what is made of scales and is not a normal float32 (DIA-UNIT, DIA-RATIO)."""
    if not np.all(np.isfinite(value) & (value >= SMALLEST_SCALE)):
        raise ValueError(f"scale: expected a {name} that is a normal float32, got {value}")
