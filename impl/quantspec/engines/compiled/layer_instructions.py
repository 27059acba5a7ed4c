"""The instructions of layers: products, depthwise convolutions, and what gives floats."""

import itertools

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.program import Conv, Linear
from quantspec.ir.traverse import is_direct
from quantspec.kernels import depthwise, dynamic_gemm, float_output, gemm
from quantspec.kernels.memory import Layout, Triple
from quantspec.kernels.packed import Packed
from quantspec.kernels.records import Clamp

from .packing import in_pairs, joined
from .planner import Planner, layout_of
from .shapes import ConvAdd, Dynamic, is_depthwise, ratios
from .transposed import Phase, phases


def emit_linear(planner: Planner, step: Linear) -> None:
    if is_direct(step):
        emit_linear_floats(planner, step)
        return
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    (packed,) = planner.packed[step.name]
    targets = y.offsets((1, 1, 1))
    product = product_record(planner, packed, planner.address(step.x), planner.address(step.name), x.offsets((1, 1, 1)), len(targets), [0])
    planner.emit(gemm.PRODUCT, gemm.ProductCodes(product=product, y_offsets=planner.keep(targets), clamp=clamp(step)))


def product_record(
    planner: Planner, packed: Packed, x: int, y: int, x_offsets: np.ndarray, rows: int, run_offsets: list[int]
) -> gemm.Product:
    """One product, by the addresses of its operands and the offsets of its inputs."""
    inputs = 4 * packed.runs * packed.run_steps
    planner.macs += rows * packed.outputs * inputs
    return gemm.Product(
        x=x, y=y, weight=planner.keep(packed.weight), bias=planner.keep(packed.bias), factor=planner.keep(packed.factor), rows=rows,
        outputs=packed.outputs, blocks=packed.blocks, steps=packed.runs * packed.run_steps, runs=packed.runs,
        run_steps=packed.run_steps, run_offsets=planner.keep(np.array(run_offsets, np.int32)), x_offsets=planner.keep(x_offsets),
        chunk=gemm.chunk_rows(rows, inputs),
    )  # fmt: skip


def clamp(step: Linear | Conv) -> Clamp:
    """The lowest and the highest code of a layer."""
    grid = step.y_qparams
    point = int(grid.zero_point)
    return Clamp(lowest=(point if step.relu else grid.qmin) - point, highest=grid.qmax - point, zero=point)


def spread(step: Conv) -> tuple[tuple[int, int, int], ...]:
    """Kernel, stride, start and dilation for three axes of positions, the first of which may be missing."""
    kernel, stride, start, dilation = step.weight.shape[2:], step.stride, tuple(-before for before, _ in step.padding), step.dilation
    return tuple((fill,) * (3 - len(value)) + tuple(value) for fill, value in ((1, kernel), (1, stride), (0, start), (1, dilation)))


def emit_dynamic(planner: Planner, step: Dynamic) -> None:
    """Quantizing rows on the grids of their ranges, and the product."""
    shape, (packed,) = planner.shapes[step.name], planner.packed[step.layer.name]
    rows, source = int(np.prod(shape[:-1])), planner.alias.get(step.x, step.x)
    inputs, outputs = step.layer.weight.shape[1], shape[-1]
    quantize, product = dynamic_gemm.layer(
        packed, rows, inputs, planner.keep, qmax=127 if step.layer.reduce_range else 255, per_row=step.layer.rows, relu=step.relu
    )
    if source in planner.values:
        quantize.source = planner.address(source)
    else:
        quantize.slot = planner.slot(source)
    if step.name in planner.outputs:
        product.slot = planner.slot(step.name)
    else:
        product.product.y = planner.address(step.name)
    planner.macs += rows * inputs * outputs
    planner.emit(dynamic_gemm.QUANTIZE, quantize)
    planner.emit(dynamic_gemm.PRODUCT, product)


def emit_linear_floats(planner: Planner, step: Linear) -> None:
    (packed,) = planner.packed[step.name]
    sources = planner.values[step.x].layout.offsets((1, 1, 1))
    emit_floats(planner, step, packed, planner.address(step.x), sources, np.arange(len(sources)), [0])


