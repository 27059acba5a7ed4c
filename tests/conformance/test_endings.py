"""How calls end in workers: whatever a backend does, its caller is told what it was, alone and in a story."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantspec.backends import protocol, registry, server, wire
from quantspec.backends.outcome import Crashed, Exited, Outcome, ending, outcome
from quantspec.backends.worker import Worker
from quantspec.conformance.call import Call
from quantspec.conformance.session import Session
from quantspec.numerics.affine import QParams
from told import exactly

HERE = "conformance.ending_backends"
CODES = np.arange(4, dtype=np.uint8)


def call(zero_point=0):
    return "dequantize", (CODES, 1.0, zero_point), {}


@pytest.mark.parametrize(
    ("name", "kind", "how"),
    [
        ("Returns", Exited, "exit code 0"),
        ("Leaves", Exited, "exit code 0"),
        ("LeavesAChild", Exited, "exit code 4"),
        ("NamelessSignal", Crashed, "signal 40"),
    ],
)
def test_a_process_that_ends_in_a_story_is_told_by_how_it_ended_and_the_next_story_is_answered(name, kind, how):
    """Also where it ended as if all were well: it was waited for, and told as one that hangs."""
    with Worker(f"{HERE}:{name}", seconds=20) as worker:
        with pytest.raises(kind) as caught:
            worker.story([call(), call(), call()])
        last = "dequantize(uint8[4], 1.0, 0)"
        assert str(caught.value) == f"{kind.kind}: {how} on a story of 3 calls, the last of which is {last}"
        (answer,) = worker.story([call()])
        assert answer.kind == "value" and answer.value.tolist() == [0, 1, 2, 3] and worker.starts == 1
        assert Session(worker).death([Call(*call())] * 2) == f"{kind.kind}: {how} on {last}"
        alone = [outcome(worker, "dequantize", CODES, 1.0, 0) for _ in range(2)]
        assert [each.kind for each in alone] == ["value", kind.kind]
        assert alone[1].message == f"{kind.kind}: {how} on {last}"


def test_each_call_of_a_story_may_take_as_long_as_one_alone():
    """A story of a slow backend was ended when all its calls together had taken that long."""
    with Worker(f"{HERE}:TakesItsTime", seconds=3) as worker:
        assert [answer.kind for answer in worker.story([call()] * 8)] == ["value"] * 8


def test_what_a_backend_raises_is_told_by_what_kind_of_exception_it_is():
    """A refusal by a type of the backend's own is one, and no exception is taken for the end of a process by its
    name."""
    expected = [
        Outcome("refused", message="one"), Outcome("not offered", message="two"),
        Outcome("error", message="Died: three"), Outcome("value", {}),
    ]  # fmt: skip
    with Worker(f"{HERE}:Raises") as worker:
        assert [outcome(worker, "dequantize", CODES, 1.0, point) for point in range(4)] == expected
        assert worker.story([call(point) for point in range(4)]) == expected
        for answer in (outcome(worker, "dequantize", CODES, 1.0, 4), worker.story([call(4)])[0]):
            assert answer.kind == "error" and answer.message.startswith("TypeError: expected arrays, numbers, ")
        assert worker.starts == 1


def test_an_argument_that_is_written_to_is_told_where_the_call_is_refused_and_so_is_one_of_another_shape():
    with Worker(f"{HERE}:Raises") as worker:
        x = np.float32([1, 2])
        refused = outcome(worker, "quantize", x, 1.0, 0, qmin=0, qmax=255)
        assert (refused.kind, refused.message, worker.wrote) == ("refused", "x: no such values", "0")
        turned = outcome(worker, "quantize", x, 1.0, 1, qmin=0, qmax=255)
        assert turned.value.shape == (1, 2) and worker.wrote == "0"
        assert outcome(worker, "dequantize", CODES, 1.0, 0).kind == "refused" and worker.wrote == ""


def test_a_call_of_which_no_answer_comes_is_not_told_what_the_one_before_it_wrote_to():
    with Worker(f"{HERE}:Raises") as worker:
        assert outcome(worker, "quantize", np.float32([1, 2]), 1.0, 1, qmin=0, qmax=255).kind == "value"
        assert worker.wrote == "0"
        assert outcome(worker, "quantize", np.float32([1, 2]), 1.0, 2, qmin=0, qmax=255).kind == "exited"
        assert worker.wrote == ""


@pytest.mark.parametrize(
    ("code", "told"), [(0, "exit code 0"), (3, "exit code 3"), (-11, "SIGSEGV"), (-34, "SIGRTMIN"), (-40, "signal 40")]
)
def test_every_way_in_which_a_process_ends_has_words(code, told):
    assert ending(code) == told


class Here:
    """A backend in this process."""

    name, version, dialect = "here", "2", {"concat": "exact"}

    def __init__(self):
        self.kept = 0

    def keep(self):
        self.kept += 1

    def concat(self, parts, y, *, axis):
        if y == "list":
            parts[0] = parts[0].copy()
        elif y is not None:
            parts[1][axis] = y
        return parts[0]


def test_what_a_call_wrote_to_is_named_by_its_place():
    for y, wrote in ((None, ""), (9, "0[1]"), ("list", "a list among them")):
        arguments = [[CODES.copy(), CODES.copy()], y]
        answer = server.run(Here(), {"operation": "concat", "arguments": arguments, "options": {"axis": 0}})
        assert answer["value"].tolist() == [0, 1, 2, 3] and answer["wrote"] == wrote


def test_what_a_caller_sees_of_an_array_is_its_type_its_shape_and_its_values():
    one = np.zeros((2, 3), np.uint8)
    others = one.astype(np.int8), one.reshape(3, 2), one + 1, np.zeros((2, 3), ">u2")
    assert all(server.state(other) != server.state(one) for other in others)
    assert server.state(np.asfortranarray(one)) == server.state(one.copy())


def test_a_backend_keeps_what_it_makes_in_stories_of_several_calls():
    calls = [{"operation": "concat", "arguments": [[CODES], None], "options": {"axis": 0}}]
    for count, kept in ((1, 0), (2, 1), (3, 1)):
        backend = Here()
        told = list(server.story(backend, calls * count))
        assert backend.kept == kept and [each["kind"] for each in told] == ["value"] * count


def test_a_backend_that_cannot_keep_what_it_makes_fails_in_stories_of_several_calls():
    """It was an error of the run's own, which ended it."""
    calls = [{"operation": "concat", "arguments": [[CODES], None], "options": {"axis": 0}}] * 2
    backend = Here()
    backend.keep = [].pop
    told = list(server.story(backend, calls))
    message = "keep: IndexError: pop from empty list"
    assert told == [{"kind": "error", "value": None, "message": message}] * 2


