"""What rearranges values without looking at them, so that it does to codes what it does to reals (STA-MOVE)."""

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .program import Move
from .traverse import replace_refs

MOVE_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk,
    torch.split, torch.unbind, torch.roll, torch.flip, torch.narrow, torch.select, torch.swapaxes, torch.movedim,
    torch.tile, torch.repeat_interleave, torch.channel_shuffle, torch.broadcast_to, F.channel_shuffle, F.pixel_shuffle,
    F.pixel_unshuffle,
)  # fmt: skip
METHODS = frozenset(
    """
    flatten reshape view permute transpose contiguous squeeze unsqueeze chunk split unbind roll flip narrow select
    swapaxes movedim tile repeat repeat_interleave expand expand_as view_as reshape_as t clone detach unflatten
    """.split()
)
MOVES: frozenset[Callable[..., Any] | str] = frozenset({*MOVE_FUNCTIONS, *METHODS})
SHAPES = {"size", "dim", "numel", "ndimension", "stride", "is_contiguous"}


def qualified_name(function: Callable[..., Any]) -> str:
    """``torch.flatten`` for ``torch.flatten``: the public module that has the function, and its name there."""
    name = getattr(function, "__name__", repr(function))
    for module in (torch, F, operator, math, builtins):
        if getattr(module, name, None) is function:
            return f"{module.__name__}.{name}"
    for module in (torch.fft, torch.linalg, torch.special):
        leaf = name.removeprefix(f"{module.__name__.rpartition('.')[2]}_")
        if leaf != name and getattr(module, leaf, None) is function:
            return f"{module.__name__}.{leaf}"
    for other, public in vars(F).items():  # ``F.logsigmoid`` calls itself ``log_sigmoid``
        if public is function and not other.startswith("_"):
            return f"{F.__name__}.{other}"
    return f"{getattr(function, '__module__', None)}.{name}"


CODE_FUNCTIONS: tuple[Callable[..., Any], ...] = (*MOVE_FUNCTIONS, operator.getitem, F.pad, F.interpolate)
FUNCTIONS = {qualified_name(function): function for function in CODE_FUNCTIONS}


def known(kind: str, target: str) -> bool:
    """Whether a ``Move`` may have that target."""
    return target in METHODS if kind == "method" else kind == "function" and target in FUNCTIONS


def apply(step: Move, value: Callable[[str], Any]) -> Any:
    """Codes rearranged: an array, or a tuple of arrays where the step splits. ``value`` gives codes as arrays and other
    values as they are.

    What is padded on gets the zero point (INT-CONV-PAD). Raises ValueError for a target that is no move.
    """
    if not known(step.kind, step.target):
        raise ValueError(f"step {step.name!r}: {step.target} does not move codes")

    def tensors(name: str) -> Any:
        return as_tensors(value(name))

    args, kwargs = replace_refs(step.args, tensors), replace_refs(step.kwargs, tensors)
    if step.kind == "method":
        moved = getattr(args[0], step.target)(*args[1:], **kwargs)
    elif step.target == "torch.nn.functional.pad":
        moved = padded(int(step.qparams.zero_point), *args, **kwargs)
    elif step.target == "torch.nn.functional.interpolate":
        moved = F.interpolate(args[0].to(torch.float32), *args[1:], **kwargs).to(args[0].dtype)  # codes are exact there
    else:
        moved = FUNCTIONS[step.target](*args, **kwargs)
    return as_arrays(moved)


def padded(
    zero_point: int, x: torch.Tensor, widths: list[int], mode: str = "constant", value: Any = None
) -> torch.Tensor:
    """``F.pad`` of codes."""
    if mode == "constant":
        return F.pad(x, widths, mode, zero_point)
    return F.pad(x.to(torch.float32), widths, mode).to(x.dtype)


def as_tensors(value: Any) -> Any:
    """Arrays as tensors, also in a tuple."""
    if type(value) is torch.Tensor:
        return value
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(as_tensors, value)) if not isinstance(value, torch.Size) else value
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def as_arrays(value: Any) -> Any:
    """Tensors as arrays, also in a tuple."""
    if isinstance(value, (tuple, list)):
        return tuple(map(as_arrays, value))
    return np.ascontiguousarray(value.numpy()) if isinstance(value, torch.Tensor) else value
