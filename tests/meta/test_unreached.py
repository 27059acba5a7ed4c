"""``make coverage``: what no test reaches is counted, named and explained as it is."""

import os
import subprocess
import sys
from types import SimpleNamespace

import coverage
import pytest

import unreached
from unreached import PACKAGE, REASONS, Place, functions, per_cent, read_reasons

SOURCE = '''\
class Grid:
    def codes(self, x):
        if x > 0:
            return 1
        return 0

def outer(x):
    def inner():
        return x
    return inner
print(outer(1)())
print(Grid().codes(1))
'''  # fmt: skip


def counted(tmp_path, source: str):
    """What coverage says of a module with that source, as the page has it."""
    (tmp_path / "grid.py").write_text(source, encoding="utf-8")
    (tmp_path / "rc").write_text(f"[run]\nbranch = true\nsource = {tmp_path}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-m", "coverage", "run", "--rcfile=rc", "--data-file=data", "grid.py"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)
    (counts,) = unreached.counts([tmp_path / "data"], rcfile=str(tmp_path / "rc")).values()
    return unreached.module("storage/grid.py", counts, source)


def test_lines_and_branches_that_did_not_run_are_named_by_their_function(tmp_path):
    found = counted(tmp_path, SOURCE)
    assert found.unreached == (Place("storage/grid.py", "Grid.codes", 5, None, "return 0"),)
    assert (found.room, found.total - found.reached) == ("storage", 2)  # the line, and the branch to it
    one_way = "x = 1\nif x:\n    x = 2\nprint(x)\n"
    found = counted(tmp_path, one_way)
    assert [str(place) for place in found.unreached] == ["2: `if x:` was never followed by line 4"]
    assert per_cent([found]) == 100 * 5 / 6


def test_counting_leaves_what_measures_this_process_alone(tmp_path, monkeypatch):
    """Otherwise what a worker of pytest ran is lost, and all that it reached looks unreached."""
    measuring = SimpleNamespace(_auto_save=True)
    monkeypatch.setattr(coverage.process_startup, "coverage", measuring, raising=False)
    counted(tmp_path, "x = 1\n")
    assert measuring._auto_save


def test_a_function_in_a_function_is_a_part_of_it():
    names = functions(SOURCE)
    assert names == {1: "Grid", **dict.fromkeys(range(2, 6), "Grid.codes"), **dict.fromkeys(range(7, 11), "outer")}


def test_a_reason_is_about_functions_that_there_are():
    reasons = read_reasons(REASONS.read_text(encoding="utf-8"))
    for pattern in reasons:
        name, _, function = pattern.partition(":")
        paths = list(PACKAGE.glob(name))
        assert paths, f"{pattern}: there is no such module"
        there = {one for path in paths for one in functions(path.read_text(encoding="utf-8")).values()}
        assert function in ("", "*") or function in there, f"{pattern}: there is no such function"
    assert all(len(why.split()) > 3 for why in reasons.values())


def test_a_place_with_two_reasons_is_refused():
    with pytest.raises(ValueError, match="a.py:f has two reasons"):
        read_reasons('"nobody has that CPU" = ["a.py:f"]\n"it is for later" = ["a.py:f"]\n')
    reasons = read_reasons('"nobody has that CPU" = ["backends/*.py:*"]\n')
    place = Place("backends/litert/litert.py", "run", 3, None, "return x")
    assert unreached.reason(place, reasons) == "nobody has that CPU"
    assert unreached.reason(Place("storage/file.py", "run", 3, None, "return x"), reasons) is None
