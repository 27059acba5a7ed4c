"""What rearranges codes: it does to them what it does to reals, and nothing else is done to codes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from quantspec.ir import program, rearrange
from quantspec.ir.program import Ref
from quantspec.numerics.affine import QParams
from told import exactly

POINT = 7
GRID = QParams(np.float32(0.5), POINT, 0, 255)
IMAGE = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)


def move(kind, target, *args, **kwargs):
    return program.Move("moved", kind, target, args, kwargs, GRID)


def applied(step, **values):
    return rearrange.apply(step, {"x": IMAGE, **values}.__getitem__)


def as_reals(step, function):
    """What a function makes of the reals that the codes stand for, as codes again."""
    reals = torch.from_numpy(GRID.dequantize(IMAGE))
    return GRID.quantize(function(reals).numpy())


MOVES = {
    "method": (("method", "permute", Ref("x"), 0, 2, 3, 1), {}, lambda x: x.permute(0, 2, 3, 1)),
    "method by name": (("method", "flatten", Ref("x")), {"start_dim": 1}, lambda x: x.flatten(1)),
    "function": (("function", "torch.roll", Ref("x"), 2), {"dims": 3}, lambda x: torch.roll(x, 2, 3)),
    "item": (("function", "operator.getitem", Ref("x"), (slice(None), 1)), {}, lambda x: x[:, 1]),
    "shuffle": (("function", "torch.pixel_shuffle", Ref("x"), 2), {}, lambda x: F.pixel_shuffle(x, 2)),
    "padded with zeros": (("function", "torch.nn.functional.pad", Ref("x"), [1, 2, 0, 3]), {},
                          lambda x: F.pad(x, [1, 2, 0, 3])),
    "padded by a mode": (("function", "torch.nn.functional.pad", Ref("x"), [1, 2, 0, 3]), {"mode": "reflect"},
                         lambda x: F.pad(x, [1, 2, 0, 3], mode="reflect")),
    "padded by a mode in its place": (("function", "torch.nn.functional.pad", Ref("x"), [1, 2], "replicate", None), {},
                                      lambda x: F.pad(x, [1, 2, 0, 0], mode="replicate")),
    "nearest": (("function", "torch.nn.functional.interpolate", Ref("x")), {"scale_factor": 2},
                lambda x: F.interpolate(x, scale_factor=2)),
    "nearest to a size": (("function", "torch.nn.functional.interpolate", Ref("x"), (3, 9)), {},
                          lambda x: F.interpolate(x, (3, 9))),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MOVES if name != "padded by a mode in its place"])
def test_codes_are_moved_as_the_reals_that_they_stand_for(name):
    arguments, named, function = MOVES[name]
    step = move(*arguments, **named)
    moved = applied(step)
    assert moved.dtype == np.uint8 and moved.flags.c_contiguous and np.array_equal(moved, as_reals(step, function))


def test_padding_by_a_mode_may_be_told_by_place():
    rows = IMAGE[0]
    moved = applied(move("function", "torch.nn.functional.pad", Ref("x"), [1, 2], "replicate", None), x=rows)
    assert moved.dtype == np.uint8 and np.array_equal(moved, np.pad(rows, [(0, 0), (0, 0), (1, 2)], mode="edge"))


@given(st.integers(0, 255), st.integers(0, 3), st.integers(0, 3))
def test_what_is_padded_on_is_the_zero_point(point, before, behind):
    x = torch.arange(4, dtype=torch.uint8)
    expected = [point] * before + x.tolist() + [point] * behind
    assert rearrange.padded(point, x, [before, behind]).tolist() == expected
    assert rearrange.padded(point, x, [before, behind], "constant", 0).tolist() == expected


def test_what_splits_gives_arrays_one_by_one():
    parts = applied(move("method", "chunk", Ref("x"), 2, 1))
    assert type(parts) is tuple and all(type(part) is np.ndarray and part.flags.c_contiguous for part in parts)
    assert np.array_equal(parts[0], IMAGE[:, :2]) and np.array_equal(parts[1], IMAGE[:, 2:])


def test_an_item_of_a_tuple_is_taken_as_it_is():
    assert np.array_equal(applied(move("function", "operator.getitem", Ref("x"), 1), x=(IMAGE, IMAGE + 1)), IMAGE + 1)


def test_sizes_and_places_are_given_as_they_are():
    step = move("method", "reshape", Ref("x"), Ref("n"), -1)
    assert np.array_equal(applied(step, n=4), IMAGE.reshape(4, -1))
    sizes = move("method", "expand_as", Ref("x"), Ref("other"))
    assert applied(sizes, x=IMAGE[:, :1], other=torch.zeros(2, 3, 5, 6)).shape == (2, 3, 5, 6)
    named = move("method", "view", Ref("x"), size=Ref("shape"))
    assert np.array_equal(applied(named, shape=torch.Size([8, 30])), IMAGE.reshape(8, 30))


@pytest.mark.parametrize("kind,target", [
    ("method", "relu"), ("method", "torch.flatten"), ("method", "item"), ("function", "torch.relu"),
    ("function", "flatten"), ("function", "builtins.eval"), ("module", "flatten"), ("module", "torch.flatten"),
    ("attribute", "torch.flatten"),
])  # fmt: skip
def test_what_is_no_move_is_refused_by_name(kind, target):
    assert rearrange.known(kind, target) is False
    with pytest.raises(ValueError, match=exactly(f"step 'moved': {target} does not move codes")):
        applied(move(kind, target, Ref("x")))


def test_moves_are_known_by_their_kind():
    assert rearrange.known("method", "flatten") and rearrange.known("function", "torch.flatten")
    assert rearrange.known("function", "torch.nn.functional.pad") and rearrange.known("function", "operator.getitem")


def of_no_module(x):
    return x


def test_a_function_has_the_name_by_which_users_know_it():
    names = {
        torch.flatten: "torch.flatten", F.pad: "torch.nn.functional.pad", F.relu: "torch.nn.functional.relu",
        torch.relu: "torch.relu", torch.fft.fft: "torch.fft.fft", torch.linalg.norm: "torch.linalg.norm",
        torch.special.expit: "torch.special.expit", F.logsigmoid: "torch.nn.functional.logsigmoid",
        len: "builtins.len", __import__("operator").add: "operator.add", __import__("math").sqrt: "math.sqrt",
        of_no_module: f"{__name__}.of_no_module",
    }  # fmt: skip
    assert {function: rearrange.qualified_name(function) for function in names} == names


def linalg_of_no_module(x):
    return x


def test_a_name_that_only_begins_or_ends_as_one_of_torch_is_none_of_torch(monkeypatch):
    monkeypatch.setattr(F, "_hidden", of_no_module, raising=False)
    assert rearrange.qualified_name(of_no_module) == f"{__name__}.of_no_module"
    assert rearrange.qualified_name(linalg_of_no_module) == f"{__name__}.linalg_of_no_module"


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_codes_of_any_number_of_axes_are_repeated(mode, axes):
    x = IMAGE.reshape((2, 4, 30) if axes == 1 else (2, 4, 5, 6) if axes == 2 else (2, 4, 5, 3, 2))
    moved = applied(move("function", "torch.nn.functional.interpolate", Ref("x"), scale_factor=2, mode=mode), x=x)
    expected = x
    for axis in range(2, 2 + axes):
        expected = expected.repeat(2, axis)
    assert moved.dtype == np.uint8 and np.array_equal(moved, expected)


def test_what_has_no_name_is_called_as_it_is_shown():
    class Nameless:
        def __repr__(self):
            return "<nameless>"

    assert rearrange.qualified_name(Nameless()) == f"{__name__}.<nameless>"
    name = np.float32(1).__class__.__getattribute__  # whatever has a name and no module
    assert rearrange.qualified_name(name) == "None.__getattribute__"


def test_arrays_become_tensors_in_the_same_memory_and_come_back():
    array = np.arange(6, dtype=np.int8).reshape(2, 3)
    tensors = rearrange.as_tensors((array, [array, 3]))
    assert type(tensors) is tuple and type(tensors[1]) is list and tensors[1][1] == 3
    assert tensors[0].numpy() is not array and np.shares_memory(tensors[0].numpy(), array)
    back = rearrange.as_arrays(tensors)
    assert back[0].tolist() == array.tolist() and back[1][1] == 3 and type(back[1]) is tuple
    assert rearrange.as_arrays(torch.arange(6).reshape(2, 3).T).flags.c_contiguous


def test_what_holds_no_arrays_stays_itself():
    size, packed = torch.Size([2, 3]), torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
    assert rearrange.as_tensors(size) is size and rearrange.as_tensors(packed) is packed
    tensor = torch.ones(2)
    assert rearrange.as_tensors(tensor) is tensor and rearrange.as_tensors(3.5) == 3.5
    assert rearrange.as_arrays("text") == "text"
