"""Weights that lie in memory in another order than that of their axes.

A field that holds codes may hold ``Held`` in their place: what an engine packed them into, from which they are unpacked
when somebody reads the field. So a weight is in memory once, in the order in which it is read most.
"""

import weakref
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np


class Held:
    """Codes of ``shape`` that ``unpack`` gives. ``packed``: what holds them, for whoever made it, in ``resident``
    bytes."""

    def __init__(
        self, shape: tuple[int, ...], unpack: Callable[[], np.ndarray], packed: object = None, resident: int = 0
    ):
        self.shape, self.unpack, self.packed, self.resident = shape, unpack, packed, resident
        self.last: weakref.ref[np.ndarray] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the codes themselves."""
        return int(np.prod(self.shape))

    def array(self) -> np.ndarray:
        """The codes, read-only; the same array while somebody has it."""
        existing = None if self.last is None else self.last()
        if existing is None:
            existing = self.unpack()
            assert existing.shape == self.shape
            existing.flags.writeable = False
            self.last = weakref.ref(existing)
        return existing

    def __deepcopy__(self, memo: dict[int, Any]) -> "Held":
        return self

    def __reduce__(self) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[np.ndarray]]:
        return np.array, (self.array(),)


class Codes:
    """A field of a dataclass that holds codes as an array, or ``Held``; reading it always gives the array."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, owner: object | None, kind: type) -> np.ndarray:
        if owner is None:
            raise AttributeError(self.name)
        value: np.ndarray | Held = vars(owner)[self.name]
        return value.array() if isinstance(value, Held) else value

    def __set__(self, owner: object, value: np.ndarray | Held) -> None:
        vars(owner)[self.name] = value


def held_by(**names: tuple[type, ...]) -> None:
    """Makes fields of dataclasses hold codes."""
    for name, kinds in names.items():
        for kind in kinds:
            setattr(kind, name, Codes(name))


def held(owner: object, name: str = "weight") -> np.ndarray | Held:
    """What a field holds: its shape and identity tell about codes without unpacking them."""
    value: np.ndarray | Held = vars(owner)[name]
    return value


def codes_shape(owner: object, name: str = "weight") -> tuple[int, ...]:
    """The shape of codes."""
    return held(owner, name).shape


def hold(owner: object, name: str, value: np.ndarray | Held) -> None:
    """Has a field hold the same codes in another way. The dataclass is frozen, and stays the same value."""
    vars(owner)[name] = value


Owner = TypeVar("Owner")


def changed(owner: Owner, **changes: Any) -> Owner:
    """``dataclasses.replace`` that leaves codes as they are held."""
    names = (field.name for field in fields(owner))  # type: ignore[arg-type]  # a dataclass
    return type(owner)(**{name: vars(owner)[name] for name in names} | changes)
