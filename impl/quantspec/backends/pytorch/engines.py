"""PyTorch's quantized engines behind the backend protocol: its operators on quantized tensors, one at a time."""

import numpy as np
import torch

from quantspec.backends.cache import Kept
from quantspec.backends.protocol import NotOffered, per_tensor, whole_byte
from quantspec.backends.worker import threads
from quantspec.numerics.affine import QParams

from . import quantized
from .reproduce import torch_script

OPS = torch.ops.quantized


class TorchEngine:
    """One of torch's engines: x86, fbgemm, onednn or qnnpack. Raises NotOffered when this build of torch lacks it.

    Which order of rounding ``quantize_per_tensor`` has, and whether the CPU adds products in pairs, is found out at start-up and is part of the dialect.
    """

    def __init__(self, engine: str):
        if reason := quantized.why_not_offered(engine):
            raise NotOffered(reason)
        self._engine = engine
        self.name, self.version = f"torch-{engine}", torch.__version__
        self._kept: Kept = Kept()
        torch.set_num_threads(threads())
        self.dialect = quantized.dialects_by_operation(engine)

    def keep(self):
        """Packed weights are kept from here on: modules pack them once, and use them for every call."""
        self._kept = Kept(keeps=True)

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        dtype = torch_dtype(qmin, qmax)
        with quantized.selected(self._engine):
            x = torch.from_numpy(np.array(x, np.float32))
            if axis is None:
                return torch.quantize_per_tensor(x, float(scale), int(zero_point), dtype).int_repr().numpy()
            scales, points = per_channel(scale, zero_point, x.shape[axis])
            return torch.quantize_per_channel(x, scales, points, axis, dtype).int_repr().numpy()

    def dequantize(self, q, scale, zero_point, *, axis=None):
        with quantized.selected(self._engine):
            if axis is None:
                return tensor(q, float(scale), int(zero_point)).dequantize().numpy()
            scales, points = per_channel(scale, zero_point, q.shape[axis])
            return torch._make_per_channel_quantized_tensor(torch.from_numpy(q.copy()), scales, points, axis).dequantize().numpy()

    def qparams(self, minimum, maximum, *, qmin, qmax, symmetric):
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

    def linear(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, relu=False):
        unsigned(x, y)
        with quantized.selected(self._engine):
            packed = self._packed(OPS.linear_prepack, w_q, w, bias)
            kernel = OPS.linear_relu if relu else OPS.linear
            return kernel(activation(x_q, x), packed, float(y.scale), int(y.zero_point)).int_repr().numpy()

    def linear_dynamic(self, x, w_q, w: QParams, bias, *, relu=False):
        with quantized.selected(self._engine):
            packed = self._packed(OPS.linear_prepack, w_q, w, bias)
            kernel = OPS.linear_relu_dynamic if relu else OPS.linear_dynamic
            return kernel(torch.from_numpy(x.copy()), packed, False).numpy()

    def conv2d(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, relu=False):
        unsigned(x, y)
        with quantized.selected(self._engine):
            packed = self._packed(OPS.conv2d_prepack, w_q, w, bias, list(stride), list(padding), list(dilation), groups)
            kernel = OPS.conv2d_relu if relu else OPS.conv2d
            # Channels last is the only format of the kernels; a plain tensor is copied into it, and the result comes back as its logical shape.
            return np.ascontiguousarray(kernel(activation(x_q, x), packed, float(y.scale), int(y.zero_point)).int_repr().numpy())

    def _packed(self, prepack, w_q, w: QParams, bias, *places):
        given = None if bias is None else torch.from_numpy(bias.copy())
        return self._kept((prepack, w_q, w.scale, bias, *map(str, places)), lambda: prepack(weight_tensor(w_q, w), given, *places))

    def add(self, a_q, a: QParams, b_q, b: QParams, y: QParams, *, relu=False):
        kernel = OPS.add_relu if relu else OPS.add
        return self._pair(kernel, a_q, a, b_q, b, y)

    def mul(self, a_q, a: QParams, b_q, b: QParams, y: QParams):
        return self._pair(OPS.mul, a_q, a, b_q, b, y)

    def _pair(self, kernel, a_q, a, b_q, b, y):
        if not a.dtype == b.dtype == y.dtype:
            raise NotOffered("signed and unsigned codes together")
        with quantized.selected(self._engine):
            return kernel(activation(a_q, a), activation(b_q, b), float(y.scale), int(y.zero_point)).int_repr().numpy()

    def concat(self, parts, y: QParams, *, axis):
        if any(grid.dtype != y.dtype for _, grid in parts):
            raise NotOffered("signed and unsigned codes together")
        with quantized.selected(self._engine):
            return OPS.cat([activation(q, grid) for q, grid in parts], axis, float(y.scale), int(y.zero_point)).int_repr().numpy()

    def max_pool2d(self, q, grid: QParams, *, kernel, stride=None, padding=(0, 0), dilation=(1, 1)):
        with quantized.selected(self._engine):
            pooled = torch.nn.functional.max_pool2d(activation(q, grid), kernel, stride or kernel, padding, dilation)
            return np.ascontiguousarray(pooled.int_repr().numpy())

    def avg_pool2d(self, q, grid: QParams, *, kernel, stride=None, padding=(0, 0), count_include_pad=True):
        with quantized.selected(self._engine):
            pooled = torch.nn.functional.avg_pool2d(activation(q, grid), kernel, stride or kernel, padding, count_include_pad=count_include_pad)
            return np.ascontiguousarray(pooled.int_repr().numpy())

    def adaptive_avg_pool2d(self, q, grid: QParams, *, size):
        with quantized.selected(self._engine):
            return np.ascontiguousarray(torch.nn.functional.adaptive_avg_pool2d(activation(q, grid), size).int_repr().numpy())

    def fold_batch_norm(self, weight, bias, gamma, beta, mean, var, eps):
        given = [None if v is None else torch.from_numpy(np.array(v, np.float32)) for v in (weight, bias, mean, var)]
        scale, shift = (torch.from_numpy(np.array(v, np.float32)) for v in (gamma, beta))
        with torch.no_grad():
            fold = torch.nn.utils.fusion.fuse_conv_bn_weights if np.ndim(weight) > 2 else torch.nn.utils.fusion.fuse_linear_bn_weights
            folded, moved = fold(*given, eps, scale, shift)
        return folded.numpy(), moved.numpy()

    def reproduction(self, operation, /, *arguments, **options):
        """The script of a call. These three are Python on torch's functions, and are what is called."""
        modules = {
            torch.ao.quantization: {"MinMaxObserver": "torch.ao.quantization.MinMaxObserver"},
            torch.nn.utils.fusion: {name: f"torch.nn.utils.fusion.{name}" for name in ("fuse_conv_bn_weights", "fuse_linear_bn_weights")},
        }
        first = (f"torch.backends.quantized.engine = {self._engine!r}",)
        return torch_script(self, operation, arguments, options, first=first, modules=modules)


