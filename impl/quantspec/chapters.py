"""Reads the chapters of the specification: clauses, definitions, examples.

A chapter is Markdown. A clause is a heading ``### AFF-TIES · Title`` whose first block quote is the normative sentence,
which says MUST once; ``python`` blocks, in order, are the chapter's module; ``pycon`` blocks are its examples.
"""

import doctest
import functools
import hashlib
import itertools
import re
import types
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from quantspec.errors import expected_one_of

LANGUAGES = ("python", "pycon")
CLAUSE_HEADING = re.compile(r"^([A-Z]{3}(?:-[A-Z0-9]+)+) · (.+)$")
MUST = re.compile(r"\bMUST\b")
CODE_CELL = re.compile(r"^`([^`]*)`$")


@dataclass(frozen=True)
class Clause:
    """One normative sentence, in one line, and its place: chapter and line, counted from 1."""

    id: str
    title: str
    sentence: str
    chapter: str
    line: int

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the sentence."""
        return hashlib.sha256(self.sentence.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Block:
    """A fenced code block. ``line``: the line of its first line of code, counted from 1; ``clause``: the id of the
    clause above it."""

    language: str
    source: str
    line: int
    clause: str = ""

    @property
    def examples(self) -> int:
        """The number of prompts in a ``pycon`` block; 0 for other blocks. Raises ValueError for a block that is not an
        interpreter transcript."""
        return len(doctest.DocTestParser().get_examples(self.source)) if self.language == "pycon" else 0


@dataclass(frozen=True)
class Table:
    """A table. Each row maps a column's heading to the cell, without backticks where the cell is code. ``clause``: the
    id of the clause above it."""

    rows: tuple[dict[str, str], ...]
    clause: str = ""


@dataclass(frozen=True)
class Chapter:
    """A parsed chapter. ``stem`` is ``affine`` for ``01-affine.md``."""

    stem: str
    path: Path
    title: str
    clauses: tuple[Clause, ...]
    blocks: tuple[Block, ...]
    tables: tuple[Table, ...] = ()

    @property
    def examples(self) -> int:
        """The number of examples in the chapter."""
        return sum(block.examples for block in self.blocks)


def directory() -> Path:
    """The folder with the chapters: ``spec/`` in a checkout, a copy inside the package when installed."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "spec", here.parent.parent / "spec"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the chapters were found neither in {here / 'spec'} nor in {here.parent.parent / 'spec'}")


def stems() -> list[str]:
    """The stems of all chapters in reading order."""
    return [path.stem[3:] for path in sorted(directory().glob("[0-9][0-9]-*.md"))]


def parse(path: Path) -> Chapter:
    """Parses one chapter.

    Raises ValueError when a clause has no sentence, more than one, one that does not say MUST exactly once, or an id
    that the chapter already used, and for a block that could not run: one of another language, without a prompt, or
    that is no Python.
    """
    tokens = MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8"))
    title, depth = "", 0
    clauses: list[Clause] = []
    blocks: list[Block] = []
    tables: list[Table] = []
    heading: tuple[str, str, int] | None = None
    for index, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "heading_open":
            if heading is not None:
                raise ValueError(f"{path.name}:{heading[2]}: clause {heading[0]} has no normative sentence")
            text = tokens[index + 1].content
            title = title or text
            if match := CLAUSE_HEADING.match(text):
                heading = match[1], match[2], line
        elif token.type == "blockquote_open":
            depth += 1
        elif token.type == "blockquote_close":
            depth -= 1
        elif token.type == "inline" and depth:
            if heading is None:
                raise ValueError(f"{path.name}:{line}: a block quote outside of a clause")
            if (count := len(MUST.findall(token.content))) != 1:
                raise ValueError(f"{path.name}:{line}: clause {heading[0]} says MUST {count} times, expected once")
            sentence = " ".join(token.content.split())
            clauses.append(Clause(heading[0], heading[1], sentence, path.stem[3:], heading[2]))
            heading = None
        elif token.type == "fence":
            block = Block(token.info.strip(), token.content, line + 1, clauses[-1].id if clauses else "")
            blocks.append(checked_block(path, block))
        elif token.type == "table_open":
            tables.append(Table(table_rows(tokens[index:]), clauses[-1].id if clauses else ""))
    if heading is not None:
        raise ValueError(f"{path.name}:{heading[2]}: clause {heading[0]} has no normative sentence")
    ids = [clause.id for clause in clauses]
    for clause in clauses:
        if ids.count(clause.id) > 1:
            raise ValueError(f"{path.name}:{clause.line}: clause {clause.id} is defined twice")
    return Chapter(path.stem[3:], path, title, tuple(clauses), tuple(blocks), tuple(tables))


def table_rows(tokens: list[Token]) -> tuple[dict[str, str], ...]:
    """The rows of the table that begins with these tokens."""
    rows: list[list[str]] = []
    for token in itertools.takewhile(lambda token: token.type != "table_close", tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(CODE_CELL.sub(r"\1", token.content))
    head, *body = rows
    return tuple(dict(zip(head, cells)) for cells in body)


def checked_block(path: Path, block: Block) -> Block:
    """The block. Raises ValueError, with file and line, for a block that could not run."""
    try:
        if block.language not in LANGUAGES:
            expected = f"expected a block of {' or '.join(LANGUAGES)}"
            raise ValueError(f"{expected}, got {block.language!r}, which would not run")
        if block.language == "python":
            compile(block.source, path.name, "exec")
        elif block.examples == 0:
            raise ValueError("a pycon block without a prompt would not run")
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{path.name}:{block.line}: {error}") from error
    return block


@functools.cache
def chapter(stem: str) -> Chapter:
    """The parsed chapter of a stem such as ``affine``. Raises ValueError, with the list, for an unknown one."""
    for path in directory().glob(f"[0-9][0-9]-{stem}.md"):
        return parse(path)
    raise ValueError(expected_one_of("stem", stems(), stem))


def tables(stem: str, clause: str) -> list[tuple[dict[str, str], ...]]:
    """The rows of each table below a clause of a chapter."""
    return [table.rows for table in chapter(stem).tables if table.clause == clause]


def clauses() -> dict[str, Clause]:
    """All clauses of the specification by id. Raises ValueError when two chapters use the same id."""
    found: dict[str, Clause] = {}
    for stem in stems():
        for clause in chapter(stem).clauses:
            if clause.id in found:
                raise ValueError(f"clause {clause.id} is defined in {found[clause.id].chapter} and in {clause.chapter}")
            found[clause.id] = clause
    return found


@functools.cache
def load(stem: str) -> types.ModuleType:
    """The definitions of a chapter as a module: its ``python`` blocks, executed in order.

    Tracebacks point at the lines of the Markdown file.
    """
    parsed = chapter(stem)
    module = types.ModuleType(f"quantspec.chapters.{stem}", parsed.title)
    module.__file__ = str(parsed.path)
    for block in parsed.blocks:
        if block.language == "python":
            code = compile("\n" * (block.line - 1) + block.source, str(parsed.path), "exec")
            exec(code, module.__dict__)  # noqa: S102 - the specification is the program
    return module
