"""Threads that run frames for others.

Waking a thread takes a tenth of a millisecond here and there, which is more than many networks take as a whole. So
whoever has run a frame looks for the next one for a while before it sleeps, and whoever waits for one that nobody has
begun yet runs it himself. All of that is machine code: Python's lock is not needed for it, and nothing is left undone
when Python is interrupted.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from llvmlite import ir

from . import cpu
from .emitter import I32, I64, Emitter, Value
from .frame import caller, frame_of, run_frame
from .jit import Kernel
from .memory import aligned
from .records import Address, Entry, Instruction, Integer, Integers, Record

CPUS = 16  # words of 64 bits for CPUs: 1024 of them
# For how long a worker looks for another frame before it sleeps, in nanoseconds: longer than work takes that is left to
# the caller while it sleeps, or it would never be up when the next frame comes.
PATIENCE, LOOKS = 2_000_000, 256  # LOOKS: between two at the clock
KEEN = 200_000  # nanoseconds from which on it offers its place to others meanwhile
# Looks of who waits before he offers his place to others: powers of two.
SPINS, HASTY = 4096, 64  # HASTY: where others may need it to arrive at all
SHARED, LINUX = os.name == "posix", sys.platform == "linux"


class Mailbox(Record):
    """How a worker is told what to run. Each thread writes to cache lines of its own.

    ``word``: how many frames were given to the worker, times two, and whether it sleeps. Of the last frame: its input
    and output, and the CPU it came from. ``begun``: how many frames were begun, by whomever; ``done``: how many are
    done; ``result``: what the last one gave; ``up``: whether the worker is up and looks for frames. ``lock`` and
    ``condition``: what it sleeps by. ``allowed``: where it may run; ``asleep``: where it may run while it sleeps;
    ``without``: which CPU is not among those; ``moved``: whether that is so; ``number``: the system's for it.
    """

    word: Integer
    frame: Address
    x: Address
    y: Address
    cpu: Integer
    begun: Integer = Integer(line=True)
    done: Integer = Integer(line=True)
    result: Integer = Integer()
    up: Integer = Integer()
    lock: Integers = Integers(16, line=True)
    condition: Integers = Integers(24)
    allowed: Integers = Integers(CPUS, line=True)
    asleep: Integers = Integers(CPUS)
    without: Integer = Integer()
    moved: Integer = Integer()
    number: Integer = Integer()
    behind: Integers = Integers(0, line=True)

    @property
    def address(self) -> int:
        return int(self.entries.ctypes.data)


class Serve(Instruction):
    """Whose frames to run."""

    mailbox: Address


class Pool:
    """The workers of this process. ``generation``: of which process, in a line of forks, the mailboxes are. ``busy``:
    whether anybody shares out, one at a time. ``forked``: whether the process has none of the threads that its
    libraries may have started.
    """

    def __init__(self) -> None:
        self.generation, self.lock, self.forked = 0, threading.Lock(), False
        self.clear()

    def clear(self) -> None:
        self.busy = aligned(8, np.int64)
        self.mailboxes: list[Mailbox] = []

    def workers(self, count: int) -> list[int]:
        """The addresses of so many workers' mailboxes."""
        with self.lock:
            while len(self.mailboxes) < count:
                mailbox = Mailbox.on(aligned(Mailbox.SIZE, np.int64))
                mailbox.word = 1
                library = ctypes.CDLL(None)
                library.pthread_mutex_init(ctypes.c_void_p(mailbox.lock.ctypes.data), None)
                library.pthread_cond_init(ctypes.c_void_p(mailbox.condition.ctypes.data), None)
                self.mailboxes.append(mailbox)
                name = f"quantspec-{len(self.mailboxes)}"
                threading.Thread(target=serve, args=(mailbox,), name=name, daemon=True).start()
            return [mailbox.address for mailbox in self.mailboxes[:count]]

    def fork(self) -> None:
        """In a forked process, which has no threads but its own."""
        self.forked = True
        self.forget()

    def forget(self) -> None:
        """Has whoever shares out from now on do so among new workers."""
        self.busy[0] = 1  # whoever shares out by it is on his own
        self.generation, self.lock = self.generation + 1, threading.Lock()
        self.clear()


