"""Smaller calls: a call that breaks a clause is cut down while it still does, until a person can read it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams

from .call import Call, of_outputs

TRIES = 2000
LARGE = 200  # elements that take as long as the call itself


def smallest(call: Call, breaks: Callable[[Call], bool], tries: int = TRIES) -> Call:
    """The smallest call found that still breaks, going down greedily. So many candidates are tried at most, fewer where
    they are large: a limit of time would find another call on another machine."""
    shrunk = True
    while shrunk:
        shrunk = False
        for candidate in smaller(call):
            if tries <= 0:
                return call
            tries -= 1 + elements(candidate.arguments) // LARGE
            if breaks(candidate):
                call, shrunk = candidate, True
                break
    return call


def smaller(call: Call) -> Iterator[Call]:
    """Simpler calls of the same operation, the boldest cuts first."""
    cut = CUTS.get(call.operation)
    if cut:
        yield from cut(call)
    yield from plainer_options(call)
    yield from plainer_grids(call)


def elements(value: Any) -> int:
    """How many there are in all arrays inside of arguments."""
    if isinstance(value, np.ndarray):
        return value.size
    return sum(map(elements, value)) if isinstance(value, (list, tuple)) else 0


def pieces(length: int) -> Iterator[slice]:
    """Slices that leave an axis shorter: halves first, then without the first or the last element."""
    if length > 3:
        yield slice(0, length // 2)
        yield slice(length // 2, length)
    if length > 1:
        yield slice(0, length - 1)
        yield slice(1, length)


def plain_codes(codes: np.ndarray, plain: int) -> Iterator[np.ndarray]:
    """The array with half of it, or single elements, at a plain value."""
    flat = codes.ravel()
    wild = np.nonzero(flat != plain)[0]
    halves = [wild[: len(wild) // 2], wild[len(wild) // 2 :]]
    for half in halves if len(wild) > 3 else [[place] for place in wild]:
        changed = flat.copy()
        changed[half] = plain
        yield changed.reshape(codes.shape)


def plainer_options(call: Call) -> Iterator[Call]:
    """The call with one of its options as plain as it can be."""
    plain = {"relu": False, "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "count_include_pad": True}
    for option, value in plain.items():
        if option in call.options and call.options[option] not in (value, None):
            yield replace(call, options={**call.options, option: value})


def plainer_grids(call: Call) -> Iterator[Call]:
    """The call with one of its grids plainer: one scale for all, scale 1, zero point 0."""
    arguments = call.arguments
    for i, argument in enumerate(arguments):
        for grid in plainer(argument) if isinstance(argument, QParams) else ():
            yield call.with_arguments(*arguments[:i], grid, *arguments[i + 1 :])
    if call.operation in ("quantize", "dequantize") and not np.ndim(arguments[1]):
        x, scale, zero_point = arguments
        if np.isfinite(scale) and scale > 0 and scale != 1:
            # Real values keep their steps, and ties stay ties.
            stretched = (np.rint(x / scale * 2) / 2).astype(np.float32) if call.operation == "quantize" else x
            yield call.with_arguments(stretched, np.float32(1), zero_point)
        if zero_point not in (0, 1):
            yield call.with_arguments(x, scale, 0)
            yield call.with_arguments(x, scale, 1)


def plainer(grid: QParams) -> Iterator[QParams]:
    """Simpler grids with the same codes."""
    if grid.axis is not None:
        yield QParams(grid.scale[0], np.ravel(grid.zero_point)[0], grid.qmin, grid.qmax)
    elif float(grid.scale) != 1:
        yield QParams(1.0, grid.zero_point, grid.qmin, grid.qmax)
    if np.any(grid.zero_point):
        yield QParams(grid.scale, 0, grid.qmin, grid.qmax, grid.axis)


def elementwise(call: Call) -> Iterator[Call]:
    """quantize and dequantize."""
    x, scale, zero_point = call.arguments
    axis = None
    if np.ndim(scale):
        axis = call.options["axis"] % x.ndim
        if len(scale) == 1:
            per_tensor = {key: value for key, value in call.options.items() if key != "axis"}
            yield replace(call, arguments=(x.take(0, axis), scale[0], int(zero_point[0])), options=per_tensor)
        for c in pieces(len(scale)):
            at = (slice(None),) * axis + (c,)
            yield call.with_arguments(x[at], scale[c], zero_point[c])
    for other in sorted({0, x.ndim - 1} - {axis}, reverse=True):
        for c in pieces(x.shape[other]):
            yield call.with_arguments(x[(slice(None),) * other + (c,)], scale, zero_point)
    if call.operation == "quantize":
        for plain in plain_codes(x, 0):
            yield call.with_arguments(plain, scale, zero_point)


def layer(call: Call) -> Iterator[Call]:
    """linear."""
    x_q, x, w_q, w, bias, y = call.arguments
    for c in pieces(len(x_q)):
        yield call.with_arguments(x_q[c], x, w_q, w, bias, y)
    for c in pieces(len(w_q)):
        yield call.with_arguments(x_q, x, w_q[c], of_outputs(w, c), None if bias is None else bias[c], y)
    for c in pieces(x_q.shape[1]):
        yield call.with_arguments(x_q[:, c], x, w_q[:, c], w, bias, y)
    if bias is not None:
        yield call.with_arguments(x_q, x, w_q, w, None, y)
    for plain in plain_codes(x_q, int(x.zero_point)):
        yield call.with_arguments(plain, x, w_q, w, bias, y)
    for plain in plain_codes(w_q, 0):
        yield call.with_arguments(x_q, x, plain, w, bias, y)


def dynamic_layer(call: Call) -> Iterator[Call]:
    """linear_dynamic."""
    x, w_q, w, bias = call.arguments
    for c in pieces(len(x)):
        yield call.with_arguments(x[c], w_q, w, bias)
    for c in pieces(len(w_q)):
        yield call.with_arguments(x, w_q[c], of_outputs(w, c), None if bias is None else bias[c])
    for c in pieces(x.shape[1]):
        yield call.with_arguments(x[:, c], w_q[:, c], w, bias)
    if bias is not None:
        yield call.with_arguments(x, w_q, w, None)
    for plain in plain_codes(x, 0):
        yield call.with_arguments(plain, w_q, w, bias)
    for plain in plain_codes(w_q, 0):
        yield call.with_arguments(x, plain, w, bias)


def convolution(call: Call) -> Iterator[Call]:
    """conv2d. Groups are cut whole; without them, outputs and inputs one by one."""
    x_q, x, w_q, w, bias, y = call.arguments
    count = call.options["groups"]
    ins, outs = x_q.shape[1] // count, len(w_q) // count
    for c in pieces(len(x_q)):
        yield call.with_arguments(x_q[c], x, w_q, w, bias, y)
    for c in pieces(count):
        rows, columns = slice(c.start * outs, c.stop * outs), slice(c.start * ins, c.stop * ins)
        left = x_q[:, columns], x, w_q[rows], of_outputs(w, rows), None if bias is None else bias[rows], y
        yield call.with_arguments(*left, groups=c.stop - c.start)
    if count == 1:
        for c in pieces(outs):
            yield call.with_arguments(x_q, x, w_q[c], of_outputs(w, c), None if bias is None else bias[c], y)
        for c in pieces(ins):
            yield call.with_arguments(x_q[:, c], x, w_q[:, c], w, bias, y)
    for axis in (2, 3):
        reach = call.options["dilation"][axis - 2] * (w_q.shape[axis] - 1) + 1
        for c in pieces(x_q.shape[axis]):
            at = (slice(None),) * axis + (c,)
            if x_q[at].shape[axis] + 2 * call.options["padding"][axis - 2] >= reach:
                yield call.with_arguments(x_q[at], x, w_q, w, bias, y)
        for c in pieces(w_q.shape[axis]):
            yield call.with_arguments(x_q, x, w_q[(slice(None),) * axis + (c,)], w, bias, y)
    if bias is not None:
        yield call.with_arguments(x_q, x, w_q, w, None, y)
    for plain in plain_codes(x_q, int(x.zero_point)):
        yield call.with_arguments(plain, x, w_q, w, bias, y)
    for plain in plain_codes(w_q, 0):
        yield call.with_arguments(x_q, x, plain, w, bias, y)


def pair(call: Call) -> Iterator[Call]:
    """add and mul."""
    a_q, a, b_q, b, y = call.arguments
    for axis in range(a_q.ndim):
        for c in pieces(a_q.shape[axis]):
            at = (slice(None),) * axis + (c,)
            yield call.with_arguments(a_q[at], a, b_q[at], b, y)


def joined(call: Call) -> Iterator[Call]:
    """concat."""
    parts, y = call.arguments
    for c in pieces(len(parts)):
        yield call.with_arguments(parts[c], y)
    for c in pieces(len(parts[0][0])):
        yield call.with_arguments([(q[c], grid) for q, grid in parts], y)
    for i, (q, grid) in enumerate(parts):
        for c in pieces(q.shape[1]):
            yield call.with_arguments([*parts[:i], (q[:, c], grid), *parts[i + 1 :]], y)


def pool(call: Call) -> Iterator[Call]:
    """Pooling of all kinds."""
    q, grid = call.arguments
    fixed = call.options.get("kernel") or call.options["size"]
    for axis in range(4):
        for c in pieces(q.shape[axis]):
            at = (slice(None),) * axis + (c,)
            if axis < 2 or q[at].shape[axis] >= fixed[axis - 2]:
                yield call.with_arguments(q[at], grid)
    for plain in plain_codes(q, int(grid.zero_point)):
        yield call.with_arguments(plain, grid)


def folding(call: Call) -> Iterator[Call]:
    """fold_batch_norm."""
    weight, bias, *statistics, eps = call.arguments
    for c in pieces(len(weight)):
        its_bias = None if bias is None else bias[c]
        yield call.with_arguments(weight[c], its_bias, *(numbers[c] for numbers in statistics), eps)
    for axis in range(1, weight.ndim):
        for c in pieces(weight.shape[axis]):
            yield call.with_arguments(weight[(slice(None),) * axis + (c,)], bias, *statistics, eps)


CUTS: dict[str, Callable[[Call], Iterator[Call]]] = {
    "quantize": elementwise,
    "dequantize": elementwise,
    "linear": layer,
    "linear_dynamic": dynamic_layer,
    "conv2d": convolution,
    "add": pair,
    "mul": pair,
    "concat": joined,
    "max_pool2d": pool,
    "avg_pool2d": pool,
    "adaptive_avg_pool2d": pool,
    "fold_batch_norm": folding,
}
