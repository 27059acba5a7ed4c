"""What Python asks of a value beside its numbers: whether it is a tensor, has an attribute or a length. A network goes
the way that the model goes for tensors, also where both ways gave the same in calibration."""

import numbers
from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.capture import tracer
from quantspec.errors import UnsupportedError
from quantspec.numerics import accuracy
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
OPEN = torch.zeros(6, 8, dtype=torch.bool)
CLOSED = torch.rand(6, 8, generator=torch.Generator().manual_seed(2)) > 0.5


class Hiding(nn.Module):
    """A layer, of whose output a mask hides some, if it is one by what is asked."""

    def __init__(self, is_mask):
        super().__init__()
        self.layer, self.is_mask = nn.Linear(8, 8), is_mask

    def forward(self, x, mask):
        x = self.layer(x)
        return x.masked_fill(mask, 0) if self.is_mask(mask) else x


def has_rows(mask):
    try:
        return len(mask) > 1
    except Exception:
        return False


def is_true_somewhere(mask):
    try:
        return bool(mask.any()) or True
    except Exception:
        return False


def goes_through(mask):
    try:
        return [row for row in mask] != []
    except Exception:
        return False


def is_matched(mask):
    match mask:
        case torch.Tensor():
            return True
    return False


def kind_of(value):
    return type(value)


ELSEWHERE = ModuleType("elsewhere")
ELSEWHERE.kind_of = kind_of


def names_its_kind(mask):
    def name():
        return kind_of(mask).__name__

    return name() == "Tensor"


class Kinds:
    """Functions by which one may ask."""

    @staticmethod
    def is_tensor(value):
        return type(value) is torch.Tensor


QUESTIONS = {
    "a tensor": lambda mask: isinstance(mask, torch.Tensor), "torch's question": torch.is_tensor,
    "a tensor of truths": lambda mask: isinstance(mask, torch.BoolTensor),
    "of what is computed of it": lambda mask: isinstance(mask[None], torch.Tensor),
    "of its shape": lambda mask: isinstance(mask.shape, Sequence),
    "of a size": lambda mask: isinstance(mask.size(0), int),
    "no number": lambda mask: not isinstance(mask.size(), numbers.Number) and isinstance(mask, torch.Tensor),
    "no attribute": lambda mask: not hasattr(mask, "decompose"), "a method": lambda mask: hasattr(mask, "masked_fill"),
    "a length": has_rows, "a value": is_true_somewhere, "rows": goes_through,
    "a match": is_matched, "its class": lambda mask: mask.__class__ is torch.Tensor,
    "a function": lambda mask: kind_of(mask) is torch.Tensor, "a function around it": names_its_kind,
    "a function of another module": lambda mask: ELSEWHERE.kind_of(mask) is torch.Tensor,
    "a function of a class": lambda mask: Kinds.is_tensor(mask), "no function": lambda mask: not callable(mask),
}  # fmt: skip


class HidingByClass(Hiding):
    """By what ``type`` gives."""

    def __init__(self):
        super().__init__(None)

    def forward(self, x, mask):
        x = self.layer(x)
        kinds = {name: type(value) for name, value in {"mask": mask}.items()}
        return x.masked_fill(mask, 0) if kinds["mask"] is torch.Tensor else x


@pytest.mark.parametrize("within", [False, True])
def test_a_network_goes_the_way_that_is_right_for_the_class_of_tensors(within):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = HidingByClass()

        def forward(self, x, mask):
            return self.inner(x, mask) * 2

    model = seeded(Outer if within else HidingByClass).requires_grad_(False)
    for q in (qs.quantize(model, [(ROWS, OPEN)]), qs.quantize_dynamic(model, example=(ROWS, OPEN))):
        for mask in (OPEN, CLOSED):
            assert accuracy.sqnr(model(ROWS, mask).numpy(), q(ROWS, mask).numpy()) > 25


class OfOneClass(Hiding):
    """By a method of its own."""

    def __init__(self):
        super().__init__(self.hides)

    def hides(self, mask):
        return type(mask) is torch.Tensor


def test_a_network_goes_the_way_that_is_right_for_what_a_method_asks():
    model = seeded(OfOneClass).requires_grad_(False)
    q = qs.quantize(model, [(ROWS, OPEN)])
    assert accuracy.sqnr(model(ROWS, CLOSED).numpy(), q(ROWS, CLOSED).numpy()) > 25


class NamesItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.act = nn.Linear(8, 8), {"NamesItself": 2.0}, torch.relu

    def forward(self, x):
        x = self.act(x) if callable(self.act) else x
        return self.layer(x) * self.calls[type(self).__name__]


def test_a_model_that_asks_for_its_own_class_is_one_network():
    q = qs.quantize(seeded(NamesItself), [ROWS])
    assert isinstance(q, qs.QuantizedModule)


class OfSizes(nn.Module):
    """A layer, of whose output there is a multiple for some numbers of rows."""

    def __init__(self, multiple):
        super().__init__()
        self.layer, self.multiple = nn.Linear(8, 8), multiple

    def forward(self, x):
        return self.layer(x) * self.multiple(x.shape[0])


