"""Runs a quantized network beside its float model on data (ACC-COMPARE)."""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn

from quantspec.capture import calls, copies, kept, parts, tracer
from quantspec.engines.reference import Reference
from quantspec.errors import near_names, real_number, whole_number
from quantspec.ir import float_graph, float_run
from quantspec.ir.program import Call, Callables, Conv, Layer, Linear, Step
from quantspec.module import size
from quantspec.module.islands import Island, LayerIsland, QuantizedModel
from quantspec.module.module import QuantizedModule
from quantspec.numerics import accuracy
from quantspec.progress import progress
from quantspec.ptq.attending import attends
from quantspec.ptq.static import Prepared
from quantspec.ptq.work import PerNode, Products
from quantspec.surroundings import usual

from .layers import Place, as_quantized, graph_bytes, node_arrays, places_of
from .result import Comparison, LayerRow

PARTED = 20.0  # dB: an error of a tenth


@dataclass(eq=False)
class Seen:
    """What the batches so far gave. ``energies`` of each layer's output and of its error, "" for the network's;
    ``macs`` of each layer; ``answers``: (targets, float answers, int8 answers) of a batch."""

    energies: dict[str, list[float]]
    macs: dict[str, int] = field(default_factory=dict)
    counted_macs: int = 0
    attended_macs: int = 0  # of attention in codes
    examples: int = 0
    answers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    compared: set[str] = field(default_factory=set)

    def add(self, name: str, expected: torch.Tensor, got: torch.Tensor) -> None:
        """Adds the energies of an output beside its float model."""
        self.compared.add(name)
        energies = self.energies[name]
        energies[0] += float(expected.double().square().sum())
        energies[1] += float((expected.double() - got.double()).square().sum())


@near_names
def compare(
    model: nn.Module,
    q: QuantizedModule | QuantizedModel,
    data: Iterable[Any],
    *,
    batches: int | None = None,
    threshold: float = PARTED,
) -> Comparison:
    """Compares a quantized network with its float model on some data, layer by layer (ACC-COMPARE).

    Args:
        model: the float model that ``q`` was quantized from.
        q: the quantized network.
        data: an iterable of batches as for ``quantize``. An entry behind the model's inputs holds targets: the classes
            of the examples. With targets and outputs of shape [examples, classes], accuracies are reported too.
        batches: how many batches to use, at least 1. None: all.
        threshold: a quality in dB; the first layer whose SQNR is below it is reported.

    Raises:
        TypeError: for arguments of a wrong type and unknown options.
        ValueError: for data without batches, and a network that was not quantized from this model.
    """
    if isinstance(data, (torch.Tensor, np.ndarray, str)) or not isinstance(data, Iterable):
        raise TypeError(f"data: expected an iterable of batches, got {type(data).__name__}; pass [batch] for one batch")
    if not isinstance(q, (QuantizedModule, QuantizedModel)):
        raise TypeError(f"q: expected a network quantized by quantspec, got {type(q).__name__}")
    copies.inside(model)  # which says what TorchScript lacks
    if isinstance(model, (Prepared, QuantizedModule, QuantizedModel)):
        raise TypeError(f"model: expected the float model, got a {type(model).__name__}")
    if batches is not None and whole_number(batches, "batches") < 1:
        raise ValueError(f"batches: expected at least 1, or None for all, got {batches}")
    if math.isnan(real_number(threshold, "threshold")):
        raise ValueError("threshold: expected a quality in dB, got NaN")
    taken = progress(data if batches is None else itertools.islice(data, min(batches, sys.maxsize)), "compare")
    if isinstance(q, QuantizedModel):
        return compare_parts(model, q, taken, threshold)
    fused = as_quantized(tracer.capture(model), model, q)
    places, reference = places_of(fused), Reference(q.program)
    names = [place.name for place in places]
    seen = Seen({name: [0.0, 0.0] for name in (*names, "")}, dict.fromkeys(names, 0))
    for batch in taken:
        see_batch(seen, fused, places, reference, usual(parts.as_given)(model, batch))
    if not seen.examples:
        raise ValueError("data: expected at least one batch, got none")
    return summary(rows_of(q, places, seen), seen, (graph_bytes(fused), q.nbytes), threshold)


@dataclass(eq=False)
class Beside:
    """A part's float graph beside its network."""

    fused: float_graph.FloatGraph
    q: QuantizedModule

    def __post_init__(self) -> None:
        self.places, self.reference = places_of(self.fused), Reference(self.q.program)
        names = [place.name for place in self.places]
        self.seen = Seen({name: [0.0, 0.0] for name in (*names, "")}, dict.fromkeys(names, 0))


Pairs: TypeAlias = dict[tuple[str, calls.CallPattern | None], Beside]


