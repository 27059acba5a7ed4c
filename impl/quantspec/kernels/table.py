"""A table of codes whose rows, and bags of them, kernels look up."""

import threading
from typing import Any

import numpy as np

from .bags import BAGS
from .embedding import ROWS, OfTable
from .emitter import LANES
from .frame import Frame, caller, frame_of
from .gemm import PAST_BYTES
from .jit import Kernel
from .memory import place

LONG = 2**18  # values from which other Python threads may run meanwhile


def goes_past(values: int, width: int) -> bool:
    """Whether so many floats in rows of ``width`` go past the caches."""
    return 4 * values >= PAST_BYTES and width % LANES == 0


class Table:
    """A table of codes, int8 [entries, width], and scales, float32, one or as many as rows; all lie in one piece."""

    def __init__(self, codes: np.ndarray, scales: np.ndarray):
        self.codes, self.scales, self.local = codes, scales, threading.local()

    def frame(self, kernel: Kernel[Any]) -> tuple[Frame, Any]:
        """This thread's frame of one of the table's kernels, and its instruction, an ``OfTable``."""
        frames: dict[str, tuple[Frame, OfTable]] = self.local.__dict__.setdefault("frames", {})
        if kernel.name not in frames:
            frames[kernel.name] = self.new_frame(kernel)
        return frames[kernel.name]

    def new_frame(self, kernel: Kernel[Any]) -> tuple[Frame, Any]:
        """The same, but nobody else's."""
        (height, width), step = self.codes.shape, 4 if self.scales.size > 1 else 0
        codes, scales = place(self.codes), place(self.scales)
        instruction = kernel.instruction(codes=codes, scales=scales, scale_step=step, height=height, width=width)
        frame = frame_of(kernel.bound(instruction))
        return frame, kernel.instruction.on(frame.instructions[0])

    def rows_frame(self, first: int, last: int, count: int) -> Frame:
        """A frame that reads the indices from ``first`` to ``last`` of the ``count`` that it is run with, int64, and
        writes their rows.
        """
        frame, instruction = self.new_frame(ROWS[8])
        width = self.codes.shape[1]
        instruction.count, instruction.past = last - first, goes_past(count * width, width)
        return self.apart(frame, first, 1)

    def bags_frame(self, starts: np.ndarray, first: int, size: int, mode: str, padding: int) -> Frame:
        """A frame for bags of ``size`` int64 indices each, of which ``first`` lie before it; it reads ``starts``, which
        begin with 0.
        """
        frame, instruction = self.new_frame(BAGS[8, mode])
        instruction.starts, instruction.padding = place(starts), padding
        instruction.count, instruction.total = len(starts) - 1, int(starts[-1])
        return self.apart(frame, first, size)

    def apart(self, frame: Frame, first: int, size: int) -> Frame:
        """A frame that begins at what is made of the ``size`` indices of number ``first``."""
        frame.x_from, frame.y_from = 8 * size * first, 4 * self.codes.shape[1] * first
        return frame

    def rows(self, indices: np.ndarray, target: int) -> bool:
        """Writes the rows of some indices, int32 or int64, to an address as float32; False where one is outside."""
        frame, instruction = self.frame(ROWS[indices.itemsize])
        values, width = indices.size * self.codes.shape[1], self.codes.shape[1]
        instruction.count, frame.release = indices.size, values >= LONG
        instruction.past = goes_past(values, width)
        return not caller()(frame.address, place(indices), target)

    def bags(
        self, indices: np.ndarray, starts: np.ndarray, weights: np.ndarray | None, mode: str, padding: int, target: int
    ) -> bool:
        """Writes bags of rows, which begin at ``starts`` and end where the next one does, to an address as float32.

        ``weights``: float32, for each index, where the mode is ``bags.WEIGHTED``. False where an index is outside.
        """
        frame, instruction = self.frame(BAGS[indices.itemsize, mode])
        instruction.starts, instruction.weights = place(starts), 0 if weights is None else place(weights)
        instruction.count, instruction.total, instruction.padding = len(starts) - 1, indices.size, padding
        frame.release = indices.size * self.codes.shape[1] >= LONG
        return not caller()(frame.address, place(indices), target)
