"""A quantized network beside its float model: layer by layer, as a table, as data, and as a picture (ACC-COMPARE)."""

import io
import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from quantspec.capture import tracer
from quantspec.engines.reference import Reference
from quantspec.ir import float_graph, float_run, rearrange
from quantspec.ir.program import Call, Conv, Layer, Linear
from quantspec.ir.traverse import refs
from quantspec.module import size
from quantspec.module.module import QuantizedModule
from quantspec.numerics import accuracy
from quantspec.numerics.affine import QParams, along
from quantspec.progress import progress
from quantspec.ptq import fusion, options

PARTED = 20.0  # dB: an error of a tenth


@dataclass(frozen=True)
class LayerRow:
    """One layer: ``sqnr`` in dB of what it gives, beside float; ``macs`` on the data compared; ``bytes`` stored; ``int8``: whether it is, else ``reason``."""

    layer: str
    sqnr: float
    macs: int
    bytes: int
    int8: bool
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found. ``sqnr`` of the outputs in dB; ``parted`` is the first layer below ``threshold`` dB, or None; bytes of both; ``int8_macs``: the share
    of multiply-accumulates in int8. Where the data has targets: both accuracies, and the upper bound of the share of answers that changed, with 99 % confidence."""

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
        """How many times smaller the quantized network is."""
        return self.float_bytes / self.int8_bytes

    def as_json(self) -> dict[str, Any]:
        """The same as plain data; infinities as strings."""
        return plain(asdict(self) | {"compression": self.compression})

    def __str__(self) -> str:
        table = Table(title=f"int8 beside float32, {self.examples} examples", title_justify="left")
        for column in ("layer", "SQNR, dB", "MACs", "bytes", ""):
            table.add_column(column, justify="right" if column else "left", no_wrap=column != "")
        table.columns[0].justify = "left"
        for row in self.layers:
            note = "" if row.int8 else f"float: {row.reason}"
            note = f"parts here (below {self.threshold:g} dB)" if row.layer == self.parted else note
            table.add_row(row.layer, f"{row.sqnr:.1f}", f"{row.macs:,}", f"{row.bytes:,}", note)
        table.add_section()
        total = f"{self.int8_macs:.1%} in int8"
        table.add_row("output", f"{self.sqnr:.1f}", total, f"{self.int8_bytes:,}", f"{self.compression:.2f}x smaller than {self.float_bytes:,}")
        text = io.StringIO()
        console = Console(file=text, width=120)
        console.print(table)
        if self.float_accuracy is not None:
            drop = 100 * (self.float_accuracy - self.int8_accuracy)
            console.print(
                f"accuracy {self.float_accuracy:.2%} in float32, {self.int8_accuracy:.2%} in int8: a drop of {drop:.2f} points; "
                f"{self.changed} answers changed, at most {self.changed_at_most:.2%} of all (99 % confidence)", highlight=False,
            )  # fmt: skip
        return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())

    def plot(self, path: str | Path) -> None:
        """Writes a picture of the layers' SQNR, as PNG, SVG or PDF by the file's ending."""
        from matplotlib.figure import Figure

        rows = self.layers
        figure = Figure(figsize=(8, max(2.5, 0.22 * len(rows) + 1.2)), layout="constrained")
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
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def compare(model: nn.Module, q: QuantizedModule, data: Iterable, *, batches: int | None = None, threshold: float = PARTED) -> Comparison:
    """A float model beside the network that was made of it, on some data (ACC-COMPARE).

    ``data``: batches as for ``quantize``, of which the first ``batches`` are taken; entries of a batch behind the model's inputs are targets: classes, for
    which accuracies are given when the output is [examples, classes]. Raises ValueError for no data and for networks whose layers are not those of the model.
    """
    from torch.utils.flop_counter import FlopCounterMode  # as much to import as the rest of this package

    if isinstance(data, (torch.Tensor, np.ndarray)):
        raise TypeError(f"data: expected an iterable of batches, got {type(data).__name__}; pass [batch] for one batch")
    fused = as_quantized(model, q)
    reference = Reference(q.program)
    steps = {step.name: step for step in q.program.steps}
    nodes = [node for node in fused.nodes if isinstance(node, (*float_graph.Layer.__args__, float_graph.Embedding, float_graph.Recurrent)) or left_out(node, fused)]
    sums: dict[str, list[float]] = {node.name: [0.0, 0.0] for node in nodes} | {"": [0.0, 0.0]}
    work, answers, examples, counted = dict.fromkeys(sums, 0), [], 0, 0
    taken = list(itertools.islice(data, batches)) if batches else data
    for batch in progress(taken, "compare"):
        floats, shapes = {}, {}
        with FlopCounterMode(display=False) as counter:
            output = float_run.run(fused, batch, keep(floats, shapes, {node.name for node in nodes}))
        counted += counter.get_total_flops() // 2
        got = reference(batch, seen_by(q, sums, floats, steps))
        first = next((t for t in leaves(output)), None)
        examples += len(first) if first is not None and first.ndim else 1
        for f, y in zip(leaves(output), leaves(got), strict=True):
            add(sums[""], f, y)
        for node in nodes:
            x = getattr(node, "x", None) or refs(node.args)[0]
            if node.name in shapes and x in shapes:
                work[node.name] += size.macs(left_out(node, fused) or node, shapes[x], shapes[node.name])
        if (target := targets(fused, batch)) is not None and first is not None and first.ndim == 2 and len(target) == len(first):
            answers.append((target, first.argmax(1), next(iter(leaves(got))).argmax(1)))
    if not examples:
        raise ValueError("data: expected at least one batch, got none")
    return summary(fused, q, nodes, steps, sums, work, counted, examples, threshold, answers)


def as_quantized(model: nn.Module, q: QuantizedModule) -> float_graph.FloatGraph:
    """The float graph whose layers are those of the network, fused or not. Raises ValueError when neither has the network's layers."""
    excluded = [step.target for step in q.program.steps if isinstance(step, Call) and step.kind == "module" and step.reason == options.EXCLUDED]
    captured = options.without(tracer.capture(model), model, [name for name in excluded if name in dict(model.named_modules())])
    for made in (fusion.fuse(captured), captured):
        layers = {node.name: node for node in made.nodes if isinstance(node, float_graph.Layer)}
        if all(made_of(step, layers.get(step.name)) for step in q.program.layers if isinstance(step, (Linear, Conv))):
            return made
    raise ValueError("q: expected a network that was made of this model, its layers are others")


