"""Chapter 7: networks in training. What they give is compared, bit for bit, with what conversion makes of them."""

import copy
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from networks import bits, same
from quantspec.tutorial.models import MLP, LeNet

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Residual(nn.Module):
    """Depthwise and transposed convolutions, a sum, a join, pools, a table, a normalization in each place."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.before, self.point = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.wide, self.head = nn.ConvTranspose2d(8, 8, 3, stride=2), nn.Linear(16, 5)
        self.act, self.alone = nn.SiLU(), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        y = F.relu6(self.norm2(self.depthwise(x)))
        z = y + x
        y = F.relu(self.point(self.before(F.max_pool2d(z, 1))) + z)
        y = torch.cat([self.act(y), F.max_pool2d(y, 3, 1, 1)], 1)
        z = F.avg_pool2d(self.wide(self.alone(y[:, :8] * y[:, 8:])), 2)
        return self.head(y.mean((2, 3))) + F.adaptive_avg_pool2d(z, 1).flatten(1)[:, :5]


class Reader(nn.Module):
    """Two layers of an LSTM in both directions."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Rectified(nn.Module):
    """ReLUs that only operations in float read, behind a convolution with a normalization and behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.lstm, self.head = nn.LSTM(4 * 5, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x))).transpose(1, 2).flatten(2)
        return torch.log1p(F.relu(self.head(self.lstm(x)[0][:, -1])))


class Words(nn.Module):
    """An embedding, attention, and a product with a parameter."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 5)
        self.encoder, self.matrix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Parameter(torch.eye(5))

    def forward(self, x):
        return self.head(self.encoder(self.words(x)).mean(1)) @ self.matrix


class Bag(nn.Module):
    """Bags without padding, summed with weights, and the largest of another table."""

    def __init__(self):
        super().__init__()
        self.sum, self.mean = nn.EmbeddingBag(20, 8, mode="sum"), nn.EmbeddingBag(20, 8, padding_idx=3)
        self.largest, self.head = nn.EmbeddingBag(20, 8, mode="max"), nn.Linear(24, 5)

    def forward(self, x):
        weights = (x + 1) / 7
        return self.head(torch.cat([self.sum(x, None, weights), self.mean(x), self.largest(x)], 1))


class Python(nn.Module):
    """A branch by data between layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)
        self.middle = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        x = self.first(x) * self.gain
        return self.last(self.middle(x) if x.sum() > -1e9 else x)


class Both(nn.Module):
    """A convolution with a normalization on either side, the first of which nothing else can absorb."""

    def __init__(self):
        super().__init__()
        self.pool, self.before, self.behind = nn.MaxPool2d(2, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(8)
        self.point, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(F.relu(self.behind(self.point(self.before(self.pool(x))))).mean((2, 3)))


class Computed(nn.Module):
    """A bag of embeddings, weights that are computed of parameters or transposed, recurrent layers with a state and
    without a batch axis, a ReLU that no layer absorbs, and a module that writes in place to floats."""

    def __init__(self):
        super().__init__()
        self.words, self.cell = nn.EmbeddingBag(20, 8, mode="mean"), nn.GRUCell(8, 6)
        self.sequence, self.head = nn.LSTM(8, 3, bidirectional=True), nn.Linear(17, 5)
        self.rows, self.wide = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 5))
        self.act = nn.Hardswish(inplace=True)

    def forward(self, x):
        y = self.words(x)
        z = F.linear(y, self.rows * 0.5)
        joined = torch.relu(torch.cat([z, y @ self.wide], 1))
        return self.head(torch.cat([self.act(torch.softmax(joined, 1)), self.cell(y, z) + self.sequence(y)[0]], 1))


class Resized(nn.Module):
    """Codes between layers, resized to a size, by a factor, and to the size of others."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 3)

    def forward(self, x):
        y = F.relu(self.first(x))
        z = self.middle(F.interpolate(y, scale_factor=(2.0, 1.5), mode="bilinear"))
        y = F.interpolate(F.max_pool2d(y, 2), size=z.shape[2:], mode="bilinear", align_corners=True) + z
        return self.last(F.interpolate(y, size=(4, 5), mode="bilinear")).mean((2, 3))


