"""Threads that run frames for others.

Waking a thread takes a tenth of a millisecond here and there, which is more than many networks take as a whole. So whoever has run a frame looks for the next one
for a while before it sleeps, and whoever waits for one that nobody has begun yet runs it himself. All of that is machine code: Python's lock is not needed for it,
and nothing is left undone when Python is interrupted.

The frames shared out at a time are one caller's; another one runs all of his by himself.
"""

import ctypes
import os
import sys
import threading

import numpy as np
from llvmlite import ir

from . import cpu
from .emitter import I32, I64, Emitter, function
from .frame import frame_of
from .jit import ADDRESSES, caller, kernel, run_frame
from .memory import aligned

# A mailbox: how many frames were given to the worker, times two, and whether it sleeps (WORD); the last one, its input and output, and the CPU it came from; how many
# were begun, by whomever, and how many are done; what the last one gave; whether the worker is up and looks for frames; the lock and the condition that it sleeps by;
# where it may run, where it may run while it sleeps, without which CPU that is, whether that is so, and the system's number for it. Each thread writes to cache lines
# of its own.
WORD, FRAME, X, Y, CPU, BEGUN, DONE, RESULT, UP, LOCK, CONDITION = 0, 1, 2, 3, 4, 8, 16, 17, 18, 24, 40
CPUS = 16  # words of 64 bits for CPUs: 1024 of them
ALLOWED, ASLEEP, WITHOUT, MOVED, NUMBER, MAILBOX = 64, 64 + CPUS, 64 + 2 * CPUS, 65 + 2 * CPUS, 66 + 2 * CPUS, 72 + 2 * CPUS
LOOKS = 8192  # for another frame before a worker sleeps
SPINS = 4096  # looks of who waits before he offers his place to others
# Entries of the instruction that shares frames out: where it stands whether anybody does; a table of mailboxes and frames, and how many; the frame to run meanwhile;
# one that does the work of all, or 0; what to set to 0 beforehand, or 0; whether there is one input and one output; whether frames may be run one after the other;
# whether the work is too little to wait for workers that sleep.
BUSY, TABLE, OTHERS, OWN, ALL, COUNTER, DIRECT, APART, AWAKE = range(1, 10)
SHARED, LINUX = os.name == "posix", sys.platform == "linux"


class Crew:
    """The workers of this process. ``generation``: of which process, in a line of forks, the mailboxes are."""

    def __init__(self):
        self.generation, self.lock = 0, threading.Lock()
        self.clear()

    def clear(self) -> None:
        self.busy, self.mailboxes = aligned(8, np.int64), []

    def hire(self, count: int) -> list[int]:
        """The addresses of so many workers' mailboxes."""
        with self.lock:
            while len(self.mailboxes) < count:
                mailbox = aligned(MAILBOX, np.int64)
                mailbox[WORD] = 1
                library = ctypes.CDLL(None)
                library.pthread_mutex_init(ctypes.c_void_p(mailbox[LOCK:].ctypes.data), None)
                library.pthread_cond_init(ctypes.c_void_p(mailbox[CONDITION:].ctypes.data), None)
                self.mailboxes.append(mailbox)
                threading.Thread(target=live, args=(mailbox,), name=f"quantspec-{len(self.mailboxes)}", daemon=True).start()
            return [mailbox.ctypes.data for mailbox in self.mailboxes[:count]]

    def forget(self) -> None:
        """In a forked process, which has no threads but its own."""
        self.busy[0] = 1  # whoever shares out by it is on his own
        self.generation, self.lock = self.generation + 1, threading.Lock()
        self.clear()


crew = Crew()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=crew.forget)


def live(mailbox: np.ndarray) -> None:
    """A worker's life, which ends with the process."""
    mailbox[NUMBER] = threading.get_native_id()
    frame = frame_of(kernel("serve", write_serve), {1: mailbox.ctypes.data})
    caller()(frame.ctypes.data, 0, 0)


def pause(emit: Emitter) -> None:
    """Tells the CPU that a loop only looks at memory."""
    if cpu.is_x86():
        emit.native("llvm.x86.sse2.pause", ir.VoidType())


def posix(emit: Emitter, name: str, mailbox, *entries: int) -> None:
    """A call of a function of POSIX threads for entries of a mailbox."""
    emit.native(name, I32, *(emit.add(mailbox, I64(8 * entry)) for entry in entries))


def entry(emit: Emitter, mailbox, index: int):
    return emit.at(emit.add(mailbox, I64(8 * index)), I64)


