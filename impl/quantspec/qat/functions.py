"""What is computed in codes, with the gradient of what it stands for.

A value in codes is a float32 tensor of codes less the zero point, integers all. Its gradient is that of the real value,
so whatever moves, picks or clamps codes at zero passes it on as torch does.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from quantspec.engines.tensors import address, new, zeros
from quantspec.errors import UnsupportedError
from quantspec.kernels import training as kernels
from quantspec.numerics.affine import code_range
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.ptq.options import Options

from .grids import EXACT, Grid, LayerCodes, memory, quantized, weight_codes

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def inside(gradient: torch.Tensor, steps: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The gradient where ``steps`` lie between both ends, and 0 elsewhere (QAT-STE)."""
    passed: torch.Tensor = torch.ops.aten.hardtanh_backward(gradient, steps, low, high)
    return passed


def scale_gradient(
    gradient: torch.Tensor, steps: torch.Tensor, low: float, high: float, ends: tuple[int, int], size: int
) -> torch.Tensor:
    """The gradient of a learned scale, for each element (QAT-SCALE): the code less the value in steps between
    ``low`` and ``high``, the end of the codes, ``ends``, beyond them; divided by sqrt(size * the largest code)."""
    codes = steps.round().clamp_(*ends)
    between = torch.where((steps > low) & (steps < high), steps, 0.0)
    share: torch.Tensor = gradient * (codes - between) / (size * max(ends[1], 1)) ** 0.5
    return share


def sample_size(x: torch.Tensor) -> int:
    """How many values each sample of a batch has, or all of a vector."""
    return max(math.prod(x.shape[1:] if x.ndim > 1 else x.shape), 1)


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """What a function gives, with its gradient."""
    return function.apply(*arguments)  # type: ignore[no-untyped-call]  # torch has no types there


class Quantized(torch.autograd.Function):
    """Codes of real values on a grid of the whole tensor (QAT-STE, QAT-SCALE)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor | None, grid: Grid, dialect: Dialect) -> torch.Tensor:
        if x.requires_grad or scale is not None:
            ctx.save_for_backward(x)
        ctx.grid, ctx.learned = grid, scale is not None
        return quantized(x, grid, dialect)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        return *rounded_gradients(gradient, x, ctx.grid, ctx.learned), None, None


def rounded_gradients(
    gradient: torch.Tensor, real: torch.Tensor, grid: Grid, learned: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of real values that were rounded to a grid, and of its scale where that is learned."""
    steps = real / grid.scale
    ends = grid.low - 0.5, grid.high + 0.5
    own = None
    if learned:
        own = scale_gradient(gradient, steps, *ends, (grid.low, grid.high), sample_size(real)).sum()
    return inside(gradient, steps, *ends), own


class Snapped(torch.autograd.Function):
    """Codes that were computed from codes, with the gradient of the real values that they are the codes of."""

    @staticmethod
    def forward(
        ctx: Any, real: torch.Tensor, scale: torch.Tensor | None, codes: torch.Tensor, grid: Grid
    ) -> torch.Tensor:
        ctx.save_for_backward(real)
        ctx.grid, ctx.learned = grid, scale is not None
        return codes

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (real,) = gradients, ctx.saved_tensors
        return *rounded_gradients(gradient, real, ctx.grid, ctx.learned), None, None


