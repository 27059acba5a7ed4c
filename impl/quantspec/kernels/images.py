"""Kernels that go over the positions of images: margins, pooling, and what is done byte by byte."""

from collections.abc import Callable

from llvmlite import ir

from . import cpu
from .depthwise import WIDE, first_bytes, write_bytes
from .emitter import BYTES, F32, FLOATS, I8, I64, INTS, LANES, Emitter, Value
from .jit import Kernel
from .records import Address, Float, Instruction, Integer, Nested, Record


class Windows(Record):
    """Pooling by a table: for each of the ``rows`` of outputs up to ``window`` inputs, of which its entry of
    ``counts`` tells how many.

    ``taps``: int32 [row, window], from an image's start; ``y_offsets``: int32 (rows,); ``factors``: float32 (rows,).
    """

    x: Address
    y: Address
    images: Integer
    rows: Integer
    window: Integer
    channels: Integer
    x_image: Integer
    y_image: Integer
    taps: Address
    counts: Address
    y_offsets: Address
    factors: Address


class Pool(Instruction):
    """Pooling, and by its kind what is made of a window."""

    windows: Nested[Windows]


class MeanPool(Pool):
    """``lowest`` and ``highest``: codes relative to the zero point."""

    zero: Integer
    lowest: Float
    highest: Float


class AveragePool(Pool):
    """``lowest`` and ``highest``: codes."""

    scale: Float
    zero: Integer
    lowest: Float
    highest: Float


class Fill(Instruction):
    """Bytes of ``zero`` from ``target`` on, in each of the ``images``, ``image`` bytes apart: ``before`` its first
    position, between its ``height`` lines, of which ``used`` of ``line`` bytes are positions, and ``after`` the last
    one.
    """

    target: Address
    images: Integer
    image: Integer
    before: Integer
    height: Integer
    line: Integer
    used: Integer
    after: Integer
    zero: Integer


class Loops(Record):
    """How often loops over bytes are run, one within the other: images or planes, lines, positions, bytes of a
    position.
    """

    images: Integer
    lines: Integer
    positions: Integer
    bytes: Integer


class Strides(Record):
    """By how many bytes an operand moves on in each loop but the last."""

    image: Integer
    line: Integer
    position: Integer


class Operands(Record):
    """Where two operands and what is made of them lie, and the loops over their bytes."""

    a: Address
    b: Address
    target: Address
    loops: Nested[Loops]
    a_strides: Nested[Strides]
    b_strides: Nested[Strides]
    target_strides: Nested[Strides]


class OverBytes(Instruction):
    """What goes from two operands to a third, byte by byte."""

    operands: Nested[Operands]


class Combine(OverBytes):
    """To codes from ``lowest`` to ``highest``."""

    lowest: Float
    highest: Float


class Add(Combine):
    """The factors of both operands, and the sum of nothing."""

    a_ratio: Float
    b_ratio: Float
    start: Float


class Mul(Combine):
    """The factor of the product, and the zero points."""

    ratio: Float
    a_zero: Integer
    b_zero: Integer
    zero: Integer


class LookUp(OverBytes):
    """The address of 256 codes."""

    table: Address


Tap = Callable[[Value], Value]  # the codes of sixteen channels at one place of a window, by its number


def over_windows(emit: Emitter, op: Value, codes: Callable[[Tap, Value, Value], Value]) -> None:
    """Writes ``codes(tap, count, factor)`` for each image, each row of the table and each sixteen channels."""
    table = emit.place(op, Pool.windows)
    x, y, rows, width, channels = emit.fields(
        table, Windows.x, Windows.y, Windows.rows, Windows.window, Windows.channels
    )
    taps, counts, targets, factors = emit.fields(
        table, Windows.taps, Windows.counts, Windows.y_offsets, Windows.factors
    )
    x_image, y_image = emit.fields(table, Windows.x_image, Windows.y_image)
    blocks = emit.sdiv(emit.add(channels, I64(LANES - 1)), I64(LANES))

    def image(n: Value) -> None:
        source, target = emit.add(x, emit.mul(n, x_image)), emit.add(y, emit.mul(n, y_image))

        def row(r: Value) -> None:
            entry = emit.shl(r, I64(2))
            count = emit.int_at(counts, r)
            factor = emit.splat(emit.read(emit.add(factors, entry), F32))
            window = emit.add(taps, emit.mul(entry, width))
            address = emit.add(target, emit.int_at(targets, r))

            def block(b: Value) -> None:
                channel = emit.shl(b, I64(4))
                mask = emit.mask(emit.sub(channels, channel))

                def tap(t: Value) -> Value:
                    return emit.read(emit.add(emit.add(source, emit.int_at(window, t)), channel), BYTES)

                emit.write_some(codes(tap, count, factor), emit.add(address, channel), mask)

            emit.each(blocks, block)

        emit.each(rows, row)

    emit.each(emit.field(table, Windows.images), image)


