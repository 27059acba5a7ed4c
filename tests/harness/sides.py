"""Which sides of vectorised steps were taken: of comparisons both, of clamps all three.

``with watched(module) as sides:`` runs the functions of a module with each comparison and clamp in them noted; what was
never on one of its sides is then in ``sides.missing()``. A line coverage cannot see this: ``np.where`` runs whole.
"""

import ast
import contextlib
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

CLAMPS = {"saturate": 3, "clip": 3, "maximum": 2, "minimum": 2, "max": 2, "min": 2}


class Sides:
    """What was taken, by the place in the source."""

    def __init__(self) -> None:
        self.possible: set[tuple[str, str]] = set()
        self.taken: set[tuple[str, str]] = set()

    def missing(self) -> list[str]:
        """The sides that nothing was on, as text."""
        return sorted(f"{place} {side}" for place, side in self.possible - self.taken)

    def note(self, place: str, **sides: Any) -> None:
        self.taken |= {(place, side) for side, there in sides.items() if np.any(there)}

    def compared(self, place: str, value: Any) -> Any:
        self.note(place, true=value, false=np.logical_not(value))
        return value

    def clamped(self, place: str, clamp: Callable[..., Any], *values: Any, **options: Any) -> Any:
        result = clamp(*values, **options)
        with np.errstate(invalid="ignore"):
            if len(values) == 3:
                x, low, high = values
                self.note(place, below=np.less(x, low), above=np.greater(x, high), inside=np.equal(x, result))
            else:
                self.note(place, first=np.less(*values), second=np.greater(*values))
        return result


class Watch(ast.NodeTransformer):
    """Puts a note around each comparison of numbers and each clamp."""

    def __init__(self, sides: Sides, module: str) -> None:
        self.sides, self.module = sides, module

    def place(self, node: ast.expr, *sides: str) -> ast.Constant:
        place = f"{self.module}:{node.lineno}: {ast.unparse(node)}"
        self.sides.possible |= {(place, side) for side in sides}
        return ast.Constant(place)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        place = self.place(node, "true", "false")
        return noted("compared", place, self.generic_visit(node))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if len(node.args) != CLAMPS.get(name):
            return self.generic_visit(node)
        place = self.place(node, *(("below", "inside", "above") if len(node.args) == 3 else ("first", "second")))
        inner = self.generic_visit(node)
        return noted("clamped", place, inner.func, *inner.args)


def noted(what: str, *values: ast.AST) -> ast.Call:
    return ast.Call(ast.Attribute(ast.Name("sides_taken", ast.Load()), what, ast.Load()), list(values), [])


def source_of(module: types.ModuleType) -> str:
    """What a module was loaded from, which is not what its file has where a fault was put into it."""
    return module.__loader__.get_source(module.__name__)


@contextlib.contextmanager
def watched(*modules: types.ModuleType, without: tuple[str, ...] = ()) -> Iterator[Sides]:
    """Notes the sides in all functions of these modules but those in ``without``."""
    sides, whole = Sides(), {}
    for module in modules:
        for node in ast.parse(source_of(module)).body:
            if isinstance(node, ast.FunctionDef) and node.name not in without:
                changed = Watch(sides, module.__name__.rpartition(".")[2]).visit(node)
                code = compile(ast.fix_missing_locations(ast.Module([changed], [])), module.__file__, "exec")
                function = getattr(module, node.name)
                whole[function] = function.__code__
                function.__code__ = next(c for c in code.co_consts if isinstance(c, types.CodeType))
        module.sides_taken = sides
    try:
        yield sides
    finally:
        for function, code in whole.items():
            function.__code__ = code
        for module in modules:
            del module.sides_taken


def constants(*modules: types.ModuleType) -> list[float]:
    """The numbers that stand in the functions of modules, such as ``2**31 - 1``, without their signs."""
    found = set()
    for module in modules:
        for node in ast.walk(ast.parse(source_of(module))):
            if isinstance(node, ast.Constant | ast.BinOp) and all(
                isinstance(inner, ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop)
                or (isinstance(inner, ast.Constant) and type(inner.value) in (int, float))
                for inner in ast.walk(node)
            ):
                found.add(abs(float(eval(ast.unparse(node)))))  # noqa: S307
    return sorted(found)


def around(values: Iterable[float]) -> np.ndarray:
    """These numbers, what is one half, one, and one place beside them, and all that with the other sign, as float32."""
    exact = np.array([v + d for v in values for d in (-1, -0.5, 0, 0.5, 1)], np.float32)
    near = np.array(list(values), np.float32)
    up, down = np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))
    return np.unique(np.concatenate([exact, up, down, -exact, -up, -down]))
