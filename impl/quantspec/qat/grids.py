"""Scales, zero points and codes of a training step: what ``ptq.conversion`` makes of the same weights and ranges, as
torch computes it in float32, where one of its operations is the dialect's own."""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import torch

from quantspec.engines.tensors import address, float_address, new
from quantspec.kernels import training as kernels
from quantspec.numerics import affine, integer
from quantspec.numerics.affine import QParams, code_range
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.qparams import FLOOR
from quantspec.ptq.options import Options

EXACT = 2**24  # up to which float32 has every integer
NOT_FINITE = "expected finite values, got NaN or infinities"
MULTIPLIED = "reciprocal", "add", "fused"  # rules by which a code of zero point 0 is rint(x * (1 / s)) in float32
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
        # The same operations on Python's numbers, which take a twentieth of the time that arrays do. A difference or a
        # quotient of two float32 that is rounded to float64 and then to float32 is as if it were rounded once.
        lowest, highest = min(low, 0.0), max(high, 0.0)
        scale = float32(float32(highest - lowest) / qmax) or 1.0
        if affine.SMALLEST_SCALE <= scale <= affine.LARGEST_SCALE:
            return Grid(scale, min(max(round(-float32(lowest / scale)), qmin), qmax), qmin, qmax)
    ends = np.float32(low), np.float32(high)
    return of_qparams(dialect.activation_qparams(*ends, reduce_range=options.reduce_range, bits=options.bits))


def float32(value: float) -> float:
    """The nearest float32."""
    return float(np.float32(value))


