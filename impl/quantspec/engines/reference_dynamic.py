"""What the steps of chapter 6 compute: dynamic linear layers with a range for each row, recurrent networks. Slow, in
any dialect."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from quantspec.errors import ShapeError
from quantspec.ir.held import codes_shape
from quantspec.ir.program import Cell, Recurrent
from quantspec.numerics import weight_only
from quantspec.numerics.affine import Float32, QParams, float32_array
from quantspec.numerics.dialects.dialect import Dialect

from .not_numbers import warn
from .tensors import array, float_address, zeros

State = tuple[torch.Tensor, ...]


def linear(
    choices: Dialect, x: Float32, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, reduce_range: bool,
    rows: bool,
) -> np.ndarray:  # fmt: skip
    """Float32 output [rows, outputs] of a dynamic linear layer; with ``rows`` each row is quantized by a range of its
    own (DYN-ROWS). Rows with NaN or infinities are computed by weights alone (DYN-FINITE).

    Raises as ``Dialect.linear_dynamic`` does.
    """
    finite = np.isfinite(x).all(-1)
    if not finite.all():
        if np.isnan(x).any():
            warn()
        result = np.empty((len(x), len(w_q)), np.float32)
        result[~finite] = weight_only.linear(x[~finite], w_q, w, bias)
        result[finite] = linear(choices, x[finite], w_q, w, bias, reduce_range=reduce_range, rows=rows)
        return result
    if not rows or len(x) == 1:
        return choices.linear_dynamic(x, w_q, w, bias, reduce_range=reduce_range)
    result = np.empty((len(x), len(w_q)), np.float32)
    for index in range(len(x)):
        result[index] = choices.linear_dynamic(x[index : index + 1], w_q, w, bias, reduce_range=reduce_range)[0]
    return result


@contextlib.contextmanager
def range_of(layer: str) -> Iterator[None]:
    """Where an input is quantized by its own range: names the layer when that makes no grid."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"batch: layer {layer!r}: the range of its input makes no grid; {error}") from error


def near(function: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """A function in float64, rounded to float32: the same on every machine, but for what a float64 library's last bit
    turns over."""
    return function(values.to(torch.float64)).to(torch.float32)


def lstm(x: torch.Tensor, h: torch.Tensor, state: State) -> State:
    """(h, c) of one step from both halves of the gates [batch, 4 * state], in the order input, forget, cell, output."""
    i, f, g, o = (x + h).chunk(4, dim=-1)
    c = near(torch.sigmoid, f) * state[1] + near(torch.sigmoid, i) * near(torch.tanh, g)
    return near(torch.sigmoid, o) * near(torch.tanh, c), c


def gru(x: torch.Tensor, h: torch.Tensor, state: State) -> State:
    """(h,) of one step; the gates' order is reset, update, new."""
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, dim=-1), h.chunk(3, dim=-1)
    r, z = near(torch.sigmoid, x_r + h_r), near(torch.sigmoid, x_z + h_z)
    n = near(torch.tanh, x_n + r * h_n)
    return (n + z * (state[0] - n),)


def rnn_tanh(x: torch.Tensor, h: torch.Tensor, state: State) -> State:
    return (near(torch.tanh, x + h),)


def rnn_relu(x: torch.Tensor, h: torch.Tensor, state: State) -> State:
    return ((x + h).relu(),)


OneWay = Callable[
    [Recurrent, Cell, torch.Tensor, list[torch.Tensor] | None, bool, Dialect], tuple[torch.Tensor, State]
]
PackedWay = Callable[[Recurrent, Cell, torch.Tensor, list[int], State, bool, Dialect], tuple[torch.Tensor, State]]


class Ways(NamedTuple):
    """What runs the steps of one layer in one direction: of ``whole`` sequences as ``one_way`` does, of ``packed`` ones
    as ``packed_way`` does."""

    whole: OneWay
    packed: PackedWay


Gates = Callable[[torch.Tensor, torch.Tensor, State], State]
KINDS: dict[str, Gates] = {"lstm": lstm, "gru": gru, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}


