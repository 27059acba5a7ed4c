"""Chapter 10: dialects. The oracle is the chapter's own float32 steps."""

import re
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.accumulate import ACCUMULATE
from quantspec.numerics.dialects.float32 import fma
from quantspec.numerics.dialects.float_output import OUTPUT
from quantspec.numerics.dialects.named import DIALECTS, dialect
from quantspec.numerics.dialects.qparams import QPARAMS
from quantspec.numerics.dialects.quantize import quantize
from quantspec.numerics.dialects.requantize import INTEGER_BIAS, REQUANTIZE, requantize_integer_bias_reciprocal
from strategies import every_code

spec = chapters.load("dialects")
NAMES = sorted(DIALECTS)
CHOICES = [row["choice"] for row in spec.CHOICES]


def ordinary_scales():
    return draws.scales(2.0**-40, 2.0**40)


@st.composite
def floats32(draw):
    """float32 numbers around each other, so that sums cancel and products end beside ties."""
    kind = draw(st.sampled_from(["any", "near one", "integer"]))
    if kind == "any":
        return np.float32(draw(st.floats(width=32, allow_nan=False)))
    if kind == "near one":
        return draws.shifted(draw(st.sampled_from([1.0, -1.0, 0.5, 3.0])), draw(st.integers(-3, 3)))
    return np.float32(draw(st.integers(-(2**24), 2**24)))


@clause("DIA-QUANTIZE")
@given(st.lists(st.tuples(floats32(), floats32(), floats32()), min_size=1, max_size=20))
def test_fused_multiply_add_rounds_once(triples):
    a, b, c = (np.array(column, np.float32) for column in zip(*triples))
    with np.errstate(all="ignore"):
        got, expected = fma(a, b, c), np.array([spec.fma(*t) for t in triples], np.float32)
    finite = np.isfinite(expected) | np.isinf(expected)
    assert got[finite].tolist() == expected[finite].tolist()
    assert np.isnan(got[~finite]).all()


@clause("DIA-QUANTIZE")
@given(draws.grids(2.0**-120, 2.0**110), st.sampled_from(sorted(spec.QUANTIZE)), st.data())
def test_every_way_to_quantize_equals_its_definition(grid, rule, data):
    x = data.draw(draws.arrays_on(grid))
    got = quantize(rule, x, grid.scale, grid.zero_point, grid.qmin, grid.qmax, None)
    assert got.dtype == grid.dtype
    assert got.tolist() == [spec.QUANTIZE[rule](v, grid.scale, int(grid.zero_point), grid.qmin, grid.qmax) for v in x]


@clause("DIA-QUANTIZE")
@pytest.mark.parametrize("rule", sorted(spec.QUANTIZE))
def test_ties_and_their_neighbours(rule):
    steps = every_code(0, 255).astype(np.float32) - 128
    for scale in (np.float32(2 / 255), np.float32(0.1), np.float32(1)):
        ties = ((steps + np.float32(0.5)) * scale).astype(np.float32)
        x = np.concatenate([ties, np.nextafter(ties, np.float32(9e9)), np.nextafter(ties, np.float32(-9e9))])
        for zero_point in range(0, 256, 51):
            expected = [spec.QUANTIZE[rule](v, scale, zero_point, 0, 255) for v in x]
            assert quantize(rule, x, scale, zero_point, 0, 255, None).tolist() == expected


@clause("DIA-QUANTIZE")
@given(st.data())
def test_quantize_per_channel_takes_the_dialects_rule_for_channels(data):
    scale = np.array([data.draw(ordinary_scales()) for _ in range(3)], np.float32)
    points = np.array([data.draw(st.integers(0, 255)) for _ in range(3)])
    x = np.array([[data.draw(draws.values(float(s))) for _ in range(4)] for s in scale], np.float32)
    for name in NAMES:
        got = dialect(name).quantize(x, scale, points, qmin=0, qmax=255, axis=0)
        rule = spec.QUANTIZE[spec.choice(name, "quantize_channels")]
        expected = [[rule(v, s, int(p), 0, 255) for v in row] for row, s, p in zip(x, scale, points)]
        assert got.tolist() == expected, name


