"""Quantize, dequantize, and what goes from code to code by a table.

``quantize`` divides, but without a division wherever it can. The product of a value with the float32 nearest to 1 / scale, and half a step, is computed with sixteen
bits for the fraction. It is off by at most one and a half units of them below 2^24 units: one for the reciprocal, whose error is at most a 2^-24th of it, and one half
for each rounding that there is. A quotient that IEEE 754 rounds to a tie is half a unit from it at most. So what is three units from a tie between two codes or
farther has its code in the upper bits; where anything is nearer, the sixteen values around it are divided. So is what has no reciprocal to go by, and so are
the last values of a row.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir

from . import cpu
from .emitter import BYTES, F32, FLOATS, I1, I8, I16, I32, I64, INTS, LANES, Emitter, float_bits, function
from .jit import ADDRESSES

# Entries of an instruction of either kind. SOURCE and TARGET are addresses, or with SLOT the number of an input or output of the program.
SOURCE, TARGET, COUNT, WIDTH, SOURCE_PITCH, TARGET_PITCH = range(1, 7)  # COUNT rows of WIDTH values, whose starts are as many bytes apart
SCALE, INVERSE, LOW, HIGH, ZERO = range(7, 12)  # INVERSE: 0 where there is none, or the lowest code is not that of the type
SAFE_SCALES = 2.0**-60, 2.0**60
UNROLLED = 4
BLOCK = LANES * UNROLLED
FRACTION = 2.0**16  # units of a step
CLOSE = 3  # units from a tie
PAST_CACHE = 2**21  # floats


def quantize_fields(op, grid) -> None:
    """Fills in the entries that describe the grid."""
    scale = np.float32(grid.scale)
    reciprocal = SAFE_SCALES[0] <= scale <= SAFE_SCALES[1] and grid.qmin in (0, -128)
    op[SCALE], op[INVERSE] = float_bits(scale), float_bits(np.float32(1) / scale) if reciprocal else 0
    # What lies beyond these products has the first or the last code, and so have they.
    with np.errstate(over="ignore"):
        op[LOW], op[HIGH] = (float_bits(scale * np.float32(end - int(grid.zero_point))) for end in (grid.qmin, grid.qmax))
    op[ZERO] = int(grid.zero_point)


def run_divide(emit: Emitter, op, source, target, count):
    """``count`` floats at ``source`` to codes at ``target`` by divisions as IEEE 754 has them (DIA-QUANTIZE, ``divide``); 1 when there was a NaN, otherwise 0."""
    scale, low, high = (emit.splat(emit.field(op, name, F32)) for name in (SCALE, LOW, HIGH))
    zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))

    def codes(x):
        x = emit.minimum(emit.maximum(x, low), high)
        return emit.trunc(emit.add(emit.rounded(emit.fdiv(x, scale)), zero), BYTES)

    return by_vectors(emit, codes, source, target, count)


def by_vectors(emit: Emitter, codes: Callable, source, target, count):
    """Sixteen floats at a time, the last of them fewer, through ``codes``; 1 when there was a NaN, otherwise 0."""

    def some(index, carried):
        at = emit.mul(index, I64(LANES))
        mask = emit.mask(emit.sub(count, at))
        x = emit.read_some(emit.add(source, emit.shl(at, I64(2))), FLOATS, mask, emit.splat(0.0, FLOATS))
        emit.write_some(codes(x), emit.add(target, at), mask)
        return [emit.or_(carried[0], emit.fcmp_unordered("uno", x, x))]

    vectors = emit.sdiv(emit.add(count, I64(LANES - 1)), I64(LANES))
    nan = emit.loop(vectors, [ir.Constant(ir.VectorType(I1, LANES), [0] * LANES)], some)[0]
    return emit.zext(emit.any(nan), I64)


def quantizer(name: str, divide: Callable, signed: bool = False) -> Callable:
    """What writes ``count`` floats at ``source`` to uint8 or int8 codes at ``target``, wherever it matters by ``divide``; 1 when there was a NaN, otherwise 0."""

    def write(emit: Emitter, op, source, target, count):
        divided = function(emit.module, f"quantspec_{name}", 4, divide)
        if cpu.target().dot_lanes != LANES:
            return emit.call(divided, [op, source, target, count])

        def divide_near(emit: Emitter, op, x, q, bits):
            """Divides, of four times sixteen values, those of which any has its bit set."""

            def sixteen(index, carried):
                some = emit.and_(emit.lshr(bits, emit.shl(index, I64(4))), I64(2**LANES - 1))
                before = emit.block
                with emit.if_then(emit.icmp_signed("!=", some, I64(0))):
                    found, within = emit.call(divided, [op, emit.add(x, emit.shl(index, I64(6))), emit.add(q, emit.shl(index, I64(4))), I64(LANES)]), emit.block
                nan = emit.phi(I64)
                nan.add_incoming(I64(0), before)
                nan.add_incoming(found, within)
                return [emit.or_(carried[0], nan)]

            return emit.loop(I64(UNROLLED), [I64(0)], sixteen)[0]

        near = function(emit.module, f"quantspec_{name}_near", 4, divide_near)
        shorts = ir.VectorType(I16, 2 * LANES)
        units, high = emit.splat(emit.fmul(emit.field(op, INVERSE, F32), F32(FRACTION))), emit.splat(emit.field(op, HIGH, F32))
        # Unsigned codes are what saturates; those of int8 have the first bit the other way round.
        zero = emit.splat_to(emit.trunc(emit.add(emit.field(op, ZERO), I64(128 if signed else 0)), I16), shorts)
        flip = emit.splat(0x80808080 - 2**32 if signed else 0, INTS)

        def block(index, carried):
            at = emit.mul(index, I64(BLOCK))
            from_x, to_q = emit.add(source, emit.shl(at, I64(2))), emit.add(target, at)
            xs = [emit.read(emit.add(from_x, I64(4 * LANES * n)), FLOATS) for n in range(UNROLLED)]
            # In this order a NaN stays one, and becomes -2^31, as what is far below zero does: as close to a tie as can be.
            moved = [emit.fma(emit.minimum(high, x), units, emit.splat(FRACTION / 2, FLOATS)) for x in xs]
            fixed = [emit.bitcast(emit.to_int(x), shorts) for x in moved]
            fractions, codes = ([halves(emit, a, b, which) for a, b in zip(fixed[::2], fixed[1::2])] for which in (0, 1))
            emit.write(emit.xor(packed(emit, [emit.native("llvm.sadd.sat.v32i16", shorts, v, zero) for v in codes]), flip), to_q)
            moved = [emit.add(v, ir.Constant(shorts, [CLOSE] * 2 * LANES)) for v in fractions]
            close = [emit.icmp_unsigned("<", v, ir.Constant(shorts, [2 * CLOSE] * 2 * LANES)) for v in moved]
            before = emit.block
            with emit.if_then(emit.any(emit.or_(*close)), likely=False):
                low, high_bits = (emit.zext(emit.bitcast(lanes, I32), I64) for lanes in close)
                found, within = emit.call(near, [op, from_x, to_q, emit.or_(low, emit.shl(high_bits, I64(32)))]), emit.block
            nan = emit.phi(I64)
            nan.add_incoming(I64(0), before)
            nan.add_incoming(found, within)
            return [emit.or_(carried[0], nan)]

        known = emit.icmp_signed("!=", emit.field(op, INVERSE), I64(0))
        blocks = emit.select(known, emit.ashr(count, I64(6)), I64(0))
        nan = emit.loop(blocks, [I64(0)], block)[0]
        done = emit.mul(blocks, I64(BLOCK))
        rest = emit.call(divided, [op, emit.add(source, emit.shl(done, I64(2))), emit.add(target, done), emit.sub(count, done)])
        return emit.or_(nan, rest)

    return write


run_quantize = quantizer("divide", run_divide)


def halves(emit: Emitter, a, b, which: int):
    """The lower (0) or the upper (1) halves of the 32-bit lanes of two vectors."""
    return emit.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, 2 * LANES), list(range(which, 4 * LANES, 2))))


def packed(emit: Emitter, shorts: list):
    """Two vectors of 32 shorts as 64 bytes, in order, each the nearest number from 0 to 255."""
    mixed = emit.bitcast(emit.native("llvm.x86.avx512.packuswb.512", ir.VectorType(I8, BLOCK), *shorts), INTS)
    # Each quarter has eight of the first and eight of the second vector.
    order = [4 * (i % 8 // 2) + 2 * (i // 8) + i % 2 for i in range(LANES)]
    return emit.shuffle_vector(mixed, mixed, ir.Constant(INTS, order))


def run_dequantize(emit: Emitter, op, source, target, count, signed: bool = False):
    """``count`` codes at ``source`` to floats at ``target``."""
    scale, zero = emit.splat(emit.field(op, SCALE, F32)), emit.splat(emit.trunc(emit.field(op, ZERO), I32))

    def real(q):
        wide = emit.sext(q, INTS) if signed else emit.zext(q, INTS)
        return emit.fmul(emit.sitofp(emit.sub(wide, zero), FLOATS), scale)

    def some(at, mask):
        q = emit.read_some(emit.add(source, at), BYTES, mask, emit.splat(0, BYTES))
        emit.write_some(real(q), emit.add(target, emit.shl(at, I64(2))), mask)

    def all_from(start, past_cache: bool):
        """Sixty-four at a time from entry ``start`` on, and what is left."""
        left = emit.sub(count, start)
        whole = emit.sdiv(left, I64(LANES * UNROLLED))

        def many(i, carried):
            at = emit.add(start, emit.mul(i, I64(LANES * UNROLLED)))
            for n in range(UNROLLED):
                place = emit.add(at, I64(LANES * n))
                value, address = real(emit.read(emit.add(source, place), BYTES)), emit.add(target, emit.shl(place, I64(2)))
                written = emit.write(value, address, 64 if past_cache else 1)
                if past_cache:
                    written.set_metadata("nontemporal", emit.module.add_metadata([I32(1)]))
            return []

        def few(i, carried):
            at = emit.add(start, emit.add(emit.mul(whole, I64(LANES * UNROLLED)), emit.mul(i, I64(LANES))))
            some(at, emit.mask(emit.sub(count, at)))
            return []

        emit.loop(whole, [], many)
        rest = emit.sub(left, emit.mul(whole, I64(LANES * UNROLLED)))
        emit.loop(emit.sdiv(emit.add(rest, I64(LANES - 1)), I64(LANES)), [], few)

    # What no cache holds is written past them, in whole cache lines: reading lines that are overwritten would cost as much as writing them.
    aligned = emit.icmp_signed("==", emit.and_(target, I64(3)), I64(0))
    with emit.if_else(emit.and_(aligned, emit.icmp_signed(">=", count, I64(PAST_CACHE)))) as (large, small):
        with large:
            head = emit.lshr(emit.and_(emit.sub(I64(0), target), I64(63)), I64(2))
            some(I64(0), emit.mask(head))
            all_from(head, True)
        with small:
            all_from(I64(0), False)


def slot(emit: Emitter, op, frame, index: int):
    """The address of the program's input or output whose number is entry ``index`` of the instruction."""
    return emit.field(emit.add(frame, emit.shl(emit.field(op, index), I64(3))), ADDRESSES)


