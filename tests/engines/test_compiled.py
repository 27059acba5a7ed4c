"""The compiled engine gives the reference engine's bits, whatever the shapes, the threads and the CPU."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import programs
import strategies
from bench import peak
from evidence import clause
from networks import torch_threads
from quantspec import UnsupportedError
from quantspec.engines import registry
from quantspec.engines.compiled.engine import Compiled, Segment
from quantspec.engines.reference import Reference
from quantspec.ir.program import (
    Add,
    Bilinear,
    Dequantize,
    LinearDynamic,
    LinearWeight,
    Move,
    Mul,
    Program,
    Quantize,
    Ref,
)
from quantspec.kernels import channels, cpu, gemm


def check(program: Program, *inputs: np.ndarray) -> None:
    """Both engines' outputs are equal, and the kernels made them; also the second time, when everything is ready."""
    batch = {name: torch.from_numpy(x) for name, x in zip(program.inputs, inputs)}
    engine = Compiled(program)
    (segment,) = engine.parts
    assert isinstance(segment, Segment)
    expected = Reference(program)(batch)
    for _ in range(2):
        found = engine(batch)
        assert found.dtype == expected.dtype and found.shape == expected.shape and found.is_contiguous()
        assert torch.equal(found, expected), f"{int((found != expected).sum())} of {expected.numel()} outputs differ"
    assert len(segment.batched) == 1, "the kernels did not take these shapes"


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.integers(0, 40), st.integers(1, 200), st.integers(1, 150), st.integers(1, 70))
def test_linear_layers(r, rows, inputs, hidden, outputs):
    x = programs.grid(r)
    first = programs.linear(r, "a", "x.codes", x, inputs, hidden)
    second = programs.linear(r, "b", "a", first.y_qparams, hidden, outputs)
    check(programs.between(x, [first, second], second.y_qparams), programs.values(r, x, (rows, inputs)))


@given(strategies.seeds(), st.lists(st.integers(1, 4), min_size=0, max_size=3))
def test_rows_of_any_rank(r, lead):
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 12, 20)
    values = programs.values(r, x, (*lead, 12))
    check(programs.between(x, [step], step.y_qparams), values)
    check(programs.to_floats(x, programs.real(step)), values)


@given(strategies.seeds(), st.integers(0, 40), st.integers(1, 200), st.integers(1, 70))
def test_linear_layers_that_give_floats(r, rows, inputs, outputs):
    x = programs.grid(r)
    layer = programs.real(programs.linear(r, "a", "x.codes", x, inputs, outputs))
    check(programs.to_floats(x, layer), programs.values(r, x, (rows, inputs)))


@clause("STA-INSTRUCTIONS")
@given(strategies.seeds(), st.data())
def test_convolutions(r, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    groups, positions = data.draw(st.sampled_from([1, 1, 1, 2, 3])), data.draw(st.sampled_from([2, 2, 3, 1]))
    # In three axes a layer whose channels are each on their own has no kernel.
    channels, outputs = groups * draw(1 + (positions == 3), 20), groups * draw(1, 30)
    kernel, stride, dilation = (tuple(draw(1, high) for _ in range(positions)) for high in (4, 3, 2))
    padding = tuple((draw(-1, 3), draw(-1, 3)) for _ in range(positions))
    needs = (max(d * (k - 1) + 1 - b - a, 1, 1 - b, 1 - a) for k, d, (b, a) in zip(kernel, dilation, padding))
    lengths = [need + draw(0, 8) for need in needs]
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, channels, outputs, kernel, stride, padding, dilation, groups)
    values = programs.values(r, x, (draw(1, 3), channels, *lengths))
    check(programs.between(x, [step], step.y_qparams), values)
    check(programs.to_floats(x, programs.real(step)), values)


