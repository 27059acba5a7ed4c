"""Chapter 7: what a step of training makes of ranges, weights and biases is what chapter 5 makes of them, on ties too.
The oracle is the dialect's own functions, and the chapters' in exact arithmetic."""

from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec.numerics import integer
from quantspec.numerics.affine import code_range, nearest_float32
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import DIALECTS, dialect
from quantspec.ptq import options
from quantspec.qat import grids

TRAINED = [name for name, rules in DIALECTS.items() if rules.accumulate_rule == "exact"]
BARE = [name for name in TRAINED if DIALECTS[name].qparams_rule == "float32-bare"]
# One dialect for each way to make codes of weights.
OF_WEIGHTS = {
    (rules.quantize_rule, rules.quantize_channels_rule, rules.symmetric_rule): name
    for name, rules in reversed(DIALECTS.items()) if name in TRAINED
}  # fmt: skip
# The rules that kernels have, by those of dialects; a code of zero point 0 is the same by all of the last three.
KERNELS = {"exact": "exact", "divide": "divide", "reciprocal": "reciprocal", "add": "reciprocal", "fused": "reciprocal"}


def chosen(name, **others):
    usual = dict(per_channel=True, reduce_range=None, bits=8, weight_bits=None, engine="auto")
    return options.checked(dialect=name, **{**usual, **others})


def on_ties(r, shape, scale, most):
    """Values on ties between codes and beside them, zeros, and values beyond the last code."""
    x = ((r.integers(-most - 3, most + 3, shape) + r.choice([0.0, 0.5, 0.5], shape)) * scale).astype(np.float32)
    beside = np.nextafter(x, np.float32(r.choice([-np.inf, np.inf])))
    return np.where(r.random(shape) < 0.4, beside, x)


@st.composite
def layers(draw):
    """(weight, scale, bias, x, y, per_channel, bits): on a scale that is given, biases among them on ties."""
    r, per_channel, bits = (draw(each) for each in (draws.seeds(), st.booleans(), st.integers(2, 8)))
    outputs, inputs = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    shape = draw(st.sampled_from([(outputs, inputs), (outputs, inputs, 2), (outputs, inputs, 1, 2)]))
    scale = np.float32(2.0 ** r.uniform(-12, 2, outputs if per_channel else ()))
    along = scale.reshape(-1, *[1] * (len(shape) - 1)) if per_channel else scale
    weight = on_ties(r, shape, along, 2 ** (bits - 1)) * r.integers(0, 2, (outputs, *[1] * (len(shape) - 1)))
    x = grids.Grid(float(np.float32(2.0 ** r.uniform(-8, 2))), int(r.integers(0, 256)), 0, 255)
    y = grids.Grid(float(np.float32(2.0 ** r.uniform(-8, 2))), 3, 0, 255) if draw(st.booleans()) else None
    bias = on_ties(r, outputs, np.float32(x.scale) * scale, 2 ** int(r.integers(1, 31)))
    bias = bias if draw(st.booleans()) else None
    return weight.astype(np.float32), scale, bias, x, y, per_channel, bits


@clause("QAT-CONVERT", "QAT-WEIGHT")
@pytest.mark.parametrize("name", OF_WEIGHTS.values())
@given(drawn=layers())
def test_a_layer_on_a_given_scale_has_the_codes_of_its_dialect(name, drawn):
    weight, scale, bias, x, y, per_channel, bits = drawn
    qmin, qmax = code_range(bits, signed=True)
    zero, axis = np.zeros(scale.shape, np.int32), 0 if per_channel else None
    expected = dialect(name).quantize(weight, scale, zero, qmin=qmin, qmax=qmax, axis=axis).astype(np.float32)
    chosen_options, given_scale = chosen(name, weight_bits=bits), torch.from_numpy(np.asarray(scale))
    found = grids.weight_codes(torch.from_numpy(weight), given_scale, chosen_options)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), expected)
    added = None if bias is None else torch.from_numpy(bias)
    coded = grids.layer_codes(torch.from_numpy(weight), added, chosen_options, per_channel, x, y, given_scale)
    assert np.array_equal(coded.codes.numpy(), expected)
    assert coded.scale.shape == given_scale.shape and torch.equal(coded.scale, given_scale)
    sums = np.abs(expected).sum(tuple(range(1, weight.ndim)), dtype=np.int64)
    largest = max(-x.low, x.high) * max(sums)
    if bias is None:
        assert coded.bias is None and not coded.tight
        assert coded.largest == largest
        return
    exact = integer.quantize_bias(bias, np.float32(x.scale), scale).astype(np.int64)
    assert np.array_equal(coded.bias.double().numpy(), exact)
    # One more where a kernel could not be sure of a bias.
    assert largest + max(np.abs(exact)) <= coded.largest <= largest + max(np.abs(exact)) + 1
    short = np.abs(bias.astype(np.float64)) / (np.float64(np.float32(x.scale)) * 2.0**30) > scale
    assert coded.tight == (per_channel and bool(short.any() or not sums.all()))


@clause("QAT-EXACT")
@pytest.mark.parametrize("name", ["onnx", "tflite-reference"])
def test_the_largest_accumulator_is_exact_where_float32_is_not(name):
    weight = torch.full((2, 2**18 + 1), 127.0)
    weight[0, 0], weight[1] = 1.0, 0.0
    grid = grids.Grid(1.0, 0, 0, 1)
    coded = grids.layer_codes(weight, None, chosen(name), False, grid, None, torch.tensor(1.0))
    assert coded.largest == 127 * 2**18 + 1


