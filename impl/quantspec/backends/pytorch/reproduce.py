"""Calls of torch written down: ``reproduce`` for adapters that call torch's functions, which torch itself lets nobody
make in the meantime."""

import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, resolve_name

from quantspec.backends import registry
from quantspec.backends.protocol import threads
from quantspec.backends.reproduce import Expression, Parts, literal, nested, script


@literal.register(torch.dtype)
@literal.register(torch.memory_format)
@literal.register(torch.qscheme)
def _(value: torch.dtype | torch.memory_format | torch.qscheme) -> Parts:
    return (str(value),)


@literal.register(torch.Tensor)
def _(value: torch.Tensor) -> Parts:
    """Its elements in its own order of memory, which kernels may look at."""
    with torch._C.DisableTorchFunction():  # it is asked for its elements, whatever ``WritesDown`` does with questions
        return (tensor_text(value),)


def tensor_text(value: torch.Tensor) -> str:
    """A tensor as an expression."""
    strides = value.stride()
    order = sorted(range(value.ndim), key=lambda axis: -strides[axis])
    dense = value if value.is_contiguous() else value.permute(order)
    if not dense.is_contiguous():
        raise ValueError(f"value: expected a dense tensor, got strides {strides}")
    dtype = "" if value.dtype in (torch.float32, torch.int64) else f", dtype={value.dtype}"
    if not value.numel():
        return f"torch.zeros({tuple(value.shape)}, dtype={value.dtype})"
    back = "" if dense is value else f".permute({tuple(int(axis) for axis in np.argsort(order))})"
    return f"torch.tensor({nested(dense.tolist())}{dtype}){back}"


class WritesDown(TorchFunctionMode):
    """torch's functions give an ``Expression`` inside. What asks a tensor about itself is answered."""

    def __init__(self, page: list[Expression]) -> None:
        super().__init__()
        self._page = page

    def __torch_function__(
        self, function: Callable[..., Any], types: Sequence[type], arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        if function is torch._C._set_grad_enabled or function.__name__ in ("__get__", "__len__"):
            return function(*arguments, **(options or {}))
        name = torch_name(function)
        if name.startswith("torch.Tensor."):
            # A method: the tensor that it is asked of becomes an expression that has it.
            itself = Expression(self._page, *literal(arguments[0]))
            return getattr(itself, function.__name__)(*arguments[1:], **(options or {}))
        return Expression(self._page, name)(*arguments, **(options or {}))


def torch_name(function: Callable[..., Any]) -> str:
    """How a script calls a function that torch hands to a mode."""
    if isinstance(function, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        return f"torch.ops.{function}"
    return resolve_name(function) or f"torch.{function.__name__}"


def torch_script(
    backend: object, operation: str, arguments: tuple[Any, ...], options: dict[str, Any], *,
    first: tuple[str, ...] = (), modules: Mapping[ModuleType, Mapping[str, str]] | None = None,
) -> str:  # fmt: skip
    """``reproduce.script`` for torch, on as many threads as here and, said in a comment, with the variables that hide a
    CPU's VNNI."""
    hidden = " ".join(f"{name}={os.environ[name]}" for name in registry.NO_VNNI if name in os.environ)
    begins = ["import torch", *first, f"torch.set_num_threads({threads()})"]
    comment = f"run with {hidden}" if hidden else ""
    return script(
        backend, operation, arguments, options, first=begins, modules=modules, contexts=(WritesDown,), comment=comment
    )