pool = Pool()
if SHARED:
    os.register_at_fork(after_in_child=pool.fork)


def serve(mailbox: Mailbox) -> None:
    """A worker's life, which ends with the process."""
    mailbox.number = threading.get_native_id()
    frame = frame_of(SERVE.bound(Serve(mailbox=mailbox.address)))
    caller()(frame.address, 0, 0)


def pause(emit: Emitter) -> None:
    """Tells the CPU that a loop only looks at memory."""
    if cpu.is_x86():
        emit.native("llvm.x86.sse2.pause", ir.VoidType())


def posix(emit: Emitter, name: str, mailbox: Value, *entries: Entry) -> None:
    """A call of a function of POSIX threads for entries of a mailbox."""
    emit.native(name, I32, *(emit.place(mailbox, entry) for entry in entries))


def pointer(emit: Emitter, mailbox: Value, entry: Entry) -> Value:
    """Where an entry lies, for what must be read or written at once."""
    return emit.at(emit.place(mailbox, entry), I64)


def latest(emit: Emitter, mailbox: Value, entry: Entry) -> Value:
    """An entry that others write, and what they wrote before it."""
    return emit.load_atomic(pointer(emit, mailbox, entry), "acquire", 8)


def publish(emit: Emitter, mailbox: Value, entry: Entry, value: Value) -> None:
    """Writes an entry that others read, behind what was written before it."""
    emit.store_atomic(value, pointer(emit, mailbox, entry), "release", 8)


def begin(emit: Emitter, mailbox: Value, number: Value) -> Value:
    """Whether frame ``number`` had not been begun, and nobody else may begin it now."""
    pair = emit.cmpxchg(pointer(emit, mailbox, Mailbox.begun), emit.sub(number, I64(1)), number, "seq_cst", "seq_cst")
    return emit.extract_value(pair, 1)


def write_serve(emit: Emitter, op: Value, frame: Value) -> None:
    """Runs the frames that come into a mailbox. Does not return."""
    mailbox, since = emit.field(op, Serve.mailbox), emit.alloca(I64)
    publish(emit, mailbox, Mailbox.up, I64(1))
    before = emit.block
    names = "look", "work", "idle", "clock", "rest", "sleep", "wait", "awake"
    look, work, idle, clock, rest, sleep, wait, awake = (emit.append_basic_block(name) for name in names)
    emit.branch(look)
    emit.position_at_end(look)
    looks = emit.phi(I64)
    looks.add_incoming(I64(0), before)
    word = latest(emit, mailbox, Mailbox.word)
    number = emit.lshr(word, I64(1))
    new = emit.icmp_signed("!=", latest(emit, mailbox, Mailbox.begun), number)
    emit.cbranch(new, work, idle)
    emit.position_at_end(work)
    with emit.if_then(begin(emit, mailbox, number)):
        result = run_frame(emit, *emit.fields(mailbox, Mailbox.frame, Mailbox.x, Mailbox.y))
        emit.put_field(mailbox, Mailbox.result, result)
        # An exchange also waits for what was written past the caches.
        emit.atomic_rmw("xchg", pointer(emit, mailbox, Mailbox.done), number, "seq_cst")
    looks.add_incoming(I64(0), emit.block)
    emit.branch(look)
    emit.position_at_end(idle)
    pause(emit)
    more = emit.add(looks, I64(1))
    looks.add_incoming(more, idle)
    emit.cbranch(emit.icmp_signed("!=", emit.and_(more, I64(LOOKS - 1)), I64(0)), look, clock)
    emit.position_at_end(clock)
    now = nanoseconds(emit)
    began = emit.select(emit.icmp_signed("==", more, I64(LOOKS)), now, emit.load(since))
    emit.store(began, since)
    with emit.if_then(emit.icmp_signed(">", emit.sub(now, began), I64(KEEN))):
        emit.native("sched_yield", I32)
    looks.add_incoming(more, emit.block)
    emit.cbranch(emit.icmp_signed("<", emit.sub(now, began), I64(PATIENCE)), look, rest)
    emit.position_at_end(rest)
    # Unless another frame has come.
    asleep_word, address = emit.or_(word, I64(1)), pointer(emit, mailbox, Mailbox.word)
    slept = emit.extract_value(emit.cmpxchg(address, word, asleep_word, "seq_cst", "seq_cst"), 1)
    looks.add_incoming(I64(0), rest)
    emit.cbranch(slept, sleep, look)
    emit.position_at_end(sleep)
    publish(emit, mailbox, Mailbox.up, I64(0))
    posix(emit, "pthread_mutex_lock", mailbox, Mailbox.lock)
    elsewhere(emit, mailbox)
    emit.branch(wait)
    emit.position_at_end(wait)
    still = emit.and_(latest(emit, mailbox, Mailbox.word), I64(1))
    asleep = emit.append_basic_block("asleep")
    emit.cbranch(emit.icmp_signed("!=", still, I64(0)), asleep, awake)
    emit.position_at_end(asleep)
    posix(emit, "pthread_cond_wait", mailbox, Mailbox.condition, Mailbox.lock)
    emit.branch(wait)
    emit.position_at_end(awake)
    posix(emit, "pthread_mutex_unlock", mailbox, Mailbox.lock)
    with emit.if_then(emit.flag(mailbox, Mailbox.moved)):
        affinity(emit, "sched_setaffinity", I32(0), mailbox, Mailbox.allowed)
    publish(emit, mailbox, Mailbox.up, I64(1))
    looks.add_incoming(I64(0), emit.block)
    emit.branch(look)
    emit.position_at_end(emit.append_basic_block("never"))


