"""Fusion: layers absorb the batch normalizations around them and the ReLU behind them (chapter 4)."""

from dataclasses import replace

import numpy as np

from quantspec.ir.float_graph import (
    Add,
    BatchNorm,
    Conv,
    Elementwise,
    FloatGraph,
    Folded,
    Layer,
    Linear,
    Move,
    Node,
    Relu,
    renamed,
)
from quantspec.ir.program import Call, Ref
from quantspec.ir.traverse import replace_refs
from quantspec.numerics.folding import factor_and_shift, fold_batch_norm, fold_batch_norm_before


def may_fuse(reads: int, calls: int) -> bool:
    """Whether what follows a layer may be absorbed: one read of its output in all (FUS-READER), one call of its module
    (FUS-SHARED)."""
    return reads == 1 and calls == 1


def fuse(graph: FloatGraph) -> FloatGraph:
    """The graph in which every layer that may has absorbed the normalization and then the ReLU behind it, and the
    normalization before it (FUS-KEEP).

    Sums absorb the ReLU behind them. A normalization of images that is left becomes a layer of its own (FUS-ALONE).
    Neither the graph given nor the model it came from is changed.
    """
    return without_unread(stand_alone(fold_before(fold_behind(graph))))


def without_unread(graph: FloatGraph) -> FloatGraph:
    """The graph without constants that nobody reads any more, as the numbers of a normalization that was folded."""
    reads = graph.readers()
    unread = (node.name for node in graph.nodes if isinstance(node, Call) and node.kind == "attribute")
    gone = {name for name in unread if reads[name] == 0}
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.name not in gone))


def fold_behind(graph: FloatGraph) -> FloatGraph:
    """Layers absorb what follows them."""
    reads = graph.readers()
    nodes: dict[str, Node] = {}
    alias: dict[str, str] = {}
    folded = dict(graph.folded)
    for node in graph.nodes:
        node = renamed(node, alias)
        if (fused := absorbed(nodes, node, reads, graph)) is not None:
            if isinstance(node, BatchNorm):
                note(folded, "behind", node, nodes[fused.name])
            nodes[fused.name] = fused
            alias[node.name] = fused.name
            reads[fused.name] = reads[node.name]
        else:
            nodes[node.name] = node
    output = replace_refs(graph.output, lambda name: Ref(alias.get(name, name)))
    return replace(graph, nodes=tuple(nodes.values()), output=output, folded=folded)


def note(folded: dict[str, tuple[Folded, ...]], place: str, norm: BatchNorm, layer: Node) -> None:
    """Adds a normalization to what a layer has absorbed."""
    assert isinstance(layer, Layer)
    folded[layer.name] = *folded.get(layer.name, ()), Folded(place, norm, layer.weight, layer.bias)


def absorbed(nodes: dict[str, Node], node: Node, reads: dict[str, int], graph: FloatGraph) -> Layer | Add | None:
    """The layer or sum before a node with that node inside, None where that may not be."""
    before = nodes.get(node.x) if isinstance(node, (Relu, Elementwise, BatchNorm)) else None
    if not isinstance(before, Layer | Add) or before.relu:
        return None
    if not may_fuse(reads[before.name], calls(before, graph)):
        return None
    if isinstance(node, Relu):
        return replace(before, relu=True)
    if isinstance(before, Add):
        return None
    if isinstance(node, Elementwise) and node.ceiling is not None:
        return replace(before, relu=True, ceiling=node.ceiling)
    if isinstance(node, BatchNorm) and len(node.gamma) == len(before.weight):
        weight, bias = fold_batch_norm(
            before.weight, before.bias, node.gamma, node.beta, node.mean, node.var, node.eps
        )
        return with_weight(before, weight, bias)
    return None


def with_weight(layer: Layer, weight: np.ndarray, bias: np.ndarray) -> Layer:
    """The layer with a normalization inside. A linear one remembers it: BatchNorm1d normalizes the second axis, which
    is a linear layer's last one only in rows."""
    if isinstance(layer, Linear):
        return replace(layer, weight=weight, bias=bias, flat=True)
    return replace(layer, weight=weight, bias=bias)


def calls(node: Node, graph: FloatGraph) -> int:
    """How often the network calls the module of a layer; what is no layer is called once."""
    return graph.calls[node.layer] if isinstance(node, Layer) else 1


def fold_before(graph: FloatGraph) -> FloatGraph:
    """Layers absorb a normalization that only they read. One that pads does not: what is outside the input is 0 behind
    the normalization, not before it."""
    reads = graph.readers()
    norms = {node.name: node for node in graph.nodes if isinstance(node, BatchNorm) and reads[node.name] == 1}
    nodes: dict[str, Node] = {node.name: node for node in graph.nodes}
    folded = dict(graph.folded)
    for node in graph.nodes:
        norm = norms.get(node.x) if isinstance(node, Layer) else None
        if norm is None or not isinstance(node, Layer) or graph.calls[node.layer] != 1:
            continue
        if isinstance(node, Conv) and (any(map(any, node.padding)) or node.transposed):
            continue
        if isinstance(node, Linear) and norm.positions is not None:
            continue  # the channels of an image are not its last axis
        groups = node.groups if isinstance(node, Conv) else 1
        if len(norm.gamma) != node.weight.shape[1] * groups:
            continue
        statistics = norm.gamma, norm.beta, norm.mean, norm.var, norm.eps
        weight, bias = fold_batch_norm_before(node.weight, node.bias, *statistics, groups)
        nodes[node.name] = replace(with_weight(node, weight, bias), x=norm.x)
        note(folded, "before", norm, node)
        del nodes[norm.name]
    return replace(graph, nodes=tuple(nodes.values()), folded=folded)


def stand_alone(graph: FloatGraph) -> FloatGraph:
    """Normalizations of images that nothing absorbed become depthwise convolutions with a kernel of one position, which
    may absorb a ReLU (FUS-ALONE)."""
    inputs = {*graph.inputs, *(node.name for node in graph.nodes if isinstance(node, Call))}
    nodes: list[Node] = []
    folded = dict(graph.folded)
    for node in graph.nodes:
        if isinstance(node, BatchNorm) and node.positions is not None and source(node.x, graph) not in inputs:
            factor, shift = factor_and_shift(node.gamma, node.beta, node.mean, node.var, node.eps)
            ones = (1,) * node.positions
            weight = factor.astype(np.float32).reshape(-1, 1, *ones)
            places = ones, ((0, 0),) * node.positions, ones, ones
            norm = node
            node = Conv(node.name, node.x, node.layer, weight, shift.astype(np.float32), *places, len(factor))
            folded[node.name] = (Folded("alone", norm, np.ones_like(weight), None),)
        nodes.append(node)
    return fold_behind(replace(graph, nodes=tuple(nodes), folded=folded))


def source(name: str, graph: FloatGraph) -> str:
    """What a value is a rearrangement of."""
    moves = {node.name: node.x for node in graph.nodes if isinstance(node, Move)}
    while name in moves:
        name = moves[name]
    return name
