"""Kernels that go over the positions of images: margins, pooling, element by element, and what turns planes of floats into positions of codes and back."""

from llvmlite import ir

from . import cpu
from .depthwise import WIDE, first_bytes
from .emitter import BYTES, F32, FLOATS, I8, I32, I64, INTS, LANES, Emitter, function
from .quantize import run_quantize, slot, source_or_slot

X, Y, IMAGES, ROWS, WINDOW, CHANNELS, X_IMAGE, Y_IMAGE = range(1, 9)
TAPS, COUNTS, Y_OFFSETS, FACTORS = range(9, 13)  # int32 offsets [row, window] from an image's start; int32 and float32 (rows,)
SCALE, ZERO, LOWEST, HIGHEST = range(13, 17)

# Element by element: LOOPS nested counts, the last of which is bytes in a row; strides of each operand in the loops but the last.
A, B, TARGET, LOOP, A_STRIDE, B_STRIDE, TARGET_STRIDE = 1, 2, 3, 4, 8, 11, 14
PARAMETER = 17


def over_windows(emit: Emitter, op, one) -> None:
    """``one(window, count, factor, channel, mask, address)`` for each image, each row of the table and each sixteen channels."""
    x, y, rows, width, channels = (emit.field(op, entry) for entry in (X, Y, ROWS, WINDOW, CHANNELS))
    taps, counts, targets, factors = (emit.field(op, entry) for entry in (TAPS, COUNTS, Y_OFFSETS, FACTORS))
    blocks = emit.sdiv(emit.add(channels, I64(LANES - 1)), I64(LANES))

    def image(n, carried):
        source, target = emit.add(x, emit.mul(n, emit.field(op, X_IMAGE))), emit.add(y, emit.mul(n, emit.field(op, Y_IMAGE)))

        def row(r, carried):
            entry = emit.shl(r, I64(2))
            count = emit.sext(emit.read(emit.add(counts, entry), I32), I64)
            factor = emit.splat(emit.read(emit.add(factors, entry), F32))
            window = emit.add(taps, emit.mul(entry, width))
            address = emit.add(target, emit.sext(emit.read(emit.add(targets, entry), I32), I64))

            def block(b, carried):
                channel = emit.shl(b, I64(4))
                mask = emit.mask(emit.sub(channels, channel))

                def tap(t):
                    place = emit.sext(emit.read(emit.add(window, emit.shl(t, I64(2))), I32), I64)
                    return emit.read(emit.add(emit.add(source, place), channel), BYTES)

                emit.write_some(one(tap, count, factor), emit.add(address, channel), mask)
                return []

            return emit.loop(blocks, [], block)

        return emit.loop(rows, [], row)

    emit.loop(emit.field(op, IMAGES), [], image)


def write_max(emit: Emitter, op, frame):
    """The largest code of each window."""

    def one(tap, count, factor):
        def larger(t, carried):
            code = tap(t)
            return [emit.select(emit.icmp_unsigned(">", code, carried[0]), code, carried[0])]

        return emit.loop(count, [emit.splat(0, BYTES)], larger)[0]

    over_windows(emit, op, one)


def clamped(emit: Emitter, op, steps):
    """Float steps between the lowest and the highest code, as float32 entries have them, rounded."""
    lowest, highest = (emit.splat(emit.field(op, entry, F32)) for entry in (LOWEST, HIGHEST))
    return emit.rounded(emit.minimum(emit.maximum(steps, lowest), highest))


def write_mean(emit: Emitter, op, frame):
    """The average of each window by one float32 factor (DIA-AVERAGE, ``ratio``). LOWEST and HIGHEST are relative to the zero point."""
    zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))

    def one(tap, count, factor):
        total = emit.loop(count, [emit.splat(0, INTS)], lambda t, carried: [emit.add(carried[0], emit.sub(emit.zext(tap(t), INTS), zero))])[0]
        return emit.trunc(emit.add(clamped(emit, op, emit.fmul(emit.sitofp(total, FLOATS), factor)), zero), BYTES)

    over_windows(emit, op, one)


