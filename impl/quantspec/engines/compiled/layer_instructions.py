"""The instructions of layers: products, depthwise convolutions, and what gives floats."""

import itertools
from dataclasses import dataclass
from math import prod

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.held import codes_shape
from quantspec.ir.program import Conv, Linear, LinearWeight
from quantspec.kernels import depthwise, dynamic_gemm, float_output, gemm, weight_only
from quantspec.kernels.grouped import tile_offsets, tile_steps
from quantspec.kernels.memory import Layout, Triple, offset_table
from quantspec.kernels.packed import Packed, PackedChannels
from quantspec.kernels.product import Product, ProductAdd, ProductCodes
from quantspec.kernels.records import Clamp
from quantspec.numerics.affine import QParams

from .lowering import ConvAdd, DynamicLinear, LinearSum, add_factors
from .packing import in_pairs, joined
from .planner import Planner, layout_of
from .sixteens import sixteens
from .transposed import DensePart, dense_parts, triple

ALONE = 8  # multiply-accumulates of a product take no longer than one of channels on their own


@dataclass(frozen=True)
class Sources:
    """Where the inputs of a product lie: where each row begins, and how far from there its ``runs`` are; of rows in
    sixteens, how many bytes ``apart`` they are, steps of the tiles that they are read in, and which ``rows`` of the
    layer they are, -1 for none.
    """

    offsets: np.ndarray
    runs: list[int]
    apart: int = 0
    tile_steps: int = 0
    rows: np.ndarray | None = None

    def of(self, values: np.ndarray, spare: int = 0) -> np.ndarray:
        """What each row of the layer has, for those of the product; ``spare`` for one that is none."""
        return values if self.rows is None else np.where(self.rows < 0, spare, values[self.rows]).astype(values.dtype)


def sources_of(
    packed: Packed, x: Layout, runs: list[int], counts: Triple = (1, 1, 1), stride: Triple = (1, 1, 1),
    start: Triple = (0, 0, 0), *, exact: bool = False,
) -> Sources:  # fmt: skip
    """The windows of a layout, in sixteens where that is quicker; ``exact``: of the layer's rows alone."""
    if of_tile := tile_steps(packed.runs * packed.run_steps, packed.run_steps, packed.blocks):
        found = sixteens(x, counts, stride, start)
        if found is not None and (not exact or found.is_exact):
            return Sources(found.places, runs, found.distance, of_tile, found.rows)
    return Sources(x.offsets(counts, stride, start), runs)


def emit_linear(planner: Planner, step: Linear) -> None:
    packed = planner.product_weights(step.name)
    sources, x = sources_of(packed, planner.values[step.x].layout, [0]), planner.address(step.x)
    if step.y_qparams is None:
        emit_floats(planner, step, packed, x, sources, np.arange(planner.values[step.x].layout.images))
        return
    targets = planner.values[step.name].layout.offsets((1, 1, 1))
    product = product_record(planner, packed, x, planner.address(step.name), sources, len(targets))
    planner.emit(gemm.PRODUCT, ProductCodes(
        product=product, y_offsets=planner.keep(sources.of(targets)), clamp=clamp(step.y_qparams, step.relu),
    ))  # fmt: skip


def product_record(planner: Planner, packed: Packed, x: int, y: int, sources: Sources, rows: int) -> Product:
    """One product, by the addresses of its operands and the offsets of its inputs, of so many ``rows`` of a layer."""
    inputs, places = 4 * packed.runs * packed.run_steps, len(sources.offsets)
    planner.macs += rows * packed.outputs * inputs
    return Product(
        x=x, y=y, weight=planner.keep(packed.weight), bias=planner.keep(packed.bias),
        factor=planner.keep(packed.factor), sums=planner.keep(packed.sums), rows=places,
        outputs=packed.outputs, blocks=packed.blocks, steps=packed.runs * packed.run_steps, runs=packed.runs,
        run_steps=packed.run_steps,
        run_offsets=planner.keep(tile_offsets(sources.runs, packed.run_steps, sources.tile_steps)),
        x_offsets=planner.keep(sources.offsets), apart=sources.apart, tile_steps=sources.tile_steps,
        chunk=gemm.chunk_rows(places, inputs),
    )  # fmt: skip


def clamp(grid: QParams, relu: bool) -> Clamp:
    """The lowest and the highest code of a layer with such outputs."""
    point = int(grid.zero_point)
    return Clamp(lowest=(point if relu else grid.qmin) - point, highest=grid.qmax - point, zero=point)


