"""What a run of `make bench` found, as plain data, and what it is held to."""

import json
import platform
from pathlib import Path

MEASURED = ("peak_gmacs", "load")  # of the machine, and not the same in every run
RECORD, PAGE = "results/performance.json", "performance.md"


def record(rows: list[dict], measures: list[dict], unavailable: dict[str, str], peak: float, load: float) -> dict:
    """All of it. ``peak``: 8-bit multiply-accumulates per second of one thread, from registers alone. ``load``: average before this began."""
    from . import peers

    machine = {"cpu": cpu_name(), "cores": cores(), "peak_gmacs": round(peak / 1e9, 1), "load": round(load, 2), "python": platform.python_version()} | peers.versions()
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
    return f"{name}, family {fields.get('cpu family', '?')} model {fields.get('model', '?')}, dot products of {4 * cpu.target().dot_lanes} bytes"


def cores() -> int:
    import os

    return os.cpu_count() or 1


def text(found: dict) -> str:
    """As JSON, a line for each row."""

    def lines(entries: list[dict]) -> str:
        return "[\n" + ",\n".join("    " + json.dumps(entry) for entry in entries) + "\n  ]" if entries else "[]"

    parts = [f'  "{key}": {lines(value) if isinstance(value, list) else json.dumps(value)}' for key, value in found.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def key(entry: dict) -> tuple:
    return (entry["row"], entry["threads"]) if "row" in entry else (entry["name"],)


def comparable(before: dict | None, found: dict) -> bool:
    """Whether two runs are of the same machine and versions."""
    return before is not None and all(before["machine"][name] == value for name, value in found["machine"].items() if name not in MEASURED)


def merged(before: dict, found: dict) -> dict:
    """The earlier run with what was measured again in its place. A row is measured as a whole, so that its ratios stay those of one run."""
    made, stays = dict(found), False
    for part in ("rows", "measures"):
        new = {key(entry): entry for entry in found[part]}
        stays |= any(key(entry) not in new for entry in before[part])
        made[part] = [new.pop(key(entry), entry) for entry in before[part]]
        made[part] += new.values()
    made["unavailable"] = before["unavailable"] | found["unavailable"]
    if stays:
        made["machine"] = found["machine"] | {name: max(before["machine"][name], found["machine"][name]) for name in MEASURED}
    return made


def write(spec: Path, found: dict) -> None:
    """Writes the record and its page into ``spec``; rows that were not measured stay, when they are of this machine and these versions."""
    from . import page

    path = spec / RECORD
    before = json.loads(path.read_text()) if path.exists() else None
    found = merged(before, found) if comparable(before, found) else found
    path.write_text(text(found))
    (spec / PAGE).write_text(page.markdown(found), encoding="utf-8")


def broken_promises(found: dict) -> list[str]:
    """Rows that promise not to be slower in int8 than in float32, and are."""
    return [
        f"{row['row']} with {row['threads']} threads: {row['ours_us']} us, {row['best_float32'][0]} in float32 {row['best_float32'][1]} us"
        for row in found["rows"] if row["promises"] and row["vs_float32"] is not None and row["vs_float32"] < 1
    ]  # fmt: skip


def shortfalls(row: dict) -> list[str]:
    """The targets that a row misses, each with what it reached."""
    have = {"vs_float32": row["vs_float32"], "vs_int8": row["vs_int8"], "vs_torch_ao": row["vs_torch_ao"], "peak": row["peak_share"]}
    words = {
        "vs_float32": "{:.2f} of {:.2f} times float32", "vs_int8": "{:.2f} of {:.2f} times int8", "vs_torch_ao": "{:.2f} of {:.2f} times torch.ao",
        "peak": "{:.0%} of {:.0%} of the peak",
    }  # fmt: skip
    targets = [(name, least) for name, least in row["targets"].items() if least is not None and have[name] is not None]
    return [words[name].format(have[name], least) for name, least in targets if have[name] < least]


def misses(measure: dict) -> bool:
    """Whether a measure misses its target."""
    most, least = measure["most"], measure["least"]
    return (most is not None and measure["value"] > most) or (least is not None and measure["value"] < least)
