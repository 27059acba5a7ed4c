"""Runs a backend in a process of its own, so that one that crashes, hangs or damages its memory is a result and not the end of the run.

``Worker(name)`` has the methods that the backend has. Behind them ``python -m quantspec.backends.worker NAME`` reads calls from one pipe and writes results to
another. A process that dies is started again by the next call.
"""

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import registry, wire
from .protocol import KEEP, REPRODUCTION, BackendError, NotOffered, offers

START_SECONDS = 120.0
THREADS = "QUANTSPEC_THREADS"
# What a worker's new and freed memory is filled with (glibc's malloc.perturb), so that an answer made of memory that nobody wrote is the same in every run,
# and another one in a worker that is told to fill with ``OTHER``.
UNWRITTEN, OTHER = 0xA5, 0x3C
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", THREADS)


class Died(Exception):
    """The worker did not live to answer. ``str()`` is the outcome in words: "crashed: SIGFPE on linear(...)"."""

    kind = "died"

    def __init__(self, how: str, call: str, said: str = ""):
        super().__init__(f"{self.kind}: {how} on {call}")
        self.how, self.call, self.said = how, call, said


class Crashed(Died):
    """A signal ended it; ``how`` is the signal's name. ``said`` is the end of what it wrote to stderr, here as in the others."""

    kind = "crashed"


class Exited(Died):
    """It ended itself; ``how`` is "exit code 3"."""

    kind = "exited"


class Hung(Died):
    """It did not answer in time and was ended; ``how`` is "no answer after 30 s"."""

    kind = "hung"


class Corrupted(Died):
    """What it answered is no answer, and it was ended."""

    kind = "corrupted"


@dataclass(frozen=True)
class Outcome:
    """What came of a call. ``kind``: value, refused (a ValueError), not offered, error (another exception), crashed, exited, hung, corrupted."""

    kind: str
    value: Any = None
    message: str = ""


def outcome(backend: object, operation: str, /, *arguments, **options) -> Outcome:
    """Calls an operation of a backend, in a worker or not, and says what came of it. A method that is missing is "not offered".

    ``outcome(backend, "reproduction", operation, *arguments, **options)`` is the script of a call, where the backend can write one.
    """
    method = getattr(backend, operation, None)
    if method is None:
        return Outcome("not offered", message=f"{operation} is not offered")
    try:
        return Outcome("value", method(*arguments, **options))
    except NotOffered as error:
        return Outcome("not offered", message=str(error))
    except Died as error:
        return Outcome(error.kind, message=str(error))
    except ValueError as error:
        return Outcome("refused", message=str(error))
    except Exception as error:
        return Outcome("error", message=str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}")


