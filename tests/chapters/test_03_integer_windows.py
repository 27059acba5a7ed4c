"""Chapter 3: convolutions of any kind, pooling windows, means, products, tables.

The oracle is the chapter's own definitions.
"""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
import quantspec as qs
import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.engines.reference import STEPS
from quantspec.ir import float_graph, float_run
from quantspec.ir.program import Add, Bilinear, Call, Mul, Ref, Table
from quantspec.numerics import affine, bilinear, integer, windows
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.numerics.dialects.operations import adaptive_avg_pool, add, avg_pool, mean, mul
from quantspec.ptq import conversion
from told import exactly

spec = chapters.load("integer")
EXACT = dialect("exact")
ONE_AXIS = dict(stride=(1,), padding=((0, 0),), dilation=(1,), input_dilation=(1,), groups=1)


def ends(grid):
    return float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax


@st.composite
def convolutions(draw, axes=None):
    """(x_q, x, w_q, w, bias, y, places) of a small convolution over one to three axes."""
    axes = draw(st.integers(1, 3)) if axes is None else axes
    g = draw(draws.seeds())
    each = [draw(st.integers(1, 3)) for _ in range(axes)]
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilation, stride = (tuple(draw(st.integers(1, 2)) for _ in range(axes)) for _ in range(2))
    input_dilation = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(axes))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padding, lengths = [], []
    for r in reach:
        before, after = draw(st.integers(-1, 2)), draw(st.integers(-1, 2))
        padding.append((before, after))
        lengths.append(max(r - before - after, 2) + draw(st.integers(0, 2)))
    groups = draw(st.sampled_from([1, 1, 2]))
    inputs, outputs = each[0], draw(st.integers(1, 2))
    x_q = g.integers(0, 256, (draw(st.integers(1, 2)), groups * inputs, *lengths)).astype(np.uint8)
    w_q = g.integers(-128, 128, (groups * outputs, inputs, *kernel)).astype(np.int8)
    x, y = (
        QParams(0.25, int(g.integers(256)), 0, 255),
        QParams(np.float32(g.uniform(5, 200)), int(g.integers(256)), 0, 255),
    )
    w = QParams(g.uniform(0.1, 2, len(w_q)).astype(np.float32), 0, -128, 127, axis=0)
    bias = (g.normal(size=len(w_q)) * 50).astype(np.float32)
    places = dict(
        stride=stride, padding=tuple(padding), dilation=dilation, input_dilation=input_dilation, groups=groups
    )
    return x_q, x, w_q, w, bias, y, places


def seen(x_q, x, places):
    """What the windows see: ``spread`` along each axis."""
    for axis, (step, (before, after)) in enumerate(zip(places["input_dilation"], places["padding"]), start=2):
        x_q = np.apply_along_axis(
            lambda row, *a: np.array(spec.spread(row.tolist(), *a)), axis, x_q, step, before, after, int(x.zero_point)
        )
    return x_q


def defined(x_q, x, w_q, w, bias, y, places):
    """Every window as a row of INT-LINEAR."""
    padded, groups = seen(x_q, x, places), places["groups"]
    inputs, outputs = w_q.shape[1], len(w_q) // groups
    reach = [d * (k - 1) + 1 for d, k in zip(places["dilation"], w_q.shape[2:])]
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, places["stride"])]
    made = np.empty((len(x_q), len(w_q), *counts), int)
    for place in itertools.product(*map(range, counts)):
        cut = tuple(
            slice(i * s, i * s + r, d) for i, s, r, d in zip(place, places["stride"], reach, places["dilation"])
        )
        for group in range(groups):
            rows = padded[(slice(None), slice(group * inputs, (group + 1) * inputs), *cut)].reshape(len(x_q), -1)
            channels = slice(group * outputs, (group + 1) * outputs)
            weights = w_q[channels].reshape(outputs, -1)
            qparams = [(float(s), 0) for s in w.scale[channels]]
            made[(slice(None), channels, *place)] = spec.linear(
                rows.tolist(), ends(x)[:2], weights.tolist(), qparams, bias[channels].tolist(), ends(y)
            )
    return made


