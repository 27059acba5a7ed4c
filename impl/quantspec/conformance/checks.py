"""The checks: for a clause and an operation, which calls to draw and what of their answers must hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from quantspec.backends.protocol import OPERATIONS
from quantspec.numerics.affine import QParams

from .call import Call
from .draw import CALLS, conv2d_calls, grids, lengths, near_ties
from .session import Session, Undecided, Violation, compare, parts

Test = Callable[[Session, Call], None]


@dataclass(frozen=True)
class Check:
    """A clause held against one operation. ``test`` raises Violation, or Undecided where the backend offers nothing to decide by."""

    clause: str
    operation: str
    calls: st.SearchStrategy[Call]
    test: Test


def dialect(session: Session, call: Call) -> None:
    """BAK-DIALECT."""
    compare(call, session.answer(call), session.allowed(call))


def arguments_kept(session: Session, call: Call) -> None:
    """BAK-ARGUMENTS: the worker looks at its arguments before and after."""
    session.answer(call)
    if session.worker.wrote:
        raise Violation(call, "arguments as they were", f"argument {session.worker.wrote} was written to")


def place(session: Session, call: Call) -> None:
    """BAK-PLACE: the elements alone, in other layouts, and with more threads."""
    whole = session.answer(call)
    for part, pick in alone(call):
        expected = pick(whole)
        compare(part, session.answer(part)[: len(expected)], [("", expected)])
    for layout in ("fortran", "strided"):
        other = in_layout(call, layout)
        compare(other, session.answer(other), [("", whole)])
    if session.more_threads is not None:
        compare(call, session.answer(call, threads=True), [("", whole)])


def alone(call: Call) -> Iterator[tuple[Call, Callable]]:
    """Calls whose answers begin with parts of the call's answer, or with several of it, each with the function that makes that from the whole."""
    x, *rest = call.arguments
    if call.operation in ("quantize", "dequantize"):
        axis = call.options.get("axis")
        last = x.shape[-1]
        for i in sorted({0, last // 2, last - 1}):
            yield call.with_arguments(x[..., i : i + 1], *rest), lambda w, i=i: w[..., i : i + 1]
        if axis is None:
            yield call.with_arguments(np.concatenate([x, x[::-1]]), *rest), lambda w: np.concatenate([w, w[::-1]])
    elif call.operation in ("linear", "conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
        for i in sorted({0, len(x) - 1}):
            yield call.with_arguments(x[i : i + 1], *rest), lambda w, i=i: w[i : i + 1]
        yield call.with_arguments(np.concatenate([x, x, x]), *rest), lambda w: np.concatenate([w, w, w])
        if call.operation.endswith("pool2d"):
            for i in sorted({0, x.shape[1] - 1}):
                yield call.with_arguments(x[:, i : i + 1], *rest), lambda w, i=i: w[:, i : i + 1]
        if call.operation == "linear":
            x_grid, w_q, w, bias, y = rest
            for j in sorted({0, len(w_q) // 2, len(w_q) - 1}):
                grid = w if w.axis is None else QParams(w.scale[j : j + 1], 0, w.qmin, w.qmax, axis=0)
                one = call.with_arguments(x, x_grid, w_q[j : j + 1], grid, None if bias is None else bias[j : j + 1], y)
                yield one, lambda w, j=j: w[:, j : j + 1]
    elif call.operation == "linear_dynamic":
        # With the ends in a row of their own, every row has the range that it had.
        ends = np.full((1, x.shape[1]), x.min(), np.float32)
        ends[0, -1] = x.max()
        yield call.with_arguments(np.concatenate([x, ends]), *rest), lambda w: w
    elif call.operation in ("add", "mul"):
        a, b = x, rest[1]
        for i in sorted({0, a.shape[1] - 1}):
            yield call.with_arguments(a[:, i : i + 1], rest[0], b[:, i : i + 1], *rest[2:]), lambda w, i=i: w[:, i : i + 1]


def in_layout(call: Call, layout: str) -> Call:
    """The call with its arrays of more than one axis in Fortran order, or all arrays as every second element of larger ones."""

    def other(value):
        if isinstance(value, np.ndarray) and value.ndim and value.size:
            if layout == "fortran":
                return np.asfortranarray(value)
            return np.repeat(value, 2, axis=-1)[..., ::2]
        if isinstance(value, (list, tuple)):
            return type(value)(other(item) for item in value)
        return value

    return replace(call, arguments=tuple(other(value) for value in call.arguments))


def saturates(session: Session, call: Call) -> None:
    """BAK-SATURATE: drawn calls lie so far beyond the codes that every dialect has the end there."""
    if not is_far(call):  # cut down so far that it is not
        return
    got = session.answer(call)
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
            steps = np.abs(sums * float(x.scale) * np.max(w.scale).astype(float) / float(y.scale)) if bias is None else np.zeros(1)
        else:
            a_q, a, b_q, b, y = call.arguments
            one, other = ((q.astype(np.float64) - int(g.zero_point)) * float(g.scale) for q, g in ((a_q, a), (b_q, b)))
            steps = np.abs((one + other if call.operation == "add" else one * other) / float(y.scale))
    return bool(steps.size and (steps >= 512).all())


def call_ends(call: Call) -> np.ndarray:
    """The ends that a call of ``far`` must give."""
    if call.operation == "quantize":
        x, *_ = call.arguments
        kind = np.uint8 if call.options["qmin"] >= 0 else np.int8
        return np.where(x > 0, call.options["qmax"], call.options["qmin"]).astype(kind)
    if call.operation == "linear":
        x_q, x, w_q, _, _, y = call.arguments
        sums = (x_q.astype(np.int64) - int(x.zero_point)) @ w_q.astype(np.int64).T
        lowest = int(y.zero_point) if call.options.get("relu") else y.qmin
        return np.where(sums > 0, y.qmax, lowest).astype(y.dtype)
    a_q, a, b_q, b, y = call.arguments
    terms = [(q.astype(np.int64) - int(g.zero_point)) for q, g in ((a_q, a), (b_q, b))]
    total = terms[0] * float(a.scale) + terms[1] * float(b.scale) if call.operation == "add" else terms[0] * terms[1]
    return np.where(total > 0, y.qmax, y.qmin).astype(y.dtype)


@st.composite
def far(draw, operation: str) -> Call:
    """Results 2^10 to 2^40 times beyond the codes, but for results of exactly 0, which are left out."""
    if operation == "quantize":
        grid = draw(grids())
        sizes = np.array([draw(st.integers(10, 100)) for _ in range(draw(lengths()))])
        signs = np.array([draw(st.sampled_from([-1.0, 1.0])) for _ in sizes])
        return Call("quantize", ((signs * 2.0**sizes * float(grid.scale)).astype(np.float32), grid.scale, int(grid.zero_point)), {"qmin": grid.qmin, "qmax": grid.qmax})
    exponent = draw(st.integers(12, 40))
    if operation == "linear":
        length, outs = draw(lengths()), draw(lengths())
        x = QParams(1.0, draw(st.sampled_from([0, 128])), 0, 255)
        x_q = np.full((draw(st.integers(1, 3)), length), 255, np.uint8)
        w_q = np.repeat(np.array([[draw(st.sampled_from([-20, 20, 1, -1]))] for _ in range(outs)], np.int8), length, axis=1)
        y = QParams(np.float32(2.0**-exponent), draw(st.integers(0, 255)), 0, 255)
        return Call("linear", (x_q, x, w_q, QParams(1.0, 0, -128, 127), None, y), {"relu": draw(st.booleans())})
    signed = draw(st.booleans())
    qmin, qmax = (-128, 127) if signed else (0, 255)
    a, b = (QParams(1.0, draw(st.integers(qmin + 1, qmax - 1)), qmin, qmax) for _ in "ab")
    shape = (1, draw(lengths()), 1, 1)
    signs = np.array([draw(st.booleans()) for _ in range(shape[1])]).reshape(shape)
    codes = [np.where(signs, qmax, qmin).astype(a.dtype)] * 2
    return Call(operation, (codes[0], a, codes[1], b, QParams(np.float32(2.0**-exponent), draw(st.integers(qmin, qmax)), qmin, qmax)))


def infinities(session: Session, call: Call) -> None:
    """BAK-INFINITY."""
    saturates(session, call)


@st.composite
def infinite(draw) -> Call:
    """Infinities among ordinary values, which saturate too."""
    grid = draw(grids())
    x = np.array([draw(st.sampled_from([np.inf, -np.inf])) for _ in range(draw(lengths()))], np.float32)
    return Call("quantize", (x, grid.scale, int(grid.zero_point)), {"qmin": grid.qmin, "qmax": grid.qmax})


NANS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF], np.uint32).view(np.float32)


def nan(session: Session, call: Call) -> None:
    """BAK-NAN: a NaN of any kind, alone and anywhere, gets one code."""
    x, scale, zero_point = call.arguments
    try:
        got = session.answer(call)
    except Undecided:
        return  # refused
    single = session.answer(call.with_arguments(NANS[:1], scale, zero_point))
    compare(call, got[np.isnan(x)], [("", np.full(int(np.isnan(x).sum()), single[0], single.dtype))])


@st.composite
def with_nan(draw) -> Call:
    """NaNs at one place or at all places of an array."""
    grid = draw(grids())
    x = draw(near_ties(grid, (draw(lengths()),)))
    places = slice(None) if draw(st.booleans()) else draw(st.integers(0, len(x) - 1))
    x[places] = NANS[draw(st.integers(0, 3))]
    return Call("quantize", (x, grid.scale, int(grid.zero_point)), {"qmin": grid.qmin, "qmax": grid.qmax})


def empty(session: Session, call: Call) -> None:
    """BAK-EMPTY."""
    try:
        got = session.answer(call)
    except Undecided:
        return  # refused, or not offered
    compare(call, got, session.allowed(call))


@st.composite
def emptied(draw, operation: str) -> Call:
    """An ordinary call with one axis of length 0 where that has a meaning."""
    call = draw(CALLS[operation])
    x, *rest = call.arguments
    if operation in ("linear", "linear_dynamic", "conv2d"):
        at = 0 if operation == "linear_dynamic" else 1
        without = draw(st.sampled_from(["rows", "outputs"] if operation == "conv2d" else ["rows", "outputs", "inputs"]))
        if without == "rows":
            return call.with_arguments(x[:0], *rest)
        if without == "inputs":
            rest[at] = rest[at][:, :0]
            return call.with_arguments(x[:, :0], *rest)
        w = rest[at + 1]
        rest[at : at + 3] = rest[at][:0], w if w.axis is None else QParams(w.scale[0], 0, w.qmin, w.qmax), None
        return call.with_arguments(x, *rest)
    if operation in ("add", "mul"):
        return call.with_arguments(x[:, :0], rest[0], rest[1][:, :0], *rest[2:])
    if operation == "concat":
        (first, grid), *others = x
        return call.with_arguments([(first[:, :0], grid), *others], *rest)
    if operation in ("quantize", "dequantize"):
        return call.with_arguments(x[..., :0], *rest)
    return call.with_arguments(x[:0], *rest)


def refuses(session: Session, call: Call) -> None:
    """BAK-QPARAMS."""
    if is_grid(call):  # cut down so far that it is one
        return
    try:
        got = session.answer(call)
    except Undecided:
        return
    raise Violation(call, "a refusal", f"{parts(got)[0].ravel()[:4].tolist()}")


def is_grid(call: Call) -> bool:
    """Whether a call's scale and zero point describe a grid of its codes."""
    x, scale, zero_point, *_ = call.arguments
    ends = (call.options["qmin"], call.options["qmax"]) if call.operation == "quantize" else (0, 255) if x.dtype == np.uint8 else (-128, 127)
    return bool(np.all(np.isfinite(scale) & (scale > 0)) and np.all((zero_point >= ends[0]) & (zero_point <= ends[1])))


@st.composite
def no_grid(draw, operation: str) -> Call:
    """A scale or a zero point that describes no grid."""
    call = draw(CALLS[operation])
    x, scale, zero_point, *_ = call.arguments
    qmin, qmax = (call.options["qmin"], call.options["qmax"]) if operation == "quantize" else ((0, 255) if x.dtype == np.uint8 else (-128, 127))
    if np.ndim(scale):
        call = replace(call, arguments=(x[0], scale[0], zero_point[0]), options={k: v for k, v in call.options.items() if k != "axis"})
        x, scale, zero_point = call.arguments
    if draw(st.booleans()):
        return call.with_arguments(x, np.float32(draw(st.sampled_from([0.0, -0.0, -1.0, np.inf, -np.inf, np.nan]))), int(zero_point))
    return call.with_arguments(x, scale, draw(st.sampled_from([qmin - 1, qmax + 1, qmin - 1000, qmax + 1000])))


def groups(session: Session, call: Call) -> None:
    """BAK-GROUPS: the whole convolution against those of its groups."""
    x_q, x, w_q, w, bias, y = call.arguments
    count = call.options["groups"]
    whole = session.answer(call)
    ins, outs = x_q.shape[1] // count, len(w_q) // count
    pieces = []
    for g in range(count):
        part = slice(g * outs, (g + 1) * outs)
        grid = w if w.axis is None else QParams(w.scale[part], 0, w.qmin, w.qmax, axis=0)
        own = x_q[:, g * ins : (g + 1) * ins], x, w_q[part], grid, None if bias is None else bias[part], y
        pieces.append(session.answer(call.with_arguments(*own, groups=1)))
    compare(call, whole, [("its groups alone", np.concatenate(pieces, axis=1))])


def zero(session: Session, call: Call) -> None:
    """AFF-ZERO, for quantize and dequantize."""
    if call.operation == "quantize":
        got, expected = session.answer(call), np.full(call.arguments[0].shape, call.arguments[2])
        compare(call, got, [("", expected.astype(got.dtype))])
    else:
        compare(call, session.answer(call), [("", np.zeros(call.arguments[0].shape, np.float32))])


@st.composite
def zeros(draw, operation: str) -> Call:
    grid = draw(grids(low=2.0**-60, high=2.0**60))
    length = draw(lengths())
    if operation == "quantize":
        x = np.array([draw(st.sampled_from([0.0, -0.0])) for _ in range(length)], np.float32)
        return Call("quantize", (x, grid.scale, int(grid.zero_point)), {"qmin": grid.qmin, "qmax": grid.qmax})
    return Call("dequantize", (np.full(length, grid.zero_point, grid.dtype), grid.scale, int(grid.zero_point)))


def round_trip(session: Session, call: Call) -> None:
    """AFF-ROUNDTRIP, with the backend's own dequantize."""
    codes, scale, zero_point = call.arguments
    ends = (0, 255) if codes.dtype == np.uint8 else (-128, 127)
    back = Call("quantize", (session.answer(call), scale, zero_point), {"qmin": ends[0], "qmax": ends[1]})
    compare(back, session.answer(back), [("", codes)])


def monotone(session: Session, call: Call) -> None:
    """AFF-MONOTONE."""
    x, scale, zero_point = call.arguments
    order = np.sort(x)
    sorted_call = call.with_arguments(order, scale, zero_point)
    falls = np.nonzero(np.diff(session.answer(sorted_call).astype(int)) < 0)[0]
    if len(falls):
        raise Violation(sorted_call, "codes that do not fall", f"a fall behind element {int(falls[0])}")


def no_bias(session: Session, call: Call) -> None:
    """INT-NO-BIAS."""
    at = 3 if call.operation == "linear_dynamic" else 4
    arguments = list(call.arguments)
    outs = len(arguments[1 if call.operation == "linear_dynamic" else 2])
    arguments[at] = None
    without = call.with_arguments(*arguments)
    arguments[at] = np.zeros(outs, np.float32)
    compare(without, session.answer(without), [("with a bias of 0", session.answer(call.with_arguments(*arguments)))])


def relu_clamps(session: Session, call: Call) -> None:
    """INT-RELU-LINEAR, for layers and for additions."""
    y = call.arguments[-1]
    plain, clamped = (call.with_arguments(*call.arguments, relu=relu) for relu in (False, True))
    codes = session.answer(plain)
    compare(clamped, session.answer(clamped), [("", np.maximum(codes, np.asarray(y.zero_point).astype(codes.dtype)))])


def padding_is_zero(session: Session, call: Call) -> None:
    """INT-CONV-PAD: padding, and the code of zero written around the image."""
    x_q, x, *rest = call.arguments
    rows, columns = call.options["padding"]
    around = np.pad(x_q, ((0, 0), (0, 0), (rows, rows), (columns, columns)), constant_values=int(x.zero_point))
    written = call.with_arguments(around, x, *rest, padding=(0, 0))
    compare(call, session.answer(call), [("with its zeros written out", session.answer(written))])


def same_grid(session: Session, call: Call) -> None:
    """INT-CONCAT: what is on the common grid already stays."""
    compare(call, session.answer(call), [("", np.concatenate([q for q, _ in call.arguments[0]], axis=call.options["axis"]))])


def on_one_grid(call: Call) -> Call:
    ours, y = call.arguments
    grid = ours[0][1]
    return call.with_arguments([(q, grid) for q, _ in ours], grid)


def answers(session: Session, call: Call) -> None:
    """BAK-ANSWER: whatever it is asked."""
    try:
        session.answer(call)
    except Undecided:
        pass


def everything(operation: str) -> st.SearchStrategy[Call]:
    """Ordinary, empty, far and meaningless calls of an operation."""
    kinds = [CALLS[operation]]
    if operation in EMPTY:
        kinds.append(emptied(operation))
    if operation in FAR:
        kinds.append(far(operation))
    if operation in ("quantize", "dequantize"):
        kinds.append(no_grid(operation))
    return st.one_of(kinds)


FAR = ("quantize", "linear", "add", "mul")
EMPTY = tuple(o for o in OPERATIONS if o not in ("qparams", "fold_batch_norm"))
PER_TENSOR = CALLS["quantize"].filter(lambda call: "axis" not in call.options)
# With weights of full size, since depthwise kernels add products in other ways than dense ones.
GROUPED = conv2d_calls(largest=127).filter(lambda call: call.options["groups"] > 1)


CHECKS: tuple[Check, ...] = (
    *(Check("BAK-ANSWER", o, everything(o), answers) for o in OPERATIONS),
    *(Check("BAK-DIALECT", o, CALLS[o], dialect) for o in OPERATIONS),
    *(Check("BAK-ARGUMENTS", o, CALLS[o], arguments_kept) for o in OPERATIONS),
    *(Check("BAK-PLACE", o, CALLS[o], place) for o in OPERATIONS if o not in ("qparams", "fold_batch_norm", "concat")),
    *(Check("BAK-SATURATE", o, far(o), saturates) for o in FAR),
    Check("BAK-INFINITY", "quantize", infinite(), infinities),
    Check("BAK-NAN", "quantize", with_nan(), nan),
    *(Check("BAK-EMPTY", o, emptied(o), empty) for o in EMPTY),
    *(Check("BAK-QPARAMS", o, no_grid(o), refuses) for o in ("quantize", "dequantize")),
    Check("BAK-GROUPS", "conv2d", GROUPED, groups),
    *(Check("AFF-ZERO", o, zeros(o), zero) for o in ("quantize", "dequantize")),
    Check("AFF-ROUNDTRIP", "quantize", CALLS["dequantize"], round_trip),
    Check("AFF-MONOTONE", "quantize", PER_TENSOR, monotone),
    *(Check("INT-NO-BIAS", o, CALLS[o], no_bias) for o in ("linear", "linear_dynamic", "conv2d")),
    *(Check("INT-RELU-LINEAR", o, CALLS[o], relu_clamps) for o in ("linear", "conv2d", "add")),
    Check("INT-CONV-PAD", "conv2d", CALLS["conv2d"], padding_is_zero),
    Check("INT-CONCAT", "concat", CALLS["concat"].map(on_one_grid), same_grid),
)
