"""Loading data: MNIST from folders and downloads, the bundled digits, and torchvision beside a CPU-only torch.

Nothing here uses the network: what is downloaded comes from a folder of the test.
"""

import dataclasses
import gzip
import hashlib
import http.client
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch

import quantspec
from quantspec import data, torchvision_compat
from quantspec.errors import FormatError
from quantspec.torchvision_compat import import_torchvision

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
TENSORS = ["x_train", "y_train", "x_test", "y_test"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test starts in an empty folder with nothing named."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("QUANTSPEC_DATA", raising=False)
    return folder


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda *_: pytest.fail("a download was tried"))


def some_pixels(count: int, seed: int = 0) -> np.ndarray:
    """Pixels that are never all alike and hold every value from 0 to 255."""
    order = np.random.default_rng(seed).permutation(count * 784)
    return (order % 256).astype(np.uint8).reshape(count, 28, 28)


def images(pixels: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()


def labels(values) -> bytes:
    return struct.pack(">2I", 0x801, len(values)) + bytes(values)


def whole(first_label: int = 3) -> dict[str, bytes]:
    """The four files of an MNIST with three images to train on and two to test on."""
    train, test = [first_label, 0, 9], [7, 1]
    return dict(zip(NAMES, [images(some_pixels(3)), labels(train), images(some_pixels(2, seed=1)), labels(test)]))


def write(root: Path, files: dict[str, bytes]) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return root


def equal(a: data.Dataset, b: data.Dataset) -> bool:
    return a.name == b.name and all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


def test_mnist_is_read_in_the_order_of_its_files_as_float32_from_minus_one_to_one(tmp_path):
    found = data.load(write(tmp_path / "mnist", whole()))
    assert (found.name, found.note) == ("mnist", "")
    for x, pixels in ((found.x_train, some_pixels(3)), (found.x_test, some_pixels(2, seed=1))):
        expected = (pixels[:, None].astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        assert x.dtype == torch.float32
        assert x.shape == (len(pixels), 1, 28, 28)
        assert np.array_equal(x.numpy(), expected)
        assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert found.y_train.dtype == found.y_test.dtype == torch.int64
    assert (found.y_train.tolist(), found.y_test.tolist()) == ([3, 0, 9], [7, 1])


def test_an_argument_comes_before_the_variable_and_the_variable_before_the_current_folder(tmp_path, monkeypatch, no_download):
    write(Path("data"), whole(1))
    assert data.load().y_train[0] == 1
    monkeypatch.setenv("QUANTSPEC_DATA", str(write(tmp_path / "variable", whole(2))))
    assert data.load().y_train[0] == 2
    argument = write(tmp_path / "argument", whole(3))
    assert data.load(argument).y_train[0] == 3
    assert data.load(str(argument)).y_train[0] == 3


def test_an_empty_variable_names_nothing(monkeypatch, no_download):
    monkeypatch.setenv("QUANTSPEC_DATA", "")
    write(Path("data"), whole(1))
    assert data.load().y_train[0] == 1


def test_a_data_folder_without_mnist_counts_as_absent_and_is_left_alone(no_download):
    Path("data").mkdir()
    Path("data/other.csv").write_text("1,2\n")
    assert data.load(download=False).name == "digits"
    assert [path.name for path in Path("data").rglob("*")] == ["other.csv"]


def changed(name: str, change) -> dict[str, bytes]:
    files = whole()
    return files | {name: change(files[name])}


BROKEN = {
    "images cut by a byte": (TRAIN_IMAGES, lambda b: b[:-1]),
    "test images cut by half": (TEST_IMAGES, lambda b: b[: len(b) // 2]),
    "labels cut by a byte": (TRAIN_LABELS, lambda b: b[:-1]),
    "images cut in their header": (TRAIN_IMAGES, lambda b: b[:15]),
    "labels cut in their header": (TEST_LABELS, lambda b: b[:7]),
    "an empty file": (TEST_IMAGES, lambda b: b""),
    "a byte too many in the images": (TRAIN_IMAGES, lambda b: b + b"\0"),
    "a byte too many in the labels": (TEST_LABELS, lambda b: b + b"\0"),
    "an image too many": (TEST_IMAGES, lambda b: b + bytes(784)),
    "another magic number": (TRAIN_IMAGES, lambda b: struct.pack(">I", 0x802) + b[4:]),
    "numbers in little endian": (TRAIN_LABELS, lambda b: struct.pack("<I", 0x801) + b[4:]),
    "labels for images": (TRAIN_IMAGES, lambda b: labels([1, 2, 3])),
    "images for labels": (TEST_LABELS, lambda b: images(some_pixels(2))),
    "text": (TRAIN_IMAGES, lambda b: b"<html>Not found</html>" * 50),
    "still compressed": (TEST_IMAGES, gzip.compress),
    "images of 27x28": (TRAIN_IMAGES, lambda b: images(some_pixels(3)[:, 1:])),
    "images of 14x56": (TRAIN_IMAGES, lambda b: images(some_pixels(3).reshape(3, 14, 56))),
    "no images": (TEST_IMAGES, lambda b: images(some_pixels(2)[:0])),
    "no labels": (TRAIN_LABELS, lambda b: labels([])),
    "a label too few": (TRAIN_LABELS, lambda b: labels([1, 2])),
    "a label too many": (TEST_LABELS, lambda b: labels([1, 2, 3])),
    "a letter's label": (TRAIN_LABELS, lambda b: labels([1, 10, 3])),
}
ORIGINS = {"argument": "given as the data folder", "variable": "named by QUANTSPEC_DATA", "current folder": "found in the current folder"}


def load_from(origin: str, folder: Path, monkeypatch) -> data.Dataset:
    if origin == "argument":
        return data.load(folder)
    if origin == "variable":
        monkeypatch.setenv("QUANTSPEC_DATA", str(folder))
    return data.load()


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_an_error_that_names_the_file_and_who_named_the_folder(what, origin, empty_folder, monkeypatch, no_download):
    name, change = BROKEN[what]
    root = write(empty_folder / "data", changed(name, change))
    with pytest.raises(FormatError) as raised:
        load_from(origin, root, monkeypatch)
    shown = "data" if origin == "current folder" else str(root)
    assert str(raised.value).startswith(f"{Path(shown) / 'MNIST' / 'raw' / name} ({ORIGINS[origin]}): ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_an_error_that_names_it_even_where_its_compressed_form_is_there(name, origin, empty_folder, monkeypatch, no_download):
    files = whole()
    content = files.pop(name)
    root = write(empty_folder / "data", files | {f"{name}.gz": gzip.compress(content)})
    with pytest.raises(FileNotFoundError) as raised:
        load_from(origin, root, monkeypatch)
    assert re.search(rf"/{name}: missing; .*\({ORIGINS[origin]}\)", str(raised.value))


@pytest.mark.parametrize("origin", ["argument", "variable"])
@pytest.mark.parametrize("kind", ["nothing", "a file"])
def test_a_named_folder_that_is_none_is_an_error(kind, origin, tmp_path, monkeypatch, no_download):
    root = tmp_path / "named"
    if kind == "a file":
        root.write_bytes(b"not a folder")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{root} ({ORIGINS[origin]}): there is no such folder")):
        load_from(origin, root, monkeypatch)


@pytest.mark.parametrize("origin", ["argument", "variable"])
def test_a_named_folder_that_is_empty_is_an_error_although_the_current_folder_has_mnist(origin, tmp_path, monkeypatch, no_download):
    write(Path("data"), whole())
    root = tmp_path / "named"
    root.mkdir()
    with pytest.raises(FileNotFoundError) as raised:
        load_from(origin, root, monkeypatch)
    assert str(raised.value).startswith(f"{root / 'MNIST' / 'raw' / TRAIN_IMAGES}: missing; {root} ({ORIGINS[origin]})")


def test_an_empty_mnist_folder_in_the_current_folder_is_an_error(no_download):
    Path("data/MNIST").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=f"{TRAIN_IMAGES}: missing; data .found in the current folder"):
        data.load()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that torchvision downloads from, with the checksums of what it holds."""
    import_torchvision()
    from torchvision.datasets import MNIST

    folder = tmp_path / "mirror"
    folder.mkdir()
    sums = []
    for name, content in whole().items():
        packed = gzip.compress(content, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        sums.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [folder.as_uri() + "/"])
    monkeypatch.setattr(MNIST, "resources", sums)
    return folder


def test_a_download_fills_the_data_folder_and_is_used_from_then_on(mirror, empty_folder, tmp_path, monkeypatch):
    found = data.load()
    assert equal(found, data.load(write(tmp_path / "plain", whole())))
    assert found.note == ""
    assert [path.name for path in empty_folder.iterdir()] == ["data"]
    assert [path.name for path in Path("data").iterdir()] == ["MNIST"]
    monkeypatch.setattr(data, "fetch", lambda *_: pytest.fail("downloaded twice"))
    assert equal(data.load(), found)


def test_a_download_leaves_what_the_data_folder_holds_already(mirror):
    Path("data").mkdir()
    Path("data/other.csv").write_text("1,2\n")
    assert data.load().name == "mnist"
    assert sorted(path.name for path in Path("data").iterdir()) == ["MNIST", "other.csv"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_download_that_breaks_off_leaves_nothing_and_the_digits_say_why(name, damage, mirror, empty_folder):
    file = mirror / f"{name}.gz"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    found = data.load()
    assert found.name == "digits"
    assert re.fullmatch(rf"Using scikit-learn's bundled handwritten digits: MNIST could not be downloaded: .*{name}.*", found.note)
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (URLError("no route to host"), "<urlopen error no route to host>"),
        (TimeoutError("timed out"), "timed out"),
        (TimeoutError(), "TimeoutError"),
        (ConnectionResetError(104, "reset by peer"), "[Errno 104] reset by peer"),
        (http.client.IncompleteRead(b"1234", 6), "IncompleteRead(4 bytes read, 6 more expected)"),
        (RuntimeError("Error downloading\nTried this, got:\n  that\n"), "Error downloading Tried this, got: that"),
    ],
)
def test_without_a_network_the_digits_come_with_one_line_that_says_why(error, why, monkeypatch, empty_folder):
    def fail(root, timeout):
        raise error

    monkeypatch.setattr(data, "fetch", fail)
    found = data.load()
    assert found.note == f"Using scikit-learn's bundled handwritten digits: MNIST could not be downloaded: {why}."
    assert equal(found, data.digits())
    assert list(empty_folder.iterdir()) == []


def test_a_data_folder_that_cannot_be_filled_leads_to_the_digits_too(mirror, empty_folder):
    Path("data").write_bytes(b"a file stands in the way")
    assert data.load().name == "digits"
    assert [path.name for path in empty_folder.iterdir()] == ["data"]
    assert Path("data").read_bytes() == b"a file stands in the way"


def test_an_error_in_the_program_is_not_taken_for_a_missing_network(monkeypatch):
    def fail(root, timeout):
        raise ZeroDivisionError

    monkeypatch.setattr(data, "fetch", fail)
    with pytest.raises(ZeroDivisionError):
        data.load()


def test_a_download_that_is_no_mnist_is_an_error(mirror, monkeypatch):
    from torchvision.datasets import MNIST

    packed = gzip.compress(labels([1, 2]))
    (mirror / f"{TRAIN_LABELS}.gz").write_bytes(packed)
    sums = dict(MNIST.resources) | {f"{TRAIN_LABELS}.gz": hashlib.md5(packed).hexdigest()}
    monkeypatch.setattr(MNIST, "resources", list(sums.items()))
    with pytest.raises(FormatError, match=rf"{TRAIN_LABELS} \(just downloaded\): "):
        data.load()


def test_downloading_can_be_switched_off(no_download, empty_folder):
    found = data.load(download=False)
    assert found.note == "Using scikit-learn's bundled handwritten digits: downloading is switched off."
    assert equal(found, data.digits())
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("before", [None, 77.0])
@pytest.mark.parametrize("outcome", [None, URLError("no network"), KeyboardInterrupt()])
def test_the_timeout_holds_during_the_download_only_and_an_interruption_leaves_nothing(outcome, before, mirror, empty_folder, monkeypatch):
    from torchvision.datasets import MNIST

    seen, download = [], MNIST.download

    def watched(self):
        seen.append(socket.getdefaulttimeout())
        download(self)
        if outcome:
            raise outcome

    monkeypatch.setattr(MNIST, "download", watched)
    kept = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before)
    try:
        if isinstance(outcome, KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                data.load(timeout=2.5)
        else:
            assert data.load(timeout=2.5).name == ("digits" if outcome else "mnist")
        assert socket.getdefaulttimeout() == before
    finally:
        socket.setdefaulttimeout(kept)
    assert seen == [2.5]
    assert [path.name for path in empty_folder.iterdir()] == ([] if outcome else ["data"])


def test_digits_are_all_of_scikit_learns_each_once_three_quarters_for_training():
    from sklearn.datasets import load_digits

    bunch, found = load_digits(), data.digits("a note")
    assert (found.name, found.note) == ("digits", "a note")
    assert found.x_train.shape == (1347, 1, 8, 8)
    assert found.x_test.shape == (450, 1, 8, 8)
    assert found.x_train.dtype == found.x_test.dtype == torch.float32
    assert found.y_train.dtype == found.y_test.dtype == torch.int64
    x, y = torch.cat([found.x_train, found.x_test]).numpy(), torch.cat([found.y_train, found.y_test]).tolist()
    expected = (bunch.images[:, None].astype(np.float32) / np.float32(16) - np.float32(0.5)) / np.float32(0.5)
    pairs = sorted(zip((image.tobytes() for image in x), y))
    assert pairs == sorted(zip((image.tobytes() for image in expected), bunch.target.tolist()))
    assert not np.array_equal(x, expected)


def test_digits_are_split_alike_every_time_and_leave_the_global_random_state_alone():
    state = torch.get_rng_state()
    first = data.digits()
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert equal(data.digits(), first)


def test_digits_have_every_class_in_both_parts():
    found = data.digits()
    assert found.y_train.unique().tolist() == found.y_test.unique().tolist() == list(range(10))


def test_a_fingerprint_is_a_sha256_that_depends_on_the_content_alone():
    one, two = data.digits(), data.digits("with a note")
    assert re.fullmatch("[0-9a-f]{64}", one.fingerprint())
    assert one.fingerprint() == two.fingerprint()
    strided = dataclasses.replace(one, x_train=one.x_train.transpose(2, 3).contiguous().transpose(2, 3))
    assert not strided.x_train.is_contiguous()
    assert strided.fingerprint() == one.fingerprint()


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("place", [0, -1])
def test_a_fingerprint_changes_with_every_number(name, place):
    found = data.digits()
    tensor = getattr(found, name).clone()
    tensor.view(-1)[place] += 1
    assert dataclasses.replace(found, **{name: tensor}).fingerprint() != found.fingerprint()


def test_a_fingerprint_changes_with_the_name_the_shapes_and_the_parts():
    found = data.digits()
    others = [
        dataclasses.replace(found, name="mnist"),
        dataclasses.replace(found, x_train=found.x_train.view(-1, 1, 4, 16)),
        dataclasses.replace(found, x_train=found.x_test, y_train=found.y_test, x_test=found.x_train, y_test=found.y_train),
    ]
    assert len({found.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_a_data_set_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.digits().note = "changed"


def test_the_data_at_hand_is_what_its_name_promises(dataset):
    side = {"mnist": 28, "digits": 8}[dataset.name]
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        assert x.shape == (len(y), 1, side, side)
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
        assert y.unique().tolist() == list(range(10))
    assert (dataset.note == "") == (dataset.name == "mnist")


def test_importing_the_module_imports_neither_torchvision_nor_scikit_learn():
    script = "import sys, quantspec.data; print([name for name in ('torchvision', 'sklearn') if name in sys.modules])"
    env = os.environ | {"PYTHONPATH": str(Path(quantspec.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Declarations:
    """Stands for torch.library.Library and notes what is declared."""

    def __init__(self):
        self.made, self.schemas = [], []

    def __call__(self, *arguments):
        self.made.append(arguments)
        return self

    def define(self, schema):
        self.schemas.append(schema)


@pytest.fixture
def pretended(monkeypatch):
    """import_torchvision() with imports that end as told: an exception is raised, anything else returned."""

    def prepare(*outcomes):
        left, modules, declarations = list(outcomes), {}, Declarations()

        def import_module(name):
            assert name == "torchvision"
            assert not [key for key in modules if key.startswith("torchvision.") or key == "torchvision"], "half imported modules are left"
            modules.update({"torchvision": ModuleType("torchvision"), "torchvision.extension": ModuleType("half"), "torchvisionary": ModuleType("other")})
            outcome = left.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(torchvision_compat, "importlib", SimpleNamespace(import_module=import_module))
        monkeypatch.setattr(torchvision_compat, "sys", SimpleNamespace(modules=modules))
        monkeypatch.setattr(torchvision_compat, "_declared", [])
        monkeypatch.setattr(torch.library, "Library", declarations)
        return left, modules, declarations

    return prepare


MISSING = "operator torchvision::nms does not exist"


def test_torchvision_that_imports_is_returned_and_nothing_is_declared(pretended):
    left, _, declarations = pretended("the module")
    assert import_torchvision() == "the module"
    assert (left, declarations.made, torchvision_compat._declared) == ([], [], [])


def test_torchvision_without_its_operators_gets_them_declared_and_is_imported_afresh(pretended):
    left, modules, declarations = pretended(RuntimeError(MISSING), "the module")
    assert import_torchvision() == "the module"
    assert left == []
    assert declarations.made == [("torchvision", "DEF")]
    assert declarations.schemas == [f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")]
    assert torchvision_compat._declared == [declarations]
    assert "torchvisionary" in modules


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::roi_align does not exist"),
        RuntimeError(f"{MISSING} and more"),
        ImportError("No module named 'torchvision'"),
        ValueError(MISSING),
    ],
)
def test_any_other_failure_of_the_import_is_passed_on(error, pretended):
    left, _, declarations = pretended(error, "the module")
    with pytest.raises(type(error)) as raised:
        import_torchvision()
    assert raised.value is error
    assert (left, declarations.made) == (["the module"], [])


def test_an_import_that_fails_again_is_passed_on_and_the_operators_are_not_declared_twice(pretended):
    _, modules, declarations = pretended(RuntimeError(MISSING), RuntimeError("again"), RuntimeError(MISSING), "the module")
    with pytest.raises(RuntimeError, match="again"):
        import_torchvision()
    modules.clear()
    assert import_torchvision() == "the module"
    assert len(declarations.made) == 1
    assert len(declarations.schemas) == 2


def test_the_torchvision_at_hand_imports_with_both_operators_declared():
    torchvision = import_torchvision()
    assert torchvision is sys.modules["torchvision"] is import_torchvision()
    for name in ("nms", "qnms"):
        schema = str(getattr(torch.ops.torchvision, name).default._schema)
        assert schema == f"torchvision::{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
