"""Steps of attention, each with the steps around it that only say where in memory heads lie: those are run once for
each shape, after which addresses are all that is needed.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from quantspec.engines.not_numbers import Values
from quantspec.engines.reference import run_step
from quantspec.engines.tensors import address, ahead, array, by_place, float_address, from_array, rows_address, strided
from quantspec.ir import attention, rearrange
from quantspec.ir.program import Attention, Call, Callables, Program, Step
from quantspec.ir.traverse import reads, refs, replace_refs
from quantspec.numerics.attention import factor_of
from quantspec.numerics.dialects.dialect import Dialect

from .attention import Bound, Lying
from .batching import SHAPES_KEPT, kept

HERE = threading.local()  # what is bound, for this thread: the layers of a network have values that lie alike
BOUND_KEPT = 64


class Known(NamedTuple):
    """For inputs of certain shapes: what is bound to them; for each value of attention which input it lies in, and how
    many bytes behind its start; what makes a tensor for the output."""

    bound: Bound
    places: list[tuple[int, int]]
    make: Callable[[], torch.Tensor]


class CompiledAttention:
    """A ``step`` of attention, those ``before`` it that make its values of others by rearranging, and those ``behind``
    it that rearrange what it gives. ``__call__(values)`` gives what the last one does in the reference."""

    def __init__(
        self, before: Sequence[Step], step: Attention, behind: Sequence[Step], callables: Callables, choices: Dialect
    ):
        self.before, self.step, self.behind, self.callables, self.choices = before, step, behind, callables, choices
        self.steps = (*before, step, *behind)
        self.name, own = self.steps[-1].name, {each.name for each in self.steps}
        self.inputs = tuple(dict.fromkeys(name for each in self.steps for name in reads(each) if name not in own))
        self.local = threading.local()

    def __call__(self, values: Values) -> Any:
        given = [values[name] for name in self.inputs]
        forms = tuple(map(form, given))
        ready: Known | None = self.known.get(forms)
        if ready is not None and ready.bound.threads == torch.get_num_threads() and not ready.bound.stale:
            # Most are in one piece, which is asked in less time.
            starts = [float_address(x) or rows_address(x) for x in given]
            if all(starts[number] for number, _ in ready.places):
                result = ready.make()
                if ready.bound.run([starts[number] + apart for number, apart in ready.places], address(result)):
                    return result
        return self.general(values, given, forms)

    @property
    def known(self) -> dict[Any, Known]:
        """What this thread knows, by the forms of inputs."""
        existing: dict[Any, Known] = self.local.__dict__.setdefault("known", {})
        return existing

    def general(self, values: Values, given: list[Any], forms: tuple[Any, ...]) -> Any:
        """The output of any values, step by step."""
        inner = values.copy()
        for each in self.before:
            inner[each.name] = run_step(each, inner, self.callables, self.choices)
        args, kwargs = (replace_refs(tree, inner.__getitem__) for tree in (self.step.args, self.step.kwargs))
        heads, result = attention.heads(self.step, args, kwargs), None
        if heads is not None:
            result = self.in_codes(heads)
        if heads is None or result is None:
            inner[self.step.name] = run_step(self.step, inner, self.callables, self.choices)
        else:
            inner[self.step.name] = heads.joined(result[0])
        for each in self.behind:
            inner[each.name] = run_step(each, inner, self.callables, self.choices)
        output = inner[self.name]
        if result is not None and heads is not None and UNKNOWN not in forms and is_all(output, result[0]):
            places = [inside(x, given) for x in heads[:4] if x is not None]
            if all(place is not None for place in places):
                if len(self.known) >= SHAPES_KEPT:
                    self.known.clear()
                sure = [place for place in places if place is not None]
                self.known[forms] = Known(result[1], sure, strided(output.shape, output.stride()))
        return output

    def in_codes(self, heads: attention.Heads) -> tuple[torch.Tensor, Bound] | None:
        """The outputs of heads, and what is bound to how they lie; None for values without codes."""
        if (factor := factor_of(heads.scale)) is None:
            return None
        given = [x for x in heads[:4] if x is not None]
        starts = list(map(rows_address, given))
        if not all(starts):
            given = [from_array(array(x, self.step.name)) for x in given]
            starts = list(map(address, given))
        existing: dict[Any, Bound] = HERE.__dict__.setdefault("bound", {})
        lying = tuple(map(Lying.of, given))
        key = lying, factor, heads.causal
        bound = kept(existing, key, lambda threads: Bound(*key, threads), BOUND_KEPT)
        result = by_place(bound.shape)
        return (result, bound) if bound.run(starts, address(result)) else None


UNKNOWN = "unknown"


def form(x: Any) -> Any:
    """What says how a tensor lies in memory; of others, what they are, or ``UNKNOWN``."""
    if type(x) is torch.Tensor:
        return x.shape, x.stride(), x.dtype
    return (type(x), x) if x is None or type(x) in (int, bool, torch.Size) else UNKNOWN


def is_all(output: Any, result: torch.Tensor) -> bool:
    """Whether an output is all of a result's memory, each value once."""
    return (
        type(output) is torch.Tensor and output.dtype is torch.float32 and output.numel() == result.numel()
        and ahead(output, result) == 0 and bool(torch.ops.aten.is_non_overlapping_and_dense(output))
    )  # fmt: skip


def inside(x: torch.Tensor, given: list[Any]) -> tuple[int, int] | None:
    """Which of the inputs a tensor is a part of, and how many bytes behind its start; None where that is not clear, or
    kernels read a copy of it."""
    if not rows_address(x):
        return None
    places = [(number, distance) for number, each in enumerate(given) if (distance := ahead(x, each)) is not None]
    itself = [(number, 0) for number, each in enumerate(given) if each is x]
    found = itself or places
    return found[0] if len(found) == 1 else None


def with_what_rearranges(parts: Sequence[Any], program: Program, choices: Dialect) -> list[Any]:
    """The parts of a program in which steps of attention have what rearranges around them."""
    readers: dict[str, set[str]] = {}
    for step in program.steps:
        for name in reads(step):
            readers.setdefault(name, set()).add(step.name)
    outputs, result = set(refs(program.output)), list(parts)

    def alone(part: Any, own: set[str]) -> bool:
        """Whether a part rearranges, and nobody but these reads what it gives."""
        moves = isinstance(part, Call) and rearrange.known(part.kind, part.target) and part.name not in outputs
        return moves and readers.get(part.name, set()) <= own

    for step in [part for part in parts if isinstance(part, Attention)]:
        first = last = result.index(step)
        own = {step.name}
        while first > 0 and alone(result[first - 1], own):
            first -= 1
            own.add(result[first].name)
        while last + 1 < len(result) and follows(result[last + 1], result[last].name, readers, outputs):
            last += 1
        here = result.index(step)
        before, behind = result[first:here], result[here + 1 : last + 1]
        result[first : last + 1] = [CompiledAttention(before, step, behind, program.callables, choices)]
    return result


def follows(part: Any, name: str, readers: dict[str, set[str]], outputs: set[str]) -> bool:
    """Whether a part rearranges the value of that name, which nothing else reads."""
    moves = isinstance(part, Call) and rearrange.known(part.kind, part.target)
    return moves and name not in outputs and readers.get(name) == {part.name} and refs(part.args)[:1] == [name]
