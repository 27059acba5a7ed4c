"""Parts of a model that its own forward calls under autocast, or takes gradients through (STA-MODES)."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from quantspec.capture import calls, copies

# The floats that autocast gives its own type.
CAST = frozenset((torch.float32, torch.bfloat16, torch.float16))
LOOKED_UP = nn.Embedding, nn.EmbeddingBag
NONE: Mapping[str, Any] = MappingProxyType({})


def why_float(forward: Callable[..., Any], given: Iterable[Any]) -> str | None:
    """Why a part, which has that forward in the model, is computed in float at a call; None where it is not."""
    if torch.is_grad_enabled() and (reason := calls.unusual(given)) is not None:
        return reason
    if not torch.is_autocast_enabled("cpu"):
        return None
    module = getattr(forward, "__self__", None)
    return None if calls.lowered(module) or isinstance(module, LOOKED_UP) else calls.AUTOCAST


def computed(
    forward: Callable[..., Any], network: nn.Module, args: Iterable[Any], kwargs: Mapping[str, Any] = NONE
) -> Any:
    """What the network of a part gives; under autocast, of a layer's type there."""
    if not torch.is_autocast_enabled("cpu") or not calls.lowered(getattr(forward, "__self__", None)):
        return network(*args, **kwargs)
    args, kwargs = copies.over_tensors((tuple(args), dict(kwargs)), lambda x: x.float() if x.dtype in CAST else x)
    return network(*args, **kwargs).to(torch.get_autocast_dtype("cpu"))
