"""Lowering: the steps of a segment, with what has kernels of its own together put into one step.

Passes turn a segment's steps, one after the other, into lowered ones: first sums of floats, which take the layer before
them, then dynamic layers, which take the ReLU behind them, then what puts channels first or last, then quantizing and
flattening, then convolutions and the sums that alone read them; in the end codes that come from outside, or go there,
get steps of their own. ``verify`` says what holds after each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

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
    Ref,
    Relu,
    Table,
)
from quantspec.ir.traverse import is_direct, reads
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.float32 import fma

from .packing import FloatLayer, is_depthwise
from .transposed import is_transposed


@dataclass(frozen=True, eq=False)
class ConvAdd:
    """A convolution and the sum that alone reads it.

    ``b``: the other operand; ``first``: the convolution is the sum's first.
    """

    name: str
    x: str
    b: str
    conv: Conv
    add: Add
    first: bool

    @property
    def b_qparams(self) -> QParams:
        """The grid of the other operand."""
        return self.add.b_qparams if self.first else self.add.a_qparams


@dataclass(frozen=True, eq=False)
class LinearSum:
    """A linear layer of codes that gives floats, and the sum that alone reads it; ``b``: the other floats."""

    name: str
    x: str
    b: str
    linear: Linear


@dataclass(frozen=True, eq=False)
class QuantizeFlat:
    """Floats to codes whose axes from 1 on are one."""

    name: str
    x: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Turn:
    """Codes of ``rank`` axes whose channels, the last axis, become axis 1 where ``first``, or the other way round: rows
    become images, or images rows.
    """

    name: str
    x: str
    qparams: QParams
    first: bool
    rank: int


@dataclass(frozen=True, eq=False)
class FlattenFloats:
    """Floats whose axes from 1 on are one."""

    name: str
    x: str


@dataclass(frozen=True, eq=False)
class DynamicLinear:
    """A linear layer of floats, with a ReLU behind it where ``relu``."""

    name: str
    x: str
    layer: FloatLayer
    relu: bool


@dataclass(frozen=True, eq=False)
class Import:
    """Codes from outside, as an array in the order of its axes."""

    name: str
    x: str


@dataclass(frozen=True, eq=False)
class Export:
    """Codes to outside."""

    name: str
    x: str


Pool: TypeAlias = MaxPool | AvgPool | AdaptiveAvgPool | Mean
SelectedStep: TypeAlias = (
    Quantize | Dequantize | Linear | Conv | Table | Relu | Add | Mul | Concat | Pool | Bilinear | Move | FloatLayer
    | Call
)
LoweredStep: TypeAlias = (
    SelectedStep | ConvAdd | LinearSum | Turn | QuantizeFlat | FlattenFloats | DynamicLinear | Import | Export
)


@dataclass(frozen=True, eq=False)
class Lowered:
    """Steps in the order in which they run, the names of the values from outside, and of those that go there."""

    steps: tuple[LoweredStep, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def ignore(name: str, lowered: Lowered) -> None:
    """Takes no notice of a pass."""


after_pass: Callable[[str, Lowered], None] = ignore  # told the name of each pass, and what it gave


def lower(steps: Sequence[SelectedStep], inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Lowered:
    """A segment's steps after all passes."""
    lowered = Lowered(tuple(steps), inputs, outputs)
    after_pass("select", lowered)
    for name, run in PASSES.items():
        lowered = run(lowered)
        after_pass(name, lowered)
    return lowered


def readers(steps: Sequence[object]) -> dict[str, list[object]]:
    """The steps that read each value, once for each time they do."""
    result: dict[str, list[object]] = {}
    for step in steps:
        for name in reads(step):
            result.setdefault(name, []).append(step)
    return result


def argument(step: Move | Call) -> str:
    """The name of the value that a call of a known kind is made with."""
    first = step.args[0]
    assert isinstance(first, Ref)
    return first.name


def flattens(step: Move | Call) -> bool:
    """Whether a step makes rows of images: ``flatten`` from axis 1 on."""
    given = dict(zip(("start_dim", "end_dim"), step.args[1:])) | step.kwargs
    of_value = step.target in ("torch.flatten", "flatten") and len(step.args) > 0 and isinstance(step.args[0], Ref)
    return of_value and given.get("start_dim") == 1 and given.get("end_dim", -1) == -1


