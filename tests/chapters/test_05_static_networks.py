"""Chapter 5 on networks of every shape: convolutions, residuals, moves, attention, what cannot be traced, what the user
chooses."""

import copy
import functools
import io
import itertools
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters, torchvision_compat
from quantspec.capture import tracer
from quantspec.ir import float_graph, program, rearrange
from quantspec.ir.program import Call, Move, Ref
from quantspec.numerics import accuracy
from quantspec.numerics.affine import QParams

spec = chapters.load("static")


def kinds(q):
    return [type(step).__name__ for step in q.program.steps]


def named(q, kind):
    return [step for step in q.program.steps if isinstance(step, kind)]


def trace(q, *inputs):
    """What each step gives on the reference engine, by name."""
    seen = {}
    q.run_on("reference").compiled(
        dict(zip(q.program.inputs, inputs)), lambda step, value: seen.setdefault(step.name, value)
    )
    return seen


MOVES = {
    "flatten": lambda t: torch.flatten(t, 1),
    "permute": lambda t: t.permute(0, 2, 3, 1),
    "view": lambda t: t.view(t.size(0), 2, -1),
    "transpose": lambda t: torch.transpose(t, 1, 2),
    "slice": lambda t: t[:, 1:, ::2],
    "item": lambda t: t[:, 0],
    "chunk": lambda t: t.chunk(2, 1)[1],
    "split": lambda t: torch.split(t, [1, 3], dim=1)[1],
    "unsqueeze": lambda t: t.unsqueeze(1).squeeze(1),
    "roll": lambda t: torch.roll(t, 1, 2),
    "flip": lambda t: torch.flip(t, [3]),
    "repeat": lambda t: t.repeat(1, 2, 1, 1),
    "pad": lambda t: F.pad(t, [1, 0, 2, 1]),
    "reflect": lambda t: F.pad(t, [1, 1, 1, 1], mode="reflect"),
    "nearest": lambda t: F.interpolate(t, scale_factor=2, mode="nearest"),
    "shuffle": lambda t: F.pixel_shuffle(t, 2),
}


class Moving(nn.Module):
    """A convolution, something that moves its values, and a table behind it."""

    def __init__(self, move):
        super().__init__()
        self.conv, self.move = nn.Conv2d(2, 4, 1), move

    def forward(self, x):
        return self.move(self.conv(x)).abs()


@clause("STA-MOVE", "STA-SAME-GRID")
@pytest.mark.parametrize("name", MOVES)
def test_codes_are_moved_as_values_are(name):
    model, x = networks.seeded(lambda: Moving(MOVES[name])), networks.inputs(2, (2, 4, 4))
    q = qs.quantize(model, [x])
    moving = named(q, Move)
    assert moving and not any(step.reason for step in named(q, Call)), print(q)
    seen = trace(q, x)
    conv, table = q.program.layers[0], named(q, program.Table)[0]
    real = torch.from_numpy(conv.y_qparams.dequantize(seen[conv.name]))
    assert conv.y_qparams.dequantize(seen[table.x]).tolist() == MOVES[name](real).tolist()
    assert all(step.qparams is conv.y_qparams for step in moving) and table.x_qparams is conv.y_qparams


@clause("STA-MOVE")
def test_what_is_padded_on_has_the_code_of_zero_and_only_moves_are_moved():
    grid = QParams(1.0, 77, 0, 255)
    step = Move("y", "function", "torch.nn.functional.pad", (Ref("x"), [1, 2]), {}, grid)
    assert rearrange.apply(step, {"x": np.uint8([[5, 6]])}.__getitem__).tolist() == [[77, 5, 6, 77, 77]]
    for kind, target in (("function", "torch.relu"), ("method", "add_"), ("module", "flatten")):
        with pytest.raises(ValueError, match=f"^step 'y': {target} does not move codes$"):
            rearrange.apply(Move("y", kind, target, (Ref("x"),), {}, grid), {"x": np.uint8([[5]])}.__getitem__)


@clause("STA-SAME-GRID")
@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((1, 2)), lambda t: t.mean([2, 3])]
)
def test_pooling_keeps_the_grid(pool):
    model, x = networks.seeded(lambda: Moving(pool)), networks.inputs(2, (2, 4, 4))
    q = qs.quantize(model, [x])
    conv, table = q.program.layers[0], named(q, program.Table)[0]
    assert table.x_qparams is conv.y_qparams and not named(q, Call)


