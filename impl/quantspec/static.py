"""Static quantization: prepare, calibrate, convert (chapter 5)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from . import capture, fusion
from .affine import QParams, code_range
from .capture import FloatGraph, run
from .dialects import Dialect, dialect as find_dialect
from .errors import CalibrationError, UnsupportedError
from .integer import check_overflow, quantize_bias
from .module import QuantizedModule, progress
from .observers import HistogramObserver, MinMaxObserver, MovingAverageObserver, MSEObserver, PercentileObserver
from .program import Call, Dequantize, Flatten, Linear, Program, Quantize, Ref, Relu, replace_refs

Observer = MinMaxObserver | MovingAverageObserver | HistogramObserver | PercentileObserver | MSEObserver


class Prepared(nn.Module):
    """A float network with observers: calling it gives the float output and observes. Made by ``prepare``, ended by ``convert``."""

    def __init__(self, graph: FloatGraph, observer: Observer, per_channel: bool, reduce_range: bool, dialect: Dialect):
        super().__init__()
        self.eval()
        self.graph, self.dialect = graph, dialect
        self.per_channel, self.reduce_range = per_channel, reduce_range
        self.observers = dict.fromkeys(observed(graph), observer)

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """The float network's output. Raises CalibrationError naming the place where a NaN or an infinity passed (OBS-FINITE)."""
        return self.observe({**dict(zip(self.graph.inputs, args)), **kwargs})

    def observe(self, batch: Any) -> Any:
        """``forward`` for a batch as calibration data has it; nothing is observed when any observer refuses."""
        fresh = dict(self.observers)

        def see(name: str, value: torch.Tensor) -> None:
            if name in fresh:
                try:
                    fresh[name] = fresh[name].observe(value.detach().numpy())
                except CalibrationError as error:
                    raise CalibrationError(f"{self.place(name)}: {error}") from error

        output = run(self.graph, batch, see)
        self.observers = fresh
        return output

    def place(self, name: str) -> str:
        """How to call the place of a value in a message."""
        if name in self.graph.inputs:
            return f"input {name!r}"
        layers = {node.name: node.layer for node in self.graph.nodes if isinstance(node, capture.Linear)}
        return f"output of layer {layers[name]!r}" if name in layers else f"value {name!r}"


def prepare(
    model: nn.Module,
    *,
    fuse: bool = True,
    per_channel: bool = True,
    reduce_range: bool = False,
    observer: Observer = MinMaxObserver(),
    dialect: str = "onnx",
) -> Prepared:
    """A float network with one observer at each place that will be quantized (STA-STEPS). The model is not modified (STA-UNTOUCHED).

    ``fuse``: layers absorb the normalization and ReLU behind them. ``per_channel``: one weight scale for each output channel.
    ``reduce_range``: 7-bit activations (STA-REDUCE). ``observer``: an observer that has seen nothing.
    ``dialect``: the choices of chapter 10. Raises as ``capture`` does, ValueError for an unknown dialect.
    """
    choices = find_dialect(dialect)
    if not isinstance(observer, Observer):
        raise TypeError(f"observer: expected an observer such as MinMaxObserver(), got {observer!r}")
    if seen_something(observer) or getattr(observer, "axis", None) is not None:
        raise ValueError("observer: expected a per-tensor observer that has seen nothing")
    graph = capture.capture(model)
    return Prepared(fusion.fuse(graph) if fuse else graph, observer, per_channel, reduce_range, choices)


def seen_something(observer: Observer) -> bool:
    """Whether an observer has a range."""
    try:
        observer.range()
    except CalibrationError:
        return False
    return True


def convert(prepared: Prepared) -> QuantizedModule:
    """The quantized network of a calibrated one (STA-STEPS); the calibrated one can go on being used (STA-NO-LEAK).

    A layer whose accumulators could overflow stays in float, with that as the reason (STA-OVERFLOW).
    Raises CalibrationError naming a place that saw no data (STA-CALIBRATED), ValueError naming a layer whose weights hold NaN.
    """
    converter = _Converter(prepared)
    return QuantizedModule(converter.convert(), converter.callables)


def quantize(model: nn.Module, calibration: Iterable, **options: Any) -> QuantizedModule:
    """``model`` in int8: ``prepare``, every batch of ``calibration``, ``convert``. Options are those of ``prepare``.

    ``calibration``: any iterable of batches; a batch is a tensor, a tuple of positional inputs (surplus entries such as targets
    are ignored), or a dict of keyword inputs. A tensor or an array is refused with a TypeError, as its rows would count as batches.
    """
    if isinstance(calibration, (torch.Tensor, np.ndarray, str, dict)) or not isinstance(calibration, Iterable):
        raise TypeError(f"calibration: expected an iterable of batches, got {type(calibration).__name__}; pass [batch] for one batch")
    prepared = prepare(model, **options)
    for batch in progress(calibration, "calibrate"):
        prepared.observe(batch)
    return convert(prepared)


def weight_codes(weight: np.ndarray, dialect: Dialect, *, per_channel: bool) -> tuple[np.ndarray, QParams]:
    """int8 codes of a weight [outputs, ...] and their grid (STA-WEIGHT). Raises CalibrationError for NaN and infinities."""
    axis = 0 if per_channel else None
    qmin, qmax = code_range(8, signed=True)
    if weight.size:
        low, high = MinMaxObserver(axis).observe(weight).range()
    else:
        low = high = np.zeros(len(weight) if per_channel else ())
    grid = dialect.qparams(low, high, qmin=qmin, qmax=qmax, symmetric=True, axis=axis)
    return dialect.quantize(weight, grid.scale, grid.zero_point, qmin=qmin, qmax=qmax, axis=axis), grid


