"""Rows of a product in sixteens that lie at equal distances, so that a unit which multiplies in tiles reads them where
they lie.

Windows of an image are at equal distances along a line, and so are those of all lines, or planes, or images, where
between the last of one and the first of the next there is room for a whole number of further windows: a row there is
none of the product's, but is computed along with its neighbours. Some rows are computed twice, as sixteens need not end
where lines do.
"""

import functools
from bisect import bisect_right
from dataclasses import dataclass
from math import prod

import numpy as np

from quantspec.kernels.memory import Layout, Triple, offset_table
from quantspec.kernels.tiles import ROWS

MOST = 1.5  # times as many rows as there are, from which on gathering them is quicker


@dataclass(frozen=True)
class Sixteens:
    """``places``: int32, where rows begin; ``distance``: bytes from each to the next within sixteen; ``rows``: which
    one of the product's each is, or one that is computed behind it in its sixteen, or -1 where there is none.
    """

    places: np.ndarray
    distance: int
    rows: np.ndarray

    @property
    def is_exact(self) -> bool:
        """Whether only rows of the product are computed, if some of them twice."""
        return bool((np.diff(self.rows) != 0).all() and self.rows.min() >= 0)


def sixteens(x: Layout, counts: Triple, stride: Triple = (1, 1, 1), start: Triple = (0, 0, 0)) -> Sixteens | None:
    """The windows of a layout as sixteens; None where they cannot be, or would be too many."""
    sizes = zip((x.images, *counts), (x.image, x.plane, x.line, x.pitch), (1, *stride))
    axes = [(count, size * apart) for count, size, apart in sizes if count > 1]
    if not axes:
        return None
    distance, best, least = axes[-1][1], None, MOST * prod(count for count, _ in axes)
    for depth in range(1, len(axes) + 1):
        if axes[-depth][1] % distance:
            break
        inner = tuple((count, size // distance) for count, size in axes[-depth:])
        found = covered(inner)
        times = prod(count for count, _ in axes[:-depth])
        if found is not None and times * found[1].size <= least:
            best, least = (inner, found), times * found[1].size
    if best is None:
        return None
    inner, (starts, own) = best
    sources = x.offsets(counts, stride, start)
    size = prod(count for count, _ in inner)
    steps = (starts[:, None] + np.arange(ROWS)).ravel() * distance
    places = sources[::size, None].astype(np.int64) + steps
    rows = np.where(own < 0, -1, own + size * np.arange(len(places))[:, None])
    return Sixteens(offset_table(places.ravel()), distance, rows.ravel())


@functools.cache
def covered(axes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Sixteens that cover places at ``axes``, each a count and a distance: where each begins, and for each of their
    places the number of the one there, of the next one in its sixteen where there is none, or -1. None for too few.
    """
    total = np.zeros(1, np.int64)
    for count, distance in axes:
        total = (total[:, None] + distance * np.arange(count)).ravel()
    last = int(total[-1])
    if last < ROWS - 1:
        return None
    taken, starts, done = total.tolist(), [], 0
    while done < len(taken):
        done = bisect_right(taken, taken[done] + ROWS - 1)
        starts.append(max(0, taken[done - 1] - ROWS + 1))
    missing = len(taken)
    number = np.full(last + 1, missing)
    number[total] = np.arange(missing)
    own = number[np.array(starts)[:, None] + np.arange(ROWS)]
    own = np.minimum.accumulate(own[:, ::-1], axis=1)[:, ::-1]
    return np.array(starts), np.where(own == missing, -1, own).ravel()
