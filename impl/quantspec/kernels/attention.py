"""Scaled dot-product attention of one head after the other (DYN-ATTENTION).

Keys and values of a head become the weights of two products: of queries with keys, whose sums are scores, and of
weights with values. Weights have 16 bits, which are two rows of codes for the product of every other layer; their sums,
256 times the one plus the other, are exact. What makes weights of scores is float32 arithmetic, each operation rounded.

Each instruction finds its head by a number that the last one counts up, and by tables of where heads lie.
"""

from collections.abc import Callable

from llvmlite import ir

from .emitter import (
    BYTES,
    DOUBLES,
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    MAGIC,
    MAGIC_BITS,
    NO_LANES,
    Emitter,
    Value,
)
from .frame import slot_address
from .jit import Kernel
from .product import PANEL
from .records import Address, Float, Instruction, Integer, Record, Slot, float_bits

# As ``numerics.attention`` has them; machine code is stored by the source of this package.
LARGEST, SMALLEST, CODES, WEIGHTS = 2.0**50, 2.0**-100, 127.0, 65535.0
LOG2_E, FARTHEST = 1.4426950408889634, 24.0
POWER = 0.6931241750717163, 0.24024038016796112, 0.05590662732720375, 0.009585382416844368
FINITE = 3.4028234663852886e38
TOO_LARGE = float_bits(LARGEST)
MIDDLE = 128  # the zero point of queries
LINE = 64
WORDS = LANES // 4  # steps of a vector of codes


class OfHead(Instruction):
    """What a head has at a ``slot``: ``turn`` is where its number stands, ``offsets`` the table of how many bytes heads
    lie behind the start; ``ahead`` are more of them. ``count`` rows of ``width`` floats are ``pitch`` bytes apart."""

    turn: Address
    slot: Slot
    offsets: Address
    count: Integer
    width: Integer
    pitch: Integer
    ahead: Integer = Integer()


class Queries(OfHead):
    """Rows to codes, ``target_pitch`` bytes apart, and to ``scales``."""

    target: Address
    target_pitch: Integer
    scales: Address


class Keys(OfHead):
    """Rows to the weights of a product with so many ``steps``, to ``scales``, and to the ``sums`` of their codes."""

    target: Address
    steps: Integer
    scales: Address
    sums: Address


class Features(OfHead):
    """Rows to the weights of a product of ``steps`` whose outputs are columns, and to the columns' ``scales`` and the
    ``sums`` of their codes."""

    target: Address
    steps: Integer
    scales: Address
    sums: Address


class Ahead(Record):
    """Rows of the next head, which are fetched while weights of this one are computed: no CPU guesses where they are.
    ``lines`` of each; the rest as in ``OfHead``."""

    slot: Slot
    offsets: Address
    count: Integer
    pitch: Integer
    lines: Integer


STREAMS = 3  # queries, keys and values


class Weights(OfHead):
    """``count`` rows of ``width`` scores to weights: two bytes of each, rows of them ``target_pitch`` bytes apart and
    the second ones ``apart`` bytes behind the first; to ``shares`` one over their sum.

    The rows of ``slot`` are the mask's, where ``masked``. ``first``: the place of the first query, where ``causal``.
    ``fetched``: where three records of ``Ahead`` stand.
    """

    scores: Address
    scores_pitch: Integer
    scales: Address
    factor: Float
    key_scales: Address
    key_sums: Address
    target: Address
    target_pitch: Integer
    apart: Integer
    shares: Address
    masked: Integer
    causal: Integer
    first: Integer
    fetched: Address


class Outputs(OfHead):
    """Sums of the first and the second bytes, rows ``sums_pitch`` bytes apart and the second ones ``apart`` bytes
    behind, to floats; then ``step`` more heads are done."""

    sums: Address
    sums_pitch: Integer
    apart: Integer
    shares: Address
    scales: Address
    step: Integer


