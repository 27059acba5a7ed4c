"""Transposed convolutions as dense ones (INT-CONV-TRANSPOSED).

Most of what a window over spread inputs sees are the zeros between them. Which places of the kernel see inputs depends
only on where the output lies modulo ``input_dilation``. So the outputs that agree in that are a convolution with those
places of the kernel over the inputs as they are.
"""

import itertools
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from quantspec.errors import UnsupportedError
from quantspec.ir.held import Held, changed, codes_shape
from quantspec.ir.program import Conv
from quantspec.kernels.memory import Triple

MOST_PARTS = 1024  # each has weights and instructions of its own


@dataclass(frozen=True, eq=False)
class DensePart:
    """A convolution over inputs as they are, and where its outputs lie among all.

    ``first``: the first of them; ``step``: the distance between two; for three axes of positions. ``taps``: the places
    of the kernel that it has, along each axis of the weight; none where it has all.
    """

    conv: Conv
    first: Triple = (0, 0, 0)
    step: Triple = (1, 1, 1)
    taps: tuple[list[int], ...] = ()

    def counts(self, sizes: Triple) -> Triple:
        """How many outputs there are along each axis, of ``sizes`` in all."""
        axes = zip(sizes, self.first, self.step)
        planes, lines, positions = (max(0, -(-(n - first) // step)) for n, first, step in axes)
        return planes, lines, positions


def triple(values: tuple[int, ...], missing: int) -> Triple:
    """One value for each of three axes of positions; the first axes may be missing."""
    planes, lines, positions = (missing,) * (3 - len(values)) + tuple(values)
    return planes, lines, positions


def is_transposed(step: Conv) -> bool:
    return set(step.input_dilation) != {1}


def dense_parts(step: Conv) -> list[DensePart]:
    """The convolutions that make a layer, only itself when its inputs are not spread.

    Along axes on which they are, its stride must be 1. Raises UnsupportedError for more parts than MOST_PARTS.
    """
    if not is_transposed(step):
        return [DensePart(step)]
    if prod(step.input_dilation) > MOST_PARTS:
        expected = f"expected strides with a product of at most {MOST_PARTS}"
        raise UnsupportedError(f"layer {step.layer!r}: {expected}, got {step.input_dilation}")
    axes = zip(codes_shape(step)[2:], step.padding, step.dilation, step.input_dilation)
    parts_along = [along(size, before, dilation, spread) for size, (before, _), dilation, spread in axes]
    result = []
    for chosen in itertools.product(*parts_along):
        taps = tuple(part.taps for part in chosen)
        conv = changed(
            step, weight=taken(step, taps), padding=tuple((-part.start, 0) for part in chosen),
            dilation=tuple(part.dilation for part in chosen), input_dilation=(1,) * len(chosen),
        )  # fmt: skip
        firsts = tuple(part.first for part in chosen)
        result.append(DensePart(conv, triple(firsts, 0), triple(step.input_dilation, 1), taps))
    return result


def taken(step: Conv, taps: tuple[list[int], ...]) -> Held:
    """The weights at places of the kernel, or a zero along axes where there are none; computed when they are read."""

    def unpack() -> np.ndarray:
        weight = step.weight
        for axis, places in enumerate(taps, 2):
            weight = weight.take(places, axis) if places else np.zeros_like(weight.take([0], axis))
        return weight

    return Held((*codes_shape(step)[:2], *(max(1, len(places)) for places in taps)), unpack)


@dataclass(frozen=True)
class AlongAxis:
    """A part along one axis: its first output, which places of the kernel see inputs, the first input, and how far the
    inputs are apart.
    """

    first: int
    taps: list[int]
    start: int
    dilation: int


def along(size: int, before: int, dilation: int, spread: int) -> list[AlongAxis]:
    """The parts along one axis, of a kernel with ``size`` places.

    Place k of output o sees the spread input o - ``before`` + k * ``dilation``, which is input number p when that is
    p * ``spread``.
    """
    result = []
    for first in range(spread):
        taps = [k for k in range(size) if (first - before + k * dilation) % spread == 0]
        start = (first - before + taps[0] * dilation) // spread if taps else 0
        result.append(AlongAxis(first, taps, start, dilation // gcd(dilation, spread) if len(taps) > 1 else 1))
    return result
