"""Functions of the room that say something about one value, node, module or class, asked directly."""

import collections
import csv
import logging
import operator
import random
import threading
import types
from array import array

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from quantspec.capture import (
    acting,
    aliases,
    attention,
    calls,
    constants,
    copies,
    kept,
    norms,
    operators,
    parts,
    resizing,
    splitting,
    tensor_names,
    tracer,
    tracked,
    writes,
)
from quantspec.capture.aliases import Shares
from quantspec.errors import UnsupportedError
from quantspec.ir.float_graph import BatchNorm
from quantspec.ir.program import Call
from told import exactly


def traced(function):
    """The graph of a function, and its nodes by their names."""
    graph = fx.symbolic_trace(function).graph
    return graph, {node.name: node for node in graph.nodes}


# --- memory


def test_what_lies_in_the_memory_of_a_value_is_found_with_how():
    def function(x, other):
        view = x.view(-1)
        first, last = view[0], view[1]
        perhaps = first.reshape(3)
        wide = other.expand(2, 3)
        one, two = wide[0], wide[1]
        return last, perhaps, one, two, one.t(), x + 1

    graph, at = traced(function)
    memory = aliases.Memory()
    for node in graph.nodes:
        if (how := aliases.shares(node, {})) is not None:
            memory.add(node, node.args[0], how)

    def around(name):
        return {(node.name, how) for node, how in memory.around(at[name])}

    assert around("getitem") == {
        ("reshape", Shares.SOMETIMES), ("view", Shares.ALWAYS), ("x", Shares.ALWAYS),
    }  # fmt: skip
    assert around("reshape") == {
        ("getitem", Shares.SOMETIMES), ("view", Shares.SOMETIMES), ("x", Shares.SOMETIMES),
    }  # fmt: skip
    assert around("getitem_2") == {
        ("t", Shares.ALWAYS), ("expand", Shares.ALWAYS), ("other", Shares.ALWAYS), ("getitem_3", Shares.ALWAYS),
    }  # fmt: skip
    assert around("x") == {
        ("view", Shares.ALWAYS), ("getitem", Shares.ALWAYS), ("getitem_1", Shares.ALWAYS),
        ("reshape", Shares.SOMETIMES),
    }  # fmt: skip
    assert around("add") == set() and memory.overlaps(at["t"]) and not memory.overlaps(at["reshape"])


INDICES = [
    ((0, 1), True),
    ((0, 0), False),
    ((0, -1), False),
    ((-1, -2), True),
    (((0, 1), (0, 2)), True),
    (((0, 1), (0, 1)), False),
    (((slice(0, 2), 0), (slice(2, 4), 0)), True),
    ((slice(0, 3), slice(2, 4)), False),
    ((slice(2, 4), slice(0, 2)), True),
    ((slice(0, 2), slice(1, None)), False),
    ((slice(None, 2), slice(2, 3)), True),
    ((slice(0, -2), slice(3, 5)), False),
    ((slice(0, None), slice(3, 5)), False),
    (((..., 0), (..., 1)), True),
    (((..., 0), (..., 0, 1)), False),
    (((..., 0), (0, 1)), False),
    (((0, ...), (1, ...)), True),
    (((0, slice(0, 1)), (slice(0, 1), 1)), False),
    (((None, 0), (None, 1)), False),
    (("a", "b"), False),
    (((slice(1, 2), 5), (slice(1, 2), 6)), True),
    ((slice(0, 0), slice(0, 0)), True),
    (((slice(0, 2), "a", 1), (slice(0, 2), "a", 2)), False),
]


def items(mine, others):
    return lambda x: (x[mine], x[others])


def test_items_are_apart_by_their_indices():
    for (mine, others), expected in INDICES:
        _, at = traced(items(mine, others))
        if isinstance(mine, slice) and isinstance(others, slice):
            assert aliases.apart(at["getitem"], at["getitem_1"]) == expected, (mine, others)
            continue
        assert aliases.apart(at["getitem"], at["getitem_1"]) == expected, (mine, others)
        assert aliases.apart(at["getitem_1"], at["getitem"]) == expected, (mine, others)
        assert not aliases.apart(at["getitem"], at["x"]) and not aliases.apart(at["x"], at["getitem"])
        assert aliases.index_of(at["getitem"]) == (mine if isinstance(mine, tuple) else (mine,))


def test_how_a_module_or_an_operation_shares_memory():
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.flatten, self.drop, self.relu = nn.Flatten(), nn.Dropout(), nn.ReLU()

        def forward(self, x):
            return self.flatten(x), self.drop(x), self.relu(x), x.real, x.shape, x.contiguous(), x.flip(0), x[0]

    model = Calls()
    graph = fx.Tracer().trace(model)
    found = {node.name: aliases.shares(node, dict(model.named_modules())) for node in graph.nodes}
    assert found == {
        "x": None, "flatten": Shares.SOMETIMES, "drop": Shares.ALWAYS, "relu": None, "getattr_1": Shares.ALWAYS,
        "getattr_2": None, "contiguous": Shares.SOMETIMES, "flip": None, "getitem": Shares.ALWAYS, "output": None,
    }  # fmt: skip
    named = {node.name: aliases.name_of(node) for node in graph.nodes}
    assert (named["x"], named["contiguous"], named["getitem"], named["flatten"]) == ("", "contiguous", "getitem", "")


def own(x):
    return x


def test_which_functions_may_hide_writes():
    aten = torch.ops.aten
    assert [aliases.hides_writes(what) for what in (
        aten.relu_.default, aten.relu.default, aten.add.out, aten.relu_, aten.relu, aten.add, own, nn.Linear, torch.add,
        operator.add, len, F.relu, attention.attend,
    )] == [True, False, False, True, False, False, True, False, False, False, False, False, False]  # fmt: skip


# --- sizes


