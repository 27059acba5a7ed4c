"""What each step of training computes of weights, activations and gradients (chapter 7): codes less the zero point, as
float32, in one pass over memory each.

The functions are called with numbers alone: addresses and counts first, float32 values behind them. They hold nothing
between two calls.
"""

import functools
import struct
from collections.abc import Callable

from llvmlite import ir

from .emitter import DOUBLES, F32, FLOATS, I1, I64, INTS, LANES, NO_LANES, Emitter, Value, function
from .steps import Call, Divided, Read, Write, bits, called, near, over, single

INFINITY = 0x7F800000  # the bits of a float32; those of numbers are smaller, but for the sign
MOST = 2.0**31 - 1  # of a bias in codes


def write_largest(emit: Emitter, x: Value, count: Value) -> Value:
    """The bits of the largest size of ``count`` floats."""
    size = emit.splat(0x7FFFFFFF, INTS)

    def body(read: Read, write: Write, carried: list[Value]) -> list[Value]:
        found = emit.and_(emit.bitcast(read(x), INTS), size)
        return [emit.select(emit.icmp_signed(">", found, carried[0]), found, carried[0])]

    vector = over(emit, count, [emit.splat(0, INTS)], body)[0]
    return emit.zext(emit.folded(vector, lambda a, b: emit.select(emit.icmp_signed(">", a, b), a, b)), I64)


def write_row(rule: str) -> Callable[..., Value]:
    """Writes what gives codes of ``count`` floats on one scale, and the sum of their sizes."""

    def write(emit: Emitter, x: Value, codes: Value, count: Value, scale: Value, low: Value, high: Value) -> Value:
        divided = Divided(emit, rule, *(single(number, emit) for number in (scale, low, high)))

        def body(read: Read, write: Write, carried: list[Value]) -> list[Value]:
            found = divided.codes(read(x))
            write(codes, found)
            whole = emit.fptosi(emit.magnitude(found), INTS)
            return [emit.add(carried[0], whole)]

        sums = over(emit, count, [emit.splat(0, INTS)], body)[0]
        return emit.folded(emit.zext(sums, ir.VectorType(I64, LANES)), emit.add)

    return write


def write_weight(rule: str) -> Callable[..., Value]:
    """Writes what ``weight`` is."""

    def write(
        emit: Emitter, weight: Value, codes: Value, scales: Value, outputs: Value, inputs: Value, apart: Value,
        given: Value, largest: Value, floor: Value, of_zeros: Value, low: Value, high: Value,
    ) -> Value:  # fmt: skip
        size = emit.shl(inputs, I64(2))
        each = emit.icmp_signed("!=", apart, I64(0))
        ready, wanted = (emit.icmp_signed("!=", number, I64(0)) for number in (given, codes))
        most = function(emit.module, "quantspec_largest", 2, write_largest)
        row = function(emit.module, f"quantspec_row_{rule}", 6, write_row(rule))

        def own_scale(found: Value, at: Value) -> None:
            """Writes the scale of weights whose largest has these bits."""
            top = single(found, emit)
            scale = emit.fdiv(top, single(largest, emit))
            least = emit.select(
                emit.fcmp_ordered("==", top, F32(0)), single(of_zeros, emit), single(floor, emit)
            )
            scale = emit.select(emit.fcmp_ordered("<", scale, single(floor, emit)), least, scale)
            with emit.if_then(emit.not_(ready)):
                emit.write(scale, at, 4)

        def measure(i: Value, carried: list[Value]) -> list[Value]:
            found = emit.call(most, [emit.add(weight, emit.mul(i, width)), count])
            own_scale(found, emit.add(scales, emit.shl(i, I64(2))))
            return [emit.select(emit.icmp_signed(">", found, carried[0]), found, carried[0])]

        # One scale for all is that of one long row.
        width = emit.select(each, size, emit.mul(size, outputs))
        count = emit.ashr(width, I64(2))
        top = emit.loop(emit.select(each, outputs, I64(1)), [I64(0)], measure)[0]

        def quantize(i: Value, carried: list[Value]) -> list[Value]:
            at = emit.mul(i, size)
            own = emit.add(scales, emit.select(each, emit.shl(i, I64(2)), I64(0)))
            scale = bits(emit.read(own, F32, 4), emit)
            total = emit.call(row, [emit.add(weight, at), emit.add(codes, at), inputs, scale, low, high])
            empty = emit.zext(emit.icmp_signed("==", total, I64(0)), I64)
            larger = emit.select(emit.icmp_signed(">", total, carried[0]), total, carried[0])
            return [larger, emit.or_(carried[1], empty)]

        finite = emit.icmp_signed("<", top, I64(INFINITY))
        rows = emit.select(emit.and_(finite, wanted), outputs, I64(0))
        total, empty = emit.loop(rows, [I64(0), I64(0)], quantize)
        return emit.select(finite, emit.or_(emit.shl(total, I64(1)), empty), I64(-1))

    return write


