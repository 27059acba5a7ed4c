"""The steps that a calibrated graph becomes: their names, what they read and hold, and what is refused while they are
made."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from quantspec.ir import float_graph, program
from quantspec.ir.program import Call, Program, Ref
from quantspec.ir.traverse import reads, refs
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.ptq import conversion
from quantspec.ptq.options import checked
from told import exactly

GRID = QParams(np.float32(0.5), 100, 0, 255)
EXACT = dialect("exact")


def kinds(q, kind):
    return [step for step in q.program.steps if isinstance(step, kind)]


class Pools(nn.Module):
    """All kinds of pooling, of values that have codes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        y = F.max_pool2d(self.first(x), 2)
        y = F.adaptive_avg_pool2d(F.avg_pool2d(y, 2), (2, 1))
        return self.last(y.mean((2, 3)).reshape(x.shape[0], -1))


class Mixed(nn.Module):
    """Layers, a sum, a product, a join, a function and an interpolation, in codes and in float."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        y = torch.cat([F.relu(a + b), a * b.sigmoid()], 1)
        y = F.interpolate(y, size=x.shape[2:], mode="bilinear")
        left, right = self.last(y).chunk(2, 1)
        return {"left": left.cos(), "right": [right, a]}


@pytest.mark.parametrize("build", [Pools, Mixed], ids=["pools", "mixed"])
@pytest.mark.parametrize("chosen", ["onnx", "qnnpack", "exact"])
def test_every_step_has_a_name_of_its_own_and_reads_what_was_made_before(build, chosen):
    model, x = networks.seeded(build), networks.inputs(2, (2, 8, 8))
    q = qs.quantize(model, [x], dialect=chosen)
    made = list(q.program.inputs)
    for step in q.program.steps:
        assert all(name in made for name in reads(step))
        made.append(step.name)
    assert all(name in made for name in refs(q.program.output))
    assert all(type(name) is str for name in made) and len(set(made)) == len(made)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_table_of_rows_has_a_scale_for_each_row(dynamic, per_channel):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(self.table(x))

    model, x = networks.seeded(Model), torch.tensor([[0, 1, 4]])
    options = {"per_channel": per_channel}
    q = qs.quantize_dynamic(model, example=x, **options) if dynamic else qs.quantize(model, [x], **options)
    (step,) = kinds(q, program.Embedding)
    largest = model.table.weight.detach().numpy()
    assert step.layer == "table" and step.name in {name for other in q.program.steps for name in reads(other)}
    assert step.w_qparams.axis == 0 and step.w_qparams.scale.shape == (5,)
    # Half a step of the row's own grid.
    assert (np.abs(step.w_qparams.dequantize(step.weight) - largest) <= step.w_qparams.scale[:, None] / 2 * 1.001).all()


class Recurrent(nn.Module):
    """A recurrent layer from a state that is computed."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.state, self.layer = nn.Linear(3, 4), kind(3, 4)

    def forward(self, x):
        h = self.state(x[:1])
        return self.layer(x, (h, h * 2) if isinstance(self.layer, nn.LSTM) else h)[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_a_recurrent_layer_begins_from_the_state_that_the_model_computes(kind, reduce_range):
    model, x = networks.seeded(lambda: Recurrent(kind)), networks.inputs(5, (2, 3))
    q = qs.quantize(model, [x], reduce_range=reduce_range)
    (step,) = kinds(q, program.Recurrent)
    assert step.layer == "layer" and step.reduce_range is reduce_range and step.single is False
    made = {step.name for step in q.program.steps}
    assert step.state is not None and all(name in made for name in refs(step.state))
    with torch.no_grad():
        assert networks.far(q(x), model(x)) < 0.05
        still = kind(3, 4).eval()
        still.load_state_dict(model.layer.state_dict())
        assert networks.far(still(x)[0], model(x)) > 0.1


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_is_a_recurrent_layer_of_one_step(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = kind(3, 4)

        def forward(self, x):
            y = self.cell(x)
            return y[0] if isinstance(y, tuple) else y

    model, x = networks.seeded(Model), networks.inputs(5, (3,))
    q = qs.quantize(model, [x])
    (step,) = kinds(q, program.Recurrent)
    assert step.single is True
    with torch.no_grad():
        assert networks.far(q(x), model(x)) < 0.05


@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
def test_weights_of_a_recurrent_layer_that_are_not_finite_are_refused_with_its_name(weight):
    model = networks.seeded(Recurrent)
    with torch.no_grad():
        getattr(model.layer, weight)[:] = float("inf")
    got = "got a minimum of inf and a maximum of inf"
    with pytest.raises(ValueError, match=exactly(f"model: weight of layer 'layer': x: expected finite values, {got}")):
        qs.quantize_dynamic(model)


def test_a_table_whose_rows_are_not_finite_is_refused_with_its_name():
    model = networks.seeded(lambda: nn.Sequential(nn.Embedding(5, 4)))
    with torch.no_grad():
        model[0].weight[1, 1] = float("nan")
    got = "got a minimum of nan and a maximum of nan"
    with pytest.raises(ValueError, match=exactly(f"model: weight of layer '0': x: expected finite values, {got}")):
        qs.quantize_dynamic(model)


def test_a_length_that_codes_are_rearranged_by_is_no_code():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(3, 2)

        def forward(self, x, rows):
            return self.last(self.first(x).reshape(rows * 2, -1))

    model, x = networks.seeded(Model), networks.inputs(4)
    q = qs.quantize(model, [(x, 4)])
    with torch.no_grad():
        assert q(x, 4).shape == model(x, 4).shape == (8, 2) and networks.far(q(x, 4), model(x, 4)) < 0.1


def test_a_size_may_be_an_output():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x):
            y = self.layer(x)
            return y, y.shape[1], x.size(0)

    q = qs.quantize(networks.seeded(Model), [networks.inputs(5)])
    assert q(networks.inputs(3))[1:] == (6, 3)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_factor_for_each_channel_has_a_scale_of_its_own_in_any_case(per_channel):
    options = {"per_channel": per_channel, "reduce_range": None, "dialect": "exact", "bits": 6, "engine": "auto"}
    weights = conversion.Weights(checked(**options))
    for shape in ((4, 1, 1), (4, 1, 1, 1)):
        codes, grid = weights.codes(np.float32([1, 2, 4, 8]).reshape(shape), "any")
        assert grid.axis == 0 and codes.reshape(-1).tolist() == [31] * 4 and (grid.qmin, grid.qmax) == (-32, 31)
    for shape in ((4, 1), (2, 2, 1)):
        assert (weights.codes(np.ones(shape, np.float32), "any")[1].axis == 0) is per_channel


def test_a_weight_that_a_step_still_holds_is_quantized_once():
    weights = conversion.Weights(checked(per_channel=True, reduce_range=None, dialect="exact", bits=8, engine="auto"))
    weight = np.ones((2, 3), np.float32)
    codes, grid = weights.codes(weight, "a")
    again, same = weights.codes(weight, "b")
    assert again is codes and same is grid and weights.codes(weight.copy(), "c")[0] is not codes


def size(name, x="x"):
    return Call(name, "function", "builtins.getattr", (Ref(x), "shape"), {}, "")


def item(name, x, index=0):
    return Call(name, "function", "operator.getitem", (Ref(x), index), {}, "")


def kept(*steps, output="y"):
    return [step.name for step in conversion.without_unread_sizes(list(steps), Ref(output))]


NEGATED = Call("y", "method", "neg", (Ref("x"),), {}, "")


def test_sizes_that_nobody_reads_are_left_out_with_what_was_taken_from_them():
    length = Call("n", "method", "size", (Ref("x"), 0), {}, "")
    assert kept(size("s"), NEGATED) == kept(length, NEGATED) == kept(size("s"), item("i", "s"), NEGATED) == ["y"]
    assert kept(size("s"), item("i", "s"), item("j", "i"), NEGATED) == ["y"]


def test_sizes_that_something_reads_stay():
    reader = Call("y", "method", "reshape", (Ref("x"), Ref("i")), {}, "")
    assert kept(size("s"), item("i", "s"), item("j", "s", 1), reader) == ["s", "i", "y"]
    assert kept(size("s"), item("i", "s"), NEGATED, output="i") == ["s", "i", "y"]


def test_what_tells_no_size_stays_though_nobody_reads_it():
    other = Call("o", "function", "builtins.getattr", (Ref("x"), "dtype"), {}, "")
    for step in (other, item("o", "x"), Call("o", "method", "neg", (Ref("x"),), {}, "")):
        assert kept(step, NEGATED) == ["o", "y"]
    constant = Call("o", "function", "operator.getitem", ([1, 2], 0), {}, "")
    assert kept(size("s"), constant, NEGATED) == ["o", "y"]


def moved(name, target, *args, x="x"):
    return float_graph.Move(name, x, Call(name, "method", target, (Ref(x), *args), {}, ""))


def test_what_gives_several_values_is_told_from_what_gives_one():
    several, one = moved("parts", "chunk", 2), moved("flat", "flatten")
    producers = {"parts": several, "flat": one}
    taken = {
        "a part": (moved("p", "operator.getitem", 0, x="parts"), False),
        "several parts": (moved("p", "operator.getitem", slice(1, None), x="parts"), True),
        "rows of one value": (moved("p", "operator.getitem", slice(1, None), x="flat"), False),
        "rows of the input": (moved("p", "operator.getitem", slice(1, None), x="input"), False),
        "parts": (several, True), "one value": (one, False), "nothing": (None, False),
        "a reversal": (moved("p", "flip", slice(1, None), x="parts"), False),
        "another node": (float_graph.Relu("r", "parts", Call("r", "method", "relu", (Ref("parts"),), {}, "")), False),
    }  # fmt: skip
    assert {name: conversion.splits(node, producers) for name, (node, _) in taken.items()} == {
        name: expected for name, (_, expected) in taken.items()
    }


def elementwise(target, channels=None, kind="function"):
    return float_graph.Elementwise("y", "x", target, Call("y", kind, target, (Ref("x"),), {}, ""), channels=channels)


@given(st.integers(0, 127), st.sampled_from([(0, 255), (0, 127)]))
def test_a_table_has_the_code_of_the_function_for_each_code_and_the_last_one_beyond_them(point, ends):
    x, y = QParams(np.float32(0.037), point, *ends), QParams(np.float32(2.0**-8), 128, 0, 255)
    codes = conversion.table(elementwise("torch.tanh"), {("function", "torch.tanh"): torch.tanh}, x, y, EXACT)
    assert codes.shape == (256,) and codes.dtype == np.uint8
    for code in range(256):
        real = float(np.float32(0.037)) * (min(code, ends[1]) - point)
        value = np.tanh(real) * 2**8 + 128
        expected = min(max(value, 0), 255)
        # The function is rounded to float32 before, which may move a tie.
        assert abs(int(codes[code]) - expected) <= 0.5 + 2**-14


def test_a_module_of_a_table_stays_as_it_is():
    module = nn.PReLU(3).eval()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 0.5, 1.0]))
    codes = conversion.table(elementwise("m", 3, "module"), {("module", "m"): module}, GRID, GRID, EXACT)
    assert codes.shape == (3, 256) and module.weight.dtype == torch.float32
    assert codes[0].tolist() == [max(code, 100) for code in range(256)]
    assert codes[2].tolist() == list(range(256))


