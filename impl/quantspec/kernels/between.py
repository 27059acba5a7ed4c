"""The kernel that gives codes between four neighbours."""

from .emitter import BYTES, F32, FLOATS, I64, INTS, LANES, Emitter, Value
from .jit import Kernel
from .records import Address, Instruction, Integer


class Bilinear(Instruction):
    """``images`` of ``height`` by ``width`` positions to be made, each of ``channels``.

    ``x``, ``y``: the first position of the first image; ``x_image`` and so on: bytes from one to the next. ``row_ends``
    and ``column_ends``: int32 [positions, 2], where the neighbours lie from an image's first row or column;
    ``row_shares`` and ``column_shares``: float32, how far each output is from the first of the two towards the second.
    """

    x: Address
    y: Address
    images: Integer
    height: Integer
    width: Integer
    channels: Integer
    x_image: Integer
    y_image: Integer
    y_line: Integer
    y_pitch: Integer
    row_ends: Address
    row_shares: Address
    column_ends: Address
    column_shares: Address
    zero: Integer


def write_bilinear(emit: Emitter, op: Value, frame: Value) -> None:
    """Codes between neighbours. Shares are multiples of 2^-8, so that each product and sum is exact in float32."""
    x, y, images, height, width, channels = emit.fields(
        op, Bilinear.x, Bilinear.y, Bilinear.images, Bilinear.height, Bilinear.width, Bilinear.channels
    )
    x_image, y_image, y_line, y_pitch = emit.fields(
        op, Bilinear.x_image, Bilinear.y_image, Bilinear.y_line, Bilinear.y_pitch
    )
    row_ends, row_shares, column_ends, column_shares = emit.fields(
        op, Bilinear.row_ends, Bilinear.row_shares, Bilinear.column_ends, Bilinear.column_shares
    )
    (zero,) = emit.splat_fields(op, Bilinear.zero)
    blocks = emit.sdiv(emit.add(channels, I64(LANES - 1)), I64(LANES))

    def ends(table: Value, i: Value) -> list[Value]:
        first = emit.shl(i, I64(1))
        return [emit.int_at(table, emit.add(first, I64(n))) for n in (0, 1)]

    def shares(table: Value, i: Value) -> list[Value]:
        share = emit.read(emit.add(table, emit.shl(i, I64(2))), F32)
        return [emit.fsub(F32(1.0), share), share]

    def image(n: Value) -> None:
        source, target = emit.add(x, emit.mul(n, x_image)), emit.add(y, emit.mul(n, y_image))

        def row(h: Value) -> None:
            lines = [emit.add(source, end) for end in ends(row_ends, h)]
            line_shares = shares(row_shares, h)
            goal = emit.add(target, emit.mul(h, y_line))

            def column(w: Value) -> None:
                offsets, own = ends(column_ends, w), shares(column_shares, w)
                places = [emit.add(line, offset) for line in lines for offset in offsets]
                weights = [emit.splat(emit.fmul(a, b)) for a in line_shares for b in own]
                position = emit.add(goal, emit.mul(w, y_pitch))

                def block(b: Value) -> None:
                    at = emit.shl(b, I64(4))
                    total = emit.splat(0.0, FLOATS)
                    for place, weight in zip(places, weights):
                        steps = emit.sub(emit.zext(emit.read(emit.add(place, at), BYTES), INTS), zero)
                        total = emit.fadd(total, emit.fmul(emit.sitofp(steps, FLOATS), weight))
                    code = emit.trunc(emit.add(emit.rounded(total), zero), BYTES)
                    emit.write_some(code, emit.add(position, at), emit.mask(emit.sub(channels, at)))

                emit.each(blocks, block)

            emit.each(width, column)

        emit.each(height, row)

    emit.each(images, image)


BILINEAR = Kernel("bilinear", Bilinear, write_bilinear)
