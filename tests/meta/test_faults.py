"""The machinery of tests/faults: every fault is one, and what is reported as killed was rejected by the clauses that it names."""

import ast
import json
import os
import re
import subprocess
import sys

import pytest

from faults import fault as faults
from faults.fault import ROOT, Fault, Stale
from quantspec import chapters

ALL = faults.load()


def test_a_fault_changes_its_module_in_one_place_to_another_program():
    sources = {fault.path: fault.path.read_text(encoding="utf-8") for fault in ALL}
    programs = {path: ast.dump(ast.parse(source)) for path, source in sources.items() if path.suffix == ".py"}
    for fault in ALL:
        patched = fault.patched()
        assert patched != sources[fault.path] if fault.is_text else ast.dump(ast.parse(patched)) != programs[fault.path], fault.name


def test_a_fault_says_who_makes_it_and_names_known_clauses_once():
    known = set(chapters.clauses())
    for fault in ALL:
        assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", fault.name) and len(fault.name) <= 30, fault.name
        assert re.fullmatch(r"[^\s].{20,}\.", fault.why), fault.name
        assert fault.clauses and len(set(fault.clauses)) == len(fault.clauses) and set(fault.clauses) <= known, fault.name


def test_every_clause_has_as_many_faults_as_its_chapter_demands():
    assert faults.too_few(ALL, {id_: clause.chapter for id_, clause in chapters.clauses().items()}) == []


def test_no_two_faults_have_one_name_or_are_the_same(monkeypatch):
    assert len({(fault.module, fault.old, fault.new) for fault in ALL}) == len({fault.name for fault in ALL}) == len(ALL)
    monkeypatch.setattr(faults, "CHAPTERS", ("accuracy", "accuracy"))
    with pytest.raises(ValueError, match="two faults are named bound-of-whole-steps"):
        faults.load()


def test_the_committed_results_are_those_of_the_faults_that_there_are():
    found = json.loads((ROOT / "spec" / "results" / "faults.json").read_text(encoding="utf-8"))
    assert found == {id_: sorted(fault.name for fault in ALL if id_ in fault.clauses) for id_ in chapters.clauses()}, "run `make faults` and commit its results"

HELPERS = f"{ROOT / 'tests'}:{ROOT / 'tests' / 'harness'}"

def made(name, clauses=("AFF-TIES",), old="np.rint(steps)", new="np.floor(steps + 0.5)", module="numerics.affine"):
    return Fault(name, module, tuple(clauses), "Somebody.", old, new)


def test_too_few_faults_and_unknown_clauses_are_told():
    known = {"AFF-TIES": "affine", "AFF-NAN": "affine", "STA-RUN": "static", "STA-REST": "static"}
    lines = faults.too_few([made("a"), made("b", ["AFF-TIES", "STA-RUN"]), made("c", ["AFF-NAN", "AFF-NEW"])], known)
    assert lines == [
        "AFF-NAN has 1 of 2 faults: add a fault that it must reject to tests/faults/",
        "STA-REST has 0 of 1 faults: add a fault that it must reject to tests/faults/",
        "fault c names AFF-NEW, which no chapter has",
    ]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (made("gone", old="no such text"), "fault gone: expected its old text once in impl/quantspec/numerics/affine.py, found it 0 times: 'no such text'"),
        (made("twice", old="raise ValueError"), "fault twice: expected its old text once in impl/quantspec/numerics/affine.py, found it [0-9]+ times"),
        (made("nowhere", module="nothing"), "fault nowhere: there is no impl/quantspec/nothing.py"),
    ],
)
def test_a_fault_that_its_module_has_outgrown_is_stale(fault, message):
    with pytest.raises(Stale, match=message):
        fault.patched()


