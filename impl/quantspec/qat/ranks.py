"""What processes that train together have in common: ranges and statistics of all their batches (QAT-RANKS)."""

import torch
from torch import distributed


def together() -> bool:
    """Whether several processes train."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def averaged(values: torch.Tensor) -> torch.Tensor:
    """The mean over all processes; with one, the values themselves."""
    if not together():
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total.div_(distributed.get_world_size())


def widest(lows: torch.Tensor, highs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest and the largest ends over all processes."""
    if not together():
        return lows, highs
    both = torch.stack([-lows, highs])
    distributed.all_reduce(both, op=distributed.ReduceOp.MAX)
    return -both[0], both[1]
