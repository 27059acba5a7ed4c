"""A call written down instead of made: a short script that makes the same kernel call through a backend's own
interface, with nothing of ours in it.

The adapter's own code writes it. While an adapter's method runs, what it takes from its backend is replaced by an
``Expression``, which notes what is asked of it and computes nothing. So there is no second account of how a kernel is
called, and a call that would end the process can be written down inside it.
"""

import base64
import contextlib
import copy
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, NoReturn, TypeAlias
from unittest import mock

import numpy as np

from .protocol import Keeps

LARGEST = 256
WIDTH = 140  # short statements share a line up to this column
INLINE = 60  # a longer expression that is an argument gets a name
NAMES = "abcdefgijklmnopqrstuvwxyz"  # without h, which is float.fromhex


class NumbersNeeded(Exception):
    """An adapter asked an ``Expression`` for numbers: it is the raw result, and what follows is the adapter's own
    arithmetic. ``many``: it is a sequence."""

    def __init__(self, result: "Expression", many: bool = False) -> None:
        super().__init__("a value that was written down has no numbers")
        self.result, self.many = result, many


class Expression:
    """An expression in place of a backend's object: its calls, attributes and items are expressions too. Its page keeps
    the order of all calls; ``does`` is for those whose evaluation does something."""

    page_: "list[Expression]"
    parts_: "Parts"
    does_: bool

    def __init__(self, page: "list[Expression]", *parts: "str | Expression", does: bool = False) -> None:
        self.__dict__.update(page_=page, parts_=parts, does_=does)
        page.append(self)

    def __call__(self, *arguments: Any, **options: Any) -> "Expression":
        words = [literal(argument) for argument in arguments]
        words += [(f"{key}=", *literal(value)) for key, value in options.items()]
        return Expression(self.page_, self, "(", *joined(words), ")", does=True)

    def __getattr__(self, name: str) -> "Expression":
        if name.startswith("__"):
            raise AttributeError(name)
        return Expression(self.page_, self, f".{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        Expression(self.page_, self, f".{name} = ", *literal(value), does=True)

    def __getitem__(self, key: Any) -> "Expression":
        return Expression(self.page_, self, "[", *literal(key), "]")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> "Expression":
        if ufunc is not np.maximum or method != "__call__" or options:
            raise NumbersNeeded(self)
        return Expression(self.page_, "np.maximum(", *joined(map(literal, inputs)), ")", does=True)

    def __iter__(self) -> NoReturn:
        raise NumbersNeeded(self, many=True)

    def _numbers(self) -> NoReturn:
        raise NumbersNeeded(self)

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        """torch lets what has this stand for a tensor, and asks the mode of ``torch_script`` first."""
        return NotImplemented

    __bool__ = __int__ = __float__ = __index__ = _numbers


Parts: TypeAlias = tuple[str | Expression, ...]


def joined(words: Iterable[Parts]) -> list[str | Expression]:
    """The parts of words with commas between them."""
    parts: list[str | Expression] = []
    for word in words:
        parts += [", ", *word] if parts else word
    return parts


def number(value: object) -> str:
    """A Python number without loss: floats in hexadecimal, by ``h``, unless a few decimal digits are exact."""
    if not isinstance(value, float):
        return repr(value)
    if not math.isfinite(value):
        return "np.nan" if math.isnan(value) else "np.inf" if value > 0 else "-np.inf"
    if len(repr(value)) <= 8:
        return repr(value)
    digits, _, exponent = value.hex().partition("p")
    return f"h('{digits.rstrip('0').rstrip('.')}p{exponent}')"


def nested(values: object) -> str:
    """Lists of lists of numbers, as ``tolist`` gives them."""
    return f"[{', '.join(map(nested, values))}]" if isinstance(values, list) else number(values)


@functools.singledispatch
def literal(value: Any) -> Parts:
    """A value as the parts of an expression. TypeError for what no rule is known for; an adapter registers those of its
    backend's types."""
    raise TypeError(f"value: no rule writes a {type(value).__name__} as an expression")


@literal.register(Expression)
def _(value: Expression) -> Parts:
    return (value,)


@literal.register(type(None))
@literal.register(str)
@literal.register(bool)
@literal.register(int)
@literal.register(float)
def _(value: object) -> Parts:
    return (number(value),)


@literal.register
def _(value: bytes) -> Parts:
    return (f"base64.b64decode('{base64.b64encode(value).decode()}')",)


@literal.register(list)
@literal.register(tuple)
def _(value: list[Any] | tuple[Any, ...]) -> Parts:
    opening, closing = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
    return (opening, *joined(map(literal, value)), closing)


@literal.register(dict)
def _(value: dict[Any, Any]) -> Parts:
    return ("{", *joined((repr(key), ": ", *literal(item)) for key, item in value.items()), "}")


@literal.register
def _(value: np.ndarray) -> Parts:
    if not value.size:
        return (f"np.zeros({value.shape}, np.{value.dtype})",)
    return (f"np.array({nested(value.tolist())}, np.{value.dtype})",)


@literal.register
def _(value: np.generic) -> Parts:
    return (f"np.{value.dtype}({number(value.item())})",)


def script(
    backend: object, operation: str, arguments: tuple[Any, ...], options: dict[str, Any], *, first: Iterable[str] = (),
    modules: Mapping[ModuleType, Mapping[str, str]] | None = None, attributes: Mapping[str, Any] | None = None,
    contexts: Iterable[Callable[[list[Expression]], contextlib.AbstractContextManager[Any]]] = (), comment: str = "",
) -> str:  # fmt: skip
    """The script of a call, which prints the raw result as lists. ``comment`` and the statements ``first`` begin it. An
    option ``before`` has the calls, as (operation, arguments, options), that come first; the backend keeps what it made
    for them.

    ``modules`` says which names of which modules stand for the backend, and how the script calls them; ``attributes``
    says it of the adapter's own, where what is no string is taken as it is. ``contexts`` are entered with the page.
    ValueError for arrays of more than 256 elements; NotOffered where the adapter raises it.
    """
    before, options = options.get("before", ()), {key: value for key, value in options.items() if key != "before"}
    page: list[Expression] = []
    shadow = copy.copy(backend)
    for name, value in (attributes or {}).items():
        setattr(shadow, name, Expression(page, value) if isinstance(value, str) else value)
    if before and isinstance(shadow, Keeps):
        shadow.keep()
    with contextlib.ExitStack() as stack:
        for module, names in (modules or {}).items():
            for name, text in names.items():
                stack.enter_context(mock.patch.object(module, name, Expression(page, text)))
        for context in contexts:
            stack.enter_context(context(page))
        results = [result_of(shadow, *call) for call in (*before, (operation, arguments, options))]
    return script_text(page, results, first, comment)


def result_of(
    shadow: object, operation: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Expression, bool]:
    """(raw result, whether it is a sequence) of a call that is written down."""
    small(arguments)
    many = False
    try:
        answer = getattr(shadow, operation)(*arguments, **options)
        # NumPy's functions wrap what they do not know in an array of objects.
        result = answer.item() if isinstance(answer, np.ndarray) else answer
    except NumbersNeeded as needed:
        result, many = needed.result, needed.many
    if not isinstance(result, Expression):
        raise TypeError(f"{operation}: expected a result of the backend, got a {type(result).__name__}")
    return result, many


def small(value: Any) -> None:
    """Raises ValueError for arrays that nobody would read."""
    if isinstance(value, np.ndarray) and value.size > LARGEST:
        raise ValueError(f"an array of {value.size} elements: scripts are written for {LARGEST} at most")
    if isinstance(value, (list, tuple)):
        for item in value:
            small(item)


def script_text(
    page: list[Expression], results: list[tuple[Expression, bool]], first: Iterable[str], comment: str
) -> str:
    """The script that makes the calls of a page which the results need, or whose value nobody took, and prints each
    result when it is there."""
    printed = {id(result): many for result, many in results}
    taken = {id(call) for node in page for call in calls_in(node)}
    whole = {id(node) for node in page if id(node) in printed or node.does_ and id(node) not in taken}
    wanted = dict.fromkeys(whole, 0)  # how often each call's value is, counted from the last call to the first
    for node in reversed(page):
        if id(node) in wanted and (node.does_ or id(node) in printed):
            for call in calls_in(node):
                wanted[id(call)] = wanted.get(id(call), 0) + 1
    heads = {id(node.parts_[0]) for node in page}  # of which something is asked at once: said in place
    names: dict[int, str] = {}

    def said(node: Expression) -> str:
        return names.get(id(node)) or "".join(part if isinstance(part, str) else said(part) for part in node.parts_)

    lines: list[str] = []
    for node in page:
        if id(node) in printed:
            final = re.sub(r"\.(numpy|item)\(\)$", "", said(node))
            lines.append(f"print([v.tolist() for v in {final}])" if printed[id(node)] else f"print({final}.tolist())")
        if id(node) in printed or not node.does_ or id(node) not in wanted:
            continue
        words = said(node)
        if id(node) in whole:
            lines.append(words)
        elif wanted[id(node)] > 1 or (len(words) > INLINE and id(node) not in heads):
            names[id(node)] = NAMES[len(names)] if len(names) < len(NAMES) else f"t{len(names)}"
            lines.append(f"{names[id(node)]} = {words}")
    last = lines.pop()
    body = "\n".join([*packed(lines), last])
    general = [name for name, sign in (("base64", r"\bbase64\."), ("numpy as np", r"\bnp\.")) if re.search(sign, body)]
    imports = [f"import {', '.join(general)}"] if general else []
    head = [*imports, *first, *(["h = float.fromhex"] if re.search(r"\bh\('", body) else [])]
    return "\n".join([*([f"# {comment}"] if comment else []), "; ".join(head), body]) + "\n"


def calls_in(node: Expression) -> Iterator[Expression]:
    """The calls whose values an expression takes; each as often as it does."""
    for part in node.parts_:
        if isinstance(part, Expression):
            if part.does_:
                yield part
            else:
                yield from calls_in(part)


def packed(statements: list[str]) -> list[str]:
    """Statements in lines, several where they are short."""
    lines: list[str] = []
    for statement in statements:
        if lines and len(lines[-1]) + len(statement) + 2 <= WIDTH:
            lines[-1] += f"; {statement}"
        else:
            lines.append(statement)
    return lines