def write_max(emit: Emitter, op: Value, frame: Value) -> None:
    """The largest code of each window."""

    def largest(tap: Tap, count: Value, factor: Value) -> Value:
        def larger(t: Value, carried: list[Value]) -> list[Value]:
            code = tap(t)
            return [emit.select(emit.icmp_unsigned(">", code, carried[0]), code, carried[0])]

        return emit.loop(count, [emit.splat(0, BYTES)], larger)[0]

    over_windows(emit, op, largest)


def write_mean(emit: Emitter, op: Value, frame: Value) -> None:
    """The average of each window by one float32 factor (DIA-AVERAGE, ``ratio``)."""
    zero, lowest, highest = emit.splat_fields(op, MeanPool.zero, MeanPool.lowest, MeanPool.highest)

    def mean(tap: Tap, count: Value, factor: Value) -> Value:
        def more(t: Value, carried: list[Value]) -> list[Value]:
            return [emit.add(carried[0], emit.sub(emit.zext(tap(t), INTS), zero))]

        total = emit.loop(count, [emit.splat(0, INTS)], more)[0]
        steps = emit.fmul(emit.sitofp(total, FLOATS), factor)
        code = emit.rounded(emit.minimum(emit.maximum(steps, lowest), highest))
        return emit.trunc(emit.add(code, zero), BYTES)

    over_windows(emit, op, mean)


def write_average(emit: Emitter, op: Value, frame: Value) -> None:
    """The average of each window in float32 (DIA-AVERAGE, ``real``). The factor is the number of positions."""
    scale, zero, lowest, highest = emit.splat_fields(
        op, AveragePool.scale, AveragePool.zero, AveragePool.lowest, AveragePool.highest
    )

    def average(tap: Tap, count: Value, factor: Value) -> Value:
        def more(t: Value, carried: list[Value]) -> list[Value]:
            steps = emit.sitofp(emit.sub(emit.zext(tap(t), INTS), zero), FLOATS)
            return [emit.fadd(carried[0], emit.fmul(steps, scale))]

        total = emit.loop(count, [emit.splat(0.0, FLOATS)], more)[0]
        steps = emit.fadd(emit.fdiv(emit.fdiv(total, factor), scale), emit.sitofp(zero, FLOATS))
        return emit.trunc(emit.rounded(emit.minimum(emit.maximum(steps, lowest), highest)), BYTES)

    over_windows(emit, op, average)


def write_fill(emit: Emitter, op: Value, frame: Value) -> None:
    """Margins of zero points."""
    target, images, size, before = emit.fields(op, Fill.target, Fill.images, Fill.image, Fill.before)
    height, line, used, after = emit.fields(op, Fill.height, Fill.line, Fill.used, Fill.after)
    zeros = emit.splat(emit.trunc(emit.field(op, Fill.zero), I8))

    def put(address: Value, count: Value) -> None:
        by_sixteen(emit, count, lambda at, mask: emit.write_some(zeros, emit.add(address, at), mask))

    def image(n: Value) -> None:
        start = emit.add(target, emit.mul(n, size))
        put(start, before)
        first = emit.add(start, before)

        def between(h: Value) -> None:
            put(emit.add(first, emit.add(emit.mul(h, line), used)), emit.sub(line, used))

        last = emit.sub(height, I64(1))
        emit.each(last, between)
        put(emit.add(first, emit.add(emit.mul(last, line), used)), after)

    emit.each(images, image)


# What goes over bytes, of the addresses of both operands and of the target, and how many bytes.
Bytes = Callable[[Value, Value, Value, Value], None]


def over_bytes(emit: Emitter, op: Value, run: Bytes) -> None:
    """``run(a, b, target, count)`` for each run of bytes."""
    operands = emit.place(op, OverBytes.operands)
    loops = emit.place(operands, Operands.loops)
    levels = (Loops.images, Strides.image), (Loops.lines, Strides.line), (Loops.positions, Strides.position)
    moves = [emit.place(operands, entry) for entry in (Operands.a_strides, Operands.b_strides, Operands.target_strides)]

    def level(depth: int, addresses: list[Value]) -> None:
        times, stride = levels[depth]

        def inside(i: Value) -> None:
            distances = [emit.mul(i, emit.field(move, stride)) for move in moves]
            moved = [emit.add(address, distance) for address, distance in zip(addresses, distances)]
            if depth + 1 < len(levels):
                level(depth + 1, moved)
            else:
                a, b, target = moved
                run(a, b, target, emit.field(loops, Loops.bytes))

        emit.each(emit.field(loops, times), inside)

    level(0, emit.fields(operands, Operands.a, Operands.b, Operands.target))


