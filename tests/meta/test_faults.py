"""The machinery of tests/faults: every fault is one, and what is reported as killed was rejected by its clauses."""

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
    statements = {path: parts(source) for path, source in sources.items() if path.suffix == ".py"}
    for fault in ALL:
        patched = fault.patched()
        if fault.is_text:
            assert patched != sources[fault.path], fault.name
        else:
            assert programs_differ(statements[fault.path], parts(patched)), fault.name


def parts(source):
    """The statements of a module, each behind its text, with that of decorators and comments before it."""
    tree, lines = ast.parse(source), source.splitlines()
    ends = [statement.end_lineno for statement in tree.body]
    return [(lines[before:end], statement) for before, end, statement in zip([0, *ends], ends, tree.body)]


def programs_differ(before, after):
    """Whether two modules are different programs. Only statements whose text differs are looked at, as others are the
    same."""
    pairs = [(a, b) for (text, a), (other, b) in zip(before, after) if text != other]
    return len(before) != len(after) or any(ast.dump(a) != ast.dump(b) for a, b in pairs)


def test_a_change_of_comments_and_spaces_alone_makes_no_other_program():
    source = "import os\n\n\n@os.fspath  # why\ndef f(x):\n    return (x + 1)\n\n\ny = f(2)\n"
    assert not programs_differ(parts(source), parts(source.replace("# why", "# how").replace("(x + 1)", "x + 1")))
    for old, new in (("x + 1", "x + 2"), ("@os.fspath", "@os.fsencode"), ("y = f(2)\n", ""), ("y = f(2)", "y = f(3)")):
        assert programs_differ(parts(source), parts(source.replace(old, new))), new


def test_a_fault_says_who_makes_it_and_names_known_clauses_once():
    known = set(chapters.clauses())
    for fault in ALL:
        assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", fault.name) and len(fault.name) <= 30, fault.name
        assert re.fullmatch(r"[^\s].{20,}\.", fault.why), fault.name
        ids = set(fault.clauses)
        assert ids and len(ids) == len(fault.clauses) and ids <= known, fault.name


def test_every_clause_has_as_many_faults_as_its_chapter_demands():
    assert faults.too_few(ALL, {id_: clause.chapter for id_, clause in chapters.clauses().items()}) == []


def test_no_two_faults_have_one_name_or_are_the_same(monkeypatch):
    changes, names = {(fault.module, fault.old, fault.new) for fault in ALL}, {fault.name for fault in ALL}
    assert len(changes) == len(names) == len(ALL)
    monkeypatch.setattr(faults, "CHAPTERS", ("accuracy", "accuracy"))
    with pytest.raises(ValueError, match="two faults are named bound-of-whole-steps"):
        faults.load()


def test_the_committed_results_are_those_of_the_faults_that_there_are():
    recorded = json.loads((ROOT / "spec" / "results" / "faults.json").read_text(encoding="utf-8"))
    named = {id_: sorted(fault.name for fault in ALL if id_ in fault.clauses) for id_ in chapters.clauses()}
    assert recorded == named, "run `make faults` and commit its results"


ONCE = "expected its old text once in impl/quantspec/numerics/affine.py"
HELPERS = f"{ROOT / 'tests'}:{ROOT / 'tests' / 'harness'}"


def mistake(name, clauses=("AFF-TIES",), old="np.rint(steps)", new="np.floor(steps + 0.5)", module="numerics.affine"):
    """A fault, of which only what a test is about is given."""
    return Fault(name, module, tuple(clauses), "Somebody.", old, new)


def test_too_few_faults_and_unknown_clauses_are_named():
    known = {"AFF-TIES": "affine", "AFF-NAN": "affine", "STA-RUN": "static", "STA-REST": "static"}
    some = [mistake("a"), mistake("b", ["AFF-TIES", "STA-RUN"]), mistake("c", ["AFF-NAN", "AFF-NEW"])]
    lines = faults.too_few(some, known)
    assert lines == [
        "AFF-NAN has 1 of 2 faults: add a fault that it must reject to tests/faults/",
        "STA-REST has 0 of 1 faults: add a fault that it must reject to tests/faults/",
        "fault c names AFF-NEW, which no chapter has",
    ]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (mistake("gone", old="no such text"), f"fault gone: {ONCE}, found it 0 times: 'no such text'"),
        (mistake("twice", old="raise ValueError"), f"fault twice: {ONCE}, found it [0-9]+ times"),
        (mistake("nowhere", module="nothing"), "fault nowhere: there is no impl/quantspec/nothing.py"),
    ],
)
def test_a_fault_that_its_module_has_outgrown_is_stale(fault, message):
    with pytest.raises(Stale, match=message):
        fault.patched()


