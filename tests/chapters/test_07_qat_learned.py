"""Chapter 7: scales that are parameters: where they begin, what may become of them, and what is shipped."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec import chapters
from quantspec.numerics.affine import LARGEST_SCALE, SMALLEST_SCALE, code_range
from quantspec.qat.network import learned_scale

spec = chapters.load("qat")


class Layers(nn.Sequential):
    """A layer with a normalization, one that has one weight for each output, and one with an output that is 0."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.Flatten(),
            nn.Linear(16, 3),
        )  # fmt: skip
        with torch.no_grad():
            self[1].running_var.copy_(torch.tensor([0.25, 1.0, 4.0, 9.0]))
            self[1].weight.uniform_(0.5, 2.0)
            self[5].weight[1] = 0.0


def made(**options):
    model, x = networks.seeded(Layers).eval(), networks.inputs(8, (3, 3, 3))
    return model, x, qs.prepare_qat(model, [x], learned_scales=True, **options)


def scales_of(p):
    """The scale of each layer's weight, by the layer, and how it lies along the outputs."""
    (_, _, network), = p.parts()
    named = ((f"{name}_weight", layer.node.layer) for name, layer in network.layers.items())
    return {layer: network.scales[key].detach().exp2() for key, layer in named if key in network.scales}


@clause("QAT-SCALE")
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_scales_of_weights_begin_by_their_range_or_at_few_bits_by_their_mean_size(weight_bits, per_channel):
    model, x, p = made(weight_bits=weight_bits, per_channel=per_channel)
    q = qs.quantize(model, [x], weight_bits=weight_bits, per_channel=per_channel)
    by_range = {layer.layer: np.array(layer.w_qparams.scale) for layer in q.program.layers}
    if per_channel:
        by_range["5"][1] = 1.0  # what a weight of zeros has, before its bias asks for less (STA-WEIGHT-BIAS)
    _, qmax = code_range(weight_bits, signed=True)
    norm = model[1]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    weights = {"0": model[0].weight * factor.view(-1, 1, 1, 1), "3": model[3].weight, "5": model[5].weight}
    for name, scale in scales_of(p).items():
        sizes = weights[name].detach().double().abs().flatten(1).numpy()
        apart = per_channel or name == "3"
        assert scale.shape == ((len(sizes),) if apart else ())
        by_mean = 2 * (sizes.mean(1) if apart else sizes.mean()) / math.sqrt(qmax)
        expected = np.where(by_mean > 0, by_mean, by_range[name]) if weight_bits < 5 else by_range[name]
        # A scale goes through its logarithm, of size below 16 and so off by up to 2^-21, and back.
        assert np.allclose(scale.numpy(), expected, rtol=2.0**-20, atol=0)


@clause("QAT-SCALE", "QAT-CONVERT")
@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"bits": 6}, {"reduce_range": True}], ids=str)
def test_learned_scales_are_shipped_on_grids_of_the_kind_that_was_asked_for(options):
    model, x, p = made(weight_bits=4, **options)
    p.train()(x).square().sum().backward()
    with torch.no_grad():
        for parameter in p.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.01 * parameter.grad.sign())
    q, plain = qs.convert(p), qs.quantize(model, [x], weight_bits=4, **options)
    assert torch.equal(p.eval()(x), q(x))
    scales = scales_of(p)
    for layer, other in zip(q.program.layers, plain.program.layers, strict=True):
        for grid, kind in ((layer.x_qparams, other.x_qparams), (layer.w_qparams, other.w_qparams)):
            assert (grid.qmin, grid.qmax, grid.axis) == (kind.qmin, kind.qmax, kind.axis)
            assert grid.zero_point.dtype == kind.zero_point.dtype and grid.scale.dtype == np.float32
            assert not np.array_equal(grid.scale, kind.scale)
        same = layer.w_qparams.scale == scales[layer.layer].numpy()
        # The scale of an output without weights is its bias's (STA-WEIGHT-BIAS).
        assert same.all() or (layer.layer == "5" and same.tolist() == [True, False, True])


@clause("QAT-SCALE", "QAT-EQUAL")
def test_the_other_scales_of_a_layer_learn_where_a_bias_asks_for_one():
    _, x, p = made()
    model, _, other = made()
    with torch.no_grad():
        other.model[5].bias[1] = 0.0  # which then asks for nothing
    for part in (p, other):
        part.train().freeze()(x)[:, [0, 2]].square().sum().backward()
    (_, _, first), (_, _, second) = *p.parts(), *other.parts()
    (key,) = (key for key in first.scales if key.endswith("5_weight"))
    gradient = first.scales[key].grad
    assert gradient[[0, 2]].all() and torch.equal(gradient, second.scales[key].grad)
    assert torch.equal(p.eval()(x), qs.convert(p)(x))


