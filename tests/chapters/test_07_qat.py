"""Chapter 7: gradients, grids and ranges. The oracle is the chapter's own definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams, code_range
from quantspec.numerics.dialects.named import DIALECTS, dialect
from quantspec.numerics.observers import MovingAverageObserver
from quantspec.ptq import options
from quantspec.ptq.conversion import weight_codes
from quantspec.qat import functions, grids

spec = chapters.load("qat")
TRAINED = [name for name, rules in DIALECTS.items() if rules.accumulate_rule == "exact"]


def chosen(name="onnx", bits=8, weight_bits=None, reduce_range=None, per_channel=True):
    return options.checked(
        per_channel=per_channel, reduce_range=reduce_range, dialect=name, bits=bits, weight_bits=weight_bits,
        engine="auto",
    )  # fmt: skip


@st.composite
def rounded_values(draw):
    """(values, gradients, grid): values in eighths of a step, ends and ties among them."""
    bits = draw(st.integers(2, 8))
    qmin, qmax = code_range(bits, signed=draw(st.booleans()))
    scale = draw(st.sampled_from([0.25, 1.0, 2.0]))
    zero_point = draw(st.integers(qmin, qmax))
    generator = draw(draws.seeds())
    steps = generator.integers(8 * (qmin - zero_point) - 12, 8 * (qmax - zero_point) + 13, 24) / 8
    gradients = generator.integers(-8, 9, 24) / 4
    return (steps * scale).astype(np.float32), gradients.astype(np.float32), grids.Grid(scale, zero_point, qmin, qmax)


@clause("QAT-STE")
@given(rounded_values())
def test_a_gradient_passes_inside_the_range_alone(drawn):
    values, gradients, grid = drawn
    x = torch.tensor(values, requires_grad=True)
    codes = functions.apply(functions.Quantized, x, None, grid, dialect("exact"))
    codes.backward(torch.from_numpy(gradients))
    ends = grid.scale, grid.zero_point, grid.qmin, grid.qmax
    expected = [spec.ste(g, v, *ends) for g, v in zip(gradients.tolist(), values.tolist())]
    assert x.grad.tolist() == expected
    steps = [spec.affine.quantize(v, *ends) - grid.zero_point for v in values.tolist()]
    assert codes.tolist() == steps


@clause("QAT-STE")
@given(rounded_values())
def test_gradients_are_those_of_torchs_fake_quantization_but_for_ties_at_the_ends(drawn):
    values, gradients, grid = drawn
    ours, theirs = (torch.tensor(values, requires_grad=True) for _ in range(2))
    codes = functions.apply(functions.Quantized, ours, None, grid, dialect("torch-fake-quantize"))
    codes.backward(torch.from_numpy(gradients))
    faked = torch.fake_quantize_per_tensor_affine(theirs, grid.scale, grid.zero_point, grid.qmin, grid.qmax)
    faked.backward(torch.from_numpy(gradients))
    steps = values / grid.scale
    tie = (steps == grid.low - 0.5) | (steps == grid.high + 0.5)
    assert np.array_equal(ours.grad.numpy()[~tie], theirs.grad.numpy()[~tie])
    assert torch.equal(codes * grid.scale, faked)


@st.composite
def layers(draw, wide=False):
    """A layer's plan, codes of its input, the weight and bias, with scales of powers of two so that all is exact."""
    rows, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    inputs = draw(st.integers(500, 900)) if wide else draw(st.integers(1, 12))
    generator = draw(draws.seeds())
    grid = grids.Grid(0.5, draw(st.integers(0, 255)), 0, 255)
    x = torch.from_numpy(generator.integers(grid.low, grid.high + 1, (rows, inputs)).astype(np.float32))
    w = torch.from_numpy(generator.integers(-128, 128, (outputs, inputs)).astype(np.float32))
    if wide and draw(st.booleans()):
        x, w = torch.full_like(x, grid.low if grid.zero_point > 127 else grid.high), torch.full_like(w, -127)
        w[:, 0], x[:, 0] = 1, -1 if grid.zero_point else 1
    scale = torch.from_numpy(generator.choice([0.25, 0.5, 1.0], outputs).astype(np.float32))
    bias = torch.from_numpy((generator.integers(-64, 65, outputs) / 4).astype(np.float32))
    name = draw(st.sampled_from(TRAINED))
    size = float(2.0 ** draw(st.integers(0, 7)))
    y = grids.Grid(size, draw(st.integers(0, 255)), 0, 255)
    relu = draw(st.booleans())
    weight = w * scale[:, None]
    coded = grids.layer_codes(weight, bias, chosen(name), True, grid, y, scale)
    return functions.LayerPlan("layer", grid, y, relu, None, dialect(name), coded, True), x, weight, bias


