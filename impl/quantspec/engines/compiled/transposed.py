"""Transposed convolutions as convolutions that are not (INT-CONV-TRANSPOSED).

Most of what a window over spread inputs sees are the zeros between them. Which places of the kernel see inputs
depends only on where the output lies modulo ``input_dilation``. So the outputs that agree in that, a phase, are a
convolution with those places of the kernel over the inputs as they are.
"""

import itertools
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from quantspec.ir.program import Conv


@dataclass(frozen=True, eq=False)
class Phase:
    """A convolution over inputs as they are, and its outputs' place among all: the first one and the distance between
    two, for three axes of positions.
    """

    conv: Conv
    first: tuple[int, int, int] = (0, 0, 0)
    step: tuple[int, int, int] = (1, 1, 1)

    def counts(self, sizes: tuple[int, int, int]) -> tuple[int, int, int]:
        """How many outputs there are along each axis, of ``sizes`` in all."""
        return tuple(max(0, -(-(n - first) // step)) for n, first, step in zip(sizes, self.first, self.step))


def is_transposed(step: Conv) -> bool:
    return set(step.input_dilation) != {1}


def phases(step: Conv) -> list[Phase]:
    """The layer's phases, only itself when its inputs are not spread.

    Along axes on which they are, its stride must be 1.
    """
    if not is_transposed(step):
        return [Phase(step)]
    axes = [
        along(size, before, dilation, spread) for size, (before, _), dilation, spread in zip(step.weight.shape[2:], step.padding, step.dilation, step.input_dilation)
    ]
    result = []
    for chosen in itertools.product(*axes):
        weight = step.weight
        for axis, (_, taps, _, _) in enumerate(chosen, 2):
            weight = weight.take(taps, axis) if taps else np.zeros_like(weight.take([0], axis))
        firsts, _, starts, dilations = zip(*chosen)
        ones = (1,) * len(chosen)
        conv = replace(step, weight=weight, padding=tuple((-start, 0) for start in starts), dilation=dilations, input_dilation=ones)
        missing = 3 - len(chosen)
        result.append(Phase(conv, (0,) * missing + firsts, (1,) * missing + tuple(step.input_dilation)))
    return result


def along(size: int, before: int, dilation: int, spread: int) -> list[tuple[int, list[int], int, int]]:
    """For each phase of one axis: its first output, which of the kernel's ``size`` places see inputs, the first
    input, and how far the inputs are apart.

    Place k of output o sees the spread input o - ``before`` + k * ``dilation``, which is input number p when that is
    p * ``spread``.
    """
    result = []
    for first in range(spread):
        taps = [k for k in range(size) if (first - before + k * dilation) % spread == 0]
        start = (first - before + taps[0] * dilation) // spread if taps else 0
        result.append((first, taps, start, dilation // gcd(dilation, spread) if len(taps) > 1 else 1))
    return result
