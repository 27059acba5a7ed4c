"""Chapter 7: ``prepare_qat`` and ``convert`` themselves: copies, files, modes, freezing, reports."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from networks import bits, same
from quantspec.numerics.observers import HistogramObserver
from quantspec.qat.prepare import QATModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),  # torch's own, where it reads what it pickled
]


class Whole(nn.Sequential):
    """One graph, with a normalization and what acts in training mode."""

    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 3))


class Parts(nn.Module):
    """Two parts, one of which is called with tensors and with an option, with Python between."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Whole(), Optional()

    def forward(self, x):
        y = self.first(x)
        z = self.last(y, twice=bool(x.sum() > -1e9))
        return z + self.last(y)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, y, twice=False):
        y = self.layer(y)
        return 2 * y if twice else y


class Written(nn.Module):
    """A normalization that is no module."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.gamma, self.beta = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x):
        x = F.batch_norm(self.first(x), self.mean, self.var, self.gamma, self.beta)
        return self.last(x.relu())


MODELS = {"whole": Whole, "parts": Parts}
X = networks.inputs(16, (6,))


def prepared(name, *, calibrated=True, **options):
    return qs.prepare_qat(networks.seeded(MODELS[name]), [X] if calibrated else (), **options)


def trained(p, *, steps=2, seed=0):
    """Trains on seeded batches; what the loss became."""
    torch.default_generator.manual_seed(seed)
    optimizer = torch.optim.Adam(p.parameters(), 1e-2)
    p.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (p(torch.randn(8, 6)) - 1).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def by_pickle(p):
    return pickle.loads(pickle.dumps(p))


@clause("QAT-RESUME", "QAT-EQUAL")
@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("twin_of", [copy.deepcopy, by_pickle])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_goes_on_as_the_original_would_have_and_by_itself(name, learned, twin_of, mode):
    p = prepared(name, learned_scales=learned)
    trained(p)
    twin = twin_of(p.train(mode))
    assert isinstance(twin, QATModule) and [part.training for part in twin.modules()] == [mode] * len([*p.modules()])
    assert {name for name, _ in p.named_parameters()} == {name for name, _ in twin.named_parameters()}
    before = bits(p)
    assert same(before, bits(twin)) and twin.options == p.options
    own = trained(twin, seed=1)
    assert same(before, bits(p)) and not same(before, bits(twin))
    assert trained(p, seed=1) == own and same(bits(p), bits(twin))
    assert torch.equal(twin.eval()(X), qs.convert(twin)(X)) and torch.equal(twin(X), p.eval()(X))
    assert twin.model is not p.model and not {id(part) for part in p.modules()} & {id(part) for part in twin.modules()}


@clause("QAT-RESUME")
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_before_the_first_batch_is_one(name):
    p = prepared(name, calibrated=False)
    twin = copy.deepcopy(p)
    assert not twin.settled and trained(p) == trained(twin) and same(bits(p), bits(twin))
    with pytest.raises(TypeError, match="^a network in training cannot be pickled before its first batch: the mod"):
        pickle.dumps(prepared(name, calibrated=False))


@clause("QAT-RESUME")
def test_a_copy_before_the_first_batch_trains_all_that_the_original_does():
    p = qs.prepare_qat(networks.seeded(Written), ())
    twin, start = copy.deepcopy(p), [parameter.detach().clone() for parameter in p.parameters()]
    assert trained(p) == trained(twin) and same(bits(p), bits(twin))
    assert not any(torch.equal(a, b) for a, b in zip(start, twin.parameters(), strict=True))


@clause("QAT-ACTS", "QAT-FREEZE")
@pytest.mark.parametrize("way", [lambda p: p, copy.deepcopy])
@pytest.mark.parametrize("name", MODELS)
def test_the_first_batch_and_copies_leave_the_modes_of_modules(name, way):
    p = qs.prepare_qat(networks.seeded(MODELS[name]).train())
    norm, dropout = ("1", "3") if name == "whole" else ("first.1", "first.3")
    for path in (norm, dropout):
        p.model.get_submodule(path).eval()
    modes = {path: part.training for path, part in p.model.named_modules()}
    for _ in range(2):
        p = way(p)
        outputs = [p(X), way(p)(X)]
        assert modes == {path: part.training for path, part in p.model.named_modules()} and p.training
    assert int(p.model.get_submodule(norm).num_batches_tracked) == 0
    p.freeze(statistics=False)
    assert torch.equal(p(X), p(X)) and torch.equal(p(X), qs.convert(p)(X)) and outputs[0].shape == outputs[1].shape


@clause("QAT-DELAY")
@pytest.mark.parametrize("name", MODELS)
def test_the_first_batch_sets_ranges(name):
    model = networks.seeded(MODELS[name]).train()
    found = []
    for averaging in (0.01, 1.0):  # what has no range yet is taken as it is
        torch.default_generator.manual_seed(0)
        p = qs.prepare_qat(model, averaging=averaging)
        p(X)
        found += [network.ranges for network in p.networks]
    assert all(torch.equal(a, b) for a, b in zip(found[: len(p.networks)], found[len(p.networks) :], strict=True))


class Between(nn.Module):
    """Python between two parts, in which a module acts, with a rate that changes."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.shift = 0.0

    def forward(self, x):
        x = self.first(x)
        x = self.drop(x) if x.sum() > -1e9 else x
        return self.last(x) + (1.0 if self.training else 0.0)


