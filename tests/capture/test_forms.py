"""The forms in which operations are written, each in a model of its own: what becomes of it, and that the float network
that was captured is the model."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from evidence import clause
from quantspec.capture import parts
from quantspec.ir import program
from quantspec.numerics import accuracy

DECIBELS = 25.0
IMAGES = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
Written = Callable[[torch.Tensor], Any]


class Between(nn.Module):
    """A convolution, or a linear layer, something, and another layer of that kind."""

    def __init__(self, written: Written, rows: bool, channels: int = 0):
        super().__init__()
        first, last = (8, channels or 8) if rows else (4, channels or 4)
        kind: Callable[..., nn.Module] = nn.Linear if rows else functools.partial(nn.Conv2d, kernel_size=3, padding=1)
        self.first, self.last = kind(first, first), kind(last, 3)
        self.written = written
        if isinstance(written, nn.Module):
            self.inside = written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.written(self.first(x)))


class First(nn.Module):
    """The first of what a module gives."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)[0]


class OfChannels(nn.Module):
    """A parameter with a value for each channel of images, in an expression."""

    def __init__(self, written: Callable[[torch.Tensor, nn.Parameter], torch.Tensor]):
        super().__init__()
        self.values, self.expression = nn.Parameter(torch.linspace(0.5, 2, 4).reshape(1, 4, 1, 1)), written

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expression(x, self.values)


class Standardized(nn.Conv2d):
    """A convolution whose weight is normalized, row by row, whenever it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-6)
        return F.conv2d(x, rows.reshape_as(self.weight), self.bias, padding=self.padding)


class OfItsOwnSize(nn.Module):
    """Numbers that are sizes of a parameter, and a constant that is made at each call."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.weight.shape[1], self.weight.numel() // 4)
        return rows.flatten(1) * (1 / self.weight.size(0)) + torch.arange(self.weight.size(dim=0))


