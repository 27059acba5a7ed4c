"""What stays in float, in a file: functions by name, modules of torch.nn by class and arguments, no code.

Which names a file may have stands in ``allowed``.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph
from quantspec.ir.float_run import FloatLayer
from quantspec.ir.program import Callables
from quantspec.ir.traverse import refs

from .allowed import MODULES, function, is_output_type, output_type
from .json_fields import Reader, Writer, expect, keys
from .validate import check_layer

# Where a constructor asks whether there is something, the name of its argument.
HAS = {"bias?": "bias", "in_proj_bias?": "bias", "bias_k?": "add_bias_kv"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
LAYERS: dict[str, type[float_graph.Layer]] = {"Linear": float_graph.Linear, "Conv": float_graph.Conv}


def write_callables(callables: Callables, writer: Writer) -> list[dict[str, Any]]:
    """What ``Call``s call, as JSON. Raises UnsupportedError naming what has no place in a file."""
    rows = []
    for (kind, target), value in callables.items():
        row: dict[str, Any] = {"kind": kind, "target": target}
        if kind == "function" and is_output_type(value):
            if output_type(target) is not value:
                raise UnsupportedError(f"function {target}: its class cannot be imported by name")
            row["output"] = True
        elif kind == "function":
            try:
                same = function(target) is value
            except ValueError as error:
                raise UnsupportedError(f"function {target}: {error}") from error
            if not same:
                raise UnsupportedError(f"function {target} is not the one that the file would name")
        elif kind == "attribute":
            row["value"] = writer.tree(value, target)
        else:
            row |= write_module(value, target, writer)
        rows.append(row)
    return rows


def write_module(module: nn.Module, path: str, writer: Writer) -> dict[str, Any]:
    """A layer after fusion, a plain module of torch.nn, or the state of another.

    That other is to be given again when the file is loaded.
    """
    state = module.state_dict(keep_vars=True)
    if other := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise UnsupportedError(f"module {path!r}: its state {other[0]!r} is not a tensor")
    stored = {name: writer.array(value, f"{path}.{name}") for name, value in state.items()}
    if isinstance(module, FloatLayer):
        fields = writer.record(module.node, path, without=("weight", "bias"))
        return {"layer": type(module.node).__name__, "fields": fields, "state": stored}
    if (arguments := plain_arguments(module)) is not None:
        return {"class": type(module).__name__, "arguments": writer.tree(arguments, path), "state": stored}
    return {"given": f"{type(module).__module__}.{type(module).__qualname__}", "state": stored}


def plain_arguments(module: nn.Module) -> dict[str, Any] | None:
    """The constructor arguments of a module of torch.nn that is only what its class and they say; None for others."""
    name = type(module).__name__
    if name not in MODULES or type(module) is not getattr(nn, name) or any(getattr(module, hook) for hook in HOOKS):
        return None
    arguments = {}
    for argument in MODULES[name]:
        attribute = argument.removesuffix("?")
        value = getattr(module, attribute, None)
        arguments[HAS.get(argument, attribute)] = value is not None if argument.endswith("?") else value
    try:
        twin = build_module(name, arguments, len(module.state_dict()))
        same = public_attributes(twin) == public_attributes(module)
    except Exception:  # what a user has put into a module may be refused, or not be comparable, in many ways
        return None
    return arguments if same else None


def public_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside tensors and torch's own bookkeeping, its submodules' too."""
    return {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training"
    }


def build_module(name: str, arguments: dict[str, Any], tensors: int) -> nn.Module:
    """A module of torch.nn without memory for its parameters."""
    if arguments.get("num_layers", 1) > max(tensors, 1):
        raise ValueError(f"{arguments['num_layers']} layers with {tensors} tensors")
    with torch.device("meta"):
        module: nn.Module = getattr(nn, name)(**arguments)
        return module


def read_callables(
    rows: Any, reader: Reader, modules: Mapping[str, nn.Module], packages: Collection[str] = ()
) -> dict[tuple[str, str], Any]:
    """What ``Call``s call, of JSON. ``modules``: those that are not in the file, by path. ``packages``: those whose
    classes of outputs a file may name.

    Raises ValueError for names that a file may not have, and for state that fits no module.
    """
    callables: dict[tuple[str, str], Any] = {}
    for row in expect(rows, list, "callables"):
        fields = row if type(row) is dict else {}
        kind, target = (expect(fields.get(key), str, f"callables: {key}") for key in ("kind", "target"))
        if (kind, target) in callables:
            raise ValueError(f"{kind} {target!r} occurs twice")
        if kind == "function" and "output" in row:
            keys(row, ("kind", "target", "output"), target)
            callables[kind, target] = given_type(target, packages)
        elif kind == "function":
            keys(row, ("kind", "target"), target)
            callables[kind, target] = function(target)
        elif kind == "attribute":
            keys(row, ("kind", "target", "value"), target)
            callables[kind, target] = read_attribute(row["value"], target, reader)
        elif kind == "module":
            callables[kind, target] = read_module(row, target, reader, modules)
        else:
            raise ValueError(f"callables: unknown kind {kind!r}")
    return callables


