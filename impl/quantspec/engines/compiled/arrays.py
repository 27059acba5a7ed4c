"""Quantize and dequantize whole arrays by the kernels: what ``affine`` and the dialect ``onnx`` compute, at the speed of memory."""

import threading

import numpy as np

from ...affine import FLOAT32, QParams, float32_array
from . import codes
from .frames import frame_of
from .native import BEGIN, WIDTH, array_caller, kernel

UINT8 = np.dtype(np.uint8)
FRAMES_KEPT = 64  # grids that a thread keeps a frame for
KERNELS = {"quantize": codes.write_quantize_array, "dequantize": codes.write_dequantize_array}


class Frames(threading.local):
    """This thread's frames and their addresses, by the grid, for each of the kernels."""

    def __init__(self):
        self.quantize: dict[QParams, tuple[np.ndarray, int]] = {}
        self.dequantize: dict[QParams, tuple[np.ndarray, int]] = {}


frames = Frames()


def quantize(x: np.ndarray, grid: QParams, *, out: np.ndarray | None = None) -> np.ndarray:
    """The uint8 codes of an array of any shape on a grid per tensor (DIA-QUANTIZE, ``divide``), in ``out`` where it is given.

    Raises ValueError for NaN, with ``out`` in any state, for other grids, and for an ``out`` of another shape or type.
    """
    if type(x) is not np.ndarray or x.dtype != FLOAT32 or not x.flags.c_contiguous:
        x = np.ascontiguousarray(float32_array(x))
    result = np.empty(x.shape, UINT8) if out is None else checked(out, x.shape, UINT8)
    ready = frames.quantize.get(grid) or prepared("quantize", frames.quantize, grid)
    if array_caller()(ready[1], x, result):
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    return result


def dequantize(q: np.ndarray, grid: QParams, *, out: np.ndarray | None = None) -> np.ndarray:
    """The float32 values of uint8 codes of any shape (AFF-MEANING), in ``out`` where it is given.

    Raises ValueError for grids that are not per tensor and for an ``out`` of another shape or type, TypeError for other codes.
    """
    if type(q) is not np.ndarray or not q.flags.c_contiguous:
        q = np.ascontiguousarray(q)
    if q.dtype != UINT8:
        raise TypeError(f"q: expected uint8 codes, got {q.dtype}")
    result = np.empty(q.shape, FLOAT32) if out is None else checked(out, q.shape, FLOAT32)
    ready = frames.dequantize.get(grid) or prepared("dequantize", frames.dequantize, grid)
    array_caller()(ready[1], q, result)
    return result


def checked(out: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """``out``; ValueError where it cannot hold the result."""
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out: expected a contiguous {dtype} array of shape {shape}, got {out.dtype}{list(out.shape)}")
    return out


def prepared(name: str, known: dict, grid: QParams) -> tuple[np.ndarray, int]:
    """A new frame for a kernel and a grid, and its address. ValueError for a grid that is not of unsigned codes per tensor."""
    if grid.scale.ndim or grid.qmin < 0:
        raise ValueError(f"grid: expected one of unsigned codes for the whole array, got shape {grid.scale.shape} and codes from {grid.qmin}")
    if len(known) >= FRAMES_KEPT:
        known.clear()
    frame = frame_of(kernel(f"{name}_array", KERNELS[name]), {})
    codes.quantize_fields(frame[BEGIN : BEGIN + WIDTH], grid)
    known[grid] = frame, frame.ctypes.data
    return known[grid]
