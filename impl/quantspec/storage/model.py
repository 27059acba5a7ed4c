"""A model whose parts are networks, in a file: the networks, how each is called, and the tensors of everything else.

The model's Python is not in it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from quantspec.capture.calls import CONSTANTS, TENSOR, CallPattern
from quantspec.ir.held import held_by
from quantspec.ir.program import Program

from .json_fields import Reader, Writer, expect, keys

FORMS = ("same", "transposed", "flipped")
CONSTANT_NAMES = {kind.__name__ for kind in CONSTANTS}


@dataclass(frozen=True, eq=False)
class CodedWeight:
    """A weight of the user's model as the codes of a layer: ``codes``, int8, with a ``scale``, float32, for all or for
    each output; ``form`` and ``groups`` say how the layer has turned it."""

    codes: np.ndarray
    scale: np.ndarray
    form: str = "same"
    groups: int = 1


held_by(codes=(CodedWeight,))


@dataclass(frozen=True)
class Part:
    """A network in the place of a module's forward. ``pattern``: how it is called; None for a layer, called anyhow."""

    path: str
    pattern: CallPattern | None
    program: Program


@dataclass(frozen=True)
class Model:
    """What a file holds of a model. ``modules``: (path, class, number of hooks) of each; ``state``: parameters and
    buffers by path, ``attributes``: tensors that are plain attributes; ``stops``: (path, reason) of what is Python."""

    name: str
    modules: tuple[tuple[str, str, int], ...]
    state: dict[str, torch.Tensor]
    attributes: dict[str, torch.Tensor]
    coded: dict[str, CodedWeight]
    parts: tuple[Part, ...]
    stops: tuple[tuple[str, str], ...] = field(default=())


def write_pattern(pattern: CallPattern, writer: Writer) -> dict[str, Any]:
    """A pattern of a call as JSON. Raises UnsupportedError for a constant that has no place in a file."""
    constants = [
        "tensor" if constant is TENSOR else [constant[0], writer.tree(constant[1], "way")]
        for constant in pattern.constants
    ]
    return {"shape": pattern.shape, "constants": constants, "names": list(pattern.names)}


def read_pattern(row: Any, reader: Reader, where: str) -> CallPattern:
    keys(row, ("shape", "constants", "names"), where)
    constants = tuple(read_constant(item, reader, where) for item in expect(row["constants"], list, where))
    names = tuple(expect(name, str, where) for name in expect(row["names"], list, where))
    if len(names) != sum(constant is TENSOR for constant in constants) or len(set(names)) != len(names):
        raise ValueError(f"{where}: expected a name for each tensor, got {names}")
    return CallPattern(None, expect(row["shape"], str, where), constants, names)


def read_constant(item: Any, reader: Reader, where: str) -> Any:
    if item == "tensor":
        return TENSOR
    pair = expect(item, list, where)
    if len(pair) != 2 or pair[0] not in CONSTANT_NAMES:
        raise ValueError(f"{where}: expected a kind of constant and its value, got {item!r:.80}")
    value = reader.tree(pair[1], where)
    if type(value).__name__ != pair[0]:
        raise ValueError(f"{where}: expected a {pair[0]}, got {value!r:.80}")
    return pair[0], value


def write_coded(weight: CodedWeight, name: str, writer: Writer) -> dict[str, Any]:
    arrays = {"codes": writer.array(weight.codes, name), "scale": writer.array(weight.scale, f"{name}.scale")}
    return arrays | {"form": weight.form, "groups": weight.groups}


def read_coded(row: Any, reader: Reader, where: str) -> CodedWeight:
    keys(row, ("codes", "scale", "form", "groups"), where)
    codes, scale = reader.array(row["codes"], where), reader.array(row["scale"], where)
    form, groups = expect(row["form"], str, where), expect(row["groups"], int, where)
    fits = codes.dtype == np.int8 and codes.ndim >= 2 and scale.dtype == np.float32
    if not fits or scale.shape not in ((), codes.shape[:1]):
        expected = "int8 codes, and a float32 scale for all or for each output"
        raise ValueError(f"{where}: expected {expected}, got {codes.dtype}{list(codes.shape)}, {list(scale.shape)}")
    if form not in FORMS or groups < 1 or codes.shape[0] % groups or (form == "transposed" and codes.ndim != 2):
        raise ValueError(f"{where}: unknown form {form!r} of {list(codes.shape)} in {groups} groups")
    return CodedWeight(codes, scale, form, groups)
