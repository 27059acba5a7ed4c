"""Bilinear interpolation, recognized with the lengths that it is given: numbers, factors, or those of another value."""

import operator
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from quantspec.ir import float_graph

from .operators import MODULES, NUMBER, Builder, constants, each, function, is_value, signature

LAST = {2: 0, 3: 1, -2: 0, -1: 1}  # axes of images, by their number of positions
ARGUMENTS = signature(
    "input size scale_factor mode align_corners recompute_scale_factor antialias", size=None, scale_factor=None,
    mode="nearest", align_corners=None, recompute_scale_factor=None, antialias=False,
)  # fmt: skip


@function(ARGUMENTS, F.interpolate)
def interpolate(builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    options = [given[key] for key in ("scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")]
    if given["mode"] != "bilinear" or given["antialias"] or not constants(options) or not is_value(given["input"]):
        return None
    return bilinear(builder, node, given["size"], given)


def module(builder: Builder, node: fx.Node, given: dict[str, Any]) -> float_graph.Node | None:
    if given["mode"] != "bilinear" or not is_value((*node.args, *node.kwargs.values())[0]):
        return None
    return bilinear(builder, node, given["size"], given)


MODULES[nn.Upsample] = MODULES[nn.UpsamplingBilinear2d] = module


def bilinear(builder: Builder, node: fx.Node, size: Any, given: dict[str, Any]) -> float_graph.Node | None:
    """The node, where what it gives is one of the forms that are known."""
    source, factors = None, given["scale_factor"]
    if size is not None and not constants(size):
        source, size = measured(size), None
        if source is None:
            return None
    elif size is not None:
        size = each(size, 2)
    elif isinstance(factors, NUMBER):
        factors = float(factors), float(factors)
    elif factors is not None:
        factors = tuple(map(float, factors)) if len(factors) == 2 else None
    if source is None and size is None and factors is None:
        return None
    if size is not None or source is not None:
        factors = None
    return float_graph.Bilinear(
        node.name, builder.first(node), None if source is None else builder.tree(source).name, size, factors,
        factors is not None and not given["recompute_scale_factor"], bool(given["align_corners"]), builder.call(node),
    )  # fmt: skip


def measured(size: Any) -> fx.Node | None:
    """The value whose last two lengths a size is; None for what is anything else."""
    if isinstance(size, (tuple, list)):
        found = [length_of(item) for item in size]
        if len(found) == 2 and all(length is not None for length in found):
            (first, second) = (length for length in found if length is not None)
            return first[0] if first[0] is second[0] and (first[1], second[1]) == (0, 1) else None
        return None
    if not is_value(size) or size.target is not operator.getitem or not isinstance(size.args[1], slice):
        return None
    ends = size.args[1]
    taken = (ends.start, ends.stop, ends.step)
    return shape_of(size.args[0]) if taken in ((-2, None, None), (2, None, None), (2, 4, None)) else None


def length_of(item: Any) -> tuple[fx.Node, int] | None:
    """The value of which an item is one of the last two lengths, and which one."""
    if not is_value(item):
        return None
    if item.op == "call_method" and item.target == "size" and len(item.args) == 2 and item.args[1] in LAST:
        return item.args[0], LAST[item.args[1]]
    if item.target is operator.getitem and isinstance(item.args[1], int) and item.args[1] in LAST:
        source = shape_of(item.args[0])
        return None if source is None else (source, LAST[item.args[1]])
    return None


def shape_of(node: Any) -> fx.Node | None:
    """The value whose shape a node is."""
    if node.target is getattr and node.args[1] == "shape":
        found: fx.Node = node.args[0]
        return found
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1 and not node.kwargs:
        sized: fx.Node = node.args[0]
        return sized
    return None
