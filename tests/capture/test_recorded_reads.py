"""What a recording makes of attributes, of values of classes with fields of their own, and of modules that are written
here."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from recordings import Written, recorded
from torch import nn

from networks import seeded
from quantspec.capture import parts, tracer, writes
from quantspec.ir.program import Call

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
Pair = namedtuple("Pair", "first second")


@dataclass
class Both:
    """Two values, one of which may be left out, and what is made of them."""

    first: torch.Tensor
    second: torch.Tensor | None = None
    made: int = field(default=0, init=False)


def told(graph):
    """The calls of a graph beside its layers and what its inputs are held to, each with what it is called on."""
    nodes = (getattr(node, "call", node) for node in graph.nodes if hasattr(node, "call") or isinstance(node, Call))
    said = [(call.target, *map(str, call.args[1:])) for call in nodes]
    return [call for call in said if "_assert" not in call[0] and call[0] not in ("dim", "operator.eq")]


READ = {
    "T": (lambda y: y.T * 2, [("builtins.getattr", "T"), ("mul", "2")]),
    "mT": (lambda y: y.mT * 2, [("builtins.getattr", "mT"), ("mul", "2")]),
    "H": (lambda y: y.H * 2, [("builtins.getattr", "H"), ("mul", "2")]),
    "mH": (lambda y: y.mH * 2, [("builtins.getattr", "mH"), ("mul", "2")]),
    "real": (lambda y: y.real * 2, [("mul", "2")]),  # which is the value itself
    "data": (lambda y: y.data * 2, [("detach",), ("mul", "2")]),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_value_is_a_node(name):
    written, expected = READ[name]
    model = seeded(lambda: Written(written)).requires_grad_(False)
    graph = recorded(model, ROWS)
    assert told(graph) == expected
    assert parts.graph_differs(graph, (2 * ROWS,), model(2 * ROWS)) is None


FIELDS = {
    "a named tuple": lambda y: Pair(y, second=y * 2),
    "a named tuple in another": lambda y: Pair(Pair(y + 1, y), y * 2),
    "an ordered dictionary": lambda y: OrderedDict(b=y, a=y * 2),
    "a class of fields": lambda y: Both(y, y * 2),
    "a class of fields, one left out": lambda y: Both(y),
}


@pytest.mark.parametrize("name", FIELDS)
def test_values_of_classes_with_fields_are_made_again(name):
    model = seeded(lambda: Written(FIELDS[name])).requires_grad_(False)
    graph = recorded(model, ROWS)
    assert parts.graph_differs(graph, (2 * ROWS,), model(2 * ROWS)) is None
    assert any(isinstance(what, type) for what in graph.callables.values())


class Attends(nn.Module):
    """Attention that is told more than its inputs."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, hidden):
        return self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)[0]


def test_a_module_that_is_written_here_is_told_what_it_was_given_by_name():
    model = seeded(Attends).requires_grad_(False)
    x, hidden = ROWS[None], torch.tensor([[False, False, True, False, False, True]])
    graph = recorded(model, x, hidden)
    calls = [node for node in graph.nodes if isinstance(node, Call)]
    assert "masked_fill" in [call.target for call in calls]
    (products,) = (call for call in calls if call.target.endswith("scaled_dot_product_attention"))
    assert sorted(products.kwargs) == ["attn_mask", "dropout_p"]  # by torch's own kernel, as no weights are needed
    assert parts.graph_differs(graph, (x, ~hidden), model(x, ~hidden)) is None


@pytest.mark.parametrize("written", [lambda y: (y * 2).fill_(3.0), lambda y: (y * 2).zero_()], ids=["fill", "zero"])
def test_what_fills_a_value_is_a_value_of_its_own(written):
    model = seeded(lambda: Written(written)).requires_grad_(False)
    for graph in (tracer.trace(model).graph, recorded(model, ROWS)):
        assert writes.filled in graph.callables.values()
        assert parts.graph_differs(graph, (2 * ROWS,), model(2 * ROWS)) is None
