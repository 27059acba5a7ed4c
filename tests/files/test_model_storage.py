"""Models whose parts are networks, in files: loaded into a model of the same modules they compute the same bits."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from torch import nn

import networks
import quantspec as qs
from evidence import clause
from quantspec.module.coded import Coded, held
from quantspec.storage import file as storage_file


class Block(nn.Module):
    """Python that decides by data, in two ways, around layers of several kinds."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.norm = nn.Embedding(10, 8), nn.LSTM(8, 8, batch_first=True), nn.LayerNorm(8)
        self.head, self.gain = nn.Linear(8, 10, bias=False), nn.Parameter(torch.ones(8))
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.full((8,), 0.25), persistent=False)

    def forward(self, words, flip=False):
        x = self.lstm(self.embed(words))[0]
        x = self.norm(x) * self.gain + self.shift
        x = x.flip(1) if flip or x.sum() > 1e9 else x
        return {"scores": self.head(x)}


WORDS = torch.arange(12).reshape(2, 6) % 10


def blocks():
    model = networks.seeded(Block)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the gain is in float
        example = qs.quantize_dynamic(model, example=WORDS)
        return model, [qs.quantize(model, [WORDS]), qs.quantize_dynamic(model), example]


def tensors_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict(keep_vars=True).items()}


def equal(a, b):
    return torch.equal(a["scores"], b["scores"]) if isinstance(a, dict) else torch.equal(a, b)


@clause("STA-MODEL-STORED", "STA-COPY")
def test_ways_ties_buffers_and_hooks_come_back():
    model, made = blocks()
    for q in made:
        y = q(WORDS)
        for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q)), q.run_on("reference")):
            assert equal(twin(WORDS), y) and twin.nbytes == q.nbytes and twin.report == q.report
        twin = copy.deepcopy(q)
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.data.zero_()
        assert equal(q(WORDS), y) and not equal(twin(WORDS), y)


FRESH = """
import sys
import torch
import quantspec
from test_model_storage import Block, WORDS
for index in range(3):
    y = torch.load(f"{sys.argv[1]}/{index}.io")
    q = quantspec.load(f"{sys.argv[1]}/{index}.safetensors", model=Block().eval())
    assert torch.equal(q(WORDS)["scores"], y), index
    print(index, q.nbytes)
"""


@clause("STA-MODEL-STORED")
def test_it_computes_the_same_bits_in_a_fresh_process(tmp_path):
    _, made = blocks()
    for index, q in enumerate(made):
        q.save(tmp_path / f"{index}.safetensors")
        torch.save(q(WORDS)["scores"], tmp_path / f"{index}.io")
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.stdout.splitlines() == [f"{index} {q.nbytes}" for index, q in enumerate(made)], ran.stderr


