"""Recurrent layers in training: what the engines compute of them (DYN-RECURRENT), with the gradient of the float layer
on dequantized inputs and weights."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from quantspec.engines.reference_dynamic import KINDS, check_state, in_steps, parts_of
from quantspec.ir.program import Recurrent
from quantspec.numerics.affine import QParams, code_range
from quantspec.ptq.options import Options

from .functions import QuantizedWeight, Real, Replaced, apply
from .grids import weight_scale

State = tuple[torch.Tensor, ...]


class Matrix:
    """A weight of a recurrent layer in codes, with its bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, options: Options):
        scale = weight_scale(weight.detach(), options, options.per_channel)
        codes = apply(QuantizedWeight, weight, None, scale, options)
        qmin, qmax = code_range(options.weight_bits, signed=True)
        zeros = np.zeros(scale.shape, np.int32)
        self.grid = QParams(scale.numpy(), zeros, qmin, qmax, 0 if scale.ndim else None)
        self.codes = codes.detach().to(torch.int8).numpy()
        self.real = apply(Real, codes, scale.view(-1, 1))
        self.bias, self.options = bias, options

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """A dynamic layer's output for rows, whose codes are those of their own range."""
        dialect, reduce_range = self.options.dialect, self.options.reduce_range
        rows = x.detach().contiguous().numpy()
        bias = None if self.bias is None else self.bias.detach().numpy()
        products = dialect.linear_dynamic(rows, self.codes, self.grid, bias, reduce_range=reduce_range)
        if not torch.is_grad_enabled():
            return torch.from_numpy(products)
        codes, scale, grid = dialect.quantize_dynamic(rows, reduce_range=reduce_range)
        real = (codes.astype(np.float32) - np.float32(grid.zero_point)) * np.float32(scale)
        surrogate = F.linear(apply(Replaced, x, torch.from_numpy(real)), self.real, self.bias)
        exact: torch.Tensor = apply(Replaced, surrogate, torch.from_numpy(products))
        return exact


def recurrent(
    step: Recurrent, x: Any, state: Any, cells: list[dict[str, torch.Tensor | None]], options: Options,
    dropout: float,
) -> Any:  # fmt: skip
    """What the module gives: (output, state), or the new state of a single step. ``cells``: the present weights;
    ``dropout``: between its layers.
    """
    matrices = [(matrix(cell, "input", options), matrix(cell, "state", options)) for cell in cells]
    if isinstance(x, PackedSequence):
        return packed(step, x, state, matrices, dropout)
    values, batched = in_steps(step, x.to(torch.float32))
    states = initial(step, state, values.shape[1], batched, matrices)
    values, last = through_layers(step, values, states, matrices, dropout, one_way)
    if step.single:
        single = tuple(part[0] if batched else part[0, 0] for part in last)
        return single if step.kind == "lstm" else single[0]
    if not batched:
        values, last = values[:, 0], tuple(part[:, 0] for part in last)
    elif step.batch_first:
        values = values.transpose(0, 1)
    return values, last if step.kind == "lstm" else last[0]


def through_layers(
    step: Recurrent, values: torch.Tensor, states: Sequence[torch.Tensor], matrices: list[tuple[Matrix, Matrix]],
    dropout: float, way: Callable[..., tuple[torch.Tensor, State]],
) -> tuple[torch.Tensor, State]:  # fmt: skip
    """Outputs of the last layer, and the last states of each layer and direction; ``way`` runs one of them."""
    ends: list[State] = []
    directions = 2 if step.bidirectional else 1
    for first in range(0, len(matrices), directions):
        outputs = []
        values = F.dropout(values, dropout) if first and dropout else values
        for index in range(first, first + directions):
            start = tuple(part[index] for part in states)
            result, end = way(step.kind, *matrices[index], values, state=start, backward=index > first)
            outputs.append(result)
            ends.append(end)
        values = torch.cat(outputs, dim=-1)
    return values, tuple(torch.stack(parts) for parts in zip(*ends))


def packed(
    step: Recurrent, x: PackedSequence, state: Any, matrices: list[tuple[Matrix, Matrix]], dropout: float
) -> Any:
    """What the module gives for a packed sequence (DYN-PACKED)."""
    counts, values = x.batch_sizes.tolist(), x.data.to(torch.float32)
    states = initial(step, state, counts[0], True, matrices)
    if state is not None and x.sorted_indices is not None:
        states = [part[:, x.sorted_indices] for part in states]
    way = functools.partial(packed_way, counts=counts)
    values, last = through_layers(step, values, states, matrices, dropout, way)
    if x.unsorted_indices is not None:
        last = tuple(part[:, x.unsorted_indices] for part in last)
    output = PackedSequence(values, x.batch_sizes, x.sorted_indices)
    return output, last if step.kind == "lstm" else last[0]


def packed_way(
    kind: str, inputs: Matrix, states: Matrix, x: torch.Tensor, counts: list[int], state: State, backward: bool
) -> tuple[torch.Tensor, State]:
    """``one_way`` for rows of which ``counts`` says how many belong to each step: those of the longest sequences."""
    by_step = list(enumerate(torch.split(inputs.gates(x), counts)))
    outputs: dict[int, torch.Tensor] = {}
    for index, own in reversed(by_step) if backward else by_step:
        now = tuple(part[: len(own)] for part in state)
        new = KINDS[kind](own, states.gates(now[0]), now)
        state = tuple(torch.cat([a, b[len(own) :]]) for a, b in zip(new, state))
        outputs[index] = new[0]
    return torch.cat([outputs[index] for index in range(len(counts))]), state


def matrix(cell: dict[str, torch.Tensor | None], which: str, options: Options) -> Matrix:
    weight = cell[f"{which}_weight"]
    assert weight is not None
    return Matrix(weight, cell[f"{which}_bias"], options)


def initial(
    step: Recurrent, state: Any, batch: int, batched: bool, matrices: list[tuple[Matrix, Matrix]]
) -> list[torch.Tensor]:
    """The state before the first step, [cells, batch, state] for each of its one or two parts."""
    size = matrices[0][1].codes.shape[1]
    if state is None:
        return [matrices[0][1].real.new_zeros(len(matrices), batch, size)] * 2  # the second is an LSTM's alone
    parts = [part.to(torch.float32) for part in parts_of(step, state)]
    check_state(step, parts, (batch, size) if batched else (size,))
    if step.single:
        parts = [part.unsqueeze(0) for part in parts]
    return [part if batched else part.reshape(len(matrices), 1, size) for part in parts]


def one_way(
    kind: str, inputs: Matrix, states: Matrix, x: torch.Tensor, state: State, backward: bool
) -> tuple[torch.Tensor, State]:
    """The outputs [steps, batch, state] of one layer in one direction and the state at its end."""
    count, batch, features = x.shape
    gates = inputs.gates(x.reshape(count * batch, features)).reshape(count, batch, -1)
    outputs: list[torch.Tensor] = []
    for index in reversed(range(count)) if backward else range(count):
        state = KINDS[kind](gates[index], states.gates(state[0]), state)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backward else outputs), state
