"""Frames: instructions that are run one after the other, and the functions by which Python runs them at next to no
cost.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from .emitter import I32, I64, Emitter, Value, function
from .jit import PYTHON, Kernel, SomeInstruction, machine
from .memory import aligned
from .records import WIDTH, Address, Instruction, Integer, Integers, Record

MOST_SLOTS = 16
LONG = 2**17  # values from which on other Python threads may run meanwhile
LONG_BYTES = 4 * LONG  # of an array of floats
WRITABLE = 1  # what PyObject_GetBuffer is asked for beside memory in one piece
Caller = Callable[[int, Any, Any], int]


class Frame(Record):
    """What stands before the instructions: how many there are (``count``), to be run ``slices`` times.

    ``release``: whether other Python threads may run meanwhile. ``slots``: how many inputs and outputs there are;
    ``addresses``: where they are; ``strides``: by how many bytes each moves from slice to slice. ``then``: the frame
    for the samples behind its own, or 0; where both are run with one input and one output, ``x_from`` and ``y_from``
    are the bytes from the start of both to a frame's own. ``length``: the size of an array that is run over alone, in
    bytes.
    """

    count: Integer
    slices: Integer
    slots: Integer
    release: Integer
    then: Address = Address()
    x_from: Integer = Integer()
    y_from: Integer = Integer()
    length: Integer = Integer()
    addresses: Integers = Integers(MOST_SLOTS)
    strides: Integers = Integers(MOST_SLOTS)

    @property
    def address(self) -> int:
        return int(self.entries.ctypes.data)

    def again(self) -> "Frame":
        """The same instructions, with slots and strides of their own."""
        entries = aligned(len(self.entries), np.int64)
        entries[:] = self.entries
        return Frame.on(entries)

    @property
    def instructions(self) -> list[np.ndarray]:
        """The entries of each instruction."""
        return list(self.entries[self.SIZE :].reshape(-1, WIDTH)[: self.count])


def frame_of(*instructions: Instruction, slices: int = 1, slots: int = 0, release: bool = True, room: int = 0) -> Frame:
    """A frame of instructions, for which there may be more ``room``."""
    header = Frame(count=len(instructions), slices=slices, slots=slots, release=release)
    frame = Frame.on(aligned(Frame.SIZE + WIDTH * max(room, len(instructions)), np.int64))
    frame.entries[: Frame.SIZE] = header.entries
    for index, instruction in enumerate(instructions):
        frame.entries[Frame.SIZE + WIDTH * index :][:WIDTH] = instruction.entries
    return frame


def run_alone(kernel: Kernel[SomeInstruction], instruction: SomeInstruction, slot: int = 0) -> int:
    """Runs one instruction, with the address of its one input or output; what it gives."""
    frame = frame_of(kernel.bound(instruction))
    frame.addresses[0] = slot
    return caller()(frame.address, 0, 0)


def slot_address(emit: Emitter, frame: Value, number: Value) -> Value:
    """The address of an input or output of the program, by its number."""
    return emit.item(emit.place(frame, Frame.addresses), number)


def slot_addresses(emit: Emitter, frame: Value) -> tuple[Value, Value]:
    """The addresses of the first two inputs and outputs."""
    return slot_address(emit, frame, I64(0)), slot_address(emit, frame, I64(1))


def slot_or(emit: Emitter, frame: Value, number: Value, address: Value) -> Value:
    """The address of an input or output of the program, by its number, or ``address`` where that is negative."""
    inside = emit.icmp_signed("<", number, I64(0))
    outside = slot_address(emit, frame, emit.select(inside, I64(0), number))
    return emit.select(inside, address, outside)


def write_run(emit: Emitter, frame: Value, x: Value, y: Value) -> Value:
    """Runs a frame and those behind it, with one input and one output at ``x`` and ``y`` where that is not 0; 1 when
    an input holds NaN.
    """
    alone = emit.icmp_signed("==", x, I64(0))
    start = emit.block
    head, done = emit.append_basic_block("head"), emit.append_basic_block("done")
    emit.branch(head)
    emit.position_at_end(head)
    current, before = emit.phi(I64), emit.phi(I64)
    current.add_incoming(frame, start)
    before.add_incoming(I64(0), start)
    with emit.if_then(emit.not_(alone)):
        addresses = emit.place(current, Frame.addresses)
        emit.write(emit.add(x, emit.field(current, Frame.x_from)), addresses)
        emit.write(emit.add(y, emit.field(current, Frame.y_from)), emit.add(addresses, I64(8)))
    nan = emit.or_(before, run_slices(emit, current))
    following = emit.field(current, Frame.then)
    current.add_incoming(following, emit.block)
    before.add_incoming(nan, emit.block)
    emit.cbranch(emit.icmp_signed("==", following, I64(0)), done, head)
    emit.position_at_end(done)
    return nan


def run_slices(emit: Emitter, frame: Value) -> Value:
    """All slices of a frame; 1 when an input holds NaN."""
    kind = ir.FunctionType(I64, [I64, I64]).as_pointer()

    def instruction(index: Value) -> Value:
        op = emit.add(frame, emit.add(I64(8 * Frame.SIZE), emit.mul(index, I64(8 * WIDTH))))
        return emit.call(emit.inttoptr(emit.field(op, Instruction.kernel), kind), [op, frame])

    def move(slot: Value) -> None:
        address = emit.add(emit.place(frame, Frame.addresses), emit.shl(slot, I64(3)))
        stride = emit.item(emit.place(frame, Frame.strides), slot)
        emit.write(emit.add(emit.read(address, I64), stride), address)

    def one_slice(index: Value, carried: list[Value]) -> list[Value]:
        carried = emit.loop(emit.field(frame, Frame.count), carried, lambda i, nan: [emit.or_(nan[0], instruction(i))])
        emit.each(emit.field(frame, Frame.slots), move)
        return carried

    return emit.loop(emit.field(frame, Frame.slices), [I64(0)], one_slice)[0]


def run_frame(emit: Emitter, frame: Value, x: Value, y: Value) -> Value:
    """A call of ``write_run``'s function."""
    return emit.call(function(emit.module, "quantspec_run", 3, write_run), [frame, x, y])


