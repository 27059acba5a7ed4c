"""Arguments that choose what a model computes, however it asks which of several one is: a network goes the way that the
model goes, whatever was chosen in calibration."""

import enum
import warnings

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.numerics import accuracy

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Kind(enum.Enum):
    PLAIN = enum.auto()
    TWICE = enum.auto()


class Number(enum.IntEnum):
    PLAIN = 1
    TWICE = 2


def is_twice(choice):
    return choice is Kind.TWICE


class Inner(nn.Module):
    """The double of a value by a name, which only a constant is."""

    def forward(self, x, choice):
        return x * 2 if choice is TWICE else x


TWICE = "twice".upper()


class Choosing(nn.Module):
    def __init__(self, default, choose):
        super().__init__()
        self.layer, self.inner, self.choose = nn.Linear(8, 8), Inner(), choose
        self.default = default

    def forward(self, x, choice):
        return self.choose(self, self.layer(x), choice)


def with_default(default):
    """``Choosing`` that has a default choice."""

    class WithDefault(Choosing):
        def forward(self, x, choice=default):
            return super().forward(x, choice)

    return WithDefault


# Two choices, of which the second makes the double, and how a model asks which it is.
CHOICES = {
    "a truth value": (False, True, lambda m, x, choice: x * 2 if choice is True else x),
    "no": (True, False, lambda m, x, choice: x * 2 if choice is False else x),
    "of a class": (Kind.PLAIN, Kind.TWICE, lambda m, x, choice: x * 2 if choice is Kind.TWICE else x),
    "of numbers": (Number.PLAIN, Number.TWICE, lambda m, x, choice: x * 2 if choice is Number.TWICE else x),
    "not the other": (Kind.PLAIN, Kind.TWICE, lambda m, x, choice: x if choice is not Kind.TWICE else x * 2),
    "in a function": (Kind.PLAIN, Kind.TWICE, lambda m, x, choice: x * 2 if is_twice(choice) else x),
    "in a module": ("PLAIN", TWICE, lambda m, x, choice: m.inner(x, choice)),
    "of a list": (Kind.PLAIN, Kind.TWICE, lambda m, x, choice: x * 2 if choice is [*Kind][1] else x),
    "one of two": (Kind.PLAIN, Kind.TWICE, lambda m, x, choice: x * (1 + any(k is choice for k in (1, Kind.TWICE)))),
}  # fmt: skip


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("default", [True, False], ids=["default", "given"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_network_computes_what_was_chosen(name, default, first):
    """Where one choice is left to the default, or each is given."""
    *choices, choose = CHOICES[name]
    make = with_default(choices[0]) if default else Choosing
    model = seeded(lambda: make(choices[0], choose)).requires_grad_(False)
    calls = [(ROWS,), (ROWS, choices[1])] if default else [(ROWS, choice) for choice in choices]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # which says that another call runs in float
        for q in (qs.quantize(model, [calls[first]]), qs.quantize_dynamic(model, example=calls[first])):
            for call in calls:
                assert accuracy.sqnr(model(*call).numpy(), q(*call).numpy()) > 20


HALVES = torch.full((8,), 0.5)


class WithFactors(nn.Module):
    """A layer, and factors that are halves where a caller gives none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, factors=HALVES):
        return self.layer(x) * factors


@pytest.mark.parametrize("given", [(), (torch.arange(8.0),)], ids=["left out", "given"])
def test_a_tensor_is_the_default_of_an_argument_whatever_calibration_gave(given):
    model = seeded(WithFactors).requires_grad_(False)
    for q in (qs.quantize(model, [(ROWS, *given)]), qs.quantize_dynamic(model, example=(ROWS, *given))):
        for call in ((ROWS,), (ROWS, torch.arange(8.0))):
            assert accuracy.sqnr(model(*call).numpy(), q(*call).numpy()) > 25
