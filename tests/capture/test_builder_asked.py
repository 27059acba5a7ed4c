"""What the builder of graphs says of one node, module or tree, and how it names and keeps what it is given."""

import collections

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from graph_text import call_text, node_text, numbered, text
from quantspec.capture import builder, operators, tracer
from quantspec.capture.builder import GraphBuilder
from quantspec.errors import UnsupportedError
from quantspec.ir.float_graph import Elementwise, Linear, Shape
from quantspec.ir.program import Call, Ref
from told import exactly


def relu_(x):
    return x


def test_what_writes_in_place_has_a_twin_that_does_not_where_torch_has_one():
    twins = {
        "relu_": "relu", "__iadd__": "__iadd__", "random_": "random_", "relu": "relu", torch.relu_: torch.relu,
        F.elu_: F.elu, torch.zero_: torch.zero_, relu_: relu_, torch.add: torch.add, nn.init.zeros_: nn.init.zeros_,
        torch.Tensor.__add__: torch.Tensor.__add__,
    }  # fmt: skip
    assert {target: builder.not_in_place(target) for target in twins} == twins


def test_trees_are_plain():
    Pair = collections.namedtuple("Pair", "a b")
    given = fx.immutable_collections.immutable_list([torch.Size([2]), {"a": fx.immutable_collections.immutable_list()}])
    found = builder.plain((given, Pair([1], 2), slice(1, 2)))
    assert found == ([(2,), {"a": []}], Pair([1], 2), slice(1, 2)) and type(found[1]) is Pair
    assert [type(each) for each in (found[0], found[0][0], found[0][1], found[0][1]["a"])] == [list, tuple, dict, list]


def test_hooks_and_other_forwards_run_around_a_module():
    before, behind, instead, none = (nn.ReLU() for _ in range(4))
    before.register_forward_pre_hook(lambda m, x: None)
    behind.register_forward_hook(lambda m, x, y: None)
    instead.forward = torch.relu
    assert [*map(builder.hooked, (before, behind, instead, none))] == [True, True, True, False]


def test_only_what_is_read_or_may_do_more_is_needed():
    def call(name, *read, kind="method"):
        return Call(name, kind, "relu", tuple(map(Ref, read)), {}, "why")

    nodes = [
        call("a"), call("b", kind="attribute"), call("c", kind="attribute"), Elementwise("d", "c", "elu", call("d")),
        Elementwise("e", "d", "elu", call("e")), Elementwise("f", "a", "elu", call("f")),
    ]  # fmt: skip
    assert [node.name for node in builder.needed(nodes, [Ref("e")])] == ["a", "c", "d", "e"]
    assert [node.name for node in builder.needed(nodes, {"x": Ref("f")})] == ["a", "f"]


def test_what_computes_with_sizes_alone_needs_no_reason():
    def call(name, *read):
        return Call(name, "method", "add", tuple(map(Ref, read)), {}, "why")

    layer = Linear("layer", "size", "layer", np.ones((2, 2), np.float32), None)
    nodes = [Shape("size", "x", call("size", "x")), call("more", "size"), call("none"), call("both", "size", "x"),
             Elementwise("twice", "more", "mul 2", call("twice", "more")), layer,
             call("of layer", "layer")]  # fmt: skip
    found = builder.without_numbers(nodes)
    assert [getattr(node, "reason", "a node") for node in found] == ["a node", "", "why", "why", "", "a node", "why"]
    assert [node.name for node in found] == [node.name for node in nodes] and found[5] is layer


class Parts(nn.Module):
    """Modules for one call each."""

    def __init__(self):
        super().__init__()
        self.drop, self.same, self.act = nn.Dropout(), nn.Identity(), nn.ReLU(inplace=True)
        self.fresh = nn.ReLU()
        self.flat, self.inner = nn.Flatten(), nn.Sequential(nn.ReLU6(inplace=True), nn.Linear(2, 2))
        self.hooked, self.weight, self.kept = nn.Linear(2, 2), nn.Parameter(torch.ones(2)), [1]
        self.hooked.register_forward_hook(lambda m, x, y: y)
        self.dropped = nn.Dropout()
        self.dropped.register_forward_hook(lambda m, x, y: y)


