"""The tutorial's network: its form, its training, what it predicts, and the cache of trained networks."""

import dataclasses
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import nn

from quantspec import data, models
from quantspec.errors import FormatError

SHAPES = {
    "fc1.weight": (100, 64),
    "fc1.bias": (100,),
    "fc2.weight": (100, 100),
    "fc2.bias": (100,),
    "fc3.weight": (10, 100),
    "fc3.bias": (10,),
}


@pytest.fixture(scope="module")
def few():
    """A handful of digits: 96 to train on and 50 to test on."""
    all_ = data.digits()
    return data.Dataset("digits", all_.x_train[:96], all_.y_train[:96], all_.x_test[:50], all_.y_test[:50])


@pytest.fixture(autouse=True)
def no_cache_of_the_user(tmp_path, monkeypatch):
    """No test can reach a cache outside its own folder."""
    monkeypatch.delenv("QUANTSPEC_CACHE", raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.fixture
def no_training(monkeypatch):
    def train(*_, **__):
        pytest.fail("a network was trained")

    return lambda: monkeypatch.setattr(models, "train", train)


def equal(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def after(dataset, **options) -> models.MLP:
    model = models.untrained(64, 0)
    models.train(model, dataset, **(dict(seed=0, epochs=1, progress=False) | options))
    return model


def once(dataset, cache, **options) -> models.MLP:
    return models.trained(dataset, cache=cache, epochs=1, progress=False, **options)


def test_the_network_has_three_linear_layers_with_relu_between():
    model = models.MLP()
    assert [(name, type(module)) for name, module in model.named_children()] == [
        ("fc1", nn.Linear),
        ("relu1", nn.ReLU),
        ("fc2", nn.Linear),
        ("relu2", nn.ReLU),
        ("fc3", nn.Linear),
    ]
    assert [tuple(layer.weight.shape) for layer in (model.fc1, model.fc2, model.fc3)] == [(100, 784), (100, 100), (10, 100)]
    assert {name: tuple(t.shape) for name, t in models.MLP(64).state_dict().items()} == SHAPES


def test_the_network_applies_its_layers_in_order_to_flattened_images():
    model, x = models.untrained(64, 0), torch.linspace(-1, 1, 3 * 64).reshape(3, 1, 8, 8)
    y = x.reshape(3, 64)
    for weight, bias in ((model.fc1.weight, model.fc1.bias), (model.fc2.weight, model.fc2.bias)):
        y = nn.functional.linear(y, weight, bias)
        y = torch.where(y > 0, y, torch.zeros_like(y))
    y = nn.functional.linear(y, model.fc3.weight, model.fc3.bias)
    assert torch.equal(model(x), y)
    assert torch.equal(model(x.reshape(3, 64)), y)


def test_equal_seeds_give_equal_weights_whatever_the_global_random_state(few):
    first = after(few)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(999)
        assert equal(models.untrained(64, 0), models.untrained(64, 0))
        assert equal(after(few), first)


def test_other_seeds_give_other_weights_and_another_order_of_the_images(few):
    assert not equal(models.untrained(64, 0), models.untrained(64, 1))
    assert not equal(after(few), after(few, seed=1))


@pytest.mark.parametrize("setting", [dict(epochs=2), dict(batch_size=32), dict(learning_rate=1e-3)])
def test_every_setting_of_the_training_counts(setting, few):
    assert not equal(after(few), after(few, **setting))


def test_the_settings_by_default_are_those_that_stand_in_the_module(few):
    said = after(few, epochs=models.EPOCHS, batch_size=models.BATCH_SIZE, learning_rate=models.LEARNING_RATE)
    model = models.untrained(64, 0)
    models.train(model, few, seed=0, progress=False)
    assert equal(model, said)


def test_torchs_global_random_state_is_left_alone(few, tmp_path):
    state = torch.get_rng_state()
    models.untrained(64, 5)
    after(few)
    once(few, tmp_path)
    once(few, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_shows_every_image_once_an_epoch_with_its_label_in_changing_order(few, monkeypatch):
    """The first pixel numbers the images, so that a batch tells which ones it holds."""
    x = few.x_train.clone()
    x[:, 0, 0, 0] = torch.arange(96)
    numbered = dataclasses.replace(few, x_train=x)
    batches, cross_entropy = [], nn.functional.cross_entropy

    class Watched(models.MLP):
        def forward(self, x):
            batches.append(x[:, 0, 0, 0].int().tolist())
            return super().forward(x)

    def checked(scores, labels):
        assert torch.equal(labels, few.y_train[batches[-1]])
        return cross_entropy(scores, labels)

    monkeypatch.setattr(nn.functional, "cross_entropy", checked)
    models.train(Watched(64), numbered, seed=3, epochs=2, batch_size=40, progress=False)
    assert [len(batch) for batch in batches] == [40, 40, 16] * 2
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(96))
    assert len({tuple(order) for order in (first, second, range(96))}) == 3


def test_training_changes_every_tensor_lowers_the_loss_and_ends_in_evaluation_mode(few):
    before, model = models.untrained(64, 0), after(few, epochs=5)
    old, new = before.state_dict(), model.state_dict()
    assert [name for name in old if torch.equal(old[name], new[name])] == []
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(network(few.x_train), few.y_train).item() for network in (before, model)]
    assert losses[1] < losses[0] / 2
    assert not model.training


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "progress", "shown"), [(Terminal, True, True), (Terminal, False, False), (io.StringIO, True, False)])
def test_a_progress_bar_is_shown_on_terminals_unless_unwanted(stream, progress, shown, few, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream())
    after(few, progress=progress)
    assert ("train" in sys.stderr.getvalue()) == shown
    assert (sys.stderr.getvalue() != "") == shown


