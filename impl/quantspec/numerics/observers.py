"""Observers: what passes one place of a network during calibration, as a range (chapter 2).

An observer is a frozen value. ``observe`` returns the next one; ``range`` gives what it has seen as (minimum, maximum).
"""

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from quantspec.errors import CalibrationError, real_number, shown, whole_number
from quantspec.kernels.memory import place

from .affine import Float32, Float64, float32_array, nearest_float32, nearest_float32s, qparams

if TYPE_CHECKING:
    from quantspec.kernels.minmax import Held

Range = tuple[Float32, Float32]
SMALLEST_EXPONENT = -149
MOST_SEARCHED = 2048  # bins between whose edges a range is searched
MANY = 2**13  # values from which on a compiled loop counts them
PAIR = ctypes.c_float * 2
MOST_BINS = 2**24  # 128 MiB of counts
MOST_CANDIDATES = 2**16
NOTHING = PAIR(math.inf, -math.inf)  # the ends of no values


def check_axis(axis: object) -> None:
    """TypeError for what is neither None nor a whole number."""
    if axis is not None:
        whole_number(axis, "axis")


def check_codes(qmin: object, qmax: object) -> None:
    """TypeError and ValueError for what are no ends of a range of codes."""
    low, high = whole_number(qmin, "qmin"), whole_number(qmax, "qmax")
    if not -(2**15) <= low < high < 2**16:
        raise ValueError(f"qmin, qmax: expected qmin < qmax, of at most 16 bits, got {shown(low)} and {shown(high)}")


@dataclass(frozen=True, eq=False)
class MinMaxObserver:
    """The smallest and the largest value seen (OBS-MINMAX).

    Observers are immutable: ``observe`` returns a new one.

    Attributes:
        axis: None for one range, or the axis of the channels that have one each (OBS-CHANNEL).
        minimum: the smallest values, float32 of shape () or (channels,), or None before any data.
        maximum: the largest values, likewise.
    """

    axis: int | None = None
    minimum: Float32 | None = None
    maximum: Float32 | None = None

    def __post_init__(self) -> None:
        check_axis(self.axis)

    def observe(self, x: ArrayLike) -> "MinMaxObserver":
        """The observer that has also seen ``x`` (float32, any shape).

        Raises:
            CalibrationError: for NaN and infinities (OBS-FINITE).
            ValueError: for another number of channels than before (OBS-CHANNEL-COUNT).
        """
        x = float32_array(x)
        if self.axis is None and x.size and x.flags.c_contiguous:
            return self.observe_at(place(x), x.size)
        batch = batch_range(x, self.axis)
        return self if batch is None else self._merged(*batch)

    def observe_at(self, address: int, count: int) -> "MinMaxObserver":
        """What ``observe`` gives for the ``count`` float32 values at an address, of which there must be one.

        For observers per tensor.
        """
        ends = wider()(address, count, self._known)
        if ends is None:
            return self
        low, high = finite_ends(*ends)
        return replace(self, minimum=low, maximum=high)

    def merge(self, other: "MinMaxObserver") -> "MinMaxObserver":
        """The observer that has seen the values of both (OBS-MERGE).

        Raises:
            ValueError: for another axis or number of channels.
        """
        if self.axis != other.axis:
            raise ValueError(f"other: expected an observer along axis {self.axis}, got axis {other.axis}")
        return self if other.minimum is None else self._merged(*other.range())

    def range(self) -> Range:
        """(minimum, maximum) as float32.

        Raises:
            CalibrationError: before any data was seen (OBS-NOTHING).
        """
        return seen(self.minimum, self.maximum)

    @functools.cached_property
    def _known(self) -> "Held":
        """What was seen."""
        return held(NOTHING if self.minimum is None else PAIR(*(end.item() for end in self.range())))

    def _merged(self, low: Float32, high: Float32) -> "MinMaxObserver":
        if self.minimum is None:
            return replace(self, minimum=low, maximum=high)
        check_channels(self.minimum, low)
        lowest, highest = self.range()
        return replace(self, minimum=np.minimum(lowest, low), maximum=np.maximum(highest, high))