@clause("QAT-EXACT")
@given(layers(wide=True))
def test_accumulators_are_exact_however_many_inputs_there_are(layer):
    plan, x, weight, bias = layer
    codes, w = (x + plan.x.zero_point).to(torch.uint8).numpy(), (weight / plan.coded.scale[:, None]).to(torch.int8)
    expected = integer.accumulate(codes, plan.x.zero_point, w.numpy(), 0)
    assert np.array_equal(plan.accumulators(x, bias=False).numpy(), expected)
    added = integer.quantize_bias(bias.numpy(), np.float32(plan.x.scale), plan.coded.scale.numpy())
    assert np.array_equal(plan.accumulators(x, bias=True).numpy(), expected + added.astype(np.int64))


@clause("QAT-EXACT")
def test_an_accumulator_beyond_int32_is_refused():
    grid = grids.Grid(1.0, 0, 0, 255)
    coded = grids.layer_codes(torch.full((1, 70000), 127.0), None, chosen(), False, grid, None)
    plan = functions.LayerPlan("wide", grid, None, False, None, dialect("onnx"), coded, False)
    with pytest.raises(qs.UnsupportedError, match=f"layer 'wide': an accumulator can reach {70000 * 255 * 127},"):
        plan.accumulators(torch.full((1, 70000), 255.0), bias=False)


@clause("QAT-EXACT")
@pytest.mark.parametrize("few", [0, 1])
def test_an_accumulator_of_2_to_the_31_is_refused_and_one_less_is_not(few):
    grid = grids.Grid(1.0, 128, 0, 255)
    weight = torch.full((1, 2**17), -128.0)
    weight[0, -1] += few
    coded = grids.layer_codes(weight, None, chosen(), False, grid, None, torch.tensor(1.0))
    plan = functions.LayerPlan("wide", grid, None, False, None, dialect("onnx"), coded, False)
    x = torch.full((1, 2**17), -128.0)
    if few:
        assert plan.accumulators(x, bias=False).item() == 2**31 - 128
    else:
        with pytest.raises(qs.UnsupportedError, match=f"an accumulator can reach {2**31}, beyond int32"):
            plan.accumulators(x, bias=False)


@clause("QAT-EXACT")
@pytest.mark.parametrize("more", [0, 1])
def test_float32_has_accumulators_up_to_2_to_the_24(more):
    grid = grids.Grid(1.0, 128, 0, 255)
    row = torch.full((1, 2**10 + more), -128.0)
    coded = grids.layer_codes(row, None, chosen(), False, grid, None, torch.tensor(1.0))
    plan = functions.LayerPlan("wide", grid, None, False, None, dialect("onnx"), coded, False)
    found = plan.accumulators(row, bias=False)
    assert found.item() == 2**24 + more * 2**14 and found.dtype == (torch.float64 if more else torch.float32)


@clause("QAT-ACTS")
def test_what_lies_between_codes_saturates_where_accumulators_end():
    grid = grids.Grid(1.0, 128, 0, 255)
    coded = grids.layer_codes(torch.full((1, 2**17), -128.0), None, chosen(), False, grid, None, torch.tensor(1.0))
    plan = functions.LayerPlan("wide", grid, None, False, None, dialect("onnx"), coded, False, loose=True)
    found = [plan.accumulators(torch.full((1, 2**17), value), bias=False).item() for value in (-128.5, 128.5, -0.5)]
    assert found == [2**31 - 128, -(2**31), 2**23]