def compare_parts(model: nn.Module, q: QuantizedModel, batches: Iterable[Any], threshold: float) -> Comparison:
    """A float model beside the one whose parts are networks."""
    tracer.check_model(model)
    own = usual(copies.own_copy)(copies.inside(model))
    pairs: Pairs = {}
    seen = Seen({"": [0.0, 0.0]})
    for batch in batches:
        see_parts(seen, own, q, pairs, batch)
    if not seen.examples:
        raise ValueError("data: expected at least one batch, got none")
    rows = [row for pair in pairs.values() for row in rows_of(pair.q, pair.places, pair.seen)]
    seen.attended_macs = sum(pair.seen.attended_macs for pair in pairs.values())
    float_bytes = sum(tensor.nbytes for tensor in (*own.parameters(), *own.buffers()))
    return summary(rows, seen, (float_bytes, q.nbytes), threshold)


@usual
def see_parts(seen: Seen, own: nn.Module, q: QuantizedModel, pairs: Pairs, batch: Any) -> None:
    """Runs a model and its networks on a batch, and adds what it shows; the first one tells the pairs."""
    args, kwargs = calls.arguments(own.forward, parts.as_given(own, batch))
    if not seen.examples:
        pairs.update(paired(own, q, args, kwargs))
    with copies.undisturbed():
        with Products() as products:
            outputs = leaves(watched(own, pairs)(*copies.cloned(args), **copies.cloned(kwargs)))
        int8_outputs = leaves(q(*args, **kwargs))
    seen.counted_macs += products.take()
    see_outputs(seen, outputs, int8_outputs)
    see_answers(seen, outputs, int8_outputs, targets(len(args), batch))


