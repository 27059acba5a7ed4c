"""Affine quantization, vectorised: chapter 1 on whole NumPy arrays.

Every function gives exactly what the chapter's definitions give, element by element. The quotients are computed in
float64, which is enough: the quotient of two float32 that is not half-way between two integers below 2^10 misses
half-way by at least 2^-26, and float64 resolves 2^-44 there.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from quantspec.kernels.arrays import ArrayGrid

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Real = np.ndarray | np.float32 | float  # one or an array
Scalar = TypeVar("Scalar", bound=np.generic)

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, 2.0**119
SCALE_FLOOR = 2.0**-63
MANY = 2**12  # values from which on a compiled loop quantizes
FLOAT32 = np.dtype(np.float32)
BEYOND_FLOAT32 = 2.0**128  # where the float32 after the largest one would be


def code_range(bits: int, *, signed: bool) -> tuple[int, int]:
    """(qmin, qmax) of codes of ``bits`` bits, 2 to 8 (AFF-CODES). Raises ValueError for other widths (AFF-BITS)."""
    if bits not in range(2, 9):
        raise ValueError(f"bits: expected 2 to 8, got {bits}")
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def saturate(codes: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """Codes beyond an end become that end (AFF-SATURATE). Same shape and dtype."""
    saturated: np.ndarray = np.clip(codes, lowest, highest)
    return saturated


@dataclass(frozen=True, eq=False, init=False)
class QParams:
    """The grid of a tensor: scale (real value per LSB), zero_point (code), the codes it may use, channel axis.

    ``scale`` is float32 with shape () per tensor or (channels,) per channel; ``zero_point`` is int32 with the same
    shape, or () when all channels share it. Raises ValueError for what AFF-SCALE, AFF-ZERO-POINT and AFF-CHANNEL-COUNT
    refuse.
    """

    scale: Float32
    zero_point: Int32
    qmin: int
    qmax: int
    axis: int | None = None
    dtype: np.dtype[np.generic] = field(init=False)

    def __init__(
        self, scale: ArrayLike, zero_point: ArrayLike, qmin: int, qmax: int, axis: int | None = None
    ) -> None:
        scale, zero_point = checked_qparams(scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        for array in (scale, zero_point):
            array.setflags(write=False)
        fields = {"scale": scale, "zero_point": zero_point, "qmin": qmin, "qmax": qmax, "axis": axis}
        for name, value in (fields | {"dtype": code_dtype(qmin, qmax)}).items():
            object.__setattr__(self, name, value)

    @property
    def nbytes(self) -> int:
        """Bytes that the scales and zero points take when stored (SIZ-QPARAMS)."""
        return self.scale.nbytes + self.zero_point.nbytes

    @functools.cached_property
    def array_grid(self) -> "ArrayGrid":
        """What compiled loops over arrays take. ValueError for a grid that is not per tensor."""
        from quantspec.kernels.arrays import ArrayGrid

        if self.axis is not None:
            raise ValueError(f"grid: expected one for the whole array, got one along axis {self.axis}")
        return ArrayGrid(float(self.scale), int(self.zero_point), self.qmin, self.qmax, self.dtype)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """The codes of real values; see ``quantize``."""
        if self.axis is None and isinstance(x, np.ndarray) and x.size >= MANY:
            return compiled().quantize(float32_array(x), self.array_grid)
        return quantize(x, self.scale, self.zero_point, qmin=self.qmin, qmax=self.qmax, axis=self.axis)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """The real values of codes as float32; see ``dequantize``."""
        if self.axis is None and isinstance(q, np.ndarray) and q.dtype == self.dtype and q.size >= MANY:
            return compiled().dequantize(q, self.array_grid)
        return dequantize(q, self.scale, self.zero_point, axis=self.axis)


class ArrayLoops(Protocol):
    """Compiled loops over whole arrays."""

    def quantize(self, x: np.ndarray, grid: "ArrayGrid") -> np.ndarray: ...

    def dequantize(self, q: np.ndarray, grid: "ArrayGrid") -> np.ndarray: ...


@functools.cache
def compiled() -> ArrayLoops:
    """The loops, whose compiler is loaded when they are first asked for."""
    from quantspec.kernels import arrays

    return arrays


def code_dtype(qmin: int, qmax: int) -> np.dtype[np.generic]:
    """uint8 or int8, whichever holds the codes from qmin to qmax; ValueError when neither does."""
    if 0 <= qmin < qmax <= 255:
        return np.dtype(np.uint8)
    if -128 <= qmin < qmax <= 127:
        return np.dtype(np.int8)
    raise ValueError(f"qmin, qmax: expected codes of one byte with qmin < qmax, got {qmin} and {qmax}")


def checked_qparams(
    scale: ArrayLike, zero_point: ArrayLike, *, qmin: int, qmax: int, axis: int | None
) -> tuple[Float32, Int32]:
    """Copies of scale and zero_point; ValueError for what describes no grid (AFF-SCALE, AFF-ZERO-POINT)."""
    code_dtype(qmin, qmax)
    scale, points = checked_grid(scale, zero_point, qmin, qmax)
    if axis is None and (scale.ndim or points.ndim):
        shapes = f"{scale.shape} and {points.shape}"
        raise ValueError(f"scale, zero_point: expected one of each without an axis, got shapes {shapes}")
    if axis is not None and (scale.ndim != 1 or points.shape not in ((), scale.shape)):
        raise ValueError(f"scale, zero_point: expected one per channel, got shapes {scale.shape} and {points.shape}")
    return scale, points


def checked_grid(scale: ArrayLike, zero_point: ArrayLike, qmin: int, qmax: int) -> tuple[Float32, Int32]:
    """Copies of scale and zero_point, of any shapes; ValueError for values that describe no grid."""
    with np.errstate(over="ignore"):  # a scale beyond float32 becomes infinite and is refused below
        scale = np.array(scale, dtype=np.float32)
    points = np.array(zero_point)
    if not np.all((scale >= SMALLEST_SCALE) & (scale <= LARGEST_SCALE)):
        raise ValueError(f"scale: expected float32 from 2^-126 to 2^119, got {scale}")
    if not np.all((points >= qmin) & (points <= qmax) & (points == np.round(points))):
        raise ValueError(f"zero_point: expected integers from {qmin} to {qmax}, got {points}")
    return scale, points.astype(np.int32)


def along(axis: int | None, channels: NDArray[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    """``channels`` (() or (n,)) shaped to broadcast along ``axis`` of ``shape``.

    ValueError naming both counts where there are not as many (AFF-CHANNEL-COUNT).
    """
    if axis is None or channels.ndim == 0:
        return channels
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis: expected an axis of an array of shape {shape}, got {axis}")
    if channels.size != shape[axis]:
        raise ValueError(f"scale, zero_point: expected {shape[axis]} channels along axis {axis}, got {channels.size}")
    return np.expand_dims(channels, [i for i in range(len(shape)) if i != axis % len(shape)])


def check_memory(x: Any, name: str) -> None:
    """ValueError for a tensor of torch whose storage is shorter than what it names, which NumPy would read beyond."""
    if not hasattr(x, "untyped_storage"):
        return
    try:
        steps = sum((n - 1) * step for n, step in zip(x.shape, x.stride()))
        end = x.element_size() * (1 + x.storage_offset() + steps) if x.numel() else 0
        size = x.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # what has no storage has none that is too short
        return
    if size < end:
        raise ValueError(f"{name}: a tensor of shape {tuple(x.shape)} ends at byte {end} of {size} in its storage")


def float32_array(x: ArrayLike, name: str = "x") -> Float32:
    """``x`` as float32 without a copy where it is one; TypeError naming the argument when that would lose digits."""
    if type(x) is np.ndarray and x.dtype == FLOAT32:
        return x
    check_memory(x, name)
    if hasattr(x, "_is_zerotensor") and x._is_zerotensor():  # NumPy reads it under torch 2.6, wherever that is
        raise TypeError(f"{name}: expected float32 values, got a {type(x).__name__} without memory")
    try:
        x = np.asarray(x)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:  # a tensor that needs a gradient, say
        raise TypeError(f"{name}: expected float32 values, got a {type(x).__name__}: {error}") from error
    if x.dtype != np.float32 and not (x.dtype.kind in ("i", "u") and np.can_cast(x.dtype, np.float32)):
        if x.dtype.kind != "f" or not np.array_equal(x.astype(np.float32), x, equal_nan=True):
            raise TypeError(f"{name}: expected float32 values, got {x.dtype} values that float32 cannot hold")
    return np.asarray(x, dtype=np.float32)


def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, *, qmin: int, qmax: int, axis: int | None = None
) -> np.ndarray:
    """The codes of real values (AFF-NEAREST, AFF-TIES, AFF-ORDER, AFF-SATURATE, AFF-INFINITY, AFF-CHANNEL).

    ``x``: float32 array of any shape. Returns codes of the same shape, uint8 or int8.
    Raises ValueError for NaN (AFF-NAN) and qparams that describe no grid, TypeError for values that are not float32.
    """
    scale, zero_point = checked_qparams(scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    x = float32_array(x)
    steps = np.divide(x, along(axis, scale, x.shape), dtype=np.float64)
    if np.isnan(steps).any():
        raise ValueError(f"x: expected numbers, got {int(np.isnan(x).sum())} NaN")
    codes = saturate(np.rint(steps) + along(axis, zero_point, x.shape), qmin, qmax)
    return codes.astype(code_dtype(qmin, qmax))


def dequantize(q: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, *, axis: int | None = None) -> Float32:
    """The real values of codes, float32 of the same shape (AFF-MEANING).

    Raises TypeError unless ``q`` holds integers, ValueError for qparams that describe no grid of its type (AFF-SCALE,
    AFF-ZERO-POINT).
    """
    q = np.asarray(q)
    if q.dtype.kind not in ("i", "u"):
        raise TypeError(f"q: expected integer codes, got {q.dtype}")
    qmin, qmax = (np.iinfo(q.dtype).min, np.iinfo(q.dtype).max) if q.dtype.itemsize == 1 else (-128, 255)
    scale, zero_point = checked_grid(scale, zero_point, qmin, qmax)
    # q - zero_point has 9 bits and is exact in float32, so that this product is the only rounding.
    steps = (q.astype(np.int32) - along(axis, zero_point, q.shape)).astype(np.float32)
    return steps * along(axis, scale, q.shape)


def nearest_float32(value: Fraction) -> np.float32:
    """The float32 nearest to an exact value, ties to even; infinite beyond the largest float32 (AFF-MEANING)."""
    limit = Fraction(BEYOND_FLOAT32)
    value = min(max(value, -limit), limit)
    with np.errstate(over="ignore"):
        nearest = np.float32(float(value))
        # float() rounded once and float32() again, so one of the neighbours may be nearer. A tie is even in its last
        # bit.
        candidates = (np.nextafter(nearest, np.float32(-np.inf)), nearest, np.nextafter(nearest, np.float32(np.inf)))

    def distance(candidate: np.float32) -> tuple[Fraction, int]:
        # Infinity stands where the next float32 would be, which is what IEEE 754 rounds by.
        real = min(max(float(candidate), -BEYOND_FLOAT32), BEYOND_FLOAT32)
        return abs(Fraction(real) - value), int(candidate.view(np.int32)) & 1

    return min(candidates, key=distance)


def nearest_float32s(approximate: Float64, exact: Callable[[int], Fraction]) -> Float32:
    """The float32 values nearest to numbers of which ``approximate`` is off by at most 2^-50 of their size.

    ``exact(i)`` is the i-th number.
    """
    with np.errstate(over="ignore"):
        below, above = ((approximate * (1 + sign * 2.0**-50)).astype(np.float32) for sign in (-1, 1))
    # Hardly ever does a number lie so close to the middle between two.
    for i in np.flatnonzero(below != above):
        below[i] = nearest_float32(exact(int(i)))
    return below


def qparams(
    minimum: Real, maximum: Real, *, qmin: int, qmax: int, symmetric: bool, axis: int | None = None
) -> QParams:
    """The grid for values from minimum to maximum (chapter 1, "qparams from a range" and "Symmetric qparams").

    ``minimum``, ``maximum``: float32 of shape () or, with ``axis``, (channels,). Symmetric: AFF-SYMMETRIC; affine:
    AFF-RANGE-*. Raises ValueError for NaN, infinite, unordered or too wide ranges (AFF-RANGE-ORDER, AFF-RANGE-HUGE).
    """
    code_dtype(qmin, qmax)
    low, high = checked_range(minimum, maximum)
    if symmetric:
        center = (qmin + qmax + 1) // 2
        steps = min(center - qmin, qmax - center)
        ends = np.zeros_like(low), np.maximum(np.abs(low), np.abs(high))
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        steps = qmax - qmin
        ends = low, high
    first, last = (end.astype(np.float64).ravel() for end in ends)
    nearest = nearest_float32s((last - first) / steps, lambda i: (Fraction(last[i]) - Fraction(first[i])) / steps)
    scale = nearest.reshape(low.shape)
    scale = np.where(ends[0] == ends[1], np.float32(1), np.maximum(scale, np.float32(SCALE_FLOOR)))
    if np.any(scale > LARGEST_SCALE):
        raise ValueError(f"maximum: the range is too wide, its scale {scale.max()} exceeds 2^119")
    zero_point: np.ndarray | np.int32
    if symmetric:
        zero_point = np.int32(center)
    else:
        # Among the codes by itself: the scale is rounded by far less than half a step in qmax - qmin.
        zero_point = qmin - np.rint(np.divide(low, scale, dtype=np.float64))
    return QParams(scale, zero_point, qmin, qmax, axis)


def checked_range(minimum: Real, maximum: Real) -> tuple[Float32, Float32]:
    """Both ends as float32; ValueError unless finite and in order (AFF-RANGE-ORDER)."""
    low, high = float32_array(minimum, "minimum"), float32_array(maximum, "maximum")
    if low.shape != high.shape:
        raise ValueError(f"minimum, maximum: expected one shape, got {low.shape} and {high.shape}")
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"minimum, maximum: expected finite numbers, got {minimum} and {maximum}")
    if np.any(low > high):
        raise ValueError(f"minimum: expected at most maximum, got {minimum} above {maximum}")
    return low, high
