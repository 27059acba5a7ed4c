"""Integer arithmetic, vectorised: chapter 3 on whole NumPy arrays, equal to its definitions in every code."""

import functools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from quantspec.errors import UnsupportedError

from . import patches, windows
from .affine import Float64, Int32, QParams, along, float32_array, saturate
from .windows import Counts

Pair = int | Sequence[int]  # one number for both axes, or two
Index = tuple[int, ...]
INT32_MAX = 2**31 - 1
SURELY_SATURATED = 2**10  # steps from which on every code of one byte saturates, whatever the zero point
NEARLY_HALF = 0.5 - 2.0**-40
BLOCK = 2**17  # values of an array that are worked on at a time, where that takes several times their memory


def accumulate(
    x_q: np.ndarray, x_zero_point: np.ndarray | int, w_q: np.ndarray, w_zero_point: ArrayLike
) -> np.ndarray:
    """Accumulators of a linear layer (INT-ACC): int32 [rows, outputs].

    ``x_q``: codes [rows, inputs]; ``w_q``: codes [outputs, inputs]; the zero points are codes, the weights' () or
    (outputs,). Raises ValueError when the shapes do not fit. Overflow is excluded beforehand, by ``check_overflow``.
    """
    x_q, w_q = checked_codes(x_q, "x_q"), checked_codes(w_q, "w_q")
    if x_q.ndim != 2 or w_q.ndim != 2 or x_q.shape[1] != w_q.shape[1]:
        raise ValueError(f"x_q, w_q: expected [rows, inputs] and [outputs, inputs], got {x_q.shape} and {w_q.shape}")
    x = x_q.astype(np.float64) - x_zero_point
    w = w_q.astype(np.float64) - along(0, np.asarray(w_zero_point), w_q.shape)
    # float64 holds every partial sum exactly (up to 2^53), so its fast product is an exact integer product.
    return product(x, w.T).astype(np.int32)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product of integers in a float type that holds every partial sum of them.

    No operation on them is invalid or overflows. What a BLAS computes beside them and drops may be, and sets the flags
    that NumPy warns of; a NaN among the sums would be one when they are made integers.
    """
    with np.errstate(all="ignore"):
        sums: np.ndarray = a @ b
    return sums


def checked_codes(q: ArrayLike, name: str) -> np.ndarray:
    """``q`` as an array; TypeError unless it holds 8-bit codes."""
    q = np.asarray(q)
    if q.dtype not in (np.uint8, np.int8):
        raise TypeError(f"{name}: expected uint8 or int8 codes, got {q.dtype}")
    return q


def blocks_of_rows(array: np.ndarray) -> list[slice]:
    """The rows of an array in blocks, for what takes several times their memory."""
    rows = max(1, BLOCK * len(array) // max(1, array.size))
    return [slice(first, first + rows) for first in range(0, len(array), rows)]


def check_overflow(x: QParams, w_q: np.ndarray, w: QParams, bias_q: np.ndarray) -> None:
    """Raises UnsupportedError when some input could overflow an int32 accumulator (INT-OVERFLOW).

    ``w_q``: codes [outputs, ...]; ``bias_q``: int32 [outputs].
    """
    step = max(int(x.zero_point) - x.qmin, x.qmax - int(x.zero_point))
    points, sizes = along(w.axis, w.zero_point, w_q.shape), np.zeros(len(w_q), np.int64)
    for rows in blocks_of_rows(w_q):
        own = points[rows] if points.shape[:1] == sizes.shape else points
        sizes[rows] = np.abs(w_q[rows].astype(np.int64) - own).sum(axis=tuple(range(1, w_q.ndim)))
    worst = step * sizes + np.abs(bias_q.astype(np.int64))
    if worst.size and worst.max() > INT32_MAX:
        reached = f"the accumulator of output {worst.argmax()} can reach {worst.max()}"
        raise UnsupportedError(f"weight: {reached}, beyond int32")


def quantize_bias(bias: ArrayLike, x_scale: ArrayLike, w_scale: ArrayLike) -> Int32:
    """Bias codes int32 (outputs,) in units of x_scale * w_scale (INT-BIAS, INT-BIAS-SATURATE).

    ``bias``: float32 (outputs,); ``x_scale``: one; ``w_scale``: () or (outputs,).
    """
    bias = float32_array(bias, "bias")
    # The product of two float32 is exact in float64.
    units = np.broadcast_to(np.multiply(x_scale, w_scale, dtype=np.float64), bias.shape)
    steps = np.clip(bias / units, -INT32_MAX, INT32_MAX)
    codes: Float64 = np.rint(steps)
    # The quotient is rounded once, to the nearest of 53 bits, so that it can come to lie on a tie but not beyond one.
    for index in np.nonzero(np.abs(steps - codes) == 0.5)[0]:
        codes[index] = round(Fraction(float(bias[index])) / Fraction(float(units[index])))
    return codes.astype(np.int32)


def requantize(
    accumulator: ArrayLike, x_scale: ArrayLike, w_scale: ArrayLike, y: QParams, *, relu: bool = False
) -> np.ndarray:
    """Output codes of accumulators that include their bias (INT-MULTIPLIER, INT-REQUANT, INT-RELU-LINEAR).

    ``accumulator``: integers [..., outputs]; ``w_scale``: () or (outputs,). Returns codes of the same shape.
    """
    accumulator = np.asarray(accumulator)
    unit = np.multiply(x_scale, w_scale, dtype=np.float64)
    steps = accumulator * unit / np.float64(y.scale)
    units, scale = np.broadcast_to(unit, accumulator.shape), Fraction(float(y.scale))
    steps = rounded(steps, lambda index: int(accumulator[index]) * Fraction(float(units[index])) / scale)
    lowest = int(y.zero_point) if relu else y.qmin
    return saturate(steps + y.zero_point, lowest, y.qmax).astype(y.dtype)


def linear(
    x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *, relu: bool = False
) -> np.ndarray:
    """Output codes [rows, outputs] of a linear layer (INT-LINEAR), with ``relu`` as a clamp at the zero point.

    ``x_q``: codes [rows, inputs]; ``w_q``: codes [outputs, inputs]; ``bias``: float32 (outputs,) or None (INT-NO-BIAS).
    Raises UnsupportedError when an accumulator could overflow (INT-OVERFLOW).
    """
    bias_q = quantize_bias(np.zeros(len(w_q)) if bias is None else bias, x.scale, w.scale)
    check_overflow(x, np.asarray(w_q), w, bias_q)
    accumulator = accumulate(x_q, x.zero_point, w_q, w.zero_point) + bias_q
    return requantize(accumulator, x.scale, w.scale, y, relu=relu)


def relu(q: ArrayLike, zero_point: ArrayLike) -> np.ndarray:
    """ReLU on codes: codes below the zero point become the zero point (INT-RELU). Same shape and dtype."""
    q = checked_codes(q, "q")
    clamped: np.ndarray = np.maximum(q, np.asarray(zero_point).astype(q.dtype))
    return clamped


def look_up(table: np.ndarray, q: np.ndarray) -> np.ndarray:
    """What a table of 256 codes has for each code (INT-TABLE), or one table [channels, 256] for each channel along
    axis 1 (INT-TABLE-CHANNEL).

    Raises ValueError where there are not as many channels as tables.
    """
    if table.ndim == 1:
        return np.asarray(table[q])
    if q.ndim < 2 or q.shape[1] != len(table):
        raise ValueError(f"expected {len(table)} channels along axis 1, got shape {q.shape}")
    return np.asarray(table[along(1, np.arange(len(table)), q.shape), q])


def fixed_point(multiplier: Fraction) -> tuple[int, int]:
    """(m, n) with m from 2^30 to 2^31 - 1 and m * 2^-(31 + n) nearest to the multiplier (INT-FIXED).

    Raises ValueError unless it is positive.
    """
    if multiplier <= 0:
        raise ValueError(f"multiplier: expected a positive number, got {multiplier}")
    # The bit lengths give an n for which multiplier * 2^n lies between 1/2 and 2.
    n = multiplier.denominator.bit_length() - multiplier.numerator.bit_length()
    n -= multiplier * Fraction(2) ** n >= 1
    m = round(multiplier * Fraction(2) ** (31 + n))
    return (m // 2, n - 1) if m == 2**31 else (m, n)


def requantize_fixed(accumulator: ArrayLike, m: int, n: int, y: QParams, *, roundings: int) -> np.ndarray:
    """Output codes of int32 accumulators (bias included) in fixed point, with one rounding or two (INT-FIXED-ONE,
    INT-FIXED-TWO).

    Raises ValueError for another number of roundings, for ``n`` outside 0 to 31 with two, and for m not of 31 bits.
    """
    accumulator = np.asarray(accumulator, np.int64)
    if not 2**30 <= m < 2**31:
        raise ValueError(f"m: expected 2^30 to 2^31 - 1, got {m}")
    if roundings == 1:
        product = np.abs(accumulator) * m  # 0, or from 2^30 to 2^62
        shift = max(31 + n, 1)  # a shift to the left would take even further what saturates anyway
        # Half is added after one bit less has been shifted out: the sum would overflow otherwise.
        sizes = ((product >> (shift - 1)) + 1) >> 1
        steps = np.sign(accumulator) * sizes
    elif roundings == 2:
        if not 0 <= n <= 31:
            raise ValueError(f"n: expected 0 to 31 for two roundings, got {n}")
        high = (accumulator * m + 2**30) >> 31
        steps = np.sign(high) * ((np.abs(high) + (2**n >> 1)) >> n)
    else:
        raise ValueError(f"roundings: expected 1 or 2, got {roundings}")
    return saturate(steps + y.zero_point, y.qmin, y.qmax).astype(y.dtype)


def conv2d(
    x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams,
    *, stride: Counts = (1, 1), padding: Counts = (0, 0), dilation: Counts = (1, 1), groups: int = 1,
    relu: bool = False,
) -> np.ndarray:
    """Output codes [n, outputs, rows, columns] of a convolution (INT-CONV, INT-CONV-PAD, INT-CONV-GROUPS).

    ``x_q``: codes [n, inputs, height, width]; ``w_q``: codes [outputs, inputs / groups, height, width]; ``bias``:
    float32 (outputs,) or None. Raises ValueError when the shapes do not fit, UnsupportedError when an accumulator could
    overflow (INT-OVERFLOW).
    """
    bias_q = quantize_bias(np.zeros(len(w_q)) if bias is None else bias, x.scale, w.scale)
    check_overflow(x, np.asarray(w_q), w, bias_q)
    both = tuple((p, p) for p in padding)
    accumulator = accumulate_conv(
        x_q, x.zero_point, w_q, w, stride=stride, padding=both, dilation=dilation, input_dilation=(1, 1), groups=groups
    )
    codes = requantize(accumulator + bias_q, x.scale, w.scale, y, relu=relu)
    return np.ascontiguousarray(np.moveaxis(codes, -1, 1))


def accumulate_conv(
    x_q: np.ndarray, x_zero_point: np.ndarray | int, w_q: np.ndarray, w: QParams, *,
    stride: Counts, padding: tuple[tuple[int, int], ...], dilation: Counts, input_dilation: Counts, groups: int,
) -> np.ndarray:
    """Accumulators of a convolution over one to three axes of positions, int64 [n, *positions, outputs] (INT-CONV-ANY,
    INT-CONV-TRANSPOSED).

    ``x_q``: codes [n, inputs, *positions]; ``w_q``: codes [outputs, inputs / groups, *kernel]; ``padding``: (before,
    after) for each axis, negative cuts off; ``input_dilation``: that many minus one zeros between neighbouring inputs.
    Raises ValueError when the shapes do not fit.
    """
    x_q, w_q = checked_codes(x_q, "x_q"), checked_codes(w_q, "w_q")
    check_channels(x_q, w_q, groups)
    weight = w_q.astype(np.int64) - along(w.axis, w.zero_point, w_q.shape)
    step = max(int(x_zero_point) - np.iinfo(x_q.dtype).min, np.iinfo(x_q.dtype).max - int(x_zero_point))
    worst = step * int(np.abs(weight).sum(axis=tuple(range(1, weight.ndim))).max(initial=0))
    # Every partial sum is an integer of at most that size, which float32 holds up to 2^24 and float64 up to 2^53: the
    # sum is exact in any order.
    exact: type[np.floating[Any]] = np.float32 if worst <= 2**24 else np.float64
    # Zero points are subtracted first, so that what is put between and around the inputs is 0.
    real = spread(x_q.astype(exact) - exact(x_zero_point), input_dilation, padding, 0)
    positions, kernel = real.shape[2:], weight.shape[2:]
    if any(n <= d * (k - 1) for n, d, k in zip(positions, dilation, kernel)):
        raise ValueError(f"x_q: a window of {kernel} does not fit into {positions} positions, padding included")
    return convolve(real, weight.astype(exact), stride, dilation, groups).astype(np.int64)


def convolve(values: np.ndarray, weight: np.ndarray, stride: Counts, dilation: Counts, groups: int) -> np.ndarray:
    """Sums of products of windows [n, inputs, *positions] with weights [outputs, inputs / groups, *kernel], in their
    type: [n, *positions, outputs]. A few images at a time, as windows take a kernel's times the memory of an image."""
    sizes = groups, len(weight) // groups, int(np.prod(weight.shape[1:]))
    by_group = patches.rows(weight).reshape(sizes).swapaxes(1, 2)
    sums: list[np.ndarray] = []
    for block in blocks_of_rows(values) or [slice(None)]:
        codes, shape = patches.windows(values[block], weight.shape[2:], stride, dilation, groups)
        sums.append(np.moveaxis(product(codes, by_group), 0, 1).reshape(*shape, len(weight)))
    return np.concatenate(sums)


