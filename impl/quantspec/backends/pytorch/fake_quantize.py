"""torch's fake quantization, and the decomposed operators that its export workflow writes, behind the backend
protocol."""

from typing import Any, cast

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401 - registers torch.ops.quantized_decomposed

from quantspec.backends import protocol
from quantspec.backends.protocol import NotOffered, Scales, ZeroPoints, threads

from .quantized import silent
from .reproduce import torch_script

DECOMPOSED = torch.ops.quantized_decomposed


class TorchFakeQuantize(protocol.OffersQuantize, protocol.Reproduces):
    """``torch.fake_quantize_per_tensor_affine`` and ``per_channel``: they quantize and dequantize at once.

    The code is read off the output, which is scale * (code - zero_point) rounded once. Where that does not tell codes
    apart, it is not offered.
    """

    name, version, dialect = "torch-fake-quantize", torch.__version__, "torch-fake-quantize"

    def __init__(self) -> None:
        torch.set_num_threads(threads())

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        real = torch.from_numpy(np.array(x, np.float32))
        if axis is None:
            y = torch.fake_quantize_per_tensor_affine(real, float(scale), int(zero_point), qmin, qmax)
            steps, points = np.asarray(scale, np.float32).astype(np.float64), np.asarray(zero_point, np.int64)
        else:
            scales, channel_points = channel_arrays(scale, zero_point, real.shape[axis])
            grid = torch.from_numpy(scales), torch.from_numpy(channel_points)
            y = torch.fake_quantize_per_channel_affine(real, *grid, axis, qmin, qmax)
            shape = [-1 if i == axis % real.ndim else 1 for i in range(real.ndim)]
            steps, points = scales.astype(np.float64).reshape(shape), channel_points.reshape(shape)
        with np.errstate(all="ignore"):
            codes: np.ndarray = np.rint(y.numpy() / steps) + points
        if not ((codes >= qmin) & (codes <= qmax)).all():
            raise NotOffered("codes cannot be read from values that are not multiples of the scale")
        return codes.astype(np.uint8 if qmin >= 0 else np.int8)

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call; it prints the values, not the codes that are read off them."""
        return torch_script(self, operation, arguments, options)


class TorchDecomposed(
    protocol.OffersQuantize, protocol.OffersDequantize, protocol.OffersQParams, protocol.Reproduces
):
    """``torch.ops.quantized_decomposed``: quantize, dequantize and choosing qparams on plain tensors, in Python on
    torch operators."""

    name, version, dialect = "torch-decomposed", torch.__version__, "torch-fake-quantize"

    def __init__(self) -> None:
        torch.set_num_threads(threads())

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        real, dtype = torch.from_numpy(np.array(x, np.float32)), torch.uint8 if qmin >= 0 else torch.int8
        if axis is None:
            codes = DECOMPOSED.quantize_per_tensor(real, float(scale), int(zero_point), qmin, qmax, dtype)
            return cast(np.ndarray, codes.numpy())
        scales, points = (torch.from_numpy(v) for v in channel_arrays(scale, zero_point, real.shape[axis]))
        codes = DECOMPOSED.quantize_per_channel(real, scales, points, axis, qmin, qmax, dtype)
        return np.ascontiguousarray(codes.numpy())

    def dequantize(
        self, q: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, axis: int | None = None
    ) -> np.ndarray:
        codes = torch.from_numpy(np.array(q))
        ends = (0, 255) if codes.dtype == torch.uint8 else (-128, 127)
        if axis is None:
            real = DECOMPOSED.dequantize_per_tensor(codes, float(scale), int(zero_point), *ends, codes.dtype)
            return cast(np.ndarray, real.numpy())
        scales, points = (torch.from_numpy(v) for v in channel_arrays(scale, zero_point, codes.shape[axis]))
        real = DECOMPOSED.dequantize_per_channel(codes, scales, points, axis, *ends, codes.dtype)
        return np.ascontiguousarray(real.numpy())

    def qparams(
        self, minimum: np.float32, maximum: np.float32, *, qmin: int, qmax: int, symmetric: bool
    ) -> tuple[np.float32, int]:
        x, dtype = torch.tensor([float(minimum), float(maximum)]), torch.uint8 if qmin >= 0 else torch.int8
        with silent():
            choose = DECOMPOSED.choose_qparams_symmetric if symmetric else DECOMPOSED.choose_qparams
            scale, zero_point = choose.tensor(x, qmin, qmax, 2.0**-23, dtype)
        return np.float32(scale.item()), int(zero_point.item())

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call; see ``reproduce.script``."""
        return torch_script(self, operation, arguments, options, first=("import torch.ao.quantization.fx._decomposed",))


def channel_arrays(scale: Scales, zero_point: ZeroPoints, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scales and int32 zero points of so many channels."""
    return np.array(scale, np.float32), np.broadcast_to(np.asarray(zero_point, np.int32), (channels,)).copy()