def layer_codes(node: capture.Linear, dialect: Dialect, per_channel: bool) -> tuple[np.ndarray, QParams]:
    """``weight_codes`` of a layer; ValueError naming it when they hold NaN or infinities."""
    try:
        return weight_codes(node.weight, dialect, per_channel=per_channel)
    except CalibrationError as error:
        raise ValueError(f"model: weight of layer {node.layer!r}: {error}") from error


def source(graph: FloatGraph) -> dict[str, str]:
    """For each value the one whose grid it has: its own, or what it flattens or clamps (STA-SAME-GRID)."""
    linear = {node.name for node in graph.nodes if isinstance(node, capture.Linear)}
    sources = {name: name for name in graph.inputs}
    for node in graph.nodes:
        kept = isinstance(node, capture.Flatten) or (isinstance(node, capture.Relu) and sources[node.x] in linear)
        sources[node.name] = sources[node.x] if kept else node.name
    return sources


def observed(graph: FloatGraph) -> list[str]:
    """The values that need an observer: what feeds a layer, and what a layer gives (STA-STEPS)."""
    sources = source(graph)
    places: dict[str, None] = {}
    for node in graph.nodes:
        if isinstance(node, capture.Linear):
            places |= {sources[node.x]: None, node.name: None}
    return list(places)


class _Converter:
    """Emits the steps. Values are made as codes or floats when a step asks for them, so that no conversion is made twice."""

    def __init__(self, prepared: Prepared):
        self.prepared, self.graph, self.dialect = prepared, prepared.graph, prepared.dialect
        self.producers = {node.name: node for node in self.graph.nodes}
        self.sources = source(self.graph)
        self.steps: list = []
        self.codes: dict[str, str] = {}
        self.floats: dict[str, str] = {name: name for name in self.graph.inputs}
        self.grids: dict[str, QParams] = {}
        self.weights: dict[int, tuple[np.ndarray, QParams]] = {}
        self.callables = dict(self.graph.callables)
        self.kept: set[str] = set()

    def convert(self) -> Program:
        for node in self.graph.nodes:
            if isinstance(node, capture.Linear):
                self.linear(node)
            elif isinstance(node, Call):
                self.as_float(node.name)
        output = replace_refs(self.graph.output, lambda name: Ref(self.as_float(name)))
        return Program(self.dialect.name, self.graph.inputs, self.graph.defaults, tuple(self.steps), output)

    def grid(self, name: str) -> QParams:
        """The grid of an observed value."""
        if name not in self.grids:
            try:
                ends = self.prepared.observers[name].range()
            except CalibrationError as error:
                raise CalibrationError(f"{self.prepared.place(name)}: {error}; run calibration data through it first") from error
            self.grids[name] = self.dialect.activation_qparams(*ends, reduce_range=self.prepared.reduce_range)
        return self.grids[name]

    def linear(self, node: capture.Linear) -> None:
        if id(node.weight) not in self.weights:  # a shared weight is one array of codes
            self.weights[id(node.weight)] = layer_codes(node, self.dialect, self.prepared.per_channel)
        weight, w = self.weights[id(node.weight)]
        x, y = self.grid(self.sources[node.x]), self.grid(node.name)
        bias_q = quantize_bias(np.zeros(len(weight)) if node.bias is None else node.bias, x.scale, w.scale)
        try:
            check_overflow(x, weight, w, bias_q)
        except UnsupportedError as error:
            self.keep(node, str(error))
            return
        codes = self.as_codes(node.x)
        self.steps.append(Linear(node.name, codes, node.layer, weight, node.bias, x, w, y, node.relu))
        self.codes[node.name] = node.name

    def keep(self, node: capture.Linear, reason: str) -> None:
        """The layer in float, with the reason."""
        calls, called = capture.float_calls(replace(node, x=self.as_float(node.x)), reason)
        self.callables |= called
        self.steps += calls
        self.kept.add(node.name)
        self.floats[node.name] = node.name

    def as_codes(self, name: str) -> str:
        """The step that has the value as codes, made if there is none."""
        if name not in self.codes:
            node, grid = self.producers.get(name), self.grid(self.sources[name])
            if isinstance(node, capture.Flatten):
                step = Flatten(f"{name}.codes", self.as_codes(node.x), node.start, node.end)
            elif isinstance(node, capture.Relu) and self.sources[name] != name:
                step = Relu(f"{name}.codes", self.as_codes(node.x), grid)
            else:
                step = Quantize(f"{name}.codes", self.as_float(name), grid)
            self.steps.append(step)
            self.codes[name] = step.name
        return self.codes[name]

    def as_float(self, name: str) -> str:
        """The step that has the value as a float, made if there is none."""
        if name not in self.floats:
            node = self.producers[name]
            if self.has_codes(name):
                step = Dequantize(f"{name}.float", self.as_codes(name), self.grid(self.sources[name]))
            else:
                step = node if isinstance(node, Call) else node.call
                args, kwargs = (replace_refs(tree, lambda n: Ref(self.as_float(n))) for tree in (step.args, step.kwargs))
                step = Call(step.name, step.kind, step.target, args, kwargs, step.reason)
            self.steps.append(step)
            self.floats[name] = step.name
        return self.floats[name]

    def has_codes(self, name: str) -> bool:
        """Whether the value is computed in codes: a layer's output, or what flattens or clamps one."""
        source = self.sources[name]
        return source not in self.kept and isinstance(self.producers.get(source), capture.Linear)
