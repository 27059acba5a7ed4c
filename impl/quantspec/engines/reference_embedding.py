"""Embeddings of chapter 6: rows of a table of codes, dequantized, and bags of them. In any dialect."""

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from quantspec.ir.held import codes_shape
from quantspec.ir.program import Embedding
from quantspec.numerics.affine import Float32
from quantspec.numerics.bags import LookUp, bags

from .tensors import array, from_array


@dataclass(frozen=True, eq=False)
class Bags:
    """Rows of a table by their numbers, ``index``, a bag's behind those of the one before.

    ``starts``: where each bag begins, and behind them where the last one ends, int64. ``weights``: of each row,
    float32.
    """

    index: np.ndarray
    starts: np.ndarray
    weights: np.ndarray | None = None


class Table(Protocol):
    """How rows are looked up. Raises as ``check_inside``."""

    def rows(self, step: Embedding, index: np.ndarray) -> torch.Tensor:
        """Some rows of a table, dequantized (DYN-EMBEDDING)."""

    def bags(self, step: Embedding, chosen: Bags) -> torch.Tensor:
        """What becomes of the rows of each bag (DYN-BAG)."""


def embedding(step: Embedding, values: dict[str, Any], table: Table) -> torch.Tensor:
    """Rows of a table of codes, dequantized, or what becomes of the rows of each bag, float32.

    Raises ValueError naming the layer for indices outside the table, and for bags that are none.
    """
    index = values[step.x]
    if not isinstance(index, torch.Tensor) or index.dtype not in (torch.int64, torch.int32):
        kind = getattr(index, "dtype", type(index).__name__)
        raise ValueError(f"batch: layer {step.layer!r} expects indices, got {kind}")
    if step.bag is not None:
        return table.bags(step, bags_of(step, values))
    flat = array(index, f"batch: layer {step.layer!r}").reshape(-1)
    return table.rows(step, flat).reshape(*index.shape, codes_shape(step)[1])


def bags_of(step: Embedding, values: dict[str, Any]) -> Bags:
    """The bags that indices, offsets and weights tell, without what lies behind the last one. Raises ValueError naming
    the layer for what tells none."""
    index = values[step.x]
    offsets, weights = (None if name is None else values[name] for name in (step.offsets, step.weights))
    flat = array(index, f"batch: layer {step.layer!r}").reshape(-1)
    starts, factors = starts_of(step, index, offsets), weights_of(step, index, weights)
    end = int(starts[-1])
    return Bags(flat[:end], starts, None if factors is None else factors[:end])


def starts_of(step: Embedding, index: torch.Tensor, offsets: Any) -> np.ndarray:
    """Where each bag begins in all indices, and where the last one ends."""
    count, layer = index.numel(), f"batch: layer {step.layer!r}"
    if index.ndim == 2 and offsets is None:
        return starts_of_rows(*index.shape)
    if index.ndim != 1 or not isinstance(offsets, torch.Tensor):
        expected = "bags as rows of indices with two axes, or offsets beside indices with one"
        shape, given = tuple(index.shape), "without offsets" if offsets is None else "with offsets"
        raise ValueError(f"{layer} expects {expected}, got indices of shape {shape} {given}")
    if offsets.ndim != 1 or offsets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{layer} expects offsets of one axis, got {offsets.dtype} of shape {tuple(offsets.shape)}")
    starts = np.full(len(offsets) + (not step.include_last_offset), count, np.int64)
    starts[: len(offsets)] = array(offsets, layer)
    if not len(starts) or starts[0] != 0 or starts[-1] > count or (starts[1:] < starts[:-1]).any():
        raise ValueError(f"{layer} expects offsets that rise from 0 to {count} at most, got {offsets.tolist()[:8]}")
    return starts


@functools.lru_cache(maxsize=64)
def starts_of_rows(count: int, width: int) -> np.ndarray:
    """The same for bags that are rows; not to be written to."""
    starts = np.arange(count + 1, dtype=np.int64) * width
    return starts


def weights_of(step: Embedding, index: torch.Tensor, weights: Any) -> np.ndarray | None:
    """The weight of each row, None where there are none."""
    if weights is None:
        return None
    layer = f"batch: layer {step.layer!r}"
    if step.bag != "sum":
        raise ValueError(f"{layer} expects weights of samples in sums only, got them with {step.bag!r}")
    if not isinstance(weights, torch.Tensor) or weights.dtype != torch.float32 or weights.shape != index.shape:
        found = getattr(weights, "dtype", type(weights).__name__), tuple(getattr(weights, "shape", ()))
        raise ValueError(f"{layer} expects a float32 weight for each index, shape {tuple(index.shape)}, got {found}")
    return array(weights, layer).reshape(-1)


def joined(step: Embedding, chosen: Bags, look_up: LookUp) -> torch.Tensor:
    """What becomes of the rows of each bag, but for those of the padding. ``look_up``: the codes around zero and the
    scales of some rows, by their numbers."""
    kept = chosen.index != step.padding_idx
    starts = np.concatenate([[0], np.cumsum(kept)])[chosen.starts]
    index, weights = chosen.index[kept], None if chosen.weights is None else chosen.weights[kept]
    assert step.bag is not None
    return from_array(bags(lambda places: look_up(index[places]), codes_shape(step)[1], weights, starts, step.bag))


def check_inside(step: Embedding, index: np.ndarray) -> None:
    """Raises ValueError for indices that are not all inside the table."""
    low, high = (int(index.min()), int(index.max())) if index.size else (0, -1)
    entries = codes_shape(step)[0]
    if not 0 <= low <= high + 1 <= entries:
        ends = f"{low} to {high}"
        raise ValueError(f"batch: layer {step.layer!r} has {entries} entries, got indices from {ends}")


class Codes:
    """Rows as NumPy and torch look them up."""

    def rows(self, step: Embedding, index: np.ndarray) -> torch.Tensor:
        """As ``Table.rows``."""
        check_inside(step, index)
        codes, scale = codes_of(step, index)
        # The difference has 9 bits and is exact in float32, so that the product is the only rounding.
        return from_array(codes.astype(np.float32) * scale[:, None])

    def bags(self, step: Embedding, chosen: Bags) -> torch.Tensor:
        """As ``Table.bags``."""
        check_inside(step, chosen.index)
        return joined(step, chosen, lambda index: codes_of(step, index))


def codes_of(step: Embedding, index: np.ndarray) -> tuple[np.ndarray, Float32]:
    """Codes of some rows as distances from their zero points, and a scale for each."""
    grid = step.w_qparams
    entries = codes_shape(step)[:1]
    scale, point = np.broadcast_to(grid.scale, entries)[index], np.broadcast_to(grid.zero_point, entries)[index]
    return step.weight[index].astype(np.int16) - point[:, None].astype(np.int16), scale
