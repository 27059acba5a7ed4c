"""Chapter 3: integer arithmetic. The oracle is the chapter's own definitions."""

import contextlib
import re
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec import UnsupportedError, chapters
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams
from strategies import every_code, every_zero_point

spec = chapters.load("integer")
affine_spec = chapters.load("affine")


@st.composite
def layers(draw, *, max_inputs=17, per_channel=None, symmetric=None):
    """(x_q, x, w_q, w, bias, y) of a small linear layer; by its scales outputs land among the codes and beside ties."""
    rows, outputs = draw(st.integers(0, 3)), draw(st.integers(1, 3))
    inputs = draw(st.one_of(st.integers(0, max_inputs), st.sampled_from([n for n in draws.LENGTHS if n <= max_inputs])))
    generator = draw(draws.seeds())
    x = QParams(draw(draws.scales(2.0**-12, 4.0)), draw(st.integers(0, 255)), 0, 255)
    if draw(st.booleans()):
        x = QParams(x.scale, int(x.zero_point) - 128, -128, 127)
    per_channel = draw(st.booleans()) if per_channel is None else per_channel
    symmetric = draw(st.booleans()) if symmetric is None else symmetric
    count = outputs if per_channel else 1
    w_scale = draw(draws.channel_scales(count, 2.0**-12, 4.0))
    w_zero = np.zeros(count) if symmetric else generator.integers(-128, 128, count)
    w = QParams(w_scale, w_zero, -128, 127, axis=0) if per_channel else QParams(w_scale[0], w_zero[0], -128, 127)
    x_q = generator.integers(x.qmin, x.qmax + 1, (rows, inputs)).astype(x.dtype)
    w_q = generator.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    unit = float(x.scale) * float(w_scale.max())
    y = QParams(
        np.float32(unit * draw(st.sampled_from([1.0, 2.0, 3.0, 100.0, 1000.0]))), draw(st.integers(0, 255)), 0, 255
    )
    bias = np.array([draw(st.sampled_from([0.0, 0.5, 1.5, 7.0, -100.0])) * unit for _ in range(outputs)], np.float32)
    return x_q, x, w_q, w, bias, y


def w_qparams(w, outputs):
    """(scale, zero_point) for each output, as the definitions take them."""
    return list(zip(np.broadcast_to(w.scale, outputs).tolist(), np.broadcast_to(w.zero_point, outputs).tolist()))


def defined(x_q, x, w_q, w, bias, y, *, relu=False):
    """The chapter's output codes."""
    linear = spec.linear_relu if relu else spec.linear
    ends = float(y.scale), int(y.zero_point), y.qmin, y.qmax
    return linear(
        x_q.tolist(), (float(x.scale), int(x.zero_point)), w_q.tolist(), w_qparams(w, len(w_q)), bias.tolist(), ends
    )


@clause("INT-ACC")
@given(layers(max_inputs=65))
def test_accumulators_are_exact(layer):
    x_q, x, w_q, w, _, _ = layer
    points = np.broadcast_to(w.zero_point, len(w_q)).tolist()
    got = integer.accumulate(x_q, x.zero_point, w_q, w.zero_point)
    assert got.dtype == np.int32 and got.shape == (len(x_q), len(w_q))
    assert got.tolist() == [
        [spec.accumulate(r, int(x.zero_point), c, p) for c, p in zip(w_q.tolist(), points)] for r in x_q.tolist()
    ]


@clause("INT-ACC")
@pytest.mark.parametrize("inputs", [0, 1, 1023, 60_000])
def test_accumulators_are_exact_at_their_largest(inputs):
    for x_code, w_code, z in ((255, -128, 0), (255, 127, 0), (0, 127, 255)):
        x, w = np.full((1, inputs), x_code, np.uint8), np.full((2, inputs), w_code, np.int8)
        assert integer.accumulate(x, z, w, 0).tolist() == [[inputs * (x_code - z) * w_code] * 2]


@clause("INT-ACC")
def test_every_pair_of_codes_is_multiplied_exactly_at_every_zero_point():
    codes, weights = every_code(0, 255), every_code(-128, 127)
    for zero_point in every_zero_point(0, 255):
        products = integer.accumulate(codes[:, None], zero_point, weights[:, None], 0)
        assert (products == np.subtract.outer(codes.astype(int), zero_point)[:, None] * weights.astype(int)).all()


@clause("INT-ACC")
def test_what_is_no_matrix_of_codes_is_refused():
    codes, weights = np.zeros((2, 3), np.uint8), np.zeros((2, 4), np.int8)
    with pytest.raises(ValueError, match="x_q, w_q: expected"):
        integer.accumulate(codes, 0, weights, 0)
    with pytest.raises(ValueError, match="x_q, w_q: expected"):
        integer.accumulate(codes[0], 0, weights, 0)
    with pytest.raises(TypeError, match="x_q: expected uint8 or int8 codes, got int64"):
        integer.accumulate(codes.astype(int), 0, weights, 0)
    with pytest.raises(TypeError, match="w_q: expected uint8 or int8 codes"):
        integer.accumulate(codes, 0, weights.astype(np.float32), 0)


@clause("INT-OVERFLOW")
@given(
    st.integers(66_000, 68_000), st.sampled_from([0, 1, 100, 255]), st.sampled_from([-128, 127]),
    st.integers(-(2**24), 2**24),
)
@example(66311, 0, 127, 2**31 - 1 - 255 * 127 * 66311)
@example(66311, 0, 127, 2**31 - 255 * 127 * 66311)
def test_a_layer_that_could_overflow_is_refused(inputs, zero_point, weight, bias_code):
    x, w = QParams(1.0, zero_point, 0, 255), QParams(1.0, 0, -128, 127)
    w_q = np.full((2, inputs), weight, np.int8)
    w_q[0] = 0
    worst = spec.worst_accumulator(zero_point, 0, 255, [weight] * inputs, 0, bias_code)
    bias_q = np.array([0, bias_code], dtype=np.int64)
    if worst <= 2**31 - 1:
        integer.check_overflow(x, w_q, w, bias_q)
    else:
        with pytest.raises(UnsupportedError, match=f"output 1 can reach {worst}, beyond int32"):
            integer.check_overflow(x, w_q, w, bias_q)


