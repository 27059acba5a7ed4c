"""Runs the suite against every fault: ``python -m faults.kill``.

Fails unless each is rejected by every clause that it names. Everything slow is imported once, here; quantspec is not,
so that each forked child imports it with its own fault inside.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

# Before torch and numpy look at it: two children at once must not fight over two cores.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis.extra.numpy  # noqa: E402, F401
import numpy as np  # noqa: E402, F401
import sybil  # noqa: E402, F401
import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402

import given_backend
from faults import child  # noqa: E402
from faults.fault import ROOT, Fault, Stale, chosen, load, too_few  # noqa: E402

AT_ONCE = 2
RESULTS = ROOT / "spec" / "results" / "faults.json"


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    ``status``: killed, survived, broken, hung or stale. ``killed``: by clause, the test that rejected it.
    """

    fault: Fault
    status: str
    killed: dict[str, str] = field(default_factory=dict)
    detail: str = ""


@dataclass(frozen=True)
class Job:
    """A call in a child of its own; ``result`` is the file that it writes."""

    name: str
    call: Callable
    arguments: tuple
    result: Path

    def answer(self) -> dict | None:
        """What the child found, or None when it died before it could say."""
        return json.loads(self.result.read_text()) if self.result.exists() else None


@dataclass(frozen=True)
class Setting:
    """Where results and logs go, the seconds that a fault's tests may take, and where to print."""

    results: Path
    logs: Path
    limit: float
    console: Console


