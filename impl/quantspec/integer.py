"""Integer arithmetic, vectorised: chapter 3 on whole NumPy arrays, equal to its definitions in every code."""

from fractions import Fraction

import numpy as np
import torch

from .affine import QParams, along, float32_array
from .errors import UnsupportedError

INT32_MAX = 2**31 - 1


def accumulate(x_q, x_zero_point, w_q, w_zero_point) -> np.ndarray:
    """Accumulators of a linear layer (INT-ACC): int32 [rows, outputs].

    ``x_q``: codes [rows, inputs]; ``w_q``: codes [outputs, inputs]; the zero points are codes, that of the weights () or (outputs,).
    Raises ValueError when the shapes do not fit. Overflow is excluded beforehand, by ``check_overflow``.
    """
    x_q, w_q = checked_codes(x_q, "x_q"), checked_codes(w_q, "w_q")
    if x_q.ndim != 2 or w_q.ndim != 2 or x_q.shape[1] != w_q.shape[1]:
        raise ValueError(f"x_q, w_q: expected [rows, inputs] and [outputs, inputs], got {x_q.shape} and {w_q.shape}")
    x = x_q.astype(np.float64) - x_zero_point
    w = w_q.astype(np.float64) - along(0, np.asarray(w_zero_point), w_q.shape)
    # float64 holds every partial sum exactly (up to 2^53), so its fast product is an exact integer product.
    return torch.mm(torch.from_numpy(x), torch.from_numpy(w).T).numpy().astype(np.int32)


def checked_codes(q, name: str) -> np.ndarray:
    """``q`` as an array; TypeError unless it holds 8-bit codes."""
    q = np.asarray(q)
    if q.dtype not in (np.uint8, np.int8):
        raise TypeError(f"{name}: expected uint8 or int8 codes, got {q.dtype}")
    return q


def check_overflow(x: QParams, w_q: np.ndarray, w: QParams, bias_q: np.ndarray) -> None:
    """Raises UnsupportedError when some input could overflow an int32 accumulator (INT-OVERFLOW).

    ``w_q``: codes [outputs, ...]; ``bias_q``: int32 [outputs].
    """
    step = max(int(x.zero_point) - x.qmin, x.qmax - int(x.zero_point))
    sizes = np.abs(w_q.astype(np.int64) - along(w.axis, w.zero_point, w_q.shape)).reshape(len(w_q), -1).sum(axis=1)
    worst = step * sizes + np.abs(bias_q.astype(np.int64))
    if worst.size and worst.max() > INT32_MAX:
        raise UnsupportedError(f"weight: the accumulator of output {worst.argmax()} can reach {worst.max()}, beyond int32")


def quantize_bias(bias, x_scale, w_scale) -> np.ndarray:
    """Bias codes int32 (outputs,) in units of x_scale * w_scale (INT-BIAS, INT-BIAS-SATURATE).

    ``bias``: float32 (outputs,); ``x_scale``: one; ``w_scale``: () or (outputs,).
    """
    bias = float32_array(bias, "bias")
    units = np.broadcast_to(np.asarray(x_scale, np.float64) * np.asarray(w_scale, np.float64), bias.shape)
    # The product of two float32 is exact in float64, the quotient need not be: fractions, one for each channel.
    codes = [round(Fraction(float(b)) / Fraction(float(u))) for b, u in zip(bias, units)]
    return np.array([min(max(c, -INT32_MAX), INT32_MAX) for c in codes], dtype=np.int32)


def requantize(accumulator, x_scale, w_scale, y: QParams, *, relu: bool = False) -> np.ndarray:
    """Output codes of accumulators that include their bias (INT-MULTIPLIER, INT-REQUANT, INT-RELU-LINEAR).

    ``accumulator``: integers [..., outputs]; ``w_scale``: () or (outputs,). Returns codes of the same shape.
    """
    accumulator = np.asarray(accumulator, dtype=np.int64)
    unit = np.asarray(x_scale, np.float64) * np.asarray(w_scale, np.float64)
    steps = accumulator * unit / np.float64(y.scale)
    rounded = np.rint(steps)
    # Two roundings to 53 bits leave a relative error below 2^-51. Where a tie lies that close, exact numbers decide.
    # Beyond 2^10 steps every code saturates, so that closeness does not matter there.
    doubtful = np.abs(np.abs(steps - rounded) - 0.5) <= np.abs(steps) * 2.0**-51
    doubtful &= np.abs(steps) < 2**10
    if doubtful.any():
        exact = Fraction(1) / Fraction(float(y.scale))
        units = np.broadcast_to(unit, accumulator.shape)
        for index in zip(*np.nonzero(doubtful)):
            rounded[index] = round(int(accumulator[index]) * Fraction(float(units[index])) * exact)
    lowest = int(y.zero_point) if relu else y.qmin
    return np.clip(rounded + y.zero_point, lowest, y.qmax).astype(y.dtype)


def linear(x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, relu: bool = False) -> np.ndarray:
    """Output codes [rows, outputs] of a linear layer (INT-LINEAR), with ``relu`` as a clamp at the zero point.

    ``x_q``: codes [rows, inputs]; ``w_q``: codes [outputs, inputs]; ``bias``: float32 (outputs,) or None (INT-NO-BIAS).
    Raises UnsupportedError when an accumulator could overflow (INT-OVERFLOW).
    """
    bias_q = np.zeros(len(w_q), np.int32) if bias is None else quantize_bias(bias, x.scale, w.scale)
    check_overflow(x, np.asarray(w_q), w, bias_q)
    accumulator = accumulate(x_q, x.zero_point, w_q, w.zero_point) + bias_q
    return requantize(accumulator, x.scale, w.scale, y, relu=relu)


def relu(q, zero_point) -> np.ndarray:
    """ReLU on codes: codes below the zero point become the zero point (INT-RELU). Same shape and dtype."""
    q = checked_codes(q, "q")
    return np.maximum(q, np.asarray(zero_point).astype(q.dtype))
