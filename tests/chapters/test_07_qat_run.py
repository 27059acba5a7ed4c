"""Chapter 7: one call of a network in training: what lies between codes, what was observed, which scale learns."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec import chapters
from quantspec.ir.program import Add, AvgPool, Concat, Conv, Dequantize, Move, Mul, Table
from quantspec.qat import network as running

spec = chapters.load("qat")
pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Scaled(nn.Module):
    """Something between two layers that acts in training mode only, and is not random."""

    def __init__(self, between):
        super().__init__()
        self.a, self.other, self.b, self.c = (nn.LazyConv2d(4, 1) for _ in range(4))
        self.between = between

    def forward(self, x):
        y = self.a(x)
        y = self.between(y * 1.3 if self.training else y, self.other(x))
        return self.c(F.avg_pool2d(F.relu(self.b(y)), 2))


def both_ways(size):
    return lambda y, z: F.interpolate(y, size, mode="bilinear")


# What keeps the grid of its input, and so leaves values between codes.
PASSING = {
    "nothing": lambda y, z: y, "relu": lambda y, z: F.relu(y), "a move": lambda y, z: y.transpose(2, 3),
    "the largest": lambda y, z: F.max_pool2d(y, 2), "averages": lambda y, z: F.avg_pool2d(y, 2),
    "averages of any size": lambda y, z: F.adaptive_avg_pool2d(y, 3), "resized": both_ways((9, 5)),
    "a mean": lambda y, z: y.mean((2, 3), keepdim=True).expand(-1, -1, 2, 2), "two": lambda y, z: F.relu(y[:, :, 1:]),
}  # fmt: skip
# What has a grid of its own, on which values are rounded.
ROUNDED = {
    "a sum": lambda y, z: y + z, "a product": lambda y, z: z * y, "a join": lambda y, z: torch.cat([z, y], 1),
    "a table": lambda y, z: F.silu(y),
}  # fmt: skip


def prepared(between, dialect, **options):
    model = Scaled(between)
    x = networks.inputs(4, (3, 6, 6))
    torch.default_generator.manual_seed(1)
    model(x)
    model.eval()
    return qs.prepare_qat(model, [2 * x], dialect=dialect, **options).train(), x


def recorded(monkeypatch, p, x):
    """Each step with its value, in one call, and the names of those between codes."""
    seen, runs = {}, []

    def recording(function):
        def record(run, step):
            runs.append(run)
            seen[step.name] = step, function(run, step)
            return seen[step.name][1]

        return record

    monkeypatch.setattr(running, "STEPS", {kind: recording(function) for kind, function in running.STEPS.items()})
    with torch.no_grad():
        p(x)
    return seen, runs[-1]


def frozen(monkeypatch, between, dialect):
    """A network whose ranges stay, its layers as they are shipped, each step with its value, the values of layers, and
    the call."""
    p, x = prepared(between, dialect)
    p.freeze()
    layers = {layer.layer: layer for layer in qs.convert(p).program.steps if isinstance(layer, Conv)}
    seen, run = recorded(monkeypatch, p, x)
    values = {step.layer: value for step, value in seen.values() if isinstance(step, Conv)}
    return p, layers, seen, values, run


def between_codes(value):
    return bool((value != value.round()).any())


@clause("QAT-ACTS", "QAT-LAYER")
@pytest.mark.parametrize("dialect", ["onnx", "fbgemm"])
@pytest.mark.parametrize("name", PASSING)
def test_a_layer_rounds_sums_of_values_between_codes(monkeypatch, name, dialect):
    p, layers, seen, values, run = frozen(monkeypatch, PASSING[name], dialect)
    given = {step.layer: seen[step.x][1] for step, _ in seen.values() if isinstance(step, Conv)}
    scale = float(layers["a"].y_qparams.scale)
    expected = PASSING[name](values["a"] * scale * 1.3, None) / scale
    # Of values up to a few hundred steps, scaled twice in float32, and sums of nine of them at most.
    assert between_codes(given["b"]) and torch.allclose(given["b"], expected, rtol=2**-20, atol=2**-16)
    # Sums in float32, to the nearest integer; then what the dialect makes of an accumulator.
    b = layers["b"]
    weight = torch.from_numpy(b.weight.copy()).float()
    sums = F.conv2d(given["b"], weight).round().movedim(1, -1).to(torch.int64).numpy()
    rule = p.options.dialect.windows_rule
    scales = b.x_qparams.scale, b.w_qparams.scale
    codes = p.options.dialect.requantize(sums, b.bias, *scales, b.y_qparams, relu=b.relu, rule=rule)
    off = (values["b"].movedim(1, -1).numpy() + b.y_qparams.zero_point) - codes
    # A sum within rounding of a tie may go either way.
    assert np.abs(off).max() <= 1 and (off != 0).mean() < 0.01
    # What follows is in codes again.
    averages, = (value for step, value in seen.values() if isinstance(step, AvgPool) and step.x == b.name)
    assert not between_codes(averages)
    floats = {step.name for step, value in seen.values() if between_codes(value) and not isinstance(step, Dequantize)}
    assert run.loose == floats


@clause("QAT-ACTS")
@pytest.mark.parametrize("dialect", ["onnx", "fbgemm"])
@pytest.mark.parametrize("name", ROUNDED)
def test_a_step_with_a_grid_of_its_own_rounds_the_real_result(monkeypatch, name, dialect):
    p, layers, seen, values, run = frozen(monkeypatch, ROUNDED[name], dialect)
    reals = [values[key] * float(layers[key].y_qparams.scale) for key in ("a", "other") if key in values]
    y, z = [*reals, None][:2]
    step, value = next(pair for pair in seen.values() if isinstance(pair[0], Add | Mul | Concat | Table))
    grid = layers["b"].x_qparams
    codes = p.options.dialect.quantize(ROUNDED[name](y * 1.3, z).numpy(), grid.scale, grid.zero_point, qmin=0, qmax=255)
    off = value.numpy() + grid.zero_point - codes
    assert np.abs(off).max() <= 1 and (off != 0).mean() < 0.01  # in float32 the real result is off by rounding
    assert not between_codes(value) and step.name not in run.loose and len(run.loose) == 1


@clause("QAT-ACTS", "QAT-SCALE")
@pytest.mark.parametrize("name", ROUNDED)
def test_the_scale_of_what_is_rounded_between_codes_learns(name):
    p, x = prepared(ROUNDED[name], "onnx", learned_scales=True)
    p(x).square().sum().backward()
    (_, _, network), = p.parts()
    read = {name for node in network.graph.nodes for name in network.scale_names if name == node.name}
    assert len(read) > 3 and all(network.scales[network.scale_names[name]].grad.abs() > 0 for name in read)


class Between(nn.Sequential):
    """A dropout between two layers, the second of which gives floats."""

    def __init__(self, rate):
        super().__init__(nn.Linear(4, 6), nn.Dropout(rate), nn.Linear(6, 5), nn.Softmax(-1))


@clause("QAT-ACTS")
@pytest.mark.parametrize("dialect", ["onnx", "exact"])
def test_a_layer_that_gives_floats_rounds_sums_of_values_between_codes(monkeypatch, dialect):
    model, x = networks.seeded(lambda: Between(0.3)), networks.inputs(64)
    p = qs.prepare_qat(model, [2 * x], dialect=dialect).train().freeze()
    layer = qs.convert(p).program.layers[1]
    assert layer.y_qparams is None
    seen, run = recorded(monkeypatch, p, x)
    (step, value), = (pair for pair in seen.values() if getattr(pair[0], "layer", None) == layer.layer)
    given = seen[step.x][1]
    assert between_codes(given) and run.loose == {step.x}
    sums = F.linear(given, torch.from_numpy(layer.weight.copy()).float()).round()
    unit = torch.from_numpy(layer.w_qparams.scale.copy()) * float(layer.x_qparams.scale)
    off = (value - torch.from_numpy(layer.bias.copy())) / unit - sums
    # A sum is at most 6 * 127 * 255 * 1.5 units, which float32 has within a fiftieth of one, and one within rounding of
    # a tie may go either way.
    assert (off.abs() > 0.1).float().mean() < 0.01


@clause("QAT-ACTS", "QAT-FORWARD")
def test_where_nothing_was_dropped_values_are_codes(monkeypatch):
    model, x = networks.seeded(lambda: Between(0.3)), networks.inputs(64)
    p = qs.prepare_qat(model, [2 * x]).train().freeze()
    for rate in (0.0, 0.3):
        p.model[1].p = rate
        seen, run = recorded(monkeypatch, p, x)
        (value,) = (value for step, value in seen.values() if isinstance(step, Move))
        assert between_codes(value) == bool(run.loose) == (rate > 0.0)
    p.model[1].p = 0.0
    assert torch.equal(p(x), qs.convert(p)(x))


class Joined(nn.Module):
    """Values of two layers on one grid, which they get by joining them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


