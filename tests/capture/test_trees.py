"""Values in trees of arguments, what a step reads and holds, and who reads a value last."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantspec.ir import float_graph, program, traverse
from quantspec.ir.held import Held, held
from quantspec.ir.program import Call, Cell, Program, Ref
from quantspec.ir.traverse import refs, replace_refs
from quantspec.numerics.affine import QParams

Pair = namedtuple("Pair", "first second")
GRID = QParams(np.float32(0.5), 3, 0, 255)
COLUMNS = QParams(np.array([0.5, 0.25], np.float32), np.zeros(2, np.int32), -128, 127, 0)
NAMES = st.sampled_from("abcd")
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=2), NAMES.map(Ref))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.lists(inner, max_size=3).map(tuple), st.builds(Pair, inner, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=3), st.builds(slice, inner, inner, inner),
    ),
    max_leaves=8,
)  # fmt: skip


def codes(*shape):
    return np.arange(int(np.prod(shape))).astype(np.int8).reshape(shape)


def cell(**changes):
    bias = np.zeros(2, np.float32)
    return Cell(**{
        "input_weight": codes(2, 3), "input_qparams": COLUMNS, "input_bias": bias,
        "state_weight": codes(2, 2), "state_qparams": GRID, "state_bias": None,
    } | changes)  # fmt: skip


def recurrent(*cells, state=None):
    return program.Recurrent("r", "x", state, "layer", "rnn_tanh", cells, False, False, False)


def linear(name="l", weight=None, bias=None):
    weight = codes(2, 3) if weight is None else weight
    return program.Linear(name, "x", "layer", weight, bias, GRID, COLUMNS, GRID, False)


@given(TREES)
def test_a_tree_whose_references_are_replaced_by_themselves_is_the_same_tree(tree):
    same = replace_refs(tree, Ref)
    assert same == tree and type(same) is type(tree)


@given(TREES)
def test_what_replaces_references_gets_their_names_in_order(tree):
    seen = []
    replace_refs(tree, seen.append)
    assert seen == refs(tree)


@given(TREES)
def test_a_tree_without_references_refers_to_nothing(tree):
    assert refs(replace_refs(tree, lambda name: name)) == []


def test_references_are_replaced_wherever_they_stand():
    tree = (Ref("a"), [Ref("b"), 1], {"key": Ref("c")}, slice(Ref("d"), Ref("e"), Ref("f")), Pair(Ref("g"), 2))
    replaced = ("A", ["B", 1], {"key": "C"}, slice("D", "E", "F"), Pair("G", 2))
    assert replace_refs(tree, str.upper) == replaced and refs(tree) == list("abcdefg")
    assert type(replace_refs(tree, str.upper)[4]) is Pair


def test_what_is_no_tree_stays_itself():
    tensor, dtype = torch.ones(2), torch.float32
    assert replace_refs(tensor, str.upper) is tensor and replace_refs(dtype, str.upper) is dtype
    assert refs(tensor) == []


def test_a_step_reads_each_value_that_it_names_as_often_as_it_does():
    grids = GRID, GRID, GRID
    assert traverse.reads(program.Add("y", "a", "a", *grids, False)) == ["a", "a"]
    assert traverse.reads(program.Concat("y", ("a", "b"), (GRID, GRID), GRID, 1)) == ["a", "b"]
    assert traverse.reads(Call("y", "method", "add", (Ref("a"),), {"other": [Ref("b")]}, "")) == ["a", "b"]
    assert traverse.reads(recurrent(state=(Ref("h"), Ref("c")))) == ["x", "h", "c"]
    bag = program.Embedding("y", "x", "layer", codes(4, 2), GRID, "sum", "starts", "factors")
    assert traverse.reads(bag) == ["x", "starts", "factors"]
    assert traverse.reads(program.Embedding("y", "x", "layer", codes(4, 2), GRID)) == ["x"]
    assert traverse.reads(program.Bilinear("y", "x", GRID, "like", None, None, False, False)) == ["x", "like"]


def test_values_are_given_up_after_their_last_reader():
    steps = [
        Call("a", "method", "neg", (Ref("x"),), {}, ""), Call("b", "method", "add", (Ref("a"), Ref("x")), {}, ""),
        Call("unread", "method", "neg", (Ref("a"),), {}, ""), Call("y", "method", "neg", (Ref("b"),), {}, ""),
    ]  # fmt: skip
    assert [sorted(names) for names in traverse.last_reads(steps, ["y"])] == [[], ["x"], ["a", "unread"], ["b"]]
    assert [sorted(names) for names in traverse.last_reads(steps, [])] == [[], ["x"], ["a", "unread"], ["b", "y"]]
    assert [sorted(names) for names in traverse.last_reads(steps, ["y", "x", "a"])] == [[], [], ["unread"], ["b"]]


def test_the_arrays_of_a_step_have_the_paths_of_their_fields():
    bias = np.ones(2, np.float32)
    layer = linear(bias=bias)
    given = dict(traverse.arrays(layer))
    assert list(given) == [
        "weight", "bias", "x_qparams.scale", "x_qparams.zero_point", "w_qparams.scale",
        "w_qparams.zero_point", "y_qparams.scale", "y_qparams.zero_point",
    ]  # fmt: skip
    assert given["weight"] is layer.weight and given["bias"] is bias
    assert given["w_qparams.scale"].tolist() == [0.5, 0.25] and given["w_qparams.zero_point"].tolist() == [0, 0]


def test_the_arrays_of_cells_and_of_several_grids_have_their_places():
    first, second = cell(), cell()
    paths = [path for path, _ in traverse.arrays(recurrent(first, second))]
    own = ["input_weight", "input_qparams.scale", "input_qparams.zero_point", "input_bias", "state_weight",
           "state_qparams.scale", "state_qparams.zero_point"]  # fmt: skip
    assert paths == [f"cells.{place}.{name}" for place in (0, 1) for name in own]
    joined = program.Concat("y", ("a", "b"), (GRID, COLUMNS), GRID, 1)
    assert [path for path, _ in traverse.arrays(joined)][2:4] == ["x_qparams.1.scale", "x_qparams.1.zero_point"]


def test_codes_that_are_held_otherwise_are_unpacked_where_arrays_are_asked_for():
    array = codes(2, 3)
    layer = linear(weight=Held((2, 3), lambda: array.copy()))
    assert np.array_equal(dict(traverse.arrays(layer))["weight"], array)
    assert isinstance(dict(traverse.held_arrays(layer))["weight"], Held)


def test_codes_of_weights_are_found_in_layers_and_in_each_cell():
    layer, cells = linear(), (cell(), cell())
    table = program.Embedding("e", "x", "layer", codes(4, 2), GRID)
    relu = program.Relu("y", "l", GRID)
    found = list(traverse.code_fields(Program("onnx", ("x",), {}, (layer, relu, recurrent(*cells), table), Ref("y"))))
    names = ["weight", *["input_weight", "state_weight"] * 2, "weight"]
    owners = [layer, cells[0], cells[0], cells[1], cells[1], table]
    assert [name for _, name in found] == names and all(a is b for (a, _), b in zip(found, owners, strict=True))


def test_unpacked_codes_are_arrays_that_sharing_layers_share():
    shared = Held((2, 3), lambda: codes(2, 3))
    layers = linear("a", shared), linear("b", shared), linear("c", Held((2, 3), lambda: codes(2, 3) + 1))
    plain = linear("d")
    kept = held(plain)
    traverse.unpack_codes(Program("onnx", ("x",), {}, (*layers, plain), Ref("c")))
    arrays = [held(layer) for layer in layers]
    assert all(isinstance(array, np.ndarray) and array.flags.writeable for array in arrays)
    assert arrays[0] is arrays[1] and np.array_equal(arrays[0], codes(2, 3)) and held(plain) is kept
    assert np.array_equal(arrays[2], codes(2, 3) + 1)


def test_codes_of_cells_are_unpacked_too():
    run = recurrent(cell(state_weight=Held((2, 2), lambda: codes(2, 2) + 3)))
    traverse.unpack_codes(Program("onnx", ("x",), {}, (run,), Ref("r")))
    assert np.array_equal(held(run.cells[0], "state_weight"), codes(2, 2) + 3)


def test_other_arrays_take_their_places_and_the_rest_stays():
    layer, other, cells = linear("l", bias=np.ones(2, np.float32)), linear("o"), (cell(), cell())
    before = Program("onnx", ("x",), {}, (layer, other, recurrent(*cells)), Ref("r"))
    weight, scale, point = codes(2, 3) + 5, np.array([1.0, 2.0], np.float32), np.array(7, np.int32)
    state, bias = codes(2, 2) + 9, np.full(2, 3.0, np.float32)
    after = traverse.with_arrays(before, {
        "l.weight": weight, "l.w_qparams.scale": scale, "l.y_qparams.zero_point": point,
        "r.cells.1.state_weight": state, "r.cells.1.input_qparams.scale": scale, "r.cells.0.input_bias": bias,
        "gone.weight": weight,
    })  # fmt: skip
    new, same, run = after.steps
    assert same is other and new.weight is weight and new.bias is layer.bias and new.x_qparams is layer.x_qparams
    assert new.w_qparams.scale.tolist() == [1.0, 2.0] and new.w_qparams.zero_point.tolist() == [0, 0]
    assert (new.w_qparams.qmin, new.w_qparams.qmax, new.w_qparams.axis) == (-128, 127, 0)
    assert new.y_qparams.zero_point == 7 and new.y_qparams.scale == GRID.scale
    assert run.cells[0].input_bias is bias and run.cells[0].state_weight is cells[0].state_weight
    assert run.cells[1].state_weight is state and run.cells[1].input_weight is cells[1].input_weight
    assert run.cells[1].input_qparams.scale.tolist() == [1.0, 2.0] and run.cells[1].input_bias is cells[1].input_bias
    assert run.cells[1].input_qparams.axis == 0 and before.steps[0] is layer and layer.weight is not weight


def test_other_arrays_leave_codes_held_as_they_are():
    layer = linear(weight=Held((2, 3), lambda: codes(2, 3)), bias=np.ones(2, np.float32))
    (after,) = traverse.with_arrays(
        Program("onnx", ("x",), {}, (layer,), Ref("l")), {"l.bias": np.zeros(2, np.float32)}
    ).steps
    assert held(after) is held(layer) and not after.bias.any()


@pytest.mark.parametrize("direct", [False, True])
def test_a_layer_without_a_grid_of_outputs_gives_floats(direct):
    layer = program.Linear("l", "x", "layer", codes(2, 3), None, GRID, COLUMNS, None if direct else GRID, False)
    assert traverse.is_direct(layer) is direct
    assert not traverse.is_direct(Call("y", "method", "neg", (Ref("x"),), {}, ""))


def node_of(*, args, kwargs):
    return float_graph.Move("y", "x", Call("y", "method", "reshape", args, kwargs, ""))


def test_a_node_reads_what_its_call_takes_beside_its_input():
    assert float_graph.node_reads(node_of(args=(Ref("x"), Ref("n")), kwargs={})) == ["x", "n"]
    assert float_graph.node_reads(node_of(args=(Ref("x"), Ref("x")), kwargs={"n": Ref("m")})) == ["x", "x", "m"]
    call = Call("y", "method", "neg", (Ref("x"), Ref("x")), {}, "")
    assert float_graph.node_reads(call) == ["x", "x"]


def test_a_node_is_renamed_wherever_it_names_a_value():
    call = Call("y", "function", "torch.cat", ([Ref("a"), Ref("b")],), {"dim": Ref("n")}, "why")
    new = float_graph.renamed(float_graph.Concat("y", ("a", "b"), 1, call), {"a": "A", "n": "N"})
    assert (new.name, new.xs, new.axis) == ("y", ("A", "b"), 1)
    assert (new.call.args, new.call.kwargs) == (([Ref("A"), Ref("b")],), {"dim": Ref("N")})
    assert (new.call.name, new.call.kind, new.call.target, new.call.reason) == ("y", "function", "torch.cat", "why")
    total = float_graph.renamed(float_graph.Add("y", "a", "b", call), {"b": "B"})
    assert (total.a, total.b, total.call.args) == ("a", "B", ([Ref("a"), Ref("B")],))


def test_a_node_that_reads_nothing_renamed_stays_itself():
    node = node_of(args=(Ref("x"), 3), kwargs={})
    assert float_graph.renamed(node, {}) is node and float_graph.renamed(node, {"other": "z"}) is node
    assert float_graph.renamed(node, {"x": "z"}).x == "z"


def test_readers_are_counted_in_nodes_and_outputs():
    nodes = node_of(args=(Ref("x"), Ref("n")), kwargs={}), Call("z", "method", "neg", (Ref("y"),), {}, "")
    graph = float_graph.FloatGraph(("x", "n", "unread"), {}, nodes, (Ref("z"), [Ref("z"), Ref("x")]), {}, {})
    assert graph.readers() == {"x": 2, "n": 1, "unread": 0, "y": 1, "z": 2}
    assert [sorted(names) for names in graph.last] == [["n"], ["y"]]


def test_a_recipe_takes_the_methods_of_its_tensor_one_by_one():
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_()
    start = float_graph.Recipe.of("layer.weight", tensor)
    assert start.value is tensor and start.callables == {}
    (source,) = start.steps
    assert (source.name, source.kind, source.target, source.args) == ("source", "attribute", "layer.weight", ())
    moved = start.then(("transpose", 0, 1), ("reshape", -1))
    assert torch.equal(moved.value, tensor.detach().T.reshape(-1)) and not moved.value.requires_grad
    assert [(step.name, step.kind, step.target, step.args) for step in moved.steps[1:]] == [
        ("transpose_1", "method", "transpose", (Ref("source"), 0, 1)),
        ("reshape_2", "method", "reshape", (Ref("transpose_1"), -1)),
    ]
    assert len(start.steps) == 1 and moved.callables == start.callables