def write_average(emit: Emitter, op, frame):
    """The average of each window in float32 (DIA-AVERAGE, ``real``). The factor is the number of positions."""
    zero, scale = emit.splat(emit.trunc(emit.field(op, ZERO), I32)), emit.splat(emit.field(op, SCALE, F32))

    def one(tap, count, factor):
        def more(t, carried):
            return [emit.fadd(carried[0], emit.fmul(emit.sitofp(emit.sub(emit.zext(tap(t), INTS), zero), FLOATS), scale))]

        total = emit.loop(count, [emit.splat(0.0, FLOATS)], more)[0]
        steps = emit.fadd(emit.fdiv(emit.fdiv(total, factor), scale), emit.sitofp(zero, FLOATS))
        return emit.trunc(clamped(emit, op, steps), BYTES)

    over_windows(emit, op, one)


def write_fill(emit: Emitter, op, frame):
    """Margins of zero points: bytes before the first position, between lines, and behind the last position of each image."""
    target, images, size, before, height, line, used, after, zero = (emit.field(op, entry) for entry in range(1, 10))
    zeros = emit.splat(emit.trunc(zero, I8))

    def put(address, count):
        def one(at, mask):
            place = emit.add(address, at)
            if mask is None:
                emit.write(zeros, place)
            else:
                emit.write_some(zeros, place, mask)

        by_sixteen(emit, count, one)

    def image(n, carried):
        start = emit.add(target, emit.mul(n, size))
        put(start, before)
        first = emit.add(start, before)

        def between(h, carried):
            put(emit.add(first, emit.add(emit.mul(h, line), used)), emit.sub(line, used))
            return []

        emit.loop(emit.sub(height, I64(1)), [], between)
        put(emit.add(first, emit.add(emit.mul(emit.sub(height, I64(1)), line), used)), after)
        return []

    emit.loop(images, [], image)


def over_bytes(emit: Emitter, op, one) -> None:
    """``one(a, b, target, count)`` for each run of bytes."""

    def level(depth: int, places: list) -> None:
        def inside(i, carried):
            moved = [emit.add(place, emit.mul(i, emit.field(op, stride + depth))) for place, stride in zip(places, (A_STRIDE, B_STRIDE, TARGET_STRIDE))]
            if depth < 2:
                level(depth + 1, moved)
            else:
                one(*moved, emit.field(op, LOOP + 3))
            return []

        emit.loop(emit.field(op, LOOP + depth), [], inside)

    level(0, [emit.field(op, entry) for entry in (A, B, TARGET)])


def by_sixteen(emit: Emitter, count, one) -> None:
    """``one(offset, mask)`` for every sixteen of ``count`` bytes; the mask is None where all are there."""
    whole = emit.ashr(count, I64(4))

    def block(i, carried):
        one(emit.shl(i, I64(4)), None)
        return []

    emit.loop(whole, [], block)
    at = emit.shl(whole, I64(4))
    with emit.if_then(emit.icmp_signed("<", at, count)):
        one(at, emit.mask(emit.sub(count, at)))


def combine(emit: Emitter, op, steps) -> None:
    """Writes codes of ``steps(a, b)`` (int32 vectors to float steps, clamped to codes) over all runs."""

    def run(a, b, target, count):
        def one(at, mask):
            codes = [emit.zext(emit.read(emit.add(place, at), BYTES), INTS) for place in (a, b)]
            value = emit.minimum(emit.maximum(steps(*codes), lowest), highest)
            code, address = emit.trunc(emit.rounded(value), BYTES), emit.add(target, at)
            if mask is None:
                emit.write(code, address)
            else:
                emit.write_some(code, address, mask)

        by_sixteen(emit, count, one)

    lowest, highest = (emit.splat(emit.field(op, PARAMETER + i, F32)) for i in (0, 1))
    over_bytes(emit, op, run)


def write_add(emit: Emitter, op, frame):
    """Sums (DIA-ADD, ``ratios``). Parameters: lowest and highest code, ratio of a, ratio of b, start."""
    ratio, other, start = (emit.splat(emit.field(op, PARAMETER + i, F32)) for i in (2, 3, 4))
    combine(emit, op, lambda a, b: emit.fma(emit.uitofp(a, FLOATS), ratio, emit.fma(emit.uitofp(b, FLOATS), other, start)))