def seeded(written: Callable[[], Written], rows: bool, channels: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = Between(written(), rows, channels).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                if module.affine:
                    nn.init.uniform_(module.weight, 0.5, 2)
                    nn.init.uniform_(module.bias, -1, 1)
                if module.running_mean is not None:
                    nn.init.uniform_(module.running_mean, -1, 1)
                    nn.init.uniform_(module.running_var, 0.5, 2)
        return model


def described(step: program.Step) -> str:
    """A step in a word: its kind, with what is inside of it, or what it calls in float."""
    if isinstance(step, program.Call):
        return f"float {step.target.rpartition('.')[2]}"
    relu = "+relu" if getattr(step, "relu", False) else ""
    return f"{type(step).__name__}{relu}".lower()


def between(q: Any) -> list[str]:
    """The steps between a network's first layer, which is among them where it has a ReLU inside, and its last one."""
    words = [described(step) for step in q.program.steps]
    layers = [index for index, step in enumerate(q.program.steps) if isinstance(step, (program.Linear, program.Conv))]
    first, last = layers[0], layers[-1]
    inside = words[first + 1 : last]
    return ([words[first]] if "+relu" in words[first] else []) + [w for w in inside if w not in MOVED]


MOVED = ("dequantize", "quantize")
IN = {"linear": True, "conv": False}
HALVED = ("getattr", "getitem", "floordiv")  # a size and what is computed of it
# What is written, how, and what it becomes between two layers. "move" and "table" are steps on codes.
FORMS: dict[str, tuple[str, Callable[[], Written], list[str]]] = {
    "torch.relu_": ("linear", lambda: torch.relu_, ["linear+relu"]),
    "F.relu_": ("linear", lambda: F.relu_, ["linear+relu"]),
    "relu_": ("linear", lambda: lambda x: x.relu_(), ["linear+relu"]),
    "F.relu in place": ("linear", lambda: lambda x: F.relu(x, inplace=True), ["linear+relu"]),
    "nn.ReLU in place": ("conv", lambda: nn.ReLU(inplace=True), ["conv+relu"]),
    "relu6": ("conv", lambda: F.relu6, ["conv+relu"]),
    "nn.ReLU6": ("conv", nn.ReLU6, ["conv+relu"]),
    "hardtanh from 0": ("conv", lambda: nn.Hardtanh(0.0, 0.5), ["conv+relu"]),
    "hardtanh": ("conv", lambda: nn.Hardtanh(-0.5, 0.5), ["table"]),
    "clamp from 0": ("conv", lambda: lambda x: x.clamp(min=0, max=0.5), ["conv+relu"]),
    "clamp from 0 by place": ("conv", lambda: lambda x: torch.clamp(x, 0, 0.5), ["conv+relu"]),
    "clamp below": ("conv", lambda: lambda x: x.clamp(min=0.25), ["table"]),
    "clamp above": ("conv", lambda: lambda x: x.clamp(max=0.25), ["table"]),
    "clamp both": ("conv", lambda: lambda x: x.clamp(-0.5, 0.25), ["table"]),
    "F.hardtanh by name": ("conv", lambda: lambda x: F.hardtanh(x, max_val=0.5, min_val=0.0), ["conv+relu"]),
    "prelu": ("conv", lambda: nn.PReLU(), ["table"]),
    "prelu of channels": ("conv", lambda: nn.PReLU(4), ["table"]),
    "pad": ("conv", lambda: lambda x: F.pad(x, (1, 0, 2, 1)), ["move"]),
    "pad with 0": ("conv", lambda: lambda x: F.pad(x, (1, 0), "constant", 0), ["move"]),
    "pad with a value": ("conv", lambda: lambda x: F.pad(x, (1, 0), value=1.5), ["float pad"]),
    "pad with a value by place": ("conv", lambda: lambda x: F.pad(x, (1, 0), "constant", 1.5), ["float pad"]),
    "pad by reflection": ("conv", lambda: lambda x: F.pad(x, (2, 1, 0, 1), mode="reflect"), ["move"]),
    "nn.ZeroPad2d": ("conv", lambda: nn.ZeroPad2d((1, 2, 0, 1)), ["move"]),
    "nn.ReflectionPad2d": ("conv", lambda: nn.ReflectionPad2d((1, 2, 0, 1)), ["move"]),
    "nn.ReplicationPad2d": ("conv", lambda: nn.ReplicationPad2d((1, 2, 0, 1)), ["move"]),
    "nn.CircularPad2d": ("conv", lambda: nn.CircularPad2d((1, 2, 0, 1)), ["move"]),
    "nearest": ("conv", lambda: lambda x: F.interpolate(x, scale_factor=2), ["move"]),
    "nearest, exact": ("conv", lambda: nn.Upsample(size=(5, 7), mode="nearest-exact"), ["move"]),
    "bilinear": ("conv", lambda: lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"), ["bilinear"]),
    "bicubic": ("conv", lambda: lambda x: F.interpolate(x, size=(5, 7), mode="bicubic"), ["float interpolate"]),
    "by areas": ("conv", lambda: lambda x: F.interpolate(x, size=(5, 7), mode="area"), ["float interpolate"]),
    "pixel shuffle": ("conv 1", lambda: nn.PixelShuffle(2), ["move"]),
    "channel shuffle": ("conv", lambda: nn.ChannelShuffle(2), ["move"]),
    "flatten": ("linear", lambda: lambda x: x.unflatten(1, (2, 4)).flatten(1), ["move", "move"]),
    "average without padding": (
        "conv", lambda: lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), ["avgpool"],
    ),
    "average, ceil": ("conv", lambda: nn.AvgPool2d((3, 2), ceil_mode=True), ["avgpool"]),
    "average by a divisor": ("conv", lambda: nn.AvgPool2d(3, divisor_override=2), ["float written"]),
    "maximum": ("conv", lambda: lambda x: F.max_pool2d(x, 3, stride=2, padding=1, dilation=2), ["maxpool"]),
    "maximum, ceil": ("conv", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), ["maxpool"]),
    "maximum with places": (
        "conv", lambda: lambda x: F.max_pool2d(x, 3, return_indices=True)[0],
        ["float max_pool2d_with_indices", "float getitem"],
    ),
    "maximum with places by module": (
        "conv", lambda: First(nn.MaxPool2d(3, return_indices=True)), ["float inner", "float getitem"],
    ),
    "adaptive": ("conv", lambda: nn.AdaptiveAvgPool2d((3, None)), ["adaptiveavgpool"]),
    "mean": ("conv", lambda: lambda x: x.mean((2, 3), keepdim=True), ["mean"]),
    "mean of one axis": ("conv", lambda: lambda x: torch.mean(x, 3, True), ["mean"]),
    "sum with itself": ("linear", lambda: lambda x: x + x, ["add"]),
    "sum with a factor": ("linear", lambda: lambda x: torch.add(x, x, alpha=2), ["float add"]),
    "sum in place": ("linear", lambda: lambda x: x.add_(x.neg()), ["table", "add"]),
    "product": ("linear", lambda: lambda x: x * x.sigmoid(), ["table", "mul"]),
    "a number minus it": ("linear", lambda: lambda x: 3 - x, ["table"]),
    "it minus a number": ("linear", lambda: lambda x: x - 3, ["table"]),
    "divided by a number": ("linear", lambda: lambda x: x / 4, ["table"]),
    "a number divided by it": (
        "linear", lambda: lambda x: 1 / (x.abs() + 1), ["float abs", "float add", "float truediv"],
    ),
    "divided and floored": ("linear", lambda: lambda x: torch.div(x, 0.25, rounding_mode="floor"), ["float div"]),
    "joined": ("linear 16", lambda: lambda x: torch.cat((x, x.relu()), dim=1), ["relu", "concat"]),
    "joined in rows": ("linear", lambda: lambda x: torch.cat([x, x]), ["concat"]),
    "joined from behind": ("linear 16", lambda: lambda x: torch.cat([x, x], -1), ["concat"]),
    "normalized": ("conv", lambda: nn.BatchNorm2d(4), []),
    "normalized by the batch": ("conv", lambda: nn.BatchNorm2d(4, track_running_stats=False), ["float written"]),
    "normalized by numbers of its own": (
        "conv", lambda: lambda x: F.batch_norm(x, None, None, training=True), ["float batch_norm"],
    ),
    "normalized by a weight that is computed": (
        "conv", lambda: lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), x.mean((0, 2, 3))),
        ["float _tensor_constant0", "float _tensor_constant1", "mean", "float batch_norm"],
    ),
    "divided by values of channels": ("conv", lambda: OfChannels(lambda x, values: x / values), []),
    "without values of channels": ("conv", lambda: OfChannels(lambda x, values: torch.sub(x, values)), []),
    "values of channels without it": (
        "conv", lambda: OfChannels(lambda x, values: values - x), ["float values", "float sub"],
    ),
    "values of channels divided by it": (
        "conv", lambda: OfChannels(lambda x, values: values / (x.sigmoid() + 1)),
        ["float values", "float sigmoid", "float add", "float truediv"],
    ),
    "a weight that is normalized": ("conv", lambda: Standardized(4, 4, 3, padding=1), ["conv"]),
    "sizes of a parameter": (
        "linear", OfItsOwnSize, [f"float {what}" for what in ("arange", "reshape", "flatten", "mul", "add")],
    ),
    "windows of a size": (
        "conv", lambda: lambda x: F.max_pool2d(x, x.shape[2] // 4) + F.avg_pool2d(x, x.shape[2] // 4),
        [f"float {what}" for kind in ("max", "avg") for what in (*HALVED, f"{kind}_pool2d")] + ["float add"],
    ),
    "as many averages as a size says": (
        "conv", lambda: lambda x: F.adaptive_avg_pool2d(x, x.shape[2] // 2),
        [f"float {what}" for what in (*HALVED, "adaptive_avg_pool2d")],
    ),
    "a mean of some type": ("conv", lambda: lambda x: x.mean((2, 3), True, dtype=torch.float32), ["float mean"]),
    "joined along an axis that is counted": (
        "linear 16", lambda: lambda x: torch.cat((x, x), dim=x.ndim - 1),
        ["float getattr", "float sub", "float cat"],
    ),
    "joined, with all arguments": ("linear 16", lambda: lambda x: torch.cat((x, x), 1, out=None), ["float cat"]),
    "cut off at a value that is computed": (
        "conv", lambda: lambda x: x.clamp(max=x.mean()), ["float mean", "float clamp"],
    ),
    "modules that move": ("linear", lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Flatten(1)), ["move", "move"]),
    "pixel unshuffle": (
        "conv 16", lambda: nn.Sequential(nn.ZeroPad2d((0, 0, 0, 1)), nn.PixelUnshuffle(2)), ["move", "move"],
    ),
    "maximum of one length": ("conv", lambda: lambda x: F.max_pool2d(x, (2,)), ["maxpool"]),
    "average of one length": ("conv", lambda: lambda x: F.avg_pool2d(x, (2,)), ["avgpool"]),
    "flatten, its input last": (
        "linear", lambda: lambda x: torch.flatten(start_dim=1, input=x.unflatten(1, (2, 4))), ["move", "move"],
    ),
    "an operator of torch": ("linear", lambda: lambda x: torch.ops.aten.relu(x), ["float relu"]),
    "normalized without factors": ("conv", lambda: nn.BatchNorm2d(4, affine=False, eps=0.5), []),
}  # fmt: skip


