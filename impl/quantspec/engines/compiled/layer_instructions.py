"""The instructions of layers: products, depthwise convolutions, and what gives floats."""

import itertools

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.program import Conv, Linear
from quantspec.ir.traverse import is_direct
from quantspec.kernels import depthwise, dynamic_gemm, float_output, gemm, quantize
from quantspec.kernels.emitter import float_bits
from quantspec.kernels.memory import Layout

from .packing import Packed, in_pairs, joined
from .planner import Planner, layout_of
from .shapes import ConvAdd, Dynamic, is_depthwise, ratios
from .transposed import Phase, phases

PRODUCT, PRODUCT_ADD = ("product", gemm.write_product), ("product_add", gemm.write_product_add)


def emit_linear(planner: Planner, step: Linear) -> None:
    if is_direct(step):
        emit_linear_real(planner, step)
        return
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
    } | ({} if is_direct(step) else clamp(step, gemm.LOWEST, gemm.HIGHEST, gemm.ZERO)))  # fmt: skip


def clamp(step, lowest: int, highest: int, zero: int) -> dict[int, int]:
    """The entries for the lowest and the highest code, relative to the zero point, and the zero point."""
    grid = step.y_qparams
    point = int(grid.zero_point)
    return {lowest: float_bits((point if step.relu else grid.qmin) - point), highest: float_bits(grid.qmax - point), zero: point}


def spread(step: Conv) -> tuple[tuple[int, int, int], ...]:
    """Kernel, stride, start and dilation for three axes of positions, the first of which may be missing."""
    kernel, stride, start, dilation = step.weight.shape[2:], step.stride, tuple(-before for before, _ in step.padding), step.dilation
    return tuple((fill,) * (3 - len(value)) + tuple(value) for fill, value in ((1, kernel), (1, stride), (0, start), (1, dilation)))


def emit_dynamic(planner: Planner, step: Dynamic) -> None:
    """Quantizing rows on the grids of their ranges, and the product."""
    shape, (packed,) = planner.shapes[step.name], planner.packed[step.layer.name]
    rows, source = int(np.prod(shape[:-1])), planner.alias.get(step.x, step.x)
    inputs, outputs = step.layer.weight.shape[1], shape[-1]
    first, second = dynamic_gemm.entries(packed, rows, inputs, planner.keep, qmax=127 if step.layer.reduce_range else 255, per_row=step.layer.rows, relu=step.relu)
    if source in planner.values:
        first[quantize.SOURCE] = planner.address(source)
    else:
        first[dynamic_gemm.SLOT] = planner.slot(source)
    if step.name in planner.outputs:
        second[dynamic_gemm.Y_SLOT] = planner.slot(step.name)
    else:
        second[gemm.Y] = planner.address(step.name)
    planner.macs += rows * inputs * outputs
    planner.emit("dynamic_quantize", dynamic_gemm.write_dynamic_quantize, first)
    planner.emit("dynamic_product", dynamic_gemm.write_dynamic_product, second)


def emit_linear_real(planner: Planner, step: Linear) -> None:
    (packed,) = planner.packed[step.name]
    sources = planner.values[step.x].layout.offsets((1, 1, 1))
    emit_real(planner, step, packed, planner.address(step.x), sources, np.arange(len(sources)), [0])


def emit_real(planner: Planner, step: Linear | Conv, packed: Packed, x: int, x_offsets: np.ndarray, rows: np.ndarray, run_offsets, group: int = 0) -> None:
    """One product that gives floats, to ``rows`` of the output and its columns from those of ``group`` on."""
    y_offsets = real_offsets(rows, len(step.weight), group * packed.outputs)
    op = emit_product(planner, step, packed, x, 0, x_offsets, y_offsets, run_offsets, kind=("product_real", float_output.write_product_real))
    op[float_output.REAL_BIAS], op[float_output.RELU], op[float_output.Y_SLOT] = planner.keep(packed.real_bias), step.relu, planner.slot(step.name)
    op[gemm.PAST] = gemm.goes_past(4 * len(rows) * len(step.weight), packed.outputs)


