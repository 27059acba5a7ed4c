"""Static quantization: prepare, calibrate, convert (chapter 5)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from quantspec.capture import calls, copies, tracer
from quantspec.engines.tensors import array, float_address
from quantspec.errors import CalibrationError, expected_one_of, flag, near_names
from quantspec.ir import float_run
from quantspec.ir.float_graph import FloatGraph
from quantspec.ir.program import Program
from quantspec.module.islands import QuantizedModel
from quantspec.module.module import QuantizedModule
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
)
from quantspec.progress import progress
from quantspec.surroundings import usual

from . import fusion
from .captured import NOTHING, Captured, named
from .conversion import Converter, with_own_biases
from .exclude import listed, without, without_empty
from .options import Options, checked
from .placement import Placement
from .work import NO_PART, Macs, PerNode, Programs, nothing_in, report_of_network, report_of_parts, warn_of_float

Observer = MinMaxObserver | MovingAverageObserver | HistogramObserver | PercentileObserver | MSEObserver


class Prepared(nn.Module):
    """A float network with observers, made by ``prepare`` and converted by ``convert``. A call returns the float output
    and observes the activations.
    """

    capture: "Captured[Prepared] | None"
    macs: Macs  # of each node on the first batch, where this is the whole network

    def __init__(
        self, graph: FloatGraph, observer: Observer, options: Options, capture: "Captured[Prepared] | None" = None
    ):
        super().__init__()
        self.eval()
        self.graph, self.options, self.macs = graph, options, {}
        self.placement = Placement(graph)
        self.observers = dict.fromkeys(self.placement.observed, observer)
        # A plain attribute, since the model in it is none of this network's parts.
        self.__dict__["capture"] = capture

    @property
    def dialect(self) -> Dialect:
        """The dialect (chapter 10) that the network will be converted to."""
        return self.options.dialect

    @usual
    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """The float network's output. Raises CalibrationError naming the place where a NaN or an infinity passed
        (OBS-FINITE)."""
        args, kwargs = calls.dense(args, kwargs)
        if (undecided := self.undecided()) is not None:
            return undecided.observe(self, args, kwargs)
        return self.observe_graph(named(self.graph.inputs, args, kwargs))

    @usual
    def observe(self, batch: Any) -> Any:
        """Observes one batch in the form that ``quantize`` takes. When an observer raises, nothing is observed."""
        assert self.capture is not None, "a part of a model, which observes graphs"
        if not self.capture.whole_agrees:
            return self.capture.observe_batch(self, batch)
        return self.observe_graph(self.capture.as_given(batch))

    def observe_and_count(self, batch: Any) -> Any:
        """``observe_graph``, with the work of each node counted."""
        nodes = PerNode()
        output = self.observe_graph(batch, nodes.compute)
        self.macs = nodes.macs
        return output

    def undecided(self) -> "Captured[Prepared] | None":
        """What observes unless a batch has shown the graph to be the model."""
        return None if self.capture is None or self.capture.whole_agrees else self.capture

    def observe_graph(self, batch: Any, compute: float_run.Compute = float_run.run_node) -> Any:
        """The float graph's output, observed; ``compute`` gives the value of a node."""
        fresh = dict(self.observers)

        def see(name: str, value: torch.Tensor) -> None:
            if name in fresh:
                try:
                    fresh[name] = observed(fresh[name], value)
                except (CalibrationError, TypeError) as error:
                    raise type(error)(f"{self.placement.place(name)}: {error}") from error

        random = torch.get_rng_state()  # an operation of the graph may draw from it
        try:
            output = float_run.run(self.graph, batch, see, compute)
        finally:
            torch.set_rng_state(random)
        self.observers = fresh
        return output


def observed(observer: Observer, value: torch.Tensor) -> Observer:
    """The observer that has also seen a tensor."""
    # Microseconds count where the network is small, and everything but this question takes several.
    if type(observer) is MinMaxObserver and value.numel() and (start := float_address(value)):
        return observer.observe_at(start, value.numel())
    return observer.observe(array(value, "a value that is observed"))


