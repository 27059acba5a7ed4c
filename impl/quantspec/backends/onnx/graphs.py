"""Single ONNX operators as models: for the reference evaluator and for ONNX Runtime, which take the same graphs."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantspec.backends.protocol import NotOffered, per_tensor, whole_byte
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import quantize_bias

MICROSOFT = "com.microsoft"
OPSET, IR_VERSION = 21, 10
ELEMENTS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}
ELEMENTS[np.dtype(np.int32)] = TensorProto.INT32


def model(nodes: list[onnx.NodeProto], inputs: dict[str, np.ndarray], outputs: dict[str, np.dtype | type], constants: dict[str, np.ndarray]) -> bytes:
    """A model with inputs of the shapes of these arrays, and these constants as initializers."""
    graph = helper.make_graph(
        nodes, "one",
        [helper.make_tensor_value_info(name, ELEMENTS[array.dtype], array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info(name, ELEMENTS[np.dtype(dtype)], None) for name, dtype in outputs.items()],
        [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in constants.items()],
    )  # fmt: skip
    sets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=IR_VERSION).SerializeToString()


class OnnxOperators:
    """Operations as single ONNX operators. ``_run(model, inputs)`` of a subclass gives the outputs of a model.

    Scales, zero points, weights and biases are initializers, as in any file that a quantizer writes. ReLU is the output's zero point in the clamp that
    comes after: ONNX has no fused one, and a clamp of codes is exact.
    """

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        if qmax - qmin != 255:
            raise NotOffered(f"codes from {qmin} to {qmax}: QuantizeLinear saturates at the ends of the byte")
        dtype = np.uint8 if qmin == 0 else np.int8
        scale = np.asarray(scale, np.float32)
        constants = {"s": scale, "z": points(zero_point, scale.shape, dtype)}
        node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
        x = np.asarray(x, np.float32)
        return self._run(model([node], {"x": x}, {"y": dtype}, constants), {"x": x})[0]

    def dequantize(self, q, scale, zero_point, *, axis=None):
        scale = np.asarray(scale, np.float32)
        constants = {"s": scale, "z": points(zero_point, scale.shape, q.dtype)}
        node = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], **({} if axis is None else {"axis": axis}))
        return self._run(model([node], {"x": q}, {"y": np.float32}, constants), {"x": q})[0]

    def qparams(self, minimum, maximum, *, qmin, qmax, symmetric):
        """The scale and zero point that DynamicQuantizeLinear gives a tensor with these ends."""
        if symmetric or (qmin, qmax) != (0, 255):
            raise NotOffered("DynamicQuantizeLinear gives unsigned affine qparams of a whole byte only")
        x = np.array([minimum, maximum], np.float32)
        node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
        _, scale, zero_point = self._run(model([node], {"x": x}, {"y": np.uint8, "s": np.float32, "z": np.uint8}, {}), {"x": x})
        return np.float32(scale), int(zero_point)

    def linear_dynamic(self, x, w_q, w: QParams, bias, *, relu=False):
        """DynamicQuantizeLinear, MatMulInteger, Cast, Mul by the product of the scales, Add: what ONNX Runtime's own quantizer writes."""
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

    def conv2d(self, x_q, x: QParams, w_q, w: QParams, bias, y: QParams, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, relu=False):
        per_tensor(x, "x"), per_tensor(y, "y"), whole_byte(y)
        constants = grids(x=x, y=y) | {"w": w_q, "w_s": w.scale, "w_z": channel_points(w, len(w_q))}
        names = ["x", "x_s", "x_z", "w", "w_s", "w_z", "y_s", "y_z"]
        if bias is not None:
            constants["b"] = quantize_bias(bias, x.scale, w.scale)
            names.append("b")
        node = helper.make_node("QLinearConv", names, ["y"], strides=stride, pads=[*padding, *padding], dilations=dilation, group=groups)
        codes = self._run(model([node], {"x": x_q}, {"y": y.dtype}, constants), {"x": x_q})[0]
        return rectified(codes, y, relu)

    def max_pool2d(self, q, grid: QParams, *, kernel, stride=None, padding=(0, 0), dilation=(1, 1)):
        node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=kernel, strides=stride or kernel, pads=[*padding, *padding], dilations=dilation)
        return self._run(model([node], {"x": q}, {"y": q.dtype}, {}), {"x": q})[0]


def grids(**named: QParams) -> dict[str, np.ndarray]:
    """``x_s`` and ``x_z`` for a grid given as ``x``."""
    constants = {}
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


def points(zero_point, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Zero points as a constant of the type of the codes. NotOffered for those that the type, and so a graph, cannot say."""
    wide, ends = np.asarray(zero_point), np.iinfo(dtype)
    if np.any((wide < ends.min) | (wide > ends.max)):
        raise NotOffered(f"a zero point of {zero_point}: a graph holds it as {np.dtype(dtype)}")
    return np.broadcast_to(wide, shape).astype(dtype)