@clause("QAT-LAYER", "QAT-EQUAL")
@given(layers())
def test_a_layer_gives_the_dialects_codes_and_the_float_layers_gradient(layer):
    plan, x, w, bias = layer
    given_x, given_w, given_b = (t.clone().requires_grad_() for t in (x, w, bias))
    codes = functions.apply(functions.Layer, given_x, given_w, given_b, None, plan)
    weights = QParams(plan.coded.scale.numpy(), np.zeros(len(w), np.int32), -128, 127, 0)
    codes_of_w = plan.coded.codes.to(torch.int8).numpy()
    arrays = functions.as_codes(x, plan.x), plan.x.qparams, codes_of_w, weights, bias.numpy()
    expected = plan.dialect.linear(*arrays, plan.y.qparams, relu=plan.relu)
    assert np.array_equal(functions.as_codes(codes, plan.y), expected)
    real = x.double() @ w.double().T * plan.x.scale + bias
    ends = [max(float(end), 0.0) if plan.relu else float(end) for end in (real.min(), real.max())]
    half_a_step = 0.5 * plan.x.scale * float(plan.coded.scale.max())  # that a bias in codes may be off by
    assert np.allclose(plan.ends, ends, rtol=0, atol=half_a_step)
    gradient = torch.arange(1, codes.numel() + 1, dtype=torch.float32).reshape(codes.shape)
    codes.backward(gradient)
    real_x, real_w = x * plan.x.scale, w
    y = (real_x.double() @ real_w.double().T + bias).tolist()
    ends = plan.y.scale, plan.y.zero_point, plan.y.qmin, plan.y.qmax
    passed = [
        [spec.ste(g, v, *ends) if v > 0 or not plan.relu else 0.0 for g, v in zip(gradients, values)]
        for gradients, values in zip(gradient.tolist(), y)
    ]
    edges = np.abs(np.array(y) / plan.y.scale % 1 - 0.5) < 2.0**-12  # where float32 steps may take the other side
    if (edges | (np.abs(np.array(y)) < 2.0**-12)).any():
        return
    of_x, of_w, of_b = spec.layer_gradients(real_x.tolist(), real_w.tolist(), passed)
    sizes = np.abs(np.array(passed)).sum() * max(float(real_x.abs().max()), float(real_w.abs().max()), 1.0)
    for got, exact in ((given_x.grad, of_x), (given_w.grad, of_w), (given_b.grad, of_b)):
        assert np.allclose(got.numpy(), np.array(exact, float), rtol=0, atol=sizes * 2.0**-18)


@clause("QAT-LAYER")
def test_a_layers_gradient_is_the_slope_of_the_float_layer():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-20, 21, (3, 4, 5, 5), generator=generator).float()
    w = torch.randint(-9, 10, (6, 2, 3, 3), generator=generator).float()
    grid, y = grids.Grid(0.5, 128, 0, 255), grids.Grid(4.0, 128, 0, 255)
    coded = grids.layer_codes(w * 0.25, None, chosen(), True, grid, y, torch.full((6,), 0.25))
    plan = functions.LayerPlan("conv", grid, y, False, ((2, 1), (1, 1), 2), dialect("onnx"), coded, False)
    given_x, given_w = x.clone().requires_grad_(), w.clone().requires_grad_()
    codes = functions.apply(functions.Layer, given_x, given_w, None, None, plan)
    direction = torch.randn(codes.shape, generator=generator)
    codes.backward(direction)

    def surrogate(real_x, real_w):
        return float((F.conv2d(real_x, real_w, None, (2, 1), 0, 1, 2) * direction.double()).sum())

    reals = [(x * 0.5).double(), (w * 0.25).double()]
    for index, gradient in enumerate((given_x.grad, given_w.grad)):
        for place in (0, 17, 41):
            step = torch.zeros_like(reals[index])
            step.view(-1)[place] = 0.5
            ahead = [real + step if i == index else real for i, real in enumerate(reals)]
            behind = [real - step if i == index else real for i, real in enumerate(reals)]
            slope = surrogate(*ahead) - surrogate(*behind)
            assert math.isclose(slope, float(gradient.view(-1)[place]), rel_tol=1e-5, abs_tol=1e-4)


