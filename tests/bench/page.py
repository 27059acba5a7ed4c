"""The tables of a run: for the terminal, and as pages of ``spec``."""

from collections.abc import Callable, Iterable

from rich.table import Table

from . import results

BFLOAT16 = "openvino bfloat16"  # this peer's name
INTRODUCTION = """\
# How fast it is

Written by `make bench ARGS=--bench-write` on each machine from what it measured there. Which peer is the fastest, and
how far away, depends on the processor.
"""

HOW = """\
## How it is measured

quantspec and all peers are timed round-robin in one process. Each round times every peer once, in a rotating order
and after one to five untimed calls, as many as fit into 20 ms, so that what a cache can hold is there for all; a time
is the median of the rounds. Inputs and outputs are float32. All use the same number of threads and the same
calibration data, and garbage collection is off. There are up to 400 rounds, as many as fit into 1.5 seconds, and at
least 15; 7 where a round takes a quarter of a second, 5 where it takes one. Absolute times belong to a machine; compare
the **ratios**.

OpenVINO rounds to bfloat16 inside a float32 network where the processor multiplies that faster, unless it is told not
to. It is measured both ways: told to stay with float32, it is among the float32 peers; as it is by itself, it has a
column of its own, which is empty where it keeps to float32. NNCF's int8 network is measured both ways too, since part
of it stays in float; the faster counts. torch.compile and torchao's pt2e are compiled by inductor, for up to a minute
each, and so they are tried in few rows and on one thread; pt2e is calibrated with batches of the row's own shape, as it
is exported for one.

| column | meaning |
| --- | --- |
| ours | the time of one call of quantspec's int8 network |
| best float32 | the fastest of torch in `inference_mode`, ONNX Runtime, OpenVINO in float32 and, in a few rows, \
torch.compile |
| best int8 peer | the fastest of torch.ao (engines x86 and onednn, each also frozen by TorchScript), ONNX Runtime \
(QDQ; U8S8 and U8U8, one scale per channel), OpenVINO (quantized by NNCF) and, in a few rows, torchao (pt2e, \
inductor); in dynamic rows `quantize_dynamic` of the first two and weights compressed by NNCF |
| vs float32, vs int8 | the time of that peer divided by ours: 2.00 means that quantspec takes half as long, \
**bold** below 1.00 means that the peer is faster |
| vs torch.ao | the same for the fastest variant of torch.ao |
| vs bfloat16 | the same for the float network in OpenVINO, which computes it in bfloat16 |
| peak | multiply-accumulates per second, as a share of products on registers or tiles alone, measured next to the row |
| memory traffic | the minimum: weights, float input and output, and the codes of each layer written and read once |
| targets | the ratios and the share of the peak that the row is held to |
| missed | the targets that the row does not reach, with what it reached |
"""

