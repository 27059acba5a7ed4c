"""Dynamic linear layers: the range of the input, its grid, its codes, the product, and floats as output (chapter 6,
dialect ``onnx``).
"""

from collections.abc import Callable

import numpy as np

from . import gemm, grouped
from .emitter import F32, FLOATS, I32, I64, INTS, LANES, NO_LANES, Body, Emitter, Value, function
from .frame import slot_address, slot_or
from .gemm import accumulate, by_lanes, last_mask, put_floats
from .jit import Kernel
from .memory import row_pitch
from .packed import Packed
from .product import PANEL, Product, ProductToFloats
from .quantize import SAFE_SCALES, run_quantize
from .records import LINE, Address, Float, Grid, Instruction, Integer, Slot

FAR_BYTES = 2**18  # of outputs from which on they are not found near
GRID_BYTES = 8 * LINE  # of one grid among others: each on a cache line of its own
NORMAL, MOST, FINITE = 2.0**-126, 2.0**119, 3.4028234663852886e38


class RowsOfFloats(Instruction):
    """``count`` rows of ``width`` floats, from an input or output of the program where ``slot`` is not negative, to
    rows of codes ``target_pitch`` bytes apart."""

    slot: Slot
    source: Address
    target: Address
    count: Integer
    width: Integer
    source_pitch: Integer
    target_pitch: Integer


class DynamicQuantize(RowsOfFloats):
    """Rows of floats to codes on the grids of their ranges.

    ``grids``: where their grids go, ``grid_stride`` bytes apart, one for each row where ``per_row``. ``qmax``: the
    last code; ``smallest`` and ``largest``: of the scales that the grid's is multiplied with.
    """

    grids: Address
    grid_stride: Integer
    per_row: Integer
    qmax: Float
    smallest: Float
    largest: Float


class DynamicProduct(ProductToFloats):
    """A product whose rows have grids of their own, ``grid_stride`` bytes apart from ``row_grids`` on.

    Rows of outputs are ``y_pitch`` bytes apart; they begin at ``y``, or, where ``slot`` is not negative, ``y_ahead``
    bytes behind the start of that output. Inputs are codes of slot ``x_slot`` where that is not 0.
    """

    row_grids: Address
    grid_stride: Integer
    y_pitch: Integer
    y_ahead: Integer = Integer()
    x_slot: Integer = Integer()


def run_range(emit: Emitter, op: Value, source: Value, count: Value, grid: Value) -> Value:
    """The grid of ``count`` floats (DIA-QPARAMS, ``float32-bare``) to the record at ``grid``; 1 for what has none."""
    infinite = float("inf")
    starts = [emit.splat(infinite, FLOATS), emit.splat(-infinite, FLOATS)] * 2

    def sixteen(at: Value, mask: Value | None, low: Value, high: Value) -> tuple[Value, Value, Value]:
        address = emit.add(source, emit.shl(at, I64(2)))
        zeros = emit.splat(0.0, FLOATS)
        x = emit.read_some(address, FLOATS, mask, zeros)
        # A NaN among the operands is found by the sum below.
        return x, emit.minimum(x, low), emit.maximum(x, high)

    def many(i: Value, carried: list[Value]) -> list[Value]:
        at = emit.shl(i, I64(5))
        x, low, high = sixteen(at, None, *carried[:2])
        y, low2, high2 = sixteen(emit.add(at, I64(LANES)), None, *carried[2:4])
        return [low, high, low2, high2, emit.or_(carried[4], emit.fcmp_unordered("uno", x, y))]

    whole = emit.ashr(count, I64(5))
    low, high, low2, high2, nan = emit.loop(whole, [*starts, NO_LANES], many)
    low, high = emit.minimum(low, low2), emit.maximum(high, high2)

    def few(i: Value, carried: list[Value]) -> list[Value]:
        at = emit.add(emit.shl(whole, I64(5)), emit.shl(i, I64(4)))
        x, low, high = sixteen(at, emit.mask(emit.sub(count, at)), *carried[:2])
        return [low, high, emit.or_(carried[2], emit.fcmp_unordered("uno", x, x))]

    left = emit.vectors_of(emit.sub(count, emit.shl(whole, I64(5))))
    low, high, nan = emit.loop(left, [low, high, nan], few)
    low, high = (reduced(emit, v, pick) for v, pick in ((low, emit.minimum), (high, emit.maximum)))
    # The range holds zero, as lanes that are left over do.
    low, high = emit.minimum(low, F32(0)), emit.maximum(high, F32(0))
    qmax = emit.field(op, DynamicQuantize.qmax)
    scale = emit.fdiv(emit.fsub(high, low), qmax)
    scale = emit.select(emit.fcmp_ordered("==", scale, F32(0)), F32(1), scale)
    zero = emit.rounded_one(emit.fneg(emit.fdiv(low, scale)))
    zero = emit.select(emit.icmp_signed("<", zero, I32(0)), I32(0), zero)
    most = emit.fptosi(qmax, I32)
    zero = emit.select(emit.icmp_signed(">", zero, most), most, zero)
    inverse = emit.fdiv(F32(1), scale)
    least, most_safe = (F32(limit) for limit in SAFE_SCALES)
    safe = emit.and_(emit.fcmp_ordered(">=", scale, least), emit.fcmp_ordered("<=", scale, most_safe))
    steps = emit.sitofp(zero, F32)
    emit.put_field(grid, Grid.scale, scale)
    emit.put_field(grid, Grid.low, emit.fmul(scale, emit.fneg(steps)))
    emit.put_field(grid, Grid.high, emit.fmul(scale, emit.fsub(qmax, steps)))
    bits = emit.zext(emit.bitcast(inverse, I32), I64)
    emit.put_field(grid, Grid.inverse, emit.select(safe, bits, I64(0)))
    emit.put_field(grid, Grid.zero, emit.sext(zero, I64))
    # Finite values, a scale that is a grid's, and units of the accumulator that are normal numbers.
    weights = emit.fields(op, DynamicQuantize.smallest, DynamicQuantize.largest)
    smallest, largest = (emit.fmul(scale, weight) for weight in weights)
    good = emit.not_(emit.any(nan))
    limits = (
        (">=", low, -FINITE), ("<=", high, FINITE), (">=", scale, NORMAL), ("<=", scale, MOST),
        (">=", smallest, NORMAL), ("<=", largest, FINITE),
    )  # fmt: skip
    for relation, value, limit in limits:
        good = emit.and_(good, emit.fcmp_ordered(relation, value, F32(limit)))
    return emit.zext(emit.not_(good), I64)


