"""The compiled engine: parts of a program that its kernels know run in one call each, everything else as the
reference engine does.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeAlias, TypeGuard, TypeVar, cast

import numpy as np
import torch
from torch import nn

from quantspec.engines import torch_matmul
from quantspec.engines.not_numbers import Values, warn
from quantspec.engines.reference import run_step
from quantspec.engines.tensors import address, float_address, maker
from quantspec.errors import UnsupportedError
from quantspec.ir.float_run import bind
from quantspec.ir.program import (
    Call,
    Conv,
    Dequantize,
    Embedding,
    Linear,
    LinearDynamic,
    LinearWeight,
    Program,
    Recurrent,
    Ref,
    Step,
)
from quantspec.ir.traverse import is_direct, last_reads, reads, refs, replace_refs
from quantspec.kernels.frame import caller
from quantspec.kernels.threads import pool
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import dialect

from . import DIALECT
from .batching import SHAPES_KEPT
from .embedding import CompiledEmbedding
from .forms import run_starts
from .heads import CompiledAttention, with_what_rearranges
from .holding import Copying, Holding
from .lowering import SelectedStep, flattens, is_sum, readers, turns
from .normalization import LayerNorm, layer_norm
from .packing import PackedLayer
from .recurrent import CompiledRecurrent
from .segment import Segment
from .selection import compilable, is_known

Made = TypeVar("Made")
Arguments = ParamSpec("Arguments")
Alone: TypeAlias = CompiledRecurrent | CompiledEmbedding | CompiledAttention  # a step by itself
Part: TypeAlias = Segment | Alone | LayerNorm | Step


def parts_of(program: Program, choices: Dialect, weights: Copying) -> list[Part]:
    """The program's steps in order: runs of steps that compile as ``Segment``, recurrent layers, others as they are."""
    packed: dict[str, PackedLayer] = {}
    refused = set()
    for step in program.steps:
        if isinstance(step, (Linear, Conv, LinearDynamic, LinearWeight)) and is_known(step):
            layer = unless_refused(weights.pack, step)
            if layer is None:
                refused.add(step.name)
            else:
                packed[step.name] = layer
    names = compilable(program, refused)
    starts = run_starts(program, names)
    following = zip(program.steps, program.steps[1:])
    starts |= {step.name for before, step in following if is_sum(before) and before.name in names}
    lying = read_as_they_lie(program)
    parts: list[Part] = []
    runs = itertools.accumulate(step.name in starts for step in program.steps)
    keys = {step.name: (run, step.name in names) for step, run in zip(program.steps, runs)}
    for (_, compiles), group in itertools.groupby(program.steps, lambda step: keys[step.name]):
        steps = tuple(group)
        own = {step.name for step in steps}
        read_elsewhere = (name for other in program.steps if other.name not in own for name in reads(other))
        wanted = {*refs(program.output), *read_elsewhere}
        # Floats made of codes lie where outputs do, whoever reads them.
        floats = {step.name for step in steps if isinstance(step, Dequantize) or is_direct(step)}
        if is_sum(steps[-1]) and compiles:
            floats = floats - {*reads(steps[-1])} | {steps[-1].name}
        outputs = tuple(step.name for step in steps if step.name in wanted | floats)
        views = any(isinstance(step, Call) and flattens(step) for step in steps if step.name in outputs)
        if compiles and outputs and not views:
            segment = Segment(cast(tuple[SelectedStep, ...], steps), outputs, packed)  # as ``compilable`` says
            segment.lying = segment.images & lying
            parts.append(segment)
        else:
            parts += (by_itself(step, choices, weights) for step in steps)
    parts = with_what_rearranges(with_outputs_taken(parts, program), program, choices)
    return [layer_norm(part, program.callables, choices) or part for part in parts]


def with_outputs_taken(parts: list[Part], program: Program) -> list[Part]:
    """The parts, in which recurrent layers of whose tuple only the outputs are read give nothing else."""
    of, result = readers(program.steps), list(parts)
    for part in parts:
        if isinstance(part, CompiledRecurrent) and not part.step.single and part.name not in refs(program.output):
            reading = of.get(part.name, [])
            if len(reading) == 1 and is_first_of(reading[0]) and reading[0] in result:
                part.take_outputs(reading[0].name)
                result.remove(reading[0])
    return result


def is_first_of(step: object) -> TypeGuard[Call]:
    """Whether a step takes the first part of a tuple."""
    return isinstance(step, Call) and step.target == "operator.getitem" and step.args[1:] == (0,)