class Replaced(torch.autograd.Function):
    """A value, with the gradient of another one that it takes the place of."""

    @staticmethod
    def forward(ctx: Any, surrogate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class Real(torch.autograd.Function):
    """The real values of codes."""

    @staticmethod
    def forward(ctx: Any, codes: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


class QuantizedWeight(torch.autograd.Function):
    """Codes of a weight on its scale, () or (outputs,) (QAT-WEIGHT, QAT-SCALE), or those that are ``made`` already."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, learned: torch.Tensor | None, scale: torch.Tensor, options: Options,
        made: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        ctx.learned, ctx.bits = learned is not None, options.weight_bits
        if ctx.learned:
            ctx.save_for_backward(weight, scale)
        return weight_codes(weight, scale, options) if made is None else made

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if not ctx.learned:  # a range of its own holds all of a weight
            return gradients[0], None, None, None, None
        (gradient,), (weight, scale) = gradients, ctx.saved_tensors
        qmin, qmax = code_range(ctx.bits, signed=True)
        steps, size = weight / scale.view(-1, *[1] * (weight.ndim - 1)), math.prod(weight.shape[scale.ndim :])
        shares = scale_gradient(gradient, steps, qmin - 0.5, qmax + 0.5, (qmin, qmax), size)
        own = shares.sum(list(range(scale.ndim, weight.ndim)))
        return inside(gradient, steps, qmin - 0.5, qmax + 0.5), own, None, None, None


@dataclass(eq=False)
class LayerPlan:
    """What a layer is to compute in a step of training.

    ``places``: (stride, dilation, groups) of a convolution, whose input is padded; None for a linear layer. ``y``: the
    output's grid, None where the output is float32. ``coded``: weight and bias in codes. ``loose``: inputs lie between
    codes (QAT-ACTS). ``ends``: the smallest and the largest output before it is rounded, which ``forward`` leaves here.
    """

    layer: str
    x: Grid
    y: Grid | None
    relu: bool
    places: tuple[tuple[int, ...], tuple[int, ...], int] | None
    dialect: Dialect
    coded: LayerCodes
    observe: bool
    loose: bool = False
    ends: tuple[float, float] | None = None

    @property
    def rule(self) -> str:
        """How an accumulator becomes a code."""
        return self.dialect.requantize_rule if self.places is None else self.dialect.windows_rule

    def limits(self) -> tuple[float, float]:
        """The ends, in steps, between which outputs pass a gradient on."""
        assert self.y is not None
        return 0.0 if self.relu else self.y.low - 0.5, self.y.high + 0.5

    def along(self, channels: torch.Tensor, ndim: int) -> torch.Tensor:
        """One number for each output, shaped for accumulators."""
        if not channels.ndim or self.places is None:
            return channels
        return channels.view(-1, *[1] * (ndim - 2))

    def product(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Sums of products of codes, in the type of ``x``."""
        if self.places is None:
            return F.linear(x, w, bias)
        stride, dilation, groups = self.places
        result: torch.Tensor = CONVOLVE[w.ndim - 2](x, w, bias, stride, 0, dilation, groups)
        return result

    def accumulators(self, x: torch.Tensor, *, bias: bool) -> torch.Tensor:
        """Exact accumulators, with the codes of the bias where it is wanted: float32 up to 2^24, else float64.

        Every sum of some of the products is an integer up to ``coded.largest``, so that no addition rounds, in any
        order. Those of inputs between codes are the nearest integers to sums in float32.
        """
        w, added, largest = self.coded.codes, self.coded.bias if bias else None, self.coded.largest
        if self.loose:
            added = None if added is None else added.float()
            return self.product(x, w, added).round_().clamp_(-(2.0**31), 2.0**31 - 128)
        if largest >= 2**31:
            raise UnsupportedError(f"layer {self.layer!r}: an accumulator can reach {largest}, beyond int32")
        if largest <= EXACT:
            return self.product(x, w, None if added is None else added.float())
        return self.product(x.double(), w.double(), None if added is None else added.double())


def channels_last(accumulator: torch.Tensor, plan: LayerPlan) -> np.ndarray:
    """int64 [..., outputs]."""
    array = accumulator.to(torch.int64).numpy()
    return array if plan.places is None else np.moveaxis(array, 1, -1)


def channels_back(codes: np.ndarray, plan: LayerPlan) -> torch.Tensor:
    moved = codes if plan.places is None else np.moveaxis(codes, -1, 1)
    return torch.from_numpy(np.ascontiguousarray(moved))


def numbers(bias: torch.Tensor | None, outputs: int) -> np.ndarray:
    """A bias as the chapters' functions take it."""
    return np.zeros(outputs, np.float32) if bias is None else bias.numpy()


class Layer(torch.autograd.Function):
    """A layer on codes: exact accumulators, and the codes or floats that the dialect makes of them (QAT-LAYER).

    ``x``: codes; ``weight``: the weight, whose codes ``plan.coded`` has, or those, whichever the gradient is of, as it
    passes (QAT-WEIGHT); ``bias``: float32 or None; ``y_scale``: the learned scale of the output, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y_scale: torch.Tensor | None,
        plan: LayerPlan,
    ) -> torch.Tensor:  # fmt: skip
        ctx.plan, ctx.learned = plan, y_scale is not None
        steps, ends = None, None
        if plan.y is None:
            result = direct(x, bias, plan)
        elif plan.rule == "integer-bias":
            result, steps, ends = integer_bias(x, plan, plan.y)
        else:
            result, steps, ends = by_dialect(x, bias, plan, plan.y)
        if plan.observe and ends is not None and result.numel():
            assert plan.y is not None
            low, high = (float(np.float32(end) * np.float32(plan.y.scale)) for end in ends)
            plan.ends = (max(low, 0.0), max(high, 0.0)) if plan.relu else (low, high)
        ctx.save_for_backward(x, plan.coded.codes, steps)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if not torch.is_autocast_enabled("cpu"):
            return Layer.gradients(ctx, *gradients)
        with torch.autocast("cpu", enabled=False):  # that of whoever calls ``backward``
            return Layer.gradients(ctx, *gradients)

    @staticmethod
    def gradients(ctx: Any, gradient: torch.Tensor) -> Any:
        """Of all arguments of ``forward``."""
        (x, codes, steps), plan = ctx.saved_tensors, ctx.plan
        own = None
        if ctx.learned:
            limits: tuple[float, float] = plan.limits()
            ends = 0 if plan.relu else plan.y.low, plan.y.high
            own = scale_gradient(gradient, steps, *limits, ends, sample_size(steps)).sum()
        gradients_of = linear_gradients if plan.places is None else conv_gradients
        return *gradients_of(gradient, steps, x, codes, plan, ctx.needs_input_grad[:3]), own, None


Outputs = tuple[torch.Tensor, torch.Tensor, tuple[float, float]]  # codes, steps, and the ends of these


def integer_bias(x: torch.Tensor, plan: LayerPlan, y: Grid) -> Outputs:
    """Codes by the rule ``integer-bias``: what ``requantize_integer_bias`` computes, in machine code."""
    outputs = plan.coded.codes.shape[0]
    steps, start = memory(plan.accumulators(x, bias=True))
    codes = torch.empty_like(steps)
    numbers = start, address(codes), address(plan.coded.numbers) + 4 * outputs
    lowest, highest = float(0 if plan.relu else y.low), float(y.high)
    positions = 1 if plan.places is None else math.prod(steps.shape[2:])
    samples = steps.numel() // max(outputs * positions, 1)
    if positions == 1:
        found = kernels.rows()(*numbers, samples, outputs, lowest, highest)
    else:
        found = kernels.planes()(*numbers, samples, outputs, positions, lowest, highest)
    return codes, steps, kernels.unpacked(found)


def by_dialect(x: torch.Tensor, bias: torch.Tensor | None, plan: LayerPlan, y: Grid) -> Outputs:
    """Codes by any rule, and the real values in steps of the output."""
    total, w_scale = plan.accumulators(x, bias=False), plan.coded.scale
    scales: tuple[Any, np.ndarray] = np.float32(plan.x.scale), w_scale.numpy()
    accumulator = channels_last(total, plan)
    requantized = plan.dialect.requantize(
        accumulator, numbers(bias, len(plan.coded.codes)), *scales, y.qparams, relu=plan.relu, rule=plan.rule
    )
    codes = channels_back(requantized, plan).to(torch.float32).sub_(y.zero_point)
    steps = total.to(torch.float32).mul_(plan.along(w_scale * (plan.x.scale / y.scale), total.ndim))
    steps = steps.contiguous() if bias is None else steps.add_(plan.along(bias / y.scale, total.ndim))
    low, high = steps.aminmax() if steps.numel() else (zeros(), zeros())
    return codes, steps, (low.item(), high.item())


def direct(x: torch.Tensor, bias: torch.Tensor | None, plan: LayerPlan) -> torch.Tensor:
    """The float32 output of a layer that has no codes (STA-DIRECT), before its ReLU."""
    total, w_scale = plan.accumulators(x, bias=False), plan.coded.scale
    if plan.dialect.output_rule == "multiply-add":
        real = total.to(torch.float32).mul_(plan.along(w_scale * plan.x.scale, total.ndim))
        return real if bias is None else real.add_(plan.along(bias, total.ndim))
    scales: tuple[Any, np.ndarray] = np.float32(plan.x.scale), w_scale.numpy()
    added = numbers(bias, len(plan.coded.codes))
    real_values = plan.dialect.real(channels_last(total, plan), added, *scales)
    return channels_back(real_values, plan)


Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def linear_gradients(
    gradient: torch.Tensor, steps: torch.Tensor | None, x: torch.Tensor, codes: torch.Tensor, plan: LayerPlan,
    wanted: tuple[bool, ...],
) -> Gradients:  # fmt: skip
    """Of the real input, weight and bias of a linear layer that are ``wanted``, of a gradient that passes where
    ``steps`` lie between the limits."""
    outputs = len(codes)
    count = math.prod(gradient.shape[:-1])
    inputs, rows = (t if t.ndim == 2 else t.reshape(count, t.shape[-1]) for t in (x, gradient))
    if steps is None:
        scaled, for_weight, of_bias = rows * plan.coded.scale, rows * plan.x.scale, rows.sum(0)
    else:
        given, start = memory(rows)
        scaled, for_weight, of_bias = torch.empty_like(given), torch.empty_like(given), new((outputs,))
        places = address(scaled), address(for_weight), address(of_bias)
        scales = address(plan.coded.numbers)
        kernels.gradients()(start, address(steps), scales, *places, count, outputs, plan.x.scale, *plan.limits())
    of_x = scaled.mm(codes).view(x.shape) if wanted[0] else None
    of_weight = for_weight.t().mm(inputs) if wanted[1] else None
    return of_x, of_weight, of_bias if wanted[2] else None


def conv_gradients(
    gradient: torch.Tensor, steps: torch.Tensor | None, x: torch.Tensor, codes: torch.Tensor, plan: LayerPlan,
    wanted: tuple[bool, ...],
) -> Gradients:  # fmt: skip
    """Of the real input, weight and bias of a convolution."""
    assert plan.places is not None
    gradient = gradient if steps is None else inside(gradient, steps, *plan.limits())
    stride, dilation, groups = plan.places
    scale = plan.coded.scale
    real = codes * scale.view(-1, *[1] * (codes.ndim - 1))
    nothing = [0] * len(stride)
    places = [len(codes)], stride, nothing, dilation, False, nothing, groups
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(gradient, x, real, *places, list(wanted))
    return of_x, None if of_weight is None else of_weight.mul_(plan.x.scale), of_bias


def as_codes(values: torch.Tensor, grid: Grid) -> np.ndarray:
    """The codes themselves, as the chapters' functions take them."""
    return (values.detach() + grid.zero_point).to(torch.uint8).contiguous().numpy()


def of_codes(codes: np.ndarray, grid: Grid) -> torch.Tensor:
    """Codes less the zero point, as float32."""
    return torch.from_numpy(codes).to(torch.float32).sub_(grid.zero_point)


