"""The reference engine: every step as its chapter says, in any dialect. Slow, and what the others must equal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..capture import bind, call_float
from ..dialects import dialect
from ..integer import relu
from ..program import Call, Dequantize, Flatten, Linear, LinearDynamic, Program, Quantize, Relu, Step, replace_refs


class Reference:
    """A Program ready to run: ``engine(program, callables)(batch)``."""

    def __init__(self, program: Program, callables: dict[tuple[str, str], Any]):
        self.program, self.callables = program, callables

    def __call__(self, batch: Any, seen: Callable[[Step, Any], None] = lambda step, value: None) -> Any:
        """The output for a batch; ``seen(step, value)`` is told what each step gives: codes as an array, floats as a tensor.

        Raises ValueError and TypeError for inputs that do not fit, naming the layer or the argument.
        """
        program = self.program
        values = bind(program.inputs, program.defaults, batch)
        with torch.no_grad():
            for step in program.steps:
                values[step.name] = self.step(step, values)
                seen(step, values[step.name])
        return replace_refs(program.output, values.__getitem__)

    def step(self, step: Step, values: dict[str, Any]) -> Any:
        choices = dialect(self.program.dialect)
        if isinstance(step, Call):
            return call_float(step, self.callables, values.__getitem__)
        x = values[step.x]
        if isinstance(step, Quantize):
            grid = step.qparams
            return choices.quantize(array(x, step.x), grid.scale, grid.zero_point, qmin=grid.qmin, qmax=grid.qmax)
        if isinstance(step, Dequantize):
            return torch.from_numpy(np.asarray(step.qparams.dequantize(x)))
        if isinstance(step, Relu):
            return relu(x, step.qparams.zero_point)
        if isinstance(step, Flatten):
            return np.ascontiguousarray(torch.from_numpy(x).flatten(step.start, step.end).numpy())
        x = array(x, step.x) if isinstance(step, LinearDynamic) else x
        outputs, inputs = step.weight.shape
        if x.ndim < 1 or x.shape[-1] != inputs:
            raise ValueError(f"layer {step.layer!r}: expected {inputs} input features, got shape {x.shape}")
        rows = x.reshape(int(np.prod(x.shape[:-1])), inputs)
        if isinstance(step, Linear):
            y = choices.linear(rows, step.x_qparams, step.weight, step.w_qparams, step.bias, step.y_qparams, relu=step.relu)
        else:
            y = choices.linear_dynamic(rows, step.weight, step.w_qparams, step.bias, reduce_range=step.reduce_range)
        y = y.reshape(*x.shape[:-1], outputs)
        return torch.from_numpy(y) if isinstance(step, LinearDynamic) else y


def array(x: Any, name: str) -> np.ndarray:
    """A float tensor as an array; TypeError naming it when it is no tensor on the CPU."""
    if not isinstance(x, torch.Tensor) or x.device.type != "cpu":
        what = f"a tensor on {x.device}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a tensor on the CPU, got {what}")
    return x.detach().numpy()
