"""A float graph as text, with all that it holds."""

import re
import textwrap
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.ir.float_graph import Act, FloatCell, FloatGraph, Recipe
from quantspec.ir.program import Call, Ref


def text(graph: FloatGraph) -> str:
    """A line for the inputs, each node, the output, what is called, how often, and each recipe and act."""
    given = (name + (f"={graph.defaults[name]!r}" if name in graph.defaults else "") for name in graph.inputs)
    lines = [f"({', '.join(given)})"]
    lines += [node_text(node) + f" @{graph.paths.get(node.name)}" for node in graph.nodes]
    lines.append(f"-> {shown(graph.output)}")
    lines.append(f"calls {graph.calls}")
    lines += called(graph.callables)
    for name, recipe in graph.recipes.items():
        lines.append(f"recipe of {name}: {shown(recipe.value)}")
        lines += inner(recipe)
    for key, act in graph.acts.items():
        lines.append(f"act {key} of {act.owners}, gives {act.output}")
        lines += inner(act)
    lines = [re.sub(r" \(/.*?, line [0-9]+\)", " (here)", line) for line in lines]
    return "\n".join(textwrap.fill(line, 110, subsequent_indent=" " * 8, **WHOLE) for line in lines)


def inner(made: Act | Recipe) -> list[str]:
    """The calls of something, and what they call."""
    return [f"    {line}" for line in (*map(call_text, made.steps), *called(made.callables))]


WHOLE: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


def called(callables: dict[tuple[str, str], Any]) -> list[str]:
    """What is called, by kind and name."""
    return [f"{kind} {name}: {kind_of(what)}" for (kind, name), what in callables.items()]


def kind_of(what: Any) -> str:
    if isinstance(what, nn.Module):
        return type(what).__name__
    return shown(what) if isinstance(what, torch.Tensor) else getattr(what, "__name__", repr(what))


def node_text(node: Any) -> str:
    if isinstance(node, Call):
        return call_text(node)
    values = {f.name: getattr(node, f.name) for f in fields(node) if f.name not in ("name", "call")}
    usual = {f.name: f.default for f in fields(node)}
    own = (f"{name}={shown(value)}" for name, value in values.items() if value is not usual[name])
    behind = f" | {call_text(node.call)}" if hasattr(node, "call") else ""
    return f"{node.name}: {type(node).__name__}({', '.join(own)}){behind}"


def call_text(call: Call) -> str:
    given = [shown(arg) for arg in call.args] + [f"{key}={shown(value)}" for key, value in call.kwargs.items()]
    return f"{call.name}: {call.kind} {call.target}({', '.join(given)}){f' # {call.reason}' if call.reason else ''}"


def shown(value: Any) -> str:
    if isinstance(value, Ref):
        return f"%{value.name}"
    if isinstance(value, (np.ndarray, torch.Tensor)):
        numbers = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
        # In this order alone they have this sum.
        total = float(np.dot(numbers.astype(np.float64).ravel(), np.arange(1.0, numbers.size + 1)))
        kind = f"{type(value).__name__} " if isinstance(value, nn.Parameter) else ""
        return f"{kind}{numbers.dtype}{list(numbers.shape)}:{total:.4g}"
    if isinstance(value, FloatCell):
        return "cell(" + ", ".join(shown(getattr(value, f.name)) for f in fields(value)) + ")"
    if type(value) in (list, tuple):
        inner = ", ".join(map(shown, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    if type(value) is slice:
        return f"slice({shown(value.start)}, {shown(value.stop)}, {shown(value.step)})"
    return repr(value)


def numbered(model: nn.Module) -> nn.Module:
    """A model in evaluation mode whose parameters and buffers are numbers that everybody knows."""
    with torch.no_grad():
        for number, tensor in enumerate((*model.parameters(), *model.buffers()), start=1):
            if tensor.is_floating_point():
                tensor.copy_(torch.linspace(0.25, number, tensor.numel()).reshape(tensor.shape))
    return model.eval().requires_grad_(False)
