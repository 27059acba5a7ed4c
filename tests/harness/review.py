"""``make review``: records in ``spec/clauses.lock`` that a clause's tests were read against its sentence as it is now.

``python tests/harness/review.py AFF-TIES 'OBS-*' [--withdraw WHY] [--examples STEM ...]``. A pattern may stand for
several ids.
"""

import argparse
import contextlib
import fnmatch
import io
import sys
from pathlib import Path

import pytest

from account import Entry, Lock, read_lock, write_lock
from quantspec import chapters


class Tests:
    """A pytest plugin: the tests of each clause, by collecting the suite."""

    def __init__(self):
        self.tests: dict[str, list[str]] = {}

    def pytest_collection_finish(self, session):
        """Reads the clauses that ``traceability`` gave each test."""
        for item in session.items:
            for id_ in dict(item.user_properties).get("clauses", ()):
                test = item.nodeid.split("[")[0]
                if test not in self.tests.setdefault(id_, []):
                    self.tests[id_].append(test)


def collected() -> dict[str, list[str]]:
    """The tests of each clause; exits with pytest's own message when the suite cannot be collected."""
    plugin, printed = Tests(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = pytest.main(["--collect-only", "-q", "-p", "no:xdist"], plugins=[plugin])
    if code != pytest.ExitCode.OK:
        sys.exit(f"review: the suite cannot be collected\n{printed.getvalue()}")
    return plugin.tests


def review(
    lock: Lock, patterns: list[str], tests: dict[str, list[str]], withdraw: str, examples: list[str]
) -> list[str]:
    """Changes the lock, and gives a line for what was recorded of each clause and chapter.

    Raises ValueError for what neither the chapters nor the lock have.
    """
    clauses, records = chapters.clauses(), []
    issued = [*clauses, *(id_ for id_ in lock.clauses if id_ not in clauses)]
    for pattern in patterns:
        ids = fnmatch.filter(issued, pattern)
        if not ids:
            raise ValueError(f"CLAUSE: neither the chapters nor the lock have {pattern}")
        for id_ in ids:
            records.append(review_clause(lock, id_, tests.get(id_, []), withdraw))
    for stem in examples:
        lock.examples[stem] = chapters.chapter(stem).examples
        records.append(f"chapter {stem}: {lock.examples[stem]} examples")
    return records


def review_clause(lock: Lock, id_: str, tests: list[str], withdraw: str) -> str:
    """Records one clause, and gives its record in words."""
    clause = chapters.clauses().get(id_)
    entry = lock.clauses.get(id_)
    if entry and entry.withdrawn:
        raise ValueError(f"CLAUSE: {id_} was withdrawn ({entry.withdrawn}) and cannot come back")
    if clause is None:
        if not withdraw:
            raise ValueError(f'CLAUSE: {id_} is gone from its chapter; say why with WITHDRAW="..."')
        entry.withdrawn, entry.tests = withdraw, []
        return f"{id_}: withdrawn: {withdraw}"
    if withdraw:
        raise ValueError(f"WITHDRAW: {id_} still stands in chapter {clause.chapter}; remove it there first")
    if not tests:
        raise ValueError(f"CLAUSE: {id_} has no test to be reviewed")
    lock.clauses[id_] = Entry(clause.digest, sorted(tests))
    return "\n".join([f"{id_}: {clause.sentence}", *(f"    {test}" for test in lock.clauses[id_].tests)])


def main(arguments: list[str] | None = None) -> int:
    """The command; exit code 2 with one line for bad input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clauses", nargs="*")
    parser.add_argument("--withdraw", default="")
    parser.add_argument("--examples", nargs="*", default=[])
    options = parser.parse_args(arguments)
    path = chapters.directory() / "clauses.lock"
    lock = read_lock(path)
    try:
        if not options.clauses and not options.examples:
            raise ValueError("CLAUSE: which one? For example: make review CLAUSE=AFF-TIES, or EXAMPLES=affine")
        tests = collected() if options.clauses else {}
        records = review(lock, options.clauses, tests, options.withdraw, options.examples)
    except ValueError as error:
        print(f"review: {error}", file=sys.stderr)
        return 2
    write_lock(path, lock)
    print("\n".join(records))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
