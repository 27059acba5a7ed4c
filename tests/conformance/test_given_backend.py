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
    (one.backend, table["clause"], table["operation"], table["shape"])
    for one in results.read_all(chapters.directory() / "results")
    for table in one.findings
    if table["outcome"] == "fails" and one.cpu == results.cpu()
}  # fmt: skip


@pytest.fixture(scope="module")
def given(request):
    name = request.config.getoption("--backend")
    with Worker(name) as worker, Worker(name, threads=2, unwritten=OTHER) as more:
        yield Session(worker, more_threads=more)


def judge(session: Session, findings: list[run.Finding]) -> None:
    first = findings[0]
    if first.outcome == "not offered":
        pytest.skip(first.reason)
    name, cell = session.worker.name, (first.clause, first.operation)
    here = name, results.cpu(), *cell
    shapes = {finding.shape for finding in findings if finding.outcome == "fails"}
    explained = {shape: next((k for k in KNOWN if k.covers(*here, shape)), None) for shape in shapes}
    if unexplained := [finding for finding in findings if explained.get(finding.shape, 0) is None]:
        pytest.fail("\n\n".join(map(told, unexplained)), pytrace=False)
    gone = {shape for *at, shape in FAILED if at == [name, *cell]} - shapes
    assert not gone, f"{first.clause} {first.operation} is recorded as a known divergence ({gone}), and passes"
    if shapes:
        pytest.xfail("\n\n".join(f"{explained[finding.shape].reason}\n{told(finding)}" for finding in findings))


def told(finding: run.Finding) -> str:
    """A failure in words."""
    sentence = chapters.clauses()[finding.clause].sentence
    before = "".join(f"\nbefore: {call_text(call)}" for call in finding.before)
    answer = f"asked: {call_text(finding.call)}\nallowed: {finding.allowed}\ngot: {finding.got}"
    return f"{finding.shape}: {sentence}{before}\n{answer}\n\n{finding.reproduce}"


def test_the_adapter_answers_easy_calls(request, given):
    smoke(request.config.getoption("--backend"), given.worker)


@pytest.mark.parametrize(
    "check", [pytest.param(c, marks=clause(c.clause), id=f"{c.clause}-{c.operation}") for c in CHECKS]
)
def test_a_clause_holds(check, given):
    if check.operation not in given.worker.operations:
        pytest.skip(f"{check.operation} is not offered")
    session = Session(given.worker, more_threads=given.more_threads)
    judge(given, run.examine(check, session, run.EXAMPLES))


@clause("BAK-PURE")
@pytest.mark.parametrize("operation", run.PURITY)
def test_answers_depend_on_nothing_but_the_arguments(given, operation):
    judge(given, run.examine_purity(Session(given.worker), operation))
