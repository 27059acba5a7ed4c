"""Steps from codes to codes, and dynamic layers, as ONNX operators that give the codes of dialect ``onnx``.

Where ONNX Runtime fuses operators between DequantizeLinear and QuantizeLinear into one kernel with the dialect's steps,
they are written so (QDQ). Where its kernel takes other steps, the dialect's are written out on integers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from quantspec.errors import UnsupportedError
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Concat,
    Conv,
    Dequantize,
    Embedding,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Mean,
    Mul,
    Quantize,
    Relu,
    Table,
)  # fmt: skip
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import quantize_bias

from .bilinear import bilinear
from .builder import Dim, Graph, Tensor, broadcast, dim_of, times, total, unit_grid, windows
from .rearrange import like, narrow, pad, reshape, sizes_of, transpose, unsqueeze

Values = dict[str, Any]  # tensors of the graph, lengths, constants, and tuples of these


def quantize(g: Graph, step: Quantize, values: Values) -> Tensor:
    return Tensor(g.quantize(values[step.x].name, step.qparams), values[step.x].shape, step.qparams)


def dequantize(g: Graph, step: Dequantize, values: Values) -> Tensor:
    return Tensor(g.dequantize(values[step.x].name, step.qparams), values[step.x].shape)


def parameters(g: Graph, step: Linear | Conv) -> list[str]:
    """Weight, and bias where there is one, as floats of their codes."""
    w = step.w_qparams
    axis: dict[str, Any] = {} if w.axis is None else {"axis": 0}
    # Weights and their zero points are a layer's own: where ONNX Runtime makes them unsigned, for CPUs without VNNI,
    # shared ones would be made twice.
    weight = g.constant(step.weight, hint="weight", owner=step.name)
    names = [g.node("DequantizeLinear", [weight, *g.grid(w, step.name)], **axis)]
    if step.bias is not None:
        codes, unit = quantize_bias(step.bias, step.x_qparams.scale, w.scale), step.x_qparams.scale * w.scale
        bias = [g.constant(codes, np.int32, "bias"), g.constant(unit, hint="scale")]
        names.append(g.node("DequantizeLinear", bias, **axis))
    return names


def rectified(g: Graph, name: str, step: Linear | Conv | Add, y: QParams) -> str:
    """The output as codes.

    A ReLU whose zero is the lowest code is written out, which costs nothing; others clamp codes.
    """
    if step.relu and y.zero_point == 0:
        name = g.node("Relu", [name])
    return g.quantize(name, y, int(y.zero_point) if step.relu else None)


def linear(g: Graph, step: Linear, values: Values) -> Tensor:
    x, outputs = values[step.x], len(step.weight)
    if step.y_qparams is None:
        return linear_to_float(g, step, x)
    rows = x if x.rank == 2 else reshape(g, x, -1, step.weight.shape[1])
    product = g.node("Gemm", [g.dequantize(rows.name, step.x_qparams), *parameters(g, step)], transB=1)
    y = Tensor(rectified(g, product, step, step.y_qparams), (rows.shape[0], outputs), step.y_qparams)
    return y if rows is x else rows_of(g, x, y, outputs)


def rows_of(g: Graph, x: Tensor, y: Tensor, outputs: int) -> Tensor:
    """Rows [rows, outputs] in the shape that ``x`` has before its last axis."""
    return reshape(g, y, *sizes_of(g, x)[:-1], outputs)


def conv(g: Graph, step: Conv, values: Values) -> Tensor:
    if step.y_qparams is None:
        return conv_to_float(g, step, values[step.x])
    x, attributes, shape = placed(g, step, values[step.x])
    sums = g.node("Conv", [g.dequantize(x.name, step.x_qparams), *parameters(g, step)], **attributes)
    return Tensor(rectified(g, sums, step, step.y_qparams), shape, step.y_qparams)


def placed(g: Graph, step: Conv, x: Tensor) -> tuple[Tensor, dict[str, Any], tuple[Dim, ...]]:
    """The codes that a convolution of ONNX takes, its attributes, and the output's shape."""
    padding, positions = list(step.padding), step.weight.ndim - 2
    if x.rank != positions + 2:
        raise UnsupportedError("a convolution without a batch axis")
    for axis, d in enumerate(step.input_dilation):
        if d > 1:
            x = spread(g, x, axis + 2, d)
    for axis, (before, after) in enumerate(padding):
        if before < 0 or after < 0:
            x = narrow(g, x, axis + 2, max(-before, 0), after if after < 0 else None)
            padding[axis] = (max(before, 0), max(after, 0))
    attributes = {
        "strides": step.stride, "pads": [before for before, _ in padding] + [after for _, after in padding],
        "dilations": step.dilation, "group": step.groups, "kernel_shape": step.weight.shape[2:],
    }  # fmt: skip
    places = zip(x.shape[2:], step.weight.shape[2:], step.stride, padding, step.dilation)
    positions_after = (windows(n, k, s, b, a, d) for n, k, s, (b, a), d in places)
    return x, attributes, (x.shape[0], len(step.weight), *positions_after)


