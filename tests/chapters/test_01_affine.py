"""Chapter 1: affine quantization. The oracle is the chapter's own definitions."""

import itertools
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.numerics import affine
from strategies import WIDTHS, code_ends, every_code, every_zero_point

spec = chapters.load("affine")
SOME_SCALES = [np.float32(v) for v in (1.0, 0.1, 2 / 255, 2.0**-126, 2.0**119, 3e-5)]


def quantize(x, grid):
    return affine.quantize(x, grid.scale, grid.zero_point, qmin=grid.qmin, qmax=grid.qmax)


def defined(x, grid):
    return [spec.quantize(v, grid.scale, int(grid.zero_point), grid.qmin, grid.qmax) for v in np.ravel(x)]


@clause("AFF-CODES")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_codes_of_every_width_are_those_of_twos_complement(bits, signed):
    qmin, qmax = affine.code_range(bits, signed=signed)
    assert (qmin, qmax) == code_ends(bits, signed) == spec.code_range(bits, signed)
    assert qmax - qmin + 1 == 2**bits
    assert len(every_code(qmin, qmax)) == 2**bits
    assert affine.code_dtype(qmin, qmax) == (np.int8 if signed else np.uint8)


@clause("AFF-BITS")
@pytest.mark.parametrize("bits", [-8, 0, 1, 9, 16, 32])
@pytest.mark.parametrize("signed", [False, True])
def test_other_widths_are_refused(bits, signed):
    for code_range in (affine.code_range, spec.code_range):
        with pytest.raises(ValueError, match=f"bits: .*got {bits}"):
            code_range(bits, signed=signed)


@pytest.mark.parametrize(("qmin", "qmax"), [(0, 256), (-129, 0), (-1, 128), (5, 5), (7, 3)])
@clause("AFF-BITS")
def test_codes_that_fill_no_byte_are_refused(qmin, qmax):
    with pytest.raises(ValueError, match="qmin, qmax"):
        affine.code_dtype(qmin, qmax)


@clause("AFF-MEANING")
@pytest.mark.parametrize("scale", SOME_SCALES)
@pytest.mark.parametrize("signed", [False, True])
def test_every_code_means_what_the_definition_says_at_every_zero_point(scale, signed):
    qmin, qmax = code_ends(8, signed)
    codes = every_code(qmin, qmax)
    steps = {d: spec.dequantize(d, scale, 0) for d in range(qmin - qmax, qmax - qmin + 1)}
    for zero_point in every_zero_point(qmin, qmax):
        expected = np.array([steps[int(q) - zero_point] for q in codes], dtype=np.float32)
        got = affine.dequantize(codes, scale, zero_point)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


@clause("AFF-MEANING")
@given(draws.grids(), st.data())
def test_a_dequantized_code_is_the_exact_product_rounded_once(grid, data):
    q = data.draw(st.integers(grid.qmin, grid.qmax))
    exact = Fraction(float(grid.scale)) * (q - int(grid.zero_point))
    got = grid.dequantize(np.array([q]))
    assert got[0] == np.float32(spec.dequantize(q, grid.scale, grid.zero_point)) == affine.nearest_float32(exact)


@clause("AFF-MEANING")
@given(st.fractions(max_denominator=10**9), st.integers(-200, 160))
@example(Fraction(0), 0)
@example(1 + Fraction(1, 2**24), 0)  # a tie between 1 and its neighbour
@example(1 + Fraction(3, 2**24), 0)
@example(1 + Fraction(1, 2**24) + Fraction(1, 2**60), 0)  # float64 would round this to the tie, which goes down
@example(1 + Fraction(3, 2**24) - Fraction(1, 2**60), 0)  # and this to one that goes up
@example(-1 - Fraction(1, 2**24) - Fraction(1, 2**60), 0)
@example(-1 - Fraction(3, 2**24) + Fraction(1, 2**60), 0)
@example(Fraction(10), 400)  # beyond float64
@example(Fraction(-10), 400)
@example(2 - Fraction(1, 2**25), 127)  # beyond the largest float32
@example(2 - Fraction(3, 2**25), 127)
@example(Fraction(1, 2**24), -126)
def test_rounding_to_float32_takes_the_nearest_and_on_ties_the_even_one(value, exponent):
    exact = value * Fraction(2) ** exponent
    got = np.float32(affine.nearest_float32(exact))
    assert got == np.float32(spec.to_float32(exact))
    with np.errstate(over="ignore"):
        neighbours = [np.nextafter(got, np.float32(np.inf)), np.nextafter(got, np.float32(-np.inf))]
    if np.isfinite([got, *neighbours]).all():
        distances = [abs(Fraction(float(v)) - exact) for v in (got, *neighbours)]
        assert distances[0] <= min(distances)
        assert distances.count(min(distances)) == 1 or int(got.view(np.int32)) % 2 == 0


@clause("AFF-MEANING")
def test_exact_numbers_are_asked_for_beside_ties_alone():
    tie, unit = 1 + 2.0**-24, 2.0**-50
    away = [n * unit * tie for n in (0, 0.75, -0.75, 1.5, -1.5, 2.0**20)]
    approximate = np.array([tie + d for d in away])
    asked = []

    def exact(index):
        asked.append(index)
        return Fraction(tie) + Fraction(unit) / 8  # as if each had been rounded to the tie

    got = affine.nearest_float32s(approximate, exact)
    up, down = np.nextafter(np.float32(1), np.float32(2)), np.float32(1)
    assert got.dtype == np.float32 and asked == [0, 1, 2] and got.tolist() == [up, up, up, up, down, up]


