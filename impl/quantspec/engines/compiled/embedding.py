"""Embeddings: rows of a table by one call of a kernel, and bags of them by torch (DYN-EMBEDDING)."""

from typing import Any

import numpy as np
import torch

from quantspec.engines import reference_dynamic
from quantspec.engines.tensors import address, new
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Embedding
from quantspec.kernels.embedding import Table


class CompiledEmbedding:
    """An embedding whose rows a kernel dequantizes. ``__call__(values)`` as ``reference_dynamic.embedding``.

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
        return reference_dynamic.embedding(self.step, values, self.rows)

    def rows(self, step: Embedding, index: np.ndarray) -> torch.Tensor:
        """As ``reference_dynamic.table_rows``."""
        result = new((len(index), self.width))
        if len(index) and not self.table.rows(np.ascontiguousarray(index), address(result)):
            reference_dynamic.check_inside(step, index)
        return result
