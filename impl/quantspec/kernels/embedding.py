"""Rows of a table of codes, dequantized (DYN-EMBEDDING), at the speed of memory."""

from collections.abc import Callable

from .emitter import BYTES, F32, FLOATS, I32, I64, INTS, Emitter, Value
from .frame import slot_addresses
from .jit import Kernel
from .records import Address, Instruction, Integer

AHEAD = 8  # rows that are fetched before they are needed, as nobody else can guess them
LINE = 64  # bytes of a cache line


class OfTable(Instruction):
    """What reads a table of ``height`` by ``width`` codes, ``count`` times; ``scale_step``: bytes from the scale of a
    row to that of the next, 0 where all have the same."""

    codes: Address
    scales: Address
    scale_step: Integer
    height: Integer
    width: Integer
    count: Integer = Integer()


class Rows(OfTable):
    """``count`` indices of rows. ``past``: whether floats go past the caches, where they lie in whole lines."""

    past: Integer = Integer()


def row_number(emit: Emitter, indices: Value, i: Value, index_bytes: int) -> Value:
    """One of the indices, as int64."""
    at = emit.add(indices, emit.mul(i, I64(index_bytes)))
    return emit.read(at, I64) if index_bytes == 8 else emit.sext(emit.read(at, I32), I64)


def write_rows(index_bytes: int) -> Callable[[Emitter, Value, Value], Value]:
    """Writes the kernel from indices, the first slot, to floats, the second; 1 when an index is outside."""

    def write(emit: Emitter, op: Value, frame: Value) -> Value:
        indices, target = slot_addresses(emit, frame)
        codes, scales, scale_step, count, height, width = emit.fields(
            op, Rows.codes, Rows.scales, Rows.scale_step, Rows.count, Rows.height, Rows.width
        )
        whole, in_lines = emit.ashr(width, I64(4)), emit.icmp_signed("==", emit.and_(target, I64(LINE - 1)), I64(0))
        past = emit.and_(emit.flag(op, Rows.past), in_lines)
        left = emit.sub(width, emit.shl(whole, I64(4)))
        mask, nothing = emit.mask(left), emit.splat(0, BYTES)

        def index(i: Value) -> Value:
            return row_number(emit, indices, i, index_bytes)

        def source(number: Value) -> Value:
            return emit.add(codes, emit.mul(number, width))

        def row(i: Value) -> Value:
            following = index(emit.smaller(emit.add(i, I64(AHEAD)), emit.sub(count, I64(1))))
            # Any address will do, also that of an index which is outside.
            emit.prefetch(emit.add(scales, emit.mul(following, scale_step)))
            ahead = source(following)
            emit.prefetch(ahead)
            emit.prefetch(emit.add(ahead, I64(LINE)))
            number = index(i)
            outside = emit.icmp_unsigned(">=", number, height)
            number = emit.select(outside, I64(0), number)
            near, far = source(number), emit.add(target, emit.mul(i, emit.shl(width, I64(2))))
            scale = emit.splat(emit.read(emit.add(scales, emit.mul(number, scale_step)), F32))

            def floats(values: Value) -> Value:
                return emit.fmul(emit.sitofp(emit.sext(values, INTS), FLOATS), scale)

            def vectors(write: Callable[[Value, Value], object]) -> None:
                def vector(n: Value) -> None:
                    at = emit.shl(n, I64(4))
                    write(floats(emit.read(emit.add(near, at), BYTES)), emit.add(far, emit.shl(at, I64(2))))

                emit.each(whole, vector)

            with emit.if_else(past) as (beside, through):
                with beside:
                    vectors(emit.write_past)
                with through:
                    vectors(emit.write)
            with emit.if_then(emit.icmp_signed(">", left, I64(0))):
                at = emit.shl(whole, I64(4))
                values = emit.read_some(emit.add(near, at), BYTES, mask, nothing)
                emit.write_some(floats(values), emit.add(far, emit.shl(at, I64(2))), mask)
            return emit.zext(outside, I64)

        return emit.any_of(count, row)

    return write


ROWS = {size: Kernel(f"embedding_{8 * size}", Rows, write_rows(size)) for size in (4, 8)}
