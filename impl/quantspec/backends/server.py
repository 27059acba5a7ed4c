"""A worker's side of the pipe: makes a backend, says what it is, and answers calls until the pipe closes.

``python -m quantspec.backends.server NAME`` is the process that ``Worker(NAME)`` starts.
"""

import contextlib
import functools
import os
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn

import numpy as np

from . import registry, wire
from .outcome import ending, outcome
from .protocol import Backend, Keeps, NotOffered, Reproduces, offers

END = struct.Struct("<i?")  # how a copy ended, and whether it had answered


def serve(name: str, source: BinaryIO, sink: BinaryIO) -> None:
    """Answers the frames of ``source`` on ``sink``. A backend that cannot be made is an answer too, and the last
    one."""

    def answer(work: Callable[[], dict[str, Any]]) -> None:
        try:
            frame = wire.pack(work())
        except Exception as error:
            frame = wire.pack(failure(error))
        sink.write(frame)
        sink.flush()

    try:
        backend = registry.find(name).make()
    except Exception as error:
        message = failure(error)
        return answer(lambda: message)
    answer(lambda: greeting(backend))
    # A process that has answered nothing yet waits to be copied for every story.

    def tell(frame: dict[str, Any]) -> None:
        for told in story(backend, frame["story"]):
            answer(told.copy)

    nursery = Nursery(tell)
    with contextlib.suppress(EOFError):
        while True:
            frame = wire.unpack(lambda length: read_all(source, length))
            if "story" not in frame:
                answer(functools.partial(run, backend, frame))
            elif how := nursery.answer(frame):
                answer(functools.partial(dict, died=how))
    return None


def failure(error: Exception) -> dict[str, Any]:
    """The answer that says what was raised; of the types that a caller knows, whatever kind of one it is."""
    kinds = (kind.__name__ for kind in (NotOffered, ValueError) if isinstance(error, kind))
    return {"error": next(kinds, type(error).__name__), "message": str(error)}


def greeting(backend: Backend) -> dict[str, Any]:
    """What a backend is."""
    return {
        "name": backend.name, "version": backend.version, "dialect": backend.dialect,
        "operations": list(offers(backend)), "reproduces": isinstance(backend, Reproduces),
    }  # fmt: skip


def run(backend: Backend, call: dict[str, Any]) -> dict[str, Any]:
    """The value of a call or what it raised, and which of its arguments it wrote to."""
    before, held = snapshots(call), contents(call["arguments"])
    try:
        answer = {"value": getattr(backend, call["operation"])(*call["arguments"], **call["options"])}
    except Exception as error:
        answer = failure(error)
    changed = [place for place, (array, was) in before.items() if state(array) != was]
    if contents(call["arguments"]) != held:
        changed.append("a list among them")
    return {**answer, "wrote": ", ".join(changed)}


def story(backend: Backend, calls: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What comes of calls, one after the other, each as soon as it is there; the backend keeps what it makes where
    there are several."""
    kept = outcome(backend, "keep") if len(calls) > 1 and isinstance(backend, Keeps) else None
    for call in calls:
        if kept is not None and kept.kind != "value":  # then no call would show what it keeps
            yield vars(replace(kept, message=f"keep: {kept.message}"))
        else:
            yield vars(outcome(backend, call["operation"], *call["arguments"], **call["options"]))


def state(array: np.ndarray) -> tuple[Any, ...]:
    """All that a caller sees of an array."""
    return array.dtype, array.shape, array.tobytes()


def snapshots(call: dict[str, Any]) -> dict[str, tuple[np.ndarray, tuple[Any, ...]]]:
    """The arrays among a call's arguments by where they stand, each with its state now."""
    found: dict[str, tuple[np.ndarray, tuple[Any, ...]]] = {}

    def look(place: str, value: Any) -> None:
        if isinstance(value, np.ndarray):
            found[place] = value, state(value)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                look(f"{place}[{index}]", item)

    for index, value in enumerate(call["arguments"]):
        look(str(index), value)
    return found


def contents(value: Any) -> Any:
    """What lists hold, by identity, which is another one when something in a list was replaced."""
    return [contents(item) for item in value] if isinstance(value, (list, tuple)) else id(value)


class Nursery:
    """A copy of this process, made when it has answered nothing, that copies itself for every story it is given."""

    def __init__(self, respond: Callable[[dict[str, Any]], None]) -> None:
        call_read, self._calls = os.pipe()
        self._ends, end_write = os.pipe()
        if not os.fork():
            os.close(self._calls)
            os.close(self._ends)
            rear(respond, call_read, end_write)
        os.close(call_read)
        os.close(end_write)

    def answer(self, call: dict[str, Any]) -> str:
        """Lets a fresh copy answer, in its own words; or says how it died."""
        frame = memoryview(wire.pack(call))
        while frame:
            frame = frame[os.write(self._calls, frame) :]
        code, answered = END.unpack(os.read(self._ends, END.size))
        return "" if answered else ending(code)


def rear(respond: Callable[[dict[str, Any]], None], call_read: int, end_write: int) -> NoReturn:
    """The copy's life: for each call that comes it makes a copy that answers, and tells how that ended."""
    with contextlib.suppress(EOFError), os.fdopen(call_read, "rb") as calls:
        while True:
            call = wire.unpack(lambda length: read_all(calls, length))
            answered_read, answered_write = os.pipe()
            child = os.fork()
            if not child:
                live(respond, call, answered_write)
            os.close(answered_write)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            os.set_blocking(answered_read, False)  # what the copy started may hold the other end for longer
            answered = b""
            with contextlib.suppress(BlockingIOError):
                answered = os.read(answered_read, 1)
            os.close(answered_read)
            os.write(end_write, END.pack(code, bool(answered)))
    os._exit(0)


def live(respond: Callable[[dict[str, Any]], None], call: dict[str, Any], answered: int) -> NoReturn:
    """The life of a copy's copy: one answer, and a sign that it was given, as a backend may end it with any code."""
    respond(call)
    os.write(answered, b".")
    os._exit(0)


def read_all(source: BinaryIO, length: int) -> bytes:
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
