"""Chapter 7: what acts in training mode only. With the same random numbers it does to the network what it does to the
model."""

import copy
import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Functions(nn.Module):
    """A sum with what a function drops, told by the module's own mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        x = x + F.dropout(self.b(x), 0.5, self.training)
        return self.c(F.dropout(x, p=0.3, training=self.training))


class Depth(nn.Module):
    """Stochastic depth by a branch, as libraries write it: rows are left out."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        kept = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate)
        kept.div_(1 - self.rate)
        return x * kept


class Blocks(nn.Module):
    """One module of stochastic depth in two residual blocks, one of them through a table and a join."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.depth = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 5), Depth(0.5)

    def forward(self, x):
        x = x + self.depth(self.a(x))
        return self.c(torch.cat([x, torch.sigmoid(self.depth(self.b(x)))], -1))


class Layers(nn.Module):
    """Two layers, for what is between them."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 5)


class Noise(Layers):
    """Noise on activations, by a branch."""

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.training:
            x = x + torch.randn_like(x) * 0.5
        return self.b(x)


class Attention(nn.Module):
    """torch's attention function, with a rate in training only."""

    def __init__(self):
        super().__init__()
        self.projections, self.head = nn.Linear(16, 48), nn.Linear(16, 5)

    def forward(self, x):
        q, k, v = self.projections(x).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0))


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 16, 3, dropout=0.5, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Pooled(nn.Module):
    """Dropped channels that are pooled, moved, and averaged before a layer sees them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.drop, self.norm = nn.Dropout2d(0.5), nn.BatchNorm2d(8)

    def forward(self, x):
        x = F.avg_pool2d(F.max_pool2d(self.drop(self.a(x)), 2), 2)
        return self.c(F.relu(self.norm(self.drop(self.b(F.pad(x, (1, 1, 1, 1)))))).mean((2, 3)))


class Heads(nn.Module):
    """A second output in training."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x).relu()
        return torch.cat([self.b(x), self.c(x)]) if self.training else self.b(x)


class Skipping(nn.Module):
    """A block that is left out by a random number of Python's, and a branch by data beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3)), nn.Linear(16, 5)

    def forward(self, x):
        x = self.a(x)
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.b(x)
        return self.c(x) if x.sum() > -1e9 else x


class Dropping(nn.Module):
    """Blocks that are left out at random, by torch's numbers or Python's."""

    def __init__(self, python=False):
        super().__init__()
        self.a, self.b, self.c, self.python = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5), python

    def forward(self, x):
        for block in (self.a, self.b):
            drawn = random.random() if self.python else torch.rand(())
            if not self.training or drawn < 0.5:
                x = x + block(x)
        return self.c(x)


class Masked(nn.Module):
    """A mask for all rows, drawn without looking at them; beside a branch by data, too."""

    def __init__(self, branch=False):
        super().__init__()
        self.a, self.b, self.branch = nn.Linear(16, 32), nn.Linear(32, 5), branch

    def forward(self, x):
        x = self.a(x)
        if self.training:
            x = x * (torch.rand(32) > 0.4)
        return self.b(x) if not self.branch or x.sum() > -1e9 else x


class Connections(nn.Module):
    """Weights that are dropped, as DropConnect does, between two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)

    def forward(self, x):
        weight = F.dropout(self.b.weight, 0.5, self.training)
        return self.c(F.linear(torch.relu(self.a(x)), weight, self.b.bias))


class Less(Layers):
    """A step that training leaves out, between two layers."""

    def forward(self, x):
        x = self.a(x)
        return self.b(x if self.training else torch.tanh(x))


class Twice(nn.Module):
    """What was dropped is read by two layers, and twice by a product."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 32), nn.Linear(32, 5), nn.Linear(32, 5)
        self.drop = nn.Dropout(0.4)

    def forward(self, x):
        x = self.drop(self.a(x))
        return self.b(x) + self.c(x * x)


class Moved(Layers):
    """Noise that multiplies and is added."""

    def forward(self, x):
        x = self.a(x)
        if self.training:
            noise = torch.rand_like(x)
            x = x * noise + noise
        return self.b(x)


class Limited(Layers):
    """A limit that training alone gives."""

    def forward(self, x):
        x = self.a(x)
        limit = {"max": x.mean()} if self.training else {}
        return self.b(torch.clamp(x, min=torch.tensor(-1.0), **limit))


class Normalized(nn.BatchNorm2d):
    """A normalization by the function, which takes its own mode."""

    def forward(self, x):
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


def encoder():
    """Attention's and the feed-forward part's dropout (what torch draws for the sum between depends on its layout)."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, batch_first=True)
    layer.dropout1.p = 0.0
    return layer


