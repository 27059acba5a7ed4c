"""YOLO detectors as their public implementations are built: modules in a list that name by index what they read, and a
forward that saves outputs for those and joins them. The heads keep the grid of the last image size."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from quantspec.tutorial.zoo import images

from .network import Network

CLASSES, SIZE = 6, 64
Source = int | Sequence[int]


class ConvUnit(nn.Module):
    """A convolution, its normalization and activation."""

    def __init__(
        self, c1: int, c2: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn, self.act = nn.BatchNorm2d(c2, eps=1e-3), nn.SiLU(inplace=True) if act is None else act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(self.bn(self.conv(x)))
        return result


class Bottleneck(nn.Module):
    """Two convolutions beside what they read."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = ConvUnit(c1, c2, 3), ConvUnit(c2, c2, 3), shortcut and c1 == c2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))
        return result


class C3(nn.Module):
    """Version 5's block: three convolutions, of which one path goes through bottlenecks."""

    def __init__(self, c1: int, c2: int, count: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        half = c2 // 2
        self.cv1, self.cv2, self.cv3 = ConvUnit(c1, half), ConvUnit(c1, half), ConvUnit(2 * half, c2)
        self.m = nn.Sequential(*(Bottleneck(half, half, shortcut) for _ in range(count)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return result


class C2f(nn.Module):
    """Version 8's block: every bottleneck's output is joined."""

    def __init__(self, c1: int, c2: int, count: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = ConvUnit(c1, 2 * self.c), ConvUnit((2 + count) * self.c, c2)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c, shortcut) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        result: torch.Tensor = self.cv2(torch.cat(y, 1))
        return result


class ELAN(nn.Module):
    """Version 7's block: outputs at several depths are joined."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        half = c2 // 2
        act = partial(nn.LeakyReLU, 0.1, inplace=True)
        self.cv1, self.cv2 = ConvUnit(c1, half, act=act()), ConvUnit(c1, half, act=act())
        self.m = nn.ModuleList(ConvUnit(half, half, 3, act=act()) for _ in range(2))
        self.out = ConvUnit(4 * half, c2, act=act())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = [self.cv1(x), self.cv2(x)]
        for m in self.m:
            y.append(m(y[-1]))
        result: torch.Tensor = self.out(torch.cat(y[::-1], 1))
        return result


class RepConv(nn.Module):
    """Version 7's branches of 3 x 3, 1 x 1 and identity, as they are trained."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.Conv2d(c1, c2, 3, 1, 1, bias=False), nn.BatchNorm2d(c2))
        self.point = nn.Sequential(nn.Conv2d(c1, c2, 1, bias=False), nn.BatchNorm2d(c2))
        self.identity = nn.BatchNorm2d(c1) if c1 == c2 else None
        self.act = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity: Any = 0 if self.identity is None else self.identity(x)
        result: torch.Tensor = self.act(self.dense(x) + self.point(x) + identity)
        return result


class SPPF(nn.Module):
    """Poolings of growing size, joined."""

    def __init__(self, c1: int, c2: int, kernel: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvUnit(c1, c1 // 2), ConvUnit(2 * c1, c2)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        result: torch.Tensor = self.cv2(torch.cat(y, 1))
        return result


class PSA(nn.Module):
    """Version 11's attention over positions, written with reshapes and products."""

    def __init__(self, c: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.head_dim, self.key_dim = heads, c // heads, c // heads // 2
        self.qkv = ConvUnit(c, c + 2 * self.key_dim * heads, act=nn.Identity())
        self.proj, self.pe = ConvUnit(c, c, act=nn.Identity()), ConvUnit(c, c, 3, groups=c, act=nn.Identity())
        self.ffn = nn.Sequential(ConvUnit(c, 2 * c), ConvUnit(2 * c, c, act=nn.Identity()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, c, height, width = x.shape
        qkv = self.qkv(x).view(batch, self.heads, 2 * self.key_dim + self.head_dim, height * width)
        q, k, v = torch.split(qkv, [self.key_dim, self.key_dim, self.head_dim], dim=2)
        weights = (q.transpose(-2, -1) @ k * self.key_dim**-0.5).softmax(dim=-1)
        attended = (v @ weights.transpose(-2, -1)).view(batch, c, height, width)
        x = x + self.proj(attended + self.pe(v.reshape(batch, c, height, width)))
        result: torch.Tensor = x + self.ffn(x)
        return result


class Concat(nn.Module):
    """Joins what it is given along the channels."""

    def forward(self, x: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(x, 1)


class AnchorHead(nn.Module):
    """The head of versions 3 to 7: boxes relative to anchors."""

    grid: list[torch.Tensor]
    anchors: torch.Tensor

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.outputs, self.strides, self.grid = CLASSES + 5, strides, [torch.empty(0) for _ in channels]
        self.register_buffer("anchors", torch.tensor([[[1.0, 1.5], [2.0, 1.0], [3.0, 3.0]]] * len(channels)))
        self.m = nn.ModuleList(nn.Conv2d(c, 3 * self.outputs, 1) for c in channels)

    def forward(self, x: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        boxes = []
        for i, conv in enumerate(self.m):
            x[i] = conv(x[i])
            batch, _, height, width = x[i].shape
            x[i] = x[i].view(batch, 3, self.outputs, height, width).permute(0, 1, 3, 4, 2).contiguous()
            if self.grid[i].shape[2:4] != x[i].shape[2:4]:
                self.grid[i] = self.make_grid(height, width)
            xy, wh, scores = torch.split(x[i].sigmoid(), [2, 2, CLASSES + 1], 4)
            xy = (xy * 2 + self.grid[i]) * self.strides[i]
            wh = (wh * 2) ** 2 * (self.anchors[i] * self.strides[i]).view(1, 3, 1, 1, 2)
            boxes.append(torch.cat((xy, wh, scores), 4).view(batch, 3 * height * width, self.outputs))
        return torch.cat(boxes, 1), x

    def make_grid(self, height: int, width: int) -> torch.Tensor:
        """The upper left corners of cells, less a half."""
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack((x, y), 2).expand(1, 3, height, width, 2) - 0.5


class Detect(nn.Module):
    """The head of versions 8 to 11: distances to the sides as distributions, no anchors."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], bins: int = 8) -> None:
        super().__init__()
        self.bins, self.strides, self.shape = bins, strides, None
        c2, c3 = max(16, channels[0] // 4), max(channels[0], CLASSES)
        self.cv2 = nn.ModuleList(self.branch(c, c2, 4 * bins) for c in channels)
        self.cv3 = nn.ModuleList(self.branch(c, c3, CLASSES) for c in channels)
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data[:] = torch.arange(float(bins)).view(1, bins, 1, 1)

    @staticmethod
    def branch(c1: int, c2: int, outputs: int) -> nn.Sequential:
        """The convolutions in front of one kind of output."""
        return nn.Sequential(ConvUnit(c1, c2, 3), ConvUnit(c2, c2, 3), nn.Conv2d(c2, outputs, 1))

    def forward(self, x: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        shape = x[0].shape
        for i in range(len(x)):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if self.shape != shape:
            self.cells, self.steps = self.make_cells(x)
            self.shape = shape  # type: ignore[assignment]  # None before the first image
        flat = torch.cat([xi.view(shape[0], 4 * self.bins + CLASSES, -1) for xi in x], 2)
        box, scores = torch.split(flat, [4 * self.bins, CLASSES], 1)
        distances = box.view(shape[0], 4, self.bins, -1).transpose(2, 1).softmax(1)
        near, far = self.dfl(distances).view(shape[0], 4, -1).chunk(2, 1)
        corners = torch.cat((self.cells - near, self.cells + far), 1)
        return torch.cat((corners * self.steps, scores.sigmoid()), 1), x

    def make_cells(self, x: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The middle of each cell in cells, [1, 2, cells], and the stride of each, [1, cells]."""
        points, steps = [], []
        for xi, stride in zip(x, self.strides, strict=True):
            height, width = xi.shape[-2:]
            rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
            points.append(torch.stack((columns, rows), -1).view(-1, 2))
            steps.append(torch.full((height * width,), float(stride)))
        return torch.cat(points).transpose(0, 1)[None], torch.cat(steps)[None]


class Detector(nn.Module):
    """Layers in a list: each with the index of what it reads (-1: the layer before it)."""

    def __init__(self, layers: Sequence[tuple[Source, nn.Module]]) -> None:
        super().__init__()
        self.save: set[int] = set()
        for number, (source, module) in enumerate(layers):
            indices = [source] if isinstance(source, int) else source
            self.save.update(index % number for index in indices if index != -1)
            module.i, module.f = number, source  # type: ignore[assignment]  # attributes, as the public ones have
        self.model: Any = nn.Sequential(*(module for _, module in layers))

    def forward(self, x: Any) -> Any:
        """The boxes of images [images, 3, height, width], and the maps that they were made of."""
        y: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = y[m.f] if isinstance(m.f, int) else [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x


def up() -> nn.Module:
    """Twice the size."""
    return nn.Upsample(scale_factor=2, mode="nearest")


def yolo_v3_tiny() -> nn.Module:
    """Convolutions with leaky ReLU and poolings, two scales."""
    unit = partial(ConvUnit, act=nn.LeakyReLU(0.1))
    return Detector([
        (-1, unit(3, 8, 3)), (-1, nn.MaxPool2d(2)), (-1, unit(8, 16, 3)), (-1, nn.MaxPool2d(2)),
        (-1, unit(16, 32, 3)), (-1, nn.MaxPool2d(2)), (-1, unit(32, 64, 3)), (-1, nn.MaxPool2d(2)),
        (-1, unit(64, 128, 3)), (-1, nn.ZeroPad2d((0, 1, 0, 1))), (-1, nn.MaxPool2d(2, 1)), (-1, unit(128, 64)),
        (-2, unit(128, 32)), (-1, up()), ((-1, 6), Concat()), (-1, unit(96, 64, 3)),
        ((15, 11), AnchorHead((64, 64), (8, 16))),
    ])  # fmt: skip


def pyramid(block: Callable[..., nn.Module], head: nn.Module, middle: Sequence[nn.Module] = ()) -> nn.Module:
    """A backbone down to an eighth, a sixteenth and a thirty-second, and paths up and down between them."""
    at = 9 + len(middle)  # the last layer of the backbone
    return Detector([
        (-1, ConvUnit(3, 16, 3, 2)), (-1, ConvUnit(16, 32, 3, 2)), (-1, block(32, 32)),
        (-1, ConvUnit(32, 32, 3, 2)), (-1, block(32, 32)), (-1, ConvUnit(32, 64, 3, 2)), (-1, block(64, 64)),
        (-1, ConvUnit(64, 128, 3, 2)), (-1, block(128, 128)), (-1, SPPF(128, 128)),
        *((-1, module) for module in middle),
        (-1, up()), ((-1, 6), Concat()), (-1, block(192, 64)),
        (-1, up()), ((-1, 4), Concat()), (-1, block(96, 32)),
        (-1, ConvUnit(32, 32, 3, 2)), ((-1, at + 3), Concat()), (-1, block(96, 64)),
        (-1, ConvUnit(64, 64, 3, 2)), ((-1, at), Concat()), (-1, block(192, 128)),
        ((at + 6, at + 9, at + 12), head),
    ])  # fmt: skip


CHANNELS, STRIDES = (32, 64, 128), (8, 16, 32)


def repeated(c1: int, c2: int) -> nn.Module:
    """Version 7's block with branches behind it."""
    return nn.Sequential(ELAN(c1, c2), RepConv(c2, c2))


NETWORKS = {
    name: Network(build, lambda seed: images(2, SIZE, seed))
    for name, build in {
        "yolo_v3_tiny": yolo_v3_tiny,
        "yolo_v5": lambda: pyramid(C3, AnchorHead(CHANNELS, STRIDES)),
        "yolo_v7": lambda: pyramid(repeated, AnchorHead(CHANNELS, STRIDES)),
        "yolo_v8": lambda: pyramid(C2f, Detect(CHANNELS, STRIDES)),
        "yolo_v11": lambda: pyramid(C2f, Detect(CHANNELS, STRIDES), [PSA(128)]),
    }.items()
}
