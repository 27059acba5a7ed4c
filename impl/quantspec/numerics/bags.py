"""Bags of embeddings (DYN-BAG): rows of codes, added one by one in float32 with one rounding each."""

from collections.abc import Callable

import numpy as np

from .affine import Float32
from .dialects.float32 import fma

LookUp = Callable[[np.ndarray], tuple[np.ndarray, Float32]]


def bags(look_up: LookUp, width: int, weights: Float32 | None, starts: np.ndarray, mode: str) -> Float32:
    """The bags [bags, width] of rows, a bag's behind those of the one before.

    ``look_up``: the codes around zero and the scales of some rows, by their places. ``starts``: where each bag begins,
    and behind them where the last one ends.
    """
    lengths = np.diff(starts)
    result = np.full((len(lengths), width), -np.inf if mode == "max" else 0.0, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for place in range(int(lengths.max(initial=0))):
            longer = np.flatnonzero(lengths > place)
            codes, scale = look_up(starts[longer] + place)
            factor = scale if weights is None else scale * weights[starts[longer] + place]
            if mode == "max":
                result[longer] = np.maximum(result[longer], codes.astype(np.float32) * factor[:, None])
            else:
                result[longer] = fma(codes, factor[:, None], result[longer])
        if mode == "mean":
            result /= np.maximum(lengths, 1).astype(np.float32)[:, None]
    result[lengths == 0] = 0
    return result
