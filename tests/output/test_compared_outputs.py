"""Comparisons of networks by what they give: outputs of any form, targets, examples, and what is not comparable."""

import io
import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import networks
import quantspec as qs
from quantspec.comparison.compare import leaves
from quantspec.numerics import accuracy
from told import exactly

ROWS = networks.inputs(6, (4,))


@dataclass
class Answer:
    logits: torch.Tensor
    text: str


@dataclass
class Both(dict):
    """A dataclass that is a dict, as some libraries have their outputs."""

    logits: torch.Tensor


ONE, TWO = torch.tensor([[1.0, -2.0]]), torch.tensor([3.0])
OUTPUTS = {
    "a tensor": (lambda: ONE, [ONE]),
    "lists and tuples": (lambda: [ONE, (TWO, [ONE])], [ONE, TWO, ONE]),
    "a dict": (lambda: {"a": ONE, "b": {"c": TWO}}, [ONE, TWO]),
    "a dataclass": (lambda: Answer(ONE, "one"), [ONE]),
    "a class of them": (lambda: Answer, []),
    "a dataclass that is an empty dict": (lambda: Both(ONE), []),
    "whole numbers": (lambda: [torch.tensor([1, 2]), np.array([1, 2]), 3], []),
    "texts and nothing": (lambda: ["abc", None, b"d", {1, 2}], []),
    "an array": (lambda: np.array([[1.0, -2.0]], np.float32), [ONE]),
    "a complex array": (lambda: np.array([1 - 2j], np.complex64), [ONE]),
    "an array of anything": (lambda: np.array([ONE, None], dtype=object), []),
    "complex numbers": (lambda: torch.tensor([1 - 2j]), [ONE]),
    "conjugate numbers": (lambda: torch.tensor([1 + 2j]).conj(), [ONE]),
    "codes with a scale": (lambda: torch.quantize_per_tensor(ONE, 0.5, 10, torch.quint8), [ONE]),
    "a sparse one": (lambda: ONE.to_sparse(), [ONE]),
    "half precision": (lambda: ONE.half(), [ONE.half()]),
    "no memory": (lambda: ONE.to("meta"), []),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_numbers_of_an_output_are_its_float_tensors(name):
    output, expected = OUTPUTS[name]
    found = leaves(output())
    assert len(found) == len(expected)
    for got, real in zip(found, expected):
        assert got.layout == torch.strided and not got.is_quantized
        assert got.dtype == real.dtype and torch.equal(got, real)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_numbers_of_a_nested_tensor_are_its_parts():
    first, second = leaves(torch.nested.nested_tensor([ONE, torch.cat([ONE, ONE])]))
    assert torch.equal(first, ONE) and torch.equal(second, torch.cat([ONE, ONE]))


class Gives(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 3), kind

    def forward(self, x):
        y = self.layer(x[:, None])[:, 0] if self.kind == "lines" else self.layer(x)
        return {"text": "none", "sum": y.sum(), "mean": (y.mean(), y), "cube": y[:, None]}.get(self.kind, y)


def compared(kind, data):
    model = networks.seeded(lambda: Gives(kind)).requires_grad_(False)
    return qs.compare(model, qs.quantize(model, [ROWS]), data)


@pytest.mark.parametrize("kind", ["text", "sum", "mean"])
def test_a_batch_whose_first_output_has_no_rows_is_one_example(kind):
    found = compared(kind, [ROWS, (ROWS, torch.zeros(6, dtype=torch.int64)), ROWS])
    assert found.examples == 3 and found.float_accuracy is None
    assert found.sqnr > 20


TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])
NO_TARGETS = {
    "a list": TARGETS.tolist(),
    "a text": "012012",
    "an array": TARGETS.numpy(),
    "fractions": TARGETS.float(),
    "columns": TARGETS[:, None],
    "fewer than examples": TARGETS[:5],
    "one for all": TARGETS[0],
}


@pytest.mark.parametrize("name", NO_TARGETS)
def test_what_is_no_class_for_each_example_is_no_target(name):
    found = compared("rows", [(ROWS, NO_TARGETS[name])])
    assert (found.float_accuracy, found.int8_accuracy, found.changed, found.changed_at_most) == (None,) * 4
    assert compared("rows", [(ROWS, TARGETS, NO_TARGETS[name])]).float_accuracy is not None


def test_outputs_that_are_no_rows_of_classes_have_no_accuracy():
    assert compared("cube", [(ROWS, TARGETS)]).float_accuracy is None