def test_a_prediction_is_the_class_with_the_largest_score():
    scores = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.0], [-3.0, -2.0, -1.0], [0.5, 0.75, 0.25], [9.0, 8.0, 7.0]])
    found = models.predictions(nn.Identity(), scores)
    assert found.dtype == torch.int64
    assert found.tolist() == [1, 0, 2, 1, 0]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (1000, [5])])
def test_predictions_are_made_in_batches_without_gradients_and_keep_their_order(batch_size, sizes):
    seen = []

    class Watched(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            assert not torch.is_grad_enabled()
            return x

    assert models.predictions(Watched(), torch.eye(5).flip(0), batch_size).tolist() == [4, 3, 2, 1, 0]
    assert seen == sizes
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("labels", "share"), [([0, 1, 2, 3], 1.0), ([0, 1, 2, 0], 0.75), ([1, 2, 3, 3], 0.25), ([3, 2, 1, 0], 0.0)])
def test_accuracy_is_the_share_of_right_predictions(labels, share):
    assert models.accuracy(nn.Identity(), torch.eye(4), torch.tensor(labels)) == share


def test_the_trained_network_knows_the_test_images(model, dataset):
    assert models.accuracy(model, dataset.x_test, dataset.y_test) >= {"mnist": 0.94, "digits": 0.95}[dataset.name]


def test_a_trained_network_comes_from_the_cache_the_second_time(few, tmp_path, no_training):
    first = once(few, tmp_path / "new" / "cache")
    no_training()
    second = once(few, tmp_path / "new" / "cache")
    assert equal(first, second)
    assert equal(first, after(few))
    assert not first.training
    assert not second.training
    assert all(p.requires_grad for p in second.parameters())


def test_a_cache_file_says_what_it_is(few, tmp_path):
    model = once(few, tmp_path)
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"format", "key"}
    assert metadata["format"] == models.FORMAT
    assert re.fullmatch("[0-9a-f]{64}", metadata["key"])
    assert path.name == f"mlp-digits-{metadata['key'][:12]}.safetensors"
    tensors = load_file(path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == SHAPES
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in tensors.items())


def test_another_seed_other_epochs_other_settings_and_other_data_have_cache_files_of_their_own(few, tmp_path, monkeypatch):
    once(few, tmp_path)
    once(few, tmp_path, seed=1)
    models.trained(few, cache=tmp_path, epochs=2, progress=False)
    once(dataclasses.replace(few, y_test=few.y_test.flip(0)), tmp_path)
    for name, value in (("BATCH_SIZE", 32), ("LEARNING_RATE", 1e-3), ("HIDDEN", 50)):
        with monkeypatch.context() as patch:
            patch.setattr(models, name, value)
            once(few, tmp_path)
    paths = list(tmp_path.iterdir())
    assert len(paths) == 7
    assert len({path.name for path in paths}) == len({path.read_bytes()[8:] for path in paths}) == 7


def test_the_cache_is_the_argument_else_the_variable_else_below_the_home_folder(few, tmp_path, monkeypatch):
    def files(folder):
        return len(list(folder.glob("*.safetensors")))

    home, variable, argument = tmp_path / "home" / ".cache" / "quantspec", tmp_path / "variable", tmp_path / "argument"
    once(few, None)
    assert files(home) == 1
    monkeypatch.setenv("QUANTSPEC_CACHE", str(variable))
    once(few, None)
    assert files(variable) == 1
    once(few, str(argument), seed=1)
    assert [files(folder) for folder in (home, variable, argument)] == [1, 1, 1]
    monkeypatch.setenv("QUANTSPEC_CACHE", "")
    once(few, None, seed=2)
    assert [files(folder) for folder in (home, variable, argument)] == [2, 1, 1]


def rewritten(path: Path, *, tensors=None, **metadata) -> bytes:
    """The cache file with other metadata or tensors."""
    with safe_open(path, "pt") as file:
        old = file.metadata()
    return save(load_file(path) if tensors is None else tensors(load_file(path)), old | metadata)


def without_metadata(path: Path) -> bytes:
    return save(load_file(path))


