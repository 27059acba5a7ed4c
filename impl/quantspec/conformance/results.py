"""Results as data: what each backend does, as TOML under version control, so that an upgrade of a backend is a
difference that people read."""

import fnmatch
import json
import platform
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .call import call_text
from .fingerprint import Choice
from .run import Finding

KNOWN = "known.toml"
CONTROL = re.compile(r"[^\t\n -~\x80-\U0010ffff]|[\ud800-\udfff]")  # what no TOML has between its quotes


@dataclass(frozen=True, eq=False)
class Known:
    """A divergence that is known: patterns of the backend, clause, operation and kind of CPU that it stands for, the
    shapes of the differences, why it is so, and where it was reported."""

    backend: str
    clause: str
    operation: str
    shapes: list[str]
    reason: str
    upstream: str = ""
    cpu: str = "*"

    def covers(self, backend: str, cpu: str, clause: str, operation: str, shape: str) -> bool:
        """Whether a failure is the one that this entry explains."""
        values, patterns = (backend, cpu, clause, operation), (self.backend, self.cpu, self.clause, self.operation)
        return shape in self.shapes and all(map(fnmatch.fnmatchcase, values, patterns))


@dataclass(frozen=True)
class Results:
    """All that is recorded of one backend on one kind of CPU. Findings and choices are the dicts of their TOML
    tables; ``passed_on`` has the checksums of what its adapter passes on, by operation."""

    backend: str
    version: str
    cpu: str
    findings: tuple[dict[str, Any], ...]
    choices: tuple[dict[str, Any], ...]
    passed_on: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return f"{self.backend}-{self.version}-{self.cpu}".replace("/", "-")


