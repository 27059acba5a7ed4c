"""The checks of one backend as tests: ``pytest --backend NAME``. A clause that the backend is known to break is an
expected failure, with the reason."""

import pytest

from evidence import clause
from quantspec import chapters
from quantspec.backends.worker import OTHER, Worker
from quantspec.conformance import results, run
from quantspec.conformance.call import call_text
from quantspec.conformance.checks import CHECKS
from quantspec.conformance.session import Session
from quantspec.conformance.smoke import smoke

KNOWN = results.read_known(chapters.directory() / "results")
# A pattern of the known ones may stand for backends of which some pass: what each did is recorded.
FAILED = {
    (one.backend, table["clause"], table["operation"])
    for one in results.read_all(chapters.directory() / "results")
    for table in one.findings
    if table["outcome"] == "fails"
}  # fmt: skip


@pytest.fixture(scope="module")
def given(request):
    name = request.config.getoption("--backend")
    with Worker(name) as worker, Worker(name, threads=2, unwritten=OTHER) as more:
        yield Session(worker, more_threads=more)


def judge(request, session: Session, finding: run.Finding) -> None:
    if finding.outcome == "not offered":
        pytest.skip(finding.reason)
    known = next((k for k in KNOWN if k.covers(session.worker.name, finding.clause, finding.operation)), None)
    if finding.outcome == "fails":
        sentence = chapters.clauses()[finding.clause].sentence
        before = "".join(f"\nbefore: {call_text(call)}" for call in finding.before)
        answer = f"asked: {call_text(finding.call)}\nallowed: {finding.allowed}\ngot: {finding.got}"
        text = f"{sentence}{before}\n{answer}\n\n{finding.reproduce}"
        if known:
            pytest.xfail(f"{known.reason}\n{text}")
        pytest.fail(text, pytrace=False)
    recorded = (session.worker.name, finding.clause, finding.operation) in FAILED
    assert not recorded, f"{finding.clause} {finding.operation} is recorded as a known divergence, and passes"


def test_the_adapter_answers_easy_calls(request, given):
    smoke(request.config.getoption("--backend"), given.worker)


@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=clause(c.clause), id=f"{c.clause}-{c.operation}") for c in CHECKS]
)
def test_a_clause_holds(check, request, given):
    if check.operation not in given.worker.operations:
        pytest.skip(f"{check.operation} is not offered")
    examine = run.examine_dialect if check.clause == "BAK-DIALECT" else run.examine
    judge(request, given, examine(check, Session(given.worker, more_threads=given.more_threads), run.EXAMPLES))


@clause("BAK-PURE")
@pytest.mark.parametrize("operation", run.PURITY)
def test_answers_depend_on_nothing_but_the_arguments(request, given, operation):
    judge(request, given, run.examine_purity(Session(given.worker), operation))
