"""Answers of a kind that the protocol does not have: every check tells them as what they are, and none passes one."""

import numpy as np
import pytest

from quantspec.backends.outcome import outcome
from quantspec.backends.protocol import NotOffered
from quantspec.backends.reference import ReferenceBackend
from quantspec.conformance import checks, run, shrink
from quantspec.conformance.call import Call
from quantspec.conformance.sampling import sample
from quantspec.conformance.session import Session, Undecided, Violation, compare
from quantspec.conformance.smoke import EASY, smoke
from quantspec.numerics.affine import QParams
from told import exactly

FEW = 8  # calls of each check
CALL = Call("dequantize", (np.zeros(2, np.uint8), np.float32(1), 0))
EXACT = ReferenceBackend("exact")


class Changed:
    """The answers of a backend in this process to one operation, changed."""

    name, version, dialect, wrote = "changed", "1", "exact", ""

    def __init__(self, operation, change):
        self.operations = [operation]
        setattr(self, operation, lambda *arguments, **options: change(getattr(EXACT, operation)(*arguments, **options)))


@pytest.mark.parametrize(
    ("operation", "change", "allowed", "got"),
    [
        ("qparams", lambda answer: answer[0], "two parts", "one part"),
        ("qparams", lambda answer: (*answer, 1), "two parts", "tuple of 3"),
        ("fold_batch_norm", lambda answer: answer[0], "two parts", "one part"),
        ("quantize", lambda answer: (answer, answer), "an array of numbers", "tuple of 2"),
        ("quantize", lambda answer: None, "an array of numbers", "NoneType of type object"),
        ("linear", lambda answer: [[[1], [1, 2]]], "an array of numbers", "lists that are no array"),
        ("dequantize", lambda answer: "done", "an array of numbers", "str of type <U4"),
        ("add", lambda answer: {}, "an array of numbers", "dict of type object"),
    ],
)
def test_what_has_other_parts_than_an_operation_has_is_no_answer_to_any_check(operation, change, allowed, got):
    """As where an adapter forgets to return the zero point: the scale alone was taken for all."""
    backend = Changed(operation, change)
    told = set()
    for check in checks.CHECKS:
        for call in sample(check.calls, examples=FEW, start=1) if check.operation == operation else ():
            try:
                check.test(Session(backend), call)
            except Violation as violation:
                assert violation.how == "another shape or type" and violation.allowed == allowed
                told.add((check.clause, violation.got))
            except Undecided:
                pass  # refused
    assert {("BAK-ANSWER", got), ("BAK-DIALECT", got)} <= told and {text for _, text in told} == {got}
    if operation != "fold_batch_norm":  # of which there is no easy call
        message = f"backend mine: the adapter's {operation} returns {got} where the protocol expects {allowed}"
        with pytest.raises(ValueError, match=exactly(message)):
            smoke("mine", backend)


def each(change):
    """Changes every part of an answer, as an array."""

    def changed(answer):
        return tuple(map(changed, answer)) if isinstance(answer, tuple) else change(np.asarray(answer))

    return changed


def refuses(answer):
    raise ValueError("not today")


def lacks(answer):
    raise NotOffered("not today")


@pytest.mark.parametrize("call", EASY, ids=lambda call: call.operation)
def test_easy_calls_are_passed_by_what_is_right_within_a_step_or_says_no(call):
    for change in (each(np.copy), each(lambda part: part + part.dtype.type(1)), refuses, lacks):
        smoke("mine", Changed(call.operation, change))


@pytest.mark.parametrize("call", EASY, ids=lambda call: call.operation)
def test_easy_calls_show_an_adapter_that_gives_other_numbers_or_another_kind(call):
    right = getattr(EXACT, call.operation)(*call.arguments, **call.options)
    part = np.asarray(right[0] if isinstance(right, tuple) else right)
    kind, about = f"{part.dtype}{list(part.shape)}", part.ravel().tolist()
    turned = np.float32 if part.dtype.kind in "iu" else np.int32
    far = (part + 2).ravel().tolist()
    wrong = {
        f"returns {far} for an easy call, expected about {about}": lambda x: x + x.dtype.type(2),
        f"returns {part.dtype}{[1, *part.shape]} where the protocol expects {kind}": lambda x: x[None],
        f"returns {np.dtype(turned)}{list(part.shape)} where the protocol expects {kind}": lambda x: x.astype(turned),
    }
    for told, change in wrong.items():
        message = f"backend mine: the adapter's {call.operation} {told}"
        with pytest.raises(ValueError, match=exactly(message)):
            smoke("mine", Changed(call.operation, each(change)))


@pytest.mark.parametrize("operation", ["quantize", "linear", "conv2d", "max_pool2d", "add"])
def test_an_answer_with_fewer_axes_is_told_by_every_check_that_takes_it_apart(operation):
    backend = Changed(operation, np.ravel)
    whole = {"BAK-PLACE", "BAK-GROUPS", "INT-RELU-LINEAR", "AFF-ZERO", "AFF-MONOTONE", "BAK-SATURATE"}
    for check in checks.CHECKS:
        if check.operation == operation and check.clause in whole:
            for call in sample(check.calls, examples=FEW, start=1):
                if np.ndim(call.arguments[0]) > 1:
                    with pytest.raises(Violation) as caught:
                        check.test(Session(backend), call)
                    assert caught.value.how == "another shape or type"


def test_how_many_axes_an_answer_should_have_is_said():
    axes = np.zeros((2, 3), np.uint8), np.float32(1), 0
    for arguments, allowed in ((axes, "an array of 2 axes"), (CALL.arguments, "an array of 1 axis")):
        with pytest.raises(Violation) as caught:
            Session(Changed("dequantize", np.sum)).array(Call("dequantize", arguments))
        assert (caught.value.allowed, caught.value.got) == (allowed, "float32[]")


