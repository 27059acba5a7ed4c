"""Dialects that requantize in integers or in float64 (chapter 10, DIA-REQUANTIZE), vectorised.

Rules take (accumulator without bias [..., outputs], bias, s_x, s_w, y, lowest) and give codes, as in ``requantize``.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from quantspec.numerics import integer
from quantspec.numerics.affine import Float32, QParams, saturate

Requantize = Callable[[np.ndarray, Float32, Float32, Float32, QParams, int], np.ndarray]
Rounded = Callable[[np.ndarray, int, int], np.ndarray]  # accumulators in output steps: (total, m, n), by INT-FIXED
Shift = Callable[[np.ndarray, int], np.ndarray]  # integers over a power of two, rounded


def requantize_double_inside(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    return saturate(np.rint(total * (s_x * s_w / y.scale).astype(np.float64) + y.zero_point), lowest, y.qmax)


def requantize_fixed_one(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    def rounded(total: np.ndarray, m: int, n: int) -> np.ndarray:
        return integer.requantize_fixed(total, m, n, y, roundings=1)

    return fixed(accumulator, bias, s_x, s_w, y, lowest, rounded)


def requantize_fixed_two(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    def rounded(total: np.ndarray, m: int, n: int) -> np.ndarray:
        return two_roundings(total, m, n, away_shift) + y.zero_point

    return fixed(accumulator, bias, s_x, s_w, y, lowest, rounded)


def requantize_fixed_two_up(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    def rounded(total: np.ndarray, m: int, n: int) -> np.ndarray:
        return two_roundings(total, m, n, up_shift) + y.zero_point

    return fixed(accumulator, bias, s_x, s_w, y, lowest, rounded)


def fixed(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int, rounded: Rounded
) -> np.ndarray:
    """Codes by ``rounded(total, m, n)`` for each output with its own multiplier (INT-FIXED)."""
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    codes = np.empty(total.shape, np.int64)
    for j, scale in enumerate(np.broadcast_to(s_w, total.shape[-1:])):
        m, n = integer.fixed_point(Fraction(float(s_x)) * Fraction(float(scale)) / Fraction(float(y.scale)))
        codes[..., j] = rounded(total[..., j], m, n)
    return saturate(codes, lowest, y.qmax)


def two_roundings(total: np.ndarray, m: int, n: int, shift: Shift) -> np.ndarray:
    """total * m * 2^-(31 + n) rounded after the multiplication, half-way cases up, and again by ``shift``.

    Beyond 31 nothing is left of it, and what does not fit into 32 bits may come out as anything beyond 2^30.
    """
    if n > 31:
        return np.zeros_like(total)
    shifted = np.clip(total, -(2**31), 2**31 - 1) << min(max(-n, 0), 31)
    high = (np.clip(shifted, -(2**31), 2**31) * m + 2**30) >> 31
    return shift(high, max(n, 0))


def away_shift(high: np.ndarray, n: int) -> np.ndarray:
    shifted: np.ndarray = np.sign(high) * ((np.abs(high) + (2**n >> 1)) >> n)
    return shifted


def up_shift(high: np.ndarray, n: int) -> np.ndarray:
    shifted: np.ndarray = (high + (2**n >> 1)) >> n
    return shifted