@clause("INT-CONV-ANY", "INT-CONV-PAD")
@given(convolutions())
def test_convolutions_over_any_axes_equal_the_definition(case):
    *layer, places = case
    got = EXACT.conv(*layer, **places)
    assert got.dtype == np.uint8 and got.tolist() == defined(*layer, places).tolist()


@clause("INT-CONV-ANY")
@given(convolutions(axes=1))
def test_one_channel_equals_the_short_definition(case):
    x_q, x, w_q, w, bias, y, places = case
    got = EXACT.conv(
        x_q[:1, :1], x, w_q[:1, :1], QParams(w.scale[:1], 0, -128, 127, axis=0), bias[:1], y,
        **(places | dict(groups=1)),
    )
    numbers = dict(
        stride=places["stride"][0], padding=places["padding"][0], dilation=places["dilation"][0],
        input_dilation=places["input_dilation"][0],
    )
    expected = spec.conv1d(
        x_q[0, 0].tolist(), ends(x)[:2], w_q[0, 0].tolist(), (float(w.scale[0]), 0), float(bias[0]), ends(y), **numbers
    )
    assert got[0, 0].tolist() == expected


@clause("INT-CONV-ANY")
def test_a_window_that_does_not_fit_is_refused_and_no_images_give_none():
    x, w, y = QParams(1.0, 3, 0, 255), QParams(1.0, 0, -128, 127), QParams(1.0, 0, 0, 255)
    for images, stride in itertools.product((0, 1), (1, 2, 3)):
        places = ONE_AXIS | {"stride": (stride,)}
        with pytest.raises(
            ValueError, match="^x_q: a window of \\(3,\\) does not fit into \\(2,\\) positions, padding included$"
        ):
            EXACT.conv(np.zeros((images, 1, 2), np.uint8), x, np.ones((1, 1, 3), np.int8), w, None, y, **places)
    none = EXACT.conv(np.zeros((0, 1, 5), np.uint8), x, np.ones((2, 1, 3), np.int8), w, None, y, **ONE_AXIS)
    assert none.shape == (0, 2, 3)


@clause("INT-CONV-ANY")
@pytest.mark.parametrize("inputs, outputs", [(0, 2), (3, 0), (0, 0), (3, 2)])
@pytest.mark.parametrize("images", [0, 2])
def test_without_images_inputs_or_outputs_sums_are_of_nothing(images, inputs, outputs):
    w = QParams(1.0, 0, -128, 127)
    x_q, w_q = np.zeros((images, inputs, 1), np.uint8), np.ones((outputs, inputs, 1), np.int8)
    total = integer.accumulate_conv(x_q, 5, w_q, w, **ONE_AXIS)
    expected = np.full((images, 1, outputs), -5 * inputs)
    assert total.dtype == np.int64 and total.shape == expected.shape and total.tolist() == expected.tolist()


@clause("INT-CONV-ANY")
@pytest.mark.parametrize("dtype, point", [(np.uint8, 0), (np.uint8, 255), (np.int8, -128), (np.int8, 127)])
def test_long_sums_are_exact_beyond_float32(dtype, point):
    # 2^24 is passed within a window, by sums that float32 cannot hold.
    ends = np.iinfo(dtype)
    code = ends.min if point == ends.max else ends.max
    w_q = np.full((1, 1024, 1), 127, np.int8)
    w_q[0, 0] = 126
    total = integer.accumulate_conv(
        np.full((1, 1024, 1), code, dtype), point, w_q, QParams(1.0, 0, -128, 127), **ONE_AXIS
    )
    assert total.dtype == np.int64 and total.tolist() == [[[(code - point) * (127 * 1024 - 1)]]]


