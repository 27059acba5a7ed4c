"""Steps from codes to codes, and dynamic layers, as ONNX operators that give what engine ``reference`` gives in dialect ``onnx``.

Where ONNX Runtime fuses operators between DequantizeLinear and QuantizeLinear into one kernel with the dialect's steps, they are written so (QDQ). Where its
kernel takes other steps, the dialect's are written out on integers.
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
)
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import quantize_bias

from .builder import Dim, Graph, Tensor, broadcast, windows
from .rearrange import like, narrow, pad, reshape, sizes_of, transpose, unsqueeze

Values = dict[str, Any]


def quantize(g: Graph, step: Quantize, values: Values) -> Tensor:
    return Tensor(g.quantize(values[step.x].name, step.qparams), values[step.x].shape, step.qparams)


def dequantize(g: Graph, step: Dequantize, values: Values) -> Tensor:
    return Tensor(g.dequantize(values[step.x].name, step.qparams), values[step.x].shape)


def parameters(g: Graph, step: Linear | Conv) -> list[str]:
    """Weight, and bias where there is one, as floats of their codes."""
    w = step.w_qparams
    axis = {} if w.axis is None else {"axis": 0}
    # Weights and their zero points are a layer's own: where ONNX Runtime makes them unsigned, for CPUs without VNNI, shared ones would be made twice.
    made = [g.node("DequantizeLinear", [g.constant(step.weight, np.int8, "weight", step.name), *g.grid(w, step.name)], **axis)]
    if step.bias is not None:
        codes, unit = quantize_bias(step.bias, step.x_qparams.scale, w.scale), step.x_qparams.scale * w.scale
        made.append(g.node("DequantizeLinear", [g.constant(codes, np.int32, "bias"), g.constant(unit, np.float32, "scale")], **axis))
    return made


def rectified(g: Graph, name: str, step: Linear | Conv | Add) -> str:
    """The layer's output as codes. A ReLU whose zero is the lowest code is written out, which costs nothing; others are a clamp of codes."""
    y = step.y_qparams
    if step.relu and y.zero_point == 0:
        name = g.node("Relu", [name])
    return g.quantize(name, y, int(y.zero_point) if step.relu else None)


def linear(g: Graph, step: Linear, values: Values) -> Tensor:
    if step.y_qparams is None:
        return linear_real(g, step, values)
    x = values[step.x]
    rows = x if x.shape is not None and x.rank == 2 else reshape(g, x, -1, step.weight.shape[1])
    made = g.node("Gemm", [g.dequantize(rows.name, step.x_qparams), *parameters(g, step)], transB=1)
    y = Tensor(rectified(g, made, step), (rows.shape[0], len(step.weight)), step.y_qparams)
    return y if rows is x else rows_of(g, x, y, len(step.weight))


def rows_of(g: Graph, x: Tensor, y: Tensor, outputs: int) -> Tensor:
    """Rows [rows, outputs] in the shape that ``x`` has before its last axis."""
    if x.shape is not None:
        return reshape(g, y, *sizes_of(g, x)[:-1], outputs)
    shape = g.node("Shape", [x.name], end=-1)
    return Tensor(g.node("Reshape", [y.name, g.node("Concat", [shape, g.ints(outputs)], axis=0)]), None, y.grid)


def conv(g: Graph, step: Conv, values: Values) -> Tensor:
    if step.y_qparams is None:
        return conv_real(g, step, values)
    x, attributes, shape = placed(g, step, values[step.x])
    made = g.node("Conv", [g.dequantize(x.name, step.x_qparams), *parameters(g, step)], **attributes)
    return Tensor(rectified(g, made, step), shape, step.y_qparams)


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
    pads = [before for before, _ in padding] + [after for _, after in padding]
    attributes = {"strides": step.stride, "pads": pads, "dilations": step.dilation, "group": step.groups, "kernel_shape": step.weight.shape[2:]}
    places = zip(x.shape[2:], step.weight.shape[2:], step.stride, padding, step.dilation)
    return x, attributes, (x.shape[0], len(step.weight), *(windows(n, k, s, b, a, d) for n, k, s, (b, a), d in places))


