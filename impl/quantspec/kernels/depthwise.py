"""Convolutions in which every channel is on its own.

Sixty-four channels at a time: the bytes of four places of the kernel are interleaved, so that the dot product of four
bytes adds four products of one channel. That leaves channels in another order, which weights, biases and factors
follow (``ORDER``) and which is undone in the end.

A CPU that adds products in pairs only multiplies the magnitudes of weights by codes with bits turned (``magnitudes``).
"""

from collections.abc import Callable
from typing import Protocol

from llvmlite import ir

from . import cpu, magnitudes
from .emitter import FLOATS, I8, I32, I64, INTS, LANES, Emitter, Value
from .jit import Kernel
from .records import Address, Clamp, Entry, Instruction, Integer, Nested, Record


class Depthwise(Record):
    """What all have.

    ``rows``: of outputs, whose first inputs and outputs the int32 offsets tell; ``groups``: of four places of the
    kernel.
    """

    x: Address
    y: Address
    weight: Address
    bias: Address
    factor: Address
    rows: Integer
    channels: Integer
    groups: Integer
    x_offsets: Address
    y_offsets: Address


class DepthwiseInstruction(Instruction):
    """A layer, and by its kind what its outputs are."""

    layer: Nested[Depthwise]


class DepthwiseCodes(DepthwiseInstruction):
    """Outputs are codes."""

    clamp: Nested[Clamp]


class DepthwiseTaps(DepthwiseCodes):
    """``taps``: where each place of the kernel lies from the start of a window on, int32."""

    taps: Address


class DepthwisePairs(DepthwiseCodes):
    """``rows`` lines of ``groups`` pairs of outputs.

    Bytes between positions of the input, its lines, positions of the output; ``last``: where a last pair begins.
    """

    pitch: Integer
    line: Integer
    y_pitch: Integer
    last: Integer


