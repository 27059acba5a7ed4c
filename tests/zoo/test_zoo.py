"""The zoo at a smaller size: every network is quantized without a change to it, and held beside torch.ao. ``quantspec
zoo`` has the whole table."""

import json

import pytest
import torch

from quantspec import cli
from quantspec.tutorial import zoo

# Those whose image size may be small, and which a run of the suite can afford.
AFFORDABLE = (
    "resnet18", "mobilenet_v3_large", "squeezenet1_1", "shufflenet_v2_x1_0", "densenet121", "convnext_tiny",
)  # fmt: skip
SMALL = dict.fromkeys(AFFORDABLE, 64)
SMALL |= dict.fromkeys(zoo.SEQUENCES)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_keeps_as_much_of_its_function_as_torch_ao_leaves_it(name, monkeypatch):
    # ONNX Runtime is an extra, with tests of its own.
    monkeypatch.setattr(zoo, "exported", lambda q, batch: (None, "not asked"))
    row = zoo.row(name, size=SMALL[name])
    assert row.peer_reason == ""
    assert max(row.sqnr, row.same_sqnr or row.sqnr) >= row.peer_sqnr - 0.5
    assert len(row.ran) >= 3 and row.sqnr > 20
    if name in zoo.CONVOLUTIONAL:
        assert row.int8_macs >= 0.99 and row.compression >= 3.8


def test_networks_are_the_same_every_time_and_untouched():
    one, two = (zoo.build("squeezenet1_1", 64) for _ in range(2))
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))
    state = torch.random.get_rng_state()
    zoo.build("lstm_tagger", 0)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_command_prints_a_table_and_writes_the_rows(tmp_path, capsys):
    assert cli.main(["zoo", "--model", "lstm_tagger", "--json", str(tmp_path / "zoo.json")]) == 0
    assert "lstm_tagger" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "zoo.json").read_text())["rows"]
    assert row["name"] == "lstm_tagger" and row["sqnr"] > 20 and row["layers"] == 3
    assert cli.main(["zoo", "--model", "lstm_tager"]) == 2
    assert "--model: expected one of resnet18, " in capsys.readouterr().err
