"""``make coverage``: which lines and branches of the package no test reaches, as ``out/unreached.md``.

Run on what coverage measured: ``python tests/harness/unreached.py FILES``. What is not reached stands in
``tests/unreached.toml`` with the reason; what has none there is a hole in the tests, or code that is not needed.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "impl" / "quantspec"
REASONS, PAGE = ROOT / "tests" / "unreached.toml", ROOT / "out" / "unreached.md"
LEAST = 97.0  # per cent of the lines and branches


@dataclass(frozen=True)
class Place:
    """A line that was not run, or a line (``line``) from which another one (``to``, or the end: 0) was never next."""

    module: str
    function: str
    line: int
    to: int | None
    text: str

    @property
    def name(self) -> str:
        """As a reason names it: ``storage/file.py:write_whole``."""
        return f"{self.module}:{self.function}"

    def __str__(self) -> str:
        if self.to is None:
            return f"{self.line}: `{self.text}`"
        return f"{self.line}: `{self.text}` was never followed by {f'line {self.to}' if self.to else 'the end'}"


@dataclass(frozen=True)
class Module:
    """What coverage counted in a module."""

    name: str
    total: int
    reached: int
    unreached: tuple[Place, ...]

    @property
    def room(self) -> str:
        return self.name.split("/")[0] if "/" in self.name else "the package itself"


def functions(source: str) -> dict[int, str]:
    """For each line in a function or method its qualified name; the innermost named by ``def`` of a module or class."""
    names: dict[int, str] = {}

    def look(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                names.update(dict.fromkeys(range(child.lineno, (child.end_lineno or child.lineno) + 1), name))
                if isinstance(child, ast.ClassDef):
                    look(child, f"{name}.")

    look(ast.parse(source), "")
    return names


def module(name: str, counted: dict[str, Any], source: str) -> Module:
    """A module, from what coverage says about its file."""
    names, lines, summary = functions(source), source.splitlines(), counted["summary"]
    missing = counted["missing_lines"]

    def place(line: int, to: int | None) -> Place:
        return Place(name, names.get(line, ""), line, to, lines[line - 1].strip())

    unreached = [place(line, None) for line in missing]
    # A branch to a line that was not run is that line.
    ways = [(line, max(to, 0)) for line, to in counted["missing_branches"] if line not in missing and to not in missing]
    unreached += [place(*way) for way in ways]
    return Module(
        name,
        summary["num_statements"] + summary["num_branches"],
        summary["covered_lines"] + summary["covered_branches"],
        tuple(sorted(unreached, key=lambda place: (place.line, place.to or 0))),
    )


def counts(data: Iterable[str | Path], *, rcfile: str = str(ROOT / "pyproject.toml")) -> dict[str, Any]:
    """What coverage counted in each file, by its path, from the files in which it wrote what ran.

    In processes of their own: where a ``Coverage`` is made, what measures that process is ended without being saved.
    """
    with tempfile.TemporaryDirectory() as folder:
        coverage = [sys.executable, "-m", "coverage"]
        options = [f"--rcfile={rcfile}", f"--data-file={folder}/data", "--quiet"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        for command in (
            [*coverage, "combine", *options, "--keep", *map(str, data)],
            [*coverage, "json", *options, f"-o{folder}/counts.json"],
        ):
            subprocess.run(command, check=True, env=environment)
        files: dict[str, Any] = json.loads(Path(folder, "counts.json").read_text(encoding="utf-8"))["files"]
    return files


def measured(data: Iterable[str]) -> list[Module]:
    """The modules of the package."""
    modules = []
    for path, counted in sorted(counts(data).items()):
        whole = ROOT / path
        source = whole.read_text(encoding="utf-8")
        modules.append(module(whole.relative_to(PACKAGE).as_posix(), counted, source))
    return modules


def read_reasons(text: str) -> dict[str, str]:
    """The reasons by what they are about, ``module:function`` with ``*`` for any text."""
    reasons: dict[str, str] = {}
    for reason, places in tomllib.loads(text).items():
        for place in places:
            if place in reasons:
                raise ValueError(f"{place} has two reasons")
            reasons[place] = reason
    return reasons


def reason(place: Place, reasons: dict[str, str]) -> str | None:
    """Why no test reaches a place; None where nobody says."""
    return next((why for pattern, why in reasons.items() if fnmatch(place.name, pattern)), None)


def per_cent(modules: Iterable[Module]) -> float:
    """The share of lines and branches that were reached, in per cent."""
    modules = list(modules)
    return 100 * sum(m.reached for m in modules) / max(1, sum(m.total for m in modules))


def by_room(modules: Iterable[Module]) -> dict[str, list[Module]]:
    """The modules of each room."""
    rooms: dict[str, list[Module]] = {}
    for one in modules:
        rooms.setdefault(one.room, []).append(one)
    return rooms


def page(modules: list[Module], reasons: dict[str, str]) -> Iterator[str]:
    """The lines of the page."""
    yield "# What no test reaches"
    yield ""
    yield f"Written by `make coverage`. Of the package's lines and branches {per_cent(modules):.2f} % are reached."
    yield ""
    yield "| room | lines and branches | not reached | % |"
    yield "|---|---|---|---|"
    for room, inside in by_room(modules).items():
        total = sum(m.total for m in inside)
        yield f"| {room} | {total:,} | {total - sum(m.reached for m in inside)} | {per_cent(inside):.1f} |"
    for one in modules:
        if one.unreached:
            yield f"\n## {one.name}\n"
        for place in one.unreached:
            why = reason(place, reasons) or "**nobody says why**"
            yield f"- {place}{f' in `{place.function}`' if place.function else ''}: {why}"


def main(data: list[str]) -> int:
    """Writes the page and ends with a line of totals; the exit code is 1 where something has no reason."""
    modules, reasons = measured(data), read_reasons(REASONS.read_text(encoding="utf-8"))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(page(modules, reasons)) + "\n", encoding="utf-8")
    table = Table("room", title="lines and branches that tests reach", title_justify="left")
    table.add_column("of", justify="right")
    table.add_column("%", justify="right")
    for room, inside in by_room(modules).items():
        table.add_row(room, f"{sum(m.total for m in inside):,}", f"{per_cent(inside):.1f}")
    Console().print(table)
    places = [place for one in modules for place in one.unreached]
    holes = [place for place in places if reason(place, reasons) is None]
    for place in holes:
        print(f"{place.name}:{place}: reach it, remove it, or say why not in tests/unreached.toml")
    reached = per_cent(modules)
    print(f"coverage: {reached:.2f} % reached, {len(places)} places not, {len(holes)} of them without a reason")
    return int(bool(holes) or reached < LEAST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
