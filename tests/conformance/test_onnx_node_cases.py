"""The ONNX package's own test cases of its quantization operators, against our dialect ``onnx``: inputs and outputs
that somebody else wrote down."""

import importlib

import numpy as np
import pytest

from quantspec.numerics import affine, integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect

onnx = pytest.importorskip("onnx", reason="onnx is not installed")

RULES = dialect("onnx")
OPERATORS = (
    "QuantizeLinear", "DequantizeLinear", "QLinearMatMul", "QLinearConv", "ConvInteger", "MatMulInteger",
    "DynamicQuantizeLinear",
)  # fmt: skip
# Cases of kinds that no clause speaks of, by what is in their names.
OTHER_KINDS = ("e4m3fn", "e5m2", "float4", "int16", "blocked")
BITS = {"uint2": (0, 3), "int2": (-2, 1), "uint4": (0, 15), "int4": (-8, 7)}


def cases() -> dict[str, object]:
    """The cases of the operators by name, those that are written out in other operators left out."""
    node = importlib.import_module("onnx.backend.test.case.node")
    for operator in OPERATORS:
        importlib.import_module(f"onnx.backend.test.case.node.{operator.lower()}")
    found = {case.name: case for case in node._NodeTestCases if case.model.graph.node[0].op_type in OPERATORS}
    return {name: case for name, case in found.items() if "_expanded" not in name}


CASES = cases()
OURS = [name for name in CASES if not any(kind in name for kind in OTHER_KINDS)]


def array(value) -> np.ndarray:
    """An input or output as an array; codes of a few bits in a byte."""
    stored = np.asarray(onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value)
    if str(stored.dtype) in BITS:
        return stored.astype(np.int8 if BITS[str(stored.dtype)][0] < 0 else np.uint8)
    return stored


def ends(value) -> tuple[int, int]:
    """qmin and qmax of codes of a type."""
    kind = str(onnx.numpy_helper.to_array(value).dtype if isinstance(value, onnx.TensorProto) else value.dtype)
    return BITS[kind] if kind in BITS else (np.iinfo(kind).min, np.iinfo(kind).max)


def one(value) -> np.ndarray:
    """A scale or zero point for all: () where there is one in an array."""
    value = array(value)
    return value.reshape(()) if value.size == 1 else value


def grid(scale, zero_point, axis: int | None = None) -> QParams:
    """The grid of codes whose type is the zero point's."""
    s, z = one(scale).astype(np.float32), one(zero_point).astype(np.int32)
    return QParams(s, z, *ends(zero_point), axis if s.ndim else None)


def quantize_linear(x, scale, zero_point, *, axis=1):
    s, z = one(scale), one(zero_point).astype(np.int32)
    qmin, qmax = ends(zero_point)
    return [RULES.quantize(x, s, z, qmin=qmin, qmax=qmax, axis=axis if s.ndim else None)]


def dequantize_linear(q, scale, zero_point, *, axis=1):
    s, z = one(scale), one(zero_point).astype(np.int32)
    return [affine.dequantize(array(q), s, z, axis=axis if s.ndim else None)]


def q_linear_mat_mul(a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero):
    x, w, y = grid(a_scale, a_zero), grid(b_scale, b_zero), grid(y_scale, y_zero)
    rows, columns = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    products = [RULES.linear(one_a, x, one_b.T.copy(), w, None, y) for one_a, one_b in zip(rows, columns)]
    return [np.stack(products).reshape(*a.shape[:-1], b.shape[-1])]


def q_linear_conv(x_q, x_scale, x_zero, w_q, w_scale, w_zero, y_scale, y_zero):
    return [RULES.conv2d(x_q, grid(x_scale, x_zero), w_q, grid(w_scale, w_zero, 0), None, grid(y_scale, y_zero))]


def conv_integer(x_q, w_q, x_zero, w_zero=None, *, pads=(0, 0, 0, 0)):
    points = np.zeros((), np.int32) if w_zero is None else one(w_zero).astype(np.int32)
    w = QParams(np.ones(points.shape), points, 0, 255, 0 if points.ndim else None)
    around = (pads[0], pads[2]), (pads[1], pads[3])
    plain = {"stride": (1, 1), "dilation": (1, 1), "input_dilation": (1, 1), "groups": 1}
    return [np.moveaxis(integer.accumulate_conv(x_q, int(x_zero), w_q, w, padding=around, **plain), -1, 1)]


def mat_mul_integer(a, b, a_zero, b_zero):
    return [integer.accumulate(a, int(one(a_zero)), b.T.copy(), int(one(b_zero)))]


def dynamic_quantize_linear(x):
    codes, scale, found = RULES.quantize_dynamic(x)
    return [codes, np.float32(scale), found.zero_point.astype(np.uint8)]


HERE = dict(zip(OPERATORS, (
    quantize_linear, dequantize_linear, q_linear_mat_mul, q_linear_conv, conv_integer, mat_mul_integer,
    dynamic_quantize_linear,
)))  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_a_case_of_onnx_gives_the_outputs_that_it_states(name):
    case = CASES[name]
    node = case.model.graph.node[0]
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    for inputs, outputs in case.data_sets:
        got = HERE[node.op_type](*inputs, **attributes)
        assert len(got) == len(outputs)
        for ours, theirs in zip(got, outputs):
            stated = array(theirs)
            assert ours.shape == stated.shape
            if stated.dtype.kind == "f":
                assert np.array_equal(ours.astype(stated.dtype), stated)
            else:
                assert np.array_equal(ours.astype(np.int64), stated.astype(np.int64))


def test_the_cases_are_those_that_were_looked_at():
    """A case that a new release adds is of a kind that a clause speaks of, or is named here."""
    assert len(OURS) >= 25 and {CASES[name].model.graph.node[0].op_type for name in OURS} == set(OPERATORS)
    assert all(any(kind in name for kind in OTHER_KINDS) for name in set(CASES) - set(OURS))


def test_a_convolution_without_a_bias_is_one_with_zeros():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    operators = importlib.import_module("quantspec.backends.onnx.runtime").OnnxRuntime()
    x, y, w = QParams(0.5, 0, 0, 255), QParams(2.0, 128, 0, 255), QParams(0.25, 0, -128, 127)
    codes = np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)
    weight = np.arange(-12, 12, dtype=np.int8).reshape(3, 2, 2, 2)
    none, zeros = (operators.conv2d(codes, x, weight, w, bias, y) for bias in (None, np.zeros(3, np.float32)))
    assert np.array_equal(none, zeros) and len(np.unique(none)) > 5
