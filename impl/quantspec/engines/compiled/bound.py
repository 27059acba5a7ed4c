"""A segment bound to shapes: the batch cut into slices whose activations stay in the cache, shared out among threads; of few samples the instructions are."""

import os

import numpy as np
import torch

from .native import ADDRESSES, RELEASE, SLICES, STRIDES, THEN, X_FROM, Y_FROM, caller
from .plan import LONG, Plan, Planner
from .team import Team, pool, shares

SLICE_BYTES = 2**19  # inputs and activations of a slice: they share the second-level cache with weights
LARGE_WEIGHTS = 2**20  # bytes of weights that no longer do
REUSE = 256  # multiply-accumulates there should be for each byte of such weights that passes
THREAD_MACS = 40_000_000  # work that is worth waking another thread, which takes up to a tenth of a millisecond


class Bound:
    """Runs a segment on inputs of certain shapes, for one calling thread at a time, which owns the memory it works in.

    ``direct``: the address of the first of the frames that do it all for one input and one output, 0 where threads share it or there are more. ``threaded``: whether
    it depends on the threads there are. ``alone``: nobody else's threads are busy in between.
    """

    def __init__(self, planner: Planner, shapes: tuple[tuple[int, ...], ...], threads: int, alone: bool):
        self.threaded, self.threads, self.team = False, threads, None
        batch, teams = planner.batch(shapes), alone and os.name == "posix"
        if batch:
            # One sample tells the work of all.
            one = planner.plan({name: (1, *shape[1:]) for name, shape in zip(planner.inputs, shapes)}, dry=True)
            self.shapes = [(batch, *shape[1:]) for shape in one.shapes]
            macs = one.macs * batch
            wanted = max(1, min(threads, macs // THREAD_MACS))
            if wanted > batch and teams:
                self.team, self.tasks = Team(planner.plan(dict(zip(planner.inputs, shapes))), wanted), []
            else:
                most = slice_size(planner, one)
                self.tasks = [self.slices(planner, shapes, most, macs, *share) for share in shares(batch, min(wanted, batch))]
        else:
            plan = planner.plan(dict(zip(planner.inputs, shapes)))
            self.shapes, macs = plan.shapes, plan.macs
            wanted = min(threads, macs // THREAD_MACS) if teams else 1
            self.team = Team(plan, wanted) if wanted > 1 else None
            self.tasks = [] if self.team else [[(plan, (0,) * (len(shapes) + len(self.shapes)))]]
        self.threaded = macs >= 2 * THREAD_MACS
        self.types = [torch.uint8 if nbytes == 1 else torch.float32 for nbytes in planner.sizes()[len(shapes) :]]
        self.run = caller()
        self.direct = self.chained() if len(self.tasks) == len(shapes) == len(self.shapes) == 1 else 0

    def chained(self) -> int:
        """The address of the first frame, of which each leads to the next."""
        plans = [plan for plan, _ in self.tasks[0]]
        for plan, following in zip(plans, plans[1:]):
            plan.frame[THEN] = following.address
        for plan, offsets in self.tasks[0]:
            plan.frame[[X_FROM, Y_FROM]] = offsets
        return plans[0].address

    def slices(self, planner: Planner, shapes, most: int, macs: int, first: int, last: int) -> list[tuple[Plan, tuple[int, ...]]]:
        """Plans for samples from ``first`` to ``last``, at most ``most`` at a time, each with the bytes from the start of every input and output to its part."""
        count = last - first
        size = -(-count // -(-count // most))
        steps = [nbytes * int(np.prod(shape[1:])) for nbytes, shape in zip(planner.sizes(), (*shapes, *self.shapes))]
        result = []
        for start, samples, times in ((first, size, count // size), (first + count // size * size, count % size, 1)):
            if samples and times:
                plan = planner.plan({name: (samples, *shape[1:]) for name, shape in zip(planner.inputs, shapes)})
                plan.frame[SLICES] = times
                plan.frame[RELEASE] = macs >= LONG
                plan.frame[STRIDES : STRIDES + len(steps)] = [samples * step for step in steps]
                result.append((plan, tuple(start * step for step in steps)))
        return result

    def __call__(self, inputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The outputs for contiguous tensors, float32 or codes; None when the kernels refuse what is in one, such as NaN."""
        outputs = [torch.empty(shape, dtype=dtype) for shape, dtype in zip(self.shapes, self.types)]
        starts = [tensor.data_ptr() for tensor in (*inputs, *outputs)]
        if self.team:
            return None if self.team(starts) else outputs
        others = [pool(len(self.tasks) - 1).submit(self.work, task, starts) for task in self.tasks[1:]]
        nan = self.work(self.tasks[0], starts)
        for other in others:
            nan |= other.result()
        return None if nan else outputs

    def work(self, task: list[tuple[Plan, tuple[int, ...]]], starts: list[int]) -> int:
        nan = 0
        for plan, offsets in task:
            plan.frame[ADDRESSES : ADDRESSES + len(starts)] = [start + offset for start, offset in zip(starts, offsets)]
            nan |= self.run(plan.address, 0, 0)
        return nan


def slice_size(planner: Planner, one: Plan) -> int:
    """Samples of a slice, by the plan of one: as many as the cache holds, but enough for large weights to be worth their way from memory."""
    inputs = sum(4 * int(np.prod(shape)) for shape in (planner.shapes[name] for name in planner.inputs))
    size, weights = max(1, SLICE_BYTES // max(1, one.nbytes + inputs)), planner.weight_bytes
    return max(size, -(-REUSE * weights // max(1, one.macs))) if weights > LARGE_WEIGHTS else size
