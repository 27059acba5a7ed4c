"""How a range becomes qparams (DIA-QPARAMS, DIA-SYMMETRIC), vectorised.

Rules take (low, high, qmin, qmax), checked float32 ranges of shape () or (channels,), and give (scale, zero_point).
"""

from collections.abc import Callable

import numpy as np

from quantspec.numerics import affine
from quantspec.numerics.affine import Float32, Float64, Int32

Scale = Float32 | Float64 | float
Grid = tuple[Scale, Int32 | np.int32]  # scale and zero point

FLOOR = np.float32(2.0**-23)
SMALL = float(np.float32(6.1e-5))


def qparams_float32(low: Float32, high: Float32, qmin: int, qmax: int) -> Grid:
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = np.maximum((high - low) / np.float32(qmax - qmin), FLOOR)
    return scale, (qmin - np.rint(low / scale)).astype(np.int32)


def qparams_float64(low: Float32, high: Float32, qmin: int, qmax: int) -> Grid:
    if np.ndim(low):
        pairs = [qparams_float64(a, b, qmin, qmax) for a, b in zip(low, high)]
        return np.array([scale for scale, _ in pairs], np.float64), np.array([zero for _, zero in pairs], np.int32)
    return float64_of_one_range(float(low), float(high), qmin, qmax)


def float64_of_one_range(low: float, high: float, qmin: int, qmax: int) -> Grid:
    low, high, steps = min(low, 0.0), max(high, 0.0), qmax - qmin
    scale = (high - low) / steps
    with np.errstate(divide="ignore", over="ignore"):
        if np.isinf(np.float32(1) / np.float32(scale)):
            scale = 0.1
        if scale < SMALL:
            stretch = np.float32(SMALL) / np.float32(scale)
            if low == 0:
                high = float(np.float32(SMALL) * np.float32(steps))
            elif high == 0:
                low = -float(np.float32(SMALL) * np.float32(steps))
            else:
                low, high = float(np.float32(low) * stretch), float(np.float32(high) * stretch)
            scale = SMALL
    from_low, from_high = qmin - low / scale, qmax - high / scale
    start = from_low if abs(qmin) - abs(low / scale) < abs(qmax) - abs(high / scale) else from_high
    return scale, np.int32(np.rint(np.clip(start, qmin, qmax)))


def qparams_float32_bare(low: Float32, high: Float32, qmin: int, qmax: int) -> Grid:
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = (high - low) / np.float32(qmax - qmin)
    scale = np.where(scale == 0, np.float32(1), scale)
    return scale, np.minimum(np.rint(np.float32(qmin) - low / scale), qmax).astype(np.int32)


def qparams_half_up(low: Float32, high: Float32, qmin: int, qmax: int) -> Grid:
    grid = affine.qparams(low, high, qmin=qmin, qmax=qmax, symmetric=False, axis=0 if np.ndim(low) else None)
    low = np.minimum(low, np.float32(0)).astype(np.float64)
    # A float32 over a float32 is half-way between two small integers exactly, or misses it by more than float64 loses.
    return grid.scale, np.floor(qmin - low / grid.scale + 0.5).astype(np.int32)


def symmetric_half(low: Float32, high: Float32, qmin: int, qmax: int) -> Grid:
    scale = np.maximum(np.maximum(-low, high) / np.float32((qmax - qmin) / 2), FLOOR)
    return scale, np.int32((qmin + qmax + 1) // 2)


QPARAMS: dict[str, Callable[[Float32, Float32, int, int], Grid]] = {
    "float32": qparams_float32,
    "float32-bare": qparams_float32_bare,
    "float64": qparams_float64,
    "half-up": qparams_half_up,
}
