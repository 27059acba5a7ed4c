"""One kernel on its own."""

import numpy as np

from .jit import ADDRESSES, BEGIN, COUNT, RELEASE, SLICES, WIDTH, caller
from .memory import aligned


def frame_of(address: int, entries: dict[int, int]) -> np.ndarray:
    """A frame of one instruction, during which other Python threads may run."""
    frame = aligned(BEGIN + WIDTH, np.int64)
    frame[COUNT], frame[SLICES], frame[RELEASE], frame[BEGIN] = 1, 1, 1, address
    for entry, value in entries.items():
        frame[BEGIN + entry] = value
    return frame


def run_alone(address: int, entries: dict[int, int], slot: int = 0) -> int:
    """Runs a kernel with the entries of its instruction and the address of the one input or output; what it gives."""
    frame = frame_of(address, entries)
    frame[ADDRESSES] = slot
    return caller()(frame.ctypes.data, 0, 0)
