"""Fusion: layers absorb the batch normalization and the ReLU behind them (chapter 4)."""

from dataclasses import replace

import numpy as np

from .capture import BatchNorm, FloatGraph, Linear, Relu
from .program import Call, Ref, replace_refs


def may_fuse(reads: int, calls: int) -> bool:
    """Whether what follows a layer may be absorbed: one read of its output in all (FUS-READER), one call of its module (FUS-SHARED)."""
    return reads == 1 and calls == 1


def fold_batch_norm(weight, bias, gamma, beta, mean, var, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight [outputs, ...] and bias (outputs,) with the normalization folded in, float32 (FUS-FOLD-WEIGHT, FUS-FOLD-BIAS).

    ``bias`` may be None. Raises ValueError when var + eps is not positive and finite (FUS-FOLD-REFUSE).
    """
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in (gamma, beta, mean, var))
    total = var + eps
    good = (total > 0) & (total < np.inf)
    if not good.all():
        raise ValueError(f"var: expected var + eps to be positive and finite, got {total[~good][0]}")
    factor = gamma / np.sqrt(total)
    start = 0.0 if bias is None else bias
    folded = weight * np.expand_dims(factor, tuple(range(1, np.ndim(weight))))
    return folded.astype(np.float32), ((start - mean) * factor + beta).astype(np.float32)


def fuse(graph: FloatGraph) -> FloatGraph:
    """The graph in which every layer that may has absorbed the normalization and then the ReLU behind it (FUS-KEEP).

    Neither the graph given nor the model it came from is changed.
    """
    reads = graph.readers()
    nodes: dict[str, object] = {}
    alias: dict[str, str] = {}
    for node in graph.nodes:
        node = renamed(node, alias)
        layer = nodes.get(getattr(node, "x", None))
        if isinstance(layer, Linear) and not layer.relu and may_fuse(reads[layer.name], graph.calls[layer.layer]):
            if isinstance(node, BatchNorm):
                weight, bias = fold_batch_norm(layer.weight, layer.bias, node.gamma, node.beta, node.mean, node.var, node.eps)
                nodes[layer.name] = replace(layer, weight=weight, bias=bias)
            elif isinstance(node, Relu):
                nodes[layer.name] = replace(layer, relu=True)
            if isinstance(node, (BatchNorm, Relu)):
                alias[node.name] = layer.name
                reads[layer.name] = reads[node.name]
                continue
        nodes[node.name] = node
    output = replace_refs(graph.output, lambda name: Ref(alias.get(name, name)))
    return replace(graph, nodes=tuple(nodes.values()), output=output)


def renamed(node, alias: dict[str, str]):
    """The node reading what its inputs have been absorbed into."""
    if isinstance(node, Call):
        args, kwargs = (replace_refs(tree, lambda name: Ref(alias.get(name, name))) for tree in (node.args, node.kwargs))
        return replace(node, args=args, kwargs=kwargs)
    if isinstance(node, Linear):
        return replace(node, x=alias.get(node.x, node.x))
    return replace(node, x=alias.get(node.x, node.x), call=renamed(node.call, alias))
