"""The instructions of each kind of step: those of layers are in ``layers``."""

import itertools

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.program import AdaptiveAvgPool, Add, AvgPool, Concat, Conv, Dequantize, Linear, MaxPool, Mean, Move, Mul, Quantize, Relu, Table
from quantspec.kernels import images, quantize
from quantspec.kernels.emitter import float_bits
from quantspec.kernels.memory import Layout, aligned
from quantspec.numerics.windows import counts as window_counts
from quantspec.numerics.windows import part

from .layer_instructions import emit_conv, emit_conv_add, emit_dynamic, emit_linear
from .planner import Planner, Value, layout_of
from .shapes import ConvAdd, Dynamic, Export, FlatFloat, FlatQuantize, Import, ratios


def emit_quantize(planner: Planner, step: Quantize) -> None:
    layout = planner.values[step.name].layout
    if layout.is_row:
        op = planner.emit("quantize", quantize.write_quantize, {
            quantize.SOURCE: planner.slot(step.x), quantize.TARGET: planner.first(step.name), quantize.COUNT: layout.images, quantize.WIDTH: layout.channels,
            quantize.SOURCE_PITCH: 4 * layout.channels, quantize.TARGET_PITCH: layout.pitch,
        })  # fmt: skip
        quantize.quantize_fields(op, step.qparams)
        return
    lines = planner.keep(aligned(layout.channels * (layout.width + 64)))
    for start, entries in planes(layout):
        op = planner.emit("quantize_planes", images.write_quantize_planes, entries | {
            images.SOURCE: planner.slot(step.x), images.GOAL: planner.address(step.name) + start, images.P_LINES: lines,
        })  # fmt: skip
        quantize.quantize_fields(op, step.qparams)


def planes(layout: Layout) -> list[tuple[int, dict[int, int]]]:
    """For each stack of planes where it begins, and its entries for going from or to floats [images, channels, *positions]."""
    area = layout.height * layout.width
    channel = layout.depth * area
    return [
        (start, {
            images.P_IMAGES: count, images.P_HEIGHT: layout.height, images.P_WIDTH: layout.width, images.P_CHANNELS: layout.channels, images.P_IMAGE: distance,
            images.P_LINE: layout.line, images.P_PITCH: layout.pitch, images.P_START: n * layout.channels * channel, images.P_CHANNEL_STEP: channel,
            images.P_IMAGE_STEP: area if layout.is_volume else layout.channels * channel,
        }) for n, (start, count, distance) in enumerate(layout.stacks())
    ]  # fmt: skip


def emit_dequantize(planner: Planner, step: Dequantize) -> None:
    layout = planner.values[step.x].layout
    if layout.counts == (1, 1, 1):
        op = planner.emit("dequantize", quantize.write_dequantize, {
            quantize.SOURCE: planner.first(step.x), quantize.TARGET: planner.slot(step.name), quantize.COUNT: layout.images, quantize.WIDTH: layout.channels,
            quantize.SOURCE_PITCH: layout.image, quantize.TARGET_PITCH: 4 * layout.channels,
        })  # fmt: skip
        quantize.quantize_fields(op, step.qparams)
        return
    for start, entries in planes(layout):
        op = planner.emit("dequantize_planes", images.write_dequantize_planes, entries | {
            images.SOURCE: planner.address(step.x) + start, images.GOAL: planner.slot(step.name),
        })  # fmt: skip
        quantize.quantize_fields(op, step.qparams)


def emit_margin(planner: Planner, value: Value) -> None:
    """The zero points around images."""
    layout = value.layout
    used, before = layout.width * layout.pitch, layout.margin[2] * layout.line + layout.margin[4] * layout.pitch
    after = layout.plane - before - (layout.height - 1) * layout.line - used
    address = planner.arena.ctypes.data + value.place
    fills = [(start - before, count, distance, before, layout.height, layout.line, used, after) for start, count, distance in layout.stacks()]
    # Whole planes before and behind, in the images' order.
    front, back = (planes * layout.plane for planes in layout.margin[:2])
    fills += [(start, layout.images, layout.image, length, 1, 0, 0, 0) for start, length in ((0, front), (layout.image - back, back)) if length]
    for start, *entries in fills:
        planner.emit("fill", images.write_fill, dict(enumerate((address + start, *entries, value.filled), 1)))


def emit_view(planner: Planner, step: FlatFloat) -> None:
    """Nothing: floats lie in the same order."""


def emit_windows(planner: Planner, step, kernel, write, windows: list[list[int]], factors, entries: dict[int, int]) -> None:
    """Pooling by a table: for each output position the offsets of the inputs that count."""
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    width = max(map(len, windows), default=1)
    taps = np.array([window + [0] * (width - len(window)) for window in windows], np.int32)
    one = Layout(1, y.height, y.width, y.channels, y.margin, y.depth)
    planner.emit(kernel, write, {
        images.X: planner.address(step.x), images.Y: planner.address(step.name), images.IMAGES: y.images, images.ROWS: len(windows), images.WINDOW: width,
        images.CHANNELS: y.channels, images.X_IMAGE: x.image, images.Y_IMAGE: y.image, images.TAPS: planner.keep(taps),
        images.COUNTS: planner.keep(np.array([len(window) for window in windows], np.int32)), images.Y_OFFSETS: planner.keep(one.offsets(y.counts)),
        images.FACTORS: planner.keep(np.array(factors, np.float32)),
    } | entries)  # fmt: skip