def write_mul(emit: Emitter, op, frame):
    """Products (DIA-MUL, ``inside``). Parameters: lowest and highest code, ratio, zero points of a, b and the output."""
    ratio = emit.splat(emit.field(op, PARAMETER + 2, F32))
    a_zero, b_zero, zero = (emit.splat(emit.trunc(emit.field(op, PARAMETER + i), I32)) for i in (3, 4, 5))

    def steps(a, b):
        product = emit.sitofp(emit.mul(emit.sub(a, a_zero), emit.sub(b, b_zero)), FLOATS)
        return emit.fadd(emit.fmul(product, ratio), emit.sitofp(zero, FLOATS))

    combine(emit, op, steps)


def write_table(emit: Emitter, op, frame):
    """``target = table[a]``. Parameter: the table's address."""
    table = emit.field(op, PARAMETER)
    if not cpu.target().looks_up:

        def by_one(a, b, target, count):
            def one(i, carried):
                code = emit.zext(emit.read(emit.add(a, i), I8), I64)
                emit.write(emit.read(emit.add(table, code), I8), emit.add(target, i))
                return []

            emit.loop(count, [], one)

        return over_bytes(emit, op, by_one)
    bytes64 = ir.VectorType(I8, WIDE)
    parts = [emit.read(emit.add(table, I64(WIDE * i)), bytes64) for i in range(4)]

    def by_many(a, b, target, count):
        def looked_up(at):
            code = emit.read(emit.add(a, at), bytes64)
            low, high = (emit.native("llvm.x86.avx512.vpermi2var.qi.512", bytes64, parts[i], code, parts[i + 1]) for i in (0, 2))
            return emit.select(emit.icmp_signed("<", code, ir.Constant(bytes64, [0] * WIDE)), high, low), emit.add(target, at)

        def one(i, carried):
            emit.write(*looked_up(emit.mul(i, I64(WIDE))))
            return []

        whole = emit.sdiv(count, I64(WIDE))
        emit.loop(whole, [], one)
        done = emit.mul(whole, I64(WIDE))
        left = emit.sub(count, done)
        with emit.if_then(emit.icmp_signed(">", left, I64(0))):
            value, address = looked_up(done)  # reads behind the last code, which the arena allows
            emit.native("llvm.masked.store.v64i8.p0", ir.VoidType(), value, emit.at(address, bytes64), I32(1), first_bytes(emit, left))

    return over_bytes(emit, op, by_many)


def write_copy(emit: Emitter, op, frame):
    """Bytes from one order to another: the last of the loops has strides as well, parameters 0 and 1. Parameters 2 and 3: the input or output of the program
    that is the source or the target, or -1; parameter 4: where in it they begin."""
    for parameter, entry in ((2, A), (3, TARGET)):
        outside = emit.icmp_signed(">=", emit.field(op, PARAMETER + parameter), I64(0))
        begin = emit.select(outside, emit.field(op, PARAMETER + 4), I64(0))
        emit.write(emit.add(source_or_slot(emit, op, frame, PARAMETER + parameter, entry), begin), emit.add(op, I64(8 * entry)))
    near, far = (emit.field(op, PARAMETER + i) for i in (0, 1))

    def run(a, b, target, count):
        def one(i, carried):
            emit.write(emit.read(emit.add(a, emit.mul(i, near)), I8), emit.add(target, emit.mul(i, far)))
            return []

        emit.loop(count, [], one)

    over_bytes(emit, op, run)


# Planes of floats. The grid's entries are those of ``codes``.
SOURCE, GOAL = 1, 2
P_IMAGES, P_HEIGHT, P_WIDTH, P_CHANNELS, P_IMAGE, P_LINE, P_PITCH, P_LINES = range(13, 21)
P_START, P_IMAGE_STEP, P_CHANNEL_STEP = range(21, 24)  # in floats


