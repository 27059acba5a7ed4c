"""What a forward keeps from call to call, wherever it keeps it: a network keeps it as well."""

import array
import collections
import copy
import csv
import functools
import itertools
import logging
import random
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from evidence import clause
from networks import seeded
from quantspec.errors import UnsupportedError
from quantspec.numerics import accuracy

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Keeping(nn.Module):
    """A layer, and something that is kept."""

    def __init__(self, kept, forward):
        super().__init__()
        self.layer, self.kept, self.of = nn.Linear(8, 8), kept, forward

    def forward(self, x):
        return self.of(self.kept, self.layer(x))


class InSlots:
    __slots__ = "calls", "never"

    def __init__(self):
        self.calls = 0


class Calls(list):
    """A list with an attribute of its own."""

    def __init__(self):
        super().__init__()
        self.calls = 0


class Counter:
    def __init__(self):
        self.counts = {"calls": 0}


def in_a_dict(kept, y):
    kept["first"]["calls"] += 1
    return y * kept["first"]["calls"]


def in_a_list(kept, y):
    kept[0][1] += 1
    return y * kept[0][1]


def in_an_object(kept, y):
    kept.calls += 1
    return y * kept.calls


def in_slots(kept, y):
    return in_an_object(kept, y)


def beside_items(kept, y):
    return in_an_object(kept, y)


def in_bytes(kept, y):
    kept[1] += 1
    return y * kept[1]


def in_an_array_of_pythons(kept, y):
    return in_bytes(kept, y)


def in_an_argument(kept, y):
    return y * kept()


def in_an_object_of_an_object(kept, y):
    kept[0].counts["calls"] += 1
    return y * kept[0].counts["calls"]


def in_a_queue(kept, y):
    kept.append(y)
    return sum(kept)


def in_an_array(kept, y):
    kept[1] += 1
    return y * float(kept[1])


def in_an_iterator(kept, y):
    return y * next(kept)


def in_a_cycle(kept, y):
    return y * next(kept)


def in_pairs(kept, y):
    count, factor = next(kept)
    return y * (count + factor)


def in_a_module(kept, y):
    kept[0].calls.add_(1)
    return y * kept[0].calls


def counting_module():
    module = nn.Module()
    module.register_buffer("calls", torch.zeros(1))
    return module


KEPT = {
    in_a_dict: lambda: {"first": {"calls": 0}}, in_a_list: lambda: [[5, 0]],
    in_an_object: lambda: types.SimpleNamespace(calls=0), in_an_object_of_an_object: lambda: (Counter(),),
    in_a_queue: lambda: collections.deque(maxlen=2), in_an_array: lambda: np.zeros(2),
    in_a_module: lambda: [counting_module()], in_an_iterator: lambda: iter(range(1, 100)),
    in_a_cycle: lambda: itertools.cycle([1.0, 2.0]), in_pairs: lambda: enumerate([3.0, 1.0] * 50),
    in_slots: InSlots, beside_items: Calls, in_bytes: lambda: bytearray(2),
    in_an_array_of_pythons: lambda: array.array("d", [0.0, 0.0]),
    in_an_argument: lambda: functools.partial(of_a_default, []),
}  # fmt: skip


@clause("STA-PARTS")
@pytest.mark.parametrize("forward", KEPT, ids=lambda forward: forward.__name__)
def test_what_is_kept_in_any_container_changes_at_each_call(forward):
    model = seeded(lambda: Keeping(KEPT[forward](), forward)).requires_grad_(False)
    q, own = qs.quantize(model, [ROWS]), copy.deepcopy(model)
    for _ in range(3):
        assert accuracy.sqnr(own(ROWS).numpy(), q(ROWS).numpy()) > 25


def of_a_closure():
    turned = False

    def turn():
        nonlocal turned
        turned = not turned
        return 2.0 if turned else 1.0

    return turn


def of_a_default(turns=[]):  # noqa: B006 - what is tested
    turns.append(1)
    return 1.0 + len(turns) % 2


def of_a_generator():
    while True:
        yield 1.0
        yield 2.0


class Turning:
    def __init__(self):
        self.turned = False

    def turn(self):
        self.turned = not self.turned
        return 2.0 if self.turned else 1.0


# What is not copied with a model, so that all its copies turn one.
TURNING = {
    "a closure": of_a_closure, "a default": lambda: of_a_default, "a generator": lambda: of_a_generator().__next__,
    "a method": lambda: Turning().turn,
}  # fmt: skip


@clause("STA-PARTS")
@pytest.mark.parametrize("name", TURNING)
def test_what_is_kept_behind_a_function_changes_at_each_call(name):
    model = seeded(lambda: Keeping(TURNING[name](), lambda kept, y: y * kept())).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    first, second, third = (q(ROWS) for _ in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)


DRAWING = {
    "torch": (torch.Generator, lambda kept, y: y * torch.rand(8, generator=kept)),
    "numpy": (np.random.default_rng, lambda kept, y: y * kept.random()),
    "Python": (random.Random, lambda kept, y: y * kept.random()),
    "numpy of before": (np.random.RandomState, lambda kept, y: y * kept.rand()),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_generator_of_the_model_draws_at_each_call(name):
    generator, forward = DRAWING[name]
    q = qs.quantize(seeded(lambda: Keeping(generator(), forward)).requires_grad_(False), [ROWS])
    assert len({float(q(ROWS)[0, 0]) for _ in range(5)}) == 5


def linked(count):
    """That many objects, one in another."""
    outer = None
    for _ in range(count):
        outer = types.SimpleNamespace(inner=outer)
    return outer


def test_what_cannot_say_what_it_gives_next_may_give_another_thing_at_each_call():
    model = seeded(lambda: Keeping(csv.reader(["1"] * 40), lambda kept, y: y * float(next(kept)[0])))
    q = qs.quantize_dynamic(model.requires_grad_(False), example=ROWS)
    with pytest.raises(UnsupportedError, match="expected a single network"):
        q.program  # noqa: B018
    assert accuracy.sqnr(model(ROWS).numpy(), q(ROWS).numpy()) > 25


UNCHANGED = {
    "a logger": lambda: logging.getLogger("test"), "objects in objects": lambda: linked(2000),
    "many objects": lambda: [Counter() for _ in range(12_000)], "a module of Python's": lambda: itertools,
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_a_model_only_holds_is_no_state_of_its_forward(name):
    def forward(kept, y):
        if isinstance(kept, logging.Logger):
            kept.debug("a call")
        return y * 2

    q = qs.quantize(seeded(lambda: Keeping(UNCHANGED[name](), forward)), [ROWS])
    assert isinstance(q, qs.QuantizedModule)


def test_a_call_of_a_function_with_bound_arguments_changes_nothing_of_it():
    model = seeded(lambda: Keeping(functools.partial(F.softmax, dtype=torch.float32), lambda kept, y: kept(y, dim=-1)))
    q = qs.quantize(model, [ROWS])
    assert isinstance(q, qs.QuantizedModule)