OF_NUMBERS = "sizes of a parameter", "windows of a size", "joined along an axis that is counted"


def takes_numbers_of_a_trace() -> bool:
    """Whether torch's own functions take what stands for a number in a trace, which those of version 2.6 refuse."""
    try:
        torch.fx.symbolic_trace(lambda x: torch.arange(x.size(0)))
    except TypeError:
        return False
    return True


@clause("STA-SAME", "FUS-WRITTEN")
@pytest.mark.parametrize("name", FORMS)
def test_a_form_becomes_what_it_is_and_computes_the_same(name):
    where, written, expected = FORMS[name]
    kind, _, channels = where.partition(" ")
    x = ROWS if kind == "linear" else IMAGES
    prepared = qs.prepare(seeded(written, IN[kind], int(channels or 0)))
    model = seeded(written, IN[kind], int(channels or 0))
    with torch.no_grad():
        assert parts.difference(model(x.clone()), prepared(x.clone()), parts.FUSED) is None
        if name in OF_NUMBERS and not takes_numbers_of_a_trace():
            pytest.skip("functions of this torch take no number that stands for another one: the model is in parts")
        assert prepared.capture.whole_agrees
        q = qs.convert(prepared)
        assert between(q) == expected
        assert accuracy.sqnr(model(x.clone()).numpy(), q(x.clone()).numpy()) > DECIBELS


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "same": lambda: nn.Conv2d(4, 3, (2, 3), padding="same", dilation=(2, 1)),
    "valid": lambda: nn.Conv2d(4, 3, 3, padding="valid", stride=(2, 1)),
    "reflected": lambda: nn.Conv2d(4, 3, 3, padding=(2, 1), padding_mode="reflect"),
    "circular, same": lambda: nn.Conv2d(4, 3, (2, 3), padding="same", padding_mode="circular"),
    "groups": lambda: nn.Conv2d(4, 8, 3, groups=2, bias=False, stride=2, padding=1),
    "factors": lambda: nn.Conv2d(4, 4, 1, groups=4),
    "factors without a bias": lambda: nn.Conv2d(4, 4, 1, groups=4, bias=False),
    "factors of every other position": lambda: nn.Conv2d(4, 4, 1, groups=4, stride=(2, 1)),
    "factors, padded": lambda: nn.Conv2d(4, 4, 1, groups=4, padding=(0, 1)),
    "factors, two for each channel": lambda: nn.Conv2d(4, 8, 1, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)),
    "transposed, groups": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, dilation=(2, 1), stride=2),
}