class Placed(nn.Module):
    """``join`` of two values: the input's convolution and, as ``other`` says, its own convolution, the input, or
    something in float."""

    def __init__(self, join, other):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.join, self.other = join, other

    def forward(self, x):
        other = {"codes": lambda: self.two(x), "input": lambda: x, "float": lambda: torch.softmax(x, 1)}[self.other]()
        return self.join(self.one(x), other)


@clause("STA-PLACE")
@pytest.mark.parametrize("other", ["codes", "input", "float"])
@pytest.mark.parametrize(
    ("join", "kind"), [(torch.add, "Add"), (torch.mul, "Mul"), (lambda a, b: torch.cat([a, b], 1), "Concat")]
)
def test_values_are_joined_in_codes_where_all_of_them_are(join, kind, other):
    model, x = networks.seeded(lambda: Placed(join, other)), networks.inputs(3, (3, 2, 2))
    q = qs.quantize(model, [x])
    assert (kind in kinds(q)) == (other != "float") and kinds(q).count("Quantize") == 1
    with torch.no_grad():
        expected = model(x)
    assert accuracy.sqnr(expected.numpy(), q(x).numpy()) > 30


class Dense(nn.Module):
    """A dense block: joins of what came before, all of them read by a convolution.

    ``move`` is what happens to a value on its way to a join.
    """

    def __init__(self, move, read_elsewhere):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 3, 1), nn.Conv2d(7, 2, 1), nn.Conv2d(9, 2, 1)
        self.other = nn.Conv2d(3, 1, 1)
        self.move, self.read_elsewhere = move, read_elsewhere

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        c = self.c(torch.cat([self.move(a), self.move(b)], 1))
        d = self.d(torch.cat([self.move(a), self.move(b), c], 1))
        return (
            (d, self.other(b)) if self.read_elsewhere == "layer" else (d, b) if self.read_elsewhere == "output" else d
        )


@clause("STA-JOIN")
@pytest.mark.parametrize("read_elsewhere", ["", "layer", "output"])
@pytest.mark.parametrize(
    "move", [lambda t: t, torch.relu, nn.AvgPool2d(1), lambda t: t.flip([3])], ids=["as-it-is", "relu", "pool", "flip"]
)
@pytest.mark.parametrize("observer", [qs.MinMaxObserver(), qs.PercentileObserver(99)])
def test_what_only_joins_read_has_their_grid(move, read_elsewhere, observer):
    model, x = networks.seeded(lambda: Dense(move, read_elsewhere)), networks.inputs(5, (2, 4, 4))
    prepared = qs.prepare(model, observer=observer, dialect="exact")
    prepared(x)
    ranges = {name: tuple(map(float, seen.range())) for name, seen in prepared.observers.items()}
    first, second = (node.name for node in prepared.graph.nodes if isinstance(node, float_graph.Concat))
    expected = spec.shared_ranges(
        ranges, {first: ["a", "b"], second: ["a", "b", "c"]}, {"b"} if read_elsewhere else set()
    )
    q = qs.convert(prepared)
    layers = {step.name: step.y_qparams for step in q.program.layers}
    grids = layers | {name: step.y_qparams for name, step in zip((first, second), named(q, program.Concat))}
    for name in ("a", "b", "c", first, second):
        grid = grids[name]
        scale, zero_point, qmin, qmax = spec.activation_qparams(*expected[name])
        assert (float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax) == (scale, zero_point, qmin, qmax), name
    assert (grids["b"] == grids[first]) != bool(read_elsewhere)


@clause("STA-PLACE")
@networks.mostly_attention
def test_the_stream_of_a_transformer_stays_in_float():
    model = networks.seeded(lambda: nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True))
    q = qs.quantize(model, [networks.inputs(4, (5, 8))])
    assert "Add" not in kinds(q) and [step.layer for step in q.program.layers] == [
        "self_attn", "self_attn.out_proj", "linear1", "linear2",
    ]
    # Each layer's input is quantized once, but what comes from the layer before in codes.
    assert kinds(q).count("Quantize") == 3


class Stream(nn.Module):
    """Sums of what layers gave, which normalizations in float read, or with ``layer`` one more layer too."""

    def __init__(self, layer: bool):
        super().__init__()
        self.layer = layer
        self.one, self.two, self.three, self.four = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        stream = self.one(x)
        stream = stream + self.two(F.layer_norm(stream, (8,)))
        stream = torch.cat([stream, self.three(F.layer_norm(stream, (8,))) * 0.5], 1)[:, 4:12] * stream
        end = torch.softmax(F.silu(stream), 1)
        return end + self.four(stream if self.layer else F.layer_norm(stream, (8,)))