@clause("AFF-ZERO")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@given(scale=draws.scales())
def test_zero_has_the_zero_point_and_the_zero_point_is_zero(bits, signed, scale):
    qmin, qmax = code_ends(bits, signed)
    for zero_point in {qmin, qmax, 0, qmin + 1, (qmin + qmax) // 2}:
        assert (
            affine.quantize(np.float32([0.0, -0.0]), scale, zero_point, qmin=qmin, qmax=qmax).tolist()
            == [zero_point] * 2
        )
        assert affine.dequantize(np.array([zero_point]), scale, zero_point).tolist() == [0.0]


@clause("AFF-ZERO")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_zero_is_exact_at_every_zero_point(bits, signed):
    qmin, qmax = code_ends(bits, signed)
    codes = every_code(qmin, qmax)
    for zero_point in every_zero_point(qmin, qmax):
        assert affine.quantize(np.float32([0.0]), 0.1, zero_point, qmin=qmin, qmax=qmax).tolist() == [zero_point]
        assert codes[affine.dequantize(codes, 0.1, zero_point) == 0].tolist() == [zero_point]


@clause("AFF-ZERO-POINT")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("off", [-1, 1, 1000, 0.5, float("nan")])
def test_a_zero_point_that_is_no_code_is_refused(bits, signed, off):
    qmin, qmax = code_ends(bits, signed)
    zero_point = qmin + off if off in (-1, 0.5) else qmax + off
    for build in (
        lambda: affine.QParams(1.0, zero_point, qmin, qmax),
        lambda: spec.check_qparams(1.0, zero_point, qmin, qmax),
    ):
        with pytest.raises(ValueError, match="zero_point|NaN"):
            build()
    with pytest.raises(ValueError, match="zero_point"):
        affine.quantize(np.float32([1.0]), 1.0, zero_point, qmin=qmin, qmax=qmax)
    if bits == 8:
        with pytest.raises(ValueError, match="zero_point"):
            affine.dequantize(every_code(qmin, qmax), 1.0, zero_point)


@clause("AFF-SCALE")
@pytest.mark.parametrize(
    "scale",
    [
        0.0, -1.0, 2.0**-127, 1e-45, float(np.nextafter(np.float32(2.0**119), np.float32(np.inf))), 1e39,
        float("inf"), float("nan"),
    ],
)
def test_a_scale_that_describes_no_grid_is_refused(scale):
    for build in (
        lambda: affine.QParams(scale, 0, 0, 255),
        lambda: spec.check_qparams(scale, 0, 0, 255),
        lambda: affine.quantize(np.float32([1]), scale, 0, qmin=0, qmax=255),
        lambda: affine.dequantize(np.uint8([1]), scale, 0),
    ):
        with pytest.raises(ValueError, match="scale"):
            build()
    with pytest.raises(ValueError, match="scale"):
        affine.QParams([1.0, scale], 0, 0, 255, axis=0)


@clause("AFF-ZERO-POINT")
def test_codes_in_wider_integers_have_the_zero_points_of_a_byte():
    for zero_point in (-128, 255):
        assert affine.dequantize(np.array([5]), 1.0, zero_point).tolist() == [5 - zero_point]
    for zero_point in (-129, 256):
        with pytest.raises(ValueError, match=f"^zero_point: expected integers from -128 to 255, got {zero_point}$"):
            affine.dequantize(np.array([5]), 1.0, zero_point)


@clause("AFF-SCALE", "AFF-ZERO-POINT")
def test_a_grid_holds_float32_scales_and_int32_zero_points_of_its_own():
    scale, points = np.array([0.1, 0.3]), np.array([3.0, 4.0])
    grid = affine.QParams(scale, points, 0, 255, axis=0)
    scale[:], points[:] = 1, 0
    assert grid.scale.dtype == np.float32 and grid.scale.tolist() == np.float32([0.1, 0.3]).tolist()
    assert grid.zero_point.dtype == np.int32 and grid.zero_point.tolist() == [3, 4]
    checked = affine.checked_qparams(0.1, 3.0, qmin=0, qmax=255, axis=None)
    assert [(array.dtype, array.shape) for array in checked] == [(np.float32, ()), (np.int32, ())]


@clause("AFF-SCALE")
@pytest.mark.parametrize("scale", [2.0**-126, 2.0**119])
def test_the_smallest_and_the_largest_scale_are_admitted_and_give_finite_numbers(scale):
    spec.check_qparams(scale, 0, 0, 255)
    values = affine.QParams(scale, 0, 0, 255).dequantize(every_code(0, 255))
    assert np.isfinite(values).all() and (np.diff(values) > 0).all()


@clause("AFF-NEAREST", "AFF-TIES", "AFF-SATURATE", "AFF-INFINITY")
@given(draws.grids(), st.data())
def test_quantize_equals_the_definition(grid, data):
    x = data.draw(draws.arrays_on(grid).flatmap(draws.layouts))
    got = quantize(x, grid)
    assert got.dtype == grid.dtype and got.shape == x.shape
    assert got.tolist() == defined(x, grid)


@clause("AFF-NEAREST", "AFF-MEANING", "AFF-CHANNEL")
@given(draws.grids(), draws.seeds())
def test_many_values_have_the_codes_and_real_values_that_few_have(grid, generator):
    steps = generator.integers(2 * (grid.qmin - grid.qmax), 2 * (grid.qmax - grid.qmin), affine.MANY + 9) / 2
    x = (steps * float(grid.scale)).astype(np.float32)
    codes, real = grid.quantize(x), grid.dequantize(quantize(x, grid))
    assert codes.dtype == grid.dtype and codes.tolist() == quantize(x, grid).tolist()
    assert real.dtype == np.float32
    assert real.tolist() == affine.dequantize(codes, grid.scale, grid.zero_point).tolist()
    # Wider types that hold the same numbers, and channels.
    assert grid.quantize(x.astype(np.float64)).tolist() == codes.tolist()
    assert grid.dequantize(codes.astype(np.int64)).tolist() == real.tolist()
    channels = affine.QParams([grid.scale] * 2, grid.zero_point, grid.qmin, grid.qmax, axis=0)
    assert channels.quantize(np.stack([x, x])).tolist() == [codes.tolist()] * 2
    assert channels.dequantize(np.stack([codes, codes])).tolist() == [real.tolist()] * 2


@clause("AFF-NEAREST")
@given(draws.scales(2.0**-100, 2.0**100), st.integers(-255, 255), st.integers(-2, 2))
def test_a_quotient_beside_a_tie_is_not_taken_for_the_tie(scale, steps, ulps):
    x = draws.shifted((steps + 0.5) * float(scale), ulps)
    quotient = Fraction(float(x)) / Fraction(float(scale))
    assume(abs(quotient) < 255)
    got = affine.quantize(np.array([abs(x)]), scale, 0, qmin=0, qmax=255)[0]
    distance = abs(abs(quotient) - int(got))
    assert distance <= Fraction(1, 2)


@clause("AFF-NEAREST")
@pytest.mark.parametrize("scale", [*SOME_SCALES, np.float32(1 / 3), np.float32(0.7), np.float32(123.4)])
def test_the_floats_around_every_tie_get_the_code_of_their_exact_quotient(scale):
    ties = (every_code(0, 254) + 0.5) * float(scale)
    x = np.array([draws.shifted(tie, ulps) for tie in ties for ulps in (-2, -1, 0, 1, 2)])
    assert affine.quantize(x, scale, 0, qmin=0, qmax=255).tolist() == [spec.quantize(v, scale, 0, 0, 255) for v in x]


@clause("AFF-TIES")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_ties_go_to_the_even_number_of_steps_at_every_zero_point(bits, signed):
    qmin, qmax = code_ends(bits, signed)
    codes = every_code(qmin, qmax).astype(np.int64)
    for scale in (1.0, 0.25):
        for zero_point in every_zero_point(qmin, qmax):
            steps = codes[:-1] - zero_point
            x = ((steps + 0.5) * scale).astype(np.float32)
            even = np.where(steps % 2 == 0, steps, steps + 1) + zero_point
            assert affine.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax).tolist() == even.tolist()