@clause("INT-CONV-ANY")
def test_no_values_spread_are_none_and_what_is_put_between_has_the_fill():
    none, values = np.zeros((2, 3, 0), np.uint8), np.array([[[1, 2]]], np.uint8)
    assert integer.spread(none, (2,), ((0, 0),), 7).shape == (2, 3, 0)
    assert integer.spread(none, (2,), ((1, 2),), 7).tolist() == [[[7] * 3] * 3] * 2
    assert integer.spread(values, (2,), ((1, 2),), 7).tolist() == [[[7, 1, 7, 2, 7, 7]]]
    assert integer.spread(values, (1,), ((-1, 1),), 7).tolist() == [[[2, 7]]]


@clause("INT-CONV-TRANSPOSED")
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(1, 2), draws.seeds())
def test_a_transposed_convolution_is_one_of_spread_inputs(stride, kernel, length, padding, dilation, g):
    reach = dilation * (kernel - 1)
    padding, output_padding = min(padding, reach), int(g.integers(max(stride, dilation)))
    x, w, y = (
        QParams(0.5, int(g.integers(256)), 0, 255), QParams(0.25, 0, -128, 127),
        QParams(np.float32(g.uniform(1, 30)), 7, 0, 255),
    )
    x_q, w_q = g.integers(0, 256, length).astype(np.uint8), g.integers(-128, 128, kernel).astype(np.int8)
    if (length - 1) * stride - 2 * padding + reach + output_padding + 1 < 1:
        return  # such a layer has no outputs
    places = dict(
        stride=(1,), padding=((reach - padding, reach - padding + output_padding),), dilation=(dilation,),
        input_dilation=(stride,), groups=1,
    )
    flipped = float_run.transposed_weight(torch.from_numpy(w_q[None, None]), 1).numpy()
    got = EXACT.conv(x_q[None, None], x, flipped, w, np.float32([3]), y, **places)
    numbers = dict(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
    expected = spec.transposed_conv1d(x_q.tolist(), ends(x)[:2], w_q.tolist(), (0.25, 0), 3.0, ends(y), **numbers)
    assert got[0, 0].tolist() == expected


@clause("INT-CONV-TRANSPOSED")
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("axes", [1, 2])
def test_a_transposed_weight_exchanges_inputs_and_outputs_within_each_group(groups, axes):
    g = torch.Generator().manual_seed(groups)
    weight = torch.randint(-9, 10, (groups * 3, 2, *[3] * axes), generator=g).float()
    x = torch.randint(-9, 10, (2, groups * 3, *[4] * axes), generator=g).float()
    transposed, conv = (getattr(torch.nn.functional, f"{name}{axes}d") for name in ("conv_transpose", "conv"))
    expected = transposed(x, weight, groups=groups)  # whole numbers: exact in any order
    wide = torch.nn.functional.pad(x, [2, 2] * axes)
    assert conv(wide, float_run.transposed_weight(weight, groups), groups=groups).tolist() == expected.tolist()
    assert float_run.transposed_weight(float_run.transposed_weight(weight, groups), groups).tolist() == weight.tolist()


FACTORS = [None, 2.0, 4.0, 1.5, 0.5, 3.0, 0.75, 1.7]


@clause("INT-BILINEAR-PLACES")
@given(st.integers(1, 40), st.integers(1, 80), st.sampled_from(FACTORS), st.booleans())
def test_outputs_of_an_interpolation_lie_where_the_clause_says(n, m, factor, align_corners):
    m = m if factor is None else max(int(n * factor), 1)
    before, behind, steps = bilinear.places(n, m, factor, align_corners)
    found = [[(int(b), 256 - int(s)), (int(e), int(s))] for b, e, s in zip(before, behind, steps)]
    assert found == [spec.neighbours(spec.place(i, n, m, factor, align_corners), n) for i in range(m)]


@clause("INT-BILINEAR")
@given(
    draws.seeds(), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.sampled_from(FACTORS[1:]), st.sampled_from(FACTORS[1:])), st.integers(0, 3), st.integers(0, 255),
)  # fmt: skip
def test_an_interpolation_is_the_weighted_average_of_four_codes(r, shape, size, factors, how, zero_point):
    q, grid = r.choice(np.uint8([0, 1, 127, 254, 255, *range(9, 40)]), (2, 1, *shape)), QParams(0.5, zero_point, 0, 255)
    align_corners, exact = how == 1, how == 2
    if how >= 2:
        size = tuple(int(n * f) for n, f in zip(shape, factors))
        if 0 in size:
            with pytest.raises(ValueError, match="^expected positions to interpolate"):
                bilinear.interpolate(q, grid, None, factors, exact=exact, align_corners=False)
            return
    got = bilinear.interpolate(
        q, grid, None if how >= 2 else size, factors if how >= 2 else None, exact=exact, align_corners=align_corners
    )
    given = factors if exact else (None, None)
    assert got.dtype == np.uint8
    assert got[:, 0].tolist() == [spec.bilinear(i[0].tolist(), zero_point, size, given, align_corners) for i in q]


