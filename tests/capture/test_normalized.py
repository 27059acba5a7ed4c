"""Normalizations by numbers that a model holds, however a forward writes them: what comes before them absorbs them."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from networks import seeded
from quantspec.capture import parts, tracer
from quantspec.ir import float_graph, program
from quantspec.numerics import accuracy

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Normalized(nn.Module):
    """Two convolutions, and between them a normalization."""

    def __init__(self, written, positions=2):
        super().__init__()
        kind = CONVOLUTIONS[positions]
        self.first, self.last, self.written = kind(3, 4, 3, padding=1), kind(4, 2, 1), written
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.25)
        self.weight, self.bias = nn.Parameter(torch.rand(4) + 0.5), nn.Parameter(torch.randn(4))
        ones = (1,) * positions
        self.four = nn.Parameter(torch.rand(1, 4, *ones) + 0.5)
        # A vector [4, 1] is not taken for one of channels.
        self.one = nn.Parameter(torch.rand(4, *ones) + 0.5) if positions > 1 else self.four
        self.rows = nn.Parameter(torch.rand(1, 1, 6, *ones[1:]) + 0.5)

    def forward(self, x):
        return self.last(self.written(self, self.first(x)))


def images(positions=2, count=3):
    return torch.randn(count, 3, *(6,) * positions, generator=torch.Generator().manual_seed(1))


ABSORBED = {
    "a function": lambda s, x: F.batch_norm(x, s.mean, s.var),
    "with factors": lambda s, x: F.batch_norm(x, s.mean, s.var, s.weight, s.bias, eps=0.5),
    "by place": lambda s, x: F.batch_norm(x, s.mean, s.var, s.weight, s.bias, False, 0.25, 0.5),
    "by name": lambda s, x: F.batch_norm(
        eps=0.25, training=False, bias=s.bias, weight=s.weight, running_var=s.var, running_mean=s.mean, input=x
    ),
    "factors alone": lambda s, x: F.batch_norm(x, s.mean, s.var, s.weight),
    "summands alone": lambda s, x: F.batch_norm(x, s.mean, s.var, bias=s.bias),
    "torch's": lambda s, x: torch.batch_norm(x, s.weight, s.bias, s.mean, s.var, False, 0.25, 0.5, False),
    "torch's without factors": lambda s, x: torch.batch_norm(x, None, None, s.mean, s.var, False, 0.25, 0.5, True),
    "a product": lambda s, x: x * s.four, "a product, turned": lambda s, x: s.four * x,
    "a product without an axis": lambda s, x: s.one * x, "multiply": lambda s, x: torch.multiply(x, s.four),
    "torch.mul": lambda s, x: torch.mul(s.four, x), "mul": lambda s, x: x.mul(s.four),
    "mul_": lambda s, x: x.mul_(s.four),
    "a method": lambda s, x: x.multiply(s.four), "a product in place": lambda s, x: operator.imul(x, s.four),
    "a quotient": lambda s, x: x / s.four, "torch.div": lambda s, x: torch.div(x, s.one),
    "div": lambda s, x: x.div(s.four),
    "div_": lambda s, x: x.div_(s.four), "a quotient in place": lambda s, x: operator.itruediv(x, s.four),
    "a sum": lambda s, x: x + s.four, "a sum, turned": lambda s, x: s.one + x,
    "torch.add": lambda s, x: torch.add(x, s.four),
    "add": lambda s, x: x.add(s.one), "add_": lambda s, x: x.add_(s.four),
    "a sum in place": lambda s, x: operator.iadd(x, s.four), "a difference": lambda s, x: x - s.four,
    "torch.sub": lambda s, x: torch.sub(x, s.one), "sub": lambda s, x: x.sub(s.four),
    "sub_": lambda s, x: x.sub_(s.one),
    "a difference in place": lambda s, x: operator.isub(x, s.four),
    "a product and a sum": lambda s, x: x * s.four + s.one,
}  # fmt: skip
KEPT = {
    "a mean that is computed": lambda s, x: F.batch_norm(x, x.mean((0, 2, 3)), s.var),
    "a variance that is computed": lambda s, x: F.batch_norm(x, s.mean, x.var((0, 2, 3))),
    "factors that are computed": lambda s, x: F.batch_norm(x, s.mean, s.var, x.mean((0, 2, 3))),
    "summands that are computed": lambda s, x: F.batch_norm(x, s.mean, s.var, s.weight, x.mean((0, 2, 3))),
    "both": lambda s, x: F.batch_norm(x, s.mean, s.var, x.mean((0, 2, 3)), x.mean((0, 2, 3))),
    "a difference from it": lambda s, x: s.four - x, "a quotient by it": lambda s, x: s.four / (x.abs() + 1),
    "a multiple": lambda s, x: torch.add(x, s.four, alpha=2), "rows": lambda s, x: x * s.rows,
    "rows that are added": lambda s, x: s.rows + x, "the larger": lambda s, x: torch.maximum(x, s.four),
}  # fmt: skip


def checked(model, x):
    """The network of a model, which is compared with it."""
    prepared = qs.prepare(model)
    with torch.no_grad():
        assert parts.difference(model(x.clone()), prepared(x.clone()), parts.FUSED) is None
        assert prepared.capture.whole_agrees
        q = qs.convert(prepared)
        assert accuracy.sqnr(model(x.clone()).numpy(), q(x.clone()).numpy()) > 25
    return q


def steps(q):
    return [type(step) for step in q.program.steps if not isinstance(step, (program.Quantize, program.Dequantize))]


@pytest.mark.parametrize("name", ABSORBED)
@pytest.mark.parametrize("positions", [1, 2, 3])
def test_a_normalization_by_numbers_is_part_of_the_layer_before_it(name, positions):
    model = seeded(lambda: Normalized(ABSORBED[name], positions)).requires_grad_(False)
    assert steps(checked(model, images(positions))) == [program.Conv, program.Conv]


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_normalization_by_numbers_stays_what_it_is(name):
    model = seeded(lambda: Normalized(KEPT[name])).requires_grad_(False)
    assert program.Call in steps(checked(model, images()))


def test_several_normalizations_of_one_module_have_their_own_numbers():
    def twice(s, x):
        return F.batch_norm(s.first(F.batch_norm(x, s.mean, s.var)[:, :3]), s.var, s.mean**2, s.weight)

    model = seeded(lambda: Normalized(twice)).requires_grad_(False)
    assert steps(checked(model, images())).count(program.Conv) == 3


class Derived(nn.BatchNorm2d):
    """One that is written as functions, the first with what torch has where nothing is given."""

    def forward(self, x):
        y = F.batch_norm(x, self.running_mean, self.running_var)
        return F.batch_norm(y, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 0.5)


def test_functions_of_normalization_have_torchs_defaults_and_the_path_of_their_module():
    graph = tracer.capture(seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Derived(4))))
    norms = [node for node in graph.nodes if isinstance(node, float_graph.BatchNorm)]
    assert [(norm.eps, norm.layer, norm.positions) for norm in norms] == [(1e-5, "1", 2), (0.5, "1", 2)]
    assert norms[0].gamma.tolist() == [1.0] * 4 and norms[0].beta.tolist() == [0.0] * 4
    assert graph.calls == {"0": 1, "1": 2}


class Alone(nn.Module):
    """A normalization that is no module's."""

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.mean + 1)

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.arange(4.0))


def test_a_function_of_normalization_in_no_module_goes_by_its_own_name():
    (norm,) = (node for node in tracer.capture(Alone().eval()).nodes if isinstance(node, float_graph.BatchNorm))
    assert (norm.layer, norm.positions, norm.mean.tolist()) == ("batch_norm", None, [0.0, 1.0, 2.0, 3.0])
