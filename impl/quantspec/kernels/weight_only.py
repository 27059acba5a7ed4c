"""Linear layers whose weights alone are codes (DYN-WEIGHT-ONLY), by products of codes.

A row of floats is a row of whole numbers of 48 bits times a power of two, as exactly as it reaches: what is below half
a unit is 2^-48 of the row's largest value at most, and nothing in values above 2^-24 of it. Each of the six bytes of
these numbers is a row of codes for the product of every other layer, whose sums are exact; six of them, weighed by
powers of 256, are the row's exact sum. That times the scale plus the bias is computed in float64 with the rounding
errors beside it, so that the one rounding to float32 is right. Where it cannot be told to be, which hardly ever
happens, the kernel says so, as it does for values that are no numbers, and the reference has the last word.

The two lowest bytes are 0 in all values but those below 2^-7 of the row's largest one, of which rows hold few as a
rule. Then these bytes are multiplied in those steps only, while a panel's weights are at hand.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir

from . import gemm, grouped
from .dynamic_gemm import RowsOfFloats
from .emitter import BYTES, DOUBLES, F32, F64, FLOATS, I32, I64, INTS, LANES, NO_LANES, Body, Emitter, Value, function
from .frame import slot_or
from .gemm import accumulate, last_mask
from .jit import Kernel
from .memory import SLACK, row_pitch
from .packed import Packed
from .product import PANEL, Product, ProductInstruction
from .records import Address, Instruction, Integer, Nested, Record, Slot

DIGITS = 6  # bytes of a whole number
LOW = 2  # of them, the lowest, which are 0 in most values
HIGH = DIGITS - LOW
BITS = 8 * DIGITS
FEW = 4  # one step in so many at most has low bytes where only those that have are multiplied
ALWAYS, AND_LISTED, WHERE_MANY = range(3)  # the kinds of products
LONGS = ir.VectorType(I64, LANES)
TO_INTEGER = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer, which the low bits then hold
INTEGER_BITS = 0x4338000000000000
LARGEST_WEIGHT = 128
UNIT, LOST = 0, 8  # of a row: its unit, and a bound of what the rest below it adds to a sum, in units; bytes apart
ROW_BYTES = 16


class Digits(RowsOfFloats):
    """Rows of floats to rows of codes, first of all rows the high bytes, of each from the lowest up, then the low ones.

    Their units go to ``units``; to ``lists``, ``list_pitch`` bytes apart, for each row in how many steps there are low
    bytes other than 0, and in which: int32.
    """

    units: Address
    lists: Address
    list_pitch: Integer


class LowBytes(Record):
    """The low bytes of ``rows`` floats' rows and what ``Digits`` says of them: its ``lists``.

    In those of the steps that are listed, rows from ``first`` to ``last`` are multiplied: ``LOW`` rows of codes of each
    from ``x`` on, ``pitch`` bytes apart, to rows of sums from ``sums`` on.
    """

    lists: Address
    list_pitch: Integer
    rows: Integer
    steps: Integer
    x: Address
    pitch: Integer
    sums: Address
    first: Integer
    last: Integer


class ProductSums(ProductInstruction):
    """A product whose outputs are the sums themselves, rows of them ``y_pitch`` bytes apart.

    ``kind``: ``AND_LISTED`` multiplies what ``low`` lists besides, where that is little; only where it is much,
    ``WHERE_MANY`` multiplies anything.
    """

    y_pitch: Integer
    kind: Integer = Integer()
    low: Nested[LowBytes] = Nested(LowBytes)


class Weigh(Instruction):
    """Sums of six rows of codes each to ``rows`` rows of ``outputs`` floats.

    Sums lie as ``Digits`` has codes. ``weights``: the sum of each output's weights. Rows of outputs are ``y_pitch``
    bytes apart; they begin at ``y``, or, where ``slot`` is not negative, ``y_ahead`` bytes behind the start of that
    output.
    """

    slot: Slot
    y: Address
    sums: Address
    units: Address
    factor: Address
    bias: Address
    weights: Address
    rows: Integer
    outputs: Integer
    sums_pitch: Integer
    y_pitch: Integer
    relu: Integer
    y_ahead: Integer = Integer()


def whole(number: int) -> Value:
    """The same integer in all lanes of 64 bits."""
    return ir.Constant(LONGS, [number] * LANES)


def write_digits(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when a value is no finite number."""
    slot, inside, target, count, width, near, far, units, lists, list_pitch = emit.fields(
        op, Digits.slot, Digits.source, Digits.target, Digits.count, Digits.width, Digits.source_pitch,
        Digits.target_pitch, Digits.units, Digits.lists, Digits.list_pitch,
    )  # fmt: skip
    source = slot_or(emit, frame, slot, inside)
    vectors = emit.vectors_of(width)
    zeros = emit.splat(0.0, FLOATS)

    def row(i: Value) -> Value:
        x, rows = emit.add(source, emit.mul(i, near)), rows_of(emit, target, i, count, far)
        entries = emit.add(lists, emit.mul(i, list_pitch))

        def values(n: Value) -> Value:
            mask = emit.mask(emit.sub(width, emit.shl(n, I64(4))))
            return emit.read_some(emit.add(x, emit.shl(n, I64(6))), FLOATS, mask, zeros)

        largest = emit.native("llvm.vector.reduce.smax.v16i32", I32, emit.largest_size(vectors, values))
        # Below 2^(exponent - 126) is every value, subnormal or not; times 2^(173 - exponent) that is 2^47.
        exponent = emit.zext(emit.lshr(largest, I32(23)), I64)
        up = emit.bitcast(emit.shl(emit.sub(I64(BITS - 1 + 126 + 1023), exponent), I64(52)), F64)
        down = emit.bitcast(emit.shl(emit.sub(emit.add(exponent, I64(1023)), I64(BITS - 1 + 126)), I64(52)), F64)
        ups, to_integer = emit.splat(up), emit.splat(TO_INTEGER, DOUBLES)

        def split(n: Value, carried: list[Value]) -> list[Value]:
            steps = emit.fmul(emit.fpext(values(n), DOUBLES), ups)  # a power of two: exact
            moved = emit.fadd(steps, to_integer)
            rest = emit.fsub(steps, emit.fsub(moved, to_integer))
            number = emit.sub(emit.bitcast(moved, LONGS), whole(INTEGER_BITS - 2 ** (BITS - 1)))
            for digit, y in enumerate(rows):
                emit.write(emit.trunc(emit.lshr(number, whole(8 * digit)), BYTES), emit.add(y, emit.shl(n, I64(4))))
            low = emit.icmp_signed("!=", emit.and_(number, whole(2 ** (8 * LOW) - 1)), whole(0))
            lanes, found = emit.zext(emit.bitcast(low, ir.IntType(LANES)), I64), carried[1]
            for four in range(LANES // 4):
                # Written behind the others in any case, and kept by counting it.
                step = emit.add(emit.shl(n, I64(2)), I64(four))
                emit.write(emit.trunc(step, I32), emit.add(entries, emit.shl(emit.add(found, I64(1)), I64(2))))
                some = emit.icmp_signed("!=", emit.and_(lanes, I64(15 << 4 * four)), I64(0))
                found = emit.add(found, emit.zext(some, I64))
            return [emit.fadd(carried[0], emit.magnitude(rest)), found]

        rests, found = emit.loop(vectors, [emit.splat(0.0, DOUBLES), I64(0)], split)
        emit.write(emit.trunc(found, I32), entries)
        lost = F64(0)
        for lane in range(LANES):
            lost = emit.fadd(lost, emit.extract_element(rests, I32(lane)))
        unit = emit.add(units, emit.mul(i, I64(ROW_BYTES)))
        emit.write(down, emit.add(unit, I64(UNIT)))
        emit.write(emit.fmul(lost, F64(LARGEST_WEIGHT * (1 + 2.0**-20))), emit.add(unit, I64(LOST)))
        return emit.zext(emit.icmp_signed(">=", largest, I32(0x7F800000)), I64)

    return emit.any_of(count, row)


def rows_of(emit: Emitter, start: Value, row: Value, rows: Value, pitch: Value) -> list[Value]:
    """Where the rows of a row's bytes begin, from the lowest up, among those of so many rows."""
    low = emit.add(emit.mul(rows, I64(HIGH)), emit.mul(row, I64(LOW)))
    numbers = [emit.add(low, I64(n)) for n in range(LOW)]
    numbers += [emit.add(emit.mul(row, I64(HIGH)), I64(n)) for n in range(HIGH)]
    return [emit.add(start, emit.mul(number, pitch)) for number in numbers]


def sums_tile(rows: int, blocks: int, half: bool) -> Body:
    """Writes the function that computes a tile of sums."""

    def write(emit: Emitter, op: Value, row: Value, panel: Value, given: Value | None = None) -> None:
        product = emit.place(op, ProductSums.product)
        start = [emit.splat(0, INTS)] * (rows * blocks)
        totals = accumulate(emit, product, row, panel, rows, blocks, start, half, given)
        mask, pitch = last_mask(emit, product, panel, blocks), emit.field(op, ProductSums.y_pitch)
        target = emit.add(emit.field(product, Product.y), emit.mul(panel, I64(4 * LANES * PANEL)))
        for i in range(rows):
            y = emit.add(target, emit.mul(emit.add(row, I64(i)), pitch))
            put_sums(emit, totals[i * blocks : (i + 1) * blocks], y, mask)

    return write


def lists_much(emit: Emitter, op: Value) -> Value:
    """Whether more steps have low bytes than are multiplied by themselves."""
    low = emit.place(op, ProductSums.low)
    lists, pitch, rows, steps = emit.fields(low, LowBytes.lists, LowBytes.list_pitch, LowBytes.rows, LowBytes.steps)

    def count(i: Value, carried: list[Value]) -> list[Value]:
        return [emit.add(carried[0], emit.int_at(emit.add(lists, emit.mul(i, pitch)), I64(0)))]

    found = emit.loop(rows, [I64(0)], count)[0]
    return emit.icmp_signed(">", emit.mul(found, I64(FEW)), emit.mul(rows, steps))


def listed_steps(blocks: int) -> Body:
    """Writes the function that multiplies the low bytes of the listed steps by a panel."""

    def write(emit: Emitter, op: Value, panel: Value) -> None:
        product, low = emit.place(op, ProductSums.product), emit.place(op, ProductSums.low)
        lists, list_pitch, x, pitch, sums, first, last = emit.fields(
            low, LowBytes.lists, LowBytes.list_pitch, LowBytes.x, LowBytes.pitch, LowBytes.sums, LowBytes.first,
            LowBytes.last,
        )  # fmt: skip
        y_pitch, mask = emit.field(op, ProductSums.y_pitch), last_mask(emit, product, panel, blocks)
        panel_bytes = emit.mul(emit.field(product, Product.steps), I64(64 * PANEL))
        weight = emit.add(emit.field(product, Product.weight), emit.mul(panel, panel_bytes))
        target = emit.add(sums, emit.mul(panel, I64(4 * LANES * PANEL)))

        def row(n: Value) -> None:
            i = emit.add(first, n)
            entries, number = emit.add(lists, emit.mul(i, list_pitch)), emit.mul(i, I64(LOW))
            codes = [emit.add(x, emit.mul(emit.add(number, I64(digit)), pitch)) for digit in range(LOW)]

            def step(n: Value, totals: list[Value]) -> list[Value]:
                k = emit.int_at(entries, emit.add(n, I64(1)))
                w = emit.add(weight, emit.mul(k, I64(64 * blocks)))
                weights = [emit.read(emit.add(w, I64(64 * j)), INTS, 64) for j in range(blocks)]
                fours = [emit.splat_to(emit.read(emit.add(base, emit.shl(k, I64(2))), I32), INTS) for base in codes]
                pairs = [(four, own) for four in fours for own in weights]
                return [emit.dot(total, *pair) for total, pair in zip(totals, pairs)]

            totals = emit.loop(emit.int_at(entries, I64(0)), [emit.splat(0, INTS)] * (LOW * blocks), step)
            for digit in range(LOW):
                y = emit.add(target, emit.mul(emit.add(number, I64(digit)), y_pitch))
                put_sums(emit, totals[digit * blocks : (digit + 1) * blocks], y, mask)

        emit.each(emit.sub(last, first), row)

    return write


def put_sums(emit: Emitter, totals: list[Value], y: Value, mask: Value) -> None:
    """Writes a row of sums; of the last block the lanes of ``mask``."""
    for j, total in enumerate(totals[:-1]):
        emit.write(total, emit.add(y, I64(64 * j)))
    emit.write_some(totals[-1], emit.add(y, I64(64 * (len(totals) - 1))), mask)


def multiply_listed(emit: Emitter, op: Value, panel: Value, blocks: int) -> None:
    """What comes behind a panel: the low bytes of the listed steps, where these are few."""
    run = function(emit.module, f"quantspec_weight_only_listed_{blocks}", 2, listed_steps(blocks))
    listed = emit.icmp_signed("==", emit.field(op, ProductSums.kind), I64(AND_LISTED))
    with emit.if_then(listed), emit.if_then(emit.not_(lists_much(emit, op))):
        emit.call(run, [op, panel])


def write_product(emit: Emitter, op: Value, frame: Value) -> None:
    """A product of one of the kinds."""
    where_many = emit.icmp_signed("==", emit.field(op, ProductSums.kind), I64(WHERE_MANY))
    idle = emit.if_any(where_many, lambda: emit.zext(emit.not_(lists_much(emit, op)), I64))
    with emit.if_then(emit.icmp_signed("==", idle, I64(0))):
        gemm.product("weight_only", sums_tile, multiply_listed)(emit, op, frame)


def added(emit: Emitter, a: Value, b: Value) -> tuple[Value, Value]:
    """The sum of float64 vectors, and what rounding took from it: both exact together."""
    total = emit.fadd(a, b)
    part = emit.fsub(total, a)
    return total, emit.fadd(emit.fsub(a, emit.fsub(total, part)), emit.fsub(b, part))


def remainder(emit: Emitter, a: Value, b: Value, product: Value) -> Value:
    """What rounding took from the product of two float64 vectors."""
    return emit.native("llvm.fma.v16f64", DOUBLES, a, b, emit.fneg(product))


def rounded_once(emit: Emitter, near: Value, rest: Value, off: Value) -> tuple[Value, Value]:
    """Float32 of ``near + rest``, float64 vectors of which the second is at most half a unit of the first's last place
    and is off by ``off``; and where another float32 may be the nearest one.

    A float64 that is not exact is made odd, towards the rest: then it is never a tie, and on the same side of one.
    """
    nothing, one = emit.splat(0.0, DOUBLES), whole(1)
    bits, exact = emit.bitcast(near, LONGS), emit.fcmp_ordered("==", rest, nothing)
    even = emit.icmp_signed("==", emit.and_(bits, one), whole(0))
    outwards = emit.icmp_signed(">=", emit.xor(bits, emit.bitcast(rest, LONGS)), whole(0))  # of the same sign
    odd = emit.add(bits, emit.select(outwards, one, whole(-1)))
    value = emit.bitcast(emit.select(emit.and_(even, emit.not_(exact)), odd, bits), DOUBLES)
    around = emit.fadd(emit.fmul(emit.magnitude(value), emit.splat(2.0**-50, DOUBLES)), off)
    low, high = (emit.fptrunc(make(value, around), FLOATS) for make in (emit.fsub, emit.fadd))
    wide = emit.fcmp_unordered("!=", off, nothing)
    return emit.fptrunc(value, FLOATS), emit.and_(wide, emit.fcmp_unordered("!=", low, high))


def write_weigh(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when a float cannot be told to be the nearest."""
    slot, inside, ahead, sums, units, factor, bias, weights, rows, outputs, near, far = emit.fields(
        op, Weigh.slot, Weigh.y, Weigh.y_ahead, Weigh.sums, Weigh.units, Weigh.factor, Weigh.bias, Weigh.weights,
        Weigh.rows, Weigh.outputs, Weigh.sums_pitch, Weigh.y_pitch,
    )  # fmt: skip
    target = emit.add(slot_or(emit, frame, slot, inside), ahead)
    least = emit.splat(emit.select(emit.flag(op, Weigh.relu), F32(0), F32(float("-inf"))))
    blocks = emit.vectors_of(outputs)
    zeros = emit.splat(0, INTS)

    def row(i: Value, carried: list[Value]) -> list[Value]:
        record = emit.add(units, emit.mul(i, I64(ROW_BYTES)))
        unit, lost = (emit.splat(emit.read(emit.add(record, I64(at)), F64)) for at in (UNIT, LOST))
        sources = rows_of(emit, sums, i, rows, near)
        y = emit.add(target, emit.mul(i, far))

        def block(n: Value, carried: list[Value]) -> list[Value]:
            at, mask = emit.shl(n, I64(6)), emit.mask(emit.sub(outputs, emit.shl(n, I64(4))))

            def ints(base: Value) -> Value:
                return emit.sitofp(emit.read_some(emit.add(base, at), INTS, mask, zeros), DOUBLES)

            def floats(base: Value) -> Value:
                return emit.fpext(emit.read(emit.add(base, at), FLOATS), DOUBLES)

            def power(exponent: int) -> Value:
                return emit.splat(2.0**exponent, DOUBLES)

            digits = [ints(source) for source in sources]
            # Whole numbers below 2^53: exact. Digits are those of a number that 2^47 was added to.
            halves = []
            for low, middle, high in (digits[:3], digits[3:]):
                halves.append(emit.fadd(low, emit.fadd(emit.fmul(middle, power(8)), emit.fmul(high, power(16)))))
            upper = emit.fsub(halves[1], emit.fmul(ints(weights), power(BITS // 2 - 1)))
            total, total_rest = added(emit, emit.fmul(upper, power(BITS // 2)), halves[0])
            scale = emit.fmul(floats(factor), unit)
            product = emit.fmul(total, scale)
            product_rest = remainder(emit, total, scale, product)
            value, value_rest = added(emit, product, floats(bias))
            third = emit.fmul(total_rest, scale)
            rest, lost_first = added(emit, product_rest, third)
            rest, lost_second = added(emit, value_rest, rest)
            lost_third = remainder(emit, total_rest, scale, third)
            value, rest = added(emit, value, rest)
            # Whether the rest is known well enough to tell on which side of the value it is.
            sizes = [emit.magnitude(lost) for lost in (lost_first, lost_second, lost_third)]
            off = emit.fadd(sizes[0], emit.fadd(sizes[1], sizes[2]))
            unknown = emit.fcmp_ordered("<", emit.magnitude(rest), emit.fmul(off, power(1)))
            result, doubtful = rounded_once(emit, value, rest, emit.fmul(lost, scale))
            result = emit.select(emit.fcmp_ordered("<", result, least), least, result)
            emit.write_some(result, emit.add(y, at), mask)
            return [emit.or_(carried[0], emit.and_(mask, emit.or_(unknown, doubtful)))]

        return emit.loop(blocks, carried, block)

    return emit.zext(emit.any(emit.loop(rows, [NO_LANES], row)[0]), I64)


DIGITS_OF = Kernel("weight_only_digits", Digits, write_digits)
PRODUCT = Kernel("weight_only_product", ProductSums, write_product)
WEIGH = Kernel("weight_only_weigh", Weigh, write_weigh)


def layer(
    packed: Packed, rows: int, inputs: int, keep: Callable[[np.ndarray], int], room: Callable[[int], int], *, relu: bool
) -> tuple[Digits, list[ProductSums], Weigh]:
    """The instructions of a layer, but for where its input and output are.

    ``keep`` gives the address of an array that lives as long, ``room`` that of so many bytes for what is between.
    """
    pitch, sums_pitch, list_pitch = row_pitch(inputs), row_pitch(4 * LANES * packed.blocks), row_pitch(inputs + 64)
    high_rows, low_rows, steps = HIGH * rows, LOW * rows, packed.run_steps
    codes_bytes = high_rows * pitch + grouped.sixteens_bytes(low_rows, pitch)
    sums_bytes = DIGITS * rows * sums_pitch + SLACK
    codes = room(codes_bytes + sums_bytes + rows * (list_pitch + ROW_BYTES))
    sums = codes + codes_bytes
    lists = sums + sums_bytes
    units, low, low_sums = lists + rows * list_pitch, codes + high_rows * pitch, sums + high_rows * sums_pitch
    bias, factor, weights, weight = (
        keep(array) for array in (packed.bias, packed.factor, packed.sums, packed.weight)
    )  # fmt: skip
    digits = Digits(
        slot=-1, source=0, target=codes, count=rows, width=inputs, source_pitch=4 * inputs, target_pitch=pitch,
        units=units, lists=lists, list_pitch=list_pitch,
    )  # fmt: skip

    def product(x: int, y: int, count: int, kind: int) -> ProductSums:
        inner = Product(
            x=x, y=y, weight=weight, bias=bias, factor=factor, sums=weights, outputs=packed.outputs,
            blocks=packed.blocks, steps=steps, chunk=gemm.chunk_rows(count, inputs),
            **grouped.rows_apart(keep, count, pitch, steps, packed.blocks),
        )  # fmt: skip
        listed = LowBytes(
            lists=lists, list_pitch=list_pitch, rows=rows, steps=steps, x=low, pitch=pitch, sums=low_sums, first=0,
            last=rows,
        )  # fmt: skip
        return ProductSums(product=inner, y_pitch=sums_pitch, kind=kind, low=listed)

    products = [product(codes, sums, high_rows, AND_LISTED), product(low, low_sums, low_rows, WHERE_MANY)]
    return digits, products, Weigh(
        slot=-1, y=0, sums=sums, units=units, factor=factor, bias=bias, weights=weights, rows=rows,
        outputs=packed.outputs, sums_pitch=sums_pitch, y_pitch=4 * packed.outputs, relu=relu,
    )  # fmt: skip