def test_a_function_that_is_not_defined_everywhere_is_refused_by_name():
    message = "model: torch.log at 'y' is NaN for some of the values observed before it"
    with pytest.raises(ValueError, match=exactly(message)):
        conversion.table(elementwise("torch.log"), {("function", "torch.log"): torch.log}, GRID, GRID, EXACT)


def test_each_row_of_a_large_weight_uses_the_codes_of_its_own_scale():
    rows = 2.0 ** -np.arange(5000.0).clip(0, 30)
    weight = (np.random.default_rng(0).uniform(-1, 1, (5000, 70)) * rows[:, None]).astype(np.float32)
    codes, grid = conversion.weight_codes(weight, EXACT, per_channel=True)
    assert grid.axis == 0 and grid.scale.shape == (5000,) and (np.abs(codes).max(1) == 127).all()
    # Half a step, and what is lost where a scale is rounded to float32.
    assert (np.abs(codes * grid.scale[:, None].astype(np.float64) - weight) <= grid.scale[:, None] * 0.50001).all()


@pytest.mark.parametrize("per_channel,scales", [(True, [1.0, 1.0]), (False, 1.0)])
def test_a_weight_without_numbers_has_codes_of_its_shape_and_scales_of_one(per_channel, scales):
    codes, grid = conversion.weight_codes(np.zeros((2, 0), np.float32), EXACT, per_channel=per_channel)
    assert codes.shape == (2, 0) and codes.dtype == np.int8 and grid.scale.tolist() == scales
    assert (grid.qmin, grid.qmax, grid.axis) == (-128, 127, 0 if per_channel else None)


