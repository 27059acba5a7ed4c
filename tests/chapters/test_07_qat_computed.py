"""Chapter 7: what a model computes of its parameters alone is computed in each batch, so that they are trained."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import networks
import quantspec as qs
from evidence import clause
from networks import bits, far

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


class Weights(nn.Module):
    """Weights and a bias that are computed for layers."""

    def __init__(self):
        super().__init__()
        self.a, self.bias = nn.Parameter(torch.randn(6, 4) / 2), nn.Parameter(torch.randn(6))
        self.b, self.shift = nn.Parameter(torch.randn(6, 6) / 2), nn.Parameter(torch.randn(3))
        self.last = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = F.linear(x, self.a - self.a.mean(1, keepdim=True), 2 * self.bias).relu()
        return self.last(x @ self.b.softmax(0)) + self.shift.exp()


class Einsum(nn.Module):
    """Parameters in other orders of axes than layers have them, one with several weights, one that is computed."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 2, 3) / 2), nn.Parameter(torch.randn(2, 3, 5) / 2)
        self.c = nn.Parameter(torch.randn(5, 2, 4) / 3)

    def forward(self, x):
        x = torch.einsum("ni,ihd->nhd", x, self.a)
        x = torch.einsum("nhd,hde->nhe", x.relu(), self.b)
        return torch.einsum("nhe,eho->no", x, self.c * 1.5)


class Bias(nn.Module):
    """A table of biases that is looked up by a constant index, as windowed attention does."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.table = nn.Linear(4, 5), nn.Linear(5, 5), nn.Parameter(torch.randn(9, 2))
        self.register_buffer("index", torch.tensor([[0, 3, 5, 8, 1], [2, 2, 7, 6, 4]]))

    def forward(self, x):
        biases = self.table[self.index.flatten()].view(2, 5, 2).permute(2, 0, 1)[0]
        return self.b((self.a(x).unsqueeze(1) + biases).softmax(-1).sum(1))


class Slices(nn.Module):
    """Parts of parameters, as positions are added."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.positions = nn.Linear(4, 4), nn.Linear(4, 2), nn.Parameter(torch.randn(1, 9, 4))

    def forward(self, x):
        return self.b(torch.atan(self.a(x) + self.positions[:, 1:4]))


class Channels(nn.Module):
    """Factors, divisors and differences for each channel, which layers absorb or which stand alone."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.factor, self.divisor = nn.Parameter(torch.full((4, 1, 1), 0.5)), nn.Parameter(torch.rand(1, 4, 1, 1) + 0.5)
        self.shift, self.more = nn.Parameter(torch.randn(1, 4, 1, 1)), nn.Parameter(torch.full((4, 1, 1), 0.5))

    def forward(self, x):
        x = (self.a(x) * self.factor - self.shift).relu()
        return self.last(F.avg_pool2d(self.b(x) / self.divisor + self.more, 2) * self.factor)


class Modules(nn.Module):
    """Modules that compute a bias of a constant table, as windowed attention does; ``recorded``: where it cannot be
    traced, with parts of biases that are set to zero, to parameters and increased by way of other tensors."""

    def __init__(self, recorded=False):
        super().__init__()
        self.a, self.b, self.recorded = nn.Linear(4, 6), nn.Linear(6, 2), recorded
        self.bias, drop = nn.Parameter(torch.randn(6)), nn.Dropout(0.5) if recorded else nn.Identity()
        self.table = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), drop, nn.Linear(8, 6, bias=False))
        self.register_buffer("places", torch.randn(3, 2))
        self.placed = nn.Parameter(torch.randn(2)) if recorded else None

    def forward(self, x):
        bias = self.bias * 1.5
        for _ in range(x.dim() - 2 if self.recorded else 0):
            x = x[0]
        if self.recorded:
            bias = bias.clone()
            bias[2:4].zero_()
            placed = torch.zeros(6)
            placed[1:3] = self.placed
            placed[3:5] += self.placed.exp()
            bias = bias + placed
        x = F.linear(x, self.a.weight, bias)
        return self.b(torch.atan(x + 2 * torch.sigmoid(self.table(self.places)).sum(0)))


class Python(nn.Module):
    """What is recorded, as it cannot be traced: computed of one parameter, of several, by attributes and in place."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 4) / 2), nn.Parameter(torch.randn(4, 6) / 2)
        self.parts, self.last = nn.Parameter(torch.randn(8, 4) / 2), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(x.dim() - 2):
            x = x[0]
        first, second = self.parts.tanh().split(4)
        changed = self.a * 1.25
        changed.add_(0.125)
        x = F.linear(F.linear(x, changed).relu(), self.b.T.contiguous().T + 0.125)
        return self.last(torch.atan(x + first.mean(0)) @ second.exp())