@clause("AFF-ORDER")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_rounding_does_not_depend_on_the_zero_point(bits, signed):
    qmin, qmax = code_ends(bits, signed)
    x = (np.arange(-4 * 2**bits, 4 * 2**bits) / 4).astype(np.float32)
    rounded = [spec.round_half_even(Fraction(float(v))) for v in x]
    every_code(qmin, qmax)
    for zero_point in every_zero_point(qmin, qmax):
        expected = [min(max(r + zero_point, qmin), qmax) for r in rounded]
        assert affine.quantize(x, 1.0, zero_point, qmin=qmin, qmax=qmax).tolist() == expected


@clause("AFF-SATURATE")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize(
    "size", [1.0, 2.0**7, 2.0**8, 2.0**15, 2.0**16, 2.0**31, 3e9, 2.0**32, 2.0**63, 2.0**64, 1e30, 3.4e38]
)
def test_quantize_saturates_instead_of_wrapping(bits, signed, size):
    qmin, qmax = code_ends(bits, signed)
    every_code(qmin, qmax)
    for zero_point in every_zero_point(qmin, qmax):
        x = np.float32([size, -size])
        for scale in (1.0, 1e-3):
            expected = [spec.quantize(v, np.float32(scale), zero_point, qmin, qmax) for v in x]
            assert affine.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax).tolist() == expected
            if size >= 2**8:
                assert expected == [qmax, qmin]


@clause("AFF-INFINITY")
@given(draws.grids())
def test_infinities_saturate(grid):
    assert quantize(np.float32([np.inf, -np.inf]), grid).tolist() == [grid.qmax, grid.qmin]


@clause("AFF-NAN")
@given(draws.grids(), st.sampled_from(draws.LENGTHS[1:]), st.data())
def test_nan_is_refused_wherever_it_stands(grid, length, data):
    x = np.zeros(length, np.float32)
    x[data.draw(st.integers(0, length - 1))] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        quantize(x, grid)
    with pytest.raises(ValueError, match="NaN"):
        defined([np.nan], grid)


@clause("AFF-NAN")
def test_nan_is_refused_at_every_place_of_a_long_array():
    for place in range(70):
        x = np.ones(70, np.float32)
        x[place] = np.nan
        with pytest.raises(ValueError, match="got 1 NaN"):
            affine.quantize(x, 1.0, 3, qmin=0, qmax=255)


@clause("AFF-ROUNDTRIP")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("scale", SOME_SCALES)
def test_every_code_survives_the_round_trip_at_every_zero_point(bits, signed, scale):
    qmin, qmax = code_ends(bits, signed)
    codes = every_code(qmin, qmax)
    for zero_point in every_zero_point(qmin, qmax):
        back = affine.quantize(affine.dequantize(codes, scale, zero_point), scale, zero_point, qmin=qmin, qmax=qmax)
        assert back.tolist() == codes.tolist()


