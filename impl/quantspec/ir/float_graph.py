"""The float network as plain data: what capture ends in, what fusion rewrites and what calibration runs.

A graph is a list of nodes. Each makes one value, named ``name``, from the values it reads. Nodes that have an integer
form say what they are; each but the layers keeps in ``call`` how it is computed in float. The graph owns copies of the
weights, so that nothing later can change the model, and nothing that happens to the model can change the graph.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .program import Call, Ref
from .traverse import TREES, last_reads, reading_fields, reads, refs, replace_refs


class Weights:
    """What layers have in common."""

    weight: np.ndarray
    bias: np.ndarray | None

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias for torch's operators, in the same memory."""
        return torch.from_numpy(self.weight), None if self.bias is None else torch.from_numpy(self.bias)


@dataclass(frozen=True, eq=False)
class Linear(Weights):
    """A linear layer: ``weight`` float32 [outputs, inputs], ``bias`` float32 (outputs,) or None; behind it, where
    ``relu``, a ReLU that ends at ``ceiling``.

    ``flat``: it holds a normalization whose channels are its features only where its input has two axes.
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    relu: bool = False
    ceiling: float = float("inf")
    flat: bool = False


@dataclass(frozen=True, eq=False)
class Conv(Weights):
    """A convolution: ``weight`` float32 [outputs, inputs / groups, *kernel]; the rest as in ``Linear`` and
    ``program.Conv``.

    A ``transposed`` one has its kernel flipped and its channels in that order, so that it is a convolution of spread
    inputs (INT-CONV-TRANSPOSED).
    """

    name: str
    x: str
    layer: str
    weight: np.ndarray
    bias: np.ndarray | None
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    relu: bool = False
    ceiling: float = float("inf")


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """A batch normalization with fixed statistics, float32 (channels,) each. ``call`` computes it where it is not
    folded.

    ``positions``: how many axes its input has behind the channels, None where that is not known.
    """

    name: str
    x: str
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float
    call: Call
    layer: str = ""
    positions: int | None = None


@dataclass(frozen=True, eq=False)
class Folded:
    """A normalization that a layer absorbed: the one ``behind`` it, the one ``before`` it, or the layer is the
    normalization ``alone``; and weight and bias of the layer without it."""

    place: str
    norm: BatchNorm
    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Act:
    """What acts in training mode only: calls that read what is given by its number, the last of them ``output``.

    ``owners``: the paths of the modules whose training mode it is. ``callables`` has what the calls call.
    """

    steps: tuple[Call, ...]
    output: str
    owners: tuple[str, ...]
    callables: dict[tuple[str, str], Any]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a tensor is computed of a model's parameters alone: calls, the last of which gives it. ``callables`` has what
    they call but for the model's tensors, which are found by their paths."""

    steps: tuple[Call, ...]
    callables: dict[tuple[str, str], Any]
    value: torch.Tensor

    @classmethod
    def of(cls, path: str, value: torch.Tensor) -> "Recipe":
        """A tensor of the model itself."""
        return cls((Call("source", "attribute", path, (), {}, ""),), {}, value)

    def then(self, *moves: tuple[Any, ...]) -> "Recipe":
        """The same and methods of its tensor, each with its arguments."""
        steps, value = list(self.steps), self.value.detach()
        for method, *args in moves:
            steps.append(Call(f"{method}_{len(steps)}", "method", method, (Ref(steps[-1].name), *args), {}, ""))
            value = getattr(value, method)(*args)
        return Recipe(tuple(steps), self.callables, value)


@dataclass(frozen=True, eq=False)
class Relu:
    """max(x, 0); ``call`` computes it in float."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Elementwise:
    """A function of one value, element by element; ``function`` is its name. Where it is min(max(x, 0), c), ``ceiling``
    is c. Where it is another in each channel along axis 1, ``channels`` is how many there are."""

    name: str
    x: str
    function: str
    call: Call
    ceiling: float | None = None
    channels: int | None = None


@dataclass(frozen=True, eq=False)
class Add:
    """The sum of two values, with a ReLU behind it where ``relu``."""

    name: str
    a: str
    b: str
    call: Call
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Mul:
    """The product of two values, element by element."""

    name: str
    a: str
    b: str
    call: Call


@dataclass(frozen=True, eq=False)
class Concat:
    """Values joined along an axis."""

    name: str
    xs: tuple[str, ...]
    axis: int
    call: Call


@dataclass(frozen=True, eq=False)
class MaxPool:
    """The largest value of each window; fields as in ``program.MaxPool``."""

    name: str
    x: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool
    call: Call


@dataclass(frozen=True, eq=False)
class AvgPool:
    """The average value of each window; fields as in ``program.AvgPool``."""

    name: str
    x: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool
    count_include_pad: bool
    call: Call


@dataclass(frozen=True, eq=False)
class AdaptiveAvgPool:
    """The average value of each of ``size`` windows; None keeps an axis as it is."""

    name: str
    x: str
    size: tuple[int | None, ...]
    call: Call


@dataclass(frozen=True, eq=False)
class Mean:
    """The average value over ``axes``, which stay with length 1 where ``keepdim``."""

    name: str
    x: str
    axes: tuple[int, ...]
    keepdim: bool
    call: Call


@dataclass(frozen=True, eq=False)
class Bilinear:
    """Values between their neighbours; fields as in ``program.Bilinear``."""

    name: str
    x: str
    like: str | None
    size: tuple[int, int] | None
    factors: tuple[float, float] | None
    exact: bool
    align_corners: bool
    call: Call


@dataclass(frozen=True, eq=False)
class Move:
    """Rearranges values without looking at them; ``call`` says how, on floats as on codes."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Shape:
    """Reads the shape of a value, which its codes have too."""

    name: str
    x: str
    call: Call


