"""OpenVINO's CPU plugin behind the backend protocol: models of one layer, compiled for every call."""

import sys
from typing import Any, TypeAlias

import numpy as np
import openvino
from openvino import opset13 as ops

from quantspec.kernels import cpu
from quantspec.numerics.affine import QParams

from . import protocol
from .protocol import NotOffered, Pair, Scales, ZeroPoints, per_tensor, threads, whole_byte
from .reproduce import Parts, literal, script

TYPES = {
    np.dtype(np.uint8): openvino.Type.u8, np.dtype(np.int8): openvino.Type.i8, np.dtype(np.float32): openvino.Type.f32,
}  # fmt: skip
# The library has no types.
Node: TypeAlias = Any
CompiledModel: TypeAlias = Any


class OpenVINO(
    protocol.OffersQuantize, protocol.OffersLinear, protocol.OffersConv2d, protocol.OffersMaxPool2d, protocol.Reproduces
):
    """FakeQuantize as quantize; layers as OpenVINO's own tools write them, real arithmetic between FakeQuantize and
    dequantized codes.

    The plugin turns such a layer into an int8 kernel or does not. What was executed is read from the compiled model,
    and a layer that was computed in floats is not offered.
    """

    name, version = "openvino", openvino.__version__.partition("-")[0]  # behind it stand a build and a branch

    def __init__(self) -> None:
        self._core = openvino.Core()
        self._options = {"INFERENCE_NUM_THREADS": threads(), "INFERENCE_PRECISION_HINT": "f32"}
        # Asked of the CPU and not of the plugin: copies of this process, in which stories are told, lack the threads
        # that a first call starts.
        self.dialect = "openvino" if cpu.target().dot_lanes else "openvino-int16"

    def _run(self, output: Node, parameters: list[Node], inputs: list[np.ndarray], kernel: str = "") -> np.ndarray:
        compiled = self._core.compile_model(openvino.Model([output], parameters), "CPU", self._options)
        if kernel:
            self._hold_to_codes(compiled, kernel)
        return np.array(compiled([np.ascontiguousarray(array) for array in inputs])[0])

    def _hold_to_codes(self, compiled: CompiledModel, kernel: str) -> None:
        """Raises NotOffered unless a layer was compiled to a kernel on codes."""
        nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
        executed = {information["layerType"].value: information["runtimePrecision"].value for information in nodes}
        if executed.get(kernel) not in ("u8", "i8"):
            raise NotOffered(f"the plugin executes this layer in float: {executed}")

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        x = np.asarray(x, np.float32)
        source = ops.parameter(list(x.shape), openvino.Type.f32)
        shape = [1] * x.ndim
        if axis is not None:
            shape[axis] = x.shape[axis]
        scale, zero_point = (
            np.broadcast_to(v, shape if np.ndim(v) == 0 else np.shape(v)).reshape(shape)
            for v in (np.asarray(scale, np.float32), np.asarray(zero_point))
        )
        return self._run(fake_quantized(source, scale, zero_point, qmin, qmax), [source], [x])

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        per_tensor(x, "x")
        per_tensor(y, "y")
        whole_byte(y)
        source, real = dequantized(x_q, x)
        layer = ops.matmul(real, weights(w_q, w), False, True)
        return self._run(finished(layer, bias, y, relu, (1, -1)), [source], [x_q], "FullyConnected")

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        per_tensor(x, "x")
        per_tensor(y, "y")
        whole_byte(y)
        source, real = dequantized(x_q, x)
        places = list(stride), list(padding), list(padding), list(dilation)
        if groups == 1:
            layer = ops.convolution(real, weights(w_q, w), *places)
        else:
            split = ops.constant(np.array([groups, len(w_q) // groups, *w_q.shape[1:]], np.int64))
            layer = ops.group_convolution(real, ops.reshape(weights(w_q, w), split, False), *places)
        return self._run(finished(layer, bias, y, relu, (1, -1, 1, 1)), [source], [x_q], "Convolution")

    def max_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> np.ndarray:
        source = ops.parameter(list(q.shape), TYPES[q.dtype])
        around = list(padding), list(padding)
        pooled = ops.max_pool(source, list(stride or kernel), list(dilation), *around, list(kernel))
        return self._run(pooled.output(0), [source], [q])

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call, which is not compiled here and so is not held to be on codes; see
        ``reproduce.script``."""
        attributes = {"_core": "openvino.Core()", "_hold_to_codes": lambda compiled, kernel: None}
        first = ["import openvino", "from openvino import opset13 as ops"]
        modules = {sys.modules[__name__]: {"ops": "ops", "openvino": "openvino"}}
        return script(self, operation, arguments, options, first=first, modules=modules, attributes=attributes)


@literal.register(openvino.Type)
def _(value: openvino.Type) -> Parts:
    return (f"openvino.Type.{value.get_type_name()}",)


def fake_quantized(real: Node, scale: Scales, zero_point: ZeroPoints, qmin: int, qmax: int) -> Node:
    """Codes of a real node: FakeQuantize onto the codes themselves, then a conversion that is exact."""
    point, step = np.asarray(zero_point).astype(np.float32), np.asarray(scale, np.float32)
    real_ends = [ops.constant((np.float32(end) - point) * step) for end in (qmin, qmax)]
    code_ends = [ops.constant(np.float32(end)) for end in (qmin, qmax)]
    codes = ops.fake_quantize(real, *real_ends, *code_ends, qmax - qmin + 1)
    return ops.convert(codes, "u8" if qmin >= 0 else "i8")


def dequantized(q: np.ndarray, grid: QParams) -> tuple[Node, Node]:
    """(parameter of codes, node of the real values that they stand for)."""
    source = ops.parameter(list(q.shape), TYPES[q.dtype])
    centred = ops.subtract(ops.convert(source, "f32"), ops.constant(np.float32(grid.zero_point)))
    return source, ops.multiply(centred, ops.constant(grid.scale))


def weights(w_q: np.ndarray, w: QParams) -> Node:
    """The real values of constant codes; symmetric grids only, as the plugin's int8 kernels have no others."""
    if np.any(w.zero_point):
        raise NotOffered("w: the int8 kernels take weights with zero point 0 only")
    scale = w.scale if w.axis is None else w.scale.reshape(-1, *[1] * (w_q.ndim - 1))
    return ops.multiply(ops.convert(ops.constant(np.array(w_q, order="C")), "f32"), ops.constant(scale))


def finished(layer: Node, bias: np.ndarray | None, y: QParams, relu: bool, shape: tuple[int, ...]) -> Node:
    """A layer with its bias, ReLU and the quantization of its output."""
    if bias is not None:
        layer = ops.add(layer, ops.constant(np.reshape(bias, shape)))
    if relu:
        layer = ops.relu(layer)
    return fake_quantized(layer, y.scale, y.zero_point, y.qmin, y.qmax)
