"""Transposed convolutions as dense ones: each place of the kernel that sees an input is in one part, and sees the same
input there.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from programs import GRID, OF_WEIGHTS
from quantspec.engines.compiled.packing import pack_layer, unpack_layer
from quantspec.engines.compiled.transposed import DensePart, along, dense_parts, is_transposed, triple
from quantspec.errors import UnsupportedError
from quantspec.ir.held import codes_shape
from quantspec.ir.program import Conv
from told import exactly


def conv(kernel, spread, *, padding=None, dilation=None, stride=None):
    ones = (1,) * len(kernel)
    codes = np.arange(6 * int(np.prod(kernel)), dtype=np.int8).reshape(2, 3, *kernel)
    places = stride or ones, padding or ((0, 0),) * len(kernel), dilation or ones, spread
    return Conv("y", "x", "up", codes, None, GRID, OF_WEIGHTS, GRID, False, *places, 1)


@given(st.integers(1, 6), st.integers(-4, 6), st.integers(1, 4), st.integers(1, 5), st.integers(1, 12))
def test_every_place_of_a_kernel_sees_the_input_that_it_sees_among_zeros(size, before, dilation, spread, outputs):
    expected = {}  # for each output which inputs which places see
    for output in range(outputs):
        seen = {k: output - before + k * dilation for k in range(size)}
        expected[output] = {k: place // spread for k, place in seen.items() if place % spread == 0}
    parts = along(size, before, dilation, spread)
    assert [part.first for part in parts] == list(range(spread))
    for part in parts:
        for number, output in enumerate(range(part.first, outputs, spread)):
            found = {k: part.start + number + n * part.dilation for n, k in enumerate(part.taps)}
            assert found == expected[output]
    assert all(part.start == 0 for part in parts if not part.taps)
    assert all(part.dilation == 1 for part in parts if len(part.taps) < 2)  # where there are no two to lie apart


@given(st.tuples(*[st.integers(0, 9)] * 3), st.tuples(*[st.integers(0, 3)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_part_has_as_many_outputs_as_lie_at_its_places(sizes, first, step):
    part = DensePart(conv((1, 1), (1, 1)), first, step)
    assert part.counts(sizes) == tuple(len(range(n)[f::s]) for n, f, s in zip(sizes, first, step))


@pytest.mark.parametrize(("values", "missing", "expected"), [
    ((5,), 1, (1, 1, 5)), ((4, 5), 0, (0, 4, 5)), ((3, 4, 5), 7, (3, 4, 5)), ((), 2, (2, 2, 2)),
])  # fmt: skip
def test_axes_that_are_missing_come_first(values, missing, expected):
    assert triple(values, missing) == expected


def test_a_convolution_whose_inputs_are_not_spread_is_its_only_part():
    step = conv((2, 3), (1, 1), stride=(2, 1))
    (part,) = dense_parts(step)
    assert not is_transposed(step) and part.conv is step and part.taps == ()
    assert (part.first, part.step) == ((0, 0, 0), (1, 1, 1))


def test_parts_have_the_weights_of_their_places_and_outputs_between_each_other():
    step = conv((2, 3), (1, 2), padding=((1, 0), (1, 2)), dilation=(2, 1), stride=(3, 1))
    first, second = dense_parts(step)
    assert is_transposed(step) and (first.first, second.first) == ((0, 0, 0), (0, 0, 1))
    assert first.step == second.step == (1, 1, 2)
    assert first.taps == ([0, 1], [1]) and second.taps == ([0, 1], [0, 2])
    assert np.array_equal(first.conv.weight, step.weight[..., [1]])
    assert np.array_equal(second.conv.weight, step.weight[..., [0, 2]])
    assert first.conv.padding == ((1, 0), (0, 0)) and second.conv.padding == ((1, 0), (0, 0))
    assert first.conv.dilation == (2, 1) and second.conv.dilation == (2, 1)
    assert {part.conv.input_dilation for part in (first, second)} == {(1, 1)}
    assert first.conv.stride == step.stride and codes_shape(second.conv) == (2, 3, 2, 2)


def test_outputs_that_no_place_sees_have_a_weight_of_zero():
    parts = dense_parts(conv((1, 1), (1, 3)))
    assert [part.taps for part in parts] == [([0], [0]), ([0], []), ([0], [])]
    assert [part.conv.weight.any() for part in parts] == [True, False, False]
    assert all(codes_shape(part.conv) == part.conv.weight.shape == (2, 3, 1, 1) for part in parts)


def test_a_convolution_of_too_many_parts_is_refused_in_words():
    assert len(dense_parts(conv((1, 1), (32, 32)))) == 1024
    message = "layer 'up': expected strides with a product of at most 1024, got (33, 32)"
    with pytest.raises(UnsupportedError, match=exactly(message)):
        dense_parts(conv((1, 1), (33, 32)))


@pytest.mark.parametrize(("kernel", "spread"), [((1, 1), (1, 3)), ((2, 2), (3, 3)), ((2, 3), (1, 2)), ((3,), (2,))])
def test_codes_are_unpacked_from_the_parts_that_have_some(kernel, spread):
    step = conv(kernel, spread)
    assert np.array_equal(unpack_layer(step, pack_layer(step)), step.weight)
