"""Kernels between floats [images, channels, height, width] and positions of codes, each with all its channels."""

from llvmlite import ir

from .emitter import BYTES, F32, I8, I32, I64, LANES, Emitter, Value, function
from .frame import slot_address
from .jit import Kernel
from .quantize import run_quantize
from .records import Address, Grid, Instruction, Integer, Nested, Record, Slot


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
    space = emit.add(width, I64(64))
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
                interleave(emit, lines, space, goal, width, channels, pitch)
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

    emit.each(emit.ashr(emit.add(width, I64(LANES - 1)), I64(4)), block)


def interleave(
    emit: Emitter, lines: Value, space: Value, goal: Value, width: Value, channels: Value, pitch: Value
) -> None:
    """Any number of lines, byte by byte."""

    def position(w: Value) -> None:
        target, start = emit.add(goal, emit.mul(w, pitch)), emit.add(lines, w)

        def channel(c: Value) -> None:
            emit.write(emit.read(emit.add(start, emit.mul(c, space)), I8), emit.add(target, c))

        emit.each(channels, channel)

    emit.each(width, position)


def write_dequantize(emit: Emitter, op: Value, frame: Value) -> None:
    """Codes to floats."""
    source = emit.field(op, DequantizePlanes.source)
    target = slot_address(emit, frame, emit.field(op, DequantizePlanes.target))
    planes = emit.place(op, DequantizePlanes.planes)
    images, height, width, channels = emit.fields(planes, Planes.images, Planes.height, Planes.width, Planes.channels)
    size, line, pitch = emit.fields(planes, Planes.image, Planes.line, Planes.pitch)
    begin, image_step, channel_step = emit.fields(planes, Planes.begin, Planes.image_step, Planes.channel_step)
    scale, point = emit.fields(emit.place(op, DequantizePlanes.grid), Grid.scale, Grid.zero)
    zero = emit.trunc(point, I32)

    def image(n: Value) -> None:
        def plane(c: Value) -> None:
            def row(h: Value) -> None:
                start = emit.add(emit.add(source, c), emit.add(emit.mul(n, size), emit.mul(h, line)))
                before = emit.add(begin, emit.mul(n, image_step))
                first = emit.add(before, emit.add(emit.mul(c, channel_step), emit.mul(h, width)))

                def position(w: Value) -> None:
                    code = emit.zext(emit.read(emit.add(start, emit.mul(w, pitch)), I8), I32)
                    value = emit.fmul(emit.sitofp(emit.sub(code, zero), F32), scale)
                    emit.write(value, emit.add(target, emit.shl(emit.add(first, w), I64(2))))

                emit.each(width, position)

            emit.each(height, row)

        emit.each(channels, plane)

    emit.each(images, image)


QUANTIZE = Kernel("quantize_planes", QuantizePlanes, write_quantize)
DEQUANTIZE = Kernel("dequantize_planes", DequantizePlanes, write_dequantize)