def spread(
    values: np.ndarray, input_dilation: Counts, padding: tuple[tuple[int, int], ...], fill: int
) -> np.ndarray:
    """Values [n, channels, *positions] with ``fill`` between and around them: what a window of a convolution sees."""
    if any(d > 1 for d in input_dilation):
        sizes = [max((n - 1) * d + 1, 0) for n, d in zip(values.shape[2:], input_dilation)]
        wide = np.full((*values.shape[:2], *sizes), fill, values.dtype)
        wide[(slice(None), slice(None), *(slice(None, None, d) for d in input_dilation))] = values
        values = wide
    cut = tuple(slice(max(-before, 0), n - max(-after, 0)) for (before, after), n in zip(padding, values.shape[2:]))
    around = [(0, 0), (0, 0), *((max(before, 0), max(after, 0)) for before, after in padding)]
    return np.pad(values[(slice(None), slice(None), *cut)], around, constant_values=fill)


def check_channels(x_q: np.ndarray, w_q: np.ndarray, groups: int) -> None:
    """Raises ValueError unless inputs and weights make a convolution."""
    if x_q.ndim != w_q.ndim or w_q.ndim not in (3, 4, 5) or x_q.shape[1] != w_q.shape[1] * groups or len(w_q) % groups:
        shapes = f"{x_q.shape} and {w_q.shape}"
        raise ValueError(f"x_q, w_q: shapes {shapes} do not make a convolution with {groups} groups")


