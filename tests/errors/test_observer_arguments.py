"""What observers cannot be made of."""

import re

import pytest

import quantspec as qs


@pytest.mark.parametrize("make, message", [
    (lambda: qs.MovingAverageObserver("x"), "constant: expected a number, got 'x'"),
    (lambda: qs.HistogramObserver(2.5), "bins: expected a whole number, got 2.5"),
    (lambda: qs.HistogramObserver(qmin=None), "qmin: expected a whole number, got None"),
    (lambda: qs.HistogramObserver(qmax="x"), "qmax: expected a whole number, got 'x'"),
    (lambda: qs.HistogramObserver(qmin=3, qmax=3), "qmin: expected less than qmax, got 3 and 3"),
    (lambda: qs.HistogramObserver(qmin=4, qmax=3), "qmin: expected less than qmax, got 4 and 3"),
    (lambda: qs.PercentileObserver("x"), "percent: expected a number, got 'x'"),
    (lambda: qs.MSEObserver("x"), "candidates: expected a whole number, got 'x'"),
])  # fmt: skip
def test_what_an_observer_cannot_be_made_of_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        make()
