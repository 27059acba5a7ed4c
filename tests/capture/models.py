"""Small models of kinds that tracing gets wrong or refuses: hooks, writes in place, state, Python that decides, weights
that are computed."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A model, a batch for it, and whether ``quantize_dynamic`` has a layer in it."""

    build: Callable[[], nn.Module]
    batch: Callable[[], torch.Tensor]
    dynamic: bool


CASES: dict[str, Case] = {}


def rows() -> torch.Tensor:
    return torch.randn(16, 8)


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16)


def case(*, batch: Callable[[], torch.Tensor] = rows, dynamic: bool = True) -> Callable[[Callable], Callable]:
    def add(build: Callable) -> Callable:
        CASES[build.__name__] = Case(build, batch, dynamic)
        return build

    return add


def two_layers(forward: Callable) -> nn.Module:
    """Layers ``first`` and ``second`` with some forward."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    Model.forward = forward
    return Model().eval()


def weight_norm_by_hook(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather have it parametrized
        return nn.utils.weight_norm(module)


# --- beside the forward


@case()
def hook_style_weight_norm_with_loaded_state() -> nn.Module:
    source = weight_norm_by_hook(nn.Linear(8, 4))
    source.weight_g.data.mul_(3)
    fresh = weight_norm_by_hook(nn.Linear(8, 4))
    fresh.load_state_dict(source.state_dict())
    return fresh.eval()


@case()
def parametrized_weight() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 4)).eval()


@case()
def hook_that_changes_an_output() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model[0].register_forward_hook(lambda module, inputs, output: output * 0.25 + 1)
    return model.eval()


@case()
def hook_that_changes_the_input() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0.5 + 1,))
    return model.eval()


# --- writes


@case()
def write_through_a_view() -> nn.Module:
    def forward(self, x):
        y = self.first(x)
        y[:, :4].mul_(3.0)
        return self.second(torch.relu(y))

    return two_layers(forward)


@case()
def write_to_a_base_whose_view_is_read() -> nn.Module:
    def forward(self, x):
        y = self.first(x)
        part = y[:, :8]
        y.mul_(3.0)
        return self.second(part)

    return two_layers(forward)


@case()
def augmented_assignment_to_an_alias() -> nn.Module:
    def forward(self, x):
        y = self.first(x)
        z = y
        z += 1
        return self.second(y)

    return two_layers(forward)


@case()
def item_assignment() -> nn.Module:
    def forward(self, x):
        y = self.first(x)
        y[:, 1:3] = 0.0
        return self.second(y)

    return two_layers(forward)


@case()
def relu_in_place_read_afterwards() -> nn.Module:
    def forward(self, x):
        y = self.first(x)
        F.relu(y, inplace=True)
        return self.second(y)

    return two_layers(forward)


# --- state


@case()
def attribute_that_is_kept() -> nn.Module:
    def forward(self, x):
        self.last = self.first(x)
        return self.second(self.last)

    return two_layers(forward)


@case()
def cache_that_is_filled() -> nn.Module:
    def forward(self, x):
        if "place" not in self.cache:
            self.cache["place"] = torch.arange(8.0) * x.new_ones(8)
        return self.second(self.first(x) + self.cache["place"])

    model = two_layers(forward)
    model.cache = {}
    return model


@case()
def buffer_that_counts() -> nn.Module:
    def forward(self, x):
        self.count.add_(1)
        return self.second(self.first(x)) * self.count

    model = two_layers(forward)
    model.register_buffer("count", torch.zeros(1))
    return model


class Joining(nn.Module):
    """Changes the list that it is given before it does what cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        for i, layer in enumerate((self.first, self.second)):
            x[i] = layer(x[i])
        return (x[0] + x[1] if x[0].sum() > -1e9 else x[1]), x


@case()
def list_that_is_changed() -> nn.Module:
    def forward(self, x):
        saved = [self.first(x).relu(), x]
        joined, saved = self.joining(saved)
        return self.second(joined) + saved[0][:, :4]

    model = two_layers(forward)
    model.joining = Joining()
    return model.eval()


