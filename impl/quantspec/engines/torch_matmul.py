"""The torch engine: the reference engine with torch's product of int8 matrices for the accumulators, in every dialect
that adds them exactly.

That product takes no deprecated type and no module of torch.ao. On x86 CPUs without instructions for dot products it
adds pairs of products in 16 bits, which saturate (DIA-ACCUMULATE, `pairs`); whether it does is tried, and there the
engine refuses to run.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

import numpy as np
import torch

from quantspec.errors import UnsupportedError
from quantspec.ir.held import codes_shape, held
from quantspec.ir.program import Conv, Embedding, Linear, LinearDynamic, LinearWeight, Program, Step
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.patches import rows, windows

from .autotune import Fastest
from .reference import Reference
from .tensors import CPU, new

Accumulate = Callable[[], np.ndarray]
MOST_INPUTS = 2**16  # of which products of two codes add up in 32 bits, whatever they are


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a layer or of one of its groups: codes, int8 [inputs, outputs], and their sums, int32 (outputs,)."""

    codes: torch.Tensor
    sums: torch.Tensor


def weights(w_q: np.ndarray) -> Weights:
    """From codes [outputs, inputs]."""
    codes = torch.from_numpy(np.ascontiguousarray(w_q))
    # With a transposed view of one input torch 2.13 gives what lies in memory: its strides, (1, 1), do not tell how
    # many outputs there are.
    return Weights(new(codes.shape[::-1], torch.int8).copy_(codes.T), codes.sum(1, dtype=torch.int32))


def product(x_q: np.ndarray, x_zero_point: int, w: Weights) -> np.ndarray:
    """Accumulators of codes [rows, inputs]."""
    # Unsigned codes less 128 are signed ones with the same bits but the first.
    signed, offset = (x_q, 0) if x_q.dtype == np.int8 else ((x_q ^ 128).view(np.int8), 128)
    total = torch._int_mm(torch.from_numpy(np.ascontiguousarray(signed)), w.codes)
    return total.add_((offset - x_zero_point) * w.sums).numpy()


class KnownWeights:
    """The weights, for each group, of the layers among ``steps`` whose products fit into 32 bits whatever the input,
    and that have a grid around zero; by the identity of their codes, which several layers may share that have other
    groups, made when they are first asked for."""

    def __init__(self, steps: Sequence[Step] = ()):
        layers = (step for step in steps if isinstance(step, Product) and fits_32_bits(step))
        # What another engine holds has no array of codes that would be the same in every call.
        self.layers = {id(held(step)): step for step in layers if isinstance(held(step), np.ndarray)}
        self.prepared: dict[tuple[int, int], list[Weights]] = {}

    def of(self, w_q: np.ndarray, groups: int = 1) -> list[Weights] | None:
        """The weights of a layer with so many groups; None for those that are not known."""
        key = id(w_q), groups
        if id(w_q) in self.layers and key not in self.prepared:
            self.prepared[key] = [weights(rows(part)) for part in np.split(w_q, groups)]
        return self.prepared.get(key)


Product = Linear | Conv | LinearDynamic


def fits_32_bits(step: Product) -> bool:
    """Whether a layer's products add up in 32 bits whatever the codes are, its weights' zero points being 0."""
    outputs, *others = codes_shape(step)
    return outputs > 0 and 0 < prod(others) <= MOST_INPUTS and not np.any(step.w_qparams.zero_point)


