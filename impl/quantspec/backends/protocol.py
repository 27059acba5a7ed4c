"""What a backend is: an object with ``name``, ``version``, ``dialect`` and any of the methods of ``Backend``.

Arrays are NumPy's, in and out, so that anything can be adapted. A method that is missing means "not offered", never "failed". A method raises
``NotOffered`` for arguments that the backend has no kernel for, and must never answer them with the result of something else. It raises
``ValueError`` or whatever its kernel raises for arguments that the kernel itself refuses. It does not write to its arguments.

Codes are uint8 where qmin >= 0 and int8 otherwise. Activations are [rows, features], or [images, channels, height, width] for windows; weights are
[outputs, inputs], or [outputs, inputs / groups, height, width]. Pairs such as strides are (vertical, horizontal).
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from quantspec.numerics.affine import QParams

OPERATIONS = (
    "quantize", "dequantize", "qparams", "linear", "linear_dynamic", "conv2d", "add", "mul", "concat",
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "fold_batch_norm",
)
# No operation, but a method that a backend may have: it says in the backend's own words what a call of an operation is.
REPRODUCTION = "reproduction"
# Neither is this: from then on the backend keeps what its users make once and use often, such as packed weights. It is told so where calls follow each other.
KEEP = "keep"
# Dialects have no choice here: what comes out is an exact integer.
EXACT = ("max_pool2d",)


class NotOffered(Exception):
    """The backend has no kernel for these arguments; the message says what it lacks."""


class BackendError(Exception):
    """A backend raised something other than ``NotOffered`` or ``ValueError``: ``kind`` is the name of its type."""

    def __init__(self, kind: str, message: str):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


class Backend(Protocol):
    """The whole protocol. ``dialect`` is a name of chapter 10, a set of names of which each output follows one, or a mapping from operations to either.

    Float parameters reach the kernel as the float32 that they are, widened where the backend's own interface takes a float64.
    """

    name: str
    version: str
    dialect: str | frozenset[str] | Mapping[str, str | frozenset[str]]

    def quantize(self, x: np.ndarray, scale, zero_point, *, qmin: int, qmax: int, axis: int | None = None) -> np.ndarray:
        """Codes of float32 ``x``, same shape. ``scale``, ``zero_point``: one each, or one per index of ``axis``. Not checked on the way: what does
        the kernel do with a scale of 0?"""

    def dequantize(self, q: np.ndarray, scale, zero_point, *, axis: int | None = None) -> np.ndarray:
        """The float32 that codes stand for, exact up to one rounding (AFF-MEANING)."""

    def qparams(self, minimum, maximum, *, qmin: int, qmax: int, symmetric: bool) -> tuple[np.float32, int]:
        """Scale and zero point for values from minimum to maximum."""

    def linear(self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *, relu: bool = False) -> np.ndarray:
        """Output codes [rows, outputs]. ``bias``: float32 (outputs,); a backend whose kernel takes integers rounds it by INT-BIAS. The accumulator is
        exact unless the dialect says otherwise."""

    def linear_dynamic(self, x: np.ndarray, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, *, relu: bool = False) -> np.ndarray:
        """Float32 output [rows, outputs]; the grid of float32 ``x`` is that of its own range (chapter 6)."""

    def conv2d(
        self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, bias: np.ndarray | None, y: QParams, *,
        stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups: int = 1, relu: bool = False,
    ) -> np.ndarray:  # fmt: skip
        """Output codes [images, outputs, rows, columns]; padding is symmetric and has the code of zero. The accumulator as for ``linear``."""

    def add(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams, *, relu: bool = False) -> np.ndarray:
        """Codes of the sum of two arrays of one shape."""

    def mul(self, a_q: np.ndarray, a: QParams, b_q: np.ndarray, b: QParams, y: QParams) -> np.ndarray:
        """Codes of the product, element by element, of two arrays of one shape."""

    def concat(self, parts: list[tuple[np.ndarray, QParams]], y: QParams, *, axis: int) -> np.ndarray:
        """Codes of arrays on grids of their own, joined on grid ``y``."""

    def max_pool2d(self, q: np.ndarray, grid: QParams, *, kernel, stride=None, padding=(0, 0), dilation=(1, 1)) -> np.ndarray:
        """The largest code of each window, exactly; the grid stays. Without ``stride`` it is the kernel."""

    def avg_pool2d(self, q: np.ndarray, grid: QParams, *, kernel, stride=None, padding=(0, 0), count_include_pad: bool = True) -> np.ndarray:
        """The average code of each window; the grid stays."""

    def adaptive_avg_pool2d(self, q: np.ndarray, grid: QParams, *, size: tuple[int, int]) -> np.ndarray:
        """The average code of each of ``size`` windows, which split the image as evenly as they can; the grid stays."""

    def fold_batch_norm(self, weight, bias, gamma, beta, mean, var, eps: float) -> tuple[np.ndarray, np.ndarray]:
        """Float32 weight and bias of a layer that does what the layer and the batch normalization behind it did."""

    def keep(self) -> None:
        """From here on, what users of the backend make once for many calls is kept: packed weights, sessions. Else calls share nothing."""

    def reproduction(self, operation: str, /, *arguments, **options) -> str:
        """A short Python script that makes the kernel call of an operation through the backend's own interface, and prints the raw result as lists. It has
        nothing of quantspec in it, and is not run here. Numbers are without loss. An option ``before`` has calls (operation, arguments, options) that come first, with
        what is kept. ValueError for arrays of more than 256 elements."""


def offers(backend: object) -> tuple[str, ...]:
    """The operations that a backend has a method for, in the order of ``OPERATIONS``."""
    return tuple(operation for operation in OPERATIONS if callable(getattr(backend, operation, None)))


def dialects(backend: object, operation: str) -> frozenset[str]:
    """The dialects of which each output of an operation follows one. ValueError when the backend declares none for it."""
    declared = backend.dialect
    if isinstance(declared, Mapping):
        if operation not in declared:
            raise ValueError(f"dialect: backend {backend.name!r} offers {operation} and declares no dialect for it")
        declared = declared[operation]
    return frozenset([declared]) if isinstance(declared, str) else frozenset(declared)


def whole_byte(grid: QParams) -> None:
    """Raises NotOffered for grids that do not use all codes of their byte: most kernels saturate at the byte's ends only."""
    if grid.qmax - grid.qmin != 255:
        raise NotOffered(f"codes from {grid.qmin} to {grid.qmax}: the kernel knows whole bytes only")


def per_tensor(grid: QParams, name: str) -> None:
    """Raises NotOffered for a grid with an axis, where the kernel takes one scale."""
    if grid.axis is not None:
        raise NotOffered(f"{name}: one scale a channel")
