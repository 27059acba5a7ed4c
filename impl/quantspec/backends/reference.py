"""Our own arithmetic behind the backend protocol, in any dialect: what the other backends are compared with."""


import numpy as np

from quantspec.numerics import affine, integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import operations
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import dialect
from quantspec.version import __version__

from . import protocol
from .protocol import CodesOnGrids, Pair, Scales, ZeroPoints


class ReferenceBackend(
    protocol.OffersQuantize, protocol.OffersDequantize, protocol.OffersQParams, protocol.OffersLinear,
    protocol.OffersLinearDynamic, protocol.OffersConv2d, protocol.OffersAdd, protocol.OffersMul, protocol.OffersConcat,
    protocol.OffersMaxPool2d, protocol.OffersAvgPool2d, protocol.OffersAdaptiveAvgPool2d, protocol.OffersFoldBatchNorm,
):  # fmt: skip
    """quantspec by the rules of one dialect of chapter 10, or by rules that have no name among them."""

    def __init__(self, dialect_or_name: str | Dialect) -> None:
        self._rules = dialect(dialect_or_name) if isinstance(dialect_or_name, str) else dialect_or_name
        self.dialect = self._rules.name
        self.name, self.version = f"quantspec-{self.dialect}", __version__

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        return self._rules.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)

    def dequantize(
        self, q: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, axis: int | None = None
    ) -> np.ndarray:
        return np.asarray(affine.dequantize(q, scale, zero_point, axis=axis))

    def qparams(
        self, minimum: np.float32, maximum: np.float32, *, qmin: int, qmax: int, symmetric: bool
    ) -> tuple[np.float32, int]:
        grid = self._rules.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=symmetric)
        return np.float32(grid.scale), int(grid.zero_point)

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        return self._rules.linear(x_q, x, w_q, w, bias, y, relu=relu)

    def linear_dynamic(
        self, x: np.ndarray, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, relu: bool = False
    ) -> np.ndarray:
        y = self._rules.linear_dynamic(x, w_q, w, bias)
        return np.maximum(y, np.float32(0)) if relu else y

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        places = {"stride": stride, "padding": padding, "dilation": dilation}
        return self._rules.conv2d(x_q, x, w_q, w, bias, y, **places, groups=groups, relu=relu)

    def add(
        self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, *, relu: bool = False
    ) -> np.ndarray:
        return operations.add(self._rules, a_q, a, b_q, b, y, relu=relu)

    def mul(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
        return operations.mul(self._rules, a_q, a, b_q, b, y)

    def concat(self, parts: CodesOnGrids, y: QParams, *, axis: int) -> np.ndarray:
        return operations.concat(self._rules, parts, y, axis=axis)

    def max_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> np.ndarray:
        return integer.max_pool2d(q, kernel=kernel, stride=stride, padding=padding, dilation=dilation)

    def avg_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), count_include_pad: bool = True,
    ) -> np.ndarray:
        return operations.avg_pool2d(
            self._rules, q, grid, kernel=kernel, stride=stride, padding=padding, count_include_pad=count_include_pad
        )

    def adaptive_avg_pool2d(self, q: np.ndarray, grid: QParams, *, size: Pair) -> np.ndarray:
        return operations.adaptive_avg_pool2d(self._rules, q, grid, size=size)

    def fold_batch_norm(
        self, weight: np.ndarray, bias: np.ndarray | None, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
        var: np.ndarray, eps: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        return operations.fold_batch_norm(self._rules, weight, bias, gamma, beta, mean, var, eps)