class Resized(nn.Module):
    """An interpolation between two layers, told its lengths in some way."""

    def __init__(self, resize):
        super().__init__()
        self.first, self.last, self.resize = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), resize

    def forward(self, x):
        return self.last(self.resize(self.first(x)))


def resized(**options):
    return lambda x: torch.nn.functional.interpolate(x, mode="bilinear", **options)


RESIZED = {
    "module": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "module with corners": lambda: nn.UpsamplingBilinear2d(size=(7, 11)),
    "size": lambda: resized(size=(13, 5)),
    "one size": lambda: resized(size=9),
    "factor": lambda: resized(scale_factor=1.7),
    "factor, worked out anew": lambda: resized(scale_factor=1.7, recompute_scale_factor=True),
    "factors, with corners": lambda: resized(scale_factor=(2, 1.5), align_corners=True),
    "smaller": lambda: resized(scale_factor=0.5),
    "like a value": lambda: lambda x: torch.cat([resized(size=x.shape[2:])(torch.max_pool2d(x, 2)), x[:, :0]], 1),
    "like a value's lengths": lambda: lambda x: resized(size=(x.size(2), x.shape[-1]))(torch.max_pool2d(x, 2)),
}


@clause("INT-BILINEAR", "INT-BILINEAR-PLACES")
@pytest.mark.parametrize("name", RESIZED)
def test_a_network_interpolates_its_codes(name):
    model = networks.seeded(lambda: Resized(RESIZED[name]()))
    x = networks.inputs(2, (3, 6, 9))
    q = qs.quantize(model, [x], dialect="exact")
    (step,) = [step for step in q.program.steps if isinstance(step, Bilinear)]
    seen = {}
    q.run_on("reference").compiled({q.program.inputs[0]: x}, lambda step, value: seen.setdefault(step.name, value))
    before, after = seen[step.x], seen[step.name]
    real = model.resize(model.first(x)).shape[2:]
    assert after.shape[2:] == real
    given = int(step.qparams.zero_point), real, step.factors if step.exact else (None, None), step.align_corners
    expected = [[spec.bilinear(plane.tolist(), *given) for plane in image] for image in before]
    assert after.tolist() == expected


@clause("INT-MUL")
@given(
    draws.grids(2.0**-8, 2.0**8), draws.grids(2.0**-8, 2.0**8), st.sampled_from([0.5, 1.0, 3.0, 64.0, 100.7]),
    draws.seeds(),
)
def test_products_equal_the_definition(a, b, factor, g):
    y = QParams(np.float32(float(a.scale) * float(b.scale) * factor), a.zero_point, a.qmin, a.qmax)
    a_q, b_q = (g.integers(grid.qmin, grid.qmax + 1, 40).astype(grid.dtype) for grid in (a, b))
    expected = [spec.mul(p, ends(a)[:2], q, ends(b)[:2], ends(y)) for p, q in zip(a_q.tolist(), b_q.tolist())]
    assert integer.mul(a_q, a, b_q, b, y).tolist() == mul(EXACT, a_q, a, b_q, b, y).tolist() == expected


