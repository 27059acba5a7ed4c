"""Windows over one to three axes of positions: where they lie, what is in them, how many positions count
(INT-POOL-WINDOWS)."""

import itertools
from collections.abc import Iterable, Iterator
from types import EllipsisType
from typing import TypedDict

import numpy as np

Counts = tuple[int, ...]  # a number for each axis of positions


class Places(TypedDict):
    """Where the windows of a convolution lie; each axis has ``padding`` before and after it."""

    stride: Counts
    padding: tuple[tuple[int, int], ...]
    dilation: Counts
    input_dilation: Counts
    groups: int


def size(length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """How many windows there are along an axis. Raises ValueError when none fits.

    With ``ceil_mode`` a last one may end outside, if it begins inside the input or the padding before it.
    """
    room = length + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1
    if count < 1:
        raise ValueError(f"kernel: a window of {kernel} does not fit into {length} positions with padding {padding}")
    return count


def sizes(
    shape: Counts, kernel: Counts, stride: Counts, padding: Counts, dilation: Counts, ceil_mode: bool
) -> Counts:
    """``size`` for each of the last axes of a shape."""
    lengths = shape[len(shape) - len(kernel) :]
    return tuple(size(*axis, ceil_mode) for axis in zip(lengths, kernel, stride, padding, dilation))


def views(
    values: np.ndarray,
    kernel: Counts,
    stride: Counts,
    padding: Counts,
    dilation: Counts,
    ceil_mode: bool,
    outside: float | np.float32,
) -> Iterator[np.ndarray]:
    """For each position of the kernel, row by row, what all windows have there: arrays [..., *windows].

    ``outside`` is what is not in the input.
    """
    counts = sizes(values.shape, kernel, stride, padding, dilation, ceil_mode)
    lengths = values.shape[values.ndim - len(kernel) :]
    # As far as the last window reaches, which may be less or more than the padding.
    after = [
        max((c - 1) * s + d * (k - 1) + 1 - n - p, 0)
        for c, s, d, k, n, p in zip(counts, stride, dilation, kernel, lengths, padding)
    ]
    around = [(0, 0)] * (values.ndim - len(kernel)) + list(zip(padding, after))
    padded = np.pad(values, around, constant_values=outside)
    for place in itertools.product(*map(range, kernel)):
        starts = [i * d for i, d in zip(place, dilation)]
        there = (slice(start, start + (c - 1) * s + 1, s) for start, c, s in zip(starts, counts, stride))
        yield padded[last_axes(there)]


def last_axes(slices: Iterable[slice]) -> tuple[EllipsisType | slice, ...]:
    """The index of these parts of the last axes."""
    return (..., *slices)


def counts(
    lengths: Counts, kernel: Counts, stride: Counts, padding: Counts, ceil_mode: bool, include_pad: bool
) -> np.ndarray:
    """How many positions of each window count, float64 [*windows].

    Those inside the input, and with ``include_pad`` those in the padding too; never what lies beyond the padding.
    """
    ones = (1,) * len(kernel)
    along = []
    for n, k, s, p in zip(lengths, kernel, stride, padding):
        starts = np.arange(size(n, k, s, p, 1, ceil_mode)) * s - p
        low, high = (-p, n + p) if include_pad else (0, n)
        along.append(np.maximum(np.minimum(starts + k, high) - np.maximum(starts, low), 0))
    total = np.ones(ones)
    for axis, number in enumerate(along):
        total = total * number.reshape([-1 if i == axis else 1 for i in range(len(kernel))])
    return total.astype(np.float64)


def part(index: int, parts: int, length: int) -> tuple[int, int]:
    """Where a part of a length that is split as evenly as can be starts and ends.

    From floor(i * length / n) to ceil((i + 1) * length / n).
    """
    return index * length // parts, -(-(index + 1) * length // parts)
