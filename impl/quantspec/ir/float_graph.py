"""The float network as plain data: what capture ends in, what fusion rewrites and what calibration runs.

A graph is a list of nodes. Each makes one value, named ``name``, from the values it reads. Nodes that have an integer form say what they are; each but
the layers keeps in ``call`` how it is computed in float. The graph owns copies of the weights, so that nothing later can change the model, and nothing
that happens to the model can change the graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from .program import Call, Ref, last_reads, reads, refs, replace_refs


class Weights:
    """What layers have in common."""

    weight: np.ndarray
    bias: np.ndarray | None

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias for torch's operators, in the same memory."""
        return torch.from_numpy(self.weight), None if self.bias is None else torch.from_numpy(self.bias)


@dataclass(frozen=True, eq=False)
class Linear(Weights):
    """A linear layer: ``weight`` float32 [outputs, inputs], ``bias`` float32 (outputs,) or None; behind it, where ``relu``, a ReLU that ends at ``ceiling``.

    ``flat``: it holds a normalization whose channels are its features only where its input has two axes.
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    relu: bool = False
    ceiling: float = float("inf")
    flat: bool = False


@dataclass(frozen=True, eq=False)
class Conv(Weights):
    """A convolution: ``weight`` float32 [outputs, inputs / groups, *kernel]; the rest as in ``Linear`` and ``program.Conv``.

    A ``transposed`` one has its kernel flipped and its channels in that order, so that it is a convolution of spread inputs (INT-CONV-TRANSPOSED).
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    relu: bool = False
    ceiling: float = float("inf")


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A batch normalization with fixed statistics, float32 (channels,) each. ``call`` computes it where it is not folded.

    ``positions``: how many axes its input has behind the channels, None where that is not known.
    """

    name: str
    x: str
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float
    call: Call
    layer: str = ""
    positions: int | None = None


@dataclass(frozen=True, eq=False)
class Relu:
    """max(x, 0); ``call`` computes it in float."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A function of one value, element by element; ``function`` is its name. Where it is min(max(x, 0), c), ``ceiling`` is c."""

    name: str
    x: str
    function: str
    call: Call
    ceiling: float | None = None


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two values, with a ReLU behind it where ``relu``."""

    name: str
    a: str
    b: str
    call: Call
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Mul:
    """The product of two values, element by element."""

    name: str
    a: str
    b: str
    call: Call


@dataclass(frozen=True, eq=False)
class Concat:
    """Values joined along an axis."""

    name: str
    xs: tuple[str, ...]
    axis: int
    call: Call


@dataclass(frozen=True, eq=False)
class Pool:
    """The largest or the average value of windows. ``step`` is the Program's step for it, and ``options`` are that step's fields."""

    name: str
    x: str
    step: type
    options: dict[str, Any]
    call: Call


@dataclass(frozen=True, eq=False)
class Move:
    """Rearranges values without looking at them; ``call`` says how, on floats as on codes."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Shape:
    """Reads the shape of a value, which its codes have too."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of ``weight``, float32 [entries, features]; ``options`` are the fields of ``program.Embedding`` from ``bag`` on."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    options: dict[str, Any]
    call: Call


@dataclass(frozen=True, eq=False)
class Recurrent:
    """An LSTM, GRU or RNN. ``cells``: for each layer and direction (input weight, state weight, input bias, state bias), float32; ``options`` are
    the fields of ``program.Recurrent``."""

    name: str
    x: str
    state: Any
    layer: str
    cells: tuple[tuple[np.ndarray | None, ...], ...]
    options: dict[str, Any]
    call: Call


Layer = Linear | Conv
Node = Linear | Conv | BatchNorm | Relu | Elementwise | Add | Mul | Concat | Pool | Move | Shape | Embedding | Recurrent | Call


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """What a model does, in order. ``callables`` has what the ``Call``s call; ``calls`` counts the calls of each module by path.

    ``paths`` gives the path of the module that a node comes from.
    """

    inputs: tuple[str, ...]
    defaults: dict[str, Any]
    nodes: tuple[Node, ...]
    output: Any
    callables: dict[tuple[str, str], Any]
    calls: dict[str, int]
    paths: dict[str, str] = field(default_factory=dict)

    def readers(self) -> dict[str, int]:
        """How many times each value is read, by nodes and as an output."""
        counts = dict.fromkeys([*self.inputs, *(node.name for node in self.nodes)], 0)
        for node in self.nodes:
            for name in node_reads(node):
                counts[name] += 1
        for name in refs(self.output):
            counts[name] += 1
        return counts

    @cached_property
    def last(self) -> list[list[str]]:
        """For each node the values that nobody reads after it."""
        return last_reads(self.nodes, refs(self.output), node_reads)


def node_reads(node: Node) -> list[str]:
    """The names of the values that a node reads, with repetitions. What its ``call`` takes beside its input counts too."""
    own = reads(node)
    if isinstance(node, Call) or not hasattr(node, "call"):
        return own
    others = list(own)
    extra = []
    for name in reads(node.call):
        if name in others:
            others.remove(name)
        else:
            extra.append(name)
    return own + extra


def renamed(node: Node, alias: dict[str, str]) -> Node:
    """The node reading what its inputs are called now."""
    def new(name: str) -> str:
        return alias.get(name, name)

    changes: dict[str, Any] = {}
    for f in fields(node):
        value = getattr(node, f.name)
        if f.name in ("x", "a", "b"):
            changes[f.name] = new(value)
        elif f.name == "xs":
            changes[f.name] = tuple(map(new, value))
        elif f.name in ("args", "kwargs", "state", "options"):
            changes[f.name] = replace_refs(value, lambda name: Ref(new(name)))
        elif f.name == "call":
            changes[f.name] = renamed(value, alias)
    return replace(node, **changes)


def bind(inputs: tuple[str, ...], defaults: dict[str, Any], batch: Any) -> dict[str, Any]:
    """A batch as values by name: a tensor, a tuple of positional inputs (surplus entries are ignored), or a dict of keyword inputs.

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