@given(st.floats(2.0**-40, 2.0**40, width=32), st.floats(2.0**-20, 2.0**20, width=32))
def test_a_scale_is_raised_as_far_as_a_bias_needs_and_no_further(bias, step):
    x = QParams(np.float32(step), 0, 0, 255)
    weight, own = np.array([[1e-20], [1.0]], np.float32), np.array([1e-22, 1e30], np.float32)
    grid = QParams(own, np.zeros(2, np.int32), -128, 127, 0)
    raised = conversion.grid_with_room(weight, np.float32([-bias, bias]), grid, x)
    assert raised.scale[1] == own[1] and (raised.axis, raised.qmin, raised.qmax) == (0, -128, 127)
    code = lambda scale: bias / (step * float(scale))  # noqa: E731
    assert code(raised.scale[0]) <= 2.0**30
    assert raised.scale[0] == own[0] or code(np.nextafter(raised.scale[0], np.float32(0))) > 2.0**30
    assert conversion.grid_with_room(weight, np.float32([0, bias]), grid, x) is grid


def test_codes_that_were_given_are_those_of_the_weight():
    weights = conversion.Weights(None)
    weight, codes = np.ones((2, 3), np.float32), np.full((2, 3), 5, np.int8)
    grid = QParams(np.float32(0.2), 0, -128, 127)
    weights.give(weight, codes, grid)
    assert weights.codes(weight, "any")[0] is codes and weights.codes(weight, "any")[1] is grid