def nanoseconds(emit: Emitter) -> Value:
    """A clock that nobody sets."""
    both = emit.stack(ir.ArrayType(I64, 2))
    emit.native("clock_gettime", I32, I32(time.CLOCK_MONOTONIC), both)
    return emit.add(emit.mul(emit.item(both, I64(0)), I64(10**9)), emit.item(both, I64(1)))


def affinity(emit: Emitter, name: str, who: Value, mailbox: Value, cpus: Entry) -> Value:
    """Asks for or sets the CPUs that a thread may be on; 0 when that went well."""
    return emit.native(name, I32, who, I64(8 * CPUS), emit.place(mailbox, cpus))


def elsewhere(emit: Emitter, mailbox: Value) -> None:
    """Has the worker sleep on another CPU than that of whoever gave it the last frame, where it may be on others.

    Linux often wakes a thread where it was woken from, virtual machines do nearly always, and there it would wait
    until that frame's other half is done.
    """
    emit.put_field(mailbox, Mailbox.moved, I64(0))
    if LINUX:
        asked = affinity(emit, "sched_getaffinity", I32(0), mailbox, Mailbox.allowed)
        with emit.if_then(emit.icmp_signed("==", asked, I32(0))):
            avoid(emit, mailbox, I32(0), emit.field(mailbox, Mailbox.cpu))


def avoid(emit: Emitter, mailbox: Value, who: Value, cpu: Value) -> None:
    """Has the worker, whose number is ``who``, be on none but its other CPUs until it is up."""
    with emit.if_then(emit.icmp_unsigned("<", cpu, I64(64 * CPUS))):
        word, bit = emit.lshr(cpu, I64(6)), emit.shl(I64(1), emit.and_(cpu, I64(63)))

        def copy(index: Value) -> Value:
            at = emit.shl(index, I64(3))
            mask = emit.item(emit.place(mailbox, Mailbox.allowed), index)
            mask = emit.select(emit.icmp_signed("==", index, word), emit.and_(mask, emit.not_(bit)), mask)
            emit.write(mask, emit.add(emit.place(mailbox, Mailbox.asleep), at))
            return mask

        left = emit.any_of(I64(CPUS), copy)
        with emit.if_then(emit.icmp_signed("!=", left, I64(0))):
            moved = affinity(emit, "sched_setaffinity", who, mailbox, Mailbox.asleep)
            emit.put_field(mailbox, Mailbox.moved, emit.zext(emit.icmp_signed("==", moved, I32(0)), I64))
            emit.put_field(mailbox, Mailbox.without, cpu)


