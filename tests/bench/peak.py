"""What the machine can do at most, measured: dot products from registers alone, and copies of memory."""

import time

import numpy as np

from quantspec.kernels.emitter import I32, INTS, LANES, Emitter
from quantspec.kernels.frame import run_alone
from quantspec.kernels.jit import kernel
from quantspec.kernels.memory import aligned

ACCUMULATORS, REPEATED = 20, 8


def write_peak(emit: Emitter, op, frame):
    """Entry 1 times as many dot products as there are accumulators, REPEATED times over. Their sum goes to the address in entry 2."""
    x = emit.splat(emit.trunc(emit.field(op, 3), I32))

    def many(i, totals):
        for _ in range(REPEATED):
            totals = [emit.dot(total, x, x) for total in totals]
        return totals

    totals = emit.loop(emit.field(op, 1), [emit.splat(i, INTS) for i in range(ACCUMULATORS)], many)
    for total in totals[1:]:
        totals[0] = emit.add(totals[0], total)
    emit.write(totals[0], emit.field(op, 2))


def macs_per_second(seconds: float = 0.2) -> float:
    """8-bit multiply-accumulates per second of one thread whose operands never leave the registers: the best of runs of about a millisecond in that time."""
    result = aligned(LANES, np.int32)
    entries = {1: 20_000, 2: result.ctypes.data, 3: 0x01010101}
    work = entries[1] * ACCUMULATORS * REPEATED * LANES * 4
    return work / best(lambda: run_alone(kernel("peak", write_peak), entries), seconds)


def copy_bytes_per_second(count: int, seconds: float = 0.2) -> float:
    """Bytes per second of NumPy's copy of ``count`` bytes, read and written counted once."""
    source, target = np.ones(count, np.uint8), np.ones(count, np.uint8)
    return count / best(lambda: np.copyto(target, source), seconds)


def best(function, seconds: float) -> float:
    """The shortest of as many runs as there is time for."""
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest
