"""Inputs for each operation of a backend: natural ones, and ones tuned so that many outputs lie on a tie or within a
few ulp of one.

``bulk(operation)`` yields calls of thousands of outputs in all. Generators are seeded: the same calls every time.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar

import numpy as np

from quantspec.numerics.affine import QParams

from .call import Call

T = TypeVar("T")
# (arguments, options) of calls.
Arguments: TypeAlias = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]


def nudged(value: float | np.floating[Any], ulps: int) -> np.float32:
    """The float32 so many places away."""
    nearest = np.float32(value)
    for _ in range(abs(ulps)):
        nearest = np.nextafter(nearest, np.float32(np.inf if ulps > 0 else -np.inf))
    return nearest


class Source:
    """Grids and codes of one signedness from one generator."""

    def __init__(self, seed: int, signed: bool) -> None:
        self.random = np.random.default_rng(seed)
        self.ends = (-128, 127) if signed else (0, 255)
        self.dtype = np.int8 if signed else np.uint8

    def grid(self, scale: float | np.floating[Any]) -> QParams:
        return QParams(np.float32(scale), int(self.random.integers(self.ends[0], self.ends[1] + 1)), *self.ends)

    def codes(self, *shape: int) -> np.ndarray:
        return self.random.integers(self.ends[0], self.ends[1] + 1, shape).astype(self.dtype)

    def every_pair(self) -> tuple[np.ndarray, np.ndarray]:
        every = np.arange(self.ends[0], self.ends[1] + 1).astype(self.dtype)
        a, b = np.meshgrid(every, every, indexing="ij")
        return a.ravel(), b.ravel()

    def scale(self) -> np.float32:
        return np.float32(np.exp(self.random.uniform(-7, -2)))

    def pick(self, *choices: T) -> T:
        return choices[int(self.random.integers(len(choices)))]

    def beside(self, scale: float | np.floating[Any]) -> np.float32:
        return nudged(scale, int(self.random.integers(-2, 3)))


def near_ties(source: Source, scale: np.float32, zero_point: int, size: int) -> np.ndarray:
    """Values of which most are half a step from a code, give or take an ulp or two."""
    steps = source.random.integers(source.ends[0] - zero_point - 3, source.ends[1] - zero_point + 4, size) + 0.5
    x = (steps * np.float64(scale)).astype(np.float32)
    for _ in range(int(source.random.integers(3))):
        x = np.nextafter(x, np.where(source.random.random(size) < 0.5, np.float32(np.inf), np.float32(-np.inf)))
    natural = source.random.random(size) < 0.3
    return np.where(natural, (source.random.normal(size=size) * 60 * scale).astype(np.float32), x)


def quantize(source: Source, count: int) -> Arguments:
    for i in range(count):
        size = source.pick(1, 5, 8, 31, 700)
        qmin, qmax = source.ends
        scale = source.scale() if i % 3 else np.float32(2.0 ** source.random.integers(-8, 3))
        zero = source.pick(0, 1, int(source.random.integers(qmin, qmax + 1)))
        ends = {"qmin": qmin, "qmax": qmax}
        yield (near_ties(source, scale, zero, size), scale, zero), ends
        channels = np.array([source.scale() for _ in range(3)], np.float32)
        points = source.random.integers(qmin, qmax + 1, 3).astype(np.int32)
        x = np.stack([near_ties(source, s, int(z), size) for s, z in zip(channels, points)], axis=i % 2)
        yield (x, channels, points), {**ends, "axis": i % 2}


def dequantize(source: Source, count: int) -> Arguments:
    every = np.arange(source.ends[0], source.ends[1] + 1).astype(source.dtype)
    for _ in range(count):
        yield (every, source.scale(), int(source.codes(1)[0])), {}
        scales = np.array([source.scale(), source.scale()])
        yield (np.stack([every, every]), scales, source.codes(2).astype(np.int32)), {"axis": 0}


def qparams(source: Source, count: int) -> Arguments:
    for i in range(count * 340):
        low, high = sorted((source.random.normal(size=2) * source.pick(1e-3, 1, 100)).astype(np.float32))
        if i % 5 == 0:
            low, high = -np.abs(high), np.abs(high)
        yield (low, high), {"qmin": source.ends[0], "qmax": source.ends[1], "symmetric": i % 4 == 3}


def layer(
    source: Source, outputs: int, inputs: int, natural: bool
) -> tuple[QParams, np.ndarray, QParams, np.ndarray | None, QParams]:
    """(x, weight codes [outputs, inputs], w, bias, y) of a layer: natural, or with outputs beside ties."""
    per_channel = source.random.random() < 0.5
    x = source.grid(source.scale())
    base = source.scale()
    if natural:
        scale = source.random.uniform(0.5, 2, outputs) * base
        codes = source.random.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        y_scale = float(x.scale) * float(base) * 70 * 70 * np.sqrt(inputs) * 6 / 255 * source.random.uniform(0.3, 1.5)
        bias = source.random.normal(size=outputs) * y_scale * 20
    else:
        # An output step is a small even number of accumulator LSBs: every few outputs one is half-way, up to the
        # roundings of the scales.
        scale = source.random.choice([1, 1, 2, 0.5, 3], outputs) * float(base)
        codes = source.random.integers(-9, 10, (outputs, inputs)).astype(np.int8)
        unit = float(x.scale * (np.float32(scale[0])))
        y_scale = source.beside(unit * source.pick(2, 4, 6, 8, 10, 16, 32) * np.ceil(inputs / 8))
        bias = source.random.integers(-400, 400, outputs) * unit * source.pick(1, 0.5, 1.03)
    scales, axis = (scale.astype(np.float32), 0) if per_channel else (np.float32(scale[0]), None)
    w = QParams(scales, 0, -128, 127, axis)
    return x, codes, w, bias.astype(np.float32) if source.random.random() < 0.8 else None, source.grid(y_scale)


def layer_size(source: Source) -> tuple[int, int, int]:
    """(rows, inputs, outputs), around the widths of vectors and below them."""
    rows = source.pick(1, 2, 5, 16, 33)
    return rows, source.pick(1, 3, 8, 17, 32, 64, 100), source.pick(1, 3, 8, 16, 31, 64)


def linear(source: Source, count: int) -> Arguments:
    for i in range(count * 6):
        rows, inputs, outputs = layer_size(source)
        x, w_q, w, bias, y = layer(source, outputs, inputs, bool(i % 2))
        yield (source.codes(rows, inputs), x, w_q, w, bias, y), {"relu": bool(i % 3 == 0)}


def linear_dynamic(source: Source, count: int) -> Arguments:
    for _ in range(count * 2):
        rows, inputs, outputs = layer_size(source)
        _, w_q, w, bias, _ = layer(source, outputs, inputs, True)
        x = (source.random.normal(size=(rows, inputs)) * source.pick(0.1, 1, 9)).astype(np.float32)
        yield (x, w_q, w, bias), {"relu": source.random.random() < 0.3}


def conv2d(source: Source, count: int) -> Arguments:
    for i in range(count):
        kind = ("dense", "grouped", "depthwise", "usual")[i % 4]
        grouped, depthwise, usual = source.pick(2, 4), source.pick(2, 3, 8, 16, 17, 32), source.pick(8, 16, 32)
        groups = {"dense": 1, "grouped": grouped, "depthwise": depthwise, "usual": usual}[kind]
        each, outputs = (1, 1) if kind in ("depthwise", "usual") else (source.pick(1, 3, 4, 8), source.pick(1, 4, 5, 8))
        kernel = source.pick(1, 2, 3, 5), source.pick(1, 2, 3, 5)
        around = source.random.integers(0, 3, 2)
        padding = min(int(around[0]), kernel[0] - 1), min(int(around[1]), kernel[1] - 1)
        stride, dilation = (source.pick(1, 1, 2), source.pick(1, 2)), (source.pick(1, 1, 2), source.pick(1, 1, 2))
        if kind == "usual":  # depthwise as networks have them, for which there are kernels apart
            side, step = source.pick(3, 3, 5), source.pick(1, 2)
            kernel, stride, padding, dilation = (side, side), (step, step), (side // 2, side // 2), (1, 1)
        x, w_q, w, bias, y = layer(source, groups * outputs, each * kernel[0] * kernel[1], bool(i // 4 % 2))
        w_q = w_q.reshape(groups * outputs, each, *kernel)
        places = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        yield (source.codes(2, groups * each, 11, 10), x, w_q, w, bias, y), {**places, "relu": i % 5 == 0}


def pair_grids(source: Source, is_sum: bool) -> tuple[QParams, QParams, QParams]:
    """Grids of two arrays and of their sum or product, on which ties are common."""
    a = source.scale()
    b = np.float32(a * source.pick(1, 2, 0.5, 3, 1.7)) if is_sum else source.scale()
    size = a if is_sum else a * b
    y = size * np.float32(source.pick(2, 4, 6, 1, 1.3) if is_sum else source.pick(64, 128, 96, 32, 70))
    return source.grid(a), source.grid(b), source.grid(source.beside(y))


def add(source: Source, count: int) -> Arguments:
    yield from pairs(source, count, True)


def mul(source: Source, count: int) -> Arguments:
    yield from pairs(source, count, False)


def pairs(source: Source, count: int, is_sum: bool) -> Arguments:
    """Every pair of codes on one in ten grids, and few of them on the others: lengths that fill no vector are where
    kernels take other steps."""
    every = source.every_pair()
    for i in range(count):
        a, b, y = pair_grids(source, is_sum)
        chosen: slice | np.ndarray = slice(None)
        if i % 10:
            chosen = source.random.integers(0, len(every[0]), source.pick(1, 5, 16, 63, 64, 200))
        options = {"relu": i % 3 == 0} if is_sum else {}
        yield (every[0][chosen].copy(), a, every[1][chosen].copy(), b, y), options


def concat(source: Source, count: int) -> Arguments:
    every = np.arange(source.ends[0], source.ends[1] + 1).astype(source.dtype)
    for i in range(count * 2):
        y = source.grid(source.scale())
        near = source.grid(source.beside(float(y.scale * np.float32(source.pick(0.5, 1.5, 2.5, 1.7)))))
        grids = [near, y, source.grid(source.scale())]
        parts = [(every if i % 2 else source.codes(source.pick(1, 5, 33)), grid) for grid in grids]
        yield ([(np.atleast_2d(q), grid) for q, grid in parts], y), {"axis": 1}


def images(source: Source, channels: int, *size: int) -> np.ndarray:
    """Codes near one another, so that averages of a few are ties as often as averages of codes that vary."""
    centres = source.codes(2, channels, 1, 1).astype(int)
    return np.clip(centres + source.random.integers(-3, 4, (2, channels, *size)), *source.ends).astype(source.dtype)


def max_pool2d(source: Source, count: int) -> Arguments:
    for i in range(count):
        kernel = source.pick(1, 2, 3), source.pick(2, 3)
        padding = tuple(k // 2 for k in kernel) if i % 2 else (0, 0)
        stride, dilation = (source.pick(1, 2), source.pick(1, 2)), (source.pick(1, 1, 2),) * 2
        options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
        yield (source.codes(2, source.pick(1, 3, 17, 64), 9, 8), source.grid(source.scale())), options


def avg_pool2d(source: Source, count: int) -> Arguments:
    for i in range(count):
        kernel = source.pick(2, 3, 1), source.pick(2, 4, 3)
        padding = tuple(k // 2 for k in kernel) if i % 3 == 0 else (0, 0)
        stride = source.pick(1, 2), source.pick(1, 2)
        options = {"kernel": kernel, "stride": stride, "padding": padding, "count_include_pad": bool(i % 2)}
        yield (images(source, source.pick(1, 3, 17, 64), 9, 8), source.grid(source.scale())), options


def adaptive_avg_pool2d(source: Source, count: int) -> Arguments:
    for _ in range(count * 14):
        size = source.pick((1, 1), (1, 1), (2, 3), (3, 3))
        height, width = source.pick(2, 4, 6, 7, 14), source.pick(3, 6, 8, 14)
        yield (images(source, source.pick(1, 3, 17, 64), height, width), source.grid(source.scale())), {"size": size}


def fold_batch_norm(source: Source, count: int) -> Arguments:
    for i in range(count * 2):
        outputs = source.pick(1, 5, 16)
        weight = source.random.normal(size=(outputs, 3, 3, 3) if i % 2 else (outputs, 20)).astype(np.float32)
        numbers = [source.random.normal(size=outputs).astype(np.float32) for _ in range(4)]
        yield (weight, *numbers, source.random.uniform(0.1, 2, outputs).astype(np.float32), 1e-5), {}


GENERATORS: dict[str, Callable[[Source, int], Arguments]] = {
    generator.__name__: generator
    for generator in (
        quantize, dequantize, qparams, linear, linear_dynamic, conv2d, add, mul, concat, max_pool2d, avg_pool2d,
        adaptive_avg_pool2d, fold_batch_norm,
    )
}  # fmt: skip


def bulk(operation: str, *, count: int = 20, seed: int = 0) -> Iterator[Call]:
    """Calls of an operation on unsigned and on signed codes; more than 10,000 outputs with the usual ``count``, also
    where a backend offers those of one signedness, of one range rule or without a bias only."""
    for signed in (False, True):
        for arguments, options in GENERATORS[operation](Source(seed, signed), count):
            yield Call(operation, arguments, options)
