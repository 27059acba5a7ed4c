"""What is measured: networks, their inputs, and what each row promises."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu

from quantspec.ptq.work import Products
from quantspec.tutorial import zoo
from quantspec.tutorial.models import MLP

STATIC, DYNAMIC, WEIGHTS_ALONE = "static", "dynamic", "weights alone"
BATCHES = (1, 10, 64, 256, 1024)
ENTRIES = 100_000  # of the table that bags are taken from


@dataclass(frozen=True)
class Targets:
    """The least that a row is to reach; None where nothing was set.

    Ratios to the best peers' time, and a share of the peak of dot products.
    """

    vs_float32: float | None = None
    vs_int8: float | None = 1.0
    peak: float | None = None


TRANSFORMER = Targets(vs_int8=1.1)


@dataclass(frozen=True)
class Row:
    """A network and the shape of its input.

    ``network``: the name of what ``build`` makes. ``promises``: that int8 is not slower than float32, or the run fails.
    ``entries``: of the table that the input holds indices of, 0 where it holds numbers.
    """

    name: str
    network: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    kind: str = STATIC
    targets: Targets = Targets()
    promises: bool = True
    entries: int = 0

    def batch(self, seed: int = 0) -> torch.Tensor:
        """The input: images from 0 to 1, indices, or for networks on other things normal numbers."""
        generator = torch.Generator().manual_seed(seed)
        if self.entries:
            return torch.randint(self.entries, self.shape, generator=generator)
        if len(self.shape) == 4 and self.shape[1] == 3:
            return zoo.images(self.shape[0], self.shape[-1], seed)
        draw = torch.rand if self.kind == STATIC and len(self.shape) != 3 else torch.randn
        return draw(self.shape, generator=generator)


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling, on images [n, 1, 28, 28]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = torch.flatten(torch.max_pool2d(torch.relu(self.conv2(x)), 2), 1)
        return self.fc3(torch.relu(self.fc2(torch.relu(self.fc1(x)))))


class UNet(nn.Module):
    """A small U-Net, on images [n, 3, side, side]: two steps down, two up by transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([twice(3, 32), twice(32, 64), twice(64, 128)])
        self.widen = nn.ModuleList([nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)])
        self.up, self.head = nn.ModuleList([twice(128, 64), twice(64, 32)]), nn.Conv2d(32, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down[0](x)
        second = self.down[1](torch.max_pool2d(first, 2))
        x = self.widen[0](self.down[2](torch.max_pool2d(second, 2)))
        x = self.widen[1](self.up[0](torch.cat([x, second], 1)))
        return self.head(self.up[1](torch.cat([x, first], 1)))


def twice(inputs: int, outputs: int) -> nn.Module:
    """A convolution, its normalization and ReLU, two times."""
    first, second = (nn.Conv2d(channels, outputs, 3, padding=1, bias=False) for channels in (inputs, outputs))
    return nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU())


def volumes() -> nn.Module:
    """Convolutions over three axes, on [n, 3, frames, side, side]."""
    first, second = nn.Conv3d(3, 32, 3, padding=1), nn.Conv3d(32, 64, 3, padding=1)
    features = [first, nn.ReLU(), nn.MaxPool3d(2), second, nn.ReLU()]
    return nn.Sequential(*features, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 10))


