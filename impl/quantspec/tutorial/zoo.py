"""Networks to try quantization on, without a download; ``quantspec zoo`` measures them.

``build`` makes a network of torchvision, an LSTM or a transformer encoder, and ``inputs`` makes data for it. Weights
are random and seeded; the statistics of normalization layers are computed from structured images. A network can
therefore be compared with its int8 form, but it does not classify anything. torchvision's networks need the extra
``tutorial``.

Example:
    ```python
    model = qs.zoo.build("resnet18", 224)
    q = qs.quantize(model, [qs.zoo.images(4, 224, seed=0)])
    print(qs.compare(model, q, [qs.zoo.images(4, 224, seed=1)]))
    ```
"""

import resource
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from rich.table import Table
from torch import nn

from quantspec.comparison.compare import compare
from quantspec.errors import expected_one_of
from quantspec.ir.program import Call
from quantspec.module.module import QuantizedModule
from quantspec.numerics import accuracy
from quantspec.ptq.static import quantize
from quantspec.torchvision_compat import import_torchvision

from . import rows as shared
from .rows import Column, decibels, first_line, percent

__all__ = ["NAMES", "build", "images", "inputs", "sentences"]  # what is public; the rest is the command's

CONVOLUTIONAL = (
    "resnet18", "resnet50", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "googlenet",
    "inception_v3", "squeezenet1_1", "shufflenet_v2_x1_0", "densenet121", "regnet_y_400mf", "mnasnet1_0",
    "convnext_tiny",
)  # fmt: skip
TRANSFORMERS = ("vit_b_16", "swin_t")
SEQUENCES = ("lstm_tagger", "transformer_encoder")
NAMES = (*CONVOLUTIONAL, *TRANSFORMERS, *SEQUENCES)
"""The names that ``build`` takes."""
WORDS, TAGS, LENGTH = 200, 12, 24
CALIBRATION, TEST = 4, 4  # images


@dataclass(frozen=True, kw_only=True)
class Row(shared.Quantized):
    """One network. ``layers``: how many became int8, and how many of them in torch.ao too; where those are fewer,
    ``same_sqnr`` is ours with only these in int8. ``peak_mb`` of the process; ``ran``: shapes of inputs it ran on;
    ``left`` in float, by reason; ``onnx``: (outputs compared with ONNX Runtime, how many codes differ), None and
    ``onnx_reason`` where there is no export; where codes differ, ``onnx_same_floats`` is the same of all that lies
    between operations in float, which both then take our floats from (STA-RUNTIME)."""

    name: str
    layers: int
    peer_layers: int | None
    same_sqnr: float | None
    peak_mb: float
    ran: tuple[tuple[int, ...], ...]
    left: dict[str, int]
    onnx: tuple[int, int] | None
    onnx_reason: str
    onnx_same_floats: tuple[int, int] | None


class LSTMTagger(nn.Module):
    """A tag for each word of a sentence, from an LSTM in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(WORDS, 64), nn.LSTM(64, 96, batch_first=True, bidirectional=True)
        self.head = nn.Linear(192, TAGS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores [sentences, words, tags] of words (integers) [sentences, words]."""
        scores: torch.Tensor = self.head(self.lstm(self.embed(words))[0])
        return scores


class Encoder(nn.Module):
    """The same from torch's own transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, TAGS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores [sentences, words, tags] of words (integers) [sentences, words]."""
        scores: torch.Tensor = self.head(self.encoder(self.embed(words)))
        return scores


