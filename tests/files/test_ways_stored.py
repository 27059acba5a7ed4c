"""Ways in which parts are called and weights held as codes, as JSON and back, and what every refusal of them says."""

import json
import math

import numpy as np
import pytest
import torch

from quantspec.capture.calls import TENSOR, CallPattern
from quantspec.errors import UnsupportedError
from quantspec.storage import model
from quantspec.storage.json_fields import Reader, Writer
from told import exactly

CONSTANTS = {
    "int": 3, "float": -math.inf, "complex": 1.5 - 2j, "bool": True, "str": "same", "NoneType": None,
    "ellipsis": ..., "dtype": torch.float16, "device": torch.device("cpu"), "layout": torch.strided,
    "memory_format": torch.channels_last,
}  # fmt: skip
WAY = {"shape": "((*, *), {})", "constants": ["tensor", ["int", 3], "tensor"], "names": ["x", "y"]}


def read(row):
    return model.read_pattern(row, Reader({}), "part 0")


def test_every_kind_of_constant_comes_back():
    constants = tuple((kind, value) for kind, value in CONSTANTS.items())
    assert all(type(value).__name__ == kind for kind, value in constants)
    pattern = CallPattern(None, "shape", (TENSOR, *constants, TENSOR), ("x", "other"))
    row = json.loads(json.dumps(model.write_pattern(pattern, Writer()), allow_nan=False))
    assert read(row) == pattern
    assert row["constants"][0] == row["constants"][-1] == "tensor" and row["constants"][1] == ["int", 3]
    assert (row["shape"], row["names"]) == ("shape", ["x", "other"])


def test_a_way_is_read_as_it_was_seen():
    assert read(WAY) == CallPattern(None, "((*, *), {})", (TENSOR, ("int", 3), TENSOR), ("x", "y"))
    assert read({"shape": "", "constants": [], "names": []}) == CallPattern(None, "", (), ())


def test_a_constant_that_no_file_holds_is_told():
    for value, said in ((b"ab", "way: builtins.bytes"), (torch.device("meta"), "way: torch.device")):
        with pytest.raises(UnsupportedError, match=exactly(f"{said} cannot be stored in a file")):
            model.write_pattern(CallPattern(None, "", ((type(value).__name__, value),), ()), Writer())


