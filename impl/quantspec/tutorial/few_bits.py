"""Training at few bits: what ``quantspec run --qat`` adds. The tutorial's network with weights of fewer and fewer bits,
calibrated and trained, and the way that one weight takes across its grid."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from quantspec.module.module import QuantizedModule
from quantspec.progress import progress
from quantspec.ptq.static import quantize
from quantspec.qat.network import Network
from quantspec.qat.prepare import QATModule, convert, prepare_qat

from . import models, shipped
from .data import Dataset
from .tutorial import TEST_BATCH, calibration_batches, predictions

BITS = 8, 4, 3, 2
# With fewer bits scales are learned: the range of a weight reaches far beyond most of them.
LEARNED_BELOW = 4
EPOCHS, LEARNING_RATE = 5, 1e-3
WATCHED = "fc2"


@dataclass(frozen=True, eq=False)
class Way:
    """The way of one weight through training: by step its value and its layer's scale for it, both float32; its last
    code is what is shipped."""

    layer: str
    place: tuple[int, int]
    values: np.ndarray
    scales: np.ndarray
    qmin: int
    qmax: int

    @property
    def codes(self) -> np.ndarray:
        """The code that it has at each step."""
        codes: np.ndarray = np.clip(np.rint(self.values / self.scales), self.qmin, self.qmax).astype(np.int8)
        return codes


TOLD = (
    f"Each begins with the float network and trains for {EPOCHS} epochs; below {LEARNED_BELOW} bits scales are "
    "learned. Activations have 8 bits."
)


@dataclass(frozen=True, eq=False)
class Row:
    """One number of bits. Accuracies are shares of 1: ``float32`` of the float network, which calibration and training
    began with. ``differ`` of ``compared`` outputs are others in the network that was trained and in what was made of
    it."""

    bits: int
    float32: float
    calibrated: float
    trained: float
    learned: bool
    compared: int
    differ: int
    seconds: float
    way: Way


@dataclass(frozen=True, eq=False)
class Training:
    """All that training found."""

    rows: tuple[Row, ...]
    shipped: tuple[shipped.Row, ...]

    def as_json(self) -> dict[str, Any]:
        """It as plain data, for ``--json``."""
        names = "bits", "float32", "calibrated", "trained", "learned", "compared", "differ", "seconds"
        found = [{name: getattr(row, name) for name in names} for row in self.rows]
        return {"few_bits": found, "shipped": [vars(row) for row in self.shipped]}


def run(model: nn.Module, dataset: Dataset) -> Training:
    """Trains the tutorial's network at few bits, and others to compare what was trained with what is shipped."""
    return Training(tuple(rows(model, dataset)), tuple(shipped.rows(dataset)))


def rows(model: nn.Module, dataset: Dataset, *, bits: tuple[int, ...] = BITS, epochs: int = EPOCHS) -> list[Row]:
    """A row for each number of bits of weights; activations have eight."""
    float32 = accuracy(model, dataset)
    return [row(model, dataset, number, float32, epochs) for number in progress(bits, "train at few bits")]


def row(model: nn.Module, dataset: Dataset, bits: int, float32: float, epochs: int) -> Row:
    batches, learned = calibration_batches(dataset), bits < LEARNED_BELOW
    calibrated = accuracy(quantize(model, batches, weight_bits=bits), dataset)
    p = prepare_qat(model, batches, weight_bits=bits, learned_scales=learned)
    watch = Watch(p, WATCHED)
    start = time.perf_counter()
    models.train(p, dataset, seed=0, epochs=epochs, learning_rate=LEARNING_RATE, watch=watch.note)
    seconds = time.perf_counter() - start
    q = convert(p)
    compared = differ = 0
    with torch.no_grad():
        for x in torch.split(dataset.x_test, TEST_BATCH):
            before, behind = p(x), q(x)
            compared, differ = compared + behind.numel(), differ + int((before != behind).sum())
    assert isinstance(q, QuantizedModule), "the tutorial's network is one graph"
    found = accuracy(q, dataset)
    return Row(bits, float32, calibrated, found, learned, compared, differ, seconds, watch.way())


def accuracy(network: nn.Module, dataset: Dataset) -> float:
    return float((predictions(network, dataset.x_test) == dataset.y_test.numpy()).mean())


class Watch:
    """Notes the weights of a layer, and their scales, at each step of training."""

    def __init__(self, p: QATModule, layer: str):
        network = p.networks[0]
        assert isinstance(network, Network)
        self.network, self.layer = network, layer
        self.name = next(name for name, own in network.layers.items() if own.node.layer == layer)
        self.weights: list[np.ndarray] = []
        self.scales: list[np.ndarray] = []
        self.note()

    def note(self) -> None:
        weight = self.network.model.get_parameter(f"{self.layer}.weight").detach()
        scale, _ = self.network.weight_scales(self.name, weight)
        self.weights.append(weight.numpy().copy())
        self.scales.append(scale.numpy().copy())

    def way(self) -> Way:
        """The way of the weight whose code changed most often."""
        weights, scales = np.stack(self.weights), np.stack(self.scales)
        each = scales[:, :, None] if scales.ndim == 2 else scales[:, None, None]
        qmax = 2 ** (self.network.options.weight_bits - 1) - 1
        codes = np.clip(np.rint(weights / each), -qmax - 1, qmax)
        changes = (codes[1:] != codes[:-1]).sum(0)
        output, position = map(int, np.unravel_index(changes.argmax(), changes.shape))
        own = np.broadcast_to(each, weights.shape)[:, output, position]
        return Way(self.layer, (output, position), weights[:, output, position], own, -qmax - 1, qmax)
