"""Chapter 7: weights with normalizations inside compute as the float model does, and its parameters get its gradients.
The oracle is the model itself, which does not fold, in float64."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec.qat import steps, weights

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Constant(nn.Module):
    """A convolution with a bias that is computed, and a normalization that is no module."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.randn(4))
        self.gamma, self.beta = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)

    def forward(self, x):
        x = F.conv2d(x, self.weight, self.bias, stride=2)
        return F.batch_norm(x, self.mean, self.var, self.gamma, self.beta, False, 0.1, 1e-3)


class Fixed(nn.Module):
    """A normalization of one's own, which never follows batches."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.register_buffer("running_mean", torch.randn(6))
        self.register_buffer("running_var", torch.rand(6) + 0.5)

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 1e-3)


class OnTheRight(nn.Module):
    """A matrix on the right of a product."""

    def __init__(self):
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(5))
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(x @ self.matrix + self.bias)


MODELS = {
    "behind a convolution": lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.BatchNorm2d(6, eps=0.01)),
    "of one's own": lambda: nn.Sequential(nn.Conv2d(4, 6, 2), Fixed()),
    "behind, without bias": lambda: nn.Sequential(nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6)),
    "behind a linear layer": lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
    "behind a transposed convolution": lambda: nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)
    ),
    "before a convolution": lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 2, groups=2)),
    "before, without bias": lambda: nn.Sequential(
        nn.MaxPool1d(2, 1), nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3, bias=False)
    ),
    "before a linear layer": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 5)),
    "alone": lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2, 1)),
    "on both sides": lambda: nn.Sequential(
        nn.MaxPool3d(2, 1), nn.BatchNorm3d(4), nn.Conv3d(4, 3, 2), nn.BatchNorm3d(3)
    ),
    "without parameters": lambda: nn.Sequential(nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6, affine=False)),
    "the mean of all batches": lambda: nn.Sequential(nn.Conv2d(4, 6, 2), nn.BatchNorm2d(6, momentum=None)),
    "a function": Constant,
    "on the right": OnTheRight,
}
SHAPES = {nn.Conv1d: (6,), nn.MaxPool1d: (6,), nn.MaxPool3d: (4, 4, 4), nn.Conv3d: (4, 4, 4)}


def made(name):
    """A model in evaluation mode, whose statistics are none of a batch's, and two batches."""
    model = networks.seeded(MODELS[name]).eval()
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                with torch.no_grad():
                    module.weight.normal_(generator=generator)
                    module.bias.normal_(generator=generator)
    modules = [type(module) for module in model.modules()]
    rows = name == "on the right" or modules[-1] is nn.Linear or nn.Linear in modules
    shape = () if rows else next((SHAPES[kind] for kind in modules if kind in SHAPES), (5, 4))
    channels = 3 if isinstance(model, (Constant, OnTheRight)) else 4
    return model, [torch.randn(6, channels, *shape, generator=generator) for _ in range(2)]


def through(network, x, training):
    """The layers of a network in training, in float, each with the weight and bias that it folds."""
    for layer in network.layers.values():
        weight, bias = layer.folded(x if training else None, partial(steps.layer_in_float, layer.node))
        x = steps.layer_in_float(layer.node, x, weight, bias)
    return x


def before_and_behind(model):
    """What a model does before its first layer in codes, and behind the last."""
    parts = list(model) if isinstance(model, nn.Sequential) else []
    others = nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.ReLU
    first = parts[0] if parts and isinstance(parts[0], others) else nn.Identity()
    last = parts[-1] if parts and isinstance(parts[-1], others) else nn.Identity()
    return first, last


@clause("QAT-FOLD", "QAT-PARAMETERS")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_folded_computes_as_the_model_and_has_its_gradients(name, training):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches)
    (_, _, network), = p.parts()
    first, last = before_and_behind(model)
    twin = copy.deepcopy(model).double().train(training)
    p.model.train(training)
    assert not list(network.added.parameters())  # all are the model's own
    # Sums of at most some hundred products near 1 in float32, which gradients of deviations multiply by some ten.
    for batch in batches:
        found = last(through(network, first(batch), training))
        expected = twin(batch.double())
        assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4)
        direction = torch.sin(torch.arange(found.numel())).view(found.shape)
        (found * direction).sum().backward()
        (expected * direction.double()).sum().backward()
    for (key, ours), (_, theirs) in zip(p.model.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-3), key
    for (key, ours), (_, theirs) in zip(p.model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5), key


@clause("QAT-FOLD")
def test_statistics_need_two_values_for_each_channel():
    norm = weights.Norm("behind", nn.BatchNorm1d(3), *[torch.ones(3)] * 4, 1e-5)
    mean, var = weights.batch_statistics(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 7.0]]), norm)
    assert mean.tolist() == [2, 2, 5] and var.tolist() == [1, 0, 4]
    expected = "^batch: a normalization needs more than one value for each channel, got \\(1, 3, 1\\)$"
    with pytest.raises(ValueError, match=expected):
        weights.batch_statistics(torch.ones(1, 3, 1), norm)


