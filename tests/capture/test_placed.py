"""Which values of a graph are codes, and on whose grids; what is excluded from it; what may be chosen."""

import numpy as np
import pytest
import torch
from torch import nn

import quantspec as qs
from quantspec.errors import CalibrationError, UnsupportedError
from quantspec.ir import float_graph as fg
from quantspec.ir import program
from quantspec.ir.program import Call, Ref
from quantspec.module.report import EXCLUDED
from quantspec.ptq import captured, exclude, options
from quantspec.ptq.conversion import Converter
from quantspec.ptq.placement import Placement, own_reads
from told import exactly


def call(name, *reads, target="cos", more=()):
    return Call(name, "method", target, (*map(Ref, reads), *more), {}, "")


def linear(name, x, size=4, ceiling=float("inf")):
    weight = torch.ones(size, size).numpy()
    return fg.Linear(name, x, f"layer {name}", weight, None, ceiling < 9, ceiling)


def add(name, a, b):
    return fg.Add(name, a, b, call(name, a, b))


def mul(name, a, b):
    return fg.Mul(name, a, b, call(name, a, b))


def cat(name, *xs):
    return fg.Concat(name, xs, 1, call(name, *xs))


def relu(name, x):
    return fg.Relu(name, x, call(name, x))


def move(name, x, target="flatten"):
    return fg.Move(name, x, call(name, x, target=target))


def table(name, x):
    return fg.Elementwise(name, x, "tanh", call(name, x))


def shape(name, x):
    return fg.Shape(name, x, call(name, x))


def mean(name, x):
    return fg.Mean(name, x, (2,), False, call(name, x))


def resized(name, x, like=None):
    return fg.Bilinear(name, x, like, None, None, False, False, call(name, x))


def placed(*nodes, output="y", inputs=("x",)):
    return Placement(fg.FloatGraph(inputs, {}, nodes, Ref(output) if isinstance(output, str) else output, {}, {}))


def test_layers_are_coded_and_what_they_feed_through_steps_of_codes():
    place = placed(linear("a", "x"), relu("b", "a"), table("c", "b"), move("d", "c"), linear("y", "d"))
    assert place.coded == {"a", "b", "c", "d", "y"} and place.direct == set()
    assert place.sources == {"x": "x", "a": "a", "b": "a", "c": "c", "d": "c", "y": "y"}
    assert place.observed == ["x", "a", "c", "y"]


def test_what_only_float_reads_has_no_codes_and_its_layer_gives_floats():
    place = placed(linear("a", "x"), table("t", "a"), call("y", "t"))
    assert place.coded == set() and place.direct == {"a"} and place.observed == ["x"]
    moved = placed(linear("a", "x"), move("m", "a"), call("y", "m"))
    assert moved.coded == set() and moved.direct == {"a"}


def test_a_layer_with_a_ceiling_keeps_codes_though_only_float_reads_it():
    place = placed(linear("a", "x", ceiling=6.0), call("y", "a"))
    assert place.direct == set() and place.coded == {"a"} and place.observed == ["x", "a"]


def test_a_layer_that_codes_read_too_or_that_is_an_output_keeps_codes():
    both = linear("a", "x"), call("f", "a"), linear("y", "a")
    assert placed(*both, output=(Ref("y"), Ref("f"))).direct == set()
    assert placed(linear("a", "x"), call("y", "a"), output=(Ref("a"), Ref("y"))).direct == set()
    for moved in (move("m", "a"), relu("m", "a")):
        assert placed(linear("a", "x"), moved, call("y", "a"), output=(Ref("m"), Ref("y"))).direct == set()
    pooled = linear("a", "x"), mean("m", "a"), call("f", "a"), linear("y", "m")
    assert placed(*pooled, output=(Ref("y"), Ref("f"))).direct == set()
    assert placed(linear("a", "x"), shape("s", "a"), call("y", "a", "s")).direct == {"a"}


