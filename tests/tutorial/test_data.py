"""Data: where MNIST is looked for, what is refused, and the digits that stand in."""

import gzip
import http.client
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from quantspec import FormatError, torchvision_compat
from quantspec.tutorial import data


def idx(numbers, body: bytes) -> bytes:
    return struct.pack(f">{len(numbers)}I", *numbers) + body


def write_mnist(root, train=3, test=2, **spoiled):
    """A tiny MNIST in torchvision's layout; ``spoiled`` replaces files by other bytes, None removes one."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    files = {}
    for part, n in (("train", train), ("t10k", test)):
        pixels = bytes(range(256)) * (28 * 28 * n // 256 + 1)
        files[f"{part}_images"] = idx((0x803, n, 28, 28), pixels[: n * 28 * 28])
        files[f"{part}_labels"] = idx((0x801, n), bytes(i % 10 for i in range(n)))
    for key, content in (files | spoiled).items():
        part, kind = key.split("_")
        name = f"{part}-images-idx3-ubyte" if kind == "images" else f"{part}-labels-idx1-ubyte"
        if content is not None:
            (raw / name).write_bytes(content)
    return root


def test_mnist_is_read_and_normalised(tmp_path):
    d = data.load(write_mnist(tmp_path))
    assert (d.name, d.note) == ("mnist", "")
    assert d.x_train.shape == (3, 1, 28, 28) and d.x_test.shape == (2, 1, 28, 28)
    assert d.x_train.dtype == torch.float32 and d.y_train.dtype == torch.int64 and d.y_train.tolist() == [0, 1, 2]
    expected = (torch.arange(256).float() / 255 - 0.5) / 0.5
    assert torch.equal(d.x_train.flatten()[:256], expected)
    assert float(expected.min()) == -1 and float(expected.max()) == 1


def test_the_folders_are_looked_for_in_order(tmp_path, monkeypatch):
    counts = ("given", 3), ("named", 4), ("here/data", 5)
    given, named, local = (write_mnist(tmp_path / name, train=count) for name, count in counts)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    assert len(data.load().y_train) == 5
    monkeypatch.setenv("QUANTSPEC_DATA", str(named))
    assert len(data.load().y_train) == 4
    assert len(data.load(given).y_train) == 3
    assert local.exists()


@pytest.mark.parametrize(
    ("spoiled", "error", "message"),
    [
        (dict(train_images=None), FileNotFoundError, "train-images-idx3-ubyte: missing"),
        (dict(t10k_labels=None), FileNotFoundError, "t10k-labels-idx1-ubyte: missing"),
        (dict(train_images=b""), FormatError, "train-images-idx3-ubyte .*truncated in its header"),
        (
            dict(train_images=idx((0x803, 3, 28, 28), bytes(3 * 784 - 1))), FormatError,
            "train-images-idx3-ubyte .*expected 2,368 bytes for 3 items, got 2,367",
        ),
        (
            dict(train_images=idx((0x803, 3, 28, 28), bytes(3 * 784 + 1))), FormatError,
            "expected 2,368 bytes for 3 items, got 2,369",
        ),
        (dict(train_images=idx((0x801, 3, 28, 28), bytes(3 * 784))), FormatError, "not an idx file of MNIST"),
        (
            dict(train_images=idx((0x803, 3, 14, 14), bytes(3 * 196))), FormatError,
            "expected images of 28x28, got 14x14",
        ),
        (dict(train_images=idx((0x803, 0, 28, 28), b"")), FormatError, "for 0 items"),
        (
            dict(t10k_labels=idx((0x801, 3), bytes(3))), FormatError,
            "t10k-labels-idx1-ubyte .*expected a label for each of the 2 images, got 3",
        ),
        (dict(train_labels=gzip.compress(bytes(99))), FormatError, "train-labels-idx1-ubyte .*not an idx file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["argument", "environment", "current folder"])
def test_a_broken_folder_is_refused_and_never_replaced(tmp_path, monkeypatch, spoiled, error, message, by):
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    monkeypatch.setattr(data, "fetch", lambda *_: pytest.fail("downloads instead of refusing"))
    root = write_mnist(tmp_path / "data", **spoiled)
    monkeypatch.chdir(tmp_path)
    if by == "environment":
        monkeypatch.setenv("QUANTSPEC_DATA", str(root))
    with pytest.raises(error, match=message) as caught:
        data.load(root if by == "argument" else None)
    origins = {"argument": "given as", "environment": "QUANTSPEC_DATA", "current folder": "current folder"}
    assert origins[by] in str(caught.value)


def test_a_folder_that_is_missing_or_empty_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere .given as the data folder.: no such folder"):
        data.load(tmp_path / "nowhere")
    monkeypatch.setenv("QUANTSPEC_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="named by QUANTSPEC_DATA"):
        data.load()


def test_without_mnist_the_digits_stand_in_with_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)

    def fail(root, timeout):
        assert timeout == 0.5
        raise OSError("the network\nis unreachable")

    monkeypatch.setattr(data, "fetch", fail)
    d = data.load(timeout=0.5)
    why = "download failed: the network is unreachable"
    assert d.name == "digits" and d.note == f"digits instead of MNIST ({why})"
    assert d.x_train.shape == (1347, 1, 8, 8) and d.x_test.shape == (450, 1, 8, 8)
    assert float(d.x_train.min()) == -1 and float(d.x_train.max()) == 1 and d.x_train.dtype == torch.float32
    assert sorted(set(d.y_test.tolist())) == list(range(10))
    assert list(tmp_path.iterdir()) == []
    assert "switched off" in data.load(download=False).note


def test_a_download_arrives_whole_or_not_at_all(tmp_path, monkeypatch):
    import socket

    torchvision_compat.import_torchvision()
    import torchvision.datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    seen = []

    def half(root, download=False, train=True):
        seen.append(socket.getdefaulttimeout())
        write_mnist(root, train_images=b"half")
        raise RuntimeError("connection lost")

    monkeypatch.setattr(torchvision.datasets, "MNIST", half)
    assert data.load(timeout=0.25).name == "digits" and seen == [0.25]
    assert list(tmp_path.iterdir()) == [] and socket.getdefaulttimeout() is None
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    real = torchvision.datasets.MNIST

    def whole(root, download=False, train=True):
        return write_mnist(root) if download else real(root, train=train)

    monkeypatch.setattr(torchvision.datasets, "MNIST", whole)
    assert data.load().name == "mnist" and [p.name for p in tmp_path.iterdir()] == ["data"]


def test_the_fingerprint_tells_data_apart():
    d = data.digits()
    assert d.fingerprint() == data.digits("another note").fingerprint()
    changed = d.x_train.clone()
    changed[5, 0, 3, 3] += 1
    other = data.Dataset("digits", changed, d.y_train, d.x_test, d.y_test)
    swapped = data.Dataset("digits", d.x_train, d.y_train, d.x_test, d.y_test.flip(0))
    assert len({d.fingerprint(), other.fingerprint(), swapped.fingerprint()}) == 3


def test_the_digits_are_always_split_alike():
    before = torch.random.get_rng_state()
    assert data.digits().fingerprint() == data.digits().fingerprint()
    assert torch.equal(torch.random.get_rng_state(), before)
    images = np.unique(np.concatenate([data.digits().x_train, data.digits().x_test]).reshape(1797, -1), axis=0)
    assert len(images) > 1700


def test_a_connection_that_breaks_in_the_middle_leads_to_the_digits(tmp_path, monkeypatch):
    def fail(*_):
        raise http.client.IncompleteRead(b"1234", 6)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    monkeypatch.setattr(data, "fetch", fail)
    assert data.load().note.endswith("(download failed: IncompleteRead(4 bytes read, 6 more)")


def test_a_failed_download_is_one_short_line(tmp_path, monkeypatch):
    def fail(*_):
        tried = "Tried https://somewhere/mnist/, got:\n<urlopen error [Errno -2] Name or service not known>\n"
        raise RuntimeError(f"Error downloading train-images-idx3-ubyte.gz:\n{tried}{tried}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    monkeypatch.setattr(data, "fetch", fail)
    note = data.load().note
    assert note.endswith("(download failed: Name or service not known)") and len(note) < 80


def test_labels_that_are_no_digits_are_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2, 28, 28) + bytes(2 * 784))
        labels = bytes([9, 10 if part == "t10k" else 0])
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + labels)
    expected = "t10k-labels-idx1-ubyte .given as the data folder.: expected labels from 0 to 9, got 10"
    with pytest.raises(FormatError, match=expected):
        data.load(tmp_path)
    labels = raw / "t10k-labels-idx1-ubyte"
    Path(f"{labels}.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte: missing"):
        data.load(tmp_path)
