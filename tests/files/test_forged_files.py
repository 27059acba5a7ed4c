"""Files that were not written by us, or not like this: refused by name, or a network that means what its file says."""

import copy
import operator
import random

import pytest
import safetensors.torch
import torch
from stored import NETWORKS, parts, resigned
from torch import nn

import quantspec
from evidence import clause
from networks import mostly_attention
from quantspec.ir.program import Call, Program, Ref
from quantspec.storage import allowed
from quantspec.storage import file as storage_file

pytestmark = mostly_attention


@clause("STA-STORED")
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
        (resigned(tensors | {"more": torch.zeros(3)}, network), "'more' belongs to nothing"),
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
    ],
)  # fmt: skip
@clause("STA-STORED")
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


def test_a_file_names_no_other_classes_than_plain_ones(tmp_path):
    tensors, network = parts(storage_file.packed(NETWORKS["mlp"]()[0].program))
    row = next(row for row in network["callables"] if row["kind"] == "module")
    path = tmp_path / "q.safetensors"
    for name in ("Module", "Sequential", "os.system", "DataParallel", ""):
        row["class"] = name
        path.write_bytes(resigned(tensors, network))
        with pytest.raises(quantspec.FormatError, match="a file may not name the class"):
            quantspec.load(path)


def test_everything_on_the_lists_exists():
    for place, names in allowed.FUNCTIONS.items():
        for name in names:
            assert callable(allowed.function(f"{place}.{name}"))
    assert all(hasattr(torch.Tensor, name) for name in allowed.METHODS)
    assert all(issubclass(getattr(nn, name), nn.Module) for name in allowed.MODULES)


def test_a_program_that_calls_what_is_not_there_is_refused():
    step = Call("y", "function", "operator.neg", (Ref("x"),), {}, "")
    there = {("function", "operator.neg"): operator.neg, ("function", "operator.pos"): operator.pos}
    with pytest.raises(ValueError, match="callables"):
        quantspec.storage.validate.check(Program("onnx", ("x",), {}, (step,), Ref("y"), there))


# --- whatever else is in the file

ODD_VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e-45, 1e300, "", "x", "lstm",
    "add", [], [0], [[1, 1]], {}, {"ref": "x"}, {"ref": "nobody"}, {"tuple": []}, {"float": "nan"}, {"dtype": "int8"},
    {"slice": [0, 1, None]}, {"tensor": "0.weight"}, {"dict": [["a", 1]]}, {"ellipsis": True},
)  # fmt: skip
# What a network may raise whose Program is well-formed, but is another.
RUNNING = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)
DTYPES = (torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.bfloat16, torch.bool)


def leaves(value, path=()):
    """The paths of everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from leaves(item, (*path, key))


def at(path, value):
    for key in path:
        value = value[key]
    return value


def changed_json(network, draw: random.Random):
    network = copy.deepcopy(network)
    for _ in range(draw.choice((1, 1, 1, 2))):
        paths = list(leaves(network))
        *way, last = draw.choice(paths)
        place = at(way, network)
        kind = draw.randrange(5)
        if kind == 0:
            del place[last]
        elif kind == 1 and isinstance(place, list):
            place.insert(last, copy.deepcopy(place[draw.randrange(len(place))]))
        elif kind == 2:
            place[last] = copy.deepcopy(at(draw.choice(paths), network))  # something from elsewhere in the same file
        elif kind == 3 and isinstance(place[last], (int, float)):
            place[last] += draw.choice((-1, 1, 0.5, -2))
        else:
            place[last] = copy.deepcopy(draw.choice(ODD_VALUES))
    return network


def changed_tensors(tensors, draw: random.Random):
    tensors = dict(tensors)
    name = draw.choice(sorted(tensors))
    kind, tensor = draw.randrange(5), tensors[name]
    if kind == 0:
        tensors[name] = tensor.to(draw.choice(DTYPES))
    elif kind == 1:
        tensors[name] = tensor.reshape(-1)[: draw.randrange(tensor.numel() + 1)].clone()
    elif kind == 2:
        tensors[name] = tensor.unsqueeze(draw.randrange(tensor.ndim + 1)).clone()
    elif kind == 3:
        tensors[draw.choice(("other", name + "#2"))] = tensors.pop(name)
    else:
        flat = tensor.clone().reshape(-1)
        odd = (0.0, -1.0, float("nan"), float("inf"), 1e-40) if tensor.is_floating_point() else (0, 1, 127)
        flat[draw.randrange(flat.numel())] = draw.choice(odd)
        tensors[name] = flat.reshape(tensor.shape)
    return tensors


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    kind, made = draw.randrange(6), bytearray(data)
    if kind == 0:
        return bytes(made[: draw.randrange(len(made))])
    if kind == 1:
        at = draw.randrange(len(made))
        return bytes(made[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9))) + made[at:])
    if kind == 2:
        at, size = draw.randrange(len(made)), draw.randrange(1, 64)
        return bytes(made[:at] + made[at + size :])
    for _ in range(draw.choice((1, 1, 2, 8))):
        # Half of the changes go to the header, which is where they can do most.
        at = draw.randrange(len(made)) if draw.random() < 0.5 else draw.randrange(min(len(made), 3000))
        if kind == 3:
            made[at] = draw.choice(b'0123456789{}[]",:.-ex\\ \x00\xff')
        else:
            made[at] ^= 1 << draw.randrange(8)
    return bytes(made)


# Forgeries of each; a large file takes long to read.
FUZZED = {"cnn": 800, "mlp of 5 bits, partly in float": 800, "tagger": 800, "encoder": 240}


@clause("STA-STORED")
@pytest.mark.parametrize("name", FUZZED)
def test_damage_is_an_error_or_changes_no_bit(name, tmp_path):
    q, x = NETWORKS[name]()
    data, expected, path, draw = storage_file.packed(q.program), q(x), tmp_path / "q.safetensors", random.Random(name)
    refused = same = 0
    for _ in range(1000):
        path.write_bytes(changed_bytes(data, draw))
        try:
            made = quantspec.load(path)
        except quantspec.FormatError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert torch.equal(made(x), expected)
            same += 1
    assert refused + same == 1000 and refused > 900


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
        path.write_bytes(resigned(arrays, content))
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
