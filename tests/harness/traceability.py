"""A pytest plugin: which clauses each test checks, what happened, and what is missing when a complete run is over.

Every report carries its test's clauses, evidence and result to the process that started the run, which knows the
whole when the run is over. A complete run that leaves a clause untested, or a lock or a page out of date, fails, and
says what to do. A run of a part (``-k``, a file, ``-x``) is not held to that.
"""

import functools
import json
import os
from pathlib import Path

import pytest
from hypothesis.errors import UnsatisfiedAssumption

import account
import coverage_page
import evidence
from quantspec import chapters


def pytest_addoption(parser):
    """Adds ``--spec-record``."""
    what = "write what the run found about each clause as JSON; spec/coverage.md is then not checked"
    parser.addoption("--spec-record", metavar="FILE", help=what)


def pytest_configure(config):
    """Declares the marker; in the process that started the run, adds the Bookkeeper."""
    config.addinivalue_line("markers", "clause(*ids): the clauses of the specification that a test checks")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Bookkeeper(config), "quantspec-bookkeeper")


def clause_ids(item) -> tuple[str, ...]:
    """The ids that a test names, in order."""
    return tuple(dict.fromkeys(id_ for mark in item.iter_markers("clause") for id_ in mark.args))


def pytest_collection_modifyitems(items):
    """Gives each test its clauses, and a chapter's example its place, which its reports then carry."""
    for item in items:
        item.user_properties.append(("clauses", list(clause_ids(item))))
        if example := getattr(item, "example", None):
            item.user_properties.append(("block", [Path(example.path).name, example.line]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Counts what Hypothesis draws for the test, and collects what the test notes."""
    evidence.take_notes()
    counts = {"examples": 0, "filtered": 0}
    hypothesis = getattr(getattr(item, "obj", None), "hypothesis", None)
    if hypothesis is None:
        result = yield
    else:
        inner = hypothesis.inner_test

        @functools.wraps(inner)
        def counting(*args, **kwargs):
            counts["examples"] += 1
            try:
                return inner(*args, **kwargs)
            except UnsatisfiedAssumption:
                counts["filtered"] += 1
                raise

        hypothesis.inner_test = counting
        try:
            result = yield
        finally:
            hypothesis.inner_test = inner
    item.user_properties.append(("noted", sorted(evidence.take_notes())))
    item.user_properties.extend(counts.items())
    return result


def is_complete(config) -> bool:
    """Whether the run is of the whole suite, so that what is missing is missing."""
    options = config.option
    narrowed = options.keyword or options.markexpr or options.deselect or getattr(options, "lf", False)
    chosen = narrowed or options.collectonly
    paths = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return paths and not chosen and not os.environ.get("QUANTSPEC_SUBSET")


class Bookkeeper:
    """Gathers the reports of a run in the process that started it, and closes the account when the run is over."""

    def __init__(self, config):
        self.config = config
        self.results: dict[str, account.Result] = {}
        self.complaints: list[str] = []

    def pytest_runtest_logreport(self, report):
        """Keeps the result of a test, of the first of its phases that did not pass or of the call."""
        properties = dict(report.user_properties)
        if report.when == "call" or not report.passed:
            self.results[report.nodeid] = account.Result(
                report.nodeid,
                tuple(properties.get("clauses", ())),
                report.outcome,
                noted=tuple(properties.get("noted", ())),
                examples=properties.get("examples", 0),
                filtered=properties.get("filtered", 0),
                block=tuple(properties["block"]) if "block" in properties else None,
            )

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        """Closes the account of a complete run, which fails when there is a complaint."""
        broke_off = session.shouldfail or session.shouldstop or session.testsfailed and not self.results
        if not is_complete(self.config) or broke_off:
            return
        results, root = list(self.results.values()), self.config.rootpath
        lock = account.read_lock(chapters.directory() / "clauses.lock")
        self.complaints = account.complaints(results, lock)
        page = coverage_page.render(coverage_page.clause_rows(results, coverage_page.read_faults(root)))
        if record := self.config.option.spec_record:
            Path(record).parent.mkdir(parents=True, exist_ok=True)
            facts = {"results": [vars(result) for result in results], "complaints": self.complaints}
            Path(record).write_text(json.dumps(facts))
        elif not self.complaints and not session.testsfailed and coverage_page.is_stale(root, page):
            advice = "`make spec` writes it anew; look at the difference, then commit it."
            self.complaints.append(f"spec/coverage.md is not what this run found. {advice}")
        if self.complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        """Prints the sentences of the clauses that failed, and the complaints."""
        failures = [result for result in self.results.values() if result.outcome == "failed"]
        failed = sorted({id_ for result in failures for id_ in result.clauses})
        if failed:
            terminalreporter.section("clauses that failed", red=True)
            clauses = chapters.clauses()
            for id_ in failed:
                terminalreporter.write_line(f"{id_}: {clauses[id_].sentence}" if id_ in clauses else id_)
        if self.complaints:
            terminalreporter.section("the specification", red=True)
            for complaint in self.complaints:
                terminalreporter.write_line(complaint)
