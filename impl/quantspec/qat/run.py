"""One call of a network in training: its values, the present grids, and what was observed."""

import math
from typing import Any

import torch

from quantspec.capture.acting import MARK
from quantspec.errors import CalibrationError
from quantspec.ir.float_graph import Act
from quantspec.ir.program import AdaptiveAvgPool, AvgPool, Bilinear, Call, MaxPool, Mean, Move, Relu, Step
from quantspec.ir.traverse import reads

from .grids import Grid
from .live import called

PASSING = Move | Relu | MaxPool | AvgPool | AdaptiveAvgPool | Mean | Bilinear


class Run:
    """One call of a network: its values by name, the present grids, and what was observed.

    ``in_codes``: whether activations are codes; else they are real values. ``observing``: whether ranges are to move.
    ``loose``: the values that something acted on in training mode, which lie between codes (QAT-ACTS).
    """

    def __init__(self, network: Any):
        self.network, self.options = network, network.options
        self.values: dict[str, Any] = {}
        self.seen: dict[str, tuple[float, float]] = {}
        self.loose: set[str] = set()
        self.training = network.training
        self.by_batches = network.training and not bool(network.statistics_frozen)
        self.ranges: list[list[float]] = network.ranges.tolist()
        ready = not any(math.isinf(end) for pair in self.ranges for end in pair)
        delayed = network.training and int(network.batches) < network.how.delay
        self.in_codes = ready and not delayed
        if not ready and not network.training:
            raise CalibrationError("the network has seen no values; train on a batch or pass calibration batches")
        self.observing = network.training and not bool(network.frozen) and not network.scale_names
        self.grids = network.grids() if self.in_codes else {}

    def grid(self, step: Step, field: str) -> Grid | None:
        """What the grid in a field of a step is now; None where activations are real values."""
        return self.grids[self.network.grid_places[step.name, field]] if self.in_codes else None

    def learned(self, step: Step, field: str) -> torch.Tensor | None:
        """The parameter that the scale of a grid is, where it is learned."""
        key = self.network.scale_names.get(self.network.grid_places[step.name, field])
        return None if key is None else torch.exp2(self.network.scales[key])

    def acting(self, step: Call | Move) -> Act | None:
        """What acts in the place of a step in training mode, where the modules that it belongs to are in it."""
        if not self.training:
            return None
        act: Act | None = self.network.graph.acts.get(step.args[1] if step.target == MARK else step.name)
        if act is None or not any(self.network.model.get_submodule(path).training for path in act.owners):
            return None
        return act

    def acted(self, act: Act, given: list[Any]) -> Any:
        """What an act gives for real values."""
        values = {str(number): value for number, value in enumerate(given)}
        for step in act.steps:
            values[step.name] = called(step, self.network.acting, values)
        return values[act.output]

    def is_loose(self, step: Step) -> bool:
        """Whether a step reads values between codes."""
        return bool(self.loose) and not self.loose.isdisjoint(reads(step))

    def note(self, step: Step) -> None:
        """Values that are only moved, clamped or pooled are between codes where they were."""
        if isinstance(step, PASSING) and self.is_loose(step):
            self.loose.add(step.name)

    def sees(self, name: str) -> bool:
        """Whether values of a step are to be observed."""
        return self.observing and name in self.network.places

    def observe(self, name: str, low: float, high: float) -> None:
        """Notes the ends of values at a place, which is reached once."""
        self.seen[name] = low, high