@clause("QAT-CONVERT")
@pytest.mark.parametrize("x_scale, w_scale, bias, code", [
    ("0x1.0a65ea0000000p+0", "0x1.31abc80000000p+0", "0x1.2059520000000p+21", 1901091),
    ("0x1.2748cc0000000p+0", "0x1.39c4b00000000p+0", "0x1.cef6be0000000p+20", 1341335),
])  # fmt: skip
def test_a_bias_beside_a_tie_that_float64_does_not_tell_has_the_exact_code(x_scale, w_scale, bias, code):
    scale, x = torch.tensor([float.fromhex(w_scale)]), grids.Grid(float.fromhex(x_scale), 0, 0, 1)
    value = torch.tensor([float.fromhex(bias)])
    assert round(float(value) / (x.scale * float(scale))) != code
    coded = grids.layer_codes(scale[:, None], value, chosen("onnx"), True, x, None, scale)
    assert coded.bias.tolist() == [code] and coded.largest >= 1 + code


@clause("QAT-CONVERT")
@pytest.mark.parametrize("name", {DIALECTS[name].quantize_rule: name for name in TRAINED}.values())
@given(r=draws.seeds(), bits=st.integers(2, 8), shape=st.lists(st.integers(0, 5), max_size=3))
def test_an_activation_on_ties_has_the_codes_of_its_dialect(name, r, bits, shape):
    qmax = 2**bits - 1
    grid = grids.Grid(float(np.float32(2.0 ** r.uniform(-12, 2))), int(r.integers(0, qmax + 1)), 0, qmax)
    x = np.asarray(on_ties(r, shape, np.float32(grid.scale), qmax))
    found, ends = grids.quantized_and_ends(torch.from_numpy(x), grid, dialect(name))
    expected = dialect(name).quantize(x, np.float32(grid.scale), grid.zero_point, qmin=0, qmax=qmax)
    assert np.array_equal(found.numpy() + grid.zero_point, expected)
    assert ends == (x.min(initial=np.inf), x.max(initial=-np.inf))


@clause("QAT-CONVERT")
@given(st.sampled_from(BARE), st.integers(2, 8), draws.seeds())
@example("onnx", 8, None)
def test_a_range_of_either_sign_has_the_grid_of_chapter_5(name, bits, r):
    low, high = (0.0, 0.0) if r is None else sorted(map(float, np.float32(r.normal(size=2) * r.choice([0, 1, 1], 2))))
    for ends in ((low, high), (abs(low), abs(low) + abs(high)), (-abs(low) - abs(high), -abs(low))):
        first, last = map(np.float32, ends)
        expected = grids.of_qparams(dialect(name).activation_qparams(first, last, reduce_range=False, bits=bits))
        found = grids.activation_grid(float(first), float(last), chosen(name, bits=bits, reduce_range=False))
        assert found == expected


@clause("QAT-CONVERT")
def test_the_usual_needs_no_arrays():
    """What each step of training asks for is computed by kernels and by Python's numbers."""
    for name in TRAINED:
        rules = dialect(name)
        for per_channel in (False, True):
            rule = rules.quantize_channels_rule if per_channel else rules.quantize_rule
            assert grids.weight_rule(chosen(name), per_channel).compiled == KERNELS.get(rule)
        if rules.quantize_rule in ("divide", "reciprocal"):
            with mock.patch.object(Dialect, "quantize", side_effect=AssertionError):
                grids.quantized(torch.ones(3), grids.Grid(0.1, 0, 0, 255), rules)
    with mock.patch.object(Dialect, "activation_qparams", side_effect=AssertionError):
        assert grids.activation_grid(-1.0, 1.55, chosen("onnx")) == grids.Grid(float(np.float32(0.01)), 100, 0, 255)


@clause("QAT-REFUSE")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_and_activations_that_are_no_numbers_have_no_codes(value):
    weight, grid = torch.ones(2, 3), grids.Grid(1.0, 0, 0, 255)
    weight[1, 2] = value
    expected = pytest.raises(ValueError, match="^expected finite values, got NaN or infinities$")
    with expected:
        grids.weight_scale(weight, chosen("onnx"), True)
    with expected:
        grids.layer_codes(weight, None, chosen("onnx"), True, grid, grid)
    if np.isnan(value):
        with pytest.raises(ValueError, match="^x: expected numbers, got NaN$"):
            grids.quantized(weight, grid, dialect("onnx"))


@clause("QAT-RANGE")
@given(draws.seeds())
def test_an_end_between_two_float32_moves_to_the_nearer(r):
    """Half of the way to a neighbour and next to nothing more, of which float64 keeps the half alone."""
    old = np.float32(r.normal() * 2.0 ** r.integers(-20, 20))
    new = np.nextafter(old, np.float32(r.choice([-np.inf, np.inf])))
    for constant in (0.5, 0.5 + 2.0**-53, 0.5 - 2.0**-54):
        exact = Fraction(float(old)) + Fraction(constant) * (Fraction(float(new)) - Fraction(float(old)))
        assert grids.moved(float(old), float(new), constant) == float(nearest_float32(exact))
