"""Calls of the backend protocol, and how they are drawn: near ties, at the ends, around vector widths.

A drawn call is small enough to be shrunk to something that a person reads. Thousands of outputs at once come from
``bulk``.
"""

import functools
from typing import Any

import numpy as np
from hypothesis import strategies as st

from quantspec.numerics.affine import QParams

from .call import Call

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
ORDINARY = (2.0**-12, 2.0)


@functools.cache  # as Hypothesis examines each new strategy for longer than it draws from it
def scales(low: float = ORDINARY[0], high: float = ORDINARY[1]) -> st.SearchStrategy[np.float32]:
    """Ordinary scales: powers of two, whose ties are exact, and float32 of which all digits count."""
    ends = np.log2(low), np.log2(high)
    exponents = st.integers(int(np.ceil(ends[0])), int(np.floor(ends[1]))).map(lambda e: 2.0**e)
    digits = st.integers(0, 2**16).map(lambda seed: 2.0 ** np.random.default_rng(seed).uniform(*ends))
    return st.one_of(exponents, digits, digits).map(np.float32)


@st.composite
def grids(
    draw: st.DrawFn, signed: bool | None = None, low: float = ORDINARY[0], high: float = ORDINARY[1]
) -> QParams:
    """Per-tensor qparams of a whole byte; unsigned more often, as activations are."""
    signed = draw(st.sampled_from([False, False, True])) if signed is None else signed
    qmin, qmax = (-128, 127) if signed else (0, 255)
    zero_point = draw(st.one_of(st.integers(qmin, qmax), st.sampled_from([qmin, qmax, qmin + 127])))
    return QParams(draw(scales(low, high)), zero_point, qmin, qmax)


def codes(draw: st.DrawFn, grid: QParams, shape: tuple[int, ...]) -> np.ndarray:
    """Codes of a grid in an array of that shape: bulk data, with the ends more often than chance has them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    drawn = generator.integers(grid.qmin, grid.qmax + 1, shape)
    at_an_end = generator.random(shape) < 0.1
    return np.where(at_an_end, generator.choice([grid.qmin, grid.qmax], shape), drawn).astype(grid.dtype)


@st.composite
def near_ties(draw: st.DrawFn, grid: QParams, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values half-way between codes, give or take an ulp, on codes, between them, and beyond the ends."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    steps = generator.integers(grid.qmin - 3, grid.qmax + 4, shape) - int(grid.zero_point)
    part = generator.choice([0.5, 0.5, 0.0, 0.25], shape)
    x = ((steps + part) * np.float64(grid.scale)).astype(np.float32)
    return nudged(x, generator.integers(-1, 2, shape), np.float32(-np.inf), np.float32(np.inf))


def nudged(x: np.ndarray, ulps: np.ndarray, lowest: np.float32, highest: np.float32) -> np.ndarray:
    """Values one float32 towards the lowest or the highest one, where ``ulps`` is below or above 0."""
    return np.where(ulps < 0, np.nextafter(x, lowest), np.where(ulps > 0, np.nextafter(x, highest), x))


Lengths = st.SearchStrategy[int]


def lengths(smallest: int = 1) -> st.SearchStrategy[int]:
    """Lengths around vector widths."""
    return st.sampled_from([n for n in LENGTHS if n >= smallest])


def byte_ends(codes: np.ndarray) -> tuple[int, int]:
    """qmin and qmax of codes that may use their whole byte."""
    return (0, 255) if codes.dtype == np.uint8 else (-128, 127)


def quantize_call(x: np.ndarray, grid: QParams) -> Call:
    """Quantize on a per-tensor grid."""
    return Call("quantize", (x, grid.scale, int(grid.zero_point)), {"qmin": grid.qmin, "qmax": grid.qmax})


@st.composite
def quantize_calls(draw: st.DrawFn) -> Call:
    """Quantize per tensor, or per channel along the first axis."""
    grid = draw(grids())
    if draw(st.booleans()):
        return quantize_call(draw(near_ties(grid, (draw(lengths()),))), grid)
    channels, length = draw(st.integers(1, 3)), draw(lengths())
    each = [draw(grids(signed=grid.qmin < 0)) for _ in range(channels)]
    x = np.stack([draw(near_ties(channel, (length,))) for channel in each])
    channel_scales = np.array([channel.scale for channel in each])
    points = np.array([channel.zero_point for channel in each])
    return Call("quantize", (x, channel_scales, points), {"qmin": grid.qmin, "qmax": grid.qmax, "axis": 0})


@st.composite
def dequantize_calls(draw: st.DrawFn) -> Call:
    """All codes, on any grid."""
    grid = draw(grids(low=2.0**-60, high=2.0**60))
    every_code = np.arange(grid.qmin, grid.qmax + 1).astype(grid.dtype)
    return Call("dequantize", (every_code, grid.scale, int(grid.zero_point)))


@st.composite
def qparams_calls(draw: st.DrawFn) -> Call:
    """Ranges: ordinary, one-sided, symmetric, a point, tiny."""
    size = draw(st.sampled_from([1.0, 100.0, 2.0**-20]))
    kind = draw(st.sampled_from(["any", "mirrored", "tie"]))
    a, b = (np.float32(draw(st.floats(-1, 1, width=32)) * size) for _ in "ab")
    if kind == "mirrored":
        a, b = -abs(a), abs(a)
    elif kind == "tie":  # zero lies half-way between two codes, exactly
        below, step = draw(st.integers(0, 254)) + 0.5, draw(st.sampled_from([1.0, 0.25, 2.0**-10]))
        a, b = np.float32(-below * step), np.float32((255 - below) * step)
    symmetric, signed = draw(st.booleans()), draw(st.booleans())
    qmin, qmax = (-128, 127) if signed else (0, 255)
    return Call("qparams", (min(a, b), max(a, b)), {"qmin": qmin, "qmax": qmax, "symmetric": symmetric})


@st.composite
def weights(draw: st.DrawFn, shape: tuple[int, ...], largest: int = 127) -> tuple[np.ndarray, QParams]:
    """Symmetric int8 weights [outputs, ...] and their grid, per tensor or per channel."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    w_q = generator.integers(-largest, largest + 1, shape).astype(np.int8)
    if draw(st.booleans()):
        return w_q, QParams(draw(scales()), 0, -128, 127)
    return w_q, QParams(np.array([draw(scales()) for _ in range(shape[0])], np.float32), 0, -128, 127, axis=0)


