"""How an accumulator becomes a code (DIA-REQUANTIZE), vectorised: exactly and in float32; ``fixed_point`` has the rest.

Rules take (accumulator without bias [..., outputs], bias, s_x, s_w, y, lowest) and give codes.
"""

import numpy as np

from quantspec.numerics import integer
from quantspec.numerics.affine import Float32, QParams, saturate

from .fixed_point import (
    Requantize,
    requantize_double_inside,
    requantize_fixed_one,
    requantize_fixed_two,
    requantize_fixed_two_up,
)
from .float32 import ONE, fma, saturate16, to_int32, twice


def requantize_exact(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    codes = integer.requantize(accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64), s_x, s_w, y)
    clamped: np.ndarray = np.maximum(codes, lowest)
    return clamped


def requantize_integer_bias(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    steps = np.rint(total.astype(np.float32) * (s_x * s_w / y.scale))
    return saturate(steps.astype(np.float64) + y.zero_point, lowest, y.qmax)


def requantize_integer_bias_reciprocal(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    unit = s_w * s_x
    total = accumulator + bias_codes_reciprocal(bias, unit)
    steps = total.astype(np.float32) * (unit * (ONE / y.scale))
    return saturate(saturate16(saturate16(to_int32(steps)) + y.zero_point), lowest, y.qmax)


def bias_codes_reciprocal(bias: Float32, unit: Float32) -> np.ndarray:
    """Bias codes with the reciprocal of the unit in float32, as int64."""
    codes = np.rint((bias * (ONE / unit)).astype(np.float64))
    return np.clip(codes, -(2.0**31), 2.0**31 - 1).astype(np.int64)


def requantize_float_bias(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    unit = s_x * s_w
    if unit.ndim:
        total = accumulator.astype(np.float32) + bias / unit
    else:
        total = fma(bias, ONE / unit, accumulator.astype(np.float32))
    steps = total * (unit / y.scale)
    return saturate(saturate16(saturate16(to_int32(steps)) + y.zero_point), lowest, y.qmax)


def requantize_real_in_turn(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    return quantize_real(accumulator.astype(np.float32) * twice(s_x) * twice(s_w) + bias, y, lowest)


def requantize_real_in_turn_divided(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    value = accumulator.astype(np.float32) * twice(s_x) * twice(s_w) + bias
    return saturate(np.rint(value / twice(y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_product(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    return quantize_real(accumulator.astype(np.float32) * (twice(s_x) * twice(s_w)) + bias, y, lowest)


def quantize_real(value: Float32, y: QParams, lowest: int) -> np.ndarray:
    return saturate(np.rint(value * (ONE / twice(y.scale)) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_weight_once(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    return quantize_real(accumulator.astype(np.float32) * twice(s_x) * s_w + bias, y, lowest)


def requantize_real_weight_once_product(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    return quantize_real(accumulator.astype(np.float32) * (twice(s_x) * s_w) + bias, y, lowest)


def requantize_real_plain(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    value = accumulator.astype(np.float32) * s_x * s_w + bias
    return saturate(np.rint(value * (ONE / y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_plain_product(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    value = accumulator.astype(np.float32) * (s_x * s_w) + bias
    return saturate(np.rint(value * (ONE / y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_divided(
    accumulator: np.ndarray, bias: Float32, s_x: Float32, s_w: Float32, y: QParams, lowest: int
) -> np.ndarray:
    value = accumulator.astype(np.float32) * s_x * s_w + bias
    return saturate(np.rint(value / y.scale + y.zero_point.astype(np.float32)), lowest, y.qmax)


REQUANTIZE: dict[str, Requantize] = {
    "exact": requantize_exact,
    "integer-bias": requantize_integer_bias,
    "integer-bias-reciprocal": requantize_integer_bias_reciprocal,
    "float-bias": requantize_float_bias,
    "real-in-turn": requantize_real_in_turn,
    "real-in-turn-divided": requantize_real_in_turn_divided,
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
