"""Comparisons of models with Python between their networks: what cannot be compared is told, and the rest is."""

import copy
import inspect

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.numerics import accuracy
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, twice=False):
        y = self.last(torch.relu(self.first(x)))
        return y * 2 if twice else y


class Decides(nn.Module):
    """A model that decides by data whether its part doubles, and whether it is called again."""

    def __init__(self):
        super().__init__()
        self.part, self.limit = Part(), 1e9

    def forward(self, x):
        y = self.part(x)
        return y if y.abs().max() < self.limit else self.part(x, True)


def made():
    model = seeded(Decides).requires_grad_(False)
    return model, qs.quantize(model, [ROWS])


def test_a_comparison_needs_a_batch():
    model, q = made()
    with pytest.raises(ValueError, match="^data: expected at least one batch, got none$"):
        qs.compare(model, q, [])


def test_a_part_that_the_network_does_not_have_is_no_pair():
    model, q = made()
    assert list(q.islands) == ["part"]
    other = seeded(Decides).requires_grad_(False)
    other.part.forward = lambda x: other.part.last(x) if x.sum() < 1e9 else x
    with pytest.raises(ValueError, match="q: expected a network quantized from this model, but it has none at 'part'"):
        qs.compare(other, q, [ROWS])


@pytest.mark.filterwarnings("ignore:module 'part'")
def test_calls_that_were_not_seen_are_compared_as_what_the_model_gives():
    model, q = made()
    found = qs.compare(model, q, [ROWS])
    model.limit = q.python.limit = -1.0  # both calls are made now, of which one is in no network
    again = qs.compare(model, q, [ROWS])
    assert {row.layer for row in again.layers} == {row.layer for row in found.layers}
    assert found.sqnr > 20 and again.sqnr > 20


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 4)

    def forward(self, x):
        return self.layer(x)


def test_a_network_that_is_a_recurrent_layer_is_compared_by_its_output():
    model, x = seeded(Recurrent), ROWS[:, None]
    found = qs.compare(model, qs.quantize_dynamic(model, example=x), [x])
    (row,) = found.layers
    assert row.layer == "layer" and row.sqnr > 20 and found.sqnr > 20


OTHERS = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))


# dB: a comparison adds the sums of each batch. Two orders of fewer than 100 squares in float64 differ by 100 * 2^-53.
SAME = {"abs": 1e-6}


def sqnr(expected, got):
    """That of several batches together."""
    return accuracy.sqnr(torch.cat(expected), torch.cat(got))


@pytest.mark.parametrize("build", [Decides, Part])
def test_several_batches_are_compared_as_the_sum_of_all(build):
    model = seeded(build).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    found, alone = qs.compare(model, q, [ROWS, OTHERS]), qs.compare(model, q, [ROWS])
    assert (found.examples, alone.examples) == (9, 6)
    batches = (ROWS, OTHERS)
    expected = sqnr([model(x) for x in batches], [q(x) for x in batches])
    assert found.sqnr == pytest.approx(expected, **SAME) and found.sqnr != alone.sqnr
    assert [row.macs for row in found.layers] == [9 * 64] * 2 and found.int8_macs == 1.0
    last = found.layers[1]  # what the last layer gives is the output
    assert last.sqnr == pytest.approx(expected, **SAME)


def test_as_many_batches_are_compared_as_are_asked_for():
    model, q = made()
    assert qs.compare(model, q, iter([ROWS, OTHERS]), batches=1).examples == 6
    assert qs.compare(model, q, iter([ROWS, OTHERS]), batches=2).examples == 9
    assert qs.compare(model, q, iter([ROWS, OTHERS]), batches=10**30).examples == 9
    with pytest.raises(ValueError, match=exactly("batches: expected at least 1, or None for all, got 0")):
        qs.compare(model, q, [ROWS], batches=0)


class Adds(nn.Module):
    """Python between parts, with two inputs, a buffer, and work of its own."""

    def __init__(self):
        super().__init__()
        self.part, self.table = Part(), nn.Parameter(torch.rand(8, 5))
        self.register_buffer("shift", torch.rand(5))

    def forward(self, x, y):
        z = self.part(x + y)
        return z @ self.table + self.shift if z.sum() < 1e9 else z


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
def test_a_model_of_parts_is_counted_with_what_is_python():
    model = seeded(Adds).requires_grad_(False)
    q = qs.quantize(model, [(ROWS, ROWS)])
    found = qs.compare(model, q, [(ROWS, ROWS), (OTHERS, OTHERS)])
    assert found.float_bytes == 4 * (2 * 72 + 40 + 5) and found.int8_bytes == q.nbytes
    assert found.int8_macs == 128 / (128 + 40)  # of each example


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
def test_inputs_of_a_model_of_parts_may_be_given_by_name():
    model = seeded(Adds).requires_grad_(False)
    q = qs.quantize(model, [(ROWS, 2 * ROWS)])
    found = qs.compare(model, q, [(ROWS, 2 * ROWS)])
    assert qs.compare(model, q, [{"x": ROWS, "y": 2 * ROWS}]) == found


