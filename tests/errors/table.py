"""Public functions on hostile inputs: what comes of each call, in a few words."""

import contextlib
import functools
import os
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import quantspec as qs

from . import oracles
from .inputs import INPUTS, batch, network

CLEAR = (TypeError, ValueError, qs.UnsupportedError, qs.MissingExtraError, OSError)
PACKAGE = str(Path(qs.__file__).parent)


def static() -> Any:
    return qs.quantize(network(), [batch()])


@functools.cache
def read() -> Any:
    """A network that whoever is called only reads: it is made once."""
    return static()


def calibrated() -> Any:
    prepared = qs.prepare(network())
    prepared(batch())
    return prepared


# A function by what it takes: the hostile input stands in the place of the argument that is named.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "quantize(model)": lambda x: qs.quantize(x, [batch()]),
    "quantize(calibration)": lambda x: qs.quantize(network(), x),
    "quantize([batch])": lambda x: qs.quantize(network(), [x]),
    "quantize(observer=)": lambda x: qs.quantize(network(), [batch()], observer=x),
    "quantize(fuse=)": lambda x: qs.quantize(network(), [batch()], fuse=x),
    "quantize(per_channel=)": lambda x: qs.quantize(network(), [batch()], per_channel=x),
    "quantize(reduce_range=)": lambda x: qs.quantize(network(), [batch()], reduce_range=x),
    "quantize(bits=)": lambda x: qs.quantize(network(), [batch()], bits=x),
    "quantize(weight_bits=)": lambda x: qs.quantize(network(), [batch()], weight_bits=x),
    "quantize(exclude=)": lambda x: qs.quantize(network(), [batch()], exclude=x),
    "quantize(dialect=)": lambda x: qs.quantize(network(), [batch()], dialect=x),
    "quantize(engine=)": lambda x: qs.quantize(network(), [batch()], engine=x),
    "quantize_dynamic(model)": qs.quantize_dynamic,
    "quantize_dynamic(example=)": lambda x: qs.quantize_dynamic(network(), example=x),
    "quantize_dynamic(activations=)": lambda x: qs.quantize_dynamic(network(), activations=x),
    "quantize_dynamic(per_channel=)": lambda x: qs.quantize_dynamic(network(), per_channel=x),
    "quantize_dynamic(reduce_range=)": lambda x: qs.quantize_dynamic(network(), reduce_range=x),
    "quantize_dynamic(bits=)": lambda x: qs.quantize_dynamic(network(), bits=x),
    "quantize_dynamic(exclude=)": lambda x: qs.quantize_dynamic(network(), exclude=x),
    "quantize_dynamic(dialect=)": lambda x: qs.quantize_dynamic(network(), dialect=x),
    "quantize_dynamic(engine=)": lambda x: qs.quantize_dynamic(network(), engine=x),
    "prepare(model)": qs.prepare,
    "Prepared(x)": lambda x: qs.prepare(network())(x),
    "convert(prepared)": qs.convert,
    "prepare_qat(model)": lambda x: qs.prepare_qat(x, [batch()]),
    "prepare_qat(calibration)": lambda x: qs.prepare_qat(network(), x),
    "prepare_qat(averaging=)": lambda x: qs.prepare_qat(network(), [batch()], averaging=x),
    "prepare_qat(delay=)": lambda x: qs.prepare_qat(network(), [batch()], delay=x),
    "prepare_qat(learned_scales=)": lambda x: qs.prepare_qat(network(), [batch()], learned_scales=x),
    "QATModule(x)": lambda x: qs.prepare_qat(network(), [batch()])(x),
    "QuantizedModule(x)": lambda x: static()(x),
    "QuantizedModule(x), dynamic": lambda x: qs.quantize_dynamic(network())(x),
    "QuantizedModule(x), weights only": lambda x: qs.quantize_dynamic(network(), activations=None)(x),
    "QuantizedModule(x), reference": lambda x: static().run_on("reference")(x),
    "QuantizedModule.run_on(engine)": lambda x: read().run_on(x),
    "QuantizedModule.save(path)": lambda x: read().save(x),
    "load(path)": qs.load,
    "load(max_memory=)": lambda x: qs.load(saved(), max_memory=x),
    "load(max_work=)": lambda x: qs.load(saved(), max_work=x),
    "load(engine=)": lambda x: qs.load(saved(), engine=x),
    "load(model=)": lambda x: qs.load(saved(), model=x),
    "load(modules=)": lambda x: qs.load(saved(), modules=x),
    "compare(model)": lambda x: qs.compare(x, static(), [batch()]),
    "compare(quantized)": lambda x: qs.compare(network(), x, [batch()]),
    "compare(data)": lambda x: qs.compare(network(), read(), x),
    "compare(batches=)": lambda x: qs.compare(network(), read(), [batch()], batches=x),
    "compare(threshold=)": lambda x: qs.compare(network(), read(), [batch()], threshold=x),
    "export_onnx(quantized)": lambda x: qs.export_onnx(x, "q.onnx"),
    "export_onnx(path)": lambda x: qs.export_onnx(read(), x),
    "export_onnx(example=)": lambda x: qs.export_onnx(read(), example=x),
    "MinMaxObserver.observe(x)": lambda x: qs.MinMaxObserver().observe(x),
    "MinMaxObserver(axis)": lambda x: qs.MinMaxObserver(axis=x),
    "MovingAverageObserver(axis)": lambda x: qs.MovingAverageObserver(axis=x),
    "MovingAverageObserver(constant)": lambda x: qs.MovingAverageObserver(x),
    "HistogramObserver.observe(x)": lambda x: qs.HistogramObserver().observe(x),
    "HistogramObserver(bins)": lambda x: qs.HistogramObserver(bins=x),
    "HistogramObserver(qmin)": lambda x: qs.HistogramObserver(qmin=x),
    "HistogramObserver(qmax)": lambda x: qs.HistogramObserver(qmax=x),
    "PercentileObserver(percent)": lambda x: qs.PercentileObserver(x),
    "MSEObserver.observe(x)": lambda x: qs.MSEObserver().observe(x),
    "MSEObserver(candidates)": lambda x: qs.MSEObserver(candidates=x),
    "MSEObserver(qmin)": lambda x: qs.MSEObserver(qmin=x),
    "MSEObserver(qmax)": lambda x: qs.MSEObserver(qmax=x),
}  # fmt: skip


