"""Weights that torch computes from other parameters: the network is that of the weights as they are."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import networks
import quantspec as qs

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def twice(module, *names):
    for name in names:
        parametrize.register_parametrization(module, name, Twice())
    return module


class Causal(nn.Conv1d):
    """A convolution that sees nothing later, by a forward of its own."""

    def forward(self, x):
        return super().forward(F.pad(x, (self.kernel_size[0] - 1, 0)))


class Written(nn.Module):
    """A linear layer of nobody's."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Block(nn.Module):
    """Layers, and a parameter of the block's own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.factor = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.second(torch.relu(self.first(x))) * self.factor


SERIES = networks.inputs(3, (5, 4))
WORDS = torch.randint(0, 9, (3, 4), generator=torch.Generator().manual_seed(1))
CASES = {
    "GRU, normed": (lambda: parametrizations.weight_norm(nn.GRU(4, 4, batch_first=True), "weight_hh_l0"), SERIES),
    "LSTM": (lambda: twice(nn.LSTM(4, 4, 2, batch_first=True), "weight_ih_l0", "weight_hh_l1"), SERIES),
    "RNN, bias": (lambda: twice(nn.RNN(4, 4, batch_first=True, bidirectional=True), "bias_ih_l0_reverse"), SERIES),
    "cell": (lambda: twice(nn.GRUCell(4, 4), "weight_ih"), SERIES[0]),
    "linear, spectral": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), SERIES),
    "linear, orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), SERIES),
    "convolution": (lambda: parametrizations.weight_norm(nn.Conv1d(5, 4, 2)), SERIES),
    "transposed": (lambda: parametrizations.weight_norm(nn.ConvTranspose1d(5, 4, 2)), SERIES),
    "convolution of another class": (lambda: parametrizations.weight_norm(Causal(5, 4, 2)), SERIES),
    "linear of no class of torch's": (lambda: parametrizations.spectral_norm(Written()), SERIES),
    "a block": (lambda: twice(Block(), "factor"), SERIES),
    "table": (lambda: twice(nn.Embedding(9, 4), "weight"), WORDS),
    "bag": (lambda: twice(nn.EmbeddingBag(9, 4), "weight"), WORDS),
    "normalization": (lambda: nn.Sequential(nn.Linear(4, 4), twice(nn.LayerNorm(4), "weight"), nn.ReLU()), SERIES),
}  # fmt: skip


def without(model):
    """A model with weights that are parameters, of the same values. It is changed, as its class is its own."""
    for module in model.modules():
        for name in list(getattr(module, "parametrizations", ())):
            parametrize.remove_parametrizations(module, name)
    return model


def tensor(output):
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output.detach()
# What dynamic networks compute in float (DYN-SCOPE), and what is no layer without an example (DYN-LAYERS).
OF_NO_LAYER = "convolution", "transposed", "convolution of another class", "linear of no class of torch's"


@pytest.mark.parametrize("ran", [False, True], ids=["new", "ran before"])
@pytest.mark.parametrize("name", CASES)
def test_a_network_with_computed_weights_is_that_of_their_values(name, ran):
    build, x = CASES[name]
    model, plain = (networks.seeded(lambda: nn.Sequential(build())).eval() for _ in range(2))
    plain = without(plain)
    if ran:
        model(x)  # with gradients, whose history is nobody's to copy
    expected = tensor(model(x))
    ways = [lambda m: qs.quantize(m, [x]), lambda m: qs.prepare_qat(m, [x])]
    ways.append(lambda m: qs.convert(qs.prepare_qat(m, [x])))
    if name not in OF_NO_LAYER:
        ways.append(qs.quantize_dynamic)
    for quantized in ways:
        ours = tensor(quantized(model)(x))
        assert torch.equal(ours, tensor(quantized(plain)(x)))
        assert 0 < (ours - expected).norm() < 0.02 * expected.norm()
    assert torch.equal(tensor(model(x)), expected)
    assert any(parametrize.is_parametrized(module) for module in model.modules())
