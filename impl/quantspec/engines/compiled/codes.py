"""Quantize, dequantize, and what goes from code to code by a table.

``quantize`` divides as IEEE 754 does, without a division. With r the float32 nearest to 1 / scale and t what is missing to it, near = fma(x, r, x * t) is off by
2^-48 of its size before it is rounded. It can have another code than the quotient only where the quotient lies that close to the end of what rounds to
a tie between two codes: a few x for each tie, which are tried for every scale beforehand (``is_checked``). Where the scale is known only at run time one
step of Newton's iteration on the remainder, which is exact, rounds near correctly (Markstein's theorem). That holds as long as nothing underflows; scales
that are very small or very large divide.
"""

import functools
from collections.abc import Callable

import numpy as np
from llvmlite import ir

from ...dialects import fma
from . import cpu
from .native import ADDRESSES, LENGTH
from .simd import BYTES, F32, FLOATS, I1, I8, I16, I32, I64, INTS, LANES, Emitter, float_bits, function

# Entries of an instruction of either kind. SOURCE and TARGET are addresses, or with SLOT the number of an input or output of the program.
SOURCE, TARGET, COUNT, WIDTH, SOURCE_PITCH, TARGET_PITCH = range(1, 7)  # COUNT rows of WIDTH values, whose starts are as many bytes apart
SCALE, INVERSE, REST, LOW, HIGH, ZERO = range(7, 13)
CHECKED = 21  # whether ``is_checked``, and the lowest code is 0
SAFE_SCALES = 2.0**-60, 2.0**60
UNROLLED = 4
PAST_CACHE = 2**21  # floats


def quantize_fields(op, grid) -> None:
    """Fills in the entries that describe the grid."""
    scale = np.float32(grid.scale)
    op[SCALE], op[INVERSE], op[REST] = float_bits(scale), 0, 0
    if SAFE_SCALES[0] <= scale <= SAFE_SCALES[1]:
        inverse = np.float32(1) / scale
        op[INVERSE], op[REST] = float_bits(inverse), float_bits(np.float32(1 / np.float64(scale) - np.float64(inverse)))
        op[CHECKED] = grid.qmin == 0 and is_checked(float(scale))
    # What lies beyond these products has the first or the last code, and so have they.
    with np.errstate(over="ignore"):
        op[LOW], op[HIGH] = (float_bits(scale * np.float32(end - int(grid.zero_point))) for end in (grid.qmin, grid.qmax))
    op[ZERO] = int(grid.zero_point)


@functools.lru_cache(4096)
def is_checked(scale: float) -> bool:
    """Whether fma(x, r, x * t) has the quotient's code for every x next to a tie, and so for every x."""
    scale = np.float32(scale)
    inverse = np.float32(1) / scale
    rest = np.float32(1 / np.float64(scale) - np.float64(inverse))
    ties = np.arange(-257, 257) + 0.5
    near = x = (ties * np.float64(scale)).astype(np.float32)
    candidates = [x]
    for end in (-np.inf, np.inf):
        near = x
        for _ in range(4):
            near = np.nextafter(near, np.float32(end))
            candidates.append(near)
    x = np.concatenate(candidates)
    return bool((np.rint(fma(x, inverse, x * rest)) == np.rint(x / scale)).all())


