"""Which steps the kernels know, and the shapes of what they make."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...dialects import fma
from ...errors import UnsupportedError
from ...pooling import sizes
from ...program import Add, AdaptiveAvgPool, AvgPool, Concat, Conv, Dequantize, Linear, MaxPool, Mean, Move, Mul, Quantize, Ref, Relu, Table, reads


@dataclass(frozen=True, eq=False)
class ConvAdd:
    """A convolution and the sum that alone reads it, in one step. ``b`` is the other operand; ``first``: the convolution is the sum's first."""

    name: str
    x: str
    b: str
    conv: Conv
    add: Add
    first: bool


def known(step) -> bool:
    """Whether the kernels know a step, whatever the shapes."""
    if isinstance(step, Conv):
        return step.weight.ndim <= 4 and set(step.input_dilation) == {1} and len(step.weight) > 0
    if isinstance(step, Linear):
        return len(step.weight) > 0
    if isinstance(step, (MaxPool, AvgPool)):
        return len(step.kernel) <= 2
    if isinstance(step, AdaptiveAvgPool):
        return len(step.size) <= 2
    if isinstance(step, Move):
        return flattens(step)
    return type(step) in SHAPES


def flattens(step: Move) -> bool:
    """Whether a move makes rows of images: ``flatten`` from axis 1 on."""
    given = dict(zip(("x", "start_dim", "end_dim"), step.args)) | step.kwargs
    known = step.target in ("torch.flatten", "flatten") and isinstance(step.args[0], Ref)
    return known and given.get("start_dim", 0) == 1 and given.get("end_dim", -1) == -1


def fused(steps: tuple, outputs: tuple[str, ...]) -> tuple:
    """The steps with each sum put into the convolution before it, where that is the only one who reads it and the other operand is there already."""
    places = {step.name: index for index, step in enumerate(steps)}
    readers: dict[str, int] = {}
    for step in steps:
        for name in reads(step):
            readers[name] = readers.get(name, 0) + 1
    result: list = list(steps)
    for index, step in enumerate(steps):
        if not isinstance(step, Add) or step.a == step.b:
            continue
        later, other = sorted((step.a, step.b), key=lambda name: -places.get(name, -1))
        at = places.get(later)
        conv = None if at is None else result[at]
        if isinstance(conv, Conv) and not is_depthwise(conv) and readers[later] == 1 and later not in outputs and ratios(step)[3]:
            result[at] = ConvAdd(step.name, conv.x, other, conv, step, later == step.a)
            result[index] = None
    return tuple(step for step in result if step is not None)


def ratios(step: Add) -> tuple[np.float32, np.float32, np.float32, bool]:
    """The factors of both operands and the start of a sum (DIA-ADD, ``ratios``), and whether they are finite."""
    a, b, y = step.a_qparams, step.b_qparams, step.y_qparams
    with np.errstate(over="ignore", invalid="ignore"):
        r_a, r_b = a.scale / y.scale, b.scale / y.scale
        start = y.zero_point.astype(np.float32) - fma(r_a, a.zero_point.astype(np.float32), r_b * b.zero_point.astype(np.float32))
    return r_a, r_b, start, bool(np.isfinite([r_a, r_b, start]).all())


def is_depthwise(step: Conv) -> bool:
    return step.groups == len(step.weight) and step.weight.shape[1] == 1 and step.groups > 1


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


def conv(step: Conv, shapes) -> tuple[int, ...]:
    shape = images(shapes[step.x], step.weight.ndim - 2, step)
    if shape[1] != step.weight.shape[1] * step.groups:
        raise UnsupportedError(f"layer {step.layer!r}: expected {step.weight.shape[1] * step.groups} channels, got shape {shape}")
    counts = []
    for n, k, s, (before, after), d in zip(shape[2:], step.weight.shape[2:], step.stride, step.padding, step.dilation):
        counts.append((n + before + after - d * (k - 1) - 1) // s + 1)
    if min(counts) < 1:
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
    if len(shape) not in (3, 4) or axes != set(range(2, len(shape))) or 0 in shape:
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


def flat(step: Move, shapes) -> tuple[int, ...]:
    shape = shapes[step.args[0].name]
    if len(shape) < 2:
        raise UnsupportedError(f"step {step.name!r}: expected two axes or more, got shape {shape}")
    return (shape[0], int(np.prod(shape[1:])))


SHAPES: dict[type, Callable] = {
    Quantize: same, Dequantize: same, Linear: linear, Conv: conv, ConvAdd: conv_add, Table: same, Relu: same, Add: pair, Mul: pair, Concat: concat, MaxPool: pool,
    AvgPool: pool, AdaptiveAvgPool: adaptive, Mean: mean, Move: flat,
}  # fmt: skip
