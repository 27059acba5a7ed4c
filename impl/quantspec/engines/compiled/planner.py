"""From steps and the shapes of their inputs to a frame: which kernel runs on which memory."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    Add,
    Concat,
    Conv,
    Dequantize,
    Linear,
    LinearDynamic,
    Mean,
    Mul,
    Quantize,
    Relu,
    Table,
)
from quantspec.ir.traverse import is_direct, reads
from quantspec.kernels.frame import MOST_SLOTS, Frame, frame_of
from quantspec.kernels.grouped import give_buffers
from quantspec.kernels.jit import Kernel, SomeInstruction
from quantspec.kernels.memory import LONGEST, Layout, Margin, Triple, workspace
from quantspec.kernels.packed import Packed
from quantspec.kernels.product import ProductInstruction
from quantspec.kernels.records import Instruction

from .forms import WINDOWS, Forms
from .lowering import ConvAdd, DynamicLinear, Export, FlattenFloats, Import, LinearSum, Lowered, LoweredStep, Turn
from .packing import PackedLayer, only_product
from .shapes import Shape, shape_of
from .transposed import DensePart, dense_parts

NO_MARGIN: Margin = (0, 0, 0, 0, 0, 0)
LONG = 2_000_000  # multiply-accumulates from which on other Python threads may run meanwhile


@dataclass
class Value:
    """A value of the segment: its shape, how it lies in memory, and where in the arena (None before it is placed)."""

    shape: Shape
    layout: Layout
    place: int | None = None
    filled: int | None = None  # the zero point that the margin holds, where there is one


@dataclass
class Plan:
    """A frame ready to run, with all that its addresses point to, and what the outputs are."""

    frame: Frame
    shapes: list[Shape]  # of the outputs
    macs: int
    nbytes: int  # of the arena
    instructions: list[Instruction]
    kept: list[np.ndarray] = field(default_factory=list)

    @property
    def address(self) -> int:
        return self.frame.address


class Planner:
    """Makes the plan of a segment for inputs of certain shapes.

    ``packed``: what the segment's layers were packed into, by the step's name; ``emitters``: what adds the instructions
    of a step, by its kind; ``emit_margin``: what adds those that fill the margin of a value with a zero point.
    """

    def __init__(
        self, lowered: Lowered, packed: dict[str, PackedLayer], emitters: "Emitters",
        emit_margin: Callable[["Planner", str, int], None],
    ):  # fmt: skip
        self.steps, self.inputs, self.outputs = lowered.steps, lowered.inputs, lowered.outputs
        self.packed, self.emitters, self.emit_margin = packed, emitters, emit_margin
        self.soon = True  # whether outputs are read by another step of the network

    def plan(self, shapes: dict[str, Shape], *, member: int = 0, dry: bool = False) -> Plan:
        """The plan for inputs of these shapes, which this ``member`` of those that run at once will run; ``dry``:
        without memory to run in.

        UnsupportedError for shapes that the kernels do not take.
        """
        self.shapes, self.macs, self.member, self.dry = dict(shapes), 0, member, dry
        self.values: dict[str, Value] = {}
        self.alias: dict[str, str] = {}  # of floats that lie as others do
        self.instructions: list[Instruction] = []
        self.kept: list[np.ndarray] = []
        for step in self.steps:
            self.shapes[step.name] = shape_of(step, self.shapes)
        margins, self.images = self.margins(), self.forms()
        for step in self.steps:
            shape = self.shapes[step.name]
            if self.images[step.name] and 0 in shape[2:]:
                raise UnsupportedError(f"step {step.name!r}: expected images that have positions, got shape {shape}")
            if isinstance(step, FlattenFloats):
                self.alias[step.name] = step.x
            elif isinstance(step, DynamicLinear):
                self.values[step.name] = Value(shape, Layout(1, 1, 1, 4 * int(np.prod(shape))))
            elif not (isinstance(step, (Dequantize, Export, LinearSum)) or is_direct(step)):
                margin, zero = margins.get(step.name, (NO_MARGIN, None))
                self.values[step.name] = Value(shape, layout_of(shape, self.images[step.name], margin), None, zero)
        self.nbytes = spare = self.place()
        if self.nbytes > LONGEST:
            needs = f"this shape needs {self.nbytes:,}"
            raise UnsupportedError(f"batch: kernels use at most {LONGEST:,} bytes of memory, {needs}")
        # Behind all values there is room for a convolution's output that nobody reads.
        convs = (self.values.get(step.name) for step in self.steps if isinstance(step, (Conv, ConvAdd)))
        self.nbytes += max([value.layout.pitch for value in convs if value is not None], default=0)
        self.arena = self.work("values", self.nbytes)
        self.spare = self.arena + spare
        for step in self.steps:
            self.emitters[type(step)](self, step)
            if step.name in self.values and (zero := self.values[step.name].filled) is not None:
                self.emit_margin(self, step.name, zero)
        after_plan(self)
        return self.finish()

    def forms(self) -> dict[str, bool]:
        """Whether each value lies in memory as images [n, channels, *positions], or as rows."""
        told, forms = Forms(), {}
        for step in self.steps:
            told.add(step)
        for step in self.steps:
            rank, images = len(self.shapes[step.name]), told.of(step.name)
            # Where nothing tells, more than three axes are those of images.
            forms[step.name] = rank in (3, 4, 5) and (rank > 3 if images is None else images)
        for step in self.steps:
            rows_of_images = isinstance(step, (Linear, LinearSum, DynamicLinear)) and forms.get(step.x, False)
            if isinstance(step, Turn) and forms[step.x] == step.first:
                raise UnsupportedError(f"step {step.name!r}: expected an input that is laid out as what it turns")
            if rows_of_images:
                raise UnsupportedError(f"step {step.name!r}: expected rows, got an input that is laid out as images")
            if isinstance(step, (Add, Mul)) and not self.combine(step, forms[step.name]):
                kind, a, b = "images" if forms[step.name] else "rows", self.shapes[step.a], self.shapes[step.b]
                raise UnsupportedError(f"step {step.name!r}: kernels cannot broadcast {kind} of shapes {a} and {b}")
            images_of_rows = isinstance(step, (*WINDOWS, Mean, Concat)) and any(not forms[x] for x in reads(step))
            if images_of_rows and (len(self.shapes[step.name]) > 2 or isinstance(step, Mean)):
                raise UnsupportedError(f"step {step.name!r}: expected images, got an input that is laid out as rows")
        return forms

    def combine(self, step: Add | Mul, images: bool) -> bool:
        """Whether kernels go over values of two shapes: of as many axes, as samples are taken to lie along the first
        one, and of as many channels, and of rows three loops are enough."""
        a, b = self.shapes[step.a], self.shapes[step.b]
        if a == b or len(a) != len(b):
            return a == b
        return a[1] == b[1] if images else a[-1] == b[-1] and len(row_loops(a, b)) <= 3

    def margins(self) -> dict[str, tuple[Margin, int]]:
        """For each value that convolutions read beyond its edges: how far, and the zero point that is there."""
        result: dict[str, tuple[Margin, int]] = {}
        for step in self.steps:
            conv = step.conv if isinstance(step, ConvAdd) else step
            if isinstance(conv, Conv):
                counts, sizes = layout_of(self.shapes[step.name], True).counts, self.shapes[conv.x][2:]
                margin = result[conv.x][0] if conv.x in result else NO_MARGIN
                for part in dense_parts(conv):
                    margin = larger(margin, reach(part, sizes, part.counts(counts)))
                if any(margin):
                    result[conv.x] = margin, int(conv.x_qparams.zero_point)
        return result

    def place(self) -> int:
        """Gives every value in codes a place in the arena, that of one which is no longer needed where possible; the
        bytes of it.
        """
        last = {self.alias.get(name, name): index for index, step in enumerate(self.steps) for name in reads(step)}
        last |= dict.fromkeys(self.outputs, len(self.steps))
        free: list[tuple[int, int]] = []  # where memory is free, and how much
        used: list[tuple[int, int, int]] = []  # until which step, where, how much
        size = 0
        for index, step in enumerate(self.steps):
            if step.name not in self.values:
                continue
            free += [(place, length) for end, place, length in used if end < index]
            used = [entry for entry in used if entry[0] >= index]
            free = merged(free)
            need = -(-self.values[step.name].layout.nbytes // 64) * 64
            holes = (hole for hole in free if hole[1] >= need)
            fitting = min(holes, key=lambda hole: hole[1], default=None)
            if fitting is None and free and sum(free[-1]) == size:
                fitting = free[-1]
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
        return self.arena + offset

    def first(self, name: str) -> int:
        """Where the value's first position is."""
        return self.address(name) + self.values[name].layout.first

    def slot(self, name: str) -> int:
        """The number of an input or output."""
        return (self.inputs + self.outputs).index(name)

    def keep(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the plan."""
        self.kept.append(array)
        return int(array.ctypes.data)

    def work(self, use: str, nbytes: int) -> int:
        """The address of memory to work in."""
        return self.keep(workspace(use, self.member, 0 if self.dry else nbytes))

    def room(self, nbytes: int) -> int:
        """The address of memory for what one layer makes of its input, to be read by itself."""
        return self.work("layer", nbytes)

    def product_weights(self, name: str) -> Packed:
        """What the only product of a layer reads."""
        return only_product(self.packed[name])

    def emit(self, kernel: Kernel[SomeInstruction], instruction: SomeInstruction) -> None:
        """Adds an instruction for a kernel."""
        self.instructions.append(kernel.bound(instruction))

    def finish(self) -> Plan:
        """The plan of the instructions added."""
        slots = len(self.inputs + self.outputs)
        if slots > MOST_SLOTS:
            raise UnsupportedError(
                f"program: a compiled part has at most {MOST_SLOTS} inputs and outputs, this one has {slots}"
            )
        products = (i.product for i in self.instructions if isinstance(i, ProductInstruction))
        give_buffers(products, partial(self.work, "rows"))
        frame = frame_of(*self.instructions, slots=slots, release=self.macs >= LONG)
        shapes = [self.shapes[name] for name in self.outputs]
        return Plan(frame, shapes, self.macs, self.nbytes, self.instructions, self.kept)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of all products."""
        parts = [part for layer in self.packed.values() for part in layer]
        return sum(group.weight.nbytes for part in parts if isinstance(part, list) for group in part)

    def sizes(self) -> list[int]:
        """Bytes of an element of each input and output."""
        codes = {step.x for step in self.steps if isinstance(step, Import)}
        codes |= {step.name for step in self.steps if isinstance(step, Export)}
        return [1 if name in codes else 4 for name in self.inputs + self.outputs]

    @functools.cached_property
    def is_by_rows(self) -> bool:
        """Whether everything is done to each row, along the last axis, by itself, whatever the other axes are."""
        layers = [step for step in self.steps if isinstance(step, (Linear, LinearSum, DynamicLinear))]
        return bool(layers) and all(map(is_by_rows, self.steps))

    def batch(self, shapes: tuple[Shape, ...]) -> int | None:
        """How many samples can be computed independently of each other; None when the inputs are one."""
        layers = [step.layer for step in self.steps if isinstance(step, DynamicLinear)]
        if any(isinstance(layer, LinearDynamic) and not layer.rows for layer in layers):
            return None
        counts = {shape[0] if len(shape) > 1 else None for shape in shapes}
        return counts.pop() if len(counts) == 1 else None


def is_by_rows(step: LoweredStep) -> bool:
    """Whether a step is done to each row, along the last axis, by itself."""
    if isinstance(step, DynamicLinear):
        return not isinstance(step.layer, LinearDynamic) or step.layer.rows
    if isinstance(step, Linear):
        return not step.flat
    if isinstance(step, Table):
        return step.table.ndim == 1
    return isinstance(step, (Quantize, Dequantize, Import, Export, LinearSum, Relu, Add, Mul))


Emitters: TypeAlias = dict[type, Callable[[Planner, Any], None]]  # each takes the steps of its kind only


def ignore(planner: Planner) -> None:
    """Takes no notice of a plan."""


after_plan: Callable[[Planner], None] = ignore  # told of each plan that is made


def reach(part: DensePart, sizes: Shape, counts: Triple) -> Margin:
    """How far a convolution reads before and behind an image along each axis, for so many outputs."""
    conv, sides = part.conv, []
    axes = zip(sizes, counts[-len(sizes) :], codes_shape(conv)[2:], conv.stride, conv.padding, conv.dilation)
    for n, outputs, k, s, (before, _), d in axes:
        behind = (outputs - 1) * s + d * (k - 1) + 1 - before - n
        sides += [max(0, before), max(0, behind)] if outputs else [0, 0]
    front, back, above, below, left, right = [0] * (6 - len(sides)) + sides
    return front, back, above, below, left, right


def larger(a: Margin, b: Margin) -> Margin:
    """A margin that holds two."""
    front, back, above, below, left, right = map(max, a, b)
    return front, back, above, below, left, right


def merged(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Holes (place, length) in order, neighbours made one."""
    result: list[tuple[int, int]] = []
    for place, length in sorted(holes):
        if result and sum(result[-1]) == place:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((place, length))
    return result


def row_loops(a: Shape, b: Shape) -> list[tuple[int, int, int]]:
    """The loops over the rows of two values of as many axes that are broadcast, from the outermost on: how often each
    is run, and how many rows either value moves on."""
    loops: list[tuple[int, int, int]] = []
    rows_a = rows_b = 1
    for n_a, n_b in zip(a[-2::-1], b[-2::-1], strict=True):
        count, apart_a, apart_b = max(n_a, n_b), rows_a * (n_a > 1), rows_b * (n_b > 1)
        rows_a, rows_b = rows_a * n_a, rows_b * n_b
        if loops and (apart_a, apart_b) == (loops[0][0] * loops[0][1], loops[0][0] * loops[0][2]):
            loops[0] = count * loops[0][0], *loops[0][1:]  # goes on where the inner loop ends
        elif count > 1:
            loops.insert(0, (count, apart_a, apart_b))
    return loops


def layout_of(shape: Shape, as_images: bool, margin: Margin = NO_MARGIN) -> Layout:
    """How an array of that shape lies in memory."""
    if not as_images:
        return Layout(int(np.prod(shape[:-1])), 1, 1, shape[-1] if shape else 1)
    depth, height, width = (*(1,) * (5 - len(shape)), *shape[2:])
    return Layout(shape[0], height, width, shape[1], margin, depth)