def linear_real(g: Graph, step: Linear, values: Values) -> Tensor:
    """An integer product, and DIA-DYNAMIC, `multiply-add`, in its own steps."""
    x, (_, point) = values[step.x], g.grid(step.x_qparams)
    weight = g.constant(np.ascontiguousarray(step.weight.T), np.int8, "weight", step.name)
    sums = g.node("MatMulInteger", [x.name, weight, point])
    return Tensor(real(g, sums, step, (-1,)), None if x.shape is None else (*x.shape[:-1], len(step.weight)))


def conv_real(g: Graph, step: Conv, values: Values) -> Tensor:
    """The same of a convolution. ConvInteger takes unsigned weights only, so that its codes lie 128 higher, and so does their zero point."""
    x, attributes, shape = placed(g, step, values[step.x])
    weight = g.constant((step.weight.astype(np.int16) + 128).astype(np.uint8), np.uint8, "weight")
    sums = g.node("ConvInteger", [x.name, weight, g.grid(step.x_qparams)[1], g.constant(128, np.uint8)], **attributes)
    return Tensor(real(g, sums, step, (-1, *[1] * (step.weight.ndim - 2))), shape)


def real(g: Graph, sums: str, step: Linear | Conv, along: tuple[int, ...]) -> str:
    """Floats of accumulators; ``along``: the shape in which what belongs to channels meets them."""
    unit = np.float32(step.x_qparams.scale) * step.w_qparams.scale
    made = g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), g.constant(unit.reshape(along) if unit.ndim else unit, np.float32, "scale")])
    if step.bias is not None:
        made = g.node("Add", [made, g.constant(step.bias.reshape(along), np.float32, "bias")])
    return g.node("Relu", [made]) if step.relu else made


def spread(g: Graph, x: Tensor, axis: int, d: int) -> Tensor:
    """Codes with d - 1 zero points between neighbours along an axis."""
    last = x.rank - 1
    x = transpose(g, x, axis, last) if axis != last else x
    size = g.size(x, last)
    apart = unsqueeze(g, x, x.rank)
    apart = pad(g, apart, (0, d - 1))
    joined = reshape(g, apart, *sizes_of(g, x)[:-1], -1)
    joined = Tensor(joined.name, (*x.shape[:-1], size * d if isinstance(size, int) else ("times", size.dim, d)), x.grid)
    joined = narrow(g, joined, last, 0, -(d - 1))
    return transpose(g, joined, axis, last) if axis != last else joined


def table(g: Graph, step: Table, values: Values) -> Tensor:
    """The code of each of 256 codes, as it is in the Program: exact by construction."""
    x = values[step.x]
    index = g.node("Cast", [x.name], to=TensorProto.INT32)
    return Tensor(g.node("Gather", [g.constant(step.table, np.uint8, "table"), index]), x.shape, step.y_qparams)


def relu(g: Graph, step: Relu, values: Values) -> Tensor:
    x, point = values[step.x], int(step.qparams.zero_point)
    return x if point == 0 else like(x, g.clamp(x.name, QParams(1, point, point, 255)), x.shape)


def add(g: Graph, step: Add, values: Values) -> Tensor:
    a, b = values[step.a], values[step.b]
    shape = broadcast(a.shape, b.shape)
    # ONNX Runtime's kernel exchanges the two where the first is broadcast, and the dialect's sum is not symmetric in its last bit: DIA-ADD, `ratios`.
    names = [a.name, b.name]
    if shape is None or a.shape != shape:
        names[0] = g.node("Expand", [a.name, g.node("Shape", [b.name])])
    if shape is None or b.shape != shape:
        names[1] = g.node("Expand", [b.name, g.node("Shape", [names[0]])])
    made = g.node("Add", [g.dequantize(names[0], step.a_qparams), g.dequantize(names[1], step.b_qparams)])
    return Tensor(rectified(g, made, step), shape, step.y_qparams)


def mul(g: Graph, step: Mul, values: Values) -> Tensor:
    a, b = values[step.a], values[step.b]
    made = g.node("Mul", [g.dequantize(a.name, step.a_qparams), g.dequantize(b.name, step.b_qparams)])
    return Tensor(g.quantize(made, step.y_qparams), broadcast(a.shape, b.shape), step.y_qparams)


def on_grid(grid: QParams, other: QParams) -> bool:
    return (grid.scale, grid.zero_point) == (other.scale, other.zero_point)


