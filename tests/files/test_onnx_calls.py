"""Calls of a network as operators of ONNX: which are worked out before, which are lengths, and which have no form."""

import operator

import numpy as np
import pytest
import torch
from onnx_graph import agrees, in_graph
from torch import nn
from torch.nn import functional as F

import quantspec
from networks import inputs
from quantspec.ir.float_graph import Conv, Linear
from quantspec.ir.float_run import FloatLayer
from quantspec.ir.program import Call, Ref
from quantspec.ir.rearrange import qualified_name
from quantspec.numerics.affine import QParams
from quantspec.onnx_export.builder import Graph, Size, Tensor
from quantspec.onnx_export.float_ops import call
from told import exactly

# Sums of up to 24 products in float32 by two libraries.
SUMS = {"rtol": 1e-5, "atol": 5e-6}
X = inputs(2, (3, 5, 7))
GRID = QParams(np.array(0.5, np.float32), np.array(7), 0, 255)
OPEN = Tensor("x", ("n", 3, 5))


def called(kind, target, *args, values=None, callee=None, **kwargs):
    """What a call gives in a graph of its own; ``callee``: what is called."""
    step = Call("step", kind, target, args, kwargs, "")
    return call(Graph(), step, {"x": OPEN} | (values or {}), {(kind, target): callee})


def function(of, *args, name=None, **kwargs):
    """A call of a function, in a graph whose input is ``x``."""
    step = Call("step", "function", name or qualified_name(of), args, kwargs, "")
    return lambda g, x: call(g, step, {"x": x}, {("function", step.target): of})


def method(name, *args, **kwargs):
    step = Call("step", "method", name, args, kwargs, "")
    return lambda g, x: call(g, step, {"x": x}, {})


def module(of, value=None):
    step = Call("step", "module", "path", (Ref("x") if value is None else value,), {}, "")
    return lambda g, x: call(g, step, {"x": x}, {("module", "path"): of})


def refused(message):
    return pytest.raises(quantspec.UnsupportedError, match=exactly(message))


def test_functions_and_methods_are_operators():
    agrees(function(torch.relu, Ref("x")), torch.relu, X)
    agrees(function(operator.add, Ref("x"), Ref("x")), lambda x: x + x, X)
    agrees(
        function(F.gelu, Ref("x"), approximate="tanh"), lambda x: F.gelu(x, approximate="tanh"), X, bound=SUMS
    )
    agrees(method("mul", Ref("x"), 2), lambda x: x * 2, X)
    agrees(method("mean", Ref("x"), dim=1), lambda x: x.mean(1), X, bound=SUMS)
    agrees(method("flatten", Ref("x"), 1), lambda x: x.flatten(1), X)
    agrees(function(torch.transpose, Ref("x"), dim0=1, dim1=-1), lambda x: x.transpose(1, -1), X)
    agrees(function(torch.flatten, input=Ref("x"), start_dim=2), lambda x: x.flatten(2), X)
    agrees(module(nn.ReLU()), torch.relu, X)


def test_attributes_are_the_networks():
    held = torch.ones(2)
    assert called("attribute", "scale", callee=held) is held


def test_what_is_computed_of_constants_alone_is_computed_before():
    ones = nn.Parameter(torch.ones(3))
    found = called("function", "torch.cumsum", ones, callee=torch.cumsum, dim=0)
    assert found.tolist() == [1, 2, 3] and not found.requires_grad
    found = called("method", "repeat_interleave", Ref("c"), 2, values={"c": ones})
    assert found.tolist() == [1] * 6 and not found.requires_grad
    assert called("method", "sum", Ref("c"), values={"c": ones}, dim=0, keepdim=True).tolist() == [3]
    assert called("function", "math.sqrt", 4, callee=lambda x: x**0.5) == 2
    assert called("method", "to", Ref("c"), torch.device("cpu"), values={"c": ones}).tolist() == [1, 1, 1]
    found = called("module", "m", Ref("c"), values={"c": ones}, callee=nn.Softmin(0))
    assert found.tolist() == torch.softmax(-ones, 0).tolist() and not found.requires_grad


def test_assertions_are_left_out():
    assert called("function", "torch._assert", Ref("x"), "message", callee=torch._assert) is None


def test_a_constant_may_be_moved_and_computed_with():
    table = inputs(7, (5,), 2)
    agrees(
        function(operator.matmul, Ref("x"), table, name="torch.matmul"), lambda x: x @ table, X, bound=SUMS
    )

    def made(g, x):
        n = g.size(x, 1)
        step = Call("step", "method", "expand", (inputs(1, (7,)), Ref("n"), -1), {}, "")
        return call(g, step, {"n": n}, {})

    ((value, array),), _ = in_graph(made, X)
    assert np.array_equal(array, inputs(1, (7,)).expand(3, -1)) and value.shape == (("x0", 1), 7)


READ = [
    ("size", (), {}),
    ("size", (-1,), {}),
    ("size", (1,), {}),
    ("dim", (), {}),
    ("ndimension", (), {}),
    ("size", (), {"dim": 2}),
]


@pytest.mark.parametrize("name, args, kwargs", READ)
def test_shapes_are_read(name, args, kwargs):
    agrees(method(name, Ref("x"), *args, **kwargs), lambda x: np.ravel(getattr(x, name)(*args, **kwargs)).tolist(), X)


def test_shapes_of_codes_are_read_and_their_values_are_not():
    codes = torch.zeros(2, 3, dtype=torch.uint8)
    agrees(function(getattr, Ref("x"), "shape"), lambda x: list(x.shape), codes, grid=GRID)
    agrees(function(getattr, Ref("x"), "ndim"), lambda x: [2], codes, grid=GRID)
    for made in (function(torch.relu, Ref("x")), method("flatten", Ref("x")), function(getattr, Ref("x"), "device")):
        with refused("a call on codes"):
            in_graph(made, codes, grid=GRID)


