"""From steps and the shapes of their inputs to a frame: which kernel runs on which memory."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.program import (
    AdaptiveAvgPool,
    AvgPool,
    Concat,
    Conv,
    Dequantize,
    Linear,
    MaxPool,
    Mean,
    Move,
    Quantize,
)
from quantspec.ir.traverse import is_direct, reads
from quantspec.kernels.frame import MOST_SLOTS, Frame, frame_of
from quantspec.kernels.jit import Kernel, SomeInstruction
from quantspec.kernels.memory import Layout, aligned
from quantspec.kernels.packed import Packed
from quantspec.kernels.records import Instruction

from .shapes import SHAPES, ConvAdd, Dynamic, Export, FlatFloat, FlatQuantize, Import
from .transposed import Phase, phases

LONG = 2_000_000  # multiply-accumulates from which on other Python threads may run meanwhile


@dataclass
class Value:
    """A value of the segment: its shape, how it lies in memory, and where in the arena (None before it is placed)."""

    shape: tuple[int, ...]
    layout: Layout
    place: int | None = None
    filled: int | None = None  # the zero point that the margin holds, where there is one


@dataclass
class Plan:
    """A frame ready to run, with all that its addresses point to, and what the outputs are."""

    frame: Frame
    shapes: list[tuple[int, ...]]  # of the outputs
    macs: int
    nbytes: int  # of the arena
    instructions: list[Instruction]
    kept: list = field(default_factory=list)

    @property
    def address(self) -> int:
        return self.frame.address


class Planner:
    """Makes the plan of a segment for inputs of certain shapes.

    ``packed``: what the segment's layers were packed into, by the step's name.
    """

    def __init__(
        self, steps, inputs: tuple[str, ...], outputs: tuple[str, ...], packed: dict[str, list], emitters: dict[type, Callable],
        emit_margin: Callable,
    ):  # fmt: skip
        self.steps, self.inputs, self.outputs, self.packed, self.emitters, self.emit_margin = steps, inputs, outputs, packed, emitters, emit_margin

    def plan(self, shapes: dict[str, tuple[int, ...]], *, dry: bool = False) -> Plan:
        """The plan for inputs of these shapes; ``dry``: without memory to run in.

        UnsupportedError for shapes that the kernels do not take.
        """
        self.shapes, self.macs = dict(shapes), 0
        self.values: dict[str, Value] = {}
        self.alias: dict[str, str] = {}  # of floats that lie as others do
        self.instructions: list[Instruction] = []
        self.kept: list[np.ndarray] = []
        for step in self.steps:
            self.shapes[step.name] = SHAPES[type(step)](step, self.shapes)
        margins, forms = self.margins(), self.forms()
        for step in self.steps:
            if isinstance(step, FlatFloat):
                self.alias[step.name] = step.x
            elif isinstance(step, Dynamic):
                rows = int(np.prod(self.shapes[step.name][:-1]))
                self.values[step.name] = Value(self.shapes[step.name], Layout(1, 1, 1, 4 * rows * self.shapes[step.name][-1]))
            elif not (isinstance(step, (Dequantize, Export)) or is_direct(step)):
                margin, filled = margins.get(step.name, ((0,) * 6, None))
                self.values[step.name] = Value(self.shapes[step.name], layout_of(self.shapes[step.name], forms[step.name], margin), None, filled)
        self.nbytes = self.place()
        self.arena = aligned(0 if dry else self.nbytes)
        self.kept.append(self.arena)
        for step in self.steps:
            self.emitters[type(step)](self, step)
            if step.name in self.values and (zero := self.values[step.name].filled) is not None:
                self.emit_margin(self, step.name, zero)
        return self.finish()

    def forms(self) -> dict[str, bool]:
        """Whether each value lies in memory as images [n, channels, *positions], or as rows."""
        windows = (Conv, ConvAdd, MaxPool, AvgPool, AdaptiveAvgPool)
        read_by = {name: step for step in self.steps if isinstance(step, (*windows, Linear)) for name in reads(step)}
        forms: dict[str, bool] = {}
        for step in self.steps:
            if isinstance(step, windows):
                forms[step.name] = True
            elif isinstance(step, (Linear, Move, FlatQuantize, FlatFloat, Dynamic)):
                forms[step.name] = False
            elif isinstance(step, (Quantize, Import)):
                rank = len(self.shapes[step.name])
                reader = read_by.get(step.name)
                forms[step.name] = rank in (3, 4, 5) and (isinstance(reader, windows) or rank > 3 and not isinstance(reader, Linear))
            else:
                forms[step.name] = forms[reads(step)[0]] and len(self.shapes[step.name]) > 2
        for step in self.steps:
            mixed = len({forms[x] for x in reads(step) if x in forms}) > 1
            if isinstance(step, (Linear, Dynamic)) and forms.get(step.x) or not isinstance(step, (Move, Mean)) and mixed:
                raise UnsupportedError(f"step {step.name!r}: the kernels do not take rows where images are")
            if isinstance(step, (*windows, Mean, Concat)) and any(not forms[x] for x in reads(step)) and len(self.shapes[step.name]) > 2:
                raise UnsupportedError(f"step {step.name!r}: the kernels take images there, and got rows")
        return forms

    def margins(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """For each value that convolutions read beyond its edges: how far, and the zero point that is there."""
        result: dict[str, tuple[tuple[int, ...], int]] = {}
        for step in self.steps:
            conv = step.conv if isinstance(step, ConvAdd) else step
            if isinstance(conv, Conv):
                counts = layout_of(self.shapes[step.name], True).counts
                sides = np.max([reach(phase, self.shapes[conv.x][2:], phase.counts(counts)) for phase in phases(conv)], axis=0).tolist()
                if any(sides):
                    known = result.get(conv.x, ((0,) * 6, 0))[0]
                    result[conv.x] = tuple(map(max, known, sides)), int(conv.x_qparams.zero_point)
        return result

    def place(self) -> int:
        """Gives every value in codes a place in the arena, that of one which is no longer needed where possible; the
        bytes of it.
        """
        last = {self.alias.get(name, name): index for index, step in enumerate(self.steps) for name in reads(step)}
        last |= dict.fromkeys(self.outputs, len(self.steps))
        free, used, size = [], [], 0
        for index, step in enumerate(self.steps):
            if step.name not in self.values:
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
        offset = self.values[name].place
        assert offset is not None, f"{name} has no place yet"
        return int(self.arena.ctypes.data) + offset

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

    def emit(self, kernel: Kernel[SomeInstruction], instruction: SomeInstruction) -> None:
        """Adds an instruction for a kernel."""
        self.instructions.append(kernel.bound(instruction))

    def finish(self) -> Plan:
        """The plan of the instructions added."""
        slots = len(self.inputs + self.outputs)
        if slots > MOST_SLOTS:
            raise UnsupportedError(f"program: a compiled part has at most {MOST_SLOTS} inputs and outputs, this one has {slots}")
        frame = frame_of(*self.instructions, slots=slots, release=self.macs >= LONG)
        return Plan(frame, [self.shapes[name] for name in self.outputs], self.macs, self.nbytes, self.instructions, self.kept)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all products."""
        return sum(part.weight.nbytes for parts in self.packed.values() for part in parts if isinstance(part, Packed))

    def sizes(self) -> list[int]:
        """Bytes of an element of each input and output."""
        codes = {step.x for step in self.steps if isinstance(step, Import)} | {step.name for step in self.steps if isinstance(step, Export)}
        return [1 if name in codes else 4 for name in self.inputs + self.outputs]

    def batch(self, shapes) -> int | None:
        """How many samples can be computed independently of each other; None when the inputs are one."""
        if any(isinstance(step, Dynamic) and not step.layer.rows for step in self.steps):
            return None
        counts = {shape[0] if len(shape) > 1 else None for shape in shapes}
        return counts.pop() if len(counts) == 1 else None


def reach(phase: Phase, sizes: tuple[int, ...], counts: tuple[int, int, int]) -> list[int]:
    """How far a convolution reads before and behind an image along each axis, for so many outputs."""
    conv, sides = phase.conv, []
    for n, outputs, k, s, (before, _), d in zip(sizes, counts[-len(sizes) :], conv.weight.shape[2:], conv.stride, conv.padding, conv.dilation):
        sides += [max(0, before), max(0, (outputs - 1) * s + d * (k - 1) + 1 - before - n)] if outputs else [0, 0]
    return [0] * (6 - len(sides)) + sides


def merged(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Holes (place, length) in order, neighbours made one."""
    result: list[tuple[int, int]] = []
    for place, length in sorted(holes):
        if result and sum(result[-1]) == place:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((place, length))
    return result


def layout_of(shape: tuple[int, ...], as_images: bool, margin=(0,) * 6) -> Layout:
    """How an array of that shape lies in memory."""
    if not as_images:
        return Layout(int(np.prod(shape[:-1])), 1, 1, shape[-1] if shape else 1)
    depth, height, width = (*(1,) * (5 - len(shape)), *shape[2:])
    return Layout(shape[0], height, width, shape[1], margin, depth)
