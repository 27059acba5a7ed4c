"""What happens in a forked child: one fault is put into its module, and the tests of its clauses run against it.

The child inherits everything slow to import. It does not inherit quantspec, which it imports itself, with the fault in
it.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from faults.fault import ROOT, Fault

ARGUMENTS = ["-q", "--tb=short", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
# pytest would rewrite Hypothesis's plugin, which the parent has imported already; it asserts nothing of ours.
ARGUMENTS += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from other source than its file has, and caches nothing."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.source = source

    def get_source(self, fullname):
        """The other source."""
        return self.source

    def get_code(self, fullname):
        """The other source, compiled."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module with the fault in it, and leaves all others to whoever finds them."""

    def __init__(self, fault: Fault):
        self.name, self.path, self.source = f"quantspec.{fault.module}", str(fault.path), fault.patched()

    def find_spec(self, fullname, path=None, target=None):
        """The module with the fault, None for others."""
        if fullname != self.name:
            return None
        loader = Loader(fullname, self.path, self.source)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


def install(fault: Fault) -> None:
    """Makes this process see the fault: its module as imported, or its chapter as read."""
    if not fault.is_text:
        sys.meta_path.insert(0, Finder(fault))
        return
    whole, text, target = Path.read_text, fault.patched(), fault.path

    def read_text(self, *args, **kwargs):
        return text if self.resolve() == target else whole(self, *args, **kwargs)

    Path.read_text = read_text


def named(item) -> set[str]:
    """The clauses that a test names."""
    return {id_ for mark in item.iter_markers("clause") for id_ in mark.args}


class Survey:
    """A pytest plugin: which tests name which clauses, how long each takes, and which fail."""

    def __init__(self, clauses: Iterable[str]):
        self.wanted, self.tests, self.failed = set(clauses), {}, []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Leaves only tests that name a wanted clause."""
        items[:] = [item for item in items if named(item) & self.wanted]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Adds up the time of a test's phases, and notes whether one failed."""
        report = yield
        new = {"clauses": sorted(named(item)), "file": str(item.path), "seconds": 0.0}
        self.tests.setdefault(item.nodeid, new)["seconds"] += report.duration
        if report.failed:
            self.failed.append(item.nodeid)
        return report


class Attack:
    """A pytest plugin: only tests of the given clauses, and no more of a clause that has rejected the fault.

    The quick tests come first. ``killed``: for each clause that rejected the fault the test that did. ``no_answer``:
    the first test that failed without telling right from wrong. It is passed over, so that what becomes of a fault does
    not depend on which test happens to come first.
    """

    def __init__(self, clauses: Iterable[str], seconds: Mapping[str, float]):
        self.open, self.seconds = set(clauses), seconds
        self.killed: dict[str, str] = {}
        self.no_answer = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Leaves only tests that name one of the clauses, the quick ones first."""
        wanted = [item for item in items if named(item) & self.open]
        items[:] = sorted(wanted, key=lambda item: self.seconds.get(item.nodeid, 0.0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        """Skips a test whose clauses have all rejected the fault."""
        if not named(item) & self.open:
            pytest.skip("nothing is left to be found out")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Notes which clauses a failing test rejects the fault by."""
        report = yield
        # A misspelt name, or a warning where a kernel would be silent, fails whatever the test checks.
        # So does what cannot be set up.
        if report.failed and (report.when != "call" or call.excinfo.errisinstance((NameError, Warning))):
            self.no_answer = self.no_answer or f"{item.nodeid}: {call.excinfo.exconly().splitlines()[0]}"
        elif report.failed:
            for id_ in named(item) & self.open:
                self.killed[id_] = item.nodeid
            self.open -= named(item)
        return report


def run_pytest(plugin, files: Iterable[str]) -> int:
    """pytest's exit code for some files, in this process."""
    os.chdir(ROOT)
    os.environ |= {"QUANTSPEC_SUBSET": "1", "HYPOTHESIS_PROFILE": "faults", "COLUMNS": "160"}
    sys.path.insert(0, str(ROOT / "impl"))
    return int(pytest.main([*ARGUMENTS, *files], plugins=[plugin]))


def redirect(log: Path) -> None:
    """All output of this process goes into a file, and killing its group kills what it started."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)


def survey(files: list[str], clauses: list[str] | None, result: Path, log: Path) -> None:
    """Runs the tests of some files (those of ``clauses``, or all) without any fault.

    Writes what they were, and each clause's chapter, into ``result`` as JSON.
    """
    redirect(log)
    sys.path.insert(0, str(ROOT / "impl"))
    from quantspec import chapters

    chapter_of = {id_: clause.chapter for id_, clause in chapters.clauses().items()}
    plugin = Survey(chapter_of if clauses is None else clauses)
    code = run_pytest(plugin, files)
    facts = {"code": code, "tests": plugin.tests, "failed": plugin.failed, "chapters": chapter_of}
    result.write_text(json.dumps(facts))


def attack(fault: Fault, files: list[str], seconds: Mapping[str, float], result: Path, log: Path) -> None:
    """Runs the tests of the fault's clauses against it, and writes what they found into ``result`` as JSON."""
    redirect(log)
    print(f"{fault.name}: {fault.why}\n", flush=True)
    if fault.module.startswith("kernels."):
        # What others stored has no fault, and they shall not get what has one.
        os.environ["QUANTSPEC_KERNELS"] = str(result.parent / f"{result.stem}-kernels")
    install(fault)
    plugin = Attack(fault.clauses, seconds)
    code = run_pytest(plugin, files)
    ended = "" if code in (0, 1) else f"pytest ended with exit code {code} before the tests of its clauses ran"
    broken = ended or (plugin.no_answer if plugin.open else "")
    result.write_text(json.dumps({"killed": plugin.killed, "broken": broken}))
