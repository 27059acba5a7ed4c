"""How an accumulator becomes a code (DIA-REQUANTIZE), vectorised: exactly and in float32; ``fixed_point`` has the rest.

Rules take (accumulator without bias [..., outputs], bias, s_x, s_w, y, lowest) and give codes.
"""

import numpy as np

from quantspec.numerics import integer

from .fixed_point import (
    requantize_double_inside,
    requantize_fixed_one,
    requantize_fixed_two,
    requantize_fixed_two_up,
)
from .float32 import fma, saturate16, to_int32, twice


def requantize_exact(accumulator, bias, s_x, s_w, y, lowest):
    codes = integer.requantize(accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64), s_x, s_w, y)
    return np.maximum(codes, codes.dtype.type(lowest))


def requantize_integer_bias(accumulator, bias, s_x, s_w, y, lowest):
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    steps = np.rint(total.astype(np.float32) * (s_x * s_w / y.scale))
    return np.clip(steps.astype(np.float64) + y.zero_point, lowest, y.qmax)


def requantize_integer_bias_reciprocal(accumulator, bias, s_x, s_w, y, lowest):
    unit = s_w * s_x
    total = accumulator + bias_codes_reciprocal(bias, unit)
    steps = total.astype(np.float32) * (unit * (np.float32(1) / y.scale))
    return np.clip(saturate16(saturate16(to_int32(steps)) + y.zero_point), lowest, y.qmax)


def bias_codes_reciprocal(bias, unit) -> np.ndarray:
    """Bias codes with the reciprocal of the unit in float32, as int64."""
    codes = np.rint((bias * (np.float32(1) / unit)).astype(np.float64))
    return np.clip(codes, -(2.0**31), 2.0**31 - 1).astype(np.int64)


def requantize_float_bias(accumulator, bias, s_x, s_w, y, lowest):
    unit = s_x * s_w
    if unit.ndim:
        total = accumulator.astype(np.float32) + bias / unit
    else:
        total = fma(bias, np.float32(1) / unit, accumulator.astype(np.float32))
    steps = total * (unit / y.scale)
    return np.clip(saturate16(saturate16(to_int32(steps)) + y.zero_point), lowest, y.qmax)


def requantize_real_in_turn(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * twice(s_x) * twice(s_w) + bias, y, lowest)


def requantize_real_product(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * (twice(s_x) * twice(s_w)) + bias, y, lowest)


def quantize_real(value, y, lowest):
    return np.clip(np.rint(value * (np.float32(1) / twice(y.scale)) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_weight_once(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * twice(s_x) * s_w + bias, y, lowest)


def requantize_real_weight_once_product(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * (twice(s_x) * s_w) + bias, y, lowest)


def requantize_real_plain(accumulator, bias, s_x, s_w, y, lowest):
    value = accumulator.astype(np.float32) * s_x * s_w + bias
    return np.clip(np.rint(value * (np.float32(1) / y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_plain_product(accumulator, bias, s_x, s_w, y, lowest):
    value = accumulator.astype(np.float32) * (s_x * s_w) + bias
    return np.clip(np.rint(value * (np.float32(1) / y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_divided(accumulator, bias, s_x, s_w, y, lowest):
    value = accumulator.astype(np.float32) * s_x * s_w + bias
    return np.clip(np.rint(value / y.scale + y.zero_point.astype(np.float32)), lowest, y.qmax)


REQUANTIZE = {
    "exact": requantize_exact,
    "integer-bias": requantize_integer_bias,
    "integer-bias-reciprocal": requantize_integer_bias_reciprocal,
    "float-bias": requantize_float_bias,
    "real-in-turn": requantize_real_in_turn,
    "real-product": requantize_real_product,
    "real-weight-once": requantize_real_weight_once,
    "real-weight-once-product": requantize_real_weight_once_product,
    "real-plain": requantize_real_plain,
    "real-plain-product": requantize_real_plain_product,
    "real-divided": requantize_real_divided,
    "double-inside": requantize_double_inside,
    "fixed-one": requantize_fixed_one,
    "fixed-two": requantize_fixed_two,
    "fixed-two-up": requantize_fixed_two_up,
}

# The alternatives whose bias is the integer of chapter 3.
INTEGER_BIAS = ("exact", "integer-bias", "double-inside", "fixed-one", "fixed-two", "fixed-two-up")
