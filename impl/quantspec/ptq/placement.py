"""Which values of a float graph will be codes and which stay in float, and on which grids (chapter 5, "What gets which
qparams")."""

from functools import cached_property

from quantspec.ir.float_graph import (
    Add,
    Bilinear,
    Concat,
    Elementwise,
    Embedding,
    FloatGraph,
    Layer,
    Move,
    Mul,
    Node,
    Pool,
    Recurrent,
    Relu,
    Shape,
    node_reads,
)
from quantspec.ir.traverse import reads, refs

SPLITTING = ("chunk", "split", "unbind", "torch.chunk", "torch.split", "torch.unbind", "tensor_split")


class Placement:
    """``coded``: the values that are computed in codes. ``direct``: layers that take codes and give floats
    (STA-DIRECT). ``sources``: for each value the one whose grid it has, its own or what it rearranges, clamps or pools
    (STA-SAME-GRID). ``joined``: for each join, and each value that only joins read, all the values that have a grid in
    common with it (STA-JOIN). ``observed``: the values that need an observer, in order: what feeds a layer, and what is
    computed in codes (STA-STEPS)."""

    def __init__(self, graph: FloatGraph):
        self.graph = graph
        self.nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
        # What feeds a layer is quantized in any case, so that sums and joins with it may be computed in codes.
        self.coded, self.sources = self.placed(frozenset(), frozenset())
        fed = frozenset(self.sources[node.x] for node in graph.nodes if isinstance(node, Layer))
        self.coded, self.sources = self.placed(fed, frozenset())
        self.coded, self.sources = self.placed(fed, self.for_float_alone())
        self.direct = self.read_in_float()
        self.coded -= {name for name in self.coded if self.sources[name] in self.direct}
        self.joined = self.share_grids()

    def for_float_alone(self) -> frozenset[str]:
        """The values computed in codes, and not by layers, that reach neither a layer nor an output of the network, and
        interpolations that reach no layer."""
        wanted = set(refs(self.graph.output))
        alone: set[str] = set()
        fed: set[str] = set()
        for node in reversed(self.graph.nodes):
            if isinstance(node, Layer):
                wanted.add(node.x)
                fed.add(node.x)
            elif isinstance(node, Bilinear) and node.name not in fed:
                alone.add(node.name)
            elif node.name in self.coded and node.name in wanted:
                wanted.update(own_reads(node))
                fed.update(own_reads(node) if node.name in fed else ())
            elif node.name in self.coded and isinstance(node, (Add, Mul, Concat, Elementwise)):
                alone.add(node.name)
        return frozenset(alone)

    def placed(self, fed: frozenset[str], in_float: frozenset[str]) -> tuple[set[str], dict[str, str]]:
        coded: set[str] = set()
        sources = {name: name for name in self.graph.inputs}

        def in_codes(name: str) -> bool:
            return name in coded or sources[name] in fed

        for node in self.graph.nodes:
            sources[node.name] = node.name
            if isinstance(node, Layer):
                coded.add(node.name)
            elif node.name in in_float:
                continue
            elif isinstance(node, (Add, Mul, Concat)):
                if all(in_codes(name) for name in dict.fromkeys(own_reads(node))):
                    coded.add(node.name)
            elif isinstance(node, Bilinear):
                if node.x in coded and (node.like is None or node.like in coded):
                    coded.add(node.name)
                    sources[node.name] = sources[node.x]
            elif isinstance(node, (Relu, Pool, Move, Elementwise)):
                if node.x in coded:
                    coded.add(node.name)
                passes = node.x in coded or (isinstance(node, Move) and not takes_item(node))
                if not isinstance(node, Elementwise) and passes:
                    sources[node.name] = sources[node.x]
        return coded, sources

    def read_in_float(self) -> set[str]:
        """The layers whose output, or what it is rearranged to, or the ReLU of either, is read by operations in float
        only, and is no output of the network. A clamp's upper end is that of a range, so that its layer keeps codes."""
        kept = {self.sources[name] for name in refs(self.graph.output)}
        floats: set[str] = set()
        for node in self.graph.nodes:
            for name in node_reads(node):
                source = self.sources[name]
                if isinstance(node, Shape) or (isinstance(node, (Move, Relu)) and self.sources[node.name] == source):
                    continue
                if isinstance(node, Layer) or node.name in self.coded:
                    kept.add(source)
                else:
                    floats.add(source)
        layers = (node for node in self.graph.nodes if isinstance(node, Layer) and node.ceiling == float("inf"))
        return {node.name for node in layers if node.name in floats - kept}

    def share_grids(self) -> dict[str, list[str]]:
        """For joins in codes, and what only they read: the group of values it belongs to."""
        joins = {node.name: node for node in self.graph.nodes if isinstance(node, Concat) and node.name in self.coded}
        others = {self.sources[name] for name in refs(self.graph.output)}
        for node in self.graph.nodes:
            keeps_grid = node.name in self.coded and self.sources[node.name] != node.name
            if not (node.name in joins or keeps_grid or isinstance(node, Shape)):
                others |= {self.sources[name] for name in node_reads(node)}
        groups: dict[str, list[str]] = {}
        for name, node in joins.items():
            parts = [source for part in node.xs if (source := self.sources[part]) in self.coded - others]
            merged = list(dict.fromkeys(member for value in (name, *parts) for member in groups.get(value, [value])))
            groups |= dict.fromkeys(merged, merged)
        return groups

    @cached_property
    def observed(self) -> list[str]:
        places: dict[str, None] = {}
        for node in self.graph.nodes:
            if isinstance(node, Layer):
                places |= {self.sources[node.x]: None} | ({} if node.name in self.direct else {node.name: None})
            elif node.name in self.coded and isinstance(node, (Add, Mul, Concat, Elementwise)):
                places |= dict.fromkeys(self.sources[name] for name in own_reads(node))
                places[node.name] = None
        return list(places)

    def place(self, name: str) -> str:
        """How to call the place of a value in a message."""
        if name in self.graph.inputs:
            return f"input {name!r}"
        node = self.nodes[name]
        if isinstance(node, Layer | Embedding | Recurrent):
            return f"output of layer {node.layer!r}"
        return f"value {name!r}"


def own_reads(node: Node) -> list[str]:
    """The values that an operation computes with."""
    if isinstance(node, Concat):
        return list(node.xs)
    return [node.a, node.b] if isinstance(node, (Add, Mul)) else [reads(node)[0]]


def takes_item(node: Move) -> bool:
    """Whether a node takes an item, of a tensor or of a tuple, which it cannot tell."""
    return node.call.target == "operator.getitem"
