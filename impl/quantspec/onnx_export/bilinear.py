"""Bilinear interpolation of codes (INT-BILINEAR) as ONNX operators: neighbours gathered, and sums of floats that are
exact. ONNX's own Resize rounds positions, and codes, otherwise."""

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from quantspec.errors import UnsupportedError
from quantspec.ir.program import Bilinear
from quantspec.numerics.bilinear import UNIT, places, start_and_step

from .builder import Graph, Length, Tensor, dim_of, unit_grid
from .resize import scaled

LARGEST = 2**31  # of the numbers that a factor is a quotient of


def bilinear(g: Graph, step: Bilinear, values: Mapping[str, Tensor]) -> Tensor:
    x, grid = values[step.x], step.qparams
    sizes: list[Length]
    if step.like is not None:
        like = values[step.like]
        sizes = [g.size(like, axis) for axis in (like.rank - 2, like.rank - 1)]
    elif step.size is not None:
        sizes = list(step.size)
    else:
        assert step.factors is not None  # as nothing else is given
        sizes = [scaled(g, g.size(x, axis), factor) for axis, factor in zip((2, 3), step.factors)]
    y = g.node("Cast", [x.name], to=TensorProto.FLOAT)
    y = g.node("Sub", [y, g.constant(float(grid.zero_point), np.float32)])
    for axis, size in zip((2, 3), sizes):
        factor = step.factors[axis - 2] if step.exact and step.factors is not None else None
        y = weighted(g, y, axis, along(g, g.size(x, axis), size, factor, step.align_corners))
    y = g.node("Mul", [y, g.constant(1 / UNIT**2, np.float32)])
    codes = g.quantize(y, unit_grid(int(grid.zero_point), grid.qmin, grid.qmax))
    return Tensor(codes, (*x.shape[:2], *map(dim_of, sizes)), grid)


def weighted(g: Graph, values: str, axis: int, along: tuple[str, str, str]) -> str:
    """256 times the values between neighbours along an axis."""
    before, behind, steps = along
    shares = g.node("Reshape", [g.node("Cast", [steps], to=TensorProto.FLOAT), g.ints(-1, *[1] * (3 - axis))])
    others = g.node("Sub", [g.constant(float(UNIT), np.float32), shares])
    parts = [
        g.node("Mul", [g.node("Gather", [values, index], axis=axis), share])
        for index, share in ((before, others), (behind, shares))
    ]
    return g.node("Add", parts)


def along(g: Graph, n: Length, m: Length, factor: float | None, align_corners: bool) -> tuple[str, str, str]:
    """``numerics.bilinear.places``, int64, also of lengths that are only known when the network runs."""
    if isinstance(n, int) and isinstance(m, int):
        before, behind, steps = (g.constant(part) for part in places(n, m, factor, align_corners))
        return before, behind, steps
    zero, one, two, unit = g.ints(0), g.ints(1), g.ints(2), g.ints(UNIT)
    last = g.node("Sub", [g.int_name(n), one])
    if align_corners:
        start, distance = zero, g.node("Mul", [last, unit])
        under = g.node("Max", [g.node("Sub", [g.int_name(m), one]), one])
    elif factor is not None:
        (first, between), quotient = start_and_step(1, 1, factor, align_corners=False)
        if max(abs(first), between) > LARGEST:  # as one is wherever the quotient is
            what = f"by {factor}, a quotient of long numbers, of lengths that are not known"
            raise UnsupportedError(f"bilinear interpolation {what}")
        start, distance, under = g.ints(first), g.ints(between), g.ints(quotient)
    else:
        under, own = g.int_name(m), g.int_name(n)
        start = g.node("Mul", [g.node("Sub", [own, under]), g.ints(UNIT // 2)])
        distance = g.node("Mul", [own, unit])
    over = g.node("Max", [g.node("Add", [g.node("Mul", [g.numbers(g.int_name(m)), distance]), start]), zero])
    whole = g.node("Div", [over, under])
    twice = g.node("Mul", [g.node("Sub", [over, g.node("Mul", [whole, under])]), two])
    odd = g.node("Equal", [g.node("Mod", [whole, two]), one])
    up = g.node("Or", [g.node("Greater", [twice, under]), g.node("And", [g.node("Equal", [twice, under]), odd])])
    steps = g.node("Add", [whole, g.node("Cast", [up], to=TensorProto.INT64)])
    before = g.node("Min", [g.node("Div", [steps, unit]), last])
    return before, g.node("Min", [g.node("Add", [before, one]), last]), g.node("Mod", [steps, unit])