@pytest.mark.parametrize("join", [add, mul, cat])
def test_values_are_joined_in_codes_where_both_are_codes_or_feed_a_layer(join):
    layers = linear("a", "x"), linear("b", "x")
    assert "y" in placed(*layers, join("y", "a", "b")).coded
    assert "y" in placed(*layers, join("y", "a", "x")).coded
    assert "y" in placed(*layers, join("y", "a", "a")).coded
    other = placed(layers[0], call("f", "x"), join("y", "a", "f"))
    assert "y" not in other.coded and other.observed == ["x"]
    fed = placed(layers[0], call("f", "x"), join("y", "f", "a"), linear("z", "f"), output=(Ref("y"), Ref("z")))
    assert "y" in fed.coded and fed.observed == ["x", "a", "f", "y", "z"]


@pytest.mark.parametrize("join", [add, mul, cat, lambda name, a, b: table(name, a)])
def test_what_is_computed_for_float_alone_is_computed_in_float(join):
    layers = linear("a", "x"), linear("b", "x")
    assert "s" not in placed(*layers, join("s", "a", "b"), call("y", "s")).coded
    assert "s" not in placed(*layers, join("s", "a", "b"), relu("r", "s"), call("y", "r")).coded
    assert "s" in placed(*layers, join("s", "a", "b"), relu("r", "s"), linear("y", "r")).coded
    assert "s" in placed(*layers, join("s", "a", "b"), relu("y", "s")).coded
    assert "s" in placed(*layers, join("s", "a", "b"), call("y", "s"), output=[Ref("y"), Ref("s")]).coded


def test_what_keeps_the_grid_of_a_layer_is_computed_in_codes_though_only_float_reads_it():
    assert placed(linear("a", "x"), mean("m", "a"), call("y", "m")).coded == {"a", "m"}


def test_an_interpolation_has_codes_only_on_its_way_to_a_layer():
    assert "r" not in placed(linear("a", "x"), resized("r", "a"), output="r").coded
    assert placed(linear("a", "x"), resized("r", "a"), table("t", "r"), output="t").coded == set()
    on = placed(linear("a", "x"), resized("r", "a"), table("t", "r"), linear("y", "t"))
    assert {"r", "t"} <= on.coded and on.sources["r"] == "a"
    like = placed(linear("a", "x"), call("f", "x"), resized("r", "a", "f"), linear("y", "r"))
    assert "r" not in like.coded and like.sources["r"] == "r"
    both = placed(linear("a", "x"), linear("b", "x"), resized("r", "a", "b"), linear("y", "r"))
    assert "r" in both.coded and both.sources["r"] == "a"


def test_an_input_that_is_rearranged_has_its_own_grid_and_an_item_of_it_another():
    place = placed(move("m", "x"), linear("y", "m"))
    assert place.sources["m"] == "x" and place.observed == ["x", "y"] and "m" not in place.coded
    item = placed(move("m", "x", "operator.getitem"), linear("y", "m"))
    assert item.sources["m"] == "m" and item.observed == ["m", "y"]
    clamped = placed(relu("r", "x"), linear("y", "r"))
    assert clamped.sources["r"] == "r" and clamped.observed == ["r", "y"]


def test_pools_and_items_keep_the_grid_of_codes():
    place = placed(linear("a", "x"), mean("m", "a"), move("i", "m", "operator.getitem"), linear("y", "i"))
    assert place.sources["m"] == place.sources["i"] == "a" and place.observed == ["x", "a", "y"]


def test_what_only_joins_read_shares_their_grid():
    layers = linear("a", "x"), linear("b", "x"), linear("c", "x")
    place = placed(*layers, cat("j", "a", "b"), cat("y", "j", "c"))
    assert all(sorted(place.joined[name]) == ["a", "b", "c", "j", "y"] for name in "abcjy") and len(place.joined) == 5
    moved = placed(*layers, move("m", "a"), cat("y", "m", "b"))
    assert sorted(moved.joined["y"]) == ["a", "b", "y"] and "m" not in moved.joined


