"""What a model's own Python keeps while a copy of it is trained, and what somebody else puts into the model."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.qat import optimizers
from quantspec.qat.network import sharing
from told import exactly

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(3))


class Keeps(nn.Module):
    """Two layers with Python between them, which keeps an average, as a buffer, and other things as attributes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(8, 8), nn.Linear(8, 4), nn.Parameter(torch.ones(8))
        self.register_buffer("average", torch.zeros(8))
        self.calls, self.sums, self.factor, self.layers = 0, [], 1.0, []
        self.layers.append(self.b)

    def forward(self, x):
        y = self.a(x) if x.sum() < 1e9 else x
        if self.training:
            self.average = 0.5 * self.average + 0.5 * x.mean(0)
            self.calls += 1
            self.sums = [*self.sums, float(x.sum())]
        return self.layers[0](y * self.scale * self.factor) + self.average.sum()


def prepared():
    p = qs.prepare_qat(seeded(Keeps), [X])
    assert [path for path, *_ in p.parts()] == ["a", "b"]
    return p


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")
def test_what_a_model_keeps_while_it_trains_is_in_its_state_and_in_what_is_converted():
    model, p = seeded(Keeps).train(), prepared().train()
    for batch in (X, 2 * X):
        model(batch)
        p(batch)
    assert torch.equal(p.state_dict()["model.average"], model.average) and model.average.any()
    assert (p.model.calls, p.model.sums) == (model.calls, model.sums) == (2, [float(X.sum()), float((2 * X).sum())])
    q = qs.convert(p.eval())
    assert torch.equal(q.average, model.average) and q.calls == 2 and torch.equal(q(X), p(X))


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")
@pytest.mark.parametrize("assign", [True, False])
def test_a_state_that_is_assigned_is_that_which_is_computed_and_trained(assign):
    p = prepared().eval()
    state = {key: 3 * value if key == "model.scale" else value for key, value in p.state_dict().items()}
    p.load_state_dict(state, assign=assign)
    p.freeze()(X).sum().backward()
    assert p.model.scale.grad is not None and p.model.scale.grad.any()
    assert torch.equal(p(X), qs.convert(p)(X)) and not torch.equal(p(X), prepared().eval()(X))


def test_an_attribute_that_is_set_between_calls_counts_and_parts_stay_parts():
    p = prepared().eval()
    before = p(X)
    p.model.factor = 0.5
    assert not torch.equal(p(X), before)
    p.model.factor = 1.0
    assert torch.equal(p(X), before)
    assert p.model.layers == [p.model.b] and p.running.layers == [p.running.b]


class Fails(Keeps):
    def forward(self, x):
        self.calls += 1
        y = super().forward(x)
        if x.sum() > 1e3:
            raise ValueError("so much")
        return y


def test_a_call_that_fails_has_counted_as_in_the_model():
    p = qs.prepare_qat(seeded(Fails), [X]).train()
    with pytest.raises(ValueError, match=exactly("so much")):
        p(X + 100)
    assert p.model.calls == 2


def stepped(optimizer, model, *, by_name):
    """One step of an optimizer by a closure."""
    def closure():
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    return optimizer.step(closure=closure) if by_name else optimizer.step(closure)


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SGD])
def test_a_step_that_computes_its_gradients_itself_is_judged_by_them(kind, by_name):
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4)))
    early = kind(model.parameters(), lr=0.1)
    p = qs.prepare_qat(model, [X])
    before = model[0].weight.clone()
    stepped(early, model, by_name=by_name)
    assert not torch.equal(model[0].weight, before)
    model.zero_grad()
    with pytest.raises(ValueError, match=exactly(optimizers.REPLACED)):
        stepped(early, p, by_name=by_name)


class Listed(nn.Module):
    """Holds tensors in other places than as parameters and buffers, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.weights, self.known = [self.first.weight, self.second.bias], {"mean": self.mean}


@pytest.mark.parametrize("parts", [["first"], ["first", "second"], [""]])
def test_the_copy_that_runs_holds_the_models_own_tensors_wherever_it_has_them(parts):
    model = Listed()
    twin, pairs = sharing(model, parts)
    assert twin is not model and all(own is not other for own, other in pairs)
    assert twin.weights is not model.weights and twin.known is not model.known
    mine = [*model.weights, *model.known.values(), *model.parameters(), *model.buffers()]
    theirs = [*twin.weights, *twin.known.values(), *twin.parameters(), *twin.buffers()]
    assert all(a is b for a, b in zip(mine, theirs, strict=True))
