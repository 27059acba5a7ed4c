"""What capture tells of what it cannot do: whole sentences."""


import numpy as np
import pytest
import torch
from recordings import recorded
from torch import nn
from torch.nn import functional as F

from networks import seeded
from quantspec.capture import acting, aliases, calls, copies, parts, tracer
from quantspec.errors import UnsupportedError
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Written(nn.Module):
    """A layer, and what is written behind it."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write, self.drop = nn.Linear(8, 8), write, nn.Dropout(0.5)
        self.table = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.write(self, self.layer(x))


def in_place_of_view(m, x):
    y = x.view(-1)
    x.add_(1)
    return y


def in_place_at_some_calls(m, x):
    y = x.t().reshape(-1)
    x.add_(1)
    return y


def to_a_constant(m, x):
    y = torch.zeros(8)
    y.add_(x[0])
    return y


def with_a_constant_item(m, x):
    y = torch.zeros(8)
    y.__setitem__(0, x[0, 0])
    return y


TRACED = {
    "a view": (in_place_of_view, aliases.SHARED), "perhaps a view": (in_place_at_some_calls, aliases.WRITTEN),
    "a constant": (to_a_constant, aliases.TO_CONSTANT), "an item": (with_a_constant_item, aliases.TO_CONSTANT),
    "strides": (lambda m, x: x * x.stride(0), aliases.TOLD_LAYOUT),
    "an array": (lambda m, x: x.numpy(), "numpy() makes something else than a tensor"),
    "memory": (lambda m, x: x.new(3, 8), "new() makes values of one argument and memory of another"),
    "out": (lambda m, x: torch.add(x, 1, out=m.table), "add writes to its out= tensor"),
    "an operator": (
        lambda m, x: torch.ops.aten.relu_.default(x), f"torch._ops.aten.relu_.default {aliases.HIDDEN}",
    ),
    "random numbers": (lambda m, x: x * torch.rand(8), acting.DRAWS),
    "Python's numbers": (lambda m, x: x * float(np.random.rand()), acting.DRAWS),
}  # fmt: skip
BEFORE = "model: Written cannot be traced: "


@pytest.mark.parametrize("name", TRACED)
def test_what_no_traced_graph_holds_is_told(name):
    write, told = TRACED[name]
    with pytest.raises(UnsupportedError) as raised:
        tracer.capture(seeded(lambda: Written(write)).requires_grad_(False))
    assert str(raised.value).removeprefix(BEFORE).partition(" (/")[0] == told


class OfDefault(Written):
    def forward(self, x, y=torch.ones(8)):
        return self.layer(x) * y


def set_of(m, x):
    x.requires_grad = False
    return x


def outside(m, x):
    with torch._C.DisableTorchFunction():
        y = x + 1
    return x + y


def modified_outside(m, x):
    with torch._C.DisableTorchFunction():
        x += 1
    return x * 2


class ToInput(Written):
    def forward(self, x):
        x.mul_(2)
        return self.layer(x)


RECORDED = {
    "a set": (lambda m, x: {1, 2}, "a graph cannot hold a set"),
    "an attribute that is set": (set_of, "it sets a tensor's requires_grad"),
    "from outside": (outside, "a tensor was created outside torch's functions"),
    "modified outside": (modified_outside, "a tensor was modified outside torch's functions"),
    "out": (lambda m, x: torch.add(x, 1, out=torch.empty(6, 8)), "add writes to its out= tensor"),
    "values": (lambda m, x: x * x[0, 0].item(), "Python reads values of a tensor (item)"),
    "truths": (lambda m, x: x[x > 0], "Python reads values of a tensor (__getitem__)"),
    "numbers of values": (lambda m, x: x * len(x.stride()), aliases.TOLD_LAYOUT),
    "no tensor": (lambda m, x: x * torch.can_cast(x.dtype, torch.int) + torch.result_type(x, 1).itemsize,
                  "Python reads what is no tensor of one (result_type)"),
    "random numbers": (lambda m, x: F.dropout(x), "it draws random numbers"),
    "Python's numbers": (lambda m, x: x * float(np.random.rand()), acting.DRAWS),
    "a list": (lambda m, x: x * [1, 2, 3, 4, 5, 6, 7][x.shape[0]],
               "Python counts to a size, or looks something up by it"),
    "a key": (lambda m, x: x * {6: 1}[x.shape[0]], "a size cannot be hashed while a model is recorded"),
    "a missing attribute": (lambda m, x: x * x.shape[0].missing, "a size has no attribute 'missing'"),
    "what a size has not": (lambda m, x: x * x.shape[0].__missing__, "a size has no attribute '__missing__'"),
    "Python's own": (lambda m, x: x * (x.shape[0] << "a"), "unsupported operand type(s) for <<: 'Int' and 'str'"),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_what_no_recorded_graph_holds_is_told(name):
    write, told = RECORDED[name]
    with pytest.raises(UnsupportedError) as raised:
        recorded(seeded(lambda: Written(write)).requires_grad_(False), ROWS)
    assert str(raised.value).partition(" (/")[0] == told


def test_a_recording_tells_of_its_input_and_its_default():
    with pytest.raises(UnsupportedError) as raised:
        recorded(seeded(lambda: ToInput(None)), ROWS)
    assert str(raised.value).partition(" (/")[0] == "it writes to an input"
    with pytest.raises(UnsupportedError, match=exactly(f"{BEFORE.replace('Written', 'OfDefault')}the default of 'y' is "
                                                       "a tensor")):
        tracer.capture(seeded(lambda: OfDefault(None)))


class Other(nn.Module):
    """A model that does something else in training mode."""

    def __init__(self, evaluation, training):
        super().__init__()
        self.layer, self.evaluation, self.training_too = nn.Linear(8, 8), evaluation, training
        self.table, self.norm = nn.Parameter(torch.ones(8)), nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x):
        return (self.training_too if self.training else self.evaluation)(self, self.layer(x))


OTHERWISE = {
    "less": (lambda m, x: x.relu(), lambda m, x: x, "relu does not exist there", "relu does not exist there"),
    "parameters": (
        lambda m, x: x * m.table, lambda m, x: x * F.dropout(m.table, 0.5, m.training), "table acts on parameters",
        acting.DRAWS,
    ),
    "numbers": (lambda m, x: x, lambda m, x: x * float(np.random.rand()), acting.DRAWS, acting.DRAWS),
    "a softmax": (lambda m, x: x.softmax(0), lambda m, x: x.softmax(1), None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_training_does_otherwise_is_told(name):
    evaluation, training, told, told_by_recording = OTHERWISE[name]
    model = seeded(lambda: Other(evaluation, training)).requires_grad_(False)
    for capture, why in ((lambda: tracer.trace(model, acts=True).graph, told),
                         (lambda: recorded(model, ROWS, acts=True), told_by_recording)):  # fmt: skip
        if why is None:
            assert capture().nodes
            continue
        with pytest.raises(UnsupportedError) as raised:
            capture()
        found = str(raised.value).removeprefix("model: Other cannot be traced: ").partition(" (/")[0]
        assert found == f"it behaves differently in training mode: {why}"


A, B = torch.ones(2, 3), torch.tensor([1.0, float("nan")])
DIFFERENCES = {
    "types": (A, [A], "it gave a Tensor, what was captured gives a list"),
    "no values": (A.to("meta"), A.to("meta"), "it gave a tensor without values in memory, or of another layout"),
    "sparse": (A.to_sparse(), A.to_sparse(), "it gave a tensor without values in memory, or of another layout"),
    "shapes": (A, A[0], "it gave torch.float32[2, 3], what was captured gives torch.float32[3]"),
    "types of numbers": (A, A.double(), "it gave torch.float32[2, 3], what was captured gives torch.float64[2, 3]"),
    "integers": (A.int(), A.int() * 2, "values differ"), "truths": (A > 0, A < 0, "values differ"),
    "values": (A, A * 1.25, "values differ by up to 0.25"), "none": (B, B.clone(), None),
    "nearly": (A * 4, A * 4 + 2.0**-16, None), "not nearly": (A, A + 2.0**-17, "values differ by up to 7.63e-06"),
    "a NaN alone": (B, torch.ones(2), "values differ by up to 0"),
    "lengths": ((A, A), (A,), "it gave 2 values, what was captured gives 1"),
    "in a tuple": ((A, A), (A, A + 1), "values differ by up to 1"), "a tuple": ((A, [A]), (A, [A]), None),
    "keys": ({"a": A, "b": A}, {"b": A, "a": A}, "it gave ['a', 'b'], what was captured gives ['b', 'a']"),
    "in a dict": ({"a": A, "b": A}, {"a": A, "b": A * 3}, "values differ by up to 2"), "a dict": ({1: A}, {1: A}, None),
    "numbers": (1, 2, "values differ"), "the same number": (1.5, 1.5, None), "a NaN": (np.nan, np.nan, None),
    "a field": (calls.Given(None, (A,)), calls.Given(None, (A, A)), "it gave 1 values, what was captured gives 2"),
    "a pattern": (acting.Act((A,), "a", (), {}), acting.Act((A * 2,), "a", (), {}), "values differ by up to 1"),
    "the same pattern": (acting.Act((A,), "a", (), {}), acting.Act((A.clone(),), "a", (), {}), None),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_what_differs_in_two_outputs_is_told(name):
    expected, got, told = DIFFERENCES[name]
    assert parts.difference(expected, got) == told


def test_the_bound_of_a_difference_is_of_the_largest_value():
    assert parts.difference(A * 8, A * 8 + 1, 0.125) is None
    assert parts.difference((A * 8, {"a": A}), (A * 8, {"a": A + 0.25}), 0.25) is None
    assert parts.difference(acting.Act((A,), "", (), {}), acting.Act((A + 0.25,), "", (), {}), 0.25) is None
    large = torch.tensor([np.inf, -np.inf, 1.0])
    assert parts.difference(large, torch.tensor([np.inf, -np.inf, 1.1])) == "values differ by up to 0.1"


def test_what_is_done_beside_giving_an_output_is_told():
    class Keeping(Written):
        def forward(self, x):
            self.kept = x.shape
            return self.layer(x)

    model = seeded(lambda: Written(lambda m, x: x.relu())).requires_grad_(False)
    graph = tracer.capture(model)
    assert parts.whole_differs(model, graph, (ROWS,), (ROWS,), {}) is None
    keeping = seeded(lambda: Keeping(None)).requires_grad_(False)
    assert parts.whole_differs(keeping, graph, (ROWS,), (ROWS,), {}) == "forward changes 'kept'"
    told = parts.graph_differs(graph, (ROWS[:, :3],), model(ROWS))
    assert told == "what was traced fails: batch: layer 'layer' expects 8 input features, got shape (6, 3)"
    for build, why in ((lambda: ToInput(None), "it writes to an input"), (lambda: Keeping(None), "forward changes")):
        found = parts.find(seeded(build).requires_grad_(False), (ROWS,), {}, lambda graph: graph)
        assert [stop.path for stop in found.stops] == [""] and str(found.stops[0]).startswith(f"the model: {why}")
        assert list(found.graphs) == ["layer"]


CHECKED = {
    "nothing": (lambda: 5, TypeError, "model: expected a torch.nn.Module, got int"),
    "training": (lambda: nn.Linear(2, 2), ValueError, "model: it is in training mode; call model.eval() first"),
    "a part": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).train()).eval().append(nn.ReLU()), ValueError,
        "model: 2 is in training mode; call model.eval() first",
    ),
    "doubles": (
        lambda: nn.Sequential(nn.Linear(2, 2).double()).eval(), ValueError,
        "model: expected float32 parameters on the CPU, 0.weight is torch.float64 on cpu",
    ),
    "meta": (
        lambda: nn.Linear(2, 2, device="meta").eval(), ValueError,
        "model: expected float32 parameters on the CPU, weight is torch.float32 on meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_a_model_that_is_refused_is_told_why(name):
    build, kind, told = CHECKED[name]
    with pytest.raises(kind, match=exactly(told)):
        tracer.capture(build())


def test_batches_that_are_refused_are_told():
    forward = nn.Linear(2, 2).forward
    with pytest.raises(TypeError, match=exactly("batch: expected a tensor, a tuple or a dict, got int")):
        calls.arguments(forward, 5)
    zeros = torch._efficientzerotensor(3)
    told = "batch: expected dense tensors on the CPU, got one that is without memory"
    with pytest.raises(TypeError, match=exactly(told)):
        calls.dense((zeros,), {}, training=True)
    for given in (((ROWS,), {}), ((5, [ROWS]), {"a": {"b": ROWS}}), ((), {})):
        assert calls.dense(*given) == given and calls.dense(*given, training=True) == given
    told = "batch: expected dense tensors on the CPU, got one that is on meta"
    for given in (((ROWS, ROWS.to("meta")), {}), ((5, [ROWS.to("meta")]), {}), ((ROWS,), {"a": [ROWS.to("meta")]})):
        with pytest.raises(TypeError, match=exactly(told)):
            calls.dense(*given)
    assert calls.unusual([5, ROWS]) is None
    learning = ROWS.clone().requires_grad_()
    with torch.enable_grad():
        assert calls.unusual([5, ROWS, learning]) == "the model takes gradients through it"
        assert calls.unusual([ROWS]) is None
    with torch.no_grad():
        assert calls.unusual([learning]) is None
    found = []
    torch.vmap(lambda x: found.append(calls.unusual([1, x])) or x)(ROWS)
    assert found == ["it is called with tensors that have no memory, as torch.vmap does"]
    with pytest.raises(calls.NotPlain, match=exactly("the argument 'input' is a object")):
        calls.call_of(forward, (object(),), {})


def test_wrappers_of_scripts_are_refused_by_their_class():
    class Wrapper(copies.SCRIPTS):
        def __init__(self):
            nn.Module.__init__(self)

    told = ("model: Wrapper is TorchScript, which holds no Python code; pass the nn.Module that it was compiled from")
    with pytest.raises(UnsupportedError, match=exactly(told)):
        copies.inside(Wrapper())
    model = nn.Linear(2, 2)
    assert copies.inside(nn.DataParallel(torch.optim.swa_utils.AveragedModel(model)).module.module) is not None
    assert copies.inside(nn.DataParallel(model)) is model and copies.inside(model) is model


def test_an_error_of_a_model_has_its_place_and_its_class_where_it_has_no_text():
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        line = error.__traceback__.tb_lineno
        assert tracer.described(error) == f"ZeroDivisionError ({__file__}, line {line})"
        assert tracer.where(error) == f"{__file__}, line {line}"
    assert tracer.described(KeyError("a")) == "'a'" and tracer.where(KeyError()) == ""
    assert str(tracer.Stop("a.b", "why")) == "a.b: why" and str(tracer.Stop("", "why")) == "the model: why"

    class Long(Exception):
        def __str__(self):
            return "x\n " * 150

    told = f"batch: the model raised Long: {'x ' * 100}"
    with pytest.raises(ValueError, match=exactly(told)), parts.computing("batch"):
        raise Long
    with pytest.raises(UnsupportedError, match=exactly("as it is")), parts.computing("batch"):
        raise UnsupportedError("as it is")
