"""Inputs for each operation of a backend: natural ones, and ones tuned so that many outputs lie on a tie or within a few ulp of one.

``bulk(operation)`` yields calls of thousands of outputs in all. Generators are seeded: the same calls every time.
"""

from collections.abc import Iterator

import numpy as np

from quantspec.numerics.affine import QParams

from .call import Call


def nudged(value, ulps: int) -> np.float32:
    """The float32 so many places away."""
    value = np.float32(value)
    for _ in range(abs(ulps)):
        value = np.nextafter(value, np.float32(np.inf if ulps > 0 else -np.inf))
    return value


class Draw:
    """Grids and codes of one signedness from one generator."""

    def __init__(self, seed: int, signed: bool):
        self.r = np.random.default_rng(seed)
        self.ends = (-128, 127) if signed else (0, 255)
        self.dtype = np.int8 if signed else np.uint8

    def grid(self, scale) -> QParams:
        return QParams(np.float32(scale), int(self.r.integers(self.ends[0], self.ends[1] + 1)), *self.ends)

    def codes(self, *shape: int) -> np.ndarray:
        return self.r.integers(self.ends[0], self.ends[1] + 1, shape).astype(self.dtype)

    def every_pair(self) -> tuple[np.ndarray, np.ndarray]:
        every = np.arange(self.ends[0], self.ends[1] + 1).astype(self.dtype)
        a, b = np.meshgrid(every, every, indexing="ij")
        return a.ravel(), b.ravel()

    def scale(self) -> np.float32:
        return np.float32(np.exp(self.r.uniform(-7, -2)))

    def pick(self, *choices):
        return choices[int(self.r.integers(len(choices)))]

    def beside(self, scale) -> np.float32:
        return nudged(scale, int(self.r.integers(-2, 3)))


def near_ties(d: Draw, scale, zero_point: int, size: int) -> np.ndarray:
    """Values of which most are half a step from a code, give or take an ulp or two."""
    steps = d.r.integers(d.ends[0] - zero_point - 3, d.ends[1] - zero_point + 4, size) + 0.5
    x = (steps * np.float64(scale)).astype(np.float32)
    for _ in range(int(d.r.integers(3))):
        x = np.nextafter(x, np.where(d.r.random(size) < 0.5, np.float32(np.inf), np.float32(-np.inf)))
    return np.where(d.r.random(size) < 0.3, (d.r.normal(size=size) * 60 * scale).astype(np.float32), x)


def quantize(d: Draw, count: int) -> Iterator:
    for i in range(count):
        size = d.pick(1, 5, 8, 31, 700)
        scale, zero = (d.scale() if i % 3 else np.float32(2.0 ** d.r.integers(-8, 3))), int(d.pick(0, 1, d.r.integers(d.ends[0], d.ends[1] + 1)))
        ends = {"qmin": d.ends[0], "qmax": d.ends[1]}
        yield (near_ties(d, scale, zero, size), scale, zero), ends
        channels = np.array([d.scale() for _ in range(3)], np.float32)
        points = d.r.integers(d.ends[0], d.ends[1] + 1, 3).astype(np.int32)
        x = np.stack([near_ties(d, s, int(z), size) for s, z in zip(channels, points)], axis=i % 2)
        yield (x, channels, points), {**ends, "axis": i % 2}


def dequantize(d: Draw, count: int) -> Iterator:
    every = np.arange(d.ends[0], d.ends[1] + 1).astype(d.dtype)
    for _ in range(count):
        yield (every, d.scale(), int(d.codes(1)[0])), {}
        yield (np.stack([every, every]), np.array([d.scale(), d.scale()]), d.codes(2).astype(np.int32)), {"axis": 0}


def qparams(d: Draw, count: int) -> Iterator:
    for i in range(count * 340):
        low, high = sorted((d.r.normal(size=2) * d.pick(1e-3, 1, 100)).astype(np.float32))
        if i % 5 == 0:
            low, high = -np.abs(high), np.abs(high)
        yield (low, high), {"qmin": d.ends[0], "qmax": d.ends[1], "symmetric": i % 4 == 3}


