"""Kernels for functions of one value that differ from channel to channel."""

import numpy as np

from .emitter import BYTES, FLOATS, I8, I64, INTS, Emitter, Value
from .images import OverBytes, by_sixteen, over_bytes
from .jit import Kernel
from .records import Address, Clamp, Integer, Nested

LARGEST = 2.0**12  # a factor with which each step is beyond all codes


class LookUpChannels(OverBytes):
    """``tables``: 256 codes for each channel, which is each byte of a run."""

    tables: Address


class TwoSlopes(OverBytes):
    """Steps below and above the code ``x_zero``, each times its channel's factor.

    ``factors``: float32 [2, channels and what fills the last vector], below and above; ``distance``: bytes from the one
    row to the other.
    """

    factors: Address
    distance: Integer
    x_zero: Integer
    clamp: Nested[Clamp]


def write_look_up(emit: Emitter, op: Value, frame: Value) -> None:
    """``target = tables[channel][a]``."""
    tables = emit.field(op, LookUpChannels.tables)

    def run(a: Value, b: Value, target: Value, count: Value) -> None:
        def element(i: Value) -> None:
            code = emit.zext(emit.read(emit.add(a, i), I8), I64)
            table = emit.add(tables, emit.shl(i, I64(8)))
            emit.write(emit.read(emit.add(table, code), I8), emit.add(target, i))

        emit.each(count, element)

    over_bytes(emit, op, run)


def write_two_slopes(emit: Emitter, op: Value, frame: Value) -> None:
    """Codes of ``(a - x_zero) * factor``, rounded in float32, clamped."""
    below, distance = emit.fields(op, TwoSlopes.factors, TwoSlopes.distance)
    above = emit.add(below, distance)
    (x_zero,) = emit.splat_fields(op, TwoSlopes.x_zero)
    lowest, highest, zero = emit.splat_fields(emit.place(op, TwoSlopes.clamp), Clamp.lowest, Clamp.highest, Clamp.zero)
    none = emit.splat(0, INTS)

    def run(a: Value, b: Value, target: Value, count: Value) -> None:
        def sixteen(at: Value, mask: Value | None) -> None:
            entry = emit.shl(at, I64(2))
            steps = emit.sub(emit.zext(emit.read(emit.add(a, at), BYTES), INTS), x_zero)
            factors = [emit.read(emit.add(start, entry), FLOATS) for start in (below, above)]
            factor = emit.select(emit.icmp_signed("<", steps, none), *factors)
            value = emit.fmul(emit.sitofp(steps, FLOATS), factor)
            code = emit.add(emit.rounded(emit.minimum(emit.maximum(value, lowest), highest)), zero)
            emit.write_some(emit.trunc(code, BYTES), emit.add(target, at), mask)

        by_sixteen(emit, count, sixteen)

    over_bytes(emit, op, run)


def slopes(tables: np.ndarray, x: tuple[int, int, int], y: tuple[int, int, int]) -> np.ndarray | None:
    """The factors with which ``TWO_SLOPES`` gives what tables [channels, 256] have for each code of the grid ``x``,
    float32 [2, channels]; None where there are none. Grids: the code of zero, the first and the last code.

    Each code allows its channel's factor an interval, as its steps times the factor round to the table's code. The
    middle of what they all allow is tried on every code.
    """
    x_zero, first, last = x
    zero, lowest, highest = y
    codes = np.arange(first, last + 1)
    steps = codes - x_zero
    found = tables[:, codes].astype(np.float64) - zero
    least = np.where(found + zero <= lowest, -np.inf, found - 0.5)
    most = np.where(found + zero >= highest, np.inf, found + 0.5)
    factors = []
    for side, low, high in ((steps < 0, most, least), (steps > 0, least, most)):
        begin = (low[:, side] / steps[side]).max(1, initial=-LARGEST)
        end = (high[:, side] / steps[side]).min(1, initial=LARGEST)
        factors.append(((begin + end) / 2).astype(np.float32))
    rounded = np.where(steps < 0, *(factor[:, None] for factor in factors)) * steps.astype(np.float32)
    rounded = np.rint(np.clip(rounded, np.float32(lowest - zero), np.float32(highest - zero)))
    return np.stack(factors) if np.array_equal(rounded, found) else None


LOOK_UP = Kernel("table_channels", LookUpChannels, write_look_up)
TWO_SLOPES = Kernel("two_slopes", TwoSlopes, write_two_slopes)
