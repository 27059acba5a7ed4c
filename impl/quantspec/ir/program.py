"""The quantized network as plain data: what capture, fusion and observers end in and every engine, file and report reads.

A Program is a list of steps. Each step makes one value, named ``name``, from the values it reads. A value is either an array of codes or what a
float network has (a float tensor, a size, a tuple); ``Quantize`` and ``Dequantize`` are the only ways from one to the other, besides the steps that
have both inside. A Program holds no behaviour, no module, no batch size and no image size.

Codes of activations are uint8 (grids with qmin >= 0), those of weights int8 with zero point 0. Windows are [batch, channels, *positions] with one to
three axes of positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams


@dataclass(frozen=True)
class Ref:
    """Stands for the value of that name among the arguments of a ``Call`` or a ``Move``, and in the output."""

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
class Conv:
    """A convolution of codes (INT-CONV-ANY), with a ReLU inside where ``relu``.

    ``weight``: int8 codes [outputs, inputs / groups, *kernel]; ``bias`` as in ``Linear``. One entry for each axis of positions: ``stride``, ``padding``
    ((before, after), with the code of zero; negative cuts off), ``dilation`` of the kernel, ``input_dilation``: that many minus one zeros between
    neighbouring inputs, before padding, which makes it a transposed convolution (INT-CONV-TRANSPOSED).
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
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False)
class LinearReal:
    """Codes [..., inputs] to float [..., outputs], without codes of their own (STA-DIRECT), with a ReLU inside where ``relu``."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    x_qparams: QParams
    w_qparams: QParams
    relu: bool


@dataclass(frozen=True, eq=False)
class ConvReal:
    """A convolution of codes with a float result (STA-DIRECT); fields as in ``Conv``."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    x_qparams: QParams
    w_qparams: QParams
    relu: bool
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False)
class Table:
    """A function of one value, element by element: the code of ``function`` (its name) for each of 256 codes (INT-TABLE).

    ``table``: uint8 (256,), indexed by the input's code.
    """

    name: str
    x: str
    function: str
    table: np.ndarray
    x_qparams: QParams
    y_qparams: QParams


@dataclass(frozen=True, eq=False)
class Relu:
    """ReLU on codes; the grid stays (INT-RELU)."""

    name: str
    x: str
    qparams: QParams


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two values in codes (INT-ADD), whose shapes broadcast, with a ReLU inside where ``relu``."""

    name: str
    a: str
    b: str
    a_qparams: QParams
    b_qparams: QParams
    y_qparams: QParams
    relu: bool


@dataclass(frozen=True, eq=False)
class Mul:
    """The product of two values in codes, element by element (INT-MUL), whose shapes broadcast."""

    name: str
    a: str
    b: str
    a_qparams: QParams
    b_qparams: QParams
    y_qparams: QParams


@dataclass(frozen=True, eq=False)
class Concat:
    """Codes joined along ``axis`` on a common grid (INT-CONCAT)."""

    name: str
    xs: tuple[str, ...]
    x_qparams: tuple[QParams, ...]
    y_qparams: QParams
    axis: int


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The largest code of each window (INT-MAXPOOL); one entry of ``kernel``, ``stride``, ``padding``, ``dilation`` for each axis of positions.

    ``ceil_mode``: a last window that begins inside the input or its padding before counts though it ends outside.
    """

    name: str
    x: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool


@dataclass(frozen=True, eq=False)
class AvgPool:
    """The average code of each window (INT-AVGPOOL); the grid stays."""

    name: str
    x: str
    qparams: QParams
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool


@dataclass(frozen=True, eq=False)
class AdaptiveAvgPool:
    """The average code of each of ``size`` windows, which split the positions as evenly as they can (INT-MEAN); None keeps an axis as it is."""

    name: str
    x: str
    qparams: QParams
    size: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Mean:
    """The average code over ``axes`` (INT-MEAN), which stay with length 1 where ``keepdim``; the grid stays."""

    name: str
    x: str
    qparams: QParams
    axes: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True, eq=False)
class Move:
    """What rearranges codes without looking at them: flatten, permute, slice, split, pad with ``qparams``' zero point, nearest neighbours, ...

    ``kind`` and ``target`` as in ``Call``, but only what ``moves`` knows; ``args`` and ``kwargs`` hold ``Ref`` where values go.
    """

    name: str
    kind: str
    target: str
    args: tuple
    kwargs: dict
    qparams: QParams


