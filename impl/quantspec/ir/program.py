"""The quantized network as plain data: what capture, fusion and observers end in and every engine, file and report
reads.

A Program is a list of steps. Each step makes one value, named ``name``, from the values it reads. A value is either an
array of codes or what a float network has (a float tensor, a size, a tuple); ``Quantize`` and ``Dequantize`` are the
only ways from one to the other, besides the steps that have both inside. Steps hold no behaviour, no module, no batch
size and no image size; what stays in float is called by name, and ``callables`` has it.

Weights may lie in memory as an engine reads them; a field gives them in the order of their axes (``held``).

Codes of activations are uint8 (grids with qmin >= 0), those of weights int8 with zero point 0. Windows are [batch,
channels, *positions] with one to three axes of positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams

from .held import held_by


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

    ``weight``: int8 codes [outputs, inputs]; ``bias``: float32 (outputs,) or None, as the dialects disagree on its
    code; ``layer``: the path of the module it came from; ``y_qparams``: the output's grid, or None where the output is
    float32, without codes of its own (STA-DIRECT); ``flat``: it takes rows only, as it holds a normalization whose
    channels are its features in no other input (FUS-ROWS).
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    x_qparams: QParams
    w_qparams: QParams
    y_qparams: QParams | None
    relu: bool
    flat: bool = False


@dataclass(frozen=True, eq=False)
class Conv:
    """A convolution of codes (INT-CONV-ANY), with a ReLU inside where ``relu``.

    ``weight``: int8 codes [outputs, inputs / groups, *kernel]; ``bias``, ``layer`` and ``y_qparams`` as in ``Linear``.
    One entry for each axis of positions: ``stride``, ``padding`` ((before, after), with the code of zero; negative cuts
    off), ``dilation`` of the kernel, ``input_dilation``: that many minus one zeros between neighbouring inputs, before
    padding, which makes it a transposed convolution (INT-CONV-TRANSPOSED).
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    x_qparams: QParams
    w_qparams: QParams
    y_qparams: QParams | None
    relu: bool
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True, eq=False)
class Table:
    """A function of one value, element by element: the code of ``function`` (its name) for each of 256 codes
    (INT-TABLE).

    ``table``: uint8 (256,), indexed by the input's code, or (channels, 256), one for each channel along axis 1
    (INT-TABLE-CHANNEL).
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
    """The largest code of each window (INT-MAXPOOL); one entry of ``kernel``, ``stride``, ``padding``, ``dilation`` for
    each axis of positions.

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
    """The average code of each of ``size`` windows, which split the positions as evenly as they can (INT-MEAN); None
    keeps an axis as it is."""

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
class Bilinear:
    """Codes [batch, channels, height, width] between their neighbours (INT-BILINEAR); the grid stays.

    The two lengths of the output are those of the value ``like``, or ``size``, or ``factors`` times the input's,
    rounded down; ``exact`` says that positions follow from the factors, and not from the lengths.
    """

    name: str
    x: str
    qparams: QParams
    like: str | None
    size: tuple[int, int] | None
    factors: tuple[float, float] | None
    exact: bool
    align_corners: bool


@dataclass(frozen=True, eq=False)
class Move:
    """What rearranges codes without looking at them: flatten, permute, slice, split, pad with ``qparams``' zero point,
    nearest neighbours, ...

    ``kind`` and ``target`` as in ``Call``, but only what ``moves`` knows; ``args`` and ``kwargs`` hold ``Ref`` where
    values go.
    """

    name: str
    kind: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
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
    """Float [..., inputs] to float [..., outputs] with weights that are dequantized where they are used
    (DYN-WEIGHT-ONLY)."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    w_qparams: QParams


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of a table of int8 codes [entries, features], dequantized (DYN-EMBEDDING). ``x``: integers; the result
    float32 [..., features].

    ``bag``: None, or how the rows of a bag become one: ``sum``, ``mean`` or ``max``; ``offsets`` and ``weights`` then
    name the values, if given.
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
    """One direction of one layer of a recurrent network: the input's and the state's weights, int8 [gates * state,
    ...], and biases (or None)."""

    input_weight: np.ndarray
    input_qparams: QParams
    input_bias: np.ndarray | None
    state_weight: np.ndarray
    state_qparams: QParams
    state_bias: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Recurrent:
    """An LSTM, GRU or RNN whose matrix products are dynamic linear layers (DYN-RECURRENT). ``kind``: ``lstm``, ``gru``,
    ``rnn_tanh``, ``rnn_relu``.

    ``x``: float [steps, batch, inputs], [batch, steps, inputs] where ``batch_first``, or without batch; ``state``: a
    tree with ``Ref``, or None. ``cells``: for each layer forward and, where ``bidirectional``, backward. The result is
    what the module gives: (output, state). ``single``: one step of an ``nn.LSTMCell`` or its like.
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

    ``kind`` is ``module`` (``target`` is its path), ``function`` (its qualified name), ``method`` or ``attribute``;
    ``reason`` says why it is not in int8, and is empty where there is nothing to quantize. What is called stands in the
    Program's ``callables``, under ``(kind, target)``.
    """

    name: str
    kind: str
    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reason: str


@dataclass(frozen=True, eq=False)
class Attention(Call):
    """A call of scaled dot-product attention whose products are computed in codes (DYN-ATTENTION); by what is called
    where values are none for codes (DYN-ATTENTION-FLOAT)."""


held_by(weight=(Linear, Conv, LinearDynamic, LinearWeight, Embedding), input_weight=(Cell,), state_weight=(Cell,))
Layer = Linear | Conv | LinearDynamic | LinearWeight | Embedding | Recurrent
Step = (
    Quantize | Dequantize | Linear | Conv | Table | Relu | Add | Mul | Concat | MaxPool | AvgPool | AdaptiveAvgPool
    | Mean | Bilinear | Move | LinearDynamic | LinearWeight | Embedding | Recurrent
    | Attention | Call
)  # fmt: skip
Callables = Mapping[tuple[str, str], Any]


@dataclass(frozen=True, eq=False)
class Program:
    """A quantized network as plain data.

    Attributes:
        dialect: the name of the dialect (chapter 10) that the steps are computed in.
        inputs: the names of the inputs.
        defaults: the inputs that may be left out, with their defaults.
        steps: the steps in the order of execution.
        output: the output, a tree with a ``Ref`` for each value.
        callables: what ``Call`` steps call, by ``(kind, target)``; methods are not listed.
        fixed: (name, value) of further arguments, which a caller may give with these values only.
    """

    dialect: str
    inputs: tuple[str, ...]
    defaults: dict[str, Any]
    steps: tuple[Step, ...]
    output: Any
    callables: Callables = field(default_factory=dict)
    fixed: tuple[tuple[str, Any], ...] = ()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The steps that hold weights, in order."""
        return tuple(step for step in self.steps if isinstance(step, Layer))