@dataclass(frozen=True)
class Windows:
    """The windows of a convolution along three axes of positions, the first of which may be missing."""

    kernel: Triple
    stride: Triple
    start: Triple
    dilation: Triple


def windows(step: Conv) -> Windows:
    """Those of a step."""
    start = tuple(-before for before, _ in step.padding)
    return Windows(triple(codes_shape(step)[2:], 1), triple(step.stride, 1), triple(start, 0), triple(step.dilation, 1))


def emit_dynamic(planner: Planner, step: DynamicLinear) -> None:
    """Quantizing rows on the grids of their ranges, and the product."""
    shape, packed = planner.shapes[step.name], planner.product_weights(step.layer.name)
    rows, source = int(np.prod(shape[:-1])), planner.alias.get(step.x, step.x)
    inputs, outputs = codes_shape(step.layer)[1], shape[-1]
    if isinstance(step.layer, LinearWeight):
        digits, products, weigh = weight_only.layer(packed, rows, inputs, planner.keep, planner.room, relu=step.relu)
        take_floats(planner, source, digits)
        if step.name in planner.outputs:
            weigh.slot = planner.slot(step.name)
        else:
            weigh.y = planner.address(step.name)
        planner.macs += weight_only.HIGH * rows * inputs * outputs
        planner.emit(weight_only.DIGITS_OF, digits)
        for sums in products:
            planner.emit(weight_only.PRODUCT, sums)
        planner.emit(weight_only.WEIGH, weigh)
        return
    quantize, product = dynamic_gemm.layer(
        packed, rows, inputs, planner.keep, planner.room, qmax=127 if step.layer.reduce_range else 255,
        per_row=step.layer.rows, relu=step.relu, soon=planner.soon,
    )  # fmt: skip
    take_floats(planner, source, quantize)
    if step.name in planner.outputs:
        product.slot = planner.slot(step.name)
    else:
        product.product.y = planner.address(step.name)
    planner.macs += rows * inputs * outputs
    planner.emit(dynamic_gemm.QUANTIZE, quantize)
    planner.emit(dynamic_gemm.PRODUCT, product)


def take_floats(planner: Planner, source: str, instruction: dynamic_gemm.RowsOfFloats) -> None:
    """Lets an instruction read floats from memory of the plan, or from an input or output."""
    if source in planner.values and source not in planner.outputs:
        instruction.source = planner.address(source)
    else:
        instruction.slot = planner.slot(source)


def emit_sum(planner: Planner, step: LinearSum) -> None:
    packed, layout = planner.product_weights(step.linear.name), planner.values[step.x].layout
    sources, rows = sources_of(packed, layout, [0]), np.arange(layout.images)
    emit_floats(planner, step.linear, packed, planner.address(step.x), sources, rows, added=step)


def emit_floats(
    planner: Planner, step: Linear | Conv, packed: Packed, x: int, sources: Sources, rows: np.ndarray,
    group: int = 0, added: LinearSum | None = None,
) -> None:  # fmt: skip
    """One product that gives floats, to ``rows`` of the output and its columns from those of ``group`` on; those of
    the sum that it is in, if it is."""
    offsets = sources.of(float_offsets(rows, codes_shape(step)[0], group * packed.outputs))
    product = product_record(planner, packed, x, 0, sources, len(rows))
    assert packed.float_bias is not None
    told: dict[str, int] = dict(
        past=gemm.goes_past(4 * len(rows) * codes_shape(step)[0], packed.outputs, soon=planner.soon), relu=step.relu,
        slot=planner.slot((added or step).name), y_offsets=planner.keep(offsets),
        float_bias=planner.keep(packed.float_bias),
    )  # fmt: skip
    if added is None:
        planner.emit(float_output.PRODUCT, float_output.ProductFloats(product=product, **told))
    else:
        b_slot = planner.slot(added.b)
        planner.emit(float_output.SUM, float_output.ProductSum(product=product, b_slot=b_slot, **told))


def float_offsets(rows: np.ndarray, outputs: int, first: int = 0) -> np.ndarray:
    """Where rows of floats begin, from entry ``first`` of each on."""
    if 4 * (int(rows.max(initial=0)) + 1) * outputs >= 2**31:
        raise UnsupportedError("batch: kernels write less than 2 GiB of floats in a call, this shape needs more")
    return offset_table(4 * (rows * outputs + first))


