"""How values lie in memory, as far as steps tell, whatever the shapes: as images, whose channels are axis 1, or as
rows, whose features are the last axis.
"""

from collections.abc import Collection
from typing import TypeAlias

from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    Bilinear,
    Concat,
    Conv,
    Linear,
    MaxPool,
    Mean,
    Move,
    Mul,
    Program,
    Relu,
    Step,
    Table,
)
from quantspec.ir.traverse import reads

from .lowering import ConvAdd, DynamicLinear, FlattenFloats, LinearSum, LoweredStep, QuantizeFlat, Turn, turns

WINDOWS = (Conv, ConvAdd, MaxPool, AvgPool, AdaptiveAvgPool, Bilinear)  # steps that take and give images
ALIKE = (Table, Relu, Add, Mul, Concat)  # steps whose values all lie alike
Wanted: TypeAlias = tuple[bool | None, bool | None]  # what a step reads, and what it makes; None where either will do


def wanted(step: LoweredStep | Step) -> Wanted:
    """Whether images or rows are read and made."""
    if isinstance(step, WINDOWS):
        return True, True
    if isinstance(step, (Linear, LinearSum)):
        return False, False
    if isinstance(step, Mean):
        return True, step.keepdim
    if isinstance(step, Turn):
        return not step.first, step.first
    if isinstance(step, Move):
        turned = turns(step)
        return (None, False) if turned is None else (not turned[0], turned[0])
    return None, False if isinstance(step, (QuantizeFlat, FlattenFloats, DynamicLinear)) else None


class Forms:
    """The forms of values that steps read and make, ``None`` where none of them tells; values that must lie alike are
    one for this.
    """

    def __init__(self) -> None:
        self.alike: dict[str, str] = {}
        self.known: dict[str, bool] = {}

    def whole(self, name: str) -> str:
        """The name by which those are known that must lie as this value does."""
        while (other := self.alike.get(name, name)) != name:
            name = other
        return name

    def of(self, name: str) -> bool | None:
        """Whether a value is images."""
        return self.known.get(self.whole(name))

    def fits(self, step: LoweredStep | Step) -> bool:
        """Whether the values that a step reads can lie as it wants them."""
        given = {self.of(name) for name in reads(step)} - {None}
        asked, _ = wanted(step)
        return given <= {asked} if asked is not None else not isinstance(step, ALIKE) or len(given) < 2

    def add(self, step: LoweredStep | Step) -> None:
        """The next step, which fits."""
        asked, made = wanted(step)
        if asked is not None:
            self.known |= dict.fromkeys((self.whole(name) for name in reads(step)), asked)
        if made is not None:
            self.known[step.name] = made
        if isinstance(step, ALIKE):
            for name in reads(step):
                form = self.of(name)
                self.alike[self.whole(name)] = step.name
                if form is not None:
                    self.known[step.name] = form


def run_starts(program: Program, names: Collection[str]) -> set[str]:
    """The steps of those names, which are compiled, that a run must begin with, as what they read cannot lie as they
    want it: between two runs values are put in the order of their axes.
    """
    starts, forms = set(), Forms()
    for step in program.steps:
        if step.name not in names:
            forms = Forms()
            continue
        if not forms.fits(step):
            starts.add(step.name)
            forms = Forms()
        forms.add(step)
    return starts
