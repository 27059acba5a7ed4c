"""``nn.Module`` to float graph: which operations a model performs, traced once with ``torch.fx``.

The graph owns copies of the weights it will quantize, so that nothing later can change the model, and nothing that happens to the model
can change the graph.
"""

import builtins
import copy
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from .errors import UnsupportedError
from .program import Call, Ref, refs, replace_refs


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer: ``weight`` float32 [outputs, inputs], ``bias`` float32 (outputs,) or None; ReLU behind it where ``relu``."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    relu: bool = False


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A batch normalization with fixed statistics, float32 (channels,) each. ``call`` computes it where it is not folded."""

    name: str
    x: str
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float
    call: Call


@dataclass(frozen=True, eq=False)
class Relu:
    """max(x, 0); ``call`` computes it in float."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Flatten:
    """Axes ``start`` to ``end`` become one; ``call`` computes it in float."""

    name: str
    x: str
    start: int
    end: int
    call: Call


Node = Linear | BatchNorm | Relu | Flatten | Call


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """What a model does, in order. ``callables`` has what the ``Call``s call; ``calls`` counts the calls of each module by path."""

    inputs: tuple[str, ...]
    defaults: dict[str, Any]
    nodes: tuple[Node, ...]
    output: Any
    callables: dict[tuple[str, str], Any]
    calls: dict[str, int]

    def readers(self) -> dict[str, int]:
        """How many times each value is read, by nodes and as an output."""
        counts = dict.fromkeys([*self.inputs, *(node.name for node in self.nodes)], 0)
        for node in self.nodes:
            for name in refs((node.args, node.kwargs)) if isinstance(node, Call) else [node.x]:
                counts[name] += 1
        for name in refs(self.output):
            counts[name] += 1
        return counts


RELU = {torch.relu, nn.functional.relu, torch.relu_, "relu", "relu_"}
FLATTEN = {torch.flatten, "flatten"}
NO_INTEGER_FORM = "has no integer form here"


def capture(model: nn.Module) -> FloatGraph:
    """The float graph of a model in evaluation mode.

    Raises TypeError for what is no module, ValueError for a model in training mode (STA-TRAINING), without parameters in float32 on the
    CPU, UnsupportedError when control flow depends on data.
    """
    check_model(model)
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # the tracer lets through whatever the model raises on a proxy
        raise UnsupportedError(f"model: {type(model).__name__} cannot be traced: {error}") from error
    return _Builder(model).build(graph)


def check_model(model: nn.Module) -> None:
    """Raises unless the model is a module in evaluation mode whose parameters are float32 on the CPU."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        if module.training:
            raise ValueError(f"model: {path or 'it'} is in training mode; call model.eval() first")
    for path, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ValueError(f"model: expected float32 parameters on the CPU, {path} is {parameter.dtype} on {parameter.device}")


class _Builder:
    """Turns the nodes of an fx graph into ours, one at a time; ``alias`` maps what disappears to what stands for it."""

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self.model = model
        self.arrays: dict[int, np.ndarray] = {}
        self.alias: dict[str, str] = {}
        self.callables: dict[tuple[str, str], Any] = {}
        self.calls: dict[str, int] = {}

    def build(self, graph: fx.Graph) -> FloatGraph:
        inputs, defaults, nodes, output = [], {}, [], None
        for node in graph.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
                if node.args:
                    defaults[node.name] = node.args[0]
            elif node.op == "output":
                output = self.tree(node.args[0])
            elif (made := self.node(node)) is not None:
                nodes.append(made)
        graph = FloatGraph(tuple(inputs), defaults, tuple(nodes), output, self.callables, self.calls)
        reads = graph.readers()
        # What a layer has absorbed, its parameters, is read by nobody now.
        nodes = [node for node in nodes if not (isinstance(node, Call) and node.kind == "attribute" and reads[node.name] == 0)]
        return replace(graph, nodes=tuple(nodes))

    def node(self, node: fx.Node) -> Node | None:
        target = node.target
        if node.op == "call_module":
            self.calls[target] = self.calls.get(target, 0) + 1
            module = self.modules[target]
            if isinstance(module, (nn.Identity, nn.Dropout)):
                # In evaluation both give back their input, so that their readers can read it directly.
                self.alias[node.name] = self.tree(node.args[0]).name
                return None
            if type(module) is nn.Linear:
                return Linear(node.name, self.first(node), target, self.array(module.weight), self.array(module.bias))
            if type(module) is nn.BatchNorm1d and module.track_running_stats:
                return self.batch_norm(node, module)
            if type(module) is nn.ReLU:
                return Relu(node.name, self.first(node), self.call(node))
            if type(module) is nn.Flatten:
                return Flatten(node.name, self.first(node), module.start_dim, module.end_dim, self.call(node))
        elif node.op in ("call_function", "call_method"):
            if target in RELU:
                return Relu(node.name, self.first(node), self.call(node))
            if target is nn.functional.linear and (layer := self.functional_linear(node)):
                return layer
            if target in FLATTEN:
                axes = [*node.args[1:], *[node.kwargs[k] for k in ("start_dim", "end_dim") if k in node.kwargs]]
                return Flatten(node.name, self.first(node), *(axes + [0, -1][len(axes) :]), self.call(node))
        return self.call(node)

    def functional_linear(self, node: fx.Node) -> Linear | None:
        """``F.linear`` as a layer where its weight and bias are parameters of the model."""
        given = dict(zip(("input", "weight", "bias"), node.args)) | node.kwargs
        weight, bias = given["weight"], given.get("bias")
        if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
            return None
        layer = weight.target.rpartition(".")[0] or node.name
        self.calls[layer] = self.calls.get(layer, 0) + 1
        tensors = [None if n is None else operator.attrgetter(n.target)(self.model) for n in (weight, bias)]
        return Linear(node.name, self.tree(given["input"]).name, layer, *(self.array(t) for t in tensors))

    def batch_norm(self, node: fx.Node, module: nn.BatchNorm1d) -> BatchNorm:
        ones = np.ones(module.num_features, np.float32)
        gamma, beta = (ones, ones * 0) if module.weight is None else (self.array(module.weight), self.array(module.bias))
        statistics = self.array(module.running_mean), self.array(module.running_var)
        return BatchNorm(node.name, self.first(node), gamma, beta, *statistics, module.eps, self.call(node))

    def call(self, node: fx.Node) -> Call:
        kind = {"call_module": "module", "call_function": "function", "call_method": "method", "get_attr": "attribute"}[node.op]
        target = node.target
        if kind == "module":
            what, name = copy.deepcopy(self.modules[target]), target
        elif kind == "attribute":
            what, name = operator.attrgetter(target)(self.model).detach().clone(), target
        elif kind == "method":
            what, name = None, target
        else:
            what, name = target, qualified_name(target)
        if kind != "method":
            what = self.callables.setdefault((kind, name), what)
        shown = type(what).__name__ if kind == "module" else name
        reason = "is a constant" if kind == "attribute" else f"{shown} {NO_INTEGER_FORM}"
        return Call(node.name, kind, name, self.tree(node.args), self.tree(node.kwargs), reason)

    def first(self, node: fx.Node) -> str:
        """The name of the value that a node with one input reads, given by position or by name."""
        return self.tree(node.args[0] if node.args else next(iter(node.kwargs.values()))).name

    def tree(self, args: Any) -> Any:
        # fx keeps arguments in immutable lists and dicts of its own; plain ones are what a Program holds.
        named = fx.node.map_arg(args, lambda node: Ref(self.alias.get(node.name, node.name)))
        return plain(named)

    def array(self, tensor: torch.Tensor | None) -> np.ndarray | None:
        if tensor is None:
            return None
        if id(tensor) not in self.arrays:  # a shared parameter is one array, and counted once
            self.arrays[id(tensor)] = tensor.detach().numpy().copy()
        return self.arrays[id(tensor)]


def plain(tree: Any) -> Any:
    """Trees of fx's immutable lists and dicts as trees of lists and dicts."""
    if isinstance(tree, list):
        return [plain(item) for item in tree]
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return tuple(plain(item) for item in tree)
    if isinstance(tree, dict):
        return {key: plain(item) for key, item in tree.items()}
    return tree