def test_what_others_read_too_keeps_a_grid_of_its_own():
    layers = linear("a", "x"), linear("b", "x")
    read = placed(*layers, cat("j", "a", "b"), linear("y", "a"), output=(Ref("j"), Ref("y")))
    assert sorted(read.joined["j"]) == ["b", "j"] and "a" not in read.joined
    output = placed(*layers, cat("y", "a", "b"), output=(Ref("y"), Ref("b")))
    assert sorted(output.joined["y"]) == ["a", "y"]
    moved = placed(*layers, move("m", "b"), cat("y", "a", "b"), output=(Ref("y"), Ref("m")))
    assert sorted(moved.joined["y"]) == ["a", "y"]
    fed = placed(*layers, move("m", "b"), cat("j", "a", "b"), linear("y", "m"), output=(Ref("j"), Ref("y")))
    assert sorted(fed.joined["j"]) == ["a", "j"]
    sized = placed(*layers, shape("s", "a"), cat("y", "a", "b"), output=(Ref("y"), Ref("s")))
    assert sorted(sized.joined["y"]) == ["a", "b", "y"]
    inputs = placed(linear("a", "x"), cat("y", "a", "x"))
    assert sorted(inputs.joined["y"]) == ["a", "y"]
    apart = placed(*layers, cat("j", "a", "a"), cat("y", "b", "b"), output=(Ref("j"), Ref("y")))
    assert sorted(apart.joined["j"]) == ["a", "j"] and sorted(apart.joined["y"]) == ["b", "y"]


def test_a_place_is_called_by_what_makes_it():
    place = placed(linear("a", "x"), call("f", "a"), output="f")
    assert [place.place(name) for name in "xaf"] == ["input 'x'", "output of layer 'layer a'", "value 'f'"]


def test_an_operation_computes_with_its_values_alone():
    assert own_reads(add("s", "a", "b")) == own_reads(cat("c", "a", "b")) == own_reads(mul("m", "a", "b")) == ["a", "b"]
    assert own_reads(fg.Move("m", "x", call("m", "x", "n"))) == ["x"] and own_reads(resized("r", "x", "like")) == ["x"]


def nested():
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))


def test_what_is_excluded_stays_in_float_with_everything_inside():
    graph = fg.FloatGraph(
        ("x",), {}, (linear("a", "x"), table("t", "a"), shape("s", "t"), linear("y", "t")), Ref("y"), {}, {},
        paths={"t": "0.1", "s": "0.1"},
    )  # fmt: skip
    names = {"a": "0.0", "y": "1"}
    nodes = [fg.Linear(n.name, n.x, names[n.name], n.weight, None) if n.name in names else n for n in graph.nodes]
    graph = fg.FloatGraph(("x",), {}, tuple(nodes), Ref("y"), {"given": 1}, {}, graph.paths)

    def reasons(*patterns):
        kept = exclude.without(graph, nested(), patterns)
        return {node.name: node.reason for node in kept.nodes if isinstance(node, Call)}

    assert reasons("0") == {"a": EXCLUDED, "t": EXCLUDED} and reasons("0.1") == {"t": EXCLUDED}
    assert reasons("1") == {"y": EXCLUDED} and reasons("*.0") == {"a": EXCLUDED}
    assert exclude.without(graph, nested(), []) is graph
    kept = exclude.without(graph, nested(), ["1"])
    assert kept.nodes[0] is nodes[0] and kept.callables.keys() == {"given", ("module", "1")}


def test_layers_without_weights_stay_in_float_for_that_reason():
    graph = fg.FloatGraph(("x",), {}, (linear("a", "x"), linear("y", "a", 0)), Ref("y"), {}, {})
    full, empty = exclude.without_empty(graph).nodes
    assert full is graph.nodes[0] and (empty.name, empty.reason) == ("y", "it has no weights")


