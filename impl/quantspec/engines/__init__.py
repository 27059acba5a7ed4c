"""Engines run a Program. An engine is a callable: engine(program, callables) gives a function from a batch to the output.

A batch is a dict of inputs by name. Every engine gives, bit for bit, what ``reference`` gives in the dialect it declares.
"""

from collections.abc import Callable
from typing import Any

from ..dialects import dialect
from . import torch_int8
from .reference import Reference


def make_compiled(program: Any, callables: dict) -> Callable:
    """The compiled engine, whose compiler is loaded when it is first asked for. UnsupportedError for programs that it cannot run."""
    # Not called ``compiled``: loading the package of that name would put it in this function's place.
    from .compiled.engine import Compiled

    return Compiled(program, callables)


ENGINES: dict[str, Callable] = {"reference": Reference, "torch": torch_int8.Torch, "compiled": make_compiled}
AUTO = "auto"
COMPILED_DIALECT = "onnx"  # the one in which the compiled engine computes


def check(name: str) -> None:
    """Raises ValueError listing the known engines when there is none of that name."""
    if name != AUTO and name not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join([AUTO, *ENGINES])}, got {name!r}")


def engine(name: str) -> Callable:
    """The engine of that name; ValueError listing the known ones when there is none."""
    check(name)
    return auto if name == AUTO else ENGINES[name]


def auto(program: Any, callables: dict) -> Callable:
    """The fastest engine that computes in the program's dialect, which for each of them is the same whatever the sizes (spec/performance.md). Which one it is
    stands in the network's ``engine`` and in its table."""
    if program.dialect == COMPILED_DIALECT:
        return make_compiled(program, callables)
    return (torch_int8.Torch if torch_int8.runs(dialect(program.dialect)) else Reference)(program, callables)
