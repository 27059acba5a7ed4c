"""The float graph and what was observed, as a Program (chapter 5, "Three steps" and "What gets which qparams")."""

import copy
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.errors import CalibrationError, UnsupportedError
from quantspec.ir import float_graph, float_run, program
from quantspec.ir.float_graph import FloatGraph, Layer
from quantspec.ir.float_run import float_calls
from quantspec.ir.held import changed
from quantspec.ir.program import Call, Callables, Dequantize, Program, Quantize, Ref
from quantspec.ir.traverse import reads, refs, replace_refs
from quantspec.kernels.memory import codes_with_room
from quantspec.numerics.affine import QParams, code_range
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.integer import blocks_of_rows, check_overflow, quantize_bias
from quantspec.numerics.observers import MinMaxObserver

from .attending import with_attention
from .options import Options
from .placement import SPLITTING, Placement, own_reads


def weight_codes(
    weight: np.ndarray, dialect: Dialect, *, per_channel: bool, bits: int = 8
) -> tuple[np.ndarray, QParams]:
    """int8 codes of a weight [outputs, ...] and their grid (STA-WEIGHT). Raises CalibrationError for NaN and
    infinities."""
    axis = 0 if per_channel else None
    qmin, qmax = code_range(bits, signed=True)
    if not weight.size:
        low = high = np.zeros(len(weight) if per_channel else (), np.float32)
    elif per_channel:
        ranges = [MinMaxObserver(axis).observe(weight[rows]).range() for rows in blocks_of_rows(weight)]
        low, high = map(np.concatenate, zip(*ranges))
    else:
        low, high = MinMaxObserver().observe(weight).range()
    grid = dialect.qparams(low, high, qmin=qmin, qmax=qmax, symmetric=True, axis=axis)
    return codes_on(weight, grid, dialect), grid


def codes_on(weight: np.ndarray, grid: QParams, dialect: Dialect) -> np.ndarray:
    """int8 codes of a weight [outputs, ...] on a grid, made in blocks of rows, where they can be packed later."""
    codes = codes_with_room(weight.shape)
    for rows in blocks_of_rows(weight):
        scale, zero_point = (a[rows] if grid.axis == 0 and a.ndim else a for a in (grid.scale, grid.zero_point))
        codes[rows] = dialect.quantize(
            weight[rows], scale, zero_point, qmin=grid.qmin, qmax=grid.qmax, axis=grid.axis
        )
    return codes


Rename = Callable[[str], str]
# What is computed on codes of its own, wherever a step of codes reads it.
Computed = float_graph.Add | float_graph.Mul | float_graph.Concat | float_graph.Elementwise


def with_room_for_bias(
    node: Layer, codes: np.ndarray, grid: QParams, x: QParams, dialect: Dialect
) -> tuple[np.ndarray, QParams]:
    """Codes and grid of a layer's weight in which no channel's scale is too small for its bias (STA-WEIGHT-BIAS)."""
    if node.bias is None or grid.axis is None:
        return codes, grid
    raised = grid_with_room(node.weight, node.bias, grid, x)
    return (codes, grid) if raised is grid else (codes_on(node.weight, raised, dialect), raised)


def grid_with_room(weight: np.ndarray, bias: np.ndarray, grid: QParams, x: QParams) -> QParams:
    """The same of a weight that has a scale for each channel; ``grid`` itself where no scale is too small."""
    least = np.abs(bias, dtype=np.float64) / (np.float64(x.scale) * 2.0**30)
    nearest = least.astype(np.float32)
    floor = np.where(nearest < least, np.nextafter(nearest, np.float32(np.inf)), nearest).astype(np.float32)
    empty = ~weight.any(axis=tuple(range(1, weight.ndim))) & (bias != 0)
    scale = np.where(empty, np.maximum(floor, np.float32(2.0**-100)), np.maximum(grid.scale, floor))
    if np.array_equal(scale, grid.scale) or not np.isfinite(scale).all():
        return grid
    return QParams(scale, grid.zero_point, grid.qmin, grid.qmax, grid.axis)


