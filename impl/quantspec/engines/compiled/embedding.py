"""Embeddings: rows of a table (DYN-EMBEDDING) and bags of them (DYN-BAG), each by one call of a kernel."""

from typing import Any

import numpy as np
import torch

from quantspec.engines import reference_embedding
from quantspec.engines.reference_embedding import Bags, check_inside
from quantspec.engines.tensors import address, new
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Embedding
from quantspec.kernels.table import Table


class CompiledEmbedding:
    """An embedding whose rows and bags a kernel makes. ``__call__(values)`` as ``reference_embedding.embedding``.

    UnsupportedError for a table that the kernel does not take.
    """

    def __init__(self, step: Embedding):
        self.step, self.name, grid = step, step.name, step.w_qparams
        codes = np.ascontiguousarray(step.weight)
        scales = np.ascontiguousarray(grid.scale, np.float32).reshape(-1)
        if 0 in codes.shape or grid.zero_point.any() or scales.size not in (1, len(codes)):
            expected = "expected a table with entries, zero points of 0, and one scale or one per row"
            raise UnsupportedError(f"layer {step.layer!r}: {expected}")
        self.table, self.width = Table(codes, scales), codes.shape[1]

    def __call__(self, values: dict[str, Any]) -> torch.Tensor:
        return reference_embedding.embedding(self.step, values, self)

    def rows(self, step: Embedding, index: np.ndarray) -> torch.Tensor:
        """As ``reference_embedding.Table.rows``."""
        result = new((len(index), self.width))
        if len(index) and not self.table.rows(np.ascontiguousarray(index), address(result)):
            check_inside(step, index)
        return result

    def bags(self, step: Embedding, chosen: Bags) -> torch.Tensor:
        """As ``reference_embedding.Table.bags``."""
        count = len(chosen.starts) - 1
        result = new((count, self.width))
        mode = "weighted" if chosen.weights is not None else str(step.bag)
        padding = -1 if step.padding_idx is None else step.padding_idx
        index, weights = np.ascontiguousarray(chosen.index), chosen.weights
        weights = None if weights is None else np.ascontiguousarray(weights)
        if count and not self.table.bags(index, chosen.starts, weights, mode, padding, address(result)):
            check_inside(step, chosen.index)
        return result
