"""One captured graph in training: its Program, of which every step is computed from the present weights and ranges."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.capture import copies
from quantspec.capture.acting import unmarked
from quantspec.errors import CalibrationError
from quantspec.ir import float_graph, float_run
from quantspec.ir.float_graph import FloatGraph
from quantspec.ir.program import Callables, Program
from quantspec.ir.traverse import last_reads, refs, replace_refs
from quantspec.numerics.affine import LARGEST_SCALE, SMALLEST_SCALE, QParams, code_range
from quantspec.ptq.conversion import Converter
from quantspec.ptq.placement import Placement
from quantspec.ptq.static import Prepared
from quantspec.ptq.work import Macs

from . import ranks
from .eager import eager
from .grids import Grid, LayerCodes, activation_grid, layer_codes, moved, weight_scale
from .live import Computed, Live, OnCopies, live, still
from .run import Run
from .steps import STEPS
from .weights import LayerWeight, LiveLayer, Sources, key_of

NONE_YET = (float("inf"), float("-inf"))


@dataclass(frozen=True)
class Training:
    """How ranges are trained: the share ``constant`` of the newest batch in a moving average, ``delay``: in how many
    batches activations stay float, ``learned``: whether scales are parameters."""

    constant: float
    delay: int
    learned: bool


class Network(nn.Module):
    """A graph of a model, computed in codes with gradients.

    ``evaluated``: the graph without what acts in training mode only. ``ranges``: float32 [places, 2], the ends observed
    at each place; inf and -inf where there are none. ``batches``: how many batches it was trained on. ``added``:
    parameters for weights that the model computes. ``scales``: the logarithms to base 2 of learned scales of
    activations and weights, where they are, and ``limits`` the codes that activations then have.
    """

    ranges: torch.Tensor
    batches: torch.Tensor
    limits: tuple[int, int]
    frozen: torch.Tensor
    statistics_frozen: torch.Tensor
    zero_points: torch.Tensor
    model: nn.Module
    callables: Callables
    macs: Macs

    def __init__(self, prepared: Prepared, model: nn.Module, training: Training):
        super().__init__()
        self.graph, self.placement, self.options = prepared.graph, prepared.placement, prepared.options
        self.macs, self.how = prepared.macs, training
        self.evaluated = unmarked(self.graph)
        self.__dict__["model"] = model  # whose parameters are registered by whoever holds this
        self.places = {name: index for index, name in enumerate(self.placement.observed)}
        # The places that have one grid: a dict, as each is in the group of all that it is joined with.
        self.groups = list({tuple(self.placement.joined.get(name, [name])): None for name in self.places})
        self.register_buffer("ranges", torch.tensor([ends(prepared, name) for name in self.places]).reshape(-1, 2))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.bool))
        self.register_buffer("statistics_frozen", torch.zeros((), dtype=torch.bool))
        self.added = nn.ParameterDict()
        sources = Sources(model, self.graph.recipes)
        self.layers = {
            node.name: LayerWeight(node, self.graph.folded.get(node.name, ()), sources, self.added)
            for node in self.graph.nodes
            if isinstance(node, float_graph.Layer)
        }
        self.tables, self.cells = self.other_weights(sources)
        self.template, self.grid_places, self.in_float = self.laid_out()
        self.last = last_reads(self.template.steps, refs(self.template.output))
        self.__dict__["callables"] = self.live_callables(sources, self.template.callables)
        acting: Callables = {key: what for act in self.graph.acts.values() for key, what in act.callables.items()}
        self.__dict__["acting"] = self.live_callables(sources, acting)
        self.scales = nn.ParameterDict()
        self.register_buffer("zero_points", torch.zeros(len(self.places), dtype=torch.int64))
        self.scale_names: dict[str, str] = {}
        if training.learned and self.has_ranges():
            self.begin_learning()

    # --- what it is made of

    def other_weights(self, sources: Sources) -> tuple[dict[str, Any], dict[str, Any]]:
        """Where tables of embeddings come from, and the weights of recurrent layers."""
        tables: dict[str, Any] = {}
        cells: dict[str, Any] = {}

        def found(array: np.ndarray | None, layer: str, name: str) -> Any:
            if array is None:
                return None
            if (source := sources.of(array, layer)) is not None:
                return source
            self.added[name] = nn.Parameter(torch.from_numpy(array.copy()))
            return name

        for node in self.graph.nodes:
            if isinstance(node, float_graph.Embedding):
                tables[node.name] = found(node.weight, node.layer, key_of(node.name, "weight"))
            elif isinstance(node, float_graph.Recurrent):
                fields = ("input_weight", "state_weight", "input_bias", "state_bias")
                cells[node.name] = [
                    {of: found(getattr(cell, of), node.layer, key_of(node.name, f"{i}_{of}")) for of in fields}
                    for i, cell in enumerate(node.cells)
                ]
        return tables, cells

    def value(self, where: Any) -> torch.Tensor:
        """The present tensor of a source, or of a parameter of this network's own."""
        tensor: torch.Tensor = self.added[where] if isinstance(where, str) else where.value(self.model)
        return tensor

    def laid_out(self) -> tuple[Program, dict[tuple[str, str], str], dict[str, str]]:
        """The Program's steps; for each grid in it, by step and field, the place whose range it has; and which layers
        stay in float, with the reason."""
        observed = {
            name: Observed(-1.0, 1.0) if (pair := tuple(self.ranges[index].tolist())) == NONE_YET else Observed(*pair)
            for name, index in self.places.items()
        }
        converter = Converter(self.graph, self.placement, observed, self.options, trained=True)
        converted = converter.convert()
        name_of: dict[int, str] = {}
        for name, grid in converter.grids.items():
            name_of.setdefault(id(grid), name)
        places = {}
        for step in converted.steps:
            for field in fields(step):
                value, several = getattr(step, field.name), {}
                if isinstance(value, tuple):
                    several = {f"{field.name}.{index}": item for index, item in enumerate(value)}
                for path, item in (several or {field.name: value}).items():
                    if isinstance(item, QParams) and id(item) in name_of:
                        places[step.name, path] = name_of[id(item)]
        return converted, places, {name: why for name, why in converter.kept.items() if name in self.layers}

    def live_callables(self, sources: Sources, called: Callables) -> Callables:
        """What ``Call`` steps call: the model's own modules and tensors, and layers that stay in float with its present
        weights; those that absorbed others are as they are, for ``call`` to know."""
        now: dict[tuple[str, str], Any] = {}
        layers = {layer.node.layer for layer in self.layers.values()}
        for (kind, path), what in called.items():
            own = live(sources.modules, kind, path)
            if isinstance(what, float_run.FloatLayer):
                own = what if path in layers else LiveLayer(what, sources, self.added)
            elif kind == "attribute" and path in sources.computed:
                own = sources.computed[path]
            elif isinstance(own, Live) and own.tensor.shape != what.shape:
                own = None
            now[kind, path] = what if own is None else own
        return now

    # --- ranges and grids

    def has_ranges(self) -> bool:
        """Whether every place has been observed."""
        return not bool(torch.isinf(self.ranges).any())

    def grids(self) -> dict[str, Grid]:
        """The present grid of each place; places that share one (STA-JOIN) all have it."""
        pairs: list[tuple[float, float]] = self.ranges.tolist()
        grids: dict[str, Grid] = {}
        for group in self.groups:
            first = self.places[group[0]]
            if (learned := self.scale_names.get(group[0])) is not None:
                scale = learned_scale(self.scales[learned], self.placement.place(group[0]))
                grid = Grid(float(scale), int(self.zero_points[first]), *self.limits)
            else:
                lows, highs = zip(*(pairs[self.places[member]] for member in group))
                low, high = min(lows), max(highs)
                try:
                    grid = activation_grid(low, high, self.options)
                except ValueError as error:  # values so large or so small that no scale stands for them
                    place = self.placement.place(group[0])
                    raise CalibrationError(f"{place}: values from {low:.3g} to {high:.3g}: {error}") from error
            for name in group:
                grids[name] = grid
        return grids

    def begin_learning(self) -> None:
        """Makes parameters of the scales that ranges and weights have now (QAT-SCALE)."""
        grids = self.grids()
        for group in self.groups:
            grid, key = grids[group[0]], key_of(group[0], "activation")
            self.scale_names |= dict.fromkeys(group, key)
            self.scales[key] = nn.Parameter(torch.tensor(grid.scale).log2())
            self.zero_points[self.places[group[0]]] = grid.zero_point
            self.limits = grid.qmin, grid.qmax  # of all grids
        for name, layer in self.layers.items():
            if name in self.in_float:
                continue
            with torch.no_grad():
                weight, _ = layer.folded()
                scale = weight_scale(weight, self.options, self.per_channel(weight))
                if self.options.weight_bits < 5:
                    # At few bits the range's end is far beyond most weights: LSQ begins with twice their mean size.
                    flat = weight.abs().flatten(1)
                    _, qmax = code_range(self.options.weight_bits, signed=True)
                    start = 2 * (flat.mean(1) if scale.ndim else flat.mean()) / qmax**0.5
                    scale = torch.where(start > 0, start, scale)
            self.scales[key_of(name, "weight")] = nn.Parameter(scale.log2())

    def per_channel(self, weight: torch.Tensor) -> bool:
        """Whether a weight has a scale for each output."""
        return self.options.per_channel or (weight.ndim > 2 and weight.numel() == len(weight))

    def weight_scales(self, name: str, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scale of a layer's weight, and the parameter that it is where it is learned."""
        scale, learned = self.learned_weight(name)
        if scale is not None:
            return scale, learned
        try:
            return weight_scale(weight, self.options, self.per_channel(weight)), None
        except ValueError as error:
            raise self.of_weight(name, error) from error

    def layer_codes(
        self, name: str, weight: torch.Tensor, bias: torch.Tensor | None, x: Grid, y: Grid | None
    ) -> tuple[LayerCodes, torch.Tensor | None]:
        """A layer in codes, and the parameter that the scale of its weight is where it is learned."""
        scale, learned = self.learned_weight(name)
        try:
            return layer_codes(weight, bias, self.options, self.per_channel(weight), x, y, scale), learned
        except ValueError as error:
            raise self.of_weight(name, error) from error

    def of_weight(self, name: str, error: ValueError) -> ValueError:
        """An error that says of which layer a weight is."""
        return ValueError(f"model: weight of layer {self.layers[name].node.layer!r}: {error}")

    def learned_weight(self, name: str) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The scale that a layer's weight learned, and the parameter that it is; None where its range gives it."""
        if not self.scale_names:
            return None, None
        logarithm = self.scales[key_of(name, "weight")]
        place = f"weight of layer {self.layers[name].node.layer!r}"
        return learned_scale(logarithm, place), torch.exp2(logarithm)

    def observe(self, seen: dict[str, tuple[float, float]], ranges: list[list[float]]) -> None:
        """Moves ``ranges``, which are the present ones, by those of a batch (QAT-RANGE)."""
        for name, found in seen.items():
            if not all(map(math.isfinite, found)):
                raise CalibrationError(f"{self.placement.place(name)}: expected finite values, got {found}")
        for name, found in zip(seen, ranks.widest(list(seen.values()))):
            before, share = ranges[self.places[name]], self.how.constant
            after = [new if math.isinf(old) else moved(old, new, share) for old, new in zip(before, found)]
            ranges[self.places[name]] = after
        self.ranges.numpy()[:] = ranges  # a tensor of a list takes ten times as long

    # --- running

    @eager
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output: of the integer network that it would be converted to now (QAT-EQUAL), or in float where
        ranges are missing or delayed (QAT-DELAY)."""
        named = {**dict(zip(self.graph.inputs, args)), **kwargs}
        if not torch.is_autocast_enabled("cpu"):
            return self.run(named)
        with torch.autocast("cpu", enabled=False):
            return self.run(named)

    def run(self, batch: Any) -> Any:
        run = Run(self)
        values = run.values
        values |= float_run.bind(self.template.inputs, self.template.defaults, batch)
        for step, done in zip(self.template.steps, self.last):
            values[step.name] = STEPS[type(step)](run, step)
            run.note(step)
            for name in done:
                del values[name]
        if self.training:
            with torch.no_grad():
                if run.seen:
                    self.observe(run.seen, run.ranges)
                self.batches.add_(1)
        return replace_refs(self.template.output, values.__getitem__)

    # --- conversion

    @torch.no_grad()
    def converted(self) -> Program:
        """The Program of the present weights, ranges and scales."""
        if not self.has_ranges():
            name = next(name for name, index in self.places.items() if bool(torch.isinf(self.ranges[index]).any()))
            raise CalibrationError(
                f"{self.placement.place(name)} has seen no values; train on a batch or pass calibration batches"
            )
        observers = {name: Observed(*self.ranges[index].tolist()) for name, index in self.places.items()}
        with still(self.model):
            graph = unmarked(self.present_graph())
        converter = Converter(graph, Placement(graph), observers, self.options, self.in_float, trained=True)
        if self.scale_names:
            converter.grids |= {name: grid.qparams for name, grid in self.grids().items()}
            for node in converter.graph.nodes:
                if isinstance(node, float_graph.Layer) and node.name not in self.in_float:
                    converter.weights.give(node.weight, *self.learned_codes(node))
        return converter.convert()

    def learned_codes(self, node: float_graph.Layer) -> tuple[np.ndarray, QParams]:
        """Codes and grid of a weight on its learned scale."""
        learned, _ = self.learned_weight(node.name)
        assert learned is not None
        scale = learned.numpy()
        qmin, qmax = code_range(self.options.weight_bits, signed=True)
        grid = QParams(scale, np.zeros(scale.shape, np.int32), qmin, qmax, 0 if scale.ndim else None)
        codes = self.options.dialect.quantize(
            node.weight, grid.scale, grid.zero_point, qmin=qmin, qmax=qmax, axis=grid.axis
        )
        return codes, grid

    def present_graph(self) -> FloatGraph:
        """The float graph with the present weights, and copies of what it calls."""
        arrays: dict[Any, np.ndarray] = {}

        def array(where: Any) -> np.ndarray | None:
            if where is None:
                return None
            if where not in arrays:
                arrays[where] = self.value(where).detach().contiguous().numpy().copy()
            return arrays[where]

        nodes: list[float_graph.Node] = []
        for node in self.graph.nodes:
            if isinstance(node, float_graph.Layer):
                layer = self.layers[node.name]
                if layer.norms:
                    weight, bias = layer.folded()
                    assert bias is not None
                    both = weight.numpy().copy(), bias.numpy().copy()
                else:
                    both = array(layer.weight), array(layer.bias)  # type: ignore[assignment]  # a layer has a weight
                node = replace(node, weight=both[0], bias=both[1])
            elif isinstance(node, float_graph.Embedding):
                node = replace(node, weight=array(self.tables[node.name]))  # type: ignore[arg-type]
            elif isinstance(node, float_graph.Recurrent):
                cells = [{name: array(where) for name, where in cell.items()} for cell in self.cells[node.name]]
                node = replace(node, cells=tuple(float_graph.FloatCell(**cell) for cell in cells))  # type: ignore[arg-type]
            nodes.append(node)
        called = {key: settled(what) for key, what in self.callables.items() if key in self.graph.callables}
        return replace(self.graph, nodes=tuple(nodes), callables={**self.graph.callables, **called})


def settled(what: Any) -> Any:
    """A copy of what a step calls, in evaluation mode, that shares nothing with the network in training."""
    if isinstance(what, Live | Computed):
        return what.tensor.detach().clone()
    if isinstance(what, LiveLayer):
        return what.settled()
    module = what.module if isinstance(what, OnCopies) else what
    if not isinstance(module, nn.Module):
        return what
    twin = copies.own_copy(module).eval()
    for part in twin.modules():
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010  # torch says that attributes are tensors or modules
    return twin


def sharing(model: nn.Module, paths: Iterable[str]) -> tuple[nn.Module, list[tuple[nn.Module, nn.Module]]]:
    """A copy of a model that shares its parameters, its buffers, and all modules but those of some paths and what they
    are in; and pairs of these and their copies."""
    names = [path.split(".") for path in paths]
    around = {".".join(parts[:depth]) for parts in names for depth in range(len(parts) + 1)}
    own = [model.get_submodule(path) for path in around]
    apart = set(map(id, own))
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(module): module for module in model.modules() if id(module) not in apart}
    twin = copies.tree_copy(model, memo)
    pairs = [(module, memo[id(module)]) for module in own]
    for module, other in pairs:
        # The same dicts, as a parameter or a buffer may be replaced, by either.
        other.__dict__ |= {"_parameters": module._parameters, "_buffers": module._buffers}
    return twin, pairs


class Observed:
    """An observer that has seen a range."""

    def __init__(self, low: float, high: float):
        self.ends = np.array(low, np.float32), np.array(high, np.float32)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        return self.ends


def ends(prepared: Prepared, name: str) -> tuple[float, float]:
    """What calibration observed at a place, or nothing yet."""
    try:
        low, high = prepared.observers[name].range()
    except CalibrationError:
        return NONE_YET
    return float(low), float(high)


def learned_scale(logarithm: torch.Tensor, place: str) -> torch.Tensor:
    """The scale of a parameter, which is its logarithm to base 2. Raises ValueError naming its place where training has
    left none in the range of scales."""
    scale = torch.exp2(logarithm.detach())
    if not bool(((scale >= SMALLEST_SCALE) & (scale <= LARGEST_SCALE)).all()):
        raise ValueError(f"{place}: its learned scale became {float(scale.min())}; use a lower learning rate")
    return scale
