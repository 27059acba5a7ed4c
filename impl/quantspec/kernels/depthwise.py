"""Convolutions in which every channel is on its own.

Sixty-four channels at a time: the bytes of four places of the kernel are interleaved, so that the dot product of four bytes adds four products of one channel. That
leaves channels in another order, which weights, biases and factors follow (``ORDER``) and which is undone in the end.
"""

from llvmlite import ir

from . import cpu
from .emitter import F32, FLOATS, I8, I16, I32, I64, INTS, LANES, Emitter

X, Y, W, BIAS, FACTOR, ROWS, CHANNELS = range(1, 8)
GROUPS, TAPS, X_OFFSETS, Y_OFFSETS, LOWEST, HIGHEST, ZERO = range(8, 15)
PITCH, LINE, Y_PITCH, LAST = range(15, 19)
WIDE = 64
# The channel of a block of 64 that lane l of vector j holds.
ORDER = [[16 * (lane // 4) + 4 * j + lane % 4 for lane in range(LANES)] for j in range(4)]
IN_REGISTERS = 3  # groups of four places whose weights stay in registers


def interleaved(emit: Emitter, a, b, width: int, high: bool):
    """Units of ``width`` bytes of a and b in turn, of the low or high half of every 16 bytes."""
    kind, count = ir.VectorType(ir.IntType(8 * width), WIDE // width), 16 // width
    a, b = emit.bitcast(a, kind), emit.bitcast(b, kind)
    start = count // 2 if high else 0
    order = [lane + start + i + side * WIDE // width for lane in range(0, WIDE // width, count) for i in range(count // 2) for side in (0, 1)]
    return emit.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, WIDE // width), order))


def transposed(emit: Emitter, a, b, c, d) -> list:
    """Four vectors of 64 bytes as four of sixteen groups (a, b, c, d), channels as in ``ORDER``."""
    result = []
    for high in (False, True):
        ab, cd = interleaved(emit, a, b, 1, high), interleaved(emit, c, d, 1, high)
        result += [emit.bitcast(interleaved(emit, ab, cd, 2, upper), INTS) for upper in (False, True)]
    return result


def restored(emit: Emitter, vectors: list):
    """Four int32 vectors of codes, channels as in ``ORDER``, as 64 bytes in order."""
    bytes64, shorts = ir.VectorType(I8, WIDE), ir.VectorType(I16, 2 * LANES)
    if cpu.target().dot_lanes == LANES:
        low, high = (emit.native("llvm.x86.avx512.packssdw.512", shorts, a, b) for a, b in zip(vectors[::2], vectors[1::2]))
        return emit.native("llvm.x86.avx512.packuswb.512", bytes64, low, high)
    wide = ir.VectorType(I32, 2 * LANES)
    pairs = [emit.shuffle_vector(a, b, ir.Constant(wide, list(range(2 * LANES)))) for a, b in zip(vectors[::2], vectors[1::2])]
    place = {channel: LANES * j + lane for j, row in enumerate(ORDER) for lane, channel in enumerate(row)}
    order = ir.Constant(ir.VectorType(I32, WIDE), [place[channel] for channel in range(WIDE)])
    return emit.trunc(emit.shuffle_vector(*pairs, order), bytes64)


def first_bytes(emit: Emitter, count):
    """The mask of the first ``count`` of 64 bytes."""
    kind = ir.VectorType(I8, WIDE)
    limit = emit.insert_element(ir.Constant(kind, ir.Undefined), emit.trunc(emit.smaller(count, I64(WIDE)), I8), I32(0))
    limit = emit.shuffle_vector(limit, limit, ir.Constant(ir.VectorType(I32, WIDE), [0] * WIDE))
    return emit.icmp_unsigned("<", ir.Constant(kind, list(range(WIDE))), limit)


class Epilogue:
    """What a kernel needs to make codes of accumulators of a block of 64 channels."""

    def __init__(self, emit: Emitter, op):
        self.emit, self.bias, self.factor = emit, emit.field(op, BIAS), emit.field(op, FACTOR)
        self.lowest, self.highest = (emit.splat(emit.field(op, entry, F32)) for entry in (LOWEST, HIGHEST))
        self.zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))

    def block(self, index, left) -> list:
        """Begins the block; the accumulators' start. ``left``: channels from its first on."""
        lanes = self.emit.mul(index, I64(4 * WIDE))
        biases, self.factors = (
            [self.emit.read(self.emit.add(base, self.emit.add(lanes, I64(64 * j))), kind) for j in range(4)]
            for base, kind in ((self.bias, INTS), (self.factor, FLOATS))
        )
        self.mask = first_bytes(self.emit, left)
        return biases

    def put(self, totals: list, address) -> None:
        """The codes of the accumulators to memory."""
        emit = self.emit
        steps = [emit.fmul(emit.sitofp(total, FLOATS), f) for total, f in zip(totals, self.factors)]
        codes = [emit.add(emit.rounded(emit.minimum(emit.maximum(s, self.lowest), self.highest)), self.zero) for s in steps]
        pointer = emit.at(address, ir.VectorType(I8, WIDE))
        emit.native("llvm.masked.store.v64i8.p0", ir.VoidType(), restored(emit, codes), pointer, I32(1), self.mask)


def depthwise(groups: int | None, epilogue=Epilogue, size: int = 1):
    """Writes the kernel for ``groups`` groups of four places, or any number. ``epilogue``: what makes values of ``size`` bytes of accumulators."""

    def write(emit: Emitter, op, frame):
        x, y, w, rows, channels = (emit.field(op, entry) for entry in (X, Y, W, ROWS, CHANNELS))
        taps, sources, targets = (emit.field(op, entry) for entry in (TAPS, X_OFFSETS, Y_OFFSETS))
        end = epilogue(emit, op)
        count = I64(groups) if groups else emit.field(op, GROUPS)
        bytes64 = ir.VectorType(I8, WIDE)

        def place(index):
            return emit.sext(emit.read(emit.add(taps, emit.shl(index, I64(2))), I32), I64)

        fixed = [place(I64(i)) for i in range(4 * groups)] if groups else []

        def block(b, carried):
            channel = emit.mul(b, I64(WIDE))
            start = end.block(b, emit.sub(channels, channel))
            weights = emit.add(w, emit.mul(b, emit.mul(count, I64(4 * WIDE))))
            kept = [emit.read(emit.add(weights, I64(64 * i)), INTS) for i in range(4 * groups)] if groups else []

            def row(r, carried):
                entry = emit.shl(r, I64(2))
                source = emit.add(emit.add(x, channel), emit.sext(emit.read(emit.add(sources, entry), I32), I64))

                def more(totals, places, parts):
                    four = transposed(emit, *(emit.read(emit.add(source, p), bytes64) for p in places))
                    return [emit.dot(total, v, part) for total, v, part in zip(totals, four, parts)]

                totals = start
                if groups:
                    for g in range(groups):
                        totals = more(totals, fixed[4 * g : 4 * g + 4], kept[4 * g : 4 * g + 4])
                else:

                    def group(g, carried):
                        places = [place(emit.add(emit.shl(g, I64(2)), I64(i))) for i in range(4)]
                        here = emit.add(weights, emit.mul(g, I64(4 * WIDE)))
                        return more(carried, places, [emit.read(emit.add(here, I64(64 * j)), INTS) for j in range(4)])

                    totals = emit.loop(count, totals, group)
                end.put(totals, emit.add(emit.add(y, emit.mul(channel, I64(size))), emit.sext(emit.read(emit.add(targets, entry), I32), I64)))
                return []

            return emit.loop(rows, [], row)

        emit.loop(emit.sdiv(emit.add(channels, I64(WIDE - 1)), I64(WIDE)), [], block)

    return write


def write_pairs(emit: Emitter, op, frame):
    """Kernels of 3 by 3 that move by one: two neighbouring outputs at a time, which share four columns of inputs.

    ROWS lines of GROUPS pairs, whose first inputs and outputs the offsets tell; a line of odd length has its last pair overlap. Of each group of four weights
    the last is zero; those of the second output are moved on by one byte.
    """
    x, y, w, lines, channels, pairs = (emit.field(op, entry) for entry in (X, Y, W, ROWS, CHANNELS, GROUPS))
    sources, targets = emit.field(op, X_OFFSETS), emit.field(op, Y_OFFSETS)
    pitch, line, y_pitch, last = (emit.field(op, entry) for entry in (PITCH, LINE, Y_PITCH, LAST))
    epilogue = Epilogue(emit, op)
    bytes64 = ir.VectorType(I8, WIDE)

    def block(b, carried):
        channel = emit.mul(b, I64(WIDE))
        start = epilogue.block(b, emit.sub(channels, channel))
        weights = emit.add(w, emit.mul(b, I64(3 * 4 * WIDE)))
        first = [emit.read(emit.add(weights, I64(64 * i)), INTS) for i in range(12)]

        def one_line(r, carried):
            entry = emit.shl(r, I64(2))
            source, target = (
                emit.add(emit.add(base, channel), emit.sext(emit.read(emit.add(offsets, entry), I32), I64)) for base, offsets in ((x, sources), (y, targets))
            )

            def pair(p, carried):
                column = emit.smaller(emit.add(p, p), last)
                at = emit.add(source, emit.mul(column, pitch))
                left, right = start, start
                for k in range(3):
                    here = emit.add(at, emit.mul(line, I64(k)))
                    four = transposed(emit, *(emit.read(emit.add(here, emit.mul(pitch, I64(i))), bytes64) for i in range(4)))
                    parts = first[4 * k : 4 * k + 4]
                    left = [emit.dot(total, v, part) for total, v, part in zip(left, four, parts)]
                    right = [emit.dot(total, v, emit.shl(part, emit.splat(8, INTS))) for total, v, part in zip(right, four, parts)]
                goal = emit.add(target, emit.mul(column, y_pitch))
                epilogue.put(left, goal)
                epilogue.put(right, emit.add(goal, y_pitch))
                return []

            return emit.loop(pairs, [], pair)

        return emit.loop(lines, [], one_line)

    emit.loop(emit.sdiv(emit.add(channels, I64(WIDE - 1)), I64(WIDE)), [], block)
