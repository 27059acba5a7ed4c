"""Kernels between floats [images, channels, height, width] and positions of codes, each with all its channels."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from .emitter import BYTES, FLOATS, I8, I32, I64, INTS, LANES, Emitter, Value, function
from .frame import slot_address
from .jit import Kernel
from .quantize import run_dequantize, run_quantize
from .records import Address, Grid, Instruction, Integer, Nested, Record, Slot

BLOCK = ir.VectorType(I8, LANES * LANES)


class Planes(Record):
    """``images`` of ``channels`` planes of ``height`` by ``width``.

    Codes: bytes from one image, line and position to the next.

    Floats: how many lie before the first one, and how many from one image and from one channel to the next.
    """

    images: Integer
    height: Integer
    width: Integer
    channels: Integer
    image: Integer
    line: Integer
    pitch: Integer
    begin: Integer
    image_step: Integer
    channel_step: Integer


class QuantizePlanes(Instruction):
    """From an input of the program. ``lines``: room for a line of each channel's codes."""

    planes: Nested[Planes]
    grid: Nested[Grid]
    source: Slot
    target: Address
    lines: Address


class DequantizePlanes(Instruction):
    """To an output of the program."""

    planes: Nested[Planes]
    grid: Nested[Grid]
    source: Address
    target: Slot


def write_quantize(emit: Emitter, op: Value, frame: Value) -> Value:
    """Floats to codes, by way of a line of each channel's codes."""
    source = slot_address(emit, frame, emit.field(op, QuantizePlanes.source))
    target, lines = emit.fields(op, QuantizePlanes.target, QuantizePlanes.lines)
    planes = emit.place(op, QuantizePlanes.planes)
    images, height, width, channels = emit.fields(planes, Planes.images, Planes.height, Planes.width, Planes.channels)
    size, line, pitch = emit.fields(planes, Planes.image, Planes.line, Planes.pitch)
    begin, image_step, channel_step = emit.fields(planes, Planes.begin, Planes.image_step, Planes.channel_step)
    grid = emit.place(op, QuantizePlanes.grid)
    run = function(emit.module, "quantspec_quantize_run", 4, run_quantize)
    space, spare = emit.add(width, I64(64)), emit.stack(BLOCK)
    single = emit.icmp_signed("==", channels, I64(1))

    def image(n: Value, carried: list[Value]) -> list[Value]:
        def row(h: Value, carried: list[Value]) -> list[Value]:
            goal = emit.add(target, emit.add(emit.mul(n, size), emit.mul(h, line)))

            def plane(c: Value, carried: list[Value]) -> list[Value]:
                before = emit.add(begin, emit.mul(n, image_step))
                start = emit.add(before, emit.add(emit.mul(c, channel_step), emit.mul(h, width)))
                codes = emit.select(single, goal, emit.add(lines, emit.mul(c, space)))
                found = emit.call(run, [grid, emit.add(source, emit.shl(start, I64(2))), codes, width])
                return [emit.or_(carried[0], found)]

            nan = emit.loop(channels, carried, plane)
            with emit.if_then(emit.icmp_signed("==", pitch, I64(3))):
                interleave_three(emit, lines, space, goal, width)
            with emit.if_then(emit.and_(emit.icmp_signed("!=", pitch, I64(3)), emit.not_(single))):
                interleave(emit, spare, lines, space, goal, width, channels, pitch)
            return nan

        return emit.loop(height, carried, row)

    return emit.loop(images, [I64(0)], image)[0]


def interleave_three(emit: Emitter, lines: Value, space: Value, goal: Value, width: Value) -> None:
    """Interleaves three lines, sixteen positions at a time: up to 45 bytes behind the last one are written too."""
    wide = ir.VectorType(I32, 2 * LANES)
    both = ir.Constant(wide, list(range(2 * LANES)))
    order = [p + LANES * c for p in range(LANES) for c in range(3)]

    def block(i: Value) -> None:
        at = emit.shl(i, I64(4))
        starts = (emit.add(lines, emit.mul(space, I64(c))) for c in range(3))
        first, second, third = (emit.read(emit.add(start, at), BYTES) for start in starts)
        two, rest = emit.shuffle_vector(first, second, both), emit.shuffle_vector(third, third, both)
        three = emit.shuffle_vector(two, rest, ir.Constant(ir.VectorType(I32, 3 * LANES), order))
        emit.write(three, emit.add(goal, emit.mul(at, I64(3))))

    emit.each(emit.vectors_of(width), block)


