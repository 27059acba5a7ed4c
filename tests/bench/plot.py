"""A picture of a run: ratios to the best peers, by row."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

KINDS = (("vs_float32", "best float32", "#4c78a8"), ("vs_int8", "best int8 peer", "#f58518"))


def draw(run: dict, path: Path) -> None:
    """Writes the picture; nothing when there are no rows."""
    rows = run["rows"][::-1]
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.34 * len(rows)), layout="constrained")
    for offset, (key, name, colour) in zip((0.2, -0.2), KINDS):
        values = [row[key] or 0 for row in rows]
        bars = axes.barh([index + offset for index in range(len(rows))], values, 0.4, label=name, color=colour)
        axes.bar_label(bars, [f"{value:.2f}" if value else "–" for value in values], padding=2, fontsize=7)
    several = len({row["threads"] for row in rows}) > 1
    threads = [f" ({row['threads']} threads)" if several and row["threads"] > 1 else "" for row in rows]
    names = [row["row"] + suffix for row, suffix in zip(rows, threads)]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("times as fast as the best peer (one thread unless said otherwise)")
    axes.margins(x=0.08)
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