class Attending(nn.Module):
    """Attention to others, with one parameter for all projections and with one for each; an LSTM without biases."""

    def __init__(self):
        super().__init__()
        self.keys, self.values, self.head = nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(8, 5)
        self.one, self.three = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
        self.apart = nn.MultiheadAttention(8, 2, kdim=8, vdim=6)
        self.lstm = nn.LSTM(8, 8, bias=False)

    def forward(self, x):
        x = x.transpose(0, 1)
        k, v = self.keys(x).relu(), self.values(x).relu()
        y = self.one(x, k, k)[0] + self.three(x, k, x)[0] + self.apart(x, k, v)[0]
        return self.head(y + self.lstm(x)[0]).mean(0)


NETWORKS = {
    "mlp": (lambda: MLP(20), (20,)), "lenet": (lambda: LeNet(12), (1, 12, 12)), "residual": (Residual, (3, 7, 7)),
    "lstm": (Reader, (5, 8)), "words": (Words, None), "bag": (Bag, None), "python": (Python, (8,)),
    "normalised": (networks.Normalised, (4,)), "both": (Both, (3, 4, 4)), "computed": (Computed, None),
    "resized": (Resized, (3, 7, 6)), "attending": (Attending, (4, 8)), "rectified": (Rectified, (3, 4, 5)),
}  # fmt: skip


def made(name):
    """A seeded network and four batches of five."""
    build, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(3)
    model = networks.seeded(build)
    if shape is None:
        return model, [torch.randint(0, 20, (5, 6), generator=generator) for _ in range(4)]
    return model, [torch.randn(5, *shape, generator=generator) for _ in range(4)]


def classes(p, batch):
    return torch.arange(len(batch)) % 3


def trained(p, batches, optimizer=None):
    """A few steps of training; the optimizer."""
    p.train()
    optimizer = optimizer or torch.optim.SGD(p.parameters(), 0.05, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(p(batch), classes(p, batch)).backward()
        optimizer.step()
    return optimizer


@clause("QAT-EQUAL", "QAT-START", "QAT-CONVERT")
@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"weight_bits": 2, "per_channel": False}], ids=str)
@pytest.mark.parametrize("dialect", ["onnx", "fbgemm", "exact"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_is_the_converted_one(name, dialect, options):
    model, batches = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = qs.quantize(model, batches, dialect=dialect, **options)
        p = qs.prepare_qat(model, batches, dialect=dialect, **options)
        assert torch.equal(p(batches[0]), quantized(batches[0]))
        trained(p, batches)
        p.eval()
        q = qs.convert(p)
    for batch in batches:
        assert torch.equal(p(batch), q(batch))
    assert not torch.equal(q(batches[0]), quantized(batches[0]))


@clause("QAT-LAYER")
@pytest.mark.parametrize("dialect", ["onnx", "exact"])
def test_no_gradient_passes_a_relu_that_only_float_reads_where_it_gives_zero(dialect):
    layer, x = networks.seeded(lambda: nn.Linear(6, 4)), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-90.0, 2.0, 0.0, 0.0]))
    p = qs.prepare_qat(nn.Sequential(layer, nn.ReLU(), nn.Softmax(-1)).eval(), [x], dialect=dialect)
    p.train()
    p(x).square().sum().backward()
    (step,) = qs.convert(p.eval()).program.layers
    (of_weight,) = (parameter.grad for name, parameter in p.named_parameters() if name.endswith("weight"))
    assert step.relu and step.y_qparams is None
    assert not of_weight[0].any() and all(row.any() for row in of_weight[1:])


