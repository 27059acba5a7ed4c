"""LSTM, GRU and RNN as ONNX's own operators.

They have the network's weights, dequantized, and compute in float32 with activations as they are, where ours are
quantized at every step (DYN-RECURRENT). Each gate differs by at most half a step of the input times the sum of the
absolute weights, and the same of the state; what a network of weights alone gives (DYN-WEIGHT-ONLY) is what they give.
"""

from typing import Any

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.program import Cell, Recurrent
from quantspec.ir.traverse import replace_refs
from quantspec.numerics.affine import QParams

from .builder import Graph, Tensor, tensor_of
from .rearrange import narrow, permute, reshape, sizes_of, transpose

# By kind: the operator, its activations, and in which order it has our gates.
OPERATORS = {
    "lstm": ("LSTM", ("Sigmoid", "Tanh", "Tanh"), (0, 3, 1, 2)), "gru": ("GRU", ("Sigmoid", "Tanh"), (1, 0, 2)),
    "rnn_tanh": ("RNN", ("Tanh",), (0,)), "rnn_relu": ("RNN", ("Relu",), (0,)),
}  # fmt: skip


def recurrent(g: Graph, step: Recurrent, values: dict[str, Any]) -> Any:
    """What the module gives: (output, state)."""
    x = tensor_of(g, values[step.x])
    if step.single or x.rank != 3:
        raise UnsupportedError(f"{step.kind.upper()} {'for a single step' if step.single else 'without a batch axis'}")
    directions, size = 2 if step.bidirectional else 1, step.cells[0].state_weight.shape[1]
    x = transpose(g, x, 0, 1) if step.batch_first else x
    state = replace_refs(step.state, values.__getitem__)
    starts = [] if state is None else state if step.kind == "lstm" else [state]
    starts = [tensor_of(g, start) for start in starts]
    ends: list[list[Tensor]] = []
    for first in range(0, len(step.cells), directions):
        cells = step.cells[first : first + directions]
        given = [narrow(g, start, 0, first, first + directions) for start in starts]
        x, last = layer(g, step, cells, x, given, size)
        ends.append(last)
    joined = tuple(stacked(g, list(parts)) for parts in zip(*ends))
    output = transpose(g, x, 0, 1) if step.batch_first else x
    return output, joined if step.kind == "lstm" else joined[0]


def layer(
    g: Graph, step: Recurrent, cells: tuple[Cell, ...], x: Tensor, starts: list[Tensor], size: int
) -> tuple[Tensor, list[Tensor]]:
    """The output [steps, batch, directions * state] of a layer, and its state at the end."""
    operator, activations, order = OPERATORS[step.kind]
    owner = f"{step.name} {x.name}"
    weights = [joined(g, f"{owner} input", [(c.input_weight, c.input_qparams) for c in cells], order)]
    weights.append(joined(g, f"{owner} state", [(c.state_weight, c.state_qparams) for c in cells], order))
    biases = [np.concatenate([turned(bias_of(c, own), order) for own in ("input", "state")]) for c in cells]
    inputs = [x.name, *weights, g.constant(np.stack(biases), hint="bias"), "", *(t.name for t in starts)]
    attributes: dict[str, Any] = {"linear_before_reset": 1} if step.kind == "gru" else {}
    directions = "bidirectional" if len(cells) == 2 else "forward"
    outputs = g.outputs(
        3 if step.kind == "lstm" else 2, operator, inputs, hidden_size=size, direction=directions,
        activations=activations * len(cells), **attributes,
    )  # fmt: skip
    steps, batch, _ = x.shape
    y = permute(g, Tensor(outputs[0], (steps, len(cells), batch, size)), 0, 2, 1, 3)
    y = reshape(g, y, *sizes_of(g, x)[:2], len(cells) * size)
    return y, [Tensor(name, (len(cells), batch, size)) for name in outputs[1:]]


def bias_of(cell: Cell, own: str) -> np.ndarray:
    bias: np.ndarray | None = getattr(cell, f"{own}_bias")
    return np.zeros(len(cell.input_weight), np.float32) if bias is None else bias


def turned(values: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """What belongs to gates, in another order of them."""
    gates = values.reshape(len(order), -1, *values.shape[1:])
    return gates[list(order)].reshape(values.shape)


def joined(g: Graph, owner: str, weights: list[tuple[np.ndarray, QParams]], order: tuple[int, ...]) -> str:
    """Weights of directions [directions, gates * state, inputs], dequantized in the graph."""
    names = []
    for number, (codes, grid) in enumerate(weights):
        # Zero points have to be there, and each matrix's own, where ONNX Runtime makes weights unsigned (see codes.py).
        own = f"{owner} {number}"
        weight = g.constant(turned(codes, order), hint="weight", owner=own)
        scale = g.constant(turned(np.broadcast_to(grid.scale, len(codes)), order), hint="scale")
        zero_point = g.constant(turned(np.broadcast_to(grid.zero_point, len(codes)), order), np.int8, "zero_point", own)
        name = g.node("DequantizeLinear", [weight, scale, zero_point], axis=0)
        names.append(g.node("Unsqueeze", [name, g.ints(0)]))
    return names[0] if len(names) == 1 else g.node("Concat", names, axis=0)


def stacked(g: Graph, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    count = sum(int(part.shape[0]) for part in parts if isinstance(part.shape[0], int))
    return Tensor(g.node("Concat", [part.name for part in parts], axis=0), (count, *parts[0].shape[1:]))
