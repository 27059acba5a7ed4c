"""Pools, normalizations and gates that stay in float as ONNX operators, by torch's functions and by modules of
torch.nn."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.errors import UnsupportedError

from .builder import Dim, Graph, Tensor, common, named, shape_of, windows
from .rearrange import reshape, sizes_of
from .resize import interpolate

Operator = Callable[..., Any]


def each(value: Any, positions: int) -> list[int]:
    """One number for each axis of positions."""
    return list(value) if isinstance(value, (tuple, list)) else [value] * positions


def pooled(x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool) -> Any:
    if x.rank != len(kernel) + 2:
        raise UnsupportedError("pooling without a batch axis")
    places = zip(x.shape[2:], kernel, stride, padding, dilation)
    return (*x.shape[:2], *(windows(n, k, s, p, p, d, ceil) for n, k, s, p, d in places))


def max_pool(
    positions: int, g: Graph, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Tensor:  # fmt: skip
    if return_indices:
        raise UnsupportedError("max pooling that returns indices")
    sizes = kernel_size, stride or kernel_size, padding, dilation
    kernel, steps, pads, apart = (each(value, positions) for value in sizes)
    name = g.node(
        "MaxPool", [x.name], kernel_shape=kernel, strides=steps, pads=[*pads, *pads], dilations=apart,
        ceil_mode=int(ceil_mode),
    )  # fmt: skip
    return Tensor(name, pooled(x, kernel, steps, pads, apart, ceil_mode))


def avg_pool(
    positions: int, g: Graph, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True, divisor_override: int | None = None,
) -> Tensor:  # fmt: skip
    if ceil_mode or divisor_override is not None:
        raise UnsupportedError("average pooling in float with ceil_mode, or divisor_override")
    kernel, steps, pads = (each(value, positions) for value in (kernel_size, stride or kernel_size, padding))
    name = g.node(
        "AveragePool", [x.name], kernel_shape=kernel, strides=steps, pads=[*pads, *pads],
        count_include_pad=int(count_include_pad),
    )  # fmt: skip
    return Tensor(name, pooled(x, kernel, steps, pads, [1] * positions, False))


def adaptive_max_pool(positions: int, g: Graph, x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
    if return_indices or any(size != 1 for size in each(output_size, positions)):
        raise UnsupportedError(f"adaptive maximum pooling in float to {output_size}")
    shape = (*x.shape[:-positions], *[1] * positions)
    return Tensor(g.node("ReduceMax", [x.name, g.ints(*range(-positions, 0))]), shape)


def prelu(g: Graph, x: Tensor, weight: torch.Tensor) -> Tensor:
    return Tensor(g.node("PRelu", [x.name, named(g, along_channels(weight, x))]), x.shape)


def group_norm(
    g: Graph, x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Groups of channels as the channels of an InstanceNormalization."""
    grouped = reshape(g, x, g.size(x, 0), num_groups, -1)
    inputs = [grouped.name, named(g, torch.ones(num_groups)), named(g, torch.zeros(num_groups))]
    y = Tensor(g.node("InstanceNormalization", inputs, epsilon=eps), grouped.shape)
    return affine(g, reshape(g, y, *sizes_of(g, x)), weight, bias)


def affine(g: Graph, x: Tensor, weight: Any, bias: Any) -> Tensor:
    """Each channel times its weight, and its bias added."""
    for operator, values in (("Mul", weight), ("Add", bias)):
        if values is not None:
            x = Tensor(g.node(operator, [x.name, named(g, along_channels(values, x))]), x.shape)
    return x


def along_channels(values: torch.Tensor, x: Tensor) -> torch.Tensor:
    """What belongs to channels, or is one for all, in the shape in which it meets them."""
    return values.detach().reshape(-1, *[1] * (x.rank - 2))


def instance_norm(positions: int, g: Graph, module: Any, x: Tensor) -> Tensor:
    if module.track_running_stats:
        raise UnsupportedError("instance normalization with running statistics")
    if x.rank != positions + 2:
        raise UnsupportedError("instance normalization without a batch axis")
    weight, bias = module.weight, module.bias
    if weight is None:
        weight, bias = torch.ones(module.num_features), torch.zeros(module.num_features)
    inputs = [x.name, named(g, weight), named(g, bias)]
    return Tensor(g.node("InstanceNormalization", inputs, epsilon=module.eps), x.shape)


