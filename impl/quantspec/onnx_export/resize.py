"""``F.interpolate`` as ONNX operators: nearest neighbours of codes and of floats, equal to torch's, and in float lines,
planes and cubics by Resize, whose last bits are the runtime's."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from quantspec.errors import UnsupportedError

from .builder import Graph, Length, Size, Tensor, dim_of, times

SMOOTH = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


def interpolate(
    g: Graph, x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> Tensor:  # fmt: skip
    if antialias or mode not in ("nearest", "nearest-exact", *SMOOTH):
        raise UnsupportedError(f"interpolate in mode {mode!r}{' with antialias' if antialias else ''}")
    axes = range(2, x.rank)
    factors: list[float | None] = [None] * len(axes)
    sizes: Sequence[Length]
    if size is not None:
        sizes = list(size) if isinstance(size, (tuple, list)) else [size] * len(axes)
    else:
        given = scale_factor if isinstance(scale_factor, (tuple, list)) else [scale_factor] * len(axes)
        sizes = [scaled(g, g.size(x, axis), float(factor)) for axis, factor in zip(axes, given)]
        if not recompute_scale_factor:
            factors = [float(factor) for factor in given]
    if mode in SMOOTH:
        return smooth(g, x, sizes, factors, SMOOTH[mode], bool(align_corners))
    if mode == "nearest" and all(factor is not None and factor == int(factor) for factor in factors):
        return repeated(g, x, [int(factor) for factor in factors if factor is not None])
    for axis, length, factor in zip(axes, sizes, factors):
        index = nearest(g, g.size(x, axis), length, factor, exact=mode == "nearest-exact")
        shape = (*x.shape[:axis], dim_of(length), *x.shape[axis + 1 :])
        x = Tensor(g.node("Gather", [x.name, index], axis=axis), shape, x.grid)
    return x


def scaled(g: Graph, length: Length, factor: float) -> Length:
    """The length that a factor gives, rounded down."""
    if isinstance(length, int):
        return math.floor(length * factor)
    if factor == int(factor):
        return g.compute("mul", length, int(factor))
    wide = g.node("Mul", [g.node("Cast", [length.name], to=TensorProto.DOUBLE), g.constant(factor)])
    return Size(g.node("Cast", [g.node("Floor", [wide])], to=TensorProto.INT64), ("scaled", length.dim, factor))


def repeated(g: Graph, x: Tensor, factors: list[int]) -> Tensor:
    """Each value several times."""
    name = g.node(
        "Resize", [x.name, "", g.constant([1.0, 1.0, *map(float, factors)], np.float32)],
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    return Tensor(name, (*x.shape[:2], *map(times, x.shape[2:], factors)), x.grid)


def nearest(g: Graph, length: Length, size: Length, factor: float | None, *, exact: bool) -> str:
    """Where along an axis each value is taken from, by torch's own steps in float32."""
    places = g.node("Cast", [g.numbers(g.int_name(size))], to=TensorProto.FLOAT)
    if factor is not None:
        scale = g.constant(1.0 / factor, np.float32)
    else:
        scale = g.node("Div", [g.node("Cast", [g.int_name(n)], to=TensorProto.FLOAT) for n in (length, size)])
    if exact:
        half, zero = g.constant(0.5, np.float32), g.constant(0.0, np.float32)
        source = g.node("Mul", [g.node("Add", [places, half]), scale])
        source = g.node("Add", [g.node("Max", [g.node("Sub", [source, half]), zero]), half])
    else:
        source = g.node("Mul", [places, scale])
    index = g.node("Cast", [g.node("Floor", [source])], to=TensorProto.INT64)
    return g.node("Min", [index, g.node("Sub", [g.int_name(length), g.ints(1)])])


def smooth(
    g: Graph, x: Tensor, sizes: Sequence[Length], factors: Sequence[float | None], mode: str, align_corners: bool
) -> Tensor:
    """Between neighbours; a factor, where one is given, is the scale of positions as it is."""
    axes = list(range(2, x.rank))
    given = [factor for factor in factors if factor is not None]
    by_factors = len(given) == len(axes)
    ends = [g.constant([*map(rounded_up, given)], np.float32)] if by_factors else ["", g.vector(sizes)]
    name = g.node(
        "Resize", [x.name, "", *ends], axes=axes, mode=mode, cubic_coeff_a=-0.75,
        coordinate_transformation_mode="align_corners" if align_corners else "half_pixel",
    )  # fmt: skip
    if by_factors and not all(factor.is_integer() for factor in given):
        # The runtime multiplies in float32, whose product may be a whole number where that of float64 is just below.
        name = g.node("Slice", [name, g.ints(*[0] * len(axes)), g.vector(sizes), g.ints(*axes)])
    return Tensor(name, (*x.shape[:2], *map(dim_of, sizes)))


def rounded_up(factor: float) -> float:
    """The least float32 that is not below, so that no length comes out shorter."""
    near = np.float32(factor)
    return float(near if float(near) >= factor else np.nextafter(near, np.float32(np.inf)))
