"""What each part of a network became, as a table: ``print(q)``."""

import io

import numpy as np
from rich.console import Console
from rich.table import Table

from quantspec.ir import program
from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
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

COLUMNS = ("weight scale", "weight zero", "output scale", "output zero")


def span(values: np.ndarray) -> str:
    """A number, or the smallest and largest of many."""
    if not values.size:
        return ""
    low, high = values.min(), values.max()
    return f"{low:.6g}" if low == high else f"{low:.6g} .. {high:.6g}"


def grid_cells(grid: QParams) -> tuple[str, str]:
    """Scale and zero point of a grid as text."""
    return span(grid.scale), span(grid.zero_point)


def became(layer: Layer) -> str:
    """What a layer became."""
    if isinstance(layer, Linear):
        return "int8 linear"
    if isinstance(layer, Conv):
        kernel = "x".join(map(str, codes_shape(layer)[2:]))
        kind = "transposed convolution" if any(d > 1 for d in layer.input_dilation) else "convolution"
        depth = "depthwise " if layer.groups > 1 and codes_shape(layer)[1] == 1 else ""
        return f"int8 {depth}{kind} {kernel}"
    if isinstance(layer, LinearDynamic):
        return f"int8 linear, dynamic{', per token' if layer.rows else ''}"
    if isinstance(layer, LinearWeight):
        return "int8 weights, float32 linear"
    return "int8 embedding" if isinstance(layer, Embedding) else f"int8 {layer.kind.upper()}, dynamic"


def row(step: Step) -> list[str] | None:
    """The cells for a step: layer, what it became, its weights' and its output's grid; None for steps that only
    rearrange, and for what stays in float because there is nothing to quantize."""
    if isinstance(step, Quantize):
        grid = step.qparams
        return [step.x, f"quantize to {grid.qmin}..{grid.qmax}", "", "", *grid_cells(grid)]
    if isinstance(step, Recurrent):
        return [step.layer, became(step), "", "", "float32", ""]
    if isinstance(step, Layer):
        relu = " + relu" if isinstance(step, (Linear, Conv)) and step.relu else ""
        y = step.y_qparams if isinstance(step, (Linear, Conv)) else None
        output = ("float32", "") if y is None else grid_cells(y)
        return [step.layer, became(step) + relu, *grid_cells(step.w_qparams), *output]
    name = step.name.removesuffix(".codes")
    if isinstance(step, (Add, Mul, Concat, program.Table)):
        relu = " + relu" if isinstance(step, Add) and step.relu else ""
        what = step.function if isinstance(step, program.Table) else type(step).__name__.lower()
        return [name, f"codes: {what}{relu}", "", "", *grid_cells(step.y_qparams)]
    if isinstance(step, (MaxPool, AvgPool, AdaptiveAvgPool, Mean, Relu)):
        return [name, f"codes: {type(step).__name__}", "", "", "", ""]
    if isinstance(step, Call) and step.reason:
        return [step.target, f"float: {step.reason}", "", "", "", ""]
    return None


def layer_table(network: Program, engine: str, engines: dict[str, str], nbytes: int, resident: int) -> str:
    """What each layer became: scales, zero points, bytes, and why the rest stayed in float; below that, which layers
    another engine runs than ``engine`` (``engines``: by layer)."""
    table = Table(title=f"int8 network, dialect {network.dialect}, engine {engine}", title_justify="left")
    table.add_column("layer")
    table.add_column("became")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    table.add_column("bytes", justify="right")
    for step in network.steps:
        if (cells := row(step)) is not None:
            own = call_bytes(network, step) if isinstance(step, Call) else size.step_bytes(step)
            table.add_row(*cells, f"{own:,}")
    table.add_section()
    table.add_row("all", "", "", "", "", "", f"{nbytes:,}")
    table.add_row("in memory", "", "", "", "", "", f"{resident:,}")
    text = io.StringIO()
    console = Console(file=text, width=160)
    console.print(table)
    others: dict[str, list[str]] = {}
    for layer, other in engines.items():
        if other != engine:
            others.setdefault(other, []).append(layer)
    for other, layers in others.items():
        console.print(f"engine {other}: {', '.join(layers)}", markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def call_bytes(network: Program, step: Call) -> int:
    """Bytes of the parameters and buffers of a module that stays in float, 0 for other calls."""
    return size.float_bytes(network.callables["module", step.target]) if step.kind == "module" else 0
