"""A network in training as a pickle, as training in several processes and ``torch.save`` of a whole module have it."""

import copy
import pickle

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded


class Branching(nn.Module):
    """Two parts with Python between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        return self.c(self.b(x) if x.sum() > -1 else x)


def whole():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


def step(p, x):
    """One step of training; gives what the network computed before it."""
    torch.default_generator.manual_seed(5)
    optimizer = torch.optim.SGD(p.parameters(), 0.1)
    output = p(x)
    output.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return output.detach()


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")
@pytest.mark.parametrize("copied", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning")  # torch, of what it pickles itself
@pytest.mark.parametrize("build", [whole, Branching])
def test_a_copy_trains_as_the_original_and_apart_from_it(build, copied):
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    p = qs.prepare_qat(seeded(build), [x]).train()
    step(p, x)
    twin = copied(p)
    assert twin.training and all(module.training for module in twin.model.modules())
    for _ in range(2):
        before = [parameter.clone() for parameter in p.parameters()]
        ours = step(twin, x)
        assert all(map(torch.equal, before, p.parameters()))
        assert torch.equal(ours, step(p, x))
    assert all(map(torch.equal, p.parameters(), twin.parameters()))
    q, other = qs.convert(p.eval()), qs.convert(twin.eval())
    assert torch.equal(q(x), other(x)) and torch.equal(p(x), q(x))


@pytest.mark.parametrize("build", [whole, Branching])
def test_what_has_seen_no_batch_is_not_pickled_and_says_why(build):
    p = qs.prepare_qat(seeded(build))
    with pytest.raises(TypeError, match="before its first batch: .* train on a batch or pass calibration batches"):
        pickle.dumps(p)
    assert not copy.deepcopy(p).settled