def source_or_slot(emit: Emitter, op, frame, slot: int, address: int):
    """The address of an input or output of the program, by entry ``slot``, or entry ``address`` where that is negative."""
    number = emit.field(op, slot)
    place = emit.select(emit.icmp_signed("<", number, I64(0)), I64(0), number)
    outside = emit.field(emit.add(frame, emit.shl(place, I64(3))), ADDRESSES)
    return emit.select(emit.icmp_signed("<", number, I64(0)), emit.field(op, address), outside)


def rows(name: str, one_row, from_slot: bool):
    """Writes a kernel that runs ``one_row(op, source, target, width)`` over rows, from an input of the program or to an output of it."""

    def write(emit: Emitter, op, frame):
        source = slot(emit, op, frame, SOURCE) if from_slot else emit.field(op, SOURCE)
        target = emit.field(op, TARGET) if from_slot else slot(emit, op, frame, TARGET)
        width, near, far = (emit.field(op, entry) for entry in (WIDTH, SOURCE_PITCH, TARGET_PITCH))
        run = function(emit.module, f"quantspec_{name}_run", 4, one_row)

        def row(index, carried):
            places = emit.add(source, emit.mul(index, near)), emit.add(target, emit.mul(index, far))
            return [emit.or_(carried[0], emit.call(run, [op, *places, width]))]

        return emit.loop(emit.field(op, COUNT), [I64(0)], row)[0]

    return write


write_quantize = rows("quantize", run_quantize, True)
write_dequantize = rows("dequantize", run_dequantize, False)
