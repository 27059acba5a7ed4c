"""Codes and floats in another order: every one where it belongs, and nothing beside."""

from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import strategies
from quantspec.engines.compiled import segment
from quantspec.kernels import copies, images
from quantspec.kernels.frame import run_alone

SIZES = st.one_of(st.integers(0, 5), st.integers(14, 18), st.integers(30, 50))


@dataclass
class Array:
    """An array [planes, lines, rows, columns] in memory with gaps, of which ``apart`` tells how many bytes its planes,
    lines and rows are apart."""

    values: np.ndarray
    memory: np.ndarray
    apart: tuple[int, ...]


def with_gaps(r, shape, dtype):
    """An array of that shape, and all memory around it."""
    gaps = [n + int(r.integers(0, 3)) for n in shape]
    memory = r.integers(0, 256, (int(np.prod(gaps)) + 40) * np.dtype(dtype).itemsize).astype(np.uint8).view(dtype)
    start = int(r.integers(0, 40))
    whole = memory[start : start + int(np.prod(gaps))].reshape(gaps)
    return Array(whole[tuple(map(slice, shape))], memory, whole.strides[:3])


@given(strategies.seeds(), st.sampled_from([np.uint8, np.float32]), st.integers(0, 3), st.integers(0, 3), SIZES, SIZES)
def test_rows_become_columns(r, dtype, planes, lines, rows, columns):
    source, target = (with_gaps(r, (planes, lines, *both), dtype) for both in ((rows, columns), (columns, rows)))
    expected, before = target.memory.copy(), source.memory.tobytes()
    start = target.values.ctypes.data - target.memory.ctypes.data
    view = np.ndarray(target.values.shape, dtype, expected.data, start, target.values.strides)
    view[...] = source.values.swapaxes(-1, -2)
    sides = ("source", "row"), ("target", "column")
    names = [f"{side}_{part}" for side, last in sides for part in ("plane", "line", last)]
    kernel = copies.TRANSPOSE if dtype == np.uint8 else copies.TRANSPOSE_FLOATS
    run_alone(kernel, copies.Transpose(
        source=source.values.ctypes.data, target=target.values.ctypes.data, source_slot=-1, target_slot=-1, begin=7,
        planes=planes, lines=lines, rows=rows, columns=columns, **dict(zip(names, (*source.apart, *target.apart))),
    ))  # fmt: skip
    assert target.memory.tobytes() == expected.tobytes() and source.memory.tobytes() == before


@given(
    strategies.seeds(), st.integers(0, 3), st.integers(0, 3), SIZES, st.sampled_from(["neither", "source", "target"])
)  # fmt: skip
def test_runs_of_bytes_are_copied(r, planes, lines, count, outside):
    source, target = (with_gaps(r, (planes, lines, 1, count), np.uint8) for _ in range(2))
    target.values[...] = 0
    expected = target.memory.copy()
    start = target.values.ctypes.data - target.memory.ctypes.data
    np.ndarray(target.values.shape, np.uint8, expected.data, start, target.values.strides)[...] = source.values
    near, far = (images.Strides(image=each.apart[0], line=each.apart[1], position=0) for each in (source, target))
    places = {"source": source.values.ctypes.data, "target": target.values.ctypes.data}
    slots, slot = {"source": -1, "target": -1}, 0
    if outside in places:  # what is ``begin`` bytes behind an input or output of the program
        slot, places[outside], slots[outside] = places[outside] - 9, 1, 0
    run_alone(copies.COPY, copies.Copy(
        operands=images.Operands(
            a=places["source"], b=0, target=places["target"],
            loops=images.Loops(images=planes, lines=lines, positions=1, bytes=count),
            a_strides=near, b_strides=near, target_strides=far,
        ), source_slot=slots["source"], target_slot=slots["target"], begin=9,
    ), slot)  # fmt: skip
    assert target.memory.tobytes() == expected.tobytes()


@given(strategies.seeds(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_images_of_floats_get_the_order_of_their_shape(r, n, channels, height, width):
    lying = torch.from_numpy(r.normal(size=(n, height, width, channels)).astype(np.float32))
    given_shape = lying.reshape(n, channels, height, width)
    for many in (0, 2**30):
        with mock.patch.object(segment, "MANY", many):
            found = segment.channels_first(given_shape)
        assert found.is_contiguous() and torch.equal(found, lying.movedim(-1, 1))