TORN = "unreadable, truncated or no safetensors file"
ANOTHER = "holds another network"
BAD = {
    "empty": (lambda path: b"", TORN),
    "cut in its first number": (lambda path: path.read_bytes()[:5], TORN),
    "cut in its header": (lambda path: path.read_bytes()[:100], TORN),
    "cut in half": (lambda path: path.read_bytes()[: path.stat().st_size // 2], TORN),
    "cut by a byte": (lambda path: path.read_bytes()[:-1], TORN),
    "longer by a byte": (lambda path: path.read_bytes() + b"\0", TORN),
    "text": (lambda path: b"this is no network\n" * 40, TORN),
    "JSON": (lambda path: json.dumps(dict(weights=[1, 2, 3])).encode(), TORN),
    "zeros": (lambda path: bytes(2000), TORN),
    "somebody's tensors": (without_metadata, ANOTHER),
    "another format": (lambda path: rewritten(path, format="quantspec-network-0"), ANOTHER),
    "another key": (lambda path: rewritten(path, key="0" * 64), ANOTHER),
    "a key that only begins alike": (lambda path: rewritten(path, key=path.stem.split("-")[-1] + "0" * 52), ANOTHER),
    "a tensor missing": (lambda path: rewritten(path, tensors=lambda t: {k: v for k, v in t.items() if k != "fc2.bias"}), ANOTHER),
    "a tensor too many": (lambda path: rewritten(path, tensors=lambda t: t | {"fc4.bias": torch.zeros(10)}), ANOTHER),
    "another shape": (lambda path: rewritten(path, tensors=lambda t: t | {"fc1.weight": torch.zeros(100, 784)}), ANOTHER),
    "as many numbers in another shape": (lambda path: rewritten(path, tensors=lambda t: t | {"fc3.weight": torch.zeros(100, 10)}), ANOTHER),
    "another type": (lambda path: rewritten(path, tensors=lambda t: t | {"fc3.bias": torch.zeros(10, dtype=torch.float64)}), ANOTHER),
}


@pytest.mark.parametrize("what", BAD)
def test_a_cache_file_that_is_not_this_network_is_an_error_that_names_it_and_is_left_as_it_is(what, few, tmp_path, no_training):
    once(few, tmp_path)
    (path,) = tmp_path.iterdir()
    make, complaint = BAD[what]
    content = make(path)
    path.write_bytes(content)
    no_training()
    with pytest.raises(FormatError) as raised:
        once(few, tmp_path)
    assert str(raised.value).startswith(f"{path}: {complaint}")
    assert str(raised.value).endswith("; delete it to train again")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_cache_file_of_another_seed_under_this_name_is_an_error(few, tmp_path):
    once(few, tmp_path / "a")
    once(few, tmp_path / "b", seed=1)
    (here,), (other,) = (list((tmp_path / name).iterdir()) for name in "ab")
    other.replace(here)
    with pytest.raises(FormatError, match=f"{re.escape(str(here))}: holds another network"):
        once(few, tmp_path / "a")


def test_a_folder_in_place_of_a_cache_file_is_an_error_that_names_it(few, tmp_path):
    once(few, tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(FormatError, match=f"{re.escape(str(path))}: unreadable"):
        once(few, tmp_path)


def test_after_deleting_a_torn_cache_file_the_network_is_trained_again(few, tmp_path):
    first = once(few, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.unlink()
    assert equal(once(few, tmp_path), first)
    assert path.read_bytes() == content


def test_other_files_in_the_cache_are_none_of_its_business(few, tmp_path):
    (tmp_path / "mlp-digits-other.safetensors").write_bytes(b"torn")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert equal(once(few, tmp_path), after(few))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("below", [".", "cache", "a/b"])
def test_a_cache_that_cannot_be_made_is_an_error_that_names_it_before_any_training(below, few, tmp_path, no_training):
    file = tmp_path / "file"
    file.write_bytes(b"in the way")
    no_training()
    with pytest.raises(OSError, match=f"^{re.escape(str(file / below))}: the cache of trained networks cannot be written: "):
        once(few, file / below)
    assert file.read_bytes() == b"in the way"


def test_a_full_disk_is_an_error_that_names_the_cache_and_leaves_nothing(few, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=f"^{re.escape(str(tmp_path))}: the cache .* cannot be written: No space left on device$"):
        once(few, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_training_that_breaks_off_leaves_no_file_open_and_none_in_the_cache(error, few, tmp_path, monkeypatch):
    opened = []

    def train(*_, **__):
        (partial,) = tmp_path.iterdir()
        opened.append(partial)
        raise error

    monkeypatch.setattr(models, "train", train)
    with pytest.raises(error):
        once(few, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert [path.suffix for path in opened] == [""]


def test_a_cache_file_appears_only_when_it_is_whole(few, tmp_path, monkeypatch):
    seen, replace = [], os.replace

    def watched(partial, path):
        assert not Path(path).exists()
        assert Path(partial).parent == Path(path).parent
        seen.append(load_file(partial).keys())
        replace(partial, path)

    monkeypatch.setattr(os, "replace", watched)
    once(few, tmp_path)
    assert seen == [SHAPES.keys()]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
