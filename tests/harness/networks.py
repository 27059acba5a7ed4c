"""Small networks that several test files quantize, and how to draw them."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from quantspec.module.coded import Coded, held
from quantspec.module.islands import QuantizedModel

# For tests of networks so narrow that products in float, such as attention in other dialects, are more than a tenth of
# their work (SIZ-WARN).
mostly_attention = pytest.mark.filterwarnings("ignore:[0-9]+ % of the multiply-accumulates are in int8")


@contextlib.contextmanager
def another(value, get, set_to):
    """Another value of what the process has one of, until the end."""
    before = get()
    set_to(value)
    try:
        yield
    finally:
        set_to(before)


def default_dtype(dtype):
    """torch's default dtype, which a user's process may have changed."""
    return another(dtype, torch.get_default_dtype, torch.set_default_dtype)


def torch_threads(count: int):
    """That many threads for torch, and so for the compiled engine."""
    return another(count, torch.get_num_threads, torch.set_num_threads)


def seeded(build, seed: int = 0) -> nn.Module:
    """A module with seeded weights, in evaluation mode; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: ``torch.manual_seed`` writes the stack down for each other kind of device, for 0.4 ms.
        torch.default_generator.manual_seed(seed)
        return build().eval()


def with_codes_of(model: nn.Module, q: QuantizedModel) -> nn.Module:
    """A copy of a model with its weights as a network made of it holds them (STA-CODED)."""
    twin = copy.deepcopy(model)
    for name, _, leaf, tensor in held(q.python):
        if isinstance(tensor, Coded):
            module = twin.get_submodule(name.rpartition(".")[0])
            module._parameters[leaf] = nn.Parameter(tensor.values(), requires_grad=False)
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    return twin


class Perceptron(nn.Module):
    """4-5-3 with a ReLU between, given as a module."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.first, self.relu, self.second = nn.Linear(4, 5, bias=bias), nn.ReLU(), nn.Linear(5, 3, bias=bias)

    def forward(self, x):
        return self.second(self.relu(self.first(x)))


class Normalised(nn.Module):
    """Linear, batch normalization, ReLU, linear."""

    def __init__(self, affine: bool = True):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 5), nn.BatchNorm1d(5, affine=affine), nn.Linear(5, 3)
        with torch.no_grad():
            self.norm.running_mean.copy_(torch.randn(5))
            self.norm.running_var.copy_(torch.rand(5) + 0.25)
            if affine:
                self.norm.weight.copy_(torch.randn(5))
                self.norm.bias.copy_(torch.randn(5))

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


class TwoReaders(nn.Module):
    """The value before the ReLU is read a second time."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        return self.second(torch.relu(y)) + y.sum(-1, keepdim=True)


class OutputBefore(nn.Module):
    """The value before the ReLU is an output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 3)

    def forward(self, x):
        y = self.first(x)
        return y, torch.relu(y)


class Shared(nn.Module):
    """One layer called twice, once with a normalization and a ReLU behind it."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.layer(torch.relu(self.norm(self.layer(x))))


class WithSoftmax(nn.Module):
    """Layers around something that stays in float, with flatten, dropout and a residual in between."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.second, self.soft = nn.Linear(4, 4), nn.Dropout(), nn.Linear(8, 3), nn.Softmax(-1)

    def forward(self, x, scale=1.0):
        y = self.drop(self.first(x * scale)).relu() + x
        return {"p": self.soft(self.second(torch.flatten(y, 1)))}


class OfPython(nn.Module):
    """No layer, and a decision by the values."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Heads(nn.Module):
    """torch's module of attention, whose weights are read or not."""

    def __init__(self, batch_first: bool = True, read: bool = False):
        super().__init__()
        self.read, self.attention = read, nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x):
        y, weights = self.attention(x, x, x)
        return (y, weights) if self.read else y


def tensors(tree) -> list[torch.Tensor]:
    """The tensors in nested tuples and lists."""
    return [tree] if isinstance(tree, torch.Tensor) else [tensor for each in tree for tensor in tensors(each)]


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The distance of two tensors over the size of the second."""
    return float((ours - theirs).norm() / theirs.norm())


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    """All bits of a module, such as a network in training."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether all bits are the same."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def with_plain(layer: nn.Module, *names: str) -> nn.Module:
    """A layer with plain tensors of the same values in the place of parameters."""
    for name in names:
        value = getattr(layer, name).detach().clone()
        delattr(layer, name)
        setattr(layer, name, value)
    return layer


def inputs(rows: int = 32, shape: tuple[int, ...] = (4,), seed: int = 1) -> torch.Tensor:
    """Seeded normal inputs [rows, *shape]."""
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def perceptrons(draw, norms=True):
    """(model, calibration batches, test batch) of random sizes: linear layers, some with ReLU behind.

    ``norms``: some with a normalization, too.
    """
    sizes = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    seed = draw(st.integers(0, 2**31))
    parts = []

    def build():
        for fan_in, fan_out in zip(sizes, sizes[1:]):
            parts.append(nn.Linear(fan_in, fan_out, bias=draw(st.booleans())))
            if norms and draw(st.booleans()):
                norm = nn.BatchNorm1d(fan_out)
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.2, 3)
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
                parts.append(norm)
            if draw(st.booleans()):
                parts.append(nn.ReLU())
        return nn.Sequential(*parts)

    model = seeded(build, seed)
    spread = draw(st.sampled_from([0.01, 1.0, 30.0]))
    calibration = [inputs(rows, (sizes[0],), seed + rows) * spread for rows in (1, 3, 8)]
    return model, calibration, inputs(6, (sizes[0],), seed) * spread


def parameters(model: nn.Module) -> dict[str, np.ndarray]:
    """Copies of all parameters and buffers."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, np.ndarray]) -> bool:
    """Whether parameters and buffers are still those of ``before``, bit for bit."""
    now = parameters(model)
    return now.keys() == before.keys() and all(now[name].tobytes() == before[name].tobytes() for name in before)
