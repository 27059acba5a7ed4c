"""A frame shared out among threads: each runs its part of every instruction, and all wait for each other behind it.

Products are cut into rows, or into panels of outputs where rows are few; depthwise convolutions, pools and what goes
over rows or bytes one by one into parts of these; the first thread alone does everything else. One team works at a
time, as threads of two that wait for each other would never end; a caller who finds the workers busy works alone.
Much work, and any between torch's steps, goes to torch's own threads where they can be called (``kernels.team``), all
other to workers, which leave it to the caller while they sleep.
"""

import numpy as np

from quantspec.kernels.copies import Copy
from quantspec.kernels.depthwise import DepthwiseInstruction
from quantspec.kernels.dynamic_gemm import DynamicProduct
from quantspec.kernels.emitter import LANES
from quantspec.kernels.float_output import ProductFloats
from quantspec.kernels.frame import Frame, frame_of
from quantspec.kernels.gemm import TILE_ROWS
from quantspec.kernels.grouped import give_buffers, group
from quantspec.kernels.images import OverBytes, Pool
from quantspec.kernels.memory import aligned, workspace
from quantspec.kernels.product import PANEL, Product, ProductAdd, ProductCodes, ProductInstruction
from quantspec.kernels.quantize import DequantizeRows, QuantizeRows, Rows
from quantspec.kernels.records import Instruction
from quantspec.kernels.recurrent_cell import Cell
from quantspec.kernels.sharing import BARRIER, Barrier, Share
from quantspec.kernels.team import OpenMP, Team
from quantspec.kernels.threads import looks
from quantspec.kernels.weight_only import ProductSums, Weigh

from .planner import Plan

EVEN = 4  # panels of a thread from which on one more or less makes little difference


class Parallel:
    """The frames of a plan's threads, and the counter by which they wait for each other."""

    def __init__(self, plan: Plan, threads: int):
        self.plan, self.counter = plan, aligned(8, np.int64)
        self.kept: list[np.ndarray] = []
        self.looks = looks(threads)
        parts = [split(instruction, threads) for instruction in plan.instructions]
        self.frames = [self.frame(parts, thread, threads) for thread in range(threads)]

    def frame(self, parts: list[list[Instruction]], thread: int, threads: int) -> Frame:
        """The frame of one thread: its part of each instruction, if there is one, and a barrier behind it."""
        instructions: list[Instruction] = []
        for index, part in enumerate(parts):
            arrived, step = threads * (index + 1), threads * len(parts)
            barrier = Barrier(counter=self.counter.ctypes.data, arrived=arrived, step=step, looks=self.looks)
            instructions += [*part[thread : thread + 1], BARRIER.bound(barrier)]
        products = (part.product for part in instructions if isinstance(part, ProductInstruction))
        give_buffers(products, lambda nbytes: self.keep(workspace("rows", thread, nbytes)))
        whole = self.plan.frame
        return frame_of(*instructions, slices=whole.slices, slots=whole.slots, release=bool(whole.release))

    def keep(self, array: np.ndarray) -> int:
        """The address of memory that lives as long as the frames."""
        self.kept.append(array)
        return int(array.ctypes.data)

    def share(self, *, direct: bool, awake: bool) -> Share:
        """What has the frames run at once, or the plan where that cannot be, or where ``awake`` and a worker sleeps."""
        return Share(self.addresses, direct=direct, everything=self.plan.address, awake=awake)

    def team(self, own: OpenMP, threads: int, *, direct: bool) -> Team:
        """What has a team of so many threads run the frames, or the plan where it has fewer."""
        return Team(own, threads, self.addresses, direct=direct, everything=self.plan.address)

    @property
    def addresses(self) -> list[int]:
        return [frame.address for frame in self.frames]


def split(instruction: Instruction, threads: int) -> list[Instruction]:
    """The parts of an instruction, one for each of the first threads."""
    if isinstance(instruction, DepthwiseInstruction):
        return [*depthwise_rows(instruction, threads)]
    if isinstance(instruction, Weigh):
        return [*weigh_outputs(instruction, threads)]
    if isinstance(instruction, Cell):
        return [*cell_rows(instruction, threads)]
    if isinstance(instruction, Rows):
        return [*value_rows(instruction, threads)]
    if isinstance(instruction, OverBytes) and not isinstance(instruction, Copy):
        return [*byte_loops(instruction, threads)]
    if isinstance(instruction, Pool):
        return [*pool_windows(instruction, threads)]
    if not isinstance(instruction, ProductInstruction):
        return [instruction]
    by_rows = instruction.product.rows >= threads * TILE_ROWS[-1] and not has_wide_weights(instruction.product, threads)
    return [*(product_rows(instruction, threads) if by_rows else product_panels(instruction, threads))]


def has_wide_weights(product: Product, threads: int) -> bool:
    """Whether weights take more memory than rows, so that it is they of which each thread should read its part only."""
    return product.outputs > product.rows and product.blocks >= PANEL * EVEN * threads


def depthwise_rows(instruction: DepthwiseInstruction, threads: int) -> list[DepthwiseInstruction]:
    """Shares of rows, whose offsets are in tables of int32."""
    parts = []
    for first, last in shares(instruction.layer.rows, threads):
        part = instruction.copy()
        layer = part.layer
        layer.rows = last - first
        layer.x_offsets += 4 * first
        layer.y_offsets += 4 * first
        parts.append(part)
    return parts


