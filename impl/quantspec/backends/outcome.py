"""What comes of a call, in a worker or in this process: a value, or one of the ways in which there is none."""

import signal
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantspec.numerics.affine import QParams

from .protocol import BackendError, NotOffered, method

INTERNAL = "INTERNAL ASSERT FAILED"  # how torch begins to say so


class Died(Exception):
    """A worker did not live to answer. ``str()`` is the outcome in words: "crashed: SIGFPE on linear(...)"; ``said`` is
    the end of what it wrote to stderr."""

    kind = "died"

    def __init__(self, how: str, call: str, said: str = "") -> None:
        super().__init__(f"{self.kind}: {how} on {call}")
        self.how, self.call, self.said = how, call, said


class Crashed(Died):
    """A signal ended it; ``how`` is the signal's name."""

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


def ending(code: int) -> str:
    """How a process ended, by its code, which is below 0 where it was a signal: "SIGSEGV", or "exit code 3"."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # most real-time signals have no name
        return f"signal {-code}"


@dataclass(frozen=True)
class Outcome:
    """What came of a call. ``kind``: value, refused (a ValueError), not offered, error (another exception), assertion
    (one that says that the backend's own code is at fault), crashed, exited, hung, corrupted. ``value`` is an answer,
    or what another method than an operation's gave."""

    kind: str
    value: Any = None
    message: str = ""


def outcome(backend: object, operation: str, /, *arguments: Any, **options: Any) -> Outcome:
    """Calls an operation of a backend, in a worker or not, and says what came of it. A method that is missing is "not
    offered".

    ``outcome(backend, "reproduction", operation, *arguments, **options)`` is the script of a call, where the backend
    can write one.
    """
    function = method(backend, operation)
    if function is None:
        return Outcome("not offered", message=f"{operation} is not offered")
    try:
        return Outcome("value", function(*arguments, **options))
    except NotOffered as error:
        return Outcome("not offered", message=str(error))
    except Died as error:
        return Outcome(error.kind, message=str(error))
    except ValueError as error:
        return Outcome("refused", message=str(error))
    except Exception as error:
        message = str(error) if isinstance(error, BackendError) else f"{type(error).__name__}: {error}"
        if message.startswith("AssertionError") or INTERNAL in message:
            return Outcome("assertion", message=message.splitlines()[0])
        return Outcome("error", message=message)


def described(operation: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> str:
    """A call in a few words: ``linear(uint8[2, 3], ...)``."""
    words = [*map(word, arguments), *(f"{key}={word(value)}" for key, value in options.items())]
    return f"{operation}({', '.join(words)})"


def word(value: Any) -> str:
    """An argument in a word: arrays by type and shape, grids by what they have one of."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}" if value.ndim else str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(word, value))}]"
    if isinstance(value, QParams):
        if value.axis is None:
            return f"qparams({value.scale:.9g}, {value.zero_point})"
        return f"qparams({value.scale.size} channels)"
    return str(value)
