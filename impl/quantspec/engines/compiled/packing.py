"""Weights as the kernels read them, packed once for a program."""

from dataclasses import replace

import numpy as np

from quantspec.ir.program import Conv, Linear, LinearDynamic
from quantspec.ir.traverse import is_direct
from quantspec.kernels.depthwise import ORDER, WIDE
from quantspec.kernels.memory import aligned, position_pitch
from quantspec.kernels.packed import Packed, lanes, pack
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.float32 import check_unit
from quantspec.numerics.integer import check_overflow, quantize_bias

from .shapes import is_depthwise
from .transposed import is_transposed, phases


def runs(step: Linear | Conv) -> np.ndarray:
    """The layer's weights [outputs, runs, inputs of a run] in the order in which the input lies in memory.

    Columns of a kernel that is not spread out lie next to each other and make one run.
    """
    weight = step.weight
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


def joined(step: Conv) -> bool:
    """Whether the columns of the kernel make one run."""
    return step.dilation[-1] == 1 and step.groups == 1


def epilogue(step: Linear | Conv) -> tuple[np.ndarray, np.ndarray]:
    """The bias codes with input zero point times sum of weights taken off, int64, and the multipliers
    (DIA-REQUANTIZE, ``integer-bias``).

    Raises UnsupportedError for accumulators that could overflow and ValueError for scales that DIA-UNIT refuses.
    """
    x, w, y = step.x_qparams, step.w_qparams, step.y_qparams
    bias = quantize_bias(np.zeros(len(step.weight), np.float32) if step.bias is None else step.bias, x.scale, w.scale)
    check_overflow(x, step.weight, w, bias)
    check_unit(x.scale, w.scale, y.scale)
    sums = step.weight.reshape(len(step.weight), -1).astype(np.int64).sum(1)
    return bias.astype(np.int64) - int(x.zero_point) * sums, x.scale * w.scale / y.scale


def real_epilogue(step: Linear | Conv) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What accumulators begin with, int64, the units, and the bias, float32, one for each output (STA-DIRECT).

    Raises as ``epilogue`` does.
    """
    x, w, outputs = step.x_qparams, step.w_qparams, len(step.weight)
    check_overflow(x, step.weight, w, np.zeros(outputs, np.int32))
    check_unit(x.scale, w.scale)
    sums = step.weight.reshape(outputs, -1).astype(np.int64).sum(1)
    bias = np.zeros(outputs, np.float32) if step.bias is None else step.bias
    return -int(x.zero_point) * sums, np.broadcast_to(x.scale * w.scale, outputs), bias


def pack_layer(step: Linear | Conv | LinearDynamic) -> list:
    """One ``Packed`` for each group of channels; for a depthwise convolution what ``pack_channels`` gives.

    The same for each phase of a transposed one.
    """
    if isinstance(step, LinearDynamic):
        return [pack_dynamic(step)]
    real = is_direct(step)
    bias, factor, *others = real_epilogue(step) if real else epilogue(step)
    if isinstance(step, Conv) and is_transposed(step):
        return [part for phase in phases(step) for part in pack_layer(phase.conv)]
    values = bias, np.broadcast_to(factor, len(bias)), *others
    if is_depthwise(step):
        return pack_channels(step, *values)
    groups = getattr(step, "groups", 1)
    parts = zip(*(np.split(v, groups) for v in (runs(step), *values)))
    return [replace(pack(*part[:3]), float_bias=lanes(part[3], len(part[3]), np.float32)) if real else pack(*part) for part in parts]


def pack_dynamic(step: LinearDynamic) -> Packed:
    """Weights, the float bias and the scales of the weights. UnsupportedError for accumulators that could overflow."""
    outputs = len(step.weight)
    # The grid with the largest steps tells the worst case, whatever the input.
    check_overflow(QParams(1, 0, 0, 255), step.weight, step.w_qparams, np.zeros(outputs, np.int32))
    bias = np.zeros(outputs, np.float32) if step.bias is None else step.bias
    return pack(step.weight[:, None, :], bias, np.broadcast_to(step.w_qparams.scale, outputs), bias_type=np.float32)


def pack_channels(step: Conv, bias: np.ndarray, *floats: np.ndarray) -> list[np.ndarray]:
    """Weights [block of 64][group of four places][vector][lane][place], biases, factors and other floats [block of
    64][vector][lane] (``depthwise.ORDER``).
    """
    weight = by_four(step)
    channels, count = weight.shape
    # What fits several times into a block is there as many times, for as many neighbouring positions.
    times = WIDE // channels if WIDE % channels == 0 else 1
    weight, bias, *floats = (np.concatenate([values] * times) for values in (weight, bias, *floats))
    channels *= times
    blocks, groups = -(-channels // WIDE), -(-count // 4)
    order = np.array(ORDER)
    padded = np.zeros((blocks * WIDE, groups * 4), np.int8)
    padded[:channels, :count] = weight
    packed, tables = aligned(padded.size, np.int8), []
    packed[:] = padded.reshape(blocks, WIDE, groups, 4)[:, order].transpose(0, 3, 1, 2, 4).ravel()
    for values in (lanes(bias, channels, np.int32), *(lanes(values, channels, np.float32) for values in floats)):
        table, full = aligned(blocks * WIDE, values.dtype), np.zeros(blocks * WIDE, values.dtype)
        full[: len(values)] = values
        table[:] = full.reshape(blocks, WIDE)[:, order].ravel()
        tables.append(table)
    return [packed, *tables]


def by_four(step: Conv) -> np.ndarray:
    """The places of a depthwise kernel in a row, those of ``pairs`` kernels with a zero behind each line of three."""
    weight = step.weight.reshape(len(step.weight), 1, -1) if step.weight.ndim == 3 else step.weight[:, 0]
    return np.pad(weight, [(0, 0), (0, 0), (0, int(in_pairs(step)))]).reshape(len(weight), -1)


def in_pairs(step: Conv) -> bool:
    """Whether a depthwise convolution computes two neighbouring outputs at a time."""
    return step.weight.shape[2:] == (3, 3) and step.stride[1] == 1 and step.dilation == (1, 1)
