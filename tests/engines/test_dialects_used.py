"""Dialects where layers use them: biases that are left out or are integers, grids per channel, folding, and what is
said of scales that make none."""

import numpy as np
import pytest

from quantspec.numerics import folding
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import operations
from quantspec.numerics.dialects.named import DIALECTS, dialect
from quantspec.numerics.dialects.qparams import QPARAMS
from told import exactly

NAMES = sorted(DIALECTS)
ONE = np.float32(1)
INTEGER = [name for name in NAMES if dialect(name).bias_codes(np.float32([0]), ONE, ONE) is not None]
R = np.random.default_rng(0)
X, Y = QParams(0.1, 3, 0, 255), QParams(0.25, 100, 0, 255)
W = QParams(np.float32([0.01, 0.02, 0.03, 0.04]), np.zeros(4, np.int32), -128, 127, axis=0)
PLACES = {"stride": (1,), "padding": ((1, 1),), "dilation": (1,), "input_dilation": (1,), "groups": 1}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_without_a_bias_is_one_whose_bias_is_zero(name):
    rules, zero = dialect(name), np.zeros(4, np.float32)
    x, w = R.integers(0, 256, (5, 6)).astype(np.uint8), R.integers(-128, 128, (4, 6)).astype(np.int8)
    real, sums = R.normal(size=(5, 6)).astype(np.float32), R.integers(-9999, 9999, (2, 3, 4)).astype(np.int32)
    layers = (
        lambda bias: rules.linear(x, X, w, W, bias, Y),
        lambda bias: rules.conv(x[:, None], X, w[:, None, :3], W, bias, Y, **PLACES),
        lambda bias: rules.linear_dynamic(real, w, W, bias),
        lambda bias: rules.real(sums, bias, X.scale, W.scale),
    )
    for layer in layers:
        assert np.array_equal(layer(None), layer(zero))


@pytest.mark.parametrize("name", INTEGER)
def test_a_bias_in_codes_is_of_integers_that_end_where_those_of_32_bits_do(name):
    unit = np.float32(2.0**-20)
    codes = dialect(name).bias_codes(np.float32([-1e9, -3 * unit * unit, 0, 1e9]), unit, unit)
    assert codes.dtype.kind == "i" and codes.tolist()[1:] == [-3, 0, 2**31 - 1]
    assert codes[0] in (-(2**31), 1 - 2**31)


@pytest.mark.parametrize("rule", sorted(QPARAMS))
@pytest.mark.parametrize("ends", [(0, 255), (0, 127), (-128, 127), (-8, 7)])
def test_ranges_of_channels_have_the_grids_that_each_has_alone(rule, ends):
    low, high = np.float32([-1, 0, -3, 0.5, -1e-12, 0, 0]), np.float32([2, 0.5, -1, 1, 1e-12, 1e-37, 0])
    scale, zero_point = QPARAMS[rule](low, high, *ends)
    alone = [QPARAMS[rule](np.asarray(a), np.asarray(b), *ends) for a, b in zip(low, high)]
    assert scale.tolist() == [float(own) for own, _ in alone] and scale.dtype == np.asarray(alone[0][0]).dtype
    assert np.broadcast_to(zero_point, 7).tolist() == [int(own) for _, own in alone]


def test_the_exact_dialect_folds_as_chapter_4_does():
    weight = R.normal(size=(64, 3, 1, 1)).astype(np.float32)
    bias, gamma, beta, mean = R.normal(size=(4, 64)).astype(np.float32)
    numbers = weight, bias, gamma, beta, mean, R.uniform(0.01, 4, 64).astype(np.float32), 1e-5
    exact, other = (operations.fold_batch_norm(dialect(name), *numbers) for name in ("exact", "fbgemm"))
    for got, single, expected in zip(exact, other, folding.fold_batch_norm(*numbers)):
        assert np.array_equal(got, expected) and not np.array_equal(single, expected)


@pytest.mark.parametrize("name", [name for name in NAMES if dialect(name).fold_rule != "exact"])
def test_parameters_are_folded_as_the_float32_numbers_that_they_are_near(name):
    numbers = [R.normal(size=(64, 3)), *R.normal(size=(4, 64)), R.uniform(0.01, 4, 64)]
    wide, single = (
        operations.fold_batch_norm(dialect(name), *(array.astype(dtype) for array in numbers), 1e-5)
        for dtype in (np.float64, np.float32)
    )
    for got, expected in zip(wide, single):
        assert got.dtype == np.float32 and np.array_equal(got, expected)


@pytest.mark.parametrize(
    ("operation", "scales", "what", "value"),
    [
        ("mul", (2.0**-100, 2.0**-100, 1), "product of the inputs' scales over the output's", 0.0),
        ("add", (2.0**-100, 2.0**-90, 2.0**100), "ratio of an input's scale to the output's", 0.0),
        ("add", (2.0**-100, 2.0**100, 2.0**-100), "ratio of an input's scale to the output's", np.inf),
        ("linear", (2.0**-70, 2.0**-70, 1), "scale of input times scale of weight", 2.0**-140),
        ("linear", (2.0**70, 2.0**70, 1), "scale of input times scale of weight", np.inf),
        ("linear", (2.0**-60, 2.0**-60, 2.0**20), "multiplier", 2.0**-140),
    ],
)
def test_what_scales_make_that_is_no_normal_number_is_named_with_its_value(operation, scales, what, value):
    a, b, y = (QParams(scale, 0, 0, 255) for scale in scales)
    codes, rules = np.uint8([[1, 2]]), dialect("qnnpack" if operation == "add" else "tflite-reference")
    own = rules.linear if operation == "linear" else getattr(operations, operation)
    first, last = ((), (None,)) if operation == "linear" else ((rules,), ())
    message = f"scale: expected a {what} that is a normal float32, got {np.float32(value)}"
    with pytest.raises(ValueError, match=exactly(message)):
        own(*first, codes, a, codes, b, *last, y)