def this_cpu(emit: Emitter) -> Value:
    """The number of the CPU that this is run on, -1 where nobody tells."""
    return emit.sext(emit.native("sched_getcpu", I32), I64) if LINUX else I64(-1)


def run_post(emit: Emitter, mailbox: Value, frame: Value, x: Value, y: Value) -> None:
    """Gives a worker a frame."""
    values = (Mailbox.frame, frame), (Mailbox.x, x), (Mailbox.y, y), (Mailbox.cpu, this_cpu(emit))
    for entry, value in values:
        emit.put_field(mailbox, entry, value)
    emit.atomic_rmw("add", pointer(emit, mailbox, Mailbox.word), I64(2), "seq_cst")
    run_rouse(emit, mailbox)


def run_rouse(emit: Emitter, mailbox: Value) -> Value:
    """Wakes a worker if it sleeps; 1 when it is not up yet."""
    asleep = emit.and_(latest(emit, mailbox, Mailbox.word), I64(1))
    with emit.if_then(emit.icmp_signed("!=", asleep, I64(0)), likely=False):
        posix(emit, "pthread_mutex_lock", mailbox, Mailbox.lock)
        if LINUX:  # whoever wakes it may have moved since
            here = this_cpu(emit)
            other = emit.icmp_signed("!=", emit.field(mailbox, Mailbox.without), here)
            with emit.if_then(emit.and_(emit.flag(mailbox, Mailbox.moved), other)):
                avoid(emit, mailbox, emit.trunc(emit.field(mailbox, Mailbox.number), I32), here)
        emit.atomic_rmw("and", pointer(emit, mailbox, Mailbox.word), I64(-2), "seq_cst")
        posix(emit, "pthread_cond_signal", mailbox, Mailbox.condition)
        posix(emit, "pthread_mutex_unlock", mailbox, Mailbox.lock)
    return emit.xor(latest(emit, mailbox, Mailbox.up), I64(1))


def run_wait(emit: Emitter, mailbox: Value, apart: Value) -> Value:
    """What the last frame given to a worker gave.

    It is run here where the worker has not begun yet and it may be run ``apart`` from others.
    """
    number = emit.lshr(emit.field(mailbox, Mailbox.word), I64(1))
    result = emit.alloca(I64)
    mine = emit.alloca(ir.IntType(1))
    emit.store(ir.IntType(1)(0), mine)
    with emit.if_then(emit.icmp_signed("!=", apart, I64(0))):
        emit.store(begin(emit, mailbox, number), mine)
    with emit.if_else(emit.load(mine)) as (here, there):
        with here:
            emit.store(run_frame(emit, *emit.fields(mailbox, Mailbox.frame, Mailbox.x, Mailbox.y)), result)
            publish(emit, mailbox, Mailbox.done, number)
        with there:
            spin_until(emit, lambda: emit.icmp_signed("==", latest(emit, mailbox, Mailbox.done), number), I64(SPINS))
            emit.store(emit.field(mailbox, Mailbox.result), result)
    return emit.load(result)


def looks(threads: int) -> int:
    """How often one of so many threads that wait for each other looks before he offers his place: seldom where each has
    a CPU, soon where one that is waited for may need his."""
    cpus = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    return SPINS if threads <= cpus else HASTY


def spin_until(emit: Emitter, reached: Callable[[], Value], spins: Value) -> None:
    """Looks whether something is so until it is, offering its place to others after every ``spins`` looks."""
    before, last = emit.block, emit.sub(spins, I64(1))
    look, wait, give, done = (emit.append_basic_block(name) for name in ("look", "wait", "give", "done"))
    emit.branch(look)
    emit.position_at_end(look)
    looked = emit.phi(I64)
    looked.add_incoming(I64(0), before)
    emit.cbranch(reached(), done, wait)
    emit.position_at_end(wait)
    pause(emit)
    more = emit.add(looked, I64(1))
    looked.add_incoming(more, wait)
    emit.cbranch(emit.icmp_signed("==", emit.and_(more, last), I64(0)), give, look)
    emit.position_at_end(give)
    emit.native("sched_yield", I32)
    looked.add_incoming(more, give)
    emit.branch(look)
    emit.position_at_end(done)


SERVE = Kernel("serve", Serve, write_serve)