def inside(step, x: Layout, y: Layout) -> list[list[int]]:
    """For each window the offsets of its positions that lie in the image, row by row."""
    missing = (1,) * (3 - len(step.kernel))
    kernel, stride, dilation = ((*missing, *value) for value in (step.kernel, step.stride, getattr(step, "dilation", (1,) * len(step.kernel))))
    padding = ((0,) * len(missing) + tuple(step.padding))
    along = []
    for axis, (n, count) in enumerate(zip(x.counts, y.counts)):
        starts = [i * stride[axis] - padding[axis] for i in range(count)]
        along.append([[p for p in (start + k * dilation[axis] for k in range(kernel[axis])) if 0 <= p < n] for start in starts])
    return [positions(x, *axes) for axes in itertools.product(*along)]


def positions(x: Layout, planes, rows, columns) -> list[int]:
    """The offsets of positions within an image, by their numbers along each axis."""
    return [x.first + d * x.plane + i * x.line + j * x.pitch for d in planes for i in rows for j in columns]


def emit_max(planner: Planner, step: MaxPool) -> None:
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    windows = inside(step, x, y)
    emit_windows(planner, step, "max", images.write_max, windows, [0] * len(windows), {})


def emit_average(planner: Planner, step: AvgPool) -> None:
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    shape = planner.shapes[step.x][2:]
    positions = window_counts(shape, step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad).ravel()
    if not positions.all():
        raise UnsupportedError(f"step {step.name!r}: a window has no positions that count")
    grid = step.qparams
    emit_windows(planner, step, "average", images.write_average, inside(step, x, y), positions, {
        images.SCALE: float_bits(grid.scale), images.ZERO: int(grid.zero_point), images.LOWEST: float_bits(grid.qmin), images.HIGHEST: float_bits(grid.qmax),
    })  # fmt: skip


def emit_adaptive(planner: Planner, step: AdaptiveAvgPool | Mean) -> None:
    x, shape = planner.values[step.x].layout, planner.shapes[step.name]
    counts = (1, 1, 1) if isinstance(step, Mean) else layout_of(shape, True).counts
    windows = []
    for index in itertools.product(*map(range, counts)):
        windows.append(positions(x, *(range(*part(i, count, n)) for i, count, n in zip(index, counts, x.counts))))
    grid, point = step.qparams, int(step.qparams.zero_point)
    with np.errstate(over="ignore"):
        factors = [grid.scale / (grid.scale * np.float32(len(window))) for window in windows]
    emit_windows(planner, step, "mean", images.write_mean, windows, factors, {
        images.ZERO: point, images.LOWEST: float_bits(grid.qmin - point), images.HIGHEST: float_bits(grid.qmax - point),
    })  # fmt: skip


def emit_bytes(planner: Planner, name: str, write, a: str, b: str, target: str, parameters, *, start: int = 0) -> None:
    """An instruction that goes over the bytes of two values, of which one may have fewer images or positions, to channels of ``target`` from ``start`` on."""
    layouts = [planner.values[value].layout for value in (a, b, target)]
    count, depth, height, width = (max(getattr(layout, side) for layout in layouts) for side in ("images", "depth", "height", "width"))
    channels, volumes = layouts[0].channels, any(layout.is_volume for layout in layouts)
    sides = [(x.plane, x.depth) if volumes else (x.image, x.images) for x in layouts]
    strides = [[pitch * (count > 1) for pitch, count in (side, (x.line, x.height), (x.pitch, x.width))] for side, x in zip(sides, layouts)]
    loops = [depth if volumes else count, height, width, channels]
    if layouts[0].width == layouts[1].width and len({x.pitch for x in layouts}) == 1 and start == 0:
        # Whole lines, with what lies between the channels of one position and the next.
        loops = [loops[0], height, 1, (width - 1) * layouts[0].pitch + channels]
    entries = {images.PARAMETER + i: value for i, value in enumerate(parameters)}
    for base, values in ((images.LOOP, loops), (images.A_STRIDE, strides[0]), (images.B_STRIDE, strides[1]), (images.TARGET_STRIDE, strides[2])):
        entries |= {base + i: value for i, value in enumerate(values)}
    for n in range(count if volumes else 1):
        first_a, first_b, first_target = (planner.first(value) + n * x.image * (x.images > 1) for value, x in zip((a, b, target), layouts))
        planner.emit(name, write, entries | {images.A: first_a, images.B: first_b, images.TARGET: first_target + start})


def emit_add(planner: Planner, step: Add) -> None:
    r_a, r_b, start, finite = ratios(step)
    if not finite:
        raise UnsupportedError(f"step {step.name!r}: its scales are too far apart")
    grid = step.y_qparams
    lowest = int(grid.zero_point) if step.relu else grid.qmin
    emit_bytes(planner, "add", images.write_add, step.a, step.b, step.name, map(float_bits, (lowest, grid.qmax, r_a, r_b, start)))


