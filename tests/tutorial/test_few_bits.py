"""``quantspec run --qat``: rows of few bits, one weight's way, and what was trained beside what is shipped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from evidence import clause
from quantspec import cli
from quantspec.qat.prepare import prepare_qat
from quantspec.tutorial import data, few_bits, models, report, shipped, tutorial


@pytest.fixture(scope="module")
def part():
    d = data.digits()
    return data.Dataset("digits", d.x_train[:320], d.y_train[:320], d.x_test[:90], d.y_test[:90])


@pytest.fixture(scope="module")
def network(part):
    model = models.untrained(64, 0)
    models.train(model, part, seed=0, epochs=6, progress=False)
    return model


@pytest.fixture(scope="module")
def training(part, network):
    return few_bits.Training(
        tuple(few_bits.rows(network, part, bits=(8, 2), epochs=2)),
        tuple(shipped.rows(part, bits=(4,), dialects=("onnx", "qnnpack"))),
    )


@clause("QAT-EQUAL")
def test_every_value_of_every_layer_is_what_was_trained(training):
    assert [(r.network, r.dialect) for r in training.shipped] == [
        (name, dialect) for name in ("MLP", "LeNet", "depthwise", "residual", "LSTM") for dialect in ("onnx", "qnnpack")
    ]
    for row in training.shipped:
        assert row.differ == 0 and row.outputs_differ == 0, row
        assert row.outputs == 900 and row.values > 1000 * row.layers


def test_torchs_own_training_ships_other_codes(training):
    for row in training.shipped:
        assert row.peer_reason == "" and row.peer_outputs == 900 and row.peer_differ > 0, row


def test_what_torch_does_not_train_is_said(part):
    compared, differ, why = shipped.beside(nn.GRU(8, 4), part, 8, 1)
    assert compared is None and differ is None and "recurrent" in why


def test_a_value_that_differs_is_counted(part):
    p = prepare_qat(models.untrained(64, 0).eval(), tutorial.calibration_batches(part)).eval()
    q, x = few_bits.convert(p), part.x_test[:10]
    with torch.no_grad():
        assert sum(shipped.different(a, b) for a, b in shipped.at_every_step(p.networks[0], q.program, x)) == 0
        p.model.fc1.weight.mul_(-1)
        pairs = shipped.at_every_step(p.networks[0], q.program, x)
    assert sum(shipped.different(a, b) for a, b in pairs) > 100
    assert shipped.different(np.zeros(3), np.zeros((3, 1))) == 3


def test_rows_tell_what_calibration_and_training_reach(part, network, training):
    eight, two = training.rows
    for row in training.rows:
        assert row.float32 == few_bits.accuracy(network, part) and row.differ == 0 and row.compared == 900
    assert eight.calibrated == few_bits.accuracy(
        tutorial.quantize(network, tutorial.calibration_batches(part), weight_bits=8), part
    )
    assert two.learned and not eight.learned and two.trained >= two.calibrated


def test_a_way_has_each_step_and_ends_at_the_code_that_is_shipped(part, network):
    p = prepare_qat(network, tutorial.calibration_batches(part), weight_bits=3)
    watch = few_bits.Watch(p, "fc2")
    models.train(p, part, seed=0, epochs=2, learning_rate=1e-2, progress=False, watch=watch.note)
    way = watch.way()
    layer = next(step for step in few_bits.convert(p).program.layers if step.layer == "fc2")
    assert len(way.values) == 1 + 2 * 5 and len(set(way.codes.tolist())) > 1
    assert way.codes[-1] == layer.weight[way.place] and way.scales[-1] == layer.w_qparams.scale[way.place[0]]
    assert way.values[0] == network.fc2.weight[way.place] and (way.qmin, way.qmax) == (-4, 3)


def test_the_command_prints_writes_and_draws_it(part, network, training, monkeypatch, tmp_path, capsys):
    small = replace(part, x_test=part.x_test[:50], y_test=part.y_test[:50])
    monkeypatch.setattr(data, "load", lambda root: small)
    monkeypatch.setattr(models, "trained", lambda dataset, **_: network)
    monkeypatch.setattr(few_bits, "run", lambda model, dataset: training)
    monkeypatch.setenv("COLUMNS", "79")
    files = ["--json", str(tmp_path / "o.json"), "--report", str(tmp_path / "o.html")]
    assert cli.main(["run", "--qat", "--variant", "static", "--batch", "1", *files]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 79
    assert "what was trained beside what is shipped" in printed and "0/900" in printed
    found = json.loads((tmp_path / "o.json").read_text())
    assert [row["bits"] for row in found["few_bits"]] == [8, 2] and found["few_bits"][0]["differ"] == 0
    assert len(found["shipped"]) == 10 and found["shipped"][0]["network"] == "MLP"
    page = (tmp_path / "o.html").read_text()
    assert "<h2>Training at few bits</h2>" in page and "<h2>What was trained beside what is shipped</h2>" in page
    assert "Training at few bits" not in report.page(network, tutorial.run(network, small, variants=[], batches=[1]))