def read_attribute(row: Any, target: str, reader: Reader) -> Any:
    """A constant, which refers to no value."""
    value = reader.tree(row, target)
    if names := refs(value):
        raise ValueError(f"attribute {target!r} refers to {names[0]!r}")
    return value


def read_module(row: dict[str, Any], path: str, reader: Reader, modules: Mapping[str, nn.Module]) -> nn.Module:
    where = f"module {path!r}"
    tensors = row.get("state")
    if type(tensors) is not dict:
        raise ValueError(f"{where}: expected its state, got {tensors!r:.80}")
    state = {name: reader.tensor(key, f"{where}: {name}") for name, key in tensors.items()}
    if "layer" in row:
        keys(row, ("kind", "target", "layer", "fields", "state"), where)
        return float_layer(row, where, state, reader)
    if "given" in row:
        keys(row, ("kind", "target", "given", "state"), where)
        return given_module(expect(row["given"], str, where), path, state, modules)
    keys(row, ("kind", "target", "class", "arguments", "state"), where)
    name, arguments = row["class"], reader.tree(row["arguments"], where)
    if type(name) is not str or name not in MODULES:
        raise ValueError(f"{where}: a file may not name the class {name!r}")
    keys(arguments, tuple(HAS.get(argument, argument) for argument in MODULES[name]), where)
    try:
        module = build_module(name, arguments, len(state))
    except Exception as error:  # torch.nn refuses bad arguments in many ways
        raise ValueError(f"{where}: {name} does not take {arguments}: {error}") from error
    fits(module, state, where)
    module.load_state_dict(state, assign=True)
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    return module.eval()


def float_layer(row: dict[str, Any], where: str, state: dict[str, torch.Tensor], reader: Reader) -> FloatLayer:
    readable = row["layer"] in LAYERS and set(state) in ({"weight"}, {"weight", "bias"})
    if not readable or any(tensor.dtype != torch.float32 for tensor in state.values()):
        raise ValueError(
            f"{where}: expected a layer with a float32 weight, got {row['layer']!r} with {sorted(state)}"
        )
    node = reader.record(LAYERS[row["layer"]], row["fields"], where, extra={"weight": None, "bias": None})
    weight, bias = state["weight"].numpy(), state["bias"].numpy() if "bias" in state else None
    check_layer(node, weight, bias, where)
    return FloatLayer(replace(node, weight=weight, bias=bias))


def fits(module: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """ValueError unless ``state`` has exactly the names, shapes and types of the module's own."""
    own = module.state_dict()
    if set(own) != set(state):
        raise ValueError(f"{where}: {sorted(set(own) ^ set(state))[0]!r} is in only one of its state and the file")
    for name, tensor in state.items():
        if own[name].shape != tensor.shape or own[name].dtype != tensor.dtype:
            expected = f"{own[name].dtype}{list(own[name].shape)}"
            raise ValueError(f"{where}: expected {name!r} as {expected}, got {tensor.dtype}{list(tensor.shape)}")


def given_type(name: str, packages: Collection[str]) -> type:
    """A class of outputs. It is looked up, and not imported."""
    found = output_type(name) if name.partition(".")[0] in packages else None
    if found is None:
        raise NotGiven(f"model: the file names {name}, a class of outputs; pass as model= a model of its library")
    return found


class NotGiven(ValueError):
    """A module that the file does not hold was not given, or another one was."""


def given_module(
    kind: str, path: str, state: dict[str, torch.Tensor], modules: Mapping[str, nn.Module]
) -> nn.Module:
    """A copy of the module that the caller gave, with the state of the file."""
    if path not in modules:
        raise NotGiven(f"modules: {path!r} is a {kind}, whose code is not in the file; pass modules={{{path!r}: ...}}")
    module: object = modules[path]
    if not isinstance(module, nn.Module):
        raise NotGiven(f"modules: expected a module for {path!r}, got {type(module).__name__}")
    try:
        fits(module, state, f"modules: {path!r}")
    except ValueError as error:
        raise NotGiven(str(error)) from error
    module = copy.deepcopy(module)
    module.load_state_dict(state)
    return module.eval()