@dataclass(frozen=True, eq=False)
class Embedding:
    """Rows of ``weight``, float32 [entries, features]; the other fields as in ``program.Embedding``."""

    name: str
    x: str
    layer: str
    weight: np.ndarray
    call: Call
    bag: str | None = None
    offsets: str | None = None
    weights: str | None = None
    include_last_offset: bool = False
    padding_idx: int | None = None


@dataclass(frozen=True, eq=False)
class FloatCell:
    """One direction of one layer of a recurrent network: the input's and the state's weights, float32 [gates * state,
    ...], and biases."""

    input_weight: np.ndarray
    state_weight: np.ndarray
    input_bias: np.ndarray | None
    state_bias: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Recurrent:
    """An LSTM, GRU or RNN; ``cells`` for each layer and direction, the other fields as in ``program.Recurrent``."""

    name: str
    x: str
    state: Any
    layer: str
    kind: str
    cells: tuple[FloatCell, ...]
    bidirectional: bool
    batch_first: bool
    call: Call
    single: bool = False


Layer = Linear | Conv
Pool = MaxPool | AvgPool | AdaptiveAvgPool | Mean
# What has an integer form and keeps in ``call`` how it is computed in float.
Operation = (
    BatchNorm | Relu | Elementwise | Add | Mul | Concat | Pool | Bilinear | Move | Shape | Embedding | Recurrent
)  # fmt: skip
Node = Layer | Operation | Call


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """What a model does, in order. ``callables`` has what the ``Call``s call; ``calls`` counts the calls of each module
    by path.

    ``paths`` gives the path of the module that a node comes from. ``folded`` has, for each layer with normalizations
    inside, what they were, in the order in which it absorbed them. ``acts``: what acts in training mode only, by the
    key of its mark or the name of the node that does otherwise there. ``recipes``: for training, how constants were
    computed of parameters, by their names.
    """

    inputs: tuple[str, ...]
    defaults: dict[str, Any]
    nodes: tuple[Node, ...]
    output: Any
    callables: dict[tuple[str, str], Any]
    calls: dict[str, int]
    paths: dict[str, str] = field(default_factory=dict)
    folded: dict[str, tuple[Folded, ...]] = field(default_factory=dict)
    acts: dict[str, Act] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)

    def readers(self) -> dict[str, int]:
        """How many times each value is read, by nodes and as an output."""
        counts = dict.fromkeys([*self.inputs, *(node.name for node in self.nodes)], 0)
        for node in self.nodes:
            for name in node_reads(node):
                counts[name] += 1
        for name in refs(self.output):
            counts[name] += 1
        return counts

    @cached_property
    def last(self) -> list[list[str]]:
        """For each node the values that nobody reads after it."""
        return last_reads(self.nodes, refs(self.output), node_reads)


def node_reads(node: Node) -> list[str]:
    """The names of the values that a node reads, with repetitions. What its ``call`` takes beside its input counts too.
    """
    own = reads(node)
    if not isinstance(node, Operation):
        return own
    others = list(own)
    extra = []
    for name in reads(node.call):
        if name in others:
            others.remove(name)
        else:
            extra.append(name)
    return own + extra


def renamed(node: Node, alias: dict[str, str]) -> Node:
    """The node reading what its inputs are called now."""
    if not alias or not any(name in alias for name in node_reads(node)):
        return node

    def new(name: str) -> str:
        return alias.get(name, name)

    changes: dict[str, Any] = {}
    for field_name in reading_fields(type(node)):
        value = getattr(node, field_name)
        if isinstance(value, str):
            changes[field_name] = new(value)
        elif field_name == "xs":
            changes[field_name] = tuple(map(new, value))
        elif field_name in TREES:
            changes[field_name] = replace_refs(value, lambda name: Ref(new(name)))
    if isinstance(node, Operation):
        changes["call"] = renamed(node.call, alias)
    return replace(node, **changes)
