"""A quantized network beside its float model: layer by layer, as a table, as data, and as a picture (ACC-COMPARE)."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import nn

from quantspec.capture import calls, copies, parts, tracer
from quantspec.engines.reference import Reference
from quantspec.errors import near_names
from quantspec.extras import needed
from quantspec.ir import float_graph, float_run, rearrange
from quantspec.ir.program import Call, Conv, Layer, Linear, Ref, Step
from quantspec.ir.traverse import refs
from quantspec.module import size
from quantspec.module.islands import Island, LayerIsland, QuantizedModel
from quantspec.module.module import QuantizedModule
from quantspec.module.printed import at_dots, grouped, new_table, printed, wrapped
from quantspec.module.report import EXCLUDED
from quantspec.numerics import accuracy
from quantspec.numerics.affine import along
from quantspec.progress import progress
from quantspec.ptq import fusion
from quantspec.ptq.exclude import without
from quantspec.ptq.static import Prepared
from quantspec.ptq.work import Products
from quantspec.surroundings import usual

PARTED = 20.0  # dB: an error of a tenth
FloatLayer: TypeAlias = float_graph.Layer | float_graph.Embedding | float_graph.Recurrent


@dataclass(frozen=True)
class LayerRow:
    """One layer: ``sqnr`` in dB of what it gives, beside float; ``macs`` on the data compared; ``bytes`` stored;
    ``int8``: whether it is, else ``reason``."""

    layer: str
    sqnr: float
    macs: int
    bytes: int
    int8: bool
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare``; ``print`` it for a table.

    Attributes:
        layers: one row for each layer.
        sqnr: signal-to-quantization-noise ratio of the outputs in dB.
        parted: the first layer whose SQNR is below ``threshold``, or None.
        threshold: the limit in dB that ``compare`` was given.
        float_bytes: size of the float model.
        int8_bytes: size of the quantized network.
        int8_macs: share of the multiply-accumulates that are in int8, 0 to 1.
        examples: number of examples compared.
        float_accuracy: accuracy of the float model, where the data has targets.
        int8_accuracy: accuracy of the quantized network, likewise.
        changed: number of examples whose predicted class changed.
        changed_at_most: upper bound, at 99 % confidence, for the share of all inputs whose predicted class changes.
    """

    layers: tuple[LayerRow, ...]
    sqnr: float
    parted: str | None
    threshold: float
    float_bytes: int
    int8_bytes: int
    int8_macs: float
    examples: int
    float_accuracy: float | None = None
    int8_accuracy: float | None = None
    changed: int | None = None
    changed_at_most: float | None = None

    @property
    def compression(self) -> float:
        """``float_bytes`` / ``int8_bytes``."""
        return self.float_bytes / self.int8_bytes

    def as_json(self) -> dict[str, Any]:
        """The comparison as a dict for JSON, with infinities as strings."""
        return cast(dict[str, Any], plain(asdict(self) | {"compression": self.compression}))

    def __str__(self) -> str:
        table = new_table(f"int8 beside float32, {self.examples} examples", "layer", "SQNR, dB", "MACs", "bytes")
        table.add_column("", no_wrap=True)
        for row in self.layers:
            note = "" if row.int8 else "float32"
            note = f"below {self.threshold:g} dB" if row.layer == self.parted else note
            table.add_row(at_dots(row.layer), f"{row.sqnr:.1f}", f"{row.macs:,}", f"{row.bytes:,}", note)
        table.add_section()
        work, smaller = f"{self.int8_macs:.1%} in int8", f"{self.compression:.2f}x smaller"
        table.add_row("output", f"{self.sqnr:.1f}", work, f"{self.int8_bytes:,}", smaller)
        lines = [printed(table)]
        if self.parted is not None:
            lines += wrapped(f"{self.parted} is the first layer whose SQNR is below {self.threshold:g} dB.", 0)
        lines += grouped("in float32:", [(row.layer, row.reason) for row in self.layers if not row.int8])
        if self.float_accuracy is not None and self.int8_accuracy is not None:
            drop = 100 * (self.float_accuracy - self.int8_accuracy)
            accuracies = f"accuracy {self.float_accuracy:.2%} in float32, {self.int8_accuracy:.2%} in int8"
            changes = f"{self.changed} answers changed, at most {self.changed_at_most:.2%} of all (99 % confidence)"
            lines += wrapped(f"{accuracies}: a drop of {drop:.2f} points; {changes}", 0)
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Writes a chart of the layers' SQNR to a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: when matplotlib is not installed.
        """
        rows = self.layers
        new_figure = needed("matplotlib.figure", "plots", "a plot of the comparison").Figure
        figure = new_figure(figsize=(8, max(2.5, 0.22 * len(rows) + 1.2)), layout="constrained")
        axes = figure.subplots()
        finite = [min(row.sqnr, 99.0) for row in rows]
        colours = ["#c0392b" if row.layer == self.parted else "#2f6db3" if row.int8 else "#b7bfcc" for row in rows]
        axes.barh(range(len(rows)), finite, color=colours)
        axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.axvline(self.threshold, color="#1d2433", linewidth=0.8, linestyle=":")
        axes.set_xlabel("SQNR in dB, int8 beside float32 (grey: stayed in float)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.01)
        figure.savefig(path, dpi=120)


def plain(value: Any) -> Any:
    """A tree without tuples and without floats that JSON has not."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


