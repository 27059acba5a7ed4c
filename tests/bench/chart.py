"""The charts of the recorded speeds, as SVG: ratios to the fastest peers, a pair of bars for each row."""

from html import escape

KINDS = (("vs_float32", "best float32", "#4c78a8"), ("vs_int8", "best int8 peer", "#e07b1a"))
INK, GRID = "#1d2433", "#c9d0db"
LEFT, RIGHT, TOP, STEP, BAR = 190, 680, 58, 30, 11


def of_all_rows(run: dict) -> str:
    """The chart of all rows on one thread."""
    return chart([row for row in run["rows"] if row["threads"] == 1])


def of_one_example(run: dict) -> str:
    """The chart of those of a single example."""
    return chart([row for row in run["rows"] if row["threads"] == 1 and row["row"].endswith("=1")])


def chart(rows: list[dict]) -> str:
    """Horizontal bars; a line at 1, where quantspec takes as long as the peer."""
    most = max((row[key] or 0 for row in rows for key, _, _ in KINDS), default=1)
    height = TOP + STEP * len(rows) + 34

    def x(value: float) -> float:
        return LEFT + value / most * (RIGHT - LEFT)

    parts = [text(LEFT, 20, "times as fast as the fastest peer, one thread (longer is better)")]
    for index, (_, name, colour) in enumerate(KINDS):
        parts.append(f'<rect x="{LEFT + 150 * index}" y="31" width="12" height="12" fill="{colour}"/>')
        parts.append(text(LEFT + 18 + 150 * index, 42, name))
    bottom = TOP + STEP * len(rows)
    for value in range(int(most) + 1):
        strong = value == 1
        parts.append(
            f'<line x1="{x(value):.1f}" y1="{TOP - 6}" x2="{x(value):.1f}" y2="{bottom}" '
            f'stroke="{INK if strong else GRID}" stroke-width="{1.5 if strong else 1}"/>'
        )
        parts.append(text(x(value), bottom + 18, f"{value}", anchor="middle"))
    for index, row in enumerate(rows):
        top = TOP + STEP * index
        parts.append(text(LEFT - 10, top + 16, row["row"], anchor="end"))
        for which, (key, _, colour) in enumerate(KINDS):
            if row[key] is not None:
                y, width = top + which * BAR, x(row[key]) - LEFT
                parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 1}" fill="{colour}"/>')
                parts.append(text(x(row[key]) + 4, y + 9, f"{row[key]:.2f}", size=10))
    box = f'viewBox="0 0 {RIGHT + 50} {height}" width="{RIGHT + 50}" height="{height}" font-family="sans-serif"'
    back = f'<rect width="{RIGHT + 50}" height="{height}" fill="white"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', back, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 13) -> str:
    """Words in a chart."""
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    halo = 'stroke="white" stroke-width="3" paint-order="stroke"'  # over the lines of the grid
    return f'<text {where} font-size="{size}" fill="{INK}" {halo}>{escape(words)}</text>'