def linear_to_float(g: Graph, step: Linear, x: Tensor) -> Tensor:
    """An integer product, and DIA-DYNAMIC, `multiply-add`, in its own steps."""
    weight = g.constant(step.weight.T, hint="weight", owner=step.name)
    sums = g.node("MatMulInteger", [x.name, weight, g.zero_point(step.x_qparams)])
    shape = (*x.shape[:-1], len(step.weight))
    return Tensor(floats(g, sums, step, (-1,)), shape)


def conv_to_float(g: Graph, step: Conv, x: Tensor) -> Tensor:
    """The same of a convolution.

    ConvInteger takes unsigned weights only, so that its codes lie 128 higher, and so does their zero point.
    """
    x, attributes, shape = placed(g, step, x)
    weight = g.constant((step.weight.astype(np.int16) + 128).astype(np.uint8), np.uint8, "weight")
    inputs = [x.name, weight, g.zero_point(step.x_qparams), g.constant(128, np.uint8)]
    sums = g.node("ConvInteger", inputs, **attributes)
    return Tensor(floats(g, sums, step, (-1, *[1] * (step.weight.ndim - 2))), shape)


def floats(g: Graph, sums: str, step: Linear | Conv, along: tuple[int, ...]) -> str:
    """Floats of accumulators; ``along``: the shape in which what belongs to channels meets them."""
    unit = np.float32(step.x_qparams.scale) * step.w_qparams.scale
    scale = g.constant(unit.reshape(along) if unit.ndim else unit, hint="scale")
    y = g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), scale])
    if step.bias is not None:
        y = g.node("Add", [y, g.constant(step.bias.reshape(along), np.float32, "bias")])
    return g.node("Relu", [y]) if step.relu else y


def spread(g: Graph, x: Tensor, axis: int, d: int) -> Tensor:
    """Codes with d - 1 zero points between neighbours along an axis."""
    last = x.rank - 1
    x = transpose(g, x, axis, last) if axis != last else x
    size = g.size(x, last)
    apart = pad(g, unsqueeze(g, x, x.rank), (0, d - 1))
    joined = reshape(g, apart, *sizes_of(g, x)[:-1], -1)
    joined = Tensor(joined.name, (*x.shape[:-1], times(dim_of(size), d)), x.grid)
    joined = narrow(g, joined, last, 0, -(d - 1))
    return transpose(g, joined, axis, last) if axis != last else joined


def table(g: Graph, step: Table, values: Values) -> Tensor:
    """The code of each of 256 codes, as it is in the Program: exact by construction."""
    x = values[step.x]
    index = g.node("Cast", [x.name], to=TensorProto.INT32)
    if step.table.ndim > 1:  # a table for each channel, which lie one behind the other
        starts = 256 * np.arange(len(step.table)).reshape(-1, *[1] * (x.rank - 2))
        index = g.node("Add", [index, g.constant(starts, np.int32)])
    return Tensor(g.node("Gather", [g.constant(step.table.ravel(), hint="table"), index]), x.shape, step.y_qparams)


def relu(g: Graph, step: Relu, values: Values) -> Tensor:
    x, point = values[step.x], int(step.qparams.zero_point)
    return x if point == 0 else like(x, g.clamp(x.name, unit_grid(point, point, 255)), x.shape)


def add(g: Graph, step: Add, values: Values) -> Tensor:
    a, b = values[step.a], values[step.b]
    shape = broadcast(a.shape, b.shape)
    # ONNX Runtime's kernel exchanges the two where the first is broadcast, and the dialect's sum is not symmetric in
    # its last bit: DIA-ADD, `ratios`.
    names = [a.name, b.name]
    if a.shape != shape:
        names[0] = g.node("Expand", [a.name, g.node("Shape", [b.name])])
    if b.shape != shape:
        names[1] = g.node("Expand", [b.name, g.node("Shape", [names[0]])])
    sums = g.node("Add", [g.dequantize(names[0], step.a_qparams), g.dequantize(names[1], step.b_qparams)])
    return Tensor(rectified(g, sums, step, step.y_qparams), shape, step.y_qparams)


