"""Optimizers that hold parameters of the model that ``prepare_qat`` copied, which nothing trains (QAT-OPTIMIZER)."""

import functools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

REPLACED = (
    "optimizer: expected parameters of the result of prepare_qat, got those of the model that was passed to it,"
    " which is not trained; create the optimizer from the result's parameters"
)
# By identity, as tensors are compared value by value.
replaced: dict[int, "weakref.ref[torch.Tensor]"] = {}


def replace(parameters: Iterable[torch.Tensor]) -> None:
    """Notes parameters that were copied, as long as somebody holds them."""
    watch()
    for parameter in parameters:
        replaced[id(parameter)] = weakref.ref(parameter, functools.partial(forget, id(parameter)))


def forget(key: int, _: Any) -> None:
    del replaced[key]


@functools.cache
def watch() -> None:
    """Has every optimizer ask before it steps, or behind it where the step itself computes gradients, by a closure."""
    register_optimizer_step_pre_hook(before)
    register_optimizer_step_post_hook(behind)


def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not has_closure(args, kwargs):
        check(optimizer)


def behind(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if has_closure(args, kwargs):
        check(optimizer)


def has_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a step, called with an optimizer and these arguments, is given a closure."""
    return any(map(callable, (*args[1:], kwargs.get("closure"))))


def check(optimizer: Optimizer) -> None:
    """Raises ValueError for an optimizer that changes nothing but parameters that were copied."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(parameter.grad is None for parameter in parameters) and any(id(each) in replaced for each in parameters):
        raise ValueError(REPLACED)
