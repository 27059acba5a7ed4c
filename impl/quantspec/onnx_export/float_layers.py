"""Pools, normalizations and gates that stay in float as ONNX operators, by torch's functions and by modules of
torch.nn."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.errors import UnsupportedError

from .builder import Graph, Tensor, named, shape_of, windows
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


def max_pool(positions: int) -> Operator:
    def make(
        g: Graph, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Tensor:  # fmt: skip
        if return_indices:
            raise UnsupportedError("max pooling that returns indices")
        sizes = kernel_size, stride or kernel_size, padding, dilation
        kernel, steps, pads, apart = (each(value, positions) for value in sizes)
        name = g.node(
            "MaxPool", [named(g, x)], kernel_shape=kernel, strides=steps, pads=[*pads, *pads], dilations=apart,
            ceil_mode=int(ceil_mode),
        )  # fmt: skip
        return Tensor(name, pooled(x, kernel, steps, pads, apart, ceil_mode))

    return make


def avg_pool(positions: int) -> Operator:
    def make(
        g: Graph, x: Any, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        if ceil_mode or divisor_override is not None:
            raise UnsupportedError("average pooling in float with ceil_mode, or divisor_override")
        kernel, steps, pads = (each(value, positions) for value in (kernel_size, stride or kernel_size, padding))
        name = g.node(
            "AveragePool", [named(g, x)], kernel_shape=kernel, strides=steps, pads=[*pads, *pads],
            count_include_pad=int(count_include_pad),
        )  # fmt: skip
        return Tensor(name, pooled(x, kernel, steps, pads, [1] * positions, False))

    return make


def adaptive_max_pool(positions: int) -> Operator:
    def make(g: Graph, x: Any, output_size: Any, return_indices: bool = False) -> Tensor:
        if return_indices or any(size != 1 for size in each(output_size, positions)):
            raise UnsupportedError(f"adaptive maximum pooling in float to {output_size}")
        shape = (*x.shape[:-positions], *[1] * positions)
        return Tensor(g.node("ReduceMax", [named(g, x), g.ints(*range(-positions, 0))]), shape)

    return make


def prelu(g: Graph, x: Tensor, weight: torch.Tensor) -> Tensor:
    slope = weight.detach().reshape(-1, *[1] * (x.rank - 2)) if weight.numel() > 1 else weight.detach().reshape(1)
    return Tensor(g.node("PRelu", [x.name, named(g, slope)]), x.shape)


def group_norm(
    g: Graph, x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Groups of channels as the channels of an InstanceNormalization."""
    grouped = reshape(g, x, g.size(x, 0), num_groups, -1)
    ones = np.ones(num_groups, np.float32)
    inputs = [grouped.name, g.constant(ones, np.float32), g.constant(0 * ones, np.float32)]
    y = Tensor(g.node("InstanceNormalization", inputs, epsilon=eps), grouped.shape)
    return affine(g, reshape(g, y, *sizes_of(g, x)), weight, bias)


def affine(g: Graph, x: Tensor, weight: Any, bias: Any) -> Tensor:
    """Each channel times its weight, and its bias added."""
    for operator, values in (("Mul", weight), ("Add", bias)):
        if values is not None:
            along = values.detach().reshape(-1, *[1] * (x.rank - 2))
            x = Tensor(g.node(operator, [x.name, named(g, along)]), x.shape)
    return x


def instance_norm(g: Graph, module: Any, x: Tensor) -> Tensor:
    if module.track_running_stats:
        raise UnsupportedError("instance normalization with running statistics")
    ones = np.ones(module.num_features, np.float32)
    weight, bias = (ones, 0 * ones) if module.weight is None else (module.weight, module.bias)
    inputs = [x.name, *(g.constant(np.asarray(torch.as_tensor(v).detach()), np.float32) for v in (weight, bias))]
    return Tensor(g.node("InstanceNormalization", inputs, epsilon=module.eps), x.shape)