@clause("AFF-ROUNDTRIP")
@given(draws.grids())
def test_every_code_survives_the_round_trip_at_any_scale(grid):
    codes = every_code(grid.qmin, grid.qmax)
    assert grid.quantize(grid.dequantize(codes)).tolist() == codes.tolist()


@clause("AFF-ERROR")
@given(draws.grids(), st.data())
def test_at_most_half_a_step_is_lost_inside_the_range(grid, data):
    x = data.draw(draws.arrays_on(grid, finite=True))
    scale, zero_point = Fraction(float(grid.scale)), int(grid.zero_point)
    for value, code in zip(x, quantize(x, grid)):
        exact = Fraction(float(value))
        if scale * (grid.qmin - zero_point) <= exact <= scale * (grid.qmax - zero_point):
            assert abs(spec.real_value(code, grid.scale, zero_point) - exact) <= scale / 2


@clause("AFF-ERROR")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_at_most_half_a_step_is_lost_anywhere_in_the_range_at_every_zero_point(bits, signed):
    qmin, qmax = code_ends(bits, signed)
    eighths = np.arange(8 * (len(every_code(qmin, qmax)) - 1) + 1) / 8
    for zero_point in every_zero_point(qmin, qmax):
        x = (0.25 * (qmin - zero_point + eighths)).astype(np.float32)
        real = 0.25 * (affine.quantize(x, 0.25, zero_point, qmin=qmin, qmax=qmax).astype(float) - zero_point)
        assert np.abs(real - x).max() == 0.125  # all of these are exact in float64


@clause("AFF-ERROR")
@given(draws.scales(2.0**-100, 2.0**100), st.integers(0, 254))
def test_a_tie_loses_exactly_half_a_step(scale, steps):
    scale = np.float32(2.0 ** np.round(np.log2(float(scale))))
    x = np.float32((steps + 0.5) * float(scale))
    code = affine.quantize(x, scale, 0, qmin=0, qmax=255)
    assert abs(spec.real_value(code, scale, 0) - Fraction(float(x))) == Fraction(float(scale)) / 2


@clause("AFF-MONOTONE")
@given(draws.grids(), st.data())
def test_larger_values_never_get_smaller_codes(grid, data):
    x = np.sort(data.draw(draws.arrays_on(grid)))
    assert (np.diff(quantize(x, grid).astype(int)) >= 0).all()


@clause("AFF-SYMMETRY")
@given(draws.scales(), st.integers(2, 8), st.data())
def test_negated_values_get_negated_codes(scale, bits, data):
    qmax = 2 ** (bits - 1) - 1
    grid = affine.QParams(scale, 0, -qmax, qmax)
    x = data.draw(draws.arrays_on(grid))
    assert (quantize(-x, grid).astype(int) == -quantize(x, grid).astype(int)).all()


@clause("AFF-ELEMENT")
@given(draws.grids(), draws.shapes(3), st.data())
def test_an_element_is_quantized_and_dequantized_as_it_would_be_alone(grid, shape, data):
    few = data.draw(draws.arrays_on(grid, lengths=st.integers(1, 16)))
    x = data.draw(draws.layouts(np.resize(few, shape)))
    codes = data.draw(draws.layouts(quantize(x, grid)))
    alone = np.array([int(quantize(v, grid)) for v in few])
    assert codes.shape == x.shape == shape and codes.ravel().tolist() == np.resize(alone, codes.size).tolist()
    back = np.array([float(grid.dequantize(codes[i])) for i in np.ndindex(shape)], np.float32)
    assert grid.dequantize(codes).ravel().tolist() == back.tolist()


@clause("AFF-ELEMENT")
@pytest.mark.parametrize("x", [0.5, 1.5, 2.5, -0.5, -1.5, 0.49999997, 1e30])
def test_an_element_has_its_code_at_every_place_of_arrays_of_every_length_around_a_vector(x):
    alone = spec.quantize(x, 1.0, 3, 0, 255)
    for length in range(1, 70):
        assert affine.quantize(np.full(length, x, np.float32), 1.0, 3, qmin=0, qmax=255).tolist() == [alone] * length


@clause("AFF-ELEMENT")
@pytest.mark.parametrize(
    "laid_out",
    [
        np.asfortranarray,
        lambda a: np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1),
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.ascontiguousarray(a[::-1, :, ::-1])[::-1, :, ::-1],
    ],
    ids=["fortran", "transposed", "strided", "backwards"],
)
def test_layout_in_memory_changes_neither_codes_nor_values(laid_out):
    x = (np.arange(4 * 6 * 8, dtype=np.float32) / 2 - 40).reshape(4, 6, 8)
    scale, points = np.float32([1, 0.5, 0.1, 2, 3, 0.7]), np.arange(6)
    for one, zero_point, axis in ((scale[0], 3, None), (scale, points, 1)):
        codes = affine.quantize(x, one, zero_point, qmin=-128, qmax=127, axis=axis)
        values = affine.dequantize(codes, one, zero_point, axis=axis)
        np.testing.assert_array_equal(
            affine.quantize(laid_out(x), one, zero_point, qmin=-128, qmax=127, axis=axis), codes
        )
        np.testing.assert_array_equal(affine.dequantize(laid_out(codes), one, zero_point, axis=axis), values)