def mul(g: Graph, step: Mul, values: Values) -> Tensor:
    a, b = values[step.a], values[step.b]
    products = g.node("Mul", [g.dequantize(a.name, step.a_qparams), g.dequantize(b.name, step.b_qparams)])
    return Tensor(g.quantize(products, step.y_qparams), broadcast(a.shape, b.shape), step.y_qparams)


def same_grid(grid: QParams, other: QParams) -> bool:
    return (grid.scale, grid.zero_point) == (other.scale, other.zero_point)


def concat(g: Graph, step: Concat, values: Values) -> Tensor:
    y, xs = step.y_qparams, [values[x] for x in step.xs]
    axis, dims = xs[0].axis(step.axis), xs[0].shape
    shape = (*dims[:axis], total([x.shape[axis] for x in xs]), *dims[axis + 1 :])
    if all(same_grid(grid, y) for grid in step.x_qparams):
        return Tensor(g.node("Concat", [x.name for x in xs], axis=step.axis), shape, y)
    parts = [g.dequantize(x.name, grid) for x, grid in zip(xs, step.x_qparams)]
    return Tensor(g.quantize(g.node("Concat", parts, axis=step.axis), y), shape, y)


def max_pool(g: Graph, step: MaxPool, values: Values) -> Tensor:
    x = values[step.x]
    name = g.node(
        "MaxPool", [x.name], kernel_shape=step.kernel, strides=step.stride, pads=[*step.padding, *step.padding],
        dilations=step.dilation, ceil_mode=int(step.ceil_mode),
    )  # fmt: skip
    return like(x, name, pooled(x, step, step.dilation))


def pooled(x: Tensor, step: MaxPool | AvgPool, dilation: tuple[int, ...]) -> tuple[Dim, ...]:
    if x.rank != len(step.kernel) + 2:
        raise UnsupportedError("pooling without a batch axis")
    places = zip(x.shape[2:], step.kernel, step.stride, step.padding, dilation)
    return (*x.shape[:2], *(windows(n, k, s, p, p, d, step.ceil_mode) for n, k, s, p, d in places))


def avg_pool(g: Graph, step: AvgPool, values: Values) -> Tensor:
    x, grid = values[step.x], step.qparams
    shape = pooled(x, step, (1,) * len(step.kernel))
    if step.ceil_mode:
        return Tensor(last_windows(g, x, step), shape, grid)
    averages = g.node(
        "AveragePool", [g.dequantize(x.name, grid)], kernel_shape=step.kernel, strides=step.stride,
        pads=[*step.padding, *step.padding], count_include_pad=int(step.count_include_pad),
    )  # fmt: skip
    return Tensor(g.quantize(averages, grid), shape, grid)


def last_windows(g: Graph, x: Tensor, step: AvgPool) -> str:
    """Averages over windows of which the last may end outside: DIA-AVERAGE, `real`, written out.

    ONNX Runtime's kernel counts other positions there.
    """
    first, grid = x.rank - len(step.kernel), step.qparams
    places = list(zip(range(first, x.rank), step.kernel, step.stride, step.padding))
    widths, ends = [], []
    positions = g.ints(1)
    for axis, kernel, stride, padding in places:
        length = g.int_name(g.size(x, axis))
        count, reach = window_count(g, length, kernel, stride, padding)
        last_end = g.node("Add", [reach, g.ints(kernel - padding)])
        widths.append(g.node("Max", [g.node("Sub", [last_end, length]), g.ints(0)]))
        ends.append(g.node("Add", [reach, g.ints(1)]))
        start = g.node("Sub", [g.node("Mul", [g.numbers(count), g.ints(stride)]), g.ints(padding)])
        low, high = g.ints(0), length
        if step.count_include_pad:
            low, high = g.ints(-padding), g.node("Add", [length, g.ints(padding)])
        stop = g.node("Min", [g.node("Add", [start, g.ints(kernel)]), high])
        inside = g.node("Sub", [stop, g.node("Max", [start, low])])
        along_axis = g.ints(*(-1 if i == axis else 1 for i in range(x.rank)))
        positions = g.node("Mul", [positions, g.node("Reshape", [inside, along_axis])])
    pads = g.node("Concat", [g.ints(*[0] * first, *step.padding, *[0] * first), *widths], axis=0)
    padded = g.node("Pad", [g.dequantize(x.name, grid), pads, g.constant(0.0, np.float32)])
    axes, strides, end = g.ints(*(axis for axis, *_ in places)), g.ints(*step.stride), g.node("Concat", ends, axis=0)
    sums = g.constant(0.0, np.float32)
    for place in np.ndindex(*step.kernel):
        view = g.node("Slice", [padded, g.ints(*place), g.node("Add", [end, g.ints(*place)]), axes, strides])
        sums = g.node("Add", [sums, view])
    quotient = g.node("Div", [sums, g.node("Cast", [positions], to=TensorProto.FLOAT)])
    steps = g.node("Div", [quotient, g.constant(grid.scale, hint="scale")])
    steps = g.node("Add", [steps, g.constant(float(grid.zero_point), np.float32)])
    return g.quantize(steps, unit_grid(0, grid.qmin, grid.qmax))