@dataclass(frozen=True, eq=False)
class LinearDynamic:
    """Float [..., inputs] to float [..., outputs], quantized inside at the input's own range (chapter 6).

    ``rows``: each row of the input has a range of its own (DYN-ROWS), instead of the whole input.
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    w_qparams: QParams
    reduce_range: bool
    rows: bool = False


@dataclass(frozen=True, eq=False)
class LinearWeight:
    """Float [..., inputs] to float [..., outputs] with weights that are dequantized where they are used (DYN-WEIGHT-ONLY)."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    w_qparams: QParams


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of a table of int8 codes [entries, features], dequantized (DYN-EMBEDDING). ``x``: integers; the result float32 [..., features].

    ``bag``: None, or how the rows of a bag become one: ``sum``, ``mean`` or ``max``; ``offsets`` and ``weights`` then name the values, if given.
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    w_qparams: QParams
    bag: str | None = None
    offsets: str | None = None
    weights: str | None = None
    include_last_offset: bool = False
    padding_idx: int | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """One direction of one layer of a recurrent network: the input's and the state's weights, int8 [gates * state, ...], and biases (or None)."""

    input_weight: np.ndarray
    input_qparams: QParams
    input_bias: np.ndarray | None
    state_weight: np.ndarray
    state_qparams: QParams
    state_bias: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Recurrent:
    """An LSTM, GRU or RNN whose matrix products are dynamic linear layers (DYN-RECURRENT). ``kind``: ``lstm``, ``gru``, ``rnn_tanh``, ``rnn_relu``.

    ``x``: float [steps, batch, inputs], [batch, steps, inputs] where ``batch_first``, or without batch; ``state``: a tree with ``Ref``, or None.
    ``cells``: for each layer forward and, where ``bidirectional``, backward. The result is what the module gives: (output, state).
    ``single``: one step of an ``nn.LSTMCell`` or its like.
    """

    name: str
    x: str
    state: Any
    layer: str
    kind: str
    cells: tuple[Cell, ...]
    bidirectional: bool
    batch_first: bool
    reduce_range: bool
    single: bool = False


@dataclass(frozen=True, eq=False)
class Call:
    """What stays in float: a call whose arguments hold ``Ref`` where values go.

    ``kind`` is ``module`` (``target`` is its path), ``function`` (its qualified name), ``method`` or ``attribute``; ``reason``
    says why it is not in int8, and is empty where there is nothing to quantize. The callable itself is kept by the module that holds the Program,
    under ``(kind, target)``.
    """

    name: str
    kind: str
    target: str
    args: tuple
    kwargs: dict
    reason: str


Layer = Linear | Conv | LinearReal | ConvReal | LinearDynamic | LinearWeight | Embedding | Recurrent
Step = (
    Quantize | Dequantize | Linear | Conv | LinearReal | ConvReal | Table | Relu | Add | Mul | Concat | MaxPool | AvgPool | AdaptiveAvgPool | Mean | Move
    | LinearDynamic | LinearWeight | Embedding | Recurrent | Call
)  # fmt: skip


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
    def layers(self) -> tuple[Layer, ...]:
        """The steps that hold weights, in order."""
        return tuple(step for step in self.steps if isinstance(step, Layer))


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


# Fields of steps that name values; ``args``, ``kwargs`` and ``state`` are trees with Refs.
NAMING = ("x", "a", "b", "xs", "offsets", "weights")


def reads(step: Any) -> list[str]:
    """The names of the values that a step, or a node of a float graph, reads, with repetitions."""
    found = []
    for field in fields(step):
        value = getattr(step, field.name)
        if field.name in NAMING and value is not None:
            found += [value] if isinstance(value, str) else value
        elif field.name in ("args", "kwargs", "state"):
            found += refs(value)
    return found


def last_reads(steps: Sequence, kept: Sequence[str], read_by: Callable[[Any], list[str]] = reads) -> list[list[str]]:
    """For each step the values, but those that are ``kept``, that nobody reads after it: its own among them where nobody reads it at all."""
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        last |= dict.fromkeys([step.name, *read_by(step)], index)
    done: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name not in kept:
            done[index].append(name)
    return done


def arrays(step: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays that a step holds, by the path of fields to them; grids' among them."""
    for field in fields(step):
        value = getattr(step, field.name)
        for index, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            path = field.name if index is None else f"{field.name}.{index}"
            if isinstance(item, np.ndarray):
                yield path, item
            elif isinstance(item, QParams):
                yield f"{path}.scale", item.scale
                yield f"{path}.zero_point", item.zero_point
            elif isinstance(item, Cell):
                yield from ((f"{path}.{inner}", array) for inner, array in arrays(item))


def with_arrays(program: Program, given: dict[str, np.ndarray]) -> Program:
    """The Program with other arrays, by ``step.path``; steps that are not named stay as they are. The caller checks shapes and types."""
    steps = []
    for step in program.steps:
        paths = {path: given[f"{step.name}.{path}"] for path, _ in arrays(step) if f"{step.name}.{path}" in given}
        steps.append(_with(step, paths) if paths else step)
    return replace(program, steps=tuple(steps))


def _with(step: Any, paths: dict[str, np.ndarray]) -> Any:
    """A step, cell or grid with other arrays by path."""
    changes: dict[str, Any] = {}
    for head in dict.fromkeys(path.partition(".")[0] for path in paths):
        value = getattr(step, head)
        inner = {path.partition(".")[2]: array for path, array in paths.items() if path.partition(".")[0] == head}
        if "" in inner:
            changes[head] = inner[""]
        elif isinstance(value, tuple):
            items = list(value)
            for index in dict.fromkeys(path.partition(".")[0] for path in inner):
                items[int(index)] = _with(items[int(index)], {p.partition(".")[2]: a for p, a in inner.items() if p.partition(".")[0] == index})
            changes[head] = tuple(items)
        elif isinstance(value, QParams):
            changes[head] = QParams(inner.get("scale", value.scale), inner.get("zero_point", value.zero_point), value.qmin, value.qmax, value.axis)
        else:
            changes[head] = _with(value, inner)
    return replace(step, **changes)