@clause("QAT-RANGE")
@pytest.mark.parametrize("name", [name for name in TRAINED if DIALECTS[name].requantize_rule == "integer-bias"])
@pytest.mark.parametrize("places, ends", [(None, (2.0, 3.0)), (((1, 1), (1, 1), 1), (0.75, 3.0))])
def test_a_range_is_that_of_accumulators_with_the_code_of_the_bias(name, places, ends):
    grid, y = grids.Grid(0.5, 0, 0, 255), grids.Grid(2.0, 0, 0, 255)
    scale, bias = torch.tensor([1.0, 0.5]), torch.tensor([0.7, 0.0])
    x, weight = torch.tensor([[3.0], [5.0]]), scale.view(2, 1)
    if places is None:
        scale, bias, weight = scale[:1], bias[:1], weight[:1]
    else:
        x, weight = x.view(1, 1, 1, 2), weight.view(2, 1, 1, 1)
    coded = grids.layer_codes(weight, bias, chosen(name), True, grid, y, scale)
    plan = functions.LayerPlan("layer", grid, y, False, places, dialect(name), coded, True)
    functions.apply(functions.Layer, x, weight, bias, None, plan)
    # In units of 0.5 the first bias is one: 2.0 and 3.0; the other output has 0.75 and 1.25.
    assert plan.ends == ends


@clause("QAT-LAYER")
@pytest.mark.parametrize("name", ["exact", "onnx"])
@pytest.mark.parametrize("in_codes", [True, False])
@pytest.mark.parametrize("shape", [(3, 0), (3, 2, 0), (0, 4), (0, 4, 3, 3)], ids=str)
def test_layers_without_inputs_or_samples_have_gradients(name, in_codes, shape):
    places = ((1, 1), (1, 1), 1) if len(shape) == 4 else None
    x = torch.zeros(shape, requires_grad=True)
    weight = torch.ones(2, *((4, 1, 1) if places else shape[-1:]), requires_grad=True)
    bias = torch.ones(2, requires_grad=True)
    grid = grids.Grid(0.5, 0, 0, 255)
    y = grid if in_codes else None
    coded = grids.layer_codes(weight, bias, chosen(name), True, grid, y)
    plan = functions.LayerPlan("layer", grid, y, False, places, dialect(name), coded, True)
    result = functions.apply(functions.Layer, x, weight, bias, None, plan)
    result.sum().backward()
    assert x.grad.shape == shape and torch.equal(weight.grad, torch.zeros_like(weight))
    assert bias.grad.tolist() == [result.numel() / 2] * 2


@st.composite
def every_form(draw):
    """A layer of every form with numbers that make all of it exact: (plan, x, weight, bias, learned, gradient)."""
    name, form = draw(st.sampled_from(TRAINED)), draw(st.sampled_from(["rows", "rows of rows", "positions"]))
    how, relu = draw(st.sampled_from(["codes", "learned", "floats"])), draw(st.booleans())
    inputs, outputs, samples = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    r, per_channel = draw(draws.seeds()), draw(st.booleans())
    grid = grids.Grid(0.5, draw(st.integers(0, 15)), 0, 15)
    shapes = {"rows": (samples, inputs), "rows of rows": (samples, 2, inputs), "positions": (samples, inputs, 2, 3)}
    x = torch.from_numpy(r.integers(grid.low, grid.high + 1, shapes[form]).astype(np.float32))
    scale = torch.from_numpy(r.choice([0.25, 0.5, 1.0], outputs if per_channel else 1).astype(np.float32))
    w = torch.from_numpy(r.integers(-7, 8, (outputs, inputs)).astype(np.float32)) * scale[:, None]
    bias = torch.from_numpy((r.integers(-8, 9, outputs) / 2).astype(np.float32)) if draw(st.booleans()) else None
    places = ((1, 1), (1, 1), 1) if form == "positions" else None
    weight = w[:, :, None, None] if places else w
    bits = draw(st.integers(2, 6))
    y = grids.Grid(float(2.0 ** draw(st.integers(-2, 3))), draw(st.integers(0, 2**bits - 1)), 0, 2**bits - 1)
    y = None if how == "floats" else y
    coded = grids.layer_codes(weight, bias, chosen(name), per_channel, grid, y, scale if per_channel else scale[0])
    plan = functions.LayerPlan("layer", grid, y, relu, places, dialect(name), coded, False)
    outside = (samples, 2, outputs) if form == "rows of rows" else (samples, outputs, *x.shape[2:])
    gradient = torch.from_numpy(r.integers(-8, 9, outside).astype(np.float32)) / 4
    return plan, x, weight, bias, how == "learned", gradient


