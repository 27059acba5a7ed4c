"""A dialect: one alternative for each choice of chapter 10, by name, and the arithmetic that follows.

Arrays are float32 unless said; results equal the chapter's definitions in every code.
"""

from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from quantspec.numerics import affine, integer
from quantspec.numerics.affine import Float32, QParams, Real
from quantspec.numerics.patches import evened, rows, windows
from quantspec.numerics.windows import Counts, Places

from .accumulate import ACCUMULATE
from .float32 import check_unit
from .float_output import OUTPUT
from .qparams import QPARAMS, Scale, symmetric_half
from .quantize import quantize
from .requantize import INTEGER_BIAS, REQUANTIZE, bias_codes_reciprocal


@dataclass(frozen=True)
class Dialect:
    """One alternative for each choice of chapter 10, by name, and the arithmetic that follows (DIA-NAMED).

    What is not named is chosen as chapters 1 to 6 do, which is the dialect ``exact``.
    """

    name: str
    quantize_rule: str = "exact"
    quantize_channels_rule: str = "exact"
    qparams_rule: str = "exact"
    symmetric_rule: str = "narrow"
    reduced_rule: str = "codes"
    accumulate_rule: str = "exact"
    requantize_rule: str = "exact"
    windows_rule: str = "exact"
    channels_rule: str = "any"
    qparams_dynamic_rule: str = "exact"
    quantize_dynamic_rule: str = "exact"
    output_rule: str = "exact"
    add_rule: str = "exact"
    mul_rule: str = "exact"
    rescale_rule: str = "exact"
    average_rule: str = "exact"
    mean_rule: str = "exact"
    fold_rule: str = "exact"

    def quantize(
        self, x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        """Codes of real values by DIA-QUANTIZE; arguments and errors as ``affine.quantize``."""
        rule = self.quantize_rule if axis is None else self.quantize_channels_rule
        return quantize(rule, x, scale, zero_point, qmin, qmax, axis)

    def qparams(
        self, minimum: Real, maximum: Real, *, qmin: int, qmax: int, symmetric: bool, axis: int | None = None
    ) -> QParams:
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

    def activation_qparams(
        self, minimum: Real, maximum: Real, *, reduce_range: bool = False, bits: int = 8
    ) -> QParams:
        """The unsigned affine grid of an activation of so many bits, one less by DIA-REDUCED for a reduced range."""
        qmin, qmax = affine.code_range(bits - reduce_range, signed=False)
        grid = self.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=False)
        return self._contained(grid, affine.code_range(bits, signed=False)) if reduce_range else grid

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams,
        *, relu: bool = False,
    ) -> np.ndarray:
        """Output codes [rows, outputs] of a linear layer by DIA-REQUANTIZE; errors as ``integer.linear``."""
        bias = np.zeros(len(w_q), np.float32) if bias is None else affine.float32_array(bias, "bias")
        self.check_overflow(x, np.asarray(w_q), w, integer.quantize_bias(bias, x.scale, w.scale))
        accumulator = self.accumulate(x_q, x.zero_point, w_q, w.zero_point)
        return self.requantize(accumulator, bias, x.scale, w.scale, y, relu=relu)

    def check_overflow(self, x: QParams, w_q: np.ndarray, w: QParams, bias_q: np.ndarray) -> None:
        """``integer.check_overflow``."""
        integer.check_overflow(x, w_q, w, bias_q)

    def accumulate(
        self, x_q: np.ndarray, x_zero_point: np.ndarray | int, w_q: np.ndarray, w_zero_point: ArrayLike
    ) -> np.ndarray:
        """Accumulators [rows, outputs] by DIA-ACCUMULATE; arguments and errors as ``integer.accumulate``."""
        return ACCUMULATE[self.accumulate_rule](x_q, x_zero_point, w_q, w_zero_point)

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams,
        *, stride: Counts = (1, 1), padding: Counts = (0, 0), dilation: Counts = (1, 1), groups: int = 1,
        relu: bool = False,
    ) -> np.ndarray:
        """Output codes [n, outputs, rows, columns] of a convolution by DIA-WINDOWS; errors as ``integer.conv2d``."""
        both = tuple((p, p) for p in padding)
        places: Places = dict(
            stride=stride, padding=both, dilation=dilation, input_dilation=(1, 1), groups=groups
        )
        return self.conv(x_q, x, w_q, w, bias, y, relu=relu, **places)

    def conv(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams,
        *, relu: bool = False, **places: Unpack[Places],
    ) -> np.ndarray:
        """Output codes [n, outputs, *positions] of a convolution over one to three axes by DIA-WINDOWS.

        Places as ``integer.accumulate_conv`` has them. Raises as ``integer.conv2d`` does.
        """
        bias = np.zeros(len(w_q), np.float32) if bias is None else affine.float32_array(bias, "bias")
        self.check_overflow(x, np.asarray(w_q), w, integer.quantize_bias(bias, x.scale, w.scale))
        accumulator = self.accumulate_conv(x_q, x, w_q, w, **places)
        codes = self.requantize(accumulator, bias, x.scale, w.scale, y, relu=relu, rule=self.windows_rule)
        return np.ascontiguousarray(np.moveaxis(codes, -1, 1))

    def accumulate_conv(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, **places: Unpack[Places]
    ) -> np.ndarray:
        """Accumulators [n, *positions, outputs] of a convolution by DIA-ACCUMULATE.

        Places and errors as ``integer.accumulate_conv``.
        """
        if self.accumulate_rule == "exact":
            return integer.accumulate_conv(x_q, x.zero_point, w_q, w, **places)
        return self._accumulate_windows(x_q, x, w_q, w, places)

    def real(
        self, accumulator: np.ndarray, bias: np.ndarray | None, x_scale: Scale, w_scale: Float32, *, relu: bool = False
    ) -> np.ndarray:
        """Float32 outputs of accumulators [..., outputs] without their bias, by DIA-DYNAMIC (STA-DIRECT).

        Raises ValueError for scales that DIA-UNIT refuses.
        """
        bias = np.zeros(np.shape(accumulator)[-1], np.float32) if bias is None else affine.float32_array(bias, "bias")
        if self.output_rule != "exact":
            check_unit(x_scale, w_scale)
        with np.errstate(over="ignore"):
            y = OUTPUT[self.output_rule](np.asarray(accumulator), bias, x_scale, w_scale)
        return np.maximum(y, np.float32(0)) if relu else y

    def _accumulate_windows(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, places: Places
    ) -> np.ndarray:
        """Accumulators [n, *positions, outputs] of windows whose products are added in an order of their own."""
        x_q, w_q = integer.checked_codes(x_q, "x_q"), integer.checked_codes(w_q, "w_q")
        integer.check_channels(x_q, w_q, places["groups"])
        in_pairs, groups = self.channels_rule == "even", places["groups"]
        points = np.broadcast_to(w.zero_point, len(w_q))
        if in_pairs:
            x_q, w_q = evened(x_q, w_q, points, groups)
        outputs, kernel = len(w_q) // groups, (w_q.shape[2:], places["stride"], places["dilation"], groups)
        spread_by = places["input_dilation"], places["padding"]
        outside = 0 if in_pairs else int(x.zero_point)
        patches, shape = windows(integer.spread(x_q, *spread_by, outside), *kernel)
        sums = [
            self.accumulate(patches[g], x.zero_point, rows(w_q[g * outputs : (g + 1) * outputs]), of_group)
            for g, of_group in enumerate(points.reshape(groups, outputs))
        ]
        if in_pairs:  # what is outside took no part, and must not be compensated for
            added, _ = windows(integer.spread(np.zeros_like(x_q), *spread_by, 1), *kernel)
            for g, (total, of_group) in enumerate(zip(sums, points.reshape(groups, outputs))):
                weight = rows(w_q[g * outputs : (g + 1) * outputs])
                total += int(x.zero_point) * integer.accumulate(added[g], 0, weight, of_group)
        return np.concatenate(sums, axis=1).reshape(*shape, len(w_q))

    def requantize(
        self, accumulator: np.ndarray, bias: np.ndarray, x_scale: Float32, w_scale: Float32, y: QParams,
        *, relu: bool = False, rule: str | None = None,
    ) -> np.ndarray:
        """Output codes of int32 accumulators [..., outputs] without their bias (float32 (outputs,)), by DIA-REQUANTIZE.

        ``rule`` is another alternative than the dialect's for linear layers.
        Raises ValueError for scales that DIA-UNIT refuses.
        """
        lowest = int(y.zero_point) if relu else y.qmin
        rule = rule or self.requantize_rule
        if rule != "exact":
            check_unit(x_scale, w_scale, y.scale)
        with np.errstate(over="ignore"):
            codes = REQUANTIZE[rule](np.asarray(accumulator), bias, x_scale, w_scale, y, lowest)
        return codes.astype(y.dtype, copy=False)

    def bias_codes(self, bias: np.ndarray, x_scale: Float32, w_scale: Float32) -> np.ndarray | None:
        """The integer bias codes of this dialect, (outputs,), or None where the bias stays a float."""
        if self.requantize_rule in INTEGER_BIAS:
            return integer.quantize_bias(bias, x_scale, w_scale)
        if self.requantize_rule == "integer-bias-reciprocal":
            return bias_codes_reciprocal(bias, w_scale * x_scale)
        return None

    def quantize_dynamic(self, x: ArrayLike, *, reduce_range: bool = False) -> tuple[np.ndarray, Scale, QParams]:
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
            scale: Scale = grid.scale
        else:
            with np.errstate(over="ignore"):  # a range that is wider than float32 gives no scale
                scale, zero_point = QPARAMS[self.qparams_dynamic_rule](low, high, 0, 127 if reduce_range else 255)
            grid = QParams(scale, zero_point, 0, 127 if reduce_range else 255)
        grid = self._contained(grid, (0, 255)) if reduce_range else grid
        used = scale if self.quantize_dynamic_rule == "inverted" else grid.scale
        codes = quantize(self.quantize_dynamic_rule, x, used, grid.zero_point, grid.qmin, grid.qmax, None)
        return codes, scale, grid

    def linear_dynamic(
        self, x: ArrayLike, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, reduce_range: bool = False
    ) -> np.ndarray:
        """The float32 output [rows, outputs] of a dynamic linear layer (DIA-DYNAMIC).

        ``x``: float32 [rows, inputs]; ``w_q``: codes [outputs, inputs]; ``bias``: float32 (outputs,) or None.
        Raises as ``quantize_dynamic`` and ``integer.accumulate`` do, UnsupportedError when an accumulator could
        overflow.
        """
        codes, scale, grid = self.quantize_dynamic(x, reduce_range=reduce_range)
        bias = np.zeros(len(w_q), np.float32) if bias is None else affine.float32_array(bias, "bias")
        self.check_overflow(grid, np.asarray(w_q), w, np.zeros(len(w_q), np.int32))
        accumulator = self.accumulate(codes, grid.zero_point, w_q, w.zero_point)
        return self.real(accumulator, bias, scale, w.scale)

    def _contained(self, grid: QParams, whole: tuple[int, int]) -> QParams:
        codes = (whole if self.reduced_rule == "container" else (grid.qmin, grid.qmax))
        return QParams(grid.scale, grid.zero_point, *codes)
