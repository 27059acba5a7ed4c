"""The weights of layers, packed once for a program as the kernels read them."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from quantspec.ir.held import codes_shape
from quantspec.ir.program import Conv, Linear, LinearDynamic, LinearWeight
from quantspec.kernels import cpu
from quantspec.kernels.memory import position_pitch
from quantspec.kernels.packed import Packed, PackedChannels, lanes, pack, pack_channels, unpack, unpack_channels
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.float32 import check_unit
from quantspec.numerics.integer import check_overflow, quantize_bias

from .transposed import dense_parts, is_transposed

# One for each of a layer's dense parts: of each group of channels, or of channels that are each on their own.
PackedLayer: TypeAlias = list[list[Packed] | PackedChannels]
FloatLayer: TypeAlias = LinearDynamic | LinearWeight  # floats go in and come out


def is_depthwise(step: Conv) -> bool:
    """Whether every channel of a convolution is on its own."""
    return step.groups == codes_shape(step)[0] and codes_shape(step)[1] == 1 and step.groups > 1


def runs(step: Linear | Conv, weight: np.ndarray) -> np.ndarray:
    """Weights of some of a layer's outputs as [outputs, runs, inputs of a run], in the order in which the input lies in
    memory.

    Columns of a kernel that is not spread out lie next to each other and make one run.
    """
    if isinstance(step, Linear):
        return weight[:, None, :]
    outputs, inputs = weight.shape[:2]
    columns = weight.shape[-1]
    kernel = weight.reshape(outputs, inputs, -1, columns)
    rows = kernel.shape[2]
    last = kernel.transpose(0, 2, 3, 1)
    if not joined(step):
        return last.reshape(outputs, rows * columns, inputs)
    pitch = position_pitch(inputs)
    spread = np.zeros((outputs, rows, columns, pitch), np.int8)
    spread[..., :inputs] = last
    return spread.reshape(outputs, rows, columns * pitch)[:, :, : (columns - 1) * pitch + inputs]


def of_runs(step: Linear | Conv, packed: Packed, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of that shape that a product was packed of: what ``runs`` had."""
    if isinstance(step, Linear):
        return unpack(packed, shape[1])[:, 0]
    outputs, inputs, columns = shape[0], shape[1], shape[-1]
    if not joined(step):
        last = unpack(packed, inputs).reshape(outputs, -1, columns, inputs)
    else:
        pitch = position_pitch(inputs)
        width = (columns - 1) * pitch + inputs
        spread = np.zeros((outputs, packed.runs, columns * pitch), np.int8)
        spread[..., :width] = unpack(packed, width)
        last = spread.reshape(outputs, -1, columns, pitch)[..., :inputs]
    return np.ascontiguousarray(last.transpose(0, 3, 1, 2)).reshape(shape)


