"""Products in tiles give what the reference gives, and so does a process that may not use them.

Where there are no tiles, the same is computed by loops.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
import tile_loops
from evidence import clause
from networks import tensors, torch_threads
from quantspec.engines.compiled import batching, parallel, planner, sixteens
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.reference import Reference
from quantspec.kernels import cpu, grouped, memory, tiles

FUNCTIONS = {("function", "torch.flatten"): torch.flatten, ("function", "torch.relu"): torch.relu}


@pytest.fixture(autouse=True, scope="module", params=["chunks", "parts"])
def everything_in_tiles(request) -> Iterator[None]:
    """Tiles for products of any size, in several chunks of a group, or in parts of two tiles for several groups."""
    several = {"CHUNK_BYTES": 2**12} if request.param == "chunks" else {"PART": 2, "CHUNK_BYTES": 2**15}
    with contextlib.nullcontext() if tiles.allowed() else tile_loops.emulated():
        with mock.patch.multiple(tiles, LEAST_ROWS=1, LEAST_THERE=0, LEAST_DOTS=0, DOTS_OF_COPY=0, **several):
            yield


def check(program, x, expect=True):
    batch = {"x": torch.from_numpy(x)}
    engine, used = Compiled(program), []

    def noted(products, keep, give=grouped.give_buffers):
        products = list(products)
        give(products, keep)
        used.extend(bool(product.buffer) for product in products)

    with mock.patch.object(planner, "give_buffers", noted), mock.patch.object(parallel, "give_buffers", noted):
        first = engine(batch)
    assert set(used) == {expect}
    assert torch.equal(first, Reference(program)(batch)) and torch.equal(engine(batch), first)


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(1, 100), st.integers(1, 300), st.integers(1, 80), st.booleans())
def test_rows(r, rows, inputs, outputs, real):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    program = programs.of_layer(x, step, real)
    check(program, programs.values(r, x, (rows, inputs)))


@clause("STA-INSTRUCTIONS")
@given(
    strategies.seeds(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 50), st.sampled_from([1, 2]),
    st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 2)]), st.sampled_from([1, 1, 2]), st.integers(5, 12), st.booleans(),
)  # fmt: skip
def test_images(r, images, channels, outputs, groups, kernel, dilation, side, real):
    size, stride = kernel
    x = programs.grid(r)
    place = (size, size), (stride, stride), ((size // 2, size // 2),) * 2, (dilation, dilation), groups
    # A group of one channel each is no product.
    channels, outputs = groups * (channels + 1), groups * (outputs + 1)
    if side + 2 * (size // 2) <= dilation * (size - 1):
        return
    step = programs.conv(r, "a", "x.codes", x, channels, outputs, *place)
    program = programs.of_layer(x, step, real)
    check(program, programs.values(r, x, (images, channels, side, side + 1)))


@clause("STA-INSTRUCTIONS")
@given(
    strategies.seeds(), st.integers(1, 3), st.sampled_from([11, 28, 32, 40, 56, 64, 72, 128]),
    st.sampled_from([(1, 1), (1, 2), (3, 1), (3, 2)]), st.sampled_from([1, 1, 2]), st.integers(1, 2),
    st.tuples(st.integers(4, 20), st.integers(4, 20)), st.booleans(),
)  # fmt: skip
def test_windows_in_sixteens(r, images, channels, kernel, dilation, groups, sides, real):
    size, stride = kernel
    x = programs.grid(r)
    margins = tuple(tuple(int(n) for n in r.integers(0, 3, 2)) for _ in range(2))
    if min(n + sum(margin) for n, margin in zip(sides, margins)) <= dilation * (size - 1):
        return
    place = (size, size), (stride, stride), margins, (dilation, dilation), groups
    step = programs.conv(r, "a", "x.codes", x, channels * groups, int(r.integers(2, 40)) * groups, *place)
    check(programs.of_layer(x, step, real), programs.values(r, x, (images, channels * groups, *sides)))


@clause("STA-INSTRUCTIONS")
@given(
    st.integers(1, 3), st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 80), st.integers(1, 3),
    st.tuples(*[st.integers(0, 2)] * 6), st.tuples(*[st.integers(1, 3)] * 3),
)  # fmt: skip
def test_sixteens_are_all_rows_at_equal_distances(images, sides, channels, more, margin, stride):
    layout = memory.Layout(images, sides[1], sides[2] * more, channels, margin, sides[0])
    counts = tuple(max(1, n // s) for n, s in zip(layout.counts, stride))
    found = sixteens.sixteens(layout, counts, stride)
    if found is None:
        return
    sources, places = layout.offsets(counts, stride), found.places.astype(np.int64)
    own = np.isin(places, sources)
    assert set(places[own]) == set(sources)
    assert (sources[found.rows[own]] == places[own]).all()
    assert len(places) <= sixteens.MOST * len(sources) and places.min() >= sources[0] and places.max() <= sources[-1]
    by_tile, rows = places.reshape(-1, 16), found.rows.reshape(-1, 16)
    assert (np.diff(by_tile, axis=1) == found.distance).all()
    # Outputs of a place between rows are overwritten by a row behind it in its sixteen, or nobody's.
    for numbers, given_by in zip(rows, own.reshape(-1, 16)):
        for i in np.flatnonzero(~given_by):
            behind = numbers[i + 1 :][given_by[i + 1 :]]
            assert numbers[i] == (behind[0] if len(behind) else -1)


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(2, 40), st.booleans())
def test_sums(r, channels, first):
    program = programs.residual(r, channels, first)
    check(program, programs.values(r, program.steps[0].qparams, (2, channels, 6, 7)))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.booleans(), st.integers(2, 17), st.integers(2, 17))
def test_sums_in_sixteens(r, first, height, width):
    program = programs.residual(r, 64, first)
    check(program, programs.values(r, program.steps[0].qparams, (2, 64, height, width)))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.lists(st.integers(1, 150), min_size=2, max_size=3), st.booleans(), st.booleans())
def test_floats(r, widths, rows, reduce_range):
    program = programs.dynamic_chain(r, widths, rows=rows, reduce_range=reduce_range)
    program = replace(program, callables=FUNCTIONS)
    check(program, r.normal(size=(int(r.integers(1, 80)), 1, widths[0])).astype(np.float32))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(2, 4), st.integers(1, 200), st.integers(1, 200))
def test_threads_gather_on_their_own(r, count, inputs, outputs):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, inputs, outputs)
    values = programs.values(r, x, (int(r.integers(1, 200)), inputs))
    with torch_threads(count), mock.patch.multiple(batching, THREAD_MACS=1, PARALLEL_MACS=1, PATIENT_MACS=1):
        check(programs.between(x, [step], step.y_qparams), values)


@clause("STA-INSTRUCTIONS")
@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("x", [0, 255])
def test_the_largest_products(code, x):
    r = np.random.default_rng(0)
    grid = programs.QParams(np.float32(1), 0 if x else 255, 0, 255)
    step = programs.linear(r, "a", "x.codes", grid, 1024, 40)
    step.weight[...] = code
    values = np.full((33, 1024), x - int(grid.zero_point), np.float32)
    check(programs.to_floats(grid, programs.real(step)), values)


@given(strategies.seeds(), st.sampled_from(["lstm", "gru", "rnn_tanh", "rnn_relu"]), st.integers(1, 40))
def test_recurrent_layers(r, kind, batch):
    inputs, size = (int(n) for n in r.integers(1, 70, 2))
    program = programs.recurrent(r, kind, inputs, size, layers=1, both=False, reduce_range=bool(r.random() < 0.5))
    x = torch.from_numpy(r.normal(size=(3, batch, inputs)).astype(np.float32))
    a, b = (engine(program)({"x": x}) for engine in (Compiled, Reference))
    assert all(map(torch.equal, tensors(a), tensors(b)))


@clause("STA-INSTRUCTIONS")
def test_without_leave_products_are_computed_all_the_same():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 100, 70)
    with mock.patch.object(tiles, "allowed", lambda: False):
        check(programs.between(x, [step], step.y_qparams), programs.values(r, x, (50, 100)), expect=False)


@clause("STA-INSTRUCTIONS")
@pytest.mark.parametrize("steps", range(1, 17))
def test_tiles_are_configured_for_their_steps(steps):
    # Intel's manual, LDTILECFG: the palette, then 16 bits each for bytes of a row from byte 16, rows from byte 48 on.
    told = tiles.configuration(steps)
    row_bytes, rows = np.frombuffer(told[16:32], "<u2"), list(told[48:56])
    assert len(told) == 64 and told[0] == 1 and not any(told[1:16] + told[32:48] + told[56:])
    assert [*row_bytes] == [64] * 4 + [4 * steps] * 2 + [64] * 2 and rows == [16] * 6 + [steps] * 2


@clause("STA-INSTRUCTIONS")
@given(st.integers(1, 3000))
def test_tiles_make_whole_runs(run_steps):
    found = tiles.tile_steps(run_steps)
    fitting = [n for n in range(tiles.LEAST_STEPS, 17) if run_steps % n == 0]
    assert found == max(fitting, default=0)


@clause("STA-TILES")
def test_tiles_that_are_refused_are_told_once():
    tiles.allowed.cache_clear()
    has_tiles = replace(cpu.target(), has_tiles=True)
    try:
        with mock.patch.object(cpu, "target", lambda: has_tiles), mock.patch.object(tiles, "ask", lambda: 28):
            with pytest.warns(RuntimeWarning, match="denies this process the AMX tiles .* VNNI") as told:
                assert not tiles.allowed() and not tiles.allowed()
            assert len(told) == 1
        tiles.allowed.cache_clear()
        has_none = replace(has_tiles, has_tiles=False)
        with mock.patch.object(cpu, "target", lambda: has_none), mock.patch.object(tiles, "ask", lambda: 28):
            assert not tiles.allowed()  # nobody is told of what the CPU has not
    finally:
        tiles.allowed.cache_clear()