@functools.cache
def file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "saved.safetensors")
        static().save(path)
        return path.read_bytes()


def saved() -> str:
    Path("saved.safetensors").write_bytes(file())
    return "saved.safetensors"


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """In an empty folder, the same until something is written there."""
    before = os.getcwd()
    os.chdir(empty().name)
    try:
        yield
    finally:
        os.chdir(before)
        if os.listdir(empty().name):
            empty().cleanup()
            empty.cache_clear()


@functools.cache
def empty() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes when the process does. To make one for each of thousands of calls takes longer than they."""
    return tempfile.TemporaryDirectory()


def raised_by_us(error: BaseException) -> bool:
    """Whether quantspec raised an error, and not what it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1].filename.startswith(PACKAGE) and (frames[-1].line or "").startswith("raise ")


def cell(function: str, kind: str) -> tuple[str, str]:
    """How a call ends, ``result``, ``wrong``, ``error`` or ``raw``; and its result, or the first words of its error."""
    with elsewhere(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)  # from which a lazy model's weights are drawn
        given = INPUTS[kind]()
        try:
            result = FUNCTIONS[function](given)
        except OSError as error:
            return "error", f"{type(error).__name__}: {error.strerror or error}"
        except CLEAR as error:
            known = raised_by_us(error) and str(error)
            return "error" if known else "raw", f"{type(error).__name__}: {error}"
        except BaseException as error:
            return "raw", f"{type(error).__name__}: {error}"
        if what := oracles.wrong(function, kind, result):
            return "wrong", what
        return "result", told(result)


def told(result: Any) -> str:
    """A result in a few words."""
    if isinstance(result, torch.Tensor):
        state = "" if result.isfinite().all() else " with NaN or infinity"
        return f"{str(result.dtype).removeprefix('torch.')}{list(result.shape)}{state}"
    return "nothing" if result is None else type(result).__name__