WIDE = 64
# The channel of a block of 64 that lane l of vector j holds.
ORDER = [[16 * (lane // 4) + 4 * j + lane % 4 for lane in range(LANES)] for j in range(4)]
IN_REGISTERS = 3  # groups of four places whose weights stay in registers


def interleaved(emit: Emitter, a: Value, b: Value, width: int, high: bool) -> Value:
    """Units of ``width`` bytes of a and b in turn, of the low or high half of every 16 bytes."""
    units, each = a.type.count * a.type.element.width // 8 // width, 16 // width
    kind = ir.VectorType(ir.IntType(8 * width), units)
    a, b = emit.bitcast(a, kind), emit.bitcast(b, kind)
    start = each // 2 if high else 0
    firsts = [lane + start + i for lane in range(0, units, each) for i in range(each // 2)]
    order = [first + side * units for first in firsts for side in (0, 1)]
    return emit.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, units), order))


def transposed(emit: Emitter, a: Value, b: Value, c: Value, d: Value) -> list[Value]:
    """Four vectors of bytes as four of groups (a, b, c, d), channels as in ``ORDER``."""
    result, kind = [], ir.VectorType(I32, a.type.count // 4)
    for high in (False, True):
        ab, cd = interleaved(emit, a, b, 1, high), interleaved(emit, c, d, 1, high)
        result += [emit.bitcast(interleaved(emit, ab, cd, 2, upper), kind) for upper in (False, True)]
    return result


def restored(emit: Emitter, vectors: list[Value]) -> Value:
    """Four int32 vectors of codes, channels as in ``ORDER``, as 64 bytes in order."""
    if cpu.target().packed_lanes:
        a, b, c, d = vectors
        return emit.packed(emit.packed(a, b), emit.packed(c, d))
    halves = [emit.joined(a, b) for a, b in zip(vectors[::2], vectors[1::2])]
    place = {channel: LANES * j + lane for j, row in enumerate(ORDER) for lane, channel in enumerate(row)}
    order = ir.Constant(ir.VectorType(I32, WIDE), [place[channel] for channel in range(WIDE)])
    return emit.trunc(emit.shuffle_vector(*halves, order), ir.VectorType(I8, WIDE))


# Four of each channel of a vector: as they are; or their magnitudes, and which codes' bits are turned.
Weights = tuple[Value, ...]


def sides() -> int:
    """How many vectors of one register each a vector is worked on as."""
    return 2 if cpu.target().has_pairs else 1


def weights_at(emit: Emitter, address: Value) -> Weights:
    """A vector of them as products take them."""
    if not cpu.target().has_pairs:
        return (emit.read(address, INTS),)
    return magnitudes.operands(emit, emit.read(address, magnitudes.CODES))


def products(emit: Emitter, total: Value, codes: Value, weights: Weights) -> Value:
    """``total`` with the sums of products by four codes of each channel; in pairs, what codes of 0 give is lacking."""
    if len(weights) == 1:
        return emit.dot(total, codes, *weights)
    magnitude, turned = weights
    codes = emit.xor(emit.bitcast(codes, magnitudes.CODES), turned)
    return emit.add(total, magnitudes.products(emit, magnitude, codes))


def with_lacking(emit: Emitter, total: Value, weights: Weights) -> Value:
    """``total`` with what products by such weights will lack."""
    if len(weights) == 1:
        return total
    return emit.sub(total, magnitudes.products(emit, *weights))


def first_bytes(emit: Emitter, count: Value) -> Value:
    """The mask of the first ``count`` of 64 bytes."""
    kind = ir.VectorType(I8, WIDE)
    limit = emit.insert_element(ir.Constant(kind, ir.Undefined), emit.trunc(emit.smaller(count, I64(WIDE)), I8), I32(0))
    limit = emit.shuffle_vector(limit, limit, ir.Constant(ir.VectorType(I32, WIDE), [0] * WIDE))
    return emit.icmp_unsigned("<", ir.Constant(kind, list(range(WIDE))), limit)


More = Callable[[list[Value], list[Value], list[Weights]], list[Value]]


class Epilogue(Protocol):
    """What a kernel needs to make outputs of the accumulators of a block of 64 channels."""

    def block(self, index: Value, left: Value) -> list[Value]:
        """Begins the block; the accumulators' start. ``left``: channels from its first on."""

    def put(self, totals: list[Value], address: Value) -> None:
        """The outputs of the accumulators to memory."""


def by_lanes(emit: Emitter, table: Value, index: Value, kind: ir.VectorType) -> list[Value]:
    """The entries of four bytes of a block of 64 channels."""
    first = emit.add(table, emit.mul(index, I64(4 * WIDE)))
    return [emit.read(emit.add(first, I64(64 * j)), kind) for j in range(4)]


class ToCodes:
    """Outputs are codes."""

    def __init__(self, emit: Emitter, op: Value):
        self.emit = emit
        self.bias, self.factor = emit.fields(emit.place(op, DepthwiseCodes.layer), Depthwise.bias, Depthwise.factor)
        clamp = emit.place(op, DepthwiseCodes.clamp)
        self.lowest, self.highest, self.zero = emit.splat_fields(clamp, Clamp.lowest, Clamp.highest, Clamp.zero)

    def block(self, index: Value, left: Value) -> list[Value]:
        biases = by_lanes(self.emit, self.bias, index, INTS)
        self.factors = by_lanes(self.emit, self.factor, index, FLOATS)
        self.mask = first_bytes(self.emit, left)
        return biases

    def put(self, totals: list[Value], address: Value) -> None:
        emit = self.emit
        steps = [emit.fmul(emit.sitofp(total, FLOATS), f) for total, f in zip(totals, self.factors)]
        clamped = [emit.minimum(emit.maximum(s, self.lowest), self.highest) for s in steps]
        codes = [emit.add(emit.rounded(s), self.zero) for s in clamped]
        write_bytes(emit, restored(emit, codes), address, self.mask)


def write_bytes(emit: Emitter, value: Value, address: Value, mask: Value) -> None:
    """Those of 64 bytes that are in the mask to memory."""

    def some() -> None:
        pointer = emit.at(address, ir.VectorType(I8, WIDE), mask=mask, writes=True)
        emit.native("llvm.masked.store.v64i8.p0", ir.VoidType(), value, pointer, I32(1), mask)

    emit.whole_or(mask, some, lambda: emit.write(value, address))


def depthwise(
    groups: int | None, taps: Entry, epilogue: Callable[[Emitter, Value], Epilogue] = ToCodes, size: int = 1
) -> Callable[[Emitter, Value, Value], None]:
    """Writes the kernel for ``groups`` groups of four places, or any number.

    ``epilogue``: what makes outputs of ``size`` bytes of accumulators.
    """

    def write(emit: Emitter, op: Value, frame: Value) -> None:
        layer = emit.place(op, DepthwiseInstruction.layer)
        x, y, w, rows, channels = emit.fields(
            layer, Depthwise.x, Depthwise.y, Depthwise.weight, Depthwise.rows, Depthwise.channels
        )
        offsets = emit.field(op, taps)
        sources, targets = emit.fields(layer, Depthwise.x_offsets, Depthwise.y_offsets)
        end = epilogue(emit, op)
        count = I64(groups) if groups else emit.field(layer, Depthwise.groups)
        nbytes = WIDE // sides()
        kind = ir.VectorType(I8, nbytes)

        def places_of(g: Value) -> list[Value]:
            first = emit.shl(g, I64(2))
            return [emit.int_at(offsets, emit.add(first, I64(i))) for i in range(4)]

        fixed = [places_of(I64(g)) for g in range(groups or 0)]

        def block(b: Value) -> None:
            channel = emit.mul(b, I64(WIDE))
            weights = emit.add(w, emit.mul(b, emit.mul(count, I64(4 * WIDE))))

            def of_group(g: Value, side: int) -> list[Weights]:
                here = emit.add(weights, emit.add(emit.mul(g, I64(4 * WIDE)), I64(nbytes * side)))
                return [weights_at(emit, emit.add(here, I64(WIDE * j))) for j in range(4)]

            known = [[of_group(I64(g), side) for g in range(groups or 0)] for side in range(sides())]

            def over_groups(side: int, totals: list[Value], more: More) -> list[Value]:
                if not groups:
                    return emit.loop(count, totals, lambda g, carried: more(carried, places_of(g), of_group(g, side)))
                for places, parts in zip(fixed, known[side]):
                    totals = more(totals, places, parts)
                return totals

            def lacking(totals: list[Value], places: list[Value], parts: list[Weights]) -> list[Value]:
                return [with_lacking(emit, *pair) for pair in zip(totals, parts)]

            whole = end.block(b, emit.sub(channels, channel))
            begins = zip(*(emit.parts(v) for v in whole)) if sides() == 2 else [whole]
            start = [over_groups(side, list(totals), lacking) for side, totals in enumerate(begins)]

            def row(r: Value) -> None:
                source = emit.add(emit.add(x, channel), emit.int_at(sources, r))

                def of_side(side: int) -> list[Value]:
                    near = emit.add(source, I64(nbytes * side))

                    def more(totals: list[Value], places: list[Value], parts: list[Weights]) -> list[Value]:
                        four = transposed(emit, *(emit.read(emit.add(near, place), kind) for place in places))
                        return [products(emit, *each) for each in zip(totals, four, parts)]

                    return over_groups(side, start[side], more)

                totals = [of_side(side) for side in range(sides())]
                joined = [emit.joined(*pair) for pair in zip(*totals)] if sides() == 2 else totals[0]
                target = emit.add(y, emit.mul(channel, I64(size)))
                end.put(joined, emit.add(target, emit.int_at(targets, r)))

            emit.each(rows, row)

        emit.each(emit.sdiv(emit.add(channels, I64(WIDE - 1)), I64(WIDE)), block)

    return write


def write_pairs(emit: Emitter, op: Value, frame: Value) -> None:
    """Kernels of 3 by 3 that move by one: two neighbouring outputs at a time, which share four columns of inputs.

    A line of odd length has its last pair overlap. Of each group of four weights the last is zero; those of the
    second output are moved on by one byte.
    """
    layer = emit.place(op, DepthwisePairs.layer)
    x, y, w, lines, channels, pairs = emit.fields(
        layer, Depthwise.x, Depthwise.y, Depthwise.weight, Depthwise.rows, Depthwise.channels, Depthwise.groups
    )
    sources, targets = emit.fields(layer, Depthwise.x_offsets, Depthwise.y_offsets)
    pitch, line, y_pitch, last = emit.fields(
        op, DepthwisePairs.pitch, DepthwisePairs.line, DepthwisePairs.y_pitch, DepthwisePairs.last
    )
    epilogue = ToCodes(emit, op)
    bytes64 = ir.VectorType(I8, WIDE)

    def block(b: Value) -> None:
        channel = emit.mul(b, I64(WIDE))
        start = epilogue.block(b, emit.sub(channels, channel))
        weights = emit.add(w, emit.mul(b, I64(3 * 4 * WIDE)))
        first = [emit.read(emit.add(weights, I64(64 * i)), INTS) for i in range(12)]

        def one_line(r: Value) -> None:
            source, target = (
                emit.add(emit.add(base, channel), emit.int_at(offsets, r))
                for base, offsets in ((x, sources), (y, targets))
            )

            def pair(p: Value) -> None:
                column = emit.smaller(emit.add(p, p), last)
                at = emit.add(source, emit.mul(column, pitch))
                left, right = start, start
                for k in range(3):
                    here = emit.add(at, emit.mul(line, I64(k)))
                    columns = (emit.read(emit.add(here, emit.mul(pitch, I64(i))), bytes64) for i in range(4))
                    four = transposed(emit, *columns)
                    parts = first[4 * k : 4 * k + 4]
                    moved = [emit.shl(part, emit.splat(8, INTS)) for part in parts]
                    left = [emit.dot(total, v, part) for total, v, part in zip(left, four, parts)]
                    right = [emit.dot(total, v, part) for total, v, part in zip(right, four, moved)]
                goal = emit.add(target, emit.mul(column, y_pitch))
                epilogue.put(left, goal)
                epilogue.put(right, emit.add(goal, y_pitch))

            emit.each(pairs, pair)

        emit.each(lines, one_line)

    emit.each(emit.sdiv(emit.add(channels, I64(WIDE - 1)), I64(WIDE)), block)


PAIRS = Kernel("depthwise_pairs", DepthwisePairs, write_pairs)
ANY_GROUPS = Kernel("depthwise_any", DepthwiseTaps, depthwise(None, DepthwiseTaps.taps))
GROUPS = [
    Kernel(f"depthwise_{groups}", DepthwiseTaps, depthwise(groups, DepthwiseTaps.taps))
    for groups in range(1, IN_REGISTERS + 1)
]


def by_groups(groups: int) -> Kernel[DepthwiseTaps]:
    """The kernel for so many groups of four places."""
    return GROUPS[groups - 1] if groups <= IN_REGISTERS else ANY_GROUPS
