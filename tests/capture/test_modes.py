"""What a model's own forward does beside computing: autocast, gradients, transforms of torch.func, questions for its
own tensors."""

import warnings

import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause
from told import exactly

X = torch.linspace(-1, 1, 24).reshape(6, 4)
WAYS = {
    "static": lambda model, x: qs.quantize(model, [x]),
    "dynamic": lambda model, x: qs.quantize_dynamic(model),
    "by example": lambda model, x: qs.quantize_dynamic(model, example=x),
}
# Values are near 1; codes and bfloat16, which has 8 bits too, are off by some hundredths of that at most.
ANOTHER = 0.1


class Calls(nn.Module):
    """Calls layers in its own way."""

    def __init__(self, compute, **layers):
        super().__init__()
        torch.default_generator.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.compute = compute

    def forward(self, x):
        return self.compute(self, x)


def under_autocast(model, x):
    y = model.first(x)
    with torch.autocast("cpu", torch.bfloat16):
        return torch.relu(model.last(model.first(x))), y, model.last(y)


def without_autocast(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        y = model.first(x)
        with torch.autocast("cpu", enabled=False):
            return model.last(y.float())


def other_layers(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        sequence = model.table((x * 10).abs().long())
        state, _ = model.recurrent(sequence)
        mixed, _ = model.attention(sequence, sequence, sequence)
        image = model.image(x.reshape(1, 1, 6, 4))
        return sequence, state, mixed, image


def others():
    return {
        "table": nn.Embedding(16, 8), "recurrent": nn.GRU(8, 4, batch_first=True), "image": nn.Conv2d(1, 2, 3),
        "attention": nn.MultiheadAttention(8, 2, batch_first=True),
    }  # fmt: skip


@clause("STA-MODES")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("compute", [under_autocast, without_autocast, other_layers])
def test_autocast_of_the_models_own_decides_over_types(compute, way):
    model = Calls(compute, **(others() if compute is other_layers else {})).eval()
    q = WAYS[way](model, X)
    (types, expected), (ours, given) = types_and_values(model), types_and_values(q)
    assert types == ours
    assert all(torch.allclose(a, b, rtol=0, atol=ANOTHER) for a, b in zip(expected, given, strict=True))
    assert not torch.equal(expected[0], given[0]) or compute is other_layers  # so that something is in codes


def types_and_values(model):
    """Of the outputs of a model for X; the values in float32, which all of them can be compared and shown in."""
    with torch.no_grad():
        outputs = model(X)
    outputs = [outputs] if torch.is_tensor(outputs) else outputs
    return [str(y.dtype) for y in outputs], [y.float() for y in outputs]


@clause("STA-MODES")
@pytest.mark.filterwarnings("ignore")
def test_a_part_that_autocast_changes_otherwise_is_computed_in_float():
    model = Calls(other_layers, **others()).eval()
    q = qs.quantize_dynamic(model)
    with pytest.warns(UserWarning, match="layer 'recurrent': the model calls it under autocast; this call runs in fl"):
        given = q(X)
    with torch.no_grad():
        assert given[1].dtype == model(X)[1].dtype == torch.float32


@clause("STA-DEFAULTS")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_autocast_around_a_model_of_parts_changes_nothing(way):
    def forward(model, x):
        y = model.first(x)
        return model.last(y @ y.T @ y if x.sum() < 9 else y)

    q = WAYS[way](Calls(forward).eval(), X)
    expected = q(X)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q(X), expected)


def gradient(model, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        (force,) = torch.autograd.grad(model.last(model.first(x)).tanh().sum(), x)
    return force


TRANSFORMS = {
    "gradients": gradient,
    "torch.func.grad": lambda model, x: torch.func.grad(lambda z: model.last(model.first(z)).tanh().sum())(x),
    "torch.vmap": lambda model, x: torch.vmap(lambda row: model.last(model.first(row)))(x),
    "torch.func.jvp": lambda model, x: torch.func.jvp(model.first, (x,), (torch.ones_like(x),))[1],
}
REASONS = "the model takes gradients through it|it is called with tensors that have no memory"


@clause("STA-MODES")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_layers_that_are_transformed_are_computed_in_float(kind):
    model = Calls(TRANSFORMS[kind]).eval()
    q = qs.quantize_dynamic(model)
    with pytest.warns(UserWarning, match=f"layer 'first': ({REASONS}).*; this call runs in float"):
        given = q(X)
    assert torch.allclose(given, model(X).detach(), rtol=0, atol=ANOTHER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        q(X)


@clause("STA-MODES")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_parts_that_calibration_did_not_transform_are_computed_in_float(kind):
    def sometimes(model, x):
        return TRANSFORMS[kind](model, x) if x[0, 0] > 0 else model.last(model.first(x))

    model = Calls(sometimes).eval()
    for way in ("static", "by example"):
        q = WAYS[way](model, X)
        with pytest.warns(UserWarning, match=f"module 'first': ({REASONS}).*; this call runs in float"):
            given = q(X + 1.5)
        assert torch.allclose(given, model(X + 1.5).detach(), rtol=0, atol=ANOTHER)


ASKS = {
    "state_dict": lambda model: model.state_dict(),
    "state_dict of a layer": lambda model: {f"last.{key}": t for key, t in model.last.state_dict().items()},
    "state_dict with a prefix": lambda model: {
        key.removeprefix("a."): t for key, t in model.state_dict(prefix="a.").items()
    },
    "get_parameter": lambda model: {key: model.get_parameter(key) for key in ("last.weight", "last.bias")},
    "named_parameters": lambda model: dict(model.named_parameters()),
}


@clause("STA-CODED")
@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("asked", ASKS)
def test_python_that_asks_a_model_for_its_tensors_gets_them(asked, way):
    seen = []

    def forward(model, x):
        tensors = ASKS[asked](model)
        seen.append(list(tensors))
        return model.last(model.first(x)) @ tensors["last.weight"] @ tensors["last.weight"].T + tensors["last.bias"]

    model = Calls(forward).eval()
    q = WAYS[way](model, X)
    expected = model(X).detach()
    names = seen[-1]
    assert torch.allclose(q(X), expected, rtol=0, atol=ANOTHER) and seen[-1] == names
    twin = WAYS[way](model, X)
    twin.load_state_dict(q.state_dict())
    assert torch.equal(twin(X), q(X))


@clause("STA-STORED")
@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
@pytest.mark.parametrize("way", WAYS)
def test_parameters_may_be_complex_numbers(way, tmp_path):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 5, dtype=torch.complex64))

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight[: x.shape[0]], n=x.shape[-1])

    def forward(model, x):
        return model.last(torch.relu(model.spectral(model.first(x))))

    model = Calls(forward, spectral=Spectral()).eval()
    q = WAYS[way](model, X)
    assert torch.allclose(q(X), model(X).detach(), rtol=0, atol=ANOTHER) and model.spectral.weight.is_complex()
    q.save(tmp_path / "q")
    loaded = qs.load(tmp_path / "q", model=model)
    assert torch.equal(loaded(X), q(X))


