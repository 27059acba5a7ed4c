"""``quantspec conformance`` and ``quantspec fingerprint``: the conformance suite for people who write backends, and for ``make conformance``."""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from quantspec import chapters
from quantspec.backends import registry
from quantspec.backends.protocol import NotOffered
from quantspec.backends.worker import Died, Worker, outcome
from quantspec.numerics.affine import QParams

from . import report_html, report_markdown, results, run
from .call import Call
from .fingerprint import Choice, consistent, fingerprint
from .session import ours, parts

# Our own arithmetic is compared with nothing but itself here; two of its dialects show what a backend without divergences looks like.
OWN = ("quantspec-exact", "quantspec-onnx")
PEERS = tuple(name for name in registry.ENTRIES if not name.startswith("quantspec-"))


def smoke(name: str, worker) -> None:
    """Raises ValueError saying what is wrong with the *adapter*, before the backend is judged: what it offers, and answers of the right kind."""
    if not worker.operations:
        raise ValueError(f"backend {name}: it has none of the methods of the protocol (quantspec.backends.protocol)")
    for operation, call in EASY.items():
        if operation not in worker.operations:
            continue
        expected = getattr(ours("exact"), operation)(*call.arguments, **call.options)
        got = outcome(worker, operation, *call.arguments, **call.options)
        if got.kind in ("not offered", "refused"):
            continue
        if got.kind != "value":
            raise ValueError(f"backend {name}: the adapter's {operation} does not answer an easy call: {got.message}")
        for part, model in zip(parts(got.value), parts(expected)):
            if part.shape != model.shape or part.dtype.kind != model.dtype.kind:
                raise ValueError(
                    f"backend {name}: the adapter's {operation} gives {part.dtype}{list(part.shape)} where the protocol wants {model.dtype}{list(model.shape)}"
                )
            if np.abs(part.astype(np.float64) - model.astype(np.float64)).max(initial=0) > 1:
                raise ValueError(f"backend {name}: the adapter's {operation} gives {part.ravel().tolist()} on an easy call, expected about {model.ravel().tolist()}")


GRID, WEIGHTS, WIDE = QParams(0.5, 3, 0, 255), QParams(0.25, 0, -128, 127), QParams(1.0, 7, 0, 255)
CODES, SMALL = np.array([[3, 5, 9], [4, 3, 20]], np.uint8), np.array([[1, -2, 3], [4, 0, -1]], np.int8)
EASY = {
    "quantize": Call("quantize", (np.float32([0.0, 1.1, -0.6]), np.float32(0.5), 3), {"qmin": 0, "qmax": 255}),
    "dequantize": Call("dequantize", (np.uint8([3, 4, 2]), np.float32(0.5), 3)),
    "qparams": Call("qparams", (np.float32(-1), np.float32(3)), {"qmin": 0, "qmax": 255, "symmetric": False}),
    "linear": Call("linear", (CODES, GRID, SMALL, WEIGHTS, np.float32([0.5, -1]), WIDE), {"relu": False}),
    "linear_dynamic": Call("linear_dynamic", (np.float32([[0, 1.3, 2.2]]), SMALL, WEIGHTS, np.float32([0.5, -1])), {"relu": False}),
    "conv2d": Call("conv2d", (CODES.reshape(1, 1, 2, 3), GRID, SMALL[:1, :1].reshape(1, 1, 1, 1), WEIGHTS, None, WIDE)),
    "add": Call("add", (CODES.reshape(1, 2, 1, 3), GRID, CODES.reshape(1, 2, 1, 3), GRID, WIDE), {"relu": False}),
    "mul": Call("mul", (CODES.reshape(1, 2, 1, 3), GRID, CODES.reshape(1, 2, 1, 3), GRID, WIDE)),
    "concat": Call("concat", ([(CODES, GRID), (CODES, GRID)], WIDE), {"axis": 1}),
    "max_pool2d": Call("max_pool2d", (CODES.reshape(1, 1, 2, 3), GRID), {"kernel": (2, 2), "stride": (1, 1)}),
    "avg_pool2d": Call("avg_pool2d", (CODES.reshape(1, 1, 2, 3), GRID), {"kernel": (2, 2), "stride": (1, 1)}),
    "adaptive_avg_pool2d": Call("adaptive_avg_pool2d", (CODES.reshape(1, 1, 2, 3), GRID), {"size": (1, 1)}),
}


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
            known_as, version = worker.name, worker.version
        choices = fingerprint(name)
        findings = run.run(name, examples=examples, seconds=seconds)
    except (NotOffered, Died, ImportError) as error:
        return Absent(f"{name}: {error}", isinstance(error, Died))
    return results.recorded(known_as, version, results.cpu(), findings, choices)