@pytest.mark.parametrize("declared", [None, (), frozenset(), {"concat": []}])
def test_a_backend_that_declares_no_dialect_is_told(declared):
    backend = Here()
    backend.dialect = declared
    with pytest.raises(ValueError, match=exactly("dialect: backend 'here' declares none for concat")):
        protocol.dialects(backend, "concat")


def test_a_backend_says_what_it_is():
    assert server.greeting(Here()) == {
        "name": "here", "version": "2", "dialect": {"concat": "exact"}, "operations": ["concat"], "reproduces": False,
    }  # fmt: skip


FRAME = wire.pack({"value": [CODES, QParams(np.float32([1, 2]), 0, 0, 255, axis=0), (1, float("inf")), {"a": None}]})
TEXT_END = wire.HEAD.size + wire.HEAD.unpack(FRAME[: wire.HEAD.size])[1]


@given(st.data())
def test_damaged_bytes_are_a_frame_or_malformed_and_nothing_else(data):
    """Whatever a backend wrote over the text of a frame; its own errors were Python's, such as SyntaxError."""
    text, body = bytearray(FRAME[wire.HEAD.size : TEXT_END]), FRAME[TEXT_END:]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.sampled_from(b'0123456789[]{}",:-. <tfn') | st.sampled_from(bytes(text)))
    pieces = [wire.HEAD.pack(wire.MAGIC, len(text), len(body)), bytes(text), body]
    try:
        wire.unpack(lambda length: pieces.pop(0))
    except wire.Malformed as error:
        assert str(error).startswith("the body of a frame is damaged: ")


@pytest.mark.parametrize(
    "tree",
    [{"dict": 3}, {"qparams": [1]}, {"dict": {"x": {"array": ",i1", "shape": [1], "a": 0, "b": 0, "c": []}}}],
    ids=["a number for a table", "a list for a grid", "a type that is none"],
)
def test_what_has_another_form_than_a_frame_is_malformed(tree):
    text = json.dumps(tree).encode()
    pieces = [wire.HEAD.pack(wire.MAGIC, len(text), 0), text, b""]
    with pytest.raises(wire.Malformed, match=r"\Athe body of a frame is damaged: "):
        wire.unpack(lambda length: pieces.pop(0))


@pytest.mark.parametrize("name", [":Backend", ".near:Backend", "json:", ":"])
def test_a_name_with_a_part_missing_is_no_backends(name):
    told = rf"\Abackend: expected one of torch-x86, .* or module:attribute, got {name!r}"
    with pytest.raises(ValueError, match=told):
        registry.why_not_installed(name)


def test_a_module_that_was_not_imported_has_no_backend():
    assert registry.why_not_installed("a..b:X") == "not installed: there is no module a..b"
    found = registry.why_not_installed("json.nothing:X")
    assert found == "not installed: there is no module json.nothing"


def test_an_exception_of_no_kind_that_a_caller_knows_has_its_own_name():
    assert server.failure(KeyError("x")) == {"error": "KeyError", "message": "'x'"}
    assert server.failure(UnicodeError("x")) == {"error": "ValueError", "message": "x"}


def test_what_a_worker_lacks_is_told_with_its_name():
    with Worker("quantspec-exact") as worker, pytest.raises(
        AttributeError, match=exactly("Worker 'quantspec-exact' does not offer nothing")
    ):
        worker.nothing()