@clause("QAT-LAYER", "QAT-SCALE")
@given(every_form())
def test_gradients_of_layers_of_every_form(drawn):
    plan, x, weight, bias, learned, gradient = drawn
    inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias]
    inputs[2] = None if bias is None else bias.clone().requires_grad_()
    scale = torch.tensor(plan.y.scale, requires_grad=True) if learned else None
    functions.apply(functions.Layer, *inputs, scale, plan).backward(gradient)
    # Rows [rows, inputs] and outputs [rows, outputs], whatever the form.
    rows, passed = ((t if plan.places is None else t.movedim(1, -1)).flatten(0, -2) for t in (x, gradient))
    real_x, real_w = (rows * plan.x.scale).tolist(), weight.flatten(1).tolist()
    added = [0.0] * len(real_w) if bias is None else bias.tolist()
    values = [[sum(map(math.prod, zip(a, b))) + c for b, c in zip(real_w, added)] for a in real_x]
    given_rows = passed = passed.tolist()
    if plan.y is not None:
        ends = plan.y.scale, plan.y.zero_point, plan.y.qmin, plan.y.qmax
        passed = [
            [spec.ste(g, v, *ends) if v > 0 or not plan.relu else 0.0 for g, v in zip(*pair)]
            for pair in zip(given_rows, values)
        ]
    of_x, of_w, of_b = spec.layer_gradients(real_x, real_w, passed)
    found_x = (inputs[0].grad if plan.places is None else inputs[0].grad.movedim(1, -1)).flatten(0, -2)
    assert found_x.tolist() == of_x and inputs[1].grad.flatten(1).tolist() == of_w
    assert bias is None or inputs[2].grad.tolist() == of_b
    if learned:
        # Behind a ReLU the grid begins at zero, and what is below it has neither code nor gradient.
        lowest = plan.y.zero_point if plan.relu else plan.y.qmin
        both = [(g, v) for pair in zip(given_rows, values) for g, v in zip(*pair) if v > 0 or not plan.relu]
        of_sample = gradient.numel() // len(gradient)
        ends = plan.y.scale, plan.y.zero_point, lowest, plan.y.qmax
        exact = spec.scale_gradient([g for g, _ in both], [v for _, v in both], *ends, n=of_sample)
        assert math.isclose(float(scale.grad), exact, rel_tol=1e-5, abs_tol=1e-5)


@clause("QAT-LAYER")
@pytest.mark.parametrize("index", range(3))
def test_a_linear_layer_has_the_gradients_alone_that_are_wanted(index):
    grid, row = grids.Grid(1.0, 0, 0, 255), torch.ones(1, 2)
    coded = grids.layer_codes(row, torch.ones(1), chosen(), True, grid, None)
    plan = functions.LayerPlan("layer", grid, None, False, None, dialect("onnx"), coded, False)
    wanted = tuple(i == index for i in range(3))
    found = functions.linear_gradients(torch.ones(1, 1), None, row, coded.codes, plan, wanted)
    assert tuple(gradient is not None for gradient in found) == wanted


@clause("QAT-WEIGHT", "QAT-CONVERT")
@given(st.sampled_from(TRAINED), st.booleans(), st.integers(2, 8), draws.seeds())
def test_a_weights_codes_are_those_of_chapter_5_and_its_gradient_passes(name, per_channel, bits, generator):
    weight = (generator.normal(size=(4, 3)) * 10.0 ** generator.integers(-4, 4)).astype(np.float32)
    weight[0] *= generator.integers(0, 2)
    chosen_options = chosen(name, weight_bits=bits)
    scale = grids.weight_scale(torch.from_numpy(weight), chosen_options, per_channel)
    given_weight = torch.from_numpy(weight).requires_grad_()
    codes = functions.apply(functions.QuantizedWeight, given_weight, None, scale, chosen_options)
    expected, grid = weight_codes(weight, dialect(name), per_channel=per_channel, bits=bits)
    assert np.array_equal(scale.numpy(), grid.scale)
    assert np.array_equal(codes.detach().numpy(), expected)
    gradient = torch.from_numpy(generator.normal(size=(4, 3)).astype(np.float32))
    codes.backward(gradient)
    assert torch.equal(given_weight.grad, gradient)
    made = torch.full((4, 3), 0.5)
    codes = functions.apply(functions.QuantizedWeight, given_weight, None, scale, chosen_options, made)
    assert torch.equal(codes, made)


