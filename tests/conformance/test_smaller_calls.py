"""Counterexamples are cut down: along every axis, to the plainest call that still shows what is wrong."""

import itertools

import numpy as np
import pytest

from quantspec.backends.protocol import OPERATIONS
from quantspec.conformance import shrink
from quantspec.conformance.call import Call
from quantspec.conformance.draw import CALLS
from quantspec.conformance.draw_wide import OFF_ZERO
from quantspec.conformance.sampling import sample
from quantspec.conformance.session import answer_of, reference
from quantspec.numerics.affine import QParams

CUT = [operation for operation in OPERATIONS if operation != "qparams"]  # whose calls are two numbers
GRID = QParams(np.float32(0.3), np.int32(7), 0, 255)
OF_CHANNELS = QParams(np.float32([0.25, 0.5, 2, 3]), np.int32([1, 0, 2, -1]), -128, 127, axis=0)
IMAGES = np.arange(2 * 4 * 6 * 5, dtype=np.uint8).reshape(2, 4, 6, 5)
ROWS = np.arange(15, dtype=np.uint8).reshape(3, 5)
W = np.arange(20, dtype=np.int8).reshape(4, 5) - 10
BIAS = np.float32([1, 2, 3, 4])
WINDOW = {"stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)}
POOL = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}
LARGE = {
    "per tensor": Call("quantize", (
        np.linspace(-3, 40, 9, dtype=np.float32), np.float32(0.3), 7,
    ), {"qmin": 0, "qmax": 255}),
    "per channel": Call("quantize", (
        np.linspace(-3, 40, 20, dtype=np.float32).reshape(4, 5), OF_CHANNELS.scale, OF_CHANNELS.zero_point,
    ), {"qmin": -128, "qmax": 127, "axis": 0}),
    "codes": Call("dequantize", (ROWS, np.float32([1, 2, 3, 4, 5]), np.int32([1, 2, 3, 4, 5])), {"axis": 1}),
    "layer": Call("linear", (ROWS, GRID, W, OF_CHANNELS, BIAS, GRID), {"relu": True}),
    "dynamic layer": Call("linear_dynamic", (ROWS.astype(np.float32), W, OF_CHANNELS, BIAS), {"relu": True}),
    "dense": Call("conv2d", (
        IMAGES, GRID, np.arange(4 * 4 * 3 * 2, dtype=np.int8).reshape(4, 4, 3, 2), OF_CHANNELS, BIAS, GRID,
    ), {**WINDOW, "groups": 1, "relu": True}),
    "grouped": Call("conv2d", (
        IMAGES, GRID, np.arange(4 * 2 * 3 * 2, dtype=np.int8).reshape(4, 2, 3, 2), OF_CHANNELS, BIAS, GRID,
    ), {**WINDOW, "groups": 2, "relu": True}),
    "sum": Call("add", (IMAGES, GRID, IMAGES, GRID, GRID), {"relu": True}),
    "product": Call("mul", (IMAGES, GRID, IMAGES, GRID, GRID)),
    "join": Call("concat", ([(ROWS, GRID), (ROWS, GRID), (ROWS, GRID)], GRID), {"axis": 1}),
    "largest": Call("max_pool2d", (IMAGES, GRID), {**POOL, "dilation": (1, 2)}),
    "average": Call("avg_pool2d", (IMAGES, GRID), {**POOL, "count_include_pad": False}),
    "mean": Call("adaptive_avg_pool2d", (IMAGES, GRID), {"size": (2, 3)}),
    "folded": Call("fold_batch_norm", (np.ones((4, 3, 2, 5), np.float32), *np.ones((5, 4), np.float32), 1e-5)),
}  # fmt: skip


def answered(call: Call) -> bool:
    try:
        answer_of(reference("exact"), call)
    except (ValueError, IndexError):
        return False
    return True


def cut(call: Call, keeps=lambda call: True) -> Call:
    """The smallest call that is one, and that has what it has to keep."""
    return shrink.smallest(call, lambda candidate: answered(candidate) and keeps(candidate), tries=20_000)


@pytest.mark.parametrize("operation", CUT)
def test_what_is_cut_down_is_a_call_of_the_same_operation_and_no_larger(operation):
    kinds = [CALLS[operation], *([OFF_ZERO[operation]] if operation in OFF_ZERO else [])]
    for call in [call for kind in kinds for call in sample(kind, examples=4, start=1)]:
        for candidate in itertools.islice(shrink.smaller(call), 60):
            assert candidate.operation == operation
            assert shrink.elements(candidate.arguments) <= shrink.elements(call.arguments)
            assert answered(candidate)


