"""OpenVINO's CPU plugin behind the backend protocol: models of one layer, compiled for every call."""

import sys

import numpy as np
import openvino
from openvino import opset13 as ops

from quantspec.numerics.affine import QParams

from .protocol import NotOffered, per_tensor, whole_byte
from .reproduce import literal, script
from .worker import threads

TYPES = {np.dtype(np.uint8): openvino.Type.u8, np.dtype(np.int8): openvino.Type.i8, np.dtype(np.float32): openvino.Type.f32}


class OpenVINO:
    """FakeQuantize as quantize; layers as OpenVINO's own tools write them, real arithmetic between FakeQuantize and dequantized codes.

    The plugin turns such a layer into an int8 kernel or does not. What was executed is read from the compiled model, and a layer that was computed in
    floats is not offered.
    """

    name, version = "openvino", openvino.__version__.partition("-")[0]  # behind it stand a build and a branch
    dialect = "openvino"

    def __init__(self):
        self._core = openvino.Core()
        self._options = {"INFERENCE_NUM_THREADS": threads(), "INFERENCE_PRECISION_HINT": "f32"}

    def _run(self, output, parameters: list, inputs: list[np.ndarray], kernel: str = "") -> np.ndarray:
        compiled = self._core.compile_model(openvino.Model([output], parameters), "CPU", self._options)
        if kernel:
            self._hold_to_codes(compiled, kernel)
        return np.array(compiled([np.ascontiguousarray(array) for array in inputs])[0])

    def _hold_to_codes(self, compiled, kernel: str) -> None:
        """Raises NotOffered unless a layer was compiled to a kernel on codes."""
        executed = {node.get_rt_info()["layerType"].value: node.get_rt_info()["runtimePrecision"].value for node in compiled.get_runtime_model().get_ops()}
        if executed.get(kernel) not in ("u8", "i8"):
            raise NotOffered(f"an int8 kernel: the plugin executes {executed}")

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        x = np.asarray(x, np.float32)
        source = ops.parameter(list(x.shape), openvino.Type.f32)
        shape = [1] * x.ndim
        if axis is not None:
            shape[axis] = x.shape[axis]
        scale, zero_point = (np.broadcast_to(v, shape if np.ndim(v) == 0 else np.shape(v)).reshape(shape) for v in (np.float32(scale), np.asarray(zero_point)))
        return self._run(fake_quantized(source, scale, zero_point, qmin, qmax), [source], [x])

    def linear(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, relu=False):
        per_tensor(x, "x"), per_tensor(y, "y"), whole_byte(y)
        source, real = dequantized(x_q, x)
        layer = ops.matmul(real, weights(w_q, w), False, True)
        return self._run(finished(layer, bias, y, relu, (1, -1)), [source], [x_q], "FullyConnected")

    def conv2d(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, relu=False):
        per_tensor(x, "x"), per_tensor(y, "y"), whole_byte(y)
        source, real = dequantized(x_q, x)
        places = list(stride), list(padding), list(padding), list(dilation)
        if groups == 1:
            layer = ops.convolution(real, weights(w_q, w), *places)
        else:
            split = ops.constant(np.array([groups, len(w_q) // groups, *w_q.shape[1:]], np.int64))
            layer = ops.group_convolution(real, ops.reshape(weights(w_q, w), split, False), *places)
        return self._run(finished(layer, bias, y, relu, (1, -1, 1, 1)), [source], [x_q], "Convolution")

    def max_pool2d(self, q, grid: QParams, *, kernel, stride=None, padding=(0, 0), dilation=(1, 1)):
        source = ops.parameter(list(q.shape), TYPES[q.dtype])
        pooled = ops.max_pool(source, list(stride or kernel), list(dilation), list(padding), list(padding), list(kernel))
        return self._run(pooled.output(0), [source], [q])

    def reproduction(self, operation, /, *arguments, **options):
        """The script of a call, which is not compiled here and so is not held to be on codes; see ``written.script``."""
        attributes = {"_core": "openvino.Core()", "_hold_to_codes": lambda compiled, kernel: None}
        first = ["import openvino", "from openvino import opset13 as ops"]
        modules = {sys.modules[__name__]: {"ops": "ops", "openvino": "openvino"}}
        return script(self, operation, arguments, options, first=first, modules=modules, attributes=attributes)


@literal.register
def _(value: openvino.Type):
    return (f"openvino.Type.{value.get_type_name()}",)


def fake_quantized(real, scale, zero_point, qmin: int, qmax: int):
    """Codes of a real node: FakeQuantize onto the codes themselves, then a conversion that is exact."""
    low, high = ((np.float32(end) - np.asarray(zero_point).astype(np.float32)) * np.asarray(scale, np.float32) for end in (qmin, qmax))
    codes = ops.fake_quantize(real, ops.constant(low), ops.constant(high), ops.constant(np.float32(qmin)), ops.constant(np.float32(qmax)), qmax - qmin + 1)
    return ops.convert(codes, "u8" if qmin >= 0 else "i8")


def dequantized(q: np.ndarray, grid: QParams):
    """(parameter of codes, node of the real values that they stand for)."""
    source = ops.parameter(list(q.shape), TYPES[q.dtype])
    centred = ops.subtract(ops.convert(source, "f32"), ops.constant(np.float32(grid.zero_point)))
    return source, ops.multiply(centred, ops.constant(grid.scale))


def weights(w_q: np.ndarray, w: QParams):
    """The real values of constant codes; symmetric grids only, as the plugin's int8 kernels have no others."""
    if np.any(w.zero_point):
        raise NotOffered("weights whose zero point is not 0")
    scale = w.scale if w.axis is None else w.scale.reshape(-1, *[1] * (w_q.ndim - 1))
    return ops.multiply(ops.convert(ops.constant(np.array(w_q, order="C")), "f32"), ops.constant(scale))


def finished(layer, bias, y: QParams, relu: bool, shape: tuple[int, ...]):
    """A layer with its bias, ReLU and the quantization of its output."""
    if bias is not None:
        layer = ops.add(layer, ops.constant(np.reshape(bias, shape)))
    if relu:
        layer = ops.relu(layer)
    return fake_quantized(layer, y.scale, y.zero_point, y.qmin, y.qmax)