@clause("STA-SAME", "FUS-WRITTEN")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_with_any_places_is_captured_as_a_layer(name):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        model = nn.Sequential(CONVOLUTIONS[name]()).eval()
    prepared = qs.prepare(model)
    with torch.no_grad():
        assert parts.difference(model(IMAGES), prepared(IMAGES)) is None
    assert prepared.capture.whole_agrees
    q = qs.convert(prepared)
    steps = (step for step in q.program.steps if isinstance(step, (program.Conv, program.Call)))
    assert [type(step) for step in steps] == [program.Conv]
    with torch.no_grad():
        assert accuracy.sqnr(model(IMAGES).numpy(), q(IMAGES).numpy()) > DECIBELS


@clause("STA-SAME", "FUS-WRITTEN")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "places",
    [{}, {"stride": (2, 1)}, {"padding": "same", "dilation": (2, 1)}, {"padding": (2, 0)}, {"groups": 2}],
    ids=str,
)
def test_a_convolution_as_a_function_is_a_layer(places):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4 // places.get("groups", 1), 3, 2) / 4)
            self.bias = nn.Parameter(torch.randn(4))

        def forward(self, x):
            return F.conv2d(x, self.weight, bias=self.bias, **places)

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        model = Functional().eval()
    prepared = qs.prepare(model)
    with torch.no_grad():
        assert parts.difference(model(IMAGES), prepared(IMAGES)) is None
    assert prepared.capture.whole_agrees and len(qs.convert(prepared).program.layers) == 1


BAGS = {
    "sum": {"mode": "sum"}, "mean": {"mode": "mean"}, "max": {"mode": "max"},
    "last offset": {"mode": "sum", "include_last_offset": True}, "padding": {"mode": "mean", "padding_idx": 2},
    "padding, max": {"mode": "max", "padding_idx": 1},
}  # fmt: skip