@clause("STA-PLACE", "STA-DIRECT")
@pytest.mark.parametrize("layer", [False, True])
def test_what_only_float_reads_is_computed_in_float(layer):
    model, x = networks.seeded(lambda: Stream(layer)), networks.inputs(8, (8,))
    q = qs.quantize(model, [x])
    found = kinds(q)
    if layer:
        assert all(kind in found for kind in ("Add", "Concat", "Mul")) and found.count("Table") == 1  # not the SiLU
    else:
        assert not {"Add", "Concat", "Mul", "Table"} & set(found)
    assert [step.y_qparams is None for step in q.program.layers] == [not layer] * 3 + [True]
    with torch.no_grad():
        assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 30


@networks.mostly_attention
@clause("STA-PLACE")
def test_windows_of_attention_are_in_int8_and_the_stream_around_them_in_float():
    torchvision_compat.import_torchvision()
    from torchvision.models.swin_transformer import SwinTransformer

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=8).eval()
    x = networks.inputs(4, (3, 18, 16))
    q = qs.quantize(model, [x])
    modules = {path for path, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    assert {step.layer for step in q.program.layers} == modules and "Add" not in kinds(q)
    codes = {step.layer for step in q.program.layers if step.y_qparams is not None}
    assert codes == {f"features.{block}.mlp.0" for block in ("1.0", "1.1", "3.0", "3.1")} | {"head"}
    with torch.no_grad():
        assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 28.5


class Told(nn.Module):
    """What calls a function. Deep copies of it call the same one."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

    def __deepcopy__(self, memo):
        return Told(self.function)


@clause("STA-RUNTIME")
@given(st.integers(0, 2**16), st.sampled_from(["reference", "compiled"]))
def test_the_same_floats_lead_to_the_same_codes(seed, engine):
    def layers():
        return nn.Sequential(
            nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 7), nn.ReLU(), nn.LayerNorm(7), nn.Linear(7, 5)
        )

    model, x = networks.seeded(layers, seed), networks.inputs(9, (6,), seed + 1)
    q = qs.quantize(model, [x])
    gave = []

    def in_its_own_order(y):
        """A normalization whose sums are those of float64."""
        y = y.double()
        gave.append(
            ((y - y.mean(-1, keepdim=True)) * torch.rsqrt(y.var(-1, keepdim=True, correction=0) + 1e-5)).float()
        )
        return gave[-1]

    own = qs.QuantizedModule(replace(q.program, callables=dict.fromkeys(q.callables, Told(in_its_own_order))), engine)(
        x
    )
    told = iter(gave)
    seen = trace(
        qs.QuantizedModule(replace(q.program, callables=dict.fromkeys(q.callables, Told(lambda y: next(told))))), x
    )
    assert len(gave) == 2 and seen[q.program.output.name].tolist() == own.tolist()
    for floats, step in zip(gave, named(q, program.Quantize)[1:], strict=True):
        assert seen[step.name].tolist() == step.qparams.quantize(floats.numpy()).tolist()


@clause("STA-SIZES")
def test_sizes_are_read_from_codes():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 1), nn.Linear(16, 3)

        def forward(self, x):
            y = self.conv(x)
            return self.head(y.view(y.size(0), y.shape[1] * y.shape[2] * (y.dim() // 4), -1).flatten(1))

    model, x = networks.seeded(Model), networks.inputs(3, (2, 2, 2))
    q = qs.quantize(model, [x])
    assert kinds(q).count("Dequantize") == kinds(q).count("Quantize") == 1
    assert not any(step.reason for step in named(q, Call)) and q(x[:1]).shape == (1, 3)


class Deciding(nn.Module):
    """Control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x) if x.sum() > 0 else -self.inner(x)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.deciding, self.last = nn.Linear(4, 4), Deciding(), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.deciding(self.first(x)))


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")  # some of them are Python's
@clause("STA-LEAF")
def test_python_that_decides_by_data_runs_as_it_is_and_the_layers_inside_and_around_it_are_int8():
    model, x = networks.seeded(Around), networks.inputs()
    q = qs.quantize(model, [x.abs(), -x.abs()])
    assert [(path, step.layer) for path, network in q.networks() for step in network.program.layers] == [
        ("first", "first"), ("deciding.inner", "deciding.inner"), ("last", "last"),
    ]  # fmt: skip
    with torch.no_grad():
        for sign in (1, -1):
            assert (q(sign * x.abs()) - model(sign * x.abs())).abs().max() < 0.2
    assert "in Python:\n  Python reads values of a tensor (__bool__)" in str(q) and __file__ in str(q)
    assert str(q).endswith("\n    the model, deciding")


