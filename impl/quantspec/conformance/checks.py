"""The checks: for a clause and an operation, which calls to draw and what of their answers must hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from quantspec.backends.protocol import OPERATIONS

from .call import Call, number, of_outputs
from .draw import CALLS, byte_ends
from .draw_special import (
    EMPTY,
    FAR,
    GROUPED,
    NANS,
    PER_TENSOR,
    emptied,
    everything,
    far,
    infinite,
    no_grid,
    on_one_grid,
    with_nan,
    zeros,
)  # fmt: skip
from .draw_wide import (
    BEYOND,
    PAST_VECTORS,
    extreme_inputs,
    many_groups,
    nan_in_channels,
    off_zero,
    ranges,
)
from .session import OTHER_KIND, Session, Undecided, Violation, compare, parts

Test = Callable[[Session, Call], None]
Pick = Callable[[np.ndarray], np.ndarray]
LAYOUTS = ("fortran", "strided", "channels last")


@dataclass(frozen=True)
class Check:
    """A clause held against one operation. ``test`` raises Violation, or Undecided where the backend offers nothing to
    decide by. ``beyond`` are calls of other kinds, half as many, drawn after the ordinary ones."""

    clause: str
    operation: str
    calls: st.SearchStrategy[Call]
    test: Test
    beyond: st.SearchStrategy[Call] | None = None


def dialect(session: Session, call: Call) -> None:
    """BAK-DIALECT."""
    compare(call, session.answer(call), session.allowed(call))


def arguments_kept(session: Session, call: Call) -> None:
    """BAK-ARGUMENTS: the worker looks at its arguments before and after."""
    try:
        session.answer(call)
    except Undecided:
        if not session.worker.wrote:
            raise
    if session.worker.wrote:
        got = f"argument {session.worker.wrote} was written to"
        raise Violation(call, "arguments as they were", got, how="written to")


def place(session: Session, call: Call) -> None:
    """BAK-PLACE: the elements alone, in other layouts, and with more threads."""
    whole = session.array(call)
    for part, pick in alone(call):
        expected = pick(whole)
        compare(part, session.array(part)[: len(expected)], [("", expected)])
    for layout in LAYOUTS:
        other = in_layout(call, layout)
        if other is not None:
            compare(other, session.answer(other), [("", whole)])
    if session.more_threads is not None:
        compare(call, session.answer(call, threads=True), [("", whole)])


def alone(call: Call) -> Iterator[tuple[Call, Pick]]:
    """Calls whose answers begin with parts of the call's answer, or with several of it, each with the function that
    makes that from the whole."""
    x, *rest = call.arguments
    if call.operation in ("quantize", "dequantize"):
        axis = call.options.get("axis")
        last = x.shape[-1]
        for i in sorted({0, last // 2, last - 1}):
            yield call.with_arguments(x[..., i : i + 1], *rest), at(..., slice(i, i + 1))
        if axis is None:
            there_and_back = call.with_arguments(np.concatenate([x, x[::-1]]), *rest)
            yield there_and_back, lambda whole: np.concatenate([whole, whole[::-1]])
    elif call.operation in ("linear", "conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
        for i in sorted({0, len(x) - 1}):
            yield call.with_arguments(x[i : i + 1], *rest), at(slice(i, i + 1))
        three_times = call.with_arguments(np.concatenate([x, x, x]), *rest)
        yield three_times, lambda whole: np.concatenate([whole, whole, whole])
        if call.operation.endswith("pool2d"):
            for i in sorted({0, x.shape[1] - 1}):
                yield call.with_arguments(x[:, i : i + 1], *rest), at(slice(None), slice(i, i + 1))
        if call.operation == "linear":
            x_grid, w_q, w, bias, y = rest
            for j in sorted({0, len(w_q) // 2, len(w_q) - 1}):
                part = slice(j, j + 1)
                its_bias = None if bias is None else bias[part]
                one_output = call.with_arguments(x, x_grid, w_q[part], of_outputs(w, part), its_bias, y)
                yield one_output, at(slice(None), slice(j, j + 1))
    elif call.operation == "linear_dynamic":
        # With the ends in a row of their own, every row has the range that it had.
        ends = np.full((1, x.shape[1]), x.min(), np.float32)
        ends[0, -1] = x.max()
        yield call.with_arguments(np.concatenate([x, ends]), *rest), at(...)
    else:
        assert call.operation in ("add", "mul")
        a, b = x, rest[1]
        for i in sorted({0, a.shape[1] - 1}):
            one_channel = call.with_arguments(a[:, i : i + 1], rest[0], b[:, i : i + 1], *rest[2:])
            yield one_channel, at(slice(None), slice(i, i + 1))


def at(*index: Any) -> Pick:
    """Picks a part of an array."""
    return lambda whole: whole[index]


def in_layout(call: Call, layout: str) -> Call | None:
    """The call with its arrays of more than one axis in Fortran order, all arrays as every second element of larger
    ones, or its images and windows with channels last in memory; None where it has none."""

    def other(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim and value.size:
            if layout == "channels last":
                return channels_last(value) if value.ndim == 4 else value
            if layout == "fortran":
                return np.asfortranarray(value)
            return np.repeat(value, 2, axis=-1)[..., ::2]
        return value

    if layout == "channels last" and not any(np.ndim(value) == 4 for value in call.arguments[:1]):
        return None
    return replace(call, arguments=tuple(other(value) for value in call.arguments))


def channels_last(images: np.ndarray) -> np.ndarray:
    """The same images, with the channels of a position beside each other in memory."""
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def saturates(session: Session, call: Call) -> None:
    """BAK-SATURATE: drawn calls lie so far beyond the codes that every dialect has the end there."""
    if not is_far(call):  # cut down so far that it is not
        return
    got = session.array(call)
    compare(call, got, [("", call_ends(call))])


def is_far(call: Call) -> bool:
    """Whether every result of a call lies at least 512 steps from zero, so beyond the codes of a byte."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        if call.operation == "quantize":
            x, scale, _ = call.arguments
            steps = np.abs(x.astype(np.float64) / float(scale)) if np.ndim(scale) == 0 else np.zeros(1)
        elif call.operation == "linear":
            x_q, x, w_q, w, bias, y = call.arguments
            sums = (x_q.astype(np.int64) - int(x.zero_point)) @ w_q.astype(np.int64).T
            unit = float(x.scale) * np.max(w.scale).astype(float) / float(y.scale)
            steps = np.abs(sums * unit) if bias is None else np.zeros(1)
        else:
            a_q, a, b_q, b, y = call.arguments
            terms = (a_q, a), (b_q, b)
            left, right = ((q.astype(np.float64) - int(grid.zero_point)) * float(grid.scale) for q, grid in terms)
            steps = np.abs((left + right if call.operation == "add" else left * right) / float(y.scale))
    return bool(steps.size and (steps >= 512).all())


