"""What was trained beside what is shipped, value by value: every layer of five networks over the whole test set, in
evaluation mode before conversion and behind it (QAT-EQUAL), and torch.ao's output codes beside that."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.engines.reference import Reference
from quantspec.ir import float_run
from quantspec.ir.program import Program, Step
from quantspec.ir.rearrange import as_tensors
from quantspec.progress import progress
from quantspec.qat.network import Network
from quantspec.qat.prepare import convert, prepare_qat
from quantspec.qat.run import Run
from quantspec.qat.steps import STEPS

from . import models, torch_fx
from .data import Dataset
from .rows import first_line
from .tutorial import TEST_BATCH, calibration_batches

BITS, DIALECTS, EPOCHS, LEARNING_RATE = (8, 4), ("onnx", "fbgemm"), 1, 1e-3
PEER = "x86"
TOLD = (
    "In evaluation mode, over the whole test set: every value of every layer before and behind conversion, outputs of "
    "the engine that runs it, and output codes of torch.ao's network as it was trained and as it was converted."
)


class Depthwise(nn.Module):
    """A depthwise convolution between two others, for images [n, 1, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.relu, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Linear(64, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        scores: torch.Tensor = self.head(torch.flatten(self.pool(self.relu(self.norm3(self.conv3(x)))), 1))
        return scores


class Residual(nn.Module):
    """A block with a sum around it, for images [n, 1, ...]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.pool, self.head = nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Linear(32, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        inner = self.norm3(self.conv3(self.relu(self.norm2(self.conv2(x)))))
        scores: torch.Tensor = self.head(torch.flatten(self.pool(self.relu(x + inner)), 1))
        return scores


def networks(dataset: Dataset) -> dict[str, Callable[[], nn.Module]]:
    """The networks by name, for images of the dataset's size."""
    size = dataset.x_test.shape[-1]
    return {
        "MLP": lambda: models.MLP(size * size), "LeNet": lambda: models.LeNet(size), "depthwise": Depthwise,
        "residual": Residual, "LSTM": lambda: models.RowReader(size),
    }  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One network in one dialect. ``values`` and ``differ``: of all layers; ``outputs`` and ``outputs_differ``: of the
    engine that runs it; ``peer_outputs`` and ``peer_differ``: torch.ao's, None with a reason where it has none."""

    network: str
    bits: int
    dialect: str
    engine: str
    layers: int
    values: int
    differ: int
    outputs: int
    outputs_differ: int
    peer_outputs: int | None
    peer_differ: int | None
    peer_reason: str


def rows(
    dataset: Dataset, *, bits: Iterable[int] = BITS, dialects: Iterable[str] = DIALECTS, epochs: int = EPOCHS
) -> list[Row]:
    """A row for each network, number of bits of weights, and dialect."""
    wanted = [(name, build, number) for name, build in networks(dataset).items() for number in bits]
    found = []
    for name, build, number in progress(wanted, "trained and shipped"):
        peer = beside(seeded(build), dataset, number, epochs)
        found += [row(name, seeded(build), dataset, number, dialect, epochs, peer) for dialect in dialects]
    return found


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A network in evaluation mode; torch's global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


Peer = tuple[int | None, int | None, str]


def row(
    name: str, model: nn.Module, dataset: Dataset, bits: int, dialect: str, epochs: int, peer: Peer
) -> Row:
    p = prepare_qat(model, calibration_batches(dataset), weight_bits=bits, dialect=dialect)
    models.train(p, dataset, seed=0, epochs=epochs, learning_rate=LEARNING_RATE)
    q = convert(p)
    network, program = p.networks[0], q.program
    assert isinstance(network, Network)
    values = differ = outputs = outputs_differ = 0
    with torch.no_grad():
        for x in torch.split(dataset.x_test, TEST_BATCH):
            for trained, shipped in at_every_step(network, program, x):
                values, differ = values + trained.size, differ + different(trained, shipped)
            trained, shipped = p(x).numpy(), q(x).numpy()
            outputs, outputs_differ = outputs + trained.size, outputs_differ + different(trained, shipped)
    layers = len(program.layers)
    return Row(name, bits, dialect, q.engine, layers, values, differ, outputs, outputs_differ, *peer)


def different(a: np.ndarray, b: np.ndarray) -> int:
    """How many values of two arrays differ: all where they have not one shape."""
    return int((a != b).sum()) if a.shape == b.shape else max(a.size, b.size)


def at_every_step(network: Network, program: Program, x: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """What each step gives before and behind conversion: codes as steps from the zero point, floats as they are."""
    shipped: dict[str, Any] = {}

    def see(step: Step, value: Any) -> None:
        shipped[step.name] = value

    Reference(program)({program.inputs[0]: x}, see)
    run, pairs, grids = Run(network), [], dict[str, Any]()
    run.values |= float_run.bind(program.inputs, program.defaults, (x,))
    for step, behind in zip(network.template.steps, program.steps, strict=True):
        run.values[step.name] = trained = STEPS[type(step)](run, step)
        got = shipped.pop(step.name)
        grids[step.name] = grid_of(behind, grids)
        if isinstance(got, np.ndarray) and got.dtype == np.uint8:
            got = got.astype(np.float32) - grids[step.name].zero_point
        pairs += [(a.numpy(), np.asarray(b)) for a, b in zip(tensors(trained), tensors(got), strict=True)]
    assert not shipped, f"steps that were not trained: {list(shipped)}"
    return pairs


def grid_of(step: Step, grids: dict[str, Any]) -> Any:
    """The grid of what a step gives, which is that of its input where it has none of its own."""
    own = getattr(step, "y_qparams", None) or getattr(step, "qparams", None)
    return own or grids.get(getattr(step, "x", ""))


def tensors(value: Any) -> list[Any]:
    """The tensors in what a step gives, which may be a tuple with the states of a recurrent layer."""
    value = as_tensors(value)
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def beside(model: nn.Module, dataset: Dataset, bits: int, epochs: int) -> Peer:
    """torch.ao's counts, or why there are none."""
    try:
        compared, differ = trained_peer(model, dataset, bits, epochs)
    except Exception as error:  # torch.ao raises whatever it comes upon
        return None, None, first_line(error)
    return compared, differ, ""


def trained_peer(model: nn.Module, dataset: Dataset, bits: int, epochs: int) -> tuple[int, int]:
    """Output codes of torch.ao's converted network, and how many differ from what it was trained as."""
    prepared = torch_fx.in_training(model, dataset.x_test[:1], bits=bits, engine=PEER)
    models.train(prepared, dataset, seed=0, epochs=epochs, learning_rate=LEARNING_RATE)
    shipped, scale = torch_fx.converted(prepared, engine=PEER)
    compared = differ = 0
    with torch.no_grad():
        for x in torch.split(dataset.x_test, TEST_BATCH):
            steps = ((prepared(x) - shipped(x)) / scale).round()
            compared, differ = compared + steps.numel(), differ + int((steps != 0).sum())
    return compared, differ