@dataclass(frozen=True)
class ByTorch(Dialect):
    """A dialect whose accumulators torch computes. ``known``: the weights of a program's layers; ``fits``: what is
    known not to overflow; ``fastest``: what decides for each layer and shape whether to do as the reference does, None
    for never."""

    known: KnownWeights = field(default_factory=KnownWeights, compare=False)
    fits: set[Hashable] = field(default_factory=set, compare=False)
    fastest: Fastest | None = field(default=None, compare=False)

    def fastest_of(self, w_q: np.ndarray, x_q: np.ndarray, torchs: Accumulate, references: Accumulate) -> np.ndarray:
        """The accumulators by torch or as the reference computes them, whichever takes less time."""
        if self.fastest is None:
            return torchs()
        return self.fastest.run((id(w_q), x_q.shape), {"torch": torchs, "reference": references})

    def check_overflow(self, x: QParams, w_q: np.ndarray, w: QParams, bias_q: np.ndarray) -> None:
        key = id(w_q), int(x.zero_point), x.qmin, x.qmax, bias_q.tobytes()
        if key not in self.fits:
            super().check_overflow(x, w_q, w, bias_q)
            if id(w_q) in self.known.layers:
                self.fits.add(key)

    def accumulate(self, x_q: np.ndarray, x_zero_point: Any, w_q: np.ndarray, w_zero_point: Any) -> np.ndarray:
        weights, as_reference = self.known.of(w_q), super().accumulate
        if weights is None or not x_q.size or x_q.ndim != 2 or x_q.shape[1] != w_q.shape[1]:
            return as_reference(x_q, x_zero_point, w_q, w_zero_point)
        return self.fastest_of(
            w_q, x_q, lambda: product(x_q, int(x_zero_point), weights[0]),
            lambda: as_reference(x_q, x_zero_point, w_q, w_zero_point),
        )  # fmt: skip

    def accumulate_conv(self, x_q: np.ndarray, x: QParams, w_q: np.ndarray, w: QParams, **places: Any) -> np.ndarray:
        weights, as_reference = self.known.of(w_q, places["groups"]), super().accumulate_conv
        if weights is None:
            return as_reference(x_q, x, w_q, w, **places)

        def products() -> np.ndarray:
            groups, point = places["groups"], int(x.zero_point)
            integer.check_channels(x_q, w_q, groups)
            spread = integer.spread(x_q, places["input_dilation"], places["padding"], point)
            patches, shape = windows(spread, w_q.shape[2:], places["stride"], places["dilation"], groups)
            if not patches.size:
                return as_reference(x_q, x, w_q, w, **places)
            sums = [product(part, point, group) for part, group in zip(patches, weights)]
            return np.concatenate(sums, axis=1).reshape(*shape, len(w_q))

        return self.fastest_of(w_q, x_q, products, lambda: as_reference(x_q, x, w_q, w, **places))


@functools.cache
def is_exact() -> bool:
    """Whether torch's product of int8 matrices adds exactly on this machine."""
    which = torch.randint(0, 2, (2, 64, 256), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([-128, 127], dtype=torch.int8, device=CPU)[which]
    return torch.equal(torch._int_mm(ends[0], ends[1].T).double(), ends[0].double() @ ends[1].double().T)


def runs(choices: Dialect) -> bool:
    """Whether the engine gives the accumulators of a dialect."""
    return choices.accumulate_rule == "exact" and is_exact()


def by_torch(choices: Dialect, program: Program, *, measure: bool) -> ByTorch:
    """The dialect with a program's accumulators by torch, everywhere or, with ``measure``, where that takes less time.
    """
    rules = {rule.name: getattr(choices, rule.name) for rule in fields(Dialect)}
    return ByTorch(**rules, known=KnownWeights(program.steps), fastest=Fastest() if measure else None)


class Torch(Reference):
    """A Program ready to run: ``engine(program)(batch)``.

    ``measure``: layers may be run as the reference runs them, where that takes less time. Raises UnsupportedError where
    the accumulators would not be those of the dialect.
    """

    name = "torch"

    def __init__(self, program: Program, *, measure: bool = False):
        super().__init__(program)
        if not runs(self.dialect):
            exact = self.dialect.accumulate_rule == "exact"
            why = "torch's product of int8 matrices saturates on this CPU" if exact else "its accumulators saturate"
            raise UnsupportedError(f"dialect: the torch engine cannot compute in {self.dialect.name!r}, as {why}")
        self.dialect = by_torch(self.dialect, program, measure=measure)

    @property
    def engines(self) -> dict[str, str]:
        """By which engine each layer is run, by the name of its step."""
        return layer_engines(self.program, self.dialect)


def about(place: int) -> Callable[[Hashable], bool]:
    """Whether a question that was timed is about the layer whose codes have that identity."""
    return lambda key: isinstance(key, tuple) and key[0] == place


def layer_engines(program: Program, choices: Dialect) -> dict[str, str]:
    """By which engine each layer is run in a dialect: several names where it depends on the shape of the input."""
    known = choices.known if isinstance(choices, ByTorch) else KnownWeights()
    fastest = choices.fastest if isinstance(choices, ByTorch) else None
    engines = {}
    for step in program.steps:
        if not isinstance(step, (Linear, Conv, LinearDynamic, LinearWeight, Embedding)):
            continue
        place = id(held(step))
        if place not in known.layers:
            engines[step.name] = "reference"
        elif fastest is None:
            engines[step.name] = "torch"
        else:
            engines[step.name] = " or ".join(fastest.names(about(place)) or ["torch or reference"])
    return engines
