"""Images without positions, or none of them: kernels give what the reference engine gives, and raise where it does."""

import numpy as np
import pytest
import torch
from torch import nn

import programs
import quantspec as qs
from networks import seeded
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.ir.program import AvgPool, MaxPool


class Both(nn.Module):
    """What two layers of images become together."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), how

    def forward(self, x):
        return self.how(self.a(x), self.b(x))


def behind(module, kernel=1, padding=0):
    """A convolution and what follows it."""
    return lambda: nn.Sequential(nn.Conv2d(3, 4, kernel, padding=padding), module)


def before(module, axes=2):
    """A convolution and what comes before it."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    return lambda: nn.Sequential(module, conv(3, 4, 1))


POOLS = {
    "the largest": before(nn.MaxPool2d(2, 1, 1)),
    "the average": before(nn.AvgPool2d(2, 1, 1)),
    "the average of what is inside": before(nn.AvgPool2d(2, 1, 1, count_include_pad=False)),
    "the largest, along one axis": before(nn.MaxPool1d(2, 1, 1), 1),
    "the average, along three": before(nn.AvgPool3d(2, 1, 1), 3),
    "a window that ends outside": before(nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
}
NETWORKS = POOLS | {
    "a wide padding": behind(nn.Conv2d(4, 4, 3, padding=2), 3, 2),
    "a pool of padding": behind(nn.MaxPool2d(2, 1, 1), 3, 2),
    "one for each channel": lambda: nn.Sequential(nn.Conv2d(3, 3, 3, padding=2, groups=3)),
    "groups": behind(nn.Conv2d(4, 8, 3, padding=2, groups=2)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2)),
    "along one axis": lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=2), nn.MaxPool1d(2, 1, 1)),
    "along three axes": lambda: nn.Sequential(nn.Conv3d(3, 4, 3, padding=2), nn.MaxPool3d(2, 1, 1)),
    "parts of nothing": behind(nn.AdaptiveAvgPool2d((3, 2))),
    "between positions": behind(nn.Upsample(scale_factor=2, mode="bilinear")),
    "a sum": lambda: Both(torch.add),
    "a product": lambda: Both(torch.mul),
    "joined": lambda: Both(lambda a, b: torch.cat([a, b], 1)),
    "a function": behind(nn.GELU()),
    "flat": behind(nn.Sequential(nn.Flatten(), nn.Linear(100, 3))),
}


def axes_of(model):
    """How many axes of positions the images of a model have."""
    layers = (m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd))
    return len(next(layers).kernel_size)


def outcome(network, x):
    """What a network gives, or None where it raises."""
    try:
        return network(x).detach().numpy()
    except (ValueError, RuntimeError):
        return None


@pytest.mark.parametrize("name", NETWORKS)
def test_images_without_positions_are_what_the_reference_engine_says(name):
    model = seeded(NETWORKS[name])
    axes = axes_of(model)
    q = qs.quantize(model, [torch.rand(2, 3, *[5] * axes, generator=torch.Generator().manual_seed(0))])
    reference = q.run_on("reference")
    for positions in ([0] * axes, [0] + [5] * (axes - 1), [5] * (axes - 1) + [0]):
        for images in (0, 2):
            x = torch.zeros(images, 3, *positions)
            ours, theirs = outcome(q, x), outcome(reference, x)
            assert (ours is None) == (theirs is None), x.shape
            assert ours is None or ours.shape == theirs.shape and np.array_equal(ours, theirs, equal_nan=True), x.shape


@pytest.mark.parametrize("name", POOLS)
def test_windows_of_padding_alone_are_refused_as_torch_refuses_them(name):
    model = seeded(POOLS[name])
    axes = axes_of(model)
    q = qs.quantize(model, [torch.rand(2, 3, *[5] * axes, generator=torch.Generator().manual_seed(0))])
    x = torch.zeros(2, 3, 0, *[5] * (axes - 1))
    assert all(outcome(network, x) is None for network in (model, q, q.run_on("reference"), q.run_on("torch")))


@pytest.mark.parametrize("positions", [(0, 0), (0, 5), (5, 0), (0, 5, 5), (5, 0, 5), (5, 5, 0)])
def test_a_program_of_a_pool_alone_refuses_images_without_positions(positions):
    r = np.random.default_rng(0)
    grid, ones = programs.grid(r), (1,) * len(positions)
    twos = (2,) * len(positions)
    largest = MaxPool("y", "x.codes", twos, ones, ones, ones, False)
    average = AvgPool("y", "x.codes", grid, twos, ones, ones, False, True)
    for pool in (largest, average):
        program = programs.between(grid, [pool], grid)
        for engine in (Compiled(program), Reference(program)):
            with pytest.raises(ValueError, match="q: expected positions along each axis that windows lie on, got"):
                engine({"x": torch.zeros(2, 3, *positions)})