def local_response_norm(
    g: Graph, x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    if size % 2 == 0:
        raise UnsupportedError("local response normalization over an even number of channels")
    return Tensor(g.node("LRN", [named(g, x)], size=size, alpha=alpha, beta=beta, bias=k), shape_of(x))


def glu(g: Graph, x: Tensor, dim: int = -1) -> Tensor:
    axis = x.axis(dim)
    first, gate = g.outputs(2, "Split", [x.name], axis=axis, num_outputs=2)
    length = x.shape[axis]
    half = length // 2 if isinstance(length, int) else ("half", length)
    return Tensor(g.node("Mul", [first, g.node("Sigmoid", [gate])]), (*x.shape[:axis], half, *x.shape[axis + 1 :]))


def normalize(g: Graph, x: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None) -> Tensor:
    if p not in (1.0, 2.0):
        raise UnsupportedError(f"a norm of order {p}")
    norm = g.node(f"ReduceL{int(p)}", [named(g, x), g.ints(dim)], keepdims=1)
    return Tensor(g.node("Div", [named(g, x), g.node("Max", [norm, g.constant(eps, np.float32)])]), shape_of(x))


def einsum(g: Graph, equation: str, *operands: Any) -> Tensor:
    if "." in equation or "->" not in equation:
        raise UnsupportedError(f"einsum of {equation!r}")
    given, _, result = equation.replace(" ", "").partition("->")
    lengths: dict[str, Any] = {}
    for letters, operand in zip(given.split(","), operands):
        shape = shape_of(operand)
        lengths |= dict(zip(letters, shape))
    name = g.node("Einsum", [named(g, operand) for operand in operands], equation=equation.replace(" ", ""))
    return Tensor(name, tuple(lengths[letter] for letter in result))


def pools(make: Callable[[int], Operator], name: str) -> dict[str, Operator]:
    return {f"{name}{positions}d": make(positions) for positions in (1, 2, 3)}


FUNCTIONS: dict[str, Operator] = {
    **pools(max_pool, "max_pool"), **pools(avg_pool, "avg_pool"), **pools(adaptive_max_pool, "adaptive_max_pool"),
    "prelu": prelu, "group_norm": group_norm, "local_response_norm": local_response_norm, "glu": glu,
    "normalize": normalize, "einsum": einsum,
}  # fmt: skip


def max_pool_module(positions: int) -> Operator:
    return lambda g, m, x: max_pool(positions)(
        g, x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    )


def avg_pool_module(positions: int) -> Operator:
    return lambda g, m, x: avg_pool(positions)(
        g, x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, getattr(m, "divisor_override", None)
    )


def by_positions(kinds: Sequence[type[nn.Module]], make: Callable[[int], Operator]) -> dict[type[nn.Module], Operator]:
    return {kind: make(positions) for positions, kind in enumerate(kinds, start=1)}


def resized(g: Graph, module: Any, x: Tensor) -> Tensor:
    more = module.mode, module.align_corners, getattr(module, "recompute_scale_factor", None)
    return interpolate(g, x, module.size, module.scale_factor, *more)


# By exact class.
MODULES: dict[type[nn.Module], Operator] = {
    **by_positions((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), max_pool_module),
    **by_positions((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), avg_pool_module),
    **by_positions(
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        lambda n: lambda g, m, x: adaptive_max_pool(n)(g, x, m.output_size, m.return_indices),
    ),
    **by_positions((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), lambda positions: instance_norm),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d), resized),
    nn.PReLU: lambda g, m, x: prelu(g, x, m.weight),
    nn.GroupNorm: lambda g, m, x: group_norm(g, x, m.num_groups, m.weight, m.bias, m.eps),
    nn.LocalResponseNorm: lambda g, m, x: local_response_norm(g, x, m.size, m.alpha, m.beta, m.k),
    nn.GLU: lambda g, m, x: glu(g, x, m.dim),
}
