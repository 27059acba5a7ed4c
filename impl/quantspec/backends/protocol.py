"""The interface of backends: an object with ``name``, ``version``, ``dialect`` and any of the methods of the
``Offers`` protocols.

Inputs and outputs are NumPy arrays. A missing method means that the operation is not offered; that is not a failure. A
method raises ``NotOffered`` for arguments that the backend has no kernel for, and must not compute them in another way.
It raises ``ValueError``, or whatever its kernel raises, for arguments that the kernel rejects. It does not modify its
arguments.

Codes are uint8 where qmin >= 0 and int8 otherwise. Activations are [rows, features], or [images, channels, height,
width] for convolution and pooling; weights are [outputs, inputs], or [outputs, inputs / groups, height, width]. Pairs
such as strides are (vertical, horizontal). Float parameters are float32; an adapter widens them where the backend's own
interface takes a float64.

Arrays are in C order, in Fortran order, with gaps (every second element of a larger array), or channels last: the same
shape, with the strides of [images, height, width, channels] (``has_channels_last``). An adapter passes a memory format
on where the kernel supports it, and copies otherwise.

An adapter may inherit from the protocols that it implements, so that type checkers verify its methods.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np

from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect

OPERATIONS = (
    "quantize", "dequantize", "qparams", "linear", "linear_dynamic", "conv2d", "add", "mul", "concat",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "fold_batch_norm",
)
# No operation, but a method that a backend may have: see ``Reproduces``.
REPRODUCTION = "reproduction"
# Answered with two parts; the others with one array.
TWO_PARTS = ("qparams", "fold_batch_norm")
# Dialects have no choice here: what comes out is an exact integer.
EXACT = ("max_pool2d",)
THREADS = "QUANTSPEC_THREADS"  # the variable that says how many threads a worker's backend may use

Scales: TypeAlias = np.ndarray | np.float32 | float
ZeroPoints: TypeAlias = np.ndarray | np.integer[Any] | int
Pair: TypeAlias = tuple[int, int]
CodesOnGrids: TypeAlias = Sequence[tuple[np.ndarray, QParams]]
# Most operations answer with one array; ``qparams`` and ``fold_batch_norm`` with two parts.
Answer: TypeAlias = np.ndarray | tuple[np.float32, int] | tuple[np.ndarray, np.ndarray]
Operation: TypeAlias = Callable[..., Answer]
# A name of chapter 10, or a set of names of which each output follows one.
Dialects: TypeAlias = str | frozenset[str]


class NotOffered(Exception):
    """The backend has no kernel for these arguments; the message says what it lacks."""


class BackendError(Exception):
    """A backend raised something other than ``NotOffered`` or ``ValueError``: ``kind`` is the name of its type."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class Backend(Protocol):
    """What every backend has. ``dialect`` declares the dialects of all operations, or a mapping for each operation."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def dialect(self) -> Dialects | Mapping[str, Dialects]: ...


class OffersQuantize(Protocol):
    def quantize(
        self, x: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, qmin: int, qmax: int, axis: int | None = None
    ) -> np.ndarray:
        """Codes of float32 ``x``, same shape. ``scale``, ``zero_point``: one each, or one per index of ``axis``. They
        are passed on unchecked, so that the kernel's handling of a scale of 0 can be tested."""
        ...


class OffersDequantize(Protocol):
    def dequantize(
        self, q: np.ndarray, scale: Scales, zero_point: ZeroPoints, *, axis: int | None = None
    ) -> np.ndarray:
        """The float32 values of codes, exact up to one rounding (AFF-MEANING)."""
        ...


class OffersQParams(Protocol):
    def qparams(
        self, minimum: np.float32, maximum: np.float32, *, qmin: int, qmax: int, symmetric: bool
    ) -> tuple[np.float32, int]:
        """Scale and zero point for the range from minimum to maximum."""
        ...


class OffersLinear(Protocol):
    def linear(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        relu: bool = False,
    ) -> np.ndarray:
        """Output codes [rows, outputs]. ``bias``: float32 (outputs,); a backend whose kernel takes an integer bias
        rounds it by INT-BIAS. The accumulator is exact unless the dialect says otherwise."""
        ...


class OffersLinearDynamic(Protocol):
    def linear_dynamic(
        self, x: np.ndarray, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, relu: bool = False
    ) -> np.ndarray:
        """Float32 output [rows, outputs]; float32 ``x`` is quantized by its own range (chapter 6)."""
        ...


class OffersConv2d(Protocol):
    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:
        """Output codes [images, outputs, rows, columns]. Padding is symmetric and holds the zero point. The accumulator
        is as for ``linear``."""
        ...


class OffersAdd(Protocol):
    def add(
        self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, *, relu: bool = False
    ) -> np.ndarray:
        """Codes of the sum of two arrays of the same shape."""
        ...


class OffersMul(Protocol):
    def mul(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
        """Codes of the elementwise product of two arrays of the same shape."""
        ...


class OffersConcat(Protocol):
    def concat(self, parts: CodesOnGrids, y: QParams, *, axis: int) -> np.ndarray:
        """Codes on grid ``y`` of arrays that are concatenated along ``axis``; each part has its own grid."""
        ...


class OffersMaxPool2d(Protocol):
    def max_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), dilation: Pair = (1, 1),
    ) -> np.ndarray:
        """The largest code of each window, on the same grid. ``stride`` None: the size of the kernel."""
        ...