def read_as_they_lie(program: Program) -> set[str]:
    """The values that nothing reads but normalizations over channels that are put last, for which it makes no
    difference in which order the values of an input lie in memory.
    """
    of, given = readers(program.steps), refs(program.output)

    def normalizes(step: object) -> bool:
        return isinstance(step, Call) and (
            type(program.callables.get((step.kind, step.target))) is nn.LayerNorm if step.kind == "module"
            else step.target == "torch.nn.functional.layer_norm"
        )  # fmt: skip

    def puts_last(step: object) -> bool:
        if not isinstance(step, Call) or step.name in given:
            return False
        turned = turns(step)
        return turned is not None and not turned[0] and all(map(normalizes, of.get(step.name, ())))

    return {name for name, steps in of.items() if name not in given and all(map(puts_last, steps))}


def read_by(part: Part) -> Sequence[str]:
    """The names of the values that a part reads."""
    if isinstance(part, (Segment, CompiledAttention)):
        return part.inputs
    return reads(part.step if isinstance(part, Alone | LayerNorm) else part)


def made_by(part: Part) -> Sequence[str]:
    """The names of the values that a part makes."""
    return part.outputs if isinstance(part, Segment) else (part.name,)


def by_itself(step: Step, choices: Dialect, weights: Copying) -> Part:
    """A recurrent layer or an embedding compiled; what does not compile, or is none, as it is."""
    if isinstance(step, Embedding):
        return unless_refused(CompiledEmbedding, step) or step
    if not isinstance(step, Recurrent):
        return step
    return unless_refused(CompiledRecurrent, step, choices, weights) or step


