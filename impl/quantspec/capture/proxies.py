"""What stands for a value while a model is traced: Python that asks for its type would be answered for the stand-in,
and take another way than for a tensor, so that it is not traced."""

import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from types import CodeType
from typing import Any

import torch
from torch import fx

from .tensor_names import by_place

TYPE_ASKED = "Python asks for the type of a value"
# Whose frames ask in the place of those that called them.
ASKING = "abc", "_py_abc", "typing"


class RefusingTracer(fx.Tracer):
    """Remembers what it refused, as a model may go on without."""

    refused: str | None = None
    of_tensors = False  # whether all inputs are

    def refuse(self, reason: str) -> None:
        self.refused = reason
        raise fx.proxy.TraceError(reason)

    def check_answered(self) -> None:
        """Raises where a model went on without an answer."""
        if self.refused is not None:
            raise fx.proxy.TraceError(f"{self.refused}, and does without an answer")

    def check_asks_no_types(self, forward: Callable[..., Any]) -> None:
        """Refuses a forward that calls ``type``, which a stand-in cannot answer."""
        code = getattr(inspect.unwrap(forward), "__code__", None)
        if code is not None and asks_for_types(code):
            self.refuse(TYPE_ASKED)

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
    """Whether a function calls ``type`` of anything but itself."""
    for one, other in pairwise(dis.get_instructions(code)):
        if one.opname == "LOAD_GLOBAL" and one.argval == "type" and other.argval not in ("self", "cls"):
            return True
    return any(asks_for_types(inner) for inner in code.co_consts if isinstance(inner, CodeType))


@cache
def asks_for_classes(code: CodeType) -> bool:
    """Whether a function asks whether something is of a class. Others call torch, which also looks at classes."""
    named = {"isinstance", "__class__"}.intersection(code.co_names)
    return bool(named) or any(each.opname == "MATCH_CLASS" for each in dis.get_instructions(code))


def class_of(self: Any) -> type:
    """Its class, to torch alone."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") in ASKING and frame.f_back is not None:
        frame = frame.f_back
    theirs = not frame.f_globals.get("__name__", "").startswith(("torch.", "quantspec."))
    if theirs and (frame is not sys._getframe(1) or asks_for_classes(frame.f_code)):
        self.tracer.refuse(TYPE_ASKED)
    return type(self)


class Value(fx.Proxy):
    """A value."""

    tracer: RefusingTracer
    __class__ = property(class_of)

    def __getattr__(self, k: str) -> fx.proxy.Attribute:
        if self.node.op == "placeholder" and not hasattr(torch.Tensor, k):
            if not self.tracer.of_tensors:
                self.tracer.refuse("Python asks for an attribute that tensors do not have")
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return Attribute(self, k)

    def __len__(self) -> int:
        if "len" in sys._getframe(1).f_code.co_names:  # and not torch, to learn whether an index is a sequence
            self.tracer.refuse("Python asks for the length of a value")
        return super().__len__()


class Attribute(fx.proxy.Attribute):
    """An attribute of a value."""

    tracer: RefusingTracer
    __class__ = property(class_of)
