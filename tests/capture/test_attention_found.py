"""Which operations are found to be attention that a model writes out, and what is told of it."""

import math

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from quantspec.capture.attention import weighted
from quantspec.ir.attention import OURS, TORCHS
from quantspec.ir.attention import WRITTEN as WRITTEN_OUT
from quantspec.ir.program import Attention, Call, Program, Ref
from quantspec.module.report import EXCLUDED
from quantspec.ptq import attending

INPUTS = "q", "k", "v", "m", "f"
MASK = torch.zeros(2, 2)
SOFTMAX = {("module", "last"): nn.Softmax(-1), ("module", "rows"): nn.Softmax(-2), ("module", "own"): nn.Softmin(-1)}


def function(name, target, *args, reason="", **kwargs):
    return Call(name, "function", target, args, kwargs, reason)


def method(name, target, *args, reason="", **kwargs):
    return Call(name, "method", target, args, kwargs, reason)


def matmul(name, a, b, reason=""):
    return function(name, "torch.matmul", Ref(a), Ref(b), reason=reason)


def softmax(name, x, reason=""):
    return function(name, "torch.softmax", Ref(x), -1, reason=reason)


SCORES, WEIGHTS, OUT = matmul("s", "q", "k"), softmax("w", "s"), matmul("y", "w", "v")


def network(*steps, output=None, dialect="onnx"):
    return Program(dialect, INPUTS, {}, steps, Ref("y") if output is None else output, dict(SOFTMAX))


def found(*steps, **options):
    """The one attention in place of steps, without what it is made of; None where nothing was changed."""
    given = network(*steps, **options)
    after = attending.with_attention(given)
    attention = [step for step in after.steps if isinstance(step, Attention)]
    if not attention:
        assert [step.name for step in after.steps] == [step.name for step in given.steps]
        return None
    (one,) = attention
    assert after.steps == (one,) and (one.name, one.kind, one.target) == ("y", "function", WRITTEN_OUT)
    assert after.callables == {("function", WRITTEN_OUT): weighted} and one.kwargs == {} and one.reason == ""
    return one.args


PLAIN = (Ref("q"), Ref("k"), Ref("v"), None, 1.0, False, None)


@pytest.mark.parametrize("product", [
    lambda *args: function(args[0], "operator.matmul", *map(Ref, args[1:])), matmul,
    lambda *args: function(args[0], "torch.bmm", *map(Ref, args[1:])),
    lambda *args: method(args[0], "matmul", *map(Ref, args[1:])),
    lambda *args: method(args[0], "bmm", *map(Ref, args[1:])),
])  # fmt: skip
def test_products_around_a_softmax_are_attention(product):
    assert found(product("s", "q", "k"), WEIGHTS, product("y", "w", "v")) == PLAIN


@pytest.mark.parametrize("weights", [
    function("w", "torch.softmax", Ref("s"), dim=-1), function("w", "torch.nn.functional.softmax", Ref("s"), -1),
    method("w", "softmax", Ref("s"), -1), function("w", "torch.softmax", Ref("s"), -1, dtype=torch.float32),
    function("w", "torch.softmax", Ref("s"), -1, torch.float32),
    function("w", "torch.softmax", Ref("s"), -1, dtype=None), Call("w", "module", "last", (Ref("s"),), {}, ""),
])  # fmt: skip
def test_a_softmax_over_the_last_axis_makes_weights(weights):
    assert found(SCORES, weights, OUT) == PLAIN


@pytest.mark.parametrize("weights", [
    function("w", "torch.softmax", Ref("s"), -2), function("w", "torch.softmax", Ref("s"), 1),
    function("w", "torch.softmax", Ref("s")), function("w", "torch.softmax", Ref("s"), -1, dtype=torch.float64),
    function("w", "torch.softmax", Ref("s"), -1, reason=EXCLUDED), method("w", "log_softmax", Ref("s"), -1),
    Call("w", "module", "rows", (Ref("s"),), {}, ""), Call("w", "module", "own", (Ref("s"),), {}, ""),
    Call("w", "module", "last", (Ref("s"),), {}, EXCLUDED), Call("w", "module", "last", (Ref("s"), 1), {}, ""),
    function("w", "softmax", Ref("s"), -1), function("w", "torch.softmax", Ref("s"), -1, torch.float64),
    function("w", "torch.softmax", Ref("s"), -1, Ref("f")), function("w", "torch.softmax", input=Ref("s"), dim=-1),
])  # fmt: skip
def test_another_function_than_a_softmax_over_the_last_axis_makes_none(weights):
    assert found(SCORES, weights, OUT) is None