def test_which_lengths_layers_say():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.conv, self.row = nn.Linear(8, 8), nn.Conv2d(8, 8, 1), nn.Conv1d(8, 8, 1)
            self.norm, self.pool = nn.LayerNorm(8), nn.MaxPool2d(2)

        def forward(self, x, y):
            z = self.linear(x)
            parts = z.chunk(2, -1)
            return {
                "x": x, "linear": z, "conv": self.conv(x), "row": self.row(x), "norm": self.norm(z),
                "pool": self.pool(z), "relu": z.relu(), "sum": z + y, "twice": z * 2, "part": parts[0],
                "parts": parts, "view": z.view(-1, 8, 4), "views": z.reshape((2, -1, 4)),
                "sized": z.view(x.shape[0], 4),
                "permute": z.permute(2, 0, 1), "permuted": z.permute((0, -1, 1)), "transpose": z.transpose(0, -1),
                "flip": z.flip(0), "function": F.linear(x, self.linear.weight), "of function": F.conv2d(x, y),
                "other part": torch.split(z, x.shape[0], 1)[0], "a slice": z[0], "softmax": F.softmax(z, -1),
                "of row": torch.conv1d(x, y), "by name": z.permute(dims=(2, 0, 1)),
                "turned by name": z.transpose(dim0=0, dim1=2), "moved": z.transpose(x.size(0), 0),
                "float": self.norm(x.float()), "several": (z, x)[0],
            }  # fmt: skip

    model = Layers()
    graph = fx.Tracer().trace(model)
    given = next(node for node in graph.nodes if node.op == "output").args[0]
    modules = dict(model.named_modules())
    found = {name: [axis for axis in range(3) if splitting.is_fixed(node, axis, 3, modules)]
             for name, node in given.items()}  # fmt: skip
    last = "linear", "norm", "relu", "twice", "part", "flip", "function", "softmax", "several"
    expected = dict.fromkeys(given, []) | dict.fromkeys(last, [2])
    expected |= {"conv": [0], "of function": [0], "row": [1], "of row": [1], "view": [1, 2], "views": [0, 2],
                 "permute": [0], "permuted": [1], "transpose": [0], "flip": []}  # fmt: skip
    assert found == expected
    assert [axis for axis in range(4) if splitting.is_fixed(given["conv"], axis, 4, modules)] == [1]
    assert not splitting.is_fixed(next(n for n in graph.nodes if n.op == "output"), 0, 3, modules)


def test_how_a_value_is_split_and_into_how_many_parts():
    assert [splitting.arguments(*given) for given in (
        ("add", (0, 1), {}), ("split", (0, 3), {}), ("split", (0, 3, 1), {}), ("split", (0,), {"split_size": 3}),
        ("split", (0, 1), {"split_size": 3}), ("split", (0,), {"split_size_or_sections": 2, "dim": -1}),
        ("split", (0, [1, 2]), {}), ("chunk", (0, 4, 2), {}), ("chunk", (0,), {"chunks": 3, "dim": 1}),
        ("unbind", (0,), {}), ("unbind", (0, 2), {}), ("unbind", (0,), {"dim": 1}), ("split", (0, 3, "a"), {}),
        ("split", (0, (1, 2), 1), {}),
    )] == [
        None, (3, 0), (3, 1), (3, 0), (3, 1), (2, -1), None, (4, 2), (3, 1), (None, 0), (None, 2),
        (None, 1), None, None,
    ]  # fmt: skip
    assert [splitting.count("split", 3, size) for size in (1, 3, 4, 9)] == [1, 1, 2, 3]
    assert [splitting.count("chunk", 4, size) for size in (1, 4, 5, 6, 9)] == [1, 4, 3, 3, 3]
    assert [splitting.count("unbind", None, size) for size in (1, 5)] == [1, 5]


def test_what_a_size_is_measured_of():
    forms = {
        "lengths": lambda x, y: (x.size(2), x.size(-1)), "items": lambda x, y: (x.shape[-2], x.size()[3]),
        "end": lambda x, y: x.shape[-2:], "behind two": lambda x, y: x.size()[2:], "two": lambda x, y: x.shape[2:4],
        "exchanged": lambda x, y: (x.size(3), x.size(2)), "two values": lambda x, y: (x.size(2), y.size(3)),
        "one": lambda x, y: (x.size(2),), "three": lambda x, y: (x.size(2), x.size(3), x.size(3)),
        "number": lambda x, y: (x.size(2), 5), "with a step": lambda x, y: x.shape[2:4:1],
        "others": lambda x, y: x.shape[1:],
        "of values": lambda x, y: x[2:], "a value": lambda x, y: x.sum(), "an item": lambda x, y: x.shape[2],
        "other axis": lambda x, y: (x.size(1), x.size(3)), "by name": lambda x, y: (x.size(dim=2), x.size(dim=3)),
        "same": lambda x, y: (x.size(2), x.size(2)), "of items": lambda x, y: (x[2], x[3]),
        "strides": lambda x, y: (x.stride(2), x.stride(3)), "of a type": lambda x, y: x.dtype[-2:],
    }  # fmt: skip
    for name, form in forms.items():
        graph, at = traced(form)
        found = resizing.measured(next(node for node in graph.nodes if node.op == "output").args[0])
        assert found is (at["x"] if name in ("lengths", "items", "end", "behind two", "two") else None), name
    assert resizing.measured(5) is None


class Sizes:
    """What a size needs of a recorder."""

    ended = False

    def __init__(self):
        self.graph, self.noted = fx.Graph(), []

    def size_node(self, target, args):
        return self.graph.call_function(
            target, tuple(arg.size_node if hasattr(arg, "size_node") else arg for arg in args)
        )

    def require(self, target, args, result):
        self.noted.append((target, tuple(map(tracked.exact, args)), result))

    def stop(self, reason):
        raise RuntimeError(reason)


