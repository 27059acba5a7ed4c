"""Networks in files: what is loaded computes the same bits, in the same process or another."""

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from stored import NETWORKS
from torch import nn
from torch.nn import functional as F

import quantspec
from evidence import clause
from networks import inputs, mostly_attention, seeded
from quantspec.ir.program import Call, Program, Ref
from quantspec.ir.rearrange import qualified_name
from quantspec.module.module import QuantizedModule
from quantspec.storage import callables
from quantspec.storage import file as storage_file

pytestmark = mostly_attention


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


FRESH = """
import pickle, sys
import torch
import quantspec
folder, names = sys.argv[1], sys.argv[2:]
for name in names:
    x, y = torch.load(f"{folder}/{name}.io")
    with open(f"{folder}/{name}.pickle", "rb") as file:
        pickled = pickle.load(file)
    loaded = quantspec.load(f"{folder}/{name}.safetensors")
    unpickled = torch.load(f"{folder}/{name}.pt", weights_only=False)
    for q, way in zip((loaded, pickled, unpickled), ("load", "pickle", "torch.load")):
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
    assert first.weight is second.weight and first.w_qparams is second.w_qparams
    assert first.x_qparams is not second.x_qparams
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
        Ref("x"), 1, -1.5, -0.0, float("inf"), True, None, "text", [1, [2]], (1, (2,)),
        {"a": Ref("y"), 3: slice(None, Ref("x"), 2)}, ..., torch.float16, torch.Size([1, 2]), torch.device("cpu"),
        torch.channels_last, 2**62,
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
    message = r"modules: 'odd' is a .*Odd, whose code is not in the file; pass modules=\{'odd': \.\.\.\}"
    with pytest.raises(ValueError, match=message):
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


def test_a_function_of_ones_own_is_stored_as_the_operations_in_it_or_not_at_all(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return halved(self.layer(x))

    q = quantspec.quantize(seeded(Model), [inputs()])
    q.save(tmp_path / "q.safetensors")
    assert torch.equal(quantspec.load(tmp_path / "q.safetensors", model=seeded(Model))(inputs()), q(inputs()))
    (tmp_path / "q.safetensors").unlink()
    call = Call("y", "function", qualified_name(halved), (Ref("x"),), {}, "")
    program = Program("onnx", ("x",), {}, (call,), Ref("y"), {("function", qualified_name(halved)): halved})
    with pytest.raises(quantspec.UnsupportedError, match="function .*halved: a file may not name"):
        QuantizedModule(program).save(tmp_path / "q.safetensors")
    assert list(tmp_path.iterdir()) == []


FLOAT_STEPS = {
    "scatter_add": lambda y: y.scatter_add(0, torch.zeros(1, 4, dtype=torch.long), y),
    "scatter_reduce": lambda y: torch.scatter_reduce(y, 0, torch.zeros(1, 4, dtype=torch.long), y, "amax"),
    "a complex number": lambda y: (torch.fft.rfft(y) * (0.5 + 1j)).abs(),
    "an infinite complex number": lambda y: (
        y + torch.view_as_real(torch.full_like(y, complex(0, float("inf")), dtype=torch.complex64))[..., 1]
    ),
    "Fourier transforms": lambda y: torch.fft.irfft2(torch.fft.rfft2(y), s=(2, 4)),
    "norms": lambda y: torch.linalg.vector_norm(y, dim=-1, keepdim=True) + torch.linalg.norm(y),
    "functions that go by other names": lambda y: F.logsigmoid(y) + F.threshold(y, 0.0, 1.0) + torch.arctan(y),
    "a constant": lambda y: y * torch.as_tensor([1.0, 2.0, 3.0, 4.0]) + torch.eye(4)[0],
    "attention": lambda y: F.multi_head_attention_forward(
        y[:, None], y[:, None], y[:, None], 4, 2, torch.ones(12, 4), None, None, None, False, 0.0, torch.eye(4), None
    )[0][:, 0],
    "a loss": lambda y: F.cross_entropy(y, torch.zeros(len(y), dtype=torch.long)),
    "special functions": lambda y: torch.special.expit(y) + torch.nan_to_num(y),
    "pools": lambda y: torch.avg_pool1d(y, 2),
    "deviations": lambda y: torch.std_mean(y, -1)[0],
    "parts of complex numbers": lambda y: (torch.view_as_complex(y.reshape(-1, 2, 2)) * 1j).real,
}


class Ends(nn.Module):
    """Ends in an operation without an integer form."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 4), kind

    def forward(self, x):
        return FLOAT_STEPS[self.kind](self.layer(x))


