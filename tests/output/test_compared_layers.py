"""Comparisons layer by layer: of what was excluded, what layers and networks take in bytes, and whose network it is."""

import copy

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import inputs, seeded
from quantspec.module import size
from quantspec.numerics import accuracy
from told import exactly

pytestmark = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
ROWS = inputs(16, (4,))


class Activated(nn.Module):
    """Three layers, with an activation behind the second that is a module or a function."""

    def __init__(self, activation):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x):
        return self.third(self.activation(self.second(self.first(x))))


@pytest.mark.parametrize("activation", [torch.relu, nn.ReLU()])
def test_an_excluded_layer_is_compared_before_the_activation_behind_it(activation):
    model = seeded(lambda: Activated(activation))
    q = qs.quantize(model, [ROWS], exclude="second")
    found = qs.compare(model, q, [ROWS])
    with torch.no_grad():
        expected = model.second(model.first(ROWS))
    seen = {}
    q.run_on("reference").compiled((ROWS,), lambda step, value: seen.setdefault(step.name, value))
    (name,) = (step.name for step in q.program.steps if getattr(step, "reason", "") == "excluded")
    first, second, third = found.layers
    assert [row.layer for row in found.layers] == ["first", "second", "third"]
    assert (second.int8, second.reason, second.macs) == (False, "excluded", 16 * 30)
    # dB: two orders of fewer than 100 squares in float64 differ by 100 * 2^-53.
    assert second.sqnr == pytest.approx(accuracy.sqnr(expected, seen[name]), abs=1e-6) and second.sqnr > 25


@pytest.mark.parametrize("bias", [True, False])
def test_an_excluded_layer_takes_its_weight_and_bias_in_float(bias):
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=bias)))
    found = qs.compare(model, qs.quantize(model, [ROWS], exclude="1"), [ROWS])
    assert found.layers[1].bytes == 4 * (15 + 3 * bias)


class Around(nn.Module):
    """Layers with normalization and parameters around them, all of which are in float for a dynamic network."""

    def __init__(self):
        super().__init__()
        self.layer, self.lstm, self.one, self.two = nn.Linear(4, 5), nn.LSTM(5, 6), nn.LayerNorm(5), nn.LayerNorm(5)
        self.scale, self.shift = nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(5))

    def forward(self, x):
        y = self.one(self.layer(x)) * self.scale + self.shift
        return self.lstm(self.two(y) + self.two(-y))[0]


def test_the_float_model_takes_all_of_its_parameters_once():
    model = seeded(Around)
    q = qs.quantize_dynamic(model, example=ROWS)
    found = qs.compare(model, q, [ROWS])
    assert found.float_bytes == size.float_bytes(model) == sum(each.nbytes for each in model.parameters())
    assert found.int8_bytes == q.nbytes


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.lstm = nn.Linear(4, 5), nn.LSTM(5, 6)

    def forward(self, x):
        return self.lstm(self.layer(x))[0]


def test_a_recurrent_layer_takes_the_weights_of_its_cells():
    model = seeded(Recurrent)
    found = qs.compare(model, qs.quantize(model, [ROWS]), [ROWS])
    row = found.layers[1]
    assert (row.layer, row.int8, row.macs) == ("lstm", True, 16 * (4 * 6 * 5 + 4 * 6 * 6))
    assert found.float_bytes == size.float_bytes(model)


def test_weights_one_step_away_are_those_of_the_network_and_others_are_not():
    layer = seeded(lambda: nn.Linear(4, 2)).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[127, 3, -50, 8], [-127, 9, 1, 0]]) / 128)  # codes and a scale of 2^-7
    model = nn.Sequential(layer).eval()
    q = qs.quantize(model, [ROWS])
    assert q.program.layers[0].w_qparams.scale.tolist() == [2.0**-7] * 2
    for row, column, away in ((0, 1, 1), (1, 2, -1)):
        other = copy.deepcopy(model)
        other[0].weight[row, column] += away * 2.0**-7
        assert qs.compare(other, q, [ROWS]).examples == 16
        other[0].weight[row, column] += away * 2.0**-15
        message = "q: expected a network quantized from this model, but its layers differ"
        with pytest.raises(ValueError, match=exactly(message)):
            qs.compare(other, q, [ROWS])


def test_a_network_with_an_excluded_layer_that_the_model_lacks_is_refused():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    other = seeded(lambda: nn.Sequential(nn.Linear(4, 4)))
    q = qs.quantize(model, [ROWS], exclude="1")
    with pytest.raises(ValueError, match="^q: expected a network quantized from this model, but its layers differ$"):
        qs.compare(seeded(lambda: nn.Sequential(nn.Linear(4, 4)), 1), q, [ROWS])
    # Its first layer is that of the model: the one that is left out is not compared.
    other.load_state_dict({key: value for key, value in model.state_dict().items() if key.startswith("0")})
    assert [row.layer for row in qs.compare(other, q, [ROWS]).layers] == ["0"]