@clause("QAT-ACTS", "QAT-PYTHON")
def test_python_between_parts_sees_the_modes_and_rates_of_the_model():
    p = qs.prepare_qat(networks.seeded(Between), [X]).train().freeze()
    assert not p.is_whole and not torch.equal(p(X), p(X))
    p.model.drop.p = 0.0
    acted = p(X)
    assert torch.equal(p(X), acted)
    p.model.drop.p = 0.5
    p.model.drop.eval()
    assert torch.equal(p(X), acted)
    p.model.training = False
    assert (acted - p(X) - 1.0).abs().max() < 2**-20 and torch.equal(p(X), qs.convert(p)(X))


@clause("QAT-FREEZE")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options, frozen", [
    ({}, (True, True)), ({"ranges": False}, (False, True)), ({"statistics": False}, (True, False)),
], ids=str)  # fmt: skip
def test_freezing_stops_ranges_and_statistics_unless_one_is_left_out(name, options, frozen):
    p = prepared(name)
    assert p.freeze(**options) is p
    before = bits(p)
    p.train()
    for _ in range(2):
        p(3 * X)
    moved = {key for key, value in bits(p).items() if not torch.equal(value, before[key])}
    assert any(key.endswith("ranges") for key in moved) == (not frozen[0])
    assert any(key.endswith("running_mean") for key in moved) == (not frozen[1])


@clause("QAT-CONVERT")
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_what_was_converted_reports_its_work_and_runs_where_it_was_asked_to(name, calibrated):
    model = networks.seeded(MODELS[name]).eval()
    p = prepared(name, calibrated=calibrated, engine="reference").train()
    p(X)
    q, plain = qs.convert(p.eval()), qs.quantize(model, [X])
    assert str(q.report) == str(plain.report) and "int8" in str(q.report)
    networks_of = [q] if name == "whole" else [part for island in q.islands.values() for part in island.networks]
    assert len(networks_of) == (1 if name == "whole" else 3) and {part.engine for part in networks_of} == {"reference"}
    assert torch.equal(q(X), p(X)) and not q.training and (name == "whole" or len(q.stops) == len(plain.stops) > 0)
    assert repr(p).splitlines()[1].strip() == "dialect onnx, weights of 8 bits, activations of 8"


class Little(nn.Module):
    """A network most of whose work stays in float; ``whole``: in one graph, else Python lies between two."""

    def __init__(self, whole):
        super().__init__()
        self.first, self.last, self.whole = nn.Linear(6, 4), nn.Linear(4, 4), whole

    def forward(self, x):
        x = self.first(x)
        return self.last(x @ x.mT @ x if self.whole or x.sum() > -1e9 else x)


NOT_IN_INT8 = {
    "no layer": (lambda: nn.Sequential(nn.Tanh()), "^nothing was quantized: it has no layer with an integer form"),
    "no part": (lambda: networks.seeded(Parts), "^nothing was quantized: no part with a layer could be captured"),
    "a little": (lambda: networks.seeded(lambda: Little(True)), "^[0-9]+ % of the multiply-accumulates are in int8"),
    "a little, in parts": (
        lambda: networks.seeded(lambda: Little(False)), "^[0-9]+ % of the multiply-accumulates are in int8",
    ),
}  # fmt: skip


@clause("QAT-CONVERT", "STA-NOTHING", "SIZ-WARN")
@pytest.mark.filterwarnings("default:[0-9]+ % of the multiply-accumulates")
@pytest.mark.parametrize("name", NOT_IN_INT8)
def test_conversion_says_what_is_not_in_int8_as_quantization_does(name):
    build, told = NOT_IN_INT8[name]
    how = {"exclude": ["first", "first.*", "last", "last.*"] if name == "no part" else ()}
    p = qs.prepare_qat(build().eval(), [X], **how)
    with pytest.warns(UserWarning, match=told) as ours:
        q = qs.convert(p)
    with pytest.warns(UserWarning, match=told) as plain:
        qs.quantize(build().eval(), [X], **how)
    assert [str(each.message) for each in ours] == [str(each.message) for each in plain]
    assert torch.equal(q(X), p(X))


