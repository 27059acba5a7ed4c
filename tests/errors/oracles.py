"""What a result has to be: that of the plain input which the hostile one stands for, computed another way where there
is one."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import quantspec as qs
from quantspec.onnx_export.export import build

from .inputs import INPUTS, batch, network

Call = Callable[[Any], Any]
OWN = ("a quantized model", "a prepared model", "a model for training")  # models that compute with codes already
RAISING = ("a model without forward", "a model that raises")


def plain(x: Any) -> Any:
    """A tensor of float32 with memory of its own, of the values that a tensor or an array stands for."""
    if isinstance(x, torch.Tensor):
        x = x.detach().clone().as_subclass(torch.Tensor)
    return torch.tensor(x.tolist(), dtype=torch.float32).reshape(x.shape)


def numbers(x: Any) -> np.ndarray:
    """The values of whatever an observer takes, as float32."""
    values = plain(x).numpy() if hasattr(x, "tolist") else [] if isinstance(x, nn.Module) else x
    return np.array(values, np.float32)


def view(result: Any) -> Any:
    """What a result computes, in numbers that can be compared; the text of its error where it computes nothing."""
    if isinstance(result, torch.Tensor):
        return str(result.dtype), tuple(result.shape), repr(result.tolist())
    if isinstance(result, nn.Module):
        torch.default_generator.manual_seed(0)  # a lazy model's weights are drawn when it is first run
        try:
            return view(result.eval()(batch()).detach())
        except Exception as error:
            return str(error)
    if hasattr(result, "range"):
        try:
            return tuple(map(float, result.range()))
        except ValueError as error:
            return str(error)
    return result.SerializeToString() if hasattr(result, "SerializeToString") else str(result)


@functools.cache
def static() -> qs.QuantizedModule:
    """The network of ``table.static``, by the reference engine."""
    return qs.quantize(network(), [batch()], engine="reference")


@functools.cache
def dynamic(activations: str | None) -> qs.QuantizedModule:
    return qs.quantize_dynamic(network(), activations=activations, engine="reference")


def model_of(kind: str) -> nn.Module:
    """The float model that a model of a kind stands for."""
    if kind == "a lazy model":
        model = given(kind)
        model(batch())  # which draws its weights
        return model
    return nn.Sequential().eval() if kind == "an empty model" else network()


def given(kind: str) -> Any:
    """A model of a kind that is run as it is, drawn as ``view`` draws it."""
    torch.default_generator.manual_seed(0)
    return INPUTS[kind]()


def quantized(make: Call, kept: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """The result for a model: that of the float model, or what the model computes where nothing of it is quantized, as
    of the kinds that are ``kept``."""

    def expected(kind: str) -> Any:
        if kind in (*OWN, *RAISING, *kept):
            return view(given(kind))
        return view(make(model_of(kind)))

    return expected


def prepared(kind: str) -> Any:
    """A prepared model shows what the model computes, and names the place of a NaN or what the model raised."""
    if kind in ("a model with NaN", "a model with infinity"):
        return "x: expected finite values"
    return view(given(kind))


def shown_in_float(kind: str) -> Any:
    """The float model's own output, whose sums depend on how an input lies in memory."""
    x = INPUTS[kind]()
    return view(network()(plain(x) if kind == "without memory" else x).detach())


def rows_by_themselves(run: Call) -> Callable[[str], Any]:
    """Outputs for rows of which one is not finite: the others alone, and for that one what has no finite value."""

    def expected(kind: str) -> Any:
        x = plain(INPUTS[kind]())
        good = x.isfinite().all(-1)
        if good.all():
            return view(run(x))
        y = torch.full((*x.shape[:-1], 3), math.nan)
        y[good] = run(x[good])
        return view(y)

    return expected


def saturated(kind: str) -> Any:
    """Outputs of a static network: an infinity is beyond the range, as any large number is."""
    x = plain(INPUTS[kind]())
    return rows_by_themselves(static())(kind) if x.isnan().any() else view(static()(x.clip(-1e30, 1e30)))


def observed(observer: Any) -> Callable[[str], Any]:
    """The range of the values, one by one in an array."""
    return lambda kind: view(observer.observe(numbers(INPUTS[kind]())))


def min_max(kind: str) -> Any:
    values = numbers(INPUTS[kind]())
    return (float(values.min()), float(values.max())) if values.size else view(qs.MinMaxObserver())


def compared(threshold: float) -> qs.Comparison:
    """A comparison with a threshold above or below the SQNR of every layer."""
    usual = qs.compare(network(), static(), [batch()])
    first, *_ = usual.layers
    return dataclasses.replace(usual, threshold=threshold, parted=first.layer if threshold > 100 else None)


def option_of(make: Call, option: str) -> Callable[[str], Any]:
    """The result with an option, by the reference engine."""
    return lambda kind: view(make(**{option: INPUTS[kind]()}))


def always(make: Callable[[], Any]) -> Callable[[str], Any]:
    return lambda kind: view(make())


def trained(make: Call) -> Callable[[str], Any]:
    """In evaluation, the network that it becomes."""

    def expected(kind: str) -> Any:
        return quantized(make)(kind) if kind in OWN else view(qs.convert(make(model_of(kind))).run_on("reference"))

    return expected