def run(*arguments):
    """(exit code, lines) of ``python -m faults.kill``, with what this run of pytest set in the environment left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "faults.kill", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment | {"PYTHONPATH": HELPERS}, capture_output=True, text=True, timeout=300)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def written(folder, *faults):
    """A file of faults, each given as the arguments of ``made``."""
    path = folder / "made.py"
    lines = ["from faults.fault import Fault", "FAULTS = ["]
    lines += [f"    Fault({fault.name!r}, {fault.module!r}, {fault.clauses!r}, {fault.why!r}, {fault.old!r}, {fault.new!r})," for fault in faults]
    path.write_text("\n".join([*lines, "]"]))
    return str(path)


def statuses(lines):
    """The last cell of each row of the matrix, by fault and clause."""
    found, name = {}, ""
    for line in lines:
        if match := re.match(r"(\S*) +([A-Z]{3}-\S+) +(\S+)", line):
            name = match[1] or name
            found[name, match[2]] = match[3]
    return found


def test_a_fault_is_killed_by_its_own_clause_and_by_nothing_else(tmp_path):
    code, lines = run(
        "--from",
        written(
            tmp_path,
            made("ties-up"),
            made("in-the-chapter", module="spec/01-affine.md", old="return whole + 1 if twice_rest > 1", new="return whole + 1 if twice_rest >= 1"),
            made("the-same", new="np.rint(steps * 1)"),
            made("unrelated", ["AFF-CODES", "AFF-TIES"]),
            made("no-python", new="np.rint(steps"),
            made("no-python-at-import", old="SCALE_FLOOR = 2.0**-63", new="SCALE_FLOOR = no_such_name"),
            made("no-such-name", new="np.rint(no_such_name)"),
            made("stale", old="no such text"),
        ),
    )
    text, status = "\n".join(lines), statuses(lines)
    assert code == 1 and lines[-1] == "faults: 2 of 8 killed", text
    ties, codes = "AFF-TIES", "AFF-CODES"
    assert all(status[name, ties].startswith(("ties_go", "quantize_equals")) for name in ("ties-up", "in-the-chapter", "unrelated")), text
    assert status["the-same", ties] == status["unrelated", codes] == "survived", text
    assert all(status[name, ties] == "broken" for name in ("no-python", "no-python-at-import", "no-such-name")), text
    assert status["stale", ties] == "stale", text
    for told in (
        "the-same survived AFF-TIES: add or strengthen a test that names this clause",
        "unrelated survived AFF-CODES: add or strengthen a test",
        "no-python is broken, which is no answer: '(' was never closed",
        "no-python-at-import is broken, which is no answer: pytest ended with exit code 4",
        "NameError: name 'no_such_name' is not defined; see ",
        "fault stale: expected its old text once in impl/quantspec/numerics/affine.py",
    ):
        assert told in text
    # Run without any fault, the same machinery found nothing; and the log tells which tests ran.
    assert "1 failed" in (tmp_path / "logs" / "ties-up.log").read_text() and "passed" in (tmp_path / "logs" / "the-same.log").read_text()


def test_a_fault_that_does_not_end_is_reported_and_its_process_ended(tmp_path):
    endless = made("endless", ["AFF-BITS"], old="    if bits not in", new="    while bits:\n        pass\n    if bits not in")
    code, lines = run("--limit", "3", "--from", written(tmp_path, endless))
    text = "\n".join(lines)
    assert code == 1 and lines[-1] == "faults: 0 of 1 killed" and statuses(lines) == {("endless", "AFF-BITS"): "hung"}, text
    assert "endless hung, which is no answer (not done after 3 seconds): let the fault end, or raise --limit; see " in text


def test_some_faults_can_be_run_alone_and_then_nothing_is_written():
    results = ROOT / "spec" / "results" / "faults.json"
    before = results.stat().st_mtime_ns
    code, lines = run("--only", "ties-away")
    assert code == 0 and lines[-1] == "faults: 1 of 1 killed", "\n".join(lines)
    assert results.stat().st_mtime_ns == before


def test_faults_are_chosen_by_their_names_and_by_clauses():
    some = [made("a"), made("b", ["AFF-NAN", "AFF-TIES"]), made("c", ["AFF-NAN"])]
    assert [fault.name for fault in faults.chosen(some, ["AFF-TIES"])] == ["a", "b"]
    assert [fault.name for fault in faults.chosen(some, ["c", "a"])] == ["a", "c"]
    with pytest.raises(ValueError, match="nobody is neither the name of a fault nor a clause that a fault names"):
        faults.chosen(some, ["a", "nobody"])