def emit_mul(planner: Planner, step: Mul) -> None:
    a, b, y = step.a_qparams, step.b_qparams, step.y_qparams
    with np.errstate(over="ignore"):
        ratio = a.scale * b.scale / y.scale
    if not np.isfinite(ratio):
        raise UnsupportedError(f"step {step.name!r}: its scales are too far apart")
    points = [int(grid.zero_point) for grid in (a, b, y)]
    emit_bytes(planner, "mul", images.write_mul, step.a, step.b, step.name, [*map(float_bits, (y.qmin, y.qmax, ratio)), *points])


def emit_table(planner: Planner, step: Table) -> None:
    emit_bytes(planner, "table", images.write_table, step.x, step.x, step.name, [planner.keep(np.ascontiguousarray(step.table))])


def emit_relu(planner: Planner, step: Relu) -> None:
    table = np.maximum(np.arange(256), int(step.qparams.zero_point)).astype(np.uint8)
    emit_bytes(planner, "table", images.write_table, step.x, step.x, step.name, [planner.keep(table)])


def emit_concat(planner: Planner, step: Concat) -> None:
    from quantspec.numerics.dialects.named import dialect
    from quantspec.numerics.dialects.operations import rescale

    start = 0
    for x, grid in zip(step.xs, step.x_qparams):
        table = rescale(dialect("onnx"), np.arange(256, dtype=np.uint8), grid, step.y_qparams)
        emit_bytes(planner, "table", images.write_table, x, x, step.name, [planner.keep(table)], start=start)
        start += planner.values[x].layout.channels


def emit_flatten(planner: Planner, step: Move) -> None:
    name = step.args[0].name
    x, y = planner.values[name].layout, planner.values[step.name].layout
    count = planner.shapes[step.name][0]
    rows = x.images // count if count else 1  # rows of more than two axes join theirs
    places_ = planner.first(name), planner.first(step.name), -1, -1
    if x.counts == (1, 1, 1) or rows > 1:
        emit_copy(planner, [count, rows, 1, x.channels], [x.image * rows, x.image, 0, 1], [y.image, x.channels, 0, 1], *places_)
        return
    for n, (counts, near, far) in enumerate(plain(x)):
        far[0] = far[0] if x.is_volume else y.image
        emit_copy(planner, counts, near, far, places_[0] + n * x.image, places_[1] + n * y.image, -1, -1)


def emit_copy(
    planner: Planner, loops: list[int], near: list[int], far: list[int], source: int, target: int, source_slot: int, target_slot: int, start: int = 0
) -> None:
    """Bytes in four nested loops, whose strides are given for either side; ``start``: where they begin in an input or output of the program."""
    entries = {images.A: source, images.B: source, images.TARGET: target}
    parameters = near[3], far[3], source_slot, target_slot, start
    for base, values in (
        (images.LOOP, loops), (images.A_STRIDE, near[:3]), (images.B_STRIDE, near[:3]), (images.TARGET_STRIDE, far[:3]), (images.PARAMETER, parameters),
    ):  # fmt: skip
        entries |= {base + i: value for i, value in enumerate(values)}
    planner.emit("copy", images.write_copy, entries)


def plain(layout: Layout) -> list[tuple[list[int], list[int], list[int]]]:
    """For each stack of planes counts, and strides in memory and in an array [images, channels, *positions]."""
    area = layout.height * layout.width
    channel = layout.depth * area
    far = [area if layout.is_volume else layout.channels * channel, channel, layout.width, 1]
    return [([count, layout.channels, layout.height, layout.width], [distance, 1, layout.line, layout.pitch], list(far)) for _, count, distance in layout.stacks()]


def emit_import(planner: Planner, step: Import) -> None:
    layout, first = planner.values[step.name].layout, planner.first(step.name)
    for n, (counts, inside, outside) in enumerate(plain(layout)):
        start = n * layout.channels * int(np.prod(layout.counts))
        emit_copy(planner, counts, outside, inside, 0, first + n * layout.image, planner.slot(step.x), -1, start)


def emit_export(planner: Planner, step: Export) -> None:
    layout, first = planner.values[step.x].layout, planner.first(step.x)
    for n, (counts, inside, outside) in enumerate(plain(layout)):
        start = n * layout.channels * int(np.prod(layout.counts))
        emit_copy(planner, counts, inside, outside, first + n * layout.image, 0, -1, planner.slot(step.name), start)


EMITTERS = {
    Quantize: emit_quantize, Dequantize: emit_dequantize, Linear: emit_linear, Conv: emit_conv, ConvAdd: emit_conv_add,
    Dynamic: emit_dynamic, Table: emit_table, Relu: emit_relu, Add: emit_add, Mul: emit_mul, Concat: emit_concat,
    MaxPool: emit_max, AvgPool: emit_average, AdaptiveAvgPool: emit_adaptive, Mean: emit_adaptive,
    Move: emit_flatten, FlatQuantize: emit_quantize, FlatFloat: emit_view, Import: emit_import, Export: emit_export,
    "margin": emit_margin,
}  # fmt: skip
