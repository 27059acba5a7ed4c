"""The error bound of a layer, signal and noise, and how much a network's accuracy can have dropped (chapter 9)."""

import math

import numpy as np
from numpy.typing import ArrayLike

from .affine import Float64, QParams


def layer_bound(
    x: ArrayLike, weight: ArrayLike, x_scale: ArrayLike, w_scale: ArrayLike, y_scale: ArrayLike
) -> np.ndarray:
    """How far each real output [rows, outputs] of a quantized linear layer may be from the float layer's (ACC-LAYER).

    ``x``: real inputs [rows, inputs]; ``weight``: real weights [outputs, inputs]; ``w_scale``: () or (outputs,). Holds
    where inputs, weights and outputs lie within the ranges of their grids.
    """
    x, weight = np.abs(np.asarray(x, np.float64)), np.abs(np.asarray(weight, np.float64))
    s_x, s_w, s_y = (np.asarray(s, np.float64) for s in (x_scale, w_scale, y_scale))
    inputs = weight.shape[1]
    terms: Float64 = x.sum(axis=1, keepdims=True) * s_w / 2 + weight.sum(axis=1) * s_x / 2 + inputs * s_x * s_w / 4
    return terms + s_x * s_w / 2 + s_y / 2


def inside(values: ArrayLike, grid: QParams) -> np.ndarray:
    """Whether real values lie within the range of a per-tensor grid."""
    low, high = (float(grid.scale) * (end - int(grid.zero_point)) for end in (grid.qmin, grid.qmax))
    return (np.asarray(values) >= low) & (np.asarray(values) <= high)


def upper_bound(k: int, n: int, confidence: float = 0.99) -> float:
    """The upper confidence bound of a share of which ``k`` of ``n`` were seen (ACC-UPPER; Clopper and Pearson 1934).

    Raises ValueError unless 0 <= k <= n, n > 0, and the confidence is between 0 and 1.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"k: expected 0 to n, and n above 0, got {k} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected between 0 and 1, got {confidence}")
    low, high = k / n, 1.0
    while high - low > 2.0**-32:
        middle = (low + high) / 2
        low, high = (low, middle) if at_most(k, n, middle) < 1 - confidence else (middle, high)
    return high


def at_most(k: int, n: int, p: float) -> float:
    """The probability of at most k of n independent events of probability p, from 0 to 1 without the ends."""
    events = np.arange(k + 1)
    # Logarithms, as of many events there are more combinations than a float64 can count.
    combinations = np.concatenate([[0.0], np.log((n - events[:-1]) / events[1:]).cumsum()])
    return float(np.exp(combinations + events * math.log(p) + (n - events) * math.log1p(-p)).sum())


def disagreement(
    float_predictions: ArrayLike, int8_predictions: ArrayLike, *, confidence: float = 0.99
) -> tuple[int, float]:
    """How many predictions differ, and the upper confidence bound of the share that does (ACC-DROP, ACC-UPPER).

    Both are arrays of classes of one shape (n,). Raises ValueError for others, and for none.
    """
    a, b = np.asarray(float_predictions), np.asarray(int8_predictions)
    if a.shape != b.shape or a.ndim != 1:
        shapes = f"{a.shape} and {b.shape}"
        raise ValueError(f"float_predictions, int8_predictions: expected one shape (n,), got {shapes}")
    k = int((a != b).sum())
    return k, upper_bound(k, len(a), confidence)


def sqnr(reference: ArrayLike, values: ArrayLike) -> float:
    """The signal-to-quantization-noise ratio of values beside float ones, in dB (ACC-SQNR).

    Infinite where they are equal. Raises ValueError for other shapes.
    """
    f, y = np.asarray(reference, np.float64), np.asarray(values)
    if f.shape != y.shape:
        raise ValueError(f"reference, values: expected one shape, got {f.shape} and {y.shape}")
    return decibels(float((f**2).sum()), float(((f - y) ** 2).sum()))


def decibels(signal: float, noise: float) -> float:
    """10 * log10(signal / noise) of sums of squares; infinite without noise, minus infinite without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