@clause("DYN-EMBEDDING")
@pytest.mark.parametrize("name", BAGS)
def test_a_bag_has_the_options_of_the_models(name):
    """On rows whose codes are exact: quantized or not, the bag is the same."""
    bag = nn.EmbeddingBag(6, 3, **BAGS[name])
    codes = torch.randint(-127, 128, (6, 3), generator=torch.Generator().manual_seed(6)).float()
    codes[:, 0] = 127.0
    bag.weight = nn.Parameter(codes / 128)
    if bag.padding_idx is not None:
        assert bag.padding_idx in range(6)
    model = Bags(bag).eval()
    indices, offsets = torch.tensor([2, 1, 5, 0, 2, 2, 1, 4]), torch.tensor([0, 3, 4, 8][: 4 if "last" in name else 3])
    q = qs.quantize(model, [(indices, offsets)])
    assert any(isinstance(step, program.Embedding) for step in q.program.steps)
    with torch.no_grad():
        assert torch.equal(q(indices, offsets), model(indices, offsets))


class Bags(nn.Module):
    def __init__(self, bag):
        super().__init__()
        self.bag = bag

    def forward(self, indices, offsets):
        return self.bag(indices, offsets)


@clause("DYN-EMBEDDING")
def test_a_bag_multiplies_by_the_weights_of_its_samples():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(4, 2, mode="sum")
            self.bag.weight = nn.Parameter(torch.tensor([[127.0, 3], [-127, 1], [127, 64], [127, -9]]) / 128)

        def forward(self, indices, offsets, samples):
            return self.bag(indices, offsets, samples)

    model = Weighted().eval()
    batch = torch.tensor([0, 3, 1, 2]), torch.tensor([0, 2]), torch.tensor([0.5, 2.0, -1.0, 0.25])
    q = qs.quantize(model, [batch])
    with torch.no_grad():
        assert torch.equal(q(*batch), model(*batch))


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "two layers": lambda: nn.LSTM(8, 5, num_layers=2, batch_first=True),
    "both ways": lambda: nn.LSTM(8, 5, bidirectional=True),
    "gru": lambda: nn.GRU(8, 5, num_layers=2, bidirectional=True, bias=False),
    "relu": lambda: nn.RNN(8, 5, nonlinearity="relu"),
    "tanh": lambda: nn.RNN(8, 5, batch_first=True),
}


@clause("STA-SAME", "DYN-RECURRENT")
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_network_of_any_kind_is_captured(name):
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(7))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(8)
        model = nn.Sequential(RECURRENT[name]()).eval()
    prepared = qs.prepare(model)
    with torch.no_grad():
        assert parts.difference(model(x), prepared(x)) is None and prepared.capture.whole_agrees
        q = qs.convert(prepared)
        (output, *_), (expected, *_) = q(x), model(x)
    assert [type(step) for step in q.program.steps if not isinstance(step, (program.Quantize, program.Move))] == [
        program.Recurrent
    ]
    assert float((output - expected).abs().max()) < 0.05 * float(expected.abs().max())


@clause("FUS-CLAMP", "STA-OVERFLOW")
@pytest.mark.parametrize("written", [nn.ReLU6, nn.ReLU, lambda: nn.Hardtanh(0.0, 2.0)], ids=["relu6", "relu", "to 2"])
def test_a_layer_that_stays_in_float_keeps_the_ceiling_that_it_absorbed(written):
    """So many inputs that their sum may overflow an accumulator."""
    model = nn.Sequential(nn.Linear(70_000, 2), written()).eval()
    nn.init.constant_(model[0].weight, 1.0)
    model[0].bias = nn.Parameter(torch.tensor([0.5, -9.0]))
    x = torch.zeros(3, 70_000)
    x[0, :40], x[1, :3] = 1.0, 0.5
    with pytest.warns(UserWarning, match="^nothing was quantized"):
        q = qs.quantize(model, [x])
    assert not q.program.layers
    with torch.no_grad():
        assert np.array_equal(q(x).numpy(), model(x).numpy())


@clause("FUS-SUM", "STA-OVERFLOW")
def test_a_sum_that_stays_in_float_keeps_the_relu_that_it_absorbed():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(70_000, 2), nn.Linear(70_000, 2)
            for layer in (self.a, self.b):
                nn.init.constant_(layer.weight, 1.0)
                layer.bias = nn.Parameter(torch.tensor([0.5, -9.0]))

        def forward(self, x):
            return F.relu(self.a(x) + self.b(x))

    model, x = Sum().eval(), torch.zeros(2, 70_000)
    x[0, :40], x[1, :3] = 1.0, 0.5
    with pytest.warns(UserWarning, match="^nothing was quantized"):
        q = qs.quantize(model, [x])
    with torch.no_grad():
        assert np.array_equal(q(x).numpy(), model(x).numpy()) and float(model(x).min()) == 0.0
