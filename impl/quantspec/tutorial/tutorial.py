"""The tutorial as a program: one network quantized in several ways, measured, and compared with torch code by code."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from quantspec.backends.pytorch import quantized
from quantspec.errors import expected_one_of
from quantspec.ir.program import Linear, LinearDynamic, Quantize
from quantspec.module.module import QuantizedModule
from quantspec.module.size import float_bytes
from quantspec.numerics.dialects.named import dialect
from quantspec.progress import progress
from quantspec.ptq.dynamic import quantize_dynamic
from quantspec.ptq.static import quantize

from .data import Dataset
from .neuron import output_grid

STATIC = {
    "static": {"fuse": False, "per_channel": False},
    "static-fused": {"fuse": True, "per_channel": False},
    "static-fused-per-channel": {"fuse": True, "per_channel": True},
}
VARIANTS = ("float32", "static", "static-fused", "dynamic", "static-fused-per-channel")
FUSED = [["fc1", "relu1"], ["fc2", "relu2"]]
CALIBRATION_IMAGES, CALIBRATION_BATCH, TEST_BATCH = 1000, 100, 1000


@dataclass(frozen=True, eq=False)
class Variant:
    """One form of the network. ``accuracy``: share of 1; ``latency_us``: median microseconds a call, by batch size."""

    name: str
    network: nn.Module
    accuracy: float
    predictions: np.ndarray
    bytes: int
    compression: float
    latency_us: dict[int, float]


@dataclass(frozen=True)
class Equality:
    """How many of a layer's output codes (floats where dynamic) over the whole test set differ from torch's; ``reason``
    if not offered."""

    engine: str
    variant: str
    layer: str
    codes: int
    differ: int
    reason: str = ""


@dataclass(frozen=True)
class Parameter:
    """How many of the numbers that ``what`` names differ between our network and torch's."""

    engine: str
    variant: str
    layer: str
    what: str
    numbers: int
    differ: int


@dataclass(frozen=True, eq=False)
class Result:
    """All that a run found."""

    dataset: Dataset
    variants: tuple[Variant, ...]
    equality: tuple[Equality, ...]
    parameters: tuple[Parameter, ...]
    dialects: dict[str, tuple[str, ...]]

    def as_json(self) -> dict[str, Any]:
        """The result as plain data for ``--json``."""
        equality = []
        for row in self.equality:
            entry = {k: getattr(row, k) for k in ("engine", "variant", "layer", "codes", "differ")}
            equality.append(entry | ({"reason": row.reason} if row.reason else {}))
        return {
            "dataset": self.dataset.name,
            "variants": [
                {
                    "name": v.name,
                    "accuracy": v.accuracy,
                    "bytes": v.bytes,
                    "compression": v.compression,
                    "latency_us": {str(batch): us for batch, us in v.latency_us.items()},
                }
                for v in self.variants
            ],
            "equality": equality,
            "parameters": [vars(row) for row in self.parameters],
            "dialects": {engine: list(names) for engine, names in self.dialects.items()},
        }


def calibration_batches(dataset: Dataset) -> list[torch.Tensor]:
    """The training images that calibrate, in batches."""
    return list(torch.split(dataset.x_train[:CALIBRATION_IMAGES], CALIBRATION_BATCH))


def quantize_as(
    model: nn.Module, dataset: Dataset, variant: str, *, reduce_range: bool, dialect: str = "onnx"
) -> QuantizedModule:
    """``model`` in one of the quantized variants."""
    if variant == "dynamic":
        example = calibration_batches(dataset)[0]
        q = quantize_dynamic(
            model, per_channel=False, reduce_range=reduce_range, dialect=dialect, example=example
        )
    else:
        q = quantize(
            model, calibration_batches(dataset), fuse=STATIC[variant]["fuse"],
            per_channel=STATIC[variant]["per_channel"], reduce_range=reduce_range, dialect=dialect,
        )  # fmt: skip
    assert isinstance(q, QuantizedModule), "the tutorial's network is one graph"
    return q


