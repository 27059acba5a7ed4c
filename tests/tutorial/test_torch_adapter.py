"""The adapter of torch's quantized engines: what it offers, which dialect it finds, and that it leaves torch as it was.
"""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from quantspec.backends.pytorch import quantized
from quantspec.numerics.dialects.named import DIALECTS
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


@pytest.mark.parametrize("engine", [engine for engine in OFFERED if engine in ("x86", "fbgemm")])
@pytest.mark.parametrize(("half_a_step", "name"), [(1.0, "fbgemm"), (0.0, "fbgemm-outside")])
def test_the_place_of_the_zero_point_decides_the_dialect_of_dynamic_layers(engine, half_a_step, name, monkeypatch):
    monkeypatch.setattr(torch.ops.quantized, "linear_dynamic", lambda *_: torch.tensor([[half_a_step]]))
    assert [found.removesuffix("-int16") for found in quantized.dialects_here(engine)] == [name]


@pytest.mark.parametrize("engine", OFFERED)
@pytest.mark.parametrize("half_a_step", [1, 2])
@pytest.mark.parametrize("tensors", ["torch-quantize", "torch-quantize-outside"])
def test_averages_over_one_channel_may_round_as_tensors_do(engine, half_a_step, tensors, monkeypatch):
    def average(x, size):
        return torch._make_per_tensor_quantized_tensor(torch.tensor([half_a_step], dtype=torch.uint8), 1.0, 1)

    monkeypatch.setattr(torch.nn.functional, "avg_pool2d", average)
    monkeypatch.setattr(quantized, "quantizing_here", lambda _: tensors)
    found = quantized.dialects_by_operation(engine)
    outside = tensors == "torch-quantize-outside" and half_a_step == 1
    places = {place for place, names in found.items() if "torch-quantize-outside-one" in names}
    assert places == ({"avg_pool2d", "adaptive_avg_pool2d"} if outside else set())


@pytest.mark.parametrize("spoken", ["onednn", "onednn-divided", "onednn-product"])
def test_whether_outputs_are_divided_decides_the_dialect_of_onednn(spoken, monkeypatch):
    def linear(*layer, relu, engine):
        return DIALECTS[spoken].linear(*layer, relu=relu)

    monkeypatch.setattr(quantized, "linear", linear)
    in_turn = "onednn-divided" if spoken == "onednn-divided" else "onednn"
    assert quantized.dialects_here("onednn") == (in_turn, "onednn-product")


@pytest.mark.parametrize("engine", OFFERED)
@pytest.mark.parametrize(("half_a_step", "name"), [(2, "torch-quantize"), (1, "torch-quantize-outside")])
def test_the_place_of_the_zero_point_decides_the_dialect_of_tensors(engine, half_a_step, name, monkeypatch):
    real = torch.quantize_per_tensor

    def quantize_per_tensor(x, scale, zero_point, dtype):
        if zero_point == 1:  # the question of the fingerprint
            return torch._make_per_tensor_quantized_tensor(torch.tensor([half_a_step], dtype=torch.uint8), scale, 1)
        return real(x, scale, zero_point, dtype)

    monkeypatch.setattr(torch, "quantize_per_tensor", quantize_per_tensor)
    assert quantized.quantizing_here(engine) == name
    found = quantized.dialects_by_operation(engine)
    assert found["quantize"] == found["concat"] == found["mul"] == {name}
    assert {name, f"{name}-tail"} <= found["add"]
    assert set().union(*found.values()) <= set(DIALECTS)
    if engine == "qnnpack":
        layers = "qnnpack" if half_a_step == 2 else "qnnpack-outside"
        assert found["linear_dynamic"] == {layers}
        assert layers in found["avg_pool2d"]


@pytest.mark.parametrize("engine", OFFERED)
def test_a_network_of_torchs_has_the_layers_of_the_model(engine):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        OrderedDict(first=torch.nn.Linear(3, 4), between=torch.nn.ReLU(), last=torch.nn.Linear(4, 2))
    )
    batches = [torch.rand(2, 3), torch.rand(5, 3)]
    choices = {"engine": engine, "fuse": [["first", "between"]], "per_channel": False, "reduce_range": False}
    static = quantized.static_network(model, batches, batches, **choices)
    dynamic = quantized.dynamic_network(model, batches, engine=engine)
    for network in (static, dynamic):
        assert [layer.name for layer in network.layers] == ["first", "last"]
        assert [layer.inputs.shape for layer in network.layers] == [(7, 3), (7, 4)]
        assert [layer.outputs.shape for layer in network.layers] == [(7, 4), (7, 2)]
        for layer, of_model in zip(network.layers, (model[0], model[2])):
            assert layer.weight.dtype == np.int8 and layer.weight.shape == tuple(of_model.weight.shape)
            assert np.abs(layer.weight * layer.w_scale - of_model.weight.detach().numpy()).max() <= layer.w_scale
            assert layer.w_zero_point == 0 and layer.bias.tolist() == of_model.bias.tolist()
    first, last = static.layers
    assert static.input_codes.tolist() == first.inputs.tolist() and last.inputs.tolist() == first.outputs.tolist()
    for layer, x_scale in ((first, static.input_scale), (last, first.scale)):
        assert np.abs(layer.bias_codes - layer.bias / (x_scale * layer.w_scale)).max() < 0.5 + 1e-3
    assert dynamic.input_scale is dynamic.input_zero_point is dynamic.input_codes is None
    for layer in dynamic.layers:
        assert layer.bias_codes is layer.scale is layer.zero_point is None
        assert layer.inputs.dtype == layer.outputs.dtype == np.float32
    assert dynamic.layers[0].inputs.tolist() == torch.cat(batches).tolist()
