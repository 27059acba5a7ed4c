"""Models of every kind in files: what is loaded into another model of the kind is the network that was saved."""

import copy
import pickle

import models
import pytest
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec.ir.held import held as held_codes
from quantspec.module.coded import Coded, held

CHANGING = ("buffer_that_counts",)  # what one call gives is not what the next does


def built(name, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return models.CASES[name].build(), models.CASES[name].batch()


def tensors_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}


@clause("STA-MODEL-STORED", "STA-COPY")
@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates", "ignore:nothing was quantized")
@pytest.mark.parametrize("name", [name for name in models.CASES if name not in CHANGING])
def test_a_model_of_any_kind_is_loaded_into_another_of_its_kind(name, tmp_path):
    (model, x), (other, _) = built(name), built(name, 1)
    before = tensors_of(other)
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x)):
        y = q(x)
        q.save(tmp_path / "q")
        loaded = qs.load(tmp_path / "q", model=other)
        assert torch.equal(loaded(x), y) and torch.equal(q(x), y) and loaded.report == q.report
        assert type(loaded) is not type(q) or (loaded.nbytes, repr(loaded)) == (q.nbytes, repr(q))
        loaded.save(tmp_path / "again")
        assert (tmp_path / "q").read_bytes() == (tmp_path / "again").read_bytes()
    after = tensors_of(other)
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items()) and before.keys() == after.keys()


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2))
        self.rest = nn.Linear(4, 3)

    def forward(self, x, twice=False):
        y = self.run(x, twice)
        return self.rest(y.mean((2, 3))) if y.sum() > -1e9 else y

    def run(self, x, twice):
        return self.layers(x) * (2 if twice else 1)


@clause("STA-CODED")
def test_weights_are_held_as_codes_within_a_step_and_read_as_them():
    model = networks.seeded(Parts)
    model.layers[1].weight.data.copy_(torch.linspace(-2, 3, 8))  # a normalization that turns signs round
    model.layers[1].running_var.mul_(7)
    x = networks.inputs(4, (3, 8, 8))
    q = qs.quantize(model, [x])
    coded = {name: tensor for name, _, _, tensor in held(q.python) if isinstance(tensor, Coded)}
    assert list(coded) == ["layers.0.weight", "layers.3.weight", "rest.weight"]
    for name, tensor in coded.items():
        original, scale = model.get_parameter(name), torch.tensor(tensor.weight.scale).abs()
        assert tensor.shape == original.shape and tensor.dtype == original.dtype and tensor.device == original.device
        error = (tensor.values() - original).abs()
        if tensor.weight.form == "flipped":
            error = error.transpose(0, 1)
        assert (error <= scale.reshape(-1, *[1] * (error.ndim - 1))).all()
        assert not torch.equal(tensor.values(), original)
    codes = {id(held_codes(step)) for _, network in q.networks() for step in network.program.layers}
    assert all(id(held_codes(tensor.weight, "codes")) in codes for tensor in coded.values())
    assert not {name.removeprefix("python.") for name, _ in q.named_parameters()} & set(coded)


@clause("STA-CODED", "STA-WAYS")
def test_a_call_that_is_new_is_computed_from_the_codes():
    model, x = networks.seeded(Decides), networks.inputs(5, (8,))
    q = qs.quantize(model, [x])
    with torch.no_grad(), pytest.warns(UserWarning, match="this call runs in float"):
        assert torch.equal(q(x + 1e7), networks.with_codes_of(model, q)(x + 1e7))


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Ways()

    def forward(self, x):
        return self.inner(x, bool(x.sum() > 1e6))