def run(
    model: nn.Module, dataset: Dataset, *, variants: Iterable[str] = VARIANTS, batches: Iterable[int] = (1, 10, 256),
    reduce_range: bool = False,
) -> Result:  # fmt: skip
    """Quantizes, measures and compares. float32 is always among the variants, as the others are measured against it.

    Raises ValueError for an unknown variant and for a batch size below 1.
    """
    chosen, sizes = [*dict.fromkeys(("float32", *variants))], [*dict.fromkeys(batches)]
    check(chosen, sizes)
    networks = {
        name: model if name == "float32" else quantize_as(model, dataset, name, reduce_range=reduce_range)
        for name in chosen
    }
    predicted = {
        name: predictions(network, dataset.x_test) for name, network in progress(list(networks.items()), "accuracy")
    }
    latencies = measure(networks, dataset.x_test, sizes)
    labels, reference = dataset.y_test.numpy(), float_bytes(model)
    rows = []
    for name, network in networks.items():
        size = network.nbytes if isinstance(network, QuantizedModule) else reference
        accuracy = float((predicted[name] == labels).mean())
        rows.append(Variant(name, network, accuracy, predicted[name], size, reference / size, latencies[name]))
    pairs = [(engine, name) for name in chosen if name != "float32" for engine in quantized.ENGINES]
    comparisons = [
        compare(model, dataset, engine, name, reduce_range) for engine, name in progress(pairs, "compare with torch")
    ]
    offered = [engine for engine in quantized.ENGINES if not quantized.why_not_offered(engine)]
    here = {engine: quantized.dialects_here(engine) for engine in offered}
    equality = tuple(row for outputs, _ in comparisons for row in outputs)
    parameters = tuple(row for _, numbers in comparisons for row in numbers)
    return Result(dataset, tuple(rows), equality, parameters, here)


def check(variants: Iterable[str], batches: Iterable[int]) -> None:
    """Raises ValueError for an unknown variant and for a batch size below 1."""
    for name in variants:
        if name not in VARIANTS:
            raise ValueError(expected_one_of("variant", VARIANTS, name))
    for size in batches:
        if size < 1:
            raise ValueError(f"batch: expected at least 1, got {size}")


def predictions(network: nn.Module, x: torch.Tensor) -> np.ndarray:
    """The class with the largest output for each input."""
    with torch.no_grad():
        return torch.cat([network(batch).argmax(1) for batch in torch.split(x, TEST_BATCH)]).numpy()


