"""What surrounds a call: torch's inference mode, autocast, default dtype and default device, which decide over nothing
that is made here (STA-SURROUNDINGS); and the line that it comes from."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from itertools import takewhile
from traceback import walk_stack
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
CPU, FLOAT = torch.device("cpu"), torch.float32


def usual(function: Function) -> Function:
    """A function that runs as if none of torch's modes and defaults were another than torch starts with."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():  # as it was
                return call(*args, **kwargs)
        if are_usual():
            return function(*args, **kwargs)
        with put_back():
            return function(*args, **kwargs)

    return cast(Function, call)


def are_usual() -> bool:
    """Whether there is nothing to put back, in no inference mode."""
    return (
        torch.get_default_dtype() is FLOAT
        and not torch.is_autocast_enabled("cpu")
        and default_device() == CPU
    )


def default_device() -> torch.device:
    """Where torch makes tensors: ``torch.get_default_device`` does not know of ``with torch.device(...)`` in 2.6."""
    return torch.empty(0).device


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """torch's autocast and defaults as torch starts, and afterwards as they were."""
    dtype = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if default_device() != CPU:
            stack.enter_context(CPU)  # which has Python look at every operation
        torch.set_default_dtype(FLOAT)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def level_of_caller() -> int:
    """``stacklevel`` of a warning that is to name the line outside the package, and torch, from which it was called."""
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_stack(sys._getframe(1)))
    ours = takewhile(lambda name: name.startswith(("quantspec.", "torch.")), names)
    return 1 + sum(1 for _ in ours)