@clause("AFF-CHANNEL", "AFF-ONE-CHANNEL")
@pytest.mark.parametrize("scales", [[0.1], [2 / 255], [0.1, 2 / 255, 3.0]])
def test_channels_beside_ties_get_the_codes_they_would_get_alone(scales):
    scale, points = np.float32(scales), np.arange(len(scales), dtype=np.int32) + 3
    halves = np.arange(-300, 300) + 0.5
    for ulps in (-1, 0, 1):
        x = np.array([[draws.shifted(h * float(s), ulps) for h in halves] for s in scale], np.float32)
        together = affine.quantize(x, scale, points, qmin=0, qmax=255, axis=0)
        for row, s, point, codes in zip(x, scale, points, together):
            assert codes.tolist() == affine.quantize(row, s, point, qmin=0, qmax=255).tolist()
            assert codes.tolist() == [spec.quantize(v, s, int(point), 0, 255) for v in row]


@clause("AFF-CHANNEL")
@given(st.data(), draws.widths(), draws.shapes(3, elements=70), st.sampled_from([0, 1, 2, -1, -2, -3]), st.booleans())
def test_each_channel_is_quantized_with_its_own_qparams(data, ends, shape, axis, one_zero_point):
    qmin, qmax = ends
    channels = shape[axis]
    scale = data.draw(draws.channel_scales(channels))
    points = np.array([data.draw(st.integers(qmin, qmax)) for _ in range(channels)], dtype=np.int32)
    points = points[0] if one_zero_point and channels else points
    drawn = [data.draw(draws.values(float(s), qmin, qmax)) for s in scale for _ in range(4)]
    slices = [
        np.resize(np.float32(drawn[4 * c : 4 * c + 4]), [n for i, n in enumerate(shape) if i != axis % 3])
        for c in range(channels)
    ]
    x = data.draw(draws.layouts(np.stack(slices, axis) if channels else np.zeros(shape, np.float32)))
    got = affine.quantize(x, scale, points, qmin=qmin, qmax=qmax, axis=axis)
    back = affine.dequantize(got, scale, points, axis=axis)
    assert got.shape == back.shape == x.shape
    all_points = np.broadcast_to(points, channels)
    rows = [[float(v) for v in np.take(x, c, axis=axis).ravel()] for c in range(channels)]
    expected = spec.quantize_channels(rows, list(scale), [int(p) for p in all_points], qmin, qmax)
    assert channels == len(rows)
    for c in range(channels):
        assert np.take(got, c, axis=axis).ravel().tolist() == expected[c]
        alone = affine.dequantize(np.take(got, c, axis=axis), scale[c], all_points[c])
        np.testing.assert_array_equal(np.take(back, c, axis=axis), alone)


@clause("AFF-CHANNEL")
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_channels_lie_along_their_axis_where_all_axes_are_equally_long(axis):
    x = ((np.arange(27, dtype=np.float32) - 13) / 2).reshape(3, 3, 3)
    scale, points = np.float32([1, 0.5, 3]), np.array([-7, 0, 20])
    codes = affine.quantize(x, scale, points, qmin=-128, qmax=127, axis=axis)
    values = affine.dequantize(codes, scale, points, axis=axis)
    for c in range(3):
        alone = affine.quantize(np.take(x, c, axis), scale[c], points[c], qmin=-128, qmax=127)
        assert np.take(codes, c, axis).tolist() == alone.tolist()
        assert np.take(values, c, axis).tolist() == affine.dequantize(alone, scale[c], points[c]).tolist()


@clause("AFF-CHANNEL")
def test_a_grid_of_channels_goes_along_its_axis():
    grid = affine.QParams([0.5, 2.0], [1, 2], 0, 255, axis=0)
    assert grid.quantize(np.float32([[3, -4], [8, 0]])).tolist() == [[7, 0], [6, 2]]
    assert grid.dequantize(np.uint8([[7, 0], [6, 2]])).tolist() == [[3, -0.5], [8, 0]]


@clause("AFF-ONE-CHANNEL")
@given(draws.grids(), st.data(), st.integers(0, 2))
def test_one_channel_is_per_tensor(grid, data, axis):
    x = np.expand_dims(
        data.draw(draws.arrays_on(grid)).reshape(1, -1) if axis else data.draw(draws.arrays_on(grid))[:, None], axis
    )
    one = affine.quantize(x, grid.scale[None], grid.zero_point[None], qmin=grid.qmin, qmax=grid.qmax, axis=axis)
    assert one.tolist() == quantize(x, grid).tolist()


@clause("AFF-ONE-CHANNEL")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("scale", [np.float32(v) for v in (0.25, 0.1, 2 / 255)])
def test_one_channel_is_per_tensor_on_and_beside_ties_at_every_zero_point(bits, signed, scale):
    qmin, qmax = code_ends(bits, signed)
    steps = np.arange(-len(every_code(qmin, qmax)), 2**bits) + 0.5
    ties = (steps * float(scale)).astype(np.float32)
    x = np.concatenate([ties, np.nextafter(ties, np.float32(9)), np.nextafter(ties, np.float32(-9))])[None]
    for zero_point in every_zero_point(qmin, qmax):
        one = affine.quantize(x, scale[None], np.array([zero_point]), qmin=qmin, qmax=qmax, axis=0)
        assert one.tolist() == affine.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax).tolist()


@clause("AFF-CHANNEL-COUNT")
@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_channels_is_refused(count):
    scale, x = np.ones(count, np.float32), np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError, match=f"3 channels along axis 0, got {count}"):
        affine.quantize(x, scale, 0, qmin=0, qmax=255, axis=0)
    with pytest.raises(ValueError, match=f"3 channels along axis 0, got {count}"):
        affine.dequantize(x.astype(np.uint8), scale, 0, axis=0)
    with pytest.raises(ValueError, match="scale: expected 3 channels"):
        spec.quantize_channels([[0.0]] * 3, [1.0] * count, [0] * count, 0, 255)


