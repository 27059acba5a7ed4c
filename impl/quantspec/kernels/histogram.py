"""Counting floats in bins of a power of two (OBS-HIST-*), at about a nanosecond each.

Multiplying by a power of two is exact but where the product is smaller than float32 has numbers for; what is below zero then is in the first bin below it.
"""

import numpy as np

from .emitter import F32, FLOATS, I32, I64, INTS, LANES, Emitter, float_bits
from .frame import run_alone
from .jit import kernel
from .memory import aligned

SOURCE, COUNT, FACTOR, HALF, TABLES, BINS, SPACE = range(1, 8)
SETS = 2  # of counts, by turns: a bin that comes twice in a row would have its second increment wait for the first
EXPONENTS = -120, 120  # of bins whose factor is a float32


def write_histogram(emit: Emitter, op, frame):
    """Adds one to the count of each value's bin, in one of the int32 tables at TABLES. HALF is the number of the bin of zero; SPACE is room for 16 numbers."""
    source, count, tables, bins, space = (emit.field(op, entry) for entry in (SOURCE, COUNT, TABLES, BINS, SPACE))
    factor, half = emit.splat(emit.field(op, FACTOR, F32)), emit.splat(emit.trunc(emit.field(op, HALF), I32))
    starts = [emit.add(tables, emit.mul(I64(4 * n), bins)) for n in range(SETS)]
    zero, zeros = emit.splat(0.0, FLOATS), emit.splat(0, INTS)

    def increment(table, index):
        place = emit.add(table, emit.shl(emit.sext(index, I64), I64(2)))
        emit.write(emit.add(emit.read(place, I32, 4), I32(1)), place, 4)

    def bins_of(x):
        """floor(x * factor), and one less than zero at the most where x is below zero."""
        steps = emit.fmul(x, factor)
        whole = emit.fptosi(steps, INTS)  # towards zero
        whole = emit.sub(whole, emit.zext(emit.fcmp_ordered("<", steps, emit.sitofp(whole, FLOATS)), INTS))
        least = emit.select(emit.fcmp_ordered("<", x, zero), emit.splat(-1, INTS), emit.splat(2**31 - 1, INTS))
        return emit.add(emit.select(emit.icmp_signed("<", whole, least), whole, least), half)

    def sixteen(i, carried):
        emit.write(bins_of(emit.read(emit.add(source, emit.shl(i, I64(6))), FLOATS)), space, 64)
        for lane in range(LANES):
            increment(starts[lane % SETS], emit.read(emit.add(space, I64(4 * lane)), I32, 4))
        return []

    whole = emit.ashr(count, I64(4))
    emit.loop(whole, [], sixteen)
    done = emit.shl(whole, I64(4))
    left = emit.sub(count, done)
    last = emit.read_some(emit.add(source, emit.shl(done, I64(2))), FLOATS, emit.mask(left), zero)
    emit.write(emit.select(emit.mask(left), bins_of(last), zeros), space, 64)

    def one(i, carried):
        increment(starts[0], emit.read(emit.add(space, emit.shl(i, I64(2))), I32, 4))
        return []

    emit.loop(left, [], one)


def counts(x: np.ndarray, exponent: int, bins: int) -> np.ndarray:
    """int64 (bins,): how many of the finite float32 values lie in each bin of width 2^exponent, of which ``bins`` / 2 are below zero.

    Every value must have a bin. ValueError for an exponent outside ``EXPONENTS``.
    """
    if not EXPONENTS[0] <= exponent <= EXPONENTS[1]:
        raise ValueError(f"exponent: expected {EXPONENTS[0]} to {EXPONENTS[1]}, got {exponent}")
    x = np.ascontiguousarray(x)
    tables, space = aligned(SETS * bins, np.int32), aligned(LANES, np.int32)
    total = np.zeros(bins, np.int64)
    for start in range(0, x.size, 2**31 - 1):  # what an int32 can count
        part = x.reshape(-1)[start : start + 2**31 - 1]
        tables[:] = 0
        run_alone(kernel("histogram", write_histogram), {
            SOURCE: part.ctypes.data, COUNT: part.size, FACTOR: float_bits(2.0**-exponent), HALF: bins // 2, TABLES: tables.ctypes.data, BINS: bins,
            SPACE: space.ctypes.data,
        })  # fmt: skip
        total += tables.reshape(SETS, bins).sum(0)
    return total
