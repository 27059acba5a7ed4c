"""Asks a backend: in its worker, in a fresh process, or with more threads; and what its answers may be."""

from functools import cache
from typing import cast

import numpy as np

from quantspec.backends.outcome import Died, Outcome, described, outcome
from quantspec.backends.protocol import EXACT, TWO_PARTS, Answer, dialects, method
from quantspec.backends.reference import ReferenceBackend
from quantspec.backends.worker import Worker
from quantspec.numerics.dialects.dialect import Dialect

from .call import Call, number
from .shape import difference, kind_of_call

ASSERTION = "an internal assertion"
OTHER_KIND = "another shape or type"
NUMBERS = "biuf"  # kinds of arrays
DEAD = ("crashed", "exited", "hung", "corrupted")


class Undecided(Exception):
    """The backend offers no answer to a call, so that it says nothing about a clause; the message says why."""


class Violation(Exception):
    """An answer that a clause does not allow: ``call`` was asked, ``got`` came out, ``allowed`` is what could have,
    both as text; ``how`` says in what way it is wrong, and ``differ`` counts elements."""

    def __init__(self, call: Call, allowed: str, got: str, *, how: str, differ: int = 1) -> None:
        super().__init__(f"allowed {allowed}, got {got}")
        self.call, self.allowed, self.got, self.how, self.differ = call, allowed, got, how, differ

    @property
    def shape(self) -> str:
        """In what way the answer is wrong, and for which kind of call."""
        kind = kind_of_call(self.call)
        return f"{self.how} ({kind})" if kind else self.how


class Session:
    """One backend under test. ``asked`` counts its answers' elements, so that a clause can say how much was compared;
    ``calls`` counts calls."""

    def __init__(self, worker: Worker, *, more_threads: Worker | None = None) -> None:
        self.worker, self.more_threads = worker, more_threads
        self.asked = self.calls = 0
        self._alone: dict[int, tuple[Call, Outcome | None]] = {}

    def ask(self, call: Call, *, threads: bool = False) -> Outcome:
        """What comes of a call, with ``threads`` in the process that has more of them."""
        self.calls += 1
        backend = self.more_threads if threads else self.worker
        return outcome(backend, call.operation, *call.arguments, **call.options)

    def story(self, calls: list[Call]) -> list[Outcome]:
        """What comes of calls, one after the other, in a process that has answered nothing before. Undecided when no
        such process can be had."""
        try:
            return self.worker.story([(call.operation, call.arguments, call.options) for call in calls])
        except Died as error:
            raise Undecided(str(error)) from None

    def death(self, calls: list[Call]) -> str:
        """How a process that has answered nothing before dies of calls, one after the other, in words; empty when it
        lives."""
        try:
            self.worker.story([(call.operation, call.arguments, call.options) for call in calls])
        except Died as error:
            last = calls[-1]
            return f"{error.kind}: {error.how} on {described(last.operation, last.arguments, last.options)}"
        return ""

    def alone(self, call: Call) -> Outcome | None:
        """What comes of a call in a process that has answered nothing else; None where it dies of it."""
        if id(call) not in self._alone:
            answer = None if self.death([call]) else self.story([call])[0]
            self._alone[id(call)] = call, answer  # with the call, whose id is then no other's
        return self._alone[id(call)][1]

    def answer(self, call: Call, *, threads: bool = False) -> Answer:
        """What a call is answered with. Undecided when it is refused or not offered, Violation when the process does
        not live to answer."""
        result = self.ask(call, threads=threads)
        if result.kind in DEAD:
            raise Violation(call, "an answer or a refusal", result.message, how=result.message.split(" on ")[0])
        if result.kind == "assertion":
            raise Violation(call, "an answer or a refusal", f"{ASSERTION}: {result.message}", how=ASSERTION)
        if result.kind != "value":
            raise Undecided(f"{result.kind}: {result.message}")
        if wrong := other_parts(call.operation, result.value):
            raise Violation(call, wanted_parts(call.operation), wrong, how=OTHER_KIND)
        self.asked += sum(part.size for part in parts(result.value))
        return cast(Answer, result.value)

    def array(self, call: Call) -> np.ndarray:
        """The answer to a call of an operation that gives one array, with as many axes as the first argument has."""
        (array,) = parts(self.answer(call))
        axes = np.ndim(call.arguments[0])
        if array.ndim != axes:
            wrong = f"{array.dtype}{list(array.shape)}"
            raise Violation(call, f"an array of {axes} {'axis' if axes == 1 else 'axes'}", wrong, how=OTHER_KIND)
        return array

    def allowed(self, call: Call) -> list[tuple[str, Answer]]:
        """(dialect, answer) for each dialect that the backend declares for the operation."""
        names = ["exact"] if call.operation in EXACT else sorted(dialects(self.worker, call.operation))
        return [(name, answer_of(reference(name), call)) for name in names]


