"""The shapes of what the kernels make, and what shapes they do not take."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Concat,
    Conv,
    Dequantize,
    Linear,
    MaxPool,
    Mean,
    Move,
    Mul,
    Quantize,
    Relu,
    Table,
)
from quantspec.numerics import bilinear
from quantspec.numerics.windows import sizes

from .lowering import (
    ConvAdd,
    DynamicLinear,
    Export,
    FlattenFloats,
    Import,
    LinearSum,
    LoweredStep,
    QuantizeFlat,
    Turn,
    argument,
)
from .packing import FloatLayer

Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = Mapping[str, Shape]
Keeping: TypeAlias = Quantize | Dequantize | Table | Relu | Import | Export  # steps that keep the shape


def images(shape: Shape, positions: int, step: Conv | MaxPool | AvgPool | AdaptiveAvgPool) -> Shape:
    """The shape; UnsupportedError where it has not so many axes of positions."""
    if len(shape) != positions + 2:
        raise UnsupportedError(f"step {step.name!r}: expected {positions + 2} axes, got shape {shape}")
    return shape


def same(step: Keeping, shapes: Shapes) -> Shape:
    return shapes[step.x]


def features(layer: Linear | FloatLayer, shape: Shape) -> Shape:
    """The shape of a layer's outputs, for inputs of a shape."""
    if not shape or shape[-1] != codes_shape(layer)[1]:
        raise UnsupportedError(
            f"layer {layer.layer!r}: expected {codes_shape(layer)[1]} input features, got shape {shape}"
        )
    if isinstance(layer, Linear) and layer.flat and len(shape) != 2:
        raise UnsupportedError(f"layer {layer.layer!r}: expected two axes, got shape {shape}")
    return (*shape[:-1], codes_shape(layer)[0])


def linear(step: Linear, shapes: Shapes) -> Shape:
    return features(step, shapes[step.x])


def linear_sum(step: LinearSum, shapes: Shapes) -> Shape:
    shape = features(step.linear, shapes[step.x])
    if shape != shapes[step.b]:
        raise UnsupportedError(f"step {step.name!r}: expected a summand of shape {shape}, got {shapes[step.b]}")
    return shape


def dynamic(step: DynamicLinear, shapes: Shapes) -> Shape:
    return features(step.layer, shapes[step.x])