def run_jobs(jobs: list[Job], limit: float, title: str, console: Console) -> Iterator[tuple[Job, bool]]:
    """Runs the jobs, two at a time.

    Gives each job and whether it ended within ``limit`` seconds, in the order in which they end.
    """
    waiting, running = list(reversed(jobs)), {}
    columns = [TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    columns.append(TextColumn("{task.fields[now]}"))
    fork = multiprocessing.get_context("fork")
    # No thread of its own redraws the bar: a process that forks must have one thread only.
    settings = dict(console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    with Progress(*columns, **settings) as bar:
        task = bar.add_task(title, total=len(jobs), now="")
        try:
            while waiting or running:
                while waiting and len(running) < AT_ONCE:
                    job = waiting.pop()
                    process = fork.Process(target=job.call, args=job.arguments)
                    process.start()
                    running[process] = (job, time.monotonic() + limit)
                wait([process.sentinel for process in running], timeout=0.2)
                for process, (job, deadline) in list(running.items()):
                    if process.is_alive() and time.monotonic() < deadline:
                        continue
                    ended = not process.is_alive()
                    end(process)
                    del running[process]
                    bar.advance(task)
                    yield job, ended
                bar.update(task, now=" ".join(job.name for job, _ in running.values()), refresh=True)
        finally:
            for process in running:
                end(process)


def end(process: multiprocessing.Process) -> None:
    """The child is gone, and so is whatever it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()  # it has not made its own group yet, or nothing is left of it
    process.join()


def test_files(clauses: list[str] | None) -> list[str]:
    """The test files that name clauses: any, or one of these."""
    paths = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if path.name != given_backend.HOME]
    texts = {str(path): path.read_text(encoding="utf-8") for path in paths}
    # Who only writes about clauses, such as the tests of this, imports nothing to name them with.
    naming = {path: text for path, text in texts.items() if re.search("^from evidence import .*clause", text, re.M)}
    return [path for path, text in naming.items() if clauses is None or any(word in text for word in clauses)]


def run_survey(clauses: list[str] | None, setting: Setting) -> tuple[dict, dict[str, str], list[str]]:
    """All tests of these clauses without a fault: (tests by id, chapters by clause, what went wrong)."""
    jobs = []
    for file in test_files(clauses):
        stem = Path(file).stem
        result, log = setting.results / f"{stem}.json", setting.logs / f"without-fault-{stem}.log"
        jobs.append(Job(stem, child.survey, ([file], clauses, result, log), result))
    tests, chapters, wrong = {}, {}, []
    for job, ended in run_jobs(jobs, 5 * setting.limit, "without a fault", setting.console):
        answer, see = job.answer(), f"see {os.path.relpath(job.arguments[-1])}"
        if not ended or answer is None:
            what = "died" if ended else f"took more than {5 * setting.limit:.0f} seconds"
            wrong.append(f"{job.name} {what} without any fault; {see}")
            continue
        tests |= answer["tests"]
        chapters |= answer["chapters"]
        wrong += [f"{test} fails without any fault; {see}" for test in answer["failed"]]
        if answer["code"] not in (0, 1, 5):  # 5: no test there names one of the clauses
            wrong.append(f"pytest ended with exit code {answer['code']} on {job.name} without any fault; {see}")
    return tests, chapters, wrong


def run_attacks(faults: list[Fault], tests: dict, setting: Setting) -> list[Outcome]:
    """Every fault against the tests of its clauses, in the order of the faults."""
    seconds = {id_: test["seconds"] for id_, test in tests.items()}
    jobs, outcomes = [], {}
    for fault in faults:
        try:
            source = fault.patched()
            compile("" if fault.is_text else source, fault.name, "exec")
        except (Stale, SyntaxError) as error:
            outcomes[fault.name] = Outcome(fault, "stale" if isinstance(error, Stale) else "broken", detail=str(error))
            continue
        files = sorted({test["file"] for test in tests.values() if set(test["clauses"]) & set(fault.clauses)})
        result, log = setting.results / f"{fault.name}.json", setting.logs / f"{fault.name}.log"
        if files:
            jobs.append(Job(fault.name, child.attack, (fault, files, seconds, result, log), result))
        else:
            outcomes[fault.name] = Outcome(fault, "survived", detail="no test names its clauses")
    for job, ended in run_jobs(jobs, setting.limit, "faults", setting.console):
        fault, answer = job.arguments[0], job.answer()
        if not ended:
            outcome = Outcome(fault, "hung", detail=f"not done after {setting.limit:.0f} seconds")
        elif answer is None:
            outcome = Outcome(fault, "broken", detail="the child died")
        elif answer["broken"]:
            outcome = Outcome(fault, "broken", answer["killed"], answer["broken"])
        else:
            status = "killed" if set(answer["killed"]) == set(fault.clauses) else "survived"
            outcome = Outcome(fault, status, answer["killed"])
        outcomes[fault.name] = outcome
    return [outcomes[fault.name] for fault in faults]


def print_matrix(outcomes: list[Outcome], console: Console) -> None:
    """The kill matrix: for each fault and each clause that had to reject it the test that did."""
    table = Table(box=None, pad_edge=False)
    longest_name = max(len(outcome.fault.name) for outcome in outcomes)
    longest_id = max(len(id_) for outcome in outcomes for id_ in outcome.fault.clauses)
    table.add_column("fault", no_wrap=True, width=longest_name)
    table.add_column("clause", no_wrap=True, width=longest_id)
    table.add_column("killed by", overflow="ellipsis")  # a test's name is one word, and is cut where the line ends
    for outcome in outcomes:
        for index, id_ in enumerate(outcome.fault.clauses):
            test = outcome.killed.get(id_, "").rpartition("::")[2].removeprefix("test_")
            killed_by = test.replace("[", r"\[") or f"[bold red]{outcome.status}"
            table.add_row("" if index else outcome.fault.name, id_, killed_by)
    console.print(table)


def advice(outcome: Outcome, logs: Path) -> str:
    """What to do about a fault that was not killed."""
    fault, log = outcome.fault, logs / f"{outcome.fault.name}.log"
    see = f"see {os.path.relpath(log)}" if log.exists() else "no test ran"
    if outcome.status == "survived":
        missing = [id_ for id_ in fault.clauses if id_ not in outcome.killed]
        these = "this clause" if len(missing) == 1 else "these clauses"
        what = f"add or strengthen a test that names {these}"
        what += ", or let the fault name only clauses whose sentence it violates"
        return f"{fault.name} survived {', '.join(missing)}: {what}; {outcome.detail or see}\n  {fault.why}"
    if outcome.status == "stale":
        return f"{outcome.detail}; write it anew for the module as it is now"
    if outcome.status == "hung":
        return f"{fault.name} hung, which is no answer ({outcome.detail}): let the fault end, or raise --limit; {see}"
    return f"{fault.name} is broken, which is no answer: {outcome.detail}; {see}"


def results_text(outcomes: list[Outcome], chapters: dict[str, str]) -> str:
    """For each clause the names of the faults that it rejected, as JSON."""
    killed = {}
    for id_ in sorted(chapters):
        killed[id_] = sorted(outcome.fault.name for outcome in outcomes if id_ in outcome.killed)
    return json.dumps(killed, indent=1) + "\n"


def keep_results(text: str, check: bool) -> str | None:
    """Writes the results, or only compares them; a message when they were to be as they are and are not."""
    if check:
        current = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
        advice = "run `make faults` and commit it"
        return None if current == text else f"{os.path.relpath(RESULTS)} is not what this run found: {advice}"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    return None


def faults_of(path: str) -> list[Fault]:
    """``FAULTS`` of a file that is no part of the suite."""
    spec = importlib.util.spec_from_file_location("faults_of_a_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FAULTS


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    description = "Attack the suite with plausible wrong implementations."
    parser = argparse.ArgumentParser(prog="make faults", description=description)
    add = parser.add_argument
    only = "only these faults, or those that these clauses must reject; writes nothing"
    add("--only", nargs="+", default=[], metavar="NAME", help=only)
    add("--check", action="store_true", help="write nothing, and fail if spec/results/faults.json would change")
    limit = "how long the tests of one fault may take (default 120)"
    add("--limit", type=float, default=120.0, metavar="SECONDS", help=limit)
    file = "the faults in this Python file's FAULTS instead of the suite's; writes nothing"
    add("--from", dest="file", metavar="FILE", help=file)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; the exit code is 1 unless every fault was rejected by every clause that it names."""
    options = parsed(argv)
    console, complete = Console(highlight=False), not options.only and not options.file
    faults = faults_of(options.file) if options.file else load()
    try:
        faults = chosen(faults, options.only) if options.only else faults
    except ValueError as error:
        raise SystemExit(f"--only: {error}") from error
    logs = Path(options.file).parent / "logs" if options.file else ROOT / "out" / "faults"
    logs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="quantspec-faults-") as folder:
        setting = Setting(Path(folder), logs, options.limit, console)
        os.environ.setdefault("QUANTSPEC_CACHE", str(setting.results / "networks"))
        clauses = None if complete else sorted({id_ for fault in faults for id_ in fault.clauses})
        tests, chapters, wrong = run_survey(clauses, setting)
        outcomes = [] if wrong else run_attacks(faults, tests, setting)
    if not wrong:
        print_matrix(outcomes, console)
        wrong = [advice(outcome, logs) for outcome in outcomes if outcome.status != "killed"]
        wrong += too_few(faults, chapters) if complete else []
    if complete and not wrong and (message := keep_results(results_text(outcomes, chapters), options.check)):
        wrong.append(message)
    for line in wrong:
        console.print(line, markup=False, soft_wrap=True)
    killed = sum(outcome.status == "killed" for outcome in outcomes)
    print(f"faults: {killed} of {len(faults)} killed")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
