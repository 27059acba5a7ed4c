"""A recurrent layer refuses what torch's refuses: a state of another shape, which would be broadcast or be read in
part, and inputs of another number of axes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import quantspec as qs
from networks import inputs, seeded
from quantspec.errors import ShapeError
from quantspec.ir.program import Recurrent
from told import exactly

SEQUENCE, STEP = (3, 4, 6), (4, 6)  # [steps, batch, inputs], [batch, inputs]
# What is built, a shape that it takes, and that of each part of its state.
LAYERS = {
    "lstm": (lambda: nn.LSTM(6, 5), SEQUENCE, (1, 4, 5)),
    "gru of two": (lambda: nn.GRU(6, 5, 2), SEQUENCE, (2, 4, 5)),
    "both ways, batch first": (lambda: nn.RNN(6, 5, bidirectional=True, batch_first=True), (4, 3, 6), (2, 4, 5)),
    "lstm cell": (lambda: nn.LSTMCell(6, 5), STEP, (4, 5)),
    "gru cell": (lambda: nn.GRUCell(6, 5), STEP, (4, 5)),
    "lstm, no batch": (lambda: nn.LSTM(6, 5, 2), (3, 6), (2, 5)),
    "rnn cell, no batch": (lambda: nn.RNNCell(6, 5), (6,), (5,)),
}  # fmt: skip
ENGINES = ["compiled", "reference"]


def state(layer: nn.Module, *shapes: tuple[int, ...]) -> object:
    parts = tuple(map(torch.zeros, shapes))
    return parts if isinstance(layer, (nn.LSTM, nn.LSTMCell)) else parts[0]


def name(q) -> str:
    (step,) = (step for step in q.program.steps if isinstance(step, Recurrent))
    return step.layer


def others(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes that differ along one axis, where one entry would be broadcast, and shapes of more axes and of fewer."""
    along = [(*shape[:k], n, *shape[k + 1 :]) for k in range(len(shape)) for n in (1, shape[k] + 1) if n != shape[k]]
    return [*along, (1, *shape), shape[1:]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_state_of_another_shape_is_refused_by_the_layers_name(kind, engine):
    build, x_shape, shape = LAYERS[kind]
    layer, x = seeded(build), torch.from_numpy(np.float32(np.random.default_rng(5).normal(size=x_shape)))
    q = qs.quantize_dynamic(layer).run_on(engine)
    count = 2 if "lstm" in kind else 1
    what = "two states, each" if count == 2 else "a state"
    q(x, state(layer, *[shape] * count))
    for other in others(shape):
        with pytest.raises((RuntimeError, ValueError, AssertionError, IndexError)):
            layer(x, state(layer, *[other] * count))
        told = f"batch: layer {name(q)!r} expects {what} of shape {shape}, got {' and '.join([str(other)] * count)}"
        with pytest.raises(ShapeError, match=exactly(told)):
            q(x, state(layer, *[other] * count))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_lstm_needs_both_parts_of_its_state_in_their_shape(engine):
    layer, x, shape = seeded(lambda: nn.LSTM(6, 5)), inputs(3, (4, 6)), (1, 4, 5)
    q = qs.quantize_dynamic(layer).run_on(engine)
    expected = f"batch: layer {name(q)!r} expects two states, each of shape {shape}, got "
    zeros = torch.zeros(shape)
    given = {
        "(1, 4, 5) and (1, 1, 5)": (zeros, torch.zeros(1, 1, 5)), "(1, 4, 5)": zeros,
        "(1, 4, 5) and (1, 4, 5) and (1, 4, 5)": (zeros, zeros, zeros), "none": (),
    }  # fmt: skip
    for said, wrong in given.items():
        with pytest.raises(ShapeError, match=exactly(expected + said)):
            q(x, wrong)
    assert torch.equal(q(x, [zeros, zeros])[0], q(x)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_packed_sequence_needs_a_state_of_each_of_its_samples(engine):
    layer = seeded(lambda: nn.GRU(6, 5))
    q = qs.quantize_dynamic(layer).run_on(engine)
    packed = nn.utils.rnn.pack_padded_sequence(inputs(3, (4, 6)), [3, 2, 2, 1])
    told = f"batch: layer {name(q)!r} expects a state of shape (1, 4, 5), got (1, 1, 5)"
    with pytest.raises(ShapeError, match=exactly(told)):
        q(packed, torch.zeros(1, 1, 5))
    assert torch.equal(q(packed, torch.zeros(1, 4, 5))[0].data, q(packed)[0].data)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("build, fits, axes", [(nn.LSTM, (3, 4, 6), "2 or 3"), (nn.GRUCell, (4, 6), "1 or 2")])
def test_inputs_of_too_many_axes_or_too_few_are_refused(build, fits, axes, engine):
    q = qs.quantize_dynamic(seeded(lambda: build(6, 5))).run_on(engine)
    for shape in [(1, *fits), (2, 1, *fits), fits[2:] if len(fits) == 3 else (3, *fits)]:
        told = f"batch: layer {name(q)!r} expects an input of {axes} axes, got shape {shape}"
        with pytest.raises(ShapeError, match=exactly(told)):
            q(torch.zeros(shape))


def filled(kind: str, shape: tuple[int, ...], value: float) -> object:
    """A state that is one value in all places."""
    parts = [torch.full(shape, value) for _ in range(2 if "lstm" in kind else 1)]
    return tuple(parts) if len(parts) > 1 else parts[0]


OF_EACH_KIND = ["lstm", "gru of two", "both ways, batch first", "gru cell"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [1e-40, 3e38])
@pytest.mark.parametrize("kind", OF_EACH_KIND)
def test_a_state_whose_range_makes_no_grid_is_refused_as_such_an_input_is(kind, value, engine):
    build, x_shape, shape = LAYERS[kind]
    q, x = qs.quantize_dynamic(seeded(build)).run_on(engine), torch.ones(x_shape)
    q(x)
    with pytest.raises(ValueError, match=f"^batch: layer {name(q)!r}: the range of its input makes no grid; "):
        q(x, filled(kind, shape, value))


@pytest.mark.filterwarnings("ignore:values are NaN")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", OF_EACH_KIND)
def test_a_state_that_is_not_finite_gives_what_the_reference_gives(kind, value):
    build, x_shape, shape = LAYERS[kind]
    q, x, given = qs.quantize_dynamic(seeded(build)), torch.ones(x_shape), filled(kind, shape, value)
    got, expected = (tree_leaves(network(x, given)) for network in (q, q.run_on("reference")))
    assert any(y.isnan().any() for y in expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["lstm", "gru of two", "both ways, batch first"])
def test_no_steps_leave_the_state_as_it_is(kind, engine):
    build, x_shape, shape = LAYERS[kind]
    layer, r = seeded(build), np.random.default_rng(6)
    parts = [torch.from_numpy(r.normal(size=shape).astype(np.float32)) for _ in range(2 if kind == "lstm" else 1)]
    x = torch.zeros((4, 0, 6) if "first" in kind else (0, 4, 6))
    outputs, last = qs.quantize_dynamic(layer).run_on(engine)(x, tuple(parts) if kind == "lstm" else parts[0])
    assert outputs.numel() == 0 and all(map(torch.equal, tree_leaves(last), parts))


def test_training_refuses_them_in_the_same_words():
    x = inputs(3, (4, 6))
    trained = qs.prepare_qat(seeded(lambda: nn.GRU(6, 5)), [x]).train()
    for wrong, told in {
        (x, torch.zeros(1, 1, 5)): "batch: layer '_unnamed' expects a state of shape (1, 4, 5), got (1, 1, 5)",
        (x[None],): "batch: layer '_unnamed' expects an input of 2 or 3 axes, got shape (1, 3, 4, 6)",
    }.items():
        with pytest.raises(ShapeError, match=exactly(told)):
            trained(*wrong)
