"""What a model does in training mode only: dropout, stochastic depth, noise (QAT-ACTS).

A module is traced in both modes, and both graphs are laid beside each other. What training mode has more of becomes an
``Act``: in the graph of evaluation a mark stands where it is read, which gives back its input. What cannot be laid
beside each other is no part; smaller ones are, and the Python between them acts by itself.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from quantspec.errors import UnsupportedError
from quantspec.ir.float_graph import Act, BatchNorm, FloatGraph, Node, node_reads, renamed
from quantspec.ir.program import Call, Ref
from quantspec.ir.rearrange import qualified_name
from quantspec.ir.traverse import replace_refs

from . import copies
from .builder import GraphBuilder, in_order, marked
from .operators import public

MARK = qualified_name(marked)
OTHERWISE = "it behaves differently in training mode"
DRAWS = "it draws random numbers in Python"
DRAWS_OTHERWISE = f"{OTHERWISE}: {DRAWS}"
# What gives a multiple of its input, not below 0, of each value: a ReLU behind it may come first.
SCALING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
SCALING_FUNCTIONS = {"torch.nn.functional.dropout" + axes for axes in ("", "1d", "2d", "3d")}
RELUS = (torch.relu, nn.functional.relu, "relu")


# By the keys of marks, and by the nodes that do otherwise in training mode.
Acts = dict[str | fx.Node, Act]


class Mismatch(Exception):
    """Two nodes that are not the same operation on the same values."""


@contextlib.contextmanager
def no_draws(reason: str = DRAWS) -> Iterator[None]:
    """Raises UnsupportedError where random numbers are drawn while a graph is traced, in which they would be constants.
    """
    with copies.random_kept():
        before, pythons = torch.get_rng_state(), python_random()
        yield
        if python_random() != pythons or not torch.equal(torch.get_rng_state(), before):
            raise UnsupportedError(reason)


def python_random() -> list[Any]:
    """What changes when Python or NumPy draws a random number."""
    name, keys, *rest = np.random.get_state()
    return [random.getstate(), name, np.asarray(keys).tolist(), rest]


class Alignment:
    """A graph in evaluation mode beside that of training mode. ``images``: for each node of the latter the nodes of the
    former whose value it would have in evaluation."""

    def __init__(self, graph: fx.Graph, training: fx.Graph, builder: GraphBuilder, other: GraphBuilder):
        self.graph, self.training, self.builder, self.other = graph, training, builder, other
        self.images: dict[fx.Node, set[fx.Node]] = {}
        self.matched: dict[fx.Node, fx.Node] = {}
        self.marks: dict[tuple[fx.Node, fx.Node], fx.Node] = {}
        self.acts: Acts = {}

    def run(self) -> Acts:
        """Puts the marks into the graph. Raises UnsupportedError where the graphs do not fit."""
        for graph, builder, gone in ((self.graph, self.builder, True), (self.training, self.other, False)):
            reads_what_was_written(graph, builder)
            for node in list(graph.nodes):
                identity = node.op == "call_module" and public(builder.modules[str(node.target)], (nn.Identity,))
                if identity or (gone and builder.is_gone(node)):
                    node.replace_all_uses_with(node.all_input_nodes[0])
                    graph.erase_node(node)
        self.of_data = depending(self.graph)
        left = list(self.graph.nodes)
        for node in list(self.training.nodes):
            same = next((n for n in left if n.op == "placeholder" and n.target == node.target), None)
            if node.op != "placeholder":
                same = left[0] if left and left[0].op != "placeholder" else None
            if same is not None and self.fits(same, node):
                left.remove(same)
                self.images[node], self.matched[same] = {same}, node
            else:
                self.images[node] = set().union(*(self.images[read] for read in node.all_input_nodes))
        if left:
            raise UnsupportedError(f"{OTHERWISE}: {left[0]} does not exist there")
        for node, twin in self.matched.items():
            self.mark(node, twin)
        for mark in list(self.marks.values()):
            behind_relu(mark, self.acts[str(mark.args[1])], self.builder)
        return self.acts

    def fits(self, node: fx.Node, twin: fx.Node) -> bool:
        """Whether a node is the same operation in both graphs, on the same values."""
        if node.op != twin.op or (node.target != twin.target):
            return False
        try:
            self.merged((node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)), lambda a, b: a, [])
        except Mismatch:
            return False
        return True

    def merged(self, mine: Any, other: Any, value: Any, differing: list[Any]) -> Any:
        """A tree of arguments with ``value(node, twin)`` for each pair of nodes; constants that differ are noted."""
        if isinstance(mine, fx.Node) or isinstance(other, fx.Node):
            if not (isinstance(mine, fx.Node) and isinstance(other, fx.Node) and mine in self.images.get(other, ())):
                raise Mismatch
            return value(mine, other)
        if isinstance(mine, dict) and isinstance(other, dict):
            alone = mine.keys() ^ other.keys()
            if any(isinstance(given.get(key), fx.Node) for key in alone for given in (mine, other)):
                raise Mismatch
            differing += alone
            both = {key: self.merged(mine[key], other[key], value, differing) for key in mine.keys() & other.keys()}
            return {key: both.get(key, given) for key, given in mine.items()}
        if isinstance(mine, (tuple, list)) and isinstance(other, (tuple, list)):
            if len(mine) != len(other):
                raise Mismatch
            items = [self.merged(a, b, value, differing) for a, b in zip(mine, other)]
            return tuple(items) if isinstance(mine, tuple) else items
        if isinstance(mine, slice) and isinstance(other, slice):
            ends = ((getattr(mine, e), getattr(other, e)) for e in ("start", "stop", "step"))
            return slice(*(self.merged(a, b, value, differing) for a, b in ends))
        if mine is not other and (type(mine) is not type(other) or mine != other):
            differing.append(other)
        return mine

    def mark(self, node: fx.Node, twin: fx.Node) -> None:
        """Lets a node read marks where its twin reads what acts, and notes what its twin does otherwise."""
        differing: list[Any] = []

        def read(mine: fx.Node, other: fx.Node) -> fx.Node:
            return mine if self.matched.get(mine) is other else self.marked(node, mine, other)

        args, kwargs = self.merged((node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)), read, differing)
        node.args, node.kwargs = args, kwargs
        if node.op in ("placeholder", "output") or not differing:
            return
        count = iter(range(len(twin.all_input_nodes) * 9 + 9))
        call = self.other.call(twin)
        args, kwargs = (replace_refs(tree, lambda _: Ref(str(next(count)))) for tree in (call.args, call.kwargs))
        self.acts[node] = self.act((replace(call, name="output", args=args, kwargs=kwargs),), [twin])

    def marked(self, reader: fx.Node, value: fx.Node, twin: fx.Node) -> fx.Node:
        """The mark that stands for what acts on a value, in front of who reads it."""
        if (value, twin) not in self.marks:
            if value not in self.of_data:
                raise UnsupportedError(f"{OTHERWISE}: {value} acts on parameters")
            extra, borders = self.region(twin)
            others = [border for border in borders if border is not value]
            key = f"act{len(self.acts)}"
            with self.graph.inserting_before(reader):
                mark = self.graph.create_node("call_function", marked, (value, key, *others))
            mark.meta = dict(value.meta)
            given = enumerate((value, *others))
            names = {borders[border].name: str(index) for index, border in given if border in borders}
            steps = tuple(self.step(node, names) for node in extra)
            self.acts[key] = replace(self.act(steps, extra), output=twin.name)
            self.marks[value, twin] = mark
        return self.marks[value, twin]

    def step(self, node: fx.Node, names: dict[str, str]) -> Call:
        """A node of training mode as a call that reads what is given by its number."""
        call = self.other.call(node)

        def numbered(name: str) -> Ref:
            return Ref(names.get(name, name))

        return replace(call, args=replace_refs(call.args, numbered), kwargs=replace_refs(call.kwargs, numbered))

    def act(self, steps: tuple[Call, ...], nodes: list[fx.Node]) -> Act:
        owners = tuple(dict.fromkeys(self.other.path(node) for node in nodes))
        called = self.other.callables
        return Act(steps, "output", owners, {key: called[key] for s in steps if (key := (s.kind, s.target)) in called})

    def region(self, twin: fx.Node) -> tuple[list[fx.Node], dict[fx.Node, fx.Node]]:
        """The nodes that only training mode has, up to one of them, and what they read of others, by its image."""
        of = {node: mine for mine, node in self.matched.items()}
        extra: set[fx.Node] = set()
        borders: dict[fx.Node, fx.Node] = {}
        pending = [twin]
        while pending:
            node = pending.pop()
            if node in of and of[node].op != "get_attr":
                borders[of[node]] = node
            elif node not in extra:
                extra.add(node)
                pending += node.all_input_nodes
        return [node for node in self.training.nodes if node in extra], borders


def depending(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value depends on an input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(read in found for read in node.all_input_nodes):
            found.add(node)
    return found


def reads_what_was_written(graph: fx.Graph, builder: GraphBuilder) -> None:
    """Lets who reads a value after it was written to read what wrote it."""
    order = in_order(graph)
    for node in builder.writes(graph):
        value = node.all_input_nodes[0]
        for user in list(value.users):
            if order[user] > order[node]:
                user.replace_input_with(value, node)


def behind_relu(mark: fx.Node, act: Act, builder: GraphBuilder) -> None:
    """Puts a mark of what scales behind the ReLU that alone reads it, so that a layer can absorb that."""
    users = list(mark.users)
    if len(act.steps) != 1 or len(users) != 1:
        return
    (step,), (relu,) = act.steps, users
    what = act.callables.get((step.kind, step.target))
    scales = public(what, SCALING) if isinstance(what, nn.Module) else step.target in SCALING_FUNCTIONS
    is_relu = relu.target in RELUS or (
        relu.op == "call_module" and public(builder.modules[str(relu.target)], (nn.ReLU,))
    )
    if scales and is_relu:
        relu.replace_input_with(mark, mark.all_input_nodes[0])
        relu.replace_all_uses_with(mark)
        relu.append(mark)
        mark.replace_input_with(mark.all_input_nodes[0], relu)


def follows(node: Node | None, modules: dict[str, nn.Module]) -> bool:
    """Whether training follows what a node does otherwise in training mode."""
    if isinstance(node, BatchNorm):
        own = modules.get(node.layer)
        return isinstance(own, nn.modules.batchnorm._BatchNorm) and own.track_running_stats
    return isinstance(node, Call)


def with_acts(graph: FloatGraph, acts: Acts, modules: dict[str, nn.Module]) -> FloatGraph:
    """The graph with what acts in it. Raises UnsupportedError for what has no place there."""
    nodes = {node.name: node for node in graph.nodes}
    marks = set(key_of_marks(graph))
    kept: dict[str, Act] = {}
    for key, act in acts.items():
        if isinstance(key, str):
            kept |= {key: act} if key in marks else {}
        elif not follows(nodes.get(key.name), modules):
            raise UnsupportedError(f"{OTHERWISE}: {key.name}")
        elif isinstance(nodes[key.name], Call):
            kept[key.name] = act
    return replace(graph, acts=kept)


def key_of_marks(graph: FloatGraph) -> Iterator[str]:
    for node in graph.nodes:
        call = node if isinstance(node, Call) else getattr(node, "call", None)
        if call is not None and call.target == MARK:
            yield call.args[1]


def unmarked(graph: FloatGraph) -> FloatGraph:
    """The graph as it is in evaluation."""
    alias: dict[str, str] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = renamed(node, alias)
        call = node if isinstance(node, Call) else getattr(node, "call", None)
        if call is not None and call.target == MARK:
            alias[node.name] = node_reads(node)[0]
        else:
            nodes.append(node)
    output = replace_refs(graph.output, lambda name: Ref(alias.get(name, name)))
    called = {key: what for key, what in graph.callables.items() if key != ("function", MARK)}
    return replace(graph, nodes=tuple(nodes), output=output, callables=called, acts={})
