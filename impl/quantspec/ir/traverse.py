"""Walking the values of a Program and of a float graph: what a step reads, and the arrays that it holds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams

from .held import Held, changed, held, hold
from .program import Cell, Conv, Embedding, Linear, LinearDynamic, LinearWeight, Program, Recurrent, Ref

NO_TREES = (int, float, bool, str, type(None))


def replace_refs(tree: Any, value: Callable[[str], Any]) -> Any:
    """``tree`` (tuples, lists, dicts, slices) with each ``Ref`` replaced by ``value(name)``."""
    if isinstance(tree, Ref):
        return value(tree.name)
    if type(tree) in NO_TREES:
        return tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(replace_refs(item, value) for item in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(replace_refs(item, value) for item in tree)
    if isinstance(tree, dict):
        return {key: replace_refs(item, value) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*(replace_refs(end, value) for end in (tree.start, tree.stop, tree.step)))
    return tree


def refs(tree: Any) -> list[str]:
    """The names of all values that ``tree`` refers to, in order, with repetitions."""
    if isinstance(tree, Ref):
        return [tree.name]
    if isinstance(tree, (tuple, list)):
        return [name for item in tree for name in refs(item)]
    if isinstance(tree, dict):
        return [name for item in tree.values() for name in refs(item)]
    return refs((tree.start, tree.stop, tree.step)) if isinstance(tree, slice) else []


# Fields of steps that name values; ``args``, ``kwargs`` and ``state`` are trees with Refs.
NAMING = ("x", "a", "b", "xs", "like", "offsets", "weights")
TREES = ("args", "kwargs", "state")


def reads(step: Any) -> list[str]:
    """The names of the values that a step, or a node of a float graph, reads, with repetitions."""
    names: list[str] = []
    for field in reading_fields(type(step)):
        value = getattr(step, field)
        if field not in NAMING:
            names += refs(value)
        elif value is not None:
            names += [value] if isinstance(value, str) else value
    return names


READING: dict[type[Any], tuple[str, ...]] = {}


def reading_fields(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a step or a node that say what it reads."""
    if kind not in READING:
        READING[kind] = tuple(field.name for field in fields(kind) if field.name in (*NAMING, *TREES))
    return READING[kind]


def own_name(step: Any) -> list[str]:
    """The name of the value that a step makes."""
    return [step.name]


def last_reads(
    steps: Sequence[Any], kept: Sequence[str], read_by: Callable[[Any], Sequence[str]] = reads,
    made_by: Callable[[Any], Sequence[str]] = own_name,
) -> list[list[str]]:  # fmt: skip
    """For each step the values, but those that are ``kept``, that nobody reads after it: its own among them where
    nobody reads it at all."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last |= dict.fromkeys([*made_by(step), *read_by(step)], index)
    done: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in kept:
            done[index].append(name)
    return done


def arrays(step: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays that a step has, by the path of fields to them; grids' among them."""
    return ((path, item.array() if isinstance(item, Held) else item) for path, item in held_arrays(step))


def held_arrays(step: Any) -> Iterator[tuple[str, np.ndarray | Held]]:
    """``arrays`` without unpacking codes that are held otherwise."""
    for field in fields(step):
        value = vars(step)[field.name]
        for index, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            path = field.name if index is None else f"{field.name}.{index}"
            if isinstance(item, (np.ndarray, Held)):
                yield path, item
            elif isinstance(item, QParams):
                yield f"{path}.scale", item.scale
                yield f"{path}.zero_point", item.zero_point
            elif isinstance(item, Cell):
                yield from ((f"{path}.{inner}", array) for inner, array in held_arrays(item))


CodeField = tuple[object, str]  # a step, or a cell of one, and its field


def code_fields(program: Program) -> Iterator[CodeField]:
    """Where the codes of weights are in a program."""
    for step in program.steps:
        if isinstance(step, (Linear, Conv, LinearDynamic, LinearWeight, Embedding)):
            yield step, "weight"
        elif isinstance(step, Recurrent):
            yield from ((cell, name) for cell in step.cells for name in ("input_weight", "state_weight"))


def unpack_codes(program: Program) -> None:
    """Has all fields hold their codes as arrays of the program's own, for whoever reads them often."""
    unpacked: dict[int, tuple[Held, np.ndarray]] = {}
    for owner, name in code_fields(program):
        value = held(owner, name)
        if isinstance(value, Held):
            if id(value) not in unpacked:
                unpacked[id(value)] = value, value.unpack()
            hold(owner, name, unpacked[id(value)][1])


def with_arrays(program: Program, given: dict[str, np.ndarray]) -> Program:
    """The Program with other arrays, by ``step.path``; steps that are not named stay as they are. The caller checks
    shapes and types."""
    steps = []
    for step in program.steps:
        paths = {path: given[f"{step.name}.{path}"] for path, _ in held_arrays(step) if f"{step.name}.{path}" in given}
        steps.append(_with(step, paths) if paths else step)
    return replace(program, steps=tuple(steps))


def _with(step: Any, paths: dict[str, np.ndarray]) -> Any:
    """A step, cell or grid with other arrays by path."""
    changes: dict[str, Any] = {}
    for head in dict.fromkeys(path.partition(".")[0] for path in paths):
        value = vars(step)[head]
        inner = {path.partition(".")[2]: array for path, array in paths.items() if path.partition(".")[0] == head}
        if "" in inner:
            changes[head] = inner[""]
        elif isinstance(value, tuple):
            items = list(value)
            for index in dict.fromkeys(path.partition(".")[0] for path in inner):
                own = {p.partition(".")[2]: a for p, a in inner.items() if p.partition(".")[0] == index}
                items[int(index)] = _with(items[int(index)], own)
            changes[head] = tuple(items)
        else:  # a grid
            scale, zero_point = inner.get("scale", value.scale), inner.get("zero_point", value.zero_point)
            changes[head] = QParams(scale, zero_point, value.qmin, value.qmax, value.axis)
    return changed(step, **changes)


def is_direct(step: object) -> bool:
    """Whether a step is a layer of codes whose output is float32 (STA-DIRECT)."""
    return isinstance(step, (Linear, Conv)) and step.y_qparams is None
