"""What mutmut's notes lack: calls in other processes, and in fixtures of several tests. mutmut itself is made up."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from mutants import run

TRAMPOLINE = """
from mutmut.state import state
def record_trampoline_hit(name, caller=None): state()._stats.add(name)
"""
STATE = """
from types import SimpleNamespace
kept = SimpleNamespace(_stats=set())
def state(): return kept
"""
# As mutmut does: what was called until a test's teardown is that test's.
COLLECTING = """
import json, pathlib
from mutmut.state import state
by_test = {}
def pytest_runtest_teardown(item):
    by_test[item.name] = sorted(state()._stats)
    state()._stats.clear()
def pytest_sessionfinish():
    pathlib.Path("by_test.json").write_text(json.dumps(by_test))
"""
TESTS = """
import os, subprocess, sys
import pytest
from mutmut.mutation import trampoline
def call(name): trampoline.record_trampoline_hit(name)
def started(name):
    code = f"import noted; noted.trampoline.record_trampoline_hit({name!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
@pytest.fixture(scope="module")
def inner():
    call("inner")
@pytest.fixture(scope="module")
def outer(inner):
    call("outer")
    started("outer_elsewhere")
@pytest.fixture
def own():
    call("own")
def test_first(outer): call("first")
def test_second(outer, own): started("second")
def test_none(): pass
def test_forked():
    if not (copy := os.fork()):
        call("forked")
        os._exit(0)
    os.waitpid(copy, 0)
def test_inner(inner): pass
"""
BY_TEST = {
    "test_first": ["first", "inner", "outer", "outer_elsewhere"],
    "test_second": ["inner", "outer", "outer_elsewhere", "own", "second"],
    "test_none": [],
    "test_forked": ["forked"],
    "test_inner": ["inner"],
}


def noted(folder: Path, mutant: str) -> dict[str, list[str]]:
    """What is noted for each test."""
    files = {
        "mutmut/__init__.py": "", "mutmut/mutation/__init__.py": "", "mutmut/mutation/trampoline.py": TRAMPOLINE,
        "mutmut/state.py": STATE, "collecting.py": COLLECTING, "test_calls.py": TESTS,
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(Path(run.__file__).with_name("noted.py"), folder)
    environment = os.environ | {"PYTHONPATH": str(folder), "MUTANT_UNDER_TEST": mutant, "PYTEST_ADDOPTS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "collecting", "-p", "noted", "--rootdir", str(folder)]
    said = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    assert said.returncode == 0, said.stdout + said.stderr
    return json.loads((folder / "by_test.json").read_text(encoding="utf-8"))


def test_calls_elsewhere_and_in_fixtures_are_each_tests_own(tmp_path):
    assert noted(tmp_path, "stats") == {test: sorted(names) for test, names in BY_TEST.items()}


def test_nothing_is_added_while_a_mutant_is_tried(tmp_path):
    by_test = noted(tmp_path, "quantspec.numerics.affine.x_along__mutmut_1")
    assert by_test["test_second"] == ["own"] and by_test["test_inner"] == []


def test_processes_that_tests_start_have_the_mutated_package_but_for_kernels(tmp_path):
    assert run.environment(tmp_path / "backends")["PYTHONPATH"] == str(tmp_path / "backends" / "mutants" / "src")
    assert run.environment(tmp_path / "kernels.jit")["PYTHONPATH"] == ""
