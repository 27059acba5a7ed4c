"""What is computed in codes, with the gradient of what it stands for.

A value in codes is a float32 tensor of codes less the zero point, integers all. Its gradient is that of the real value,
so whatever moves, picks or clamps codes at zero passes it on as torch does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from quantspec.errors import UnsupportedError
from quantspec.numerics import integer
from quantspec.numerics.affine import code_range
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.ptq.options import Options

from .grids import Grid, quantized, weight_codes

EXACT = 2**24  # up to which float32 has every integer
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
        (gradient,), (x,), grid = gradients, ctx.saved_tensors, ctx.grid
        return *rounded_gradients(gradient, x, grid, grid.low, ctx.learned), None, None


def rounded_gradients(
    gradient: torch.Tensor, real: torch.Tensor, grid: Grid, lowest: int, learned: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of real values that were rounded to a grid, and of its scale where that is learned."""
    steps = real / grid.scale
    ends = grid.low - 0.5, grid.high + 0.5
    own = None
    if learned:
        size = real.numel() // max(len(real), 1) if real.ndim > 1 else real.numel()
        own = scale_gradient(gradient, steps, *ends, (lowest, grid.high), max(size, 1)).sum()
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
        return *rounded_gradients(gradient, real, ctx.grid, ctx.grid.low, ctx.learned), None, None


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
    """Codes of a weight on its scale, () or (outputs,) (QAT-WEIGHT, QAT-SCALE)."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, learned: torch.Tensor | None, scale: torch.Tensor, options: Options
    ) -> torch.Tensor:
        ctx.learned, ctx.bits = learned is not None, options.weight_bits
        if ctx.learned:
            ctx.save_for_backward(weight, scale)
        return weight_codes(weight, scale, options)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if not ctx.learned:  # a range of its own holds all of a weight
            return gradients[0], None, None, None
        (gradient,), (weight, scale) = gradients, ctx.saved_tensors
        qmin, qmax = code_range(ctx.bits, signed=True)
        along = scale.view(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale
        steps, size = weight / along, weight.numel() // max(scale.numel(), 1)
        shares = scale_gradient(gradient, steps, qmin - 0.5, qmax + 0.5, (qmin, qmax), size)
        own = shares.flatten(1).sum(1) if scale.ndim else shares.sum()
        return inside(gradient, steps, qmin - 0.5, qmax + 0.5), own, None, None


@dataclass(eq=False)
class LayerPlan:
    """What a layer is to compute in a step of training.

    ``places``: (stride, dilation, groups) of a convolution, whose input is padded; None for a linear layer. ``y``: the
    output's grid, None where the output is float32. ``loose``: inputs lie between codes (QAT-ACTS). ``ends``: the
    smallest and the largest output before it is rounded, which ``forward`` leaves there.
    """

    layer: str
    x: Grid
    w_scale: torch.Tensor
    y: Grid | None
    relu: bool
    places: tuple[tuple[int, ...], tuple[int, ...], int] | None
    dialect: Dialect
    weight_bits: int
    observe: bool
    loose: bool = False
    ends: tuple[float, float] | None = None

    @property
    def rule(self) -> str:
        """How an accumulator becomes a code."""
        return self.dialect.requantize_rule if self.places is None else self.dialect.windows_rule

    def along(self, channels: torch.Tensor, ndim: int) -> torch.Tensor:
        """One number for each output, shaped for accumulators."""
        if not channels.ndim or self.places is None:
            return channels
        return channels.view(-1, *[1] * (ndim - 2))

    def product(self, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Sums of products of codes, in the type of ``x``."""
        if self.places is None:
            return F.linear(x, w, bias)
        stride, dilation, groups = self.places
        result: torch.Tensor = CONVOLVE[w.ndim - 2](x, w, bias, stride, 0, dilation, groups)
        return result

    def largest(self, w: torch.Tensor) -> int:
        """What no accumulator, nor any part of one, goes beyond."""
        step, per_output = max(-self.x.low, self.x.high), w[0].numel() if len(w) else 0
        bound: int = step * per_output * 2 ** (self.weight_bits - 1)
        if bound <= EXACT or not w.numel():
            return bound
        return step * int(w.abs().flatten(1).sum(1, dtype=torch.float64).max())

    def accumulators(self, x: torch.Tensor, w: torch.Tensor, bias_q: torch.Tensor | None) -> torch.Tensor:
        """Exact accumulators, with the codes of a bias where they are given: float32 up to 2^24, else float64.

        Every sum of some of the products is an integer up to ``largest``, so that no addition rounds, in any order.
        Those of inputs between codes are the nearest integers to sums in float32.
        """
        if self.loose:
            bias = None if bias_q is None else bias_q.to(torch.float32)
            return self.product(x, w, bias).round_().clamp_(-(2.0**31), 2.0**31 - 128)
        largest = self.largest(w)
        if bias_q is not None:
            largest += int(bias_q.abs().max()) if bias_q.numel() else 0
        if largest >= 2**31:
            raise UnsupportedError(f"layer {self.layer!r}: an accumulator can reach {largest}, beyond int32")
        kind = torch.float32 if largest <= EXACT else torch.float64
        return self.product(x.to(kind), w.to(kind), None if bias_q is None else bias_q.to(kind))


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

    ``x``: codes; ``weight``: codes; ``bias``: float32 or None; ``y_scale``: the learned scale of the output, or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, y_scale: torch.Tensor | None,
        plan: LayerPlan,
    ) -> torch.Tensor:  # fmt: skip
        ctx.plan, ctx.has_bias, ctx.learned = plan, bias is not None, y_scale is not None
        if plan.y is None:
            result, steps = direct(x, weight, bias, plan), None
        elif plan.rule == "integer-bias":
            result, steps = integer_bias(x, weight, bias, plan, plan.y)
        else:
            result, steps = by_dialect(x, weight, bias, plan, plan.y)
        if plan.observe and steps is not None and steps.numel():
            assert plan.y is not None
            low, high = (float(np.float32(end.item()) * np.float32(plan.y.scale)) for end in steps.aminmax())
            plan.ends = (max(low, 0.0), max(high, 0.0)) if plan.relu else (low, high)
        ctx.save_for_backward(x, weight, steps)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,), (x, weight, steps), plan = gradients, ctx.saved_tensors, ctx.plan
        own = None
        if plan.y is not None:
            low, high = 0.0 if plan.relu else plan.y.low - 0.5, plan.y.high + 0.5
            if ctx.learned:
                size = max(steps[0].numel() if steps.ndim > 1 and len(steps) else steps.numel(), 1)
                ends = 0 if plan.relu else plan.y.low, plan.y.high
                own = scale_gradient(gradient, steps, low, high, ends, size).sum()
            gradient = inside(gradient, steps, low, high)
        wanted = ctx.needs_input_grad[:3]
        if plan.places is None:
            made = linear_gradients(gradient, x, weight, plan, wanted)
        else:
            made = conv_gradients(gradient, x, weight, plan, wanted)
        return *made, own, None