def emit_floats(
    planner: Planner, step: Linear | Conv, packed: Packed, x: int, x_offsets: np.ndarray, rows: np.ndarray,
    run_offsets: list[int], group: int = 0,
) -> None:  # fmt: skip
    """One product that gives floats, to ``rows`` of the output and its columns from those of ``group`` on."""
    offsets = float_offsets(rows, len(step.weight), group * packed.outputs)
    product = product_record(planner, packed, x, 0, x_offsets, len(rows), run_offsets)
    assert packed.float_bias is not None
    planner.emit(float_output.PRODUCT, float_output.ProductFloats(
        product=product, past=gemm.goes_past(4 * len(rows) * len(step.weight), packed.outputs), relu=step.relu,
        slot=planner.slot(step.name), y_offsets=planner.keep(offsets), float_bias=planner.keep(packed.float_bias),
    ))  # fmt: skip


def float_offsets(rows: np.ndarray, outputs: int, first: int = 0) -> np.ndarray:
    """Where rows of floats begin, from entry ``first`` of each on."""
    if 4 * (int(rows.max(initial=0)) + 1) * outputs >= 2**31:
        raise UnsupportedError("the kernels give less than 2 GiB of floats at a time")
    return (4 * (rows * outputs + first)).astype(np.int32)


def emit_conv(planner: Planner, step: Conv) -> None:
    """The products of all phases and groups."""
    if is_direct(step):
        emit_conv_floats(planner, step)
        return
    if is_depthwise(step):
        for phase, packed, counts in packed_phases(planner, step, planner.values[step.name].layout):
            emit_depthwise(planner, phase, packed, step.name, counts)
        return
    for product, targets in conv_products(planner, step, step.name):
        planner.emit(gemm.PRODUCT, gemm.ProductCodes(product=product, y_offsets=planner.keep(targets), clamp=clamp(step)))


def conv_products(planner: Planner, step: Conv, name: str) -> list[tuple[gemm.Product, np.ndarray]]:
    """The products of all phases and groups, and the offsets of their outputs, which are the value of that name or
    part of it.
    """
    x, y = planner.values[step.x].layout, planner.values[name].layout
    inputs, outputs = step.weight.shape[1], len(step.weight) // step.groups
    source, target = planner.address(step.x), planner.address(name)
    result = []
    for phase, packed, counts in packed_phases(planner, step, y):
        (sources, runs), targets = windows_of(phase.conv, x, counts), y.offsets(counts, phase.step, phase.first)
        for g, group in enumerate(packed):
            product = product_record(planner, group, source + g * inputs, target + g * outputs, sources, len(targets), runs)
            result.append((product, targets))
    return result


def packed_phases(planner: Planner, step: Conv, y: Layout) -> list[tuple[Phase, list, tuple[int, int, int]]]:
    """The phases of a convolution that have outputs, what each was packed into, and how many outputs it has along
    each axis.
    """
    all_phases, packed = phases(step), planner.packed[step.name]
    size = len(packed) // len(all_phases)
    parts = [(phase, packed[n * size : (n + 1) * size], phase.counts(y.counts)) for n, phase in enumerate(all_phases)]
    return [part for part in parts if min(part[2]) > 0]


def windows_of(step: Conv, x: Layout, counts: tuple[int, int, int]) -> tuple[np.ndarray, list[int]]:
    """Where the windows of an input begin, ``counts`` of them along each axis, and how far from there the runs of
    bytes in each.
    """
    kernel, stride, start, dilation = spread(step)
    places = itertools.product(range(kernel[0]), range(kernel[1]), [0] if joined(step) else range(kernel[2]))
    sizes = [d * size for d, size in zip(dilation, (x.plane, x.line, x.pitch))]
    return x.offsets(counts, stride, start), [sum(k * size for k, size in zip(place, sizes)) for place in places]


def emit_conv_floats(planner: Planner, step: Conv) -> None:
    """The products of all phases and groups, to floats."""
    x, y, inputs = planner.values[step.x].layout, layout_of(planner.shapes[step.name], True), step.weight.shape[1]
    rows = np.arange(y.images * int(np.prod(y.counts))).reshape(y.images, *y.counts)
    for phase, packed, counts in packed_phases(planner, step, y):
        own = rows[(slice(None), *(slice(first, None, apart) for first, apart in zip(phase.first, phase.step)))].ravel()
        if is_depthwise(step):
            emit_depthwise_floats(planner, phase.conv, packed, x, counts, own)
            continue
        sources, runs = windows_of(phase.conv, x, counts)
        for g, group in enumerate(packed):
            emit_floats(planner, step, group, planner.address(step.x) + g * inputs, sources, own, runs, g)