@dataclass(frozen=True, eq=False)
class MovingAverageObserver:
    """The moving average of the batches' ranges (OBS-AVERAGE).

    Attributes:
        constant: the share of the newest batch, above 0 and at most 1.
        minimum: the averaged minimum, or None before any data.
        maximum: the averaged maximum, likewise.
    """

    constant: float = 0.01
    axis: int | None = None
    minimum: Float32 | None = None
    maximum: Float32 | None = None

    def __post_init__(self) -> None:
        if not 0 < real_number(self.constant, "constant") <= 1:
            raise ValueError(f"constant: expected more than 0 and at most 1, got {self.constant}")
        check_axis(self.axis)

    def observe(self, x: ArrayLike) -> "MovingAverageObserver":
        """The observer after one more batch ``x`` (float32, any shape). Raises as ``MinMaxObserver.observe`` does."""
        batch = batch_range(x, self.axis)
        if batch is None:
            return self
        if self.minimum is None:
            return replace(self, minimum=batch[0], maximum=batch[1])
        check_channels(self.minimum, batch[0])
        low, high = (moved(old, new, self.constant) for old, new in zip(self.range(), batch))
        return replace(self, minimum=low, maximum=high)

    def range(self) -> Range:
        """(minimum, maximum) as float32. Raises CalibrationError before any data was seen."""
        return seen(self.minimum, self.maximum)


