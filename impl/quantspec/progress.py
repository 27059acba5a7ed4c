"""Progress bars for what may take longer than a second."""

import random
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], title: str) -> Iterator[Item]:
    """The items, with a progress bar on a terminal's stderr that disappears when done."""
    if not sys.stderr.isatty():
        yield from items
        return
    # A fifth of a second to import, for those who see it, and random numbers, which are the user's (STA-UNTOUCHED).
    state = random.getstate()
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    random.setstate(state)
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        total = len(items) if isinstance(items, Sized) else None
        yield from bar.track(items, total=total)
