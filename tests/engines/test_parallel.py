"""Threads that share the instructions of one sample give the bits of one thread."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
from evidence import clause
from networks import tensors, torch_threads
from quantspec.engines.compiled import batching, parallel
from quantspec.engines.compiled.engine import Compiled, Segment
from quantspec.engines.reference import Reference
from quantspec.ir.program import Concat, Mul, Program
from quantspec.kernels import threads as waiting
from quantspec.kernels.product import Product
from quantspec.kernels.sharing import Share
from quantspec.kernels.team import Team
from quantspec.kernels.threads import pool


@pytest.fixture(scope="module", params=["torch's", "workers"], autouse=True)
def whose(request):
    """Whose threads share the work: torch's where they can be called, or workers."""
    if request.param == "torch's" and batching.torchs_threads() is None:
        pytest.skip("torch's threads cannot be called on this system")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "workers":
            patch.setattr(batching, "torchs_threads", lambda: None)
        yield request.param


@contextmanager
def threads(count: int, patient: int = 1):
    """That many threads for any work, which wait for those that sleep from ``patient`` multiply-accumulates on; weights
    that are wider than rows are cut even where there are few. Who waits offers his place soon, as other tests run on
    the same CPUs.
    """
    least = mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=patient)
    soon = mock.patch.object(waiting, "SPINS", waiting.HASTY)
    with torch_threads(count), least, soon, mock.patch.object(parallel, "EVEN", 0):
        yield


def check(program: Program, x: np.ndarray, count: int) -> None:
    batch = {"x": torch.from_numpy(x)}
    expected = Reference(program)(batch)
    with threads(count):
        engine = Compiled(program)
        for _ in range(3):
            assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert len(made.parallel.frames) == min(count, made.parallel.plan.macs)
        assert isinstance(made.share, Share if batching.torchs_threads() is None else Team)


