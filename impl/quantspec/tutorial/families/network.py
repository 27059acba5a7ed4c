"""A network of a family: how to build it, and what to give it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantspec.comparison.compare import leaves
from quantspec.tutorial.rows import call


@dataclass(frozen=True)
class Network:
    """``build``: the model as its library has it. ``batch``: inputs for a seed, as calibration data has them.
    ``answer``: the tensors to compare of what it gives."""

    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    answer: Callable[[Any], list[torch.Tensor]] = leaves


def built(network: Network) -> nn.Module:
    """The model in evaluation mode, with seeded weights, and statistics of normalizations as training would leave
    them."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of libraries on what they will do next year
        torch.manual_seed(0)
        model = network.build().eval()
        for module in model.modules():  # a head of zeros would have no function to keep
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)
        settle(model, network)
        return model


def settle(model: nn.Module, network: Network) -> None:
    """Moves the statistics of batch normalizations to those of two batches, as the zoo does."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
    for seed in range(2 if norms else 0):
        call(model, network.batch(seed))
    for norm in norms:
        norm.eval()


def integers(below: int, *shape: int, seed: int) -> torch.Tensor:
    """Random numbers such as tokens, int64 in [1, below)."""
    return torch.randint(1, below, shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Random float32 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
