"""Tables as text that fits a terminal: names of layers, and reasons that many of them share."""

import io
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# rich is imported where a table is drawn: that takes a while, and random numbers, which are the user's (STA-UNTOUCHED).
WIDTH = 79  # columns
WIDEST = 10_000  # the same of a wide table
NAME = 23  # of them for the path of a layer
LISTED = 6  # how many layers with one reason are named


def new_table(title: str, *columns: str, left: int = 1) -> "Table":
    """A table whose first ``left`` columns are words and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", no_wrap=place >= left, overflow="fold")
    return table


def printed(table: "Table", *, wide: bool = False) -> str:
    """A table as text of at most ``WIDTH`` columns, or of as many as it takes where ``wide``."""
    from rich.console import Console

    text, title = io.StringIO(), str(table.title)
    table.title = None  # which rich breaks where the table ends, however much room there is
    # Text alone, whatever the program writes to, and whatever brackets and colons names have.
    plain: dict[str, Any] = {"force_terminal": False, "force_jupyter": False, "color_system": None}
    Console(file=text, width=WIDEST if wide else WIDTH, markup=False, emoji=False, **plain).print(table)
    lines = [line.rstrip() for line in text.getvalue().rstrip().splitlines()]
    return "\n".join([*([title] if wide else wrapped(title, 0)), *lines])


def at_dots(path: str, width: int = NAME) -> str:
    """A path of a module, broken behind dots into lines of at most ``width`` characters where its parts allow it."""
    lines = [""]
    for part in path.replace(".", ".\0").split("\0"):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def grouped(title: str, reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Lines under a title that say each reason once, with the places that it holds for; none where there are none."""
    by_reason: dict[str, list[str]] = {}
    for place, reason in reasons:
        by_reason.setdefault(reason, []).append(place)
    lines = [title] if by_reason else []
    for reason, places in by_reason.items():
        count = f" ({len(places)} times)" if len(places) > 1 else ""
        lines += wrapped(f"{reason}{count}:", 2)
        more = f" and {len(places) - LISTED} more" if len(places) > LISTED else ""
        lines += wrapped(", ".join(places[:LISTED]) + more, 4)
    return lines


def wrapped(text: str, indent: int) -> list[str]:
    """A text as lines of at most ``WIDTH`` columns, as far as its words allow it."""
    margin = " " * indent
    return textwrap.wrap(
        text, WIDTH, initial_indent=margin, subsequent_indent=margin + "  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
