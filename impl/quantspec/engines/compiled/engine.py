"""The compiled engine: parts of a program that its kernels know run in one call each, everything else as the
reference engine does.
"""

import copy
import itertools
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from quantspec.engines import torch_matmul
from quantspec.engines.reference import array, in_a_row, run_step
from quantspec.errors import UnsupportedError
from quantspec.ir.float_run import bind
from quantspec.ir.program import Call, Conv, Dequantize, Linear, LinearDynamic, Program, Quantize, Recurrent, Ref
from quantspec.ir.traverse import is_direct, reads, refs, replace_refs
from quantspec.kernels.frame import caller
from quantspec.kernels.threads import pool
from quantspec.numerics.affine import float32_array
from quantspec.numerics.dialects.named import dialect

from . import DIALECT
from .batching import Bound
from .instructions import EMITTERS, emit_margin
from .packing import pack_layer
from .planner import Planner
from .recurrent import Recurring
from .shapes import Export, Import, compilable, flattens, fused, known

Packable = Linear | Conv | LinearDynamic
SHAPES_KEPT = 16  # bound shapes that a thread keeps; each has memory of its own


class Segment:
    """Steps that run in one call.

    Codes that come from outside or go there are ``imports`` and ``exports``, which have other names inside the
    planner.
    """

    def __init__(self, steps: tuple, outputs: tuple[str, ...], packed: dict[str, list]):
        made = {step.name for step in steps}
        self.steps, self.outputs = steps, outputs
        self.inputs = tuple(dict.fromkeys(name for step in steps for name in reads(step) if name not in made))
        floats = {step.name for step in steps if isinstance(step, (Dequantize, LinearDynamic, Call)) or is_direct(step)}
        read_as_floats = {name for step in steps if isinstance(step, (Quantize, LinearDynamic, Call)) for name in reads(step)}
        self.imports, exports = frozenset(self.inputs) - read_as_floats, frozenset(outputs) - floats
        self.has_codes = bool(self.imports or exports)
        inside = fused(steps, outputs)
        inside = (
            *(Import(name, outer(name)) for name in self.inputs if name in self.imports), *inside, *(Export(outer(name), name) for name in outputs if name in exports)
        )  # fmt: skip
        names = (tuple(outer(name) if name in group else name for name in side) for side, group in ((self.inputs, self.imports), (outputs, exports)))
        self.planner = Planner(inside, *names, {step.name: packed[step.name] for step in steps if step.name in packed}, EMITTERS, emit_margin)
        self.images = frozenset(step.name for step in steps if isinstance(step, Conv) and is_direct(step))
        self.local = threading.local()
        self.alone = False  # whether it is all of a program: threads that wait for each other lose more by torch's, which look for work for a while, than they win

    def given(self, values: dict[str, Any]) -> list[torch.Tensor]:
        """The inputs as contiguous tensors."""
        return [torch.from_numpy(np.ascontiguousarray(values[n])) if n in self.imports else contiguous(values[n], n) for n in self.inputs]

    @property
    def bounds(self) -> dict[tuple, Bound]:
        """This thread's bounds, by the inputs' shapes."""
        return self.local.__dict__.setdefault("bounds", {})

    def bound(self, shapes: tuple[tuple[int, ...], ...]) -> Bound:
        """The segment bound to inputs of these shapes, for this thread.

        UnsupportedError for shapes that the kernels do not take.
        """
        known, threads = self.bounds, torch.get_num_threads()
        if shapes not in known or known[shapes].threads != threads or known[shapes].stale:
            if len(known) >= SHAPES_KEPT:
                known.clear()
            # A planner holds the plan in the making, so that threads must not share one.
            known[shapes] = Bound(copy.copy(self.planner), shapes, threads, self.alone)
        return known[shapes]

    def __call__(self, inputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The outputs; None when the inputs are not what the kernels compute with, such as NaN."""
        outputs = self.bound(tuple(tuple(x.shape) for x in inputs))(inputs)
        if outputs is None or not self.images:
            return outputs
        return [channels_first(y) if name in self.images else y for name, y in zip(self.outputs, outputs)]


def channels_first(y: torch.Tensor) -> torch.Tensor:
    """Floats that lie position by position, though their shape is [n, channels, *positions], in the order that their
    shape tells.
    """
    n, channels, *positions = y.shape
    return y.view(n, *positions, channels).movedim(-1, 1).contiguous()


def outer(name: str) -> str:
    """What a planner calls codes outside."""
    return f"{name} outside"


def segments(program: Program) -> list:
    """The program's steps in order: runs of steps that compile as ``Segment``, others as they are."""
    packed = {step.name: packable(pack_layer, step) for step in program.steps if isinstance(step, Packable) and known(step)}
    names = compilable(program) - {name for name, what in packed.items() if what is None}
    parts: list = []
    for compiles, group in itertools.groupby(program.steps, lambda step: step.name in names):
        steps = tuple(group)
        made = {step.name for step in steps}
        wanted = set(refs(program.output)) | {name for other in program.steps if other.name not in made for name in reads(other)}
        outputs = tuple(step.name for step in steps if step.name in wanted)
        views = any(isinstance(step, Call) and flattens(step) for step in steps if step.name in outputs)
        parts += [Segment(steps, outputs, packed)] if compiles and outputs and not views else steps
    return parts


def packable(pack, step, *args):
    """What ``pack`` makes of a step; None where its accumulators could overflow, or its scales multiply to no
    float32: the reference refuses it when it is run.
    """
    try:
        return pack(step, *args)
    except (ValueError, UnsupportedError):
        return None


class Compiled:
    """A Program ready to run: ``engine(program)(batch)``, or, where ``input_name`` is not None, ``.single(tensor)``
    with the only input.

    ``measure``: steps without kernels may be run as the torch engine runs them, where that takes less time than what
    the reference does. UnsupportedError for a dialect that it does not compute in.
    """

    name = "compiled"

    def __init__(self, program: Program, measure: bool = False):
        if program.dialect != DIALECT:
            raise UnsupportedError(f"dialect: the compiled engine computes in {DIALECT!r} only, got {program.dialect!r}")
        self.program, self.dialect, self.measure = program, dialect(program.dialect), measure
        self.parts = [
            (isinstance(part, Recurrent) and packable(Recurring, part, self.dialect)) or part for part in segments(program)
        ]
        if len(self.parts) == 1 and isinstance(self.parts[0], Segment):
            self.parts[0].alone = True
        if measure and torch_matmul.runs(self.dialect):
            self.dialect = torch_matmul.by_torch(self.dialect, program, measure=True)
        self.run, self.local, self.input_name = caller(), threading.local(), None
        if len(program.inputs) == len(self.parts) == 1 and isinstance(self.parts[0], Segment) and not program.defaults:
            segment = self.parts[0]
            if len(segment.outputs) == 1 and isinstance(program.output, Ref) and not (segment.has_codes or segment.images):
                self.input_name = program.inputs[0]

    def __reduce__(self):
        # Machine code and the memory it works in belong to the process.
        return Compiled, (self.program, self.measure)

    def rest(self) -> Program:
        """The program's steps that have no kernels."""
        return replace(self.program, steps=tuple(part for part in self.parts if not isinstance(part, (Segment, Recurring))))

    @property
    def engines(self) -> dict[str, str]:
        """By which engine each layer is run, by the name of its step."""
        layers = {step.name: "compiled" for step in self.program.steps if hasattr(step, "weight") or isinstance(step, Recurrent)}
        return layers | torch_matmul.layer_engines(self.rest(), self.dialect) | {part.name: "reference" for part in self.parts if isinstance(part, Recurrent)}

    @property
    def inside(self) -> frozenset[str]:
        """The names of the steps that are compiled; all others are run as the reference engine runs them."""
        names = (step.name for part in self.parts if isinstance(part, Segment) for step in part.steps)
        return frozenset(names) | {part.name for part in self.parts if isinstance(part, Recurring)}

    def __call__(self, batch: dict[str, Any]) -> Any:
        """The output for a batch. Raises as the reference engine does."""
        if len(batch) == 1 and self.input_name in batch:
            return self.single(batch[self.input_name])
        return self.general(batch)

    def general(self, batch: Any) -> Any:
        """The output for any batch of any program."""
        values = bind(self.program.inputs, self.program.defaults, batch)
        with torch.no_grad():
            for part in self.parts:
                if isinstance(part, Segment):
                    self.run_segment(part, values)
                elif isinstance(part, Recurring):
                    values[part.name] = part(values[part.step.x], replace_refs(part.step.state, values.__getitem__))
                else:
                    values[part.name] = run_step(part, values, self.program.callables, self.dialect)
        return replace_refs(self.program.output, values.__getitem__)

    def run_segment(self, segment: Segment, values: dict[str, Any]) -> None:
        """Adds the segment's outputs to the values."""
        try:
            outputs = segment(segment.given(values))
        except UnsupportedError:
            outputs = None
        if outputs is None:
            # What the kernels do not take, and the reference may refuse in its own words: other shapes, NaN, ranges
            # that make no grid.
            inner = dict(values)
            for step in segment.steps:
                inner[step.name] = run_step(step, inner, self.program.callables, self.dialect)
            outputs = [inner[name] for name in segment.outputs]
        elif segment.has_codes:
            outputs = [output.numpy() if output.dtype == torch.uint8 else output for output in outputs]
        values |= zip(segment.outputs, outputs)

    def single(self, x: torch.Tensor) -> torch.Tensor:
        """The output of a program with one input and one output, all of it compiled."""
        if in_a_row(x):
            ready = self.local.__dict__.get(x.shape)
            if ready is not None:
                address, shape, threads, generation, _ = ready
                if threads == 0 or threads == torch.get_num_threads() and generation == pool.generation:
                    y = torch.empty(shape)
                    if self.run(address, x.data_ptr(), y.data_ptr()) == 0:
                        return y
        y = self.general({self.input_name: x})
        known, bound = self.local.__dict__, self.parts[0].bounds.get((tuple(x.shape),))
        if bound is not None and bound.direct:
            if len(known) >= SHAPES_KEPT:
                known.clear()
            known[x.shape] = bound.start, bound.shapes[0], bound.threads if bound.threaded else 0, pool.generation, bound  # which owns the memory
        return y


def contiguous(x: Any, name: str) -> torch.Tensor:
    """An input as a contiguous float32 tensor; TypeError naming it when it is none, or holds what float32 does not."""
    return torch.from_numpy(np.ascontiguousarray(float32_array(array(x, name))))
