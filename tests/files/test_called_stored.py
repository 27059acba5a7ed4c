"""What networks call, in files: functions by name, modules of torch.nn by their arguments, and what is refused."""

import collections
import json
import math
import operator
import urllib.parse
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph
from quantspec.ir.float_run import FloatLayer
from quantspec.storage import callables
from quantspec.storage.json_fields import Reader, Writer
from told import exactly

Pair = collections.namedtuple("Pair", "first second")


@dataclass
class Answer:
    logits: torch.Tensor


def back(called, modules=None, packages=()):
    """What is called, written and read, and its rows."""
    writer = Writer()
    rows = json.loads(json.dumps(callables.write_callables(called, writer)))
    return callables.read_callables(rows, Reader(writer.tensors), modules or {}, packages), rows


def test_functions_classes_and_constants_come_back_by_their_names():
    name = f"{__name__}.Answer"
    called = {
        ("function", "torch.relu"): torch.relu, ("function", "operator.add"): operator.add,
        ("function", name): Answer, ("function", f"{__name__}.Pair"): Pair,
        ("attribute", "table"): (1, [math.inf]), ("module", "soft"): nn.Softmax(1),
    }  # fmt: skip
    read, rows = back(called, packages={__name__})
    assert rows[:5] == [
        {"kind": "function", "target": "torch.relu"}, {"kind": "function", "target": "operator.add"},
        {"kind": "function", "target": name, "output": True},
        {"kind": "function", "target": f"{__name__}.Pair", "output": True},
        {"kind": "attribute", "target": "table", "value": {"tuple": [1, [{"float": "inf"}]]}},
    ]  # fmt: skip
    assert rows[5] == {
        "kind": "module", "target": "soft", "class": "Softmax", "arguments": {"dict": [["dim", 1]]}, "state": {},
    }  # fmt: skip
    assert list(read) == list(called)
    assert all(read[key] == value for key, value in called.items() if key[0] != "module")
    assert type(read["module", "soft"]) is nn.Softmax and read["module", "soft"].dim == 1
    assert not read["module", "soft"].training


def test_a_tensor_among_constants_is_named_by_the_constant():
    writer = Writer()
    (row,) = callables.write_callables({("attribute", "table"): torch.ones(2)}, writer)
    assert row["value"] == {"tensor": "table"} and list(writer.tensors) == ["table"]


@pytest.mark.parametrize(("target", "value", "message"), [
    ("torch.relu", torch.sigmoid, "function torch.relu is not the one that the file would name"),
    ("os.system", print, "function os.system: a file may not name the function 'os.system'"),
    ("nowhere.Answer", Answer, "function nowhere.Answer: its class cannot be imported by name"),
])  # fmt: skip
def test_a_function_that_its_name_does_not_find_is_not_written(target, value, message):
    with pytest.raises(UnsupportedError, match=exactly(message)):
        callables.write_callables({("function", target): value}, Writer())


# --- modules


def linear(bias=True, relu=False):
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    return FloatLayer(float_graph.Linear("y", "x", "part.head", weight, np.ones(2, np.float32) if bias else None, relu))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_after_fusion_comes_back_with_its_weights(bias):
    layer, x = linear(bias), torch.tensor([[1.0, -2.0, 3.0]])
    read, (row,) = back({("module", "part.head"): layer})
    assert row["layer"] == "Linear" and "weight" not in row["fields"] and "bias" not in row["fields"]
    names = ["weight", "bias"] if bias else ["weight"]
    assert row["state"] == {name: f"part.head.{name}" for name in names}
    twin = read["module", "part.head"]
    assert type(twin) is FloatLayer and torch.equal(twin(x), layer(x)) and (twin.bias is None) == (not bias)
    assert twin.node.layer == "part.head" and not twin.training


def hooked():
    module = nn.Softmax(1)
    module.register_forward_hook(lambda *given: None)
    return module


def before():
    module = nn.Softmax(1)
    module.register_forward_pre_hook(lambda *given: None)
    return module


def more():
    module = nn.Softmax(1)
    module.more = 3
    return module


def inside():
    module = nn.MultiheadAttention(4, 2)
    module.out_proj.more = 3
    return module


