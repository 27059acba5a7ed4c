"""The instructions of each kind of step."""

import itertools

import numpy as np

from ...errors import UnsupportedError
from ...pooling import counts as window_counts, part
from ...program import Add, AdaptiveAvgPool, AvgPool, Concat, Conv, ConvReal, Dequantize, Linear, LinearReal, MaxPool, Mean, Move, Mul, Quantize, Relu, Table
from . import codes, depthwise, dynamic, gemm, places, real
from .layout import Layout, aligned
from .pack import Packed, in_pairs, joined
from .phases import Phase, phases
from .plan import Planner, Value, layout_of
from .shapes import ConvAdd, Dynamic, Export, FlatFloat, FlatQuantize, Import, is_depthwise, ratios
from .simd import float_bits


PRODUCT, PRODUCT_ADD = ("product", gemm.write_product), ("product_add", gemm.write_product_add)


def emit_quantize(planner: Planner, step: Quantize) -> None:
    layout = planner.values[step.name].layout
    if layout.is_row:
        op = planner.emit("quantize", codes.write_quantize, {
            codes.SOURCE: planner.slot(step.x), codes.TARGET: planner.first(step.name), codes.COUNT: layout.images, codes.WIDTH: layout.channels,
            codes.SOURCE_PITCH: 4 * layout.channels, codes.TARGET_PITCH: layout.pitch,
        })  # fmt: skip
        codes.quantize_fields(op, step.qparams)
        return
    lines = planner.keep(aligned(layout.channels * (layout.width + 64)))
    for start, entries in planes(layout):
        op = planner.emit("quantize_planes", places.write_quantize_planes, entries | {
            places.SOURCE: planner.slot(step.x), places.GOAL: planner.address(step.name) + start, places.P_LINES: lines,
        })  # fmt: skip
        codes.quantize_fields(op, step.qparams)


def planes(layout: Layout) -> list[tuple[int, dict[int, int]]]:
    """For each stack of planes where it begins, and its entries for going from or to floats [images, channels, *positions]."""
    area = layout.height * layout.width
    channel = layout.depth * area
    return [
        (start, {
            places.P_IMAGES: count, places.P_HEIGHT: layout.height, places.P_WIDTH: layout.width, places.P_CHANNELS: layout.channels, places.P_IMAGE: distance,
            places.P_LINE: layout.line, places.P_PITCH: layout.pitch, places.P_START: n * layout.channels * channel, places.P_CHANNEL_STEP: channel,
            places.P_IMAGE_STEP: area if layout.is_volume else layout.channels * channel,
        }) for n, (start, count, distance) in enumerate(layout.stacks())
    ]  # fmt: skip


def emit_dequantize(planner: Planner, step: Dequantize) -> None:
    layout = planner.values[step.x].layout
    if layout.counts == (1, 1, 1):
        op = planner.emit("dequantize", codes.write_dequantize, {
            codes.SOURCE: planner.first(step.x), codes.TARGET: planner.slot(step.name), codes.COUNT: layout.images, codes.WIDTH: layout.channels,
            codes.SOURCE_PITCH: layout.image, codes.TARGET_PITCH: 4 * layout.channels,
        })  # fmt: skip
        codes.quantize_fields(op, step.qparams)
        return
    for start, entries in planes(layout):
        op = planner.emit("dequantize_planes", places.write_dequantize_planes, entries | {
            places.SOURCE: planner.address(step.x) + start, places.GOAL: planner.slot(step.name),
        })  # fmt: skip
        codes.quantize_fields(op, step.qparams)


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
        planner.emit("fill", places.write_fill, dict(enumerate((address + start, *entries, value.filled), 1)))


def emit_linear(planner: Planner, step: Linear) -> None:
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    (packed,) = planner.packed[step.name]
    emit_product(planner, step, packed, planner.address(step.x), planner.address(step.name), x.offsets((1, 1, 1)), y.offsets((1, 1, 1)), [0])


