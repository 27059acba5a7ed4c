"""Quantize and dequantize whole arrays: what ``affine`` computes, at the speed of memory."""

import threading
from collections.abc import Callable

import numpy as np

from quantspec.numerics.affine import FLOAT32, QParams, float32_array

from . import quantize as quantize_kernel
from .emitter import BYTES, DOUBLES, F32, I32, I64, INTS, Emitter
from .frame import frame_of
from .jit import ADDRESSES, BEGIN, LENGTH, array_caller, kernel

FIRST, LAST = 12, 13  # qmin and qmax
FRAMES_KEPT = 64  # grids that a thread keeps a frame for


def run_divide(emit: Emitter, op, source, target, count):
    """``count`` floats at ``source`` to codes at ``target`` as AFF-NEAREST and AFF-TIES say, by divisions in float64; 1 when there was a NaN, otherwise 0.

    A quotient of two float32 that is no tie between two integers below 2^10 is 2^-26 of a step away from one, and float64 has room for that.
    """
    scale = emit.fpext(emit.splat(emit.field(op, quantize_kernel.SCALE, F32)), DOUBLES)
    zero = emit.splat(emit.trunc(emit.field(op, quantize_kernel.ZERO), I32))
    first, last = (emit.sitofp(emit.sub(emit.splat(emit.trunc(emit.field(op, entry), I32)), zero), DOUBLES) for entry in (FIRST, LAST))

    def divided(x):
        steps = emit.minimum(emit.maximum(emit.fdiv(emit.fpext(x, DOUBLES), scale), first), last)
        return emit.trunc(emit.add(emit.fptosi(emit.native("llvm.rint.v16f64", DOUBLES, steps), INTS), zero), BYTES)

    return quantize_kernel.by_vectors(emit, divided, source, target, count)


def write_quantize(signed: bool):
    """Writes the kernel that turns LENGTH bytes of floats, the first slot, to int8 or uint8 codes, the second; 1 when there was a NaN."""

    def write(emit: Emitter, op, frame):
        count = emit.sdiv(emit.field(frame, LENGTH), I64(4))
        run = quantize_kernel.quantizer("divide_exactly", run_divide, signed)
        return run(emit, op, emit.field(frame, ADDRESSES), emit.field(frame, ADDRESSES + 1), count)

    return write


def write_dequantize(signed: bool):
    """Writes the kernel that turns LENGTH codes, the first slot, to floats, the second (AFF-MEANING)."""

    def write(emit: Emitter, op, frame):
        quantize_kernel.run_dequantize(emit, op, emit.field(frame, ADDRESSES), emit.field(frame, ADDRESSES + 1), emit.field(frame, LENGTH), signed)

    return write


class Ready(threading.local):
    """What this thread runs, by the grid: a frame, which is kept, its address, and what calls it."""

    def __init__(self):
        self.quantize: dict[QParams, tuple] = {}
        self.dequantize: dict[QParams, tuple] = {}


ready = Ready()


def quantize(x: np.ndarray, grid: QParams, *, out: np.ndarray | None = None) -> np.ndarray:
    """The codes of an array of any shape on a grid per tensor (AFF-NEAREST, AFF-TIES, AFF-ORDER, AFF-SATURATE, AFF-INFINITY), in ``out`` where it is given.

    Raises ValueError for NaN, with ``out`` in any state, for other grids, and for an ``out`` of another shape or type.
    """
    if type(x) is not np.ndarray or x.dtype != FLOAT32:
        x = float32_array(x)
    result = np.empty(x.shape, grid.dtype) if out is None else checked(out, x.shape, grid.dtype)
    _, frame, call = ready.quantize.get(grid) or prepared("quantize", write_quantize, ready.quantize, grid)
    try:
        nan = call(frame, x, result)
    except (BufferError, ValueError):
        nan = call(frame, np.ascontiguousarray(x), in_one_piece(result))
    if nan:
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    return result


def dequantize(q: np.ndarray, grid: QParams, *, out: np.ndarray | None = None) -> np.ndarray:
    """The float32 values of codes of any shape (AFF-MEANING), in ``out`` where it is given.

    Raises ValueError for grids that are not per tensor and for an ``out`` of another shape or type, TypeError for codes of another type than the grid's.
    """
    if type(q) is not np.ndarray:
        q = np.asarray(q)
    if q.dtype != grid.dtype:
        raise TypeError(f"q: expected {grid.dtype} codes, got {q.dtype}")
    result = np.empty(q.shape, FLOAT32) if out is None else checked(out, q.shape, FLOAT32)
    _, frame, call = ready.dequantize.get(grid) or prepared("dequantize", write_dequantize, ready.dequantize, grid)
    try:
        call(frame, q, result)
    except (BufferError, ValueError):
        call(frame, np.ascontiguousarray(q), in_one_piece(result))
    return result


def checked(out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``out``; ValueError where the result is of another shape or type."""
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out: expected a contiguous {dtype} array of shape {shape}, got {out.dtype}{list(out.shape)}")
    return out


def in_one_piece(out: np.ndarray) -> np.ndarray:
    """``out``; ValueError where it cannot be written to as a whole."""
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out: expected a contiguous {out.dtype} array that can be written to, got strides {out.strides}, writeable: {out.flags.writeable}")
    return out


def prepared(name: str, write: Callable, known: dict, grid: QParams) -> tuple:
    """What runs a kernel for a grid from now on. ValueError for a grid that is not per tensor."""
    if grid.axis is not None:
        raise ValueError(f"grid: expected one for the whole array, got one along axis {grid.axis}")
    if len(known) >= FRAMES_KEPT:
        known.clear()
    frame = frame_of(kernel(f"{name}_{grid.dtype}_array", write(grid.qmin < 0)), {})
    op = frame[BEGIN:]
    op[FIRST], op[LAST] = grid.qmin, grid.qmax
    quantize_kernel.quantize_fields(op, grid)
    known[grid] = frame, frame.ctypes.data, array_caller()
    return known[grid]