class Ways(nn.Module):
    """A part whose way of calling depends on data."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)

    def forward(self, x, twice):
        return self.last(torch.relu(self.norm(self.conv(x))) * (2 if twice else 1))


@clause("STA-CODED", "SIZ-BYTES")
@pytest.mark.parametrize("activations", ["per_tensor", "per_token", None])
def test_layers_in_place_hold_no_weight_in_float(activations):
    model = networks.seeded(lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False)))
    model[0].register_forward_hook(lambda *given: None)
    q = qs.quantize_dynamic(model, activations=activations)
    assert [name for name, _ in q.named_parameters() if "python" in name] == []
    assert q.nbytes == sum(network.nbytes for _, network in q.networks())
    assert torch.equal(q.python[0].bias, model[0].bias)


@clause("STA-CODED")
def test_only_what_stays_in_float_is_a_parameter(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.rnn, self.a_b = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True), nn.Conv1d(4, 4, 1)
            self.a = nn.Module()
            self.a.b = nn.Conv1d(4, 8, 1)

        def forward(self, x):
            return self.a.b(self.a_b(self.rnn(self.linear(x))[0].mT))

    model, x = networks.seeded(Model), networks.inputs(2, (3, 4))
    with pytest.warns(UserWarning, match="^70 % of"):
        q = qs.quantize_dynamic(model)
    q.save(tmp_path / "q")
    for twin in (q, copy.deepcopy(q), qs.load(tmp_path / "q", model=networks.seeded(Model, 1)), q.run_on("reference")):
        names = [name.removeprefix("python.") for name, _ in twin.named_parameters()]
        assert names == ["a_b.weight", "a_b.bias", "a.b.weight", "a.b.bias"]
        assert torch.equal(twin(x), q(x)) and twin.nbytes == q.nbytes
        assert torch.equal(twin.python.rnn.bias_hh_l0, model.rnn.bias_hh_l0)


class Asks(nn.Module):
    """Asks itself for its parameters, as models do for their type of numbers."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 6, bias=False), nn.LayerNorm(6)
        self.last = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        self.last[1].weight = self.last[0].weight

    def forward(self, x):
        y = self.norm(self.first(x.to(next(self.parameters()).dtype)))
        if bool(y.sum() > 1e9):
            y = y * 2
        named = [(name, tuple(p.shape), p.requires_grad) for name, p in self.named_parameters()]
        lists = self.last.parameters(), self.last[1].parameters(recurse=False)
        twice = self.last.named_parameters("a", remove_duplicate=False)
        return self.last(y), named, [len(list(found)) for found in lists], [name for name, _ in twice]


@clause("STA-CODED")
def test_python_that_asks_a_module_for_parameters_gets_all_of_them(tmp_path):
    model, x = networks.seeded(Asks), networks.inputs(4, (8,))
    model.requires_grad_(False)
    expected = model(x)
    for q in (qs.quantize(model, [x]), qs.quantize_dynamic(model)):
        q.save(tmp_path / "q")
        filled = copy.deepcopy(q)
        filled.load_state_dict(q.state_dict())
        twins = q, copy.deepcopy(q), pickle.loads(pickle.dumps(q)), qs.load(tmp_path / "q", model=model), filled
        for twin in twins:
            assert twin(x)[1:] == expected[1:] and torch.equal(twin(x)[0], q(x)[0])
            assert {name.removeprefix("python.") for name, _ in twin.named_parameters()} <= {"norm.weight", "norm.bias"}


@clause("STA-CODED")
def test_python_reads_the_dequantized_codes_and_cannot_write_to_them():
    model = networks.seeded(Reads)
    x = networks.inputs(4, (8,))
    with pytest.warns(UserWarning, match="^40 % of .* in int8; the rest: the model .*reads values of a tensor"):
        static = qs.quantize(model, [x])
    for q in (static, qs.quantize_dynamic(model)):
        assert isinstance(q.python.layer.weight, Coded)
        with torch.no_grad():
            expected = networks.with_codes_of(model, q)(x)
            _, gram = q(x)
        assert torch.equal(gram, expected[1])
        weight = q.layer.weight
        assert torch.equal(weight + 0, weight.values()) and torch.equal(weight.detach()[:2], weight.values()[:2])
        assert torch.equal(torch.cat([weight, weight]), torch.cat([weight.values()] * 2))
        with pytest.raises(qs.UnsupportedError, match="kept as int8 codes cannot be written to"):
            weight.mul_(2)
        for twin in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
            assert torch.equal(twin.values(), weight.values()) and type(twin) is Coded


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x):
        gram = self.layer.weight @ self.layer.weight.t() if x.sum() > -1e9 else x
        return self.layer(x), gram


@clause("STA-CODED", "DYN-RECURRENT")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_what_reads_the_weights_of_a_recurrent_layer_gets_the_codes(kind):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = kind(4, 5, num_layers=2, bidirectional=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_sequence(list(x))
            return self.rnn(packed)[0].data, kind.forward(self.rnn, packed)[0].data

    model, x = networks.seeded(Reads), networks.inputs(3, (6, 4))
    q = qs.quantize_dynamic(model)
    assert all(isinstance(weight, Coded) for weight in q.rnn._flat_weights if weight.ndim == 2)
    with torch.no_grad():
        (int8, from_codes), (expected, _) = q(x), networks.with_codes_of(model, q)(x)
        assert torch.equal(from_codes, expected) and not torch.equal(int8, expected)
        assert ((int8 - expected).abs() < 0.05).all() and not torch.equal(model(x)[0], expected)
