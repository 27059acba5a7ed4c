"""What a saved file may name: functions, methods, attributes, and classes of torch.nn and of outputs."""

import collections
import math
import urllib.parse
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantspec.ir.program import Call, Ref
from quantspec.storage import allowed
from quantspec.torchvision_compat import import_torchvision
from told import exactly

Pair = collections.namedtuple("Pair", "first second")


@dataclass
class Answer:
    logits: torch.Tensor


class Plain(tuple):
    """A tuple without names."""


def test_names_find_their_functions_and_no_others():
    for name, value in (("torch.relu", torch.relu), ("torch.nn.functional.gelu", F.gelu), ("math.floor", math.floor)):
        assert allowed.function(name) is value
        assert allowed.is_listed("function", name, value) and not allowed.is_listed("method", name, value)
        assert not allowed.is_listed("function", name, print)
    for name in ("relu", "torch.load", "torch.nn.relu", "", "os.system"):
        assert not allowed.is_listed("function", name, torch.relu)
        with pytest.raises(ValueError, match=exactly(f"a file may not name the function {name!r}")):
            allowed.function(name)


def test_a_function_that_this_torch_lacks_is_told(monkeypatch):
    monkeypatch.delattr(torch, "addcdiv")
    with pytest.raises(ValueError, match=exactly("this installation has no function 'torch.addcdiv'")):
        allowed.function("torch.addcdiv")


def test_a_function_of_torchvision_is_imported_when_it_is_named(monkeypatch):
    torchvision = import_torchvision()
    place = "torchvision.ops.stochastic_depth"
    monkeypatch.delitem(allowed.PLACES, place, raising=False)
    assert allowed.function(f"{place}.stochastic_depth") is torchvision.ops.stochastic_depth
    assert allowed.PLACES[place].__name__ == place


def test_classes_of_outputs_hold_what_a_model_gives_and_nothing_else():
    for kind in (Answer, Pair):
        assert allowed.is_output_type(kind) and allowed.output_type(f"{__name__}.{kind.__name__}") is kind
    packed, answer = torch.nn.utils.rnn.PackedSequence, Answer(torch.ones(1))
    others = Plain, tuple, dict, nn.Linear, torch.return_types.max, packed, answer, 3
    assert not any(map(allowed.is_output_type, others))
    assert allowed.output_type("urllib.parse.ParseResult") is urllib.parse.ParseResult
    for name in (f"{__name__}.Plain", f"{__name__}.Nothing", "nowhere.Answer", "Answer", "math.floor"):
        assert allowed.output_type(name) is None


X = Ref("x")
GETATTR = "builtins.getattr"
GOOD = [
    Call("y", "method", "relu", (X,), {}, ""), Call("y", "function", "torch.relu", (X,), {}, ""),
    Call("y", "function", GETATTR, (X, "shape"), {}, ""), Call("y", "module", "m", (X,), {}, ""),
    Call("y", "attribute", "t", (), {}, ""), Call("y", "function", "my.Answer", (X,), {}, ""),
]  # fmt: skip
NO_ATTRIBUTE = "step 'y': a file may not name the attribute"
BAD = {
    "another method": (
        Call("y", "method", "backward", (X,), {}, ""), "step 'y': a file may not name the method 'backward'",
    ),
    "a method of nothing": (Call("y", "method", "relu", (), {}, ""), "step 'y': a method belongs to a value"),
    "a method of a text": (Call("y", "method", "relu", ("x",), {}, ""), "step 'y': a method belongs to a value"),
    "another function": (
        Call("y", "function", "os.system", (X,), {}, ""), "a file may not name the function 'os.system'",
    ),
    "another attribute": (Call("y", "function", GETATTR, (X, "grad"), {}, ""), f"{NO_ATTRIBUTE} ('grad',)"),
    "an attribute of a number": (Call("y", "function", GETATTR, (3, "shape"), {}, ""), f"{NO_ATTRIBUTE} ('shape',)"),
    "a default": (Call("y", "function", GETATTR, (X, "shape", 3), {}, ""), f"{NO_ATTRIBUTE} ('shape', 3)"),
    "an attribute by name": (Call("y", "function", GETATTR, (X, "shape"), {"d": 1}, ""), f"{NO_ATTRIBUTE} ('shape',)"),
    "another kind": (
        Call("y", "code", "m", (X,), {}, ""),
        "step 'y': expected a module, a function, a method or an attribute, got 'code'",
    ),
}  # fmt: skip


def test_calls_of_what_is_listed_may_stand_in_a_file():
    for call in GOOD:
        allowed.check_call(call, {("function", "my.Answer"): Answer})


@pytest.mark.parametrize("name", BAD)
def test_another_call_is_refused_by_a_whole_sentence(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=exactly(message)):
        allowed.check_call(call, {("function", "my.Answer"): Answer})


def test_a_table_of_classes_says_what_each_takes():
    table = allowed.constructors("""
    One: a b?
    Pad#d Two#d: size
    None1 None2:
    Long#d:
        a b
        """)
    assert table == {
        "One": ("a", "b?"), "Pad1d": ("size",), "Pad2d": ("size",), "Pad3d": ("size",), "Two1d": ("size",),
        "Two2d": ("size",), "Two3d": ("size",), "None1": (), "None2": (), "Long1d": ("a", "b"), "Long2d": ("a", "b"),
        "Long3d": ("a", "b"),
    }  # fmt: skip