@clause("QAT-SCALE", "QAT-DELAY")
def test_scales_of_weights_learn_while_activations_are_float():
    model, x = networks.seeded(lambda: nn.Linear(6, 3)), networks.inputs(8, (6,))
    p = qs.prepare_qat(model, [x], learned_scales=True, weight_bits=3, delay=1).train()
    (scale,), (parameter,) = scales_of(p).values(), (
        own for key, own in p.networks[0].scales.items() if key.endswith("_weight")
    )
    output = p(x)
    output.square().sum().backward()
    gradients = 2 * output.detach().T @ x
    # Of eight rows, as the chapter has it without rounding; the parameter is the logarithm to base 2.
    for row, weights, own, found in zip(gradients, model.weight.detach(), scale, parameter.grad, strict=True):
        expected = spec.scale_gradient(row.tolist(), weights.tolist(), own.item(), 0, -4, 3, n=6)
        size = math.log(2) * own.item()
        assert math.isclose(found.item(), expected * size, rel_tol=0, abs_tol=2.0**-18 * size * float(row.abs().sum()))


@clause("QAT-SCALE")
def test_layers_in_float_have_no_scale_to_learn():
    model, x, p = made(exclude=["3"])
    p.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in p.parameters())
    assert scales_of(p).keys() == {"0", "5"}
    q = qs.convert(p)
    assert torch.equal(p.eval()(x), q(x)) and len(q.program.layers) == 2


class Alike(nn.Module):
    """Paths that differ in a dot alone, of layers and of weights that are no parameters."""

    def __init__(self):
        super().__init__()
        self.a, self.a_0 = nn.Sequential(nn.Linear(4, 6)), nn.Linear(6, 6)
        b, b_0 = (networks.with_plain(nn.Linear(6, 6), "weight") for _ in range(2))
        self.b, self.b_0 = nn.Sequential(b), b_0

    def forward(self, x):
        return self.b_0(self.b(self.a_0(self.a(x))).relu())


@clause("QAT-SCALE", "QAT-COMPUTED")
@pytest.mark.parametrize("learned", [True, False])
def test_names_that_differ_in_a_dot_are_of_two_parameters(learned):
    model, x = networks.seeded(Alike).eval(), networks.inputs(8)
    with torch.no_grad():
        model.a[0].weight.mul_(30)
        model.b[0].weight.mul_(20)
    p = qs.prepare_qat(model, [x], learned_scales=learned)
    (_, _, network), = p.parts()
    assert len(network.added) == 2 and len(network.scales) == (9 if learned else 0)
    q = qs.quantize(model, [x])
    # Learned scales begin at those of the ranges, within the rounding of a logarithm, which can move a code by one.
    assert (p(x) - q(x)).norm() < 0.02 * q(x).norm() and torch.equal(p(x), qs.convert(p)(x))


@clause("QAT-REFUSE", "QAT-SCALE")
@pytest.mark.parametrize("scale", [SMALLEST_SCALE, LARGEST_SCALE])
def test_a_scale_may_become_the_smallest_and_the_largest_and_no_other(scale):
    logarithm = torch.tensor([0.0, math.log2(scale)])
    assert learned_scale(logarithm, "place").tolist() == [1.0, scale]
    logarithm[1] += 1 if scale > 1 else -1
    became = f"{float(logarithm.exp2().min()):.6g}"[:6]
    with pytest.raises(ValueError, match=f"^place: its learned scale became {became}.*; use a lower learning rate$"):
        learned_scale(logarithm, "place")
    with pytest.raises(ValueError, match="^place: its learned scale became nan"):
        learned_scale(torch.tensor(math.nan), "place")


@clause("QAT-REFUSE")
@pytest.mark.parametrize("key, place", [
    ("input_activation", "input 'input'"), ("0_activation", "output of layer '0'"), ("5_weight", "weight of layer '5'"),
])  # fmt: skip
def test_a_scale_that_training_lost_is_named_by_its_place(key, place):
    _, x, p = made()
    (_, _, network), = p.parts()
    (own,) = (own for own in network.scales if own.endswith(key))
    with torch.no_grad():
        network.scales[own].sub_(200)
    for refused in (lambda: p(x), lambda: qs.convert(p)):
        with pytest.raises(ValueError, match=f"^{place}: its learned scale became 0.0; use a lower learning rate"):
            refused()


@clause("QAT-SCALE", "QAT-OVERFLOW")
@pytest.mark.filterwarnings("ignore:0 % of the multiply-accumulates are in int8")
def test_a_layer_in_float_has_no_learned_scale_and_those_behind_it_have():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(150_000, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        model[0].weight.uniform_(0.95, 1.0)
    x = networks.inputs(4, (150_000,))
    p = qs.prepare_qat(model, [x], learned_scales=True)
    assert list(p.networks[0].in_float) == ["0"]
    assert [key for key in p.networks[0].scales if key.endswith("_weight")] == ["2_weight"]
    p(x).square().sum().backward()
    assert p.networks[0].scales["2_weight"].grad.abs().max() > 0 and torch.equal(p(x), qs.convert(p)(x))