def joined(step: Conv) -> bool:
    """Whether the columns of the kernel make one run."""
    return step.dilation[-1] == 1 and step.groups == 1


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What accumulators begin with, int64, what they are multiplied by, and what is added then; each (outputs,)."""

    bias: np.ndarray
    factor: np.ndarray
    float_bias: np.ndarray | None = None


def epilogue(step: Linear | Conv) -> Epilogue:
    """The bias codes with input zero point times sum of weights taken off, and the multipliers (DIA-REQUANTIZE,
    ``integer-bias``); of a layer that gives floats (STA-DIRECT) the units, and the bias in float32.

    Raises UnsupportedError for accumulators that could overflow and ValueError for scales that DIA-UNIT refuses.
    """
    x, w, y, weight = step.x_qparams, step.w_qparams, step.y_qparams, step.weight
    outputs = len(weight)
    bias = np.zeros(outputs, np.float32) if step.bias is None else step.bias
    codes = np.zeros(outputs, np.int32) if y is None else quantize_bias(bias, x.scale, w.scale)
    check_overflow(x, weight, w, codes)
    check_unit(x.scale, w.scale, *(() if y is None else (y.scale,)))
    sums = weight.reshape(outputs, -1).sum(1, dtype=np.int64)
    factor = x.scale * w.scale if y is None else x.scale * w.scale / y.scale
    start = codes.astype(np.int64) - int(x.zero_point) * sums
    return Epilogue(start, np.broadcast_to(factor, outputs), bias if y is None else None)


def pack_layer(step: Linear | Conv | FloatLayer, *, take: bool = False) -> PackedLayer:
    """The weights of a layer; ``take`` as in ``pack``. Raises as ``epilogue`` does."""
    if isinstance(step, FloatLayer):
        return [[pack_dynamic(step, take=take)]]
    end = epilogue(step)
    if isinstance(step, Linear):
        return [[packed_group(step, step.weight, end, take=take)]]
    # The parts of a transposed convolution begin with what their own weights take off.
    ends = [(part.conv, end if part.conv is step else epilogue(part.conv)) for part in dense_parts(step)]
    return [pack_conv(conv, conv_end, take=take and conv is step) for conv, conv_end in ends]


def pack_conv(step: Conv, end: Epilogue, *, take: bool) -> list[Packed] | PackedChannels:
    """The weights of a convolution that is not transposed."""
    if is_depthwise(step):
        return pack_channels(by_four(step), end.bias, end.factor, end.float_bias)
    weights, biases, factors = (np.split(values, step.groups) for values in (step.weight, end.bias, end.factor))
    floats = [None] * step.groups if end.float_bias is None else np.split(end.float_bias, step.groups)
    groups = zip(weights, map(Epilogue, biases, factors, floats))
    return [packed_group(step, weight, own, take=take and step.groups == 1) for weight, own in groups]


def packed_group(step: Linear | Conv, weight: np.ndarray, end: Epilogue, *, take: bool) -> Packed:
    """The weights of one product."""
    packed = pack(weight, lambda rows: runs(step, rows), end.bias, end.factor, take=take)
    if end.float_bias is None:
        return packed
    return replace(packed, float_bias=lanes(end.float_bias, len(end.float_bias), np.float32))


def pack_dynamic(step: FloatLayer, *, take: bool = False) -> Packed:
    """Weights, the float bias and the scales of the weights. UnsupportedError for accumulators that could overflow."""
    outputs = codes_shape(step)[0]
    # The grid with the largest steps tells the worst case, whatever the input.
    widest = QParams(np.array(1, np.float32), np.array(0, np.int32), 0, 255)
    check_overflow(widest, step.weight, step.w_qparams, np.zeros(outputs, np.int32))
    bias = np.zeros(outputs, np.float32) if step.bias is None else step.bias
    factor = np.broadcast_to(step.w_qparams.scale, outputs)
    return pack(step.weight, one_run, bias, factor, bias_type=np.float32, take=take)


def one_run(weight: np.ndarray) -> np.ndarray:
    """Weights of a linear layer as those of one run."""
    return weight[:, None, :]


def only_product(layer: PackedLayer) -> Packed:
    """What the only product of a layer reads."""
    (part,) = layer
    assert isinstance(part, list)
    (packed,) = part
    return packed


def unpack_layer(step: Linear | Conv | FloatLayer, packed: PackedLayer) -> np.ndarray:
    """The codes of a layer that were packed; of the step everything else is used."""
    shape = codes_shape(step)
    if isinstance(step, FloatLayer):
        return unpack(only_product(packed), shape[1])[:, 0]
    if isinstance(step, Linear) or not is_transposed(step):
        return unpack_groups(step, packed[0])
    codes = np.empty(shape, np.int8)
    for part, groups in zip(dense_parts(step), packed, strict=True):
        if all(part.taps):
            codes[np.ix_(range(shape[0]), range(shape[1]), *part.taps)] = unpack_groups(part.conv, groups)
    return codes


def unpack_groups(step: Linear | Conv, packed: list[Packed] | PackedChannels) -> np.ndarray:
    """The codes of a layer that is not transposed."""
    shape = codes_shape(step)
    if isinstance(packed, PackedChannels):
        width, lines = shape[-1], int(np.prod(shape[2:-1]))
        assert isinstance(step, Conv)
        wide = width + in_pairs(step)
        return unpack_channels(packed, shape[0], lines * wide).reshape(-1, lines, wide)[..., :width].reshape(shape)
    own = shape[0] // len(packed), *shape[1:]
    return np.concatenate([of_runs(step, group, own) for group in packed])


def by_four(step: Conv) -> np.ndarray:
    """The places of a depthwise kernel in a row, those of ``pairs`` kernels with a zero behind each line of three."""
    weight = step.weight.reshape(len(step.weight), 1, -1) if step.weight.ndim == 3 else step.weight[:, 0]
    return np.pad(weight, [(0, 0), (0, 0), (0, int(in_pairs(step)))]).reshape(len(weight), -1)


def in_pairs(step: Conv) -> bool:
    """Whether a depthwise convolution computes two neighbouring outputs at a time, whose sums take more registers than
    a CPU has that adds products in pairs."""
    if cpu.target().has_pairs:
        return False
    return codes_shape(step)[2:] == (3, 3) and step.stride[1] == 1 and step.dilation == (1, 1)
