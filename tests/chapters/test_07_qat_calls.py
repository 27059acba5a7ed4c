"""Chapter 7: what a network in training calls: modules of the model in float, those that write to what they are given,
tensors, TorchScript."""

import copy

import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec.qat.live import live

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class InPlace(nn.Module):
    """Modules that write to what they are given, one of them by a keyword, and what is read beside them."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.act = nn.CELU(0.5, inplace=True), nn.Linear(4, 4), nn.RReLU(inplace=True)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        x = self.a(self.first(input=x))
        return self.last(self.act(x) + x.softmax(1))


@clause("QAT-CONVERT", "STA-ARGUMENTS")
def test_what_writes_to_its_argument_is_given_a_copy():
    model, x = networks.seeded(InPlace).eval(), networks.inputs(8)
    kept = x.clone()
    p = qs.prepare_qat(model, [x]).train()
    assert torch.equal(x, kept) and any(key == ("module", "first") for key in p.networks[0].callables)
    for part in (p, p.eval(), qs.convert(p), copy.deepcopy(p)):
        output = part(x)
        assert torch.equal(x, kept)
        assert (output - model(x.clone())).norm() < 0.1 * output.norm() or part is p
    assert p.model.first.inplace and p.model.act.inplace


class NamedAsFunctions(nn.Module):
    """A module and a tensor whose paths are names of functions that the model calls."""

    def __init__(self):
        super().__init__()
        self.a, self.torch = nn.Linear(4, 4), nn.Module()
        self.torch.cumsum = nn.Tanh()
        self.torch.register_buffer("cumprod", torch.full((4,), 0.5))
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.a(x)
        return torch.cumsum(x, 1) + (self.torch.cumsum(x) + self.torch.cumprod) * torch.cumprod(self.factor, 0)


@clause("QAT-CONVERT")
def test_modules_and_tensors_named_as_functions_are_not_taken_for_them():
    model, x = networks.seeded(NamedAsFunctions).eval(), networks.inputs(8)
    p = qs.prepare_qat(model, [x])
    assert ("function", "torch.cumsum") in p.networks[0].callables
    for part in (p.train(), p.eval()):  # what 8 bits put them off by is measured: another function is off by 1
        assert (part(x) - model(x)).abs().max() < 0.2
    assert torch.equal(p(x), qs.convert(p)(x))


@clause("QAT-CONVERT")
def test_what_writes_to_nothing_is_given_what_there_is():
    module = nn.Tanh()
    assert live({"act": module}, "module", "act") is module
    assert live({"act": nn.ReLU(inplace=True)}, "module", "act") is not module
    assert live({"act": module}, "module", "other") is live({"act": module}, "function", "act") is None


class InFloat(nn.Module):
    """Modules with parameters that are no layers, and tensors of the model's own."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.act, self.b = nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(4), nn.Linear(4, 2)
        self.shift = nn.Parameter(torch.ones(4))
        self.register_buffer("factor", torch.tensor([1.0, 2.0, 0.5, 1.5]))

    def forward(self, x):
        return self.b(self.norm(torch.atan(self.a(x) * self.factor + self.shift)) + self.act(x).cumsum(1))


@clause("STA-NO-LEAK", "QAT-CONVERT", "QAT-PARAMETERS")
def test_what_was_converted_shares_nothing_with_what_is_trained_on():
    model, x = networks.seeded(InFloat).eval(), networks.inputs(8)
    p = qs.prepare_qat(model, [x, 2 * x])
    q, float_output = qs.convert(p), model(x)
    output = q(x)
    assert torch.equal(p(x), output)
    p(x).square().sum().backward()
    with torch.no_grad():
        for tensor in (*p.model.parameters(), *p.model.buffers()):
            assert not tensor.requires_grad or tensor.grad.abs().max() > 0
            tensor.add_(0.5)
    assert torch.equal(q(x), output) and torch.equal(model(x), float_output)
    assert torch.equal(p(x), qs.convert(p)(x)) and not torch.equal(p(x), output)


class Scripted(nn.Module):
    """TorchScript beside layers, and a branch by data."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.script = nn.Linear(4, 4), nn.Linear(4, 2), torch.jit.script(nn.Linear(4, 4))

    def forward(self, x):
        x = self.script(self.a(x))
        return self.b(x) if x.sum() > -1e9 else x


@clause("QAT-PARAMETERS")
@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_torchscript_in_a_model_is_trained_as_it_is():
    model, x = networks.seeded(Scripted).eval(), networks.inputs(8)
    p = qs.prepare_qat(model, [x]).train()
    p(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in p.model.parameters())
    with torch.no_grad():
        p.model.script.weight.zero_()
    output = p(x)
    assert torch.equal(output[0], output[1])  # all rows are the bias's alone
    assert model.script.weight.any() and torch.equal(p.eval()(x), qs.convert(p)(x))


class Nested(nn.Module):
    """Parts inside of parts, with Python between."""

    def __init__(self):
        super().__init__()
        self.outer = nn.ModuleDict({"inner": nn.ModuleDict({"first": nn.Linear(4, 4), "last": nn.Linear(4, 2)})})
        self.register_buffer("factor", torch.full((4,), 0.25))

    def forward(self, x):
        inner = self.outer["inner"]
        x = inner["first"](x)
        x = x * torch.sqrt(self.factor) if x.detach().sum() > -1e9 else x
        return inner["last"](x.cumsum(1))


@clause("QAT-PYTHON", "QAT-EQUAL")
def test_the_float_model_of_nested_parts_stays_one():
    model, x = networks.seeded(Nested).eval(), networks.inputs(8)
    p = qs.prepare_qat(model, [x])
    assert not p.is_whole and len(p.networks) == 2
    assert torch.equal(p.model(x), model(x)) and not torch.equal(p(x), model(x))
    for (name, ours), (_, theirs) in zip(p.model.named_modules(), model.named_modules(), strict=True):
        assert type(ours) is type(theirs), name
    assert torch.equal(p(x), qs.convert(p)(x)) and networks.far(p(x).detach(), model(x).detach()) < 0.1


class Named(nn.Module):
    """A graph with a constant, and tensors of another shape that have its name, by either way of capture."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("factor", torch.full((4,), 0.25))
        for name in ("_tensor_constant0", "constant_0"):
            self.register_buffer(name, torch.ones(7))

    def forward(self, x):
        return self.layer(x).cumsum(1) * torch.sqrt(self.factor)


@clause("QAT-EQUAL")
def test_a_constant_is_not_taken_for_a_tensor_of_the_model_that_has_its_name():
    model, x = networks.seeded(Named).eval(), networks.inputs(8)
    p = qs.prepare_qat(model, [x])
    assert any(path in model.state_dict() for kind, path in p.networks[0].callables if kind == "attribute")
    assert torch.equal(p(x), qs.convert(p)(x)) and networks.far(p(x).detach(), model(x).detach()) < 0.1
