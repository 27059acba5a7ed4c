"""What each part of a network became, as a table: ``print(q)``."""

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from quantspec.ir.program import (
    Add,
    Call,
    Concat,
    Conv,
    ConvReal,
    Embedding,
    Linear,
    LinearDynamic,
    LinearReal,
    LinearWeight,
    MaxPool,
    Mul,
    Quantize,
    Recurrent,
    Step,
)  # fmt: skip
from quantspec.ir.program import (
    Table as TableStep,
)
from quantspec.numerics.affine import QParams

from . import size

if TYPE_CHECKING:
    from .module import QuantizedModule


def span(values) -> str:
    """A number, or the smallest and largest of many."""
    if not values.size:
        return ""
    low, high = values.min(), values.max()
    return f"{low:.6g}" if low == high else f"{low:.6g} .. {high:.6g}"


def grid_cells(grid: QParams) -> tuple[str, str]:
    """Scale and zero point of a grid as text."""
    return span(grid.scale), span(grid.zero_point)


def became(step: Step) -> str:
    """What a layer became."""
    if isinstance(step, (Linear, LinearReal)):
        return "int8 linear"
    if isinstance(step, (Conv, ConvReal)):
        kernel = "x".join(map(str, step.weight.shape[2:]))
        kind = "transposed convolution" if any(d > 1 for d in step.input_dilation) else "convolution"
        depth = "depthwise " if step.groups > 1 and step.weight.shape[1] == 1 else ""
        return f"int8 {depth}{kind} {kernel}"
    if isinstance(step, LinearDynamic):
        return f"int8 linear, dynamic{', per token' if step.rows else ''}"
    if isinstance(step, LinearWeight):
        return "int8 weights, float32 linear"
    if isinstance(step, Embedding):
        return "int8 embedding"
    return f"int8 {step.kind.upper()}, dynamic" if isinstance(step, Recurrent) else ""


def row(step: Step) -> list[str] | None:
    """The cells for a step: layer, what it became, its weights' and its output's grid; None for steps that only rearrange."""
    if isinstance(step, Quantize):
        return [step.x, f"quantize to {step.qparams.qmin}..{step.qparams.qmax}", "", "", *grid_cells(step.qparams)]
    if isinstance(step, (Linear, Conv)):
        relu = " + relu" if step.relu else ""
        return [step.layer, became(step) + relu, *grid_cells(step.w_qparams), *grid_cells(step.y_qparams)]
    if isinstance(step, (LinearReal, ConvReal)):
        return [step.layer, became(step) + (" + relu" if step.relu else ""), *grid_cells(step.w_qparams), "float32", ""]
    if isinstance(step, (LinearDynamic, LinearWeight, Embedding)):
        return [step.layer, became(step), *grid_cells(step.w_qparams), "float32", ""]
    if isinstance(step, Recurrent):
        return [step.layer, became(step), "", "", "float32", ""]
    if isinstance(step, (Add, Mul, Concat, TableStep)):
        relu = " + relu" if isinstance(step, Add) and step.relu else ""
        what = step.function if isinstance(step, TableStep) else type(step).__name__.lower()
        return [step.name.removesuffix(".codes"), f"codes: {what}{relu}", "", "", *grid_cells(step.y_qparams)]
    if isinstance(step, MaxPool) or hasattr(step, "size") or hasattr(step, "keepdim"):
        return [step.name.removesuffix(".codes"), f"codes: {type(step).__name__}", "", "", "", ""]
    if isinstance(step, Call) and step.reason:
        return [step.target, f"float: {step.reason}", "", "", "", ""]
    return None


def layer_table(q: "QuantizedModule") -> str:
    """What each layer became: scales, zero points, bytes, and why the rest stayed in float; below that, which layers another engine runs."""
    table = Table(title=f"int8 network, dialect {q.program.dialect}, engine {q.engine}", title_justify="left")
    table.add_column("layer")
    table.add_column("became")
    for column in ("weight scale", "weight zero", "output scale", "output zero"):
        table.add_column(column, no_wrap=True)
    table.add_column("bytes", justify="right")
    for step in q.program.steps:
        if (cells := row(step)) is not None:
            nbytes = call_bytes(q, step) if isinstance(step, Call) else size.step_bytes(step)
            table.add_row(*cells, f"{nbytes:,}")
    table.add_section()
    table.add_row("all", "", "", "", "", "", f"{q.nbytes:,}")
    text = io.StringIO()
    console = Console(file=text, width=160)
    console.print(table)
    others: dict[str, list[str]] = {}
    for layer, engine in q.engines.items():
        if engine != q.engine:
            others.setdefault(engine, []).append(layer)
    for engine, layers in others.items():
        console.print(f"engine {engine}: {', '.join(layers)}", markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def call_bytes(q: "QuantizedModule", step: Call) -> int:
    """Bytes of the parameters and buffers of a module that stays in float, 0 for other calls."""
    return size.float_bytes(q.callables["module", step.target]) if step.kind == "module" else 0