@given(strategies.seeds(), st.data())
def test_depthwise_convolutions(r, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    # Few channels, where a block holds several positions, and many.
    channels = data.draw(st.sampled_from([2, 4, 16, 32, 64]) | st.integers(2, 140))
    size = data.draw(st.sampled_from([1, 2, 3, 3, 5]))
    kernel, stride, dilation = (size, size), (draw(1, 2),) * 2, (draw(1, 2),) * 2
    padding = ((size // 2, size // 2),) * 2
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, channels, channels, kernel, stride, padding, dilation, channels)
    side = dilation[0] * (size - 1) + 1 + draw(0, 6)
    values = programs.values(r, x, (draw(1, 2), channels, side, side + 1))
    check(programs.between(x, [step], step.y_qparams), values)
    check(programs.to_floats(x, programs.real(step)), values)


@given(
    strategies.seeds(), st.integers(1, 40), st.sampled_from([32, 64, 96, 48, 40]), st.sampled_from([1, 2, 3]),
    st.booleans(),
)  # fmt: skip
def test_floats_that_go_past_the_caches(r, rows, outputs, groups, reduce_range):
    # Whole lines of the cache only: neither parts of panels nor floats that begin within a line.
    with mock.patch.object(gemm, "PAST_BYTES", 1):
        x = programs.grid(r)
        layer = programs.real(programs.linear(r, "a", "x.codes", x, 30, outputs))
        check(programs.to_floats(x, layer), programs.values(r, x, (rows, 30)))
        place = (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), groups
        layer = programs.real(programs.conv(r, "a", "x.codes", x, 4 * groups, outputs * groups, *place))
        check(programs.to_floats(x, layer), programs.values(r, x, (1, 4 * groups, rows, 3)))
        program = programs.dynamic_chain(r, [30, outputs], rows=False, reduce_range=reduce_range)
        batch = {"x": torch.from_numpy(r.normal(size=(rows, 1, 30)).astype(np.float32))}
        program = replace(program, callables=RELU)
        assert torch.equal(Compiled(program)(batch), Reference(program)(batch))


@given(strategies.seeds(), st.data())
def test_transposed_convolutions(r, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    # Depthwise ones too; kernels of fewer places than there are phases; axes that are not spread beside axes that are.
    kind = data.draw(st.sampled_from(["one group", "groups", "depthwise"]))
    positions = data.draw(st.sampled_from([2, 2, 3, 1]))
    groups = {"one group": 1, "groups": 3, "depthwise": draw(2, 70) if positions < 3 else 1}[kind]
    channels, outputs = (groups, groups) if kind == "depthwise" else (groups * draw(2, 20), groups * draw(1, 30))
    kernel, spread, dilation = (tuple(draw(1, high) for _ in range(positions)) for high in (5, 3, 3))
    stride = tuple(draw(1, 2) if s == 1 else 1 for s in spread)
    padding = tuple((draw(-1, 5), draw(-1, 5)) for _ in range(positions))
    # As many as a window takes, and as are left where padding cuts off.
    axes = zip(kernel, dilation, padding)
    needs = [max(d * (k - 1) - b - a, -min(b, 0) - min(a, 0), 0) for k, d, (b, a) in axes]
    lengths = [1 + -(-need // s) + draw(0, 4) for need, s in zip(needs, spread)]
    x = programs.grid(r)
    step = programs.conv(r, "a", "x.codes", x, channels, outputs, kernel, stride, padding, dilation, groups, spread)
    values = programs.values(r, x, (draw(1, 3), channels, *lengths))
    check(programs.between(x, [step], step.y_qparams), values)
    check(programs.to_floats(x, programs.real(step)), values)


@given(strategies.seeds(), st.integers(1, 40), st.booleans(), st.integers(1, 9))
def test_sums_within_convolutions(r, channels, first, side):
    program = programs.residual(r, channels, first)
    check(program, programs.values(r, program.steps[0].qparams, (2, channels, side, side + 2)))


@clause("STA-RUN")
@given(strategies.seeds(), st.integers(1, 40), st.booleans(), st.integers(1, 9))
def test_sums_of_convolutions_that_others_read_too(r, channels, first, side):
    program = programs.residual(r, channels, first)
    grid = next(step.y_qparams for step in program.steps if step.name == "right")
    turned = Move("turned", "method", "flip", (Ref("right"), 3), {}, grid)  # it has no kernel
    steps = (*program.steps, turned, Dequantize("second", "turned", grid))
    program = replace(program, steps=steps, output=(Ref("out"), Ref("second")))
    values = programs.values(r, program.steps[0].qparams, (2, channels, side, side + 2))
    batch = {"x": torch.from_numpy(values)}
    assert all(map(torch.equal, Compiled(program)(batch), Reference(program)(batch)))


@given(
    strategies.seeds(), st.sampled_from([Add, Mul]), st.integers(1, 40),
    st.sampled_from(["equal", "column", "line", "position"]),
)  # fmt: skip
def test_pairs(r, kind, channels, other):
    program = programs.pair(r, kind)
    shape = (2, channels, 5, 6)
    columns, lines = other in ("column", "position"), other in ("line", "position")
    small = (2, channels, 1 if lines else 5, 1 if columns else 6)
    if r.random() < 0.3:  # of three axes
        shape, small = (*shape[:2], 4, *shape[2:]), (*small[:2], 1 if other == "position" else 4, *small[2:])
    shapes = (shape, small) if r.random() < 0.5 else (small, shape)
    check(program, *(programs.values(r, step.qparams, s) for step, s in zip(program.steps, shapes)))


@given(strategies.seeds(), st.sampled_from([Add, Mul]), st.integers(1, 100))
def test_pairs_of_rows(r, kind, width):
    program = programs.pair(r, kind)
    check(program, *(programs.values(r, step.qparams, (7, width)) for step in program.steps[:2]))


def test_every_pair_of_codes():
    r = np.random.default_rng(5)
    for kind in (Add, Mul) * 10:
        program = programs.pair(r, kind)
        codes = np.stack(np.meshgrid(*[np.arange(256)] * 2, indexing="ij"))
        check(program, *(step.qparams.dequantize(c.astype(np.uint8)) for step, c in zip(program.steps, codes)))


@given(
    strategies.seeds(), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20),
    st.sampled_from([(3, 4), (3, 4), (2, 3, 4), (2, 1, 1)]),
)  # fmt: skip
def test_concatenation(r, a, b, c, sizes):
    program = programs.joined(r)
    check(program, *(programs.values(r, step.qparams, (2, n, *sizes)) for step, n in zip(program.steps, (a, b, c))))


@pytest.mark.parametrize("which", range(6))
@given(r=strategies.seeds(), channels=st.integers(1, 40), sides=st.tuples(st.integers(5, 9), st.integers(5, 9)))
def test_steps_that_keep_the_grid(which, r, channels, sides):
    x = programs.grid(r)
    step = programs.pools(r, x, 2)[which]
    check(programs.between(x, [step], x), programs.values(r, x, (2, channels, *sides)))


@pytest.mark.parametrize("which", range(6))
@given(
    r=strategies.seeds(), channels=st.integers(1, 20),
    sides=st.tuples(st.integers(5, 6), st.integers(5, 7), st.integers(5, 7)),
)  # fmt: skip
def test_steps_over_three_axes_of_positions(which, r, channels, sides):
    x = programs.grid(r)
    check(programs.between(x, [programs.pools(r, x, 3)[which]], x), programs.values(r, x, (2, channels, *sides)))


@given(strategies.seeds(), st.integers(1, 3), st.sampled_from([(4, 6, 7), (1, 5, 5), (5, 1, 1)]), st.integers(1, 2))
def test_convolutions_after_one_another_over_three_axes(r, images, sides, reach):
    # Margins on every side, between layers, behind a sum and before rows.
    x, place = programs.grid(r), ((3, 3, 3), (1, 1, 1), ((1, 1),) * 3, (1, 1, 1), 1)
    first = programs.conv(r, "a", "x.codes", x, 3, 17, *place)
    second = programs.conv(r, "b", "a", first.y_qparams, 17, 17, *place)
    total = Add("sum", "a", "b", first.y_qparams, second.y_qparams, programs.grid(r), bool(r.random() < 0.5))
    third = programs.conv(r, "c", "sum", total.y_qparams, 17, 5, (2, 2, 2), (2, 2, 2), ((1, 1),) * 3, (reach,) * 3, 1)
    steps = [first, second, total, third, Move("rows", "function", "torch.flatten", (Ref("c"), 1), {}, third.y_qparams)]
    if min(sides) + 2 > reach:
        check(programs.between(x, steps, third.y_qparams), programs.values(r, x, (images, 3, *sides)))


@given(strategies.seeds(), st.integers(1, 3), st.sampled_from([(3, 4, 5), (1, 4, 5), (4, 5), (5,)]))
def test_codes_from_and_to_steps_without_kernels(r, images, sides):
    # What rearranges codes is run as the reference runs it, between two compiled parts.
    x, n = programs.grid(r), len(sides)
    place = (3,) * n, (1,) * n, ((1, 1),) * n, (1,) * n, 1
    first = programs.conv(r, "a", "x.codes", x, 3, 6, *place)
    move = Move("flipped", "function", "torch.flip", (Ref("a"), [2]), {}, first.y_qparams)
    second = programs.conv(r, "b", "flipped", first.y_qparams, 6, 5, *place)
    program = programs.between(x, [first, move, second], second.y_qparams)
    program = replace(program, callables={("function", "torch.flip"): torch.flip})
    engine, batch = Compiled(program), {"x": torch.from_numpy(programs.values(r, x, (images, 3, *sides)))}
    assert [type(part).__name__ for part in engine.parts] == ["Segment", "Move", "Segment"]
    assert torch.equal(engine(batch), Reference(program)(batch))
    assert all(part.batched for part in engine.parts if isinstance(part, Segment))


@pytest.mark.parametrize("which", range(3))
@given(r=strategies.seeds(), length=st.integers(5, 9))
def test_steps_over_one_axis_of_positions(which, r, length):
    x = programs.grid(r)
    check(programs.between(x, [programs.pools(r, x, 1)[which]], x), programs.values(r, x, (2, 5, length)))


@given(strategies.seeds(), st.sampled_from([(7, 33), (2, 5, 3, 4), (1, 3, 17, 9), (2, 5, 3, 2, 4)]))
def test_tables(r, shape):
    x = programs.grid(r)
    step = programs.table(r, x)
    check(programs.between(x, [step], step.y_qparams), programs.values(r, x, shape))


@given(strategies.seeds(), st.sampled_from([1, 3, 5, 16, 37]), st.integers(0, 5))
def test_bilinear(r, channels, how):
    x = programs.grid(r)
    shape = (int(r.integers(1, 3)), channels, *(int(n) for n in r.integers(1, 8, 2)))
    size = tuple(int(n) for n in r.integers(1, 14, 2))
    factors = tuple(float(f) for f in r.choice([1.0, 1.5, 2.0, 3.0, 1.7], 2))
    form = [(None, size, None, False, False), (None, size, None, False, True), (None, None, factors, True, False),
            (None, None, factors, False, False), (None, None, factors, True, True)]  # fmt: skip
    # Behind a convolution that reads beyond the edges of what is interpolated, and of what it makes.
    first = programs.conv(r, "z", "x.codes", x, channels, channels, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    given = form[how] if how < 5 else ("x.codes", None, None, False, False)
    step = Bilinear("y", "z", first.y_qparams, *given)
    last = programs.conv(r, "last", "y", first.y_qparams, channels, 2, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    check(programs.between(x, [first, step, last], last.y_qparams), programs.values(r, x, shape))


SHAPES_OF_CHANNELS = [(7, 33), (2, 5, 17), (2, 5, 3, 4), (1, 3, 17, 9), (2, 16, 5, 5), (1, 70, 2, 3), (2, 5, 3, 2, 4)]


@pytest.mark.parametrize("kind", ["slopes", "any"])
@given(r=strategies.seeds(), shape=st.sampled_from(SHAPES_OF_CHANNELS))
def test_tables_of_channels(kind, r, shape):
    x = programs.grid(r)
    step = programs.tables(r, x, shape[1], kind)
    found = channels.slopes(step.table, *((int(g.zero_point), g.qmin, g.qmax) for g in (x, step.y_qparams)))
    assert kind == "any" or found is not None, "two slopes are not taken for such"
    # A pooling of one position makes codes lie as images do.
    (first, *_), wide = programs.pools(r, x, len(shape) - 2 or 1), len(shape) > 2
    one = replace(first, name="z", kernel=(1,) * len(first.kernel), stride=(1,) * len(first.kernel),
                  padding=(0,) * len(first.kernel), dilation=(1,) * len(first.kernel), ceil_mode=False)  # fmt: skip
    steps = [one, replace(step, x="z")] if wide else [step]
    check(programs.between(x, steps, step.y_qparams), programs.values(r, x, shape))


def test_tables_of_channels_that_are_no_rows_or_images_are_the_references():
    r = np.random.default_rng(0)
    x = programs.grid(r)
    layer = programs.linear(r, "first", "x.codes", x, 4, 3)
    step = replace(programs.tables(r, layer.y_qparams, 3, "slopes"), x="first")
    program = programs.between(x, [layer, step], step.y_qparams)
    values = torch.from_numpy(programs.values(r, x, (2, 3, 4)))
    assert torch.equal(Compiled(program)({"x": values}), Reference(program)({"x": values}))


@given(strategies.seeds(), st.floats(-37, 35.6))
def test_quantize_with_scales_of_any_size(r, exponent):
    # Scales without a reciprocal in float32, or next to that, are divided by.
    from quantspec.ir.program import Dequantize, Quantize, Ref
    from quantspec.numerics.affine import QParams

    g = QParams(np.float32(10.0**exponent * 1.2345), int(r.integers(0, 256)), 0, 255)
    program = Program("onnx", ("x",), {}, (Quantize("q", "x", g), Dequantize("out", "q", g)), Ref("out"))
    with np.errstate(over="ignore"):
        check(program, programs.values(r, g, (3, 130)))


RELU = {("function", "torch.relu"): torch.relu, ("function", "torch.flatten"): torch.flatten}


@given(
    strategies.seeds(), st.lists(st.integers(1, 90), min_size=2, max_size=4), st.integers(0, 20), st.booleans(),
    st.booleans(),
)  # fmt: skip
def test_dynamic_layers(r, widths, samples, rows, reduce_range):
    program = programs.dynamic_chain(r, widths, rows=rows, reduce_range=reduce_range)
    engine = Compiled(replace(program, callables=RELU))
    (segment,) = engine.parts
    x = r.normal(size=(samples, 1, widths[0])).astype(np.float32) * np.float32(10.0 ** r.integers(-20, 10))
    x[: samples // 2] = 0 if r.random() < 0.2 else x[: samples // 2]
    batch = {"x": torch.from_numpy(x)}
    expected = Reference(replace(program, callables=RELU))(batch)
    for _ in range(2):
        assert torch.equal(engine(batch), expected)
    assert len(segment.batched) == 1


@given(strategies.seeds(), st.lists(st.integers(1, 90), min_size=3, max_size=4), st.integers(1, 20), st.booleans())
def test_dynamic_layers_whose_outputs_are_the_networks_too(r, widths, samples, rows):
    program = replace(programs.dynamic_chain(r, widths, rows=rows, reduce_range=False), callables=RELU)
    names = [step.name for step in program.steps if isinstance(step, LinearDynamic) or step.name.startswith("relu")]
    program = replace(program, output=tuple(map(Ref, r.permutation(names[1:]).tolist())))
    batch = {"x": torch.from_numpy(r.normal(size=(samples, 1, widths[0])).astype(np.float32))}
    assert all(map(torch.equal, Compiled(program)(batch), Reference(program)(batch)))


@given(strategies.seeds(), st.integers(1, 20), st.integers(1, 60), st.booleans(), st.booleans())
def test_layers_of_floats_that_were_codes(r, samples, width, direct, rows):
    x = programs.grid(r)
    layer = programs.linear(r, "codes", "q", x, width, 7)
    steps = [Quantize("q", "x", x), programs.real(layer) if direct else layer]
    steps += [] if direct else [Dequantize("floats", "codes", layer.y_qparams)]
    source = steps[-1].name
    codes, grid = programs.weights(r, (5, 7))
    steps += [
        programs.dynamic(r, "dynamic", source, 7, 6, rows=rows, reduce_range=False),
        LinearWeight("weights", source, "weights", codes, None, grid),
    ]
    program = Program("onnx", ("x",), {}, tuple(steps), (Ref("dynamic"), Ref("weights")))
    batch = {"x": torch.from_numpy(programs.values(r, x, (samples, width)))}
    assert all(map(torch.equal, Compiled(program)(batch), Reference(program)(batch)))


@pytest.mark.parametrize("rows", [False, True])
def test_ranges_that_make_no_grid_are_refused_as_the_reference_refuses_them(rows):
    program = programs.dynamic_chain(np.random.default_rng(0), [40, 30], rows=rows, reduce_range=False)
    x = torch.ones(7, 40)
    x[5, 33] = 3e38
    x[5, 2] = -3e38
    with np.errstate(over="ignore"):  # the range is too wide for a float32
        with pytest.raises(ValueError) as expected:
            Reference(replace(program, callables=RELU))({"x": x})
        with pytest.raises(ValueError) as found:
            Compiled(replace(program, callables=RELU))({"x": x})
    assert str(found.value) == str(expected.value)


def two_layers(inputs: int = 50):
    r = np.random.default_rng(0)
    x = programs.grid(r)
    first = programs.linear(r, "a", "x.codes", x, inputs, 70)
    second = programs.linear(r, "b", "a", first.y_qparams, 70, 10)
    return programs.between(x, [first, second], second.y_qparams), x, r


@pytest.mark.filterwarnings("ignore:values are NaN")
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite(value, rows):
    program = programs.dynamic_chain(np.random.default_rng(0), [40, 30, 9], rows=rows, reduce_range=False)
    program, x = replace(program, callables=RELU), torch.ones(7, 40)
    x[5, 33], x[6, 2] = value, -abs(value)
    found, expected = (run({"x": x}).numpy() for run in (Compiled(program), Reference(program)))
    assert np.array_equal(found, expected, equal_nan=True) and np.isfinite(found[:5]).all()


@pytest.mark.filterwarnings("ignore:values are NaN")
@given(strategies.seeds(), st.sampled_from(["residual", "pair", "joined", "pools", "floats"]))
def test_nan_in_programs_of_every_kind(r, kind):
    x = programs.grid(r)
    if kind == "pools":
        every = [programs.between(x, [step], x) for step in programs.pools(r, x, 2)]
    elif kind == "floats":
        layer = programs.conv(r, "y", "x.codes", x, 4, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2)
        every = [programs.to_floats(x, programs.real(layer))]
    else:
        every = [{"residual": lambda: programs.residual(r, 4, True), "joined": lambda: programs.joined(r),
                  "pair": lambda: programs.pair(r, Add)}[kind]()]  # fmt: skip
    for program in every:
        batch = {name: torch.from_numpy(programs.values(r, x, (3, 4, 8, 8))) for name in program.inputs}
        clean = Reference(program)(batch)
        place = tuple(int(r.integers(n)) for n in (3, 4, 8, 8))
        batch[program.inputs[0]][place] = float("nan")
        found, expected = (run(batch).numpy() for run in (Compiled(program), Reference(program)))
        assert np.array_equal(found, expected, equal_nan=True)
        assert np.isnan(found).any() or kind == "pools"  # whose windows may lie apart
        assert np.array_equal(found[~np.isnan(found)], clean.numpy()[~np.isnan(found)])


@pytest.mark.filterwarnings("ignore:values are NaN")
@pytest.mark.parametrize("value", [np.nan, -np.nan])
@pytest.mark.parametrize("place", [0, 17, 49])
def test_nan_is_found_wherever_it_stands(value, place):
    program, x, r = two_layers()
    engine, clean = Compiled(program), torch.from_numpy(programs.values(r, x, (5, 50)))
    expected = engine({"x": clean})
    spoiled = clean.clone()
    spoiled[3, place] = value
    for run in (engine, Reference(program)):
        found = run({"x": spoiled})
        assert found[3].isnan().all()
        assert torch.equal(found[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])
    assert torch.equal(engine({"x": clean}), expected)


def test_inputs_that_are_not_contiguous_or_of_another_type():
    program, x, r = two_layers()
    engine = Compiled(program)
    batch = torch.from_numpy(programs.values(r, x, (6, 50)))
    expected = engine({"x": batch})
    wide = torch.zeros(12, 100)
    wide[::2, ::2] = batch
    assert torch.equal(engine({"x": wide[::2, ::2]}), expected)
    assert torch.equal(engine({"x": batch.T.contiguous().T}), expected)
    assert torch.equal(engine({"x": batch.double()}), expected)
    assert torch.equal(engine({"x": batch.clone().requires_grad_()}), expected)
    assert not engine({"x": batch.clone().requires_grad_()}).requires_grad
    # Twice, since the engine remembers the shapes that it has seen.
    for _ in range(2):
        assert torch.equal(engine({"x": torch._neg_view(-batch)}), expected)
        for other in (batch.to_sparse(), batch.to_mkldnn(), batch.to("meta"), batch.numpy()):
            with pytest.raises(TypeError, match="x: expected a dense tensor on the CPU"):
                engine({"x": other})
    with pytest.raises(TypeError, match="float32"):
        engine({"x": batch.double() * (1 + 1e-12)})


def test_inputs_that_do_not_fit():
    program, x, r = two_layers()
    engine = Compiled(program)
    for batch in ({"x": torch.zeros(3, 49)}, {"y": torch.zeros(3, 50)}, {}, {"x": torch.zeros(())}):
        with pytest.raises(ValueError) as found:
            engine(batch)
        with pytest.raises(ValueError) as expected:
            Reference(program)(batch)
        assert str(found.value) == str(expected.value)


def test_a_layer_whose_scales_are_refused_is_refused_when_it_is_run():
    from dataclasses import replace

    from quantspec.numerics.affine import QParams

    program, x, r = two_layers()
    tiny = QParams(np.float32(2.0**-126), 0, 0, 255)
    steps = [replace(step, x_qparams=tiny) if step.name == "b" else step for step in program.steps]
    program = replace(program, steps=tuple(steps))
    batch = {"x": torch.from_numpy(programs.values(r, x, (5, 50)))}
    with pytest.raises((ValueError, UnsupportedError)) as expected:
        Reference(program)(batch)
    with pytest.raises((ValueError, UnsupportedError)) as found:
        Compiled(program)(batch)
    assert str(found.value) == str(expected.value)


def test_inputs_are_not_written_to_and_outputs_are_new():
    program, x, r = two_layers()
    engine = Compiled(program)
    batch = torch.from_numpy(programs.values(r, x, (6, 50)))
    before = batch.clone()
    first = engine({"x": batch})
    kept = first.clone()
    engine({"x": batch.roll(1, 0)})
    assert torch.equal(batch, before) and torch.equal(first, kept)


@pytest.mark.parametrize("rows", [1, 13, 5000])
def test_concurrent_callers(rows):
    program, x, r = two_layers()
    engine = Compiled(program)
    batches = [torch.from_numpy(programs.values(r, x, (rows, 50))) for _ in range(4)]
    expected = [Reference(program)({"x": batch}) for batch in batches]

    def call(i):
        return torch.equal(engine({"x": batches[i % 4]}), expected[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(100)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_slices_change_nothing(threads):
    r = np.random.default_rng(1)
    x = programs.grid(r)
    step = programs.linear(r, "a", "x.codes", x, 400, 300)
    program = programs.between(x, [step], step.y_qparams)
    with torch_threads(threads):
        check(program, programs.values(r, x, (1237, 400)))


def test_many_shapes_do_not_pile_up():
    program, x, r = two_layers()
    engine = Compiled(program)
    for rows in range(100):
        engine({"x": torch.zeros(rows, 50)})
    assert len(engine.parts[0].batched) <= 16 and len(engine.local.__dict__) <= 16


def test_other_dialects_are_refused():
    program, _, _ = two_layers()
    other = copy.copy(program)
    object.__setattr__(other, "dialect", "fbgemm")
    with pytest.raises(UnsupportedError, match="dialect"):
        registry.engine("compiled")(other)


def test_the_peak_is_above_what_a_product_reaches(request):
    if request.config.getoption("bounds"):
        pytest.skip("kernels that check what they touch take longer")
    products = peak.macs_per_second(0.05)
    assert 1e9 < products < 1e13 if cpu.target().dot_lanes else products == 0
    assert 1e8 < peak.copy_bytes_per_second(2**20, 0.05) < 1e13
