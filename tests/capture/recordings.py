"""Graphs of models that are recorded, and a model for one expression."""

import torch
from torch import nn

from quantspec.capture import recorder
from quantspec.capture.calls import call_of
from quantspec.ir.float_graph import FloatGraph


class Written(nn.Module):
    """A layer, and what is written behind it."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write = nn.Linear(8, 8), write

    def forward(self, x):
        return self.write(self.layer(x))


def recorded(model: nn.Module, *given: torch.Tensor, acts: bool = False) -> FloatGraph:
    """The graph of a model as its recording on these inputs gives it."""
    pattern, tensors = call_of(model.forward, given, {})
    return recorder.record(model, "", pattern, tensors, acts=acts).graph