class Sequence(nn.Module):
    """What an LSTM or GRU gives for each step of [n, steps, 128]."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.recurrent = kind(128, 256, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(x)[0]


def encoder() -> nn.Module:
    """An encoder of BERT-base's size, on [n, tokens, 768]."""
    # Not by name, as torch then has a way of its own through all of a layer, which torch.ao's layers do not fit into.
    layer = nn.TransformerEncoderLayer(768, 12, 3072, activation=lambda x: gelu(x), batch_first=True)
    return nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same network every time, in evaluation mode."""

    def build_seeded() -> nn.Module:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return build().eval()

    return build_seeded


def wide(width: int, layers: int = 3) -> nn.Module:
    """Square layers with ReLU between them."""
    parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*parts[:-1])


def mlp_targets(batch: int) -> Targets:
    """Of the wide MLPs: large batches are to come near the peak."""
    return Targets(peak=0.7 if batch >= 256 else None)


def rows() -> list[Row]:
    """All rows, those of one network next to each other."""
    found = []

    def add(network: str, build: Callable[[], nn.Module], shapes: Iterable[tuple[int, ...]], **settings) -> None:
        found.extend(Row(f"{network}/batch={shape[0]}", network, build, shape, **settings) for shape in shapes)

    for n in BATCHES:
        add("tutorial", seeded(MLP), [(n, 784)], targets=Targets(2.0, 2.0 if n == 1 else 1.2))
    for width in (1024, 4096):
        for n in BATCHES:
            add(f"mlp{width}", seeded(lambda width=width: wide(width)), [(n, width)], targets=mlp_targets(n))
    add("lenet", seeded(LeNet), [(n, 1, 28, 28) for n in (1, 8)])
    for name in ("resnet18", "resnet50", "mobilenet_v2"):
        targets = Targets(2.5 if name.startswith("resnet") else None)
        add(name, lambda name=name: zoo.build(name, 224), [(n, 3, 224, 224) for n in (1, 8)], targets=targets)
    add("unet", seeded(UNet), [(n, 3, 128, 128) for n in (1, 8)])
    add("volumes", seeded(volumes), [(n, 3, 16, 56, 56) for n in (1, 4)])
    linear = seeded(lambda: nn.Sequential(nn.Linear(768, 3072)))
    for n in (1, 16, 128):
        found.append(Row(f"dynamic-linear/rows={n}", "dynamic-linear", linear, (n, 768), DYNAMIC))
    for name, kind in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        build = seeded(lambda kind=kind: Sequence(kind))
        add(name, build, [(n, 32, 128) for n in (1, 16)], kind=DYNAMIC)
    bags = seeded(lambda: nn.Sequential(nn.EmbeddingBag(ENTRIES, 128, mode="sum")))
    add("embedding-bag", bags, [(n, 32) for n in (64, 1024)], kind=DYNAMIC, entries=ENTRIES)
    for n in (1, 4):
        square = seeded(lambda: nn.Sequential(nn.Linear(4096, 4096)))
        found.append(Row(f"weights-only/rows={n}", "weights-only", square, (n, 4096), WEIGHTS_ALONE, Targets(3.0)))
    for network in ("efficientnet_b0", "convnext_tiny"):
        add(network, lambda network=network: zoo.build(network, 224), [(1, 3, 224, 224)])
    for suffix, kind in (("", STATIC), ("-dynamic", DYNAMIC)):
        of_kind = dict(kind=kind, targets=TRANSFORMER)
        add(f"vit_b_16{suffix}", lambda: zoo.build("vit_b_16", 224), [(1, 3, 224, 224)], **of_kind)
        add(f"bert-base{suffix}", seeded(encoder), [(1, 128, 768)], **of_kind)
    return found


@dataclass(frozen=True)
class Work:
    """Of one forward pass: multiply-accumulates, and the bytes of an int8 network that have to pass at least.

    These are weights, biases, float input and output, and each layer's codes, written and read once; of a table only
    the rows that are asked for.
    """

    macs: int
    nbytes: int


def work(model: nn.Module, batch: torch.Tensor, weight_bytes: int) -> Work:
    """Counted while the float network runs: by operation, and by layer what layers write."""
    codes, tables, hooks = [], [], []

    def count(module: nn.Module, inputs, output) -> None:
        if isinstance(module, nn.EmbeddingBag):
            looked_up = inputs[0].numel() - module.num_embeddings
            tables.append(looked_up * (module.embedding_dim + 4))  # a row's codes and its scale
        else:
            codes.append(2 * output.numel())

    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.EmbeddingBag)):
            hooks.append(module.register_forward_hook(count))
    # In inference mode torch computes attention by operations that are not counted.
    with torch.no_grad(), Products() as products:
        output = model(batch)
    for hook in hooks:
        hook.remove()
    # The last layer's codes become floats at once.
    floats = batch.nbytes + output.nbytes
    return Work(products.take(), weight_bytes + sum(tables) + floats + sum(codes[:-1]))