def call_ends(call: Call) -> np.ndarray:
    """The ends that a call of ``far`` must give."""
    if call.operation == "quantize":
        x, *_ = call.arguments
        kind = np.uint8 if call.options["qmin"] >= 0 else np.int8
        return high_or_low(x, call.options["qmax"], call.options["qmin"]).astype(kind)
    if call.operation == "linear":
        x_q, x, w_q, _, _, y = call.arguments
        sums = (x_q.astype(np.int64) - int(x.zero_point)) @ w_q.astype(np.int64).T
        lowest = int(y.zero_point) if call.options.get("relu") else y.qmin
        return high_or_low(sums, y.qmax, lowest).astype(y.dtype)
    a_q, a, b_q, b, y = call.arguments
    left, right = (q.astype(np.int64) - int(grid.zero_point) for q, grid in ((a_q, a), (b_q, b)))
    total = left * float(a.scale) + right * float(b.scale) if call.operation == "add" else left * right
    return high_or_low(total, y.qmax, y.qmin).astype(y.dtype)


def high_or_low(real: np.ndarray, high: int, low: int) -> np.ndarray:
    """The one end where values are above 0, the other elsewhere."""
    return np.where(real > 0, high, low)


def infinities(session: Session, call: Call) -> None:
    """BAK-INFINITY."""
    saturates(session, call)


def nan(session: Session, call: Call) -> None:
    """BAK-NAN: a NaN of any kind, alone and anywhere, gets one code, or one in each channel."""
    x, scale, zero_point = call.arguments
    try:
        got = session.array(call)
    except Undecided:
        return  # refused
    if got.shape != x.shape:
        raise Violation(call, f"codes{list(x.shape)}", f"{got.dtype}{list(got.shape)}", how=OTHER_KIND)
    if "axis" in call.options:  # each channel's own
        alone = np.repeat(NANS[:1], len(x)).reshape(-1, 1)
    else:
        alone = NANS[:1]
    single = np.broadcast_to(session.array(call.with_arguments(alone, scale, zero_point)), x.shape)
    compare(call, got[np.isnan(x)], [("", single[np.isnan(x)])])


