"""Chapter 6: dynamic quantization. The oracle is the chapter's own definitions."""

import copy
import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import rnn
from torch.utils._pytree import tree_map

import networks
import quantspec as qs
import strategies as draws
from evidence import clause
from networks import tensors
from quantspec import chapters
from quantspec.engines import reference_dynamic, registry
from quantspec.ir import program
from quantspec.ir.program import Call
from quantspec.module import size
from quantspec.numerics import accuracy, integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.float_output import output_exact
from quantspec.numerics.dialects.named import dialect

spec = chapters.load("dynamic")
EXACT = dialect("exact")


@st.composite
def layers(draw, smallest=0):
    """(x, w_q, w, bias): real inputs [rows, inputs], at least ``smallest`` of each, and a quantized layer."""
    rows, inputs, outputs = draw(st.integers(smallest, 3)), draw(st.integers(smallest, 6)), draw(st.integers(1, 3))
    generator = draw(draws.seeds())
    x = np.array([draw(draws.values(0.1, finite=True)) for _ in range(rows * inputs)], np.float32).reshape(rows, inputs)
    x = np.clip(x, *draw(st.sampled_from([(-50, 50), (-(2.0**99), 2.0**99)])), dtype=np.float32)
    w_q = generator.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    scale = draw(draws.channel_scales(outputs, 2.0**-20, 2.0**10))
    bias = (generator.normal(size=outputs) * draw(st.sampled_from([0, 1, 100]))).astype(np.float32)
    return x, w_q, QParams(scale, 0, -128, 127, axis=0), bias


def defined(x, w_q, w, bias, bits=8):
    pairs = [(float(s), 0) for s in w.scale]
    return spec.linear_dynamic(x.tolist(), w_q.tolist(), pairs, bias.tolist(), bits)


@clause("DYN-RANGE", "DYN-OUTPUT", "DYN-ZERO-INPUTS")
@given(layers(), st.booleans())
def test_a_dynamic_layer_equals_the_definition(layer, reduce_range):
    got = EXACT.linear_dynamic(*layer, reduce_range=reduce_range)
    assert got.dtype == np.float32 and got.shape == (len(layer[0]), len(layer[1]))
    assert got.tolist() == defined(*layer, bits=7 if reduce_range else 8)


@clause("DYN-OUTPUT")
@given(
    st.integers(-(2**31), 2**31 - 1), draws.scales(2.0**-20, 2.0**20), draws.scales(2.0**-20, 2.0**20),
    st.floats(-(2.0**40), 2.0**40, width=32), st.booleans(),
)
def test_the_output_is_rounded_once(accumulator, s_x, s_w, bias, cancel):
    if cancel:
        bias = float(np.float32(-accumulator * float(s_x) * float(s_w)))
    bias = np.float32(np.clip(bias, -3e38, 3e38))
    exact = chapters.load("dialects").output_exact(accumulator, float(bias), float(s_x), float(s_w))
    assert output_exact(np.array([[accumulator]]), np.array([bias]), s_x, np.array([s_w])).tolist() == [[exact]]


@clause("DYN-OUTPUT")
def test_what_is_left_of_a_sum_that_cancels_is_rounded_once_too():
    generator = np.random.default_rng(0)
    accumulator = generator.integers(2**29, 2**31, (1, 1000))
    s_x, s_w = np.float32(0.7), generator.uniform(0.001, 1, 1000).astype(np.float32)
    bias = -(accumulator[0] * (float(s_x) * s_w.astype(float))).astype(np.float32)
    exact = [
        spec.affine.to_float32(int(a) * Fraction(float(s_x)) * Fraction(float(s)) + Fraction(float(b)))
        for a, s, b in zip(accumulator[0], s_w, bias)
    ]
    assert output_exact(accumulator, bias, s_x, s_w).tolist() == [exact]


@clause("DYN-RANGE")
@given(layers(smallest=1))
def test_the_range_is_that_of_the_whole_input(layer):
    x = layer[0]
    codes, scale, grid = EXACT.quantize_dynamic(x)
    expected = spec.static.activation_qparams(float(x.min()), float(x.max()))
    assert (float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax) == expected
    assert codes.tolist() == [[spec.affine.quantize(v, *expected) for v in row] for row in x.tolist()]


@clause("DYN-RANGE")
@pytest.mark.parametrize("outlier", [-60.0, 60.0])
def test_one_value_far_from_all_others_belongs_to_the_range(outlier):
    x = networks.inputs(50, (20,)).numpy().copy()
    x[31, 7] = outlier
    codes, _, grid = EXACT.quantize_dynamic(x)
    assert (float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax) == spec.static.activation_qparams(
        float(x.min()), float(x.max())
    )
    assert codes[31, 7] == (255 if outlier > 0 else 0) and np.abs(grid.dequantize(codes) - x).max() <= grid.scale * (
        0.5 + 2.0**-15
    )


@clause("DYN-STATIC")
@given(layers(smallest=1))
def test_dynamic_is_static_at_the_range_of_the_batch(layer):
    x, w_q, w, bias = layer
    codes, _, grid = EXACT.quantize_dynamic(x)
    static_grid = EXACT.activation_qparams(x.min(), x.max())
    assert codes.tolist() == static_grid.quantize(x).tolist()
    accumulator = integer.accumulate(codes, grid.zero_point, w_q, 0)
    assert accumulator.tolist() == integer.accumulate(static_grid.quantize(x), static_grid.zero_point, w_q, 0).tolist()


@clause("DYN-STATIC")
def test_a_dynamic_network_has_the_codes_of_a_static_one_calibrated_with_that_batch():
    model, x = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 3))), networks.inputs()
    static, dynamic = qs.quantize(model, [x], dialect="exact"), qs.quantize_dynamic(model, dialect="exact")
    step = static.program.layers[0]
    seen = {}
    static.run_on("reference").compiled(
        {static.program.inputs[0]: x}, lambda one, value: seen.setdefault(type(one).__name__, value)
    )
    codes = seen["Quantize"]
    assert codes.tolist() == EXACT.quantize_dynamic(x.numpy())[0].tolist()
    assert step.weight.tolist() == dynamic.program.layers[0].weight.tolist()