@clause("QAT-EQUAL", "QAT-START")
@pytest.mark.parametrize("share", [0.0, 1e-12])
def test_channels_that_are_little_more_than_their_bias_are_those_of_the_converted_network(share):
    model, batches = made("mlp")
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    with torch.no_grad():
        first.weight[:3] *= share
        first.bias[:3] = torch.tensor([0.3, -0.7, 0.0])
    p = qs.prepare_qat(model, batches)
    assert torch.equal(p(batches[0]), qs.quantize(model, batches)(batches[0]))
    for _ in range(2):
        trained(p, batches[:1])
        p.eval()
        q = qs.convert(p)
        assert all(torch.equal(p(batch), q(batch)) for batch in batches)


@clause("QAT-EQUAL")
@pytest.mark.parametrize("name", ["mlp", "residual"])
def test_every_value_between_is_the_converted_networks(name):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches, dialect="onnx")
    trained(p, batches)
    p.eval()
    q, seen = qs.convert(p), {}
    q.run_on("reference").compiled(batches[0], lambda step, value: seen.__setitem__(step.name, torch.as_tensor(value)))
    (_, _, network), = p.parts()
    checked = 0
    for step, value in intermediate(network, batches[0]):
        grid = getattr(step, "y_qparams", None) or getattr(step, "qparams", None)
        if isinstance(value, torch.Tensor) and grid is not None and seen[step.name].dtype == torch.uint8:
            zero = int(next(s for s in q.program.steps if s.name == step.name).__dict__[
                "y_qparams" if hasattr(step, "y_qparams") else "qparams"].zero_point)
            assert torch.equal(value + zero, seen[step.name].float()), step.name
            checked += 1
    assert checked >= 4


def intermediate(network, batch):
    """Each step with its value."""
    from quantspec.qat.run import Run
    from quantspec.qat.steps import STEPS

    run = Run(network)
    run.values[network.template.inputs[0]] = batch
    with torch.no_grad():
        for step in network.template.steps:
            run.values[step.name] = STEPS[type(step)](run, step)
            yield step, run.values[step.name]


@clause("QAT-FORWARD", "QAT-CONVERT")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ["mlp", "lstm", "words"])
def test_a_batch_in_training_gets_what_conversion_before_it_gives(name, learned):
    model, batches = made(name)
    for module in model.modules():  # what acts in training mode only
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    p = qs.prepare_qat(model, batches[:1], averaging=0.5, learned_scales=learned)
    optimizer = trained(p, batches[:2])
    for batch in batches[2:]:
        expected = qs.convert(p)(batch)
        optimizer.zero_grad()
        output = p(batch)
        assert torch.equal(output, expected)
        F.cross_entropy(output, classes(p, batch)).backward()
        optimizer.step()


@clause("QAT-CONVERT")
@pytest.mark.parametrize("name", ["mlp", "lenet", "residual"])
def test_conversion_is_that_of_the_float_network_with_the_present_ranges(name):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches)
    trained(p, batches)
    q = qs.convert(p.eval())
    prepared = qs.prepare(copy.deepcopy(p.model).eval())
    prepared(batches[0])
    (_, _, network), = p.parts()
    ranges = dict(zip(network.places, network.ranges.numpy()))
    prepared.observers = {place: qs.MinMaxObserver().observe(ranges[place]) for place in prepared.observers}
    expected = qs.convert(prepared)
    for batch in batches:
        assert torch.equal(q(batch), expected(batch))


@clause("QAT-SURROGATE")
def test_steps_on_codes_have_the_gradient_of_the_float_operation():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 1)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.last(torch.cat([torch.tanh(a + b), a * b], 1))

    model, x = networks.seeded(Steps), networks.inputs(8)
    p = qs.prepare_qat(model, [x, 2 * x])  # so that nothing is outside the ranges, where the gradient is 0
    for part in (model, p):
        part(x).sum().backward()
    for ours, theirs in zip(p.parameters(), model.parameters()):
        assert (ours.grad - theirs.grad).norm() < 0.1 * theirs.grad.norm()


