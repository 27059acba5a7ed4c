"""Chapter 2: observers. The oracle is the chapter's own definitions."""

import itertools
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec import CalibrationError, chapters
from quantspec.numerics import affine, observers
from quantspec.numerics.affine import QParams
from quantspec.numerics.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
)

spec = chapters.load("observers")
GRID = QParams(0.1, 3, 0, 255)


def batches(**options):
    """A few float32 tensors, some of them empty."""
    return st.lists(draws.arrays_on(GRID, finite=True, **options), min_size=1, max_size=4)


def moderate(smallest=0):
    """A few tensors, of at least ``smallest`` values each, whose histograms the definition can count in time."""
    tensors = st.lists(st.floats(-8, 8, width=32), min_size=smallest, max_size=12).map(
        lambda v: np.array(v, np.float32)
    )
    return st.lists(tensors, min_size=1, max_size=3)


def watched(observer, tensors):
    for x in tensors:
        observer = observer.observe(x)
    return observer


def state(observer):
    """All that an observer knows, as plain data."""
    ends = [None if end is None else float(end) for end in (observer.minimum, observer.maximum)]
    counts = getattr(observer, "counts", None)
    return getattr(observer, "exponent", None), None if counts is None else counts.tolist(), ends


@clause("OBS-MINMAX")
@given(batches())
def test_the_range_is_the_smallest_and_largest_value_seen(tensors):
    seen = None
    for x in tensors:
        seen = spec.observe_min_max(seen, [float(v) for v in x])
    assume(seen is not None)
    low, high = watched(MinMaxObserver(), tensors).range()
    assert (float(low), float(high)) == seen
    assert low.dtype == high.dtype == np.float32 and low.shape == high.shape == ()
    apart = [np.repeat(x, 3)[::3] for x in tensors]
    assert state(watched(MinMaxObserver(), apart)) == state(watched(MinMaxObserver(), tensors))


@clause("OBS-ORDER")
@given(batches(), st.randoms(use_true_random=False))
def test_order_does_not_matter(tensors, random):
    shuffled = [x[random.sample(range(len(x)), len(x))] for x in random.sample(tensors, len(tensors))]
    assert state(watched(MinMaxObserver(), tensors)) == state(watched(MinMaxObserver(), shuffled))


@clause("OBS-SPLIT")
@given(draws.arrays_on(GRID, finite=True), st.lists(st.integers(0, 65), max_size=4))
def test_splitting_into_batches_does_not_matter(x, cuts):
    parts = np.split(x, sorted(min(c, len(x)) for c in cuts))
    assert state(watched(MinMaxObserver(), parts)) == state(MinMaxObserver().observe(x))


@clause("OBS-SPLIT")
def test_a_tensor_may_be_split_at_any_two_places():
    x = np.float32([3, -5, 8, -1, 0, 9, -6, 2])
    for first in range(len(x) + 1):
        for second in range(first, len(x) + 1):
            assert state(watched(MinMaxObserver(), np.split(x, [first, second]))) == state(MinMaxObserver().observe(x))


@clause("OBS-MERGE")
@given(batches(), batches(), batches())
def test_merging_is_seeing_both(one, two, three):
    a, b, c = (watched(MinMaxObserver(), tensors) for tensors in (one, two, three))
    assert state(a.merge(b)) == state(watched(MinMaxObserver(), one + two)) == state(b.merge(a))
    assert state(a.merge(b).merge(c)) == state(a.merge(b.merge(c)))
    assert state(a.merge(MinMaxObserver())) == state(MinMaxObserver().merge(a)) == state(a)
    seen = [None if o.minimum is None else (float(o.minimum), float(o.maximum)) for o in (a, b, a.merge(b))]
    assert spec.merge_min_max(seen[0], seen[1]) == seen[2]


@clause("OBS-MERGE")
def test_observers_of_different_shape_do_not_merge():
    with pytest.raises(ValueError, match="other: expected an observer along axis None, got axis 0"):
        MinMaxObserver().merge(MinMaxObserver(axis=0))