class Held(nn.Module):
    """A layer whose weight and bias are plain tensors."""

    def __init__(self):
        super().__init__()
        self.first = networks.with_plain(nn.Linear(4, 3), "weight", "bias")
        self.last = networks.with_plain(nn.Linear(3, 3), "bias")

    def forward(self, x):
        return self.last(self.first(x).relu())


@clause("QAT-COMPUTED")
def test_a_weight_or_a_bias_that_no_parameter_gives_gets_a_parameter_of_its_own():
    model, x = networks.seeded(Held).eval(), networks.inputs(8)
    p = qs.prepare_qat(model, [x])
    (_, _, network), = p.parts()
    added = dict(network.added.items())
    assert list(added) == ["first_weight", "first_bias", "last_bias"]
    assert torch.equal(added["first_weight"], model.first.weight) and torch.equal(added["first_bias"], model.first.bias)
    assert torch.equal(added["last_bias"], model.last.bias)
    with torch.no_grad():
        added["first_weight"].mul_(1.5)
    assert torch.equal(p(x), qs.convert(p)(x)) and not torch.equal(p(x), qs.quantize(model, [x])(x))


class Clones(nn.Module):
    """Attention to others in layers with the same values, as torch makes them."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(8, 8)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 8, batch_first=True), 2)

    def forward(self, x):
        return self.decoder(x, self.other(x).relu())


class Twins(nn.Module):
    """Two blocks whose parameters are not shared and have the same values, which the layers have copies of."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.blocks[1].load_state_dict(self.blocks[0].state_dict())

    def forward(self, x):
        return self.blocks[1](self.blocks[0](x))


class Block(nn.Module):
    """Transposed convolutions, a module and a function."""

    def __init__(self):
        super().__init__()
        self.layer, self.weight = nn.ConvTranspose1d(4, 4, 3, bias=False), nn.Parameter(torch.randn(4, 4, 2) / 4)

    def forward(self, x):
        return F.conv_transpose1d(self.layer(x).relu(), self.weight)


@clause("QAT-PARAMETERS")
@pytest.mark.parametrize("build, shape", [(Twins, (4, 5)), (Clones, (5, 8))])
def test_layers_of_equal_values_train_their_own_parameters(build, shape):
    model, x = networks.seeded(build).eval(), networks.inputs(8, shape)
    p = qs.prepare_qat(model, [x, 1.5 * x])
    for part in (p, model):
        part(x).sin().sum().backward()
    # What 8 bits put gradients off by is measured, as in the tests of steps.
    for (key, theirs), ours in zip(model.named_parameters(), p.parameters(), strict=True):
        assert networks.far(ours.grad, theirs.grad) < 0.2, key


class Doubled(nn.Linear):
    """A layer that does more than to be one."""

    def forward(self, x):
        return 2 * super().forward(x)


EXCLUDED = {
    "with a bias": lambda: nn.Sequential(Doubled(4, 6), nn.Linear(6, 3)),
    "without a bias": lambda: nn.Sequential(Doubled(4, 6, bias=False), nn.Linear(6, 3)),
    "of equal biases": lambda: nn.Sequential(Doubled(4, 4), nn.ReLU(), Doubled(4, 4), nn.Linear(4, 3)),
    "attention": lambda: nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Linear(4, 3)),
    "a weight of nobody's": lambda: nn.Sequential(networks.with_plain(Doubled(4, 6), "weight"), nn.Linear(6, 3)),
    "of nobody's beside as many": lambda: nn.Sequential(
        networks.with_plain(Doubled(4, 6), "weight"), nn.Linear(6, 4)
    ),
    "of nobody's": lambda: nn.Sequential(networks.with_plain(Doubled(4, 6), "weight", "bias"), nn.Linear(6, 3)),
}  # fmt: skip