def concat(g: Graph, step: Concat, values: Values) -> Tensor:
    y, xs = step.y_qparams, [values[x] for x in step.xs]
    shape = None
    if all(x.shape is not None for x in xs):
        axis = xs[0].axis(step.axis)
        along = [x.shape[axis] for x in xs]
        total: Dim = sum(along) if all(isinstance(n, int) for n in along) else ("sum", *along)
        shape = (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :])
    if all(on_grid(grid, y) for grid in step.x_qparams):
        return Tensor(g.node("Concat", [x.name for x in xs], axis=step.axis), shape, y)
    made = g.node("Concat", [g.dequantize(x.name, grid) for x, grid in zip(xs, step.x_qparams)], axis=step.axis)
    return Tensor(g.quantize(made, y), shape, y)


def max_pool(g: Graph, step: MaxPool, values: Values) -> Tensor:
    x = values[step.x]
    made = g.node(
        "MaxPool", [x.name], kernel_shape=step.kernel, strides=step.stride, pads=[*step.padding, *step.padding], dilations=step.dilation, ceil_mode=int(step.ceil_mode)
    )
    return like(x, made, pooled(x, step, step.dilation))


def pooled(x: Tensor, step: MaxPool | AvgPool, dilation: tuple[int, ...]) -> tuple[Dim, ...] | None:
    if x.shape is None:
        return None
    if x.rank != len(step.kernel) + 2:
        raise UnsupportedError("pooling without a batch axis")
    places = zip(x.shape[2:], step.kernel, step.stride, step.padding, dilation)
    return (*x.shape[:2], *(windows(n, k, s, p, p, d, step.ceil_mode) for n, k, s, p, d in places))


def avg_pool(g: Graph, step: AvgPool, values: Values) -> Tensor:
    x, grid = values[step.x], step.qparams
    shape = pooled(x, step, (1,) * len(step.kernel))
    if step.ceil_mode:
        return Tensor(last_windows(g, x, step), shape, grid)
    made = g.node(
        "AveragePool", [g.dequantize(x.name, grid)], kernel_shape=step.kernel, strides=step.stride, pads=[*step.padding, *step.padding],
        count_include_pad=int(step.count_include_pad),
    )  # fmt: skip
    return Tensor(g.quantize(made, grid), shape, grid)


def last_windows(g: Graph, x: Tensor, step: AvgPool) -> str:
    """Averages over windows of which the last may end outside, where ONNX Runtime's kernel counts other positions: DIA-AVERAGE, `real`, written out."""
    first, grid = x.rank - len(step.kernel), step.qparams
    places = list(zip(range(first, x.rank), step.kernel, step.stride, step.padding))
    widths, starts, positions = [], [], None
    for axis, k, s, p in places:
        length, one, stride = g.int_name(g.size(x, axis)), g.ints(1), g.ints(s)
        room = g.node("Add", [length, g.ints(2 * p - k + s - 1)])
        count = g.node("Add", [g.node("Div", [room, stride]), one])
        begins = g.node("Mul", [g.node("Sub", [count, one]), stride])
        outside = g.node("Cast", [g.node("GreaterOrEqual", [begins, g.node("Add", [length, g.ints(p)])])], to=TensorProto.INT64)
        count = g.node("Sub", [count, outside])
        reach = g.node("Mul", [g.node("Sub", [count, one]), stride])
        widths.append(g.node("Max", [g.node("Sub", [g.node("Add", [reach, g.ints(k - p)]), length]), g.ints(0)]))
        starts.append(g.node("Add", [reach, one]))
        scalar = g.node("Squeeze", [count])
        at = g.node("Sub", [g.node("Mul", [g.node("Range", [g.constant(0, np.int64), scalar, g.constant(1, np.int64)]), stride]), g.ints(p)])
        low, high = (g.ints(-p), g.node("Add", [length, g.ints(p)])) if step.count_include_pad else (g.ints(0), length)
        inside = g.node("Sub", [g.node("Min", [g.node("Add", [at, g.ints(k)]), high]), g.node("Max", [at, low])])
        inside = g.node("Reshape", [inside, g.ints(*(-1 if i == axis else 1 for i in range(first, x.rank)))])
        positions = inside if positions is None else g.node("Mul", [positions, inside])
    before = g.ints(*[0] * first, *step.padding, *[0] * first)
    values = g.node("Pad", [g.dequantize(x.name, grid), g.node("Concat", [before, *widths], axis=0), g.constant(0.0, np.float32)])
    axes, strides, ends = g.ints(*(axis for axis, *_ in places)), g.ints(*step.stride), g.node("Concat", starts, axis=0)
    total = g.constant(0.0, np.float32)
    for place in np.ndindex(*step.kernel):
        view = g.node("Slice", [values, g.ints(*place), g.node("Add", [ends, g.ints(*place)]), axes, strides])
        total = g.node("Add", [total, view])
    quotient = g.node("Div", [total, g.node("Cast", [positions], to=TensorProto.FLOAT)])
    steps = g.node("Add", [g.node("Div", [quotient, g.constant(grid.scale, np.float32, "scale")]), g.constant(float(grid.zero_point), np.float32)])
    return g.quantize(steps, QParams(1, 0, grid.qmin, grid.qmax))


