"""Attention in integers (DYN-ATTENTION): int8 codes of queries, keys and values, and weights of 16 bits."""

import math

import numpy as np

LARGEST, SMALLEST = 2.0**50, 2.0**-100  # magnitudes of what has codes, and of what counts as 0
MOST_FACTOR = 2.0**8  # of scores
CODES, WEIGHTS = 127, 65535
LOG2_E = math.log2(math.e)
# 2^x = 1 + x (p[0] + x (p[1] + x (p[2] + x p[3]))) for x from -1/2 to 1/2, within 2^-18 of it.
POWER = tuple(map(np.float32, (0.6931241750717163, 0.24024038016796112, 0.05590662732720375, 0.009585382416844368)))
FARTHEST = 24  # powers of two below the greatest score, from where on weights are 0


def attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float, mask: np.ndarray | None, causal: bool
) -> np.ndarray | None:
    """float32 [..., length, features of values] of float32 [..., length, features], [..., keys, features] and
    [..., keys, features of values], whose first axes broadcast, as those of ``mask`` do, which is added to the scores.

    ``causal``: the query at place i sees the keys up to place i. None for what has no codes (DYN-ATTENTION-FLOAT).
    """
    factor = factor_of(scale)
    if not all(np.isfinite(x).all() and np.abs(x).max() <= LARGEST for x in (query, key, value)):
        return None
    if factor is None or (mask is not None and not (mask < np.inf).all()):
        return None
    (q, q_scale), (k, k_scale), (v, v_scale) = (own_codes(x, axis) for x, axis in ((query, -1), (key, -1), (value, -2)))
    # Sums of products of integers below 2^53: exact in float64.
    scores = (q @ k.swapaxes(-1, -2)).astype(np.float32) * (q_scale * factor) * k_scale.swapaxes(-1, -2)
    if mask is not None:
        with np.errstate(over="ignore"):
            scores = scores + mask * np.float32(LOG2_E)
    if causal:
        length, keys = scores.shape[-2:]
        scores = np.where(np.arange(length)[:, None] >= np.arange(keys), scores, np.float32(-np.inf))
    greatest = scores.max(-1, keepdims=True)
    if not np.isfinite(greatest).all():
        return None
    weights = powers(greatest - scores)
    sums, total = (weights @ v).astype(np.float32), weights.sum(-1, keepdims=True).astype(np.float32)
    result: np.ndarray = sums * (np.float32(1) / total) * v_scale
    return result


def factor_of(scale: float) -> np.float32 | None:
    """What products of real values are multiplied with to be scores in powers of two; None where that is too much."""
    factor = np.float32(scale * LOG2_E)
    return factor if abs(factor) <= MOST_FACTOR else None


def own_codes(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes from -127 to 127, in float64, and their scales: those of the largest magnitude along an axis."""
    largest = np.abs(x).max(axis, keepdims=True)
    held = largest >= SMALLEST
    inverse = np.where(held, np.float32(CODES) / np.where(held, largest, np.float32(1)), np.float32(0))
    scale = np.where(held, largest / np.float32(CODES), np.float32(0))
    return np.rint(x * inverse).astype(np.float64), scale


def powers(distance: np.ndarray) -> np.ndarray:
    """65535 * 2^-distance as integers, in float64."""
    distance = np.minimum(distance, np.float32(FARTHEST))
    whole = np.rint(distance)
    rest = whole - distance
    power = POWER[-1]
    for term in (*POWER[-2::-1], np.float32(1)):
        power = power * rest + term
    result: np.ndarray = np.rint(power * np.ldexp(np.float32(WEIGHTS), -whole.astype(np.int32))).astype(np.float64)
    return result