def test_accuracies_are_those_of_each_network():
    model = networks.seeded(lambda: Gives("rows")).requires_grad_(False)
    q = qs.quantize(model, [ROWS], weight_bits=2)
    expected, got = model(ROWS).argmax(1), q(ROWS).argmax(1)
    assert (expected != got).any()
    found = qs.compare(model, q, [(ROWS, expected)])
    assert found.float_accuracy == 1.0 and found.int8_accuracy == float((got == expected).double().mean())
    assert found.changed == int((got != expected).sum()) > 0
    found = qs.compare(model, q, [(ROWS, got)])
    assert found.int8_accuracy == 1.0 and found.float_accuracy < 1.0


def test_a_layer_that_the_network_lacks_is_told():
    layer, other = networks.seeded(lambda: nn.Linear(4, 4)), networks.seeded(lambda: nn.Linear(4, 4), 1)
    q = qs.quantize(nn.Sequential(layer).eval(), [ROWS])
    first, second = qs.compare(nn.Sequential(layer, other).eval(), q, [ROWS]).layers
    assert (first.int8, first.reason) == (True, "") and first.sqnr > 20
    assert (second.int8, second.reason) == (False, "not in the network") and math.isnan(second.sqnr)
    assert second.bytes == 80 and second.macs == 96


@pytest.mark.filterwarnings("ignore:nothing was quantized")
def test_a_model_without_layers_does_no_work_in_codes():
    model = nn.Sequential(nn.Softmax(1)).eval()
    found = qs.compare(model, qs.quantize(model, [ROWS]), [ROWS])
    assert found.layers == () and found.int8_macs == 0.0 and found.compression == math.inf


def test_a_layer_parts_below_the_threshold_and_not_at_it():
    model = networks.seeded(networks.Perceptron)
    q = qs.quantize(model, [ROWS])
    first = qs.compare(model, q, [ROWS]).layers[0].sqnr
    above = qs.compare(model, q, [ROWS], threshold=math.nextafter(first, math.inf))
    at = qs.compare(model, q, [ROWS], threshold=first)
    assert above.parted == "first" and at.parted != "first" and at.threshold == first