@pytest.mark.parametrize("pattern,message", [
    ("0.O", "exclude: the model has no module '0.O'; did you mean 0.1 or 0.0 or 0? it has 0, 0.0, 0.1, 1"),
    ("head", "exclude: the model has no module 'head'; it has 0, 0.0, 0.1, 1"),
])  # fmt: skip
def test_a_pattern_of_no_module_is_answered_with_the_nearest(pattern, message):
    with pytest.raises(ValueError, match=exactly(message)):
        exclude.without(fg.FloatGraph((), {}, (), None, {}, {}), nested(), ["1", pattern])


def test_paths_are_listed_up_to_eight():
    assert exclude.some_of([]) == "no modules with a name" and exclude.some_of(["a"]) == "a"
    assert exclude.some_of(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert exclude.some_of(list("abcdefghi")) == "a, b, c, d, e, f, g, h and 1 more"
    assert exclude.some_of(list("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"


def test_patterns_are_one_text_or_several():
    assert exclude.listed("head") == ["head"] and exclude.listed(iter(["a", "b"])) == ["a", "b"]
    for value, got in ((3, "3"), (None, "None"), (["a", 5], "5")):
        with pytest.raises(TypeError, match=exactly(f"exclude: expected paths of modules, got {got}")):
            exclude.listed(value)
    with pytest.raises(TypeError, match="^exclude: expected paths of modules, got "):
        exclude.listed(torch.ones(2))


def test_a_pattern_names_a_module_and_all_inside_and_is_exact_in_letters():
    assert exclude.excluded("a.b.c", ["a"]) and exclude.excluded("a.b.c", ["x", "a.b"]) and exclude.excluded("a", ["a"])
    assert exclude.excluded("a.b.c", ["*.c"]) and exclude.excluded("layers.10", ["layers.?*"])
    for patterns in (["b"], ["c"], ["A"], ["a.b.c.d"], []):
        assert not exclude.excluded("a.b.c", patterns)


def chosen(**changes):
    usual = {"per_channel": True, "reduce_range": None, "dialect": "onnx", "bits": 8, "engine": "auto"}
    return options.checked(**{**usual, **changes})


@pytest.mark.parametrize("changes,error,message", [
    ({"weight_bits": 1}, ValueError, "weight_bits: expected 2 to 8, or None for the value of bits, got 1"),
    ({"weight_bits": 9}, ValueError, "weight_bits: expected 2 to 8, or None for the value of bits, got 9"),
    ({"bits": 2, "reduce_range": True}, ValueError,
     "reduce_range: expected False for bits=2, as one bit less leaves no grid"),
    ({"weight_bits": "8"}, TypeError, "^weight_bits: .*'8'"), ({"bits": 1.5}, TypeError, "^bits: .*1.5"),
    ({"per_channel": 1}, TypeError, "^per_channel: .*1"), ({"reduce_range": "no"}, TypeError, "^reduce_range: .*'no'"),
    ({"bits": 9}, ValueError, "9"), ({"engine": "warp"}, ValueError, "^engine: "),
])  # fmt: skip
def test_choices_that_there_are_not_are_refused_by_name(changes, error, message):
    pattern = message if message.startswith("^") or len(message) < 3 else exactly(message)
    with pytest.raises(error, match=pattern):
        chosen(**changes)


def test_what_is_chosen_is_what_there_will_be():
    plain = chosen()
    assert (plain.dialect.name, plain.per_channel, plain.bits, plain.weight_bits, plain.engine) == (
        "onnx", True, 8, 8, "auto"
    )  # fmt: skip
    few = chosen(bits=4, per_channel=False, engine="reference", reduce_range=True)
    assert (few.per_channel, few.bits, few.weight_bits, few.engine) == (False, 4, 4, "reference")
    assert few.reduce_range is True and chosen(reduce_range=False).reduce_range is False
    assert [chosen(weight_bits=bits).weight_bits for bits in (2, 8)] == [2, 8] and chosen(bits=2).bits == 2


@pytest.mark.parametrize("name,saturates", [("onnx", False), ("fbgemm", False), ("onnx-int16", True)])
def test_a_bit_less_is_used_where_accumulators_saturate_if_nobody_says(name, saturates):
    assert chosen(dialect=name).reduce_range is saturates


def test_an_argument_that_is_none_otherwise_is_told_from_one_with_another_default():
    graph = fg.FloatGraph(("x", "mask", "scale"), {"mask": None, "scale": 2}, (), None, {}, {})
    given = torch.ones(1)
    assert captured.gives_optional(graph, (1, given), {}) and captured.gives_optional(graph, (1,), {"mask": given})
    for args, kwargs in (((1,), {}), ((1, None), {}), ((1,), {"mask": None}), ((1, None, 5), {}), ((1,), {"scale": 5})):
        assert not captured.gives_optional(graph, args, kwargs)


def test_arguments_by_name_are_a_batch_by_name():
    assert captured.named(("x", "y"), (1,), {"y": 2}) == {"x": 1, "y": 2}
    assert captured.named(("x", "y"), (1, 2), {}) == (1, 2)


def converter(*nodes, prepared=None, unseen=(), **changes):
    graph = fg.FloatGraph(("x",), {}, nodes, Ref("y"), {}, {})
    seen = qs.MinMaxObserver().observe(np.float32([-1, 3]))
    observers = {name: qs.MinMaxObserver() if name in unseen else seen for name in ("x", "a", "y")}
    return Converter(graph, Placement(graph), observers, chosen(dialect="exact", **changes), prepared)


def test_layers_that_training_kept_in_float_stay_so_for_their_reasons():
    made = converter(linear("a", "x"), linear("y", "a"), prepared={"a": "the reason"})
    network = made.convert()
    assert [step.layer for step in network.layers] == ["layer y"] and made.kept == {"a": "the reason"}
    (call,) = (step for step in network.steps if isinstance(step, Call))
    assert (call.name, call.target, call.reason) == ("a", "layer a", "the reason")
    assert network.callables.keys() == {("module", "layer a")}


def test_a_layer_that_could_overflow_stays_in_float_and_is_refused_by_name_where_none_may():
    weight, bias = np.ones((2, 2), np.float32), np.full(2, 1e9, np.float32)
    wide = fg.Linear("a", "x", "wide", weight, bias)
    made = converter(wide, linear("y", "a", 2), per_channel=False)
    assert [step.layer for step in made.convert().layers] == ["layer y"]
    assert "beyond int32" in made.kept["a"]
    with pytest.raises(UnsupportedError, match=exactly(f"layer 'wide': {made.kept['a']}")):
        converter(wide, linear("y", "a", 2), prepared={}, per_channel=False).convert()


@pytest.mark.parametrize("flat", [False, True])
def test_a_layer_keeps_what_it_holds(flat):
    weight = np.ones((2, 2), np.float32)
    (step,) = converter(fg.Linear("y", "x", "first", weight, None, True, flat=flat)).convert().layers
    assert type(step) is program.Linear and (step.name, step.layer, step.relu, step.flat) == ("y", "first", True, flat)
    assert step.bias is None and step.weight.tolist() == [[127, 127]] * 2 and step.x_qparams is not step.y_qparams


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("less", [False, True])
def test_grids_have_the_bits_that_were_chosen(bits, less):
    (step,) = converter(linear("y", "x"), bits=bits, reduce_range=less).convert().layers
    assert step.x_qparams.qmax == step.y_qparams.qmax == 2 ** (bits - less) - 1
    assert step.w_qparams.qmax == 2 ** (bits - 1) - 1


@pytest.mark.parametrize("name,place", [("x", "input 'x'"), ("y", "output of layer 'layer y'")])
def test_a_place_that_saw_nothing_is_named(name, place):
    message = rf"^{place}: .*; call the network with calibration data first$"
    with pytest.raises(CalibrationError, match=message):
        converter(linear("y", "x"), unseen=[name]).convert()