@cache
def reference(dialect: str | Dialect) -> ReferenceBackend:
    """Our own arithmetic in a dialect, or by rules that have no name."""
    return ReferenceBackend(dialect)


def answer_of(backend: object, call: Call) -> Answer:
    """The answer of a backend in this process, which offers the operation."""
    function = method(backend, call.operation)
    if function is None:
        raise AttributeError(f"{type(backend).__name__} does not offer {call.operation}")
    return function(*call.arguments, **call.options)


def parts(answer: object) -> list[np.ndarray]:
    """An answer as arrays: most are one, qparams and folded layers are two."""
    return [np.asarray(part) for part in answer] if isinstance(answer, (tuple, list)) else [np.asarray(answer)]


def wanted_parts(operation: str) -> str:
    """What an operation is answered with, in words."""
    return "two parts" if operation in TWO_PARTS else "an array of numbers"


def other_parts(operation: str, answer: object) -> str:
    """What an answer is that has another number of parts than the operation's, or parts that are no arrays of numbers,
    in words; empty where it has not."""
    try:
        found = parts(answer)
    except ValueError:  # lists of several lengths
        return "lists that are no array"
    if len(found) != (2 if operation in TWO_PARTS else 1):
        return f"{type(answer).__name__} of {len(found)}" if isinstance(answer, (tuple, list)) else "one part"
    odd = [part.dtype for part in found if part.dtype.kind not in NUMBERS]
    return f"{type(answer).__name__} of type {odd[0]}" if odd else ""


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two arrays of one shape are equal, NaN to NaN."""
    return cast(np.ndarray, (a == b) | ((a != a) & (b != b)))


def compare(call: Call, got: Answer, allowed: list[tuple[str, Answer]]) -> None:
    """Raises Violation unless each element of an answer is one that is allowed, and its shape and type are."""
    counts = {len(parts(answer)) for _, answer in allowed}
    if counts != {len(parts(got))}:
        raise Violation(call, f"{min(counts)} parts", f"{len(parts(got))}", how=OTHER_KIND)
    for index, part in enumerate(parts(got)):
        options = [(name, parts(answer)[index]) for name, answer in allowed]
        shape, kind = options[0][1].shape, options[0][1].dtype
        if part.shape != shape or part.dtype.kind != kind.kind:
            wrong = f"{part.dtype}{list(part.shape)}"
            raise Violation(call, f"{kind}{list(shape)}", wrong, how=OTHER_KIND)
        fits = np.zeros(shape, bool)
        for _, option in options:
            fits |= same(part, option)
        if not fits.all():
            where = tuple(int(i) for i in np.argwhere(~fits)[0])
            numbers = [(name, number(option[where])) for name, option in options]
            choices = dict.fromkeys(f"{value} ({name})" if name else value for name, value in numbers)
            count = int((~fits).sum())
            found = f"{number(part[where])} at {list(where)}, {count} of {fits.size} differ"
            how = difference(part[~fits], [option[~fits] for _, option in options])
            raise Violation(call, f"{' or '.join(choices)} at {list(where)}", found, how=how, differ=count)