@clause("DIA-QUANTIZE")
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_bad_grids_are_refused_in_every_dialect(name):
    rules = dialect(name)
    with pytest.raises(ValueError, match="x: expected numbers, got 1 NaN"):
        rules.quantize(np.float32([1, np.nan]), 1.0, 0, qmin=0, qmax=255)
    with pytest.raises(ValueError, match="scale"):
        rules.quantize(np.float32([1]), 0.0, 0, qmin=0, qmax=255)
    with pytest.raises(ValueError, match="zero_point"):
        rules.quantize(np.float32([1]), 1.0, 256, qmin=0, qmax=255)


@clause("DIA-QPARAMS", "DIA-SYMMETRIC")
@given(draws.coverable(), draws.widths(), st.booleans())
def test_qparams_equal_their_definition(seen, ends, symmetric):
    rules = (spec.SYMMETRIC, "symmetric") if symmetric else (spec.QPARAMS, "qparams")
    for name in NAMES:
        scale, zero_point = rules[0][spec.choice(name, rules[1])](*seen, *ends)
        if scale < 2.0**-126:  # only `float32-bare` has no floor
            with pytest.raises(ValueError, match="scale"):
                dialect(name).qparams(*seen, qmin=ends[0], qmax=ends[1], symmetric=symmetric)
            continue
        got = dialect(name).qparams(*seen, qmin=ends[0], qmax=ends[1], symmetric=symmetric)
        assert (float(got.scale), int(got.zero_point)) == (scale, zero_point), name


@clause("DIA-QPARAMS")
@given(draws.ranges(), draws.widths())
def test_the_float64_rule_equals_its_definition(seen, ends):
    got = QPARAMS["float64"](np.asarray(seen[0]), np.asarray(seen[1]), *ends)
    assert (float(got[0]), int(got[1])) == spec.QPARAMS["float64"](*seen, *ends)


@clause("DIA-QPARAMS")
@pytest.mark.parametrize("rule", ["float32", "float64"])
def test_hundreds_of_ranges_of_all_sizes_have_the_qparams_of_the_rule(rule):
    generator = np.random.default_rng(0)
    low, high = (generator.uniform(-1, 1, (2, 400)) * 10.0 ** generator.uniform(-9, 3, 400)).astype(np.float32)
    for a, b in zip(np.minimum(low, high), np.maximum(low, high)):
        scale, zero_point = QPARAMS[rule](np.asarray(a), np.asarray(b), 0, 255)
        assert (float(scale), int(zero_point)) == spec.QPARAMS[rule](a, b, 0, 255)


