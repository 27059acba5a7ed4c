"""How codes lie in memory: positions of an image after one another, each with all its channels, and a margin of zero points for convolutions to read."""

import ctypes
from dataclasses import dataclass

import numpy as np

SLACK = 256  # bytes that kernels may read behind the last one they use


@dataclass(frozen=True)
class Layout:
    """Images of ``height`` by ``width`` positions, ``pitch`` bytes apart, of which ``channels`` are used; ``margin``: positions above, below, left, right.

    What is no image has one position: rows of ``channels`` values.
    """

    images: int
    height: int
    width: int
    channels: int
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def pitch(self) -> int:
        """Bytes from one position to the next."""
        if self.height * self.width == 1 and not any(self.margin):
            return row_pitch(self.channels)
        return position_pitch(self.channels)

    @property
    def line(self) -> int:
        """Bytes from one line of positions to the next."""
        return (self.margin[2] + self.width + self.margin[3]) * self.pitch

    @property
    def image(self) -> int:
        """Bytes from one image to the next."""
        return (self.margin[0] + self.height + self.margin[1]) * self.line

    @property
    def first(self) -> int:
        """Where the first position of the first image is."""
        return self.margin[0] * self.line + self.margin[2] * self.pitch

    @property
    def nbytes(self) -> int:
        return self.images * self.image + SLACK

    def strides(self, rank: int) -> tuple[int, ...]:
        """Bytes from one entry to the next along each axis of an array [images, channels, *positions]."""
        return (self.image, 1, self.line, self.pitch) if rank == 4 else (self.image, 1, self.pitch)

    def offsets(self, height: int, width: int, stride=(1, 1), start=(0, 0)) -> np.ndarray:
        """int32 (images * height * width,): where the windows lie that start at ``start`` and are ``stride`` positions apart."""
        lines = (self.margin[0] + start[0] + stride[0] * np.arange(height)) * self.line
        columns = (self.margin[2] + start[1] + stride[1] * np.arange(width)) * self.pitch
        images = np.arange(self.images) * self.image
        return (images[:, None, None] + lines[:, None] + columns).astype(np.int32).ravel()


def position_pitch(channels: int) -> int:
    """Bytes of a position: whole groups of four, but for images with very few channels, whose neighbours then share a group."""
    return channels if channels < 4 else -(-channels // 4) * 4


def row_pitch(channels: int) -> int:
    """Bytes of a row: whole cache lines, and no large power of two, or rows would compete for the same lines of the cache."""
    pitch = -(-channels // 64) * 64
    return pitch + 64 if pitch % 512 == 0 else pitch


def place(x: np.ndarray) -> int:
    """Where an array's values lie, by a third of the time that ``x.ctypes`` takes where it is writeable and not empty."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(x))
    except (TypeError, ValueError):
        return x.ctypes.data


def aligned(count: int, dtype=np.uint8) -> np.ndarray:
    """An array of zeros that begins on a cache line."""
    size = count * np.dtype(dtype).itemsize
    space = np.zeros(size + 64, np.uint8)
    start = -space.ctypes.data % 64
    return space[start : start + size].view(dtype)