@case()
def activation_in_place_of_a_view() -> nn.Module:
    def forward(self, x):
        one, other = self.first(x).chunk(2, 1)
        return self.second(torch.cat([nn.SiLU(inplace=True)(one), self.act(other), self.act(x.clone())[:, :0]], 1))

    model = two_layers(forward)
    model.act = nn.SiLU(inplace=True)
    return model.eval()


# --- Python in forward


@case()
def question_of_type() -> nn.Module:
    questions = {"type": type}  # where tracing does not look for them

    def forward(self, x):
        if questions["type"](x) is torch.Tensor:
            x = self.first(x)
        return self.second(x)

    return two_layers(forward)


@case()
def optional_argument() -> nn.Module:
    def forward(self, x, bias=None, **others):
        y = self.second(self.first(x))
        return y if bias is None else y + bias

    return two_layers(forward)


@case()
def flag() -> nn.Module:
    def forward(self, x, features=False):
        y = self.first(x)
        return y if features else self.second(y.relu())

    return two_layers(forward)


@case()
def assertion_on_the_shape() -> nn.Module:
    def forward(self, x):
        assert x.shape[-1] == 8 and x.dim() == 2
        return self.second(self.first(x))

    return two_layers(forward)


@case()
def sizes_unpacked() -> nn.Module:
    def forward(self, x):
        n, c = x.shape
        return self.second(self.first(x) * torch.ones(n, c))

    return two_layers(forward)


@case()
def sizes_passed_on_as_they_are() -> nn.Module:
    return two_layers(lambda self, x: self.second(self.first(x) * torch.ones(x.shape) + torch.zeros(*x.size())))


@case(batch=lambda: torch.randn(4, 6, 8))
def loop_over_time() -> nn.Module:
    return two_layers(lambda self, x: torch.stack([self.second(self.first(x[:, t])) for t in range(x.size(1))], 1))


@case()
def everything_passed_on() -> nn.Module:
    return two_layers(lambda self, *args, **kwargs: self.second(self.first(*args, **kwargs)))


@case()
def decorated_forward() -> nn.Module:
    def keep(function):
        @functools.wraps(function)
        def wrapped(self, *args, **kwargs):
            return function(self, *args, **kwargs)

        return wrapped

    return two_layers(keep(lambda self, x, mask=None, **others: self.second(self.first(x))))


@case()
def decision_by_data() -> nn.Module:
    def forward(self, x):
        y = self.first(x)
        return self.second(y) if y.sum() > -1e9 else y

    return two_layers(forward)


@case()
def layer_called_in_two_ways() -> nn.Module:
    class Scaled(nn.Linear):
        def forward(self, x, twice=False):
            y = F.linear(x, self.weight, self.bias)
            return y * 2 if twice else y

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = Scaled(8, 8)

        def forward(self, x):
            if not bool(x.sum() > -1e9):
                return x  # never
            return self.first(self.first(x), twice=True)

    return Model().eval()


# --- one layer that computes its padding from the size, deep inside


class Padded(nn.Conv2d):
    """A convolution whose output has the size of the input, divided by the stride and rounded up."""

    def forward(self, x):
        places = zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        missing = [max((-(-n // step) - 1) * step + (k - 1) + 1 - n, 0) for n, step, k in places]
        widths = [missing[1] // 2, missing[1] - missing[1] // 2, missing[0] // 2, missing[0] - missing[0] // 2]
        return F.conv2d(F.pad(x, widths), self.weight, self.bias, self.stride)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.padded, self.behind = nn.Conv2d(8, 8, 3, padding=1), Padded(8, 8, 3, 2), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.behind(F.relu(self.padded(F.relu(self.before(x)))))


@case(batch=lambda: torch.rand(2, 3, 24, 24), dynamic=False)
def padding_computed_from_the_size() -> nn.Module:
    inner = nn.Sequential(Block(), nn.Conv2d(8, 8, 3, padding=1), Block())
    return nn.Sequential(nn.Conv2d(3, 8, 3), inner, nn.Conv2d(8, 4, 1)).eval()


# --- weights that are computed


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


@case(batch=images, dynamic=False)
def standardized_weights() -> nn.Module:
    return nn.Sequential(Standardized(3, 8, 3), nn.ReLU(), Standardized(8, 4, 3)).eval()
