"""How a range becomes qparams (DIA-QPARAMS, DIA-SYMMETRIC), vectorised.

Rules take (low, high, qmin, qmax), checked float32 ranges of shape () or (channels,), and give (scale, zero_point).
"""

import numpy as np

from quantspec.numerics import affine

FLOOR = np.float32(2.0**-23)
SMALL = float(np.float32(6.1e-5))

def qparams_float32(low, high, qmin, qmax):
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = np.maximum((high - low) / np.float32(qmax - qmin), FLOOR)
    return scale, np.clip(qmin - np.rint(low / scale), qmin, qmax).astype(np.int32)


def qparams_float64(low, high, qmin, qmax):
    if np.ndim(low):
        pairs = [qparams_float64(a, b, qmin, qmax) for a, b in zip(low, high)]
        return np.array([scale for scale, _ in pairs], np.float64), np.array([zero for _, zero in pairs], np.int32)
    low, high, steps = min(float(low), 0.0), max(float(high), 0.0), qmax - qmin
    scale = (high - low) / steps
    with np.errstate(divide="ignore", over="ignore"):
        if np.float32(scale) == 0 or np.isinf(np.float32(1) / np.float32(scale)):
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


def qparams_float32_bare(low, high, qmin, qmax):
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = (high - low) / np.float32(qmax - qmin)
    scale = np.where(scale == 0, np.float32(1), scale)
    return scale, np.clip(np.rint(np.float32(qmin) - low / scale), qmin, qmax).astype(np.int32)


def qparams_half_up(low, high, qmin, qmax):
    grid = affine.qparams(low, high, qmin=qmin, qmax=qmax, symmetric=False, axis=0 if np.ndim(low) else None)
    low = np.minimum(low, np.float32(0)).astype(np.float64)
    # A float32 over a float32 is half-way between two small integers exactly, or misses it by more than float64 loses.
    return grid.scale, np.clip(np.floor(qmin - low / grid.scale + 0.5), qmin, qmax).astype(np.int32)


def symmetric_half(low, high, qmin, qmax):
    scale = np.maximum(np.maximum(np.maximum(-low, high), np.float32(0)) / np.float32((qmax - qmin) / 2), FLOOR)
    return scale, np.int32((qmin + qmax + 1) // 2)


QPARAMS = {
    "float32": qparams_float32,
    "float32-bare": qparams_float32_bare,
    "float64": qparams_float64,
    "half-up": qparams_half_up,
}
