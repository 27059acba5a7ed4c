"""Files that were not written by us, or not like this: refused by name, or a network that means what its file says."""

import operator
import random

import pytest
import safetensors.torch
import torch
from damage import RUNNING, changed_bytes, changed_json, changed_tensors
from stored import NETWORKS, parts, resigned, written
from torch import nn

import quantspec
from evidence import clause
from networks import mostly_attention
from quantspec.ir.program import Call, Program, Ref
from quantspec.ir.rearrange import qualified_name
from quantspec.storage import allowed
from quantspec.storage import file as storage_file

pytestmark = mostly_attention


@clause("STA-FORMAT")
def test_foreign_and_newer_files_are_named(tmp_path):
    data, path = storage_file.packed(NETWORKS["mlp"]()[0].program), tmp_path / "q.safetensors"
    tensors, network = parts(data)
    for content, message in (
        (b"", "header"),
        (b"PK\x03\x04" + bytes(100), "header"),
        (data[:-1], "buffer|header|offset|complete"),
        (data + b"\0", "buffer|header|offset|complete"),
        (safetensors.torch.save(tensors), "no network of quantspec"),
        (safetensors.torch.save(tensors, {"quantspec": "[]"}), "no network of quantspec"),
        (resigned(tensors, network, version=4), r"version 4 of the format, .* newer than this quantspec reads \(3\)"),
        (resigned(tensors, network, sha256="0" * 64), "checksum"),
        (resigned(tensors | {"more": torch.zeros(3)}, network), "'more' is not used"),
        (resigned({name: t for name, t in tensors.items() if "bias" not in name}, network), "no tensor"),
    ):
        path.write_bytes(content)
        with pytest.raises(quantspec.FormatError, match=message) as caught:
            quantspec.load(path)
        assert str(path) in str(caught.value)


X = {"ref": "x"}


@pytest.mark.parametrize(
    "target, kind, args",
    [
        ("os.system", "function", (X,)), ("builtins.eval", "function", (X,)), ("torch.load", "function", (X,)),
        ("torch.hub.load", "function", (X,)), ("operator.attrgetter", "function", (X,)),
        ("quantspec.load", "function", (X,)), ("tofile", "method", (X, "/tmp/stolen")), ("__reduce__", "method", (X,)),
        ("apply_", "method", (X,)), ("abs", "method", ("text",)), ("builtins.getattr", "function", (X, "__class__")),
        ("builtins.getattr", "function", (X, X)), ("torch.Tensor.add", "function", (X,)),
        ("torch.nn.functional.__dict__", "function", ()), ("", "function", ()),
        # What they make depends on values, or on sizes that the file's own do not bound.
        ("torch.bincount", "function", (X,)), ("bincount", "method", (X,)),
        ("torch.nn.functional.max_unpool2d", "function", (X, X, 1)),
    ],
)  # fmt: skip
@clause("STA-NO-CODE")
def test_a_file_names_no_other_functions_than_those_that_compute(target, kind, args, tmp_path):
    call = {"step": "Call", "name": "y", "kind": kind, "target": target, "reason": ""}
    call |= {"args": {"tuple": list(args)}, "kwargs": {"dict": []}}
    network = {"dialect": "onnx", "inputs": ["x"], "defaults": {"dict": []}}
    network |= {"steps": [call], "output": {"ref": "y"}, "grids": []}
    network["callables"] = [{"kind": kind, "target": target}] if kind == "function" else []
    path = tmp_path / "q.safetensors"
    path.write_bytes(resigned({}, network))
    with pytest.raises(quantspec.FormatError, match="a file may not name|a method belongs to a value"):
        quantspec.load(path)


@clause("STA-NO-CODE")
def test_a_file_names_no_other_classes_than_plain_ones(tmp_path):
    tensors, network = parts(storage_file.packed(NETWORKS["mlp"]()[0].program))
    row = next(row for row in network["callables"] if row["kind"] == "module")
    path = tmp_path / "q.safetensors"
    for name in ("Module", "Sequential", "os.system", "DataParallel", ""):
        row["class"] = name
        path.write_bytes(resigned(tensors, network))
        with pytest.raises(quantspec.FormatError, match="a file may not name the class"):
            quantspec.load(path)


def test_everything_on_the_lists_exists_and_is_found_by_the_name_that_it_is_saved_by():
    newer = () if hasattr(torch.nn.functional, "grouped_mm") else ("_grouped_mm", "grouped_mm")
    for place, names in allowed.FUNCTIONS.items():
        for name in names.difference(newer):
            function = allowed.function(f"{place}.{name}")
            assert callable(function) and allowed.function(qualified_name(function)) is function
    packed = nn.utils.rnn.PackedSequence  # a named tuple, the one that networks pass on
    assert {name for name in allowed.METHODS if not hasattr(torch.Tensor, name)} == {"_replace"} <= set(dir(packed))
    assert all(issubclass(getattr(nn, name), nn.Module) for name in allowed.MODULES)


def test_a_program_that_calls_what_is_not_there_is_refused():
    step = Call("y", "function", "operator.neg", (Ref("x"),), {}, "")
    there = {("function", "operator.neg"): operator.neg, ("function", "operator.pos"): operator.pos}
    with pytest.raises(ValueError, match="callables"):
        quantspec.storage.validate.check(Program("onnx", ("x",), {}, (step,), Ref("y"), there))


# --- whatever else is in the file

# Forgeries of each; a large file takes long to read.
FUZZED = {"cnn": 800, "mlp of 5 bits, partly in float": 800, "tagger": 800, "encoder": 240}


@clause("STA-FORMAT", "STA-STORED")
@pytest.mark.parametrize("name", FUZZED)
def test_damage_is_an_error_or_changes_no_bit(name, tmp_path):
    q, x = NETWORKS[name]()
    data, expected, path, draw = storage_file.packed(q.program), q(x), tmp_path / "q.safetensors", random.Random(name)
    refused = same = 0
    for _ in range(1000):
        written(path, changed_bytes(data, draw))
        try:
            made = quantspec.load(path)
        except quantspec.FormatError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert torch.equal(made(x), expected)
            same += 1
    assert refused + same == 1000 and refused > 900


@pytest.mark.filterwarnings("ignore:values are NaN")  # of changed scales and Python, as may be
@pytest.mark.parametrize("name", FUZZED)
def test_a_forged_file_is_an_error_or_a_network(name, tmp_path):
    """With the checksum made to fit, what is read is a well-formed network or refused.

    A well-formed one means what its file says.
    """
    q, x = NETWORKS[name]()
    path, draw = tmp_path / "q.safetensors", random.Random(name)
    tensors, network = parts(storage_file.packed(q.program))
    refused = accepted = ran = 0
    for index in range(FUZZED[name]):
        arrays, content = tensors, network
        if index % 4 == 0:
            arrays = changed_tensors(tensors, draw)
        else:
            content = changed_json(network, draw)
        written(path, resigned(arrays, content))
        try:
            made = quantspec.load(path)
        except quantspec.FormatError as error:
            assert str(path) in str(error)
            refused += 1
        except ValueError as error:
            assert str(error).startswith("modules: ")
            refused += 1
        else:
            accepted += 1
            again = storage_file.unpacked(storage_file.packed(made.program), {})
            assert isinstance(again, Program) and len(again.steps) == len(content["steps"]) and repr(made)
            try:
                made(x)
                ran += 1
            except RUNNING:
                pass
    assert refused > FUZZED[name] / 2 and accepted > 10 and ran > 5, (refused, accepted, ran)