def start_of(emit: Emitter, op: Value, frame: Value) -> Value:
    """Where the head's first row lies."""
    number = emit.read(emit.field(op, OfHead.turn), I64, 8)
    slot, offsets, ahead = emit.fields(op, OfHead.slot, OfHead.offsets, OfHead.ahead)
    return emit.add(emit.add(slot_address(emit, frame, slot), emit.item(offsets, number)), ahead)


def floats_of(emit: Emitter, row: Value, n: Value, width: Value) -> Value:
    """The vector ``n`` of a row, with zeros behind its end."""
    mask = emit.mask(emit.sub(width, emit.shl(n, I64(4))))
    return emit.read_some(emit.add(row, emit.shl(n, I64(6))), FLOATS, mask, emit.splat(0.0, FLOATS))


def scale_of(emit: Emitter, largest: Value) -> tuple[Value, Value]:
    """The scale of a largest magnitude, and what its values are multiplied with; of one or of sixteen."""

    def number(value: float) -> Value:
        return emit.splat(value, FLOATS) if largest.type == FLOATS else F32(value)

    held = emit.fcmp_ordered(">=", largest, number(SMALLEST))
    scale, inverse = emit.fdiv(largest, number(CODES)), emit.fdiv(number(CODES), largest)
    return emit.select(held, scale, number(0.0)), emit.select(held, inverse, number(0.0))


def over_rows(
    emit: Emitter, op: Value, frame: Value, scales: Value,
    put: Callable[[Value, Value, Value], object], end: Callable[[Value, Value], object] | None = None,
) -> Value:  # fmt: skip
    """Has all rows quantized, each by itself: ``put(row, n, codes)`` takes the codes of a vector, ``end(row, sums)``
    the sums of a row's; 1 when a value is too large, or none."""
    source, (count, width, pitch) = start_of(emit, op, frame), emit.fields(op, OfHead.count, OfHead.width, OfHead.pitch)
    vectors = emit.vectors_of(width)

    def row(i: Value) -> Value:
        x = emit.add(source, emit.mul(i, pitch))
        bits = emit.largest_size(vectors, lambda n: floats_of(emit, x, n, width))
        most = emit.native("llvm.vector.reduce.smax.v16i32", I32, bits)
        scale, inverse = scale_of(emit, emit.bitcast(most, F32))
        emit.write(scale, emit.add(scales, emit.shl(i, I64(2))))
        inverses = emit.splat(inverse)

        def vector(n: Value, totals: list[Value]) -> list[Value]:
            codes = emit.rounded(emit.fmul(floats_of(emit, x, n, width), inverses))
            put(i, n, codes)
            return [emit.add(totals[0], codes)]

        total = emit.loop(vectors, [emit.splat(0, INTS)], vector)[0]
        if end is not None:
            end(i, total)
        return emit.zext(emit.icmp_signed(">", most, I32(TOO_LARGE)), I64)

    return emit.any_of(count, row)


