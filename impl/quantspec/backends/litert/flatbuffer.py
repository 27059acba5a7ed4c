"""Single TensorFlow Lite operators as models, written with the flatbuffer schema that LiteRT ships."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from quantspec.numerics.affine import QParams

TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32, np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8, np.dtype(np.int32): schema.TensorType.INT32,
}  # fmt: skip
OPERATOR, OPTIONS = schema.BuiltinOperator, schema.BuiltinOptions
# Options of an operator, as an object of the schema, which has no types.
Options: TypeAlias = Any
# (code, inputs, outputs, type of options, options); tensors are named by their places.
Operator: TypeAlias = tuple[int, list[int], list[int], int, Options]
# The newest version of each operator that these graphs use; the interpreter takes older meanings of a field for older
# versions.
VERSIONS = {
    OPERATOR.QUANTIZE: 2, OPERATOR.DEQUANTIZE: 5, OPERATOR.FULLY_CONNECTED: 4, OPERATOR.CONV_2D: 3,
    OPERATOR.DEPTHWISE_CONV_2D: 3, OPERATOR.ADD: 2, OPERATOR.MUL: 2, OPERATOR.CONCATENATION: 2, OPERATOR.MAX_POOL_2D: 2,
    OPERATOR.AVERAGE_POOL_2D: 2, OPERATOR.MEAN: 2, OPERATOR.PAD: 2,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a model; with ``data`` it is a constant. ``scale`` and ``zero_point``, where it is on a grid, have
    one entry or one an index of ``axis``."""

    shape: tuple[int, ...]
    dtype: np.dtype
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None
    axis: int = 0
    data: np.ndarray | None = None


def on_grid(shape: tuple[int, ...], grid: QParams, data: np.ndarray | None = None) -> Tensor:
    """A tensor of codes of that shape on a grid; with ``data`` a constant."""
    return Tensor(shape, grid.dtype, grid.scale, grid.zero_point, grid.axis or 0, data)


def constant(data: np.ndarray) -> Tensor:
    """A tensor without qparams that has this value."""
    return Tensor(data.shape, data.dtype, data=data)


def model(operators: list[Operator], tensors: list[Tensor], inputs: list[int], outputs: list[int]) -> bytes:
    """A model of operators on tensors."""
    whole, graph = schema.ModelT(), schema.SubGraphT()
    whole.version, whole.description, whole.buffers, whole.operatorCodes = 3, "one", [schema.BufferT()], []
    graph.name, graph.tensors, graph.operators, graph.inputs, graph.outputs = "main", [], [], inputs, outputs
    for place, tensor in enumerate(tensors):
        graph.tensors.append(tensor_of(tensor, place, whole.buffers))
    codes = list(dict.fromkeys(code for code, *_ in operators))
    for code in codes:
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        entry.version = VERSIONS[code]
        whole.operatorCodes.append(entry)
    for code, takes, gives, kind, options in operators:
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = codes.index(code), takes, gives
        operator.builtinOptionsType, operator.builtinOptions = kind, options
        graph.operators.append(operator)
    whole.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tensor_of(tensor: Tensor, place: int, buffers: list[schema.BufferT]) -> schema.TensorT:
    """The schema's form of a tensor; its data, if it has any, is added to the buffers."""
    result = schema.TensorT()
    result.name, result.shape, result.buffer = f"t{place}", list(tensor.shape), 0
    result.type = TYPES[np.dtype(tensor.dtype)]
    if tensor.data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
        buffers.append(buffer)
        result.buffer = len(buffers) - 1
    if tensor.scale is not None and tensor.zero_point is not None:
        result.quantization = schema.QuantizationParametersT()
        result.quantization.scale = np.atleast_1d(tensor.scale).astype(np.float32)
        points = np.broadcast_to(tensor.zero_point, np.shape(result.quantization.scale))
        result.quantization.zeroPoint = points.astype(np.int64)
        result.quantization.quantizedDimension = tensor.axis
    return result
