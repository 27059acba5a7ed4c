"""The tables of a run: for the terminal, and as ``spec/performance.md``."""

from rich.table import Table

from . import results

INTRODUCTION = """\
# How fast it is

Written by `make bench ARGS=--bench-write` from what it measured, which is kept in [`results/performance.json`](results/performance.json) with the times of all peers.

Times are of this machine and of no other; what carries over are the **ratios**, which come from one process that ran everybody in turn: each round times
every peer once, in an order that moves on, after a call that is not timed, and a time is the median of the rounds. Floats go in and come out. Everybody has
as many threads as the row says, garbage collection is off, and everybody is calibrated with the same data. `vs float32` and `vs int8` are the times of the
best peer divided by ours: 2.00 means that we take half as long. `vs torch.ao` is the same for the best of torch.ao's ways alone.

- *float32*: torch in `inference_mode`, ONNX Runtime; torch.compile where the peers' list of a row has it.
- *int8*: torch.ao on engines x86 and onednn, both also through TorchScript (traced and frozen); ONNX Runtime (QDQ; U8S8 and U8U8 with a scale for each channel).
  In dynamic rows torch.ao's and ONNX Runtime's `quantize_dynamic`.
- *peak*: multiply-accumulates per second over those of a loop of dot products that never leaves the registers: the highest
  of measurements next to each row.
- *bytes*: that have to pass at least: weights, float input and output, the codes of each layer written and read once.
- *short of*: the targets that a row misses. Nothing there: it reaches all of them.
"""


def cell(best: list | None) -> str:
    return "–" if best is None else f"{best[0]} {micro(best[1])}"


def micro(value: float) -> str:
    """Microseconds with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def volume(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:,.0f} kB"


def cells(row: dict) -> list[str]:
    return [
        row["row"], str(row["threads"]), micro(row["ours_us"]), cell(row["best_float32"]), cell(row["best_int8"]), times(row["vs_float32"]), times(row["vs_int8"]),
        times(row["vs_torch_ao"]), f"{row['peak_share']:.0%}", volume(row["bytes"]),
    ]  # fmt: skip


COLUMNS = ("row", "threads", "ours, µs", "best float32, µs", "best int8 peer, µs", "vs float32", "vs int8", "vs torch.ao", "peak", "bytes")


def rich_rows(found: dict, before: dict | None) -> Table:
    """The rows, each beside its time in the run before."""
    made = Table(title="int8 networks, medians of interleaved rounds", title_justify="left")
    for column in COLUMNS:
        made.add_column(column, justify="left" if column == "row" else "right", no_wrap=True)
    made.add_column("since last", justify="right", no_wrap=True)
    made.add_column("short of", style="red")
    earlier = {results.key(row): row for row in before["rows"]} if before else {}
    for row in found["rows"]:
        old = earlier.get(results.key(row))
        since = "" if old is None else f"{row['ours_us'] / old['ours_us'] - 1:+.0%}"
        made.add_row(*cells(row), since, "; ".join(results.shortfalls(row)))
    return made


def target(measure: dict) -> str:
    return f"at most {measure['most']:g}" if measure["most"] is not None else f"at least {measure['least']:g}" if measure["least"] is not None else ""


def rich_measures(found: dict) -> Table:
    made = Table(title="other measures", title_justify="left")
    for column in ("measure", "value", "unit", "target", "what"):
        made.add_column(column, no_wrap=column != "what")
    for measure in found["measures"]:
        made.add_row(measure["name"], f"{measure['value']:g}", measure["unit"], target(measure), measure["of"], style="red" if results.misses(measure) else None)
    return made


def markdown(found: dict) -> str:
    """The page."""
    machine = found["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "onnxruntime", "onnx"))
    most = f"{machine['peak_gmacs']:g}·10⁹ multiply-accumulates a second at the most and for one thread"
    lines = [INTRODUCTION, f"Machine: {machine['cpu']}, {machine['cores']} cores; {most}. {versions}."]
    if machine["load"] >= 0.5:
        lines += ["", f"**The machine was not idle**: its load average was {machine['load']:g} before this began. Ratios are noisier for it, and speeds too low."]
    lines += ["", "## Networks", "", *head((*COLUMNS, "short of"))]
    lines += [line([*cells(row), "; ".join(results.shortfalls(row))]) for row in found["rows"]]
    lines += ["", "## The rest", "", *head(("measure", "value", "target", "reached", "what it is"))]
    for measure in found["measures"]:
        reached = "" if not target(measure) else "**no**" if results.misses(measure) else "yes"
        lines.append(line([measure["name"], f"{measure['value']:g} {measure['unit']}".strip(), target(measure), reached, measure["of"]]))
    lines += ["", "## Not measured", ""]
    lines += [f"- {name}: {reason}" for name, reason in found["unavailable"].items()] or ["Nothing was left out."]
    return "\n".join(lines) + "\n"


def head(names: tuple[str, ...]) -> list[str]:
    return [line(list(names)), line(["---"] * len(names))]


def line(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"
