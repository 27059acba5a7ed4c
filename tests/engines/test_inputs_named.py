"""Every engine names what it was given and cannot take as the caller did."""

import math

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import quantspec as qs
from networks import seeded
from told import exactly

X = torch.zeros(3, 4, 6)
NOT_HELD = {"float64": X.double() + 1e-50, "int64": X.long() + 2**40 + 1, "complex64": X.to(torch.complex64)}


class Two(nn.Module):
    """Two layers with an input each."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, left, right):
        return self.first(left), self.second(right)


WAYS = {
    "static": lambda: qs.quantize(seeded(Two), [(X + 1, X + 2)]),
    "dynamic": lambda: qs.quantize_dynamic(seeded(Two), example=(X, X)),
    "rows": lambda: qs.quantize_dynamic(seeded(Two), example=(X, X), activations="per_token"),
    "weights alone": lambda: qs.quantize_dynamic(seeded(Two), example=(X, X), activations=None),
}


@pytest.mark.parametrize("engine", ["compiled", "reference"])
@pytest.mark.parametrize("way", WAYS)
def test_an_input_whose_values_no_float32_holds_is_refused_by_its_name(way, engine):
    q = WAYS[way]().run_on(engine)
    for kind, values in NOT_HELD.items():
        for place, name in enumerate(("left", "right")):
            given = [X, X]
            given[place] = values
            message = f"{name}: expected float32 values, got {kind} values that float32 cannot hold"
            with pytest.raises(TypeError, match=exactly(message)):
                q(*given)


@pytest.mark.parametrize("engine", ["compiled", "reference"])
@pytest.mark.parametrize("way", WAYS)
def test_an_input_of_another_type_whose_values_float32_holds_gives_what_it_gives_as_float32(way, engine):
    q = WAYS[way]().run_on(engine)
    x = torch.randint(-9, 9, X.shape, generator=torch.Generator().manual_seed(0))
    expected = q(x.float(), x.float() / 4)
    for given in ((x.double(), x.double() / 4), (x.float(), x.half() / 4)):
        assert all(map(torch.equal, q(*given), expected))


LAYERS = {"lstm": lambda: nn.LSTM(6, 5), "gru": lambda: nn.GRU(6, 5), "cell": lambda: nn.RNNCell(6, 5)}


@pytest.mark.parametrize("engine", ["compiled", "reference"])
@pytest.mark.parametrize("build", LAYERS)
def test_what_a_recurrent_layer_is_given_and_float32_does_not_hold_is_refused_by_the_layers_name(build, engine):
    q = qs.quantize_dynamic(seeded(lambda: nn.Sequential(LAYERS[build]()))).run_on(engine)
    shape = X.shape[1:] if build == "cell" else X.shape
    for kind, values in NOT_HELD.items():
        message = f"batch: layer '0': expected float32 values, got {kind} values that float32 cannot hold"
        with pytest.raises(TypeError, match=exactly(message)):
            q(values.reshape(-1)[: math.prod(shape)].reshape(shape))
    assert all(map(torch.equal, tree_leaves(q(torch.ones(shape).double())), tree_leaves(q(torch.ones(shape)))))
