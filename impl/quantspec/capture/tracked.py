"""Sizes that remember where they come from: integers and floats that a forward computes with while it is recorded.

Arithmetic with them is recorded too; what Python itself decides by them (a comparison, a number for a person) is
concrete, and noted as a condition of the graph. They are none of Python's numbers, which C code would read without a
word, but torch's symbolic ones, for which torch asks its function mode before it reads them; what else asks for the
plain number ends the recording: a loop that is written out would stand for that size alone.

Python's own arithmetic has plain numbers again when the recording has ended; no cache of the user's keeps what is
computed of a size, since a size is no key.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

SIGNS = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.eq: "==", operator.ne: "!=", operator.lt: "<", operator.le: "<=", operator.gt: ">",
    operator.ge: ">=",
}  # fmt: skip


class Sizes(Protocol):
    """What a size needs of the recorder."""

    ended: bool

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
    """What ``Int`` and ``Float`` have in common: the plain number, the recorder, and how to make the node."""

    value: Any
    recorder: Sizes
    make: Callable[[], fx.Node]
    made: fx.Node | None = None

    @property
    def size_node(self) -> fx.Node:
        """The node that computes it."""
        if self.made is None:
            self.made = self.make()
        return self.made

    @property
    def node(self) -> None:
        """What torch's C++ asks for where it reads the number without having asked the recording."""
        self.recorder.stop("torch reads a size in a way that cannot be recorded")

    def read(self) -> None:
        """Ends the recording, if there still is one."""
        if not self.recorder.ended:
            self.recorder.stop("Python counts to a size, or looks something up by it")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(self.value, name):
            raise AttributeError(f"a size has no attribute {name!r}")
        return getattr(concrete(self), name)


class Int(Tracked, torch.SymInt):
    """An integer of the graph, also to whoever asks for its type."""

    __class__ = property(lambda self: int)

    def __index__(self) -> int:
        self.read()
        return int(self.value)


class Float(Tracked, torch.SymFloat):
    """A float of the graph, also to whoever asks for its type."""

    __class__ = property(lambda self: float)


def as_written(value: Any) -> str:
    """What a node of numbers computes, as Python writes it."""
    if not isinstance(value, fx.Node):
        return repr(value)
    if value.op == "call_method":  # a size of a tensor
        return f"{value.args[0]}.{value.target}({', '.join(map(repr, value.args[1:]))})"
    given = [as_written(arg) for arg in value.args]
    if value.target in SIGNS:
        return f"({f' {SIGNS[value.target]} '.join(given)})"
    return f"{getattr(value.target, '__name__', value.target)}({', '.join(given)})"


def exact(value: Any) -> Any:
    """The plain number."""
    return value.value if isinstance(value, Tracked) else value


def concrete(value: Any) -> Any:
    """The plain number of one of the graph, which the graph from here on depends on."""
    require(value, operator.eq, (value, exact(value)), True)
    return exact(value)


def require(of: Tracked, target: Callable[..., Any], args: tuple[Any, ...], result: bool) -> None:
    if not of.recorder.ended:
        of.recorder.require(target, args, result)


def number(recorder: Sizes, value: Any, make: Callable[[], fx.Node]) -> Any:
    """A number of the graph."""
    if not isinstance(value, (int, float)):
        recorder.stop("a size becomes a complex number")
    kind = Int if isinstance(value, int) else Float
    tracked: Any = kind.__new__(kind)
    tracked.value, tracked.recorder, tracked.make = value, recorder, make
    return tracked


def computed(recorder: Sizes, target: Callable[..., Any], *args: Any) -> Any:
    """What a function gives for numbers of which some are of the graph."""
    value = target(*map(exact, args))
    return value if recorder.ended else number(recorder, value, lambda: recorder.size_node(target, args))


def arithmetic(target: Callable[..., Any], *, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, (list, tuple, str)) and target is operator.mul:
            return concrete(self) * other
        if not isinstance(other, (int, float)):
            return NotImplemented
        return computed(self.recorder, target, *((other, self) if swapped else (self, other)))

    return method


def comparison(target: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        result = bool(target(exact(self), exact(other)))
        if self is not other:
            require(self, target, (self, other), result)
        return result

    return method


def single(target: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, *others: Any) -> Any:
        return computed(self.recorder, target, self, *others)

    return method


def of_number(target: Callable[..., Any]) -> Callable[..., Any]:
    """A method by which Python gets something else of the plain number."""

    def method(self: Any, *others: Any) -> Any:
        return target(concrete(self), *others)

    return method


def is_true(self: Any) -> bool:
    result = bool(exact(self))
    require(self, operator.ne, (self, 0), result)
    return result


def hashed(self: Any) -> int:
    """What is kept by a size would keep sizes of the recording in it."""
    if not self.recorder.ended:
        raise TypeError("a size cannot be hashed while a model is recorded")
    return hash(self.value)


PAIRS = "add sub mul truediv floordiv mod pow"
BITS = "and or xor lshift rshift"
SINGLE: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "pos": operator.pos, "abs": abs, "ceil": math.ceil, "floor": math.floor, "trunc": math.trunc,
    "round": round,
}  # fmt: skip
NUMBERS: dict[str, Callable[..., Any]] = {
    "int": int, "float": float, "complex": complex, "str": str, "repr": repr, "format": format,
}  # fmt: skip
for _kind in (Int, Float):
    for _name in f"{PAIRS} {BITS}".split():
        _target = getattr(operator, f"{_name}_" if _name in ("and", "or") else _name)
        setattr(_kind, f"__{_name}__", arithmetic(_target))
        setattr(_kind, f"__r{_name}__", arithmetic(_target, swapped=True))
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", comparison(getattr(operator, _name)))
    for _name, _target in SINGLE.items():
        setattr(_kind, f"__{_name}__", single(_target))
    for _name, _target in NUMBERS.items():
        setattr(_kind, f"__{_name}__", of_number(_target))
    _kind.__hash__ = hashed  # type: ignore[method-assign]
    _kind.__bool__ = is_true  # type: ignore[method-assign]
    _kind.__reduce_ex__ = lambda self, protocol: (type(exact(self)), (exact(self),))  # type: ignore[method-assign]
    for _name, _method in {
        "divmod": lambda self, other: (self // other, self % other),
        "rdivmod": lambda self, other: (other // self, other % self),
        "deepcopy": lambda self, memo: exact(self),
    }.items():
        setattr(_kind, f"__{_name}__", _method)
    # torch's symbolic numbers have what Python's have, and ask their own node.
    for _name in ("as_integer_ratio", "bit_length", "conjugate", "hex", "is_integer"):
        if hasattr(_kind, _name):
            setattr(_kind, _name, of_number(operator.methodcaller(_name)))
setattr(Int, "__invert__", single(operator.invert))  # noqa: B010 - torch has no types there


def plain(tree: Any) -> Any:
    """Arguments with plain numbers."""
    if isinstance(tree, Tracked):
        return exact(tree)
    if isinstance(tree, torch.Size):
        return torch.Size([exact(item) for item in tree])
    if type(tree) in (list, tuple):
        return type(tree)(map(plain, tree))
    if type(tree) is dict:
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, slice):
        return slice(*map(exact, (tree.start, tree.stop, tree.step)))
    return tree


def slices(tree: Any) -> list[Any]:
    """What stands in slices, which are no containers for torch."""
    return [end for leaf in tree_leaves(tree) if isinstance(leaf, slice) for end in (leaf.start, leaf.stop, leaf.step)]