def empty(session: Session, call: Call) -> None:
    """BAK-EMPTY."""
    try:
        got = session.answer(call)
    except Undecided:
        return  # refused, or not offered
    compare(call, got, session.allowed(call))


def refuses(session: Session, call: Call) -> None:
    """BAK-QPARAMS."""
    if is_grid(call):  # cut down so far that it is one
        return
    try:
        got = session.answer(call)
    except Undecided:
        return
    raise Violation(call, "a refusal", f"{parts(got)[0].ravel()[:4].tolist()}", how=f"takes {what_is_none(call)}")


def what_is_none(call: Call) -> str:
    """Whether it is the scale that describes no grid or the zero point."""
    scale = call.arguments[1]
    return "the zero point" if np.all(np.isfinite(scale) & (scale > 0)) else "the scale"


def is_grid(call: Call) -> bool:
    """Whether a call's scale and zero point describe a grid of its codes."""
    x, scale, zero_point, *_ = call.arguments
    qmin, qmax = (call.options["qmin"], call.options["qmax"]) if call.operation == "quantize" else byte_ends(x)
    return bool(np.all(np.isfinite(scale) & (scale > 0)) and np.all((zero_point >= qmin) & (zero_point <= qmax)))


def range_has_a_grid(session: Session, call: Call) -> None:
    """BAK-RANGE."""
    try:
        scale, zero_point = parts(session.answer(call))
    except Undecided:
        return  # refused, or not offered
    qmin, qmax = call.options["qmin"], call.options["qmax"]
    if not (np.isfinite(scale) and scale > 0 and qmin <= zero_point <= qmax):
        got = f"{number(scale)}, {number(zero_point)}"
        how = "a scale that is none" if qmin <= zero_point <= qmax else "a zero point that is no code"
        allowed = f"a finite scale above 0 and a zero point from {qmin} to {qmax}, or a refusal"
        raise Violation(call, allowed, got, how=how)


def groups(session: Session, call: Call) -> None:
    """BAK-GROUPS: the whole convolution against those of its groups."""
    x_q, x, w_q, w, bias, y = call.arguments
    count = call.options["groups"]
    whole = session.answer(call)
    ins, outs = x_q.shape[1] // count, len(w_q) // count
    pieces = []
    for g in range(count):
        part = slice(g * outs, (g + 1) * outs)
        its_bias = None if bias is None else bias[part]
        own = x_q[:, g * ins : (g + 1) * ins], x, w_q[part], of_outputs(w, part), its_bias, y
        pieces.append(session.array(call.with_arguments(*own, groups=1)))
    compare(call, whole, [("its groups alone", np.concatenate(pieces, axis=1))])


def zero(session: Session, call: Call) -> None:
    """AFF-ZERO, for quantize and dequantize."""
    if call.operation == "quantize":
        got, expected = session.array(call), np.full(call.arguments[0].shape, call.arguments[2])
        compare(call, got, [("", expected.astype(got.dtype))])
    else:
        compare(call, session.answer(call), [("", np.zeros(call.arguments[0].shape, np.float32))])


def round_trip(session: Session, call: Call) -> None:
    """AFF-ROUNDTRIP, with the backend's own dequantize."""
    codes, scale, zero_point = call.arguments
    qmin, qmax = byte_ends(codes)
    back = Call("quantize", (session.answer(call), scale, zero_point), {"qmin": qmin, "qmax": qmax})
    compare(back, session.answer(back), [("", codes)])


def monotone(session: Session, call: Call) -> None:
    """AFF-MONOTONE."""
    x, scale, zero_point = call.arguments
    sorted_call = call.with_arguments(np.sort(x), scale, zero_point)
    falls = np.nonzero(np.diff(session.array(sorted_call).astype(int)) < 0)[0]
    if len(falls):
        raise Violation(sorted_call, "codes that do not fall", f"a fall behind element {int(falls[0])}", how="a fall")


