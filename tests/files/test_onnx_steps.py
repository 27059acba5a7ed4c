"""Single steps of codes as operators of ONNX: what engine ``reference`` gives in dialect ``onnx``, bit by bit."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_graph import agrees, in_graph
from onnx_runtime import onnx
from torch.nn.functional import linear as linear_of

import quantspec
from networks import inputs
from quantspec.engines.not_numbers import Values
from quantspec.engines.reference import run_step
from quantspec.ir import program as ir
from quantspec.ir.traverse import reads
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.onnx_export import codes
from quantspec.onnx_export.builder import Graph, Tensor
from told import exactly


def grid(scale=0.03, point=100, low=0, high=255):
    return QParams(np.array(scale, np.float32), np.array(point), low, high)


X, Y = grid(), grid(0.5, 30)


def of_weights(count, axis=0):
    """A grid of weights with a scale for each channel, or one."""
    scale = np.linspace(0.01, 0.05, count, dtype=np.float32) if axis is not None else np.array(0.02, np.float32)
    return QParams(scale, np.array(0), -127, 127, axis=axis)


def coded(*shape, seed=0, low=0, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator, dtype=torch.uint8)


def weights(*shape, seed=0):
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


IMAGE = coded(2, 4, 7, 6)


def made_of(step):
    names = list(dict.fromkeys(reads(step)))
    return lambda g, *xs: codes.STEPS[type(step)](g, step, dict(zip(names, xs)))


def same(step, *tensors, open_only=False, gives=None):
    names = list(dict.fromkeys(reads(step)))

    def reference(*given):
        arrays = [x.numpy() if x.dtype == torch.uint8 else x for x in given]
        values = Values(dict(zip(names, arrays)), refuse=False)
        return run_step(step, values, {}, dialect("onnx"))

    agrees(made_of(step), reference, *tensors, grid=X, gives=gives, open_only=open_only)


def linear(x=X, y=Y, relu=False, bias=True, axis=0):
    b = np.linspace(-3, 3, 3, dtype=np.float32) if bias else None
    return ir.Linear("step", "x", "layer", weights(3, 5), b, x, of_weights(3, axis), y, relu)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 5), (2, 1, 3, 5), (5,)], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer(shape, relu, bias):
    for y in (Y, grid(0.5, 0), grid(0.5, 30, 5, 99), None):
        for axis in (0, None):
            same(linear(y=y, relu=relu, bias=bias, axis=axis), coded(*shape), gives=y)


def conv(positions=2, outputs=6, groups=2, bias=True, axis=0, y=Y, relu=False, **options):
    usual = {
        "stride": (1,) * positions, "padding": ((0, 0),) * positions, "dilation": (1,) * positions,
        "input_dilation": (1,) * positions,
    }  # fmt: skip
    weight = weights(outputs, 4 // groups, *(3, 2, 2)[:positions])
    b = np.linspace(-3, 3, outputs, dtype=np.float32) if bias else None
    return ir.Conv(
        "step", "x", "layer", weight, b, X, of_weights(outputs, axis), y, relu, **usual | options, groups=groups
    )


CONVOLUTIONS = {
    "usual": {}, "one group": {"groups": 1}, "of channels": {"groups": 4, "outputs": 4},
    "without bias": {"bias": False},
    "one scale": {"axis": None}, "stride": {"stride": (2, 3)}, "padding": {"padding": ((1, 2), (0, 1))},
    "negative padding": {"padding": ((-1, 2), (1, -2))}, "only negative padding": {"padding": ((0, -1), (-2, 0))},
    "dilation": {"dilation": (2, 3)}, "spread": {"input_dilation": (2, 3)},
    "spread along rows": {"input_dilation": (3, 1)},
    "spread and cut": {"input_dilation": (1, 2), "padding": ((0, 0), (-1, -3))}, "clamped": {"y": grid(0.5, 30, 5, 99)},
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("to", ["codes", "floats"])
@pytest.mark.parametrize("relu", [False, True])
def test_a_convolution(name, to, relu):
    options = CONVOLUTIONS[name]
    step = conv(relu=relu, **options | ({"y": None} if to == "floats" else {}))
    same(step, IMAGE, gives=step.y_qparams)


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("to", [Y, None])
def test_a_convolution_of_other_numbers_of_positions(positions, to):
    shape = (2, 4, 5, 4, 6)[: positions + 2]
    same(conv(positions, y=to), coded(*shape), gives=to)
    same(conv(positions, y=to, input_dilation=(2,) * positions), coded(*shape), gives=to)


def test_a_weight_belongs_to_its_layer():
    """Two layers with equal weights and zero points share neither, as ONNX Runtime may make them unsigned."""
    g, x = Graph(), Tensor("x", ("n", 5), X)
    for name in ("a", "b"):
        codes.linear(g, replace(linear(), name=name), {"x": x})
        codes.linear(g, replace(linear(y=None), name=name), {"x": x})
    kinds = [(tensor.data_type, len(tensor.dims)) for tensor in g.initializers]
    assert kinds.count((onnx.TensorProto.INT8, 2)) == 4  # as it is and transposed, of each
    assert kinds.count((onnx.TensorProto.INT8, 1)) == 2 and kinds.count((onnx.TensorProto.UINT8, 0)) == 2


WEIGHTS, OF_FLOATS = weights(3, 5), np.arange(3, dtype=np.float32)
NAMED = [
    (linear(), {"weight", "scale", "zero_point", "bias"}),
    (linear(y=None), {"weight", "zero_point", "scale", "bias"}),
    (conv(1), {"weight", "scale", "zero_point", "bias"}),
    (ir.AvgPool("step", "x", X, (2,), (1,), (0,), True, True), {"scale", "constant", "zero_point"}),
    (ir.Mean("step", "x", X, (1,), False), {"scale", "constant", "zero_point"}),
    (ir.AdaptiveAvgPool("step", "x", X, (2,)), {"scale", "constant", "zero_point"}),
    (ir.Table("step", "x", "f", np.zeros(256, np.uint8), X, Y), {"table"}),
    (ir.Embedding("step", "x", "layer", WEIGHTS, of_weights(3)), {"weight", "scale"}),
    (ir.Embedding("step", "x", "layer", WEIGHTS, of_weights(3, None)), {"weight", "scale"}),
    (ir.LinearWeight("step", "x", "layer", WEIGHTS, OF_FLOATS, of_weights(3)), {"weight", "scale", "bias"}),
    (
        ir.LinearDynamic("step", "x", "layer", WEIGHTS, OF_FLOATS, of_weights(3), False),
        {"weight", "scale", "zero_point", "bias"},
    ),
    (
        ir.LinearDynamic("step", "x", "layer", WEIGHTS, OF_FLOATS, of_weights(3), True),
        {"weight", "scale", "bias", "constant"},
    ),
]


@pytest.mark.parametrize("step, names", NAMED)
def test_constants_are_named_by_what_they_are(step, names):
    g, shape = Graph(), ("n", 5) if hasattr(step, "layer") and not isinstance(step, ir.Conv) else ("n", 4, 9)
    codes.STEPS[type(step)](g, step, {"x": Tensor("x", shape, X)})
    assert {re.sub(r"_\d+$", "", tensor.name) for tensor in g.initializers} - {"ints"} == names


@pytest.mark.parametrize("axis", [0, None])
def test_scales_of_channels_lie_along_the_first_axis_of_the_weight(axis):
    """Which ONNX Runtime does not look at where it makes one operator of several."""
    for step, shape in ((linear(axis=axis), ("n", 5)), (conv(axis=axis), ("n", 4, "h", "w"))):
        g = Graph()
        codes.STEPS[type(step)](g, step, {"x": Tensor("x", shape, X)})
        of_weights_and_bias = [node for node in g.nodes if node.input[0] in ("weight", "bias")]
        axes = [{a.name: a.i for a in node.attribute} for node in of_weights_and_bias]
        assert axes == [{} if axis is None else {"axis": 0}] * 2


def test_what_makes_no_difference_is_no_operator():
    def operators(step):
        g = Graph()
        codes.STEPS[type(step)](g, step, {"x": Tensor("x", ("n", 4, "h", "w"), X)})
        return {node.op_type for node in g.nodes}

    usual = {"DequantizeLinear", "Conv", "QuantizeLinear"}
    assert operators(conv(padding=((0, 1), (2, 0)))) == usual and operators(conv(relu=True)) == usual | {"Clip"}
    assert operators(conv(y=grid(point=0), relu=True)) == usual | {"Relu"}
    assert "Transpose" in operators(conv(input_dilation=(2, 1)))
    assert "Transpose" not in operators(conv(input_dilation=(1, 2)))


def test_codes_of_floats_and_floats_of_codes():
    for of in (X, grid(0.1, 3, 2, 90)):
        same(ir.Quantize("step", "x", of), inputs(20, (4,)) * 3, gives=of)
        same(ir.Dequantize("step", "x", of), coded(3, 7))


def test_a_table_and_a_table_of_channels():
    one = np.arange(256, dtype=np.uint8)[::-1].copy()
    same(ir.Table("step", "x", "f", one, X, Y), IMAGE, gives=Y)
    many = np.stack([np.roll(one, shift) for shift in (0, 3, 9, 27)])
    for x in (IMAGE, coded(3, 4), coded(2, 4, 5)):
        same(ir.Table("step", "x", "f", many, X, Y), x, gives=Y)


def test_a_relu_is_a_clamp_unless_no_code_is_below_zero():
    for of in (grid(), grid(point=0)):
        step = ir.Relu("step", "x", of)
        ((_, found),), _ = in_graph(made_of(step), IMAGE, grid=of)
        assert np.array_equal(found, IMAGE.numpy().clip(int(of.zero_point)))
    x = Tensor("x", ("n",), grid(point=0))
    assert codes.relu(Graph(), ir.Relu("step", "x", grid(point=0)), {"x": x}) is x


BROADCAST = [
    ((2, 4, 7, 6), (2, 4, 7, 6)),
    ((2, 4, 7, 6), (2, 4, 1, 1)),
    ((2, 4, 1, 1), (2, 4, 7, 6)),
    ((7, 1), (4, 1, 6)),
]


@pytest.mark.parametrize("shapes", BROADCAST, ids=str)
def test_sums_and_products(shapes):
    a, b = (coded(*shape, seed=seed) for seed, shape in enumerate(shapes))
    other = grid(0.011, 17)
    for y in (Y, grid(0.02, 0), grid(0.05, 60, 9, 200)):
        for relu in (False, True):
            same(ir.Add("step", "a", "b", X, other, y, relu), a, b, gives=y)
        same(ir.Mul("step", "a", "b", X, other, y), a, b, gives=y)
    same(ir.Add("step", "a", "a", X, X, Y, False), a, gives=Y)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_codes_are_joined(axis):
    a, b = coded(2, 3, 4), coded(2, 3, 4, seed=1)
    for others in ((X, X), (X, grid(0.05, 7)), (grid(0.03, 7), X), (grid(0.05, 100), grid(0.05, 100))):
        same(ir.Concat("step", ("a", "b"), others, X, axis), a, b, gives=X)


def test_joining_codes_of_one_grid_copies_them():
    def operators(*grids):
        g, x = Graph(), Tensor("x", (2, 3), X)
        codes.concat(g, ir.Concat("step", ("x", "x"), grids, X, 0), {"x": x})
        return [node.op_type for node in g.nodes]

    assert operators(X, grid()) == ["Concat"]
    assert operators(X, grid(point=1)) == operators(grid(0.5), X) != ["Concat"]


POOLS = [((2, 3), (2, 1), (1, 0)), ((3, 3), (2, 2), (1, 1)), ((1, 2), (3, 2), (0, 0)), ((3, 2), (1, 3), (0, 1))]


@pytest.mark.parametrize("kernel, stride, padding", POOLS)
def test_windows_of_codes(kernel, stride, padding):
    """Of which the last may end outside."""
    for ceil in (False, True):
        same(ir.MaxPool("step", "x", kernel, stride, padding, (1, 1), ceil), IMAGE, open_only=ceil, gives=X)
        for counted in (False, True):
            for of in (X, grid(0.2, 0), grid(0.03, 100, 0, 180)):
                x = coded(2, 4, 7, 6, low=of.qmin, high=of.qmax + 1)
                same(ir.AvgPool("step", "x", of, kernel, stride, padding, ceil, counted), x, open_only=ceil, gives=of)
    same(ir.MaxPool("step", "x", (2, 2), (1, 2), (0, 1), (3, 2), False), IMAGE, gives=X)


@pytest.mark.parametrize("make", [
    lambda: ir.MaxPool("step", "x", (2,), (1,), (0,), (1,), False),
    lambda: ir.AvgPool("step", "x", X, (2, 2, 2), (1, 1, 1), (0, 0, 0), False, True),
])  # fmt: skip
def test_windows_need_a_batch_axis(make):
    with pytest.raises(quantspec.UnsupportedError, match=exactly("pooling without a batch axis")):
        in_graph(made_of(make()), IMAGE, grid=X)


@pytest.mark.parametrize("positions", [1, 3])
def test_a_convolution_needs_a_batch_axis(positions):
    with pytest.raises(quantspec.UnsupportedError, match=exactly("a convolution without a batch axis")):
        in_graph(made_of(conv(positions)), IMAGE, grid=X)


@pytest.mark.parametrize("axes", [(2, 3), (-1,), (1, -2), (0,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_means(axes, keep):
    for of in (X, grid(0.2, 0), grid(0.03, 100, 0, 180)):
        x = coded(2, 4, 7, 6, low=of.qmin, high=of.qmax + 1)
        same(ir.Mean("step", "x", of, axes, keep), x, gives=of)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (7, 6), (9, 5), (None, 2), (5, None)], ids=str)
def test_averages_of_parts(size):
    for of in (X, grid(0.2, 0), grid(0.03, 100, 0, 180)):
        x = coded(2, 4, 7, 6, low=of.qmin, high=of.qmax + 1)
        same(ir.AdaptiveAvgPool("step", "x", of, size), x, gives=of)
    same(ir.AdaptiveAvgPool("step", "x", X, (4,)), coded(2, 4, 7), gives=X)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_whose_activations_are_quantized_as_they_come(rows, reduced, bias):
    b = np.linspace(-3, 3, 3, dtype=np.float32) if bias else None
    for axis in (0, None):
        step = ir.LinearDynamic("step", "x", "layer", weights(3, 5), b, of_weights(3, axis), reduced, rows)
        x = inputs(4, (5,))
        for batch in (x, inputs(2, (3, 5), 7) * 100, x.abs(), -x.abs(), 0 * x):
            same(step, batch)


def test_a_dynamic_layers_weights_are_its_own():
    g, x = Graph(), Tensor("x", ("n", 5))
    for name in ("a", "b"):
        codes.linear_dynamic(g, ir.LinearDynamic(name, "x", name, weights(3, 5), None, of_weights(3), False), {"x": x})
    assert [tensor.data_type for tensor in g.initializers].count(onnx.TensorProto.INT8) == 4


@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_weights_alone(bias):
    """In floats, by two libraries: each misses a sum of five products below 18 in all by 5 * 2^-24 of that at most."""
    b = np.linspace(-3, 3, 3, dtype=np.float32) if bias else None
    for axis in (0, None):
        of = of_weights(3, axis)
        step = ir.LinearWeight("step", "x", "layer", weights(3, 5), b, of)
        values = torch.from_numpy(of.dequantize(step.weight)), None if b is None else torch.from_numpy(b)
        for x in (inputs(4, (5,)), inputs(2, (3, 5), 7)):
            agrees(made_of(step), lambda x, values=values: linear_of(x, *values), x, bound={"rtol": 1e-6, "atol": 1e-5})


@pytest.mark.parametrize("axis", [0, None])
def test_rows_of_a_table(axis):
    step = ir.Embedding("step", "x", "layer", weights(9, 4), of_weights(9, axis))
    for x in (torch.tensor([[1, 8, 0], [3, 3, 2]]), torch.tensor([4, 5])):
        same(step, x)


def test_a_bag_has_no_operator():
    step = ir.Embedding("step", "x", "layer", weights(9, 4), of_weights(9), bag="sum")
    with pytest.raises(quantspec.UnsupportedError, match=exactly("an embedding bag")):
        in_graph(made_of(step), torch.tensor([1]))


BILINEAR = [
    (None, (9, 5), None, False, False), (None, (9, 5), None, False, True), (None, (7, 1), None, False, True),
    (None, (1, 1), None, False, False), (None, None, (2.0, 1.5), True, False), (None, None, (2.0, 0.75), False, False),
    (None, None, (0.5, 3.0), True, True), (None, None, (1.7, 0.4), False, True),
]  # fmt: skip


@pytest.mark.parametrize("options", BILINEAR, ids=str)
def test_between_neighbours(options):
    for of in (X, grid(0.2, 0), grid(0.03, 100, 0, 180)):
        x = coded(2, 4, 7, 6, low=of.qmin, high=of.qmax + 1)
        # By a factor that is no whole number, an open length is a name.
        same(ir.Bilinear("step", "x", of, *options), x, gives=of)


def test_between_neighbours_in_the_size_of_another_value():
    other = coded(1, 2, 10, 4)
    for corners in (False, True):
        same(ir.Bilinear("step", "x", X, "other", None, None, False, corners), IMAGE, other, gives=X)


@given(st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_any_lengths_between_neighbours(length, other, corners):
    step = ir.Bilinear("step", "x", X, None, (other, length), None, False, corners)
    same(step, coded(1, 1, length, 3), gives=X)


@given(st.integers(4, 9), st.integers(1, 24), st.booleans(), st.booleans())
def test_any_factor_between_neighbours(length, quarters, exact, corners):
    factor = quarters / 4
    step = ir.Bilinear("step", "x", X, None, None, (factor, 1.0), exact, corners)
    same(step, coded(1, 1, length, 3), gives=X)


def test_positions_by_a_quotient_of_long_numbers_need_known_lengths():
    step = ir.Bilinear("step", "x", X, None, None, (1.0, math.pi / 3), True, False)
    message = f"bilinear interpolation by {math.pi / 3}, a quotient of long numbers, of lengths that are not known"
    with pytest.raises(quantspec.UnsupportedError, match=exactly(message)):
        in_graph(made_of(step), IMAGE, grid=X)
    ((_, found),), _ = in_graph(made_of(step), IMAGE, grid=X, known=True)
    reference = run_step(step, Values({"x": IMAGE.numpy()}, refuse=False), {}, dialect("onnx"))
    assert np.array_equal(found, reference)
