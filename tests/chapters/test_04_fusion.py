"""Chapter 4: fusion. The oracle is the chapter's own definitions."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.capture import tracer
from quantspec.ir import float_graph as floats
from quantspec.ir import float_run
from quantspec.ir.program import Linear
from quantspec.numerics import accuracy, folding, integer
from quantspec.numerics.affine import QParams, qparams
from quantspec.ptq import fusion

spec = chapters.load("fusion")
ULP, TERMS = Fraction(1, 2**24) * (1 + Fraction(1, 2**20)), Fraction(1, 2**48)


def captured(model):
    return tracer.capture(model)


def layers_of(graph):
    return [node for node in graph.nodes if isinstance(node, floats.Layer)]


def kinds(graph):
    return [type(node).__name__ for node in graph.nodes]


@clause("FUS-RELU", "FUS-RANGE")
@given(networks.perceptrons())
def test_a_fused_network_is_the_unfused_one_at_the_fused_qparams(case):
    model, calibration, x = case
    q = qs.quantize(model, calibration, dialect="exact")
    seen = {}
    q.compiled({q.program.inputs[0]: x}, lambda step, value: seen.setdefault(step.name, value))
    for step in q.program.layers:
        plain = integer.linear(seen[step.x], step.x_qparams, step.weight, step.w_qparams, step.bias, step.y_qparams)
        expected = integer.relu(plain, step.y_qparams.zero_point) if step.relu else plain
        assert seen[step.name].tolist() == expected.tolist()


@clause("FUS-RELU")
@pytest.mark.parametrize("zero_point", [0, 1, 127, 255])
def test_the_clamp_of_a_fused_layer_is_at_the_zero_point(zero_point):
    y = QParams(1.0, zero_point, 0, 255)
    grid, one = QParams(1.0, 0, 0, 255), QParams(1.0, 0, -128, 127)
    got = integer.linear(np.uint8([[0], [1], [5]]), grid, np.int8([[-1]]), one, None, y, relu=True)
    assert got.tolist() == [[zero_point]] * 3
    # The bias counts before the ReLU.
    layer = np.uint8([[0], [1], [5]]), grid, np.int8([[-1]]), one, np.float32([3]), y
    expected = [[min(zero_point + value, 255)] for value in (3, 2, 0)]
    assert (
        integer.linear(*layer, relu=True).tolist()
        == integer.relu(integer.linear(*layer), zero_point).tolist()
        == expected
    )


@clause("FUS-RANGE")
def test_the_range_of_a_fused_layer_is_observed_behind_its_relu():
    model, x = networks.seeded(networks.Perceptron), networks.inputs()
    with torch.no_grad():
        before = model.first(x).numpy()
    for fuse, seen in ((True, np.maximum(before, 0)), (False, before)):
        step = qs.quantize(model, [x], fuse=fuse, dialect="exact").program.layers[0]
        expected = qparams(seen.min(), seen.max(), qmin=0, qmax=255, symmetric=False)
        assert step.relu is fuse
        assert (step.y_qparams.scale, step.y_qparams.zero_point) == (expected.scale, expected.zero_point)


@st.composite
def normalizations(draw):
    """Arguments of fold_batch_norm for a weight of 2 to 5 axes."""
    outputs = draw(st.integers(1, 4))
    shape = (outputs, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    generator = draw(draws.seeds())
    size = draw(st.sampled_from([1e-3, 1.0, 1e3]))

    def some(*dims):
        return (generator.normal(size=dims) * size).astype(np.float32)

    var = np.abs(some(outputs)) * draw(st.sampled_from([0.0, 1e-6, 1.0]))
    bias = draw(st.sampled_from([None, some(outputs)]))
    return (
        some(*shape), bias, some(outputs), some(outputs), some(outputs), var,
        draw(st.sampled_from([1e-5, 1e-3, 0.5])),
    )


@clause("FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS", "FUS-FOLD-EPS")
@given(normalizations())
def test_folded_weights_and_biases_are_within_their_bounds(case):
    weight, bias, gamma, beta, mean, var, eps = case
    got_w, got_b = folding.fold_batch_norm(*case)
    assert got_w.dtype == got_b.dtype == np.float32 and got_w.shape == weight.shape and got_b.shape == (len(weight),)
    for c in range(len(weight)):
        start = 0.0 if bias is None else bias[c]
        exact_w, exact_b = spec.fold_batch_norm(weight[c].ravel(), start, gamma[c], beta[c], mean[c], var[c], eps)
        for got, exact in zip(got_w[c].ravel(), exact_w):
            assert abs(Fraction(float(got)) - exact) <= ULP * abs(exact) + Fraction(1, 2**150)
        factor = abs(Fraction(float(gamma[c])) / spec.root(Fraction(float(var[c])) + Fraction(eps)))
        terms = (abs(Fraction(float(start))) + abs(Fraction(float(mean[c])))) * factor + abs(Fraction(float(beta[c])))
        assert abs(Fraction(float(got_b[c])) - exact_b) <= ULP * abs(exact_b) + TERMS * terms + Fraction(1, 2**150)


@clause("FUS-FOLD-WEIGHT")
@given(normalizations())
def test_each_output_channel_is_folded_with_its_own_statistics(case):
    weight, bias, *statistics, eps = case
    together = folding.fold_batch_norm(*case)
    for c in range(len(weight)):
        one = slice(c, c + 1)
        alone = folding.fold_batch_norm(
            weight[one], None if bias is None else bias[one], *(s[one] for s in statistics), eps
        )
        assert alone[0].tolist() == together[0][one].tolist() and alone[1].tolist() == together[1][one].tolist()


@clause("FUS-FOLD-BIAS")
def test_a_missing_bias_counts_as_zero():
    one = np.ones(1, np.float32)
    weight = np.float32([[2.0]])
    with_zero = folding.fold_batch_norm(weight, one * 0, one * 3, one * 5, one * 7, one * 4, 0.0)
    without = folding.fold_batch_norm(weight, None, one * 3, one * 5, one * 7, one * 4, 0.0)
    assert [v.tolist() for v in without] == [v.tolist() for v in with_zero] == [[[3.0]], [-5.5]]


@clause("FUS-FOLD-EPS")
def test_a_channel_without_variance_folds_to_finite_weights():
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    weight, bias = folding.fold_batch_norm(np.float32([[1.0]]), zero, one, zero, one, zero, 0.25)
    assert weight.tolist() == [[2.0]] and bias.tolist() == [-2.0]
    exact = spec.fold_batch_norm([1.0], 0.0, 1.0, 0.0, 1.0, 0.0, 0.25)
    assert exact == ([2], -2)


@clause("FUS-FOLD-BOUND")
@given(normalizations(), st.data())
def test_folding_changes_a_result_by_no_more_than_its_bound(case, data):
    weight, bias, gamma, beta, mean, var, eps = case
    weight = weight.reshape(len(weight), -1)
    got_w, got_b = folding.fold_batch_norm(weight, bias, gamma, beta, mean, var, eps)
    u = [
        Fraction(v)
        for v in data.draw(st.lists(st.floats(-100, 100, width=32), min_size=weight.shape[1], max_size=weight.shape[1]))
    ]
    for c in range(len(weight)):
        start = Fraction(0.0 if bias is None else float(bias[c]))
        root = spec.root(Fraction(float(var[c])) + Fraction(eps))
        g, m, b = (Fraction(float(v[c])) for v in (gamma, mean, beta))
        layer = sum(Fraction(float(w)) * x for w, x in zip(weight[c], u)) + start
        unfolded = g * (layer - m) / root + b
        terms = [Fraction(float(w)) * x for w, x in zip(got_w[c], u)]
        folded = sum(terms) + Fraction(float(got_b[c]))
        small = Fraction(1, 2**47)
        bound = (
            Fraction(1, 2**23) * (sum(abs(t) for t in terms) + abs(Fraction(float(got_b[c]))))
            + small * (abs(start) + abs(m)) * abs(g) / root
            + small * abs(b)
        )
        assert abs(folded - unfolded) <= bound


@clause("FUS-FOLD-REFUSE")
@pytest.mark.parametrize(("var", "eps"), [(-1.0, 0.5), (-0.5, 0.5), (0.0, 0.0), (np.inf, 1e-5), (np.nan, 1e-5)])
def test_a_variance_that_has_no_root_is_refused(var, eps):
    one = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=f"^var: expected var \\+ eps to be positive and finite, got {var + eps}$"):
        folding.fold_batch_norm(np.ones((2, 1), np.float32), None, one, one, one, np.float32([1.0, var]), eps)


@clause("FUS-FOLD-REFUSE")
def test_a_network_with_such_a_variance_is_refused():
    model = networks.seeded(networks.Normalised)
    model.norm.running_var[2] = -1
    with pytest.raises(ValueError, match="var"):
        qs.prepare(model)


@clause("FUS-READER")
@pytest.mark.parametrize("build", [networks.TwoReaders, networks.OutputBefore])
def test_a_second_reader_forbids_fusion(build):
    graph = captured(networks.seeded(build))
    fused = fusion.fuse(graph)
    assert not any(node.relu for node in layers_of(fused))
    assert kinds(fused) == kinds(graph) and "Relu" in kinds(graph)


@clause("FUS-READER")
def test_a_value_before_normalization_that_is_read_again_is_not_folded():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            y = self.layer(x)
            return self.norm(y) + y

    graph = captured(networks.seeded(Model))
    assert kinds(fusion.fuse(graph)) == kinds(graph) == ["Linear", "BatchNorm", "Add"]


@clause("FUS-READER", "FUS-SHARED")
@given(st.integers(1, 3), st.booleans(), st.integers(1, 3))
def test_what_may_be_fused_is_what_the_definition_says(reads, is_output, calls):
    # What follows the layer reads its value once; being an output is one read more.
    assert fusion.may_fuse(reads + is_output, calls) == spec.may_fuse(reads, is_output, calls)


@clause("FUS-SHARED")
def test_a_shared_layer_is_not_fused():
    graph = captured(networks.seeded(networks.Shared))
    fused = fusion.fuse(graph)
    assert kinds(fused) == kinds(graph) == ["Linear", "BatchNorm", "Relu", "Linear"]
    assert layers_of(fused)[0].weight is layers_of(fused)[1].weight
    assert not any(node.relu for node in layers_of(fused))


@clause("FUS-TRAINING", "STA-TRAINING")
@pytest.mark.parametrize("which", ["", "norm"])
def test_training_mode_is_refused(which):
    model = networks.seeded(networks.Normalised)
    model.get_submodule(which).train()
    for quantize in (tracer.capture, qs.prepare, qs.quantize_dynamic, lambda m: qs.quantize(m, [networks.inputs()])):
        with pytest.raises(ValueError, match=f"model: {which or 'it'} is in training mode"):
            quantize(model)


@clause("FUS-KEEP")
@given(networks.perceptrons())
def test_fusing_keeps_every_value_that_is_still_computed(case):
    model, _, x = case
    graph = captured(model)
    fused = fusion.fuse(graph)
    folded = len(graph.nodes) != len(fused.nodes) and "BatchNorm" in kinds(graph)
    values, after = {}, {}
    before = float_run.run(graph, x, lambda name, value: values.setdefault(name, value.numpy()))
    output = float_run.run(fused, x, lambda name, value: after.setdefault(name, value.numpy()))
    assert before.shape == output.shape
    if not folded:
        assert output.numpy().tobytes() == before.numpy().tobytes()
    else:
        # Each layer multiplies what comes in by its weights, so that an error of 2^-20 of the largest value can grow by
        # their size.
        growth = np.prod([1 + np.abs(node.weight).sum(axis=1).max() for node in layers_of(fused)])
        largest = max(1.0, *(np.abs(v).max() for v in values.values()))
        assert np.abs(output.numpy() - before.numpy()).max() <= 2.0**-20 * growth * largest
    assert not any(
        isinstance(node, (floats.Relu, floats.BatchNorm)) and node.x in {n.name for n in layers_of(fused)}
        for node in fused.nodes
    )


class Reader(nn.Module):
    """Something in float reads what a layer with its ReLU absorbed gives; ``read`` says how."""

    def __init__(self, read):
        super().__init__()
        self.layer, self.read = nn.Linear(4, 4), read

    def forward(self, x):
        return self.read(torch.relu(self.layer(x)))


READERS = [
    lambda: Reader(lambda y: torch.softmax(y, 1)),
    lambda: Reader(lambda y: torch.softmax(input=y, dim=1)),
    lambda: Reader(torch.relu),
    lambda: Reader(lambda y: torch.flatten(y, 0)),
]


@clause("FUS-KEEP")
@pytest.mark.parametrize("build", [networks.TwoReaders, networks.OutputBefore, networks.Shared, *READERS])
def test_where_not_everything_may_be_fused_the_network_computes_the_same_bits(build):
    graph, x = captured(networks.seeded(build)), networks.inputs()
    before, after = (float_run.run(g, x) for g in (graph, fusion.fuse(graph)))
    for a, b in zip(*(output if isinstance(output, tuple) else (output,) for output in (before, after)), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()


@clause("FUS-KEEP")
def test_fusing_changes_neither_the_graph_nor_the_model():
    model = networks.seeded(networks.Normalised)
    before, graph = networks.parameters(model), captured(model)
    weights = [node.weight.copy() for node in layers_of(graph)]
    names = [node.name for node in graph.nodes]
    fusion.fuse(graph)
    assert networks.unchanged(model, before)
    assert [node.name for node in graph.nodes] == names
    assert all(node.weight.tobytes() == weight.tobytes() for node, weight in zip(layers_of(graph), weights))


@clause("FUS-KEEP")
def test_a_network_is_fused_as_far_as_it_may():
    for affine in (True, False):
        fused = fusion.fuse(captured(networks.seeded(lambda affine=affine: networks.Normalised(affine))))
        assert kinds(fused) == ["Linear", "Linear"] and [node.relu for node in layers_of(fused)] == [True, False]
    q = qs.quantize(networks.seeded(networks.Normalised), [networks.inputs()])
    assert [type(step).__name__ for step in q.program.steps] == ["Quantize", "Linear", "Linear", "Dequantize"]
    assert isinstance(q.program.layers[0], Linear)


def batch_norm(kind, channels, g):
    """A normalization with drawn statistics."""
    norm = kind(channels).eval()
    with torch.no_grad():
        for tensor, values in (
            (norm.weight, g.normal(size=channels)), (norm.bias, g.normal(size=channels)),
            (norm.running_mean, g.normal(size=channels)),
        ):
            tensor.copy_(torch.from_numpy(values))
        norm.running_var.copy_(torch.from_numpy(g.uniform(0.1, 3, channels)))
    return norm


def exact(array):
    return np.vectorize(lambda v: Fraction(float(v)), otypes=[object])(array)


def fold_bound(u, weight, bias, layer_bias, norm):
    """FUS-FOLD-BOUND for outputs that are sums of |u| * |weight|, [outputs]."""
    root = np.sqrt(norm.running_var.double().numpy() + norm.eps)
    gamma, beta, mean = (np.abs(t.detach().double().numpy()) for t in (norm.weight, norm.bias, norm.running_mean))
    return 2.0**-23 * (u + np.abs(bias)) + 2.0**-47 * (np.abs(layer_bias) + mean) * gamma / root + 2.0**-47 * beta


@clause("FUS-FOLD-TRANSPOSED", "FUS-FOLD-BOUND", "FUS-KEEP")
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(
    "kinds", [(nn.ConvTranspose1d, nn.BatchNorm1d, (5,)), (nn.ConvTranspose2d, nn.BatchNorm2d, (4, 5))]
)
@pytest.mark.parametrize("bias", [False, True])
def test_a_normalization_behind_a_transposed_convolution_is_folded(groups, kinds, bias):
    conv, norm, shape = kinds
    g = np.random.default_rng(groups)
    layer = networks.seeded(
        lambda: conv(groups * 2, groups * 4, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias)
    )
    model = nn.Sequential(layer, batch_norm(norm, groups * 4, g)).eval()
    fused = fusion.fuse(captured(model))
    (node,) = fused.nodes
    x = torch.from_numpy(g.normal(size=(2, groups * 2, *shape)))
    twin = copy.deepcopy(model).double()
    with torch.no_grad():
        expected = twin(x).numpy()
        folded = float_run.run_conv(
            node, x, torch.from_numpy(node.weight).double(), torch.from_numpy(node.bias).double()
        ).numpy()
        sizes = float_run.run_conv(node, x.abs(), torch.from_numpy(node.weight).double().abs(), None).numpy()
    layer_bias = layer.bias.detach().numpy() if bias else np.zeros(groups * 4)
    along = (slice(None), *[None] * len(shape))
    numbers = model[1], node.bias
    bound = 2.0**-23 * sizes + fold_bound(0.0, None, numbers[1], layer_bias, numbers[0])[along]
    # Both are computed in float64, whose own rounding of some dozens of products is far below 2^-40 of their sizes.
    assert (np.abs(folded - expected) <= bound + 2.0**-40 * (sizes + np.abs(expected) + 1)).all()
    assert np.abs(folded - expected).max() < 1e-5 < np.abs(expected).max()


@st.composite
def before(draw):
    """(weight, bias, (gamma, beta, mean, var), eps, groups) for a normalization before a layer."""
    g, groups = draw(draws.seeds()), draw(st.integers(1, 3))
    outputs, inputs = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    groups = groups if kernel else 1
    weight = g.normal(size=(groups * outputs, inputs, *kernel)).astype(np.float32)
    statistics = [
        g.normal(size=groups * inputs).astype(np.float32) * draw(st.sampled_from([1e-3, 1, 50])) for _ in range(3)
    ]
    var = g.uniform(1e-4, 9, groups * inputs).astype(np.float32)
    bias = g.normal(size=len(weight)).astype(np.float32) if draw(st.booleans()) else None
    return weight, bias, (*statistics, var), draw(st.sampled_from([1e-5, 1e-3])), groups


@clause("FUS-FOLD-BEFORE")
@given(before())
def test_a_normalization_before_a_layer_is_folded_as_the_definition_says(case):
    weight, bias, statistics, eps, groups = case
    folded, shifted = folding.fold_batch_norm_before(weight, bias, *statistics, eps, groups)
    assert folded.dtype == shifted.dtype == np.float32 and folded.shape == weight.shape
    outputs, inputs = len(weight) // groups, weight.shape[1]
    for o in range(len(weight)):
        channels = range(o // outputs * inputs, (o // outputs + 1) * inputs)
        numbers = [tuple(float(s[c]) for s in statistics) for c in channels]
        start = 0.0 if bias is None else float(bias[o])
        rows = weight[o].reshape(inputs, -1)
        w, b = spec.fold_batch_norm_before(rows.tolist(), start, numbers, eps)
        for got, exactly in zip(folded[o].reshape(-1), [v for row in w for v in row]):
            assert (
                abs(Fraction(float(got)) - exactly)
                <= abs(exactly) * Fraction(2) ** -24 * (1 + Fraction(2) ** -20) + Fraction(2) ** -150
            )
        terms = abs(Fraction(start))
        for row, (gamma, beta, mean, var) in zip(rows.tolist(), numbers):
            factor = abs(Fraction(gamma)) / spec.root(Fraction(var) + Fraction(eps))
            terms += sum(abs(Fraction(v)) for v in row) * (abs(Fraction(beta)) + abs(Fraction(mean)) * factor)
        n = rows.size
        bound = abs(b) * Fraction(2) ** -24 * (1 + Fraction(2) ** -20) + Fraction(2) ** -48 * (n + 4) * terms
        assert abs(Fraction(float(shifted[o])) - b) <= bound + Fraction(2) ** -150


@clause("FUS-FOLD-BEFORE", "FUS-KEEP")
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda g: nn.Sequential(batch_norm(nn.BatchNorm1d, 4, g), nn.Linear(4, 3)), (4,)),
        (lambda g: nn.Sequential(batch_norm(nn.BatchNorm2d, 4, g), nn.Conv2d(4, 6, 3, groups=2)), (4, 5, 6)),
        (lambda g: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), batch_norm(nn.BatchNorm1d, 4, g), nn.Linear(4, 3)), (4,)),
    ],
)
def test_networks_with_a_normalization_before_a_layer_keep_their_function(build, shape):
    model = networks.seeded(lambda: build(np.random.default_rng(3)))
    fused = fusion.fuse(captured(model))
    assert "BatchNorm" not in kinds(fused)
    x = networks.inputs(8, shape)
    got, expected = float_run.run(fused, x), float_run.run(captured(model), x)
    growth = np.prod(
        [1 + np.abs(node.weight).reshape(len(node.weight), -1).sum(axis=1).max() for node in layers_of(fused)]
    )
    assert (got - expected).abs().max() <= 2.0**-20 * growth * float(x.abs().max() + expected.abs().max())


@clause("FUS-FOLD-PADDING")
@pytest.mark.parametrize(("padding", "left"), [(0, []), (1, ["BatchNorm"]), ("same", ["BatchNorm"])])
def test_a_normalization_is_not_folded_into_a_layer_that_pads(padding, left):
    model = networks.seeded(
        lambda: nn.Sequential(
            batch_norm(nn.BatchNorm2d, 2, np.random.default_rng(1)), nn.Conv2d(2, 3, 3, padding=padding)
        )
    )
    fused = fusion.fuse(captured(model))
    assert kinds(fused) == [*left, "Conv"]
    x = networks.inputs(2, (2, 6, 6))
    with torch.no_grad():
        # Padding with the mean's fold would be off by tenths.
        assert (float_run.run(fused, x) - model(x)).abs().max() < 1e-4
    shared = networks.seeded(
        lambda: nn.Sequential(batch_norm(nn.BatchNorm1d, 4, np.random.default_rng(1)), *[nn.Linear(4, 4)] * 2)
    )
    assert kinds(fusion.fuse(captured(shared))) == ["BatchNorm", "Linear", "Linear"]


@clause("FUS-FOLD-PADDING", "FUS-FOLD-BEFORE")
def test_what_one_layer_cannot_absorb_is_no_obstacle_for_the_next():
    g = np.random.default_rng(2)
    padded = networks.seeded(lambda: nn.Sequential(
        batch_norm(nn.BatchNorm2d, 2, g), nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid(),
        batch_norm(nn.BatchNorm2d, 3, g), nn.Conv2d(3, 2, 3),
    ))  # fmt: skip
    assert kinds(fusion.fuse(captured(padded))) == ["BatchNorm", "Conv", "Elementwise", "Conv"]
    # The channels of an image are not the last axis, which a linear layer reads.
    of_images = networks.seeded(lambda: nn.Sequential(
        batch_norm(nn.BatchNorm2d, 2, g), nn.Linear(4, 3), nn.Sigmoid(), nn.Flatten(),
        batch_norm(nn.BatchNorm1d, 24, g), nn.Linear(24, 2),
    ))  # fmt: skip
    assert kinds(fusion.fuse(captured(of_images))) == ["BatchNorm", "Linear", "Elementwise", "Move", "Linear"]
    # Three rows of six features, which a convolution reads as three channels.
    of_rows = networks.seeded(lambda: nn.Sequential(
        batch_norm(nn.BatchNorm1d, 6, g), nn.Conv1d(3, 2, 1), nn.Sigmoid(),
        batch_norm(nn.BatchNorm1d, 6, g), nn.Linear(6, 2),
    ))  # fmt: skip
    assert kinds(fusion.fuse(captured(of_rows))) == ["BatchNorm", "Conv", "Elementwise", "Linear"]


@clause("FUS-ALONE")
def test_a_normalization_of_a_rearranged_input_in_float_is_no_layer():
    norm = batch_norm(nn.BatchNorm2d, 2, np.random.default_rng(3))

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x.transpose(2, 3).flip(2))

    assert "BatchNorm" in kinds(fusion.fuse(captured(Turned().eval())))


class Frozen(nn.Module):
    """A normalization written as a product and a sum."""

    def __init__(self, norm):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class Functional(nn.BatchNorm2d):
    """A normalization that is called as a function."""

    def forward(self, x):
        return nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def written_otherwise(kind):
    norm = batch_norm(nn.BatchNorm2d, 4, np.random.default_rng(6))
    if kind is Functional:
        norm, weights = Functional(4), norm.state_dict()
        norm.load_state_dict(weights)
    return nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(norm) if kind is Frozen else norm, nn.ReLU(), nn.Conv2d(4, 4, 1))


@clause("FUS-WRITTEN")
@pytest.mark.parametrize("kind", [Frozen, Functional])
def test_a_normalization_is_folded_however_it_is_written(kind):
    modules, others = (
        fusion.fuse(captured(networks.seeded(lambda kind=kind: written_otherwise(kind)))) for kind in (None, kind)
    )
    assert kinds(others) == kinds(modules) == ["Conv", "Conv"] and others.nodes[0].relu
    for own, other in zip(modules.nodes, others.nodes, strict=True):
        for a, b in ((own.weight, other.weight), (own.bias, other.bias)):
            np.testing.assert_allclose(a, b, rtol=2**-20, atol=2**-20)


@clause("FUS-ALONE")
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_normalization_that_nothing_absorbs_is_a_layer_of_its_own(per_channel):
    g = np.random.default_rng(5)
    layers = (
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), batch_norm(nn.BatchNorm2d, 4, g), nn.ReLU(),
        nn.Conv2d(4, 2, 3, padding=1),
    )
    model = networks.seeded(lambda: nn.Sequential(*layers))
    fused = fusion.fuse(captured(model))
    assert kinds(fused) == ["Conv", "MaxPool", "Conv", "Conv"] and [node.relu for node in layers_of(fused)] == [
        False, True, False,
    ]
    alone, norm = layers_of(fused)[1], layers[2]
    factor = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    assert alone.groups == 4 and alone.weight.shape == (4, 1, 1, 1)
    assert alone.weight.ravel().tolist() == factor.float().tolist()
    step = qs.quantize(model, [networks.inputs(4, (3, 9, 9))], per_channel=per_channel).program.layers[1]
    assert np.abs(step.weight).ravel().tolist() == [127] * 4 and step.w_qparams.scale.shape == (4,)
    # In float nothing is gained by another layer.
    assert kinds(fusion.fuse(captured(networks.seeded(lambda: nn.Sequential(nn.Softmax(1), nn.BatchNorm2d(3)))))) == [
        "Call",
        "BatchNorm",
    ]


class Residual(nn.Module):
    """A sum with a ReLU behind it, which ``read`` may read before the ReLU too."""

    def __init__(self, read=lambda y: 0.0):
        super().__init__()
        self.first, self.second, self.read = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), read

    def forward(self, x):
        y = self.first(x)
        total = self.second(y) + y
        return torch.relu(total) + self.read(total)


@clause("FUS-SUM")
def test_a_sum_absorbs_the_relu_behind_it():
    fused = fusion.fuse(captured(networks.seeded(Residual)))
    assert [type(node).__name__ for node in fused.nodes][:3] == ["Conv", "Conv", "Add"] and fused.nodes[2].relu
    kept = fusion.fuse(captured(networks.seeded(lambda: Residual(lambda y: y.sum()))))
    assert not kept.nodes[2].relu and "Relu" in kinds(kept)
    x = networks.inputs(2, (3, 4, 4))
    q = qs.quantize(networks.seeded(Residual), [x])
    (total,) = [step for step in q.program.steps if type(step).__name__ == "Add"]
    with torch.no_grad():
        seen = networks.seeded(Residual)(x)
    assert total.relu and int(total.y_qparams.zero_point) == 0
    # The range behind the ReLU, up to the float sums' order.
    assert float(total.y_qparams.scale) == pytest.approx(float(seen.max()) / 255, rel=2.0**-20)


@clause("FUS-CLAMP")
@pytest.mark.parametrize("clamp", [nn.ReLU6(), nn.Hardtanh(0.0, 2.5)])
def test_a_clamp_from_zero_is_absorbed_and_ends_where_it_did(clamp):
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 6), clamp, nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].weight.mul_(30)
    ceiling = 6.0 if isinstance(clamp, nn.ReLU6) else 2.5
    fused = fusion.fuse(captured(model))
    assert kinds(fused) == ["Linear", "Linear"] and fused.nodes[0].relu and fused.nodes[0].ceiling == ceiling
    x = networks.inputs(50)
    with torch.no_grad():
        assert float_run.run(fused, x).numpy().tobytes() == float_run.run(captured(model), x).numpy().tobytes()
    q = qs.quantize(model, [x])
    grid = q.program.layers[0].y_qparams
    assert float(grid.scale) * (255 - int(grid.zero_point)) <= ceiling * (1 + 2.0**-23)
    assert float(grid.scale) * (255 - int(grid.zero_point)) > 0.99 * ceiling
    unequal = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Hardtanh(-1.0, 1.0)))
    assert kinds(fusion.fuse(captured(unequal))) == ["Linear", "Elementwise"]


@clause("FUS-ROWS")
@pytest.mark.parametrize("behind", [True, False])
def test_a_network_with_a_normalization_of_rows_refuses_other_inputs(behind, tmp_path):
    layers = [nn.Linear(4, 4), nn.BatchNorm1d(4)]
    model = networks.seeded(lambda: nn.Sequential(*(layers if behind else layers[::-1]), nn.ReLU(), nn.Linear(4, 2)))
    rows, images = networks.inputs(8, (4,)), networks.inputs(3, (4, 4))
    q = qs.quantize(model, [rows])
    q.save(tmp_path / "q")
    expected = q(rows)
    for network in (q, *map(q.run_on, ("reference", "torch")), qs.load(tmp_path / "q")):
        for other in (images, rows[0]):
            with pytest.raises(ValueError, match="with its BatchNorm1d expects \\[rows, features\\], got shape"):
                network(other)
        assert torch.equal(network(rows), expected)
    layer = float_run.FloatLayer(fusion.fuse(captured(model)).nodes[0])  # where one stays in float
    with pytest.raises(ValueError, match="with its BatchNorm1d expects"):
        layer(images)


@clause("FUS-ROWS")
def test_a_normalization_of_other_channels_is_not_folded():
    model = networks.seeded(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(4, 2)))
    x = networks.inputs(5, (3, 4))
    with torch.no_grad():
        assert accuracy.sqnr(model(x).numpy(), qs.quantize(model, [x])(x).numpy()) > 30


@clause("FUS-SHARED", "FUS-ROWS")
def test_a_linear_layer_that_holds_a_normalization_takes_rows_only():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    # [batch, channels, features]: here the normalization's channels are the second axis.
    images, prepared = networks.inputs(3, (4, 4)), qs.prepare(model)
    prepared(networks.inputs(8, (4,)))
    with pytest.raises(
        ValueError,
        match="^batch: layer '0' with its BatchNorm1d expects \\[rows, features\\], got shape \\(3, 4, 4\\); "
        "prepare with fuse=False$",
    ):
        prepared(images)
    with torch.no_grad():
        assert accuracy.sqnr(model(images).numpy(), qs.quantize(model, [images])(images).numpy()) > 30
        assert torch.equal(qs.prepare(model, fuse=False)(images), model(images))