@clause("QAT-CONVERT")
@given(st.sampled_from(TRAINED), st.integers(2, 8), st.booleans(), draws.seeds())
def test_the_grid_of_a_range_is_that_of_chapter_5(name, bits, reduce_range, generator):
    low, high = np.sort(generator.normal(size=2).astype(np.float32) * np.float32(10.0 ** generator.integers(-3, 4)))
    chosen_options = chosen(name, bits=max(bits, 3), reduce_range=reduce_range)
    got = grids.activation_grid(float(low), float(high), chosen_options)
    expected = dialect(name).activation_qparams(low, high, reduce_range=reduce_range, bits=max(bits, 3))
    assert got == grids.of_qparams(expected)
    x = generator.normal(size=(3, 5)).astype(np.float32) * max(abs(low), abs(high))
    codes = grids.quantized(torch.from_numpy(x), got, dialect(name))
    rules = {"qmin": expected.qmin, "qmax": expected.qmax}
    exact = dialect(name).quantize(x, expected.scale, expected.zero_point, **rules)
    assert np.array_equal(functions.as_codes(codes, got), exact)


@clause("QAT-SCALE")
@given(rounded_values())
def test_the_gradient_of_an_activations_scale_is_that_of_the_definition(drawn):
    values, gradients, grid = drawn
    ends = grid.scale, grid.zero_point, grid.qmin, grid.qmax
    for shape, of_a_row in (((24,), 24), ((1, 24), 24), ((4, 6), 6), ((4, 3, 2), 6), ((24, 1), 1)):
        x = torch.from_numpy(values.reshape(shape))
        expected = spec.scale_gradient(gradients.tolist(), values.tolist(), *ends, n=of_a_row)
        made = functions.apply(functions.Quantized, x, None, grid, dialect("exact"))
        for function, arguments in ((functions.Quantized, (grid, dialect("exact"))), (functions.Snapped, (made, grid))):
            scale = torch.tensor(grid.scale, requires_grad=True)
            codes = functions.apply(function, x, scale, *arguments)
            codes.backward(torch.from_numpy(gradients.reshape(shape)))
            assert math.isclose(float(scale.grad), expected, rel_tol=1e-5, abs_tol=1e-4)


@clause("QAT-SCALE")
@given(st.integers(2, 8), st.booleans(), draws.seeds())
def test_the_gradient_of_a_weights_scale_is_that_of_the_definition(bits, per_channel, generator):
    weight = generator.normal(size=(3, 8)).astype(np.float32)
    qmin, qmax = code_range(bits, signed=True)
    scale = torch.from_numpy((generator.uniform(0.2, 1.0, 3) / qmax).astype(np.float32))
    scale = scale if per_channel else scale[0]
    learned = scale.clone().requires_grad_()
    given_weight = torch.from_numpy(weight).requires_grad_()
    codes = functions.apply(
        functions.QuantizedWeight, given_weight, learned, scale, chosen("exact", weight_bits=bits)
    )
    gradient = generator.normal(size=(3, 8)).astype(np.float32)
    codes.backward(torch.from_numpy(gradient))
    rows = zip(gradient, weight, scale.tolist()) if per_channel else [(gradient.ravel(), weight.ravel(), float(scale))]
    expected = [spec.scale_gradient(g.tolist(), w.tolist(), s, 0, qmin, qmax, n=w.size) for g, w, s in rows]
    assert np.allclose(learned.grad.numpy().ravel(), expected, rtol=1e-4, atol=1e-4)
    along = np.broadcast_to(scale.numpy(), 3)
    passed = [
        [spec.ste(g, w, s, 0, qmin, qmax) for g, w in zip(gradients, values)]
        for gradients, values, s in zip(gradient.tolist(), weight.tolist(), along.tolist())
    ]
    assert given_weight.grad.tolist() == passed


@clause("QAT-RANGE")
@given(draws.seeds(), st.sampled_from([0.01, 0.1, 0.5, 1.0]))
def test_ranges_move_as_a_moving_average_does(generator, constant):
    old = np.sort(generator.normal(size=(5, 2)).astype(np.float32) * np.float32(10.0 ** generator.integers(-6, 6)))
    new = np.sort(generator.normal(size=(5, 2)).astype(np.float32))
    for before, batch in zip(old, new):
        observer = MovingAverageObserver(constant, None, *map(np.asarray, before)).observe(batch)
        after = [grids.moved(float(a), float(b), constant) for a, b in zip(before, batch)]
        assert list(map(float, observer.range())) == after
