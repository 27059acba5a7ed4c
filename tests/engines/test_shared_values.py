"""Values that are read more than once, given out and read, or read in another order: the compiled engine, which puts
steps together, gives what the reference engine gives."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from evidence import clause
from networks import torch_threads

X = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(7, 12, generator=torch.Generator().manual_seed(2))


class Network(nn.Module):
    """Three convolutions, and what is written between them."""

    def __init__(self, written: Callable):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, padding=1) for _ in "abc")
        self.written = written

    def forward(self, x):
        return self.written(self, x)


def again(n: Network, x):
    y = n.a(x)
    return n.c(n.b(y) + y) + y


def given_out(n: Network, x):
    y = n.a(x)
    return y + x, y


def sum_given_out(n: Network, x):
    y = n.b(n.a(x)) + n.a(x)
    return n.c(y), y


def with_itself(n: Network, x):
    y = n.b(x)
    return n.c(y + y)


def first(n: Network, x):
    y = n.a(x)
    return n.c(n.b(y) + 0.25 * F.relu(y))


def second(n: Network, x):
    y = n.a(x)
    return n.c(0.25 * F.relu(y) + n.b(y))


def both_convolved(n: Network, x):
    return n.c(F.relu(n.a(x) + n.b(x)))


def read_in_float(n: Network, x):
    y = n.b(x)
    z = y + n.a(x)
    return n.c(z) + y.sort(dim=1).values


def clamped_twice(n: Network, x):
    y = n.a(x)
    return n.b(F.relu(y)) + n.c(F.hardtanh(y, -0.2, 0.3))


def joined_and_read(n: Network, x):
    y, z = n.a(x), n.b(x)
    joined = torch.cat([y, z], 1)
    return n.c(joined[:, 4:12]) + y


def moved_and_read(n: Network, x):
    y = n.a(x)
    return n.b(y.flip(1)) + n.c(F.pad(y, (1, 0))[..., :-1])


def summed_and_moved(n: Network, x):
    """What turns codes round is no kernel's, so that they leave what is compiled together."""
    y = n.a(x)
    z = y + n.b(x)
    return n.c(z) + y.flip(1).roll(1, 2)


def pooled_and_read(n: Network, x):
    y = n.a(x)
    return n.b(y) + F.interpolate(F.max_pool2d(n.c(y), 2, ceil_mode=True), size=y.shape[2:])


WRITTEN = [
    again, given_out, sum_given_out, with_itself, first, second, both_convolved, read_in_float, clamped_twice,
    joined_and_read, moved_and_read, summed_and_moved, pooled_and_read,
]  # fmt: skip


def outputs(result) -> tuple:
    return result if isinstance(result, tuple) else (result,)


@clause("STA-RUN")
@pytest.mark.parametrize("written", WRITTEN, ids=lambda written: written.__name__)
def test_a_value_that_is_read_twice_is_the_same_for_both(written):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = Network(written).eval()
    q = qs.quantize(model, [X, 2 * X])
    assert q.engine == "compiled" and len(q.program.layers) >= 1
    reference = q.run_on("reference")
    for x in (X, X[:1], -0.5 * X[1:]):
        before = x.clone()
        with torch.no_grad():
            in_float = outputs(model(x))
        for got, expected, real in zip(outputs(q(x)), outputs(reference(x)), in_float, strict=True):
            assert torch.equal(got, expected)
            assert float((got - real).abs().max()) < 0.1 * float(real.abs().max())
        assert torch.equal(x, before)


class Dynamic(nn.Module):
    def __init__(self, written: Callable):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 5)
        self.written = written

    def forward(self, x):
        return self.written(self, x)


def rectified(n: Dynamic, x):
    return n.b(F.relu(n.a(x)))


def rectified_and_read(n: Dynamic, x):
    y = n.a(x)
    return n.b(F.relu(y)) + n.b(y)


def rectified_and_given_out(n: Dynamic, x):
    y = n.a(x)
    return n.b(F.relu(y)), y


@clause("DYN-OUTPUT", "DYN-STATELESS")
@pytest.mark.parametrize("written", [rectified, rectified_and_read, rectified_and_given_out], ids=lambda w: w.__name__)
def test_so_it_is_between_dynamic_layers(written):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(4)
        model = Dynamic(written).eval()
    q = qs.quantize_dynamic(model, example=ROWS)
    reference = q.run_on("reference")
    for x in (ROWS, 3 * ROWS[:2], ROWS):
        with torch.no_grad():
            in_float = outputs(model(x))
        for got, expected, real in zip(outputs(q(x)), outputs(reference(x)), in_float, strict=True):
            assert torch.equal(got, expected)
            assert float((got - real).abs().max()) < 0.1 * float(real.abs().max())


@clause("STA-RUN", "STA-BATCH-SIZE")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_in_slices_on_several_threads_is_its_samples_one_by_one(threads):
    """Many samples of much work: slices of a batch, and shares of the slices."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2),
            nn.Flatten(), nn.Linear(11_552, 9),
        ).eval()  # fmt: skip
    x = torch.randn(37, 8, 40, 40, generator=torch.Generator().manual_seed(6))
    q = qs.quantize(model, [x])
    alone = torch.cat([q(x[i : i + 1]) for i in range(len(x))])
    with torch_threads(threads):
        fresh = copy.deepcopy(q)
        assert torch.equal(fresh(x), alone) and torch.equal(fresh(x[:7]), alone[:7])


@clause("STA-COPY")
def test_a_state_takes_codes_and_no_floats():
    """Codes that went through floats, as a state that somebody averaged, are refused by name."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(8))
    q, other = qs.quantize(model, [x]), qs.quantize(model, [3 * x + 1])
    x = 3 * x + 1  # which the first network's grids would clip at one end
    expected = other(x)
    state = copy.deepcopy(other.state_dict())
    (key,) = [key for key in state if key.endswith("_extra_state")]
    weight = next(name for name in state[key] if name.endswith(".weight"))
    as_floats = {**state[key], weight: state[key][weight].float()}
    with pytest.raises(ValueError, match=f"^state_dict: '{weight}' is torch.float32"):
        q.load_state_dict({**state, key: as_floats})
    turned = {**state[key], weight: state[key][weight].T.contiguous()}
    with pytest.raises(ValueError, match="expected"):
        q.load_state_dict({**state, key: turned})
    for names in ({k: v for k, v in state[key].items() if k != weight}, state[key] | {"more": torch.zeros(1)}):
        with pytest.raises(ValueError, match="^state_dict: expected the arrays of this network"):
            q.load_state_dict({**state, key: names})
    q.load_state_dict(state)
    assert torch.equal(q(x), expected) and torch.equal(q.run_on("reference")(x), expected)
    for tensor in state[key].values():
        tensor.zero_()  # the network has arrays of its own
    assert torch.equal(q(x), expected) and torch.equal(q.run_on("reference")(x), expected)


@clause("STA-NO-LEAK", "STA-UNTOUCHED")
def test_what_stays_in_float_is_the_networks_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(9))
    q = qs.quantize(model, [x])
    twin, before, expected = copy.deepcopy(q), q(x), model(x).detach()
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.add_(1)
    assert not torch.equal(q(x), before)
    assert torch.equal(twin(x), before) and torch.equal(model(x), expected)
    assert sum(p.numel() for p in q.parameters()) == 8
