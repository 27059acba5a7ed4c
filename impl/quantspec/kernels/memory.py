"""How codes lie in memory: positions of an image after one another, each with all its channels, and a margin of zero
points for convolutions to read.
"""

import ctypes
import functools
import mmap
import threading
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import DTypeLike

from quantspec.errors import UnsupportedError

Triple = tuple[int, int, int]  # one for planes, lines and positions each
# Planes before and behind, lines above and below, positions left and right.
Margin = tuple[int, int, int, int, int, int]
LONGEST = 2**31 - 1  # bytes from a start that kernels can tell
SLACK = 256  # bytes that kernels may read behind the last one they use
WEIGHT_SLACK = 2048  # the same of weights
LARGE_WEIGHTS, LARGE_PAGE = 2**19, 2**21  # bytes
BLOCK_OUTPUTS = 16  # outputs whose weights lie together


@dataclass(frozen=True)
class Layout:
    """Images of ``depth`` planes of ``height`` by ``width`` positions, ``pitch`` bytes apart, of which ``channels``
    are used; ``margin``: planes before and behind, lines above and below, positions left and right.

    What is no image has one position: rows of ``channels`` values.
    """

    images: int
    height: int
    width: int
    channels: int
    margin: Margin = (0, 0, 0, 0, 0, 0)
    depth: int = 1

    @property
    def counts(self) -> tuple[int, int, int]:
        """Planes, lines of a plane, positions of a line."""
        return self.depth, self.height, self.width

    @functools.cached_property
    def is_row(self) -> bool:
        """Whether there is one position, and nothing around it."""
        return self.counts == (1, 1, 1) and not any(self.margin)

    @functools.cached_property
    def pitch(self) -> int:
        """Bytes from one position to the next."""
        return row_pitch(self.channels) if self.is_row else position_pitch(self.channels)

    @functools.cached_property
    def line(self) -> int:
        """Bytes from one line of positions to the next."""
        return (self.margin[4] + self.width + self.margin[5]) * self.pitch

    @functools.cached_property
    def plane(self) -> int:
        """Bytes from one plane of lines to the next."""
        return (self.margin[2] + self.height + self.margin[3]) * self.line

    @functools.cached_property
    def image(self) -> int:
        """Bytes from one image to the next."""
        return (self.margin[0] + self.depth + self.margin[1]) * self.plane

    @functools.cached_property
    def first(self) -> int:
        """Where the first position of the first image is."""
        return self.margin[0] * self.plane + self.margin[2] * self.line + self.margin[4] * self.pitch

    @property
    def nbytes(self) -> int:
        return self.images * self.image + SLACK

    @property
    def is_volume(self) -> bool:
        """Whether an image is more than one plane, margins included."""
        return self.depth > 1 or any(self.margin[:2])

    def stacks(self) -> list[tuple[int, int, int]]:
        """All planes as stacks in which they are as far from each other: where the first position of each is, how
        many there are, bytes between two.
        """
        if not self.is_volume:
            return [(self.first, self.images, self.image)]
        return [(self.first + n * self.image, self.depth, self.plane) for n in range(self.images)]

    def offsets(self, counts: Triple, stride: Triple = (1, 1, 1), start: Triple = (0, 0, 0)) -> np.ndarray:
        """int32 (images * counts,): where the windows lie that start at ``start`` and are ``stride`` positions apart;
        each for planes, lines and positions. Raises as ``offset_table``.
        """
        total = np.arange(self.images) * self.image
        axes = zip((self.plane, self.line, self.pitch), self.margin[::2], counts, stride, start)
        for size, before, count, step, begin in axes:
            total = total[..., None] + (before + begin + step * np.arange(count)) * size
        return offset_table(total.ravel())


def offset_table(distances: np.ndarray) -> np.ndarray:
    """Distances in bytes as the int32 that kernels read. Raises UnsupportedError for one that does not fit."""
    if distances.size and not -LONGEST <= distances.min() <= distances.max() <= LONGEST:
        raise UnsupportedError(f"the kernels reach {LONGEST} bytes from a start, not {np.abs(distances).max()}")
    return distances.astype(np.int32, order="C")  # as kernels read it, however it was made