@clause("INT-OVERFLOW")
def test_weights_of_both_signs_do_not_cancel_in_the_worst_case():
    x, w = QParams(1.0, 0, 0, 255), QParams(1.0, 0, -128, 127)
    for pairs in (33_000, 33_500):
        w_q = np.tile(np.int8([127, -127]), (1, pairs))
        worst = spec.worst_accumulator(0, 0, 255, w_q[0].tolist(), 0, 0)
        assert worst == 2 * pairs * 127 * 255
        if worst <= 2**31 - 1:
            integer.check_overflow(x, w_q, w, np.zeros(1, np.int64))
        else:
            with pytest.raises(UnsupportedError, match=f"output 0 can reach {worst}, beyond int32"):
                integer.check_overflow(x, w_q, w, np.zeros(1, np.int64))


@clause("INT-OVERFLOW")
@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (-128, 127), (0, 127)])
def test_the_limit_is_exact_at_every_zero_point_of_the_input_and_for_weights_with_their_own(qmin, qmax):
    w_q = np.arange(-90, 90, 5).astype(np.int8).reshape(2, 3, 3, 2)
    w = QParams([1.0, 1.0], [3, -7], -128, 127, axis=0)
    for zero_point in every_zero_point(qmin, qmax):
        x = QParams(1.0, zero_point, qmin, qmax)
        for output, w_zero in enumerate((3, -7)):
            room = 2**31 - 1 - spec.worst_accumulator(zero_point, qmin, qmax, w_q[output].ravel().tolist(), w_zero, 0)
            bias_q = np.zeros(2, np.int32)
            bias_q[output] = -room
            integer.check_overflow(x, w_q, w, bias_q)
            bias_q[output] = -room - 1
            with pytest.raises(
                UnsupportedError, match=f"^weight: the accumulator of output {output} can reach {2**31}, beyond int32$"
            ):
                integer.check_overflow(x, w_q, w, bias_q)


@clause("INT-OVERFLOW")
def test_linear_and_conv_refuse_what_could_overflow():
    x, w, y = QParams(1.0, 0, 0, 255), QParams(1.0, 0, -128, 127), QParams(1.0, 0, 0, 255)
    w_q = np.full((1, 70_000), 127, np.int8)
    with pytest.raises(UnsupportedError, match="beyond int32"):
        integer.linear(np.zeros((1, 70_000), np.uint8), x, w_q, w, None, y)
    with pytest.raises(UnsupportedError, match="beyond int32"):
        integer.conv2d(np.zeros((1, 70_000, 1, 1), np.uint8), x, w_q[:, :, None, None], w, None, y)


@clause("INT-OVERFLOW")
@given(layers(symmetric=False), st.integers(1, 40))
def test_the_worst_accumulator_is_found_in_whatever_blocks_the_weights_are_read(layer, block):
    _, x, w_q, w, _, _ = layer
    zero_points = [zero_point for _, zero_point in w_qparams(w, len(w_q))]
    outputs = list(zip(w_q.tolist(), zero_points))
    worst = [spec.worst_accumulator(int(x.zero_point), x.qmin, x.qmax, row, point, 0) for row, point in outputs]
    # A bias of as much as there is room for beside the worst, and one more.
    for room in (0, 1):
        bias_q = np.zeros(len(w_q), np.int64)
        bias_q[np.argmax(worst)] = 2**31 - 1 - max(worst) + room
        message = f"the accumulator of output {np.argmax(worst)} can reach {2**31}, beyond int32"
        refused = pytest.raises(UnsupportedError, match=message) if room else contextlib.nullcontext()
        with mock.patch.object(integer, "BLOCK", block), refused:
            integer.check_overflow(x, w_q, w, bias_q)


@clause("INT-OVERFLOW")
@given(st.integers(0, 10**6), st.lists(st.sampled_from([0, 1, 2, 2**8, 2**16, 2**17, 2**17 + 1]), max_size=2))
def test_blocks_hold_as_many_whole_rows_as_their_size_allows_and_at_least_one(rows, others):
    array = np.broadcast_to(np.int8(0), (rows, *others))
    most = max(1, 2**17 // max(1, int(np.prod(others))))
    expected = [slice(first, first + most) for first in range(0, rows, most)]
    got = integer.blocks_of_rows(array)
    assert got == expected if array.size else all(array[block].size == 0 for block in got)
    assert sum(len(range(rows)[block]) for block in got) == rows


@clause("INT-OVERFLOW")
@given(layers(symmetric=False))
def test_no_input_exceeds_the_worst_accumulator(layer):
    x_q, x, w_q, w, _, _ = layer
    got = np.abs(integer.accumulate(x_q, x.zero_point, w_q, w.zero_point).astype(np.int64))
    for output, (_, zero_point) in enumerate(w_qparams(w, len(w_q))):
        worst = spec.worst_accumulator(int(x.zero_point), x.qmin, x.qmax, w_q[output].tolist(), zero_point, 0)
        assert (got[:, output] <= worst).all()


@clause("INT-SUMS")
@given(layers(symmetric=False))
def test_the_sums_of_codes_give_the_same_accumulator(layer):
    x_q, x, w_q, w, _, _ = layer
    points = np.broadcast_to(w.zero_point, len(w_q)).tolist()
    expected = [
        [spec.accumulate_by_sums(r, int(x.zero_point), c, p) for c, p in zip(w_q.tolist(), points)]
        for r in x_q.tolist()
    ]
    assert integer.accumulate(x_q, x.zero_point, w_q, w.zero_point).tolist() == expected


@clause("INT-BIAS", "INT-BIAS-SATURATE")
@given(draws.scales(2.0**-60, 2.0**40), st.lists(draws.scales(2.0**-60, 2.0**40), min_size=1, max_size=4), st.data())
def test_bias_codes_equal_the_definition(x_scale, w_scales, data):
    w_scale = np.array(w_scales, np.float32)
    units = [float(x_scale) * float(s) for s in w_scale]
    bias = np.array([np.float32(data.draw(draws.values(min(u, 2.0**100), finite=True))) for u in units], np.float32)
    expected = [spec.quantize_bias(b, x_scale, s) for b, s in zip(bias, w_scale)]
    got = integer.quantize_bias(bias, x_scale, w_scale)
    assert got.dtype == np.int32 and got.tolist() == expected
    assert integer.quantize_bias(bias, x_scale, w_scale[0]).tolist() == [
        spec.quantize_bias(b, x_scale, w_scale[0]) for b in bias
    ]


@clause("INT-BIAS")
@pytest.mark.parametrize("steps", [0.5, 1.5, 2.5, -0.5, -1.5, 1000000.5, 1000001.5])
def test_bias_ties_go_to_even(steps):
    assert integer.quantize_bias(np.float32([steps]), 1.0, 1.0).tolist() == [round(steps)]


@clause("INT-BIAS")
@pytest.mark.parametrize(
    ("bias", "x_scale", "w_scale"),
    [
        (9590312 * 2.0**-31, 8477747 * 2.0**-23, 11902703 * 2.0**-60),
        (2057569 * 2.0**-29, 13401453 * 2.0**-23, 8750497 * 2.0**-60),
        (2229849 * 2.0**-30, 14166377 * 2.0**-23, 14341051 * 2.0**-60),
        (6038457 * 2.0**-29, 11220953 * 2.0**-23, 15679235 * 2.0**-60),
    ],
)
def test_a_bias_that_misses_a_tie_by_less_than_float64_resolves_is_rounded_exactly(bias, x_scale, w_scale):
    steps = Fraction(bias) / (Fraction(x_scale) * Fraction(w_scale))
    assert 0 < abs(abs(steps - round(steps)) - Fraction(1, 2)) < steps / 2**53
    for sign in (-1, 1):
        expected = spec.quantize_bias(sign * bias, x_scale, w_scale)
        assert (
            integer.quantize_bias(np.float32([sign * bias]), np.float32(x_scale), np.float32(w_scale)).tolist()
            == [expected]
            == [sign * round(steps)]
        )


@clause("INT-BIAS")
def test_a_bias_that_float32_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="^bias: expected float32 values, got float64"):
        integer.quantize_bias(np.array([0.1]), 1.0, 1.0)


