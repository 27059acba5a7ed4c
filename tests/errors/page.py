"""Writes spec/errors.md: ``python -m errors.page``, or ``make errors``."""

import re
import sys
from pathlib import Path

from .inputs import INPUTS
from .table import FUNCTIONS, cell

PAGE = Path(__file__).resolve().parents[2] / "spec" / "errors.md"
WORDS = 110  # characters of an error
HEAD = """# Errors of the public functions

Written by `make errors` from the tests in `tests/errors/`, which fail if this page is out of date. Each public function
is called with {inputs} kinds of input in place of one argument. Every call gives a result or a one-sentence error of
quantspec's own, never one of torch, NumPy or Python. A result is compared with what it has to be, such as that of the
plain float32 tensor for a view of another type. Equal answers are listed together.

| function | results | errors |
|---|--:|--:|
"""


def told(text: str) -> str:
    """The first words of an answer, without what differs from run to run."""
    text = " ".join(text.split())
    text = re.sub(r"0x[0-9a-f]+", "0x...", text)
    text = text.replace(f"{PAGE.parents[1]}/", "")
    text = re.sub(r"/tmp/\S+?(?=[:, ']|$)", "...", text)
    # What torch and Python say of a call that a model made belongs to their versions.
    text = re.sub(r"(the model raised (?:RuntimeError|TypeError|NotImplementedError)): .*", r"\1: ...", text)
    text = text if len(text) <= WORDS else text[: WORDS - 3].rstrip() + "..."
    return re.sub(r"([|<>*_\[\]`])", r"\\\1", text)


def answers(function: str) -> dict[str, tuple[str, str]]:
    """What comes of each input."""
    return {kind: cell(function, kind) for kind in INPUTS}


def section(function: str, found: dict[str, tuple[str, str]]) -> str:
    """A function's part of the page: answers, and the inputs that get them, in one row where answers differ only in
    what they got."""
    together: dict[tuple[str, str], dict[str, str]] = {}
    for kind, (end, text) in found.items():
        text = told(text)
        expected = text.partition(", got ")[0] if end == "error" else text
        together.setdefault((end, expected), {})[kind] = text
    rows = []
    for (_, expected), texts in together.items():
        text = next(iter(texts.values())) if len(set(texts.values())) == 1 else f"{expected}, got ..."
        rows.append(f"| {', '.join(texts)} | {text} |")
    return "\n".join([f"## `{function}`", "", "| input | answer |", "|---|---|", *rows, ""])


def page() -> str:
    """The whole page."""
    found = {function: answers(function) for function in FUNCTIONS}
    rows = []
    for function, cells in found.items():
        results = sum(end == "result" for end, _ in cells.values())
        rows.append(f"| `{function}` | {results} | {len(cells) - results} |\n")
    sections = [section(function, cells) for function, cells in found.items()]
    return HEAD.format(inputs=len(INPUTS)) + "".join(rows) + "\n" + "\n".join(sections)


def main() -> int:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
