"""Chapter 11: backends. Deliberately wrong ones go through the whole machine, and each is caught by the clause that it
breaks."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from evidence import clause
from quantspec import chapters, cli
from quantspec.backends import protocol
from quantspec.backends.protocol import OPERATIONS
from quantspec.backends.pytorch import engines
from quantspec.backends.pytorch.engines import TorchEngine
from quantspec.backends.worker import OTHER, Worker, checking_library
from quantspec.conformance import checks, command, fingerprint, purity, results, run
from quantspec.conformance.call import Call, call_text
from quantspec.conformance.checks import CHECKS
from quantspec.conformance.draw_bulk import bulk
from quantspec.conformance.passed_on import checksums
from quantspec.conformance.session import Session, Violation, compare, reference
from quantspec.conformance.shrink import smallest
from quantspec.numerics import integer
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import DIALECTS

pytestmark = pytest.mark.usefixtures("copied_workers")
spec = chapters.load("backends")
# A group is a call of its own, so that the clause about groups takes as long as all others together.
GROUPED = 12
FAULTY = "conformance.faulty_backends"
CHECK = {(check.clause, check.operation): check for check in CHECKS}


class Here:
    """A backend in this process, with what a worker adds to it."""

    wrote = ""

    def __init__(self, backend, dialect=None):
        self.backend, self.dialect = backend, dialect or backend.dialect
        self.operations = OPERATIONS

    def __getattr__(self, name):
        return getattr(self.backend, name)


@pytest.fixture(scope="module")
def sound():
    with Worker(f"{FAULTY}:Sound") as worker, Worker(f"{FAULTY}:Sound", threads=2) as more:
        yield Session(worker, more_threads=more)


def found(name: str, clause_id: str, operation: str, seconds: float = 20.0, examples: int = 60) -> run.Finding:
    return all_found(name, clause_id, operation, seconds, examples)[0]


def all_found(
    name: str, clause_id: str, operation: str, seconds: float = 20.0, examples: int = 60
) -> list[run.Finding]:
    with Worker(f"{FAULTY}:{name}", seconds=seconds) as worker:
        return run.examine(CHECK[clause_id, operation], Session(worker), examples)


@clause(*dict.fromkeys(check.clause for check in CHECKS if check.clause.startswith("BAK")))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.clause}-{check.operation}")
def test_a_sound_backend_breaks_no_clause(check, sound):
    (finding,) = run.examine(check, sound, 12)
    assert finding.outcome == "pass" and finding.examples == (12 if check.beyond is None else 18), finding


@clause("BAK-PURE")
@pytest.mark.parametrize("operation", run.PURITY)
def test_a_sound_backend_answers_in_every_story_as_alone(sound, operation):
    told = [(finding.clause, finding.operation, finding.outcome) for finding in run.examine_purity(sound, operation)]
    assert told == [("BAK-PURE", operation, "pass")]


def case(name, clause_id, operation):
    return pytest.param(name, clause_id, operation, marks=clause(clause_id), id=f"{name}-{clause_id}")


@pytest.mark.parametrize(
    ("name", "clause_id", "operation"),
    [
        case("TiesAway", "BAK-DIALECT", "quantize"),
        case("OtherTail", "BAK-PLACE", "quantize"),
        case("OneRowAtATimeDiffers", "BAK-PLACE", "linear"),
        case("Wraps", "BAK-SATURATE", "quantize"),
        case("Wraps", "BAK-INFINITY", "quantize"),
        case("NanAtTheEnd", "BAK-NAN", "quantize"),
        case("NothingGivesZero", "BAK-EMPTY", "linear"),
        case("TakesAnyScale", "BAK-QPARAMS", "quantize"),
        case("OneGroupForAll", "BAK-GROUPS", "conv2d"),
        case("PadsWithZeros", "INT-CONV-PAD", "conv2d"),
        case("ClampsAtZero", "INT-RELU-LINEAR", "linear"),
        case("WritesToItsInput", "BAK-ARGUMENTS", "linear"),
        case("NoBiasIsGarbage", "INT-NO-BIAS", "linear"),
        case("Rises", "AFF-MONOTONE", "quantize"),
        case("Rises", "AFF-ROUNDTRIP", "quantize"),
    ],
)
def test_a_faulty_backend_is_caught_by_the_clause_it_breaks(name, clause_id, operation):
    finding = found(name, clause_id, operation, examples=GROUPED if clause_id == "BAK-GROUPS" else 60)
    assert finding.outcome == "fails" and finding.call is not None and finding.allowed and finding.got


@pytest.mark.parametrize(
    ("name", "clause_id", "operation"),
    [
        case("ManyGroupsSaturate", "BAK-GROUPS", "conv2d"),
        case("ManyGroupsSaturate", "BAK-DIALECT", "conv2d"),
        case("LaterColumnsDiffer", "BAK-PLACE", "linear"),
        case("LaterColumnsDiffer", "BAK-DIALECT", "linear"),
        case("DepthwiseWeightsOnZero", "BAK-DIALECT", "conv2d"),
        case("ChannelsLastDiffer", "BAK-PLACE", "max_pool2d"),
        case("TakesAnyRange", "BAK-RANGE", "qparams"),
        case("NanInChannels", "BAK-NAN", "quantize"),
        case("WritesIntoAList", "BAK-ARGUMENTS", "concat"),
    ],
)
def test_a_fault_beyond_ordinary_calls_is_caught_by_the_clause_it_breaks(name, clause_id, operation):
    finding = found(name, clause_id, operation, examples=GROUPED if clause_id == "BAK-GROUPS" else 40)
    assert finding.outcome == "fails" and finding.shape and finding.call is not None


@clause("BAK-ANSWER")
def test_a_crash_and_a_hang_are_findings_and_the_run_ends_by_itself():
    crash = found("Crashes", "BAK-ANSWER", "linear")
    assert (
        crash.outcome == "fails"
        and crash.got.startswith("crashed: SIGFPE on linear(")
        and crash.call.arguments[0].shape[1] == 0
    )
    hang = found("Hangs", "BAK-ANSWER", "linear", seconds=0.5)
    assert hang.outcome == "fails" and hang.got.startswith("hung: no answer after 0.5 s on linear(")


@clause("BAK-ANSWER")
@pytest.mark.skipif(checking_library() is None, reason="the C library here has no checks of memory")
def test_a_call_that_writes_beyond_its_memory_is_found_itself():
    for finding in all_found("WritesBeyond", "BAK-ANSWER", "conv2d"):
        assert finding.shape.startswith("crashed: SIGABRT (") and finding.call.options["groups"] > 1


@clause("BAK-DIALECT")
def test_a_call_that_ends_a_new_process_is_no_smaller_one_of_another_kind():
    """It may be answered by what happens to lie in the memory of one that lives on."""
    finding = found("DiesOfSmallCalls", "BAK-DIALECT", "linear")
    assert finding.outcome == "fails" and len(finding.call.arguments[0]) == 2 and "254" in finding.got


@clause("BAK-PURE")
@pytest.mark.parametrize(
    ("name", "operation"),
    [("KeepsTheScale", "linear"), ("KeepsThePacked", "linear"), ("KeepsTheReLU", "conv2d"), ("KeepsTheScale", "all")],
)
def test_state_that_leaks_between_calls_is_found_with_the_shortest_story(name, operation):
    with Worker(f"{FAULTY}:{name}") as worker:
        finding = run.examine_purity(Session(worker), operation)[0]
    assert finding.outcome == "fails" and len(finding.before) == 1
    assert finding.before[0].operation == finding.call.operation == ("conv2d" if name == "KeepsTheReLU" else "linear")


@clause("BAK-PURE")
def test_what_is_kept_is_kept_in_stories_only():
    assert (
        found("KeepsThePacked", "BAK-DIALECT", "linear").outcome
        == found("KeepsThePacked", "BAK-PLACE", "linear").outcome
        == "pass"
    )


@clause("BAK-PURE")
def test_a_call_that_ends_the_process_after_another_one_only_is_found():
    with Worker(f"{FAULTY}:DiesOfTheOtherKind") as worker:
        finding = run.examine_purity(Session(worker), "linear_dynamic")[0]
        assert run.examine_purity(Session(worker), "linear")[0].outcome == "pass"
    assert finding.got.startswith("crashed: SIGSEGV on linear_dynamic(")
    assert [call.operation for call in finding.before] == ["linear"]


@clause("BAK-PURE")
def test_a_story_none_of_whose_calls_lives_alone_says_nothing():
    grid = QParams(1, 0, 0, 255)
    nothing = np.zeros((1, 0), np.uint8), grid, np.zeros((1, 0), np.int8), QParams(1, 0, -128, 127), None, grid
    with Worker(f"{FAULTY}:Crashes") as worker:
        session = Session(worker)
        assert session.death(story := [Call("linear", nothing, {})] * 2)
        purity.hold(session, story)


@clause("BAK-PURE")
def test_pairs_are_told_alone_as_well_as_in_long_stories():
    """In a story that begins with a dynamic call, nothing goes wrong."""
    with Worker(f"{FAULTY}:DiesUnlessDynamicCameFirst") as worker:
        session = Session(worker)
        *_, story = purity.arranged("linear_dynamic")
        purity.hold(session, story)
        (finding,) = run.examine_purity(session, "linear_dynamic")
    assert finding.shape == "crashed: SIGSEGV" and [call.operation for call in finding.before] == ["linear"]


@clause("BAK-PLACE")
def test_what_depends_on_the_number_of_threads_is_found():
    name = f"{FAULTY}:ThreadsDiffer"
    with Worker(name) as worker, Worker(name, threads=2) as more:
        assert run.examine(CHECK["BAK-PLACE", "quantize"], Session(worker), 20)[0].outcome == "pass"
        session = Session(worker, more_threads=more)
        assert run.examine(CHECK["BAK-PLACE", "quantize"], session, 20)[0].outcome == "fails"


@clause("BAK-ANSWER")
def test_an_internal_assertion_is_told_as_what_it_is():
    (finding,) = all_found("Asserts", "BAK-ANSWER", "linear", examples=30)
    assert finding.shape == "an internal assertion (empty)"
    assert finding.got == "an internal assertion: AssertionError: blocks > 0"


@clause("BAK-DIALECT")
def test_a_known_divergence_hides_no_other_of_the_same_clause_and_operation():
    findings = all_found("OneFaultBehindAnother", "BAK-DIALECT", "linear", examples=20)
    assert [finding.outcome for finding in findings] == ["fails"] * len(findings)
    shapes = {finding.shape for finding in findings}
    assert "neighbouring codes" in shapes and shapes - {"neighbouring codes"}
    one = results.recorded("mine", "1", "cpu", findings, [], {})
    known = results.Known("mine", "BAK-DIALECT", "linear", ["neighbouring codes"], "a bias that is half a step too low")
    complaints = results.complaints([one], [known])
    assert len(complaints) == len(findings) - 1 and "fails, neighbouring codes, " not in "".join(complaints)


@clause("BAK-DIALECT")
def test_an_adapter_that_passes_on_something_else_is_seen_behind_what_is_known():
    passed = []
    for name in ("PassesOn", "PassesOnNoBias"):
        with Worker(f"{FAULTY}:{name}") as worker:
            passed.append(checksums(worker))
    assert [list(sums) for sums in passed] == [["linear"]] * 2
    then, same, now = (results.recorded("mine", "1", "cpu", [], [], sums) for sums in (passed[0], *passed))
    assert results.passes_on_otherwise(same, [then]) == []
    (complaint,) = results.passes_on_otherwise(now, [then])
    assert complaint == "mine linear: its adapter passes on other calls than were recorded."


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch says once in a process that it is deprecated
@clause("BAK-PURE")
def test_an_adapter_that_keeps_packed_weights_packs_others_for_another_zero_point():
    engine = TorchEngine("fbgemm")
    engine.keep()
    x_q, w_q = np.full((1, 4), 3, np.uint8), np.full((2, 4), 5, np.int8)
    grid = QParams(1, 0, 0, 255)
    for zero_point in (0, 2, 0):
        codes = engine.linear(x_q, grid, w_q, QParams(1, zero_point, -128, 127), None, grid)
        assert codes.tolist() == [[12 * (5 - zero_point)] * 2]


@clause("BAK-PLACE")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch says once in a process that it is deprecated
def test_an_adapter_passes_channels_last_on_to_a_kernel_that_has_it():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    for layout, expected in ((images, False), (checks.channels_last(images), True)):
        assert protocol.has_channels_last(layout) == expected and np.array_equal(layout, images)
        tensor = engines.activation(layout, QParams(1, 0, 0, 255))
        assert tensor.is_contiguous(memory_format=torch.channels_last) == expected
        assert np.array_equal(tensor.int_repr().numpy(), images)
    one_channel = images[:, :1].copy()  # both orders at once
    assert not protocol.has_channels_last(one_channel)


@clause("BAK-EMPTY")
def test_memory_that_nobody_wrote_is_told_as_such_and_found_every_time():
    findings = []
    for _ in range(2):
        with (
            Worker(f"{FAULTY}:ForgetsToWrite") as worker,
            Worker(f"{FAULTY}:ForgetsToWrite", threads=2, unwritten=OTHER) as more,
        ):
            findings += run.examine(CHECK["BAK-EMPTY", "linear"], Session(worker, more_threads=more), 60)
    assert len(findings) == 2
    assert findings[0].got == findings[1].got == "what happened to be in memory that nobody wrote"
    assert call_text(findings[0].call) == call_text(findings[1].call)


@clause("BAK-ANSWER")
def test_an_installed_backend_that_dies_at_start_up_is_a_failure(monkeypatch, capsys, tmp_path):
    broken = "conformance.broken_backends"
    monkeypatch.setattr(command, "OWN", (f"{broken}:CannotBeMade",))
    monkeypatch.setattr(command, "PEERS", (f"{broken}:DiesWhenMade",))
    (tmp_path / "results").mkdir()
    assert cli.main(["conformance", "--write", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"{broken}:CannotBeMade: this build lacks it\n" in said
    assert "crashed: SIGILL on start-up" in said and said.endswith(
        "conformance: 0 backends, 0 clauses, 0 divergences, 1 unexplained\n"
    )


@clause("BAK-DIALECT")
@pytest.mark.parametrize(
    "place", [place for place in fingerprint.PLACES if place.name != "accumulate"], ids=lambda place: place.name
)
def test_every_choice_made_otherwise_than_declared_is_caught(place):
    right = DIALECTS["onnx"]
    for field in place.fields[: place.subjects]:
        for other in sorted({getattr(rules, field) for rules in DIALECTS.values()} - {getattr(right, field)}):
            session = Session(Here(reference(replace(right, **{field: other})), "onnx"))
            assert any(breaks(session, call) for call in (*bulk(place.operation, count=6), *place.probes())), (
                f"{field}: {other} passes for onnx"
            )


def breaks(session, call) -> bool:
    try:
        CHECK["BAK-DIALECT", call.operation].test(session, call)
    except Violation:
        return True
    return False


@clause("BAK-DIALECT", "DIA-NAMED")
@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_fingerprint_tells_every_dialect_from_outside(name):
    session = Session(Here(reference(name)))
    choices = [fingerprint.probe(session, place) for place in fingerprint.PLACES]
    assert not [choice for choice in choices if choice.choice in ("other", "not offered")]
    assert fingerprint.consistent(choices) == [name]


@clause("BAK-EMPTY")
def test_what_comes_out_of_nothing_is_what_the_bias_gives():
    x, w, y = (0.5, 128), [(0.25, 0), (0.5, 0)], (0.125, 10, 0, 255)
    got = integer.linear(
        np.zeros((3, 0), np.uint8), QParams(0.5, 128, 0, 255),
        np.zeros((2, 0), np.int8), QParams(np.float32([0.25, 0.5]), 0, -128, 127, axis=0),
        np.float32([1.0, -2.0]), QParams(0.125, 10, 0, 255),
    )  # fmt: skip
    assert got.tolist() == spec.empty_linear(3, [1.0, -2.0], x, w, y) == [[18, 0]] * 3


@clause("BAK-PLACE")
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 33])
def test_places_are_in_whole_vectors_or_left_over(length):
    whole, left = spec.places(length, 16)
    assert whole + left == list(range(length)) and len(whole) % 16 == 0 and len(left) < 16


@clause("BAK-DIALECT")
def test_the_smallest_call_is_small():
    finding = found("TiesAway", "BAK-DIALECT", "quantize")
    (x, scale, zero_point) = finding.call.arguments
    assert np.size(x) == 1 and np.ndim(scale) == 0 and float(scale) == 1.0 and zero_point in (0, 1)


@clause("BAK-DIALECT")
def test_cutting_down_never_leaves_what_breaks():
    call = Call("quantize", (np.arange(40, dtype=np.float32) / 4, np.float32(0.25), 3), {"qmin": 0, "qmax": 255})
    least = smallest(call, lambda c: 1.5 in (np.asarray(c.arguments[0]) / np.float32(0.25) / 4).tolist())
    assert np.asarray(least.arguments[0]).size == 1


@clause("BAK-DIALECT")
def test_an_answer_of_another_shape_or_kind_is_a_violation():
    call = Call("dequantize", (np.zeros(2, np.uint8), np.float32(1), 0))
    for wrong in (np.zeros(3, np.float32), np.zeros((1, 2), np.float32), np.zeros(2, np.uint8)):
        with pytest.raises(Violation):
            compare(call, wrong, [("exact", np.zeros(2, np.float32))])
    compare(
        call, np.array([0, np.nan], np.float32), [("a", np.zeros(2, np.float32)), ("b", np.full(2, np.nan, np.float32))]
    )


@clause("BAK-PURE")
def test_a_story_knows_nothing_of_the_calls_before_it(sound):
    call = Call("dequantize", (np.arange(3, dtype=np.uint8), np.float32(0.5), 1))
    purity.hold(sound, [call, call])
    with Worker(f"{FAULTY}:KeepsTheScale") as worker:
        session = Session(worker)
        (first,) = [check for check in CHECKS if (check.clause, check.operation) == ("INT-RELU-LINEAR", "linear")]
        assert run.examine(first, session, 5)[0].outcome in ("pass", "fails")
        assert all(outcome.kind == "value" for outcome in session.story([call, call]))


@clause("BAK-ANSWER")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "NoSuchShape",
            "the adapter's linear returns uint8.2, 2. on an easy call, expected about|the adapter's linear returns",
        ),
        ("Offers", "it has no method of the protocol"),
    ],
)
def test_a_broken_adapter_is_told_from_a_broken_backend(name, message, capsys):
    assert cli.main(["conformance", "--backend", f"{FAULTY}:{name}"]) == 2
    assert re.search(message, capsys.readouterr().err)