@functools.cache
def weight(rule: str) -> Call:
    """``(weight, codes, scales, outputs, inputs, apart, given, largest, floor, of_zeros, low, high)``: codes of a
    weight [outputs, inputs] by a rule, on scales of its own, which it writes, or that are ``given``; one for each
    output, or, where not ``apart``, one for all. ``codes`` may be 0.

    A scale is the largest size divided by ``largest``, at least ``floor``, and ``of_zeros`` where all are 0. Gives -1
    for what is not finite; else twice the largest sum of sizes of codes that an output has, and 1 where one has none
    but zeros.
    """
    return called(f"training_weight_{rule}", write_weight(rule), 7, 5, lambda emit, *n: emit.mul(n[3], n[4]))


def write_bias(
    emit: Emitter, bias: Value, scales: Value, units: Value, codes: Value, outputs: Value, x_scale: Value,
    y_scale: Value,
) -> Value:  # fmt: skip
    """Codes of a bias in units of x_scale * scale (INT-BIAS), and what accumulators are multiplied by, scale * x_scale
    / y_scale in float32.

    Gives four times the largest size of a code; 2 where a scale is too small for its bias (STA-WEIGHT-BIAS), and 1
    where a quotient may lie beyond a tie or is a NaN.
    """
    of_x, of_y = (emit.splat(single(number, emit)) for number in (x_scale, y_scale))
    wide = emit.fpext(of_x, DOUBLES)
    room = emit.fmul(wide, emit.splat(2.0**30, DOUBLES))
    end, zero = emit.splat(MOST, DOUBLES), emit.splat(0.0, DOUBLES)
    none = emit.splat_to(emit.icmp_signed("==", bias, I64(0)), ir.VectorType(I1, LANES))
    source = emit.select(emit.icmp_signed("==", bias, I64(0)), scales, bias)

    def body(read: Read, write: Write, carried: list[Value]) -> list[Value]:
        scale = read(scales)
        value, step = emit.select(none, zero, emit.fpext(read(source), DOUBLES)), emit.fpext(scale, DOUBLES)
        write(units, emit.fdiv(emit.fmul(scale, of_x), of_y))
        steps = near(emit, emit.fdiv(value, emit.fmul(wide, step)), emit.fsub(zero, end), end)
        nearest = emit.integral(steps)
        write(codes, emit.fptrunc(nearest, FLOATS))
        unsure = emit.fcmp_unordered("==", emit.magnitude(emit.fsub(steps, nearest)), emit.splat(0.5, DOUBLES))
        few = emit.fcmp_ordered(">", emit.fdiv(emit.magnitude(value), room), step)
        size = emit.magnitude(nearest)
        larger = emit.select(emit.fcmp_ordered(">", size, carried[0]), size, carried[0])
        return [larger, emit.or_(carried[1], few), emit.or_(carried[2], unsure)]

    sizes, few, unsure = over(emit, outputs, [zero, NO_LANES, NO_LANES], body)
    largest = emit.fptosi(emit.folded(sizes, lambda a, b: emit.select(emit.fcmp_ordered(">", a, b), a, b)), I64)
    flags = [emit.zext(emit.any(mask), I64) for mask in (few, unsure)]
    return emit.or_(emit.shl(largest, I64(2)), emit.or_(emit.shl(flags[0], I64(1)), flags[1]))


