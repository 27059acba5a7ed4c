"""Scales, zero points and codes of a training step: what ``ptq.conversion`` makes of the same weights and ranges, as
torch computes it in float32, where one of its operations is the dialect's own."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from quantspec.numerics import affine
from quantspec.numerics.affine import QParams, code_range
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.qparams import FLOOR
from quantspec.ptq.options import Options

# Rules by which a code of zero point 0 is rint(x / s) or rint(x * (1 / s)) in float32.
DIVIDED, MULTIPLIED = ("divide",), ("reciprocal", "add", "fused")
ONE = np.float32(1)


@dataclass(frozen=True)
class Grid:
    """A grid of the whole tensor, as Python's numbers; ``scale`` is a float32."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def low(self) -> int:
        """The smallest code less the zero point."""
        return self.qmin - self.zero_point

    @property
    def high(self) -> int:
        """The largest code less the zero point."""
        return self.qmax - self.zero_point

    @cached_property
    def qparams(self) -> QParams:
        """The same as the chapters' functions take it."""
        return QParams(self.scale, self.zero_point, self.qmin, self.qmax)


def of_qparams(grid: QParams) -> Grid:
    """A grid of the whole tensor."""
    return Grid(float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax)


def activation_grid(low: float, high: float, options: Options) -> Grid:
    """The grid of an activation from its range, as ``Dialect.activation_qparams`` gives it. Raises as that does."""
    dialect, qmin, qmax = options.dialect, 0, 2**options.bits - 1
    if dialect.qparams_rule == "float32-bare" and not options.reduce_range:
        # The same operations on numbers of numpy, which take a twentieth of the time that arrays do.
        lowest, highest = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
        scale = (highest - lowest) / np.float32(qmax)
        scale = scale if scale else ONE
        if affine.SMALLEST_SCALE <= scale <= affine.LARGEST_SCALE:
            return Grid(float(scale), int(min(max(np.rint(-(lowest / scale)), qmin), qmax)), qmin, qmax)
    ends = np.float32(low), np.float32(high)
    return of_qparams(dialect.activation_qparams(*ends, reduce_range=options.reduce_range, bits=options.bits))


def quantized(x: torch.Tensor, grid: Grid, dialect: Dialect) -> torch.Tensor:
    """The codes of float32 values less the zero point, as float32. Raises ValueError for NaN."""
    if dialect.quantize_rule == "divide":
        codes = torch.div(x, grid.scale).round_().clamp_(grid.low, grid.high)
    elif dialect.quantize_rule == "reciprocal":
        codes = torch.mul(x, float(ONE / np.float32(grid.scale))).round_().clamp_(grid.low, grid.high)
    else:
        rule = {"qmin": grid.qmin, "qmax": grid.qmax}
        made = dialect.quantize(x.contiguous().numpy(), grid.scale, grid.zero_point, **rule)
        return torch.from_numpy(made).to(torch.float32).sub_(grid.zero_point)
    if codes.numel() and bool(codes.sum().isnan()):
        raise ValueError("x: expected numbers, got NaN")
    return codes


@dataclass(frozen=True)
class WeightCodes:
    """Codes of a weight (zero point 0) as float32, and the scale, float32 () or (outputs,)."""

    codes: torch.Tensor
    scale: torch.Tensor


def weight_scale(weight: torch.Tensor, options: Options, per_channel: bool) -> torch.Tensor:
    """The scale that a weight [outputs, ...] gets from its own range (STA-WEIGHT), as the dialect has it.

    Raises ValueError for NaN and infinities.
    """
    qmin, qmax = code_range(options.weight_bits, signed=True)
    if not weight.numel():
        largest = torch.zeros(len(weight) if per_channel else (), dtype=torch.float32)
    else:
        largest = weight.abs().flatten(1).amax(1) if per_channel else weight.abs().amax()
    if not bool(torch.isfinite(largest).all()):
        raise ValueError("expected finite values, got NaN or infinities")
    if options.dialect.symmetric_rule == "half":
        return torch.div(largest, (qmax - qmin) / 2).clamp_min_(float(FLOOR))
    # The nearest float32 to the exact quotient: dividing two float32 rounds once.
    scale = torch.div(largest, min(-qmin, qmax))
    if bool((scale < affine.SCALE_FLOOR).any()):
        scale = torch.where(largest == 0, torch.ones_like(scale), scale.clamp_min(affine.SCALE_FLOOR))
    return scale


def weight_codes(weight: torch.Tensor, scale: torch.Tensor, options: Options) -> torch.Tensor:
    """The codes of a weight [outputs, ...] on a scale () or (outputs,), as float32."""
    qmin, qmax = code_range(options.weight_bits, signed=True)
    rule = options.dialect.quantize_channels_rule if scale.ndim else options.dialect.quantize_rule
    along = scale.view(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale
    if rule == "exact":
        return torch.div(weight.double(), along.double()).round_().clamp_(qmin, qmax).to(torch.float32)
    if rule in DIVIDED:
        return torch.div(weight, along).round_().clamp_(qmin, qmax)
    if rule in MULTIPLIED:
        return torch.mul(weight, 1 / along).round_().clamp_(qmin, qmax)
    axis = 0 if scale.ndim else None
    zero = np.zeros(scale.shape, np.int32)
    made = options.dialect.quantize(weight.contiguous().numpy(), scale.numpy(), zero, qmin=qmin, qmax=qmax, axis=axis)
    return torch.from_numpy(made).to(torch.float32)


def moved_ranges(old: np.ndarray, new: np.ndarray, constant: float) -> np.ndarray:
    """old + constant * (new - old), exactly, rounded once to float32 (OBS-AVERAGE): ends as float32 arrays."""
    from fractions import Fraction

    a, b = old.astype(np.float64), new.astype(np.float64)
    approximate = a + constant * (b - a)
    slack = (np.abs(a) + np.abs(b)) * 2.0**-50
    below, above = (approximate - slack).astype(np.float32), (approximate + slack).astype(np.float32)
    for index in zip(*np.nonzero(below != above)):
        start, end = Fraction(float(a[index])), Fraction(float(b[index]))
        below[index] = affine.nearest_float32(start + Fraction(constant) * (end - start))
    return below