@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
@pytest.mark.parametrize("build", [Adds, Decides])
def test_targets_of_a_model_of_parts_stand_behind_its_inputs(build):
    model = seeded(build).requires_grad_(False)
    batch = (ROWS, ROWS) if build is Adds else (ROWS,)
    q = qs.quantize(model, [batch])
    target = model(*batch).argmax(1)
    target[0] = 7 - target[0] if target[0] != 7 - target[0] else 0
    found = qs.compare(model, q, [(*batch, target)])
    answers = q(*batch).argmax(1)
    assert found.float_accuracy == 5 / 6 and found.int8_accuracy == float((answers == target).double().mean())
    assert found.changed == int((answers != model(*batch).argmax(1)).sum())
    assert qs.compare(model, q, [batch]).float_accuracy is None


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, images):
        y = self.part(torch.stack(images))
        return y if y.sum() < 1e9 else -y


def test_a_batch_may_be_the_list_that_a_model_of_parts_takes():
    model = seeded(Lists).requires_grad_(False)
    q = qs.quantize(model, [[ROWS[0], ROWS[1]]])
    found = qs.compare(model, q, [[ROWS[0], ROWS[1]]])
    assert found.layers[0].macs == 2 * 64 and found.sqnr > 20


class Giving(Decides):
    """Gives what ``give`` makes of its output."""

    give = staticmethod(lambda y: y)

    def forward(self, x):
        return self.give(super().forward(x))


@pytest.mark.parametrize("give", [lambda y: (y, y), lambda y: [], lambda y: y[:, :3], lambda y: y[None]])
def test_a_model_of_parts_that_gives_something_else_is_another_one(give):
    model = seeded(Giving).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    other = copy.deepcopy(model)
    assert qs.compare(other, q, [ROWS]).sqnr > 20
    other.give = give
    message = "q: expected a network quantized from this model, but its outputs have other shapes"
    with pytest.raises(ValueError, match=exactly(message)):
        qs.compare(other, q, [ROWS])


@pytest.mark.parametrize("build", [Decides, Part])
def test_numbers_that_are_none_are_not_compared(build):
    model = seeded(build).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    message = "data: expected numbers, got NaN, with which there is nothing to compare"
    with pytest.raises(ValueError, match=exactly(message)):
        qs.compare(model, q, [torch.full((2, 8), torch.nan)])


class ByName(nn.Module):
    """Layers that are called by position and by name, each in Python."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.lstm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LSTM(8, 4)

    def forward(self, x):
        y = self.second(input=self.first(x))
        y = y if y.sum() < 1e9 else -y
        return self.lstm(y, hx=(torch.ones(1, 4), torch.ones(1, 4)))[0]


def test_layers_that_became_networks_alone_are_compared_however_they_are_called():
    model = seeded(ByName).requires_grad_(False)
    q = qs.quantize_dynamic(model)
    assert sorted(q.islands) == ["first", "lstm", "second"]
    found = qs.compare(model, q, [ROWS, OTHERS])
    first, second = model.first(ROWS), model.first(OTHERS)
    rows = {row.layer: row for row in found.layers}
    assert sorted(rows) == ["first", "lstm", "second"] and all(row.int8 and row.sqnr > 30 for row in rows.values())
    assert [rows[name].macs for name in ("first", "second", "lstm")] == [9 * 64, 9 * 64, 9 * 16 * 12]
    got = [q.islands["first"](x) for x in (ROWS, OTHERS)]
    assert rows["first"].sqnr == pytest.approx(sqnr([first, second], got), **SAME)
    assert found.int8_macs == 1.0


class Asks(nn.Module):
    """Gives a part those of its arguments that the part says it takes."""

    def __init__(self):
        super().__init__()
        self.part = Part()

    def forward(self, x):
        known = {"twice": True, "thrice": True}
        takes = inspect.signature(self.part.forward).parameters
        y = self.part(x, **{name: value for name, value in known.items() if name in takes})
        return y if y.sum() < 1e9 else -y


def test_a_part_that_is_compared_has_its_own_signature():
    model = seeded(Asks).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    assert list(q.islands) == ["part"]
    found = qs.compare(model, q, [ROWS])
    assert found.sqnr > 20 and found.sqnr == pytest.approx(sqnr([model(ROWS)], [q(ROWS)]), **SAME)