def window_count(g: Graph, length: str, kernel: int, stride: int, padding: int) -> tuple[str, str]:
    """How many windows there are along an axis, those that end outside included, and where the last begins."""
    room = g.node("Add", [length, g.ints(2 * padding - kernel + stride - 1)])
    count = g.node("Add", [g.node("Div", [room, g.ints(stride)]), g.ints(1)])
    begins = g.node("Mul", [g.node("Sub", [count, g.ints(1)]), g.ints(stride)])
    outside = g.node("GreaterOrEqual", [begins, g.node("Add", [length, g.ints(padding)])])
    count = g.node("Sub", [count, g.node("Cast", [outside], to=TensorProto.INT64)])
    return count, g.node("Mul", [g.node("Sub", [count, g.ints(1)]), g.ints(stride)])


def mean(g: Graph, step: Mean, values: Values) -> Tensor:
    x = values[step.x]
    axes = tuple(x.axis(axis) for axis in step.axes)
    sums = g.node("ReduceSum", [centred(g, x.name, step.qparams), g.ints(*axes)], keepdims=int(step.keepdim))
    lengths = [g.size(x, axis) for axis in axes]
    count = g.node("ReduceProd", [g.vector(lengths), g.ints(0)], keepdims=0)
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape) if step.keepdim or i not in axes)
    return Tensor(averaged(g, sums, count, step.qparams), shape, step.qparams)


def centred(g: Graph, codes: str, grid: QParams) -> str:
    """Codes without their zero point, int32."""
    wide = g.node("Cast", [codes], to=TensorProto.INT32)
    return wide if grid.zero_point == 0 else g.node("Sub", [wide, g.constant(grid.zero_point)])


def averaged(g: Graph, sums: str, count: str, grid: QParams) -> str:
    """DIA-AVERAGE, `ratio`, in its own steps.

    Sums, int32, times scale / (scale * count) in float32, rounded, on the zero point.
    """
    scale = g.constant(grid.scale, hint="scale")
    ratio = g.node("Div", [scale, g.node("Mul", [scale, g.node("Cast", [count], to=TensorProto.FLOAT)])])
    steps = g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), ratio])
    return g.quantize(steps, unit_grid(int(grid.zero_point), grid.qmin, grid.qmax))


def adaptive(g: Graph, step: AdaptiveAvgPool, values: Values) -> Tensor:
    """Sums of parts of an image as differences of running sums, which are integers and exact."""
    x, grid = values[step.x], step.qparams
    first = x.rank - len(step.size)
    if all(size == 1 for size in step.size):
        return mean(g, Mean(step.name, step.x, grid, tuple(range(first, x.rank)), True), values)
    sums, dims, counts = centred(g, x.name, grid), list(x.shape), g.ints(1)
    for axis, size in enumerate(step.size, start=first):
        if size is None:
            continue
        length = g.int_name(g.size(x, axis))
        starts = g.node("Div", [g.node("Mul", [g.ints(*range(size)), length]), g.ints(size)])
        following = g.node("Mul", [g.ints(*range(1, size + 1)), length])
        ends = g.node("Div", [g.node("Add", [following, g.ints(size - 1)]), g.ints(size)])
        running = g.node("CumSum", [sums, g.constant(axis, np.int64)])
        before = [int(i == axis) for i in range(x.rank)]
        running = g.node("Pad", [running, g.ints(*before, *[0] * x.rank), g.constant(0, np.int32)])
        until, since = (g.node("Gather", [running, places], axis=axis) for places in (ends, starts))
        sums = g.node("Sub", [until, since])
        along_axis = g.ints(*(-1 if i == axis else 1 for i in range(x.rank)))
        counts = g.node("Mul", [counts, g.node("Reshape", [g.node("Sub", [ends, starts]), along_axis])])
        dims[axis] = size
    return Tensor(averaged(g, sums, counts, grid), tuple(dims), grid)