@clause("QAT-SURROGATE")
def test_a_recurrent_layer_has_the_gradient_of_the_float_layer():
    model, batches = made("lstm")
    p = qs.prepare_qat(model, batches, dialect="exact")
    for part in (model, p):
        part(batches[0]).square().sum().backward()
    for (name, theirs), ours in zip(model.named_parameters(), p.parameters()):
        assert (ours.grad - theirs.grad).norm() <= 0.1 * theirs.grad.norm(), name


@clause("QAT-SCALE")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_scales_are_trained_and_converted(bits):
    model, batches = made("lenet")
    p = qs.prepare_qat(model, batches, weight_bits=bits, learned_scales=True)
    before = {name: value.clone() for name, value in p.named_parameters()}
    trained(p, batches, torch.optim.Adam(p.parameters(), 1e-2))
    scales = [name for name in before if ".scales." in name]
    assert len(scales) >= 8
    assert all(not torch.equal(value, before[name]) for name, value in p.named_parameters() if name in scales)
    q = qs.convert(p.eval())
    assert torch.equal(p(batches[0]), q(batches[0]))
    (_, _, network), = p.parts()
    for layer in q.program.layers:
        scale = network.scales[f"{layer.name.replace('.', '_')}_weight"].detach().exp2()
        assert np.array_equal(layer.w_qparams.scale, scale.numpy())


@clause("QAT-RANGE")
def test_a_batch_moves_the_ranges_by_its_share():
    model, batches = made("mlp")
    p = qs.prepare_qat(model, batches[:1], averaging=0.25)
    (_, _, network), = p.parts()
    before = dict(zip(network.places, network.ranges.clone().numpy()))
    reals = {"x": batches[1]}
    p.train()(batches[1])
    observer = qs.MovingAverageObserver(0.25, None, *map(np.asarray, before["x"])).observe(reals["x"].numpy())
    assert np.array_equal(network.ranges[network.places["x"]].numpy(), np.array(observer.range()))
    changed = [name for name, index in network.places.items() if not np.array_equal(
        network.ranges[index].numpy(), before[name])]
    assert len(changed) == len(network.places) == 4


@clause("QAT-RANGE", "QAT-DELAY")
def test_the_first_batch_sets_ranges_that_are_missing():
    model, batches = made("mlp")
    p = qs.prepare_qat(model).train()
    output = p(batches[0])
    (_, _, network), = p.parts()
    low, high = network.ranges[network.places["x"]].tolist()
    assert (low, high) == (float(batches[0].min()), float(batches[0].max()))
    expected = model(batches[0])
    assert (output - expected).abs().max() < 0.02 * expected.abs().max()  # weights have codes, activations none
    assert len(set(output[:, 0].tolist()) & set(qs.convert(p)(batches[0])[:, 0].tolist())) == 0


@clause("QAT-DELAY")
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_activations_stay_float_as_long_as_they_are_delayed(delay):
    model, batches = made("mlp")
    p = qs.prepare_qat(model, batches, delay=delay).train()
    for number, batch in enumerate(batches):
        expected = qs.convert(p)(batch)
        assert torch.equal(p(batch), expected) == (number >= delay)
    (_, _, network), = p.parts()
    assert int(network.batches) == 4


@clause("QAT-FREEZE")
@pytest.mark.parametrize("ranges, statistics", [(True, False), (False, True), (True, True)])
def test_what_is_frozen_stays(ranges, statistics):
    model, batches = made("lenet")
    p = qs.prepare_qat(model, batches[:1]).train()
    (_, _, network), = p.parts()
    p.freeze(ranges=ranges, statistics=statistics)
    before, mean = network.ranges.clone(), p.model.norm1.running_mean.clone()
    p(2 * batches[1])
    assert torch.equal(network.ranges, before) == ranges
    assert torch.equal(p.model.norm1.running_mean, mean) == statistics


@clause("QAT-REFUSE")
def test_ranges_that_do_not_exist_cannot_be_frozen():
    p = qs.prepare_qat(made("mlp")[0])
    with pytest.raises(qs.CalibrationError, match="freeze: the model has seen no values"):
        p.freeze()


