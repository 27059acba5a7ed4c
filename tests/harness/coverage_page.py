"""``make spec``: what each clause is checked by, as a table on the terminal and as ``spec/coverage.md``.

Run with the record of a complete run (``pytest --spec-record FILE``): ``python tests/harness/coverage_page.py FILE``.
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import evidence
from account import Result, by_clause, must_name_a_clause
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


def clause_rows(results: Iterable[Result], faults: dict[str, list[str]]) -> list[Row]:
    """A row for each clause of the chapters, in reading order."""
    clauses, rows = chapters.clauses(), []
    for id_, tests in by_clause(results).items():
        if id_ in clauses:
            noted = {what for result in tests for what in result.noted}
            drawn = sum(result.examples - result.filtered for result in tests)
            strength = evidence.strength(noted, drawn)
            passed = {result.test for result in tests if result.outcome == "passed"}
            names = {result.test for result in tests}
            rows.append(Row(id_, len(names), len(passed), strength, tuple(faults.get(id_, ()))))
    return rows


def read_faults(root: Path) -> dict[str, list[str]]:
    """The faults that each clause's tests reject, as `make faults` recorded them."""
    path = root / "spec/results/faults.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def render(rows: list[Row]) -> str:
    """The page ``spec/coverage.md``."""
    by_id = {row.id: row for row in rows}
    lines = [
        "# How each clause is checked",
        "",
        "Written by `make spec` from a run of the suite; `make test` fails when it is out of date. *Evidence* is what",
        "the clause's tests went through: all codes, all codes and zero points, a number of random examples, or",
        "single examples. *Faults* are deliberately wrong implementations that its tests reject (`make faults`).",
    ]
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        lines += ["", f"## [{chapter.title}]({chapter.path.name})", ""]
        lines += ["| clause | tests | evidence | faults |", "|---|--:|---|---|"]
        for clause in chapter.clauses:
            row = by_id[clause.id]
            faults = ", ".join(row.faults)
            lines.append(f"| {clause.id} · {clause.title} | {row.tests} | {row.evidence} | {faults} |")
    return "\n".join(lines) + "\n"


def is_stale(root: Path, page: str) -> bool:
    """Whether the page in the repository says something else than ``page``.

    How many examples were drawn is left out: it follows the profile, and which engines this build of torch has.
    """
    path = root / PAGE

    def settled(text: str) -> str:
        return re.sub(r"sampled [\d,]+", "sampled", text)

    return not path.exists() or settled(path.read_text(encoding="utf-8")) != settled(page)


def chapter_table(rows: list[Row], results: list[Result]) -> Table:
    """A line for each chapter; the last three columns count its clauses by the strongest evidence."""
    table = Table(title="the specification", title_justify="left")
    table.add_column("chapter", no_wrap=True)
    for column in ("clauses", "tests", "examples\nrun", "faults\nkilled", "all\ncodes", "drawn", "single\ncases"):
        table.add_column(column, justify="right")
    for stem in chapters.stems():
        chapter = chapters.chapter(stem)
        ids = {clause.id for clause in chapter.clauses}
        own_rows = [row for row in rows if row.id in ids]
        tests = {result.test for result in results if ids & set(result.clauses)}
        faults = {name for row in own_rows for name in row.faults}
        strongest = [row.evidence.split(" ")[0] for row in own_rows]
        kinds = [strongest.count(kind) for kind in ("exhaustive", "sampled", "example")]
        counts = (len(ids), len(tests), examples_run(stem, results), len(faults), *kinds)
        table.add_row(chapter.path.stem, *map(str, counts))
    return table


def examples_run(stem: str, results: list[Result]) -> int:
    """How many of a chapter's examples ran and passed."""
    chapter = chapters.chapter(stem)
    passed = {result.block for result in results if result.block and result.outcome == "passed"}
    return sum(block.examples for block in chapter.blocks if (chapter.path.name, block.line - 1) in passed)


def read_result(fields: dict[str, Any]) -> Result:
    """A result of the record, where JSON made lists of its tuples."""
    return Result(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def main(record: str) -> int:
    """Prints the table, writes the page, and ends with a line of totals; the exit code is 1 unless all is in order."""
    data, root = json.loads(Path(record).read_text()), Path(__file__).parents[2]
    results = [read_result(fields) for fields in data["results"]]
    rows = clause_rows(results, read_faults(root))
    (root / PAGE).write_text(render(rows), encoding="utf-8")
    console = Console()
    console.print(chapter_table(rows, results))
    for complaint in data["complaints"]:
        console.print(complaint, markup=False, highlight=False)
    untested = sum(row.passed == 0 for row in rows)
    untraced = len({result.test for result in results if must_name_a_clause(result.nodeid) and not result.clauses})
    failed = sum(result.outcome == "failed" for result in results)
    examples = sum(examples_run(stem, results) for stem in chapters.stems())
    print(f"spec: {len(rows)} clauses, {untested} untested, {untraced} untraced, {examples} examples, {failed} failed")
    return int(bool(untested or untraced or failed or data["complaints"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
