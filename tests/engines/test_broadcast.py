"""Sums and products of values of different shapes: the compiled engine gives the reference engine's codes, in kernels
where values have as many axes and channels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from test_parallel import threads

import programs
import strategies
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.compiled.planner import Planner, row_loops
from quantspec.engines.reference import Reference
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Add, Mul
from told import exactly


@st.composite
def shapes(draw) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that are broadcast, most of them of as many axes and with channels of one number."""
    a, b = draw(npst.mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=5, max_side=4)).input_shapes
    if draw(st.integers(0, 3)):
        rank, channels = max(len(a), len(b)), draw(st.integers(1, 70))
        a, b = (((1,) * (rank - len(shape)) + shape)[:-1] + (channels,) for shape in (a, b))
    return a, b


@given(strategies.seeds(), st.sampled_from([Add, Mul]), shapes(), st.integers(1, 3))
def test_shapes_that_are_broadcast_give_the_references_codes(r, kind, drawn, count):
    program = programs.pair(r, kind)
    x = (step.qparams for step in program.steps)
    batch = {name: torch.from_numpy(programs.values(r, next(x), shape)) for name, shape in zip("ab", drawn)}
    with threads(count):
        engine = Compiled(program)
        for _ in range(2):
            assert torch.equal(engine(batch), Reference(program)(batch))


@given(npst.mutually_broadcastable_shapes(num_shapes=2, min_dims=4, max_dims=4, max_side=4))
def test_loops_over_rows_read_each_value_where_it_is(drawn):
    a, b = (shape + (1,) for shape in drawn.input_shapes)
    rows = [np.arange(np.prod(shape)).reshape(shape) for shape in (a, b)]
    found = [np.zeros(1, int), np.zeros(1, int)]
    for loop, *apart in row_loops(a, b):
        found = [np.add.outer(read, step * np.arange(loop)).ravel() for read, step in zip(found, apart)]
    for read, expected in zip(found, np.broadcast_arrays(*rows)):
        assert read.tolist() == expected.ravel().tolist()


def test_shapes_that_kernels_refuse_are_planned_once(monkeypatch):
    program, planned = programs.pair(np.random.default_rng(0), Add), []
    (segment,) = Compiled(program).parts
    plan = Planner.plan
    monkeypatch.setattr(Planner, "plan", lambda *args, **options: planned.append(args) or plan(*args, **options))
    for a, b in (((2, 3, 4), (3, 4)), ((2, 4), (4,))) * 3:
        told = exactly(f"step 'y': kernels cannot broadcast rows of shapes {a} and {b}")
        with pytest.raises(UnsupportedError, match=told):
            segment.at((a, b))
    assert len(planned) == 2
