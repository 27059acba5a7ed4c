"""Normalizations with fixed statistics, however a forward writes them: as a function, or as a product and a sum with
one constant for each channel."""

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from quantspec.ir import float_graph

from .operators import Builder, is_value

FUNCTIONAL = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
NATIVE = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled")
PRODUCTS = (torch.mul, torch.multiply, operator.mul, "mul", "mul_", "multiply")
QUOTIENTS = (torch.div, operator.truediv, "div", "div_")
SUMS = (torch.add, operator.add, "add", "add_")
DIFFERENCES = (torch.sub, operator.sub, "sub", "sub_")


def function(builder: Builder, node: fx.Node) -> float_graph.Node | None:
    """A function as a normalization; None for others."""
    if node.target is F.batch_norm or node.target is torch.batch_norm:
        return functional(builder, node, FUNCTIONAL if node.target is F.batch_norm else NATIVE)
    return per_channel(builder, node)


def functional(builder: Builder, node: fx.Node, names: tuple[str, ...]) -> float_graph.BatchNorm | None:
    """``F.batch_norm`` with fixed statistics."""
    given: dict[str, Any] = dict(zip(names, node.args)) | dict(node.kwargs)  # all of them: torch leaves none out
    mean, var = (constant(builder, given[key]) for key in ("running_mean", "running_var"))
    if given["training"] is not False or mean is None or var is None or not is_value(given["input"]):
        return None
    gamma, beta = (constant(builder, given[key]) for key in ("weight", "bias"))
    if (gamma is None) != (given["weight"] is None) or (beta is None) != (given["bias"] is None):
        return None  # computed, and not of parameters alone
    path = builder.path(node) or node.name
    builder.calls[path] = builder.calls.get(path, 0) + 1
    return float_graph.BatchNorm(
        node.name, builder.tree(given["input"]).name,
        np.ones_like(mean) if gamma is None else gamma, np.zeros_like(mean) if beta is None else beta, mean, var,
        float(given["eps"]), builder.call(node), path, positions_of(builder.modules.get(path)),
    )  # fmt: skip


def positions_of(module: nn.Module | None) -> int | None:
    """How many axes the inputs of a kind of normalization have behind the channels, None where that is not known."""
    return 2 if isinstance(module, nn.BatchNorm2d) else 3 if isinstance(module, nn.BatchNorm3d) else None


def constant(builder: Builder, node: Any) -> np.ndarray | None:
    """The float32 values of a constant of the graph."""
    if not is_value(node) or node.op != "get_attr":
        return None
    value = builder.attribute(node.target)
    return builder.array(value) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else None


def per_channel(builder: Builder, node: fx.Node) -> float_graph.BatchNorm | None:
    """A product or a sum with a constant of shape [1, channels, 1, 1] or the like."""
    if len(node.args) != 2 or node.kwargs or not all(map(is_value, node.args)):
        return None
    first, second = (constant(builder, arg) for arg in node.args)
    swappable = node.target in PRODUCTS or node.target in SUMS
    values, x = (second, node.args[0]) if second is not None else (first if swappable else None, node.args[1])
    target = str(getattr(node.args[1] if second is not None else node.args[0], "target"))  # noqa: B009  # a node's
    if values is None or (first is not None and second is not None) or not of_channels(values):
        return None
    numbers = values.reshape(-1)
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    if node.target in PRODUCTS:
        gamma, beta = numbers, zeros
    elif node.target in QUOTIENTS and numbers.all():
        gamma, beta = builder.moved(target, "reciprocal"), zeros
    elif node.target in SUMS:
        gamma, beta = ones, numbers
    elif node.target in DIFFERENCES:
        gamma, beta = ones, builder.moved(target, "neg")
    else:
        return None
    layer = f"{builder.path(node)}.{node.name}".removeprefix(".")
    builder.calls[layer] = 1
    positions = values.ndim - 2 if values.ndim > 3 else 2 if values.shape[0] != 1 else 1
    return float_graph.BatchNorm(
        node.name, builder.tree(x).name, gamma, beta, zeros, ones, 0.0, builder.call(node), layer, positions
    )


def of_channels(values: np.ndarray) -> bool:
    """Whether a constant has one value for each channel of images: [1, channels, 1, 1], [channels, 1, 1] and the like.
    """
    if values.ndim < 3 or values.size < 2:
        return False
    axis = 1 if values.shape[0] == 1 else 0
    return values.shape[axis] == values.size and (axis == 1 or values.ndim < 5)
