"""Single ONNX operators as models: for the reference evaluator and for ONNX Runtime, which take the same graphs."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantspec.backends import protocol
from quantspec.backends.protocol import NotOffered, Pair, Scales, ZeroPoints, per_tensor, whole_byte
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import quantize_bias

MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 21, 10
ELEMENTS = {
    np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int32): TensorProto.INT32,
}  # fmt: skip
Type: TypeAlias = np.dtype | type[np.generic]


def model(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, np.ndarray], outputs: Mapping[str, Type],
    constants: Mapping[str, np.ndarray],
) -> bytes:  # fmt: skip
    """A model with inputs of the shapes of these arrays, and these constants as initializers."""
    graph = helper.make_graph(
        nodes, "one",
        [helper.make_tensor_value_info(name, ELEMENTS[array.dtype], array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, ELEMENTS[np.dtype(dtype)], None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in constants.items()],
    )  # fmt: skip
    sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return cast(bytes, helper.make_model(graph, opset_imports=sets, ir_version=IR_VERSION).SerializeToString())


class OnnxOperators(
    protocol.OffersQuantize, protocol.OffersDequantize, protocol.OffersQParams, protocol.OffersLinearDynamic,
    protocol.OffersConv2d, protocol.OffersMaxPool2d,
):  # fmt: skip
    """Operations as single ONNX operators, which a subclass runs.

    Scales, zero points, weights and biases are initializers, as in any file that a quantizer writes. ReLU is the
    output's zero point in the clamp that comes after: ONNX has no fused one, and a clamp of codes is exact.
    """

    @abstractmethod
    def _run(self, graph: bytes, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs of a model."""
        ...

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        if qmax - qmin != 255:
            raise NotOffered(f"codes from {qmin} to {qmax}: QuantizeLinear saturates at the ends of a byte only")
        dtype = np.uint8 if qmin == 0 else np.int8
        scale = np.asarray(scale, np.float32)
        constants = {"s": scale, "z": points(zero_point, scale.shape, dtype)}
        node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
        x = np.asarray(x, np.float32)
        return self._run(model([node], {"x": x}, {"y": dtype}, constants), {"x": x})[0]

    def dequantize(
        self, q: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, axis: int | None = None
    ) -> np.ndarray:
        scale = np.asarray(scale, np.float32)
        constants = {"s": scale, "z": points(zero_point, scale.shape, q.dtype)}
        node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
        return self._run(model([node], {"x": q}, {"y": np.float32}, constants), {"x": q})[0]

    def qparams(
        self, minimum: np.float32, maximum: np.float32, *, qmin: int, qmax: int, symmetric: bool
    ) -> tuple[np.float32, int]:
        """The scale and zero point that DynamicQuantizeLinear gives a tensor with these ends."""
        if symmetric or (qmin, qmax) != (0, 255):
            raise NotOffered("DynamicQuantizeLinear gives affine qparams for codes 0 to 255 only")
        x = np.array([minimum, maximum], np.float32)
        node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
        graph = model([node], {"x": x}, {"y": np.uint8, "s": np.float32, "z": np.uint8}, {})
        _, scale, zero_point = self._run(graph, {"x": x})
        return np.float32(scale), int(zero_point)

    def linear_dynamic(
        self, x: np.ndarray, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, relu: bool = False
    ) -> np.ndarray:
        """DynamicQuantizeLinear, MatMulInteger, Cast, Mul by the product of the scales, Add: what ONNX Runtime's own
        quantizer writes."""
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["a"]),
            helper.make_node("Cast", ["a"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["s", "ws"], ["u"]),
            helper.make_node("Mul", ["f", "u"], ["p"]),
        ]
        constants = {"w": w_q.T, "wz": channel_points(w, len(w_q)), "ws": w.scale}
        last = "p"
        if bias is not None:
            nodes.append(helper.make_node("Add", [last, "b"], ["t"]))
            constants["b"], last = bias, "t"
        if relu:
            nodes.append(helper.make_node("Relu", [last], ["r"]))
            last = "r"
        return self._run(model(nodes, {"x": x}, {last: np.float32}, constants), {"x": x})[0]

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        per_tensor(x, "x")
        per_tensor(y, "y")
        whole_byte(y)
        constants = grids(x=x, y=y) | {"w": w_q, "w_s": w.scale, "w_z": channel_points(w, len(w_q))}
        names = ["x", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z"]
        if bias is not None:
            constants["b"] = quantize_bias(bias, x.scale, w.scale)
            names.append("b")
        places = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
        node = helper.make_node("QLinearConv", names, ["y"], **places)
        codes = self._run(model([node], {"x": x_q}, {"y": y.dtype}, constants), {"x": x_q})[0]
        return rectified(codes, y, relu)

    def max_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> np.ndarray:
        windows = {"kernel_shape": kernel, "strides": stride or kernel, "pads": [*padding, *padding]}
        node = helper.make_node("MaxPool", ["x"], ["y"], **windows, dilations=dilation)
        return self._run(model([node], {"x": q}, {"y": q.dtype}, {}), {"x": q})[0]


def grids(**named: QParams) -> dict[str, np.ndarray]:
    """``x_s`` and ``x_z`` for a grid given as ``x``."""
    constants: dict[str, np.ndarray] = {}
    for name, grid in named.items():
        per_tensor(grid, name)
        constants[f"{name}_s"], constants[f"{name}_z"] = grid.scale, grid.zero_point.astype(grid.dtype)
    return constants


def channel_points(w: QParams, outputs: int) -> np.ndarray:
    """Zero points of weights in the weights' type: one, or one for each output where the scales are."""
    return np.broadcast_to(w.zero_point, () if w.axis is None else (outputs,)).astype(w.dtype)


def rectified(codes: np.ndarray, y: QParams, relu: bool) -> np.ndarray:
    """Codes with a ReLU, which on codes is a clamp (INT-RELU)."""
    return np.maximum(codes, y.zero_point.astype(y.dtype)) if relu else codes


def points(zero_point: ZeroPoints, shape: tuple[int, ...], dtype: Type) -> np.ndarray:
    """Zero points as a constant of the type of the codes. NotOffered for those that the type, and so a graph, cannot
    say."""
    wide, ends = np.asarray(zero_point), np.iinfo(dtype)
    if np.any((wide < ends.min) | (wide > ends.max)):
        raise NotOffered(f"zero_point: a graph stores it as {np.dtype(dtype)}, got {zero_point}")
    return np.broadcast_to(wide, shape).astype(dtype)