@clause("OBS-IDEMPOTENT")
@given(batches())
def test_seeing_data_again_changes_nothing(tensors):
    once = watched(MinMaxObserver(), tensors)
    assert state(watched(once, tensors)) == state(once)


@clause("OBS-GROW")
@given(batches(lengths=st.just(3)), draws.arrays_on(GRID, finite=True))
def test_ranges_only_grow(tensors, more):
    before = watched(MinMaxObserver(), tensors)
    low, high = before.observe(more).range()
    assert low <= before.minimum and high >= before.maximum


REFUSING = [
    MinMaxObserver(), MinMaxObserver(axis=0), MovingAverageObserver(), HistogramObserver(), PercentileObserver(),
    MSEObserver(),
]


@clause("OBS-FINITE")
@pytest.mark.parametrize("observer", REFUSING, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@given(where=st.integers(0, 16))
def test_nan_and_infinity_are_refused_and_leave_the_observer_as_it_was(observer, bad, where):
    observer = observer.observe(np.float32([[-1.0], [2.0]]))
    before = [str(v) for v in observer.range()]
    x = np.zeros((2, 17), np.float32)
    x[1, where] = bad
    # A range that is known is read together with the values.
    low, high = (-1.0, 2.0) if type(observer) is MinMaxObserver and observer.axis is None else (0.0, 0.0)
    ends = f"a minimum of {np.minimum(low, bad)} and a maximum of {np.maximum(high, bad)}"
    with pytest.raises(CalibrationError, match=f"^x: expected finite values, got {ends}$"):
        observer.observe(x)
    assert [str(v) for v in observer.range()] == before
    with pytest.raises(ValueError, match="finite"):
        spec.check_values([bad])


@clause("OBS-NOTHING")
@pytest.mark.parametrize("observer", REFUSING, ids=lambda o: type(o).__name__)
def test_an_observer_that_saw_nothing_has_no_range(observer):
    with pytest.raises(CalibrationError, match="^the observer has seen no values, so there is no range$"):
        observer.range()
    with pytest.raises(CalibrationError, match="has seen no values"):
        observer.observe(np.zeros((2, 0), np.float32)).range()


@clause("OBS-EMPTY")
@pytest.mark.parametrize("observer", REFUSING, ids=lambda o: type(o).__name__)
def test_an_empty_tensor_is_no_observation(observer):
    seen = observer.observe(np.float32([[-1.0], [2.0]]))
    assert [str(v) for v in seen.observe(np.zeros((2, 0), np.float32)).range()] == [str(v) for v in seen.range()]
    assert spec.observe_min_max((0.0, 1.0), []) == (0.0, 1.0)


@clause("OBS-CHANNEL")
@given(
    st.lists(draws.seeds(), min_size=1, max_size=3), st.sampled_from([0, 1, 2, -1, -3]),
    st.tuples(*[st.integers(1, 4)] * 3),
)
def test_a_channel_has_the_range_of_its_own_values(generators, axis, shape):
    tensors = [g.normal(size=shape).astype(np.float32) for g in generators]
    low, high = watched(MinMaxObserver(axis=axis), tensors).range()
    assert low.shape == high.shape == (shape[axis],)
    seen = None
    for x in tensors:
        seen = spec.observe_channels(
            seen, [[float(v) for v in np.take(x, c, axis=axis).ravel()] for c in range(shape[axis])]
        )
    assert list(zip(low.tolist(), high.tolist())) == seen


@clause("OBS-CHANNEL")
def test_an_axis_that_is_not_there_is_refused():
    for axis in (2, -3):
        with pytest.raises(ValueError, match=rf"^axis: expected an axis of an array of shape \(2, 2\), got {axis}$"):
            MinMaxObserver(axis=axis).observe(np.zeros((2, 2), np.float32))


@clause("OBS-CHANNEL-COUNT")
@pytest.mark.parametrize("observer", [MinMaxObserver(axis=0), MovingAverageObserver(axis=0)])
def test_another_number_of_channels_is_refused(observer):
    seen = observer.observe(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="expected 3 channels as before, got 2"):
        seen.observe(np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="expected 3 channels, got 2"):
        spec.observe_channels([None] * 3, [[1.0]] * 2)


@clause("OBS-CHANNEL-MERGE")
@given(
    st.integers(1, 4), st.lists(draws.seeds(), min_size=3, max_size=3),
    st.lists(st.integers(0, 2), min_size=3, max_size=3),
)
def test_channels_merge_one_by_one(channels, generators, counts):
    halves = [[g.normal(size=(5, channels)).astype(np.float32) for _ in range(n)] for g, n in zip(generators, counts)]
    a, b, c = (watched(MinMaxObserver(axis=1), tensors) for tensors in halves)

    def ends(observer):
        return None if observer.minimum is None else list(zip(observer.minimum.tolist(), observer.maximum.tolist()))

    assert (
        ends(a.merge(b))
        == ends(b.merge(a))
        == ends(watched(MinMaxObserver(axis=1), halves[0] + halves[1]))
        == spec.merge_channels(ends(a), ends(b))
    )
    assert (
        ends(a.merge(b).merge(c))
        == ends(a.merge(b.merge(c)))
        == spec.merge_channels(spec.merge_channels(ends(a), ends(b)), ends(c))
    )
    assert ends(a.merge(MinMaxObserver(axis=1))) == ends(MinMaxObserver(axis=1).merge(a)) == ends(a)


@clause("OBS-CHANNEL-COUNT")
def test_other_numbers_of_channels_do_not_merge():
    one, two = (MinMaxObserver(axis=0).observe(np.zeros((n, 2), np.float32)) for n in (2, 3))
    with pytest.raises(ValueError, match="expected 2 channels as before, got 3"):
        one.merge(two)
    with pytest.raises(ValueError, match="other: expected 2 channels, got 3"):
        spec.merge_channels([None] * 2, [None] * 3)


@clause("OBS-AVERAGE")
@given(batches(), st.one_of(st.floats(0.001, 1.0), st.just(1.0)))
def test_each_batch_pulls_the_range_as_the_definition_says(tensors, constant):
    seen = None
    for x in tensors:
        seen = spec.observe_average(seen, [float(v) for v in x], constant)
    assume(seen is not None)
    low, high = watched(MovingAverageObserver(constant), tensors).range()
    assert (float(low), float(high)) == seen
    assert low.dtype == high.dtype == np.float32


@clause("OBS-AVERAGE")
def test_an_average_beside_a_tie_of_float32_is_rounded_once():
    for tie in (0.5 + (2 * k + 1) * 2.0**-25 for k in range(100)):
        constant = tie / 3  # three times it misses the tie by less than float64 resolves
        low, high = watched(MovingAverageObserver(constant), [np.float32([0.0]), np.float32([0.0, 3.0])]).range()
        assert (float(low), float(high)) == spec.observe_average((0.0, 0.0), [0.0, 3.0], constant)


@clause("OBS-AVERAGE")
@given(draws.seeds(), st.floats(0.01, 1.0))
def test_averages_per_channel_are_those_of_each_channel_alone(generator, constant):
    tensors = generator.normal(size=(3, 4, 5)).astype(np.float32)
    low, high = watched(MovingAverageObserver(constant, axis=0), tensors).range()
    for c in range(4):
        alone = watched(MovingAverageObserver(constant), tensors[:, c]).range()
        assert (low[c], high[c]) == alone


@clause("OBS-AVERAGE-ORDER")
@given(batches(), st.randoms(use_true_random=False))
def test_an_average_ignores_order_within_a_tensor(tensors, random):
    shuffled = [x[random.sample(range(len(x)), len(x))] for x in tensors]
    assert state(watched(MovingAverageObserver(0.25), tensors)) == state(watched(MovingAverageObserver(0.25), shuffled))


@clause("OBS-AVERAGE-ORDER")
def test_an_average_depends_on_the_order_of_tensors():
    one, two = np.float32([-1, 1]), np.float32([-1, 5])
    ranges = [watched(MovingAverageObserver(0.25), order).range()[1] for order in ([one, two], [two, one])]
    assert ranges == [2.0, 4.0]


@clause("OBS-AVERAGE-CONSTANT")
@pytest.mark.parametrize("constant", [0.0, -0.1, 1.0001, 2.0, float("nan")])
def test_a_constant_that_is_no_share_is_refused(constant):
    with pytest.raises(ValueError, match="constant: expected more than 0 and at most 1"):
        MovingAverageObserver(constant)
    with pytest.raises(ValueError, match="constant"):
        spec.observe_average(None, [1.0], constant)


@clause("OBS-AVERAGE")
@given(batches(lengths=st.integers(1, 17)))
def test_with_constant_one_the_range_is_the_last_batch(tensors):
    last = MinMaxObserver().observe(tensors[-1]).range()
    assert watched(MovingAverageObserver(1), tensors).range() == last


@clause("OBS-HIST-WIDTH", "OBS-HIST-COUNT")
@pytest.mark.parametrize("many", [1, observers.MANY], ids=["by a compiled loop", "by NumPy"])
@given(moderate(), st.sampled_from([2, 4, 8, 64, 2048]))
def test_a_histogram_equals_the_definition(many, tensors, bins):
    e, counts = spec.histogram([float(v) for x in tensors for v in x], bins)
    with mock.patch.object(observers, "MANY", many):
        got = watched(HistogramObserver(bins), tensors)
    assert got.exponent == e
    if e is not None:
        found = {int(i) - bins // 2: int(got.counts[i]) for i in np.nonzero(got.counts)[0]}
        assert found == counts and len(got.counts) == bins


@clause("OBS-HIST-WIDTH")
@pytest.mark.parametrize(
    "value", [0.0, 1e-45, -1e-45, 1.0, -1.0, 0.99999994, -1.0000001, 3.4028235e38, -3.4028235e38, 2.0**127]
)
@pytest.mark.parametrize("bins", [2, 4, 256])
def test_the_bins_are_as_fine_as_a_single_value_allows(value, bins):
    e, counts = spec.histogram([float(np.float32(value))], bins)
    got = HistogramObserver(bins).observe(np.float32([value]))
    assert got.exponent == e
    assert {int(i) - bins // 2: int(got.counts[i]) for i in np.nonzero(got.counts)[0]} == counts


@clause("OBS-HIST-COUNT")
@given(batches(), st.sampled_from([2, 16, 2048]))
def test_no_value_is_lost(tensors, bins):
    seen = watched(HistogramObserver(bins), tensors)
    total = sum(len(x) for x in tensors)
    assert (0 if seen.counts is None else int(seen.counts.sum())) == total


@clause("OBS-HIST-COUNT", "OBS-HIST-WIDTH")
@pytest.mark.parametrize("bins", [2, 4, 8, 64])
def test_counts_are_right_while_the_bins_grow(bins):
    tensors = [
        np.float32(v) for v in ([0.1, -0.05], [0.3, 0.3, -0.25], [1.0, 0.6, -0.9], [7.5, -3.0, 0.0], [100.0, -64.0])
    ]
    for seen in range(1, len(tensors) + 1):
        for order in (tensors[:seen], tensors[:seen][::-1]):
            got = watched(HistogramObserver(bins), order)
            e, counts = spec.histogram([float(v) for x in order for v in x], bins)
            assert (
                got.exponent == e
                and {int(i) - bins // 2: int(got.counts[i]) for i in np.nonzero(got.counts)[0]} == counts
            )


@clause("OBS-HIST-COUNT")
@pytest.mark.parametrize("exponent", [-149, -121, -120, -37, 0, 1, 64, 117, 120])
def test_large_tensors_are_counted_as_small_ones_are(exponent):
    r = np.random.default_rng(0)
    with np.errstate(over="ignore", under="ignore"):
        steps = np.concatenate(
            [r.normal(size=observers.MANY) * 9, r.integers(-32, 32, 501), [2.0**-30, -(2.0**-30), -0.0]]
        )
        values = np.ldexp(np.clip(steps, -32, 31.5), exponent).astype(np.float32)
    values = np.append(
        values[np.isfinite(values)], np.float32([1e-45, -1e-45, -1e-38]) if exponent > -100 else np.float32([])
    )
    together = observers.bin_counts(values, exponent, 64)
    apart = sum(observers.bin_counts(part, exponent, 64) for part in np.array_split(values, 3))
    assert (
        together.dtype == np.int64
        and together.tolist() == apart.tolist()
        and together.sum() == values.size > observers.MANY
    )


@clause("OBS-HIST-MERGE")
@given(batches(), batches(), batches(), st.sampled_from([2, 4, 16, 2048]), st.randoms(use_true_random=False))
def test_a_histogram_depends_on_the_values_alone(one, two, three, bins, random):
    a, b, c = (watched(HistogramObserver(bins), tensors) for tensors in (one, two, three))
    values = np.concatenate(one + two + three)
    whole = HistogramObserver(bins).observe(values[random.sample(range(len(values)), len(values))])
    assert state(a.merge(b).merge(c)) == state(a.merge(b.merge(c))) == state(c.merge(a).merge(b)) == state(whole)
    assert state(a.merge(HistogramObserver(bins))) == state(HistogramObserver(bins).merge(a)) == state(a)


@clause("OBS-HIST-BINS")
@pytest.mark.parametrize("bins", [-2, 0, 1, 3, 100])
def test_a_number_of_bins_that_is_no_power_of_two_is_refused(bins):
    for build in (lambda: HistogramObserver(bins), lambda: spec.histogram([1.0], bins)):
        with pytest.raises(ValueError, match="bins: expected a power of two"):
            build()


@clause("OBS-HIST-BINS")
def test_histograms_of_different_bins_do_not_merge():
    with pytest.raises(ValueError, match="other: expected a histogram of 4 bins, got 8"):
        HistogramObserver(4).merge(HistogramObserver(8))


def expected_ranges(values, bins, steps):
    """Every range whose expected error is the smallest, but for 2^-40 of it."""
    e, counts = spec.histogram(values, bins)
    errors = {ends: spec.expected_error(*ends, counts, steps) for ends in spec.edges(counts)}
    best, width = min(errors.values()), Fraction(2) ** e
    return {
        (max(float(low * width), min(values)), min(float(high * width), max(values)))
        for (low, high), error in errors.items() if error <= best * (1 + Fraction(1, 2**40))
    }  # fmt: skip


@clause("OBS-HIST-SEARCH")
@given(moderate(smallest=1), st.sampled_from([2, 4, 8, 16, 32]), st.sampled_from([1, 3, 15, 255]), st.integers(-9, 9))
def test_a_search_equals_the_definition(tensors, bins, steps, qmin):
    values = [float(v) for x in tensors for v in x]
    observer = watched(HistogramObserver(bins, qmin=qmin, qmax=qmin + steps), tensors)
    low, high = observer.range()
    assert (float(low), float(high)) in expected_ranges(values, bins, steps)
    assert low.dtype == high.dtype == np.float32


@clause("OBS-HIST-SEARCH")
@pytest.mark.parametrize("steps", [1, 3, 255])
def test_every_small_histogram_gets_a_range_of_the_smallest_error(steps):
    for counts in itertools.product((0, 1, 7, 40), repeat=4):
        if any(counts):
            found = observers.least_expected_error(np.array(counts), steps)
            by_bin = {number - 2: count for number, count in enumerate(counts) if count}
            assert found in spec.edges(by_bin)
            assert spec.expected_error(*found, by_bin, steps) == min(
                spec.expected_error(*ends, by_bin, steps) for ends in spec.edges(by_bin)
            )


@clause("OBS-HIST-SEARCH")
@given(draws.seeds(), st.sampled_from([3, 15, 255]))
def test_a_tail_of_one_side_is_cut_and_costs_the_other_nothing(r, steps):
    bulk, tail = r.uniform(-1, 1, 2000), np.array([20.0])
    for values, sign in ((np.concatenate([bulk, tail]), 1), (np.concatenate([bulk, -tail]), -1)):
        x = values.astype(np.float32)
        low, high = HistogramObserver(64, qmax=steps).observe(x).range()
        assert (float(low), float(high)) in expected_ranges(x.tolist(), 64, steps)
        near, far = (low, high) if sign > 0 else (-high, -low)
        assert near <= -0.9 and (far < 20 or steps == 255)


@clause("OBS-HIST-SEARCH")
@given(draws.seeds(), st.integers(1, 500))
def test_more_bins_than_are_searched_are_merged(r, size):
    x = r.standard_t(2, size=size).astype(np.float32)
    ranges = [HistogramObserver(bins).observe(x).range() for bins in (2048, 4096, 2**16)]
    assert ranges[0] == ranges[1] == ranges[2]


@clause("OBS-HIST-SEARCH")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize("steps", [15, 255])
def test_heavy_tails_lose_less_than_with_torchs(steps):
    theirs = pytest.importorskip("torch.ao.quantization")
    r = np.random.default_rng(0)
    for x in (r.standard_t(3, size=65536), r.laplace(size=65536), r.lognormal(size=65536), r.normal(size=65536)):
        x = x.astype(np.float32)
        other = theirs.HistogramObserver(quant_min=0, quant_max=steps)
        other(torch.from_numpy(x))
        ranges = [HistogramObserver(qmax=steps).observe(x).range(), other._non_linear_param_search()]
        ours, torchs, whole = (squared_error(x, *ends, steps) for ends in (*ranges, (x.min(), x.max())))
        assert ours < torchs and ours < whole


def squared_error(x, low, high, steps):
    """What quantizing by a range costs."""
    grid = affine.qparams(np.float32(low), np.float32(high), qmin=0, qmax=steps, symmetric=False)
    codes = affine.quantize(x, grid.scale, grid.zero_point, qmin=0, qmax=steps)
    real = affine.dequantize(codes, grid.scale, grid.zero_point)
    return float(np.square(x.astype(np.float64) - real).sum())


@clause("OBS-PERCENTILE")
@given(
    moderate(smallest=1), st.sampled_from([2, 8, 64, 2048]),
    st.one_of(st.floats(1, 100), st.sampled_from([50.0, 90.0, 99.0, 100.0])),
)
def test_a_percentile_equals_the_definition(tensors, bins, percent):
    values = [float(v) for x in tensors for v in x]
    observer = watched(PercentileObserver(percent, HistogramObserver(bins)), tensors)
    low, high = observer.range()
    assert (float(low), float(high)) == spec.percentile_range(values, percent, bins)
    assert low.dtype == high.dtype == np.float32


@clause("OBS-PERCENTILE-NARROWEST")
@given(
    moderate(smallest=1), st.sampled_from([2, 8, 64, 2048]),
    st.one_of(st.floats(1, 99.9), st.sampled_from([25.0, 50.0, 90.0])),
)
def test_no_narrower_range_on_the_grid_would_do(tensors, bins, percent):
    values = [float(v) for x in tensors for v in x]
    observer = watched(PercentileObserver(percent, HistogramObserver(bins)), tensors)
    low, high = (Fraction(float(end)) for end in observer.range())
    width, k = Fraction(2) ** int(observer.histogram.exponent), int(len(values) * (100 - Fraction(percent)) / 200)
    assert sum(v < low for v in values) <= k and sum(v > high for v in values) <= k
    places = [Fraction(v) // width for v in values]
    first, last = low // width, high // width
    if high % width == 0 and sum(i >= last for i in places) <= k:
        last -= 1  # the end is the right edge of a bin, not the largest value in the next one
    assert sum(i <= first for i in places) > k and sum(i >= last for i in places) > k


@clause("OBS-PERCENTILE-ALL")
@given(batches(lengths=st.integers(1, 17)))
def test_a_hundred_percent_is_min_max(tensors):
    assert watched(PercentileObserver(100), tensors).range() == watched(MinMaxObserver(), tensors).range()


@clause("OBS-PERCENTILE-SHARE")
@pytest.mark.parametrize("percent", [0, -1, 100.1, float("nan")])
def test_a_percentage_that_is_no_share_is_refused(percent):
    for build in (lambda: PercentileObserver(percent), lambda: spec.percentile_range([1.0], percent, 4)):
        with pytest.raises(ValueError, match="percent: expected more than 0 and at most 100"):
            build()


@clause("OBS-MSE")
@given(
    moderate(smallest=1), st.sampled_from([16, 64]), st.integers(1, 12),
    st.sampled_from([(0, 255), (0, 15), (-8, 7)]), st.booleans(),
)
def test_no_candidate_has_a_smaller_error_than_the_chosen_range(tensors, bins, candidates, ends, outlier):
    tensors = [*tensors, np.float32([60.0])] if outlier else tensors
    values = [float(v) for x in tensors for v in x]
    low, high = watched(MSEObserver(candidates, *ends, HistogramObserver(bins)), tensors).range()
    e, counts = spec.histogram(values, bins)
    every = spec.mse_candidates(values, candidates)
    errors = [spec.range_error(*pair, counts, e, *ends) for pair in every]
    chosen = every.index((float(low), float(high)))
    assert errors[chosen] <= min(errors) * (1 + Fraction(1, 2**40))
    # Of equal ones the widest, which comes first.
    assert all(error != errors[chosen] for pair, error in zip(every[:chosen], errors) if pair != every[chosen])


@clause("OBS-MSE")
@pytest.mark.parametrize("size", [1.25, 1.5, 2.0, 3.0, 6.0, 12.0])
@pytest.mark.parametrize("count", [1, 4, 16, 64])
def test_outliers_of_any_size_and_number_are_weighed_as_the_definition_says(size, count):
    values = [v / 8 for v in range(-8, 9)] * 16 + [size] * count
    low, high = MSEObserver(20, 0, 15, HistogramObserver(256)).observe(np.float32(values)).range()
    e, counts = spec.histogram(values, 256)
    every = spec.mse_candidates(values, 20)
    errors = [spec.range_error(*pair, counts, e, 0, 15) for pair in every]
    assert errors[every.index((float(low), float(high)))] <= min(errors) * (1 + Fraction(1, 2**40))


@clause("OBS-MSE")
@pytest.mark.parametrize("candidates", [2, 5, 64])
def test_of_candidates_with_equal_errors_the_widest_is_taken(candidates):
    # So small that every candidate has the smallest scale, and with it the same error.
    values = np.float32([-(2.0**-70), 2.0**-71, 2.0**-70])
    assert MSEObserver(candidates).observe(values).range() == (values.min(), values.max())


@clause("OBS-MSE")
@given(
    draws.seeds(), st.sampled_from([8, 16, 64]), st.integers(2, 12),
    st.sampled_from([(0, 3), (-2, 1), (0, 15), (-8, 7)]),
)
def test_the_smallest_error_is_found_where_much_can_be_cut_off(generator, bins, candidates, ends):
    values = np.append(generator.normal(size=100), 10 * generator.normal()).astype(np.float32)
    observer = MSEObserver(candidates, *ends, HistogramObserver(bins)).observe(values)
    e, counts = spec.histogram(values.tolist(), bins)
    every = spec.mse_candidates(values.tolist(), candidates)
    errors = [spec.range_error(*pair, counts, e, *ends) for pair in every]
    assert errors[every.index(tuple(float(end) for end in observer.range()))] <= min(errors) * (1 + Fraction(1, 2**40))
    used = np.array(sorted(counts))
    centres, numbers = np.ldexp(used + 0.5, e), np.array([counts[i] for i in used])
    lows, highs = np.float32(every).T
    for found, error in zip(observer.errors(lows, highs, centres, numbers).tolist(), errors, strict=True):
        assert abs(Fraction(found) - error) <= error / 2**40


@clause("OBS-MSE")
def test_an_outlier_is_cut_off_where_that_pays():
    values = np.float32([v / 8 for v in range(-8, 9)] * 200 + [10.0])
    low, high = MSEObserver(10, 0, 15).observe(values).range()
    assert high < 10 and low > -1.01
    assert MSEObserver(1, 0, 15).observe(values).range() == MinMaxObserver().observe(values).range()
    with pytest.raises(ValueError, match="candidates: expected 1 to 65536"):
        MSEObserver(0)