@clause("QAT-SCALE")
def test_a_scale_learns_from_all_that_is_on_its_grid():
    model, x = networks.seeded(Joined), networks.inputs(8)
    p = qs.prepare_qat(model, [x], learned_scales=True).train()
    (_, _, network), = p.parts()
    (group,) = (group for group in network.groups if len(group) == 3)
    parameter = network.scales[network.scale_names[group[0]]]
    q, output = qs.convert(p), p(x)  # nothing is outside the ranges
    output.square().sum().backward()
    (a, b, c), grid = q.program.layers, network.grids()[group[0]]
    weight = torch.from_numpy(c.weight.copy()) * torch.from_numpy(c.w_qparams.scale.copy())[:, None]
    gradients = 2 * output.detach() @ weight  # of what is joined, whose values are on the grid already
    rows = p.options.dialect.quantize(x.numpy(), a.x_qparams.scale, a.x_qparams.zero_point, qmin=0, qmax=255)
    steps = torch.from_numpy(rows.astype(np.float32) - np.float32(a.x_qparams.zero_point)) * float(a.x_qparams.scale)
    expected = 0.0
    for layer, own in ((a, gradients[:, :3]), (b, gradients[:, 3:])):
        scales = torch.from_numpy(layer.w_qparams.scale.copy())[:, None]
        real = steps @ (torch.from_numpy(layer.weight.copy()) * scales).T + torch.from_numpy(layer.bias.copy())
        ends = grid.scale, grid.zero_point, grid.qmin, grid.qmax
        expected += spec.scale_gradient(own.flatten().tolist(), real.flatten().tolist(), *ends, n=3)
    # The parameter is the logarithm. Biases in codes are off by half of a unit.
    half = 0.5 * float(a.x_qparams.scale) * max(float(layer.w_qparams.scale.max()) for layer in (a, b))
    bound = half * gradients.abs().sum() / math.sqrt(3 * (grid.qmax - grid.zero_point)) * math.log(2)
    found = parameter.grad.item()
    assert math.isclose(found, expected * grid.scale * math.log(2), rel_tol=0, abs_tol=bound) and abs(found) > 2 * bound


