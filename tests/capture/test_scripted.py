"""TorchScript inside of a model: what is around it is quantized, and it runs as it is."""

import copy

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import seeded

pytestmark = pytest.mark.filterwarnings("ignore")


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return torch.relu(self.layer(x))


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), inner, nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.inner(torch.relu(self.first(x))))


def x():
    return torch.rand(16, 6, generator=torch.Generator().manual_seed(0))


SCRIPTS = {
    "scripted": lambda inner: torch.jit.script(inner),
    "traced": lambda inner: torch.jit.trace(inner, x()),
    "frozen": lambda inner: torch.jit.freeze(torch.jit.script(inner)),
    "in a container": lambda inner: nn.Sequential(torch.jit.script(inner)),
}


@pytest.fixture(params=SCRIPTS)
def model(request):
    return seeded(lambda: Around(SCRIPTS[request.param](Inner().eval())))


@clause("STA-PARTS")
def test_what_is_around_torchscript_is_quantized(model, tmp_path):
    expected, state = model(x()), copy.deepcopy(model.state_dict())
    q = qs.quantize(model, [x()])
    assert list(q.islands) == ["first", "last"]
    assert any(stop.path.startswith("inner") and "TorchScript" in stop.reason for stop in q.stops)
    assert (q(x()) - expected).abs().max() < 0.02
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(qs.load(tmp_path / "q.safetensors", model=model)(x()), q(x()))
    assert torch.equal(copy.deepcopy(q)(x()), q(x()))
    assert torch.equal(model(x()), expected)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert qs.compare(model, q, [x()]).sqnr > 35


@clause("STA-PARTS")
def test_layers_around_torchscript_are_replaced_without_data(model):
    for q in (qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x())):
        assert list(q.islands) == ["first", "last"]
        assert (q(x()) - model(x())).abs().max() < 0.02


class Several(nn.Module):
    """TorchScript of matrices, of more axes and of vectors: the first one has two axes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.matrices = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.ReLU()))
        self.images = torch.jit.script(nn.Conv1d(1, 1, 3, padding=1))
        self.vectors = torch.jit.script(nn.LayerNorm(6))

    def forward(self, x):
        return self.vectors(self.images(self.matrices(self.first(x))[:, None])[:, 0])


@clause("STA-PARTS")
def test_layers_in_torchscript_are_named_with_the_reason():
    q = qs.quantize_dynamic(seeded(Several))
    assert list(q.islands) == ["first"]
    reason = "it is TorchScript, which holds no Python code; pass the nn.Module that it was compiled from"
    assert [(stop.path, stop.reason) for stop in q.stops] == [("matrices.0", reason), ("images", reason)]


@clause("QAT-PYTHON")
def test_parameters_in_torchscript_are_trained_with_the_others(model):
    p = copy.deepcopy(qs.prepare_qat(model)).train()
    p(x())
    p = copy.deepcopy(p)
    p(x()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in p.parameters())
    torch.optim.SGD(p.parameters(), 0.1).step()
    assert torch.equal(qs.convert(p.eval())(x()), p(x()))


class Leaves(Around):
    """Has modes of its own, which a part that is frozen has not."""

    def train(self, mode=True):
        self.training = mode
        for layer in (self.first, self.last):
            layer.train(mode)
        return self


@pytest.fixture(params=[Around, Leaves])
def frozen(request):
    """A model in evaluation mode, a part of which was frozen afterwards: that has no mode at all."""
    model = seeded(lambda: request.param(Inner()))
    model.inner = torch.jit.freeze(torch.jit.script(model.inner.eval()))
    assert not hasattr(model.inner, "training")
    return model


def test_a_part_without_a_mode_is_in_none_that_would_be_refused(frozen):
    expected = frozen(x())
    for q in (qs.quantize(frozen, [x()]), qs.quantize_dynamic(frozen), qs.quantize_dynamic(frozen, example=x())):
        assert list(q.islands) == ["first", "last"]
        assert (q(x()) - expected).abs().max() < 0.02
    with pytest.raises(ValueError, match="^model: it is in training mode; call model.eval"):
        qs.quantize(frozen.train(), [x()])


@pytest.mark.parametrize("training", [False, True])
def test_a_part_without_a_mode_is_trained_around_and_copied(frozen, training):
    p = qs.prepare_qat(frozen.train(training))
    twin = copy.deepcopy(p)  # before its first batch, of which it is made anew
    assert p.training == twin.training == training
    assert torch.equal(twin.train()(x()), p.train()(x()))
    assert torch.equal(qs.convert(twin.eval())(x()), p.eval()(x()))
