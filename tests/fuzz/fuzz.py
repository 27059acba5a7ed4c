"""Loads damaged and forged files in children of this process, and runs what loads: ``python -m fuzz.fuzz``.

Each file has a number, from which alone it is made. A child says before each file which it is, so that one that crashes
or hangs tells by what. Found are: an end of the child; more than 2 s of processor time to load a file; more memory
than three times the file and what it states (STA-LIMITS); an error of another kind than a file may cause; and outputs
of a damaged file that are not those of the network that was saved. What loads is run on an input: a file states what it
costs on one value, and may take so much for each value of the input. ``--bounds``: kernels that check what they touch
(STA-BOUNDS), whose findings are found too.
"""

import argparse
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "files"))

import sympy  # noqa: E402, F401 - which torch loads when it first needs it: 40 MB that no file takes
import torch  # noqa: E402
from damage import RUNNING, changed_bytes, changed_json, changed_tensors, larger_numbers  # noqa: E402
from every_step import parts as every_parts  # noqa: E402
from every_step import resigned  # noqa: E402
from stored import NETWORKS, written  # noqa: E402
from test_model_storage import WORDS, blocks, whole  # noqa: E402

import bounds  # noqa: E402
import quantspec  # noqa: E402
from quantspec.storage import arrays, file, limits  # noqa: E402

SECONDS, WALL = 2.0, 60.0
OPERATION = 1e-7  # seconds, of those that a file states, for each value of the input
SLACK = 2**24  # bytes that the process itself comes and goes by
MOST = limits.Limits(2**28, 2**18)  # what a cautious caller allows
CHILD = 250  # files, after which another child goes on


@dataclass(frozen=True)
class Subject:
    """A file that was saved, and what its network is run on."""

    name: str
    data: bytes
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    model: torch.nn.Module | None
    inputs: tuple[torch.Tensor, ...]
    outputs: list[torch.Tensor]

    def load(self, path: str) -> Any:
        return quantspec.load(path, model=self.model, max_memory=MOST.memory, max_work=MOST.work)


def flat(value: Any) -> list[torch.Tensor]:
    """The tensors of an output."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in flat(item)]


def subjects(folder: str) -> list[Subject]:
    path, found = os.path.join(folder, "q"), []
    model, (parted, *_) = blocks()
    sources: list[tuple[str, bytes, torch.nn.Module | None, tuple[torch.Tensor, ...]]] = []
    for name, build in NETWORKS.items():
        q, x = build()
        q.save(path)
        sources.append((name, Path(path).read_bytes(), None, (x,)))
    words = torch.tensor([[1, 2], [3, 4]])
    sources.append(("every step", resigned(*every_parts()), None, (torch.rand(2, 3, 8, 8), words)))
    sources.append(("parts", file.packed(parted.stored(), parted.report.as_tuples()), model, (WORDS,)))
    for name, data, own, inputs in sources:
        Path(path).write_bytes(data)
        outputs = flat(quantspec.load(path, model=own)(*inputs))
        found.append(Subject(name, data, *whole(data), own, inputs, outputs))
    return found


def made(kind: str, number: int, seed: int, subject: Subject) -> bytes:
    """The damaged or forged file of a number."""
    draw = random.Random(f"{seed}/{kind}/{number}")
    if kind == "damaged":
        return changed_bytes(subject.data, draw)
    header, tensors = dict(subject.header), subject.tensors
    key = "model" if "model" in header else "network"
    how = draw.randrange(4)
    if how == 0:
        tensors = changed_tensors(tensors, draw)
    else:
        header[key] = (larger_numbers if how == 1 else changed_json)(header[key], draw)
    return resigned(header, tensors)


def stated(path: str) -> tuple[int, int]:
    """Bytes and operations that a file states, as far as it may; 0 for one that cannot be read so far."""
    try:
        with open(path, "rb") as source:
            header = arrays.header(source, file.once)
        sizes = {name: (shape, last - first) for name, ((first, last), shape, _) in header.places.items()}
        content = json.loads(header.metadata["quantspec"])
        told = limits.stated(content, sizes, header.start)
        return min(told.memory, int(MOST.memory or 0)), min(told.work, int(MOST.work or 0))
    except Exception:
        return 0, 0


def status(key: str) -> int:
    """Bytes of this process: VmRSS, now; VmHWM, at most since it was reset."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def judged(kind: str, subject: Subject, path: str, checked: bounds.Bounds | None = None) -> tuple[str, str]:
    """What became of a file, and what was found, if anything; where kernels are ``checked``, what these found."""
    if checked is not None:
        try:
            became = "loaded"
            subject.load(path)(*subject.inputs)
        except BaseException as error:
            became = f"raised {type(error).__name__}"
        return became, "; ".join(map(str, checked.violations))
    memory, work = stated(path)
    allowed, values = 3 * os.path.getsize(path) + memory + SLACK, sum(x.numel() for x in subject.inputs)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, begin = status("VmRSS"), time.process_time()
    became = found = ""
    try:
        q = subject.load(path)
    except quantspec.FormatError as error:
        became = "refused"
        found = "" if path in str(error) else f"an error without the path: {error}"
    except ValueError as error:
        became = "asks"
        found = "" if str(error).startswith(("modules: ", "model: ")) else f"ValueError: {error}"
    except BaseException as error:
        became, found = "raised", f"{type(error).__name__}: {error}"
    else:
        became = "loaded"
    used, loading = status("VmHWM") - before, time.process_time() - begin
    if loading > SECONDS:
        found = f"{loading:.1f} seconds to load"
    if used > allowed:
        found = f"{used:,} bytes to load a file that may take {allowed:,}"
    if became == "loaded":
        try:
            outputs = flat(q(*subject.inputs))
            if kind == "damaged" and not all(map(torch.equal, outputs, subject.outputs)):
                found = "other outputs than were saved"
        except RUNNING as error:
            became = "loaded, does not run"
            found = f"damaged, and {error}" if kind == "damaged" else found
        except BaseException as error:
            found = f"running raised {type(error).__name__}: {error}"
        if (used := status("VmHWM") - before) > allowed + SLACK + values * (allowed - SLACK):
            found = f"{used:,} bytes to run a file that may take {allowed:,} to load"
    running = time.process_time() - begin - loading
    if running > (most := SECONDS + OPERATION * work * values):
        found = f"{running:.1f} seconds to run what may take {most:.1f}"
    return became, found


