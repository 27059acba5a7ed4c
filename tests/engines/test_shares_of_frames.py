"""The frames of several threads: the parts of each instruction, a barrier behind each, and what else is shared out."""

import numpy as np
import pytest
from test_shares import X, moved, only, plan_of
from test_weight_only import chain

import programs
from quantspec.engines.compiled import parallel
from quantspec.engines.compiled.parallel import Parallel, shares, split
from quantspec.kernels import threads as waiting
from quantspec.kernels.dynamic_gemm import DynamicProduct
from quantspec.kernels.float_output import ProductFloats
from quantspec.kernels.gemm import TILE_ROWS
from quantspec.kernels.images import Pool
from quantspec.kernels.product import PANEL, Product, ProductAdd
from quantspec.kernels.sharing import BARRIER, Barrier
from quantspec.kernels.threads import looks
from quantspec.kernels.weight_only import ProductSums

R = np.random.default_rng(6)


@pytest.mark.parametrize("threads", [2, 3])
def test_each_part_of_an_instruction_has_a_barrier_behind_it(threads):
    layer = programs.linear(R, "a", "x.codes", X, 12, 16 * PANEL * 2)
    plan = plan_of([layer], layer.y_qparams, (2, 12))
    plan.frame.slices, plan.frame.release = 5, 1
    made = Parallel(plan, threads)
    count, counter = len(plan.instructions), made.counter.ctypes.data
    assert made.counter.dtype == np.int64 and not made.counter.any()
    parts = [split(instruction, threads) for instruction in plan.instructions]
    of_barriers = BARRIER.bound(Barrier(counter=0, arrived=0, step=0, looks=0)).entries[0]
    for thread, frame in enumerate(made.frames):
        assert (frame.slices, frame.slots, bool(frame.release)) == (5, plan.frame.slots, True)
        barriers = [entries for entries in frame.instructions if entries[0] == of_barriers]
        told = [Barrier.on(entries) for entries in barriers]
        assert [(each.counter, each.arrived, each.step, each.looks) for each in told] == [
            (counter, threads * (index + 1), threads * count, looks(threads)) for index in range(count)
        ]  # fmt: skip
        assert frame.count - count == sum(len(part) > thread for part in parts)


@pytest.mark.parametrize("cpus", [1, 2, 3])
def test_threads_offer_their_place_sooner_where_there_are_more_of_them_than_cpus(cpus, monkeypatch):
    """Whoever is waited for may need the place to arrive."""
    monkeypatch.setattr(waiting, "LINUX", False)
    monkeypatch.setattr(waiting.os, "cpu_count", lambda: cpus)
    assert [looks(threads) < looks(1) for threads in (1, 2, 3, 4)] == [threads > cpus for threads in (1, 2, 3, 4)]


@pytest.mark.skipif(not waiting.LINUX, reason="elsewhere it is not known on which CPUs a process may run")
def test_only_cpus_that_a_process_may_run_on_count(monkeypatch):
    monkeypatch.setattr(waiting.os, "sched_getaffinity", lambda process: {3, 5})
    assert looks(2) == looks(1) > looks(3)


def test_a_frame_lets_no_other_threads_run_where_the_whole_does_not():
    layer = programs.linear(R, "a", "x.codes", X, 12, 5)
    plan = plan_of([layer], layer.y_qparams, (2, 12))
    assert not any(frame.release for frame in Parallel(plan, 2).frames)


@pytest.mark.parametrize("threads", [2, 3])
def test_windows_are_shared_with_their_tables(threads):
    pool = programs.pools(np.random.default_rng(1), X, 2)[1]
    whole = only(plan_of([pool], X, (2, 4, 9, 8)), Pool)
    parts, ends = split(whole, threads), shares(whole.windows.rows, threads)
    assert [part.windows.rows for part in parts] == [last - first for first, last in ends]
    inner, first = [part.windows for part in parts], [begin for begin, _ in ends]
    assert moved(inner, whole.windows, "taps") == [4 * whole.windows.window * n for n in first]
    for field in ("counts", "y_offsets", "factors"):
        assert moved(inner, whole.windows, field) == [4 * n for n in first]


def starts_of(parts, field):
    counts = [getattr(part.product, field) for part in parts]
    return [sum(counts[:n]) for n in range(len(counts))]


@pytest.mark.parametrize("rows", [2 * TILE_ROWS[-1] - 1, 2 * TILE_ROWS[-1]])
def test_rows_are_shared_from_a_tile_for_each_thread_on(rows):
    layer = programs.linear(R, "a", "x.codes", X, 12, 5 * 16 * PANEL)
    whole = only(plan_of([layer], layer.y_qparams, (rows, 12)), parallel.ProductCodes)
    by_rows = {part.product.outputs for part in split(whole, 2)} == {whole.product.outputs}
    assert by_rows == (rows == 2 * TILE_ROWS[-1])


