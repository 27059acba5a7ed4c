"""Exported operations in float, resizing and recurrent layers: what ONNX Runtime gives is what torch does."""

import re

import numpy as np
import pytest
import torch
from onnx_runtime import compared, run
from torch import nn
from torch.nn import functional as F

import quantspec
from networks import inputs, mostly_attention, seeded
from quantspec.ir.program import Recurrent
from quantspec.numerics import accuracy
from quantspec.onnx_export import check

CALIBRATION = inputs(6, (3, 8, 8))
# Sums of up to 120 products in float32 by two libraries, each in an order of its own: each misses the exact sum by at
# most 120 * 2^-24 of the largest partial sum, both together by 1.5e-5 of it. That is relative where the partial sums
# are no larger than the output, and absolute where they cancel.
SUMS = {"rtol": 2e-5, "atol": 2e-6}


class Behind(nn.Module):
    """A convolution, and an operation in float behind it whose result is the network's."""

    def __init__(self, operation):
        super().__init__()
        self.first, self.operation = nn.Conv2d(3, 4, 3, padding=1), operation

    def forward(self, x):
        return self.operation(torch.softmax(self.first(x), 1))


def learned(module: nn.Module) -> nn.Module:
    """A module whose parameters and statistics are not those it begins with."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module


def attended(x, **options):
    """Attention of places to places, whose features are channels."""
    places = x.flatten(2).transpose(1, 2)
    return F.scaled_dot_product_attention(places, 2 * places, places, **options)


def asserted(x):
    torch._assert(x.shape[2] >= 3, "expected three rows")
    return x * 2


OPERATIONS = {
    "bilinear to a size": lambda: lambda x: F.interpolate(x, size=(13, 7), mode="bilinear"),
    "bilinear to fewer": lambda: lambda x: F.interpolate(x, size=(3, 5), mode="bilinear"),
    "bilinear, corners": lambda: lambda x: F.interpolate(x, size=(13, 7), mode="bilinear", align_corners=True),
    "bilinear by a factor": lambda: lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bilinear by a factor, worked out anew": lambda: lambda x: F.interpolate(
        x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
    ),
    "bilinear to another's size": lambda: lambda x: F.interpolate(
        x, size=(x.shape[2] * 2, x.shape[3] + 3), mode="bilinear"
    ),
    "bicubic": lambda: lambda x: F.interpolate(x, size=(13, 7), mode="bicubic"),
    "a module that resizes": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "prelu": nn.PReLU,
    "prelu for each channel": lambda: learned(nn.PReLU(4)),
    "largest": lambda: nn.MaxPool2d(3, 2, 1),
    "largest, one more window": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "largest, by the function": lambda: lambda x: F.max_pool2d(x, (2, 3), 2, dilation=2),
    "largest of all": lambda: nn.AdaptiveMaxPool2d(1),
    "average": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, by the function": lambda: lambda x: F.avg_pool2d(x, (2, 3), 2),
    "batch normalization": lambda: learned(nn.BatchNorm2d(4)),
    "instance normalization": lambda: learned(nn.InstanceNorm2d(4, affine=True)),
    "group normalization": lambda: learned(nn.GroupNorm(2, 4)),
    "group normalization, by the function": lambda: lambda x: F.group_norm(x, 2, torch.arange(1.0, 5), torch.ones(4)),
    "group normalization without factors": lambda: nn.GroupNorm(2, 4, affine=False),
    "group normalization with factors alone": lambda: lambda x: F.group_norm(x, 2, torch.ones(4) / 4),
    "local response": lambda: nn.LocalResponseNorm(3, 0.1),
    "gated": lambda: nn.GLU(1),
    "normalized": lambda: lambda x: F.normalize(x, dim=1) * torch.rsqrt(x + 1) + torch.sin(x) * torch.cos(x),
    "chosen": lambda: lambda x: torch.where(x > 0.25, x, x * 0.1),
    "summed over indices": lambda: lambda x: torch.einsum("bchw, bdhw -> bcdw", x, x + 1),
    "squeezed": lambda: lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(2).unsqueeze(1).squeeze(1),
    "others": lambda: nn.Sequential(nn.ELU(0.5), nn.Mish(), nn.Softsign(), nn.Softmax2d()),
    "gated by itself": lambda: nn.Sequential(nn.SiLU(), nn.LogSoftmax(1)),
    "gated by itself, by the function": lambda: lambda x: F.log_softmax(F.silu(x - 0.5), 2),
    "cut off": lambda: nn.Sequential(nn.Hardtanh(0.2, 0.3), nn.ReLU6()),
    "cut off, by functions": lambda: lambda x: x.clamp(0.2, 0.3) + x.clamp(min=0.3) + torch.clamp(
        x, max=0.1
    ) + F.hardtanh(x * 9 - 4) + F.relu6(x * 20),
    "stacked": lambda: lambda x: torch.stack([x, x + 1], 2) * torch.stack((x * 2, x)).movedim(0, 2),
    "a weight that is no parameter": lambda: lambda x: F.linear(
        x.movedim(1, -1), inputs(5, seed=3), inputs(1, (5,), 4)[0]
    ) + F.linear(x.movedim(1, -1), inputs(5, seed=6)),
    "a vector": lambda: lambda x: torch.matmul(x[..., :8], inputs(1, (8,), 7)[0]).sum(1),
    "a vector times each": lambda: lambda x: torch.matmul(inputs(1, (8,), 7)[0], x[..., :8, :]).sum(1),
    "a matrix of one row": lambda: lambda x: x.mean((0, 2, 3)).t() * x.sum(),
    "a transposed weight": lambda: lambda x: x.movedim(1, -1) @ inputs(5, seed=3).t(),
    "attention": lambda: lambda x: attended(x),
    "attention with a mask and a scale": lambda: lambda x: attended(
        x[:, :, :2, :2], attn_mask=inputs(4, seed=2), scale=0.3
    ),
    "chosen by comparisons": lambda: lambda x: torch.where(x >= 0.3, x, torch.where(x <= 0.2, x * 2, x * 3)) * (
        x != 0.0
    ).float() + (x == x).float() + (x < 0.3).float(),
    "expanded": lambda: lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 2) + x.mean(
        (2, 3), keepdim=True
    ).expand((2, -1, -1, 3, 2)),
    "expanded to another's size": lambda: lambda x: x.mean((2, 3), keepdim=True).expand(x.shape) - x,
    "repeated": lambda: lambda x: x.repeat(1, 2, 1, 3).sum(1) + x.repeat((2, 1, 1, 1, 3)).sum((0, 2)),
    "taken apart and put together": lambda: lambda x: x.unflatten(1, (2, 2)).flatten(1, 2).flatten(1, 1).view_as(x)
    + x.flatten(2).reshape((x.shape[0], 4, x.shape[2], -1)),
    "parts": lambda: lambda x: x[:, None, 1] + x.narrow(1, 1, 2).sum(1, keepdim=True) * x.unbind(1)[-1][:, None]
    + x.split(4, 1)[0].select(1, -2)[..., None, :, :] - x.chunk(2, 1)[1][:, :1],
    "shifted": lambda: lambda x: torch.roll(x, (1, -2), (2, 3)) - torch.roll(x, 0, 1) * x.flip(1) + x.flip((2, 3)),
    "padded": lambda: lambda x: F.pad(F.pad(x, (0, 0)), (1, 2, 0, 1), value=0.5) + F.pad(F.pad(
        x, (2, 1, 1, 0), mode="reflect"
    ), (-1, 1, 1, -1), mode="replicate"),
    "padded to a length, or cut": lambda: lambda x: F.pad(
        x, ((5 - x.shape[3]) // 2, 5 - x.shape[3] - (5 - x.shape[3]) // 2, (14 - x.shape[2]) // 2, (x.shape[2] - 1) % 3)
    ),
    "as many axes as there are": lambda: lambda x: x.flatten(x.dim() - 2) * 2,
    "a condition about a length": lambda: asserted,
    "one part of many": lambda: lambda x: x[:, 1:3].split([1, 1], 1)[1] + x.squeeze(1),
    "shuffled": lambda: lambda x: F.pixel_shuffle(x, 2)[..., ::2, ::2] + F.channel_shuffle(x, 2)[:, :1],
    "unshuffled": lambda: lambda x: nn.PixelUnshuffle(2)(x[..., :8, :8]),
}  # fmt: skip


@mostly_attention  # products of computed values, as attention has
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_in_float_is_torchs(name):
    q = quantspec.quantize(seeded(lambda: Behind(OPERATIONS[name]())), [CALIBRATION])
    exported = quantspec.export_onnx(q)
    for x in (inputs(1, (3, 8, 8), 2), inputs(5, (3, 8, 8), 3), inputs(2, (3, 9, 12), 4)):
        expected = q.run_on("reference")(x).numpy()
        np.testing.assert_allclose(run(exported, x=x)["output"], expected, **SUMS)


REFUSED = {
    "interpolate in mode 'area'": lambda x: F.interpolate(x, size=4, mode="area"),
    "interpolate in mode 'bilinear' with antialias": lambda x: F.interpolate(
        x, size=4, mode="bilinear", antialias=True
    ),
    "average pooling in float with ceil_mode": lambda x: F.avg_pool2d(x, 3, ceil_mode=True),
    "max pooling that returns indices": nn.MaxPool2d(2, return_indices=True),
    "squeeze of axis 0, whose length is unknown": lambda x: x.squeeze(),
    "local response normalization over an even number": lambda x: F.local_response_norm(x, 2),
    "adaptive average pooling in float to (2, 3)": nn.AdaptiveAvgPool2d((2, 3)),
    "adaptive maximum pooling in float to 2": lambda x: F.adaptive_max_pool2d(x, 2),
    "instance normalization with running statistics": nn.InstanceNorm2d(4, track_running_stats=True),
    "BatchNorm2d, which has no ONNX form": nn.BatchNorm2d(4, track_running_stats=False),
    "Softmin, which has no ONNX form": nn.Softmin(1),
    "attention whose heads share keys": lambda x: F.scaled_dot_product_attention(
        x, x[:, :2], x[:, :2], enable_gqa=True
    ),
    "a norm of order 3": lambda x: F.normalize(x, p=3.0),
    "einsum of '...c,...c->...'": lambda x: torch.einsum("...c,...c->...", x, x),
    "attention with a causal mask of its own, or dropout": lambda x: attended(x, is_causal=True),
    "attention to features whose number is unknown": lambda x: attended(x.transpose(1, 2)),
    "a mask that is computed, or of truth values": lambda x: attended(
        x, attn_mask=x[:, 0, :1, :1] > 0.2
    ),
    "a linear layer whose weight is computed": lambda x: F.linear(x[:, :, :8, :8], x[0, 0, :8, :8]),
    "indexing by a tensor": lambda x: x[:, torch.tensor([2, 0])],
    "to of the type of a value": lambda x: (x * 2).to(x.dtype),
    "torch.arange of the type of a value": lambda x: x * torch.arange(8, dtype=x.dtype),
    "roll without dims": lambda x: torch.roll(x, 3),
    "unbind of an axis whose length is unknown": lambda x: x.unbind(2)[0],
    "a split of an axis whose length is unknown": lambda x: x.split(3, 2)[0],
    "torch.cumsum, which has no ONNX form": lambda x: torch.cumsum(x, 1),
    "operator.mul of a length": lambda x: x * x.shape[2],
    "torch.add with these arguments": lambda x: torch.add(x, x, alpha=2),
    "arithmetic of a length and a float": lambda x: x * (x.shape[2] * 0.5),
    "arithmetic of a length and a Tensor": lambda x: x * (x.shape[2] * torch.ones(1)),
}


@mostly_attention
@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_operator_says_so(message):
    q = quantspec.quantize(seeded(lambda: Behind(REFUSED[message])), [CALIBRATION])
    with pytest.raises(quantspec.UnsupportedError, match=re.escape(f"cannot be exported to ONNX: {message}")):
        quantspec.export_onnx(q)


class Two(nn.Module):
    """A layer, and a module that is called with what it gives and with its input."""

    def __init__(self, module):
        super().__init__()
        self.layer, self.module = nn.Linear(8, 8), module

    def forward(self, x, **options):
        y = self.layer(x)
        return self.module(y, x, **options) if isinstance(self.module, nn.Bilinear) else self.module(y, y, y, **options)


MASKED = {"x": inputs(2, (5, 8)), "key_padding_mask": torch.arange(10).reshape(2, 5) == 4}
NO_FORM = {
    "a convolution without a batch axis": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), inputs(3, (8, 8))),
    "pooling without a batch axis": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.MaxPool2d(2), nn.Linear(4, 3)), inputs(4, (6, 8)),
    ),
    "pooling without a batch axis ": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1), nn.MaxPool2d(2), nn.Linear(4, 3)), inputs(4, (6, 8)),
    ),
    "attention without a batch axis": (lambda: Two(nn.MultiheadAttention(8, 2)), inputs(5, (8,))),
    "attention with a mask for each sequence": (lambda: Two(nn.MultiheadAttention(8, 2, batch_first=True)), MASKED),
    "a module with more than one input": (lambda: Two(nn.Bilinear(8, 8, 3)), inputs(5, (8,))),
}


@mostly_attention
@pytest.mark.parametrize("message", NO_FORM)
def test_a_layer_without_a_form_says_so(message):
    build, example = NO_FORM[message]
    q = quantspec.quantize(seeded(build), [example])
    with pytest.raises(quantspec.UnsupportedError, match=f"step .* cannot be exported to ONNX: {message.strip()}"):
        quantspec.export_onnx(q, example=example)


@pytest.mark.filterwarnings("ignore:Implicit dimension choice for")
@pytest.mark.parametrize("choose", [nn.Softmax, nn.LogSoftmax, lambda: F.softmax, lambda: F.log_softmax])
def test_a_softmax_that_chooses_its_axis_has_no_form(choose):
    q = quantspec.quantize(seeded(lambda: Behind(choose())), [CALIBRATION])
    with pytest.raises(quantspec.UnsupportedError, match=": a softmax that chooses its axis itself$"):
        quantspec.export_onnx(q)


def test_a_layer_that_stays_in_float_is_one_of_onnx_unless_it_is_transposed():
    x = inputs(2, (3, 6, 5))
    for last in (lambda: nn.Conv2d(4, 2, 3, stride=2, padding=(1, 0)), lambda: nn.ConvTranspose2d(4, 2, 3, stride=2)):
        model = seeded(lambda last=last: nn.Sequential(nn.Conv2d(3, 4, 1), last()))
        q = quantspec.quantize(model, [x], exclude="1")
        if isinstance(model[1], nn.ConvTranspose2d):
            with pytest.raises(quantspec.UnsupportedError, match="'1' cannot be .* a transposed convolution in float"):
                quantspec.export_onnx(q)
        else:
            expected = q.run_on("reference")(x).numpy()
            np.testing.assert_allclose(run(quantspec.export_onnx(q), input=x)["output"], expected, **SUMS)
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(120, 3)))
    q = quantspec.quantize(model, [x], exclude="2")
    expected = q.run_on("reference")(x).numpy()
    np.testing.assert_allclose(run(quantspec.export_onnx(q), input=x)["output"], expected, **SUMS)


NEAREST = {"size": (1, 3, 7, 13, 24), "scale_factor": (0.34, 0.7, 1.5, 2.3, 3)}


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("by", NEAREST)
def test_neighbours_are_those_of_torch_for_any_length(by, mode):
    """One model for each size or factor, and inputs of every length."""
    for value in NEAREST[by]:
        def build(value=value):
            resize = nn.Upsample(**{by: value}, mode=mode)
            return nn.Sequential(nn.Conv1d(1, 1, 1), resize, nn.Conv1d(1, 1, 1))

        q = quantspec.quantize(seeded(build), [inputs(6, (1, 16))])
        exported = quantspec.export_onnx(q)
        name = exported.graph.input[0].name
        for length in range(3, 60):
            x = inputs(1, (1, length), length)
            assert np.array_equal(run(exported, **{name: x})["output"], q.run_on("reference")(x).numpy()), length


def test_codes_keep_their_grid_when_they_are_resized():
    for resize in (nn.Upsample((13, 5)), nn.Upsample(scale_factor=1.5), nn.Upsample((3, 4))):
        model = seeded(lambda resize=resize: nn.Sequential(nn.Conv2d(3, 4, 1), resize, nn.Conv2d(4, 2, 1)))
        q = quantspec.quantize(model, [CALIBRATION])
        for x in (inputs(1, (3, 8, 8), 2), inputs(5, (3, 9, 12), 3)):
            assert compared(q, x) > 0


class Given(nn.Module):
    """A recurrent layer with its first state given, behind and before linear layers."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 3)

    def forward(self, x, h=None, c=None):
        state = None if h is None else h if c is None else (h, c)
        output, last = self.layer(x, state)
        return self.head(output), last


