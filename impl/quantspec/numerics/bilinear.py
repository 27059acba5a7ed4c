"""Bilinear interpolation of codes: where each output lies between inputs, and what it is (INT-BILINEAR)."""

import functools
import math
from fractions import Fraction

import numpy as np

from .affine import QParams

UNIT = 2**8  # of a distance between neighbours
Pair = tuple[int, int]


@functools.lru_cache(maxsize=256)
def places(n: int, m: int, factor: float | None, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``m`` outputs along an axis of ``n`` inputs the neighbour before, the one behind, int64 (m,), and how
    many 256ths it is away from the one before (INT-BILINEAR-PLACES).

    ``factor``: what positions follow from, None for the lengths.
    """
    over, under = start_and_step(n, m, factor, align_corners)
    positions = [nearest(i * over[1] + over[0], under) for i in range(m)]
    steps = np.maximum(np.array(positions, np.int64), 0)
    before = np.minimum(steps // UNIT, n - 1)
    return before, np.minimum(before + 1, n - 1), steps % UNIT


def start_and_step(n: int, m: int, factor: float | None, align_corners: bool) -> tuple[Pair, int]:
    """The position of the first output and the distance to the next, in 256ths: numerators, and their denominator."""
    if align_corners:
        return (0, UNIT * (n - 1)), max(m - 1, 1)
    ratio = Fraction(n, m) if factor is None else 1 / Fraction(factor)
    p, q = ratio.numerator, ratio.denominator
    return (UNIT // 2 * (p - q), UNIT * p), q


def nearest(a: int, b: int) -> int:
    """The integer nearest to a / b, ties to even."""
    whole, rest = divmod(a, b)
    return whole + (2 * rest > b or (2 * rest == b and whole % 2))


def lengths(shape: Pair, size: Pair | None, factors: tuple[float, float] | None) -> Pair:
    """Height and width of the output for an input of these. Raises ValueError where one of either has no positions."""
    result = size
    if result is None:
        assert factors is not None, "a size or factors"
        result = math.floor(shape[0] * factors[0]), math.floor(shape[1] * factors[1])
    if min(*shape, *result) < 1:
        raise ValueError(f"expected positions to interpolate, got {shape} to {result}")
    return result


def interpolate(
    q: np.ndarray, grid: QParams, size: Pair | None, factors: tuple[float, float] | None, *, exact: bool,
    align_corners: bool,
) -> np.ndarray:  # fmt: skip
    """Codes [..., height, width] at other positions (INT-BILINEAR); arguments as in ``program.Bilinear``.

    Raises ValueError for anything but images [batch, channels, height, width] with positions.
    """
    if q.ndim != 4:
        raise ValueError(f"expected images [batch, channels, height, width], got shape {q.shape}")
    shape = q.shape[2], q.shape[3]
    target = lengths(shape, size, factors)
    given = factors if exact and factors is not None else (None, None)
    rows, columns = (places(n, m, f, align_corners) for n, m, f in zip(shape, target, given))
    # Sums of at most 2^16 * 255, which float32 holds.
    values = q.astype(np.float32) - np.float32(grid.zero_point)
    values = weighted(values, rows, 2)
    values = weighted(values, columns, 3)
    codes: np.ndarray = (np.rint(values / np.float32(UNIT**2)) + np.float32(grid.zero_point)).astype(grid.dtype)
    return codes


def weighted(values: np.ndarray, along: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int) -> np.ndarray:
    """256 times the values between neighbours along an axis."""
    before, behind, steps = along
    shares = steps.astype(np.float32).reshape(-1, *[1] * (3 - axis))
    result: np.ndarray = values.take(before, axis) * (np.float32(UNIT) - shares) + values.take(behind, axis) * shares
    return result
