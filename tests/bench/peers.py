"""Others' ways to run a network: each a function without arguments, ready to be called with one batch."""

import contextlib
import copy
import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import quantspec as qs
from quantspec.tutorial import torch_fx

from . import HELD_TO, inductor, openvino_peers
from .openvino_peers import nncf, openvino
from .rows import DYNAMIC, STATIC, WEIGHTS_ALONE, Row

FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
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
    size = min(row.shape[0], CALIBRATION_IMAGES) if len(row.shape) > 2 else 64
    sized = replace(row, shape=(size, *row.shape[1:]))
    return [sized.batch(100 + seed) for seed in range(CALIBRATION)]


def quantized(row: Row, model: nn.Module) -> qs.QuantizedModule:
    """Our int8 form of a network."""
    if row.kind == STATIC:
        return qs.quantize(model, calibration(row))
    activations = None if row.kind == WEIGHTS_ALONE else "per_tensor"
    return qs.quantize_dynamic(model, example=row.batch(), activations=activations)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without other libraries' remarks on what they deprecated."""
    level = logging.root.level
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
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
        """The next batch, None at the end."""
        return next(self.batches, None)


def exported(model: nn.Module, example: torch.Tensor, folder: Path) -> Path:
    """The float network as ONNX, open in its batch, with what ONNX Runtime recommends to do before quantizing done.

    Where its symbolic inference of shapes does not know how many axes an encoder's reshaping gives, the batch is the
    example's and shapes are inferred by ONNX alone.
    """
    raw, ready = folder / "raw.onnx", folder / "float32.onnx"
    names = dict(input_names=["x"], output_names=["y"], dynamo=False)
    torch.onnx.export(model, (example,), str(raw), **names, dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}})
    try:
        quant_pre_process(str(raw), str(ready))
    except AssertionError:
        torch.onnx.export(model, (example,), str(raw), **names)
        quant_pre_process(str(raw), str(ready), skip_symbolic_shape=True)
    return ready


def onnx_models(row: Row, model: nn.Module, folder: Path) -> dict[str, Path]:
    """Files by what they hold: float32, int8 with signed and with unsigned weights; a scale for each channel."""
    batches = calibration(row)
    files = {FLOAT32: exported(model, batches[0], folder)}
    if row.kind == WEIGHTS_ALONE or HELD_TO:  # what remains reads the float one
        return files
    source = str(files[FLOAT32])
    for name, weight_type in WEIGHTS.items():
        path = folder / f"{name}.onnx"
        if row.kind == STATIC:
            settings = dict(quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8)
            quantize_static(source, str(path), Reader(batches), weight_type=weight_type, per_channel=True, **settings)
        else:
            # Only some kernels that multiply integers take a scale for each channel: both are tried, the faster counts.
            per_channel = folder / f"{name} per channel.onnx"
            quantize_dynamic(source, str(path), weight_type=weight_type, per_channel=False)
            quantize_dynamic(source, str(per_channel), weight_type=weight_type, per_channel=True)
            files[per_channel.stem] = per_channel
        files[name] = path
    return files


def session(path: Path, batch: int, threads: int) -> onnxruntime.InferenceSession:
    """A session for one batch size, with default optimisation."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_free_dimension_override_by_name("batch", batch)
    # Its threads go on looking for work when a run is over, which would slow down the next one to be measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def dynamic_torch(model: nn.Module, engine: str) -> nn.Module:
    """torch.ao's dynamic form of a network."""
    torch.backends.quantized.engine = engine
    quantization = torch.ao.quantization
    kinds = dict.fromkeys((nn.Linear, nn.LSTM, nn.GRU), quantization.default_dynamic_qconfig)
    kinds[nn.EmbeddingBag] = quantization.float_qparams_weight_only_qconfig
    return quantization.quantize_dynamic(copy.deepcopy(model), kinds, dtype=torch.qint8)


def nncf_model(row: Row, model: nn.Module, source: Path) -> Path:
    """NNCF's int8 form of a network, made of the float one's file beside it."""
    target = source.with_name("nncf.xml")
    if row.kind == STATIC:
        return openvino_peers.quantized(source, calibration(row), openvino_peers.attends(model), target)
    return openvino_peers.compressed(source, target)


