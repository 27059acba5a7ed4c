"""Parts of the report: sections, tables and pictures of a page that fetches nothing."""

import base64
import html
import io
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from quantspec.extras import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FLOAT, INT8 = "#1d2433", "#7a869c", "#c2410c"


def section(title: str, body: str, note: str = "") -> str:
    """A part of the page with its heading."""
    return f"<h2>{title}</h2>{f'<p class=soft>{note}</p>' if note else ''}{body}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], tall: bool = False) -> str:
    """A table that scrolls where the page is narrow; ``tall``: where it is long, too."""
    lines = [list(row) for row in rows]
    # A column of words is aligned left, one of numbers right.
    kinds = ["" if all(is_number(cell) for cell in column) else " class=words" for column in zip(*lines)]
    cells = "".join(f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row))}</tr>" for row in lines)
    top = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, head))
    whole = f"<table><thead><tr>{top}</tr></thead><tbody>{cells}</tbody></table>"
    return f'<div class="scroll{" tall" if tall else ""}">{whole}</div>'


def is_number(cell: str) -> bool:
    """Whether a cell of a table begins with a number, or is empty."""
    return re.match(r"(<[^>]*>)*[+-]?\d|$", cell) is not None


def picture(figure: "Figure", caption: str) -> str:
    """A figure as an inline SVG image with its caption, which is also its alternative text."""
    data = io.BytesIO()
    figure.savefig(data, format="svg", bbox_inches="tight")
    source, text = base64.b64encode(data.getvalue()).decode(), html.escape(caption)
    image = f'<img alt="{text}" src="data:image/svg+xml;base64,{source}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def axes(width: float, height: float, **grid: Any) -> tuple["Figure", np.ndarray]:
    """A figure without top and right frame lines. Raises MissingExtraError where matplotlib is not installed."""
    new_figure = needed("matplotlib.figure", "tutorial", "the report").Figure
    figure: Figure = new_figure(figsize=(width, height), layout="constrained")
    all_axes: np.ndarray = figure.subplots(squeeze=False, **grid)
    for ax in all_axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK, labelsize=9)
    return figure, all_axes