class Worker:
    """A backend in a process of its own; it has ``name``, ``version``, ``dialect`` and the methods that the backend has, and no others.

    ``seconds`` is how long a call may take; ``environment`` adds to the entry's; ``threads`` is what the process may use, ``unwritten`` the byte
    in memory that nobody wrote. Raises from the constructor: ImportError when the backend is not installed, NotOffered when its peer's build lacks it,
    BackendError when making it fails, Died.
    """

    def __init__(self, name: str, *, seconds: float = 30.0, environment: dict[str, str] | None = None, threads: int = 1, unwritten: int = UNWRITTEN):
        if reason := registry.why_not_installed(name):
            raise ImportError(f"{name} is {reason}")
        self.seconds, self._wanted = seconds, name
        self.wrote = ""  # which argument the last call changed
        self._environment = {
            **os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "GLIBC_TUNABLES": filled(unwritten), **registry.find(name).environment, **(environment or {}),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }  # fmt: skip
        self._process: subprocess.Popen | None = None
        self.starts = 0
        self._start()

    def __getattr__(self, operation: str):
        if operation in self.__dict__.get("_methods", ()):
            return lambda *arguments, **options: self._call(operation, arguments, options)
        raise AttributeError(f"{type(self).__name__} {self.__dict__.get('_wanted')!r} does not offer {operation}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process. A later call starts another."""
        if self._process is not None:
            self._finalizer()
            self._process = None

    def _start(self) -> None:
        self._stderr = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "quantspec.backends.worker", self._wanted]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, env=self._environment, bufsize=0, start_new_session=True)
        os.set_blocking(process.stdin.fileno(), False)  # so that one that does not read is one that hangs
        self._process, self.starts = process, self.starts + 1
        self._finalizer = weakref.finalize(self, end, process, self._stderr)
        try:
            hello = self._receive(lambda: "start-up", START_SECONDS)
            raise_error(hello)
        except BaseException:
            self.close()
            raise
        # A backend that is known is called by its entry's name, as the same one in another environment is another backend.
        self.name = self._wanted if self._wanted in registry.ENTRIES else hello["name"]
        self.version, self.dialect = hello["version"], hello["dialect"]
        self.operations = hello["operations"]
        self._methods = (*self.operations, *([REPRODUCTION] if hello["reproduces"] else ()))

    def story(self, calls: list[tuple[str, tuple, dict]]) -> list[Outcome]:
        """What comes of calls (operation, arguments, options), one after the other, in a copy of the process from before its first call.

        The copy ends with the last answer, so that stories know nothing of each other. Raises Died when the copy does not live to its end.
        """
        frame = {"story": [{"operation": o, "arguments": list(a), "options": dict(k)} for o, a, k in calls]}
        answers = self._ask(frame, lambda: f"a story of {len(calls)} calls, the last of which is {described(*calls[-1])}")
        return [Outcome(**answer) for answer in answers["value"]]

    def _call(self, operation: str, arguments: tuple, options: dict) -> Any:
        frame = {"operation": operation, "arguments": list(arguments), "options": options}
        return self._ask(frame, lambda: described(operation, arguments, options))["value"]

    def _ask(self, frame: dict, words: Callable[[], str]) -> dict:
        packed = wire.pack(frame)
        if self._process is None:
            self._start()
        with contextlib.suppress(BrokenPipeError, TimeoutError):  # reading then says what happened
            self._send(packed)
        answer = self._receive(words, self.seconds)
        self.wrote = answer.get("wrote", "")
        raise_error(answer)
        return answer

    def _send(self, frame: bytes) -> None:
        pipe, view = self._process.stdin, memoryview(frame)
        while view:
            if not select.select([], [pipe], [], self.seconds)[1]:
                raise TimeoutError
            view = view[os.write(pipe.fileno(), view) :]

    def _receive(self, call: Callable[[], str], seconds: float) -> dict:
        output, deadline = self._process.stdout, time.monotonic() + seconds

        def read(length: int) -> bytes:
            parts = bytearray()
            while len(parts) < length:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([output], [], [], left)[0]:
                    raise TimeoutError
                part = os.read(output.fileno(), min(length - len(parts), 1 << 20))
                if not part:
                    raise EOFError
                parts += part
            return bytes(parts)

        try:
            return wire.unpack(read)
        except TimeoutError:
            raise self._lost(Hung, f"no answer after {seconds:g} s", call()) from None
        except EOFError:
            # Closing the pipe and dying are two events. It is ended if it should live on without a pipe.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            code = self._process.poll()
            if code is None:
                raise self._lost(Corrupted, "the pipe was closed", call()) from None
            if code < 0:
                raise self._lost(Crashed, signal.Signals(-code).name, call()) from None
            raise self._lost(Exited, f"exit code {code}", call()) from None
        except wire.Malformed as error:
            raise self._lost(Corrupted, str(error), call()) from None

    def _lost(self, kind: type[Died], how: str, call: str) -> Died:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stderr.seek(max(self._stderr.seek(0, os.SEEK_END) - 2000, 0))
        said = self._stderr.read().decode(errors="replace").strip()
        self.close()
        return kind(how, call, said)


def end(process: subprocess.Popen, stderr) -> None:
    """Ends a worker and its copies: closed pipes ask it to, and a signal makes it."""
    process.stdin.close()
    process.stdout.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stderr.close()


def filled(byte: int) -> str:
    """The tunables that make glibc fill memory; its cache of freed blocks, which escapes that, is off. Other C libraries ignore them."""
    return f"glibc.malloc.perturb={byte}:glibc.malloc.tcache_count=0"


def raise_error(answer: dict) -> None:
    """Raises what the backend raised, as far as types are shared: NotOffered, ValueError, or BackendError for all others."""
    if "error" in answer:
        kind, message = answer["error"], answer["message"]
        if kind == "NotOffered":
            raise NotOffered(message)
        if kind == "ValueError":
            raise ValueError(message)
        if kind == "Died":
            raise (Exited if message.startswith("exit code") else Crashed)(message, "a story")
        raise BackendError(kind, message)


