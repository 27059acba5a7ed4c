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

import programs
import strategies
from quantspec.engines.compiled import batching
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Program
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
    with threads(count):
        engine = Compiled(program)
        for _ in range(3):
            assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert len(made.parallel.frames) == min(count, made.parallel.plan.macs)


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
    with threads(count):
        engine = Compiled(program)
        for _ in range(3):
            assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert (made.parallel is None) == (samples * sum(a * b for a, b in zip(widths, widths[1:])) < 2)


def test_callers_at_once():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, 20, 70, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    program = programs.between(x, [step], step.y_qparams)
    inputs = [torch.from_numpy(programs.values(r, x, (1, 20, 9, 8))) for _ in range(8)]
    expected = [Reference(program)({"x": one}) for one in inputs]
    with threads(3), ThreadPoolExecutor(6) as callers:
        engine = Compiled(program)
        assert all(callers.map(lambda i: torch.equal(engine({"x": inputs[i % 8]}), expected[i % 8]), range(200)))
    assert pool.busy[0] == 0


@pytest.mark.filterwarnings("ignore:values are NaN")
def test_nan_is_found():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 50, 70)
    with threads(2):
        engine = Compiled(programs.between(x, [step], step.y_qparams))
        values = torch.zeros(1, 50)
        values[0, 7] = float("nan")
        for _ in range(2):
            assert engine({"x": values}).isnan().all()


FORKED = """
import os, torch, quantspec as qs
from quantspec.engines.compiled import batching
batching.THREAD_MACS = batching.PARALLEL_MACS = 1
torch.set_num_threads(2)
x = torch.rand(1, 3, 12, 12)
q = qs.quantize(torch.nn.Sequential(torch.nn.Conv2d(3, 40, 3), torch.nn.ReLU(), torch.nn.Conv2d(40, 9, 3)).eval(), [x])
expected = q(x)
child = os.fork()
if not child:
    torch.set_num_threads(2)
    os._exit(0 if torch.equal(q(x), expected) and torch.equal(q(x), expected) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(q(x), expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_forked_process_has_a_team_of_its_own():
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=100)
    assert (run.stdout.strip(), run.returncode) == ("0 True", 0), run.stderr
