"""From steps and the shapes of their inputs to a frame: which kernel runs on which memory."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...program import Dequantize, Linear, Quantize, reads
from . import codes, gemm
from .layout import Layout, aligned
from .native import BEGIN, COUNT, MOST_SLOTS, RELEASE, SLICES, SLOTS, WIDTH, kernel
from .pack import Packed
from .simd import float_bits

CHUNK_BYTES = 2**18  # inputs of a chunk of rows, which stay in the second-level cache while weights pass
LONG = 2_000_000  # multiply-accumulates from which on other Python threads may run meanwhile


@dataclass
class Value:
    """A value of the segment: its shape, how it lies in memory, and where in the arena (None before it is placed)."""

    shape: tuple[int, ...]
    layout: Layout
    place: int | None = None


@dataclass
class Plan:
    """A frame ready to run, with all that its addresses point to, and what the outputs are."""

    frame: np.ndarray
    shapes: list[tuple[int, ...]]  # of the outputs
    macs: int
    nbytes: int  # of the arena
    kept: list = field(default_factory=list)

    @property
    def address(self) -> int:
        return self.frame.ctypes.data


class Planner:
    """Makes the plan of a segment for inputs of certain shapes. ``packed``: what the segment's layers were packed into, by the step's name."""

    def __init__(self, steps, inputs: tuple[str, ...], outputs: tuple[str, ...], packed: dict[str, list[Packed]]):
        self.steps, self.inputs, self.outputs, self.packed = steps, inputs, outputs, packed

    def plan(self, shapes: dict[str, tuple[int, ...]], *, dry: bool = False) -> Plan:
        """The plan for inputs of these shapes; ``dry``: without memory to run in. ValueError for shapes that do not fit, naming the layer."""
        self.shapes, self.values, self.ops, self.kept, self.macs = dict(shapes), {}, [], [], 0
        for step in self.steps:
            self.shapes[step.name] = SHAPES[type(step)](step, self.shapes)
        for step in self.steps:
            self.values[step.name] = Value(self.shapes[step.name], rows_of(self.shapes[step.name]))
        self.nbytes = self.place()
        self.arena = aligned(0 if dry else self.nbytes)
        self.kept.append(self.arena)
        for step in self.steps:
            EMITTERS[type(step)](self, step)
        return self.finish()

    def place(self) -> int:
        """Gives every value in codes a place in the arena, that of one which is no longer needed where possible; the bytes of it."""
        last = {name: index for index, step in enumerate(self.steps) for name in reads(step)}
        last |= dict.fromkeys(self.outputs, len(self.steps))
        free, used, size = [], [], 0
        for index, step in enumerate(self.steps):
            if isinstance(step, Dequantize):
                continue
            free += [(place, length) for end, place, length in used if end < index]
            used = [entry for entry in used if entry[0] >= index]
            free = merged(free)
            need = -(-self.values[step.name].layout.nbytes // 64) * 64
            fitting = min((hole for hole in free if hole[1] >= need), key=lambda hole: hole[1], default=None)
            if fitting is None and free and free[-1][0] + free[-1][1] == size:
                fitting = (free[-1][0], free[-1][1])
            if fitting is None:
                place = size
            else:
                place = fitting[0]
                free.remove(fitting)
                if fitting[1] > need:
                    free.append((place + need, fitting[1] - need))
            size = max(size, place + need)
            used.append((last.get(step.name, index), place, need))
            self.values[step.name].place = place
        return size

    def address(self, name: str) -> int:
        """Where the value begins, margin included."""
        return self.arena.ctypes.data + self.values[name].place

    def first(self, name: str) -> int:
        """Where the value's first position is."""
        return self.address(name) + self.values[name].layout.first

    def slot(self, name: str) -> int:
        """The number of an input or output."""
        return (self.inputs + self.outputs).index(name)

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the plan."""
        self.kept.append(array)
        return array.ctypes.data

    def emit(self, name: str, write: Callable, entries: dict[int, int]) -> np.ndarray:
        """Adds an instruction for the kernel of that name."""
        op = np.zeros(WIDTH, np.int64)
        op[0] = kernel(name, write)
        for index, value in entries.items():
            op[index] = value
        self.ops.append(op)
        return op

    def finish(self) -> Plan:
        frame = aligned(BEGIN + WIDTH * len(self.ops), np.int64)
        slots = self.inputs + self.outputs
        if len(slots) > MOST_SLOTS:
            raise ValueError(f"program: expected at most {MOST_SLOTS} inputs and outputs of a compiled part, got {len(slots)}")
        frame[COUNT], frame[SLICES], frame[SLOTS], frame[RELEASE] = len(self.ops), 1, len(slots), self.macs >= LONG
        frame[BEGIN:] = np.concatenate(self.ops)
        return Plan(frame, [self.shapes[name] for name in self.outputs], self.macs, self.nbytes, self.kept)

    def batch(self, shapes, outputs) -> int | None:
        """How many samples can be computed independently of each other; None when the inputs are one."""
        counts = {shape[0] if shape else None for shape in (*shapes, *outputs)}
        return counts.pop() if len(counts) == 1 else None


def merged(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Holes (place, length) in order, neighbours made one."""
    result: list[tuple[int, int]] = []
    for place, length in sorted(holes):
        if result and sum(result[-1]) == place:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((place, length))
    return result