def child(
    numbers: range, kind: str, seed: int, found: list[Subject], folder: str, say: Any, checked: bounds.Bounds | None
) -> None:
    """Goes through files of some numbers, and says of each that it begins, and what became of it."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    path = os.path.join(folder, f"{os.getpid()}.safetensors")
    for number in numbers:
        subject = found[number % len(found)]
        written(Path(path), made(kind, number, seed, subject))
        say.send((number, None))
        say.send((number, judged(kind, subject, path, *([checked] if checked else []))))
    os.unlink(path)
    say.send((None, None))


@dataclass
class Running:
    """A child and what it said last."""

    process: Any
    hears: Any
    numbers: range
    kind: str
    last: int
    since: float
    cpu: float


def processor_time(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as line:
            fields = line.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


class Fuzz:
    """``count`` files of each kind, within ``seconds``."""

    def __init__(
        self, count: int, seconds: float, seed: int, jobs: int, folder: str, kinds: tuple[str, ...],
        checked: bounds.Bounds | None = None,
    ):  # fmt: skip
        self.checked = checked
        self.seed, self.jobs, self.folder, self.end = seed, jobs, folder, time.monotonic() + seconds
        self.subjects = subjects(folder)
        self.queue = [
            (kind, range(n, min(n + CHILD, count))) for n in range(0, count, CHILD) for kind in reversed(kinds)
        ][::-1]
        self.became: Counter[tuple[str, str]] = Counter()
        self.found: list[str] = []
        self.running: list[Running] = []

    def start(self, kind: str, numbers: range) -> None:
        fork = multiprocessing.get_context("fork")
        hears, says = fork.Pipe(duplex=False)
        args = numbers, kind, self.seed, self.subjects, self.folder, says, self.checked
        process = fork.Process(target=child, args=args)
        process.start()
        says.close()
        now = time.monotonic()
        self.running.append(Running(process, hears, numbers, kind, numbers.start, now, 0.0))

    def tell(self, run: Running, what: str) -> None:
        name = self.subjects[run.last % len(self.subjects)].name
        self.found.append(f"{run.kind} {run.last} of seed {self.seed} ({name}): {what}")
        print(self.found[-1], flush=True)

    def hear(self, run: Running) -> bool:
        """What a child said since; whether it goes on."""
        while run.hears.poll():
            try:
                number, result = run.hears.recv()
            except EOFError:
                return False
            if number is None:
                run.last = run.numbers.stop
                return False
            run.last, run.since, run.cpu = number, time.monotonic(), processor_time(run.process.pid)
            if result is not None:
                self.became[run.kind, result[0]] += 1
                if result[1]:
                    self.tell(run, result[1])
        return True

    def step(self) -> None:
        for run in list(self.running):
            if self.hear(run):
                hung = processor_time(run.process.pid) - run.cpu > WALL / 2
                if not hung and time.monotonic() - run.since < WALL:
                    continue
                self.tell(run, "no end")
            elif run.last < run.numbers.stop:
                run.process.join()
                self.tell(run, f"the process ended with {run.process.exitcode}")
            if run.process.is_alive() and run.last < run.numbers.stop:
                os.kill(run.process.pid, signal.SIGKILL)
            run.process.join()
            self.running.remove(run)
            if run.last + 1 < run.numbers.stop:
                self.queue.append((run.kind, range(run.last + 1, run.numbers.stop)))

    def run(self) -> bool:
        """Whether nothing was found."""
        begin = time.monotonic()
        while self.running or (self.queue and time.monotonic() < self.end):
            while self.queue and len(self.running) < self.jobs and time.monotonic() < self.end:
                self.start(*self.queue.pop())
            multiprocessing.connection.wait([run.hears for run in self.running], timeout=0.2)
            self.step()
        for kind in ("damaged", "forged"):
            rows = {what: count for (of, what), count in sorted(self.became.items()) if of == kind}
            print(f"{kind}: {sum(rows.values()):,} files; " + ", ".join(f"{n:,} {what}" for what, n in rows.items()))
        print(f"fuzz: {len(self.found)} findings in {time.monotonic() - begin:.0f} s")
        return not self.found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="files of each kind")
    parser.add_argument("--seconds", type=float, default=3600, help="after which no new file is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kind", choices=("damaged", "forged"), help="one kind alone")
    parser.add_argument("--keep", metavar="N", type=int, help="write the file of this number to fuzz.safetensors")
    parser.add_argument("--bounds", action="store_true", help="have kernels check what they touch, and nothing else")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        kinds = (given.kind,) if given.kind else ("damaged", "forged")
        checked = stack.enter_context(bounds.checked()) if given.bounds else None
        fuzz = Fuzz(given.count, given.seconds, given.seed, given.jobs, folder, kinds, checked)
        if given.keep is None:
            return 0 if fuzz.run() else 1
        subject = fuzz.subjects[given.keep % len(fuzz.subjects)]
        Path("fuzz.safetensors").write_bytes(made(kinds[0], given.keep, given.seed, subject))
        return 0


if __name__ == "__main__":
    sys.exit(main())
