"""LLVM code to machine code, stored between processes, and a way to call it that costs Python next to nothing.

Only llvmlite is needed, the part of Numba that compiles. Kernels are compiled when a program first needs them, each for itself, and stored as object
files under ``$QUANTSPEC_KERNELS``, or ``quantspec/kernels`` in the user's cache folder; the name of a file is the hash of all it depends on. A
folder that cannot be written to costs time and nothing else.
"""

import atexit
import ctypes
import functools
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import llvmlite
from llvmlite import binding, ir

from . import cpu
from .emitter import I32, I64, Emitter, function

PYTHON = {  # what the caller calls in Python, by the types of its result and arguments
    "PyLong_AsVoidPtr": (I64, [I64]),
    "PyLong_FromLong": (I64, [I64]),
    "PyEval_SaveThread": (I64, []),
    "PyEval_RestoreThread": (ir.VoidType(), [I64]),
    "PyObject_GetBuffer": (I32, [I64, I64, I32]),
    "PyBuffer_Release": (ir.VoidType(), [I64]),
}
POSIX = "sched_yield", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "pthread_cond_signal"
LINUX = "sched_getcpu", "sched_getaffinity", "sched_setaffinity"
BUFFER_WIDTH, BUFFER_LENGTH = 10, 2  # CPython's Py_buffer, in entries of 8 bytes: how many, and which is the length in bytes; the first is the address
WRITABLE = 1  # what PyObject_GetBuffer is asked for beside memory in one piece
LONG_BYTES = 2**19  # of an array, from which on other Python threads may run meanwhile
# A frame is an int64 array: COUNT instructions, to be run SLICES times; whether other Python threads may run meanwhile (RELEASE); the addresses of SLOTS inputs and
# outputs, and by how many bytes each moves from slice to slice; then the instructions, WIDTH entries each, of which the first is its kernel's address.
# THEN is the address of the frame for the samples behind its own, or 0. Where both are run with one input and one output, X_FROM and Y_FROM are the bytes from the
# start of both to a frame's own. LENGTH is the size of an array that is run over alone, in bytes.
COUNT, SLICES, SLOTS, RELEASE, THEN, X_FROM, Y_FROM, LENGTH, ADDRESSES, STRIDES, BEGIN, WIDTH = 0, 1, 2, 3, 4, 5, 6, 7, 8, 24, 40, 32
MOST_SLOTS = STRIDES - ADDRESSES