# --- from floats to floats


def linear_dynamic(g: Graph, step: LinearDynamic, values: Values) -> Tensor:
    x = values[step.x]
    weight, unit = step.weight.T, step.w_qparams.scale
    if step.rows or step.reduce_range:
        y = by_rows(g, x.name, weight, unit, step)
    else:
        codes, scale, point = g.outputs(3, "DynamicQuantizeLinear", [x.name])
        zeros = g.constant(np.zeros(unit.shape), np.int8, "zero_point", step.name)
        sums = g.node("MatMulInteger", [codes, g.constant(weight, hint="weight", owner=step.name), point, zeros])
        ratio = g.node("Mul", [scale, g.constant(unit, hint="scale")])
        y = g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), ratio])
    return linear_output(g, x, y, step)


def linear_output(g: Graph, x: Tensor, y: str, step: LinearDynamic | LinearWeight) -> Tensor:
    """The product with the bias added."""
    if step.bias is not None:
        y = g.node("Add", [y, g.constant(step.bias, np.float32, "bias")])
    return Tensor(y, (*x.shape[:-1], len(step.weight)))


def by_rows(g: Graph, x: str, weight: np.ndarray, unit: np.ndarray, step: LinearDynamic) -> str:
    """Without the operator, which has one range for all rows and eight bits.

    `float32-bare`, `divide`, and a product of int32.
    """
    qmax = 127 if step.reduce_range else 255
    zero, one = g.constant(0.0, np.float32), g.constant(1.0, np.float32)
    ends = [g.node(f"Reduce{end}", [x, *([g.ints(-1)] if step.rows else [])]) for end in ("Min", "Max")]
    low, high = g.node("Min", [ends[0], zero]), g.node("Max", [ends[1], zero])
    scale = g.node("Div", [g.node("Sub", [high, low]), g.constant(float(qmax), np.float32)])
    scale = g.node("Where", [g.node("Equal", [scale, zero]), one, scale])
    bounds = zero, g.constant(float(qmax), np.float32)
    point = g.node("Clip", [g.node("Round", [g.node("Sub", [zero, g.node("Div", [low, scale])])]), *bounds])
    codes = g.node("Clip", [g.node("Add", [g.node("Round", [g.node("Div", [x, scale])]), point]), *bounds])
    centre = g.node("Cast", [g.node("Sub", [codes, point])], to=TensorProto.INT32)
    sums = g.node("MatMul", [centre, g.constant(weight, np.int32, "weight")])
    ratio = g.node("Mul", [scale, g.constant(unit, hint="scale")])
    return g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), ratio])


def linear_weight(g: Graph, step: LinearWeight, values: Values) -> Tensor:
    """The weights' codes times their scales, and a product of floats.

    Behind a DequantizeLinear ONNX Runtime would quantize the activations too.
    """
    x, unit = values[step.x], step.w_qparams.scale
    codes = g.node("Cast", [g.constant(step.weight.T, hint="weight")], to=TensorProto.FLOAT)
    product = g.node("MatMul", [x.name, g.node("Mul", [codes, g.constant(unit, hint="scale")])])
    return linear_output(g, x, product, step)


def embedding(g: Graph, step: Embedding, values: Values) -> Tensor:
    """Rows of codes and the scales of these rows, multiplied: what dequantizing is with zero point 0."""
    if step.bag is not None:
        raise UnsupportedError("an embedding bag")
    x, unit = values[step.x], step.w_qparams.scale
    rows = g.node("Gather", [g.constant(step.weight, hint="weight"), x.name])
    rows = g.node("Cast", [rows], to=TensorProto.FLOAT)
    if step.w_qparams.axis == 0:
        scale = g.node("Gather", [g.constant(unit.reshape(-1, 1), hint="scale"), x.name])
    else:
        scale = g.constant(unit, hint="scale")
    return Tensor(g.node("Mul", [rows, scale]), (*x.shape, step.weight.shape[1]))


STEPS: dict[type, Callable[[Graph, Any, Values], Tensor]] = {
    Quantize: quantize, Dequantize: dequantize, Linear: linear, Conv: conv, Table: table, Relu: relu, Add: add,
    Mul: mul, Concat: concat, MaxPool: max_pool, AvgPool: avg_pool, AdaptiveAvgPool: adaptive, Mean: mean,
    Bilinear: bilinear, LinearDynamic: linear_dynamic, LinearWeight: linear_weight, Embedding: embedding,
}  # fmt: skip
