"""A network of a family, quantized in three ways without a change to it, beside what torch.ao makes of it."""

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from quantspec.comparison.result import plain as plain_tree
from quantspec.module.islands import QuantizedModel
from quantspec.module.load import load
from quantspec.module.module import QuantizedModule
from quantspec.numerics import accuracy
from quantspec.ptq.dynamic import quantize_dynamic
from quantspec.ptq.static import convert, prepare
from quantspec.tutorial import torch_fx
from quantspec.tutorial.rows import Column, Quantized, call, decibels, first_line, percent, table

from .network import Network, built
from .registry import networks

CALIBRATION, TEST = range(100, 108), range(200, 204)  # seeds
ROUNDS = 5
SAME_FLOAT = 60.0  # dB, below which what was captured is another network: float32's own rounding is above 100


@dataclass(frozen=True, kw_only=True)
class Taken(Quantized):
    """A network that was quantized in one way. ``float_sqnr``: of what was captured, run in float on data that
    calibration did not have, None where that is not to be had; ``speed``: how many times as fast as eager float32;
    ``saved``: why it could not be saved and loaded with the same bits, or nothing."""

    float_sqnr: float | None
    speed: float
    saved: str


@dataclass(frozen=True)
class FamilyRow:
    """One network: each way of quantizing it, or why it was refused. ``changed``: what of the model was another
    afterwards."""

    name: str
    static: Taken | str
    dynamic: Taken | str
    by_example: Taken | str
    changed: str

    @property
    def ways(self) -> dict[str, Taken | str]:
        """What came of each way, by name."""
        return {"static": self.static, "dynamic": self.dynamic, "dynamic by example": self.by_example}


@dataclass(frozen=True)
class Subject:
    """A network with what is measured on it. ``given``: the same model again, which is quantized and never run, since
    running a model may change it."""

    network: Network
    model: nn.Module
    given: nn.Module
    calibration: list[Any]
    tests: list[Any]

    def answer(self, model: Callable[..., Any]) -> list[torch.Tensor]:
        """What a model gives for the test batches. Raises ValueError where that is not finite."""
        outputs = [o for test in self.tests for o in self.network.answer(call(model, copy.deepcopy(test)))]
        if not all(torch.isfinite(output).all() for output in outputs):
            raise ValueError("outputs: expected finite numbers")
        return outputs


def row(family: str, name: str) -> FamilyRow:
    """Quantizes one network of a family and measures it, in this process."""
    network = networks(family)[name]
    batches = list(map(network.batch, CALIBRATION)), list(map(network.batch, TEST))
    subject = Subject(network, built(network), built(network), *batches)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some of it stays in float, which the row says
        peer = torch_ao(subject, lambda: torch_fx.quantized(subject.model, subject.calibration))
        dynamic_peer = torch_ao(subject, lambda: dynamic_by_torch(subject.model))
        before, random = state(subject.given), torch.random.get_rng_state()
        results = (
            static(subject, peer),
            taken(subject, lambda: quantize_dynamic(subject.given), dynamic_peer),
            taken(subject, lambda: quantize_dynamic(subject.given, example=subject.calibration[0]), dynamic_peer),
        )
    changed = changes(before, state(subject.given))
    if not torch.equal(random, torch.random.get_rng_state()):
        changed = changed or "random state"
    return FamilyRow(name, *results, changed)


def static(subject: Subject, peer: tuple[float | None, str]) -> Taken | str:
    """Static quantization, in its three steps, since the observed network shows what was captured."""
    prepared: list[nn.Module] = []

    def quantized() -> QuantizedModule | QuantizedModel:
        network = prepare(subject.given)
        for batch in subject.calibration:
            network.observe(batch)
        prepared.append(network)
        return convert(network)

    return taken(subject, quantized, peer, prepared)


