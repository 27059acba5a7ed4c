"""Weights that are moved into one block of large pages are the same weights, and are moved once."""

import mmap
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from evidence import clause
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.kernels import memory, packed

pages = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages to ask for")


def product(r: np.random.Generator, outputs: int, inputs: int) -> packed.Packed:
    """A product of random weights."""
    codes = r.integers(-128, 128, (outputs, inputs)).astype(np.int8)
    zeros = np.zeros(outputs, np.int64)
    return packed.pack(codes, lambda rows: rows[:, None], zeros, np.ones(outputs, np.float32))


def start_of(one: packed.Packed) -> int:
    return int(one.weight.ctypes.data)


@pages
@given(strategies.seeds(), st.lists(st.tuples(st.integers(1, 70), st.integers(1, 90)), min_size=1, max_size=6))
def test_weights_lie_behind_one_another(r, sizes):
    with mock.patch.multiple(packed, LARGE_WEIGHTS=1024, LARGE_PAGE=4096):
        products = [product(r, *size) for size in sizes]
        shared = replace(products[0])
        before = [(start_of(one), one.weight.copy()) for one in products]
        packed.put_together([*products, shared])
    large = [n for n, one in enumerate(products) if one.weight.nbytes >= 1024]
    enough = sum(-(-products[n].weight.nbytes // 64) * 64 for n in large) >= 4096
    assert all(np.array_equal(one.weight, codes) for one, (_, codes) in zip(products, before))
    assert shared.weight is products[0].weight and shared.moved == products[0].moved
    assert [one.moved for one in products] == [enough and n in large for n in range(len(products))]
    assert all(one.moved or start_of(one) == start for one, (start, _) in zip(products, before))
    moved = [one for one in products if one.moved]
    for one, following in zip(moved, moved[1:]):
        assert start_of(one) % 64 == 0 and 0 <= start_of(following) - start_of(one) - one.weight.nbytes < 64
    if moved:
        assert start_of(moved[0]) % memory.LARGE_PAGE == 0
    places = [start_of(one) for one in products]
    with mock.patch.multiple(packed, LARGE_WEIGHTS=1024, LARGE_PAGE=4096):
        packed.put_together([*products, shared])
    assert [start_of(one) for one in products if one.moved] == [p for p, one in zip(places, products) if one.moved]


@pages
@pytest.mark.parametrize("error", [None, OSError(22, "Invalid argument")])
def test_a_system_without_large_pages_leaves_them(error):
    r = np.random.default_rng(0)
    one = product(r, 70, 90)
    start = start_of(one)

    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise error

    fake = SimpleNamespace(mmap=Refusing, MAP_PRIVATE=mmap.MAP_PRIVATE, MAP_ANONYMOUS=mmap.MAP_ANONYMOUS)
    if error is not None:
        fake.MADV_HUGEPAGE = mmap.MADV_HUGEPAGE
    with mock.patch.object(memory, "mmap", fake), mock.patch.multiple(packed, LARGE_WEIGHTS=1, LARGE_PAGE=1):
        assert memory.in_large_pages(100) is None
        packed.put_together([one])
    assert start_of(one) == start and not one.moved


@pages
@pytest.mark.parametrize("nbytes", [2**21, 2**21 + 1, 5 * 2**20, 2**23 - 4096])
def test_large_pages_are_asked_for_as_far_as_they_are_filled(nbytes):
    asked = []

    class Asked(mmap.mmap):
        def madvise(self, *of: int) -> None:
            asked.append(of)
            super().madvise(*of)

    with mock.patch.object(mmap, "mmap", Asked):
        block = memory.memory_for(nbytes)
    assert block.nbytes == nbytes and block.ctypes.data % memory.LARGE_PAGE == 0 and not block.any()
    ((advice, start, length),) = asked
    assert advice == mmap.MADV_HUGEPAGE and 0 <= start < memory.LARGE_PAGE
    assert length % memory.LARGE_PAGE == 0 and 0 <= nbytes + memory.WEIGHT_SLACK - length < memory.LARGE_PAGE
    block[:] = 1
    assert memory.roomy(block, nbytes).ctypes.data == block.ctypes.data


@clause("SIZ-RESIDENT")
@pages
@given(strategies.seeds(), st.integers(1, 40), st.integers(1, 3))
def test_networks_whose_weights_were_moved_give_the_same(r, rows, layers):
    x = programs.grid(r)
    steps, grid = [], x
    for n in range(layers):
        steps.append(programs.linear(r, f"a{n}", f"a{n - 1}" if n else "x.codes", grid, 48, 48))
        grid = steps[-1].y_qparams
    program = programs.between(x, steps, grid)
    batch = {"x": torch.from_numpy(programs.values(r, x, (rows, 48)))}
    expected = Reference(program)(batch)
    with mock.patch.multiple(packed, LARGE_WEIGHTS=1024, LARGE_PAGE=2048):
        held = Compiled(program, weights="held")
        assert torch.equal(held(batch), expected)
        places = [layer[0][0].weight.ctypes.data for layer in held.parts[0].packed.values()]
        assert all(layer[0][0].moved == (layers > 0) for layer in held.parts[0].packed.values())
        # Another engine of the program has the same memory.
        again = Compiled(program, weights="held")
        assert [layer[0][0].weight.ctypes.data for layer in again.parts[0].packed.values()] == places
        assert torch.equal(again(batch), expected)