def normed():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 6, 3)), nn.SiLU(),
        parametrizations.weight_norm(nn.ConvTranspose1d(6, 2, 2)), nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(10, 5)), nn.SiLU(), parametrizations.spectral_norm(nn.Linear(5, 3)),
    )  # fmt: skip


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Recurrent(nn.Module):
    """Tables and recurrent layers with computed weights, below a path with a dot."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)
        self.other = nn.Embedding(9, 4)
        parametrize.register_parametrization(self.other, "weight", Twice())
        self.cell = parametrizations.weight_norm(nn.GRU(4, 4, batch_first=True), "weight_hh_l0")

    def forward(self, x):
        return self.last(self.cell(F.embedding(x, self.table.weight * 2) + self.other(x))[0])


CASES = {
    "weights": (Weights, (4,)), "einsum": (Einsum, (4,)), "a table of biases": (Bias, (4,)), "slices": (Slices, (3, 4)),
    "channels": (Channels, (3, 4, 4)), "modules": (Modules, (4,)), "modules, recorded": (lambda: Modules(True), (4,)),
    "recorded": (Python, (4,)), "normed": (normed, (2, 6)),
    "recurrent": (lambda: nn.Sequential(nn.Sequential(Recurrent())), None),
}  # fmt: skip


RECORDED = {"recorded": 4, "modules, recorded": 2}  # how many layers they have


def made(name):
    build, shape = CASES[name]
    model = networks.seeded(build).eval()
    x = torch.randint(0, 9, (5, 6), generator=torch.Generator().manual_seed(1)) if shape is None else None
    return model, networks.inputs(16, shape) if x is None else x


@clause("QAT-PARAMETERS", "QAT-EQUAL")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")  # torch's own, where it reads what it pickled
@pytest.mark.filterwarnings("ignore:.*cannot be repeated")  # which the gradients tell
@pytest.mark.parametrize("name", CASES)
def test_what_is_computed_of_parameters_trains_them(name):
    model, x = made(name)
    p = qs.prepare_qat(model, [x] if name == "recurrent" else [x, 1.5 * x])
    assert len(p.networks) == 1 and not p.networks[0].added and (p.is_whole or name in RECORDED)
    assert len(p.networks[0].layers) == RECORDED.get(name, len(p.networks[0].layers))
    assert [key for key, _ in p.named_parameters()] == [f"model.{key}" for key, _ in model.named_parameters()]
    for part in (p, model):
        part(x).sin().sum().backward()
    for (key, theirs), ours in zip(model.named_parameters(), p.parameters(), strict=True):
        if theirs.grad is None or ours.grad is None:
            assert theirs.grad is ours.grad is None and key == "a.bias"  # in whose place stands another
            continue
        # What 8 bits put them off by is measured, as in the tests of steps.
        assert far(ours.grad, theirs.grad) < 0.2 and torch.equal(ours.grad == 0, theirs.grad == 0), key
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.add_(0.02 * parameter.abs().mean())
    twin, file = copy.deepcopy(p), io.BytesIO()
    output = p(x).detach()
    assert torch.equal(output, qs.convert(p)(x)) and torch.equal(output, twin(x))
    torch.save(p.state_dict(), file)
    other = qs.prepare_qat(model, [x])
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(output, other.eval()(x)) and far(output, p.model(x).detach()) < 0.2
    if not any(map(parametrize.is_parametrized, p.model.modules())):  # which torch does not pickle
        assert torch.equal(output, pickle.loads(pickle.dumps(p))(x))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(output, p(x)) and not torch.equal(output, twin(x))


class Forged(nn.Module):
    """A constant whose memory is written to in a way that torch does not tell of."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(x.dim() - 2):
            x = x[0]
        a, b = self.a * 2, self.b * 2
        a.detach().numpy()[0], b.detach().numpy()[0] = 0, 0
        return self.last(F.linear(F.linear(x, a).relu(), b).relu())


