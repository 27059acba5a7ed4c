"""Others' ways to run a network: each a function without arguments, ready to be called with one batch."""

import contextlib
import copy
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from quantspec.tutorial import torch_fx

from .rows import STATIC, Row

FLOAT32, INT8 = "float32", "int8"
TORCH_ENGINES = ("x86", "onednn")
CALIBRATION = 2  # batches
CALIBRATION_IMAGES = 4  # at most, in a batch
WEIGHTS = {"U8S8": QuantType.QInt8, "U8U8": QuantType.QUInt8}


@dataclass(frozen=True)
class Peer:
    """``call`` runs it once; ``before`` is called, untimed, before it is timed."""

    name: str
    kind: str
    call: Callable[[], object]
    before: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Unavailable:
    """A peer that cannot run, and why."""

    name: str
    reason: str


def calibration(row: Row) -> list[torch.Tensor]:
    """What everybody is calibrated with, ours included."""
    size = min(row.shape[0], CALIBRATION_IMAGES) if len(row.shape) > 3 else 64
    return [Row(row.name, row.network, row.build, (size, *row.shape[1:]), row.kind).batch(100 + seed) for seed in range(CALIBRATION)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without other libraries' remarks on what they deprecated."""
    level = logging.root.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.root.setLevel(level)


class Reader(CalibrationDataReader):
    """Calibration data as ONNX Runtime wants it."""

    def __init__(self, batches: Iterable[torch.Tensor]):
        self.batches = iter([{"x": batch.numpy()} for batch in batches])

    def get_next(self):
        return next(self.batches, None)


def exported(model: nn.Module, example: torch.Tensor, folder: Path) -> Path:
    """The float network as ONNX, open in its batch, with what ONNX Runtime recommends to do before quantizing done."""
    raw, ready = folder / "raw.onnx", folder / "float32.onnx"
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(model, (example,), str(raw), input_names=["x"], output_names=["y"], dynamic_axes=axes, dynamo=False)
    quant_pre_process(str(raw), str(ready))
    return ready


def onnx_models(row: Row, model: nn.Module, folder: Path) -> dict[str, Path]:
    """Files by what they hold: float32, and int8 with signed and with unsigned weights, each output channel with a scale of its own."""
    batches = calibration(row)
    made = {FLOAT32: exported(model, batches[0], folder)}
    for name, weight_type in WEIGHTS.items():
        path = folder / f"{name}.onnx"
        if row.kind == STATIC:
            settings = dict(quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=weight_type, per_channel=True)
            quantize_static(str(made[FLOAT32]), str(path), Reader(batches), **settings)
        else:
            # Operators that multiply integers take a scale for each channel only from some kernels; both are tried, and the faster counts.
            quantize_dynamic(str(made[FLOAT32]), str(path), weight_type=weight_type, per_channel=False)
            quantize_dynamic(str(made[FLOAT32]), str(folder / f"{name} per channel.onnx"), weight_type=weight_type, per_channel=True)
            made[f"{name} per channel"] = folder / f"{name} per channel.onnx"
        made[name] = path
    return made


def session(path: Path, batch: int, threads: int) -> onnxruntime.InferenceSession:
    """A session for one batch size, with default optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_free_dimension_override_by_name("batch", batch)
    # Its threads go on looking for work when a run is over, which would take the processor from whoever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def dynamic_torch(model: nn.Module, engine: str) -> nn.Module:
    torch.backends.quantized.engine = engine
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTM}, dtype=torch.qint8)


class Models:
    """Everybody's models of one network, made once for all of its rows."""

    def __init__(self, row: Row, model: nn.Module):
        self.row, self.model, self.unavailable = row, model, []
        self.folder = tempfile.TemporaryDirectory(prefix="quantspec-bench-")
        self.torch_int8, self.onnx, self.traced = {}, {}, {}
        with quiet():
            self.tried("onnxruntime", lambda: self.onnx.update(onnx_models(row, model, Path(self.folder.name))))
            for engine in TORCH_ENGINES:
                self.tried(f"torch.ao {engine}", lambda engine=engine: self.torch_int8.update({engine: self.in_torch(engine)}))

    def in_torch(self, engine: str) -> nn.Module:
        return torch_fx.quantized(self.model, calibration(self.row), engine=engine) if self.row.kind == STATIC else dynamic_torch(self.model, engine)

    def tried(self, name: str, make: Callable[[], None]) -> None:
        try:
            make()
        except Exception as error:  # whatever another library raises is its answer
            self.unavailable.append(Unavailable(name, f"{type(error).__name__}: {str(error).strip()[:160]}".splitlines()[0]))

    def script(self, engine: str, batch: torch.Tensor) -> torch.jit.ScriptModule:
        torch.backends.quantized.engine = engine
        made = torch.jit.freeze(torch.jit.trace(self.torch_int8[engine], batch, check_trace=False).eval())
        for _ in range(3):  # it optimises when it has seen some calls
            made(batch)
        return made

    def peers(self, batch: torch.Tensor, threads: int, compiled: bool) -> list[Peer]:
        """All that run, for one batch."""
        made = [Peer("torch", FLOAT32, lambda: self.model(batch))]
        with quiet(), torch.inference_mode():
            if compiled:
                self.tried("torch.compile", lambda: made.append(Peer("torch.compile", FLOAT32, compiled_call(self.model, batch))))
            for name, path in self.onnx.items():
                kind = FLOAT32 if name == FLOAT32 else INT8
                label = "onnxruntime" if kind == FLOAT32 else f"onnxruntime {name}"
                self.tried(label, lambda path=path, kind=kind, label=label: made.append(Peer(label, kind, runtime_call(session(path, len(batch), threads), batch))))
            for engine, model in self.torch_int8.items():
                chosen = lambda engine=engine: setattr(torch.backends.quantized, "engine", engine)  # noqa: E731
                made.append(Peer(f"torch.ao {engine}", INT8, lambda model=model: model(batch), chosen))
                self.tried(f"torch.ao {engine} TorchScript", lambda engine=engine, chosen=chosen: made.append(scripted(self, engine, batch, chosen)))
        return made


def scripted(models: Models, engine: str, batch: torch.Tensor, before: Callable[[], None]) -> Peer:
    made = models.script(engine, batch)
    return Peer(f"torch.ao {engine} TorchScript", INT8, lambda: made(batch), before)


def runtime_call(session: onnxruntime.InferenceSession, batch: torch.Tensor) -> Callable[[], object]:
    feed = {"x": batch.numpy()}
    session.run(None, feed)
    return lambda: session.run(None, feed)


def compiled_call(model: nn.Module, batch: torch.Tensor) -> Callable[[], object]:
    made = torch.compile(model)
    made(batch)
    return lambda: made(batch)


@lru_cache
def absent() -> tuple[Unavailable, ...]:
    """Peers that this installation cannot run at all."""
    found = []
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        found.append(Unavailable("torch.compile", "there is no C++ compiler"))
    try:
        import torchao  # noqa: F401
    except ImportError:
        found.append(Unavailable("torchao pt2e", f"torch {torch.__version__} has no pt2e quantization of its own any more, and torchao is not installed"))
    return tuple(found)


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
