"""Networks in files: what is loaded computes the same bits, and what was not written by us is refused, whatever it is."""

import copy
import json
import operator
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import quantspec
from evidence import clause
from networks import inputs, seeded
from quantspec.ir.program import Call, Program, Ref
from quantspec.storage import allowed, callables
from quantspec.storage import file as storage_file


class Tagger(nn.Module):
    """Embedding, LSTM, linear: tags for words."""

    def __init__(self):
        super().__init__()
        self.words, self.lstm, self.tags = nn.Embedding(20, 6), nn.LSTM(6, 5, bidirectional=True, batch_first=True), nn.Linear(10, 3)

    def forward(self, x):
        return self.tags(self.lstm(self.words(x))[0])


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Odd(nn.Module):
    """What no file can hold: a class of one's own, with control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        return x * self.gain if x.sum() > 0 else x


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.odd, self.second = nn.Linear(4, 4), Odd(), nn.Linear(4, 2)

    def forward(self, x):
        return self.second(self.odd(self.first(x)))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4), nn.Softmax(-1),
    )  # fmt: skip


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))


WORDS = torch.arange(12).reshape(2, 6)
NETWORKS = {
    "cnn": lambda: (quantspec.quantize(seeded(cnn), [inputs(4, (3, 9, 9))]), inputs(3, (3, 9, 9), 2)),
    "mlp": lambda: (quantspec.quantize(seeded(mlp), [inputs()]), inputs(3)),
    "mlp of 5 bits, partly in float": lambda: (quantspec.quantize(seeded(mlp), [inputs()], bits=5, exclude="3"), inputs(3)),
    "tagger": lambda: (quantspec.quantize_dynamic(seeded(Tagger)), WORDS),
    "weights alone": lambda: (quantspec.quantize_dynamic(seeded(mlp), activations=None), inputs(3)),
    "encoder": lambda: (quantspec.quantize(seeded(encoder), [inputs(2, (5, 8))]), inputs(3, (5, 8), 2)),
    "dynamic encoder": lambda: (quantspec.quantize_dynamic(seeded(encoder), activations="per_token"), inputs(3, (5, 8), 2)),
    "dialect fbgemm": lambda: (quantspec.quantize(seeded(cnn), [inputs(4, (3, 9, 9))], dialect="fbgemm"), inputs(3, (3, 9, 9), 2)),
}
FRESH = """
import pickle, sys
import torch
import quantspec
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    x, y = torch.load(f"{folder}/{name}.io")
    with open(f"{folder}/{name}.pickle", "rb") as file:
        pickled = pickle.load(file)
    ways = quantspec.load(f"{folder}/{name}.safetensors"), pickled, torch.load(f"{folder}/{name}.pt", weights_only=False)
    for q, way in zip(ways, ("load", "pickle", "torch.load")):
        assert torch.equal(q(x), y), (name, way)
        print(name, way, q.nbytes)