@clause("QAT-PARAMETERS", "QAT-COMPUTED", "QAT-CONVERT")
@pytest.mark.parametrize("name", EXCLUDED)
def test_layers_in_float_that_are_more_than_layers_are_trained_and_shipped(name):
    model = networks.seeded(EXCLUDED[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 and "equal" in name:
                parameter.fill_(0.5)
            elif parameter.ndim == 1:
                parameter.copy_(torch.randn(parameter.shape) / 4)
    x = networks.inputs(8, (5, 4) if name == "attention" else (4,))
    how = {"exclude": ["0", "2"] if len(model) > 3 else ["0", "0.*"] if name == "attention" else "0"}
    p = qs.prepare_qat(model, [x, 1.5 * x], **how)
    assert len(p.networks[0].layers) == 1
    added = {f"0-linear_{what}" for what in ("weight", "bias") if torch.is_tensor(model[0].__dict__.get(what))}
    assert set(p.networks[0].added) == added
    assert torch.equal(p(x), qs.quantize(model, [x, 1.5 * x], **how)(x))
    for part in (p, model):
        part(x).sin().sum().backward()
    # What 8 bits put gradients off by is measured, as in the tests of steps.
    for key, theirs in model.named_parameters():
        assert networks.far(p.model.get_parameter(key).grad, theirs.grad) < 0.1, key
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.mul_(1.2)
    q = qs.convert(p)
    assert torch.equal(p(x), q(x)) and not torch.equal(q(x), qs.quantize(model, [x, 1.5 * x], **how)(x))


@clause("QAT-PARAMETERS")
def test_a_model_that_is_one_layer_with_a_parametrization_trains_its_originals():
    model = nn.utils.parametrizations.weight_norm(networks.seeded(lambda: nn.Linear(4, 3))).eval()
    x = networks.inputs(8)
    p = qs.prepare_qat(model, [x, 1.5 * x])
    for part in (p, model):
        part(x).sin().sum().backward()
    # What 8 bits put gradients off by is measured, as in the tests of steps.
    for (key, theirs), ours in zip(model.named_parameters(), p.parameters(), strict=True):
        assert networks.far(ours.grad, theirs.grad) < 0.2, key


@clause("QAT-FOLD")
@pytest.mark.parametrize("seed", range(8))
def test_normalizations_on_both_sides_are_folded_in_the_order_of_the_network_that_is_shipped(seed):
    generator = torch.Generator().manual_seed(seed)
    model = networks.seeded(MODELS["on both sides"]).eval()
    for tensor in (tensor for tensor in model.state_dict().values() if tensor.is_floating_point()):
        tensor.uniform_(0.3, 2, generator=generator)
    x = torch.rand(8, 4, 4, 4, 4, generator=generator)
    p = qs.prepare_qat(model, [x])
    (_, _, network), = p.parts()
    (layer,), (node,) = network.layers.values(), (node for node in network.graph.nodes if hasattr(node, "weight"))
    weight, bias = layer.folded()
    assert torch.equal(weight, torch.from_numpy(node.weight)) and torch.equal(bias, torch.from_numpy(node.bias))


class Tables(nn.Module):
    """A table and a recurrent layer whose weights are plain tensors."""

    def __init__(self):
        super().__init__()
        self.table, self.cell = nn.Embedding(9, 4), nn.GRU(4, 4, batch_first=True)
        self.last = nn.Linear(4, 2)
        networks.with_plain(self.table, "weight")
        networks.with_plain(self.cell, "weight_hh_l0", "bias_ih_l0")

    def forward(self, x):
        return self.last(self.cell(self.table(x))[0])


@clause("QAT-COMPUTED")
def test_tables_and_recurrent_weights_that_no_parameter_gives_get_parameters_of_their_own():
    model, x = networks.seeded(Tables).eval(), torch.arange(9).view(1, 9)
    p = qs.prepare_qat(model, [x])
    added = dict(p.networks[0].added.items())
    assert set(added) == {"table_weight", "cell_0_state_weight", "cell_0_input_bias"}
    assert torch.equal(added["table_weight"], model.table.weight)
    assert torch.equal(added["cell_0_state_weight"], model.cell.weight_hh_l0)
    p(x).sin().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in added.values())
    with torch.no_grad():
        for parameter in added.values():
            parameter.mul_(1.5)
    assert torch.equal(p(x), qs.convert(p)(x)) and not torch.equal(p(x), qs.quantize(model, [x])(x))


@clause("QAT-PARAMETERS", "QAT-COMPUTED")
def test_values_that_several_parameters_have_are_nobodys():
    model = networks.seeded(lambda: nn.ModuleDict({"first": nn.Linear(4, 6), "last": nn.Linear(6, 4, bias=False)}))
    sources, own = weights.Sources(model, {}), model["first"].bias.detach().numpy()
    assert sources.vector(own, "last").path == sources.vector(own.copy(), "first").path == "first.bias"
    assert sources.vector(own.copy(), "last") is None  # another layer's
    model["first"].register_parameter("twin", nn.Parameter(model["first"].bias.detach().clone()))
    assert weights.Sources(model, {}).vector(own.copy(), "first") is None
    model.register_parameter("row", nn.Parameter(torch.randn(1, 6)))
    assert weights.Sources(model, {}).vector(own.copy(), "first") is None
    # A weight in groups is no form of a parameter that cannot be cut into so many.
    model.register_parameter("odd", nn.Parameter(torch.randn(3, 4, 1)))
    assert weights.Sources(model, {}).of(torch.randn(4, 1, 3).numpy(), "last", 2) is None


class Twice(nn.Module):
    """A layer that is called two times."""

    def __init__(self):
        super().__init__()
        self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.relu(self.again(torch.relu(self.again(x)))))


@clause("QAT-PARAMETERS")
def test_a_layer_that_is_called_twice_has_one_weight_when_it_is_converted():
    model = networks.seeded(Twice)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    p = qs.prepare_qat(model, [x]).train()
    with torch.no_grad():
        p.model.again.weight.mul_(1.5)
    first, second, last = qs.convert(p).program.layers
    assert first.weight is second.weight and first.weight is not last.weight
    rounded = first.w_qparams.dequantize(first.weight) - p.model.again.weight.detach().numpy()
    half = np.reshape(first.w_qparams.scale, (-1, 1)) / 2
    assert (np.abs(rounded) <= half * (1 + 2**-20)).all()  # of the weight that it has now