def reduced(emit: Emitter, vector: Value, pick: Callable[[Value, Value], Value]) -> Value:
    """One value of sixteen."""
    values = [emit.extract_element(vector, I32(i)) for i in range(LANES)]
    while len(values) > 1:
        values = [pick(a, b) for a, b in zip(values[::2], values[1::2])]
    return values[0]


def write_quantize(emit: Emitter, op: Value, frame: Value) -> Value:
    """Codes of rows on the grid of their range, and those grids."""
    slot, inside, target, count, width, near, far, grids, stride = emit.fields(
        op, DynamicQuantize.slot, DynamicQuantize.source, DynamicQuantize.target, DynamicQuantize.count,
        DynamicQuantize.width,
        DynamicQuantize.source_pitch, DynamicQuantize.target_pitch, DynamicQuantize.grids, DynamicQuantize.grid_stride,
    )  # fmt: skip
    source = slot_or(emit, frame, slot, inside)
    per_row = emit.flag(op, DynamicQuantize.per_row)
    find = function(emit.module, "quantspec_range", 4, run_range)
    quantize = function(emit.module, "quantspec_quantize_run", 4, run_quantize)
    # Rows lie after one another, so that the whole is one long row.
    length = emit.select(per_row, width, emit.mul(width, count))

    def one_range(i: Value) -> Value:
        start, grid = emit.add(source, emit.mul(i, near)), emit.add(grids, emit.mul(i, stride))
        return emit.call(find, [op, start, length, grid])

    def row(i: Value) -> None:
        start, grid = emit.add(source, emit.mul(i, near)), emit.add(grids, emit.mul(i, stride))
        emit.call(quantize, [grid, start, emit.add(target, emit.mul(i, far)), width])

    bad = emit.any_of(emit.select(per_row, count, I64(1)), one_range)
    emit.each(count, row)
    return bad


