"""Quantized networks of every kind of step, and the parts of their files."""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import quantspec
from networks import inputs, seeded
from quantspec.storage import file as storage_file


class Tagger(nn.Module):
    """Embedding, LSTM, linear: tags for words."""

    def __init__(self):
        super().__init__()
        self.words, self.tags = nn.Embedding(20, 6), nn.Linear(10, 3)
        self.lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.tags(self.lstm(self.words(x))[0])


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=8),
        nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.Softmax(-1),
    )  # fmt: skip


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))


WORDS = torch.arange(12).reshape(2, 6)


def quantized(build, calibration, x, **options):
    """How to make a network and an input for it."""
    return lambda: (quantspec.quantize(seeded(build), [calibration], **options), x)


def dynamic(build, x, **options):
    return lambda: (quantspec.quantize_dynamic(seeded(build), example=x, **options), x)


IMAGES, IMAGE = inputs(4, (3, 9, 9)), inputs(3, (3, 9, 9), 2)
NETWORKS = {
    "cnn": quantized(cnn, IMAGES, IMAGE),
    "mlp": quantized(mlp, inputs(), inputs(3)),
    "mlp of 5 bits, partly in float": quantized(mlp, inputs(), inputs(3), bits=5, exclude="3"),
    "tagger": dynamic(Tagger, WORDS),
    "weights alone": dynamic(mlp, inputs(3), activations=None),
    "encoder": quantized(encoder, inputs(2, (5, 8)), inputs(3, (5, 8), 2)),
    "dynamic encoder": dynamic(encoder, inputs(3, (5, 8), 2), activations="per_token"),
    "dialect fbgemm": quantized(cnn, IMAGES, IMAGE, dialect="fbgemm"),
}


def resigned(tensors, network, **changes) -> bytes:
    """A file with that content and the checksum that belongs to it."""
    content = {"report": None, "network": network}
    header = {"format": "quantspec", "version": storage_file.VERSION} | content
    header |= {"sha256": storage_file.digest(content, tensors)} | changes
    return safetensors.torch.save(tensors, {"quantspec": json.dumps(header)})


def written(path: Path, data: bytes) -> None:
    """A new file in place of one: one that is emptied and written again may have to reach the disk before it is closed,
    which takes longer than to read it.
    """
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def parts(data: bytes):
    """Tensors and JSON of a file."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["quantspec"])
    return safetensors.torch.load(data), header["network"]