def tuned(draw: st.DrawFn, sums: np.ndarray, x: QParams, signed: bool) -> tuple[QParams, QParams]:
    """Weight and output grids that put each output's first accumulator (``sums``, (outputs,)) on a tie, give or take an
    ulp of its weight scale."""
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    qmin, qmax = (-128, 127) if signed else (0, 255)
    y = QParams(draw(scales()), draw(st.integers(qmin, qmax)), qmin, qmax)
    steps = generator.integers(0, 100, len(sums)) + 0.5
    sizes = np.maximum(np.abs(sums), 1)
    w_scale = (steps * np.float64(y.scale) / (np.float64(x.scale) * sizes)).astype(np.float32)
    w_scale = nudged(w_scale, generator.integers(-1, 2, len(sums)), np.float32(0), np.float32(1e9))
    return QParams(w_scale, 0, -128, 127, axis=0), y


@st.composite
def outputs(draw: st.DrawFn, unit: float, terms: int, signed: bool) -> QParams:
    """An output grid whose step is a small multiple of the accumulator's unit, so that ties are common, or as wide as
    the outputs."""
    ratio = draw(st.sampled_from([1.0, 2.0, 2.0, 3.0, 1.25, 10.0, 100.0])) * max(1.0, terms**0.5)
    qmin, qmax = (-128, 127) if signed else (0, 255)
    return QParams(np.float32(unit * ratio), draw(st.integers(qmin, qmax)), qmin, qmax)


def biases(draw: st.DrawFn, unit: np.ndarray, count: int) -> np.ndarray | None:
    """A float32 bias for each output, often on half units, or none."""
    if draw(st.sampled_from([True, True, False])):
        generator = np.random.default_rng(draw(st.integers(0, 2**16)))
        halves: np.ndarray = generator.integers(-300, 301, count) * 0.5 * unit
        return halves.astype(np.float32)
    return None


@st.composite
def linear_calls(
    draw: st.DrawFn, rows: Lengths = st.integers(1, 4), inputs: Lengths = lengths(), outs: Lengths = lengths(),
    largest: int = 20,
) -> Call:  # fmt: skip
    """A linear layer; weights up to ``largest``, small enough for pairs of products to fit 16 bits unless said
    otherwise."""
    shape = draw(outs), draw(inputs)
    x = draw(grids())
    w_q, w = draw(weights(shape, largest))
    unit = np.float64(x.scale) * w.scale
    y = draw(outputs(float(np.max(unit)), shape[1], x.qmin < 0))
    x_q, bias = codes(draw, x, (draw(rows), shape[1])), biases(draw, unit, shape[0])
    if w.axis == 0 and draw(st.booleans()):
        sums = (x_q[0].astype(np.int64) - int(x.zero_point)) @ w_q.T.astype(np.int64)
        w, y = tuned(draw, sums, x, x.qmin < 0)
        bias = None
    return Call("linear", (x_q, x, w_q, w, bias, y), {"relu": draw(st.booleans())})


