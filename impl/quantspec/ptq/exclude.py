"""What stays in float before anything is observed: what the caller excludes, and layers without weights."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import nn

from quantspec.errors import shown
from quantspec.ir.float_graph import BatchNorm, Embedding, FloatGraph, Layer, Node, Recurrent, Shape
from quantspec.ir.float_run import float_calls
from quantspec.ir.program import Call
from quantspec.module.report import EXCLUDED

EMPTY = "it has no weights"


def without(graph: FloatGraph, model: nn.Module, patterns: Sequence[str]) -> FloatGraph:
    """The graph in which what comes from the modules named by patterns stays in float.

    Raises ValueError, with the nearest paths, for a name or pattern that is no module's.
    """
    if not patterns:
        return graph
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3)
            meant = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"exclude: the model has no module {pattern!r}; {meant}it has {some_of(paths)}")

    def reason(node: Node) -> str | None:
        layer = node.layer if isinstance(node, Layer | BatchNorm | Embedding | Recurrent) else ""
        return EXCLUDED if excluded(layer or graph.paths.get(node.name, ""), patterns) else None

    return in_float(graph, reason)


def without_empty(graph: FloatGraph) -> FloatGraph:
    """The graph in which layers without outputs, or without inputs, stay in float: no value of theirs has a range."""
    return in_float(graph, lambda node: EMPTY if isinstance(node, Layer) and not node.weight.size else None)


def in_float(graph: FloatGraph, reason: Callable[[Node], str | None]) -> FloatGraph:
    """The graph in which the nodes stay in float for which there is a reason."""
    nodes: list[Node] = []
    callables = dict(graph.callables)
    for node in graph.nodes:
        if isinstance(node, Shape) or (why := reason(node)) is None:
            nodes.append(node)
        elif isinstance(node, Layer):
            steps, called = float_calls(node, why)
            nodes += steps
            callables |= called
        else:
            nodes.append(replace(node if isinstance(node, Call) else node.call, reason=why))
    return replace(graph, nodes=tuple(nodes), callables=callables)


def some_of(paths: Sequence[str]) -> str:
    """The first paths, for a message."""
    more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
    return ", ".join(paths[:8]) + more if paths else "no modules with a name"


def listed(exclude: str | Iterable[str]) -> list[str]:
    """The patterns, of which a single one may be a text. Raises TypeError for what holds none.

    To be called once: an iterator has its patterns only once.
    """
    if isinstance(exclude, torch.Tensor) or not isinstance(exclude, Iterable):
        raise TypeError(f"exclude: expected paths of modules, got {shown(exclude)}")
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"exclude: expected paths of modules, got {shown(pattern)}")
    return patterns


def excluded(path: str, patterns: Sequence[str]) -> bool:
    """Whether a module, or one around it, is named."""
    parts = path.split(".")
    ancestors = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return any(fnmatch.fnmatchcase(ancestor, pattern) for ancestor in ancestors for pattern in patterns)
