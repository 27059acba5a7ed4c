"""Threads that call at once, kills while saving, interrupts, exits and forks while others call: ``python -m
stress.stress``, or ``make stress``.

Counted are outputs that are wrong, processes that do not end in time, and files that cannot be read. ``--share 0.1``
does a tenth of it.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

import quantspec

THREADS, CALLS, KILLS, INTERRUPTS, EXITS, FORKS = 8, 10_000, 200, 100, 50, 50
WALL = 60.0  # seconds that a process may take to end


@dataclass
class Found:
    """What was done how often, and what came of it."""

    what: str
    done: int = 0
    wrong: int = 0
    hangs: int = 0
    unreadable: int = 0

    @property
    def good(self) -> bool:
        return self.done > 0 and not (self.wrong or self.hangs or self.unreadable)


@dataclass
class Subject:
    """A network, inputs of several numbers of rows, and what it gives for them."""

    network: Callable[[torch.Tensor], torch.Tensor]
    inputs: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    def right(self, number: int) -> bool:
        return torch.equal(self.network(self.inputs[number]), self.outputs[number])


def quantized(seed: int) -> quantspec.QuantizedModule:
    torch.default_generator.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    return quantspec.quantize(model, [torch.randn(64, 64)])


def subject(seed: int = 0) -> Subject:
    network, inputs = quantized(seed), [torch.randn(rows, 64) for rows in (1, 3, 64, 2000)]
    return Subject(network, inputs, [network.run_on("reference")(x) for x in inputs])


def ended(pid: int) -> int | None:
    """The status that a child ended with; None where it did not, and was killed."""
    until = time.monotonic() + WALL
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def counted(found: Found, status: int | None) -> None:
    """Adds how a child ended."""
    found.done += 1
    found.hangs += status is None
    found.wrong += status not in (None, 0)


def exits(count: int, draw: random.Random) -> Found:
    """The interpreter ends while threads call, for whose calls it waits."""
    return exits_with(count, draw, Found(f"exits while {THREADS} threads call"), daemon=False)


def exits_with_daemons(count: int, draw: random.Random) -> Found:
    """The same with threads that it does not wait for.

    It stops such threads where they are, in the middle of torch's or NumPy's C++, which may end the process by a
    signal: loops of ``torch.equal`` or of NumPy's additions alone do. The process must come to an end.
    """
    return exits_with(count, draw, Found(f"exits while {THREADS} daemons call"), daemon=True)


def exits_with(count: int, draw: random.Random, found: Found, daemon: bool) -> Found:
    one, stopped = subject(), 0
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for _ in range(THREADS):
                threading.Thread(target=call_on, args=(one,), daemon=daemon).start()
            time.sleep(draw.random() / 20)
            raise SystemExit(0)  # through all of Python, to the end of the interpreter
        status = ended(pid)
        by_signal = daemon and status is not None and status < 0
        stopped += by_signal
        counted(found, 0 if by_signal else status)
    if stopped:
        found.what += f" ({stopped} ended by a signal)"
    return found


def call_on(one: Subject) -> None:
    """Calls as long as the main thread lives; a wrong output ends the process."""
    while threading.main_thread().is_alive() or threading.current_thread().daemon:
        for number in range(len(one.inputs)):
            if not one.right(number):
                os._exit(1)


def forks(count: int, draw: random.Random) -> Found:
    """A process is forked while its workers are up; it and its child call."""
    found, one = Found("forks with workers up"), subject()
    for _ in range(count):
        right = one.right(3)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if all(one.right(number) for number in (3, 0, 3)) else 1)
        counted(found, ended(pid))
        found.wrong += not (right and one.right(draw.randrange(4)))
    return found


def kills(count: int, draw: random.Random) -> Found:
    """A process is killed while it saves one of two networks over the other."""
    found, both = Found("kills while saving"), [quantized(seed) for seed in (1, 2)]
    x = torch.randn(5, 64)
    allowed = [network(x) for network in both]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        both[0].save(path)
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                while True:
                    for network in both:
                        network.save(path)
            time.sleep(0.001 + draw.random() / 30)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            found.done += 1
            try:
                output = quantspec.load(path)(x)
            except Exception as error:
                print(f"{type(error).__name__}: {error}")
                found.unreadable += 1
            else:
                found.wrong += not any(torch.equal(output, one) for one in allowed)
        for draft in Path(folder).glob(".network.*.part"):
            os.utime(draft, (0, 0))  # a save takes away what killed processes left long enough ago
        both[0].save(path)
        found.wrong += len(list(Path(folder).iterdir())) != 1
    return found


class Interrupt(BaseException):
    """What a signal raises."""


def interrupts(count: int, draw: random.Random) -> Found:
    """A signal raises while the network is called, and it goes on being right."""
    found, one = Found("interrupts"), subject()

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    for _ in range(count):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + draw.random() / 100)
            while True:
                one.right(draw.randrange(4))
        except Interrupt:
            found.done += 1
        found.wrong += not all(one.right(number) for number in range(4))
    signal.signal(signal.SIGALRM, before)
    return found


def calls(count: int, draw: random.Random) -> Found:
    """Threads call one network at once."""
    found, one = Found(f"calls by each of {THREADS} threads"), subject()
    wrong = [0] * THREADS

    def call(thread: int, numbers: random.Random) -> None:
        for _ in range(count):
            # Mostly few rows, which take microseconds.
            wrong[thread] += not one.right(3 if numbers.random() < 0.01 else numbers.randrange(3))

    numbers = [random.Random(draw.random()) for _ in range(THREADS)]
    threads = [threading.Thread(target=call, args=pair, daemon=True) for pair in enumerate(numbers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(WALL, count / 10))
    found.done, found.wrong, found.hangs = count, sum(wrong), sum(thread.is_alive() for thread in threads)
    return found


ACTS = (
    (exits, EXITS), (exits_with_daemons, EXITS), (forks, FORKS), (kills, KILLS), (interrupts, INTERRUPTS),
    (calls, CALLS),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="how much of it")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # that a process with threads is forked
    torch.set_num_threads(2)
    draw, good = random.Random(given.seed), True
    for act, count in ACTS:
        begin = time.monotonic()
        found = act(max(1, round(count * given.share)), draw)
        good = good and found.good
        ends = f"{found.wrong} wrong, {found.hangs} hangs, {found.unreadable} unreadable"
        print(f"{found.done:6,} {found.what}: {ends} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