def layer(d: Draw, outputs: int, inputs: int, natural: bool):
    """(x, weight codes [outputs, inputs], w, bias, y) of a layer: natural, or with outputs beside ties."""
    per_channel = d.r.random() < 0.5
    x = d.grid(d.scale())
    base = d.scale()
    if natural:
        scale = d.r.uniform(0.5, 2, outputs) * base
        codes = d.r.integers(-128, 128, (outputs, inputs)).astype(np.int8)
        y_scale = float(x.scale) * float(base) * 70 * 70 * np.sqrt(inputs) * 6 / 255 * d.r.uniform(0.3, 1.5)
        bias = d.r.normal(size=outputs) * y_scale * 20
    else:
        # An output step is a small even number of accumulator LSBs: every few outputs one is half-way, up to the roundings of the scales.
        scale = d.r.choice([1, 1, 2, 0.5, 3], outputs) * float(base)
        codes = d.r.integers(-9, 10, (outputs, inputs)).astype(np.int8)
        unit = float(x.scale * (np.float32(scale[0])))
        y_scale = d.beside(unit * d.pick(2, 4, 6, 8, 10, 16, 32) * np.ceil(inputs / 8))
        bias = d.r.integers(-400, 400, outputs) * unit * d.pick(1, 0.5, 1.03)
    w = QParams(scale.astype(np.float32), 0, -128, 127, axis=0) if per_channel else QParams(np.float32(scale[0]), 0, -128, 127)
    return x, codes, w, bias.astype(np.float32) if d.r.random() < 0.8 else None, d.grid(y_scale)


def linear(d: Draw, count: int) -> Iterator:
    for i in range(count * 6):
        rows, inputs, outputs = d.pick(1, 2, 5, 16, 33), d.pick(1, 3, 8, 17, 32, 64, 100), d.pick(1, 3, 8, 16, 31, 64)
        x, w_q, w, bias, y = layer(d, outputs, inputs, bool(i % 2))
        yield (d.codes(rows, inputs), x, w_q, w, bias, y), {"relu": bool(i % 3 == 0)}


def linear_dynamic(d: Draw, count: int) -> Iterator:
    for _ in range(count * 2):
        rows, inputs, outputs = d.pick(1, 2, 5, 16, 33), d.pick(1, 3, 8, 17, 32, 64, 100), d.pick(1, 3, 8, 16, 31, 64)
        _, w_q, w, bias, _ = layer(d, outputs, inputs, True)
        yield ((d.r.normal(size=(rows, inputs)) * d.pick(0.1, 1, 9)).astype(np.float32), w_q, w, bias), {"relu": d.r.random() < 0.3}


