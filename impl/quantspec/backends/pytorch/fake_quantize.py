"""torch's fake quantization, and the decomposed operators that its export workflow writes, behind the backend protocol."""

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # noqa: F401 - registers torch.ops.quantized_decomposed

from quantspec.backends.protocol import NotOffered
from quantspec.backends.worker import threads

from .quantized import silent
from .reproduce import torch_script

DECOMPOSED = torch.ops.quantized_decomposed


class TorchFakeQuantize:
    """``torch.fake_quantize_per_tensor_affine`` and ``per_channel``: they quantize and dequantize at once.

    The code is read off the output, which is scale * (code - zero_point) rounded once. Where that does not tell codes apart, it is not offered.
    """

    name, version, dialect = "torch-fake-quantize", torch.__version__, "torch-fake-quantize"

    def __init__(self):
        torch.set_num_threads(threads())

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        x = torch.from_numpy(np.array(x, np.float32))
        if axis is None:
            y = torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero_point), qmin, qmax)
            scales, points = np.float64(np.float32(scale)), np.int64(zero_point)
        else:
            scales, points = channel_arrays(scale, zero_point, x.shape[axis])
            y = torch.fake_quantize_per_channel_affine(x, torch.from_numpy(scales), torch.from_numpy(points), axis, qmin, qmax)
            shape = [-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]
            scales, points = scales.astype(np.float64).reshape(shape), points.reshape(shape)
        with np.errstate(all="ignore"):
            codes = np.rint(y.numpy() / scales) + points
        if not ((codes >= qmin) & (codes <= qmax)).all():
            raise NotOffered("reading codes off values that are no multiples of the scale")
        return codes.astype(np.uint8 if qmin >= 0 else np.int8)

    def reproduction(self, operation, /, *arguments, **options):
        """The script of a call; it prints the values, not the codes that are read off them."""
        return torch_script(self, operation, arguments, options)


class TorchDecomposed:
    """``torch.ops.quantized_decomposed``: quantize, dequantize and choosing qparams on plain tensors, in Python on torch operators."""

    name, version, dialect = "torch-decomposed", torch.__version__, "torch-fake-quantize"

    def __init__(self):
        torch.set_num_threads(threads())

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        x, dtype = torch.from_numpy(np.array(x, np.float32)), torch.uint8 if qmin >= 0 else torch.int8
        if axis is None:
            return DECOMPOSED.quantize_per_tensor(x, float(scale), int(zero_point), qmin, qmax, dtype).numpy()
        scales, points = (torch.from_numpy(v) for v in channel_arrays(scale, zero_point, x.shape[axis]))
        return np.ascontiguousarray(DECOMPOSED.quantize_per_channel(x, scales, points, axis, qmin, qmax, dtype).numpy())

    def dequantize(self, q, scale, zero_point, *, axis=None):
        q = torch.from_numpy(np.array(q, order="C"))
        ends = (0, 255) if q.dtype == torch.uint8 else (-128, 127)
        if axis is None:
            return DECOMPOSED.dequantize_per_tensor(q, float(scale), int(zero_point), *ends, q.dtype).numpy()
        scales, points = (torch.from_numpy(v) for v in channel_arrays(scale, zero_point, q.shape[axis]))
        return np.ascontiguousarray(DECOMPOSED.dequantize_per_channel(q, scales, points, axis, *ends, q.dtype).numpy())

    def qparams(self, minimum, maximum, *, qmin, qmax, symmetric):
        x, dtype = torch.tensor([float(minimum), float(maximum)]), torch.uint8 if qmin >= 0 else torch.int8
        with silent():
            choose = DECOMPOSED.choose_qparams_symmetric if symmetric else DECOMPOSED.choose_qparams
            scale, zero_point = choose.tensor(x, qmin, qmax, 2.0**-23, dtype)
        return np.float32(scale.item()), int(zero_point.item())

    def reproduction(self, operation, /, *arguments, **options):
        """The script of a call; see ``written.script``."""
        return torch_script(self, operation, arguments, options, first=("import torch.ao.quantization.fx._decomposed",))


def channel_arrays(scale, zero_point, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scales and int32 zero points of so many channels."""
    return np.array(scale, np.float32), np.broadcast_to(np.asarray(zero_point, np.int32), (channels,)).copy()