@dataclass(frozen=True, eq=False)
class HistogramObserver:
    """A histogram of all values, with their exact minimum and maximum (OBS-HIST-*), and of the ranges from edge to edge
    of its bins the one with the smallest expected error (OBS-HIST-SEARCH).

    PercentileObserver and MSEObserver choose theirs from the histogram by other rules.

    Attributes:
        bins: number of bins, a power of two (OBS-HIST-BINS).
        counts: number of values in each bin, int64 of shape (bins,); the first bin is bin -bins / 2.
        exponent: each bin is 2^exponent wide.
        qmin, qmax: the codes that the range is for.
    """

    bins: int = 2048
    exponent: int | None = None
    counts: np.ndarray | None = None
    minimum: Float32 | None = None
    maximum: Float32 | None = None
    qmin: int = 0
    qmax: int = 255

    def __post_init__(self) -> None:
        bins = whole_number(self.bins, "bins")
        if not 2 <= bins <= MOST_BINS or bins.bit_count() != 1:
            raise ValueError(f"bins: expected a power of two from 2 to 2^24, got {shown(bins)}")
        check_codes(self.qmin, self.qmax)

    def observe(self, x: ArrayLike) -> "HistogramObserver":
        """The observer that has also seen ``x`` (float32, any shape). Raises CalibrationError for NaN and
        infinities.
        """
        batch = batch_range(x, None)
        if batch is None:
            return self
        half = self.bins // 2
        exponent = max(SMALLEST_EXPONENT, *(bin_exponent(float(end), half) for end in batch))
        counts = bin_counts(float32_array(x), exponent, self.bins)
        return self.merge(replace(self, exponent=exponent, counts=counts, minimum=batch[0], maximum=batch[1]))

    def filled(self) -> tuple[np.ndarray, int]:
        """The counts and the exponent of a histogram that has seen something."""
        assert self.counts is not None
        assert self.exponent is not None
        return self.counts, self.exponent

    def merge(self, other: "HistogramObserver") -> "HistogramObserver":
        """The observer that has seen the values of both (OBS-HIST-MERGE). Raises ValueError for another number of
        bins.
        """
        if self.bins != other.bins:
            raise ValueError(f"other: expected a histogram of {self.bins} bins, got {other.bins}")
        if self.counts is None or other.counts is None:
            return self if other.counts is None else other
        (ours, our_exponent), (theirs, their_exponent) = self.filled(), other.filled()
        exponent = max(our_exponent, their_exponent)
        counts = coarser(ours, exponent - our_exponent) + coarser(theirs, exponent - their_exponent)
        (a_low, a_high), (b_low, b_high) = self.ends(), other.ends()
        low, high = np.minimum(a_low, b_low), np.maximum(a_high, b_high)
        return replace(self, exponent=exponent, counts=counts, minimum=low, maximum=high)

    def ends(self) -> Range:
        """The smallest and the largest value, as float32. Raises CalibrationError before any data was seen."""
        return seen(self.minimum, self.maximum)

    def within(self, low: int, high: int, exponent: int) -> Range:
        """The range between two edges of bins of a width, by their numbers, cut to what was seen."""
        minimum, maximum = self.ends()
        with np.errstate(over="ignore"):  # the right edge of the last bin may lie beyond float32
            left, right = (np.float32(np.ldexp(float(edge), exponent)) for edge in (low, high))
        return np.maximum(left, minimum), np.minimum(right, maximum)

    def range(self) -> Range:
        """(minimum, maximum) as float32. Raises CalibrationError before any data was seen."""
        self.ends()
        counts, exponent = self.filled()
        doublings = max(0, (self.bins // MOST_SEARCHED).bit_length() - 1)
        counts, exponent = coarser(counts, doublings), exponent + doublings
        low, high = least_expected_error(counts, self.qmax - self.qmin)
        return self.within(low, high, exponent)


@dataclass(frozen=True, eq=False)
class PercentileObserver:
    """The range without outliers (OBS-PERCENTILE): ``percent`` % of the values stay inside; the rest is cut off evenly
    at both ends.
    """

    percent: float = 99.99
    histogram: HistogramObserver = HistogramObserver()

    def __post_init__(self) -> None:
        if not 0 < real_number(self.percent, "percent") <= 100:
            raise ValueError(f"percent: expected more than 0 and at most 100, got {self.percent}")

    def observe(self, x: ArrayLike) -> "PercentileObserver":
        """The observer that has also seen ``x``. Raises as ``HistogramObserver.observe`` does."""
        return replace(self, histogram=self.histogram.observe(x))

    def range(self) -> Range:
        """(minimum, maximum) as float32. Raises CalibrationError before any data was seen."""
        self.histogram.ends()
        (counts, exponent), half = self.histogram.filled(), self.histogram.bins // 2
        allowed = int(counts.sum()) * (100 - Fraction(self.percent)) // 200
        low = int(np.argmax(np.cumsum(counts) > allowed)) - half
        high = half - int(np.argmax(np.cumsum(counts[::-1]) > allowed))
        return self.histogram.within(low, high, exponent)


@dataclass(frozen=True, eq=False)
class MSEObserver:
    """The range with the smallest mean squared quantization error on the histogram, among ``candidates`` ranges that
    shrink step by step from the full one (OBS-MSE).
    """

    candidates: int = 64
    qmin: int = 0
    qmax: int = 255
    histogram: HistogramObserver = HistogramObserver()

    def __post_init__(self) -> None:
        if not 1 <= whole_number(self.candidates, "candidates") <= MOST_CANDIDATES:
            raise ValueError(f"candidates: expected 1 to {MOST_CANDIDATES}, got {shown(self.candidates)}")
        check_codes(self.qmin, self.qmax)

    def observe(self, x: ArrayLike) -> "MSEObserver":
        """The observer that has also seen ``x``. Raises as ``HistogramObserver.observe`` does."""
        return replace(self, histogram=self.histogram.observe(x))

    def range(self) -> Range:
        """(minimum, maximum) as float32.

        Raises:
            CalibrationError: before any data was seen.
            ValueError: for a range that has no qparams.
        """
        ends = self.histogram.ends()
        counts, exponent = self.histogram.filled()
        used = np.nonzero(counts)[0]
        centres = np.ldexp(used - self.histogram.bins / 2 + 0.5, exponent)
        # Widest first, and argmin takes the first of equal ones.
        shares = np.arange(self.candidates, 0, -1)
        lows, highs = (shrunken(end, shares, self.candidates) for end in ends)
        best = int(np.argmin(self.errors(lows, highs, centres, counts[used])))
        return np.asarray(lows[best]), np.asarray(highs[best])

    def errors(self, lows: Float32, highs: Float32, centres: Float64, counts: np.ndarray) -> Float64:
        """For each range the sum over the bins of count * (centre - its code's real value)^2, in float64."""
        grid = qparams(lows, highs, qmin=self.qmin, qmax=self.qmax, symmetric=False, axis=0)
        scale, zero_point = grid.scale[:, None], grid.zero_point[:, None]
        real: Float64 = np.divide(centres, scale)
        np.rint(real, out=real)
        np.clip(real, self.qmin - zero_point, self.qmax - zero_point, out=real)
        real *= scale
        np.subtract(centres, real, out=real)
        np.multiply(real, real, out=real)
        real *= counts
        errors: Float64 = real.sum(axis=1)
        return errors


def seen(minimum: Float32 | None, maximum: Float32 | None) -> Range:
    """Both ends of what was seen; CalibrationError where there is nothing (OBS-NOTHING)."""
    if minimum is None:
        raise CalibrationError("the observer has seen no values, so there is no range")
    assert maximum is not None  # they come together
    return minimum, maximum


def shrunken(end: Float32, shares: np.ndarray, all_of_it: int) -> Float32:
    """end * shares / all_of_it, each rounded once to float32."""
    exact = Fraction(float(end))
    return nearest_float32s(end * shares / all_of_it, lambda i: exact * int(shares[i]) / all_of_it)


def bin_exponent(end: float, half: int) -> int:
    """The smallest e with floor(end / 2^e) from -half to half - 1 (OBS-HIST-WIDTH)."""
    if end == 0:
        return SMALLEST_EXPONENT
    fraction, exponent = math.frexp(end)
    # -half itself is a bin, half is not.
    exact = fraction == -0.5
    return exponent - exact - (half.bit_length() - 1)


def bin_counts(x: np.ndarray, exponent: int, bins: int) -> np.ndarray:
    """int64 (bins,): how many values lie in each bin of width 2^exponent, half of them below zero (OBS-HIST-BINS)."""
    if x.size >= MANY:
        from quantspec.kernels import histogram

        if exponent in histogram.EXPONENTS:
            return histogram.counts(x, exponent, bins)
    # Dividing by a power of two is exact in float64, so that the floor is the bin's own.
    index = np.floor(np.ldexp(x.ravel(), -exponent, dtype=np.float64)).astype(np.int64)
    return np.bincount(index + bins // 2, minlength=bins)


def least_expected_error(counts: np.ndarray, steps: int) -> tuple[int, int]:
    """The edges of bins, by their numbers, of the range of so many steps with the smallest expected error
    (OBS-HIST-SEARCH).
    """
    half, used = len(counts) // 2, np.nonzero(counts)[0]
    lows = np.arange(min(int(used[0]) - half, 0), 1)
    # Sums over the bins before each edge, all whole: of counts, of counts times twice the centre, and its square.
    twice = 2 * np.arange(-half, half) + 1
    sums = [np.concatenate([[0], np.cumsum(counts * twice**power)]) for power in range(3)]

    def distances(edges: Any, n: Any, first: Any, second: Any) -> Any:
        """The sum of squared distances of values from edges, in halves of a bin."""
        return second - 4 * edges * first + 4 * edges**2 * n

    before = distances(lows, *(total[lows + half] for total in sums))

    def errors(highs: Any) -> Any:
        """The expected error for each lower edge with an upper one."""
        behind = distances(highs, *(total[-1] - total[highs + half] for total in sums))
        return before + behind + sums[0][-1] * ((highs - lows) / steps) ** 2 / 3

    # For each lower edge the error falls and then rises with the upper one, as a sum of convex functions does, and
    # rises behind the last value. The range from 0 to 0 is never the best: with 1 step or more, a bin for the half of
    # the values that are above, or below, takes more from their distances than it adds to the width.
    least, most = np.zeros_like(lows), np.full_like(lows, half)
    while (least < most).any():
        middle = (least + most) // 2
        falls = errors(np.minimum(middle + 1, half)) < errors(middle)
        least, most = np.where(falls, middle + 1, least), np.where(falls, most, middle)
    best = int(np.argmin(errors(least)))
    return int(lows[best]), int(least[best])


def coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The counts in bins twice as wide, that many times over, still centred on zero."""
    bins = len(counts)
    if bins == 2:  # one bin below zero and one from zero on, whatever their width
        return counts
    for _ in range(min(doublings, bins.bit_length())):
        counts = np.pad(counts[::2] + counts[1::2], bins // 4)
    return counts


def batch_range(x: ArrayLike, axis: int | None) -> Range | None:
    """The smallest and largest value of a tensor (along ``axis``: of each channel), None when it is empty (OBS-EMPTY).

    Raises CalibrationError for NaN and infinities: both show up in the ends, so that nothing else reads the data.
    """
    x = float32_array(x)
    if x.size == 0:
        return None
    if axis is None and x.flags.c_contiguous:
        ends = wider()(place(x), x.size, held(NOTHING))
        assert ends is not None  # any value is wider than nothing
        return finite_ends(*ends)
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of an array of shape {x.shape}, got {axis}")
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    low, high = np.asarray(np.minimum.reduce(x, axis=others)), np.asarray(np.maximum.reduce(x, axis=others))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise not_finite(low.min(), high.max())
    return low, high


def finite_ends(low: float, high: float) -> Range:
    """Both as float32; CalibrationError unless they are finite (OBS-FINITE)."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise not_finite(low, high)
    return np.array(low, np.float32), np.array(high, np.float32)


def not_finite(low: float, high: float) -> CalibrationError:
    return CalibrationError(f"x: expected finite values, got a minimum of {low} and a maximum of {high}")


def held(ends: ctypes.Array[ctypes.c_float]) -> "Held":
    """Two float32 with their address."""
    return ends, ctypes.addressof(ends)


@functools.cache
def wider() -> Callable[[int, int, "Held"], tuple[float, float] | None]:
    """The compiled loop over values, whose compiler is loaded when it is first asked for."""
    from quantspec.kernels.minmax import wider as loop

    return loop


def check_channels(before: Float32, now: Float32) -> None:
    """Raises ValueError when the number of channels changed (OBS-CHANNEL-COUNT)."""
    if before.shape != now.shape:
        raise ValueError(f"x: expected {before.size} channels as before, got {now.size}")


def moved(old: Float32, new: Float32, constant: float) -> Float32:
    """old + constant * (new - old), exactly, rounded once to float32."""
    pairs = zip(old.ravel(), new.ravel())
    exact = [Fraction(float(a)) + Fraction(constant) * (Fraction(float(b)) - Fraction(float(a))) for a, b in pairs]
    return np.array([nearest_float32(v) for v in exact]).reshape(old.shape)
