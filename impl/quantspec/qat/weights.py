"""Where the weight and the bias of a captured layer come from: parameters of the model, and the normalizations that
the layer absorbed, whose statistics are a batch's while they are trained (QAT-FOLD)."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from quantspec.engines.tensors import float_address
from quantspec.ir.float_graph import BatchNorm, Folded, Layer, Linear, Recipe
from quantspec.ir.float_run import FloatLayer, check_fits, run_conv, transposed_weight
from quantspec.numerics import folding
from quantspec.surroundings import level_of_caller

from .functions import Replaced, apply
from .live import Computed, still
from .ranks import averaged

Forms = Iterator[Callable[[torch.Tensor], torch.Tensor]]
Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Source:
    """A tensor of the model by its path, and the form in which a layer has it."""

    path: str
    form: Callable[[torch.Tensor], torch.Tensor]

    def value(self, model: nn.Module) -> torch.Tensor:
        """The layer's own, of which the model's tensor gets the gradient."""
        owner: Any = model
        for name in self.names:
            owner = getattr(owner, name)
        return self.form(owner)

    @cached_property
    def names(self) -> list[str]:
        return self.path.split(".")


class Rows:
    """Some rows of a tensor, in the shape that a layer has them in."""

    def __init__(self, start: int, shape: tuple[int, ...]):
        self.start, self.shape = start, shape

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[self.start : self.start + self.shape[0]]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


class Shaped:
    """A tensor in another shape, value by value."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(self.shape)


class Flipped:
    """The weight of a transposed convolution."""

    def __init__(self, groups: int):
        self.groups = groups

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return transposed_weight(tensor, self.groups)


class Sources:
    """Finds the tensors of a model by where their values lie, or else by their values: parameters, what a
    parametrization makes of some, and what the model computes of some (``recipes``)."""

    def __init__(self, model: nn.Module, recipes: dict[str, Recipe]):
        self.model, self.modules = model, dict(model.named_modules())
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.parameters: dict[str, torch.Tensor] = {
            path: tensor for path, tensor in model.named_parameters() if ".parametrizations." not in f".{path}"
        }
        with torch.no_grad(), still(model):
            for path, module in self.modules.items():
                for name in getattr(module, "parametrizations", ()):
                    self.parameters[f"{path}.{name}" if path else name] = getattr(module, name)
            made = {path: Computed(recipe, self.modules, whole) for path, recipe in recipes.items()}
            self.computed = {path: each for path, each in made.items() if torch.equal(each.tensor, recipes[path].value)}
        if lost := made.keys() - self.computed.keys():
            # A recipe that gives something else missed a write.
            text = f"prepare_qat: {', '.join(sorted(lost))}: how the model computes it of parameters cannot be repeated"
            warnings.warn(f"{text}; it stays as it is, and does not train them", stacklevel=level_of_caller())
        values = {path: recipes[path].value for path in self.computed}
        self.tensors |= values
        self.parameters |= values

    def source(self, path: str, form: Callable[[torch.Tensor], torch.Tensor]) -> "Source | Computed":
        """A tensor by its path, in a form."""
        if path in self.computed:
            return Computed(self.computed[path].recipe, self.modules, form)
        return Source(path, form)

    def of(self, array: np.ndarray, layer: str, groups: int = 1) -> "Source | Computed | None":
        """Where an array comes from; None for what is no function of parameters. ``layer``: the path of its module."""
        return self.lying(array) or self.alike(array, layer, groups)

    def lying(self, array: np.ndarray) -> "Source | Computed | None":
        """The tensor that lies where an array does."""
        for path, tensor in self.tensors.items():
            if float_address(tensor.detach()) == array.ctypes.data and tensor.numel() == array.size:
                same = tuple(tensor.shape) == array.shape
                return self.source(path, whole if same else Shaped(array.shape))
        return None

    def alike(self, array: np.ndarray, layer: str, groups: int) -> "Source | Computed | None":
        """A parameter that has an array's values in one of its forms, the nearest to a layer."""
        around = layer.rpartition(".")[0] or layer
        near = sorted(
            self.parameters, key=lambda path: (not path.startswith(f"{layer}."), not path.startswith(f"{around}."))
        )
        for path in near:
            for form in forms(self.parameters[path].detach(), array, layer, groups):
                found = form(self.parameters[path].detach())
                if np.array_equal(found.numpy(), array):
                    return self.source(path, form)
        return None

    def vector(self, array: np.ndarray, layer: str) -> "Source | Computed | None":
        """Where a vector comes from, of which there may be a copy: a parameter of the layer's module, if no other of it
        has the same values, or rows of one."""
        if (own := self.lying(array)) is not None:
            return own
        found = [
            path for path, tensor in self.parameters.items()
            if path.startswith(f"{layer}.") and np.array_equal(tensor.detach().numpy(), array)
        ]  # fmt: skip
        return self.source(found[0], whole) if len(found) == 1 else self.alike(array, layer, 1)