class Choosing(nn.Module):
    """Control flow that depends on data, and nothing that could be quantized."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


@clause("STA-LEAF")
def test_what_decides_by_data_and_has_no_layer_is_one_float_node():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 4), Choosing(), nn.Linear(4, 2)))
    x = networks.inputs()
    q = qs.quantize(model, [x.abs(), -x.abs()])
    assert [step.layer for step in q.program.layers] == ["0", "2"]
    (call,) = named(q, Call)
    assert (call.kind, call.target, call.reason) == ("module", "1", "Choosing has no integer form here")
    with torch.no_grad():
        for sign in (1, -1):
            assert (q(sign * x.abs()) - model(sign * x.abs())).abs().max() < 0.2
    assert "Choosing has no integer form here" in str(q)


class InPlace(nn.Module):
    """Operations that write to their argument, which is read again afterwards by its old name."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x.mul_(2.0)
        y = self.conv(x)
        self.relu(y)
        y += 1.0
        return self.head(y), x


@clause("STA-IN-PLACE", "STA-ARGUMENTS")
def test_operations_in_place_are_seen_by_later_readers_and_do_not_reach_the_input():
    model, x = networks.seeded(InPlace), networks.inputs(2, (2, 3, 3))
    before = x.clone()
    with torch.no_grad():
        expected = model(x.clone())
    with pytest.warns(UserWarning, match="nothing was quantized"):  # it has convolutions only
        dynamic = qs.quantize_dynamic(model)
    for network in (qs.prepare(model), qs.quantize(model, [x]), dynamic):
        got = network(x)
        assert torch.equal(x, before) and torch.equal(got[1], expected[1])
        assert (got[0] - expected[0]).abs().max() < 0.1 < expected[0].abs().max()


@torch.fx.wrap
def added(x, y):
    """Written to its first argument, which it gives back."""
    x += y
    return x


@torch.fx.wrap
def half_added(x, y):
    """Written to a part of its first argument; it gives nothing."""
    x[:, :4] += y[:, :4]


# A function to whoever calls it, and not to Python.
added_by_an_object = functools.lru_cache(maxsize=1)(added)
torch.fx.wrap("added_by_an_object")


@torch.library.custom_op("tests::added", mutates_args=("x",))
def added_by_an_operator(x: torch.Tensor, y: torch.Tensor) -> None:
    x += y


class Hidden(nn.Module):
    """Layers around a function that tracing does not look into, which it finds by its name in this module."""

    def __init__(self, name):
        super().__init__()
        self.first, self.last, self.name = nn.Linear(8, 8), nn.Linear(8, 4), name

    def function(self, x, y):
        return globals()[self.name](x, y)

    def forward(self, x):
        y = self.first(x)
        self.function(y, x)
        return self.last(y)


class HiddenTwice(Hidden):
    """What the function gives is read, and so is what it has written to."""

    def forward(self, x):
        y = self.first(x)
        z = self.function(y, x)
        return self.last(y) + self.last(y if z is None else z)


class HiddenInput(Hidden):
    """The function writes to the model's input."""

    def forward(self, x):
        self.function(x, torch.ones_like(x))
        return self.last(self.first(x))


@clause("STA-IN-PLACE", "STA-ARGUMENTS")
@pytest.mark.parametrize("name", ["added", "half_added", "added_by_an_object", "added_by_an_operator"])
@pytest.mark.parametrize("kind", [Hidden, HiddenTwice, HiddenInput])
def test_what_a_hidden_function_writes_to_is_seen_by_later_readers(kind, name):
    model, x = networks.seeded(lambda: kind(name)), networks.inputs(6, (8,))
    with torch.no_grad():
        expected = model(x.clone()).numpy()
    before = x.clone()
    static, by_example = qs.quantize(model, [x]), qs.quantize_dynamic(model, example=x)
    for network in (static, by_example):
        assert accuracy.sqnr(expected, network(x).numpy()) > 28 and torch.equal(x, before)
        assert network.report.share == 1
    # Without data the layers alone are quantized, and the function is the model's Python.
    assert accuracy.sqnr(expected, qs.quantize_dynamic(model)(x.clone()).numpy()) > 28