def test_sizes_compute_as_numbers_do_and_note_what_is_asked_of_them():
    sizes = Sizes()
    x = sizes.graph.placeholder("x")
    size, other = (tracked.number(sizes, n, lambda axis=axis: sizes.graph.call_method("size", (x, axis)))
                   for axis, n in enumerate((7, 3)))  # fmt: skip
    for sign in (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod,
                 operator.pow, operator.and_, operator.or_, operator.xor, operator.lshift, operator.rshift):
        for args in ((size, other), (size, 2), (2, size)):
            got = sign(*args)
            assert isinstance(got, tracked.Tracked)
            assert tracked.exact(got) == sign(*map(tracked.exact, args)), sign
            assert got.size_node.target is sign and got.size_node is got.size_node
    for target in (operator.neg, operator.pos, abs, operator.invert, round):
        assert tracked.exact(target(size)) == target(7)
    assert [tracked.exact(n) for n in divmod(size, 2)] == [3, 1] and [tracked.exact(n) for n in divmod(9, size)] == [
        1,
        2,
    ]
    assert not sizes.noted
    assert [size > 3, size == 7, size != 7, size <= other, size < 8, size >= 8] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert [bool(size), float(size), str(size), int(size)] == [True, 7.0, "7", 7]
    assert size == size and size.bit_length() == 3 and [0] * size == [0] * 7
    signs = operator.gt, operator.eq, operator.ne, operator.le, operator.lt, operator.ge
    given = (7, 3), (7, 7), (7, 7), (7, 3), (7, 8), (7, 8)
    assert sizes.noted == [
        *zip(signs, given, (True, True, False, False, True, False)), (operator.ne, (7, 0), True),
        *[(operator.eq, (7, 7), True)] * 5,
    ]  # fmt: skip
    assert size.__add__("a") is NotImplemented and size.__eq__("a") is NotImplemented
    with pytest.raises(RuntimeError, match=exactly("a size becomes a complex number")):
        tracked.number(sizes, 1j, None)
    with pytest.raises(RuntimeError, match=exactly("torch reads a size in a way that cannot be recorded")):
        _ = size.node
    told = "Python counts to a size, or looks something up by it"
    with pytest.raises(RuntimeError, match=exactly(told)):
        range(size)
    with pytest.raises(TypeError, match=exactly("a size cannot be hashed while a model is recorded")):
        hash(size)
    written = {
        "(x.size(0) + 2)": size + 2, "((x.size(0) * x.size(1)) // 3)": size * other // 3, "neg(x.size(0))": -size,
        "(x.size(0) % 2)": size % 2, "(2 - x.size(1))": 2 - other, "pow(x.size(0), 2)": size**2,
    }  # fmt: skip
    assert {tracked.as_written(value.size_node) for value in written.values()} == set(written)
    assert tracked.as_written(0.5) == "0.5" and tracked.as_written("a") == "'a'"
    tree = {"a": [size, (other,)], "b": slice(size, None, other), "c": torch.Size([size, 2]), "d": "e"}
    assert tracked.plain(tree) == {
        "a": [7, (3,)], "b": slice(7, None, 3), "c": torch.Size([7, 2]), "d": "e",
    }  # fmt: skip
    assert [*map(tracked.exact, tracked.slices({"a": [slice(size, None, 2)], "b": 5}))] == [7, None, 2]
    sizes.ended = True
    assert hash(size) == hash(7) and list(range(other)) == [0, 1, 2] and size + 1 == 8 and type(size + 1) is int


# --- calls


def test_arguments_are_brought_to_their_places():
    def at(target, *args, **kwargs):
        return tensor_names.by_place(target, args, kwargs)

    assert at(torch.add, 1, other=2) == ((1, 2), {}) and at(torch.add, input=1, other=2, alpha=3) == (
        (1, 2),
        {"alpha": 3},
    )
    assert at(torch.add, other=2) == ((), {"other": 2}) and at(torch.add, 1) == ((1,), {})
    assert at(torch.addmm, 1, mat1=2, mat2=3) == ((1, 2, 3), {}) and at(torch.cat, tensors=[1], dim=1) == (
        ([1],),
        {"dim": 1},
    )
    assert at(torch.where, condition=1, input=2, other=3) == ((), {"condition": 1, "input": 2, "other": 3})
    assert at("add", 1, other=2) == ((1, 2), {}) and at(torch.Tensor.add, 1, other=2) == ((1, 2), {})
    assert at(own, 1, other=2) == ((1,), {"other": 2}) and at(own, input=1) == ((), {"input": 1})
    assert at(nn.Linear(2, 2), input=1) == ((1,), {}) and at(nn.LSTM(2, 2), hx=2, input=1) == ((1,), {"hx": 2})
    assert at(nn.Linear(2, 2), other=1) == ((), {"other": 1})
    assert at(torch.linalg.diagonal, A=1, offset=2) == ((1,), {"offset": 2})
    assert [*map(tensor_names.is_method, (torch.Tensor.add, torch.Tensor.split, torch.add, len, "add"))] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert [*map(tensor_names.is_torchs, ("add", torch.add, torch.Tensor.split, F.relu, own, 5))] == [
        True, True, True, True, False, False,
    ]  # fmt: skip
    x, truth = torch.ones(2), torch.tensor([True, False])
    assert [tensor_names.indexes_by_truth(name, (x, index)) for name, index in (
        ("__getitem__", truth), ("__getitem__", (0, truth)), ("__getitem__", truth.to(torch.uint8)),
        ("__getitem__", truth.int()), ("__getitem__", 0), ("add", truth),
    )] == [True, True, True, False, False, False]  # fmt: skip


def forward(x, y=2, *others, scale=0.5, **more):
    return x


