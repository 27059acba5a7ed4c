"""``quantspec conformance`` and ``quantspec fingerprint``: the conformance suite for people who write backends, and for
``make conformance``."""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from quantspec import chapters
from quantspec.backends import registry
from quantspec.backends.outcome import Died
from quantspec.backends.protocol import BackendError, NotOffered
from quantspec.backends.worker import Worker

from . import report_html, report_markdown, results, run
from .fingerprint import Choice, consistent, fingerprint
from .passed_on import checksums
from .smoke import smoke

# Our own arithmetic is compared with nothing but itself here; two of its dialects show what a backend without
# divergences looks like.
OWN = ("quantspec-exact", "quantspec-onnx")
PEERS = tuple(name for name in registry.ENTRIES if not name.startswith("quantspec-"))


@dataclass(frozen=True)
class Absent:
    """A backend that cannot be had. ``broken``: it is installed, and does not live to be asked."""

    text: str
    broken: bool


def examine(name: str, examples: int, seconds: float) -> results.Results | Absent:
    """Everything about one backend, or why it cannot be had. Raises ValueError for a broken adapter."""
    try:
        with Worker(name, seconds=seconds) as worker:
            smoke(name, worker)
            own_name, version, passed_on = worker.name, worker.version, checksums(worker)
        choices = fingerprint(name, seconds=seconds)
        findings = run.run(name, examples=examples, seconds=seconds)
    except (NotOffered, Died, ImportError, BackendError) as error:
        return Absent(f"{name}: {error}", isinstance(error, (Died, BackendError)))
    return results.recorded(own_name, version, results.cpu(), findings, choices, passed_on)


def examined(names: list[str], options: argparse.Namespace) -> Iterator[results.Results | Absent]:
    """What there is to say about backends, each as soon as it is known, with a progress bar."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield from bar.track(in_any_order(names, options), total=len(names), description="conformance")


def in_any_order(names: list[str], options: argparse.Namespace) -> Iterator[results.Results | Absent]:
    """The same, as many at once as there are cores. A single one is examined here, as its workers are processes enough.
    """
    if len(names) == 1:
        yield examine(names[0], options.examples, options.seconds)
        return
    workers = max(1, min(len(names), os.cpu_count() or 1))
    # Spawned, because a copy of a process with torch's threads in it may wait for them forever.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        # The last of the registry take longest, and are not to be waited for alone.
        futures = [pool.submit(examine, name, options.examples, options.seconds) for name in reversed(names)]
        for future in as_completed(futures):
            yield future.result()


def conformance(options: argparse.Namespace) -> int:
    """``quantspec conformance``: 0 when every divergence is known, 1 otherwise. Raises ValueError for unknown backends
    and broken adapters, and for numbers that are not above 0."""
    if options.examples < 1:
        raise ValueError(f"--examples: expected at least 1, got {options.examples}")
    if not options.seconds > 0:
        raise ValueError(f"--seconds: expected more than 0, got {options.seconds:g}")
    console = Console()
    import_from_here()
    wanted = [] if options.recorded else options.backend or [*OWN, *PEERS]
    reasons = {name: registry.why_not_installed(name) for name in wanted}
    if options.backend and (missing := [f"{name}: {reason}" for name, reason in reasons.items() if reason]):
        raise ValueError(f"backend {missing[0]}")
    root = (options.write or chapters.directory()) / "results"
    before = results.read_all(root) if root.exists() else []
    found: list[results.Results] = []
    unexplained: list[str] = []
    for name, reason in reasons.items():
        if reason:
            console.print(f"{name}: {reason}", highlight=False, soft_wrap=True, markup=False)
    for examination in examined([name for name, reason in reasons.items() if not reason], options):
        if isinstance(examination, Absent):
            if options.backend:
                raise ValueError(f"backend {examination.text}")
            console.print(examination.text, highlight=False, soft_wrap=True, markup=False)
            if examination.broken:
                unexplained.append(examination.text)
        else:
            found.append(examination)
            unexplained += results.passes_on_otherwise(examination, before)
            console.print(summary(examination), highlight=False, markup=False)
            if options.write:
                results.write(root, examination)
    recorded = results.read_known(root)
    found.sort(key=lambda result: result.folder)
    if options.write or options.recorded:
        found = results.read_all(root) if root.exists() else []
    if options.recorded and not found:
        where = f"{root} has none; a checkout of the repository has them in spec/results"
        raise ValueError(f"--recorded: expected a folder with recorded results, {where}")
    if options.write:
        for path, text in report_markdown.pages(found, recorded).items():
            (options.write / path).write_text(text, encoding="utf-8")
    elif len(found) == 1:
        console.print(table(found[0]))
    if options.html:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(report_html.page(found, recorded), encoding="utf-8")
    if options.write or options.recorded:
        unexplained += results.complaints(found, recorded)
    else:  # other CPUs, other versions and more calls may still show what these did not
        unexplained += results.unexplained(found, recorded)
        if absent := len(results.unneeded(found, recorded)):
            print(f"{counted(absent, 'known divergence')} did not show in these calls on this machine")
    for line in unexplained:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    counts = {
        "backend": len(found), "clause": len(report_markdown.places(found)),
        "divergence": report_markdown.divergences(found),
    }  # fmt: skip
    totals = ", ".join(counted(count, noun) for noun, count in counts.items())
    print(f"conformance: {totals}, {len(unexplained)} unexplained")
    return int(bool(unexplained))


def counted(count: int, noun: str) -> str:
    """``1 backend``, ``2 backends``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def summary(result: results.Results) -> str:
    """One line about a backend."""
    outcomes = [finding["outcome"] for finding in result.findings]
    passing, failing, absent = (outcomes.count(kind) for kind in ("pass", "fails", "not offered"))
    counts = f"{passing} pass, {failing} differ, {absent} not offered"
    return f"{result.backend} {result.version} on {result.cpu}: {counts}"