def emit_product(planner: Planner, step, packed: Packed, x: int, y: int, x_offsets: np.ndarray, y_offsets: np.ndarray, run_offsets, kind=PRODUCT) -> np.ndarray:
    """One product, by the addresses of its operands and the offsets of their rows; ``kind``: the kernel's name and what writes it."""
    inputs = 4 * packed.runs * packed.run_steps
    planner.macs += len(y_offsets) * packed.outputs * inputs
    return planner.emit(*kind, {
        gemm.X: x, gemm.Y: y, gemm.W: planner.keep(packed.weight), gemm.BIAS: planner.keep(packed.bias), gemm.FACTOR: planner.keep(packed.factor),
        gemm.ROWS: len(y_offsets), gemm.OUTPUTS: packed.outputs, gemm.BLOCKS: packed.blocks, gemm.STEPS: packed.runs * packed.run_steps,
        gemm.RUNS: packed.runs, gemm.RUN_STEPS: packed.run_steps, gemm.RUN_OFFSETS: planner.keep(np.array(run_offsets, np.int32)),
        gemm.X_OFFSETS: planner.keep(x_offsets), gemm.Y_OFFSETS: planner.keep(y_offsets), gemm.CHUNK: gemm.chunk_rows(len(y_offsets), inputs),
    } | ({} if isinstance(step, (LinearReal, ConvReal)) else clamp(step, gemm.LOWEST, gemm.HIGHEST, gemm.ZERO)))  # fmt: skip


def clamp(step, lowest: int, highest: int, zero: int) -> dict[int, int]:
    """The entries for the lowest and the highest code, relative to the zero point, and the zero point."""
    grid = step.y_qparams
    point = int(grid.zero_point)
    return {lowest: float_bits((point if step.relu else grid.qmin) - point), highest: float_bits(grid.qmax - point), zero: point}


def spread(step: Conv | ConvReal) -> tuple[tuple[int, int, int], ...]:
    """Kernel, stride, start and dilation for three axes of positions, the first of which may be missing."""
    kernel, stride, start, dilation = step.weight.shape[2:], step.stride, tuple(-before for before, _ in step.padding), step.dilation
    return tuple((fill,) * (3 - len(value)) + tuple(value) for fill, value in ((1, kernel), (1, stride), (0, start), (1, dilation)))


def emit_dynamic(planner: Planner, step: Dynamic) -> None:
    """Quantizing rows on the grids of their ranges, and the product."""
    shape, (packed,) = planner.shapes[step.name], planner.packed[step.layer.name]
    rows, source = int(np.prod(shape[:-1])), planner.alias.get(step.x, step.x)
    inputs, outputs = step.layer.weight.shape[1], shape[-1]
    first, second = dynamic.entries(packed, rows, inputs, planner.keep, qmax=127 if step.layer.reduce_range else 255, per_row=step.layer.rows, relu=step.relu)
    if source in planner.values:
        first[codes.SOURCE] = planner.address(source)
    else:
        first[dynamic.SLOT] = planner.slot(source)
    if step.name in planner.outputs:
        second[dynamic.Y_SLOT] = planner.slot(step.name)
    else:
        second[gemm.Y] = planner.address(step.name)
    planner.macs += rows * inputs * outputs
    planner.emit("dynamic_quantize", dynamic.write_dynamic_quantize, first)
    planner.emit("dynamic_product", dynamic.write_dynamic_product, second)


def emit_linear_real(planner: Planner, step: LinearReal) -> None:
    (packed,) = planner.packed[step.name]
    sources = planner.values[step.x].layout.offsets((1, 1, 1))
    emit_real(planner, step, packed, planner.address(step.x), sources, np.arange(len(sources)), [0])


def emit_real(planner: Planner, step: LinearReal | ConvReal, packed: Packed, x: int, x_offsets: np.ndarray, rows: np.ndarray, run_offsets, group: int = 0) -> None:
    """One product that gives floats, to ``rows`` of the output and its columns from those of ``group`` on."""
    y_offsets = real_offsets(rows, len(step.weight), group * packed.outputs)
    op = emit_product(planner, step, packed, x, 0, x_offsets, y_offsets, run_offsets, kind=("product_real", real.write_product_real))
    op[real.REAL_BIAS], op[real.RELU], op[real.Y_SLOT] = planner.keep(packed.real_bias), step.relu, planner.slot(step.name)