WAYS = {
    "a name less": (WAY | {"names": ["x"]}, "part 0: expected a name for each tensor, got ('x',)"),
    "a name twice": (WAY | {"names": ["x", "x"]}, "part 0: expected a name for each tensor, got ('x', 'x')"),
    "a number as a name": (WAY | {"names": ["x", 3]}, "part 0: expected str, got 3"),
    "no names": (WAY | {"names": "xy"}, "part 0: expected list, got 'xy'"),
    "a number as a shape": (WAY | {"shape": 3}, "part 0: expected str, got 3"),
    "no constants": (WAY | {"constants": 3}, "part 0: expected list, got 3"),
    "a key less": ({"shape": ""}, "part 0: expected the keys shape, constants, names, got ['shape']"),
    "another word": (WAY | {"constants": ["tensors"]}, "part 0: expected list, got 'tensors'"),
    "a constant alone": (
        WAY | {"constants": [["int"]]}, "part 0: expected a kind of constant and its value, got ['int']",
    ),
    "a constant of three": (
        WAY | {"constants": [["int", 1, 2]]}, "part 0: expected a kind of constant and its value, got ['int', 1, 2]",
    ),
    "an unknown kind": (
        WAY | {"constants": [["list", []]]}, "part 0: expected a kind of constant and its value, got ['list', []]",
    ),
    "a long one": (
        WAY | {"constants": [["odd", "a" * 99]]},
        f"part 0: expected a kind of constant and its value, got {['odd', 'a' * 99]!r:.80}",
    ),
    "another kind": (WAY | {"constants": [["int", True]]}, "part 0: expected a int, got True"),
    "a long text": (WAY | {"constants": [["int", "a" * 99]]}, f"part 0: expected a int, got {'a' * 99!r:.80}"),
    "what is no value": (WAY | {"constants": [["int", {}]]}, "part 0: expected an object with one key, got {}"),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_what_is_no_way_is_refused_by_a_whole_sentence(name):
    row, message = WAYS[name]
    with pytest.raises(ValueError, match=exactly(message)):
        read(row)


def coded(codes=None, scale=None, form="same", groups=1):
    codes = np.arange(12, dtype=np.int8).reshape(4, 3) if codes is None else codes
    return model.CodedWeight(codes, np.float32(0.5) if scale is None else scale, form, groups)


def through_a_file(weight, **changes):
    """A weight written and read, with other values for some keys of its row."""
    writer = Writer()
    row = model.write_coded(weight, "head.weight", writer) | changes
    return model.read_coded(json.loads(json.dumps(row)), Reader(writer.tensors), "coded head.weight")


WEIGHTS = {
    "one scale": coded(scale=np.array(0.25, np.float32)),
    "a scale for each output": coded(scale=np.array([1, 2, 3, 4], np.float32)),
    "transposed": coded(scale=np.array(0.25, np.float32), form="transposed"),
    "turned, in two groups": coded(np.zeros((4, 3, 2), np.int8), np.ones(4, np.float32), "flipped", 2),
    "in as many groups as outputs": coded(np.zeros((4, 1, 3, 3), np.int8), np.ones(4, np.float32), "same", 4),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_codes_of_a_weight_come_back(name):
    weight, back = WEIGHTS[name], through_a_file(WEIGHTS[name])
    assert (back.form, back.groups) == (weight.form, weight.groups)
    for ours, theirs in ((back.codes, weight.codes), (back.scale, weight.scale)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and np.array_equal(ours, theirs)


def test_codes_of_a_weight_are_stored_by_its_name():
    writer = Writer()
    row = model.write_coded(WEIGHTS["one scale"], "head.weight", writer)
    assert row == {"codes": "head.weight", "scale": "head.weight.scale", "form": "same", "groups": 1}
    assert sorted(writer.tensors) == ["head.weight", "head.weight.scale"]
    assert (coded().form, coded().groups) == (model.CodedWeight(coded().codes, coded().scale).form, 1)


ARE = "coded head.weight: expected int8 codes, and a float32 scale for all or for each output, got "
ONE = np.array(0.5, np.float32)
ODD = {
    "whole numbers": (coded(np.zeros((4, 3), np.int32), ONE), {}, f"{ARE}int32[4, 3], []"),
    "one axis": (coded(np.zeros(4, np.int8), ONE), {}, f"{ARE}int8[4], []"),
    "a whole scale": (coded(scale=np.array(1, np.int32)), {}, f"{ARE}int8[4, 3], []"),
    "a scale for each input": (coded(scale=np.ones(3, np.float32)), {}, f"{ARE}int8[4, 3], [3]"),
    "a scale for each code": (coded(scale=np.ones((4, 3), np.float32)), {}, f"{ARE}int8[4, 3], [4, 3]"),
    "another form": (
        coded(scale=ONE), {"form": "turned"}, "coded head.weight: unknown form 'turned' of [4, 3] in 1 groups",
    ),
    "no groups": (coded(scale=ONE), {"groups": 0}, "coded head.weight: unknown form 'same' of [4, 3] in 0 groups"),
    "groups that do not divide": (
        coded(scale=ONE), {"groups": 3}, "coded head.weight: unknown form 'same' of [4, 3] in 3 groups",
    ),
    "a transposed image": (
        coded(np.zeros((4, 3, 2), np.int8), ONE), {"form": "transposed"},
        "coded head.weight: unknown form 'transposed' of [4, 3, 2] in 1 groups",
    ),
    "a form by number": (coded(scale=ONE), {"form": 3}, "coded head.weight: expected str, got 3"),
    "groups by text": (coded(scale=ONE), {"groups": "1"}, "coded head.weight: expected int, got '1'"),
    "codes that are not there": (coded(scale=ONE), {"codes": "x"}, "coded head.weight: there is no tensor 'x'"),
    "a scale that is not there": (coded(scale=ONE), {"scale": 3}, "coded head.weight: there is no tensor 3"),
    "a key more": (
        coded(scale=ONE), {"more": 1},
        "coded head.weight: expected the keys codes, scale, form, groups, got "
        "['codes', 'form', 'groups', 'more', 'scale']",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_weight_in_codes_is_refused_by_a_whole_sentence(name):
    weight, changes, message = ODD[name]
    with pytest.raises(ValueError, match=exactly(message)):
        through_a_file(weight, **changes)