@clause("INT-BIAS-SATURATE")
@pytest.mark.parametrize("bias", [2.0**31, 2.0**40, 3e38])
def test_a_bias_saturates_at_32_bits(bias):
    got = integer.quantize_bias(np.float32([bias, -bias]), 1.0, 1.0)
    assert got.tolist() == [2**31 - 1, -(2**31 - 1)] == [spec.quantize_bias(b, 1.0, 1.0) for b in (bias, -bias)]


@clause("INT-MULTIPLIER", "INT-REQUANT")
@given(st.data(), draws.scales(2.0**-30, 2.0**30), draws.scales(2.0**-30, 2.0**30), st.booleans())
def test_requantize_equals_the_definition_on_and_beside_ties(data, x_scale, w_scale, relu):
    y = QParams(data.draw(draws.scales(2.0**-30, 2.0**30)), data.draw(st.integers(0, 255)), 0, 255)
    m = spec.multiplier(x_scale, w_scale, y.scale)
    steps = data.draw(st.lists(st.integers(-600, 600).map(lambda s: Fraction(2 * s + 1, 2)), min_size=1, max_size=8))
    accumulators = [min(max(int(s / m) + data.draw(st.integers(-1, 1)), -(2**31)), 2**31 - 1) for s in steps]
    lowest = int(y.zero_point) if relu else 0
    expected = [spec.requantize(a, m, int(y.zero_point), lowest, 255) for a in accumulators]
    assert integer.requantize(accumulators, x_scale, w_scale, y, relu=relu).tolist() == expected


@clause("INT-MULTIPLIER", "INT-REQUANT")
@given(
    draws.scales(2.0**-8, 1.0), draws.scales(2.0**-8, 1.0), st.integers(12, 20), st.floats(1, 2, width=32),
    st.integers(0, 255),
)
def test_the_multiplier_is_exact_on_both_sides_of_every_tie(x_scale, w_scale, exponent, share, zero_point):
    # A small multiplier: neighbouring accumulators lie closer to a tie than a float32 could tell.
    y = QParams(np.float32(float(x_scale) * float(w_scale) * 2**exponent * share), zero_point, 0, 255)
    m = spec.multiplier(x_scale, w_scale, y.scale)
    below = [int((Fraction(int(code) - zero_point) + Fraction(1, 2)) / m) for code in every_code(0, 255)]
    accumulators = [a + d for a in below for d in (-1, 0, 1)]
    expected = [spec.requantize(a, m, zero_point, 0, 255) for a in accumulators]
    assert integer.requantize(accumulators, x_scale, w_scale, y).tolist() == expected


@clause("INT-REQUANT")
def test_a_product_that_misses_a_tie_by_less_than_float64_resolves_is_rounded_exactly():
    accumulator, x_scale, w_scale = 1942976612, np.float32(11351833 * 2.0**-23), np.float32(9072685 * 2.0**-47)
    steps = accumulator * spec.multiplier(x_scale, w_scale, 1.0)
    assert 0 < Fraction(339, 2) - steps < Fraction(1, 2**45)  # float64 has 169.5, and would round it to 170
    assert integer.requantize([accumulator, -accumulator], x_scale, w_scale, QParams(1.0, 10, 0, 255)).tolist() == [
        179,
        0,
    ]
    assert integer.requantize([accumulator, -accumulator], x_scale, w_scale, QParams(1.0, 240, 0, 255)).tolist() == [
        255,
        71,
    ]


@clause("INT-REQUANT")
@pytest.mark.parametrize("unit", [8388617, 10000019, 16777213])
def test_an_output_that_float64_cannot_tell_from_a_tie_goes_to_its_own_side(unit):
    misled = 0
    for odd in range(1, 255, 2):
        exponent = 31 - odd.bit_length()
        for off in (1, -1):
            # accumulator * unit is one more or one less than odd * scale / 2, so that the number of steps hardly misses
            # the tie odd / 2.
            mantissa = pow(-off * odd << exponent, -1, unit)
            accumulator, scale = ((odd * mantissa << exponent) + off) // unit, mantissa << (exponent + 1)
            assert 2 * accumulator * unit == odd * scale + 2 * off
            y = QParams(scale, 128, 0, 255)
            m = spec.multiplier(1.0, float(unit), float(scale))
            expected = [spec.requantize(a, m, 128, 0, 255) for a in (accumulator, -accumulator)]
            assert integer.requantize([accumulator, -accumulator], 1.0, float(unit), y).tolist() == expected
            misled += expected[0] != 128 + np.rint(accumulator * float(unit) / scale)
    assert misled > 20  # float64 alone would have got that many of the 254 wrong


