"""What a run of `make bench` found, as plain data, and what it is held to."""

import json
import os
import platform
import re
from pathlib import Path

from . import HELD_TO

MEASURED = ("peak_gmacs", "load")  # of the machine, and not the same in every run
# The records of all machines; in it for each the record (.json), its page (.md) and a chart of its rows (.svg).
FOLDER = "results/performance"
PAGE = "performance.md"  # of all machines
CHART = "speed.svg"  # what the first of them did with one example and one thread


def record(rows: list[dict], measures: list[dict], unavailable: dict[str, str], peak: float, load: float) -> dict:
    """All of a run.

    ``peak``: 8-bit multiply-accumulates per second of one thread, from registers or tiles alone. ``load``: the load
    average before the run began.
    """
    from . import peers

    machine = {
        "cpu": cpu_name(),
        "cores": cores(),
        "peak_gmacs": round(peak / 1e9, 1),
        "load": round(load, 2),
        "python": platform.python_version(),
        **peers.versions(),
    }
    return {"machine": machine, "rows": rows, "measures": measures, "unavailable": unavailable}


def cpu_name() -> str:
    """The CPU's own name, its family and model, and which dot product it has."""
    from quantspec.kernels import cpu

    fields: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name", platform.processor() or platform.machine())
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    held = f", held to {HELD_TO}" if HELD_TO else ""
    lanes = cpu.target().dot_lanes
    return f"{name}, {family}{held}, {f'dot products of {4 * lanes} bytes' if lanes else 'no dot products of bytes'}"


def cores() -> int:
    """How many cores there are."""
    return os.cpu_count() or 1


def machine_name(run: dict) -> str:
    """What the files of a run's machine are called: its CPU, with family and model."""
    cpu, _, _ = run["machine"]["cpu"].rpartition(", ")
    return re.sub("[^a-z0-9]+", "-", cpu.replace("(R)", "").lower())


def recorded(spec: Path) -> list[dict]:
    """The run of each machine that ``spec`` has a record of, by their names."""
    return [json.loads(path.read_text()) for path in sorted((spec / FOLDER).glob("*.json"))]


def text(run: dict) -> str:
    """A run as JSON, a line for each row."""

    def lines(entries: list[dict]) -> str:
        return "[\n" + ",\n".join("    " + json.dumps(entry) for entry in entries) + "\n  ]" if entries else "[]"

    values = {key: lines(value) if isinstance(value, list) else json.dumps(value) for key, value in run.items()}
    return "{\n" + ",\n".join(f'  "{key}": {value}' for key, value in values.items()) + "\n}\n"


def key(entry: dict) -> tuple:
    """What tells a row or a measure from others."""
    return (entry["row"], entry["threads"]) if "row" in entry else (entry["name"],)


def comparable(before: dict | None, run: dict) -> bool:
    """Whether two runs are of the same machine and versions."""
    if before is None:
        return False
    return all(before["machine"][name] == value for name, value in run["machine"].items() if name not in MEASURED)


def merged(before: dict, run: dict) -> dict:
    """The earlier run with what was measured again in its place.

    A row is measured as a whole, so that its ratios stay those of one run.
    """
    both, stays = dict(run), False
    for part in ("rows", "measures"):
        new = {key(entry): entry for entry in run[part]}
        stays |= any(key(entry) not in new for entry in before[part])
        both[part] = [new.pop(key(entry), entry) for entry in before[part]]
        both[part] += new.values()
    both["unavailable"] = before["unavailable"] | run["unavailable"]
    if stays:
        highest = {name: max(before["machine"][name], run["machine"][name]) for name in MEASURED}
        both["machine"] = run["machine"] | highest
    return both


def write(spec: Path, run: dict) -> None:
    """Writes the record of this machine into ``spec``, and the pages and charts of all machines.

    Rows that were not measured stay, when they are of this machine and these versions.
    """
    path = spec / FOLDER / f"{machine_name(run)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else None
    run = merged(before, run) if comparable(before, run) else run
    path.write_text(text(run))
    for name, content in made(recorded(spec)).items():
        (spec / name).write_text(content, encoding="utf-8")


def made(runs: list[dict]) -> dict[str, str]:
    """What is made of the runs of all machines, by its place in ``spec``."""
    from . import chart, page

    files = {PAGE: page.markdown(runs), CHART: chart.of_one_example(runs[0])}
    for run in runs:
        name = f"{FOLDER}/{machine_name(run)}"
        files |= {f"{name}.md": page.of_machine(run), f"{name}.svg": chart.of_all_rows(run)}
    return files


def broken_promises(run: dict) -> list[str]:
    """Rows that promise not to be slower in int8 than in float32, and are."""
    lines = []
    for row in run["rows"]:
        if row["promises"] and row["vs_float32"] is not None and row["vs_float32"] < 1:
            peer, time = row["best_float32"]
            name = f"{row['row']} with {row['threads']} threads"
            lines.append(f"{name}: {row['ours_us']} us, {peer} in float32 {time} us")
    return lines


def shortfalls(row: dict) -> list[str]:
    """The targets that a row misses, each with what it reached."""
    words = {
        "vs_float32": "{:.2f} of {:.2f} times float32",
        "vs_int8": "{:.2f} of {:.2f} times int8",
        "peak": "{:.0%} of {:.0%} of the peak",
    }
    reached = {name: row["peak_share" if name == "peak" else name] for name in words}
    targets = {name: least for name, least in row["targets"].items() if least is not None and reached[name] is not None}
    return [words[name].format(reached[name], least) for name, least in targets.items() if reached[name] < least]


def misses(measure: dict) -> bool:
    """Whether a measure misses its target."""
    most, least = measure["most"], measure["least"]
    return (most is not None and measure["value"] > most) or (least is not None and measure["value"] < least)
