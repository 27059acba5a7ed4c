"""Where each clause is implemented, for the chapters of the site.

Two things say so: docstrings name clauses, and each fault of ``tests/faults`` changes the code that a clause depends
on. Both are read from the source, so the list cannot fall behind it.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "impl" / "quantspec"
ID = r"[A-Z]{3}(?:-[A-Z0-9]+)+"
CLAUSE = rf"^### ({ID}) · .*\n\n(?:>.*\n)+"
MOST = 4  # places of a clause


def places() -> dict[str, list[str]]:
    """For each clause the modules, classes and functions that implement it: those that name it first."""
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "harness")]
    from faults import fault

    found: dict[str, dict[str, None]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, node in definitions(path) if path.stem != "chapters" else ():  # whose docstrings give examples
            for clause in re.findall(rf"\b{ID}\b", ast.get_docstring(node) or ""):
                found.setdefault(clause, {})[name] = None
    for mistake in fault.load():
        if not mistake.is_text:
            source = mistake.path.read_text(encoding="utf-8")
            line = source[: source.index(mistake.old)].count("\n") + 1
            for clause in mistake.clauses:
                found.setdefault(clause, {})[around(mistake.path, line)] = None
    return {clause: list(names)[:MOST] for clause, names in found.items()}


def definitions(path: Path) -> list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]]:
    """The module, its classes, and functions outside of functions, each with its dotted name."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    every: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]] = [(name, module)]
    for before, node in every:  # which grows by the members of its classes
        if not isinstance(node, ast.FunctionDef):
            members = (child for child in node.body if isinstance(child, (ast.ClassDef, ast.FunctionDef)))
            every += [(f"{before}.{child.name}", child) for child in members]
    return every


def around(path: Path, line: int) -> str:
    """The name of the innermost definition around a line."""
    (name, _), *others = definitions(path)
    for inner, node in others:
        if node.lineno <= line <= (node.end_lineno or line):
            name = inner
    return name


def with_places(text: str, found: dict[str, list[str]]) -> str:
    """A chapter with a line under each clause that says where it is implemented."""

    def told(clause: re.Match[str]) -> str:
        names = ", ".join(f"`{name}`" for name in found.get(clause[1], []))
        return f"{clause[0]}\nImplemented in {names}.\n{{: .implemented }}\n" if names else clause[0]

    return re.sub(CLAUSE, told, text, flags=re.MULTILINE)
