"""``make spec``: what each clause is checked by, as a table on the terminal and as ``spec/coverage.md``.

Run with the record of a complete run (``pytest --spec-record FILE``): ``python tests/harness/coverage_page.py FILE``.
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import evidence
from account import Ran, by_clause, must_name_a_clause
from quantspec import chapters

PAGE = "spec/coverage.md"


@dataclass(frozen=True)
class Row:
    """One clause: its tests, how many of them passed, what they went through, and the faults they reject."""

    id: str
    tests: int
    passed: int
    evidence: str
    faults: tuple[str, ...]


def rows(ran: Iterable[Ran], faults: dict[str, list[str]]) -> list[Row]:
    """A row for each clause of the chapters, in reading order."""
    known, made = chapters.clauses(), []
    for id_, tests in by_clause(ran).items():
        if id_ in known:
            noted = {what for one in tests for what in one.noted}
            drawn = sum(one.examples - one.filtered for one in tests)
            passed = {one.test for one in tests if one.outcome == "passed"}
            made.append(Row(id_, len({one.test for one in tests}), len(passed), evidence.strength(noted, drawn), tuple(faults.get(id_, ()))))
    return made


def read_faults(root: Path) -> dict[str, list[str]]:
    """The faults that each clause's tests reject, as `make faults` recorded them."""
    path = root / "spec/results/faults.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def render(found: list[Row]) -> str:
    """The page ``spec/coverage.md``."""
    by_id = {row.id: row for row in found}
    lines = [
        "# What each clause is checked by",
        "",
        "Written by `make spec` from a run of the suite; `make test` fails when it is out of date. *Evidence* is what the clause's tests did: went",
        "through all codes, or all codes and zero points; drew so many examples; or checked single examples. *Faults* are the deliberately wrong",
        "implementations that its tests reject (`make faults`).",
    ]
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        lines += ["", f"## [{chapter.title}]({chapter.path.name})", "", "| clause | tests | evidence | faults |", "|---|---|---|---|"]
        for clause in chapter.clauses:
            row = by_id[clause.id]
            lines.append(f"| {clause.id} · {clause.title} | {row.tests} | {row.evidence} | {', '.join(row.faults)} |")
    return "\n".join(lines) + "\n"


def is_stale(root: Path, page: str) -> bool:
    """Whether the page in the repository says something else than ``page``.

    How many examples were drawn is left out: it follows the profile, and which engines this build of torch has.
    """
    path = root / PAGE

    def settled(text: str) -> str:
        return re.sub(r"sampled [\d,]+", "sampled", text)

    return not path.exists() or settled(path.read_text(encoding="utf-8")) != settled(page)


def table(found: list[Row], ran: list[Ran]) -> Table:
    """A line for each chapter; the last three columns count its clauses by the strongest evidence."""
    made = Table(title="the specification", title_justify="left")
    made.add_column("chapter", no_wrap=True)
    for column in ("clauses", "tests", "examples\nrun", "faults\nkilled", "all\ncodes", "drawn", "single\ncases"):
        made.add_column(column, justify="right")
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        ids = {clause.id for clause in chapter.clauses}
        mine = [row for row in found if row.id in ids]
        tests = {one.test for one in ran if ids & set(one.clauses)}
        faults = {name for row in mine for name in row.faults}
        kinds = [sum(row.evidence.startswith(kind) for row in mine) for kind in ("exhaustive", "sampled", "example")]
        made.add_row(chapter.path.stem, *map(str, (len(ids), len(tests), examples_run(stem, ran), len(faults), *kinds)))
    return made


def examples_run(stem: str, ran: list[Ran]) -> int:
    """How many of a chapter's examples ran and passed."""
    chapter = chapters.chapter(stem)
    passed = {one.block for one in ran if one.block and one.outcome == "passed"}
    return sum(block.examples for block in chapter.blocks if (chapter.path.name, block.line - 1) in passed)


def main(record: str) -> int:
    """Prints the table, writes the page, and ends with the line that says all; the exit code is 1 unless everything is in order."""
    data, root = json.loads(Path(record).read_text()), Path(__file__).parents[2]
    ran = [Ran(**{k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}) for one in data["ran"]]
    found = rows(ran, read_faults(root))
    (root / PAGE).write_text(render(found), encoding="utf-8")
    console = Console()
    console.print(table(found, ran))
    for complaint in data["complaints"]:
        console.print(complaint, markup=False, highlight=False)
    untested = sum(row.passed == 0 for row in found)
    untraced = len({one.test for one in ran if must_name_a_clause(one.nodeid) and not one.clauses})
    failed = sum(one.outcome == "failed" for one in ran)
    examples = sum(examples_run(stem, ran) for stem in chapters.stems())
    print(f"spec: {len(found)} clauses, {untested} untested, {untraced} untraced, {examples} examples, {failed} failed")
    return int(bool(untested or untraced or failed or data["complaints"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