@clause("INT-MUL")
@pytest.mark.parametrize("zero_point", [0, 1, 127, 255])
def test_every_product_of_codes_is_rounded_to_even(zero_point):
    codes = np.arange(256).astype(np.uint8)
    a_q, b_q = (m.ravel() for m in np.meshgrid(codes, codes[::17]))
    grid, y = QParams(1.0, 128, 0, 255), QParams(64.0, zero_point, 0, 255)
    steps = np.rint((a_q.astype(int) - 128) * (b_q.astype(int) - 128) / 64)  # exact: a power of two
    assert integer.mul(a_q, grid, b_q, grid, y).tolist() == np.clip(steps + zero_point, 0, 255).tolist()
    assert integer.mul(a_q, grid, b_q, grid, y).dtype == np.uint8
    with pytest.raises(ValueError, match="^a_q, b_q: expected one shape, got \\(2,\\) and \\(3,\\)$"):
        integer.mul(codes[:2], grid, codes[:3], grid, y)
    for name, pair in (("a_q", (steps, b_q)), ("b_q", (a_q, steps))):
        with pytest.raises(TypeError, match=f"^{name}: expected uint8 or int8 codes, got float64$"):
            integer.mul(pair[0], grid, pair[1], grid, y)


@clause("INT-BROADCAST")
@pytest.mark.parametrize(("one", "other"), [((2, 3, 4, 5), (2, 3, 1, 1)), ((3, 1), (1, 4)), ((2, 3), (3,))])
def test_sums_and_products_broadcast(one, other):
    g = np.random.default_rng(1)
    a, b, y = QParams(0.5, 3, 0, 255), QParams(0.25, 200, 0, 255), QParams(32.0, 100, 0, 255)
    values = {"a": g.integers(0, 256, one).astype(np.uint8), "b": g.integers(0, 256, other).astype(np.uint8)}
    wide = np.broadcast_arrays(values["a"], values["b"])
    total = STEPS[Add](Add("y", "a", "b", a, b, y, False), values, {}, EXACT)
    assert total.tolist() == add(EXACT, wide[0], a, wide[1], b, y).tolist() and total.shape == np.broadcast_shapes(
        one, other
    )
    product = STEPS[Mul](Mul("y", "a", "b", a, b, y), values, {}, EXACT)
    assert product.tolist() == mul(EXACT, wide[0], a, wide[1], b, y).tolist() and len(set(product.ravel().tolist())) > 2


@clause("INT-POOL-WINDOWS")
@pytest.mark.parametrize("shape", [(2, 3, 0, 0), (2, 3, 0, 5), (1, 5, 0)])
def test_nothing_has_no_largest_code_and_no_average(shape):
    axes = len(shape) - 2
    q, places = np.zeros(shape, np.uint8), [(2,) * axes, (1,) * axes, (1,) * axes]
    for pooled in (
        lambda: integer.max_pool(q, *places, (1,) * axes, False),
        lambda: avg_pool(EXACT, q, QParams(1.0, 7, 0, 255), *places, False, True),
    ):
        message = f"q: expected positions along each axis that windows lie on, got shape {shape}"
        with pytest.raises(ValueError, match=exactly(message)):
            pooled()