def test_items_of_tuples_are_taken():
    pair = (OPEN, torch.ones(2))
    assert called("function", "operator.getitem", Ref("p"), 0, values={"p": pair}) is OPEN
    assert called("function", "operator.getitem", Ref("p"), -1, values={"p": list(pair)}) is pair[1]
    agrees(function(operator.getitem, Ref("x"), (slice(None), 1)), lambda x: x[:, 1], X)


def test_lengths_are_computed_and_compared():
    n = Size("n", "n")
    for name in ("add", "sub", "mul", "floordiv", "mod"):
        assert isinstance(called("function", f"operator.{name}", Ref("n"), 2, values={"n": n}), Size)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):  # for assertions, which are left out
        assert called("function", f"operator.{name}", Ref("n"), 2, values={"n": n}) is None
    with refused("arithmetic of a length and a float"):
        called("function", "operator.mul", Ref("n"), 0.5, values={"n": n})


def test_indices_are_compared_with_lengths():
    def made(g, x):
        step = Call("step", "function", "torch.arange", (Ref("n"),), {}, "")
        values = {"n": g.size(x, 3), "m": g.size(x, 1)}
        values["i"] = call(g, step, values, {})
        return [
            call(g, Call("step", "function", f"operator.{name}", (Ref("i"), Ref("m")), {}, ""), values, {})
            for name in ("eq", "ne", "lt", "le", "gt", "ge")
        ]

    found, _ = in_graph(made, X)
    for name, (value, array) in zip(("eq", "ne", "lt", "le", "gt", "ge"), found, strict=True):
        assert np.array_equal(array, getattr(operator, name)(np.arange(7), 3)) and value.rank == 1


NO_FORM = {
    "torch.cumsum, which has no ONNX form": ("function", "torch.cumsum", (Ref("x"), 1), {}),
    "builtins.getattr, which has no ONNX form": ("function", "builtins.getattr", (Ref("x"), "device"), {}),
    "cumsum, which has no ONNX form": ("method", "cumsum", (Ref("x"), 1), {}),
    "torchvision.ops.relu, which has no ONNX form": ("function", "torchvision.ops.relu", (Ref("x"),), {}),
    "torch.repeat_interleave, which has no ONNX form": ("function", "torch.repeat_interleave", (Ref("x"), 2), {}),
    "operator.truediv of a length": ("function", "operator.truediv", (Ref("x"), Ref("n")), {}),
    "torch.clamp of a length": ("function", "torch.clamp", (Ref("x"),), {"max": Ref("n")}),
    "a module with more than one input": ("module", "m", (Ref("x"), Ref("x")), {}),
    "a module with more than one input ": ("module", "m", (Ref("x"),), {"y": 1}),
    "Softmin, which has no ONNX form": ("module", "m", (Ref("x"),), {}),
    "flatten with these arguments: flatten() got an unexpected keyword argument 'start'": (
        "function", "torch.flatten", (Ref("x"),), {"start": 1},
    ),
    "a dict where a tensor is expected": ("function", "torch.add", (Ref("x"), {}), {}),
}  # fmt: skip


@pytest.mark.parametrize("message", NO_FORM)
def test_what_has_no_operator_is_told_by_its_name(message):
    kind, target, args, kwargs = NO_FORM[message]
    with refused(message.strip()):
        called(kind, target, *args, values={"n": Size("n", "n")}, callee=nn.Softmin(1), **kwargs)


def test_arguments_that_an_operator_does_not_take_are_told():
    with pytest.raises(quantspec.UnsupportedError, match=r"\Atorch\.add with these arguments: .*'alpha'\Z"):
        called("function", "torch.add", Ref("x"), Ref("x"), alpha=2)


def test_values_in_lists_slices_and_keywords_are_found():
    n = Size("n", "n")
    for args, kwargs in ((([Ref("x")],), {}), ((torch.ones(2),), {"other": Ref("x")})):
        with refused("torch.cumsum, which has no ONNX form"):  # and not computed of constants
            called("function", "torch.cumsum", *args, **kwargs)
    for part in (slice(Ref("n"), None), slice(None, Ref("n"))):
        found = called("function", "operator.getitem", torch.ones(9), part, values={"n": n})
        assert isinstance(found, Tensor) and found.rank == 1


# --- layers that stay in float


def float_conv(padding=((1, 0), (0, 2)), input_dilation=(1, 1), bias=True):
    weight = inputs(6, (2, 3, 2), 5).numpy()
    b = np.arange(6, dtype=np.float32) if bias else None
    return FloatLayer(Conv("c", "x", "layer", weight, b, (2, 1), padding, (1, 2), input_dilation, 2))


IMAGE = inputs(2, (4, 7, 9), 1)


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_in_float_is_torchs(bias):
    layer = float_conv(bias=bias)
    agrees(module(layer), layer, IMAGE, bound=SUMS, open_only=True)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_in_float_is_torchs(bias):
    b = np.arange(3, dtype=np.float32) if bias else None
    layer = FloatLayer(Linear("l", "x", "layer", inputs(3, (7,)).numpy(), b))
    agrees(module(layer), layer, X, bound=SUMS)


def test_a_convolution_that_is_spread_or_cut_or_has_no_batch_is_refused():
    for layer in (float_conv(input_dilation=(1, 2)), float_conv(padding=((0, 0), (1, -1)))):
        with refused("a transposed convolution in float"):
            in_graph(module(layer), IMAGE)
    with refused("a convolution without a batch axis"):
        in_graph(module(float_conv()), IMAGE[0])