@clause("AFF-CHANNEL-COUNT")
def test_qparams_whose_shapes_do_not_fit_are_refused():
    for scale, zero_point, axis in (
        (np.ones(2), 0, None), (1.0, np.zeros(2), None), (1.0, 0, 0), (np.ones(2), np.zeros(3), 0),
        (np.ones((2, 2)), 0, 0),
    ):
        with pytest.raises(ValueError, match="scale, zero_point: expected one"):
            affine.QParams(scale, zero_point, 0, 255, axis)
    with pytest.raises(ValueError, match="axis: expected an axis of an array of shape"):
        affine.quantize(np.zeros((2, 2), np.float32), np.ones(2), 0, qmin=0, qmax=255, axis=2)


def rounded_range(ends, seen, symmetric):
    """(scale, zero_point) from the definition and from the module, or the message with which both refuse."""
    definition = spec.qparams_symmetric if symmetric else spec.qparams_affine
    try:
        expected = definition(*seen, *ends)
    except ValueError:
        with pytest.raises(ValueError, match="2\\^119"):
            affine.qparams(*seen, qmin=ends[0], qmax=ends[1], symmetric=symmetric)
        return None
    got = affine.qparams(*seen, qmin=ends[0], qmax=ends[1], symmetric=symmetric)
    return expected, got


@clause("AFF-RANGE-SCALE", "AFF-RANGE-ZERO-POINT", "AFF-RANGE-ZERO", "AFF-RANGE-HUGE", "AFF-RANGE-TINY")
@given(draws.widths(), draws.ranges())
def test_affine_qparams_equal_the_definition(ends, seen):
    if found := rounded_range(ends, seen, False):
        (scale, zero_point), got = found
        assert (float(got.scale), int(got.zero_point), got.qmin, got.qmax) == (scale, zero_point, *ends)


@clause("AFF-RANGE-SCALE", "AFF-RANGE-ZERO-POINT")
@pytest.mark.parametrize("symmetric_range", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_hundreds_of_ordinary_ranges_have_the_qparams_of_the_definition(symmetric_range, signed):
    # Symmetric ranges have their zero half-way between two codes, until the scale is rounded.
    low, high = np.random.default_rng(0).uniform(-3, 3, (2, 300)).astype(np.float32)
    low, high = (-np.abs(low), np.abs(low)) if symmetric_range else (np.minimum(low, high), np.maximum(low, high))
    ends = code_ends(8, signed)
    for a, b in zip(low, high):
        grid = affine.qparams(a, b, qmin=ends[0], qmax=ends[1], symmetric=False)
        assert (float(grid.scale), int(grid.zero_point)) == spec.qparams_affine(a, b, *ends)


@clause("AFF-RANGE-SCALE")
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("nudge", [-np.inf, 0, np.inf])
def test_a_scale_half_way_between_two_float32_is_the_even_one(bits, nudge):
    steps = 2**bits - 1
    for odd in range(1, 64, 2):  # the scale is 1 + odd * 2^-24, give or take the least that a range can differ
        low = np.float32(-steps * odd * 2.0**-24)
        low = np.nextafter(low, np.float32(nudge)) if nudge else low
        grid = affine.qparams(low, np.float32(steps), qmin=0, qmax=steps, symmetric=False)
        assert (float(grid.scale), int(grid.zero_point)) == spec.qparams_affine(float(low), float(steps), 0, steps)


@clause("AFF-RANGE-ZERO-POINT")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-3])
def test_a_zero_point_half_way_between_two_codes_is_an_even_number_of_steps_from_qmin(bits, signed, scale):
    qmin, qmax = code_ends(bits, signed)
    for below in range(qmax - qmin):
        low, high = -(below + 0.5) * scale, (qmax - qmin - below - 0.5) * scale
        grid = affine.qparams(np.float32(low), np.float32(high), qmin=qmin, qmax=qmax, symmetric=False)
        even = below + below % 2
        assert (
            (float(grid.scale), int(grid.zero_point))
            == (scale, qmin + even)
            == spec.qparams_affine(low, high, qmin, qmax)
        )


@clause("AFF-SYMMETRIC")
@given(draws.widths(), draws.ranges())
def test_symmetric_qparams_equal_the_definition(ends, seen):
    if found := rounded_range(ends, seen, True):
        (scale, zero_point), got = found
        assert (float(got.scale), int(got.zero_point)) == (scale, zero_point)
        assert zero_point == (0 if ends[0] < 0 else 2 ** (ends[1].bit_length() - 1))


@clause("AFF-SYMMETRIC")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
def test_the_largest_size_is_the_last_symmetric_code(bits, signed):
    qmin, qmax = code_ends(bits, signed)
    grid = affine.qparams(np.float32(-3), np.float32(5), qmin=qmin, qmax=qmax, symmetric=True)
    steps = 2 ** (bits - 1) - 1
    assert float(grid.scale) == spec.to_float32(Fraction(5) / steps)
    assert grid.quantize(np.float32([5, -5, 0])).tolist() == [int(grid.zero_point) + d for d in (steps, -steps, 0)]


