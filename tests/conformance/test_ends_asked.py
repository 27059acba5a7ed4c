"""Checks on backends in this process that are wrong at one place only, and what is told of them."""

import numpy as np
import pytest

from quantspec.backends.reference import ReferenceBackend
from quantspec.conformance import checks, command, run
from quantspec.conformance.call import Call
from quantspec.conformance.fingerprint import Choice
from quantspec.conformance.session import Session, Violation
from quantspec.numerics.affine import QParams

EXACT = ReferenceBackend("exact")
X, W = QParams(np.float32(0.5), 3, 0, 255), QParams(np.float32(0.25), 0, -128, 127)
Y = QParams(np.float32(32), 99, 0, 255)
BY_OUTPUT = QParams(np.float32([0.25, 0.5, 0.75, 1, 2, 3]), 0, -128, 127, 0)
generator = np.random.default_rng(5)


def codes(*shape: int, signed: bool = False) -> np.ndarray:
    return generator.integers(*((-20, 20) if signed else (20, 90)), shape).astype(np.int8 if signed else np.uint8)


IMAGES, ROWS = codes(2, 4, 5, 5), codes(3, 7)
WINDOW = {"kernel": (2, 2)}
CALLS = {
    "quantize": Call("quantize", (np.float32([[1, 5, 9, -3, 2]]), X.scale, 3), {"qmin": 0, "qmax": 255}),
    "dequantize": Call("dequantize", (codes(1, 5), X.scale, 3), {}),
    "linear": Call("linear", (ROWS, X, codes(6, 7, signed=True), BY_OUTPUT, np.arange(6, dtype=np.float32), Y), {}),
    "linear_dynamic": Call(
        "linear_dynamic", (np.float32([[1, 2], [3, -4], [5, 2]]), codes(2, 2, signed=True), W, None), {}
    ),
    "conv2d": Call("conv2d", (IMAGES, X, codes(4, 2, 2, 2, signed=True), W, None, Y), {"groups": 2}),
    "max_pool2d": Call("max_pool2d", (IMAGES, X), WINDOW),
    "avg_pool2d": Call("avg_pool2d", (IMAGES, X), WINDOW),
    "adaptive_avg_pool2d": Call("adaptive_avg_pool2d", (IMAGES, X), {"size": (1, 1)}),
    "add": Call("add", (IMAGES, X, codes(2, 4, 5, 5), X, Y), {}),
    "mul": Call("mul", (IMAGES, X, codes(2, 4, 5, 5), X, Y), {}),
}


class WrongAt:
    """The arithmetic of ``exact``; an answer with more elements along an axis than one is off by one at an index of
    it."""

    name, version, dialect, wrote = "wrong", "1", "exact", ""

    def __init__(self, axis: int, index: int) -> None:
        self.axis, self.index = axis, index

    def __getattr__(self, operation: str):
        def answer(*arguments, **options):
            right = np.array(getattr(EXACT, operation)(*arguments, **options))
            if right.shape[self.axis] > 1:
                place = [slice(None)] * right.ndim
                place[self.axis] = self.index
                right[tuple(place)] += 1
            return right

        return answer


# Of an axis the first and the last element are asked for alone, and of some the one in the middle.
@pytest.mark.parametrize(
    ("operation", "axis", "index"),
    [
        *((name, 1, index) for name in ("quantize", "dequantize") for index in (0, 2, -1)),
        *(("linear", 0, index) for index in (0, -1)), *(("linear", 1, index) for index in (0, 3, -1)),
        *((name, 0, index) for name in ("conv2d", "max_pool2d", "avg_pool2d") for index in (0, -1)),
        *((f"{kind}_pool2d", 1, index) for kind in ("max", "avg", "adaptive_avg") for index in (0, -1)),
        *((name, 1, index) for name in ("add", "mul") for index in (0, -1)),
    ],
)  # fmt: skip
def test_an_element_that_is_wrong_among_others_is_found(operation, axis, index):
    whole = EXACT_ANSWERS[operation]
    with pytest.raises(Violation) as found:
        checks.place(Session(WrongAt(axis, index)), CALLS[operation])
    assert found.value.call.operation == operation and whole.shape[axis] > 1


EXACT_ANSWERS = {name: getattr(EXACT, name)(*call.arguments, **call.options) for name, call in CALLS.items()}


@pytest.mark.parametrize("operation", CALLS)
def test_parts_of_a_call_are_answered_with_parts_of_its_answer(operation):
    session = Session(EXACT, more_threads=EXACT)
    assert checks.place(session, CALLS[operation]) is None
    for part, pick in checks.alone(CALLS[operation]):
        expected = pick(EXACT_ANSWERS[operation])
        assert expected.size and session.answer(part)[: len(expected)].tolist() == expected.tolist()


