"""Times of several functions that do the same, measured side by side.

Every round times each of them once, in an order that moves on, so that whatever else the machine does meets all of them
alike. What takes microseconds is called many times in a row, so that reading the clock costs nothing, and the calls
before them are not timed: they find in the caches what the one before left there, which for some is a model that shares
their weights, and where the last cache takes in what the one before it evicts, all weights of 50 MB are there after
five calls. A time is the median of the rounds.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from statistics import median

BLOCK = 300e-6  # seconds of calls that are timed together
WARM = 0.03  # seconds of warm-up
UNTIMED, UNTIMED_SECONDS = 5, 0.02  # calls before the timed ones, of which one will do where they take longer
# The fewest rounds, of which each takes less than so many seconds.
LEAST_ROUNDS = (15, 0.25), (7, 1.0), (5, float("inf"))
MOST_ROUNDS = 400
SETTLE = 0.015  # seconds after which other libraries' threads have stopped spinning


@dataclass(frozen=True)
class Timed:
    """``call`` is timed, ``before`` is not."""

    name: str
    call: Callable[[], object]
    before: Callable[[], None] = lambda: None


@contextmanager
def without_collection() -> Iterator[None]:
    """Without Python's cyclic garbage collection."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def block_size(timed: Timed) -> tuple[int, float]:
    """How many calls to time together after a warm-up, and the seconds of one."""
    timed.before()
    timed.call()
    calls, start = 0, time.perf_counter()
    while True:
        timed.call()
        calls += 1
        passed = time.perf_counter() - start
        if passed >= WARM:
            return max(1, round(BLOCK * calls / passed)), passed / calls


def untimed(seconds: float) -> int:
    """How many calls to make before those that are timed, of what takes ``seconds``."""
    return max(1, min(UNTIMED, int(UNTIMED_SECONDS / seconds)))


def warm_up(timed: Timed, seconds: float) -> None:
    """What comes before the calls that are timed, of what takes about ``seconds``."""
    timed.before()
    for _ in range(untimed(seconds)):
        timed.call()


def block(timed: Timed, count: int, seconds: float) -> float:
    """Seconds of one call, of ``count`` in a row, of what takes about ``seconds``."""
    warm_up(timed, seconds)
    call = timed.call
    start = time.perf_counter()
    for _ in repeat(None, count):
        call()
    return (time.perf_counter() - start) / count


class Interleaved:
    """Rounds of ours and of others, whose times are taken between ours.

    Whoever runs the rounds calls ``peers`` before each, which is not timed there, and times ``run``.
    """

    def __init__(self, ours: Timed, others: list[Timed], budget: float, settle: float = 0.0):
        self.ours, self.others, self.settle, self.turn = ours, others, settle, 0
        self.sizes = {timed.name: block_size(timed) for timed in (ours, *others)}
        self.count = self.sizes[ours.name][0]
        self.seconds: dict[str, list[float]] = {timed.name: [] for timed in others}
        # A first call may still pay for what only it does.
        calls = ((count + untimed(seconds)) * seconds for count, seconds in self.sizes.values())
        one = sum(calls) + settle * (1 + len(others))
        least = next(rounds for rounds, seconds in LEAST_ROUNDS if one < seconds)
        self.rounds = max(least, min(MOST_ROUNDS, int(budget / one)))

    def peers(self) -> None:
        """A round of everybody else's."""
        for index in range(len(self.others)):
            timed = self.others[(index + self.turn) % len(self.others)]
            time.sleep(self.settle)
            self.seconds[timed.name].append(block(timed, *self.sizes[timed.name]))
        self.turn += 1
        time.sleep(self.settle)
        warm_up(self.ours, self.sizes[self.ours.name][1])

    def run(self) -> None:
        """A block of ours."""
        call = self.ours.call
        for _ in repeat(None, self.count):
            call()

    def medians(self) -> dict[str, float]:
        """Seconds of a call, of everybody else's."""
        return {name: median(seconds) for name, seconds in self.seconds.items()}


def side_by_side(functions: dict[str, Callable[[], object]], budget: float = 1.0) -> dict[str, float]:
    """Median seconds of each function."""
    return alternating([Timed(name, call) for name, call in functions.items()], budget)


def alternating(ways: list[Timed], budget: float = 1.0) -> dict[str, float]:
    """Median seconds of each."""
    first, *others = ways
    with without_collection():
        both = Interleaved(first, others, budget)
        own = []
        for _ in range(both.rounds):
            both.peers()
            own.append(block(first, *both.sizes[first.name]))
    return {first.name: median(own), **both.medians()}
