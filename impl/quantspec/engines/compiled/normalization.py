"""Layer normalizations between segments, by torch as in the reference, but without what Python does on the way there:
once a product has passed its weights through the caches, that takes about as long as the arithmetic.
"""

from typing import Any

import torch
from torch import nn

from quantspec.engines.not_numbers import Values
from quantspec.engines.reference import run_step
from quantspec.ir.program import Call, Callables, Ref
from quantspec.ir.traverse import reads
from quantspec.numerics.dialects.dialect import Dialect


class LayerNorm:
    """A ``step`` that calls a torch.nn.LayerNorm with one value. ``__call__(values)`` gives what the reference does."""

    def __init__(self, step: Call, module: nn.LayerNorm, callables: Callables, choices: Dialect):
        (self.x,) = reads(step)
        self.step, self.name, self.module, self.callables, self.choices = step, step.name, module, callables, choices

    def __call__(self, values: Values) -> Any:
        x, module = values[self.x], self.module
        if values.masks or type(x) is not torch.Tensor or module._forward_hooks or module._forward_pre_hooks:
            return run_step(self.step, values, self.callables, self.choices)
        # A module looks for its parameters behind everything else, and ``F.layer_norm`` asks for cuDNN.
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        return torch.layer_norm(x, module.normalized_shape, weight, bias, module.eps, False)


def layer_norm(step: object, callables: Callables, choices: Dialect) -> LayerNorm | None:
    """A step of that kind; None for others."""
    if not isinstance(step, Call) or step.kind != "module" or step.kwargs or len(step.args) != 1:
        return None
    module = callables[step.kind, step.target]
    known = type(module) is nn.LayerNorm and isinstance(step.args[0], Ref)
    return LayerNorm(step, module, callables, choices) if known else None
