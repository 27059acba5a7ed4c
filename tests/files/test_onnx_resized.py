"""Resizing as operators of ONNX: the neighbours that torch takes, for any lengths, and as many of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_graph import agrees, in_graph
from torch import nn
from torch.nn import functional as F

import quantspec
from networks import inputs
from quantspec.numerics.affine import QParams
from quantspec.onnx_export.float_layers import MODULES
from quantspec.onnx_export.rearrange import moved
from quantspec.onnx_export.resize import interpolate, rounded_up, scaled
from told import exactly

GRID = QParams(np.array(0.5, np.float32), np.array(7), 0, 255)
CODES = torch.arange(2 * 3 * 35, dtype=torch.uint8).reshape(2, 3, 5, 7)
X = inputs(2, (3, 5, 7))
IMAGES = {"linear": inputs(2, (3, 9)), "bilinear": X, "bicubic": X, "trilinear": inputs(2, (3, 5, 4, 6))}
# Positions and sums of up to 16 products in float32 by two libraries: each misses a position of at most 24 entries, and
# the sum, by at most 40 * 2^-24 of the largest partial sum, which is below 8.
SMOOTH = {"rtol": 0, "atol": 2e-5}


def resized(*args, **kwargs):
    return lambda g, x: interpolate(g, x, *args, **kwargs)


def by_torch(*args, **kwargs):
    def call(x):
        y = F.interpolate(x.float(), *args, **kwargs)  # codes are exact there
        return y.to(x.dtype)

    return call


NEAREST = [
    {"size": (3, 11)}, {"size": 6}, {"size": [1, 7]}, {"scale_factor": 2}, {"scale_factor": (3.0, 1.0)},
    {"scale_factor": 1.7}, {"scale_factor": (0.5, 2.3)}, {"scale_factor": [0.7, 2.0]},
    {"scale_factor": 1.7, "recompute_scale_factor": True}, {"scale_factor": (2.0, 3.0), "recompute_scale_factor": True},
    {"scale_factor": (0.4, 1.3), "recompute_scale_factor": False},
]  # fmt: skip


@pytest.mark.parametrize("options", NEAREST, ids=str)
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", None])
def test_neighbours_are_torchs(options, mode):
    options = options | ({} if mode is None else {"mode": mode})
    agrees(resized(**options), by_torch(**options), X)
    agrees(resized(**options), by_torch(**options), CODES, grid=GRID)
    if not isinstance(options.get("size", options.get("scale_factor")), (tuple, list)):
        agrees(resized(**options), by_torch(**options), IMAGES["linear"])
        agrees(resized(**options), by_torch(**options), IMAGES["trilinear"])


@given(st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_neighbours_of_any_lengths(length, size, exact):
    mode = "nearest-exact" if exact else "nearest"
    agrees(resized(size, None, mode), by_torch(size, None, mode), torch.arange(float(length))[None, None])


@given(st.integers(4, 40), st.integers(26, 400), st.booleans(), st.booleans())
def test_neighbours_by_any_factor(length, hundredths, exact, again):
    mode = "nearest-exact" if exact else "nearest"
    options = {"scale_factor": hundredths / 100, "mode": mode, "recompute_scale_factor": again}
    agrees(resized(**options), by_torch(**options), torch.arange(float(length))[None, None])


def test_whole_factors_are_one_operator():
    def operators(**options):
        ops = []

        def make(g, x):
            y = interpolate(g, x, **options)
            ops.extend(node.op_type for node in g.nodes)
            return y

        in_graph(make, X)
        return ops

    assert operators(scale_factor=2)[-1] == "Resize" and operators(scale_factor=(1, 3))[-1] == "Resize"
    assert "Resize" not in operators(scale_factor=(2, 1.5)) + operators(size=4)


BETWEEN = [
    {"size": 12}, {"size": 4}, {"size": 1}, {"scale_factor": 2}, {"scale_factor": 1.7}, {"scale_factor": 0.6},
    {"scale_factor": 1.7, "recompute_scale_factor": True}, {"scale_factor": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("options", BETWEEN, ids=str)
@pytest.mark.parametrize("corners", [False, True, None])
@pytest.mark.parametrize("mode", IMAGES)
def test_what_is_between_neighbours_is_torchs(options, corners, mode):
    options = options | {"mode": mode, "align_corners": corners}
    agrees(resized(**options), by_torch(**options), IMAGES[mode], bound=SMOOTH)


def test_each_axis_may_have_a_size_or_a_factor_of_its_own():
    for options in ({"size": (4, 13)}, {"scale_factor": (0.7, 2.3)}, {"scale_factor": [2.0, 0.5]}, {"size": [8, 3]}):
        options = options | {"mode": "bilinear"}
        agrees(resized(**options), by_torch(**options), X, bound=SMOOTH)


# Products of float32 are whole numbers where those of float64 are not, and the other way round.
LENGTHS = [
    (0.7, 90),
    (0.7, 10),
    (1.3, 180),
    (1.4, 45),
    (2.3, 50),
    (2.6, 85),
    (1.1, 100),
    (1.7, 30),
    (0.1, 10),
    (0.3, 10),
]


@pytest.mark.parametrize("factor, length", LENGTHS)
def test_there_are_as_many_as_torch_gives(factor, length):
    x, options = torch.ones(1, 1, length), {"scale_factor": factor, "mode": "linear"}
    agrees(resized(**options), by_torch(**options), x, bound=SMOOTH)


@given(st.integers(1, 200), st.integers(1, 400))
def test_any_factor_gives_the_length_that_torch_gives(length, hundredths):
    factor = hundredths / 100
    if int(length * factor):
        options = {"scale_factor": factor, "mode": "linear"}
        agrees(resized(**options), by_torch(**options), torch.ones(1, 1, length), bound=SMOOTH)


@given(st.floats(0.01, 100))
def test_a_factor_is_rounded_up_to_the_next_float32(factor):
    up = rounded_up(factor)
    assert up == np.float32(up) and float(np.nextafter(np.float32(up), np.float32(0))) < factor <= up
    assert rounded_up(up) == up


def test_sizes_may_be_lengths():
    def made(g, x, y):
        return interpolate(g, x, [g.size(y, 0), g.compute("add", g.size(x, 3), 2)])

    agrees(made, lambda x, y: F.interpolate(x, (4, 9)), X, inputs(4, (1,)))

    def smooth(g, x, y):
        return interpolate(g, x, (g.size(y, 0), 3), mode="bilinear")

    agrees(smooth, lambda x, y: F.interpolate(x, (4, 3), mode="bilinear"), X, inputs(4, (1,)), bound=SMOOTH)


def test_scaled_lengths_have_names_that_tell_them_apart():
    def made(g, x):
        return [scaled(g, g.size(x, axis), factor) for axis in (2, 3) for factor in (0.5, 1.5, 2.0, 3.0, 1.0)]

    agrees(made, lambda x: [int(n * factor) for n in (5, 7) for factor in (0.5, 1.5, 2.0, 3.0, 1.0)], X)


MODULES_THAT_RESIZE = {
    "usual": nn.Upsample(scale_factor=2), "size": nn.Upsample((3, 9)), "bilinear": nn.Upsample(9, mode="bilinear"),
    "corners": nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True),
    "again": nn.Upsample(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
    "old, bilinear": nn.UpsamplingBilinear2d((7, 3)), "old, nearest": nn.UpsamplingNearest2d(scale_factor=3),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES_THAT_RESIZE)
def test_a_module_that_resizes_is_torchs(name):
    module = MODULES_THAT_RESIZE[name]
    agrees(lambda g, x: MODULES[type(module)](g, module, x), module, X, bound=SMOOTH)


def test_codes_are_resized_as_they_are():
    agrees(lambda g, x: moved(g, "interpolate", (x,), {"size": 4}), by_torch(size=4), CODES, grid=GRID)


@pytest.mark.parametrize("mode, antialias", [("area", False), ("bilinear", True), ("bicubic", True), ("nearest", True)])
def test_other_ways_to_resize_are_refused(mode, antialias):
    message = f"interpolate in mode '{mode}'{' with antialias' if antialias else ''}"
    with pytest.raises(quantspec.UnsupportedError, match=exactly(message)):
        in_graph(resized(4, mode=mode, antialias=antialias), X)