class Weighing(nn.Module):
    """The mean of values by weights that a function makes of queries and keys."""

    def __init__(self, mean):
        super().__init__()
        self.mean, self.qkv = mean, nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.mean(q @ k.mT, v)


@networks.mostly_attention
@pytest.mark.parametrize("mean", [
    lambda s, v: torch.softmax(input=s, dim=-1) @ v, lambda s, v: torch.nn.functional.softmax(dim=-1, input=s) @ v,
    lambda s, v: (torch.softmax(s, -1, torch.float64) @ v.double()).float(),
    lambda s, v: (s.softmax(-1, torch.float64) @ v.double()).float(),
], ids=["torch's, input named", "input last", "in float64", "in float64 by method"])  # fmt: skip
def test_a_softmax_in_other_words_is_near_the_models(mean):
    model, x = networks.seeded(lambda: Weighing(mean)), networks.inputs(3, (5, 8))
    with torch.no_grad():
        for q in (qs.quantize_dynamic(model, example=x), qs.quantize(model, [x])):
            assert networks.far(q(x), model(x)) < 0.1


@pytest.mark.parametrize("given", [
    ("to", Ref("w"), torch.float32), ("type", Ref("w"), torch.float32), ("float", Ref("w")),
])  # fmt: skip
def test_weights_may_be_given_the_type_that_they_have(given):
    assert found(SCORES, WEIGHTS, method("t", *given), matmul("y", "t", "v")) == PLAIN


@pytest.mark.parametrize("given", [
    ("to", Ref("w"), torch.float64), ("to", Ref("w")), ("type", Ref("w")), ("type", Ref("w"), torch.float64),
    ("float", Ref("w"), torch.float32), ("double", Ref("w")),
])  # fmt: skip
def test_weights_of_another_type_are_none(given):
    assert found(SCORES, WEIGHTS, method("t", *given), matmul("y", "t", "v")) is None


@pytest.mark.parametrize("target", ["operator.mul", "torch.mul"])
def test_scores_times_a_number_have_that_factor(target):
    for args in ((Ref("s"), 0.25), (0.25, Ref("s"))):
        steps = SCORES, function("z", target, *args), softmax("w", "z"), OUT
        assert found(*steps) == (*PLAIN[:4], 0.25, False, None)
    assert found(SCORES, method("z", "mul", Ref("s"), 2), softmax("w", "z"), OUT) == (*PLAIN[:4], 2, False, None)


@pytest.mark.parametrize("scaled", [
    function("z", "operator.truediv", Ref("s"), 4.0), function("z", "torch.div", Ref("s"), 4.0),
    method("z", "div", Ref("s"), 4.0),
])  # fmt: skip
def test_scores_over_a_number_are_divided_by_it(scaled):
    assert found(SCORES, scaled, softmax("w", "z"), OUT) == (*PLAIN[:4], 4.0, True, None)


@pytest.mark.parametrize("scaled", [
    function("z", "operator.truediv", 4.0, Ref("s")), function("z", "operator.mul", Ref("s"), 0),
    function("z", "operator.mul", Ref("s"), Ref("f")), function("z", "torch.div", Ref("s"), 4.0, rounding_mode="floor"),
    function("z", "operator.mul", Ref("s"), 2.0, reason=EXCLUDED), function("z", "operator.pow", Ref("s"), 2.0),
    function("z", "torch.mul", Ref("s")),
])  # fmt: skip
def test_scores_that_are_not_scaled_by_a_number_stay_in_float(scaled):
    assert found(SCORES, scaled, softmax("w", "z"), OUT) is None


@pytest.mark.parametrize("mask", [Ref("m"), MASK], ids=["value", "constant"])
@pytest.mark.parametrize("add", [
    lambda *args: function("z", "operator.add", *args), lambda *args: function("z", "torch.add", *args),
    lambda *args: method("z", "add", *args),
])  # fmt: skip
def test_what_is_added_to_scores_is_a_mask(add, mask):
    for args in ((Ref("s"), mask), (mask, Ref("s"))):
        assert found(SCORES, add(*args), softmax("w", "z"), OUT) == (*PLAIN[:3], mask, 1.0, False, None)


