"""A traced graph, node by node, as a float graph.

``Builder`` is what a recognizer gets to work with: the modules and parameters of the model, and names for the values of
the graph.
"""

import copy
import inspect
import operator
import re
from collections import Counter
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph
from quantspec.ir.float_graph import FloatGraph, Node, Recipe
from quantspec.ir.program import Call, Ref
from quantspec.ir.rearrange import qualified_name
from quantspec.ir.traverse import refs

from . import aliases, copies, layers, norms, operators, resizing, writes  # noqa: F401  # resizing adds to operators' tables
from .operators import public

NO_INTEGER_FORM = "has no integer form here"
# What gives back its input in evaluation, so that its readers can read that directly.
GONE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
GONE_FUNCTIONS = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "stochastic_depth",
    "drop_path",
)  # fmt: skip
KINDS = {
    "call_module": "module", "call_function": "function", "call_method": "method", "get_attr": "attribute",
}  # fmt: skip


def marked(value: Any, key: str, *others: Any) -> Any:
    """The value itself: in training mode the act of that key is what acts on it, with others that it reads."""
    return value


def in_order(graph: fx.Graph) -> dict[fx.Node, int]:
    """The number of each node."""
    return {node: number for number, node in enumerate(graph.nodes)}


class GraphBuilder:
    """Turns the nodes of an fx graph into ours, one at a time; ``alias`` maps what disappears to what stands for it."""

    def __init__(
        self, model: nn.Module, constants: Mapping[str, Any] | None = None,
        recipes: MutableMapping[str, Recipe] | None = None, *, share: bool = False,
    ):  # fmt: skip
        """``constants``: values by names that are attributes of no module, ``recipes``: how they were computed of
        parameters. ``share``: arrays are the model's own memory, and calls call its own modules, which are told not to
        work in place."""
        self.modules = dict(model.named_modules())
        self.model = model
        self.constants, self.recipes = constants or {}, {} if recipes is None else recipes
        self.share = share
        self.arrays: dict[int, tuple[torch.Tensor, np.ndarray]] = {}
        self.alias: dict[str, str] = {}
        self.callables: dict[tuple[str, str], Any] = {}
        self.calls: dict[str, int] = {}
        self.weights: dict[str, str] = {}  # by layers that are functions
        self.paths: dict[str, str] = {}
        self.values = Counter[str]()  # the last number of each name
        self.taken: set[str] = set()

    def build(self, traced: fx.Graph) -> FloatGraph:
        inputs: list[str] = []
        defaults: dict[str, Any] = {}
        nodes: list[Node] = []
        output: Any = None
        written = self.writes(traced)  # asked now, as calls tell modules not to work in place
        aliases.check(traced, self.modules, written)
        for node in traced.nodes:
            if node.op == "placeholder":
                if str(node.target).isidentifier():
                    node.name = str(node.target)  # fx numbers what is called as one of Python's functions is: input_1
                self.taken.add(node.name)
                inputs.append(node.name)
                if node.args and isinstance(node.args[0], fx.Node):
                    raise UnsupportedError(f"the default of {node.name!r} is a tensor")
                if node.args:
                    defaults[node.name] = node.args[0]
            elif node.op == "output":
                output = self.tree(node.args[0])
            else:
                path = "" if node.op == "get_attr" else self.path(node)
                inside = f"{path}.{re.sub(r'_[0-9]+$', '', node.name)}" if path else node.name
                # Also outside of modules, as one may be called as a function is: relu.
                node.name = self.unused(path if path and node.op == "call_module" else inside)
                written_to = self.first(node) if node in written else None
                result = self.node(node) or []
                for part in result if isinstance(result, list) else [result]:
                    nodes.append(part)
                    self.paths[part.name] = self.path(node)
                if written_to is not None and node.name not in self.alias:
                    renamed = {name: node.name for name, now in self.alias.items() if now == written_to}
                    self.alias |= renamed | {written_to: node.name}
        nodes = without_numbers(nodes)
        kept = tuple(needed(nodes, output))
        return FloatGraph(tuple(inputs), defaults, kept, output, self.callables, self.calls, self.paths)

    def node(self, node: fx.Node) -> Node | list[Node] | None:
        target: Any = node.target
        if node.op == "call_module":
            self.calls[target] = self.calls.get(target, 0) + 1
            module = self.modules[target]
            if self.is_gone(node):
                self.gone(node)
                return None
            if not hooked(module):
                if (layer := layers.module(self, node, module)) is not None:
                    return layer
                if (weightless := self.module(node, module)) is not None:
                    return weightless
        elif node.op in ("call_function", "call_method"):
            if self.is_gone(node):
                self.gone(node)
                return None
            if target is marked:
                return float_graph.Move(node.name, self.first(node), replace(self.call(node), reason=""))
            for recognize_function in (layers.function, norms.function):
                if (recognized := recognize_function(self, node)) is not None:
                    return recognized
            if target in operators.FUNCTIONS:
                sign, recognize = operators.FUNCTIONS[target]
                given = sign.bind(node) if sign.names else {}
                if given is not None and (recognized := recognize(self, node, given)) is not None:
                    return recognized
            if (moved := operators.move(self, node)) is not None:
                return replace(moved, call=replace(moved.call, reason=""))
            if node.op == "call_function" and self.target_of(node) is None and aliases.hides_writes(target):
                raise UnsupportedError(f"{qualified_name(target)} {aliases.HIDDEN}")
        return self.call(node)

    def module(self, node: fx.Node, module: nn.Module) -> Node | None:
        """A module without weights of its own as a node."""
        for type_of, recognize in operators.MODULES.items():
            if public(module, (type_of,)) and (recognized := recognize(self, node, vars(module))) is not None:
                return recognized
        if (moving := operators.moving(module)) is not None and not node.kwargs:
            target, more, named = moving
            kind, name = ("method", target) if isinstance(target, str) else ("function", qualified_name(target))
            if kind == "function":
                self.callables[kind, name] = target
            call = Call(node.name, kind, name, (*self.tree(node.args), *more), named, "")
            return float_graph.Move(node.name, self.first(node), call)
        return None

    def is_gone(self, node: fx.Node) -> bool:
        """Whether a node gives back its input in evaluation."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return public(module, GONE) and not hooked(module)
        named_so = node.op == "call_function" and getattr(node.target, "__name__", "") in GONE_FUNCTIONS
        return named_so and not self.training(node)

    def gone(self, node: fx.Node) -> None:
        self.alias[node.name] = self.tree(node.args[0] if node.args else next(iter(node.kwargs.values()))).name

    def training(self, node: fx.Node) -> bool:
        """Whether a dropout function is told to drop: by its argument ``training``, which torch.nn.functional has as
        true by default."""
        assert callable(node.target)
        given: dict[str, Any] = dict(zip(inspect.signature(node.target).parameters, node.args)) | dict(node.kwargs)
        return bool(given.get("training", True))

    def writes(self, traced: fx.Graph) -> dict[fx.Node, fx.Node]:
        """The operations in place, each with what it writes to."""
        found = {node: self.target_of(node) for node in traced.nodes if node.op in KINDS}
        return {node: target for node, target in found.items() if target is not None}

    def target_of(self, node: fx.Node) -> fx.Node | None:
        """What an operation in place writes to; None for other operations."""
        given = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
        if not isinstance(given, fx.Node):
            return None
        if node.op == "call_module":
            in_place = getattr(self.modules[node.target], "inplace", False) is True
        else:
            name = str(getattr(node.target, "__name__", node.target))
            in_place = (name.endswith("_") and not name.endswith("__")) or node.kwargs.get("inplace") is True
        return given if in_place else None

    def path(self, node: fx.Node) -> str:
        """The path of the module that a node was made in."""
        if node.op == "call_module":
            return str(node.target)
        stack = node.meta.get("nn_module_stack") or {}
        return str(list(stack.values())[-1][0]) if stack else ""  # its keys number the calls of a module: 0@1

    def unused(self, name: str) -> str:
        """A name for what a module, or an operation, gives, as a reader would look for it: one that no other value
        has."""
        found = name
        while found in self.taken:
            self.values[name] += 1
            found = f"{name}_{self.values[name]}"
        self.taken.add(found)
        return found

    def call(self, node: fx.Node) -> Call:
        """What an fx node does, as a call that writes to none of its arguments."""
        kind = KINDS[node.op]
        target, args, kwargs = not_in_place(node.target), self.tree(node.args), self.tree(node.kwargs)
        if kind == "method" and target in writes.FILLING:
            kind, target, args, kwargs = "function", writes.filled, (args[0], writes.value_of(args, kwargs)), {}
        elif kind in ("function", "method"):
            target, args, kwargs = writes.zeroed(target, args, kwargs)
        if kind == "method":
            what, name = None, target
        elif kind == "function":
            what, name = target, qualified_name(target)
        else:
            what, name = None, target
        if (kind, name) not in self.callables and kind != "method":
            if kind == "module":
                what = self.modules[target] if self.share else copies.copied(self.modules[target], share=False)
                for part in what.modules():
                    if hasattr(part, "inplace"):
                        setattr(part, "inplace", False)  # noqa: B010  # torch says that attributes are modules
            elif kind == "attribute":
                value = self.attribute(target)
                what = value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
            self.callables[kind, name] = what
        shown = type(self.callables[kind, name]).__name__ if kind == "module" else name
        if isinstance(what, nn.RNNBase) and what.proj_size:
            shown += " with proj_size"
        reason = "is a constant" if kind == "attribute" else f"{shown} {NO_INTEGER_FORM}"
        kwargs = {key: False if key == "inplace" else value for key, value in kwargs.items()}
        return Call(node.name, kind, name, args, kwargs, reason)

    def first(self, node: fx.Node) -> str:
        """The name of the value that a node with one input reads, given by position or by name."""
        named = node.kwargs["input"] if "input" in node.kwargs else next(iter(node.kwargs.values()), None)
        read: Ref = self.tree(node.args[0] if node.args else named)
        return read.name

    def attribute(self, target: str) -> Any:
        """What a path of the model holds, or a constant of that name."""
        return self.constants[target] if target in self.constants else operator.attrgetter(target)(self.model)

    def moved(self, target: str, method: str) -> np.ndarray:
        """What a method of a tensor without arguments gives for a constant, as a vector."""
        made = self.recipes.get(target) or Recipe.of(target, self.attribute(target))
        self.recipes[f"{target}_{method}"] = vector = made.then((method,), ("reshape", -1))
        return self.array(vector.value)

    def tree(self, args: Any) -> Any:
        # fx keeps arguments in immutable lists and dicts of its own; plain ones are what a Program holds.
        def reference(node: fx.Node) -> Any:
            return Ref(self.alias.get(node.name, node.name))

        return plain(fx.node.map_arg(args, reference))

    def optional(self, tensor: torch.Tensor | None) -> np.ndarray | None:
        return None if tensor is None else self.array(tensor)

    def array(self, tensor: torch.Tensor) -> np.ndarray:
        # A shared parameter is one array, and counted once; it is held, so that its id stays its own.
        if id(tensor) not in self.arrays:
            memory = tensor.detach().numpy()
            self.arrays[id(tensor)] = tensor, memory if self.share else memory.copy()
        return self.arrays[id(tensor)][1]


def needed(nodes: list[Node], output: Any) -> list[Node]:
    """The nodes that something reads: not a layer's parameters, which it has absorbed, nor layers whose output nobody
    wants. A call may do more than to give a value, and stays."""
    read, kept = set(refs(output)), []
    for node in reversed(nodes):
        if node.name in read or (isinstance(node, Call) and node.kind != "attribute"):
            kept.append(node)
            read.update(float_graph.node_reads(node))
    return kept[::-1]


def hooked(module: nn.Module) -> bool:
    """Whether something runs around a module's forward, or in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def without_numbers(nodes: list[Node]) -> list[Node]:
    """The nodes, of which those that compute with sizes alone are plain calls: there is nothing in them to quantize,
    nor to say why not."""
    numbers: set[str] = set()
    result = []
    for node in nodes:
        read = float_graph.node_reads(node)
        if isinstance(node, float_graph.Shape):
            numbers.add(node.name)
        elif read and numbers.issuperset(read) and not isinstance(node, float_graph.Layer):
            numbers.add(node.name)
            node = replace(node if isinstance(node, Call) else node.call, reason="")
        result.append(node)
    return result


def not_in_place(target: Any) -> Any:
    """The operation that gives a new value where one would have been written to."""
    if isinstance(target, str) and target.endswith("_") and not target.endswith("__"):
        return target[:-1] if hasattr(torch.Tensor, target[:-1]) else target
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        for place in (torch, nn.functional):
            if getattr(place, name, None) is target and hasattr(place, name[:-1]):
                return getattr(place, name[:-1])
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
