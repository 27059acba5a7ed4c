"""What rearranges tensors, as operators of ONNX: equal to torch's functions, and true to what is known of lengths."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_graph import agrees, in_graph
from torch.nn import functional as F

import quantspec
from networks import inputs
from quantspec.ir.program import Move, Ref
from quantspec.numerics.affine import QParams
from quantspec.onnx_export import rearrange
from quantspec.onnx_export.builder import Graph, Size, Tensor
from quantspec.onnx_export.rearrange import lengths, moved
from told import exactly

X = inputs(2, (3, 4, 5))
GRID = QParams(np.array(0.5, np.float32), np.array(7), 0, 255)
CODES = torch.arange(120, dtype=torch.uint8).reshape(2, 3, 4, 5)


def move(target, *args, **kwargs):
    """One of the moves, with further arguments."""
    return lambda g, x: moved(g, target, (x, *args), kwargs)


def as_torch(target, *args, **kwargs):
    """The same by torch: by its method, or else by its function."""

    def call(x):
        if hasattr(x, target):
            return getattr(x, target)(*args, **kwargs)
        return getattr(torch if hasattr(torch, target) else F, target)(x, *args, **kwargs)

    return call


SAME = {
    "flatten": [(), (1,), (1, 2), (-2,), (2, 2), (-3, -2)],
    "unflatten": [(1, (3, 1)), (-2, (2, 2)), (2, [2, 1, 2]), (3, (5,))],
    "reshape": [(6, 20), ((-1, 5),), ([2, 3, -1],), (120,), (-1,), (1, 2, -1, 20)],
    "view": [(3, 2, 20), ((2, -1),)],
    "permute": [(0, 2, 1, 3), ((3, -2, -3, 0),), ([1, 0, 2, 3],)],
    "transpose": [(0, 1), (-1, 1)],
    "swapaxes": [(2, -1)],
    "movedim": [(0, -1), ((0, 1), (2, 0)), ([-1], [0]), ((3, 0, 1), (0, -1, -2))],
    "unsqueeze": [(0,), (4,), (-1,), (-3,), (2,)],
    "chunk": [(2, 1), (3, -1), (1, 0), (5, 2), (2,)],
    "split": [(2, 1), (2, -1), ([1, 3, 1], 3), ((2, 2), 2), (7, 1), (1,)],
    "unbind": [(0,), (1,), (-1,), ()],
    "roll": [(1, 0), ((1, -2), (2, 3)), (7, 1), ((-9, 4), (-1, 2)), (0, 1), (5, 3)],
    "flip": [(1,), ((0, -1),), (2, 3), ([3],)],
    "narrow": [(1, 0, 2), (-1, 1, 3), (3, -2, 2), (2, -3, 1), (3, 4, 0)],
    "select": [(1, 2), (-1, -2), (0, 0)],
    "tile": [(2,), (3, 1), ((2, 1, 1, 2),), (2, 1, 1, 1, 1)],
    "repeat": [(1, 2, 1, 3), ((2, 1, 1, 1),), (2, 1, 1, 1, 3)],
    "expand": [(-1, -1, 4, 5), ((2, 3, 4, -1),), (6, 2, 3, 4, 5), (2, -1, -1, -1, -1)],
    "contiguous": [()], "clone": [()], "detach": [()],
    "pad": [
        ((1, 2),), ((0, 0, 3, 0),), ((-1, 2, 1, -2),), ((1, 1), "constant", 0.5), ((0, 0),), ((-1, 0),),
        ((1, 2, 0, 1), "reflect"), ((2, 0, 1, 1), "replicate"), ((1, 1, 0, 2), "circular"), ((0, 0, 0, 0, 2, 1),),
    ],
    "channel_shuffle": [(3,), (1,)],
}  # fmt: skip
CASES = [(target, args) for target, calls in SAME.items() for args in calls]
WITHOUT_OPEN_LENGTHS = ("chunk", "split", "unbind")  # unless the sizes are given


@pytest.mark.parametrize("target, args", CASES, ids=str)
@pytest.mark.parametrize("of", [X, CODES], ids=["floats", "codes"])
def test_a_move_is_torchs(target, args, of):
    if of is CODES and target == "pad":
        widths, *more = args
        mode = more[0] if more else "constant"

        def expected(x):  # what is padded on is the zero point
            y = F.pad(x.float(), widths, mode, 7.0 if mode == "constant" else None)
            return y.to(torch.uint8)

        return agrees(move(target, widths, mode), expected, of, grid=GRID)
    if target in WITHOUT_OPEN_LENGTHS and not (args and isinstance(args[0], (list, tuple))):
        made, _ = in_graph(move(target, *args), of, known=True, grid=GRID)
        for (value, array), tensor in zip(made, as_torch(target, *args)(of), strict=True):
            assert value.shape == array.shape and np.array_equal(array, tensor.numpy())
            assert value.grid is (GRID if of is CODES else None)
        return None
    return agrees(move(target, *args), as_torch(target, *args), of, grid=GRID if of is CODES else None)


SQUEEZED = [((1,), (2, 1, 4)), ((-2,), (2, 1, 4)), (((1, 2),), (2, 1, 1, 3)), (([0, -1],), (1, 3, 1))]


@pytest.mark.parametrize("args, shape", SQUEEZED, ids=str)
def test_axes_of_one_entry_are_squeezed(args, shape):
    agrees(move("squeeze", *args), as_torch("squeeze", *args), torch.arange(torch.tensor(shape).prod()).reshape(shape))


@pytest.mark.parametrize("args", [(), (0,), ((1, 2),), (-1,)], ids=str)
def test_of_known_lengths_only_those_of_one_are_squeezed(args):
    x = inputs(2, (1, 3, 1), 4)
    ((value, array),), _ = in_graph(move("squeeze", *args), x, known=True)
    assert value.shape == array.shape and np.array_equal(array, x.squeeze(*args).numpy())


def test_a_matrix_is_transposed_and_a_vector_is_not():
    for x in (inputs(3, (2,)), inputs(1, (4,))[0]):
        agrees(move("t"), lambda x: x.t(), x)


@pytest.mark.parametrize("target", ["view_as", "reshape_as"])
def test_a_tensor_takes_the_shape_of_another(target):
    x, y = inputs(6, (4,)), inputs(3, (8,))
    agrees(lambda g, x, y: moved(g, target, (x, y), {}), lambda x, y: getattr(x, target)(y), x, y)


@pytest.mark.parametrize("shape", [(12, 4, 6), (2, 12, 2, 4), (2, 3, 8, 4, 6)], ids=str)
def test_pixels_are_shuffled_whatever_is_before_the_channels(shape):
    x = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)
    agrees(move("pixel_shuffle", 2), lambda x: F.pixel_shuffle(x, 2), x)
    agrees(move("pixel_unshuffle", 2), lambda x: F.pixel_unshuffle(x, 2), x)


NAMED = {
    "flip": {"dims": (1, -1)}, "permute": {"dims": (1, 0, 3, 2)}, "reshape": {"shape": (6, -1)},
    "tile": {"dims": (2, 1)}, "repeat": {"repeats": (1, 2, 1, 1)}, "expand": {"size": (3, 2, 3, 4, 5)},
    "swapaxes": {"axis0": 1, "axis1": -1}, "transpose": {"dim0": 0, "dim1": 2}, "flatten": {"start_dim": 1},
    "narrow": {"dim": 1, "start": 1, "length": 2}, "select": {"dim": 2, "index": 1}, "roll": {"shifts": 1, "dims": 2},
    "movedim": {"source": 0, "destination": 2}, "unsqueeze": {"dim": 1}, "unflatten": {"dim": 2, "sizes": (2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("target", NAMED)
def test_arguments_may_be_named_as_torch_names_them(target):
    agrees(move(target, **NAMED[target]), as_torch(target, **NAMED[target]), X)


def test_sizes_of_parts_and_the_tensor_itself_may_be_named():
    ((_, first), (_, second)), _ = in_graph(move("split", split_size=2, dim=2), X, known=True)
    assert np.array_equal(first, X[:, :, :2]) and np.array_equal(second, X[:, :, 2:])
    agrees(lambda g, x: moved(g, "flatten", (), {"input": x, "start_dim": 2}), lambda x: x.flatten(2), X)


def test_arguments_that_a_move_does_not_take_are_refused():
    with pytest.raises(quantspec.UnsupportedError, match=r"\Aflatten with these arguments: .*'start'\Z"):
        in_graph(move("flatten", start=1), X)


INDICES = [
    1, -1, slice(1, None), slice(None, -1), (slice(None), 2), (..., 0), (None, 1), (slice(None), None, 1),
    (0, ..., None), (..., slice(1, 4, 2)), (slice(None), slice(-2, None)), (slice(0, 1),), (..., -3, slice(None)),
    (..., None, None), (slice(None), slice(0, 9)), slice(None), (slice(1, 1),), (1, 2, 3, 4), (slice(None, None, 2),),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_parts_of_a_tensor_are_torchs(index):
    agrees(move("getitem", index), lambda x: x[index], X)


def test_an_item_of_a_tuple_is_the_tensor():
    agrees(lambda g, x: moved(g, "getitem", ((x, 3), 0), {}), lambda x: x, X)
    agrees(lambda g, x: moved(g, "getitem", ([4, x], -1), {}), lambda x: x, X)


REFUSED = {
    "indexing by a tensor": ("getitem", (torch.tensor([1]),)),
    "indexing by a tensor ": ("getitem", (True,)),
    "squeeze of axis 0, whose length is unknown before the network runs": ("squeeze", ()),
    "a split of an axis whose length is unknown before the network runs": ("split", (2, 1)),
    "a split of an axis whose length is unknown before the network runs ": ("chunk", (2, 1)),
    "unbind of an axis whose length is unknown before the network runs": ("unbind", (1,)),
    "a split of an axis whose length is unknown before the network runs  ": ("split", (Size("n", "n"), 1)),
    "roll without dims": ("roll", (1,)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_open_lengths_do_not_allow_is_refused(message):
    target, args = REFUSED[message]
    with pytest.raises(quantspec.UnsupportedError, match=exactly(message.strip())):
        in_graph(move(target, *args), X)


def test_lengths_that_are_read_are_those_of_the_tensor():
    agrees(lambda g, x: lengths(g, "shape", x), lambda x: list(x.shape), X)
    agrees(lambda g, x: lengths(g, "size", x, -1), lambda x: [x.shape[-1]], X)
    agrees(lambda g, x: lengths(g, "size", x, 1), lambda x: [x.shape[1]], X)
    for name in ("dim", "ndim", "ndimension"):
        agrees(lambda g, x, name=name: lengths(g, name, x), lambda x: [4], X)


def of_lengths(make):
    """A move of a tensor and of the lengths of its axes."""
    return lambda g, x: make(g, x, [g.size(x, axis) for axis in range(x.rank)])


BY_LENGTHS = {
    "select": (lambda g, x, n: moved(g, "select", (x, 3, g.compute("sub", n[3], 2)), {}), lambda x: x[..., 3]),
    "narrow": (lambda g, x, n: moved(g, "narrow", (x, 3, 1, n[1]), {}), lambda x: x[..., 1:4]),
    "slice to": (lambda g, x, n: moved(g, "getitem", (x, (..., slice(None, n[0]))), {}), lambda x: x[..., :2]),
    "slice from": (lambda g, x, n: moved(g, "getitem", (x, (..., slice(n[0], None))), {}), lambda x: x[..., 2:]),
    "roll": (lambda g, x, n: moved(g, "roll", (x, (n[2], n[0]), (3, 2)), {}), lambda x: x.roll((4, 2), (3, 2))),
    "repeat": (lambda g, x, n: moved(g, "repeat", (x, 1, n[1], 1, 2), {}), lambda x: x.repeat(1, 3, 1, 2)),
    "expand": (lambda g, x, n: moved(g, "expand", (x, n[1], -1, -1, *n[2:]), {}), lambda x: x.expand(3, 2, 3, 4, 5)),
    "reshape": (lambda g, x, n: moved(g, "reshape", (x, n[0], -1, n[3]), {}), lambda x: x.reshape(2, 12, 5)),
    "split": (lambda g, x, n: moved(g, "split", (x, [n[0], 3], 3), {}), lambda x: x.split([2, 3], 3)),
    "pad": (lambda g, x, n: moved(g, "pad", (x, (n[0], 0, 1, n[1])), {}), lambda x: F.pad(x, (2, 0, 1, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_LENGTHS)
def test_moves_take_lengths_where_they_take_numbers(name):
    make, function = BY_LENGTHS[name]
    agrees(of_lengths(make), function, X)


def test_one_length_may_be_left_to_be_worked_out():
    """What the others leave of it, where they cancel."""
    for sizes, dim in (((0, 1, -1), None), ((0, -1, 2, 3), 1), ((-1, 1, 2, 3), 0), ((0, 1, 3, -1), 2)):

        def make(g, x, sizes=sizes, dim=dim):
            y = moved(g, "reshape", (x, [g.size(x, axis) if axis >= 0 else -1 for axis in sizes]), {})
            assert dim is None or y.shape[sizes.index(-1)] == x.shape[dim]
            return y

        agrees(make, lambda x, sizes=sizes: x.reshape([x.shape[axis] if axis >= 0 else -1 for axis in sizes]), X)


@given(st.integers(-15, 15), st.integers(-2, 1), st.integers(1, 5))
def test_any_shift_goes_round(shift, dim, length):
    x = torch.arange(3.0 * length).reshape(3, length)
    agrees(move("roll", shift, dim), lambda x: x.roll(shift, dim), x)


@given(st.data())
def test_any_slice_is_torchs(data):
    ends = st.one_of(st.none(), st.integers(-8, 8))
    part = slice(data.draw(ends), data.draw(ends), data.draw(st.sampled_from([None, 1, 2, 3])))
    x = torch.arange(float(data.draw(st.integers(1, 7))))
    agrees(move("getitem", part), lambda x: x[part], x)


@given(st.data())
def test_any_part_that_is_narrowed_to_is_torchs(data):
    length = data.draw(st.integers(1, 6))
    start = data.draw(st.integers(-length, length - 1))
    count = data.draw(st.integers(0, length - start % length))
    agrees(move("narrow", 0, start, count), lambda x: x.narrow(0, start, count), torch.arange(float(length)))


@given(st.lists(st.integers(-2, 3), min_size=4, max_size=4), st.booleans())
def test_any_padding_is_torchs(widths, of_codes):
    """Negative widths cut off."""
    x = (CODES if of_codes else X)[:, :, :4]
    filler = 7.0 if of_codes else 0.0
    agrees(
        move("pad", tuple(widths)), lambda x: F.pad(x.float(), widths, value=filler).to(x.dtype), x,
        grid=GRID if of_codes else None,
    )  # fmt: skip


def test_a_length_that_is_computed_has_the_name_of_its_computation():
    def make(g, x):
        n, m = g.size(x, 0), g.size(x, 1)
        sizes = [g.compute(name, n, m) for name in ("add", "sub", "mul", "floordiv", "mod")]
        sizes += [g.compute("floordiv", g.compute("sub", n, m), 2), g.compute("mod", g.compute("sub", n, m), 4)]
        return [*sizes, g.compute("sub", 9, n), g.compute("floordiv", m, n)]

    def numbers(x):
        n, m = x.shape[:2]
        return [n + m, n - m, n * m, n // m, n % m, (n - m) // 2, (n - m) % 4, 9 - n, m // n]

    agrees(make, numbers, X)
    agrees(make, numbers, inputs(7, (3,)))
    made, _ = in_graph(make, X)
    assert len({value.dim for value, _ in made}) == len(made) and all(isinstance(value, Size) for value, _ in made)


def test_a_vector_is_moved_too():
    x = torch.arange(3.0)
    for target, args in (("permute", (0,)), ("expand", (3,)), ("repeat", (2,)), ("flip", (0,)), ("reshape", (3,))):
        agrees(move(target, *args), as_torch(target, *args), x)


def test_an_axis_may_be_long():
    x = torch.arange(300.0).reshape(1, 300)
    for target, args in (("flip", (1,)), ("roll", (7, 1)), ("getitem", ((0, slice(5, None)),))):
        function = as_torch(target, *args) if target != "getitem" else (lambda x: x[0, 5:])
        agrees(move(target, *args), function, x)


def test_what_changes_nothing_is_no_operator():
    def operators(target, *args):
        g, x = Graph(), Tensor("x", ("n", 3, 4))
        result = moved(g, target, (x, *args), {})
        assert g.nodes or result is x or result == (x,)
        return [node.op_type for node in g.nodes]

    nothing = [("flatten", 1, 1), ("pad", (0, 0)), ("contiguous",), ("getitem", slice(None)), ("getitem", ...)]
    nothing += [("split", 3, 1), ("split", [3], 1), ("squeeze", 1), ("roll", 0, 1), ("detach",)]
    assert [operators(*call) for call in nothing] == [[]] * len(nothing)
    assert operators("repeat", 1, 2, 1) == ["Tile"] and operators("repeat", 1, 1, 2, 1)[-2:] == ["Reshape", "Tile"]


def test_a_length_that_is_left_is_not_taken_for_one_before():
    def made(g, x):
        pairs = moved(g, "expand", (moved(g, "unsqueeze", (x, 1), {}), -1, 6), {})  # (n, 6)
        turned = [moved(g, "reshape", (pairs, sizes), {}) for sizes in ((-1, 3), (-1, 6), (2, -1), (-1, 4))]
        return [*turned, moved(g, "reshape", (x, -1), {}), moved(g, "reshape", (x, 2, -1), {})]

    def function(x):
        pairs = x[:, None].expand(-1, 6)
        return [*(pairs.reshape(sizes) for sizes in ((-1, 3), (-1, 6), (2, -1), (-1, 4))), x, x.reshape(2, -1)]

    agrees(made, function, torch.arange(4.0))


def test_slices_to_other_lengths_are_not_taken_to_be_as_long():
    def made(g, x):
        stops = g.size(x, 0), g.size(x, 1)
        parts = [slice(None, stop) for stop in stops] + [slice(start, None) for start in (*stops, 1, 4)]
        parts += [slice(stops[0], stop) for stop in (*stops, 5)] + [slice(0, 5, 2), slice(1, 5, 2)]
        return [moved(g, "getitem", (x, (..., part)), {}) for part in parts]

    def function(x):
        parts = [slice(2), slice(3), slice(2, None), slice(3, None), slice(1, None), slice(4, None)]
        return [
            x[..., part] for part in [*parts, slice(2, 2), slice(2, 3), slice(2, 5), slice(0, 5, 2), slice(1, 5, 2)]
        ]

    agrees(made, function, X)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixels_are_shuffled_by_any_factor(factor):
    x = torch.arange(2.0 * 18 * 6 * 12).reshape(2, 18, 6, 12) if factor == 3 else torch.arange(96.0).reshape(1, 4, 4, 6)
    agrees(move("pixel_shuffle", factor), lambda x: F.pixel_shuffle(x, factor), x)
    agrees(move("pixel_unshuffle", factor), lambda x: F.pixel_unshuffle(x, factor), x)


STEPS = [
    ("function", "torch.flatten", (Ref("x"), 1), {}, lambda x: x.flatten(1)),
    ("method", "permute", (Ref("x"), 1, 0, 2, 3), {}, lambda x: x.permute(1, 0, 2, 3)),
    ("function", "torch.nn.functional.pad", (Ref("x"), (1, 0)), {"value": None}, lambda x: F.pad(x, (1, 0), value=7)),
    ("function", "torch.transpose", (Ref("x"),), {"dim0": 0, "dim1": 1}, lambda x: x.transpose(0, 1)),
    ("method", "roll", (Ref("x"),), {"shifts": 1, "dims": -1}, lambda x: x.roll(1, -1)),
]


@pytest.mark.parametrize("kind, target, args, kwargs, function", STEPS)
def test_a_step_that_moves_codes_is_what_it_calls(kind, target, args, kwargs, function):
    step = Move("step", kind, target, args, kwargs, GRID)
    agrees(lambda g, x: rearrange.move(g, step, {"x": x}), function, CODES, grid=GRID)


@pytest.mark.parametrize("kind, target", [
    ("function", "torch.repeat_interleave"), ("function", "torch.nn.functional.relu"), ("method", "interpolate"),
    ("module", "flatten"), ("function", "flatten"),
])  # fmt: skip
def test_a_step_that_calls_something_else_is_refused(kind, target):
    step = Move("step", kind, target, (Ref("x"),), {}, GRID)
    with pytest.raises(quantspec.UnsupportedError, match=exactly(target)):
        in_graph(lambda g, x: rearrange.move(g, step, {"x": x}), CODES, grid=GRID)