def recurrent(step: Recurrent, x: Any, state: Any, choices: Dialect, ways: Ways | None = None) -> Any:
    """What the module would give: (output, state), or the new state of a single step (DYN-RECURRENT).

    ``x``: a packed sequence, or float32 [steps, batch, inputs], [batch, steps, inputs] where ``batch_first``, or
    without batch; a single step's has no axis of steps. ``ways``: what does the steps, where they are not done here.
    Raises ValueError naming the layer when it does not fit.
    """
    ways = ways or Ways(one_way, packed_way)
    inputs = codes_shape(step.cells[0], "input_weight")[1]
    is_packed = isinstance(x, PackedSequence) and not step.single
    values = floats(x.data if is_packed else x, step.layer)
    if values.ndim < 1 or values.shape[-1] != inputs or is_packed and values.ndim != 2:
        raise ValueError(f"batch: layer {step.layer!r} expects {inputs} input features, got {tuple(values.shape)}")
    if is_packed:
        return packed(step, PackedSequence(values, *x[1:]), state, choices, ways.packed)
    values, batched = in_steps(step, values)
    directions = 2 if step.bidirectional else 1
    states = None if state is None else initial(step, state, values.shape[1], batched)
    ends = []
    for first in range(0, len(step.cells), directions):
        outputs = []
        for direction in range(directions):
            index = first + direction
            start = None if states is None else [part[index] for part in states]
            steps, end = ways.whole(step, step.cells[index], values, start, direction == 1, choices)
            outputs.append(steps)
            ends.append(end)
        values = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    last = tuple(stacked(parts) for parts in zip(*ends))
    if step.single:
        single = tuple(part[0] if batched else part[0, 0] for part in last)
        return single if step.kind == "lstm" else single[0]
    if not batched:
        values, last = values[:, 0], tuple(part[:, 0] for part in last)
    elif step.batch_first:
        values = values.transpose(0, 1)
    return values, last if step.kind == "lstm" else last[0]


def in_steps(step: Recurrent, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """An input as [steps, batch, inputs], and whether it has an axis of samples. Raises ShapeError naming the layer for
    what has too few axes or too many."""
    least = 1 if step.single else 2
    if not least <= x.ndim <= least + 1:
        expected = f"expects an input of {least} or {least + 1} axes"
        raise ShapeError(f"batch: layer {step.layer!r} {expected}, got shape {tuple(x.shape)}")
    batched = x.ndim > least
    values = x if batched else x.unsqueeze(0 if step.single or step.batch_first else 1)
    return values.unsqueeze(0) if step.single else values.transpose(0, 1) if step.batch_first else values, batched


def stacked(parts: State) -> torch.Tensor:
    """The states of all cells; of the only one without a copy."""
    return torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0)