def qualified_name(function: Callable) -> str:
    """``torch.flatten`` for ``torch.flatten``: the public module that has the function, and its name there."""
    name = getattr(function, "__name__", repr(function))
    for module in (torch, nn.functional, operator, math, builtins):
        if getattr(module, name, None) is function:
            return f"{module.__name__}.{name}"
    return f"{getattr(function, '__module__', None)}.{name}"


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
    """The output of the float network; ``seen(name, value)`` is told every tensor that a node makes, and every input."""
    values = bind(graph.inputs, graph.defaults, batch)
    for name in graph.inputs:
        if isinstance(values[name], torch.Tensor):
            seen(name, values[name])
    with torch.no_grad():
        for node in graph.nodes:
            if isinstance(node, Linear):
                values[node.name] = run_linear(node, values[node.x])
            else:
                call = node if isinstance(node, Call) else node.call
                values[node.name] = call_float(call, graph.callables, values.__getitem__)
            if isinstance(values[node.name], torch.Tensor):
                seen(node.name, values[node.name])
    return replace_refs(graph.output, values.__getitem__)


def float_calls(node: Linear, reason: str) -> tuple[list[Call], dict[tuple[str, str], Any]]:
    """A layer that stays in float, as calls, the last of them making its value, and what they call."""
    outputs, inputs = node.weight.shape
    module = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=node.bias is not None).eval()
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(node.weight))
        if node.bias is not None:
            module.bias.copy_(torch.from_numpy(node.bias))
    called: dict[tuple[str, str], Any] = {("module", node.layer): module}
    if not node.relu:
        return [Call(node.name, "module", node.layer, (Ref(node.x),), {}, reason)], called
    first = Call(f"{node.name}.linear", "module", node.layer, (Ref(node.x),), {}, reason)
    called["function", "torch.relu"] = torch.relu
    return [first, Call(node.name, "function", "torch.relu", (Ref(first.name),), {}, reason)], called


def run_linear(node: Linear, x: torch.Tensor) -> torch.Tensor:
    """A linear layer in float32. Raises ValueError naming the layer when the input does not fit."""
    if x.ndim < 1 or x.shape[-1] != node.weight.shape[1]:
        raise ValueError(f"batch: layer {node.layer} expects {node.weight.shape[1]} input features, got shape {tuple(x.shape)}")
    bias = None if node.bias is None else torch.from_numpy(node.bias)
    y = nn.functional.linear(x, torch.from_numpy(node.weight), bias)
    return y.relu() if node.relu else y


