"""What becomes of expressions of a model's inputs ``x`` and ``y`` and of its parameters, as text."""

import textwrap

import torch
from torch import nn
from torch.nn import functional as F

from graph_text import node_text, numbered
from quantspec.capture import attention, tracer
from quantspec.ir.program import Call

SHAPES = {
    "w": (4, 4), "wide": (3, 4), "thin": (4, 1), "outs": (1, 4), "b": (4,), "row": (1, 4), "two": (2,),
    "k": (1, 4, 1, 1), "c": (4, 1, 1), "t": (1, 4, 1), "filters": (4, 1, 1, 1), "heads": (4, 2, 2), "each": (2, 4, 3),
    "pairs": (2, 2, 4, 3), "many": (65, 4, 3), "kernel": (4, 2, 3, 2), "kernel1": (4, 2, 3), "kernel3": (4, 2, 1, 1, 1),
}  # fmt: skip
NAMES = {"F": F, "attention": attention, "torch": torch}


class Holding(nn.Module):
    """An expression of the inputs and of what the model holds."""

    def __init__(self, expression):
        super().__init__()
        self.expression = eval(f"lambda m, x, y: {expression}", NAMES)
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))
        self.doubled = nn.Parameter(torch.empty(4, 4, dtype=torch.double))
        self.register_buffer("buf", torch.empty(1, 4, 1, 1))
        self.register_buffer("vec", torch.empty(4))
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.act = nn.Tanh()
        numbered(self)
        self.register_buffer("zero", torch.zeros(1, 4, 1, 1))

    def forward(self, x, y=None):
        return self.expression(self, x, y)


def become(expression: str) -> str:
    """The nodes of an expression with their fields, calls by what they call, and the layers with their calls."""
    graph = tracer.trace(Holding(expression)).graph
    nodes = [f"{node.target}{' held' * (node.kind == 'attribute')}" if isinstance(node, Call)
             else node_text(node).partition(": ")[2].partition(" | ")[0] for node in graph.nodes]  # fmt: skip
    said = "; ".join([*nodes, *([f"calls {graph.calls}"] if graph.calls else [])])
    given = {"width": 116, "initial_indent": "    ", "subsequent_indent": "    "}
    return textwrap.fill(said, **given, break_long_words=False, break_on_hyphens=False)


def all_become(text: str) -> str:
    """For a text of expressions, each with what it becomes behind it, the same by what they become."""
    expressions = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
    return "\n".join(f"{each}\n{become(each)}" for each in expressions)
