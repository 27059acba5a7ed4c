"""Parts of the examination by themselves, with answers made by hand."""

import itertools
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantspec.backends.outcome import Hung, Outcome
from quantspec.conformance import checks, fingerprint, purity, results, run, shape, shrink, stories
from quantspec.conformance.call import Call, call_text, value_text
from quantspec.conformance.run import Finding
from quantspec.conformance.session import Session, Undecided, Violation, answer_of, reference
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import DIALECTS

GRID = QParams(np.float32(0.5), np.int32(3), 0, 255)
CODES = np.uint8([[1, 2], [3, 4]])
JOINED = Call("concat", ([(CODES, GRID), (CODES, GRID)], GRID), {"axis": 1})
NUMBERS = Call("quantize", (np.float32([1, 2]), np.float32(0.5), 3), {"qmin": 0, "qmax": 255})


def test_calls_are_told_in_one_line_and_no_call_in_none():
    assert call_text(None) == ""
    assert call_text(Call("qparams", ([1, 2], 0.5), {"symmetric": True})) == (
        "qparams([1, 2], 0x1.0000000000000p-1, symmetric=True)"
    )
    assert call_text(Call("dequantize", (CODES, np.float32(0.75), np.int32(-3)), {"grid": GRID})) == (
        "dequantize(uint8[2x2]{1, 2, 3, 4}, 0x1.8000000000000p-1, -3, grid=(0x1.0000000000000p-1, 3, 0..255))"
    )


@given(st.floats(width=32, allow_nan=False))
def test_floats_are_told_without_loss(value):
    for kind in (float, np.float32, lambda one: np.array(one, np.float64)):
        assert float.fromhex(value_text(kind(value))) == value
    (told,) = re.fullmatch(r"float32\[1\]\{(.*)\}", value_text(np.float32([value]))).groups()
    assert float.fromhex(told) == value


def test_of_a_large_array_the_first_64_elements_are_told():
    for size, rest in ((64, ""), (65, ", ...")):
        assert value_text(np.arange(size)) == f"int64[{size}]{{{', '.join(map(str, range(64)))}{rest}}}"


def test_purity_of_an_operation_that_is_not_offered_is_not_offered():
    session = SimpleNamespace(worker=SimpleNamespace(operations=["add"]))
    assert run.examine_purity(session, "mul") == [
        Finding("BAK-PURE", "mul", "not offered", reason="mul is not offered")
    ]


def test_what_is_no_number_is_a_difference_of_its_own():
    one, nan = np.float32([1.0]), np.float32([np.nan])
    assert shape.real_difference(nan, [one]) == shape.real_difference(one, [nan]) == "NaN"


def test_calls_are_cut_down_to_fewer_rows():
    smaller = [call.arguments[0] for call in shrink.joined(JOINED)]
    assert any(len(parts) == 2 and parts[0][0].shape == (1, 2) for parts in smaller)
    back = Call("dequantize", (CODES, np.float32(0.5), 3))
    assert all(call.arguments[0].size < CODES.size for call in shrink.elementwise(back))


def test_a_backend_that_answers_with_nothing_makes_no_choice_that_is_known():
    """No element of nothing differs: the first of all alternatives was taken for its choice."""
    place = next(place for place in fingerprint.PLACES if place.name == "symmetric")
    answers = SimpleNamespace(answer=lambda call: (np.zeros(0, np.float32), np.zeros(0, np.int64)))
    choice = fingerprint.probe(answers, place)
    assert (choice.choice, choice.outputs) == ("other", 0)
    assert choice.counterexample.startswith("qparams(") and " gives nothing, which " in choice.counterexample


def test_findings_are_written_with_what_they_have_and_read_as_they_were(tmp_path):
    findings = [
        Finding("BAK-NAN", "quantize", "fails", call=NUMBERS, allowed="3", got="4", shape="neighbouring codes"),
        Finding("BAK-DIALECT", "quantize", "fails", call=NUMBERS, outputs=7, differ=2),
    ]
    found = results.recorded("mine", "1", "x86", findings, [], {"quantize": "abc"})
    results.write(tmp_path, found)
    (read,) = results.read_all(tmp_path)
    assert read.passed_on == {"quantize": "abc"}
    assert [("differ" in table) for table in read.findings] == [False, True]


def died(*_):
    raise Hung("no answer after 1 s", "quantize()", "")


def undecided(*_, **__):
    raise Undecided("not offered: quantize")


def test_a_story_that_ends_no_process_says_nothing():
    with pytest.raises(Undecided, match="no answer after 1 s"):
        Session(SimpleNamespace(story=died)).story([NUMBERS])
    with pytest.raises(AttributeError, match="object does not offer quantize"):
        answer_of(object(), NUMBERS)
    assert checks.empty(SimpleNamespace(answer=undecided), NUMBERS) is None


def test_what_is_not_answered_has_no_memory_that_nobody_wrote():
    refused = SimpleNamespace(more_threads=object(), ask=lambda call, threads: Outcome("refused", message="no"))
    assert not run.unwritten(refused, NUMBERS)
    values = iter((Outcome("value", value=CODES), Outcome("value", value=CODES + 1)))
    assert run.unwritten(SimpleNamespace(more_threads=object(), ask=lambda call, threads: next(values)), NUMBERS)


def test_purity_that_cannot_be_asked_for_is_not_offered(monkeypatch):
    monkeypatch.setattr(stories, "search", undecided)
    (finding,) = run.examine_purity(SimpleNamespace(worker=SimpleNamespace(operations=["linear"])), "linear")
    assert finding.outcome == "not offered" and finding.reason == "not offered: quantize"


