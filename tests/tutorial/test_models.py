"""The tutorial's network, its training, and the cache of trained networks."""

import pytest
import torch
from safetensors.torch import save_file

from quantspec import FormatError
from quantspec.tutorial import data, models


@pytest.fixture
def small():
    """A few digits: enough to train on for an instant."""
    d = data.digits()
    return data.Dataset("digits", d.x_train[:200], d.y_train[:200], d.x_test[:50], d.y_test[:50])


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_network_is_the_tutorials():
    model = models.MLP()
    assert [tuple(p.shape) for p in model.parameters()] == [(100, 784), (100,), (100, 100), (100,), (10, 100), (10,)]
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    assert models.MLP(64)(torch.zeros(0, 1, 8, 8)).shape == (0, 10)


def test_equal_seeds_give_equal_weights_and_leave_the_global_state_alone(small):
    before = torch.random.get_rng_state()
    networks = []
    for seed in (0, 0, 1):
        model = models.untrained(64, seed)
        models.train(model, small, seed=seed, epochs=2, progress=False)
        assert not model.training
        networks.append(weights(model))
    assert torch.equal(networks[0], networks[1]) and not torch.equal(networks[0], networks[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_learns(model, dataset):
    from quantspec.tutorial.tutorial import predictions

    accuracy = (predictions(model, dataset.x_test) == dataset.y_test.numpy()).mean()
    assert accuracy >= (0.94 if dataset.name == "mnist" else 0.9)


def test_a_trained_network_comes_from_the_cache(small, tmp_path, monkeypatch):
    first = models.trained(small, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(models, "train", lambda *_, **__: pytest.fail("trains again"))
    second = models.trained(small, cache=tmp_path, progress=False)
    assert torch.equal(weights(first), weights(second)) and not second.training


def test_other_data_seeds_and_settings_are_other_networks(small, tmp_path, monkeypatch):
    models.trained(small, cache=tmp_path, progress=False)
    models.trained(small, cache=tmp_path, seed=1, progress=False)
    flipped = data.Dataset("digits", small.x_train, small.y_train.flip(0), small.x_test, small.y_test)
    models.trained(flipped, cache=tmp_path, progress=False)
    monkeypatch.setattr(models, "LEARNING_RATE", 1e-2)
    models.trained(small, cache=tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 4


def test_the_cache_folder_can_be_named(small, tmp_path, monkeypatch):
    monkeypatch.setenv("QUANTSPEC_CACHE", str(tmp_path / "named"))
    models.trained(small, progress=False)
    monkeypatch.delenv("QUANTSPEC_CACHE")
    monkeypatch.setattr(models.Path, "home", lambda: tmp_path / "home")
    models.trained(small, progress=False)
    folders = tmp_path / "named", tmp_path / "home" / ".cache" / "quantspec"
    assert [len(list(folder.iterdir())) for folder in folders] == [1, 1]


@pytest.mark.parametrize("spoil", ["torn", "empty", "foreign", "other network", "other key"])
def test_a_cache_file_that_is_not_the_network_is_refused(small, tmp_path, spoil):
    models.trained(small, cache=tmp_path, progress=False)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if spoil in ("torn", "empty"):
        path.write_bytes(whole[: len(whole) // 2] if spoil == "torn" else b"")
    elif spoil == "foreign":
        path.write_bytes(b"PK\x03\x04 something else" * 99)
    else:
        with models.safe_open(path, "pt") as file:
            metadata = file.metadata()
        network = models.MLP(64) if spoil == "other key" else models.MLP(63)
        save_file(network.state_dict(), path, metadata | ({"key": "0" * 64} if spoil == "other key" else {}))
    with pytest.raises(FormatError, match=f"{path.name}: .*delete it to train again"):
        models.trained(small, cache=tmp_path, progress=False)


def test_a_cache_that_cannot_be_written_is_refused_before_training(small, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "train", lambda *_, **__: pytest.fail("trains although nothing can be kept"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/folder: the cache of trained networks cannot be written"):
        models.trained(small, cache=tmp_path / "file" / "folder", progress=False)


def test_nothing_half_written_stays_behind(small, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "train", fail)
    with pytest.raises(KeyboardInterrupt):
        models.trained(small, cache=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
