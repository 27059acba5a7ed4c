"""A frame shared out among threads: each runs its part of every instruction, and all wait for each other behind it.

Products and depthwise convolutions, where the work is, are cut into rows, or into panels of outputs where rows are few; the first thread alone does everything else.
One team works at a time, as threads of two that wait for each other would never end; a caller who finds the workers busy works alone.
"""

import numpy as np

from quantspec.kernels import depthwise, dynamic_gemm, gemm
from quantspec.kernels.emitter import I64, Emitter
from quantspec.kernels.jit import BEGIN, COUNT, WIDTH, kernel
from quantspec.kernels.memory import aligned
from quantspec.kernels.threads import Share, spin_until

from .planner import Plan

COUNTER, ARRIVED = 1, 2  # entries of a barrier: the address of the counter, and what it is when all have come


def write_barrier(emit: Emitter, op, frame):
    """Adds one to the counter and waits until it is ARRIVED."""
    counter, arrived = emit.at(emit.field(op, COUNTER), I64), emit.field(op, ARRIVED)
    emit.atomic_rmw("add", counter, I64(1), "seq_cst")
    spin_until(emit, lambda: emit.icmp_signed(">=", emit.load_atomic(counter, "acquire", 8), arrived))


class Team:
    """The frames of a plan's threads, and the counter by which they wait for each other."""

    def __init__(self, plan: Plan, threads: int):
        self.plan, self.counter = plan, aligned(8, np.int64)
        ops = plan.frame[BEGIN:].reshape(-1, WIDTH)
        parts = [split(name, op, threads) for name, op in zip(plan.names, ops)]
        self.frames = []
        for thread in range(threads):
            frame = aligned(BEGIN + 2 * WIDTH * len(ops), np.int64)
            frame[:BEGIN] = plan.frame[:BEGIN]
            made = []
            for index, part in enumerate(parts):
                barrier = np.zeros(WIDTH, np.int64)
                barrier[0], barrier[COUNTER], barrier[ARRIVED] = kernel("barrier", write_barrier), self.counter.ctypes.data, threads * (index + 1)
                made += [*part[thread : thread + 1], barrier]
            frame[COUNT] = len(made)
            frame[BEGIN : BEGIN + WIDTH * len(made)] = np.concatenate(made)
            self.frames.append(frame)

    def share(self, *, direct: bool, awake: bool) -> Share:
        """What has the frames run at once, or the plan where that cannot be, or where ``awake`` and a worker sleeps."""
        addresses = [frame.ctypes.data for frame in self.frames]
        return Share(addresses, direct=direct, everything=self.plan.address, counter=self.counter.ctypes.data, awake=awake)


def split(name: str, op: np.ndarray, threads: int) -> list[np.ndarray]:
    """The parts of an instruction, one for each of the first threads."""
    if name.startswith("depthwise"):
        return by_rows(op, threads, 1, depthwise.ROWS, (depthwise.X_OFFSETS, depthwise.Y_OFFSETS))
    many = op[gemm.ROWS] >= threads * gemm.TILE_ROWS[-1]
    if name == "dynamic_product":
        place = dynamic_gemm.Y_AHEAD if op[dynamic_gemm.Y_SLOT] >= 0 else gemm.Y
        return dynamic_rows(op, threads) if many else by_panels(op, threads, (gemm.BIAS, gemm.FACTOR, gemm.SUMS), (place,), 4)
    if not name.startswith("product"):
        return [op]
    if many or name == "product_real":
        return by_rows(op, threads, gemm.TILE_ROWS[-1], gemm.ROWS, (gemm.X_OFFSETS, gemm.Y_OFFSETS, *[gemm.B_OFFSETS] * (name == "product_add")))
    return by_panels(op, threads, (gemm.BIAS, gemm.FACTOR), (gemm.Y, gemm.B), 1)


def by_rows(op: np.ndarray, threads: int, tile: int, rows: int, offsets: tuple[int, ...]) -> list[np.ndarray]:
    """Shares of whole tiles of rows, whose offsets are in tables of int32."""
    tiles = -(-int(op[rows]) // tile)
    parts = []
    for first, last in shares(tiles, threads):
        part = op.copy()
        part[rows] = min(last * tile, op[rows]) - first * tile
        part[list(offsets)] += 4 * first * tile
        parts.append(part)
    return parts


def dynamic_rows(op: np.ndarray, threads: int) -> list[np.ndarray]:
    """Shares of rows of a dynamic layer, whose floats and grids lie at equal distances."""
    parts, first = by_rows(op, threads, gemm.TILE_ROWS[-1], gemm.ROWS, (gemm.X_OFFSETS,)), 0
    for part in parts:
        part[gemm.ROW_GRIDS] += first * op[gemm.Y_OFFSETS]
        part[dynamic_gemm.Y_AHEAD if op[dynamic_gemm.Y_SLOT] >= 0 else gemm.Y] += first * op[dynamic_gemm.Y_PITCH]
        first += int(part[gemm.ROWS])
    return parts


def by_panels(op: np.ndarray, threads: int, tables: tuple[int, ...], places: tuple[int, ...], size: int) -> list[np.ndarray]:
    """Shares of panels of outputs, which have entries of four bytes in ``tables`` and take ``size`` bytes at ``places``."""
    panels = -(-int(op[gemm.BLOCKS]) // gemm.PANEL)
    wide = 16 * gemm.PANEL
    parts = []
    for first, last in shares(panels, threads):
        part = op.copy()
        part[gemm.W] += first * 64 * gemm.PANEL * op[gemm.STEPS]
        part[list(tables)] += 4 * wide * first
        part[list(places)] += size * wide * first
        part[gemm.OUTPUTS] = min(op[gemm.OUTPUTS], wide * last) - wide * first
        part[gemm.BLOCKS] = min(op[gemm.BLOCKS], gemm.PANEL * last) - gemm.PANEL * first
        parts.append(part)
    return parts


def shares(count: int, threads: int) -> list[tuple[int, int]]:
    """From where to where the parts go, none of them empty."""
    threads = max(1, min(threads, count))
    ends = [count * index // threads for index in range(threads + 1)]
    return list(zip(ends, ends[1:]))
