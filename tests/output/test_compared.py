"""Comparisons of models with Python between their networks: what cannot be compared is told, and the rest is."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, twice=False):
        y = self.last(torch.relu(self.first(x)))
        return y * 2 if twice else y


class Decides(nn.Module):
    """A model that decides by data whether its part doubles, and whether it is called again."""

    def __init__(self):
        super().__init__()
        self.part, self.limit = Part(), 1e9

    def forward(self, x):
        y = self.part(x)
        return y if y.abs().max() < self.limit else self.part(x, True)


def made():
    model = seeded(Decides).requires_grad_(False)
    return model, qs.quantize(model, [ROWS])


def test_a_comparison_needs_a_batch():
    model, q = made()
    with pytest.raises(ValueError, match="data: expected at least one batch, got none"):
        qs.compare(model, q, [])


def test_a_part_that_the_network_does_not_have_is_no_pair():
    model, q = made()
    assert list(q.islands) == ["part"]
    other = seeded(Decides).requires_grad_(False)
    other.part.forward = lambda x: other.part.last(x) if x.sum() < 1e9 else x
    with pytest.raises(ValueError, match="q: expected a network quantized from this model, but it has none at 'part'"):
        qs.compare(other, q, [ROWS])


@pytest.mark.filterwarnings("ignore:module 'part'")
def test_calls_that_were_not_seen_are_compared_as_what_the_model_gives():
    model, q = made()
    found = qs.compare(model, q, [ROWS])
    model.limit = q.python.limit = -1.0  # both calls are made now, of which one is in no network
    again = qs.compare(model, q, [ROWS])
    assert {row.layer for row in again.layers} == {row.layer for row in found.layers}
    assert found.sqnr > 20 and again.sqnr > 20


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 4)

    def forward(self, x):
        return self.layer(x)


def test_a_network_that_is_a_recurrent_layer_is_compared_by_its_output():
    model, x = seeded(Recurrent), ROWS[:, None]
    found = qs.compare(model, qs.quantize_dynamic(model, example=x), [x])
    (row,) = found.layers
    assert row.layer == "layer" and row.sqnr > 20 and found.sqnr > 20
