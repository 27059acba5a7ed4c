"""Codes in the order of arrays and as kernels want them: every byte has its place in both, and a run begins where the
two are not the same.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import GRID, OF_WEIGHTS
from quantspec.engines.compiled.copy_instructions import orders
from quantspec.engines.compiled.forms import Forms, run_starts, wanted
from quantspec.engines.compiled.lowering import QuantizeFlat, Turn
from quantspec.ir.program import Add, Concat, Conv, Linear, MaxPool, Mean, Move, Program, Quantize, Ref, Relu
from quantspec.kernels.memory import Layout


@given(
    st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 6), st.tuples(*[st.integers(0, 2)] * 6),
    st.booleans(),
)  # fmt: skip
def test_every_code_has_its_place_in_memory_and_in_the_array(count, sides, channels, margin, flat):
    """The places are those that the layout's own numbers and NumPy's tell."""
    depth, height, width = sides
    layout = Layout(count, height, width, channels, margin if not flat else (0,) * 6, depth)
    index = np.arange(count * channels * depth * height * width).reshape(count, channels, depth, height, width)
    expected = {
        layout.first + n * layout.image + d * layout.plane + y * layout.line + x * layout.pitch + c:
        int(index[n, c, d, y, x])
        for n, c, d, y, x in itertools.product(*map(range, index.shape))
    }  # fmt: skip
    found = {}
    starts = [start for start, _, _ in layout.stacks()]
    for stack, (order, start) in enumerate(zip(orders(layout), starts, strict=True)):
        begin = stack * channels * depth * height * width
        every = itertools.product(*map(range, (order.planes, order.lines, order.positions, order.channels)))
        for plane, line, position, channel in every:
            place = plane * order.memory[0] + line * order.memory[1] + position * order.memory[2] + channel
            own = plane * order.array[0] + line * order.array[1] + position + channel * order.array[2]
            found[start + place] = begin + own
    assert found == expected


def test_images_may_be_further_apart_in_the_array():
    (order,) = orders(Layout(4, 3, 5, 2), outer=99)
    assert (order.planes, order.array) == (4, (99, 5, 15))
    assert orders(Layout(4, 3, 5, 2))[0].array == (30, 5, 15)
    assert [order.array[0] for order in orders(Layout(2, 3, 5, 2, depth=2), outer=99)] == [15, 15]


def test_lines_that_nothing_lies_between_are_one():
    (order,) = orders(Layout(1, 3, 5, 2))
    assert (order.lines, order.positions) == (1, 15)
    (order,) = orders(Layout(1, 3, 5, 2, (0, 0, 0, 0, 1, 0)))
    assert (order.lines, order.positions) == (3, 5)


CONV = Conv(
    "conv", "x", "conv", np.zeros((4, 4, 1, 1), np.int8), None, GRID, OF_WEIGHTS, GRID, False, (1, 1),
    ((0, 0), (0, 0)), (1, 1), (1, 1), 1,
)  # fmt: skip
LINEAR = Linear("fc", "x", "fc", np.zeros((4, 4), np.int8), None, GRID, OF_WEIGHTS, GRID, False)
MEAN = Mean("mean", "x", GRID, (2, 3), False)


def permute(name, x, *order):
    return Move(name, "method", "permute", (Ref(x), *order), {}, GRID)


@pytest.mark.parametrize(("step", "expected"), [
    (CONV, (True, True)),
    (MaxPool("y", "x", (2,), (1,), (0,), (1,), False), (True, True)),
    (LINEAR, (False, False)),
    (MEAN, (True, False)),
    (replace(MEAN, keepdim=True), (True, True)),
    (Turn("y", "x", GRID, True, 4), (False, True)),
    (Turn("y", "x", GRID, False, 4), (True, False)),
    (permute("y", "x", 0, 3, 1, 2), (False, True)),
    (permute("y", "x", 0, 2, 3, 1), (True, False)),
    (Move("y", "method", "flatten", (Ref("x"), 1), {}, GRID), (None, False)),
    (QuantizeFlat("y", "x", GRID), (None, False)),
    (Quantize("y", "x", GRID), (None, None)),
    (Relu("y", "x", GRID), (None, None)),
])  # fmt: skip
def test_steps_want_images_or_rows_or_either(step, expected):
    assert wanted(step) == expected


def starts(*steps, names=None):
    program = Program("onnx", ("x",), {}, steps, Ref(steps[-1].name))
    return run_starts(program, {step.name for step in steps} if names is None else names)


def on(step, name, x):
    return replace(step, name=name, x=x)


def both(name, a, b):
    return Add(name, a, b, GRID, GRID, GRID, False)


QUANTIZE = Quantize("q", "x", GRID)


def test_a_run_begins_where_what_is_read_lies_otherwise():
    conv, linear = on(CONV, "conv", "q"), on(LINEAR, "fc", "q")
    assert starts(QUANTIZE, conv, on(CONV, "second", "conv")) == set()
    assert starts(QUANTIZE, conv, on(LINEAR, "fc", "conv")) == {"fc"}
    assert starts(QUANTIZE, linear, on(MEAN, "mean", "fc")) == {"mean"}
    assert starts(QUANTIZE, conv, linear) == {"fc"}
    assert starts(QUANTIZE, conv, permute("last", "conv", 0, 2, 3, 1), on(LINEAR, "fc", "last")) == set()
    assert starts(QUANTIZE, conv, on(MEAN, "mean", "conv"), on(LINEAR, "fc", "mean")) == set()


def test_steps_that_are_not_compiled_end_a_run_in_any_case():
    conv, between, linear = on(CONV, "conv", "q"), Relu("r", "conv", GRID), on(LINEAR, "fc", "q")
    assert starts(QUANTIZE, conv, between, linear) == {"fc"}
    assert starts(QUANTIZE, conv, between, linear, names={"q", "conv", "fc"}) == set()


def test_values_that_must_lie_alike_are_one():
    conv, linear = on(CONV, "conv", "q"), on(LINEAR, "fc", "p")
    relu = Relu("r", "conv", GRID)
    assert starts(QUANTIZE, conv, relu, on(LINEAR, "fc", "r")) == {"fc"}
    other = Quantize("p", "x", GRID)
    assert starts(QUANTIZE, other, conv, linear, both("sum", "conv", "fc")) == {"sum"}
    join = Concat("join", ("conv", "p"), (GRID, GRID), GRID, 1)
    assert starts(QUANTIZE, other, conv, join, linear) == {"fc"}
    assert starts(QUANTIZE, other, conv, both("sum", "conv", "p"), on(CONV, "last", "p")) == set()


def test_what_is_told_of_a_value_is_told_of_all_that_lie_alike():
    forms = Forms()
    for step in (QUANTIZE, Relu("r", "q", GRID), Relu("s", "r", GRID)):
        assert forms.fits(step)
        forms.add(step)
    assert [forms.of(name) for name in "qrs"] == [None] * 3 and forms.whole("q") == forms.whole("s")
    forms.add(on(LINEAR, "fc", "s"))
    assert [forms.of(name) for name in "qrs"] == [False] * 3 and forms.of("fc") is False
    assert not forms.fits(on(CONV, "conv", "q")) and forms.fits(on(LINEAR, "again", "r"))
    assert forms.fits(both("sum", "q", "fc")) and forms.of("nothing") is None
