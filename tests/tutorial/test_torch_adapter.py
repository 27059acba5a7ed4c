"""The adapter of torch's quantized engines: what it offers, and that it leaves torch as it was."""

import pytest
import torch

from quantspec.backends.pytorch import quantized
from quantspec.tutorial import tutorial

OFFERED = [engine for engine in quantized.ENGINES if not quantized.why_not_offered(engine)]


def test_this_build_of_torch_offers_an_engine():
    assert OFFERED


def test_an_engine_that_torch_does_not_have_is_listed_with_the_reason(model, dataset, monkeypatch):
    monkeypatch.setattr(quantized, "why_not_offered", lambda engine: "this build of torch offers none")
    rows, parameters = tutorial.compare(model, dataset, "qnnpack", "static", False)
    reason = "this build of torch offers none"
    assert [(row.layer, row.codes, row.differ, row.reason) for row in rows] == [
        (name, 0, 0, reason) for name in ("fc1", "fc2", "fc3")
    ]
    assert parameters == []


def test_selecting_an_engine_is_undone():
    before = torch.backends.quantized.engine
    with pytest.raises(ZeroDivisionError), quantized.selected(OFFERED[-1]):
        assert torch.backends.quantized.engine == OFFERED[-1]
        raise ZeroDivisionError
    assert torch.backends.quantized.engine == before
