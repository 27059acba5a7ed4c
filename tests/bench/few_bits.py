"""Small networks with few bits, trained on moved images of MNIST, beside figures that others published of the same
networks: ``QUANTSPEC_DATA=FOLDER PYTHONPATH=tests python -m bench.few_bits``.

Accuracies are of the integer network; ``differ`` counts its outputs that are not those of the network that was trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

import quantspec as qs
from quantspec.progress import progress
from quantspec.tutorial import data
from quantspec.tutorial.data import Dataset
from quantspec.tutorial.few_bits import accuracy
from quantspec.tutorial.models import CLASSES

BATCH = 64
Images = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """A network of three hidden layers and how it is trained; ``published``: what others reached with
    60,000 images."""

    name: str
    inputs: int
    hidden: int
    bits: int
    weight_bits: int
    normalized: bool
    dropout: float
    float_epochs: int
    epochs: int
    rate: float
    published: str

    def network(self) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Flatten()]
        layers += [nn.Dropout(self.dropout)] if self.dropout else []
        for inputs in (self.inputs, self.hidden, self.hidden):
            layers.append(nn.Linear(inputs, self.hidden, bias=False))
            layers += [nn.BatchNorm1d(self.hidden)] if self.normalized else []
            layers.append(nn.ReLU())
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(*layers, nn.Linear(self.hidden, CLASSES, bias=self.normalized))


# The first is that of BitNetMCU, the others are Brevitas' TFC_2W2A and SFC_2W2A.
TASKS = (
    Task("64-64-64, 16 x 16", 256, 64, 8, 4, False, 0.0, 60, 30, 1e-3, "98.98%"),
    Task("64-64-64", 784, 64, 2, 2, True, 0.0, 30, 40, 3e-3, "96.60%"),
    Task("256-256-256", 784, 256, 2, 2, True, 0.2, 30, 40, 2e-3, "98.66%"),
)


def smaller(x: torch.Tensor) -> torch.Tensor:
    """Images [n, 1, 28, 28] as [n, 1, 16, 16]."""
    return F.interpolate(x, size=16, mode="bilinear", antialias=True)


def moved(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images, each turned, scaled, sheared and shifted a little at random."""
    angle, scale, shear, right, down = (torch.rand(5, len(x), generator=generator) * 2 - 1) * torch.tensor(
        [[math.radians(12)], [0.12], [0.15], [0.12], [0.12]]
    )
    cosine, sine = (f(angle) * (1 + scale) for f in (torch.cos, torch.sin))
    rows = [torch.stack([cosine, shear - sine, right], 1), torch.stack([sine, cosine, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    return F.grid_sample(x + 1, grid, align_corners=False) - 1  # paper is -1


def train(network: nn.Module, dataset: Dataset, images: Images, epochs: int, rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer, size = torch.optim.Adam(network.parameters(), lr=rate), len(dataset.x_train) // BATCH * BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * size // BATCH)
    network.train()
    for _ in progress(range(epochs), "train"):
        for index in torch.randperm(len(dataset.x_train), generator=generator)[:size].split(BATCH):
            optimizer.zero_grad()
            scores = network(images(moved(dataset.x_train[index], generator)))
            F.cross_entropy(scores, dataset.y_train[index]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def row(task: Task, dataset: Dataset) -> str:
    images: Images = smaller if task.inputs == 256 else lambda x: x
    torch.manual_seed(0)
    network = task.network()
    train(network, dataset, images, task.float_epochs, 3e-3)
    x = images(dataset.x_test)
    tested = replace(dataset, x_test=x)
    batches = [images(part) for part in dataset.x_train[:2000].split(500)]
    bits = {"bits": task.bits, "weight_bits": task.weight_bits}
    calibrated = accuracy(qs.quantize(network, batches, **bits), tested)
    p = qs.prepare_qat(network, batches, **bits, learned_scales=task.weight_bits < 4)
    train(p, dataset, images, task.epochs, task.rate)
    q = qs.convert(p)
    with torch.no_grad():
        differ = int((q(x) != p(x)).sum())
    size = sum(layer.weight.numel() for layer in network if isinstance(layer, nn.Linear)) * task.weight_bits // 8
    shares = f"{accuracy(network, tested):5.2%}  {calibrated:10.2%}  {accuracy(q, tested):7.2%}"
    return f"{task.name:17}  {task.weight_bits}/{task.bits}  {size:7,}  {shares}  {differ:6}  {task.published:>9}"


def main() -> None:
    torch.set_num_threads(1)
    dataset = data.load()
    print(f"{dataset.name}, {len(dataset.x_train):,} images for training, {len(dataset.x_test):,} for the accuracy")
    print("network            bits   bytes   float  calibrated  trained  differ  published")
    for task in TASKS:
        print(row(task, dataset), flush=True)


if __name__ == "__main__":
    main()
