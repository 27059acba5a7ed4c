"""Frames that torch's threads run: in forked processes, and where there are too few of them."""

import os
import subprocess
import sys

import pytest

import programs
from evidence import clause
from quantspec.kernels.team import openmp

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
    os._exit(0 if all(same) and batching.torchs_threads() is None else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.equal(q(x), expected))
"""


@clause("STA-THREADS")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
@pytest.mark.parametrize("between", ["nothing", "torch"])
def test_a_forked_process_has_a_team_of_its_own(between):
    command = [sys.executable, "-c", FORKED, between]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (run.stdout.strip(), run.returncode) == ("0 True", 0), run.stderr


FEWER = """
import numpy as np
from test_parallel import check, programs
r = np.random.default_rng(0)
x = programs.grid(r)
step = programs.conv(r, "a", "x.codes", x, 20, 70, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
check(programs.between(x, [step], step.y_qparams), programs.values(r, x, (1, 20, 9, 8)), 3)
print("equal")
"""


@clause("STA-THREADS")
@pytest.mark.parametrize("limit", ["1", "2", "3"])
def test_a_team_that_is_too_small(limit):
    """One thread does the work where OpenMP gives fewer than were asked for."""
    paths = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(programs.__file__)])
    environment = {**os.environ, "OMP_THREAD_LIMIT": limit, "OMP_NUM_THREADS": limit, "PYTHONPATH": paths}
    command = [sys.executable, "-c", FEWER]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert (run.stdout.strip(), run.returncode) == ("equal", 0), run.stderr


def test_an_openmp_that_cannot_be_called(tmp_path):
    assert openmp(str(tmp_path / "none.so")) is None
    (tmp_path / "text.so").write_text("no library")
    assert openmp(str(tmp_path / "text.so")) is None
