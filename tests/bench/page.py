"""The tables of a run: for the terminal, and as ``spec/performance.md``."""

from collections.abc import Callable

from rich.table import Table

from . import results

INTRODUCTION = """\
# How fast it is

Written by `make bench ARGS=--bench-write` from what it measured, which is kept in
[`results/performance.json`](results/performance.json) with the times of all peers.

Times are of this machine and of no other; what carries over are the **ratios**, which come from one process
that ran everybody in turn: each round times every peer once, in an order that moves on, after a call that is
not timed, and a time is the median of the rounds. Floats go in and come out. Everybody has as many threads as
the row says, garbage collection is off, and everybody is calibrated with the same data. `vs float32` and `vs
int8` are the times of the best peer divided by ours: 2.00 means that we take half as long. `vs torch.ao` is
the same for the best of torch.ao's ways alone.

- *float32*: torch in `inference_mode`, ONNX Runtime; torch.compile where the peers' list of a row has it.
- *int8*: torch.ao on engines x86 and onednn, both also through TorchScript (traced and frozen); ONNX Runtime
  (QDQ; U8S8 and U8U8 with a scale for each channel). In dynamic rows torch.ao's and ONNX Runtime's
  `quantize_dynamic`.
- *peak*: multiply-accumulates per second over those of a loop of dot products that never leaves the
  registers: the highest of measurements next to each row.
- *bytes*: that have to pass at least: weights, float input and output, the codes of each layer written and
  read once.
- *short of*: the targets that a row misses. Nothing there: it reaches all of them.
"""


def cell(best: list | None) -> str:
    """The best peer and its time."""
    return "–" if best is None else f"{best[0]} {micro(best[1])}"


def micro(value: float) -> str:
    """Microseconds with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    """A ratio of times."""
    return "–" if value is None else f"{value:.2f}"


def volume(nbytes: int) -> str:
    """Bytes in the larger unit that fits."""
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.0f} kB"


COLUMNS: dict[str, Callable[[dict], str]] = {
    "row": lambda row: row["row"],
    "threads": lambda row: str(row["threads"]),
    "ours, µs": lambda row: micro(row["ours_us"]),
    "best float32, µs": lambda row: cell(row["best_float32"]),
    "best int8 peer, µs": lambda row: cell(row["best_int8"]),
    "vs float32": lambda row: times(row["vs_float32"]),
    "vs int8": lambda row: times(row["vs_int8"]),
    "vs torch.ao": lambda row: times(row["vs_torch_ao"]),
    "peak": lambda row: f"{row['peak_share']:.0%}",
    "bytes": lambda row: volume(row["bytes"]),
}


def cells(row: dict) -> list[str]:
    """The cells of a row, one for each of COLUMNS."""
    return [text(row) for text in COLUMNS.values()]


def rich_rows(run: dict, before: dict | None) -> Table:
    """The rows, each beside its time in the run before."""
    table = Table(title="int8 networks, medians of interleaved rounds", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    table.add_column("since last", justify="right", no_wrap=True)
    table.add_column("short of", style="red")
    earlier = {results.key(row): row for row in before["rows"]} if before else {}
    for row in run["rows"]:
        old = earlier.get(results.key(row))
        since = "" if old is None else f"{row['ours_us'] / old['ours_us'] - 1:+.0%}"
        table.add_row(*cells(row), since, "; ".join(results.shortfalls(row)))
    return table


def target(measure: dict) -> str:
    """The target of a measure in words, empty where it has none."""
    if measure["most"] is not None:
        return f"at most {measure['most']:g}"
    return f"at least {measure['least']:g}" if measure["least"] is not None else ""


def rich_measures(run: dict) -> Table:
    """The measures, those that miss their target in red."""
    table = Table(title="other measures", title_justify="left")
    for column in ("measure", "value", "unit", "target", "what"):
        table.add_column(column, no_wrap=column != "what")
    for measure in run["measures"]:
        style = "red" if results.misses(measure) else None
        columns = (measure["name"], f"{measure['value']:g}", measure["unit"], target(measure), measure["of"])
        table.add_row(*columns, style=style)
    return table


def markdown(run: dict) -> str:
    """The page."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "onnxruntime", "onnx"))
    most = f"{machine['peak_gmacs']:g}·10⁹ multiply-accumulates a second at the most and for one thread"
    lines = [INTRODUCTION, f"Machine: {machine['cpu']}, {machine['cores']} cores; {most}. {versions}."]
    if machine["load"] >= 0.5:
        load = f"its load average was {machine['load']:g} before this began"
        lines += ["", f"**The machine was not idle**: {load}. Ratios are noisier for it, and speeds too low."]
    lines += ["", "## Networks", "", *head((*COLUMNS, "short of"))]
    lines += [line([*cells(row), "; ".join(results.shortfalls(row))]) for row in run["rows"]]
    lines += ["", "## The rest", "", *head(("measure", "value", "target", "reached", "what it is"))]
    for measure in run["measures"]:
        value = f"{measure['value']:g} {measure['unit']}".strip()
        reached = "" if not target(measure) else "**no**" if results.misses(measure) else "yes"
        lines.append(line([measure["name"], value, target(measure), reached, measure["of"]]))
    lines += ["", "## Not measured", ""]
    lines += [f"- {name}: {reason}" for name, reason in run["unavailable"].items()] or ["Nothing was left out."]
    return "\n".join(lines) + "\n"


def head(names: tuple[str, ...]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(list(names)), line(["---"] * len(names))]


def line(entries: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(entries)} |"
