"""Chapter 10: dialects of convolutions and of operations from codes to codes. The oracle is the chapter's own steps."""

import itertools
import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec import chapters
from quantspec.conformance.draw_bulk import bulk
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects import operations
from quantspec.numerics.dialects.named import DIALECTS, dialect
from strategies import every_code

spec = chapters.load("dialects")
NAMES = sorted(DIALECTS)
ENDS = [(0, 255), (-128, 127)]


def rule(name: str, place: str):
    """The definition that a dialect chooses at a place."""
    tables = {"add": spec.ADD, "mul": spec.MUL, "rescale": spec.RESCALE, "average": spec.AVERAGE, "mean": spec.AVERAGE}
    return tables[place][spec.choice(name, place)]


def one(grid: QParams) -> tuple:
    return float(grid.scale), int(grid.zero_point)


def whole(grid: QParams) -> tuple:
    return float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax


@st.composite
def related_grids(draw, *, product: bool) -> tuple[QParams, QParams, QParams]:
    """Two input grids and an output grid whose step is a small multiple of theirs, up to an ulp or two: many results
    lie beside ties."""
    ends = draw(st.sampled_from(ENDS))
    s_a = draw(st.one_of(draws.scales(2.0**-20, 2.0**10), st.sampled_from([np.float32(1), np.float32(0.1)])))
    s_b = (
        np.float32(s_a * draw(st.sampled_from([1, 2, 0.5, 3, 1.7]))) if not product else draw(draws.scales(2.0**-10, 1))
    )
    step = (
        s_a * s_b * draw(st.sampled_from([64, 96, 3, 70.5]))
        if product
        else s_a * draw(st.sampled_from([2, 4, 1, 1.3, 0.4]))
    )
    s_y = draws.shifted(step, draw(st.integers(-2, 2)))
    return tuple(QParams(s, draw(st.integers(*ends)), *ends) for s in (s_a, s_b, s_y))


def codes_of(draw, grid: QParams, count: int) -> np.ndarray:
    return np.array(draw(st.lists(st.integers(grid.qmin, grid.qmax), min_size=count, max_size=count)), grid.dtype)


