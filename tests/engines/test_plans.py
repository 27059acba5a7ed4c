"""Plans: what lies where, which values share memory, and in which words what has no room is refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from quantspec.engines.compiled import planner
from quantspec.engines.compiled.engine import Segment
from quantspec.engines.compiled.packing import pack_layer
from quantspec.engines.compiled.planner import Planner, larger, layout_of, merged, reach
from quantspec.engines.compiled.transposed import DensePart
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Add, Concat, Conv, Linear, LinearDynamic, Mean, Move, Program, Ref, Relu
from quantspec.ir.traverse import refs
from quantspec.kernels.memory import SLACK, Layout
from quantspec.kernels.product import Product
from told import exactly

R = np.random.default_rng(3)
X = programs.grid(R)


def planner_of(program: Program, outputs: tuple[str, ...] = ()) -> Planner:
    packed = {step.name: pack_layer(step) for step in program.steps if isinstance(step, (Linear, Conv, LinearDynamic))}
    return Segment(program.steps, outputs or tuple(refs(program.output)), packed).planner


def image(name, source, grid=X, *, channels=4, outputs=4, kernel=3, padding=1, stride=1, dilation=1, spread=1):
    places = (kernel,) * 2, (stride,) * 2, ((padding, padding),) * 2, (dilation,) * 2, 1, (spread,) * 2
    return programs.conv(R, name, source, grid, channels, outputs, *places)


def rows(name, source, grid=X, inputs=12, outputs=12):
    return programs.linear(R, name, source, grid, inputs, outputs)


@pytest.mark.parametrize(("shape", "as_images", "expected"), [
    ((), False, Layout(1, 1, 1, 1)),
    ((5,), False, Layout(1, 1, 1, 5)),
    ((2, 5), False, Layout(2, 1, 1, 5)),
    ((2, 3, 5), False, Layout(6, 1, 1, 5)),
    ((2, 3, 5), True, Layout(2, 1, 5, 3)),
    ((2, 3, 5, 7), True, Layout(2, 5, 7, 3)),
    ((2, 3, 5, 7, 11), True, Layout(2, 7, 11, 3, depth=5)),
])  # fmt: skip
def test_how_a_shape_lies_as_rows_and_as_images(shape, as_images, expected):
    assert layout_of(shape, as_images) == expected


def test_an_image_lies_within_its_margin():
    assert layout_of((2, 3, 5, 7), True, (0, 0, 1, 2, 3, 4)) == Layout(2, 5, 7, 3, (0, 0, 1, 2, 3, 4))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=8))
def test_holes_that_touch_are_one_and_cover_the_same_bytes(drawn):
    holes, end = [], 0
    for gap, length in drawn:
        holes.append((end + gap % 3, length))
        end = sum(holes[-1])
    found = merged(holes[::-1])
    assert [byte for place, length in found for byte in range(place, place + length)] == [
        byte for place, length in holes for byte in range(place, place + length)
    ]  # fmt: skip
    assert all(sum(before) < after[0] for before, after in zip(found, found[1:]))


def test_the_larger_margin_is_larger_on_each_side():
    assert larger((1, 0, 5, 0, 2, 9), (0, 3, 4, 7, 2, 8)) == (1, 3, 5, 7, 2, 9)


@given(
    strategies.seeds(), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(-2, 3),
    st.integers(-2, 3),
)  # fmt: skip
def test_windows_reach_as_far_as_their_places(r, n, kernel, stride, dilation, before, after):
    room = n + before + after - dilation * (kernel - 1) - 1
    if room < 0:
        return
    outputs = room // stride + 1
    places = [o * stride + k * dilation - before for o in range(outputs) for k in range(kernel)]
    expected = max(0, -min(places)), max(0, max(places) - (n - 1))
    part = DensePart(programs.conv(
        r, "y", "x", X, 1, 1, (kernel,), (stride,), ((before, after),), (dilation,), 1,
    ))  # fmt: skip
    found = reach(part, (n,), (1, 1, outputs))
    # It may be told to reach further where cutting is all that there is before.
    assert found == (0, 0, 0, 0, *expected)
    assert reach(part, (n,), (1, 1, 0)) == (0, 0, 0, 0, 0, 0)


def test_values_that_are_no_longer_needed_leave_their_memory_to_others():
    layers = [rows("a", "x.codes")]
    for before, name in zip("abcd", "bcde"):
        layers.append(rows(name, before, layers[-1].y_qparams))
    program = programs.between(X, layers, layers[-1].y_qparams)
    made = planner_of(program)
    plan = made.plan({"x": (3, 12)})
    one = -(-layout_of((3, 12), False).nbytes // 64) * 64
    assert [made.values[name].place for name in ("x.codes", *"abcde")] == [0, one, 0, one, 0, one]
    assert plan.nbytes == 2 * one and plan.shapes == [(3, 12)]


def test_memory_is_the_smallest_hole_that_is_large_enough_or_grows_the_last_one():
    wide, small = rows("wide", "x.codes", outputs=300), rows("small", "x.codes", outputs=40)
    third = rows("third", "wide", wide.y_qparams, 300, 40)
    total = Add("sum", "small", "third", small.y_qparams, third.y_qparams, X, False)
    last = rows("last", "sum", X, 40, 300)
    made = planner_of(programs.between(X, [wide, small, third, total, last], last.y_qparams))
    plan = made.plan({"x": (3, 12)})
    of = {name: -(-value.layout.nbytes // 64) * 64 for name, value in made.values.items()}
    place = {name: value.place for name, value in made.values.items()}
    assert place["x.codes"] == 0 and place["wide"] == of["x.codes"]
    assert place["small"] == of["x.codes"] + of["wide"]
    assert place["third"] == 0 and place["sum"] == of["third"] == of["x.codes"]
    assert plan.nbytes == of["x.codes"] + of["wide"] + of["small"]


def test_a_value_that_is_given_out_keeps_its_memory():
    a = rows("a", "x.codes")
    b = rows("b", "a", a.y_qparams)
    c = rows("c", "b", b.y_qparams)
    made = planner_of(programs.between(X, [a, b, c], c.y_qparams), ("a", "out"))
    made.plan({"x": (3, 12)})
    assert len({made.values[name].place for name in "abc"}) == 3


def test_behind_all_values_there_is_room_for_an_output_that_nobody_reads():
    made = planner_of(programs.between(X, [conv := image("a", "x.codes", channels=4, outputs=9)], conv.y_qparams))
    plan = made.plan({"x": (2, 4, 5, 6)})
    placed = max(value.place + -(-value.layout.nbytes // 64) * 64 for value in made.values.values())
    assert plan.nbytes == placed + made.values["a"].layout.pitch and made.spare - made.arena == placed


@pytest.mark.parametrize("turned", [1, -1])
def test_a_value_has_the_widest_margin_that_is_read_of_it(turned):
    near, far = image("near", "x.codes"), image("far", "x.codes", kernel=5, padding=2)
    total = Add("sum", "near", "far", near.y_qparams, far.y_qparams, X, False)
    made = planner_of(programs.between(X, [*[near, far][::turned], total], X))
    made.plan({"x": (1, 4, 6, 6)})
    assert made.values["x.codes"].layout.margin == (0, 0, 2, 2, 2, 2)
    assert made.values["x.codes"].filled == int(X.zero_point) and made.values["sum"].filled is None
    assert made.values["sum"].layout.margin == (0,) * 6


def test_a_convolution_that_a_sum_is_in_reads_beyond_edges_as_well():
    a = image("a", "x.codes")
    b = image("b", "a", a.y_qparams, kernel=5, padding=2)
    total = Add("sum", "b", "x.codes", b.y_qparams, X, X, False)
    made = planner_of(programs.between(X, [a, b, total], X))
    made.plan({"x": (1, 4, 6, 6)})
    assert made.values["a"].layout.margin == (0, 0, 2, 2, 2, 2) and "b" not in made.values


def test_floats_between_layers_have_four_bytes_each_and_what_flattens_them_none():
    chain = programs.dynamic_chain(R, [12, 50, 7, 40, 3], rows=True, reduce_range=False)
    made = planner_of(chain)
    plan = made.plan({"x": (3, 1, 12)})
    relus = [step for step in made.steps if step.name in made.values]
    assert [made.values[step.name].layout.nbytes for step in relus] == [
        Layout(1, 1, 1, 4 * 3 * width).nbytes for width in (50, 7, 40, 3)
    ]  # fmt: skip
    assert [made.values[step.name].shape for step in relus] == [(3, 50), (3, 7), (3, 40), (3, 3)]
    assert made.alias == {"flat": "x"} and plan.macs == 3 * (12 * 50 + 50 * 7 + 7 * 40 + 40 * 3)
    # Whole cache lines, those of the first for the third, and behind that for the last.
    need = [-(-Layout(1, 1, 1, 4 * 3 * width).nbytes // 64) * 64 for width in (50, 7, 40)]
    assert [made.values[step.name].place for step in relus] == [0, need[0], 0, need[2]]
    assert plan.nbytes == need[0] + need[1]


@pytest.mark.parametrize(("shape", "expected"), [
    ((2, 3), False), ((2, 3, 5), False), ((2, 3, 5, 7), True), ((2, 3, 1, 5, 7), True), ((2, 3, 1, 5, 7, 1), False),
])  # fmt: skip
def test_where_nothing_tells_four_axes_and_five_are_those_of_images(shape, expected):
    made = planner_of(programs.between(X, [Relu("y", "x.codes", X)], X))
    made.plan({"x": shape})
    assert made.forms()["y"] == expected and made.values["y"].shape == shape


def test_a_dry_plan_tells_as_much_and_works_in_no_memory():
    program = programs.between(X, [conv := image("a", "x.codes")], conv.y_qparams)
    made, other = planner_of(program), planner_of(program)
    wet, dry = made.plan({"x": (2, 4, 5, 6)}), other.plan({"x": (2, 4, 5, 6)}, dry=True)
    assert (wet.nbytes, wet.macs, wet.shapes) == (dry.nbytes, dry.macs, dry.shapes)
    assert wet.macs == 2 * 4 * 30 * 36 and len(wet.instructions) == len(dry.instructions)
    assert wet.address == wet.frame.address


@pytest.mark.parametrize(("samples", "release"), [(1, False), (7, True)])
def test_other_threads_may_run_during_long_plans(samples, release, monkeypatch):
    monkeypatch.setattr(planner, "LONG", 7 * 144)
    layer = rows("a", "x.codes")
    plan = planner_of(programs.between(X, [layer], layer.y_qparams)).plan({"x": (samples, 12)})
    assert plan.macs == 144 * samples and bool(plan.frame.release) == release


def test_members_work_in_memory_of_their_own():
    layer = rows("a", "x.codes")
    first, second = (planner_of(programs.between(X, [layer], layer.y_qparams)) for _ in range(2))
    plans = first.plan({"x": (3, 12)}), second.plan({"x": (3, 12)}, member=1), first.plan({"x": (3, 12)})
    assert first.arena != second.arena and len(plans) == 3


def test_inputs_and_outputs_are_numbered_and_have_sizes():
    a = rows("a", "x")
    made = planner_of(Program("onnx", ("x",), {}, (a, rows("b", "a", a.y_qparams)), Ref("b")), ("a", "b"))
    assert made.inputs == ("x outside",) and made.outputs == ("a outside", "b outside")
    assert [made.slot(name) for name in made.inputs + made.outputs] == [0, 1, 2] and made.sizes() == [1, 1, 1]
    floats = planner_of(programs.between(X, [a := rows("a", "x.codes")], a.y_qparams))
    assert floats.sizes() == [4, 4]


def test_the_bytes_of_weights_are_those_of_all_products():
    a, b = rows("a", "x.codes", inputs=12, outputs=16), rows("b", "a", inputs=16, outputs=32)
    made = planner_of(programs.between(X, [a, replace(b, x_qparams=a.y_qparams)], b.y_qparams))
    packed = [made.product_weights(name).weight.nbytes for name in "ab"]
    assert made.weight_bytes == sum(packed) > 12 * 16 + 16 * 32 - 1


@pytest.mark.parametrize(("shapes", "expected"), [
    (((5, 12),), 5), (((5, 2, 12),), 5), (((12,),), None), (((5, 12), (5, 3)), 5), (((5, 12), (4, 3)), None),
    (((5, 12), (5,)), None),
])  # fmt: skip
def test_samples_are_independent_where_all_inputs_have_as_many(shapes, expected):
    layer = rows("a", "x.codes")
    assert planner_of(programs.between(X, [layer], layer.y_qparams)).batch(shapes) == expected


@pytest.mark.parametrize(("by_row", "expected"), [(True, 5), (False, None)])
def test_samples_that_share_a_range_are_not_independent(by_row, expected):
    chain = programs.dynamic_chain(R, [12, 3], rows=by_row, reduce_range=False)
    assert planner_of(chain).batch(((5, 1, 12),)) == expected


def refused(made: Planner, message: str, **shapes) -> None:
    with pytest.raises(UnsupportedError, match=exactly(message)):
        made.plan(shapes)


def test_codes_that_are_wanted_as_rows_and_as_images_are_refused_in_words():
    conv, layer = image("a", "x.codes"), rows("b", "x.codes", inputs=6)
    for steps, message in (
        ([layer, conv], "step 'b': expected rows, got an input that is laid out as images"),
        ([conv, layer], "step 'a': expected images, got an input that is laid out as rows"),
    ):
        program = programs.between(X, [*steps], steps[-1].y_qparams)
        refused(planner_of(program, ("a", "b")), message, x=(2, 4, 5, 6))


def test_a_mean_of_rows_is_refused_in_words():
    mean, layer = Mean("m", "x.codes", X, (2,), False), rows("b", "x.codes", inputs=6)
    program = programs.between(X, [mean, layer], layer.y_qparams)
    message = "step 'm': expected images, got an input that is laid out as rows"
    refused(planner_of(program, ("m", "b")), message, x=(2, 4, 6))
    assert planner_of(programs.between(X, [mean], X)).plan({"x": (2, 4, 6)}).shapes == [(2, 4)]


def test_what_is_broadcast_has_as_many_axes_and_channels_and_is_gone_over_by_three_loops():
    a, b = rows("a", "x.codes"), rows("b", "z.codes")
    total = Add("y", "a", "b", a.y_qparams, b.y_qparams, X, False)
    program = programs.between(X, [a, b, total], X, inputs=("x", "z"), grids=(X, X))
    for x, z in (((2, 3, 12), (3, 12)), ((2, 3, 12), (12,)), ((2, 1, 3, 1, 12), (1, 3, 1, 2, 12))):
        refused(planner_of(program), f"step 'y': kernels cannot broadcast rows of shapes {x} and {z}", x=x, z=z)
    for x, z in (((2, 3, 12), (1, 3, 12)), ((1, 12), (5, 12)), ((2, 1, 1, 4, 12), (1, 3, 2, 4, 12))):
        assert planner_of(program).plan({"x": x, "z": z}).shapes == [np.broadcast_shapes(x, z)]
    total = Add("y", "x.codes", "z.codes", X, X, X, False)
    program = programs.between(X, [total], X, inputs=("x", "z"), grids=(X, X))
    x, z = (2, 6, 4, 5), (2, 1, 4, 5)
    refused(planner_of(program), f"step 'y': kernels cannot broadcast images of shapes {x} and {z}", x=x, z=z)


def test_rows_are_not_joined_but_where_they_have_two_axes():
    a, b = rows("a", "x.codes"), rows("b", "x.codes")
    join = Concat("y", ("a", "b"), (a.y_qparams, b.y_qparams), X, 1)
    program = programs.between(X, [a, b, join], X)
    refused(
        planner_of(program), "step 'y': expected images, got an input that is laid out as rows", x=(2, 3, 12),
    )  # fmt: skip
    assert planner_of(program).plan({"x": (2, 12)}).shapes == [(2, 24)]


def test_channels_that_lie_otherwise_are_not_turned():
    move = Move("a", "method", "permute", (Ref("x.codes"), 0, 2, 3, 1), {}, X)
    layer = rows("b", "x.codes", inputs=6)
    program = programs.between(X, [move, layer], layer.y_qparams)
    message = "step 'a': expected an input that is laid out as what it turns"
    refused(planner_of(program, ("a", "b")), message, x=(2, 4, 5, 6))
    assert planner_of(programs.between(X, [move], X)).plan({"x": (2, 4, 5, 6)}).shapes == [(2, 5, 6, 4)]


def test_a_plan_that_needs_too_much_memory_is_refused_in_words():
    made = planner_of(programs.between(X, [Relu("y", "x.codes", X)], X))
    one = -(-(2**25 * 64 + SLACK) // 64) * 64
    refused(
        made, f"batch: kernels use at most 2,147,483,647 bytes of memory, this shape needs {2 * one:,}", x=(2**25, 64),
    )  # fmt: skip


def test_a_part_with_too_many_inputs_and_outputs_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(planner, "MOST_SLOTS", 1)
    layer = rows("a", "x.codes")
    refused(
        planner_of(programs.between(X, [layer], layer.y_qparams)),
        "program: a compiled part has at most 1 inputs and outputs, this one has 2", x=(2, 12),
    )  # fmt: skip
    monkeypatch.setattr(planner, "MOST_SLOTS", 2)
    assert planner_of(programs.between(X, [layer], layer.y_qparams)).plan({"x": (2, 12)}).macs == 288


def test_products_of_a_plan_are_those_of_its_layers():
    layer = rows("a", "x.codes")
    plan = planner_of(programs.between(X, [layer], layer.y_qparams)).plan({"x": (3, 12)})
    (product,) = (part.product for part in plan.instructions if hasattr(part, "product"))
    assert isinstance(product, Product) and (product.rows, product.outputs) == (3, 12)