def table(result: results.Results) -> Table:
    """What a backend does, a line for each clause and operation that it offers."""
    rows = Table(title=Text(f"{result.backend} {result.version} on {result.cpu}"), title_justify="left")
    for column in ("clause", "operation", "outcome"):
        rows.add_column(column, no_wrap=column != "outcome")
    for finding in result.findings:
        if finding["outcome"] == "fails":
            text = f"differs\nasked: {finding['call']}\nallowed: {finding['allowed']}\ngot: {finding['got']}"
        elif finding["outcome"] == "pass":
            text = f"pass ({finding['outputs']:,} outputs)" if finding["outputs"] else "pass"
        else:
            continue
        rows.add_row(finding["clause"], finding["operation"], Text(text))
    return rows


def show_fingerprint(options: argparse.Namespace) -> int:
    """``quantspec fingerprint``: a line for each choice, and the dialects that make them all. Raises ValueError for a
    backend that cannot be had."""
    import_from_here()
    if reason := registry.why_not_installed(options.backend):
        raise ValueError(f"backend {options.backend}: {reason}")
    try:
        choices = fingerprint(options.backend)
    except (NotOffered, Died, ImportError, BackendError) as error:
        raise ValueError(f"backend {options.backend}: {error}") from error
    console = Console()
    console.print(choices_table(options.backend, choices))
    names = consistent(choices)
    console.print(f"dialects that make all of these choices: {', '.join(names) or 'none'}", highlight=False)
    return 0


def import_from_here() -> None:
    """Has ``my_module:MyBackend`` found where ``my_module.py`` lies in the current folder, as ``python -m`` does."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)


def choices_table(name: str, choices: Iterable[Choice]) -> Table:
    """A line for each place where backends choose."""
    rows = Table(title=Text(f"the choices of {name}"), title_justify="left")
    for column in ("place", "clause", "choice", "outputs"):
        rows.add_column(column, justify="right" if column == "outputs" else "left")
    for choice in choices:
        text = f"{choice.choice}\n{choice.counterexample}".strip()
        rows.add_row(choice.place, choice.clause, Text(text), f"{choice.outputs:,}" if choice.outputs else "")
    return rows