@clause("QAT-EVALUATION")
def test_evaluation_changes_nothing():
    model, batches = made("residual")
    p = qs.prepare_qat(model, batches[:1]).eval()
    before = bits(p)
    first = p(batches[1])
    p(3 * batches[2])
    assert same(bits(p), before) and torch.equal(p(batches[1]), first)


@clause("QAT-FOLD")
def test_a_normalization_is_folded_with_the_statistics_of_the_batch():
    model, batches = made("lenet")
    batch = batches[0]
    p = qs.prepare_qat(model, [batch]).train()
    twin = copy.deepcopy(model)
    (_, _, network), = p.parts()
    grid = network.grids()["x"].qparams
    x = torch.from_numpy(grid.dequantize(grid.quantize(batch.numpy())))
    twin.norm1.train()
    seen = twin.conv1(x)
    twin.norm1(seen)
    ranges, seen_ranges = network.ranges.clone(), seen.var((0, 2, 3), correction=0)
    output = p(batch)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(getattr(p.model.norm1, name), getattr(twin.norm1, name), rtol=1e-5, atol=1e-6)
    assert int(p.model.norm1.num_batches_tracked) == int(twin.norm1.num_batches_tracked)
    # The same network with these statistics fixed, and the ranges of before.
    fixed = copy.deepcopy(model)
    with torch.no_grad():
        fixed.norm1.running_mean.copy_(seen.mean((0, 2, 3)))
        fixed.norm1.running_var.copy_(seen_ranges)
    expected = qs.prepare_qat(fixed, [batch])
    (_, _, other), = expected.parts()
    other.ranges.copy_(ranges)
    assert (output - expected(batch)).abs().max() <= 2 * float(network.grids()["fc2"].scale)
    # Gradients go through the statistics: a normalized output does not depend on the size of the weights.
    p.model.zero_grad()
    p(batch).square().sum().backward()
    along = (p.model.conv1.weight.detach() * p.model.conv1.weight.grad).sum((1, 2, 3))
    assert float(along.abs().max()) < 0.2 * float(p.model.conv1.weight.grad.abs().sum())


@clause("QAT-BITS", "STA-WEIGHT-BITS")
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_weights_have_as_many_bits_as_asked_for(weight_bits):
    model, batches = made("mlp")
    for q in (
        qs.quantize(model, batches, weight_bits=weight_bits),
        calibrated(model, batches, weight_bits=weight_bits),
        qs.convert(qs.prepare_qat(model, batches, weight_bits=weight_bits)),
    ):
        for layer in q.program.layers:
            assert (layer.w_qparams.qmin, layer.w_qparams.qmax) == spec_codes(weight_bits)
            assert layer.y_qparams.qmax == 255 and layer.weight.max() == 2 ** (weight_bits - 1) - 1
    q = qs.convert(qs.prepare_qat(model, batches, bits=weight_bits))
    assert {layer.y_qparams.qmax for layer in q.program.layers} == {2**weight_bits - 1}
    assert {layer.w_qparams.qmin for layer in q.program.layers} == {-(2 ** (weight_bits - 1))}


def calibrated(model, batches, **options):
    p = qs.prepare(model, **options)
    for batch in batches:
        p.observe(batch)
    return qs.convert(p)


def spec_codes(bits):
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


@clause("QAT-BITS", "STA-BITS-RANGE")
@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"weight_bits": 1}, {"weight_bits": 9}], ids=str)
@pytest.mark.parametrize("function", [qs.quantize, qs.prepare_qat])
def test_other_numbers_of_bits_are_refused(function, options):
    model, batches = made("mlp")
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: expected 2 to 8"):
        function(model, batches, **options)