def measure(
    networks: dict[str, nn.Module], x: torch.Tensor, sizes: list[int], rounds: int = 31
) -> dict[str, dict[int, float]]:
    """Median microseconds a call by network and batch size, on one thread.

    The networks take turns, so that whatever else the machine does meets all of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times: dict[str, dict[int, float]] = {name: {} for name in networks}
        for size in progress(sizes, "latency"):
            batch = x[torch.arange(size) % len(x)]
            calls = {name: timer(network, batch) for name, network in networks.items()}
            samples = [{name: call() for name, call in calls.items()} for _ in range(rounds)]
            for name in networks:
                times[name][size] = statistics.median(sample[name] for sample in samples)
        return times
    finally:
        torch.set_num_threads(threads)


def timer(network: nn.Module, batch: torch.Tensor) -> Callable[[], float]:
    """A function that gives the microseconds of one call, over enough calls to last a millisecond."""

    def sample(calls: int) -> float:
        start = time.perf_counter_ns()
        with torch.no_grad():
            for _ in range(calls):
                network(batch)
        return (time.perf_counter_ns() - start) / 1e3 / calls

    sample(1)
    calls = max(1, round(1000 / sample(3)))
    return lambda: sample(calls)


def compare(
    model: nn.Module, dataset: Dataset, engine: str, variant: str, reduce_range: bool
) -> tuple[list[Equality], list[Parameter]]:
    """Our network in the engine's dialect against torch's on that engine, every layer over the whole test set.

    Each layer is given the inputs that torch's layer got: those are our own codes too as long as no row differs, and a
    difference is then counted once, in the layer that makes it.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if reason := quantized.why_not_offered(engine):
        return [Equality(engine, variant, name, 0, 0, reason) for name in layers], []
    test, names = torch.split(dataset.x_test, TEST_BATCH), quantized.dialects_here(engine)
    if variant == "dynamic":
        reduced = quantized.reduces_range(engine)
        ours = quantize_as(model, dataset, variant, reduce_range=reduced, dialect=names[0])
        theirs = quantized.dynamic_network(model, test, engine=engine)
    else:
        ours = quantize_as(model, dataset, variant, reduce_range=reduce_range, dialect=names[0])
        calibration = calibration_batches(dataset)
        theirs = quantized.static_network(
            model, calibration, test, engine=engine, reduce_range=reduce_range,
            per_channel=STATIC[variant]["per_channel"], fuse=FUSED if STATIC[variant]["fuse"] else [],
        )  # fmt: skip
    rows: list[Equality] = []
    parameters: list[Parameter] = []

    def match(layer: str, what: str, ours: ArrayLike | None, theirs: ArrayLike | None) -> None:
        mine, other = np.atleast_1d(np.asarray(ours)), np.atleast_1d(np.asarray(theirs))
        differ = int((mine != other).sum()) if mine.shape == other.shape else max(mine.size, other.size)
        parameters.append(Parameter(engine, variant, layer, what, other.size, differ))

    for step in ours.program.steps:
        if isinstance(step, Quantize):
            match("input", "scale", step.qparams.scale, np.float32(theirs.input_scale))
            match("input", "zero_point", step.qparams.zero_point, theirs.input_zero_point)
            rules, grid = dialect(quantized.quantizing_here(engine)), step.qparams
            x = dataset.x_test.numpy()
            codes = rules.quantize(x, grid.scale, grid.zero_point, qmin=grid.qmin, qmax=grid.qmax)
            match("input", "codes", codes.ravel(), np.asarray(theirs.input_codes).ravel())
    steps = [step for step in ours.program.layers if isinstance(step, (Linear, LinearDynamic))]
    for step, layer in zip(steps, theirs.layers, strict=True):
        match(step.layer, "weight", step.weight, layer.weight)
        match(step.layer, "weight scale", step.w_qparams.scale, layer.w_scale)
        match(step.layer, "weight zero_point", step.w_qparams.zero_point, layer.w_zero_point.ravel()[0])
        match(step.layer, "bias", step.bias, layer.bias)
        if isinstance(step, Linear):
            y = output_grid(step)
            match(step.layer, "scale", y.scale, np.float32(layer.scale))
            match(step.layer, "zero_point", y.zero_point, layer.zero_point)
            assert step.bias is not None
            bias_codes = dialect("qnnpack").bias_codes(step.bias, step.x_qparams.scale, step.w_qparams.scale)
            match(step.layer, "quantized bias", bias_codes, layer.bias_codes)
        agrees = np.zeros(layer.outputs.shape, dtype=bool)
        for name in names:
            agrees |= layer_outputs(step, layer.inputs, name) == layer.outputs
        rows.append(Equality(engine, variant, step.layer, layer.outputs.size, int((~agrees).sum())))
    return rows, parameters


def layer_outputs(step: Linear | LinearDynamic, inputs: np.ndarray, name: str) -> np.ndarray:
    """Our outputs of one layer in a dialect, for the inputs that torch's layer got."""
    rules, rows = dialect(name), inputs.reshape(len(inputs), -1)
    if isinstance(step, Linear):
        layer = step.x_qparams, step.weight, step.w_qparams, step.bias, output_grid(step)
        return rules.linear(rows, *layer, relu=step.relu)
    # The range of a dynamic layer is that of a batch, so the batches must be those that torch had.
    batches = np.split(rows, range(TEST_BATCH, len(rows), TEST_BATCH))
    weights = step.weight, step.w_qparams, step.bias
    return np.concatenate(
        [rules.linear_dynamic(batch, *weights, reduce_range=step.reduce_range) for batch in batches]
    )