def real_offsets(rows: np.ndarray, outputs: int, first: int = 0) -> np.ndarray:
    """Where rows of floats begin, from entry ``first`` of each on."""
    if 4 * (int(rows.max(initial=0)) + 1) * outputs >= 2**31:
        raise UnsupportedError("the kernels give less than 2 GiB of floats at a time")
    return (4 * (rows * outputs + first)).astype(np.int32)


def emit_view(planner: Planner, step: FlatFloat) -> None:
    """Nothing: floats lie in the same order."""


def emit_conv(planner: Planner, step: Conv, name: str | None = None) -> list[np.ndarray]:
    """The products of all phases and groups; with the ``name`` of another value they are to be sums, which are that value."""
    adds, name = name is not None, name or step.name
    x, y = planner.values[step.x].layout, planner.values[name].layout
    result = []
    for phase, packed, counts in packed_phases(planner, step, y):
        if is_depthwise(step):
            result.append(emit_depthwise(planner, phase, packed, name, counts))
            continue
        (sources, runs), targets = windows_of(phase.conv, x, counts), y.offsets(counts, phase.step, phase.first)
        inputs, outputs, kind = step.weight.shape[1], len(step.weight) // step.groups, PRODUCT_ADD if adds else PRODUCT
        for g, group in enumerate(packed):
            result.append(emit_product(planner, step, group, planner.address(step.x) + g * inputs, planner.address(name) + g * outputs, sources, targets, runs, kind))
    return result


def packed_phases(planner: Planner, step: Conv | ConvReal, y: Layout) -> list[tuple[Phase, list, tuple[int, int, int]]]:
    """The phases of a convolution that have outputs, what each was packed into, and how many outputs it has along each axis."""
    all_phases, packed = phases(step), planner.packed[step.name]
    size = len(packed) // len(all_phases)
    parts = [(phase, packed[n * size : (n + 1) * size], phase.counts(y.counts)) for n, phase in enumerate(all_phases)]
    return [part for part in parts if min(part[2]) > 0]


def windows_of(step: Conv | ConvReal, x: Layout, counts: tuple[int, int, int]) -> tuple[np.ndarray, list[int]]:
    """Where the windows of an input begin, ``counts`` of them along each axis, and how far from there the runs of bytes in each."""
    kernel, stride, start, dilation = spread(step)
    places = itertools.product(range(kernel[0]), range(kernel[1]), [0] if joined(step) else range(kernel[2]))
    sizes = [d * size for d, size in zip(dilation, (x.plane, x.line, x.pitch))]
    return x.offsets(counts, stride, start), [sum(k * size for k, size in zip(place, sizes)) for place in places]


def emit_conv_real(planner: Planner, step: ConvReal) -> None:
    """The products of all phases and groups, to floats."""
    x, y, inputs = planner.values[step.x].layout, layout_of(planner.shapes[step.name], True), step.weight.shape[1]
    rows = np.arange(y.images * int(np.prod(y.counts))).reshape(y.images, *y.counts)
    for phase, packed, counts in packed_phases(planner, step, y):
        own = rows[(slice(None), *(slice(first, None, apart) for first, apart in zip(phase.first, phase.step)))].ravel()
        if is_depthwise(step):
            emit_depthwise_real(planner, phase.conv, packed, x, counts, own)
            continue
        sources, runs = windows_of(phase.conv, x, counts)
        for g, group in enumerate(packed):
            emit_real(planner, step, group, planner.address(step.x) + g * inputs, sources, own, runs, g)


def emit_conv_add(planner: Planner, step: ConvAdd) -> None:
    r_a, r_b, start, _ = ratios(step.add)
    grid, other = step.add.y_qparams, planner.values[step.b].layout
    lowest = int(grid.zero_point) if step.add.relu else grid.qmin
    offsets = planner.keep(other.offsets(other.counts))
    for g, op in enumerate(emit_conv(planner, step.conv, step.name)):
        op[gemm.ADD], op[gemm.B], op[gemm.B_OFFSETS] = 1 if step.first else 2, planner.address(step.b) + g * len(step.conv.weight) // step.conv.groups, offsets
        op[gemm.RATIO], op[gemm.B_RATIO], op[gemm.START] = map(float_bits, (r_a, r_b, start))
        op[gemm.ADD_LOWEST], op[gemm.ADD_HIGHEST] = float_bits(lowest), float_bits(grid.qmax)


