"""Compiled recurrent networks give the reference engine's bits call by call, whatever lengths the calls before had:
what runs one of them is used again for others."""

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_parallel import threads
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import programs
import quantspec as qs
import strategies
from networks import inputs, seeded, tensors
from quantspec.engines.compiled import recurrent
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Program, Ref

# Lengths of the sequences of a batch, whether they are packed, and whether samples lie one behind the other.
lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)
calls = st.lists(st.tuples(lengths, st.booleans(), st.booleans()), min_size=2, max_size=6)


def batch_of(
    r: np.random.Generator, program: Program, lengths: list[int], packed: bool, by_sample: bool
) -> torch.Tensor | PackedSequence:
    """Inputs of sequences of those lengths; whole ones are as long as the longest."""
    shape = len(lengths), max(lengths), 5
    x = torch.from_numpy(r.normal(size=shape if by_sample else (shape[1], shape[0], 5)).astype(np.float32))
    samples = x if by_sample else x.transpose(0, 1)
    if packed:
        return pack_padded_sequence(samples, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    return samples if program.steps[0].batch_first else samples.transpose(0, 1)


@given(
    strategies.seeds(), st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"]), st.sampled_from([7, 32]),
    st.integers(1, 2), st.booleans(), st.booleans(), calls, st.sampled_from([1, 3, 1024]), st.integers(1, 4),
    st.integers(1, 2),
)  # fmt: skip
def test_a_call_depends_on_no_lengths_before(r, kind, size, layers, both, stated, drawn, kept, at_once, count):
    program = programs.recurrent(r, kind, 5, size, layers=layers, both=both, reduce_range=False)
    names = (["h", "c"] if kind == "lstm" else ["h"]) if stated else []
    state = tuple(map(Ref, names)) if len(names) == 2 else Ref("h") if names else None
    program = replace(program, inputs=("x", *names), steps=(replace(program.steps[0], state=state),))
    reference, cells = Reference(program), len(program.steps[0].cells)
    with mock.patch.multiple(recurrent, MOST_KEPT=kept, MOST_STEPS=at_once), threads(count):
        engine = Compiled(program)
        for call in drawn:
            batch = {"x": batch_of(r, program, *call)}
            shape = cells, len(call[0]), size
            batch |= {name: torch.from_numpy(r.normal(size=shape).astype(np.float32)) for name in names}
            found, expected = tensors(engine(batch)), tensors(reference(batch))
            assert len(found) == len(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_shorter_sequences_are_run_by_what_ran_longer_ones(both, by_sample):
    r = np.random.default_rng(0)
    program = programs.recurrent(r, "lstm", 5, 7, layers=1, both=both, reduce_range=False)
    with mock.patch.object(recurrent, "MOST_STEPS", 3):
        engine = Compiled(program)
        for steps in range(8, 0, -1):
            batch = {"x": batch_of(r, program, [steps] * 2, packed=False, by_sample=by_sample)}
            assert all(map(torch.equal, tensors(engine(batch)), tensors(Reference(program)(batch))))


def test_what_is_kept_for_other_lengths_is_bounded():
    r = np.random.default_rng(0)
    program = programs.recurrent(r, "gru", 5, 7, layers=1, both=False, reduce_range=False)
    with mock.patch.object(recurrent, "MOST_KEPT", 10):
        engine = Compiled(program)
        for steps in range(8, 0, -1):
            engine({"x": batch_of(r, program, [steps], packed=False, by_sample=False)})
        (frames,) = engine.parts[0].local.frames.values()
    assert [part.steps for part in frames.parts.values()] == [4, 3, 2, 1]  # after 8 and 7, and 6 and 5


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_single_steps_are_the_references_whatever_they_are_given(kind):
    q = qs.quantize_dynamic(seeded(lambda: kind(5, 7)))
    reference, parts = q.run_on("reference"), 2 if kind is nn.LSTMCell else 1
    for samples in (3, 1, 4, 3):
        x, states = inputs(samples, (5,)), [inputs(samples, (7,), seed=seed) for seed in range(parts)]
        apart = [state.t().contiguous().t() for state in states]  # samples do not lie one behind the other
        for before in (None, states, apart):
            state = before if before is None or parts == 2 else before[0]
            assert all(map(torch.equal, tensors(q(x, state)), tensors(reference(x, state))))
    assert torch.equal(tensors(q(x[0]))[0], tensors(q(x[:1]))[0][0])


@pytest.mark.filterwarnings("ignore:values are NaN")
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("bad", ["NaN", "float64", "fewer rows"])
def test_packed_sequences_that_kernels_do_not_take_are_the_references(kind, bad):
    r = np.random.default_rng(0)
    program = programs.recurrent(r, kind, 5, 7, layers=1, both=False, reduce_range=False)
    packed = batch_of(r, program, [3, 2, 2], packed=True, by_sample=True)
    data = packed.data.clone()
    if bad == "NaN":
        data[1, 2] = torch.nan
    given = packed._replace(data={"float64": data.double(), "fewer rows": data[:-1]}.get(bad, data))
    results = []
    for engine in (Compiled(program), Reference(program)):
        try:
            results.append([y.numpy() for y in tensors(engine({"x": given}))])
        except (ValueError, TypeError, RuntimeError) as error:
            results.append(f"{type(error).__name__}: {error}")
    ours, theirs = results
    assert type(ours) is type(theirs)
    if isinstance(ours, str):
        assert ours == theirs
    else:
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, theirs, strict=True))
