"""Every public function answers every kind of hostile input with a result or one sentence of its own."""

import inspect
import re

import pytest

import quantspec as qs
from errors.inputs import INPUTS
from errors.page import PAGE, answers, section
from errors.table import FUNCTIONS

OBSERVED = {"minimum", "maximum", "counts", "exponent", "histogram"}
RENAMED = {"compare": {"q"}, "export_onnx": {"q"}}  # which the page calls quantized


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_input_gets_the_right_result_or_an_error_of_our_own(function):
    if function.startswith("export_onnx"):
        pytest.importorskip("onnx")
    found = answers(function)
    for end in ("raw", "wrong"):
        assert not {kind: text for kind, (found_end, text) in found.items() if found_end == end}
    assert all(text for _, text in found.values())
    # The page says what came of each call.
    assert section(function, found) in PAGE.read_text(encoding="utf-8"), "spec/errors.md is stale: run make errors"


def test_codes_of_a_search_that_are_none_are_refused():
    with pytest.raises(ValueError, match="^qmin, qmax: expected qmin < qmax, of at most 16 bits, got 3 and 3$"):
        qs.HistogramObserver(qmin=3, qmax=3)
    with pytest.raises(TypeError, match="^qmax: expected a whole number, got 2.5$"):
        qs.HistogramObserver(qmax=2.5)


def test_there_are_enough_kinds_of_input_and_every_public_function_is_called():
    assert len(INPUTS) >= 40
    called = {re.match(r"\w+", name)[0] for name in FUNCTIONS}
    results = {"Comparison", "Program"}  # which functions give, and nobody makes
    functions = {name for name in qs.__all__ if not inspect.ismodule(getattr(qs, name))}
    public = {name for name in functions if not (inspect.isclass(getattr(qs, name)) and name.endswith("Error"))}
    assert public - called == results and called <= public


def test_every_argument_of_every_public_function_is_given_hostile_inputs():
    # Those of ``prepare`` and ``prepare_qat`` that ``quantize`` has are checked by the same functions.
    shared = set(inspect.signature(qs.quantize).parameters)
    modules = {"QuantizedModule", "QATModule", "Prepared"}
    for name in sorted({re.match(r"\w+", name)[0] for name in FUNCTIONS} - modules):
        given = {argument for row in FUNCTIONS if row.startswith(name) for argument in re.findall(r"[a-z_]+", row)}
        arguments = set(inspect.signature(getattr(qs, name)).parameters)
        arguments -= shared if name in ("prepare", "prepare_qat") else set()
        # What observers have seen is theirs to say.
        assert arguments - given - OBSERVED == RENAMED.get(name, set()), name


def test_the_page_has_no_other_functions():
    headings = re.findall(r"^## `(.*)`$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert headings == list(FUNCTIONS)
