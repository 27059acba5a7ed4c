"""Engines run a Program. An engine is a callable: engine(program, callables) gives a function from a batch to the output.

A batch is a dict of inputs by name. Every engine gives, bit for bit, what ``reference`` gives in the dialect it declares.
"""

from collections.abc import Callable
from typing import Any

from quantspec.engines import torch_matmul
from quantspec.engines.reference import Reference
from quantspec.numerics.dialects.named import dialect


def make_compiled(program: Any, callables: dict, **options: Any) -> Callable:
    """The compiled engine, whose compiler is loaded when it is first asked for. UnsupportedError for programs that it cannot run."""
    # Not called ``compiled``: loading the package of that name would put it in this function's place.
    from quantspec.engines.compiled.engine import Compiled

    return Compiled(program, callables, **options)


ENGINES: dict[str, Callable] = {"reference": Reference, "torch": torch_matmul.Torch, "compiled": make_compiled}
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
    """What takes least time in the program's dialect: the compiled engine for what it has kernels for, which are the fastest whatever the size (spec/performance.md);
    for other layers what a measurement in use finds, layer by layer and size by size. Which it is stand in the network's ``engine`` and ``engines``."""
    if program.dialect == COMPILED_DIALECT:
        return make_compiled(program, callables, measure=True)
    return torch_matmul.Torch(program, callables, measure=True) if torch_matmul.runs(dialect(program.dialect)) else Reference(program, callables)
