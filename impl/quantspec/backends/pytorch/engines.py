"""PyTorch's quantized engines behind the backend protocol: its operators on quantized tensors, one at a time."""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from quantspec.backends import protocol
from quantspec.backends.cache import Cache
from quantspec.backends.protocol import (
    CodesOnGrids,
    NotOffered,
    Pair,
    Scales,
    ZeroPoints,
    has_channels_last,
    per_tensor,
    threads,
    whole_byte,
)
from quantspec.numerics.affine import QParams

from . import quantized
from .reproduce import torch_script

OPS = torch.ops.quantized
Kernel: TypeAlias = Callable[..., Any]  # an operator of torch, which has no types


class TorchEngine(
    protocol.OffersQuantize, protocol.OffersDequantize, protocol.OffersQParams, protocol.OffersLinear,
    protocol.OffersLinearDynamic, protocol.OffersConv2d, protocol.OffersAdd, protocol.OffersMul, protocol.OffersConcat,
    protocol.OffersMaxPool2d, protocol.OffersAvgPool2d, protocol.OffersAdaptiveAvgPool2d, protocol.OffersFoldBatchNorm,
    protocol.Keeps, protocol.Reproduces,
):  # fmt: skip
    """One of torch's engines: x86, fbgemm, onednn or qnnpack. Raises NotOffered when this build of torch lacks it.

    Which order of rounding ``quantize_per_tensor`` has, and whether the CPU adds products in pairs, is found out at
    start-up and is part of the dialect.
    """

    def __init__(self, engine: str) -> None:
        if reason := quantized.why_not_offered(engine):
            raise NotOffered(reason)
        self._engine = engine
        self.name, self.version = f"torch-{engine}", torch.__version__
        self._cache = Cache()
        torch.set_num_threads(threads())
        self.dialect = quantized.dialects_by_operation(engine)

    def keep(self) -> None:
        """Packed weights are kept from here on: modules pack them once, and use them for every call."""
        self._cache = Cache(enabled=True)

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        dtype = torch_dtype(qmin, qmax)
        with quantized.selected(self._engine):
            real = torch.from_numpy(np.array(x, np.float32))
            if axis is None:
                return codes_of(torch.quantize_per_tensor(real, float(scale), int(zero_point), dtype))
            scales, points = per_channel(scale, zero_point, real.shape[axis])
            return codes_of(torch.quantize_per_channel(real, scales, points, axis, dtype))

    def dequantize(
        self, q: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, axis: int | None = None
    ) -> np.ndarray:
        with quantized.selected(self._engine):
            if axis is None:
                return tensor(q, float(scale), int(zero_point)).dequantize().numpy()
            scales, points = per_channel(scale, zero_point, q.shape[axis])
            codes = torch._make_per_channel_quantized_tensor(torch.from_numpy(q.copy()), scales, points, axis)
            return codes.dequantize().numpy()

    def qparams(
        self, minimum: np.float32, maximum: np.float32, *, qmin: int, qmax: int, symmetric: bool
    ) -> tuple[np.float32, int]:
        """What torch's min-max observer makes of a tensor with these ends."""
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
        with quantized.selected(self._engine):
            # Given the ends it would have anyhow, the observer takes another symmetric zero point.
            ends = {} if qmax - qmin == 255 else {"quant_min": qmin, "quant_max": qmax}
            dtype = torch.qint8 if qmin < 0 else torch.quint8
            observer = torch.ao.quantization.MinMaxObserver(dtype=dtype, qscheme=scheme, eps=2.0**-23, **ends)
            observer(torch.tensor([float(minimum), float(maximum)]))
            scale, zero_point = observer.calculate_qparams()
        return np.float32(scale.item()), int(zero_point)

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        unsigned(x, y)
        with quantized.selected(self._engine):
            packed = self._packed(OPS.linear_prepack, w_q, w, bias)
            kernel = OPS.linear_relu if relu else OPS.linear
            return codes_of(kernel(activation(x_q, x), packed, float(y.scale), int(y.zero_point)))

    def linear_dynamic(
        self, x: np.ndarray, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, relu: bool = False
    ) -> np.ndarray:
        with quantized.selected(self._engine):
            packed = self._packed(OPS.linear_prepack, w_q, w, bias)
            kernel = OPS.linear_relu_dynamic if relu else OPS.linear_dynamic
            return cast(np.ndarray, kernel(torch.from_numpy(np.array(x)), packed, False).numpy())

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        unsigned(x, y)
        with quantized.selected(self._engine):
            places = list(stride), list(padding), list(dilation), groups
            packed = self._packed(OPS.conv2d_prepack, w_q, w, bias, *places)
            kernel = OPS.conv2d_relu if relu else OPS.conv2d
            # Channels last is the only format of the kernels; a plain tensor is copied into it, and the result comes
            # back as its logical shape.
            codes = codes_of(kernel(activation(x_q, x), packed, float(y.scale), int(y.zero_point)))
            return np.ascontiguousarray(codes)

    def _packed(self, prepack: Kernel, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *places: object) -> Any:
        """Weights and bias as an object that the kernels take."""
        given = None if bias is None else torch.from_numpy(bias.copy())
        key = prepack, w_q, w.scale, w.zero_point, bias, *map(str, places)
        return self._cache(key, lambda: prepack(weight_tensor(w_q, w), given, *places))

    def add(
        self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, *, relu: bool = False
    ) -> np.ndarray:
        kernel = OPS.add_relu if relu else OPS.add
        return self._pair(kernel, a_q, a, b_q, b, y)

    def mul(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
        return self._pair(OPS.mul, a_q, a, b_q, b, y)

    def _pair(
        self, kernel: Kernel, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams
    ) -> np.ndarray:
        if not a.dtype == b.dtype == y.dtype:
            raise NotOffered("the kernel takes one type of codes, got signed and unsigned ones")
        with quantized.selected(self._engine):
            return codes_of(kernel(activation(a_q, a), activation(b_q, b), float(y.scale), int(y.zero_point)))

    def concat(self, parts: CodesOnGrids, y: QParams, *, axis: int) -> np.ndarray:
        if any(grid.dtype != y.dtype for _, grid in parts):
            raise NotOffered("the kernel takes one type of codes, got signed and unsigned ones")
        with quantized.selected(self._engine):
            tensors = [activation(q, grid) for q, grid in parts]
            return codes_of(OPS.cat(tensors, axis, float(y.scale), int(y.zero_point)))

    def max_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> np.ndarray:
        with quantized.selected(self._engine):
            pooled = torch.nn.functional.max_pool2d(activation(q, grid), kernel, stride or kernel, padding, dilation)
            return np.ascontiguousarray(codes_of(pooled))

    def avg_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), count_include_pad: bool = True,
    ) -> np.ndarray:
        with quantized.selected(self._engine):
            windows = kernel, stride or kernel, padding
            average = torch.nn.functional.avg_pool2d
            pooled = average(activation(q, grid), *windows, count_include_pad=count_include_pad)
            return np.ascontiguousarray(codes_of(pooled))

    def adaptive_avg_pool2d(self, q: np.ndarray, grid: QParams, *, size: Pair) -> np.ndarray:
        with quantized.selected(self._engine):
            return np.ascontiguousarray(codes_of(torch.nn.functional.adaptive_avg_pool2d(activation(q, grid), size)))

    def fold_batch_norm(
        self, weight: np.ndarray, bias: np.ndarray | None, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
        var: np.ndarray, eps: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        given = [None if v is None else torch.from_numpy(np.array(v, np.float32)) for v in (weight, bias, mean, var)]
        scale, shift = (torch.from_numpy(np.array(v, np.float32)) for v in (gamma, beta))
        fusion = torch.nn.utils.fusion
        with torch.no_grad():
            fold: Kernel = fusion.fuse_conv_bn_weights if np.ndim(weight) > 2 else fusion.fuse_linear_bn_weights
            folded, moved = fold(*given, eps, scale, shift)
        return folded.numpy(), moved.numpy()

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call. These three are Python on torch's functions, and are what is called."""
        modules = {
            torch.ao.quantization: {"MinMaxObserver": "torch.ao.quantization.MinMaxObserver"},
            torch.nn.utils.fusion: {
                name: f"torch.nn.utils.fusion.{name}" for name in ("fuse_conv_bn_weights", "fuse_linear_bn_weights")
            },
        }
        first = (f"torch.backends.quantized.engine = {self._engine!r}",)
        return torch_script(self, operation, arguments, options, first=first, modules=modules)


def torch_dtype(qmin: int, qmax: int) -> torch.dtype:
    """The quantized dtype of a whole byte; NotOffered for fewer bits, which the kernels do not saturate to."""
    if (qmin, qmax) not in ((0, 255), (-128, 127)):
        raise NotOffered(f"codes from {qmin} to {qmax}: quantized tensors saturate at the ends of a byte only")
    return torch.quint8 if qmin == 0 else torch.qint8


def unsigned(x: QParams, y: QParams) -> None:
    """Raises NotOffered unless inputs and outputs are uint8: the packed kernels have no other."""
    if x.dtype != np.uint8 or y.dtype != np.uint8:
        raise NotOffered("signed activations: the packed kernels take unsigned ones only")
    whole_byte(y)


def codes_of(tensor: torch.Tensor) -> np.ndarray:
    """The codes of a quantized tensor, in the order of memory that it has."""
    return tensor.int_repr().numpy()


def tensor(q: np.ndarray, scale: float, zero_point: int) -> torch.Tensor:
    """A quantized tensor with these codes and one scale, with channels last in memory where the codes have them so."""
    codes = torch.from_numpy(np.array(q, order="C"))
    quantized = torch._make_per_tensor_quantized_tensor(codes, scale, zero_point)
    return quantized.contiguous(memory_format=torch.channels_last) if has_channels_last(q) else quantized


def activation(q: np.ndarray, grid: QParams) -> torch.Tensor:
    """A quantized tensor with one scale; NotOffered for one a channel and for grids of fewer bits."""
    per_tensor(grid, "activation")
    return tensor(q, float(grid.scale), int(grid.zero_point))


def weight_tensor(w_q: np.ndarray, w: QParams) -> torch.Tensor:
    """A quantized weight, with one scale or one an output."""
    if w.axis is None:
        return tensor(w_q, float(w.scale), int(w.zero_point))
    scales, points = per_channel(w.scale, w.zero_point, len(w_q))
    codes = torch.from_numpy(np.array(w_q, order="C"))
    return torch._make_per_channel_quantized_tensor(codes, scales, points, w.axis)


def per_channel(scale: Scales, zero_point: ZeroPoints, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (float64, as torch keeps them) and zero points (int64) of so many channels."""
    return (
        torch.from_numpy(np.array(scale, np.float64)),
        torch.from_numpy(np.broadcast_to(np.asarray(zero_point, np.int64), (channels,)).copy()),
    )
