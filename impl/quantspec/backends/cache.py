"""What a user of a backend makes once and uses for many calls, such as packed weights: made anew for every call, or kept."""

from collections.abc import Callable, Hashable

import numpy as np


class Kept:
    """``kept(key, make)`` is ``make()``, or what it made for that key before. Without ``keeps`` nothing is kept, so that calls share nothing.

    Keys are tuples of arrays and whatever can be hashed.
    """

    def __init__(self, *, keeps: bool = False):
        self._keeps, self._made = keeps, {}

    def __call__(self, key: tuple, make: Callable[[], object]) -> object:
        if not self._keeps:
            return make()
        known = tuple(map(hashable, key))
        if known not in self._made:
            self._made[known] = make()
        return self._made[known]


def hashable(value) -> Hashable:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, (np.ndarray, np.generic)) else value