class OffersAvgPool2d(Protocol):
    def avg_pool2d(
        self, q: np.ndarray, grid: QParams, *,
        kernel: Pair, stride: Pair | None = None, padding: Pair = (0, 0), count_include_pad: bool = True,
    ) -> np.ndarray:
        """The average code of each window, on the same grid."""
        ...


class OffersAdaptiveAvgPool2d(Protocol):
    def adaptive_avg_pool2d(self, q: np.ndarray, grid: QParams, *, size: Pair) -> np.ndarray:
        """The average code of each of ``size`` windows, which divide the image as evenly as possible, on the same grid.
        """
        ...


class OffersFoldBatchNorm(Protocol):
    def fold_batch_norm(
        self, weight: np.ndarray, bias: np.ndarray | None, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray,
        var: np.ndarray, eps: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Float32 weight and bias of one layer that replaces a layer and the batch normalization behind it."""
        ...


@runtime_checkable
class Keeps(Protocol):
    def keep(self) -> None:
        """Called before a sequence of calls: from then on the backend keeps what a user would create once for many
        calls, such as packed weights and sessions. Without it, calls share nothing."""
        ...


@runtime_checkable
class Reproduces(Protocol):
    def reproduction(self, operation: str, /, *arguments: Any, **options: Any) -> str:
        """A short Python script that makes the kernel call through the backend's own interface, without quantspec, and
        prints the raw result as lists. Numbers are written without loss. The option ``before`` holds calls
        (operation, arguments, options) that run first, where calls share state. The script is returned, not run.
        Raises ValueError for arrays of more than 256 elements."""
        ...


def method(backend: object, operation: str) -> Operation | None:
    """A backend's method for an operation, or None where it is not offered."""
    found = getattr(backend, operation, None)
    return cast(Operation, found) if callable(found) else None


def offers(backend: object) -> tuple[str, ...]:
    """The operations that a backend has a method for, in the order of ``OPERATIONS``."""
    return tuple(operation for operation in OPERATIONS if method(backend, operation) is not None)


def dialects(backend: Backend, operation: str) -> frozenset[str]:
    """The dialects that a backend declares for an operation; each output follows one of them. Raises ValueError when
    it declares none."""
    declared = backend.dialect
    if isinstance(declared, Mapping):
        if operation not in declared:
            raise ValueError(f"dialect: backend {backend.name!r} offers {operation} and declares no dialect for it")
        declared = declared[operation]
    found = frozenset([declared]) if isinstance(declared, str) else frozenset(declared or ())
    if not found:
        raise ValueError(f"dialect: backend {backend.name!r} declares none for {operation}")
    return found


def sums_exactly(linear: Callable[..., np.ndarray]) -> bool:
    """Whether linear layers (``OffersLinear.linear``) add products of bytes without saturating (DIA-ACCUMULATE); CPUs
    differ there."""
    x, w, y = QParams(1, 0, 0, 255), QParams(1, 0, -128, 127), QParams(np.float32(64 * 255 * 127 / 200), 0, 0, 255)
    codes = linear(np.full((1, 64), 255, np.uint8), x, np.full((16, 64), 127, np.int8), w, None, y)
    return bool((codes == 200).all())


def rounds_as(linear: Callable[..., np.ndarray], name: str) -> bool:
    """Whether linear layers (``OffersLinear.linear``) give the codes of a dialect where many outputs are near ties,
    which tell most steps of oneDNN apart; versions and CPUs differ there (DIA-EITHER)."""
    x, w, y = (
        QParams(np.float32(scale), point, qmin, qmin + 255)
        for scale, point, qmin in ((0.009, 3, 0), (0.023, 0, -128), (0.00621, 128, 0))
    )
    x_q, w_q = np.arange(256, dtype=np.uint8)[:, None], np.arange(-127, 128, 2).astype(np.int8)[:, None]
    layer = x_q, x, w_q, w, None, y
    return np.array_equal(linear(*layer), dialect(name).linear(*layer))


def whole_byte(grid: QParams) -> None:
    """Raises NotOffered for grids that do not use all codes of a byte, since most kernels saturate only at its ends.
    """
    if grid.qmax - grid.qmin != 255:
        raise NotOffered(f"codes from {grid.qmin} to {grid.qmax}: the kernel saturates at the ends of a byte only")


def per_tensor(grid: QParams, name: str) -> None:
    """Raises NotOffered for a per-channel grid, where the kernel takes one scale."""
    if grid.axis is not None:
        raise NotOffered(f"{name}: the kernel takes one scale, got one per channel")


def has_channels_last(images: np.ndarray) -> bool:
    """Whether images, or weights of convolutions, are in channels-last order in memory."""
    return images.ndim == 4 and not images.flags.c_contiguous and images.transpose(0, 2, 3, 1).flags.c_contiguous


def threads() -> int:
    """How many threads an adapter should use in this process: as the worker was started with; 1 outside of a worker."""
    return int(os.environ.get(THREADS, "1"))
