"""The shapes of what kernels make, and in which words they refuse others."""

from dataclasses import replace

import numpy as np
import pytest

from programs import GRID, OF_WEIGHTS, codes
from quantspec.engines.compiled.lowering import (
    ConvAdd,
    DynamicLinear,
    Export,
    FlattenFloats,
    Import,
    LinearSum,
    QuantizeFlat,
    Turn,
)
from quantspec.engines.compiled.shapes import shape_of
from quantspec.errors import UnsupportedError
from quantspec.ir import program as ir
from told import exactly


def conv(shape, stride, padding, dilation, spread, groups=1):
    return ir.Conv(
        "y", "x", "net.conv", codes(*shape), None, GRID, OF_WEIGHTS, GRID, False, stride, padding, dilation, spread,
        groups,
    )  # fmt: skip


# Lines are three apart in padding of one before and two behind; positions as they are.
CONV = conv((7, 4, 3, 2), (3, 1), ((1, 2), (0, 0)), (2, 1), (1, 1))
SPREAD = conv((6, 1, 3), (1,), ((2, 1),), (2,), (3,), groups=5)
LINEAR = ir.Linear("y", "x", "net.fc", codes(7, 4), None, GRID, OF_WEIGHTS, GRID, False)
FLOATS = ir.LinearDynamic("y", "x", "net.fc", codes(7, 4), None, OF_WEIGHTS, False)
SUM = ir.Add("y", "x", "b", GRID, GRID, GRID, False)
FLAT = ir.Move("y", "function", "torch.flatten", (ir.Ref("x"), 1), {}, GRID)
POOL = ir.MaxPool("y", "x", (3, 2), (2, 1), (1, 0), (2, 1), False)
AVERAGE = ir.AvgPool("y", "x", GRID, (3, 2), (2, 1), (1, 0), False, True)
MEAN = ir.Mean("y", "x", GRID, (2, 3), False)
TO_SIZE = ir.Bilinear("y", "x", GRID, None, (7, 3), None, False, False)
LIKE = ir.Bilinear("y", "x", GRID, "b", None, None, False, False)
JOINED = ir.Concat("y", ("x", "b"), (GRID, GRID), GRID, 1)

SHAPES = [
    (ir.Quantize("y", "x", GRID), {"x": (2, 3)}, (2, 3)),
    (ir.Dequantize("y", "x", GRID), {"x": ()}, ()),
    (ir.Table("y", "x", "any", np.zeros(256, np.uint8), GRID, GRID), {"x": (5,)}, (5,)),
    (ir.Relu("y", "x", GRID), {"x": (2, 3, 4)}, (2, 3, 4)),
    (Import("y", "x"), {"x": (2, 9)}, (2, 9)),
    (Export("y", "x"), {"x": (9, 2)}, (9, 2)),
    (LINEAR, {"x": (4,)}, (7,)),
    (LINEAR, {"x": (2, 3, 4)}, (2, 3, 7)),
    (replace(LINEAR, flat=True), {"x": (3, 4)}, (3, 7)),
    (DynamicLinear("y", "x", FLOATS, False), {"x": (2, 4)}, (2, 7)),
    (LinearSum("y", "x", "b", LINEAR), {"x": (2, 4), "b": (2, 7)}, (2, 7)),
    (CONV, {"x": (2, 4, 8, 5)}, (2, 7, 3, 4)),
    (CONV, {"x": (0, 4, 2, 2)}, (0, 7, 1, 1)),
    (SPREAD, {"x": (2, 5, 4)}, (2, 6, 9)),
    (ConvAdd("y", "x", "b", CONV, SUM, True), {"x": (2, 4, 8, 5), "b": (2, 7, 3, 4)}, (2, 7, 3, 4)),
    (POOL, {"x": (2, 4, 8, 5)}, (2, 4, 3, 4)),
    (replace(POOL, ceil_mode=True), {"x": (2, 4, 8, 5)}, (2, 4, 4, 4)),
    (AVERAGE, {"x": (2, 4, 8, 5)}, (2, 4, 4, 4)),
    (replace(AVERAGE, ceil_mode=True), {"x": (2, 4, 8, 5)}, (2, 4, 5, 4)),
    (ir.AdaptiveAvgPool("y", "x", GRID, (3, None)), {"x": (2, 4, 8, 5)}, (2, 4, 3, 5)),
    (MEAN, {"x": (2, 4, 8, 5)}, (2, 4)),
    (replace(MEAN, keepdim=True), {"x": (2, 4, 8, 5)}, (2, 4, 1, 1)),
    (replace(MEAN, axes=(-1,)), {"x": (2, 4, 8)}, (2, 4)),
    (replace(MEAN, axes=(4, 2, -2)), {"x": (2, 4, 8, 5, 6)}, (2, 4)),
    (TO_SIZE, {"x": (2, 4, 8, 5)}, (2, 4, 7, 3)),
    (LIKE, {"x": (2, 4, 8, 5), "b": (1, 9, 2, 6)}, (2, 4, 2, 6)),
    (replace(TO_SIZE, size=None, factors=(0.5, 2.0)), {"x": (2, 4, 9, 5)}, (2, 4, 4, 10)),
    (SUM, {"x": (4, 5), "b": (4, 5)}, (4, 5)),
    (SUM, {"x": (), "b": ()}, ()),
    (SUM, {"x": (2, 4, 1), "b": (1, 4, 5)}, (2, 4, 5)),
    (ir.Mul("y", "x", "b", GRID, GRID, GRID), {"x": (2, 4, 3, 1), "b": (2, 4, 1, 5)}, (2, 4, 3, 5)),
    (JOINED, {"x": (2, 4), "b": (2, 1)}, (2, 5)),
    (replace(JOINED, axis=-2), {"x": (2, 4, 6), "b": (2, 1, 6)}, (2, 5, 6)),
    (FLAT, {"x": (2, 3)}, (2, 3)),
    (FLAT, {"x": (2, 3, 4, 5)}, (2, 60)),
    (QuantizeFlat("y", "x", GRID), {"x": (2, 3, 4)}, (2, 12)),
    (FlattenFloats("y", "x"), {"x": (0, 3, 4)}, (0, 12)),
    (Turn("y", "x", GRID, True, 4), {"x": (2, 5, 6, 3)}, (2, 3, 5, 6)),
    (Turn("y", "x", GRID, False, 5), {"x": (2, 3, 4, 5, 6)}, (2, 4, 5, 6, 3)),
]