def mean(g: Graph, step: Mean, values: Values) -> Tensor:
    x = values[step.x]
    axes = tuple(x.axis(axis) for axis in step.axes)
    total = g.node("ReduceSum", [centred(g, x.name, step.qparams), g.ints(*axes)], keepdims=int(step.keepdim))
    lengths = [g.size(x, axis) for axis in axes]
    count = g.node("ReduceProd", [g.vector(lengths), g.ints(0)], keepdims=0)
    shape = tuple(1 if i in axes else d for i, d in enumerate(x.shape) if step.keepdim or i not in axes)
    return Tensor(averaged(g, total, count, step.qparams), shape, step.qparams)


def centred(g: Graph, codes: str, grid: QParams) -> str:
    """Codes without their zero point, int32."""
    wide = g.node("Cast", [codes], to=TensorProto.INT32)
    return wide if grid.zero_point == 0 else g.node("Sub", [wide, g.constant(grid.zero_point, np.int32)])


def averaged(g: Graph, total: str, count: str, grid: QParams) -> str:
    """DIA-AVERAGE, `ratio`, in its own steps: sums int32 times scale / (scale * count) in float32, rounded, on the zero point."""
    scale = g.constant(grid.scale, np.float32, "scale")
    ratio = g.node("Div", [scale, g.node("Mul", [scale, g.node("Cast", [count], to=TensorProto.FLOAT)])])
    steps = g.node("Mul", [g.node("Cast", [total], to=TensorProto.FLOAT), ratio])
    return g.quantize(steps, QParams(1, int(grid.zero_point), grid.qmin, grid.qmax))


def adaptive(g: Graph, step: AdaptiveAvgPool, values: Values) -> Tensor:
    """Sums of parts of an image as differences of running sums, which are integers and exact."""
    x, n = values[step.x], len(step.size)
    first = x.rank - n
    total, dims, counts = centred(g, x.name, step.qparams), list(x.shape), None
    if all(size == 1 for size in step.size):
        made = mean(g, Mean(step.name, step.x, step.qparams, tuple(range(first, x.rank)), True), values)
        return made
    for axis, size in enumerate(step.size, start=first):
        if size is None:
            continue
        length = g.int_name(g.size(x, axis))
        index = g.constant(np.arange(size), np.int64)
        starts = g.node("Div", [g.node("Mul", [index, length]), g.ints(size)])
        following = g.node("Mul", [g.constant(np.arange(1, size + 1), np.int64), length])
        ends = g.node("Div", [g.node("Add", [following, g.ints(size - 1)]), g.ints(size)])
        running = g.node("CumSum", [total, g.constant(axis, np.int64)])
        before = [int(i == axis) for i in range(x.rank)]
        running = g.node("Pad", [running, g.ints(*before, *[0] * x.rank), g.constant(0, np.int32)])
        total = g.node("Sub", [g.node("Gather", [running, ends], axis=axis), g.node("Gather", [running, starts], axis=axis)])
        along = g.node("Reshape", [g.node("Sub", [ends, starts]), g.ints(*(-1 if i == axis else 1 for i in range(first, x.rank)))])
        counts = along if counts is None else g.node("Mul", [counts, along])
        dims[axis] = size
    if counts is None:
        counts = g.ints(1)
    return Tensor(averaged(g, total, counts, step.qparams), tuple(dims), step.qparams)


# --- from floats to floats