def call_float(step: Call, callables: dict[tuple[str, str], Any], value: Callable[[str], Any]) -> Any:
    """The result of a call that stays in float; ``value`` gives the float value of a name."""
    args, kwargs = replace_refs(step.args, value), replace_refs(step.kwargs, value)
    if step.kind == "method":
        return getattr(args[0], step.target)(*args[1:], **kwargs)
    what = callables[step.kind, step.target]
    return what if step.kind == "attribute" else what(*args, **kwargs)


def run(graph: FloatGraph, batch: Any, seen: Callable[[str, torch.Tensor], None] = lambda name, value: None) -> Any:
    """The output of the float network; ``seen(name, value)`` is told every tensor that a node makes, and every input.

    Values are forgotten after their last reader. Raises ValueError naming the layer when an input does not fit it.
    """
    values = bind(graph.inputs, graph.defaults, batch)
    for name in graph.inputs:
        if isinstance(values[name], torch.Tensor):
            seen(name, values[name])
    with torch.no_grad():
        for node, done in zip(graph.nodes, graph.last):
            values[node.name] = run_node(node, values, graph.callables)
            if isinstance(values[node.name], torch.Tensor):
                seen(node.name, values[node.name])
            for name in done:
                del values[name]
    return replace_refs(graph.output, values.__getitem__)


def run_node(node: Node, values: dict[str, Any], callables: dict[tuple[str, str], Any]) -> Any:
    """The value that a node makes in float."""
    if isinstance(node, Layer):
        return run_layer(node, values[node.x])
    if isinstance(node, Add) and node.relu:
        return call_float(node.call, callables, values.__getitem__).relu()
    return call_float(node if isinstance(node, Call) else node.call, callables, values.__getitem__)


def run_layer(node: Layer, x: torch.Tensor) -> torch.Tensor:
    """A layer in float32. Raises ValueError naming it when the input does not fit."""
    if not isinstance(x, torch.Tensor) or x.dtype != torch.float32:
        raise ValueError(f"batch: layer {node.layer!r} expects float32, got {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}")
    check_fits(node, x.shape)
    weight, bias = node.tensors
    y = nn.functional.linear(x, weight, bias) if isinstance(node, Linear) else run_conv(node, x, weight, bias)
    if not node.relu:
        return y
    # Nobody else has the layer's output yet.
    return y.relu_() if node.ceiling == float("inf") else y.clamp_(0, node.ceiling)


def check_fits(node, shape: tuple[int, ...]) -> None:
    """Raises ValueError naming the layer unless it takes inputs of that shape. ``node``: a layer of a graph or of a Program."""
    if not hasattr(node, "groups"):
        if len(shape) < 1 or shape[-1] != node.weight.shape[1]:
            raise ValueError(f"batch: layer {node.layer!r} expects {node.weight.shape[1]} input features, got shape {tuple(shape)}")
        if getattr(node, "flat", False) and len(shape) != 2:
            raise ValueError(f"batch: layer {node.layer!r} with its BatchNorm1d expects [rows, features], got shape {tuple(shape)}; prepare with fuse=False")
        return
    channels, positions = node.weight.shape[1] * node.groups, node.weight.ndim - 2
    if len(shape) not in (positions + 1, positions + 2) or shape[len(shape) - positions - 1] != channels:
        raise ValueError(f"batch: layer {node.layer!r} expects {channels} channels and {positions} axes of positions, got shape {tuple(shape)}")


def run_conv(node: Conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution in float32, through torch's own operators."""
    positions = weight.ndim - 2
    if node.transposed:
        functions = (nn.functional.conv_transpose1d, nn.functional.conv_transpose2d, nn.functional.conv_transpose3d)
        reach = [d * (k - 1) for d, k in zip(node.dilation, weight.shape[2:])]
        padding = [r - before for r, (before, _) in zip(reach, node.padding)]
        output_padding = [after - before for before, after in node.padding]
        original = transposed_weight(weight, node.groups)
        return functions[positions - 1](x, original, bias, node.input_dilation, padding, output_padding, node.groups, node.dilation)
    if any(before != after for before, after in node.padding):
        x = nn.functional.pad(x, [end for pair in reversed(node.padding) for end in pair])
        padding = [0] * positions
    else:
        padding = [before for before, _ in node.padding]
    functions = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
    return functions[positions - 1](x, weight, bias, node.stride, padding, node.dilation, node.groups)


def transposed_weight(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """The weight of a transposed convolution as one of a convolution of spread inputs, or the other way round: flipped, channels exchanged in each group."""
    first, second, *kernel = weight.shape
    grouped = weight.reshape(groups, first // groups, second, *kernel).transpose(1, 2)
    return grouped.reshape(groups * second, first // groups, *kernel).flip(tuple(range(2, weight.ndim))).contiguous()


class FloatLayer(nn.Module):
    """A layer that stays in float, with the weights that it has after fusion."""

    def __init__(self, node: Layer):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(node.weight.copy()), requires_grad=False)
        self.bias = None if node.bias is None else nn.Parameter(torch.from_numpy(node.bias.copy()), requires_grad=False)
        self.node = replace(node, relu=False, weight=node.weight[:0], bias=None)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's output, float32."""
        if isinstance(self.node, Linear):
            return nn.functional.linear(x, self.weight, self.bias)
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
