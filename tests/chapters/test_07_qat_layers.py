"""Chapter 7: layers of a network in training by every rule of the dialects, of every size, with what is frozen."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec.numerics.dialects.named import DIALECTS

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")

# One dialect for each way from accumulators to outputs.
OF_OUTPUTS = {
    (rules.requantize_rule, rules.windows_rule, rules.output_rule, rules.quantize_channels_rule): name
    for name, rules in reversed(DIALECTS.items()) if rules.accumulate_rule == "exact"
}  # fmt: skip


class Layers(nn.Module):
    """Convolutions with and without a bias, in codes and in float, and linear layers of both kinds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.direct = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 6, 2, groups=2), nn.Conv2d(6, 4, 1)
        self.c, self.last = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        x = self.b(self.a(x).relu())
        return self.last(F.relu(self.c(self.direct(x).softmax(1).amax((2, 3)))))


def made(**options):
    model = networks.seeded(Layers).eval()
    x = networks.inputs(6, (3, 7, 7))
    return qs.prepare_qat(model, [x, 1.5 * x], **options), x


@clause("QAT-EQUAL", "QAT-LAYER")
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", OF_OUTPUTS.values())
def test_layers_are_the_converted_ones_by_every_rule(name, per_channel):
    p, x = made(dialect=name, per_channel=per_channel)
    p.train()(x).square().sum().backward()
    torch.optim.SGD(p.parameters(), 0.05).step()
    output = p.eval()(x)
    assert torch.equal(output, qs.convert(p)(x)) and output.dtype == torch.float32


@clause("QAT-EQUAL")
@pytest.mark.parametrize("name", [name for rules, name in OF_OUTPUTS.items() if rules[0] != rules[1]])
def test_convolutions_have_the_rule_of_windows(name):
    model = networks.seeded(lambda: nn.Sequential(nn.Conv2d(8, 16, 1), nn.Conv2d(16, 1, 1))).eval()
    x = networks.inputs(4, (8, 64, 64))  # the rules of linear layers give another code now and then
    p = qs.prepare_qat(model, [x], dialect=name)
    assert torch.equal(p(x), qs.convert(p)(x))


@clause("QAT-LAYER")
@pytest.mark.parametrize("name", OF_OUTPUTS.values())
def test_an_empty_batch_has_an_output_and_gradients_of_zero(name):
    p, x = made(dialect=name)
    before = p.networks[0].ranges.clone()
    p.train()
    output = p(x[:0].requires_grad_())
    assert output.shape == (0, 3)
    output.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in p.parameters())
    assert torch.equal(p.networks[0].ranges, before)


@clause("QAT-LAYER")
@pytest.mark.parametrize(
    "frozen", ["a.weight", "b.weight", "b.bias", "direct.weight", "c.weight", "c.bias", "last.weight"]
)
def test_what_is_frozen_gets_no_gradient_and_takes_none_from_others(frozen):
    gradients = []
    for requires in (True, False):
        p, x = made()
        p.model.get_parameter(frozen).requires_grad_(requires)
        p(x.requires_grad_()).sin().sum().backward()
        gradients.append({key: parameter.grad for key, parameter in p.named_parameters()} | {"x": x.grad})
    whole, without = gradients
    assert without.pop(f"model.{frozen}") is None and whole.pop(f"model.{frozen}").any()
    assert all(torch.equal(whole[key], without[key]) for key in whole)


@clause("QAT-EXACT", "QAT-EQUAL")
@pytest.mark.parametrize("name", ["onnx", "fbgemm"])
def test_a_layer_whose_sums_float32_does_not_hold_gives_float32(name):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.codes, self.direct, self.last = nn.Linear(3000, 4), nn.Linear(3000, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.codes(x)) + torch.atan(self.direct(x))

    model = networks.seeded(Wide).eval()
    with torch.no_grad():
        for layer in (model.codes, model.direct):
            layer.weight.uniform_(0.9, 1.0)
    x = networks.inputs(4, (3000,)).abs()
    p = qs.prepare_qat(model, [1.5 * x], dialect=name)
    output = p(x)
    assert output.dtype == torch.float32 and torch.equal(output, qs.convert(p)(x))
    output.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 and parameter.grad.any() for parameter in p.parameters())
    last = next(layer for layer in qs.convert(p).program.layers if layer.layer == "last")
    weight = torch.from_numpy(last.weight.copy()) * torch.from_numpy(last.w_qparams.scale.copy())[:, None]
    expected = 4 * weight.sum(0)
    # Nothing is outside its range. Sums of 16 values below 1 round by at most 2^-21 each time.
    assert torch.allclose(p.model.codes.bias.grad, expected, rtol=0, atol=2**-17)
    (_, _, network), = p.parts()
    for layer in ("codes", "direct"):
        coded, _ = network.layer_codes(layer, *network.layers[layer].folded(), network.grids()["x"], None)
        assert coded.largest > 2**24