@clause("DIA-QPARAMS")
@pytest.mark.parametrize("name", ["fbgemm", "onednn", "qnnpack"])
def test_ranges_are_checked_in_every_dialect(name):
    for low, high in ((1.0, 0.0), (np.nan, 0.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="minimum"):
            dialect(name).qparams(np.float32(low), np.float32(high), qmin=0, qmax=255, symmetric=False)
    with pytest.raises(ValueError, match="maximum: the range is too wide"):
        dialect(name).qparams(np.float32(-3e38), np.float32(3e38), qmin=0, qmax=255, symmetric=False)


@clause("DIA-SYMMETRIC")
@pytest.mark.parametrize("name", NAMES)
def test_qparams_per_channel_are_those_of_each_channel(name):
    rules = dialect(name)
    low, high = np.float32([-1, 0, -3]), np.float32([2, 0.5, 1])
    together = rules.qparams(low, high, qmin=-128, qmax=127, symmetric=True, axis=0)
    alone = [rules.qparams(*pair, qmin=-128, qmax=127, symmetric=True) for pair in zip(low, high)]
    assert together.scale.tolist() == [float(g.scale) for g in alone] and together.zero_point.shape == ()


@clause("DIA-REDUCED")
@given(draws.coverable())
def test_a_reduced_range_has_the_scale_of_seven_bits(seen):
    for name in NAMES:
        rules = dialect(name)
        scale, zero_point = spec.QPARAMS[spec.choice(name, "qparams")](*seen, 0, 127)
        if scale < 2.0**-126:  # only `float32-bare` has no floor
            with pytest.raises(ValueError, match="scale"):
                rules.activation_qparams(*seen, reduce_range=True)
            continue
        grid = rules.activation_qparams(*seen, reduce_range=True)
        assert (float(grid.scale), int(grid.zero_point)) == (scale, zero_point), name
        assert (grid.qmin, grid.qmax) == spec.REDUCED[spec.choice(name, "reduced")], name
        full = rules.activation_qparams(*seen)
        assert (full.qmin, full.qmax) == (0, 255), name


@clause("DIA-ACCUMULATE")
@given(draws.seeds(), st.integers(0, 3), st.integers(0, 19), st.integers(1, 4), st.integers(0, 255), st.booleans())
def test_pairs_saturate_as_the_definition_says(generator, rows, inputs, outputs, zero_point, extreme):
    x = generator.integers(0, 256, (rows, inputs)).astype(np.uint8)
    w = generator.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    if extreme:
        x, w = (
            np.where(x > 99, 255, x).astype(np.uint8),
            np.where(w > 0, 127, np.where(w < -60, -128, w)).astype(np.int8),
        )
    got = ACCUMULATE["pairs"](x, zero_point, w, 0)
    assert got.tolist() == [[spec.accumulate_pairs(r, zero_point, c, 0) for c in w.tolist()] for r in x.tolist()]


@clause("DIA-ACCUMULATE")
@given(draws.seeds(), st.integers(0, 19))
def test_with_seven_bits_pairs_are_exact(generator, inputs):
    x = generator.integers(0, 128, (3, inputs)).astype(np.uint8)
    w = generator.integers(-128, 128, (2, inputs)).astype(np.int8)
    assert ACCUMULATE["pairs"](x, 64, w, 0).tolist() == integer.accumulate(x, 64, w, 0).tolist()


@st.composite
def accumulators(draw):
    """(accumulator [rows, 3], bias, s_x, s_w, y): outputs spread over the codes and near ties."""
    s_x, per_channel = draw(ordinary_scales()), draw(st.booleans())
    s_w = np.array([draw(draws.scales(2.0**-10, 2.0**10)) for _ in range(3 if per_channel else 1)], np.float32)
    unit = float(s_x) * float(s_w[0])
    step = unit * draw(st.sampled_from([0.01, 1.0, 3.0, 7.3, 1000.0, 1e5]))
    y = QParams(np.float32(np.clip(step, 2.0**-60, 2.0**60)), draw(st.integers(0, 255)), 0, 255)
    bias = np.array([draw(st.sampled_from([0.0, 0.3, -1.5, 1e3, 1e7])) * unit for _ in range(3)], np.float32)
    targets = draw(st.lists(st.integers(-600, 600), min_size=3, max_size=12).map(lambda v: v[: len(v) // 3 * 3]))
    near = [min(max(int((t + 0.5) * float(y.scale) / unit), -(2**31)), 2**31 - 1) for t in targets]
    return np.array(near, np.int64).astype(np.int32).reshape(-1, 3), bias, s_x, s_w if per_channel else s_w[0], y


@clause("DIA-REQUANTIZE")
@pytest.mark.parametrize("rule", sorted(spec.REQUANTIZE))
@given(accumulators(), st.booleans())
def test_every_way_to_requantize_equals_its_definition(rule, case, relu):
    accumulator, bias, s_x, s_w, y = case
    lowest = int(y.zero_point) if relu else y.qmin
    with np.errstate(over="ignore"):
        got = REQUANTIZE[rule](accumulator, bias, s_x, s_w, y, lowest)
        expected = [
            [
                spec.REQUANTIZE[rule](
                    int(a), float(b), s_x, s, y.scale, int(y.zero_point), lowest, y.qmax, np.ndim(s_w) > 0
                )
                for a, b, s in zip(row, bias, np.broadcast_to(s_w, 3))
            ]
            for row in accumulator
        ]
    assert got.tolist() == expected


@clause("DIA-REQUANTIZE")
@pytest.mark.parametrize("rule", sorted(spec.REQUANTIZE))
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("s_x", "s_w"), [(0.013, 0.7), (0.1, 0.003), (2 / 255, 1.3)])
def test_a_bias_that_moves_the_sum_by_half_an_ulp_counts_as_in_the_definition(rule, per_channel, s_x, s_w):
    # Sums on ties of the output, and biases on ties of the sum: what is rounded when decides the code.
    s_x, s_w = np.float32(s_x), np.float32(s_w)
    y = QParams(np.float32(s_x * s_w * 2.0**20), 3, 0, 255)
    accumulator = (2 * (every_code(0, 255).astype(np.int64) - 3) + 1) * 2**19
    halves = np.spacing(np.abs(accumulator).astype(np.float32)).astype(np.float64) / 2
    for sign in (-1, 1):
        bias = (sign * halves * float(s_x) * float(s_w)).astype(np.float32)
        got = np.array([
            REQUANTIZE[rule](np.array([[a]], np.int32), b[None], s_x, s_w[None] if per_channel else s_w, y, 0)[0, 0]
            for a, b in zip(accumulator, bias)
        ])
        expected = [
            spec.REQUANTIZE[rule](int(a), float(b), s_x, s_w, y.scale, 3, 0, 255, per_channel)
            for a, b in zip(accumulator, bias)
        ]
        assert got.tolist() == expected


@clause("DIA-REQUANTIZE")
@pytest.mark.parametrize("name", NAMES)
@given(draws.seeds(), st.integers(0, 4), st.integers(0, 9), st.booleans(), st.booleans())
def test_a_layer_in_a_dialect_is_its_accumulate_and_requantize(name, generator, rows, inputs, per_channel, relu):
    rules = dialect(name)
    x_q = generator.integers(0, 256, (rows, inputs)).astype(np.uint8)
    w_q = generator.integers(-128, 128, (2, inputs)).astype(np.int8)
    x, y = QParams(0.02, int(generator.integers(256)), 0, 255), QParams(0.7, int(generator.integers(256)), 0, 255)
    w = QParams(generator.uniform(0.001, 0.1, 2), 0, -128, 127, axis=0) if per_channel else QParams(0.013, 0, -128, 127)
    bias = generator.normal(size=2).astype(np.float32)
    got = rules.linear(x_q, x, w_q, w, bias, y, relu=relu)
    accumulate = spec.ACCUMULATE[spec.choice(name, "accumulate")]
    requantize = spec.REQUANTIZE[spec.choice(name, "requantize")]
    lowest = int(y.zero_point) if relu else 0
    scales = np.broadcast_to(w.scale, 2)
    expected = [
        [
            requantize(
                accumulate(row, int(x.zero_point), c, 0), float(b), x.scale, s, y.scale, int(y.zero_point), lowest,
                255, per_channel,
            )
            for c, b, s in zip(w_q.tolist(), bias, scales)
        ]
        for row in x_q.tolist()
    ]
    assert got.dtype == np.uint8 and got.tolist() == expected
    zero = rules.linear(x_q, x, w_q, w, None, y).tolist()
    assert zero == rules.linear(x_q, x, w_q, w, np.zeros(2, np.float32), y).tolist()


@clause("DIA-UNIT")
@pytest.mark.parametrize("name", [name for name in NAMES if spec.choice(name, "requantize") != "exact"])
@pytest.mark.parametrize(
    ("s_x", "s_w", "s_y"),
    [(2.0**-70, 2.0**-70, 1.0), (2.0**70, 2.0**70, 1.0), (2.0**-50, 2.0**-50, 2.0**30), (2.0**50, 2.0**50, 2.0**-40)],
)
def test_products_of_scales_that_are_no_normal_numbers_are_refused(name, s_x, s_w, s_y):
    x, w, y = QParams(s_x, 0, 0, 255), QParams(s_w, 0, -128, 127), QParams(s_y, 0, 0, 255)
    with pytest.raises(ValueError, match="scale: expected a .* that is a normal float32"):
        dialect(name).linear(np.uint8([[1]]), x, np.int8([[1]]), w, None, y)
    exact = dialect("exact").linear(np.uint8([[1]]), x, np.int8([[1]]), w, None, y)
    assert exact.tolist() == [[255 if s_x > 1 else 0]]


@clause("DIA-DYNAMIC")
@pytest.mark.parametrize("rule", sorted(spec.OUTPUT))
@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=6), ordinary_scales(),
    draws.scales(2.0**-10, 2.0**10), st.floats(-(2.0**50), 2.0**50, width=32),
)
def test_every_way_to_a_float_output_equals_its_definition(rule, values, s_x, s_w, bias):
    accumulator = np.array(values, np.int64)[:, None]
    got = OUTPUT[rule](accumulator, np.array([bias], np.float32), s_x, np.array([s_w]))
    assert got.dtype == np.float32
    assert got.ravel().tolist() == [float(spec.OUTPUT[rule](a, bias, s_x, s_w)) for a in values]


@clause("DIA-DYNAMIC-QUANTIZE")
@pytest.mark.parametrize("rule", sorted(spec.QUANTIZE_DYNAMIC))
@given(st.floats(2.0**-30, 2.0**30), st.integers(0, 255), st.data())
def test_every_way_to_quantize_a_dynamic_input_equals_its_definition(rule, scale, zero_point, data):
    x = data.draw(draws.arrays_on(QParams(scale, zero_point, 0, 255)))
    used = scale if rule == "inverted" else np.float32(scale)
    got = quantize(rule, x, used, zero_point, 0, 255, None)
    assert got.tolist() == [spec.QUANTIZE_DYNAMIC[rule](v, used, zero_point, 0, 255) for v in x]


@clause("DIA-DYNAMIC-QUANTIZE")
@pytest.mark.parametrize("name", NAMES)
# The last two show whether a scale is inverted with all its digits.
@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.3), (0.0, 0.7), (-1.7, 0.6)])
def test_a_dynamic_input_full_of_ties_has_the_codes_of_the_definition(name, low, high):
    scale, zero_point = spec.QPARAMS[spec.choice(name, "qparams_dynamic")](np.float32(low), np.float32(high), 0, 255)
    ties = (np.arange(-zero_point, 255 - zero_point) + 0.5) * scale
    x = np.array([low, high, *(draws.shifted(tie, ulps) for tie in ties for ulps in (-2, -1, 0, 1, 2))], np.float32)
    x = np.clip(x, np.float32(low), np.float32(high))
    rule = spec.choice(name, "quantize_dynamic")
    expected = [
        spec.QUANTIZE_DYNAMIC[rule](v, scale if rule == "inverted" else np.float32(scale), zero_point, 0, 255)
        for v in x
    ]
    assert dialect(name).quantize_dynamic(x[None])[0].ravel().tolist() == expected