"""


@clause("STA-STORED")
def test_a_network_computes_the_same_bits_in_a_fresh_process(tmp_path):
    expected = []
    for name, build in NETWORKS.items():
        q, x = build()
        q.save(tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(q))
        torch.save(q, tmp_path / f"{name}.pt")
        torch.save((x, q(x)), tmp_path / f"{name}.io")
        expected += [f"{name} {way} {q.nbytes}" for way in ("load", "pickle", "torch.load")]
    ran = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path), *NETWORKS], capture_output=True, text=True)
    assert ran.stdout.splitlines() == expected, ran.stderr


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_computes_the_same_bits_and_is_independent(name):
    q, x = NETWORKS[name]()
    twin, before = copy.deepcopy(q), q(x)
    assert torch.equal(twin(x), before)
    for tensor in twin.parameters():
        tensor.data.zero_()
    assert torch.equal(q(x), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_makes_the_same_file_again(name, tmp_path):
    q, x = NETWORKS[name]()
    q.save(tmp_path / "a.safetensors")
    loaded = quantspec.load(tmp_path / "a.safetensors")
    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert loaded.nbytes == q.nbytes and repr(loaded) == repr(q)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), q.parameters(), strict=True))


def test_what_is_shared_is_stored_once_and_shared_again(tmp_path):
    q = quantspec.quantize(seeded(Twice), [inputs()])
    q.save(tmp_path / "q.safetensors")
    first, second = (step for step in quantspec.load(tmp_path / "q.safetensors").program.layers)
    assert first.weight is second.weight and first.w_qparams is second.w_qparams and first.x_qparams is not second.x_qparams
    assert first.y_qparams is second.x_qparams
    with safetensors.safe_open(tmp_path / "q.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["layer.bias", "layer.w_qparams.scale", "layer.weight"]


def test_loading_does_not_touch_the_random_state_nor_the_file(tmp_path):
    q, _ = NETWORKS["encoder"]()
    q.save(tmp_path / "q.safetensors")
    before, random_state = (tmp_path / "q.safetensors").read_bytes(), torch.get_rng_state()
    quantspec.load(tmp_path / "q.safetensors")
    assert torch.equal(torch.get_rng_state(), random_state) and (tmp_path / "q.safetensors").read_bytes() == before


def test_trees_of_arguments_come_back_as_they_were():
    tree = (
        Ref("x"), 1, -1.5, -0.0, float("inf"), True, None, "text", [1, [2]], (1, (2,)), {"a": Ref("y"), 3: slice(None, Ref("x"), 2)}, ..., torch.float16,
        torch.Size([1, 2]), torch.device("cpu"), torch.channels_last, 2**62,
    )  # fmt: skip
    writer = storage_file.Writer()
    made = storage_file.Reader(writer.tensors).tree(json.loads(storage_file.text(writer.tree(tree, "tree"))), "tree")
    assert made == tree and [type(item) for item in made] == [type(item) for item in tree] and str(made[3]) == "-0.0"
    nan = storage_file.Reader({}).tree(json.loads(storage_file.text(writer.tree(float("nan"), "tree"))), "tree")
    assert np.isnan(nan)


def test_a_module_of_ones_own_is_given_again_when_the_file_is_loaded(tmp_path):
    model = seeded(Around)
    q, path = quantspec.quantize(model, [inputs()]), tmp_path / "q.safetensors"
    q.save(path)
    with pytest.raises(ValueError, match=r"modules: 'odd' is a .*Odd, whose code no file holds; pass modules=\{'odd': \.\.\.\}"):
        quantspec.load(path)
    with pytest.raises(ValueError, match="modules: 'odd': .*gain"):
        quantspec.load(path, modules={"odd": nn.Identity()})
    with pytest.raises(ValueError, match="modules: expected a module for 'odd', got type"):
        quantspec.load(path, modules={"odd": Odd})
    other = seeded(Odd)
    other.gain.data.fill_(7)
    assert torch.equal(quantspec.load(path, modules={"odd": other})(inputs()), q(inputs()))
    assert other.gain.item() == 7


def test_a_hook_is_code_too(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.soft = nn.Linear(4, 4), nn.Softmax(-1)

        def forward(self, x):
            return self.soft(self.layer(x))

    model = seeded(Model)
    model.soft.register_forward_hook(lambda module, args, result: result * 2)
    quantspec.quantize(model, [inputs()]).save(tmp_path / "q.safetensors")
    with pytest.raises(ValueError, match="modules: 'soft' is a torch.nn"):
        quantspec.load(tmp_path / "q.safetensors")


@torch.fx.wrap
def halved(x):
    return x / 2


def test_a_function_of_ones_own_cannot_be_stored(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return halved(self.layer(x))

    q = quantspec.quantize(seeded(Model), [inputs()])
    with pytest.raises(quantspec.UnsupportedError, match="function .*halved: a file may not name"):
        q.save(tmp_path / "q.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_a_file_at_once_or_leaves_it(tmp_path, monkeypatch):
    q, path = NETWORKS["mlp"]()[0], tmp_path / "q.safetensors"
    path.write_bytes(b"before")

    def broken(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(storage_file.os, "fsync", broken)
        q.save(path)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["q.safetensors"]
    q.save(str(path))
    assert quantspec.load(str(path)).nbytes == q.nbytes and [p.name for p in tmp_path.iterdir()] == ["q.safetensors"]


def test_places_where_no_file_can_be_are_errors_of_the_system(tmp_path):
    q = NETWORKS["mlp"]()[0]
    with pytest.raises(FileNotFoundError):
        q.save(tmp_path / "none" / "q.safetensors")
    for folder in (tmp_path, "", "/"):
        with pytest.raises(IsADirectoryError):
            q.save(folder)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        quantspec.load(tmp_path / "q.safetensors")
    with pytest.raises(IsADirectoryError):
        quantspec.load(tmp_path)


def resigned(tensors, network, **changes) -> bytes:
    """A file with that content and the checksum that belongs to it."""
    header = {"format": "quantspec", "version": storage_file.VERSION, "sha256": storage_file.digest(network, tensors), "network": network} | changes
    return safetensors.torch.save(tensors, {"quantspec": json.dumps(header)})


def parts(data: bytes):
    """Tensors and JSON of a file."""
    size = int.from_bytes(data[:8], "little")
    return safetensors.torch.load(data), json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["quantspec"])["network"]


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
        (resigned(tensors, network, version=3), r"version 3 of the format, which is newer than this quantspec reads \(2\)"),
        (resigned(tensors, network, sha256="0" * 64), "checksum"),
        (resigned(tensors | {"more": torch.zeros(3)}, network), "'more' belongs to nothing"),
        (resigned({name: t for name, t in tensors.items() if "bias" not in name}, network), "no tensor"),
    ):
        path.write_bytes(content)
        with pytest.raises(quantspec.FormatError, match=message) as caught:
            quantspec.load(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "target, kind, args",
    [
        ("os.system", "function", ({"ref": "x"},)), ("builtins.eval", "function", ({"ref": "x"},)), ("torch.load", "function", ({"ref": "x"},)),
        ("torch.hub.load", "function", ({"ref": "x"},)), ("operator.attrgetter", "function", ({"ref": "x"},)), ("quantspec.load", "function", ({"ref": "x"},)),
        ("tofile", "method", ({"ref": "x"}, "/tmp/stolen")), ("__reduce__", "method", ({"ref": "x"},)), ("apply_", "method", ({"ref": "x"},)),
        ("abs", "method", ("text",)), ("builtins.getattr", "function", ({"ref": "x"}, "__class__")), ("builtins.getattr", "function", ({"ref": "x"}, {"ref": "x"})),
        ("torch.Tensor.add", "function", ({"ref": "x"},)), ("torch.nn.functional.__dict__", "function", ()), ("", "function", ()),
    ],
)  # fmt: skip
@clause("STA-STORED")
def test_a_file_names_no_other_functions_than_those_that_compute(target, kind, args, tmp_path):
    call = {"step": "Call", "name": "y", "kind": kind, "target": target, "args": {"tuple": list(args)}, "kwargs": {"dict": []}, "reason": ""}
    network = {"dialect": "onnx", "inputs": ["x"], "defaults": {"dict": []}, "steps": [call], "output": {"ref": "y"}, "grids": []}
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


def test_every_plain_module_comes_back_as_it_was():
    examples = [
        nn.LayerNorm((3, 4), bias=False), nn.LayerNorm(3, elementwise_affine=False), nn.RMSNorm(4), nn.GroupNorm(2, 4, affine=False),
        nn.BatchNorm2d(3, momentum=None), nn.BatchNorm1d(3, affine=False, track_running_stats=False), nn.InstanceNorm2d(3, affine=True),
        nn.Embedding(4, 3, padding_idx=1), nn.EmbeddingBag(4, 3, mode="max"), nn.Linear(3, 2, bias=False), nn.Bilinear(2, 3, 4),
        nn.Conv2d(4, 4, (1, 3), padding="same", groups=2, padding_mode="reflect"), nn.ConvTranspose1d(4, 2, 3, stride=2),
        nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=3, vdim=5, batch_first=True), nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
        nn.GRU(3, 4, bias=False), nn.RNN(3, 4, nonlinearity="relu"), nn.GRUCell(3, 4), nn.PReLU(3), nn.GELU("tanh"), nn.Softmax(1),
        nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d((None, 2)), nn.AdaptiveMaxPool2d(2), nn.LPPool2d(2, 3),
        nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Fold((4, 5), (2, 2)), nn.Flatten(), nn.Unflatten(1, (2, 3)), nn.Identity(),
        nn.ConstantPad2d(1, 2.5), nn.Hardtanh(-2, 3), nn.Threshold(0.5, 1.0), nn.CosineSimilarity(0), nn.Dropout(0.25),
    ]  # fmt: skip
    for module in (m.eval() for m in examples):
        writer = storage_file.Writer()
        row = json.loads(storage_file.text({"kind": "module", "target": "m"} | callables.write_module(module, "m", writer)))
        assert "class" in row, module
        (made,) = callables.read_callables([row], storage_file.Reader(writer.tensors), {}).values()
        assert repr(made) == repr(module) and not made.training
        assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), module.state_dict().values(), strict=True))


# --- whatever else is in the file

ODD_VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e-45, 1e300, "", "x", "lstm", "add", [], [0], [[1, 1]], {}, {"ref": "x"},
    {"ref": "nobody"}, {"tuple": []}, {"float": "nan"}, {"dtype": "int8"}, {"slice": [0, 1, None]}, {"tensor": "0.weight"}, {"dict": [["a", 1]]}, {"ellipsis": True},
)  # fmt: skip
RUNNING = (ValueError, TypeError, RuntimeError, IndexError, AttributeError)  # what a network may raise whose Program is well-formed, but is another


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
        tensors[name] = tensor.to(draw.choice((torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.bfloat16, torch.bool)))
    elif kind == 1:
        tensors[name] = tensor.reshape(-1)[: draw.randrange(tensor.numel() + 1)].clone()
    elif kind == 2:
        tensors[name] = tensor.unsqueeze(draw.randrange(tensor.ndim + 1)).clone()
    elif kind == 3:
        tensors[draw.choice(("other", name + "#2"))] = tensors.pop(name)
    else:
        flat = tensor.clone().reshape(-1)
        flat[draw.randrange(flat.numel())] = draw.choice((0, 1, 127)) if not tensor.is_floating_point() else draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e-40))
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
        made[at] = made[at] ^ (1 << draw.randrange(8)) if kind != 3 else draw.choice(b'0123456789{}[]",:.-ex\\ \x00\xff')
    return bytes(made)


FUZZED = {"cnn": 800, "mlp of 5 bits, partly in float": 800, "tagger": 800, "encoder": 240}  # forgeries of each; a large file takes long to read


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
    """With the checksum made to fit, what is read is a well-formed network or refused; a well-formed one means what its file says."""
    q, x = NETWORKS[name]()
    path, draw = tmp_path / "q.safetensors", random.Random(name)
    tensors, network = parts(storage_file.packed(q.program))
    refused = accepted = ran = 0
    for index in range(FUZZED[name]):
        arrays, content = (changed_tensors(tensors, draw), network) if index % 4 == 0 else (tensors, changed_json(network, draw))
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


def test_functions_that_torch_makes_at_import_can_be_pickled():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return nn.functional.adaptive_max_pool2d(self.layer(x), 2), nn.functional.max_pool2d(x, 2, return_indices=True)

    q = quantspec.quantize(seeded(Model), [inputs(2, (3, 8, 8))])
    x = inputs(2, (3, 8, 8), 2)
    for twin in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert torch.equal(twin(x)[0], q(x)[0]) and torch.equal(twin(x)[1][1], q(x)[1][1])


def test_a_program_that_calls_what_is_not_there_is_refused():
    step = Call("y", "function", "operator.neg", (Ref("x"),), {}, "")
    there = {("function", "operator.neg"): operator.neg, ("function", "operator.pos"): operator.pos}
    with pytest.raises(ValueError, match="callables"):
        quantspec.storage.validate.check(Program("onnx", ("x",), {}, (step,), Ref("y"), there))
