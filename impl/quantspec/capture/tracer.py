"""``nn.Module`` to float graph: which operations a model performs, traced once with ``torch.fx``.

The model is not touched: what is traced into is the model itself, with torch.nn's attention modules written out (``attention``), and what cannot be
traced, because its control flow depends on data, becomes one node that calls a copy of it.
"""

import copy
import inspect
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph
from quantspec.ir.float_graph import FloatGraph, Node
from quantspec.ir.program import Call, Ref
from quantspec.ir.rearrange import qualified_name

from . import attention, layers, operators

NO_INTEGER_FORM = "has no integer form here"
# What gives back its input in evaluation, so that its readers can read that directly.
GONE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
PACKING = tuple(getattr(nn.utils.rnn, name) for name in ("pack_padded_sequence", "pad_packed_sequence", "pack_sequence", "unpack_sequence", "pad_sequence"))
IN_PLACE = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, operator.itruediv: operator.truediv}
GONE_FUNCTIONS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth", "drop_path")


def capture(model: nn.Module) -> FloatGraph:
    """The float graph of a model in evaluation mode.

    Raises TypeError for what is no module, ValueError for a model in training mode (STA-TRAINING), without parameters in float32 on the
    CPU, UnsupportedError when the model's own control flow depends on data.
    """
    check_model(model)
    try:
        traced = alone(model) if Tracer.is_whole(model) else Tracer().trace(written_out(model))
    except Exception as error:  # the tracer lets through whatever the model raises on a proxy
        raise UnsupportedError(f"model: {type(model).__name__} cannot be traced: {error}") from error
    return _Builder(model).build(traced)


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


class Tracer(fx.Tracer):
    """Goes into modules as far as they let it; one that does not is a leaf, and only that one."""

    def __init__(self) -> None:
        # Packing sequences looks at their lengths, so it is called as a whole, by whatever name. Naming the module to fx would do that to everything
        # in it, among it the class Tensor, which models ask their inputs for.
        super().__init__(autowrap_functions=PACKING)
        self._autowrap_search.append(nn.utils.rnn)

    @staticmethod
    def is_whole(module: nn.Module) -> bool:
        """Whether a module is never gone into: those of torch.nn, other than containers and what ``attention`` writes out."""
        own = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
        return own and not isinstance(module, (nn.Sequential, nn.TransformerDecoderLayer, *attention.WRITTEN))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_whole(m)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        written = attention.written(m)
        if self.is_whole(m):
            return super().call_module(m, forward, args, kwargs)
        before = set(self.graph.nodes)
        try:
            if written is not None:
                return written(m, *args, **kwargs)
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            for node in reversed([node for node in self.graph.nodes if node not in before]):
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


def written_out(model: nn.Module) -> nn.Module:
    """The model itself, or where it is one that ``attention`` writes out, a module with its parts that computes so."""
    if (written := attention.written(model)) is None:
        return model
    forward = next((whole for kind, whole in attention.WHOLE.items() if isinstance(model, kind)), written)
    twin = copy.copy(model)
    twin.__class__ = type(type(model).__name__, (type(model),), {"forward": forward})
    return twin


def alone(model: nn.Module) -> fx.Graph:
    """The graph of a model that is a single module of torch.nn: its inputs, and one call."""
    made = fx.Graph()
    values = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name == "output_size":
            break  # the size of a transposed convolution's output follows from its input here
        optional = parameter.default is not parameter.empty
        if optional and isinstance(model, layers.TRANSPOSED):
            break  # an output_size is a number of a call, not of the layer
        values.append(made.placeholder(name, default_value=parameter.default) if optional else made.placeholder(name))
    made.output(made.call_module("", tuple(values)))
    return made


