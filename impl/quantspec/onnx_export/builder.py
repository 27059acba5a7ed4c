"""An ONNX graph in the making: nodes, constants, and what is known of each tensor's shape."""

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from quantspec.errors import UnsupportedError
from quantspec.numerics.affine import QParams

# An int, or what names a length that is only known when the network runs: equal names are equal lengths.
Dim = Hashable


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph.

    ``shape``: a ``Dim`` for each axis; ``grid``: that of codes, None of others.
    """

    name: str
    shape: tuple[Dim, ...]
    grid: QParams | None = None

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def axis(self, axis: int) -> int:
        """An axis counted from the first."""
        return axis + self.rank if axis < 0 else axis


@dataclass(frozen=True)
class Size:
    """A length that is only known when the network runs: an int64 tensor (1,), and its ``Dim``."""

    name: str
    dim: Dim


Length = int | Size
# Arithmetic of lengths by the names of Python's operators: ONNX's operator, and the same on numbers.
ARITHMETIC = {
    "add": ("Add", operator.add), "sub": ("Sub", operator.sub), "mul": ("Mul", operator.mul),
    "floordiv": ("Div", operator.floordiv), "mod": ("Mod", operator.mod),
}  # fmt: skip


class Graph:
    """Nodes and constants, each constant once."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}
        self.initializers: list[TensorProto] = []
        self.names: set[str] = set()
        self.sizes: dict[Dim, Size] = {}
        self.step = ""

    def fresh(self, hint: str) -> str:
        """A name that nothing has yet."""
        base = f"{self.step}/{hint}" if self.step else hint
        name, count = base, 1
        while name in self.names:
            count += 1
            name = f"{base}_{count}"
        self.names.add(name)
        return name

    def constant(self, value: Any, dtype: Any = None, hint: str = "constant", owner: str = "") -> str:
        """The name of a constant, which only those of the same ``owner`` share."""
        array = np.array(value, dtype)
        key = (owner, array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.fresh(hint)
            self.initializers.append(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def node(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node; gives the name of its output."""
        return self.outputs(1, operator, inputs, **attributes)[0]

    def outputs(self, count: int, operator: str, inputs: Sequence[str], **attributes: Any) -> list[str]:
        """Adds a node; gives the names of its outputs."""
        names = [self.fresh(operator) for _ in range(count)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"{names[0]}:{operator}", **attributes))
        return names

    def ints(self, *values: int) -> str:
        """Constant int64 (n,)."""
        return self.constant(values, np.int64, "ints")

    def numbers(self, count: str) -> str:
        """Numbers from 0, int64, as many as a tensor of one entry says."""
        first, step = (self.constant(value, np.int64) for value in (0, 1))
        return self.node("Range", [first, self.node("Squeeze", [count]), step])

    # --- codes

    def grid(self, grid: QParams, owner: str = "") -> tuple[str, str]:
        """Scale and zero point of a grid."""
        return self.constant(grid.scale, np.float32, "scale"), self.zero_point(grid, owner)

    def zero_point(self, grid: QParams, owner: str = "") -> str:
        """The zero point of each scale of a grid."""
        points = np.broadcast_to(grid.zero_point, grid.scale.shape)
        return self.constant(points, grid.dtype, "zero_point", owner)

    def dequantize(self, name: str, grid: QParams) -> str:
        return self.node("DequantizeLinear", [name, *self.grid(grid)])

    def quantize(self, name: str, grid: QParams, lowest: int | None = None) -> str:
        """Codes of floats, clamped where they may use less than a byte, or must not be below ``lowest``."""
        return self.clamp(self.node("QuantizeLinear", [name, *self.grid(grid)]), grid, lowest)

    def clamp(self, codes: str, grid: QParams, lowest: int | None = None) -> str:
        low, high = max(grid.qmin, lowest or 0), grid.qmax
        if (low, high) == (0, 255):
            return codes
        return self.node("Clip", [codes, self.constant(low, np.uint8), self.constant(high, np.uint8)])

    # --- lengths

    def size(self, x: Tensor, axis: int) -> Length:
        """The length of an axis."""
        dim = x.shape[axis]
        if isinstance(dim, int):
            return dim
        if dim not in self.sizes:
            shape = self.node("Shape", [x.name])
            self.sizes[dim] = Size(self.node("Gather", [shape, self.ints(axis)]), dim)
        return self.sizes[dim]

    def int_name(self, value: Length) -> str:
        """A length as int64 (1,)."""
        if not isinstance(value, (int, Size)):
            raise UnsupportedError(f"a {type(value).__name__} where a length is expected")
        return self.ints(value) if isinstance(value, int) else value.name

    def vector(self, values: Sequence[Length]) -> str:
        """Lengths as int64 (n,)."""
        numbers = [value for value in values if isinstance(value, int)]
        if len(numbers) == len(values):
            return self.ints(*numbers)
        return self.node("Concat", [self.int_name(value) for value in values], axis=0)

    def compute(self, name: str, a: Length, b: Length) -> Length:
        """A length from two, by an operation of ``ARITHMETIC``."""
        onnx_operator, exact = ARITHMETIC[name]
        for value in (a, b):
            if not isinstance(value, (int, Size)):
                raise UnsupportedError(f"arithmetic of a length and a {type(value).__name__}")
        if isinstance(a, int) and isinstance(b, int):
            number: int = exact(a, b)
            return number
        names = [self.int_name(a), self.int_name(b)]
        if name == "floordiv":  # Python rounds down, ONNX's Div to zero
            names[0] = self.node("Sub", [names[0], self.node("Mod", names)])
        length = self.node(onnx_operator, names)
        return Size(length, (onnx_operator, dim_of(a), dim_of(b)))

    def proto(self, inputs: list[ValueInfoProto], outputs: list[ValueInfoProto]) -> GraphProto:
        return helper.make_graph(self.nodes, "network", inputs, outputs, self.initializers)


def unit_grid(point: int, low: int, high: int) -> QParams:
    """A grid of scale 1: real values that are steps already."""
    return QParams(np.array(1.0), np.array(point), low, high)


def dim_of(value: Length) -> Dim:
    return value if isinstance(value, int) else value.dim


def windows(dim: Dim, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool = False) -> Dim:
    """How many windows there are along an axis: a number, or a name that is the same for the same number."""
    room = before + after - dilation * (kernel - 1) - 1
    if isinstance(dim, int) and not ceil:
        return (dim + room) // stride + 1
    return dim if stride == 1 and room == -1 else ("windows", dim, room, stride, ceil)


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The shape of what is computed from tensors of these."""
    length = max(map(len, shapes))
    rows = [(1,) * (length - len(shape)) + shape for shape in shapes]
    return tuple(map(common, zip(*rows)))


def common(dims: tuple[Dim, ...]) -> Dim:
    """The length of an axis along which these are broadcast."""
    others = list(dict.fromkeys(dim for dim in dims if dim != 1))
    if not others:
        return 1
    if len(others) == 1:
        return others[0]
    return next((dim for dim in others if isinstance(dim, int)), ("broadcast", *others))


def total(dims: Sequence[Dim]) -> Dim:
    """The length of an axis along which such are joined."""
    numbers = [dim for dim in dims if isinstance(dim, int)]
    return sum(numbers) if len(numbers) == len(dims) else ("sum", *dims)


def times(dim: Dim, factor: Dim) -> Dim:
    """The length of an axis that is repeated, or stretched."""
    return dim * factor if isinstance(dim, int) and isinstance(factor, int) else ("times", dim, factor)


def named(g: Graph, value: Any) -> str:
    """A tensor's or length's name; numbers and constant tensors as constants."""
    if isinstance(value, (Tensor, Size)):
        return value.name
    if isinstance(value, torch.Tensor):
        return g.constant(value.detach().numpy())
    if isinstance(value, (int, float)):
        return g.constant(value, np.float32)
    raise UnsupportedError(f"a {type(value).__name__} where a tensor is expected")


def tensor_of(g: Graph, value: Any) -> Tensor:
    """A tensor of the graph; of a constant, a number or a length that of its values."""
    return value if isinstance(value, Tensor) else Tensor(named(g, value), shape_of(value))


def shape_of(value: Any) -> tuple[Dim, ...]:
    if isinstance(value, Tensor):
        return value.shape
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()
