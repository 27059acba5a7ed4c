"""A Program as an ordinary ``nn.Module``: what ``quantize`` and ``quantize_dynamic`` return."""

import copy
import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import nn

from . import footprint
from .affine import QParams
from .engines import engine as find_engine
from .program import Call, Linear, LinearDynamic, Program, Quantize


class QuantizedModule(nn.Module):
    """A quantized network. Calling it takes and gives what the float model took and gave.

    ``program`` is the network as plain data; ``callables`` has what its ``Call`` steps call. Training mode is refused.
    """

    def __init__(self, program: Program, callables: dict[tuple[str, str], Any], engine: str = "reference"):
        super().__init__()
        used = {(step.kind, step.target) for step in program.steps if isinstance(step, Call)}
        self.program = program
        # A copy of its own, so that networks made from one calibration share nothing that could be changed.
        self.callables = {key: copy.deepcopy(what) for key, what in callables.items() if key in used}
        # Registered, so that parameters() and state_dict() have what stays in float.
        self.float_parts = nn.ModuleDict(
            {key[1].replace(".", "_"): what for key, what in self.callables.items() if key[0] == "module"}
        )
        self.engine = engine
        self.compiled = find_engine(engine)(program, self.callables)
        super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output, float32. Inputs are float32 tensors as the model takes them; they are not written to."""
        return self.compiled({**dict(zip(self.program.inputs, args, strict=False)), **kwargs})

    def run_on(self, engine: str) -> "QuantizedModule":
        """The same network on another engine; ValueError when there is none of that name."""
        return QuantizedModule(self.program, self.callables, engine)

    def train(self, mode: bool = True) -> "QuantizedModule":
        """Only ``train(False)``: a ValueError otherwise, since int8 weights have no gradient."""
        if mode:
            raise ValueError("mode: a quantized network cannot be trained; train the float model and quantize it again")
        return self

    @property
    def nbytes(self) -> int:
        """Bytes that the network takes when stored: weights, biases, scales, zero points, and what stays in float."""
        return footprint.program_bytes(self.program, self.float_parts)

    def __repr__(self) -> str:
        return layer_table(self)


def span(values) -> str:
    """A number, or the smallest and largest of many."""
    low, high = values.min(), values.max()
    return f"{low:.6g}" if low == high else f"{low:.6g} .. {high:.6g}"


def grid_cells(grid: QParams) -> tuple[str, str]:
    """Scale and zero point of a grid as text."""
    return span(grid.scale), span(grid.zero_point)


def layer_table(q: QuantizedModule) -> str:
    """What each layer became: scales, zero points, bytes, and why the rest stayed in float."""
    program = q.program
    table = Table(title=f"int8 network, dialect {program.dialect}, engine {q.engine}", title_justify="left")
    table.add_column("layer")
    table.add_column("became")
    for column in ("weight scale", "weight zero", "output scale", "output zero"):
        table.add_column(column, no_wrap=True)
    table.add_column("bytes", justify="right")
    for step in program.steps:
        size = f"{footprint.step_bytes(step):,}"
        if isinstance(step, Quantize):
            table.add_row(step.x, f"quantize to {step.qparams.qmin}..{step.qparams.qmax}", "", "", *grid_cells(step.qparams), size)
        elif isinstance(step, Linear):
            became = "int8 linear + relu" if step.relu else "int8 linear"
            table.add_row(step.layer, became, *grid_cells(step.w_qparams), *grid_cells(step.y_qparams), size)
        elif isinstance(step, LinearDynamic):
            table.add_row(step.layer, "int8 linear, dynamic", *grid_cells(step.w_qparams), "float32", "", size)
        elif isinstance(step, Call):
            table.add_row(step.target, f"float: {step.reason}", "", "", "", "", f"{call_bytes(q, step):,}")
    table.add_section()
    table.add_row("all", "", "", "", "", "", f"{q.nbytes:,}")
    text = io.StringIO()
    Console(file=text, width=160).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def call_bytes(q: QuantizedModule, step: Call) -> int:
    """Bytes of the parameters and buffers of a module that stays in float, 0 for other calls."""
    return footprint.float_bytes(q.callables["module", step.target]) if step.kind == "module" else 0


def progress(items: Iterable, title: str) -> Iterator:
    """The items, with a progress bar on a terminal's stderr that disappears when done."""
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()) as bar:
        total = len(items) if hasattr(items, "__len__") else None
        yield from bar.track(items, total=total)
