"""Which choices of chapter 10 a backend makes, found from outside: it is asked what the alternatives answer
differently."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, product

import numpy as np

from quantspec.backends.worker import Worker
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import DIALECTS
from quantspec.progress import progress

from .call import Call, call_text, number
from .draw import CALLS, linear_calls
from .sampling import FULL_RANGE_SEED, PROBE_SEED, sample
from .session import Session, Undecided, Violation, answer_of, parts, reference, same

PROBES = 250
SECONDS = 30.0


@dataclass(frozen=True)
class Place:
    """Where backends choose: the fields of ``Dialect`` that are chosen together, the clause that lists them, and calls
    that tell them apart.

    The first ``subjects`` fields are what the place is about; the others only have to be tried with them.
    """

    name: str
    clause: str
    operation: str
    fields: tuple[str, ...]
    probes: Callable[[], list[Call]]
    subjects: int = 3


@dataclass(frozen=True)
class Choice:
    """What a backend chooses at a place: an alternative (several joined by " or " where each output is that of one, or
    where none of the probes tells them apart), ``other`` with the probe that ruled out the last, or ``not offered``.
    ``outputs``: how many elements were compared."""

    place: str
    clause: str
    operation: str
    choice: str
    outputs: int = 0
    counterexample: str = ""


@cache
def drawn(operation: str) -> list[Call]:
    """Calls of an operation, the same every time."""
    return sample(CALLS[operation], examples=PROBES, start=PROBE_SEED)


def drawn_where(operation: str, wanted: Callable[[Call], bool]) -> list[Call]:
    """Those of them that are wanted."""
    return [call for call in drawn(operation) if wanted(call)]


def is_per_channel(call: Call) -> bool:
    return "axis" in call.options


def is_per_tensor(call: Call) -> bool:
    return not is_per_channel(call)


def is_symmetric(call: Call) -> bool:
    return bool(call.options["symmetric"])


def is_affine(call: Call) -> bool:
    return not is_symmetric(call)


@cache
def full_range() -> list[Call]:
    """Linear layers whose pairs of products do not fit 16 bits."""
    layers = sample(linear_calls(largest=127), examples=PROBES // 4, start=FULL_RANGE_SEED)
    return [with_large_numbers(call) for call in layers if call.arguments[1].qmin == 0]


def with_large_numbers(call: Call) -> Call:
    """A linear layer whose inputs and weights are as large as they can be where they are not small."""
    x_q, x, w_q, *rest = call.arguments
    inputs, weights = np.where(x_q > 99, 255, x_q), np.where(w_q > 30, 127, w_q)
    return call.with_arguments(inputs.astype(np.uint8), x, weights.astype(np.int8), *rest)


PLACES = (
    Place("quantize", "DIA-QUANTIZE", "quantize", ("quantize_rule",), lambda: drawn_where("quantize", is_per_tensor)),
    Place(
        "quantize per channel", "DIA-QUANTIZE", "quantize", ("quantize_channels_rule",),
        lambda: drawn_where("quantize", is_per_channel),
    ),
    Place("qparams", "DIA-QPARAMS", "qparams", ("qparams_rule",), lambda: drawn_where("qparams", is_affine)),
    Place("symmetric", "DIA-SYMMETRIC", "qparams", ("symmetric_rule",), lambda: drawn_where("qparams", is_symmetric)),
    Place("requantize", "DIA-REQUANTIZE", "linear", ("requantize_rule",), lambda: drawn("linear")),
    Place("accumulate", "DIA-ACCUMULATE", "linear", ("accumulate_rule", "requantize_rule"), full_range, 1),
    Place(
        "dynamic", "DIA-DYNAMIC", "linear_dynamic", ("qparams_dynamic_rule", "quantize_dynamic_rule", "output_rule"),
        lambda: drawn("linear_dynamic"),
    ),
    Place("windows", "DIA-WINDOWS", "conv2d", ("windows_rule",), lambda: drawn("conv2d")),
    Place("add", "DIA-ADD", "add", ("add_rule",), lambda: drawn("add")),
    Place("mul", "DIA-MUL", "mul", ("mul_rule",), lambda: drawn("mul")),
    Place("rescale", "DIA-RESCALE", "concat", ("rescale_rule", "quantize_rule"), lambda: drawn("concat"), 1),
    Place("average", "DIA-AVERAGE", "avg_pool2d", ("average_rule",), lambda: drawn("avg_pool2d")),
    Place("mean", "DIA-AVERAGE", "adaptive_avg_pool2d", ("mean_rule",), lambda: drawn("adaptive_avg_pool2d")),
    Place("fold", "DIA-FOLD", "fold_batch_norm", ("fold_rule",), lambda: drawn("fold_batch_norm")),
)  # fmt: skip


def alternatives(place: Place) -> Iterator[tuple[str, Dialect]]:
    """(name, dialect) of each combination of alternatives that some dialect makes at a place; only what the place is
    about differs among them."""
    values = [sorted({getattr(rules, field) for rules in DIALECTS.values()}) for field in place.fields]
    for chosen in product(*values):
        rules = dict(zip(place.fields, chosen))
        yield ", ".join(chosen), replace(DIALECTS["exact"], name=" ".join(chosen), **rules)


def probe(session: Session, place: Place) -> Choice:
    """Which alternatives give every answer of a backend."""
    other = Choice(place.name, place.clause, place.operation, "other")
    asked: list[tuple[int, list[np.ndarray]]] = []
    why = ""
    for index, call in enumerate(place.probes()):
        try:
            asked.append((index, parts(session.answer(call))))
        except Undecided as undecided:
            why = str(undecided)
        except Violation as violation:
            return replace(other, counterexample=violation.got)
    if not asked:
        return not_offered(place, why)
    outputs = sum(part.size for _, answer in asked for part in answer)
    every = dict(alternatives(place))
    # One alternative that gives every answer is what most backends have, and most others are ruled out by the first
    # probes.
    whole = [
        name for name, rules in every.items()
        if all(matches(place, rules, index, answer).all() for index, answer in asked)
    ]  # fmt: skip
    if not whole:
        fitting = {
            name: [matches(place, rules, index, answer) for index, answer in asked] for name, rules in every.items()
        }
        pairs = [
            (a, b) for a, b in combinations(fitting, 2) if all((x | y).all() for x, y in zip(fitting[a], fitting[b]))
        ]
        if not pairs:
            return replace(other, outputs=outputs, counterexample=counterexample(place, fitting, asked))
        whole = list(pairs[0])
    subjects = dict.fromkeys(", ".join(name.split(", ")[: place.subjects]) for name in whole)
    return replace(other, choice=" or ".join(subjects), outputs=outputs)


@cache
def expected(place: Place, rules: Dialect, index: int) -> list[np.ndarray] | None:
    """What some rules answer to a probe of a place; None when they refuse it. Every backend is asked the same
    probes."""
    try:
        return parts(answer_of(reference(rules), place.probes()[index]))
    except (ValueError, NotImplementedError):
        return None


def matches(place: Place, rules: Dialect, index: int, answer: list[np.ndarray]) -> np.ndarray:
    """Where the answer to a probe is that of some rules, flat; nowhere when they refuse it or give another shape, also
    where there is nothing in the answer."""
    size = sum(part.size for part in answer)
    model = expected(place, rules, index)
    if model is None or [part.shape for part in model] != [part.shape for part in answer]:
        return np.zeros(max(size, 1), bool)
    return np.concatenate([same(a, b).ravel() for a, b in zip(answer, model)])


def counterexample(
    place: Place, fitting: dict[str, list[np.ndarray]], asked: list[tuple[int, list[np.ndarray]]]
) -> str:
    """The call that ruled out the alternative that lasted longest, with the answer there."""
    first = {name: next(i for i, fits in enumerate(found) if not fits.all()) for name, found in fitting.items()}
    best = max(first, key=first.__getitem__)
    index, answer = asked[first[best]]
    call = place.probes()[index]
    flat = np.concatenate([part.ravel() for part in answer])
    where = int(np.nonzero(~fitting[best][first[best]])[0][0])
    gives = f"{number(flat[where])} at element {where}" if flat.size else "nothing"
    return f"{call_text(call)[:400]} gives {gives}, which {best} does not"


def fingerprint(name: str, *, seconds: float = SECONDS) -> list[Choice]:
    """The choices of a backend, without being told its dialect, with a progress bar; a call may take so many seconds.
    Raises as ``Worker`` does when it cannot be made."""
    with Worker(name, seconds=seconds) as worker:
        return [
            probe(Session(worker), place)
            if place.operation in worker.operations
            else not_offered(place, f"no method {place.operation}")
            for place in progress(PLACES, "fingerprint")
        ]


def not_offered(place: Place, reason: str) -> Choice:
    """What is said of a place where a backend answers nothing."""
    return Choice(place.name, place.clause, place.operation, "not offered", counterexample=reason)


def consistent(choices: list[Choice]) -> list[str]:
    """The dialects of chapter 10 that make all the choices that were found."""
    return [name for name, rules in DIALECTS.items() if all(makes(choice, rules) for choice in choices)]


def makes(choice: Choice, rules: Dialect) -> bool:
    """Whether a dialect makes a choice. What was not offered rules nothing out."""
    if choice.choice == "not offered":
        return True
    place = next(place for place in PLACES if place.name == choice.place)
    return ", ".join(getattr(rules, field) for field in place.fields[: place.subjects]) in choice.choice.split(" or ")