def of_layers(*layers):
    return Program("onnx", ("x",), {}, layers, Ref("y"))


def test_biases_become_copies_of_which_a_shared_one_is_one():
    bias, codes = np.ones(2, np.float32), np.zeros((2, 3), np.int8)
    weights = QParams(np.float32(1.0), 0, -128, 127)
    cell, other = (program.Cell(codes, weights, bias, codes, weights, each) for each in (None, bias * 2))
    layers = [program.Linear(name, "x", name, codes, bias, GRID, weights, GRID, False) for name in "ab"]
    without = program.Linear("c", "x", "c", codes, None, GRID, weights, GRID, False)
    run = program.Recurrent("r", "x", None, "r", "rnn_tanh", (cell, other), False, False, False)
    network = conversion.with_own_biases(of_layers(*layers, without, run, program.Relu("y", "a", GRID)))
    a, b, c, r, relu = network.steps
    assert a.bias is b.bias is r.cells[0].input_bias is r.cells[1].input_bias and a.bias is not bias
    assert a.bias.tolist() == [1, 1] and r.cells[0].state_bias is None and c.bias is None
    assert r.cells[1].state_bias is not other.state_bias and r.cells[1].state_bias.tolist() == [2, 2]
    assert a.weight is codes and r.cells[1].input_weight is codes and isinstance(relu, program.Relu)