class Twice:
    """A backend whose ``operation`` gives one more where ``wrong`` says so of the call."""

    name, version, dialect, wrote = "twice", "1", "exact", ""

    def __init__(self, wrong) -> None:
        self.wrong = wrong

    def __getattr__(self, operation: str):
        def answer(*arguments, **options):
            return getattr(EXACT, operation)(*arguments, **options) + self.wrong(arguments, options)

        return answer


def told(check, wrong, call: Call) -> tuple[str, str, str]:
    with pytest.raises(Violation) as found:
        check(Session(Twice(wrong)), call)
    return found.value.allowed, found.value.got, found.value.shape


def test_what_is_allowed_is_told_with_where_it_is_from():
    conv, linear = CALLS["conv2d"], CALLS["linear"]
    first = {name: answer.ravel()[0] for name, answer in EXACT_ANSWERS.items()}
    grouped = told(checks.groups, lambda arguments, options: np.uint8(options["groups"] > 1), conv)
    assert grouped == (
        f"{first['conv2d']} (its groups alone) at [0, 0, 0, 0]",
        f"{first['conv2d'] + 1} at [0, 0, 0, 0], 128 of 128 differ", "neighbouring codes (grouped)",
    )  # fmt: skip
    unbiased = told(checks.no_bias, lambda arguments, options: np.uint8(arguments[4] is None), linear)
    assert unbiased[0].endswith(" (with a bias of 0) at [0, 0]") and unbiased[2] == "neighbouring codes"
    padded = Call("conv2d", conv.arguments, {"groups": 2, "padding": (1, 2)})
    written = told(checks.padding_is_zero, lambda arguments, options: np.uint8(options["padding"] != (0, 0)), padded)
    assert written[0].endswith(" (with its zeros written out) at [0, 0, 0, 0]")
    named = told(checks.dialect, lambda *_: np.uint8(1), CALLS["max_pool2d"])
    assert named[0] == f"{first['max_pool2d']} (exact) at [0, 0, 0, 0]"
    falling = Call("quantize", (np.float32([3, 1, 2]), X.scale, 3), {"qmin": 0, "qmax": 255})
    falls = told(checks.monotone, lambda arguments, options: np.uint8([0, 9, 0]), falling)
    assert falls == ("codes that do not fall", "a fall behind element 1", "a fall (per tensor)")


class Writes(WrongAt):
    """Right everywhere, and able to write calls down."""

    def __init__(self) -> None:
        super().__init__(0, 0)

    def reproduction(self, operation: str, /, *arguments, before=(), **options) -> str:
        return f"{[name for name, *_ in before]} {operation} {len(arguments)} {sorted(options)}"


def test_calls_are_written_down_by_the_backend_one_after_the_other():
    linear, conv = CALLS["linear"], CALLS["conv2d"]
    assert run.reproduction(Session(Writes()), [conv]) == "[] conv2d 6 ['groups']"
    assert run.reproduction(Session(Writes()), [linear, conv, linear]) == "['linear', 'conv2d'] linear 6 []"
    assert run.reproduction(Session(EXACT), [linear]) == ""


def test_choices_are_shown_in_a_table_with_the_dialects_that_make_them(monkeypatch, capsys):
    choices = [
        Choice("quantize", "DIA-QUANTIZE", "quantize", "fused", 1234),
        Choice("sums", "DIA-ADD", "add", "other", 0, "add(<1>)"), Choice("mean", "DIA-AVERAGE", "avg", "not offered"),
    ]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "79")
    monkeypatch.setattr(command, "fingerprint", lambda name: choices if name == "quantspec-exact" else [])
    monkeypatch.setattr(command, "consistent", lambda of: ["one", "two"] if of == choices else [])
    from quantspec import cli

    assert cli.main(["fingerprint", "quantspec-exact"]) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == SHOWN.splitlines()[1:]
    assert cli.main(["fingerprint", "quantspec-onnx"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "dialects that make all of these choices: none"


SHOWN = """
the choices of quantspec-exact
┏━━━━━━━━━━┳━━━━━━━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━┓
┃ place    ┃ clause       ┃ choice      ┃ outputs ┃
┡━━━━━━━━━━╇━━━━━━━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━┩
│ quantize │ DIA-QUANTIZE │ fused       │   1,234 │
│ sums     │ DIA-ADD      │ other       │         │
│          │              │ add(<1>)    │         │
│ mean     │ DIA-AVERAGE  │ not offered │         │
└──────────┴──────────────┴─────────────┴─────────┘
dialects that make all of these choices: one, two
"""
