"""Training and its cache, where more than the weights is looked at."""

import io
import os
import sys

import pytest
import torch
from torch import nn

from quantspec import FormatError
from quantspec.tutorial import data, models


@pytest.fixture
def small():
    d = data.digits()
    return data.Dataset("digits", d.x_train[:96], d.y_train[:96], d.x_test[:50], d.y_test[:50])


def after(dataset, **options):
    model = models.untrained(64, 0)
    models.train(model, dataset, **(dict(seed=0, epochs=1, progress=False) | options))
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("setting", [dict(seed=1), dict(epochs=2), dict(batch_size=32), dict(learning_rate=1e-3)])
def test_every_setting_of_the_training_counts(setting, small):
    assert not all(torch.equal(a, b) for a, b in zip(after(small), after(small, **setting), strict=True))


def test_training_shows_every_image_once_an_epoch_with_its_label_in_changing_order(small, monkeypatch):
    batches, cross_entropy = [], nn.functional.cross_entropy
    x = small.x_train.clone()
    x[:, 0, 0, 0] = torch.arange(96)  # numbers the images, so that a batch tells which ones it holds

    class Watched(models.MLP):
        def forward(self, x):
            batches.append(x[:, 0, 0, 0].int().tolist())
            return super().forward(x)

    def checked(scores, labels):
        assert torch.equal(labels, small.y_train[batches[-1]])
        return cross_entropy(scores, labels)

    monkeypatch.setattr(nn.functional, "cross_entropy", checked)
    numbered = data.Dataset("digits", x, small.y_train, small.x_test, small.y_test)
    models.train(Watched(64), numbered, seed=3, epochs=2, batch_size=40, progress=False)
    assert [len(batch) for batch in batches] == [40, 40, 16] * 2
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert sorted(first) == sorted(second) == list(range(96)) and first != second and first != sorted(first)


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_progress_bar_is_shown_on_terminals_unless_unwanted(terminal, progress, shown, small, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    after(small, progress=progress)
    assert ("train" in stream.getvalue()) == (stream.getvalue() != "") == shown


def test_other_epochs_have_a_cache_file_of_their_own(small, tmp_path):
    for epochs in (1, 2):
        models.trained(small, cache=tmp_path, epochs=epochs, progress=False)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_an_error_that_names_the_cache_and_leaves_nothing(small, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    expected = f"^{tmp_path}: the cache of trained networks cannot be written: No space left on device$"
    with pytest.raises(OSError, match=expected):
        models.trained(small, cache=tmp_path, epochs=1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_training_that_breaks_off_leaves_no_file_open(error, small, tmp_path, monkeypatch):
    opened = []

    def train(*_, **__):
        (partial,) = tmp_path.iterdir()
        opened.append(partial)
        raise error

    class Watched:
        def __init__(self, **options):
            self.file = real(**options)
            files.append(self.file)

        def __enter__(self):
            return self.file.__enter__()

        def __exit__(self, *why):
            return self.file.__exit__(*why)

    files, real = [], models.tempfile.NamedTemporaryFile
    monkeypatch.setattr(models.tempfile, "NamedTemporaryFile", Watched)
    monkeypatch.setattr(models, "train", train)
    with pytest.raises(error):
        models.trained(small, cache=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == [] and len(opened) == 1
    assert [file.closed for file in files] == [True]


def test_a_folder_in_place_of_a_cache_file_is_an_error_that_names_it(small, tmp_path):
    models.trained(small, cache=tmp_path, epochs=1, progress=False)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(FormatError, match=f"{path}: unreadable.*delete it to train again"):
        models.trained(small, cache=tmp_path, epochs=1, progress=False)