@pytest.mark.parametrize("name", LARGE)
def test_a_call_that_is_wrong_whatever_it_holds_comes_down_to_the_plainest_of_all(name):
    least = cut(LARGE[name])
    assert list(filter(answered, shrink.smaller(least))) == []
    plain = {"relu": False, "padding": (0, 0), "dilation": (1, 1), "count_include_pad": True, "stride": (1, 1)}
    assert {key: value for key, value in plain.items() if key in least.options} == {
        key: value for key, value in least.options.items() if key in plain
    }
    for argument in least.arguments:
        if isinstance(argument, QParams):
            assert argument.axis is None and (float(argument.scale), int(argument.zero_point)) == (1, 0)
    if name not in ("largest", "average", "mean", "join"):
        assert all(np.size(argument) == 1 for argument in least.arguments if isinstance(argument, np.ndarray))
        assert least.options.get("groups", 1) == 1 and "axis" not in least.options
    if name in ("layer", "dynamic layer", "dense", "grouped"):
        bias = least.arguments[3 if name == "dynamic layer" else 4]
        assert bias is None and not least.arguments[0].any()
    if name == "join":
        ((q, _),) = least.arguments[0]
        assert q.shape == (1, 1)


AXES = [
    (name, at, axis, length) for name, call in LARGE.items() for at, argument in enumerate(call.arguments)
    if isinstance(argument, np.ndarray) for axis in range(argument.ndim) for length in (2, 3)
    if argument.shape[axis] >= length and (name, at, axis) != ("grouped", 2, 1)  # groups are cut whole
]  # fmt: skip


@pytest.mark.parametrize(("name", "at", "axis", "length"), AXES)
def test_an_axis_that_matters_keeps_what_it_needs_and_all_others_go(name, at, axis, length):
    call = LARGE[name]
    whole = call.arguments[at]

    def keeps(candidate: Call) -> bool:
        part = candidate.arguments[at]
        return isinstance(part, np.ndarray) and part.ndim == whole.ndim and part.shape[axis] >= length

    least = cut(call, keeps).arguments[at]
    step = 2 if name == "grouped" and axis < 2 and (at, axis) != (0, 0) else 1  # channels of a group
    least_length = -(-length // step) * step
    if name in ("largest", "average") and axis > 1:
        least_length = max(length, POOL["kernel"][axis - 2])
    if name == "mean" and axis > 1:
        least_length = max(length, call.options["size"][axis - 2])
    assert least.shape[axis] == least_length


@pytest.mark.parametrize(("size", "tries", "count"), [(10, 0, 0), (10, 1, 1), (10, 5, 5), (1000, 5, 2), (1000, 6, 2)])
def test_so_many_calls_are_tried_at_most_and_fewer_where_they_are_large(size, tries, count):
    """A half of 1,000 elements counts as three."""
    call = Call("quantize", (np.ones(size, np.float32), np.float32(1), 0), {"qmin": 0, "qmax": 255})
    tried = []
    assert shrink.smallest(call, tried.append, tries) is call
    assert len(tried) == count


def test_single_numbers_that_do_not_matter_become_plain():
    x = np.float32([5, 0, 6, np.nan])
    call = Call("quantize", (x, np.float32(1), 0), {"qmin": 0, "qmax": 255})
    least = cut(call, lambda candidate: len(candidate.arguments[0]) == 4 and 6 in candidate.arguments[0])
    assert least.arguments[0].tolist() == [0, 0, 6, 0]
    many = np.arange(1, 9, dtype=np.uint8)
    halves = [plain.tolist() for plain in shrink.plain_codes(many, 0)]
    assert halves == [[0, 0, 0, 0, 5, 6, 7, 8], [1, 2, 3, 4, 0, 0, 0, 0]]
    few = [plain.tolist() for plain in shrink.plain_codes(np.uint8([[3, 1], [7, 3]]), 3)]
    assert few == [[[3, 3], [7, 3]], [[3, 1], [3, 3]]]


def test_axes_are_cut_into_halves_first():
    lengths = {length: [(cut.start, cut.stop) for cut in shrink.pieces(length)] for length in (0, 1, 2, 3, 4, 5)}
    assert lengths == {
        0: [], 1: [], 2: [(0, 1), (1, 2)], 3: [(0, 2), (1, 3)], 4: [(0, 2), (2, 4), (0, 3), (1, 4)],
        5: [(0, 2), (2, 5), (0, 4), (1, 5)],
    }  # fmt: skip


def test_values_keep_their_steps_where_a_scale_becomes_one():
    call = Call("quantize", (np.float32([0.125, 0.375, 1.0]), np.float32(0.25), 9), {"qmin": 0, "qmax": 255})
    stretched, *points = shrink.plainer_grids(call)
    assert stretched.arguments[0].tolist() == [0.5, 1.5, 4] and stretched.arguments[1:] == (1, 9)
    assert [point.arguments[2] for point in points] == [0, 1]
    codes = Call("dequantize", (np.uint8([3, 9]), np.float32(0.25), 1))
    (plain,) = shrink.plainer_grids(codes)
    assert plain.arguments[0].tolist() == [3, 9] and plain.arguments[1:] == (1, 1)
    for scale in (0.0, -1.0, np.inf, np.nan, 1.0):
        strange = Call("dequantize", (np.uint8([3]), np.float32(scale), 0))
        assert list(shrink.plainer_grids(strange)) == []