@clause("QAT-EQUAL")
def test_what_cannot_be_repeated_stays_and_is_warned_of():
    model, x = networks.seeded(Forged).eval(), networks.inputs(8)
    told = "^prepare_qat: constant_0, constant_1: how the model computes it of parameters cannot be repeated; it stays"
    with pytest.warns(UserWarning, match=told):
        p = qs.prepare_qat(model, [x])
    assert torch.equal(p(x), qs.quantize(model, [x])(x)) and torch.equal(p(x), qs.convert(p)(x))


@clause("QAT-EQUAL")
def test_what_cannot_be_repeated_is_warned_of_in_the_users_line():
    with pytest.warns(UserWarning, match="cannot be repeated") as seen:
        qs.prepare_qat(networks.seeded(Forged).eval(), [networks.inputs(8)])
    assert seen[0].filename == __file__


@clause("QAT-ACTS", "QAT-CONVERT")
def test_what_acts_on_parameters_acts_in_training_mode_alone():
    model, x = made("modules, recorded")
    p = qs.prepare_qat(model, [x]).train().freeze()
    torch.default_generator.manual_seed(0)
    assert not torch.equal(p(x), p(x))
    q = qs.convert(p)
    assert torch.equal(p.eval()(x), q(x)) and torch.equal(q(x), qs.quantize(model, [x])(x))


@clause("QAT-ACTS", "QAT-CONVERT")
def test_conversion_in_training_mode_changes_no_statistics_of_a_parametrization():
    model, x = made("normed")
    p = qs.prepare_qat(model, [x]).train()
    before = bits(p)
    q = qs.convert(p)
    assert all(torch.equal(value, before[key]) for key, value in p.state_dict().items())
    assert all(part.training for part in p.modules())
    assert torch.equal(p.eval()(x), q(x))
    p.train()(x)
    assert not torch.equal(p.model[6].parametrizations.weight[0]._u, before["model.6.parametrizations.weight.0._u"])


@clause("QAT-PARAMETERS")
@pytest.mark.parametrize("hook", [
    nn.utils.weight_norm, nn.utils.spectral_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
], ids=["weight_norm", "spectral_norm", "prune"])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_hook_is_warned_of_and_its_weight_is_trained(hook):
    model = networks.seeded(lambda: nn.Sequential(hook(nn.Linear(4, 6)), nn.ReLU(), hook(nn.Linear(6, 2)))).eval()
    x = networks.inputs(8)
    model(x)
    with pytest.warns(UserWarning, match="^prepare_qat: 0.weight is computed by torch.nn.utils.*, like 1 others;"):
        p = qs.prepare_qat(model, [x])
    p(x).sum().backward()
    assert p.model[0].weight.grad.abs().max() > 0 and torch.equal(p(x), qs.convert(p)(x))
    assert all(parameter.grad is not None for parameter in p.parameters() if parameter.requires_grad)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(False)
    with pytest.warns(UserWarning, match="prepare_qat: 0.weight"):
        assert not any(parameter.requires_grad for parameter in qs.prepare_qat(model, [x]).parameters())


@clause("QAT-PARAMETERS")
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_one_hook_is_warned_of_without_others():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 2)).eval()
    told = "^prepare_qat: 0.weight is computed by [^,]*, whose hook is left out, and trained as a parameter; use"
    with pytest.warns(UserWarning, match=told):
        qs.prepare_qat(model, [networks.inputs(8)])


@clause("QAT-PARAMETERS")
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_hook_is_warned_of_in_the_users_line():
    model = nn.utils.weight_norm(nn.Linear(4, 2)).eval()
    with pytest.warns(UserWarning, match="whose hook is left out") as seen:
        qs.prepare_qat(model, [networks.inputs(8)])
    assert seen[0].filename == __file__


@clause("QAT-PARAMETERS")
def test_an_attention_whose_projection_is_computed_is_in_int8_and_trained():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = networks.seeded(lambda: nn.Sequential(layer)).eval()
    parametrize.register_parametrization(model[0].self_attn, "in_proj_weight", Twice())
    x = networks.inputs(3, (5, 4))
    p = qs.prepare_qat(model, [x])
    assert len(qs.convert(p).program.layers) == 4
    p(x).sin().sum().backward()
    assert p.model[0].self_attn.parametrizations.in_proj_weight.original.grad.abs().max() > 0