def transposed(emit: Emitter, rows: Sequence[Value]) -> list[Value]:
    """Sixteen vectors of bytes, the first of them of all first bytes.

    Each of four rounds moves the first digit of a vector's number behind the last one of a byte's.
    """
    kind = ir.VectorType(I32, LANES)
    orders = [[lane for i in range(LANES // 2) for lane in (n + i, LANES + n + i)] for n in (0, LANES // 2)]
    for _ in range(LANES.bit_length() - 1):
        pairs = zip(rows[: LANES // 2], rows[LANES // 2 :])
        rows = [emit.shuffle_vector(*pair, ir.Constant(kind, order)) for pair in pairs for order in orders]
    return list(rows)


def in_blocks(
    emit: Emitter, spare: Value, counts: tuple[Value, Value], row: Callable[[Value, Value], Value],
    write: Callable[[Value, Value, Value, Value | None], None],
) -> None:  # fmt: skip
    """Transposes rows of bytes, sixteen of them by sixteen bytes at a time.

    ``spare``: a ``BLOCK`` of memory. ``counts``: of rows, and of bytes of each. ``row(r, at)``: where row ``r`` goes on
    from byte ``at``. ``write(column, at, vector, mask)``: what becomes of that byte of the rows from ``at`` on, all or
    some.
    """
    rows, columns = counts

    def from_column(j: Value) -> None:
        column = emit.shl(j, I64(4))
        left_columns = emit.sub(columns, column)

        def from_row(i: Value) -> None:
            first = emit.shl(i, I64(4))
            left = emit.sub(rows, first)
            numbers = [emit.smaller(emit.add(first, I64(n)), emit.sub(rows, I64(1))) for n in range(LANES)]
            vectors = transposed(emit, [emit.read(row(number, column), BYTES) for number in numbers])
            whole = emit.icmp_signed(">=", emit.smaller(left, left_columns), I64(LANES))
            with emit.if_else(whole) as (all_of_it, part):
                with all_of_it:
                    for n, vector in enumerate(vectors):
                        write(emit.add(column, I64(n)), first, vector, None)
                with part:
                    for n, vector in enumerate(vectors):
                        emit.write(vector, emit.add(spare, I64(LANES * n)))

                    def one(n: Value) -> None:
                        vector = emit.read(emit.add(spare, emit.shl(n, I64(4))), BYTES)
                        write(emit.add(column, n), first, vector, emit.mask(left))

                    emit.each(emit.smaller(left_columns, I64(LANES)), one)

        emit.each(emit.vectors_of(rows), from_row)

    emit.each(emit.vectors_of(columns), from_column)


def interleave(
    emit: Emitter, spare: Value, lines: Value, space: Value, goal: Value, width: Value, channels: Value, pitch: Value
) -> None:
    """Any number of lines."""

    def line(c: Value, w: Value) -> Value:
        return emit.add(emit.add(lines, emit.mul(c, space)), w)

    def write(w: Value, c: Value, codes: Value, mask: Value | None) -> None:
        emit.write_some(codes, emit.add(emit.add(goal, emit.mul(w, pitch)), c), mask)

    in_blocks(emit, spare, (channels, width), line, write)


def write_dequantize(emit: Emitter, op: Value, frame: Value) -> None:
    """Codes to floats."""
    source = emit.field(op, DequantizePlanes.source)
    target = slot_address(emit, frame, emit.field(op, DequantizePlanes.target))
    planes = emit.place(op, DequantizePlanes.planes)
    images, height, width, channels = emit.fields(planes, Planes.images, Planes.height, Planes.width, Planes.channels)
    size, line, pitch = emit.fields(planes, Planes.image, Planes.line, Planes.pitch)
    begin, image_step, channel_step = emit.fields(planes, Planes.begin, Planes.image_step, Planes.channel_step)
    # Lines without anything between them are one line.
    joined = emit.icmp_signed("==", line, emit.mul(width, pitch))
    width = emit.select(joined, emit.mul(width, height), width)
    height = emit.select(joined, I64(1), height)
    grid = emit.place(op, DequantizePlanes.grid)
    scale, zero = emit.splat_fields(grid, Grid.scale, Grid.zero)
    run, spare = function(emit.module, "quantspec_dequantize_run", 4, run_dequantize), emit.stack(BLOCK)

    def image(n: Value) -> None:
        before = emit.add(begin, emit.mul(n, image_step))

        def row(h: Value) -> None:
            start = emit.add(source, emit.add(emit.mul(n, size), emit.mul(h, line)))
            first = emit.add(before, emit.mul(h, width))

            def position(w: Value, c: Value) -> Value:
                return emit.add(emit.add(start, emit.mul(w, pitch)), c)

            def write(c: Value, w: Value, codes: Value, mask: Value | None) -> None:
                floats = emit.fmul(emit.sitofp(emit.sub(emit.zext(codes, INTS), zero), FLOATS), scale)
                place = emit.add(emit.add(first, emit.mul(c, channel_step)), w)
                emit.write_some(floats, emit.add(target, emit.shl(place, I64(2))), mask)

            with emit.if_else(emit.icmp_signed("==", channels, I64(1))) as (single, several):
                with single:
                    emit.call(run, [grid, start, emit.add(target, emit.shl(first, I64(2))), width])
                with several:
                    in_blocks(emit, spare, (width, channels), position, write)

        emit.each(height, row)

    emit.each(images, image)


QUANTIZE = Kernel("quantize_planes", QuantizePlanes, write_quantize)
DEQUANTIZE = Kernel("dequantize_planes", DequantizePlanes, write_dequantize)