def begin(emit: Emitter, mailbox, number):
    """Whether frame ``number`` had not been begun, and nobody else may begin it now."""
    pair = emit.cmpxchg(entry(emit, mailbox, BEGUN), emit.sub(number, I64(1)), number, "seq_cst", "seq_cst")
    return emit.extract_value(pair, 1)


def write_serve(emit: Emitter, op, frame):
    """Runs the frames that come into a mailbox. Does not return."""
    mailbox = emit.field(op, 1)
    emit.store_atomic(I64(1), entry(emit, mailbox, UP), "release", 8)
    before = emit.block
    look, work, idle, rest, sleep, wait, awake = (emit.append_basic_block(name) for name in ("look", "work", "idle", "rest", "sleep", "wait", "awake"))
    emit.branch(look)
    emit.position_at_end(look)
    looks = emit.phi(I64)
    looks.add_incoming(I64(0), before)
    word = emit.load_atomic(entry(emit, mailbox, WORD), "acquire", 8)
    number = emit.lshr(word, I64(1))
    new = emit.icmp_signed("!=", emit.load_atomic(entry(emit, mailbox, BEGUN), "acquire", 8), number)
    emit.cbranch(new, work, idle)
    emit.position_at_end(work)
    with emit.if_then(begin(emit, mailbox, number)):
        emit.write(run_frame(emit, *(emit.field(mailbox, index) for index in (FRAME, X, Y))), emit.add(mailbox, I64(8 * RESULT)))
        # An exchange also waits for what was written past the caches.
        emit.atomic_rmw("xchg", entry(emit, mailbox, DONE), number, "seq_cst")
    looks.add_incoming(I64(0), emit.block)
    emit.branch(look)
    emit.position_at_end(idle)
    pause(emit)
    more = emit.add(looks, I64(1))
    looks.add_incoming(more, idle)
    emit.cbranch(emit.icmp_signed("<", more, I64(LOOKS)), look, rest)
    emit.position_at_end(rest)
    # Unless another frame has come.
    slept = emit.extract_value(emit.cmpxchg(entry(emit, mailbox, WORD), word, emit.or_(word, I64(1)), "seq_cst", "seq_cst"), 1)
    looks.add_incoming(I64(0), rest)
    emit.cbranch(slept, sleep, look)
    emit.position_at_end(sleep)
    emit.store_atomic(I64(0), entry(emit, mailbox, UP), "release", 8)
    posix(emit, "pthread_mutex_lock", mailbox, LOCK)
    elsewhere(emit, mailbox)
    emit.branch(wait)
    emit.position_at_end(wait)
    still = emit.and_(emit.load_atomic(entry(emit, mailbox, WORD), "acquire", 8), I64(1))
    asleep = emit.append_basic_block("asleep")
    emit.cbranch(emit.icmp_signed("!=", still, I64(0)), asleep, awake)
    emit.position_at_end(asleep)
    posix(emit, "pthread_cond_wait", mailbox, CONDITION, LOCK)
    emit.branch(wait)
    emit.position_at_end(awake)
    posix(emit, "pthread_mutex_unlock", mailbox, LOCK)
    with emit.if_then(emit.icmp_signed("!=", emit.field(mailbox, MOVED), I64(0))):
        affinity(emit, "sched_setaffinity", I32(0), mailbox, ALLOWED)
    emit.store_atomic(I64(1), entry(emit, mailbox, UP), "release", 8)
    looks.add_incoming(I64(0), emit.block)
    emit.branch(look)
    emit.position_at_end(emit.append_basic_block("never"))


def affinity(emit: Emitter, name: str, who, mailbox, index: int):
    """Asks for or sets the CPUs that a thread may be on; 0 when that went well."""
    return emit.native(name, I32, who, I64(8 * CPUS), emit.add(mailbox, I64(8 * index)))


def elsewhere(emit: Emitter, mailbox) -> None:
    """Has the worker sleep on another CPU than that of whoever gave it the last frame, where it may be on others.

    Linux often wakes a thread where it was woken from, virtual machines do nearly always, and there it would wait until that frame's other half is done.
    """
    emit.write(I64(0), emit.add(mailbox, I64(8 * MOVED)))
    if LINUX:
        with emit.if_then(emit.icmp_signed("==", affinity(emit, "sched_getaffinity", I32(0), mailbox, ALLOWED), I32(0))):
            avoid(emit, mailbox, I32(0), emit.field(mailbox, CPU))