def described(operation: str, arguments, options) -> str:
    """A call in a few words: ``linear(uint8[2, 3], ...)``."""

    def word(value) -> str:
        if isinstance(value, np.ndarray):
            return f"{value.dtype}{list(value.shape)}" if value.ndim else str(value)
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(word, value))}]"
        if hasattr(value, "zero_point"):
            one = value.axis is None
            return f"qparams({value.scale:.9g}, {value.zero_point})" if one else f"qparams({value.scale.size} channels)"
        return str(value)

    words = [*map(word, arguments), *(f"{key}={word(value)}" for key, value in options.items())]
    return f"{operation}({', '.join(words)})"


def threads() -> int:
    """How many threads an adapter is to use in this process: what the worker was told, and 1 outside of one."""
    return int(os.environ.get(THREADS, "1"))


def serve(name: str, source, sink) -> None:
    """The worker's side: says what the backend is, then answers calls until the pipe closes."""

    def answer(work) -> None:
        try:
            frame = wire.pack(work())
        except Exception as error:
            frame = wire.pack({"error": type(error).__name__, "message": str(error)})
        sink.write(frame)
        sink.flush()

    backend = None

    def hello() -> dict:
        nonlocal backend
        backend = registry.find(name).make()
        told = {"name": backend.name, "version": backend.version, "dialect": backend.dialect, "operations": list(offers(backend))}
        return told | {"reproduces": callable(getattr(backend, REPRODUCTION, None))}

    def run(call: dict) -> dict:
        before = snapshots(call)
        value = getattr(backend, call["operation"])(*call["arguments"], **call["options"])
        changed = [place for place, (array, copy) in before.items() if array.tobytes() != copy]
        return {"value": value, "wrote": ", ".join(changed)}

    def tell(story: list[dict]) -> dict:
        if len(story) > 1 and hasattr(backend, KEEP):
            backend.keep()
        return {"value": [vars(outcome(backend, c["operation"], *c["arguments"], **c["options"])) for c in story]}

    answer(hello)
    # A process that has answered nothing yet waits to be copied for every story.
    nursery = Nursery(lambda call: answer(lambda: tell(call["story"]))) if backend is not None else None
    with contextlib.suppress(EOFError):
        while backend is not None:
            call = wire.unpack(lambda length: read_all(source, length))
            if "story" not in call:
                answer(lambda call=call: run(call))
            elif died := nursery.answer(call):
                answer(lambda how=died: {"error": "Died", "message": how})


def snapshots(call: dict) -> dict[str, tuple[np.ndarray, bytes]]:
    """The arrays among a call's arguments by where they stand, each with its bytes now."""
    found: dict[str, tuple[np.ndarray, bytes]] = {}

    def look(place: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            found[place] = value, value.tobytes()
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                look(f"{place}[{index}]", item)

    for index, value in enumerate(call["arguments"]):
        look(str(index), value)
    return found


class Nursery:
    """A copy of this process, made when it has answered nothing, that copies itself for every story it is given."""

    def __init__(self, respond: Callable[[dict], None]):
        call_read, self._calls = os.pipe()
        self._ends, end_write = os.pipe()
        if os.fork():
            os.close(call_read)
            os.close(end_write)
            return
        os.close(self._calls)
        os.close(self._ends)
        with contextlib.suppress(EOFError), os.fdopen(call_read, "rb") as calls:
            while True:
                call = wire.unpack(lambda length: read_all(calls, length))
                child = os.fork()
                if not child:
                    respond(call)
                    os._exit(0)
                os.write(end_write, struct.pack("<i", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
        os._exit(0)

    def answer(self, call: dict) -> str:
        """Lets a fresh copy answer, in its own words; or says how it died."""
        frame = memoryview(wire.pack(call))
        while frame:
            frame = frame[os.write(self._calls, frame) :]
        (code,) = struct.unpack("<i", os.read(self._ends, 4))
        return "" if code == 0 else signal.Signals(-code).name if code < 0 else f"exit code {code}"


def read_all(source, length: int) -> bytes:
    """So many bytes, or EOFError."""
    data = source.read(length)
    if len(data) < length:
        raise EOFError
    return data


def main() -> None:
    """Serves on what were stdin and stdout. Whatever a backend prints goes to stderr instead."""
    warnings.simplefilter("ignore")
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.argv[1], source, sink)


if __name__ == "__main__":
    main()