def linear_dynamic(g: Graph, step: LinearDynamic, values: Values) -> Tensor:
    x = values[step.x]
    weight, unit = np.ascontiguousarray(step.weight.T), step.w_qparams.scale
    if step.rows or step.reduce_range:
        made = by_rows(g, x.name, weight, unit, step)
    else:
        codes, scale, point = g.node("DynamicQuantizeLinear", [x.name], outputs=3)
        zeros = g.constant(np.zeros(unit.shape), np.int8, "zero_point", step.name)
        sums = g.node("MatMulInteger", [codes, g.constant(weight, np.int8, "weight", step.name), point, zeros])
        made = g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), g.node("Mul", [scale, g.constant(unit, np.float32, "scale")])])
    if step.bias is not None:
        made = g.node("Add", [made, g.constant(step.bias, np.float32, "bias")])
    return Tensor(made, None if x.shape is None else (*x.shape[:-1], len(step.weight)))


def by_rows(g: Graph, x: str, weight: np.ndarray, unit: np.ndarray, step: LinearDynamic) -> str:
    """Without the operator, which has one range for all rows and eight bits: `float32-bare`, `divide`, and a product of int32."""
    qmax = 127 if step.reduce_range else 255
    zero, one = g.constant(0.0, np.float32), g.constant(1.0, np.float32)
    ends = [g.node(f"Reduce{end}", [x, *([g.ints(-1)] if step.rows else [])], keepdims=1) for end in ("Min", "Max")]
    low, high = g.node("Min", [ends[0], zero]), g.node("Max", [ends[1], zero])
    scale = g.node("Div", [g.node("Sub", [high, low]), g.constant(float(qmax), np.float32)])
    scale = g.node("Where", [g.node("Equal", [scale, zero]), one, scale])
    bounds = zero, g.constant(float(qmax), np.float32)
    point = g.node("Clip", [g.node("Round", [g.node("Sub", [zero, g.node("Div", [low, scale])])]), *bounds])
    codes = g.node("Clip", [g.node("Add", [g.node("Round", [g.node("Div", [x, scale])]), point]), *bounds])
    centre = g.node("Cast", [g.node("Sub", [codes, point])], to=TensorProto.INT32)
    sums = g.node("MatMul", [centre, g.constant(weight, np.int32, "weight")])
    return g.node("Mul", [g.node("Cast", [sums], to=TensorProto.FLOAT), g.node("Mul", [scale, g.constant(unit, np.float32, "scale")])])


def linear_weight(g: Graph, step: LinearWeight, values: Values) -> Tensor:
    """The weights' codes times their scales, and a product of floats. (Behind a DequantizeLinear ONNX Runtime would quantize the activations too.)"""
    x, unit = values[step.x], step.w_qparams.scale
    codes = g.node("Cast", [g.constant(step.weight.T, np.int8, "weight")], to=TensorProto.FLOAT)
    made = g.node("MatMul", [x.name, g.node("Mul", [codes, g.constant(unit, np.float32, "scale")])])
    if step.bias is not None:
        made = g.node("Add", [made, g.constant(step.bias, np.float32, "bias")])
    return Tensor(made, None if x.shape is None else (*x.shape[:-1], len(step.weight)))


def embedding(g: Graph, step: Embedding, values: Values) -> Tensor:
    """Rows of codes and the scales of these rows, multiplied: what dequantizing is with zero point 0."""
    if step.bag is not None:
        raise UnsupportedError("an embedding bag")
    x = values[step.x]
    rows = g.node("Cast", [g.node("Gather", [g.constant(step.weight, np.int8, "weight"), x.name])], to=TensorProto.FLOAT)
    scale = g.constant(step.w_qparams.scale.reshape(-1, 1) if step.w_qparams.axis == 0 else step.w_qparams.scale, np.float32, "scale")
    if step.w_qparams.axis == 0:
        scale = g.node("Gather", [scale, x.name])
    return Tensor(g.node("Mul", [rows, scale]), None if x.shape is None else (*x.shape, step.weight.shape[1]))


STEPS: dict[type, Callable[[Graph, Any, Values], Tensor]] = {
    Quantize: quantize, Dequantize: dequantize, Linear: linear, Conv: conv, Table: table, Relu: relu, Add: add, Mul: mul, Concat: concat, MaxPool: max_pool,
    AvgPool: avg_pool, AdaptiveAvgPool: adaptive, Mean: mean, LinearDynamic: linear_dynamic, LinearWeight: linear_weight, Embedding: embedding,
}  # fmt: skip
