"""How products are added (DIA-ACCUMULATE), vectorised.

Rules take (x_q [rows, inputs], x_zero_point, w_q [outputs, inputs], w_zero_point) and give accumulators
[rows, outputs].
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from quantspec.numerics import integer


def accumulate_pairs(
    x_q: np.ndarray, x_zero_point: np.ndarray | int, w_q: np.ndarray, w_zero_point: ArrayLike
) -> np.ndarray:
    """Accumulators whose products are added in pairs into saturating int16 first."""
    lowest, highest = -(2**15), 2**15 - 1
    total = integer.accumulate(x_q, x_zero_point, w_q, w_zero_point).astype(np.int64)
    even = x_q.shape[1] + x_q.shape[1] % 2
    x, w = (np.pad(q.astype(np.int32), ((0, 0), (0, even - q.shape[1]))) for q in (x_q, w_q))
    w0, w1 = w[:, ::2], w[:, 1::2]
    # Few pairs of weights can saturate at all. The rest of the sum is exact, so only what these lose is subtracted.
    low, high = np.iinfo(x_q.dtype).min, np.iinfo(x_q.dtype).max
    most = np.maximum(low * w0, high * w0) + np.maximum(low * w1, high * w1)
    least = np.minimum(low * w0, high * w0) + np.minimum(low * w1, high * w1)
    for pair in np.nonzero(((most > highest) | (least < lowest)).any(axis=0))[0]:
        outputs = np.nonzero((most[:, pair] > highest) | (least[:, pair] < lowest))[0]
        sums = np.outer(x[:, 2 * pair], w0[outputs, pair]) + np.outer(x[:, 2 * pair + 1], w1[outputs, pair])
        total[:, outputs] -= sums - np.clip(sums, lowest, highest)
    return total


ACCUMULATE: dict[str, Callable[[np.ndarray, np.ndarray | int, np.ndarray, ArrayLike], np.ndarray]] = {
    "exact": integer.accumulate,
    "pairs": accumulate_pairs,
}
