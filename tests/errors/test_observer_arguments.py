"""What observers cannot be made of."""

import pytest

import quantspec as qs
from told import exactly


@pytest.mark.parametrize("make, message", [
    (lambda: qs.MovingAverageObserver("x"), "constant: expected a number, got 'x'"),
    (lambda: qs.HistogramObserver(2.5), "bins: expected a whole number, got 2.5"),
    (lambda: qs.HistogramObserver(qmin=None), "qmin: expected a whole number, got None"),
    (lambda: qs.HistogramObserver(qmax="x"), "qmax: expected a whole number, got 'x'"),
    (lambda: qs.HistogramObserver(qmin=3, qmax=3), "qmin, qmax: expected qmin < qmax, of at most 16 bits, got 3 and 3"),
    (lambda: qs.HistogramObserver(qmin=4, qmax=3), "qmin, qmax: expected qmin < qmax, of at most 16 bits, got 4 and 3"),
    (lambda: qs.HistogramObserver(2**25), "bins: expected a power of two from 2 to 2^24, got 33554432"),
    (lambda: qs.MSEObserver(2**17), "candidates: expected 1 to 65536, got 131072"),
    (lambda: qs.MSEObserver(qmax=2**16), "qmin, qmax: expected qmin < qmax, of at most 16 bits, got 0 and 65536"),
    (
        lambda: qs.MSEObserver(qmin=-(2**15) - 1),
        "qmin, qmax: expected qmin < qmax, of at most 16 bits, got -32769 and 255",
    ),
    (lambda: qs.MovingAverageObserver(axis="x"), "axis: expected a whole number, got 'x'"),
    (lambda: qs.MinMaxObserver("x"), "axis: expected a whole number, got 'x'"),
    (lambda: qs.PercentileObserver("x"), "percent: expected a number, got 'x'"),
    (lambda: qs.MSEObserver("x"), "candidates: expected a whole number, got 'x'"),
])  # fmt: skip
def test_what_an_observer_cannot_be_made_of_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=exactly(message)):
        make()


def test_the_largest_of_what_an_observer_may_be_made_of():
    assert qs.HistogramObserver(2**24).bins == 2**24 and qs.MSEObserver(2**16).candidates == 2**16
    for codes in ({"qmin": -(2**15), "qmax": 2**15 - 1}, {"qmin": 0, "qmax": 2**16 - 1}):
        assert qs.MSEObserver(**codes).qmin == qs.HistogramObserver(**codes).qmin == codes["qmin"]
