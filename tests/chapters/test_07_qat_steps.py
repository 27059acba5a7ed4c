"""Chapter 7: every step between layers has the gradient of the float operation, moves its own range, learns its own
scale, and is the step that is shipped. The oracle of gradients is the float model."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from networks import far
from quantspec.ir.program import Call

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Between(nn.Module):
    """Two convolutions, what is between them and a last one."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.LazyConv2d(3, 1)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.a(x), self.b(x)))


STEPS = {
    "a sum": lambda a, b: a + b,
    "a sum with a relu": lambda a, b: F.relu(a + b),
    "a sum with a relu on a grid that goes below 0": lambda a, b: torch.cat([F.relu(a + b), b], 1),
    "a product": lambda a, b: a * b,
    "a join": lambda a, b: torch.cat([a, 3 * b], 1),
    "a table": lambda a, b: F.silu(a) + b,
    "a relu of codes": lambda a, b: F.relu(F.avg_pool2d(a, 2)) + F.avg_pool2d(b, 2),
    "the largest": lambda a, b: F.max_pool2d(a, 2, 3, dilation=2, ceil_mode=True),
    "an average": lambda a, b: F.avg_pool2d(a, 2, 2, 1, count_include_pad=False, ceil_mode=True),
    "an average of any size": lambda a, b: F.adaptive_avg_pool2d(a, (2, 3)),
    "a mean": lambda a, b: a.mean((2, 3), keepdim=True) + b,
    "resized to a size": lambda a, b: F.interpolate(a, (9, 4), mode="bilinear"),
    "resized by factors": lambda a, b: F.interpolate(a, scale_factor=(1.7, 0.6), mode="bilinear"),
    "resized by factors of sizes": lambda a, b: F.interpolate(
        a, scale_factor=(1.7, 0.6), mode="bilinear", recompute_scale_factor=True
    ),
    "resized from corner to corner": lambda a, b: F.interpolate(a, (9, 4), mode="bilinear", align_corners=True),
    "resized to another's size": lambda a, b: F.interpolate(F.avg_pool2d(a, 2), b.shape[2:], mode="bilinear") + b,
    "resized to a mean's size": lambda a, b: F.interpolate(a[:, :, 1:], b.mean(1).shape[-2:], mode="bilinear") + b,
    "moves with keywords": lambda a, b: a.roll(shifts=2, dims=3) + torch.flip(b, dims=(2,)),
}


def made(name):
    """A network, with batches that differ."""
    model = Between(STEPS[name])
    batches = [factor * networks.inputs(4, (3, 5, 7)) for factor in (1, 1.2)]
    torch.default_generator.manual_seed(0)
    model(batches[0])  # says how many channels the last one has
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 2)
    return model.eval(), batches


@clause("QAT-SURROGATE", "QAT-EQUAL")
@pytest.mark.parametrize("dialect", ["onnx", "exact", "qnnpack"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_gradient_of_the_float_operation_and_is_shipped(name, dialect):
    model, batches = made(name)
    p = qs.prepare_qat(model, [2 * batch for batch in batches], dialect=dialect)  # nothing is outside the ranges
    inputs = [batches[0].clone().requires_grad_() for _ in range(2)]
    outputs = [part(x) for part, x in zip((p, model), inputs)]
    assert outputs[0].shape == outputs[1].shape and far(*(output.detach() for output in outputs)) < 0.1
    for output in outputs:
        (output * torch.cos(torch.arange(output.numel())).view(output.shape)).sum().backward()
    # Codes do not tell which of two nearly equal values is the largest, nor the sign of what is nearly zero.
    unsure = name in ("the largest", "a relu of codes")
    assert far(inputs[0].grad, inputs[1].grad) < (0.3 if unsure else 0.03)
    for (key, theirs), ours in zip(model.named_parameters(), p.parameters(), strict=True):
        if theirs.grad is not None:
            assert far(ours.grad, theirs.grad) < (0.4 if unsure else 0.2), key
    q = qs.convert(p)
    for batch in batches:
        assert torch.equal(p(batch), q(batch))


@clause("QAT-RANGE", "QAT-SCALE")
@pytest.mark.parametrize("name", STEPS)
def test_every_range_moves_and_every_scale_learns(name):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches[:1], averaging=0.5).train()
    (_, _, network), = p.parts()
    before = network.ranges.clone()
    p(2 * batches[1])
    moved = {place: not torch.equal(network.ranges[n], before[n]) for place, n in network.places.items()}
    assert all(moved.values()), moved
    p = qs.prepare_qat(model, batches, learned_scales=True).train()
    p(1.5 * batches[1]).square().sum().backward()
    (_, _, network), = p.parts()
    assert len(network.scales) > 3
    assert all(scale.grad is not None and scale.grad.abs().max() > 0 for scale in network.scales.values())


@clause("QAT-RANGE", "QAT-FREEZE")
@pytest.mark.parametrize("delay", [0, 2])
@pytest.mark.parametrize("name", STEPS)
def test_no_range_moves_by_a_batch_of_nothing_or_once_it_is_frozen(name, delay):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches[:1], delay=delay).train()
    (_, _, network), = p.parts()
    before = network.ranges.clone()
    assert len(p(batches[1][:0])) == 0 and torch.equal(network.ranges, before)
    p.freeze()(3 * batches[1])
    assert torch.equal(network.ranges, before)