def add(
    a_q: ArrayLike, a: QParams, b_q: ArrayLike, b: QParams, y: QParams, *, relu: bool = False
) -> np.ndarray:
    """Codes of the sum of two arrays of codes of one shape (INT-ADD)."""
    a_q, b_q = checked_codes(a_q, "a_q"), checked_codes(b_q, "b_q")
    if a_q.shape != b_q.shape:
        raise ValueError(f"a_q, b_q: expected one shape, got {a_q.shape} and {b_q.shape}")
    # Exact: 33 bits each.
    terms = [np.float64(g.scale) * (q.astype(np.float64) - g.zero_point) for q, g in ((a_q, a), (b_q, b))]
    scale = Fraction(float(y.scale))

    def exact(index: Index) -> Fraction:
        return (Fraction(float(terms[0][index])) + Fraction(float(terms[1][index]))) / scale

    steps = rounded((terms[0] + terms[1]) / float(y.scale), exact)
    return saturate(steps + y.zero_point, int(y.zero_point) if relu else y.qmin, y.qmax).astype(y.dtype)


def rescale(q: ArrayLike, x: QParams, y: QParams) -> np.ndarray:
    """The codes on grid ``y`` of what codes on grid ``x`` stand for (INT-CONCAT)."""
    q = checked_codes(q, "q")
    real = np.float64(x.scale) * (q.astype(np.float64) - x.zero_point)  # exact: 33 bits
    # Of two numbers of 33 and 24 bits, a quotient that is no tie misses it by 2^-34 of its size, as float64 resolves.
    steps = np.rint(real / float(y.scale))
    return saturate(steps + y.zero_point, y.qmin, y.qmax).astype(y.dtype)


