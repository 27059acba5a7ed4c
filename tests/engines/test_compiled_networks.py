"""Whole networks on the compiled engine: what capture and conversion make of them, steps in between that it does not
know among them.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from networks import torch_threads
from quantspec.engines.compiled.engine import Segment


class Squeezed(nn.Module):
    """Depthwise, squeeze and excitation, residual, table, pools, concatenation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.side, self.grouped = nn.Conv2d(16, 10, (1, 3), padding=(0, 1)), nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.head = nn.Linear(34, 7)

    def forward(self, x):
        x = self.stem(x)
        y = F.relu6(self.depthwise(x))
        y = y * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        x = F.relu(x + y)
        x = torch.cat([self.side(x), F.avg_pool2d(self.grouped(x), 3, 1, 1)], 1)
        return self.head(F.max_pool2d(x, 3, 2, 1).mean((2, 3)))


class Shuffled(nn.Module):
    """Channels split, shuffled and moved in ways that the kernels do not know, between layers that they do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.third = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        a, b = torch.relu(self.first(x)).chunk(2, 1)
        x = torch.channel_shuffle(torch.cat([a, self.second(b)], 1), 2)
        return self.last(self.third(x).permute(0, 2, 3, 1))


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 3, 1), nn.Linear(6 * 16, 4)

    def forward(self, x):
        x = torch.relu(self.body(x))
        return {"image": self.left(x), "scores": self.right(torch.flatten(x, 1))}


def flat(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [value[key] for key in sorted(value)]


@pytest.mark.parametrize(
    "net, channels, sizes", [(Squeezed, 3, (16, 33)), (Shuffled, 3, (9, 12)), (TwoOutputs, 1, (6,))]
)
def test_networks(net, channels, sizes):
    torch.default_generator.manual_seed(1)
    model = net().eval()
    quantized = qs.quantize(model, [torch.randn(8, channels, sizes[0], sizes[0])])
    reference, compiled = quantized.run_on("reference"), quantized.run_on("compiled")
    segments = [part for part in compiled.compiled.parts if isinstance(part, Segment)]
    assert segments
    for size in sizes:
        for batch in (1, 2, 5):
            x = torch.randn(batch, channels, size, size)
            for _ in range(2):
                for found, expected in zip(flat(compiled(x)), flat(reference(x)), strict=True):
                    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert all(len(segment.batched) == 3 * len(sizes) for segment in segments), "the kernels did not take some shape"


def test_batches_in_slices_and_threads_of_images():
    torch.default_generator.manual_seed(2)
    quantized = qs.quantize(Squeezed().eval(), [torch.randn(8, 3, 64, 64)])
    compiled, x = quantized.run_on("compiled"), torch.randn(37, 3, 64, 64)
    expected = torch.cat([compiled(image[None]) for image in x])
    assert torch.equal(expected[:4], quantized.run_on("reference")(x[:4]))
    for threads in (1, 2, 3):
        with torch_threads(threads):
            assert torch.equal(compiled(x), expected)


def test_channels_last_inputs():
    torch.default_generator.manual_seed(3)
    quantized = qs.quantize(Squeezed().eval(), [torch.randn(8, 3, 16, 16)])
    x = torch.randn(3, 3, 16, 16)
    expected = quantized.run_on("reference")(x)
    assert torch.equal(quantized.run_on("compiled")(x.to(memory_format=torch.channels_last)), expected)


def test_copies_and_pickles_compute_the_same_and_it_says_what_it_compiled():
    torch.default_generator.manual_seed(4)
    quantized = qs.quantize(Shuffled().eval(), [torch.randn(8, 3, 12, 12)]).run_on("compiled")
    x = torch.randn(2, 3, 12, 12)
    expected = quantized(x)
    assert quantized.engine == "compiled"
    for other in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(other(x), expected)
    layers = {step.name for step in quantized.program.layers}
    assert layers <= quantized.compiled.inside < {step.name for step in quantized.program.steps}
