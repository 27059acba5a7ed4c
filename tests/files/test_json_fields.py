"""Values of files as JSON and back: what is written for each, what comes back, and what every refusal says."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from quantspec.errors import UnsupportedError
from quantspec.ir.program import Cell, Linear, Ref
from quantspec.numerics.affine import QParams
from quantspec.storage.json_fields import Reader, Writer, expect, keys
from told import exactly

TREES = {
    "nothing": (None, None),
    "numbers": ([1, -1.5, True, 2**63 - 1, -(2**63 - 1)], [1, -1.5, True, 2**63 - 1, -(2**63 - 1)]),
    "a text": ("abc", "abc"),
    "infinity": ([math.inf, -math.inf], [{"float": "inf"}, {"float": "-inf"}]),
    "a complex number": (1.5 - 2j, {"complex": [1.5, -2.0]}),
    "a value": (Ref("x"), {"ref": "x"}),
    "a size": (torch.Size([2, 3]), {"size": [2, 3]}),
    "a tuple": ((1, (2, "a")), {"tuple": [1, {"tuple": [2, "a"]}]}),
    "a list": ([1, [2]], [1, [2]]),
    "a dict": ({"a": (1,), 3: None}, {"dict": [["a", {"tuple": [1]}], [3, None]]}),
    "a slice": (slice(1, Ref("n"), None), {"slice": [1, {"ref": "n"}, None]}),
    "an ellipsis": (..., {"ellipsis": True}),
    "a type": (torch.float16, {"dtype": "float16"}),
    "a layout": (torch.strided, {"layout": "strided"}),
    "a memory format": (torch.channels_last_3d, {"layout": "channels_last_3d"}),
    "a device": (torch.device("cpu"), {"device": "cpu"}),
    "the first device": (torch.device("cpu", 0), {"device": "cpu"}),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_written_in_one_way_and_comes_back(name):
    value, row = TREES[name]
    assert Writer().tree(value, "args") == row
    back = Reader({}).tree(json.loads(json.dumps(row, allow_nan=False)), "args")
    assert type(back) is type(value)
    assert back == (torch.device("cpu") if name == "the first device" else value)


def test_a_tensor_among_arguments_comes_back_under_its_name():
    writer, tensor = Writer(), torch.arange(3)
    assert writer.tree([tensor, (tensor,)], "args") == [{"tensor": "args"}, {"tuple": [{"tensor": "args"}]}]
    reader = Reader(writer.tensors)
    back = reader.tree({"tensor": "args"}, "args")
    assert torch.equal(back, tensor) and reader.used == {"args"}


NOT_WRITTEN = {
    "a number beyond 64 bits": (2**63, "args: builtins.int cannot be stored in a file"),
    "one below": (-(2**63), "args: builtins.int cannot be stored in a file"),
    "a set": ({1}, "args: builtins.set cannot be stored in a file"),
    "another device": (torch.device("meta"), "args: torch.device cannot be stored in a file"),
    "a type that no file has": (torch.complex32, "args: torch.dtype cannot be stored in a file"),
    "a sparse tensor": (
        torch.eye(2).to_sparse(), "args: a torch.float32 tensor on cpu with layout torch.sparse_coo cannot be stored",
    ),
    "a tensor without memory": (
        torch.zeros(2, device="meta"),
        "args: a torch.float32 tensor on meta with layout torch.strided cannot be stored",
    ),
    "a tensor of another type": (
        torch.zeros(2, dtype=torch.complex128),
        "args: a torch.complex128 tensor on cpu with layout torch.strided cannot be stored",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_WRITTEN)
def test_what_a_file_cannot_hold_is_told_with_its_place(name):
    value, message = NOT_WRITTEN[name]
    for given in (value, [value], (value,), {"a": value}, slice(None, None, value)):
        with pytest.raises(UnsupportedError, match=exactly(message)):
            Writer().tree(given, "args")


def test_a_key_that_a_file_cannot_hold_is_told_with_its_place():
    with pytest.raises(UnsupportedError, match=exactly("args: builtins.frozenset cannot be stored in a file")):
        Writer().tree({frozenset(): 1}, "args")


NOT_READ = {
    "an empty object": ({}, "args: expected an object with one key, got {}"),
    "two keys": ({"ref": "x", "tuple": []}, "args: expected an object with one key, got {'ref': 'x', 'tuple': []}"),
    "a number beyond 64 bits": (2**63, f"args: expected int, got {2**63}"),
    "a number below": (-(2**63), f"args: expected int, got {-(2**63)}"),
    "a value by number": ({"ref": 3}, "args: expected str, got 3"),
    "a tuple by text": ({"tuple": "ab"}, "args: expected list, got 'ab'"),
    "a size by number": ({"size": 3}, "args: expected list, got 3"),
    "a size of floats": ({"size": [1.0]}, "args: expected int, got 1.0"),
    "a dict by number": ({"dict": 3}, "args: expected list, got 3"),
    "a pair that is none": ({"dict": [3]}, "args: expected list, got 3"),
    "a pair of one": ({"dict": [["a"]]}, "args: expected pairs of different keys and their values"),
    "a pair of three": ({"dict": [["a", 1, 2]]}, "args: expected pairs of different keys and their values"),
    "a key by float": ({"dict": [[1.5, 1]]}, "args: expected pairs of different keys and their values"),
    "a key twice": ({"dict": [["a", 1], ["a", 2]]}, "args: expected pairs of different keys and their values"),
    "a slice by number": ({"slice": 3}, "args: expected list, got 3"),
    "a slice of two": ({"slice": [0, 1]}, "args: a slice has three entries, got [0, 1]"),
    "no tensor": ({"tensor": "x"}, "args: there is no tensor 'x'"),
    "a tensor by number": ({"tensor": 3}, "args: there is no tensor 3"),
    "a complex number by text": ({"complex": "1j"}, "args: expected list, got '1j'"),
    "a complex number of values": ({"complex": [{"ref": 3}]}, "args: expected str, got 3"),
    "a complex number of one": ({"complex": [1.5]}, "args: a complex number has two floats, got [1.5]"),
    "a complex number of integers": ({"complex": [1.5, 2]}, "args: a complex number has two floats, got [1.5, 2]"),
    "a long complex number": (
        {"complex": [0.5] * 99},
        f"args: a complex number has two floats, got {[0.5] * 99!r:.80}",
    ),
    "an unknown type": ({"dtype": "int7"}, "args: unknown 'dtype': 'int7'"),
    "a type by number": ({"dtype": 7}, "args: unknown 'dtype': 7"),
    "no ellipsis": ({"ellipsis": False}, "args: unknown 'ellipsis': False"),
    "another device": ({"device": "cuda"}, "args: unknown 'device': 'cuda'"),
    "another kind": ({"eval": "1"}, "args: unknown 'eval': '1'"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_a_tree_that_no_file_holds_is_refused_by_a_whole_sentence(name):
    row, message = NOT_READ[name]
    for inside in (row, [row], {"tuple": [row]}, {"dict": [["k", row]]}, {"slice": [None, row, None]}):
        with pytest.raises(ValueError, match=exactly(message)):
            Reader({}).tree(inside, "args")


# --- arrays and grids


def test_arrays_are_named_by_where_they_came_first_and_kept_as_they_were():
    writer = Writer()
    first, second = np.arange(6, dtype=np.int8).reshape(2, 3), np.ones(2, np.float32)
    parameter = torch.nn.Parameter(torch.rand(3, 2).t())
    names = [writer.array(array, "weight") for array in (first, second, first, parameter, second)]
    assert names == ["weight", "weight#2", "weight", "weight#3", "weight#2"]
    assert list(writer.tensors) == ["weight", "weight#2", "weight#3"]
    written = writer.tensors["weight#3"]
    assert torch.equal(written, parameter) and written.is_contiguous() and not written.requires_grad
    first[:] = 0
    with torch.no_grad():
        parameter.zero_()
    assert writer.tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]] and written.any()


def test_arrays_come_back_once_and_of_the_types_that_networks_have():
    tensors = {
        str(dtype): torch.ones(2, dtype=dtype) for dtype in (torch.float32, torch.int8, torch.uint8, torch.int32)
    }
    codes = np.zeros((2, 2), np.int8)
    reader = Reader(tensors | {"codes": torch.from_numpy(codes), "long": torch.ones(2)[:0].long()}, {"codes": codes})
    for name, tensor in tensors.items():
        array = reader.array(name, "w")
        assert array is reader.array(name, "v") and np.array_equal(array, tensor.numpy())
        assert array.dtype == tensor.numpy().dtype
    assert reader.array("codes", "w") is codes and reader.used == {*tensors, "codes"}
    with pytest.raises(ValueError, match=exactly("step 3.weight: expected codes, float32 or int32, got torch.int64")):
        reader.array("long", "step 3.weight")
    with pytest.raises(ValueError, match=r"^step 3\.weight: there is no tensor 'none'$"):
        reader.array("none", "step 3.weight")


ONE = QParams(np.float64(0.5), np.int64(3), 0, 255)
MANY = QParams(np.array([0.5, 0.25], np.float32), np.array([0, 0], np.int32), -128, 127, 0)
ROW = {"qmin": 0, "qmax": 255, "axis": None, "scale": 0.5, "zero_point": 3}


def test_grids_are_numbered_and_come_back():
    writer = Writer()
    numbers = [writer.grid(grid, path) for grid, path in ((ONE, "a"), (MANY, "b.w"), (ONE, "c"), (MANY, "d"))]
    assert numbers == [0, 1, 0, 1]
    channels = {"qmin": -128, "qmax": 127, "axis": 0, "scale": "b.w.scale", "zero_point": "b.w.zero_point"}
    assert writer.grids == [ROW, channels] and sorted(writer.tensors) == ["b.w.scale", "b.w.zero_point"]
    reader = Reader(writer.tensors)
    reader.read_grids(json.loads(json.dumps(writer.grids)))
    for back, grid in zip(reader.grids, (ONE, MANY), strict=True):
        assert (back.qmin, back.qmax, back.axis) == (grid.qmin, grid.qmax, grid.axis)
        assert np.array_equal(back.scale, grid.scale) and np.array_equal(back.zero_point, grid.zero_point)
        assert back.scale.shape == np.shape(grid.scale)
    assert reader.field(1, QParams, "w") is reader.grids[1] and reader.field(None, QParams | None, "w") is None


ALONG = "grid 0: expected float32 scales and int32 zero points along axis 0"
GRIDS = {
    "no list": ({}, "grids: expected list, got {}"),
    "no grid": ([3], "grid 0: expected the keys qmin, qmax, axis, scale, zero_point, got int"),
    "a key less": ([{"qmin": 0}], "grid 0: expected the keys qmin, qmax, axis, scale, zero_point, got ['qmin']"),
    "the second": ([ROW, 3], "grid 1: expected the keys qmin, qmax, axis, scale, zero_point, got int"),
    "a lower end by text": ([ROW | {"qmin": "0"}], "grid 0: qmin: expected int, got '0'"),
    "an upper end by text": ([ROW | {"qmax": "0"}], "grid 0: qmax: expected int, got '0'"),
    "an axis by text": ([ROW | {"axis": "0"}], "grid 0: axis: expected int, got '0'"),
    "a whole scale": ([ROW | {"scale": 1}], "grid 0: scale: expected float, got 1"),
    "no float32": ([ROW | {"scale": 0.1}], "grid 0: scale: expected a float32, got 0.1"),
    "beyond float32": ([ROW | {"scale": 2.0**128}], f"grid 0: scale: expected a float32, got {2.0**128!r}"),
    "below float32": ([ROW | {"scale": -(2.0**128)}], f"grid 0: scale: expected a float32, got {-(2.0**128)!r}"),
    "a float as zero point": ([ROW | {"zero_point": 0.5}], "grid 0: expected int, got 0.5"),
    "no code": ([ROW | {"zero_point": 256}], "grid 0: zero_point: expected a code, got 256"),
    "no code below": ([ROW | {"zero_point": -256}], "grid 0: zero_point: expected a code, got -256"),
    "scales of int32": ([ROW | {"axis": 0, "scale": "points", "zero_point": "points"}], ALONG),
    "zero points of float32": ([ROW | {"axis": 0, "scale": "scales", "zero_point": "scales"}], ALONG),
    "no axis": ([ROW | {"axis": None, "scale": "scales", "zero_point": "points"}], ALONG),
    "scales that are not there": ([ROW | {"scale": "none"}], "grid 0: there is no tensor 'none'"),
    "zero points that are not there": ([ROW | {"zero_point": "none"}], "grid 0: there is no tensor 'none'"),
    "another axis": ([ROW | {"axis": 1, "scale": "scales", "zero_point": "points"}], ALONG),
}


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_no_grid_is_refused_by_a_whole_sentence(name):
    rows, message = GRIDS[name]
    reader = Reader({"scales": torch.ones(2), "points": torch.zeros(2, dtype=torch.int32)})
    with pytest.raises(ValueError, match=exactly(message)):
        reader.read_grids(rows)


def test_what_a_grid_itself_refuses_is_told_with_its_number():
    with pytest.raises(ValueError) as refused:
        Reader({}).read_grids([ROW, ROW | {"scale": -0.5}])
    assert str(refused.value).startswith("grid 1: ") and isinstance(refused.value.__cause__, ValueError)
    assert str(refused.value) == f"grid 1: {refused.value.__cause__}"
    reader = Reader({})
    reader.read_grids(
        [ROW | {"scale": 2.0**119, "zero_point": 255}, ROW | {"qmin": -128, "qmax": 127, "zero_point": -128}]
    )
    assert [int(grid.zero_point) for grid in reader.grids] == [255, -128]


# --- fields

FIELDS = {
    "a text": (str, "a", "a"),
    "a number": (int, 3, 3),
    "a truth": (bool, True, True),
    "one that may lack": (int | None, None, None),
    "one that does not": (int | None, 3, 3),
    "a pair": (tuple[int, str], (1, "a"), [1, "a"]),
    "any number of": (tuple[int, ...], (1, 2, 3), [1, 2, 3]),
    "none of": (tuple[int, ...], (), []),
    "one alone": (tuple[int], (1,), [1]),
    "three": (tuple[int, str, bool], (1, "a", True), [1, "a", True]),
    "pairs of pairs": (tuple[tuple[int, int], ...], ((1, 2), (3, 4)), [[1, 2], [3, 4]]),
    "arguments": (tuple[Any, ...], (Ref("x"), 1), {"tuple": [{"ref": "x"}, 1]}),
    "named arguments": (dict[str, Any], {"a": 1}, {"dict": [["a", 1]]}),
    "a float": (float, 1.5, 1.5),
    "an infinite float": (float, math.inf, {"float": "inf"}),
    "anything": (Any, [1, (2,)], [1, {"tuple": [2]}]),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_written_by_its_annotation_and_comes_back(name):
    hint, value, row = FIELDS[name]
    assert Writer().field(value, hint, "step") == row
    back = Reader({}).field(json.loads(json.dumps(row)), hint, "step")
    assert back == value and type(back) is type(value)


def test_a_field_that_a_file_cannot_hold_is_told_with_its_place():
    for value, hint, message in (
        (3, str, "step: expected str, got 3"), ("3", int, "step: expected int, got '3'"),
        (1, bool, "step: expected bool, got 1"), ((1, 2, "c"), tuple[int, ...], "step.2: expected int, got 'c'"),
        ((1, {2}), tuple[Any, ...], "step: builtins.set cannot be stored in a file"),
    ):  # fmt: skip
        with pytest.raises(UnsupportedError, match=exactly(message)):
            Writer().field(value, hint, "step")


def test_a_tuple_of_another_length_is_not_written():
    for value in ((1,), (1, 2, 3)):
        with pytest.raises(ValueError, match="zip"):
            Writer().field(value, tuple[int, int], "step")


def test_a_grid_in_a_field_is_named_by_the_field():
    writer = Writer()
    assert writer.field(MANY, QParams | None, "step.w_qparams") == 0
    assert sorted(writer.tensors) == ["step.w_qparams.scale", "step.w_qparams.zero_point"]


NO_FIELD = {
    "a number as a text": (str, 3, "step: expected str, got 3"),
    "a truth as a number": (int, True, "step: expected int, got True"),
    "what may lack": (str | None, 3, "step: expected str, got 3"),
    "a value by number": (Any, {"ref": 3}, "step: expected str, got 3"),
    "no cell": (
        tuple[Cell, ...], [{}], "step.0: expected the keys input_weight, input_qparams, input_bias, state_weight, "
        "state_qparams, state_bias, got []",
    ),
    "a pair of three": (tuple[int, int], [1, 2, 3], "step: expected 2 entries, got 3"),
    "a pair by number": (tuple[int, int], 3, "step: expected list, got 3"),
    "a text in a pair": (tuple[int, int], [1, "2"], "step.1: expected int, got '2'"),
    "a list of arguments": (tuple[Any, ...], [1], "step: expected tuple, got [1]"),
    "a list of names": (dict[str, Any], [1], "step: expected dict, got [1]"),
    "names that are numbers": (
        dict[str, Any], {"dict": [[1, 2]]}, "step: expected names and values, got {'dict': [[1, 2]]}",
    ),
    "a whole float": (float, 1, "step: expected float, got 1"),
    "a grid that is not there": (QParams, 1, "step: there is no grid 1"),
    "a grid before the first": (QParams, -1, "step: there is no grid -1"),
    "a grid by name": (QParams, "0", "step: there is no grid '0'"),
    "a grid that is true": (QParams, True, "step: there is no grid True"),
    "an array that is not there": (np.ndarray, "w", "step: there is no tensor 'w'"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_FIELD)
def test_a_field_of_another_kind_is_refused_by_a_whole_sentence(name):
    hint, row, message = NO_FIELD[name]
    reader = Reader({})
    reader.read_grids([ROW])
    with pytest.raises(ValueError, match=exactly(message)):
        reader.field(row, hint, "step")


def cell():
    return Cell(np.ones((4, 3), np.int8), MANY, None, np.ones((4, 2), np.int8), MANY, np.ones(4, np.float32))


def test_a_record_is_written_by_its_fields_and_comes_back():
    writer, made = Writer(), cell()
    row = writer.record(made, "lstm.0")
    assert row == {
        "input_weight": "lstm.0.input_weight", "input_qparams": 0, "input_bias": None,
        "state_weight": "lstm.0.state_weight", "state_qparams": 0, "state_bias": "lstm.0.state_bias",
    }  # fmt: skip
    fresh = Writer()
    assert fresh.field((made,), tuple[Cell, ...], "lstm") == [row]
    assert sorted(fresh.tensors) == sorted(writer.tensors) and "lstm.0.input_qparams.scale" in fresh.tensors
    reader = Reader(writer.tensors)
    reader.read_grids(writer.grids)
    (back,) = reader.field([row], tuple[Cell, ...], "lstm")
    assert back.input_bias is None and back.input_qparams is back.state_qparams is reader.grids[0]
    for name in ("input_weight", "state_weight", "state_bias"):
        assert np.array_equal(getattr(back, name), getattr(made, name))
    assert list(writer.record(made, "other", without=("input_weight", "state_weight"))) == [
        "input_qparams", "input_bias", "state_qparams", "state_bias",
    ]  # fmt: skip
    again = reader.record(Cell, {k: v for k, v in row.items() if k != "input_bias"}, "lstm", extra={"input_bias": 3})
    assert again.input_bias == 3
    names = "input_weight, input_qparams, input_bias, state_weight, state_qparams, state_bias"
    with pytest.raises(ValueError, match=exactly(f"lstm.0: expected the keys {names}, got []")):
        reader.record(Cell, {}, "lstm.0")
    with pytest.raises(ValueError, match=exactly(f"lstm.0: expected the keys {names}, got int")):
        reader.record(Cell, 3, "lstm.0")
    with pytest.raises(ValueError, match=r"^lstm\.0\.input_weight: there is no tensor 3$"):
        reader.record(Cell, row | {"input_weight": 3}, "lstm.0")


@pytest.mark.parametrize("flat", [False, True])
def test_a_field_that_came_later_is_written_where_it_is_not_as_before(flat):
    weight = np.ones((2, 3), np.int8)
    writer, layer = Writer(), Linear("y", "x", "head", weight, None, ONE, MANY, None, True, flat)
    row = writer.record(layer, "y")
    assert ("flat" in row) == flat and row["relu"] is True and row["layer"] == "head"
    reader = Reader(writer.tensors)
    reader.read_grids(writer.grids)
    assert reader.record(Linear, row, "step 0").flat is flat


def test_a_value_of_another_type_is_told_in_at_most_80_characters():
    for value, kind in ((3, int), (2**63 - 1, int), (1.5, float), ("a", str), ([2**70], list), (True, bool)):
        assert expect(value, kind, "here") is value
    for value, kind in ((3, bool), (True, int), (2**63, int), (math.inf, float), (math.nan, float), ("a" * 99, int)):
        with pytest.raises(ValueError, match=exactly(f"here: expected {kind.__name__}, got {value!r:.80}")):
            expect(value, kind, "here")


def test_an_object_has_exactly_its_keys():
    keys({"b": 1, "a": 2}, ("a", "b"), "here")
    for given, found in (({"c": 1, "a": 2}, "['a', 'c']"), ({}, "[]"), (["a", "b"], "list"), (None, "NoneType")):
        with pytest.raises(ValueError, match=exactly(f"here: expected the keys a, b, got {found}")):
            keys(given, ("a", "b"), "here")