def concat(parts: Sequence[tuple[np.ndarray, QParams]], y: QParams, *, axis: int) -> np.ndarray:
    """Codes on grid ``y`` of arrays, each with its grid, joined along an axis (INT-CONCAT). ValueError for none."""
    if not parts:
        raise ValueError("parts: expected at least one array to join")
    return np.concatenate([rescale(q, grid, y) for q, grid in parts], axis=axis)


def max_pool2d(
    q: ArrayLike, *, kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1)
) -> np.ndarray:
    """The largest code of each window (INT-MAXPOOL).

    ``q``: codes [n, channels, height, width]; ``stride`` is the kernel if not given.
    """
    return max_pool(q, pair(kernel), pair(stride or kernel), pair(padding), pair(dilation), False)


def pair(value: Pair) -> tuple[int, int]:
    """One number for both axes, or two."""
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def max_pool(
    q: ArrayLike, kernel: Counts, stride: Counts, padding: Counts, dilation: Counts, ceil_mode: bool
) -> np.ndarray:
    """The largest code of each window over as many last axes as the kernel has (INT-MAXPOOL, INT-POOL-WINDOWS).

    Raises ValueError for padding beyond half a kernel, and for images without positions.
    """
    q = checked_codes(q, "q")
    check_inside(q, kernel, padding)
    # Outside is the smallest code, which never comes out: half a window at least is inside.
    views = windows.views(q, kernel, stride, padding, dilation, ceil_mode, np.iinfo(q.dtype).min)
    largest = next(views).copy()
    for view in views:
        np.maximum(largest, view, out=largest)
    return largest


