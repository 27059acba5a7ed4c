"""Dialects that requantize in integers or in float64 (chapter 10, DIA-REQUANTIZE), vectorised.

Rules take (accumulator without bias [..., outputs], bias, s_x, s_w, y, lowest) and give codes, as those in ``requantize`` do.
"""

from fractions import Fraction

import numpy as np

from quantspec.numerics import integer


def requantize_double_inside(accumulator, bias, s_x, s_w, y, lowest):
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    return np.clip(np.rint(total * (s_x * s_w / y.scale).astype(np.float64) + y.zero_point), lowest, y.qmax)


def requantize_fixed_one(accumulator, bias, s_x, s_w, y, lowest):
    return fixed(accumulator, bias, s_x, s_w, y, lowest, lambda total, m, n: integer.requantize_fixed(total, m, n, y, roundings=1))


def requantize_fixed_two(accumulator, bias, s_x, s_w, y, lowest):
    return fixed(accumulator, bias, s_x, s_w, y, lowest, lambda total, m, n: two_roundings(total, m, n, away_shift) + y.zero_point)


def requantize_fixed_two_up(accumulator, bias, s_x, s_w, y, lowest):
    return fixed(accumulator, bias, s_x, s_w, y, lowest, lambda total, m, n: two_roundings(total, m, n, up_shift) + y.zero_point)


def fixed(accumulator, bias, s_x, s_w, y, lowest, rounded):
    """Codes by ``rounded(total, m, n)`` for each output with its own multiplier (INT-FIXED)."""
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    codes = np.empty(total.shape, np.int64)
    for j, scale in enumerate(np.broadcast_to(s_w, total.shape[-1:])):
        m, n = integer.fixed_point(Fraction(float(s_x)) * Fraction(float(scale)) / Fraction(float(y.scale)))
        codes[..., j] = rounded(total[..., j], m, n)
    return np.clip(codes, lowest, y.qmax)


def two_roundings(total, m: int, n: int, shift) -> np.ndarray:
    """total * m * 2^-(31 + n) rounded after the multiplication, half-way cases up, and again by ``shift``; beyond 31 nothing is left of it."""
    if n > 31:
        return np.zeros_like(total)
    high = ((np.clip(total, -(2**31), 2**31 - 1) << max(-n, 0)) * m + 2**30) >> 31
    return shift(high, max(n, 0))


def away_shift(high, n: int):
    return np.sign(high) * ((np.abs(high) + (2**n >> 1)) >> n)


def up_shift(high, n: int):
    return (high + (2**n >> 1)) >> n
