"""Writing in place as functions that give a new tensor: what a recorded graph has in the place of item assignment and
the like."""

from typing import Any

import torch

# What gives memory as it is found, by what gives zeros in it. A value that nobody wrote may be any, so zeros are as
# right; they are the same at each call, and no file holds what else was in memory.
UNWRITTEN: dict[Any, Any] = {
    torch.empty: torch.zeros, torch.empty_like: torch.zeros_like, torch.Tensor.new_empty: torch.Tensor.new_zeros,
    "new_empty": "new_zeros",
}  # fmt: skip
FILLING = ("copy_", "fill_", "zero_")


def with_item(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """``x`` after ``x[index] = value``."""
    changed = x.clone()
    changed[index] = value
    return changed


def filled(x: torch.Tensor, value: Any) -> torch.Tensor:
    """``x`` after ``x.copy_(value)`` or ``x.fill_(value)``."""
    changed = x.clone()
    return changed.copy_(value) if isinstance(value, torch.Tensor) else changed.fill_(value)


def zeroed(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """A call of a function or method that leaves nothing unwritten: with zeros where it would."""
    if target is torch.Tensor.new and not kwargs:
        return *of_new(args), kwargs
    if target in UNWRITTEN:
        # No order of zeros in memory is another value, and not all that makes zeros takes one.
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
        return UNWRITTEN[target], args, kwargs
    return target, args, kwargs


def of_new(args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What ``x.new(...)`` means by what it is given: sizes, or values in a list."""
    x, *given = args
    if all(isinstance(size, (int, torch.Size)) for size in given):
        return torch.Tensor.new_zeros, (x, *(given or [0]))
    if isinstance(given[0], (list, tuple)):
        return torch.Tensor.new_tensor, (x, *given)
    return torch.Tensor.new, args


def value_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``copy_``, ``fill_`` and ``zero_`` write, by their arguments."""
    return args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("value", 0))