@clause("INT-POOL-WINDOWS", "INT-MAXPOOL", "INT-AVGPOOL")
@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.booleans(),
    st.booleans(), draws.seeds(),
)
def test_windows_lie_where_the_definition_says(n, kernel, stride, padding, dilation, ceil_mode, include, g):
    padding = min(padding, kernel // 2)
    windows = spec.pool_windows(n, kernel, stride, padding, dilation, ceil_mode)
    if not windows:
        with pytest.raises(ValueError, match="does not fit into"):
            integer.max_pool(np.zeros((1, n), np.uint8), (kernel,), (stride,), (padding,), (dilation,), ceil_mode)
        return
    q, grid = g.integers(0, 256, (2, n)).astype(np.uint8), QParams(1.0, int(g.integers(256)), 0, 255)
    inside = [[p for p in window if 0 <= p < n] for window in windows]
    got = integer.max_pool(q, (kernel,), (stride,), (padding,), (dilation,), ceil_mode)
    assert got.shape == (2, len(windows))
    if all(inside):
        assert got.tolist() == [[spec.max_pool([int(row[p]) for p in window]) for window in inside] for row in q]
    if dilation == 1 and all(inside):
        whole = spec.pool_windows(n, kernel, stride, padding, 1, ceil_mode)
        counts = [len(w) if include else len(i) for w, i in zip(whole, inside)]
        averages = avg_pool(EXACT, q, grid, (kernel,), (stride,), (padding,), ceil_mode, include)
        expected = [
            [spec.avg_pool([int(row[p]) for p in w], int(grid.zero_point), c) for w, c in zip(inside, counts)]
            for row in q
        ]
        assert averages.tolist() == expected


@clause("INT-POOL-WINDOWS")
def test_windows_of_several_axes_are_those_of_each():
    g = np.random.default_rng(0)
    q = g.integers(0, 256, (2, 3, 7, 6, 5)).astype(np.uint8)
    got = integer.max_pool(q, (3, 2, 2), (2, 1, 2), (1, 0, 1), (1, 2, 1), True)
    rows = [
        spec.pool_windows(n, k, s, p, d, True)
        for n, k, s, p, d in zip((7, 6, 5), (3, 2, 2), (2, 1, 2), (1, 0, 1), (1, 2, 1))
    ]
    for place in itertools.product(*(range(len(r)) for r in rows)):
        codes = q[:, :, *np.ix_(*([p for p in r[i] if 0 <= p < n] for r, i, n in zip(rows, place, (7, 6, 5))))]
        assert (got[(..., *place)] == codes.max(axis=(2, 3, 4))).all()
    assert windows.sizes((7, 6), (3, 2), (2, 1), (0, 0), (1, 1), False) == (3, 5)
    with pytest.raises(ValueError, match="^padding: expected at most half the kernel \\(2,\\), got \\(2,\\)$"):
        integer.max_pool(q, (2,), (1,), (2,), (1,), False)


@clause("INT-MEAN")
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 255), draws.seeds())
def test_means_over_parts_are_averages_of_their_codes(n, m, zero_point, g):
    q, grid = g.integers(0, 256, (3, n)).astype(np.uint8), QParams(0.5, zero_point, 0, 255)
    got = adaptive_avg_pool(EXACT, q, grid, (m,))
    expected = [
        [spec.avg_pool([int(row[p]) for p in part], zero_point, len(part)) for part in spec.parts(n, m)] for row in q
    ]
    assert got.tolist() == expected
    assert adaptive_avg_pool(EXACT, q, grid, (None,)).tolist() == q.tolist()


@clause("INT-MEAN")
@pytest.mark.parametrize(("axes", "keepdim"), [((1,), False), ((0, 2), True), ((-1, -2), False)])
def test_a_mean_over_whole_axes_is_the_average_of_all_its_codes(axes, keepdim):
    q, grid = np.random.default_rng(2).integers(0, 256, (2, 4, 3)).astype(np.uint8), QParams(0.5, 99, 0, 255)
    moved = np.moveaxis(q, axes, range(-len(axes), 0)).reshape(
        *(n for i, n in enumerate(q.shape) if i not in [a % 3 for a in axes]), -1
    )
    expected = np.array([spec.avg_pool(row.tolist(), 99, len(row)) for row in moved.reshape(-1, moved.shape[-1])])
    got = mean(EXACT, q, grid, axes, keepdim=keepdim)
    assert got.ravel().tolist() == expected.tolist() and got.ndim == (3 if keepdim else 3 - len(axes))
    with pytest.raises(ValueError, match="^q: expected elements to average"):
        mean(EXACT, q[:, :0], grid, (1,))


def looked_up(function, x, y):
    """The table that a network has for a function between two grids."""
    node = float_graph.Elementwise("y", "x", "function", Call("y", "function", "f", (Ref("x"),), {}, ""))
    return conversion.table(node, {("function", "f"): function}, x, y, EXACT)


