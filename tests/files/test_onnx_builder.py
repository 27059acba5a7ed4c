"""The graph of ONNX in the making: names, constants, codes, and what is known of lengths."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_graph import agrees, in_graph
from onnx_runtime import onnx

import quantspec
from networks import inputs
from quantspec.numerics.affine import QParams
from quantspec.onnx_export import builder
from quantspec.onnx_export.builder import Graph, Size, Tensor
from told import exactly


def grid(scale=0.5, point=7, low=0, high=255):
    return QParams(np.array(scale, np.float32), np.array(point), low, high)


def test_names_tell_the_step_and_no_two_are_equal():
    g = Graph()
    assert [g.fresh("a"), g.fresh("a"), g.fresh("b"), g.fresh("a")] == ["a", "a_2", "b", "a_3"]
    g.step = "layer"
    assert [g.fresh("a"), g.fresh("a")] == ["layer/a", "layer/a_2"]
    assert g.node("Relu", ["a"]) == "layer/Relu" and g.node("Relu", ["a"]) == "layer/Relu_2"
    assert g.outputs(2, "Split", ["a"], axis=1) == ["layer/Split", "layer/Split_2"]
    assert [node.name for node in g.nodes] == ["layer/Relu:Relu", "layer/Relu_2:Relu", "layer/Split:Split"]
    assert [(a.name, a.i) for a in g.nodes[2].attribute] == [("axis", 1)] and list(g.nodes[2].input) == ["a"]


def test_names_that_inputs_have_are_taken():
    g = Graph()
    g.names.add("scale")
    assert g.grid(grid())[0] == "scale_2"


def test_a_constant_is_there_once():
    g = Graph()
    first = g.constant([1, 2], np.int64)
    assert first == "constant" and g.constant(np.array([1, 2]), np.int64, "other") == first == g.ints(1, 2)
    others = [
        g.constant([1, 2], np.int32), g.constant([[1, 2]], np.int64), g.constant([2, 1], np.int64),
        g.constant([1, 2], np.int64, owner="layer"), g.constant(0.0, np.float32), g.constant(-0.0, np.float32),
    ]  # fmt: skip
    assert len({first, *others}) == 7 == len(g.initializers)
    assert g.constant([1, 2], np.int64, owner="layer") == others[3]
    assert [tensor.name for tensor in g.initializers] == [first, *others]


def test_a_zero_point_is_a_constant_like_others_unless_it_belongs_to_a_layer():
    g = Graph()
    assert g.zero_point(grid()) == g.grid(grid())[1] == g.constant(7, np.uint8) != g.zero_point(grid(), "layer")
    assert Graph().ints(2) == "ints" and Graph().zero_point(grid()) == "zero_point"


def test_numbers_are_as_many_as_is_said():
    agrees(lambda g, x: Tensor(g.numbers(g.int_name(g.size(x, 1))), (3,)), lambda x: torch.arange(3), inputs(2, (3,)))


def test_a_constant_keeps_its_values_type_and_shape():
    matrix = np.arange(6, dtype=np.int16).reshape(2, 3)
    for value, dtype in ((matrix.T, None), (matrix, np.uint8), (matrix[:, ::2], np.float32), (np.float64(0.1), None)):
        g = Graph()
        g.constant(value, dtype)
        (tensor,) = g.initializers
        kept, wanted = onnx.numpy_helper.to_array(tensor), np.asarray(value, dtype)
        assert kept.dtype == wanted.dtype and np.array_equal(kept, wanted) and kept.shape == wanted.shape


def test_a_grid_has_a_zero_point_for_each_scale():
    g = Graph()
    assert g.grid(grid()) == ("scale", "zero_point")
    channels = QParams(np.array([0.5, 0.25], np.float32), np.array(0), -127, 127, axis=0)
    names = g.grid(channels, "layer")
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in g.initializers}
    assert held["scale"] == 0.5 and held["zero_point"] == 7 and held["zero_point"].dtype == np.uint8
    assert [held[name].tolist() for name in names] == [[0.5, 0.25], [0, 0]]
    assert [held[name].dtype for name in names] == [np.float32, np.int8]
    assert g.grid(channels, "layer") == names and g.grid(channels, "other")[1] != names[1]
    assert g.grid(channels, "other")[0] == names[0]


RANGES = [(0, 255), (0, 127), (3, 255), (1, 254)]


@pytest.mark.parametrize("low, high", RANGES)
@pytest.mark.parametrize("lowest", [None, 0, 7, 2])
def test_codes_stay_in_their_range(low, high, lowest):
    of, x = grid(low=low, high=high), torch.arange(-200.0, 200) / 2
    ((_, codes),), _ = in_graph(lambda g, x: Tensor(g.quantize(x.name, of, lowest), x.shape, of), x)
    least = max(low, lowest or 0)
    assert np.array_equal(codes, np.clip(np.rint(x.numpy() / 0.5) + 7, least, high).astype(np.uint8))
    g = Graph()
    assert (g.clamp("x", of, lowest) == "x") is (least == 0 and high == 255)


def test_codes_become_their_values():
    codes = torch.arange(256, dtype=torch.uint8)
    agrees(
        lambda g, x: Tensor(g.dequantize(x.name, grid()), x.shape), lambda x: (x.float() - 7) * 0.5, codes, grid=grid()
    )


def test_a_grid_of_steps_has_the_scale_one():
    steps = builder.unit_grid(3, 1, 200)
    assert (steps.scale, steps.zero_point, steps.qmin, steps.qmax) == (1, 3, 1, 200)


def test_a_length_is_read_once():
    g = Graph()
    x = Tensor("x", ("n", 3, "m"))
    first = g.size(x, 0)
    assert first is g.size(Tensor("y", (4, "n")), 1) and first.dim == "n" and g.size(x, 1) == 3
    assert g.size(x, 2).dim == "m" and [node.op_type for node in g.nodes] == ["Shape", "Gather"] * 2
    assert [list(node.input) for node in g.nodes[::2]] == [["x"], ["x"]]


def test_lengths_and_numbers_make_a_vector():
    def made(g, x):
        sizes = [3, g.size(x, 1), 1, g.size(x, 0)]
        return Tensor(g.vector(sizes), (4,)), Tensor(g.vector([4, 2]), (2,)), Tensor(g.int_name(5), (1,)), g.size(x, 0)

    numbers = torch.tensor([3, 5, 1, 2]), torch.tensor([4, 2]), torch.tensor([5])
    agrees(made, lambda x: [*numbers, 2], inputs(2, (5,)))


OPERATIONS = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
}  # fmt: skip


@given(st.sampled_from(sorted(OPERATIONS)), st.integers(-6, 6), st.integers(1, 4), st.booleans())
def test_lengths_are_computed_as_python_computes(name, first, second, turned):
    """Negative ones, too, which round down."""

    def made(g, x):
        n = g.size(x, 0)
        a = g.compute("sub", n, 7 - first)  # of seven entries
        return g.compute(name, a, second if turned else g.compute("add", g.size(x, 1), second - 1))

    agrees(made, lambda x: OPERATIONS[name](first, second), torch.zeros(7, 1))


@pytest.mark.parametrize("value", [torch.tensor(3), 0.5, Tensor("x", ())])
def test_what_is_no_length_is_not_taken_for_one(value):
    with pytest.raises(
        quantspec.UnsupportedError, match=exactly(f"a {type(value).__name__} where a length is expected")
    ):
        Graph().vector([2, value])


def test_equal_computations_of_lengths_are_equal_and_others_are_not():
    g, n, m = Graph(), Size("n", "n"), Size("m", "m")
    assert g.compute("add", n, 2).dim == g.compute("add", Size("other", "n"), 2).dim
    computed = [g.compute(name, *pair) for name in OPERATIONS for pair in ((n, m), (m, n), (n, 2), (2, n), (n, 3))]
    assert len({size.dim for size in computed}) == len(computed)
    assert g.compute("mod", 7, 4) == 3


@pytest.mark.parametrize("pair", [(0.5, 2), (Size("n", "n"), 0.5), (3, "x")])
def test_what_is_no_length_is_not_computed_with(pair):
    kind = next(type(value).__name__ for value in pair if not isinstance(value, (int, Size)))
    with pytest.raises(quantspec.UnsupportedError, match=exactly(f"arithmetic of a length and a {kind}")):
        Graph().compute("add", *pair)


@given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 2)
)
def test_windows_are_counted(length, kernel, stride, before, after, dilation):
    reach = dilation * (kernel - 1) + 1
    starts = [at for at in range(0, length + before + after, stride) if at + reach <= length + before + after]
    if starts:
        assert builder.windows(length, kernel, stride, before, after, dilation) == len(starts)
    named = builder.windows("n", kernel, stride, before, after, dilation)
    # A name stands for the same number of windows of the same axis, whatever they are.
    assert (named == "n") is (stride == 1 and before + after == reach - 1)
    other = builder.windows("n", reach, stride, before + 1, after - 1, 1)
    assert named == other and named != builder.windows("m", kernel, stride, before, after, dilation)


def test_windows_that_may_end_outside_are_another_number():
    for dim in ("n", 7):
        assert builder.windows(dim, 2, 3, 0, 0, 1, True) != builder.windows(dim, 2, 3, 0, 0, 1)
        assert not isinstance(builder.windows(dim, 2, 3, 0, 0, 1, True), int)
    assert builder.windows("n", 2, 3, 0, 0, 1) != builder.windows("n", 2, 2, 0, 0, 1)
    assert builder.windows("n", 1, 1, 0, 0, 1, True) == "n"


def test_shapes_are_broadcast():
    assert builder.broadcast((3, 4), (3, 4)) == (3, 4) == builder.broadcast((4,), (3, 1)) == builder.broadcast((3, 4))
    assert builder.broadcast((), (2, 1)) == (2, 1) and builder.broadcast((1, 1), (1,)) == (1, 1)
    assert builder.broadcast(("n", 1), ("m",)) == ("n", "m") and builder.broadcast(("n", 2), ("n", 1)) == ("n", 2)
    # Of a number and a name, the name is of the number or of 1.
    assert builder.broadcast(("n",), (5,)) == (5,) == builder.broadcast((5,), ("n",))
    ((dim,), (other,)) = builder.broadcast(("n",), ("m",)), builder.broadcast(("n",), ("k",))
    assert len({dim, other, "n", "m", "k"}) == 5
    assert builder.broadcast((2,), (2, 1, 1), ("n", 1)) == (2, "n", 2)


def test_lengths_are_added_and_multiplied():
    assert builder.total([2, 3, 4]) == 9 and builder.times(3, 4) == 12
    names = [builder.total(["n", 3]), builder.total(["n", "m"]), builder.total([3, "n", 3])]
    names += [builder.times("n", 3), builder.times(3, "n"), builder.times("n", "m")]
    assert len(set(names)) == 6 and not any(isinstance(name, int) for name in names)


def test_axes_are_counted_from_the_first():
    x = Tensor("x", (2, 3, "n"))
    assert x.rank == 3 and [x.axis(axis) for axis in (-3, -1, 0, 2)] == [0, 2, 0, 2]


def test_numbers_and_tensors_are_named_as_constants():
    weight = torch.nn.Parameter(torch.arange(4.0))

    def made(g, x):
        names = [builder.named(g, value) for value in (x, g.size(x, 0), weight, 2, 0.5)]
        return [Tensor(name, shape) for name, shape in zip(names, (x.shape, (1,), (4,), (), ()))]

    x = inputs(3, (2,))
    ((_, first), (_, size), *constants), _ = in_graph(made, x)
    assert np.array_equal(first, x) and size.tolist() == [3]
    assert [array.tolist() for _, array in constants] == [[0, 1, 2, 3], 2, 0.5]
    assert {array.dtype for _, array in constants} == {np.dtype(np.float32)}
    with pytest.raises(quantspec.UnsupportedError, match=exactly("a dict where a tensor is expected")):
        builder.named(Graph(), {})


def test_the_shape_of_a_number_is_empty():
    shapes = [builder.shape_of(value) for value in (Tensor("x", ("n", 2)), torch.zeros(3, 1), 4, 0.5)]
    assert shapes == [("n", 2), (3, 1), (), ()] and [type(shape) for shape in shapes] == [tuple] * 4


def test_the_graph_has_its_inputs_nodes_constants_and_outputs():
    g = Graph()
    end = g.node("Add", ["x", g.constant(1.0, np.float32)])
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", end)]
    made = g.proto(infos[:1], infos[1:])
    assert list(made.input) == infos[:1] and list(made.output) == infos[1:] and made.name == "network"
    assert [node.op_type for node in made.node] == ["Add"] and list(made.initializer) == g.initializers
