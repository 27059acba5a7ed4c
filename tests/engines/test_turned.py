"""Channels that are put last and first again, between convolutions and linear layers: one compiled run that gives the
reference's bits, and normalizations that read what convolutions gave where it lies.
"""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_means import left_to_the_reference
from test_parallel import threads
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec.engines.compiled import engine
from quantspec.engines.compiled.engine import Segment
from quantspec.engines.compiled.lowering import turns
from quantspec.engines.reference import Reference
from quantspec.ir.program import Call, Conv, Linear, Move, Ref

CONVOLUTIONS = {4: nn.Conv2d, 5: nn.Conv3d}
SPELLINGS = {
    "function": lambda x, dims: torch.permute(x, dims),
    "list": lambda x, dims: torch.permute(x, list(dims)),
    "keyword": lambda x, dims: x.permute(dims=dims),
    "method": lambda x, dims: x.permute(*dims),
    "negative": lambda x, dims: x.permute(tuple(axis - len(dims) for axis in dims)),
}


def last(rank):
    return (0, *range(2, rank), 1)


def first(rank):
    return (0, rank - 1, *range(1, rank - 1))


class Turning(nn.Module):
    """A convolution, a linear layer over its channels, and another convolution."""

    def __init__(self, rank, channels, width, padding, spelling):
        super().__init__()
        kind, kernel = CONVOLUTIONS[rank], 1 + 2 * padding
        self.a, self.c = kind(3, channels, kernel, padding=padding), kind(width, channels, kernel, padding=padding)
        self.b, self.rank, self.permute = nn.Linear(channels, width), rank, SPELLINGS[spelling]

    def forward(self, x):
        x = torch.relu(self.a(x))
        y = self.permute(torch.relu(self.b(self.permute(x, last(self.rank)))), first(self.rank))
        return torch.relu(self.c(y) + x)


@clause("STA-MOVE", "STA-RUN")
@given(
    st.sampled_from([4, 5]), st.integers(1, 40), st.integers(1, 70), st.integers(0, 1), st.integers(1, 3),
    st.sampled_from(list(SPELLINGS)), st.integers(1, 3),
)  # fmt: skip
def test_what_turns_is_compiled_with_what_is_around_it(rank, channels, width, padding, samples, spelling, count):
    model = networks.seeded(lambda: Turning(rank, channels, width, padding, spelling))
    x = networks.inputs(samples, (3, 4, 3, 5)[: rank - 1])
    q = qs.quantize(model, [x])
    assert sum(isinstance(step, Move) for step in q.program.steps) == 2 and len(q.compiled.parts) == 1
    with threads(count):
        q = copy.deepcopy(q)
        expected = q.run_on("reference")(x)
        assert all(torch.equal(q(x), expected) for _ in range(2))
    assert torch.equal(q(x[:1]), expected[:1])


class Chain(nn.Module):
    """Layers over channels wherever those are, sums and orders, one after the other."""

    def __init__(self, written):
        super().__init__()
        self.written = written
        self.layers = nn.ModuleList(
            nn.Linear(4, 4) if kind == "linear" else nn.Conv2d(4, 4, 1) if kind == "conv" else nn.Identity()
            for kind in written
        )

    def forward(self, x):
        before = x
        for kind, layer in zip(self.written, self.layers):
            given = x
            if kind in ("linear", "conv"):
                x = torch.relu(layer(x))
            elif kind == "sum":
                x = x + before
            elif kind == "mean":
                x = x + x.mean((2, 3), keepdim=True)
            elif kind == "table":
                x = torch.sigmoid(x)
            elif kind == "float":
                x = x.cumsum(1)
            else:
                x = x.permute((0, 2, 3, 1) if kind == "last" else (0, 3, 1, 2))
            before = given if kind in ("linear", "conv", "table", "sum") else x
        return x


KINDS = "linear", "conv", "sum", "mean", "table", "float", "last", "first"


