"""Runs the checks on a backend and says, clause by clause and operation by operation, what came of them."""

from dataclasses import dataclass, replace

from quantspec.backends.outcome import outcome
from quantspec.backends.protocol import EXACT, dialects
from quantspec.backends.worker import OTHER, Worker

from . import stories
from .call import Call
from .checks import CHECKS, Check
from .draw_bulk import bulk
from .purity import Impure, hold
from .sampling import CHECK_SEED, for_all
from .session import Session, Undecided, Violation, compare, parts, same
from .shrink import TRIES, smallest

EXAMPLES = 60
PURITY = ("linear", "linear_dynamic", "conv2d", "all")
# A backend that hangs costs this many seconds for every call that it hangs on, so the smallest call is looked for with
# few of them.
SECONDS = 20.0
TRIES_OF_HANGS = 3


@dataclass(frozen=True)
class Finding:
    """What a clause says of a backend's operation. ``outcome``: pass, fails, or not offered. ``outputs`` elements were
    looked at, in ``examples`` calls.

    For BAK-DIALECT, ``dialects`` are those that were declared, and ``differ`` counts outputs. A failure has the
    smallest call that was found (``call``), what was ``allowed``, what came out (``got``), and how to see it without us
    (``reproduce``); what is not offered has a ``reason``.
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


def run(name: str, *, examples: int = EXAMPLES, seconds: float = SECONDS) -> list[Finding]:
    """The findings about a backend, by name or ``module:attribute``. Raises as ``Worker`` does when it cannot be
    made."""
    findings = []
    with (
        Worker(name, seconds=seconds) as worker,
        Worker(name, seconds=seconds, threads=2, unwritten=OTHER) as more,
    ):
        for check in CHECKS:
            if check.operation in worker.operations:
                # A state of its own for each check, so that findings do not depend on the checks before.
                session = Session(worker, more_threads=more)
                examine_check = examine_dialect if check.clause == "BAK-DIALECT" else examine
                findings.append(examine_check(check, session, examples))
            else:
                reason = f"{check.operation} is not offered"
                findings.append(Finding(check.clause, check.operation, "not offered", reason=reason))
        findings += [examine_purity(Session(worker), operation) for operation in PURITY]
    return findings


def examine(check: Check, session: Session, examples: int) -> Finding:
    """Draws calls for a check until one breaks its clause, and cuts that one down."""
    reasons: list[str] = []
    broken: list[Violation] = []
    decided = 0

    def holds(call: Call) -> None:
        nonlocal decided
        if broken:  # Hypothesis asks once more, for its own report
            raise broken[0]
        try:
            check.test(session, call)
            decided += 1
        except Undecided as undecided:
            reasons.append(str(undecided))
        except Violation as violation:
            broken.append(violation)
            raise

    try:
        for_all(check.calls, holds, examples=examples, start=CHECK_SEED)
    except Violation as violation:
        return failure(check, session, violation)
    if not decided:
        reason = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "nothing was drawn"
        return Finding(check.clause, check.operation, "not offered", reason=reason)
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
    finding = failure(check, session, worst) if worst else examine(check, session, examples)
    if finding.outcome != "not offered":
        exact = check.operation in EXACT
        declared = ["exact"] if exact else sorted(dialects(session.worker, check.operation))
        finding = replace(finding, dialects=tuple(declared))
    if not outputs and finding.outcome == "pass":
        return finding
    if finding.outcome != "fails":
        outputs = max(outputs, finding.outputs)
    return replace(finding, outputs=outputs, differ=differ)


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

    # The violation names the call that was answered wrongly, which may be a part or another form of the one that was
    # drawn.
    if not breaks(found.call):
        last = found
        return described(check.clause, check.operation, session, found)
    smallest(found.call, breaks, tries)
    return described(check.clause, check.operation, session, last)


def described(
    clause: str, operation: str, session: Session, violation: Violation, before: tuple[Call, ...] = ()
) -> Finding:
    """The finding for a violation that is as small as it gets."""
    text = reproduction(session, [*before, violation.call])
    # Where threads make the difference, it is not the memory that does.
    is_wild = clause not in ("BAK-PLACE", "BAK-PURE") and unwritten(session, violation.call)
    got = "what happened to be in memory that nobody wrote" if is_wild else violation.got
    finding = Finding(clause, operation, "fails", call=violation.call, before=before)
    return replace(finding, allowed=violation.allowed, got=got, reproduce=text)


def unwritten(session: Session, call: Call) -> bool:
    """Whether an answer has memory in it that nobody wrote. The two processes of a session fill theirs with different
    bytes."""
    if session.more_threads is None:
        return False
    answers = [session.ask(call, threads=threads) for threads in (False, True)]
    if any(answer.kind != "value" for answer in answers):
        return False
    one, other = (parts(answer.value) for answer in answers)
    return any(a.shape != b.shape or not same(a, b).all() for a, b in zip(one, other))


def reproduction(session: Session, calls: list[Call]) -> str:
    """One script that makes calls of a backend, one after the other, without us; empty when one of them cannot be
    written down."""
    *earlier, last = calls
    before = {"before": [(call.operation, call.arguments, call.options) for call in earlier]} if earlier else {}
    script = outcome(session.worker, "reproduction", last.operation, *last.arguments, **last.options, **before)
    return str(script.value) if script.kind == "value" else ""


def examine_purity(session: Session, operation: str) -> Finding:
    """BAK-PURE, of one operation on the same weights, or over all operations at once."""
    if operation != "all" and operation not in session.worker.operations:
        return Finding("BAK-PURE", operation, "not offered", reason=f"{operation} is not offered")
    try:
        stories.search(session, operation)
    except Impure as impure:
        return described("BAK-PURE", operation, session, *shortest(session, impure))
    except Undecided as undecided:
        return Finding("BAK-PURE", operation, "not offered", reason=str(undecided))
    return Finding("BAK-PURE", operation, "pass", stories.STORIES if operation == "all" else 1, session.asked)


def shortest(session: Session, impure: Impure) -> tuple[Violation, tuple[Call, ...]]:
    """The violation that ends a story, and the calls before it without those that do not matter, halves first."""
    last: Violation = impure
    before, size = list(impure.story[:-1]), len(impure.story) // 2
    while size:
        for start in range(len(before) - size, -1, -size):
            fewer = before[:start] + before[start + size :]
            try:
                hold(session, [*fewer, impure.call])
            except Impure as still:
                if still.call is impure.call and len(still.story) == len(fewer) + 1:
                    before, last = fewer, still
        size //= 2
    return last, tuple(before)