@near_names
def prepare(
    model: nn.Module,
    *,
    fuse: bool = True,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    observer: Observer = MinMaxObserver(),
    dialect: str = "onnx",
    bits: int = 8,
    weight_bits: int | None = None,
    exclude: str | Sequence[str] = (),
    engine: str = "auto",
) -> Prepared:
    """A float network with one observer at each place that will be quantized (STA-STEPS).

    Call it with calibration data, then pass it to ``convert``. ``quantize`` does all three steps. The model is not
    modified (STA-UNTOUCHED). The options, and the errors for them, are those of ``quantize``.
    """
    options = checked(
        per_channel=per_channel, reduce_range=reduce_range, dialect=dialect, bits=bits, weight_bits=weight_bits,
        engine=engine,
    )  # fmt: skip
    return observing(model, options, observer, fuse=fuse, exclude=exclude)


@usual
def observing(
    model: nn.Module, options: Options, observer: Observer, *, fuse: bool, exclude: str | Sequence[str],
    share: bool = False, acts: bool = False,
) -> Prepared:  # fmt: skip
    """``prepare`` with checked options; ``share``: the network is converted before anybody changes the model, whose
    weights need not be copied then, where its modules are torch.nn's own; ``acts``: with what acts in training mode
    only (QAT-ACTS)."""
    if not isinstance(observer, Observer):
        raise TypeError(expected_one_of("observer", [f"{kind.__name__}()" for kind in get_args(Observer)], observer))
    if seen_something(observer) or getattr(observer, "axis", None) is not None:
        raise ValueError("observer: expected a per-tensor observer without observed values")
    if isinstance(observer, (MSEObserver, HistogramObserver)):  # which search with the codes to be (STA-SEARCH)
        observer = replace(observer, qmin=0, qmax=2 ** (options.bits - options.reduce_range) - 1)
    patterns, fuse = listed(exclude), flag(fuse, "fuse")
    tracer.check_model(model)
    model = copies.own_copy(copies.inside(model), share=share)

    def ready(graph: FloatGraph) -> FloatGraph:
        kept = without_empty(without(graph, model, patterns))
        return fusion.fuse(kept) if fuse else kept

    capture = Captured(model, ready, lambda graph: Prepared(graph, observer, options), patterns, acts=acts)
    return Prepared(NOTHING if capture.traced is None else ready(capture.traced), observer, options, capture)


def seen_something(observer: Observer) -> bool:
    """Whether an observer has a range."""
    try:
        observer.range()
    except CalibrationError:
        return False
    return True


@usual
def convert(prepared: Prepared) -> QuantizedModule | QuantizedModel:
    """The quantized network of a calibrated one (STA-STEPS); the calibrated one can go on being used (STA-NO-LEAK).

    A layer whose accumulators could overflow stays in float, with that as the reason (STA-OVERFLOW). Raises
    CalibrationError naming a place that saw no data (STA-CALIBRATED), ValueError naming a layer whose weights hold NaN.
    """
    if not isinstance(prepared, Prepared):
        raise TypeError(f"prepared: expected the result of prepare or prepare_qat, got {type(prepared).__name__}")
    capture = prepared.capture
    if capture is None or (capture.running is None and prepared.graph is not NOTHING):
        program = converted(prepared)
        report = report_of_network(prepared.graph, program, prepared.macs)
        warn_of_float(report, [program], nothing_in(prepared.graph))
        return QuantizedModule(program, prepared.options.engine, report, own=True)
    if capture.running is None:
        raise CalibrationError("prepared: it has seen no values; call it with calibration data first")
    programs, unseen = converted_parts(capture.parts)
    stops = (*capture.stops, *unseen)
    graphs = {path: {way: part.graph for way, part in patterns.items()} for path, patterns in capture.parts.items()}
    report = report_of_parts(graphs, programs, capture.work, stops, capture.exclude)
    warn_of_float(report, [program for patterns in programs.values() for program in patterns.values()], NO_PART)
    networks = {
        path: {pattern: QuantizedModule(program, prepared.options.engine) for pattern, program in patterns.items()}
        for path, patterns in programs.items()
    }
    return QuantizedModel(copies.own_copy(capture.model), networks, {}, stops, report)