def test_scores_are_scaled_before_a_mask_is_added():
    scaled = function("h", "operator.mul", Ref("s"), 0.5)
    for args in ((Ref("h"), Ref("m")), (Ref("m"), Ref("h"))):
        steps = SCORES, scaled, function("z", "operator.add", *args), softmax("w", "z"), OUT
        assert found(*steps) == (*PLAIN[:3], Ref("m"), 0.5, False, None)
    behind = function("h", "operator.add", Ref("s"), Ref("m")), function("z", "operator.mul", Ref("h"), 0.5)
    assert found(SCORES, *behind, softmax("w", "z"), OUT) is None


@pytest.mark.parametrize("masked", [
    function("z", "operator.add", Ref("s"), 1.0), function("z", "torch.add", Ref("s"), Ref("m"), alpha=2),
    function("z", "operator.sub", Ref("s"), Ref("m")), function("z", "torch.add", Ref("s"), Ref("m"), reason=EXCLUDED),
    function("z", "torch.add", Ref("s")),
])  # fmt: skip
def test_scores_to_which_no_mask_is_added_stay_in_float(masked):
    assert found(SCORES, masked, softmax("w", "z"), OUT) is None


@pytest.mark.parametrize("filled", [
    lambda value: method("z", "masked_fill", Ref("s"), Ref("m"), value),
    lambda value: function("z", "torch.masked_fill", Ref("s"), Ref("m"), value),
])  # fmt: skip
def test_scores_that_are_hidden_have_the_value_that_hides_them(filled):
    for value in (-math.inf, -1e4):
        assert found(SCORES, filled(value), softmax("w", "z"), OUT) == (*PLAIN[:3], Ref("m"), 1.0, False, value)
    for value in (-9999.0, 0.0, math.inf, Ref("f")):
        assert found(SCORES, filled(value), softmax("w", "z"), OUT) is None
    constant = method("z", "masked_fill", Ref("s"), MASK, -math.inf)
    assert found(SCORES, constant, softmax("w", "z"), OUT)[3] is MASK


@pytest.mark.parametrize("filled", [
    method("z", "masked_fill", Ref("s"), True, -math.inf),
    method("z", "masked_fill", Ref("s"), Ref("m"), value=-math.inf),
    method("z", "masked_fill", Ref("s"), Ref("m"), -math.inf, out=None),
    method("z", "masked_fill", Ref("s"), Ref("m"), -math.inf, reason=EXCLUDED),
    method("z", "masked_scatter", Ref("s"), Ref("m"), -math.inf),
])  # fmt: skip
def test_scores_that_are_filled_otherwise_stay_in_float(filled):
    assert found(SCORES, filled, softmax("w", "z"), OUT) is None


@pytest.mark.parametrize("steps", [
    (function("s", "torch.matmul", Ref("q"), Ref("k"), out=None), WEIGHTS, OUT),
    (matmul("s", "q", "k", EXCLUDED), WEIGHTS, OUT), (SCORES, WEIGHTS, matmul("y", "w", "v", EXCLUDED)),
    (SCORES, WEIGHTS, function("y", "torch.matmul", Ref("w"), Ref("v"), out=None)),
    (SCORES, WEIGHTS, matmul("y", "v", "w")), (SCORES, WEIGHTS, function("y", "torch.dot", Ref("w"), Ref("v"))),
    (function("s", "torch.matmul", Ref("q"), MASK), WEIGHTS, OUT),
    (function("s", "torch.matmul", MASK, Ref("k")), WEIGHTS, OUT),
    (SCORES, WEIGHTS, function("y", "torch.matmul", Ref("w"), MASK)), (softmax("w", "q"), OUT),
    (function("y", "torch.matmul", MASK, Ref("v")),),
    (function("s", "torch.matmul", Ref("q")), WEIGHTS, OUT), (SCORES, WEIGHTS, function("y", "torch.matmul", Ref("w"))),
    (SCORES, WEIGHTS, function("y", "torch.matmul", Ref("w"), Ref("v"), MASK)),
])  # fmt: skip
def test_other_products_stay_in_float(steps):
    assert found(*steps) is None