def write_layer(rule: str) -> Callable[..., Value]:
    """Writes what ``layer`` is."""

    def write(
        emit: Emitter, weight: Value, bias: Value, codes: Value, numbers: Value, outputs: Value, inputs: Value,
        apart: Value, given: Value, x_most: Value, *floats: Value,
    ) -> Value:  # fmt: skip
        *of_weight, x_scale, y_scale = floats
        coded = function(emit.module, f"quantspec_weight_{rule}", 12, write_weight(rule))
        biased = function(emit.module, "quantspec_bias", 7, write_bias)
        found = emit.call(coded, [weight, codes, numbers, outputs, inputs, apart, given, *of_weight])
        first = emit.read(numbers, F32, 4)
        shared = emit.select(emit.icmp_signed("==", apart, I64(0)), outputs, I64(0))
        emit.each(shared, lambda i: emit.write(first, emit.add(numbers, emit.shl(i, I64(2))), 4))
        row = emit.shl(outputs, I64(2))
        units, bias_codes = emit.add(numbers, row), emit.add(numbers, emit.shl(row, I64(1)))
        added = emit.call(biased, [bias, numbers, units, bias_codes, outputs, x_scale, y_scale])
        most = emit.add(emit.mul(emit.ashr(found, I64(1)), x_most), emit.ashr(added, I64(2)))
        flags = emit.or_(emit.shl(emit.and_(found, I64(1)), I64(2)), emit.and_(added, I64(3)))
        packed = emit.or_(emit.shl(most, I64(3)), flags)
        return emit.select(emit.icmp_signed("<", found, I64(0)), I64(-1), packed)

    return write


@functools.cache
def layer(rule: str) -> Call:
    """``(weight, bias, codes, numbers, outputs, inputs, apart, given, x_most, largest, floor, of_zeros, low, high,
    x_scale, y_scale)``: what ``weight`` gives, and a bias in codes. ``numbers``: a scale for each output, then as many
    units, what accumulators are multiplied by, then the codes of the bias; ``bias`` is 0 where there is none.
    ``x_most``: the largest size of a code of the input.

    Gives -1 for weights that are not finite; else eight times the largest size of an accumulator with its bias; 4 where
    an output has no codes but zeros, 2 where a scale is too small for its bias (STA-WEIGHT-BIAS), and 1 where a code of
    the bias is not sure.
    """
    return called(f"training_layer_{rule}", write_layer(rule), 9, 7, lambda emit, *n: emit.mul(n[4], n[5]))


def ends(emit: Emitter, found: list[Value]) -> Value:
    """The smallest and the largest of vectors of both, as two float32 in one int64, or NaN where any was."""
    low = emit.folded(found[0], emit.minimum)
    high = emit.folded(found[1], emit.maximum)
    nan, any_nan = F32(float("nan")), emit.any(found[2])
    low, high = emit.select(any_nan, nan, low), emit.select(any_nan, nan, high)
    return emit.or_(bits(low, emit), emit.shl(bits(high, emit), I64(32)))


def no_ends(emit: Emitter) -> list[Value]:
    return [emit.splat(float("inf"), FLOATS), emit.splat(float("-inf"), FLOATS), NO_LANES]


def seen(emit: Emitter, x: Value, carried: list[Value]) -> list[Value]:
    """The smallest and largest so far, and where a NaN was."""
    low, high, nan = carried
    return [emit.minimum(x, low), emit.maximum(x, high), emit.or_(nan, emit.fcmp_unordered("uno", x, x))]


def write_activation(rule: str) -> Callable[..., Value]:
    def write(emit: Emitter, x: Value, codes: Value, count: Value, scale: Value, low: Value, high: Value) -> Value:
        divided = Divided(emit, rule, *(single(number, emit) for number in (scale, low, high)))

        def body(read: Read, write: Write, carried: list[Value]) -> list[Value]:
            values = read(x)
            write(codes, divided.codes(values))
            return seen(emit, values, carried)

        return ends(emit, over(emit, count, no_ends(emit), body))

    return write


@functools.cache
def activation(rule: str) -> Call:
    """``(x, codes, count, scale, low, high)``: codes of floats on one scale by a rule; gives the ends of the floats, as
    ``unpacked`` reads them."""
    return called(f"training_activation_{rule}", write_activation(rule), 3, 3, lambda emit, *n: n[2])


def stepped(
    emit: Emitter, source: Value, target: Value, unit: Callable[[Read], Value], first: Value, last: Value
) -> Callable[[Read, Write, list[Value]], list[Value]]:
    """What goes over accumulators: times a unit they are steps, in their place, whose codes go to ``target``."""

    def body(read: Read, write: Write, carried: list[Value]) -> list[Value]:
        steps = emit.fmul(read(source), unit(read))
        write(source, steps)
        write(target, near(emit, emit.integral(steps), first, last))
        return seen(emit, steps, carried)

    return body