def memory(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Float32 values one behind the other, and where they lie; the first has to live as long as the second is used."""
    x = x.detach()
    start = float_address(x)
    if not start and x.numel():
        x = x.as_subclass(torch.Tensor).to(torch.float32).contiguous()
        start = address(x)
    return x, start


def quantized(x: torch.Tensor, grid: Grid, dialect: Dialect) -> torch.Tensor:
    """The codes of float32 values less the zero point, as float32. Raises ValueError for NaN."""
    return quantized_and_ends(x, grid, dialect)[0]


def quantized_and_ends(
    x: torch.Tensor, grid: Grid, dialect: Dialect
) -> tuple[torch.Tensor, tuple[float, float]]:
    """The same, and the smallest and the largest value; inf and -inf where there is none."""
    rule = dialect.quantize_rule
    if rule in ("divide", "reciprocal"):
        values, start = memory(x)
        codes = torch.empty_like(values)
        run = kernels.activation(rule)
        ends = kernels.unpacked(run(start, address(codes), x.numel(), grid.scale, float(grid.low), float(grid.high)))
        if ends[0] != ends[0]:
            raise ValueError("x: expected numbers, got NaN")
        return codes, ends
    rules = {"qmin": grid.qmin, "qmax": grid.qmax}
    values_q = np.asarray(dialect.quantize(x.contiguous().numpy(), grid.scale, grid.zero_point, **rules))
    low, high = x.aminmax() if x.numel() else (torch.tensor(math.inf), torch.tensor(-math.inf))
    return torch.from_numpy(values_q).to(torch.float32).sub_(grid.zero_point), (low.item(), high.item())


@dataclass(frozen=True, eq=False)
class WeightRule:
    """How a dialect makes codes of weights: ``compiled``, the rule of a kernel, or ``None``; ``numbers``: what a scale
    is by the largest weight, and the first and the last code, as kernels take them."""

    compiled: str | None
    numbers: tuple[float, ...]


@functools.cache
def weight_rule(options: Options, per_channel: bool) -> WeightRule:
    dialect = options.dialect
    qmin, qmax = code_range(options.weight_bits, signed=True)
    half = dialect.symmetric_rule == "half"
    # The nearest float32 to the exact quotient: dividing two float32 rounds once.
    divisor, floor = ((qmax - qmin) / 2, float(FLOOR)) if half else (min(-qmin, qmax), affine.SCALE_FLOOR)
    rule = dialect.quantize_channels_rule if per_channel else dialect.quantize_rule
    rule = "reciprocal" if rule in MULTIPLIED else rule
    compiled = rule if rule in ("exact", "divide", "reciprocal") else None
    return WeightRule(compiled, (divisor, floor, floor if half else 1.0, qmin, qmax))


def weight_scale(weight: torch.Tensor, options: Options, per_channel: bool) -> torch.Tensor:
    """The scale that a weight [outputs, ...] gets from its own range (STA-WEIGHT), as the dialect has it.

    Raises ValueError for NaN and infinities.
    """
    scale = new((len(weight),) if per_channel else ())
    coded(weight, scale, weight_rule(options, per_channel), 0, given=False)
    return scale


def weight_codes(weight: torch.Tensor, scale: torch.Tensor, options: Options) -> torch.Tensor:
    """The codes of a weight [outputs, ...] on a scale () or (outputs,), as float32.

    Raises ValueError for NaN and infinities.
    """
    rule = weight_rule(options, bool(scale.ndim))
    if rule.compiled is None:
        return codes_by_dialect(weight, scale, options)
    codes = new(weight.shape)
    coded(weight, scale, rule, address(codes), given=True)
    return codes


def coded(weight: torch.Tensor, scale: torch.Tensor, rule: WeightRule, codes: int, *, given: bool) -> None:
    """Has a kernel write the scales of a weight, unless they are ``given``, and codes to an address that is not 0."""
    values, start = memory(weight)
    scales, of_scales = memory(scale)
    shape = len(weight), weight.numel() // len(weight)
    run = kernels.weight(rule.compiled or "divide")
    if run(start, codes, of_scales, *shape, scale.ndim, given, *rule.numbers) < 0:
        raise ValueError(NOT_FINITE)


def codes_by_dialect(weight: torch.Tensor, scale: torch.Tensor, options: Options) -> torch.Tensor:
    """``weight_codes`` by a rule that no kernel has."""
    qmin, qmax = code_range(options.weight_bits, signed=True)
    zero, axis = np.zeros(scale.shape, np.int32), 0 if scale.ndim else None
    values, _ = memory(weight)
    codes = options.dialect.quantize(values.numpy(), scale.numpy(), zero, qmin=qmin, qmax=qmax, axis=axis)
    return torch.from_numpy(codes).to(torch.float32)


@dataclass(frozen=True, eq=False)
class LayerCodes:
    """A layer's weight and bias in codes.

    ``codes``: of the weight (zero point 0), as float32; ``numbers``: float32 [3, outputs]: the scale for each output,
    what its accumulators are multiplied by, and the code of its bias; ``apart``: whether scales differ. ``bias``: the
    codes of the bias, float64 where float32 does not have them all, or None. ``largest``: the largest size of an
    accumulator with its bias. ``tight``: whether a scale may be too small for its bias (STA-WEIGHT-BIAS).
    """

    codes: torch.Tensor
    numbers: torch.Tensor
    apart: bool
    bias: torch.Tensor | None
    largest: int
    tight: bool

    @property
    def scale(self) -> torch.Tensor:
        """The scale of the weight, () or (outputs,)."""
        return scale_of(self.numbers, self.apart)


def scale_of(numbers: torch.Tensor, apart: bool) -> torch.Tensor:
    return numbers[0] if apart else numbers[0, 0]


def layer_codes(
    weight: torch.Tensor, bias: torch.Tensor | None, options: Options, per_channel: bool, x: Grid, y: Grid | None,
    scale: torch.Tensor | None = None,
) -> LayerCodes:  # fmt: skip
    """A weight [outputs, ...] in codes, on the scale of its own range or the one that is given, and a bias (outputs,)
    in units of the scales of input and weight (INT-BIAS). Raises ValueError for weights with NaN and infinities."""
    rule, outputs, given = weight_rule(options, per_channel), weight.shape[0], scale is not None
    values, start = memory(weight)
    biases, of_bias = (None, 0) if bias is None else memory(bias)
    codes, numbers = torch.empty_like(values), new((3, outputs))
    if scale is not None:
        numbers[0] = scale
    x_most, y_scale = max(-x.low, x.high), 1.0 if y is None else y.scale
    found = kernels.layer(rule.compiled or "divide")(
        start, of_bias, address(codes), address(numbers), outputs, weight.numel() // outputs, per_channel,
        given, x_most, *rule.numbers, x.scale, y_scale,
    )  # fmt: skip
    if found < 0:
        raise ValueError(NOT_FINITE)
    largest, empty, few, unsure = found >> 3, found & 4, found & 2, found & 1
    added = None if bias is None else numbers[2]
    if biases is not None and (unsure or largest > EXACT):
        scales = np.float32(x.scale), scale_of(numbers, per_channel).numpy()
        added = torch.from_numpy(integer.quantize_bias(biases.numpy(), *scales)).double()
        largest += unsure
    if rule.compiled is None:
        codes = codes_by_dialect(weight, scale_of(numbers, per_channel), options)
        sums = codes.abs().flatten(1).sum(1, dtype=torch.float64)
        most = 0 if added is None else int(added.abs().max())
        largest, empty = x_most * int(sums.max()) + most, not bool(sums.all())
    tight = per_channel and bias is not None and bool(few or empty)
    return LayerCodes(codes, numbers, per_channel, added, largest, tight)


def moved(old: float, new: float, constant: float) -> float:
    """old + constant * (new - old), exactly, rounded once to float32 (OBS-AVERAGE): an end of a range, of float32."""
    approximate, slack = old + constant * (new - old), (abs(old) + abs(new)) * 2.0**-50
    below, above = float32(approximate - slack), float32(approximate + slack)
    if below == above:
        return below
    return float(affine.nearest_float32(Fraction(old) + Fraction(constant) * (Fraction(new) - Fraction(old))))