def write_queries(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when a value is too large, or none."""
    target, pitch, scales = emit.fields(op, Queries.target, Queries.target_pitch, Queries.scales)
    middle = emit.splat(MIDDLE, INTS)

    def put(i: Value, n: Value, codes: Value) -> None:
        at = emit.add(emit.add(target, emit.mul(i, pitch)), emit.shl(n, I64(4)))
        emit.write(emit.trunc(emit.add(codes, middle), BYTES), at)

    return over_rows(emit, op, frame, scales, put)


def line_of(emit: Emitter, target: Value, steps: Value, outputs: Value, block: Value) -> tuple[Value, Value]:
    """Where the weights of a block of sixteen ``outputs`` begin, and how many bytes lie between two of its steps."""
    panel, second = emit.lshr(block, I64(1)), emit.and_(block, I64(1))
    left = emit.sub(emit.vectors_of(outputs), emit.mul(panel, I64(PANEL)))
    apart = emit.mul(emit.smaller(left, I64(PANEL)), I64(LINE))
    first = emit.add(target, emit.mul(panel, emit.mul(steps, I64(LINE * PANEL))))
    return emit.add(first, emit.mul(second, I64(LINE))), apart


def write_keys(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when a value is too large, or none."""
    target, steps, scales, sums, count = emit.fields(op, Keys.target, Keys.steps, Keys.scales, Keys.sums, Keys.count)
    words = ir.VectorType(I32, WORDS)

    def put(i: Value, n: Value, codes: Value) -> None:
        first, apart = line_of(emit, target, steps, count, emit.lshr(i, I64(4)))
        at = emit.add(first, emit.shl(emit.and_(i, I64(LANES - 1)), I64(2)))
        fours = emit.bitcast(emit.trunc(codes, BYTES), words)
        for word in range(WORDS):
            step = emit.add(emit.shl(n, I64(2)), I64(word))
            emit.write(emit.extract_element(fours, I32(word)), emit.add(at, emit.mul(step, apart)))

    def end(i: Value, total: Value) -> None:
        total = emit.native("llvm.vector.reduce.add.v16i32", I32, total)
        emit.write(total, emit.add(sums, emit.shl(i, I64(2))))

    return over_rows(emit, op, frame, scales, put, end)


def write_features(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when a value is too large, or none."""
    source, (count, width, pitch) = start_of(emit, op, frame), emit.fields(op, OfHead.count, OfHead.width, OfHead.pitch)
    target, steps, scales, sums = emit.fields(
        op, Features.target, Features.steps, Features.scales, Features.sums
    )
    low_byte, shifts = emit.splat(255, INTS), [emit.splat(8 * n, INTS) for n in range(4)]

    def block(b: Value) -> Value:
        column, left = emit.add(source, emit.shl(b, I64(6))), emit.sub(width, emit.shl(b, I64(4)))
        first, apart = line_of(emit, target, steps, width, b)

        def values(j: Value) -> Value:
            mask = emit.mask(emit.select(emit.icmp_signed("<", j, count), left, I64(0)))
            return emit.read_some(emit.add(column, emit.mul(j, pitch)), FLOATS, mask, emit.splat(0.0, FLOATS))

        bits = emit.largest_size(count, values)
        scale, inverse = scale_of(emit, emit.bitcast(bits, FLOATS))
        emit.write(scale, emit.add(scales, emit.shl(b, I64(6))))

        def step(s: Value, totals: list[Value]) -> list[Value]:
            word, (total,) = emit.splat(0, INTS), totals
            for n in range(4):
                codes = emit.rounded(emit.fmul(values(emit.add(emit.shl(s, I64(2)), I64(n))), inverse))
                total = emit.add(total, codes)
                word = emit.or_(word, emit.shl(emit.and_(codes, low_byte), shifts[n]))
            emit.write(word, emit.add(first, emit.mul(s, apart)))
            return [total]

        total = emit.loop(steps, [emit.splat(0, INTS)], step)[0]
        emit.write(total, emit.add(sums, emit.shl(b, I64(6))))
        return emit.zext(emit.any(emit.icmp_signed(">", bits, emit.splat(TOO_LARGE, INTS))), I64)

    return emit.any_of(emit.vectors_of(width), block)


def write_weights(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when the greatest score of a row is no finite number, or one of a mask is none."""
    count, width, pitch = emit.fields(op, OfHead.count, OfHead.width, OfHead.pitch)
    scores, near, scales, factor, key_scales, key_sums = emit.fields(
        op, Weights.scores, Weights.scores_pitch, Weights.scales, Weights.factor, Weights.key_scales, Weights.key_sums
    )
    target, far, apart, shares, first = emit.fields(
        op, Weights.target, Weights.target_pitch, Weights.apart, Weights.shares, Weights.first
    )
    masked, causal = emit.flag(op, Weights.masked), emit.flag(op, Weights.causal)
    vectors, lowest = emit.vectors_of(width), emit.splat(float("-inf"), FLOATS)
    greatest, bad = emit.stack(FLOATS, 64), emit.stack(I64, 8)
    streams = streams_of(emit, op, frame)

    def row(i: Value) -> Value:
        line, place = emit.add(scores, emit.mul(i, near)), emit.shl(i, I64(2))
        seen = emit.smaller(width, emit.add(emit.add(first, i), I64(1)))
        limit = emit.select(causal, seen, width)
        unit = emit.splat(emit.fmul(emit.read(emit.add(scales, place), F32), factor))

        def score(n: Value) -> tuple[Value, Value]:
            at = emit.shl(n, I64(6))
            # The zero point of queries adds so much.
            added = emit.mul(emit.read(emit.add(key_sums, at), INTS), emit.splat(MIDDLE, INTS))
            total = emit.sub(emit.read(emit.add(line, at), INTS), added)
            value = emit.fmul(emit.fmul(emit.sitofp(total, FLOATS), unit), emit.read(emit.add(key_scales, at), FLOATS))
            return value, emit.add(line, at)

        def plain(n: Value, carried: list[Value]) -> list[Value]:
            value, at = score(n)
            emit.write(value, at)
            return [emit.maximum(value, carried[0])]

        def with_mask(n: Value, carried: list[Value]) -> list[Value]:
            (value, at), lanes = score(n), emit.mask(emit.sub(limit, emit.shl(n, I64(4))))
            added = emit.read_some(emit.add(hidden, emit.shl(n, I64(6))), FLOATS, lanes, emit.splat(0.0, FLOATS))
            value = emit.fadd(value, emit.fmul(added, emit.splat(LOG2_E, FLOATS)))
            none = emit.and_(lanes, emit.fcmp_unordered("uno", value, value))
            value = emit.select(lanes, value, lowest)
            emit.write(value, at)
            return [emit.maximum(value, carried[0]), emit.or_(carried[1], none)]

        def last(n: Value, carried: list[Value]) -> list[Value]:
            value, at = score(emit.add(whole, n))
            value = emit.select(emit.mask(emit.sub(limit, emit.shl(whole, I64(4)))), value, lowest)
            emit.write(value, at)
            return [emit.maximum(value, carried[0])]

        fetch(emit, streams, i)
        needed, whole = emit.vectors_of(limit), emit.ashr(limit, I64(4))
        with emit.if_else(masked) as (those, others):
            with those:
                hidden = emit.add(start_of(emit, op, frame), emit.mul(i, pitch))
                most, none = emit.loop(needed, [lowest, NO_LANES], with_mask)
                emit.write(most, greatest)
                emit.write(emit.zext(emit.any(none), I64), bad)
            with others:
                most = emit.loop(emit.sub(needed, whole), emit.loop(whole, [lowest], plain), last)[0]
                emit.write(most, greatest)
                emit.write(I64(0), bad)
        most = emit.folded(emit.read(greatest, FLOATS), emit.maximum)
        finite = emit.and_(emit.fcmp_ordered(">=", most, F32(-FINITE)), emit.fcmp_ordered("<=", most, F32(FINITE)))
        tops = emit.splat(most)
        codes = emit.add(target, emit.mul(i, far))

        def weigh(n: Value, carried: list[Value]) -> list[Value]:
            value = emit.read(emit.add(line, emit.shl(n, I64(6))), FLOATS)
            distance = emit.minimum(emit.fsub(tops, value), emit.splat(FARTHEST, FLOATS))
            weights = power_of_two(emit, distance)
            at = emit.add(codes, emit.shl(n, I64(4)))
            emit.write(emit.trunc(emit.lshr(weights, emit.splat(8, INTS)), BYTES), at)
            emit.write(emit.trunc(weights, BYTES), emit.add(at, apart))
            return [emit.add(carried[0], weights)]

        total = emit.loop(needed, [emit.splat(0, INTS)], weigh)[0]
        total = emit.native("llvm.vector.reduce.add.v16i32", I32, total)
        emit.write(emit.fdiv(F32(1), emit.sitofp(total, F32)), emit.add(shares, place))

        def unseen(n: Value) -> None:
            at = emit.add(codes, emit.shl(emit.add(needed, n), I64(4)))
            for start in (at, emit.add(at, apart)):
                emit.write(emit.splat(0, BYTES), start)

        emit.each(emit.sub(vectors, needed), unseen)
        return emit.or_(emit.zext(emit.not_(finite), I64), emit.read(bad, I64))

    return emit.any_of(count, row)


def streams_of(emit: Emitter, op: Value, frame: Value) -> list[list[Value]]:
    """For each of what is fetched: where its first row lies, how many there are, how far apart, and how many lines."""
    records, number = emit.field(op, Weights.fetched), emit.read(emit.field(op, OfHead.turn), I64, 8)
    streams = []
    for stream in range(STREAMS):
        record = emit.add(records, I64(8 * Ahead.SIZE * stream))
        slot, offsets, *rows = emit.fields(
            record, Ahead.slot, Ahead.offsets, Ahead.count, Ahead.pitch, Ahead.lines
        )
        following = emit.item(offsets, emit.add(number, I64(1)))
        streams.append([emit.add(slot_address(emit, frame, slot), following), *rows])
    return streams


def fetch(emit: Emitter, streams: list[list[Value]], i: Value) -> None:
    """Fetches the row ``i`` of each stream."""
    for start, rows, pitch, lines in streams:
        row = emit.add(start, emit.mul(i, pitch))

        def line(n: Value, row: Value = row) -> None:
            emit.prefetch(emit.add(row, emit.shl(n, I64(6))))

        emit.each(emit.select(emit.icmp_signed("<", i, rows), lines, I64(0)), line)


def power_of_two(emit: Emitter, distance: Value) -> Value:
    """65535 * 2^-distance as integers, of float32 from 0 to 24."""
    moved = emit.fadd(distance, emit.splat(MAGIC, FLOATS))
    number = emit.sub(emit.bitcast(moved, INTS), emit.splat(MAGIC_BITS, INTS))
    rest = emit.fsub(emit.fsub(moved, emit.splat(MAGIC, FLOATS)), distance)
    power = emit.splat(POWER[-1], FLOATS)
    for term in (*POWER[-2::-1], 1.0):
        power = emit.fadd(emit.fmul(power, rest), emit.splat(term, FLOATS))
    whole = emit.sub(emit.splat(float_bits(WEIGHTS), INTS), emit.shl(number, emit.splat(23, INTS)))
    return emit.rounded(emit.fmul(power, emit.bitcast(whole, FLOATS)))


def write_outputs(emit: Emitter, op: Value, frame: Value) -> None:
    target, (count, width, pitch) = start_of(emit, op, frame), emit.fields(op, OfHead.count, OfHead.width, OfHead.pitch)
    sums, near, apart, shares, scales, step = emit.fields(
        op, Outputs.sums, Outputs.sums_pitch, Outputs.apart, Outputs.shares, Outputs.scales, Outputs.step
    )

    def row(i: Value) -> None:
        high, y = emit.add(sums, emit.mul(i, near)), emit.add(target, emit.mul(i, pitch))
        share = emit.splat(emit.read(emit.add(shares, emit.shl(i, I64(2))), F32))

        def vector(n: Value) -> None:
            at = emit.shl(n, I64(6))
            first, second = (
                emit.sitofp(emit.read(emit.add(start, at), INTS), DOUBLES) for start in (high, emit.add(high, apart))
            )
            total = emit.fptrunc(emit.fadd(emit.fmul(first, emit.splat(256.0, DOUBLES)), second), FLOATS)
            value = emit.fmul(emit.fmul(total, share), emit.read(emit.add(scales, at), FLOATS))
            emit.write_some(value, emit.add(y, at), emit.mask(emit.sub(width, emit.shl(n, I64(4)))))

        emit.each(emit.vectors_of(width), vector)

    emit.each(count, row)
    turn = emit.field(op, OfHead.turn)
    emit.write(emit.add(emit.read(turn, I64, 8), step), turn, 8)


QUERIES = Kernel("attention_queries", Queries, write_queries)
KEYS = Kernel("attention_keys", Keys, write_keys)
FEATURES = Kernel("attention_features", Features, write_features)
WEIGHTS_OF = Kernel("attention_weights", Weights, write_weights)
OUTPUTS = Kernel("attention_outputs", Outputs, write_outputs)