def beside_ties(count: int, operation, *, zero_points: tuple[int, int]):
    """Pairs of four codes and three grids, of which the last has the first pair's result on a tie, or an ulp beside
    it."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        s_a, s_b = np.exp(generator.uniform(-5, 0, 2)).astype(np.float32)
        a, b = (QParams(s, int(generator.integers(256)), 0, 255) for s in (s_a, s_b))
        a_q, b_q = generator.integers(0, 256, (2, 4)).astype(np.uint8)
        real = abs(operation(*((int(q[0]) - int(g.zero_point)) * float(g.scale) for q, g in ((a_q, a), (b_q, b)))))
        step = draws.shifted(max(real, 1e-3) / (generator.integers(1, 90) + 0.5), int(generator.integers(-1, 2)))
        yield a_q, a, b_q, b, QParams(step, int(generator.integers(*zero_points)), 0, 255)


@clause("DIA-ADD")
@given(related_grids(product=False), st.booleans(), st.data())
def test_a_sum_is_what_the_dialect_says(grids, relu, data):
    a, b, y = grids
    a_q, b_q = (codes_of(data.draw, grid, 8) for grid in (a, b))
    lowest = int(y.zero_point) if relu else y.qmin
    for name in NAMES:
        got, add = operations.add(dialect(name), a_q, a, b_q, b, y, relu=relu), rule(name, "add")
        assert got.dtype == y.dtype, name
        expected = [add(int(p), one(a), int(q), one(b), whole(y), lowest) for p, q in zip(a_q, b_q)]
        assert got.tolist() == expected, name


@clause("DIA-ADD")
@pytest.mark.parametrize("place", sorted(spec.ADD))
def test_every_code_added_to_its_neighbours(place):
    name = next(n for n in NAMES if spec.choice(n, "add") == place)
    every = every_code(0, 255)
    a, b, y = QParams(0.1, 3, 0, 255), QParams(0.1, 128, 0, 255), QParams(0.2, 101, 0, 255)
    for step in (0, 1, 2, 77):
        other = np.roll(every, step)
        got = operations.add(dialect(name), every, a, other, b, y)
        assert got.tolist() == [
            spec.ADD[place](int(p), one(a), int(q), one(b), whole(y), 0) for p, q in zip(every, other)
        ]


@clause("DIA-ADD")
@pytest.mark.parametrize("place", sorted(spec.ADD))
def test_sums_on_ties_and_an_ulp_beside_them(place):
    name = next(n for n in NAMES if spec.choice(n, "add") == place)
    for a_q, a, b_q, b, y in beside_ties(300, operator.add, zero_points=(100, 156)):
        got = operations.add(dialect(name), a_q, a, b_q, b, y)
        assert got.tolist() == [spec.ADD[place](int(p), one(a), int(q), one(b), whole(y), 0) for p, q in zip(a_q, b_q)]


@clause("DIA-MUL")
@given(related_grids(product=True), st.data())
def test_a_product_is_what_the_dialect_says(grids, data):
    a, b, y = grids
    a_q, b_q = (codes_of(data.draw, grid, 8) for grid in (a, b))
    for name in NAMES:
        got, mul = operations.mul(dialect(name), a_q, a, b_q, b, y), rule(name, "mul")
        assert got.dtype == y.dtype, name
        assert got.tolist() == [mul(int(p), one(a), int(q), one(b), whole(y)) for p, q in zip(a_q, b_q)], name


@clause("DIA-MUL")
@pytest.mark.parametrize("place", sorted(spec.MUL))
def test_products_on_ties_and_an_ulp_beside_them(place):
    name = next(n for n in NAMES if spec.choice(n, "mul") == place)
    for a_q, a, b_q, b, y in beside_ties(200, operator.mul, zero_points=(0, 256)):
        got = operations.mul(dialect(name), a_q, a, b_q, b, y)
        assert got.tolist() == [spec.MUL[place](int(p), one(a), int(q), one(b), whole(y)) for p, q in zip(a_q, b_q)]


@clause("DIA-ADD", "DIA-MUL")
def test_arrays_of_two_shapes_are_refused():
    grid = QParams(1, 0, 0, 255)
    for operation, name in itertools.product((operations.add, operations.mul), ("exact", "onnx")):
        with pytest.raises(ValueError, match="expected one shape"):
            operation(dialect(name), np.zeros(2, np.uint8), grid, np.zeros(3, np.uint8), grid, grid)


@clause("DIA-RESCALE")
@given(related_grids(product=False), st.data())
def test_joined_codes_are_what_the_dialect_says(grids, data):
    a, _, y = grids
    parts = [(codes_of(data.draw, grid, 6), grid) for grid in (a, y, a)]
    for name in NAMES:
        got, rescale = operations.concat(dialect(name), parts, y, axis=0), rule(name, "rescale")
        quantize = spec.QUANTIZE[spec.choice(name, "quantize")]
        expected = [rescale(int(v), one(grid), whole(y), quantize) for q, grid in parts for v in q]
        assert got.dtype == y.dtype and got.tolist() == expected, name
        with pytest.raises(ValueError, match="at least one array"):
            operations.concat(dialect(name), [], y, axis=0)


@clause("DIA-AVERAGE")
@pytest.mark.parametrize("name", NAMES)
@given(
    draws.seeds(), st.sampled_from(ENDS), st.tuples(st.integers(1, 3), st.integers(1, 4)),
    st.tuples(st.integers(1, 2), st.integers(1, 3)), st.booleans(), st.booleans(),
)  # fmt: skip
def test_pooled_averages_are_what_the_dialect_says(name, generator, ends, kernel, stride, padded, include):
    grid = QParams(generator.choice([0.1, 1, 0.013]), int(generator.integers(ends[0], ends[1] + 1)), *ends)
    q = np.clip(generator.integers(*ends) + generator.integers(-2, 3, (1, 2, 5, 6)), *ends).astype(grid.dtype)
    padding = tuple(k // 2 for k in kernel) if padded else (0, 0)
    got = operations.avg_pool2d(
        dialect(name), q, grid, kernel=kernel, stride=stride, padding=padding, count_include_pad=include
    )
    assert got.dtype == grid.dtype
    for channel, i, j in itertools.product(range(2), range(got.shape[2]), range(got.shape[3])):
        top, left = i * stride[0] - padding[0], j * stride[1] - padding[1]
        inside = q[0, channel, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1]]
        positions = kernel[0] * kernel[1] if include else inside.size
        expected = rule(name, "average")([int(v) for v in inside.ravel()], whole(grid), positions)
        assert got[0, channel, i, j] == expected, (channel, i, j)


@clause("DIA-AVERAGE")
@pytest.mark.parametrize("name", NAMES)
@given(
    draws.seeds(), st.sampled_from(ENDS), st.tuples(st.integers(1, 7), st.integers(1, 9)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_means_are_what_the_dialect_says(name, generator, ends, image, size):
    grid = QParams(generator.choice([0.1, 1, 0.013]), int(generator.integers(ends[0], ends[1] + 1)), *ends)
    q = np.clip(generator.integers(*ends) + generator.integers(-2, 3, (1, 2, *image)), *ends).astype(grid.dtype)
    got = operations.adaptive_avg_pool2d(dialect(name), q, grid, size=size)
    assert got.dtype == operations.mean(dialect(name), q, grid, (2, 3)).dtype == grid.dtype
    for channel, i, j in itertools.product(range(2), range(size[0]), range(size[1])):
        (top, bottom), (left, right) = (
            (int(np.floor(k * n / parts)), int(np.ceil((k + 1) * n / parts)))
            for k, n, parts in zip((i, j), image, size)
        )
        inside = [int(v) for v in q[0, channel, top:bottom, left:right].ravel()]
        assert got[0, channel, i, j] == rule(name, "mean")(inside, whole(grid), len(inside))


@clause("DIA-FOLD")
@pytest.mark.parametrize("linear", [True, False])
@given(draws.seeds())
def test_folded_numbers_are_what_the_dialect_says(linear, generator):
    weight = generator.normal(size=(4, 3) if linear else (4, 3, 1, 1)).astype(np.float32)
    bias, gamma, beta, mean = (generator.normal(size=4).astype(np.float32) for _ in range(4))
    var = generator.uniform(0.01, 4, 4).astype(np.float32)
    folded, shift = operations.fold_batch_norm(dialect("fbgemm"), weight, bias, gamma, beta, mean, var, 1e-5)
    for j in range(4):
        expected = [
            spec.fold_float32(w, bias[j], gamma[j], beta[j], mean[j], var[j], 1e-5, linear) for w in weight[j].ravel()
        ]
        assert folded[j].ravel().tolist() == [w for w, _ in expected] and float(shift[j]) == expected[0][1]
    without = operations.fold_batch_norm(dialect("fbgemm"), weight, None, gamma, beta, mean, var, 1e-5)[1]
    zero = operations.fold_batch_norm(dialect("fbgemm"), weight, np.zeros(4, np.float32), gamma, beta, mean, var, 1e-5)[
        1
    ]
    assert without.tolist() == zero.tolist()
    with pytest.raises(ValueError, match="var"):
        operations.fold_batch_norm(dialect("fbgemm"), weight, bias, gamma, beta, mean, np.float32([-1, 1, 1, 1]), 1e-5)


def window(x, image, channels, top, left, kernel, dilation):
    """The codes of one window that lie inside the image, with the places of their weights: rows, then columns, then
    channels."""
    found = []
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        row, column = top + i * dilation[0], left + j * dilation[1]
        for k, channel in enumerate(channels):
            inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
            found.append((int(x[image, channel, row, column]) if inside else None, (k, i, j)))
    return found


def expected_code(name, x_q, x, weights, channels, w_scale, bias, y, per_channel, place, options):
    """The code of one output of a convolution by the chapter: window, accumulator, requantization."""
    zero, image, (top, left) = int(x.zero_point), place[0], place[1]
    even = spec.choice(name, "channels") == "even" and spec.choice(name, "accumulate") == "pairs"
    seen = window(x_q, image, channels, top, left, weights.shape[1:], options["dilation"])
    if even:
        pixels = [seen[k : k + len(channels)] for k in range(0, len(seen), len(channels))]
        if len(channels) % 2:
            pixels = [[*pixel, (pixel[0][0] and 0, None)] for pixel in pixels]
        seen = [entry for pixel in pixels for entry in pixel if pixel[0][0] is not None]
    x_codes = [zero if q is None else q for q, _ in seen]
    w_codes = [0 if at is None else int(weights[at]) for _, at in seen]
    accumulator = spec.ACCUMULATE[spec.choice(name, "accumulate")](x_codes, zero, w_codes, 0)
    lowest = int(y.zero_point) if options["relu"] else y.qmin
    requantize = spec.REQUANTIZE[spec.choice(name, "windows")]
    return requantize(
        accumulator, float(bias), x.scale, w_scale, y.scale, int(y.zero_point), lowest, y.qmax, per_channel
    )


@clause("DIA-WINDOWS", "DIA-ACCUMULATE")
@pytest.mark.parametrize("name", NAMES)
def test_a_convolution_is_what_the_dialect_says(name):
    generator = np.random.default_rng(NAMES.index(name))
    for call in itertools.islice(bulk("conv2d", seed=7), 12):
        (x_q, x, w_q, w, bias, y), options = call.arguments, call.options
        got = dialect(name).conv2d(x_q, x, w_q, w, bias, y, **options)
        assert got.dtype == y.dtype, name
        each = len(w_q) // options["groups"]
        scales, biases = np.broadcast_to(w.scale, len(w_q)), np.zeros(len(w_q)) if bias is None else bias
        for _ in range(25):
            image, channel, i, j = (int(generator.integers(n)) for n in got.shape)
            group, inputs = channel // each, w_q.shape[1]
            at = image, tuple(k * s - p for k, s, p in zip((i, j), options["stride"], options["padding"]))
            channels = range(group * inputs, (group + 1) * inputs)
            expected = expected_code(
                name, x_q, x, w_q[channel], channels, scales[channel], biases[channel], y, w.axis is not None, at,
                options,
            )
            assert got[image, channel, i, j] == expected


@clause("DIA-WINDOWS", "DIA-ACCUMULATE")
@given(
    draws.seeds(), st.sampled_from(NAMES), st.integers(1, 5), st.integers(1, 3), st.booleans(),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_where_no_pair_saturates_accumulators_are_chapter_3s(generator, name, inputs, groups, per_channel, padding):
    x = QParams(np.float32(0.5), int(generator.integers(128)), 0, 255)
    outputs = 2 * groups
    points = generator.integers(-128, 128, outputs) if per_channel else np.full(outputs, generator.integers(-128, 128))
    scale = np.full(outputs, 0.25, np.float32)
    w = QParams(scale, points, -128, 127, 0) if per_channel else QParams(scale[0], int(points[0]), -128, 127)
    x_q = generator.integers(0, 128, (1, inputs * groups, 3, 4)).astype(np.uint8)  # no pair reaches 2^15
    w_q = generator.integers(-128, 128, (outputs, inputs, 2, 3)).astype(np.int8)
    places = {"stride": (1, 1), "padding": tuple((p, p) for p in padding), "dilation": (1, 1)}
    places |= {"input_dilation": (1, 1), "groups": groups}
    got = dialect(name).accumulate_conv(x_q, x, w_q, w, **places)
    assert got.tolist() == integer.accumulate_conv(x_q, x.zero_point, w_q, w, **places).tolist()


@clause("DIA-WINDOWS")
def test_the_exact_dialects_convolution_is_chapter_3s():
    for signed in (False, True):
        for call in itertools.islice(
            (c for c in bulk("conv2d", count=30, seed=3) if (c.arguments[1].qmin < 0) == signed), 30
        ):
            (x_q, x, w_q, w, bias, y), options = call.arguments, call.options
            got = dialect("exact").conv2d(x_q, x, w_q, w, bias, y, **options)
            assert got.tolist() == integer.conv2d(x_q, x, w_q, w, bias, y, **options).tolist()


@clause("DIA-WINDOWS")
def test_shapes_that_make_no_convolution_are_refused():
    grid = QParams(1, 0, 0, 255)
    with pytest.raises(ValueError, match="do not make a convolution with 2 groups"):
        dialect("onnx").conv2d(
            np.zeros((1, 4, 3, 3), np.uint8), grid, np.zeros((2, 4, 1, 1), np.int8), QParams(1, 0, -128, 127), None,
            grid, groups=2,
        )