class _Builder:
    """Turns the nodes of an fx graph into ours, one at a time; ``alias`` maps what disappears to what stands for it."""

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules())
        self.model = model
        self.arrays: dict[int, tuple[torch.Tensor, np.ndarray]] = {}
        self.alias: dict[str, str] = {}
        self.callables: dict[tuple[str, str], Any] = {}
        self.calls: dict[str, int] = {}
        self.paths: dict[str, str] = {}

    def build(self, traced: fx.Graph) -> FloatGraph:
        inputs, defaults, nodes, output = [], {}, [], None
        for node in traced.nodes:
            if node.op == "placeholder":
                inputs.append(node.name)
                if node.args:
                    defaults[node.name] = node.args[0]
            elif node.op == "output":
                output = self.tree(node.args[0])
            else:
                written_to = self.written_to(node)
                made = self.node(node) or []
                for one in made if isinstance(made, list) else [made]:
                    nodes.append(one)
                    self.paths[one.name] = self.path(node)
                if written_to is not None and node.name not in self.alias:
                    self.alias |= {name: node.name for name, now in self.alias.items() if now == written_to} | {written_to: node.name}
        built = FloatGraph(tuple(inputs), defaults, tuple(without_numbers(nodes)), output, self.callables, self.calls, self.paths)
        reads = built.readers()
        # What a layer has absorbed, its parameters, is read by nobody now.
        nodes = [node for node in built.nodes if not (isinstance(node, Call) and node.kind == "attribute" and reads[node.name] == 0)]
        return replace(built, nodes=tuple(nodes))

    def node(self, node: fx.Node) -> Node | list[Node] | None:
        target = node.target
        if node.op == "call_module":
            self.calls[target] = self.calls.get(target, 0) + 1
            module = self.modules[target]
            if operators.public(module, GONE):
                return self.gone(node)
            for recognize in (layers.module, self.module):
                if (made := recognize(self, node, module) if recognize is layers.module else recognize(node, module)) is not None:
                    return made
        elif node.op in ("call_function", "call_method"):
            if node.op == "call_function" and getattr(target, "__name__", "") in GONE_FUNCTIONS and not self.training(node):
                return self.gone(node)
            if (made := layers.function(self, node)) is not None:
                return made
            if target in operators.FUNCTIONS:
                sign, recognize = operators.FUNCTIONS[target]
                given = sign.bind(node) if sign.names else {}
                if given is not None and (made := recognize(self, node, given)) is not None:
                    return made
            if (made := operators.move(self, node)) is not None:
                return replace(made, call=replace(made.call, reason=""))
        return self.call(node)

    def module(self, node: fx.Node, module: nn.Module) -> Node | None:
        """A module without weights of its own as a node."""
        for kind, recognize in operators.MODULES.items():
            if operators.public(module, (kind,)):
                return recognize(self, node, vars(module))
        if (moving := operators.moving(module)) is not None and not node.kwargs:
            target, more, named = moving
            kind, name = ("method", target) if isinstance(target, str) else ("function", qualified_name(target))
            if kind == "function":
                self.callables[kind, name] = target
            return float_graph.Move(node.name, self.first(node), Call(node.name, kind, name, (*self.tree(node.args), *more), named, ""))
        return None

    def gone(self, node: fx.Node) -> None:
        self.alias[node.name] = self.tree(node.args[0] if node.args else next(iter(node.kwargs.values()))).name

    def training(self, node: fx.Node) -> bool:
        """Whether a dropout function is told to drop: by its argument ``training``, which torch.nn.functional has as true by default."""
        given = dict(zip(inspect.signature(node.target).parameters, node.args)) | dict(node.kwargs)
        return bool(given.get("training", True))

    def written_to(self, node: fx.Node) -> str | None:
        """The name of the value that an operation in place changes: who reads it later reads the result. None for other operations."""
        if node.op == "call_module":
            in_place = getattr(self.modules[node.target], "inplace", False) is True
        else:
            name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
            signed = name.endswith("_") and not name.endswith("__")
            in_place = node.op != "get_attr" and (signed or node.target in IN_PLACE or node.kwargs.get("inplace") is True)
        return self.first(node) if in_place and (node.args or node.kwargs) else None

    def path(self, node: fx.Node) -> str:
        """The path of the module that a node was made in."""
        if node.op == "call_module":
            return node.target
        stack = node.meta.get("nn_module_stack") or {}
        return list(stack)[-1] if stack else ""

    def call(self, node: fx.Node) -> Call:
        """What an fx node does, as a call that writes to none of its arguments."""
        kind = {"call_module": "module", "call_function": "function", "call_method": "method", "get_attr": "attribute"}[node.op]
        target = not_in_place(node.target)
        if kind == "method":
            what, name = None, target
        elif kind == "function":
            what, name = target, qualified_name(target)
        else:
            what, name = None, target
        if (kind, name) not in self.callables and kind != "method":
            if kind == "module":
                what = copy.deepcopy(self.modules[target])
                for part in what.modules():
                    if hasattr(part, "inplace"):
                        part.inplace = False
            elif kind == "attribute":
                value = operator.attrgetter(target)(self.model)
                what = value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
            self.callables[kind, name] = what
        shown = type(self.callables[kind, name]).__name__ if kind == "module" else name
        reason = "is a constant" if kind == "attribute" else f"{shown} {NO_INTEGER_FORM}"
        kwargs = {key: False if key == "inplace" else value for key, value in self.tree(node.kwargs).items()}
        return Call(node.name, kind, name, self.tree(node.args), kwargs, reason)

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
        if id(tensor) not in self.arrays:  # a shared parameter is one array, and counted once; kept, so that its id stays its own
            self.arrays[id(tensor)] = tensor, tensor.detach().numpy().copy()
        return self.arrays[id(tensor)][1]


def without_numbers(nodes: list[Node]) -> list[Node]:
    """The nodes, of which those that compute with sizes alone are plain calls: there is nothing in them to quantize, nor to say why not."""
    numbers: set[str] = set()
    made = []
    for node in nodes:
        read = float_graph.node_reads(node)
        if isinstance(node, float_graph.Shape):
            numbers.add(node.name)
        elif read and numbers.issuperset(read) and (isinstance(node, Call) or hasattr(node, "call")):
            numbers.add(node.name)
            node = replace(node if isinstance(node, Call) else node.call, reason="")
        made.append(node)
    return made


def not_in_place(target: Any) -> Any:
    """The operation that gives a new value where one would have been written to."""
    if target in IN_PLACE:
        return IN_PLACE[target]
    if isinstance(target, str) and target.endswith("_") and not target.endswith("__") and hasattr(torch.Tensor, target[:-1]):
        return target[:-1]
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return next((getattr(place, name[:-1]) for place in (torch, nn.functional) if getattr(place, name, None) is target and hasattr(place, name[:-1])), target)
    return target


def plain(tree: Any) -> Any:
    """Trees of fx's immutable lists and dicts, and torch.Size, as trees of tuples, lists and dicts."""
    if isinstance(tree, list):
        return [plain(item) for item in tree]
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        return tuple(plain(item) for item in tree)
    if isinstance(tree, dict):
        return {key: plain(item) for key, item in tree.items()}
    return tree