@clause("AFF-SYMMETRIC")
@pytest.mark.parametrize(("qmin", "qmax"), [(-127, 127), (-7, 7), (1, 255), (0, 254), (-8, 6)])
def test_codes_that_fill_no_width_have_their_zero_point_in_the_middle_too(qmin, qmax):
    grid = affine.qparams(np.float32(-3), np.float32(5), qmin=qmin, qmax=qmax, symmetric=True)
    assert (float(grid.scale), int(grid.zero_point)) == spec.qparams_symmetric(-3.0, 5.0, qmin, qmax)
    assert grid.quantize(np.float32([5, -5])).tolist() == [
        int(grid.zero_point) + d for d in ((qmax - qmin) // 2, -((qmax - qmin) // 2))
    ]


@clause("AFF-RANGE-ZERO")
@given(draws.widths(), st.floats(2.0**-20, 1e6, width=32), st.floats(2.0**-20, 1e6, width=32))
def test_a_one_sided_range_starts_or_ends_at_zero(ends, a, b):
    low, high = np.float32(min(a, b)), np.float32(max(a, b))
    above = affine.qparams(low, high, qmin=ends[0], qmax=ends[1], symmetric=False)
    below = affine.qparams(-high, -low, qmin=ends[0], qmax=ends[1], symmetric=False)
    assert int(above.zero_point) == ends[0] and int(below.zero_point) == ends[1]
    assert above.scale == below.scale == np.float32(spec.to_float32(Fraction(float(high)) / (ends[1] - ends[0])))


@clause("AFF-RANGE-EMPTY")
@pytest.mark.parametrize(("bits", "signed"), WIDTHS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_of_zero_gives_scale_one(bits, signed, symmetric):
    qmin, qmax = code_ends(bits, signed)
    grid = affine.qparams(np.float32(-0.0), np.float32(0.0), qmin=qmin, qmax=qmax, symmetric=symmetric)
    assert float(grid.scale) == 1.0
    assert grid.dequantize(grid.quantize(np.float32([0]))).tolist() == [0.0]
    definition = spec.qparams_symmetric if symmetric else spec.qparams_affine
    assert definition(0.0, 0.0, qmin, qmax) == (1.0, int(grid.zero_point))


@clause("AFF-RANGE-TINY")
@pytest.mark.parametrize("size", [1e-45, 2.0**-126, 2.0**-100, 2.0**-56, 2.0**-55])
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_have_a_floor(size, symmetric):
    grid = affine.qparams(np.float32(0), np.float32(size), qmin=0, qmax=255, symmetric=symmetric)
    exact = Fraction(float(np.float32(size))) / (127 if symmetric else 255)
    assert Fraction(float(grid.scale)) == max(Fraction(2) ** -63, Fraction(spec.to_float32(exact)))


@clause("AFF-RANGE-HUGE")
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_widest_range_is_that_of_the_largest_scale(symmetric):
    steps = 127 if symmetric else 255
    widest = np.float32(2.0**119 * steps)
    assert float(affine.qparams(-np.float32(0), widest, qmin=0, qmax=255, symmetric=symmetric).scale) == 2.0**119
    wider = np.float32(widest * np.float32(1 + 2**-20))
    definition = spec.qparams_symmetric if symmetric else spec.qparams_affine
    assert definition(0.0, widest, 0, 255)[0] == 2.0**119
    with pytest.raises(ValueError, match="2\\^119"):
        affine.qparams(np.float32(0), wider, qmin=0, qmax=255, symmetric=symmetric)
    with pytest.raises(ValueError, match="2\\^119"):
        definition(0.0, wider, 0, 255)


@clause("AFF-RANGE-HUGE")
@pytest.mark.parametrize("qmax", [1, 255])
def test_a_range_as_wide_as_float32_is_refused(qmax):
    with pytest.raises(ValueError, match="maximum: the range is too wide"):
        affine.qparams(np.float32(-3.4e38), np.float32(3.4e38), qmin=0, qmax=qmax, symmetric=False)


@clause("AFF-RANGE-ORDER")
@pytest.mark.parametrize(("low", "high"), [(np.nan, 1), (0, np.nan), (-np.inf, 1), (0, np.inf), (1, 0), (1, -1)])
def test_what_is_no_range_is_refused(low, high):
    for refuse in (
        lambda: affine.qparams(np.float32(low), np.float32(high), qmin=0, qmax=255, symmetric=False),
        lambda: affine.qparams(np.float32(low), np.float32(high), qmin=-128, qmax=127, symmetric=True),
        lambda: spec.qparams_affine(float(low), float(high), 0, 255),
        lambda: spec.qparams_symmetric(float(low), float(high), 0, 255),
    ):
        with pytest.raises(ValueError, match="minimum"):
            refuse()


@clause("AFF-RANGE-ORDER")
@pytest.mark.parametrize(
    ("low", "high", "message"), [(0.1, np.float32(1), "^minimum: "), (np.float32(-1), 0.1, "^maximum: ")]
)
def test_an_end_that_float32_cannot_hold_is_refused_by_name(low, high, message):
    with pytest.raises(TypeError, match=message + "expected float32 values, got float64"):
        affine.qparams(low, high, qmin=0, qmax=255, symmetric=False)


@clause("AFF-RANGE-ORDER")
def test_ends_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^minimum, maximum: expected one shape, got \(2,\) and \(3,\)$"):
        affine.qparams(np.zeros(2), np.ones(3), qmin=0, qmax=255, symmetric=False, axis=0)


@clause("AFF-RANGE-COVERS")
@given(draws.widths(), draws.coverable(), st.floats(0, 1), st.data())
def test_the_whole_range_is_covered(ends, seen, share, data):
    low, high = min(seen[0], np.float32(0)), max(seen[1], np.float32(0))
    grid = affine.qparams(*seen, qmin=ends[0], qmax=ends[1], symmetric=False)
    with np.errstate(over="ignore"):
        inside = np.float32(float(low) * (1 - share) + float(high) * share)
    inside = np.clip(inside, low, high)
    scale = Fraction(float(grid.scale))
    for x in (low, high, inside):
        lost = abs(spec.real_value(grid.quantize(x), grid.scale, grid.zero_point) - Fraction(float(x)))
        assert lost <= scale * (Fraction(1, 2) + Fraction(1, 2**15))


@clause("AFF-NARROW")
@given(draws.coverable(), st.floats(0, 1))
def test_values_inside_a_symmetric_range_avoid_the_odd_code(seen, share):
    size = max(abs(float(v)) for v in seen)
    grid = affine.qparams(*seen, qmin=-128, qmax=127, symmetric=True)
    codes = grid.quantize(np.float32([-size, size, *seen, -size * share]))
    assert codes.min() >= -127 and codes.max() <= 127


@clause("AFF-CHANNEL")
@given(st.lists(draws.coverable(), min_size=1, max_size=4), st.booleans())
def test_qparams_per_channel_are_those_of_each_channel_alone(seen, symmetric):
    low, high = (np.array(side, dtype=np.float32) for side in zip(*seen))
    together = affine.qparams(low, high, qmin=-128, qmax=127, symmetric=symmetric, axis=0)
    alone = [affine.qparams(*pair, qmin=-128, qmax=127, symmetric=symmetric) for pair in seen]
    assert together.scale.tolist() == [float(g.scale) for g in alone]
    assert np.broadcast_to(together.zero_point, len(seen)).tolist() == [int(g.zero_point) for g in alone]


@clause("AFF-NEAREST")
def test_values_that_float32_cannot_hold_are_refused_and_others_accepted():
    with pytest.raises(TypeError, match="x: expected float32"):
        affine.quantize(np.array([0.1]), 1.0, 0, qmin=0, qmax=255)
    with pytest.raises(TypeError, match="x: expected float32"):
        affine.quantize(np.array([2**40]), 1.0, 0, qmin=0, qmax=255)
    with pytest.raises(TypeError, match="q: expected integer codes"):
        affine.dequantize(np.float32([1.0]), 1.0, 0)
    for exact in (np.array([0.5]), np.float16([0.5]), np.uint8([7]), np.int16([7]), np.uint16([7]), [0.5]):
        assert affine.quantize(exact, 0.25, 0, qmin=0, qmax=255).tolist() == [float(np.asarray(exact)[0]) * 4]
        assert affine.float32_array(exact).dtype == np.float32
    with pytest.raises(ValueError, match="^x: expected numbers, got 1 NaN$"):  # float32 holds a float64's NaN
        affine.quantize(np.array([0.5, np.nan]), 1.0, 0, qmin=0, qmax=255)


@clause("AFF-NEAREST")
def test_float32_values_are_taken_as_they_are():
    x = np.float32([0.5, 1.0])
    assert affine.float32_array(x) is x


@clause("STA-MEMORY")
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=3), st.integers(0, 3), st.integers(0, 100))
def test_a_tensor_is_read_if_its_storage_holds_all_of_it(dimensions, offset, room):
    shape, strides = [n for n, _ in dimensions], [step for _, step in dimensions]
    memory = torch.arange(40, dtype=torch.float32)
    x = memory.as_strided(shape, strides, offset)
    places = [offset + sum(map(int.__mul__, index, strides)) for index in itertools.product(*map(range, shape))]
    memory.untyped_storage().resize_(room)
    last = 4 * (max(places) + 1) if places else 0
    if last <= room:
        assert affine.float32_array(x, "images").ravel().tolist() == places
    else:
        message = f"images: a tensor of shape {tuple(shape)} ends at byte {last} of {room} in its storage"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            affine.float32_array(x, "images")


