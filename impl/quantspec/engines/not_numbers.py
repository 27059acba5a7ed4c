"""Where values stand for NaN, which has no code (STA-NAN): beside codes lies a mask of the places that do."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from quantspec.ir import rearrange
from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Concat,
    Conv,
    Dequantize,
    Linear,
    MaxPool,
    Mean,
    Move,
    Mul,
    Quantize,
    Relu,
    Step,
    Table,
)
from quantspec.ir.traverse import last_reads, reads
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams
from quantspec.surroundings import level_of_caller

from .tensors import array

Masks = Callable[[str], Any]
TOLD = "values are NaN, which has no code: the outputs that depend on them are NaN"
PLAIN = QParams(1, 0, 0, 255)


class Values(dict[str, Any]):
    """The values of a run by name: codes as arrays, floats as tensors.

    ``masks``: by the names of codes, where they stand for NaN: uint8 of their shape, 1 for NaN, and in a tuple where
    they are. What has none has no NaN. ``refuse``: NaN that would become a code is refused with a ValueError.
    """

    def __init__(self, values: dict[str, Any], *, refuse: bool = False):
        super().__init__(values)
        self.refuse = refuse
        self.masks: dict[str, Any] = {}

    def copy(self) -> "Values":
        """Other values by the same names, with the same masks."""
        twin = Values(self, refuse=self.refuse)
        twin.masks = self.masks
        return twin

    def mask(self, name: str) -> Any:
        """The mask of codes; of floats, the floats."""
        return self.masks[name] if name in self.masks else blank(self[name])

    def numbers(self, name: str, x: np.ndarray) -> np.ndarray:
        """Floats with 0 in the place of NaN, where codes of that name stand for NaN from now on."""
        found = np.isnan(x)
        if self.refuse or not found.any():
            return x
        warn()
        self.masks[name] = found.astype(np.uint8)
        return np.where(found, np.float32(0), x)

    def spread(self, step: Step, result: Any) -> Any:
        """What a step gave, with the NaN of what it reads."""
        if type(step) not in MASKS or not any(name in self.masks for name in reads(step)):
            return result
        return self.masked(step.name, result, MASKS[type(step)](step, self.mask))

    def masked(self, name: str, result: Any, mask: Any) -> Any:
        """Floats with NaN where a mask says so; codes as they are, whose mask is kept."""
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            return result.masked_fill(torch.from_numpy(mask != 0), torch.nan)
        self.masks[name] = mask
        return result

    def spread_in(self, steps: Sequence[Step], outputs: Sequence[str]) -> dict[str, Any]:
        """The masks of what steps, all of ``MASKS``, give to others."""
        masks = {name: self.mask(name) for step in steps for name in reads(step) if name in self}
        for step, done in zip(steps, last_reads(steps, outputs)):
            masks[step.name] = MASKS[type(step)](step, masks.__getitem__)
            for name in done:
                del masks[name]
        return masks


def warn() -> None:
    """Says once for each line that calls the network that values are NaN."""
    warnings.warn(TOLD, RuntimeWarning, stacklevel=level_of_caller())


def blank(value: Any) -> Any:
    """A mask of codes without NaN; other values as they are."""
    return np.zeros(value.shape, np.uint8) if isinstance(value, np.ndarray) else value


def fresh(step: Quantize, mask: Masks) -> np.ndarray:
    return np.asarray(np.isnan(array(mask(step.x), step.x)).astype(np.uint8))


def same(step: Any, mask: Masks) -> np.ndarray:
    found: np.ndarray = mask(step.x)
    return found


def linear(step: Linear, mask: Masks) -> np.ndarray:
    found: np.ndarray = mask(step.x).max(-1, keepdims=True, initial=0)
    return np.repeat(found, codes_shape(step)[0], axis=-1)


def conv(step: Conv, mask: Masks) -> np.ndarray:
    shape = codes_shape(step)
    found, kernel = mask(step.x), shape[2:]
    images: np.ndarray = found[None] if found.ndim == len(shape) - 1 else found
    # An output reads all channels of its group.
    grouped = images.reshape(len(images), step.groups, shape[1], *images.shape[2:]).max(2, initial=0)
    around = integer.spread(grouped, step.input_dilation, step.padding, 0)
    windows = integer.max_pool(around, kernel, step.stride, (0,) * len(kernel), step.dilation, False)
    result = np.repeat(windows, shape[0] // step.groups, axis=1)
    return np.asarray(result[0]) if images is not found else result


def either(step: Add | Mul, mask: Masks) -> np.ndarray:
    found: np.ndarray = np.maximum(mask(step.a), mask(step.b))
    return found


def joined(step: Concat, mask: Masks) -> np.ndarray:
    return np.concatenate([mask(x) for x in step.xs], axis=step.axis)


def max_pool(step: MaxPool, mask: Masks) -> np.ndarray:
    return integer.max_pool(mask(step.x), step.kernel, step.stride, step.padding, step.dilation, step.ceil_mode)


def average_pool(step: AvgPool, mask: Masks) -> np.ndarray:
    apart = (1,) * len(step.kernel)
    return integer.max_pool(mask(step.x), step.kernel, step.stride, step.padding, apart, step.ceil_mode)


def adaptive(step: AdaptiveAvgPool, mask: Masks) -> np.ndarray:
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(step.size) - 1]
    x = mask(step.x)
    size = [n if own is None else own for own, n in zip(step.size, x.shape[-len(step.size) :])]
    return nan_of(pool(floats(x), size))


def averaged(step: Mean, mask: Masks) -> np.ndarray:
    found: np.ndarray = mask(step.x).max(step.axes, keepdims=step.keepdim, initial=0)
    return found


def interpolated(step: Bilinear, mask: Masks) -> np.ndarray:
    x, size = floats(mask(step.x)), step.size if step.like is None else mask(step.like).shape[-2:]
    exact = None if step.factors is None else not step.exact
    return nan_of(F.interpolate(x, size, step.factors, "bilinear", step.align_corners, exact))


def floats(mask: np.ndarray) -> torch.Tensor:
    """NaN where a mask says so, and 0 elsewhere."""
    return torch.from_numpy(np.where(mask, np.float32(np.nan), np.float32(0)))


def nan_of(x: torch.Tensor) -> np.ndarray:
    """The mask of floats."""
    found: np.ndarray = np.isnan(x.numpy()).astype(np.uint8)
    return found


def moved(step: Move, mask: Masks) -> Any:
    return rearrange.apply(replace(step, qparams=PLAIN), mask)


# For each kind of step that reads or makes codes: the mask of what it gives, by the masks of what it reads. NaN passes
# through every function and every sum of floats, whatever the weights are.
MASKS: dict[type, Callable[[Any, Masks], Any]] = {
    Quantize: fresh, Dequantize: same, Linear: linear, Conv: conv, Table: same, Relu: same, Add: either, Mul: either,
    Concat: joined, MaxPool: max_pool, AvgPool: average_pool, AdaptiveAvgPool: adaptive, Mean: averaged,
    Bilinear: interpolated, Move: moved,
}  # fmt: skip