@clause("DYN-WEIGHT")
@given(networks.perceptrons(), st.booleans())
def test_weights_are_those_of_static_quantization(case, per_channel):
    model, calibration, _ = case
    static = qs.quantize(model, calibration, fuse=False, per_channel=per_channel)
    dynamic = qs.quantize_dynamic(model, per_channel=per_channel)
    for a, b in zip(static.program.layers, dynamic.program.layers, strict=True):
        assert a.weight.tolist() == b.weight.tolist() and a.w_qparams.scale.tolist() == b.w_qparams.scale.tolist()


@clause("DYN-ZERO-INPUTS")
def test_no_rows_give_no_rows_and_no_inputs_give_the_bias():
    w, bias = QParams([1.0, 2.0], 0, -128, 127, axis=0), np.float32([0.5, -0.25])
    assert EXACT.linear_dynamic(np.zeros((0, 3), np.float32), np.zeros((2, 3), np.int8), w, bias).shape == (0, 2)
    assert (
        EXACT.linear_dynamic(np.zeros((3, 0), np.float32), np.zeros((2, 0), np.int8), w, bias).tolist()
        == [[0.5, -0.25]] * 3
    )
    assert EXACT.linear_dynamic(np.zeros((1, 0), np.float32), np.zeros((2, 0), np.int8), w, None).tolist() == [
        [0.0, 0.0]
    ]
    q = qs.quantize_dynamic(networks.seeded(networks.Perceptron))
    assert q(torch.zeros(0, 4)).shape == (0, 3)


