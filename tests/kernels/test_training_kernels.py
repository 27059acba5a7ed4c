"""The compiled loops of training: codes of weights, biases and activations, and gradients, beside NumPy's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies
from quantspec.kernels import training
from quantspec.numerics import affine, integer

RULES = st.sampled_from(["exact", "divide", "reciprocal"])
COUNTS = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 1000]))
FLOOR = 2.0**-63


def at(array):
    """Where an array lies, in one piece."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def codes_of(rule, x, scale, low, high):
    """The codes of float32 values by a rule of DIA-QUANTIZE, for a zero point of 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        if rule == "exact":
            return affine.quantize(x, scale, 0, qmin=low, qmax=high).astype(np.float32)
        steps = x / scale if rule == "divide" else x * (np.float32(1) / scale)
        return np.clip(np.rint(steps), low, high)


def values(r, shape, scale):
    """Values within and beyond 256 steps, of which a third lie on ties between codes or next to them."""
    x = r.normal(size=shape) * float(scale) * 10.0 ** r.integers(-1, 4)
    ties = (r.integers(-140, 140, shape) + 0.5) * float(scale)
    x = np.where(r.random(shape) < 1 / 3, ties, x).astype(np.float32)
    for _ in range(2):
        x = np.where(r.random(shape) < 1 / 3, np.nextafter(x, np.float32(r.choice([-np.inf, np.inf]))), x)
    return x


def scales(r, shape):
    ends = (-20, 10) if r.random() < 0.8 else (-125, 90)
    return np.float32(2.0 ** r.uniform(*ends, shape))


@given(strategies.seeds(), RULES, COUNTS)
def test_activations_have_the_codes_of_their_rule_and_their_own_ends(r, rule, count):
    scale = np.float32(scales(r, ()))
    x, codes = values(r, count, scale), np.full(count + 1, 7.0, np.float32)
    found = training.activation(rule)(at(x), at(codes), count, float(scale), -100.0, 127.0)
    assert training.unpacked(found) == (x.min(), x.max())
    assert np.array_equal(codes[:count], codes_of(rule, x, scale, -100, 127)) and codes[count] == 7
    x[r.integers(count)] = np.nan
    assert all(map(math.isnan, training.unpacked(training.activation(rule)(at(x), at(codes), count, 1.0, 0.0, 1.0))))


@given(strategies.seeds(), RULES, st.integers(1, 5), COUNTS, st.booleans(), st.integers(2, 8))
def test_a_weight_has_codes_on_its_own_scales(r, rule, outputs, inputs, apart, bits):
    qmin, qmax = affine.code_range(bits, signed=True)
    weight = (r.normal(size=(outputs, inputs)) * 10.0 ** r.integers(-12, 6)).astype(np.float32)
    weight[r.integers(outputs)] *= r.integers(0, 2)
    codes, own = np.empty_like(weight), np.empty(outputs if apart else 1, np.float32)
    run, numbers = training.weight(rule), (qmax, FLOOR, 1.0, qmin, qmax)
    found = run(at(weight), at(codes), at(own), outputs, inputs, apart, 0, *numbers)
    largest = np.abs(weight).max(1) if apart else np.abs(weight).max(keepdims=True).ravel()
    expected = np.where(largest == 0, np.float32(1), np.maximum(largest / np.float32(qmax), np.float32(FLOOR)))
    assert np.array_equal(own, expected)
    assert np.array_equal(codes, [codes_of(rule, *row, qmin, qmax) for row in zip(weight, np.resize(own, outputs))])
    sums = np.abs(codes).sum(1)
    assert found == 2 * sums.max() + (not sums.all())
    again, only = np.empty_like(codes), np.empty_like(own)
    assert run(at(weight), at(again), at(own), outputs, inputs, apart, 1, *numbers) == found
    run(at(weight), 0, at(only), outputs, inputs, apart, 0, *numbers)
    assert np.array_equal(again, codes) and np.array_equal(only, own)


@given(strategies.seeds(), RULES, st.integers(1, 40), st.sampled_from([np.nan, np.inf, -np.inf]))
def test_a_weight_that_is_not_finite_has_no_codes(r, rule, inputs, value):
    weight = r.normal(size=(3, inputs)).astype(np.float32)
    weight[r.integers(3), r.integers(inputs)] = value
    codes, own, added = np.empty_like(weight), np.ones(3, np.float32), np.empty((3, 3), np.float32)
    numbers = 127.0, FLOOR, 1.0, -128.0, 127.0
    for is_given in (0, 1):
        run = training.weight(rule)
        assert run(at(weight), at(codes), at(own), 3, inputs, 1, is_given, *numbers) == -1
    layer = training.layer(rule)
    assert layer(at(weight), 0, at(codes), at(added), 3, inputs, 1, 0, 9, *numbers, 1.0, 1.0) == -1


@given(strategies.seeds(), st.integers(1, 40), st.booleans(), st.booleans())
def test_a_layer_has_its_bias_in_codes_and_what_accumulators_are_multiplied_by(r, outputs, apart, has_bias):
    weight = r.integers(-3, 4, (outputs, 5)).astype(np.float32)
    x_scale, y_scale = np.float32(r.uniform(0.01, 1)), np.float32(r.uniform(0.01, 1))
    bias = (r.normal(size=outputs) * 10.0 ** r.integers(-3, 3, outputs)).astype(np.float32)
    if r.random() < 0.3:
        bias[r.integers(outputs)] *= np.float32(2.0 ** r.integers(20, 40))
    codes, numbers = np.empty_like(weight), np.full((4, outputs), 7.0, np.float32)
    found = training.layer("divide")(
        at(weight), at(bias) if has_bias else 0, at(codes), at(numbers), outputs, 5, apart, 0, 11, 3.0, FLOOR, 1.0,
        -128.0, 127.0, float(x_scale), float(y_scale),
    )  # fmt: skip
    largest = np.abs(weight).max(1) if apart else np.full(outputs, np.abs(weight).max())
    own = np.where(largest == 0, np.float32(1), largest / np.float32(3))
    assert np.array_equal(numbers[0], own) and (numbers[3] == 7).all()
    assert np.array_equal(numbers[1], own * x_scale / y_scale)
    bias = bias if has_bias else np.zeros(outputs, np.float32)
    exact = integer.quantize_bias(bias, x_scale, own).astype(np.int64)
    sums = np.abs(codes).sum(1)
    few = (np.abs(bias, dtype=np.float64) / (np.float64(x_scale) * 2.0**30) > own).any()
    if not found & 1:
        assert np.array_equal(numbers[2], exact.astype(np.float32))
        assert found >> 3 == 11 * sums.max() + np.abs(exact).max()
    assert bool(found & 2) == few and bool(found & 4) == (not sums.all())


def test_a_bias_on_a_tie_between_codes_is_not_sure():
    weight, bias = np.ones((2, 1), np.float32), np.array([3.0, 2.5], np.float32)
    codes, numbers = np.empty_like(weight), np.empty((3, 2), np.float32)
    call = at(weight), at(bias), at(codes), at(numbers), 2, 1, 1, 0, 1, 1.0, FLOOR, 1.0, -128.0, 127.0, 1.0, 1.0
    assert training.layer("exact")(*call) & 7 == 1
    bias[1] = np.nextafter(np.float32(2.5), np.float32(3))
    assert training.layer("exact")(*call) & 7 == 0 and numbers[2].tolist() == [3, 3]
    bias[0] = np.nan
    assert training.layer("exact")(*call) & 1


@given(strategies.seeds(), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40))
def test_accumulators_become_steps_and_codes(r, images, outputs, positions):
    total = r.integers(-3000, 3000, (images, outputs, positions)).astype(np.float32)
    units = np.float32(2.0 ** r.uniform(-12, 0, outputs))
    units[0] = np.float32(0.5)  # ties
    steps = total * units[:, None]
    expected = np.clip(np.rint(steps), -20, 90)
    for rows in (False, True):
        source = np.ascontiguousarray(np.moveaxis(total, 1, -1)) if rows else total.copy()
        codes = np.empty_like(source)
        shape = (images * positions, outputs) if rows else (images, outputs, positions)
        run = training.rows() if rows else training.planes()
        found = run(at(source), at(codes), at(units), *shape, -20.0, 90.0)
        assert training.unpacked(found) == (steps.min(), steps.max())
        back = [np.moveaxis(a, -1, 1) if rows else a for a in (source, codes)]
        assert np.array_equal(back[0], steps) and np.array_equal(back[1], expected)
    units[0] = np.nan
    found = training.planes()(at(total), at(codes), at(units), images, outputs, positions, -20.0, 90.0)
    assert all(map(math.isnan, training.unpacked(found)))


@pytest.mark.parametrize("outputs", [1, 15, 16, 33])
@given(strategies.seeds(), st.integers(1, 40))
def test_gradients_pass_between_both_ends(outputs, r, rows):
    gradient = r.normal(size=(rows, outputs)).astype(np.float32)
    steps = r.integers(-6, 7, (rows, outputs)).astype(np.float32) / 2
    own = np.float32(r.uniform(0.1, 1, outputs))
    of_x, of_weight, of_bias = np.empty_like(gradient), np.empty_like(gradient), np.full(outputs + 1, 7, np.float32)
    places = at(of_x), at(of_weight), at(of_bias)
    training.gradients()(at(gradient), at(steps), at(own), *places, rows, outputs, 0.375, -2.0, 1.5)
    passed = np.where((steps > -2) & (steps < 1.5), gradient, np.float32(0))
    assert np.array_equal(of_x, passed * own) and np.array_equal(of_weight, passed * np.float32(0.375))
    assert np.array_equal(of_bias[:-1], passed.astype(np.float64).sum(0).astype(np.float32)) and of_bias[-1] == 7
