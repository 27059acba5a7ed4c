"""Calls beyond the ordinary ones of ``draw``: far outside of the codes, infinite, not a number, empty, on no grid."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from quantspec.backends.protocol import OPERATIONS
from quantspec.numerics.affine import QParams

from .call import Call
from .draw import CALLS, byte_ends, conv2d_calls, grids, lengths, near_ties, quantize_call

FAR = ("quantize", "linear", "add", "mul")
EMPTY = tuple(operation for operation in OPERATIONS if operation not in ("qparams", "fold_batch_norm"))
NANS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF], np.uint32).view(np.float32)
PER_TENSOR = CALLS["quantize"].filter(lambda call: "axis" not in call.options)
# With weights of full size, since depthwise kernels add products in other ways than dense ones.
GROUPED = conv2d_calls(largest=127).filter(lambda call: call.options["groups"] > 1)


@st.composite
def far(draw: st.DrawFn, operation: str) -> Call:
    """Results 2^10 to 2^40 times beyond the codes, but for results of exactly 0, which are left out."""
    if operation == "quantize":
        grid = draw(grids())
        sizes = np.array([draw(st.integers(10, 100)) for _ in range(draw(lengths()))])
        signs = np.array([draw(st.sampled_from([-1.0, 1.0])) for _ in sizes])
        return quantize_call((signs * 2.0**sizes * float(grid.scale)).astype(np.float32), grid)
    exponent = draw(st.integers(12, 40))
    if operation == "linear":
        length, outputs = draw(lengths()), draw(lengths())
        x = QParams(1.0, draw(st.sampled_from([0, 128])), 0, 255)
        x_q = np.full((draw(st.integers(1, 3)), length), 255, np.uint8)
        column = np.array([[draw(st.sampled_from([-20, 20, 1, -1]))] for _ in range(outputs)], np.int8)
        w_q = np.repeat(column, length, axis=1)
        y = QParams(np.float32(2.0**-exponent), draw(st.integers(0, 255)), 0, 255)
        return Call("linear", (x_q, x, w_q, QParams(1.0, 0, -128, 127), None, y), {"relu": draw(st.booleans())})
    signed = draw(st.booleans())
    qmin, qmax = (-128, 127) if signed else (0, 255)
    a, b = (QParams(1.0, draw(st.integers(qmin + 1, qmax - 1)), qmin, qmax) for _ in "ab")
    shape = (1, draw(lengths()), 1, 1)
    signs = np.array([draw(st.booleans()) for _ in range(shape[1])]).reshape(shape)
    codes = np.where(signs, qmax, qmin).astype(a.dtype)
    y = QParams(np.float32(2.0**-exponent), draw(st.integers(qmin, qmax)), qmin, qmax)
    return Call(operation, (codes, a, codes, b, y))


@st.composite
def infinite(draw: st.DrawFn) -> Call:
    """Infinities, which saturate too."""
    grid = draw(grids())
    x = np.array([draw(st.sampled_from([np.inf, -np.inf])) for _ in range(draw(lengths()))], np.float32)
    return quantize_call(x, grid)


@st.composite
def with_nan(draw: st.DrawFn) -> Call:
    """NaNs at one place or at all places of an array."""
    grid = draw(grids())
    x = draw(near_ties(grid, (draw(lengths()),)))
    places = slice(None) if draw(st.booleans()) else draw(st.integers(0, len(x) - 1))
    x[places] = NANS[draw(st.integers(0, 3))]
    return quantize_call(x, grid)


@st.composite
def emptied(draw: st.DrawFn, operation: str) -> Call:
    """An ordinary call with one axis of length 0 where that has a meaning."""
    call = draw(CALLS[operation])
    x, *rest = call.arguments
    if operation in ("linear", "linear_dynamic", "conv2d"):
        at = 0 if operation == "linear_dynamic" else 1
        axes = ["rows", "outputs"] if operation == "conv2d" else ["rows", "outputs", "inputs"]
        without = draw(st.sampled_from(axes))
        if without == "rows":
            return call.with_arguments(x[:0], *rest)
        if without == "inputs":
            rest[at] = rest[at][:, :0]
            return call.with_arguments(x[:, :0], *rest)
        w = rest[at + 1]
        one_scale = w if w.axis is None else QParams(w.scale[0], 0, w.qmin, w.qmax)
        rest[at : at + 3] = rest[at][:0], one_scale, None
        return call.with_arguments(x, *rest)
    if operation in ("add", "mul"):
        return call.with_arguments(x[:, :0], rest[0], rest[1][:, :0], *rest[2:])
    if operation == "concat":
        (first, grid), *others = x
        return call.with_arguments([(first[:, :0], grid), *others], *rest)
    if operation in ("quantize", "dequantize"):
        return call.with_arguments(x[..., :0], *rest)
    return call.with_arguments(x[:0], *rest)


@st.composite
def no_grid(draw: st.DrawFn, operation: str) -> Call:
    """A scale or a zero point that describes no grid."""
    call = draw(CALLS[operation])
    x, scale, zero_point = call.arguments
    qmin, qmax = (call.options["qmin"], call.options["qmax"]) if operation == "quantize" else byte_ends(x)
    if np.ndim(scale):
        options = {key: value for key, value in call.options.items() if key != "axis"}
        call = replace(call, arguments=(x[0], scale[0], zero_point[0]), options=options)
        x, scale, zero_point = call.arguments
    if draw(st.booleans()):
        wrong = np.float32(draw(st.sampled_from([0.0, -0.0, -1.0, np.inf, -np.inf, np.nan])))
        return call.with_arguments(x, wrong, int(zero_point))
    return call.with_arguments(x, scale, draw(st.sampled_from([qmin - 1, qmax + 1, qmin - 1000, qmax + 1000])))


@st.composite
def zeros(draw: st.DrawFn, operation: str) -> Call:
    """Zeros of both signs, or codes that stand for zero."""
    grid = draw(grids(low=2.0**-60, high=2.0**60))
    length = draw(lengths())
    if operation == "quantize":
        return quantize_call(np.array([draw(st.sampled_from([0.0, -0.0])) for _ in range(length)], np.float32), grid)
    return Call("dequantize", (np.full(length, grid.zero_point, grid.dtype), grid.scale, int(grid.zero_point)))


def on_one_grid(call: Call) -> Call:
    """A ``concat`` whose parts and result are on the grid of the first."""
    arrays, _ = call.arguments
    grid = arrays[0][1]
    return call.with_arguments([(q, grid) for q, _ in arrays], grid)


def everything(operation: str) -> st.SearchStrategy[Call]:
    """Ordinary, empty, far and meaningless calls of an operation."""
    kinds = [CALLS[operation]]
    if operation in EMPTY:
        kinds.append(emptied(operation))
    if operation in FAR:
        kinds.append(far(operation))
    if operation in ("quantize", "dequantize"):
        kinds.append(no_grid(operation))
    return st.one_of(kinds)
