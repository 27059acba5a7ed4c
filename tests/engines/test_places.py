"""Where values lie in the memory of a plan: those that are needed at a time apart, others where there is room."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import programs
from programs import GRID
from quantspec.engines.compiled import planner
from quantspec.engines.compiled.engine import Segment
from quantspec.engines.compiled.packing import pack_layer
from quantspec.engines.compiled.planner import Planner, Value
from quantspec.ir.program import Concat, Linear, LinearDynamic, Program
from quantspec.ir.traverse import refs
from quantspec.kernels.memory import Layout

SMALL, LARGE, LARGER = 64, 640, 960  # channels of a row


def placed(steps, outputs=(), without=()):
    """Where values of rows lie, and the bytes of all, for steps (name, channels, names read)."""
    made = Planner.__new__(Planner)
    made.steps = tuple(Concat(name, read, (GRID,) * len(read), GRID, 1) for name, _, read in steps)
    made.outputs, made.alias = tuple(outputs), {}
    made.values = {
        name: Value((1, channels), Layout(1, 1, 1, channels)) for name, channels, _ in steps if name not in without
    }
    size = made.place()
    return {name: value.place for name, value in made.values.items()}, size


def need(channels):
    return -(-Layout(1, 1, 1, channels).nbytes // 64) * 64


@given(st.lists(st.tuples(st.integers(1, 1500), st.sets(st.integers(1, 5), max_size=3)), max_size=12))
def test_values_that_are_needed_at_a_time_share_no_byte(drawn):
    steps = [
        (f"v{n}", channels, tuple(f"v{n - back}" for back in sorted(backs) if back <= n))
        for n, (channels, backs) in enumerate(drawn)
    ]
    outputs = [name for name, _, _ in steps[::4]]
    places, size = placed(steps, outputs)
    end = {name: n for n, (name, _, _) in enumerate(steps)}
    for n, (_, _, read) in enumerate(steps):
        end |= dict.fromkeys(read, n)
    end |= dict.fromkeys(outputs, len(steps))
    for n, (name, channels, _) in enumerate(steps):
        assert places[name] % 64 == 0 and places[name] + need(channels) <= size
        for other, width, _ in steps[:n]:
            apart = places[other] + need(width) <= places[name] or places[name] + need(channels) <= places[other]
            assert apart or end[other] < n, (other, name)


def test_a_value_takes_the_smallest_hole_that_it_fits_into():
    steps = [
        ("a", LARGE, ("in",)), ("k", SMALL, ("in",)), ("b", SMALL, ("in",)), ("l", SMALL, ("in",)),
        ("d", SMALL, ("a", "b")), ("e", SMALL, ("d",)), ("f", LARGE, ("d", "e")), ("z", SMALL, ("k", "l", "f")),
    ]  # fmt: skip
    places, size = placed(steps)
    assert places["e"] == places["b"] and places["f"] == places["a"] and size == need(LARGE) + 4 * need(SMALL)


def test_what_is_left_of_a_hole_is_a_hole():
    steps = [
        ("a", LARGE, ("in",)), ("k", SMALL, ("in",)), ("b", SMALL, ("a",)), ("c", SMALL, ("b",)),
        ("d", SMALL, ("b", "c")), ("z", SMALL, ("k", "c", "d")),
    ]  # fmt: skip
    places, size = placed(steps)
    assert places["c"] == 0 and places["d"] == need(SMALL) and size == need(LARGE) + 2 * need(SMALL)


def test_the_last_hole_grows_where_none_is_large_enough():
    steps = [("k", SMALL, ("in",)), ("a", LARGE, ("in",)), ("c", LARGER, ("in",)), ("z", SMALL, ("k", "c"))]
    places, size = placed(steps)
    assert places["c"] == places["a"] == need(SMALL) and size == 2 * need(SMALL) + need(LARGER)


def test_a_hole_that_something_lies_behind_does_not_grow():
    steps = [("k", SMALL, ("in",)), ("a", LARGE, ("in",)), ("b", SMALL, ("a",)), ("c", LARGER, ("b", "k"))]
    places, size = placed(steps)
    assert places["c"] == 2 * need(SMALL) + need(LARGE) and size == places["c"] + need(LARGER)


def test_what_is_given_out_keeps_its_place_though_nothing_reads_it():
    steps = [("a", SMALL, ("in",)), ("b", SMALL, ("in",)), ("c", SMALL, ("in",))]
    assert placed(steps)[1] == need(SMALL)
    places, size = placed(steps, ("a",))
    assert places == {"a": 0, "b": need(SMALL), "c": need(SMALL)} and size == 2 * need(SMALL)


def test_steps_without_memory_of_their_own_have_no_place():
    places, size = placed([("a", SMALL, ("in",)), ("b", SMALL, ("a",)), ("c", SMALL, ("a",))], without=("b",))
    assert places == {"a": 0, "c": need(SMALL)} and size == 2 * need(SMALL)


R = np.random.default_rng(4)
X = programs.grid(R)


def planned(program: Program, shape: tuple[int, ...], **how):
    """A plan of a program, and what memory it asked for to work in."""
    layers = [step for step in program.steps if isinstance(step, (Linear, LinearDynamic))]
    made = Segment(program.steps, tuple(refs(program.output)), {step.name: pack_layer(step) for step in layers}).planner
    asked, workspace = [], planner.workspace

    def noted(use, member, nbytes):
        asked.append((use, member, nbytes))
        return workspace(use, member, nbytes)

    with mock.patch.object(planner, "workspace", noted):
        return made.plan({"x": shape}, **how), asked, made


@pytest.mark.parametrize("how", [{}, {"member": 2}, {"dry": True}])
def test_memory_to_work_in_is_asked_for_by_use_and_member(how):
    layer = programs.linear(R, "a", "x.codes", X, 12, 12)
    plan, asked, made = planned(programs.between(X, [layer], layer.y_qparams), (3, 12), **how)
    member, used = how.get("member", 0), 0 if how.get("dry") else plan.nbytes
    assert asked[0] == ("values", member, used)
    assert {use for use, _, _ in asked} <= {"values", "rows"} and {who for _, who, _ in asked} == {member}
    assert made.address("a") - made.arena == made.values["a"].place
    assert made.first("a") == made.address("a") and made.slot("x") == 0
    assert (plan.frame.count, plan.frame.slots) == (len(plan.instructions), 2)


def test_what_a_layer_makes_of_its_input_has_memory_of_its_own():
    chain = programs.dynamic_chain(R, [12, 5, 3], rows=True, reduce_range=False)
    _, asked, _ = planned(chain, (3, 1, 12))
    assert {use for use, _, _ in asked} <= {"values", "layer", "rows"} and "layer" in {use for use, _, _ in asked}
    assert all(nbytes > 0 for use, _, nbytes in asked if use == "layer")


def test_floats_that_go_out_have_no_memory_of_the_plans():
    layer = programs.linear(R, "a", "x.codes", X, 12, 12)
    _, _, made = planned(programs.to_floats(X, programs.real(layer)), (3, 12))
    assert set(made.values) == {"x.codes"}


def test_the_first_position_is_behind_the_margin():
    place = (3, 3), (1, 1), ((1, 1), (2, 2)), (1, 1), 1
    layer = programs.conv(R, "a", "x.codes", X, 4, 4, *place)
    program = programs.between(X, [layer], layer.y_qparams)
    made = Segment(program.steps, ("out",), {"a": pack_layer(layer)}).planner
    made.plan({"x": (2, 4, 5, 6)})
    layout = made.values["x.codes"].layout
    assert made.first("x.codes") - made.address("x.codes") == layout.line + 2 * layout.pitch