def integer_bias(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LayerPlan, y: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes by the rule ``integer-bias``: what ``requantize_integer_bias`` computes, in the operations of torch."""
    x_scale = np.float32(plan.x.scale)
    bias_q = None
    if bias is not None:
        bias_q = torch.from_numpy(integer.quantize_bias(bias.numpy(), x_scale, plan.w_scale.numpy()))
    total = plan.accumulators(x, weight, bias_q)
    multiplier = plan.w_scale * float(x_scale) / y.scale
    steps = total.to(torch.float32).mul_(plan.along(multiplier, total.ndim))
    return steps.round().clamp_(0 if plan.relu else y.low, y.high), steps


def by_dialect(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LayerPlan, y: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes by any rule, and the real values in steps of the output."""
    total = plan.accumulators(x, weight, None)
    scales: tuple[Any, np.ndarray] = np.float32(plan.x.scale), plan.w_scale.numpy()
    accumulator = channels_last(total, plan)
    made = plan.dialect.requantize(
        accumulator, numbers(bias, len(weight)), *scales, y.qparams, relu=plan.relu, rule=plan.rule
    )
    codes = channels_back(made, plan).to(torch.float32).sub_(y.zero_point)
    steps = total.to(torch.float32).mul_(plan.along(plan.w_scale * (plan.x.scale / y.scale), total.ndim))
    return codes, steps if bias is None else steps.add_(plan.along(bias / y.scale, total.ndim))


def direct(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, plan: LayerPlan) -> torch.Tensor:
    """The float32 output of a layer that has no codes (STA-DIRECT)."""
    total = plan.accumulators(x, weight, None)
    if plan.dialect.output_rule == "multiply-add":
        real = total.to(torch.float32).mul_(plan.along(plan.w_scale * plan.x.scale, total.ndim))
        return real if bias is None else real.add_(plan.along(bias, total.ndim))
    scales: tuple[Any, np.ndarray] = np.float32(plan.x.scale), plan.w_scale.numpy()
    made = plan.dialect.real(channels_last(total, plan), numbers(bias, len(weight)), *scales, relu=plan.relu)
    return channels_back(made, plan)


Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def linear_gradients(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, plan: LayerPlan, wanted: tuple[bool, ...]
) -> Gradients:
    """Of the real input, weight and bias of a linear layer."""
    rows = gradient.reshape(-1, len(weight))
    of_x = (rows * plan.w_scale).mm(weight).reshape(x.shape) if wanted[0] else None
    of_weight = rows.t().mm(x.reshape(-1, x.shape[-1])).mul_(plan.x.scale) if wanted[1] else None
    return of_x, of_weight, rows.sum(0) if wanted[2] else None


def conv_gradients(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, plan: LayerPlan, wanted: tuple[bool, ...]
) -> Gradients:
    """Of the real input, weight and bias of a convolution."""
    assert plan.places is not None
    stride, dilation, groups = plan.places
    scale = plan.w_scale
    real = weight * (scale.view(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale)
    nothing = [0] * len(stride)
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, x, real, [len(weight)], stride, nothing, dilation, False, nothing, groups, list(wanted)
    )
    return of_x, None if of_weight is None else of_weight.mul_(plan.x.scale), of_bias


def as_codes(values: torch.Tensor, grid: Grid) -> np.ndarray:
    """The codes themselves, as the chapters' functions take them."""
    kind = torch.uint8 if grid.qmin >= 0 else torch.int8
    return (values.detach() + grid.zero_point).to(kind).contiguous().numpy()


def of_codes(codes: np.ndarray, grid: Grid) -> torch.Tensor:
    """Codes less the zero point, as float32."""
    return torch.from_numpy(codes).to(torch.float32).sub_(grid.zero_point)


