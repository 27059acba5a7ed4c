"""The smallest and the largest of many floats (OBS-MINMAX), read once, beside those of all before them."""

import ctypes
import math
import threading

from .emitter import F32, FLOATS, I64, LANES, NO_LANES, Emitter, Value
from .frame import LONG, caller, frame_of, slot_addresses
from .jit import Kernel
from .records import Address, Instruction, Integer

UNROLLED = 4


class MinMax(Instruction):
    """How many floats there are, and where the smallest and the largest go."""

    count: Integer
    found: Address


def write_minmax(emit: Emitter, op: Value, frame: Value) -> Value:
    """1 when the ``count`` floats in the first slot have a smaller or a larger one than the two in the second, or a
    NaN.

    The smallest and the largest of both go to ``found``, or NaN.
    """
    source, ends_before = slot_addresses(emit, frame)
    count, found = emit.fields(op, MinMax.count, MinMax.found)
    first = emit.splat(emit.read(source, F32))
    start = [NO_LANES, *[first] * 2 * UNROLLED]

    def seen(carried: list[Value], xs: list[Value]) -> list[Value]:
        nan, lows, highs = carried[0], carried[1 : 1 + UNROLLED], carried[1 + UNROLLED :]
        for a, b in zip(xs[::2], [*xs[1::2], xs[-1]]):
            nan = emit.or_(nan, emit.fcmp_unordered("uno", a, b))
        lows = [emit.minimum(x, low) for x, low in zip(xs, lows)] + lows[len(xs) :]
        return [nan, *lows, *[emit.maximum(x, high) for x, high in zip(xs, highs)], *highs[len(xs) :]]

    def many(i: Value, carried: list[Value]) -> list[Value]:
        at = emit.add(source, emit.mul(i, I64(4 * LANES * UNROLLED)))
        return seen(carried, [emit.read(emit.add(at, I64(4 * LANES * n)), FLOATS) for n in range(UNROLLED)])

    def few(i: Value, carried: list[Value]) -> list[Value]:
        at = emit.add(emit.mul(whole, I64(LANES * UNROLLED)), emit.mul(i, I64(LANES)))
        mask = emit.mask(emit.sub(count, at))
        return seen(carried, [emit.read_some(emit.add(source, emit.shl(at, I64(2))), FLOATS, mask, first)])

    whole = emit.sdiv(count, I64(LANES * UNROLLED))
    left = emit.sdiv(emit.add(emit.sub(count, emit.mul(whole, I64(LANES * UNROLLED))), I64(LANES - 1)), I64(LANES))
    nan, *ends = emit.loop(left, emit.loop(whole, start, many), few)
    wider = any_nan = emit.any(nan)
    for offset, better, vectors in ((0, emit.minimum, ends[:UNROLLED]), (4, emit.maximum, ends[UNROLLED:])):
        while len(vectors) > 1:
            vectors = [better(a, b) for a, b in zip(vectors[::2], vectors[1::2])]
        found_here = emit.folded(vectors[0], better)
        before = emit.read(emit.add(ends_before, I64(offset)), F32, 4)
        both = better(found_here, before)
        wider = emit.or_(wider, emit.fcmp_unordered("!=", both, before))
        emit.write(emit.select(any_nan, F32(math.nan), both), emit.add(found, I64(offset)), 4)
    return emit.zext(wider, I64)


MINMAX = Kernel("minmax", MinMax, write_minmax)


class Prepared:
    """What a thread runs: a frame of one instruction, its address, and the two floats that it finds."""

    def __init__(self) -> None:
        self.found = (ctypes.c_float * 2)()
        self.frame = frame_of(MINMAX.bound(MinMax(count=0, found=ctypes.addressof(self.found))))
        self.instruction = MinMax.on(self.frame.instructions[0])
        self.address, self.run = self.frame.address, caller()


local = threading.local()


Held = tuple[ctypes.Array[ctypes.c_float], int]  # two floats, and their address


def wider(address: int, count: int, ends: Held) -> tuple[float, float] | None:
    """The smallest and the largest of ``count`` float32 values at an address, of which there must be one, and of the
    two floats in ``ends``.

    None if they are those two; both are NaN where any value is.
    """
    try:
        ready: Prepared = local.prepared
    except AttributeError:
        ready = local.prepared = Prepared()
    ready.instruction.count, ready.frame.release = count, count >= LONG
    return (ready.found[0], ready.found[1]) if ready.run(ready.address, address, ends[1]) else None