ATTENTION = {
    "self": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda x: (x, x, x)),
    "first": (lambda: nn.MultiheadAttention(8, 4), lambda x: (x, x, x)),
    "cross": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), lambda x: (x, x[:, :3] * 2, x[:, :3] * 2)),
    "three": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True),
        lambda x: (x, x[..., :4], x[..., :6]),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda x: (x,),
    ),
    "gelu": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True, batch_first=True),
        lambda x: (x,),
    ),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2),
        lambda x: (x, x * 0.5),
    ),
    "both": (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), lambda x: (x, x[:, :2])),
}


@clause("STA-ATTENTION")
@networks.mostly_attention
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch's remark about a switch that is off
@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_written_out(name):
    build, arguments = ATTENTION[name]
    model, x = networks.seeded(build), networks.inputs(3, (5, 8))
    with torch.no_grad():
        expected = model(*arguments(x))
        got = qs.prepare(model)(*arguments(x))
    pairs = zip(expected, got) if isinstance(expected, tuple) else [(expected, got)]
    for f, y in pairs:
        assert f.shape == y.shape and (f - y).abs().max() <= 2.0**-18 * max(1.0, float(f.abs().max()))
    q = qs.quantize(model, [arguments(x)])
    assert not [step for step in named(q, Call) if "Attention" in step.reason or "Transformer" in step.reason]
    assert len(q.program.layers) >= 2
    first = q(*arguments(x))
    y = first[0] if isinstance(first, tuple) else first
    f = expected[0] if isinstance(expected, tuple) else expected
    assert accuracy.sqnr(f.numpy(), y.detach().numpy()) > 20


@clause("STA-ATTENTION")
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_reach_written_out_attention(boolean, need_weights):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, mask, padding):
            return self.attention(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=need_weights)

    model, x = networks.seeded(Model), networks.inputs(3, (5, 8))
    mask = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    if not boolean:
        mask, padding = (torch.zeros(m.shape).masked_fill(m, float("-inf")) for m in (mask, padding))
    with torch.no_grad():
        prepared = qs.prepare(model)
        expected, got = model(x, mask, padding), prepared(x, mask, padding)
    assert prepared.capture.whole_agrees  # what does not agree would be left to Python
    assert (expected[0] - got[0]).abs().max() <= 2.0**-18 and (expected[1] is None) == (got[1] is None)
    if need_weights:
        assert (expected[1] - got[1]).abs().max() <= 2.0**-18


CONVS = [
    lambda: nn.Conv1d(4, 6, 3, padding="same", dilation=2),
    lambda: nn.Conv2d(4, 4, (3, 1), stride=2, padding=(1, 0), groups=4),
    lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    lambda: nn.Conv2d(4, 6, 2, padding="same"),
    lambda: nn.Conv3d(4, 2, 2, padding=1),
    lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    lambda: nn.ConvTranspose2d(4, 3, (2, 3), stride=(2, 1), dilation=(1, 2)),
]


@clause("STA-STEPS", "STA-FLOAT")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's remark about its own speed
@pytest.mark.parametrize("build", CONVS)
def test_convolutions_of_every_kind_are_quantized(build):
    model = networks.seeded(build)
    axes = int(type(model).__name__[-2])
    x = networks.inputs(3, (4, *[6] * axes))
    prepared = qs.prepare(model)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(prepared(x), expected)
    q = qs.convert(prepared)
    assert [type(layer) for layer in q.program.layers] == [program.Conv] and not named(q, Call)
    assert accuracy.sqnr(expected.numpy(), q(x).numpy()) > 30
    alone = x[0]
    assert torch.equal(q(alone), q(alone[None])[0])  # an image without a batch axis
    with pytest.raises(ValueError, match="expects 4 channels"):
        q(x[:, :3])


def pyramid():
    """A network with most of what convolutional networks have."""
    return networks.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Dropout(), nn.Linear(6, 4),
        )
    )  # fmt: skip


@clause("STA-BATCH-SIZE")
def test_any_batch_and_any_image_size():
    q = qs.quantize(pyramid(), [networks.inputs(4, (3, 16, 16))])
    x = networks.inputs(5, (3, 16, 16))
    together = q(x)
    assert together.shape == (5, 4) and all(torch.equal(together[i : i + 1], q(x[i : i + 1])) for i in range(5))
    assert q(networks.inputs(2, (3, 23, 31))).shape == (2, 4)