@st.composite
def linear_dynamic_calls(draw: st.DrawFn, inputs: Lengths = lengths(), outs: Lengths = lengths()) -> Call:
    """A dynamic layer on values that lie on multiples of a step, so that many are ties of the grid that their range
    gives."""
    shape = draw(outs), draw(inputs)
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    steps = generator.integers(-200, 201, (draw(st.integers(1, 4)), shape[1]))
    if steps.size > 1 and draw(st.booleans()):  # a range that is the same on both sides of zero
        steps.ravel()[:2] = (-201, 201)
    tiny = draw(st.sampled_from([1.0, 1.0, 1.0, 2.0**-30]))  # ranges that some rules lift
    x = (steps * np.float64(draw(scales())) / 2 * tiny).astype(np.float32)
    w_q, w = draw(weights(shape, largest=20))
    return Call("linear_dynamic", (x, w_q, w, biases(draw, w.scale, shape[0])), {"relu": draw(st.booleans())})


@st.composite
def conv2d_calls(
    draw: st.DrawFn, largest: int = 20, kinds: tuple[bool, ...] = (False, False, False, True)
) -> Call:
    """A convolution: dense, grouped or depthwise, kernels of 1 to 7.

    One in four, or as ``kinds`` says, is depthwise as networks have them, for which there are kernels apart: groups in
    eights, square windows, padded to keep the size.
    """
    usual = draw(st.sampled_from(kinds))
    if usual:
        groups, inputs, outs = draw(st.sampled_from([8, 16, 32])), 1, 1
    else:
        groups = draw(st.sampled_from([1, 1, 2, 3, 4, 8, 16, 17]))
        inputs, outs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sides = st.sampled_from([1, 2, 3, 3, 5, 7])
    kernel = draw(st.tuples(sides, sides))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    if usual:
        side, step = draw(st.sampled_from([3, 3, 5])), draw(st.integers(1, 2))
        kernel, stride, dilation, padding = (side, side), (step, step), (1, 1), (side // 2, side // 2)
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel))
    x = draw(grids())
    w_q, w = draw(weights((groups * outs, inputs, *kernel), largest))
    unit = np.float64(x.scale) * w.scale
    y = draw(outputs(float(np.max(unit)), inputs * kernel[0] * kernel[1], x.qmin < 0))
    x_q = codes(draw, x, (draw(st.integers(1, 2)), groups * inputs, *size))
    relu, bias = draw(st.booleans()), biases(draw, unit, groups * outs)
    if w.axis == 0 and not usual and draw(st.booleans()):
        padding = (0, 0)
        corner = x_q[0, :, : size[0] : dilation[0], : size[1] : dilation[1]][:, : kernel[0], : kernel[1]]
        steps = corner.astype(np.int64) - int(x.zero_point)
        window = np.repeat(steps.reshape(groups, 1, inputs, *kernel), outs, axis=1).reshape(groups * outs, -1)
        w, y = tuned(draw, (window * w_q.reshape(groups * outs, -1)).sum(axis=1), x, x.qmin < 0)
        bias = None
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "relu": relu}
    return Call("conv2d", (x_q, x, w_q, w, bias, y), options)


def first_real(q: np.ndarray, grid: QParams) -> float:
    """The real value of the first code."""
    return float(grid.scale) * (int(q.ravel()[0]) - int(grid.zero_point))


def on_a_tie(draw: st.DrawFn, real: float, y: QParams) -> QParams:
    """The grid with a scale by which a value above 0 lies half-way between two codes, give or take an ulp."""
    scale = np.float32(min(max(real / (draw(st.integers(0, 100)) + 0.5), 2.0**-30), 2.0**30))
    beside = np.nextafter(scale, draw(st.sampled_from([np.float32(0), scale, np.float32(1e9)])))
    return QParams(beside, y.zero_point, y.qmin, y.qmax)


