"""In what way answers are wrong, in words, where the words change."""

import numpy as np
import pytest

from quantspec.conformance import checks, shape
from quantspec.conformance.call import Call
from quantspec.conformance.session import Session, Violation
from quantspec.numerics.affine import QParams

PLAIN, TURNED = QParams(np.float32(1), 0, -128, 127), QParams(np.float32(1), 1, -128, 127)
EIGHTS = QParams(8, 0, 0, 255)
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("got", "allowed", "words"),
    [
        ([5, 9], [[6, 8]], "neighbouring codes"), ([5, 9], [[7, 8]], "other codes"),
        ([5, 9], [[7, 8], [4, 0]], "neighbouring codes"), ([5, 9], [[7, 9], [5, 0]], "neighbouring codes"),
        ([0, 9], [[254, 9]], "other codes"), ([0, 9], [[255, 9]], "the other end"),
        ([9, 255], [[9, 0]], "the other end"),
    ],
)  # fmt: skip
def test_codes_are_wrong_by_one_by_some_or_by_all(got, allowed, words):
    assert shape.difference(np.uint8(got), [np.uint8(option) for option in allowed]) == words


@pytest.mark.parametrize(
    ("got", "allowed", "words"),
    [
        ([1], [[1 + 2.0**-20]], "last digits"), ([1], [[1 - 2.0**-20]], "other values"),
        ([-1 - 2.0**-20], [[-1]], "last digits"), ([1, 1], [[1, 1 + 2.0**-18]], "other values"),
        ([1, 2], [[1, 5], [4, 2]], "last digits"), ([NAN, 1], [[1, 1]], "NaN"), ([1, 1], [[1, NAN], [1, 2]], "NaN"),
        ([INF], [[1]], "other values"), ([1e-31], [[0]], "other values"), ([1e-37], [[0]], "last digits"),
    ],
)
def test_real_values_are_wrong_in_their_last_digits_or_before(got, allowed, words):
    assert shape.difference(np.float32(got), [np.float32(option) for option in allowed]) == words


def conv(channels, outputs, each, groups, w=PLAIN, images=1):
    x_q, w_q = np.zeros((images, channels, 3, 3), np.uint8), np.zeros((outputs, each, 1, 1), np.int8)
    arguments = x_q, PLAIN, w_q, w, None, PLAIN
    return Call("conv2d", arguments, {} if groups is None else {"groups": groups})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (conv(2, 4, 2, None), "dense"), (conv(1, 1, 1, 1), "dense"), (conv(4, 4, 2, 2), "grouped"),
        (conv(4, 4, 1, 4), "depthwise"), (conv(4, 8, 1, 4), "grouped"), (conv(4, 2, 2, 2), "grouped"),
        (conv(4, 4, 1, 4, TURNED), "depthwise, weights off zero"),
        (conv(2, 4, 2, 1, TURNED, 0), "dense, weights off zero, empty"),
        (Call("linear", (np.zeros((1, 2)), PLAIN, np.zeros((1, 2)), TURNED, None, PLAIN)), "weights off zero"),
        (Call("linear", (np.zeros((1, 2)), TURNED, np.zeros((0, 2)), PLAIN, None, TURNED)), "empty"),
        (Call("linear_dynamic", (np.zeros((1, 2)), np.zeros((1, 2)), TURNED, None)), "weights off zero"),
        (Call("quantize", (np.ones(2), 1, 0), {"axis": 0}), "per channel"),
        (Call("quantize", (np.ones(2), 1, 0)), "per tensor"),
        (Call("dequantize", (np.ones(0), 1, 0), {"axis": None}), "per tensor, empty"),
        (Call("concat", ([(np.ones(2), PLAIN), (np.ones(0), PLAIN)], PLAIN)), "empty"),
        (Call("max_pool2d", (np.ones(1), PLAIN)), ""),
    ],
)
def test_kinds_of_calls_are_what_kernels_choose_by(call, words):
    assert shape.kind_of_call(call) == words


@pytest.mark.parametrize(
    ("call", "far"),
    [
        (Call("quantize", (np.float32([512, -600]), np.float32(1), 0)), True),
        (Call("quantize", (np.float32([511, -600]), np.float32(1), 0)), False),
        (Call("quantize", (np.float32([256]), np.float32(0.5), 0)), True),
        (Call("quantize", (np.float32([]), np.float32(1), 0)), False),
        (Call("quantize", (np.float32([1e9]), np.float32([1]), 0)), False),  # nothing is said of channels
        *(
            (Call("linear", (np.uint8([[67]]), QParams(1, 3, 0, 255), np.int8([[w]]), PLAIN, bias, PLAIN)), far)
            for w, bias, far in ((8, None, True), (-8, None, True), (7, None, False), (100, np.float32([0]), False))
        ),
        (Call("linear", (np.uint8([[64]]), PLAIN, np.int8([[8]]), PLAIN, None, QParams(2, 0, -128, 127))), False),
        *(
            (Call(name, (np.uint8([a]), QParams(4, 3, 0, 255), np.uint8([b]), QParams(2, 1, 0, 255), EIGHTS)), far)
            for name, a, b, far in (
                ("add", 255, 255, False), ("mul", 35, 17, True), ("mul", 35, 16, False), ("mul", 3, 255, False),
            )
        ),
        (Call("add", (np.uint8([255]), QParams(16, 0, 0, 255), np.uint8([16]), PLAIN, EIGHTS)), True),
        (Call("add", (np.uint8([255]), QParams(16, 0, 0, 255), np.uint8([15]), PLAIN, EIGHTS)), False),
    ],
)  # fmt: skip
def test_a_result_is_far_from_512_steps_on(call, far):
    assert checks.is_far(call) is far


class Gives:
    """A backend that gives a range this scale and zero point."""

    name, version, dialect, wrote = "gives", "1", "exact", ""

    def __init__(self, *grid) -> None:
        self.qparams = lambda *_, **__: grid


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ((0.0, 3), "a scale that is none"), ((-1.0, 3), "a scale that is none"), ((INF, 3), "a scale that is none"),
        ((NAN, 3), "a scale that is none"), ((1.0, 256), "a zero point that is no code"),
        ((1.0, -1), "a zero point that is no code"), ((0.0, 256), "a zero point that is no code"),
        ((1.0, 0), None), ((1e-45, 255), None),
    ],
)  # fmt: skip
def test_a_grid_that_is_none_is_told_by_its_scale_or_its_zero_point(grid, words):
    call = Call("qparams", (np.float32(-1), np.float32(1)), {"qmin": 0, "qmax": 255, "symmetric": False})
    session = Session(Gives(np.float32(grid[0]), grid[1]))
    if words is None:
        assert checks.range_has_a_grid(session, call) is None
        return
    with pytest.raises(Violation) as found:
        checks.range_has_a_grid(session, call)
    assert found.value.how == words
    assert found.value.allowed == "a finite scale above 0 and a zero point from 0 to 255, or a refusal"
    assert found.value.got.endswith(f", {grid[1]}")
