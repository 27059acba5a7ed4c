"""The float network: how a batch becomes its inputs, what its layers compute, and what they answer to what does not
fit."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from quantspec.errors import ShapeError
from quantspec.ir import float_run, program
from quantspec.ir.float_graph import Add, Conv, FloatGraph, Linear
from quantspec.ir.program import Call, Ref
from quantspec.numerics.affine import QParams
from told import exactly

GRID = QParams(np.float32(0.5), 3, 0, 255)
WEIGHTS = QParams(np.float32(0.5), 0, -128, 127)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(relu=False, ceiling=float("inf"), flat=False, bias=True):
    return Linear("l", "x", "first", floats(3, 4), floats(3, seed=1) if bias else None, relu, ceiling, flat)


def conv(weight, padding=((0, 0),), groups=1, stride=None, dilation=None, spread=None, transposed=False, bias=None):
    ones = (1,) * (weight.ndim - 2)
    stride, dilation, spread = stride or ones, dilation or ones, spread or ones
    return Conv("c", "x", "conv", weight, bias, stride, padding, dilation, spread, groups, transposed)


def negation(name, source):
    return Call(name, "method", "neg", (Ref(source),), {}, "")


def test_a_batch_gives_inputs_by_place_or_by_name():
    x, y = torch.ones(1), torch.zeros(1)
    inputs = "x", "y"
    for batch in ((x, y), [x, y], {"y": y, "x": x}, (x, y, "surplus")):
        values = float_run.bind(inputs, {}, batch)
        assert values.keys() == {"x", "y"} and values["x"] is x and values["y"] is y
    assert float_run.bind(inputs, {"y": 2}, x) == {"x": x, "y": 2}
    assert float_run.bind(inputs, {"y": 2}, (x, 3)) == {"x": x, "y": 3}
    assert float_run.bind((), {}, x) == {}


def test_a_batch_by_name_stays_as_it_was():
    batch = {"x": 1}
    assert float_run.bind(("x", "y"), {"y": 2}, batch) == {"x": 1, "y": 2} and batch == {"x": 1}


@pytest.mark.parametrize("batch,error,message", [
    ({"x": 1, "z": 2, "w": 3}, ValueError, "batch: unknown input 'z', the model takes x, y"),
    ({"y": 1}, ValueError, "batch: input 'x' is missing, the model takes x, y"),
    ((1,), ValueError, "batch: input 'y' is missing, the model takes x, y"),
    (torch.ones(1), ValueError, "batch: input 'y' is missing, the model takes x, y"),
    ("text", TypeError, "batch: expected a tensor, a tuple or a dict, got str"),
])  # fmt: skip
def test_a_batch_that_does_not_fit_the_inputs_is_refused_with_their_names(batch, error, message):
    with pytest.raises(error, match=exactly(message)):
        float_run.bind(("x", "y"), {}, batch)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_a_linear_layer_takes_its_features_alone(quantized, flat):
    layer = linear(flat=flat)
    if quantized:
        layer = program.Linear("l", "x", "first", np.zeros((3, 4), np.int8), None, GRID, WEIGHTS, GRID, False, flat)
    float_run.check_fits(layer, (2, 4))
    for shape in ((2, 3), (4, 2), ()):
        message = f"batch: layer 'first' expects 4 input features, got shape {shape}"
        with pytest.raises(ShapeError, match=exactly(message)):
            float_run.check_fits(layer, torch.Size(shape))
    others = [(4,), (2, 5, 4)]
    for shape in others:
        if not flat:
            float_run.check_fits(layer, shape)
            continue
        message = (
            f"batch: layer 'first' with its BatchNorm1d expects [rows, features], got shape {shape};"
            " prepare with fuse=False"
        )
        with pytest.raises(ShapeError, match=exactly(message)):
            float_run.check_fits(layer, torch.Size(shape))


@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_takes_its_channels_with_a_batch_or_without(groups):
    layer = conv(floats(3, 2, 3, 3), ((0, 0), (0, 0)), groups)
    channels = 2 * groups
    for shape in ((channels, 5, 6), (7, channels, 5, 6)):
        float_run.check_fits(layer, shape)
    for shape in ((1, 5, 6), (7, channels + 1, 5, 6), (channels, 6), (1, 7, channels, 5, 6), (channels, 7, 5, 6), ()):
        expected = f"batch: layer 'conv' expects {channels} channels and 2 axes of positions, got shape {shape}"
        with pytest.raises(ShapeError, match=exactly(expected)):
            float_run.check_fits(layer, torch.Size(shape))


@pytest.mark.parametrize("value,got", [
    (torch.ones(2, 4, dtype=torch.float64), "torch.float64"), (torch.ones(2, 4).long(), "torch.int64"), (3, "int"),
])  # fmt: skip
def test_a_layer_of_other_types_than_float32_says_which(value, got):
    with pytest.raises(ValueError, match=exactly(f"batch: layer 'first' expects float32, got {got}")):
        float_run.run_layer(linear(), value)


def test_a_layer_cuts_off_below_zero_and_above_its_ceiling():
    x = torch.from_numpy(floats(50, 4, seed=2))
    plain = float_run.run_layer(linear(), x)
    assert torch.equal(float_run.run_layer(linear(relu=True), x), plain.clamp(min=0))
    assert torch.equal(float_run.run_layer(linear(relu=True, ceiling=0.5), x), plain.clamp(0, 0.5))
    assert plain.min() < 0 and plain.max() > 0.5


# Whole numbers are exact in float32, in whatever order they are added.
def whole(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32))


@st.composite
def convolutions(draw):
    axes = draw(st.integers(1, 3))
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    groups, per_group, outputs = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    return pick(1, 3), pick(1, 2), pick(1, 2), pick(0, 2), pick(0, 2), groups, per_group, outputs, draw(st.booleans())


@given(convolutions())
def test_a_convolution_with_other_padding_on_each_side_is_that_of_a_padded_input(drawn):
    kernel, stride, dilation, before, behind, groups, per_group, outputs, with_bias = drawn
    axes = len(kernel)
    weight, x = whole(groups * outputs, per_group, *kernel), whole(2, groups * per_group, *(7,) * axes, seed=1)
    bias = whole(groups * outputs, seed=2) if with_bias else None
    padded = F.pad(x, [end for pair in zip(reversed(before), reversed(behind)) for end in pair])
    expected = (F.conv1d, F.conv2d, F.conv3d)[axes - 1](padded, weight, bias, stride, 0, dilation, groups)
    node = conv(weight.numpy(), tuple(zip(before, behind)), groups, stride, dilation)
    assert torch.equal(float_run.run_conv(node, x, weight, bias), expected)


@given(convolutions(), st.data())
def test_a_transposed_convolution_is_torchs_on_the_weight_that_it_was_made_of(drawn, data):
    kernel, stride, dilation, _, _, groups, inputs, outputs, with_bias = drawn
    axes = len(kernel)
    own = whole(groups * inputs, outputs, *kernel)
    x, bias = whole(2, groups * inputs, *(4,) * axes, seed=1), whole(groups * outputs, seed=2) if with_bias else None
    padding = [data.draw(st.integers(0, d * (k - 1))) for d, k in zip(dilation, kernel)]
    extra = [data.draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation)]
    kind = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    expected = kind(x, own, bias, stride, padding, extra, groups, dilation)
    flipped = float_run.transposed_weight(own, groups)
    assert flipped.shape == (groups * outputs, inputs, *kernel) and flipped.is_contiguous()
    assert torch.equal(float_run.transposed_weight(flipped, groups), own)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    places = tuple((r - p, r - p + e) for r, p, e in zip(reach, padding, extra))
    node = conv(flipped.numpy(), places, groups, None, dilation, stride, transposed=True)
    assert torch.equal(float_run.run_conv(node, x, flipped, bias), expected)


def test_a_layer_in_float_has_its_weights_for_itself():
    node = linear(relu=True)
    layer = float_run.FloatLayer(node)
    x = torch.from_numpy(floats(5, 4, seed=3))
    expected = F.linear(x, torch.from_numpy(node.weight.copy()), torch.from_numpy(node.bias.copy()))
    node.weight[:] = 0
    node.bias[:] = 0
    assert torch.equal(layer(x), expected) and not layer.training
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert list(layer.state_dict()) == ["weight", "bias"]
    with pytest.raises(ShapeError, match=exactly("batch: layer 'first' expects 4 input features, got shape (5, 3)")):
        layer(x[:, :3])


def test_a_layer_in_float_has_its_weights_and_its_bias_once():
    node = replace(linear(), weight=floats(20_000, 2), bias=floats(20_000))
    # A tenth for all that is neither.
    assert len(pickle.dumps(float_run.FloatLayer(node))) < 1.1 * (node.weight.nbytes + node.bias.nbytes)


def test_a_convolution_in_float_has_its_places():
    node = conv(whole(4, 1, 3).numpy(), ((1, 2),), 2, (2,), (2,))
    x = whole(1, 2, 9, seed=1)
    expected = F.conv1d(F.pad(x, (1, 2)), torch.from_numpy(node.weight), None, 2, 0, 2, 2)
    assert torch.equal(float_run.FloatLayer(node)(x), expected)


def called(calls, callables, x):
    values = {"x": x}
    for call in calls:
        values[call.name] = float_run.call_float(call, callables, values.__getitem__)
    return values


@pytest.mark.parametrize("relu,ceiling", [(False, float("inf")), (True, float("inf")), (True, 0.5)])
def test_calls_in_the_place_of_a_layer_give_its_value_and_the_reason(relu, ceiling):
    node, x = linear(relu, ceiling), torch.from_numpy(floats(50, 4, seed=2))
    calls, callables = float_run.float_calls(node, "it may overflow")
    values = called(calls, callables, x)
    assert torch.equal(values["l"], float_run.run_layer(node, x)) and calls[-1].name == "l"
    assert all(call.reason == "it may overflow" and call.kwargs == {} for call in calls)
    assert (calls[0].kind, calls[0].target) == ("module", "first")
    names = [call.name for call in calls]
    assert names == (["l.layer", "l"] if relu else ["l"])
    assert [call.target for call in calls[1:]] == (["torch.clamp"] if relu else [])
    assert callables.keys() == {(call.kind, call.target) for call in calls}


def test_calls_are_methods_functions_modules_or_what_there_is():
    x, module, other = torch.ones(2), torch.nn.Flatten(0), torch.zeros(3)
    callables = {("function", "torch.add"): torch.add, ("module", "m"): module, ("attribute", "a"): other}
    calls = [
        Call("s", "method", "add", (Ref("x"), Ref("x")), {"alpha": 2}, ""),
        Call("f", "function", "torch.add", (Ref("x"), 5), {"alpha": Ref("n")}, ""),
        Call("m", "module", "m", (Ref("x"),), {}, ""), Call("a", "attribute", "a", (), {}, ""),
    ]  # fmt: skip
    values = [float_run.call_float(call, callables, {"x": x, "n": 3}.__getitem__) for call in calls]
    assert [value.tolist() for value in values[:3]] == [[3, 3], [16, 16], [1, 1]] and values[3] is other


def refusing(message):
    def check():
        raise AssertionError(message)

    return {("function", "check"): check}


def test_sizes_that_were_not_captured_are_refused_and_other_conditions_are_not_hidden():
    call = Call("y", "function", "check", (), {}, "")
    message = "batch: the network was captured for 3 rows, and has no Python that decides for others"
    with pytest.raises(ShapeError, match=exactly(message)):
        float_run.call_float(call, refusing("the network was captured for 3 rows"), {}.__getitem__)
    with pytest.raises(AssertionError, match=exactly("of the user")):
        float_run.call_float(call, refusing("of the user"), {}.__getitem__)


def test_a_sum_has_its_relu():
    call = Call("y", "method", "add", (Ref("a"), Ref("b")), {}, "")
    values = {"a": torch.tensor([1.0, -3.0]), "b": torch.tensor([1.0, 2.0])}
    assert float_run.run_node(Add("y", "a", "b", call, True), values, {}).tolist() == [2.0, 0.0]
    assert float_run.run_node(Add("y", "a", "b", call), values, {}).tolist() == [2.0, -1.0]
    assert float_run.run_node(call, values, {}).tolist() == [2.0, -1.0]


def test_a_node_calls_what_the_graph_has_for_it():
    node = Call("y", "function", "torch.neg", (Ref("x"),), {}, "")
    graph = FloatGraph(("x",), {}, (node,), Ref("y"), {("function", "torch.neg"): torch.neg}, {})
    assert float_run.run(graph, torch.ones(2)).tolist() == [-1, -1]


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_of_a_graph_is_computed_with_its_bias(bias):
    weight, x = whole(4, 1, 3), whole(1, 2, 9, seed=1)
    added = whole(4, seed=2) if bias else None
    node = conv(weight.numpy(), ((1, 1),), 2, bias=None if added is None else added.numpy())
    expected = F.conv1d(x, weight, added, padding=1, groups=2)
    assert torch.equal(float_run.run_node(node, {"x": x}, {}), expected)


def test_each_tensor_is_seen_in_order_and_nothing_else_is():
    nodes = negation("a", "x"), Call("n", "method", "size", (Ref("a"), 0), {}, ""), negation("y", "a")
    graph = FloatGraph(("x", "k"), {"k": 2}, nodes, {"out": Ref("y"), "size": Ref("n")}, {}, {})
    seen, x = [], torch.ones(3, requires_grad=True)
    given = float_run.run(graph, x, lambda name, value: seen.append((name, value.tolist())))
    assert given["out"].tolist() == [1, 1, 1] and given["size"] == 3 and not given["out"].requires_grad
    assert seen == [("x", [1, 1, 1]), ("a", [-1, -1, -1]), ("y", [1, 1, 1])]


def test_values_are_forgotten_after_their_last_reader():
    nodes = negation("a", "x"), negation("b", "a"), negation("y", "b")
    graph = FloatGraph(("x",), {}, nodes, Ref("y"), {}, {})
    held = []

    def compute(node, values, callables):
        held.append(sorted(values))
        return float_run.run_node(node, values, callables)

    float_run.run(graph, torch.ones(1), compute=compute)
    assert held == [["x"], ["a"], ["b"]]


def test_a_graph_of_layers_computes_them_with_what_they_hold():
    nodes = linear(relu=True), replace(linear(), name="z", bias=None)
    graph = FloatGraph(("x",), {}, nodes, (Ref("l"), Ref("z")), {}, {})
    x = torch.from_numpy(floats(2, 4, seed=5))
    relu, plain = float_run.run(graph, (x,))
    weight = torch.from_numpy(floats(3, 4))
    assert torch.equal(relu, F.relu(F.linear(x, weight, torch.from_numpy(floats(3, seed=1)))))
    assert torch.equal(plain, F.linear(x, weight))
