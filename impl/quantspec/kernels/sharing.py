"""Frames shared out among threads.

The frames shared out at a time are one caller's; another one runs all of his by himself.
"""

from collections.abc import Callable

import numpy as np

from .emitter import I64, Emitter, Value, function
from .frame import frame_of, run_frame, slot_addresses
from .jit import Kernel
from .memory import aligned
from .records import Address, Instruction, Integer
from .threads import pool, run_post, run_rouse, run_wait, spin_until


class ShareOut(Instruction):
    """``busy``: where it stands whether anybody shares out; ``table``: of ``others`` mailboxes and frames; ``own``:
    the frame to run meanwhile.

    ``everything``: a frame that does the work of all, or 0. ``direct``: whether there is one input and one output;
    ``apart``: whether frames may be run one after the other; ``awake``: whether the work is too little to wait for
    workers that sleep.
    """

    busy: Address
    table: Address
    others: Integer
    own: Address
    everything: Address
    direct: Integer
    apart: Integer
    awake: Integer


class Barrier(Instruction):
    """The address of a counter, which nobody sets back, what it is when all have come, and by how much that grows until
    the next time. ``looks``: how many there are before who waits offers his place to others.
    """

    counter: Address
    arrived: Integer
    step: Integer
    looks: Integer


def if_free(emit: Emitter, busy: Value, ours: Callable[[], Value], taken: Callable[[], Value]) -> Value:
    """``ours()`` (int64) where nobody shares out, and nobody else does meanwhile; otherwise ``taken()``."""
    flag, result = emit.at(busy, I64), emit.alloca(I64)
    free = emit.extract_value(emit.cmpxchg(flag, I64(0), I64(1), "seq_cst", "seq_cst"), 1)
    with emit.if_else(free) as (mine, others):
        with mine:
            emit.store(ours(), result)
            emit.store_atomic(I64(0), flag, "release", 8)
        with others:
            emit.store(taken(), result)
    return emit.load(result)


def run_here(emit: Emitter, everything: Value, x: Value, y: Value, each: Callable[[], Value]) -> Value:
    """The work of all frames by this thread: by the frame ``everything``, or by ``each()`` (int64) where that is 0."""
    total = emit.alloca(I64)
    with emit.if_else(emit.icmp_signed("!=", everything, I64(0))) as (shared, apart):
        with shared:
            emit.store(run_frame(emit, everything, x, y), total)
        with apart:
            emit.store(each(), total)
    return emit.load(total)


def write_share(emit: Emitter, op: Value, frame: Value) -> Value:
    """Shares frames out among workers and this thread, or runs all of them here where somebody else does so; 1 when
    an input holds NaN.
    """
    direct = emit.flag(op, ShareOut.direct)
    x, y = (emit.select(direct, address, I64(0)) for address in slot_addresses(emit, frame))
    busy, table, others, own = emit.fields(op, ShareOut.busy, ShareOut.table, ShareOut.others, ShareOut.own)
    everything, apart = emit.fields(op, ShareOut.everything, ShareOut.apart)
    post = function(emit.module, "quantspec_post", 4, run_post)
    wait = function(emit.module, "quantspec_wait", 2, run_wait)
    rouse = function(emit.module, "quantspec_rouse", 1, run_rouse)

    def pair(index: Value) -> tuple[Value, Value]:
        """A worker's mailbox and the frame for it."""
        return emit.item(table, emit.shl(index, I64(1))), emit.item(table, emit.add(emit.shl(index, I64(1)), I64(1)))

    def here() -> Value:
        """All frames by this thread."""

        def each() -> Value:
            mine = run_frame(emit, own, x, y)
            return emit.or_(mine, emit.any_of(others, lambda i: run_frame(emit, pair(i)[1], x, y)))

        return run_here(emit, everything, x, y, each)

    def together() -> Value:
        """Each frame by a thread of its own."""
        def give(index: Value) -> None:
            mailbox, theirs = pair(index)
            emit.call(post, [mailbox, theirs, x, y])

        emit.each(others, give)
        mine = run_frame(emit, own, x, y)
        return emit.or_(mine, emit.any_of(others, lambda i: emit.call(wait, [pair(i)[0], apart])))

    def unless_late() -> Value:
        """Together, or here where workers sleep that are not worth waiting for."""
        result = emit.alloca(I64)
        asked = emit.select(emit.flag(op, ShareOut.awake), others, I64(0))
        asleep = emit.any_of(asked, lambda i: emit.call(rouse, [pair(i)[0]]))
        with emit.if_else(emit.icmp_signed("==", asleep, I64(0))) as (ready, late):
            with ready:
                emit.store(together(), result)
            with late:
                emit.store(here(), result)
        return emit.load(result)

    return if_free(emit, busy, unless_late, here)


def write_barrier(emit: Emitter, op: Value, frame: Value) -> None:
    """Adds one to the counter and waits until all have come."""
    counter, arrived = emit.at(emit.field(op, Barrier.counter), I64), emit.field(op, Barrier.arrived)
    emit.atomic_rmw("add", counter, I64(1), "seq_cst")
    looks = emit.field(op, Barrier.looks)
    spin_until(emit, lambda: emit.icmp_signed(">=", emit.load_atomic(counter, "acquire", 8), arrived), looks)
    emit.put_field(op, Barrier.arrived, emit.add(arrived, emit.field(op, Barrier.step)))


SHARE_OUT = Kernel("share", ShareOut, write_share)
BARRIER = Kernel("barrier", Barrier, write_barrier)


class Share:
    """A frame that shares others out: ``frames``, the first of which this thread runs. It is run as they would be.

    ``everything``: the address of a frame that does the work of all of them, which then wait for each other; 0 when
    they know nothing of each other. ``direct``: whether they have one input and one output. ``awake``: whether workers
    that sleep are only roused, so that they are there the next time.
    """

    def __init__(self, frames: list[int], *, direct: bool, everything: int = 0, awake: bool = False):
        self.mailboxes, self.generation = pool.workers(len(frames) - 1), pool.generation
        self.table = aligned(2 * len(frames), np.int64)
        self.table[: 2 * len(frames) - 2] = [entry for pair in zip(self.mailboxes, frames[1:]) for entry in pair]
        self.busy = pool.busy
        self.frame = frame_of(SHARE_OUT.bound(ShareOut(
            busy=self.busy.ctypes.data, table=self.table.ctypes.data, others=len(frames) - 1, own=frames[0],
            everything=everything, direct=direct, apart=everything == 0, awake=awake,
        )))  # fmt: skip

    @property
    def address(self) -> int:
        return self.frame.address
