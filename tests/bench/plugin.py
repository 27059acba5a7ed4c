"""The pytest plugin behind ``make bench``.

Its options, what rows and measures report to, and what is printed and written when the run is over.
"""

import fnmatch
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from . import HELD_TO, page, peak, peers, plot, results, rows

ROOT = Path(__file__).parents[2]
LAST = ROOT / "out" / "bench.json"
COMPILED = "mlp1024/batch=64 dynamic-linear/rows=16 resnet18/batch=1 mobilenet_v2/batch=1"


def pytest_addoption(parser):
    """Adds the options, whose names begin with ``--bench-``."""
    add = parser.getgroup("quantspec bench").addoption
    patterns = "shell patterns of rows and measures, separated by spaces: 'tutorial/* calibration*'"
    add("--bench-rows", default="", metavar="PATTERNS", help=patterns)
    threads = "numbers of threads, separated by spaces (default: 1)"
    add("--bench-threads", default="1", metavar="NUMBERS", help=threads)
    budget = "for each row, when seven rounds take less (default: 1.5)"
    add("--bench-budget", default=1.5, type=float, metavar="SECONDS", help=budget)
    compiled = "rows for which torch.compile and torchao are tried too, on one thread: a minute each"
    add("--bench-compile", default=COMPILED, metavar="PATTERNS", help=compiled)
    add("--bench-json", default="", metavar="FILE", help="write all that was measured as JSON")
    record = "write spec/performance.md and what it is made of"
    add("--bench-write", action="store_true", help=record)


def pytest_configure(config):
    """Makes the record of this run."""
    config.bench = Bench(config)


def pytest_generate_tests(metafunc):
    """Runs a row once for each number of threads."""
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", [int(n) for n in metafunc.config.getoption("--bench-threads").split()])


def pytest_collection_modifyitems(config, items):
    """Leaves out the rows and measures that were not asked for; those of one network come together.

    All of its numbers of threads follow each other, so that everybody's models of it are made once.
    """
    order = {row.network: number for number, row in enumerate(rows.rows())}
    items.sort(key=lambda item: order.get(network(item), len(order)))
    patterns = config.getoption("--bench-rows")
    if patterns.split():
        left_out = [item for item in items if not matches(named(item), patterns)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def matches(name: str, patterns: str) -> bool:
    """Whether a name fits one of the patterns, which spaces separate."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split())


def network(item) -> str | None:
    """The network of a row, None for a measure."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters["row"].network if "row" in parameters else None


def named(item) -> str:
    """The row's or measure's name."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters["row"].name if "row" in parameters else item.name.removeprefix("test_")


@pytest.fixture(scope="session")
def bench(request) -> "Bench":
    """What rows and measures report to."""
    return request.config.bench


class Bench:
    """What is measured in this run."""

    def __init__(self, config):
        self.config, self.budget = config, config.getoption("--bench-budget")
        self.rows: list[dict] = []
        self.measures: list[dict] = []
        self.unavailable: dict[str, str] = {}
        self.peak, self.load = 0.0, os.getloadavg()[0]

    def compiles(self, row: rows.Row, threads: int) -> bool:
        """Whether what inductor compiles is to be tried."""
        return threads == 1 and not HELD_TO and matches(row.name, self.config.getoption("--bench-compile"))

    def row(
        self,
        row: rows.Row,
        threads: int,
        own: float,
        others: dict[str, float],
        kinds: dict[str, str],
        work: rows.Work,
        run: dict,
        absent: Iterable[peers.Unavailable],
    ) -> dict:
        """Adds a row: seconds of ours and of everybody else's. ``run``: the engine and the number of rounds."""
        self.peak = max(self.peak, peak.macs_per_second(0.1))  # the run's highest: one may meet a busy machine
        for peer in absent:
            reason = peer.reason if peer in peers.absent() else f"{row.network}: {peer.reason}"
            self.absent(peer.name, reason)

        float32 = fastest({name: others[name] for name, kind in kinds.items() if kind == peers.FLOAT32})
        int8 = fastest({name: others[name] for name, kind in kinds.items() if kind == peers.INT8})
        torch_ao = fastest({name: seconds for name, seconds in others.items() if name.startswith("torch.ao")})
        entry = {
            "row": row.name,
            "threads": threads,
            "ours_us": digits(own * 1e6),
            **run,
            "best_float32": pair(float32),
            "best_int8": pair(int8),
            "vs_float32": ratio(float32, own),
            "vs_int8": ratio(int8, own),
            "vs_torch_ao": ratio(torch_ao, own),
            "peak_share": None,
            "macs": work.macs,
            "bytes": work.nbytes,
            "promises": row.promises,
            "targets": vars(row.targets),
            "peers_us": {name: digits(seconds * 1e6) for name, seconds in others.items()},
        }
        self.rows.append(entry)
        return entry

    def measure(
        self, name: str, value: float, unit: str, *, of: str, most: float | None = None, least: float | None = None
    ) -> None:
        """Adds a figure that is no row: ``of`` says what it is, ``most`` or ``least`` is its target."""
        limits = {"most": None if most is None else digits(most), "least": None if least is None else digits(least)}
        self.measures.append({"name": name, "value": digits(value), "unit": unit, "of": of, **limits})

    def absent(self, name: str, reason: str) -> None:
        """Notes what could not be measured."""
        self.unavailable.setdefault(name, reason)


def digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def fastest(seconds: dict[str, float]) -> tuple[str, float] | None:
    """The name and the seconds of whoever takes least time."""
    return min(seconds.items(), key=lambda item: item[1], default=None)


def pair(best: tuple[str, float] | None) -> list | None:
    """A name and its microseconds."""
    return None if best is None else [best[0], digits(best[1] * 1e6)]


def ratio(best: tuple[str, float] | None, own: float) -> float | None:
    """The best peer's time over ours."""
    return None if best is None else digits(best[1] / own)


def pytest_sessionfinish(session, exitstatus):
    """Prints and writes what was measured; fails where a row breaks its promise."""
    bench = session.config.bench
    if not (bench.rows or bench.measures):
        return
    for row in bench.rows:  # when the peak is known
        if bench.peak:
            row["peak_share"] = digits(row["macs"] / (row["ours_us"] * 1e-6) / (bench.peak * row["threads"]))
    run = results.record(bench.rows, bench.measures, bench.unavailable, bench.peak, bench.load)
    LAST.parent.mkdir(exist_ok=True)
    before = json.loads(LAST.read_text()) if LAST.exists() else None
    console = Console(width=190, soft_wrap=False)
    console.print()
    if bench.rows:
        console.print(page.rich_rows(run, before))
    if bench.measures:
        console.print(page.rich_measures(run))
    for name, reason in run["unavailable"].items():
        console.print(f"not measured: {name}: {reason}", markup=False, highlight=False)
    LAST.write_text(results.text(results.merged(before, run) if results.comparable(before, run) else run))
    plot.draw(json.loads(LAST.read_text()), LAST.with_suffix(".png"))
    console.print(f"{LAST.relative_to(ROOT)}, {LAST.with_suffix('.png').relative_to(ROOT)} written", highlight=False)
    if path := session.config.getoption("--bench-json"):
        Path(path).write_text(results.text(run))
    if session.config.getoption("--bench-write"):
        results.write(ROOT / "spec", run)
    broken = results.broken_promises(run)
    for line in broken:
        console.print(f"BROKEN PROMISE: {line}", markup=False, highlight=False)
    if broken and session.exitstatus == 0:
        session.exitstatus = 1


@pytest.fixture(autouse=True)
def one_thread():
    """Rows set the number they want."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
