"""Embeddings: rows of a table (DYN-EMBEDDING) and bags of them (DYN-BAG), each by one call of a kernel, which threads
share where there is much to read.
"""

import threading
from math import prod
from typing import Any

import numpy as np
import torch

from quantspec.engines import reference_embedding
from quantspec.engines.reference_embedding import Bags, check_inside, starts_of_rows
from quantspec.engines.tensors import address, float_address, new
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Embedding
from quantspec.kernels.frame import caller
from quantspec.kernels.table import LONG, Table

from .batching import Shared, kept, shared_out, torchs_threads, wanted_threads
from .parallel import shares
from .shapes import Shape

LEAST = 2**17  # values to read that are worth giving to another thread


class Bound(Shared):
    """An embedding on indices of one shape, int64 in one piece, for one calling thread at a time; as ``Batched``.

    Bags are rows of the indices.
    """

    direct = True

    def __init__(self, embedding: "CompiledEmbedding", shape: Shape, threads: int):
        table, width, bag = embedding.table, embedding.width, embedding.step.bag
        self.threads, values = threads, prod(shape) * width
        team = None if embedding.alone else torchs_threads()
        members = wanted_threads(threads, values, LEAST) if embedding.alone or team else 1
        self.threaded = values >= 2 * LEAST
        if bag is None:
            self.shapes = [(*shape, width)]
            self.frames = [table.rows_frame(*part, prod(shape)) for part in shares(prod(shape), members)]
        else:
            self.shapes, parts = [(shape[0], width)], shares(shape[0], members)
            self.read = [starts_of_rows(last - first, shape[1]) for first, last in parts]
            self.frames = [
                table.bags_frame(starts, first, shape[1], bag, embedding.padding)
                for starts, (first, _) in zip(self.read, parts)
            ]
        for frame in self.frames:
            frame.release = values >= LONG
        self.share = shared_out([frame.address for frame in self.frames], team, threads, direct=True)
        self.start = self.share.address if self.share else self.frames[0].address


class CompiledEmbedding:
    """An embedding whose rows and bags a kernel makes. ``__call__(values)`` as ``reference_embedding.embedding``.

    ``alone``: whether it is all of a program. UnsupportedError for a table that the kernel does not take.
    """

    images = has_codes = False

    def __init__(self, step: Embedding):
        self.step, self.name, grid = step, step.name, step.w_qparams
        codes = np.ascontiguousarray(step.weight)
        scales = np.ascontiguousarray(grid.scale, np.float32).reshape(-1)
        if 0 in codes.shape or grid.zero_point.any() or scales.size not in (1, len(codes)):
            expected = "expected a table with entries, zero points of 0, and one scale or one per row"
            raise UnsupportedError(f"layer {step.layer!r}: {expected}")
        self.table, self.width, self.alone = Table(codes, scales), codes.shape[1], False
        self.padding = -1 if step.padding_idx is None else step.padding_idx
        self.run, self.local = caller(), threading.local()

    @property
    def batched(self) -> dict[tuple[Shape, ...], Bound]:
        """What this thread has bound to shapes, by the indices'."""
        existing: dict[tuple[Shape, ...], Bound] = self.local.__dict__.setdefault("batched", {})
        return existing

    def __call__(self, values: dict[str, Any]) -> torch.Tensor:
        x = values[self.step.x]
        if start := self.start_of_plain(values):
            shape = tuple(x.shape)
            bound = kept(self.batched, (shape,), lambda threads: Bound(self, shape, threads))
            result = new(bound.shapes[0])
            if self.run(bound.start, start, address(result)) == 0:
                return result
        # Other indices, and those that the reference refuses in its own words.
        return reference_embedding.embedding(self.step, values, self)

    def start_of_plain(self, values: dict[str, Any]) -> int:
        """Where indices lie that a kernel reads as they are: int64 in one piece, for bags of a size; 0 for others."""
        step, x = self.step, values[self.step.x]
        start = float_address(x, torch.int64)
        if not start or step.bag is None:
            return start
        others = (values[name] for name in (step.offsets, step.weights) if name is not None)
        return start if x.ndim == 2 and all(value is None for value in others) else 0

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
        index, weights = np.ascontiguousarray(chosen.index), chosen.weights
        weights = None if weights is None else np.ascontiguousarray(weights)
        if count and not self.table.bags(index, chosen.starts, weights, mode, self.padding, address(result)):
            check_inside(step, chosen.index)
        return result