@clause("STA-THREADS")
@given(strategies.seeds(), st.integers(2, 5), st.integers(1, 100), st.integers(1, 200), st.booleans())
def test_a_row(r, count, inputs, outputs, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    program = programs.of_layer(x, step, real)
    if inputs * outputs > 4:
        check(program, programs.values(r, x, (1, inputs)), count)


@clause("STA-THREADS")
@given(
    strategies.seeds(), st.integers(2, 5), st.integers(1, 40), st.integers(1, 100), st.sampled_from([1, 2]),
    st.integers(3, 14), st.booleans(),
)  # fmt: skip
def test_images(r, count, channels, outputs, groups, side, real):
    x = programs.grid(r)
    place = (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), groups
    step = programs.conv(r, "a", "x.codes", x, groups * channels, groups * outputs, *place)
    program = programs.of_layer(x, step, real)
    check(program, programs.values(r, x, (1, groups * channels, side, side + 1)), count)


@clause("STA-THREADS")
@given(
    strategies.seeds(), st.integers(2, 5), st.integers(2, 140), st.sampled_from([(3, 1), (3, 2), (5, 1)]),
    st.integers(5, 12), st.booleans(),
)  # fmt: skip
def test_channels_on_their_own(r, count, channels, kernel, side, real):
    size, stride = kernel
    x = programs.grid(r)
    place = (size, size), (stride, stride), ((size // 2, size // 2),) * 2, (1, 1), channels
    step = programs.conv(r, "a", "x.codes", x, channels, channels, *place)
    program = programs.of_layer(x, step, real)
    check(program, programs.values(r, x, (1, channels, side, side + 1)), count)


@clause("STA-THREADS")
@given(strategies.seeds(), st.integers(2, 5), st.integers(1, 80), st.booleans(), st.integers(1, 12))
def test_sums(r, count, channels, first, side):
    program = programs.residual(r, channels, first)
    check(program, programs.values(r, program.steps[0].qparams, (1, channels, side, side + 2)), count)


@clause("STA-THREADS")
@given(
    strategies.seeds(), st.integers(2, 5), st.lists(st.integers(1, 50), min_size=2, max_size=4), st.integers(1, 60),
    st.booleans(),
)  # fmt: skip
def test_dynamic_layers(r, count, widths, samples, reduce_range):
    callables = {("function", "torch.relu"): torch.relu, ("function", "torch.flatten"): torch.flatten}
    program = replace(programs.dynamic_chain(r, widths, rows=False, reduce_range=reduce_range), callables=callables)
    batch = {"x": torch.from_numpy(r.normal(size=(samples, 1, widths[0])).astype(np.float32))}
    expected = Reference(program)(batch)
    with threads(count):
        engine = Compiled(program)
        for _ in range(3):
            assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert (made.parallel is None) == (samples * sum(a * b for a, b in zip(widths, widths[1:])) < 2)


@clause("STA-THREADS")
@pytest.mark.parametrize("what", [*range(5), "table", "slopes", "any", "mul", "join"])
@given(
    r=strategies.seeds(), count=st.integers(3, 5), samples=st.integers(1, 2), channels=st.integers(1, 40),
    sides=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)  # fmt: skip
def test_what_lies_between_layers(what, r, count, samples, channels, sides):
    x = programs.grid(r)
    layer = programs.conv(r, "a", "x.codes", x, channels, channels, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    g, y = layer.y_qparams, programs.grid(r)
    if what == "mul":
        step = Mul("y", "a", "a", g, g, y)
    elif what == "join":
        step = Concat("y", ("a", "x.codes"), (g, x), y, 1)
    elif what == "table":
        step = replace(programs.table(r, g), x="a")
        y = step.y_qparams
    elif isinstance(what, str):
        step = replace(programs.tables(r, g, channels, what), x="a")
        y = step.y_qparams
    else:
        step, y = replace(programs.pools(r, g, 2)[what], x="a"), g
    check(programs.between(x, [layer, step], y), programs.values(r, x, (samples, channels, *sides)), count)


@clause("STA-THREADS")
@given(strategies.seeds(), st.integers(2, 5), st.integers(2, 9), st.integers(1, 100), st.integers(1, 70))
def test_rows(r, count, samples, inputs, outputs):
    x = programs.grid(r)
    layer = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    step = replace(programs.table(r, layer.y_qparams), x="a")
    program = programs.between(x, [layer, step], step.y_qparams)
    check(program, programs.values(r, x, (1, samples, inputs)), count)  # of one sample, so that rows are cut


@clause("STA-THREADS")
@given(
    strategies.seeds(), st.integers(2, 5), st.integers(25, 90), st.integers(1, 100), st.integers(1, 150), st.booleans()
)
def test_as_many_rows_as_outputs_more_or_less(r, count, rows, inputs, outputs, real):
    x = programs.grid(r)
    program = programs.of_layer(x, programs.linear(r, "a", "x.codes", x, inputs, outputs), real)
    check(program, programs.values(r, x, (1, rows, inputs)), count)


@pytest.mark.parametrize(
    ("rows", "outputs", "wide"),
    # Of 96 outputs one thread of two would have two thirds.
    [(64, 96, False), (64, 512, True), (512, 512, False), (600, 512, False)],
)  # fmt: skip
def test_weights_are_cut_where_they_are_wider_than_rows(rows, outputs, wide):
    whole = Product.on(np.zeros(Product.SIZE, np.int64))
    whole.rows, whole.outputs, whole.blocks = rows, outputs, -(-outputs // 16)
    assert parallel.has_wide_weights(whole, 2) == wide


@clause("STA-THREADS")
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@given(
    r=strategies.seeds(), count=st.integers(2, 5), steps=st.one_of(st.integers(1, 5), st.integers(30, 70)),
    samples=st.integers(1, 9), inputs=st.integers(1, 40), size=st.integers(1, 60), both=st.booleans(),
)  # fmt: skip
def test_recurrent_layers(kind, r, count, steps, samples, inputs, size, both):
    program = programs.recurrent(r, kind, inputs, size, layers=2, both=both, reduce_range=False)
    batches = [
        {"x": torch.from_numpy(r.normal(size=(steps, samples, inputs)).astype(np.float32))} for _ in range(2)
    ]  # fmt: skip
    expected = [Reference(program)(batch) for batch in batches]
    engine = Compiled(program)
    for threads_now in (count, 1, count):
        with threads(threads_now):
            for batch, outputs in zip(batches, expected):
                found = engine(batch)
                assert all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(outputs), strict=True))
    parts = [part for step in engine.parts for frames in step.local.frames.values() for part in frames.parts.values()]
    assert all((part.shared.team is None) == (batching.torchs_threads() is None) for part in parts)


@clause("STA-THREADS")
def test_callers_at_once():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, 20, 70, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    program = programs.between(x, [step], step.y_qparams)
    inputs = [torch.from_numpy(programs.values(r, x, (1, 20, 9, 8))) for _ in range(8)]
    expected = [Reference(program)({"x": one}) for one in inputs]
    with threads(3), ThreadPoolExecutor(6) as callers:
        engine = Compiled(program)
        outputs = callers.map(engine, [{"x": inputs[i % 8]} for i in range(200)])
        assert all(torch.equal(output, expected[i % 8]) for i, output in enumerate(outputs))
    assert pool.busy[0] == 0


@clause("STA-THREADS")
@pytest.mark.filterwarnings("ignore:values are NaN")
def test_nan_is_found():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 50, 70)
    values = torch.zeros(1, 50)
    values[0, 7] = float("nan")
    with threads(2):
        engine = Compiled(programs.between(x, [step], step.y_qparams))
        for _ in range(2):
            assert engine({"x": values}).isnan().all()


@clause("STA-THREADS")
def test_between_torchs_steps_its_threads_are_taken():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.Softmax(-1), nn.Linear(300, 64)).eval()
    x = torch.randn(1, 9, 64)
    q = qs.quantize(model, [x])
    outputs = qs.quantize(model, [x], engine="reference")(x)
    with threads(2):
        assert torch.equal(q(x), outputs)
        parts = [part for part in q.compiled.parts if isinstance(part, Segment)]
        shares = [made.share for part in parts for made in part.batched.values()]
    expected = type(None) if batching.torchs_threads() is None else Team
    assert [type(share) for share in shares] == [expected] * 2
