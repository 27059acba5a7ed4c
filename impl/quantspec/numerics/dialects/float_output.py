"""How an accumulator becomes a float32 (DIA-DYNAMIC), vectorised.

Rules take (accumulator [rows, outputs], bias, s_x, s_w) and give float32 values.
"""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

from quantspec.numerics import affine
from quantspec.numerics.affine import Float32

from .float32 import fma, twice, twice_inverted
from .qparams import Scale


def output_exact(accumulator: np.ndarray, bias: Float32, s_x: Scale, s_w: Float32) -> Float32:
    unit = np.float64(np.float32(s_x)) * s_w.astype(np.float64)  # exact: 48 bits
    real = accumulator * unit + bias
    nearest = real.astype(np.float32)
    # The float64 value is off by two roundings. Where the float32 depends on them, exact numbers decide.
    slack = (np.abs(accumulator * unit) + np.abs(real)) * 2.0**-52
    doubtful = (real - slack).astype(np.float32) != (real + slack).astype(np.float32)
    units, biases = np.broadcast_to(unit, real.shape), np.broadcast_to(bias, real.shape)
    for index in zip(*np.nonzero(doubtful)):
        exact = int(accumulator[index]) * Fraction(float(units[index])) + Fraction(float(biases[index]))
        nearest[index] = affine.nearest_float32(exact)
    return nearest


def output_fused(accumulator: np.ndarray, bias: Float32, s_x: Scale, s_w: Float32) -> Float32:
    return fma(accumulator.astype(np.float32), np.float32(s_x) * s_w, bias)


def output_multiply_add(accumulator: np.ndarray, bias: Float32, s_x: Scale, s_w: Float32) -> Float32:
    return accumulator.astype(np.float32) * (np.float32(s_x) * s_w) + bias


def output_in_turn(accumulator: np.ndarray, bias: Float32, s_x: Scale, s_w: Float32) -> Float32:
    return accumulator.astype(np.float32) * twice_inverted(s_x) * twice(s_w) + bias


def output_product(accumulator: np.ndarray, bias: Float32, s_x: Scale, s_w: Float32) -> Float32:
    return accumulator.astype(np.float32) * (twice_inverted(s_x) * twice(s_w)) + bias


OUTPUT: dict[str, Callable[[np.ndarray, Float32, Scale, Float32], Float32]] = {
    "exact": output_exact,
    "fused": output_fused,
    "multiply-add": output_multiply_add,
    "in-turn": output_in_turn,
    "product": output_product,
}
