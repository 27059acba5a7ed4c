"""Faults of the conformance machinery (chapter 11): what is to see that a backend is wrong looks away."""

from faults.fault import Fault

CHECKS, SESSION, PURITY = "conformance.checks", "conformance.session", "conformance.purity"

FAULTS = [
    Fault(
        "deaths-passed-over", SESSION, ("BAK-ANSWER",),
        "A process that died is taken for one that refused, as a runner that catches everything does.",
        "if result.kind in DEAD:", "if result.kind in ():",
    ),
    Fault(
        "dialect-of-whoever-answers", CHECKS, ("BAK-DIALECT",),
        "The answer is held against itself.",
        "compare(call, session.answer(call), session.allowed(call))",
        'compare(call, session.answer(call), [("", session.answer(call))])',
    ),
    Fault(
        "stories-against-themselves", PURITY, ("BAK-PURE",),
        "The second answer of the same process is compared with its first.",
        "alone = answers[id(call)]", "alone = together",
    ),
    Fault(
        "parts-not-compared", CHECKS, ("BAK-PLACE",),
        "Parts of a call are computed, and nobody looks at them.",
        'compare(part, session.array(part)[: len(expected)], [("", expected)])', "session.array(part)",
    ),
    Fault(
        "written-arguments-not-seen", CHECKS, ("BAK-ARGUMENTS",),
        "The caller looks at its own copy of the arguments, which the backend never had.",
        "if session.worker.wrote:", "if False:",
    ),
    Fault(
        "ends-not-compared", CHECKS, ("BAK-SATURATE", "BAK-INFINITY"),
        "Whatever comes out far beyond the codes is accepted.",
        'compare(call, got, [("", call_ends(call))])', "got.shape",
    ),
    Fault(
        "nan-only-alone", CHECKS, ("BAK-NAN",),
        "A NaN is tried by itself and not in an array.",
        'compare(call, got[np.isnan(x)], [("", np.full(int(np.isnan(x).sum()), single[0], single.dtype))])',
        'compare(call, single, [("", single)])',
    ),
    Fault(
        "nothing-is-fine", CHECKS, ("BAK-EMPTY",),
        "Whatever comes out of empty arrays is accepted.",
        "compare(call, got, session.allowed(call))", "got.shape",
    ),
    Fault(
        "any-scale-accepted", CHECKS, ("BAK-QPARAMS",),
        "A number that comes out is taken for an answer, whatever the scale was.",
        'raise Violation(call, "a refusal", f"{parts(got)[0].ravel()[:4].tolist()}")', "parts(got)",
    ),
    Fault(
        "groups-held-against-the-whole", CHECKS, ("BAK-GROUPS",),
        "The whole convolution is compared with itself instead of with its groups.",
        'compare(call, whole, [("its groups alone", np.concatenate(pieces, axis=1))])',
        'compare(call, whole, [("", whole)])',
    ),
]  # fmt: skip