def examined(names: list[str], options: argparse.Namespace) -> Iterator[results.Results | Absent]:
    """What there is to say about backends, in their order, with a progress bar; as many at once as there are cores."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    workers = max(1, min(len(names), os.cpu_count() or 1))
    # Spawned, because a copy of a process with torch's threads in it may wait for them forever.
    with (
        Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()) as bar,
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        # The last of the registry take longest, and are not to be waited for alone.
        futures = {name: pool.submit(examine, name, options.examples, options.seconds) for name in reversed(names)}
        for name in bar.track(names, description="conformance"):
            yield futures[name].result()


def conformance(options: argparse.Namespace) -> int:
    """``quantspec conformance``: 0 when every divergence is known, 1 otherwise. Raises ValueError for unknown backends and broken adapters."""
    console = Console()
    wanted = [] if options.recorded else options.backend or [*OWN, *PEERS]
    reasons = {name: registry.why_not_installed(name) for name in wanted}
    if options.backend and (missing := [f"{name}: {reason}" for name, reason in reasons.items() if reason]):
        raise ValueError(f"backend {missing[0]}")
    root = (options.write or chapters.directory()) / "results"
    found, unexplained = [], []
    for name, reason in reasons.items():
        if reason:
            console.print(f"{name}: {reason}", highlight=False)
    for one in examined([name for name, reason in reasons.items() if not reason], options):
        if isinstance(one, Absent):
            if options.backend:
                raise ValueError(f"backend {one.text}")
            console.print(one.text, highlight=False)
            if one.broken:
                unexplained.append(one.text)
        else:
            found.append(one)
            console.print(summary(one), highlight=False)
            if options.write:
                results.write(root, one)
    known = results.read_known(root)
    if options.write or options.recorded:
        found = results.read_all(root)
    if options.write:
        for path, text in report_markdown.pages(found, known).items():
            (options.write / path).write_text(text, encoding="utf-8")
    elif len(found) == 1:
        console.print(table(found[0]))
    if options.html:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        options.html.write_text(report_html.page(found, known), encoding="utf-8")
    unexplained += results.complaints(found, known)
    for line in unexplained:
        console.print(line, highlight=False, soft_wrap=True)
    clauses = len(report_markdown.places(found))
    print(f"conformance: {len(found)} backends, {clauses} clauses, {report_markdown.divergences(found)} divergences, {len(unexplained)} unexplained")
    return int(bool(unexplained))


def summary(one: results.Results) -> str:
    """One line about a backend."""
    counts = {kind: sum(f["outcome"] == kind for f in one.findings) for kind in ("pass", "fails", "not offered")}
    return f"{one.backend} {one.version} on {one.cpu}: {counts['pass']} pass, {counts['fails']} differ, {counts['not offered']} not offered"


def table(one: results.Results) -> Table:
    """What a backend does, a line for each clause and operation that it offers."""
    made = Table(title=f"{one.backend} {one.version} on {one.cpu}", title_justify="left")
    for column in ("clause", "operation", "outcome"):
        made.add_column(column, no_wrap=column != "outcome")
    for finding in one.findings:
        if finding["outcome"] == "fails":
            text = f"differs\nasked: {finding['call']}\nallowed: {finding['allowed']}\ngot: {finding['got']}"
        else:
            text = f"pass ({finding['outputs']:,} outputs)" if finding["outcome"] == "pass" else ""
        if text:
            made.add_row(finding["clause"], finding["operation"], text)
    return made


def show_fingerprint(options: argparse.Namespace) -> int:
    """``quantspec fingerprint``: a line for each choice, and the dialects that make them all. Raises ValueError for a backend that cannot be had."""
    if reason := registry.why_not_installed(options.backend):
        raise ValueError(f"backend {options.backend}: {reason}")
    try:
        choices = fingerprint(options.backend)
    except (NotOffered, Died, ImportError) as error:
        raise ValueError(f"backend {options.backend}: {error}") from error
    console = Console()
    console.print(choices_table(options.backend, choices))
    names = consistent(choices)
    console.print(f"dialects that make all of these choices: {', '.join(names) or 'none'}", highlight=False)
    return 0


def choices_table(name: str, choices: Iterable[Choice]) -> Table:
    made = Table(title=f"the choices of {name}", title_justify="left")
    for column in ("place", "clause", "choice", "outputs"):
        made.add_column(column, justify="right" if column == "outputs" else "left")
    for choice in choices:
        made.add_row(choice.place, choice.clause, f"{choice.choice}\n{choice.counterexample}".strip(), f"{choice.outputs:,}" if choice.outputs else "")
    return made
