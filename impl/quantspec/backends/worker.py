"""Runs a backend in a process of its own, so that one that crashes, hangs or damages its memory is a result and not the
end of the run.

``Worker(name)`` has the methods that the backend has. Behind them ``server.py`` reads calls from one pipe and writes
results to another. A process that dies is started again by the next call.
"""

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

from . import registry, wire
from .outcome import Corrupted, Crashed, Died, Exited, Hung, Outcome, described, ending
from .protocol import REPRODUCTION, THREADS, BackendError, Dialects, NotOffered, Operation

START_SECONDS = 120.0
# What a worker's new and freed memory is filled with (glibc's malloc.perturb), so that an answer made of memory that
# nobody wrote is the same in every run, and another one in a worker that is told to fill with ``OTHER``.
UNWRITTEN, OTHER = 0xA5, 0x3C
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", THREADS)


class Process:
    """A worker's process with its pipes; it ends when this object goes."""

    def __init__(self, name: str, environment: Mapping[str, str]) -> None:
        self._stderr = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "quantspec.backends.server", name]
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=environment, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        self._input, self._output = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._input.fileno(), False)  # so that one that does not read is one that hangs
        self.end = weakref.finalize(self, end, self._process, self._input, self._output, self._stderr)

    def write(self, frame: bytes, seconds: float) -> None:
        """Sends a frame. TimeoutError or BrokenPipeError where the process does not read."""
        view = memoryview(frame)
        while view:
            if not select.select([], [self._input], [], seconds)[1]:
                raise TimeoutError
            view = view[os.write(self._input.fileno(), view) :]

    def read(self, length: int, deadline: float) -> bytes:
        """So many bytes. TimeoutError behind the deadline, EOFError when there are no more."""
        parts = bytearray()
        while len(parts) < length:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                raise TimeoutError
            part = os.read(self._output.fileno(), min(length - len(parts), 1 << 20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def exit_code(self) -> int | None:
        """The code that it ended with; None when it lives on, which it may do without a pipe."""
        # Closing the pipe and dying are two events.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return self._process.poll()

    def kill(self) -> str:
        """Ends it with its copies; gives the end of what it wrote to stderr."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stderr.seek(max(self._stderr.seek(0, os.SEEK_END) - 2000, 0))
        said = self._stderr.read().decode(errors="replace").strip()
        self.end()
        return said


def end(process: subprocess.Popen[bytes], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
    """Ends a worker and its copies: closed pipes ask it to, and a signal makes it."""
    stdin.close()
    stdout.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stderr.close()


class Worker:
    """A backend in a process of its own; it has ``name``, ``version``, ``dialect`` and the methods that the backend
    has, and no others.

    ``seconds`` is how long a call may take; ``environment`` adds to the entry's; ``threads`` is what the process may
    use, ``unwritten`` the byte in memory that nobody wrote. Raises from the constructor: ImportError when the backend
    is not installed, NotOffered when its peer's build lacks it, BackendError when making it fails, Died.
    """

    name: str
    version: str
    dialect: Dialects | Mapping[str, Dialects]
    operations: list[str]

    def __init__(
        self, name: str, *, seconds: float = 30.0, environment: dict[str, str] | None = None, threads: int = 1,
        unwritten: int = UNWRITTEN,
    ) -> None:
        if reason := registry.why_not_installed(name):
            raise ImportError(f"{name} is {reason}")
        self.seconds, self._entry = seconds, name
        self.wrote = ""  # which argument the last call changed
        self._environment = {
            **os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **watched_memory(unwritten),
            **registry.find(name).environment, **(environment or {}),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }  # fmt: skip
        self._process: Process | None = None
        self.starts = 0
        self._start()

    def __getattr__(self, operation: str) -> Operation:
        if operation in self.__dict__.get("_methods", ()):
            return lambda *arguments, **options: self._call(operation, arguments, options)
        raise AttributeError(f"{type(self).__name__} {self.__dict__.get('_entry')!r} does not offer {operation}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process. A later call starts another."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def _start(self) -> Process:
        process = self._process = Process(self._entry, self._environment)
        self.starts += 1
        try:
            greeting = self._receive(process, lambda: "start-up", START_SECONDS)
            raise_error(greeting)
        except BaseException:
            self.close()
            raise
        # A backend that is known is called by its entry's name, as the same one in another environment is another
        # backend.
        self.name = self._entry if self._entry in registry.ENTRIES else greeting["name"]
        self.version, self.dialect = greeting["version"], greeting["dialect"]
        self.operations = greeting["operations"]
        self._methods = (*self.operations, *([REPRODUCTION] if greeting["reproduces"] else ()))
        return process

    def story(self, calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Outcome]:
        """What comes of calls (operation, arguments, options), one after the other, in a copy of the process from
        before its first call.

        The copy ends with the last answer, so that stories know nothing of each other. Each call may take as long as
        one that is made alone. Raises Died when the copy does not live to its end.
        """
        frame = {"story": [{"operation": o, "arguments": list(a), "options": dict(k)} for o, a, k in calls]}
        words = f"a story of {len(calls)} calls, the last of which is {described(*calls[-1])}"
        process = self._send(frame)
        return [told(self._receive(process, lambda: words, self.seconds), words) for _ in calls]

    def _call(self, operation: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        frame = {"operation": operation, "arguments": list(arguments), "options": options}
        return self._ask(frame, lambda: described(operation, arguments, options))["value"]

    def _send(self, frame: dict[str, Any]) -> Process:
        packed = wire.pack(frame)
        process = self._process or self._start()
        with contextlib.suppress(BrokenPipeError, TimeoutError):  # reading then says what happened
            process.write(packed, self.seconds)
        return process

    def _ask(self, frame: dict[str, Any], words: Callable[[], str]) -> dict[str, Any]:
        self.wrote = ""
        answer = self._receive(self._send(frame), words, self.seconds)
        self.wrote = answer.get("wrote", "")
        raise_error(answer)
        return answer

    def _receive(self, process: Process, call: Callable[[], str], seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        try:
            return cast(dict[str, Any], wire.unpack(lambda length: process.read(length, deadline)))
        except TimeoutError:
            raise self._lost(process, Hung, f"no answer after {seconds:g} s", call()) from None
        except EOFError:
            code = process.exit_code()
            if code is None:
                raise self._lost(process, Corrupted, "the pipe was closed", call()) from None
            raise self._lost(process, Crashed if code < 0 else Exited, ending(code), call()) from None
        except wire.Malformed as error:
            raise self._lost(process, Corrupted, str(error), call()) from None

    def _lost(self, process: Process, kind: type[Died], how: str, call: str) -> Died:
        said = process.kill()
        self._process = None
        return kind(how, call, said)


def watched_memory(byte: int) -> dict[str, str]:
    """The environment in which glibc fills memory that nobody wrote with a byte, and ends a process that wrote beyond
    what it had asked for when it gives that back; its cache of freed blocks, which escapes both, is off. Other C
    libraries ignore it."""
    tunables = f"glibc.malloc.perturb={byte}:glibc.malloc.tcache_count=0"
    checker = checking_library()
    if checker is None:
        return {"GLIBC_TUNABLES": tunables}
    loaded = " ".join(filter(None, (os.environ.get("LD_PRELOAD"), checker)))
    return {"GLIBC_TUNABLES": f"{tunables}:glibc.malloc.check=3", "LD_PRELOAD": loaded}


@functools.cache
def checking_library() -> str | None:
    """glibc's library that checks memory, which lies beside it; None where there is none."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    folders = (Path(line.split(maxsplit=5)[5]).parent for line in maps.splitlines() if line.endswith("/libc.so.6"))
    found = (folder / "libc_malloc_debug.so.0" for folder in folders)
    return next((str(path) for path in found if path.exists()), None)


def told(answer: dict[str, Any], story: str) -> Outcome:
    """What came of a call of a story; raises Died where the copy that told it ended there."""
    if "died" in answer:
        how = answer["died"]
        raise (Exited if how.startswith("exit code") else Crashed)(how, story)
    if "error" in answer:  # it cannot be sent
        return Outcome("error", message=f"{answer['error']}: {answer['message']}")
    return Outcome(**answer)


def raise_error(answer: dict[str, Any]) -> None:
    """Raises what the backend raised, as far as types are shared: NotOffered, ValueError, or BackendError for all
    others."""
    if "error" in answer:
        kind, message = answer["error"], answer["message"]
        if kind == "NotOffered":
            raise NotOffered(message)
        if kind == "ValueError":
            raise ValueError(message)
        raise BackendError(kind, message)
