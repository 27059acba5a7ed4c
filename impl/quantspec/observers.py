"""Observers: what passes one place of a network during calibration, as a range (chapter 2).

An observer is a frozen value. ``observe`` returns the next one; ``range`` gives what it has seen as (minimum, maximum).
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from .affine import float32_array, nearest_float32
from .errors import CalibrationError


@dataclass(frozen=True, eq=False)
class MinMaxObserver:
    """The smallest and the largest value seen (OBS-MINMAX), per tensor or for each index along ``axis`` (OBS-CHANNEL).

    ``minimum`` and ``maximum`` are float32 of shape () or (channels,), or None before anything was seen.
    """

    axis: int | None = None
    minimum: np.ndarray | None = None
    maximum: np.ndarray | None = None

    def observe(self, x) -> "MinMaxObserver":
        """The observer that has also seen ``x`` (float32, any shape).

        Raises CalibrationError for NaN and infinities (OBS-FINITE), ValueError for another number of channels than before
        (OBS-CHANNEL-COUNT).
        """
        batch = batch_range(x, self.axis)
        return self if batch is None else self._merged(*batch)

    def merge(self, other: "MinMaxObserver") -> "MinMaxObserver":
        """The observer that saw what both saw (OBS-MERGE). Raises ValueError for another axis or number of channels."""
        if self.axis != other.axis:
            raise ValueError(f"other: expected an observer along axis {self.axis}, got axis {other.axis}")
        return self if other.minimum is None else self._merged(other.minimum, other.maximum)

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """(minimum, maximum) as float32; raises CalibrationError before anything was seen (OBS-NOTHING)."""
        if self.minimum is None:
            raise CalibrationError("the observer has seen no values, so there is no range")
        return self.minimum, self.maximum

    def _merged(self, low: np.ndarray, high: np.ndarray) -> "MinMaxObserver":
        if self.minimum is None:
            return replace(self, minimum=low, maximum=high)
        check_channels(self.minimum, low)
        return replace(self, minimum=np.minimum(self.minimum, low), maximum=np.maximum(self.maximum, high))


@dataclass(frozen=True, eq=False)
class MovingAverageObserver:
    """The moving average of the batches' ranges (OBS-AVERAGE); ``constant`` is the share of the newest batch."""

    constant: float = 0.01
    axis: int | None = None
    minimum: np.ndarray | None = None
    maximum: np.ndarray | None = None

    def __post_init__(self):
        if not 0 < self.constant <= 1:
            raise ValueError(f"constant: expected more than 0 and at most 1, got {self.constant}")

    def observe(self, x) -> "MovingAverageObserver":
        """The observer after one more batch ``x`` (float32, any shape); raises as ``MinMaxObserver.observe`` does."""
        batch = batch_range(x, self.axis)
        if batch is None:
            return self
        if self.minimum is None:
            return replace(self, minimum=batch[0], maximum=batch[1])
        check_channels(self.minimum, batch[0])
        low, high = (moved(old, new, self.constant) for old, new in zip((self.minimum, self.maximum), batch))
        return replace(self, minimum=low, maximum=high)

    range = MinMaxObserver.range


def batch_range(x, axis: int | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The smallest and largest value of a tensor (along ``axis``: of each channel), or None when it is empty (OBS-EMPTY).

    Raises CalibrationError for NaN and infinities: both show up in the ends, so that the data is read only twice.
    """
    x = float32_array(x)
    if x.size == 0:
        return None
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected an axis of an array of shape {x.shape}, got {axis}")
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    low, high = np.asarray(x.min(axis=others)), np.asarray(x.max(axis=others))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CalibrationError(f"x: expected finite values, got a minimum of {low.min()} and a maximum of {high.max()}")
    return low, high


def check_channels(before: np.ndarray, now: np.ndarray) -> None:
    """Raises ValueError when the number of channels changed (OBS-CHANNEL-COUNT)."""
    if before.shape != now.shape:
        raise ValueError(f"x: expected {before.size} channels as before, got {now.size}")


def moved(old: np.ndarray, new: np.ndarray, constant: float) -> np.ndarray:
    """old + constant * (new - old), exactly, rounded once to float32."""
    pairs = zip(old.ravel(), new.ravel())
    exact = [Fraction(float(a)) + Fraction(constant) * (Fraction(float(b)) - Fraction(float(a))) for a, b in pairs]
    return np.array([nearest_float32(v) for v in exact], dtype=np.float32).reshape(old.shape)