def nodes_of():
    """A graph, and its input."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    return graph, x


def test_what_is_gone_in_evaluation():
    graph, x = nodes_of()
    made = GraphBuilder(Parts().eval())
    function, module = graph.call_function, graph.call_module
    gone = [
        module("drop", (x,)), module("same", (), {"input": x}), function(F.dropout, (x, 0.5, False)),
        function(F.dropout, (x,), {"training": False}),
        function(F.feature_alpha_dropout, (), {"input": x, "training": 0}),
    ]  # fmt: skip
    stay = [module("act", (x,)), module("dropped", (x,)), function(F.dropout, (x,)), function(torch.add, (x, 1)),
            graph.call_method("dropout", (x,)), function(F.dropout, (x, 0.5, True)),
            graph.get_attr("weight")]  # fmt: skip
    assert [*map(made.is_gone, gone)] == [True] * 5 and [*map(made.is_gone, stay)] == [False] * 7
    for node in gone:
        assert made.node(node) is None and made.alias[node.name] == "x"
    assert made.calls == {"drop": 1, "same": 1}


def test_what_an_operation_in_place_writes_to():
    graph, x = nodes_of()
    y, made = graph.placeholder("y"), GraphBuilder(Parts().eval())
    function, method, module = graph.call_function, graph.call_method, graph.call_module
    writing = [module("act", (x,)), module("act", (), {"input": x}), method("add_", (x, y)),
               function(torch.relu_, (x,)), function(F.relu, (x,), {"inplace": True}),
               function(F.relu, (), {"input": x, "inplace": True}), method("add_", (), {"input": x}),
               function(torch.relu_, (), {"input": x})]  # fmt: skip
    others = [
        module("flat", (x,)), method("add", (x, y)), method("__add__", (x, y)), function(F.relu, (x,), {"inplace": 1}),
        function(torch.relu_, (1, x)), method("add_", ()), graph.get_attr("a_"), function(F.relu, (x,)),
        method("__getitem__", (x,)), function(torch.relu, (x,)), function(F.relu, (x,), {"inplace": False}),
        method("add_", (3,)), module("act", (3,)), module("fresh", (x,)), module("fresh", (), {"input": x}),
        method("add", (), {"input": x}), function(torch.relu, (), {"input": x}),
    ]  # fmt: skip
    assert [*map(made.target_of, writing)] == [x] * 8 and [*map(made.target_of, others)] == [None] * 17
    assert made.writes(graph) == dict.fromkeys(writing, x)


def test_calls_have_what_they_call_and_write_nowhere():
    graph, x = nodes_of()
    model = Parts().eval()
    own, shared = GraphBuilder(model), GraphBuilder(model, share=True)
    nodes = [
        graph.call_module("inner", (x,)), graph.get_attr("weight"), graph.get_attr("kept"),
        graph.call_function(F.relu, (x,), {"inplace": True}), graph.call_method("mul_", (x, 2)),
        graph.call_method("fill_", (x, 3)),
    ]  # fmt: skip
    expected = """
inner: module inner(%x) # Sequential has no integer form here
weight: attribute weight() # is a constant
kept: attribute kept() # is a constant
relu: function torch.nn.functional.relu(%x, inplace=False) # torch.nn.functional.relu has no integer form here
mul_: method mul(%x, 2) # mul has no integer form here
fill_: function quantspec.capture.writes.filled(%x, 3) # quantspec.capture.writes.filled has no integer form here
"""
    for made in (own, shared):
        assert "\n".join(call_text(made.call(node)) for node in nodes) == expected.strip()
        assert made.callables["function", "torch.nn.functional.relu"] is F.relu and len(made.callables) == 5
        weight, kept = (made.callables["attribute", name] for name in ("weight", "kept"))
        assert weight.tolist() == [1, 1] and not weight.requires_grad and kept == [1] and kept is not model.kept
        assert weight.data_ptr() != model.weight.data_ptr()
        if made is own:
            assert model.inner[0].inplace and made.callables["module", "inner"] is not model.inner
        assert not made.callables["module", "inner"][0].inplace
        first = dict(made.callables)
        made.call(nodes[0]), made.call(nodes[2])
        assert all(made.callables[key] is what for key, what in first.items())
    assert shared.callables["module", "inner"] is model.inner


def test_arrays_are_the_models_memory_where_they_are_shared_and_one_for_each_tensor():
    model = Parts().eval()
    own, shared = GraphBuilder(model), GraphBuilder(model, share=True)
    for made in (own, shared):
        found = made.array(model.weight)
        assert made.array(model.weight) is found is made.optional(model.weight) and made.optional(None) is None
        assert made.array(model.hooked.weight) is not found
        assert np.shares_memory(found, model.weight.detach().numpy()) == (made is shared)


def test_names_are_given_once():
    made = GraphBuilder(nn.Module())
    made.taken.add("taken")
    asked = "add", "add", "add_1", "taken", "taken", "add", "other"
    assert [*map(made.unused, asked)] == ["add", "add_1", "add_1_1", "taken_1", "taken_2", "add_2", "other"]


class Named(nn.Module):
    """Inputs that are called as modules, Python's functions and operations are."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.same = nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Identity()

    def forward(self, input, conv, add=None, *rest):
        y = self.act(self.same(self.conv(input)) + conv)
        y.mul_(2)
        return torch.relu(y) + add, y


