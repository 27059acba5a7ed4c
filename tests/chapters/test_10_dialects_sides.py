"""Chapter 10: dialects. Every comparison and clamp of the vectorised steps is taken on all its sides, by numbers that
stand in the code and their neighbours; the oracle is the chapter's own float32 steps.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given

import sides
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import accumulate, fixed_point, float32, float_output, operations, qparams, requantize
from quantspec.numerics.dialects import quantize as quantizing
from quantspec.numerics.dialects.named import dialect

spec = chapters.load("dialects")
LEAST, NORMAL, LARGEST = 2.0**-149, 2.0**-126, float(np.finfo(np.float32).max)
ENDS = [(0, 255), (-128, 127)]
F = np.float32


@clause("DIA-QUANTIZE", "DIA-REQUANTIZE")
def test_fused_and_converted_numbers_are_taken_on_every_side():
    few = [1.0, 1 + 2.0**-23, 3.0, 2.0**24 - 1, 0.1, 2.0**31, NORMAL, LEAST, 0.0, LARGEST, np.inf]
    factors = np.array([sign * v for v in few for sign in (1, -1)], F)
    with sides.watched(float32) as taken, np.errstate(all="ignore"):
        pairs = np.array(list(itertools.product(factors, factors)), F)
        for end in (*factors, None):
            # The product itself with the other sign leaves what its rounding lost.
            a, b, c = *pairs.T, np.full(len(pairs), end, F) if end is not None else -(pairs[:, 0] * pairs[:, 1])
            expected = np.array([spec.fma(*t) for t in zip(a, b, c)], F)
            assert np.array_equal(float32.fma(a, b, c), expected, equal_nan=True)
        values = sides.around(sides.constants(float32))
        assert float32.to_int32(values).tolist() == [spec.to_int32(v) for v in values]
        assert float32.saturate16(values.astype(np.float64)).tolist() == [spec.saturate16(float(v)) for v in values]
        assert float32.away(values.astype(np.float64)).tolist() == [float(spec.away(v)) for v in values]
        for x, w, y in ((1, 1, 1), (NORMAL, 1, 1), (LEAST, 1, 1), (2.0**64, 2.0**64, 1), (1, 1, 2.0**127)):
            normal = all(NORMAL <= float(v) <= LARGEST for v in (F(x) * F(w), F(x) * F(w) / F(y)))
            try:
                float32.check_unit(F(x), F(w), F(y))
            except ValueError:
                assert not normal
            else:
                assert normal
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-QUANTIZE", "DIA-DYNAMIC-QUANTIZE")
def test_quantizing_is_taken_on_every_side():
    rules = spec.QUANTIZE | spec.QUANTIZE_DYNAMIC
    steps = sides.around([0, 1, 127, 128, 255, *sides.constants(quantizing, float32)])
    with sides.watched(quantizing, without=("quantize",)) as taken, np.errstate(over="ignore"):
        for rule, (qmin, qmax), scale in itertools.product(sorted(rules), ENDS, (F(1), F(0.1), F(NORMAL), F(2.0**119))):
            for zero_point in (qmin, 0, 3, qmax):
                x = (steps * scale).astype(F)
                got = quantizing.quantize(rule, x, scale, zero_point, qmin, qmax, None)
                assert got.tolist() == [rules[rule](v, scale, zero_point, qmin, qmax) for v in x], (rule, scale)
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-QPARAMS", "DIA-SYMMETRIC")
def test_ranges_are_taken_on_every_side():
    at = [0, 1, 300 * LEAST, 2.0**-23 * 255, 6.1e-5 * 255, 6.1e-5 * 300, 1e-3, 3.0, LEAST, NORMAL, 2.0**-120, 2.0**100]
    ends = np.array(sorted({sign * v for v in (*at, *sides.constants(qparams)) for sign in (1, -1)}), F)
    ends = np.unique(ends[np.abs(ends) <= 2.0**100])
    rules = {rule: (spec.QPARAMS[rule], qparams.QPARAMS[rule]) for rule in qparams.QPARAMS}
    rules["half"] = spec.SYMMETRIC["half"], qparams.symmetric_half
    with sides.watched(qparams) as taken, np.errstate(over="ignore"):
        for rule, (definition, vectorised) in rules.items():
            for (low, high), (qmin, qmax) in itertools.product(itertools.product(ends, ends), ENDS):
                if low <= high:
                    scale, zero_point = vectorised(np.asarray(low), np.asarray(high), qmin, qmax)
                    assert (float(scale), int(zero_point)) == definition(low, high, qmin, qmax), (rule, low, high)
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-ACCUMULATE")
def test_pairs_are_taken_on_every_side():
    weights = itertools.product([-128, -127, -1, 0, 1, 64, 65, 127], [-128, -127, 0, 1, 63, 64, 127], [1])
    w = np.array(list(weights), np.int8)
    with sides.watched(accumulate) as taken:
        for codes in (np.uint8([0, 1, 127, 128, 129, 254, 255]), np.int8([-128, -127, -1, 0, 1, 127])):
            x = np.array(list(itertools.product(codes, codes, codes[:1])), codes.dtype)
            got = accumulate.ACCUMULATE["pairs"](x, 3, w, 0)
            assert got.tolist() == [[spec.accumulate_pairs(r, 3, c, 0) for c in w.tolist()] for r in x.tolist()]
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-REQUANTIZE")
def test_requantizing_is_taken_on_every_side():
    near = sides.around(sides.constants(requantize, fixed_point, float32))
    sums = {int(v) for v in near if -(2.0**31) <= v < 2.0**31}
    a = np.array(sorted({*sums, 2**31 - 1, -(2**31), 2**30, -(2**30)}), np.int64)
    units = itertools.cycle([(1, 1), (0.1, 0.003), (2.0**-20, 2.0**-14), (2.0**30, 1)])
    steps = [0.7, 1, 2.0**-6, 2.0**-33, 2.0**15, 2.0**16 + 1, 2.0**24, 2.0**29, 2.0**30, 2.0**31, 2.0**32, 2.0**33]
    with sides.watched(requantize, fixed_point) as taken, np.errstate(over="ignore"):
        for (s_x, s_w), step, channels in zip(units, steps, itertools.cycle((False, True, True))):
            s_x, s_w, s_y = F(s_x), F(s_w), F(s_x) * F(s_w) * F(step)
            for zero_point, lowest, bias in ((255, 3, 0.3), (128, 128, -1.5), (7, 0, 2.0**31), (7, 0, -(2.0**32))):
                y, b = QParams(s_y, zero_point, 0, 255), F(bias) * s_x * s_w
                for rule, vectorised in requantize.REQUANTIZE.items():
                    got = vectorised(a[:, None], b[None], s_x, s_w[None] if channels else s_w, y, lowest)
                    definition = spec.REQUANTIZE[rule]
                    expected = [
                        definition(int(v), float(b), s_x, s_w, y.scale, zero_point, lowest, 255, channels) for v in a
                    ]
                    assert got[:, 0].tolist() == expected, (rule, s_x, s_w, step, zero_point, lowest, bias)
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-DYNAMIC")
def test_outputs_in_floats_are_taken_on_every_side():
    a = np.array([0, 1, -1, 3, 2**24 - 1, 2**24 + 1, -(2**24) - 1, 2**31 - 1, -(2**31)], np.int64)[:, None]
    with sides.watched(float_output) as taken, np.errstate(over="ignore"):
        for rule, s_x, s_w in itertools.product(float_output.OUTPUT, (1, 0.1, 2.0**-60), (1, 0.003, 1 + 2.0**-23)):
            unit = F(s_x) * F(s_w)
            for bias in (0, 1, -3, 2.0**24, 2.0**-24, -(2.0**31), 0.5):
                b = F(bias) * unit
                got = float_output.OUTPUT[rule](a, b[None], F(s_x), F(s_w)[None])
                assert got.ravel().tolist() == [float(spec.OUTPUT[rule](int(v), b, F(s_x), F(s_w))) for v in a[:, 0]]
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-ADD", "DIA-MUL", "DIA-RESCALE", "DIA-AVERAGE")
def test_operations_on_codes_are_taken_on_every_side():
    # Of ``average_real`` the sum is off by half a step in windows of a million positions only.
    others = ("add", "mul", "same_shape", "concat", "rescale", "avg_pool2d", "avg_pool", "adaptive_avg_pool2d",
              "adaptive_avg_pool", "mean", "fold_batch_norm", "average_real")  # fmt: skip
    codes = np.array(list(itertools.product([0, 1, 127, 128, 254, 255], repeat=2)), np.uint8).T
    tiny = [2.0**-n for n in (20, 21, 22, 23, 30, 31, 32, 33, 62, 63, 64, 65)]
    scales = [1, 0.1, *tiny, 1 - 2.0**-24, 2 - 2.0**-23, 8 - 2.0**-21, 2.0**20, 2.0**31, 2.0**60]
    with sides.watched(operations, without=others) as taken, np.errstate(over="ignore"):
        pairs = [(b, y) for places in (1, 7, 12) for b, y in zip(scales, np.roll(scales, places))]
        for (s_b, s_y), zero_point in zip(pairs, itertools.cycle((0, 3, 255))):
            grids = [QParams(1, 3, 0, 255), QParams(s_b, zero_point, 0, 255), QParams(s_y, zero_point, 0, 255)]
            a, b, y = grids
            own = [(float(g.scale), int(g.zero_point)) for g in (a, b)]
            whole = (float(y.scale), zero_point, 0, 255)
            for rule, vectorised in operations.ADD.items():
                got = np.clip(vectorised(codes[0], a, codes[1], b, y), 0, 255)
                expected = [spec.ADD[rule](int(p), own[0], int(q), own[1], whole, 0) for p, q in codes.T]
                assert got.tolist() == expected, (rule, grids)
            for rule, vectorised in operations.MUL.items():
                got = np.clip(vectorised(codes[0], a, codes[1], b, y), 0, 255)
                expected = [spec.MUL[rule](int(p), own[0], int(q), own[1], whole) for p, q in codes.T]
                assert got.tolist() == expected, (rule, grids)
            for rule, vectorised in operations.RESCALE.items():
                got = vectorised(codes[0], b, y, "divide")
                if (b.scale, b.zero_point) != (y.scale, y.zero_point):
                    quantize = spec.QUANTIZE["divide"]
                    assert got.tolist() == [spec.RESCALE[rule](int(p), own[1], whole, quantize) for p in codes[0]]
        windows = [row for count in (1, 2, 3, 4, 7, 9, 49, 64) for row in np.resize(codes[0], (8, count)).tolist()]
        positions = np.array([len(row) for row in windows], np.float64)
        for zero_point in (0, 128, 255):
            grid, whole = QParams(0.1, zero_point, 0, 255), (float(F(0.1)), zero_point, 0, 255)
            total = np.array([sum(row) for row in windows]) - zero_point * positions
            for rule, vectorised in operations.AVERAGE.items():
                got = np.clip(vectorised(total, positions, grid), 0, 255)
                assert got.tolist() == [spec.AVERAGE[rule](row, whole, len(row)) for row in windows], rule
    assert not taken.missing(), "\n".join(taken.missing())


@clause("DIA-RATIO")
@pytest.mark.parametrize("rule", ["fixed-away", "fixed-up", "fixed-two"])
@given(draws.scales(), draws.scales(), draws.scales())
def test_ratios_that_are_no_normal_numbers_are_refused(rule, s_a, s_b, s_y):
    table, choice = (spec.MUL, "mul") if rule == "fixed-two" else (spec.ADD, "add")
    operation = getattr(operations, choice)
    rules = next(dialect(name) for name in spec.DIALECTS if spec.choice(name, choice) == rule)
    a, b, y = (QParams(s, 3, 0, 255) for s in (s_a, s_b, s_y))
    with np.errstate(over="ignore", under="ignore"):
        ratio = s_a * s_b / s_y if choice == "mul" else max(s_a, s_b) / s_y
    codes = np.uint8([[0, 3, 7], [255, 3, 1]])
    if not NORMAL <= ratio <= LARGEST:
        with pytest.raises(ValueError, match="scale: expected a .* that is a normal float32"):
            operation(rules, codes[0], a, codes[1], b, y)
        return
    lowest = (0,) if choice == "add" else ()
    own, whole = [(float(s), 3) for s in (s_a, s_b)], (float(s_y), 3, 0, 255)
    got = operation(rules, codes[0], a, codes[1], b, y)
    assert got.tolist() == [table[rule](int(p), own[0], int(q), own[1], whole, *lowest) for p, q in codes.T]