def avoid(emit: Emitter, mailbox, who, cpu) -> None:
    """Has the worker, whose number is ``who``, be on none but its other CPUs until it is up."""
    with emit.if_then(emit.icmp_unsigned("<", cpu, I64(64 * CPUS))):
        word, bit = emit.lshr(cpu, I64(6)), emit.shl(I64(1), emit.and_(cpu, I64(63)))

        def copy(index, carried):
            place = emit.add(mailbox, emit.shl(index, I64(3)))
            mask = emit.field(place, ALLOWED)
            mask = emit.select(emit.icmp_signed("==", index, word), emit.and_(mask, emit.not_(bit)), mask)
            emit.write(mask, emit.add(place, I64(8 * ASLEEP)))
            return [emit.or_(carried[0], mask)]

        left = emit.loop(I64(CPUS), [I64(0)], copy)[0]
        with emit.if_then(emit.icmp_signed("!=", left, I64(0))):
            moved = affinity(emit, "sched_setaffinity", who, mailbox, ASLEEP)
            emit.write(emit.zext(emit.icmp_signed("==", moved, I32(0)), I64), emit.add(mailbox, I64(8 * MOVED)))
            emit.write(cpu, emit.add(mailbox, I64(8 * WITHOUT)))


def this_cpu(emit: Emitter):
    """The number of the CPU that this is run on, -1 where nobody tells."""
    return emit.sext(emit.native("sched_getcpu", I32), I64) if LINUX else I64(-1)


def run_post(emit: Emitter, mailbox, frame, x, y):
    """Gives a worker a frame."""
    for index, value in ((FRAME, frame), (X, x), (Y, y), (CPU, this_cpu(emit))):
        emit.write(value, emit.add(mailbox, I64(8 * index)))
    emit.atomic_rmw("add", entry(emit, mailbox, WORD), I64(2), "seq_cst")
    run_rouse(emit, mailbox)


def run_rouse(emit: Emitter, mailbox):
    """Wakes a worker if it sleeps; 1 when it is not up yet."""
    asleep = emit.and_(emit.load_atomic(entry(emit, mailbox, WORD), "acquire", 8), I64(1))
    with emit.if_then(emit.icmp_signed("!=", asleep, I64(0)), likely=False):
        posix(emit, "pthread_mutex_lock", mailbox, LOCK)
        if LINUX:  # whoever wakes it may have moved since
            here = this_cpu(emit)
            with emit.if_then(emit.and_(emit.icmp_signed("!=", emit.field(mailbox, MOVED), I64(0)), emit.icmp_signed("!=", emit.field(mailbox, WITHOUT), here))):
                avoid(emit, mailbox, emit.trunc(emit.field(mailbox, NUMBER), I32), here)
        emit.atomic_rmw("and", entry(emit, mailbox, WORD), I64(-2), "seq_cst")
        posix(emit, "pthread_cond_signal", mailbox, CONDITION)
        posix(emit, "pthread_mutex_unlock", mailbox, LOCK)
    return emit.xor(emit.load_atomic(entry(emit, mailbox, UP), "acquire", 8), I64(1))


def run_wait(emit: Emitter, mailbox, apart):
    """What the last frame given to a worker gave. It is run here where the worker has not begun yet and it may be run ``apart`` from others."""
    number = emit.lshr(emit.field(mailbox, WORD), I64(1))
    result = emit.alloca(I64)
    mine = emit.alloca(ir.IntType(1))
    emit.store(ir.IntType(1)(0), mine)
    with emit.if_then(emit.icmp_signed("!=", apart, I64(0))):
        emit.store(begin(emit, mailbox, number), mine)
    with emit.if_else(emit.load(mine)) as (here, there):
        with here:
            emit.store(run_frame(emit, *(emit.field(mailbox, index) for index in (FRAME, X, Y))), result)
            emit.store_atomic(number, entry(emit, mailbox, DONE), "release", 8)
        with there:
            spin_until(emit, lambda: emit.icmp_signed("==", emit.load_atomic(entry(emit, mailbox, DONE), "acquire", 8), number))
            emit.store(emit.field(mailbox, RESULT), result)
    return emit.load(result)


def spin_until(emit: Emitter, reached) -> None:
    """Looks whether something is so until it is, offering its place to others now and then."""
    before = emit.block
    look, wait, give, done = (emit.append_basic_block(name) for name in ("look", "wait", "give", "done"))
    emit.branch(look)
    emit.position_at_end(look)
    spins = emit.phi(I64)
    spins.add_incoming(I64(0), before)
    emit.cbranch(reached(), done, wait)
    emit.position_at_end(wait)
    pause(emit)
    more = emit.add(spins, I64(1))
    spins.add_incoming(more, wait)
    emit.cbranch(emit.icmp_signed("==", emit.and_(more, I64(SPINS - 1)), I64(0)), give, look)
    emit.position_at_end(give)
    emit.native("sched_yield", I32)
    spins.add_incoming(more, give)
    emit.branch(look)
    emit.position_at_end(done)


