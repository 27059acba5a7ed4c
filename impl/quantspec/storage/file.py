"""A quantized network as one ``.safetensors`` file: its arrays, and beside them the Program as JSON.

The file holds no code, and reading it runs none: steps are data, functions come from a fixed list of names, modules
from a fixed list of classes (``allowed``). Any reader of safetensors can list the arrays.
"""

import hashlib
import json
import os
import secrets
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import nn

from quantspec.errors import FormatError
from quantspec.ir.program import Program, Step

from . import validate
from .allowed import RENAMED_FUNCTIONS, RENAMED_STEPS
from .callables import NotGiven, read_callables, write_callables
from .json_fields import Reader, Writer, expect, keys

# Version 2 has other names of steps and functions than version 1, which is read too (``renamed``).
FORMAT, VERSION, OLDEST_VERSION = "quantspec", 2, 1
STEPS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Step)}
# What reading raises for a file that is none of ours, or not as it was written.
UNREADABLE = (
    ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, ImportError,
    safetensors.SafetensorError,
)  # fmt: skip


def save(program: Program, path: str | os.PathLike[str]) -> None:
    """Writes a network to one file, at once or not at all.

    A module of a class that is not torch.nn's own is stored by its state, and is to be given again to ``load``. Raises
    UnsupportedError naming a function, or a value among the arguments, that has no place in a file; OSError as writing
    files does.
    """
    write_whole(path, packed(program))


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file at once, or leaves what is there. Raises OSError as writing files does."""
    path = Path(path)
    if not path.name:
        raise IsADirectoryError(f"expected the path of a file, got {os.fspath(path)!r}")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: str | os.PathLike[str], modules: Mapping[str, nn.Module] | None = None) -> Program:
    """The network of a file that ``save`` wrote, bit for bit. Nothing in the file is executed, everything is checked.

    ``modules``: by path, modules whose code the file does not hold; they are copied, and take the file's state. Raises
    FormatError naming the file and what is wrong with it, ValueError for ``modules`` that are missing or do not fit,
    OSError as reading files does.
    """
    data = Path(path).read_bytes()
    try:
        return unpacked(data, modules or {})
    except NotGiven:
        raise
    except UNREADABLE as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from error


def packed(program: Program) -> bytes:
    """The bytes of the file."""
    writer = Writer()
    network: dict[str, Any] = {"dialect": program.dialect, "inputs": list(program.inputs)}
    network["defaults"] = writer.tree(program.defaults, "defaults")
    network["steps"] = [{"step": type(step).__name__} | writer.record(step, step.name) for step in program.steps]
    network["output"] = writer.tree(program.output, "output")
    network["callables"] = write_callables(program.callables, writer)
    network["grids"] = writer.grids
    header = {"format": FORMAT, "version": VERSION, "sha256": digest(network, writer.tensors), "network": network}
    return safetensors.torch.save(writer.tensors, {FORMAT: text(header)})


def unpacked(data: bytes, modules: Mapping[str, nn.Module]) -> Program:
    """The Program of a file's bytes. Raises many kinds of errors, which say what is wrong."""
    tensors = safetensors.torch.load(data)
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size], object_pairs_hook=once).get("__metadata__") or {}
    if FORMAT not in metadata:
        raise ValueError("no network of quantspec is in it")
    header = json.loads(metadata[FORMAT], object_pairs_hook=once, parse_constant=refuse_number)
    if type(header) is not dict or header.get("format") != FORMAT:
        raise ValueError("no network of quantspec is in it")
    version = expect(header.get("version"), int, "version")
    if not OLDEST_VERSION <= version <= VERSION:
        age = "newer" if version > VERSION else "older"
        raise ValueError(f"version {version} of the format, which is {age} than this quantspec reads ({VERSION})")
    keys(header, ("format", "version", "sha256", "network"), "header")
    network = header["network"]
    if header["sha256"] != digest(network, tensors):
        raise ValueError("its contents are not those that were written: the checksum differs")
    keys(network, ("dialect", "inputs", "defaults", "steps", "output", "callables", "grids"), "network")
    return network_of(network if version > 1 else renamed(network), tensors, modules)


def renamed(network: dict[str, Any]) -> dict[str, Any]:
    """A network of version 1 with today's names of steps and functions."""
    steps, callables = (expect(network[key], list, key) for key in ("steps", "callables"))
    return network | {"steps": list(map(renamed_step, steps)), "callables": list(map(renamed_target, callables))}


def renamed_step(row: Any) -> Any:
    """A step, of which layers with float32 outputs were kinds of their own."""
    if type(row) is not dict or type(row.get("step")) is not str:
        return row
    if row["step"] in RENAMED_STEPS:
        return row | {"step": RENAMED_STEPS[row["step"]], "y_qparams": None}
    return renamed_target(row)


def renamed_target(row: Any) -> Any:
    """A call of a function, or the function."""
    if type(row) is not dict or row.get("kind") != "function" or type(row.get("target")) is not str:
        return row
    return row | {"target": RENAMED_FUNCTIONS.get(row["target"], row["target"])}


def network_of(network: dict[str, Any], tensors: dict[str, torch.Tensor], modules: Mapping[str, nn.Module]) -> Program:
    """The Program of its JSON and arrays, checked (``validate``)."""
    reader = Reader(tensors)
    reader.read_grids(network["grids"])
    steps = []
    for index, row in enumerate(expect(network["steps"], list, "steps")):
        kind = row.get("step") if type(row) is dict else None
        if type(kind) is not str or kind not in STEPS:
            raise ValueError(f"step {index}: unknown kind {kind!r}")
        fields = {key: value for key, value in row.items() if key != "step"}
        steps.append(reader.record(STEPS[kind], fields, f"step {index}"))
    program = Program(
        expect(network["dialect"], str, "dialect"), reader.field(network["inputs"], tuple[str, ...], "inputs"),
        reader.field(network["defaults"], dict[str, Any], "defaults"), tuple(steps),
        reader.tree(network["output"], "output"), read_callables(network["callables"], reader, modules),
    )  # fmt: skip
    if unused := set(tensors) - reader.used:
        raise ValueError(f"tensor {sorted(unused)[0]!r} belongs to nothing")
    validate.check(program)
    return program


def digest(network: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the JSON and of all arrays with their names, types and shapes.

    It detects damage, and is no signature.
    """
    total = hashlib.sha256(text(network).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(text([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose keys differ."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is there twice")
    return values


def refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
