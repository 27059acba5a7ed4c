"""What the command says where a network, a kernel or a library does not do as the others: results made by hand."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import quantspec
from networks import inputs, seeded
from quantspec import cli
from quantspec.backends.pytorch import quantized
from quantspec.tutorial import data, few_bits, models, neuron, report, rows, shipped, torch_fx, tutorial, zoo
from quantspec.tutorial.tutorial import Equality, Parameter, Result, Variant

FLOAT = Variant("float32", nn.Identity(), 0.9, np.zeros(3), 4000, 1.0, {1: 20.0})
ODD = {"fbgemm": (10, 3), "qnnpack": (0, 0, "no <kernel>")}
STATIC = Variant("static", nn.Identity(), 0.89, np.zeros(3), 1000, 4.0, {1: 10.0})


def result(dataset) -> Result:
    """Of two layers, with three outputs that differ on one engine, and another that has no kernel."""
    rest = (Equality(engine, "static", "fc2", 20, 0) for engine in quantized.ENGINES)
    others = (Equality(engine, "static", "fc1", 10, 0) for engine in quantized.ENGINES if engine not in ODD)
    fbgemm, qnnpack = (Equality(engine, "static", "fc1", *told) for engine, told in ODD.items())
    equality = (fbgemm, qnnpack, *others, *rest)
    parameters = tuple(Parameter("fbgemm", "static", layer, "scale", 7, n) for layer, n in (("fc1", 2), ("fc2", 0)))
    dialects = {"fbgemm": ("fbgemm", "fbgemm-int16"), "qnnpack": ("qnnpack",)}
    return Result(dataset, (FLOAT, STATIC), equality, parameters, dialects)


def test_differences_from_torch_are_told_and_so_is_what_the_data_are(dataset, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(data, "load", lambda root: replace(dataset, note="digits, as there is no MNIST"))
    monkeypatch.setattr(models, "trained", lambda *_, **__: None)
    monkeypatch.setattr(tutorial, "run", lambda *_, **__: result(dataset))
    assert cli.main(["run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("digits, as there is no MNIST")
    assert "14 numbers compared, 2 differ." in said and "fbgemm static fc1 scale: 2 of 7 differ" in said
    assert "This CPU has no VNNI: some engines add products in pairs" in said
    assert "-1.00 pp" in said and "4.00x" in said and "3/10" in said


def test_a_report_shows_differences_and_what_is_not_offered(dataset):
    page = report.equality(result(dataset))
    assert '<span class="bad">3</span> / 10' in page and '<span class="good">0</span> / 20' in page
    assert "not offered: no &lt;kernel&gt;" in page and "fbgemm or fbgemm-int16" in page


def test_rows_of_the_zoo_say_what_failed_and_what_is_left_in_float(monkeypatch, capsys):
    row = zoo.Row(
        name="resnet18", sqnr=30.0, peer_sqnr=None, peer_reason="it cannot", int8_macs=0.5, compression=3.0,
        seconds=1.0, layers=3, peer_layers=None, same_sqnr=None, peak_mb=100.0, ran=((1, 3, 8, 8),),
        left={"a norm": 2, "a sum": 1}, onnx=None, onnx_reason="no operator", onnx_same_floats=None,
    )  # fmt: skip
    monkeypatch.setattr(zoo, "rows", lambda names: iter([row, replace(row, onnx=(9, 1), onnx_same_floats=(9, 0))]))
    monkeypatch.setattr(cli, "progress", lambda names, what: range(2))
    assert cli.main(["zoo", "--model", "resnet18"]) == 0
    said = capsys.readouterr().out
    assert "resnet18: torch.ao fails: it cannot" in said and "resnet18: not exported to ONNX: no operator" in said
    assert "resnet18: in float: 2 x a norm, 1 x a sum" in said and "torch.ao makes" not in said
    assert "ONNX Runtime with the same results of float operations (STA-RUNTIME): 0 of 9 differ" in said


def test_unknown_networks_are_refused_by_the_library_too():
    with pytest.raises(ValueError, match="model: expected one of resnet18, .*, got 'resnet19'"):
        quantspec.zoo.build("resnet19", 64)


@pytest.mark.parametrize(("name", "size"), [("inception_v3", 299), ("vit_b_16", 224)])
def test_networks_have_no_head_of_zeros_and_none_for_training_alone(name, size):
    model = zoo.build(name, size)
    assert all(bool(layer.weight.any()) for layer in model.modules() if isinstance(layer, nn.Linear))
    assert not any("AuxLogits" in path for path, _ in model.named_modules())


def test_what_other_libraries_refuse_is_their_answer():
    x = inputs(2, (3,))
    names, peer, reason = zoo.torch_ao(nn.Linear(4, 2).eval(), x, x, x)
    assert names == set() and peer is None and "shapes cannot be multiplied" in reason


def test_what_has_no_operator_in_onnx_is_its_answer():
    pytest.importorskip("onnxruntime", reason="the exported network runs in ONNX Runtime, which is not installed")
    q = quantspec.quantize_dynamic(seeded(lambda: nn.GRU(4, 5)), example=inputs(7, (4,)))
    codes, reason = zoo.exported(q, inputs(7, (4,)))
    assert codes is None and "GRU without" in reason


def small(*_):
    return seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))


def test_a_network_that_gives_no_numbers_is_no_row(monkeypatch):
    monkeypatch.setattr(zoo, "build", small)
    monkeypatch.setattr(zoo, "shapes", lambda *_: [torch.full((1, 3, 8, 8), torch.nan)])
    wrong = pytest.raises(ValueError, match="model resnet18: .* gave .* finite numbers")
    with pytest.warns(RuntimeWarning, match="NaN"), wrong:
        zoo.row("resnet18", size=8)


def test_inputs_may_have_names():
    x, y = inputs(2), inputs(3)
    assert rows.call(lambda *, a, b: (a, b), {"a": x, "b": y}) == (x, y)
    assert torch_fx.inputs({"a": x, "b": y}) == (x, y)


def test_training_is_two_tables(dataset, monkeypatch):
    monkeypatch.setattr(few_bits, "rows", lambda model, given: [model, given])
    monkeypatch.setattr(shipped, "rows", lambda given: [given])
    model = nn.Identity()
    found = few_bits.run(model, dataset)
    assert found.rows == (model, dataset) and found.shipped == (dataset,)


def test_a_neuron_is_worked_out_beside_the_engines_that_there_are(monkeypatch):
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))), inputs(5)
    q = quantspec.quantize(model, [x])
    layer = SimpleNamespace(y_qparams=None, layer="fc3")
    with pytest.raises(ValueError, match="step: expected a layer with codes as output, fc3 gives floats"):
        neuron.output_grid(layer)
    step = q.program.layers[0]
    one = SimpleNamespace(
        step=step, y=step.y_qparams, x_codes=step.x_qparams.quantize(x.numpy())[0], index=1,
    )  # fmt: skip
    beside = functools.partial(neuron.Neuron.beside_torch, one)
    found = beside()
    assert found and all(ours == theirs for _, _, ours, theirs in found)
    monkeypatch.setattr(neuron.quantized, "why_not_offered", lambda engine: "" if engine == "fbgemm" else "not here")
    assert [engine for engine, *_ in beside()] == ["fbgemm"]