def images(count: int, size: int, seed: int) -> torch.Tensor:
    """Smooth random images with noise, float32 [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return smooth + 0.2 * torch.randn(count, 3, size, size, generator=generator)


def sentences(count: int, seed: int, length: int = LENGTH) -> torch.Tensor:
    """Random words, int64 [count, length]."""
    return torch.randint(0, WORDS, (count, length), generator=torch.Generator().manual_seed(seed))


def build(name: str, size: int) -> nn.Module:
    """A network in evaluation mode with seeded weights.

    Args:
        name: one of ``NAMES``.
        size: height and width of the images that it will see; ``lstm_tagger`` and ``transformer_encoder`` read words
            and ignore it.

    Raises:
        ValueError: for an unknown name.
        MissingExtraError: for a network of torchvision, where that is not installed.
    """
    if name not in NAMES:
        raise ValueError(expected_one_of("model", NAMES, name))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's remarks on how it will initialise next year
        torch.manual_seed(0)
        if name in SEQUENCES:
            return (LSTMTagger() if name == "lstm_tagger" else Encoder()).eval()
        import_torchvision()
        from torchvision import models

        heads = {"googlenet": {"aux_logits": False, "init_weights": True}, "inception_v3": {"init_weights": True}}
        model = cast(nn.Module, getattr(models, name)(weights=None, **heads.get(name, {})))
        for module in model.modules():  # a head of zeros would have no function to keep
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)
        model.train()
        with torch.no_grad():
            for seed in range(2):
                model(images(4, size, seed))
        if name == "inception_v3":  # its second head is for training only
            model.aux_logits, model.AuxLogits = False, None  # type: ignore[assignment]  # as torchvision has it
        return model.eval()


def inputs(name: str, count: int, size: int, seed: int) -> torch.Tensor:
    """Random inputs for a network: ``count`` images of ``size`` x ``size``, or ``count`` sentences."""
    return sentences(count, seed) if name in SEQUENCES else images(count, size, seed)


def shapes(name: str, size: int) -> list[torch.Tensor]:
    """What a network has to run on: batches of 1 and 5, and another size where it takes any."""
    if name in SEQUENCES:
        return [sentences(1, 7), sentences(5, 8), sentences(2, 9, LENGTH // 2)]
    others = [] if name == "vit_b_16" else [images(1, size - 32, 9)]
    return [images(1, size, 7), images(5, size, 8), *others]


def row(name: str, *, size: int | None = None) -> Row:
    """Quantizes one network and measures it, in this process. ``size``: of the images, torchvision's usual one if not
    given."""
    size = size or (299 if name == "inception_v3" else 224)
    model = build(name, size)
    calibration = inputs(name, CALIBRATION, size, 100)
    start = time.perf_counter()
    q = quantize(model, [calibration])
    assert isinstance(q, QuantizedModule)  # the networks of the zoo are captured as a whole
    seconds = time.perf_counter() - start
    test = inputs(name, TEST, size, 200)
    found = compare(model, q, [test])
    with torch.no_grad():
        for batch in shapes(name, size):
            expected, got = model(batch), q(batch)
            if got.shape != expected.shape or not torch.isfinite(got).all():
                what = f"{tuple(batch.shape)} gave {tuple(got.shape)}, expected {tuple(expected.shape)}"
                raise ValueError(f"model {name}: {what} finite numbers")
        expected = model(test)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    own = {step.layer for step in q.program.layers}
    theirs, peer, reason = torch_ao(model, calibration, test, expected)
    same = None
    if peer is not None and (more := own - theirs):
        # A product that became a layer of its own has no module that could be excluded.
        modules = dict(model.named_modules())
        fewer = quantize(model, [calibration], exclude=sorted(more & modules.keys()))
        same = accuracy.sqnr(expected.numpy(), fewer(test).detach().numpy())
    onnx, onnx_reason = exported(q, shapes(name, size)[0])
    between = exported(q, shapes(name, size)[0], same_floats=True)[0] if onnx is not None and onnx[1] else None
    left: dict[str, int] = {}
    for step in q.program.steps:
        if isinstance(step, Call) and step.reason:
            left[step.reason] = left.get(step.reason, 0) + 1
    return Row(
        name=name, sqnr=found.sqnr, peer_sqnr=peer, peer_reason=reason, layers=len(own),
        peer_layers=None if peer is None else len(own & theirs), same_sqnr=same, int8_macs=found.int8_macs,
        compression=found.compression, seconds=seconds, peak_mb=peak,
        ran=tuple(tuple(batch.shape) for batch in shapes(name, size)), left=left, onnx=onnx, onnx_reason=onnx_reason,
        onnx_same_floats=between,
    )  # fmt: skip


def torch_ao(
    model: nn.Module, calibration: torch.Tensor, test: torch.Tensor, expected: torch.Tensor
) -> tuple[set[str], float | None, str]:
    """The layers that torch.ao makes int8 and the SQNR of what comes out, or why nothing does."""
    from . import torch_fx

    try:
        converted = torch_fx.quantized(model, [calibration])
        return torch_fx.int8_layers(converted), accuracy.sqnr(expected.numpy(), converted(test).numpy()), ""
    except Exception as error:  # whatever another library raises is its answer
        return set(), None, first_line(error)


def exported(
    q: QuantizedModule, batch: torch.Tensor, *, same_floats: bool = False
) -> tuple[tuple[int, int] | None, str]:
    """How many codes ONNX Runtime gives for an exported network, and how many of them differ; or why there is no
    answer."""
    from quantspec.errors import UnsupportedError
    from quantspec.onnx_export import check

    try:
        return check.compare_codes(q, batch, same_floats=same_floats), ""
    except (UnsupportedError, ImportError) as error:
        return None, str(error)


def rows(names: list[str]) -> Iterator[Row]:
    """The rows, each measured in a process of its own, so that the peak is this network's."""
    return shared.measured(row, names, each=1)


def table(found: list[Row]) -> Table:
    """The rows as a table."""
    columns: list[Column[Row]] = [
        Column("network", lambda r: r.name),
        Column("SQNR", lambda r: decibels(r.sqnr)),
        Column("torch.ao", lambda r: decibels(r.peer_sqnr)),
        Column("in int8", lambda r: percent(r.int8_macs)),
        Column("smaller", lambda r: f"{r.compression:.2f}x"),
        Column("s", lambda r: f"{r.seconds:.1f}"),
        Column("MB", lambda r: f"{r.peak_mb:,.0f}"),
        Column("ONNX ≠", lambda r: "–" if r.onnx is None else f"{r.onnx[1]}/{r.onnx[0]:,}"),
    ]
    return shared.table("networks in int8: SQNR in dB, work in int8, codes that differ in ONNX Runtime", columns, found)


def as_json(found: list[Row]) -> dict[str, Any]:
    """The rows as plain data."""
    return {"rows": [asdict(r) | {"ran": [list(shape) for shape in r.ran]} for r in found]}
