"""What is asked of a tensor, and what becomes of a constant that a layer takes in, as nodes of a graph."""

import pytest
import torch
from recordings import Written
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.capture import tracer
from quantspec.ir.float_graph import Shape

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "write",
    [
        lambda y: y * torch.ones(y.shape[-1]),
        lambda y: y.flatten(y.ndim - 1),
        lambda y: y.to(y.dtype),
        lambda y: y + torch.ones(8, device=y.device),
        lambda y: y.reshape(y.size()),
        lambda y: y.reshape(y.numel() // 8, 8),
        lambda y: y.flatten(y.dim() - 1),
    ],
    ids=["shape", "ndim", "dtype", "device", "size", "numel", "dim"],
)
def test_what_is_asked_of_a_value_is_no_value_that_is_computed(write):
    model = seeded(lambda: Written(write)).requires_grad_(False)
    graph = tracer.trace(model).graph
    asked = [node for node in graph.nodes if isinstance(node, Shape)]
    assert [node.x for node in asked] == ["layer"]
    assert asked[0].call.target in ("builtins.getattr", "size", "numel", "dim")


class Around(nn.Module):
    """A layer, and in front of it or behind it a constant that is computed of a parameter."""

    def __init__(self, written):
        super().__init__()
        self.layer, self.scale, self.written = nn.Conv2d(3, 3, 1), nn.Parameter(torch.rand(3, 1, 1) + 0.5), written

    def forward(self, x):
        return self.written(self.layer, x, self.scale * 2)


@pytest.mark.parametrize(
    "written",
    [
        lambda layer, x, c: layer(x) / c, lambda layer, x, c: layer(x) - c, lambda layer, x, c: layer(x) * c,
        lambda layer, x, c: layer(x) + c,
    ],
    ids=["quotient", "difference", "product", "sum"],
)  # fmt: skip
def test_a_computed_constant_that_a_layer_takes_in_is_trained(written):
    model = seeded(lambda: Around(written))
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    p = qs.prepare_qat(model, [x]).train()
    (_, _, network), = p.parts()
    assert len(network.graph.nodes) == 1  # the layer, with the constant in it
    (layer,) = network.layers.values()
    weight, bias = layer.folded()
    nn.functional.conv2d(x, weight, bias).square().sum().backward()  # in float
    model(x).square().sum().backward()
    found, wanted = p.model.scale.grad, model.scale.grad
    # Sums over 32 positions in float32 of products that are rounded a few times, each time by 2^-24 of what they are.
    assert found is not None and torch.allclose(found, wanted, rtol=0, atol=32 * 2**-24 * float(wanted.abs().max()))
