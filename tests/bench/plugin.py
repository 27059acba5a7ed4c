"""The pytest plugin behind `make bench`: its options, what rows and measures report to, and what is said and written when the run is over."""

import fnmatch
import json
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console

from . import page, peak, peers, plot, results, rows

ROOT = Path(__file__).parents[2]
LAST = ROOT / "out" / "bench.json"


def pytest_addoption(parser):
    group = parser.getgroup("quantspec bench")
    group.addoption("--bench-rows", default="", metavar="PATTERNS", help="shell patterns of rows and measures, separated by spaces: 'tutorial/* calibration*'")
    group.addoption("--bench-threads", default="1", metavar="NUMBERS", help="numbers of threads, separated by spaces (default: 1)")
    group.addoption("--bench-budget", default=1.5, type=float, metavar="SECONDS", help="for each row, when seven rounds take less (default: 1.5)")
    group.addoption("--bench-compile", default="", metavar="PATTERNS", help="rows for which torch.compile is tried too: half a minute each")
    group.addoption("--bench-json", default="", metavar="FILE", help="write all that was measured as JSON")
    group.addoption("--bench-write", action="store_true", help="write spec/results/performance.json and spec/performance.md")


def pytest_configure(config):
    config.bench = Bench(config)


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", [int(n) for n in metafunc.config.getoption("--bench-threads").split()])


def pytest_collection_modifyitems(config, items):
    patterns = config.getoption("--bench-rows").split()
    if patterns:
        left_out = [item for item in items if not any(fnmatch.fnmatch(named(item), pattern) for pattern in patterns)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def named(item) -> str:
    """The row's or measure's name."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return parameters["row"].name if "row" in parameters else item.name.removeprefix("test_")


@pytest.fixture(scope="session")
def bench(request) -> "Bench":
    return request.config.bench


class Bench:
    """What is measured in this run."""

    def __init__(self, config):
        self.config, self.budget = config, config.getoption("--bench-budget")
        self.rows: list[dict] = []
        self.measures: list[dict] = []
        self.unavailable: dict[str, str] = {}
        self.peak, self.load = 0.0, os.getloadavg()[0]

    def compiles(self, row: rows.Row) -> bool:
        """Whether torch.compile is to be tried."""
        return any(fnmatch.fnmatch(row.name, pattern) for pattern in self.config.getoption("--bench-compile").split())

    def row(self, row: rows.Row, threads: int, own: float, others: dict[str, float], kinds: dict[str, str], work: rows.Work, ran: dict, absent) -> dict:
        """Adds a row: seconds of ours and of everybody else's. ``ran``: the engine and the number of rounds."""
        self.peak = max(self.peak, peak.macs_per_second(0.1))  # the run's highest: a single measurement may meet a busy machine
        for one in absent:
            self.unavailable.setdefault(one.name, f"{row.network}: {one.reason}" if one not in peers.absent() else one.reason)
        best = {kind: fastest({name: others[name] for name, its in kinds.items() if its == kind}) for kind in (peers.FLOAT32, peers.INT8)}
        torch_ao = fastest({name: seconds for name, seconds in others.items() if name.startswith("torch.ao")})
        found = {
            "row": row.name, "threads": threads, "ours_us": digits(own * 1e6), **ran,
            "best_float32": pair(best[peers.FLOAT32]), "best_int8": pair(best[peers.INT8]),
            "vs_float32": ratio(best[peers.FLOAT32], own), "vs_int8": ratio(best[peers.INT8], own), "vs_torch_ao": ratio(torch_ao, own),
            "peak_share": None, "macs": work.macs, "bytes": work.nbytes,
            "promises": row.promises, "targets": vars(row.targets), "peers_us": {name: digits(seconds * 1e6) for name, seconds in others.items()},
        }  # fmt: skip
        self.rows.append(found)
        return found

    def measure(self, name: str, value: float, unit: str, *, of: str, most: float | None = None, least: float | None = None) -> None:
        """Adds a figure that is no row: ``of`` says what it is, ``most`` or ``least`` is its target."""
        self.measures.append({"name": name, "value": digits(value), "unit": unit, "of": of, "most": most, "least": least})


def digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def fastest(seconds: dict[str, float]) -> tuple[str, float] | None:
    return min(seconds.items(), key=lambda one: one[1], default=None)


def pair(best: tuple[str, float] | None) -> list | None:
    return None if best is None else [best[0], digits(best[1] * 1e6)]


def ratio(best: tuple[str, float] | None, own: float) -> float | None:
    return None if best is None else digits(best[1] / own)


def pytest_sessionfinish(session, exitstatus):
    bench = session.config.bench
    if not (bench.rows or bench.measures):
        return
    for row in bench.rows:  # when the peak is known
        row["peak_share"] = digits(row["macs"] / (row["ours_us"] * 1e-6) / (bench.peak * row["threads"]))
    found = results.record(bench.rows, bench.measures, bench.unavailable, bench.peak, bench.load)
    LAST.parent.mkdir(exist_ok=True)
    before = json.loads(LAST.read_text()) if LAST.exists() else None
    console = Console(width=190, soft_wrap=False)
    console.print()
    if bench.rows:
        console.print(page.rich_rows(found, before))
    if bench.measures:
        console.print(page.rich_measures(found))
    for name, reason in found["unavailable"].items():
        console.print(f"not measured: {name}: {reason}", markup=False, highlight=False)
    LAST.write_text(results.text(results.merged(before, found) if results.comparable(before, found) else found))
    plot.draw(json.loads(LAST.read_text()), LAST.with_suffix(".png"))
    console.print(f"{LAST.relative_to(ROOT)}, {LAST.with_suffix('.png').relative_to(ROOT)} written", highlight=False)
    if path := session.config.getoption("--bench-json"):
        Path(path).write_text(results.text(found))
    if session.config.getoption("--bench-write"):
        results.write(ROOT / "spec", found)
    broken = results.broken_promises(found)
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