def test_a_call_is_known_by_its_pattern():
    x, z = torch.ones(1), torch.zeros(1)
    pattern, tensors = calls.call_of(forward, (x, 3, [z, x], "a"), {"more": z, "scale": None})
    assert [*map(id, tensors)] == [*map(id, (x, z, x, z))]
    assert pattern.names == ("x", "others00", "others01", "more")
    assert pattern.constants == (calls.TENSOR, ("int", 3), calls.TENSOR, calls.TENSOR, ("str", "a"), ("NoneType", None),
                                 calls.TENSOR)  # fmt: skip
    args, kwargs = pattern.arguments([1, 2, 3, 4])
    assert args == (1, 3, [2, 3], "a") and kwargs == {"scale": None, "more": 4} and list(kwargs) == ["scale", "more"]
    assert pattern == pattern.identity() and pattern.identity().given is None
    plain, _ = calls.call_of(forward, (x,), {})
    assert plain == calls.call_of(forward, (x, 2), {"scale": 0.5})[0] != calls.call_of(forward, (x, 2.0), {})[0]
    assert plain.shape == "tuple(: tuple(: *, *), dict(['scale']: *))"
    assert calls.left_out(forward, plain) == (("y", 2), ("scale", 0.5)) and calls.left_out(forward, pattern) is None
    assert calls.left_out(forward, calls.call_of(lambda x: x, (x,), {})[0]) == ()
    unsigned, _ = calls.call_of(dict.update, (x, z), {"a": x})
    assert unsigned.names == ("input0", "input1", "a") and calls.signature_of(dict.update) is None
    assert calls.unique(["a", "b", "a", "a", "a_1"]) == ("a", "b", "a_1", "a_2", "a_1_1")
    signature = calls.signature_of(forward)
    assert calls.positional_names(signature, 5) == ["x", "y", "others0", "others1", "others2"]
    assert calls.positional_names(signature, 1) == ["x"]
    assert [p.name for p in calls.positional(signature)] == ["x", "y"]
    assert calls.labels_of((1, [2, 3]), {"c": (4, 5), "d": 6, "e": []}, ["a", "b"]) == [
        "a",
        "b0",
        "b1",
        "c0",
        "c1",
        "d",
    ]


def test_what_a_forward_takes():
    def of_list(x: list[torch.Tensor], y=1): ...
    def of_nothing(): ...
    def of_names(*, x): ...
    def of_two(x, y): ...

    assert [*map(calls.says_list, (of_list, forward, of_nothing, of_names, dict.update))] == [True, *[False] * 4]
    assert [*map(calls.takes_one, (of_list, forward, of_nothing, of_names, of_two, dict.update))] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    x = torch.ones(1)
    assert calls.arguments(of_two, (x, x, x)) == ((x, x), {}) and calls.arguments(of_two, x) == ((x,), {})
    assert calls.arguments(of_two, {"x": x, "z": 1}) == ((), {"x": x, "z": 1})
    assert calls.arguments(forward, [x, 1, 2, 3]) == ((x, 1, 2, 3), {}) and calls.arguments(of_list, [x, x]) == (
        ([x, x],),
        {},
    )
    assert calls.arguments(dict.update, [x, x, 1]) == ((x, x, 1), {}) and calls.arguments(of_list, (x, 1, 2)) == (
        (x, 1),
        {},
    )


def test_calls_are_told_apart_by_their_keys():
    x, z = torch.ones(1), nn.Parameter(torch.zeros(1))
    key, tensors = calls.key_of((x, 2, [z, (x,)]), {"a": None})
    assert key == (3, "a", calls.TENSOR, int, 2, list, 2, calls.TENSOR, tuple, 1, calls.TENSOR, type(None), None)
    assert [*map(id, tensors)] == [*map(id, (x, z, x))]
    assert calls.key_of((x, {1: 2}), {}) == (None, []) and calls.key_of((x, {1, 2}), {}) == (None, [])
    assert [*map(calls.is_choice, (True, "a", b"a", 1, None, x))] == [True, True, True, False, False, False]
    assert [*map(calls.lowered, (nn.Linear(1, 1), nn.Conv1d(1, 1, 1), nn.ReLU(), None))] == [True, True, False, False]


def test_arguments_are_used_without_defaults_at_their_end():
    class Module(nn.Module):
        def forward(self, x, y=None, z=2): ...

    assert tracer.used(Module(), (1, None, 2), {"a": 3}) == ((1,), {"a": 3})
    assert tracer.used(Module(), (1, 5, 2), {}) == ((1, 5), {}) and tracer.used(Module(), (1, None, 3), {}) == (
        (1, None, 3),
        {},
    )
    assert tracer.used(Module(), (1, None, 2, 7), {}) == ((1, None, 2, 7), {})
    graph = tracer.alone(nn.ConvTranspose2d(1, 1, 1), "a.b")
    assert [(n.op, n.target, n.args) for n in graph.nodes][0] == ("placeholder", "input", ())
    assert [n.op for n in graph.nodes] == ["placeholder", "call_module", "output"]
    assert [n.target for n in graph.nodes][1] == "a.b"
    graph = tracer.alone(nn.LSTM(2, 2))
    assert [(n.name, n.args) for n in graph.nodes][:2] == [("input_1", ()), ("hx", (None,))]
    assert [n.target for n in graph.nodes][2] == ""
    inner, named = [1], {"b": 2}
    tree = ({"a": inner}, named, 5)
    noted = tracer.contents(tree)
    assert [content for _, content in noted] == [{"a": [1]}, [1], {"b": 2}] and noted[1][0] is inner
    inner.append(2)
    named["c"] = 3
    for container, content in noted:
        tracer.refill(container, content)
    assert tree == ({"a": [1]}, {"b": 2}, 5)


# --- modules


