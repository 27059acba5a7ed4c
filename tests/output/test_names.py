"""Names that are unknown are answered with those near them, and with the list."""

import inspect

import pytest
import torch
from torch import nn

import quantspec as qs
from quantspec import errors


@pytest.fixture(scope="module")
def model():
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(2))).eval()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: qs.quantize(m, [x], per_chanel=True), "quantize: argument: .*'per_chanel'; .*mean per_channel"),
        (lambda m, x: qs.quantize(m, [x], exclude=3), "exclude: expected paths of modules, got 3"),
        (lambda m, x: qs.quantize(m, [x], observer="MSEObserver"), "observer: .*MinMaxObs.*; did you mean MSEObs"),
        (lambda m, x: qs.quantize(m, [x], dialect="fbgem"), "dialect: .*onednn.*got 'fbgem'; did you mean fbgemm"),
        (lambda m, x: qs.quantize(m, [x], engine="compile"), "engine: .*torch.*got 'compile'; did you mean compiled"),
        (lambda m, x: qs.quantize(m, [x], exclude="2"), "no module '2'; .*it has 0, 1"),
    ],
)  # fmt: skip
def test_names_that_are_unknown_are_answered_with_the_near_ones_and_the_list(model, call, message):
    x = torch.rand(2, 4)
    with pytest.raises((TypeError, ValueError), match=message):
        call(model, x)


def test_a_name_that_is_near_none_is_answered_with_the_list():
    assert errors.expected_one_of("engine", ["a", "b"], "zzz") == "engine: expected one of a, b, got 'zzz'"
    nearest = errors.expected_one_of("x", ["torch-x86", "onnx"], "torch-86", others=", or m:a")
    assert nearest == "x: expected one of torch-x86, onnx, or m:a, got 'torch-86'; did you mean torch-x86?"


@pytest.mark.parametrize(
    "function", [qs.quantize, qs.quantize_dynamic, qs.prepare, qs.prepare_qat, qs.compare, qs.load, qs.export_onnx]
)  # fmt: skip
def test_every_option_is_in_the_signature_and_one_that_is_not_is_answered(function):
    parameters = inspect.signature(function).parameters
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values())
    last = list(parameters)[-1]
    given = {name: None for name, p in parameters.items() if p.default is p.empty} | {last + "s": None}
    with pytest.raises(TypeError, match=f"^{function.__name__}: argument: expected .*; did you mean .*{last}"):
        function(**given)


def test_functions_with_the_options_of_prepare_have_all_of_them_with_its_defaults():
    def options(function):
        parameters = inspect.signature(function).parameters
        return {name: (repr(p.default), p.annotation) for name, p in parameters.items()}

    assert options(qs.prepare).items() <= options(qs.quantize).items()
    assert options(qs.prepare).items() <= options(qs.prepare_qat).items()