def emit_conv_add(planner: Planner, step: ConvAdd) -> None:
    ratio, b_ratio, start, _ = ratios(step.add)
    grid, other = step.add.y_qparams, planner.values[step.b].layout
    b, outputs = planner.address(step.b), len(step.conv.weight) // step.conv.groups
    b_offsets = planner.keep(other.offsets(other.counts))
    for g, (product, targets) in enumerate(conv_products(planner, step.conv, step.name)):
        planner.emit(gemm.PRODUCT_ADD, gemm.ProductAdd(
            product=product, y_offsets=planner.keep(targets), clamp=clamp(step.conv), b=b + g * outputs, b_offsets=b_offsets,
            is_first=step.first, ratio=ratio, b_ratio=b_ratio, start=start,
            lowest=int(grid.zero_point) if step.add.relu else grid.qmin, highest=grid.qmax,
        ))  # fmt: skip


def emit_depthwise(planner: Planner, phase: Phase, packed: list[np.ndarray], name: str, counts: Triple) -> None:
    step = phase.conv
    x, y = planner.values[step.x].layout, planner.values[name].layout
    kernel, stride, start, dilation = spread(step)
    weight, bias, factor = (planner.keep(array) for array in packed)
    height, width = counts[1:]  # of one plane
    planner.macs += step.weight[0].size * y.images * height * width * y.channels

    def layer(rows: int, groups: int, x_offsets: np.ndarray, y_offsets: np.ndarray) -> depthwise.Depthwise:
        return depthwise.Depthwise(
            x=planner.address(step.x), y=planner.address(name), weight=weight, bias=bias, factor=factor, rows=rows, channels=channels,
            groups=groups, x_offsets=planner.keep(x_offsets), y_offsets=planner.keep(y_offsets),
        )  # fmt: skip

    # Positions that lie together in a block of channels, as wide as a line allows.
    side_by_side = y.pitch == x.pitch == y.channels and stride[2] == phase.step[2] == 1
    together = depthwise.WIDE // y.channels if depthwise.WIDE % y.channels == 0 and side_by_side else 1
    while width % together:
        together //= 2
    channels, width = together * y.channels, width // together
    if in_pairs(step) and together == 1 and width > 1:
        sources, targets = x.offsets((1, height, 1), stride, start), y.offsets((1, height, 1), phase.step, phase.first)
        planner.emit(depthwise.PAIRS, depthwise.DepthwisePairs(
            layer=layer(len(targets), -(-width // 2), sources, targets), clamp=clamp(step), pitch=x.pitch, line=x.line,
            y_pitch=y.pitch * phase.step[2], last=width - 2,
        ))  # fmt: skip
        return
    taps = taps_of(step, x)
    sources = x.offsets((1, height, width), (1, stride[1], stride[2] * together), start)
    targets = y.offsets((1, height, width), (1, phase.step[1], phase.step[2] * together), phase.first)
    groups = len(taps) // 4
    planner.emit(depthwise.by_groups(groups), depthwise.DepthwiseTaps(
        layer=layer(len(targets), groups, sources, targets), clamp=clamp(step), taps=planner.keep(taps),
    ))  # fmt: skip


def taps_of(step: Conv, x: Layout) -> np.ndarray:
    """Where the places of a kernel lie from the start of a window on, in whole groups of four, the last of which have
    weights of zero.
    """
    kernel, _, _, dilation = spread(step)
    padded = kernel[2] + in_pairs(step)
    taps = [i * dilation[1] * x.line + min(j, kernel[2] - 1) * dilation[2] * x.pitch for i in range(kernel[1]) for j in range(padded)]
    return np.array(taps + [taps[-1]] * (-len(taps) % 4), np.int32)


def emit_depthwise_floats(planner: Planner, step: Conv, packed: list[np.ndarray], x: Layout, counts: tuple[int, int, int], rows: np.ndarray) -> None:
    """A depthwise convolution that gives floats, to ``rows`` of the output."""
    _, stride, start, _ = spread(step)
    weight, bias, factor, float_bias = (planner.keep(array) for array in packed)
    taps, channels = taps_of(step, x), len(step.weight)
    planner.macs += step.weight[0].size * len(rows) * channels
    layer = depthwise.Depthwise(
        x=planner.address(step.x), y=0, weight=weight, bias=bias, factor=factor, rows=len(rows), channels=channels,
        groups=len(taps) // 4, x_offsets=planner.keep(x.offsets(counts, stride, start)),
        y_offsets=planner.keep(float_offsets(rows, channels)),
    )  # fmt: skip
    planner.emit(float_output.DEPTHWISE, float_output.DepthwiseFloats(
        layer=layer, float_bias=float_bias, taps=planner.keep(taps), relu=step.relu, slot=planner.slot(step.name),
    ))  # fmt: skip