def test_which_modules_are_layers():
    class Own(nn.Linear):
        pass

    class Otherwise(nn.Linear):
        def forward(self, x): ...

    changed = nn.Linear(2, 2)
    changed.forward = lambda x: x
    conv1d = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})()
    others = [type("Conv1D", (nn.Module,), {"__module__": "mine"})(),
              type("Conv2D", (nn.Module,), {"__module__": "transformers.x"})()]  # fmt: skip
    with pytest.warns(FutureWarning):
        normed = torch.nn.utils.weight_norm(nn.Linear(2, 2))
    modules = nn.Linear(2, 2), Own(2, 2), nn.GRUCell(2, 2), conv1d, Otherwise(2, 2), changed, *others, nn.ReLU(), normed
    assert [tracer.is_layer(module) for module in modules] == [True, True, True, True, *[False] * 6]
    assert [*map(tracer.is_conv1d, (conv1d, *others))] == [True, False, False]
    kinds = nn.Linear(2, 2), Own(2, 2), nn.Sequential(), nn.Module(), conv1d, nn.ReLU()
    assert [*map(tracer.is_kind_of_layer, kinds)] == [True, True, False, False, False, True]
    holding = nn.Linear(2, 2), nn.LayerNorm(2), nn.Sequential(nn.ReLU(), nn.Conv1d(1, 1, 1))
    assert [*map(tracer.has_layers, holding)] == [
        True, False, True,
    ]  # fmt: skip
    parametrized = torch.nn.utils.parametrizations.weight_norm(Otherwise(2, 2))
    wholes = (
        nn.Linear(2, 2),
        nn.Sequential(),
        Own(2, 2),
        parametrized,
        nn.DataParallel(nn.Linear(2, 2)),
        nn.TransformerEncoder,
    )
    assert [tracer.Tracer.is_whole(module) for module in wholes[:-1]] == [True, False, False, False, False]
    assert operators.public(Own(2, 2), (nn.ReLU, nn.Linear)) and not operators.public(Otherwise(2, 2), (nn.Linear,))
    assert copies.torchs(nn.Linear(2, 2)) and not copies.torchs(Own(2, 2)) and not copies.torchs(changed)


def test_what_torchs_compiler_raises_is_refused():
    tracer.refuse_compiled(ValueError("HigherOrderOperator"))
    tracer.refuse_compiled(NotImplementedError("something"))
    own_error = type("Unsupported", (Exception,), {"__module__": "torch._dynamo.exc"})
    for error in (NotImplementedError("no HigherOrderOperator cond"), own_error("?")):
        told = ("model: it has torch compile a function, as torch.cond does (), which cannot be quantized;"
                " write it with Python's if")  # fmt: skip
        with pytest.raises(UnsupportedError, match=exactly(told)) as raised:
            tracer.refuse_compiled(error)
        assert raised.value.__cause__ is error


def test_the_last_frame_of_the_users_code_is_told():
    def frame(name):
        return types.SimpleNamespace(f_code=types.SimpleNamespace(co_filename=name))

    frames = [("/a/model.py", 1), ("/a/other.py", 2), ("/x/torch/nn.py", 3), ("<string>", 4), ("/x/quantspec/a.py", 5)]
    assert tracer.innermost([(frame(name), line) for name, line in frames]) == "/a/other.py, line 2"
    assert tracer.innermost([(frame(name), line) for name, line in frames[2:]]) == ""


def test_what_training_follows():
    norm = nn.BatchNorm1d(2)
    call = Call("a", "module", "n", (), {}, "")
    node = BatchNorm("a", "x", None, None, None, None, 0.5, call, "n")
    assert acting.follows(node, {"n": norm}) and acting.follows(call, {}) and not acting.follows(None, {})
    assert not acting.follows(node, {}) and not acting.follows(node, {"n": nn.ReLU()})
    assert not acting.follows(node, {"n": nn.BatchNorm1d(2, track_running_stats=False)})


def test_drawn_numbers_are_refused_and_given_back():
    states = torch.get_rng_state(), acting.python_random()
    for draw in (lambda: torch.rand(1), random.random, np.random.rand):
        with pytest.raises(UnsupportedError, match=exactly(acting.DRAWS)), acting.no_draws():
            draw()
        with pytest.raises(UnsupportedError, match=exactly("why")), acting.no_draws("why"):
            draw()
        assert torch.equal(states[0], torch.get_rng_state()) and acting.python_random() == states[1]
    with acting.no_draws():
        torch.ones(1)


# --- state


def test_what_of_a_value_is_its_state():
    class Slotted:
        __slots__ = ("a", "b")

    def numbers():
        yield 1
        yield 2

    def counting(start=[0]):  # noqa: B006
        return start

    slotted, generator, tensor = Slotted(), numbers(), torch.zeros(2)
    slotted.a = [1]
    cell = [1]
    values = {
        "list": ([1], lambda v: v.append(2)), "dict": ({"a": [1]}, lambda v: v["a"].append(1)),
        "set": ({1}, lambda v: v.add(2)), "deque": (collections.deque([1]), lambda v: v.append(1)),
        "array": (np.zeros(2), lambda v: v.__setitem__(0, 1.0)),
        "shape": (np.zeros(4), lambda v: v.resize(2, refcheck=False)),
        "bytes": (bytearray(2), lambda v: v.__setitem__(0, 1)), "numbers": (array("i", [1]), lambda v: v.append(2)),
        "torch's generator": (torch.Generator(), lambda v: torch.rand(1, generator=v)),
        "Python's": (random.Random(1), lambda v: v.random()),
        "NumPy's": (np.random.default_rng(1), lambda v: v.random()),
        "NumPy's older": (np.random.RandomState(1), lambda v: v.rand()), "tensor": (tensor, lambda v: v.add_(1)),
        "generator": (generator, next), "iterator": (iter([1, 2]), next), "slots": (slotted, lambda v: v.a.append(2)),
        "a new slot": (Slotted(), lambda v: setattr(v, "b", 1)),
        "defaults": (counting, lambda v: v()[0:0] or v().append(1)),
        "closure": (lambda: cell, lambda v: v().append(1)), "method": (cell.append, lambda v: None),
        "an attribute": (counting, lambda v: setattr(v, "told", 1)), "bound": (Told().tell, lambda v: v()),
        "attributes": (Told(), lambda v: v.tell()), "object dict": (OfDict(a=1), lambda v: setattr(v, "told", 1)),
        "an ended generator": ((lambda g: (list(g), g)[1])(numbers()), lambda v: None),
    }  # fmt: skip
    for name, (value, change) in values.items():
        before = copies.fingerprint(value, {})
        assert copies.fingerprint(value, {}) == before, name
        change(value)
        same = name in ("method", "an ended generator")
        assert (copies.fingerprint(value, {}) == before) == same, name
    assert copies.inside_of(Slotted) is None and copies.fingerprint(Slotted, {}) is Slotted
    for value in (logging.getLogger("a"), types, np.zeros(2**21 + 1), bytearray(2**24 + 1)):
        assert copies.inside_of(value) is None and copies.fingerprint(value, {}) == id(value)
    assert copies.inside_of(np.zeros(2**21)) is not None and copies.inside_of(bytearray(2**24)) is not None
    assert [copies.fingerprint(value, {}) for value in (1, 2.5, "a", None, torch.float32)] == [
        1,
        2.5,
        "a",
        None,
        torch.float32,
    ]
    assert copies.fingerprint(tensor, {}) == (id(tensor), tensor._version)
    deep = [[1]]
    assert copies.fingerprint(deep, {}, copies.DEEPEST) == (id(deep[0]),)
    assert copies.fingerprint(deep, {}, copies.DEEPEST + 1) == id(deep)
    assert copies.fingerprint(deep, dict.fromkeys(range(copies.MOST + 1))) == id(deep)
    assert copies.fingerprint(deep, dict.fromkeys(range(copies.MOST - 1))) == ((1,),)
    assert len(copies.fingerprint([1] * (copies.MOST + 5), {})) == copies.MOST
    lock = threading.Lock()
    silent = csv.reader(["a"])  # which does not say what it gives next
    assert copies.fingerprint(silent, {}) != copies.fingerprint(silent, {})
    assert copies.fingerprint(lock, {}) == ()


