"""Dialects, vectorised: the steps that real kernels take, on whole NumPy arrays, equal to chapter 10 in every code.

A ``Dialect`` names one alternative for each choice of the chapter and computes with them. Arrays are float32 unless said;
every operation on them rounds to float32, which is the point.
"""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from quantspec.numerics import affine, integer
from quantspec.numerics.affine import QParams, along

from .fixed_point import (
    away,
    requantize_double_inside,
    requantize_fixed_one,
    requantize_fixed_two,
    requantize_fixed_two_up,
)
from .patches import evened, rows, windows

FLOOR = np.float32(2.0**-23)
SMALL = float(np.float32(6.1e-5))


def fma(a, b, c) -> np.ndarray:
    """a * b + c for float32 arrays, rounded once to float32."""
    a, b, c = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (a, b, c)))
    product = a * b  # exact: 48 bits
    with np.errstate(invalid="ignore", over="ignore"):
        total = product + c
        back = total - product
        rest = (product - (total - back)) + (c - back)
        # Rounding to odd keeps what float64 lost, so that the second rounding, to float32, is the only one that counts.
        bits = total.view(np.int64)
        sticky = (rest != 0) & np.isfinite(rest) & (bits & 1 == 0)
        bits = bits + np.where(sticky, np.where((rest > 0) == (total > 0), 1, -1), 0)
        return bits.view(np.float64).astype(np.float32)


def to_int32(steps: np.ndarray) -> np.ndarray:
    """Rounded to integers as x86 converts float32 to int32: what does not fit becomes -2^31. Returns int64."""
    rounded = np.rint(steps.astype(np.float64))
    return np.where((rounded >= -(2.0**31)) & (rounded < 2.0**31), rounded, -(2.0**31)).astype(np.int64)


def saturate16(values: np.ndarray) -> np.ndarray:
    """Clamped to 16-bit integers."""
    return np.clip(values, -(2**15), 2**15 - 1)


def twice(scale) -> np.ndarray:
    """The reciprocal of the reciprocal, each rounded to float32."""
    one = np.float32(1)
    return one / (one / np.asarray(scale, np.float32))


# --- DIA-QUANTIZE and DIA-DYNAMIC-QUANTIZE: (x, scale, zero_point, qmin, qmax), already broadcast, to codes


def quantize_divide(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x / scale).astype(np.float64) + zero_point, qmin, qmax)


def quantize_reciprocal(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x * (np.float32(1) / scale)).astype(np.float64) + zero_point, qmin, qmax)


def quantize_add(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(x * (np.float32(1) / scale) + zero_point.astype(np.float32)), qmin, qmax)


def quantize_fused(x, scale, zero_point, qmin, qmax):
    return np.clip(np.rint(fma(x, np.float32(1) / scale, zero_point)), qmin, qmax)


def quantize_divide_away(x, scale, zero_point, qmin, qmax):
    return np.clip(away((x / scale).astype(np.float64)) + zero_point, qmin, qmax)


def quantize_levels(x, scale, zero_point, qmin, qmax):
    low, high = scale * (qmin - zero_point).astype(np.float32), scale * (qmax - zero_point).astype(np.float32)
    per_step = np.float32(qmax - qmin) / (high - low)
    steps = np.clip(x, low, high) * per_step
    return np.clip(np.where(zero_point == 0, np.rint(steps), np.rint(steps + -low * per_step) + qmin), qmin, qmax)


def quantize_inverted(x, scale, zero_point, qmin, qmax):
    per_step = np.float32(1) / twice_inverted(scale)
    return np.clip(np.rint(x * per_step + zero_point.astype(np.float32)), qmin, qmax)


def twice_inverted(scale) -> np.ndarray:
    """A float64 scale inverted, rounded to float32, and inverted again."""
    return np.float32(1) / np.asarray(1 / np.asarray(scale, np.float64)).astype(np.float32)


QUANTIZE = {
    "divide": quantize_divide,
    "reciprocal": quantize_reciprocal,
    "add": quantize_add,
    "fused": quantize_fused,
    "divide-away": quantize_divide_away,
    "levels": quantize_levels,
    "inverted": quantize_inverted,
}

