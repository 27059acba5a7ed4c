"""A cache for what users of a backend make once and use for many calls, such as packed weights; off until it is
wanted."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import numpy as np

T = TypeVar("T")


class Cache:
    """``cache(key, build)`` is ``build()``, or what that gave for the key before. Unless ``enabled``, nothing is kept,
    so that calls share nothing.

    Keys are tuples of arrays and whatever can be hashed.
    """

    def __init__(self, *, enabled: bool = False) -> None:
        self._enabled = enabled
        self._entries: dict[Hashable, object] = {}

    def __call__(self, key: tuple[Any, ...], build: Callable[[], T]) -> T:
        if not self._enabled:
            return build()
        hashed = tuple(map(hashable, key))
        if hashed not in self._entries:
            self._entries[hashed] = build()
        return cast(T, self._entries[hashed])


def hashable(value: Any) -> Hashable:
    """What stands for an array, or for something that can be hashed, in a key."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.str, value.shape, value.tobytes()
    return cast(Hashable, value)
