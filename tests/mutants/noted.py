"""What a test calls where mutmut does not look: in other processes, and in fixtures that serve several tests.

mutmut tries a mutant on the tests that called its function, and notes what a test calls in the process that runs it.
Backends answer in processes of their own, and a fixture of a module is made during the first of its tests alone; so
mutants of either would be tried on a test or two, or on none. This file is copied into the mutated package, which
imports it last: what any process that imports the package calls goes into a file beside it. The copied conftest.py has
its hooks, which add to mutmut's notes what stands in that file after each test, and what the test's fixtures called
whenever they were made.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mutmut.mutation import trampoline
from mutmut.state import state
from pluggy import HookimplMarker

LOG = Path(__file__).with_name("noted.log")
STATISTICS = "stats"  # what mutmut has in MUTANT_UNDER_TEST while it notes
here = trampoline.record_trampoline_hit
hook = HookimplMarker("pytest")
of_fixtures: dict[Any, set[str]] = {}
tests = 0  # the number of the process that runs tests
read = 0  # how much of the file was read


def note(name: str, caller: str | None = None) -> None:
    """Notes that a function was called."""
    if os.getpid() == tests:
        here(name, caller=caller)
    else:
        # Opened each time: backends that do damage write to every file that is open.
        with LOG.open("ab", buffering=0) as file:
            file.write(f"{name}\n".encode())


trampoline.record_trampoline_hit = note


def elsewhere() -> set[str]:
    """What other processes have called since this was asked before."""
    global read
    if not LOG.exists():
        return set()
    with LOG.open("rb") as file:
        file.seek(read)
        said = file.read()
    whole = said[: said.rfind(b"\n") + 1]
    read += len(whole)
    return set(whole.decode().split())


def notes() -> bool:
    """Whether mutmut notes what tests call."""
    return os.environ.get("MUTANT_UNDER_TEST") == STATISTICS


@hook(tryfirst=True)
def pytest_sessionstart() -> None:
    global tests
    tests = os.getpid()


@hook(wrapper=True)
def pytest_fixture_setup(fixturedef: Any) -> Iterator[None]:
    if fixturedef.scope == "function" or not notes():
        return (yield)
    before, hits = set(state()._stats), state()._stats
    hits.clear()
    try:
        return (yield)
    finally:
        of_fixtures.setdefault(fixturedef, set()).update(hits, elsewhere())
        hits |= before


@hook(wrapper=True, specname="pytest_runtest_setup")  # conftest.py has one by that name
def pytest_runtest_setup_noted(item: Any) -> Iterator[None]:
    result = yield
    if notes():
        for definitions in getattr(item, "_fixtureinfo", item).name2fixturedefs.values():
            state()._stats.update(*(of_fixtures.get(each, ()) for each in definitions))
    return result


@hook(tryfirst=True)
def pytest_runtest_teardown() -> None:
    if notes():
        state()._stats.update(elsewhere())