def by_sixteen(emit: Emitter, count: Value, run: Callable[[Value, Value | None], None]) -> None:
    """``run(offset, mask)`` for every sixteen of ``count`` bytes; the mask is None where all are there."""
    whole = emit.ashr(count, I64(4))
    emit.each(whole, lambda i: run(emit.shl(i, I64(4)), None))
    at = emit.shl(whole, I64(4))
    with emit.if_then(emit.icmp_signed("<", at, count)):
        run(at, emit.mask(emit.sub(count, at)))


def combine(emit: Emitter, op: Value, steps: Callable[[Value, Value], Value]) -> None:
    """Writes codes of ``steps(a, b)`` (int32 vectors to float steps, clamped to codes) over all runs."""
    lowest, highest = emit.splat_fields(op, Combine.lowest, Combine.highest)

    def run(a: Value, b: Value, target: Value, count: Value) -> None:
        def sixteen(at: Value, mask: Value | None) -> None:
            codes = [emit.zext(emit.read(emit.add(address, at), BYTES), INTS) for address in (a, b)]
            value = emit.minimum(emit.maximum(steps(*codes), lowest), highest)
            emit.write_some(emit.trunc(emit.rounded(value), BYTES), emit.add(target, at), mask)

        by_sixteen(emit, count, sixteen)

    over_bytes(emit, op, run)


def write_add(emit: Emitter, op: Value, frame: Value) -> None:
    """Sums (DIA-ADD, ``ratios``)."""
    a_ratio, b_ratio, start = emit.splat_fields(op, Add.a_ratio, Add.b_ratio, Add.start)

    def steps(a: Value, b: Value) -> Value:
        return emit.fma(emit.uitofp(a, FLOATS), a_ratio, emit.fma(emit.uitofp(b, FLOATS), b_ratio, start))

    combine(emit, op, steps)


def write_mul(emit: Emitter, op: Value, frame: Value) -> None:
    """Products (DIA-MUL, ``inside``)."""
    ratio, a_zero, b_zero, zero = emit.splat_fields(op, Mul.ratio, Mul.a_zero, Mul.b_zero, Mul.zero)

    def steps(a: Value, b: Value) -> Value:
        product = emit.sitofp(emit.mul(emit.sub(a, a_zero), emit.sub(b, b_zero)), FLOATS)
        return emit.fadd(emit.fmul(product, ratio), emit.sitofp(zero, FLOATS))

    combine(emit, op, steps)


def write_table(emit: Emitter, op: Value, frame: Value) -> None:
    """``target = table[a]``."""
    table = emit.field(op, LookUp.table)
    over_bytes(emit, op, looked_up_by_many(emit, table) if cpu.target().looks_up else looked_up_one_by_one(emit, table))


def looked_up_one_by_one(emit: Emitter, table: Value) -> Bytes:
    def run(a: Value, b: Value, target: Value, count: Value) -> None:
        def element(i: Value) -> None:
            code = emit.zext(emit.read(emit.add(a, i), I8), I64)
            emit.write(emit.read(emit.add(table, code), I8), emit.add(target, i))

        emit.each(count, element)

    return run


def looked_up_by_many(emit: Emitter, table: Value) -> Bytes:
    bytes64 = ir.VectorType(I8, WIDE)
    parts = [emit.read(emit.add(table, I64(WIDE * i)), bytes64) for i in range(4)]
    halves = (parts[0], parts[1]), (parts[2], parts[3])

    def run(a: Value, b: Value, target: Value, count: Value) -> None:
        def looked_up(at: Value) -> Value:
            code = emit.read(emit.add(a, at), bytes64)
            low, high = (
                emit.native("llvm.x86.avx512.vpermi2var.qi.512", bytes64, first, code, second)
                for first, second in halves
            )
            return emit.select(emit.icmp_signed("<", code, ir.Constant(bytes64, [0] * WIDE)), high, low)

        def many(i: Value) -> None:
            at = emit.mul(i, I64(WIDE))
            emit.write(looked_up(at), emit.add(target, at))

        whole = emit.sdiv(count, I64(WIDE))
        emit.each(whole, many)
        done = emit.mul(whole, I64(WIDE))
        left = emit.sub(count, done)
        with emit.if_then(emit.icmp_signed(">", left, I64(0))):
            # Reads behind the last code, which the arena allows.
            write_bytes(emit, looked_up(done), emit.add(target, done), first_bytes(emit, left))

    return run


MAX = Kernel("max", Pool, write_max)
MEAN = Kernel("mean", MeanPool, write_mean)
AVERAGE = Kernel("average", AveragePool, write_average)
FILL = Kernel("fill", Fill, write_fill)
ADD = Kernel("add", Add, write_add)
MUL = Kernel("mul", Mul, write_mul)
TABLE = Kernel("table", LookUp, write_table)
