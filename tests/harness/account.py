"""The account of a complete run: its results, held against the chapters and ``spec/clauses.lock``.

The lock has every clause id ever issued, with the hash of its sentence and the tests that were read against that
sentence. It grows, and never shrinks. ``make review CLAUSE=...`` writes it (``review.py``).
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
LOCK_COMMENT = (
    "# Every clause id ever issued: the hash of its sentence, and the tests that were read against it. "
    "`make review` writes this file."
)


@dataclass(frozen=True)
class Result:
    """What happened to one test.

    ``noted``: what it enumerates (``evidence.note``). ``examples`` counts what Hypothesis drew, ``filtered`` what the
    test turned down of that. ``block``: (chapter file, line) where the test is a block of a chapter.
    """

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
    lines = [LOCK_COMMENT, "", "[examples]"]
    lines += [f"{stem} = {count}" for stem, count in lock.examples.items()]
    for id_, entry in lock.clauses.items():
        lines += ["", f"[{id_}]", f'sentence = "{entry.sentence}"']
        if entry.withdrawn:
            lines.append(f"withdrawn = {json.dumps(entry.withdrawn)}")  # a JSON string is a TOML string
        lines += ["tests = [", *(f'    "{test}",' for test in entry.tests), "]"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def must_name_a_clause(nodeid: str) -> bool:
    """Tests of the specification do, which are those in tests/chapters/. Tests in other folders may."""
    return re.match(r"tests/chapters/[^/]+\.py::", nodeid) is not None


def by_clause(results: Iterable[Result]) -> dict[str, list[Result]]:
    """The results of each clause of the chapters, in order, and of each other id that a test names."""
    tests: dict[str, list[Result]] = {id_: [] for id_ in chapters.clauses()}
    for result in results:
        for id_ in result.clauses:
            tests.setdefault(id_, []).append(result)
    return tests


def complaints(results: list[Result], lock: Lock) -> list[str]:
    """What is wrong, a line each, in the order in which to mend it."""
    lines = unknown_clauses(results) + untraced(results) + untested(results) + blocks_that_did_not_run(results)
    return lines + lock_against_chapters(lock) + lock_against_tests(lock, results) + filtered_away(results)


def unknown_clauses(results: list[Result]) -> list[str]:
    """Tests that name what no chapter has."""
    clauses, lines = chapters.clauses(), []
    for id_ in sorted({id_ for result in results for id_ in result.clauses} - set(clauses)):
        tests = ", ".join(sorted({result.test for result in results if id_ in result.clauses}))
        near = difflib.get_close_matches(id_, clauses, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        lines.append(f"{id_}: no chapter has this clause{meant}, but {tests} names it.")
    return lines


def untraced(results: list[Result]) -> list[str]:
    """Tests of the specification that name no clause."""
    tests = dict.fromkeys(
        result.test for result in results if must_name_a_clause(result.nodeid) and not result.clauses
    )
    advice = "Say with @clause(...) which sentence of the specification it checks."
    return [f"{test}: names no clause. {advice}" for test in tests]


def untested(results: list[Result]) -> list[str]:
    """Clauses without a test that ran and passed."""
    clauses, lines = chapters.clauses(), []
    for id_, tests in by_clause(results).items():
        if id_ in clauses and not any(result.outcome == "passed" for result in tests):
            happened = ", ".join(f"{result.nodeid} {result.outcome}" for result in tests[:3])
            lines.append(f"{id_}: no test of it ran and passed ({happened or 'there is none'}).")
    return lines


def blocks_that_did_not_run(results: list[Result]) -> list[str]:
    """Blocks of the chapters that nothing executed."""
    executed, lines = {result.block for result in results if result.outcome != "skipped"}, []
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        for block in chapter.blocks:
            if (chapter.path.name, block.line - 1) not in executed:
                where = f"spec/{chapter.path.name}:{block.line}"
                clause = block.clause or "no clause"
                lines.append(f"{where}: this {block.language} block was not run (under {clause}).")
    return lines


def lock_against_chapters(lock: Lock) -> list[str]:
    """Sentences that changed, ids that came or went, examples that vanished."""
    clauses, lines = chapters.clauses(), []
    for id_, entry in lock.clauses.items():
        if id_ not in clauses and not entry.withdrawn:
            put_back = f'put it back, or `make review CLAUSE={id_} WITHDRAW="why"`'
            lines.append(f"{id_}: the clause is gone from its chapter. Ids are permanent: {put_back}.")
        elif id_ in clauses and entry.withdrawn:
            reason = f"this id was withdrawn ({entry.withdrawn}) and must not be used again"
            lines.append(f"{id_}: {reason}. Give the clause another one.")
        elif id_ in clauses and clauses[id_].digest != entry.sentence:
            advice = f"Read them again ({', '.join(entry.tests)}), then `make review CLAUSE={id_}`."
            lines.append(f"{id_}: its sentence changed since its tests were read against it. {advice}")
    for id_ in clauses:
        if id_ not in lock.clauses:
            lines.append(f"{id_}: a new clause. `make review CLAUSE={id_}` issues its id for good.")
    for stem in chapters.stems():
        now, before = chapters.chapter(stem).examples, lock.examples.get(stem, 0)
        if now != before:
            advice = f"If that is meant, `make review EXAMPLES={stem}`."
            lines.append(f"chapter {stem}: it had {before} examples and has {now}. {advice}")
    return lines


def lock_against_tests(lock: Lock, results: list[Result]) -> list[str]:
    """Tests that came or went since the clause was reviewed."""
    clauses, lines = chapters.clauses(), []
    for id_, tests in by_clause(results).items():
        if id_ in clauses and id_ in lock.clauses:
            now, before = {result.test for result in tests}, set(lock.clauses[id_].tests)
            changes = [f"{test} is gone" for test in sorted(before - now)]
            changes += [f"{test} is new" for test in sorted(now - before)]
            if changes:
                advice = f"If that is meant, `make review CLAUSE={id_}`."
                lines.append(f"{id_}: its tests are not those that were reviewed: {', '.join(changes)}. {advice}")
    return lines


def filtered_away(results: list[Result]) -> list[str]:
    """Tests that turn down so much of what is drawn that they check less than they seem to."""
    advice = "Draw what it needs instead of assuming it."
    return [
        f"{result.nodeid}: turns down {result.filtered} of {result.examples} drawn examples. {advice}"
        for result in results
        if result.filtered > MOST_FILTERED * result.examples
    ]
