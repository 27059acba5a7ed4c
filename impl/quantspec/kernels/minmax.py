"""The smallest and the largest of many floats (OBS-MINMAX), read once, beside those of all before them."""

import ctypes
import math
import threading

from llvmlite import ir

from .emitter import F32, FLOATS, I1, I32, I64, INTS, LANES, Emitter
from .frame import frame_of
from .jit import ADDRESSES, BEGIN, RELEASE, caller, kernel

COUNT, FOUND = 1, 2
UNROLLED = 4
LONG = 2**17  # values from which on other Python threads may run meanwhile
local = threading.local()


def write_extremes(emit: Emitter, op, frame):
    """1 when the COUNT floats in the first slot have a smaller or a larger one than the two in the second, or a NaN.

    FOUND is where the smallest and the largest of both go, or NaN.
    """
    source, known, count, found = emit.field(frame, ADDRESSES), emit.field(frame, ADDRESSES + 1), emit.field(op, COUNT), emit.field(op, FOUND)
    first = emit.splat(emit.read(source, F32))
    start = [ir.Constant(ir.VectorType(I1, LANES), [0] * LANES), *[first] * 2 * UNROLLED]

    def seen(carried, xs):
        nan, lows, highs = carried[0], carried[1 : 1 + UNROLLED], carried[1 + UNROLLED :]
        for a, b in zip(xs[::2], [*xs[1::2], xs[-1]]):
            nan = emit.or_(nan, emit.fcmp_unordered("uno", a, b))
        lows = [emit.minimum(x, low) for x, low in zip(xs, lows)] + lows[len(xs) :]
        return [nan, *lows, *[emit.maximum(x, high) for x, high in zip(xs, highs)], *highs[len(xs) :]]

    def many(i, carried):
        at = emit.add(source, emit.mul(i, I64(4 * LANES * UNROLLED)))
        return seen(carried, [emit.read(emit.add(at, I64(4 * LANES * n)), FLOATS) for n in range(UNROLLED)])

    def few(i, carried):
        at = emit.add(emit.mul(whole, I64(LANES * UNROLLED)), emit.mul(i, I64(LANES)))
        return seen(carried, [emit.read_some(emit.add(source, emit.shl(at, I64(2))), FLOATS, emit.mask(emit.sub(count, at)), first)])

    whole = emit.sdiv(count, I64(LANES * UNROLLED))
    left = emit.sdiv(emit.add(emit.sub(count, emit.mul(whole, I64(LANES * UNROLLED))), I64(LANES - 1)), I64(LANES))
    nan, *ends = emit.loop(left, emit.loop(whole, start, many), few)
    wider = any_nan = emit.any(nan)
    for place, better, vectors in ((0, emit.minimum, ends[:UNROLLED]), (4, emit.maximum, ends[UNROLLED:])):
        while len(vectors) > 1:
            vectors = [better(a, b) for a, b in zip(vectors[::2], vectors[1::2])]
        vector, lanes = vectors[0], LANES
        while lanes > 1:
            lanes //= 2
            other = ir.Constant(INTS, [(i + lanes) % LANES for i in range(LANES)])
            vector = better(emit.shuffle_vector(vector, vector, other), vector)
        before = emit.read(emit.add(known, I64(place)), F32, 4)
        both = better(emit.extract_element(vector, I32(0)), before)
        wider = emit.or_(wider, emit.fcmp_unordered("!=", both, before))
        emit.write(emit.select(any_nan, F32(math.nan), both), emit.add(found, I64(place)), 4)
    return emit.zext(wider, I64)


def wider(address: int, count: int, known: int) -> tuple[float, float] | None:
    """The smallest and the largest of ``count`` float32 values at an address, of which there must be one, and of the two floats at ``known``; None if it is they.

    Both are NaN where any value is.
    """
    try:
        frame, at, found = local.kept
    except AttributeError:
        found = (ctypes.c_float * 2)()
        frame = frame_of(kernel("extremes", write_extremes), {FOUND: ctypes.addressof(found)})
        local.kept = frame, at, found = frame, frame.ctypes.data, found
    frame[BEGIN + COUNT], frame[RELEASE] = count, count >= LONG
    return (found[0], found[1]) if caller()(at, address, known) else None