class Told:
    def __init__(self):
        self.told = [1]

    def tell(self):
        self.told.append(1)


class OfDict(dict):
    pass


def test_what_changed_is_told_by_its_path():
    nan = float("nan")
    assert copies.changed({("a", "b"): 1, ("", "c"): nan}, {("a", "b"): 1, ("", "c"): nan}) is None
    assert copies.changed({("a", "b"): 1}, {("a", "b"): 2}) == "a.b" and copies.changed({("", "b"): 1}, {}) == "b"
    assert copies.changed({}, {("a", "b"): 1}) == "a.b"
    x = torch.ones(2)
    tree = {"a": [x, (x, 5)], "b": "c"}
    twin = copies.cloned(tree)
    assert twin["a"][0] is not x and torch.equal(twin["a"][1][0], x) and twin["a"][1][1] == 5 and twin["b"] == "c"
    ordered = copies.over_tensors(collections.OrderedDict(a=x, b=[x, 1]), lambda t: t * 2)
    assert type(ordered) is collections.OrderedDict and float(ordered["b"][0][0]) == 2 and ordered["b"][1] == 1
    model = nn.Sequential(nn.Linear(2, 2))
    model.held, model.table, model.more = [x, "a", x * 2], x * 3, {"k": x * 4}
    found = {name: version for name, _, version in copies.attributes_of(model).values()}
    assert set(found) == {"0.weight", "0.bias", "held_0", "held_1", "table", "more_0"}
    x.add_(1)
    assert {n: v for n, t, v in copies.attributes_of(model).values() if t is x} == {"held_0": x._version}
    assert copies.held(5) == [] and copies.held((x, 1))[0] is x


def test_hooks_of_torch_are_settled_and_named():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with pytest.warns(FutureWarning):
        torch.nn.utils.weight_norm(model[0])
    model[1].register_forward_pre_hook(lambda m, x: None)
    assert copies.by_hooks(model) == {"0.weight": "torch.nn.utils.weight_norm"}
    assert copies.by_hooks(model[0]) == {"weight": "torch.nn.utils.weight_norm"}
    model[0].weight_g.requires_grad_(False)
    twin = copies.own_copy(model)
    assert (
        torch.equal(twin[0].weight, model[0].weight) and not twin[0]._forward_pre_hooks and twin[0].weight.requires_grad
    )
    assert not twin[0].weight_g.requires_grad and not twin[0].weight_v.requires_grad and model[0].weight_v.requires_grad
    assert len(twin[1]._forward_pre_hooks) == 1 and len(model[0]._forward_pre_hooks) == 1
    model.requires_grad_(False)
    assert not copies.own_copy(model)[0].weight.requires_grad


def test_what_is_copied_is_shared_only_where_nobody_writes_to_it():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

    plain, own = nn.Sequential(nn.Linear(2, 2)), Own()
    assert copies.own_copy(plain, share=True)[0].weight is plain[0].weight
    assert copies.own_copy(plain)[0].weight is not plain[0].weight
    assert copies.own_copy(own, share=True).layer.weight is not own.layer.weight
    assert copies.run_copy(own).layer.weight is own.layer.weight
    own.cached = (own.layer.weight * 2, 3)
    own.product = own.layer.weight * 2
    twin = copies.run_copy(own)
    assert twin.product.is_leaf and torch.equal(twin.product, own.product) and twin.product is not own.product
    lazy = nn.Sequential(nn.LazyLinear(3))
    assert copies.run_copy(lazy)[0].weight is lazy[0].weight
    own.layer = None
    assert copies.own_copy(own).layer is None


# --- first calls


def test_other_values_and_sizes_for_a_first_call():
    x, i = torch.arange(6.0).reshape(2, 3), torch.arange(6).reshape(2, 3)
    assert kept.of_other_values(x).tolist() == [[2.75, 2.25, 1.75], [1.25, 0.75, 0.25]]
    assert kept.of_other_values(i).tolist() == [[0, 4, 3], [2, 1, 0]] and kept.of_other_values(i[:0]).shape == (0, 3)
    assert kept.halved(torch.arange(20).reshape(4, 5), (1, 2)).tolist() == [
        [0, 1, 2],
        [5, 6, 7],
        [10, 11, 12],
        [15, 16, 17],
    ]
    y = torch.ones(2, 5, 4)
    shapes = [[tuple(leaf.shape) for leaf in (*args, *kwargs.values())]
              for args, kwargs in kept.of_other_sizes(((x, torch.ones(())), {"y": y}))]  # fmt: skip
    assert shapes == [
        [(4, 3), (), (4, 5, 4)], [(2, 2), (), (2, 3, 4)], [(2, 3), (), (2, 5, 2)], [(2, 2), (), (2, 3, 2)],
    ]  # fmt: skip
    shapes = [[tuple(leaf.shape) for leaf in args] for args, _ in kept.of_other_sizes(((x, torch.ones(3, 4)), {}))]
    assert shapes == [[(2, 3), (3, 4)], [(2, 2), (3, 2)]]