@clause("STA-EXCLUDE")
@pytest.mark.parametrize("exclude", ["0", ["0", "4"], "[04]", ("10",)])
def test_excluded_layers_stay_in_float_and_the_rest_does_not(exclude):
    q = qs.quantize(pyramid(), [networks.inputs(4, (3, 16, 16))], exclude=exclude)
    out = {"0", "4"} if exclude != "0" and exclude != ("10",) else {exclude if isinstance(exclude, str) else exclude[0]}
    assert {step.layer for step in q.program.layers} == {"0", "4", "6", "10"} - out
    assert {step.target for step in named(q, Call) if step.reason == "excluded"} >= out


class Sum(nn.Module):
    def forward(self, x, y):
        return x + y


class CalledTwice(nn.Module):
    """A module without a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.sum, self.last = nn.Linear(4, 4), Sum(), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.sum(self.layer(self.sum(self.layer(x), x)), x))


@clause("STA-EXCLUDE")
def test_a_module_is_excluded_at_each_of_its_calls():
    model, x = networks.seeded(CalledTwice), networks.inputs(8, (4,))
    q = qs.quantize(model, [x], exclude="sum")
    assert [(step.name, step.reason) for step in named(q, Call)] == [("sum.add", "excluded"), ("sum.add_1", "excluded")]
    assert len(named(qs.quantize(model, [x]), Call)) == 0


@clause("STA-EXCLUDE", "STA-EXCLUDE-NAME")
def test_a_module_is_excluded_with_everything_below_it():
    model, x = networks.seeded(Around), networks.inputs()
    for options in ({}, {"example": x}):
        dynamic = qs.quantize_dynamic(model, exclude="first", **options)
        assert [path for path, _ in dynamic.networks()] == ["deciding.inner", "last"]
    nested = nn.Sequential(networks.seeded(networks.Perceptron), nn.Linear(3, 2)).eval()
    q = qs.quantize(nested, [x], exclude=["0"])
    assert [step.layer for step in q.program.layers] == ["1"]
    with torch.no_grad():
        assert torch.equal(
            qs.quantize(nested, [x], exclude=["0.first"]).program.steps[0].args and nested[0].first(x),
            nested[0].first(x),
        )
    for wrong, near in (("0.frist", "0.first"), ("firs", "0.first")):
        with pytest.raises(ValueError, match=f"^exclude: the model has no module '{wrong}'; did you mean .*{near}"):
            qs.quantize(nested, [x], exclude=wrong)
    with pytest.raises(TypeError, match="^exclude: expected paths of modules, got 3$"):
        qs.quantize(nested, [x], exclude=[3])


@clause("STA-BITS", "STA-REDUCE")
@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_have_as_many_bits_as_asked_for(bits):
    model, x = networks.seeded(networks.Perceptron), networks.inputs(64)
    q = qs.quantize(model, [x], bits=bits, dialect="exact")
    for layer in q.program.layers:
        assert (layer.w_qparams.qmin, layer.w_qparams.qmax) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert (layer.y_qparams.qmin, layer.y_qparams.qmax) == (0, 2**bits - 1) and layer.weight.max() == 2 ** (
            bits - 1
        ) - 1
    seen = trace(q, x)
    assert max(seen["first"].max(), seen["second"].max()) == 2**bits - 1
    prepared = qs.prepare(model, weight_bits=bits)
    prepared(x)
    for of_weights_alone in (qs.convert(prepared), qs.quantize(model, [x], weight_bits=bits)):
        grids = [(layer.w_qparams.qmax, layer.y_qparams.qmax) for layer in of_weights_alone.program.layers]
        assert set(grids) == {(2 ** (bits - 1) - 1, 255)}
    if bits > 2:
        reduced = qs.quantize(model, [x], bits=bits, dialect="exact", reduce_range=True)
        assert reduced.program.layers[0].y_qparams.qmax == 2 ** (bits - 1) - 1
    for wrong in (1, 9):
        with pytest.raises(ValueError, match=f"^bits: expected 2 to 8, got {wrong}$"):
            qs.quantize(model, [x], bits=wrong)
    with pytest.raises(ValueError, match="^reduce_range: expected False for bits=2"):
        qs.quantize(model, [x], bits=2, reduce_range=True)
    with pytest.raises(TypeError, match="^per_channel: expected True or False, got 1$"):
        qs.quantize(model, [x], per_channel=1)
    with pytest.raises(TypeError, match="^fuse: expected True or False, got 1$"):
        qs.prepare(model, fuse=1)


@clause("STA-UNTOUCHED")
def test_a_network_that_was_prepared_is_that_of_then():
    model, x = networks.seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU())), networks.inputs(4, (8,))
    expected = qs.quantize(model, [x])(x)
    prepared = qs.prepare(model)
    with torch.no_grad():
        model[0].weight.zero_()
    prepared(x)
    assert torch.equal(qs.convert(prepared)(x), expected)


@clause("STA-UNTOUCHED")
@pytest.mark.parametrize("exclude", [(), ("0",)])
def test_a_network_shares_no_parameter_with_its_model(exclude):
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4), nn.BatchNorm1d(4)))
    x = networks.inputs(4, (8,))
    made = [
        qs.quantize(model, [x], fuse=False, exclude=exclude),
        qs.quantize_dynamic(model, exclude=exclude),
        qs.quantize_dynamic(model, example=x, exclude=exclude),
    ]
    expected = [q(x) for q in made]
    with torch.no_grad():
        for tensor in (*model.parameters(), model[3].running_mean):
            tensor.add_(1)
    assert all(torch.equal(q(x), y) for q, y in zip(made, expected, strict=True))


@clause("STA-NOTHING")
def test_a_network_with_nothing_to_quantize_warns_and_computes_in_float():
    model, x = networks.seeded(lambda: nn.Sequential(nn.Softmax(1))), networks.inputs()
    for quantize in (lambda: qs.quantize(model, [x]), lambda: qs.quantize_dynamic(model)):
        with pytest.warns(UserWarning, match="^nothing was quantized: it has no layer with an integer form"):
            q = quantize()
        assert torch.equal(q(x), model(x))
    python = networks.seeded(networks.OfPython)
    for quantize in (
        lambda: qs.quantize(python, [x]), lambda: qs.quantize_dynamic(python),
        lambda: qs.quantize_dynamic(python, example=x),
    ):  # fmt: skip
        with pytest.warns(UserWarning, match="^nothing was quantized: no part with a layer could be captured"):
            q = quantize()
        assert torch.equal(q(x), python(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qs.quantize(networks.seeded(networks.Perceptron), [x])


IN_ANOTHER_PROCESS = (
    "import sys, pickle, torch; q, x = pickle.load(sys.stdin.buffer); "
    "sys.stdout.buffer.write(pickle.dumps(q(x).numpy().tobytes()))"
)


@clause("STA-COPY")
def test_copies_compute_the_same():
    x = networks.inputs(3, (3, 16, 16))
    q = qs.quantize(pyramid(), [x])
    expected = q(x).numpy().tobytes()
    assert copy.deepcopy(q)(x).numpy().tobytes() == expected
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS], input=pickle.dumps((q, x)), capture_output=True, check=True,
        timeout=200,
    )
    assert pickle.loads(done.stdout) == expected
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)(x).numpy().tobytes() == expected


@clause("STA-COPY")
def test_a_state_dict_carries_the_layers():
    x = networks.inputs(3, (3, 16, 16))
    q = qs.quantize(pyramid(), [x])
    other = qs.quantize(pyramid(), [x * 3])
    kept = other(x).numpy().tobytes()
    assert kept != q(x).numpy().tobytes()
    twin = copy.deepcopy(other)
    grids = [s.qparams for s in named(q, program.Quantize)], [s.qparams for s in named(twin, program.Quantize)]
    twin.load_state_dict(q.state_dict())
    assert [layer.weight.tolist() for layer in twin.program.layers] == [
        layer.weight.tolist() for layer in q.program.layers
    ]
    assert twin(x).numpy().tobytes() == q(x).numpy().tobytes() and grids[0][0].scale != grids[1][0].scale
    assert other(x).numpy().tobytes() == kept
    state = q.state_dict()
    state["_extra_state"] = {key: value for key, value in state["_extra_state"].items() if not key.endswith("0.weight")}
    state["_extra_state"].popitem()
    with pytest.raises(ValueError, match="^state_dict: expected the arrays of this network"):
        twin.load_state_dict(state)


@clause("STA-BATCH-SIZE", "STA-FROZEN")
@given(draws.seeds(), st.sampled_from([(1, 3, 16, 16), (3, 3, 9, 20), (2, 3, 5, 5)]))
def test_a_quantized_network_gives_the_same_answer_whatever_came_before(g, shape):
    q = CACHED.setdefault("q", None) or CACHED.setdefault(
        "r", qs.quantize(pyramid(), [networks.inputs(4, (3, 16, 16))])
    )
    x = torch.from_numpy(g.normal(size=shape).astype(np.float32))
    first = q(x)
    q(networks.inputs(2, (3, 7, 7)))
    assert torch.equal(q(x), first)


CACHED: dict = {}


@clause("STA-STEPS")
def test_every_elementwise_function_is_recognised_as_module_and_as_function():
    modules = [
        nn.ReLU6(), nn.Hardtanh(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(),
        nn.SiLU(), nn.GELU(), nn.ELU(),
    ]
    functions = [
        F.relu6, F.leaky_relu, F.hardswish, F.hardsigmoid, torch.sigmoid, torch.tanh, F.silu, F.gelu, F.elu,
        F.softplus, lambda t: t * 0.5 + 1,
    ]
    for made in itertools.chain(modules, functions):
        model = networks.seeded(lambda made=made: Moving(made))
        q = qs.quantize(model, [networks.inputs(2, (2, 4, 4))])
        assert not named(q, Call), (made, str(q))
        assert isinstance(tracer.capture(model), float_graph.FloatGraph)


def in_definition(step, x_q):
    """STA-DIRECT's outputs for rows of codes."""
    qparams = [(float(scale), 0) for scale in np.broadcast_to(step.w_qparams.scale, len(step.weight))]
    bias = np.zeros(len(step.weight)) if step.bias is None else step.bias
    x = float(step.x_qparams.scale), int(step.x_qparams.zero_point)
    return spec.linear_real(
        x_q.reshape(-1, x_q.shape[-1]).tolist(), x, step.weight.reshape(len(step.weight), -1).tolist(), qparams,
        bias.tolist(), step.relu,
    )


