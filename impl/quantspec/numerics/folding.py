"""Folding batch normalization into the weights and the bias of a layer (chapter 4)."""

import numpy as np

from .affine import Float32, Float64


def normalization_factor(gamma: Float32, var: Float32, eps: float) -> Float64:
    """What a normalization multiplies each channel by, float64 (channels,).

    Raises ValueError when var + eps is not positive and finite (FUS-FOLD-REFUSE).
    """
    var = np.asarray(var, np.float64)
    total = var + eps
    good = (total > 0) & (total < np.inf)
    if not good.all():
        raise ValueError(f"var: expected var + eps to be positive and finite, got {total[~good][0]}")
    factor: Float64 = gamma / np.sqrt(total)
    return factor


def factor_and_shift(
    gamma: Float32, beta: Float32, mean: Float32, var: Float32, eps: float
) -> tuple[Float64, Float64]:
    """A normalization as x * factor + shift, float64 (channels,) each. Raises as ``normalization_factor`` does."""
    factor = normalization_factor(gamma, var, eps)
    return factor, beta - mean * factor


def fold_batch_norm(
    weight: Float32,
    bias: Float32 | None,
    gamma: Float32,
    beta: Float32,
    mean: Float32,
    var: Float32,
    eps: float,
) -> tuple[Float32, Float32]:
    """Weight [outputs, ...] and bias (outputs,) with the normalization behind the layer folded in (FUS-FOLD-WEIGHT,
    FUS-FOLD-BIAS). Raises ValueError when var + eps is not positive and finite (FUS-FOLD-REFUSE).
    """
    factor = normalization_factor(gamma, var, eps)
    start = 0.0 if bias is None else bias
    # Products in float64, a piece at a time, which takes no memory of their size.
    folded = np.empty(np.shape(weight), np.float32)
    factors = np.expand_dims(factor, tuple(range(1, np.ndim(weight))))
    np.multiply(weight, factors, out=folded, dtype=np.float64)
    return folded, ((start - np.asarray(mean, np.float64)) * factor + beta).astype(np.float32)


def fold_batch_norm_before(
    weight: Float32,
    bias: Float32 | None,
    gamma: Float32,
    beta: Float32,
    mean: Float32,
    var: Float32,
    eps: float,
    groups: int,
) -> tuple[Float32, Float32]:
    """Weight [outputs, inputs / groups, ...] and bias with the normalization *before* the layer folded in
    (FUS-FOLD-BEFORE).

    The normalization has ``inputs`` channels. Raises ValueError when var + eps is not positive and finite
    (FUS-FOLD-REFUSE).
    """
    factor, shift = factor_and_shift(gamma, beta, mean, var, eps)
    weight = np.asarray(weight, np.float64)
    outputs, inputs = weight.shape[:2]
    # Each output's own input channels: those of its group.
    channels = np.arange(outputs)[:, None] // (outputs // groups) * inputs + np.arange(inputs)
    axes = tuple(range(2, weight.ndim))
    sums = weight.sum(axis=axes)
    folded = weight * np.expand_dims(factor[channels], axes)
    start = 0.0 if bias is None else bias
    return folded.astype(np.float32), (start + (sums * shift[channels]).sum(axis=1)).astype(np.float32)