class Weights:
    """The codes of weights; a shared weight is one array of codes."""

    def __init__(self, options: Options):
        self.options = options
        # By the identity of the weight, which is held so that it stays its own; codes only as long as a step has them,
        # whose memory is given up where they are packed.
        self.quantized: dict[int, tuple[np.ndarray, Callable[[], np.ndarray | None], QParams]] = {}

    def codes(self, weight: np.ndarray, layer: str) -> tuple[np.ndarray, QParams]:
        """``weight_codes``; ValueError naming the layer when they hold NaN or infinities."""
        if id(weight) in self.quantized:
            _, existing, grid = self.quantized[id(weight)]
            if (codes := existing()) is not None:
                return codes, grid
        # Where each output has a single weight, a scale for each loses nothing, and one for all nearly everything
        # (FUS-ALONE).
        per_channel = self.options.per_channel or (weight.ndim > 2 and weight.size == len(weight))
        try:
            bits = self.options.weight_bits
            codes, grid = weight_codes(weight, self.options.dialect, per_channel=per_channel, bits=bits)
        except (CalibrationError, ValueError) as error:
            raise ValueError(f"model: weight of layer {layer!r}: {error}") from error
        self.quantized[id(weight)] = weight, weakref.ref(codes), grid
        return codes, grid

    def give(self, weight: np.ndarray, codes: np.ndarray, grid: QParams) -> None:
        """Has a weight these codes."""
        self.quantized[id(weight)] = weight, lambda: codes, grid


def embedding_step(node: float_graph.Embedding, options: Options, x: str, rename: Rename) -> program.Embedding:
    """A table of codes, with a scale for each row. ``rename`` gives the present names of the values that it reads."""
    codes, grid = Weights(replace(options, per_channel=True)).codes(node.weight, node.layer)
    offsets, weights = (None if name is None else rename(name) for name in (node.offsets, node.weights))
    return program.Embedding(
        node.name, x, node.layer, codes, grid, node.bag, offsets, weights, node.include_last_offset, node.padding_idx
    )


def recurrent_step(
    node: float_graph.Recurrent, weights: Weights, options: Options, x: str, rename: Rename
) -> program.Recurrent:
    """A recurrent network with the codes of its weights. ``rename`` gives the present names of the values it reads."""
    cells = tuple(
        program.Cell(
            *weights.codes(cell.input_weight, node.layer), cell.input_bias,
            *weights.codes(cell.state_weight, node.layer), cell.state_bias,
        )
        for cell in node.cells
    )  # fmt: skip
    state = replace_refs(node.state, lambda name: Ref(rename(name)))
    return program.Recurrent(
        node.name, x, state, node.layer, node.kind, cells, node.bidirectional, node.batch_first,
        options.reduce_range, node.single,
    )  # fmt: skip


def with_own_biases(network: Program) -> Program:
    """The network with copies of its biases, which were the model's; a shared one is one copy."""
    copies: dict[int, np.ndarray] = {}
    steps = tuple(own_biases(step, copies) for step in network.steps)
    return replace(network, steps=steps)


def own_biases(step: Any, copies: dict[int, np.ndarray]) -> Any:
    """A step, or a cell of one, with copies of its biases."""
    names = [name for name in ("bias", "input_bias", "state_bias") if vars(step).get(name) is not None]
    changes: dict[str, Any] = {name: copies.setdefault(id(vars(step)[name]), vars(step)[name].copy()) for name in names}
    if isinstance(step, program.Recurrent):
        changes["cells"] = tuple(own_biases(cell, copies) for cell in step.cells)
    return changed(step, **changes) if changes else step