def position_pitch(channels: int) -> int:
    """Bytes of a position: whole groups of four, but for images with very few channels, whose neighbours then share a
    group.
    """
    return channels if channels < 4 else -(-channels // 4) * 4


def row_pitch(channels: int) -> int:
    """Bytes of a row: whole cache lines, and no large power of two, or rows would compete for the same lines of the
    cache.
    """
    pitch = -(-channels // 64) * 64
    return pitch + 64 if pitch % 512 == 0 else pitch


def place(x: np.ndarray) -> int:
    """Where an array's values lie, by a third of the time that ``x.ctypes`` takes where it is writeable and not
    empty.
    """
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(x.data))
    except (TypeError, ValueError):
        return x.ctypes.data


def aligned(count: int, dtype: DTypeLike = np.uint8) -> np.ndarray:
    """An array of zeros that begins on a cache line."""
    size = count * np.dtype(dtype).itemsize
    space = np.zeros(size + 64, np.uint8)
    start = -space.ctypes.data % 64
    return space[start : start + size].view(dtype)


class Blocks(threading.local):
    """Memory that frames of a thread work in, by what it is for; a block lives as long as somebody keeps it."""

    def __init__(self) -> None:
        self.of: WeakValueDictionary[tuple[str, int], np.ndarray] = WeakValueDictionary()


blocks = Blocks()


def workspace(use: str, member: int, nbytes: int) -> np.ndarray:
    """At least so many bytes for the frames that a thread has run, one after the other, by the same ``member`` of those
    that run at once (SIZ-WORKSPACE).

    What is for one ``use`` is shared, so that it stays in the cache: nothing in it lasts from one frame to the next.
    """
    existing = blocks.of.get((use, member))
    if existing is None or existing.nbytes < nbytes:
        existing = blocks.of[use, member] = aligned(1 << max(0, nbytes - 1).bit_length())
    return existing


def memory_for(nbytes: int) -> np.ndarray:
    """Memory for packed weights and tables, of the system's own where they are large, so that it gets it back."""
    if nbytes < LARGE_WEIGHTS:
        return aligned(nbytes + WEIGHT_SLACK, np.int8)[:nbytes]
    memory = in_large_pages(nbytes + WEIGHT_SLACK) if nbytes >= LARGE_PAGE else None
    if memory is None:
        memory = np.frombuffer(mmap.mmap(-1, nbytes + WEIGHT_SLACK), np.int8)
    return memory[:nbytes]


def in_large_pages(nbytes: int) -> np.ndarray | None:
    """Memory that the system is asked to hold in large pages, of which it looks few up; None where it has none.

    Those that would reach past the end are not asked for.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    space = mmap.mmap(-1, nbytes + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(space, np.int8)
    start = -memory.ctypes.data % LARGE_PAGE  # what comes before is never touched
    try:
        space.madvise(mmap.MADV_HUGEPAGE, start, nbytes // LARGE_PAGE * LARGE_PAGE)
    except OSError:  # a kernel without them
        return None
    return memory[start : start + nbytes]


def codes_with_room(shape: tuple[int, ...]) -> np.ndarray:
    """Memory for the codes of a weight [outputs, ...] that can be packed where they are."""
    rows = -(-shape[0] // BLOCK_OUTPUTS) * BLOCK_OUTPUTS
    return memory_for(rows * int(np.prod(shape[1:])))[: int(np.prod(shape))].reshape(shape)


def roomy(codes: np.ndarray, nbytes: int) -> np.ndarray | None:
    """The memory from the start of codes on, where they begin and end as ``codes_with_room`` makes them; else None."""
    whole = codes
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    start = codes.ctypes.data - whole.ctypes.data
    free = codes.flags.c_contiguous and codes.flags.writeable and whole.flags.c_contiguous
    if not free or codes.ctypes.data % 64 or start + nbytes + WEIGHT_SLACK > whole.nbytes:
        return None
    return whole.reshape(-1).view(np.int8)[start : start + nbytes]
