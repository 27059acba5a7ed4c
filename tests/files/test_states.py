"""States of networks that do not fit, and calls of their parts that were not seen."""

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.module import islands, modes

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Decides(nn.Module):
    """A model that decides by data, with so many layers, whose part may be given more."""

    def __init__(self, layers=2, more=None):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))
        self.more = more

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
            y = y if y.sum() < 1e9 else -y
        return y


def test_the_state_of_another_model_is_refused_by_what_is_in_only_one_of_them():
    small, large = (qs.quantize(seeded(lambda count=count: Decides(count)), [ROWS]) for count in (2, 3))
    with pytest.raises(ValueError, match="expected the networks of this model, but .layers.2#0. is in only one"):
        small.load_state_dict(large.state_dict())
    small.load_state_dict(small.state_dict())


def test_weights_that_a_model_keeps_as_codes_say_so():
    q = qs.quantize(seeded(Decides), [ROWS])
    assert repr(q.python.layers[0].weight) == "Coded([8, 8])"


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, note=None):
        return self.layer(x) if note is None else self.layer(x) * 2


class Notes(nn.Module):
    """Gives its part what is no tensor where a number is large."""

    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x):
        y = self.part(x) if x.sum() < 1e3 else self.part(x, object())
        return y


def test_a_part_that_is_given_what_no_graph_holds_runs_in_float():
    model = seeded(Notes).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    large = ROWS + 100
    with pytest.warns(UserWarning, match="this call runs in float"):
        got = q(large)
    # Twice a layer whose weights are those of the codes, at most half a step off, which is a 254th of a row's largest;
    # sums of nine in float32 miss by 2^-20 of what that is multiplied with, less than a 2^11th of the bound each.
    bound = 2 * large.abs().sum(1, keepdim=True) * model.part.layer.weight.abs().amax(1) / 254
    assert ((got - model(large)).abs() <= bound * (1 + 2.0**-10)).all()


def test_a_layer_that_was_given_another_weight_says_so_once():
    q = qs.quantize_dynamic(seeded(Decides))
    q.layers[0].weight = nn.Parameter(torch.zeros(8, 8))
    with pytest.warns(UserWarning, match="layer 'layers.0' was given another weight; it runs in float"):
        first = q(ROWS)
    assert torch.equal(q(ROWS), first)


class Refuses(Decides):
    def forward(self, x):
        if x.sum() > 1e3:
            raise qs.UnsupportedError("so much has no place here")
        return super().forward(x)


def test_what_a_model_does_not_support_is_told_as_it_tells_it(monkeypatch):
    q = qs.quantize(seeded(Refuses), [ROWS])
    with pytest.raises(qs.UnsupportedError, match="^so much has no place here$"):
        q(ROWS + 100)

    def unsupported(*_, **__):
        raise qs.UnsupportedError("no kernel")

    monkeypatch.setattr(modes, "computed", unsupported)
    with pytest.raises(qs.UnsupportedError, match="^no kernel$"):
        q(ROWS)


class Asks(Decides):
    """Reads its own state, with a buffer in it, while it runs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(8))

    def forward(self, x):
        state = self.state_dict()
        assert list(state)[0] == "shift" and len(state) == 5
        return super().forward(x) + state["shift"]


@pytest.mark.filterwarnings("ignore:.*in float")
def test_a_model_that_reads_its_state_finds_buffers_where_they_were():
    model = seeded(Asks).requires_grad_(False)
    for q in (qs.quantize(model, [ROWS]), qs.quantize_dynamic(model)):
        assert (q(ROWS) - model(ROWS)).abs().max() < 0.05 * model(ROWS).abs().max()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_outputs_has_no_numbers_to_show():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 0)).eval()
    for per_channel in (False, True):
        assert "linear" in str(qs.quantize(model, [ROWS], per_channel=per_channel))


def test_a_class_without_a_source_is_named_by_its_name():
    made = type("Made", (nn.Module,), {"__module__": "made_up"})()
    assert islands.place_of(made) == "made_up.Made"
    assert islands.place_of(Decides()).endswith(f", line {Decides.__init__.__code__.co_firstlineno - 3}")