@pytest.mark.parametrize(("step", "given", "expected"), SHAPES)
def test_the_shape_of_what_a_step_makes(step, given, expected):
    assert shape_of(step, given) == expected


CANNOT_AVERAGE = "step 'y': kernels average over all positions of images, got axes (2, 3) of shape "
REFUSED = [
    (LINEAR, {"x": ()}, "layer 'net.fc': expected 4 input features, got shape ()"),
    (LINEAR, {"x": (4, 5)}, "layer 'net.fc': expected 4 input features, got shape (4, 5)"),
    (DynamicLinear("y", "x", FLOATS, False), {"x": (3,)}, "layer 'net.fc': expected 4 input features, got shape (3,)"),
    (replace(LINEAR, flat=True), {"x": (4,)}, "layer 'net.fc': expected two axes, got shape (4,)"),
    (replace(LINEAR, flat=True), {"x": (2, 3, 4)}, "layer 'net.fc': expected two axes, got shape (2, 3, 4)"),
    (
        LinearSum("total", "x", "b", LINEAR), {"x": (2, 4), "b": (1, 7)},
        "step 'total': expected a summand of shape (2, 7), got (1, 7)",
    ),
    (CONV, {"x": (4, 8, 5)}, "step 'y': expected 4 axes, got shape (4, 8, 5)"),
    (CONV, {"x": (2, 7, 8, 5)}, "layer 'net.conv': expected 4 channels, got shape (2, 7, 8, 5)"),
    (SPREAD, {"x": (2, 1, 4)}, "layer 'net.conv': expected 5 channels, got shape (2, 1, 4)"),
    (
        CONV, {"x": (2, 4, 1, 5)},
        "layer 'net.conv': expected an input that its kernel fits into, got shape (2, 4, 1, 5)",
    ),
    (
        CONV, {"x": (2, 4, 8, 1)},
        "layer 'net.conv': expected an input that its kernel fits into, got shape (2, 4, 8, 1)",
    ),
    (
        # Padding alone is room for the kernel.
        conv((7, 4, 1, 1), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)), {"x": (2, 4, 3, 0)},
        "layer 'net.conv': expected an input that its kernel fits into, got shape (2, 4, 3, 0)",
    ),
    (
        ConvAdd("total", "x", "b", CONV, SUM, True), {"x": (2, 4, 8, 5), "b": (2, 7, 1, 1)},
        "step 'total': expected a summand of shape (2, 7, 3, 4), got (2, 7, 1, 1)",
    ),
    (POOL, {"x": (2, 4, 8)}, "step 'y': expected 4 axes, got shape (2, 4, 8)"),
    (AVERAGE, {"x": (2, 4, 8, 5, 6)}, "step 'y': expected 4 axes, got shape (2, 4, 8, 5, 6)"),
    (
        ir.AdaptiveAvgPool("y", "x", GRID, (3, None)), {"x": (2, 4, 0, 5)},
        "step 'y': expected at least one element to average, got shape (2, 4, 0, 5)",
    ),
    (
        ir.AdaptiveAvgPool("y", "x", GRID, (3, 0)), {"x": (2, 4, 6, 5)},
        "step 'y': expected at least one element to average, got shape (2, 4, 6, 5)",
    ),
    (ir.AdaptiveAvgPool("y", "x", GRID, (3,)), {"x": (2, 4)}, "step 'y': expected 3 axes, got shape (2, 4)"),
    (MEAN, {"x": ()}, CANNOT_AVERAGE + "()"),
    (MEAN, {"x": (2, 4, 8, 5, 6)}, CANNOT_AVERAGE + "(2, 4, 8, 5, 6)"),
    (MEAN, {"x": (2, 4, 0, 5)}, CANNOT_AVERAGE + "(2, 4, 0, 5)"),
    (
        replace(MEAN, axes=()), {"x": (2, 4)},
        "step 'y': kernels average over all positions of images, got axes () of shape (2, 4)",
    ),
    (
        TO_SIZE, {"x": (4, 8, 5)},
        "step 'y': expected images of four axes, got shapes (4, 8, 5) and (4, 8, 5)",
    ),
    (
        LIKE, {"x": (2, 4, 8, 5), "b": (8, 5)},
        "step 'y': expected images of four axes, got shapes (2, 4, 8, 5) and (8, 5)",
    ),
    (
        TO_SIZE, {"x": (2, 4, 0, 5)}, "step 'y': expected positions to interpolate, got (0, 5) to (7, 3)",
    ),
    (SUM, {"x": (2, 4, 5), "b": (3, 5)}, "step 'y': kernels cannot broadcast shapes (2, 4, 5) and (3, 5)"),
    (SUM, {"x": (5,), "b": (4,)}, "step 'y': kernels cannot broadcast shapes (5,) and (4,)"),
    (JOINED, {"x": (2,), "b": (2,)}, "step 'y': kernels join along axis 1 only, got axis 1 of shapes [(2,), (2,)]"),
    (
        replace(JOINED, axis=2), {"x": (2, 3, 4), "b": (2, 3, 4)},
        "step 'y': kernels join along axis 1 only, got axis 2 of shapes [(2, 3, 4), (2, 3, 4)]",
    ),
    (
        JOINED, {"x": (2, 3, 4), "b": (1, 3, 4)},
        "step 'y': kernels join along axis 1 only, got axis 1 of shapes [(2, 3, 4), (1, 3, 4)]",
    ),
    (
        JOINED, {"x": (2, 3, 4), "b": (2, 3, 5)},
        "step 'y': kernels join along axis 1 only, got axis 1 of shapes [(2, 3, 4), (2, 3, 5)]",
    ),
    (
        JOINED, {"x": (2, 3), "b": (2, 3, 5)},
        "step 'y': kernels join along axis 1 only, got axis 1 of shapes [(2, 3), (2, 3, 5)]",
    ),
    (FLAT, {"x": (5,)}, "step 'y': expected at least two axes, got shape (5,)"),
    (QuantizeFlat("y", "x", GRID), {"x": ()}, "step 'y': expected at least two axes, got shape ()"),
    (Turn("y", "x", GRID, True, 4), {"x": (2, 3, 4)}, "step 'y': expected 4 axes, got shape (2, 3, 4)"),
]


@pytest.mark.parametrize(("step", "given", "message"), REFUSED)
def test_shapes_that_kernels_do_not_take_are_refused_in_words(step, given, message):
    with pytest.raises(UnsupportedError, match=exactly(message)):
        shape_of(step, given)
