"""Adapters, and quantspec's own backends, in this process: each answers as a dialect that it declares."""

import fnmatch
import functools
from pathlib import Path

import numpy as np
import pytest

from quantspec.backends import protocol, registry
from quantspec.backends.outcome import outcome
from quantspec.backends.protocol import NotOffered
from quantspec.conformance import results
from quantspec.conformance.call import Call
from quantspec.conformance.draw_bulk import bulk
from quantspec.conformance.session import parts
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import DIALECTS

OURS = [f"quantspec-{name}" for name in DIALECTS]
# Without those of another process: what they set is read when torch is loaded.
PEERS = [name for name, entry in registry.ENTRIES.items() if name not in OURS and not entry.environment]
WITH_RELU = "linear", "linear_dynamic", "conv2d", "add"
SEVERAL = 6  # of which at least one has a padding that LiteRT's windows can have
RECORDED = Path(__file__).parents[2] / "spec" / "results"


@functools.cache
def made(name):
    """A backend; the tests of one that is not installed, or that its build or this CPU does not have, are skipped."""
    if reason := registry.why_not_installed(name):
        pytest.skip(reason)
    try:
        return registry.find(name).make()
    except NotOffered as error:
        pytest.skip(str(error))  # it says what it lacks: nothing is there to be asked


def answer(name, call, **options):
    return outcome(made(name), call.operation, *call.arguments, **call.options | options)


@functools.cache
def diverging(name):
    """The operations of a backend that are known to follow no dialect on this CPU."""
    known = [entry for entry in results.read_known(RECORDED) if entry.clause == "BAK-DIALECT"]
    here = (name, results.cpu())
    return {e.operation for e in known if all(map(fnmatch.fnmatchcase, here, (e.backend, e.cpu)))}


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_an_adapter_has_the_name_of_its_entry(name):
    assert made(name).name == name


@pytest.mark.parametrize("name", PEERS)
def test_each_number_that_an_adapter_answers_is_that_of_a_dialect_that_it_declares(name):
    backend, answered = made(name), set()
    for operation in set(protocol.offers(backend)) - diverging(name):
        declared = protocol.dialects(backend, operation)
        for call in bulk(operation, count=SEVERAL if operation == "avg_pool2d" else 1):
            got = answer(name, call)
            if got.kind == "not offered":
                continue
            assert got.kind == "value", (operation, got)
            answered.add(operation)
            expected = [parts(answer(f"quantspec-{dialect}", call).value) for dialect in declared]
            for place, part in enumerate(parts(got.value)):
                allowed = [of_one[place] for of_one in expected]
                assert part.dtype == allowed[0].dtype and part.shape == allowed[0].shape, operation
                assert np.any([part == of_one for of_one in allowed], axis=0).all(), operation
    # The kernel for windows takes unsigned codes alone, for which another adapter asks it.
    silent = {"conv2d"} if name.endswith("int8") else set()
    assert set(protocol.offers(backend)) - diverging(name) - answered == silent


@pytest.mark.parametrize("name", [name for name in PEERS if name.startswith("litert-")])
def test_windows_of_litert_are_padded_where_same_is_as_much(name):
    q, grid = np.arange(-60, 90, dtype=np.int8).reshape(2, 3, 5, 5), QParams(np.float32(0.1), 3, -128, 127)
    for operation, counts in (("max_pool2d", {}), ("avg_pool2d", {"count_include_pad": False})):
        for stride, size in (((1, 1), (5, 5)), ((2, 2), (3, 3)), ((2, 1), (3, 5))):
            call = Call(operation, (q, grid), {"kernel": (3, 3), "stride": stride, "padding": (1, 1), **counts})
            got = answer(name, call)
            assert got.kind == "value" and got.value.shape == (2, 3, *size)
            declared = protocol.dialects(made(name), operation)
            allowed = [answer(f"quantspec-{dialect}", call).value for dialect in declared]
            assert np.any([got.value == of_one for of_one in allowed], axis=0).all()


def test_litert_has_kernels_of_their_own_for_layers_of_a_channel_each(monkeypatch):
    made("litert-reference")
    from quantspec.backends.litert import litert

    write, asked = litert.model, []
    monkeypatch.setattr(litert, "model", lambda operators, *rest: asked.append(operators) or write(operators, *rest))
    x, w = (QParams(np.float32(0.1), 0, -128, 127) for _ in range(2))
    for channels, groups in ((1, 1), (2, 1), (2, 2), (4, 2), (3, 3)):
        weight = np.ones((channels, channels // groups, 1, 1), np.int8)
        call = Call("conv2d", (np.ones((1, channels, 2, 2), np.int8), x, weight, w, None, x), {"groups": groups})
        assert answer("litert-reference", call).kind == "value"
    names = {litert.OPERATOR.CONV_2D: "dense", litert.OPERATOR.DEPTHWISE_CONV_2D: "depthwise"}
    found = [[names[operator[0]] for operator in operators] for operators in asked]
    assert found == [["dense"], ["dense"], ["depthwise"], ["dense"], ["depthwise"]]


def test_onnx_runtime_without_sums_of_32_bits_declares_those_of_16(monkeypatch):
    made("onnxruntime")
    from quantspec.backends.onnx import runtime

    monkeypatch.setattr(runtime, "sums_exactly", lambda linear: False)
    assert runtime.OnnxRuntime().dialect == "onnx-int16" and "onnx-int16" in DIALECTS


@pytest.mark.parametrize("ends", [(0, 127), (-64, 63), (0, 255), (-128, 127)])
@pytest.mark.parametrize("name", ["torch-x86", "torch-qnnpack", "torch-onednn"])
def test_a_range_has_the_grid_of_a_declared_dialect_for_fewer_codes_too(name, ends):
    for low, high, symmetric in ((-1, 3, False), (-1, 3, True), (0, 0.5, False), (-7, -1, True)):
        if symmetric and ends == (0, 127):
            continue  # no kernel has such grids, and no dialect says where torch's observer puts their zero point
        options = {"qmin": ends[0], "qmax": ends[1], "symmetric": symmetric}
        call = Call("qparams", (np.float32(low), np.float32(high)), options)
        declared = protocol.dialects(made(name), "qparams")
        assert answer(name, call).value in [answer(f"quantspec-{dialect}", call).value for dialect in declared]


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_a_relu_is_the_maximum_with_zero(name):
    for operation in WITH_RELU:
        if protocol.method(made(name), operation) is None:
            continue
        for call in bulk(operation, count=1):
            plain, got = answer(name, call, relu=False), answer(name, call, relu=True)
            assert plain.kind == got.kind, operation
            if plain.kind == "value":
                zero = np.float32(0) if operation == "linear_dynamic" else call.arguments[-1].zero_point
                zero = np.asarray(zero).astype(plain.value.dtype)
                assert np.array_equal(got.value, np.maximum(plain.value, zero)), operation