def own_statistics(model, x):
    """A model in evaluation mode whose normalizations have the statistics of a batch."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    model.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def wide(last):
    """A layer whose accumulators could overflow, so that it stays in float, with a normalization. Its bias is as large
    as its sums."""
    model = nn.Sequential(nn.Linear(4, 70_000), nn.ReLU(), *last)
    (layer,) = (module for module in last if getattr(module, "bias", None) is not None and module.weight.ndim > 1)
    with torch.no_grad():
        model[0].weight.fill_(1.0).add_(torch.rand(4) / 8)
        layer.weight.uniform_(0.95, 1.0)
        layer.bias.fill_(5e5)
    return model


IN_FLOAT = {
    "excluded": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), (4,), ["0"]),
    "excluded convolution": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1)),
        (4, 3, 3), ["0"],
    ),
    "wide": (lambda: wide([nn.Linear(70_000, 2), nn.BatchNorm1d(2)]), (4,), ()),
    "wide with a relu": (lambda: wide([nn.Linear(70_000, 2), nn.BatchNorm1d(2), nn.ReLU()]), (4,), ()),
    "wide convolution": (
        lambda: wide([nn.Unflatten(1, (70_000, 1)), nn.Conv1d(70_000, 2, 1), nn.BatchNorm1d(2)]), (4,), (),
    ),
}  # fmt: skip


@clause("QAT-FOLD", "QAT-PARAMETERS")
@pytest.mark.parametrize("name", IN_FLOAT)
def test_a_layer_that_stays_in_float_is_trained_in_float(name):
    build, shape, exclude = IN_FLOAT[name]
    x = networks.inputs(8, shape).abs()
    model = own_statistics(networks.seeded(build), x)
    p, twin = qs.prepare_qat(model, [3 * x], exclude=exclude).train(), copy.deepcopy(model).train()
    assert any(isinstance(step, Call) for _, _, network in p.parts() for step in network.template.steps)
    for part in (p, twin):
        output = part(x)
        (output * torch.cos(torch.arange(output.numel())).view(output.shape)).sum().backward()
    for (key, theirs), ours in zip(twin.named_parameters(), p.parameters(), strict=True):
        if theirs.grad.abs().max() > 1e-4:  # none reaches a bias in front of a normalization
            assert far(ours.grad, theirs.grad) < 0.1, key
    for key, value in twin.named_buffers():  # of what a layer in codes gives, in the last two
        assert torch.allclose(dict(p.model.named_buffers())[key].float(), value.float(), rtol=0.05), key
    assert torch.equal(p.eval()(x), qs.convert(p)(x))


@clause("QAT-FREEZE", "QAT-FORWARD")
def test_frozen_statistics_of_a_layer_in_float_stay():
    build, shape, _ = IN_FLOAT["wide"]
    x = networks.inputs(8, shape).abs()
    p = qs.prepare_qat(own_statistics(networks.seeded(build), x), [3 * x]).train().freeze()
    before, q = networks.bits(p.model), qs.convert(p)
    assert torch.equal(p(2 * x), q(2 * x)) and networks.same(networks.bits(p.model), before)


class AtAnEnd(nn.Module):
    """A layer that stays in float on whatever grid its input has, as the first or the last or with another."""

    def __init__(self, place):
        super().__init__()
        first, self.place = (150_000, 3) if place == "first" else (4, 150_000), place
        self.first, self.other = nn.Linear(*first), nn.Linear(4, 3)
        self.last = nn.Linear(3, 2) if place == "first" else nn.Linear(150_000, 2)
        with torch.no_grad():
            (self.first if place == "first" else self.last).weight.uniform_(0.95, 1.0)
            self.last.bias.fill_(0.0 if place == "first" else -3e4)  # so that some sums are below 0

    def forward(self, x):
        y = self.first(x)
        z = self.last(y.relu())
        if self.place == "joined":
            return torch.cat([z, self.other(x)], 1)
        if self.place == "added":
            return z + y.mean(1, keepdim=True)
        return z.relu() if self.place == "last with a relu" else z


@clause("QAT-RANGE", "QAT-OVERFLOW", "QAT-EQUAL")
@pytest.mark.parametrize("place", ["first", "last", "last with a relu", "joined", "added"])
def test_what_only_layers_in_float_read_or_give_has_a_range_that_moves(place):
    model = networks.seeded(lambda: AtAnEnd(place))
    x = networks.inputs(8, (model.first.in_features,))
    before, other = (qs.prepare_qat(model, [batch]).networks[0].ranges for batch in (2 * x, x))
    moved, begun = qs.prepare_qat(model, [2 * x], averaging=0.5).train(), qs.prepare_qat(model).train()
    moved(x), begun(2 * x)
    for p, expected in ((moved, (before + other) / 2), (begun, before)):
        (_, _, network), = p.parts()
        assert list(network.in_float) == ["first" if place == "first" else "last"]
        # Codes of inputs and weights put values off by less than a hundredth of their range.
        assert ((network.ranges - expected).abs().amax(1) < 0.02 * expected.diff().squeeze(1)).all()
        assert torch.equal(p.eval()(x), qs.convert(p)(x))


NORMALIZED = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)), (4,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv1d(3, 5, 2), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 2, 1)), (3, 6),
    ),
}  # fmt: skip


@clause("QAT-FOLD")
@pytest.mark.parametrize("name", NORMALIZED)
def test_statistics_are_those_of_what_a_layer_gives_with_its_bias(name):
    build, shape = NORMALIZED[name]
    model, x = networks.seeded(build), networks.inputs(8, shape)
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-10, 10, 5))
    p, twin = qs.prepare_qat(model, [x]).train(), copy.deepcopy(model).train()
    (_, _, network), = p.parts()
    grid = network.grids()["input"].qparams
    twin(torch.from_numpy(grid.dequantize(grid.quantize(x.numpy()))))
    p(x)
    # Values below 16, of at most 7 sums, are off by at most 2^-18; a tenth of that moves a mean, by 4e-7, and of four
    # times that, as deviations are below 2, a variance, by 2e-6 where it is 0.9 and more.
    for key in ("running_mean", "running_var"):
        assert torch.allclose(getattr(p.model[1], key), getattr(twin[1], key), rtol=1e-5, atol=1e-6)


class Functions(nn.Module):
    """Layers that are no modules, and what is between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 6) / 2), nn.Parameter(torch.randn(6, 6) / 2)
        self.bias, self.other = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x):
        x = F.linear(F.linear(x, self.first, self.bias).relu(), self.second, self.other)
        return 2 * F.linear(x, self.first).sigmoid() - 1


