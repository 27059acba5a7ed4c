"""Quantize and dequantize whole arrays by the kernels: what ``affine`` and the dialect ``onnx`` compute, at the speed of memory."""

import numpy as np

from ...affine import QParams, float32_array
from . import codes
from .frames import frame_of
from .native import ADDRESSES, BEGIN, WIDTH, caller, kernel


def quantize(x: np.ndarray, grid: QParams) -> np.ndarray:
    """The uint8 codes of an array of any shape on a grid per tensor (DIA-QUANTIZE, ``divide``). ValueError for NaN and for other grids."""
    check(grid)
    x = np.ascontiguousarray(float32_array(x))
    result = np.empty(x.shape, np.uint8)
    frame = frame_of(kernel("quantize", codes.write_quantize), {codes.TARGET: result.ctypes.data, codes.COUNT: 1, codes.WIDTH: x.size})
    codes.quantize_fields(frame[BEGIN : BEGIN + WIDTH], grid)
    frame[ADDRESSES] = x.ctypes.data
    if caller()(frame.ctypes.data, 0, 0):
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    return result


def dequantize(q: np.ndarray, grid: QParams) -> np.ndarray:
    """The float32 values of uint8 codes of any shape (AFF-MEANING). ValueError for grids that are not per tensor, TypeError for other codes."""
    check(grid)
    q = np.ascontiguousarray(q)
    if q.dtype != np.uint8:
        raise TypeError(f"q: expected uint8 codes, got {q.dtype}")
    result = np.empty(q.shape, np.float32)
    frame = frame_of(kernel("dequantize", codes.write_dequantize), {codes.SOURCE: q.ctypes.data, codes.COUNT: 1, codes.WIDTH: q.size})
    codes.quantize_fields(frame[BEGIN : BEGIN + WIDTH], grid)
    frame[ADDRESSES] = result.ctypes.data
    caller()(frame.ctypes.data, 0, 0)
    return result


def check(grid: QParams) -> None:
    if grid.scale.ndim or grid.qmin < 0:
        raise ValueError(f"grid: expected one of unsigned codes for the whole array, got shape {grid.scale.shape} and codes from {grid.qmin}")
