"""What a quantized model holds of the user's model and of itself: codes in the place of weights, parameters that are
attributes, what a copy has; and limits at which a file is refused."""

import copy
import math

import every_step
import numpy as np
import pytest
import torch
from forged import changed
from torch import nn

import quantspec as qs
from networks import seeded
from quantspec.module.coded import Coded, as_coded, put, related
from quantspec.storage.model import CodedWeight
from told import exactly

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("scale", [np.float32(0.5), np.float32([0.5, 0.25, 2])], ids=["one", "per channel"])
def test_a_weight_that_was_folded_is_held_as_codes_though_all_of_a_channel_are_zero(scale):
    """What its normalization multiplies a channel of zeros by is nowhere to be seen, and does not matter."""
    codes = np.int8([[0, 0], [3, -7], [100, 1]])
    factors = np.float32([[7], [3], [-0.25]])
    values = torch.from_numpy(codes * np.broadcast_to(scale, 3)[:, None] * factors)
    coded = as_coded(values, CodedWeight(codes, scale))
    assert torch.equal(Coded(coded).values(), values)


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.zeros(1))
        self.register_parameter("none", None)
        self.inner = nn.Linear(2, 2)


ASKED = "bias", "inner.bias", "count", "none", "training", "inner", "inner.other", "a.b", ""


@pytest.mark.parametrize("target", ASKED)
def test_what_is_no_parameter_of_a_model_or_stayed_one_is_answered_as_torch_answers(target):
    def asked(of):
        try:
            return of.get_parameter(target)
        except AttributeError as error:
            return str(error)

    model, weights = Sums(), (torch.zeros(2), torch.zeros(2, 2))
    expected = asked(model)
    put(model, {(id(model), "weight"): weights[0], (id(model.inner), "weight"): weights[1]})
    moved = model.get_parameter("weight"), model.get_parameter("inner.weight")
    assert moved[0] is weights[0] and moved[1] is weights[1]
    assert asked(model) is expected if isinstance(expected, nn.Parameter) else asked(model) == expected


class Named(Sums):
    """Says itself what its parameters are."""

    def named_parameters(self, *args, **kwargs):
        return iter(())


def test_parameters_of_a_class_that_names_them_itself_are_found_where_they_are():
    model, own = Named(), torch.zeros(2)
    put(model, {(id(model), "weight"): own})
    assert model.get_parameter("bias") is model.bias
    assert "named_parameters" not in vars(model) and model.weight is own


@pytest.mark.parametrize("limit", [0, 0.0, 0.5])
@pytest.mark.parametrize("argument", ["max_memory", "max_work"])
def test_a_limit_of_nothing_is_one_that_every_file_exceeds(argument, limit, tmp_path):
    (tmp_path / "q").write_bytes(changed(*every_step.parts(), []))
    with pytest.raises(qs.FormatError, match=f"{argument} allows 0"):
        qs.load(tmp_path / "q", **{argument: limit})


@pytest.mark.parametrize("limit", [-1, -0.5, -math.inf, math.nan])
@pytest.mark.parametrize("argument", ["max_memory", "max_work"])
def test_a_limit_below_nothing_is_none(argument, limit, tmp_path):
    with pytest.raises(ValueError, match=exactly(f"{argument}: expected a number of at least 0, got {limit}")):
        qs.load(tmp_path / "q", **{argument: limit})


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_a_copy_of_a_network_runs_what_it_has_itself(engine):
    q = qs.quantize(seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU())), [ROWS], engine=engine)
    twin = copy.deepcopy(q)
    assert twin.compiled.program is twin.program is not q.program and twin.report is q.report
    assert twin.engine == q.engine and torch.equal(twin(ROWS), q(ROWS))


def test_what_refers_to_a_network_and_is_copied_along_with_it_refers_to_the_copy():
    q = qs.quantize(seeded(lambda: nn.Sequential(nn.Linear(8, 4))), [ROWS])
    q.notes = [q]
    twin, notes = copy.deepcopy((q, q.notes))
    assert twin.notes is notes is not q.notes and notes[0] is twin is not q


def test_only_a_weight_of_float32_is_held_as_codes():
    codes, scale = np.int8([[1, 2], [3, -7]]), np.float32(0.5)
    values = torch.from_numpy(codes * scale)
    assert as_coded(values, CodedWeight(codes, scale)) is not None
    assert as_coded(values.double(), CodedWeight(codes, scale)) is None


@pytest.mark.parametrize(
    ("layer", "path", "can"),
    [("a.b", "a.b", True), ("a.b", "a", True), ("a", "a.b", True), ("", "a", True), ("a", "", True), ("a", "b", False),
     ("a.b", "a.c", False), ("a.b.c", "a", False), ("a", "a.b.c", False)],
)  # fmt: skip
def test_a_layer_has_its_weight_from_its_module_or_from_one_directly_in_it_or_around_it(layer, path, can):
    assert related(layer, path) is can


@pytest.mark.filterwarnings("ignore:nothing was quantized")
def test_a_whole_model_that_stays_in_float_is_a_part_named_model():
    q = qs.quantize(nn.BatchNorm1d(8).eval(), [ROWS])
    assert "float_parts.model.running_mean" in q.state_dict()


class Wide(nn.Module):
    """Keeps the values of its layer's bias in float64, too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.wide = nn.Parameter(self.layer.bias.detach().double())

    def forward(self, x):
        return self.layer(x)


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Wide()

    def forward(self, x):
        y = self.part(x)
        return y if y.sum() < 1e9 else -y


def test_a_parameter_of_another_type_is_no_bias_whatever_its_values_are():
    q = qs.quantize(seeded(Decides), [ROWS])
    part = q.python.part
    assert isinstance(part.wide, nn.Parameter) and part.wide.dtype is torch.float64
    assert not isinstance(part.layer.bias, nn.Parameter) and torch.equal(part.layer.bias, part.wide.float())
