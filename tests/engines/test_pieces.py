"""Segments that are given ever other numbers of samples run plans of a few sizes again, with the reference's bits."""

import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_parallel import threads

import networks
import programs
import quantspec as qs
import strategies
from networks import tensors
from quantspec.engines.compiled import batching, segment
from quantspec.engines.compiled.engine import Compiled
from quantspec.engines.compiled.planner import Planner
from quantspec.engines.reference import Reference
from quantspec.ir.program import Add, AvgPool, Dequantize, MaxPool, Program, Ref


def two_layers(r: np.random.Generator) -> Program:
    """A layer for each of two inputs, the sum of both, a function of it, and a layer of that; the sum and the last
    layer are outputs."""
    x, z, y = programs.grid(r), programs.grid(r), programs.grid(r)
    a, b = programs.linear(r, "a", "x.codes", x, 12, 20), programs.linear(r, "b", "z.codes", z, 7, 20)
    total = Add("total", "a", "b", a.y_qparams, b.y_qparams, y, True)
    table = replace(programs.table(r, y), name="t", x="total")
    last = programs.linear(r, "last", "t", table.y_qparams, 20, 9)
    steps = [a, b, total, Dequantize("sum", "total", y), table, last]
    program = programs.between(x, steps, last.y_qparams, inputs=("x", "z"), grids=(x, z))
    return replace(program, output=(Ref("sum"), Ref("out")))


def rows_for(program: Program, r: np.random.Generator, *lead: int) -> dict[str, torch.Tensor]:
    """Values for both inputs of ``two_layers``."""
    pairs = zip(program.inputs, program.steps, (12, 7))
    return {name: torch.from_numpy(programs.values(r, step.qparams, (*lead, width))) for name, step, width in pairs}


shapes = st.lists(st.integers(1, 6), min_size=1, max_size=3)


@given(strategies.seeds(), st.lists(shapes, min_size=2, max_size=6), st.integers(0, 2), st.integers(1, 3))
def test_rows_in_any_shape_give_the_references_bits_once_there_were_many(r, drawn, kept, count):
    program = two_layers(r)
    reference = Reference(program)
    with mock.patch.object(segment, "SHAPES_KEPT", kept), mock.patch.object(batching, "SLICE_BYTES", 3000):
        with threads(count):
            compiled = Compiled(program)
            for lead in drawn:
                batch = rows_for(program, r, *lead)
                found, expected = tensors(compiled(batch)), tensors(reference(batch))
                assert [y.shape for y in found] == [y.shape for y in expected]
                assert all(map(torch.equal, found, expected))


@given(
    strategies.seeds(), st.lists(st.tuples(st.integers(1, 40), st.integers(5, 6)), min_size=2, max_size=6),
    st.integers(0, 2), st.integers(1, 3),
)  # fmt: skip
def test_as_many_images_as_there_are_give_the_references_bits_once_there_were_many(r, drawn, kept, count):
    x = programs.grid(r)
    conv = programs.conv(r, "a", "x.codes", x, 3, 9, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    pool = MaxPool("y", "a", (3, 2), (2, 1), (1, 0), (1, 1), False)
    program = programs.between(x, [conv, pool], conv.y_qparams)
    reference = Reference(program)
    with mock.patch.object(segment, "SHAPES_KEPT", kept), mock.patch.object(batching, "SLICE_BYTES", 5000):
        with threads(count):
            compiled = Compiled(program)
            for samples, side in drawn:
                batch = {"x": torch.from_numpy(programs.values(r, x, (samples, 3, 5, side)))}
                assert torch.equal(compiled(batch), reference(batch))


@given(st.integers(0, 5000), st.integers(1, 300))
def test_rows_are_cut_into_pieces_of_few_sizes(count, most):
    pieces = [(rows, times) for rows, times in batching.Pieces(again=True).cut(count, most) if rows and times]
    assert sum(rows * times for rows, times in pieces) == count
    assert all(rows <= most and (rows % 16 == 0 or rows < 16) for rows, _ in pieces)
    assert len(pieces) <= 3 and len({rows for rows, _ in pieces}) == len(pieces)


def planned(program: Program, shapes: list[tuple[int, ...]]) -> list[int]:
    """How many plans each of these shapes of an input needed."""
    compiled, counts, plan = Compiled(program), [0], Planner.plan

    def counted(*args, **options):
        counts[-1] += 1
        return plan(*args, **options)

    with mock.patch.object(Planner, "plan", counted):
        for shape in shapes:
            compiled({"x": torch.zeros(shape)})
            counts.append(0)
    return counts[:-1]


def test_samples_of_known_pieces_are_not_planned_again_once_there_were_many_shapes():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    layer = programs.linear(r, "a", "x.codes", x, 12, 20)
    many = [(1, n, 12) for n in range(1, 17)]
    assert planned(programs.between(x, [layer], layer.y_qparams), [*many, (5, 7, 12), (7, 5, 12), (2, 2, 8, 12)]) == [
        *[1] * 16, 3, 0, 0,
    ]  # fmt: skip
    # Of images, numbers of samples.
    pooled = programs.between(x, [AvgPool("y", "x.codes", x, (2,), (2,), (0,), False, True)], x)
    assert planned(pooled, [(n, 3, 8) for n in range(1, 40)]) == [1, *[2] * 15, 3, *[1] * 15, *[0] * 7]
    # What tells more than how many rows there are is planned for each shape: windows, and ranges over all rows.
    assert all(planned(pooled, [(1, 3, n) for n in range(2, 22)]))
    whole = programs.dynamic_chain(r, [12, 5], rows=False, reduce_range=False)
    assert all(planned(whole, [(n, 12) for n in range(1, 20)]))


@pytest.mark.parametrize("activations", ["per_token", "per_tensor", None])
def test_dynamic_layers_take_rows_in_any_shape_once_there_were_many(activations):
    model, example = networks.seeded(networks.Perceptron), networks.inputs(6)
    q = qs.quantize_dynamic(model, example=example, activations=activations)
    compiled, reference = q.run_on("compiled"), q.run_on("reference")
    with mock.patch.object(segment, "SHAPES_KEPT", 1):
        for lead in ((3,), (5,), (2, 3), (4,), (3, 1, 2)):
            x = networks.inputs(math.prod(lead)).reshape(*lead, -1)
            assert torch.equal(compiled(x), reference(x)), lead


def test_plans_of_pieces_that_are_kept_are_bounded():
    r = np.random.default_rng(0)
    program = two_layers(r)
    reference, compiled = Reference(program), Compiled(program)
    with mock.patch.object(segment, "SHAPES_KEPT", 0), mock.patch.object(batching, "PLANS_KEPT", 3), threads(1):
        for rows in (1, 5, 9, 3, 17, 1, 12):
            batch = rows_for(program, r, rows)
            assert all(map(torch.equal, tensors(compiled(batch)), tensors(reference(batch))))
            assert 0 < len(compiled.parts[0].local.pieces.plans) <= 3


def test_refusals_that_are_kept_are_bounded():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    layer = programs.linear(r, "a", "x.codes", x, 12, 5)
    program = programs.between(x, [layer], layer.y_qparams)
    compiled = Compiled(program)
    with mock.patch.object(segment, "SHAPES_KEPT", 2):
        for width in (3, 4, 5, 3, 6, 12, 7):
            try:
                compiled({"x": torch.zeros(2, width)})
            except ValueError as error:
                assert width != 12 and "12 input features" in str(error)
            else:
                assert width == 12
            refused = compiled.parts[0].local.refused
            assert len(refused) <= 2 and (width == 12 or ((2, width),) in refused)