@clause("INT-REQUANT")
@pytest.mark.parametrize("shift", range(0, 20))
def test_every_code_is_reached_and_ties_go_to_even_at_every_zero_point(shift):
    codes = every_code(0, 255).astype(np.int64)
    for zero_point in every_zero_point(0, 255):
        y = QParams(2.0**shift, zero_point, 0, 255)
        halves = (2 * (codes - zero_point) + 1) * 2**shift
        expected = [min(max(round(Fraction(int(h), 2 ** (shift + 1))) + zero_point, 0), 255) for h in halves]
        assert integer.requantize(halves, 0.5, 1.0, y).tolist() == expected


@clause("INT-MULTIPLIER")
@given(layers(per_channel=True))
def test_each_channel_has_its_own_multiplier(layer):
    x_q, x, w_q, w, _, y = layer
    accumulator = integer.accumulate(x_q, x.zero_point, w_q, w.zero_point)
    got = integer.requantize(accumulator, x.scale, w.scale, y)
    for c, scale in enumerate(w.scale):
        assert got[:, c].tolist() == integer.requantize(accumulator[:, c], x.scale, scale, y).tolist()


@clause("INT-REQUANT")
@given(draws.scales(2.0**-20, 2.0**20), st.floats(0, 1), st.booleans())
def test_requantize_saturates(y_scale, share, positive):
    beyond = 300 * float(y_scale) + 300  # every accumulator from here on is more than 256 steps away
    size = round(beyond + share * (2**31 - 1 - beyond))
    y = QParams(y_scale, 7, 0, 255)
    assert integer.requantize([size if positive else -size], 1.0, 1.0, y).tolist() == [255 if positive else 0]


@clause("INT-NEAREST", "INT-REQUANT")
@given(layers())
def test_the_output_is_the_nearest_code_of_the_exact_real_output(layer):
    x_q, x, w_q, w, _, y = layer
    got = integer.linear(x_q, x, w_q, w, None, y)
    for row, codes in zip(got, x_q.tolist()):
        for code, weights, (w_scale, w_zero) in zip(row, w_q.tolist(), w_qparams(w, len(w_q))):
            real = sum(
                affine_spec.real_value(a, x.scale, x.zero_point) * affine_spec.real_value(b, w_scale, w_zero)
                for a, b in zip(codes, weights)
            )
            steps = affine_spec.round_half_even(Fraction(real) / Fraction(float(y.scale)))
            assert int(code) == affine_spec.saturate(steps + int(y.zero_point), y.qmin, y.qmax)


@clause("INT-NEAREST")
@pytest.mark.parametrize("bias_code", [0, 1, -1, 254])
def test_the_output_is_the_nearest_code_at_every_tie_and_zero_point(bias_code):
    x_q, x, w = every_code(0, 255)[:, None], QParams(0.5, 128, 0, 255), QParams(1.0, 0, -128, 127)
    real = (x_q[:, 0].astype(float) - 128 + bias_code) / 2
    for zero_point in every_zero_point(0, 255):
        y = QParams(1.0, zero_point, 0, 255)
        got = integer.linear(x_q, x, np.int8([[1]]), w, np.float32([bias_code / 2]), y)
        assert got[:, 0].tolist() == [affine_spec.quantize(v, 1.0, zero_point, 0, 255) for v in real]


@clause("INT-LINEAR", "INT-BIAS", "INT-MULTIPLIER")
@given(layers(max_inputs=65), st.booleans())
def test_linear_equals_the_definition(layer, relu):
    got = integer.linear(*layer, relu=relu)
    assert got.dtype == np.uint8 and got.shape == (len(layer[0]), len(layer[2]))
    assert got.tolist() == defined(*layer, relu=relu)


@clause("INT-LINEAR", "INT-MULTIPLIER", "INT-NO-BIAS")
@pytest.mark.parametrize("relu", [False, True])
def test_channels_of_very_different_scales_have_their_own_outputs_with_and_without_bias(relu):
    x_q, w_q = every_code(0, 255).reshape(64, 4), np.tile(np.int8([[3, -2, 1, -1]]), (3, 1))
    x, w, y = QParams(0.5, 7, 0, 255), QParams([1.0, 0.1, 30.0], 0, -128, 127, axis=0), QParams(20.0, 101, 0, 255)
    bias = np.float32([100, 10, -1000])
    got = integer.linear(x_q, x, w_q, w, bias, y, relu=relu)
    assert got.tolist() == defined(x_q, x, w_q, w, bias, y, relu=relu) and all(
        len(set(column)) > 1 for column in got.T.tolist()
    )
    assert integer.linear(x_q, x, w_q, w, None, y, relu=relu).tolist() == defined(
        x_q, x, w_q, w, bias * 0, y, relu=relu
    )


@clause("INT-LINEAR")
@given(layers())
def test_linear_does_not_write_to_its_arguments(layer):
    before = [a.copy() for a in (layer[0], layer[2], layer[4])]
    integer.linear(*layer)
    for now, then in zip((layer[0], layer[2], layer[4]), before):
        np.testing.assert_array_equal(now, then)


@clause("INT-BATCH")
@given(layers())
def test_rows_are_independent(layer):
    x_q, *rest = layer
    together = integer.linear(x_q, *rest)
    alone = [integer.linear(x_q[i : i + 1], *rest)[0].tolist() for i in range(len(x_q))]
    assert together.tolist() == alone