def unless_refused(pack: Callable[Arguments, Made], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Made | None:
    """What ``pack`` makes of its arguments; None where accumulators could overflow, or scales multiply to no float32:
    the reference refuses the step when it is run.
    """
    try:
        return pack(*args, **kwargs)
    except (ValueError, UnsupportedError):
        return None


class Compiled:
    """A Program ready to run: ``engine(program)(batch)``, or, where ``input_name`` is not None, ``.single(tensor)``
    with the only input.

    ``measure``: steps without kernels may be run as the torch engine runs them, where that takes less time than what
    the reference does. ``weights``: ``copied``, or, of a program that nobody else has, ``held`` as they are packed, so
    that its codes are unpacked when they are read; ``taken`` where nobody has the arrays of its codes either.
    UnsupportedError for a dialect that it does not compute in.
    """

    name = "compiled"

    def __init__(self, program: Program, measure: bool = False, weights: str = "copied") -> None:
        if program.dialect != DIALECT:
            expected = f"the compiled engine computes in {DIALECT!r} only"
            raise UnsupportedError(f"dialect: {expected}, got {program.dialect!r}")
        self.program, self.dialect, self.measure = program, dialect(program.dialect), measure
        holding = Copying() if weights == "copied" else Holding(program, take=weights == "taken")
        self.parts = parts_of(program, self.dialect, holding)
        holding.put_together()
        self.last = last_reads(self.parts, refs(program.output), read_by, made_by)
        whole = self.parts[0] if len(self.parts) == 1 else None
        if isinstance(whole, (Segment, CompiledEmbedding)):
            whole.alone = True
        if measure and torch_matmul.runs(self.dialect):
            self.dialect = torch_matmul.by_torch(self.dialect, program, measure=True)
        self.run, self.local = caller(), threading.local()
        # With one input, floats or indices, and one output, floats, both in the order of their axes; bags may have no
        # others where they are rows of indices.
        self.whole: Segment | CompiledEmbedding | None = None
        self.input_name: str | None = None
        self.input_type = torch.int64 if isinstance(whole, CompiledEmbedding) else torch.float32
        given = [name for name in program.inputs if name not in program.defaults]
        others = {} if isinstance(whole, CompiledEmbedding) else program.defaults
        if isinstance(whole, (Segment, CompiledEmbedding)) and given == list(program.inputs[:1]) and not others:
            one = len(made_by(whole)) == 1 and isinstance(program.output, Ref)
            if one and not (whole.has_codes or whole.images):
                self.whole, self.input_name = whole, program.inputs[0]

    def __reduce__(self) -> tuple[type["Compiled"], tuple[Program, bool]]:
        # Machine code and the memory it works in belong to the process.
        return Compiled, (self.program, self.measure)

    def rest(self) -> Program:
        """The program's steps that have no kernels."""
        named = (part.step if isinstance(part, LayerNorm) else part for part in self.parts)
        steps = tuple(step for step in named if not isinstance(step, Segment | Alone))
        return replace(self.program, steps=steps)

    @property
    def engines(self) -> dict[str, str]:
        """By which engine each layer is run, by the name of its step."""
        layers = {step.name: "compiled" for step in self.program.layers}
        in_reference = {part.name: "reference" for part in self.parts if isinstance(part, Recurrent)}
        return layers | torch_matmul.layer_engines(self.rest(), self.dialect) | in_reference

    @property
    def inside(self) -> frozenset[str]:
        """The names of the steps that are compiled; all others are run as the reference engine runs them."""
        names = (step.name for part in self.parts if isinstance(part, Segment) for step in part.steps)
        alone = {part.step.name for part in self.parts if isinstance(part, Alone)}
        return frozenset(names) | alone

    def __call__(self, batch: dict[str, Any]) -> Any:
        """The output for a batch. Raises as the reference engine does."""
        if len(batch) == 1 and self.input_name is not None and self.input_name in batch:
            return self.single(batch[self.input_name])
        return self.general(batch)

    def general(self, batch: Any) -> Any:
        """The output for any batch of any program."""
        values = Values(bind(self.program.inputs, self.program.defaults, batch))
        with torch.no_grad():
            for part, done in zip(self.parts, self.last):
                if isinstance(part, Segment):
                    self.run_segment(part, values)
                elif isinstance(part, CompiledRecurrent):
                    values[part.name] = part(values[part.step.x], replace_refs(part.step.state, values.__getitem__))
                elif isinstance(part, (CompiledEmbedding, CompiledAttention, LayerNorm)):
                    values[part.name] = part(values)
                else:
                    values[part.name] = run_step(part, values, self.program.callables, self.dialect)
                # The next value then lies where an earlier one did, which is in the cache still.
                for name in done:
                    del values[name]
        return replace_refs(self.program.output, values.__getitem__)

    def run_segment(self, segment: Segment, values: Values) -> None:
        """Adds the segment's outputs to the values."""
        outputs: Sequence[torch.Tensor | np.ndarray] | None
        if segment.sum is not None and not segment.adds(values):
            self.run_sum(segment, values)
            return
        try:
            given = segment.given(values)
            spoilt = values.masks and any(name in values.masks for name in segment.inputs)
            outputs = None if spoilt else segment(given)
            if outputs is None and segment.masks:
                outputs = run_beside_nan(segment, given, values)
        except UnsupportedError:
            outputs = None
        if outputs is None and segment.sum is not None:
            self.run_sum(segment, values)
            return
        if outputs is None:
            # What the kernels do not take, and the reference may refuse in its own words: other shapes, ranges that
            # make no grid, NaN where a range is measured.
            inner = values.copy()
            for step in segment.steps:
                if step.name in segment.apart:
                    self.run_segment(segment.apart[step.name], inner)
                else:
                    inner[step.name] = run_step(step, inner, self.program.callables, self.dialect)
            outputs = [inner[name] for name in segment.outputs]
        elif segment.has_codes:
            outputs = [array_of_codes(output) for output in outputs]
        values |= zip(segment.outputs, outputs)

    def run_sum(self, segment: Segment, values: Values) -> None:
        """The same, the sum by itself."""
        assert segment.sum is not None
        self.run_segment(segment.summands, values)
        segment.broadcasts |= len({getattr(values[name], "shape", None) for name in reads(segment.sum)}) > 1
        values[segment.sum.name] = run_step(segment.sum, values, self.program.callables, self.dialect)
        for name in segment.summands.outputs:
            if name not in segment.outputs:
                del values[name]

    def single(self, x: torch.Tensor) -> torch.Tensor:
        """The output of a program with one input and one output, all of it compiled."""
        by_shape: dict[Any, Any] = self.local.__dict__
        start = float_address(x, self.input_type)
        if not start and type(x) is torch.Tensor and x.layout is torch.strided and x.ndim <= 2 and not x.is_nested:
            x = x.contiguous()  # a column, say of indices; of more axes a result may lie as its input does
            start = float_address(x, self.input_type)
        if start:
            ready = by_shape.get(x.shape)
            if ready is not None:
                frame, make, threads, generation, _ = ready
                if threads == 0 or threads == torch.get_num_threads() and generation == pool.generation:
                    y: torch.Tensor = make()
                    if self.run(frame, start, address(y)) == 0:
                        return y
        assert self.whole is not None
        result: torch.Tensor = self.general({self.input_name: x})
        batched = self.whole.batched.get((tuple(x.shape),))
        if batched is not None and batched.direct:
            if len(by_shape) >= SHAPES_KEPT:
                by_shape.clear()
            threads = batched.threads if batched.threaded else 0
            # The last one owns the memory.
            by_shape[x.shape] = batched.start, maker(batched.shapes[0]), threads, pool.generation, batched
        return result


def run_beside_nan(segment: Segment, given: list[torch.Tensor], values: Values) -> list[torch.Tensor]:
    """A segment's outputs where NaN is among its inputs (STA-NAN)."""
    numbers = [x.where(x == x, 0) for x in given]  # NaN is no other value than itself
    outputs = segment(numbers)
    assert outputs is not None, "of steps that are known to pass NaN on kernels refuse nothing else"
    if any(x.isnan().any() for x in given):
        warn()
    masks = values.spread_in(segment.steps, segment.outputs)
    return [values.masked(name, y, masks[name]) for name, y in zip(segment.outputs, outputs)]


def array_of_codes(x: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Codes as an array, floats as they are."""
    return x.numpy() if isinstance(x, torch.Tensor) and x.dtype == torch.uint8 else x
