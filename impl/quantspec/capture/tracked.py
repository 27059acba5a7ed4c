"""Sizes that remember where they come from: integers and floats that a forward computes with while it is recorded.

Arithmetic with them is recorded too; what Python itself decides by them (a comparison, a loop) is concrete, and noted
as a condition of the graph.
"""

import builtins
import contextlib
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import fx


class Sizes(Protocol):
    """What a size needs of the recorder."""

    def size_node(self, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        """The node of a function of sizes."""
        ...

    def require(self, target: Callable[..., Any], args: tuple[Any, ...], result: bool) -> None:
        """Notes that the graph stands only where a function of sizes gives what it gave."""
        ...

    def stop(self, reason: str) -> None:
        """Ends the recording."""
        ...


class Tracked:
    """What ``Int`` and ``Float`` have in common: the recorder, and how to make the node."""

    recorder: Sizes
    make: Callable[[], fx.Node]
    made: fx.Node | None = None

    @property
    def node(self) -> fx.Node:
        if self.made is None:
            self.made = self.make()
        return self.made


class Int(int, Tracked):
    """An integer of the graph."""


class Float(float, Tracked):
    """A float of the graph."""


def exact(value: Any) -> Any:
    """The plain number."""
    if isinstance(value, Int):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, Float) else value


def concrete(value: Any) -> Any:
    """The plain number, which the graph from here on depends on."""
    if isinstance(value, Tracked):
        value.recorder.require(operator.eq, (value, exact(value)), True)
    return exact(value)


def number(recorder: Sizes, value: Any, make: Callable[[], fx.Node]) -> Any:
    """A number of the graph."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    tracked: Any = Int(value) if isinstance(value, int) else Float(value)
    tracked.recorder, tracked.make = recorder, make
    return tracked


def computed(recorder: Sizes, target: Callable[..., Any], *args: Any) -> Any:
    """What a function gives for numbers of which some are of the graph."""
    return number(recorder, target(*map(exact, args)), lambda: recorder.size_node(target, args))


def arithmetic(target: Callable[..., Any], *, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            value = concrete(self)  # a list or a string is repeated, or the other side knows better
            if swapped:
                return target(other, value)
            return target(value, other) if isinstance(other, (list, tuple, str)) else NotImplemented
        return computed(self.recorder, target, *((other, self) if swapped else (self, other)))

    return method


def comparison(target: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        result = bool(target(exact(self), exact(other)))
        if self is not other:
            self.recorder.require(target, (self, other), result)
        return result

    return method


def single(target: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        return computed(self.recorder, target, self, *others)

    return method


def is_true(self: Any) -> bool:
    result = bool(exact(self))
    self.recorder.require(operator.ne, (self, 0), result)
    return result


SINGLE: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "abs": abs, "ceil": math.ceil, "floor": math.floor, "trunc": math.trunc,
}  # fmt: skip
for _kind in (Int, Float):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        _target = getattr(operator, _name)
        setattr(_kind, f"__{_name}__", arithmetic(_target))
        setattr(_kind, f"__r{_name}__", arithmetic(_target, swapped=True))
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", comparison(getattr(operator, _name)))
    for _name, _target in SINGLE.items():
        setattr(_kind, f"__{_name}__", single(_target))
    # Arithmetic of the graph, in the place of Python's.
    _kind.__round__ = single(round)  # type: ignore[method-assign]
    _kind.__bool__ = is_true  # type: ignore[method-assign]
    _kind.__divmod__ = lambda self, other: (self // other, self % other)  # type: ignore[method-assign]
    _kind.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore[method-assign]
    _kind.__hash__ = lambda self: hash(concrete(self))  # type: ignore[method-assign]
    _kind.__int__ = lambda self: int(concrete(self))  # type: ignore[method-assign]
    _kind.__float__ = lambda self: float(concrete(self))  # type: ignore[method-assign]
    _kind.__reduce_ex__ = lambda self, protocol: (type(exact(self)), (exact(self),))  # type: ignore[method-assign]
    setattr(_kind, "__deepcopy__", lambda self, memo: exact(self))  # noqa: B010 - no attribute of numbers otherwise


class _RangeType(type):
    def __instancecheck__(cls, value: Any) -> bool:
        return isinstance(value, RANGE)


class Range(metaclass=_RangeType):
    """``range``, which ends the recording where it counts to a size: a loop written out would stand for that size
    alone."""

    def __new__(cls, *ends: Any) -> Any:
        found = next((end for end in ends if isinstance(end, Tracked)), None)
        if found is not None:
            found.recorder.stop("a loop counts to a size")
        return RANGE(*ends)


RANGE, MAX, MIN = builtins.range, builtins.max, builtins.min


def extreme(original: Callable[..., Any]) -> Callable[..., Any]:
    def function(*args: Any, **kwargs: Any) -> Any:
        items = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
        several = len(items) > 1 and not kwargs
        found = next((item for item in items if isinstance(item, Tracked)), None) if several else None
        if found is None or not all(isinstance(item, (int, float)) for item in items):
            return original(*args, **kwargs)
        return computed(found.recorder, original, *items)

    return function


@contextlib.contextmanager
def builtins_watched() -> Iterator[None]:
    """Python's own functions of numbers take part in the recording."""
    builtins.range, builtins.max, builtins.min = Range, extreme(MAX), extreme(MIN)  # type: ignore[misc]
    try:
        yield
    finally:
        builtins.range, builtins.max, builtins.min = RANGE, MAX, MIN  # type: ignore[misc]
