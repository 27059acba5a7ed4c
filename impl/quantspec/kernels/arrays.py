"""Quantize and dequantize whole arrays by a grid for all of their values, at the speed of memory."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import quantize as quantize_kernel
from .emitter import BYTES, DOUBLES, I64, INTS, Emitter, Value
from .frame import Caller, Frame, array_caller, frame_of, slot_addresses
from .jit import Kernel
from .records import Grid, Instruction, Integer, Nested

FLOAT32 = np.dtype(np.float32)
FRAMES_KEPT = 64  # grids that a thread keeps a frame for


@dataclass(frozen=True, eq=False)
class ArrayGrid:
    """A grid in plain numbers: real value per step, the code of zero, the first and the last code, and the type of
    the codes.

    Two that are equal are two nevertheless: a thread finds what it prepared for one by its identity.
    """

    scale: float
    zero: int
    first: int
    last: int
    dtype: np.dtype


class ExactGrid(Grid):
    """A grid, and its first and last code."""

    first: Integer
    last: Integer


class OverArray(Instruction):
    """What goes over the whole of one array: its grid."""

    grid: Nested[ExactGrid]


def run_divide(emit: Emitter, grid: Value, source: Value, target: Value, count: Value) -> Value:
    """``count`` floats at ``source`` to codes at ``target`` as AFF-NEAREST and AFF-TIES say, by divisions in float64;
    1 when there was a NaN, otherwise 0.

    A quotient of two float32 that is no tie between two integers below 2^10 is 2^-26 of a step away from one, and
    float64 has room for that.
    """
    scale = emit.fpext(emit.splat(emit.field(grid, Grid.scale)), DOUBLES)
    zero, *codes = emit.splat_fields(grid, Grid.zero, ExactGrid.first, ExactGrid.last)
    first, last = (emit.sitofp(emit.sub(code, zero), DOUBLES) for code in codes)

    def divided(x: Value) -> Value:
        steps = emit.minimum(emit.maximum(emit.fdiv(emit.fpext(x, DOUBLES), scale), first), last)
        return emit.trunc(emit.add(emit.fptosi(emit.integral(steps), INTS), zero), BYTES)

    return quantize_kernel.by_vectors(emit, divided, source, target, count)


def write_quantize(signed: bool) -> Callable[..., Value]:
    """Writes the kernel that turns ``length`` bytes of floats, the first slot, to int8 or uint8 codes, the second; 1
    when there was a NaN.
    """

    def write(emit: Emitter, op: Value, frame: Value) -> Value:
        count = emit.sdiv(emit.field(frame, Frame.length), I64(4))
        run = quantize_kernel.quantizer("divide_exactly", run_divide, signed)
        return run(emit, emit.place(op, OverArray.grid), *slot_addresses(emit, frame), count)

    return write


def write_dequantize(signed: bool) -> Callable[..., None]:
    """Writes the kernel that turns ``length`` codes, the first slot, to floats, the second (AFF-MEANING)."""

    def write(emit: Emitter, op: Value, frame: Value) -> None:
        grid, length = emit.place(op, OverArray.grid), emit.field(frame, Frame.length)
        quantize_kernel.run_dequantize(emit, grid, *slot_addresses(emit, frame), length, signed)

    return write


def kernels(name: str, write: Callable[[bool], Callable[..., Value | None]]) -> dict[np.dtype, Kernel[OverArray]]:
    """The kernels for either type of codes."""
    types = (np.dtype(np.uint8), False), (np.dtype(np.int8), True)
    return {dtype: Kernel(f"{name}_{dtype}_array", OverArray, write(signed)) for dtype, signed in types}


QUANTIZE, DEQUANTIZE = kernels("quantize", write_quantize), kernels("dequantize", write_dequantize)
Prepared = tuple[Frame, int, Caller]  # what a thread runs: a frame, its address, and what calls it


class Ready(threading.local):
    """What this thread has prepared, by the grid."""

    def __init__(self) -> None:
        self.quantize: dict[ArrayGrid, Prepared] = {}
        self.dequantize: dict[ArrayGrid, Prepared] = {}


ready = Ready()


def quantize(x: np.ndarray, grid: ArrayGrid, *, out: np.ndarray | None = None) -> np.ndarray:
    """The codes of float32 values of any shape (AFF-NEAREST, AFF-TIES, AFF-ORDER, AFF-SATURATE, AFF-INFINITY), in
    ``out`` where it is given.

    Raises ValueError for NaN, with ``out`` in any state, and for an ``out`` of another shape or type, TypeError for
    values of another type.
    """
    if x.dtype != FLOAT32:
        raise TypeError(f"x: expected float32 values, got {x.dtype}")
    result = np.empty(x.shape, grid.dtype) if out is None else checked(out, x.shape, grid.dtype)
    _, frame, call = ready.quantize.get(grid) or prepared(QUANTIZE, ready.quantize, grid)
    try:
        nan = call(frame, x, result)
    except (BufferError, ValueError):
        nan = call(frame, np.ascontiguousarray(x), in_one_piece(result))
    if nan:
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    return result


def dequantize(q: np.ndarray, grid: ArrayGrid, *, out: np.ndarray | None = None) -> np.ndarray:
    """The float32 values of codes of any shape (AFF-MEANING), in ``out`` where it is given.

    Raises ValueError for an ``out`` of another shape or type, TypeError for codes of another type than the grid's.
    """
    if q.dtype != grid.dtype:
        raise TypeError(f"q: expected {grid.dtype} codes, got {q.dtype}")
    result = np.empty(q.shape, FLOAT32) if out is None else checked(out, q.shape, FLOAT32)
    _, frame, call = ready.dequantize.get(grid) or prepared(DEQUANTIZE, ready.dequantize, grid)
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
        got = f"strides {out.strides}, writeable: {out.flags.writeable}"
        raise ValueError(f"out: expected a contiguous {out.dtype} array that can be written to, got {got}")
    return out


def prepared(
    kernels: dict[np.dtype, Kernel[OverArray]], existing: dict[ArrayGrid, Prepared], grid: ArrayGrid
) -> Prepared:
    """What runs a kernel for a grid from now on."""
    if len(existing) >= FRAMES_KEPT:
        existing.clear()
    plain = quantize_kernel.grid_record(grid.scale, grid.zero, grid.first, grid.last)
    exact = ExactGrid(
        scale=plain.scale, inverse=plain.inverse, low=plain.low, high=plain.high, zero=plain.zero, first=grid.first,
        last=grid.last,
    )
    frame = frame_of(kernels[grid.dtype].bound(OverArray(grid=exact)))
    existing[grid] = frame, frame.address, array_caller()
    return existing[grid]