def torch_dtype(qmin: int, qmax: int) -> torch.dtype:
    """The quantized dtype of a whole byte; NotOffered for fewer bits, which the kernels do not saturate to."""
    if (qmin, qmax) not in ((0, 255), (-128, 127)):
        raise NotOffered(f"codes from {qmin} to {qmax}: quantized tensors saturate at the ends of their byte only")
    return torch.quint8 if qmin == 0 else torch.qint8


def unsigned(x: QParams, y: QParams) -> None:
    """Raises NotOffered unless inputs and outputs are uint8: the packed kernels have no other."""
    if x.dtype != np.uint8 or y.dtype != np.uint8:
        raise NotOffered("signed activations")
    whole_byte(y)


def tensor(q, scale: float, zero_point: int) -> torch.Tensor:
    """A quantized tensor with these codes and one scale."""
    return torch._make_per_tensor_quantized_tensor(torch.from_numpy(np.array(q, order="C")), scale, zero_point)


def activation(q, grid: QParams) -> torch.Tensor:
    """A quantized tensor with one scale; NotOffered for one a channel and for grids of fewer bits."""
    per_tensor(grid, "activation")
    return tensor(q, float(grid.scale), int(grid.zero_point))


def weight_tensor(w_q, w: QParams) -> torch.Tensor:
    """A quantized weight, with one scale or one an output."""
    if w.axis is None:
        return tensor(w_q, float(w.scale), int(w.zero_point))
    scales, points = per_channel(w.scale, w.zero_point, len(w_q))
    return torch._make_per_channel_quantized_tensor(torch.from_numpy(np.array(w_q, order="C")), scales, points, w.axis)


def per_channel(scale, zero_point, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (float64, as torch keeps them) and zero points (int64) of so many channels."""
    return (
        torch.from_numpy(np.array(scale, np.float64)),
        torch.from_numpy(np.broadcast_to(np.asarray(zero_point, np.int64), (channels,)).copy()),
    )
