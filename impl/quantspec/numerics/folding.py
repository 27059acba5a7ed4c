"""Folding batch normalization into the weights and the bias of a layer (chapter 4)."""

import numpy as np


def factor_and_shift(gamma, beta, mean, var, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """A normalization as x * factor + shift, float64 (channels,) each.

    Raises ValueError when var + eps is not positive and finite (FUS-FOLD-REFUSE).
    """
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in (gamma, beta, mean, var))
    total = var + eps
    good = (total > 0) & (total < np.inf)
    if not good.all():
        raise ValueError(f"var: expected var + eps to be positive and finite, got {total[~good][0]}")
    factor = gamma / np.sqrt(total)
    return factor, beta - mean * factor


def fold_batch_norm(weight, bias, gamma, beta, mean, var, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight [outputs, ...] and bias (outputs,) with the normalization behind the layer folded in, float32 (FUS-FOLD-WEIGHT, FUS-FOLD-BIAS).

    ``bias`` may be None. Raises ValueError when var + eps is not positive and finite (FUS-FOLD-REFUSE).
    """
    factor, _ = factor_and_shift(gamma, beta, mean, var, eps)
    start = 0.0 if bias is None else bias
    folded = weight * np.expand_dims(factor, tuple(range(1, np.ndim(weight))))
    return folded.astype(np.float32), ((start - np.asarray(mean, np.float64)) * factor + beta).astype(np.float32)


def fold_batch_norm_before(weight, bias, gamma, beta, mean, var, eps: float, groups: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Weight [outputs, inputs / groups, ...] and bias with the normalization *before* the layer folded in, float32 (FUS-FOLD-BEFORE).

    The normalization has ``inputs`` channels. ``bias`` may be None. Raises ValueError when var + eps is not positive and finite (FUS-FOLD-REFUSE).
    """
    factor, shift = factor_and_shift(gamma, beta, mean, var, eps)
    weight = np.asarray(weight, np.float64)
    outputs, inputs = weight.shape[:2]
    # Each output's own input channels: those of its group.
    channels = np.arange(outputs)[:, None] // (outputs // groups) * inputs + np.arange(inputs)
    axes = tuple(range(2, weight.ndim))
    sums = weight.sum(axis=axes)
    folded = weight * np.expand_dims(factor[channels], axes)
    start = 0.0 if bias is None else np.asarray(bias, np.float64)
    return folded.astype(np.float32), (start + (sums * shift[channels]).sum(axis=1)).astype(np.float32)
