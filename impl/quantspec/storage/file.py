"""A quantized network as one ``.safetensors`` file: its arrays, and beside them the Program as JSON.

The file holds no code, and reading it runs none: steps are data, functions come from a fixed list of names, modules
from a fixed list of classes (``allowed``). Any reader of safetensors can list the arrays.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import stat
import time
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import torch
from torch import nn

from quantspec.errors import FormatError, UnsupportedError, shown
from quantspec.ir.program import Call, Program, Step
from quantspec.surroundings import usual

from . import arrays, validate
from .allowed import RENAMED_FUNCTIONS, RENAMED_STEPS, check_call
from .callables import NotGiven, read_callables, write_callables
from .json_fields import LARGEST_INT, Reader, Writer, expect, keys
from .limits import Limits, stated
from .model import Model, Part, read_coded, read_pattern, write_coded, write_pattern

# Version 2 has other names of steps and functions than version 1, which is read too (``renamed``). Since version 3
# there is a report, and a file may hold a model whose parts are networks.
FORMAT, VERSION, OLDEST_VERSION, WITH_MODELS = "quantspec", 3, 1, 3
DRAFT_SECONDS = 60  # for which a file that is being written is left alone, whoever seems to write it
LONGEST_NAME = 200  # bytes of a file's name, of which there may be 255, that a draft's begins with
USUAL = Limits()
STEPS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Step)}
# What reading raises for a file that is none of ours, or not as it was written.
UNREADABLE = (
    ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, ImportError,
)  # fmt: skip


Report = tuple[tuple[tuple[str, int, str, str], ...], bool]  # (path, multiply-accumulates, place, reason); counted


@usual
def save(network: Program | Model, path: str | os.PathLike[str], report: Report | None = None) -> None:
    """Writes a network, or a model whose parts are networks, to one file, at once or not at all.

    A module of a class that is not torch.nn's own is stored by its state, and is to be given again to ``load``. Raises
    UnsupportedError naming a function, or a value among the arguments, that has no place in a file; OSError as writing
    files does.
    """
    write_whole(path, packed(network, report))


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file at once, or leaves what is there (STA-FILE). Raises OSError as writing files does, and for what is
    no file, such as a folder or a device."""
    # A link stays one: what it leads to is written.
    path = Path(os.path.realpath(path_of(path)))
    if not path.name:
        raise IsADirectoryError(f"expected the path of a file, got {os.fspath(path)!r}")
    held = path.stat() if path.exists() else None
    if held is not None and not stat.S_ISREG(held.st_mode):
        kind = IsADirectoryError if stat.S_ISDIR(held.st_mode) else OSError
        raise kind(f"expected the path of a file, {os.fspath(path)!r} is a folder or a device")
    remove_drafts(path)
    draft = path.with_name(f".{draft_name(path)}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if held is not None:
            draft.chmod(stat.S_IMODE(held.st_mode))
        os.replace(draft, path)
    except OSError as error:
        if error.filename != os.fspath(draft):
            raise
        # Not by the name of the draft, which nobody has given.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def path_of(path: object) -> str:
    """The path of a file. TypeError for what is none, such as the number of an open file; ValueError for a NUL."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the path of a file, got {shown(path)}")
    text: str | bytes = os.fspath(path)
    if not isinstance(text, str) or "\0" in text:
        raise ValueError(f"path: expected the path of a file, got {shown(text)}")
    return text


def draft_name(path: Path) -> str:
    """How the names of a file's drafts begin, which are longer than its own, and no longer than names may be."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= LONGEST_NAME else hashlib.sha256(name).hexdigest()


def remove_drafts(path: Path) -> None:
    """Takes away what processes left that were killed while they wrote this file."""
    name = re.compile(rf"\.{re.escape(draft_name(path))}\.(\d+)-[0-9a-f]{{8}}\.part")
    for draft in path.parent.glob("*.part") if path.parent.is_dir() else ():
        found = name.fullmatch(draft.name)
        with contextlib.suppress(OSError):
            if found and not runs(int(found[1])) and time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
                draft.unlink()


def runs(process: int) -> bool:
    """Whether there is a process of that number, here."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return True


def load(
    path: str | os.PathLike[str],
    modules: Mapping[str, nn.Module] | None = None,
    *,
    model: nn.Module | None = None,
    limits: Limits = USUAL,
) -> tuple[Program | Model, Report | None]:
    """What a file holds that ``save`` wrote, bit for bit. Nothing in the file is executed, everything is checked.

    ``modules``: by path, modules whose code the file does not hold; they are copied, and take the file's state.
    ``model``: one for what is Python, whose library's classes of outputs a file may name. ``limits``: what it may cost
    (STA-LIMITS). Raises FormatError naming the
    file and what is wrong with it, ValueError for ``modules`` that are missing or do not fit, OSError as reading files
    does.
    """
    with open(path_of(path), "rb") as source:
        try:
            return contents(source, modules or {}, model=model, limits=limits)
        except NotGiven:
            raise
        except UNREADABLE as error:
            raise FormatError(f"{os.fspath(path)}: {error}") from error


def packed(network: Program | Model, report: Report | None = None) -> bytes:
    """The bytes of the file."""
    writer = Writer()
    content: dict[str, Any] = {"report": None}
    if report is not None:
        content["report"] = {"rows": list(map(list, report[0])), "counted": report[1]}
    if isinstance(network, Model):
        content["model"] = written_model(network, writer) | {"grids": writer.grids}
    else:
        content["network"] = written(network, writer) | {"grids": writer.grids}
    header = {"format": FORMAT, "version": VERSION, "sha256": digest(content, writer.tensors)} | content
    return safetensors.torch.save(writer.tensors, {FORMAT: text(header)})


def written(program: Program, writer: Writer) -> dict[str, Any]:
    """A network as JSON, without its grids."""
    network: dict[str, Any] = {"dialect": program.dialect, "inputs": list(program.inputs)}
    network["defaults"] = writer.tree(program.defaults, "defaults")
    if program.fixed:
        network["fixed"] = writer.tree(dict(program.fixed), "fixed")
    network["steps"] = [{"step": type(step).__name__} | writer.record(step, step.name) for step in program.steps]
    network["output"] = writer.tree(program.output, "output")
    network["callables"] = write_callables(program.callables, writer)
    for step in program.steps:
        if isinstance(step, Call):
            try:
                check_call(step, program.callables)  # what cannot be loaded is not saved
            except ValueError as error:
                raise UnsupportedError(str(error)) from error
    return network


def written_model(model: Model, writer: Writer) -> dict[str, Any]:
    """A model as JSON, without the grids of its networks."""
    parts = []
    for part in model.parts:
        pattern = None if part.pattern is None else write_pattern(part.pattern, writer)
        parts.append({"path": part.path, "way": pattern, "network": written(part.program, writer)})
    return {
        "class": model.name, "modules": list(map(list, model.modules)), "stops": list(map(list, model.stops)),
        "state": {name: writer.array(tensor, name) for name, tensor in model.state.items()},
        "attributes": {name: writer.array(tensor, name) for name, tensor in model.attributes.items()},
        "coded": {name: write_coded(weight, name, writer) for name, weight in model.coded.items()}, "parts": parts,
    }  # fmt: skip


def unpacked(data: bytes, modules: Mapping[str, nn.Module]) -> Program:
    """The Program of a file of one network."""
    network, _ = contents(io.BytesIO(data), modules)
    assert isinstance(network, Program)
    return network


def contents(
    source: BufferedIOBase,
    modules: Mapping[str, nn.Module],
    *,
    model: nn.Module | None = None,
    limits: Limits = USUAL,
) -> tuple[Program | Model, Report | None]:
    """What an open file holds. Raises many kinds of errors, which say what is wrong."""
    start = arrays.header(source, once)
    metadata = start.metadata
    if type(metadata) is not dict or type(metadata.get(FORMAT)) is not str:
        raise ValueError("it holds no network of quantspec")
    header = json.loads(metadata[FORMAT], object_pairs_hook=once, parse_constant=refuse_number)
    if type(header) is not dict or header.get("format") != FORMAT:
        raise ValueError("it holds no network of quantspec")
    version = expect(header.get("version"), int, "version")
    if not OLDEST_VERSION <= version <= VERSION:
        age = "newer" if version > VERSION else "older"
        raise ValueError(f"version {version} of the format, which is {age} than this quantspec reads ({VERSION})")
    kind = "model" if "model" in header and version >= WITH_MODELS else "network"
    more = ("report",) if version >= WITH_MODELS else ()
    keys(header, ("format", "version", "sha256", kind, *more), "header")
    sizes = {name: (shape, last - first) for name, ((first, last), shape, _) in start.places.items()}
    stated(header, sizes, start.start).check(limits, start.size)
    tensors, codes = arrays.read(source, start)
    content = {key: header[key] for key in (*more, kind)} if more else header[kind]
    if header["sha256"] != digest(content, tensors):
        raise ValueError("its contents are not those that were written: the checksum differs")
    report = read_report(header["report"]) if more else None
    reader, given = Reader(tensors, codes), Given(modules, frozenset(packages_of(model)))
    if kind == "model":
        return model_of(header[kind], reader, given, missing=model is None), report
    return network_of(header[kind] if version > 1 else renamed(header[kind]), reader, given), report


@dataclass(frozen=True)
class Given:
    """What the caller gives for what a file does not hold: modules by path, and packages whose classes of outputs it
    may name."""

    modules: Mapping[str, nn.Module]
    packages: frozenset[str]


def packages_of(model: nn.Module | None) -> set[str]:
    """The libraries that the classes of a model come from, torch aside."""
    names = {type(module).__module__.partition(".")[0] for module in model.modules()} if model is not None else set()
    return names - {"torch"}


def read_report(value: Any) -> Report | None:
    if value is None:
        return None
    keys(value, ("rows", "counted"), "report")
    rows = [expect(row, list, "report") for row in expect(value["rows"], list, "report")]
    for row in rows:
        if tuple(map(type, row)) != (str, int, str, str) or not 0 <= row[1] <= LARGEST_INT:
            raise ValueError(f"report: expected a path, a number, a place and a reason, got {row!r:.80}")
    return tuple(map(tuple, rows)), expect(value["counted"], bool, "report")


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


NETWORK = ("dialect", "inputs", "defaults", "steps", "output", "callables")


def network_of(network: Any, reader: Reader, given: Given) -> Program:
    """The Program of the JSON of a file, checked (``validate``)."""
    keys(network, (*NETWORK, "grids", *(("fixed",) if "fixed" in network else ())), "network")
    reader.read_grids(network["grids"])
    program = program_of(network, reader, given)
    nothing_left(reader)
    return program


def model_of(row: Any, reader: Reader, given: Given, *, missing: bool) -> Model:
    """The model of the JSON of a file, its networks checked."""
    keys(row, ("class", "modules", "stops", "state", "attributes", "coded", "parts", "grids"), "model")
    name = expect(row["class"], str, "class")
    if missing:
        raise NotGiven(f"model: the file holds networks for parts of a {name}, but no Python; pass a {name} as model=")
    reader.read_grids(row["grids"])
    kinds = [tuple(expect(item, list, "modules")) for item in expect(row["modules"], list, "modules")]
    stops = [tuple(expect(item, list, "stops")) for item in expect(row["stops"], list, "stops")]
    expected = (kinds, (str, str, int)), (stops, (str, str))
    if odd := [item for items, types in expected for item in items if tuple(map(type, item)) != types]:
        raise ValueError(f"model: expected paths with classes and reasons, got {odd[0]!r:.80}")
    parts = []
    for index, part in enumerate(expect(row["parts"], list, "parts")):
        where = f"part {index}"
        keys(part, ("path", "way", "network"), where)
        keys(part["network"], NETWORK, where)
        pattern = None if part["way"] is None else read_pattern(part["way"], reader, where)
        path = expect(part["path"], str, where)
        parts.append(Part(path, pattern, program_of(part["network"], reader, given)))
        if pattern is not None and len(pattern.names) != len(parts[-1].program.inputs):
            count = len(parts[-1].program.inputs)
            raise ValueError(f"{where}: expected a way with {count} tensors, got {pattern.names}")
    state, attributes = (
        {key: reader.tensor(value, key) for key, value in expect(row[kind], dict, kind).items()}
        for kind in ("state", "attributes")
    )
    rows = expect(row["coded"], dict, "coded")
    coded = {key: read_coded(value, reader, f"coded {key}") for key, value in rows.items()}
    nothing_left(reader)
    return Model(name, tuple(kinds), state, attributes, coded, tuple(parts), tuple(stops))


def program_of(network: dict[str, Any], reader: Reader, given: Given) -> Program:
    """A Program of its JSON, checked."""
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
        reader.tree(network["output"], "output"),
        read_callables(network["callables"], reader, given.modules, given.packages),
        tuple(reader.field(network.get("fixed", {"dict": []}), dict[str, Any], "fixed").items()),
    )  # fmt: skip
    validate.check(program)
    return program


def nothing_left(reader: Reader) -> None:
    """ValueError for a tensor that is not used."""
    if unused := set(reader.tensors) - reader.used:
        raise ValueError(f"tensor {sorted(unused)[0]!r} is not used")


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
        raise ValueError("a key occurs twice")
    return values


def refuse_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
