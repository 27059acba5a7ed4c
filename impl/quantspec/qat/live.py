"""What a network in training calls of the model: its modules and tensors, whatever they are now."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from quantspec.capture import copies
from quantspec.ir.float_graph import Recipe
from quantspec.ir.float_run import call_float
from quantspec.ir.program import Call, Callables


class OnCopies:
    """A module that writes to what it is given, called on copies."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*copies.cloned(args), **copies.cloned(kwargs))


class Live:
    """A tensor that a module has under a name, whatever it is now."""

    def __init__(self, owner: nn.Module, name: str):
        self.owner, self.name = owner, name

    @property
    def tensor(self) -> torch.Tensor:
        tensor: torch.Tensor = getattr(self.owner, self.name)
        return tensor


def live(modules: dict[str, nn.Module], kind: str, path: str) -> Any:
    """What a call of the model's module or tensor of a path gets; None where it has none."""
    if kind == "module" and path in modules:
        own = modules[path]
        return OnCopies(own) if any(getattr(part, "inplace", False) for part in own.modules()) else own
    owner, _, name = path.rpartition(".")
    held = getattr(modules[owner], name, None) if kind == "attribute" and owner in modules else None
    return Live(modules[owner], name) if isinstance(held, torch.Tensor) else None


class Computed:
    """A tensor that the model computes of its parameters alone, computed anew each time it is asked for; ``form``: in
    which a layer has it."""

    def __init__(self, recipe: Recipe, modules: dict[str, nn.Module], form: Callable[[torch.Tensor], torch.Tensor]):
        self.recipe, self.form, self.modules = recipe, form, modules
        keys = {(step.kind, step.target) for step in recipe.steps}
        found = {key: now for key in keys if (now := live(modules, *key)) is not None}
        self.callables = {**recipe.callables, **found}

    @property
    def tensor(self) -> torch.Tensor:
        values: dict[str, Any] = {}
        for step in self.recipe.steps:
            values[step.name] = called(step, self.callables, values)
        return self.form(values[self.recipe.steps[-1].name])

    def value(self, _: nn.Module) -> torch.Tensor:
        """The same, as of a ``Source``."""
        return self.tensor


def called(step: Call, callables: Callables, values: dict[str, Any]) -> Any:
    """What a call in float gives; of a tensor of the model's what it is now."""
    if step.kind == "attribute":
        what = callables[step.kind, step.target]
        return getattr(what, "tensor", what)
    return call_float(step, callables, values.__getitem__)


@contextlib.contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Has what computes something of parameters do so as in evaluation, where it changes nothing."""
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]  # not frozen ones
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def bring(source: nn.Module, target: nn.Module) -> None:
    """Gives a module what a copy of it has as plain attributes: values, tensors, and lists, tuples and dicts of them.

    What has modules in it stays, as each has its own.
    """
    for name, value in vars(source).items():
        if name not in copies.TORCHS and vars(target).get(name, target) is not value and is_plain(value):
            target.__dict__[name] = value


def is_plain(value: Any) -> bool:
    """Whether something is a value or a tensor, or a list, tuple or dict of such."""
    values = value.values() if type(value) is dict else value if type(value) in (list, tuple) else [value]
    return all(type(item) in copies.FIXED or isinstance(item, torch.Tensor) for item in values)
