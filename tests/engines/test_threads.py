"""Threads that run frames for others: whoever does the work, and whenever they wake, the bits are those of one
thread.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_parallel import threads, whose  # noqa: F401  # a fixture

import programs
import strategies
from evidence import clause
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import Add
from quantspec.kernels import threads as kernel_threads

pytestmark = pytest.mark.skipif(
    not kernel_threads.SHARED, reason="this system has no POSIX threads, and one thread does everything"
)


def layers(r: np.random.Generator, widths: tuple[int, int, int] = (40, 70, 9)):
    x = programs.grid(r)
    first = programs.linear(r, "a", "x.codes", x, *widths[:2])
    second = programs.linear(r, "b", "a", first.y_qparams, *widths[1:])
    return programs.between(x, [first, second], second.y_qparams), x


@clause("STA-THREADS")
@given(strategies.seeds(), st.integers(2, 5), st.integers(1, 40))
def test_samples_are_shared_out(r, count, samples):
    program, x = layers(r)
    batch = {"x": torch.from_numpy(programs.values(r, x, (samples, 40)))}
    expected = Reference(program)(batch)
    with threads(count):
        engine = Compiled(program)
        for _ in range(4):
            assert torch.equal(engine(batch), expected)
        (made,) = engine.parts[0].batched.values()
        assert made.parallel is not None or len(made.tasks) == min(count, samples)


@clause("STA-THREADS")
@given(strategies.seeds(), st.integers(2, 4), st.integers(2, 20))
def test_samples_of_several_inputs_are_shared_out(r, count, samples):
    program = programs.pair(r, Add)
    steps = zip(program.inputs, program.steps)
    batch = {name: torch.from_numpy(programs.values(r, step.qparams, (samples, 30))) for name, step in steps}
    expected = Reference(program)(batch)
    with threads(count):
        engine = Compiled(program)
        for _ in range(3):
            assert torch.equal(engine(batch), expected)


@clause("STA-THREADS")
@pytest.mark.parametrize("patient", [1, 10**12])
@pytest.mark.parametrize("samples", [1, 30])
def test_workers_that_sleep_and_workers_that_look(patient, samples):
    program, x = layers(np.random.default_rng(0))
    batch = {"x": torch.from_numpy(programs.values(np.random.default_rng(1), x, (samples, 40)))}
    expected = Reference(program)(batch)
    with threads(2, patient):
        engine = Compiled(program)
        for pause in (0, 0, 0.03, 0, 0, 0.001, 0.0001, 0.03, 0):
            time.sleep(pause)
            for _ in range(20):
                assert torch.equal(engine(batch), expected)


def test_workers_look_for_longer_than_work_takes_that_is_left_to_the_caller():
    r = np.random.default_rng(0)
    program, x = layers(r, (2048, 2048, 2048))
    engine, batch = Compiled(program), {"x": torch.from_numpy(programs.values(r, x, (1, 2048)))}
    with threads(1):
        durations = []
        for _ in range(20):
            begin = time.perf_counter()
            engine(batch)
            durations.append(time.perf_counter() - begin)
    up = 0
    with threads(2, 10**12):
        for _ in range(200):
            engine(batch)
            end = time.perf_counter() + min(durations)
            while time.perf_counter() < end:
                pass
            up += int(kernel_threads.pool.mailboxes[0].up)
    assert up > 100


@clause("STA-THREADS")
def test_callers_at_once():
    cases = []
    for seed in range(4):
        program, x = layers(np.random.default_rng(seed))
        batch = {"x": torch.from_numpy(programs.values(np.random.default_rng(seed), x, (1 + 9 * (seed % 2), 40)))}
        cases.append((Compiled(program), batch, Reference(program)(batch)))

    def call(index: int) -> bool:
        engine, batch, expected = cases[index % 4]
        return torch.equal(engine(batch), expected)

    with threads(3), ThreadPoolExecutor(5) as callers:
        assert all(callers.map(call, range(400)))
    assert kernel_threads.pool.busy[0] == 0


@clause("STA-THREADS")
@pytest.mark.filterwarnings("ignore:values are NaN")
def test_a_nan_in_any_share_is_found():
    program, x = layers(np.random.default_rng(0))
    with threads(3):
        engine = Compiled(program)
        for place in range(12):
            values = torch.zeros(12, 40)
            values[place, 3] = float("nan")
            found = engine({"x": values})
            assert found[place].isnan().all() and found.isnan().sum() == found[place].numel()


ALONE = """
import os, time, torch, quantspec as qs
from quantspec.engines.compiled import batching
batching.THREAD_MACS = batching.PARALLEL_MACS = batching.PATIENT_MACS = 1
if {pinned}:
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
torch.set_num_threads(3)
x = torch.rand(8, 50)
q = qs.quantize(torch.nn.Sequential(torch.nn.Linear(50, 64), torch.nn.ReLU(), torch.nn.Linear(64, 7)).eval(), [x])
for rows in (8, 1):
    expected = q.run_on("reference")(x[:rows])
    for pause in (0, 0.02, 0, 0.02):
        time.sleep(pause)
        for _ in range(5):
            assert torch.equal(q(x[:rows]), expected)
print("done")
"""


ON_LINUX = pytest.mark.skipif(not kernel_threads.LINUX, reason="only Linux pins threads to CPUs")


@clause("STA-THREADS")
@pytest.mark.parametrize("pinned", [False, pytest.param(True, marks=ON_LINUX)])
def test_processes_end_while_workers_look_for_work_and_one_cpu_is_enough(pinned):
    script = ALONE.format(pinned=pinned)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert (run.stdout.strip(), run.returncode) == ("done", 0), run.stderr
