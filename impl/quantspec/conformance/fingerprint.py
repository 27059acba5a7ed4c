"""Which choices of chapter 10 a backend makes, found from outside: it is asked what the alternatives answer differently."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import numpy as np
from hypothesis import given

from quantspec.backends.reference import Ours
from quantspec.backends.worker import Worker
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import DIALECTS

from .call import Call
from .draw import CALLS, linear_calls
from .session import Session, Undecided, Violation, answered, number, parts, same

PROBES = 250


@dataclass(frozen=True)
class Place:
    """Where backends choose: the fields of ``Dialect`` that are chosen together, the clause that lists them, and calls that tell them apart.

    The first ``told`` fields are what the place is about; the others only have to be tried with them.
    """

    name: str
    clause: str
    operation: str
    fields: tuple[str, ...]
    probes: Callable[[], list[Call]]
    told: int = 3


@dataclass(frozen=True)
class Choice:
    """What a backend chooses at a place: an alternative (several joined by " or " where each output is that of one, or where none of the probes tells
    them apart), ``other`` with the probe that ruled out the last, or ``not offered``. ``outputs``: how many elements were compared."""

    place: str
    clause: str
    operation: str
    choice: str
    outputs: int = 0
    counterexample: str = ""


@cache
def drawn(operation: str, keep: Callable[[Call], bool] = lambda call: True, wanted: int = PROBES) -> list[Call]:
    """Calls of an operation, the same every time."""
    from .run import drawn_alike, profile

    found: list[Call] = []

    @profile(wanted)
    @given(CALLS[operation])
    def collect(call):
        if keep(call):
            found.append(call)

    with drawn_alike():
        collect()
    return found


def is_per_channel(call: Call) -> bool:
    return "axis" in call.options


def is_per_tensor(call: Call) -> bool:
    return not is_per_channel(call)


def is_symmetric(call: Call) -> bool:
    return call.options["symmetric"]


def is_affine(call: Call) -> bool:
    return not is_symmetric(call)


@cache
def full_range() -> list[Call]:
    """Linear layers whose pairs of products do not fit 16 bits."""
    from .run import drawn_alike, profile

    found: list[Call] = []

    @profile(PROBES // 4)
    @given(linear_calls(largest=127))
    def collect(call):
        x_q, x, w_q, w, bias, y = call.arguments
        if x.qmin == 0:
            found.append(call.with_arguments(np.where(x_q > 99, 255, x_q).astype(np.uint8), x, np.where(w_q > 30, 127, w_q).astype(np.int8), w, bias, y))

    with drawn_alike():
        collect()
    return found


PLACES = (
    Place("quantize", "DIA-QUANTIZE", "quantize", ("quantize_rule",), lambda: drawn("quantize", is_per_tensor)),
    Place("quantize per channel", "DIA-QUANTIZE", "quantize", ("quantize_channels_rule",), lambda: drawn("quantize", is_per_channel)),
    Place("qparams", "DIA-QPARAMS", "qparams", ("qparams_rule",), lambda: drawn("qparams", is_affine)),
    Place("symmetric", "DIA-SYMMETRIC", "qparams", ("symmetric_rule",), lambda: drawn("qparams", is_symmetric)),
    Place("requantize", "DIA-REQUANTIZE", "linear", ("requantize_rule",), lambda: drawn("linear")),
    Place("accumulate", "DIA-ACCUMULATE", "linear", ("accumulate_rule", "requantize_rule"), full_range, 1),
    Place(
        "dynamic", "DIA-DYNAMIC", "linear_dynamic", ("qparams_dynamic_rule", "quantize_dynamic_rule", "output_rule"), lambda: drawn("linear_dynamic")
    ),
    Place("windows", "DIA-WINDOWS", "conv2d", ("windows_rule",), lambda: drawn("conv2d")),
    Place("add", "DIA-ADD", "add", ("add_rule",), lambda: drawn("add")),
    Place("mul", "DIA-MUL", "mul", ("mul_rule",), lambda: drawn("mul")),
    Place("rescale", "DIA-RESCALE", "concat", ("rescale_rule", "quantize_rule"), lambda: drawn("concat"), 1),
    Place("average", "DIA-AVERAGE", "avg_pool2d", ("average_rule",), lambda: drawn("avg_pool2d")),
    Place("mean", "DIA-AVERAGE", "adaptive_avg_pool2d", ("mean_rule",), lambda: drawn("adaptive_avg_pool2d")),
    Place("fold", "DIA-FOLD", "fold_batch_norm", ("fold_rule",), lambda: drawn("fold_batch_norm")),
)


def alternatives(place: Place) -> Iterator[tuple[str, Dialect]]:
    """(name, dialect) of each combination of alternatives that some dialect makes at a place; only what the place is about differs among them."""
    values = [sorted({getattr(rules, field) for rules in DIALECTS.values()}) for field in place.fields]
    for chosen in product(*values):
        yield ", ".join(chosen), replace(DIALECTS["exact"], name=" ".join(chosen), **dict(zip(place.fields, chosen)))


class Under(Ours):
    """Our own arithmetic by rules that have no name among the dialects."""

    def __init__(self, rules: Dialect):
        self._rules = rules


def probe(session: Session, place: Place) -> Choice:
    """Which alternatives give every answer of a backend."""
    asked: list[tuple[int, list[np.ndarray]]] = []
    why = ""
    for index, call in enumerate(place.probes()):
        try:
            asked.append((index, parts(session.answer(call))))
        except Undecided as undecided:
            why = str(undecided)
        except Violation as violation:
            return Choice(place.name, place.clause, place.operation, "other", 0, violation.got)
    if not asked:
        return Choice(place.name, place.clause, place.operation, "not offered", 0, why)
    outputs = sum(part.size for _, answer in asked for part in answer)
    every = dict(alternatives(place))
    # One alternative that gives every answer is what most backends have, and most others are ruled out by the first probes.
    whole = [name for name, rules in every.items() if all(matches(place, rules, index, answer).all() for index, answer in asked)]
    if not whole:
        found = {name: [matches(place, rules, index, answer) for index, answer in asked] for name, rules in every.items()}
        pairs = [(a, b) for a, b in combinations(found, 2) if all((x | y).all() for x, y in zip(found[a], found[b]))]
        if not pairs:
            return Choice(place.name, place.clause, place.operation, "other", outputs, counterexample(place, found, asked))
        whole = list(pairs[0])
    told = dict.fromkeys(", ".join(name.split(", ")[: place.told]) for name in whole)
    return Choice(place.name, place.clause, place.operation, " or ".join(told), outputs)


@cache
def expected(place: Place, rules: Dialect, index: int) -> list[np.ndarray] | None:
    """What some rules answer to a probe of a place; None when they refuse it. Every backend is asked the same probes."""
    try:
        return parts(answered(Under(rules), place.probes()[index]))
    except (ValueError, NotImplementedError):
        return None


def matches(place: Place, rules: Dialect, index: int, answer: list[np.ndarray]) -> np.ndarray:
    """Where the answer to a probe is that of some rules, flat; nowhere when they refuse it."""
    size = sum(part.size for part in answer)
    model = expected(place, rules, index)
    if model is None or [part.shape for part in model] != [part.shape for part in answer]:
        return np.zeros(size, bool)
    return np.concatenate([same(a, b).ravel() for a, b in zip(answer, model)]) if answer else np.zeros(0, bool)


def counterexample(place: Place, fits: dict[str, list[np.ndarray]], asked: list[tuple[int, list[np.ndarray]]]) -> str:
    """The call that ruled out the alternative that lasted longest, with the answer there."""
    from .results import call_text

    first = {name: next(i for i, one in enumerate(found) if not one.all()) for name, found in fits.items()}
    best = max(first, key=first.__getitem__)
    index, answer = asked[first[best]]
    call = place.probes()[index]
    flat = np.concatenate([part.ravel() for part in answer])
    where = int(np.nonzero(~fits[best][first[best]])[0][0])
    return f"{call_text(call)[:400]} gives {number(flat[where])} at element {where}, which {best} does not"


def fingerprint(name: str) -> list[Choice]:
    """The choices of a backend, without being told its dialect. Raises as ``Worker`` does when it cannot be made."""
    with Worker(name) as worker:
        return [
            probe(Session(worker), place)
            if place.operation in worker.operations
            else Choice(place.name, place.clause, place.operation, "not offered", 0, f"{place.operation} is not offered")
            for place in PLACES
        ]


def consistent(choices: list[Choice]) -> list[str]:
    """The dialects of chapter 10 that make all the choices that were found."""
    names = []
    for name, rules in DIALECTS.items():
        if all(fits(choice, rules) for choice in choices):
            names.append(name)
    return names


def fits(choice: Choice, rules: Dialect) -> bool:
    """Whether a dialect makes a choice. What was not offered rules nothing out."""
    if choice.choice == "not offered":
        return True
    place = next(place for place in PLACES if place.name == choice.place)
    return ", ".join(getattr(rules, field) for field in place.fields[: place.told]) in choice.choice.split(" or ")