@clause("STA-MEMORY")
@pytest.mark.parametrize("x", [torch.eye(3).to_sparse(), torch.zeros(3, device="meta")])
def test_a_tensor_without_memory_of_its_own_is_refused_by_name(x):
    with pytest.raises(TypeError, match="^images: expected float32 values, got a Tensor: ."):
        affine.float32_array(x, "images")


@clause("AFF-MEANING")
def test_a_scale_given_in_more_digits_counts_as_float32():
    got = affine.dequantize(np.uint8([1, 255]), 0.1, 0)
    assert got.dtype == np.float32 and got.tolist() == [np.float32(0.1), np.float32(255) * np.float32(0.1)]


@clause("AFF-NEAREST")
@given(draws.grids(), st.data())
def test_arguments_are_not_written_to(grid, data):
    x = data.draw(draws.arrays_on(grid))
    before = x.copy()
    codes = quantize(x, grid)
    kept = codes.copy()
    grid.dequantize(codes)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(codes, kept)
    assert not grid.scale.flags.writeable and not grid.zero_point.flags.writeable


@clause("AFF-SCALE", "AFF-ZERO-POINT")
@pytest.mark.parametrize("scale, points, axis, expected", [
    ([1.0, 2.0], 0, None, "one of each without an axis, got shapes (2,) and ()"),
    (1.0, [0, 1, 2], None, "one of each without an axis, got shapes () and (3,)"),
    (1.0, 0, 0, "one per channel, got shapes () and ()"),
    ([1.0, 2.0], [0, 1, 2], 0, "one per channel, got shapes (2,) and (3,)"),
])  # fmt: skip
def test_grids_of_other_shapes_are_refused_with_them(scale, points, axis, expected):
    with pytest.raises(ValueError, match=re.escape(f"scale, zero_point: expected {expected}")):
        affine.checked_qparams(scale, points, qmin=0, qmax=255, axis=axis)
