"""Faults of the conformance machinery (chapter 11): what is to see that a backend is wrong looks away."""

from faults.fault import Fault

CHECKS, SESSION, PURITY = "conformance.checks", "conformance.session", "conformance.purity"
RUN = "conformance.run"

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
        'compare(call, got[np.isnan(x)], [("", single[np.isnan(x)])])',
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
        'raise Violation(call, "a refusal", f"{parts(got)[0].ravel()[:4].tolist()}", '
        'how=f"takes {what_is_none(call)}")',
        "parts(got)",
    ),
    Fault(
        "groups-held-against-the-whole", CHECKS, ("BAK-GROUPS",),
        "The whole convolution is compared with itself instead of with its groups.",
        'compare(call, whole, [("its groups alone", np.concatenate(pieces, axis=1))])',
        'compare(call, whole, [("", whole)])',
    ),
    Fault(
        "any-range-accepted", CHECKS, ("BAK-RANGE",),
        "Only the zero point is looked at, which is a code in any case.",
        "if not (np.isfinite(scale) and scale > 0 and qmin <= zero_point <= qmax):",
        "if not qmin <= zero_point <= qmax:",
    ),
    Fault(
        "channels-last-not-asked", CHECKS, ("BAK-PLACE",),
        "The layout that most vision kernels work in is left out.",
        'LAYOUTS = ("fortran", "strided", "channels last")', 'LAYOUTS = ("fortran", "strided")',
    ),
    Fault(
        "arrays-arrive-in-c-order", "backends.wire", ("BAK-PLACE",),
        "Arrays are put into C order on their way, so that no backend ever sees another one.",
        "return sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))",
        "return list(range(array.ndim))",
    ),
    Fault(
        "threads-not-asked", CHECKS, ("BAK-PLACE",),
        "The process with more threads is started, and asked nothing.",
        "if session.more_threads is not None:", "if session.more_threads is None:",
    ),
    Fault(
        "small-calls-only", RUN, ("BAK-GROUPS", "BAK-NAN"),
        "What lies beyond ordinary calls is declared and not drawn.",
        "if check.beyond is not None:", "if check.beyond is None:",
    ),
    Fault(
        "groups-by-the-dozen", "conformance.draw_wide", ("BAK-GROUPS",),
        "Wide layers are as wide as the vectors of the machine that they were written on.",
        "WIDE = (96, 100, 101, 104, 127, 128, 129, 200, 255, 256, 257)", "WIDE = (4, 8, 16, 17)",
    ),
    Fault(
        "weights-always-on-zero", "conformance.draw_wide", ("BAK-DIALECT",),
        "Weights have the zero point that symmetric quantization gives them.",
        "generator.choice([-128, -20, -3, -1, 1, 2, 7, 30, 127], w.scale.shape)",
        "generator.choice([0, 0], w.scale.shape)",
    ),
    Fault(
        "groups-on-one-zero-point", "conformance.call", ("BAK-GROUPS",),
        "A group's part of the weights is given a zero point of 0.",
        "points = w.zero_point if w.zero_point.ndim == 0 else w.zero_point[part]", "points = 0",
    ),
    Fault(
        "assertions-passed-over", SESSION, ("BAK-ANSWER",),
        "An internal assertion is an exception, and exceptions are refusals.",
        'if result.kind == "assertion":', 'if result.kind == "assert":',
    ),
    Fault(
        "pairs-in-one-story-only", PURITY, ("BAK-PURE",),
        "All pairs are told in one story, whose beginning primes what comes after.",
        "stories += [list(pair) for pair in pairs if len({call.operation for call in pair}) == 2]",
        "stories += [list(pair) for pair in pairs if not pair]",
    ),
    Fault(
        "first-difference-only", RUN, ("BAK-DIALECT",),
        "A cell has one counterexample, so that what is known hides the rest.",
        "self.violations.setdefault(violation.shape, violation)", 'self.violations.setdefault("", violation)',
    ),
    Fault(
        "known-whatever-its-shape", "conformance.results", ("BAK-DIALECT",),
        "An entry of the known ones explains whatever fails in its cell.",
        "return shape in self.shapes and all(", "return all(",
    ),
    Fault(
        "checksum-of-the-name", "conformance.passed_on", ("BAK-DIALECT",),
        "The checksum is one of what the call is named, whatever the adapter makes of it.",
        "hashlib.sha256(text.encode())", "hashlib.sha256(operation.encode())",
    ),
    Fault(
        "cuts-slip-into-others", RUN, ("BAK-DIALECT",),
        "While a call is cut down, any wrong answer will do, so that every difference ends as the most common one.",
        "if violation.how != found.how or violation.shape in others:", "if not violation.how:",
    ),
    Fault(
        "packed-by-scale-only", "backends.pytorch.engines", ("BAK-PURE",),
        "The adapter finds packed weights by codes and scale, and not by their zero point.",
        "key = prepack, w_q, w.scale, w.zero_point, bias, *map(str, places)",
        "key = prepack, w_q, w.scale, bias, *map(str, places)",
    ),
    Fault(
        "channels-last-made-first", "backends.pytorch.engines", ("BAK-PLACE",),
        "The adapter copies every image to C order before the kernel sees it.",
        "return quantized.contiguous(memory_format=torch.channels_last) if has_channels_last(q) else quantized",
        "return quantized",
    ),
    Fault(
        "channels-last-by-shape", "backends.protocol", ("BAK-PLACE",),
        "Whether channels are last is guessed from there being four axes.",
        "return images.ndim == 4 and not images.flags.c_contiguous and images.transpose(0, 2, 3, 1).flags.c_contiguous",
        "return images.ndim == 4",
    ),
]  # fmt: skip
