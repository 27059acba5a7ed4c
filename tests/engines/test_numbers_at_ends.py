"""Numbers at the ends of what their types hold: what is too large is infinite, of which nothing is warned, and what
lies beside a tie is rounded as exact numbers are."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantspec.numerics import accuracy, affine, bilinear, weight_only
from quantspec.numerics.affine import QParams
from quantspec.numerics.attention import attend
from quantspec.numerics.bags import bags
from quantspec.numerics.dialects import operations
from quantspec.numerics.dialects.float32 import fma, saturate16, to_int32
from quantspec.numerics.dialects.named import DIALECTS, dialect
from quantspec.numerics.dialects.quantize import QUANTIZE, quantize

MOST = np.finfo(np.float32).max


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("weight", [4, np.inf])
def test_rows_of_a_bag_may_be_infinite(mode, weight):
    codes, scale = np.int8([[1, 0, -1]] * 2), np.float32([2.0**127] * 2)
    weights = np.float32([weight, weight])
    found = bags(lambda places: (codes[places], scale[places]), 3, weights, np.array([0, 2]), mode)
    assert found.dtype == np.float32 and np.array_equal(found, [[np.inf, np.nan, -np.inf]], equal_nan=True)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_of_one_row_is_that_row(mode):
    codes, scale = np.int8([[3, 0, -7], [5, 2, 1]]), np.float32([0.5, 0.25])
    found = bags(lambda places: (codes[places], scale[places]), 3, None, np.array([0, 1, 1, 2]), mode)
    assert found.tolist() == [[1.5, 0, -3.5], [0, 0, 0], [1.25, 0.5, 0.25]]


def test_a_sum_of_products_may_be_infinite_or_none():
    huge, inf = np.float32([MOST, -MOST, MOST, 1]), np.inf
    assert fma(huge, np.float32(2), huge).tolist() == [inf, -inf, inf, 3]
    found = fma(np.float32([inf, inf]), np.float32(1), np.float32([-inf, 1]))
    assert np.array_equal(found, [np.nan, inf], equal_nan=True)


def test_outputs_of_weights_alone_may_be_infinite_or_none():
    grid, x = QParams(np.float32(1), 0, -128, 127), np.float32([[MOST, 0], [np.inf, 1], [-np.inf, np.inf]])
    found = weight_only.linear(x, np.int8([[2, 0], [-3, 1], [1, 1]]), grid, None)
    expected = [[np.inf, -np.inf, MOST], [np.inf, -np.inf, np.inf], [np.nan, np.inf, np.nan]]
    assert np.array_equal(found, np.float32(expected), equal_nan=True)


def test_a_mask_of_the_least_number_hides_as_one_of_minus_infinity_does():
    query, key, value = np.float32([[[1, 2]]]), np.float32([[[1, 0], [9, 9]]]), np.float32([[[0.5, 1], [7, 7]]])
    found = [attend(query, key, value, 1.0, np.float32([[0, least]]), False) for least in (-MOST, -np.inf)]
    assert found[0] is not None and np.array_equal(*found)


@pytest.mark.parametrize("rule", sorted(QUANTIZE))
def test_values_far_outside_of_a_grid_have_its_ends(rule):
    x = np.float32([-MOST, MOST, -np.inf, np.inf])
    assert quantize(rule, x, np.float32(2.0**-20), 3, 0, 255, None).tolist() == [0, 255, 0, 255]


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_range_that_float32_cannot_hold_has_no_grid(name):
    with pytest.raises(ValueError, match="^maximum: the range is too wide, its scale .* exceeds 2\\^119$"):
        dialect(name).qparams(-MOST, MOST, qmin=0, qmax=255, symmetric=False)
    with pytest.raises(ValueError, match="2\\^119"):
        dialect(name).quantize_dynamic(np.float32([-MOST, MOST]))


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_outputs_that_float32_cannot_hold_are_infinite_or_the_ends_of_their_grid(name):
    rules, sums = dialect(name), np.int32([[2**30, -(2**30)]])
    x_scale, w_scale = np.float32(2.0**50), np.float32([2.0**50, 2.0**50])
    assert rules.real(sums, None, x_scale, w_scale).tolist() == [[np.inf, -np.inf]]
    codes = rules.requantize(sums, np.zeros(2, np.float32), x_scale, w_scale, QParams(2.0**-20, 3, 0, 255))
    # Where steps are converted to int32 on their way, what none holds is the least of them.
    converted = rules.requantize_rule in ("integer-bias-reciprocal", "float-bias")
    assert codes.tolist() == ([[0, 0]] if converted else [[255, 0]])


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_sums_and_products_that_float32_cannot_hold_are_the_ends_of_their_grid(name):
    rules, y = dialect(name), QParams(2.0**-20, 3, 0, 255)
    wide, less = QParams(2.0**100, 3, 0, 255), QParams(2.0**70, 3, 0, 255)
    q, other = np.uint8([4, 2]), np.uint8([4, 4])
    assert operations.add(rules, q, wide, q, wide, y).tolist() == [255, 0]
    if rules.mul_rule != "fixed-two":  # whose multiplier has to be a normal number
        assert operations.mul(rules, q, less, other, less, y).tolist() == [255, 0]


def test_steps_that_no_int32_holds_become_the_least_of_them():
    steps = np.float32([2.0**31, 2.0**31 - 128, -(2.0**31), -(2.0**31) - 256, np.inf, -np.inf, np.nan, 0.5, 1.5])
    found = to_int32(steps)
    assert found.dtype == np.int64 and found.tolist() == [-(2**31), 2**31 - 128, *[-(2**31)] * 5, 0, 2]


@pytest.mark.parametrize(("dtype", "factor"), [(np.int8, 1), (np.float16, 8), (np.float32, 2.0**100)])
def test_signal_and_noise_are_summed_in_float64_whatever_they_are_given_in(dtype, factor):
    values = np.array([[100, -120, 3], [101, -119, 1]]) * factor
    assert accuracy.sqnr(*values.astype(dtype)) == accuracy.sqnr(*values.astype(np.float64))


@given(st.integers(128, 2**16), st.integers(0, 5))
def test_positions_that_a_factor_puts_beside_a_tie_are_those_of_its_exact_value(half, i):
    factor = 256 / (2 * half + 1)  # rounded, so that the first position is not quite half of a 256th
    exact = max(round(256 * ((i + Fraction(1, 2)) / Fraction(factor) - Fraction(1, 2))), 0)
    before, behind, steps = (along[i] for along in bilinear.places(10**6, 6, factor, False))
    assert (before, behind, steps) == (exact // 256, exact // 256 + 1, exact % 256)


@pytest.mark.parametrize(("zero_point", "qmin", "qmax"), [(3, 0, 255), (0, -128, 127), (-128, -128, 127), (9, -8, 7)])
def test_what_lies_within_a_grid_are_the_values_from_its_first_code_to_its_last(zero_point, qmin, qmax):
    grid = QParams(0.5, min(zero_point, qmax), qmin, qmax)
    low, high = affine.dequantize(np.array([qmin, qmax], grid.dtype), grid.scale, grid.zero_point)
    values = [low - 0.01, low, (low + high) / 2, high, high + 0.01]
    assert accuracy.inside(values, grid).tolist() == [False, True, True, True, False]


def test_integers_of_16_bits_end_where_theirs_do():
    values = np.array([-(2**31), -(2**15) - 1, -(2**15), 0, 2**15 - 1, 2**15, 2**31])
    assert saturate16(values).tolist() == [-(2**15)] * 3 + [0] + [2**15 - 1] * 3


@pytest.mark.parametrize(("name", "bits"), [("qnnpack", 21), ("xnnpack", 20)])
def test_nothing_of_a_grid_as_coarse_as_a_sum_may_have_changes_no_code(name, bits):
    y, q = QParams(1, 3, 0, 255), np.arange(256, dtype=np.uint8)
    for power in (0, 1, bits - 1, bits):
        coarse = QParams(2.0**power, 7, 0, 255)
        assert np.array_equal(operations.add(dialect(name), np.full_like(q, 7), coarse, q, y, y), q), power