def converted_parts(parts: Mapping[str, Mapping[calls.CallPattern, Prepared]]) -> tuple[Programs, list[tracer.Stop]]:
    """The Programs of the parts of a model, and those that stay Python because calibration gave them no values, as
    routing gives an expert no rows. Raises CalibrationError where that is all of them."""
    programs: dict[str, dict[calls.CallPattern, Program]] = {}
    unseen: dict[str, CalibrationError] = {}
    for path, patterns in parts.items():
        for pattern, part in patterns.items():
            try:
                programs.setdefault(path, {})[pattern] = converted(part)
            except CalibrationError as error:
                if all(map(seen_something, part.observers.values())):
                    raise
                unseen[path] = error
    if unseen and not programs:
        raise next(iter(unseen.values()))
    reasons = {path: f"calibration gave no values at {str(error).partition(':')[0]}" for path, error in unseen.items()}
    return programs, [tracer.Stop(path, reason) for path, reason in reasons.items() if path not in programs]


def converted(prepared: Prepared) -> Program:
    """The Program of one calibrated graph."""
    converter = Converter(prepared.graph, prepared.placement, prepared.observers, prepared.options)
    return with_own_biases(converter.convert())


def check_calibration(calibration: object) -> None:
    """TypeError for what is no iterable of batches: one batch, above all."""
    if isinstance(calibration, (torch.Tensor, np.ndarray, str, dict)) or not isinstance(calibration, Iterable):
        got = type(calibration).__name__
        raise TypeError(f"calibration: expected an iterable of batches, got {got}; pass [batch] for one batch")


@near_names
def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    fuse: bool = True,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    observer: Observer = MinMaxObserver(),
    dialect: str = "onnx",
    bits: int = 8,
    weight_bits: int | None = None,
    exclude: str | Sequence[str] = (),
    engine: str = "auto",
) -> QuantizedModule | QuantizedModel:
    """Quantizes a float model to int8 with calibration data: ``prepare``, every batch, ``convert``.

    The model is not modified (STA-UNTOUCHED). Layers without an integer form stay in float; ``print(q)`` lists them
    with the reason. A warning is given when nothing, or less than 90 % of the work, became int8.

    Args:
        model: a float32 model on the CPU in evaluation mode.
        calibration: an iterable of batches. A batch is a tensor, a tuple of positional inputs (surplus entries such as
            targets are ignored), or a dict of keyword inputs.
        fuse: whether layers absorb the normalization and ReLU that follow them.
        per_channel: whether each output channel of a weight has its own scale.
        reduce_range: whether activations have one bit less (STA-REDUCE). None: where accumulators of the dialect could
            saturate otherwise.
        observer: an observer without observed values, which is used for every activation.
        dialect: the rounding and arithmetic to follow (chapter 10).
        bits: bits of all codes, 2 to 8 (AFF-BITS).
        weight_bits: bits of the codes of weights (STA-WEIGHT-BITS). None: the value of ``bits``.
        exclude: paths of modules, or shell patterns of paths, that stay in float with everything inside them.
        engine: what runs the result: ``auto``, ``compiled``, ``torch`` or ``reference``.

    Returns:
        A QuantizedModule, or the model with quantized parts where Python between them could not be captured.

    Raises:
        TypeError: for arguments of a wrong type, such as a single tensor as ``calibration``, and unknown options.
        ValueError: for unknown names, a model in training mode or not in float32, and weights that hold NaN.
        CalibrationError: for data with NaN or infinities, and for a place that saw no data.
        UnsupportedError: for a TorchScript model, which holds no Python code.
    """
    check_calibration(calibration)
    options = checked(
        per_channel=per_channel, reduce_range=reduce_range, dialect=dialect, bits=bits, weight_bits=weight_bits,
        engine=engine,
    )  # fmt: skip
    network = observing(model, options, observer, fuse=fuse, exclude=exclude, share=True)
    for batch in progress(calibration, "calibrate"):
        network.observe(batch)
    return convert(network)
