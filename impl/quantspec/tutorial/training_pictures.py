"""The report's part about training at few bits: tables, accuracy over bits, and one weight's way across its grid."""

import html
from typing import TYPE_CHECKING

import numpy as np

from . import few_bits, shipped
from .drawing import FLOAT, INK, INT8, axes, picture, section, table
from .few_bits import Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVER_BITS = "Test accuracy with weights of 8, 4, 3 and 2 bits, calibrated and trained; the line is the float network."
WAYS = (
    "The weight whose code changed most often while it was trained: its value in grey, the value of its code in orange "
    "on the grid of the codes at the end. What a step rounds to is what the integer network multiplies by."
)


def sections(training: Training) -> list[str]:
    """The parts of the page."""
    rows = [
        [str(row.bits), f"{row.calibrated:.2%}", f"{row.trained:.2%}", f"{100 * (row.trained - row.float32):+.2f} pp",
         f"{row.differ:,} / {row.compared:,}", f"{row.seconds:.0f} s"]
        for row in training.rows
    ]  # fmt: skip
    head = ["bits of weights", "calibrated", "trained", "change", "outputs that differ", "training"]
    few = table(head, rows) + picture(over_bits(training), OVER_BITS) + picture(ways(training), WAYS)
    beside = []
    for row in training.shipped:
        counts = f"{row.differ:,} / {row.values:,}", f"{row.outputs_differ:,} / {row.outputs:,}"
        peer = "–" if row.peer_differ is None else f"{row.peer_differ:,} / {row.peer_outputs:,}"
        beside.append([row.network, str(row.bits), row.dialect, row.engine, *counts, peer])
    head = ["network", "bits", "dialect", "engine", "values of all layers", "outputs", f"torch.ao {shipped.PEER}"]
    reasons = {row.network: row.peer_reason for row in training.shipped if row.peer_reason}
    notes = "".join(f"<p class=soft>{html.escape(name)}: {html.escape(why)}</p>" for name, why in reasons.items())
    return [
        section("Training at few bits", few, few_bits.TOLD),
        section("What was trained beside what is shipped", table(head, beside, tall=True) + notes, shipped.TOLD),
    ]


def over_bits(training: Training) -> "Figure":
    """Accuracy over bits of weights."""
    rows = training.rows
    figure, ((ax,),) = axes(5.4, 2.8)
    places = range(len(rows))
    ax.axhline(rows[0].float32 * 100, color=FLOAT, linewidth=1, linestyle="--")
    ax.plot(places, [row.calibrated * 100 for row in rows], "o-", color=FLOAT, label="calibrated")
    ax.plot(places, [row.trained * 100 for row in rows], "o-", color=INT8, label="trained")
    for place, row in zip(places, rows):
        for value, colour, below in ((row.trained, INT8, False), (row.calibrated, INK, True)):
            ax.annotate(
                f"{value:.1%}", (place, value * 100), xytext=(0, -13 if below else 6), textcoords="offset points",
                ha="center", fontsize=8, color=colour,
            )  # fmt: skip
    lowest = min(min(row.calibrated, row.trained) for row in rows) * 100
    ax.set(xticks=places, xticklabels=[str(row.bits) for row in rows], xlabel="bits of weights", ylabel="right, %")
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 100])
    ax.set_ylim(max(0.0, lowest - 14), 108)
    ax.legend(fontsize=8, frameon=False, loc="lower left")
    return figure


def ways(training: Training) -> "Figure":
    """One weight's way at the two smallest numbers of bits."""
    rows = sorted(training.rows, key=lambda row: row.bits)[:2]
    figure, all_axes = axes(5.4, 2.4 * len(rows), nrows=len(rows))
    for (ax,), row in zip(all_axes, rows):
        way, steps = row.way, np.arange(len(row.way.values))
        codes = way.codes
        for code in range(max(way.qmin, int(codes.min()) - 1), min(way.qmax, int(codes.max()) + 1) + 1):
            ax.axhline(code * float(way.scales[-1]), color="#d9dee7", linewidth=0.8, zorder=0)
        ax.plot(steps, codes * way.scales, color=INT8, linewidth=0.9, drawstyle="steps-post", label="its code")
        ax.plot(steps, way.values, color=FLOAT, linewidth=1.2, label="weight")
        changes = int((codes[1:] != codes[:-1]).sum())
        place = f"{way.layer}[{way.place[0]}, {way.place[1]}]"
        ax.set_title(f"{row.bits} bits: {place}, {changes} changes of code", fontsize=10, loc="left", color=INK)
        ax.set(xlabel="step", ylabel="value")
        ax.legend(fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(1, 1.18), ncols=2)
    return figure