@clause("DIA-DYNAMIC", "DIA-DYNAMIC-QUANTIZE")
@pytest.mark.parametrize("name", NAMES)
@given(draws.seeds(), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_a_dynamic_layer_in_a_dialect_takes_its_choices(name, generator, rows, inputs, reduce_range):
    x = (generator.normal(size=(rows, inputs)) * 3).astype(np.float32)
    w_q = generator.integers(-128, 128, (2, inputs)).astype(np.int8)
    w, bias = (
        QParams(generator.uniform(0.001, 0.1, 2), 0, -128, 127, axis=0),
        generator.normal(size=2).astype(np.float32),
    )
    got = dialect(name).linear_dynamic(x, w_q, w, bias, reduce_range=reduce_range)
    highest = 127 if reduce_range else 255
    scale, zero_point = spec.QPARAMS[spec.choice(name, "qparams_dynamic")](x.min(), x.max(), 0, highest)
    highest = spec.REDUCED[spec.choice(name, "reduced")][1] if reduce_range else 255
    rule = spec.choice(name, "quantize_dynamic")
    used = scale if rule == "inverted" else np.float32(scale)
    codes = [[spec.QUANTIZE_DYNAMIC[rule](v, used, zero_point, 0, highest) for v in row] for row in x]
    accumulate, output = spec.ACCUMULATE[spec.choice(name, "accumulate")], spec.OUTPUT[spec.choice(name, "output")]
    expected = [
        [float(output(accumulate(row, zero_point, c, 0), b, scale, s)) for c, b, s in zip(w_q.tolist(), bias, w.scale)]
        for row in codes
    ]
    assert got.tolist() == expected


@clause("DIA-NAMED")
@pytest.mark.parametrize("name", NAMES)
def test_every_dialect_makes_the_choices_of_the_table(name):
    choices = asdict(dialect(name))
    assert choices.pop("name") == name
    assert choices == {f"{place}_rule": spec.choice(name, place) for place in CHOICES}


@clause("DIA-NAMED")
@pytest.mark.parametrize("row", spec.CHOICES, ids=[row["choice"] for row in spec.CHOICES])
def test_every_alternative_of_the_table_is_one_that_the_clause_of_its_choice_lists(row):
    # DIA-WINDOWS says in words what `channels` chooses; the table names it.
    listed = code_words(row["what it is about"]) if row["choice"] == "channels" else alternatives(row["clause"])
    assert {spec.choice(name, row["choice"]) for name in NAMES} <= listed


def alternatives(id_: str) -> set[str]:
    """What a clause's sentence lists, and those do that it names."""
    sentence = chapters.clauses()[id_].sentence
    others = (alternatives(other) for other in re.findall(r"DIA-[A-Z-]+[A-Z]", sentence))
    return code_words(sentence).union(*others)


def code_words(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


@clause("DIA-NAMED")
def test_there_are_no_other_dialects():
    assert set(NAMES) == {*spec.DIALECTS, *(f"{name}-int16" for name in spec.INT16)}
    with pytest.raises(ValueError, match="dialect: expected one of exact, onnx, .*, got 'best'"):
        dialect("best")


# The alternatives that round to a whole number of steps once.
ONCE = sorted(set(spec.REQUANTIZE) - {"fixed-two", "fixed-two-up"})


def short_scales():
    """Scales of six binary digits, so that their product with a bias code is a float32."""
    return st.tuples(st.integers(1, 63), st.integers(-30, 30)).map(lambda p: np.float32(p[0] * 2.0 ** p[1]))


@clause("DIA-EVERYWHERE")
@given(
    short_scales(), short_scales(), st.floats(1, 2.0**14, width=32), st.integers(-2047, 2047), st.integers(0, 255),
    st.floats(2, 250), st.booleans(),
)
def test_away_from_ties_all_dialects_agree(s_x, s_w, coarse, bias_code, zero_point, code, per_channel):
    unit = Fraction(float(s_x)) * Fraction(float(s_w))
    bias = np.float32(float(bias_code * unit))
    s_y = np.float32(float(unit) * coarse)
    m = unit / Fraction(float(s_y))
    accumulator = round((Fraction(code) - zero_point) / m) - bias_code

    def near_a_tie(accumulator):
        steps = m * (accumulator + bias_code)
        tie = abs(abs(steps - round(steps)) - Fraction(1, 2))
        return tie <= Fraction(1, 2**20) * (m * (abs(accumulator) + abs(bias_code)) + 512)

    while near_a_tie(accumulator):
        accumulator += max(1, round(coarse / 4))
    arguments = dict(s_x=s_x, s_w=s_w, s_y=s_y, zero_point=zero_point, lowest=0, qmax=255, per_channel=per_channel)
    codes = {
        rule: int(step(accumulator, float(bias), **arguments)) for rule, step in spec.REQUANTIZE.items() if rule in ONCE
    }
    assert 0 < codes["exact"] < 255
    assert set(codes.values()) == {codes["exact"]}
    scales = s_x, s_w[None] if per_channel else s_w, QParams(s_y, zero_point, 0, 255)
    for rule in ONCE:
        step = REQUANTIZE[rule]
        assert step(np.array([[accumulator]], np.int32), bias[None], *scales, 0).tolist() == [[codes["exact"]]], rule


@clause("DIA-EVERYWHERE")
@pytest.mark.parametrize("rule", ONCE)
@pytest.mark.parametrize(("s_x", "s_w"), [(3.0, 5.0), (7 * 2.0**-9, 11 * 2.0**-3), (63.0, 61.0), (0.5, 0.25)])
@pytest.mark.parametrize("coarse", [1, 3, 7, 129])
def test_sums_of_whole_and_odd_shares_of_a_step_have_one_code_in_all_dialects(rule, s_x, s_w, coarse):
    # Over an odd number no sum is a tie, nor near one.
    y = QParams(s_x * s_w * coarse, 100, 0, 255)
    sums = np.arange(-3 * coarse, 3 * coarse + 1)
    expected = [100 + round(Fraction(int(total), coarse)) for total in sums]
    for bias_code in [*range(-40, 41), -2047, -1000, 1000, 2047]:
        bias, scales = np.float32([bias_code * s_x * s_w]), (np.float32(s_x), np.float32(s_w))
        accumulator = (sums - bias_code).astype(np.int32)
        assert REQUANTIZE[rule](accumulator[:, None], bias, *scales, y, 0)[:, 0].tolist() == expected


@clause("DIA-REQUANTIZE")
@given(accumulators())
def test_bias_codes_are_those_that_requantizing_uses(case):
    _, bias, s_x, s_w, y = case
    for name in NAMES:
        codes = dialect(name).bias_codes(bias, s_x, s_w)
        if spec.choice(name, "requantize") in INTEGER_BIAS:
            assert codes.tolist() == integer.quantize_bias(bias, s_x, s_w).tolist()
        elif spec.choice(name, "requantize") == "integer-bias-reciprocal":
            zero = np.zeros((1, 3), np.int64)
            whole = requantize_integer_bias_reciprocal(codes[None], zero[0].astype(np.float32), s_x, s_w, y, 0)
            assert whole.tolist() == requantize_integer_bias_reciprocal(zero, bias, s_x, s_w, y, 0).tolist()
        else:
            assert codes is None