def order_of(step: Move | Call) -> tuple[int, ...]:
    """The axes of a value in the order in which a step puts them; none for other steps."""
    if step.target not in ("torch.permute", "permute") or not step.args or not isinstance(step.args[0], Ref):
        return ()
    dims = step.args[1:] or (step.kwargs.get("dims"),)
    dims = tuple(dims[0]) if isinstance(dims[0], (tuple, list)) else dims
    return tuple(axis % len(dims) for axis in dims) if all(type(axis) is int for axis in dims) else ()


def turns(step: Move | Call) -> tuple[bool, int] | None:
    """Whether a step puts the channels of images first, or last, and how many axes those have; None for others.

    Of three axes each is the other, so that it does not tell.
    """
    order = order_of(step)
    if (rank := len(order)) not in (4, 5):
        return None
    first, last = order == (0, rank - 1, *range(1, rank - 1)), order == (0, *range(2, rank), 1)
    return (first, rank) if first or last else None


def is_sum(step: object) -> bool:
    """Whether a step is the sum of two floats."""
    known = ("function", "operator.add"), ("function", "torch.add"), ("method", "add")
    return (
        isinstance(step, Call) and (step.kind, step.target) in known and not step.kwargs
        and len(step.args) == 2 and all(isinstance(each, Ref) for each in step.args)
    )  # fmt: skip


def sums_of_floats(lowered: Lowered) -> Lowered:
    """Linear layers that give floats, each with the sum behind it."""
    steps: list[LoweredStep] = []
    for step in lowered.steps:
        if isinstance(step, Call) and is_sum(step):
            linear = steps.pop()
            assert isinstance(linear, Linear)  # as ``selection.compilable`` says
            (other,) = (name for name in reads(step) if name != linear.name)
            steps.append(LinearSum(step.name, linear.x, other, linear))
        else:
            steps.append(step)
    return replace(lowered, steps=tuple(steps))


def dynamic_layers(lowered: Lowered) -> Lowered:
    """Linear layers of floats, each with the ReLU that alone reads it; calls that flatten floats."""
    numbers = {step.name: index for index, step in enumerate(lowered.steps)}
    result: list[LoweredStep | None] = list(lowered.steps)
    for index, step in enumerate(lowered.steps):
        if isinstance(step, FloatLayer):
            result[index] = DynamicLinear(step.name, step.x, step, False)
        elif isinstance(step, Call):
            source = argument(step)
            layer = lowered.steps[numbers[source]] if source in numbers else None
            if isinstance(layer, FloatLayer):
                result[numbers[source]], result[index] = None, DynamicLinear(step.name, layer.x, layer, True)
            else:
                assert flattens(step)  # which is the only other call that is selected
                result[index] = FlattenFloats(step.name, source)
    return replace(lowered, steps=present(result))


def turned_images(lowered: Lowered) -> Lowered:
    """What puts channels first or last."""
    result: list[LoweredStep] = []
    for step in lowered.steps:
        turned = turns(step) if isinstance(step, Move) else None
        if isinstance(step, Move) and turned is not None:
            result.append(Turn(step.name, argument(step), step.qparams, *turned))
        else:
            result.append(step)
    return replace(lowered, steps=tuple(result))


def flat_quantizing(lowered: Lowered) -> Lowered:
    """Quantizing and the flattening that alone reads it."""
    numbers, read_by = {step.name: index for index, step in enumerate(lowered.steps)}, readers(lowered.steps)
    result: list[LoweredStep | None] = list(lowered.steps)
    for index, step in enumerate(lowered.steps):
        source = read_alone(step, numbers, read_by, lowered.outputs) if isinstance(step, Move) else None
        quantize = lowered.steps[source] if source is not None else None
        if isinstance(quantize, Quantize) and source is not None:
            result[source], result[index] = None, QuantizeFlat(step.name, quantize.x, quantize.qparams)
    return replace(lowered, steps=present(result))


