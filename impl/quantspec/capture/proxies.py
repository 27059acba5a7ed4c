"""What stands for a value while a model is traced: Python that asks for its type would be answered for the stand-in,
and take another way than for a tensor, so that it is not traced."""

import dis
import inspect
import operator
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import fx

from .copies import EMPTY
from .tensor_names import by_place

TYPE_ASKED = "Python asks for the type of a value"
IDENTITY_ASKED = "Python asks whether a value is another one"
# Whose frames ask in the place of those that called them.
ASKING = "abc", "_py_abc", "typing"
# Of whose packages no function is gone into.
OTHERS = sys.stdlib_module_names | {"torch", "numpy", "quantspec"}
# What a stand-in is asked without being told: it is another class than a tensor, and can be called.
TOLD_NOTHING = "type", "callable"
SHOWING = {"print", "debug", "info", "warning", "warn", "_assert"}  # functions of these names only show a text
BOUND = staticmethod, classmethod, MethodType
TYPES = {"dtype", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))}


class RefusingTracer(fx.Tracer):
    """Remembers what it refused, as a model may go on without."""

    refused: str | None = None
    of_tensors = False  # whether all inputs are
    of_choices = False  # whether some may be truth values, names or the like

    def refuse(self, reason: str) -> None:
        self.refused = reason
        raise fx.proxy.TraceError(reason)

    def check_answered(self) -> None:
        """Raises where a model went on without an answer."""
        if self.refused is not None:
            raise fx.proxy.TraceError(f"{self.refused}, and does without an answer")

    def check_answers(self, forward: Callable[..., Any]) -> None:
        """Refuses a forward that calls ``type``, which a stand-in cannot answer, or a function that does, and one that
        asks which type of numbers a value has, or which of several it is where inputs may be choices."""
        for code in map(operator.attrgetter("__code__"), reached_from(forward)):
            if asks_for_types(code):
                self.refuse(TYPE_ASKED)
            asked = identities(code)
            if TYPES & asked or (self.of_choices and asked):
                self.refuse(IDENTITY_ASKED)

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.refused = "Python decides by a value"
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        self.refused = "Python goes through a value"
        return super().iter(obj)

    def create_node(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *named: Any, **how: Any
    ) -> fx.Node:
        if kind in ("call_function", "call_method", "call_module"):
            called = self.root.get_submodule(target) if kind == "call_module" else target
            args, kwargs = by_place(called, args, kwargs)
        return super().create_node(kind, target, args, kwargs, *named, **how)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)


@cache
def asks_for_types(code: CodeType) -> bool:
    """Whether a function calls ``type`` or ``callable`` of anything but itself and what it has."""
    for one, other in pairwise(dis.get_instructions(code)):
        if one.opname == "LOAD_GLOBAL" and one.argval in TOLD_NOTHING and other.argval not in ("self", "cls"):
            return True
    return any(asks_for_types(inner) for inner in code.co_consts if isinstance(inner, CodeType))


@cache
def identities(code: CodeType) -> set[Any]:
    """What a function asks whether something is it, but None: names, where it says one, or how it comes to it."""
    asked = [one for one, other in pairwise(dis.get_instructions(code)) if other.opname == "IS_OP"]
    found = {one.argval or one.opname for one in asked if one.argval is not None or one.opname != "LOAD_CONST"}
    return found.union(*(identities(each) for each in code.co_consts if isinstance(each, CodeType)))


def reached_from(forward: Callable[..., Any]) -> set[FunctionType]:
    """A forward and the functions that it may call by their names, and those by theirs."""
    owner, function = getattr(forward, "__self__", None), getattr(forward, "__func__", forward)
    pending = {what for what in (function, inspect.unwrap(function)) if isinstance(what, FunctionType)}
    seen = set(pending)
    while pending:
        called = named_in(pending.pop(), owner) - seen
        seen |= called
        pending |= called
    return seen


