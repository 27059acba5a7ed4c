"""Records: every entry has a place of its own, and an instruction is told everything that it needs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantspec.kernels import (  # noqa: F401
    depthwise,
    dynamic_gemm,
    float_output,
    gemm,
    images,
    minmax,
    planes,
    quantize,
)
from quantspec.kernels.frame import Frame
from quantspec.kernels.records import LINE, WIDTH, Float, Grid, Instruction, Integer, Integers, Nested, Record
from quantspec.kernels.threads import Mailbox


class Pair(Record):
    first: Integer
    second: Float


class Told(Instruction):
    pair: Nested[Pair]
    many: Integers = Integers(3)
    last: Integer


def records(kind: type[Record] = Record) -> list[type[Record]]:
    return [found for derived in kind.__subclasses__() for found in (derived, *records(derived))]


OURS = [kind for kind in records() if kind.__module__.startswith("quantspec")]


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__qualname__)
def test_no_two_entries_share_a_place(kind):
    taken = [place for entry in kind.FIELDS.values() for place in range(entry.index, entry.index + entry.count)]
    assert len(taken) == len(set(taken)) and max(taken) < kind.SIZE
    if issubclass(kind, Instruction):
        assert kind.SIZE <= WIDTH and kind.kernel.index == 0


def test_every_kind_of_instruction_is_looked_at():
    assert {Frame, Mailbox, gemm.ProductAdd, dynamic_gemm.DynamicProduct, Told} <= set(records())


@given(st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False), st.integers(0, 2**31))
def test_what_is_written_is_read(integer, real, last):
    told = Told(pair=Pair(first=integer, second=real), last=last)
    assert (told.pair.first, told.pair.second, told.last, told.kernel) == (integer, real, last, 0)
    told.pair.first, told.many = 7, np.array([1, 2, 3])
    again = Told.on(told.entries.copy())
    assert (again.pair.first, again.pair.second, again.last) == (7, real, last) and again.many.tolist() == [1, 2, 3]
    other = told.copy()
    other.last += 1
    assert (told.last, other.last) == (last, last + 1)


def test_a_record_needs_all_its_entries_and_takes_no_others():
    with pytest.raises(TypeError, match=r"Pair: .*missing: \['second'\]"):
        Pair(first=1)
    with pytest.raises(TypeError, match=r"Pair: entries that it does not have: \['third'\]"):
        Pair(first=1, second=2, third=3)


def test_a_record_that_cannot_be_laid_out_is_refused():
    with pytest.raises(TypeError, match="first is an entry of the record it is derived from"):

        class Again(Pair):
            first: Integer

    with pytest.raises(TypeError, match=f"Long: an instruction has {WIDTH} entries, these are {WIDTH + 1}"):

        class Long(Instruction):
            many: Integers = Integers(WIDTH)

    with pytest.raises(TypeError, match="Plain: number is no entry"):

        class Plain(Record):
            number: int


def test_entries_that_other_threads_write_are_on_lines_of_their_own():
    entries = Mailbox.begun, Mailbox.done, Mailbox.lock, Mailbox.word
    lines = [entry.index // LINE for entry in entries]
    assert len(set(lines)) == 4 and Mailbox.begun.index % LINE == Mailbox.done.index % LINE == 0


def test_the_record_of_a_grid_has_its_ends():
    grid = quantize.grid_record(0.5, 3, 0, 255)
    assert isinstance(grid, Grid)
    assert (grid.scale, grid.inverse, grid.low, grid.high, grid.zero) == (0.5, 2.0, -1.5, 126.0, 3)
    assert quantize.grid_record(0.5, 3, 1, 255).inverse == quantize.grid_record(2.0**-100, 3, 0, 255).inverse == 0