EXACTLY = {
    "hardswish": (torch.nn.functional.hardswish, spec.hardswish),
    "relu6": (torch.nn.functional.relu6, lambda v: min(max(v, Fraction(0)), Fraction(6))),
    "square": (lambda t: t * t, lambda v: v * v),
    "halved": (lambda t: t * 0.5 - 1, lambda v: v / 2 - 1),
}


@clause("INT-TABLE")
@given(
    draws.scales(2.0**-8, 2.0), st.integers(0, 255), draws.scales(2.0**-10, 2.0), st.integers(0, 255),
    st.sampled_from(list(EXACTLY)),
)
def test_a_table_is_the_function_of_each_code(x_scale, x_zero, y_scale, y_zero, name):
    x, y = QParams(x_scale, x_zero, 0, 255), QParams(y_scale, y_zero, 0, 255)
    function, exact = EXACTLY[name]
    made = looked_up(function, x, y)
    assert made.dtype == np.uint8 and made.shape == (256,)
    got, expected = made.tolist(), spec.table(exact, ends(x), ends(y))
    assert got == expected


@clause("INT-TABLE")
@pytest.mark.parametrize(
    ("function", "precise"),
    [
        (torch.sigmoid, lambda v: 1 / (1 + np.exp(-v))),
        (torch.tanh, np.tanh),
        (torch.nn.functional.silu, lambda v: v / (1 + np.exp(-v))),
        (torch.nn.functional.softplus, lambda v: np.log1p(np.exp(-np.abs(v))) + np.maximum(v, 0)),
    ],
)
def test_a_table_is_as_exact_as_its_grid(function, precise):
    x = QParams(0.05, 128, 0, 255)
    real = (np.arange(256) - 128).astype(np.longdouble) * np.longdouble(float(x.scale))
    values = precise(real).astype(np.float32)
    y = EXACT.activation_qparams(values.min(), values.max())
    assert (
        looked_up(function, x, y).tolist() == affine.quantize(values, y.scale, y.zero_point, qmin=0, qmax=255).tolist()
    )


@clause("INT-TABLE")
def test_codes_that_cannot_occur_have_the_nearest_ends_value_and_nan_is_refused():
    x, y = QParams(1.0, 0, 0, 15), QParams(1.0, 0, 0, 255)
    assert looked_up(lambda t: t * 2, x, y).tolist() == [*range(0, 31, 2), *[30] * 240]
    with pytest.raises(
        ValueError, match="^model: function at 'y' is NaN for some of the values observed before it$"
    ):
        looked_up(lambda t: torch.log(t - 3), x, y)


@clause("INT-TABLE-CHANNEL")
@given(
    draws.seeds(), st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=5), draws.scales(2.0**-8, 2.0),
    st.integers(0, 255), draws.scales(2.0**-10, 2.0), st.integers(0, 255), st.sampled_from([(3,), (2,), (2, 4, 3)]),
)  # fmt: skip
def test_a_function_of_each_channel_is_a_table_for_each(r, slopes, x_scale, x_zero, y_scale, y_zero, shape):
    x, y = QParams(x_scale, x_zero, 0, 255), QParams(y_scale, y_zero, 0, 255)
    prelu = nn.PReLU(len(slopes))
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor(slopes))
    node = float_graph.Elementwise(
        "y", "x", "prelu", Call("y", "module", "f", (Ref("x"),), {}, ""), channels=len(slopes)
    )
    made = conversion.table(node, {("module", "f"): prelu}, x, y, EXACT)
    tables = [spec.table(spec.prelu(slope), ends(x), ends(y)) for slope in slopes]
    assert made.dtype == np.uint8 and made.tolist() == tables
    q = r.integers(0, 256, (shape[0], len(slopes), *shape[1:])).astype(np.uint8)
    got = STEPS[Table](Table("y", "x", "prelu", made, x, y), {"x": q}, {}, EXACT)
    rows = np.moveaxis(q, 1, -1).reshape(-1, len(slopes)).tolist()
    assert np.moveaxis(got, 1, -1).reshape(-1, len(slopes)).tolist() == spec.look_up_channels(tables, rows)


