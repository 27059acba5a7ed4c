"""Quantize, dequantize, and what goes from code to code by a table.

``quantize`` divides, but without a division wherever it can. The product of a value with the float32 nearest to 1 /
scale, and half a step, is computed with sixteen bits for the fraction. It is off by at most one and a half units of
them below 2^24 units: one for the reciprocal, whose error is at most a 2^-24th of it, and one half for each rounding
that there is. A quotient that IEEE 754 rounds to a tie is half a unit from it at most. So what is three units from a
tie between two codes or farther has its code in the upper bits; where anything is nearer, the sixteen values around
it are divided. So is what has no reciprocal to go by, and so are the last values of a row.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir

from . import cpu
from .emitter import BYTES, F32, FLOATS, I16, I32, I64, INTS, LANES, NO_LANES, Emitter, Value, function
from .frame import slot_address
from .jit import Kernel
from .records import Address, Grid, Instruction, Integer, Nested, Slot

SAFE_SCALES = 2.0**-60, 2.0**60
UNROLLED = 4
BLOCK = LANES * UNROLLED
FRACTION = 2.0**16  # units of a step
CLOSE = 3  # units from a tie
PAST_CACHE = 2**21  # floats
# What goes over a row: of a grid, where floats or codes come from, where they go, how many.
Run = Callable[[Emitter, Value, Value, Value, Value], Value]


class Rows(Instruction):
    """``count`` rows of ``width`` values, whose starts are as many bytes apart as the pitches say."""

    count: Integer
    width: Integer
    source_pitch: Integer
    target_pitch: Integer
    grid: Nested[Grid]


class QuantizeRows(Rows):
    """From an input of the program, ``ahead`` bytes behind its start."""

    source: Slot
    target: Address
    ahead: Integer = Integer()


class DequantizeRows(Rows):
    """To an output of the program, ``ahead`` bytes behind its start."""

    source: Address
    target: Slot
    ahead: Integer = Integer()


def grid_record(scale: float, zero: int, first: int, last: int) -> Grid:
    """A grid as kernels read it, by its scale, zero point, first and last code."""
    step = np.float32(scale)
    reciprocal = SAFE_SCALES[0] <= step <= SAFE_SCALES[1] and first in (0, -128)
    with np.errstate(over="ignore"):
        low, high = (step * np.float32(end - zero) for end in (first, last))
    return Grid(scale=step, inverse=np.float32(1) / step if reciprocal else 0, low=low, high=high, zero=zero)


def run_divide(emit: Emitter, grid: Value, source: Value, target: Value, count: Value) -> Value:
    """``count`` floats at ``source`` to codes at ``target`` by divisions as IEEE 754 has them (DIA-QUANTIZE,
    ``divide``).

    1 when there was a NaN, otherwise 0.
    """
    scale, low, high, zero = emit.splat_fields(grid, Grid.scale, Grid.low, Grid.high, Grid.zero)

    def codes(x: Value) -> Value:
        x = emit.minimum(emit.maximum(x, low), high)
        return emit.trunc(emit.add(emit.rounded(emit.fdiv(x, scale)), zero), BYTES)

    return by_vectors(emit, codes, source, target, count)


def by_vectors(emit: Emitter, codes: Callable[[Value], Value], source: Value, target: Value, count: Value) -> Value:
    """Sixteen floats at a time, the last of them fewer, through ``codes``; 1 when there was a NaN, otherwise 0."""

    def some(index: Value, carried: list[Value]) -> list[Value]:
        at = emit.mul(index, I64(LANES))
        mask = emit.mask(emit.sub(count, at))
        x = emit.read_some(emit.add(source, emit.shl(at, I64(2))), FLOATS, mask, emit.splat(0.0, FLOATS))
        emit.write_some(codes(x), emit.add(target, at), mask)
        return [emit.or_(carried[0], emit.fcmp_unordered("uno", x, x))]

    vectors = emit.sdiv(emit.add(count, I64(LANES - 1)), I64(LANES))
    nan = emit.loop(vectors, [NO_LANES], some)[0]
    return emit.zext(emit.any(nan), I64)


def quantizer(name: str, divide: Run, signed: bool = False) -> Run:
    """What writes ``count`` floats at ``source`` to uint8 or int8 codes at ``target``, wherever it matters by
    ``divide``; 1 when there was a NaN, otherwise 0.
    """

    def write(emit: Emitter, grid: Value, source: Value, target: Value, count: Value) -> Value:
        divided = function(emit.module, f"quantspec_{name}", 4, divide)
        if not cpu.target().packed_lanes:
            return emit.call(divided, [grid, source, target, count])

        def divide_near(emit: Emitter, grid: Value, x: Value, q: Value, bits: Value) -> Value:
            """Divides, of four times sixteen values, those of which any has its bit set."""

            def sixteen(index: Value) -> Value:
                from_x, to_q = emit.add(x, emit.shl(index, I64(6))), emit.add(q, emit.shl(index, I64(4)))
                some = emit.and_(emit.lshr(bits, emit.shl(index, I64(4))), I64(2**LANES - 1))
                return emit.if_any(
                    emit.icmp_signed("!=", some, I64(0)), lambda: emit.call(divided, [grid, from_x, to_q, I64(LANES)])
                )

            return emit.any_of(I64(UNROLLED), sixteen)

        near = function(emit.module, f"quantspec_{name}_near", 4, divide_near)
        shorts = ir.VectorType(I16, 2 * LANES)
        units = emit.splat(emit.fmul(emit.field(grid, Grid.inverse), F32(FRACTION)))
        high = emit.splat(emit.field(grid, Grid.high))
        # Unsigned codes are what saturates; those of int8 have the first bit the other way round.
        zero = emit.splat_to(emit.trunc(emit.add(emit.field(grid, Grid.zero), I64(128 if signed else 0)), I16), shorts)
        flip = emit.splat(0x80808080 - 2**32 if signed else 0, INTS)

        def block(index: Value) -> Value:
            at = emit.mul(index, I64(BLOCK))
            from_x, to_q = emit.add(source, emit.shl(at, I64(2))), emit.add(target, at)
            xs = [emit.read(emit.add(from_x, I64(4 * LANES * n)), FLOATS) for n in range(UNROLLED)]
            # In this order a NaN stays one, and becomes -2^31, as what is far below zero does: as close to a tie as
            # can be.
            moved = [emit.fma(emit.minimum(high, x), units, emit.splat(FRACTION / 2, FLOATS)) for x in xs]
            fixed = [emit.bitcast(emit.to_int(x), shorts) for x in moved]
            pairs = list(zip(fixed[::2], fixed[1::2]))
            fractions, codes = ([halves(emit, a, b, which) for a, b in pairs] for which in (0, 1))
            saturated = [emit.native("llvm.sadd.sat.v32i16", shorts, v, zero) for v in codes]
            emit.write(emit.xor(packed(emit, saturated), flip), to_q)
            moved = [emit.add(v, ir.Constant(shorts, [CLOSE] * 2 * LANES)) for v in fractions]
            close = [emit.icmp_unsigned("<", v, ir.Constant(shorts, [2 * CLOSE] * 2 * LANES)) for v in moved]

            def divide_some() -> Value:
                low_bits, high_bits = (emit.zext(emit.bitcast(lanes, I32), I64) for lanes in close)
                return emit.call(near, [grid, from_x, to_q, emit.or_(low_bits, emit.shl(high_bits, I64(32)))])

            return emit.if_any(emit.any(emit.or_(*close)), divide_some, likely=False)

        blocks = emit.select(emit.flag(grid, Grid.inverse), emit.ashr(count, I64(6)), I64(0))
        nan = emit.any_of(blocks, block)
        done = emit.mul(blocks, I64(BLOCK))
        from_x, to_q = emit.add(source, emit.shl(done, I64(2))), emit.add(target, done)
        return emit.or_(nan, emit.call(divided, [grid, from_x, to_q, emit.sub(count, done)]))

    return write


run_quantize = quantizer("divide", run_divide)


def halves(emit: Emitter, a: Value, b: Value, which: int) -> Value:
    """The lower (0) or the upper (1) halves of the 32-bit lanes of two vectors, those of ``a`` first, in the order in
    which ``packed`` takes them.
    """
    order = list(range(which, 4 * LANES, 2))
    if cpu.target().packed_lanes != LANES:
        # As instructions give them that work on each 128 bits: four of the first eight, four of the second.
        order = [order[16 * (i // 16) + 8 * (i // 4 % 2) + 4 * (i // 8 % 2) + i % 4] for i in range(2 * LANES)]
    return emit.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * LANES), order))


def packed(emit: Emitter, shorts: list[Value]) -> Value:
    """Two vectors of 32 shorts as 64 bytes, in the order of the 32-bit lanes that ``halves`` took them from, each the
    nearest number from 0 to 255.
    """
    if cpu.target().packed_lanes == LANES:
        mixed = emit.packed(*shorts)
        # Each quarter has eight of the first and eight of the second vector.
        order = [4 * (i % 8 // 2) + 2 * (i // 8) + i % 2 for i in range(LANES)]
    else:
        mixed = emit.joined(*(emit.packed(*emit.parts(v)) for v in shorts))
        # Four of each eight lie in the first half of 256 bits, four in the second.
        order = [8 * (i // 8) + 4 * (i % 2) + i % 8 // 2 for i in range(LANES)]
    mixed = emit.bitcast(mixed, INTS)
    return emit.shuffle_vector(mixed, mixed, ir.Constant(INTS, order))


def run_dequantize(
    emit: Emitter, grid: Value, source: Value, target: Value, count: Value, signed: bool = False
) -> None:
    """``count`` codes at ``source`` to floats at ``target``."""
    scale, zero = emit.splat_fields(grid, Grid.scale, Grid.zero)

    def floats(q: Value) -> Value:
        wide = emit.sext(q, INTS) if signed else emit.zext(q, INTS)
        return emit.fmul(emit.sitofp(emit.sub(wide, zero), FLOATS), scale)

    def some(at: Value, mask: Value) -> None:
        q = emit.read_some(emit.add(source, at), BYTES, mask, emit.splat(0, BYTES))
        emit.write_some(floats(q), emit.add(target, emit.shl(at, I64(2))), mask)

    def all_from(start: Value, past_cache: bool) -> None:
        """Sixty-four at a time from entry ``start`` on, and what is left."""
        left = emit.sub(count, start)
        whole = emit.sdiv(left, I64(BLOCK))

        def many(i: Value) -> None:
            at = emit.add(start, emit.mul(i, I64(BLOCK)))
            for n in range(UNROLLED):
                first = emit.add(at, I64(LANES * n))
                value = floats(emit.read(emit.add(source, first), BYTES))
                address = emit.add(target, emit.shl(first, I64(2)))
                if past_cache:
                    emit.write_past(value, address)
                else:
                    emit.write(value, address)

        def few(i: Value) -> None:
            at = emit.add(start, emit.add(emit.mul(whole, I64(BLOCK)), emit.mul(i, I64(LANES))))
            some(at, emit.mask(emit.sub(count, at)))

        emit.each(whole, many)
        rest = emit.sub(left, emit.mul(whole, I64(BLOCK)))
        emit.each(emit.sdiv(emit.add(rest, I64(LANES - 1)), I64(LANES)), few)

    # What no cache holds is written past them, in whole cache lines: reading lines that are overwritten would cost as
    # much as writing them.
    aligned = emit.icmp_signed("==", emit.and_(target, I64(3)), I64(0))
    with emit.if_else(emit.and_(aligned, emit.icmp_signed(">=", count, I64(PAST_CACHE)))) as (large, small):
        with large:
            head = emit.lshr(emit.and_(emit.sub(I64(0), target), I64(63)), I64(2))
            some(I64(0), emit.mask(head))
            all_from(head, True)
        with small:
            all_from(I64(0), False)


def over_rows(
    emit: Emitter, op: Value, source: Value, target: Value, name: str, run: Callable[..., Value | None]
) -> Value:
    """Has ``run(grid, source, target, width)`` go over rows; the bits of all it gives."""
    grid = emit.place(op, Rows.grid)
    width, near, far = emit.fields(op, Rows.width, Rows.source_pitch, Rows.target_pitch)
    called = function(emit.module, f"quantspec_{name}_run", 4, run)

    def row(index: Value) -> Value:
        addresses = emit.add(source, emit.mul(index, near)), emit.add(target, emit.mul(index, far))
        return emit.call(called, [grid, *addresses, width])

    return emit.any_of(emit.field(op, Rows.count), row)


def write_quantize(emit: Emitter, op: Value, frame: Value) -> Value:
    """Rows of floats to codes."""
    slot, target, ahead = emit.fields(op, QuantizeRows.source, QuantizeRows.target, QuantizeRows.ahead)
    source = emit.add(slot_address(emit, frame, slot), ahead)
    return over_rows(emit, op, source, target, "quantize", run_quantize)


def write_dequantize(emit: Emitter, op: Value, frame: Value) -> Value:
    """Rows of codes to floats."""
    source, slot, ahead = emit.fields(op, DequantizeRows.source, DequantizeRows.target, DequantizeRows.ahead)
    target = emit.add(slot_address(emit, frame, slot), ahead)
    return over_rows(emit, op, source, target, "dequantize", run_dequantize)


QUANTIZE = Kernel("quantize", QuantizeRows, write_quantize)
DEQUANTIZE = Kernel("dequantize", DequantizeRows, write_dequantize)
