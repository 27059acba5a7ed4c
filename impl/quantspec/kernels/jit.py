"""LLVM code to machine code, stored between processes.

Only llvmlite is needed, the part of Numba that compiles. Kernels are compiled when a program first needs them, each
for itself, and stored as object files under ``$QUANTSPEC_KERNELS``, or ``quantspec/kernels`` in the user's cache
folder; the name of a file is the hash of all it depends on. A folder that cannot be written to costs time and nothing
else. Code is run only from regular files of the user's own, in folders of the user's own, that nobody else can write
to.
"""

import ctypes
import functools
import hashlib
import os
import stat
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import llvmlite
from llvmlite import binding, ir

from . import cpu
from .emitter import F64, I32, I64, Body, Emitter, Module, Type, function
from .records import Instruction

SomeInstruction = TypeVar("SomeInstruction", bound=Instruction)
PYTHON: dict[str, tuple[Type, list[Type]]] = {  # CPython's own functions, by the types of result and arguments
    "PyLong_AsVoidPtr": (I64, [I64]),
    "PyLong_FromLong": (I64, [I64]),
    "PyFloat_AsDouble": (F64, [I64]),
    "PyEval_SaveThread": (I64, []),
    "PyEval_RestoreThread": (ir.VoidType(), [I64]),
    "PyObject_GetBuffer": (I32, [I64, I64, I32]),
    "PyBuffer_Release": (ir.VoidType(), [I64]),
}
POSIX = "sched_yield", "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "pthread_cond_signal"
LINUX = "sched_getcpu", "sched_getaffinity", "sched_setaffinity"


@functools.cache
def sources() -> bytes:
    """A hash of the source of all machine code, which is this package, and of what it is compiled with and for."""
    digest = hashlib.sha256(f"{llvmlite.__version__} {sys.version} {cpu.target()}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


def folder() -> Path:
    """Where object files are stored."""
    if given := os.environ.get("QUANTSPEC_KERNELS"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantspec" / "kernels"


def code_file(name: str) -> Path:
    """Where the object file of a function is stored."""
    return folder() / f"{name}-{hashlib.sha256(sources() + name.encode()).hexdigest()[:32]}.o"


def stored(path: Path) -> bytes | None:
    """The code in an object file; None where there is none, it is torn, or somebody else could have written it, of
    which one warning tells."""
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    content, why = b"", None
    try:
        why = shared_folder(path.parent)
        if why is None:
            with open(os.open(path, flags), "rb") as file:
                held = os.fstat(file.fileno())
                why = shared(held) if stat.S_ISREG(held.st_mode) else "it is no regular file"
                content = file.read() if why is None else b""
    except FileNotFoundError:
        return None
    except OSError as error:  # a link, and what cannot be read
        why = error.strerror or str(error)
    if why is not None:
        warn_once(path, why)
    # A torn file would take the process with it.
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def shared(held: os.stat_result) -> str | None:
    """Who else could have written a file or may write into a folder; None where nobody."""
    if os.name != "posix":
        return None
    if held.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {held.st_uid}"
    return f"others can write to it (mode {held.st_mode & 0o7777:o})" if held.st_mode & 0o022 else None


def shared_folder(path: Path) -> str | None:
    """Who else can write into a folder, or put another in its place; None where nobody."""
    if (why := shared(path.stat())) is not None:
        return why
    for around in path.resolve().parents:
        held = around.stat()
        if (why := shared(held)) is not None and not held.st_mode & stat.S_ISVTX:
            return f"in {around}: {why}"
    return None


warned: set[int] = set()  # the processes that were, since a fork has its parent's memory


def warn_once(path: Path, why: str) -> None:
    """Warns, once in a process, that kernels are not taken from where they are stored."""
    if os.getpid() not in warned:
        warned.add(os.getpid())
        warnings.warn(f"kernel {path} is ignored and compiled again: {why}", RuntimeWarning, stacklevel=2)


def store(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; a folder that cannot be written to, or that others can write to, is no
    error."""
    try:
        for around in reversed([path.parent, *path.parent.parents]):
            if not around.exists():  # each for the user alone, as ``parents=True`` would not make them
                around.mkdir(mode=0o700, exist_ok=True)
        if shared_folder(path.parent) is not None:
            return
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
    """LLVM's compiler and loader. One per process; everything it loads stays loaded.

    ``emitter``: what writes functions from now on. Only what the usual one writes is optimized, and stored.
    """

    emitter: type[Emitter] = Emitter

    def __init__(self) -> None:
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
        # Never freed, also when the interpreter ends: threads may be in its code then, or ask for more of it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.engine))
        self.lock = threading.Lock()
        self.addresses: dict[str, int] = {}

    def function_address(self, name: str, arguments: int, write: Body) -> int:
        """The address of a function, which ``write(emit, *arguments)`` writes if it was never compiled."""
        name = f"quantspec_{name}" if self.emitter is Emitter else f"quantspec_{name}_{self.emitter.__name__}"
        with self.lock:
            if name not in self.addresses:
                self.engine.add_object_file(binding.ObjectFileRef.from_data(self.code(name, arguments, write)))
                self.engine.finalize_object()
                self.addresses[name] = self.engine.get_function_address(name)
            return self.addresses[name]

    def code(self, name: str, arguments: int, write: Body) -> bytes:
        """The object file with the function, from the store or compiled and stored."""
        if self.emitter is not Emitter:
            return self.compiled(name, arguments, write)
        path = code_file(name)
        if (code := stored(path)) is not None:
            return code
        code = self.compiled(name, arguments, write)
        store(path, hashlib.sha256(code).digest() + code)
        return code

    def compiled(self, name: str, arguments: int, write: Body) -> bytes:
        """The object file with the function, compiled."""
        module = Module(name, self.emitter)
        module.triple = binding.get_default_triple()
        function(module, name, arguments, write, public=True)
        parsed = binding.parse_assembly(str(module))
        parsed.verify()
        options = binding.create_pipeline_tuning_options(speed_level=3 if self.emitter is Emitter else 0)
        options.loop_vectorization = True
        builder = binding.create_pass_builder(self.machine, options)
        builder.getModulePassManager().run(parsed, builder)
        code: bytes = self.machine.emit_object(parsed)
        return code


@functools.cache
def machine() -> Machine:
    return Machine()


@dataclass(frozen=True)
class Kernel(Generic[SomeInstruction]):
    """A kernel: by which kind of instruction it is told what to do, and what writes its body, ``write(emit, op,
    frame)``.

    The body's value, if any, is 1 when an input holds NaN.
    """

    name: str
    instruction: type[SomeInstruction]
    write: Body

    @property
    def address(self) -> int:
        """Where its machine code is."""
        return machine().function_address(self.name, 2, self.write)

    def bound(self, instruction: SomeInstruction) -> SomeInstruction:
        """The instruction, which now names this kernel."""
        instruction.kernel = self.address
        return instruction