def paired(model: nn.Module, q: QuantizedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pairs:
    """The float graph of each part beside its network."""
    pairs: Pairs = {}
    several = [path for path, island in q.islands.items() if isinstance(island, Island)]
    found = parts.Parts()
    if several:
        found = parts.find(kept.called_once(model, args, kwargs), args, kwargs, lambda graph: graph, several)
    modules = dict(model.named_modules())
    for path, island in q.islands.items():
        if isinstance(island, LayerIsland):
            graph = tracer.trace_layer(model, path) if path in modules else None
            pairs[path, None] = beside(graph, model, island.networks[0], path)
            continue
        for pattern, network in zip(island.patterns, island.networks):
            graph = found.graphs.get(path, {}).get(pattern)
            pairs[path, pattern] = beside(graph, model, network, path)
    return pairs


def beside(graph: float_graph.FloatGraph | None, model: nn.Module, network: nn.Module, path: str) -> Beside:
    assert isinstance(network, QuantizedModule)
    if graph is None:
        raise ValueError(f"q: expected a network quantized from this model, but it has none at {path!r}")
    return Beside(as_quantized(graph, model, network), network)


def watched(model: nn.Module, pairs: Pairs) -> nn.Module:
    """A copy of a model whose parts, when they are called, are put beside their networks."""
    twin = copies.run_copy(model)
    for path in {path for path, _ in pairs}:
        module = twin.get_submodule(path)
        module.__dict__["forward"] = comparing(path, module.forward, pairs)
    return twin


def comparing(path: str, forward: Callable[..., Any], pairs: Pairs) -> Callable[..., Any]:
    """The forward of a part, whose arguments its network is given too."""

    def run(*args: Any, **kwargs: Any) -> Any:
        given: Any
        if (pair := pairs.get((path, None))) is not None:
            given = copies.cloned({**dict(zip(pair.fused.inputs, args)), **kwargs})
        else:
            pattern, tensors = calls.call_of(forward, args, kwargs)
            pair, given = pairs.get((path, pattern)), tuple(tensor.clone() for tensor in tensors)
        if pair is not None:
            with torch.utils._python_dispatch._disable_current_modes():
                see_batch(pair.seen, pair.fused, pair.places, pair.reference, given)
        return forward(*args, **kwargs)

    run.__wrapped__ = forward  # type: ignore[attr-defined]  # so that its signature is the model's own
    return run


@usual
def see_batch(
    seen: Seen, fused: float_graph.FloatGraph, places: list[Place], reference: Reference, batch: Any
) -> None:
    """Runs both networks on a batch and adds what they give."""
    if any(x.isnan().any() for x in leaves(float_run.bind(fused.inputs, fused.defaults, batch))):
        raise ValueError("data: expected numbers, got NaN, with which there is nothing to compare")
    floats: dict[str, torch.Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    names = {place.name for place in places}

    def see_float(name: str, value: torch.Tensor) -> None:
        shapes[name] = tuple(value.shape)
        if name in names:
            floats[name] = value.clone()

    def compute(node: float_graph.Node, values: dict[str, Any], callables: Callables) -> Any:
        value = nodes.compute(node, values, callables)
        if isinstance(node, float_graph.Recurrent):
            floats[node.name] = leaves(value)[0].clone()  # its output, which may be packed; a state comes behind it
        return value

    def see_step(step: Step, value: Any) -> None:
        if step.name in floats:
            grid = step.y_qparams if isinstance(step, (Linear, Conv)) else None
            real = leaves(value if grid is None else torch.from_numpy(grid.dequantize(value)))
            if real and real[0].shape == floats[step.name].shape:
                seen.add(step.name, floats[step.name], real[0])

    nodes = PerNode()
    outputs = leaves(float_run.run(fused, batch, see_float, compute))
    seen.counted_macs += nodes.macs.total()
    steps = {step.name: step for step in reference.program.steps}
    seen.attended_macs += sum(nodes.macs[node.name] for node in fused.nodes if attends(node, steps))
    int8_outputs = leaves(reference(batch, see_step))
    see_outputs(seen, outputs, int8_outputs)
    for place in places:
        recurrent = isinstance(place.layer, float_graph.Recurrent)
        # A recurrent layer may be given a packed sequence, which has no shape, and gives several values.
        macs = nodes.macs[place.name] if recurrent else size.macs(place.layer, shapes[place.x], shapes[place.name])
        seen.macs[place.name] += macs
    see_answers(seen, outputs, int8_outputs, targets(len(fused.inputs), batch))


def see_outputs(seen: Seen, outputs: list[torch.Tensor], int8_outputs: list[torch.Tensor]) -> None:
    """Adds what both networks give. Raises ValueError where that is not as much."""
    if [x.shape for x in outputs] != [x.shape for x in int8_outputs]:
        raise ValueError("q: expected a network quantized from this model, but its outputs have other shapes")
    for expected, got in zip(outputs, int8_outputs):
        seen.add("", expected, got)


def see_answers(
    seen: Seen, outputs: list[torch.Tensor], int8_outputs: list[torch.Tensor], target: torch.Tensor | None
) -> None:
    """Counts the examples of a batch, and keeps what both networks answered where it has targets."""
    first = outputs[0] if outputs else None
    seen.examples += len(first) if first is not None and first.ndim else 1
    if target is not None and first is not None and first.ndim == 2 and len(target) == len(first):
        seen.answers.append((target, first.argmax(1), int8_outputs[0].argmax(1)))


def leaves(tree: Any) -> list[torch.Tensor]:
    """The float tensors of an output, as dense ones."""
    if isinstance(tree, np.ndarray) and tree.dtype.kind in ("f", "c"):
        tree = torch.tensor(tree)
    if isinstance(tree, torch.Tensor) and tree.is_nested:
        tree = tree.unbind()
    if isinstance(tree, torch.Tensor):
        tree = torch.view_as_real(tree.resolve_conj()) if tree.is_complex() else tree
        tree = tree.dequantize() if tree.is_quantized else tree
        tree = tree.to_dense()
        return [tree] if tree.is_floating_point() and not tree.is_meta else []
    if is_dataclass(tree) and not isinstance(tree, (dict, type)):
        tree = [getattr(tree, each.name) for each in fields(tree)]
    items = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (tuple, list)) else ()
    return [leaf for item in items for leaf in leaves(item)]


def targets(inputs: int, batch: Any) -> torch.Tensor | None:
    """What a batch holds behind the model's inputs: classes."""
    if not isinstance(batch, (tuple, list)) or len(batch) <= inputs:
        return None
    target = batch[inputs]
    return target if isinstance(target, torch.Tensor) and target.ndim == 1 and not target.is_floating_point() else None


def rows_of(q: QuantizedModule, places: list[Place], seen: Seen) -> list[LayerRow]:
    """A row for each layer."""
    steps = {step.name: step for step in q.program.steps}
    rows = []
    for place in places:
        step, energies = steps.get(place.name), seen.energies[place.name]
        # Where nothing was put beside each other there is nothing to say.
        sqnr = accuracy.decibels(*energies) if place.name in seen.compared else math.nan
        if isinstance(step, Layer):
            nbytes, reason = size.step_bytes(step), ""
        else:
            nbytes = size.arrays_bytes(node_arrays(place.layer))
            reason = step.reason if isinstance(step, Call) else "not in the network"
        row = LayerRow(place.layer.layer, sqnr, seen.macs[place.name], nbytes, isinstance(step, Layer), reason)
        rows.append(row)
    return rows


def summary(rows: list[LayerRow], seen: Seen, nbytes: tuple[int, int], threshold: float) -> Comparison:
    """What all batches say. ``nbytes``: of both networks."""
    # Also products inside what is one call in float, such as attention.
    macs = max(seen.counted_macs, sum(row.macs for row in rows))
    in_codes = seen.attended_macs + sum(row.macs for row in rows if row.int8)
    share = in_codes / macs if macs else 0.0
    parted = next((row.layer for row in rows if row.sqnr < threshold), None)
    sqnr = accuracy.decibels(*seen.energies[""])
    found = Comparison(tuple(rows), sqnr, parted, threshold, *nbytes, share, seen.examples)
    if not seen.answers:
        return found
    target, expected, got = (torch.cat(each).numpy() for each in zip(*seen.answers))
    changed, at_most = accuracy.disagreement(expected, got)
    accuracies = float((expected == target).mean()), float((got == target).mean())
    return replace(
        found, float_accuracy=accuracies[0], int8_accuracy=accuracies[1], changed=changed, changed_at_most=at_most
    )