RECURRENT = {
    "lstm": lambda: nn.LSTM(4, 6), "lstm without bias": lambda: nn.LSTM(4, 6, bias=False),
    "lstm, all": lambda: nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True),
    "gru": lambda: nn.GRU(4, 6), "gru, all": lambda: nn.GRU(4, 6, 2, bidirectional=True, batch_first=True),
    "rnn": lambda: nn.RNN(4, 6, bidirectional=True), "rnn with relu": lambda: nn.RNN(4, 6, nonlinearity="relu"),
}  # fmt: skip


def of_codes(layer: nn.RNNBase, step: Recurrent) -> nn.RNNBase:
    """The layer with its weights as the network has them."""
    names = [f"l{k}{end}" for k in range(layer.num_layers) for end in ("", "_reverse")[: 1 + layer.bidirectional]]
    for name, cell in zip(names, step.cells, strict=True):
        for which, codes, grid in (
            ("ih", cell.input_weight, cell.input_qparams), ("hh", cell.state_weight, cell.state_qparams),
        ):
            getattr(layer, f"weight_{which}_{name}").data.copy_(torch.from_numpy(grid.dequantize(codes)))
    return layer


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_is_onnxs_own_with_the_weights_of_the_network(name, per_channel):
    model = seeded(lambda: Given(RECURRENT[name]()))
    batch_first, cells = model.layer.batch_first, model.layer.num_layers * (2 if model.layer.bidirectional else 1)
    x = inputs(3, (7, 4)) if batch_first else inputs(7, (3, 4))
    states = {"h": inputs(cells, (3, 6), 2)} | ({"c": inputs(cells, (3, 6), 3)} if "lstm" in name else {})
    for given in ({}, states):
        q = quantspec.quantize_dynamic(model, per_channel=per_channel, example={"x": x} | given)
        (step,) = (step for step in q.program.steps if isinstance(step, Recurrent))
        exported = quantspec.export_onnx(q, example={"x": x} | given)
        for batch in (x, x[:2] if not batch_first else x[:, :2]):
            layer, start = of_codes(seeded(RECURRENT[name]), step), tuple(given.values())
            with torch.no_grad():
                _, last = layer(batch, None if not given else start if "lstm" in name else start[0])
            results = list(run(exported, x=batch, **given).values())
            lasts = last if "lstm" in name else (last,)
            for expected, got in zip(lasts, results[1:], strict=True):
                np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)
            with torch.no_grad():
                ours = q.run_on("reference")(x=batch, **given)
            assert accuracy.sqnr(ours[0].numpy(), results[0]) > 25
    compared, differing = check.compare_codes(q, {"x": x} | given, same_floats=True)
    assert compared > 0 and differing == 0