def rows_of(shape: tuple[int, ...]) -> Layout:
    """The layout of an array whose last axis makes rows."""
    return Layout(int(np.prod(shape[:-1])), 1, 1, shape[-1] if shape else 1)


def same_shape(step, shapes) -> tuple[int, ...]:
    return shapes[step.x]


def linear_shape(step, shapes) -> tuple[int, ...]:
    shape, (outputs, inputs) = shapes[step.x], step.weight.shape
    if not shape or shape[-1] != inputs:
        raise ValueError(f"layer {step.layer!r}: expected {inputs} input features, got shape {shape}")
    return (*shape[:-1], outputs)


def emit_quantize(planner: Planner, step: Quantize) -> None:
    value = planner.values[step.name]
    layout = value.layout
    op = planner.emit("quantize", codes.write_quantize, {
        codes.SOURCE: planner.slot(step.x), codes.TARGET: planner.first(step.name), codes.COUNT: layout.images, codes.WIDTH: layout.channels,
        codes.SOURCE_PITCH: 4 * layout.channels, codes.TARGET_PITCH: layout.pitch,
    })  # fmt: skip
    codes.quantize_fields(op, step.qparams)


def emit_dequantize(planner: Planner, step: Dequantize) -> None:
    layout = planner.values[step.x].layout
    op = planner.emit("dequantize", codes.write_dequantize, {
        codes.SOURCE: planner.first(step.x), codes.TARGET: planner.slot(step.name), codes.COUNT: layout.images, codes.WIDTH: layout.channels,
        codes.SOURCE_PITCH: layout.pitch, codes.TARGET_PITCH: 4 * layout.channels,
    })  # fmt: skip
    codes.quantize_fields(op, step.qparams)


def emit_linear(planner: Planner, step: Linear) -> None:
    x, y = planner.values[step.x].layout, planner.values[step.name].layout
    (packed,) = planner.packed[step.name]
    emit_product(planner, step, packed, planner.address(step.x), planner.address(step.name), x.offsets(1, 1), y.offsets(1, 1), [0])


def emit_product(planner: Planner, step, packed: Packed, x: int, y: int, x_offsets: np.ndarray, y_offsets: np.ndarray, run_offsets) -> np.ndarray:
    """One product, by the addresses of its operands and the offsets of their rows."""
    grid, rows = step.y_qparams, len(y_offsets)
    lowest = int(grid.zero_point) if step.relu else grid.qmin
    inputs = 4 * packed.runs * packed.run_steps
    planner.macs += rows * packed.outputs * inputs
    return planner.emit("product", gemm.write_product, {
        gemm.X: x, gemm.Y: y, gemm.W: planner.keep(packed.weight), gemm.BIAS: planner.keep(packed.bias), gemm.FACTOR: planner.keep(packed.factor),
        gemm.ROWS: rows, gemm.OUTPUTS: packed.outputs, gemm.BLOCKS: packed.blocks, gemm.STEPS: packed.runs * packed.run_steps,
        gemm.RUNS: packed.runs, gemm.RUN_STEPS: packed.run_steps, gemm.RUN_OFFSETS: planner.keep(np.array(run_offsets, np.int32)),
        gemm.X_OFFSETS: planner.keep(x_offsets), gemm.Y_OFFSETS: planner.keep(y_offsets), gemm.CHUNK: max(48, CHUNK_BYTES // inputs // 6 * 6),
        gemm.LOWEST: float_bits(lowest - int(grid.zero_point)), gemm.HIGHEST: float_bits(grid.qmax - int(grid.zero_point)),
        gemm.ZERO: int(grid.zero_point),
    })  # fmt: skip


SHAPES: dict[type, Callable] = {Quantize: same_shape, Dequantize: same_shape, Linear: linear_shape}
EMITTERS: dict[type, Callable] = {Quantize: emit_quantize, Dequantize: emit_dequantize, Linear: emit_linear}
