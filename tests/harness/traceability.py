"""A pytest plugin: which clauses each test checks, what happened, and what is missing when a complete run is over.

Every report carries its test's clauses, evidence and result to the process that started the run, which knows the whole when the run is over.
A complete run that leaves a clause untested, or a lock or a page out of date, fails, and says what to do. A run of a part (``-k``, a file,
``-x``) is not held to that.
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
    parser.addoption("--spec-record", metavar="FILE", help="write what the run found about each clause as JSON; spec/coverage.md is then not checked")


def pytest_configure(config):
    config.addinivalue_line("markers", "clause(*ids): the clauses of the specification that a test checks")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Bookkeeper(config), "quantspec-bookkeeper")


def clause_ids(item) -> tuple[str, ...]:
    """The ids that a test names, in order."""
    return tuple(dict.fromkeys(id_ for mark in item.iter_markers("clause") for id_ in mark.args))


def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties.append(("clauses", list(clause_ids(item))))
        if example := getattr(item, "example", None):
            item.user_properties.append(("block", [Path(example.path).name, example.line]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    evidence.taken()
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
    item.user_properties.append(("noted", sorted(evidence.taken())))
    item.user_properties.extend(counts.items())
    return result


def is_complete(config) -> bool:
    """Whether the run is of the whole suite, so that what is missing is missing."""
    options = config.option
    chosen = options.keyword or options.markexpr or options.deselect or options.collectonly or getattr(options, "lf", False)
    paths = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return paths and not chosen and not os.environ.get("QUANTSPEC_SUBSET")


class Bookkeeper:
    """Gathers the reports of a run in the process that started it, and closes the account when the run is over."""

    def __init__(self, config):
        self.config = config
        self.ran: dict[str, account.Ran] = {}
        self.complaints: list[str] = []

    def pytest_runtest_logreport(self, report):
        known = dict(report.user_properties)
        if report.when == "call" or not report.passed:
            clauses = tuple(known.get("clauses", ()))
            block = tuple(known["block"]) if "block" in known else None
            facts = (tuple(known.get("noted", ())), known.get("examples", 0), known.get("filtered", 0))
            self.ran[report.nodeid] = account.Ran(report.nodeid, clauses, report.outcome, *facts, block)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if not is_complete(self.config) or session.shouldfail or session.shouldstop or session.testsfailed and not self.ran:
            return
        ran, root = list(self.ran.values()), self.config.rootpath
        lock = account.read_lock(chapters.directory() / "clauses.lock")
        self.complaints = account.complaints(ran, lock)
        page = coverage_page.render(coverage_page.rows(ran, coverage_page.read_faults(root)))
        if record := self.config.option.spec_record:
            Path(record).parent.mkdir(parents=True, exist_ok=True)
            Path(record).write_text(json.dumps({"ran": [vars(r) for r in ran], "complaints": self.complaints}))
        elif not self.complaints and not session.testsfailed and coverage_page.is_stale(root, page):
            self.complaints.append("spec/coverage.md is not what this run found. `make spec` writes it anew; look at the difference, then commit it.")
        if self.complaints and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        failed = sorted({id_ for ran in self.ran.values() if ran.outcome == "failed" for id_ in ran.clauses})
        if failed:
            terminalreporter.section("clauses that failed", red=True)
            known = chapters.clauses()
            for id_ in failed:
                terminalreporter.write_line(f"{id_}: {known[id_].sentence}" if id_ in known else id_)
        if self.complaints:
            terminalreporter.section("the specification", red=True)
            for complaint in self.complaints:
                terminalreporter.write_line(complaint)
