"""Dataclasses and trees of arguments as JSON, and back: what a field may hold is what its annotation says.

Arrays are kept beside the JSON and named in it; grids are listed once and numbered. Both come back shared where they
were shared.
"""

import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch

from quantspec.errors import UnsupportedError
from quantspec.ir.program import Cell, Linear, Ref
from quantspec.numerics.affine import QParams

from . import arrays

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
        torch.int64, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
LAYOUTS = {
    str(layout).removeprefix("torch."): layout
    for layout in (
        torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d, torch.strided,
    )
}  # fmt: skip
CONSTANTS: dict[str, Mapping[Any, Any]] = {
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}, "dtype": DTYPES, "layout": LAYOUTS,
    "device": {"cpu": torch.device("cpu")}, "ellipsis": {True: Ellipsis},
}  # fmt: skip
LARGEST_INT = 2**63 - 1
# Fields that came later: a file has them only where they are not this.
LATER: dict[type, dict[str, Any]] = {Linear: {"flat": False}}
T = TypeVar("T")


@functools.cache
def annotations(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and the types that they may have."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


class Writer:
    """Turns values into JSON; ``tensors`` gathers the arrays by name, ``grids`` the grids in order."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.grids: list[dict[str, Any]] = []
        # What has a name, or a number, is kept, so that its id stays its own.
        self.named: dict[int, tuple[np.ndarray | torch.Tensor, str]] = {}
        self.numbered: dict[int, tuple[QParams, int]] = {}

    def array(self, array: np.ndarray | torch.Tensor, path: str) -> str:
        """The name of an array in the file: that under which it came first."""
        if id(array) not in self.named:
            name, count = path, 1
            while name in self.tensors:
                count += 1
                name = f"{path}#{count}"
            tensor = array.detach() if isinstance(array, torch.Tensor) else torch.tensor(array)
            in_memory = tensor.layout is torch.strided and tensor.device.type == "cpu"
            if not in_memory or tensor.dtype not in arrays.TYPES.values():
                kind = f"a {tensor.dtype} tensor on {tensor.device} with layout {tensor.layout}"
                raise UnsupportedError(f"{path}: {kind} cannot be stored")
            self.tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
            self.named[id(array)] = array, name
        return self.named[id(array)][1]

    def grid(self, grid: QParams, path: str) -> int:
        """The number of a grid. One scale and zero point are numbers of the JSON, those of channels are arrays."""
        if id(grid) not in self.numbered:
            row: dict[str, Any] = {"qmin": int(grid.qmin), "qmax": int(grid.qmax), "axis": grid.axis}
            for key, array in (("scale", grid.scale), ("zero_point", grid.zero_point)):
                row[key] = array.item() if array.ndim == 0 else self.array(array, f"{path}.{key}")
            self.grids.append(row)
            self.numbered[id(grid)] = grid, len(self.grids) - 1
        return self.numbered[id(grid)][1]

    def record(self, value: Any, path: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """A dataclass by its fields."""
        kind: type = type(value)
        later = LATER.get(kind, {})
        without += tuple(name for name, usual in later.items() if getattr(value, name) == usual)
        hints = {name: hint for name, hint in annotations(kind).items() if name not in without}
        return {name: self.field(getattr(value, name), hint, f"{path}.{name}") for name, hint in hints.items()}

    def field(self, value: Any, hint: Any, path: str) -> Any:
        """A field of that annotation. Raises UnsupportedError naming it for what it may not hold."""
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return None if value is None else self.field(value, inner[0], path)
        if hint is np.ndarray:
            return self.array(value, path)
        if hint is QParams:
            return self.grid(value, path)
        if hint is Cell:
            return self.record(value, path)
        if origin is tuple and inner[0] is not Any:
            kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
            pairs = enumerate(zip(value, kinds, strict=True))
            return [self.field(item, kind, f"{path}.{index}") for index, (item, kind) in pairs]
        if hint in (str, int, bool):
            if type(value) is not hint:
                raise UnsupportedError(f"{path}: expected {hint.__name__}, got {value!r}")
            return value
        return self.tree(value, path)

    def tree(self, value: Any, path: str) -> Any:
        """A tree of arguments: numbers, texts, None and lists are themselves.

        Everything else is an object with one key that says what it is.
        """
        if value is None or type(value) in (bool, str) or (type(value) is int and abs(value) <= LARGEST_INT):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if type(value) is complex:
            return {"complex": [self.tree(value.real, path), self.tree(value.imag, path)]}
        if isinstance(value, Ref):
            return {"ref": value.name}
        if isinstance(value, torch.Size):
            return {"size": [int(n) for n in value]}
        if type(value) is tuple:
            return {"tuple": [self.tree(item, path) for item in value]}
        if type(value) is list:
            return [self.tree(item, path) for item in value]
        if type(value) is dict:
            return {"dict": [[self.tree(key, path), self.tree(item, path)] for key, item in value.items()]}
        if isinstance(value, slice):
            return {"slice": [self.tree(end, path) for end in (value.start, value.stop, value.step)]}
        if value is Ellipsis:
            return {"ellipsis": True}
        if isinstance(value, torch.Tensor):
            return {"tensor": self.array(value, path)}
        for key in ("dtype", "layout"):
            for name, constant in CONSTANTS[key].items():
                if value is constant:
                    return {key: name}
        if isinstance(value, torch.device) and value.type == "cpu":
            return {"device": "cpu"}
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise UnsupportedError(f"{path}: {kind} cannot be stored in a file")


class Reader:
    """Turns JSON into values again; ValueError saying where and why for what no ``Writer`` makes."""

    def __init__(self, tensors: dict[str, torch.Tensor], codes: Mapping[str, np.ndarray] = MappingProxyType({})):
        """``codes``: those of the tensors that are there as arrays."""
        self.tensors = tensors
        self.arrays = dict(codes)
        self.used: set[str] = set()
        self.grids: list[QParams] = []

    def tensor(self, name: Any, path: str) -> torch.Tensor:
        if type(name) is not str or name not in self.tensors:
            raise ValueError(f"{path}: there is no tensor {name!r}")
        self.used.add(name)
        return self.tensors[name]

    def array(self, name: Any, path: str) -> np.ndarray:
        tensor = self.tensor(name, path)
        if name not in self.arrays:
            if tensor.dtype not in (torch.float32, torch.int8, torch.uint8, torch.int32):
                raise ValueError(f"{path}: expected codes, float32 or int32, got {tensor.dtype}")
            self.arrays[name] = tensor.numpy()
        return self.arrays[name]

    def read_grids(self, rows: Any) -> None:
        """The list of grids, which fields name by number."""
        for index, row in enumerate(expect(rows, list, "grids")):
            path = f"grid {index}"
            keys(row, ("qmin", "qmax", "axis", "scale", "zero_point"), path)
            qmin, qmax = (expect(row[key], int, f"{path}: {key}") for key in ("qmin", "qmax"))
            axis = None if row["axis"] is None else expect(row["axis"], int, f"{path}: axis")
            scale, zero_point = self.scale(row["scale"], path), self.zero_point(row["zero_point"], path)
            if type(row["scale"]) is str and axis != 0:
                raise ValueError(f"{path}: expected float32 scales and int32 zero points along axis 0")
            try:
                self.grids.append(QParams(scale, zero_point, qmin, qmax, axis))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error

    def scale(self, given: Any, path: str) -> np.ndarray:
        """One scale, a number of float32, or a tensor of them."""
        if type(given) is str:
            scales = self.array(given, path)
            if scales.dtype != np.float32:
                raise ValueError(f"{path}: expected float32 scales and int32 zero points along axis 0")
            return scales
        number = np.float64(expect(given, float, f"{path}: scale"))
        if not abs(number) < 2.0**128 or number != np.float32(number):
            raise ValueError(f"{path}: scale: expected a float32, got {given!r}")
        return np.asarray(number)

    def zero_point(self, given: Any, path: str) -> np.ndarray:
        """One zero point, or a tensor of them."""
        if type(given) is str:
            points = self.array(given, path)
            if points.dtype != np.int32:
                raise ValueError(f"{path}: expected float32 scales and int32 zero points along axis 0")
            return points
        number = expect(given, int, path)
        if abs(number) > 255:
            raise ValueError(f"{path}: zero_point: expected a code, got {number}")
        return np.asarray(number)

    def record(self, kind: type, given: Any, path: str, extra: dict[str, Any] | None = None) -> Any:
        """A dataclass of its fields; ``extra`` are those that the JSON does not have."""
        extra = extra or {}
        given = LATER.get(kind, {}) | given if type(given) is dict else given
        hints = {name: hint for name, hint in annotations(kind).items() if name not in extra}
        keys(given, tuple(hints), path)
        return kind(**extra, **{name: self.field(given[name], hint, f"{path}.{name}") for name, hint in hints.items()})

    def field(self, given: Any, hint: Any, path: str) -> Any:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return None if given is None else self.field(given, inner[0], path)
        if hint is np.ndarray:
            return self.array(given, path)
        if hint is QParams:
            if type(given) is not int or not 0 <= given < len(self.grids):
                raise ValueError(f"{path}: there is no grid {given!r}")
            return self.grids[given]
        if hint is Cell:
            return self.record(Cell, given, path)
        if origin is tuple and inner[0] is not Any:
            items = expect(given, list, path)
            kinds = inner[:1] * len(items) if inner[-1] is Ellipsis else inner
            if len(kinds) != len(items):
                raise ValueError(f"{path}: expected {len(kinds)} entries, got {len(items)}")
            pairs = enumerate(zip(items, kinds))
            return tuple(self.field(item, kind, f"{path}.{index}") for index, (item, kind) in pairs)
        if hint in (str, int, bool):
            return expect(given, hint, path)
        value = self.tree(given, path)
        kind = hint if origin is None else origin
        if kind in (tuple, dict, float) and type(value) is not kind:
            raise ValueError(f"{path}: expected {kind.__name__}, got {given!r}")
        if kind is dict and not all(type(key) is str for key in value):
            raise ValueError(f"{path}: expected names and values, got {given!r}")
        return value

    def tree(self, given: Any, path: str) -> Any:
        if given is None or type(given) in (bool, str):
            return given
        if type(given) is int or type(given) is float:
            return expect(given, type(given), path)
        if type(given) is list:
            return [self.tree(item, path) for item in given]
        if len(given) != 1:
            raise ValueError(f"{path}: expected an object with one key, got {given!r}")
        ((key, value),) = given.items()
        if key == "ref":
            return Ref(expect(value, str, path))
        if key == "tuple":
            return tuple(self.tree(item, path) for item in expect(value, list, path))
        if key == "size":
            return torch.Size([expect(n, int, path) for n in expect(value, list, path)])
        if key == "dict":
            pairs = [expect(pair, list, path) for pair in expect(value, list, path)]
            fit = all(len(pair) == 2 and type(pair[0]) in (str, int) for pair in pairs)
            if not fit or len({pair[0] for pair in pairs}) != len(pairs):
                raise ValueError(f"{path}: expected pairs of different keys and their values")
            return {name: self.tree(item, path) for name, item in pairs}
        if key == "slice":
            if len(expect(value, list, path)) != 3:
                raise ValueError(f"{path}: a slice has three entries, got {value!r}")
            return slice(*(self.tree(end, path) for end in value))
        if key == "tensor":
            return self.tensor(value, path)
        if key == "complex":
            ends = [self.tree(end, path) for end in expect(value, list, path)]
            if len(ends) != 2 or any(type(end) is not float for end in ends):
                raise ValueError(f"{path}: a complex number has two floats, got {value!r:.80}")
            return complex(*ends)
        constants = CONSTANTS.get(key, {})
        if type(value) not in (str, bool) or value not in constants:
            raise ValueError(f"{path}: unknown {key!r}: {value!r}")
        return constants[value]


def expect(value: Any, kind: type[T], path: str) -> T:
    """A value of exactly that type, an integer of 64 bits, a finite float; ValueError naming the path for others."""
    if type(value) is not kind or not is_storable(value):
        raise ValueError(f"{path}: expected {kind.__name__}, got {value!r:.80}")
    typed: T = value
    return typed


def is_storable(value: Any) -> bool:
    """Whether a number is an integer of 64 bits, or finite; other values are."""
    if type(value) is int:
        return abs(value) <= LARGEST_INT
    return type(value) is not float or math.isfinite(value)


def keys(given: Any, names: tuple[str, ...], path: str) -> None:
    """ValueError unless ``given`` is an object with exactly these keys."""
    if type(given) is not dict or set(given) != set(names):
        found = sorted(given) if type(given) is dict else type(given).__name__
        raise ValueError(f"{path}: expected the keys {', '.join(names)}, got {found}")
