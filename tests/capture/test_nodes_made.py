"""Single nodes: what is called how, what is constant, and copies that share nothing."""

import pytest
import torch
from recordings import recorded
from torch import fx, nn

from networks import seeded
from quantspec.capture import attention, copies, parts, tracer
from quantspec.capture.constants import folded
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Call, Ref
from quantspec.ir.traverse import refs

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Behind(nn.Module):
    """A layer, and behind it a module that is called as it is written."""

    def __init__(self, module, call):
        super().__init__()
        self.layer, self.module, self.call = nn.Linear(8, 8), module, call

    def forward(self, x):
        return self.call(self.module, self.layer(x))


def calls(graph):
    """The calls of a graph that stay in float."""
    return [node for node in graph.nodes if isinstance(node, Call)]


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
def test_torchscript_is_not_traced_through():
    script = torch.jit.trace(nn.Sequential(nn.Linear(8, 8), nn.Tanh()).eval(), ROWS)
    for model in (nn.Sequential(nn.Linear(8, 8), script), Behind(script, lambda module, x: module(x))):
        told = f"model: {type(model).__name__} cannot be traced: {copies.SCRIPT}"
        with pytest.raises(UnsupportedError, match=f"^{told}"):  # and perhaps the line
            tracer.trace(model.eval().requires_grad_(False))


def test_a_module_is_given_its_input_by_place():
    model = seeded(lambda: Behind(nn.Hardshrink(), lambda module, x: module(input=x))).requires_grad_(False)
    (call,) = calls(tracer.trace(model).graph)
    assert (call.args, call.kwargs) == ((Ref("layer"),), {})
    two = seeded(lambda: Behind(nn.Bilinear(8, 8, 3), lambda module, x: module(input1=x, input2=x)))
    (call,) = calls(tracer.trace(two.requires_grad_(False)).graph)
    assert (call.args, call.kwargs) == ((Ref("layer"),), {"input2": Ref("layer")})


@pytest.mark.parametrize("module", [nn.Flatten(), nn.Flatten(0), nn.Dropout(), nn.Identity()], ids=str)
def test_a_module_that_may_give_its_input_is_recorded_as_one_node(module):
    model = seeded(lambda: Behind(module, lambda module, x: module(x) * 2)).requires_grad_(False)
    graph = recorded(model, ROWS)
    assert [node.name for node in graph.nodes][-1] == "mul" and refs(graph.output)
    assert parts.graph_differs(graph, (2 * ROWS,), model(2 * ROWS)) is None


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")
def test_copies_of_torchscript_share_no_parameters():
    script = torch.jit.script(nn.Linear(8, 3).requires_grad_(True))
    script.bias.requires_grad_(False)
    twin = copies.script_copy(script)
    for own, other in zip(twin.parameters(), script.parameters(), strict=True):
        assert torch.equal(own, other) and own.data_ptr() != other.data_ptr()
        assert own.requires_grad == other.requires_grad


def test_a_range_of_a_length_that_is_traced_is_a_node():
    maker = fx.Tracer()
    maker.graph = fx.Graph()
    length = maker.create_proxy("placeholder", "length", (), {})
    node = attention.arange(length).node
    assert (node.op, node.target, node.args, node.kwargs) == ("call_function", torch.arange, (length.node,), {})
    assert attention.arange(3).tolist() == [0, 1, 2]


def test_constants_are_computed_and_how_is_kept_where_they_are_trained():
    class Computes(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = nn.Parameter(torch.rand(8)), nn.Linear(8, 3)

        def forward(self, x):
            return self.layer(x * (self.table * 2))

    model = seeded(Computes)
    traced = fx.symbolic_trace(model)
    attributes, recipes = folded(traced.graph, traced, trained=True)
    (name,) = attributes
    assert torch.equal(attributes[name], model.table * 2) and not attributes[name].requires_grad
    assert list(recipes) == [name] and torch.equal(recipes[name].value, attributes[name])
    assert folded(fx.symbolic_trace(model).graph, model)[1] == {}