@pytest.mark.parametrize(("rows", "outputs", "blocks", "threads", "wide"), [
    (10, 11, 2 * PANEL * parallel.EVEN, 2, True), (10, 11, 2 * PANEL * parallel.EVEN - 1, 2, False),
    (10, 10, 2 * PANEL * parallel.EVEN, 2, False), (10, 11, 2 * PANEL * parallel.EVEN, 3, False),
    (10, 9, 10**6, 2, False),
])  # fmt: skip
def test_weights_are_wide_from_even_shares_of_panels_on(rows, outputs, blocks, threads, wide):
    whole = Product.on(np.zeros(Product.SIZE, np.int64))
    whole.rows, whole.outputs, whole.blocks = rows, outputs, blocks
    assert parallel.has_wide_weights(whole, threads) == wide


@pytest.mark.parametrize("rows", [3, 100])
def test_floats_of_a_layer_are_shared_by_rows_or_by_outputs(rows):
    layer = programs.real(programs.linear(R, "a", "x.codes", X, 12, 3 * 16 * PANEL))
    whole = only(plan_of(programs.to_floats(X, layer), None, (rows, 12)), ProductFloats)
    whole.y_ahead = 128
    parts = split(whole, 2)
    by_rows = rows == 100
    first = starts_of(parts, "rows" if by_rows else "outputs")
    assert len(first) == 2 and first[1] > 0
    none, each = [0, 0], [4 * n for n in first]
    assert moved(parts, whole, "y_offsets") == (each if by_rows else none)
    assert moved(parts, whole, "float_bias") == moved(parts, whole, "y_ahead") == (none if by_rows else each)


@pytest.mark.parametrize("rows", [3, 100])
def test_floats_of_a_dynamic_layer_are_shared_by_rows_or_by_outputs(rows):
    chain = programs.dynamic_chain(R, [12, 3 * 16 * PANEL, 3 * 16 * PANEL], rows=True, reduce_range=False)
    plan = plan_of(chain, None, (rows, 1, 12))
    inside, outside = (part for part in plan.instructions if isinstance(part, DynamicProduct))
    assert inside.slot < 0 <= outside.slot
    for whole in (inside, outside):
        whole.y_ahead = 128
        parts = split(whole, 2)
        first = starts_of(parts, "rows" if rows == 100 else "outputs")
        nbytes = [n * whole.y_pitch if rows == 100 else 4 * n for n in first]
        behind = moved(parts, whole, "y_ahead"), moved([part.product for part in parts], whole.product, "y")
        assert behind == (([0, 0], nbytes) if whole is inside else (nbytes, [0, 0]))
        grids = moved(parts, whole, "row_grids")
        assert grids == ([n * whole.grid_stride for n in first] if rows == 100 else [0, 0])


@pytest.mark.parametrize("side", [1, 12])
def test_sums_within_convolutions_are_shared_with_the_other_operand(side):
    program = programs.residual(np.random.default_rng(2), 3 * 16 * PANEL, True)
    whole = only(plan_of(program, None, (1, 3 * 16 * PANEL, side, side)), ProductAdd)
    parts = split(whole, 2)
    first = starts_of(parts, "rows" if side == 12 else "outputs")
    assert len(first) == 2 and first[1] > 0
    by_rows, none = [4 * n for n in first], [0, 0]
    assert moved(parts, whole, "b_offsets") == moved(parts, whole, "y_offsets") == (by_rows if side == 12 else none)
    assert moved(parts, whole, "b") == (none if side == 12 else first)


@pytest.mark.parametrize("rows", [3, 100])
def test_sums_of_weights_alone_are_shared_with_the_low_bytes_that_are_listed(rows):
    program = chain(np.random.default_rng(3), [40, 3 * 16 * PANEL])
    for whole in [part for part in plan_of(program, None, (rows, 40)).instructions if isinstance(part, ProductSums)]:
        parts, by_rows = split(whole, 2), whole.product.rows >= 2 * TILE_ROWS[-1]
        first = starts_of(parts, "rows" if by_rows else "outputs")
        assert len(first) == 2 and first[1] > 0
        inner = moved([part.product for part in parts], whole.product, "y")
        assert inner == [n * whole.y_pitch if by_rows else 4 * n for n in first]
        sums = moved([part.low for part in parts], whole.low, "sums")
        assert sums == ([0, 0] if by_rows else [4 * n for n in first])
        last = whole.low.last
        ends = [(0, last // 2), (last // 2, last)] if by_rows else [(whole.low.first, last)] * 2
        assert [(part.low.first, part.low.last) for part in parts] == ends