def run_quantize(emit: Emitter, op, source, target, count):
    """``count`` floats at ``source`` to codes at ``target``; 1 when there was a NaN, otherwise 0."""
    scale, inverse, rest, low, high = (emit.splat(emit.field(op, name, F32)) for name in (SCALE, INVERSE, REST, LOW, HIGH))
    zero = emit.splat(emit.trunc(emit.field(op, ZERO), I32))

    def quotient(x):
        if not cpu.target().has_fma:
            return emit.fdiv(x, scale)
        near = emit.fma(x, inverse, emit.fmul(x, rest))
        return emit.fma(emit.fma(emit.fneg(near), scale, x), inverse, near)

    def codes(x, divide):
        x = emit.minimum(emit.maximum(x, low), high)
        return emit.trunc(emit.add(emit.rounded(emit.fdiv(x, scale) if divide else quotient(x)), zero), BYTES)

    none = ir.Constant(ir.VectorType(I1, LANES), [0] * LANES)

    def pass_over(divide: bool, checked: bool = False):
        def many(i, carried):
            nan = carried[0]
            at = emit.mul(i, I64(LANES * UNROLLED))
            xs = [emit.read(emit.add(source, emit.shl(emit.add(at, I64(LANES * n)), I64(2))), FLOATS) for n in range(UNROLLED)]
            for a, b in zip(xs[::2], xs[1::2]):
                nan = emit.or_(nan, emit.fcmp_unordered("uno", a, b))
            if checked:
                steps = [emit.fma(x, inverse, emit.fmul(x, rest)) for x in (emit.minimum(x, high) for x in xs)]
                emit.write(saturated(emit, steps, zero), emit.add(target, at))
                return [nan]
            for n, x in enumerate(xs):
                emit.write(codes(x, divide), emit.add(target, emit.add(at, I64(LANES * n))))
            return [nan]

        def few(i, carried):
            at = emit.add(emit.mul(whole, I64(LANES * UNROLLED)), emit.mul(i, I64(LANES)))
            mask = emit.mask(emit.sub(count, at))
            x = emit.read_some(emit.add(source, emit.shl(at, I64(2))), FLOATS, mask, emit.splat(0.0, FLOATS))
            emit.write_some(codes(x, divide), emit.add(target, at), mask)
            return [emit.or_(carried[0], emit.fcmp_unordered("uno", x, x))]

        whole = emit.sdiv(count, I64(LANES * UNROLLED))
        left = emit.sdiv(emit.add(emit.sub(count, emit.mul(whole, I64(LANES * UNROLLED))), I64(LANES - 1)), I64(LANES))
        nan = emit.loop(left, emit.loop(whole, [none], many), few)[0]
        return emit.icmp_unsigned("!=", emit.bitcast(nan, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0))

    result = emit.alloca(I1)
    with emit.if_else(emit.icmp_signed("==", emit.field(op, INVERSE), I64(0))) as (by_division, otherwise):
        with by_division:
            emit.store(pass_over(True), result)
        with otherwise:
            if cpu.target().dot_lanes == LANES:
                with emit.if_else(emit.icmp_signed("!=", emit.field(op, CHECKED), I64(0))) as (known, unknown):
                    with known:
                        emit.store(pass_over(False, True), result)
                    with unknown:
                        emit.store(pass_over(False), result)
            else:
                emit.store(pass_over(False), result)
    return emit.zext(emit.load(result), I64)


def saturated(emit: Emitter, steps: list, zero):
    """Four vectors of steps, at most a few hundred or NaN where they are far below zero, as 64 codes from 0 on."""
    shorts, bytes64 = ir.VectorType(I16, 2 * LANES), ir.VectorType(I8, 4 * LANES)
    # What has no int32 becomes -2^31.
    whole = [emit.native("llvm.x86.avx512.mask.cvtps2dq.512", INTS, v, emit.splat(0, INTS), I16(-1), I32(4)) for v in steps]
    zeros = emit.insert_element(ir.Constant(shorts, ir.Undefined), emit.trunc(emit.extract_element(zero, I32(0)), I16), I32(0))
    zeros = emit.shuffle_vector(zeros, zeros, ir.Constant(ir.VectorType(I32, 2 * LANES), [0] * 2 * LANES))
    halves = [emit.native("llvm.x86.avx512.packssdw.512", shorts, a, b) for a, b in zip(whole[::2], whole[1::2])]
    halves = [emit.native("llvm.sadd.sat.v32i16", shorts, half, zeros) for half in halves]
    mixed = emit.bitcast(emit.native("llvm.x86.avx512.packuswb.512", bytes64, *halves), INTS)
    order = [4 * (i % 4) + i // 4 for i in range(LANES)]
    return emit.shuffle_vector(mixed, mixed, ir.Constant(INTS, order))


def run_dequantize(emit: Emitter, op, source, target, count):
    """``count`` codes at ``source`` to floats at ``target``."""
    scale, zero = emit.splat(emit.field(op, SCALE, F32)), emit.splat(emit.trunc(emit.field(op, ZERO), I32))

    def real(q):
        return emit.fmul(emit.sitofp(emit.sub(emit.zext(q, INTS), zero), FLOATS), scale)

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


def array(name: str, run: Callable, size: int):
    """Writes a kernel that runs over an array of values of ``size`` bytes, the first slot, to the second."""

    def write(emit: Emitter, op, frame):
        one = function(emit.module, f"quantspec_{name}_run", 4, run)
        count = emit.sdiv(emit.field(frame, LENGTH), I64(size))
        return emit.call(one, [op, emit.field(frame, ADDRESSES), emit.field(frame, ADDRESSES + 1), count])

    return write


write_quantize_array = array("quantize", run_quantize, 4)
write_dequantize_array = array("dequantize", run_dequantize, 1)