LOOKED_UP = {
    "a dict": lambda rows: {4: 3.0, 6: 1.0}.get(rows, 1.0), "a set": lambda rows: 3.0 if rows in {4, 12} else 1.0,
    "its text": lambda rows: {"4": 3.0}.get(str(rows), 1.0), "in a text": lambda rows: 3.0 if f"{rows}" == "4" else 1.0,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:module '':UserWarning")  # which says that Python decides about another size
@pytest.mark.parametrize("name", LOOKED_UP)
def test_what_is_looked_up_by_a_size_is_looked_up_at_each_call(name):
    model = seeded(lambda: OfSizes(LOOKED_UP[name])).requires_grad_(False)
    for q in (qs.quantize(model, [ROWS * 3]), qs.quantize_dynamic(model, example=ROWS)):
        for x in (ROWS, ROWS[:4]):
            assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 25


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_network_goes_the_way_that_is_right_for_tensors(name):
    model = seeded(lambda: Hiding(QUESTIONS[name])).requires_grad_(False)
    for q in (qs.quantize(model, [(ROWS, OPEN)]), qs.quantize_dynamic(model, example=(ROWS, OPEN))):
        for mask in (OPEN, CLOSED):
            assert accuracy.sqnr(model(ROWS, mask).numpy(), q(ROWS, mask).numpy()) > 25


def test_a_model_that_asks_for_types_is_not_traced_for_any_arguments():
    model = seeded(lambda: Hiding(QUESTIONS["a tensor"]))
    told = r"^model: Hiding cannot be traced: Python asks for the type of a value \(.*test_questions.py, line [0-9]+\)$"
    with pytest.raises(UnsupportedError, match=told):
        tracer.capture(model)


def test_a_model_that_goes_on_without_an_answer_is_not_traced_for_any_arguments():
    model = seeded(lambda: Hiding(has_rows))
    told = "model: Hiding cannot be traced: Python asks for the length of a value, and does without an answer"
    with pytest.raises(UnsupportedError, match=exactly(told)):
        tracer.capture(model)


def test_a_part_that_goes_on_without_an_answer_is_called_as_it_is():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.part, self.last = nn.Linear(8, 8), Hiding(has_rows), nn.Linear(8, 4)

        def forward(self, x, mask):
            return self.last(self.part(self.first(x), mask))

    graph = tracer.trace(seeded(Parts))
    told = "part: Python asks for the length of a value, and does without an answer"
    assert [str(stop) for stop in graph.stops] == [told]
    assert [getattr(node, "layer", node.name) for node in graph.graph.nodes] == ["first", "part", "last"]


class Inner(nn.Module):
    """A part that cannot be traced, as it asks for a type."""

    def forward(self, x):
        return x * 2 if isinstance(x, torch.Tensor) else x


def test_a_part_that_asks_for_types_is_called_as_it_is():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), Inner(), nn.Linear(8, 4))).requires_grad_(False)
    q = qs.quantize_dynamic(model)
    assert accuracy.sqnr(model(ROWS).numpy(), q(ROWS).numpy()) > 25


def printed(rows):
    print(f"{rows} rows")
    return 2.0


def asserted(rows):
    torch._assert(rows > 1, f"{rows} rows are too few")
    return 2.0


@pytest.mark.parametrize("show", [printed, asserted])
def test_a_size_that_is_only_shown_is_no_condition(show):
    model = seeded(lambda: OfSizes(show)).requires_grad_(False)
    q = qs.quantize(model, [ROWS * 3])
    assert isinstance(q, qs.QuantizedModule)
    assert accuracy.sqnr(model(ROWS[:4]).numpy(), q(ROWS[:4]).numpy()) > 25


class Comparing(nn.Module):
    """A layer, whose output is doubled by what is asked of it and another value."""

    def __init__(self, asked):
        super().__init__()
        self.layer, self.asked = nn.Linear(8, 8), asked

    def forward(self, x, other):
        y = self.layer(x)
        return y * 2 if self.asked(y, other) else y


SIZES = {
    "a method": lambda x, other: x.is_same_size(other), "a function": torch.is_same_size,
    "by name": lambda x, other: torch.is_same_size(x, other=other),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_whether_two_values_have_one_size_is_asked_at_each_call(name):
    model = seeded(lambda: Comparing(SIZES[name])).requires_grad_(False)
    for first in (ROWS, ROWS[:4]):
        q = qs.quantize_dynamic(model, example=(ROWS, first))
        assert accuracy.sqnr(model(ROWS, first).numpy(), q(ROWS, first).numpy()) > 25
        other = ROWS if len(first) < 6 else ROWS[:4]
        with pytest.warns(UserWarning, match="did not occur in calibration; this call runs in float$"):
            got = q(ROWS, other)
        assert accuracy.sqnr(model(ROWS, other).numpy(), got.numpy()) > 25


def test_what_a_function_gives_other_than_tensors_is_asked_at_each_call():
    model = seeded(lambda: Comparing(lambda x, y: torch.result_type(x, y) == torch.float32)).requires_grad_(False)
    q = qs.quantize_dynamic(model, example=(ROWS, ROWS))
    for other in (ROWS, ROWS.double()):
        assert accuracy.sqnr(model(ROWS, other).numpy(), q(ROWS, other).numpy()) > 25
