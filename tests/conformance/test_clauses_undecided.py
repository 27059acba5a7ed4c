"""What an examination says where nothing was decided, which processes it asks, and which plainer grids it tries."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

from quantspec.backends.outcome import outcome
from quantspec.backends.reference import ReferenceBackend
from quantspec.conformance import purity, run, shrink
from quantspec.conformance.call import Call, call_text
from quantspec.conformance.checks import Check
from quantspec.conformance.run import Finding
from quantspec.conformance.session import Undecided

NUMBERS = Call("quantize", (np.float32([1, 2]), np.float32(1), 3), {"qmin": 0, "qmax": 255})


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        (["one", "two", "two"], "two"), (["one", "two"], "one"), (["two", "one", "one", "two"], "two"),
        ([], "nothing was drawn"),
    ],
)  # fmt: skip
def test_of_the_reasons_why_nothing_was_decided_the_most_frequent_is_told_and_of_equals_the_first(
    reasons, told, monkeypatch
):
    left = iter(reasons)

    def refused(session, call):
        raise Undecided(next(left))

    monkeypatch.setattr(run, "for_all", lambda calls, holds, **_: [holds(NUMBERS) for _ in reasons])
    check = Check("AFF-ZERO", "quantize", st.just(NUMBERS), refused)
    assert run.examine(check, SimpleNamespace(asked=0), 1) == [
        Finding("AFF-ZERO", "quantize", "not offered", reason=told)
    ]


def test_a_backend_is_asked_in_a_second_process_with_more_threads_and_as_much_time(monkeypatch):
    asked = []

    class Worker:
        operations = ()

        def __init__(self, name, *, seconds, threads=1, unwritten=0):
            asked.append((name, seconds, threads, unwritten))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(run, "Worker", Worker)
    monkeypatch.setattr(run, "PURITY", ())
    assert {finding.outcome for finding in run.run("some", seconds=7.0)} == {"not offered"}
    (_, _, alone, nothing), (_, _, more, other) = asked
    assert [one[:2] for one in asked] == [("some", 7.0)] * 2 and more > alone == 1 and other != nothing


@pytest.mark.parametrize("operation", ["quantize", "dequantize"])
def test_a_zero_point_is_tried_at_nought_and_at_one_unless_it_is_one_of_them(operation):
    for zero_point, scale in itertools.product((0, 1, 2, 7, 255), (1, 0.5)):
        x = np.float32([1, 2]) if operation == "quantize" else np.uint8([1, 2])
        calls = list(shrink.plainer_grids(Call(operation, (x, np.float32(scale), zero_point))))
        tried = [(float(call.arguments[1]), call.arguments[2]) for call in calls]
        whole = [(1.0, zero_point)] * (scale != 1)
        assert tried == [*whole, *((scale, point) for point in (0, 1) if zero_point > 1)]


@pytest.mark.parametrize("operation", ["linear", "linear_dynamic", "conv2d"])
def test_every_call_of_an_arranged_story_is_one_that_is_answered_and_no_two_are_alike(operation):
    backend = ReferenceBackend("onnx")
    for story in purity.arranged(operation):
        calls = list({id(call): call for call in story}.values())
        answers = [outcome(backend, call.operation, *call.arguments, **call.options) for call in calls]
        assert all(answer.kind == "value" for answer in answers)
        told = [call_text(call) for call in calls]
        single = all(len(call.arguments[0]) == 1 for call in calls)  # whose first row is all of it
        assert len(set(told)) == len(told) - single >= 2
