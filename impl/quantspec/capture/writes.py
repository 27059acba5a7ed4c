"""Writing in place as functions that give a new tensor: what a recorded graph has in the place of item assignment and
the like."""

from typing import Any

import torch


def with_item(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """``x`` after ``x[index] = value``."""
    changed = x.clone()
    changed[index] = value
    return changed


def filled(x: torch.Tensor, value: Any) -> torch.Tensor:
    """``x`` after ``x.copy_(value)`` or ``x.fill_(value)``."""
    changed = x.clone()
    return changed.copy_(value) if isinstance(value, torch.Tensor) else changed.fill_(value)