# --- DIA-QPARAMS and DIA-SYMMETRIC: checked float32 ranges () or (channels,) to (scale, zero_point)


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


QPARAMS = {"float32": qparams_float32, "float32-bare": qparams_float32_bare, "float64": qparams_float64, "half-up": qparams_half_up}

# --- DIA-ACCUMULATE: (x_q [rows, inputs], x_zero_point, w_q [outputs, inputs], w_zero_point) to int64 accumulators


def accumulate_pairs(x_q, x_zero_point, w_q, w_zero_point) -> np.ndarray:
    """Accumulators whose products are added in pairs into saturating int16 first."""
    lowest, highest = -(2**15), 2**15 - 1
    total = integer.accumulate(x_q, x_zero_point, w_q, w_zero_point).astype(np.int64)
    even = x_q.shape[1] + x_q.shape[1] % 2
    x, w = (np.pad(q.astype(np.int32), ((0, 0), (0, even - q.shape[1]))) for q in (x_q, w_q))
    w0, w1 = w[:, ::2], w[:, 1::2]
    # Few pairs of weights can saturate at all. The rest of the sum is exact, so only what these pairs lose is subtracted.
    most = 255 * (np.maximum(w0, 0) + np.maximum(w1, 0))
    least = 255 * (np.minimum(w0, 0) + np.minimum(w1, 0))
    if x_q.dtype == np.int8:
        most, least = 128 * (np.abs(w0) + np.abs(w1)), -128 * (np.abs(w0) + np.abs(w1))
    for pair in np.nonzero(((most > highest) | (least < lowest)).any(axis=0))[0]:
        outputs = np.nonzero((most[:, pair] > highest) | (least[:, pair] < lowest))[0]
        sums = np.outer(x[:, 2 * pair], w0[outputs, pair]) + np.outer(x[:, 2 * pair + 1], w1[outputs, pair])
        total[:, outputs] -= sums - np.clip(sums, lowest, highest)
    return total


ACCUMULATE = {"exact": integer.accumulate, "pairs": accumulate_pairs}

# --- DIA-REQUANTIZE: (accumulator without bias [..., outputs], bias, s_x, s_w, y, lowest) to codes


def requantize_exact(accumulator, bias, s_x, s_w, y, lowest):
    codes = integer.requantize(accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64), s_x, s_w, y)
    return np.maximum(codes, codes.dtype.type(lowest))


def requantize_integer_bias(accumulator, bias, s_x, s_w, y, lowest):
    total = accumulator + integer.quantize_bias(bias, s_x, s_w).astype(np.int64)
    steps = np.rint(total.astype(np.float32) * (s_x * s_w / y.scale))
    return np.clip(steps.astype(np.float64) + y.zero_point, lowest, y.qmax)


def requantize_integer_bias_reciprocal(accumulator, bias, s_x, s_w, y, lowest):
    unit = s_w * s_x
    total = accumulator + bias_codes_reciprocal(bias, unit)
    steps = total.astype(np.float32) * (unit * (np.float32(1) / y.scale))
    return np.clip(saturate16(saturate16(to_int32(steps)) + y.zero_point), lowest, y.qmax)


def bias_codes_reciprocal(bias, unit) -> np.ndarray:
    """Bias codes with the reciprocal of the unit in float32, as int64."""
    codes = np.rint((bias * (np.float32(1) / unit)).astype(np.float64))
    return np.clip(codes, -(2.0**31), 2.0**31 - 1).astype(np.int64)


def requantize_float_bias(accumulator, bias, s_x, s_w, y, lowest):
    unit = s_x * s_w
    if unit.ndim:
        total = accumulator.astype(np.float32) + bias / unit
    else:
        total = fma(bias, np.float32(1) / unit, accumulator.astype(np.float32))
    steps = total * (unit / y.scale)
    return np.clip(saturate16(saturate16(to_int32(steps)) + y.zero_point), lowest, y.qmax)


def requantize_real_in_turn(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * twice(s_x) * twice(s_w) + bias, y, lowest)


def requantize_real_product(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * (twice(s_x) * twice(s_w)) + bias, y, lowest)


