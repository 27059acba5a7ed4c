"""Running the float network: what calibration does, and what stays in float."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from quantspec.errors import ShapeError

from . import program
from .float_graph import Add, Conv, FloatGraph, Layer, Linear, Node
from .program import Call, Callables, Ref
from .traverse import replace_refs

# How the messages begin of the conditions on sizes that a graph holds.
CAPTURED = "the network was captured"
# What gives the value of a node, from those that there are and what calls call.
Compute = Callable[[Node, dict[str, Any], Callables], Any]
WeightStep = program.Linear | program.Conv | program.LinearDynamic | program.LinearWeight


def bind(inputs: tuple[str, ...], defaults: dict[str, Any], batch: Any) -> dict[str, Any]:
    """A batch as values by name: a tensor, a tuple of positional inputs (surplus entries are ignored), or a dict of
    keyword inputs.

    Raises TypeError for another kind of batch, ValueError for missing and unknown inputs.
    """
    if isinstance(batch, dict):
        if unknown := [name for name in batch if name not in inputs]:
            raise ValueError(f"batch: unknown input {unknown[0]!r}, the model takes {', '.join(inputs)}")
        given = dict(batch)
    elif isinstance(batch, (tuple, list)):
        given = dict(zip(inputs, batch))
    elif isinstance(batch, torch.Tensor):
        given = {inputs[0]: batch} if inputs else {}
    else:
        raise TypeError(f"batch: expected a tensor, a tuple or a dict, got {type(batch).__name__}")
    values = {**defaults, **given}
    if missing := [name for name in inputs if name not in values]:
        raise ValueError(f"batch: input {missing[0]!r} is missing, the model takes {', '.join(inputs)}")
    return values


def call_float(step: Call, callables: Callables, value: Callable[[str], Any]) -> Any:
    """The result of a call that stays in float; ``value`` gives the float value of a name. Raises ShapeError for sizes
    by which the model's Python decides otherwise than for those that it was captured with."""
    args, kwargs = replace_refs(step.args, value), replace_refs(step.kwargs, value)
    if step.kind == "method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    what = callables[step.kind, step.target]
    try:
        return what if step.kind == "attribute" else what(*args, **kwargs)
    except AssertionError as error:
        if not str(error).startswith(CAPTURED):
            raise
        raise ShapeError(f"batch: {error}, and has no Python that decides for others") from error


def run_node(node: Node, values: dict[str, Any], callables: Callables) -> Any:
    """The value that a node makes in float."""
    if isinstance(node, Layer):
        return run_layer(node, values[node.x])
    result = call_float(node if isinstance(node, Call) else node.call, callables, values.__getitem__)
    return result.relu() if isinstance(node, Add) and node.relu else result


