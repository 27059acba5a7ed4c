"""What a file states that it costs: memory and work, told from its header before anything of it is made (STA-LIMITS).

Sizes of inputs are not in a file. What is counted is the least that anybody can run its steps on: windows on one
position, layers on one row, and one value wherever a size is not said. A file that states more than the caller allows
is refused, however small it is. What is read here is not checked yet: what has another form than it should counts as
nothing, and is refused later.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HEADER = 64  # bytes of Python objects for a byte of JSON
TENSORS = 3  # bytes for a byte of an array: as it is read, as an engine packs it, what is computed on the way
VALUE = 8  # bytes of a value of a step: as a float, and once more where it is copied
ANY_MEMORY, ANY_WORK = 2**30, 2**34  # what every file may state
MEMORY_OF_BYTE, WORK_OF_BYTE = 64, 2**12  # and that for each byte of a file

# Functions and methods whose whole numbers say how much they make: where the numbers stand among the arguments (None:
# from the second on), by which name, and what they are.
SIZES = {
    "full": (0, "size"), "zeros": (None, "size"), "ones": (None, "size"), "new_full": (1, "size"),
    "new_zeros": (None, "size"), "new_ones": (None, "size"), "expand": (None, "size"), "broadcast_to": (1, "size"),
    "arange": (None, "end"), "eye": (None, "n"), "linspace": (2, "steps"), "logspace": (2, "steps"),
    "one_hot": (1, "num_classes"), "fold": (1, "output_size"), "mvlgamma": (1, "p"),
    "affine_grid": (1, "size"), "interpolate": (1, "size"), "upsample": (1, "size"), "histc": (1, "bins"),
    "stft": (1, "n_fft"), "istft": (8, "length"),
} | {f"{shape}_window": (0, "window_length") for shape in ("bartlett", "blackman", "hamming", "hann")} | {
    f"{inverse}{kind}fft": (1, "n") for inverse in ("", "i") for kind in ("", "r", "h")} | {
    f"{inverse}{kind}fft{axes}": (1, "s") for inverse in ("", "i") for kind in ("", "r") for axes in ("2", "n")
} | {f"adaptive_{kind}_pool{axes}d": (1, "output_size") for kind in ("avg", "max") for axes in (1, 2, 3)}  # fmt: skip
REPEATS = {"repeat": (None, "repeats"), "tile": (None, "dims"), "repeat_interleave": (1, "repeats")}
PADS = {"pad": (1, "pad"), "constant_pad_nd": (1, "pad")}
PADDINGS = {f"{kind}{axes}d": (4, "padding") for kind in ("conv", "conv_transpose") for axes in (1, 2, 3)}
PADDINGS |= {f"{kind}_pool{axes}d": (3, "padding") for kind in ("max", "avg") for axes in (1, 2, 3)}
PADDINGS |= {"unfold": (3, "padding")}
JOINS = frozenset({"cat", "concat", "concatenate", "stack", "vstack", "hstack"})
KEEP = frozenset(  # that give as many values as they get
    """
    flatten reshape view permute transpose contiguous squeeze unsqueeze roll flip swapaxes movedim t clone detach abs
    neg exp log sqrt relu relu6 gelu silu mish elu selu celu sigmoid tanh softplus hardswish hardsigmoid hardtanh
    leaky_relu softmax log_softmax layer_norm rms_norm batch_norm group_norm instance_norm dropout add sub mul truediv
    div pow float to half double pixel_shuffle pixel_unshuffle channel_shuffle
    """.split()
)
AXES_OF_MODES = {"linear": 1, "bilinear": 2, "bicubic": 2, "trilinear": 3}  # others: images


class TooLarge(ValueError):
    """A file that states more than is allowed."""


@dataclass(frozen=True)
class Limits:
    """Bytes of memory and operations that the caller allows; None for what any file of that size may state."""

    memory: float | None = None
    work: float | None = None


@dataclass
class Statement:
    """What a file states; ``shares`` has (bytes, operations) of each part of it, by name."""

    shares: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        return sum(memory for memory, _ in self.shares.values())

    @property
    def work(self) -> int:
        return sum(work for _, work in self.shares.values())

    def add(self, name: str, memory: int, work: int) -> None:
        before = self.shares.get(name, (0, 0))
        self.shares[name] = before[0] + memory, before[1] + work

    def check(self, limits: Limits, size: int) -> None:
        """TooLarge naming the figure, the limit, the argument and the part that states most. ``size``: of the file."""
        for index, key, unit, total, given, usual in (
            (0, "max_memory", "bytes of memory", self.memory, limits.memory, ANY_MEMORY + MEMORY_OF_BYTE * size),
            (1, "max_work", "operations", self.work, limits.work, ANY_WORK + WORK_OF_BYTE * size),
        ):
            limit = usual if given is None else given
            if total > limit:
                most = max(self.shares, key=lambda name: self.shares[name][index])
                raise TooLarge(
                    f"it needs {figure(total)} {unit}, most of it for {most}; {key} allows {figure(limit)}, "
                    "pass a larger one to load it anyway"
                )


def figure(number: float) -> str:
    return f"{number:,.0f}" if number < 10**15 else f"{min(number, sys.float_info.max):.3g}"


def stated(content: Any, tensors: Mapping[str, tuple[tuple[int, ...], int]], header: int) -> Statement:
    """What a file states. ``content``: its JSON; ``tensors``: shape and bytes by name; ``header``: its bytes."""
    statement = Statement()
    statement.add("its header", HEADER * header, header)
    for name, (shape, nbytes) in tensors.items():
        longest = max(shape, default=0)  # an array without values has axes all the same
        statement.add(f"tensor {name!r}", TENSORS * nbytes + VALUE * longest, nbytes + longest)
    inner = content if type(content) is dict else {}
    networks = [inner.get("network")]
    networks += [entry(part, "network") for part in items(entry(inner.get("model"), "parts"))]
    for network in networks:
        Steps(network, tensors, statement).add_all()
    return statement


class Steps:
    """The values of a network, by name, and how many there are of each at least."""

    def __init__(self, network: Any, tensors: Mapping[str, tuple[tuple[int, ...], int]], statement: Statement):
        self.network, self.tensors, self.statement = network, tensors, statement
        self.least: dict[str, int] = {}
        rows = [row for row in items(entry(network, "callables")) if entry(row, "kind") == "module"]
        self.modules = {str(row.get("target")): row for row in rows}

    def add_all(self) -> None:
        for row in items(entry(self.network, "steps")):
            if type(row) is dict:
                values, more, work = self.values_of(row)
                name = str(row.get("name"))
                self.least[name] = values
                self.statement.add(f"step {name!r}", VALUE * (values + more), work + values + more)

    def count(self, name: Any) -> int:
        return self.least.get(name, 1) if type(name) is str else 1

    def shape(self, name: Any) -> tuple[int, ...]:
        return self.tensors[name][0] if type(name) is str and name in self.tensors else ()

    def values_of(self, row: dict[str, Any]) -> tuple[int, int, int]:
        """Values that a step makes, values that it needs beside, and operations other than one for each, at least."""
        kind, x = row.get("step"), self.count(row.get("x"))
        if kind in ("Quantize", "Dequantize", "Relu", "Table"):
            return x, 0, 0
        if kind in ("Add", "Mul"):
            return max(self.count(row.get("a")), self.count(row.get("b"))), 0, 0
        if kind == "Concat":
            return sum(map(self.count, items(row.get("xs")))), 0, 0
        if kind in ("Linear", "LinearReal", "LinearDynamic", "LinearWeight", "Conv", "ConvReal"):
            return self.layer(row, self.shape(row.get("weight")), x)
        if kind in ("MaxPool", "AvgPool"):
            return 1, around(numbers(row.get("padding"))), product(numbers(row.get("kernel")))
        if kind == "Bilinear" and row.get("size") is None:
            factors = items(row.get("factors"))
            if not all(type(factor) in (int, float) and 1 <= factor <= 2.0**20 for factor in factors):
                return 1, 0, 0
            return x * math.prod(map(int, factors)), 0, 0
        if kind in ("AdaptiveAvgPool", "Bilinear"):
            return product(numbers(row.get("size"))), 0, 0
        if kind == "Embedding":
            return math.prod(self.shape(row.get("weight"))[1:]), 0, 0
        if kind in ("Move", "Call", "Attention"):
            return self.called(row), 0, 0
        return 1, 0, 0

    def layer(self, row: dict[str, Any], shape: tuple[int, ...], x: int) -> tuple[int, int, int]:
        """Of a linear layer, or of a convolution."""
        outputs, inputs, weights = shape[0] if shape else 1, math.prod(shape[1:]), math.prod(shape)
        if len(shape) < 3:
            rows = max(-(-x // max(inputs, 1)), 1)
            return rows * outputs, 0, rows * weights
        pairs = [tuple((*numbers(pair), 0, 0)[:2]) for pair in items(row.get("padding"))]
        axes = zip(pairs, shape[2:], numbers(row.get("dilation")), numbers(row.get("stride")))
        windows = (max((before + after - d * (k - 1)) // max(s, 1) + 1, 1) for (before, after), k, d, s in axes)
        positions = math.prod(windows)
        # A spread convolution has weights of its own for each place between two inputs.
        parts = product(numbers(row.get("input_dilation")))
        beside = padded(pairs) * inputs // max(math.prod(shape[2:]), 1) + parts * outputs
        return positions * outputs, beside, positions * weights + parts

    def called(self, row: dict[str, Any]) -> int:
        """Values of what stays in float, or rearranges."""
        args, kwargs, leaf = items(row.get("args")), pairs_of(row.get("kwargs")), str(row.get("target"))
        read = [self.count(name) for name in refs([*args, *kwargs.values()])]
        most = max(read, default=1)
        if row.get("kind") == "module":
            return self.module(self.modules.get(leaf), most)
        leaf = leaf.rpartition(".")[2]
        for table, count in ((SIZES, product), (REPEATS, product), (PADS, both_sides), (PADDINGS, around)):
            if leaf in table:
                place, name = table[leaf]
                first = 0 if leaf in ("zeros", "ones", "arange", "eye") else 1
                given = args[first:] if place is None else args[place:][:1]
                sizes = numbers([*given, kwargs.get(name), kwargs.get("m") if leaf == "eye" else None])
                values = count(sizes * 2 if leaf == "eye" and len(sizes) == 1 else sizes)
                if leaf in ("interpolate", "upsample"):
                    values = max(values, resized([*args[2:3], kwargs.get("scale_factor")], kwargs.get("mode"), most))
                return most * values if table is REPEATS else max(most, values)
        if leaf in JOINS:
            return sum(read)
        return most if leaf in KEEP else 1

    def module(self, row: Any, most: int) -> int:
        """Values of a module of torch.nn, or of a layer in float."""
        if "fields" in (row or {}):
            shape = self.shape(entry(row["state"], "weight")) if "state" in row else ()
            values, beside, _ = self.layer(row["fields"], shape, most) if type(row["fields"]) is dict else (1, 0, 0)
            return values + beside
        arguments, name = pairs_of(entry(row, "arguments")), str(entry(row, "class"))
        sizes = numbers([arguments.get("output_size"), arguments.get("size")])
        padding = numbers(arguments.get("padding"))
        if len(padding) == 1:  # one for all axes
            axes = next((int(digit) for digit in name if digit in "123"), 2)
            padding *= 2 * axes if "Pad" in name else axes
        positions = both_sides(padding) if "Pad" in name else around(padding)
        scaled = resized([arguments.get("scale_factor")], arguments.get("mode"), most)
        return max(product(sizes), positions, scaled)


def items(value: Any) -> list[Any]:
    """A list, or what a tuple or a size has in it; nothing for what is neither."""
    if type(value) is dict and len(value) == 1:
        value = value.get("tuple", value.get("size"))
    return value if type(value) is list else []


def entry(value: Any, key: str) -> Any:
    return value.get(key) if type(value) is dict else None


def pairs_of(value: Any) -> dict[str, Any]:
    """A dict of a tree of arguments."""
    pairs = entry(value, "dict")
    fit = [pair for pair in (pairs if type(pairs) is list else []) if type(pair) is list and len(pair) == 2]
    return {pair[0]: pair[1] for pair in fit if type(pair[0]) is str}


def numbers(value: Any) -> list[int]:
    """All whole numbers inside lists and tuples."""
    if type(value) is int:
        return [value]
    return [number for item in items(value) for number in numbers(item)]


def product(sizes: list[int]) -> int:
    """Of sizes, of which none is below 1."""
    return math.prod(max(size, 1) for size in sizes)


def refs(value: Any) -> list[str]:
    """The names of values inside lists and tuples."""
    if type(value) is dict and type(value.get("ref")) is str:
        return [value["ref"]]
    return [name for item in (value if type(value) is list else items(value)) for name in refs(item)]


def padded(pairs: Iterable[tuple[int, ...]]) -> int:
    """Positions of an image of one position with that many more before and behind on each axis."""
    return math.prod(max(1 + sum(pair), 1) for pair in pairs)


def both_sides(widths: list[int]) -> int:
    """The same, of the widths as ``F.pad`` takes them."""
    return padded(zip(widths[::2], widths[1::2]))


def around(widths: list[int]) -> int:
    """The same, of one width for both sides of each axis."""
    return padded((width, width) for width in widths)


def resized(scales: list[Any], mode: Any, values: int) -> int:
    """Values that resizing makes of ``values``, by factors for each axis or by one for all."""
    factors = [factor for item in scales for factor in ([item] if type(item) in (int, float) else items(item))]
    times = [int(factor) for factor in factors if type(factor) in (int, float) and 1 <= factor < math.inf]
    if len(factors) == 1:
        times *= AXES_OF_MODES.get(mode, 2) if type(mode) is str else 2
    return values * math.prod(times)
