"""Networks made where torch's modes and defaults are other than usual."""

import contextlib
import copy
import re

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from networks import default_dtype, seeded
from quantspec import surroundings
from quantspec.errors import ShapeError

SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "two of them": lambda: two(),
}


@contextlib.contextmanager
def two():
    with torch.inference_mode(), default_dtype(torch.float64):
        yield


def convolutional():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    return nn.Sequential(*layers)


class WithPython(nn.Module):
    """Decides by a value between its layers."""

    def __init__(self):
        super().__init__()
        self.images, self.norm, self.last = convolutional(), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        y = self.images(x)
        return self.last(self.norm(y if y.sum() > 1e9 else 2 * y))


def images(*seeds):
    return [torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed), device="cpu") for seed in seeds]


def saved(make):
    """Makes a network, and gives what its file says."""

    def through_file(model, batches, path):
        q = make(model, batches)
        q.save(path)
        given = {} if isinstance(q, qs.QuantizedModule) else {"model": model}
        return qs.load(path, **given)

    return through_file


def prepared(model, batches, path):
    network = qs.prepare(model)
    for batch in batches:
        network(batch)
    return qs.convert(network)


def trained(model, batches, path):
    return qs.convert(qs.prepare_qat(model, batches))


def begun(model, batches, path):
    """Training begins with the first batch."""
    network = qs.prepare_qat(model).train()
    network(batches[0]), network(batches[1])
    return qs.convert(network.eval())


def with_state(model, batches, path):
    q = qs.quantize(model, [batch / 2 for batch in batches])
    q.load_state_dict(qs.quantize(model, batches).state_dict())
    return copy.deepcopy(q)


WAYS = {
    "quantize": saved(qs.quantize),
    "prepare": prepared,
    "dynamic": saved(lambda model, batches: qs.quantize_dynamic(model, example=batches[0])),
    "layers": saved(lambda model, batches: qs.quantize_dynamic(model)),
    "trained": trained,
    "begun": begun,
    "state": with_state,
}


@clause("STA-SURROUNDINGS")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [convolutional, WithPython])
@pytest.mark.parametrize("way", WAYS)
def test_what_surrounds_the_making_of_a_network_changes_nothing(build, way, tmp_path):
    model, batches, (x,) = seeded(build), images(1, 2), images(3)
    expected = WAYS[way](model, batches, tmp_path / "q")(x)
    for name, surrounding in SURROUNDINGS.items():
        with surrounding():
            q = WAYS[way](model, batches, tmp_path / "q")
        y = q(x)
        assert y.dtype == torch.float32 and torch.equal(y, expected), name
        assert torch.get_default_dtype() == torch.float32


@clause("STA-SURROUNDINGS")
@pytest.mark.parametrize("build", [convolutional, WithPython])
def test_comparisons_are_what_they_are_elsewhere(build):
    model, batches = seeded(build), images(1, 2)
    q = qs.quantize(model, batches)
    expected = qs.compare(model, q, batches)
    for name, surrounding in SURROUNDINGS.items():
        with surrounding():
            found = qs.compare(model, q, batches)
        assert found.as_json() == expected.as_json(), name


@clause("STA-SURROUNDINGS")
@pytest.mark.parametrize("build", [convolutional, WithPython])
def test_models_and_data_of_inference_mode_are_models_and_data(build):
    model, batches, (x,) = seeded(build), images(1, 2), images(3)
    with torch.inference_mode():
        other = seeded(build)
        made = [batch.clone() for batch in batches]
    assert all(parameter.is_inference() for parameter in other.parameters())
    for make in (WAYS["prepare"], WAYS["trained"], lambda m, b, _: qs.quantize(m, b)):
        assert torch.equal(make(other, made, None)(x), make(model, batches, None)(x))
    inside = other if build is WithPython else nn.Sequential(other).eval()
    assert torch.equal(qs.quantize(inside, made)(x), qs.quantize(model, batches)(x))


@clause("STA-SURROUNDINGS")
@pytest.mark.parametrize("build", [convolutional, WithPython])
def test_a_generator_of_data_may_leave_its_modes_on(build):
    model, batches, (x,) = seeded(build), images(1, 2), images(3)

    def generated(surrounding):
        with surrounding():
            yield from batches

    expected = qs.quantize(model, batches)(x)
    for name, surrounding in SURROUNDINGS.items():
        assert torch.equal(qs.quantize(model, generated(surrounding))(x), expected), name


@clause("STA-SURROUNDINGS")
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_was_is_put_back_also_behind_an_error(name):
    def state():
        device, dtype = torch.get_default_device(), torch.get_default_dtype()
        modes = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
        return dtype, device, *modes

    @surroundings.usual
    def refuse():
        assert surroundings.are_usual() and torch.is_grad_enabled() == before[-1]
        raise ValueError("refused")

    with SURROUNDINGS[name]():
        before = state()
        with pytest.raises(ValueError, match="refused"):
            refuse()
        assert state() == before


class AroundQuantized(nn.Module):
    """A model that decides by data, and has a quantized network in it."""

    def __init__(self, inner):
        super().__init__()
        self.layer, self.inner = nn.Linear(4, 4), inner

    def forward(self, x):
        y = self.layer(x)
        return self.inner(y[:, :3] if y.sum() < 1e9 else y)


@pytest.mark.parametrize("way", [lambda m, x: qs.quantize(m, [x]), lambda m, x: qs.quantize_dynamic(m, example=x)])
def test_what_a_network_in_the_model_refuses_is_told_as_it_tells_it(way):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    inner = qs.quantize(nn.Sequential(nn.Linear(4, 3)).eval(), [x])
    model = AroundQuantized(inner).eval()
    with pytest.raises(ShapeError) as own:
        model(x)
    with pytest.raises(ShapeError, match=re.escape(str(own.value))):
        way(model, x)