def test_codes_of_nan_that_are_of_another_shape_are_told():
    class Drops(Changed):
        def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
            return np.zeros(x[~np.isnan(x)].shape, np.uint8)

    backend = Drops("dequantize", None)
    call = Call("quantize", (np.float32([1, np.nan, 2]), np.float32(1), 0), {"qmin": 0, "qmax": 255})
    with pytest.raises(Violation) as caught:
        checks.nan(Session(backend), call)
    assert (caught.value.allowed, caught.value.got) == ("codes[3]", "uint8[2]")
    assert caught.value.how == "another shape or type"


def test_answers_of_two_processes_that_have_another_number_of_parts_differ():
    one, two = np.zeros(2, np.float32), (np.zeros(2, np.float32), np.zeros(2, np.float32))
    for got, allowed in ((one, two), (two, one)):
        with pytest.raises(Violation) as caught:
            compare(CALL, got, [("alone", allowed)])
        assert caught.value.how == "another shape or type"


def test_a_backend_that_dies_of_many_calls_is_asked_few_of_the_thousands(monkeypatch):
    """Each death costs the start of a process, and each call that hangs all the seconds that it may take."""
    asked = []

    def dies(call):
        asked.append(call)
        raise Violation(call, "an answer or a refusal", "crashed: SIGSEGV on it", how="crashed: SIGSEGV")

    session = Session(Changed("quantize", None))
    monkeypatch.setattr(session, "answer", dies)
    broken = run.Broken()
    assert run.compare_bulk("quantize", session, broken) == (0, run.MOST_DEATHS)
    assert len(asked) == run.MOST_DEATHS and broken.enough


def test_an_argument_that_is_written_to_counts_where_the_call_is_refused_too():
    class Writes(Changed):
        wrote = "0"

        def quantize(self, *arguments, **options):
            raise NotOffered("no such grid")

    call = Call("quantize", (np.float32([1]), np.float32(1), 0), {"qmin": 0, "qmax": 255})
    backend = Writes("dequantize", None)
    with pytest.raises(Violation, match=exactly("allowed arguments as they were, got argument 0 was written to")):
        checks.arguments_kept(Session(backend), call)
    backend.wrote = ""
    with pytest.raises(Undecided, match=exactly("not offered: no such grid")):
        checks.arguments_kept(Session(backend), call)


class OfOneAxis(Changed):
    """Wrong where channels lie along the last axis, and for a layer that is folded, from the third input on."""

    def __init__(self):
        super().__init__("dequantize", None)
        self.operations = ["quantize", "dequantize", "fold_batch_norm"]

    def story(self, calls):
        """It lives to the end of every one."""
        return [outcome(self, call[0], *call[1], **call[2]) for call in calls]

    def quantize(self, x, scale, zero_point, *, qmin, qmax, axis=None):
        codes = EXACT.quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
        return np.where(codes == qmax, qmax - 1, codes).astype(codes.dtype) if axis else codes

    def dequantize(self, q, scale, zero_point, *, axis=None):
        return EXACT.dequantize(q, scale, zero_point, axis=axis)

    def fold_batch_norm(self, weight, bias, gamma, beta, mean, var, eps):
        folded, moved = EXACT.fold_batch_norm(weight, bias, gamma, beta, mean, var, eps)
        return folded, moved * np.float32(2) if weight.shape[1] > 2 else moved


@pytest.mark.parametrize(
    ("operation", "arguments", "options", "size"),
    [
        ("quantize", (np.full((7, 3), 1e9, np.float32), np.ones(3, np.float32), np.zeros(3, np.int32)),
         {"qmin": 0, "qmax": 255, "axis": 1}, (1, 1)),
        ("fold_batch_norm", (np.ones((4, 5, 3, 3), np.float32), *np.ones((5, 4), np.float32), 1e-5), {}, (1, 3, 1, 1)),
    ],
)  # fmt: skip
def test_a_counterexample_is_cut_down_along_every_axis(operation, arguments, options, size):
    """With channels along the second axis too, and a layer with its normalization."""
    check = checks.Check("BAK-DIALECT", operation, None, checks.dialect)
    session = Session(OfOneAxis())
    call = Call(operation, arguments, options)
    with pytest.raises(Violation) as caught:
        check.test(session, call)
    finding = run.failure(check, session, caught.value, set())
    assert finding.call.arguments[0].shape == size
    with pytest.raises(Violation):
        check.test(session, finding.call)


def test_a_layer_without_a_bias_is_cut_down_with_its_normalization():
    weight, statistics = np.ones((2, 2), np.float32), np.ones((4, 2), np.float32)
    cut = list(shrink.folding(Call("fold_batch_norm", (weight, None, *statistics, 1e-5))))
    assert {call.arguments[0].shape for call in cut} == {(1, 2), (2, 1)}
    for call in cut:
        EXACT.fold_batch_norm(*call.arguments)
        assert call.arguments[1] is None


def test_a_grid_of_one_channel_along_any_axis_becomes_one_of_the_tensor():
    grid = QParams(np.float32([0.5]), np.int32([3]), 0, 255, axis=1)
    q = np.arange(4, dtype=np.uint8).reshape(4, 1)
    first = next(iter(shrink.elementwise(
        Call("dequantize", (q, grid.scale, grid.zero_point), {"axis": 1})
    )))  # fmt: skip
    assert first.options == {} and first.arguments[0].tolist() == [0, 1, 2, 3]
    assert EXACT.dequantize(*first.arguments).tolist() == [-1.5, -1, -0.5, 0]