def dynamic_by_torch(model: nn.Module) -> nn.Module:
    """The model with layers quantized dynamically by torch.ao."""
    from torch.ao.quantization import quantize_dynamic as theirs

    torch.backends.quantized.engine = "x86"
    network: nn.Module = theirs(model, {nn.Linear, nn.LSTM, nn.GRU}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    if not any(".quantized." in type(module).__module__ for module in network.modules()):
        raise ValueError("it has no layer that is quantized dynamically")
    return network


def torch_ao(subject: Subject, quantized: Callable[[], nn.Module]) -> tuple[float | None, str]:
    """The SQNR of what torch.ao makes of a model, or why that is not to be had."""
    try:
        return sqnr(subject.answer(subject.model), subject.answer(quantized())), ""
    except Exception as error:  # whatever another library raises is its answer
        return None, first_line(error)


def taken(
    subject: Subject,
    quantize: Callable[[], QuantizedModule | QuantizedModel],
    peer: tuple[float | None, str],
    prepared: list[nn.Module] | None = None,
) -> Taken | str:
    """What comes of one way of quantizing, or why nothing does."""
    try:
        start = time.perf_counter()
        q = quantize()
        seconds = time.perf_counter() - start
        expected, got = subject.answer(subject.model), subject.answer(q)
        in_float = sqnr(expected, subject.answer(prepared[0])) if prepared else None
    except Exception as error:  # a network that is refused is a row of the table
        return first_line(error, 300)
    share = None if q.report is None else q.report.share
    nbytes = sum(t.nbytes for t in (*subject.model.parameters(), *subject.model.buffers()))
    return Taken(
        sqnr=sqnr(expected, got), peer_sqnr=peer[0], peer_reason=peer[1], int8_macs=share,
        compression=nbytes / q.nbytes, seconds=seconds, float_sqnr=in_float, speed=speed(subject, q),
        saved=saved(subject, q, got),
    )  # fmt: skip


def sqnr(expected: list[torch.Tensor], got: list[torch.Tensor]) -> float:
    """The SQNR of outputs in dB. Those that are lists of varying length, such as detections, are compared as far as
    both go. Raises ValueError for other shapes."""
    signal = error = 0.0
    for want, have in zip(expected, got, strict=True):
        if want.shape[1:] != have.shape[1:]:
            raise ValueError(f"outputs: expected {tuple(want.shape)}, got {tuple(have.shape)}")
        length = min(len(want), len(have)) if want.ndim else None
        a, b = (value.double() if length is None else value[:length].double() for value in (want, have))
        signal, error = signal + float(a.square().sum()), error + float((a - b).square().sum())
    return accuracy.decibels(signal, error)


def speed(subject: Subject, q: nn.Module) -> float:
    """How many times as fast as the float model a network is: the shortest of calls in turn."""
    times: dict[nn.Module, list[float]] = {subject.model: [], q: []}
    for _ in range(ROUNDS):
        for model, seconds in times.items():
            start = time.perf_counter()
            call(model, subject.tests[0])
            seconds.append(time.perf_counter() - start)
    return min(times[subject.model]) / min(times[q])


def saved(subject: Subject, q: QuantizedModule | QuantizedModel, expected: list[torch.Tensor]) -> str:
    """Why a network cannot be saved and loaded, or nothing where it then gives the same bits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        try:
            q.save(path)
            got = subject.answer(load(path, model=subject.model))
        except Exception as error:  # a network that has no file is told in the row
            return first_line(error)
    return "" if all(map(torch.equal, expected, got)) else "other numbers when loaded"


def state(model: nn.Module) -> dict[str, Any]:
    """What a model holds: tensors, flags, attributes and hooks, by where they are."""
    held: dict[str, Any] = {f"tensor {name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            where = f"attribute {path}.{name}".replace(" .", " ")
            held[where] = list(value) if isinstance(value, Mapping) else plain(value)
    return held


def plain(value: Any) -> Any:
    """A value that can be compared later: numbers and names as they are, other things by what and which they are."""
    if isinstance(value, bool | int | float | str | None):
        return value
    return value.clone() if isinstance(value, torch.Tensor) else (type(value), id(value))


def changes(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first thing of a model that is another, or nothing."""
    for where in (*before, *after):
        if where not in before or where not in after:
            return where
        old, new = before[where], after[where]
        both = isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
        if not (torch.equal(old, new) if both else type(old) is type(new) and old == new):
            return where
    return ""


def as_table(family: str, found: list[FamilyRow]) -> Table:
    """The rows as a table of at most 79 columns."""
    def column(heading: str, way: str, text: Callable[[Taken], str]) -> Column[FamilyRow]:
        def cell(r: FamilyRow) -> str:
            result = r.ways[way]
            return "–" if isinstance(result, str) else text(result)

        return Column(heading, cell)

    columns = [
        Column("network", lambda r: r.name[:24]),
        column("SQNR", "static", lambda t: decibels(t.sqnr)),
        column("ao", "static", lambda t: decibels(t.peer_sqnr)),
        column("int8", "static", lambda t: percent(t.int8_macs)),
        column("s", "static", lambda t: f"{t.seconds:.1f}"),
        column("speed", "static", lambda t: f"{t.speed:.2f}x"),
        column("dyn.", "dynamic", lambda t: decibels(t.sqnr)),
        column("ex.", "dynamic by example", lambda t: decibels(t.sqnr)),
        column("ao", "dynamic", lambda t: decibels(t.peer_sqnr)),
    ]  # fmt: skip
    return table(f"{family} in int8, dB", columns, found)


def notes(found: list[FamilyRow]) -> list[str]:
    """How many were taken in each way, and what went wrong, equal reasons together."""
    lines = []
    for way in found[0].ways if found else ():
        results = {r.name: r.ways[way] for r in found}
        got = {name: result for name, result in results.items() if isinstance(result, Taken)}
        lines.append(f"{way}: {len(got)} of {len(found)} taken")
        lines += grouped("refused", {name: result for name, result in results.items() if isinstance(result, str)})
        lines += grouped("not saved", {name: t.saved for name, t in got.items() if t.saved})
        lines += grouped("torch.ao cannot", {name: t.peer_reason for name, t in got.items() if t.peer_reason})
        other = [n for n, t in got.items() if t.float_sqnr is not None and t.float_sqnr < SAME_FLOAT]
        lines += [f"  another network in float: {', '.join(other)}"] if other else []
    return lines + grouped("changed", {r.name: r.changed for r in found if r.changed})


def grouped(what: str, reasons: dict[str, str]) -> list[str]:
    """Reasons with the names that have them."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"  {what}: {', '.join(having)}: {reason}" for reason, having in names.items()]


def as_json(family: str, found: list[FamilyRow]) -> dict[str, Any]:
    """The rows as plain data."""
    return {"family": family, "rows": plain_tree([asdict(r) for r in found])}
