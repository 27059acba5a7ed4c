"""Convolutions in which every channel is on its own.

Sixty-four channels at a time: the bytes of four places of the kernel are interleaved, so that the dot product of four bytes adds four products of one channel. That
leaves channels in another order, which weights, biases and factors follow (``ORDER``) and which is undone in the end.
"""

from llvmlite import ir

from .simd import F32, FLOATS, I8, I32, I64, INTS, LANES, Emitter

X, Y, W, BIAS, FACTOR, ROWS, CHANNELS = range(1, 8)
GROUPS, TAPS, X_OFFSETS, Y_OFFSETS, LOWEST, HIGHEST, ZERO = range(8, 15)
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
    wide = ir.VectorType(I32, 2 * LANES)
    pairs = [emit.shuffle_vector(a, b, ir.Constant(wide, list(range(2 * LANES)))) for a, b in zip(vectors[::2], vectors[1::2])]
    place = {channel: LANES * j + lane for j, row in enumerate(ORDER) for lane, channel in enumerate(row)}
    order = ir.Constant(ir.VectorType(I32, WIDE), [place[channel] for channel in range(WIDE)])
    return emit.trunc(emit.shuffle_vector(*pairs, order), ir.VectorType(I8, WIDE))


def depthwise(groups: int | None):
    """Writes the kernel for ``groups`` groups of four places, or any number."""

    def write(emit: Emitter, op, frame):
        x, y, w, bias, factor, rows, channels = (emit.field(op, entry) for entry in range(X, CHANNELS + 1))
        taps, sources, targets = (emit.field(op, entry) for entry in (TAPS, X_OFFSETS, Y_OFFSETS))
        lowest, highest = (emit.splat(emit.field(op, entry, F32)) for entry in (LOWEST, HIGHEST))
        zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))
        count = I64(groups) if groups else emit.field(op, GROUPS)
        bytes64 = ir.VectorType(I8, WIDE)

        def place(index):
            return emit.sext(emit.read(emit.add(taps, emit.shl(index, I64(2))), I32), I64)

        fixed = [place(I64(i)) for i in range(4 * groups)] if groups else []

        def block(b, carried):
            channel = emit.mul(b, I64(WIDE))
            lanes = emit.mul(b, I64(4 * WIDE))
            biases, factors = ([emit.read(emit.add(base, emit.add(lanes, I64(64 * j))), kind) for j in range(4)] for base, kind in ((bias, INTS), (factor, FLOATS)))
            weights = emit.add(w, emit.mul(b, emit.mul(count, I64(4 * WIDE))))
            kept = [emit.read(emit.add(weights, I64(64 * i)), INTS) for i in range(4 * groups)] if groups else []
            left = emit.smaller(emit.sub(channels, channel), I64(WIDE))
            limit = emit.insert_element(ir.Constant(bytes64, ir.Undefined), emit.trunc(left, I8), I32(0))
            limit = emit.shuffle_vector(limit, limit, ir.Constant(ir.VectorType(I32, WIDE), [0] * WIDE))
            mask = emit.icmp_unsigned("<", ir.Constant(bytes64, list(range(WIDE))), limit)

            def row(r, carried):
                entry = emit.shl(r, I64(2))
                source = emit.add(emit.add(x, channel), emit.sext(emit.read(emit.add(sources, entry), I32), I64))

                def more(totals, places, parts):
                    four = transposed(emit, *(emit.read(emit.add(source, p), bytes64) for p in places))
                    return [emit.dot(total, v, part) for total, v, part in zip(totals, four, parts)]

                totals = biases
                if groups:
                    for g in range(groups):
                        totals = more(totals, fixed[4 * g : 4 * g + 4], kept[4 * g : 4 * g + 4])
                else:

                    def group(g, carried):
                        places = [place(emit.add(emit.shl(g, I64(2)), I64(i))) for i in range(4)]
                        here = emit.add(weights, emit.mul(g, I64(4 * WIDE)))
                        return more(carried, places, [emit.read(emit.add(here, I64(64 * j)), INTS) for j in range(4)])

                    totals = emit.loop(count, totals, group)
                steps = [emit.fmul(emit.sitofp(total, FLOATS), f) for total, f in zip(totals, factors)]
                codes = [emit.add(emit.rounded(emit.minimum(emit.maximum(s, lowest), highest)), zero) for s in steps]
                address = emit.add(emit.add(y, channel), emit.sext(emit.read(emit.add(targets, entry), I32), I64))
                pointer = emit.at(address, bytes64)
                emit.native("llvm.masked.store.v64i8.p0", ir.VoidType(), restored(emit, codes), pointer, I32(1), mask)
                return []

            return emit.loop(rows, [], row)

        emit.loop(emit.sdiv(emit.add(channels, I64(WIDE - 1)), I64(WIDE)), [], block)

    return write
