"""Small programs for engines: one step, or a few, between floats and floats, drawn from a seeded generator."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch.nn import functional as F

from quantspec.ir.attention import TORCHS
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    Attention,
    AvgPool,
    Call,
    Cell,
    Concat,
    Conv,
    Dequantize,
    Linear,
    LinearDynamic,
    MaxPool,
    Mean,
    Move,
    Mul,
    Program,
    Quantize,
    Recurrent,
    Ref,
    Relu,
    Table,
)
from quantspec.numerics.affine import QParams

# For steps of which the form is all that counts: a grid of activations, one of weights, and weights.
GRID, OF_WEIGHTS = QParams(np.float32(0.1), 3, 0, 255), QParams(np.float32(0.01), 0, -128, 127)


def codes(*shape: int) -> np.ndarray:
    """Weights that are all 0."""
    return np.zeros(shape, np.int8)


def grid(r: np.random.Generator) -> QParams:
    """A grid of activations, with zero points at the ends more often than by chance, now and then with seven bits."""
    qmax = int(r.choice([255, 255, 255, 127]))
    point = int(r.choice([0, qmax, *r.integers(0, qmax + 1, 3)]))
    return QParams(np.float32(np.exp(r.uniform(-6, -2))), point, 0, qmax)


def weights(r: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, QParams]:
    """Codes and their grid, per channel or per tensor; sometimes only the extremes, which drive accumulators as far
    as they go.
    """
    codes = r.integers(-128, 128, shape).astype(np.int8)
    if r.random() < 0.2:
        codes = r.choice(np.array([-128, 127], np.int8), shape)
    scale = np.exp(r.uniform(-7, -3, shape[0] if r.random() < 0.7 else ())).astype(np.float32)
    return codes, QParams(scale, np.zeros(scale.shape, np.int32), -128, 127, 0 if scale.ndim else None)


def output_grid(r: np.random.Generator, x: QParams, w: QParams, inputs: int) -> QParams:
    """A grid that outputs of so many products mostly fit on, now and then one that they saturate."""
    spread = float(x.scale) * float(np.mean(w.scale)) * 70 * 70 * np.sqrt(inputs) / 60
    y = grid(r)
    return QParams(np.float32(spread * r.choice([1.0, 1.0, 1.0, 0.05])), y.zero_point, y.qmin, y.qmax)


def bias(r: np.random.Generator, outputs: int, x: QParams, w: QParams, y: QParams) -> np.ndarray | None:
    """A bias of some tens of codes of the output, now and then none."""
    return None if r.random() < 0.2 else (r.normal(size=outputs) * 40 * float(y.scale)).astype(np.float32)


def linear(r: np.random.Generator, name: str, source: str, x: QParams, inputs: int, outputs: int) -> Linear:
    """A layer from codes on the grid ``x`` to codes, half of the time with ReLU."""
    codes, w = weights(r, (outputs, inputs))
    y = output_grid(r, x, w, inputs)
    return Linear(name, source, name, codes, bias(r, outputs, x, w, y), x, w, y, bool(r.random() < 0.5))


def conv(
    r: np.random.Generator,
    name: str,
    source: str,
    x: QParams,
    channels: int,
    outputs: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
    spread: tuple[int, ...] | None = None,
) -> Conv:
    """A convolution from codes on the grid ``x`` to codes, half of the time with ReLU."""
    codes, w = weights(r, (outputs, channels // groups, *kernel))
    y = output_grid(r, x, w, codes[0].size)
    layer = (name, source, name, codes, bias(r, outputs, x, w, y), x, w, y, bool(r.random() < 0.5))
    return Conv(*layer, stride, padding, dilation, spread or (1,) * len(kernel), groups)


def real(layer: Linear | Conv) -> Linear | Conv:
    """The layer with floats as its result."""
    return replace(layer, y_qparams=None)


def to_floats(x: QParams, layer: Linear | Conv) -> Program:
    """A network of one layer that gives floats."""
    return Program("onnx", ("x",), {}, (Quantize("x.codes", "x", x), layer), Ref(layer.name))


def between(
    x: QParams, steps: list, y: QParams, *, inputs: tuple[str, ...] = ("x",), grids: tuple[QParams, ...] = ()
) -> Program:
    """Steps on codes ``x.codes``, ... from the inputs, whose last is the output."""
    quantized = [Quantize(f"{name}.codes", name, g) for name, g in zip(inputs, grids or (x,))]
    return Program("onnx", inputs, {}, (*quantized, *steps, Dequantize("out", steps[-1].name, y)), Ref("out"))


def of_layer(x: QParams, layer: Linear | Conv, gives_floats: bool) -> Program:
    """A network of one layer that gives floats, or codes."""
    return to_floats(x, real(layer)) if gives_floats else between(x, [layer], layer.y_qparams)


def values(r: np.random.Generator, g: QParams, shape: tuple[int, ...]) -> np.ndarray:
    """Floats for a grid: natural ones, ones half-way between codes give or take an ulp, and far ones."""
    natural = (r.normal(size=shape) * 50 + (127 - int(g.zero_point))) * float(g.scale)
    ties = ((r.integers(-3, 260, shape) - int(g.zero_point) + 0.5) * np.float64(g.scale)).astype(np.float32)
    ties = np.nextafter(ties, r.choice(np.array([-np.inf, 0, np.inf], np.float32), shape))
    far = r.choice(np.array([np.inf, -np.inf, 3e38, -3e38, 1e-40, 0.0, -0.0], np.float32), shape)
    kind = r.random(shape)
    return np.where(kind < 0.6, natural, np.where(kind < 0.97, ties, far)).astype(np.float32)


def pools(r: np.random.Generator, x: QParams, positions: int) -> list:
    """One step of each kind that goes from codes of images to codes of images on the same grid."""
    kernel, stride = (tuple(int(v) for v in r.integers(1, high, positions)) for high in (4, 4))
    padding = tuple(int(r.integers(0, k // 2 + 1)) for k in kernel)
    dilation = tuple(int(v) for v in r.integers(1, 3, positions))
    ceil, include = bool(r.random() < 0.5), bool(r.random() < 0.5)
    sizes = tuple(None if r.random() < 0.2 else int(v) for v in r.integers(1, 5, positions))
    axes = tuple(range(2, 2 + positions))
    return [
        MaxPool("y", "x.codes", kernel, stride, padding, dilation, ceil),
        AvgPool("y", "x.codes", x, kernel, stride, padding, ceil, include),
        AdaptiveAvgPool("y", "x.codes", x, sizes),
        Mean("y", "x.codes", x, axes, bool(r.random() < 0.5)),
        Relu("y", "x.codes", x),
        Move("y", "function", "torch.flatten", (Ref("x.codes"), 1), {}, x),
    ]


def table(r: np.random.Generator, x: QParams) -> Table:
    """A function from codes to codes, given as a table."""
    codes = r.integers(0, 256, 256).astype(np.uint8)
    return Table("y", "x.codes", "any", codes, x, QParams(np.float32(0.1), 3, 0, 255))


def tables(r: np.random.Generator, x: QParams, channels: int, kind: str) -> Table:
    """A function for each channel: of two ``slopes``, also such as give ties and none, or ``any``."""
    y = grid(r)
    if kind == "any":
        return Table("y", "x.codes", "any", r.integers(0, y.qmax + 1, (channels, 256)).astype(np.uint8), x, y)
    slopes = r.choice([*r.uniform(-2, 2, 20), 0.5, 0.25, 0.0, 1.0, -1.5, 3000.0, -3000.0, 1 / 3], (2, channels, 1))
    steps = np.arange(256) - int(x.zero_point)
    codes = np.rint(np.where(steps < 0, *slopes) * steps) + int(y.zero_point)
    return Table("y", "x.codes", "prelu", np.clip(codes, 0, y.qmax).astype(np.uint8), x, y)


def residual(r: np.random.Generator, channels: int, first: bool) -> Program:
    """Two convolutions and their sum, which may be computed within the later one."""
    x = grid(r)
    left = conv(r, "left", "x.codes", x, channels, channels, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    right = conv(r, "right", "left", left.y_qparams, channels, channels, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    scale = np.float32(float(left.y_qparams.scale) + float(right.y_qparams.scale))
    y = QParams(scale, grid(r).zero_point % 128, 0, 255)
    a, b = ("left", "right") if first else ("right", "left")
    grids = {"left": left.y_qparams, "right": right.y_qparams}
    return between(x, [left, right, Add("sum", a, b, grids[a], grids[b], y, bool(r.random() < 0.5))], y)


def pair(r: np.random.Generator, kind: type) -> Program:
    """A sum or a product of two inputs."""
    a, b, y = grid(r), grid(r), grid(r)
    operands = ("y", "a.codes", "b.codes", a, b, y)
    step = Mul(*operands) if kind is Mul else Add(*operands, bool(r.random() < 0.5))
    return between(a, [step], y, inputs=("a", "b"), grids=(a, b))


def joined(r: np.random.Generator) -> Program:
    """Three inputs joined over channels, one of them on the output's grid already."""
    a, b, y = grid(r), grid(r), grid(r)
    step = Concat("y", ("a.codes", "b.codes", "c.codes"), (a, b, y), y, 1)
    return between(a, [step], y, inputs=("a", "b", "c"), grids=(a, b, y))