class Converter:
    """Emits the steps. Values are made as codes or floats when a step asks for them, so that no conversion is made
    twice.

    ``prepared``: the layers that stay in float, each with the reason, and no other may; None where it is for their
    accumulators to say. ``trained``: it is for training, or what became of it.
    """

    def __init__(
        self, graph: FloatGraph, placement: Placement, observers: dict[str, Any], options: Options,
        prepared: dict[str, str] | None = None, *, trained: bool = False,
    ):  # fmt: skip
        self.graph, self.placement, self.observers, self.options = graph, placement, observers, options
        self.dialect, self.prepared, self.trained = options.dialect, prepared, trained
        self.producers, self.sources = placement.nodes, placement.sources
        self.steps: list[program.Step] = []
        self.codes: dict[str, str] = {}
        self.floats: dict[str, str] = {name: name for name in graph.inputs}
        self.grids: dict[str, QParams] = {}
        self.weights = Weights(options)
        self.callables = dict(graph.callables)
        self.kept: dict[str, str] = {}

    def convert(self) -> Program:
        for node in self.graph.nodes:
            if isinstance(node, Layer):
                self.layer(node)
            elif node.name in self.placement.coded and isinstance(node, Computed):
                if all(self.sources[name] not in self.kept for name in own_reads(node)):
                    self.as_codes(node.name)
                else:
                    self.kept[node.name] = "it reads what stays in float"
            elif isinstance(node, (Call, float_graph.Embedding, float_graph.Recurrent)):
                self.as_float(node.name)
        output = replace_refs(self.graph.output, lambda name: Ref(self.as_float(name)))
        steps = tuple(without_unread_sizes(self.steps, output))
        inputs, defaults = self.graph.inputs, self.graph.defaults
        network = Program(self.dialect.name, inputs, defaults, steps, output, self.callables)
        return with_attention(network, written_out=not self.trained)

    def grid(self, name: str) -> QParams:
        """The grid of a value: that of the observed value which it has it from, or the one that it shares with joins
        (STA-JOIN)."""
        name = self.sources[name]
        if name not in self.grids:
            group = self.placement.joined.get(name, (name,))
            lows, highs = zip(*map(self.observed_range, group))
            reduce_range, bits = self.options.reduce_range, self.options.bits
            low, high = min(lows), max(highs)
            try:
                grid = self.dialect.activation_qparams(low, high, reduce_range=reduce_range, bits=bits)
            except ValueError as error:  # values so large or so small that no scale stands for them
                place = self.placement.place(name)
                raise CalibrationError(f"{place}: values from {low:.3g} to {high:.3g}: {error}") from error
            self.grids |= dict.fromkeys(group, grid)
        return self.grids[name]

    def observed_range(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of what was observed at a place."""
        try:
            low, high = self.observers[name].range()
        except CalibrationError as error:
            place = self.placement.place(name)
            raise CalibrationError(f"{place}: {error}; call the network with calibration data first") from error
        return low, high

    def layer(self, node: Layer) -> None:
        if self.prepared is not None and node.name in self.prepared:
            self.keep(node, self.prepared[node.name])
            return
        x = self.grid(node.x)
        weight, w = with_room_for_bias(node, *self.weights.codes(node.weight, node.layer), x, self.dialect)
        bias_q = quantize_bias(np.zeros(len(weight)) if node.bias is None else node.bias, x.scale, w.scale)
        try:
            check_overflow(x, weight, w, bias_q)
        except UnsupportedError as error:
            if self.prepared is not None:
                raise UnsupportedError(f"layer {node.layer!r}: {error}") from error
            self.keep(node, str(error))
            return
        direct = node.name in self.placement.direct
        y = None if direct else self.grid(node.name)
        layer = node.name, self.as_codes(node.x), node.layer, weight, node.bias, x, w, y, node.relu
        if isinstance(node, float_graph.Linear):
            self.steps.append(program.Linear(*layer, node.flat))
        else:
            places = node.stride, node.padding, node.dilation, node.input_dilation, node.groups
            self.steps.append(program.Conv(*layer, *places))
        (self.floats if direct else self.codes)[node.name] = node.name

    def keep(self, node: Layer, reason: str) -> None:
        """The layer in float, with the reason."""
        calls, called = float_calls(replace(node, x=self.as_float(node.x)), reason)
        self.callables |= called
        self.steps += calls
        self.kept[node.name] = reason
        self.floats[node.name] = node.name

    def as_codes(self, name: str) -> str:
        """The step that has the value as codes, made if there is none."""
        if name not in self.codes:
            node = self.producers.get(name)
            on_codes = self.has_codes(name) or self.sources[name] != name
            if node is not None and on_codes:
                step = self.code_step(node)
            else:
                step = Quantize(f"{name}.codes", self.as_float(name), self.grid(name))
            self.steps.append(step)
            self.codes[name] = step.name
        return self.codes[name]

    def code_step(self, node: float_graph.Node) -> program.Step:
        """The step that computes a node on codes."""
        name, new = node.name, f"{node.name}.codes"
        if isinstance(node, float_graph.Move):
            call = self.renamed_call(node.call, lambda n: self.codes_or_float(n, node.x))
            return program.Move(new, call.kind, call.target, call.args, call.kwargs, self.grid(name))
        if isinstance(node, float_graph.Relu):
            return program.Relu(new, self.as_codes(node.x), self.grid(name))
        if isinstance(node, float_graph.Pool):
            return self.pool(node, new)
        if isinstance(node, float_graph.Bilinear):
            like = None if node.like is None else self.as_codes(node.like)
            lengths = like, node.size, node.factors, node.exact, node.align_corners
            return program.Bilinear(new, self.as_codes(node.x), self.grid(name), *lengths)
        if isinstance(node, (float_graph.Add, float_graph.Mul)):
            pair = self.as_codes(node.a), self.as_codes(node.b), self.grid(node.a), self.grid(node.b), self.grid(name)
            return program.Add(new, *pair, node.relu) if isinstance(node, float_graph.Add) else program.Mul(new, *pair)
        if isinstance(node, float_graph.Concat):
            parts = tuple(map(self.as_codes, node.xs)), tuple(map(self.grid, node.xs))
            return program.Concat(new, *parts, self.grid(name), node.axis)
        assert isinstance(node, float_graph.Elementwise), "layers have been converted when they were met"
        x, y = self.grid(node.x), self.grid(name)
        codes = table(node, self.callables, x, y, self.dialect)
        return program.Table(new, self.as_codes(node.x), node.function, codes, x, y)

    def pool(self, node: float_graph.Pool, name: str) -> program.Step:
        """The step that pools codes."""
        x = self.as_codes(node.x)
        if isinstance(node, float_graph.MaxPool):
            return program.MaxPool(name, x, node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode)
        grid = self.grid(node.name)
        if isinstance(node, float_graph.AvgPool):
            places = node.kernel, node.stride, node.padding, node.ceil_mode, node.count_include_pad
            return program.AvgPool(name, x, grid, *places)
        if isinstance(node, float_graph.AdaptiveAvgPool):
            return program.AdaptiveAvgPool(name, x, grid, node.size)
        return program.Mean(name, x, grid, node.axes, node.keepdim)

    def codes_or_float(self, name: str, moved: str) -> str:
        """What a rearrangement reads: codes of what it rearranges, other values (sizes, indices) as they are."""
        return self.as_codes(name) if name == moved else self.as_float(name)

    def as_float(self, name: str) -> str:
        """The step that has the value as a float, made if there is none."""
        if name not in self.floats:
            node = self.producers[name]
            step = self.float_step(node)
            if isinstance(node, float_graph.Add) and node.relu and isinstance(step, Call):
                self.steps.append(replace(step, name=f"{name}.sum"))
                self.callables["function", "torch.relu"] = torch.relu
                step = Call(name, "function", "torch.relu", (Ref(f"{name}.sum"),), {}, step.reason)
            self.steps.append(step)
            self.floats[name] = step.name
        return self.floats[name]

    def float_step(self, node: float_graph.Node) -> program.Step:
        """The step that makes a node's value in float."""
        if self.has_codes(node.name) and not splits(node, self.producers):
            return Dequantize(f"{node.name}.float", self.as_codes(node.name), self.grid(node.name))
        if isinstance(node, float_graph.Embedding):
            return embedding_step(node, self.options, self.as_float(node.x), self.as_float)
        if isinstance(node, float_graph.Recurrent):
            return recurrent_step(node, self.weights, self.options, self.as_float(node.x), self.as_float)
        if isinstance(node, float_graph.Shape):
            read = self.codes.get(node.x) or self.as_float(node.x)
            call = self.renamed_call(node.call, lambda n: read if n == node.x else self.as_float(n))
            return replace(call, reason="")
        assert not isinstance(node, Layer), "layers have been converted, or kept in float, when they were met"
        return self.renamed_call(node if isinstance(node, Call) else node.call, self.as_float)

    def renamed_call(self, call: Call, rename: Rename) -> Call:
        """The call reading what its values are called now."""
        args, kwargs = (replace_refs(tree, lambda n: Ref(rename(n))) for tree in (call.args, call.kwargs))
        return replace(call, args=args, kwargs=kwargs)

    def has_codes(self, name: str) -> bool:
        """Whether the value is computed in codes: a layer's output, or what rearranges, clamps, pools or joins some."""
        return name in self.placement.coded and name not in self.kept and self.sources[name] not in self.kept


def without_unread_sizes(steps: list[program.Step], output: Any) -> list[program.Step]:
    """The steps without those that only tell a shape, or an item of one, to nobody: an interpolation on codes asks the
    value itself for its lengths."""
    read, kept = set(refs(output)), []
    sizes: set[str] = set()
    for step in steps:
        if isinstance(step, Call) and (tells_shape(step) or takes_from(step, sizes)):
            sizes.add(step.name)
    for step in reversed(steps):
        if step.name in read or step.name not in sizes:
            kept.append(step)
            read.update(reads(step))
    return kept[::-1]


def tells_shape(step: Call) -> bool:
    """Whether a call gives the shape of a value, or a length of it."""
    return step.target == "builtins.getattr" and step.args[1:] == ("shape",) or step.target == "size"


def takes_from(step: Call, sizes: set[str]) -> bool:
    """Whether a call takes an item of what one of these gives."""
    return step.target == "operator.getitem" and isinstance(step.args[0], Ref) and step.args[0].name in sizes


def splits(node: float_graph.Node | None, producers: dict[str, float_graph.Node]) -> bool:
    """Whether a node gives a tuple of values: what splits one, or takes several of a tuple's items."""
    if not isinstance(node, float_graph.Move):
        return False
    several = node.call.target == "operator.getitem" and isinstance(node.call.args[1], slice)
    return node.call.target in SPLITTING or (several and splits(producers.get(node.x), producers))


def table(node: float_graph.Elementwise, callables: Callables, x: QParams, y: QParams, dialect: Dialect) -> np.ndarray:
    """The output code of each of 256 input codes, uint8 (256,) (INT-TABLE), or (channels, 256) where each channel has
    a function of its own (INT-TABLE-CHANNEL): the function in float64, rounded to float32, quantized as the dialect
    does.

    Codes beyond the input's range, which cannot occur, have that of the nearest end. A function's NaN is refused with a
    ValueError.
    """
    codes = np.clip(np.arange(256), x.qmin, x.qmax)
    real = torch.from_numpy(np.asarray(x.scale, np.float64) * (codes - int(x.zero_point)))
    if node.channels is not None:
        real = real[:, None].expand(len(codes), node.channels)
    what = callables.get((node.call.kind, node.call.target))
    if isinstance(what, nn.Module):
        callables = {**callables, (node.call.kind, node.call.target): copy.deepcopy(what).double()}
    with torch.no_grad():
        values = float_run.call_float(node.call, callables, lambda _: real).to(torch.float32).numpy()
    values = np.ascontiguousarray(values.T)
    if np.isnan(values).any():
        place = f"{node.function} at {node.name!r}"
        raise ValueError(f"model: {place} is NaN for some of the values observed before it")
    return dialect.quantize(values, y.scale, y.zero_point, qmin=y.qmin, qmax=y.qmax)
