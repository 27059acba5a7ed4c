"""Runs the checks on a backend and says, clause by clause and operation by operation, what came of them."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest import mock

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider

from quantspec.backends.protocol import EXACT, dialects
from quantspec.backends.worker import OTHER, Worker, outcome

from . import purity
from .call import Call
from .checks import CHECKS, Check
from .draw_bulk import bulk
from .session import Session, Undecided, Violation, compare, parts, same
from .shrink import smallest

EXAMPLES = 60
STORIES, STEPS = 12, 6
PURITY = ("linear", "linear_dynamic", "conv2d", "all")
# A backend that hangs costs this many seconds for every call that it hangs on, so the smallest call is looked for with few of them.
SECONDS = 20.0
TRIES, TRIES_OF_HANGS = 2000, 3


@dataclass(frozen=True)
class Finding:
    """What a clause says of a backend's operation. ``outcome``: pass, fails, or not offered. ``outputs`` elements were looked at, in ``examples`` calls.

    For BAK-DIALECT, ``dialects`` are those that were declared, and ``differ`` counts outputs. A failure has the smallest call that was found (``call``),
    what was ``allowed``, what came out (``got``), and how to see it without us (``reproduce``); what is not offered has a ``reason``.
    """

    clause: str
    operation: str
    outcome: str
    examples: int = 0
    outputs: int = 0
    call: Call | None = None
    before: tuple[Call, ...] = ()
    allowed: str = ""
    got: str = ""
    differ: int = 0
    reproduce: str = ""
    reason: str = ""
    dialects: tuple[str, ...] = ()


def profile(examples: int) -> settings:
    """Drawn alike every time; small calls are looked for by ``smallest``, which knows what a call is."""
    quiet = list(HealthCheck)
    return settings(max_examples=examples, phases=[Phase.generate], derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


def drawn_alike() -> contextlib.AbstractContextManager:
    """Calls are drawn alike inside, whatever code there is. Else one number in twenty is a constant of some module that happens to be loaded, so that a line
    changed anywhere would change every record."""
    return mock.patch.object(HypothesisProvider, "_maybe_draw_constant", lambda *arguments, **options: None)


def run(name: str, *, examples: int = EXAMPLES, seconds: float = SECONDS, seen: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """The findings about a backend, by name or ``module:attribute``; ``seen`` is told each as it comes. Raises as ``Worker`` does when it cannot be made."""
    findings = []
    with Worker(name, seconds=seconds) as worker, Worker(name, seconds=seconds, threads=2, unwritten=OTHER) as more:
        for check in CHECKS:
            if check.operation in worker.operations:
                # A state of its own for each check, so that findings do not depend on the checks before.
                session = Session(worker, more_threads=more)
                finding = examine_dialect(check, session, examples) if check.clause == "BAK-DIALECT" else examine(check, session, examples)
            else:
                finding = Finding(check.clause, check.operation, "not offered", reason=f"{check.operation} is not offered")
            findings.append(finding)
            seen(finding)
        for operation in PURITY:
            findings.append(examine_purity(Session(worker), operation))
            seen(findings[-1])
    return findings


def examine(check: Check, session: Session, examples: int) -> Finding:
    """Draws calls for a check until one breaks its clause, and cuts that one down."""
    said: list[str] = []
    broken: list[Violation] = []
    decided = 0

    @profile(examples)
    @given(check.calls)
    def holds(call):
        nonlocal decided
        if broken:  # Hypothesis asks once more, for its own report
            raise broken[0]
        try:
            check.test(session, call)
            decided += 1
        except Undecided as undecided:
            said.append(str(undecided))
        except Violation as violation:
            broken.append(violation)
            raise

    try:
        with drawn_alike():
            holds()
    except Violation as violation:
        return failure(check, session, violation)
    if not decided:
        return Finding(check.clause, check.operation, "not offered", reason=max(dict.fromkeys(said), key=said.count) if said else "nothing was drawn")
    return Finding(check.clause, check.operation, "pass", decided, session.asked)


def examine_dialect(check: Check, session: Session, examples: int) -> Finding:
    """BAK-DIALECT: thousands of outputs are compared and counted before single calls are drawn."""
    worst: Violation | None = None
    outputs = differ = 0
    for call in bulk(check.operation):
        try:
            got = session.answer(call)
            outputs += sum(part.size for part in parts(got))
            compare(call, got, session.allowed(call))
        except Undecided:
            pass
        except Violation as violation:
            worst = worst or violation
            differ += violation.differ
    drawn = failure(check, session, worst) if worst else examine(check, session, examples)
    if drawn.outcome != "not offered":
        drawn = replace(drawn, dialects=("exact",) if check.operation in EXACT else tuple(sorted(dialects(session.worker, check.operation))))
    if not outputs and drawn.outcome == "pass":
        return drawn
    return replace(drawn, outputs=max(outputs, drawn.outputs) if drawn.outcome != "fails" else outputs, differ=differ)


def failure(check: Check, session: Session, found: Violation) -> Finding:
    """The finding for a violation, by the smallest call that shows it."""
    last = found
    tries = TRIES_OF_HANGS if found.got.startswith("hung") else TRIES
    # A worker that died is started anew, which takes seconds; a copy of one that has answered nothing may die at once.
    dies = found.got.startswith(("crashed", "exited")) and session.death([found.call])

    def breaks(call: Call) -> bool:
        nonlocal last
        if dies:
            if death := session.death([call]):
                last = Violation(call, found.allowed, death)
            return bool(death)
        try:
            check.test(session, call)
        except Violation as violation:
            last = violation
            return True
        except (Undecided, ValueError, IndexError):  # cut so far that it is no call any more
            return False
        return False

    # The violation names the call that was answered wrongly, which may be a part or another form of the one that was drawn.
    if not breaks(found.call):
        last = found
        return described(check.clause, check.operation, session, found)
    smallest(found.call, breaks, tries)
    return described(check.clause, check.operation, session, last)


def described(clause: str, operation: str, session: Session, violation: Violation, before: tuple[Call, ...] = ()) -> Finding:
    text = reproduction(session, [*before, violation.call])
    # Where threads make the difference, it is not the memory that does.
    wild = clause not in ("BAK-PLACE", "BAK-PURE") and unwritten(session, violation.call)
    got = "what happened to be in memory that nobody wrote" if wild else violation.got
    return Finding(clause, operation, "fails", call=violation.call, before=before, allowed=violation.allowed, got=got, reproduce=text)


def unwritten(session: Session, call: Call) -> bool:
    """Whether an answer has memory in it that nobody wrote. The two processes of a session fill theirs with different bytes."""
    if session.more_threads is None:
        return False
    answers = [session.ask(call, threads=threads) for threads in (False, True)]
    if any(answer.kind != "value" for answer in answers):
        return False
    one, other = (parts(answer.value) for answer in answers)
    return any(a.shape != b.shape or not same(a, b).all() for a, b in zip(one, other))


def reproduction(session: Session, calls: list[Call]) -> str:
    """One script that makes calls of a backend, one after the other, without us; empty when one of them cannot be written down."""
    *earlier, last = calls
    before = {"before": [(call.operation, call.arguments, call.options) for call in earlier]} if earlier else {}
    written = outcome(session.worker, "reproduction", last.operation, *last.arguments, **last.options, **before)
    return written.value if written.kind == "value" else ""


def examine_purity(session: Session, operation: str) -> Finding:
    """BAK-PURE, of one operation on the same weights, or over all operations at once."""
    if operation != "all" and operation not in session.worker.operations:
        return Finding("BAK-PURE", operation, "not offered", reason=f"{operation} is not offered")
    try:
        with drawn_alike():
            purity.search(session, operation, settings(profile(STORIES), stateful_step_count=STEPS, phases=[Phase.generate]))
    except purity.Impure as impure:
        return described("BAK-PURE", operation, session, *shortest(session, impure))
    except Undecided as undecided:
        return Finding("BAK-PURE", operation, "not offered", reason=str(undecided))
    return Finding("BAK-PURE", operation, "pass", STORIES if operation == "all" else 1, session.asked)


def shortest(session: Session, impure: purity.Impure) -> tuple[Violation, tuple[Call, ...]]:
    """The violation that ends a story, and the calls before it without those that do not matter, halves first."""
    last: Violation = impure
    told, size = list(impure.story[:-1]), len(impure.story) // 2
    while size:
        for start in range(len(told) - size, -1, -size):
            fewer = told[:start] + told[start + size :]
            try:
                purity.hold(session, [*fewer, impure.call])
            except purity.Impure as still:
                if still.call is impure.call and len(still.story) == len(fewer) + 1:
                    told, last = fewer, still
        size //= 2
    return last, tuple(told)