def product_rows(instruction: ProductInstruction, threads: int) -> list[ProductInstruction]:
    """Shares of whole tiles of rows.

    Offsets are in tables of int32; the floats and grids of dynamic layers lie at equal distances.
    """
    rows = instruction.product.rows
    tile = group() if instruction.product.buffer else TILE_ROWS[-1]
    parts: list[ProductInstruction] = []
    tiles = shares(-(-rows // tile), threads)
    for first_tile, last_tile in tiles:
        first = first_tile * tile
        part = instruction.copy()
        product = part.product
        product.rows = min(last_tile * tile, rows) - first
        product.x_offsets += 4 * first
        if isinstance(part, (ProductCodes, ProductFloats)):
            part.y_offsets += 4 * first
        if isinstance(part, ProductAdd):
            part.b_offsets += 4 * first
        if isinstance(part, DynamicProduct):
            part.row_grids += first * part.grid_stride
            move_outputs(part, first * part.y_pitch)
        if isinstance(part, ProductSums):
            product.y += first * part.y_pitch
            listed, number = part.low.last, len(parts)
            part.low.first, part.low.last = (listed * n // len(tiles) for n in (number, number + 1))
        parts.append(part)
    return parts


def product_panels(instruction: ProductInstruction, threads: int) -> list[ProductInstruction]:
    """Shares of panels of outputs, which have entries of four bytes in tables."""
    panel_outputs, whole = 16 * PANEL, instruction.product
    parts = []
    for first, last in shares(-(-whole.blocks // PANEL), threads):
        outputs = panel_outputs * first
        part = instruction.copy()
        product = part.product
        product.weight += first * 64 * PANEL * product.steps
        product.bias += 4 * outputs
        product.factor += 4 * outputs
        product.sums += 4 * outputs
        product.outputs = min(whole.outputs, panel_outputs * last) - outputs
        product.blocks = min(whole.blocks, PANEL * last) - PANEL * first
        if isinstance(part, ProductCodes):
            product.y += outputs
        if isinstance(part, ProductAdd):
            part.b += outputs
        if isinstance(part, ProductFloats):
            part.float_bias += 4 * outputs
            part.y_ahead += 4 * outputs
        if isinstance(part, DynamicProduct):
            move_outputs(part, 4 * outputs)
        if isinstance(part, ProductSums):
            product.y += 4 * outputs
            part.low.sums += 4 * outputs
        parts.append(part)
    return parts


def value_rows(instruction: Rows, threads: int) -> list[Rows]:
    """Shares of rows that are quantized from an input or dequantized to an output."""
    parts: list[Rows] = []
    for first, last in shares(instruction.count, threads):
        part = instruction.copy()
        part.count = last - first
        if isinstance(part, QuantizeRows):
            part.ahead += first * part.source_pitch
            part.target += first * part.target_pitch
        else:
            assert isinstance(part, DequantizeRows)
            part.source += first * part.source_pitch
            part.ahead += first * part.target_pitch
        parts.append(part)
    return parts


def byte_loops(instruction: OverBytes, threads: int) -> list[OverBytes]:
    """Shares of the outermost loop that is run once or more for each thread."""
    levels = ("images", "image"), ("lines", "line"), ("positions", "position")
    for times, stride in levels:
        count = getattr(instruction.operands.loops, times)
        if count < threads:
            continue
        parts = []
        for first, last in shares(count, threads):
            part = instruction.copy()
            operands = part.operands
            setattr(operands.loops, times, last - first)
            operands.a += first * getattr(operands.a_strides, stride)
            operands.b += first * getattr(operands.b_strides, stride)
            operands.target += first * getattr(operands.target_strides, stride)
            parts.append(part)
        return parts
    return [instruction]


def pool_windows(instruction: Pool, threads: int) -> list[Pool]:
    """Shares of windows, which have entries of four bytes in tables."""
    parts = []
    for first, last in shares(instruction.windows.rows, threads):
        part = instruction.copy()
        windows = part.windows
        windows.rows = last - first
        windows.taps += 4 * windows.window * first
        for entry in ("counts", "y_offsets", "factors"):
            setattr(windows, entry, getattr(windows, entry) + 4 * first)
        parts.append(part)
    return parts


def cell_rows(instruction: Cell, threads: int) -> list[Cell]:
    """Shares of the samples of a recurrent step."""
    parts = []
    for first, last in shares(instruction.rows, threads):
        part = instruction.copy()
        before = 4 * part.size * first  # bytes of floats
        part.rows = last - first
        part.h += before
        part.c += before
        part.output_ahead += first * part.output_pitch
        part.state_gates += before * part.gates
        part.gates_ahead += before * part.gates
        parts.append(part)
    return parts


def weigh_outputs(instruction: Weigh, threads: int) -> list[Weigh]:
    """Shares of outputs in whole vectors, which have entries of four bytes."""
    parts = []
    for first, last in shares(-(-instruction.outputs // LANES), threads):
        part = instruction.copy()
        part.outputs = min(LANES * last, instruction.outputs) - LANES * first
        for entry in ("sums", "factor", "bias", "weights", "y_ahead"):
            setattr(part, entry, getattr(part, entry) + 4 * LANES * first)
        parts.append(part)
    return parts


def move_outputs(part: DynamicProduct, nbytes: int) -> None:
    """Has a part's outputs begin so many bytes later."""
    if part.slot >= 0:
        part.y_ahead += nbytes
    else:
        part.product.y += nbytes


def shares(count: int, threads: int) -> list[tuple[int, int]]:
    """From where to where the parts go, none of them empty."""
    threads = max(1, min(threads, count))
    ends = [count * index // threads for index in range(threads + 1)]
    return list(zip(ends, ends[1:]))
