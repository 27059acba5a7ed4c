"""Bags of rows of a table of codes (DYN-BAG), at the speed of memory: a row's codes are read once, and the bag's floats
written once."""

from collections.abc import Callable
from functools import partial

from . import cpu
from .embedding import LINE, OfTable, row_number
from .emitter import BYTES, F32, FLOATS, I64, INTS, LANES, Emitter, Value
from .frame import slot_addresses
from .jit import Kernel
from .records import Address, Integer

AHEAD = 64  # rows that are fetched before they are needed, as nobody else can guess them
SUM, WEIGHTED, MEAN, MAX = "sum", "weighted", "mean", "max"
MODES = (SUM, WEIGHTED, MEAN, MAX)


class Bags(OfTable):
    """``count`` bags of rows; ``total``: how many indices there are.

    ``starts``: int64, where each bag begins in the indices, and behind them where the last one ends. ``weights``: of
    each index, float32, read by ``WEIGHTED``. ``padding``: the index that is passed over, -1 where none is.
    """

    starts: Address = Address()
    weights: Address = Address()
    total: Integer = Integer()
    padding: Integer = Integer()


def write_bags(index_bytes: int, mode: str) -> Callable[[Emitter, Value, Value], Value]:
    """Writes the kernel from indices, the first slot, to floats, the second; 1 when an index is outside."""

    def write(emit: Emitter, op: Value, frame: Value) -> Value:
        indices, target = slot_addresses(emit, frame)
        codes, scales, scale_step, starts, weights, count, total, height, width, padding = emit.fields(
            op, Bags.codes, Bags.scales, Bags.scale_step, Bags.starts, Bags.weights, Bags.count, Bags.total,
            Bags.height, Bags.width, Bags.padding,
        )  # fmt: skip
        whole = emit.ashr(width, I64(4))
        left, pitch = emit.sub(width, emit.shl(whole, I64(4))), emit.shl(width, I64(2))
        mask, nothing = emit.mask(left), emit.splat(0, BYTES)
        empty = emit.splat(0.0 if mode != MAX else float("-inf"), FLOATS)

        def index(i: Value) -> Value:
            return row_number(emit, indices, i, index_bytes)

        def source(number: Value, column: Value) -> Value:
            return emit.add(emit.add(codes, emit.mul(number, width)), column)

        def columns(bag: Value, column: Value, blocks: int, masked: bool) -> Value:
            """Some vectors of columns of a bag; 1 when an index is outside."""
            begin, end = (emit.item(starts, emit.add(bag, I64(more))) for more in (0, 1))

            def row(i: Value, carried: list[Value]) -> list[Value]:
                i = emit.add(begin, i)
                *totals, kept, bad = carried
                following = index(emit.smaller(emit.add(i, I64(AHEAD)), emit.sub(total, I64(1))))
                # Any address will do, also that of an index which is outside.
                emit.prefetch(emit.add(scales, emit.mul(following, scale_step)))
                ahead = source(following, column)
                for line in range(0, LANES * blocks, LINE):
                    emit.prefetch(emit.add(ahead, I64(line)), near=True)
                emit.prefetch(emit.add(ahead, I64(LANES * blocks - 1)), near=True)
                number = index(i)
                outside = emit.icmp_unsigned(">=", number, height)
                number, counts = emit.select(outside, I64(0), number), emit.icmp_signed("!=", number, padding)
                factor = emit.read(emit.add(scales, emit.mul(number, scale_step)), F32)
                if mode == WEIGHTED:
                    factor = emit.fmul(factor, emit.read(emit.add(weights, emit.shl(i, I64(2))), F32))
                # A sum plus a code times 0 is that sum.
                factor = emit.splat(emit.select(counts, factor, F32(0)) if mode != MAX else factor)
                near, after = source(number, column), []
                for block, before in enumerate(totals):
                    at = emit.add(near, I64(LANES * block))
                    values = emit.read_some(at, BYTES, mask, nothing) if masked else emit.read(at, BYTES)
                    floats = emit.sitofp(emit.sext(values, INTS), FLOATS)
                    if mode == MAX:
                        after.append(emit.select(counts, emit.maximum(emit.fmul(floats, factor), before), before))
                    else:
                        after.append(emit.fma(floats, factor, before))
                return [*after, emit.add(kept, emit.zext(counts, I64)), emit.or_(bad, emit.zext(outside, I64))]

            carried = [*[empty] * blocks, I64(0), I64(0)]
            *totals, kept, bad = emit.loop(emit.sub(end, begin), carried, row)
            some = emit.icmp_signed(">", kept, I64(0))
            number = emit.splat(emit.sitofp(emit.select(some, kept, I64(1)), F32))
            far = emit.add(emit.add(target, emit.mul(bag, pitch)), emit.shl(column, I64(2)))
            for block, value in enumerate(totals):
                if mode == MEAN:
                    value = emit.fdiv(value, number)
                if mode == MAX:
                    value = emit.select(some, value, emit.splat(0.0, FLOATS))
                at = emit.add(far, I64(4 * LANES * block))
                emit.write_some(value, at, mask) if masked else emit.write(value, at)
            return bad

        def bag(number: Value) -> Value:
            # The most vectors whose totals stay in registers, then what is left by halves.
            blocks = 8 if cpu.target().dot_lanes == LANES else 4
            shift = blocks.bit_length() - 1
            groups = emit.ashr(whole, I64(shift))
            wide = I64(LANES * blocks)
            bad = emit.any_of(groups, lambda i: columns(number, emit.mul(i, wide), blocks, False))
            column = emit.mul(groups, wide)
            while (blocks := blocks // 2) > 0:
                there = emit.icmp_signed("!=", emit.and_(whole, I64(blocks)), I64(0))
                bad = emit.or_(bad, emit.if_any(there, partial(columns, number, column, blocks, False)))
                column = emit.add(column, emit.select(there, I64(LANES * blocks), I64(0)))
            rest = emit.icmp_signed(">", left, I64(0))
            return emit.or_(bad, emit.if_any(rest, lambda: columns(number, column, 1, True)))

        return emit.any_of(count, bag)

    return write


BAGS = {
    (size, mode): Kernel(f"bags_{mode}_{8 * size}", Bags, write_bags(size, mode)) for size in (4, 8) for mode in MODES
}