class Models:
    """Everybody's models of one network, made once for all of its rows."""

    def __init__(self, row: Row, model: nn.Module):
        self.row, self.model, self.unavailable = row, model, []
        self.folder = tempfile.TemporaryDirectory(prefix="quantspec-bench-")
        self.torch_int8, self.onnx, self.nncf = {}, {}, []
        with quiet():
            self.tried("onnxruntime", lambda: self.onnx.update(onnx_models(row, model, Path(self.folder.name))))
            if FLOAT32 in self.onnx and None not in (openvino, nncf):
                add = lambda: self.nncf.append(nncf_model(row, model, self.onnx[FLOAT32]))  # noqa: E731
                self.tried("openvino NNCF", add)
            for engine in TORCH_ENGINES if row.kind != WEIGHTS_ALONE else ():
                add = lambda engine=engine: self.torch_int8.update({engine: self.in_torch(engine)})  # noqa: E731
                self.tried(f"torch.ao {engine}", add)

    def in_torch(self, engine: str) -> nn.Module:
        """torch.ao's int8 form of the network."""
        if self.row.kind == STATIC:
            return torch_fx.quantized(self.model, calibration(self.row), engine=engine)
        return dynamic_torch(self.model, engine)

    def tried(self, name: str, make: Callable[[], None]) -> None:
        """Makes a peer, or notes why it cannot be made."""
        try:
            make()
        except Exception as error:  # whatever another library raises is its answer
            reason = f"{type(error).__name__}: {str(error).strip()[:160]}".splitlines()[0]
            self.unavailable.append(Unavailable(name, reason))

    def script(self, engine: str, batch: torch.Tensor) -> torch.jit.ScriptModule:
        """torch.ao's int8 form of the network, traced, frozen and optimised."""
        torch.backends.quantized.engine = engine
        frozen = torch.jit.freeze(torch.jit.trace(self.torch_int8[engine], batch, check_trace=False).eval())
        for _ in range(3):  # it optimises when it has seen some calls
            frozen(batch)
        return frozen

    def peers(self, batch: torch.Tensor, threads: int, compiled: bool) -> list[Peer]:
        """All that run, for one batch; those that inductor compiles if ``compiled``."""
        found = [Peer("torch", FLOAT32, lambda: self.model(batch))]

        def add(name: str, kind: str, make: Callable[[], Callable], before: Callable[[], None] = lambda: None) -> None:
            self.tried(name, lambda: found.append(Peer(name, kind, make(), before)))

        with quiet(), torch.inference_mode():
            if compiled:
                add("torch.compile", FLOAT32, lambda: compiled_call(self.model, batch))
                if self.row.kind != WEIGHTS_ALONE:
                    sized = replace(self.row, shape=tuple(batch.shape))  # what is exported has one shape
                    data, dynamic = [sized.batch(100 + seed) for seed in range(CALIBRATION)], self.row.kind == DYNAMIC
                    add("torchao pt2e", INT8, lambda: inductor.call(self.model, data, batch, dynamic))
            for name, path in () if HELD_TO else self.onnx.items():
                kind, label = (FLOAT32, "onnxruntime") if name == FLOAT32 else (INT8, f"onnxruntime {name}")
                add(label, kind, lambda path=path: runtime_call(session(path, len(batch), threads), batch))
            if openvino is not None and FLOAT32 in self.onnx:
                source = self.onnx[FLOAT32]
                self.tried("openvino", lambda: found.extend(openvino_calls(source, FLOAT32, batch, threads)))
            for path in self.nncf:
                self.tried("openvino NNCF", lambda path=path: found.extend(openvino_calls(path, INT8, batch, threads)))
            for engine, model in self.torch_int8.items():
                choose = lambda engine=engine: setattr(torch.backends.quantized, "engine", engine)  # noqa: E731
                name = f"torch.ao {engine}"
                found.append(Peer(name, INT8, lambda model=model: model(batch), choose))
                add(f"{name} TorchScript", INT8, lambda engine=engine: scripted_call(self, engine, batch), choose)
        return found


def scripted_call(models: Models, engine: str, batch: torch.Tensor) -> Callable[[], object]:
    """One call of torch.ao's network through TorchScript."""
    script = models.script(engine, batch)
    return lambda: script(batch)


def runtime_call(session: onnxruntime.InferenceSession, batch: torch.Tensor) -> Callable[[], object]:
    """One call of ONNX Runtime, which has run once."""
    feed = {"x": batch.numpy()}
    session.run(None, feed)
    return lambda: session.run(None, feed)


def openvino_calls(path: Path, kind: str, batch: torch.Tensor, threads: int) -> list[Peer]:
    """OpenVINO on a file, with floats in float32 and, where it would take it by itself, in bfloat16."""
    label = "openvino" if kind == FLOAT32 else "openvino NNCF"
    network = openvino_peers.compiled(path, batch.shape, threads, openvino_peers.FLOAT32)
    found = [Peer(label, kind, openvino_peers.call(network, batch))]
    network = openvino_peers.compiled(path, batch.shape, threads, openvino_peers.OWN_CHOICE)
    if openvino_peers.chooses_bfloat16(network):
        rounding = BFLOAT16 if kind == FLOAT32 else INT8
        found.append(Peer(f"{label} bfloat16", rounding, openvino_peers.call(network, batch)))
    return found


def compiled_call(model: nn.Module, batch: torch.Tensor) -> Callable[[], object]:
    """One call of what torch.compile makes of a network, which has run once."""
    compiled = torch.compile(model)
    compiled(batch)
    return lambda: compiled(batch)


@lru_cache
def absent() -> tuple[Unavailable, ...]:
    """Peers that this installation cannot run at all."""
    found = []
    if HELD_TO:
        found += [Unavailable(name, f"it cannot be held to {HELD_TO}") for name in ("onnxruntime", "torch.compile")]
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        found.append(Unavailable("torch.compile", "there is no C++ compiler"))
    for name, package in (("openvino", openvino), ("openvino NNCF", nncf)):
        if package is None:
            found.append(Unavailable(name, "it is not installed"))
    if find_spec("torchao") is None:
        reason = f"torch {torch.__version__} has no pt2e quantization of its own any more, and torchao is not installed"
        found.append(Unavailable("torchao pt2e", reason))
    return tuple(found)


def versions() -> dict[str, str]:
    """The peers' versions."""
    found = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}
    for name in ("openvino", "nncf", "torchao"):
        if find_spec(name):
            found[name] = version(name)
    return found