class Noise(nn.Module):
    """Noise of a learned size, on channels that a buffer and a constant choose."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.size = nn.Linear(4, 3), nn.Linear(3, 2), nn.Parameter(torch.tensor(0.5))
        self.register_buffer("chosen", torch.tensor([1.0, 0.0, 1.0]))

    def forward(self, x):
        x = self.a(x)
        if self.training:
            x = x + self.size * self.chosen * torch.tensor([1.0, 1.0, 0.0]) * torch.randn_like(x)
        return self.b(x)


@clause("QAT-ACTS", "QAT-PARAMETERS")
def test_what_acts_has_the_models_own_tensors():
    model, x = networks.seeded(Noise), networks.inputs(8)
    p = qs.prepare_qat(model.eval(), [x, 3 * x]).train().freeze()
    assert p.is_whole and p.networks[0].acting

    def called(part):
        torch.default_generator.manual_seed(2)
        return part(x)

    outputs = [called(part) for part in (p, model.train())]
    assert (outputs[0] - outputs[1]).norm() < 0.1 * outputs[1].norm()
    for output in outputs:
        output.square().sum().backward()
    # Codes put weights and what they are multiplied by off by half a step, of some hundredths of their sizes.
    assert model.size.grad.abs() > 0.5 and torch.allclose(p.model.size.grad, model.size.grad, rtol=0.1)
    with torch.no_grad():
        p.model.chosen.zero_()
    assert torch.equal(called(p), p.eval()(x))


@clause("QAT-EQUAL", "QAT-CONVERT")
def test_what_is_joined_has_one_grid_in_training():
    model, x = networks.seeded(Joined), networks.inputs(8)
    with torch.no_grad():
        model.b.weight.mul_(4)
    p = qs.prepare_qat(model, [x]).train()
    for batch in (x, 2 * x):
        p(batch)
        (_, _, network), = p.parts()
        (group,) = (group for group in network.groups if len(group) == 3)
        assert len({network.grids()[name] for name in group}) == 1
        assert len({tuple(network.ranges[network.places[name]].tolist()) for name in group}) > 1
        assert torch.equal(p.eval()(batch), qs.convert(p)(batch))
        p.train()


class Sure(nn.Sequential):
    """Layers whose weights have scales for each output or for all."""

    def __init__(self):
        super().__init__(
            nn.Conv1d(3, 3, 1, groups=3), nn.Conv2d(2, 3, 2), nn.Linear(1, 4), nn.Linear(4, 2)
        )

    def forward(self, x):
        x = self[0](x).tanh().view(-1, 1, 3, 4).expand(-1, 2, -1, -1)
        return self[3](self[2](self[1](x).flatten(1).mean(1, keepdim=True)).relu())


@clause("QAT-DELAY", "QAT-WEIGHT")
@pytest.mark.parametrize("per_channel", [True, False])
def test_while_activations_are_float_the_weights_are_those_that_are_shipped(per_channel):
    model, x = networks.seeded(Sure).eval(), networks.inputs(8, (3, 4))
    p = qs.prepare_qat(model, [x], delay=2, per_channel=per_channel).train()
    q = qs.quantize(model, [x], per_channel=per_channel)
    dequantized = networks.seeded(Sure).eval()
    with torch.no_grad():
        for layer in q.program.layers:
            own = dequantized.get_submodule(layer.layer)
            scale = torch.from_numpy(np.array(layer.w_qparams.scale))
            assert scale.ndim == (per_channel or layer.layer == "0")
            own.weight.copy_(torch.from_numpy(layer.weight.copy()) * scale.view(-1, *[1] * (own.weight.ndim - 1)))
        assert torch.equal(p(x), dequantized(x))


@clause("QAT-REFUSE")
def test_what_is_not_finite_is_named():
    model, x = networks.seeded(Sure).eval(), networks.inputs(8, (3, 4))
    p = qs.prepare_qat(model, [x], delay=1).train()
    with torch.no_grad():
        p.model[2].weight[0] = float("nan")
    with pytest.raises(ValueError, match="^model: weight of layer '2': expected finite values, got NaN or infinities$"):
        p(x)
    p = qs.prepare_qat(model, [x]).train()
    x[1, 2, 3] = float("inf")
    with pytest.raises(qs.CalibrationError, match=r"^input 'x': expected finite values, got \(-[0-9.]+, inf\)$"):
        p(x)


@clause("QAT-REFUSE")
def test_after_a_first_batch_that_failed_there_is_nothing_to_evaluate():
    p = qs.prepare_qat(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).train()
    with pytest.raises(ValueError, match="^batch: a normalization needs more than one value for each channel"):
        p(torch.ones(1, 4))
    with pytest.raises(qs.CalibrationError, match="^the network has seen no values; train on a batch or pass cal"):
        p.eval()(torch.ones(2, 4))
    with pytest.raises(qs.CalibrationError, match="^input 'input' has seen no values; train on a batch or pass calib"):
        qs.convert(p)
    with pytest.raises(qs.CalibrationError, match="^freeze: the model has seen no values"):
        p.freeze()
    assert all(not bool(network.frozen) for _, _, network in p.parts())
    p.train()(networks.inputs(4))
    assert p.eval()(torch.ones(1, 4)).shape == (1, 3)
