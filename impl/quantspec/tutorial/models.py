"""The tutorial's network and two more, their training, and a cache of trained networks."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from quantspec.errors import FormatError

from .data import Dataset

HIDDEN, CLASSES = 100, 10
EPOCHS, BATCH_SIZE, LEARNING_RATE = 20, 64, 5e-3
FORMAT = "quantspec-network-1"


class MLP(nn.Module):
    """inputs-100-100-10 with ReLU. Images [n, ...] are flattened to [n, inputs]; the output is [n, 10], one score a
    class."""

    def __init__(self, inputs: int = 784):
        super().__init__()
        self.fc1 = nn.Linear(inputs, HIDDEN)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(HIDDEN, HIDDEN)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu1(self.fc1(torch.flatten(x, 1)))
        scores: torch.Tensor = self.fc3(self.relu2(self.fc2(x)))
        return scores


class LeNet(nn.Module):
    """A small convolutional network for images [n, 1, size, size], size from 4 on; the output is [n, 10]. Images of
    less than 12 are padded, or nothing were left."""

    def __init__(self, size: int = 28):
        super().__init__()
        padding = int(size < 12)
        left = ((size - 2 + 2 * padding) // 2 - 2 + 2 * padding) // 2
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=padding, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=padding)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.fc1, self.fc2 = nn.Linear(16 * left * left, 64), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        x = self.pool(self.relu(self.conv2(x)))
        scores: torch.Tensor = self.fc2(self.relu(self.fc1(torch.flatten(x, 1))))
        return scores


class RowReader(nn.Module):
    """An LSTM that reads an image [n, 1, rows, columns] row by row and then says which digit it was, [n, 10]."""

    def __init__(self, columns: int = 28):
        super().__init__()
        self.lstm, self.head = nn.LSTM(columns, 64, batch_first=True), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.lstm(x[:, 0])[0][:, -1])
        return scores


def untrained(inputs: int, seed: int) -> MLP:
    """A network with seeded weights; torch's global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(inputs)


def train(
    model: nn.Module,
    dataset: Dataset,
    *,
    seed: int,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    progress: bool = True,
    watch: Callable[[], None] | None = None,
) -> None:
    """Trains in place with Adam on cross entropy, its rate falling linearly, and leaves the model in evaluation mode.

    ``watch`` is called behind each step. Equal seeds give equal weights. The order of the images comes from a generator
    of its own; torch's global random state stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs)
    size = len(dataset.x_train)
    model.train()
    hidden = not (progress and sys.stderr.isatty())
    with Progress(console=Console(file=sys.stderr), transient=True, disable=hidden) as bar:
        for _ in bar.track(range(epochs), description="train"):
            for index in torch.split(torch.randperm(size, generator=generator), batch_size):
                loss = nn.functional.cross_entropy(model(dataset.x_train[index]), dataset.y_train[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
                if watch is not None:
                    watch()
            schedule.step()
    model.eval()


def trained(
    dataset: Dataset, *, cache: str | os.PathLike[str] | None = None, seed: int = 0, epochs: int = EPOCHS,
    progress: bool = True,
) -> MLP:
    """The network trained on a dataset, from the cache when it has been trained before with the same data, seed and
    settings.

    ``cache``: a folder, else $QUANTSPEC_CACHE, else ~/.cache/quantspec. Raises FormatError naming a cache file that is
    torn or belongs to another network, OSError naming a folder that cannot be written.
    """
    inputs = dataset.x_train[0].numel()
    ingredients = {
        "inputs": inputs, "hidden": HIDDEN, "classes": CLASSES, "seed": seed, "epochs": epochs, "batch": BATCH_SIZE,
        "rate": LEARNING_RATE, "data": dataset.fingerprint(),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    folder = Path(cache or os.environ.get("QUANTSPEC_CACHE") or Path.home() / ".cache" / "quantspec")
    path = folder / f"mlp-{dataset.name}-{key[:12]}.safetensors"
    model = untrained(inputs, seed)
    if path.exists():
        model.load_state_dict(read(path, key, model.state_dict()))
        return model.eval()
    partial = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Opened before the training, so that a cache that cannot be written says so at once.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".partial-", delete=False) as file:
            partial = Path(file.name)
            train(model, dataset, seed=seed, epochs=epochs, progress=progress)
            file.write(save(model.state_dict(), {"format": FORMAT, "key": key}))
        os.replace(partial, path)
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"{folder}: the cache of trained networks cannot be written: {why}") from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)
    return model


def read(path: Path, key: str, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a cache file; FormatError unless it holds this very network."""
    advice = "delete it to train again"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("key") != key:
                raise FormatError(f"{path}: holds another network than the one it is named after; {advice}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: unreadable, truncated or no safetensors file ({error}); {advice}") from error
    shapes = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    if shapes != {name: (t.shape, t.dtype) for name, t in expected.items()}:
        raise FormatError(f"{path}: holds another network than the one it is named after; {advice}")
    return tensors
