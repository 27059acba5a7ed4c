"""Linear layers whose weights alone are codes (DYN-WEIGHT-ONLY): sums of floats times codes, exact, rounded once."""

from fractions import Fraction
from math import fsum

import numpy as np

from .affine import Float32, QParams, nearest_float32

OUTPUTS = 512  # at a time, whose weights are there in float64
UNIT = 2.0**-53  # of rounding, relative


def linear(x: Float32, w_q: np.ndarray, w: QParams, bias: Float32 | None) -> Float32:
    """Outputs [rows, outputs] of inputs [rows, inputs] and codes [outputs, inputs].

    What is no finite number goes through as float arithmetic says.
    """
    rows, inputs, outputs = len(x), w_q.shape[1], len(w_q)
    scale, point = (np.broadcast_to(values, outputs) for values in (w.scale, w.zero_point))
    start = np.zeros(outputs, np.float32) if bias is None else bias
    wide, result = x.astype(np.float64), np.empty((rows, outputs), np.float32)
    # A product of 24 and 9 bits is exact in float64; a sum, in whatever order, is off by less than this.
    slack = 1.01 * inputs * UNIT * 256 * np.abs(wide).sum(1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, outputs, OUTPUTS):
            part = slice(first, first + OUTPUTS)
            codes = w_q[part].astype(np.float64) - point[part, None]
            unit = scale[part].astype(np.float64)
            product = wide @ codes.T * unit
            real = product + start[part]
            off = slack * unit + 4 * UNIT * (np.abs(product) + np.abs(real))
            result[:, part] = real.astype(np.float32)
            doubtful = np.isfinite(off) & ((real - off).astype(np.float32) != (real + off).astype(np.float32))
            for row, output in zip(*np.nonzero(doubtful)):
                value = exact_sum(wide[row] * codes[output]) * Fraction(float(unit[output]))
                result[row, first + output] = nearest_float32(value + Fraction(float(start[first + output])))
    return result


def exact_sum(terms: np.ndarray) -> Fraction:
    """The sum of float64 values."""
    rest, total = terms.tolist(), Fraction(0)
    while part := fsum(rest):  # what is left beside it is 2^-53 of it at most
        total += Fraction(part)
        rest.append(-part)
    return total