def write_share(emit: Emitter, op, frame):
    """Shares frames out among workers and this thread, or runs all of them here where somebody else does so; 1 when an input holds NaN."""
    direct = emit.icmp_signed("!=", emit.field(op, DIRECT), I64(0))
    x, y = (emit.select(direct, emit.field(frame, ADDRESSES + slot), I64(0)) for slot in (0, 1))
    busy, table, others, own, everything, counter, apart, awake = (emit.field(op, index) for index in (BUSY, TABLE, OTHERS, OWN, ALL, COUNTER, APART, AWAKE))
    post, wait = function(emit.module, "quantspec_post", 4, run_post), function(emit.module, "quantspec_wait", 2, run_wait)
    rouse = function(emit.module, "quantspec_rouse", 1, run_rouse)

    def pair(index):
        """A worker's mailbox and the frame for it."""
        place = emit.add(table, emit.shl(index, I64(4)))
        return emit.field(place, 0), emit.field(place, 1)

    def here():
        """All frames by this thread."""
        total = emit.alloca(I64)
        with emit.if_else(emit.icmp_signed("!=", everything, I64(0))) as (one, each):
            with one:
                emit.store(run_frame(emit, everything, x, y), total)
            with each:
                emit.store(emit.loop(others, [run_frame(emit, own, x, y)], lambda i, seen: [emit.or_(seen[0], run_frame(emit, pair(i)[1], x, y))])[0], total)
        return emit.load(total)

    def together():
        with emit.if_then(emit.icmp_signed("!=", counter, I64(0))):
            emit.store_atomic(I64(0), emit.at(counter, I64), "release", 8)

        def give(index, carried):
            mailbox, theirs = pair(index)
            emit.call(post, [mailbox, theirs, x, y])
            return []

        def take(index, carried):
            return [emit.or_(carried[0], emit.call(wait, [pair(index)[0], apart]))]

        emit.loop(others, [], give)
        mine = run_frame(emit, own, x, y)
        return emit.loop(others, [mine], take)[0]

    result = emit.alloca(I64)
    free = emit.extract_value(emit.cmpxchg(emit.at(busy, I64), I64(0), I64(1), "seq_cst", "seq_cst"), 1)
    with emit.if_else(free) as (ours, taken):
        with ours:
            asked = emit.select(emit.icmp_signed("!=", awake, I64(0)), others, I64(0))
            asleep = emit.loop(asked, [I64(0)], lambda i, seen: [emit.or_(seen[0], emit.call(rouse, [pair(i)[0]]))])[0]
            with emit.if_else(emit.icmp_signed("==", asleep, I64(0))) as (ready, late):
                with ready:
                    emit.store(together(), result)
                with late:
                    emit.store(here(), result)
            emit.store_atomic(I64(0), emit.at(busy, I64), "release", 8)
        with taken:
            emit.store(here(), result)
    return emit.load(result)


class Share:
    """A frame that shares others out: ``frames``, the first of which this thread runs. It is run as they would be.

    ``everything``: the address of a frame that does the work of all of them, which then wait for each other; 0 when they know nothing of each other. ``counter``: the
    address of what is to be 0 when they begin, or 0. ``direct``: whether they have one input and one output. ``awake``: whether workers that sleep are only roused, so
    that they are there the next time.
    """

    def __init__(self, frames: list[int], *, direct: bool, everything: int = 0, counter: int = 0, awake: bool = False):
        self.mailboxes, self.generation = crew.hire(len(frames) - 1), crew.generation
        self.table = aligned(2 * len(frames), np.int64)
        self.table[: 2 * len(frames) - 2] = [entry for pair in zip(self.mailboxes, frames[1:]) for entry in pair]
        self.frame, self.busy = frame_of(kernel("share", write_share), {
            BUSY: crew.busy.ctypes.data, TABLE: self.table.ctypes.data, OTHERS: len(frames) - 1, OWN: frames[0], ALL: everything, COUNTER: counter, DIRECT: direct,
            APART: everything == 0, AWAKE: awake,
        }), crew.busy  # fmt: skip

    @property
    def address(self) -> int:
        return self.frame.ctypes.data
