"""Whether what is given to ``load_state_dict`` belongs to a network, before any of it is taken."""

from collections.abc import Mapping
from typing import Any

import torch

from quantspec.errors import shown

Form = tuple[torch.dtype, tuple[int, ...]]


def check_forms(state: object, have: Mapping[str, Form], what: str) -> None:
    """ValueError unless a part of a state_dict is a dict of tensors with these names, types and shapes; ``what``: of
    what they are."""
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f"state_dict: expected the {what}, got {shown(state)}")
    if set(have) != set(state):
        odd = sorted(set(have) ^ set(state), key=str)[0]
        raise ValueError(f"state_dict: expected the {what}, but {odd!r} is in only one of them")
    for name, tensor in state.items():
        if (tensor.dtype, tuple(tensor.shape)) != have[name]:
            expected = f"{have[name][0]}{list(have[name][1])}"
            raise ValueError(f"state_dict: {name!r} is {tensor.dtype}{list(tensor.shape)}, expected {expected}")


def tensors_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state_dict has beside the states that modules write and read themselves."""
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def forms(tensors: Mapping[str, torch.Tensor]) -> dict[str, Form]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
