"""Sums of floats behind linear layers are computed in their products, where both operands have one shape."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec.engines.compiled.engine import Segment


class Residual(nn.Module):
    """A normalization, two layers, and ``end(what came in, what they give)``."""

    def __init__(self, features=8, hidden=24, end=torch.add):
        super().__init__()
        self.norm, self.end = nn.LayerNorm(features), end
        self.first, self.last = nn.Linear(features, hidden), nn.Linear(hidden, features)

    def forward(self, x):
        return self.norm(self.end(x, self.last(torch.relu(self.first(self.norm(x))))))


def with_sums(q):
    """The parts of the compiled network that end in a sum."""
    return [part for part in q.compiled.parts if isinstance(part, Segment) and part.sum is not None]


def same(q, x):
    """Whether both engines give the same."""
    return torch.equal(q(x), q.run_on("reference")(x))


@clause("STA-DIRECT", "STA-THREADS")
@pytest.mark.parametrize("threads", [1, 2, 3])
@given(st.data())
def test_sums_in_products_are_those_behind_them(threads, data):
    features, hidden = (data.draw(st.integers(1, 70)) for _ in range(2))
    rows, *between = data.draw(st.sampled_from([(1,), (5,), (40,), (2, 3), (3, 40), (2, 2, 5), (300,)]))
    model = networks.seeded(lambda: Residual(features, hidden), data.draw(st.integers(0, 99)))
    x = networks.inputs(rows, (*between, features), data.draw(st.integers(0, 99)))
    q = qs.quantize(model, [x])
    with networks.torch_threads(threads):
        assert same(q, x) and same(q, x[:1])
    (part,) = with_sums(q)
    assert not part.broadcasts


@clause("STA-THREADS")
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("rows,features,hidden", [(4, 512, 2048), (300, 96, 256)])
def test_threads_share_sums_by_rows_and_by_outputs(rows, features, hidden, threads):
    model, x = networks.seeded(lambda: Residual(features, hidden)), networks.inputs(rows, (features,))
    q = qs.quantize(model, [x])
    alone = q.run_on("reference")(x)
    with networks.torch_threads(threads):
        assert torch.equal(q(x), alone)
        (part,) = with_sums(q)
        assert all(batched.parallel for batched in part.batched.values()) or rows > features


ENDS = {
    "a method": lambda x, y: y.add(x),
    "an operator, turned round": lambda x, y: y + x,
    "a ReLU inside": lambda x, y: x + torch.relu(y),
    "two of them": lambda x, y: x + (x + y),
}  # fmt: skip
OTHERS = {
    "the layer is read elsewhere": lambda x, y: (x + y) * y,
    "with itself": lambda x, y: y + y,
    "of another number": lambda x, y: y + 2.0,
    "a part of it": lambda x, y: torch.add(x, y, alpha=2),
    "behind something else": lambda x, y: x + y.neg(),
}


@clause("STA-DIRECT")
@pytest.mark.parametrize("name", ENDS)
def test_sums_are_found_as_models_write_them(name):
    x = networks.inputs(5, (3, 8))
    q = qs.quantize(networks.seeded(lambda: Residual(end=ENDS[name])), [x])
    assert len(with_sums(q)) == 1 and same(q, x) and not with_sums(q)[0].broadcasts


@clause("STA-DIRECT")
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_such_sum_is_computed_by_itself(name):
    x = networks.inputs(5, (3, 8))
    q = qs.quantize(networks.seeded(lambda: Residual(end=OTHERS[name])), [x])
    assert not with_sums(q) and same(q, x)


class Given(nn.Module):
    """A layer to whose outputs another input is added."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x, other):
        return self.norm((self.layer(x) + other).float())


@clause("STA-DIRECT")
@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (1, 3, 8), (5, 3, 1), (2, 5, 3, 8)])
def test_operands_of_different_shapes_are_added_by_themselves(shape):
    x, other = networks.inputs(5, (3, 8)), networks.inputs(shape[0], shape[1:], 2)
    q = qs.quantize(networks.seeded(Given), [(x, x)])
    reference, (part,) = q.run_on("reference"), with_sums(q)
    for operands in ((x, x), (x, other), (x, other), (x[:1], x[:1]), (x, x)):
        assert torch.equal(q(*operands), reference(*operands))
    assert part.broadcasts


@clause("STA-DIRECT")
def test_operands_that_are_no_float32_are_added_by_themselves():
    x = networks.inputs(5, (3, 8))
    q = qs.quantize(networks.seeded(Given), [(x, x)])
    for other in (torch.ones(5, 3, 8, dtype=torch.int64), torch.ones(5, 3, 8, dtype=torch.float64), x):
        assert torch.equal(q(x, other), q.run_on("reference")(x, other))
    assert not with_sums(q)[0].broadcasts


@clause("STA-NAN")
def test_nan_among_operands_is_nan():
    x = networks.inputs(5, (3, 8))
    q = qs.quantize(networks.seeded(Residual), [x])
    spoilt = x.clone()
    spoilt[1, 2, 3] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NaN, which has no code
        # Exactly, but for NaN, which ``torch.equal`` tells from itself.
        torch.testing.assert_close(q(spoilt), q.run_on("reference")(spoilt), rtol=0, atol=0, equal_nan=True)
    assert same(q, x)
