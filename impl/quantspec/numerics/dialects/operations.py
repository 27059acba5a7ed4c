"""Dialects of operations from codes to codes, vectorised: adding, multiplying, joining, averaging; and of folding batch
normalization (chapter 10).

Each rule equals the chapter's definition of the same name in every code. Functions take a ``Dialect`` and arguments as
``integer`` does.
"""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from quantspec.numerics import folding, integer, windows
from quantspec.numerics.affine import Float32, Float64, QParams, saturate
from quantspec.numerics.integer import Pair, checked_codes, pair
from quantspec.numerics.windows import Counts

from .dialect import Dialect
from .fixed_point import away_shift, two_roundings, up_shift
from .float32 import ONE, away, check_ratio, fma, rint
from .quantize import quantize

# --- DIA-ADD: (a_q, a, b_q, b, y) to codes that are not yet clamped


def add_real(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    steps = (dequantize_fused(a_q, a) + dequantize_fused(b_q, b)) * (ONE / y.scale)
    return rint(steps).astype(np.float64) + y.zero_point


def dequantize_fused(q: np.ndarray, grid: QParams) -> Float32:
    return fma(q, grid.scale, grid.scale * -grid.zero_point.astype(np.float32))


def add_real_inside(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    real = centred(a_q, a) * a.scale + centred(b_q, b) * b.scale
    return rint(real * (ONE / y.scale) + y.zero_point.astype(np.float32))


def add_real_outside(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    real = centred(a_q, a) * a.scale + centred(b_q, b) * b.scale
    return rint(real * (ONE / y.scale)).astype(np.float64) + y.zero_point


def centred(q: np.ndarray, grid: QParams) -> Float32:
    """q - zero_point as float32, exact."""
    return q.astype(np.float32) - grid.zero_point.astype(np.float32)


def add_ratios(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    r_a, r_b = a.scale / y.scale, b.scale / y.scale
    z_a, z_b, z_y = (g.zero_point.astype(np.float32) for g in (a, b, y))
    start = z_y - fma(r_a, z_a, r_b * z_b)
    return rint(fma(a_q, r_a, fma(b_q, r_b, start)))


def add_fixed(
    a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, bits: int
) -> tuple[np.ndarray, int]:
    """The sum in units of 2^-shift output steps, int64, and that shift, from 0 to 62 (DIA-RATIO)."""
    r_a, r_b = a.scale / y.scale, b.scale / y.scale
    check_ratio("ratio of an input's scale to the output's", max(r_a, r_b))
    shift = bits - int(np.floor(np.log2(float(max(r_a, r_b)))))
    m_a, m_b = (int(np.rint(np.float64(r) * 2.0**shift)) for r in (r_a, r_b))
    total = m_a * (a_q.astype(np.int64) - a.zero_point) + m_b * (b_q.astype(np.int64) - b.zero_point)
    # The sum has 31 bits: further to the left it saturates anyway, further to the right nothing is left of it.
    return total << min(max(-shift, 0), 31), min(max(shift, 0), 62)


def add_fixed_away(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    total, shift = add_fixed(a_q, a, b_q, b, y, 21)
    return away_shift(total, shift) + y.zero_point


def add_fixed_up(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    total, shift = add_fixed(a_q, a, b_q, b, y, 20)
    return up_shift(total, shift) + y.zero_point


def add_shifted(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    s_a, s_b, s_y = (Fraction(float(g.scale)) for g in (a, b, y))
    widest = 2 * max(s_a, s_b)
    terms = [
        two_roundings((q.astype(np.int64) - g.zero_point) << 20, *integer.fixed_point(s / widest), away_shift)
        for q, g, s in ((a_q, a, s_a), (b_q, b, s_b))
    ]
    return two_roundings(terms[0] + terms[1], *integer.fixed_point(widest / (s_y * 2**20)), away_shift) + y.zero_point


Combine = Callable[[np.ndarray, QParams, np.ndarray, QParams, QParams], np.ndarray]
ADD: dict[str, Combine] = {
    "real": add_real,
    "real-inside": add_real_inside,
    "real-outside": add_real_outside,
    "ratios": add_ratios,
    "fixed-away": add_fixed_away,
    "fixed-up": add_fixed_up,
    "shifted": add_shifted,
}

# --- DIA-MUL: the same


def mul_outside(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    steps = products(a_q, a, b_q, b).astype(np.float32) * (a.scale * b.scale / y.scale)
    return rint(steps).astype(np.float64) + y.zero_point


def products(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams) -> np.ndarray:
    """(a_q - z_a) * (b_q - z_b) as int64."""
    return (a_q.astype(np.int64) - a.zero_point) * (b_q.astype(np.int64) - b.zero_point)


def mul_reciprocal(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    steps = products(a_q, a, b_q, b).astype(np.float32) * (a.scale * b.scale * (ONE / y.scale))
    return rint(steps).astype(np.float64) + y.zero_point


def mul_inside(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    steps = products(a_q, a, b_q, b).astype(np.float32) * (a.scale * b.scale / y.scale)
    return rint(steps + y.zero_point.astype(np.float32))


def mul_fixed_two(a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
    ratio = a.scale * b.scale / y.scale
    check_ratio("product of the inputs' scales over the output's", ratio)
    m, n = integer.fixed_point(Fraction(float(ratio)))
    return two_roundings(products(a_q, a, b_q, b), m, n, away_shift) + y.zero_point


MUL: dict[str, Combine] = {
    "outside": mul_outside,
    "reciprocal": mul_reciprocal,
    "inside": mul_inside,
    "fixed-two": mul_fixed_two,
}

# --- DIA-RESCALE: (q, x, y, quantize rule) to codes


def rescale_quantize(q: np.ndarray, x: QParams, y: QParams, rule: str) -> np.ndarray:
    return quantize(rule, centred(q, x) * x.scale, y.scale, y.zero_point, y.qmin, y.qmax, None)


def rescale_ratio_away(q: np.ndarray, x: QParams, y: QParams, rule: str) -> np.ndarray:
    ratio = x.scale * (ONE / y.scale)
    steps = q.astype(np.float32) * ratio + -x.zero_point.astype(np.float32) * ratio
    return saturate(away(steps.astype(np.float64)) + y.zero_point, y.qmin, y.qmax).astype(y.dtype)


RESCALE: dict[str, Callable[[np.ndarray, QParams, QParams, str], np.ndarray]] = {
    "quantize": rescale_quantize,
    "ratio-away": rescale_ratio_away,
}

# --- DIA-AVERAGE: (sums of q - z as float64 integers, positions, grid) to codes that are not yet clamped


def average_inside(total: Float64, positions: Float64, grid: QParams) -> np.ndarray:
    return rint(total.astype(np.float32) * (ONE / positions.astype(np.float32)) + grid.zero_point.astype(np.float32))


def average_outside(total: Float64, positions: Float64, grid: QParams) -> np.ndarray:
    return rint(total.astype(np.float32) * (ONE / positions.astype(np.float32))).astype(np.float64) + grid.zero_point


def average_codes(total: Float64, positions: Float64, grid: QParams) -> np.ndarray:
    codes = total + positions * grid.zero_point.astype(np.int64)
    return rint(codes.astype(np.float32) * (ONE / positions.astype(np.float32)))


def average_ratio(total: Float64, positions: Float64, grid: QParams) -> np.ndarray:
    ratio = grid.scale / (grid.scale * positions.astype(np.float32))
    return rint(total.astype(np.float32) * ratio).astype(np.float64) + grid.zero_point


def average_codes_away(total: Float64, positions: Float64, grid: QParams) -> np.ndarray:
    # The quotient of small integers is a tie or misses one by far more than float64's rounding.
    return away(total / positions + grid.zero_point)


def average_fixed_two(total: Float64, positions: Float64, grid: QParams) -> np.ndarray:
    result = np.empty(total.shape, np.int64)
    for count in np.unique(positions):
        # The multiplier of 1, divided by the number of positions and cut off, keeping as many bits as it had.
        shift = int(count).bit_length() - 1
        m = 2 ** (30 + shift) // int(count)
        here = positions == count
        result[here] = two_roundings(total[here].astype(np.int64), m, shift - 1, away_shift)
    return result + grid.zero_point


AVERAGE: dict[str, Callable[[Float64, Float64, QParams], np.ndarray]] = {
    "inside": average_inside,
    "outside": average_outside,
    "codes": average_codes,
    "ratio": average_ratio,
    "codes-away": average_codes_away,
    "fixed-two": average_fixed_two,
}


def add(
    rules: Dialect, a_q: ArrayLike, a: QParams, b_q: ArrayLike, b: QParams, y: QParams, *, relu: bool = False
) -> np.ndarray:
    """Codes of a sum by DIA-ADD; arguments and errors as ``integer.add``."""
    if rules.add_rule == "exact":
        return integer.add(a_q, a, b_q, b, y, relu=relu)
    a_q, b_q = same_shape(a_q, b_q)
    with np.errstate(over="ignore"):
        codes = ADD[rules.add_rule](a_q, a, b_q, b, y)
    return saturate(codes, int(y.zero_point) if relu else y.qmin, y.qmax).astype(y.dtype)


def mul(
    rules: Dialect, a_q: ArrayLike, a: QParams, b_q: ArrayLike, b: QParams, y: QParams
) -> np.ndarray:
    """Codes of a product, element by element, by DIA-MUL; arguments and errors as ``integer.add``."""
    if rules.mul_rule == "exact":
        return integer.mul(a_q, a, b_q, b, y)
    a_q, b_q = same_shape(a_q, b_q)
    with np.errstate(over="ignore"):
        codes = MUL[rules.mul_rule](a_q, a, b_q, b, y)
    return saturate(codes, y.qmin, y.qmax).astype(y.dtype)


def same_shape(a_q: ArrayLike, b_q: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a_q, b_q = checked_codes(a_q, "a_q"), checked_codes(b_q, "b_q")
    if a_q.shape != b_q.shape:
        raise ValueError(f"a_q, b_q: expected one shape, got {a_q.shape} and {b_q.shape}")
    return a_q, b_q


def concat(
    rules: Dialect, parts: Sequence[tuple[np.ndarray, QParams]], y: QParams, *, axis: int
) -> np.ndarray:
    """Codes on one grid of arrays joined along an axis by DIA-RESCALE; arguments and errors as ``integer.concat``."""
    if rules.rescale_rule == "exact":
        return integer.concat(parts, y, axis=axis)
    if not parts:
        raise ValueError("parts: expected at least one array to join")
    return np.concatenate([rescale(rules, q, grid, y) for q, grid in parts], axis=axis)


def rescale(rules: Dialect, q: ArrayLike, x: QParams, y: QParams) -> np.ndarray:
    """Codes on grid ``y`` of codes on grid ``x``; those that are on it already stay (INT-CONCAT)."""
    q = checked_codes(q, "q")
    if (x.scale, x.zero_point) == (y.scale, y.zero_point):
        return q.copy()
    return RESCALE[rules.rescale_rule](q, x, y, rules.quantize_rule)


def avg_pool2d(
    rules: Dialect,
    q: ArrayLike,
    grid: QParams,
    *,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
) -> np.ndarray:
    """Codes of averages over windows by DIA-AVERAGE; arguments and errors as ``integer.avg_pool2d``."""
    return avg_pool(rules, q, grid, pair(kernel), pair(stride or kernel), pair(padding), False, count_include_pad)


def avg_pool(
    rules: Dialect,
    q: ArrayLike,
    grid: QParams,
    kernel: Counts,
    stride: Counts,
    padding: Counts,
    ceil_mode: bool,
    count_include_pad: bool,
) -> np.ndarray:
    """Codes of averages over windows of as many last axes as the kernel has, by DIA-AVERAGE.

    Errors as ``integer.window_sums``.
    """
    q = checked_codes(q, "q")
    total, positions = integer.window_sums(q, grid, kernel, stride, padding, ceil_mode, count_include_pad)
    if rules.average_rule == "exact":
        return integer.average(total, positions, grid)
    if rules.average_rule == "real":
        values = centred(q, grid) * grid.scale
        views = windows.views(values, kernel, stride, padding, (1,) * len(kernel), ceil_mode, np.float32(0))
        return average_real(views, positions, grid)
    return saturate(AVERAGE[rules.average_rule](total, positions, grid), grid.qmin, grid.qmax).astype(grid.dtype)


def average_real(values: Iterable[np.ndarray], positions: Float64, grid: QParams) -> np.ndarray:
    """Real values summed one after the other in float32, row by row, divided, and quantized.

    The zero point is added inside the rounding.
    """
    total = np.zeros(positions.shape, np.float32)
    for view in values:
        total = total + view
    steps = total / positions.astype(np.float32) / grid.scale + grid.zero_point.astype(np.float32)
    return saturate(rint(steps), grid.qmin, grid.qmax).astype(grid.dtype)


def adaptive_avg_pool2d(rules: Dialect, q: ArrayLike, grid: QParams, *, size: tuple[int, int]) -> np.ndarray:
    """Codes of averages over ``size`` windows that split the image as evenly as they can (``windows.part``).

    By the dialect's choice for means.
    """
    return adaptive_avg_pool(rules, q, grid, size)


def adaptive_avg_pool(rules: Dialect, q: ArrayLike, grid: QParams, size: tuple[int | None, ...]) -> np.ndarray:
    """The same over as many last axes as ``size`` has; None keeps an axis as it is."""
    q = checked_codes(q, "q")
    lengths = q.shape[q.ndim - len(size) :]
    counts = [length if n is None else n for n, length in zip(size, lengths)]
    result = np.empty((*q.shape[: q.ndim - len(size)], *counts), grid.dtype)
    axes = tuple(range(-len(size), 0))
    for place in np.ndindex(*counts):
        part = (slice(*windows.part(i, n, length)) for i, n, length in zip(place, counts, lengths))
        result[(..., *place)] = mean(rules, q[windows.last_axes(part)], grid, axes)
    return result


def mean(rules: Dialect, q: ArrayLike, grid: QParams, axes: tuple[int, ...], *, keepdim: bool = False) -> np.ndarray:
    """The average code over ``axes`` (INT-MEAN), by the dialect's choice for means; an axis that stays has length 1.

    Raises ValueError for no elements.
    """
    q = checked_codes(q, "q")
    total = (q.astype(np.float64) - grid.zero_point).sum(axes, keepdims=keepdim)
    count = np.prod([q.shape[axis] for axis in axes])
    if not count and total.size:
        raise ValueError(f"q: expected elements to average, got shape {q.shape} with axes {axes}")
    positions = np.full(total.shape, float(count))
    if rules.mean_rule == "exact":
        return integer.average(total, positions, grid)
    return saturate(AVERAGE[rules.mean_rule](total, positions, grid), grid.qmin, grid.qmax).astype(grid.dtype)


def fold_batch_norm(
    rules: Dialect,
    weight: Float32,
    bias: Float32 | None,
    gamma: Float32,
    beta: Float32,
    mean: Float32,
    var: Float32,
    eps: float,
) -> tuple[Float32, Float32]:
    """Weight and bias with the normalization folded in, by DIA-FOLD; errors as ``folding.fold_batch_norm``."""
    exact = folding.fold_batch_norm(weight, bias, gamma, beta, mean, var, eps)
    if rules.fold_rule == "exact":
        return exact
    weight, gamma, beta, mean, var = (np.asarray(v, np.float32) for v in (weight, gamma, beta, mean, var))
    bias = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
    inverse = ONE / np.sqrt(var + np.float32(eps))
    factor = gamma * inverse
    shift = (bias - mean) * factor if weight.ndim == 2 else (bias - mean) * inverse * gamma
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1)), shift + beta