# --- constants, normalizations, numbers


def test_what_an_operation_of_constants_does_beside_giving_a_value():
    def function(x):
        return (
            x.add_(1), x.__add__(1), F.relu(x, inplace=True), torch.add(x, 1, out=x), None, x.t(),
            torch.rand_like(x), x.bernoulli(), F.dropout(x), torch.normal(x), x.max(),
            F.batch_norm(x, x, x, training=True), F.batch_norm(x, x, x, training=False),
            F.batch_norm(x, None, None, training=True),
        )  # fmt: skip

    graph, at = traced(function)
    nodes = next(node for node in graph.nodes if node.op == "output").args[0]
    in_place, drawing, noting = {0, 2, 3}, {6, 7, 8, 9}, {11}
    assert constants.writes(graph.call_function(operator.setitem, (at["x"], 0, 1)))
    made = {i: node for i, node in enumerate(nodes) if isinstance(node, fx.Node)}
    assert {i for i, node in made.items() if constants.writes(node)} == in_place
    assert {i for i, node in made.items() if constants.is_random(node)} == drawing
    assert {i for i, node in made.items() if constants.keeps_statistics(node)} == noting
    known = {at["x"]: 1}
    assert {i for i, node in made.items() if constants.constant(node, known)} == {1, 5, 10, 12, 13}
    assert not any(constants.constant(node, {}) for node in made.values())
    constants.put_in(at["t"], at["x"], 5)
    constants.put_in(at["relu"], at["x"], 6)
    assert at["t"].args == (5,) and at["relu"].args == (6,) and at["relu"].kwargs["inplace"] is True
    assert [*map(constants.plain, (1, 0.5, True, None, torch.half, torch.Size(), "a", (1,)))] == [
        *[True] * 6,
        False,
        False,
    ]


def test_a_failing_or_drawing_constant_is_none():
    _, at = traced(lambda x: (x.view(7), torch.rand_like(x), x.add(x, alpha=2), F.relu(x)))
    values, state = {at["x"]: torch.ones(2)}, torch.get_rng_state()
    model = nn.Module()
    found = [constants.computed(at[name], values, model) for name in ("view", "rand_like", "add", "relu")]
    assert found[0] is found[1] is constants.FAILED and torch.equal(state, torch.get_rng_state())
    assert found[2].tolist() == [3, 3] and found[3].tolist() == [1, 1]


def test_which_constants_are_of_channels():
    shapes = {
        (1, 3, 1, 1): True, (3, 1, 1): True, (1, 3, 1): True, (1, 3, 1, 1, 1): True, (3, 1, 1, 1): True,
        (3, 1, 1, 1, 1): False, (3,): False, (3, 1): False, (1, 1, 1): False, (1, 1, 3): False, (3, 2, 1): False,
        (1, 3, 2): False, (2, 1, 1): True, (1, 1, 3, 1): False, (1, 2, 1): True,
    }  # fmt: skip
    assert {shape: norms.of_channels(np.zeros(shape, np.float32)) for shape in shapes} == shapes
    kinds = nn.BatchNorm2d(1), nn.BatchNorm3d(1), nn.BatchNorm1d(1), None
    assert [*map(norms.positions_of, kinds)] == [2, 3, None, None]


def test_numbers_for_each_axis():
    given = {2: (2, 2), (1, 2): (1, 2), (3,): (3, 3), (1, 2, 3): None, "ab": None, (1, 0.5): None, None: None, (): None,
             1.5: None, ("a",): None}  # fmt: skip
    assert {value: operators.each(value, 2) for value in given} == given
    assert operators.each([4], 1) == (4,) and operators.each([1, 2], 3) is None
    sign = operators.signature("input other alpha", alpha=1)
    _, at = traced(lambda x: (torch.add(x, 2), torch.add(x, other=2, alpha=3), torch.add(x, 2, out=x)))
    assert sign.bind(at["add"]) == {"alpha": 1, "input": at["x"], "other": 2}
    assert sign.bind(at["add_1"]) == {"alpha": 3, "input": at["x"], "other": 2} and sign.bind(at["add_2"]) is None
    assert operators.signature("input").bind(at["add"]) is None
    assert operators.constants(1, [2]) and not operators.constants(1, [at["x"]])


def test_two_tensors_are_the_same_with_their_nans():
    x, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert parts.same(x, x.clone()) and parts.same(nan, nan.clone()) and not parts.same(nan, x)
    assert not parts.same(x, x.double()) and not parts.same(x, torch.ones(1)) and not parts.same(x, x + 1)
    assert not parts.same(nan, nan + 1)


def test_a_list_is_what_a_model_can_compute():
    class Stacks(nn.Module):
        def forward(self, rows, scale=1):
            return torch.stack(rows) * scale

    class Says(nn.Module):
        def forward(self, rows: list):
            return rows[0]

    class Of(nn.Module):
        def forward(self, x, y=0):
            return x + y

    rows = [torch.ones(2), torch.ones(2)]
    assert parts.as_given(Stacks(), rows) == (rows,) and parts.as_given(Says(), rows) == (rows,)
    assert parts.as_given(Of(), rows) is rows and parts.as_given(Stacks(), tuple(rows)) == tuple(rows)
    assert parts.as_given(nn.Bilinear(2, 2, 2), rows) is rows and parts.as_given(Says(), rows[0]) is rows[0]
    assert parts.computes(Of(), rows) and not parts.computes(Of(), [*rows, 1])