@clause("STA-DIRECT")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, nn.ReLU()])
@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize(
    "read", [lambda y: torch.softmax(y, -1), lambda y: torch.softmax(y.transpose(-1, -2), -1) * y.size(-1)]
)
def test_what_only_float_reads_is_not_rounded_to_codes(bias, act, fuse, read):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = nn.Linear(4, 3, bias=bias), act

        def forward(self, x):
            y = self.layer(x)
            return read(y if self.act is None else self.act(y))

    model, x = networks.seeded(Model), networks.inputs(3, (2, 4))
    prepared = qs.prepare(model, dialect="exact", fuse=fuse)
    assert list(prepared.observers) == ["x"]
    prepared(x)
    q = qs.convert(prepared)
    (step,) = q.program.layers
    assert type(step) is program.Linear and step.y_qparams is None and "Dequantize" not in kinds(q)
    assert step.relu is (fuse and act is not None)
    seen = trace(q, x)
    y = seen[step.name]
    assert y.reshape(-1, 3).tolist() == in_definition(step, seen[step.x])
    assert (y == 0).any() == step.relu
    assert torch.equal(q(x), read(y if act is None else y.relu()))


@clause("STA-DIRECT")
@pytest.mark.parametrize("acts", [(), (nn.ReLU(),)])
def test_a_convolution_that_only_float_reads_gives_floats_too(acts):
    model = networks.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), *acts, nn.Softmax(-1)))
    x = networks.inputs(2, (3, 4, 5))
    q = qs.quantize(model, [x], dialect="exact")
    (step,) = q.program.layers
    seen = trace(q, x)
    rows = np.moveaxis(seen[step.x], 1, -1)
    got = seen[step.name].permute(0, 2, 3, 1).reshape(-1, 4)
    assert type(step) is program.Conv and step.y_qparams is None and got.tolist() == in_definition(step, rows)
    assert torch.equal(q(x[0])[None], q(x[:1]))


@clause("STA-DIRECT")
@pytest.mark.parametrize(
    "read",
    [
        lambda y, conv: (torch.softmax(y, 1), y),  # an output of the network
        lambda y, conv: (torch.softmax(y, 1), torch.relu(y)),  # its ReLU is one
        lambda y, conv: torch.softmax(F.relu6(y), 1),  # an upper end
        lambda y, conv: torch.softmax(F.max_pool2d(torch.relu(y), 2), 1),  # codes are pooled
        lambda y, conv: torch.softmax(y, 1) + conv(y),  # a layer reads it too
        lambda y, conv: torch.softmax(y, 1) + conv(torch.relu(y)),  # a layer reads its ReLU
        lambda y, conv: torch.softmax(y, 1) + conv(torch.sigmoid(y)),  # a table reads it
    ],
)
def test_what_codes_are_needed_of_has_codes(read):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return read(self.conv(x), self.other)

    q = qs.quantize(networks.seeded(Model), [networks.inputs(2, (3, 2, 2))])
    step = q.program.layers[0]
    assert type(step) is program.Conv and step.layer == "conv" and step.y_qparams is not None