class Softmax(nn.Module):
    """One's own, of a name that torch has."""


OWN = {
    "with a hook": (hooked, "torch.nn.modules.activation.Softmax"),
    "with a hook before": (before, "torch.nn.modules.activation.Softmax"),
    "with more": (more, "torch.nn.modules.activation.Softmax"),
    "with more inside": (inside, "torch.nn.modules.activation.MultiheadAttention"),
    "of a name that torch has": (Softmax, f"{__name__}.Softmax"),
    "of several": (lambda: nn.Sequential(nn.ReLU()), "torch.nn.modules.container.Sequential"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_module_that_is_more_than_its_arguments_is_given_again(name):
    make, kind = OWN[name]
    module = make()
    writer = Writer()
    row = callables.write_module(module, "part", writer)
    assert row == {"given": kind, "state": {key: f"part.{key}" for key in module.state_dict()}}
    row |= {"kind": "module", "target": "part"}
    message = f"modules: 'part' is a {kind}, whose code is not in the file; pass modules={{'part': ...}}"
    with pytest.raises(callables.NotGiven, match=exactly(message)):
        callables.read_callables([row], Reader(writer.tensors), {})
    given = make().train()
    read = callables.read_callables([row], Reader(writer.tensors), {"part": given})["module", "part"]
    assert type(read) is type(module) and read is not given and not read.training and given.training
    assert all(torch.equal(a, b) for a, b in zip(read.state_dict().values(), module.state_dict().values()))


@pytest.mark.parametrize(("given", "message"), [
    (3, "modules: expected a module for 'part', got int"),
    (nn.Linear, "modules: expected a module for 'part', got type"),
    (nn.Sequential(), "modules: 'part': '0.bias' is in only one of its state and the file"),
    (nn.Sequential(nn.Linear(3, 3)), "modules: 'part': expected '0.weight' as torch.float32[3, 3], "
                                     "got torch.float32[2, 3]"),
    (nn.Sequential(nn.Linear(3, 2).double()), "modules: 'part': expected '0.weight' as torch.float64[2, 3], "
                                              "got torch.float32[2, 3]"),
])  # fmt: skip
def test_another_module_than_the_one_in_the_file_is_refused(given, message):
    writer = Writer()
    row = callables.write_module(nn.Sequential(nn.Linear(3, 2)), "part", writer) | {"kind": "module", "target": "part"}
    with pytest.raises(callables.NotGiven, match=exactly(message)):
        callables.read_callables([row], Reader(writer.tensors), {"part": given})


def test_a_module_that_is_given_stays_as_it_was():
    writer, given = Writer(), nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    saved = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    row = callables.write_module(saved, "part", writer) | {"kind": "module", "target": "part"}
    for tensor in given.parameters():
        tensor.zero_()
    read = callables.read_callables([row], Reader(writer.tensors), {"part": given})["module", "part"]
    assert torch.equal(read[0].weight, saved[0].weight) and not any(tensor.any() for tensor in given.parameters())


def test_a_plain_module_is_its_arguments_whatever_its_tensors_and_mode_are():
    for module in (nn.Linear(3, 2), nn.Linear(3, 2).eval(), nn.Linear(3, 2).requires_grad_(False)):
        assert callables.plain_arguments(module) == {"in_features": 3, "out_features": 2, "bias": True}
    attention = nn.MultiheadAttention(4, 2, bias=False, add_bias_kv=True).eval()
    found = callables.plain_arguments(attention)
    assert (found["bias"], found["add_bias_kv"], found["num_heads"]) == (False, True, 2)
    assert callables.public_attributes(nn.Linear(3, 2)) == {".in_features": 3, ".out_features": 2}


STATE = {"long": torch.ones(3), "weight": torch.ones(2, 3), "bias": torch.ones(2), "half": torch.ones(2, 3).half()}
NAMED = {"weight": "weight", "bias": "bias"}
LINEAR = {"dict": [["in_features", 3], ["out_features", 2], ["bias", True]]}
MODULE = {"kind": "module", "target": "m", "class": "Linear", "arguments": LINEAR, "state": NAMED}
FIELDS = {"name": "y", "x": "x", "layer": "m", "relu": False, "ceiling": {"float": "inf"}}
LAYER = {"kind": "module", "target": "m", "layer": "Linear", "fields": FIELDS, "state": NAMED}
A_LAYER = "module 'm': expected a layer with a float32 weight, got"
ROWS = {
    "no list": ({}, "callables: expected list, got {}"),
    "no row": ([3], "callables: kind: expected str, got None"),
    "no kind": ([{"target": "m"}], "callables: kind: expected str, got None"),
    "no target": ([{"kind": "module"}], "callables: target: expected str, got None"),
    "another kind": ([{"kind": "code", "target": "m"}], "callables: unknown kind 'code'"),
    "a name twice": ([{"kind": "function", "target": "torch.relu"}] * 2, "function 'torch.relu' occurs twice"),
    "a function with more": (
        [{"kind": "function", "target": "torch.relu", "code": 1}],
        "torch.relu: expected the keys kind, target, got ['code', 'kind', 'target']",
    ),
    "another function": (
        [{"kind": "function", "target": "os.system"}], "a file may not name the function 'os.system'",
    ),
    "a class with more": (
        [{"kind": "function", "target": "a.B", "output": True, "code": 1}],
        "a.B: expected the keys kind, target, output, got ['code', 'kind', 'output', 'target']",
    ),
    "a class of another library": (
        [{"kind": "function", "target": "a.B", "output": True}],
        "model: the file names a.B, a class of outputs; pass as model= a model of its library",
    ),
    "a constant with more": (
        [{"kind": "attribute", "target": "t", "value": 1, "code": 1}],
        "t: expected the keys kind, target, value, got ['code', 'kind', 'target', 'value']",
    ),
    "a constant that reads": (
        [{"kind": "attribute", "target": "t", "value": [1, {"ref": "x"}, {"ref": "y"}]}],
        "attribute 't' refers to 'x'",
    ),
    "no state": ([MODULE | {"state": 3}], "module 'm': expected its state, got 3"),
    "a long state": ([MODULE | {"state": "a" * 99}], f"module 'm': expected its state, got {'a' * 99!r:.80}"),
    "a tensor that is not there": (
        [MODULE | {"state": {"weight": "w"}}], "module 'm': weight: there is no tensor 'w'",
    ),
    "a module with more": (
        [MODULE | {"code": 1}],
        "module 'm': expected the keys kind, target, class, arguments, state, got "
        "['arguments', 'class', 'code', 'kind', 'state', 'target']",
    ),
    "another class": ([MODULE | {"class": "Module"}], "module 'm': a file may not name the class 'Module'"),
    "a class by number": ([MODULE | {"class": 3}], "module 'm': a file may not name the class 3"),
    "an argument less": (
        [MODULE | {"arguments": {"dict": [["in_features", 3]]}}],
        "module 'm': expected the keys in_features, out_features, bias, got ['in_features']",
    ),
    "no arguments": (
        [MODULE | {"arguments": 3}], "module 'm': expected the keys in_features, out_features, bias, got int",
    ),
    "a tensor less": (
        [MODULE | {"state": {"weight": "weight"}}],
        "module 'm': 'bias' is in only one of its state and the file",
    ),
    "another shape": (
        [MODULE | {"state": {"weight": "weight", "bias": "weight"}}],
        "module 'm': expected 'bias' as torch.float32[2], got torch.float32[2, 3]",
    ),
    "another type": (
        [MODULE | {"state": {"weight": "half", "bias": "bias"}}],
        "module 'm': expected 'weight' as torch.float32[2, 3], got torch.float16[2, 3]",
    ),
    "a layer with more": (
        [LAYER | {"code": 1}],
        "module 'm': expected the keys kind, target, layer, fields, state, got "
        "['code', 'fields', 'kind', 'layer', 'state', 'target']",
    ),
    "another layer": ([LAYER | {"layer": "Recurrent"}], f"{A_LAYER} 'Recurrent' with ['bias', 'weight']"),
    "a layer without a weight": ([LAYER | {"state": {"bias": "bias"}}], f"{A_LAYER} 'Linear' with ['bias']"),
    "a layer of halves": ([LAYER | {"state": {"weight": "half"}}], f"{A_LAYER} 'Linear' with ['weight']"),
    "no fields": (
        [LAYER | {"fields": 3}], "module 'm': expected the keys name, x, layer, relu, ceiling, flat, got int",
    ),
    "a long bias": (
        [LAYER | {"fields": FIELDS | {"flat": False}, "state": NAMED | {"bias": "long"}}],
        "module 'm': expected a bias of shape (2,), got (3,)",
    ),
    "a constant without its tensor": (
        [{"kind": "attribute", "target": "t", "value": {"tensor": "none"}}], "t: there is no tensor 'none'",
    ),
    "a module of one's own with more": (
        [{"kind": "module", "target": "m", "given": "my.Own", "state": {}, "code": 1}],
        "module 'm': expected the keys kind, target, given, state, got ['code', 'given', 'kind', 'state', 'target']",
    ),
    "one by number": (
        [{"kind": "module", "target": "m", "given": 3, "state": {}}], "module 'm': expected str, got 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_what_is_not_called_by_any_network_is_refused_by_a_whole_sentence(name):
    rows, message = ROWS[name]
    with pytest.raises(ValueError, match=exactly(message)):
        callables.read_callables(rows, Reader(STATE), {})


def test_arguments_that_a_class_does_not_take_are_told_with_what_it_says():
    for arguments, said in (([["dim", 1], ["dim", 2]], None), ([["num_groups", 3], ["num_channels", 4]], "divisible")):
        pairs = {"dict": [*arguments, *([["eps", 1e-5], ["affine", False]] if said else [])]}
        row = {"kind": "module", "target": "m", "class": "GroupNorm", "arguments": pairs, "state": {}}
        with pytest.raises(ValueError) as refused:
            callables.read_callables([row], Reader({}), {})
        assert str(refused.value).startswith("module 'm': ")
        if said:
            taken = {"num_groups": 3, "num_channels": 4, "eps": 1e-5, "affine": False}
            message = f"module 'm': GroupNorm does not take {taken}: {refused.value.__cause__}"
            assert str(refused.value) == message and said in message


def test_layers_of_layers_that_no_tensors_are_there_for_are_not_built():
    with pytest.raises(ValueError, match=exactly("5 layers with 4 tensors")):
        callables.build_module("LSTM", {"input_size": 2, "hidden_size": 2, "num_layers": 5}, 4)
    with pytest.raises(ValueError, match="^2 layers with 1 tensors$"):
        callables.build_module("LSTM", {"input_size": 2, "hidden_size": 2, "num_layers": 2}, 1)
    built = callables.build_module("LSTM", {"input_size": 2, "hidden_size": 2, "num_layers": 4}, 4)
    assert built.num_layers == 4 and all(parameter.is_meta for parameter in built.parameters())
    assert type(callables.build_module("RNN", {"input_size": 2, "hidden_size": 2, "num_layers": 1}, 0)) is nn.RNN


def test_a_class_of_outputs_is_found_in_a_package_that_the_caller_named_only():
    name, package = f"{__name__}.Answer", __name__.partition(".")[0]
    assert callables.given_type(name, {package}) is Answer
    assert callables.given_type("urllib.parse.ParseResult", {"urllib"}) is urllib.parse.ParseResult
    for packages in ((), {"other"}):
        expected = f"model: the file names {name}, a class of outputs; pass as model= a model of its library"
        with pytest.raises(callables.NotGiven, match=exactly(expected)):
            callables.given_type(name, packages)


def test_a_plain_module_comes_back_with_its_tensors_which_are_stored_once():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)
    second.weight = first.weight
    writer = Writer()
    called = {("module", "first"): first, ("module", "second"): second}
    rows = callables.write_callables(called, writer)
    assert sorted(writer.tensors) == ["first.bias", "first.weight"]
    assert rows[1]["state"] == {"weight": "first.weight"} and rows[1]["class"] == "Linear"
    read = callables.read_callables(rows, Reader(writer.tensors), {})
    x = torch.rand(4, 3)
    assert all(torch.equal(read[key](x), module(x)) for key, module in called.items())
