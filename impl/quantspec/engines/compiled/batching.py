"""A segment bound to shapes: the batch cut into slices whose activations stay in the cache, shared out among threads;
of few samples the instructions are.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from quantspec.engines.tensors import address, maker
from quantspec.kernels.frame import Frame, caller
from quantspec.kernels.sharing import Share
from quantspec.kernels.team import OpenMP, Team, openmp
from quantspec.kernels.threads import SHARED, pool

from .parallel import Parallel, shares
from .planner import LONG, Plan, Planner
from .shapes import Shape

SHAPES_KEPT = 16  # bound shapes that a thread keeps; each has memory of its own
PLANS_KEPT, SIXTEEN = 128, 16
SLICE_BYTES = 2**19  # inputs and activations of a slice: they share the second-level cache with weights
LARGE_WEIGHTS = 2**20  # bytes of weights that no longer do
REUSE = 256  # multiply-accumulates there should be for each byte of such weights that passes
THREAD_MACS = 2_000_000  # work that is worth giving to another thread, if it is awake; if it is not the caller does it
PARALLEL_MACS = 1_000_000  # the same where threads wait for each other
PATIENT_MACS = 20_000_000  # work from which on threads wait for one that sleeps, too
# Multiply-accumulates of a thread for each byte of large weights, up to which each should read only its part.
PARALLEL_REUSE = 64
TORCHS = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")


class Shared:
    """What is bound to shapes for so many ``threads``, with frames that may be shared out."""

    threads: int
    share: Share | Team | None

    @property
    def stale(self) -> bool:
        """Whether the workers are another process's."""
        return self.share is not None and self.share.generation != pool.generation


Shapes = TypeVar("Shapes", bound=Hashable)
OfShapes = TypeVar("OfShapes", bound=Shared)


def kept(
    existing: dict[Shapes, OfShapes], shapes: Shapes, make: Callable[[int], OfShapes], most: int = SHAPES_KEPT
) -> OfShapes:
    """What is bound to shapes, made anew where there is none for the threads that torch has now."""
    threads = torch.get_num_threads()
    if shapes not in existing or existing[shapes].threads != threads or existing[shapes].stale:
        if len(existing) >= most:
            existing.clear()
        existing[shapes] = make(threads)
    return existing[shapes]


