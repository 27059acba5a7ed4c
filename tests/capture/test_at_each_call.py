"""What a network computes anew at each call: sizes that were others in calibration, and random numbers."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from networks import seeded
from quantspec.capture import copies, parts

ROWS = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def image(size):
    return torch.randn(2, 3, size, size + 2, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear"])
@pytest.mark.parametrize("recompute", [None, False, True])
def test_an_image_is_enlarged_by_the_factor_that_the_model_goes_by_at_every_size(mode, recompute):
    """The factor as it was given, or that of the two sizes, as ``recompute_scale_factor`` says."""
    given = {"scale_factor": 2.3, "mode": mode, "recompute_scale_factor": recompute}
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(**given), nn.Conv2d(4, 2, 1)))
    prepared = qs.prepare(model)
    with torch.no_grad():
        for size in (10, 7, 11, 13):
            assert parts.difference(model(image(size)), prepared(image(size))) is None
    assert prepared.capture.whole_agrees


class Drawn(nn.Module):
    """A layer, of whose output each value is kept or doubled by what is drawn of a parameter."""

    def __init__(self):
        super().__init__()
        self.layer, self.weights = nn.Linear(8, 8), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.layer(x) * (1 + F.gumbel_softmax(self.weights, hard=True)[0])


@pytest.mark.parametrize("seed", range(6))  # for some the first draws are equal
def test_what_is_drawn_of_parameters_alone_is_drawn_at_each_call(seed):
    model = seeded(Drawn)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        q = qs.quantize(model, [ROWS])
        assert len({float(q(ROWS)[0, 0]) for _ in range(40)}) == 2


DECIDING = {
    "Python": lambda: random.random() < 0.5, "NumPy": lambda: np.random.rand() < 0.5,
    "torch": lambda: torch.rand(()) < 0.5, "torch, as a factor": lambda: torch.randint(0, 2, (1,)),
}


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("example", [None, ROWS], ids=["any", "example"])
def test_what_python_decides_by_a_random_number_is_decided_at_each_call(name, example):
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x) * (1 + DECIDING[name]())

    for seed in range(4):  # for some the first draws are equal
        with copies.random_kept():
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            q = qs.quantize_dynamic(seeded(Deciding), example=example)
            assert len({float(q(ROWS)[0, 0]) for _ in range(40)}) == 2


def test_capturing_what_draws_leaves_the_random_state_as_it_was():
    model, state = seeded(Drawn), torch.get_rng_state()
    qs.prepare(model)
    assert torch.equal(torch.get_rng_state(), state)


class OfParameters(nn.Module):
    """What a layer of several results, or one without an integer form, gives of parameters alone."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.start = nn.Linear(8, 8), nn.Parameter(torch.randn(1, 4, 8))
        self.kind, self.states = kind, nn.LSTM(8, 8, batch_first=True)
        self.pool = nn.MaxPool1d(2, return_indices=True)

    def forward(self, x):
        if self.kind == "states":
            joined, (state, _) = self.states(self.start)
            return self.layer(x) + joined.mean((0, 1)) + state[0, 0]
        values, places = self.pool(self.start[0].t())
        return self.layer(x) * values.mean(1) + places.float().mean(1)


@pytest.mark.parametrize("kind", ["states", "places"])
def test_what_a_layer_of_several_results_gives_of_parameters_is_part_of_the_network(kind):
    model = seeded(lambda: OfParameters(kind)).requires_grad_(False)
    prepared = qs.prepare(model)
    for x in (ROWS, 2 * ROWS[:2]):
        assert parts.difference(model(x), prepared(x)) is None
    assert prepared.capture.whole_agrees
