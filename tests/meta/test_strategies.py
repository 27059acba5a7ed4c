"""The strategies reach what they promise, often enough, and turn nothing away.

Each place is a predicate with the smallest share of the drawn examples that must fall into it. The shares are about
half of what is drawn now, so that a strategy which stops reaching a place fails here, and chance does not.
"""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.statistics import collector

import networks
import strategies as draws

# Enough to tell a share of 1 % from none; where every share is 2 % or more, fewer do.
DRAWN, FEW = 2000, 1000
BULK = settings(
    max_examples=DRAWN,
    phases=[Phase.generate],
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SUBNORMAL = float(np.finfo(np.float32).tiny)


def sample(strategy, wanted: int = DRAWN) -> tuple[list, Counter]:
    """Drawn examples, and how many test cases ended in which way."""
    seen, ends = [], Counter()

    @settings(BULK, max_examples=wanted)
    @given(strategy)
    def collect(value):
        seen.append(value)

    def count(statistics):
        for phase in statistics.values():
            if isinstance(phase, dict):
                ends.update(case["status"] for case in phase.get("test-cases", ()))

    with collector.with_value(count):
        collect()
    return seen, ends


def shares(seen: list, places: dict) -> dict[str, float]:
    """The share of the examples that falls into each place."""
    return {name: sum(bool(place(value)) for value in seen) / len(seen) for name, place in places.items()}


def assert_reached(strategy, places: dict[str, tuple[float, object]]) -> list:
    """The drawn examples. Fails for places that less than their share of them fall into."""
    seen, _ = sample(strategy, FEW if min(share for share, _ in places.values()) >= 0.02 else DRAWN)
    reached = shares(seen, {name: place for name, (_, place) in places.items()})
    missed = {name: share for name, share in reached.items() if share < places[name][0]}
    assert not missed, f"reached too seldom: {missed}, of all: {reached}"
    return seen


def steps(x, scale) -> Fraction:
    """The exact quotient."""
    return Fraction(float(x)) / Fraction(float(scale))


def is_tie(x, scale) -> bool:
    """Whether a value lies half-way between two codes."""
    return bool(np.isfinite(x)) and steps(x, scale) % 1 == Fraction(1, 2)


def beside_a_tie(x, scale) -> bool:
    """Whether a tie lies between a value's neighbours, and the value is none."""
    if not np.isfinite(x) or is_tie(x, scale):
        return False
    if abs(x) == draws.FLOAT32_MAX:
        return False
    neighbours = [np.nextafter(x, np.float32(side)) for side in (-np.inf, np.inf)]
    near = (round(steps(x, scale) * 2)) / Fraction(2) if round(steps(x, scale) * 2) % 2 else None
    low, high = sorted(steps(neighbour, scale) for neighbour in neighbours)
    return near is not None and low <= near <= high


@pytest.mark.parametrize("scale", [np.float32(v) for v in (0.5, 0.1, 2 / 255)])
def test_values_land_on_ties_beside_them_and_on_every_kind_of_extreme(scale):
    power, ends = float(scale) == 0.5, {0.0, float(np.float32(255 * float(scale)))}
    assert_reached(draws.values(float(scale), 0, 255), {
        # With a scale that is no power of two hardly any tie is a float32, and the float32 nearest to one counts.
        "tie": (0.05 if power else 0.0, lambda x: is_tie(x, scale)),
        "one ulp beside a tie": (0.04 if power else 0.08, lambda x: beside_a_tie(x, scale)),
        "code": (0.03 if power else 0.01, lambda x: np.isfinite(x) and steps(x, scale).denominator == 1),
        "range end": (0.02, lambda x: np.isfinite(x) and abs(float(x)) in ends),
        "subnormal": (0.005, lambda x: 0 < abs(x) < SUBNORMAL),
        "beyond 2^31 steps": (0.01, lambda x: np.isfinite(x) and abs(steps(x, scale)) >= 2**31),
        "plus infinity": (0.004, lambda x: x == np.inf),
        "minus infinity": (0.004, lambda x: x == -np.inf),
        "minus zero": (0.004, lambda x: x == 0 and np.signbit(x)),
    })


def test_finite_values_are_finite():
    seen, _ = sample(draws.values(0.1, finite=True))
    assert all(np.isfinite(seen)) and any(abs(x) == draws.FLOAT32_MAX for x in seen)


def test_nan_is_drawn_in_every_place_of_arrays_of_every_length():
    # By the test of AFF-NAN, which puts it there: any place of any length.
    pairs = st.sampled_from(draws.LENGTHS[1:]).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1)))
    assert_reached(pairs, {f"last of {n}": (0.003, lambda p, n=n: p == (n, n - 1)) for n in draws.LENGTHS[1:]})


def test_scales_are_powers_of_two_near_degenerate_and_ordinary():
    assert_reached(draws.scales(), {
        "power of two": (0.1, lambda s: np.frexp(s)[0] == 0.5),
        "smallest": (0.01, lambda s: s == np.float32(2.0**-126)),
        "largest": (0.01, lambda s: s == np.float32(2.0**119)),
        "next to nothing": (0.05, lambda s: s < 2.0**-60),
        "huge": (0.05, lambda s: s > 2.0**60),
        "ordinary": (0.1, lambda s: 2.0**-10 <= s <= 2),
        "all digits used": (0.05, lambda s: int(np.float32(s).view(np.int32)) & 1),
    })