def test_what_is_read_elsewhere_stays():
    scaled, masked = function("h", "operator.mul", Ref("s"), 0.5), function("z", "operator.add", Ref("h"), Ref("m"))
    steps = SCORES, scaled, masked, softmax("w", "z"), method("t", "to", Ref("w"), torch.float32), matmul("y", "t", "v")
    assert found(*steps) == (*PLAIN[:3], Ref("m"), 0.5, False, None)
    for name in "shzwt":
        assert found(*steps, method("other", "neg", Ref(name)), output=(Ref("y"), Ref("other"))) is None
        assert found(*steps, output=(Ref("y"), Ref(name))) is None
    module = SCORES, Call("w", "module", "last", (Ref("s"),), {}, ""), OUT
    assert found(*module) == PLAIN and found(*module, output=(Ref("y"), Ref("w"))) is None


def test_what_no_other_step_calls_any_more_is_let_go():
    other = Call("other", "module", "rows", (Ref("v"),), {}, "")
    after = attending.with_attention(network(other, SCORES, WEIGHTS, OUT, output=(Ref("y"), Ref("other"))))
    assert [step.name for step in after.steps] == ["other", "y"]
    assert after.callables.keys() == {("module", "rows"), ("function", WRITTEN_OUT)}
    assert after.callables["module", "rows"] is SOFTMAX["module", "rows"]


def test_a_network_without_attention_stays_itself():
    given = network(SCORES, matmul("y", "s", "v"))
    assert attending.Written(given).network() is given
    for dialect in ("qnnpack", "exact"):
        other = network(SCORES, WEIGHTS, OUT, dialect=dialect)
        assert attending.with_attention(other) is other


def test_operations_are_left_as_they_are_where_they_are_not_to_be_found():
    after = attending.with_attention(network(SCORES, WEIGHTS, OUT), written_out=False)
    assert after.steps == (SCORES, WEIGHTS, OUT)


@pytest.mark.parametrize("target,more", [(TORCHS, {}), (OURS, {"heads": 2, "batch_first": True})])
def test_a_call_of_attention_becomes_a_step_in_codes(target, more):
    call = function("y", target, Ref("q"), Ref("k"), Ref("v"), reason="a reason", **more)
    output = (Ref("y"),) if target == TORCHS else Ref("z")
    first = function("z", "operator.getitem", Ref("y"), 0)
    given = network(call, first, output=output, dialect="onnx")
    step = attending.with_attention(given).steps[0]
    assert type(step) is Attention and (step.name, step.kind, step.target) == ("y", "function", target)
    assert step.args == call.args and step.kwargs == more and step.reason == ""
    excluded = function("y", target, Ref("q"), Ref("k"), Ref("v"), reason=EXCLUDED, **more)
    assert attending.with_attention(network(excluded, first, output=output)).steps == (excluded, first)


def test_a_call_whose_weights_are_an_output_stays_in_float():
    call = function("y", OURS, Ref("q"), Ref("k"), Ref("v"), heads=2, batch_first=True, need_weights=True)
    first = function("z", "operator.getitem", Ref("y"), 0)
    assert type(attending.with_attention(network(call, first, output=Ref("z"))).steps[0]) is Attention
    assert attending.with_attention(network(call, first, output=(Ref("z"), Ref("y")))).steps == (call, first)
    second = function("u", "operator.getitem", Ref("y"), 1)
    assert attending.with_attention(network(call, first, second, output=Ref("u"))).steps == (call, first, second)


def test_each_attention_of_a_network_is_found():
    again = matmul("s2", "y", "k"), softmax("w2", "s2"), matmul("y2", "w2", "v"), method("z", "neg", Ref("y2"))
    after = attending.with_attention(network(SCORES, WEIGHTS, OUT, *again, output=Ref("z")))
    assert [(step.name, type(step)) for step in after.steps] == [("y", Attention), ("y2", Attention), ("z", Call)]


def test_a_node_attends_that_became_attention_or_part_of_it():
    attention = Attention("y", "function", WRITTEN_OUT, PLAIN, {}, "")
    steps = {"y": attention, "other": WEIGHTS}
    assert attending.attends(OUT, steps) and attending.attends(SCORES, steps)
    assert not attending.attends(method("other", "neg", Ref("q")), steps)