class MethodDef(ctypes.Structure):
    """CPython's PyMethodDef."""

    _fields_ = [("name", ctypes.c_char_p), ("call", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


@functools.cache
def sources() -> bytes:
    """A hash of this package's source and of what it is compiled with and for."""
    digest = hashlib.sha256(f"{llvmlite.__version__} {sys.version} {cpu.target()}".encode())
    package = Path(__file__).parents[1]
    for path in sorted([*package.glob("kernels/*.py"), *package.glob("engines/compiled/*.py")]):
        digest.update(path.read_bytes())
    return digest.digest()


def folder() -> Path:
    """Where object files are stored."""
    if given := os.environ.get("QUANTSPEC_KERNELS"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantspec" / "kernels"


def store(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a folder that cannot be written to is no error."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=path.parent, delete=False)
    except OSError:
        return
    try:
        with file:
            file.write(content)
        os.replace(file.name, path)
    except OSError:
        os.unlink(file.name)


class Machine:
    """LLVM's compiler and loader. One per process; everything it loads stays loaded."""

    def __init__(self):
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        for name in PYTHON:
            binding.add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)
        for name in (*POSIX, *(LINUX if sys.platform == "linux" else ())) if os.name == "posix" else ():
            binding.add_symbol(name, ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value)
        target = cpu.target()
        self.machine = binding.Target.from_default_triple().create_target_machine(
            cpu=target.name, features=target.features, opt=3, codemodel="jitdefault"
        )
        self.engine = binding.create_mcjit_compiler(binding.parse_assembly(""), self.machine)
        atexit.register(self.engine.detach)  # workers may be in its code when the process ends
        self.lock = threading.Lock()
        self.addresses: dict[str, int] = {}

    def address(self, name: str, write: Callable[[ir.Module], None]) -> int:
        """The address of the function ``name``, which ``write`` adds to a module if it was never compiled."""
        with self.lock:
            if name not in self.addresses:
                self.engine.add_object_file(binding.ObjectFileRef.from_data(self.code(name, write)))
                self.engine.finalize_object()
                self.addresses[name] = self.engine.get_function_address(name)
            return self.addresses[name]

    def code(self, name: str, write: Callable[[ir.Module], None]) -> bytes:
        """The object file with the function, from the store or compiled and stored."""
        path = folder() / f"{name}-{hashlib.sha256(sources() + name.encode()).hexdigest()[:32]}.o"
        try:
            stored = path.read_bytes()
            if hashlib.sha256(stored[32:]).digest() == stored[:32]:  # a torn file would take the process with it
                return stored[32:]
        except OSError:
            pass
        code = self.compile(name, write)
        store(path, hashlib.sha256(code).digest() + code)
        return code

    def compile(self, name: str, write: Callable[[ir.Module], None]) -> bytes:
        module = ir.Module(name)
        module.triple = binding.get_default_triple()
        write(module)
        parsed = binding.parse_assembly(str(module))
        parsed.verify()
        options = binding.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = True
        builder = binding.create_pass_builder(self.machine, options)
        builder.getModulePassManager().run(parsed, builder)
        return self.machine.emit_object(parsed)


@functools.cache
def machine() -> Machine:
    return Machine()


def kernel(name: str, write: Callable[..., None]) -> int:
    """The address of the kernel (op, frame) whose body ``write(emit, op, frame)`` emits; its value, if any, is 1 when an input holds NaN."""
    return machine().address(f"quantspec_{name}", lambda module: function(module, f"quantspec_{name}", 2, write, public=True))


def write_run(emit: Emitter, frame, x, y):
    """Runs a frame and those behind it, with one input and one output at ``x`` and ``y`` where that is not 0; 1 when an input holds NaN."""
    alone = emit.icmp_signed("==", x, I64(0))
    start = emit.block
    head, done = emit.append_basic_block("head"), emit.append_basic_block("done")
    emit.branch(head)
    emit.position_at_end(head)
    current, before = emit.phi(I64), emit.phi(I64)
    current.add_incoming(frame, start)
    before.add_incoming(I64(0), start)
    with emit.if_then(emit.not_(alone)):
        emit.write(emit.add(x, emit.field(current, X_FROM)), emit.add(current, I64(8 * ADDRESSES)))
        emit.write(emit.add(y, emit.field(current, Y_FROM)), emit.add(current, I64(8 * ADDRESSES + 8)))
    nan = emit.or_(before, run_slices(emit, current))
    following = emit.field(current, THEN)
    current.add_incoming(following, emit.block)
    before.add_incoming(nan, emit.block)
    emit.cbranch(emit.icmp_signed("==", following, I64(0)), done, head)
    emit.position_at_end(done)
    return nan


def run_slices(emit: Emitter, frame):
    """All slices of a frame; 1 when an input holds NaN."""
    kind = ir.FunctionType(I64, [I64, I64]).as_pointer()

    def instruction(index, carried):
        op = emit.add(frame, emit.add(I64(8 * BEGIN), emit.mul(index, I64(8 * WIDTH))))
        return [emit.or_(carried[0], emit.call(emit.inttoptr(emit.field(op, 0), kind), [op, frame]))]

    def move(slot, carried):
        place = emit.add(frame, emit.add(I64(8 * ADDRESSES), emit.shl(slot, I64(3))))
        emit.write(emit.add(emit.read(place, I64), emit.read(emit.add(place, I64(8 * (STRIDES - ADDRESSES))), I64)), place)
        return []

    def one(index, carried):
        carried = emit.loop(emit.field(frame, COUNT), carried, instruction)
        emit.loop(emit.field(frame, SLOTS), [], move)
        return carried

    return emit.loop(emit.field(frame, SLICES), [I64(0)], one)[0]


def python(emit: Emitter, name: str, *arguments):
    """A call of one of CPython's own functions."""
    kind, kinds = PYTHON[name]
    known = emit.module.globals.get(name)
    return emit.call(known or ir.Function(emit.module, ir.FunctionType(kind, kinds), name), arguments)


def run_frame(emit: Emitter, frame, x, y):
    """A call of ``write_run``'s function."""
    return emit.call(function(emit.module, "quantspec_run", 3, write_run), [frame, x, y])


def write_call(emit: Emitter, frame, x, y, release):
    """Runs a frame, other Python threads meanwhile too if ``release``; its result."""
    result = emit.alloca(I64)
    with emit.if_else(release) as (long, short):
        with long:
            thread = python(emit, "PyEval_SaveThread")
            emit.store(run_frame(emit, frame, x, y), result)
            python(emit, "PyEval_RestoreThread", thread)
        with short:
            emit.store(run_frame(emit, frame, x, y), result)
    return emit.load(result)


def write_caller(emit: Emitter, self, arguments, count):
    """CPython's fast calling convention: three integers, of an array of ``count`` objects, to ``run``, and its result to an integer."""
    frame, x, y = (python(emit, "PyLong_AsVoidPtr", emit.field(arguments, i)) for i in range(3))
    released = emit.icmp_signed("!=", emit.field(frame, RELEASE), I64(0))
    return python(emit, "PyLong_FromLong", write_call(emit, frame, x, y, released))


def write_array_caller(emit: Emitter, self, arguments, count):
    """The same for a frame and two arrays in one piece, one to read and one to write; the bytes of the first go to the frame's LENGTH. An error is no object."""
    frame = python(emit, "PyLong_AsVoidPtr", emit.field(arguments, 0))
    x, y = (emit.ptrtoint(emit.alloca(ir.ArrayType(I64, BUFFER_WIDTH)), I64) for _ in range(2))
    result = emit.alloca(I64)
    emit.store(I64(0), result)

    def with_buffer(index: int, view, flags: int, inside: Callable[[], None]) -> None:
        failed = python(emit, "PyObject_GetBuffer", emit.field(arguments, index), view, I32(flags))
        with emit.if_then(emit.icmp_signed("==", failed, I32(0))):
            inside()
            python(emit, "PyBuffer_Release", view)

    def run():
        length = emit.field(x, BUFFER_LENGTH)
        emit.write(length, emit.add(frame, I64(8 * LENGTH)))
        value = write_call(emit, frame, emit.field(x, 0), emit.field(y, 0), emit.icmp_signed(">=", length, I64(LONG_BYTES)))
        emit.store(python(emit, "PyLong_FromLong", value), result)

    with_buffer(1, x, 0, lambda: with_buffer(2, y, WRITABLE, run))
    return emit.load(result)


@functools.cache
def caller() -> Callable[[int, int, int], int]:
    """``run(frame, x, y)`` for Python: addresses of a frame, and of input and output of a program with one of each, otherwise 0, as the slots are filled in already."""
    return callable_from_python("caller", write_caller)


@functools.cache
def array_caller() -> Callable[[int, object, object], int]:
    """``run(frame, x, y)`` for Python: a frame's address, and objects with the buffers that it reads and writes. Raises as they do where they have no such buffer."""
    return callable_from_python("array_caller", write_array_caller)


def callable_from_python(name: str, write: Callable[..., None]) -> Callable:
    """A function of Python's whose body is ``write(emit, self, arguments, count)``."""
    name = f"quantspec_{name}"
    address = machine().address(name, lambda module: function(module, name, 3, write, public=True))
    definition = MethodDef(b"run", address, 0x0080, b"run(frame, x, y): runs a compiled program")  # METH_FASTCALL
    _kept.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return make(ctypes.addressof(definition), None, None)


_kept: list = []  # CPython keeps a pointer to each definition
