"""No samples, or none of a sequence's tokens, through layers of attention: nothing comes out, in the shape that torch
gives it."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.tutorial import zoo


class Attends(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first)

    def forward(self, x):
        return self.attention(x, x, x)


def layers(kind, **options):
    return lambda: kind(16, 2, 32, **options)


NETWORKS = {
    "attention": lambda: Attends(True),
    "batch behind": lambda: Attends(False),
    "encoder": layers(nn.TransformerEncoderLayer, batch_first=True),
    "encoder, batch behind": layers(nn.TransformerEncoderLayer),
}
WAYS = {
    "static": lambda model, x: qs.quantize(model, [x]),
    "dynamic": lambda model, x: qs.quantize_dynamic(model, example=x),
    "by token": lambda model, x: qs.quantize_dynamic(model, example=x, activations="per_token"),
    "weights alone": lambda model, x: qs.quantize_dynamic(model, example=x, activations=None),
}


def shapes(output):
    """The shapes of what a network gives."""
    return [y.shape for y in (output if isinstance(output, tuple) else (output,))]


@pytest.mark.filterwarnings("ignore:.* of the multiply-accumulates are in int8")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_attention_take_no_samples_and_no_tokens(name, way):
    model = seeded(NETWORKS[name])
    q = WAYS[way](model, torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)))
    for shape in ((0, 5, 16), (3, 0, 16), (0, 0, 16)):
        for engine in ("compiled", "reference", "torch"):
            assert shapes(q.run_on(engine)(torch.zeros(shape))) == shapes(model(torch.zeros(shape)))


def test_attention_in_windows_takes_no_images():
    model = zoo.build("swin_t", 64)
    q = qs.quantize(model, [zoo.images(1, 64, 0)])
    assert q(torch.zeros(0, 3, 64, 64)).shape == model(torch.zeros(0, 3, 64, 64)).shape
