"""The compiled loops over whole arrays give what ``affine`` gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from quantspec.kernels import arrays, quantize
from quantspec.numerics import affine
from quantspec.numerics.affine import QParams

EXPONENTS = st.one_of(st.floats(-12, 6), st.floats(-37, 35.5))


def grid(r: np.random.Generator, exponent: float, signed: bool, bits: int = 8) -> QParams:
    """A grid of any scale, with zero points at the ends more often than by chance."""
    qmin, qmax = affine.code_range(bits, signed=signed)
    scale = np.float32(2.0 ** round(exponent)) if r.random() < 0.2 else np.float32(10.0**exponent * r.uniform(1, 1.2))
    return QParams(scale, int(r.choice([qmin, qmax, *r.integers(qmin, qmax + 1, 3)])), qmin, qmax)


def exact(x: np.ndarray, g: QParams) -> np.ndarray:
    return affine.quantize(x, g.scale, g.zero_point, qmin=g.qmin, qmax=g.qmax)


@given(strategies.seeds(), st.integers(0, 300), st.integers(0, 3), EXPONENTS, st.booleans(), st.integers(2, 8))
def test_codes_and_real_values(r, count, offset, exponent, signed, bits):
    g = grid(r, exponent, signed, bits)
    values = programs.values(r, QParams(g.scale, int(g.zero_point) - g.qmin, 0, 255), (count + offset,))[offset:]
    q = arrays.quantize(values, g.array_grid)
    assert q.dtype == g.dtype and np.array_equal(q, exact(values, g))
    real = affine.dequantize(q, g.scale, g.zero_point)
    assert np.array_equal(arrays.dequantize(q, g.array_grid), real)
    values.flags.writeable = q.flags.writeable = False
    again, floats = np.zeros_like(q), np.zeros_like(values)
    assert arrays.quantize(values, g.array_grid, out=again) is again and np.array_equal(again, q)
    assert arrays.dequantize(q, g.array_grid, out=floats) is floats and np.array_equal(floats, real)
    assert np.array_equal(arrays.quantize(values[::-1], g.array_grid), q[::-1])
    assert np.array_equal(arrays.dequantize(q[::-1], g.array_grid), real[::-1])


@given(strategies.seeds(), EXPONENTS, st.booleans())
def test_what_lies_as_near_to_ties_as_is_not_divided(r, exponent, signed):
    g = grid(r, exponent, signed)
    ties = np.arange(g.qmin - 1, g.qmax + 2) - int(g.zero_point) + 0.5
    units = r.choice([-1, 1], (40, ties.size)) * r.uniform(quantize.CLOSE - 1, quantize.CLOSE + 6, (40, ties.size))
    values = ((ties + units / quantize.FRACTION) * np.float64(g.scale)).astype(np.float32)
    # Rounding to float32 may have brought some nearer.
    away = np.abs(values / np.float64(g.scale) - ties) * quantize.FRACTION
    values = values[away >= quantize.CLOSE - 1]
    assert np.array_equal(arrays.quantize(values, g.array_grid), exact(values, g))


@pytest.mark.parametrize("signed", [False, True])
def test_every_place_in_a_block_is_looked_at(signed):
    g = grid(np.random.default_rng(0), -1.0, signed)
    tie = np.float32(np.float64(g.scale) * 2.5)
    beside = np.nextafter(tie, np.float32(0)), tie, np.nextafter(tie, np.float32(9))
    for near in (*beside, np.float32(-np.inf), np.float32(np.inf), np.float32(3e38)):
        for place in range(quantize.BLOCK):
            values = np.zeros(quantize.BLOCK, np.float32)
            values[place] = near
            assert np.array_equal(arrays.quantize(values, g.array_grid), exact(values, g))
    for place in range(2 * quantize.BLOCK + 20):
        values = np.zeros(2 * quantize.BLOCK + 20, np.float32)
        values[place] = np.nan
        with pytest.raises(ValueError, match="expected numbers, got 1 NaN"):
            arrays.quantize(values, g.array_grid)


@pytest.mark.parametrize("count", [2**21, 2**21 + 17])
@pytest.mark.parametrize("signed", [False, True])
def test_large_arrays(count, signed):
    r = np.random.default_rng(0)
    g = grid(r, -1.0, signed)
    q = r.integers(g.qmin, g.qmax + 1, count).astype(g.dtype)
    real = affine.dequantize(q, g.scale, g.zero_point)
    assert np.array_equal(g.dequantize(q), real)
    values = (real + r.normal(size=count) * g.scale).astype(np.float32)
    assert np.array_equal(g.quantize(values), exact(values, g))
    assert np.array_equal(g.quantize(values[::-1]), exact(values, g)[::-1])
    values[-1] = np.nan
    with pytest.raises(ValueError, match="expected numbers, got 1 NaN"):
        g.quantize(values)


def test_what_cannot_be_computed_is_refused():
    g = QParams(np.float32(1), 3, 0, 255)
    with pytest.raises(ValueError, match="expected numbers, got 2 NaN"):
        arrays.quantize(np.array([1, np.nan, np.nan], np.float32), g.array_grid)
    with pytest.raises(TypeError, match="x: expected float32 values"):
        arrays.quantize(np.array([0.1]), g.array_grid)
    with pytest.raises(TypeError, match="expected uint8 codes, got int8"):
        arrays.dequantize(np.zeros(3, np.int8), g.array_grid)
    frozen = np.zeros(3, np.uint8)
    frozen.flags.writeable = False
    for out in (np.zeros(4, np.uint8), np.zeros(3, np.int8), np.zeros(6, np.uint8)[::2], frozen):
        with pytest.raises(ValueError, match="^out: expected a contiguous uint8 array"):
            arrays.quantize(np.zeros(3, np.float32), g.array_grid, out=out)
    for out in (np.zeros(4, np.float32), np.zeros(3, np.uint8), np.zeros(6, np.float32)[::2]):
        with pytest.raises(ValueError, match="^out: expected a contiguous float32 array"):
            arrays.dequantize(np.zeros(3, np.uint8), g.array_grid, out=out)
    along = QParams(np.ones(2, np.float32), [0, 0], 0, 255, 0)
    with pytest.raises(ValueError, match="grid: expected one for the whole array, got one along axis 0"):
        arrays.quantize(np.zeros(2, np.float32), along.array_grid)


def test_many_grids_do_not_pile_up():
    grids = [QParams(np.float32(1 + i), 3, 0, 255) for i in range(3 * arrays.FRAMES_KEPT)]
    for g in grids:
        assert arrays.quantize(np.float32([[9]]), g.array_grid).tolist() == exact(np.float32([[9]]), g).tolist()
    assert len(arrays.ready.quantize) <= arrays.FRAMES_KEPT
