"""What a failure says, tried on failing tests in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = '''
import numpy as np
import pytest
from hypothesis import given, strategies as st

from evidence import clause


@clause("AFF-TIES")
@given(st.integers(0, 9999))
def test_drawn(x):
    assert x < 17


@clause("AFF-TIES")
@pytest.mark.parametrize("bits", [3])
@given(st.data())
def test_drawn_inside(bits, data):
    assert data.draw(st.integers(0, 9999)) < 17


@clause("AFF-NAN")
def test_compared():
    scale = np.float32(0.1)
    assert [1, 2, 4] == [1, 2, 3]


def test_floats():
    assert [0.1, 0.2] == np.float32([0.1, 0.25]).tolist()
'''

CONFTEST = '''
from hypothesis import settings

pytest_plugins = ["traceability", "verdict"]
settings.register_profile("here", derandomize=True, print_blob=True)
settings.load_profile("here")
'''


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The folder with the failing tests, and what pytest printed of each failure, by test."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "tests").symlink_to(ROOT / "tests")
    (folder / "test_failing.py").write_text(TESTS)
    (folder / "conftest.py").write_text(CONFTEST)
    done = run(folder, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "test_failing.py")
    assert done.returncode == 1 and "4 failed" in done.stdout, done.stdout + done.stderr
    parts = [part.lstrip("_ ") for part in done.stdout.split("\n____")]
    names = ("test_drawn ", "test_drawn_inside", "test_compared", "test_floats")
    return folder, {name: next(part for part in parts if part.startswith(name)) for name in names}


def run(folder, *arguments, script=None):
    """A finished Python process with these arguments in a folder."""
    paths = [str(ROOT / name) for name in ("tests/harness", "tests", "impl")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "QUANTSPEC_SUBSET": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, input=script, capture_output=True, text=True)


def test_the_clause_stands_below_the_failure(failures):
    assert "AFF-TIES: A quotient x / scale exactly half-way" in failures[1]["test_drawn "]
    assert "AFF-NAN: Quantizing NaN MUST be refused" in failures[1]["test_compared"]


@pytest.mark.parametrize("test", ["test_drawn ", "test_drawn_inside"])
def test_the_snippet_fails_in_the_same_way_when_pasted(failures, test):
    folder, parts = failures
    script = parts[test].split("python - <<'END'\n")[1].split("END\n")[0]
    done = run(folder, "-", script=script)
    assert done.returncode == 1 and "AssertionError" in done.stderr
    assert f"Failing test case: {test.strip()}(" in done.stdout and "17" in done.stdout


def test_a_test_without_drawn_examples_is_reproduced_by_its_name(failures):
    assert "python -m pytest -n 0 test_failing.py::test_compared" in failures[1]["test_compared"]


def test_what_came_out_stands_beside_what_was_allowed(failures):
    text = failures[1]["test_compared"]
    assert "1 of 3 differ, the first at 2" in text and "got:     1, 2, 4" in text and "allowed: 1, 2, 3" in text
    assert "scale = np.float32(0.1) (0x1.99999a0000000p-4)" in text
    assert "0x1.999999999999ap-4" in failures[1]["test_floats"] and "0x1.99999a0000000p-4" in failures[1]["test_floats"]