def becomes(option: str) -> Callable[[str], Any]:
    """The network that one in training becomes, by the reference engine."""
    return lambda kind: view(
        qs.convert(qs.prepare_qat(network(), [batch()], **{option: INPUTS[kind]()})).run_on("reference")
    )


def exported(kind: str) -> Any:
    """The model for as many axes as an example has."""
    x = INPUTS[kind]()
    return view(build(static().program, {"input": (2 if x is None else x.ndim, False)}))


EXPECTED: dict[str, Callable[[str], Any]] = {
    "quantize(model)": quantized(lambda model: qs.quantize(model, [batch()], engine="reference")),
    "quantize(calibration)": always(static),
    "quantize([batch])": lambda kind: view(qs.quantize(network(), [plain(INPUTS[kind]())], engine="reference")),
    **{
        f"quantize({option}=)": option_of(
            lambda **given: qs.quantize(network(), [batch()], engine="reference", **given), option
        )
        for option in ("fuse", "per_channel", "reduce_range", "bits", "weight_bits")
    },
    "quantize(exclude=)": always(static),
    "quantize_dynamic(model)": quantized(
        lambda model: qs.quantize_dynamic(model, engine="reference"), kept=("a lazy model",)
    ),
    # What it gives does not depend on the example.
    "quantize_dynamic(example=)": always(lambda: dynamic("per_tensor")),
    "quantize_dynamic(activations=)": always(lambda: dynamic(None)),
    **{
        f"quantize_dynamic({option}=)": option_of(
            lambda **given: qs.quantize_dynamic(network(), engine="reference", **given), option
        )
        for option in ("per_channel", "reduce_range", "bits")
    },
    "quantize_dynamic(exclude=)": always(lambda: dynamic("per_tensor")),
    "prepare(model)": prepared,
    "Prepared(x)": shown_in_float,
    "convert(prepared)": always(lambda: INPUTS["a model for training"]()),
    "prepare_qat(model)": trained(lambda model: qs.prepare_qat(model, [batch()])),
    "prepare_qat(calibration)": lambda kind: view(
        qs.prepare_qat(network(), [batch()]) if kind == "a generator" else qs.prepare_qat(network())
    ),
    **{f"prepare_qat({option}=)": becomes(option) for option in ("averaging", "delay", "learned_scales")},
    "QATModule(x)": lambda kind: view(qs.prepare_qat(network(), [batch()])(plain(INPUTS[kind]())).detach()),
    "QuantizedModule(x)": saturated,
    "QuantizedModule(x), dynamic": rows_by_themselves(lambda x: dynamic("per_tensor")(x)),
    "QuantizedModule(x), weights only": rows_by_themselves(lambda x: dynamic(None)(x)),
    "QuantizedModule(x), reference": saturated,
    "QuantizedModule.save(path)": always(lambda: None),
    "load(max_memory=)": always(static),
    "load(max_work=)": always(static),
    "load(model=)": always(static),
    "load(modules=)": always(static),
    "compare(model)": always(lambda: qs.compare(network(), static(), [batch()])),
    "compare(quantized)": always(lambda: qs.compare(network(), static(), [batch()])),
    "compare(data)": always(lambda: qs.compare(network(), static(), [batch()])),
    "compare(batches=)": always(lambda: qs.compare(network(), static(), [batch()])),
    "compare(threshold=)": lambda kind: view(compared(INPUTS[kind]())),
    "export_onnx(quantized)": always(lambda: qs.export_onnx(static(), None)),
    "export_onnx(path)": always(lambda: qs.export_onnx(static(), None)),
    "export_onnx(example=)": exported,
    "MinMaxObserver.observe(x)": min_max,
    **{f"{kind.__name__}(axis)": always(kind) for kind in (qs.MinMaxObserver, qs.MovingAverageObserver)},
    **{f"HistogramObserver({name})": always(qs.HistogramObserver) for name in ("bins", "qmin", "qmax")},
    **{f"MSEObserver({name})": always(qs.MSEObserver) for name in ("candidates", "qmin", "qmax")},
    "HistogramObserver.observe(x)": observed(qs.HistogramObserver()),
    "PercentileObserver(percent)": lambda kind: view(
        qs.PercentileObserver(float(INPUTS[kind]())).observe(np.arange(9, dtype=np.float32))
    ),
    "MSEObserver.observe(x)": observed(qs.MSEObserver()),
}  # fmt: skip


def wrong(function: str, kind: str, result: Any) -> str:
    """What is wrong with a result, in words; empty where it is what it has to be."""
    if isinstance(result, qs.PercentileObserver):
        result = result.observe(np.arange(9, dtype=np.float32))
    found, expected = view(result), EXPECTED[function](kind)
    if "nan" in str(expected):
        found, expected = finite_parts(found), finite_parts(expected)
    same = found == expected or isinstance(found, str) and isinstance(expected, str) and expected in found
    return "" if same else f"expected {expected}, got {found}"


def finite_parts(shown: tuple[str, tuple[int, ...], str]) -> Any:
    """Of outputs, what is finite; infinities are NaN, as which of both it is depends on the row's other values."""
    kind, shape, text = shown
    return kind, shape, text.replace("-inf", "nan").replace("inf", "nan")
