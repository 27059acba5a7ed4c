"""Handwritten digits: MNIST where it can be had, scikit-learn's bundled digits otherwise."""

import hashlib
import http.client
import os
import re
import shutil
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from quantspec.errors import FormatError
from quantspec.extras import needed
from quantspec.torchvision_compat import import_torchvision

# File name, magic number, header bytes, bytes an item: the idx format of MNIST.
IMAGES, LABELS = (0x803, 16, 28 * 28), (0x801, 8, 1)
FILES = {
    "train-images-idx3-ubyte": IMAGES,
    "train-labels-idx1-ubyte": LABELS,
    "t10k-images-idx3-ubyte": IMAGES,
    "t10k-labels-idx1-ubyte": LABELS,
}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images float32 [n, 1, height, width] from -1 to 1 and labels int64 [n]. ``name``: "mnist" or "digits"; ``note``:
    why not MNIST."""

    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    note: str = ""

    def fingerprint(self) -> str:
        """SHA-256 of all images and labels, in hex."""
        digest = hashlib.sha256(self.name.encode())
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return digest.hexdigest()


def load(root: str | os.PathLike[str] | None = None, *, download: bool = True, timeout: float = 5.0) -> Dataset:
    """MNIST from ``root``, else $QUANTSPEC_DATA, else ./data, else downloaded into ./data; failing that, the bundled
    digits.

    ``timeout``: seconds to wait for the network. A folder that was named is never replaced by anything:
    FileNotFoundError when it, or a file in it, is missing, FormatError when a file is not MNIST or truncated, each
    naming the file and who named the folder.
    """
    if root is not None:
        return mnist(Path(root), "given as the data folder")
    if named := os.environ.get("QUANTSPEC_DATA"):
        return mnist(Path(named), "named by QUANTSPEC_DATA")
    local = Path("data")
    if (local / "MNIST").exists():
        return mnist(local, "found in the current folder")
    why = "downloads are switched off"
    if download:
        try:
            fetch(local, timeout)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            why = f"download failed: {short(error)}"
        else:
            return mnist(local, "just downloaded")
    return digits(f"digits instead of MNIST ({why})")


def short(error: Exception) -> str:
    """An error of a download in a few words: the first reason that the network gave, where it names one."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = re.search(r"<urlopen error (?:\[Errno -?\d+\] )?(.*?)>", text)
    return (found[1] if found else text).rstrip(".")[:36].rstrip()


def fetch(root: Path, timeout: float) -> None:
    """Downloads MNIST into ``root``, with torchvision's progress bar; nothing stays behind when that fails."""
    before = socket.getdefaulttimeout()
    folder = Path(tempfile.mkdtemp(prefix=".quantspec-", dir=root.parent))
    socket.setdefaulttimeout(timeout)
    try:
        mnist_class = torchvision_datasets().MNIST

        mnist_class(folder, download=True)
        root.mkdir(exist_ok=True)
        (folder / "MNIST").rename(root / "MNIST")
    finally:
        socket.setdefaulttimeout(before)
        shutil.rmtree(folder, ignore_errors=True)


def mnist(root: Path, origin: str) -> Dataset:
    """MNIST from a folder in torchvision's layout. ``origin`` says in messages who named the folder."""
    check_files(root, origin)
    mnist_class = torchvision_datasets().MNIST
    train, test = (mnist_class(root, train=train) for train in (True, False))
    x_train, x_test = (pixels(part.data[:, None], 255) for part in (train, test))
    return Dataset("mnist", x_train, train.targets.long(), x_test, test.targets.long())


def torchvision_datasets() -> ModuleType:
    """``torchvision.datasets``. Raises MissingExtraError where torchvision is not installed."""
    import_torchvision()
    return needed("torchvision.datasets", "tutorial", "the MNIST data set")


def check_files(root: Path, origin: str) -> None:
    """Raises FileNotFoundError or FormatError unless the folder holds four whole idx files that belong together."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} ({origin}): no such folder")
    counts = []
    for name, (magic, header, item) in FILES.items():
        path = root / "MNIST" / "raw" / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; {root} ({origin}) must hold MNIST in torchvision's layout")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(header)
        if len(start) < header or struct.unpack(">I", start[:4])[0] != magic:
            raise FormatError(f"{path} ({origin}): not an idx file of MNIST, or truncated in its header")
        numbers = struct.unpack(f">{header // 4}I", start)
        if numbers[2:] not in ((), (28, 28)):
            raise FormatError(f"{path} ({origin}): expected images of 28x28, got {numbers[2]}x{numbers[3]}")
        if size != header + numbers[1] * item or numbers[1] == 0:
            expected = f"expected {header + numbers[1] * item:,} bytes for {numbers[1]:,} items"
            raise FormatError(f"{path} ({origin}): {expected}, got {size:,}")
        counts.append(numbers[1])
        if magic != LABELS[0]:
            continue
        if counts[-2] != counts[-1]:
            expected = f"expected a label for each of the {counts[-2]:,} images"
            raise FormatError(f"{path} ({origin}): {expected}, got {counts[-1]:,}")
        if (highest := max(path.read_bytes()[header:])) > 9:  # letters and clothes come in idx files of 28x28 too
            raise FormatError(f"{path} ({origin}): expected labels from 0 to 9, got {highest}")


def digits(note: str = "") -> Dataset:
    """scikit-learn's 1,797 digits of 8x8 pixels, three quarters of them for training."""
    bunch = needed("sklearn.datasets", "tutorial", "the data set of digits").load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    x, y = pixels(torch.from_numpy(bunch.images)[order, None], 16), torch.from_numpy(bunch.target).long()[order]
    split = len(y) * 3 // 4
    return Dataset("digits", x[:split], y[:split], x[split:], y[split:], note)


def pixels(values: torch.Tensor, highest: int) -> torch.Tensor:
    """Pixels from 0 to ``highest`` as float32 from -1 to 1."""
    return (values.to(torch.float32) / highest - 0.5) / 0.5