class Around(nn.Module):
    """A layer on either side of what is excluded."""

    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 6), inner, nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.inner(x, x, x)[0] if isinstance(self.inner, nn.MultiheadAttention) else self.inner(x))


def normed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))


EXCLUDED = {
    "a layer": lambda: nn.Linear(6, 6), "several layers": lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(True)),
    "functions": Functions, "attention": lambda: nn.MultiheadAttention(6, 2), "a computed weight": normed,
    "a transposed convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.ConvTranspose1d(3, 2, 2), nn.Flatten()
    ),
}  # fmt: skip


@clause("QAT-OVERFLOW", "QAT-START", "QAT-PARAMETERS")
@pytest.mark.parametrize("name", EXCLUDED)
def test_what_is_excluded_is_trained_in_float(name):
    model, x = networks.seeded(lambda: Around(EXCLUDED[name]())).eval(), networks.inputs(8)
    how = {"exclude": ["inner", "inner.*"] if len(list(model.inner.modules())) > 1 else ["inner"]}
    p = qs.prepare_qat(model, [x, 2 * x], **how)
    assert torch.equal(p.eval()(x), qs.quantize(model, [x, 2 * x], **how)(x))
    for part in (p.train(), model):
        output = part(x)
        (output * torch.cos(torch.arange(output.numel())).view(output.shape)).sum().backward()
    assert len(list(p.parameters())) == len(list(model.parameters()))
    for (key, theirs), ours in zip(model.named_parameters(), p.parameters(), strict=True):
        assert far(ours.grad, theirs.grad) < 0.2, key
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.mul_(1.1)
    assert torch.equal(p.eval()(x), qs.convert(p)(x))