def float_tile(rows: int, blocks: int, half: bool) -> Body:
    """Writes the function that computes a tile of floats: accumulator times unit, plus bias, each rounded
    (DIA-DYNAMIC, ``multiply-add``).
    """

    def write(emit: Emitter, op: Value, row: Value, panel: Value, given: Value | None = None) -> None:
        product = emit.place(op, DynamicProduct.product)
        pitch, y = emit.field(op, DynamicProduct.y_pitch), emit.field(product, Product.y)
        target = emit.add(y, emit.mul(panel, I64(4 * LANES * PANEL)))
        numbers = [emit.add(row, I64(i)) for i in range(rows)]

        def places() -> list[Value]:
            return [emit.add(target, emit.mul(number, pitch)) for number in numbers]

        if given is None:
            many = emit.icmp_signed(">=", emit.mul(emit.field(product, Product.rows), pitch), I64(FAR_BYTES))
            with emit.if_then(emit.and_(many, emit.not_(emit.flag(op, DynamicProduct.past)))):
                gemm.fetch(emit, places(), blocks)
        grids, stride = emit.fields(op, DynamicProduct.row_grids, DynamicProduct.grid_stride)
        sums = by_lanes(emit, product, Product.sums, panel, blocks, INTS)
        factors = by_lanes(emit, product, Product.factor, panel, blocks, FLOATS)
        # Of one grid for all rows the zero point can be taken off before.
        one_grid = emit.icmp_signed("==", stride, I64(0))
        scale, zero = emit.splat_fields(grids, Grid.scale, Grid.zero)
        first = emit.select(one_grid, zero, emit.splat(0, INTS))
        start = [emit.neg(emit.mul(first, total)) for total in sums] * rows
        totals = accumulate(emit, product, row, panel, rows, blocks, start, half, given)
        biases = by_lanes(emit, product, Product.bias, panel, blocks, FLOATS)
        mask = last_mask(emit, product, panel, blocks)
        least = emit.splat(emit.select(emit.flag(op, DynamicProduct.relu), F32(0), F32(float("-inf"))))

        def made(centred: Value, unit: Value, bias: Value) -> Value:
            floats = emit.fadd(emit.fmul(emit.sitofp(centred, FLOATS), unit), bias)
            return emit.select(emit.fcmp_ordered("<", floats, least), least, floats)

        def on_one_grid(i: int, j: int) -> Value:
            return made(totals[i * blocks + j], units[j], biases[j])

        def on_its_own(i: int, j: int) -> Value:
            grid = emit.add(grids, emit.mul(numbers[i], stride))
            scale, zero = emit.splat_fields(grid, Grid.scale, Grid.zero)
            centred = emit.sub(totals[i * blocks + j], emit.mul(zero, sums[j]))
            return made(centred, emit.fmul(scale, factors[j]), biases[j])

        with emit.if_else(one_grid) as (same, various):
            with same:
                units = [emit.fmul(scale, factor) for factor in factors]
                put_floats(emit, op, places(), on_one_grid, blocks, mask)
            with various:
                put_floats(emit, op, places(), on_its_own, blocks, mask)

    return write


run_product = gemm.product("dynamic", float_tile)


def write_product(emit: Emitter, op: Value, frame: Value) -> None:
    """A product of codes to floats. ``y`` and ``x`` are set from their slots."""
    product = emit.place(op, DynamicProduct.product)
    slot, ahead, y = *emit.fields(op, DynamicProduct.slot, DynamicProduct.y_ahead), emit.field(product, Product.y)
    address = emit.add(slot_or(emit, frame, slot, y), ahead)
    inside = emit.icmp_signed("<", slot, I64(0))
    emit.put_field(product, Product.y, emit.select(inside, y, address))
    given, x = emit.field(op, DynamicProduct.x_slot), emit.field(product, Product.x)
    fixed = emit.icmp_signed("==", given, I64(0))
    emit.put_field(product, Product.x, emit.select(fixed, x, slot_address(emit, frame, given)))
    run_product(emit, op, frame)


QUANTIZE = Kernel("dynamic_quantize", DynamicQuantize, write_quantize)
PRODUCT = Kernel("dynamic_product", DynamicProduct, write_product)


def layer(
    packed: Packed, rows: int, inputs: int, keep: Callable[[np.ndarray], int], room: Callable[[int], int], *, qmax: int,
    per_row: bool, relu: bool, soon: bool,
) -> tuple[DynamicQuantize, DynamicProduct]:
    """Both instructions of a layer, but for where its input and output are.

    ``keep`` gives the address of an array that lives as long, ``room`` that of so many bytes for codes and grids;
    ``soon``: outputs are read by what comes next.
    """
    pitch, scale = row_pitch(inputs), packed.factor[: packed.outputs]
    stride, nbytes = GRID_BYTES if per_row else 0, grouped.sixteens_bytes(rows, pitch)
    quantized = room(nbytes + GRID_BYTES * (rows if per_row else 1))
    grids = quantized + nbytes
    quantize = DynamicQuantize(
        slot=-1, source=0, target=quantized, count=rows, width=inputs, source_pitch=4 * inputs, target_pitch=pitch,
        grids=grids,
        grid_stride=stride, per_row=per_row, qmax=qmax, smallest=scale.min(), largest=scale.max(),
    )  # fmt: skip
    product = Product(
        x=quantized, y=0, weight=keep(packed.weight), bias=keep(packed.bias), factor=keep(packed.factor),
        sums=keep(packed.sums), outputs=packed.outputs, blocks=packed.blocks, steps=packed.run_steps,
        chunk=gemm.chunk_rows(rows, inputs), **grouped.rows_apart(keep, rows, pitch, packed.run_steps, packed.blocks),
    )  # fmt: skip
    return quantize, DynamicProduct(
        product=product, row_grids=grids, grid_stride=stride, relu=relu,
        y_pitch=4 * packed.outputs, slot=-1,
        past=gemm.goes_past(4 * rows * packed.outputs, packed.outputs, soon=soon),
    )  # fmt: skip
