"""Runs of steps that are known to the kernels, each in one call."""

import copy
import functools
import math
import threading
from typing import Any, cast

import torch

from quantspec.engines.not_numbers import MASKS
from quantspec.engines.tensors import address, array, float_address, from_array, new
from quantspec.errors import UnsupportedError
from quantspec.ir.program import Call, Conv
from quantspec.ir.traverse import is_direct, reads
from quantspec.kernels.copies import transpose_floats
from quantspec.kernels.emitter import LANES
from quantspec.numerics.affine import float32_array

from .batching import SHAPES_KEPT, Batched, Pieces, kept
from .instructions import EMITTERS, emit_margin
from .lowering import SelectedStep, is_sum, lower
from .packing import PackedLayer
from .planner import Planner
from .shapes import Shape

MANY = 2**16  # floats from which on a kernel puts them in order in less time than torch does


class Segment:
    """Steps that run in one call.

    ``imports``: the inputs that are codes; ``has_codes``: whether any input or output is; ``masks``: whether it is
    known of each step what becomes of NaN.
    """

    def __init__(self, steps: tuple[SelectedStep, ...], outputs: tuple[str, ...], packed: dict[str, PackedLayer]):
        own = {step.name for step in steps}
        self.steps, self.outputs = steps, outputs
        self.inputs = tuple(dict.fromkeys(name for step in steps for name in reads(step) if name not in own))
        lowered = lower(steps, self.inputs, outputs)
        # What is called otherwise outside is in codes.
        self.imports = frozenset(name for name in self.inputs if name not in lowered.inputs)
        self.has_codes = (self.inputs, self.outputs) != (lowered.inputs, lowered.outputs)
        self.planner = Planner(lowered, {name: packed[name] for name in own & packed.keys()}, EMITTERS, emit_margin)
        self.packed = packed
        self.masks = all(type(step) in MASKS for step in steps)
        self.images = frozenset(step.name for step in steps if isinstance(step, Conv) and is_direct(step))
        self.lying: frozenset[str] = frozenset()  # those that are given as they lie, channels behind positions
        self.local = threading.local()
        # A sum of floats is the last step; once its operands have had different shapes it is computed by itself.
        self.sum = steps[-1] if isinstance(steps[-1], Call) and is_sum(steps[-1]) else None
        self.broadcasts = False
        # Whether it is all of a program: between steps of torch's its threads look for work for a while, and workers of
        # one's own that wait for each other lose more by them than they win.
        self.alone = False

    def adds(self, values: dict[str, Any]) -> bool:
        """Whether the sum may be computed inside."""
        others = (values[name] for name in reads(self.sum) if name in self.inputs)
        return not self.broadcasts and all(isinstance(x, torch.Tensor) and x.dtype == torch.float32 for x in others)

    @functools.cached_property
    def summands(self) -> "Segment":
        """What comes before the sum."""
        made = tuple(name for name in self.outputs if name != self.steps[-1].name)
        return Segment(self.steps[:-1], (*made, self.steps[-2].name), self.packed)

    @functools.cached_property
    def apart(self) -> dict[str, "Segment"]:
        """Each step by itself, by its name, where there are several."""
        steps = self.steps if len(self.steps) > 1 else ()
        return {step.name: Segment((step,), (step.name,), self.packed) for step in steps if not isinstance(step, Call)}

    def given(self, values: dict[str, Any]) -> list[torch.Tensor]:
        """The inputs as contiguous tensors."""
        arrays = ((name, values[name]) for name in self.inputs)
        return [
            from_array(value) if name in self.imports else contiguous(value, name)
            for name, value in arrays
        ]

    @property
    def batched(self) -> dict[tuple[Shape, ...], Batched]:
        """What this thread has bound to shapes, by the inputs'."""
        existing: dict[tuple[Shape, ...], Batched] = self.local.__dict__.setdefault("batched", {})
        return existing

    def at(self, shapes: tuple[Shape, ...]) -> Batched:
        """The segment bound to inputs of these shapes, for this thread.

        UnsupportedError for shapes that kernels do not take.
        """
        refused: dict[tuple[Shape, ...], str] = self.local.__dict__.setdefault("refused", {})
        if shapes in refused:
            raise UnsupportedError(refused[shapes])
        # A planner holds the plan in the making, so that threads must not share one.
        try:
            return kept(self.batched, shapes, functools.partial(self.bound, shapes))
        except UnsupportedError as error:  # planned once: it takes longer than what a small network computes
            if len(refused) >= SHAPES_KEPT:
                refused.clear()
            refused[shapes] = str(error)
            raise

    def bound(self, shapes: tuple[Shape, ...], threads: int) -> Batched:
        """The same, made: of pieces that are used again once there were more shapes than are kept."""
        own, planner = self.local.__dict__, copy.copy(self.planner)
        own["made"] = own.get("made", 0) + 1
        if own["made"] <= SHAPES_KEPT:
            return Batched(planner, shapes, threads, self.alone)
        by_rows = planner.is_by_rows and bool(shapes[0][:-1]) and len({shape[:-1] for shape in shapes}) == 1
        pieces = own.setdefault("pieces", Pieces(again=True))
        return Batched(planner, shapes, threads, self.alone, pieces, by_rows=by_rows)

    def __call__(self, inputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The outputs; None when the inputs are not what the kernels compute with, such as NaN."""
        outputs = self.at(tuple(tuple(x.shape) for x in inputs))(inputs)
        if outputs is None or not self.images:
            return outputs
        return [
            channels_last(y) if name in self.lying else channels_first(y) if name in self.images else y
            for name, y in zip(self.outputs, outputs)
        ]


def channels_last(y: torch.Tensor) -> torch.Tensor:
    """What ``channels_first`` gives, but where it lies."""
    n, channels, *positions = y.shape
    return y.view(n, *positions, channels).movedim(-1, 1)


def channels_first(y: torch.Tensor) -> torch.Tensor:
    """Floats that lie position by position, though their shape is [n, channels, *positions], in the order that their
    shape tells.
    """
    n, channels, *positions = y.shape
    if channels < LANES or y.numel() < MANY:
        return y.view(n, *positions, channels).movedim(-1, 1).contiguous()
    result = new(y.shape)
    transpose_floats(address(y), address(result), planes=n, rows=math.prod(positions), columns=channels)
    return result


def contiguous(x: Any, name: str) -> torch.Tensor:
    """An input as a contiguous float32 tensor; TypeError naming it when it is none, or holds what float32 does not."""
    if float_address(x):  # what most are, asked in less time
        return cast(torch.Tensor, x)
    return from_array(float32_array(array(x, name), name))
