"""Runs the checks on a backend and says, clause by clause and operation by operation, what came of them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, Phase, given, settings

from ..backends.worker import Worker, outcome
from . import purity
from .bulk import bulk
from .calls import Call
from .checks import CHECKS, Check
from .session import Session, Undecided, Violation, compare, parts
from .smaller import smallest

EXAMPLES = 60
STORIES, STEPS = 12, 6
# A backend that hangs costs this many seconds for every call that it hangs on, so the smallest call is looked for with few of them.
SECONDS = 20.0
CUTTING_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """What a clause says of a backend's operation. ``outcome``: pass, fails, or not offered. ``outputs`` elements were looked at, in ``examples`` calls.

    A failure has the smallest call that was found (``call``), what was ``allowed``, what came out (``got``), for BAK-DIALECT how many outputs ``differ``,
    and how to see it without us (``reproduce``); what is not offered has a ``reason``.
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


def profile(examples: int) -> settings:
    """Drawn alike every time; small calls are looked for by ``smallest``, which knows what a call is."""
    quiet = list(HealthCheck)
    return settings(max_examples=examples, phases=[Phase.generate], derandomize=True, deadline=None, database=None, suppress_health_check=quiet)


def run(name: str, *, examples: int = EXAMPLES, seconds: float = SECONDS, seen: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """The findings about a backend, by name or ``module:attribute``; ``seen`` is told each as it comes. Raises as ``Worker`` does when it cannot be made."""
    findings = []
    with Worker(name, seconds=seconds) as worker, Worker(name, seconds=seconds, threads=2) as more:
        for check in CHECKS:
            if check.operation in worker.operations:
                # A state of its own for each check, so that findings do not depend on the checks before.
                session = Session(worker, more_threads=more)
                finding = examine_dialect(check, session, examples) if check.clause == "BAK-DIALECT" else examine(check, session, examples)
            else:
                finding = Finding(check.clause, check.operation, "not offered", reason=f"{check.operation} is not offered")
            findings.append(finding)
            seen(finding)
        findings.append(examine_purity(Session(worker)))
        seen(findings[-1])
    return findings


def examine(check: Check, session: Session, examples: int) -> Finding:
    """Draws calls for a check until one breaks its clause, and cuts that one down."""
    said: list[str] = []
    decided = 0

    @profile(examples)
    @given(check.calls)
    def holds(call):
        nonlocal decided
        try:
            check.test(session, call)
            decided += 1
        except Undecided as undecided:
            said.append(str(undecided))

    try:
        holds()
    except Violation as violation:
        return failure(check, session, violation)
    if not decided:
        return Finding(check.clause, check.operation, "not offered", reason=max(set(said), key=said.count) if said else "nothing was drawn")
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
    if not outputs and drawn.outcome == "pass":
        return drawn
    return replace(drawn, outputs=max(outputs, drawn.outputs) if drawn.outcome != "fails" else outputs, differ=differ)


def failure(check: Check, session: Session, found: Violation) -> Finding:
    """The finding for a violation, by the smallest call that shows it."""
    last = found
    hung = found.got.startswith("hung")

    def breaks(call: Call) -> bool:
        nonlocal last
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
    smallest(found.call, breaks, seconds=3 * session.worker.seconds if hung else CUTTING_SECONDS)
    return described(check.clause, check.operation, session, last)


def described(clause: str, operation: str, session: Session, violation: Violation, before: tuple[Call, ...] = ()) -> Finding:
    text = reproduction(session, [*before, violation.call])
    got = "another number every time, as from memory that nobody wrote" if clause == "BAK-EMPTY" and wavers(session, violation.call) else violation.got
    return Finding(clause, operation, "fails", call=violation.call, before=before, allowed=violation.allowed, got=got, reproduce=text)


def wavers(session: Session, call: Call) -> bool:
    """Whether a call is answered now this way, now that: among other calls, which leave something in memory, and in fresh processes."""
    answers = []
    for other in itertools.islice(bulk(call.operation), 12):
        session.ask(other)
        result = session.ask(call)
        answers.append(b"".join(part.tobytes() for part in parts(result.value)) if result.kind == "value" else result.kind)
    return len(set(answers)) > 1


def reproduction(session: Session, calls: list[Call]) -> str:
    """One script that makes calls of a backend, one after the other, without us; empty when one of them cannot be written down."""
    scripts = [outcome(session.worker, "reproduction", call.operation, *call.arguments, **call.options) for call in calls]
    return "\n".join(script.value for script in scripts) if all(script.kind == "value" for script in scripts) else ""


def examine_purity(session: Session) -> Finding:
    """BAK-PURE, over all operations at once."""
    try:
        purity.search(session, settings(profile(STORIES), stateful_step_count=STEPS, phases=[Phase.generate]))
    except purity.Impure as impure:
        last = impure
        told, size = list(impure.story[:-1]), len(impure.story) // 2
        while size:  # without what does not matter, halves first
            for start in range(len(told) - size, -1, -size):
                fewer = told[:start] + told[start + size :]
                try:
                    purity.hold(session, [*fewer, impure.call])
                except purity.Impure as still:
                    if still.call is impure.call:
                        told, last = fewer, still
                except Undecided:
                    pass
            size //= 2
        return described("BAK-PURE", "all", session, last, tuple(told))
    except Undecided as undecided:
        return Finding("BAK-PURE", "all", "not offered", reason=str(undecided))
    return Finding("BAK-PURE", "all", "pass", STORIES)
