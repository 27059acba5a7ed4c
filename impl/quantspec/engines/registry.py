"""The engines by name, and the one that is taken where nobody asked for another."""

from typing import Any, Protocol

from quantspec.errors import expected_one_of
from quantspec.ir.program import Program
from quantspec.ir.traverse import unpack_codes
from quantspec.numerics.dialects.named import dialect

from . import torch_matmul
from .compiled import DIALECT as COMPILED_DIALECT
from .reference import Reference


class Engine(Protocol):
    """A Program ready to run, by the engine of that ``name``. Where ``input_name`` is not None, the program has one
    input and one output, and ``single`` is the shorter way."""

    name: str
    input_name: str | None

    @property
    def engines(self) -> dict[str, str]:
        """By which engine each layer is run, by the name of its step."""

    def __call__(self, batch: Any) -> Any:
        """The output for a batch."""

    def single(self, x: Any) -> Any:
        """The output for the only input."""


def make_compiled(program: Program, weights: str = "copied", *, measure: bool = False) -> Engine:
    """The compiled engine, whose compiler is loaded when it is first asked for. UnsupportedError for programs that it
    cannot run."""
    from .compiled.engine import Compiled

    return Compiled(program, measure, weights)


def make_reference(program: Program, weights: str = "copied") -> Engine:
    """The reference engine, which reads the program's own arrays."""
    if weights != "copied":
        unpack_codes(program)
    return Reference(program)


def make_torch(program: Program, weights: str = "copied") -> Engine:
    """The torch engine, which finds what it made of weights by their arrays."""
    if weights != "copied":
        unpack_codes(program)
    return torch_matmul.Torch(program)


class Maker(Protocol):
    """Makes an engine of a program; ``weights`` as in ``Compiled``, where it is the compiled one."""

    def __call__(self, program: Program, weights: str = "copied") -> Engine: ...


ENGINES: dict[str, Maker] = {"reference": make_reference, "torch": make_torch, "compiled": make_compiled}
AUTO = "auto"


def check(name: str) -> None:
    """Raises ValueError listing the known engines when there is none of that name."""
    if not isinstance(name, str) or name not in (AUTO, *ENGINES):
        raise ValueError(expected_one_of("engine", [AUTO, *ENGINES], name))


def engine(name: str) -> Maker:
    """The engine of that name; ValueError listing the known ones when there is none."""
    check(name)
    return auto if name == AUTO else ENGINES[name]


def auto(program: Program, weights: str = "copied") -> Engine:
    """The engine that takes least time in the program's dialect.

    The compiled engine runs what it has kernels for, which are the fastest at every size (spec/performance.md). Other
    layers take the faster of ``torch`` and ``reference``, chosen per input shape by timing the first calls. A network's
    ``engine`` and ``engines`` tell which.
    """
    if program.dialect == COMPILED_DIALECT:
        return make_compiled(program, weights, measure=True)
    exact = torch_matmul.runs(dialect(program.dialect))
    if weights != "copied":
        unpack_codes(program)
    return torch_matmul.Torch(program, measure=True) if exact else Reference(program)
