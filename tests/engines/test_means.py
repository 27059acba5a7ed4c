"""Averages of what layers of rows and of images give, over any axes; values without axes; steps that kernels refuse."""

import itertools
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec.engines.compiled import engine as compiled_engine
from quantspec.engines.registry import engine as find_engine
from quantspec.ir.program import Dequantize, Linear, Program, Quantize, Ref
from quantspec.numerics.affine import QParams

CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Averaged(nn.Module):
    """A layer, the mean over some axes of what it gives, and a layer where five values are left on the last one."""

    def __init__(self, layer, rank, axes, keep):
        super().__init__()
        self.layer = {"rows": nn.Linear(6, 6), "images": CONVOLUTIONS[rank](5, 5, 1)}[layer]
        self.axes, self.keep, self.head = axes, keep, nn.Linear(5, 3)

    def forward(self, x):
        y = torch.relu(self.layer(x)).mean(self.axes, keepdim=self.keep)
        return self.head(y) if y.shape[-1] == 5 else y


@clause("STA-RUN")
@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("layer", ["rows", "images"])
def test_means_are_the_references(rank, layer):
    x = networks.inputs(2, (5, 4, 3, 6)[: rank - 2] + (6,))
    for count in range(1, rank):
        for axes in itertools.combinations(range(1, rank), count):
            for keep in (False, True):
                q = qs.quantize(networks.seeded(lambda a=axes, k=keep: Averaged(layer, rank, a, k)), [x])
                assert torch.equal(q(x), q.run_on("reference")(x)), (axes, keep)


@clause("STA-RUN")
@pytest.mark.parametrize("engine", ["reference", "torch", "compiled"])
def test_a_value_without_axes_keeps_none(engine):
    grid = QParams(0.1, 128, 0, 255)
    steps = Quantize("codes", "x", grid), Dequantize("y", "codes", grid)
    y = find_engine(engine)(Program("onnx", ("x",), {}, steps, Ref("y")))({"x": torch.tensor(0.33)})
    assert y.shape == () and y == grid.dequantize(grid.quantize(np.float32(0.33)))


@contextmanager
def left_to_the_reference():
    """The steps that the compiled engine has run as the reference does, as a list."""
    steps, run_step = [], compiled_engine.run_step

    def watching(step, *args):
        steps.append(step)
        return run_step(step, *args)

    with mock.patch.object(compiled_engine, "run_step", watching):
        yield steps


class Broadcast(nn.Module):
    """Two layers whose rows are added, of which one may have fewer, and another layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in "abc")

    def forward(self, x, other):
        return self.c(torch.relu(self.a(x)) + torch.relu(self.b(other)))


@clause("STA-RUN")
def test_what_kernels_refuse_leaves_no_layer_to_the_reference():
    x, other = networks.inputs(4, (6,)), networks.inputs(1, (6,))[0]  # of another number of axes
    q = qs.quantize(networks.seeded(Broadcast), [(x, other)])
    assert len(q.compiled.parts) == 1
    with left_to_the_reference() as by_reference:
        found = q(x, other)
    assert torch.equal(found, q.run_on("reference")(x, other))
    assert not any(isinstance(step, Linear) for step in by_reference)


class Weighed(nn.Module):
    """Rows times one factor each, plus one number each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 1), nn.Linear(5, 3)

    def forward(self, x):
        y, factor = torch.relu(self.a(x)), torch.relu(self.b(x))
        return self.c(y * factor + factor)


@clause("STA-RUN")
@pytest.mark.parametrize("positions", [(), (4,), (4, 3), (4, 3, 2)])
def test_rows_are_broadcast_along_features(positions):
    x = networks.inputs(3, (*positions, 6))
    q = qs.quantize(networks.seeded(Weighed), [x])
    assert torch.equal(q(x), q.run_on("reference")(x))