def emit_conv(planner: Planner, step: Conv) -> None:
    """The products of all parts and groups."""
    if step.y_qparams is None:
        emit_conv_floats(planner, step)
        return
    y, limits = planner.values[step.name].layout, clamp(step.y_qparams, step.relu)
    for part in parts_of(planner, step, y):
        if isinstance(part.packed, PackedChannels):
            emit_depthwise(planner, part, part.packed, step.name, limits)
        else:
            for product, targets, _ in conv_products(planner, part, part.packed, step.name):
                planner.emit(gemm.PRODUCT, ProductCodes(
                    product=product, y_offsets=planner.keep(targets), clamp=limits,
                ))  # fmt: skip


@dataclass(frozen=True, eq=False)
class PartToEmit:
    """A dense part of a convolution, what it was packed into, and how many outputs it has along each axis."""

    part: DensePart
    packed: list[Packed] | PackedChannels
    counts: Triple


def parts_of(planner: Planner, step: Conv, y: Layout) -> list[PartToEmit]:
    """The parts of a convolution that have outputs."""
    parts = zip(dense_parts(step), planner.packed[step.name], strict=True)
    result = [PartToEmit(part, packed, part.counts(y.counts)) for part, packed in parts]
    return [part for part in result if min(part.counts) > 0]


def conv_products(
    planner: Planner, part: PartToEmit, packed: list[Packed], name: str
) -> list[tuple[Product, np.ndarray, Sources]]:
    """The products of all groups, the offsets of their outputs, which are in the value of that name, and their inputs.
    """
    conv = part.part.conv
    x, y = planner.values[conv.x].layout, planner.values[name].layout
    inputs, outputs = codes_shape(conv)[1], codes_shape(conv)[0] // conv.groups
    source, target = planner.address(conv.x), planner.address(name)
    sources = windows_of(conv, packed[0], x, part.counts)
    targets = y.offsets(part.counts, part.part.step, part.part.first)
    result = []
    for g, group in enumerate(packed):
        begin = target + g * outputs
        product = product_record(planner, group, source + g * inputs, begin, sources, len(targets))
        result.append((product, sources.of(targets, planner.spare - begin), sources))
    return result


def windows_of(step: Conv, packed: Packed, x: Layout, counts: Triple, *, exact: bool = False) -> Sources:
    """The windows of an input, ``counts`` of them along each axis; ``exact`` as in ``sources_of``."""
    window = windows(step)
    planes, lines, columns = (range(size) for size in window.kernel)
    places = itertools.product(planes, lines, [0] if joined(step) else columns)
    sizes = [d * size for d, size in zip(window.dilation, (x.plane, x.line, x.pitch))]
    runs = [sum(k * size for k, size in zip(place, sizes)) for place in places]
    return sources_of(packed, x, runs, counts, window.stride, window.start, exact=exact)


def emit_conv_floats(planner: Planner, step: Conv) -> None:
    """The products of all parts and groups, to floats."""
    x, y, inputs = planner.values[step.x].layout, layout_of(planner.shapes[step.name], True), codes_shape(step)[1]
    rows = np.arange(y.images * int(np.prod(y.counts))).reshape(y.images, *y.counts)
    for part in parts_of(planner, step, y):
        every = (slice(first, None, apart) for first, apart in zip(part.part.first, part.part.step))
        own = rows[(slice(None), *every)].ravel()
        if isinstance(part.packed, PackedChannels):
            emit_depthwise_floats(planner, part, part.packed, x, own)
            continue
        sources = windows_of(part.part.conv, part.packed[0], x, part.counts, exact=True)
        for g, group in enumerate(part.packed):
            emit_floats(planner, step, group, planner.address(step.x) + g * inputs, sources, own, g)


def emit_conv_add(planner: Planner, step: ConvAdd) -> None:
    assert step.conv.y_qparams is not None
    factors, other, grid = add_factors(step.add), planner.values[step.b].layout, step.add.y_qparams
    b, outputs = planner.address(step.b), codes_shape(step.conv)[0] // step.conv.groups
    others, limits = other.offsets(other.counts), clamp(step.conv.y_qparams, step.conv.relu)
    for part in parts_of(planner, step.conv, planner.values[step.name].layout):
        assert not isinstance(part.packed, PackedChannels)
        for g, (product, targets, sources) in enumerate(conv_products(planner, part, part.packed, step.name)):
            planner.emit(gemm.PRODUCT_ADD, ProductAdd(
                product=product, y_offsets=planner.keep(targets), clamp=limits, b=b + g * outputs,
                b_offsets=planner.keep(sources.of(others)), is_first=step.first, ratio=factors.a,
                b_ratio=factors.b, start=factors.start,
                lowest=int(grid.zero_point) if step.add.relu else grid.qmin, highest=grid.qmax,
            ))  # fmt: skip


