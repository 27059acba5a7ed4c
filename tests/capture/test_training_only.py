"""Models that compute otherwise in training mode than a graph of evaluation can say, or only where it is recorded."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from networks import seeded

ROWS = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))


class Part(nn.Module):
    """A layer, and what is written behind it."""

    def __init__(self, written):
        super().__init__()
        self.layer, self.written = nn.Linear(8, 8), written
        self.weight, self.drop = nn.Parameter(torch.ones(8)), nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        return self.written(self, self.layer(x))


class Around(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.first, self.part, self.last = nn.Linear(8, 8), part, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.part(torch.relu(self.first(x))))


def on_tensors(part, x):
    """What only a recording goes through, and drops values in training mode."""
    return part.drop(x) if type(x) is torch.Tensor else None


OTHERWISE = {
    "another argument": lambda p, y: F.layer_norm(y, (8,), **({"weight": p.weight} if p.training else {})),
    "an argument that is computed": lambda p, y: torch.clamp(y, **({"max": y.max()} if p.training else {"max": 9.0})),
    "more that is joined": lambda p, y: torch.cat([y, y * 2] if p.training else [y])[: len(y)],
    "statistics of the batch": lambda p, y: F.batch_norm(y, p.mean, p.var, p.weight, training=p.training),
}


@pytest.mark.filterwarnings("ignore:.*of the multiply-accumulates", "ignore:.*in float")
@pytest.mark.parametrize("name", OTHERWISE)
def test_what_has_no_place_in_a_graph_is_computed_as_the_model_does(name):
    trained = qs.prepare_qat(seeded(lambda: Around(Part(OTHERWISE[name]))))  # ranges are those of training
    beside = seeded(lambda: Around(Part(OTHERWISE[name]))).train()
    expected = beside(ROWS)
    got = trained.train()(ROWS)
    # Values and weights of 8 bits through three layers.
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()
    got.sum().backward()
    q = qs.convert(trained.eval())
    expected = beside.eval()(ROWS)  # by the statistics that training has moved
    assert (q(ROWS) - expected).abs().max() < 0.1 * expected.abs().max()


def test_what_acts_in_a_part_that_is_recorded_acts_in_training_alone():
    model = seeded(lambda: Around(Part(on_tensors)))
    trained = qs.prepare_qat(model, [ROWS]).train()
    torch.default_generator.manual_seed(1)
    first, second = trained(ROWS), trained(ROWS)
    assert not torch.equal(first, second)  # other values are dropped
    trained.eval()
    assert torch.equal(trained(ROWS), trained(ROWS))
    q = qs.convert(trained)
    expected = model.eval()(ROWS)
    assert (q(ROWS) - expected).abs().max() < 0.1 * expected.abs().max()