class Packs(nn.Module):
    """A recurrent layer that is given sequences of 5, 4 and 2 steps."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6)

    def forward(self, x):
        y, _ = self.lstm(pack_padded_sequence(x, torch.tensor([5, 4, 2])))
        return pad_packed_sequence(y)[0]


def test_steps_of_packed_sequences_are_work_of_their_layer():
    model, x = networks.seeded(Packs), networks.inputs(5, (3, 4))
    found = qs.compare(model, qs.quantize_dynamic(model), [x])
    (row,) = found.layers
    assert 30 < row.sqnr < math.inf
    assert row.macs == (5 + 4 + 2) * (4 * 6 * 4 + 4 * 6 * 6) and found.int8_macs == 1.0


class LastState(nn.Module):
    """Reads no output of a recurrent layer, but its state."""

    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.gru(x)[1][0])


def test_a_layer_is_compared_by_its_output_where_only_its_state_is_read():
    model, x = networks.seeded(LastState), networks.inputs(5, (3, 4))
    first, _ = qs.compare(model, qs.quantize_dynamic(model, example=x), [x]).layers
    expected, got = (layer(x)[0].detach().numpy() for layer in (model.gru, qs.quantize_dynamic(model.gru)))
    assert first.sqnr == accuracy.sqnr(expected, got)


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.mark.filterwarnings("ignore:nothing was quantized")
@pytest.mark.parametrize("exclude", [(), ("first", "second")])
def test_convolutions_are_counted_by_their_positions(exclude):
    model, x = networks.seeded(Images), networks.inputs(2, (3, 9, 9))
    found = qs.compare(model, qs.quantize(model, [x], exclude=exclude), [x, x[:1]])
    assert [row.macs for row in found.layers] == [3 * 16 * 4 * 27, 3 * 16 * 4 * 8]
    assert found.int8_macs == (not exclude)


@networks.mostly_attention
@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_counts_in_every_batch(dynamic):
    heads = networks.seeded(networks.Heads) if dynamic else networks.seeded(lambda: nn.MultiheadAttention(8, 2))
    x = networks.inputs(3, (5, 8))
    given = x if dynamic else (x, x, x)
    q = qs.quantize_dynamic(heads, example=given) if dynamic else qs.quantize(heads, [given])
    once, twice = qs.compare(heads, q, [given]), qs.compare(heads, q, [given, given])
    assert once.int8_macs == twice.int8_macs and (once.int8_macs == 1.0) == dynamic


def test_a_network_of_layers_that_the_model_lacks_is_refused():
    model, x = networks.seeded(Packs), networks.inputs(5, (3, 4))
    message = "q: expected a network quantized from this model, but it has none at 'lstm'"
    with pytest.raises(ValueError, match=exactly(message)):
        qs.compare(model.lstm, qs.quantize_dynamic(model), [x])


def test_outputs_of_other_shapes_are_those_of_another_model():
    model, several = networks.seeded(lambda: Gives("rows")), networks.seeded(lambda: Gives("mean"))
    cube = networks.seeded(lambda: Gives("cube"))
    q = qs.quantize(model, [ROWS])
    for other in (several, cube):
        message = "q: expected a network quantized from this model, but its outputs have other shapes"
        with pytest.raises(ValueError, match=exactly(message)):
            qs.compare(other, q, [ROWS])


def test_a_layer_that_is_given_another_form_is_not_compared_and_the_output_is():
    model = networks.seeded(lambda: Gives("rows"))
    q = qs.quantize(model, [ROWS])
    found = qs.compare(networks.seeded(lambda: Gives("lines")), q, [ROWS])
    assert math.isnan(found.layers[0].sqnr) and found.sqnr > 20


@pytest.mark.filterwarnings("ignore:nothing was quantized")
def test_a_factor_for_each_channel_that_stays_in_float_is_work():
    model, x = networks.seeded(lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=4))), networks.inputs(2, (4, 3, 3))
    (row,) = qs.compare(model, qs.quantize(model, [x], exclude="0"), [x]).layers
    assert row.macs == 2 * 9 * 4


class Made:
    """No network."""


ARGUMENTS = {
    "a tensor as data": (
        lambda model, q: qs.compare(model, q, ROWS), TypeError,
        "data: expected an iterable of batches, got Tensor; pass [batch] for one batch",
    ),
    "a number as data": (
        lambda model, q: qs.compare(model, q, 3), TypeError,
        "data: expected an iterable of batches, got int; pass [batch] for one batch",
    ),
    "a text as data": (
        lambda model, q: qs.compare(model, q, "x"), TypeError,
        "data: expected an iterable of batches, got str; pass [batch] for one batch",
    ),
    "no network": (
        lambda model, q: qs.compare(model, Made(), [ROWS]), TypeError,
        "q: expected a network quantized by quantspec, got Made",
    ),
    "a network as model": (
        lambda model, q: qs.compare(q, q, [ROWS]), TypeError,
        "model: expected the float model, got a QuantizedModule",
    ),
    "a prepared model": (
        lambda model, q: qs.compare(qs.prepare(model), q, [ROWS]), TypeError,
        "model: expected the float model, got a Prepared",
    ),
    "half a batch": (
        lambda model, q: qs.compare(model, q, [ROWS], batches=0.5), TypeError,
        "batches: expected a whole number, got 0.5",
    ),
    "no batch": (
        lambda model, q: qs.compare(model, q, [ROWS], batches=0), ValueError,
        "batches: expected at least 1, or None for all, got 0",
    ),
    "a text as threshold": (
        lambda model, q: qs.compare(model, q, [ROWS], threshold="20"), TypeError,
        "threshold: expected a number, got '20'",
    ),
    "no threshold": (
        lambda model, q: qs.compare(model, q, [ROWS], threshold=math.nan), ValueError,
        "threshold: expected a quality in dB, got NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_a_comparison_are_refused_by_a_whole_sentence(name):
    call, kind, message = ARGUMENTS[name]
    model = networks.seeded(lambda: Gives("rows"))
    with pytest.raises(kind, match=exactly(message)):
        call(model, qs.quantize(model, [ROWS]))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_model_without_python_is_not_compared():
    model = networks.seeded(lambda: nn.Linear(4, 3))
    with pytest.raises(qs.UnsupportedError, match="^model: .* is TorchScript, which holds no Python code; pass"):
        qs.compare(torch.jit.script(model), qs.quantize(model, [ROWS]), [ROWS])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_comparison_shows_on_a_terminal_how_far_it_is(monkeypatch):
    model, terminal = networks.seeded(lambda: Gives("rows")), Terminal()
    q = qs.quantize(model, [ROWS])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    qs.compare(model, q, [ROWS, ROWS])
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", terminal.getvalue())
    assert re.search(r"\bcompare\b", shown) and "2/2" in shown


def test_a_batch_of_a_whole_network_may_be_a_list():
    model = networks.seeded(lambda: Gives("rows"))
    q = qs.quantize(model, [ROWS])
    assert qs.compare(model, q, [[ROWS]]) == qs.compare(model, q, [ROWS])