ROWS, SERIES, IMAGES = (64, 16), (8, 7, 16), (32, 3, 12, 12)
ACTING = {
    "dropout": (lambda: nn.Sequential(nn.Linear(16, 32), nn.Dropout(), nn.Linear(32, 5)), ROWS),
    "in place": (
        lambda: nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5, inplace=True), nn.ReLU(), nn.Linear(32, 5)), ROWS,
    ),
    "on the input": (lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 5)), ROWS),
    "behind a layer": (lambda: nn.Sequential(nn.Linear(16, 5), nn.Dropout(0.2)), ROWS),
    "alpha": (lambda: nn.Sequential(nn.Linear(16, 32), nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(32, 5)), ROWS),
    "instances": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True), nn.Conv2d(8, 5, 3)),
        IMAGES,
    ),
    "functions": (Functions, ROWS), "depth": (Blocks, ROWS), "noise": (Noise, ROWS), "attention": (Attention, SERIES),
    "lstm": (Recurrent, SERIES), "pooled": (Pooled, IMAGES), "heads": (Heads, ROWS), "skipping": (Skipping, ROWS),
    "encoder": (encoder, SERIES), "masked": (Masked, ROWS), "masked, branch": (lambda: Masked(branch=True), ROWS),
    "connections": (Connections, ROWS), "less": (Less, ROWS),
    "twice": (Twice, ROWS), "moved": (Moved, ROWS), "limited": (Limited, ROWS),
    "normalized": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Normalized(8), nn.ReLU(), nn.Conv2d(8, 5, 3)), IMAGES),
    "layers left out": (Dropping, ROWS), "by Python": (lambda: Dropping(python=True), ROWS),
}  # fmt: skip


def writes_what_it_reads():
    """Whether this torch's normalization of instances writes its statistics in evaluation mode, too."""
    norm = nn.InstanceNorm2d(3, track_running_stats=True).eval()
    before = norm.running_mean._version
    norm(torch.zeros(1, 3, 2, 2))
    return norm.running_mean._version > before


IN_PARTS = {
    "pooled", "heads", "skipping", "masked", "masked, branch", "connections", "less", "limited", "layers left out",
    "by Python", *(["instances"] if writes_what_it_reads() else []),
}  # fmt: skip


def decibels(expected, got):
    """10 log10 of signal over noise."""
    return float(10 * torch.log10(expected.square().mean() / (expected - got).square().mean().clamp_min(1e-30)))


def made(name):
    build, shape = ACTING[name]
    generator = torch.Generator().manual_seed(3)
    return networks.seeded(build), torch.randn(shape, generator=generator)


def seeded_call(model, x, seed=5):
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    return model(x)


def having_gradients(model):
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


@clause("QAT-ACTS")
@pytest.mark.parametrize("dialect", ["onnx", "fbgemm"])
@pytest.mark.parametrize("name", ACTING)
def test_what_acts_in_training_mode_acts_as_in_the_model(name, dialect):
    model, x = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Activations stay float at first, so that 8-bit weights are all that is between the two.
        p = qs.prepare_qat(model, [x], delay=2, dialect=dialect).train()
        user = copy.deepcopy(model).train()
        for seed in range(2):
            expected, got = seeded_call(user, x, seed).detach(), seeded_call(p, x, seed).detach()
            assert decibels(expected, got) > 35, seed
            assert expected.shape != model(x).shape or decibels(expected, model(x)) < 30
        for _, _, network in p.parts():
            # They are those of evaluation, which what was scaled up goes beyond: by two, and by two again.
            network.ranges *= 8 if name == "pooled" else 4
        q = seeded_call(p, x, seed)
        assert decibels(expected, q.detach()) > 20
        q.sum().backward()
        seeded_call(user, x, seed).sum().backward()
        assert having_gradients(p.model) == having_gradients(user)
        p.eval()
        converted = qs.convert(p)
        assert torch.equal(p(x), converted(x)) and torch.equal(p(x), p(x))


@clause("QAT-ACTS", "QAT-START")
@pytest.mark.parametrize("name", sorted(set(ACTING) - IN_PARTS))
def test_nothing_acts_in_evaluation_mode(name):
    model, x = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = qs.quantize(model, [x])
        p = qs.prepare_qat(model, [x])
        assert torch.equal(p(x), q(x))
        shipped = qs.convert(p)
    assert torch.equal(shipped(x), q(x))
    assert [type(step) for step in shipped.program.steps] == [type(step) for step in q.program.steps]


@clause("QAT-ACTS")
def test_a_module_acts_while_it_is_in_training_mode_with_the_rate_that_it_has():
    model, x = made("dropout")
    p = qs.prepare_qat(model, [x]).train().freeze()
    assert not torch.equal(p(x), p(x))
    p.model[1].eval()
    assert torch.equal(p(x), p(x)) and torch.equal(p(x), qs.convert(p)(x))
    p.model[1].train()
    p.model[1].p = 0.0
    assert torch.equal(p(x), qs.convert(p)(x))
    p.model[1].p = 1.0
    assert torch.equal(p(x)[0], p(x)[1])
    assert not torch.equal(copy.deepcopy(p)(x)[0], model(x)[0])


@clause("QAT-ACTS")
def test_what_was_dropped_gets_no_gradient():
    model, x = made("dropout")
    p = qs.prepare_qat(model, [x[:1]]).train()
    torch.default_generator.manual_seed(1)
    p(x[:1]).sum().backward()
    torch.default_generator.manual_seed(1)
    dropped = F.dropout(torch.ones(1, 32))[0] == 0
    assert 0 < dropped.sum() < 32 and not p.model[0].weight.grad[dropped].any()
    assert p.model[0].weight.grad[~dropped].any(dim=1).sum() > 0
    kept = p.model[2].weight.grad[:, ~dropped]
    assert kept.any() and not p.model[2].weight.grad[:, dropped].any()
