"""Which steps the kernels know, and the shapes of what they make."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from quantspec.errors import UnsupportedError
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Call,
    Concat,
    Conv,
    Dequantize,
    Linear,
    LinearDynamic,
    MaxPool,
    Mean,
    Move,
    Mul,
    Program,
    Quantize,
    Ref,
    Relu,
    Table,
)
from quantspec.ir.traverse import reads, refs
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.float32 import fma
from quantspec.numerics.windows import sizes

from .transposed import is_transposed


@dataclass(frozen=True, eq=False)
class ConvAdd:
    """A convolution and the sum that alone reads it, in one step.

    ``b`` is the other operand; ``first``: the convolution is the sum's first.
    """

    name: str
    x: str
    b: str
    conv: Conv
    add: Add
    first: bool


@dataclass(frozen=True, eq=False)
class FlatQuantize:
    """Floats to codes whose axes from 1 on are one."""

    name: str
    x: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class FlatFloat:
    """Floats whose axes from 1 on are one."""

    name: str
    x: str


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


@dataclass(frozen=True, eq=False)
class Dynamic:
    """A dynamic linear layer, with a ReLU behind it where ``relu``."""

    name: str
    x: str
    layer: LinearDynamic
    relu: bool


def is_relu(step, callables: dict) -> bool:
    """Whether a step is a ReLU of floats."""
    if not isinstance(step, Call) or len(step.args) != 1 or not isinstance(step.args[0], Ref):
        return False
    if step.kind == "module":
        return type(callables.get((step.kind, step.target))) is nn.ReLU
    return step.target in ("torch.relu", "torch.nn.functional.relu", "relu") and step.kwargs.get("inplace", False) is False


def compilable(program: Program) -> set[str]:
    """The names of the steps that the kernels know, whatever the shapes."""
    names = {step.name for step in program.steps if known(step)}
    given = set(refs(program.output))
    dynamic = {step.name for step in program.steps if isinstance(step, LinearDynamic) and step.name not in given}
    for step in program.steps:
        if is_relu(step, program.callables) and step.args[0].name in dynamic & names and len(readers(program.steps)[step.args[0].name]) == 1:
            names.add(step.name)
        elif isinstance(step, Call) and flattens(step) and step.args[0].name in program.inputs:
            names |= {step.name} if all(isinstance(reader, LinearDynamic) for reader in readers(program.steps).get(step.name, ())) else set()
    return names


def readers(steps) -> dict[str, list]:
    """The steps that read each value, once for each time they do."""
    result: dict[str, list] = {}
    for step in steps:
        for name in reads(step):
            result.setdefault(name, []).append(step)
    return result


def known(step) -> bool:
    """Whether the kernels know a step by itself."""
    if isinstance(step, Conv):
        in_planes = step.weight.ndim <= 4 or not is_depthwise(step)
        return in_planes and step.weight.size > 0 and all(1 in pair for pair in zip(step.stride, step.input_dilation))
    if isinstance(step, (Linear, LinearDynamic)):
        return step.weight.size > 0
    if isinstance(step, (MaxPool, AvgPool)):
        return len(step.kernel) <= 3
    if isinstance(step, AdaptiveAvgPool):
        return len(step.size) <= 3
    if isinstance(step, Move):
        return flattens(step)
    return type(step) in SHAPES


def flattens(step: Move | Call) -> bool:
    """Whether a step makes rows of images: ``flatten`` from axis 1 on."""
    given = dict(zip(("x", "start_dim", "end_dim"), step.args)) | step.kwargs
    known = step.target in ("torch.flatten", "flatten") and len(step.args) > 0 and isinstance(step.args[0], Ref)
    return known and given.get("start_dim", 0) == 1 and given.get("end_dim", -1) == -1


def fused(steps: tuple, outputs: tuple[str, ...]) -> tuple:
    """The steps with what has a kernel of its own together put into one: a convolution and the sum that alone reads
    it, ...
    """
    places, read_by = {step.name: index for index, step in enumerate(steps)}, readers(steps)
    result: list = list(steps)
    for index, step in enumerate(steps):
        if isinstance(step, LinearDynamic):
            result[index] = Dynamic(step.name, step.x, step, False)
            continue
        if isinstance(step, Call):
            source = places.get(step.args[0].name)
            if source is None:
                result[index] = FlatFloat(step.name, step.args[0].name)
            else:
                layer = steps[source]
                result[source], result[index] = None, Dynamic(step.name, layer.x, layer, True)
            continue
        later = alone(step, places, read_by, outputs)
        at = places.get(later)
        made = None if at is None else result[at]
        if isinstance(step, Move) and isinstance(made, Quantize):
            result[at], result[index] = None, FlatQuantize(step.name, made.x, made.qparams)
        elif isinstance(step, Add) and isinstance(made, Conv) and not (is_depthwise(made) or is_transposed(made)) and ratios(step)[3]:
            # The other operand is there already, as ``later`` is the later one.
            other = step.b if later == step.a else step.a
            result[at], result[index] = ConvAdd(step.name, made.x, other, made, step, later == step.a), None
    return tuple(step for step in result if step is not None)


def alone(step, places: dict[str, int], read_by: dict[str, list], outputs: tuple[str, ...]) -> str | None:
    """The latest value that a step reads, when nothing else reads it."""
    if len(set(names := reads(step))) != len(names):
        return None
    later = max(names, key=lambda name: places.get(name, -1))
    return later if len(read_by[later]) == 1 and later not in outputs else None


def ratios(step: Add) -> tuple[np.float32, np.float32, np.float32, bool]:
    """The factors of both operands and the start of a sum (DIA-ADD, ``ratios``), and whether they are finite."""
    a, b, y = step.a_qparams, step.b_qparams, step.y_qparams
    with np.errstate(over="ignore", invalid="ignore"):
        r_a, r_b = a.scale / y.scale, b.scale / y.scale
        start = y.zero_point.astype(np.float32) - fma(r_a, a.zero_point.astype(np.float32), r_b * b.zero_point.astype(np.float32))
    return r_a, r_b, start, bool(np.isfinite([r_a, r_b, start]).all())


def is_depthwise(step) -> bool:
    """Whether a layer is a convolution in which every channel is on its own."""
    return isinstance(step, Conv) and step.groups == len(step.weight) and step.weight.shape[1] == 1 and step.groups > 1


def images(shape: tuple[int, ...], positions: int, step) -> tuple[int, ...]:
    if len(shape) != positions + 2:
        raise UnsupportedError(f"step {step.name!r}: the kernels take {positions + 2} axes, got shape {shape}")
    return shape


def same(step, shapes) -> tuple[int, ...]:
    return shapes[step.x]


def linear(step: Linear, shapes) -> tuple[int, ...]:
    shape = shapes[step.x]
    if not shape or shape[-1] != step.weight.shape[1]:
        raise UnsupportedError(f"layer {step.layer!r}: expected {step.weight.shape[1]} input features, got shape {shape}")
    return (*shape[:-1], len(step.weight))


def dynamic(step: Dynamic, shapes) -> tuple[int, ...]:
    return linear(replace(step.layer, x=step.x), shapes)


def conv(step: Conv, shapes) -> tuple[int, ...]:
    shape = images(shapes[step.x], step.weight.ndim - 2, step)
    if shape[1] != step.weight.shape[1] * step.groups:
        raise UnsupportedError(f"layer {step.layer!r}: expected {step.weight.shape[1] * step.groups} channels, got shape {shape}")
    counts = []
    for n, k, s, (before, after), d, spread in zip(shape[2:], step.weight.shape[2:], step.stride, step.padding, step.dilation, step.input_dilation):
        counts.append(((n - 1) * spread + before + after - d * (k - 1)) // s + 1)
    if min(counts) < 1 or 0 in shape[2:]:
        raise UnsupportedError(f"layer {step.layer!r}: its kernel does not fit into shape {shape}")
    return (shape[0], len(step.weight), *counts)


def pool(step, shapes) -> tuple[int, ...]:
    shape = images(shapes[step.x], len(step.kernel), step)
    return (*shape[:2], *sizes(shape, step.kernel, step.stride, step.padding, getattr(step, "dilation", (1,) * len(step.kernel)), step.ceil_mode))


def adaptive(step: AdaptiveAvgPool, shapes) -> tuple[int, ...]:
    shape = images(shapes[step.x], len(step.size), step)
    if 0 in shape or 0 in step.size:
        raise UnsupportedError(f"step {step.name!r}: nothing to average in shape {shape}")
    return (*shape[:2], *(n if size is None else size for n, size in zip(shape[2:], step.size)))


def mean(step: Mean, shapes) -> tuple[int, ...]:
    shape = shapes[step.x]
    axes = {axis % len(shape) for axis in step.axes} if shape else set()
    if len(shape) not in (3, 4, 5) or axes != set(range(2, len(shape))) or 0 in shape:
        raise UnsupportedError(f"step {step.name!r}: the kernels average over positions only, not over axes {step.axes} of shape {shape}")
    return (*shape[:2], *((1,) * len(axes) if step.keepdim else ()))


def pair(step, shapes) -> tuple[int, ...]:
    a, b = shapes[step.a], shapes[step.b]
    if len(a) != len(b) or (a[1:2] != b[1:2]) or (len(a) < 3 and a != b):
        raise UnsupportedError(f"step {step.name!r}: the kernels do not combine shapes {a} and {b}")
    return tuple(np.broadcast_shapes(a, b))


def conv_add(step: ConvAdd, shapes) -> tuple[int, ...]:
    shape = conv(step.conv, shapes)
    if shape != shapes[step.b]:
        raise UnsupportedError(f"step {step.name!r}: the kernels do not add {shape} and {shapes[step.b]} while they convolve")
    return shape


def concat(step: Concat, shapes) -> tuple[int, ...]:
    parts = [shapes[x] for x in step.xs]
    first = parts[0]
    if len(first) < 2 or step.axis % len(first) != 1 or any(len(p) != len(first) or p[:1] + p[2:] != first[:1] + first[2:] for p in parts):
        raise UnsupportedError(f"step {step.name!r}: the kernels join channels only, not axis {step.axis} of shapes {parts}")
    return (first[0], sum(p[1] for p in parts), *first[2:])


def flat(step: Move | FlatQuantize | FlatFloat, shapes) -> tuple[int, ...]:
    shape = shapes[reads(step)[0]]
    if len(shape) < 2:
        raise UnsupportedError(f"step {step.name!r}: expected two axes or more, got shape {shape}")
    return (shape[0], int(np.prod(shape[1:])))


SHAPES: dict[type, Callable] = {
    Quantize: same, Dequantize: same, Linear: linear, Conv: conv, ConvAdd: conv_add, Table: same, Relu: same, Add: pair, Mul: pair, Concat: concat, MaxPool: pool,
    AvgPool: pool, AdaptiveAvgPool: adaptive, Mean: mean, Move: flat, FlatQuantize: flat, FlatFloat: flat, Dynamic: dynamic,
    Import: same, Export: same,
}  # fmt: skip