@clause("STA-MOVE", "STA-RUN")
@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=8).filter({"linear", "conv"}.intersection))
def test_whatever_turns_no_layer_is_left_to_the_reference(written):
    model, x = networks.seeded(lambda: Chain(written)), networks.inputs(2, (4, 4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = qs.quantize(model, [x])
    with left_to_the_reference() as by_reference:
        found = q(x)
    assert torch.equal(found, q.run_on("reference")(x))
    assert not any(isinstance(step, (Conv, Linear)) for step in by_reference)


@clause("STA-MOVE")
@pytest.mark.parametrize("order", [(0, 2, 1, 3), (1, 0, 2, 3), (0, 3, 2, 1), (3, 0, 1, 2)])
def test_other_orders_are_the_references(order):
    model = networks.seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Permute(order), nn.Conv2d(3, 4, 1)))
    x = networks.inputs(3, (3, 3, 3))
    q = qs.quantize(model, [x])
    assert torch.equal(q(x), q.run_on("reference")(x))


class Permute(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return torch.permute(x, self.order)


@pytest.mark.parametrize(("args", "kwargs", "expected"), [
    ((Ref("x"), (0, 2, 3, 1)), {}, (False, 4)),
    ((Ref("x"), 0, 3, 1, 2), {}, (True, 4)),
    ((Ref("x"),), {"dims": [0, -1, 1, 2]}, (True, 4)),
    ((Ref("x"), [0, 2, 1]), {}, None),
    ((Ref("x"), 0, 2, 3, 4, -4), {}, (False, 5)),
    ((Ref("x"), 1, 0), {}, None),
    ((Ref("x"), 0, 2, 3, 4, 5, 1), {}, None),
    ((Ref("x"), 0, 2, Ref("n"), 1), {}, None),
    ((Ref("x"),), {}, None),
    ((), {"input": Ref("x"), "dims": (0, 2, 3, 1)}, None),
])  # fmt: skip
def test_orders_are_read_from_calls(args, kwargs, expected):
    assert turns(Call("y", "method", "permute", args, kwargs, "")) == expected
    assert turns(Call("y", "method", "transpose", args, kwargs, "")) is None


NORMALIZED = {
    "module": lambda n, y: n.norm(y),
    "function": lambda n, y: F.layer_norm(y, (8,), n.norm.weight, n.norm.bias),
    "twice": lambda n, y: n.norm(y) + n.norm(y),
    "and read otherwise": lambda n, y: n.norm(y) + y.reshape(y.shape),
    # A view of what was put last and first again, which is in order where that was not.
    "between": lambda n, y: n.norm((y * 2).permute(0, 3, 1, 2).view(-1, 8, 30).mT),
}


class Normalized(nn.Module):
    """A depthwise or dense convolution, what reads it with its channels last, and a linear layer."""

    def __init__(self, groups, written):
        super().__init__()
        self.first, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.norm, self.head, self.written = nn.LayerNorm(8), nn.Linear(8, 4), NORMALIZED[written]

    def forward(self, x):
        return self.head(self.written(self, self.conv(self.first(x)).permute(0, 2, 3, 1)))


@clause("STA-RUN", "STA-RUNTIME")
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("written", list(NORMALIZED))
def test_normalizations_read_what_convolutions_give_where_it_lies(groups, written):
    model = networks.seeded(lambda: Normalized(groups, written))
    x = networks.inputs(3, (3, 6, 5))
    q = qs.quantize(model, [x])
    assert torch.equal(q(x), q.run_on("reference")(x))
    lying = {name for part in q.compiled.parts if isinstance(part, Segment) for name in part.lying}
    assert lying == ({"conv"} if written in ("module", "function", "twice") else set())
    given_out = replace(q.program, output=(q.program.output, Ref("conv")))
    outputs, expected = (run(given_out)({"x": x}) for run in (engine.Compiled, Reference))
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)) and outputs[1].is_contiguous()
