"""LiteRT (TensorFlow Lite) behind the backend protocol: with the XNNPACK delegate, with its own optimised kernels, and
with its reference kernels."""

import sys
from importlib import metadata
from typing import Any, TypeAlias, cast

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from quantspec.backends import protocol
from quantspec.backends.cache import Cache
from quantspec.backends.protocol import (
    CodesOnGrids,
    NotOffered,
    Pair,
    Scales,
    ZeroPoints,
    per_tensor,
    threads,
    whole_byte,
)
from quantspec.backends.reproduce import Parts, literal, script
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import quantize_bias

from .flatbuffer import OPERATOR, OPTIONS, Operator, Options, Tensor, constant, model, on_grid

RESOLVERS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}
# The builtin kernels take one path or another by sizes: ruy's or gemmlowp's second rounding, a vector's steps or those
# of the elements that fill none.
BUILTIN = frozenset({"tflite-two-roundings", "tflite-ruy", "xnnpack"})
DIALECTS: dict[str, protocol.Dialects] = {"xnnpack": "xnnpack", "builtin": BUILTIN, "reference": "tflite-reference"}
NONE, RELU = schema.ActivationFunctionType.NONE, schema.ActivationFunctionType.RELU
TheInterpreter: TypeAlias = Any  # the library has no types