def packed(step: Recurrent, x: PackedSequence, state: Any, choices: Dialect, way: PackedWay) -> Any:
    """What the module would give for a packed sequence (DYN-PACKED)."""
    counts = x.batch_sizes.tolist()
    states = initial(step, state, counts[0], True)
    if state is not None and x.sorted_indices is not None:
        states = [part[:, x.sorted_indices] for part in states]
    directions = 2 if step.bidirectional else 1
    values, ends = x.data, []
    for first in range(0, len(step.cells), directions):
        outputs = []
        for index in range(first, first + directions):
            start = tuple(part[index] for part in states)
            output_part, end = way(step, step.cells[index], values, counts, start, index > first, choices)
            outputs.append(output_part)
            ends.append(end)
        values = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
    last = tuple(stacked(parts) for parts in zip(*ends))
    if x.unsorted_indices is not None:
        last = tuple(part[:, x.unsorted_indices] for part in last)
    output = PackedSequence(values, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    return output, last if step.kind == "lstm" else last[0]


def packed_way(
    step: Recurrent, cell: Cell, x: torch.Tensor, counts: list[int], state: State, backward: bool, choices: Dialect
) -> tuple[torch.Tensor, State]:
    """``one_way`` for rows of which ``counts`` says how many belong to each step: those of the longest sequences."""
    gates = gates_of(step, x, cell.input_weight, cell.input_qparams, cell.input_bias, choices)
    by_step = list(enumerate(torch.split(gates, counts)))
    outputs = [gates] * len(counts)
    for index, own in reversed(by_step) if backward else by_step:
        now = tuple(part[: len(own)] for part in state)
        from_state = gates_of(step, now[0], cell.state_weight, cell.state_qparams, cell.state_bias, choices)
        new = KINDS[step.kind](own, from_state, now)
        state = tuple(torch.cat([a, b[len(own) :]]) for a, b in zip(new, state))
        outputs[index] = new[0]
    return torch.cat(outputs), state


def floats(x: Any, layer: str) -> torch.Tensor:
    """What a layer is given, as a float32 tensor with memory. Raises as ``tensors.array``."""
    if float_address(x):  # what most are, asked in less time
        return cast(torch.Tensor, x)
    name = f"batch: layer {layer!r}"
    return torch.from_numpy(float32_array(array(x, name), name))


def initial(step: Recurrent, state: Any, batch: int, batched: bool) -> list[torch.Tensor]:
    """The state before the first step, [cells, batch, state] for each of its one or two parts."""
    size = codes_shape(step.cells[0], "state_weight")[1]
    if state is None:
        return nothing(step, len(step.cells), batch, size)
    parts = [floats(part, step.layer) for part in parts_of(step, state)]
    check_state(step, parts, (batch, size) if batched else (size,))
    if step.single:
        parts = [part.unsqueeze(0) for part in parts]
    return [part if batched else part.reshape(len(step.cells), 1, size) for part in parts]


def parts_of(step: Recurrent, state: Any) -> Sequence[Any]:
    """The parts of a state: of an LSTM's, which is a sequence, as many as there are."""
    return state if step.kind == "lstm" and isinstance(state, Sequence) else [state]


def check_state(step: Recurrent, parts: Sequence[torch.Tensor], shape: tuple[int, ...]) -> None:
    """Raises ShapeError naming the layer unless each part of a state has that shape, for each cell where there are
    several, and an LSTM's has two: another one would be broadcast to it, or be read in part."""
    count = 2 if step.kind == "lstm" else 1
    expected = shape if step.single else (len(step.cells), *shape)
    given = [tuple(part.shape) for part in parts]
    if given != [expected] * count:
        what = "two states, each" if count == 2 else "a state"
        said = " and ".join(map(str, given)) or "none"
        raise ShapeError(f"batch: layer {step.layer!r} expects {what} of shape {expected}, got {said}")


def nothing(step: Recurrent, *shape: int) -> list[torch.Tensor]:
    """Both parts of an LSTM's state, or the one of another network's, all zero."""
    return [zeros(*shape)] * (2 if step.kind == "lstm" else 1)


def gates_of(
    step: Recurrent, x: torch.Tensor, weight: np.ndarray, grid: QParams, bias: np.ndarray | None, choices: Dialect
) -> torch.Tensor:
    """A dynamic layer's output for rows."""
    rows = x.contiguous().numpy()
    layer = choices, rows, weight, grid, bias
    with range_of(step.layer):
        return torch.from_numpy(linear(*layer, reduce_range=step.reduce_range, rows=False))


def one_way(
    step: Recurrent, cell: Cell, x: torch.Tensor, state: list[torch.Tensor] | None, backward: bool, choices: Dialect
) -> tuple[torch.Tensor, State]:
    """The outputs [steps, batch, state] of one layer in one direction and the state at its end; ``state``: that at its
    beginning, which is zero where there is none."""
    count, batch, inputs = x.shape
    # The inputs of all steps share a range; each step's state has its own.
    rows = x.reshape(count * batch, inputs)
    gates = gates_of(step, rows, cell.input_weight, cell.input_qparams, cell.input_bias, choices)
    gates = gates.reshape(count, batch, len(cell.input_weight))
    now = tuple(nothing(step, batch, cell.state_weight.shape[1]) if state is None else state)
    outputs: list[torch.Tensor] = []
    for index in reversed(range(count)) if backward else range(count):
        own = gates_of(step, now[0], cell.state_weight, cell.state_qparams, cell.state_bias, choices)
        now = KINDS[step.kind](gates[index], own, now)
        outputs.append(now[0])
    if not outputs:
        return x.new_zeros(0, batch, cell.state_weight.shape[1]), tuple(part.clone() for part in now)
    return torch.stack(outputs[::-1] if backward else outputs), now
