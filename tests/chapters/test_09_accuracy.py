"""Chapter 9: accuracy. The oracle is the chapter's own definitions."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import networks
import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.module import size
from quantspec.numerics import accuracy, integer
from quantspec.numerics.affine import QParams, qparams
from quantspec.tutorial import tutorial

spec = chapters.load("accuracy")


@st.composite
def layers(draw):
    """(x, weight, bias) of a float layer and the grids of inputs, weights and outputs that cover them."""
    rows, inputs, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(st.integers(1, 4))
    generator = draw(draws.seeds())
    x = generator.normal(size=(rows, inputs)).astype(np.float32)
    weight = (generator.normal(size=(outputs, inputs)) * draw(st.sampled_from([0.01, 1, 10]))).astype(np.float32)
    bias = generator.normal(size=outputs).astype(np.float32)
    real = x.astype(np.float64) @ weight.T.astype(np.float64) + bias
    per_channel = draw(st.booleans())
    x_grid = qparams(x.min(), x.max(), qmin=0, qmax=255, symmetric=False)
    low, high = (weight.min(axis=1), weight.max(axis=1)) if per_channel else (weight.min(), weight.max())
    w_grid = qparams(low, high, qmin=-128, qmax=127, symmetric=True, axis=0 if per_channel else None)
    y_grid = qparams(np.float32(real.min()), np.float32(real.max()), qmin=0, qmax=255, symmetric=False)
    return x, weight, bias, real, x_grid, w_grid, y_grid


@clause("ACC-LAYER")
@given(layers())
def test_no_output_is_further_off_than_the_bound(layer):
    x, weight, bias, real, x_grid, w_grid, y_grid = layer
    codes = integer.linear(x_grid.quantize(x), x_grid, w_grid.quantize(weight), w_grid, bias, y_grid)
    got = float(y_grid.scale) * (codes.astype(float) - int(y_grid.zero_point))
    bound = accuracy.layer_bound(x, weight, x_grid.scale, w_grid.scale, y_grid.scale)
    fits = accuracy.inside(real, y_grid) & accuracy.inside(x, x_grid).all(axis=1, keepdims=True)
    # float64 sums these few numbers to within 2^-48 of their size, far inside the slack that s_y / 2 nearly always
    # leaves.
    error = np.abs(got - real) - np.abs(real) * 2.0**-48
    assert (error[fits] <= bound[fits]).all()


@clause("ACC-LAYER")
@given(layers())
def test_the_vectorised_bound_is_that_of_the_definition(layer):
    x, weight, _, _, x_grid, w_grid, y_grid = layer
    got = accuracy.layer_bound(x, weight, x_grid.scale, w_grid.scale, y_grid.scale)
    scales = np.broadcast_to(w_grid.scale, len(weight))
    for row, bounds in zip(x, got):
        for w, s_w, bound in zip(weight, scales, bounds):
            exact = spec.layer_bound(row, w, x_grid.scale, s_w, y_grid.scale)
            assert abs(Fraction(float(bound)) - exact) <= exact / 2**45


@clause("ACC-TIGHT")
def test_a_layer_reaches_the_bound():
    x, w, bias, x_ends, w_ends, y_ends = spec.worst_layer()
    grids = [QParams(scale, zero_point, *ends) for scale, zero_point, *ends in (x_ends, w_ends, y_ends)]
    x_grid, w_grid, y_grid = grids
    inputs, weights = np.float32([x]), np.float32([w])
    codes = integer.linear(
        x_grid.quantize(inputs), x_grid, w_grid.quantize(weights), w_grid, np.float32([bias]), y_grid
    )
    error = y_grid.dequantize(codes)[0, 0] - (sum(a * b for a, b in zip(x, w)) + bias)
    assert accuracy.inside(inputs, x_grid).all() and accuracy.inside(weights, w_grid).all()
    assert (
        error
        == accuracy.layer_bound(inputs, weights, 1.0, 1.0, 32.0)[0, 0]
        == spec.layer_error(*spec.worst_layer())
        == 1914
    )


@clause("ACC-DROP")
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=60))
def test_the_drop_is_at_most_the_share_of_disagreements(rows):
    labels, a, b = (np.array(column) for column in zip(*rows))
    k, bound = accuracy.disagreement(a, b)
    assert k == sum(p != q for p, q in zip(a, b))
    drop = Fraction(int((a == labels).sum()) - int((b == labels).sum()), len(rows))
    assert abs(drop) <= Fraction(k, len(rows)) <= bound


@clause("ACC-UPPER")
@given(st.integers(1, 60), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999]))
def test_the_upper_bound_is_where_so_few_become_too_surprising(n, data, confidence):
    k = data.draw(st.integers(0, n))
    bound = accuracy.upper_bound(k, n, confidence)
    assert abs(Fraction(bound) - Fraction(spec.upper_bound(k, n, confidence))) <= Fraction(1, 2**30)
    if k == n:
        assert bound == 1
    else:
        step, surprise = Fraction(1, 2**30), 1 - Fraction(confidence)
        assert (
            spec.at_most(k, n, min(Fraction(bound) + step, 1))
            < surprise
            <= spec.at_most(k, n, max(Fraction(bound) - step, 0))
        )


@clause("ACC-UPPER")
@pytest.mark.parametrize("k", [0, 5, 500, 50_000])
def test_at_most_half_of_many_events_is_as_likely_as_more(k):
    # Of an odd number of tosses of a coin either k or fewer are heads, or k or fewer are tails.
    assert abs(accuracy.upper_bound(k, 2 * k + 1, 0.5) - 0.5) <= 2.0**-30


@clause("ACC-UPPER")
@pytest.mark.parametrize("upper_bound", [accuracy.upper_bound, spec.upper_bound])
@pytest.mark.parametrize(
    ("k", "n", "confidence", "name"),
    [(-1, 5, 0.9, "k"), (6, 5, 0.9, "k"), (0, 0, 0.9, "k"), (1, 5, 0, "confidence"), (1, 5, 1, "confidence")],
)
def test_what_is_no_share_has_no_bound(upper_bound, k, n, confidence, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        upper_bound(k, n, confidence)


@clause("ACC-DROP")
def test_predictions_that_do_not_belong_together_are_refused():
    for a, b in ((np.zeros(3), np.zeros(4)), (np.zeros((2, 2)), np.zeros((2, 2)))):
        with pytest.raises(ValueError, match="float_predictions, int8_predictions: expected one shape"):
            accuracy.disagreement(a, b)


@clause("ACC-TUTORIAL")
@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("variant", tutorial.VARIANTS[1:])
def test_the_tutorials_variants_agree_with_the_float_network(variant, reduce_range, model, dataset):
    q = tutorial.quantize_as(model, dataset, variant, reduce_range=reduce_range)
    a, b = (tutorial.predictions(network, dataset.x_test) for network in (model, q))
    k, bound = accuracy.disagreement(a, b, confidence=0.99)
    assert bound <= (0.02 if dataset.name == "mnist" else 0.03), f"{k} of {len(a)} predictions differ"


@clause("ACC-SQNR")
@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-9, 9)), min_size=1, max_size=8))
def test_sqnr_is_that_of_the_definition(pairs):
    reference = [float(f) for f, _ in pairs]
    values = [f + e / 8 for (_, e), f in zip(pairs, reference)]
    expected = spec.sqnr(reference, values)
    got = accuracy.sqnr(reference, values)
    # Sums of such squares are exact in float64; the logarithm is one rounding of each library.
    assert got == expected or abs(got - expected) <= 2.0**-50 * max(abs(expected), 1)
    with pytest.raises(ValueError, match="^reference, values: expected one shape, got"):
        accuracy.sqnr(reference, [*values, 1.0])


@clause("ACC-COMPARE")
@pytest.mark.parametrize("fuse", [True, False])
def test_compare_says_for_each_layer_how_far_it_is_from_float(fuse):
    model, x = networks.seeded(networks.Perceptron), networks.inputs()
    q = qs.quantize(model, [x], fuse=fuse)
    found = qs.compare(model, q, [x])
    with torch.no_grad():
        first = model.first(x).relu() if fuse else model.first(x)
        floats, output = {"first": first, "second": model(x)}, model(x)
    seen = {}
    q.run_on("reference").compiled({"x": x}, lambda step, value: seen.setdefault(step.name, value))
    for row, layer in zip(found.layers, q.program.layers, strict=True):
        real = layer.y_qparams.dequantize(seen[layer.name])
        assert row.layer == layer.layer and row.int8 and row.reason == ""
        assert abs(row.sqnr - spec.sqnr(floats[row.layer].ravel().tolist(), real.ravel().tolist())) < 1e-9
        assert row.bytes == size.step_bytes(layer) and row.macs == 32 * layer.weight.size
    assert abs(found.sqnr - spec.sqnr(output.ravel().tolist(), q(x).ravel().tolist())) < 1e-9
    assert (found.int8_macs, found.float_bytes, found.int8_bytes, found.examples) == (
        1.0, size.float_bytes(model), q.nbytes, 32,
    )
    assert found.parted is None and qs.compare(model, q, [x], threshold=99.0).parted == "first"
    assert "first" in str(found) and found.as_json()["layers"][0]["layer"] == "first" and found.float_accuracy is None


@clause("ACC-COMPARE", "ACC-DROP", "ACC-UPPER")
def test_compare_counts_answers_where_there_are_targets(tmp_path):
    model, x = networks.seeded(networks.Perceptron), networks.inputs(100)
    with torch.no_grad():
        target = model(x).argmax(1)
    q = qs.quantize(model, [x])
    found = qs.compare(model, q, [(x[:60], target[:60]), (x[60:], target[60:])])
    changed = int((q(x).argmax(1) != target).sum())
    assert (found.float_accuracy, found.int8_accuracy, found.changed) == (
        1.0, 1 - changed / 100, changed,
    ) and found.examples == 100
    assert found.changed_at_most == accuracy.upper_bound(changed, 100)
    found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == bytes([137]) + b"PNG"


class Reading(torch.nn.Module):
    """Recurrent layers that give an output and a state, and one that gives a state; Python around them or not."""

    def __init__(self, branch):
        super().__init__()
        self.lstm, self.gru = torch.nn.LSTM(4, 6, 2, bidirectional=True), torch.nn.GRU(12, 5, batch_first=True)
        self.cell, self.head, self.branch = torch.nn.LSTMCell(5, 4), torch.nn.Linear(4, 3), branch

    def forward(self, x):
        y, _ = self.lstm(x)
        y = self.gru(y)[0] if not self.branch or float(y.sum()) < 1e9 else y
        return self.head(self.cell(y[-1])[0])


@clause("ACC-COMPARE")
@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
@pytest.mark.parametrize("branch", [False, True])
def test_compare_says_how_far_recurrent_layers_are_from_float(branch):
    model, x = networks.seeded(lambda: Reading(branch)), networks.inputs(7, (3, 4))
    with torch.no_grad():
        expected = model.lstm(x)[0]
    q = qs.quantize_dynamic(model, example=x)
    got = qs.quantize_dynamic(model.lstm, example=x)(x)[0]
    for network, quantized in ((model, q), (model.lstm, qs.quantize_dynamic(model.lstm, example=x))):
        found = qs.compare(network, quantized, [x])
        assert abs(found.layers[0].sqnr - spec.sqnr(expected.ravel().tolist(), got.ravel().tolist())) < 1e-9
        rows = {row.path: row.macs for row in quantized.report.rows if row.place == "int8"}
        assert [row.macs for row in found.layers] == list(rows.values()) and found.int8_macs == quantized.report.share
    assert all(math.isfinite(row.sqnr) and row.int8 for row in qs.compare(model, q, [x]).layers)


class GivenAParameter(torch.nn.Module):
    """Python around a layer that is given a view of a parameter."""

    def __init__(self):
        super().__init__()
        self.places, self.layer = torch.nn.Parameter(torch.ones(3, 4)), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.places[0:3, :].unsqueeze(0)) + self.layer(x) if float(x.sum()) < 1e9 else x


@clause("ACC-COMPARE")
@networks.mostly_attention
def test_compare_counts_what_stays_in_float_and_refuses_other_networks():
    model, x = networks.seeded(networks.Perceptron), networks.inputs()
    q = qs.quantize(model, [x], exclude="second")
    found = qs.compare(model, q, [x])
    assert [(row.layer, row.int8) for row in found.layers] == [("first", True), ("second", False)] and found.layers[
        1
    ].reason == "excluded"
    assert found.int8_macs == 20 / 35  # 4 * 5 of 4 * 5 + 5 * 3
    attention = networks.seeded(lambda: torch.nn.MultiheadAttention(8, 2, batch_first=True))
    y = networks.inputs(3, (5, 8))
    shares = qs.compare(attention, qs.quantize(attention, [(y, y, y)]), [(y, y, y)])
    work = 3 * 5 * 8 * 8 * 4
    assert shares.int8_macs == work / (work + 2 * 3 * 5 * 5 * 8)  # queries times keys, and weights times values
    around, z = networks.seeded(GivenAParameter), networks.inputs(3, (4,))
    assert qs.compare(around, qs.quantize(around, [z]), [z]).int8_macs == 1.0
    with pytest.raises(ValueError, match="^data: expected at least one batch, got none$"):
        qs.compare(model, q, [])
    with pytest.raises(TypeError, match="^data: expected an iterable of batches, got Tensor"):
        qs.compare(model, q, x)
    with pytest.raises(ValueError, match="^q: expected a network quantized from this model"):
        qs.compare(networks.seeded(networks.WithSoftmax), qs.quantize(networks.seeded(networks.Normalised), [x]), [x])