def conv(step: Conv, shapes: Shapes) -> Shape:
    weight = codes_shape(step)
    shape, channels = images(shapes[step.x], len(weight) - 2, step), weight[1] * step.groups
    if shape[1] != channels:
        raise UnsupportedError(f"layer {step.layer!r}: expected {channels} channels, got shape {shape}")
    counts = []
    axes = zip(shape[2:], weight[2:], step.stride, step.padding, step.dilation, step.input_dilation)
    for n, k, s, (before, after), d, spread in axes:
        counts.append(((n - 1) * spread + before + after - d * (k - 1)) // s + 1)
    if min(counts) < 1 or 0 in shape[2:]:
        raise UnsupportedError(f"layer {step.layer!r}: expected an input that its kernel fits into, got shape {shape}")
    return (shape[0], weight[0], *counts)


def pool(step: MaxPool | AvgPool, shapes: Shapes) -> Shape:
    shape = images(shapes[step.x], len(step.kernel), step)
    dilation = step.dilation if isinstance(step, MaxPool) else (1,) * len(step.kernel)
    return (*shape[:2], *sizes(shape, step.kernel, step.stride, step.padding, dilation, step.ceil_mode))


def adaptive(step: AdaptiveAvgPool, shapes: Shapes) -> Shape:
    shape = images(shapes[step.x], len(step.size), step)
    if 0 in shape or 0 in step.size:
        raise UnsupportedError(f"step {step.name!r}: expected at least one element to average, got shape {shape}")
    return (*shape[:2], *(n if size is None else size for n, size in zip(shape[2:], step.size)))


def mean(step: Mean, shapes: Shapes) -> Shape:
    shape = shapes[step.x]
    axes = {axis % len(shape) for axis in step.axes} if shape else set()
    if len(shape) not in (3, 4, 5) or axes != set(range(2, len(shape))) or 0 in shape:
        raise UnsupportedError(
            f"step {step.name!r}: kernels average over all positions of images, got axes {step.axes} of shape {shape}"
        )
    return (*shape[:2], *((1,) * len(axes) if step.keepdim else ()))


def interpolated(step: Bilinear, shapes: Shapes) -> Shape:
    shape = shapes[step.x]
    like = shape if step.like is None else shapes[step.like]
    if len(shape) != 4 or len(like) != 4:
        raise UnsupportedError(f"step {step.name!r}: expected images of four axes, got shapes {shape} and {like}")
    size = step.size if step.like is None else like[2:]
    try:
        return (*shape[:2], *bilinear.lengths(shape[2:], size, step.factors))
    except ValueError as error:
        raise UnsupportedError(f"step {step.name!r}: {error}") from error


def pair(step: Add | Mul, shapes: Shapes) -> Shape:
    a, b = shapes[step.a], shapes[step.b]
    try:
        return tuple(np.broadcast_shapes(a, b))
    except ValueError as error:
        raise UnsupportedError(f"step {step.name!r}: kernels cannot broadcast shapes {a} and {b}") from error


def conv_add(step: ConvAdd, shapes: Shapes) -> Shape:
    shape = conv(step.conv, shapes)
    if shape != shapes[step.b]:
        raise UnsupportedError(
            f"step {step.name!r}: expected a summand of shape {shape}, got {shapes[step.b]}"
        )
    return shape


def concat(step: Concat, shapes: Shapes) -> Shape:
    parts = [shapes[x] for x in step.xs]
    first = parts[0]
    agree = all(len(part) == len(first) and part[:1] + part[2:] == first[:1] + first[2:] for part in parts)
    if len(first) < 2 or step.axis % len(first) != 1 or not agree:
        raise UnsupportedError(
            f"step {step.name!r}: kernels join along axis 1 only, got axis {step.axis} of shapes {parts}"
        )
    return (first[0], sum(part[1] for part in parts), *first[2:])


def flat(step: Move | QuantizeFlat | FlattenFloats, shapes: Shapes) -> Shape:
    shape = shapes[argument(step) if isinstance(step, Move) else step.x]
    if len(shape) < 2:
        raise UnsupportedError(f"step {step.name!r}: expected at least two axes, got shape {shape}")
    return (shape[0], int(np.prod(shape[1:])))


def turned(step: Turn, shapes: Shapes) -> Shape:
    shape = shapes[step.x]
    if len(shape) != step.rank:
        raise UnsupportedError(f"step {step.name!r}: expected {step.rank} axes, got shape {shape}")
    return (shape[0], shape[-1], *shape[1:-1]) if step.first else (shape[0], *shape[2:], shape[1])


# Each takes the steps of its kind only.
SHAPES: dict[type, Callable[[Any, Shapes], Shape]] = {
    Quantize: same, Dequantize: same, Linear: linear, Conv: conv, ConvAdd: conv_add, Table: same, Relu: same, Add: pair,
    Mul: pair, Concat: concat, MaxPool: pool, AvgPool: pool, AdaptiveAvgPool: adaptive, Mean: mean,
    Bilinear: interpolated, Move: flat,
    LinearSum: linear_sum, Turn: turned,
    QuantizeFlat: flat, FlattenFloats: flat, DynamicLinear: dynamic, Import: same, Export: same,
}  # fmt: skip


def shape_of(step: LoweredStep, shapes: Shapes) -> Shape:
    """The shape of what a step makes. UnsupportedError for shapes that the kernels do not take."""
    return SHAPES[type(step)](step, shapes)