class Pieces:
    """Plans of numbers of samples, each made once.

    ``again``: for other numbers, too, as a segment of one thread needs them that is given ever new ones. Planning takes
    longer than many networks do, so samples are then cut into pieces of few sizes: slices, a number of ``SIXTEEN``
    samples, and fewer.
    """

    def __init__(self, *, again: bool) -> None:
        self.again = again
        self.plans: dict[tuple[Hashable, ...], Plan] = {}
        self.sample: tuple[Shape, ...] = ()

    def of(self, sample: tuple[Shape, ...]) -> "Pieces":
        """Those for inputs whose samples have these shapes, which forget others."""
        if sample != self.sample:
            self.plans, self.sample = {}, sample
        return self

    def plan(self, planner: Planner, shapes: dict[str, Shape], *, member: int = 0, dry: bool = False) -> Plan:
        """The plan for these shapes, with a frame of its own."""
        key = (*shapes.values(), member, dry)
        if key not in self.plans:
            if len(self.plans) >= PLANS_KEPT:
                self.plans.clear()
            self.plans[key] = planner.plan(shapes, member=member, dry=dry)
        plan = self.plans[key]
        return replace(plan, frame=plan.frame.again())

    def cut(self, count: int, most: int) -> list[tuple[int, int]]:
        """So many samples as (samples, times), at most ``most`` of them at a time."""
        if not self.again:
            size = -(-count // -(-count // most))
            return [(size, count // size), (count % size, 1)]
        most = most // SIXTEEN * SIXTEEN or most
        rest = count % most
        return [(most, count // most), (rest // SIXTEEN * SIXTEEN, 1), (rest % SIXTEEN, 1)]


class Batched(Shared):
    """Runs a segment on inputs of certain shapes, for one calling thread at a time, which owns the memory it works in.

    ``start``: the address of the frame that has it all done; ``direct``: whether that takes one input and one output.
    ``threaded``: whether it depends on the threads there are. ``alone``: nobody else's threads are busy in between.
    ``pieces``: plans to use again, where numbers of samples vary; ``by_rows``: samples are rows, along the last axis.
    """

    def __init__(
        self, planner: Planner, shapes: tuple[Shape, ...], threads: int, alone: bool, pieces: Pieces | None = None,
        *, by_rows: bool = False,
    ):  # fmt: skip
        self.threads, self.share, planner.soon = threads, None, not alone
        self.parallel: Parallel | None = None
        lead = shapes[0][:-1]
        if by_rows:
            shapes = tuple((prod(lead), shape[-1]) for shape in shapes)
        # Those of these shapes alone are not kept: a plan without memory to run in has tables of its own.
        pieces = (pieces or Pieces(again=False)).of(tuple(shape[1:] for shape in shapes))
        team = torchs_threads()
        batch, together = planner.batch(shapes), SHARED and (alone or team is not None)
        if batch:
            # One sample tells the work of all.
            ones = {name: (1, *shape[1:]) for name, shape in zip(planner.inputs, shapes)}
            single = pieces.plan(planner, ones, dry=batch > 1)
            self.shapes, macs = [(batch, *shape[1:]) for shape in single.shapes], single.macs * batch
            wanted = wanted_threads(threads, macs, THREAD_MACS)
            few = planner.weight_bytes > LARGE_WEIGHTS and macs < PARALLEL_REUSE * threads * planner.weight_bytes
            members = wanted_threads(threads, macs, PARALLEL_MACS) if together and (wanted > batch or few) else 1
            if members > 1:
                whole = pieces.plan(planner, dict(zip(planner.inputs, shapes)))
                self.parallel = Parallel(whole, members)
            else:
                most = slice_size(planner, single, shapes)
                parts = shares(batch, min(wanted, batch))
                self.tasks = [
                    self.slices(planner, pieces, shapes, most, macs, member, *part)
                    for member, part in enumerate(parts)
                ]
        else:
            plan = planner.plan(dict(zip(planner.inputs, shapes)))
            self.shapes, macs = plan.shapes, plan.macs
            wanted = wanted_threads(threads, macs, PARALLEL_MACS) if together else 1
            self.parallel = Parallel(plan, wanted) if wanted > 1 else None
            self.tasks = [[(plan, (0,) * (len(shapes) + len(self.shapes)))]]
        if self.parallel:
            self.tasks = [[(self.parallel.plan, (0,) * (len(shapes) + len(self.shapes)))]]
        if by_rows:
            self.shapes = [(*lead, shape[-1]) for shape in self.shapes]
        self.threaded = macs >= 2 * min(THREAD_MACS, PARALLEL_MACS)
        types = (torch.uint8 if nbytes == 1 else torch.float32 for nbytes in planner.sizes()[len(shapes) :])
        self.makers = [maker(shape, dtype) for shape, dtype in zip(self.shapes, types)]
        self.run, self.direct = caller(), len(shapes) == len(self.shapes) == 1
        starts = [self.chained(task) for task in self.tasks]
        if alone and macs < PATIENT_MACS:
            team = None
        if self.parallel and team:
            self.share = self.parallel.team(team, threads, direct=self.direct)
        elif self.parallel:
            self.share = self.parallel.share(direct=self.direct, awake=macs < PATIENT_MACS)
        else:
            self.share = shared_out(starts, team, threads, direct=self.direct)
        self.start = self.share.address if self.share else starts[0]
        # Where each frame has the addresses of inputs and outputs, and how many bytes from the start of each they are.
        width = len(shapes) + len(self.shapes)
        self.moving = [(frame.addresses[:width], np.array(offsets, np.int64)) for frame, offsets in self.frames()]

    def chained(self, task: list[tuple[Plan, tuple[int, ...]]]) -> int:
        """The address of a task's first frame, of which each leads to the next."""
        plans = [plan for plan, _ in task]
        for plan, following in zip(plans, plans[1:]):
            plan.frame.then = following.address
        if self.direct:
            for plan, offsets in task:
                plan.frame.x_from, plan.frame.y_from = offsets
        return plans[0].address

    def slices(
        self, planner: Planner, pieces: Pieces, shapes: tuple[Shape, ...], most: int, macs: int, member: int,
        first: int, last: int,
    ) -> list[tuple[Plan, tuple[int, ...]]]:  # fmt: skip
        """Plans of a ``member`` for samples from ``first`` to ``last``, at most ``most`` at a time, each with the bytes
        from the start of every input and output to its part.
        """
        steps = [nbytes * int(np.prod(shape[1:])) for nbytes, shape in zip(planner.sizes(), (*shapes, *self.shapes))]
        result, start = [], first
        for samples, times in pieces.cut(last - first, most):
            if samples and times:
                those = {name: (samples, *shape[1:]) for name, shape in zip(planner.inputs, shapes)}
                plan = pieces.plan(planner, those, member=member)
                plan.frame.slices, plan.frame.release = times, macs >= LONG
                plan.frame.strides[: len(steps)] = [samples * step for step in steps]
                result.append((plan, tuple(start * step for step in steps)))
                start += samples * times
        return result

    def __call__(self, inputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The outputs for contiguous tensors, float32 or codes; None when the kernels refuse what is in one, such as
        NaN.
        """
        outputs = [make() for make in self.makers]
        starts = [address(tensor) for tensor in (*inputs, *outputs)]
        if self.direct:
            return None if self.run(self.start, *starts) else outputs
        for addresses, offsets in self.moving:
            np.add(starts, offsets, out=addresses)
        return None if self.run(self.start, 0, 0) else outputs

    def frames(self) -> list[tuple[Frame, tuple[int, ...]]]:
        """All frames that read inputs or write outputs, and how many bytes from the start of each."""
        plans = [(plan.frame, offsets) for task in self.tasks for plan, offsets in task]
        return plans + [(frame, plans[0][1]) for frame in (self.parallel.frames if self.parallel else ())]


def shared_out(starts: list[int], team: OpenMP | None, threads: int, *, direct: bool) -> Share | Team | None:
    """What shares frames out that know nothing of each other, to torch's threads where ``team`` is given; None where
    there is but one.
    """
    if len(starts) == 1:
        return None
    return Team(team, threads, starts, direct=direct) if team else Share(starts, direct=direct)


def torchs_threads() -> OpenMP | None:
    """The threads that torch computes with, which look for work between its steps; None where they cannot be called, or
    this process was forked from one that may have used them, as they are not there any more.
    """
    return openmp(TORCHS) if not pool.forked else None


def wanted_threads(threads: int, macs: int, least: int) -> int:
    """How many threads there should be for so much work, of which each has ``least``."""
    return max(1, min(threads, macs // least)) if SHARED else 1


def slice_size(planner: Planner, single: Plan, shapes: tuple[Shape, ...]) -> int:
    """Samples of a slice, by the plan of one and the shapes of inputs: as many as the cache holds, but enough for large
    weights to be worth their way from memory.
    """
    inputs = sum(4 * prod(shape[1:]) for shape in shapes)
    size, weights = max(1, SLICE_BYTES // max(1, single.nbytes + inputs)), planner.weight_bytes
    return max(size, -(-REUSE * weights // max(1, single.macs))) if weights > LARGE_WEIGHTS else size