DTYPES = (torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128, torch.int64)


@clause("STA-STORED", "STA-SAME")
@pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_that_are_of_no_layer_may_be_of_any_type(way, dtype, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.kind = torch.float32 if dtype == torch.int64 else dtype
            numbers = torch.randint(1, 4, (8, 8)).to(dtype)
            self.used, self.unused = (nn.Parameter(numbers + i, requires_grad=False) for i in range(2))

        def forward(self, x):
            return nn.functional.linear(x.to(self.kind), self.used.to(self.kind)).abs().float() / 16

    def forward(model, x):
        return model.last(model.scaled(torch.relu(model.first(x))))

    model = Calls(forward, scaled=Scaled()).eval()
    q = WAYS[way](model, X)
    assert torch.allclose(q(X), model(X).detach(), rtol=0, atol=ANOTHER)
    if dtype == torch.complex128:
        with pytest.raises(qs.UnsupportedError, match="a torch.complex128 tensor on cpu .* cannot be stored"):
            q.save(tmp_path / "q")
        return
    q.save(tmp_path / "q")
    assert torch.equal(qs.load(tmp_path / "q", model=model)(X), q(X))


def test_what_torch_compiles_inside_a_model_is_refused_by_its_line():
    def forward(model, x):
        return torch.cond(x.sum() > 9, model.last, torch.sin, (model.first(x),))

    model = Calls(forward).eval()
    for make in (WAYS["static"], WAYS["by example"], lambda model, x: qs.quantize_dynamic(model)(x)):
        with pytest.raises(qs.UnsupportedError, match=r"torch.cond does \(.*test_modes.py, line \d+\), which cannot"):
            make(model, X)


@clause("STA-SAME")
@pytest.mark.parametrize("question", ["is_integer", "as_integer_ratio", "hex", "conjugate"])
def test_sizes_have_the_methods_of_pythons_numbers(question):
    def forward(model, x):
        answer = getattr(x.shape[0] / 4, question)()
        y = model.last(torch.relu(model.first(x.clone().mul_(2))))
        return y if answer == getattr(1.5, question)() else y.new_zeros(3)

    model = Calls(forward).eval()
    q = qs.quantize(model, [X])
    assert list(q.islands) == [""] and torch.allclose(q(X), model(X).detach(), rtol=0, atol=ANOTHER)
    with pytest.warns(UserWarning, match="this call runs in float"):
        assert q(X[:4]).shape == (3,)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", [(), (True,), (1,)], ids=str)
def test_a_quantized_model_says_what_can_be_trained_instead(way, mode):
    q = WAYS[way](Calls(lambda model, x: model.last(model.first(x))).eval(), X)
    sentence = "mode: a quantized network cannot be trained; train the float model, or the result of prepare_qat"
    with pytest.raises(ValueError, match=exactly(sentence)):
        q.train(*mode)
    assert q.train(False) is q and not any(module.training for module in q.modules())