@clause("STA-MODEL-STORED")
def test_a_call_that_calibration_did_not_have_is_the_same_too(tmp_path):
    model, made = blocks()
    for q in made:
        q.save(tmp_path / "q")
        loaded = qs.load(tmp_path / "q", model=networks.seeded(Block, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert equal(loaded(WORDS[:1, :3], flip=True), q(WORDS[:1, :3], flip=True))


@clause("STA-OTHER-MODEL")
def test_another_model_is_refused_by_what_is_different(tmp_path):
    _, (q, *_) = blocks()
    q.save(tmp_path / "q")
    with pytest.raises(ValueError, match="^model: the file holds networks for parts of a .*Block, but no Python; pass"):
        qs.load(tmp_path / "q")
    with pytest.raises(TypeError, match="^model: expected a torch.nn.Module, got type"):
        qs.load(tmp_path / "q", model=Block)

    def changed(change):
        model = networks.seeded(Block)
        change(model)
        return model.eval()

    def replace(name, module):
        return lambda model: setattr(model, name, module)

    untied = nn.Parameter(torch.zeros(10, 8))
    cases = {
        "expected norm as a torch.nn.*LayerNorm as in the file, got norm as a torch.nn.*Identity":
            replace("norm", nn.Identity()),
        "expected head as .*Linear as in the file, got head as .*Linear with 1 hooks":
            lambda model: model.head.register_forward_hook(lambda *given: None),
        r"'gain' is torch.float32\[4\], in the file it is torch.float32\[8\]":
            replace("gain", nn.Parameter(torch.ones(4))),
        "'head.bias' is torch.float32.*, in the file it is missing": replace("head", nn.Linear(8, 10)),
        "expected 5 modules as in the file, got 6": replace("more", nn.ReLU()),
        "'shift' is torch.float64.*, in the file": replace("shift", torch.zeros(8).double()),
    }  # fmt: skip
    for message, change in cases.items():
        with pytest.raises(ValueError, match=f"^model: {message}"):
            qs.load(tmp_path / "q", model=changed(change))
    assert equal(qs.load(tmp_path / "q", model=changed(lambda m: setattr(m.head, "weight", untied)))(WORDS), q(WORDS))


@clause("STA-OTHER-MODEL", "STA-MODEL-STORED")
def test_weights_that_were_different_do_not_become_one(tmp_path):
    class Two(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.first, self.second, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.a.bias = self.b.bias if tied else self.a.bias

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 1e9 else self.second(torch.relu(self.first(x)) * 2)

    x = networks.inputs(5, (8,))
    q = qs.quantize_dynamic(networks.seeded(lambda: Two(False)), exclude=["a", "b"])
    q.save(tmp_path / "q")
    assert torch.equal(qs.load(tmp_path / "q", model=networks.seeded(lambda: Two(False), 1))(x), q(x))
    with pytest.raises(ValueError, match="^model: .[ab].bias. is the same tensor as another one, but in the"):
        qs.load(tmp_path / "q", model=networks.seeded(lambda: Two(True)))


@clause("STA-COPY")
def test_a_state_dict_makes_a_model_of_parts_another_one():
    for index in range(3):
        x, mine = WORDS, blocks()[1][index]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other_model = networks.seeded(Block, 3)
            other = (
                qs.quantize(other_model, [WORDS]), qs.quantize_dynamic(other_model),
                qs.quantize_dynamic(other_model, example=WORDS),
            )[index]  # fmt: skip
        assert not equal(other(x), mine(x))
        other.load_state_dict(mine.state_dict())
        assert equal(other(x), mine(x)) and other.nbytes == mine.nbytes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert equal(other(x[:, :3], flip=True), mine(x[:, :3], flip=True))
    with pytest.raises(ValueError, match="^state_dict: expected the .* of this"):
        other.load_state_dict(blocks()[1][0].state_dict(), strict=False)


@clause("STA-FORMAT")
def test_every_damage_is_an_error(tmp_path):
    model, (q, *_) = blocks()
    q.save(tmp_path / "q")
    data = (tmp_path / "q").read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        at = draw.randrange(len(data))
        (tmp_path / "damaged").write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        try:
            loaded = qs.load(tmp_path / "damaged", model=model)
        except qs.FormatError:
            continue
        assert equal(loaded(WORDS), q(WORDS))


def forged(q, change):
    """A file with a changed content and the checksum that belongs to it."""
    header, tensors = whole(storage_file.packed(q.stored(), q.report.as_tuples()))
    content = {"report": header["report"], "model": header["model"]}
    change(content, tensors)
    head = {"format": "quantspec", "version": storage_file.VERSION, "sha256": storage_file.digest(content, tensors)}
    return safetensors.torch.save(tensors, {"quantspec": storage_file.text(head | content)})


def whole(data: bytes):
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["quantspec"]), safetensors.torch.load(data)


def part(key, value):
    return lambda content, tensors: content["model"]["parts"][0].__setitem__(key, value)


FORGERIES = {
    "a part of no module": (part("path", "nowhere"), "'nowhere' is not a module"),
    "a way of no tensors": (
        lambda c, t: c["model"]["parts"][0]["way"].update(names=[], constants=[]), "expected a way with 1 tensors"
    ),
    "a way with too many names": (
        lambda c, t: c["model"]["parts"][0]["way"]["names"].append("more"), "expected a name for each tensor"
    ),
    "a constant of another kind": (
        lambda c, t: c["model"]["parts"][0]["way"]["constants"].append(["int", "2"]), "expected a int, got '2'"
    ),
    "a constant of no kind": (
        lambda c, t: c["model"]["parts"][0]["way"]["constants"].append(["type", "2"]), "expected a kind of constant"
    ),
    "a part twice": (lambda c, t: c["model"]["parts"].append(c["model"]["parts"][0]), "two networks for the same"),
    "an attribute that is a method": (
        lambda c, t: c["model"]["attributes"].update(forward=next(iter(c["model"]["state"].values()))),
        "'forward' is not an attribute",
    ),
    "codes of no layer": (
        lambda c, t: t.update(odd=torch.zeros(10, 8, dtype=torch.int8))
        or c["model"]["coded"]["embed.weight"].update(codes="odd"), "the codes of 'embed.weight' belong to no layer",
    ),
    "codes in an unknown form": (
        lambda c, t: c["model"]["coded"]["embed.weight"].update(form="other"), "unknown form 'other'"
    ),
    "scales of another number": (
        lambda c, t: t.update(odd=torch.zeros(3)) or c["model"]["coded"]["embed.weight"].update(scale="odd"),
        "expected int8 codes, and a float32 scale",
    ),
    "a tensor of nothing": (lambda c, t: t.update(odd=torch.zeros(3)), "tensor 'odd' is not used"),
    "a module that is no row": (lambda c, t: c["model"]["modules"].append(["x"]), "expected paths with classes"),
    "a report of no rows": (lambda c, t: c["report"]["rows"].append(["x"]), "^.*report: expected a path"),
    "a key too many": (lambda c, t: c["model"].update(code="import os"), "expected the keys"),
}  # fmt: skip


@clause("STA-FORMAT")
@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_file_is_refused(name, tmp_path):
    change, message = FORGERIES[name]
    model, (q, *_) = blocks()
    (tmp_path / "q").write_bytes(forged(q, change))
    with pytest.raises(qs.FormatError, match=message):
        qs.load(tmp_path / "q", model=model)


def test_a_file_of_one_network_takes_its_modules_from_a_model(tmp_path):
    from test_storage import Around

    model = networks.seeded(Around)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = qs.quantize(model, [networks.inputs()])
    q.save(tmp_path / "q")
    loaded = qs.load(tmp_path / "q", model=networks.seeded(Around, 1))
    assert torch.equal(loaded(networks.inputs()), q(networks.inputs()))


@clause("STA-CODED")
def test_files_hold_a_tied_weight_once_and_as_codes(tmp_path):
    _, (q, *_) = blocks()
    q.save(tmp_path / "q")
    _, tensors = whole((tmp_path / "q").read_bytes())
    largest = [tensor for tensor in tensors.values() if tensor.dtype == torch.float32 and tensor.ndim >= 2]
    assert largest == [] and sum(t.dtype == torch.int8 for t in tensors.values()) == 4
    coded = [name for name, _, _, tensor in held(q.python) if isinstance(tensor, Coded)]
    assert coded == ["embed.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight"]


@dataclass
class Scores:
    """What a model gives."""

    values: torch.Tensor
    most: torch.Tensor | None = None


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Gives(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(8, 4), kind

    def forward(self, x):
        y = self.layer(x)
        return Scores(y, y.max()) if self.kind == "scores" else Pair(y, y + 1) if self.kind == "pair" else y.sort(-1)


@clause("STA-MODEL-STORED", "STA-STORED")
@pytest.mark.parametrize("kind", ["scores", "pair", "sorted"])
def test_outputs_keep_their_types_in_files_whose_library_is_that_of_the_model(kind, tmp_path):
    model, x = networks.seeded(lambda: Gives(kind)), networks.inputs(5, (8,))
    q = qs.quantize(model, [x])
    q.save(tmp_path / "q")
    another = networks.seeded(lambda: Gives(kind), 1)
    loaded = qs.load(tmp_path / "q", model=another)
    y, same = q(x), loaded(x)
    fields = {"scores": ("values", "most"), "pair": ("first", "second"), "sorted": ("values", "indices")}[kind]
    assert type(y) is type(same) is type(model(x))
    assert all(torch.equal(getattr(y, name), getattr(same, name)) for name in fields)
    for other in (None, nn.Sequential(nn.Linear(8, 4)).eval()):
        if kind == "sorted":
            assert torch.equal(qs.load(tmp_path / "q", model=other)(x)[0], y[0])
        else:
            with pytest.raises(ValueError, match="^model: the file names test_model_storage.*; pass"):
                qs.load(tmp_path / "q", model=other)


class Times(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, n=None, mode="sum"):
        y = self.layer(x)
        return y if n is None else y * n


@pytest.mark.parametrize("dynamic", [False, True])
def test_arguments_that_are_no_tensors_belong_to_a_saved_network(dynamic, tmp_path):
    def quantize(model, given):
        return qs.quantize_dynamic(model, example=given) if dynamic else qs.quantize(model, [given])

    model, x, path = networks.seeded(Times), torch.randn(3, 4), tmp_path / "q.safetensors"
    given = {"x": x, "n": 3}
    q = quantize(model, given)
    q.save(path)
    loaded = qs.load(path, model=networks.seeded(Times))
    assert torch.equal(loaded(**given), q(**given))
    with pytest.warns(UserWarning, match="it is called with arguments or sizes that did not occur in calibration"):
        assert torch.equal(loaded(x), q(x))
    # A default that is given is no other call than one without it, and the file holds the network alone.
    q = quantize(model, {"x": x, "n": None, "mode": "sum"})
    q.save(path)
    loaded = qs.load(path)
    loaded.save(path)
    for alone in (loaded, qs.load(path)):
        for y in (alone(x), alone(x, n=None), alone(x, None, "sum"), alone(mode="sum", x=x)):
            assert torch.equal(y, q(x))
        for args, kwargs in (((x, 3), {}), ((x,), {"n": 3}), ((x, None, "mean"), {}), ((x,), {"n": x})):
            with pytest.raises(TypeError, match="the network was made for (n=None|mode='sum'), got"):
                alone(*args, **kwargs)
        with pytest.raises(TypeError, match="expected at most 3 arguments, x, n, mode, got 4"):
            alone(x, None, "sum", 1)
