"""Batches that are lists: the arguments in order, or one argument."""

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import seeded


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)

    def computed(self, x):
        return self.last(torch.relu(self.first(x)))


class Stacked(Layers):
    def forward(self, rows):
        return self.computed(torch.stack(rows))


class SaysList(Layers):
    def forward(self, rows: list[torch.Tensor]):
        return self.computed(torch.stack(rows))


class WithScale(Layers):
    def forward(self, rows, scale=1.0):
        return self.computed(torch.stack(rows)) * scale


class WithPython(Layers):
    def forward(self, rows):
        x = torch.cat(list(rows)) if isinstance(rows, list) else rows[:, :6, None]
        return self.computed(x) if x.sum() > -1e9 else x


class Rows(Layers):
    def forward(self, x):
        return self.computed(x)


ONE = Stacked, SaysList, WithScale, WithPython


def lists(count):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(2, 6, generator=generator) for _ in range(3)] for _ in range(count)]


def trained(model, batches):
    return qs.convert(qs.prepare_qat(model, batches))


def dynamic(model, batches):
    return qs.quantize_dynamic(model, example=batches[0])


@clause("STA-LIST")
@pytest.mark.parametrize("make", [qs.quantize, trained, dynamic])
@pytest.mark.parametrize("build", ONE)
def test_a_list_is_the_argument_of_a_model_that_takes_one(build, make):
    model, batches = seeded(build), lists(3)
    q = make(model, batches)
    as_tuples = make(model, [(batch,) for batch in batches])
    for batch in batches:
        assert torch.equal(q(batch), as_tuples(batch))
        assert (q(batch) - model(batch)).abs().max() < 0.05
    assert qs.compare(model, q, batches).sqnr == qs.compare(model, q, [(batch,) for batch in batches]).sqnr


@clause("STA-LIST")
@pytest.mark.parametrize("make", [qs.quantize, trained, dynamic])
def test_of_other_lists_the_entries_are_the_arguments(make):
    model, batches = seeded(Rows), [[batch[0], torch.tensor([0, 1])] for batch in lists(3)]
    q = make(model, batches)
    x = batches[0][0]
    assert torch.equal(q(x), make(model, [batch[0] for batch in batches])(x))
    assert qs.compare(model, q, batches).sqnr > 30


@clause("STA-LIST")
def test_what_a_model_can_compute_in_no_way_is_its_own_error():
    model = seeded(Stacked)
    with pytest.raises((TypeError, ValueError), match="must be tuple of Tensors, not Tensor"):
        qs.quantize(model, [[torch.randn(2, 6), torch.randn(3, 6)]])
