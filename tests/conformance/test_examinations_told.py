"""What ``quantspec conformance`` prints of what its backends did, and its exit code, without asking any backend."""

import re

import numpy as np
import pytest

from quantspec import chapters, cli
from quantspec.backends import registry
from quantspec.conformance import checks, command, report_html, results
from quantspec.conformance.call import Call
from quantspec.conformance.command import Absent
from quantspec.conformance.results import Results
from quantspec.conformance.session import Violation

FAILS = {
    "clause": "BAK-PLACE", "operation": "add", "outcome": "fails", "shape": "other codes",
    "call": "add(<1>)", "allowed": "1", "got": "2",
}  # fmt: skip
PASSES = {"clause": "BAK-EMPTY", "operation": "add", "outcome": "pass", "examples": 3, "outputs": 3}
ABSENT = {"clause": "BAK-NAN", "operation": "quantize", "outcome": "not offered"}
UNEXPLAINED = "{} BAK-PLACE add: differs, other codes; no reason is recorded."
OTHERWISE = "{} add: its adapter passes on other calls than were recorded."


def made(backend, *findings, passed_on="") -> Results:
    return Results(backend, "1", "cpu", findings, (), {"add": passed_on} if passed_on else {})


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """The exit code and the lines of the command, for backends that turn out as is given, beside a record."""
    monkeypatch.setattr(chapters, "directory", lambda: tmp_path)
    monkeypatch.setattr(registry, "why_not_installed", lambda name: "")

    def run(*found, recorded=(), arguments=()):
        (tmp_path / "results").mkdir(exist_ok=True)
        for one in recorded:
            results.write(tmp_path / "results", one)
        monkeypatch.setattr(command, "examined", lambda names, options: found)
        code = cli.main(["conformance", *arguments])
        return code, capsys.readouterr().out.splitlines()

    return run


def test_each_backend_is_counted_by_what_it_did(told):
    code, lines = told(made("mine", PASSES, PASSES, FAILS, ABSENT), made("yours", ABSENT))
    assert lines == [
        "mine 1 on cpu: 2 pass, 1 differ, 1 not offered",
        "yours 1 on cpu: 0 pass, 0 differ, 1 not offered",
        UNEXPLAINED.format("mine"),
        "conformance: 2 backends, 3 clauses, 1 divergence, 1 unexplained",
    ]
    assert code == 1


def test_one_backend_alone_is_shown_clause_by_clause(told):
    code, lines = told(made("mine", {**PASSES, "outputs": 1234}, {**PASSES, "clause": "BAK-NAN", "outputs": 0}, ABSENT))
    assert lines[1].strip() == "mine 1 on cpu" and code == 0
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["BAK-EMPTY", "add", "pass (1,234 outputs)"], ["BAK-NAN", "add", "pass"]]


def test_a_failure_is_shown_with_what_was_asked_and_what_was_allowed(told):
    _, lines = told(made("mine", FAILS))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [["BAK-PLACE", "add", "differs"], *(["", "", text] for text in (
        "asked: add(<1>)", "allowed: 1", "got: 2"
    ))]  # fmt: skip


def test_what_is_written_down_is_not_shown_clause_by_clause(told, tmp_path):
    code, lines = told(made("mine", PASSES), arguments=["--write", str(tmp_path)])
    assert code == 0 and lines == [
        "mine 1 on cpu: 1 pass, 0 differ, 0 not offered",
        "conformance: 1 backend, 1 clause, 0 divergences, 0 unexplained",
    ]
    assert results.read_all(tmp_path / "results") == [made("mine", PASSES)]


