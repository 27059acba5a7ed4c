"""The layers of a float graph beside those of the network that was made of it."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from quantspec.ir import float_graph, float_run
from quantspec.ir.program import Call, Conv, Linear
from quantspec.ir.traverse import refs
from quantspec.module import size
from quantspec.module.module import QuantizedModule
from quantspec.module.report import EXCLUDED
from quantspec.numerics.affine import along
from quantspec.ptq import fusion
from quantspec.ptq.exclude import without

FloatLayer: TypeAlias = float_graph.Layer | float_graph.Embedding | float_graph.Recurrent


@dataclass(frozen=True, eq=False)
class Place:
    """A layer of the float graph with the names of its input and output, as a layer or inside of a call that was
    excluded."""

    name: str
    x: str
    layer: FloatLayer


def as_quantized(captured: float_graph.FloatGraph, model: nn.Module, q: QuantizedModule) -> float_graph.FloatGraph:
    """The float graph whose layers are those of the network, fused or not. Raises ValueError when neither has the
    network's layers."""
    modules = dict(model.named_modules())
    excluded = [
        step.target for step in q.program.steps
        if isinstance(step, Call) and step.kind == "module" and step.reason == EXCLUDED
    ]  # fmt: skip
    captured = without(captured, model, [path for path in excluded if path in modules])
    for graph in (fusion.fuse(captured), captured):
        layers = {node.name: node for node in graph.nodes if isinstance(node, float_graph.Layer)}
        if all(made_of(step, layers.get(step.name)) for step in q.program.layers if isinstance(step, (Linear, Conv))):
            return graph
    raise ValueError("q: expected a network quantized from this model, but its layers differ")


def made_of(step: Linear | Conv, node: float_graph.Layer | None) -> bool:
    """Whether a step can have been made of a layer: the same kind, clamp and weights, each within one step of its
    grid."""
    if node is None or node.relu != step.relu or node.weight.shape != step.weight.shape:
        return False
    scale = along(step.w_qparams.axis, step.w_qparams.scale, step.weight.shape)
    return bool((np.abs(step.w_qparams.dequantize(step.weight) - node.weight) <= scale).all())


def places_of(fused: float_graph.FloatGraph) -> list[Place]:
    """The layers of a float graph, in order."""
    places = []
    for node in fused.nodes:
        if isinstance(node, FloatLayer):
            places.append(Place(node.name, node.x, node))
        elif isinstance(node, Call) and (layer := left_out(node, fused)) is not None:
            places.append(Place(node.name, refs(node.args)[0], layer))
    return places


def left_out(node: Call, fused: float_graph.FloatGraph) -> float_graph.Layer | None:
    """The layer in a call of one that was excluded; None for other calls."""
    if node.kind != "module":
        return None
    called = fused.callables[node.kind, node.target]
    if not isinstance(called, float_run.FloatLayer):
        return None
    return replace(called.node, weight=called.weight.numpy(), bias=None if called.bias is None else called.bias.numpy())


def node_arrays(node: float_graph.Node) -> list[np.ndarray]:
    """The arrays that a node of a float graph needs stored."""
    parts = [node, *node.cells] if isinstance(node, float_graph.Recurrent) else [node]
    return [array for part in parts for array in vars(part).values() if isinstance(array, np.ndarray)]


def graph_bytes(fused: float_graph.FloatGraph) -> int:
    """Bytes of what a float network needs stored: weights and biases of its layers, and parameters and buffers of the
    rest that it calls."""
    total = size.arrays_bytes(array for node in fused.nodes for array in node_arrays(node))
    called = {(node.kind, node.target) for node in fused.nodes if isinstance(node, Call)}
    for key in called:
        value = fused.callables.get(key)
        if isinstance(value, nn.Module):
            total += size.float_bytes(value)
        elif isinstance(value, torch.Tensor):
            total += value.nbytes
    return total