def write_rows(
    emit: Emitter, total: Value, codes: Value, units: Value, rows: Value, outputs: Value, low: Value, high: Value
) -> Value:
    first, last = (emit.splat(single(number, emit)) for number in (low, high))
    size = emit.shl(outputs, I64(2))

    def row(i: Value, carried: list[Value]) -> list[Value]:
        source, target = (emit.add(base, emit.mul(i, size)) for base in (total, codes))

        return over(emit, outputs, carried, stepped(emit, source, target, lambda read: read(units), first, last))

    return ends(emit, emit.loop(rows, no_ends(emit), row))


def write_planes(
    emit: Emitter, total: Value, codes: Value, units: Value, images: Value, outputs: Value, positions: Value,
    low: Value, high: Value,
) -> Value:  # fmt: skip
    first, last = (emit.splat(single(number, emit)) for number in (low, high))
    size = emit.shl(positions, I64(2))

    def plane(i: Value, carried: list[Value]) -> list[Value]:
        source, target = (emit.add(base, emit.mul(i, size)) for base in (total, codes))
        own = emit.add(units, emit.shl(emit.srem(i, outputs), I64(2)))
        unit = emit.splat(emit.read(own, F32, 4))

        return over(emit, positions, carried, stepped(emit, source, target, lambda read: unit, first, last))

    return ends(emit, emit.loop(emit.mul(images, outputs), no_ends(emit), plane))


@functools.cache
def rows() -> Call:
    """``(total, codes, units, rows, outputs, low, high)``: steps of accumulators [rows, outputs], in their place, and
    the codes of these; gives the ends of steps, as ``unpacked`` reads them."""
    return called("training_rows", write_rows, 5, 2, lambda emit, *n: emit.mul(n[3], n[4]))


@functools.cache
def planes() -> Call:
    """``(total, codes, units, images, outputs, positions, low, high)``: as ``rows`` for accumulators [images, outputs,
    positions]."""
    return called("training_planes", write_planes, 6, 2, lambda emit, *n: emit.mul(n[3], emit.mul(n[4], n[5])))


def write_gradients(
    emit: Emitter, gradient: Value, steps: Value, scales: Value, of_x: Value, of_weight: Value, of_bias: Value,
    rows: Value, outputs: Value, x_scale: Value, low: Value, high: Value,
) -> Value:  # fmt: skip
    unit, first, last = (emit.splat(single(number, emit)) for number in (x_scale, low, high))
    size = emit.shl(outputs, I64(2))

    def columns(read: Read, write: Write, carried: list[Value]) -> list[Value]:
        scale = read(scales)

        def row(i: Value, carried: list[Value]) -> list[Value]:
            at = emit.mul(i, size)
            place = read(emit.add(steps, at))
            between = emit.and_(emit.fcmp_ordered(">", place, first), emit.fcmp_ordered("<", place, last))
            passed = emit.select(between, read(emit.add(gradient, at)), emit.splat(0.0, FLOATS))
            write(emit.add(of_x, at), emit.fmul(passed, scale))
            write(emit.add(of_weight, at), emit.fmul(passed, unit))
            return [emit.fadd(carried[0], emit.fpext(passed, DOUBLES))]

        total = emit.loop(rows, [emit.splat(0.0, DOUBLES)], row)[0]
        write(of_bias, emit.fptrunc(total, FLOATS))
        return carried

    over(emit, outputs, [], columns)
    return I64(0)


@functools.cache
def gradients() -> Call:
    """``(gradient, steps, scales, of_x, of_weight, of_bias, rows, outputs, x_scale, low, high)``: the gradient [rows,
    outputs] where steps lie between both ends and 0 elsewhere, times the scales of outputs, times the scale of the
    input, and summed over rows in float64."""
    return called("training_gradients", write_gradients, 8, 3, lambda emit, *n: emit.mul(n[6], n[7]))


def unpacked(found: int) -> tuple[float, float]:
    """Both ends that a function gave."""
    low, high = struct.unpack("<ff", found.to_bytes(8, "little", signed=True))
    return low, high
