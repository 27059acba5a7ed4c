"""The account of a complete run: what ran, held against the chapters and ``spec/clauses.lock``.

The lock has every clause id ever issued, with the hash of its sentence and the tests that were read against that sentence. It grows, and
never shrinks. ``make review CLAUSE=...`` writes it (``review.py``).
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from quantspec import chapters

# Of all examples that Hypothesis draws for a test, the share that the test may turn down with `assume`.
MOST_FILTERED = 0.25


@dataclass(frozen=True)
class Ran:
    """What happened to one test. ``examples`` and ``filtered`` count what Hypothesis drew; ``block`` is (chapter file, line) of an example."""

    nodeid: str
    clauses: tuple[str, ...]
    outcome: str
    noted: tuple[str, ...] = ()
    examples: int = 0
    filtered: int = 0
    block: tuple[str, int] | None = None

    @property
    def test(self) -> str:
        """The test's function, whatever its parameters."""
        return self.nodeid.split("[")[0]


@dataclass
class Entry:
    """One clause in the lock. ``withdrawn``: why the specification no longer has it, empty while it does."""

    sentence: str
    tests: list[str] = field(default_factory=list)
    withdrawn: str = ""


@dataclass
class Lock:
    """The lock file: clauses by id in the order they were issued, and the number of examples of each chapter."""

    clauses: dict[str, Entry]
    examples: dict[str, int]


def read_lock(path: Path) -> Lock:
    """The lock; an empty one where there is no file. Raises ValueError naming the file when it is broken."""
    if not path.exists():
        return Lock({}, {})
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        examples = data.pop("examples", {})
        return Lock({id_: Entry(**entry) for id_, entry in data.items()}, examples)
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_lock(path: Path, lock: Lock) -> None:
    """Writes the lock as TOML."""
    lines = ["# Every clause id ever issued: the hash of its sentence, and the tests that were read against it. `make review` writes this file.", "", "[examples]"]
    lines += [f"{stem} = {count}" for stem, count in lock.examples.items()]
    for id_, entry in lock.clauses.items():
        lines += ["", f"[{id_}]", f'sentence = "{entry.sentence}"']
        if entry.withdrawn:
            lines.append(f"withdrawn = {json.dumps(entry.withdrawn)}")  # a JSON string is a TOML string
        lines += ["tests = [", *(f'    "{test}",' for test in entry.tests), "]"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def must_name_a_clause(nodeid: str) -> bool:
    """Tests of the specification do, which are those in tests/chapters/; tests of the suite and of the tutorial's program lie in folders there."""
    return re.match(r"tests/chapters/[^/]+\.py::", nodeid) is not None


def by_clause(ran: Iterable[Ran]) -> dict[str, list[Ran]]:
    """The tests of each clause of the chapters, in order."""
    found: dict[str, list[Ran]] = {id_: [] for id_ in chapters.clauses()}
    for one in ran:
        for id_ in one.clauses:
            found.setdefault(id_, []).append(one)
    return found


def complaints(ran: list[Ran], lock: Lock) -> list[str]:
    """What is wrong, a line each, in the order in which to mend it."""
    found = unknown_clauses(ran) + untraced(ran) + untested(ran) + blocks_that_did_not_run(ran)
    return found + lock_against_chapters(lock) + lock_against_tests(lock, ran) + filtered_away(ran)


def unknown_clauses(ran: list[Ran]) -> list[str]:
    """Tests that name what no chapter has."""
    known, lines = chapters.clauses(), []
    for id_ in sorted({id_ for one in ran for id_ in one.clauses} - set(known)):
        tests = sorted({one.test for one in ran if id_ in one.clauses})
        near = difflib.get_close_matches(id_, known, 1)
        lines.append(f"{id_}: no chapter has this clause{f' (did you mean {near[0]}?)' if near else ''}, but {', '.join(tests)} names it.")
    return lines


def untraced(ran: list[Ran]) -> list[str]:
    """Tests of the specification that name no clause."""
    tests = dict.fromkeys(one.test for one in ran if must_name_a_clause(one.nodeid) and not one.clauses)
    return [f"{test}: names no clause. Say with @clause(...) which sentence of the specification it checks." for test in tests]


def untested(ran: list[Ran]) -> list[str]:
    """Clauses without a test that ran and passed."""
    lines = []
    for id_, tests in by_clause(ran).items():
        if id_ in chapters.clauses() and not any(one.outcome == "passed" for one in tests):
            happened = ", ".join(f"{one.nodeid} {one.outcome}" for one in tests[:3])
            lines.append(f"{id_}: no test of it ran and passed ({happened or 'there is none'}).")
    return lines


def blocks_that_did_not_run(ran: list[Ran]) -> list[str]:
    """Blocks of the chapters that nothing executed."""
    executed, lines = {one.block for one in ran if one.outcome != "skipped"}, []
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        for block in chapter.blocks:
            if (chapter.path.name, block.line - 1) not in executed:
                lines.append(f"spec/{chapter.path.name}:{block.line}: this {block.language} block was not run (under {block.clause or 'no clause'}).")
    return lines


def lock_against_chapters(lock: Lock) -> list[str]:
    """Sentences that changed, ids that came or went, examples that vanished."""
    known, lines = chapters.clauses(), []
    for id_, entry in lock.clauses.items():
        if id_ not in known and not entry.withdrawn:
            lines.append(
                f'{id_}: the clause is gone from its chapter. Ids are permanent: put it back, or `make review CLAUSE={id_} WITHDRAW="why"`.'
            )
        elif id_ in known and entry.withdrawn:
            lines.append(f"{id_}: this id was withdrawn ({entry.withdrawn}) and must not be used again. Give the clause another one.")
        elif id_ in known and known[id_].digest != entry.sentence:
            tests = ", ".join(entry.tests)
            lines.append(f"{id_}: its sentence changed since its tests were read against it. Read them again ({tests}), then `make review CLAUSE={id_}`.")
    for id_ in known:
        if id_ not in lock.clauses:
            lines.append(f"{id_}: a new clause. `make review CLAUSE={id_}` issues its id for good.")
    for stem in chapters.stems():
        now, before = chapters.chapter(stem).examples, lock.examples.get(stem, 0)
        if now != before:
            lines.append(f"chapter {stem}: it had {before} examples and has {now}. If that is meant, `make review EXAMPLES={stem}`.")
    return lines


def lock_against_tests(lock: Lock, ran: list[Ran]) -> list[str]:
    """Tests that came or went since the clause was reviewed."""
    known, lines = chapters.clauses(), []
    for id_, tests in by_clause(ran).items():
        if id_ in known and id_ in lock.clauses:
            now, before = {one.test for one in tests}, set(lock.clauses[id_].tests)
            changes = [f"{test} is gone" for test in sorted(before - now)] + [f"{test} is new" for test in sorted(now - before)]
            if changes:
                lines.append(f"{id_}: its tests are not those that were reviewed: {', '.join(changes)}. If that is meant, `make review CLAUSE={id_}`.")
    return lines


def filtered_away(ran: list[Ran]) -> list[str]:
    """Tests that turn down so much of what is drawn that they check less than they seem to."""
    return [
        f"{one.nodeid}: turns down {one.filtered} of {one.examples} drawn examples. Draw what it needs instead of assuming it."
        for one in ran
        if one.filtered > MOST_FILTERED * one.examples
    ]
