"""The chapters' figures, as SVG: ``python spec/site/figures.py`` writes them anew to ``spec/figures``."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from pictures import BLUE, GREY, INK, RED, line, svg, text, zero_point

FIGURES = Path(__file__).parents[1] / "figures"
LIGHT = "#e8eef7"


def ties() -> str:
    """The codes of values from -1 to 4 steps: a staircase whose ends, the ties, belong to the even code."""

    def at(steps: float, code: float) -> tuple[float, float]:
        return 120 + (steps + 1) * 100, 230 - (code + 1) * 36

    parts = [line(*at(-1, -1.3), *at(4.2, -1.3), INK), line(*at(-1, -1.3), *at(-1, 4.4), INK)]
    for code in range(-1, 5):
        left, right = max(code - 0.5, -1), min(code + 0.5, 4.2)
        parts.append(line(*at(left, code), *at(right, code), BLUE))
        parts.append(text(at(-1, code)[0] - 16, at(-1, code)[1] + 5, str(code), anchor="middle"))
        for end in (code - 0.5, code + 0.5):
            if -1 < end < 4.2:
                x, y = at(end, code)
                fill = BLUE if code % 2 == 0 else "white"
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{BLUE}"/>')
    for steps in (-0.5, 0.5, 1.5, 2.5, 3.5):
        parts.append(text(at(steps, -1.3)[0], at(0, -1.3)[1] + 18, f"{steps:g}", anchor="middle"))
    parts.append(text(at(4.2, 0)[0] - 8, at(0, -1.3)[1] + 18, "x / scale"))
    parts.append(text(40, 22, "code, with zero point 0"))
    return svg(720, 275, parts)


def histogram() -> str:
    """Bins of a fine histogram, and the coarser ones into which pairs of them merge."""
    counts = [1, 3, 6, 8, 5, 4, 2, 1]
    parts = []
    for row, (values, width, name) in enumerate((
        (counts, 60, "bins of width 2^e"),
        ([a + b for a, b in zip(counts[::2], counts[1::2])], 120, "the same values in bins of width 2^(e+1)"),
    )):  # fmt: skip
        floor = 110 + row * 150
        for index, count in enumerate(values):
            x, height = 60 + index * width, count * 6
            box = f'x="{x}" y="{floor - height}" width="{width - 2}" height="{height}" fill="{GREY}"'
            parts += [f"<rect {box}/>", text(x + width / 2 - 1, floor - height - 6, str(count), anchor="middle")]
        parts += [line(60, floor, 540, floor, INK), text(556, floor, name)]
    return svg(860, 275, parts)


def layer() -> str:
    """The data path of an integer linear layer."""
    steps = [
        (["codes q_x", "8 bits"], "multiply, add"), (["accumulator", "32 bits"], "+ bias code"),
        (["accumulator", "with bias"], "x M, round"), (["steps of", "the output"], "+ z_y, saturate"),
        (["code q_y", "8 bits"], ""),
    ]  # fmt: skip
    parts = [*chain(steps, 20, 40), *arrow(115, 130, 214, 88), box(20, 112, 95, 44, ["weights q_w", "8 bits"])]
    return svg(880, 170, parts)


def padding() -> str:
    """A padded 3 x 3 input with zero point 5, and the window of its first output."""
    inside = [[7, 9, 4], [6, 5, 8], [3, 7, 6]]
    parts = []
    for row in range(5):
        for column in range(5):
            within = 1 <= row <= 3 and 1 <= column <= 3
            code = inside[row - 1][column - 1] if within else 5
            x, y = 30 + column * 42, 20 + row * 42
            parts.append(cell(x, y, str(code), "white" if within else LIGHT))
    parts.append(f'<rect x="28" y="18" width="128" height="128" fill="none" stroke="{RED}" stroke-width="3"/>')
    parts.append(text(260, 60, "shaded: padding, which has the code of zero, z_x = 5"))
    parts.append(text(260, 90, "red: the window of the first output, kernel 3 x 3"))
    parts.append(text(260, 120, "q_x - z_x is 0 in the padding, which adds nothing to the sum"))
    return svg(720, 250, parts)


def transposed() -> str:
    """The input of a transposed convolution of stride 2, spread and padded."""
    parts = []
    for row, (values, name) in enumerate((
        (["a", "b", "c"], "input"), (["a", "z", "b", "z", "c"], "spread: stride - 1 zero points between neighbours"),
        (["z", "a", "z", "b", "z", "c", "z", "z"], "padded, then convolved with stride 1 and the flipped kernel"),
    )):  # fmt: skip
        for index, value in enumerate(values):
            parts.append(cell(30 + index * 42, 16 + row * 66, value, LIGHT if value == "z" else "white"))
        parts.append(text(42 + len(values) * 42, 42 + row * 66, name))
    return svg(860, 215, parts)


def folding() -> str:
    """A convolution, a normalization and a ReLU before and after fusion."""
    before = [(["convolution"], ""), (["batch", "normalization"], ""), (["ReLU"], ""), (["observer"], "")]
    after = [(["convolution with", "folded weights"], ""), (["clamp at", "the zero point"], ""), (["observer"], "")]
    parts = [text(20, 28, "as captured"), *chain(before, 20, 40), text(20, 138, "fused"), *chain(after, 20, 150)]
    return svg(780, 215, parts)


def network() -> str:
    """Where codes and floats are in a static network with an operation that has no integer form."""
    steps = [
        (["input", "float32"], "quantize"), (["convolution", "codes"], ""), (["linear", "codes"], "float output"),
        (["softmax", "float32"], "quantize"), (["linear", "codes"], "dequantize"), (["output", "float32"], ""),
    ]  # fmt: skip
    return svg(860, 110, chain(steps, 20, 40, shaded="codes"))


def ranges() -> str:
    """Static and dynamic layers: where the range of the input comes from."""
    static = [(["calibration", "data"], "observers"), (["range"], "before it runs"), (["quantize"], ""),
              (["integer layer"], "requantize"), (["codes"], "")]  # fmt: skip
    dynamic = [(["input", "float32"], "min, max"), (["range"], "at each call"), (["quantize"], ""),
               (["integer layer"], "x s_x s_w, + b"), (["float32"], "")]  # fmt: skip
    parts = [text(20, 28, "static"), *chain(static, 20, 40), text(20, 148, "dynamic"), *chain(dynamic, 20, 160)]
    return svg(780, 225, parts)


def straight_through() -> str:
    """What a value is rounded to, and the line whose slope is taken for its derivative."""

    def at(steps: float, code: float) -> tuple[float, float]:
        return 360 + steps * 55, 150 - code * 24

    parts = [line(*at(-5.5, 0), *at(5.5, 0), GREY), line(*at(0, -4.6), *at(0, 4.6), GREY)]
    for code in range(-3, 4):
        left, right = (-5.5 if code == -3 else code - 0.5), (5.5 if code == 3 else code + 0.5)
        parts.append(line(*at(left, code), *at(right, code), BLUE))
    parts += [line(*at(-5.5, -3.5), *at(-3.5, -3.5), RED), line(*at(-3.5, -3.5), *at(3.5, 3.5), RED)]
    parts += [line(*at(3.5, 3.5), *at(5.5, 3.5), RED)]
    parts += [text(40, 40, "blue: the rounded value", colour=BLUE)]
    parts += [text(40, 62, "red: the function whose slope is used,", colour=RED)]
    parts += [text(40, 80, "1 inside the range, 0 outside", colour=RED)]
    return svg(720, 275, parts)


def layer_bytes() -> str:
    """What a layer of 784 inputs and 100 outputs stores, in float32 and per channel in int8."""
    parts = []
    for row, (name, pieces) in enumerate((
        ("float32: 314,000 bytes", [(313600, "weights, 4 bytes each", GREY), (400, "", BLUE)]),
        ("int8: 79,212 bytes", [(78400, "weights, 1 byte each", GREY), (812, "", BLUE)]),
    )):
        x, y = 20.0, 40 + row * 90
        parts.append(text(20, y - 10, name))
        for size, label, colour in pieces:
            width = size / 314000 * 680
            parts.append(f'<rect x="{x:.1f}" y="{y}" width="{max(width, 2):.1f}" height="34" fill="{colour}"/>')
            parts += [text(x + 10, y + 22, label)] if label else []
            x += width
    parts.append(text(20, 200, "blue: bias, scales and zero points, drawn at least 2 pixels wide", colour=BLUE))
    return svg(720, 215, parts)


def no_disagreement() -> str:
    """The upper bound at 95 % for the share of inputs that disagree, after n inputs of which none did."""

    def at(inputs: float, bound: float) -> tuple[float, float]:
        return 90 + (math.log10(inputs) - 1) * 180, 220 - bound * 700

    def bound(inputs: float) -> float:
        return 1 - 0.05 ** (1 / inputs)

    numbers = [10 ** (1 + step / 20) for step in range(61)]
    parts = [line(*at(10, 0), *at(10000, 0), INK), line(*at(10, 0), *at(10, 0.28), INK)]
    parts += [line(*at(a, bound(a)), *at(b, bound(b)), BLUE) for a, b in zip(numbers, numbers[1:])]
    for inputs in (10, 100, 1000, 10000):
        parts.append(text(at(inputs, 0)[0], 240, f"{inputs:,}", anchor="middle"))
    for inputs in (10, 100, 1000):
        x, y = at(inputs, bound(inputs))
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}"/>']
        parts.append(text(x + 10, y - 8, f"{100 * bound(inputs):.2g} %"))
    parts += [text(660, 240, "inputs"), text(90, 16, "upper bound at 95 % confidence, no disagreement seen")]
    return svg(740, 255, parts)


def choices() -> str:
    """The choices of a dialect along the path of a layer."""
    steps = [
        (["range"], "qparams"), (["scale,", "zero point"], "quantize"), (["codes"], "accumulate"),
        (["accumulator"], "requantize"), (["codes"], "add, mul, ..."), (["codes"], ""),
    ]  # fmt: skip
    return svg(880, 110, [*chain(steps, 20, 40), text(20, 22, "on the arrows: the choices")])


def worker() -> str:
    """A suite that tests a backend in a process of its own."""
    parts = [box(20, 40, 200, 70, ["conformance run", "draws calls, checks answers"])]
    parts += [*arrow(220, 60, 390, 60), *arrow(390, 92, 220, 92), text(305, 52, "call", anchor="middle")]
    parts += [text(305, 110, "array or error", anchor="middle")]
    parts.append(box(390, 40, 200, 70, ["worker process", "the backend"]))
    parts.append(text(20, 145, "A worker that crashes or hangs is a finding; a new worker answers the next call."))
    return svg(720, 160, parts)


def cell(x: float, y: float, label: str, fill: str) -> str:
    shape = f'<rect x="{x}" y="{y}" width="40" height="40" fill="{fill}" stroke="{INK}"/>'
    return shape + text(x + 20, y + 26, label, anchor="middle")


def box(x: float, y: float, width: float, height: float, labels: Sequence[str], fill: str = "white") -> str:
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{fill}" stroke="{INK}"/>'
    top = y + height / 2 + 5 - (len(labels) - 1) * 9
    return shape + "".join(
        text(x + width / 2, top + 18 * row, label, anchor="middle") for row, label in enumerate(labels)
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> list[str]:
    back = -6 if x2 > x1 else 6
    head = f"{x2:.1f},{y2:.1f} {x2 + back:.1f},{y2 - 4:.1f} {x2 + back:.1f},{y2 + 4:.1f}"
    return [line(x1, y1, x2, y2, INK), f'<polygon points="{head}" fill="{INK}"/>']


def chain(steps: Sequence[tuple[list[str], str]], x: float, y: float, shaded: str = "") -> list[str]:
    """Boxes in a row, each with the label of the arrow behind it; ``shaded``: the label of boxes with a ground."""
    parts = []
    for index, (labels, behind) in enumerate(steps):
        width = 16 + 7.5 * max(len(label) for label in labels)
        parts.append(box(x, y, width, 52, labels, LIGHT if shaded in labels else "white"))
        x += width
        if index + 1 < len(steps):
            gap = max(32, 6.5 * len(behind) + 16)
            parts += [*arrow(x + 2, y + 26, x + gap - 2, y + 26), text(x + gap / 2, y + 16, behind, anchor="middle")]
            x += gap
    return parts


ALL: tuple[Callable[[], str], ...] = (
    zero_point, ties, histogram, layer, padding, transposed, folding, network, ranges, straight_through, layer_bytes,
    no_disagreement, choices, worker,
)  # fmt: skip

if __name__ == "__main__":
    for figure in ALL:
        (FIGURES / f"{figure.__name__}.svg").write_text(figure(), encoding="utf-8")