@st.composite
def broken_rows(draw, x):
    """Rows of which some hold a NaN or infinities, and which do."""
    x, bad = x.copy(), np.zeros(len(x), bool)
    for row in draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=3)):
        x[row, draw(st.integers(0, x.shape[1] - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        bad[row] = True
    return x, bad


@clause("DYN-FINITE")
@pytest.mark.filterwarnings("ignore:values are NaN")
@given(layers(1), st.booleans(), st.sampled_from(["auto", "reference"]), st.data())
def test_rows_that_are_not_finite_have_no_part_in_the_range(layer, per_row, engine, data):
    x, w_q, w, bias = layer
    x, bad = data.draw(broken_rows(x))
    largest = np.abs(x[~bad]).max(axis=1, initial=0)
    assume(((largest == 0) | (largest >= 2.0**-117)).all())  # the range of less is refused, as it makes no grid
    step = program.LinearDynamic("y", "x", "layer", w_q, bias, w, False, per_row)
    run = registry.engine(engine)(program.Program("onnx", ("x",), {}, (step,), program.Ref("y")))
    found = run({"x": torch.from_numpy(x)}).numpy()
    # The others are as if they came alone.
    assert np.array_equal(found[~bad], run({"x": torch.from_numpy(x[~bad])}).numpy())
    grids = [(float(s), 0) for s in np.broadcast_to(w.scale, len(w_q))]
    expected = [spec.linear_not_finite(row, w_q.tolist(), grids) for row in x[bad].tolist()]
    assert np.array_equal(found[bad], np.array(expected, np.float32), equal_nan=True)


@clause("DYN-FINITE")
@pytest.mark.filterwarnings("ignore:values are NaN")
@pytest.mark.parametrize("engine", ["auto", "reference"])
@given(st.integers(0, 999), st.sampled_from(["LSTM", "GRU", "RNN"]), st.booleans())
def test_a_nan_in_a_sequence_spoils_what_follows_it_and_no_other_sequence(engine, seed, kind, both):
    torch.default_generator.manual_seed(seed)
    model = getattr(nn, kind)(5, 6, 2, bidirectional=both).eval()
    q, x = qs.quantize_dynamic(model, engine=engine), torch.randn(7, 4, 5)
    x[seed % 7, 2, seed % 5] = torch.nan
    with torch.no_grad():
        expected = parts_of(model(x))
    for a, b in zip(parts_of(q(x)), expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
    x[:, 2] = torch.nan
    others = [0, 1, 3]
    for a, b in zip(parts_of(q(x)), parts_of(q.run_on("reference")(x[:, others])), strict=True):
        assert torch.equal(a[:, others], b) and a[:, 2].isnan().all()


def parts_of(result):
    """The output of a recurrent layer and its state."""
    output, state = result
    return [output, *(state if isinstance(state, tuple) else [state])]


@clause("DYN-STATELESS")
@given(networks.perceptrons(), st.sampled_from(["reference", "compiled"]))
def test_there_is_no_memory(case, engine):
    model, others, x = case
    q = qs.quantize_dynamic(model, engine=engine)
    assert q.engine == engine
    first = q(x)
    for other in (*others, x * 1000):
        q(other)
    assert torch.equal(q(x), first) and torch.equal(qs.quantize_dynamic(model, engine=engine)(x), first)


@clause("DYN-BATCH")
@given(layers(smallest=1))
def test_rows_share_a_range(layer):
    x, w_q, w, bias = layer
    ends = np.full((1, x.shape[1]), x.min(), np.float32)
    ends[0, 0] = x.max()
    # The same ends, so the same grid, whatever else comes along.
    together = EXACT.linear_dynamic(np.concatenate([x, ends]), w_q, w, bias)
    assert together[: len(x)].tolist() == EXACT.linear_dynamic(x, w_q, w, bias).tolist()


@clause("DYN-BATCH")
@pytest.mark.parametrize("value", [-1.0, 0.1, 4.0])
def test_many_rows_within_the_range_change_no_other_row(value):
    w, x = QParams(0.1, 0, -128, 127), np.float32([[-1.0, 4.0], [0.5, 0.1], [2.3, -0.7]])
    layer = np.int8([[3, -100], [127, 5]]), w, np.float32([0.25, -1])
    together = EXACT.linear_dynamic(np.concatenate([x, np.full((200, 2), value, np.float32)]), *layer)
    assert (
        together[:3].tolist() == EXACT.linear_dynamic(x, *layer).tolist()
        and len(set(map(tuple, together[3:].tolist()))) == 1
    )


@clause("DYN-BATCH")
def test_a_row_with_larger_values_changes_the_others():
    w = QParams(1.0, 0, -128, 127)
    alone = EXACT.linear_dynamic(np.float32([[0.1, 1.0]]), np.int8([[1, 1]]), w, None)
    beside = EXACT.linear_dynamic(np.float32([[0.1, 1.0], [0.0, 9.0]]), np.int8([[1, 1]]), w, None)
    assert alone[0].tolist() != beside[0].tolist()


@clause("DYN-NO-CALIBRATION")
def test_quantizing_needs_the_model_alone_and_leaves_it_unmodified():
    required = [p for p in inspect.signature(qs.quantize_dynamic).parameters.values() if p.default is p.empty]
    assert [p.name for p in required] == ["model"]
    model = networks.seeded(networks.Normalised)
    before, structure, hooks = networks.parameters(model), str(model), len(model._forward_hooks)
    q = qs.quantize_dynamic(model)
    q(networks.inputs())
    assert networks.unchanged(model, before) and str(model) == structure and len(model._forward_hooks) == hooks
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    layers = [step for _, network in q.networks() for step in network.program.layers]
    assert [(step.layer, step.reduce_range, step.w_qparams.axis) for step in layers] == [
        ("first", False, 0),
        ("second", False, 0),
    ]


@clause("DYN-OUTPUT")
@given(networks.perceptrons(), st.booleans())
def test_a_dynamic_network_is_its_layers_in_order(case, reduce_range):
    model, _, x = case
    q = qs.quantize_dynamic(model, dialect="exact", reduce_range=reduce_range)
    layers = iter(q.program.layers)
    value = x
    with torch.no_grad():
        for module in model:
            if isinstance(module, nn.Linear):
                step = next(layers)
                bias = None if module.bias is None else module.bias.numpy()
                value = torch.from_numpy(
                    EXACT.linear_dynamic(value.numpy(), step.weight, step.w_qparams, bias, reduce_range=reduce_range)
                )
            else:
                value = module(value)
    assert torch.equal(q(x), value)


def in_float(q):
    """What a network calls in float, with the reasons."""
    return [(step.target, step.reason) for step in q.program.steps if isinstance(step, Call)]


@clause("STA-REST")
def test_a_dynamic_network_lists_what_stays_in_float_with_the_reason():
    model = networks.seeded(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(4), nn.Softmax(1))
    )
    q = qs.quantize_dynamic(model)
    activations = "dynamic quantization keeps activations in float"
    expected = [
        ("1", activations), ("torch.flatten", ""), ("3", "BatchNorm1d has no integer form here"),
        ("4", "Softmax has no integer form here"),
    ]
    assert in_float(q) == expected
    assert activations in repr(q) and "Softmax has no integer form here" in repr(q)
    assert in_float(qs.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval(), exclude="1")) == [
        ("1", "excluded")
    ]
    for example in (None, networks.inputs(2, (1, 5))):
        with pytest.warns(UserWarning, match=f"^nothing was quantized: {CONVOLUTIONS}; print the result"):
            q = qs.quantize_dynamic(nn.Sequential(nn.Conv1d(1, 1, 1)).eval(), example=example)
        assert in_float(q) == [("0", "a convolution, which dynamic quantization leaves in float")]


CONVOLUTIONS = (
    r"dynamic quantization leaves convolutions in float \(quantize\(\) with calibration data quantizes convolutions\)"
)


@clause("STA-NOTHING")
@pytest.mark.parametrize("data", [False, True], ids=["without data", "by example"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_model_of_convolutions_is_told_what_quantizes_them(mixed, data):
    class Image(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
            self.head = nn.Linear(8, 8) if mixed else nn.ReLU()

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x) if x.sum() > 0 else block(x)  # which is no graph
            return self.head(x)

    model, x = networks.seeded(Image), networks.inputs(1, (3, 8, 8))
    nothing = f"^nothing was quantized: {CONVOLUTIONS}; print the result"
    with pytest.warns(UserWarning, match="quantizes convolutions" if mixed else nothing):
        q = qs.quantize_dynamic(model, example=x if data else None)
    rest = {row.path: row.reason for row in q.report.rest}
    assert rest == dict.fromkeys(("blocks.0", "blocks.1"), "a convolution, which dynamic quantization leaves in float")


class Deciding(nn.Module):
    """Layers of several kinds, between which Python decides by the values."""

    def __init__(self):
        super().__init__()
        self.image, self.lstm = nn.Conv1d(2, 4, 1), nn.LSTM(3, 8)
        self.block = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        self.head, self.tail = nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x, scale=1.0):
        y = self.image(x)
        y, _ = self.lstm(y if y.sum() < 1e9 else -y)
        y, _ = self.block["attention"](y, y, y)
        return self.tail(self.head(y if y.sum() < 1e9 else -y)) * scale


def places(q):
    """The paths of the networks of a model, and those of what stays Python, with the reasons."""
    return [path for path, _ in q.networks()], [(stop.path, stop.reason) for stop in q.stops]


@clause("DYN-LAYERS")
@networks.mostly_attention
def test_each_of_torchs_layers_is_replaced_where_it_is_or_listed_with_the_reason():
    model, x = networks.seeded(Deciding), networks.inputs(5, (2, 3))
    q = qs.quantize_dynamic(model)
    # Attention computes with the weight of the layer in it, which is never called.
    assert places(q) == (["lstm", "head", "tail"], [])
    with torch.no_grad():
        assert accuracy.sqnr(model(x, 2.0).numpy(), q(x, scale=2.0).numpy()) > 30
    some = qs.quantize_dynamic(model, activations=None, exclude="head")
    left = [("lstm", "dynamic quantization keeps activations in float"), ("head", "excluded")]
    assert places(some) == (["tail"], left)
    assert all(f"  {reason}:\n    {path}" in repr(some) for path, reason in left)
    exact = qs.quantize_dynamic(model, engine="reference")
    assert [network.engine for _, network in exact.networks()] == ["reference"] * 3


class Encoder(nn.Module):
    """Has torch's own encoder, whose fused form reads the weights of layers instead of calling them."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.encoder(x)


@clause("DYN-LAYERS")
@networks.mostly_attention
@torch.no_grad()
def test_torchs_own_encoder_calls_the_layers_that_were_replaced():
    model, x = networks.seeded(Encoder), networks.inputs(2, (5, 8))
    q, expected = qs.quantize_dynamic(model), x
    for layer in model.encoder.layers:
        first, second = qs.quantize_dynamic(layer.linear1), qs.quantize_dynamic(layer.linear2)
        attended = layer.self_attn(expected, expected, expected, need_weights=False)[0]
        between = layer.norm1(expected + attended)
        expected = layer.norm2(between + second(nn.functional.gelu(first(between))))
    assert torch.equal(q(x), expected)


@clause("DYN-LAYERS")
def test_a_layer_that_cannot_be_taken_is_listed_and_the_next_one_is_taken():
    class Projecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 8, proj_size=2), nn.Linear(2, 16)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    with pytest.warns(UserWarning, match="lstm"):
        q = qs.quantize_dynamic(networks.seeded(Projecting))
    paths, ((stopped, reason),) = places(q)
    assert paths == ["head"] and stopped == "lstm" and "proj_size" in reason


@clause("DYN-EXAMPLE")
@networks.mostly_attention
def test_parts_are_captured_where_one_of_their_layers_is_quantized():
    model, x = networks.seeded(Deciding), networks.inputs(5, (2, 3))
    nothing = "nothing in it has an integer form"
    for example in (x, (x, 1.0, "a target"), {"x": x}):
        q = qs.quantize_dynamic(model, example=example)
        paths, stops = places(q)
        assert paths == ["lstm", "block.attention", "head", "tail"] and stops[1:] == [("image", nothing)]
        with torch.no_grad():
            assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 30
    # No search inside of what has convolutions alone.
    model.image = nn.Sequential(model.image, nn.ReLU()).eval()
    q = qs.quantize_dynamic(model, example=x, engine="reference")
    assert places(q)[1][1:] == [("image", nothing)]
    assert [network.engine for _, network in q.networks()] == ["reference"] * 4
    paths, stops = places(qs.quantize_dynamic(model, activations=None, exclude="head", example=x))
    assert paths == ["block.attention", "tail"] and stops[2:] == [("lstm", nothing), ("head", nothing)]


@clause("DYN-EXAMPLE")
def test_an_example_of_keywords_is_compared_too():
    model, x = networks.seeded(networks.WithSoftmax), networks.inputs(8, (2, 4))
    q = qs.quantize_dynamic(model, example={"x": x, "scale": 2.0})
    assert q.program.inputs == ("x", "scale")
    with torch.no_grad():
        assert (q(x, scale=3.0)["p"] - model(x, scale=3.0)["p"]).abs().max() < 0.05


@clause("DYN-ROWS")
@pytest.mark.parametrize("name", ["exact", "onnx", "fbgemm"])
def test_rows_with_ranges_of_their_own_are_those_of_layers_that_see_one_row(name):
    model = networks.seeded(lambda: nn.Linear(5, 3))
    x = networks.inputs(6, (4, 5)) * torch.tensor([0.01, 1.0, 40.0, 0.0])[:, None]  # the last row is all zeros
    per_token = qs.quantize_dynamic(model, activations="per_token", dialect=name)
    whole = qs.quantize_dynamic(model, dialect=name)
    got = per_token(x)
    for i, j in np.ndindex(6, 4):
        assert torch.equal(got[i, j], whole(x[i, j][None])[0])
    assert not torch.equal(got, whole(x))
    assert per_token(x[:0]).shape == (0, 4, 3) and per_token(x[0, 1]).shape == (3,)
    with pytest.raises(ValueError, match="^activations: expected 'per_tensor', 'per_token', None, got 'rows'$"):
        qs.quantize_dynamic(model, activations="rows")


@clause("DYN-WEIGHT-ONLY")
@given(networks.perceptrons(norms=False), st.booleans())
def test_weights_only_is_the_float_network_on_dequantized_weights(case, per_channel):
    model, _, x = case
    q = qs.quantize_dynamic(model, activations=None, per_channel=per_channel)
    assert all(type(layer) is program.LinearWeight for layer in q.program.layers)
    twin = copy.deepcopy(model).double()
    paths, layers = zip(*((path, m) for path, m in twin.named_modules() if isinstance(m, nn.Linear)))
    assert [step.layer for step in q.program.layers] == list(paths)
    values, reference = {}, q.run_on("reference").compiled
    with torch.no_grad():
        y = reference({q.program.inputs[0]: x}, lambda step, value: values.setdefault(step.name, value))
        assert torch.equal(q(x), y)
        values[q.program.inputs[0]] = x
        for layer, step in zip(layers, q.program.layers, strict=True):
            assert values[step.name].tolist() == weights_only_rows(step, values[step.x].tolist())
            layer.weight.copy_(torch.from_numpy(step.w_qparams.dequantize(step.weight)))
        # Of a few layers of numbers of ordinary size.
        assert (y - twin(x.double())).abs().max() <= 1e-4 * (1 + y.abs().max())
    assert q.nbytes < size.float_bytes(model) or size.float_bytes(model) < 200


def weights_only_rows(step, rows):
    """What the chapter says that a layer gives."""
    grids = step.w_qparams.scale, step.w_qparams.zero_point
    pairs = list(zip(*(np.broadcast_to(values, len(step.weight)).tolist() for values in grids)))
    biases = [0.0] * len(step.weight) if step.bias is None else step.bias.tolist()
    return spec.linear_weight_only(rows, step.weight.tolist(), pairs, biases)


def weights_only(engine, x, w_q, w, bias, dialect="onnx"):
    """What an engine gives for a layer alone."""
    step = program.LinearWeight("y", "x", "layer", w_q, bias, w)
    network = program.Program(dialect, ("x",), {}, (step,), program.Ref("y"))
    return registry.engine(engine)(network)({"x": torch.from_numpy(x)})


@clause("DYN-WEIGHT-ONLY")
@pytest.mark.parametrize("choices", ["onnx", "exact", "fbgemm"])
@given(layers(), draws.seeds())
def test_weights_only_is_the_exact_sum_rounded_once(choices, layer, g):
    x, w_q, w, bias = layer
    # Sizes of a few bits apart or of the whole range of float32, whole numbers, and sums that nearly cancel.
    x = x * 2.0 ** g.integers(*((-1, 1), (-20, 20), (-149, 20))[g.integers(3)], x.shape)
    x = np.round(x) if g.random() < 0.3 else x
    if g.random() < 0.5:
        half = x.shape[1] // 2
        x[:, :half] = -x[:, half : 2 * half] * (1 + g.integers(-2, 3, (len(x), half)) * 2.0**-23)
    x, bias = x.astype(np.float32), None if g.random() < 0.2 else bias
    expected = weights_only_rows(program.LinearWeight("y", "x", "layer", w_q, bias, w), x.tolist())
    for engine in ("auto", "reference"):
        assert weights_only(engine, x, w_q, w, bias, choices).tolist() == expected


@clause("DYN-WEIGHT-ONLY")
@pytest.mark.parametrize("small", [1, 5, 60])
@given(draws.seeds())
def test_weights_only_sums_small_values_whose_large_neighbours_cancel(small, g):
    # What is left of a sum is what the small values give, to their last bits.
    large = g.uniform(0.5, 1, (3, 32))
    x = np.hstack([large, -large, g.uniform(0.5, 1, (3, small)) * 2.0 ** -g.integers(8, 20, (3, small))])
    codes = g.integers(-128, 128, (5, 32), np.int8)
    w_q = np.hstack([codes, codes, g.integers(-128, 128, (5, small), np.int8)])
    order, w = g.permutation(x.shape[1]), QParams(np.float32(0.01), 0, -128, 127)
    x, w_q = x[:, order].astype(np.float32), w_q[:, order]
    expected = weights_only_rows(program.LinearWeight("y", "x", "layer", w_q, None, w), x.tolist())
    for engine in ("auto", "reference"):
        assert weights_only(engine, x, w_q, w, None).tolist() == expected


@clause("DYN-WEIGHT-ONLY")
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(
    ("x", "expected"), [
        ([1.0, 2.0**-24, 2.0**-60], 1 + 2.0**-23), ([1.0, 2.0**-24, -(2.0**-60)], 1.0), ([1.0, 2.0**-24, 0.0], 1.0),
        ([1.0, 3 * 2.0**-24, 0.0], 1 + 2.0**-22), ([1.0, 2.0**-24, 2.0**-140], 1 + 2.0**-23),
        ([2.0**127, 2.0**127, 0.0], np.inf), ([2.0**-149, 0.0, 0.0], 2.0**-149), ([2.0**100, 1.0, -(2.0**100)], 1.0),
        ([np.nan, 0.0, 0.0], np.nan), ([np.inf, 0.0, 0.0], np.inf), ([-np.inf, np.inf, 0.0], np.nan),
    ],
)  # fmt: skip
def test_weights_only_rounds_sums_beyond_float64(engine, x, expected):
    w = QParams(np.float32(1), 0, -128, 127)
    found = weights_only(engine, np.array([x], np.float32), np.ones((1, 3), np.int8), w, None)
    assert np.array_equal(found[0].numpy(), [expected], equal_nan=True)


class Words(nn.Module):
    """A table of embeddings, and one whose rows are joined in bags."""

    def __init__(self, mode="mean"):
        super().__init__()
        self.table, self.bag, self.head = (
            nn.Embedding(9, 4, padding_idx=2), nn.EmbeddingBag(9, 4, mode=mode), nn.Linear(4, 3),
        )

    def forward(self, index, offsets):
        return self.head(self.table(index)), self.bag(index.flatten(), offsets)


@clause("DYN-EMBEDDING")
@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_embeddings_are_dequantized_rows(mode):
    model = networks.seeded(lambda: Words(mode))
    index, offsets = torch.tensor([[0, 8, 2], [3, 3, 1]]), torch.tensor([0, 2])
    for q in (qs.quantize_dynamic(model, example=(index, offsets)), qs.quantize(model, [(index, offsets)])):
        table, bag = (step for step in q.program.layers if isinstance(step, program.Embedding))
        assert table.weight.dtype == np.int8 and table.w_qparams.scale.shape == (9,)
        rows = torch.from_numpy(table.w_qparams.dequantize(table.weight))
        reference = q.run_on("reference")
        seen = {}
        output = reference.compiled(
            dict(zip(q.program.inputs, (index, offsets))),
            lambda step, value, seen=seen: seen.setdefault(step.name, value),
        )
        assert torch.equal(seen["table"], rows[index])
        assert output[1].tolist() == bags_of_the_chapter(bag, index.flatten().tolist(), [0, 2, 6], None)
        for wrong in (torch.tensor([[9]]), torch.tensor([[-1]])):
            with pytest.raises(ValueError, match="^batch: layer 'table' has 9 entries, got indices from"):
                q(wrong, torch.tensor([0]))
        with pytest.raises(ValueError, match="^batch: layer 'table' expects indices, got torch.float32$"):
            q(index.float(), offsets)


def bags_of_the_chapter(step, index, starts, weights):
    """What the chapter says that bags give, which begin at ``starts``, and end where the next one does."""
    scale = np.broadcast_to(step.w_qparams.scale, len(step.weight)).tolist()
    weights, found = weights or [1.0] * len(index), []
    for begin, end in zip(starts, starts[1:]):
        kept = [i for i in range(begin, end) if index[i] != step.padding_idx]
        rows = [(step.weight[index[i]].tolist(), scale[index[i]], weights[i]) for i in kept]
        found.append(spec.bag(rows, step.bag) if rows else [0.0] * step.weight.shape[1])
    return found


@st.composite
def bags(draw):
    """A step on a table, indices, where bags begin and the last one ends, and weights or None."""
    g, mode = draw(draws.seeds()), draw(st.sampled_from(["sum", "mean", "max"]))
    entries, width = draw(st.integers(1, 9)), draw(st.integers(1, 40) | st.sampled_from([128, 144]))
    exponents = g.integers(*draw(st.sampled_from([(-1, 1), (-20, 20), (-126, 40)])), entries)
    scale = np.maximum(g.random(entries) * 2.0**exponents, 2.0**-126).astype(np.float32)
    grid = QParams(scale, 0, -128, 127, 0)
    codes = g.integers(-128, 128, (entries, width)).astype(np.int8)
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    starts = np.cumsum([0, *lengths]).tolist()
    weights = g.normal(size=starts[-1]).astype(np.float32) if mode == "sum" and draw(st.booleans()) else None
    names = {"offsets": "o", "weights": None if weights is None else "w", "include_last_offset": draw(st.booleans())}
    padding = draw(st.none() | st.integers(0, entries - 1))
    step = program.Embedding("y", "x", "layer", codes, grid, mode, padding_idx=padding, **names)
    return step, g.integers(0, entries, starts[-1]), starts, weights


def run_bags(engine, step, index, starts, weights):
    """What an engine gives for a layer of bags alone."""
    network = program.Program("onnx", ("x", "o", "w")[: 3 if step.weights else 2], {}, (step,), program.Ref("y"))
    offsets = starts if step.include_last_offset else starts[:-1]
    values = {"x": torch.from_numpy(index), "o": torch.tensor(offsets)}
    return registry.engine(engine)(network)(values | ({"w": torch.from_numpy(weights)} if step.weights else {}))


@clause("DYN-BAG")
@given(bags())
def test_bags_are_rows_added_one_by_one(given):
    step, index, starts, weights = given
    expected = bags_of_the_chapter(step, index.tolist(), starts, None if weights is None else weights.tolist())
    for engine in ("auto", "reference"):
        assert run_bags(engine, step, index, starts, weights).tolist() == expected


@clause("DYN-BAG")
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(
    ("weights", "expected"), [
        ([np.inf, 1], [np.inf, np.nan]), ([np.nan, 1], [np.nan, np.nan]), ([np.inf, -np.inf], [np.nan, np.nan]),
        ([1, 2.0**-24], [1.0, 2.0**-24]), ([2.0**-24, 1], [1.0, 1.0]), ([-1, 1], [0.0, 1.0]),
    ],
)  # fmt: skip
def test_bags_take_weights_as_float_arithmetic_does(engine, weights, expected):
    codes = np.array([[1, 0], [1, 1]], np.int8)
    step = program.Embedding("y", "x", "layer", codes, QParams(np.float32(1), 0, -128, 127), "sum", "o", "w")
    found = run_bags(engine, step, np.array([0, 1]), [0, 2], np.array(weights, np.float32))
    assert np.array_equal(found[0].numpy(), np.array(expected, np.float32), equal_nan=True)


@clause("DYN-BAG")
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize(
    ("index", "offsets", "weights", "words"), [
        ([[0, 1]], [0], None, r"bags as rows of indices with two axes, .*, got indices of shape \(1, 2\) with offsets"),
        ([0, 1], [1], None, r"offsets that rise from 0 to 2 at most, got \[1\]"),
        ([0, 1], [0, 2, 1], None, "offsets that rise from 0 to 2 at most"),
        ([0, 1], [0, 3], None, "offsets that rise from 0 to 2 at most"),
        ([0, 1], [0.0], None, r"offsets of one axis, got torch.float32 of shape \(1,\)"),
        ([0, 1], [0], [1.0], r"a float32 weight for each index, shape \(2,\), got"),
        ([0, 1], [0], [1, 2], r"a float32 weight for each index, shape \(2,\), got"),
    ],
)  # fmt: skip
def test_what_tells_no_bags_is_refused(engine, index, offsets, weights, words):
    grid, codes = QParams(np.float32(1), 0, -128, 127), np.ones((3, 2), np.int8)
    step = program.Embedding("y", "x", "layer", codes, grid, "sum", "o", None if weights is None else "w")
    inputs = {"x": torch.tensor(index), "o": torch.tensor(offsets)}
    inputs |= {} if weights is None else {"w": torch.tensor(weights)}
    network = program.Program("onnx", tuple(inputs), {}, (step,), program.Ref("y"))
    with pytest.raises(ValueError, match=f"^batch: layer 'layer' expects {words}"):
        registry.engine(engine)(network)(inputs)


KINDS = [
    (lambda: nn.LSTM(4, 5), 3),
    (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True), 3),
    (lambda: nn.GRU(4, 5, bias=False), 3),
    (lambda: nn.GRU(4, 5, num_layers=2, batch_first=True), 3),
    (lambda: nn.RNN(4, 5), 3),
    (lambda: nn.RNN(4, 5, nonlinearity="relu", bidirectional=True), 3),
    (lambda: nn.LSTMCell(4, 5), 2),
    (lambda: nn.GRUCell(4, 5), 2),
    (lambda: nn.RNNCell(4, 5, nonlinearity="relu"), 2),
]


@clause("DYN-RECURRENT")
@pytest.mark.parametrize(("build", "axes"), KINDS)
def test_recurrent_layers_of_every_kind_are_near_their_float_model(build, axes):
    model = networks.seeded(build)
    x = networks.inputs(7, (3, 4) if axes == 3 else (4,))
    q = qs.quantize_dynamic(model)
    assert [type(layer) for layer in q.program.layers] == [program.Recurrent]
    with torch.no_grad():
        expected, got = tensors(model(x)), tensors(q(x))
        assert len(expected) == len(got)
        for f, y in zip(expected, got):
            assert f.shape == y.shape and accuracy.sqnr(f.numpy(), y.numpy()) > 20
        alone = tensors(model(x[0] if axes == 2 else x[:, 0]))
        for f, y in zip(alone, tensors(q(x[0] if axes == 2 else x[:, 0]))):
            assert f.shape == y.shape and accuracy.sqnr(f.numpy(), y.numpy()) > 20
        # With a state of one's own.
        state = model(x)[1] if axes == 3 else model(x)
        for f, y in zip(tensors(model(x, state)), tensors(q(x, state))):
            assert accuracy.sqnr(f.numpy(), y.numpy()) > 20
    with pytest.raises(ValueError, match="expects 4 input features, got"):
        q(x[..., :3])


@clause("DYN-RECURRENT")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_each_call_of_a_recurrent_layer_begins_from_a_state_of_zeros(kind, batch_first):
    q = qs.quantize_dynamic(networks.seeded(lambda: kind(4, 5, batch_first=batch_first)))
    shapes = [(3, 2, 4), (3, 2, 4), (2, 3, 4), (3, 2, 4), (1, 2, 4), (2, 1, 4)]
    given = [networks.inputs(shape[0], shape[1:], seed) for seed, shape in enumerate(shapes)]
    given[-1][0, 0, 0] = torch.inf
    found = [tensors(q(x)) for x in given]  # which later calls leave as they are
    for x, ys in zip(given, found):
        for y, expected in zip(ys, tensors(q.run_on("reference")(x)), strict=True):
            assert y.shape == expected.shape
            np.testing.assert_array_equal(y.numpy(), expected.numpy())  # NaN where it is


@clause("DYN-RECURRENT")
@given(draws.seeds(), st.integers(0, 5), st.integers(1, 3), st.integers(1, 3))
def test_a_recurrent_layer_with_relu_equals_the_definition(g, count, inputs, size):
    layer = networks.seeded(lambda: nn.RNN(inputs, size, nonlinearity="relu"), int(g.integers(1000)))
    q = qs.quantize_dynamic(layer, dialect="exact")
    (cell,) = q.program.layers[0].cells
    x = g.normal(size=(count, inputs)).astype(np.float32)

    def given_as(weight, grid, bias):
        return weight.tolist(), [(float(s), 0) for s in grid.scale], bias.tolist()

    own = (
        given_as(cell.input_weight, cell.input_qparams, cell.input_bias),
        given_as(cell.state_weight, cell.state_qparams, cell.state_bias),
    )
    expected = spec.rnn_relu(x.tolist(), *own, size)
    output, state = q(torch.from_numpy(x))
    assert output.tolist() == expected and state[0].tolist() == (expected[-1] if count else [0.0] * size)


@clause("DYN-RECURRENT")
def test_gates_are_torchs_with_sigmoid_and_tanh_rounded_once():
    g = networks.inputs(2, (2, 12)).double()
    x, h = g[0].float(), g[1].float()
    sigmoid, tanh = (lambda t, f=f: f(t.double()).float() for f in (torch.sigmoid, torch.tanh))
    c = networks.inputs(2, (3,), 5)
    gates = x + h
    new = sigmoid(gates[:, 3:6]) * c + sigmoid(gates[:, :3]) * tanh(gates[:, 6:9])
    assert all(map(torch.equal, reference_dynamic.lstm(x, h, (None, c)), (sigmoid(gates[:, 9:]) * tanh(new), new)))
    x, h = x[:, :9], h[:, :9]
    r, z = sigmoid(x[:, :3] + h[:, :3]), sigmoid(x[:, 3:6] + h[:, 3:6])
    n = tanh(x[:, 6:] + r * h[:, 6:])
    assert torch.equal(reference_dynamic.gru(x, h, (c,))[0], n + z * (c - n))
    assert torch.equal(reference_dynamic.rnn_tanh(x, h, ())[0], tanh(x + h)) and torch.equal(
        reference_dynamic.rnn_relu(x, h, ())[0], torch.relu(x + h)
    )


@clause("DYN-PACKED")
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_packed_sequence_is_run_step_by_step(kind, engine):
    model = networks.seeded(lambda: kind(4, 5, num_layers=2, bidirectional=True))
    x, given = networks.inputs(6, (3, 4)), networks.inputs(4, (3, 5))
    start = (given, given * 0.5) if kind is nn.LSTM else given
    pack = rnn.pack_padded_sequence
    q = qs.quantize_dynamic(model, engine=engine)
    with torch.no_grad():
        # Sequences of one length, and a single one, are what they are unpacked.
        for part, state in ((x, start), (x[:, :1], tree_map(lambda t: t[:, :1], start))):
            lengths = torch.full((part.shape[1],), len(part))
            got, expected = q(pack(part, lengths), state), q(part, state)
            assert torch.equal(got[0].data.reshape(expected[0].shape), expected[0])
            assert all(map(torch.equal, tensors(got[1:]), tensors(expected[1:])))
        packed = pack(x, torch.tensor([2, 6, 4]), enforce_sorted=False)
        for arguments in ((packed,), (packed, start)):
            got, expected = q(*arguments), model(*arguments)
            assert all(map(torch.equal, got[0][1:], expected[0][1:]))  # the lengths and the order
            for a, b in zip(tensors([expected[0].data, *expected[1:]]), tensors([got[0].data, *got[1:]]), strict=True):
                assert accuracy.sqnr(a.numpy(), b.numpy()) > 25
        with pytest.raises(ValueError, match="expects 4 input features"):
            q(packed._replace(data=packed.data[:, :3]))


@clause("DYN-PACKED")
@pytest.mark.parametrize("backward", [False, True])
def test_the_states_of_a_step_are_those_of_the_sequences_that_have_it(backward):
    model = networks.seeded(lambda: nn.RNN(4, 5, nonlinearity="relu", bidirectional=True))
    lengths, counts = [4, 2, 1], [3, 2, 1, 1]
    packed = rnn.pack_padded_sequence(networks.inputs(4, (3, 4)), torch.tensor(lengths))
    q = qs.quantize_dynamic(model, dialect="exact")
    cell = q.program.layers[0].cells[backward]

    def product(values, codes, grid, bias):
        return torch.from_numpy(EXACT.linear_dynamic(values.numpy(), codes, grid, bias, reduce_range=False))

    gates = product(packed.data, cell.input_weight, cell.input_qparams, cell.input_bias).split(counts)
    state, outputs = torch.zeros(3, 5), [None] * 4
    for step in reversed(range(4)) if backward else range(4):
        own = product(state[: counts[step]], cell.state_weight, cell.state_qparams, cell.state_bias)
        state = torch.cat([torch.relu(gates[step] + own), state[counts[step] :]])
        outputs[step] = state[: counts[step]]
    got, last = q(packed)
    assert torch.equal(got.data[:, 5 * backward : 5 * backward + 5], torch.cat(outputs))
    assert torch.equal(last[int(backward)], state)


@clause("DYN-PACKED", "DYN-EXAMPLE")
def test_a_packed_sequence_may_be_the_batch():
    model, x = networks.seeded(lambda: nn.LSTM(4, 5)), networks.inputs(6, (3, 4))
    packed = rnn.pack_padded_sequence(x, torch.tensor([6, 4, 1]))
    expected = model(packed)[0].data.detach()
    for q in (qs.quantize(model, [packed]), qs.quantize_dynamic(model, example=packed), qs.quantize(model, [x])):
        assert accuracy.sqnr(expected.numpy(), q(packed)[0].data.numpy()) > 25


@clause("STA-REST")
def test_a_projection_is_named_as_what_keeps_a_recurrent_network_in_float():
    model = networks.seeded(lambda: nn.LSTM(4, 5, proj_size=3))
    for quantize in (qs.quantize_dynamic, lambda m: qs.quantize(m, [networks.inputs(6, (3, 4))])):
        with pytest.warns(UserWarning, match="LSTM with proj_size|nothing was quantized"):
            assert "LSTM with proj_size has no integer form here" in str(quantize(model)).replace("\n", " ")


@clause("STA-REST")
def test_a_layer_that_cannot_be_read_stays_and_those_behind_it_do_not():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.head = nn.Linear(4, 5), nn.Linear(4, 2)
            self.unused.weight = None  # as where a library takes a layer out

        def forward(self, x):
            return self.head(x)

    model, x = networks.seeded(Unused), networks.inputs(6, (4,))
    q = qs.quantize_dynamic(model)
    ((path, reason),) = [(stop.path, stop.reason) for stop in q.stops]
    assert path == "unused" and reason.startswith("Linear cannot be traced: ")
    assert accuracy.sqnr(model(x).detach().numpy(), q(x).numpy()) > 30


class Classifies(nn.Module):
    """Packs its sequences itself, and reads the states at their ends."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(30, 8, padding_idx=0), nn.LSTM(8, 12, batch_first=True, bidirectional=True)
        self.head = nn.Linear(24, 3)

    def forward(self, words, lengths):
        packed = rnn.pack_padded_sequence(self.words(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return self.head(torch.cat((h[-2], h[-1]), 1))


class Tags(Classifies):
    """Reads the outputs of two layers at every place."""

    def __init__(self):
        super().__init__()
        self.second, self.head = nn.GRU(24, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, words, lengths):
        packed = rnn.pack_padded_sequence(self.words(words), lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.second(self.lstm(packed)[0])
        return self.head(rnn.pad_packed_sequence(y, batch_first=True, total_length=words.shape[1])[0])


class Sorts(Classifies):
    """Puts its sequences in order, and what they give back in theirs."""

    def forward(self, words, lengths):
        lengths, order = lengths.sort(descending=True)
        packed = rnn.pack_padded_sequence(self.words(words)[order], lengths.tolist(), batch_first=True)
        h = self.lstm(packed)[1][0]
        return self.head(torch.cat((h[-2], h[-1]), 1))[order.argsort()]


class PacksNumbers(Classifies):
    """Packs before the table, and puts what that gives in the place of the numbers."""

    def forward(self, words, lengths):
        numbers = rnn.pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        h = self.lstm(numbers._replace(data=self.words(numbers.data)))[1][0]
        return self.head(torch.cat((h[-2], h[-1]), 1))


@clause("DYN-PACKED")
@pytest.mark.parametrize("way", ["static", "dynamic", "example", "trained"])
@pytest.mark.parametrize("kind", [Classifies, Tags, Sorts, PacksNumbers])
def test_a_model_may_pack_its_sequences_itself(kind, way, tmp_path):
    model, r = networks.seeded(kind), torch.Generator().manual_seed(1)
    batches = [(torch.randint(1, 30, (5, 7), generator=r), torch.tensor([3, 7, 1, 4, n])) for n in (2, 5)]
    q = {
        "static": lambda: qs.quantize(model, batches), "dynamic": lambda: qs.quantize_dynamic(model),
        "example": lambda: qs.quantize_dynamic(model, example=batches[0]),
        "trained": lambda: qs.convert(qs.prepare_qat(model, batches)),
    }[way]()  # fmt: skip
    assert q.report.share == 1.0
    with torch.no_grad():
        for batch in batches:
            assert accuracy.sqnr(model(*batch).numpy(), q(*batch).numpy()) > 25
            assert torch.equal(q.run_on("reference")(*batch), q(*batch))
        q.save(tmp_path / "network")
        own = {"model": kind()} if way == "dynamic" else {}
        assert torch.equal(qs.load(tmp_path / "network", **own)(*batches[1]), q(*batches[1]))
