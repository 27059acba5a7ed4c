"""Products with a parameter: nothing but the layer, and what moves axes that stand otherwise than a layer has them; and
which weights are computed once."""

import pytest
import torch
from recordings import recorded as recorded_on
from torch import nn
from torch.nn import functional as F

from networks import seeded
from quantspec.capture import parts, tracer
from quantspec.ir.float_graph import Linear

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class OfWeight(nn.Module):
    """An expression of a parameter."""

    def __init__(self, written, *shape):
        super().__init__()
        self.weight, self.written = nn.Parameter(torch.randn(shape) / 4), written

    def forward(self, x):
        return self.written(x, self.weight)


def by_letters(equation):
    return lambda x, w: torch.einsum(equation, x, w)


# What is written, the shape of its parameter, and what of it is there beside the layer, in order.
PRODUCTS = {
    "of rows": (lambda x, w: x @ w, (8, 3), ["layer"]),
    "of rows, the weight turned": (lambda x, w: x @ w.t(), (3, 8), ["layer"]),
    "of rows by letters": (by_letters("td,do->to"), (8, 3), ["layer"]),
    "as a layer has its weight": (by_letters("...i,oi->...o"), (3, 8), ["layer"]),
    "of columns": (lambda x, w: w @ x, (3, 6), ["transpose", "layer", "transpose"]),
    "outputs first": (by_letters("td,do->ot"), (8, 3), ["layer", "permute"]),
    "outputs first, of any axes": (by_letters("...td,do->...ot"), (8, 3), ["layer", "transpose"]),
    "over all axes": (by_letters("td,tdo->o"), (6, 8, 3), ["flatten", "layer"]),
    "over all axes, turned": (by_letters("td,dto->o"), (8, 6, 3), ["permute", "flatten", "layer"]),
    "outputs of two axes": (by_letters("td,dhk->thk"), (8, 2, 3), ["layer", "unflatten"]),
    "outputs of two axes, turned": (by_letters("td,hdk->kth"), (2, 8, 3), ["layer", "unflatten", "permute"]),
    "a weight for each row of each block": (
        by_letters("...td,tdo->...to"), (6, 8, 3), ["select"] * 6 + ["layer"] * 6 + ["torch.stack"],
    ),
    "a weight for each pair of letters": (
        lambda x, w: torch.einsum("abd,abdo->abo", x.unflatten(0, (2, 3)), w), (2, 3, 8, 3),
        ["weight", "unflatten", "torch.einsum"],
    ),
    "a weight for each row": (by_letters("td,tdo->to"), (6, 8, 3), ["select"] * 6 + ["layer"] * 6 + ["torch.stack"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_beside_the_layer_there_is_only_what_moves_axes(name):
    written, shape, expected = PRODUCTS[name]
    model = seeded(lambda: OfWeight(written, *shape)).requires_grad_(False)
    graph = tracer.capture(model)
    assert parts.graph_differs(graph, (3 * ROWS,), model(3 * ROWS)) is None
    found = ["layer" if isinstance(node, Linear) else getattr(node, "call", node).target for node in graph.nodes]
    assert found == expected


class OfNormalized(nn.Module):
    """A layer whose weight is normalized by its own statistics, and what notes them."""

    def __init__(self, normalized):
        super().__init__()
        self.weight, self.normalized = nn.Parameter(torch.randn(4, 8)), normalized
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        return F.linear(x, self.normalized(self))


# How the weight is normalized, and whether the call notes its statistics, which is more than to compute a weight.
NORMALIZED = {
    "by place": (lambda s: F.batch_norm(s.weight, s.mean, s.var, training=True), True),
    "by name": (lambda s: F.batch_norm(s.weight, running_var=s.var, running_mean=s.mean, training=True), True),
    "by place and by name": (lambda s: F.batch_norm(s.weight, s.mean, running_var=s.var, training=True), True),
    "nothing by place": (lambda s: F.batch_norm(s.weight, None, None, training=True), False),
    "nothing by name": (lambda s: F.batch_norm(s.weight, running_mean=None, running_var=None, training=True), False),
    "of fixed statistics": (lambda s: F.batch_norm(s.weight, s.mean, s.var, training=False), False),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_a_normalized_weight_is_computed_once_unless_the_call_notes_its_statistics(name):
    normalized, notes = NORMALIZED[name]
    model = seeded(lambda: OfNormalized(normalized)).requires_grad_(False)
    graph = tracer.capture(model)
    assert not model.mean.any() and bool((model.var == 1).all())
    called = [node.target for node in graph.nodes if getattr(node, "kind", "") == "function"]
    assert called == (["torch.nn.functional.batch_norm", "torch.nn.functional.linear"] if notes else [])
    assert sum(isinstance(node, Linear) for node in graph.nodes) == (not notes)


class OfTable(nn.Module):
    """A product with what is computed of a parameter and of a table."""

    def __init__(self, factor):
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.randn(8, 8)), factor
        self.register_buffer("table", torch.randn(8, 8))

    def forward(self, x):
        return x @ self.factor(self)


# The factor, and whether its values are computed of the parameter, so that it has eight bits as a layer's weight.
FACTORS = {
    "the table in its type": (lambda s: s.table.type_as(s.weight), False),
    "twice the table in its type": (lambda s: 2 * s.table.type_as(s.weight), False),
    "the table as that of float64": (lambda s: s.table.double().type_as(s.weight), False),
    "the table of float64 to it": (lambda s: s.table.double().to(s.weight), False),
    "the table in its shape": (lambda s: s.table.flatten().view_as(s.weight), False),
    "the table reshaped": (lambda s: s.table.flatten().reshape_as(s.weight), False),
    "a row as often as it has rows": (lambda s: s.table[:1].expand_as(s.weight), False),
    "its values in the table's type": (lambda s: s.weight.double().type_as(s.table), True),
    "its values to the table": (lambda s: s.weight.double().to(s.table), True),
    "its values in the table's shape": (lambda s: s.weight.flatten().view_as(s.table), True),
    "a sum of both": (lambda s: s.table + s.weight, True), "a third of the table": (lambda s: s.table / 3, False),
}  # fmt: skip


@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize("name", FACTORS)
def test_a_table_that_takes_its_type_or_shape_from_a_parameter_is_none(name, recorded):
    factor, is_layer = FACTORS[name]
    model = seeded(lambda: OfTable(factor)).requires_grad_(False)
    graph = recorded_on(model, ROWS) if recorded else tracer.capture(model)
    assert parts.graph_differs(graph, (2 * ROWS,), model(2 * ROWS)) is None
    assert sum(isinstance(node, Linear) for node in graph.nodes) == is_layer
