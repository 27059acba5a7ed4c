"""Operations in float as operators of ONNX: torch's, with its defaults, and true to what is known of lengths."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_graph import agrees, in_graph
from torch import nn
from torch.nn import functional as F

import quantspec
from networks import inputs
from quantspec.onnx_export.builder import Graph, Tensor, named
from quantspec.onnx_export.float_layers import affine
from quantspec.onnx_export.float_ops import FUNCTIONS, MODULES, to_float
from told import exactly

# Sums of up to 60 products in float32 by two libraries: each misses the exact sum by at most 60 * 2^-24 of the largest
# partial sum, both together by 7e-6 of it, and so does what is computed from them.
SUMS = {"rtol": 1e-5, "atol": 2e-6}
IMAGES = {1: inputs(2, (4, 9)), 2: inputs(2, (4, 7, 9)), 3: inputs(2, (4, 5, 7, 6))}  # by number of positions
X = IMAGES[2]


def of_module(module):
    return lambda g, x: MODULES[type(module)](g, module, x)


def of_function(name, *args, **kwargs):
    return lambda g, *tensors: FUNCTIONS[name](g, *tensors, *args, **kwargs)


def learned(module):
    """A module in evaluation mode whose parameters and statistics are not those that it begins with."""
    generator = torch.Generator().manual_seed(1)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return module.eval()


def classes(name):
    return [(positions, getattr(nn, f"{name}{positions}d")) for positions in (1, 2, 3)]


POOLS = [
    {"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": 1},
    {"kernel_size": 2, "stride": 3}, {"kernel_size": 5, "padding": 2},
]  # fmt: skip
OF_MAX = [*POOLS, {"kernel_size": 2, "dilation": 3}, {"kernel_size": 2, "stride": 3, "ceil_mode": True}]
OF_AVERAGE = [*POOLS, {"kernel_size": 3, "padding": 1, "count_include_pad": False}]


@pytest.mark.parametrize("positions, kind", classes("MaxPool"))
@pytest.mark.parametrize("options", OF_MAX, ids=str)
def test_maxima_of_windows_are_torchs(positions, kind, options):
    module, function = kind(**options), getattr(F, f"max_pool{positions}d")
    if positions == 3 and options["kernel_size"] == 5:
        return
    known = not options.get("ceil_mode")  # of windows that may end outside no number is worked out
    agrees(of_module(module), module, IMAGES[positions], open_only=not known)
    made = of_function(f"max_pool{positions}d", **options)
    agrees(made, lambda x: function(x, **options), IMAGES[positions], open_only=not known)


@pytest.mark.parametrize("positions, kind", classes("AvgPool"))
@pytest.mark.parametrize("options", OF_AVERAGE, ids=str)
def test_averages_of_windows_are_torchs(positions, kind, options):
    module, function = kind(**options), getattr(F, f"avg_pool{positions}d")
    agrees(of_module(module), module, IMAGES[positions], bound=SUMS)
    made = of_function(f"avg_pool{positions}d", **options)
    agrees(made, lambda x: function(x, **options), IMAGES[positions], bound=SUMS)


def test_windows_may_have_another_length_on_each_axis():
    kernel, stride, padding, dilation = (2, 3), (1, 2), (1, 0), (2, 1)
    for sizes in ((kernel,), (kernel, stride), (kernel, stride, padding), (kernel, stride, padding, dilation)):
        agrees(of_function("max_pool2d", *sizes), lambda x, sizes=sizes: F.max_pool2d(x, *sizes), X)
        agrees(of_module(nn.MaxPool2d(*sizes)), nn.MaxPool2d(*sizes), X)
    made = of_function("avg_pool2d", kernel, stride, padding)
    agrees(made, lambda x: F.avg_pool2d(x, kernel, stride, padding), X, bound=SUMS)


def test_windows_that_may_end_outside_are_not_taken_to_be_as_many():
    def both(pool):
        return lambda *args: [pool(*args, 2, 3, ceil_mode=ceil) for ceil in (False, True)]

    agrees(both(FUNCTIONS["max_pool2d"]), both(F.max_pool2d), X, open_only=True)


@pytest.mark.parametrize("positions", [1, 2, 3])
def test_pooling_to_one_is_torchs(positions):
    x = IMAGES[positions]
    for kind, bound in (("Max", None), ("Avg", SUMS)):
        module = getattr(nn, f"Adaptive{kind}Pool{positions}d")(1)
        name = f"adaptive_{kind.lower()}_pool{positions}d"
        agrees(of_module(module), module, x, bound=bound)
        agrees(of_function(name, 1), lambda x, name=name: getattr(F, name)(x, 1), x, bound=bound)
        agrees(of_function(name, (1,) * positions), lambda x, name=name: getattr(F, name)(x, 1), x, bound=bound)


MODULES_OF_IMAGES = {
    "prelu": lambda n: nn.PReLU(init=0.3), "prelu of channels": lambda n: learned(nn.PReLU(4)),
    "batch norm": lambda n: learned(getattr(nn, f"BatchNorm{n}d")(4, eps=0.1)),
    "batch norm, bare": lambda n: learned(getattr(nn, f"BatchNorm{n}d")(4, affine=False)),
    "instance norm": lambda n: learned(getattr(nn, f"InstanceNorm{n}d")(4, affine=True, eps=0.1)),
    "instance norm, bare": lambda n: learned(getattr(nn, f"InstanceNorm{n}d")(4)),
    "group norm": lambda n: learned(nn.GroupNorm(2, 4, eps=0.1)),
    "group norm, bare": lambda n: nn.GroupNorm(2, 4, affine=False),
    "local response": lambda n: nn.LocalResponseNorm(3, 0.5, 0.9, 2.0),
    "local response, usual": lambda n: nn.LocalResponseNorm(3),
    "glu": lambda n: nn.GLU(1), "softmax": lambda n: nn.Softmax(1), "log softmax": lambda n: nn.LogSoftmax(-1),
    "relu": lambda n: nn.ReLU(), "relu6": lambda n: nn.ReLU6(), "sigmoid": lambda n: nn.Sigmoid(),
    "tanh": lambda n: nn.Tanh(), "silu": lambda n: nn.SiLU(), "hardswish": lambda n: nn.Hardswish(),
    "hardsigmoid": lambda n: nn.Hardsigmoid(), "mish": lambda n: nn.Mish(), "softsign": lambda n: nn.Softsign(),
    "elu": lambda n: nn.ELU(0.7), "leaky": lambda n: nn.LeakyReLU(0.3), "hardtanh": lambda n: nn.Hardtanh(-0.4, 0.7),
    "gelu": lambda n: nn.GELU(), "gelu, tanh": lambda n: nn.GELU("tanh"), "identity": lambda n: nn.Identity(),
    "flatten": lambda n: nn.Flatten(), "flatten from": lambda n: nn.Flatten(0, -2),
    "linear": lambda n: learned(nn.Linear(IMAGES[n].shape[-1], 3)),
    "linear, bare": lambda n: learned(nn.Linear(IMAGES[n].shape[-1], 3, bias=False)),
    "layer norm": lambda n: learned(nn.LayerNorm(IMAGES[n].shape[2:], eps=0.1)),
    "layer norm, bare": lambda n: nn.LayerNorm(IMAGES[n].shape[-1], elementwise_affine=False),
}  # fmt: skip


@pytest.mark.parametrize("positions", IMAGES)
@pytest.mark.parametrize("name", MODULES_OF_IMAGES)
def test_a_module_is_torchs(name, positions):
    module = MODULES_OF_IMAGES[name](positions)
    agrees(of_module(module), module, IMAGES[positions], bound=SUMS)


def test_softmax_of_images_is_over_channels():
    agrees(of_module(nn.Softmax2d()), nn.Softmax2d(), X, bound=SUMS)
    agrees(of_module(nn.Softmax2d()), nn.Softmax2d(), X[0], bound=SUMS)


def test_local_responses_of_images_are_one_operator():
    g = Graph()
    of_module(nn.LocalResponseNorm(3))(g, Tensor("x", ("n", 4, "h", "w")))
    assert [node.op_type for node in g.nodes] == ["LRN"]


def test_rows_are_normalized_and_have_a_slope_for_each_column():
    x = inputs(5, (4,))
    for module in (learned(nn.BatchNorm1d(4)), learned(nn.PReLU(4)), learned(nn.GroupNorm(2, 4))):
        agrees(of_module(module), module, x, bound=SUMS)


CALLS = {
    "relu": [(torch.relu,)], "sigmoid": [(torch.sigmoid,)], "tanh": [(torch.tanh,)], "neg": [(torch.neg,)],
    "abs": [(torch.abs,)], "exp": [(torch.exp,)], "erf": [(torch.erf,)], "hardswish": [(F.hardswish,)],
    "mish": [(F.mish,)], "softsign": [(F.softsign,)], "softplus": [(F.softplus,)], "sin": [(torch.sin,)],
    "cos": [(torch.cos,)], "hardsigmoid": [(F.hardsigmoid,)], "silu": [(F.silu,)], "relu6": [(F.relu6,)],
    "gelu": [(F.gelu,), (F.gelu, {"approximate": "tanh"})],
    "clamp": [(torch.clamp, -0.2, 0.4), (torch.clamp, {"min": 0.1}), (torch.clamp, {"max": 0.1})],
    "clip": [(torch.clip, -0.2, 0.4)], "hardtanh": [(F.hardtanh,), (F.hardtanh, -0.3, 0.2), (F.hardtanh, 0.1)],
    "softmax": [(F.softmax, 1), (F.softmax, {"dim": -2})],
    "log_softmax": [(F.log_softmax, 1), (F.log_softmax, {"dim": -2})],
    "layer_norm": [
        (F.layer_norm, (9,)), (F.layer_norm, (7, 9), None, None, 0.5), (F.layer_norm, [9], inputs(9, (1,))[:, 0]),
        (F.layer_norm, [9], None, inputs(9, (1,))[:, 0]),
    ],
    "mean": [(torch.mean,), (torch.mean, 1), (torch.mean, (1, -1), True), (torch.mean, {"dim": [2], "keepdim": True})],
    "sum": [
        (torch.sum,), (torch.sum, -1), (torch.sum, (0, 2)), (torch.sum, ()), (torch.sum, {"dim": (), "keepdim": True}),
    ],
    "amax": [(torch.amax, 1), (torch.amax, (2, 3), True), (torch.amax,)], "amin": [(torch.amin, (-1,)), (torch.amin,)],
    "glu": [(F.glu, 1)],
    "normalize": [
        (F.normalize,), (F.normalize, 1.0), (F.normalize, 2.0, (1, 2)), (F.normalize, {"dim": -1, "eps": 3.0}),
        (F.normalize, 1.0, [1, 3]),
    ],
    "group_norm": [
        (F.group_norm, 2), (F.group_norm, 4, torch.arange(4.0)), (F.group_norm, 1, None, torch.arange(4.0), 2.0),
    ],
    "local_response_norm": [(F.local_response_norm, 3), (F.local_response_norm, 1, 0.5, 2.0, 3.0)],
    "prelu": [(F.prelu, torch.tensor([0.2])), (F.prelu, torch.arange(4.0))],
    "add": [(torch.add, 0.5), (torch.add, inputs(7, (9,)))], "sub": [(torch.sub, 2)], "mul": [(torch.mul, -1.5)],
    "multiply": [(torch.multiply, 3)], "div": [(torch.div, 3)], "pow": [(torch.pow, 2)],
    "truediv": [(torch.true_divide, inputs(4, (1, 1)) + 9)], "maximum": [(torch.maximum, inputs(7, (1,)))],
    "minimum": [(torch.minimum, inputs(7, (1,)))],
    "eq": [(torch.eq, 0)], "ne": [(torch.ne, 0)], "lt": [(torch.lt, 0.3)], "le": [(torch.le, 0.3)],
    "gt": [(torch.gt, 0.3)], "ge": [(torch.ge, 0.3)],
    "matmul": [(torch.matmul, inputs(9, (3,))), (torch.matmul, inputs(1, (9,))[0]), (torch.matmul, inputs(4, (9, 2)))],
    "linear": [(F.linear, inputs(3, (9,))), (F.linear, inputs(3, (9,)), torch.arange(3.0))],
}  # fmt: skip
EACH = [(name, *call) for name, calls in CALLS.items() for call in calls]


@pytest.mark.parametrize("name, function, args", [(name, function, args) for name, function, *args in EACH])
def test_a_function_is_torchs(name, function, args):
    kwargs = args[-1] if args and isinstance(args[-1], dict) else {}
    args = [each for each in args if each is not kwargs]
    agrees(of_function(name, *args, **kwargs), lambda x: function(x, *args, **kwargs), X, bound=SUMS)


@pytest.mark.parametrize("name", ["sqrt", "log", "rsqrt"])
def test_a_function_of_positive_numbers_is_torchs(name):
    agrees(of_function(name), getattr(torch, name), X.abs() + 0.5, bound=SUMS)


SHAPES = [((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 3, 4, 5), (4, 5)), ((4, 5), (2, 1, 4, 5)), ((3, 1, 5), (2, 1, 4, 5))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["add", "maximum", "div"])
def test_what_is_computed_of_two_has_the_shape_of_both(name, shapes):
    a, b = (torch.arange(1.0, 1 + torch.tensor(shape).prod()).reshape(shape) for shape in shapes)
    agrees(lambda g, a, b: FUNCTIONS[name](g, a, b), getattr(torch, name), a, b, bound=SUMS)


def test_a_vector_times_matrices_has_no_rows():
    row, matrices = inputs(1, (7,))[0], inputs(2, (4, 7, 3))
    agrees(of_function("matmul"), torch.matmul, row, matrices, bound=SUMS)
    agrees(of_function("matmul"), torch.matmul, row, row, bound=SUMS)
    agrees(of_function("bmm"), torch.bmm, inputs(2, (4, 3)), inputs(2, (3, 5)), bound=SUMS)


def test_values_are_chosen_by_conditions():
    def chosen(where, greater, x):
        return where(greater(x, 0.25), x, where(greater(x, -0.5), 2.0, -1.0))

    def made(g, x):
        return chosen(lambda *args: FUNCTIONS["where"](g, *args), lambda a, b: FUNCTIONS["gt"](g, a, b), x)

    agrees(made, lambda x: chosen(torch.where, torch.gt, x).float(), X)


@pytest.mark.parametrize(
    "ends",
    [
        {"min": torch.arange(4.0)[:, None, None] / 4 - 0.5},
        {"max": torch.linspace(-1, 1, 9)},
        {"min": torch.tensor(-0.3), "max": torch.linspace(-0.2, 1, 9)},
        {"min": -0.25, "max": torch.linspace(0, 1, 9)},
    ],
    ids=lambda ends: "-".join(ends),
)
def test_ends_to_clamp_to_may_be_tensors(ends):
    agrees(
        of_function("clamp", **ends),
        lambda x: torch.clamp(x, **{name: torch.as_tensor(end) for name, end in ends.items()}),
        X,
    )


def test_ends_to_clamp_to_may_be_computed():
    agrees(
        lambda g, x, y: FUNCTIONS["clamp"](g, x, max=y), lambda x, y: torch.clamp(x, max=y), X, X.abs().mean(1, True)
    )


def test_constants_may_be_computed_with_what_is_not():
    weight = inputs(3, (9,))
    linear, norm = FUNCTIONS["linear"], FUNCTIONS["layer_norm"]
    agrees(lambda g, b: linear(g, X, weight, b), lambda b: F.linear(X, weight, b), torch.arange(3.0), bound=SUMS)
    bias = torch.arange(9.0)
    agrees(lambda g, b: norm(g, X, (9,), None, b), lambda b: F.layer_norm(X, (9,), None, b), bias, bound=SUMS)


def test_the_weight_of_a_linear_layer_is_named():
    g = Graph()
    FUNCTIONS["linear"](g, Tensor("x", ("n", 9)), inputs(3, (9,)))
    assert [tensor.name for tensor in g.initializers] == ["weight"]


def test_truth_values_become_numbers():
    agrees(lambda g, x: to_float(g, FUNCTIONS["gt"](g, x, 0.1)), lambda x: (x > 0.1).float(), X)


def test_indices_are_as_many_as_a_length_says():
    def made(g, x):
        return FUNCTIONS["arange"](g, g.size(x, 2)), FUNCTIONS["lt"](
            g, FUNCTIONS["arange"](g, g.size(x, 3)), g.size(x, 1)
        )

    ((indices, numbers), (_, fewer)), _ = in_graph(made, X)
    assert np.array_equal(numbers, np.arange(7)) and numbers.dtype == np.int64
    assert np.array_equal(fewer, np.arange(9) < 4) and indices.shape == (("x0", 2),)
    agrees(lambda g, x: FUNCTIONS["arange"](g, g.size(x, 1)), lambda x: torch.arange(4), X)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_tensors_are_joined_and_stacked(dim):
    for name in ("cat", "concat", "stack"):
        call = getattr(torch, name)
        made = partial(lambda name, g, *tensors: FUNCTIONS[name](g, tensors, dim), name)
        agrees(made, lambda *tensors, call=call: call(tensors, dim), X, 2 * X, X)
        agrees(lambda g, a, name=name: FUNCTIONS[name](g, [a, X]), lambda a, call=call: call([a, X]), X)
    a, b = inputs(2, (3,)), inputs(4, (3,))
    agrees(lambda g, a, b: FUNCTIONS["cat"](g, (a, b)), lambda a, b: torch.cat((a, b)), a, b)


SUMMED = {
    "bchw,bdhw->bcd": (X, X[:, :3]), "bchw -> cb": (X,), "ij , jk->ik": (X[0, 0], X[0, 1].t()),
    "a,b->ab": (X[0, 0, 0], X[0, 0, 1]), "bchw,bchw->bhc": (X, X.mean(1, keepdim=True)),
}  # fmt: skip


@pytest.mark.parametrize("equation", SUMMED)
def test_sums_over_indices_are_torchs(equation):
    agrees(
        lambda g, *each: FUNCTIONS["einsum"](g, equation, *each), lambda *each: torch.einsum(equation, *each),
        *SUMMED[equation], bound=SUMS,
    )  # fmt: skip


def test_channels_get_a_weight_and_a_bias_or_one_of_them():
    weight, bias = torch.arange(1.0, 5), torch.arange(4.0)
    along = (slice(None), None, None)
    agrees(lambda g, x: affine(g, x, weight, bias), lambda x: x * weight[along] + bias[along], X, bound=SUMS)
    agrees(lambda g, x: affine(g, x, None, bias), lambda x: x + bias[along], X)
    agrees(lambda g, x: affine(g, x, weight, None), lambda x: x * weight[along], X)


Q, K, V = inputs(2, (3, 5, 4)), inputs(2, (3, 5, 4), 1), inputs(2, (3, 5, 6), 2)
ATTENDED = [{}, {"scale": 0.3}, {"scale": -0.7}, {"attn_mask": inputs(5, (5,), 3)}]
# Worked out here, as torch's kernel may not return in a process that was forked.
JOINED = [F.scaled_dot_product_attention(Q, K, V, **options) for options in ATTENDED]


@pytest.mark.parametrize("options, joined", list(zip(ATTENDED, JOINED, strict=True)))
def test_attention_is_torchs(options, joined):
    def made(g, k, v):  # the number of features has to be known
        return FUNCTIONS["scaled_dot_product_attention"](g, constant(g, Q), k, v, **options)

    agrees(made, lambda k, v: joined, K, V, bound=SUMS)


def constant(g, value):
    """A tensor of the graph that is a constant."""
    return Tensor(named(g, value), tuple(value.shape))


REFUSED = {
    "max pooling that returns indices": of_function("max_pool2d", 2, return_indices=True),
    "max pooling that returns indices ": of_module(nn.MaxPool2d(2, return_indices=True)),
    "pooling without a batch axis": of_module(nn.MaxPool3d(2)),
    "pooling without a batch axis ": of_module(nn.AvgPool1d(2)),
    "average pooling in float with ceil_mode, or divisor_override": of_function("avg_pool2d", 2, ceil_mode=True),
    "average pooling in float with ceil_mode, or divisor_override ": of_function("avg_pool2d", 2, divisor_override=3),
    "average pooling in float with ceil_mode, or divisor_override  ": of_module(nn.AvgPool2d(2, divisor_override=3)),
    "adaptive maximum pooling in float to 2": of_function("adaptive_max_pool2d", 2),
    "adaptive maximum pooling in float to (1, 3)": of_module(nn.AdaptiveMaxPool2d((1, 3))),
    "adaptive maximum pooling in float to 1": of_function("adaptive_max_pool2d", 1, return_indices=True),
    "adaptive maximum pooling in float to 1 ": of_module(nn.AdaptiveMaxPool2d(1, return_indices=True)),
    "adaptive average pooling in float to (2, 2)": of_function("adaptive_avg_pool2d", 2),
    "adaptive average pooling in float to (1, None)": of_module(nn.AdaptiveAvgPool2d((1, None))),
    "local response normalization over an even number of channels": of_module(nn.LocalResponseNorm(4)),
    "instance normalization with running statistics": of_module(nn.InstanceNorm2d(4, track_running_stats=True)),
    "instance normalization without a batch axis": of_module(nn.InstanceNorm3d(4)),
    "BatchNorm2d, which has no ONNX form": of_module(nn.BatchNorm2d(4, track_running_stats=False)),
    "a softmax that chooses its axis itself": of_module(nn.Softmax()),
    "a softmax that chooses its axis itself ": of_function("log_softmax"),
    "a norm of order 3.0": of_function("normalize", 3.0),
    "einsum of 'b...->b'": lambda g, x: FUNCTIONS["einsum"](g, "b...->b", x),
    "einsum of 'bchw'": lambda g, x: FUNCTIONS["einsum"](g, "bchw", x),
    "a linear layer whose weight is computed": lambda g, x: FUNCTIONS["linear"](g, x, x),
    "attention with a causal mask of its own, or dropout": lambda g, x: attended(g, x, is_causal=True),
    "attention with a causal mask of its own, or dropout ": lambda g, x: attended(g, x, dropout_p=0.1),
    "attention to features whose number is unknown before the network runs": lambda g, x: attended(g, x),
    "a mask that is computed, or of truth values": lambda g, x: attended(g, x, scale=1.0, attn_mask=x),
    "a mask that is computed, or of truth values ": lambda g, x: attended(g, x, scale=1.0, attn_mask=X > 0),
    "a str where a tensor is expected": lambda g, x: FUNCTIONS["add"](g, x, "1"),
    "a NoneType where a tensor is expected": lambda g, x: FUNCTIONS["add"](g, None, x),
}  # fmt: skip


def attended(g, x, **options):
    return FUNCTIONS["scaled_dot_product_attention"](g, x, x, x, **options)


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_operator_is_refused(message):
    with pytest.raises(quantspec.UnsupportedError, match=exactly(message.strip())):
        in_graph(REFUSED[message], X)


@given(st.data())
def test_any_windows_are_torchs(data):
    draw = data.draw
    kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    stride, padding = draw(st.integers(1, 4)), draw(st.integers(0, kernel // 2))
    x = inputs(1, (2, draw(st.integers(dilation * (kernel - 1) + 1, 12))))
    ceil = draw(st.booleans())
    made = of_function("max_pool1d", kernel, stride, padding, dilation, ceil)
    agrees(made, lambda x: F.max_pool1d(x, kernel, stride, padding, dilation, ceil), x, open_only=ceil)
