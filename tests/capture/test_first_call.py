"""What a model keeps from its first call alone: a constant, where that call might have been another one."""

import copy

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import seeded
from quantspec.capture import kept
from quantspec.numerics import accuracy

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
OTHERS = 0.7 * ROWS.roll(1, 0).abs()


class Caching(nn.Module):
    """Layers, and behind them what is made once."""

    def __init__(self, make):
        super().__init__()
        self.first, self.second, self.make = nn.Linear(8, 8), nn.Linear(8, 8), make
        self.table, self.cache = nn.Parameter(torch.randn(16)), {}

    def forward(self, x):
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.make(self, x)
        return self.second(self.first(x)) * self.cache[key]


class Lazy(Caching):
    """What was made once is an attribute."""

    cached = None

    def forward(self, x):
        if self.cached is None:
            self.cached = self.make(self, x)
        return self.second(self.first(x)) * self.cached


def gathered(model, x):
    return model.table[torch.arange(8) * 2]


def of_the_width(model, x):
    return torch.arange(1, x.shape[-1] + 1) / x.shape[-1]


def of_values(model, x):
    return 1 / x.std(0)


def of_one_value(model, x):
    return float(x[0, 0])


def of_rows(model, x):
    return torch.arange(1.0, len(x) + 1)[:, None]


def of_the_count_of_rows(model, x):
    return float(len(x))


def ways(model):
    """The model quantized with data and with an example."""
    return qs.quantize(model, [ROWS]), qs.quantize_dynamic(model, example=ROWS)


def as_without_a_call(model, q, *inputs):
    """How near a network is to a model that nobody called before, for inputs one after the other."""
    own = copy.deepcopy(model)
    return min(accuracy.sqnr(own(x).detach().numpy(), q(x).detach().numpy()) for x in inputs)


@clause("STA-FIRST-CALL")
@pytest.mark.parametrize("make", [gathered, of_the_width])
@pytest.mark.parametrize("kind", [Caching, Lazy])
def test_a_table_that_is_made_once_is_a_constant_of_one_network(kind, make):
    model = seeded(lambda: kind(make))
    for q in ways(model):
        assert len(q.program.layers) == 2
        assert as_without_a_call(model, q, ROWS) > 25
    assert not model.cache and getattr(model, "cached", None) is None


@clause("STA-FIRST-CALL")
@pytest.mark.parametrize("make, calls", [
    (of_values, (OTHERS, ROWS)), (of_one_value, (OTHERS, ROWS)),
    (of_rows, (ROWS[:3], ROWS[3:])), (of_the_count_of_rows, (ROWS[:3], ROWS[3:])),
])  # fmt: skip
@pytest.mark.parametrize("kind", [Caching, Lazy])
def test_what_is_made_of_values_or_for_sizes_is_made_of_those_of_the_networks_own_first_call(kind, make, calls):
    model = seeded(lambda: kind(make))
    for q in ways(model):
        assert as_without_a_call(model, q, *calls) > 25


class Grid(nn.Module):
    """Numbers its places anew when a map has another size, as detectors do."""

    grid = torch.zeros(0)

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        y = self.second(self.first(x))
        if self.grid.shape != y.shape[2:]:
            self.grid = torch.linspace(0, 1, y.shape[2])[:, None].expand(y.shape[2:])
        return y + self.grid


@clause("STA-FIRST-CALL")
def test_what_is_made_anew_for_another_size_ties_no_network_to_a_size():
    model = seeded(Grid)
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    q = qs.quantize(model, [x])
    assert sum(len(network.program.layers) for _, network in q.networks()) == 2
    assert as_without_a_call(model, q, x, x[..., :9, :8]) > 25


class Words(nn.Module):
    """Keeps what it computes of the words of its first call."""

    kept = None

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, ids):
        if self.kept is None:
            self.kept = self.table(ids).mean((0, 1))
        return self.layer(self.table(ids) * self.kept)


@clause("STA-FIRST-CALL")
@pytest.mark.parametrize("ids", [torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[1, 2, 3], [4, 5, 6]])])
def test_values_that_are_the_same_in_any_order_tell_nothing_of_others(ids):
    model = seeded(Words)
    q = qs.quantize_dynamic(model, example=ids)
    assert as_without_a_call(model, q, torch.tensor([[7, 8, 9]])) > 20


class Refusing(Lazy):
    """Takes rows of one sign only."""

    def forward(self, x):
        if (x < 0).any():
            raise ValueError("negative")
        return super().forward(x)


@clause("STA-FIRST-CALL")
def test_a_model_that_takes_no_other_values_stays_python_around_its_parts():
    model = seeded(lambda: Refusing(gathered))
    x = ROWS.abs()
    q = qs.quantize(model, [x])
    assert as_without_a_call(model, q, x) > 25
    with pytest.raises(ValueError, match="negative"):
        q(ROWS)


@clause("STA-FIRST-CALL")
def test_in_training_what_is_gathered_of_parameters_is_gathered_at_the_models_own_first_call():
    model = seeded(lambda: Lazy(gathered))
    training = qs.prepare_qat(model.train(), [ROWS])
    training(ROWS).sum().backward()
    grads = {name: p.grad for name, p in training.named_parameters() if "table" in name}
    assert grads and all(grad is not None and grad.any() for grad in grads.values())


@pytest.mark.parametrize("shape", [(5,), (1,), (2, 3), (1, 4), (3, 1, 2), ()])
def test_indices_of_other_values_are_the_same_but_for_the_last_of_which_the_first_stands_in_the_place(shape):
    x = torch.arange(torch.Size(shape).numel()).reshape(shape) ** 2
    other = kept.of_other_values(x)
    flat = x.flatten().tolist()
    assert other.shape == x.shape and other.flatten().tolist() == [flat[0], *flat[-2::-1]]