def local_response_norm(
    g: Graph, x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    if size % 2 == 0:
        raise UnsupportedError("local response normalization over an even number of channels")
    # Of images alone in ONNX Runtime: positions of other numbers of axes are those of one row.
    image = x if x.rank == 4 else reshape(g, x, g.size(x, 0), g.size(x, 1), -1, 1)
    y = Tensor(g.node("LRN", [image.name], size=size, alpha=alpha, beta=beta, bias=k), image.shape)
    return y if image is x else reshape(g, y, *sizes_of(g, x))


def glu(g: Graph, x: Tensor, dim: int = -1) -> Tensor:
    axis = x.axis(dim)
    first, gate = g.outputs(2, "Split", [x.name], axis=axis, num_outputs=2)
    length = x.shape[axis]
    half = length // 2 if isinstance(length, int) else ("half", length)
    return Tensor(g.node("Mul", [first, g.node("Sigmoid", [gate])]), (*x.shape[:axis], half, *x.shape[axis + 1 :]))


def normalize(g: Graph, x: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    if p not in (1.0, 2.0):
        raise UnsupportedError(f"a norm of order {p}")
    axes = dim if isinstance(dim, (tuple, list)) else (dim,)
    norm = g.node(f"ReduceL{int(p)}", [x.name, g.ints(*axes)])
    return Tensor(g.node("Div", [x.name, g.node("Max", [norm, g.constant(eps, np.float32)])]), x.shape)


def einsum(g: Graph, equation: str, *operands: Any) -> Tensor:
    if "." in equation or "->" not in equation:
        raise UnsupportedError(f"einsum of {equation!r}")
    equation = equation.replace(" ", "")
    given, result = equation.split("->")
    lengths: dict[str, list[Dim]] = {}
    for letters, operand in zip(given.split(","), operands):
        for letter, dim in zip(letters, shape_of(operand)):
            lengths.setdefault(letter, []).append(dim)
    name = g.node("Einsum", [named(g, operand) for operand in operands], equation=equation)
    return Tensor(name, tuple(common(tuple(lengths[letter])) for letter in result))


# Of a number of axes of positions, which torch has in the names.
POOLS: dict[str, Operator] = {"max_pool": max_pool, "avg_pool": avg_pool, "adaptive_max_pool": adaptive_max_pool}
FUNCTIONS: dict[str, Operator] = {
    **{f"{name}{positions}d": partial(pool, positions) for name, pool in POOLS.items() for positions in (1, 2, 3)},
    "prelu": prelu, "group_norm": group_norm, "local_response_norm": local_response_norm, "glu": glu,
    "normalize": normalize, "einsum": einsum,
}  # fmt: skip


def max_pool_module(positions: int, g: Graph, m: Any, x: Tensor) -> Tensor:
    more = m.dilation, m.ceil_mode, m.return_indices
    return max_pool(positions, g, x, m.kernel_size, m.stride, m.padding, *more)


def avg_pool_module(positions: int, g: Graph, m: Any, x: Tensor) -> Tensor:
    divisor = getattr(m, "divisor_override", None)  # which AvgPool1d has not
    return avg_pool(positions, g, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, divisor)


def adaptive_max_pool_module(positions: int, g: Graph, m: Any, x: Tensor) -> Tensor:
    return adaptive_max_pool(positions, g, x, m.output_size, m.return_indices)


def resized(g: Graph, module: Any, x: Tensor) -> Tensor:
    more = module.mode, module.align_corners, module.recompute_scale_factor
    return interpolate(g, x, module.size, module.scale_factor, *more)


# What has a class for each number of positions.
BY_POSITIONS: tuple[tuple[Operator, tuple[type[nn.Module], ...]], ...] = (
    (max_pool_module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)),
    (avg_pool_module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)),
    (adaptive_max_pool_module, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)),
    (instance_norm, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)),
)
# By exact class.
MODULES: dict[type[nn.Module], Operator] = {
    **{kind: partial(make, n) for make, kinds in BY_POSITIONS for n, kind in enumerate(kinds, start=1)},
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d), resized),
    nn.PReLU: lambda g, m, x: prelu(g, x, m.weight),
    nn.GroupNorm: lambda g, m, x: group_norm(g, x, m.num_groups, m.weight, m.bias, m.eps),
    nn.LocalResponseNorm: lambda g, m, x: local_response_norm(g, x, m.size, m.alpha, m.beta, m.k),
    nn.GLU: lambda g, m, x: glu(g, x, m.dim),
}