@clause("QAT-REFUSE")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("by_name", [False, True])
def test_tensors_that_are_not_dense_are_refused(name, by_name):
    p = prepared(name)
    zeros = torch._efficientzerotensor((16, 6))  # what autograd gives for gradients that are none
    others = {"of layout torch.sparse_coo": X.to_sparse(), "on meta": X.to("meta"), "without memory": zeros}
    for form, x in others.items():
        with pytest.raises(TypeError, match=f"^batch: expected dense tensors on the CPU, got one that is {form}$"):
            p(**{"x" if name == "parts" else "input": x}) if by_name else p(x)


@clause("QAT-EQUAL")
@pytest.mark.parametrize("name", MODELS)
def test_inputs_may_be_given_by_their_names(name):
    found = []
    for args, kwargs in (((X,), {}), ((), {"x" if name == "parts" else "input": X})):
        p = prepared(name, calibrated=False).train()
        torch.default_generator.manual_seed(0)
        found.append([p(*args, **kwargs), p.eval()(*args, **kwargs)])
    assert all(map(torch.equal, *found))


@clause("QAT-START")
def test_calibration_uses_the_observer_and_every_batch():
    batches = [X, 3 * X, X / 2]
    for options in ({}, {"observer": HistogramObserver()}, {"per_channel": False}, {"fuse": False}, {"bits": 6}):
        p = qs.prepare_qat(networks.seeded(Whole).eval(), batches, **options)
        assert torch.equal(p(X), qs.quantize(networks.seeded(Whole).eval(), batches, **options)(X)), options


BAD = {
    "averaging, none": ({"averaging": 0.0}, ValueError, "averaging: expected more than 0 and at most 1, got 0.0"),
    "averaging, too much": ({"averaging": 1.5}, ValueError, "averaging: expected more than 0 and at most 1, got 1.5"),
    "averaging, text": ({"averaging": "1"}, TypeError, "averaging: expected a number"),
    "delay, less than none": ({"delay": -1}, ValueError, "delay: expected a number of batches of at least 0, got -1"),
    "delay, a fraction": ({"delay": 0.5}, TypeError, "delay: expected a whole number, got 0.5"),
    "learned_scales": ({"learned_scales": 1}, TypeError, "learned_scales: expected True or False"),
    "learned, no batch": (
        {"learned_scales": True, "calibration": []}, ValueError,
        "learned_scales: expected calibration batches, whose ranges initialize the scales",
    ),
    "dialect": (
        {"dialect": "fbgemm-int16"}, qs.UnsupportedError,
        "dialect: fbgemm-int16 adds products in 16 bits, which saturate; train in the dialect without -int16",
    ),
    "a batch for batches": ({"calibration": X}, TypeError, "calibration: expected"),
    "unknown": ({"bitz": 4}, TypeError, "prepare_qat: argument: expected one of model, calibration, averaging, delay"),
}  # fmt: skip


@clause("QAT-REFUSE")
@pytest.mark.parametrize("name", BAD)
def test_arguments_that_cannot_be_are_refused_by_name(name):
    options, kind, message = BAD[name]
    with pytest.raises(kind) as raised:
        qs.prepare_qat(networks.seeded(Whole), **options)
    assert str(raised.value).startswith(message)


@clause("QAT-REFUSE")
def test_the_least_and_the_most_that_may_be_are_taken():
    p = prepared("whole", averaging=1.0, delay=0)
    assert p.how.constant == 1.0 and p.how.delay == 0


@clause("QAT-REFUSE")
@pytest.mark.parametrize("make, name", [
    (lambda: qs.quantize(networks.seeded(Whole).eval(), [X]), "QuantizedModule"),
    (lambda: qs.quantize(networks.seeded(Parts).eval(), [X]), "QuantizedModel"),
    (lambda: qs.prepare(networks.seeded(Whole).eval()), "Prepared"), (lambda: prepared("whole"), "QATModule"),
])  # fmt: skip
def test_what_is_no_float_model_is_refused(make, name):
    with pytest.raises(TypeError, match=f"^model: expected a float model, got a {name}$"):
        qs.prepare_qat(make())
    with pytest.raises(TypeError):
        qs.prepare_qat("model")