def test_what_writes_is_a_function():
    x = torch.ones(2)
    assert [writes.value_of(args, kwargs) for args, kwargs in (
        ((x, 5), {}), ((x,), {"other": 6}), ((x,), {"value": 7}), ((x,), {}), ((x,), {"value": 8, "other": 9}),
    )] == [5, 6, 7, 0, 9]  # fmt: skip
    target, args, kwargs = writes.zeroed(torch.empty, (2,), {"memory_format": None, "dtype": torch.int})
    assert target is torch.zeros and args == (2,) and kwargs == {"dtype": torch.int}
    assert writes.zeroed("new_empty", (x, 2), {}) == ("new_zeros", (x, 2), {})
    assert writes.zeroed(torch.add, (x, 2), {"memory_format": 1}) == (torch.add, (x, 2), {"memory_format": 1})
    new = torch.Tensor.new
    for given, (name, rest) in {
        (): ("new_zeros", (0,)), (2, 3): ("new_zeros", (2, 3)), (torch.Size([2]),): ("new_zeros", (torch.Size([2]),)),
        ((1.0, 2.0),): ("new_tensor", ((1.0, 2.0),)),
    }.items():  # fmt: skip
        assert writes.zeroed(new, (x, *given), {}) == (getattr(torch.Tensor, name), (x, *rest), {})
    assert writes.zeroed(new, (x, "a"), {}) == (new, (x, "a"), {})
    assert writes.zeroed(new, (x,), {"device": "cpu"})[0] is new
    assert writes.with_item(x, 0, 5.0).tolist() == [5, 1] and x.tolist() == [1, 1]
    assert (
        writes.filled(x, 3).tolist() == [3, 3] and writes.filled(x, x * 2).tolist() == [2, 2] and x.tolist() == [1, 1]
    )


# --- attention


def test_attention_as_it_is_written_out_is_torchs():
    def drawn(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))

    query, keys, value = drawn(2, 3, 4), drawn(2, 4, 5), drawn(2, 5, 6)
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[:, 0, 1] = True
    scores = query @ keys
    for factor, divides, scaled in ((2.0, True, scores / 2), (2.0, False, scores * 2), (1, False, scores)):
        for given, hidden, expected in (
            (None, None, scaled), (mask.float() * -5, None, scaled - 5 * mask.float()),
            (mask, -9.0, scaled.masked_fill(mask, -9.0)),
        ):  # fmt: skip
            got = attention.weighted(query, keys, value, given, factor, divides, hidden)
            assert torch.equal(got, torch.softmax(expected, -1) @ value)
    m = nn.MultiheadAttention(4, 2).eval().requires_grad_(False)
    q, k = drawn(3, 2, 4), drawn(5, 2, 4)
    hidden, padding = torch.zeros(3, 5), torch.zeros(2, 5)
    hidden[1, 2], padding[0, 3] = float("-inf"), float("-inf")
    for need, average in ((False, True), (True, True), (True, False)):
        given = dict(need_weights=need, average_attn_weights=average, attn_mask=hidden, key_padding_mask=padding)
        for x, y, masks in ((q, k, given), (q[:, 0], k[:, 0], given | {"key_padding_mask": padding[0]})):
            expected, weights = m(x, y, y, **masks)
            got, found = attention.multihead(m, x, y, y, **masks)
            assert torch.allclose(got, expected, atol=1e-6) and (found is None) == (weights is None)
            assert weights is None or torch.allclose(found, weights, atol=1e-6)
    states = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        dropped, weights = attention.attend(q, k, k, 2, False, need_weights=True, dropout=1.0)
        assert not dropped.any() and not weights.any()
        assert not attention.attend(q, k, k, 2, False, dropout=1.0)[0].any()
    assert torch.equal(states, torch.get_rng_state())
    w, b = drawn(6, 4), drawn(6)
    assert torch.equal(attention.linear_rows(q, w, b, 1, 4), F.linear(q, w[1:4], b[1:4]))
    assert torch.equal(attention.linear_rows(q, w, None, 1, 4), F.linear(q, w[1:4]))
    assert torch.equal(attention.project(q, w[:3], b, 2, 5), F.linear(q, w[:3], b[2:5]))
    for part in (dict(add_bias_kv=True), dict(add_zero_attn=True)):
        with pytest.raises(NotImplementedError, match=exactly("bias_k, bias_v, add_zero_attn")):
            attention.multihead(nn.MultiheadAttention(4, 2, **part), q, k, k)


def test_windows_and_patches_are_made_of_images():
    found = attention.window_mask((2, 1), (2, 2), [1, 0])
    zeros = torch.zeros(4, 4)
    hidden = torch.tensor([[0.0, 0, -100, -100], [0, 0, -100, -100], [-100, -100, 0, 0], [-100, -100, 0, 0]])
    assert found.shape == (2, 1, 4, 4) and torch.equal(found[0, 0], zeros) and torch.equal(found[1, 0], hidden)
    found = attention.window_mask((1, 2), (2, 2), [0, 1])
    turned = torch.tensor([[0.0, -100, 0, -100], [-100, 0, -100, 0]]).repeat(2, 1)
    assert torch.equal(found[0, 0], zeros) and torch.equal(found[1, 0], turned)
    x = torch.arange(12.0).reshape(1, 3, 4, 1)
    assert attention.merged_patches(x)[0].tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]], [[8, 0, 9, 0], [10, 0, 11, 0]]]
    assert attention.merged_patches(x[:, :2, :3])[0].tolist() == [[[0, 4, 1, 5], [2, 6, 0, 0]]]
    assert attention.arange(3).tolist() == [0, 1, 2]
    assert attention.written(nn.Linear(2, 2)) is None and attention.whole(nn.Linear(2, 2)) is None
    encoder = nn.TransformerEncoderLayer(4, 2, 4)
    assert attention.written(encoder) is attention.encoder_layer
    assert attention.whole(encoder) is attention.whole_encoder_layer

    class Otherwise(nn.MultiheadAttention):
        def forward(self, *args): ...

    assert attention.written(Otherwise(4, 2)) is None and attention.whole(Otherwise(4, 2)) is None
    own_kind = type("Own", (nn.MultiheadAttention,), {})
    assert attention.written(own_kind(4, 2)) is attention.multihead
    assert attention.whole(own_kind(4, 2)) is attention.whole_multihead
