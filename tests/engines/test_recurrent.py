"""Compiled recurrent networks give the reference engine's bits, however their inputs lie and steps are grouped."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import programs
import quantspec as qs
import strategies
from networks import inputs, seeded, tensors
from quantspec.engines.compiled import recurrent
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Ref


@given(
    strategies.seeds(), st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"]), st.integers(1, 40),
    st.integers(1, 40), st.integers(1, 2), st.booleans(),
    st.booleans(), st.tuples(st.integers(1, 6), st.integers(1, 4)), st.integers(1, 4),
)  # fmt: skip
def test_recurrent_networks(r, kind, inputs, size, layers, both, reduce_range, shape, at_once):
    program = programs.recurrent(r, kind, inputs, size, layers=layers, both=both, reduce_range=reduce_range)
    x = torch.from_numpy(r.normal(size=(*shape, inputs)).astype(np.float32))
    with mock.patch.object(recurrent, "MOST_STEPS", at_once):
        engine = Compiled(program)
        for given in in_memory(x):  # as steps lie, as samples do, and with gaps between
            expected = tensors(Reference(program)({"x": given}))
            for a, b in zip(tensors(engine({"x": given})), expected, strict=True):
                assert a.shape == b.shape and torch.equal(a, b) and apart(a) == apart(b)


def apart(x: torch.Tensor) -> list[int]:
    """How many values lie between neighbours along each axis that has any."""
    return [step for n, step in zip(x.shape, x.stride()) if n > 1]


def in_memory(x: torch.Tensor) -> list[torch.Tensor]:
    """The same values in memory of several orders."""
    apart = torch.zeros(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]
    apart.copy_(x)
    return [x, x.transpose(0, 1).contiguous().transpose(0, 1), apart, x.clone()]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers, both", [(1, False), (2, True)])
def test_outputs_lie_in_memory_as_torchs_do_however_inputs_lie(kind, batch_first, layers, both):
    """Or a view of them, which a network may take, would be none."""
    model = seeded(lambda: kind(6, 5, layers, batch_first=batch_first, bidirectional=both))
    q = qs.quantize_dynamic(model, example=inputs(3, (4, 6)))
    for x in in_memory(inputs(3, (4, 6))):
        expected = [apart(y) for y in tensors(model(x))]
        for engine in ("compiled", "reference"):
            assert [apart(y) for y in tensors(q.run_on(engine)(x))] == expected, engine


class Viewed(nn.Module):
    """A recurrent layer whose input has its steps put first, and rows of its outputs as a view."""

    def __init__(self):
        super().__init__()
        self.recurrent, self.head = nn.LSTM(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        y, _ = self.recurrent(x.transpose(0, 1))
        return self.head(y.view(-1, 5))


def test_a_network_may_view_outputs_of_steps_that_were_put_first():
    x = inputs(3, (4, 6))
    q = qs.quantize_dynamic(seeded(Viewed), example=x)
    assert torch.equal(q(x), q.run_on("reference")(x))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_networks_of_many_steps_and_large_states(kind):
    r = np.random.default_rng(0)
    for steps, samples, size in ((70, 1, 30), (70, 3, 30), (9, 40, 130), (33, 16, 260)):
        program = programs.recurrent(r, kind, 20, size, layers=1, both=True, reduce_range=False)
        shape = (steps, samples) if not program.steps[0].batch_first else (samples, steps)
        batch = {"x": torch.from_numpy(r.normal(size=(*shape, 20)).astype(np.float32))}
        for a, b in zip(tensors(Compiled(program)(batch)), tensors(Reference(program)(batch)), strict=True):
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:values are NaN:RuntimeWarning")
@given(
    strategies.seeds(), st.sampled_from(["lstm", "gru", "rnn_tanh"]), st.integers(1, 70), st.integers(1, 4),
    st.booleans(), st.booleans(), st.integers(1, 5),
)  # fmt: skip
def test_one_sample_whose_outputs_are_whole_panels_gives_the_references_bits(
    r, kind, inputs, panels, both, reduce_range, steps
):
    """The product of the state and the cell behind it are then one kernel, where dot products are long enough."""
    program = programs.recurrent(r, kind, inputs, 32 * panels, layers=1, both=both, reduce_range=reduce_range)
    shape = (1, steps) if program.steps[0].batch_first else (steps, 1)
    x = torch.from_numpy((9 * r.normal(size=(*shape, inputs))).astype(np.float32))
    engines = Compiled(program), Reference(program)
    for batch in (x, 1e30 * x, 1e38 * x * 1e3):  # the last is infinite
        for a, b in zip(*(tensors(engine({"x": batch})) for engine in engines), strict=True):
            np.testing.assert_array_equal(a, b)  # NaN as well


class OfTuple(nn.Module):
    """Reads parts of what a recurrent layer gives."""

    def __init__(self, read):
        super().__init__()
        self.recurrent, self.read = nn.LSTM(6, 5, batch_first=True), read

    def forward(self, x):
        return self.read(self.recurrent(x))


@pytest.mark.parametrize(
    "read",
    [
        lambda y: y[0], lambda y: y[0][:, -1], lambda y: y[1][0], lambda y: y[0][:, -1] + y[1][0][0],
        lambda y: (y[0], y[0] + 1), lambda y: y, lambda y: (y[0], y[1]), lambda y: (y, y[0] + 1), lambda y: y[-2],
    ],
)  # fmt: skip
def test_outputs_are_given_alone_only_where_nothing_else_of_a_layer_is_read(read):
    x = inputs(3, (4, 6))
    q = qs.quantize_dynamic(seeded(lambda: OfTuple(read)), example=x)
    for batch in (x, x[:1]):
        found, expected = (tensors(q.run_on(engine)(batch)) for engine in ("compiled", "reference"))
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_state_before_the_first_step_is_not_written_to(kind):
    r = np.random.default_rng(0)
    program = programs.recurrent(r, kind, 5, 7, layers=1, both=False, reduce_range=False)
    parts = 2 if kind == "lstm" else 1
    names = ["h", "c"][:parts]
    step = replace(program.steps[0], state=(Ref("h"), Ref("c")) if parts == 2 else Ref("h"))
    program = replace(program, steps=(step,), inputs=("x", *names))
    given = {name: torch.from_numpy(r.normal(size=(1, 3, 7)).astype(np.float32)) for name in names}
    x = torch.from_numpy(r.normal(size=(3, 3, 5)).astype(np.float32))
    before = {name: value.clone() for name, value in given.items()}
    found, expected = (tensors(engine(program)({"x": x, **given})) for engine in (Compiled, Reference))
    assert all(map(torch.equal, found, expected)) and all(torch.equal(given[name], before[name]) for name in names)
    found[1].fill_(9)  # which is the caller's own
    assert all(map(torch.equal, tensors(Compiled(program)({"x": x, **given})), expected))