class LiteRT(
    protocol.OffersQuantize, protocol.OffersDequantize, protocol.OffersLinear, protocol.OffersConv2d,
    protocol.OffersAdd, protocol.OffersMul, protocol.OffersConcat, protocol.OffersMaxPool2d, protocol.OffersAvgPool2d,
    protocol.OffersAdaptiveAvgPool2d, protocol.Keeps, protocol.Reproduces,
):  # fmt: skip
    """LiteRT with one set of kernels: ``xnnpack`` (the default of its interpreter), ``builtin`` (without that delegate)
    or ``reference``.

    With ``xnnpack``, what the delegate does not take is computed by the builtin kernels, as for any user of the
    interpreter. Layers that take floats and have int8 weights ("hybrid" ones) quantize each row of their input by
    itself, which is not what chapter 6 means: not offered.
    """

    def __init__(self, kernels: str) -> None:
        self.name, self.version = f"litert-{kernels}", metadata.version("ai-edge-litert")
        self.dialect, self._resolver, self._cache = DIALECTS[kernels], RESOLVERS[kernels], Cache()

    def keep(self) -> None:
        """Interpreters are kept from here on: they are made once for a model."""
        self._cache = Cache(enabled=True)

    def _run(
        self, operators: list[Operator], tensors: list[Tensor], inputs: dict[int, np.ndarray], output: int
    ) -> np.ndarray:
        content = model(operators, tensors, list(inputs), [output])
        interpreter = self._cache((content,), lambda: self._interpreter(content))
        for place, array in inputs.items():
            interpreter.set_tensor(place, np.ascontiguousarray(array))
        interpreter.invoke()
        return cast(np.ndarray, interpreter.get_tensor(output))

    def _interpreter(self, content: bytes) -> TheInterpreter:
        options = {"experimental_op_resolver_type": self._resolver, "num_threads": threads()}
        interpreter = Interpreter(model_content=content, **options)
        interpreter.allocate_tensors()
        return interpreter

    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        if qmax - qmin != 255:
            raise NotOffered(f"codes from {qmin} to {qmax}: QUANTIZE saturates at the ends of a byte only")
        several(scale, axis)
        x = np.asarray(x, np.float32)
        dtype = np.dtype(np.uint8 if qmin == 0 else np.int8)
        y = Tensor(x.shape, dtype, np.asarray(scale, np.float32), np.asarray(zero_point), axis or 0)
        operator = OPERATOR.QUANTIZE, [0], [1], OPTIONS.QuantizeOptions, schema.QuantizeOptionsT()
        return self._run([operator], [Tensor(x.shape, x.dtype), y], {0: x}, 1)

    def dequantize(
        self, q: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, axis: int | None = None
    ) -> np.ndarray:
        several(scale, axis)
        x = Tensor(q.shape, q.dtype, np.asarray(scale, np.float32), np.asarray(zero_point), axis or 0)
        y = Tensor(q.shape, np.dtype(np.float32))
        operator = OPERATOR.DEQUANTIZE, [0], [1], OPTIONS.DequantizeOptions, schema.DequantizeOptionsT()
        return self._run([operator], [x, y], {0: q}, 1)

    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        one_byte(x, y)
        signed(x, w)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = RELU if relu else NONE
        tensors = [on_grid(x_q.shape, x), on_grid(w_q.shape, w, w_q), on_grid((len(x_q), len(w_q)), y)]
        takes = [0, 1, add_bias(tensors, bias, x, w)]
        operator = OPERATOR.FULLY_CONNECTED, takes, [2], OPTIONS.FullyConnectedOptions, options
        return self._run([operator], tensors, {0: x_q}, 2)

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        """PAD (whose padding has the code of zero), then CONV_2D or DEPTHWISE_CONV_2D; images and channels change
        places on the way in and out."""
        one_byte(x, y)
        signed(x, w)
        images, channels, height, width = x_q.shape
        outputs, _, rows, columns = w_q.shape
        depthwise = groups == channels and groups > 1
        tensors, source = [on_grid((images, height, width, channels), x)], 0
        operators: list[Operator] = []
        height, width = height + 2 * padding[0], width + 2 * padding[1]
        if any(padding):
            around = np.array([[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]], np.int32)
            tensors += [constant(around), on_grid((images, height, width, channels), x)]
            operators.append((OPERATOR.PAD, [0, 1], [2], OPTIONS.PadOptions, schema.PadOptionsT()))
            source = 2
        # CONV_2D wants [outputs, rows, columns, inputs], DEPTHWISE_CONV_2D [1, rows, columns, outputs].
        weight = w_q.transpose(1, 2, 3, 0) if depthwise else w_q.transpose(0, 2, 3, 1)
        grid = w if w.axis is None else QParams(w.scale, w.zero_point, w.qmin, w.qmax, 3 if depthwise else 0)
        lengths = zip((height, width), dilation, (rows, columns), stride)
        size = [(length - step * (window - 1) - 1) // by + 1 for length, step, window, by in lengths]
        weights, result = len(tensors), len(tensors) + 1
        tensors += [on_grid(weight.shape, grid, weight), on_grid((images, *size, outputs), y)]
        options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
        options.padding, options.fusedActivationFunction = schema.Padding.VALID, RELU if relu else NONE
        (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor) = stride, dilation
        if depthwise:
            options.depthMultiplier = outputs // channels
        bias = np.zeros(outputs, np.float32) if bias is None else bias  # one is required; zero is none (INT-NO-BIAS)
        takes = [source, weights, add_bias(tensors, bias, x, w)]
        code = OPERATOR.DEPTHWISE_CONV_2D if depthwise else OPERATOR.CONV_2D
        kind = OPTIONS.DepthwiseConv2DOptions if depthwise else OPTIONS.Conv2DOptions
        operators.append((code, takes, [result], kind, options))
        return from_channels_last(self._run(operators, tensors, {0: to_channels_last(x_q)}, result))

    def add(
        self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, *, relu: bool = False
    ) -> np.ndarray:
        options = schema.AddOptionsT()
        options.fusedActivationFunction = RELU if relu else NONE
        return self._pair(OPERATOR.ADD, OPTIONS.AddOptions, options, a_q, a, b_q, b, y)

    def mul(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
        return self._pair(OPERATOR.MUL, OPTIONS.MulOptions, schema.MulOptionsT(), a_q, a, b_q, b, y)

    def _pair(
        self, code: int, kind: int, options: Options,
        a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams,
    ) -> np.ndarray:  # fmt: skip
        one_byte(a, b, y)
        tensors = [on_grid(a_q.shape, a), on_grid(b_q.shape, b), on_grid(a_q.shape, y)]
        return self._run([(code, [0, 1], [2], kind, options)], tensors, {0: a_q, 1: b_q}, 2)

    def concat(self, parts: CodesOnGrids, y: QParams, *, axis: int) -> np.ndarray:
        one_byte(y, *(grid for _, grid in parts))
        other_grids = any((grid.scale, grid.zero_point) != (y.scale, y.zero_point) for _, grid in parts)
        if y.dtype == np.int8 and other_grids:
            raise NotOffered("signed codes: CONCATENATION takes one grid, got different ones")
        options = schema.ConcatenationOptionsT()
        options.axis = axis
        shape = list(parts[0][0].shape)
        shape[axis] = sum(q.shape[axis] for q, _ in parts)
        places = list(range(len(parts)))
        tensors = [*(on_grid(q.shape, grid) for q, grid in parts), on_grid(tuple(shape), y)]
        operator = (OPERATOR.CONCATENATION, places, [len(parts)], OPTIONS.ConcatenationOptions, options)
        return self._run([operator], tensors, dict(zip(places, (q for q, _ in parts))), len(parts))

    def max_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> np.ndarray:
        if tuple(dilation) != (1, 1):
            raise NotOffered(f"dilation: MAX_POOL_2D has none, got {tuple(dilation)}")
        return self._pool(OPERATOR.MAX_POOL_2D, q, grid, kernel, stride or kernel, padding)

    def avg_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), count_include_pad: bool = True,
    ) -> np.ndarray:
        if any(padding) and count_include_pad:
            raise NotOffered("count_include_pad: AVERAGE_POOL_2D does not count padding")
        return self._pool(OPERATOR.AVERAGE_POOL_2D, q, grid, kernel, stride or kernel, padding)

    def _pool(self, code: int, q: np.ndarray, grid: QParams, kernel: Pair, stride: Pair, padding: Pair) -> np.ndarray:
        one_byte(grid)
        images, channels, height, width = q.shape
        if images == 0 and self.name == "litert-xnnpack":
            # A fault of its own, but no two runs would record the same: now a shape of other numbers, now a refusal,
            # now the right shape of the call before.
            raise NotOffered("no images: XNNPACK takes the size of the output from uninitialized memory")
        lengths = list(zip((height, width), padding, kernel, stride))
        size = [(length + 2 * around - window) // by + 1 for length, around, window, by in lengths]
        options = schema.Pool2DOptionsT()
        options.padding, options.fusedActivationFunction = schema.Padding.VALID, NONE
        if any(padding):
            # Only "same" pads here: as much as makes the output ceil(size / stride), the smaller half of it first.
            total = [max((n - 1) * by + window - length, 0) for n, (length, _, window, by) in zip(size, lengths)]
            whole = [-(-length // by) for length, _, _, by in lengths]
            if size != whole or [around // 2 for around in total] != list(padding):
                raise NotOffered(f"padding: pooling offers 'valid' and 'same' only, got {tuple(padding)}")
            options.padding = schema.Padding.SAME
        (options.strideH, options.strideW), (options.filterHeight, options.filterWidth) = stride, kernel
        tensors = [on_grid((images, height, width, channels), grid), on_grid((images, *size, channels), grid)]
        operator = code, [0], [1], OPTIONS.Pool2DOptions, options
        return from_channels_last(self._run([operator], tensors, {0: to_channels_last(q)}, 1))

    def adaptive_avg_pool2d(self, q: np.ndarray, grid: QParams, *, size: Pair) -> np.ndarray:
        """MEAN over height and width."""
        if tuple(size) != (1, 1):
            raise NotOffered(f"size: MEAN gives 1 by 1, got {size[0]} by {size[1]}")
        one_byte(grid)
        images, channels, height, width = q.shape
        options = schema.ReducerOptionsT()
        options.keepDims = True
        image, mean = on_grid((images, height, width, channels), grid), on_grid((images, 1, 1, channels), grid)
        tensors = [image, constant(np.array([1, 2], np.int32)), mean]
        operator = OPERATOR.MEAN, [0, 1], [2], OPTIONS.ReducerOptions, options
        return from_channels_last(self._run([operator], tensors, {0: to_channels_last(q)}, 2))

    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """The script of a call, with the model in it; see ``reproduce.script``."""
        first = ["from ai_edge_litert.interpreter import Interpreter, OpResolverType"]
        modules = {sys.modules[__name__]: {"Interpreter": "Interpreter"}}
        return script(self, operation, arguments, options, first=first, modules=modules)


@literal.register(OpResolverType)
def _(value: OpResolverType) -> Parts:
    return (f"OpResolverType.{value.name}",)


def add_bias(tensors: list[Tensor], bias: np.ndarray | None, x: QParams, w: QParams) -> int:
    """The place of the bias among the tensors, to which it is added as int32; -1 for none."""
    if bias is None:
        return -1
    codes = quantize_bias(bias, x.scale, w.scale)
    tensors.append(Tensor(codes.shape, codes.dtype, x.scale * w.scale, np.zeros_like(w.scale, np.int64), 0, codes))
    return len(tensors) - 1


def one_byte(*grids: QParams) -> None:
    """Raises NotOffered unless all are per-tensor grids of one type: activations of the format are int8, or uint8 in
    its older form."""
    for grid in grids:
        per_tensor(grid, "activation")
        whole_byte(grid)
    if len({grid.dtype for grid in grids}) > 1:
        raise NotOffered("the operator takes one type of codes, got signed and unsigned ones")


def several(scale: Scales, axis: int | None) -> None:
    """Raises NotOffered for one scale a channel when there is one channel: the format has a list of one scale then,
    which is one scale a tensor."""
    if axis is not None and np.size(scale) == 1:
        raise NotOffered("one channel: the format cannot distinguish its scale from a scale per tensor")


def signed(x: QParams, w: QParams) -> None:
    """Raises NotOffered for unsigned inputs with signed weights: the operators would read the weights' bytes as
    unsigned, and say nothing."""
    if x.dtype != w.dtype:
        raise NotOffered("the operator takes one type of codes, got unsigned activations and signed weights")


def to_channels_last(q: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(q.transpose(0, 2, 3, 1))


def from_channels_last(q: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(q.transpose(0, 3, 1, 2))