def emit_depthwise(planner: Planner, phase: Phase, packed: list[np.ndarray], name: str, counts: tuple[int, int, int]) -> np.ndarray:
    step = phase.conv
    x, y = planner.values[step.x].layout, planner.values[name].layout
    kernel, stride, start, dilation = spread(step)
    weight, bias, factor = packed
    height, width = counts[1:]  # of one plane
    entries = {
        depthwise.X: planner.address(step.x), depthwise.Y: planner.address(name), depthwise.W: planner.keep(weight), depthwise.BIAS: planner.keep(bias),
        depthwise.FACTOR: planner.keep(factor),
    } | clamp(step, depthwise.LOWEST, depthwise.HIGHEST, depthwise.ZERO)  # fmt: skip
    planner.macs += step.weight[0].size * y.images * height * width * y.channels
    # Positions that lie together in a block of channels, as wide as a line allows.
    side_by_side = y.pitch == x.pitch == y.channels and stride[2] == phase.step[2] == 1
    together = depthwise.WIDE // y.channels if depthwise.WIDE % y.channels == 0 and side_by_side else 1
    while width % together:
        together //= 2
    channels, width = together * y.channels, width // together
    if in_pairs(step) and together == 1 and width > 1:
        sources, targets = x.offsets((1, height, 1), stride, start), y.offsets((1, height, 1), phase.step, phase.first)
        return planner.emit("depthwise_pairs", depthwise.write_pairs, entries | {
            depthwise.ROWS: len(targets), depthwise.CHANNELS: channels, depthwise.GROUPS: -(-width // 2), depthwise.X_OFFSETS: planner.keep(sources),
            depthwise.Y_OFFSETS: planner.keep(targets), depthwise.PITCH: x.pitch, depthwise.LINE: x.line, depthwise.Y_PITCH: y.pitch * phase.step[2],
            depthwise.LAST: width - 2,
        })  # fmt: skip
    taps = taps_of(step, x)
    groups = len(taps) // 4
    fixed = groups if groups <= depthwise.IN_REGISTERS else None
    sources = x.offsets((1, height, width), (1, stride[1], stride[2] * together), start)
    targets = y.offsets((1, height, width), (1, phase.step[1], phase.step[2] * together), phase.first)
    return planner.emit(f"depthwise_{fixed or 'any'}", depthwise.depthwise(fixed), entries | {
        depthwise.ROWS: len(targets), depthwise.CHANNELS: channels, depthwise.GROUPS: groups, depthwise.TAPS: planner.keep(taps),
        depthwise.X_OFFSETS: planner.keep(sources), depthwise.Y_OFFSETS: planner.keep(targets),
    })  # fmt: skip


def taps_of(step: Conv | ConvReal, x: Layout) -> np.ndarray:
    """Where the places of a kernel lie from the start of a window on, in whole groups of four, the last of which have weights of zero."""
    kernel, _, _, dilation = spread(step)
    padded = kernel[2] + in_pairs(step)
    taps = [i * dilation[1] * x.line + min(j, kernel[2] - 1) * dilation[2] * x.pitch for i in range(kernel[1]) for j in range(padded)]
    return np.array(taps + [taps[-1]] * (-len(taps) % 4), np.int32)


def emit_depthwise_real(planner: Planner, step: ConvReal, packed: list[np.ndarray], x: Layout, counts: tuple[int, int, int], rows: np.ndarray) -> None:
    """A depthwise convolution that gives floats, to ``rows`` of the output."""
    _, stride, start, _ = spread(step)
    weight, *tables = packed
    taps, channels = taps_of(step, x), len(step.weight)
    planner.macs += step.weight[0].size * len(rows) * channels
    planner.emit("depthwise_real", real.write_depthwise_real, {
        depthwise.X: planner.address(step.x), depthwise.W: planner.keep(weight), depthwise.ROWS: len(rows), depthwise.CHANNELS: channels,
        depthwise.GROUPS: len(taps) // 4, depthwise.TAPS: planner.keep(taps), depthwise.X_OFFSETS: planner.keep(x.offsets(counts, stride, start)),
        depthwise.Y_OFFSETS: planner.keep(real_offsets(rows, channels)), real.RELU: step.relu, real.Y_SLOT: planner.slot(step.name),
    } | dict(zip((depthwise.BIAS, depthwise.FACTOR, real.REAL_BIAS), map(planner.keep, tables))))  # fmt: skip


def emit_windows(planner: Planner, step, kernel, write, windows: list[list[int]], factors, entries: dict[int, int]) -> None:
    """Pooling by a table: for each output position the offsets of the inputs that count."""
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    width = max(map(len, windows), default=1)
    taps = np.array([window + [0] * (width - len(window)) for window in windows], np.int32)
    one = Layout(1, y.height, y.width, y.channels, y.margin, y.depth)
    planner.emit(kernel, write, {
        places.X: planner.address(step.x), places.Y: planner.address(step.name), places.IMAGES: y.images, places.ROWS: len(windows), places.WINDOW: width,
        places.CHANNELS: y.channels, places.X_IMAGE: x.image, places.Y_IMAGE: y.image, places.TAPS: planner.keep(taps),
        places.COUNTS: planner.keep(np.array([len(window) for window in windows], np.int32)), places.Y_OFFSETS: planner.keep(one.offsets(y.counts)),
        places.FACTORS: planner.keep(np.array(factors, np.float32)),
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
    emit_windows(planner, step, "max", places.write_max, windows, [0] * len(windows), {})


def emit_average(planner: Planner, step: AvgPool) -> None:
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    shape = planner.shapes[step.x][2:]
    positions = window_counts(shape, step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad).ravel()
    if not positions.all():
        raise UnsupportedError(f"step {step.name!r}: a window has no positions that count")
    grid = step.qparams
    emit_windows(planner, step, "average", places.write_average, inside(step, x, y), positions, {
        places.SCALE: float_bits(grid.scale), places.ZERO: int(grid.zero_point), places.LOWEST: float_bits(grid.qmin), places.HIGHEST: float_bits(grid.qmax),
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
    emit_windows(planner, step, "mean", places.write_mean, windows, factors, {
        places.ZERO: point, places.LOWEST: float_bits(grid.qmin - point), places.HIGHEST: float_bits(grid.qmax - point),
    })  # fmt: skip


def emit_bytes(planner: Planner, name: str, write, a: str, b: str, target: str, parameters, *, start: int = 0) -> None:
    """An instruction that goes over the bytes of two values, of which one may have fewer images or positions, to channels of ``target`` from ``start`` on."""
    layouts = [planner.values[value].layout for value in (a, b, target)]
    images, depth, height, width = (max(getattr(layout, side) for layout in layouts) for side in ("images", "depth", "height", "width"))
    channels, volumes = layouts[0].channels, any(layout.is_volume for layout in layouts)
    sides = [(x.plane, x.depth) if volumes else (x.image, x.images) for x in layouts]
    strides = [[pitch * (count > 1) for pitch, count in (side, (x.line, x.height), (x.pitch, x.width))] for side, x in zip(sides, layouts)]
    loops = [depth if volumes else images, height, width, channels]
    if layouts[0].width == layouts[1].width and len({x.pitch for x in layouts}) == 1 and start == 0:
        # Whole lines, with what lies between the channels of one position and the next.
        loops = [loops[0], height, 1, (width - 1) * layouts[0].pitch + channels]
    entries = {places.PARAMETER + i: value for i, value in enumerate(parameters)}
    for base, values in ((places.LOOP, loops), (places.A_STRIDE, strides[0]), (places.B_STRIDE, strides[1]), (places.TARGET_STRIDE, strides[2])):
        entries |= {base + i: value for i, value in enumerate(values)}
    for n in range(images if volumes else 1):
        first_a, first_b, first_target = (planner.first(value) + n * x.image * (x.images > 1) for value, x in zip((a, b, target), layouts))
        planner.emit(name, write, entries | {places.A: first_a, places.B: first_b, places.TARGET: first_target + start})


def emit_add(planner: Planner, step: Add) -> None:
    r_a, r_b, start, finite = ratios(step)
    if not finite:
        raise UnsupportedError(f"step {step.name!r}: its scales are too far apart")
    grid = step.y_qparams
    lowest = int(grid.zero_point) if step.relu else grid.qmin
    emit_bytes(planner, "add", places.write_add, step.a, step.b, step.name, map(float_bits, (lowest, grid.qmax, r_a, r_b, start)))


def emit_mul(planner: Planner, step: Mul) -> None:
    a, b, y = step.a_qparams, step.b_qparams, step.y_qparams
    with np.errstate(over="ignore"):
        ratio = a.scale * b.scale / y.scale
    if not np.isfinite(ratio):
        raise UnsupportedError(f"step {step.name!r}: its scales are too far apart")
    points = [int(grid.zero_point) for grid in (a, b, y)]
    emit_bytes(planner, "mul", places.write_mul, step.a, step.b, step.name, [*map(float_bits, (y.qmin, y.qmax, ratio)), *points])


def emit_table(planner: Planner, step: Table) -> None:
    emit_bytes(planner, "table", places.write_table, step.x, step.x, step.name, [planner.keep(np.ascontiguousarray(step.table))])


def emit_relu(planner: Planner, step: Relu) -> None:
    table = np.maximum(np.arange(256), int(step.qparams.zero_point)).astype(np.uint8)
    emit_bytes(planner, "table", places.write_table, step.x, step.x, step.name, [planner.keep(table)])


def emit_concat(planner: Planner, step: Concat) -> None:
    from ...dialects import dialect
    from ...dialects_codes import rescale

    start = 0
    for x, grid in zip(step.xs, step.x_qparams):
        table = rescale(dialect("onnx"), np.arange(256, dtype=np.uint8), grid, step.y_qparams)
        emit_bytes(planner, "table", places.write_table, x, x, step.name, [planner.keep(table)], start=start)
        start += planner.values[x].layout.channels


def emit_flatten(planner: Planner, step: Move) -> None:
    name = step.args[0].name
    x, y = planner.values[name].layout, planner.values[step.name].layout
    images = planner.shapes[step.name][0]
    rows = x.images // images if images else 1  # rows of more than two axes join theirs
    places_ = planner.first(name), planner.first(step.name), -1, -1
    if x.counts == (1, 1, 1) or rows > 1:
        emit_copy(planner, [images, rows, 1, x.channels], [x.image * rows, x.image, 0, 1], [y.image, x.channels, 0, 1], *places_)
        return
    for n, (counts, near, far) in enumerate(plain(x)):
        far[0] = far[0] if x.is_volume else y.image
        emit_copy(planner, counts, near, far, places_[0] + n * x.image, places_[1] + n * y.image, -1, -1)


def emit_copy(
    planner: Planner, loops: list[int], near: list[int], far: list[int], source: int, target: int, source_slot: int, target_slot: int, start: int = 0
) -> None:
    """Bytes in four nested loops, whose strides are given for either side; ``start``: where they begin in an input or output of the program."""
    entries = {places.A: source, places.B: source, places.TARGET: target}
    parameters = near[3], far[3], source_slot, target_slot, start
    for base, values in (
        (places.LOOP, loops), (places.A_STRIDE, near[:3]), (places.B_STRIDE, near[:3]), (places.TARGET_STRIDE, far[:3]), (places.PARAMETER, parameters),
    ):  # fmt: skip
        entries |= {base + i: value for i, value in enumerate(values)}
    planner.emit("copy", places.write_copy, entries)


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
    Quantize: emit_quantize, Dequantize: emit_dequantize, Linear: emit_linear, Conv: emit_conv, ConvAdd: emit_conv_add, LinearReal: emit_linear_real,
    ConvReal: emit_conv_real, Dynamic: emit_dynamic, Table: emit_table, Relu: emit_relu, Add: emit_add, Mul: emit_mul, Concat: emit_concat,
    MaxPool: emit_max, AvgPool: emit_average, AdaptiveAvgPool: emit_adaptive, Mean: emit_adaptive,
    Move: emit_flatten, FlatQuantize: emit_quantize, FlatFloat: emit_view, Import: emit_import, Export: emit_export,
    "margin": emit_margin,
}  # fmt: skip
