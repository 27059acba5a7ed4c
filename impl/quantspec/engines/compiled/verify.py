"""What holds of a segment's steps after each pass of lowering, and of a plan: the tests run it, a network does not."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Call,
    Concat,
    Conv,
    Dequantize,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Mean,
    Move,
    Mul,
    Quantize,
    Relu,
    Table,
)
from quantspec.ir.traverse import reads
from quantspec.numerics.affine import QParams

from .lowering import (
    ConvAdd,
    DynamicLinear,
    Export,
    FlattenFloats,
    Import,
    LinearSum,
    Lowered,
    LoweredStep,
    QuantizeFlat,
    Turn,
    argument,
    gives_floats,
    reads_floats,
)
from .planner import Planner
from .shapes import shape_of

SELECTED = {
    Quantize, Dequantize, Linear, Conv, Table, Relu, Add, Mul, Concat, MaxPool, AvgPool, AdaptiveAvgPool, Mean,
    Bilinear, Move, LinearDynamic, LinearWeight, Call,
}  # fmt: skip
WITHOUT_CALLS = SELECTED - {LinearDynamic, LinearWeight, Call} | {LinearSum, DynamicLinear, FlattenFloats}
ALLOWED: dict[str, set[type]] = {  # kinds of steps, by the pass that was the last
    "select": SELECTED,
    "sums of floats": SELECTED | {LinearSum},
    "dynamic layers": WITHOUT_CALLS,
    "turned images": WITHOUT_CALLS | {Turn},
    "flat quantizing": WITHOUT_CALLS | {Turn, QuantizeFlat},
    "sums in convolutions": WITHOUT_CALLS | {Turn, QuantizeFlat, ConvAdd},
    "boundaries": WITHOUT_CALLS | {Turn, QuantizeFlat, ConvAdd, Import, Export},
}


class BrokenError(AssertionError):
    """Lowered steps, or a plan, of which something does not hold that must."""


@dataclass(frozen=True, eq=False)
class Codes:
    """A value in codes, on a grid that is known or not."""

    grid: QParams | None = None


@dataclass(frozen=True)
class Floats:
    """A value in float32."""


Content = Codes | Floats


def check_lowered(name: str, lowered: Lowered) -> None:
    """Raises BrokenError unless, after the pass of that name: all kinds of steps are allowed; every value is made once,
    before it is read; what is read is what was made, floats or codes, on the same grid; all outputs are made.
    """
    made: dict[str, Content | None] = dict.fromkeys(lowered.inputs)  # None: it comes from outside
    bounded = name == "boundaries"
    for step in lowered.steps:
        where = f"after {name!r}: step {step.name!r}"
        if type(step) not in ALLOWED[name]:
            raise BrokenError(f"{where}: {type(step).__name__} is not allowed there")
        if step.name in made:
            raise BrokenError(f"{where}: there is a value of that name already")
        for source, content in contents(step).items():
            if source not in made:
                raise BrokenError(f"{where}: {source!r} is read before it is made")
            given = made[source]
            if given is None:
                codes_from_outside = isinstance(content, Codes) and not isinstance(step, Import)
                if bounded and codes_from_outside:
                    raise BrokenError(f"{where}: codes from outside are read where no step imports them")
            elif not agree(given, content):
                raise BrokenError(f"{where}: {source!r} is {text(given)}, and is read as {text(content)}")
        made[step.name] = content_of(step, made)
    for output in lowered.outputs:
        if output not in made:
            raise BrokenError(f"after {name!r}: output {output!r} is not made")
    if bounded:
        inside = {step.name for step in lowered.steps if not (gives_floats(step) or isinstance(step, Export))}
        if there := inside & set(lowered.outputs):
            raise BrokenError(f"after {name!r}: codes {sorted(there)} go outside where no step exports them")


def contents(step: LoweredStep) -> dict[str, Content]:
    """What a step takes each value that it reads for."""
    if reads_floats(step):
        return dict.fromkeys(reads(step), Floats())
    if isinstance(step, (Linear, Conv, Table)):
        return {step.x: Codes(step.x_qparams)}
    if isinstance(step, ConvAdd):
        return {step.x: Codes(step.conv.x_qparams), step.b: Codes(step.b_qparams)}
    if isinstance(step, LinearSum):
        return {step.x: Codes(step.linear.x_qparams), step.b: Floats()}
    if isinstance(step, (Add, Mul)):
        return {step.a: Codes(step.a_qparams), step.b: Codes(step.b_qparams)}
    if isinstance(step, Concat):
        return {x: Codes(grid) for x, grid in zip(step.xs, step.x_qparams)}
    if isinstance(step, Move):
        return {argument(step): Codes(step.qparams)}
    if isinstance(step, Bilinear):
        return {name: Codes(step.qparams if name == step.x else None) for name in reversed(reads(step))}
    if isinstance(step, (Dequantize, Relu, AvgPool, AdaptiveAvgPool, Mean, Turn)):
        return {step.x: Codes(step.qparams)}
    return dict.fromkeys(reads(step), Codes())


def content_of(step: LoweredStep, made: dict[str, Content | None]) -> Content:
    """What a step makes."""
    if gives_floats(step):
        return Floats()
    if isinstance(step, (Linear, Conv, Table, Add, Mul, Concat)):
        return Codes(step.y_qparams)
    if isinstance(step, ConvAdd):
        return Codes(step.add.y_qparams)
    if isinstance(step, (Quantize, QuantizeFlat, Relu, AvgPool, AdaptiveAvgPool, Mean, Bilinear, Move, Turn)):
        return Codes(step.qparams)
    if isinstance(step, (MaxPool, Export)):
        return made[step.x] or Codes()
    return Codes()


def agree(given: Content, taken: Content) -> bool:
    """Whether a value is what a step takes it for."""
    if isinstance(given, Floats) or isinstance(taken, Floats):
        return isinstance(given, Floats) and isinstance(taken, Floats)
    a, b = given.grid, taken.grid
    return a is None or b is None or a is b or entries(a) == entries(b)


def entries(grid: QParams) -> tuple[Any, ...]:
    return grid.scale.tolist(), grid.zero_point.tolist(), grid.qmin, grid.qmax, grid.axis


def text(content: Content) -> str:
    """A content in words."""
    if isinstance(content, Floats):
        return "floats"
    grid = content.grid
    return "codes" if grid is None else f"codes of scale {grid.scale} and zero point {grid.zero_point}"


def check_plan(planner: Planner) -> None:
    """Raises BrokenError unless shapes are those that the steps make of each other, every value's memory holds what its
    shape says, and no two values that are needed at a time share any.
    """
    for step in planner.steps:
        shape = shape_of(step, planner.shapes)
        if planner.shapes[step.name] != shape:
            raise BrokenError(f"step {step.name!r}: its shape is {shape}, planned is {planner.shapes[step.name]}")
        value = planner.values.get(step.name)
        if value is None or isinstance(step, DynamicLinear):
            continue
        layout = value.layout
        if layout.images * int(np.prod(layout.counts)) * layout.channels != int(np.prod(shape)):
            raise BrokenError(f"step {step.name!r}: memory as {layout} does not hold shape {shape}")
    numbers = {step.name: index for index, step in enumerate(planner.steps)}
    last = dict(numbers)
    for index, step in enumerate(planner.steps):
        last |= {planner.alias.get(name, name): index for name in reads(step)}
    last |= dict.fromkeys(planner.outputs, len(planner.steps))
    spans = []
    for name, value in planner.values.items():
        start = planner.address(name) - planner.arena
        spans.append((name, start, start + value.layout.nbytes, numbers[name], last[name]))
    for index, (name, start, end, made, needed) in enumerate(spans):
        for other, other_start, other_end, other_made, other_needed in spans[index + 1 :]:
            if start < other_end and other_start < end and made <= other_needed and other_made <= needed:
                raise BrokenError(f"steps {name!r} and {other!r}: their values share memory while both are needed")
