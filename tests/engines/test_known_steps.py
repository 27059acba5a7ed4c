"""Which steps the kernels know by themselves, which together with what is around them, and how calls are read."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from programs import GRID, OF_WEIGHTS, codes
from quantspec.engines.compiled.lowering import (
    argument,
    flattens,
    is_sum,
    order_of,
    readers,
    turns,
)
from quantspec.engines.compiled.selection import compilable, is_known, is_relu
from quantspec.ir import program as ir
from quantspec.numerics.affine import QParams

X = ir.Ref("x")


def conv(*shape, stride=1, spread=1, groups=1):
    axes = len(shape) - 2
    places = (stride,) * axes, ((0, 0),) * axes, (1,) * axes, (spread,) * axes
    return ir.Conv("y", "x", "conv", codes(*shape), None, GRID, OF_WEIGHTS, GRID, False, *places, groups)


def linear(name="y", x="x", *, real=False, outputs=4, inputs=4):
    return ir.Linear(name, x, name, codes(outputs, inputs), None, GRID, OF_WEIGHTS, None if real else GRID, False)


def dynamic(name="y", x="x", *, outputs=4, inputs=4):
    return ir.LinearDynamic(name, x, name, codes(outputs, inputs), None, OF_WEIGHTS, False)


def weight_only(zero_points):
    grid = QParams(np.full(4, 0.01, np.float32), np.array(zero_points, np.int32), -128, 127, 0)
    return ir.LinearWeight("y", "x", "fc", codes(4, 3), None, grid)


def call(name, *args, target="torch.flatten", kind="function", **kwargs):
    return ir.Call(name, kind, target, args, kwargs, "")


def move(*args, target="torch.flatten", **kwargs):
    return ir.Move("y", "function", target, args, kwargs, GRID)


KNOWN = {
    "quantize": ir.Quantize("y", "x", GRID),
    "dequantize": ir.Dequantize("y", "x", GRID),
    "table": ir.Table("y", "x", "any", np.zeros(256, np.uint8), GRID, GRID),
    "relu of codes": ir.Relu("y", "x", GRID),
    "sum": ir.Add("y", "x", "b", GRID, GRID, GRID, False),
    "product": ir.Mul("y", "x", "b", GRID, GRID, GRID),
    "concatenation": ir.Concat("y", ("x", "b"), (GRID, GRID), GRID, 1),
    "interpolation": ir.Bilinear("y", "x", GRID, None, (3, 3), None, False, False),
    "linear": linear(),
    "dynamic": dynamic(),
    "weights alone": weight_only([0, 0, 0, 0]),
    "convolution of a line": conv(4, 4, 3),
    "convolution of volumes": conv(4, 4, 3, 3, 3),
    "depthwise": conv(4, 1, 3, 3, groups=4),
    "of one channel": conv(1, 1, 3, 3, 3),
    "two outputs of each channel": conv(8, 1, 3, 3, 3, groups=4),
    "with strides": conv(4, 4, 3, 3, stride=2),
    "transposed": conv(4, 4, 3, 3, spread=2),
    "maxima of volumes": ir.MaxPool("y", "x", (2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1), False),
    "means of windows of volumes": ir.AvgPool("y", "x", GRID, (2, 2, 2), (1, 1, 1), (0, 0, 0), False, True),
    "means to a size of volumes": ir.AdaptiveAvgPool("y", "x", GRID, (2, 2, 2)),
    "mean over positions": ir.Mean("y", "x", GRID, (2, 3), False),
    "mean over the last axis": ir.Mean("y", "x", GRID, (-1,), False),
    "flatten": move(X, 1),
    "channels last": move(X, (0, 2, 3, 1), target="torch.permute"),
}
UNKNOWN = {
    "linear without outputs": linear(outputs=0),
    "dynamic without inputs": dynamic(inputs=0),
    "weights alone with zero points": weight_only([0, 0, 1, 0]),
    "convolution without outputs": conv(0, 4, 3, 3),
    "depthwise of volumes": conv(4, 1, 3, 3, 3, groups=4),
    "transposed with strides": conv(4, 4, 3, 3, stride=2, spread=2),
    "maxima over four axes": ir.MaxPool("y", "x", (2,) * 4, (1,) * 4, (0,) * 4, (1,) * 4, False),
    "means of windows over four axes": ir.AvgPool("y", "x", GRID, (2,) * 4, (1,) * 4, (0,) * 4, False, True),
    "means to a size of four axes": ir.AdaptiveAvgPool("y", "x", GRID, (2,) * 4),
    "mean over samples": ir.Mean("y", "x", GRID, (0, 2), False),
    "mean over channels": ir.Mean("y", "x", GRID, (1,), False),
    "flatten of all axes": move(X),
    "other order": move(X, (1, 0), target="torch.permute"),
    "a call": call("y", X, 1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_steps_that_kernels_know(name):
    assert is_known(KNOWN[name])


@pytest.mark.parametrize("name", UNKNOWN)
def test_steps_that_kernels_do_not_know(name):
    assert not is_known(UNKNOWN[name])


@pytest.mark.parametrize("target", ["torch.flatten", "flatten"])
@pytest.mark.parametrize(("args", "kwargs", "expected"), [
    ((X, 1), {}, True),
    ((X, 1, -1), {}, True),
    ((X,), {"start_dim": 1}, True),
    ((X, 1), {"end_dim": -1}, True),
    ((X, 1, 2), {}, False),
    ((X, 1), {"end_dim": 1}, False),
    ((X, 0), {}, False),
    ((X,), {}, False),
    ((X, 2), {}, False),
    ((), {"input": X, "start_dim": 1}, False),
    ((1, 1), {}, False),
])  # fmt: skip
def test_flattening_from_axis_1_on_is_read_from_calls(target, args, kwargs, expected):
    assert flattens(call("y", *args, target=target, **kwargs)) == expected
    assert not flattens(call("y", *args, target="unflatten", **kwargs))


def test_the_order_of_axes_may_be_named():
    assert order_of(call("y", X, target="permute", dims=(0, -1, 1))) == (0, 2, 1)


@pytest.mark.parametrize(("args", "expected"), [
    ((X, 0, 1), (0, 1)),
    ((X, (2, 0, 1)), (2, 0, 1)),
    ((X, [-1, 0, 1]), (2, 0, 1)),
    ((X, 0, True), ()),
    ((X, (0, ir.Ref("n"))), ()),
    ((X,), ()),
    ((1, 0, 1), ()),
    ((), ()),
])  # fmt: skip
def test_the_order_of_axes_is_read_from_calls(args, expected):
    for target in ("torch.permute", "permute"):
        assert order_of(call("y", *args, target=target)) == expected
    assert order_of(call("y", *args, target="torch.transpose")) == ()


@pytest.mark.parametrize(("order", "expected"), [
    ((0, 2, 1), None), ((0, 1, 2, 3), None), ((0, 3, 2, 1), None), ((0, 3, 1, 2), (True, 4)),
    ((0, 2, 3, 1), (False, 4)),
    ((0, 4, 1, 2, 3), (True, 5)), ((0, 2, 3, 4, 1), (False, 5)), ((0, 5, 1, 2, 3, 4), None), ((0, 2, 3, 4, 5, 1), None),
])  # fmt: skip
def test_channels_are_put_first_or_last_of_four_axes_or_five(order, expected):
    assert turns(move(X, order, target="torch.permute")) == expected


@pytest.mark.parametrize(("step", "expected"), [
    (call("y", X, ir.Ref("b"), target="operator.add"), True),
    (call("y", X, ir.Ref("b"), target="torch.add"), True),
    (call("y", X, ir.Ref("b"), target="add", kind="method"), True),
    (call("y", X, ir.Ref("b"), target="add"), False),
    (call("y", X, ir.Ref("b"), target="torch.add", kind="method"), False),
    (call("y", X, ir.Ref("b"), target="torch.add", alpha=2), False),
    (call("y", X, target="torch.add"), False),
    (call("y", X, ir.Ref("b"), ir.Ref("c"), target="torch.add"), False),
    (call("y", X, 1.0, target="torch.add"), False),
    (ir.Move("y", "function", "torch.add", (X, ir.Ref("b")), {}, GRID), False),
])  # fmt: skip
def test_sums_of_floats_are_read_from_calls(step, expected):
    assert is_sum(step) == expected


def test_the_readers_of_a_value_are_listed_once_for_each_time():
    twice, once = ir.Add("twice", "x", "x", GRID, GRID, GRID, False), ir.Relu("once", "twice", GRID)
    assert readers([twice, once]) == {"x": [twice, twice], "twice": [once]}
    assert argument(call("y", ir.Ref("twice"))) == "twice"


def program(*steps, output=None, callables=None, inputs=("x", "b")):
    given = {("module", "act"): nn.ReLU(), ("module", "gelu"): nn.GELU(), ("function", "torch.relu"): torch.relu}
    return ir.Program("onnx", inputs, {}, steps, output or ir.Ref(steps[-1].name), callables or given)


@pytest.mark.parametrize(("step", "expected"), [
    (call("y", X, target="torch.relu"), True),
    (call("y", X, target="torch.nn.functional.relu"), True),
    (call("y", X, target="relu", kind="method"), True),
    (call("y", X, target="torch.nn.functional.relu", inplace=False), True),
    (call("y", X, target="torch.nn.functional.relu", inplace=True), False),
    (call("y", X, target="act", kind="module"), True),
    (call("y", X, target="gelu", kind="module"), False),
    (call("y", X, target="other", kind="module"), False),
    (call("y", X, target="torch.nn.functional.relu6"), False),
    (call("y", 1.0, target="torch.relu"), False),
    (call("y", target="torch.relu", input=X), False),
    (call("y", X, True, target="torch.nn.functional.relu"), False),
])  # fmt: skip
def test_a_relu_of_floats_is_read_from_calls(step, expected):
    assert is_relu(step, program(step)) == expected


def relu(name, x):
    return call(name, ir.Ref(x), target="torch.relu")


def added(name, a, b):
    return call(name, ir.Ref(a), ir.Ref(b), target="operator.add")


LAYER, RELU, OTHER = dynamic("layer", "x"), relu("y", "layer"), call("other", ir.Ref("b"), target="torch.neg")
TOGETHER = {
    "a ReLU behind its layer": ((LAYER, RELU), {"layer", "y"}),
    "a ReLU that is a module": ((LAYER, call("y", ir.Ref("layer"), target="act", kind="module")), {"layer", "y"}),
    "a ReLU of what came in": ((LAYER, relu("y", "x")), {"layer"}),
    "a ReLU that is not the only reader": ((LAYER, RELU, dynamic("z", "layer")), {"layer", "z"}),
    "a ReLU behind other layers": ((LAYER, dynamic("z", "x"), RELU), {"layer", "z", "y"}),
    "a ReLU apart from its layer": ((LAYER, OTHER, RELU), {"layer"}),
    "a ReLU of codes' layer": ((linear("layer", real=True), RELU), {"layer"}),
    "a flatten before a layer": ((call("flat", X, 1), dynamic("y", "flat")), {"flat", "y"}),
    "a flatten that nothing reads": ((call("flat", X, 1), dynamic("y", "x")), {"flat", "y"}),
    "a flatten of what is computed": ((LAYER, call("flat", ir.Ref("layer"), 1), dynamic("y", "flat")), {"layer", "y"}),
    "a flatten that others read": ((call("flat", X, 1), dynamic("z", "flat"), relu("y", "flat")), {"z"}),
    "a flatten of other axes": ((call("flat", X, 2), dynamic("y", "flat")), {"y"}),
    "a sum behind its layer": ((linear("layer", real=True), added("y", "layer", "b")), {"layer", "y"}),
    "a sum whose second is its layer": ((linear("layer", real=True), added("y", "b", "layer")), {"layer", "y"}),
    "a sum of a layer with itself": ((linear("layer", real=True), added("y", "layer", "layer")), {"layer"}),
    "a sum behind a layer of codes": ((linear("layer"), added("y", "layer", "b")), {"layer"}),
    "a sum behind a dynamic layer": ((LAYER, added("y", "layer", "b")), {"layer"}),
    "a sum with what is made in the same run": (
        (LAYER, linear("real", real=True), added("y", "real", "layer")), {"layer", "real"},
    ),
    "a sum apart from its layer": ((linear("layer", real=True), OTHER, added("y", "layer", "b")), {"layer"}),
    "a sum that is not the only reader": (
        (linear("layer", real=True), added("y", "layer", "b"), relu("z", "layer")), {"layer"},
    ),
    "what follows a sum": (
        (LAYER, linear("real", real=True), added("y", "real", "b"), relu("z", "layer")), {"layer", "real", "y"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOGETHER)
def test_what_kernels_know_together_with_what_is_around_it(name):
    steps, expected = TOGETHER[name]
    assert compilable(program(*steps)) == expected


def test_what_is_given_out_takes_no_part_in_what_reads_it():
    both = (ir.Ref("layer"), ir.Ref("y"))
    assert compilable(program(LAYER, RELU, output=both)) == {"layer"}
    real = linear("layer", real=True)
    assert compilable(program(real, added("y", "layer", "b"), output=both)) == {"layer"}


def test_what_cannot_be_packed_is_not_known_nor_what_needs_it():
    assert compilable(program(LAYER, RELU), {"layer"}) == set()
    real = linear("layer", real=True)
    assert compilable(program(real, added("y", "layer", "b")), {"layer"}) == set()
    assert compilable(program(LAYER, replace(LAYER, name="y")), {"y"}) == {"layer"}
