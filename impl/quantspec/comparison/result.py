"""What ``compare`` returns: a table, data, and a picture (ACC-COMPARE)."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantspec.extras import needed
from quantspec.module.printed import at_dots, grouped, new_table, printed, wrapped

RED, BLUE, GREY, BLACK = "#c0392b", "#2f6db3", "#b7bfcc", "#1d2433"


@dataclass(frozen=True)
class LayerRow:
    """One layer: ``sqnr`` in dB of what it gives, beside float; ``macs`` on the data compared; ``bytes`` stored;
    ``int8``: whether it is, else ``reason``."""

    layer: str
    sqnr: float
    macs: int
    bytes: int
    int8: bool
    reason: str


@dataclass(frozen=True)
class Comparison:
    """The result of ``compare``; ``print`` it for a table.

    Attributes:
        layers: one row for each layer.
        sqnr: signal-to-quantization-noise ratio of the outputs in dB.
        parted: the first layer whose SQNR is below ``threshold``, or None.
        threshold: the limit in dB that ``compare`` was given.
        float_bytes: size of the float model.
        int8_bytes: size of the quantized network.
        int8_macs: share of the multiply-accumulates that are in int8, 0 to 1.
        examples: number of examples compared.
        float_accuracy: accuracy of the float model, where the data has targets.
        int8_accuracy: accuracy of the quantized network, likewise.
        changed: number of examples whose predicted class changed.
        changed_at_most: upper bound, at 99 % confidence, for the share of all inputs whose predicted class changes.
    """

    layers: tuple[LayerRow, ...]
    sqnr: float
    parted: str | None
    threshold: float
    float_bytes: int
    int8_bytes: int
    int8_macs: float
    examples: int
    float_accuracy: float | None = None
    int8_accuracy: float | None = None
    changed: int | None = None
    changed_at_most: float | None = None

    @property
    def compression(self) -> float:
        """``float_bytes`` / ``int8_bytes``; infinite for a network that holds nothing."""
        return self.float_bytes / self.int8_bytes if self.int8_bytes else math.inf

    def as_json(self) -> dict[str, Any]:
        """The comparison as a dict for JSON, with infinities as strings."""
        shown: dict[str, Any] = plain(asdict(self) | {"compression": self.compression})
        return shown

    def __str__(self) -> str:
        table = new_table(f"int8 beside float32, {self.examples} examples", "layer", "SQNR, dB", "MACs", "bytes")
        table.add_column(no_wrap=True)
        for row in self.layers:
            note = "" if row.int8 else "float32"
            note = f"below {self.threshold:g} dB" if row.layer == self.parted else note
            table.add_row(at_dots(row.layer), f"{row.sqnr:.1f}", f"{row.macs:,}", f"{row.bytes:,}", note)
        table.add_section()
        work, smaller = f"{self.int8_macs:.1%} in int8", f"{self.compression:.2f}x smaller"
        table.add_row("output", f"{self.sqnr:.1f}", work, f"{self.int8_bytes:,}", smaller)
        lines = [printed(table)]
        if self.parted is not None:
            lines += wrapped(f"{self.parted} is the first layer whose SQNR is below {self.threshold:g} dB.", 0)
        lines += grouped("in float32:", [(row.layer, row.reason) for row in self.layers if not row.int8])
        if self.float_accuracy is not None and self.int8_accuracy is not None:
            drop = 100 * (self.float_accuracy - self.int8_accuracy)
            accuracies = f"accuracy {self.float_accuracy:.2%} in float32, {self.int8_accuracy:.2%} in int8"
            changes = f"{self.changed} answers changed, at most {self.changed_at_most:.2%} of all (99 % confidence)"
            lines += wrapped(f"{accuracies}: a drop of {drop:.2f} points; {changes}", 0)
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Writes a chart of the layers' SQNR to a PNG, SVG or PDF file.

        Raises:
            MissingExtraError: when matplotlib is not installed.
        """
        rows = self.layers
        new_figure = needed("matplotlib.figure", "plots", "a plot of the comparison").Figure
        figure = new_figure(figsize=(8, max(2.5, 0.22 * len(rows) + 1.2)), layout="constrained")
        axes = figure.subplots()
        finite = [min(row.sqnr, 99.0) for row in rows]
        colours = [RED if row.layer == self.parted else BLUE if row.int8 else GREY for row in rows]
        axes.barh(range(len(rows)), finite, color=colours)
        axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.axvline(self.threshold, color=BLACK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("SQNR in dB, int8 beside float32 (grey: stayed in float)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.01)
        figure.savefig(path, dpi=120)


def plain(value: Any) -> Any:
    """A tree without tuples and without floats that JSON has not."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
