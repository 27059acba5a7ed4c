"""Chapter 7: recurrent layers of every form have the gradients of the float layer, for inputs and states too, and are
those that are shipped."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import networks
import quantspec as qs
from evidence import clause
from networks import tensors
from quantspec.ptq.conversion import weight_codes
from quantspec.ptq.options import checked
from quantspec.qat.recurrent import Matrix

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


@clause("QAT-EQUAL", "QAT-START")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"reduce_range": True}, {"dialect": "fbgemm", "weight_bits": 4}], ids=str)
def test_what_is_given_without_gradients_and_on_other_ranges_of_codes(kind, options):
    model = Given(networks.seeded(lambda: KINDS[kind]())).eval()
    x = networks.inputs(6, (3, 4))
    p, q = qs.prepare_qat(model, [(x,)], **options), qs.quantize(model, [(x,)], **options)
    with torch.no_grad():
        silent = p(x)
    outputs = [tensors(y) for y in (silent, p(x), q(x), qs.convert(p)(x))]
    assert all(len(each) == (3 if kind == "lstm" else 2) for each in outputs)
    assert all(torch.equal(a, b) for each in outputs[1:] for a, b in zip(outputs[0], each, strict=True))


@clause("QAT-WEIGHT")
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_matrix_has_the_grid_of_chapter_5(per_channel):
    weight = networks.inputs(6, (4,))
    usual = dict(reduce_range=None, bits=8, engine="auto", dialect="onnx")
    for weight_bits in (2, 4, 8):
        chosen = checked(per_channel=per_channel, weight_bits=weight_bits, **usual)
        matrix = Matrix(weight, None, chosen)
        codes, grid = weight_codes(weight.numpy(), chosen.dialect, per_channel=per_channel, bits=weight_bits)
        assert np.array_equal(matrix.codes, codes) and np.array_equal(matrix.grid.scale, grid.scale)
        assert (matrix.grid.qmin, matrix.grid.qmax, matrix.grid.axis) == (grid.qmin, grid.qmax, grid.axis)
        assert matrix.grid.zero_point.dtype == grid.zero_point.dtype


@clause("QAT-SURROGATE")
@pytest.mark.parametrize("reduce_range", [True, False])
def test_a_matrix_has_the_gradient_of_dequantized_rows(reduce_range):
    chosen = checked(
        per_channel=True, reduce_range=reduce_range, bits=8, weight_bits=None, engine="auto", dialect="onnx"
    )
    weight, x = networks.inputs(6, (4,)).requires_grad_(), networks.inputs(3, (4,))
    Matrix(weight, None, chosen).gates(x).sum().backward()
    codes, scale, grid = chosen.dialect.quantize_dynamic(x.numpy(), reduce_range=reduce_range)
    real = (codes.astype(np.float32) - np.float32(grid.zero_point)) * np.float32(scale)
    # Sums of three float32 below 4: two roundings of at most 2^-21.
    assert torch.allclose(weight.grad, torch.from_numpy(real).sum(0).expand(6, 4), rtol=0, atol=2**-20)


class Before(nn.Module):
    """Products between parts, which autocast computes in bfloat16, for a recurrent layer's inputs and states."""

    def __init__(self, packed):
        super().__init__()
        self.layer, self.packed = nn.GRU(4, 4), packed
        self.register_buffer("one", torch.eye(4))

    def forward(self, x, state):
        if x.sum() > -1e9:
            x, state = x @ self.one, state @ self.one
        x = pack_padded_sequence(x, torch.tensor([5, 4, 2])) if self.packed else x
        y, state = self.layer(x, state)
        return y.data if self.packed else y, state


@clause("QAT-AUTOCAST")
@pytest.mark.parametrize("packed", [False, True])
def test_a_recurrent_layer_of_what_autocast_computed_is_in_float32(packed):
    model = Before(packed).eval()
    given = [networks.inputs(5, (3, 4)), networks.inputs(1, (3, 4))]
    rounded = [value.bfloat16().float() for value in given]
    p = qs.prepare_qat(model, [tuple(given)])
    assert len(p.networks) == 1
    with torch.autocast("cpu", torch.bfloat16):
        found = p(*given)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(found, p(*rounded), strict=True))


@clause("QAT-ACTS")
def test_dropout_between_layers_keeps_the_mean():
    """One step, in which the second layer's gates are linear in what the first gives: dropped or divided by 1 - p."""
    layer = nn.RNN(1, 400, num_layers=2, nonlinearity="relu", bias=False, dropout=0.25)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(torch.ones(400, 1) if name == "weight_ih_l0" else torch.eye(400) * ("ih" in name))
    model, x = Given(layer).eval(), torch.ones(1, 1, 1)
    p = qs.prepare_qat(model, [(x,)]).train()
    torch.default_generator.manual_seed(0)
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
    packed = pack_padded_sequence(x, torch.tensor([1, 5, 4]), enforce_sorted=False)
    states = [networks.inputs(2, (3, 5)) / 2 for _ in range(2 if kind == "lstm" else 1)]
    for given in ((packed,), (packed, *states)):
        p = qs.prepare_qat(model, [given])
        found, expected = (part(*given) for part in (p, qs.convert(p)))
        assert isinstance(found[0], PackedSequence)
        assert all(map(torch.equal, found[0], expected[0]))
        padded, lengths = pad_packed_sequence(found[0])
        assert lengths.tolist() == [1, 5, 4]
        assert torch.equal(padded.abs().sum(2) > 0, torch.arange(5)[:, None] < lengths)
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
    torch.default_generator.manual_seed(0)
    first, second = (p.train()(packed)[0].data for _ in range(2))
    assert not torch.equal(first, second) and not torch.equal(first, calm)
    assert torch.equal(p.eval()(packed)[0].data, qs.convert(p)(packed)[0].data)