@clause("INT-TABLE-CHANNEL")
def test_channels_other_than_a_functions_are_refused():
    step = Table("y", "x", "prelu", np.zeros((3, 256), np.uint8), QParams(1.0, 0, 0, 255), QParams(1.0, 0, 0, 255))
    for shape in [(2, 4), (3,), (), (4, 2, 3)]:
        with pytest.raises(ValueError, match="^prelu at 'y': expected 3 channels along axis 1, got shape"):
            STEPS[Table](step, {"x": np.zeros(shape, np.uint8)}, {}, EXACT)


@clause("INT-TABLE-CHANNEL")
def test_a_networks_prelu_of_channels_is_a_table_with_its_own_slopes():
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 3)))
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(-1, 1.5, 8))
    x = networks.inputs()
    q = qs.quantize(model, [x], dialect="exact")
    (step,) = [step for step in q.program.steps if isinstance(step, Table)]
    exact = [spec.table(spec.prelu(s), ends(step.x_qparams), ends(step.y_qparams)) for s in model[1].weight.tolist()]
    assert step.table.tolist() == exact


@clause("INT-TABLE")
def test_a_networks_activations_are_tables_with_grids_of_their_own():
    model = networks.seeded(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 3))
    )
    x = networks.inputs()
    q = qs.quantize(model, [x], dialect="exact")
    tables = [step for step in q.program.steps if isinstance(step, Table)]
    assert [step.function for step in tables] == ["silu", "prelu"]
    seen = {}
    q.run_on("reference").compiled({q.program.inputs[0]: x}, lambda step, value: seen.setdefault(step.name, value))
    for step in tables:
        assert (
            seen[step.name].tolist() == step.table[seen[step.x]].tolist()
            and step.x_qparams.scale != step.y_qparams.scale
        )


@clause("INT-POOL-WINDOWS", "INT-AVGPOOL")
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_every_small_window_averages_the_positions_that_count(ceil_mode, include):
    q, grid = np.uint8([[7, 250, 3, 90, 41, 200]]), QParams(1.0, 5, 0, 255)
    for n, kernel, stride in itertools.product(range(1, 7), range(1, 5), range(1, 4)):
        for padding in range(kernel // 2 + 1):
            windows = spec.pool_windows(n, kernel, stride, padding, 1, ceil_mode)
            inside = [[p for p in window if 0 <= p < n] for window in windows]
            if windows and all(inside):
                counts = [len(w) if include else len(i) for w, i in zip(windows, inside)]
                got = avg_pool(EXACT, q[:, :n], grid, (kernel,), (stride,), (padding,), ceil_mode, include)
                assert got.tolist() == [
                    [spec.avg_pool([int(q[0, p]) for p in w], 5, c) for w, c in zip(inside, counts)]
                ]


@clause("INT-MUL")
def test_products_beside_ties_are_those_of_the_exact_scales():
    codes = np.arange(256).astype(np.uint8)
    a_q, b_q = (m.ravel() for m in np.meshgrid(codes, np.uint8([1, 3, 7, 101])))
    rounded = 0
    for seed in range(40):
        g = np.random.default_rng(seed)
        s_a, s_b = (np.float32(v) for v in g.uniform(0.01, 1, 2))
        # An output step of two units, give or take the last bit: odd products lie on a tie, or hardly beside it.
        a, b, y = QParams(s_a, 0, 0, 255), QParams(s_b, 0, 0, 255), QParams(np.float32(2) * (s_a * s_b), 0, 0, 255)
        expected = [spec.mul(p, ends(a)[:2], q, ends(b)[:2], ends(y)) for p, q in zip(a_q.tolist(), b_q.tolist())]
        assert integer.mul(a_q, a, b_q, b, y).tolist() == expected
        product = a_q.astype(float) * b_q
        rounded += expected != np.clip(np.rint(product * np.float64(s_a * s_b / y.scale)), 0, 255).tolist()
    assert rounded > 10  # scales rounded to float32 beforehand would have given other codes
