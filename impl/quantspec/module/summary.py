"""What each part of a network became, as a table: ``print(q)``."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from quantspec.ir import program
from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    Attention,
    AvgPool,
    Bilinear,
    Call,
    Concat,
    Conv,
    Embedding,
    Layer,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Mean,
    Mul,
    Program,
    Quantize,
    Recurrent,
    Relu,
    Step,
)
from quantspec.numerics.affine import QParams

from . import size
from .printed import at_dots, grouped, new_table, printed

NARROW = "layer", "kind", "output scale", "zero", "bytes"
# Of a scale. The last digits of one depend on the order in which a CPU adds floats.
DIGITS = {False: 4, True: 6}
WIDE = "layer", "kind", "weight scale", "weight zero", "output scale", "output zero", "bytes"


@dataclass(frozen=True)
class Part:
    """One network of a model: the path of what it stands for, its Program, and what runs its layers."""

    path: str
    network: Program
    engine: str
    engines: dict[str, str]


def span(values: np.ndarray, digits: int) -> str:
    """A number, or the smallest and largest of many."""
    if not values.size:
        return ""
    low, high = values.min(), values.max()
    return f"{low:.{digits}g}" if low == high else f"{low:.{digits}g} .. {high:.{digits}g}"


def grid_cells(grid: QParams, digits: int) -> tuple[str, str]:
    """Scale and zero point of a grid as text."""
    return span(grid.scale, digits), span(grid.zero_point, digits)


def kind_of(layer: Layer) -> str:
    """What a layer became."""
    if isinstance(layer, Linear):
        return "linear"
    if isinstance(layer, Conv):
        kernel = "x".join(map(str, codes_shape(layer)[2:]))
        turned = "transposed " if any(d > 1 for d in layer.input_dilation) else ""
        depth = "depthwise " if layer.groups > 1 and codes_shape(layer)[1] == 1 else ""
        return f"{depth}{turned}conv {kernel}"
    if isinstance(layer, LinearDynamic):
        return f"linear, dynamic{', per token' if layer.rows else ''}"
    if isinstance(layer, LinearWeight):
        return "linear, int8 weights"
    return "embedding" if isinstance(layer, Embedding) else f"{layer.kind.upper()}, dynamic"


POOLS = {
    MaxPool: "max pool", AvgPool: "average pool", AdaptiveAvgPool: "average pool", Mean: "mean", Relu: "relu",
    Bilinear: "bilinear",
}  # fmt: skip


def row(step: Step, digits: int) -> list[str] | None:
    """The cells for a step: layer, kind, its weights' and its output's grid; None for steps that only rearrange, and
    for what stays in float because there is nothing to quantize."""
    name = step.name.removesuffix(".codes")
    if isinstance(step, Quantize):
        return [step.x, "quantize", "", "", *grid_cells(step.qparams, digits)]
    if isinstance(step, Recurrent):
        return [step.layer, kind_of(step), "", "", "float32", ""]
    if isinstance(step, Layer):
        relu = " + relu" if isinstance(step, (Linear, Conv)) and step.relu else ""
        y = step.y_qparams if isinstance(step, (Linear, Conv)) else None
        output = ("float32", "") if y is None else grid_cells(y, digits)
        return [step.layer, kind_of(step) + relu, *grid_cells(step.w_qparams, digits), *output]
    if isinstance(step, (Add, Mul, Concat, program.Table)):
        relu = " + relu" if isinstance(step, Add) and step.relu else ""
        what = step.function if isinstance(step, program.Table) else type(step).__name__.lower()
        return [name, what + relu, "", "", *grid_cells(step.y_qparams, digits)]
    if (kind := POOLS.get(type(step))) is not None:
        return [name, kind, "", "", "", ""]
    if isinstance(step, Attention):
        return [name, "attention", "", "", "float32", ""]
    if isinstance(step, Call) and step.reason:
        return [name if step.kind != "module" else step.target, "float32", "", "", "float32", ""]
    return None


def network_table(
    title: str, parts: Iterable[Part], stops: Iterable[tuple[str, str]], nbytes: int, resident: int, *, wide: bool
) -> str:
    """What each layer of the parts became: its kind, grids and bytes; below that why the rest is in float or in Python
    (``stops``), and which layers another engine runs than their network's. ``wide``: with the grids of weights."""
    parts = list(parts)
    table = new_table(title, *(WIDE if wide else NARROW), left=2)
    in_float: list[tuple[str, str]] = []
    others: list[tuple[str, str]] = []
    for part in parts:
        rows = [(step, cells) for step in part.network.steps if (cells := row(step, DIGITS[wide])) is not None]
        if len(parts) > 1 and len(rows) > 1:
            table.add_section()
            table.add_row(at_dots(part.path or "the model"), "one network")
        for step, cells in rows:
            own = call_bytes(part.network, step) if isinstance(step, Call) else size.step_bytes(step)
            if isinstance(step, Call) and step.reason:
                in_float.append((cells[0], step.reason))
            shown = cells if wide else [at_dots(cells[0]), cells[1], *cells[4:]]
            table.add_row(*shown, f"{own:,}")
        others += [(layer, engine) for layer, engine in part.engines.items() if engine != part.engine]
    table.add_section()
    for what, count in (("stored", nbytes), ("in memory", resident)):
        table.add_row(what, *[""] * (len(table.columns) - 2), f"{count:,}")
    lines = [printed(table, wide=wide)]
    lines += grouped("in float32:", in_float) + grouped("in Python:", stops)
    return "\n".join(lines + grouped("on another engine:", others))


def call_bytes(network: Program, step: Call) -> int:
    """Bytes of the parameters and buffers of a module that stays in float, 0 for other calls."""
    return size.float_bytes(network.callables["module", step.target]) if step.kind == "module" else 0
