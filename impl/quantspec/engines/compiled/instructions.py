"""The instructions of each kind of step: those of layers are in ``layer_instructions``."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from quantspec.errors import UnsupportedError
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Concat,
    Conv,
    Dequantize,
    Linear,
    MaxPool,
    Mean,
    Move,
    Mul,
    Quantize,
    Relu,
    Table,
)
from quantspec.kernels import between, channels, images, planes, quantize
from quantspec.kernels.emitter import LANES
from quantspec.kernels.memory import Layout, aligned, offset_table
from quantspec.kernels.records import Clamp, Grid
from quantspec.numerics import bilinear
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.numerics.dialects.operations import rescale
from quantspec.numerics.windows import counts as window_counts
from quantspec.numerics.windows import part

from .copy_instructions import emit_export, emit_flatten, emit_import, emit_turn
from .layer_instructions import emit_conv, emit_conv_add, emit_dynamic, emit_linear, emit_sum
from .lowering import (
    ConvAdd,
    DynamicLinear,
    Export,
    FlattenFloats,
    Import,
    LinearSum,
    Pool,
    QuantizeFlat,
    Turn,
    add_factors,
)
from .planner import Emitters, Planner, layout_of, row_loops


def grid_record(grid: QParams) -> Grid:
    """A grid as kernels read it."""
    return quantize.grid_record(float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax)


def emit_quantize(planner: Planner, step: Quantize | QuantizeFlat) -> None:
    layout, grid = planner.values[step.name].layout, grid_record(step.qparams)
    if layout.is_row:
        planner.emit(quantize.QUANTIZE, quantize.QuantizeRows(
            source=planner.slot(step.x), target=planner.first(step.name), count=layout.images, width=layout.channels,
            source_pitch=4 * layout.channels, target_pitch=layout.pitch, grid=grid,
        ))  # fmt: skip
        return
    lines = planner.keep(aligned(layout.channels * (layout.width + 64)))
    for start, stack in plane_stacks(layout):
        planner.emit(planes.QUANTIZE, planes.QuantizePlanes(
            planes=stack, grid=grid, source=planner.slot(step.x), target=planner.address(step.name) + start,
            lines=lines,
        ))  # fmt: skip


def plane_stacks(layout: Layout) -> list[tuple[int, planes.Planes]]:
    """For each stack of planes where it begins, and how to go from or to floats [images, channels, *positions]."""
    area = layout.height * layout.width
    channel = layout.depth * area
    return [
        (start, planes.Planes(
            images=count, height=layout.height, width=layout.width, channels=layout.channels, image=distance,
            line=layout.line,
            pitch=layout.pitch, begin=n * layout.channels * channel, channel_step=channel,
            image_step=area if layout.is_volume else layout.channels * channel,
        )) for n, (start, count, distance) in enumerate(layout.stacks())
    ]  # fmt: skip


def emit_dequantize(planner: Planner, step: Dequantize) -> None:
    layout, grid = planner.values[step.x].layout, grid_record(step.qparams)
    if layout.counts == (1, 1, 1):
        planner.emit(quantize.DEQUANTIZE, quantize.DequantizeRows(
            source=planner.first(step.x), target=planner.slot(step.name), count=layout.images, width=layout.channels,
            source_pitch=layout.image, target_pitch=4 * layout.channels, grid=grid,
        ))  # fmt: skip
        return
    for start, stack in plane_stacks(layout):
        planner.emit(planes.DEQUANTIZE, planes.DequantizePlanes(
            planes=stack, grid=grid, source=planner.address(step.x) + start, target=planner.slot(step.name),
        ))  # fmt: skip


def emit_margin(planner: Planner, name: str, zero: int) -> None:
    """The zero points around images."""
    layout, address = planner.values[name].layout, planner.address(name)
    used, before = layout.width * layout.pitch, layout.margin[2] * layout.line + layout.margin[4] * layout.pitch
    after = layout.plane - before - (layout.height - 1) * layout.line - used
    for start, count, distance in layout.stacks():
        planner.emit(images.FILL, images.Fill(
            target=address + start - before, images=count, image=distance, before=before, height=layout.height,
            line=layout.line,
            used=used, after=after, zero=zero,
        ))  # fmt: skip
    # Whole planes before and behind, in the images' order.
    front, back = (planes * layout.plane for planes in layout.margin[:2])
    for start, length in ((0, front), (layout.image - back, back)):
        if length:
            planner.emit(images.FILL, images.Fill(
                target=address + start, images=layout.images, image=layout.image, before=length, height=1, line=0,
                used=0, after=0, zero=zero,
            ))  # fmt: skip


def emit_view(planner: Planner, step: FlattenFloats) -> None:
    """Nothing: floats lie in the same order."""


def window_entries(
    planner: Planner, step: Pool, taps: np.ndarray, counts: np.ndarray, factors: ArrayLike
) -> images.Windows:
    """Pooling by a table: for each output position the offsets of the inputs that count, and how many these are."""
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    image = Layout(1, y.height, y.width, y.channels, y.margin, y.depth)
    return images.Windows(
        x=planner.address(step.x), y=planner.address(step.name), images=y.images, rows=len(counts),
        window=taps.shape[1], channels=y.channels, x_image=x.image, y_image=y.image,
        taps=planner.keep(offset_table(taps)), counts=planner.keep(counts.astype(np.int32)),
        y_offsets=planner.keep(image.offsets(y.counts)), factors=planner.keep(np.array(factors, np.float32)),
    )  # fmt: skip


def inside(step: MaxPool | AvgPool, x: Layout, y: Layout) -> tuple[np.ndarray, np.ndarray]:
    """For each window the offsets of its positions that lie in the image, row by row, and how many do."""
    missing = 3 - len(step.kernel)
    dilations = step.dilation if isinstance(step, MaxPool) else (1,) * len(step.kernel)
    kernel, stride, dilation = ((1,) * missing + tuple(value) for value in (step.kernel, step.stride, dilations))
    padding = (0,) * missing + tuple(step.padding)
    along = []
    for axis, (n, count) in enumerate(zip(x.counts, y.counts)):
        starts = [i * stride[axis] - padding[axis] for i in range(count)]
        seen = [[start + k * dilation[axis] for k in range(kernel[axis])] for start in starts]
        along.append([[position for position in window if 0 <= position < n] for window in seen])
    return positions(x, along)


def positions(x: Layout, along: Sequence[Sequence[Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """For each window the offsets of its positions within an image, and how many there are. ``along``: for each axis
    the numbers of the positions that a window has there."""
    offsets, there = np.array(x.first), np.array(True)
    for axis, apart in zip(along, (x.plane, x.line, x.pitch)):
        most = max(map(len, axis), default=0)
        numbers = np.array([[*own, *[-1] * (most - len(own))] for own in axis], np.int64).reshape(len(axis), most)
        offsets, there = np.add.outer(offsets, numbers * apart), np.logical_and.outer(there, numbers >= 0)
    windows = np.prod(offsets.shape[::2])
    offsets, there = (values.transpose(0, 2, 4, 1, 3, 5).reshape(windows, -1) for values in (offsets, there))
    counts = there.sum(1)
    if not there.all():
        first = np.argsort(~there, axis=1, kind="stable")
        offsets = np.take_along_axis(np.where(there, offsets, 0), first, 1)[:, : counts.max(initial=0)]
    return offsets, counts


def emit_max(planner: Planner, step: MaxPool) -> None:
    taps, counts = inside(step, planner.values[step.x].layout, planner.values[step.name].layout)
    planner.emit(images.MAX, images.Pool(windows=window_entries(planner, step, taps, counts, np.zeros(len(counts)))))


def emit_average(planner: Planner, step: AvgPool) -> None:
    shape, grid = planner.shapes[step.x][2:], step.qparams
    divisors = window_counts(
        shape, step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad
    ).ravel()
    windows = inside(step, planner.values[step.x].layout, planner.values[step.name].layout)
    planner.emit(images.AVERAGE, images.AveragePool(
        windows=window_entries(planner, step, *windows, divisors), scale=grid.scale, zero=int(grid.zero_point),
        lowest=grid.qmin,
        highest=grid.qmax,
    ))  # fmt: skip


def emit_adaptive(planner: Planner, step: AdaptiveAvgPool | Mean) -> None:
    x, shape = planner.values[step.x].layout, planner.shapes[step.name]
    parts = (1, 1, 1) if isinstance(step, Mean) else layout_of(shape, True).counts
    taps, counts = positions(x, [[range(*part(k, m, n)) for k in range(m)] for m, n in zip(parts, x.counts)])
    grid, point = step.qparams, int(step.qparams.zero_point)
    with np.errstate(over="ignore"):
        factors = grid.scale / (grid.scale * counts.astype(np.float32))
    planner.emit(images.MEAN, images.MeanPool(
        windows=window_entries(planner, step, taps, counts, factors), zero=point, lowest=grid.qmin - point,
        highest=grid.qmax - point,
    ))  # fmt: skip


def emit_bilinear(planner: Planner, step: Bilinear) -> None:
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    factors = step.factors if step.exact and step.factors is not None else (None, None)
    along = []
    for n, m, factor, pitch in zip(x.counts[1:], y.counts[1:], factors, (x.line, x.pitch)):
        before, behind, steps = bilinear.places(n, m, factor, step.align_corners)
        ends = offset_table(np.stack([before, behind], 1) * pitch)
        along.append((planner.keep(ends), planner.keep((steps / bilinear.UNIT).astype(np.float32))))
    (row_ends, row_shares), (column_ends, column_shares) = along
    planner.emit(between.BILINEAR, between.Bilinear(
        x=planner.first(step.x), y=planner.first(step.name), images=x.images, height=y.height, width=y.width,
        channels=x.channels, x_image=x.image, y_image=y.image, y_line=y.line, y_pitch=y.pitch, row_ends=row_ends,
        row_shares=row_shares, column_ends=column_ends, column_shares=column_shares, zero=int(step.qparams.zero_point),
    ))  # fmt: skip


def operands(
    planner: Planner, a: str, b: str, target: str, *, start: int = 0, by_position: bool = False
) -> list[images.Operands]:
    """Going over the bytes of two values, of which one may have fewer images or positions, to channels of ``target``
    from ``start`` on, the channels of one position in each run where ``by_position``.

    One for each image where an image is more than a plane.
    """
    if planner.shapes[a] != planner.shapes[b] and not planner.images[target]:
        return [rows_operands(planner, a, b, target)]
    layouts = [planner.values[value].layout for value in (a, b, target)]
    count, depth = max(x.images for x in layouts), max(x.depth for x in layouts)
    height, width = max(x.height for x in layouts), max(x.width for x in layouts)
    used, volumes = layouts[0].channels, any(layout.is_volume for layout in layouts)
    a_strides, b_strides, target_strides = (
        images.Strides(
            image=(x.plane if volumes else x.image) * ((x.depth if volumes else x.images) > 1),
            line=x.line * (x.height > 1),
            position=x.pitch * (x.width > 1),
        ) for x in layouts
    )  # fmt: skip
    outer = depth if volumes else count
    alike = layouts[0].width == layouts[1].width and len({x.pitch for x in layouts}) == 1
    if alike and start == 0 and not by_position:
        # Whole lines, with what lies between the channels of one position and the next.
        loops = images.Loops(images=outer, lines=height, positions=1, bytes=(width - 1) * layouts[0].pitch + used)
    else:
        loops = images.Loops(images=outer, lines=height, positions=width, bytes=used)
    result = []
    for n in range(count if volumes else 1):
        first_a, first_b, first_target = (
            planner.first(value) + n * x.image * (x.images > 1) for value, x in zip((a, b, target), layouts)
        )
        result.append(images.Operands(
            a=first_a, b=first_b, target=first_target + start, loops=loops, a_strides=a_strides, b_strides=b_strides,
            target_strides=target_strides,
        ))  # fmt: skip
    return result


def rows_operands(planner: Planner, a: str, b: str, target: str) -> images.Operands:
    """Going over the rows of two values that are broadcast."""
    loops = row_loops(planner.shapes[a], planner.shapes[b])
    loops = [(1, 0, 0)] * (3 - len(loops)) + loops
    outer, middle, inner = (count for count, *_ in loops)
    rows = (*zip(*loops),)[1:] + ((middle * inner, inner, 1),)
    layouts = [planner.values[value].layout for value in (a, b, target)]
    strides = [
        images.Strides(image=image * x.image, line=line * x.image, position=position * x.image)
        for x, (image, line, position) in zip(layouts, rows)
    ]
    return images.Operands(
        a=planner.first(a), b=planner.first(b), target=planner.first(target),
        loops=images.Loops(images=outer, lines=middle, positions=inner, bytes=layouts[0].channels),
        a_strides=strides[0], b_strides=strides[1], target_strides=strides[2],
    )  # fmt: skip


def emit_add(planner: Planner, step: Add) -> None:
    factors = add_factors(step)
    if not factors.finite:
        raise UnsupportedError(f"step {step.name!r}: the ratio of its scales is too large for float32")
    grid = step.y_qparams
    lowest = int(grid.zero_point) if step.relu else grid.qmin
    for parts in operands(planner, step.a, step.b, step.name):
        planner.emit(images.ADD, images.Add(
            operands=parts, lowest=lowest, highest=grid.qmax, a_ratio=factors.a, b_ratio=factors.b, start=factors.start,
        ))  # fmt: skip


def emit_mul(planner: Planner, step: Mul) -> None:
    a, b, y = step.a_qparams, step.b_qparams, step.y_qparams
    with np.errstate(over="ignore"):
        ratio = a.scale * b.scale / y.scale
    if not np.isfinite(ratio):
        raise UnsupportedError(f"step {step.name!r}: the ratio of its scales is too large for float32")
    a_zero, b_zero, zero = (int(grid.zero_point) for grid in (a, b, y))
    for parts in operands(planner, step.a, step.b, step.name):
        planner.emit(images.MUL, images.Mul(
            operands=parts, lowest=y.qmin, highest=y.qmax, ratio=ratio, a_zero=a_zero, b_zero=b_zero, zero=zero,
        ))  # fmt: skip


def emit_lookup(planner: Planner, x: str, target: str, table: np.ndarray, *, start: int = 0) -> None:
    """Codes by a table."""
    address = planner.keep(np.ascontiguousarray(table))
    for parts in operands(planner, x, x, target, start=start):
        planner.emit(images.TABLE, images.LookUp(operands=parts, table=address))


def emit_table(planner: Planner, step: Table) -> None:
    if step.table.ndim == 1:
        emit_lookup(planner, step.x, step.name, step.table)
        return
    layout, shape, count = planner.values[step.x].layout, planner.shapes[step.x], len(step.table)
    if len(shape) < 2 or shape[1] != count or (layout.images, layout.channels) != (shape[0], count):
        raise UnsupportedError(f"step {step.name!r}: expected {count} channels on axis 1, got shape {shape}")
    x, y = step.x_qparams, step.y_qparams
    ends = [(int(grid.zero_point), grid.qmin, grid.qmax) for grid in (x, y)]
    factors = channels.slopes(step.table, *ends)
    for parts in operands(planner, step.x, step.x, step.name, by_position=True):
        if factors is None:
            planner.emit(channels.LOOK_UP, channels.LookUpChannels(
                operands=parts, tables=planner.keep(np.ascontiguousarray(step.table)),
            ))  # fmt: skip
            continue
        filled = np.pad(factors, ((0, 0), (0, -count % LANES)))
        zero, lowest, highest = ends[1]
        planner.emit(channels.TWO_SLOPES, channels.TwoSlopes(
            operands=parts, factors=planner.keep(filled), distance=filled.strides[0], x_zero=int(x.zero_point),
            clamp=Clamp(lowest=lowest - zero, highest=highest - zero, zero=zero),
        ))  # fmt: skip


def emit_relu(planner: Planner, step: Relu) -> None:
    emit_lookup(planner, step.x, step.name, np.maximum(np.arange(256), int(step.qparams.zero_point)).astype(np.uint8))


def emit_concat(planner: Planner, step: Concat) -> None:
    start = 0
    for x, grid in zip(step.xs, step.x_qparams):
        table = rescale(dialect("onnx"), np.arange(256, dtype=np.uint8), grid, step.y_qparams)
        emit_lookup(planner, x, step.name, table, start=start)
        start += planner.values[x].layout.channels


EMITTERS: Emitters = {
    Quantize: emit_quantize, Dequantize: emit_dequantize, Linear: emit_linear, Conv: emit_conv, ConvAdd: emit_conv_add,
    LinearSum: emit_sum, DynamicLinear: emit_dynamic, Table: emit_table, Relu: emit_relu, Add: emit_add, Mul: emit_mul,
    Concat: emit_concat, MaxPool: emit_max, AvgPool: emit_average, AdaptiveAvgPool: emit_adaptive, Mean: emit_adaptive,
    Bilinear: emit_bilinear, Move: emit_flatten, Turn: emit_turn, QuantizeFlat: emit_quantize, FlattenFloats: emit_view,
    Import: emit_import, Export: emit_export,
}  # fmt: skip
