"""Which of several ways to compute the same takes least time, found out while they are used."""

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

Result = TypeVar("Result")
TRIALS = 3  # runs of each way before one is chosen; the first of them may still pay for what only it does
KEPT = 1024  # questions that are remembered


class Fastest:
    """Runs one of several ways, each in turn until all were run ``TRIALS`` times, from then on the one whose shortest
    time was the shortest.

    What is asked is told by a key: a layer and the shape of its input.
    """

    def __init__(self) -> None:
        self.seconds: dict[Hashable, dict[str, list[float]]] = {}
        self.chosen: dict[Hashable, str] = {}

    def run(self, key: Hashable, ways: dict[str, Callable[[], Result]]) -> Result:
        """What the ways give, by one of them."""
        if key in self.chosen:
            return ways[self.chosen[key]]()
        if len(self.seconds) >= KEPT:
            self.seconds.clear()
        seconds = self.seconds.setdefault(key, {name: [] for name in ways})
        name = min(seconds, key=lambda way: len(seconds[way]))
        start = time.perf_counter()
        result = ways[name]()
        seconds[name].append(time.perf_counter() - start)
        if all(len(times) >= TRIALS for times in seconds.values()):
            if len(self.chosen) >= KEPT:
                self.chosen.clear()
            self.chosen[key] = min(seconds, key=lambda way: min(seconds[way]))
            self.seconds.pop(key, None)
        return result

    def names(self, wanted: Callable[[Hashable], bool]) -> list[str]:
        """What was chosen for the keys that are wanted, each name once; "being measured" for those without a choice."""
        found = [name for key, name in list(self.chosen.items()) if wanted(key)]
        return sorted(set(found)) + ["being measured"] * any(wanted(key) for key in list(self.seconds))
