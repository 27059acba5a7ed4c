"""Frames run by the threads of OpenMP that another library computes with.

Threads that have no work look for it for a while before they sleep. Between a library's steps its threads do so, and
workers of one's own would share the cores with them: what they run would take longer than on one thread. So what is
worth waiting for is run by those threads, which are there already.
"""

import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from functools import partial

import numpy as np
from llvmlite import ir

from .emitter import I32, I64, Emitter, Value, function
from .frame import frame_of, run_frame, slot_addresses
from .jit import Kernel
from .memory import aligned
from .records import LINE, Address, Instruction, Integer
from .sharing import if_free, run_here
from .threads import pool


@dataclass(frozen=True)
class OpenMP:
    """The addresses of three functions of an OpenMP: what runs a team, and what tells each of its threads which one it
    is, of how many.
    """

    run: int
    rank: int
    size: int


@functools.cache
def openmp(library: str) -> OpenMP | None:
    """The OpenMP that a loaded shared library uses; None where it uses none that can be called so."""
    if not sys.platform.startswith("linux") or not os.path.exists(library):
        return None
    try:
        loaded = ctypes.CDLL(library)
        functions = [getattr(loaded, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except (OSError, AttributeError):
        return None
    return OpenMP(*(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in functions))


class TeamWork(Instruction):
    """``busy``: where it stands whether anybody shares out. ``run``, ``rank``, ``size``: of the OpenMP. ``threads``:
    how many to ask for; ``members``: how many have a frame of ``table``, and in ``results``, a cache line each, what it
    gave. ``everything``: a frame that does the work of all, or 0. ``direct``: whether there is one input and one
    output, which are then ``x`` and ``y``.
    """

    busy: Address
    run: Address
    rank: Address
    size: Address
    threads: Integer
    members: Integer
    table: Address
    results: Address
    everything: Address
    direct: Integer
    x: Address = Address()
    y: Address = Address()


def result_of(emit: Emitter, op: Value, index: Value) -> Value:
    """Where a member's result goes."""
    return emit.add(emit.field(op, TeamWork.results), emit.mul(index, I64(8 * LINE)))


def write_member(emit: Emitter, op: Value) -> None:
    """What each thread of a team does: its frame; all of them where there are too few threads, which would wait for
    one that never comes.
    """
    asked = emit.fields(op, TeamWork.rank, TeamWork.size)
    rank, size = (emit.sext(emit.at_address(address, I32), I64) for address in asked)
    members, x, y = emit.fields(op, TeamWork.members, TeamWork.x, TeamWork.y)
    enough = emit.icmp_signed(">=", size, members)
    with emit.if_else(enough) as (together, alone):
        with together:
            with emit.if_then(emit.icmp_signed("<", rank, members)):
                theirs = emit.item(emit.field(op, TeamWork.table), rank)
                # An exchange also waits for what was written past the caches.
                place = emit.at(result_of(emit, op, rank), I64, writes=True)
                emit.atomic_rmw("xchg", place, run_frame(emit, theirs, x, y), "seq_cst")
        with alone:
            with emit.if_then(emit.icmp_signed("==", rank, I64(0))):
                emit.write(here(emit, op, x, y), result_of(emit, op, I64(0)))


def here(emit: Emitter, op: Value, x: Value, y: Value) -> Value:
    """All frames by one thread."""
    everything, table, members = emit.fields(op, TeamWork.everything, TeamWork.table, TeamWork.members)
    each = partial(emit.any_of, members, lambda i: run_frame(emit, emit.item(table, i), x, y))
    return run_here(emit, everything, x, y, each)


def write_team(emit: Emitter, op: Value, frame: Value) -> Value:
    """Has a team run the frames, or this thread all of them where another caller shares out; 1 when an input holds NaN.
    """
    direct = emit.flag(op, TeamWork.direct)
    x, y = (emit.select(direct, address, I64(0)) for address in slot_addresses(emit, frame))
    emit.put_field(op, TeamWork.x, x)
    emit.put_field(op, TeamWork.y, y)
    return if_free(emit, emit.field(op, TeamWork.busy), lambda: together(emit, op), lambda: here(emit, op, x, y))


def together(emit: Emitter, op: Value) -> Value:
    """Each frame by a thread of its own."""
    members, threads = emit.fields(op, TeamWork.members, TeamWork.threads)
    emit.each(members, lambda i: emit.write(I64(0), result_of(emit, op, i)))
    member = function(emit.module, "quantspec_member", 1, write_member)
    run, count = emit.field(op, TeamWork.run), emit.trunc(threads, I32)
    emit.at_address(run, ir.VoidType(), member, op, count, I32(0))
    return emit.any_of(members, lambda i: emit.read(result_of(emit, op, i), I64, 8))


TEAM = Kernel("team", TeamWork, write_team)


class Team:
    """A frame that has others run by a team of ``threads`` of an OpenMP, which is as large as the library's own teams,
    since other sizes have it start and end threads. It is run as ``frames`` would be, of which there are no more.

    ``everything``, ``direct``: as of ``sharing.Share``.
    """

    def __init__(self, own: OpenMP, threads: int, frames: list[int], *, direct: bool, everything: int = 0):
        self.generation, self.busy = pool.generation, pool.busy
        self.table, self.results = aligned(len(frames), np.int64), aligned(LINE * len(frames), np.int64)
        self.table[: len(frames)] = frames
        self.frame = frame_of(TEAM.bound(TeamWork(
            busy=self.busy.ctypes.data, run=own.run, rank=own.rank, size=own.size, threads=threads,
            members=len(frames), table=self.table.ctypes.data, results=self.results.ctypes.data,
            everything=everything, direct=direct,
        )))  # fmt: skip

    @property
    def address(self) -> int:
        return self.frame.address