@clause("STA-STORED")
@pytest.mark.parametrize("kind", FLOAT_STEPS)
def test_networks_with_functions_of_torch_are_saved_and_loaded(kind, tmp_path):
    model = seeded(lambda: Ends(kind))
    for q in (quantspec.quantize(model, [inputs()]), quantspec.quantize_dynamic(model, example=inputs())):
        q.save(tmp_path / "q")
        loaded = quantspec.load(tmp_path / "q")
        assert torch.equal(loaded(inputs()), q(inputs()))


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x).frexp()[0]

    q = quantspec.quantize(seeded(Model), [inputs()])
    with pytest.raises(quantspec.UnsupportedError, match="step 'frexp': a file may not name the method 'frexp'"):
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


def test_every_plain_module_comes_back_as_it_was():
    examples = [
        nn.LayerNorm((3, 4), bias=False), nn.LayerNorm(3, elementwise_affine=False), nn.RMSNorm(4),
        nn.GroupNorm(2, 4, affine=False), nn.BatchNorm2d(3, momentum=None),
        nn.BatchNorm1d(3, affine=False, track_running_stats=False), nn.InstanceNorm2d(3, affine=True),
        nn.Embedding(4, 3, padding_idx=1), nn.EmbeddingBag(4, 3, mode="max"), nn.Linear(3, 2, bias=False),
        nn.Bilinear(2, 3, 4), nn.Conv2d(4, 4, (1, 3), padding="same", groups=2, padding_mode="reflect"),
        nn.ConvTranspose1d(4, 2, 3, stride=2),
        nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=3, vdim=5, batch_first=True),
        nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2), nn.GRU(3, 4, bias=False), nn.RNN(3, 4, nonlinearity="relu"),
        nn.GRUCell(3, 4), nn.PReLU(3), nn.GELU("tanh"), nn.Softmax(1), nn.MaxPool2d(2, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3), nn.AdaptiveAvgPool2d((None, 2)), nn.AdaptiveMaxPool2d(2),
        nn.LPPool2d(2, 3), nn.Upsample(scale_factor=2.0, mode="bilinear"), nn.Fold((4, 5), (2, 2)), nn.Flatten(),
        nn.Unflatten(1, (2, 3)), nn.Identity(),
        nn.ConstantPad2d(1, 2.5), nn.Hardtanh(-2, 3), nn.Threshold(0.5, 1.0), nn.CosineSimilarity(0), nn.Dropout(0.25),
    ]  # fmt: skip
    for module in (m.eval() for m in examples):
        writer = storage_file.Writer()
        row = {"kind": "module", "target": "m"} | callables.write_module(module, "m", writer)
        row = json.loads(storage_file.text(row))
        assert "class" in row, module
        (made,) = callables.read_callables([row], storage_file.Reader(writer.tensors), {}).values()
        assert repr(made) == repr(module) and not made.training
        states = zip(made.state_dict().values(), module.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in states)


def test_functions_that_torch_makes_at_import_can_be_pickled():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = nn.functional.adaptive_max_pool2d(self.layer(x), 2)
            return y, nn.functional.max_pool2d(x, 2, return_indices=True)

    q = quantspec.quantize(seeded(Model), [inputs(2, (3, 8, 8))])
    x = inputs(2, (3, 8, 8), 2)
    for twin in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert torch.equal(twin(x)[0], q(x)[0]) and torch.equal(twin(x)[1][1], q(x)[1][1])