def test_without_a_step_before_it_a_gate_differs_by_the_bound():
    """Half a step of the input times the sum of absolute weights, for the first step of a recurrent layer."""
    model, x = seeded(lambda: nn.RNN(4, 6, nonlinearity="relu", bias=False)), inputs(1, (50, 4))
    q = quantspec.quantize_dynamic(model, example=x)
    (step,) = (step for step in q.program.steps if isinstance(step, Recurrent))
    theirs = list(run(quantspec.export_onnx(q, example=x), **{q.program.inputs[0]: x}).values())[0]
    cell = step.cells[0]
    scale = (max(float(x.max()), 0.0) - min(float(x.min()), 0.0)) / 255
    sums = np.abs(cell.input_qparams.dequantize(cell.input_weight)).sum(1)
    difference = np.abs(q.run_on("reference")(x)[0].numpy() - theirs)
    assert (difference <= scale / 2 * sums * (1 + 2**-10) + 1e-6).all() and difference.max() > scale * sums.min() / 100


def test_a_single_step_has_no_operator():
    for build, x in ((lambda: nn.LSTMCell(4, 5), inputs(3)), (lambda: nn.GRU(4, 5), inputs(7, (4,)))):
        q = quantspec.quantize_dynamic(seeded(build), example=x)
        with pytest.raises(quantspec.UnsupportedError, match="to ONNX: (LSTM for a single|GRU without)"):
            quantspec.export_onnx(q, example=x)


def test_a_layer_may_read_a_constant_of_the_model():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.bias = nn.Linear(4, 4), nn.Linear(2, 4)
            self.register_buffer("table", inputs(1, (2,), 5))

        def forward(self, x):
            return self.layer(x) + self.bias(self.table)

    for activations in ("per_tensor", None):
        q = quantspec.quantize_dynamic(seeded(Table), activations=activations, example=inputs(3))
        got = run(quantspec.export_onnx(q), x=inputs(5))["output"]
        np.testing.assert_allclose(got, q(inputs(5)).numpy(), rtol=1e-5, atol=1e-6)
