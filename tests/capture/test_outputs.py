"""What a model gives back that is no float tensor, and what it does with tensors beside computing with them: the
quantized network gives the same kind, and no such model is refused."""

import collections
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import quantspec as qs
from evidence import clause


class Incomparable:
    """Whose instances cannot be compared."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("not comparable")


class Several:
    """Whose instances are equal to each other in several ways."""

    __hash__ = None

    def __eq__(self, other):
        return np.array([True, False])


@dataclass
class Answer:
    """An output with names."""

    logits: torch.Tensor
    text: str


Named = collections.namedtuple("Named", "first second")
ARRAY = "an array"

OUTPUTS = {
    ARRAY: lambda y: y.detach().numpy(),
    "an array beside a tensor": lambda y: {"a": y, "b": y.detach().numpy()},
    "an array of anything": lambda y: np.array([y.detach().numpy(), None], dtype=object),
    "NumPy's number": lambda y: y.detach().numpy().sum(),
    "bytes": lambda y: y.detach().numpy().tobytes(),
    "lists": lambda y: y.tolist(),
    "a number": lambda y: float(y.sum()),
    "what cannot be compared": lambda y: (y, Incomparable()),
    "what is equal in several ways": lambda y: (y, Several()),
    "a set": lambda y: {1, 2},
    "a text": lambda y: "class 3",
    "nothing": lambda y: None,
    "a named tuple": lambda y: Named(y, y + 1),
    "a dataclass": lambda y: Answer(y, "three"),
    "values and places": lambda y: y.topk(2),
    "a sparse tensor": lambda y: y.to_sparse(),
    "complex numbers": lambda y: torch.complex(y, y),
    "other floats": lambda y: y.double(),
    "a nested tensor": lambda y: torch.nested.nested_tensor(list(y)),
    "torch's codes": lambda y: torch.quantize_per_tensor(y, 0.1, 0, torch.quint8),
    "a tensor without values": lambda y: y.to("meta"),
    "a distribution": lambda y: torch.distributions.Categorical(logits=y),
    "an iterator": lambda y: iter([y]),
}


class Gives(nn.Module):
    """Gives what ``kind`` makes of its last layer's output."""

    def __init__(self, kind: str):
        super().__init__()
        self.first, self.last, self.make = nn.Linear(4, 8), nn.Linear(8, 3), OUTPUTS[kind]

    def forward(self, x):
        return self.make(self.last(torch.relu(self.first(x))))


@pytest.fixture(autouse=True)
def quiet():
    torch.default_generator.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# Outputs reach about 1, and two layers of 8 bits are off by some hundredths of that at most: what is further off is
# another network. How far codes may be from floats is for the chapters to say.
ANOTHER = 0.1
X = torch.linspace(-1, 1, 20).reshape(5, 4)
WAYS = {
    "static": lambda model: qs.quantize(model, [X, X]),
    "dynamic": lambda model: qs.quantize_dynamic(model),
    "by example": lambda model: qs.quantize_dynamic(model, example=X),
    "trained": lambda model: qs.convert(qs.prepare_qat(model, [X])),
}


def numbers(output) -> np.ndarray | None:
    """The numbers of an output that has some which can be read."""
    if isinstance(output, torch.Tensor) and output.layout == torch.strided and not (output.is_nested or output.is_meta):
        return (output.dequantize() if output.is_quantized else output).detach().numpy()
    if isinstance(output, Answer | torch.distributions.Distribution):
        return output.logits.detach().numpy()
    if isinstance(output, dict | tuple | list):
        items = [numbers(item) for item in (output.values() if isinstance(output, dict) else output)]
        return None if any(item is None for item in items) else np.concatenate([item.ravel() for item in items])
    return np.asarray(output) if isinstance(output, np.ndarray | np.floating | float) else None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_output_is_of_the_models_own_kind(kind, way):
    model = Gives(kind).eval()
    expected, given = model(X), WAYS[way](model)(X)
    assert type(given) is type(expected)
    ours, theirs = numbers(given), numbers(expected)
    if theirs is not None and theirs.dtype != object:
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < ANOTHER


@pytest.mark.parametrize("kind", OUTPUTS)
def test_comparisons_take_what_numbers_there_are(kind):
    model = Gives(kind).eval()
    assert "SQNR" in str(qs.compare(model, qs.quantize(model, [X]), [X]))


class Calls(nn.Module):
    """Calls its layers in its own way."""

    def __init__(self, compute):
        super().__init__()
        self.first, self.last, self.compute = nn.Linear(4, 8), nn.Linear(8, 3), compute

    def forward(self, x):
        return self.compute(self, x)


def through_gradients(model, x):
    """As forces are computed: a gradient of an energy."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(torch.tanh(model.last(torch.relu(model.first(x)))).sum(), x)
    return force


CALLS = {
    "torch.vmap": lambda model, x: torch.vmap(lambda row: model.last(torch.relu(model.first(row))))(x),
    "gradients": through_gradients,
    "NumPy in between": lambda model, x: model.last(torch.from_numpy(np.tanh(model.first(x).detach().numpy()))),
    "NumPy writes": lambda model, x: model.last(written(model.first(x).detach())),
}


def written(x):
    x.numpy()[:, 0] = 0.5
    return x


@pytest.mark.parametrize("call", CALLS)
def test_layers_are_called_as_a_model_calls_them(call):
    model = Calls(CALLS[call]).eval()
    for way in ("static", "by example"):
        q = WAYS[way](model)
        assert torch.allclose(q(X), model(X).detach(), rtol=0, atol=ANOTHER)


@clause("STA-SAME")
def test_a_module_may_have_the_name_of_a_function_that_is_called_too():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.relu, self.tanh = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x, relu=None):
            x = torch.tanh(torch.relu(self.layer(x)))
            return self.tanh(self.relu(x - 0.5))

    for options in ({}, {"fuse": False}):
        model = Both().eval()
        q = qs.quantize(model, [X], **options)
        names = [step.name for step in q.program.steps]  # so that one network is the whole model
        assert len(set(names)) == len(names)
        assert torch.allclose(q(X), model(X).detach(), rtol=0, atol=ANOTHER)


def test_a_layer_that_is_given_other_weights_computes_with_them():
    call = torch.func.functional_call
    model = Calls(lambda model, x: call(model.last, other(model.last), torch.relu(model.first(x))))
    with pytest.warns(UserWarning, match="layer 'last' was given another weight; it runs in float"):
        assert torch.allclose(WAYS["dynamic"](model.eval())(X), model(X).detach(), rtol=0, atol=ANOTHER)
    q = WAYS["dynamic"](Calls(lambda model, x: model.last(torch.relu(model.first(x)))).eval())
    q.last.weight = nn.Parameter(torch.zeros(3, 8))
    with pytest.warns(UserWarning, match="layer 'last' was given another weight"):
        assert torch.equal(q(X), q.last.bias.expand(5, 3))


def other(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {"weight": layer.weight * 2, "bias": layer.bias}


def test_python_that_calls_no_other_classes_of_modules_keeps_all_of_them():
    class Particular(nn.Linear):
        pass

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Particular(4, 3)

        def forward(self, x):
            if "forward" in vars(self.layer):
                raise RuntimeError("what is this?")
            return self.layer(x) if x.sum() < 100 else x

    model = Asks().eval()
    with pytest.warns(UserWarning, match="nothing was quantized"):
        q = qs.quantize(model, [X])
    assert torch.equal(q(X), model(X))