def emit_depthwise(planner: Planner, part: PartToEmit, packed: PackedChannels, name: str, limits: Clamp) -> None:
    """A convolution whose channels are each on their own."""
    step, counts, dense = part.part.conv, part.counts, part.part
    x, y = planner.values[step.x].layout, planner.values[name].layout
    window = windows(step)
    stride, start = window.stride, window.start
    weight, bias, factor = (planner.keep(array) for array in (packed.weight, packed.bias, packed.factor))
    _, height, width = counts  # of one plane
    planner.macs += ALONE * prod(codes_shape(step)[1:]) * y.images * height * width * y.channels

    def layer(rows: int, groups: int, x_offsets: np.ndarray, y_offsets: np.ndarray) -> depthwise.Depthwise:
        return depthwise.Depthwise(
            x=planner.address(step.x), y=planner.address(name), weight=weight, bias=bias, factor=factor, rows=rows,
            channels=channels, groups=groups, x_offsets=planner.keep(x_offsets), y_offsets=planner.keep(y_offsets),
        )  # fmt: skip

    # Positions that lie together in a block of channels, as wide as a line allows.
    side_by_side = y.pitch == x.pitch == y.channels and stride[2] == dense.step[2] == 1
    together = depthwise.WIDE // y.channels if depthwise.WIDE % y.channels == 0 and side_by_side else 1
    while width % together:
        together //= 2
    channels, width = together * y.channels, width // together
    if in_pairs(step) and together == 1 and width > 1:
        sources, targets = x.offsets((1, height, 1), stride, start), y.offsets((1, height, 1), dense.step, dense.first)
        planner.emit(depthwise.PAIRS, depthwise.DepthwisePairs(
            layer=layer(len(targets), -(-width // 2), sources, targets), clamp=limits, pitch=x.pitch, line=x.line,
            y_pitch=y.pitch * dense.step[2], last=width - 2,
        ))  # fmt: skip
        return
    taps = taps_of(step, x)
    sources = x.offsets((1, height, width), (1, stride[1], stride[2] * together), start)
    targets = y.offsets((1, height, width), (1, dense.step[1], dense.step[2] * together), dense.first)
    groups = len(taps) // 4
    planner.emit(depthwise.by_groups(groups), depthwise.DepthwiseTaps(
        layer=layer(len(targets), groups, sources, targets), clamp=limits, taps=planner.keep(taps),
    ))  # fmt: skip


def taps_of(step: Conv, x: Layout) -> np.ndarray:
    """Where the places of a kernel lie from the start of a window on, in whole groups of four, the last of which have
    weights of zero.
    """
    window = windows(step)
    _, height, width = window.kernel
    _, down, right = window.dilation
    columns = [min(j, width - 1) * right * x.pitch for j in range(width + in_pairs(step))]
    taps = [i * down * x.line + column for i in range(height) for column in columns]
    return offset_table(np.array(taps + [taps[-1]] * (-len(taps) % 4)))


def emit_depthwise_floats(
    planner: Planner, part: PartToEmit, packed: PackedChannels, x: Layout, rows: np.ndarray
) -> None:
    """A depthwise convolution that gives floats, to ``rows`` of the output."""
    step, window = part.part.conv, windows(part.part.conv)
    assert packed.float_bias is not None
    weight, bias, factor = (planner.keep(array) for array in (packed.weight, packed.bias, packed.factor))
    taps, channels = taps_of(step, x), codes_shape(step)[0]
    planner.macs += ALONE * prod(codes_shape(step)[1:]) * len(rows) * channels
    layer = depthwise.Depthwise(
        x=planner.address(step.x), y=0, weight=weight, bias=bias, factor=factor, rows=len(rows), channels=channels,
        groups=len(taps) // 4, x_offsets=planner.keep(x.offsets(part.counts, window.stride, window.start)),
        y_offsets=planner.keep(float_offsets(rows, channels)),
    )  # fmt: skip
    planner.emit(float_output.DEPTHWISE, float_output.DepthwiseFloats(
        layer=layer, float_bias=planner.keep(packed.float_bias), taps=planner.keep(taps), relu=step.relu,
        slot=planner.slot(step.name),
    ))  # fmt: skip