@clause("QAT-PARAMETERS")
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "computed"])  # QAT-COMPUTED adds one
def test_the_float_networks_own_parameters_are_trained(name):
    model, batches = made(name)
    before = networks.parameters(model)
    p = qs.prepare_qat(model, batches)
    assert same(dict(model.named_parameters()), dict(p.model.named_parameters()))
    assert len(list(p.parameters())) == len(list(p.model.parameters()))  # and no others are
    trained(p, batches)
    assert networks.unchanged(model, before) and not model.training
    assert all(parameter.grad is not None for parameter in p.model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@clause("QAT-PARAMETERS")
def test_frozen_layers_stay_and_gradients_accumulate():
    model, batches = made("mlp")
    model.fc1.requires_grad_(False)
    p = qs.prepare_qat(model, batches)
    assert not p.model.fc1.weight.requires_grad
    trained(p, batches)
    assert torch.equal(p.model.fc1.weight, model.fc1.weight) and not torch.equal(p.model.fc2.weight, model.fc2.weight)
    p.freeze()
    p.zero_grad()
    parts = []
    for batch in batches[:2]:
        p.model.zero_grad()
        p(batch).sum().backward()
        parts.append(p.model.fc2.weight.grad.clone())
    p.model.zero_grad()
    for batch in batches[:2]:
        p(batch).sum().backward()
    assert torch.equal(p.model.fc2.weight.grad, parts[0] + parts[1])


@clause("QAT-PYTHON")
def test_python_between_parts_is_trained_through():
    model, batches = made("python")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = qs.prepare_qat(model, batches)
        assert not p.is_whole and len(list(p.parts())) == 3
        statistics = p.model.middle[1].running_mean.clone()
        trained(p, batches)
        assert not torch.equal(p.model.middle[1].running_mean, statistics)
        assert p.model.gain.grad is not None and p.model.gain != model.gain
        q = qs.convert(p.eval())
    assert sum(len(network.program.layers) for _, network in q.networks()) == 3
    assert torch.equal(copy.deepcopy(p)(batches[0]), q(batches[0]))


@clause("QAT-RESUME")
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", ["lenet", "lstm", "python"])
def test_what_was_interrupted_goes_on_as_it_would_have(name, learned):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches, delay=1, learned_scales=learned)
    optimizer = trained(p, batches[:2], torch.optim.Adam(p.parameters(), 1e-3))
    file = io.BytesIO()
    counted = [value for key, value in bits(p).items() if key.endswith((".batches", ".zero_points"))]
    assert counted and all(value.dtype == torch.int64 for value in counted)
    torch.save({"p": p.state_dict(), "optimizer": optimizer.state_dict()}, file)
    trained(p, batches[2:], optimizer)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = qs.prepare_qat(model, [2 * batch for batch in batches], delay=1, learned_scales=learned)
    resumed = torch.optim.Adam(other.parameters(), 1e-3)
    other.load_state_dict(saved["p"])
    resumed.load_state_dict(saved["optimizer"])
    trained(other, batches[2:], resumed)
    assert same(bits(p), bits(other))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(qs.convert(p)(batches[0]), qs.convert(other)(batches[0]))


@clause("QAT-AUTOCAST")
@pytest.mark.parametrize("name", ["lenet", "words"])
def test_autocast_changes_no_code(name):
    model, batches = made(name)
    p = qs.prepare_qat(model, batches)
    expected = p(batches[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(p(batches[1]), expected)
        p(batches[1]).sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in p.model.parameters())


@clause("QAT-AUTOCAST")
@pytest.mark.parametrize("name, inside", [("lenet", False), ("words", False), ("mlp", True)])
def test_autocast_changes_no_gradient(name, inside):
    model, batches = made(name)
    plain, cast = (qs.prepare_qat(model, batches).train() for _ in range(2))
    for p in (plain, cast):
        torch.default_generator.manual_seed(0)  # of what is dropped
        with torch.autocast("cpu", torch.bfloat16, enabled=p is cast):
            loss = p(batches[1]).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), cast.parameters(), strict=True))


class Held(nn.Module):
    """A layer whose weight is a plain tensor, which no parameter gives."""

    def __init__(self):
        super().__init__()
        self.first, self.last = networks.with_plain(nn.Linear(4, 3), "weight"), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.first(x).relu())


