"""What a model may ask while it is traced: what has one answer for all tensors is no question, and what tracing cannot
answer is told."""

import functools
from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from torch import fx, nn

from networks import seeded
from quantspec.capture import parts, tracer
from quantspec.capture.calls import call_of
from quantspec.errors import UnsupportedError

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


class Asking(nn.Module):
    """A layer, and what is asked of its output."""

    mode = "a mode"

    def __init__(self, asked):
        super().__init__()
        self.layer, self.asked = nn.Linear(8, 8), asked

    def forward(self, x):
        return self.asked(self, self.layer(x))

    @classmethod
    def kind(cls):
        return type(cls).__name__


def twice(x):
    return x * 2


ELSEWHERE = ModuleType("elsewhere")
ELSEWHERE.twice = twice


class Functions:
    twice = staticmethod(twice)


def within(function):
    """A function around another one."""
    later = None

    def call(m, x):
        return function(x) if later is None else x

    return call


def of_itself():
    """A function that knows itself."""

    def call(m, x, again=True):
        return call(m, x, again=False) if again else x * 2

    return call


# What has one answer.
ANSWERED = {
    "none": lambda m, x: x * 2 if x is not None else x, "the other way": lambda m, x: x if x is None else x * 2,
    "not none, in a value": lambda m, x: x * (1 + (m.mode is not None)),
    "of its own": lambda m, x: x * 2 if m.mode is Asking.mode else x,
    "in a list": lambda m, x: sum([part for part in (x, x) if part is not None]),
    "in a function within": lambda m, x: (lambda y: y * 2)(x),
    "the class of its class": lambda m, x: x * len(m.kind()[:2]),
    "functions by names": lambda m, x: ELSEWHERE.twice(x) + Functions.twice(x) - twice(x),
    "a function around": within(twice), "a function of itself": of_itself(),
    "a class, by torch": lambda m, x: torch.where(x > 0, x, 0),
    "its device's name": lambda m, x: x * (1 + len(str(x.device)[:1])),
    "torch's": lambda m, x: torch.relu(x) if torch.nn is not None else x,
    "a part of a function": functools.partial(lambda two, m, x: x * two, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERED)
def test_a_model_that_asks_what_has_one_answer_is_traced(name):
    model = seeded(lambda: Asking(ANSWERED[name])).requires_grad_(False)
    graph = tracer.capture(model)
    for x in (ROWS, ROWS[:2]):
        assert parts.graph_differs(graph, (x,), model(x)) is None


class Choosing(Asking):
    """One that has a choice among its arguments, and asks for nothing but None."""

    def forward(self, x, choice=True):
        return self.layer(x) * (1 + (x is not None))


def test_a_model_with_a_choice_that_asks_nothing_is_traced():
    model = seeded(lambda: Choosing(None)).requires_grad_(False)
    assert parts.graph_differs(tracer.capture(model), (ROWS,), model(ROWS)) is None


def decides(x):
    try:
        return bool(x.sum() > 0)
    except Exception:
        return False


def goes_through(x):
    try:
        return [*x] == []
    except Exception:
        return False


def asks(x):
    return type(x)


def one_asks(which):
    """Three functions, each of which calls another one."""

    def branch(number):
        inner = asks if number == which else twice

        def call(x):
            return inner(x)

        return call

    one, two, three = map(branch, range(3))
    return lambda m, x: (x, one(x), two(x), three(x))[0]


class StaticAsking(nn.Module):
    @staticmethod
    def forward(x):
        return x if type(x) is torch.Tensor else -x


def decorated(forward):
    """A forward that is called through a list."""
    held = [forward]

    @functools.wraps(forward)
    def call(*args):
        return held[0](*args)

    return call


class Decorated(nn.Module):
    @decorated
    def forward(self, x):
        return x if type(x) is torch.Tensor else -x


@pytest.mark.parametrize("kind", [StaticAsking, Decorated])
def test_a_forward_that_asks_is_not_traced_whatever_it_is(kind):
    with pytest.raises(UnsupportedError, match=f"^model: {kind.__name__} cannot be traced: {TYPE}$"):
        tracer.capture(kind().eval())


TYPE, IDENTITY = "Python asks for the type of a value", "Python asks whether a value is another one"
WITHOUT = ", and does without an answer"
ASKED = {
    "type": (lambda m, x: x if type(x) is torch.Tensor else -x, TYPE),
    "its type, in a function around": (within(asks), TYPE),
    **{f"its type, in function {which}": (one_asks(which), TYPE) for which in range(3)},
    "its type, in a list": (lambda m, x: sum([x for y in (x, x) if type(y) is torch.Tensor]), TYPE),
    "an abstract class": (lambda m, x: -x if isinstance(x, Sequence) else x, TYPE),
    "an abstract class itself": (lambda m, x: -x if Sequence.__instancecheck__(x) else x, TYPE),
    "whether it can be called": (lambda m, x: -x if callable(x) else x, TYPE),
    "its type of numbers": (lambda m, x: -x if x.dtype is torch.half else x, IDENTITY),
    "its type of numbers, in a list": (lambda m, x: sum([x for y in (x,) if y.dtype is torch.float32]), IDENTITY),
    "a dict": (lambda m, x: x * {8: 2}.get(x.shape[1], 1), "Python looks something up by a value"),
    "a text": (lambda m, x: x * len(f"{x.shape[1]}"), "Python asks for the text of a value"),
    "a value": (lambda m, x: -x if decides(x) else x, f"Python decides by a value{WITHOUT}"),
    "rows": (lambda m, x: -x if goes_through(x) else x, f"Python goes through a value{WITHOUT}"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_what_tracing_cannot_answer_is_told(name):
    asked, told = ASKED[name]
    with pytest.raises(UnsupportedError, match=rf"\Amodel: Asking cannot be traced: {told}( \(.*, line [0-9]+\))?\Z"):
        tracer.capture(seeded(lambda: Asking(asked)))


def test_torch_is_told_what_stands_for_a_value():
    told = {}

    def asked(m, x):
        for name, value in (("x", x), ("shape", x.shape)):
            asking = {"__name__": "torch.fx.somewhere", "value": value}
            exec("answers = value.__class__, hash(value), repr(value)", asking)
            told[name] = asking["answers"]
        return x

    tracer.capture(seeded(lambda: Asking(asked)))
    (kind, number, text), (other_kind, other_number, other_text) = told["x"], told["shape"]
    assert issubclass(kind, fx.Proxy) and issubclass(other_kind, fx.proxy.Attribute)
    assert number != other_number and text == "Proxy(layer)" and other_text.startswith("Proxy(")


class OfInputs(nn.Module):
    """What is asked of an input."""

    def forward(self, x):
        return x.logits


def test_an_attribute_that_tensors_do_not_have_is_told():
    told = "Python asks for an attribute that tensors do not have"
    with pytest.raises(UnsupportedError, match=rf"^model: OfInputs cannot be traced: {told} \("):
        tracer.capture(OfInputs().eval())
    pattern, _ = call_of(OfInputs().forward, (ROWS,), {})
    told = "'Tensor' object has no attribute 'logits'"
    with pytest.raises(UnsupportedError, match=rf"^model: OfInputs cannot be traced: {told} \("):
        tracer.trace(OfInputs().eval(), "", pattern)
