"""Chapter 7: recurrent layers of every form have the gradients of the float layer, for inputs and states too, and are
those that are shipped."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import networks
import quantspec as qs
from evidence import clause
from networks import tensors

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")

KINDS = {
    "lstm": lambda **how: nn.LSTM(4, 5, **how), "gru": lambda **how: nn.GRU(4, 5, **how),
    "tanh": lambda **how: nn.RNN(4, 5, **how), "relu": lambda **how: nn.RNN(4, 5, nonlinearity="relu", **how),
}  # fmt: skip
CELLS = {
    "lstm": lambda **how: nn.LSTMCell(4, 5, **how), "gru": lambda **how: nn.GRUCell(4, 5, **how),
    "tanh": lambda **how: nn.RNNCell(4, 5, **how), "relu": lambda **how: nn.RNNCell(4, 5, nonlinearity="relu", **how),
}  # fmt: skip
FORMS = [{}, {"batch_first": True, "num_layers": 2}, {"bidirectional": True, "bias": False}]


class Given(nn.Module):
    """A recurrent layer with what is given: inputs, and states where there are any."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *states):
        if not states:
            return self.layer(x)
        return self.layer(x, states if len(states) > 1 else states[0])


def compared(model, given, options):
    """The relative distances of the gradients of inputs and parameters, after the network was checked to be shipped."""
    p = qs.prepare_qat(model, [given], **options)
    assert all(map(torch.equal, tensors(p(*given)), tensors(qs.convert(p)(*given))))
    gradients = []
    model.zero_grad()
    for part in (p, model):
        inputs = [value.clone().requires_grad_() for value in given]
        outputs = tensors(part(*inputs))
        sum((y * torch.cos(torch.arange(y.numel())).view(y.shape)).sum() for y in outputs).backward()
        gradients.append([value.grad for value in (*inputs, *part.parameters())])
    return [float((a - b).norm() / b.norm()) if b.any() else float(a.norm()) for a, b in zip(*gradients, strict=True)]


OPTIONS = {"dialect": "exact"}, {"dialect": "onnx", "per_channel": False}, {"dialect": "exact", "weight_bits": 6}


@clause("QAT-SURROGATE", "QAT-EQUAL")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_every_form(kind, form, options):
    model = Given(networks.seeded(lambda: KINDS[kind](**form))).eval()
    if kind == "relu":  # whose sides codes do not tell where all is nearly zero
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.abs_()
    parts = (2 if kind == "lstm" else 1) * (1,)
    cells = model.layer.num_layers * (2 if model.layer.bidirectional else 1)
    for batched, with_state in itertools.product((True, False), (True, False)):
        x = networks.inputs(6, (3, 4) if batched else (4,))
        x = x.abs() if kind == "relu" else x
        batch = () if not batched else (6,) if form.get("batch_first") else (3,)
        states = [networks.inputs(cells, (*batch, 5)).abs() / 2 for _ in parts] if with_state else []
        assert max(compared(model, (x, *states), options)) < 0.1


@clause("QAT-SURROGATE", "QAT-EQUAL")
@pytest.mark.parametrize("kind", CELLS)
def test_single_steps(kind):
    model = Given(networks.seeded(lambda: CELLS[kind]())).eval()
    parts = (2 if kind == "lstm" else 1) * (1,)
    for batched, with_state in itertools.product((True, False), (True, False)):
        x = networks.inputs(3, (4,)) if batched else networks.inputs(1, (4,))[0]
        states = [networks.inputs(3, (5,)) / 2 if batched else networks.inputs(1, (5,))[0] for _ in parts]
        found = compared(model, (x, *(states if with_state else ())), OPTIONS[0])
        assert max(found) < 0.1


@clause("QAT-ACTS")
def test_dropout_between_layers_keeps_the_mean():
    """One step, in which the second layer's gates are linear in what the first gives: dropped or divided by 1 - p."""
    layer = nn.RNN(1, 400, num_layers=2, nonlinearity="relu", bias=False, dropout=0.25)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.ones(400, 1) if name == "weight_ih_l0" else torch.eye(400) * ("ih" in name))
    model, x = Given(layer).eval(), torch.ones(1, 1, 1)
    p = qs.prepare_qat(model, [(x,)]).train()
    torch.manual_seed(0)
    output = p(x)[0].detach().flatten()
    # 300 of 400 are kept, within 3 deviations of 8.7 each; each product puts values off by less than a step of 8 bits.
    kept = output > 0.5
    assert 270 < int(kept.sum()) < 330 and torch.allclose(output[kept], torch.tensor(4 / 3), rtol=0.02)
    assert torch.equal(output[~kept], torch.zeros(int((~kept).sum())))
    assert torch.allclose(p.eval()(x)[0], torch.tensor(1.0), rtol=0.02)


@clause("DYN-PACKED", "QAT-EQUAL")
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_keep_their_order(kind):
    """Of lengths that do not fall, and with states."""
    model = Given(networks.seeded(lambda: KINDS[kind](bidirectional=True))).eval()
    x = networks.inputs(5, (3, 4))
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 4]), enforce_sorted=False)
    states = [networks.inputs(2, (3, 5)) / 2 for _ in range(2 if kind == "lstm" else 1)]
    for given in ((packed,), (packed, *states)):
        p = qs.prepare_qat(model, [given])
        found, expected = (part(*given) for part in (p, qs.convert(p)))
        assert isinstance(found[0], PackedSequence)
        assert all(map(torch.equal, found[0], expected[0]))
        assert all(map(torch.equal, tensors(found[1]), tensors(expected[1])))
    sorted_one = pack_padded_sequence(x, torch.tensor([5, 4, 2]))
    p = qs.prepare_qat(model, [(sorted_one, *states)])
    found, expected = (part(sorted_one, *states) for part in (p, qs.convert(p)))
    assert found[0].sorted_indices is found[0].unsorted_indices is None
    assert torch.equal(found[0].data, expected[0].data)


@clause("QAT-ACTS", "DYN-PACKED")
def test_dropout_between_layers_of_packed_sequences():
    layer = nn.GRU(4, 50, num_layers=2, dropout=0.5)
    model, packed = Given(layer).eval(), pack_padded_sequence(networks.inputs(5, (3, 4)), torch.tensor([5, 4, 2]))
    p = qs.prepare_qat(model, [(packed,)])
    calm = p(packed)[0].data
    torch.manual_seed(0)
    first, second = (p.train()(packed)[0].data for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, calm)
    assert torch.equal(p.eval()(packed)[0].data, qs.convert(p)(packed)[0].data)