Found = Source | Computed | torch.Tensor


def forms(tensor: torch.Tensor, array: np.ndarray, layer: str, groups: int) -> Forms:
    """In which a layer may have a parameter."""
    if tensor.numel() == array.size and tensor.ndim >= 2:
        yield whole
        if len(tensor) % groups == 0:
            yield Flipped(groups)
    last = layer.rpartition(".")[2]
    if last.isdigit() and tensor.ndim == array.ndim and tensor.shape[1:] == array.shape[1:]:
        yield Rows(int(last), array.shape)  # of one of several projections in one parameter


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalization that a layer absorbed, of which ``module`` keeps the statistics; None where they are constants.
    """

    place: str
    module: nn.modules.batchnorm._BatchNorm | None
    gamma: "Found"
    beta: "Found"
    mean: "Found"
    var: "Found"
    eps: float

    def follows_batches(self) -> bool:
        """Whether it normalizes by the statistics of the batch."""
        return self.module is not None and self.module.training


def norm_of(folded: Folded, sources: Sources) -> Norm:
    """A normalization, and where its numbers are."""
    norm: BatchNorm = folded.norm
    module = sources.modules.get(norm.layer)
    own = module if isinstance(module, nn.modules.batchnorm._BatchNorm) else None

    def number(array: np.ndarray) -> Found:
        return sources.lying(array) or torch.from_numpy(array.copy())

    def statistic(array: np.ndarray, name: str) -> Found:
        return number(array) if getattr(own, name, None) is None else Source(f"{norm.layer}.{name}", whole)

    mean, var = statistic(norm.mean, "running_mean"), statistic(norm.var, "running_var")
    numbers = number(norm.gamma), number(norm.beta), mean, var
    return Norm(folded.place, own, *numbers, norm.eps)


class LayerWeight:
    """Weight and bias of a captured layer, as functions of the model's parameters."""

    def __init__(self, node: Layer, folded: tuple[Folded, ...], sources: Sources, own: nn.ParameterDict):
        self.node, self.model, self.own = node, sources.model, own
        groups = getattr(node, "groups", 1)
        weight, bias = (folded[0].weight, folded[0].bias) if folded else (node.weight, node.bias)
        self.norms = [norm_of(module, sources) for module in folded]
        if folded and folded[0].place == "alone":
            self.weight: Found | str = torch.from_numpy(weight)
        else:
            self.weight = sources.of(weight, node.layer, groups) or self.added(weight, "weight")
        self.bias = None if bias is None else sources.vector(bias, node.layer) or self.added(bias, "bias")

    def added(self, array: np.ndarray, what: str) -> str:
        """The name of a parameter of its own, for what no parameter of the model gives (QAT-COMPUTED)."""
        name = key_of(self.node.name, what)
        self.own[name] = nn.Parameter(torch.from_numpy(array.copy()))
        return name

    def value(self, where: "Found | str") -> torch.Tensor:
        if isinstance(where, str):
            added: torch.Tensor = self.own[where]
            return added
        return where if isinstance(where, torch.Tensor) else where.value(self.model)

    def plain(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias without normalizations."""
        return self.value(self.weight), None if self.bias is None else self.value(self.bias)

    @property
    def follows_batches(self) -> bool:
        """Whether weight and bias depend on the batch."""
        return any(norm.follows_batches() for norm in self.norms)

    def folded(
        self, x: torch.Tensor | None = None, run: Run | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with the normalizations inside, with the statistics of the batch ``x`` (real values) in those
        that follow it. ``run``: the layer in float."""
        numbers: dict[int, list[torch.Tensor]] = {}

        def absorbed(norms: list[Norm]) -> tuple[torch.Tensor, torch.Tensor | None]:
            weight, bias = self.plain()
            for norm in norms:
                if id(norm) not in numbers:
                    own = numbers[id(norm)] = [self.value(n) for n in (norm.gamma, norm.beta, norm.mean, norm.var)]
                    if x is not None and norm.follows_batches():
                        assert run is not None
                        own[2:] = batch_statistics(run(x, weight, bias) if norm.place == "behind" else x, norm)
                weight, bias = fold(norm, weight, bias, numbers[id(norm)], getattr(self.node, "groups", 1))
            return weight, bias

        # What a batch meets first is not what was folded first, by which the weights are rounded.
        met = sorted(self.norms, key=lambda norm: norm.place == "behind")
        result = absorbed(met)
        return result if met == self.norms else absorbed(self.norms)


def key_of(name: str, what: str) -> str:
    """Under which name something of a node is a parameter. A dot is not allowed there, and is what no other node's name
    has in its place."""
    return f"{name.replace('.', '-')}_{what}"


class LiveLayer:
    """A layer that stays in float, with the model's present weight and bias."""

    def __init__(self, layer: FloatLayer, sources: Sources, own: nn.ParameterDict):
        weight, bias = (None if part is None else part.detach().numpy() for part in (layer.weight, layer.bias))
        assert weight is not None
        self.source = LayerWeight(replace(layer.node, weight=weight, bias=bias), (), sources, own)
        self.source.node = layer.node  # which has no weight that nobody trains

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        check_fits(self.source.node, x.shape)
        return layer_in_float(self.source.node, x, *self.source.plain())

    def settled(self) -> FloatLayer:
        """The same with copies of what weight and bias are now."""
        weight, bias = (None if part is None else part.detach().numpy() for part in self.source.plain())
        assert weight is not None
        return FloatLayer(replace(self.source.node, weight=weight, bias=bias))


def layer_in_float(node: Layer, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A layer in float32."""
    return F.linear(x, weight, bias) if isinstance(node, Linear) else run_conv(node, x, weight, bias)


def batch_statistics(x: torch.Tensor, norm: Norm) -> list[torch.Tensor]:
    """Mean and variance of each channel of a batch; they move the running ones as in torch."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"batch: a normalization needs more than one value for each channel, got {tuple(x.shape)}")
    var, mean = torch.var_mean(x, axes, correction=0)
    module = norm.module
    assert module is not None
    with torch.no_grad():
        assert module.num_batches_tracked is not None
        module.num_batches_tracked.add_(1)
        share = 1 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        for running, seen in ((module.running_mean, mean), (module.running_var, var * (count / (count - 1)))):
            assert running is not None
            running.mul_(1 - share).add_(averaged(seen.detach()), alpha=share)
    return [mean, var]


def fold(
    norm: Norm, weight: torch.Tensor, bias: torch.Tensor | None, numbers: list[torch.Tensor], groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chapter 4's folding, by its own functions, with the gradient of the same formulas."""
    gamma, beta, mean, var = (number.double() for number in numbers)
    factor = gamma / torch.sqrt(var + norm.eps)
    start = 0.0 if bias is None else bias.double()
    if norm.place == "before":
        shift = beta - mean * factor
        outputs, inputs = weight.shape[:2]
        channels = torch.arange(outputs)[:, None] // (outputs // groups) * inputs + torch.arange(inputs)
        wide = weight.double()
        surrogate_weight = wide * factor[channels].reshape(outputs, inputs, *[1] * (weight.ndim - 2))
        sums = wide.flatten(2).sum(2) if weight.ndim > 2 else wide
        surrogate_bias = start + (sums * shift[channels]).sum(1)
    else:
        surrogate_weight = weight.double() * factor.reshape(-1, *[1] * (weight.ndim - 1))
        surrogate_bias = (start - mean) * factor + beta
    plain = weight.detach().numpy()
    g, b, m, v = (number.detach().numpy() for number in numbers)
    given = None if bias is None else bias.detach().numpy()
    if norm.place == "before":
        exact = folding.fold_batch_norm_before(plain, given, g, b, m, v, norm.eps, groups)
    else:
        exact = folding.fold_batch_norm(plain, given, g, b, m, v, norm.eps)
    tensors = (torch.from_numpy(np.ascontiguousarray(array)) for array in exact)
    both = zip((surrogate_weight, surrogate_bias), tensors)
    folded_weight, folded_bias = (apply(Replaced, surrogate.float(), value) for surrogate, value in both)
    return folded_weight, folded_bias