@clause("QAT-OVERFLOW", "QAT-EQUAL")
def test_a_layer_is_in_float_where_it_was_when_the_network_was_prepared():
    build, shape, _ = IN_FLOAT["wide"]
    x = networks.inputs(8, shape).abs()
    model = own_statistics(networks.seeded(build), x)
    p = qs.prepare_qat(model, [3 * x]).eval()
    with torch.no_grad():
        p.model[2].weight[:, 0] = 50.0  # so that the codes of all others are small
    q = qs.convert(p)
    assert isinstance(q.program.steps[-1], Call) and torch.equal(p(x), q(x))
    p = qs.prepare_qat(p.model, [3 * x]).eval()
    q = qs.convert(p)
    assert not isinstance(q.program.steps[-1], Call) and torch.equal(p(x), q(x))
    with torch.no_grad():
        p.model[2].weight[:, 0] = 1.0
    for refused in (lambda: p(x), lambda: qs.convert(p)):
        with pytest.raises(qs.UnsupportedError, match="^layer '2': .*can reach [0-9]{10}, beyond int32"):
            refused()


class Bags(nn.Module):
    """Bags by offsets, the last of which is where the last bag ends, without padding and with weights."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(9, 4, padding_idx=2)
        self.sum = nn.EmbeddingBag(9, 4, mode="sum", include_last_offset=True, padding_idx=3)
        self.mean, self.last = nn.EmbeddingBag(9, 4, mode="mean", padding_idx=1), nn.Linear(12, 2)

    def forward(self, index, offsets, weights):
        joined = self.rows(index[:4]), self.sum(index, offsets, weights), self.mean(index, offsets[:-1])
        return self.last(torch.cat(joined, 1))


@clause("QAT-SURROGATE")
def test_bags_have_the_gradient_of_the_floats():
    model = networks.seeded(Bags).eval()
    index, offsets = torch.tensor([1, 2, 3, 4, 3, 5, 1, 8, 2, 1]), torch.tensor([0, 3, 3, 7, 10])
    batch = index, offsets, torch.linspace(-1, 2, 10)
    p = qs.prepare_qat(model, [batch])
    for part in (model, p):
        part(*batch).square().sum().backward()
    for (key, theirs), ours in zip(model.named_parameters(), p.parameters(), strict=True):
        assert far(ours.grad, theirs.grad) < 0.1, key
        assert torch.equal(ours.grad.flatten(1).any(1), theirs.grad.flatten(1).any(1)) if theirs.ndim > 1 else True
    assert torch.equal(p(*batch), qs.convert(p)(*batch))