def run_layer(node: Layer, x: torch.Tensor) -> torch.Tensor:
    """A layer in float32. Raises ValueError naming it when the input does not fit."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"batch: layer {node.layer!r} expects float32, got {kind}")
    check_fits(node, x.shape)
    weight, bias = node.tensors
    y = F.linear(x, weight, bias) if isinstance(node, Linear) else run_conv(node, x, weight, bias)
    if not node.relu:
        return y
    # Nobody else has the layer's output yet.
    return y.relu_() if node.ceiling == float("inf") else y.clamp_(0, node.ceiling)


def ignore(name: str, value: Any) -> None:
    """What ``run`` calls where nobody looks."""


def run(
    graph: FloatGraph, batch: Any, seen: Callable[[str, torch.Tensor], None] = ignore, compute: Compute = run_node,
) -> Any:  # fmt: skip
    """The output of the float network; calls ``seen(name, value)`` for every tensor that a node makes, and every input.
    ``compute`` gives the value of a node.

    Values are forgotten after their last reader. Raises ValueError naming the layer when an input does not fit it.
    """
    values = bind(graph.inputs, graph.defaults, batch)
    for name in graph.inputs:
        if isinstance(values[name], torch.Tensor):
            seen(name, values[name])
    with torch.no_grad():
        for node, done in zip(graph.nodes, graph.last):
            values[node.name] = value = compute(node, values, graph.callables)
            if isinstance(value, torch.Tensor):
                seen(node.name, value)
            del value
            for name in done:
                del values[name]
    return replace_refs(graph.output, values.__getitem__)


def check_fits(layer: Layer | WeightStep, shape: tuple[int, ...]) -> None:
    """Raises ShapeError naming the layer unless it takes inputs of that shape."""
    if isinstance(layer, (Conv, program.Conv)):
        channels, positions = layer.weight.shape[1] * layer.groups, layer.weight.ndim - 2
        if len(shape) not in (positions + 1, positions + 2) or shape[len(shape) - positions - 1] != channels:
            expected = f"{channels} channels and {positions} axes of positions"
            raise ShapeError(f"batch: layer {layer.layer!r} expects {expected}, got shape {tuple(shape)}")
        return
    features = layer.weight.shape[1]
    if len(shape) < 1 or shape[-1] != features:
        raise ShapeError(f"batch: layer {layer.layer!r} expects {features} input features, got shape {tuple(shape)}")
    if isinstance(layer, (Linear, program.Linear)) and layer.flat and len(shape) != 2:
        raise ShapeError(
            f"batch: layer {layer.layer!r} with its BatchNorm1d expects [rows, features], got shape {tuple(shape)};"
            " prepare with fuse=False"
        )


def run_conv(node: Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution in float32, through torch's own operators."""
    positions = weight.ndim - 2
    if node.transposed:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        reach = [d * (k - 1) for d, k in zip(node.dilation, weight.shape[2:])]
        padding = [r - before for r, (before, _) in zip(reach, node.padding)]
        output_padding = [after - before for before, after in node.padding]
        original = transposed_weight(weight, node.groups)
        places = node.input_dilation, padding, output_padding, node.groups, node.dilation
        return transposed[positions - 1](x, original, bias, *places)
    if any(before != after for before, after in node.padding):
        x = F.pad(x, [end for pair in reversed(node.padding) for end in pair])
        padding = [0] * positions
    else:
        padding = [before for before, _ in node.padding]
    if weight[0].numel() == 1 and node.groups == len(weight) and {*node.stride} == {1} and not any(padding):
        # A factor for each channel, for which torch's convolution takes ten times as long.
        factors = weight.reshape(-1, *(1,) * positions)
        return x * factors if bias is None else torch.addcmul(bias.reshape(factors.shape), x, factors)
    dense = (F.conv1d, F.conv2d, F.conv3d)
    return dense[positions - 1](x, weight, bias, node.stride, padding, node.dilation, node.groups)


def transposed_weight(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """The weight of a transposed convolution as one of a convolution of spread inputs, or the other way round: flipped,
    channels exchanged in each group."""
    first, second, *kernel = weight.shape
    grouped = weight.reshape(groups, first // groups, second, *kernel).transpose(1, 2)
    return grouped.reshape(groups * second, first // groups, *kernel).flip(tuple(range(2, weight.ndim))).contiguous()


class FloatLayer(nn.Module):
    """A layer that stays in float, with the weights that it has after fusion."""

    def __init__(self, node: Layer):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(node.weight.copy()), requires_grad=False)
        self.bias = None if node.bias is None else nn.Parameter(torch.from_numpy(node.bias.copy()), requires_grad=False)
        self.node = replace(node, weight=node.weight[:0], bias=None)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, float32."""
        check_fits(self.node, x.shape)
        if isinstance(self.node, Linear):
            return F.linear(x, self.weight, self.bias)
        return run_conv(self.node, x, self.weight, self.bias)


def float_calls(node: Layer, reason: str) -> tuple[list[Call], dict[tuple[str, str], Any]]:
    """A layer that stays in float, as calls, the last of them making its value, and what they call."""
    called: dict[tuple[str, str], Any] = {("module", node.layer): FloatLayer(node)}
    if not node.relu:
        return [Call(node.name, "module", node.layer, (Ref(node.x),), {}, reason)], called
    first = Call(f"{node.name}.layer", "module", node.layer, (Ref(node.x),), {}, reason)
    called["function", "torch.clamp"] = torch.clamp
    ceiling = None if node.ceiling == float("inf") else node.ceiling
    return [first, Call(node.name, "function", "torch.clamp", (Ref(first.name), 0.0, ceiling), {}, reason)], called
