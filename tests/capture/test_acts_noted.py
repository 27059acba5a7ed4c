"""What acts in training mode only, as a graph notes it that was traced, and one that was recorded."""

import pytest
import torch
from recordings import recorded as recorded_on
from torch import nn
from torch.nn import functional as F

from networks import seeded
from quantspec.capture import acting, parts, tracer
from quantspec.ir import float_run
from quantspec.ir.program import Call
from quantspec.ir.traverse import refs

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Noise(nn.Module):
    """Adds random numbers in training mode, as many times as another value is large."""

    def forward(self, x, size):
        return x + torch.randn_like(x) * size if self.training else x


class Acting(nn.Module):
    """Layers, and between them what is written."""

    def __init__(self, written):
        super().__init__()
        self.first, self.last, self.written = nn.Linear(8, 8), nn.Linear(8, 3), written
        self.drop, self.noise = nn.Dropout(0.5), Noise()

    def forward(self, x):
        return self.last(self.written(self, self.first(x)))


def of_two(model, x):
    size = x.abs()
    return torch.maximum(model.noise(x, size), size)


NOISE = ["randn_like", "mul", "add"]
# What is written, the operations that training mode has more of where values are read, and whose mode it is.
ACTS = {
    "nothing": (lambda s, x: x.relu(), [], []),
    "a module": (lambda s, x: s.drop(x), [["drop"]], [("drop",)]),
    "a module in front of a relu": (lambda s, x: s.drop(x).relu(), [["drop"]], [("drop",)]),
    "a function": (lambda s, x: F.dropout(x, 0.25, s.training), [["dropout"]], [("",)]),
    "of two values": (of_two, [NOISE], [("noise",)]),
    "twice": (lambda s, x: s.drop(s.noise(x, 2.0).tanh()), [NOISE, ["drop"]], [("noise",), ("drop",)]),
    "one behind another": (lambda s, x: s.drop(s.noise(x, 2.0)), [[*NOISE, "drop"]], [("noise", "drop")]),
    "beside it": (lambda s, x: x + s.drop(x), [["drop"]], [("drop",)]),
}  # fmt: skip


def graph_of(model, recorded):
    if not recorded:
        return tracer.trace(model, acts=True).graph
    return recorded_on(model, ROWS, acts=True)


def in_training(graph, x):
    """What a graph gives where its acts act."""

    def compute(node, values, callables):
        call = getattr(node, "call", node)
        if getattr(call, "target", None) != acting.MARK:
            return float_run.run_node(node, values, callables)
        act = graph.acts[call.args[1]]
        inner = {str(number): values[name] for number, name in enumerate(refs(call.args))}
        for step in act.steps:
            inner[step.name] = float_run.call_float(step, act.callables, inner.__getitem__)
        return inner[act.output]

    for act in graph.acts.values():
        for what in act.callables.values():
            what.train() if isinstance(what, nn.Module) else None
    return float_run.run(graph, (x,), compute=compute)


def test_what_acts_is_noted_where_it_is_asked_for_alone():
    model = seeded(lambda: Acting(ACTS["a module"][0])).requires_grad_(False)
    for graph in (tracer.trace(model).graph, recorded_on(model, ROWS)):
        assert not graph.acts and not any(isinstance(node, Call) for node in graph.nodes)


@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize("name", ACTS)
def test_a_graph_notes_what_acts_in_training_mode_and_on_what(name, recorded):
    written, targets, owners = ACTS[name]
    model = seeded(lambda: Acting(written)).requires_grad_(False)
    graph, x = graph_of(model, recorded), 2 * ROWS
    found = [[step.target.rpartition(".")[2] for step in act.steps] for act in graph.acts.values()]  # mul, operator.mul
    assert found == targets
    assert [act.owners for act in graph.acts.values()] == owners
    plain = acting.unmarked(graph)
    assert not plain.acts and ("function", acting.MARK) not in plain.callables
    assert parts.graph_differs(graph, (x,), model(x)) is None and parts.graph_differs(plain, (x,), model(x)) is None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = model.train()(x)
        torch.manual_seed(1)
        assert parts.difference(expected, in_training(graph, x)) is None
