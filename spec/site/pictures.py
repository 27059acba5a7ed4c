"""Pictures as SVG: ``python spec/site/pictures.py`` writes those of the guides anew, ``figures.py`` the chapters'."""

from pathlib import Path

import numpy as np

GUIDES = Path(__file__).parents[1] / "guides"
BLUE, RED, GREY, INK, PALE = "#2f6db3", "#c0392b", "#b7bfcc", "#1d2433", "#eef3fa"


def observers() -> str:
    """One distribution with an outlier, and the grids of two observers under it; one tick stands for 16 codes; narrow
    enough for a telephone."""
    values = np.random.default_rng(0).normal(size=4000)
    counts, edges = np.histogram(values, bins=40, range=(-4, 4))

    def x(value: float) -> float:
        return 20 + (value + 4) * 370 / 20

    parts = [
        f'<rect x="{x(left):.1f}" y="{130 - count / counts.max() * 100:.1f}" width="{x(right) - x(left) - 1:.1f}" '
        f'height="{count / counts.max() * 100:.1f}" fill="{GREY}"/>'
        for left, right, count in zip(edges[:-1], edges[1:], counts)
    ]
    parts.append(f'<circle cx="{x(15.5):.1f}" cy="126" r="4" fill="{RED}"/>')
    parts.append(text(x(15.5), 112, "outlier", anchor="middle"))
    for row, (name, low, high) in enumerate((("min-max", -4, 15.5), ("percentile", -3.6, 3.6))):
        y = 174 + row * 52
        parts.append(line(x(low), y, x(high), y, BLUE))
        parts += [line(x(place), y - 7, x(place), y + 7, BLUE) for place in np.linspace(low, high, 17)]
        parts.append(text(x(low), y - 12, name))
    parts.append(text(x(-4), 260, "Each mark stands for 16 of 256 codes."))
    return svg(424, 275, parts, fixed=True)


def zero_point() -> str:
    """The number line of a uint8 grid: codes above, values below."""
    scale, zero = 0.02, 100

    def x(code: float) -> float:
        return 50 + code * 620 / 255

    parts = [line(x(0), 60, x(255), 60, INK)]
    parts += [line(x(code), 56, x(code), 64, GREY) for code in range(0, 256, 5)]
    for code in (0, 50, zero, 150, 200, 255):
        colour = RED if code == zero else INK
        parts.append(line(x(code), 50, x(code), 70, colour))
        parts.append(text(x(code), 42, str(code), anchor="middle", colour=colour))
        parts.append(text(x(code), 90, f"{(code - zero) * scale:g}", anchor="middle", colour=colour))
    parts.append(text(50, 20, "code"))
    parts.append(text(50, 112, "real value = scale * (code - zero point), here 0.02 * (code - 100)"))
    return svg(720, 125, parts)


def kernels() -> str:
    """Two kernels, the same arguments, two answers; narrow enough for a telephone, too."""
    def box(y: float, name: str, how: tuple[str, str], code: str) -> list[str]:
        lines = (name, INK), *((words, BLUE) for words in how)
        return [
            f'<rect x="156" y="{y}" width="180" height="74" rx="6" fill="{PALE}" stroke="{BLUE}"/>',
            *(text(168, y + 22 + 20 * row, words, colour=colour) for row, (words, colour) in enumerate(lines)),
            arrow(120, 97, 154, y + 37),
            arrow(336, y + 37, 370, y + 37),
            text(378, y + 44, code, colour=RED, size=20),
        ]

    parts = [text(8, 92, "the same codes,"), text(8, 112, "scales and bias")]
    parts += box(12, "kernel A", ("float32 product", "127.49999: rounds down"), "127")
    parts += box(108, "kernel B", ("fixed-point product", "127.50001: rounds up"), "128")
    return svg(424, 194, parts, fixed=True)


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    angle = np.arctan2(y2 - y1, x2 - x1)
    ends = [(x2 - 9 * np.cos(angle + turn), y2 - 9 * np.sin(angle + turn)) for turn in (-0.4, 0.4)]
    return "".join([line(x1, y1, x2, y2, INK), *(line(x2, y2, x, y, INK) for x, y in ends)])


def line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.5"/>'


def text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = INK, size: int = 14) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {where} fill="{colour}">{words}</text>'


def svg(width: int, height: int, parts: list[str], *, fixed: bool = False) -> str:
    """A picture as wide as the page, or, where it is ``fixed``, at most ``width`` pixels wide."""
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14"'
    box = f'width="{width}" height="{height}" {box}' if fixed else box
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>\n"])


if __name__ == "__main__":
    for picture in (observers, kernels):
        (GUIDES / f"{picture.__name__}.svg").write_text(picture(), encoding="utf-8")