def test_every_reason_to_fail_is_told_in_a_line_of_its_own(told):
    """Of several backends, and of several kinds: none takes the place of another."""
    backends = [made(name, FAILS, passed_on="new") for name in ("mine", "yours")]
    recorded = [made(name, PASSES, passed_on="old") for name in ("mine", "yours")]
    dead = Absent("theirs: it ended before it was asked", broken=True)
    code, lines = told(backends[0], dead, backends[1], recorded=recorded)
    assert lines[-6:-1] == [
        OTHERWISE.format("mine"), dead.text, OTHERWISE.format("yours"),
        UNEXPLAINED.format("mine"), UNEXPLAINED.format("yours"),
    ]  # fmt: skip
    assert lines[-1] == "conformance: 2 backends, 1 clause, 2 divergences, 5 unexplained" and code == 1


@pytest.mark.parametrize(("broken", "code"), [(True, 1), (False, 0)])
def test_a_backend_that_does_not_live_fails_and_one_that_is_not_there_does_not(told, broken, code):
    absent = Absent("theirs: needs [this]", broken)
    assert told(absent) == (code, [absent.text, *[absent.text] * broken,
        f"conformance: 0 backends, 0 clauses, 0 divergences, {code} unexplained"])  # fmt: skip


def test_a_backend_that_was_asked_for_by_name_has_to_be_there(told, monkeypatch, capsys):
    monkeypatch.setattr(command, "examined", lambda names, options: [Absent("mine: 2 of [it] lack", broken=False)])
    assert cli.main(["conformance", "--backend", "mine"]) == 2
    assert capsys.readouterr().err.endswith("backend mine: 2 of [it] lack\n")


def test_lines_about_backends_have_no_colours_of_their_own(told, monkeypatch):
    """Numbers and words in brackets are what a backend says, not what is to be set off."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    absent = Absent("theirs: 12 of [it] 'lack' http://example.org", broken=True)
    found = told(made("mine", FAILS), made("yours", PASSES), absent)
    monkeypatch.delenv("FORCE_COLOR")
    assert found == told(made("mine", FAILS), made("yours", PASSES), absent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--examples", "0"], "--examples: expected at least 1, got 0"),
        (["--seconds", "0"], "--seconds: expected more than 0, got 0"),
        (["--seconds", "nan"], "--seconds: expected more than 0, got nan"),
    ],
)
def test_a_run_of_no_calls_or_no_time_is_refused(arguments, message, capsys):
    assert cli.main(["conformance", *arguments]) == 2
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_on_the_page_a_column_begins_a_family_where_its_neighbour_is_of_another():
    backends = [made(name, PASSES, FAILS, ABSENT) for name in ("torch-x86", "torch-onednn", "openvino", "mine")]
    text = report_html.page(backends, [])
    begins = {"torch-x86": "first", "torch-onednn": "", "openvino": "first", "mine": "first"}
    assert dict((name, kind) for kind, name in re.findall(r'<th(?: class="(\w+)")?><span>([\w-]+)<br>', text)) == begins
    for row in re.findall(r"<tr.*?</tr>", text.partition("<tbody>")[2], re.DOTALL):
        assert ["first" if "first" in kind else "" for kind in re.findall(r"<td([^>]*)>", row)] == [*begins.values()]


@pytest.mark.parametrize(
    ("scale", "zero_point", "wrong"),
    [
        (np.inf, 0, "the scale"), (np.nan, 0, "the scale"), (0.0, 0, "the scale"), (-1.0, 300, "the scale"),
        (0.5, 256, "the zero point"), (0.5, -1, "the zero point"),
    ],
)  # fmt: skip
def test_a_grid_that_is_none_and_is_taken_is_told_by_what_is_wrong_with_it(scale, zero_point, wrong):
    call = Call("quantize", (np.zeros(6, np.float32), np.float32(scale), zero_point), {"qmin": 0, "qmax": 255})
    session = type("Session", (), {"answer": lambda self, call: np.uint8([1, 2, 3, 4, 5, 6])})()
    with pytest.raises(Violation) as told:
        checks.refuses(session, call)
    found = told.value
    # Four of the codes are enough to see what was made of it.
    assert (found.allowed, found.got, found.how) == ("a refusal", "[1, 2, 3, 4]", f"takes {wrong}")