def no_bias(session: Session, call: Call) -> None:
    """INT-NO-BIAS."""
    at = 3 if call.operation == "linear_dynamic" else 4
    arguments = list(call.arguments)
    outs = len(arguments[1 if call.operation == "linear_dynamic" else 2])
    arguments[at] = None
    without = call.with_arguments(*arguments)
    arguments[at] = np.zeros(outs, np.float32)
    with_zeros = call.with_arguments(*arguments)
    compare(without, session.answer(without), [("with a bias of 0", session.answer(with_zeros))])


def relu_clamps(session: Session, call: Call) -> None:
    """INT-RELU-LINEAR, for layers and for additions."""
    y = call.arguments[-1]
    plain, clamped = (call.with_arguments(*call.arguments, relu=relu) for relu in (False, True))
    codes = session.array(plain)
    expected: np.ndarray = np.maximum(codes, np.asarray(y.zero_point).astype(codes.dtype))
    compare(clamped, session.answer(clamped), [("", expected)])


def padding_is_zero(session: Session, call: Call) -> None:
    """INT-CONV-PAD: padding, and the code of zero written around the image."""
    x_q, x, *rest = call.arguments
    rows, columns = call.options["padding"]
    widths = (0, 0), (0, 0), (rows, rows), (columns, columns)
    around = np.pad(x_q, widths, constant_values=int(x.zero_point))
    written = call.with_arguments(around, x, *rest, padding=(0, 0))
    compare(call, session.answer(call), [("with its zeros written out", session.answer(written))])


def same_grid(session: Session, call: Call) -> None:
    """INT-CONCAT: what is on the common grid already stays."""
    joined = np.concatenate([q for q, _ in call.arguments[0]], axis=call.options["axis"])
    compare(call, session.answer(call), [("", joined)])


def answers(session: Session, call: Call) -> None:
    """BAK-ANSWER: whatever it is asked."""
    try:
        session.answer(call)
    except Undecided:
        pass


# Whose answers have no parts that could be asked for alone.
WHOLE = ("qparams", "fold_batch_norm", "concat")
ANYTHING = {**BEYOND, "linear_dynamic": extreme_inputs(), "qparams": ranges()}
WITH_BIAS = ("linear", "linear_dynamic", "conv2d")

CHECKS: tuple[Check, ...] = (
    *(
        Check("BAK-ANSWER", operation, everything(operation), answers, ANYTHING.get(operation))
        for operation in OPERATIONS
    ),
    *(Check("BAK-DIALECT", operation, CALLS[operation], dialect, BEYOND.get(operation)) for operation in OPERATIONS),
    *(Check("BAK-ARGUMENTS", operation, CALLS[operation], arguments_kept) for operation in OPERATIONS),
    *(
        Check("BAK-PLACE", operation, CALLS[operation], place, PAST_VECTORS.get(operation))
        for operation in OPERATIONS
        if operation not in WHOLE
    ),
    *(Check("BAK-SATURATE", operation, far(operation), saturates) for operation in FAR),
    Check("BAK-INFINITY", "quantize", infinite(), infinities),
    Check("BAK-NAN", "quantize", with_nan(), nan, nan_in_channels()),
    Check("BAK-RANGE", "qparams", ranges(), range_has_a_grid),
    *(Check("BAK-EMPTY", operation, emptied(operation), empty) for operation in EMPTY),
    *(Check("BAK-QPARAMS", operation, no_grid(operation), refuses) for operation in ("quantize", "dequantize")),
    Check("BAK-GROUPS", "conv2d", GROUPED, groups, st.one_of(many_groups(), off_zero(GROUPED))),
    *(Check("AFF-ZERO", operation, zeros(operation), zero) for operation in ("quantize", "dequantize")),
    Check("AFF-ROUNDTRIP", "quantize", CALLS["dequantize"], round_trip),
    Check("AFF-MONOTONE", "quantize", PER_TENSOR, monotone),
    *(Check("INT-NO-BIAS", operation, CALLS[operation], no_bias) for operation in WITH_BIAS),
    *(Check("INT-RELU-LINEAR", operation, CALLS[operation], relu_clamps) for operation in ("linear", "conv2d", "add")),
    Check("INT-CONV-PAD", "conv2d", CALLS["conv2d"], padding_is_zero),
    Check("INT-CONCAT", "concat", CALLS["concat"].map(on_one_grid), same_grid),
)