def run(*arguments):
    """(exit code, lines) of ``python -m faults.kill``, with what this run of pytest set in the environment left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "faults.kill", *arguments]
    environment["PYTHONPATH"] = HELPERS
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def written(folder, *faults):
    """A file of these faults."""
    path = folder / "some_faults.py"
    entries = "".join(f"    {fault!r},\n" for fault in faults)
    path.write_text(f"from faults.fault import Fault\n\nFAULTS = [\n{entries}]\n")
    return str(path)


def statuses(lines):
    """The last cell of each row of the matrix, by fault and clause."""
    cells, name = {}, ""
    for line in lines:
        if match := re.match(r"(\S*) +([A-Z]{3}-\S+) +(\S+)", line):
            name = match[1] or name
            cells[name, match[2]] = match[3]
    return cells


def test_a_fault_is_killed_by_its_own_clause_and_by_nothing_else(tmp_path):
    old, new = "return whole + 1 if twice_rest > 1", "return whole + 1 if twice_rest >= 1"
    some = [
        mistake("ties-up"),
        mistake("in-the-chapter", module="spec/01-affine.md", old=old, new=new),
        mistake("the-same", new="np.rint(steps * 1)"),
        mistake("unrelated", ["AFF-CODES", "AFF-TIES"]),
        mistake("no-python", new="np.rint(steps"),
        mistake("no-python-at-import", old="SCALE_FLOOR = 2.0**-63", new="SCALE_FLOOR = no_such_name"),
        mistake("no-such-name", new="np.rint(no_such_name)"),
        mistake("stale", old="no such text"),
    ]
    code, lines = run("--from", written(tmp_path, *some))
    text, status = "\n".join(lines), statuses(lines)
    assert code == 1 and lines[-1] == "faults: 2 of 8 killed", text
    ties, codes = "AFF-TIES", "AFF-CODES"
    rejected = [status[name, ties] for name in ("ties-up", "in-the-chapter", "unrelated")]
    assert all(test.startswith(("ties_go", "quantize_equals")) for test in rejected), text
    assert status["the-same", ties] == status["unrelated", codes] == "survived", text
    assert all(status[name, ties] == "broken" for name in ("no-python", "no-python-at-import", "no-such-name")), text
    assert status["stale", ties] == "stale", text
    for line in (
        "the-same survived AFF-TIES: add or strengthen a test that names this clause",
        "unrelated survived AFF-CODES: add or strengthen a test",
        "no-python is broken, which is no answer: '(' was never closed",
        "no-python-at-import is broken, which is no answer: pytest ended with exit code 3",
        "NameError: name 'no_such_name' is not defined; see ",
        "fault stale: expected its old text once in impl/quantspec/numerics/affine.py",
    ):
        assert line in text
    # Run without any fault, the same machinery found nothing; and the log tells which tests ran.
    assert "1 failed" in (tmp_path / "logs" / "ties-up.log").read_text()
    assert "passed" in (tmp_path / "logs" / "the-same.log").read_text()


def test_a_fault_that_does_not_end_is_reported_and_its_process_ended(tmp_path):
    loop = "    while bits:\n        pass\n    if bits not in"
    endless = mistake("endless", ["AFF-BITS"], old="    if bits not in", new=loop)
    code, lines = run("--limit", "3", "--from", written(tmp_path, endless))
    text = "\n".join(lines)
    assert code == 1 and lines[-1] == "faults: 0 of 1 killed", text
    assert statuses(lines) == {("endless", "AFF-BITS"): "hung"}, text
    reason = "endless hung, which is no answer (not done after 3 seconds)"
    assert f"{reason}: let the fault end, or raise --limit; see " in text


def test_some_faults_can_be_run_alone_and_then_nothing_is_written():
    results = ROOT / "spec" / "results" / "faults.json"
    before = results.stat().st_mtime_ns
    code, lines = run("--only", "one-bit-is-allowed")  # which few tests must reject
    assert code == 0 and lines[-1] == "faults: 1 of 1 killed", "\n".join(lines)
    assert results.stat().st_mtime_ns == before


def test_faults_are_chosen_by_their_names_and_by_clauses():
    some = [mistake("a"), mistake("b", ["AFF-NAN", "AFF-TIES"]), mistake("c", ["AFF-NAN"])]
    assert [fault.name for fault in faults.chosen(some, ["AFF-TIES"])] == ["a", "b"]
    assert [fault.name for fault in faults.chosen(some, ["c", "a"])] == ["a", "c"]
    with pytest.raises(ValueError, match="nobody is neither the name of a fault nor a clause that a fault names"):
        faults.chosen(some, ["a", "nobody"])