def test_scales_of_channels_differ_wildly():
    assert_reached(draws.channel_scales(4), {
        "by more than 2^100": (0.2, lambda s: s.max() / np.float64(s.min()) > 2.0**100),
        "one of them alone": (0.2, lambda s: sorted(Counter(s.tolist()).values()) == [1, 3]),
        "all alike": (0.02, lambda s: len(set(s.tolist())) == 1),
    })


def test_shapes_have_empty_single_and_vector_long_axes():
    around = (15, 16, 17, 63, 64, 65)
    assert_reached(draws.shapes(3), {
        "empty": (0.2, lambda s: 0 in s),
        "single": (0.3, lambda s: 1 in s),
        "not empty": (0.2, lambda s: 0 not in s),
        **{f"{n} long": (0.01, lambda s, n=n: n in s) for n in around},
    })


def test_arrays_have_lengths_around_vector_widths():
    grid = draws.QParams(0.1, 3, 0, 255)
    # Of ten lengths one in ten each, which Hypothesis draws between 4 and 14 %, by the constants of the modules loaded.
    assert_reached(draws.arrays_on(grid), {f"{n} long": (0.02, lambda x, n=n: len(x) == n) for n in draws.LENGTHS})


def test_layouts_are_of_every_kind_and_hold_the_same_values():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    seen, _ = sample(draws.layouts(x), 300)
    assert all(np.array_equal(y, x) for y in seen)
    reached = shares(seen, {
        "Fortran order": lambda y: y.flags.f_contiguous,
        "strided": lambda y: y.strides[-1] == 8,
        "backwards": lambda y: y.strides[0] < 0,
        "off its alignment": lambda y: not y.flags.aligned,
        "plain": lambda y: y.flags.c_contiguous and y.flags.aligned,
    })
    assert min(reached.values()) > 0.08, reached


def test_ranges_are_of_every_kind():
    seen = assert_reached(draws.ranges(), {
        "one-sided above": (0.05, lambda r: r[0] > 0),
        "one-sided below": (0.05, lambda r: r[1] < 0),
        "symmetric": (0.08, lambda r: r[0] == -r[1] and r[1] > 0),
        "a point": (0.08, lambda r: r[0] == r[1]),
        "nothing but zero": (0.01, lambda r: r[0] == r[1] == 0),
        "tiny": (0.08, lambda r: 0 < max(abs(r[0]), abs(r[1])) < 2.0**-49),
        "huge": (0.01, lambda r: max(abs(float(r[0])), abs(float(r[1]))) > 2.0**100),
    })
    assert all(low <= high for low, high in seen)


def test_grids_have_every_width_and_zero_points_at_the_ends():
    seen, _ = sample(draws.grids())
    assert {(g.qmin, g.qmax) for g in seen} == {draws.code_ends(bits, signed) for bits, signed in draws.WIDTHS}
    reached = shares(seen, {
        "low": lambda grid: grid.zero_point == grid.qmin,
        "high": lambda grid: grid.zero_point == grid.qmax,
        "odd": lambda grid: grid.zero_point % 2 == 1,
    })
    assert reached["low"] > 0.02 and reached["high"] > 0.01 and reached["odd"] > 0.2, reached


def test_networks_have_every_kind_of_part():
    seen, _ = sample(networks.perceptrons(), 300)
    parts = [[type(m).__name__ for m in model] for model, *_ in seen]
    reached = shares(parts, {
        "norm": lambda names: "BatchNorm1d" in names,
        "relu": lambda names: "ReLU" in names,
        "three layers": lambda names: names.count("Linear") == 3,
    })
    reached["no bias"] = sum(any(getattr(m, "bias", 0) is None for m in model) for model, *_ in seen) / len(seen)
    assert min(reached.values()) > 0.1, reached


GRID = draws.QParams(0.1, 3, 0, 255)
EVERY = {
    "widths": draws.widths(),
    "scales": draws.scales(),
    "channel_scales": draws.channel_scales(4),
    "values": draws.values(0.1),
    "grids": draws.grids(),
    "arrays_on": draws.arrays_on(GRID),
    "ranges": draws.ranges(),
    "coverable": draws.coverable(),
    "seeds": draws.seeds(),
    "shapes": draws.shapes(3),
    "layouts": draws.layouts(np.zeros((2, 3), np.float32)),
    "perceptrons": networks.perceptrons(),
}


@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_is_drawn_is_turned_away(name):
    seen, ends = sample(EVERY[name], 300)
    # "overrun" is Hypothesis stopping an example that grows too large, which it makes up for; "invalid" is a filter or
    # an assumption.
    # Hypothesis's own floats turn down one in some hundreds.
    assert ends["valid"] == len(seen) >= 5 and ends["invalid"] <= len(seen) / 100, ends


def test_every_strategy_is_on_that_list():
    public = {name for name, f in vars(draws).items() if callable(f) and f.__module__ == "strategies"}
    no_strategies = {"code_ends", "every_code", "every_zero_point", "shifted", "exponents"}
    assert public - no_strategies == set(EVERY) - {"perceptrons"}
