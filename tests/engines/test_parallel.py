"""Threads that share the instructions of one sample give the bits of one thread."""

import os
import subprocess
import sys
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
from quantspec.engines.compiled import batching
from quantspec.engines.compiled.batching import torchs_threads
from quantspec.engines.compiled.engine import Compiled, Segment
from quantspec.engines.reference import Reference
from quantspec.ir.program import Concat, Mul, Program
from quantspec.kernels.sharing import Share
from quantspec.kernels.team import Team, openmp
from quantspec.kernels.threads import pool


@contextmanager
def threads(count: int, patient: int = 1):
    """That many threads for any work, which wait for those that sleep from ``patient`` multiply-accumulates on."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=patient):
            yield
    finally:
        torch.set_num_threads(before)


def check(program: Program, x: np.ndarray, count: int) -> None:
    batch = {"x": torch.from_numpy(x)}
    expected = Reference(program)(batch)
    for engine in engines(program):
        with threads(count):
            for _ in range(3):
                assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert len(made.parallel.frames) == min(count, made.parallel.plan.macs)
        assert isinstance(made.share, Share if engine.parts[0].alone else Team)


def engines(program: Program) -> list[Compiled]:
    """One whose threads are its own; where there are such, one that takes torch's, as between steps of torch's."""
    both = [Compiled(program) for _ in range(1 + (torchs_threads() is not None))]
    for engine in both[1:]:
        engine.parts[0].alone = False
    return both


@given(strategies.seeds(), st.integers(2, 5), st.integers(1, 100), st.integers(1, 200), st.booleans())
def test_a_row(r, count, inputs, outputs, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    program = programs.of_layer(x, step, real)
    if inputs * outputs > 4:
        check(program, programs.values(r, x, (1, inputs)), count)


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


@given(strategies.seeds(), st.integers(2, 5), st.integers(1, 80), st.booleans(), st.integers(1, 12))
def test_sums(r, count, channels, first, side):
    program = programs.residual(r, channels, first)
    check(program, programs.values(r, program.steps[0].qparams, (1, channels, side, side + 2)), count)


@given(
    strategies.seeds(), st.integers(2, 5), st.lists(st.integers(1, 50), min_size=2, max_size=4), st.integers(1, 60),
    st.booleans(),
)  # fmt: skip
def test_dynamic_layers(r, count, widths, samples, reduce_range):
    callables = {("function", "torch.relu"): torch.relu, ("function", "torch.flatten"): torch.flatten}
    program = replace(programs.dynamic_chain(r, widths, rows=False, reduce_range=reduce_range), callables=callables)
    batch = {"x": torch.from_numpy(r.normal(size=(samples, 1, widths[0])).astype(np.float32))}
    expected = Reference(program)(batch)
    for engine in engines(program):
        with threads(count):
            for _ in range(3):
                assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert (made.parallel is None) == (samples * sum(a * b for a, b in zip(widths, widths[1:])) < 2)


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


@given(strategies.seeds(), st.integers(2, 5), st.integers(2, 9), st.integers(1, 100), st.integers(1, 70))
def test_rows(r, count, samples, inputs, outputs):
    x = programs.grid(r)
    layer = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    step = replace(programs.table(r, layer.y_qparams), x="a")
    program = programs.between(x, [layer, step], step.y_qparams)
    batch = {"x": torch.from_numpy(programs.values(r, x, (1, samples, inputs)))}  # of one sample, so that rows are cut
    expected = Reference(program)(batch)
    for engine in engines(program):
        with threads(count):
            for _ in range(3):
                assert torch.equal(engine(batch), expected)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@given(
    r=strategies.seeds(), count=st.integers(2, 5), steps=st.integers(1, 5), samples=st.integers(1, 9),
    inputs=st.integers(1, 40), size=st.integers(1, 60), both=st.booleans(),
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
                assert all(torch.equal(a, b) for a, b in zip(leaves(found), leaves(outputs), strict=True))
    frames = [frames for part in engine.parts for frames in part.local.__dict__["frames"].values()]
    assert all((each.steps.team is None) == (torchs_threads() is None) for each in frames)


def leaves(value):
    """The tensors in nested tuples."""
    return [value] if isinstance(value, torch.Tensor) else [leaf for each in value for leaf in leaves(each)]


def test_callers_at_once():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, 20, 70, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    program = programs.between(x, [step], step.y_qparams)
    inputs = [torch.from_numpy(programs.values(r, x, (1, 20, 9, 8))) for _ in range(8)]
    expected = [Reference(program)({"x": one}) for one in inputs]
    for engine in engines(program):
        with threads(3), ThreadPoolExecutor(6) as callers:
            outputs = callers.map(engine, [{"x": inputs[i % 8]} for i in range(200)])
            assert all(torch.equal(output, expected[i % 8]) for i, output in enumerate(outputs))
        assert pool.busy[0] == 0


@pytest.mark.filterwarnings("ignore:values are NaN")
def test_nan_is_found():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 50, 70)
    values = torch.zeros(1, 50)
    values[0, 7] = float("nan")
    for engine in engines(programs.between(x, [step], step.y_qparams)):
        with threads(2):
            for _ in range(2):
                assert engine({"x": values}).isnan().all()


FORKED = """
import os, sys, torch, quantspec as qs
from quantspec.engines.compiled import batching
batching.THREAD_MACS = batching.PARALLEL_MACS = 1
torch.set_num_threads(2)
between = {"nothing": torch.nn.Identity(), "torch": torch.nn.Softmax(1)}[sys.argv[1]]
layers = torch.nn.Conv2d(3, 40, 3), torch.nn.ReLU(), between, torch.nn.Conv2d(40, 9, 3)
x = torch.rand(1, 3, 12, 12)
q = qs.quantize(torch.nn.Sequential(*layers).eval(), [x])
expected = q(x)
child = os.fork()
if not child:
    torch.set_num_threads(1 if sys.argv[1] == "torch" else 2)  # of torch's own, which have no threads after a fork
    same = [torch.equal(q(x), expected) for _ in range(2)]
    with torch.inference_mode():
        torch.set_num_threads(2)
    os._exit(0 if all(same) and batching.torchs_threads() is None else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(q(x), expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
@pytest.mark.parametrize("between", ["nothing", "torch"])
def test_a_forked_process_has_a_team_of_its_own(between):
    command = [sys.executable, "-c", FORKED, between]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (run.stdout.strip(), run.returncode) == ("0 True", 0), run.stderr


FEWER = """
import torch
from test_parallel import check, programs
import numpy as np
r = np.random.default_rng(0)
x = programs.grid(r)
step = programs.conv(r, "a", "x.codes", x, 20, 70, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
check(programs.between(x, [step], step.y_qparams), programs.values(r, x, (1, 20, 9, 8)), 3)
print("equal")
"""


@pytest.mark.parametrize("limit", ["1", "2", "3"])
def test_a_team_that_is_too_small(limit):
    """One thread does the work where OpenMP gives fewer than were asked for."""
    paths = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(programs.__file__)])
    environment = {**os.environ, "OMP_THREAD_LIMIT": limit, "OMP_NUM_THREADS": limit, "PYTHONPATH": paths}
    command = [sys.executable, "-c", FEWER]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert (run.stdout.strip(), run.returncode) == ("equal", 0), run.stderr


def test_between_torchs_steps_its_threads_are_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.Softmax(-1), nn.Linear(300, 64)).eval()
    x = torch.randn(1, 9, 64)
    q = qs.quantize(model, [x])
    expected = qs.quantize(model, [x], engine="reference")(x)
    with threads(2):
        assert torch.equal(q(x), expected)
        parts = [part for part in q.compiled.parts if isinstance(part, Segment)]
        shares = [made.share for part in parts for made in part.batched.values()]
    assert len(shares) == 2 and all(isinstance(share, Team if torchs_threads() else type(None)) for share in shares)


def test_an_openmp_that_cannot_be_called(tmp_path):
    assert openmp(str(tmp_path / "none.so")) is None
    (tmp_path / "text.so").write_text("no library")
    assert openmp(str(tmp_path / "text.so")) is None
