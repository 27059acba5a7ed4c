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
from .session import DEAD, Session, Undecided, Violation, compare, parts, same
from .shrink import TRIES, smallest

EXAMPLES = 60
PURITY = ("linear", "linear_dynamic", "conv2d", "all")
# A backend that hangs costs this many seconds for every call that it hangs on, so the smallest call is looked for with
# few of them.
SECONDS = 20.0
TRIES_OF_HANGS = 3
MOST_DEATHS = 3
MOST_CALLS = 2_000  # of the backend, for one smallest call: some clauses take a hundred for each that is tried


@dataclass(frozen=True)
class Finding:
    """What a clause says of a backend's operation. ``outcome``: pass, fails, or not offered. ``outputs`` elements were
    looked at, in ``examples`` calls.

    For BAK-DIALECT, ``dialects`` are those that were declared, and ``differ`` counts outputs. A failure has the
    smallest call that was found (``call``), what was ``allowed``, what came out (``got``), the ``shape`` of the
    difference, and how to see it without us (``reproduce``); what is not offered has a ``reason``.
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
    shape: str = ""


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
                findings += examine(check, session, examples)
            else:
                reason = f"{check.operation} is not offered"
                findings.append(Finding(check.clause, check.operation, "not offered", reason=reason))
        for operation in PURITY:
            findings += examine_purity(Session(worker), operation)
    return findings


class Broken:
    """The first violation of each shape that a check meets."""

    def __init__(self) -> None:
        self.violations: dict[str, Violation] = {}
        self._deaths = 0

    def add(self, violation: Violation) -> None:
        self.violations.setdefault(violation.shape, violation)
        self._deaths += violation.got.startswith(DEAD)

    @property
    def enough(self) -> bool:
        """Whether to stop: the process is started anew for every death, and waited for in every hang."""
        return self._deaths >= MOST_DEATHS or any(v.got.startswith("hung") for v in self.violations.values())


def examine(check: Check, session: Session, examples: int) -> list[Finding]:
    """Draws calls for a check, and cuts down the first of each shape that breaks its clause: a finding for each, or
    one that says that the clause holds."""
    broken = Broken()
    if check.clause == "BAK-DIALECT":
        outputs, differ = compare_bulk(check.operation, session, broken)
    reasons: list[str] = []
    decided = 0

    def holds(call: Call) -> None:
        nonlocal decided
        if broken.enough:
            return
        try:
            check.test(session, call)
            decided += 1
        except Undecided as undecided:
            reasons.append(str(undecided))
        except Violation as violation:
            broken.add(violation)

    for_all(check.calls, holds, examples=examples, start=CHECK_SEED)
    if check.beyond is not None:
        for_all(check.beyond, holds, examples=(examples + 1) // 2, start=CHECK_SEED)
    if broken.violations:
        findings = failures(check, session, list(broken.violations.values()))
    elif decided:
        findings = [Finding(check.clause, check.operation, "pass", decided, session.asked)]
    else:
        reason = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "nothing was drawn"
        return [Finding(check.clause, check.operation, "not offered", reason=reason)]
    if check.clause == "BAK-DIALECT":
        names = ["exact"] if check.operation in EXACT else sorted(dialects(session.worker, check.operation))
        findings = [replace(finding, dialects=tuple(names)) for finding in findings]
        compared = outputs if broken.violations else max(outputs, findings[0].outputs)
        findings[0] = replace(findings[0], outputs=compared, differ=differ)
    return findings


def compare_bulk(operation: str, session: Session, broken: Broken) -> tuple[int, int]:
    """How many of thousands of outputs were compared with the declared dialects, and how many are of none."""
    outputs = differ = 0
    for call in bulk(operation):
        if broken.enough:
            break
        try:
            got = session.answer(call)
            outputs += sum(part.size for part in parts(got))
            compare(call, got, session.allowed(call))
        except Undecided:
            pass
        except Violation as violation:
            broken.add(violation)
            differ += violation.differ
    return outputs, differ


def failures(check: Check, session: Session, found: list[Violation]) -> list[Finding]:
    """A finding for each violation, by the smallest call that shows it; none twice for calls that come down to the same
    shape."""
    findings: dict[str, Finding] = {}
    for violation in found:
        finding = failure(check, session, violation, set(findings))
        findings.setdefault(finding.shape, finding)
    return list(findings.values())


def failure(check: Check, session: Session, found: Violation, others: set[str]) -> Finding:
    """The finding for a violation, by the smallest call whose answer is wrong in the same way and in no shape of the
    others."""
    last, until = found, session.calls + MOST_CALLS
    tries = TRIES_OF_HANGS if found.got.startswith("hung") else TRIES if not others else TRIES // 4
    # A worker that died is started anew, which takes seconds; a copy of one that has answered nothing may die at once.
    dies = found.got.startswith(("crashed", "exited")) and session.death([found.call])

    def breaks(call: Call) -> bool:
        nonlocal last
        if session.calls > until:
            return False
        if dies:
            if death := session.death([call]):
                last = Violation(call, found.allowed, death, how=death.split(" on ")[0])
            return bool(death)
        try:
            check.test(session, call)
        except Violation as violation:
            if violation.how != found.how or violation.shape in others:
                return False
            # What kills a process that has answered nothing may be answered by others, with what lies in their memory.
            if session.death([call]):
                return False
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
    finding = Finding(clause, operation, "fails", call=violation.call, before=before, shape=violation.shape)
    return replace(finding, allowed=violation.allowed, got=got, reproduce=text)


def unwritten(session: Session, call: Call) -> bool:
    """Whether an answer has memory in it that nobody wrote. The two processes of a session fill theirs with different
    bytes."""
    if session.more_threads is None:
        return False
    answers = [session.ask(call, threads=threads) for threads in (False, True)]
    if any(answer.kind != "value" for answer in answers):
        return False
    first, second = (parts(answer.value) for answer in answers)
    return any(a.shape != b.shape or not same(a, b).all() for a, b in zip(first, second))


def reproduction(session: Session, calls: list[Call]) -> str:
    """One script that makes calls of a backend, one after the other, without us; empty when one of them cannot be
    written down."""
    *earlier, last = calls
    before = {"before": [(call.operation, call.arguments, call.options) for call in earlier]} if earlier else {}
    script = outcome(session.worker, "reproduction", last.operation, *last.arguments, **last.options, **before)
    return str(script.value) if script.kind == "value" else ""


def examine_purity(session: Session, operation: str) -> list[Finding]:
    """BAK-PURE, of one operation on the same weights, or over all operations at once."""
    if operation != "all" and operation not in session.worker.operations:
        return [Finding("BAK-PURE", operation, "not offered", reason=f"{operation} is not offered")]
    try:
        impure = stories.search(session, operation)
    except Undecided as undecided:
        return [Finding("BAK-PURE", operation, "not offered", reason=str(undecided))]
    if impure:
        return [described("BAK-PURE", operation, session, *shortest(session, found)) for found in impure]
    return [Finding("BAK-PURE", operation, "pass", stories.STORIES if operation == "all" else 1, session.asked)]


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