@dataclass(frozen=True, eq=False)
class Place:
    """A layer of the float graph with the names of its input and output, as a layer or inside of a call that was
    excluded."""

    name: str
    x: str
    layer: FloatLayer


@dataclass(eq=False)
class Seen:
    """What the batches so far gave. ``energies`` of each layer's output and of its error, "" for the network's;
    ``macs`` of each layer; ``answers``: (targets, float answers, int8 answers) of a batch."""

    energies: dict[str, list[float]]
    macs: dict[str, int]
    counted_macs: int = 0
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
        batches: how many batches to use. None: all.
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
    taken = progress(itertools.islice(data, batches) if batches else data, "compare")
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
    seen = Seen({"": [0.0, 0.0]}, {})
    for batch in batches:
        see_parts(seen, own, q, pairs, batch)
    if not seen.examples:
        raise ValueError("data: expected at least one batch, got none")
    rows = [row for pair in pairs.values() for row in rows_of(pair.q, pair.places, pair.seen)]
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
    for expected, got in zip(outputs, int8_outputs, strict=True):
        seen.add("", expected, got)
    see_answers(seen, outputs, int8_outputs, targets(len(args), batch))


def paired(model: nn.Module, q: QuantizedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pairs:
    """The float graph of each part beside its network."""
    pairs: Pairs = {}
    several = [path for path, island in q.islands.items() if isinstance(island, Island)]
    found = parts.find(model, args, kwargs, lambda graph: graph, several) if several else parts.Parts()
    for path, island in q.islands.items():
        if isinstance(island, LayerIsland):
            pairs[path, None] = beside(tracer.trace_layer(model, path), model, island.networks[0])
            continue
        for pattern, network in zip(island.patterns, island.networks, strict=True):
            graph = found.graphs.get(path, {}).get(pattern)
            if graph is None:
                raise ValueError(f"q: expected a network quantized from this model, but it has none at {path!r}")
            pairs[path, pattern] = beside(graph, model, network)
    return pairs


def beside(graph: float_graph.FloatGraph, model: nn.Module, network: nn.Module) -> Beside:
    assert isinstance(network, QuantizedModule)
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
            given = copies.cloned({**dict(zip(pair.fused.inputs, args)), **kwargs} if kwargs else args)
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
    floats: dict[str, torch.Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    outputs_of = {place.name: place.name for place in places} | first_of_recurrent(fused)

    def see_float(name: str, value: torch.Tensor) -> None:
        shapes[name] = tuple(value.shape)
        if name in outputs_of:
            floats[name] = value.clone()

    def see_step(step: Step, value: Any) -> None:
        if step.name in floats:
            grid = step.y_qparams if isinstance(step, (Linear, Conv)) else None
            real = rearrange.as_tensors(value if grid is None else torch.from_numpy(grid.dequantize(value)))
            if isinstance(real, torch.Tensor) and real.shape == floats[step.name].shape:
                seen.add(outputs_of[step.name], floats[step.name], real)

    with Products() as products:
        outputs = leaves(float_run.run(fused, batch, see_float))
    seen.counted_macs += products.take()
    int8_outputs = leaves(reference(batch, see_step))
    for expected, got in zip(outputs, int8_outputs, strict=True):
        seen.add("", expected, got)
    for place in places:
        recurrent = isinstance(place.layer, float_graph.Recurrent)
        if recurrent and isinstance(fused.output, Ref) and fused.output.name == place.name:
            seen.add(place.name, outputs[0], int8_outputs[0])
        if place.x in shapes and (recurrent or place.name in shapes):
            seen.macs[place.name] += size.macs(place.layer, shapes[place.x], shapes.get(place.name, ()))
    see_answers(seen, outputs, int8_outputs, targets(len(fused.inputs), batch))


def first_of_recurrent(fused: float_graph.FloatGraph) -> dict[str, str]:
    """The values that are outputs of recurrent layers, which give a state beside them: the layers by their names."""
    layers = {node.name for node in fused.nodes if isinstance(node, float_graph.Recurrent)}
    moves = (node for node in fused.nodes if isinstance(node, float_graph.Move) and node.x in layers)
    return {node.name: node.x for node in moves if node.call.args[1:] == (0,)}


def see_answers(
    seen: Seen, outputs: list[torch.Tensor], int8_outputs: list[torch.Tensor], target: torch.Tensor | None
) -> None:
    """Counts the examples of a batch, and keeps what both networks answered where it has targets."""
    first = outputs[0] if outputs else None
    seen.examples += len(first) if first is not None and first.ndim else 1
    if target is not None and first is not None and first.ndim == 2 and len(target) == len(first):
        seen.answers.append((target, first.argmax(1), int8_outputs[0].argmax(1)))


def as_quantized(captured: float_graph.FloatGraph, model: nn.Module, q: QuantizedModule) -> float_graph.FloatGraph:
    """The float graph whose layers are those of the network, fused or not. Raises ValueError when neither has the
    network's layers."""
    modules = dict(model.named_modules())
    excluded = [
        step.target for step in q.program.steps
        if isinstance(step, Call) and step.kind == "module" and step.reason == EXCLUDED
    ]  # fmt: skip
    captured = without(captured, model, [path for path in excluded if path in modules])
    for graph in (fusion.fuse(captured), captured):
        layers = {node.name: node for node in graph.nodes if isinstance(node, float_graph.Layer)}
        if all(made_of(step, layers.get(step.name)) for step in q.program.layers if isinstance(step, (Linear, Conv))):
            return graph
    raise ValueError("q: expected a network quantized from this model, but its layers differ")


def made_of(step: Linear | Conv, node: float_graph.Layer | None) -> bool:
    """Whether a step can have been made of a layer: the same kind, clamp and weights, each within one step of its
    grid."""
    if node is None or node.relu != step.relu or node.weight.shape != step.weight.shape:
        return False
    scale = along(step.w_qparams.axis, step.w_qparams.scale, step.weight.shape)
    return bool((np.abs(step.w_qparams.dequantize(step.weight) - node.weight) <= scale).all())


def places_of(fused: float_graph.FloatGraph) -> list[Place]:
    """The layers of a float graph, in order."""
    places = []
    for node in fused.nodes:
        if isinstance(node, FloatLayer):
            places.append(Place(node.name, node.x, node))
        elif isinstance(node, Call) and (layer := left_out(node, fused)) is not None:
            places.append(Place(node.name, refs(node.args)[0], layer))
    return places


def left_out(node: Call, fused: float_graph.FloatGraph) -> float_graph.Layer | None:
    """The layer in a call of one that was excluded; None for other calls."""
    if node.kind != "module":
        return None
    called = fused.callables[node.kind, node.target]
    if not isinstance(called, float_run.FloatLayer):
        return None
    return replace(called.node, weight=called.weight.numpy(), bias=None if called.bias is None else called.bias.numpy())


def leaves(tree: Any) -> list[torch.Tensor]:
    """The float tensors of an output."""
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
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
        sqnr = accuracy.decibels(*energies) if place.name in seen.compared else float("nan")
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
    share = sum(row.macs for row in rows if row.int8) / macs if macs else 0.0
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


def node_arrays(node: float_graph.Node) -> list[np.ndarray]:
    """The arrays that a node of a float graph needs stored."""
    parts = [node, *node.cells] if isinstance(node, float_graph.Recurrent) else [node]
    return [array for part in parts for array in vars(part).values() if isinstance(array, np.ndarray)]


def graph_bytes(fused: float_graph.FloatGraph) -> int:
    """Bytes of what a float network needs stored: weights and biases of its layers, and parameters and buffers of the
    rest that it calls."""
    total = size.arrays_bytes(array for node in fused.nodes for array in node_arrays(node))
    called = {(node.kind, node.target) for node in fused.nodes if isinstance(node, Call)}
    for key in called:
        value = fused.callables.get(key)
        if isinstance(value, nn.Module):
            total += size.float_bytes(value)
        elif isinstance(value, torch.Tensor):
            total += value.nbytes
    return total