def named_in(function: FunctionType, owner: Any) -> set[FunctionType]:
    """The functions that one may call by the names in it: of its module, of others and of classes that it names, of
    functions around it, and of its owner. torch's, Python's and ours are none."""
    code = function.__code__
    names = all_names(code)
    cells = zip(code.co_freevars, function.__closure__ or ())
    around = {name: cell.cell_contents for name, cell in cells if cell != EMPTY}
    found = [around.get(name, function.__globals__.get(name)) for name in names]
    modules = [what for what in found if isinstance(what, ModuleType) and is_theirs(what.__name__)]
    places = [*modules, *(what for what in found if isinstance(what, type) and is_theirs(what.__module__))]
    found += [inspect.getattr_static(place, name, None) for place in places for name in names]
    own = [vars(owner), *map(vars, type(owner).__mro__)] if owner is not None else []  # as of super(), too
    found += [content.get(name) for content in own for name in names]
    inner = (what.__func__ if isinstance(what, BOUND) else what for what in found)
    return {what for what in inner if isinstance(what, FunctionType) and is_theirs(what.__module__)}


@cache
def all_names(code: CodeType) -> frozenset[str]:
    """The names of globals, attributes and variables around it that code uses, with what is defined in it."""
    inner = (all_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return frozenset(code.co_names + code.co_freevars).union(*inner)


def is_theirs(module: str) -> bool:
    """Whether a module of that name is none of torch's, Python's and ours."""
    return str(module).partition(".")[0] not in OTHERS


def asks_by_itself(frame: FrameType) -> bool:
    """Whether what asks a stand-in something is Python of the model, and not of torch or of ours."""
    return not str(frame.f_globals.get("__name__")).startswith(("torch.", "quantspec."))


@cache
def asks_for_classes(code: CodeType) -> bool:
    """Whether a function asks whether something is of a class. Others call torch, which also looks at classes."""
    named = {"isinstance", "__class__"}.intersection(code.co_names)
    return bool(named) or any(each.opname == "MATCH_CLASS" for each in dis.get_instructions(code))


def class_of(value: "Value | Attribute", frame: FrameType) -> type:
    """The class of a stand-in, to torch alone."""
    asking = frame
    while asking.f_globals.get("__name__") in ASKING and asking.f_back is not None:
        asking = asking.f_back
    if asks_by_itself(asking) and (asking is not frame or asks_for_classes(asking.f_code)):
        value.tracer.refuse(TYPE_ASKED)
    return type(value)


def looked_up(value: "Value | Attribute", frame: FrameType) -> int:
    """The hash of a stand-in, to torch alone: a dict or a set would not find what is in the place of a number or a
    type."""
    if asks_by_itself(frame):
        value.tracer.refuse("Python looks something up by a value")
    return id(value)


def as_text(value: "Value | Attribute", frame: FrameType) -> str:
    """The text of a stand-in, to torch and to what only shows it: a model's Python could compare it with another. All
    devices are one here."""
    shown = SHOWING.intersection(frame.f_code.co_names) or vars(value).get("attr") == "device"
    if not shown and is_theirs(str(frame.f_globals.get("__name__"))):
        value.tracer.refuse("Python asks for the text of a value")
    return fx.Proxy.__repr__(value)


def length_of(value: "Value", frame: FrameType) -> int:
    """Refuses to say a length, which torch asks for to learn whether an index is a sequence."""
    if "len" in frame.f_code.co_names:
        value.tracer.refuse("Python asks for the length of a value")
    return fx.Proxy.__len__(value)


class Value(fx.Proxy):
    """A value."""

    tracer: RefusingTracer
    __class__ = property(lambda self: class_of(self, sys._getframe(1)))

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        if self.node.op == "placeholder" and not hasattr(torch.Tensor, k):
            if not self.tracer.of_tensors:
                self.tracer.refuse("Python asks for an attribute that tensors do not have")
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return Attribute(self, k)


class Attribute(fx.proxy.Attribute):
    """An attribute of a value."""

    tracer: RefusingTracer
    __class__ = property(lambda self: class_of(self, sys._getframe(1)))


for _kind in (Value, Attribute):
    # Methods that know who calls them: the frame around theirs.
    setattr(_kind, "__hash__", lambda self: looked_up(self, sys._getframe(1)))  # noqa: B010  # no types have these
    setattr(_kind, "__repr__", lambda self: as_text(self, sys._getframe(1)))  # noqa: B010
setattr(Value, "__len__", lambda self: length_of(self, sys._getframe(1)))  # noqa: B010