def write_quantize_planes(emit: Emitter, op, frame):
    """Floats [images, channels, height, width] to codes [image][line][position][channel], by way of P_LINES, one line of each channel's codes."""
    source, target = slot(emit, op, frame, SOURCE), emit.field(op, GOAL)
    images, height, width, channels, size, line, pitch, lines = (emit.field(op, entry) for entry in range(P_IMAGES, P_LINES + 1))
    begin, image_step, channel_step = (emit.field(op, entry) for entry in (P_START, P_IMAGE_STEP, P_CHANNEL_STEP))
    run = function(emit.module, "quantspec_quantize_run", 4, run_quantize)
    space = emit.add(width, I64(64))
    single = emit.icmp_signed("==", channels, I64(1))

    def image(n, carried):
        def row(h, carried):
            goal = emit.add(target, emit.add(emit.mul(n, size), emit.mul(h, line)))

            def plane(c, carried):
                start = emit.add(emit.add(begin, emit.mul(n, image_step)), emit.add(emit.mul(c, channel_step), emit.mul(h, width)))
                codes = emit.select(single, goal, emit.add(lines, emit.mul(c, space)))
                return [emit.or_(carried[0], emit.call(run, [op, emit.add(source, emit.shl(start, I64(2))), codes, width]))]

            nan = emit.loop(channels, carried, plane)
            with emit.if_then(emit.icmp_signed("==", pitch, I64(3))):
                three(emit, lines, space, goal, width)
            with emit.if_then(emit.and_(emit.icmp_signed("!=", pitch, I64(3)), emit.not_(single))):
                interleave(emit, lines, space, goal, width, channels, pitch)
            return nan

        return emit.loop(height, carried, row)

    return emit.loop(images, [I64(0)], image)[0]


def three(emit: Emitter, lines, space, goal, width) -> None:
    """Interleaves three lines, sixteen positions at a time: up to 45 bytes behind the last one are written too."""

    def block(i, carried):
        at = emit.shl(i, I64(4))
        parts = [emit.read(emit.add(emit.add(lines, emit.mul(space, I64(c))), at), BYTES) for c in range(3)]
        wide = ir.VectorType(I32, 2 * LANES)
        two = emit.shuffle_vector(parts[0], parts[1], ir.Constant(wide, list(range(2 * LANES))))
        rest = emit.shuffle_vector(parts[2], parts[2], ir.Constant(wide, list(range(2 * LANES))))
        order = [p + LANES * c for p in range(LANES) for c in range(3)]
        emit.write(emit.shuffle_vector(two, rest, ir.Constant(ir.VectorType(I32, 3 * LANES), order)), emit.add(goal, emit.mul(at, I64(3))))
        return []

    emit.loop(emit.ashr(emit.add(width, I64(LANES - 1)), I64(4)), [], block)


def interleave(emit: Emitter, lines, space, goal, width, channels, pitch) -> None:
    """Any number of lines, byte by byte."""

    def position(w, carried):
        place, start = emit.add(goal, emit.mul(w, pitch)), emit.add(lines, w)

        def channel(c, carried):
            emit.write(emit.read(emit.add(start, emit.mul(c, space)), I8), emit.add(place, c))
            return []

        return emit.loop(channels, [], channel)

    emit.loop(width, [], position)


def write_dequantize_planes(emit: Emitter, op, frame):
    """Codes [image][line][position][channel] to floats [images, channels, height, width]."""
    from .quantize import SCALE as GRID_SCALE
    from .quantize import ZERO as GRID_ZERO

    source, target = emit.field(op, SOURCE), slot(emit, op, frame, GOAL)
    images, height, width, channels, size, line, pitch = (emit.field(op, entry) for entry in range(P_IMAGES, P_LINES))
    begin, image_step, channel_step = (emit.field(op, entry) for entry in (P_START, P_IMAGE_STEP, P_CHANNEL_STEP))
    scale, zero = emit.field(op, GRID_SCALE, F32), emit.trunc(emit.field(op, GRID_ZERO), I32)

    def image(n, carried):
        def plane(c, carried):
            def row(h, carried):
                start = emit.add(emit.add(source, c), emit.add(emit.mul(n, size), emit.mul(h, line)))
                first = emit.add(emit.add(begin, emit.mul(n, image_step)), emit.add(emit.mul(c, channel_step), emit.mul(h, width)))

                def position(w, carried):
                    code = emit.zext(emit.read(emit.add(start, emit.mul(w, pitch)), I8), I32)
                    real = emit.fmul(emit.sitofp(emit.sub(code, zero), F32), scale)
                    emit.write(real, emit.add(target, emit.shl(emit.add(first, w), I64(2))))
                    return []

                return emit.loop(width, [], position)

            return emit.loop(height, [], row)

        return emit.loop(channels, [], plane)

    emit.loop(images, [], image)