WHY = """\
## Where a peer is faster, and why

- **LSTM**: sigmoid and tanh are the float32 nearest to their value (DYN-RECURRENT), so that all backends can give the
  same bits. That takes float64, and more than a quarter of the time of sixteen samples; approximations in float32 take
  a fraction of it, and differ in the last bits. A table of pieces, float32 in two parts, and a first try with a test of
  its last bits take as many instructions. Where vectors of 64 bytes have units of their own (AMD's family 26), no peer
  is faster.
- **Weights alone, 4 rows**: the inputs keep all their bits and sums are exact (DYN-WEIGHT-ONLY), which takes four to
  six products of bytes. A peer rounds the inputs to bfloat16, of which such a CPU multiplies half as many at a time as
  of bytes: four products alone, at the peak, take one and a half times as long as all of that peer's layer on AMD's
  family 26. For one row both wait for the weights.
- **Bags of embeddings**: rows are fetched 64 before they are needed, for tables that lie in memory: 1024 bags of a
  million rows take 0.42 of the time of the fastest peer on AMD's family 26. The table of 100,000 rows here lies in the
  third-level cache, and 16 before would be a tenth faster.
- **AVX2**: sums are exact (INT-LINEAR), where the peers' sums of two products saturate in 16 bits: 62,140 of 65,536
  outputs of a layer on codes of the full range are others. Exact pairs (STA-PAIRS) take four operations for 32 products
  of bytes, theirs three, so that a kernel at its limit has 0.75 of their speed. Adding two steps in 16 bits, parts of K
  that stay in the first-level cache, and tiles of another form gained nothing.
- **Transformers**: products take 86 % of the time on AMD's family 26 and 90 % on family 25, at 88 and 92 to 98 % of the
  peak. The rest is attention, layer normalization by torch, and Python between them, which a peer in C++ has not.
- **Wide layers and ResNets** on many samples: all peers are within a tenth of the peak, and ratios differ by as much
  from run to run.
- **Two threads** gain little where a call takes less than a tenth of a millisecond, or waits for memory.
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


def marked(value: float | None) -> str:
    """A ratio of times in Markdown: bold where the peer is faster."""
    return f"**{times(value)}**" if value is not None and value < 1 else times(value)


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
    "vs bfloat16": lambda row: times(vs_bfloat16(row)),
    "peak": lambda row: "–" if row["peak_share"] is None else f"{row['peak_share']:.0%}",
    "memory traffic": lambda row: volume(row["bytes"]),
}


def vs_bfloat16(row: dict) -> float | None:
    """The time of the float network in bfloat16 over ours; None where nobody computed in that."""
    seconds = row["peers_us"].get(BFLOAT16)
    return None if seconds is None else seconds / row["ours_us"]


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


def markdown(runs: list[dict]) -> str:
    """The page of all machines."""
    lines = [INTRODUCTION.rstrip()]
    for run in runs:
        file = f"{results.FOLDER}/{results.machine_name(run)}"
        picture = "Bars, a pair for each network: how many times as fast quantspec is as the best float32 and int8 peer"
        tables = f"[All rows and measures]({file}.md), and [the times of all peers]({file}.json)."
        lines += ["", f"## {title(run)}", "", versions(run), *busy(run), "", *summary(run), "", tables]
        lines += ["", f"![{picture}]({file}.svg)"]
    return "\n".join([*lines, "", WHY.rstrip(), "", HOW.rstrip()]) + "\n"


def title(run: dict) -> str:
    """The machine in a few words."""
    name, *rest = run["machine"]["cpu"].replace("(R)", "").split(", ")
    return ", ".join([name, *(part for part in rest if part.startswith("held to"))])


def versions(run: dict) -> str:
    """The machine, and the versions of what was measured."""
    machine = run["machine"]
    packages = ("python", "torch", "onnxruntime", "onnx", "openvino", "nncf", "torchao")
    named = ", ".join(f"{name} {machine[name]}" for name in packages if name in machine)
    peak = f"; at most {machine['peak_gmacs']:g}·10⁹ multiply-accumulates per second and thread"
    return f"{machine['cpu']}, {machine['cores']} cores{peak if machine['peak_gmacs'] else ''}. {named}."


def busy(run: dict) -> list[str]:
    """A paragraph where the machine had other work, which makes ratios noisier."""
    load = run["machine"]["load"]
    if load < 0.5:
        return []
    first = f"**The machine was not idle**: its load average was {load:g} before the run."
    return ["", f"{first} Ratios are noisier and speeds lower than on an idle one."]


def of_machine(run: dict) -> str:
    """The page of a machine: its tables."""
    lines = [f"# How fast it is: {title(run)}", "", versions(run), ""]
    lines.append("[The page of all machines](../../performance.md) says what the columns are, and how it is measured.")
    for threads in sorted({row["threads"] for row in run["rows"]}):
        lines += ["", f"## Networks, {count(threads, 'thread')}", "", *network_table(run, threads)]
    lines += ["", "## Other measures", "", *head(("measure", "value", "target", "reached", "what it is"), (1,))]
    for measure in run["measures"]:
        value = f"{measure['value']:g} {measure['unit']}".strip()
        reached = "" if not target(measure) else "**no**" if results.misses(measure) else "yes"
        lines.append(line([measure["name"], value, target(measure), reached, measure["of"]]))
    lines += ["", "## Not measured", ""]
    lines += [f"- {name}: {reason}" for name, reason in run["unavailable"].items()] or ["Nothing was left out."]
    return "\n".join(lines) + "\n"


def summary(run: dict) -> list[str]:
    """What the rows come to, and where quantspec is slower than a peer or misses a target."""
    lines = []
    for threads in sorted({row["threads"] for row in run["rows"]}):
        rows = [row for row in run["rows"] if row["threads"] == threads]
        spans = [
            f"{min(ratios):.2f} to {max(ratios):.2f} times as fast as the best {kind}"
            for key, kind in (("vs_float32", "float32"), ("vs_int8", "int8 peer"))
            if (ratios := [row[key] for row in rows if row[key] is not None])
        ]
        lines.append(f"- {count(threads, 'thread')}, {count(len(rows), 'row')}: {', '.join(spans)}.")
    others = [ratio for row in run["rows"] if (ratio := vs_bfloat16(row)) is not None]
    if others:
        span = f"{min(others):.2f} to {max(others):.2f} times as fast as that"
        lines.append(f"- OpenVINO by itself computes the float networks in bfloat16 here: int8 is {span}.")
    tried = [row["row"] for row in run["rows"] if "torchao pt2e" in row["peers_us"]]
    if tried:
        lines.append(f"- torchao's pt2e, compiled by inductor, is among the peers of {', '.join(tried)}.")
    slower = {
        f"{row['row']}, {count(row['threads'], 'thread')}": row[key]
        for row in run["rows"]
        for key in ("vs_float32", "vs_int8")
        if row[key] is not None and row[key] < 1
    }
    named = "; ".join(f"{name} ({ratio:.2f})" for name, ratio in slower.items())
    lines.append(f"- A peer is faster in {count(len(slower), 'row')}{': ' + named if named else ''}.")
    missed = [entry["name"] for entry in run["measures"] if results.misses(entry)]
    missed += [f"{row['row']}, {count(row['threads'], 'thread')}" for row in run["rows"] if results.shortfalls(row)]
    lines.append(f"- Targets missed: {'; '.join(missed) or 'none'}.")
    return lines


def network_table(run: dict, threads: int) -> list[str]:
    """The rows with a number of threads."""
    ratios = {
        "vs float32": lambda row: row["vs_float32"],
        "vs int8": lambda row: row["vs_int8"],
        "vs torch.ao": lambda row: row["vs_torch_ao"],
        "vs bfloat16": vs_bfloat16,
    }
    columns = [name for name in COLUMNS if name != "threads"]
    lines = head((*columns, "targets", "missed"), range(1, len(columns)))
    for row in run["rows"]:
        if row["threads"] == threads:
            texts = [marked(ratios[name](row)) if name in ratios else COLUMNS[name](row) for name in columns]
            lines.append(line([*texts, targets(row), "; ".join(results.shortfalls(row))]))
    return lines


def targets(row: dict) -> str:
    """What a row is held to."""
    words = {"vs_float32": "{:g}x float32", "vs_int8": "{:g}x int8", "peak": "{:.0%} of peak"}
    return ", ".join(words[name].format(least) for name, least in row["targets"].items() if least is not None)


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def head(names: Iterable[str], right: Iterable[int] = ()) -> list[str]:
    """The first two lines of a Markdown table; the columns ``right`` hold numbers."""
    cells, numbers = list(names), set(right)
    return [line(cells), line(["---:" if index in numbers else "---" for index in range(len(cells))])]


def line(entries: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(entries)} |"