def made_of(step: Linear | Conv, node: float_graph.Layer | None) -> bool:
    """Whether a step can have been made of a layer: the same kind, clamp and weights, each within one step of its grid."""
    if node is None or node.relu != step.relu or node.weight.shape != step.weight.shape:
        return False
    scale = along(step.w_qparams.axis, step.w_qparams.scale, step.weight.shape)
    return bool((np.abs(step.w_qparams.dequantize(step.weight) - node.weight) <= scale).all())


def left_out(node: float_graph.Node, fused: float_graph.FloatGraph) -> float_graph.Layer | None:
    """The layer in a call of one that was excluded; None for other nodes."""
    if not isinstance(node, Call) or node.kind != "module":
        return None
    what = fused.callables[node.kind, node.target]
    return replace(what.node, weight=what.weight.numpy(), bias=None if what.bias is None else what.bias.numpy()) if isinstance(what, float_run.FloatLayer) else None


def keep(floats: dict, shapes: dict, wanted: set[str]):
    def see(name: str, value: torch.Tensor) -> None:
        shapes[name] = tuple(value.shape)
        if name in wanted:
            floats[name] = value.clone()

    return see


def seen_by(q: QuantizedModule, sums: dict, floats: dict, steps: dict):
    """Adds what a step gives, as reals, to the sums of its layer."""

    def see(step: Any, value: Any) -> None:
        if step.name in floats:
            grid = getattr(step, "y_qparams", None)
            real = value if not isinstance(grid, QParams) else torch.from_numpy(grid.dequantize(value))
            real = rearrange.as_tensors(real)
            if isinstance(real, torch.Tensor) and real.shape == floats[step.name].shape:
                add(sums[step.name], floats[step.name], real)

    return see


def add(total: list[float], f: torch.Tensor, y: torch.Tensor) -> None:
    total[0] += float(f.double().square().sum())
    total[1] += float((f.double() - y.double()).square().sum())


def leaves(tree: Any) -> list[torch.Tensor]:
    """The float tensors of an output."""
    if isinstance(tree, torch.Tensor):
        return [tree] if tree.is_floating_point() else []
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [leaf for item in items for leaf in leaves(item)]


def targets(fused: float_graph.FloatGraph, batch: Any) -> torch.Tensor | None:
    """What a batch holds behind the model's inputs: classes."""
    if not isinstance(batch, (tuple, list)) or len(batch) <= len(fused.inputs):
        return None
    target = batch[len(fused.inputs)]
    return target if isinstance(target, torch.Tensor) and target.ndim == 1 and not target.is_floating_point() else None


def summary(fused, q: QuantizedModule, nodes, steps, sums, work, counted, examples, threshold, answers) -> Comparison:
    rows = []
    for node in nodes:
        step = steps.get(node.name)
        int8, layer = isinstance(step, Layer), left_out(node, fused) or node
        nbytes = size.step_bytes(step) if int8 else node_bytes(layer)
        reason = "" if int8 else step.reason if isinstance(step, Call) else "not in the network"
        rows.append(LayerRow(layer.layer, accuracy.decibels(*sums[node.name]), work[node.name], nbytes, int8, reason))
    # Products inside what is one call in float, such as attention, are counted by torch; it does not count those of recurrent layers.
    total = max(counted, sum(work.values()))
    share = sum(row.macs for row in rows if row.int8) / total if total else 0.0
    parted = next((row.layer for row in rows if row.sqnr < threshold), None)
    found: dict[str, Any] = {}
    if answers:
        target, f, y = (torch.cat(parts).numpy() for parts in zip(*answers))
        changed, at_most = accuracy.disagreement(f, y)
        found = {"float_accuracy": float((f == target).mean()), "int8_accuracy": float((y == target).mean()), "changed": changed, "changed_at_most": at_most}
    return Comparison(
        tuple(rows), accuracy.decibels(*sums[""]), parted, threshold, graph_bytes(fused), q.nbytes, share, examples, **found
    )


def node_arrays(node: float_graph.Node) -> list[np.ndarray]:
    """The arrays that a node of a float graph needs stored."""
    parts = [node, *node.cells] if isinstance(node, float_graph.Recurrent) else [node]
    return [array for part in parts for array in vars(part).values() if isinstance(array, np.ndarray)]


def node_bytes(node: float_graph.Node) -> int:
    """Bytes of those arrays."""
    return size.arrays_bytes(node_arrays(node))


def graph_bytes(fused: float_graph.FloatGraph) -> int:
    """Bytes of what a float network needs stored: weights and biases of its layers, and parameters and buffers of the rest that it calls."""
    total = size.arrays_bytes(array for node in fused.nodes for array in node_arrays(node))
    called = {(node.kind, node.target) for node in fused.nodes if isinstance(node, Call)}
    for key in called:
        what = fused.callables.get(key)
        total += size.float_bytes(what) if isinstance(what, nn.Module) else what.nbytes if isinstance(what, torch.Tensor) else 0
    return total

