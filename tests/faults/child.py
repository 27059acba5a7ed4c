"""What happens in a forked child: one fault is put into its module, and the tests of its clauses run against it.

The child inherits everything slow to import. It does not inherit quantspec, which it imports itself, with the fault in it.
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

# pytest would rewrite hypothesis's own plugin, but the parent has imported it already; nothing in there asserts anything of ours.
ARGUMENTS = ["-q", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "--rootdir", str(ROOT)]


class Loader(importlib.machinery.SourceFileLoader):
    """Loads a module from other source than its file has, and caches nothing."""

    def __init__(self, name: str, path: str, source: str):
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname):
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module with the fault in it, and leaves all others to whoever finds them."""

    def __init__(self, fault: Fault):
        self.name, self.path, self.source = f"quantspec.{fault.module}", str(fault.path), fault.patched()

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=Loader(fullname, self.path, self.source))


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
        items[:] = [item for item in items if named(item) & self.wanted]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        test = self.tests.setdefault(item.nodeid, {"clauses": sorted(named(item)), "file": str(item.path), "seconds": 0.0})
        test["seconds"] += report.duration
        if report.failed:
            self.failed.append(item.nodeid)
        return report


class Attack:
    """A pytest plugin: only tests of the given clauses, the quick ones first, and no more of a clause that has rejected the fault.

    ``killed``: for each clause that rejected it the test that did. ``broken``: why the fault is none.
    """

    def __init__(self, clauses: Iterable[str], seconds: Mapping[str, float]):
        self.open, self.seconds = set(clauses), seconds
        self.killed: dict[str, str] = {}
        self.broken = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((item for item in items if named(item) & self.open), key=lambda item: self.seconds.get(item.nodeid, 0.0))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item):
        if self.broken or not named(item) & self.open:
            pytest.skip("nothing is left to be found out")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if report.failed and report.when != "call":
            self.broken = f"{item.nodeid} could not be set up: {call.excinfo.exconly()}"
        elif report.failed and call.excinfo.errisinstance((NameError, Warning)):
            # A misspelt name, or a warning where a kernel would be silent, fails whatever the test checks.
            self.broken = f"{item.nodeid}: {call.excinfo.exconly()}"
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
    """The tests of some files without any fault (those of ``clauses``, or all), and the clauses that there are, into ``result`` as JSON."""
    redirect(log)
    sys.path.insert(0, str(ROOT / "impl"))
    from quantspec import chapters

    known = {id_: clause.chapter for id_, clause in chapters.clauses().items()}
    plugin = Survey(known if clauses is None else clauses)
    code = run_pytest(plugin, files)
    result.write_text(json.dumps({"code": code, "tests": plugin.tests, "failed": plugin.failed, "chapters": known}))


def attack(fault: Fault, files: list[str], seconds: Mapping[str, float], result: Path, log: Path) -> None:
    """The tests of the fault's clauses against it, into ``result`` as JSON."""
    redirect(log)
    print(f"{fault.name}: {fault.why}\n", flush=True)
    install(fault)
    plugin = Attack(fault.clauses, seconds)
    code = run_pytest(plugin, files)
    if code not in (0, 1):
        plugin.broken = plugin.broken or f"pytest ended with exit code {code} before the tests of its clauses ran"
    result.write_text(json.dumps({"killed": plugin.killed, "broken": plugin.broken}))