def conv2d(d: Draw, count: int) -> Iterator:
    for i in range(count):
        kind = ("dense", "grouped", "depthwise", "usual")[i % 4]
        groups = {"dense": 1, "grouped": d.pick(2, 4), "depthwise": d.pick(2, 3, 8, 16, 17, 32), "usual": d.pick(8, 16, 32)}[kind]
        each, outputs = (1, 1) if kind in ("depthwise", "usual") else (d.pick(1, 3, 4, 8), d.pick(1, 4, 5, 8))
        kernel = d.pick(1, 2, 3, 5), d.pick(1, 2, 3, 5)
        padding = tuple(min(int(p), k - 1) for p, k in zip(d.r.integers(0, 3, 2), kernel))
        places = {"stride": (d.pick(1, 1, 2), d.pick(1, 2)), "padding": padding, "dilation": (d.pick(1, 1, 2), d.pick(1, 1, 2)), "groups": groups}
        if kind == "usual":  # depthwise as networks have them, for which there are kernels apart
            side, step = d.pick(3, 3, 5), d.pick(1, 2)
            kernel, places = (side, side), {"stride": (step, step), "padding": (side // 2, side // 2), "dilation": (1, 1), "groups": groups}
        x, w_q, w, bias, y = layer(d, groups * outputs, each * kernel[0] * kernel[1], bool(i // 4 % 2))
        w_q = w_q.reshape(groups * outputs, each, *kernel)
        yield (d.codes(2, groups * each, 11, 10), x, w_q, w, bias, y), {**places, "relu": i % 5 == 0}


def pair(d: Draw, sum_: bool):
    a = d.scale()
    b = np.float32(a * d.pick(1, 2, 0.5, 3, 1.7)) if sum_ else d.scale()
    y = a * np.float32(d.pick(2, 4, 6, 1, 1.3)) if sum_ else a * b * np.float32(d.pick(64, 128, 96, 32, 70))
    return d.grid(a), d.grid(b), d.grid(d.beside(y))


def add(d: Draw, count: int) -> Iterator:
    yield from pairs(d, count, True)


def mul(d: Draw, count: int) -> Iterator:
    yield from pairs(d, count, False)


def pairs(d: Draw, count: int, sum_: bool) -> Iterator:
    """Every pair of codes on one in ten grids, and few of them on the others: lengths that fill no vector are where kernels take other steps."""
    every = d.every_pair()
    for i in range(count):
        a, b, y = pair(d, sum_)
        chosen = slice(None) if i % 10 == 0 else d.r.integers(0, len(every[0]), d.pick(1, 5, 16, 63, 64, 200))
        yield (every[0][chosen].copy(), a, every[1][chosen].copy(), b, y), {"relu": i % 3 == 0} if sum_ else {}


def concat(d: Draw, count: int) -> Iterator:
    every = np.arange(d.ends[0], d.ends[1] + 1).astype(d.dtype)
    for i in range(count * 2):
        y = d.grid(d.scale())
        grids = [d.grid(d.beside(y.scale * np.float32(d.pick(0.5, 1.5, 2.5, 1.7)))), y, d.grid(d.scale())]
        parts = [(every if i % 2 else d.codes(d.pick(1, 5, 33)), grid) for grid in grids]
        yield ([(np.atleast_2d(q), grid) for q, grid in parts], y), {"axis": 1}


def images(d: Draw, channels: int, *size: int) -> np.ndarray:
    """Codes near one another, so that averages of a few are ties as often as averages of codes that vary."""
    return np.clip(d.codes(2, channels, 1, 1).astype(int) + d.r.integers(-3, 4, (2, channels, *size)), *d.ends).astype(d.dtype)


def max_pool2d(d: Draw, count: int) -> Iterator:
    for i in range(count):
        kernel = d.pick(1, 2, 3), d.pick(2, 3)
        padding = tuple(k // 2 for k in kernel) if i % 2 else (0, 0)
        options = {"kernel": kernel, "stride": (d.pick(1, 2), d.pick(1, 2)), "padding": padding, "dilation": (d.pick(1, 1, 2),) * 2}
        yield (d.codes(2, d.pick(1, 3, 17, 64), 9, 8), d.grid(d.scale())), options


def avg_pool2d(d: Draw, count: int) -> Iterator:
    for i in range(count):
        kernel = d.pick(2, 3, 1), d.pick(2, 4, 3)
        padding = tuple(k // 2 for k in kernel) if i % 3 == 0 else (0, 0)
        options = {"kernel": kernel, "stride": (d.pick(1, 2), d.pick(1, 2)), "padding": padding, "count_include_pad": bool(i % 2)}
        yield (images(d, d.pick(1, 3, 17, 64), 9, 8), d.grid(d.scale())), options


def adaptive_avg_pool2d(d: Draw, count: int) -> Iterator:
    for _ in range(count * 14):
        size = d.pick((1, 1), (1, 1), (2, 3), (3, 3))
        height, width = d.pick(2, 4, 6, 7, 14), d.pick(3, 6, 8, 14)
        yield (images(d, d.pick(1, 3, 17, 64), height, width), d.grid(d.scale())), {"size": size}


def fold_batch_norm(d: Draw, count: int) -> Iterator:
    for i in range(count * 2):
        outputs = d.pick(1, 5, 16)
        weight = d.r.normal(size=(outputs, 3, 3, 3) if i % 2 else (outputs, 20)).astype(np.float32)
        numbers = [d.r.normal(size=outputs).astype(np.float32) for _ in range(4)]
        yield (weight, *numbers, d.r.uniform(0.1, 2, outputs).astype(np.float32), 1e-5), {}


GENERATORS = {
    f.__name__: f
    for f in (
        quantize, dequantize, qparams, linear, linear_dynamic, conv2d, add, mul, concat, max_pool2d, avg_pool2d, adaptive_avg_pool2d, fold_batch_norm,
    )
}  # fmt: skip


def bulk(operation: str, *, count: int = 20, seed: int = 0) -> Iterator[Call]:
    """Calls of an operation on unsigned and on signed codes; more than 10,000 outputs with the usual ``count``, also where a backend
    offers those of one signedness, of one range rule or without a bias only."""
    for signed in (False, True):
        for arguments, options in GENERATORS[operation](Draw(seed, signed), count):
            yield Call(operation, arguments, options)