def python(emit: Emitter, name: str, *arguments: Value) -> Value:
    """A call of one of CPython's own functions."""
    result, kinds = PYTHON[name]
    existing = emit.module.globals.get(name)
    return emit.call(existing or ir.Function(emit.module, ir.FunctionType(result, kinds), name), arguments)


def released(emit: Emitter, release: Value, run: Callable[[], Value]) -> Value:
    """``run()`` (int64), during which other Python threads run, too, if ``release``."""
    result = emit.alloca(I64)
    with emit.if_else(release) as (long, short):
        with long:
            thread = python(emit, "PyEval_SaveThread")
            emit.store(run(), result)
            python(emit, "PyEval_RestoreThread", thread)
        with short:
            emit.store(run(), result)
    return emit.load(result)


def write_call(emit: Emitter, frame: Value, x: Value, y: Value, release: Value) -> Value:
    """Runs a frame, other Python threads meanwhile too if ``release``; its result."""
    return released(emit, release, lambda: run_frame(emit, frame, x, y))


def argument(emit: Emitter, arguments: Value, index: int) -> Value:
    """One of the objects that a function of Python's is called with."""
    pointer = emit.inttoptr(emit.add(arguments, emit.shl(I64(index), I64(3))), I64.as_pointer())  # Python's own memory
    value = emit.load(pointer)
    value.align = 8
    return value


def write_caller(emit: Emitter, self: Value, arguments: Value, count: Value) -> Value:
    """CPython's fast calling convention: three integers, of an array of ``count`` objects, to ``write_run``, and its
    result to an integer.
    """
    frame, x, y = (python(emit, "PyLong_AsVoidPtr", argument(emit, arguments, i)) for i in range(3))
    return python(emit, "PyLong_FromLong", write_call(emit, frame, x, y, emit.flag(frame, Frame.release)))


class Buffer(Record):
    """CPython's Py_buffer: ``length`` is in bytes."""

    address: Address
    owner: Address
    length: Integer
    rest: Integers = Integers(7)


def write_array_caller(emit: Emitter, self: Value, arguments: Value, count: Value) -> Value:
    """The same for a frame and two arrays in one piece, one to read and one to write; the bytes of the first go to
    the frame's ``length``.

    An error is no object.
    """
    frame = python(emit, "PyLong_AsVoidPtr", argument(emit, arguments, 0))
    x, y = (emit.stack(ir.ArrayType(I64, Buffer.SIZE)) for _ in range(2))
    result = emit.alloca(I64)
    emit.store(I64(0), result)

    def with_buffer(index: int, view: Value, flags: int, inside: Callable[[], None]) -> None:
        failed = python(emit, "PyObject_GetBuffer", argument(emit, arguments, index), view, I32(flags))
        with emit.if_then(emit.icmp_signed("==", failed, I32(0))):
            inside()
            python(emit, "PyBuffer_Release", view)

    def run() -> None:
        source, target = emit.field(x, Buffer.address), emit.field(y, Buffer.address)
        length = emit.field(x, Buffer.length)
        emit.put_field(frame, Frame.length, length)
        value = write_call(emit, frame, source, target, emit.icmp_signed(">=", length, I64(LONG_BYTES)))
        emit.store(python(emit, "PyLong_FromLong", value), result)

    with_buffer(1, x, 0, lambda: with_buffer(2, y, WRITABLE, run))
    return emit.load(result)


@functools.cache
def caller() -> Callable[[int, int, int], int]:
    """``run(frame, x, y)`` for Python: the addresses of a frame, and of input and output of a program with one of each.

    Those are 0 where a program has more, whose slots are filled in already.
    """
    return callable_from_python("caller", write_caller)


@functools.cache
def array_caller() -> Callable[[int, object, object], int]:
    """``run(frame, x, y)`` for Python: a frame's address, and objects with the buffers that it reads and writes.

    Raises as they do where they have none.
    """
    return callable_from_python("array_caller", write_array_caller)


class MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = [("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


METH_FASTCALL = 0x0080
definitions: list[MethodDef] = []  # CPython keeps a pointer to each


def callable_from_python(name: str, write: Callable[..., Value]) -> Caller:
    """A function of Python's whose body is ``write(emit, self, arguments, count)``."""
    address = machine().function_address(name, 3, write)
    definition = MethodDef(b"run", address, METH_FASTCALL, b"run(frame, x, y): runs a compiled program")
    definitions.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    run: Caller = make(ctypes.addressof(definition), None, None)
    return run
