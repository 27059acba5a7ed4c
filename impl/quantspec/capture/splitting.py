"""Which lengths layers say, so that they are the same for all inputs; and how many parts a tensor is split into: Python
goes through them one by one, and a graph has as many as there were."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .aliases import name_of

# The names of the number that says how to split, by the names of the functions.
SPLITTING = {"split": ("split_size", "split_size_or_sections"), "chunk": ("chunks",), "unbind": ()}
# What gives a value of the size of its input.
KEEPING = (
    nn.LayerNorm, nn.GroupNorm, nn.Dropout, nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh,
    nn.Softmax, nn.Hardswish, nn.modules.batchnorm._BatchNorm,
)  # fmt: skip
KEPT = frozenset(
    """
    contiguous clone detach float relu gelu silu sigmoid tanh softmax dropout layer_norm mul add sub div truediv
    """.split()
)
CONVS = {1: (F.conv1d, torch.conv1d, nn.Conv1d), 2: (F.conv2d, torch.conv2d, nn.Conv2d)}


def arguments(name: str, args: Any, kwargs: Any) -> tuple[Any, int] | None:
    """How a function splits, and along which axis. None for those that always give as many parts."""
    if name not in SPLITTING:
        return None
    given = list(args[1:])
    how = kwargs.get(next((key for key in SPLITTING[name] if key in kwargs), ""))
    if how is None and SPLITTING[name]:
        how = given.pop(0)
    axis = kwargs.get("dim", given[0] if given else 0)
    return None if isinstance(how, (list, tuple)) or not isinstance(axis, int) else (how, axis)


def count(name: str, how: Any, size: Any) -> Any:
    """How many parts an axis of some size is split into."""
    if name == "unbind":
        return size
    each = how if name == "split" else -(-size // how)
    return -(-size // each)


def is_fixed(node: fx.Node, axis: int, axes: int, modules: dict[str, nn.Module]) -> bool:
    """Whether an axis of a value has the same size for all inputs, as the features of a layer have. ``axes``: how many
    the value has."""
    args: tuple[Any, ...] = node.args
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if node.target is F.linear or isinstance(module, nn.Linear):
        return axis == axes - 1
    for positions, kinds in CONVS.items():
        if node.target in kinds or type(module) in kinds:
            return axis == axes - 1 - positions
    if not args or not isinstance(args[0], fx.Node):
        return False
    if isinstance(module, KEEPING) or (node.op != "call_module" and name_of(node) in KEPT):
        return len(node.all_input_nodes) == 1 and is_fixed(args[0], axis, axes, modules)
    if node.target is operator.getitem and type(args[1]) is int and name_of(args[0]) in ("chunk", "split"):
        whole = args[0].args[0] if args[0].args else None
        alone = args[0].all_input_nodes == [whole]  # and no length of another value decides where it is cut
        return alone and isinstance(whole, fx.Node) and is_fixed(whole, axis, axes, modules)
    if node.op != "call_method" or node.kwargs:
        return False
    numbers = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    if node.target in ("view", "reshape"):
        return len(numbers) == axes and type(numbers[axis]) is int and numbers[axis] >= 0
    if node.target == "permute" and all(type(number) is int for number in numbers):
        return is_fixed(args[0], numbers[axis] % axes, axes, modules)
    if node.target == "transpose" and all(type(number) is int for number in numbers):
        first, second = (number % axes for number in numbers)
        return is_fixed(args[0], {first: second, second: first}.get(axis, axis), axes, modules)
    return False
