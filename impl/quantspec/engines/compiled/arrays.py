"""Quantize and dequantize whole arrays by the kernels: what ``affine`` and the dialect ``onnx`` compute, at the speed of memory."""

import ctypes
import threading

import numpy as np

from ...affine import QParams, float32_array
from . import codes
from .frames import frame_of
from .native import BEGIN, RELEASE, WIDTH, caller, kernel

FRAMES_KEPT = 64  # grids that a thread keeps a frame for
LONG = 2**17  # values from which on other Python threads may run meanwhile
KERNELS = {"quantize": codes.write_quantize_array, "dequantize": codes.write_dequantize_array}
local = threading.local()


def quantize(x: np.ndarray, grid: QParams, *, out: np.ndarray | None = None) -> np.ndarray:
    """The uint8 codes of an array of any shape on a grid per tensor (DIA-QUANTIZE, ``divide``), in ``out`` where it is given.

    Raises ValueError for NaN, with ``out`` in any state, for other grids, and for an ``out`` of another shape or type.
    """
    if type(x) is not np.ndarray or x.dtype != np.float32 or not x.flags.c_contiguous:
        x = np.ascontiguousarray(float32_array(x))
    result = given(out, x.shape, np.uint8)
    if run("quantize", grid, x, result):
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    return result


def dequantize(q: np.ndarray, grid: QParams, *, out: np.ndarray | None = None) -> np.ndarray:
    """The float32 values of uint8 codes of any shape (AFF-MEANING), in ``out`` where it is given.

    Raises ValueError for grids that are not per tensor and for an ``out`` of another shape or type, TypeError for other codes.
    """
    q = np.ascontiguousarray(q)
    if q.dtype != np.uint8:
        raise TypeError(f"q: expected uint8 codes, got {q.dtype}")
    result = given(out, q.shape, np.float32)
    run("dequantize", grid, q, result)
    return result


def given(out: np.ndarray | None, shape: tuple[int, ...], dtype) -> np.ndarray:
    """``out``, or a new array. ValueError for one that cannot hold the result."""
    if out is None:
        return np.empty(shape, dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"out: expected a contiguous {np.dtype(dtype)} array of shape {shape}, got {out.dtype}{list(out.shape)}")
    return out


def run(name: str, grid: QParams, source: np.ndarray, target: np.ndarray) -> int:
    """Runs the kernel; 1 when an input holds NaN."""
    frames = local.__dict__.setdefault("frames", {})
    # Arrays of one element have neither a hash nor an order; their bytes tell the grid.
    key = name, grid.scale.tobytes(), grid.zero_point.tobytes(), grid.qmin, grid.qmax
    frame, address = frames.get(key) or prepared(frames, key, grid)
    frame[BEGIN + codes.WIDTH], frame[RELEASE] = source.size, source.size >= LONG
    return caller()(address, place(source), place(target))


def place(x: np.ndarray) -> int:
    """Where an array's values lie, by a third of the time that ``x.ctypes`` takes where it is writeable and not empty."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(x))
    except (TypeError, ValueError):
        return x.ctypes.data


def prepared(frames: dict, key: tuple, grid: QParams) -> tuple[np.ndarray, int]:
    """This thread's frame for a kernel and a grid, and its address. ValueError for a grid that is not of unsigned codes per tensor."""
    if grid.scale.ndim or grid.qmin < 0:
        raise ValueError(f"grid: expected one of unsigned codes for the whole array, got shape {grid.scale.shape} and codes from {grid.qmin}")
    if len(frames) >= FRAMES_KEPT:
        frames.clear()
    name = key[0]
    frame = frame_of(kernel(f"{name}_array", KERNELS[name]), {})
    codes.quantize_fields(frame[BEGIN : BEGIN + WIDTH], grid)
    frames[key] = frame, frame.ctypes.data
    return frames[key]
