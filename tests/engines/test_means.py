"""Averages of what layers of rows and of images give, over any axes."""

import itertools

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause

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