@st.composite
def pair_calls(draw: st.DrawFn, operation: str, channels: Lengths = lengths()) -> Call:
    """``add`` or ``mul`` of two arrays of codes."""
    signed = draw(st.booleans())
    a, b = draw(grids(signed)), draw(grids(signed))
    size = float(a.scale) + float(b.scale) if operation == "add" else float(a.scale) * float(b.scale) * 64
    y_scale = np.float32(size * draw(st.sampled_from([0.5, 1.0, 1.3, 2.0])))
    y = QParams(y_scale, draw(st.integers(a.qmin, a.qmax)), a.qmin, a.qmax)
    shape = (1, draw(channels), 1, draw(st.integers(1, 3)))
    options = {"relu": draw(st.booleans())} if operation == "add" else {}
    a_q, b_q = codes(draw, a, shape), codes(draw, b, shape)
    if draw(st.booleans()):  # the first element on a tie, give or take an ulp of the output's scale
        left, right = first_real(a_q, a), first_real(b_q, b)
        y = on_a_tie(draw, abs(left + right if operation == "add" else left * right), y)
    return Call(operation, (a_q, a, b_q, b, y), options)


@st.composite
def concat_calls(draw: st.DrawFn, channels: Lengths = lengths()) -> Call:
    """Two or three arrays joined along the channels."""
    signed, rows = draw(st.booleans()), draw(st.integers(1, 3))
    each = [draw(grids(signed)) for _ in range(draw(st.integers(2, 3)))]
    y = draw(st.sampled_from([each[0], draw(grids(signed))]))
    parts = [(codes(draw, grid, (rows, draw(channels))), grid) for grid in each]
    if draw(st.booleans()):  # an element on a tie, give or take an ulp of the output's scale
        y = on_a_tie(draw, abs(first_real(*parts[0])), y)
    return Call("concat", (parts, y), {"axis": 1})


@st.composite
def pool_calls(draw: st.DrawFn, operation: str, channels: Lengths = lengths()) -> Call:
    """Max or average pooling; windows may reach over the edge by up to half their size."""
    grid = draw(grids())
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    size = tuple(k + draw(st.integers(0, 5)) for k in kernel)
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    options: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    if operation == "avg_pool2d":
        options["count_include_pad"] = draw(st.booleans())
    return Call(operation, (codes(draw, grid, (draw(st.integers(1, 2)), draw(channels), *size)), grid), options)


@st.composite
def adaptive_calls(draw: st.DrawFn, channels: Lengths = lengths()) -> Call:
    """Adaptive average pooling to one window or a few; or to one whose codes are two neighbours, each as often as the
    other, so that all means are ties."""
    grid, size = draw(grids()), draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 2)]))
    ties = draw(st.booleans())
    images, count = draw(st.integers(1, 2)), draw(channels)
    if ties:
        height, width = draw(st.sampled_from([(2, 7), (4, 7), (7, 8), (6, 7), (2, 5), (3, 6)]))
        generator = np.random.default_rng(draw(st.integers(0, 2**16)))
        halves = generator.random((images, count, height * width)).argsort(axis=-1) % 2
        below = generator.integers(grid.qmin, grid.qmax, (images, count, 1))
        q = (below + halves).reshape(images, count, height, width).astype(grid.dtype)
        return Call("adaptive_avg_pool2d", (q, grid), {"size": (1, 1)})
    shape = images, count, *(windows + draw(st.integers(0, 6)) for windows in size)
    return Call("adaptive_avg_pool2d", (codes(draw, grid, shape), grid), {"size": size})


@st.composite
def fold_calls(draw: st.DrawFn) -> Call:
    """The statistics of a batch normalization behind a linear layer."""
    outs, inputs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    weight, (bias, gamma, beta, mean) = generator.normal(size=(outs, inputs)), generator.normal(size=(4, outs))
    var = generator.uniform(0, 3, outs)
    arrays = [a.astype(np.float32) for a in (weight, bias, gamma, beta, mean, var)]
    return Call("fold_batch_norm", (*arrays, draw(st.sampled_from([1e-5, 1e-3]))))


CALLS: dict[str, st.SearchStrategy[Call]] = {
    "quantize": quantize_calls(),
    "dequantize": dequantize_calls(),
    "qparams": qparams_calls(),
    "linear": linear_calls(),
    "linear_dynamic": linear_dynamic_calls(),
    "conv2d": conv2d_calls(),
    "add": pair_calls("add"),
    "mul": pair_calls("mul"),
    "concat": concat_calls(),
    "max_pool2d": pool_calls("max_pool2d"),
    "avg_pool2d": pool_calls("avg_pool2d"),
    "adaptive_avg_pool2d": adaptive_calls(),
    "fold_batch_norm": fold_calls(),
}
