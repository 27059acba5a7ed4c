"""Which values of a recording are which nodes of its graph, and which are constants."""

import contextlib
import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from quantspec.ir.float_graph import Recipe
from quantspec.ir.program import Call, Ref

from . import copies, tracked
from .calls import CONSTANTS
from .tensor_names import LIKE


class Stopped(BaseException):
    """Ends a recording. Not an Exception, so that the model's own handlers let it through."""


@dataclass(frozen=True, eq=False)
class Made:
    """How a constant was made: a function, or a module by its path, of the model's tensors by their paths, of what was
    ``Made`` before, and of other things; ``learned``: of parameters. One that others refer to is made once."""

    function: "Callable[..., Any] | Path"
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    learned: bool


class Path(str):
    """The path of a tensor or a module of the model."""


def item_of(tree: Any, number: int) -> Any:
    """One of the tensors in a tree."""
    return tree_leaves(tree)[number]


def first(value: Any, *_: Any) -> Any:
    """A value, after others were made, which write to its memory."""
    return value


class Values:
    """The graph of a recording of a model, in which the module at the end of ``stack`` is running."""

    def __init__(self, model: nn.Module, path: str):
        super().__init__()
        self.model = model
        self.graph = fx.Graph()
        self.stack: list[str] = [path]
        self.nodes: dict[int, tuple[torch.Tensor, Callable[[], fx.Node], int]] = {}
        self.fresh: dict[int, torch.Tensor] = {}  # made in the recording, of constants alone
        self.made: dict[int, Made] = {}  # how they were
        self.constants: dict[str, Any] = {}
        self.recipes: dict[str, Recipe] = {}  # of constants that were made of parameters
        self.attributes = copies.attributes_of(model)
        self.attribute_nodes: dict[str, fx.Node] = {}
        self.several: dict[int, tuple[Any, fx.Node]] = {}  # tuples of torch's that have names for what is in them

    def add(self, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        node = self.graph.create_node(op, target, tuple(args), dict(kwargs))
        path = self.stack[-1]
        node.meta["nn_module_stack"] = {path: (path, nn.Module)}
        return node

    def know(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = tensor, lambda: node, tensor._version

    def is_known(self, leaf: Any) -> bool:
        if isinstance(leaf, torch.Size):
            return any(map(self.is_known, leaf))
        return isinstance(leaf, tracked.Tracked) or (isinstance(leaf, torch.Tensor) and id(leaf) in self.nodes)

    def keep(self, output: Any, made: Made) -> None:
        """Constants that were made."""
        for index, leaf in enumerate(tree_leaves(output)):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in self.attributes:
                self.fresh[id(leaf)] = leaf  # before it is asked anything
                learned = made.learned and leaf.is_floating_point()
                itself = leaf is output and learned == made.learned
                self.made[id(leaf)] = made if itself else Made(item_of, (made, index), {}, learned)

    def making(self, function: Callable[..., Any] | Path, args: Any, kwargs: Any, *more: Any) -> Made:
        """What a function of constants makes, which also reads ``more``."""
        like = getattr(function, "__name__", "") in LIKE
        learned = any(map(self.is_learned, tree_leaves(args[:1] if like else (args, kwargs, more))))

        def source(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return Path(self.attributes[id(leaf)][0]) if id(leaf) in self.attributes else self.made.get(id(leaf), leaf)

        given, named = tree_map(source, (tuple(args), dict(kwargs)))
        return Made(function, given, named, learned)

    def recipe(self, made: Made, value: torch.Tensor) -> Recipe:
        """The same as calls."""
        steps: list[Call] = []
        callables: dict[tuple[str, str], Any] = {}
        names: dict[Any, Ref] = {}

        def add(kind: str, target: str, args: Any = (), kwargs: Any = None) -> Ref:
            steps.append(Call(f"made_{len(steps)}", kind, target, args, kwargs or {}, ""))
            return Ref(steps[-1].name)

        def given(leaf: Any) -> Any:
            if isinstance(leaf, Path) and leaf not in names:
                names[leaf] = add("attribute", str(leaf))
            if isinstance(leaf, Made) and leaf not in names:
                args, kwargs = tree_map(given, (leaf.args, leaf.kwargs))
                if isinstance(leaf.function, Path):
                    names[leaf] = add("module", str(leaf.function), args, kwargs)
                else:
                    key = "function", f"{getattr(leaf.function, '__name__', 'function')} {len(steps)}"
                    callables[key] = leaf.function
                    names[leaf] = add(*key, args, kwargs)
            return names[leaf] if isinstance(leaf, (Path, Made)) else leaf

        given(made)
        return Recipe(tuple(steps), callables, value)

    def is_learned(self, leaf: Any) -> bool:
        """Whether a constant is a parameter, or was made of some."""
        return isinstance(leaf, nn.Parameter) or (id(leaf) in self.made and self.made[id(leaf)].learned)

    def keep_result(self, output: Any, node: fx.Node) -> None:
        """The values of a node: a tensor, or some in a tuple."""
        if isinstance(output, torch.Tensor):
            if id(output) not in self.nodes or self.nodes[id(output)][1] is stale:
                self.know(output, node)
        elif isinstance(output, (tuple, list)):
            if type(output) not in (tuple, list):
                self.several[id(output)] = output, node
            for index, item in enumerate(output):
                if isinstance(item, (tuple, list)):
                    self.keep_result(item, self.add("call_function", operator.getitem, (node, index), {}))
                elif isinstance(item, torch.Tensor) and id(item) not in self.nodes:
                    self.nodes[id(item)] = item, self.item(node, index), item._version

    def item(self, node: fx.Node, index: int) -> Callable[[], fx.Node]:
        made: list[fx.Node] = []
        path = self.stack[-1]

        def make() -> fx.Node:
            if not made:
                with self.graph.inserting_after(node):
                    made.append(self.graph.call_function(operator.getitem, (node, index)))
                made[0].meta["nn_module_stack"] = {path: (path, nn.Module)}
            return made[0]

        return make

    def argument(self, tree: Any) -> Any:
        """Arguments as fx has them: nodes in the places of what the graph computes."""
        if isinstance(tree, torch.Tensor):
            return self.tensor_node(tree)
        if isinstance(tree, tracked.Tracked):
            # One of another recording has come out of a cache, and is a number.
            recorder: object = tree.recorder
            return tree.size_node if recorder is self else tracked.exact(tree)
        if type(tree) in (torch.Size, tuple):
            return tuple(map(self.argument, tree))
        if type(tree) is list:
            return list(map(self.argument, tree))
        if type(tree) is dict:
            return {key: self.argument(value) for key, value in tree.items()}
        if isinstance(tree, slice):
            return slice(*map(self.argument, (tree.start, tree.stop, tree.step)))
        if isinstance(tree, CONSTANTS):
            return tree
        if (made := self.made_by(tree)) is not None:
            return made
        raise Stopped(f"a graph cannot hold a {type(tree).__name__}")

    def made_by(self, tree: Any) -> fx.Node | None:
        """What makes a value of a class that has fields of its own; None for others."""
        if id(tree) in self.several:
            return self.several[id(tree)][1]
        if isinstance(tree, tuple):
            return self.add("call_function", type(tree), tuple(map(self.argument, tree)), {})
        if type(tree) is OrderedDict:
            return self.add("call_function", OrderedDict, ([(key, self.argument(tree[key])) for key in tree],), {})
        if is_dataclass(tree) and not isinstance(tree, type):
            given = {f.name: (f, getattr(tree, f.name)) for f in fields(tree) if f.init}
            named = {
                name: value for name, (f, value) in given.items() if f.default is MISSING or value is not f.default
            }
            return self.add("call_function", type(tree), (), self.argument(named))
        return None

    def tensor_node(self, tensor: torch.Tensor) -> fx.Node:
        if id(tensor) in self.nodes:
            _, make, version = self.nodes[id(tensor)]
            if make is not stale and tensor._version != version:
                raise Stopped("a tensor was modified outside torch's functions")
            return make()
        self.check_constant(tensor)
        if id(tensor) in self.attributes:
            name = self.attributes[id(tensor)][0]
        else:
            name = ".".join(part for part in (self.stack[-1], f"constant_{len(self.constants)}") if part)
        if name not in self.attribute_nodes or name in self.constants:
            if id(tensor) not in self.attributes or not self.reachable(name):
                value = tensor.detach().clone()
                self.constants[name] = nn.Parameter(value, False) if self.is_learned(tensor) else value
                if self.is_learned(tensor) and id(tensor) in self.made:
                    self.recipes[name] = self.recipe(self.made[id(tensor)], self.constants[name])
            with self.at_start():
                self.attribute_nodes[name] = self.graph.create_node("get_attr", name)
        return self.attribute_nodes[name]

    def reachable(self, name: str) -> bool:
        try:
            return operator.attrgetter(name)(self.model) is not None
        except AttributeError:
            return False

    def at_start(self) -> Any:
        first = next((node for node in self.graph.nodes if node.op not in ("placeholder", "get_attr")), None)
        return self.graph.inserting_before(first) if first is not None else contextlib.nullcontext()

    def check_constant(self, tensor: torch.Tensor) -> None:
        """Raises for a tensor that came from nowhere: what torch did not tell us of made it, of inputs perhaps."""
        if id(tensor) in self.attributes:
            if self.attributes[id(tensor)][2] != tensor._version:
                raise Stopped(f"it writes to the model's {self.attributes[id(tensor)][0]!r}")
        elif id(tensor) not in self.fresh:
            raise Stopped("a tensor was created outside torch's functions")


def stale() -> fx.Node:
    raise Stopped("it reads a tensor whose memory was written through another tensor")