def cpu() -> str:
    """The kind of this machine's CPU, as far as kernels are chosen by it: ``avx512-vnni``, ``avx512-vnni-amx``,
    ``avx2``, ..."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    vnni = "-vnni" if torch.cpu._is_vnni_supported() else ""
    amx = "-amx" if torch.cpu._is_amx_tile_supported() else ""
    return f"{torch.backends.cpu.get_cpu_capability().lower()}{vnni}{amx}"


def recorded(
    backend: str, version: str, kind: str, findings: list[Finding], choices: list[Choice], passed_on: dict[str, str]
) -> Results:
    """Findings, choices and checksums as what their files will say."""
    tables = tuple(map(finding_table, findings)), tuple(map(choice_table, choices))
    return Results(backend, version, kind, *tables, passed_on)


def finding_table(finding: Finding) -> dict[str, Any]:
    """The TOML table of a finding."""
    table: dict[str, Any] = {"clause": finding.clause, "operation": finding.operation, "outcome": finding.outcome}
    if finding.outcome == "pass":
        table |= {"examples": finding.examples, "outputs": finding.outputs}
    elif finding.outcome == "not offered":
        table |= {"reason": finding.reason}
    else:
        table |= {"shape": finding.shape, "call": call_text(finding.call)}
        table |= {"before": [call_text(call) for call in finding.before]}
        table |= {"allowed": finding.allowed, "got": finding.got, "reproduce": finding.reproduce}
        if finding.clause == "BAK-DIALECT":
            table |= {"outputs": finding.outputs, "differ": finding.differ}
    return table | ({"dialects": list(finding.dialects)} if finding.dialects else {})


def choice_table(choice: Choice) -> dict[str, Any]:
    """The TOML table of a choice."""
    table: dict[str, Any] = {"clause": choice.clause, "operation": choice.operation, "place": choice.place}
    table |= {"choice": choice.choice, "outputs": choice.outputs}
    return table | ({"counterexample": choice.counterexample} if choice.counterexample else {})


def write(root: Path, results: Results) -> None:
    """Writes the folder of one backend anew: a file for each operation. Folders of its other versions on this CPU go,
    as they are what it did before."""
    folder = root / results.folder
    folder.mkdir(parents=True, exist_ok=True)
    for old in folders(root):
        earlier = read_folder(old)
        if (earlier.backend, earlier.cpu) == (results.backend, results.cpu):
            shutil.rmtree(old)
        elif old == folder:
            raise ValueError(f"{folder}: it holds the results of {earlier.backend!r}, not of {results.backend!r}")
    folder.mkdir(exist_ok=True)
    head = {"backend": results.backend, "version": results.version, "cpu": results.cpu}
    for operation in dict.fromkeys(finding["operation"] for finding in results.findings):
        lines = [f"{key} = {toml(value)}" for key, value in head.items()]
        if operation in results.passed_on:
            lines.append(f"passed_on = {json.dumps(results.passed_on[operation])}")
        for kind, tables in (("choice", results.choices), ("finding", results.findings)):
            for table in tables:
                if table["operation"] == operation:
                    said = {key: value for key, value in table.items() if key != "operation" and value not in ("", [])}
                    lines += ["", f"[[{kind}]]", *(f"{key} = {toml(value)}" for key, value in said.items())]
        (folder / f"{operation}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def toml(value: Any) -> str:
    """A value as TOML: a JSON string is one; text of several lines stands as it is."""
    if isinstance(value, str) and "\n" in value and "'''" not in value and not CONTROL.search(value):
        return f"'''\n{value}'''"
    # JSON leaves DEL as it is, and halves of pairs, which no file can hold.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.encode("utf-8", "replace").decode("utf-8")


def read_folder(folder: Path) -> Results:
    """The results in a folder."""
    findings: list[dict[str, Any]] = []
    choices: list[dict[str, Any]] = []
    head: dict[str, str] = {}
    passed_on: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        head = {key: data[key] for key in ("backend", "version", "cpu")}
        if "passed_on" in data:
            passed_on[path.stem] = data["passed_on"]
        findings += [{"operation": path.stem, **table} for table in data.get("finding", ())]
        choices += [{"operation": path.stem, **table} for table in data.get("choice", ())]
    return Results(head["backend"], head["version"], head["cpu"], tuple(findings), tuple(choices), passed_on)


def read_all(root: Path) -> list[Results]:
    """The results of all backends, by name."""
    return [read_folder(folder) for folder in folders(root)]


def folders(root: Path) -> list[Path]:
    """The folders that have results."""
    return [folder for folder in sorted(root.iterdir()) if folder.is_dir() and any(folder.glob("*.toml"))]


def read_known(root: Path) -> list[Known]:
    """The known divergences; none where there is no file."""
    path = root / KNOWN
    if not path.exists():
        return []
    return [Known(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8")).get("known", ())]


def complaints(all_results: list[Results], divergences: list[Known]) -> list[str]:
    """What is wrong with a whole record: failures that no entry explains, and entries that explain nothing."""
    stale = []
    for entry in unneeded(all_results, divergences):
        failure = f"{entry.backend} {entry.clause} {entry.operation}"
        stale.append(f"{KNOWN}: {failure} is said to fail, and nothing does. Delete the entry.")
    return unexplained(all_results, divergences) + stale


def unexplained(all_results: list[Results], divergences: list[Known]) -> list[str]:
    """A line for each failure that no entry explains."""
    lines = []
    for results in all_results:
        for finding in results.findings:
            if finding["outcome"] == "fails" and covering(divergences, results, finding) is None:
                failure = f"{results.backend} {finding['clause']} {finding['operation']}"
                lines.append(f"{failure}: differs, {finding['shape']}; no reason is recorded.")
    return lines


def unneeded(all_results: list[Results], divergences: list[Known]) -> list[Known]:
    """The entries that explain nothing, although they are about one of the backends."""
    used = {
        covering(divergences, results, finding)
        for results in all_results
        for finding in results.findings
        if finding["outcome"] == "fails"
    }
    here = {results.backend for results in all_results}
    about = [entry for entry in divergences if any(fnmatch.fnmatchcase(name, entry.backend) for name in here)]
    return [entry for entry in about if entry not in used]


def passes_on_otherwise(now: Results, before: list[Results]) -> list[str]:
    """The operations whose adapter passes on something else than when the same backend's results were recorded: what a
    divergence is known of is then another call."""
    lines = []
    for old in before:
        if (old.backend, old.version, old.cpu) == (now.backend, now.version, now.cpu):
            for operation, checksum in old.passed_on.items():
                if now.passed_on.get(operation) != checksum:
                    lines.append(f"{now.backend} {operation}: its adapter passes on other calls than were recorded.")
    return lines


def covering(divergences: list[Known], results: Results, finding: Mapping[str, Any]) -> Known | None:
    """The entry that explains a backend's failure."""
    named = results.backend, results.cpu, finding["clause"], finding["operation"], finding["shape"]
    return next((entry for entry in divergences if entry.covers(*named)), None)
