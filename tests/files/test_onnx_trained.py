"""Trained networks, exported: ONNX Runtime gives the codes that were trained."""

import numpy as np
import pytest
import torch
from onnx_runtime import compared, run
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.tutorial import models, shipped


class Branches(nn.Module):
    """Sums, joins and tables of codes beside layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.gate, self.last = nn.Conv2d(4, 4, 1), nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        y = torch.cat([self.second(x) + x, x * torch.sigmoid(self.gate(x))], 1)
        return self.last(y.mean((2, 3)))


NETWORKS = {
    "MLP": lambda: models.MLP(144), "LeNet": lambda: models.LeNet(12), "depthwise": shipped.Depthwise,
    "residual": shipped.Residual, "branches": Branches,
}  # fmt: skip


def images(rows, seed):
    return torch.rand(rows, 1, 12, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_runtime_gives_what_was_trained(name, bits, learned):
    p = qs.prepare_qat(seeded(NETWORKS[name]), [images(32, 0)], weight_bits=bits, learned_scales=learned).train()
    optimizer = torch.optim.SGD(p.parameters(), 0.05, momentum=0.9)
    for step in range(8):
        optimizer.zero_grad()
        x = images(16, 1 + step)
        nn.functional.cross_entropy(p(x), x.mean((1, 2, 3)).mul(100).long() % 10).backward()
        optimizer.step()
    q, x = qs.convert(p.eval()), images(64, 20)
    (output,) = run(qs.export_onnx(q, example=x), **{q.program.inputs[0]: x}).values()
    with torch.no_grad():
        assert np.array_equal(output, p(x).numpy())
    assert compared(q, x) == 640