def dynamic(
    r: np.random.Generator, name: str, source: str, inputs: int, outputs: int, *, rows: bool, reduce_range: bool
) -> LinearDynamic:
    """A dynamic layer."""
    codes, w = weights(r, (outputs, inputs))
    offset = None if r.random() < 0.2 else r.normal(size=outputs).astype(np.float32)
    return LinearDynamic(name, source, name, codes, offset, w, reduce_range, rows)


def dynamic_chain(r: np.random.Generator, widths: list[int], *, rows: bool, reduce_range: bool) -> Program:
    """Dynamic layers with ReLU between them, after a flatten."""
    steps: list = [Call("flat", "function", "torch.flatten", (Ref("x"), 1), {}, "")]
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        if index:
            steps.append(Call(f"relu{index}", "function", "torch.relu", (Ref(steps[-1].name),), {}, "float"))
        steps.append(dynamic(r, f"layer{index}", steps[-1].name, inputs, outputs, rows=rows, reduce_range=reduce_range))
    return Program("onnx", ("x",), {}, tuple(steps), Ref(steps[-1].name))


def recurrent(
    r: np.random.Generator, kind: str, inputs: int, size: int, *, layers: int, both: bool, reduce_range: bool
) -> Program:
    """A recurrent layer, in one direction or ``both``."""
    gates = {"lstm": 4, "gru": 3}.get(kind, 1) * size
    cells = []
    for layer in range(layers):
        for _ in range(1 + both):
            a, a_grid = weights(r, (gates, inputs if layer == 0 else size * (1 + both)))
            b, b_grid = weights(r, (gates, size))
            offsets = [None if r.random() < 0.2 else r.normal(size=gates).astype(np.float32) for _ in range(2)]
            cells.append(Cell(a, a_grid, offsets[0], b, b_grid, offsets[1]))
    step = Recurrent("y", "x", None, "layer", kind, tuple(cells), both, bool(r.random() < 0.5), reduce_range)
    return Program("onnx", ("x",), {}, (step,), Ref("y"))


def attention(*names: str, **options: Any) -> Program:
    """Queries, keys and values by these names, and perhaps a mask, that attend to each other by torch's function."""
    step = Attention("y", "function", TORCHS, tuple(map(Ref, names)), options, "")
    called = {("function", TORCHS): F.scaled_dot_product_attention}
    return Program("onnx", names, {}, (step,), Ref("y"), called)
