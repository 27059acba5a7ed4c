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


def widest(ranges: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The smallest and the largest ends over all processes; float32 values."""
    if not together():
        return ranges
    both = torch.tensor([(-low, high) for low, high in ranges], dtype=torch.float32, device="cpu")
    distributed.all_reduce(both, op=distributed.ReduceOp.MAX)
    return [(-low, high) for low, high in both.tolist()]
