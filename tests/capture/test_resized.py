"""Bilinear interpolation to the size of another value, by whatever words a forward asks for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from networks import seeded
from quantspec.capture import parts, tracer
from quantspec.ir.float_graph import Bilinear

IMAGES = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((1, 3, 9, 8), (2, 3, 7, 11))]


class Resized(nn.Module):
    """A smaller image, as large as ``size`` says of it and of the one before."""

    def __init__(self, size):
        super().__init__()
        self.conv, self.size = nn.Conv2d(3, 3, 3, stride=2), size

    def forward(self, x):
        y = self.conv(x)
        return F.interpolate(y, size=self.size(x, y), mode="bilinear")


# What the size is, and whether it is that of the image before at each call.
SIZES = {
    "lengths": (lambda x, y: (x.size(2), x.size(3)), True),
    "from behind": (lambda x, y: (x.size(-2), x.size(-1)), True),
    "items": (lambda x, y: (x.shape[2], x.shape[3]), True), "items of size()": (lambda x, y: x.size()[2:], True),
    "the last items": (lambda x, y: x.shape[-2:], True), "two items": (lambda x, y: x.shape[2:4], True),
    "a list of both": (lambda x, y: [x.size()[-2], x.size(3)], True),
    "exchanged": (lambda x, y: (x.size(3), x.size(2)), False), "one twice": (lambda x, y: (x.size(2),) * 2, False),
    "of two images": (lambda x, y: (x.size(2), y.size(3)), False), "of channels": (lambda x, y: x.shape[1:3], False),
    "a length and the channels": (lambda x, y: (x.size(1), x.size(3)), False),
    "twice as large": (lambda x, y: (x.size(2) * 2, x.size(3) * 2), False),
    "a number and a length": (lambda x, y: (5, x.size(3)), False),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_an_image_is_as_large_as_another_one_however_its_size_is_asked_for(name):
    size, of_another = SIZES[name]
    model = seeded(lambda: Resized(size)).requires_grad_(False)
    graph = tracer.capture(model)
    for x in IMAGES:
        assert parts.graph_differs(graph, (x,), model(x)) is None
    assert [node.like for node in graph.nodes if isinstance(node, Bilinear)] == (["x"] if of_another else [])
