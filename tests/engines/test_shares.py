"""How work is shared out: parts that cover everything once, slices that fit the cache, and what is kept of shapes."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
from networks import torch_threads
from quantspec.engines.compiled import batching, parallel
from quantspec.engines.compiled.engine import Compiled, Segment
from quantspec.engines.compiled.packing import pack_layer
from quantspec.engines.compiled.parallel import shares, split
from quantspec.ir.program import Conv, Linear, LinearDynamic, LinearWeight, Program
from quantspec.ir.traverse import refs
from quantspec.kernels import copies, images
from quantspec.kernels.depthwise import DepthwiseInstruction
from quantspec.kernels.emitter import LANES
from quantspec.kernels.gemm import TILE_ROWS
from quantspec.kernels.product import PANEL, ProductCodes
from quantspec.kernels.quantize import DequantizeRows, QuantizeRows
from quantspec.kernels.recurrent_cell import Cell
from quantspec.kernels.threads import SHARED
from quantspec.kernels.weight_only import Weigh

WITH_WEIGHTS = Linear, Conv, LinearDynamic, LinearWeight
R = np.random.default_rng(5)
X = programs.grid(R)


@given(st.integers(0, 300), st.integers(1, 20))
def test_shares_follow_each_other_and_none_is_empty(count, threads):
    parts = shares(count, threads)
    assert parts[0][0] == 0 and parts[-1][1] == count and len(parts) == max(1, min(threads, count))
    assert all(before[1] == after[0] for before, after in zip(parts, parts[1:]))
    sizes = [last - first for first, last in parts]
    assert max(sizes) - min(sizes) <= 1 and (count == 0 or min(sizes) > 0)


def plan_of(steps, y, shape, packed=None):
    program = programs.between(X, steps, y) if not isinstance(steps, Program) else steps
    layers = {step.name: pack_layer(step) for step in program.steps if isinstance(step, WITH_WEIGHTS)}
    return Segment(program.steps, tuple(refs(program.output)), layers).planner.plan({"x": shape})


def only(plan, kind):
    (found,) = (part for part in plan.instructions if isinstance(part, kind))
    return found


def moved(parts, whole, field):
    """How far a field of each part is from where the whole begins."""
    return [int(getattr(part, field)) - int(getattr(whole, field)) for part in parts]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_rows_of_values_are_shared_with_where_they_are(threads):
    layer = programs.linear(R, "a", "x.codes", X, 12, 5)
    plan = plan_of([layer], layer.y_qparams, (7, 12))
    for kind in (QuantizeRows, DequantizeRows):
        whole = only(plan, kind)
        whole.ahead = 64
        parts, ends = split(whole, threads), shares(7, threads)
        assert [part.count for part in parts] == [last - first for first, last in ends]
        first = [begin for begin, _ in ends]
        inside, outside = ("target", "ahead") if kind is QuantizeRows else ("source", "ahead")
        pitches = (whole.target_pitch, whole.source_pitch)[:: 1 if kind is QuantizeRows else -1]
        assert moved(parts, whole, inside) == [n * pitches[0] for n in first]
        assert moved(parts, whole, outside) == [n * pitches[1] for n in first]


@pytest.mark.parametrize("threads", [2, 3])
def test_a_product_with_many_rows_is_shared_by_whole_tiles(threads):
    rows = 5 * TILE_ROWS[-1] * threads + 3
    layer = programs.linear(R, "a", "x.codes", X, 12, 5)
    whole = only(plan_of([layer], layer.y_qparams, (rows, 12)), ProductCodes)
    tile = parallel.group() if whole.product.buffer else TILE_ROWS[-1]  # what a CPU's unit computes at a time
    parts = split(whole, threads)
    counts = [part.product.rows for part in parts]
    starts = [sum(counts[:n]) for n in range(threads)]
    assert sum(counts) == rows and not any(start % tile for start in starts)
    assert [int(part.product.x_offsets) - int(whole.product.x_offsets) for part in parts] == [4 * n for n in starts]
    assert moved(parts, whole, "y_offsets") == [4 * n for n in starts]
    assert all(part.product.weight == whole.product.weight for part in parts)


@pytest.mark.parametrize("threads", [2, 3])
def test_a_product_with_few_rows_is_shared_by_panels_of_outputs(threads):
    outputs = 16 * PANEL * 5 + 7
    layer = programs.linear(R, "a", "x.codes", X, 12, outputs)
    whole = only(plan_of([layer], layer.y_qparams, (2, 12)), ProductCodes)
    parts = split(whole, threads)
    counts = [part.product.outputs for part in parts]
    starts = [sum(counts[:n]) for n in range(threads)]
    assert sum(counts) == outputs and not any(start % (16 * PANEL) for start in starts)
    assert sum(part.product.blocks for part in parts) == whole.product.blocks
    for field in ("bias", "factor", "sums"):
        assert moved([part.product for part in parts], whole.product, field) == [4 * n for n in starts]
    assert moved([part.product for part in parts], whole.product, "y") == starts
    block = [64 * whole.product.steps * n // 16 for n in starts]
    assert moved([part.product for part in parts], whole.product, "weight") == block
    assert all(part.product.rows == 2 for part in parts)


def test_channels_on_their_own_are_shared_by_rows():
    place = (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 6
    layer = programs.conv(R, "a", "x.codes", X, 6, 6, *place)
    plan = plan_of([layer], layer.y_qparams, (1, 6, 7, 5))
    whole = only(plan, DepthwiseInstruction)
    parts = split(whole, 3)
    counts = [part.layer.rows for part in parts]
    starts = [4 * sum(counts[:n]) for n in range(3)]
    assert sum(counts) == whole.layer.rows and len(set(counts)) < 3
    for field in ("x_offsets", "y_offsets"):
        assert moved([part.layer for part in parts], whole.layer, field) == starts


def operands(images_, lines, positions):
    loops = images.Loops(images=images_, lines=lines, positions=positions, bytes=8)
    strides = [images.Strides(image=1000 * n, line=100 * n, position=10 * n) for n in (1, 2, 3)]
    return images.Operands(
        a=7000, b=8000, target=9000, loops=loops, a_strides=strides[0], b_strides=strides[1], target_strides=strides[2],
    )  # fmt: skip


@pytest.mark.parametrize(("counts", "level", "step"), [
    ((3, 9, 9), "images", 1000), ((2, 3, 9), "lines", 100), ((2, 2, 7), "positions", 10),
])  # fmt: skip
def test_bytes_are_shared_along_the_outermost_loop_that_is_long_enough(counts, level, step):
    whole = images.LookUp(operands=operands(*counts), table=0)
    parts = split(whole, 3)
    names = "images", "lines", "positions"
    length = dict(zip(names, counts))[level]
    ends = shares(length, 3)
    assert [getattr(part.operands.loops, level) for part in parts] == [last - first for first, last in ends]
    for field, factor in (("a", 1), ("b", 2), ("target", 3)):
        assert moved([part.operands for part in parts], whole.operands, field) == [
            first * step * factor for first, _ in ends
        ]  # fmt: skip
    for other in set(names) - {level}:
        assert {getattr(part.operands.loops, other) for part in parts} == {dict(zip(names, counts))[other]}


def test_loops_that_are_too_short_and_copies_are_not_shared():
    whole = images.LookUp(operands=operands(2, 2, 2), table=0)
    assert split(whole, 3) == [whole]
    copy = copies.Copy(operands=operands(9, 9, 9), source_slot=-1, target_slot=-1, begin=0)
    assert split(copy, 3) == [copy]


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_samples_of_a_recurrent_step_are_shared_with_their_states(threads):
    places = dict(h=1000, c=2000, output_ahead=3000, state_gates=4000, gates_ahead=5000)
    whole = Cell(rows=7, size=5, gates=4, output_pitch=24, **places)
    parts, ends = split(whole, threads), shares(7, threads)
    assert [part.rows for part in parts] == [last - first for first, last in ends]
    first = [begin for begin, _ in ends]
    assert moved(parts, whole, "h") == moved(parts, whole, "c") == [20 * n for n in first]
    assert moved(parts, whole, "output_ahead") == [24 * n for n in first]
    assert moved(parts, whole, "state_gates") == moved(parts, whole, "gates_ahead") == [80 * n for n in first]


@pytest.mark.parametrize("threads", [2, 3])
def test_outputs_of_weights_alone_are_shared_in_whole_vectors(threads):
    outputs = 5 * LANES + 3
    fields = "bias", "factor", "relu", "rows", "slot", "sums", "sums_pitch", "units", "weights", "y", "y_pitch"
    whole = Weigh(outputs=outputs, **dict.fromkeys(fields, 640))
    parts = split(whole, threads)
    counts = [part.outputs for part in parts]
    starts = [sum(counts[:n]) for n in range(threads)]
    assert sum(counts) == outputs and not any(start % LANES for start in starts)
    for field in ("sums", "factor", "bias", "weights", "y_ahead"):
        assert moved(parts, whole, field) == [4 * n for n in starts]


@pytest.mark.skipif(not SHARED, reason="one thread does everything where there are no POSIX threads")
@pytest.mark.parametrize(("threads", "macs", "expected"), [
    (4, 99, 1), (4, 100, 1), (4, 299, 2), (4, 10**6, 4), (1, 10**6, 1),
])  # fmt: skip
def test_as_many_threads_as_there_is_work_for(threads, macs, expected):
    assert batching.wanted_threads(threads, macs, 100) == expected


def test_where_threads_cannot_be_shared_one_does_everything(monkeypatch):
    monkeypatch.setattr(batching, "SHARED", False)
    assert batching.wanted_threads(4, 10**6, 100) == 1


def compiled(samples: int, slice_bytes: int, threads: int = 1):
    """A linear layer bound to so many samples, of 12 floats each, with 1728 multiply-accumulates."""
    layer = programs.linear(np.random.default_rng(1), "a", "x.codes", X, 12, 144)
    program = programs.between(X, [layer], layer.y_qparams)
    engine = Compiled(program)
    patched = mock.patch.multiple(batching, SLICE_BYTES=slice_bytes, THREAD_MACS=1728, PARALLEL_MACS=10**9)
    with patched, torch_threads(threads):
        engine({"x": torch.zeros(samples, 12)})
    (made,) = engine.parts[0].batched.values()
    return made


def test_slices_are_as_even_as_can_be_and_cover_every_sample():
    one = compiled(1, 1).tasks[0][0][0]
    for samples in (1, 3, 7, 10):
        for most in (1, 2, 3, 4):
            made = compiled(samples, most * (one.nbytes + 4 * 12))
            ((*parts,),) = made.tasks
            sizes = [(plan.shapes[0][0], plan.frame.slices) for plan, _ in parts]
            assert sum(size * times for size, times in sizes) == samples
            size = -(-samples // -(-samples // most))
            assert max(each for each, _ in sizes) == size <= most
            begin = 0
            for (each, times), (plan, offsets) in zip(sizes, parts):
                assert offsets == (4 * 12 * begin, 4 * 144 * begin)
                assert list(plan.frame.strides[:2]) == [4 * 12 * each, 4 * 144 * each]
                begin += each * times


@pytest.mark.skipif(not SHARED, reason="one thread does everything where there are no POSIX threads")
def test_samples_are_shared_among_threads_one_after_the_other():
    made = compiled(10, 2**20, threads=3)
    starts = [task[0][1][0] // 48 for task in made.tasks]
    assert starts == [0, 3, 6] and [task[0][0].shapes[0][0] for task in made.tasks] == [3, 3, 4]
    assert made.share is not None and made.threads == 3 and made.threaded and not made.stale


def test_shapes_of_other_threads_are_bound_anew_and_the_number_kept_is_bounded():
    made, bound = [], {}

    class Bound(batching.Shared):
        def __init__(self, threads):
            self.threads, self.share = threads, None

    def make(threads):
        made.append(threads)
        return Bound(threads)

    with torch_threads(2):
        first = batching.kept(bound, "a", make)
        assert batching.kept(bound, "a", make) is first and made == [2]
    with torch_threads(1):
        assert batching.kept(bound, "a", make) is not first and made == [2, 1]
        for index in range(batching.SHAPES_KEPT - 1):
            batching.kept(bound, index, make)
        assert len(bound) == batching.SHAPES_KEPT
        batching.kept(bound, "another", make)
        assert list(bound) == ["another"]


def test_large_weights_are_worth_their_way_from_memory():
    planner, shapes = mock.Mock(weight_bytes=100), ((7, 3, 4),)
    single = mock.Mock(nbytes=52, macs=50)
    with mock.patch.multiple(batching, SLICE_BYTES=1000, LARGE_WEIGHTS=100, REUSE=3):
        assert batching.slice_size(planner, single, shapes) == 10
        planner.weight_bytes = 101
        assert batching.slice_size(planner, single, shapes) == 10
        planner.weight_bytes = 1001
        assert batching.slice_size(planner, single, shapes) == 61
        single.macs = 0
        assert batching.slice_size(planner, single, shapes) == 3003
    with mock.patch.multiple(batching, SLICE_BYTES=1000):
        planner.weight_bytes, single.nbytes = 1, 10**6
        assert batching.slice_size(planner, single, shapes) == 1


def test_threads_of_a_team_are_told_how_many_have_arrived():
    layer = programs.linear(R, "a", "x.codes", X, 12, 16 * PANEL * 4)
    made = parallel.Parallel(plan_of([layer], layer.y_qparams, (2, 12)), 3)
    count = len(made.plan.instructions)
    assert len(made.frames) == 3 and made.addresses == [frame.address for frame in made.frames]
    assert all(frame.count > count and frame.slots == made.plan.frame.slots for frame in made.frames)
