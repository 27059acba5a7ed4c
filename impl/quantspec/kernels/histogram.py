"""Counting floats in bins of a power of two (OBS-HIST-*), at about a nanosecond each.

Multiplying by a power of two is exact but where the product is smaller than float32 has numbers for; what is below
zero then is in the first bin below it.
"""

import numpy as np

from .emitter import FLOATS, I32, I64, INTS, LANES, Emitter, Value
from .frame import run_alone
from .jit import Kernel
from .memory import aligned, place
from .records import Address, Float, Instruction, Integer

SETS = 2  # of counts, by turns: a bin that comes twice in a row would have its second increment wait for the first
EXPONENTS = range(-120, 121)  # of bins whose factor is a float32


class Histogram(Instruction):
    """``factor``: bins for a step of one. ``half``: the number of the bin of zero, of ``bins``.

    ``space``: room for 16 numbers.
    """

    source: Address
    count: Integer
    factor: Float
    half: Integer
    tables: Address
    bins: Integer
    space: Address


def write_histogram(emit: Emitter, op: Value, frame: Value) -> None:
    """Adds one to the count of each value's bin, in one of the int32 tables."""
    source, count, tables, bins, space = emit.fields(
        op, Histogram.source, Histogram.count, Histogram.tables, Histogram.bins, Histogram.space
    )
    factor, half = emit.splat_fields(op, Histogram.factor, Histogram.half)
    starts = [emit.add(tables, emit.mul(I64(4 * n), bins)) for n in range(SETS)]
    zero, zeros = emit.splat(0.0, FLOATS), emit.splat(0, INTS)

    def increment(table: Value, index: Value) -> None:
        address = emit.add(table, emit.shl(emit.sext(index, I64), I64(2)))
        emit.write(emit.add(emit.read(address, I32, 4), I32(1)), address, 4)

    def bins_of(x: Value) -> Value:
        """floor(x * factor), and one less than zero at the most where x is below zero."""
        steps = emit.fmul(x, factor)
        whole = emit.fptosi(steps, INTS)  # towards zero
        whole = emit.sub(whole, emit.zext(emit.fcmp_ordered("<", steps, emit.sitofp(whole, FLOATS)), INTS))
        least = emit.select(emit.fcmp_ordered("<", x, zero), emit.splat(-1, INTS), emit.splat(2**31 - 1, INTS))
        return emit.add(emit.select(emit.icmp_signed("<", whole, least), whole, least), half)

    def sixteen(i: Value) -> None:
        emit.write(bins_of(emit.read(emit.add(source, emit.shl(i, I64(6))), FLOATS)), space, 64)
        for lane in range(LANES):
            increment(starts[lane % SETS], emit.read(emit.add(space, I64(4 * lane)), I32, 4))

    whole = emit.ashr(count, I64(4))
    emit.each(whole, sixteen)
    done = emit.shl(whole, I64(4))
    left = emit.sub(count, done)
    last = emit.read_some(emit.add(source, emit.shl(done, I64(2))), FLOATS, emit.mask(left), zero)
    emit.write(emit.select(emit.mask(left), bins_of(last), zeros), space, 64)

    def element(i: Value) -> None:
        increment(starts[0], emit.read(emit.add(space, emit.shl(i, I64(2))), I32, 4))

    emit.each(left, element)


HISTOGRAM = Kernel("histogram", Histogram, write_histogram)


def counts(x: np.ndarray, exponent: int, bins: int) -> np.ndarray:
    """int64 (bins,): how many of the finite float32 values lie in each bin of width 2^exponent, of which ``bins`` / 2
    are below zero.

    Every value must have a bin. TypeError for other values than float32, ValueError for an exponent outside
    ``EXPONENTS``.
    """
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise TypeError(f"x: expected float32 values, got {getattr(x, 'dtype', type(x).__name__)}")
    if exponent not in EXPONENTS:
        raise ValueError(f"exponent: expected {EXPONENTS[0]} to {EXPONENTS[-1]}, got {exponent}")
    x = np.ascontiguousarray(x)
    tables, space = aligned(SETS * bins, np.int32), aligned(LANES, np.int32)
    total = np.zeros(bins, np.int64)
    for start in range(0, x.size, 2**31 - 1):  # what an int32 can count
        part = x.reshape(-1)[start : start + 2**31 - 1]
        tables[:] = 0
        run_alone(HISTOGRAM, Histogram(
            source=place(part), count=part.size, factor=2.0**-exponent, half=bins // 2,
            tables=tables.ctypes.data, bins=bins,
            space=space.ctypes.data,
        ))  # fmt: skip
        total += tables.reshape(SETS, bins).sum(0)
    return total
