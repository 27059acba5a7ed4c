"""The quantized network as plain data: what capture, fusion and observers end in and every engine, file and report reads.

A Program is a list of steps. Each step makes one value, named ``name``, from the values it reads. A value is either an array of codes or a
float tensor; ``Quantize`` and ``Dequantize`` are the only ways from one to the other, besides ``LinearDynamic``, which has both inside.
A Program holds no behaviour, no module and no batch size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .affine import QParams


@dataclass(frozen=True)
class Ref:
    """Stands for the value of that name among the arguments of a ``Call`` and in the output."""

    name: str


@dataclass(frozen=True, eq=False)
class Quantize:
    """Float ``x`` to codes on the grid ``qparams``."""

    name: str
    x: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Dequantize:
    """Codes ``x`` on the grid ``qparams`` to float32."""

    name: str
    x: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Linear:
    """Codes [..., inputs] to codes [..., outputs] (INT-LINEAR), with a ReLU inside where ``relu``.

    ``weight``: int8 codes [outputs, inputs]; ``bias``: float32 (outputs,) or None, as the dialects disagree on its code; ``layer`` is
    the path of the module it came from.
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    x_qparams: QParams
    w_qparams: QParams
    y_qparams: QParams
    relu: bool


@dataclass(frozen=True, eq=False)
class LinearDynamic:
    """Float [..., inputs] to float [..., outputs], quantized inside at the input's own range (chapter 6)."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    w_qparams: QParams
    reduce_range: bool


@dataclass(frozen=True, eq=False)
class Relu:
    """ReLU on codes; the grid stays (INT-RELU)."""

    name: str
    x: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Flatten:
    """Axes ``start`` to ``end`` of codes become one; the grid stays."""

    name: str
    x: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Call:
    """What stays in float: a call whose arguments hold ``Ref`` where values go.

    ``kind`` is ``module`` (``target`` is its path), ``function`` (its qualified name), ``method`` or ``attribute``; ``reason``
    says why it is not in int8. The callable itself is kept by the module that holds the Program, under ``(kind, target)``.
    """

    name: str
    kind: str
    target: str
    args: tuple
    kwargs: dict
    reason: str


Step = Quantize | Dequantize | Linear | LinearDynamic | Relu | Flatten | Call


@dataclass(frozen=True, eq=False)
class Program:
    """A quantized network: the names of its inputs, its steps in order, and ``output``, a tree with ``Ref`` for values.

    ``dialect`` names the set of choices (chapter 10) its steps are to be computed by. ``defaults`` has the inputs that may be left out.
    """

    dialect: str
    inputs: tuple[str, ...]
    defaults: dict[str, Any]
    steps: tuple[Step, ...]
    output: Any

    @property
    def layers(self) -> tuple[Linear | LinearDynamic, ...]:
        """The steps that hold weights, in order."""
        return tuple(step for step in self.steps if isinstance(step, (Linear, LinearDynamic)))


def replace_refs(tree: Any, value: Callable[[str], Any]) -> Any:
    """``tree`` (tuples, lists, dicts, slices) with each ``Ref`` replaced by ``value(name)``."""
    if isinstance(tree, Ref):
        return value(tree.name)
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
    found: list[str] = []
    replace_refs(tree, lambda name: found.append(name))
    return found