def test_values_are_called_as_a_reader_looks_for_them():
    found = text(tracer.trace(numbered(Named())).graph).splitlines()
    names = [line.partition(":")[0] for line in found if line[:1].isalnum() and ": " in line and "calls" not in line]
    assert found[0] == "(input, conv, add=None, _rest)"
    assert names[:6] == ["conv_1", "add_1", "act", "mul_", "relu", "add_2"]
    assert "-> (%add_2, %mul_)" in found


def test_modules_are_known_as_they_are_called():
    graph, x = nodes_of()
    made = GraphBuilder(numbered(Parts()))
    made_of = [node_text(made.node(node)) for node in (
        graph.call_module("flat", (x,)), graph.call_module("flat", (), {"input": x}), graph.call_module("hooked", (x,)),
        graph.call_module("act", (), {"input": x}),
    )]  # fmt: skip
    assert made_of == [
        "flat: Move(x='x') | flat: function torch.flatten(%x, 1, -1)",
        "flat_1: module flat(input=%x) # Flatten has no integer form here",
        "hooked: module hooked(%x) # Linear has no integer form here",
        "act: Relu(x='x') | act: module act(input=%x) # ReLU has no integer form here",
    ]
    assert made.calls == {"flat": 2, "hooked": 1, "act": 1}
    assert made.callables["function", "torch.flatten"] is torch.flatten


def test_defaults_that_are_tensors_are_refused():
    graph = fx.Graph()
    y = graph.get_attr("weight")
    graph.placeholder("x", default_value=y)
    with pytest.raises(UnsupportedError, match=exactly("the default of 'x' is a tensor")):
        GraphBuilder(Parts().eval()).build(graph)


def test_modules_that_move_values_are_functions_with_their_arguments():
    pad, grow = F.pad, F.interpolate
    moved = [
        (nn.Flatten(0, 1), torch.flatten, (0, 1), {}), (nn.Unflatten(1, (2, 3)), "unflatten", (1, (2, 3)), {}),
        (nn.ZeroPad1d((1, 2)), pad, ([1, 2],), {}), (nn.ZeroPad2d(1), pad, ([1] * 4,), {}),
        (nn.ZeroPad3d(1), pad, ([1] * 6,), {}),
        *[(kind(2), pad, ([2] * 2 * axes,), {"mode": mode}) for mode, kinds in {
            "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
            "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
            "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
        }.items() for axes, kind in enumerate(kinds, start=1)],
        (nn.Upsample(3), grow, (), {"size": 3, "scale_factor": None, "mode": "nearest"}),
        (nn.Upsample(scale_factor=2, mode="nearest-exact", recompute_scale_factor=True), grow, (),
         {"size": None, "scale_factor": 2.0, "mode": "nearest-exact", "recompute_scale_factor": True}),
        (nn.PixelShuffle(2), F.pixel_shuffle, (2,), {}), (nn.PixelUnshuffle(3), F.pixel_unshuffle, (3,), {}),
        (nn.ChannelShuffle(4), F.channel_shuffle, (4,), {}),
    ]  # fmt: skip
    for module, *expected in moved:
        assert operators.moving(module) == tuple(expected), module
    named = nn.Unflatten(1, (2, 3))
    named.dim = "a"  # as some versions of torch let it be
    others = nn.ConstantPad2d(1, 0.5), nn.Upsample(2, mode="bilinear"), nn.ReLU(), named
    assert [*map(operators.moving, others)] == [None] * 4


class OwnReLU(nn.ReLU):
    def forward(self, x):
        return x


def test_a_module_is_of_a_kind_where_it_computes_as_that_does():
    derived = type("Derived", (nn.ReLU,), {})()
    assert [operators.public(module, (nn.ELU, nn.ReLU)) for module in (nn.ReLU(), derived, OwnReLU(), nn.GELU())] == [
        True, True, False, False,
    ]  # fmt: skip


def test_moves_by_place_are_known_as_those_by_name():
    graph, x = nodes_of()
    made, function = GraphBuilder(nn.Module()), graph.call_function
    known = [function(F.pad, (x, (1, 1), "constant", 0)), function(F.interpolate, (x, 3, None, "nearest")),
             function(F.interpolate, (x, 3)), function(F.pad, (x, (1, 1), "reflect"))]  # fmt: skip
    others = [function(F.pad, (x, (1, 1), "constant", 2)), function(F.interpolate, (x, 3, None, "bilinear")),
              function(torch.add, (x, 1, 2, 0)), function(torch.ops.aten.relu, ([x], 0))]  # fmt: skip
    assert [operators.move(made, node) is not None for node in (*known, *others)] == [True] * 4 + [False] * 4
