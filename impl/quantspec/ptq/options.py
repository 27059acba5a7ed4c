"""What a user may choose when a network is quantized, checked before any work."""

import difflib
import fnmatch
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from quantspec.engines import registry
from quantspec.ir.float_graph import BatchNorm, Embedding, FloatGraph, Layer, Node, Recurrent, Shape
from quantspec.ir.float_run import float_calls
from quantspec.ir.program import Call, Program
from quantspec.module.islands import QuantizedModel
from quantspec.numerics import affine
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import dialect as find_dialect

EXCLUDED = "excluded"


@dataclass(frozen=True)
class Options:
    """How to quantize: see ``quantspec.prepare``. ``reduce_range`` is decided."""

    dialect: Dialect
    per_channel: bool
    reduce_range: bool
    bits: int
    engine: str


def checked(*, per_channel: bool, reduce_range: bool | None, dialect: str, bits: int, engine: str) -> Options:
    """The choices; ValueError naming the argument for what is none, TypeError for flags that are no truth values."""
    chosen = find_dialect(dialect)
    affine.code_range(bits, signed=True)
    registry.check(engine)
    for name, flag in (("per_channel", per_channel), ("reduce_range", reduce_range)):
        if not isinstance(flag, bool) and (name == "per_channel" or flag is not None):
            raise TypeError(f"{name}: expected True or False, got {flag!r}")
    if reduce_range is None:
        # Only dialects whose accumulators saturate lose anything with all eight bits.
        reduce_range = chosen.accumulate_rule == "pairs"
    if reduce_range and bits == 2:
        raise ValueError("reduce_range: 2-bit codes cannot have one bit less")
    return Options(chosen, per_channel, reduce_range, bits, engine)


def without(graph: FloatGraph, model: nn.Module, exclude: str | Sequence[str]) -> FloatGraph:
    """The graph in which what comes from the modules named by ``exclude`` stays in float.

    Raises ValueError, with the nearest paths, for a name or pattern that is no module's.
    """
    patterns = [exclude] if isinstance(exclude, str) else list(exclude)
    if not patterns:
        return graph
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"exclude: expected paths of modules, got {pattern!r}")
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3)
            known = f"near it: {', '.join(near)}" if near else "it has no modules with a name"
            raise ValueError(f"exclude: the model has no module {pattern!r}; {known}")

    def excluded(path: str) -> bool:
        parts = path.split(".")
        ancestors = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
        return any(fnmatch.fnmatchcase(ancestor, pattern) for ancestor in ancestors for pattern in patterns)

    nodes: list[Node] = []
    callables = dict(graph.callables)
    for node in graph.nodes:
        layer = node.layer if isinstance(node, Layer | BatchNorm | Embedding | Recurrent) else ""
        if isinstance(node, Shape) or not excluded(layer or graph.paths.get(node.name, "")):
            nodes.append(node)
        elif isinstance(node, Layer):
            steps, called = float_calls(node, EXCLUDED)
            nodes += steps
            callables |= called
        else:
            nodes.append(replace(node if isinstance(node, Call) else node.call, reason=EXCLUDED))
    return replace(graph, nodes=tuple(nodes), callables=callables)


def warned_if_nothing(model: QuantizedModel) -> QuantizedModel:
    """The model; warns when no layer of it became int8."""
    if not any(network.program.layers for _, network in model.networks()):
        why = "no part with a layer could be captured"
        warnings.warn(f"nothing was quantized: {why}; print the result to see why", stacklevel=4)
    return model


def warn_if_nothing(program: Program, graph: FloatGraph) -> None:
    """Warns when no layer of a network became int8: it works as before, in float."""
    if not program.layers:
        layers = any(isinstance(node, Layer | Embedding | Recurrent) for node in graph.nodes)
        why = "every layer stayed in float" if layers else "it has no layer with an integer form"
        warnings.warn(f"nothing was quantized: {why}; print the result to see why", stacklevel=4)