def sums_in_convolutions(lowered: Lowered) -> Lowered:
    """Convolutions and the sum that alone reads them."""
    numbers, read_by = {step.name: index for index, step in enumerate(lowered.steps)}, readers(lowered.steps)
    result: list[LoweredStep | None] = list(lowered.steps)
    for index, step in enumerate(lowered.steps):
        if not isinstance(step, Add) or not add_factors(step).finite:
            continue
        source = read_alone(step, numbers, read_by, lowered.outputs)
        conv = lowered.steps[source] if source is not None else None
        if source is None or not isinstance(conv, Conv) or is_direct(conv) or is_depthwise(conv) or is_transposed(conv):
            continue
        # The other operand is there already, as the convolution is the later one.
        first = step.a == conv.name
        other = step.b if first else step.a
        result[source], result[index] = ConvAdd(step.name, conv.x, other, conv, step, first), None
    return replace(lowered, steps=present(result))


def boundaries(lowered: Lowered) -> Lowered:
    """Steps for codes that come from outside or go there. Outside they have other names."""
    floats = {name for step in lowered.steps if reads_floats(step) for name in reads(step)}
    floats |= {step.b for step in lowered.steps if isinstance(step, LinearSum)}
    imported = [name for name in lowered.inputs if name not in floats]
    exported = [step.name for step in lowered.steps if step.name in lowered.outputs and not gives_floats(step)]
    imports = (Import(name, outside(name)) for name in imported)
    exports = (Export(outside(name), name) for name in lowered.outputs if name in exported)
    return Lowered(
        (*imports, *lowered.steps, *exports),
        tuple(outside(name) if name in imported else name for name in lowered.inputs),
        tuple(outside(name) if name in exported else name for name in lowered.outputs),
    )


PASSES: dict[str, Callable[[Lowered], Lowered]] = {
    "sums of floats": sums_of_floats,
    "dynamic layers": dynamic_layers,
    "turned images": turned_images,
    "flat quantizing": flat_quantizing,
    "sums in convolutions": sums_in_convolutions,
    "boundaries": boundaries,
}


def outside(name: str) -> str:
    """What codes are called outside."""
    return f"{name} outside"


def reads_floats(step: LoweredStep) -> bool:
    """Whether the values that a step reads are floats."""
    return isinstance(step, (Quantize, QuantizeFlat, FlattenFloats, LinearDynamic, LinearWeight, DynamicLinear, Call))


def gives_floats(step: LoweredStep) -> bool:
    """Whether the value that a step makes is floats."""
    kinds = Dequantize, FlattenFloats, LinearDynamic, LinearWeight, DynamicLinear, LinearSum, Call
    return isinstance(step, kinds) or is_direct(step)


def present(steps: Sequence[LoweredStep | None]) -> tuple[LoweredStep, ...]:
    """Those that are left."""
    return tuple(step for step in steps if step is not None)


def read_alone(
    step: LoweredStep, numbers: dict[str, int], read_by: dict[str, list[object]], outputs: tuple[str, ...]
) -> int | None:
    """The number of the step whose value is the latest that a step reads, when nothing else reads it."""
    if len(set(names := reads(step))) != len(names):
        return None
    latest = max(names, key=lambda name: numbers.get(name, -1))
    return numbers.get(latest) if len(read_by[latest]) == 1 and latest not in outputs else None


@dataclass(frozen=True)
class AddFactors:
    """The factors of both operands of a sum, and its start (DIA-ADD, ``ratios``)."""

    a: float
    b: float
    start: float

    @property
    def finite(self) -> bool:
        return bool(np.isfinite([self.a, self.b, self.start]).all())


def add_factors(step: Add) -> AddFactors:
    """Those of a step."""
    a, b, y = step.a_qparams, step.b_qparams, step.y_qparams
    a_zero, b_zero, zero = (grid.zero_point.astype(np.float32) for grid in (a, b, y))
    with np.errstate(over="ignore", invalid="ignore"):
        a_ratio, b_ratio = a.scale / y.scale, b.scale / y.scale
        start = zero - fma(a_ratio, a_zero, b_ratio * b_zero)
    return AddFactors(float(a_ratio), float(b_ratio), float(start))