def check_inside(q: np.ndarray, kernel: Counts, padding: Counts) -> None:
    """Raises ValueError where a window could lie outside as a whole: for padding of more than half of it, and where
    there are no positions."""
    if 0 in q.shape[q.ndim - len(kernel) :]:
        raise ValueError(f"q: expected positions along each axis that windows lie on, got shape {q.shape}")
    if any(2 * p > k for k, p in zip(kernel, padding)):
        raise ValueError(f"padding: expected at most half the kernel {tuple(kernel)}, got {tuple(padding)}")


def avg_pool2d(
    q: ArrayLike,
    grid: QParams,
    *,
    kernel: Pair,
    stride: Pair | None = None,
    padding: Pair = (0, 0),
    count_include_pad: bool = True,
) -> np.ndarray:
    """The rounded average of each window (INT-AVGPOOL). ``q``: codes [n, channels, height, width]; the grid stays."""
    total, counts = window_sums(q, grid, pair(kernel), pair(stride or kernel), pair(padding), False, count_include_pad)
    return average(total, counts, grid)


def window_sums(
    q: ArrayLike,
    grid: QParams,
    kernel: Counts,
    stride: Counts,
    padding: Counts,
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Float64, Float64]:
    """The sums of q - zero_point over each window, and how many positions count, integers both (INT-AVGPOOL,
    INT-POOL-WINDOWS)."""
    q = checked_codes(q, "q")
    check_inside(q, kernel, padding)
    centred = q.astype(np.float64) - grid.zero_point
    views = windows.views(centred, kernel, stride, padding, (1,) * len(kernel), ceil_mode, 0.0)
    total: Float64 = functools.reduce(np.add, views)
    counts = windows.counts(q.shape[q.ndim - len(kernel) :], kernel, stride, padding, ceil_mode, count_include_pad)
    return total, np.broadcast_to(counts, total.shape)


def average(total: Float64, counts: Float64, grid: QParams) -> np.ndarray:
    """z + round(total / counts), codes (INT-AVGPOOL, INT-MEAN)."""
    # An integer over a small integer is a tie or misses it by far more than float64's rounding.
    return (np.rint(total / counts) + grid.zero_point).astype(grid.dtype)


def mul(a_q: ArrayLike, a: QParams, b_q: ArrayLike, b: QParams, y: QParams) -> np.ndarray:
    """Codes of the product, element by element, of two arrays of codes of one shape (INT-MUL)."""
    a_q, b_q = checked_codes(a_q, "a_q"), checked_codes(b_q, "b_q")
    if a_q.shape != b_q.shape:
        raise ValueError(f"a_q, b_q: expected one shape, got {a_q.shape} and {b_q.shape}")
    product = (a_q.astype(np.int64) - a.zero_point) * (b_q.astype(np.int64) - b.zero_point)
    units = Fraction(float(a.scale)) * Fraction(float(b.scale)) / Fraction(float(y.scale))
    # The product of the scales is exact in float64: 48 bits.
    steps = product * (np.float64(a.scale) * np.float64(b.scale)) / np.float64(y.scale)
    steps = rounded(steps, lambda index: int(product[index]) * units)
    return saturate(steps + y.zero_point, y.qmin, y.qmax).astype(y.dtype)


def rounded(steps: Float64, exact: Callable[[Index], Fraction]) -> Float64:
    """``steps`` rounded to integers, ties to even, where float64 has them up to two roundings.

    ``exact(index)`` gives the exact number where that is not enough: two roundings to 53 bits move a number below 2^10
    by less than 2^-41.
    """
    result = np.rint(steps)
    doubtful = (np.abs(steps - result) > NEARLY_HALF) & (np.abs(steps) < SURELY_SATURATED)
    for index in zip(*np.nonzero(doubtful)):
        result[index] = round(exact(index))
    return result
