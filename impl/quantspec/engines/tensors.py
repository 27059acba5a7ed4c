"""Memory that machine code may touch: the one place where tensors are made for it, and where the address of a tensor is
given out, after what the address stands on was checked (STA-MEMORY, STA-DEFAULTS)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

CPU, FLOAT = torch.device("cpu"), torch.float32


def new(shape: Sequence[int], dtype: torch.dtype = FLOAT) -> torch.Tensor:
    """A contiguous tensor of any values on the CPU, whatever the process' defaults are."""
    return maker(shape, dtype)()


def maker(shape: Sequence[int], dtype: torch.dtype = FLOAT) -> Callable[[], torch.Tensor]:
    """What makes one tensor of ``new`` after the other."""
    return strided(shape, strides(shape), dtype)


def strided(shape: Sequence[int], steps: Sequence[int], dtype: torch.dtype = FLOAT) -> Callable[[], torch.Tensor]:
    """The same of tensors that lie in another way, with so many values between neighbours along each axis."""
    # ``torch.empty`` takes a microsecond longer.
    return functools.partial(torch.empty_strided, shape, steps, dtype=dtype, device=CPU)


def by_place(shape: Sequence[int]) -> torch.Tensor:
    """A tensor of any values for what attention gives [..., heads, length, features]: in memory the places come before
    the heads, as torch has them and modules join them."""
    if len(shape) < 4:
        return new(shape)
    batch, *heads, length, features = shape
    return new((batch, length, *heads, features)).movedim(1, -2)


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    """How many values lie between neighbours along each axis of a contiguous tensor."""
    result = [1]
    for n in shape[:0:-1]:
        result.append(result[-1] * max(1, n))
    return tuple(result[::-1]) if shape else ()


def zeros(*shape: int) -> torch.Tensor:
    """A float32 tensor of zeros on the CPU, whatever the process' defaults are."""
    return torch.zeros(shape, dtype=FLOAT, device=CPU)


def float_address(x: Any, kind: torch.dtype = FLOAT) -> int:
    """Where a tensor's values lie in float32, or of another ``kind``, one behind the other; 0 where they do not, or are
    not all in memory."""
    # A bare call of a small network is mostly this: each question is asked once, and none that another answers. What
    # has another layout than strides, or stands for other tensors, as inside vmap, has no storage and raises.
    try:
        if type(x) is not torch.Tensor or x.dtype is not kind or not x.is_cpu or not x.is_contiguous():
            return 0
        # A storage may have been made smaller than what its tensors name.
        if x.untyped_storage().nbytes() < x.nbytes + x.itemsize * x.storage_offset() or x.is_neg() or x.is_nested:
            return 0
        return x.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def rows_address(x: torch.Tensor) -> int:
    """As ``float_address`` for float32 whose last axis alone must lie one value behind the other."""
    try:
        if type(x) is not torch.Tensor or x.dtype is not FLOAT or not x.is_cpu or x.stride(-1) != 1 or x.is_neg():
            return 0
        return 0 if x.is_nested or x.untyped_storage().nbytes() < x.itemsize * end_of(x) else x.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def end_of(x: torch.Tensor) -> int:
    """How many values there are in a tensor's storage up to its last one."""
    return 1 + int(x.storage_offset()) + sum((n - 1) * step for n, step in zip(x.shape, x.stride()))


def ahead(x: torch.Tensor, base: Any) -> int | None:
    """How many bytes behind the start of another tensor one begins; None where they lie in different memory."""
    if type(base) is not torch.Tensor or base.untyped_storage().data_ptr() != x.untyped_storage().data_ptr():
        return None
    return x.data_ptr() - base.data_ptr()


def address(x: torch.Tensor) -> int:
    """Where the values of a tensor of ``new`` or ``from_array`` lie.

    Raises TypeError where torch gave none with memory, as under a mode that only follows shapes.
    """
    start = x.data_ptr() if type(x) is torch.Tensor else 0
    if not start and x.numel():
        raise TypeError(f"expected torch to return tensors with memory, got a {type(x).__name__}: leave FakeTensorMode")
    return start


def from_array(x: np.ndarray) -> torch.Tensor:
    """A contiguous tensor of an array's values, in its memory where that is contiguous."""
    return torch.from_numpy(np.ascontiguousarray(x).reshape(x.shape))  # what has no axes is given one there


def array(x: Any, name: str) -> np.ndarray:
    """A tensor's values as an array.

    Raises TypeError naming it when it is no dense tensor on the CPU with values of its own, ValueError when its memory
    is smaller than its shape and strides say.
    """
    if float_address(x) or float_address(x, torch.int64):  # what most are, asked in less time
        plain: np.ndarray = x.detach().numpy()
        return plain
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name}: expected a dense tensor on the CPU, got {type(x).__name__}")
    if x.device.type != "cpu" or x.layout is not torch.strided or x.is_nested:
        form = "nested" if x.is_nested else f"on {x.device} of layout {x.layout}"
        raise TypeError(f"{name}: expected a dense tensor on the CPU, got one that is {form}")
    try:
        held = x.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):
        held = None
    if held is None or type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(
            f"{name}: expected a plain tensor, got a {type(x).__name__} without values of its own;"
            " int8 kernels do not support vmap, grad, masked tensors and similar wrappers"
        )
    if x._is_zerotensor():
        x = x.clone()
        held = x.untyped_storage().nbytes()
    end = x.element_size() * end_of(x)
    if x.numel() and held < end:
        where = f"a tensor of shape {tuple(x.shape)} ends at byte {end} of its storage"
        raise ValueError(f"{name}: {where}, which has {held} bytes")
    try:
        values: np.ndarray = x.as_subclass(torch.Tensor).detach().resolve_conj().resolve_neg().numpy()
    except TypeError as error:  # what NumPy has no type for
        raise TypeError(f"{name}: expected float32, got {x.dtype}") from error
    return values
