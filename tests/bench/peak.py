"""What the machine can do at most, measured: products from registers or tiles alone, and copies of memory."""

import time

import numpy as np
from llvmlite import ir

from quantspec.kernels import cpu, tiles
from quantspec.kernels.emitter import I8, I32, I64, INTS, LANES, Emitter, Value
from quantspec.kernels.frame import run_alone
from quantspec.kernels.jit import Kernel
from quantspec.kernels.memory import aligned
from quantspec.kernels.records import Address, Instruction, Integer

ACCUMULATORS, TILES, REPEATED = 20, 4, 8


class Peak(Instruction):
    """``times`` as many dot products as there are accumulators, of ``operand`` with itself, REPEATED times over.

    Their sum goes to ``result``.
    """

    times: Integer
    result: Address
    operand: Integer


def write_peak(emit: Emitter, op: Value, frame: Value) -> None:
    """Writes the kernel."""
    x = emit.splat(emit.trunc(emit.field(op, Peak.operand), I32))

    def many(i: Value, totals: list[Value]) -> list[Value]:
        for _ in range(REPEATED):
            totals = [emit.dot(total, x, x) for total in totals]
        return totals

    totals = emit.loop(emit.field(op, Peak.times), [emit.splat(i, INTS) for i in range(ACCUMULATORS)], many)
    for total in totals[1:]:
        totals[0] = emit.add(totals[0], total)
    emit.write(totals[0], emit.field(op, Peak.result))


def write_tiles(emit: Emitter, op: Value, frame: Value) -> None:
    """The same for products of tiles, whose accumulators are the first four, two rows of operands by two columns."""
    nothing = ir.VoidType()
    tiles.load(emit, I64(tiles.STEPS))
    for number in range(8):
        emit.native("llvm.x86.tilezero", nothing, I8(number))

    def many(index: Value) -> None:
        for number in range(TILES * REPEATED):
            i, j = number % TILES // 2, number % 2
            emit.native("llvm.x86.tdpbusd", nothing, I8(2 * i + j), I8(4 + i), I8(6 + j))

    emit.each(emit.field(op, Peak.times), many)
    tiles.end(emit)


PEAK, PEAK_OF_TILES = Kernel("peak", Peak, write_peak), Kernel("peak_of_tiles", Peak, write_tiles)


def macs_per_second(seconds: float = 0.2) -> float:
    """8-bit multiply-accumulates per second of one thread whose operands never leave the registers, or the tiles where
    there are such; 0 for a CPU without dot products of bytes, where such a loop says nothing of what products need.

    The best of the runs of about a millisecond that this time allows.
    """
    if not cpu.target().dot_lanes:
        return 0.0
    result, times = aligned(LANES, np.int32), 20_000
    instruction = Peak(times=times, result=result.ctypes.data, operand=0x01010101)
    if tiles.allowed():
        work = times * TILES * REPEATED * tiles.ROWS * LANES * 64
        return work / best(lambda: run_alone(PEAK_OF_TILES, instruction), seconds)
    work = times * ACCUMULATORS * REPEATED * LANES * 4
    return work / best(lambda: run_alone(PEAK, instruction), seconds)


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