def test_a_call_that_is_refused_after_another_one_alone_is_impure():
    answers = Outcome("value", value=CODES)
    session = SimpleNamespace(
        alone=lambda call: answers, death=lambda story: "",
        story=lambda story: [answers, Outcome("refused", message="no")],
    )  # fmt: skip
    with pytest.raises(purity.Impure) as caught:
        purity.hold(session, [NUMBERS, JOINED])
    assert caught.value.call is JOINED and caught.value.got == "refused no" and caught.value.allowed == "value"


@pytest.mark.parametrize(
    ("deaths", "length", "got"),
    [
        (["crashed: SIGSEGV on it", "", "crashed: SIGABRT on it"], 2, "crashed: SIGABRT on it"),
        (["crashed: SIGSEGV on it", "", ""], 2, "crashed: SIGSEGV on it"),
        (["crashed: SIGSEGV on it", "crashed: SIGSEGV on it"], 1, "crashed: SIGSEGV on it"),
        (["", "", ""], 2, "crashed: SIGBUS on a story"),
    ],
)
def test_a_process_that_dies_of_a_story_now_and_then_is_told_as_dead(deaths, length, got):
    """Where no beginning of the story ended it again, the run ended in an error of its own."""

    def dies(calls):
        raise Undecided("crashed: SIGBUS on a story")

    left = iter(deaths)
    alone = Outcome("value", value=CODES)
    session = SimpleNamespace(alone=lambda call: alone, death=lambda calls: next(left), story=dies)
    with pytest.raises(purity.Impure) as caught:
        purity.hold(session, [NUMBERS, JOINED])
    assert len(caught.value.story) == length and caught.value.call is caught.value.story[-1]
    assert (caught.value.got, caught.value.how) == (got, got.split(" on ")[0])


def test_a_choice_that_breaks_the_protocol_is_another_one():
    place = next(place for place in fingerprint.PLACES if place.operation == "quantize")

    def broken(call):
        raise Violation(call, "codes", "floats", how="of another kind")

    choice = fingerprint.probe(SimpleNamespace(answer=broken), place)
    assert choice.choice == "other" and choice.counterexample == "floats"
    assert not fingerprint.matches(place, DIALECTS["exact"], 0, [np.zeros((3, 5, 7))]).any()


def test_a_shorter_story_that_goes_wrong_elsewhere_is_another_one(monkeypatch):
    """Without its second call, the first goes wrong itself, and without the first, none."""
    first, second = NUMBERS, Call("dequantize", (CODES, np.float32(0.5), 3))

    def hold(session, story):
        kept = [call for call in story if call is not JOINED]
        if kept and kept[0] is first:
            end = 1 if len(kept) == 1 else len(story)
            raise purity.Impure(Violation(story[end - 1], "1", "2", how="value"), tuple(story[:end]))

    monkeypatch.setattr(run, "hold", hold)
    for extra in ([], [JOINED], [JOINED] * 2):
        story = (*extra, first, *extra, second, JOINED)
        broken = purity.Impure(Violation(JOINED, "1", "2", how="value"), story)
        violation, before = run.shortest(None, broken)
        assert violation.call is JOINED and [call is first for call in before] == [True, False]


def test_a_backend_that_gives_each_answer_of_one_of_two_alternatives_makes_a_choice_of_both():
    place = next(place for place in fingerprint.PLACES if place.name == "symmetric")
    answers = {id(call): index for index, call in enumerate(place.probes())}
    rules = dict(fingerprint.alternatives(place))
    for one, other in itertools.combinations(rules, 2):
        sides = [reference(rules[name]) for name in (one, other)]
        session = SimpleNamespace(answer=lambda call, of=sides: answer_of(of[answers[id(call)] % 2], call))
        choice = fingerprint.probe(session, place)
        assert choice.choice == f"{one} or {other}" and choice.outputs == 2 * len(answers)


def test_an_answer_to_what_every_alternative_refuses_is_none_of_theirs():
    nothing = Call("quantize", (np.float32([1, 2]), np.float32(0), 3), {"qmin": 0, "qmax": 255})
    place = fingerprint.Place("refused", "DIA-QUANTIZE", "quantize", ("quantize_rule",), lambda: [nothing])
    choice = fingerprint.probe(SimpleNamespace(answer=lambda call: np.uint8([0, 255])), place)
    assert (choice.choice, choice.outputs) == ("other", 2)


@pytest.mark.parametrize("lowest", [0, -128])
def test_a_story_goes_on_with_the_same_layer_on_another_input_grid(lowest):
    grid = QParams(np.float32(0.5), np.int32(lowest + 3), lowest, lowest + 255)
    weight, w = np.int8([[1, -2], [3, 4]]), QParams(np.float32(0.25), np.int32(0), -128, 127)
    codes = (CODES.astype(np.int16) + lowest).astype(np.uint8 if lowest == 0 else np.int8)
    layer = Call("linear", (codes, grid, weight, w, None, GRID), {"relu": False})
    told = stories.machine(SimpleNamespace())()
    told.begin(layer=layer, window=None)
    for factor, zero_point in itertools.product([0.5, 2.0, 3.0], [0, 3, 128]):
        told.same_layer_other_input_grid(factor=factor, zero_point=zero_point)
        call = told.story[-1]
        other = call.arguments[1]
        assert (float(other.scale), int(other.zero_point) - lowest) == (0.5 * factor, zero_point)
        assert (other.qmin, other.qmax) == (grid.qmin, grid.qmax) and call.arguments[2] is weight
        assert answer_of(reference("exact"), call).shape == (2, 2)
