"""Calls that ``draw`` keeps small enough to read: hundreds of channels and groups, past every vector and block; weights
whose zero point is not 0; ranges that no scale covers."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from quantspec.numerics.affine import QParams

from .call import Call
from .draw import (
    adaptive_calls,
    biases,
    codes,
    concat_calls,
    conv2d_calls,
    grids,
    linear_calls,
    linear_dynamic_calls,
    near_ties,
    outputs,
    pair_calls,
    pool_calls,
    quantize_call,
    weights,
)
from .draw_special import NANS

# Around the multiples of vectors, of the blocks that kernels split layers into, and of what they choose kernels by.
WIDE = (96, 100, 101, 104, 127, 128, 129, 200, 255, 256, 257)
LONG = st.sampled_from(WIDE)
HUGE, TINY = 3.4e38, 1e-45  # the ends of float32
ENDS = (0.0, 1.0, TINY, 1e-38, 1.7e38, HUGE, float("inf"), float("nan"))


@st.composite
def many_groups(draw: st.DrawFn) -> Call:
    """A convolution of up to 256 groups with weights of full size: depthwise as networks have them, or a few channels
    a group."""
    groups = draw(LONG.filter(lambda count: count <= 256))
    ins, outs = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (4, 4), (1, 2)]))
    side = draw(st.sampled_from([1, 3, 3, 5]))
    step = draw(st.sampled_from([1, 1, 2]))
    x = draw(grids())
    w_q, w = draw(weights((groups * outs, ins, side, side), largest=127))
    unit = np.float64(x.scale) * w.scale
    y = draw(outputs(float(np.max(unit)) * 60, ins * side * side, x.qmin < 0))
    x_q = codes(draw, x, (1, groups * ins, *(side + draw(st.integers(0, 2)) for _ in "hw")))
    around = side // 2, side // 2
    places = {"stride": (step, step), "padding": around, "dilation": (1, 1), "groups": groups}
    bias = biases(draw, unit, groups * outs)
    return Call("conv2d", (x_q, x, w_q, w, bias, y), {**places, "relu": draw(st.booleans())})


@st.composite
def off_zero(draw: st.DrawFn, calls: st.SearchStrategy[Call]) -> Call:
    """A layer whose weights have a zero point other than 0: one for all outputs, or one for each where they have their
    own scales."""
    call = draw(calls)
    at = 2 if call.operation == "linear_dynamic" else 3
    arguments, w = list(call.arguments), call.arguments[at]
    generator = np.random.default_rng(draw(st.integers(0, 2**16)))
    points = generator.choice([-128, -20, -3, -1, 1, 2, 7, 30, 127], w.scale.shape)
    arguments[at] = QParams(w.scale, points, w.qmin, w.qmax, w.axis)
    return replace(call, arguments=tuple(arguments))


@st.composite
def long_arrays(draw: st.DrawFn, operation: str) -> Call:
    """Quantize or dequantize hundreds of elements, or hundreds of channels."""
    grid = draw(grids())
    count, per_channel = draw(LONG), draw(st.booleans())
    each = [draw(grids(signed=grid.qmin < 0)) for _ in range(3)]
    if not per_channel:
        if operation == "dequantize":
            return Call(operation, (codes(draw, grid, (count,)), grid.scale, int(grid.zero_point)))
        return quantize_call(draw(near_ties(grid, (count,))), grid)
    scales = np.resize([channel.scale for channel in each], count).astype(np.float32)
    points = np.resize([int(channel.zero_point) for channel in each], count)
    length = draw(st.integers(1, 3))
    if operation == "dequantize":
        return Call(operation, (codes(draw, grid, (count, length)), scales, points), {"axis": 0})
    rows = np.stack([draw(near_ties(channel, (count, length))) for channel in each])
    x = rows[np.arange(count) % 3, np.arange(count)]
    return Call(operation, (x, scales, points), {"qmin": grid.qmin, "qmax": grid.qmax, "axis": 0})


@st.composite
def nan_in_channels(draw: st.DrawFn) -> Call:
    """NaNs of any kind at one place or at all places of an array whose channels have grids of their own."""
    first = draw(grids())
    each = [first, *(draw(grids(signed=first.qmin < 0)) for _ in range(draw(st.integers(0, 2))))]
    length = draw(st.sampled_from([1, 3, 8, 17, 33]))
    x = np.stack([draw(near_ties(channel, (length,))) for channel in each])
    place = (Ellipsis,) if draw(st.booleans()) else (draw(st.integers(0, len(x) - 1)), draw(st.integers(0, length - 1)))
    x[place] = NANS[draw(st.integers(0, 3))]
    scales, points = np.array([c.scale for c in each]), np.array([int(c.zero_point) for c in each])
    return Call("quantize", (x, scales, points), {"qmin": first.qmin, "qmax": first.qmax, "axis": 0})


@st.composite
def ranges(draw: st.DrawFn) -> Call:
    """Ranges whose ends are zero, ordinary, as small or as large as float32 has them, infinite, or NaN."""
    low, high = -draw(st.sampled_from(ENDS)), draw(st.sampled_from(ENDS))
    qmin, qmax = draw(st.sampled_from([(0, 255), (-128, 127)]))
    ends = {"qmin": qmin, "qmax": qmax, "symmetric": draw(st.booleans())}
    return Call("qparams", (np.float32(low), np.float32(high)), ends)


@st.composite
def extreme_inputs(draw: st.DrawFn) -> Call:
    """A dynamic layer one of whose inputs is as small or as large as float32 has it, infinite, or NaN."""
    call = draw(linear_dynamic_calls())
    x, *rest = call.arguments
    x = x.copy()
    x.ravel()[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from([1, -1])) * draw(st.sampled_from(ENDS[2:]))
    return call.with_arguments(x, *rest)


FEW = st.integers(1, 3)
OFF_ZERO = {
    "linear": off_zero(linear_calls()),
    "linear_dynamic": off_zero(linear_dynamic_calls()),
    "conv2d": st.one_of(off_zero(conv2d_calls()), off_zero(conv2d_calls(largest=127, kinds=(True,)))),
}
PAST_VECTORS: dict[str, st.SearchStrategy[Call]] = {
    "quantize": long_arrays("quantize"),
    "dequantize": long_arrays("dequantize"),
    "linear": linear_calls(rows=FEW, inputs=LONG, outs=LONG),
    "linear_dynamic": linear_dynamic_calls(inputs=LONG, outs=LONG),
    "conv2d": many_groups(),
    "add": pair_calls("add", channels=LONG),
    "mul": pair_calls("mul", channels=LONG),
    "concat": concat_calls(channels=LONG),
    "max_pool2d": pool_calls("max_pool2d", channels=LONG),
    "avg_pool2d": pool_calls("avg_pool2d", channels=LONG),
    "adaptive_avg_pool2d": adaptive_calls(channels=LONG),
}
# What a check draws once its ordinary calls have passed.
BEYOND = {
    operation: st.one_of([calls, OFF_ZERO[operation]]) if operation in OFF_ZERO else calls
    for operation, calls in PAST_VECTORS.items()
}