def quantize_real(value, y, lowest):
    return np.clip(np.rint(value * (np.float32(1) / twice(y.scale)) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_weight_once(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * twice(s_x) * s_w + bias, y, lowest)


def requantize_real_weight_once_product(accumulator, bias, s_x, s_w, y, lowest):
    return quantize_real(accumulator.astype(np.float32) * (twice(s_x) * s_w) + bias, y, lowest)


def requantize_real_plain(accumulator, bias, s_x, s_w, y, lowest):
    value = accumulator.astype(np.float32) * s_x * s_w + bias
    return np.clip(np.rint(value * (np.float32(1) / y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_plain_product(accumulator, bias, s_x, s_w, y, lowest):
    value = accumulator.astype(np.float32) * (s_x * s_w) + bias
    return np.clip(np.rint(value * (np.float32(1) / y.scale) + y.zero_point.astype(np.float32)), lowest, y.qmax)


def requantize_real_divided(accumulator, bias, s_x, s_w, y, lowest):
    value = accumulator.astype(np.float32) * s_x * s_w + bias
    return np.clip(np.rint(value / y.scale + y.zero_point.astype(np.float32)), lowest, y.qmax)


REQUANTIZE = {
    "exact": requantize_exact,
    "integer-bias": requantize_integer_bias,
    "integer-bias-reciprocal": requantize_integer_bias_reciprocal,
    "float-bias": requantize_float_bias,
    "real-in-turn": requantize_real_in_turn,
    "real-product": requantize_real_product,
    "real-weight-once": requantize_real_weight_once,
    "real-weight-once-product": requantize_real_weight_once_product,
    "real-plain": requantize_real_plain,
    "real-plain-product": requantize_real_plain_product,
    "real-divided": requantize_real_divided,
    "double-inside": requantize_double_inside,
    "fixed-one": requantize_fixed_one,
    "fixed-two": requantize_fixed_two,
    "fixed-two-up": requantize_fixed_two_up,
}

# The alternatives whose bias is the integer of chapter 3.
INTEGER_BIAS = ("exact", "integer-bias", "double-inside", "fixed-one", "fixed-two", "fixed-two-up")

# --- DIA-DYNAMIC: (accumulator [rows, outputs], bias, s_x, s_w) to float32


def output_exact(accumulator, bias, s_x, s_w):
    unit = np.float64(np.float32(s_x)) * s_w.astype(np.float64)  # exact: 48 bits
    with np.errstate(over="ignore"):
        real = accumulator * unit + bias
        nearest = real.astype(np.float32)
        # The float64 value is off by two roundings. Where the float32 depends on them, exact numbers decide.
        slack = (np.abs(accumulator * unit) + np.abs(real)) * 2.0**-52
        doubtful = (real - slack).astype(np.float32) != (real + slack).astype(np.float32)
    units, biases = np.broadcast_to(unit, real.shape), np.broadcast_to(bias, real.shape)
    for index in zip(*np.nonzero(doubtful)):
        exact = int(accumulator[index]) * Fraction(float(units[index])) + Fraction(float(biases[index]))
        nearest[index] = affine.nearest_float32(exact)
    return nearest


def output_fused(accumulator, bias, s_x, s_w):
    return fma(accumulator.astype(np.float32), np.float32(s_x) * s_w, bias)


def output_multiply_add(accumulator, bias, s_x, s_w):
    return accumulator.astype(np.float32) * (np.float32(s_x) * s_w) + bias


def output_in_turn(accumulator, bias, s_x, s_w):
    return accumulator.astype(np.float32) * twice_inverted(s_x) * twice(s_w) + bias


def output_product(accumulator, bias, s_x, s_w):
    return accumulator.astype(np.float32) * (twice_inverted(s_x) * twice(s_w)) + bias


OUTPUT = {
    "exact": output_exact,
    "fused": output_fused,
    "multiply-add": output_multiply_add,
    "in-turn": output_in_turn,
    "product": output_product,
}

@dataclass(frozen=True)
class Dialect:
    """One alternative for each choice of chapter 10, by name, and the arithmetic that follows (DIA-NAMED)."""

    name: str
    quantize_rule: str
    quantize_channels_rule: str
    qparams_rule: str
    symmetric_rule: str
    reduced: str
    requantize_rule: str
    qparams_dynamic_rule: str
    quantize_dynamic_rule: str
    output_rule: str
    windows_rule: str
    add_rule: str
    mul_rule: str
    rescale_rule: str
    average_rule: str
    mean_rule: str
    fold_rule: str
    channels_rule: str = "any"
    accumulate_rule: str = "exact"

    def quantize(self, x, scale, zero_point, *, qmin: int, qmax: int, axis: int | None = None) -> np.ndarray:
        """Codes of real values by DIA-QUANTIZE; arguments and errors as ``affine.quantize``."""
        return quantize(self.quantize_channels_rule if axis is not None else self.quantize_rule, x, scale, zero_point, qmin, qmax, axis)

    def qparams(self, minimum, maximum, *, qmin: int, qmax: int, symmetric: bool, axis: int | None = None) -> QParams:
        """The grid for a range by DIA-QPARAMS or DIA-SYMMETRIC; arguments and errors as ``affine.qparams``."""
        if (self.symmetric_rule == "narrow") if symmetric else (self.qparams_rule == "exact"):
            return affine.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=symmetric, axis=axis)
        low, high = affine.checked_range(minimum, maximum)
        with np.errstate(over="ignore"):
            rule = symmetric_half if symmetric else QPARAMS[self.qparams_rule]
            scale, zero_point = rule(low, high, qmin, qmax)
        if np.any(scale > affine.LARGEST_SCALE):
            raise ValueError(f"maximum: the range is too wide, its scale {np.max(scale)} exceeds 2^119")
        return QParams(scale, zero_point, qmin, qmax, axis)

    def activation_qparams(self, minimum, maximum, *, reduce_range: bool = False, bits: int = 8) -> QParams:
        """The unsigned affine grid of an activation of so many bits, with one less and DIA-REDUCED where the range is reduced."""
        qmin, qmax = affine.code_range(bits - reduce_range, signed=False)
        grid = self.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=False)
        return self._contained(grid, affine.code_range(bits, signed=False)) if reduce_range else grid

    def linear(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, relu: bool = False) -> np.ndarray:
        """Output codes [rows, outputs] of a linear layer by DIA-REQUANTIZE; arguments and errors as ``integer.linear``."""
        bias = np.zeros(len(w_q), np.float32) if bias is None else affine.float32_array(bias, "bias")
        self.check_overflow(x, np.asarray(w_q), w, integer.quantize_bias(bias, x.scale, w.scale))
        accumulator = self.accumulate(x_q, x.zero_point, w_q, w.zero_point)
        return self.requantize(accumulator, bias, x.scale, w.scale, y, relu=relu)

    def check_overflow(self, x: QParams, w_q: np.ndarray, w: QParams, bias_q: np.ndarray) -> None:
        """``integer.check_overflow``."""
        integer.check_overflow(x, w_q, w, bias_q)

    def accumulate(self, x_q, x_zero_point, w_q, w_zero_point) -> np.ndarray:
        """Accumulators [rows, outputs] by DIA-ACCUMULATE; arguments and errors as ``integer.accumulate``."""
        return ACCUMULATE[self.accumulate_rule](x_q, x_zero_point, w_q, w_zero_point)

    def conv2d(
        self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups: int = 1, relu: bool = False
    ) -> np.ndarray:
        """Output codes [n, outputs, rows, columns] of a convolution by DIA-WINDOWS; arguments and errors as ``integer.conv2d``."""
        both = tuple((p, p) for p in padding)
        return self.conv(x_q, x, w_q, w, bias, y, stride=stride, padding=both, dilation=dilation, input_dilation=(1, 1), groups=groups, relu=relu)

    def conv(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, stride, padding, dilation, input_dilation, groups: int, relu: bool = False) -> np.ndarray:
        """Output codes [n, outputs, *positions] of a convolution over one to three axes by DIA-WINDOWS; places as ``integer.accumulate_conv`` has them.

        Raises as ``integer.conv2d`` does.
        """
        bias = np.zeros(len(w_q), np.float32) if bias is None else affine.float32_array(bias, "bias")
        self.check_overflow(x, np.asarray(w_q), w, integer.quantize_bias(bias, x.scale, w.scale))
        places = {"stride": stride, "padding": padding, "dilation": dilation, "input_dilation": input_dilation, "groups": groups}
        accumulator = self.accumulate_conv(x_q, x, w_q, w, **places)
        codes = self.requantize(accumulator, bias, x.scale, w.scale, y, relu=relu, rule=self.windows_rule)
        return np.ascontiguousarray(np.moveaxis(codes, -1, 1))

    def accumulate_conv(self, x_q, x: QParams, w_q, w: QParams, **places) -> np.ndarray:
        """Accumulators [n, *positions, outputs] of a convolution by DIA-ACCUMULATE; places and errors as ``integer.accumulate_conv``."""
        if self.accumulate_rule == "exact":
            return integer.accumulate_conv(x_q, x.zero_point, w_q, w, **places)
        return self._accumulate_windows(x_q, x, w_q, w, places)

    def real(self, accumulator, bias, x_scale, w_scale, *, relu: bool = False) -> np.ndarray:
        """Float32 outputs of accumulators [..., outputs] without their bias, by DIA-DYNAMIC (STA-DIRECT). Raises ValueError for scales that DIA-UNIT refuses."""
        bias = np.zeros(np.shape(accumulator)[-1], np.float32) if bias is None else affine.float32_array(bias, "bias")
        if self.output_rule != "exact":
            check_unit(x_scale, w_scale)
        with np.errstate(over="ignore"):
            y = OUTPUT[self.output_rule](np.asarray(accumulator), bias, x_scale, w_scale)
        return np.maximum(y, np.float32(0)) if relu else y

    def _accumulate_windows(self, x_q, x: QParams, w_q, w: QParams, places: dict) -> np.ndarray:
        """Accumulators [n, *positions, outputs] of windows whose products are added in an order of their own."""
        x_q, w_q = integer.checked_codes(x_q, "x_q"), integer.checked_codes(w_q, "w_q")
        integer.check_channels(x_q, w_q, places["groups"])
        in_pairs, groups = self.channels_rule == "even", places["groups"]
        if in_pairs:
            x_q, w_q = evened(x_q, w_q, groups)
        outputs, way = len(w_q) // groups, (w_q.shape[2:], places["stride"], places["dilation"], groups)
        outside = 0 if in_pairs else int(x.zero_point)
        patches, shape = windows(integer.spread(x_q, places["input_dilation"], places["padding"], outside), *way)
        sums = [
            self.accumulate(patches[g], x.zero_point, rows(w_q[g * outputs : (g + 1) * outputs]), points)
            for g, points in enumerate(np.broadcast_to(w.zero_point, len(w_q)).reshape(groups, outputs))
        ]
        if in_pairs:  # what is outside took no part, and must not be compensated for
            added, _ = windows(integer.spread(np.zeros_like(x_q), places["input_dilation"], places["padding"], 1), *way)
            for g, total in enumerate(sums):
                total += int(x.zero_point) * integer.accumulate(added[g], 0, rows(w_q[g * outputs : (g + 1) * outputs]), 0)
        return np.concatenate(sums, axis=1).reshape(*shape, len(w_q))

    def requantize(self, accumulator, bias, x_scale, w_scale, y: QParams, *, relu: bool = False, rule: str | None = None) -> np.ndarray:
        """Output codes of int32 accumulators [..., outputs] without their bias (float32 (outputs,)), by DIA-REQUANTIZE.

        ``rule`` is another alternative than the dialect's for linear layers. Raises ValueError for scales that DIA-UNIT refuses.
        """
        lowest = int(y.zero_point) if relu else y.qmin
        rule = rule or self.requantize_rule
        if rule != "exact":
            check_unit(x_scale, w_scale, y.scale)
        with np.errstate(over="ignore"):
            codes = REQUANTIZE[rule](np.asarray(accumulator), bias, x_scale, w_scale, y, lowest)
        return codes.astype(y.dtype, copy=False)

    def bias_codes(self, bias, x_scale, w_scale) -> np.ndarray | None:
        """The integer bias codes of this dialect, (outputs,), or None where the bias stays a float."""
        if self.requantize_rule in INTEGER_BIAS:
            return integer.quantize_bias(bias, x_scale, w_scale)
        if self.requantize_rule == "integer-bias-reciprocal":
            return bias_codes_reciprocal(bias, w_scale * x_scale)
        return None

    def quantize_dynamic(self, x, *, reduce_range: bool = False) -> tuple[np.ndarray, object, QParams]:
        """Codes of a whole tensor on the grid of its own range, the scale as computed, and that grid.

        Raises ValueError for NaN and infinities (DYN-FINITE). The scale is a float64 where DIA-QPARAMS says so.
        """
        x = affine.float32_array(x)
        if x.size == 0:
            grid = QParams(1, 0, 0, 255)
            return np.zeros(x.shape, np.uint8), grid.scale, grid
        low, high = np.asarray(x.min()), np.asarray(x.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"x: expected finite values, got a minimum of {low} and a maximum of {high}")
        if self.qparams_dynamic_rule == "exact":
            grid = affine.qparams(low, high, qmin=0, qmax=127 if reduce_range else 255, symmetric=False)
            scale = grid.scale
        else:
            scale, zero_point = QPARAMS[self.qparams_dynamic_rule](low, high, 0, 127 if reduce_range else 255)
            grid = QParams(scale, zero_point, 0, 127 if reduce_range else 255)
        grid = self._contained(grid, (0, 255)) if reduce_range else grid
        used = scale if self.quantize_dynamic_rule == "inverted" else grid.scale
        codes = quantize(self.quantize_dynamic_rule, x, used, grid.zero_point, grid.qmin, grid.qmax, None)
        return codes, scale, grid

    def linear_dynamic(self, x, w_q, w: QParams, bias, *, reduce_range: bool = False) -> np.ndarray:
        """The float32 output [rows, outputs] of a dynamic linear layer (DIA-DYNAMIC).

        ``x``: float32 [rows, inputs]; ``w_q``: codes [outputs, inputs]; ``bias``: float32 (outputs,) or None.
        Raises as ``quantize_dynamic`` and ``integer.accumulate`` do, UnsupportedError when an accumulator could overflow.
        """
        codes, scale, grid = self.quantize_dynamic(x, reduce_range=reduce_range)
        bias = np.zeros(len(w_q), np.float32) if bias is None else affine.float32_array(bias, "bias")
        self.check_overflow(grid, np.asarray(w_q), w, np.zeros(len(w_q), np.int32))
        accumulator = self.accumulate(codes, grid.zero_point, w_q, w.zero_point)
        return self.real(accumulator, bias, scale, w.scale)

    def _contained(self, grid: QParams, whole: tuple[int, int]) -> QParams:
        return QParams(grid.scale, grid.zero_point, *(whole if self.reduced == "container" else (grid.qmin, grid.qmax)))


def check_unit(x_scale, w_scale, y_scale=np.float32(1)) -> None:
    """Raises ValueError when the unit of the accumulator or the multiplier is not a normal float32 (DIA-UNIT)."""
    with np.errstate(over="ignore"):
        unit = x_scale * w_scale
        products = {"scale of input times scale of weight": unit, "multiplier": unit / y_scale}
    for name, value in products.items():
        if not np.all(np.isfinite(value) & (value >= affine.SMALLEST_SCALE)):
            raise ValueError(f"scale: expected a {name} that is a normal float32, got {value}")


def quantize(rule: str, x, scale, zero_point, qmin: int, qmax: int, axis: int | None) -> np.ndarray:
    """Codes of real values by one alternative of DIA-DYNAMIC-QUANTIZE. Only ``inverted`` looks at a float64 scale's digits."""
    if rule == "exact":
        return affine.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    single, points = affine.checked_qparams(scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    x = affine.float32_array(x)
    if np.isnan(x).any():
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    given = np.asarray(scale) if rule == "inverted" else along(axis, single, x.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        codes = QUANTIZE[rule](x, given, along(axis, points, x.shape), qmin, qmax)
    return codes.astype(affine.code_dtype(qmin, qmax))


TORCH = ("fused", "add", "float32", "half", "container")
TORCH_CODES = ("real", "reciprocal", "quantize", "inside", "inside", "float32")
ONNX = ("divide", "divide", "float32-bare", "narrow", "codes")
ONNX_CODES = ("ratios", "inside", "quantize", "real", "ratio", "exact")
TFLITE = ("divide-away", "divide-away", "exact", "narrow", "codes")
TFLITE_CODES = ("shifted", "fixed-two", "ratio-away", "codes-away", "fixed-two", "exact")
EXACT_CODES = ("exact",) * 6
INT16 = ("fbgemm", "onednn", "onednn-product", "onednn-pointwise", "onednn-pointwise-product")
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("exact", "exact", "exact", "exact", "narrow", "codes", "exact", "exact", "exact", "exact", "exact", *EXACT_CODES),
        Dialect("onnx", *ONNX, "integer-bias", "float32-bare", "divide", "multiply-add", "integer-bias", *ONNX_CODES),
        Dialect("fbgemm", *TORCH, "float-bias", "float64", "fused", "fused", "float-bias", *TORCH_CODES),
        Dialect("onednn", *TORCH, "real-in-turn", "float64", "inverted", "in-turn", "real-weight-once", *TORCH_CODES, "even"),
        Dialect("onednn-product", *TORCH, "real-product", "float64", "inverted", "product", "real-weight-once-product", *TORCH_CODES, "even"),
        Dialect(
            "qnnpack", *TORCH, "integer-bias-reciprocal", "float64", "fused", "multiply-add", "integer-bias-reciprocal",
            "fixed-away", "reciprocal", "quantize", "ratio", "ratio", "float32",
        ),
        Dialect("paper", "exact", "exact", "half-up", "narrow", "codes", "fixed-one", "half-up", "exact", "exact", "fixed-one", *EXACT_CODES),
        Dialect("onnx-reference", *ONNX, "double-inside", "float32-bare", "divide", "multiply-add", "double-inside", *ONNX_CODES),
        Dialect("torch-quantize", *TORCH, "exact", "float32", "fused", "exact", "exact", *TORCH_CODES),
        Dialect("torch-quantize-tail", *TORCH, "exact", "float32", "fused", "exact", "exact", "real-inside", *TORCH_CODES[1:4], "codes", "float32"),
        Dialect("torch-fake-quantize", "reciprocal", "reciprocal", *TORCH[2:], "exact", "float32", "reciprocal", "exact", "exact", *EXACT_CODES),
        Dialect("onednn-pointwise", *TORCH, "real-plain", "float64", "fused", "in-turn", "real-plain", *TORCH_CODES, "even"),
        Dialect("onednn-pointwise-product", *TORCH, "real-plain-product", "float64", "fused", "product", "real-plain-product", *TORCH_CODES, "even"),
        Dialect("onednn-reference", *TORCH, "real-divided", "float64", "fused", "in-turn", "real-divided", *TORCH_CODES, "even"),
        Dialect(
            "xnnpack", "reciprocal", "divide-away", "exact", "narrow", "codes", "integer-bias", "exact", "reciprocal", "multiply-add", "integer-bias",
            "fixed-up", "outside", "ratio-away", "codes-away", "inside", "exact",
        ),
        Dialect("tflite-reference", *TFLITE, "fixed-one", "exact", "divide-away", "multiply-add", "fixed-two", *TFLITE_CODES),
        Dialect("tflite-two-roundings", *TFLITE, "fixed-two", "exact", "divide-away", "multiply-add", "fixed-two", *TFLITE_CODES),
        Dialect("tflite-ruy", *TFLITE, "fixed-two-up", "exact", "divide-away", "multiply-add", "fixed-two-up", *TFLITE_CODES),
        Dialect("openvino", "levels", "levels", "exact", "narrow", "codes", "real-product", "exact", "levels", "exact", "real-product", *EXACT_CODES),
    )
}  # fmt: skip
DIALECTS |= {f"{name}-int16": replace(DIALECTS[name], name=f"{name}-int16", accumulate_rule="pairs") for name in INT16}


def dialect(name: str) -> Dialect:
    """The dialect of that name; ValueError listing the known ones when there is none."""
    if name not in DIALECTS:
        raise ValueError(f"dialect: expected one of {', '.join(DIALECTS)}, got {name!r}")
    return DIALECTS[name]