@clause("QAT-COMPUTED")
def test_parameters_that_the_first_batch_adds_are_warned_of_in_the_users_line():
    with pytest.warns(UserWarning, match="the first batch added") as seen:
        qs.prepare_qat(networks.seeded(Held).eval()).train()(networks.inputs(8))
    assert seen[0].filename == __file__


@clause("QAT-COMPUTED")
def test_parameters_that_the_first_batch_adds_are_warned_of():
    model, plain = (networks.seeded(build).eval() for build in (Held, lambda: nn.Linear(4, 3)))
    x = networks.inputs(8)
    with pytest.warns(UserWarning, match="the first batch added .* networks.0.added.first_weight; create"):
        qs.prepare_qat(model).train()(x)
    for silent in (qs.prepare_qat(model, [x]), qs.prepare_qat(plain)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            silent.train()(x)


@clause("QAT-COMPILE")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler asks every tensor for one
@pytest.mark.filterwarnings("ignore:module .* it is called with arguments or sizes")  # the codes below would tell
@pytest.mark.parametrize("name", ["lenet", "python"])
def test_compiling_changes_no_code(name):
    model, batches = made(name)
    p, plain = qs.prepare_qat(model), qs.prepare_qat(model)  # whose first batch says what they are
    compiled = torch.compile(lambda x: p(x) * 2, backend="eager")
    for network, call in ((plain, plain), (p, compiled)):
        network.train()
        call(batches[0]).sum().backward()
        assert all(parameter.grad is not None for parameter in network.model.parameters())
    assert torch.equal(compiled(batches[1]), 2 * plain(batches[1])) and same(bits(p), bits(plain))
    p.eval(), plain.eval()
    assert torch.equal(compiled(batches[2]), 2 * plain(batches[2]))
    assert torch.equal(torch.compile(p, backend="eager")(batches[2]), plain(batches[2]))


@clause("QAT-REFUSE")
def test_what_cannot_be_trained_is_refused_by_name():
    model, batches = made("mlp")
    for call in (lambda: qs.convert(qs.prepare_qat(model)), lambda: qs.prepare_qat(model)(batches[0])):
        with pytest.raises(qs.CalibrationError, match="has seen no values; train on a batch or pass calibration"):
            call()
    q = qs.quantize(model, batches)
    with pytest.raises(TypeError, match="model: expected a float model, got a QuantizedModule"):
        qs.prepare_qat(q)
    with pytest.raises(ValueError, match="mode: a quantized network cannot be trained; .* prepare_qat"):
        q.train()
    with pytest.raises(TypeError, match=r"calibration: expected an iterable of batches, got Tensor; pass \[batch\]"):
        qs.prepare_qat(model, batches[0])
    with pytest.raises(TypeError, match="prepare_qat: argument: expected one of .*, got 'bit'; did you mean bits?"):
        qs.prepare_qat(model, bit=8)
    with pytest.raises(ValueError, match="learned_scales: expected calibration batches"):
        qs.prepare_qat(model, learned_scales=True)
    with pytest.raises(ValueError, match="averaging: expected more than 0 and at most 1, got 0"):
        qs.prepare_qat(model, batches, averaging=0)
    with pytest.raises(ValueError, match="delay: expected a number of batches of at least 0, got -1"):
        qs.prepare_qat(model, batches, delay=-1)
    with pytest.raises(qs.UnsupportedError, match="dialect: fbgemm-int16 adds products in 16 bits"):
        qs.prepare_qat(model, batches, dialect="fbgemm-int16")


@clause("QAT-REFUSE")
def test_weights_and_batches_with_a_nan_are_refused_by_name():
    model, batches = made("mlp")
    p = qs.prepare_qat(model, batches).train()
    with pytest.raises(ValueError, match="x: expected numbers, got NaN"):
        p(batches[0] * float("nan"))
    with torch.no_grad():
        p.model.fc2.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="model: weight of layer 'fc2': expected finite values"):
        p(batches[0])
