"""Chapter 7: one call of a network in training: what lies between codes, what was observed, which scale learns."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec.ir.program import Add, AvgPool, Concat, Conv, Dequantize, Mul, Table
from quantspec.qat import network as running

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
    torch.manual_seed(1)
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


def between_codes(value):
    return bool((value != value.round()).any())


@clause("QAT-ACTS", "QAT-LAYER")
@pytest.mark.parametrize("dialect", ["onnx", "fbgemm"])
@pytest.mark.parametrize("name", PASSING)
def test_a_layer_rounds_sums_of_values_between_codes(monkeypatch, name, dialect):
    p, x = prepared(PASSING[name], dialect)
    p.freeze()
    layers = {layer.layer: layer for layer in qs.convert(p).program.steps if isinstance(layer, Conv)}
    seen, run = recorded(monkeypatch, p, x)
    values = {step.layer: value for step, value in seen.values() if isinstance(step, Conv)}
    given = {step.layer: seen[step.x][1] for step, _ in seen.values() if isinstance(step, Conv)}
    scale = float(layers["a"].y_qparams.scale)
    expected = PASSING[name](values["a"] * scale * 1.3, None) / scale
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
    p, x = prepared(ROUNDED[name], dialect)
    p.freeze()
    layers = {layer.layer: layer for layer in qs.convert(p).program.steps if isinstance(layer, Conv)}
    seen, run = recorded(monkeypatch, p, x)
    values = {step.layer: value for step, value in seen.values() if isinstance(step, Conv)}
    reals = [values[key] * float(layers[key].y_qparams.scale) for key in ("a", "other") if key in values]
    y, z = [*reals, None][:2]
    step, value = next(pair for pair in seen.values() if isinstance(pair[0], Add | Mul | Concat | Table))
    grid = layers["b"].x_qparams
    codes = p.options.dialect.quantize(ROUNDED[name](y * 1.3, z).numpy(), grid.scale, grid.zero_point, qmin=0, qmax=255)
    off = value.numpy() + grid.zero_point - codes
    assert np.abs(off).max() <= 1 and (off != 0).mean() < 0.01  # in float32 the real result is off by rounding
    assert not between_codes(value) and step.name not in run.loose and len(run.loose) == 1


class Twice(nn.Module):
    """An input that is quantized in two parts, of which either may have the larger range."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return self.a(x.narrow(1, 0, 3)) + self.b(x.narrow(1, 3, 3))


@clause("QAT-RANGE")
@pytest.mark.parametrize("sizes", [(1, 5), (5, 1)], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_range_of_what_is_quantized_in_parts_is_that_of_all_parts(sizes, gradient):
    model = networks.seeded(Twice).eval()
    x = torch.cat([size * networks.inputs(8, (3,), seed=size) for size in sizes], 1)
    p = qs.prepare_qat(model, [x / 9], averaging=1.0).train()
    p(x.requires_grad_(gradient))
    (_, _, network), = p.parts()
    ends = network.ranges[network.places["x"]]
    assert ends.tolist() == [x.min().item(), x.max().item()]


class Joined(nn.Module):
    """Values of two layers on one grid, which they get by joining them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


@clause("QAT-SCALE")
@pytest.mark.parametrize("which", ["a", "b"])
def test_a_scale_learns_from_all_that_is_on_its_grid(which):
    model, x = networks.seeded(Joined), networks.inputs(8)
    p = qs.prepare_qat(model, [x], learned_scales=True).train()
    with torch.no_grad():
        silent = {"a": slice(3, 6), "b": slice(0, 3)}[which]
        p.model.c.weight[:, silent] = 0.0  # no gradient reaches the other one
    p(1.5 * x).square().sum().backward()
    (_, _, network), = p.parts()
    (group,) = (group for group in network.groups if len(group) == 3)
    assert network.scales[network.scale_names[group[0]]].grad.abs() > 0


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
        torch.manual_seed(2)
        return part(x)

    outputs = [called(part) for part in (p, model.train())]
    assert (outputs[0] - outputs[1]).norm() < 0.1 * outputs[1].norm()
    for output in outputs:
        output.square().sum().backward()
    assert model.size.grad.abs() > 0.5 and torch.allclose(p.model.size.grad, model.size.grad, rtol=0.1)
    with torch.no_grad():
        p.model.chosen.zero_()
    assert torch.equal(called(p), p.eval()(x))


@clause("QAT-REFUSE")
def test_after_a_first_batch_that_failed_there_is_nothing_to_evaluate():
    p = qs.prepare_qat(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).train()
    with pytest.raises(ValueError, match="^batch: a normalization needs more than one value for each channel"):
        p(torch.ones(1, 4))
    with pytest.raises(qs.CalibrationError, match="^the network has seen no values; train on a batch or pass cal"):
        p.eval()(torch.ones(2, 4))
    p.train()(networks.inputs(4))
    assert p.eval()(torch.ones(1, 4)).shape == (1, 3)