@clause("INT-BATCH")
@pytest.mark.parametrize("weight_zero_point", [0, 5])
def test_a_row_of_large_sums_does_not_change_a_row_of_small_ones(weight_zero_point):
    x, w = QParams(1.0, 3, 0, 255), QParams(1.0, weight_zero_point, -128, 127)
    x_q = np.array([[(7 * r + c) % 256 // (1 + 60 * (r % 2)) for c in range(64)] for r in range(20)], np.uint8)
    w_q = np.array([[(5 * o + 3 * i) % 256 - 128 for i in range(64)] for o in range(4)], np.int8)
    for scale in (1.0, 100.0, 3000.0):
        layer = x, w_q, w, np.float32([1, -1, 0, 2]), QParams(scale, 128, 0, 255)
        alone = [integer.linear(row[None], *layer)[0].tolist() for row in x_q]
        assert integer.linear(x_q, *layer).tolist() == alone == defined(x_q, *layer)


@clause("INT-NO-BIAS")
@given(layers())
def test_no_bias_is_a_bias_of_zero(layer):
    x_q, x, w_q, w, _, y = layer
    zero = np.zeros(len(w_q), np.float32)
    assert (
        integer.linear(x_q, x, w_q, w, None, y).tolist()
        == integer.linear(x_q, x, w_q, w, zero, y).tolist()
        == defined(x_q, x, w_q, w, zero, y)
    )


@clause("INT-RELU")
@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (-128, 127), (0, 15), (-8, 7)])
def test_relu_keeps_what_is_above_zero_at_every_zero_point(qmin, qmax):
    codes = every_code(qmin, qmax)
    for zero_point in every_zero_point(qmin, qmax):
        got = integer.relu(codes, zero_point)
        assert got.dtype == codes.dtype
        assert got.tolist() == [spec.relu(int(q), zero_point) for q in codes]
        grid = QParams(0.25, zero_point, qmin, qmax)
        assert grid.dequantize(got).tolist() == np.maximum(grid.dequantize(codes), 0).tolist()


@clause("INT-RELU-LINEAR")
@given(layers())
def test_relu_inside_a_layer_is_relu_behind_it(layer):
    y = layer[-1]
    assert integer.linear(*layer, relu=True).tolist() == integer.relu(integer.linear(*layer), y.zero_point).tolist()


@clause("INT-RELU-LINEAR")
@pytest.mark.parametrize("bias_code", [-300, -3, 0, 3, 300])
def test_relu_inside_a_layer_comes_after_the_bias_at_every_zero_point(bias_code):
    x_q, x, w = every_code(0, 255)[:, None], QParams(0.5, 128, 0, 255), QParams(1.0, 0, -128, 127)
    for zero_point in every_zero_point(0, 255):
        layer = x_q, x, np.int8([[1], [-1]]), w, np.float32([bias_code / 2] * 2), QParams(0.5, zero_point, 0, 255)
        inside = integer.linear(*layer, relu=True)
        assert inside.tolist() == integer.relu(integer.linear(*layer), zero_point).tolist()
        expected = np.clip(x_q[:, 0].astype(int) - 128 + bias_code, 0, 255 - zero_point) + zero_point
        assert inside[:, 0].tolist() == expected.tolist()


def multipliers():
    """Exact positive numbers: ordinary, powers of two, beside them, far from one."""
    ordinary = st.tuples(st.integers(1, 2**48), st.integers(1, 2**48)).map(lambda p: Fraction(*p))
    powers = st.integers(-20, 4).map(lambda e: Fraction(2) ** e)
    beside = st.tuples(powers, st.integers(-(2**3), 2**3), st.integers(28, 60)).map(
        lambda p: p[0] * (1 + Fraction(p[1], 2 ** p[2]))
    )
    return st.one_of(ordinary, powers, beside)


@clause("INT-FIXED", "INT-FIXED-DISTANCE")
@given(multipliers())
@example(1 - Fraction(1, 2**33))
@example(Fraction(1, 2))
@example(Fraction(2**32 + 1, 2**33))
@example(Fraction(2**32 + 3, 2**33))
def test_the_fixed_point_form_is_the_nearest(m):
    m0, n = integer.fixed_point(m)
    assert (m0, n) == spec.fixed_point(m) and isinstance(m0, int)
    assert 2**30 <= m0 < 2**31
    assert abs(m0 * Fraction(2) ** -(31 + n) - m) <= m / 2**31
    assert all(
        abs(other * Fraction(2) ** -(31 + n) - m) >= abs(m0 * Fraction(2) ** -(31 + n) - m)
        for other in (m0 - 1, m0 + 1)
    )


@clause("INT-FIXED")
@pytest.mark.parametrize("m", [Fraction(0), Fraction(-1)])
def test_a_multiplier_that_is_not_positive_is_refused(m):
    with pytest.raises(ValueError, match="multiplier: expected a positive number"):
        integer.fixed_point(m)


@clause("INT-FIXED-ONE")
@pytest.mark.parametrize("n", range(-34, 40))
def test_every_shift_rounds_as_the_definition_does(n):
    y, accumulators = (
        QParams(1.0, 128, 0, 255),
        np.array([0, 1, -1, 2, -2, 3, -3, 255, -255, 2**31 - 1, -(2**31)], np.int32),
    )
    for m0 in (2**30, 3 * 2**29, 2**31 - 1):
        expected = [spec.requantize_one(int(a), m0, n, 128, 0, 255) for a in accumulators]
        assert integer.requantize_fixed(accumulators, m0, n, y, roundings=1).tolist() == expected


@clause("INT-FIXED-TWO")
@pytest.mark.parametrize("n", range(32))
def test_every_second_shift_rounds_as_the_definition_does(n):
    y = QParams(1.0, 128, 0, 255)
    beside = [int(s * 2**n) + d for s in (Fraction(0), Fraction(1, 2), Fraction(3, 2)) for d in (-1, 0, 1)]
    accumulators = np.array([a for b in beside for a in (b, -b)], np.int64).clip(-(2**31), 2**31 - 1).astype(np.int32)
    for m0 in (2**30, 3 * 2**29, 2**31 - 1):
        expected = [spec.requantize_two(int(a), m0, n, 128, 0, 255) for a in accumulators]
        assert integer.requantize_fixed(accumulators, m0, n, y, roundings=2).tolist() == expected


def fixed_cases():
    """(accumulators, m0, n): products on and beside ties of the output."""
    return st.tuples(
        st.integers(2**30, 2**31 - 1), st.integers(-34, 31),
        st.lists(st.tuples(st.integers(-600, 600), st.integers(-2, 2)), min_size=1, max_size=8),
    ).map(
        lambda c: (
            [
                min(max(int(Fraction(2 * s + 1, 2) / (c[0] * Fraction(2) ** -(31 + c[1]))) + d, -(2**31)), 2**31 - 1)
                for s, d in c[2]
            ],
            c[0],
            c[1],
        )
    )


@clause("INT-FIXED-ONE", "INT-FIXED-NEAR")
@given(fixed_cases(), st.integers(0, 255))
@example(([1, 3, -1, -3, 5], 2**30, 0), 100)  # exact ties
@example(([2**31 - 1, -(2**31)], 2**31 - 1, -40), 3)
@example(([2**31 - 1, -(2**31)], 2**31 - 1, 60), 3)
def test_one_rounding_equals_the_definition_and_is_near_the_exact_code(case, zero_point):
    accumulators, m0, n = case
    y = QParams(1.0, zero_point, 0, 255)
    codes = integer.requantize_fixed(np.array(accumulators, np.int32), m0, n, y, roundings=1)
    got = codes.tolist()
    assert codes.dtype == np.uint8 and got == [spec.requantize_one(a, m0, n, zero_point, 0, 255) for a in accumulators]
    m = m0 * Fraction(2) ** -(31 + n)
    for a, code in zip(accumulators, got):
        near(a, m, code, zero_point, m * abs(a) / 2**31)


@clause("INT-FIXED-TWO", "INT-FIXED-NEAR")
@given(fixed_cases(), st.integers(0, 255))
@example(([9, -9, 1, -1], 3 * 2**29, 1), 100)
def test_two_roundings_equal_the_definition_and_are_near_the_exact_code(case, zero_point):
    accumulators, m0, n = case
    y = QParams(1.0, zero_point, 0, 255)
    if n < 0:
        with pytest.raises(ValueError, match="n: expected 0 to 31"):
            integer.requantize_fixed(accumulators, m0, n, y, roundings=2)
        return
    codes = integer.requantize_fixed(np.array(accumulators, np.int32), m0, n, y, roundings=2)
    got = codes.tolist()
    assert codes.dtype == np.uint8 and got == [spec.requantize_two(a, m0, n, zero_point, 0, 255) for a in accumulators]
    m = m0 * Fraction(2) ** -(31 + n)
    for a, code in zip(accumulators, got):
        near(a, m, code, zero_point, m * abs(a) / 2**31 + Fraction(1, 2**n))


def near(accumulator, m, code, zero_point, distance):
    """INT-FIXED-NEAR for a fixed-point result, with m the fixed-point multiplier itself and any within 2^-31 of it."""
    for real in (m, m * (1 - Fraction(1, 2**32)), m * (1 + Fraction(1, 2**32))):
        exact = spec.requantize(accumulator, real, zero_point, 0, 255)
        assert abs(code - exact) <= 1
        if code != exact:
            steps = real * accumulator
            tie = abs(abs(steps - affine_spec.round_half_even(steps)) - Fraction(1, 2))
            assert tie <= distance


@clause("INT-FIXED-ONE", "INT-FIXED-TWO")
def test_other_numbers_of_roundings_and_unnormalised_multipliers_are_refused():
    y = QParams(1.0, 0, 0, 255)
    with pytest.raises(ValueError, match="roundings: expected 1 or 2, got 3"):
        integer.requantize_fixed([1], 2**30, 0, y, roundings=3)
    for m in (2**30 - 1, 2**31):
        with pytest.raises(ValueError, match="m: expected 2\\^30 to 2\\^31 - 1"):
            integer.requantize_fixed([1], m, 0, y, roundings=1)
    for n in (-1, 32):
        with pytest.raises(ValueError, match=f"^n: expected 0 to 31 for two roundings, got {n}$"):
            integer.requantize_fixed([1], 2**30, n, y, roundings=2)


@st.composite
def convolutions(draw):
    """Codes, weights and geometry of a small convolution."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    height, width = (draw(st.integers(low, low + 2)) for low in least)
    generator = draw(draws.seeds())
    x = QParams(0.5, draw(st.integers(0, 255)), 0, 255)
    x_q = generator.integers(0, 256, (draw(st.integers(0, 2)), inputs, height, width)).astype(np.uint8)
    w_q = generator.integers(-128, 128, (outputs, inputs // groups, *kernel)).astype(np.int8)
    w = QParams(generator.choice([0.25, 0.5, 0.3], outputs), 0, -128, 127, axis=0)
    bias = generator.choice([0.0, 1.0, -7.3], outputs).astype(np.float32)
    y = QParams(draw(st.sampled_from([100.0, 255.5, 16.0])), draw(st.integers(0, 255)), 0, 255)
    return (x_q, x, w_q, w, bias, y), dict(stride=stride, padding=padding, dilation=dilation, groups=groups)


@clause("INT-CONV", "INT-CONV-PAD")
@given(convolutions(), st.booleans())
def test_convolution_equals_the_definition(case, relu):
    (x_q, x, w_q, w, bias, y), geometry = case
    got = integer.conv2d(x_q, x, w_q, w, bias, y, **geometry, relu=relu)
    assert got.dtype == np.uint8
    ends = float(y.scale), int(y.zero_point), y.qmin, y.qmax
    for image, codes in zip(x_q, got):
        expected = spec.conv2d(
            image.tolist(), (float(x.scale), int(x.zero_point)), w_q.reshape(len(w_q), -1).tolist(),
            w_qparams(w, len(w_q)), bias.tolist(), ends, kernel=w_q.shape[2:],
            lowest=int(y.zero_point) if relu else None, **geometry,
        )
        assert codes.tolist() == expected


@clause("INT-CONV")
@given(layers())
def test_a_convolution_with_one_position_is_a_linear_layer(layer):
    x_q, x, w_q, w, bias, y = layer
    assume(x_q.shape[1] > 0)
    got = integer.conv2d(x_q[:, :, None, None], x, w_q[:, :, None, None], w, bias, y)
    assert got[:, :, 0, 0].tolist() == integer.linear(x_q, x, w_q, w, bias, y).tolist()


@clause("INT-CONV-PAD")
@given(convolutions())
def test_padding_is_the_code_of_zero(case):
    (x_q, x, w_q, w, bias, y), geometry = case
    top, left = geometry["padding"]
    padded = np.pad(x_q, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=int(x.zero_point))
    outside = integer.conv2d(x_q, x, w_q, w, bias, y, **geometry)
    inside = integer.conv2d(padded, x, w_q, w, bias, y, **(geometry | dict(padding=(0, 0))))
    assert outside.tolist() == inside.tolist()


@clause("INT-CONV-GROUPS")
@given(convolutions())
def test_groups_are_separate_convolutions(case):
    (x_q, x, w_q, w, bias, y), geometry = case
    groups = geometry["groups"]
    together = integer.conv2d(x_q, x, w_q, w, bias, y, **geometry)
    inputs, outputs = x_q.shape[1] // groups, len(w_q) // groups
    for g in range(groups):
        part = slice(g * outputs, (g + 1) * outputs)
        grid = QParams(w.scale[part], 0, -128, 127, axis=0)
        alone = integer.conv2d(
            x_q[:, g * inputs : (g + 1) * inputs], x, w_q[part], grid, bias[part], y, **(geometry | dict(groups=1))
        )
        assert together[:, part].tolist() == alone.tolist()


@clause("INT-CONV-GROUPS")
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_each_group_reads_its_own_neighbouring_channels(groups):
    x_q, w_q = (
        every_code(0, 255)[:64].reshape(1, 4, 4, 4),
        np.arange(4 * 4 // groups * 4, dtype=np.int8).reshape(4, 4 // groups, 2, 2) - 8,
    )
    x, w, y = QParams(1.0, 9, 0, 255), QParams(1.0, 0, -128, 127), QParams(64.0, 128, 0, 255)
    ends = float(y.scale), int(y.zero_point), y.qmin, y.qmax
    got = integer.conv2d(x_q, x, w_q, w, None, y, groups=groups)
    assert got[0].tolist() == spec.conv2d(
        x_q[0].tolist(), (1.0, 9), w_q.reshape(4, -1).tolist(), [(1.0, 0)] * 4, [0.0] * 4, ends, kernel=(2, 2),
        groups=groups,
    )


@clause("INT-CONV")
def test_shapes_that_make_no_convolution_are_refused():
    x, w, y = QParams(1.0, 0, 0, 255), QParams(1.0, 0, -128, 127), QParams(1.0, 0, 0, 255)
    weights, three = (2, 3, 1, 1), (3, 3, 1, 1)
    for shape, w_shape, groups in (
        ((1, 3, 4, 4), weights, 2), ((1, 2, 4, 4), weights, 1), ((3, 4, 4), weights, 1), ((3, 3, 4), weights, 1),
        ((1, 3, 4, 4), (2, 3, 1), 1), ((1, 6, 4, 4), three, 2),
    ):
        shapes = re.escape(f"{shape} and {w_shape}")
        with pytest.raises(
            ValueError, match=f"^x_q, w_q: shapes {shapes} do not make a convolution with {groups} groups$"
        ):
            integer.conv2d(np.zeros(shape, np.uint8), x, np.zeros(w_shape, np.int8), w, None, y, groups=groups)


@clause("INT-CONV", "INT-RELU", "INT-ADD", "INT-CONCAT", "INT-MAXPOOL", "INT-AVGPOOL")
def test_what_is_no_array_of_codes_is_refused_by_name():
    x, w, q = QParams(1.0, 0, 0, 255), QParams(1.0, 0, -128, 127), np.zeros((1, 1, 2, 2), np.uint8)
    wide = q.astype(np.int16)
    for name, call in {
        "x_q": lambda: integer.conv2d(wide, x, q, w, None, x),
        "w_q": lambda: integer.conv2d(q, x, wide, w, None, x),
        "a_q": lambda: integer.add(wide, x, q, x, x),
        "b_q": lambda: integer.add(q, x, wide, x, x),
    }.items():
        with pytest.raises(TypeError, match=f"^{name}: expected uint8 or int8 codes, got int16$"):
            call()
    for call in (
        lambda: integer.relu(wide, 0),
        lambda: integer.concat([(wide, x)], x, axis=0),
        lambda: integer.max_pool2d(wide, kernel=2),
        lambda: integer.avg_pool2d(wide, x, kernel=2),
    ):
        with pytest.raises(TypeError, match="^q: expected uint8 or int8 codes, got int16$"):
            call()


@clause("INT-ADD")
@given(st.data(), st.booleans())
def test_addition_equals_the_definition(data, relu):
    a, b, y = (data.draw(draws.grids(2.0**-20, 2.0**20)) for _ in "aby")
    if data.draw(st.booleans()):
        b = QParams(a.scale, b.zero_point, b.qmin, b.qmax)
        y = QParams(
            np.float32(float(a.scale) * data.draw(st.sampled_from([1.0, 2.0, 3.0]))), y.zero_point, y.qmin, y.qmax
        )
    generator = data.draw(draws.seeds())
    a_q, b_q = (generator.integers(g.qmin, g.qmax + 1, (2, 9)).astype(g.dtype) for g in (a, b))
    got = integer.add(a_q, a, b_q, b, y, relu=relu)
    ends = float(y.scale), int(y.zero_point), y.qmin, y.qmax
    of = [(float(g.scale), int(g.zero_point)) for g in (a, b)]
    assert got.dtype == y.dtype
    assert got.tolist() == [
        [spec.add(int(p), of[0], int(q), of[1], ends, relu) for p, q in zip(*rows)] for rows in zip(a_q, b_q)
    ]


@clause("INT-ADD")
def test_every_pair_of_codes_is_added_exactly():
    codes = every_code(0, 255)
    a_q, b_q = (m.astype(np.uint8) for m in np.meshgrid(codes, codes))
    a, b, y = QParams(1.0, 128, 0, 255), QParams(0.5, 3, 0, 255), QParams(2.0, 101, 0, 255)
    quarters = 4 * (a_q.astype(int) - 128) + 2 * (b_q.astype(int) - 3)
    expected = np.clip(np.rint(quarters / 8) + 101, 0, 255)
    assert (integer.add(a_q, a, b_q, b, y) == expected).all()
    with pytest.raises(ValueError, match="a_q, b_q: expected one shape"):
        integer.add(a_q, a, b_q[:3], b, y)


@clause("INT-ADD")
@pytest.mark.parametrize("tiny", [2.0**-40, 2.0**-60, 2.0**-100])
def test_a_tie_that_a_tiny_number_is_added_to_is_no_tie(tiny):
    a, b, y = QParams(0.5, 0, 0, 255), QParams(tiny, 1, 0, 255), QParams(1.0, 0, 0, 255)
    odd = every_code(0, 255)[1::2]
    # A little less than the tie, the tie, a little more.
    for code, nearest in ((0, odd // 2), (1, odd // 2 + (odd // 2) % 2), (2, odd // 2 + 1)):
        assert integer.add(odd, a, np.full_like(odd, code), b, y).tolist() == nearest.tolist()


@clause("INT-CONCAT")
@given(st.data(), st.integers(0, 2), st.integers(1, 3))
def test_joined_codes_equal_the_definition(data, axis, count):
    y = data.draw(draws.grids(2.0**-20, 2.0**20))
    ends = float(y.scale), int(y.zero_point), y.qmin, y.qmax
    parts, expected = [], []
    for _ in range(count):
        grid = y if data.draw(st.booleans()) else data.draw(draws.grids(2.0**-20, 2.0**20))
        if data.draw(st.booleans()) and grid is not y:
            grid = QParams(np.float32(float(y.scale) / 2), grid.zero_point, grid.qmin, grid.qmax)  # ties
        q = data.draw(draws.seeds()).integers(grid.qmin, grid.qmax + 1, (2, 2, 2)).astype(grid.dtype)
        parts.append((q, grid))
        codes = [spec.rescale(int(v), (float(grid.scale), int(grid.zero_point)), ends) for v in q.ravel()]
        expected.append(np.array(codes).reshape(q.shape))
    got = integer.concat(parts, y, axis=axis)
    assert got.dtype == y.dtype and got.tolist() == np.concatenate(expected, axis=axis).tolist()


@clause("INT-CONCAT")
def test_codes_on_the_common_grid_stay_as_they_are():
    for zero_point in every_zero_point(0, 255):
        y = QParams(0.1, zero_point, 0, 255)
        assert integer.rescale(every_code(0, 255), QParams(0.1, zero_point, 0, 255), y).tolist() == list(range(256))
    # The same steps, but other codes: what lies beyond them saturates.
    for ends in ((0, 15), (-128, 127)):
        y = QParams(0.1, 3, *ends)
        expected = [spec.rescale(q, (float(y.scale), 3), (float(y.scale), 3, *ends)) for q in range(256)]
        assert (
            integer.rescale(every_code(0, 255), QParams(0.1, 3, 0, 255), y).tolist()
            == expected
            == [min(q, ends[1]) for q in range(256)]
        )
    with pytest.raises(ValueError, match="^parts: expected at least one array to join$"):
        integer.concat([], y, axis=0)


@clause("INT-CONCAT")
@pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (-128, 127), (-8, 7)])
def test_codes_that_the_common_grid_does_not_have_saturate(qmin, qmax):
    y = QParams(0.5, 0, qmin, qmax)
    joined = integer.concat(
        [(every_code(-128, 127), QParams(0.5, 0, -128, 127)), (every_code(0, 255), QParams(0.5, 0, 0, 255))], y, axis=0
    )
    assert joined.dtype == y.dtype and joined.tolist() == [
        min(max(q, qmin), qmax) for q in (*range(-128, 128), *range(256))
    ]


def windows(q, kernel, stride, padding, dilation=(1, 1)):
    """For each output position the codes of its window that lie inside the input."""
    height, width = q.shape
    places = []
    for top in range(-padding[0], height + padding[0] - dilation[0] * (kernel[0] - 1), stride[0]):
        row = []
        for left in range(-padding[1], width + padding[1] - dilation[1] * (kernel[1] - 1), stride[1]):
            at = [(top + i * dilation[0], left + j * dilation[1]) for i in range(kernel[0]) for j in range(kernel[1])]
            row.append([int(q[r, c]) for r, c in at if 0 <= r < height and 0 <= c < width])
        places.append(row)
    return places


@st.composite
def poolings(draw):
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    height, width = (draw(st.integers(k, k + 3)) for k in kernel)
    signed = draw(st.booleans())
    grid = QParams(
        0.5, draw(st.integers(-128, 127) if signed else st.integers(0, 255)), *((-128, 127) if signed else (0, 255))
    )
    q = draw(draws.seeds()).integers(grid.qmin, grid.qmax + 1, (2, 2, height, width)).astype(grid.dtype)
    return q, grid, dict(kernel=kernel, stride=stride, padding=padding)


@clause("INT-MAXPOOL")
@given(poolings(), st.tuples(st.integers(1, 2), st.integers(1, 2)))
def test_max_pooling_takes_the_largest_code_inside(case, dilation):
    q, grid, geometry = case
    geometry["dilation"] = dilation
    q = np.tile(q, (1, 1, 2, 2))  # room for a dilated window
    got = integer.max_pool2d(q, **geometry)
    assert got.dtype == q.dtype
    for image, pooled in zip(q.reshape(-1, *q.shape[2:]), got.reshape(-1, *got.shape[2:])):
        assert pooled.tolist() == [[spec.max_pool(w) for w in row] for row in windows(image, **geometry)]


@clause("INT-AVGPOOL")
@given(poolings(), st.booleans())
def test_average_pooling_equals_the_definition(case, count_include_pad):
    q, grid, geometry = case
    got = integer.avg_pool2d(q, grid, **geometry, count_include_pad=count_include_pad)
    assert got.dtype == grid.dtype
    positions = int(np.prod(geometry["kernel"]))
    for image, pooled in zip(q.reshape(-1, *q.shape[2:]), got.reshape(-1, *got.shape[2:])):
        expected = [
            [spec.avg_pool(w, int(grid.zero_point), positions if count_include_pad else len(w)) for w in row]
            for row in windows(image, **geometry)
        ]
        assert pooled.tolist() == expected


@clause("INT-MAXPOOL", "INT-AVGPOOL")
def test_windows_lie_side_by_side_and_padding_counts_unless_said_otherwise():
    q, grid = np.uint8([[[[10, 20, 30, 40], [50, 60, 70, 80]]]]), QParams(1.0, 10, 0, 255)
    assert integer.max_pool2d(q, kernel=2).tolist() == [[[[60, 80]]]]
    assert integer.avg_pool2d(q, grid, kernel=2).tolist() == [[[[35, 55]]]]
    assert integer.avg_pool2d(q, grid, kernel=2, padding=1).tolist() == [[[[10, 18, 18], [20, 38, 28]]]]


@clause("INT-AVGPOOL")
def test_average_ties_go_to_even_at_every_zero_point():
    codes = every_code(0, 255)
    pairs = np.stack([codes[:-1], codes[1:]], axis=1)[:, None, None, :]
    for zero_point in every_zero_point(0, 255):
        grid = QParams(1.0, zero_point, 0, 255)
        steps = codes[:-1].astype(int) - zero_point
        expected = np.where(steps % 2 == 0, steps, steps + 1) + zero_point
        assert integer.avg_pool2d(pairs, grid, kernel=(1, 2)).ravel().tolist() == expected.tolist()
