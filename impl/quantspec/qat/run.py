"""One call of a network in training: its values, the present grids, and what was observed."""

from typing import Any

import torch

from quantspec.errors import CalibrationError
from quantspec.ir.program import Step

from .grids import Grid


class Run:
    """One call of a network: its values by name, the present grids, and what was observed.

    ``in_codes``: whether activations are codes; else they are real values. ``observing``: whether ranges are to move.
    """

    def __init__(self, network: Any):
        self.network, self.options = network, network.options
        self.values: dict[str, Any] = {}
        self.seen: dict[str, tuple[float, float]] = {}
        self.training = network.training
        self.by_batches = network.training and not bool(network.statistics_frozen)
        ready = network.has_ranges()
        delayed = network.training and int(network.batches) < network.how.delay
        self.in_codes = ready and not delayed
        if not ready and not network.training:
            raise CalibrationError("the network has seen no values; train on a batch, or pass calibration batches")
        self.observing = network.training and not bool(network.frozen) and not network.scale_names
        self.grids = network.grids() if self.in_codes else {}

    def grid(self, step: Step, field: str) -> Grid | None:
        """What the grid in a field of a step is now; None where activations are real values."""
        return self.grids[self.network.grid_places[step.name, field]] if self.in_codes else None

    def learned(self, step: Step, field: str) -> torch.Tensor | None:
        """The parameter that the scale of a grid is, where it is learned."""
        network, place = self.network, self.network.grid_places[step.name, field]
        key = network.scale_names.get(network.placement.joined.get(place, [place])[0])
        return None if key is None else torch.exp2(network.scales[key])

    def sees(self, name: str) -> bool:
        """Whether values of a step are to be observed."""
        return self.observing and name in self.network.places

    def observe(self, name: str, low: float, high: float) -> None:
        """Notes the ends of values at a place."""
        if name in self.seen:
            low, high = min(low, self.seen[name][0]), max(high, self.seen[name][1])
        self.seen[name] = low, high