def real_offsets(rows: np.ndarray, outputs: int, first: int = 0) -> np.ndarray:
    """Where rows of floats begin, from entry ``first`` of each on."""
    if 4 * (int(rows.max(initial=0)) + 1) * outputs >= 2**31:
        raise UnsupportedError("the kernels give less than 2 GiB of floats at a time")
    return (4 * (rows * outputs + first)).astype(np.int32)


def emit_conv(planner: Planner, step: Conv) -> None:
    if is_direct(step):
        emit_conv_real(planner, step)
    else:
        emit_conv_codes(planner, step)


def emit_conv_codes(planner: Planner, step: Conv, name: str | None = None) -> list[np.ndarray]:
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


def packed_phases(planner: Planner, step: Conv, y: Layout) -> list[tuple[Phase, list, tuple[int, int, int]]]:
    """The phases of a convolution that have outputs, what each was packed into, and how many outputs it has along each axis."""
    all_phases, packed = phases(step), planner.packed[step.name]
    size = len(packed) // len(all_phases)
    parts = [(phase, packed[n * size : (n + 1) * size], phase.counts(y.counts)) for n, phase in enumerate(all_phases)]
    return [part for part in parts if min(part[2]) > 0]


def windows_of(step: Conv, x: Layout, counts: tuple[int, int, int]) -> tuple[np.ndarray, list[int]]:
    """Where the windows of an input begin, ``counts`` of them along each axis, and how far from there the runs of bytes in each."""
    kernel, stride, start, dilation = spread(step)
    places = itertools.product(range(kernel[0]), range(kernel[1]), [0] if joined(step) else range(kernel[2]))
    sizes = [d * size for d, size in zip(dilation, (x.plane, x.line, x.pitch))]
    return x.offsets(counts, stride, start), [sum(k * size for k, size in zip(place, sizes)) for place in places]


def emit_conv_real(planner: Planner, step: Conv) -> None:
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
    for g, op in enumerate(emit_conv_codes(planner, step.conv, step.name)):
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


def taps_of(step: Conv, x: Layout) -> np.ndarray:
    """Where the places of a kernel lie from the start of a window on, in whole groups of four, the last of which have weights of zero."""
    kernel, _, _, dilation = spread(step)
    padded = kernel[2] + in_pairs(step)
    taps = [i * dilation[1] * x.line + min(j, kernel[2] - 1) * dilation[2] * x.pitch for i in range(kernel[1]) for j in range(padded)]
    return np.array(taps + [taps[-1]] * (-len(taps) % 4), np.int32)


def emit_depthwise_real(planner: Planner, step: Conv, packed: list[np.ndarray], x: Layout, counts: tuple[int, int, int], rows: np.ndarray) -> None:
    """A depthwise convolution that gives floats, to ``rows`` of the output."""
    _, stride, start, _ = spread(step)
    weight, *tables = packed
    taps, channels = taps_of(step, x), len(step.weight)
    planner.macs += step.weight[0].size * len(rows) * channels
    planner.emit("depthwise_real", float_output.write_depthwise_real, {
        depthwise.X: planner.address(step.x), depthwise.W: planner.keep(weight), depthwise.ROWS: len(rows), depthwise.CHANNELS: channels,
        depthwise.GROUPS: len(taps) // 4, depthwise.TAPS: planner.keep(taps), depthwise.X_OFFSETS: planner.keep(x.offsets(counts, stride, start)),
        depthwise.Y_OFFSETS: planner.keep(real_offsets(rows, channels)), float_output.RELU: step.relu, float_output.Y_SLOT: planner.slot(step.name),
    } | dict(zip((depthwise.BIAS, depthwise.FACTOR, float_output.REAL_BIAS), map(planner.keep, tables))))  # fmt: skip
