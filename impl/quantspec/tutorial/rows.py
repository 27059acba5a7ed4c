"""What the rows of ``quantspec zoo`` share: how well a network was quantized, tables that fit 79 columns, calls of
models, and processes to measure in."""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from rich import box
from rich.table import Table

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A network in int8. ``sqnr`` of its outputs in dB, ours and torch.ao's on the same data and kinds of observers
    (None and ``peer_reason`` where torch.ao cannot). ``int8_macs``: share of multiply-accumulates, None where nobody
    can count; ``seconds`` to quantize."""

    sqnr: float
    peer_sqnr: float | None
    peer_reason: str
    int8_macs: float | None
    compression: float
    seconds: float


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column of a table: its heading, and the text for a row."""

    heading: str
    text: Callable[[Row], str]


def table(title: str, columns: Sequence[Column[Row]], found: Sequence[Row]) -> Table:
    """Rows as a table, the first column of which is their name."""
    lines = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        lines.add_column(column.heading, justify="right" if number else "left", no_wrap=True)
    for row in found:
        lines.add_row(*(column.text(row) for column in columns))
    return lines


def call(model: Callable[..., Any], batch: Any) -> Any:
    """What a model gives for a batch, without gradients: a tensor, a tuple of inputs or a dict of named ones."""
    with torch.no_grad():
        if isinstance(batch, dict):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple) else model(batch)


def decibels(value: float | None) -> str:
    """An SQNR, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def percent(value: float | None) -> str:
    """A share, or a dash."""
    return "–" if value is None else f"{value:.1%}"


def first_line(error: Exception, length: int = 160) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:length] if lines else ''}"


def measured(measure: Callable[[str], Row], names: Sequence[str], *, each: int | None = None) -> Iterator[Row]:
    """The rows of networks, one after the other, in a process that has nothing else to do; ``each``: how many of them
    in one process, None for all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,), max_tasks_per_child=each) as pool:
        for future in [pool.submit(measure, name) for name in names]:
            yield future.result()
