"""The reference engine: every step as its chapter says, in any dialect. Slow, and what the others must equal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from quantspec.ir import rearrange
from quantspec.ir.float_run import bind, call_float, check_fits
from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    AdaptiveAvgPool,
    Add,
    Attention,
    AvgPool,
    Bilinear,
    Call,
    Callables,
    Concat,
    Conv,
    Dequantize,
    Embedding,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Mean,
    Move,
    Mul,
    Program,
    Quantize,
    Recurrent,
    Relu,
    Step,
    Table,
)
from quantspec.ir.traverse import last_reads, refs, replace_refs
from quantspec.numerics import bilinear, integer, weight_only
from quantspec.numerics.affine import Float32, float32_array
from quantspec.numerics.dialects.dialect import Dialect
from quantspec.numerics.dialects.named import dialect
from quantspec.numerics.dialects.operations import adaptive_avg_pool, add, avg_pool, concat, mean, mul

from . import reference_attention, reference_dynamic, reference_embedding
from .not_numbers import Values
from .tensors import array

Value = np.ndarray | torch.Tensor
Seen = Callable[[Step, Any], None]


def ignore(step: Step, value: Any) -> None:
    """What the engine calls where nobody looks."""


class Reference:
    """A Program ready to run: ``engine(program)(batch)``."""

    name = "reference"
    input_name: str | None = None

    def __init__(self, program: Program):
        self.program = program
        self.dialect = dialect(program.dialect)
        self.last = last_reads(program.steps, refs(program.output))

    def __call__(self, batch: Any, seen: Seen = ignore) -> Any:
        """The output for a batch; calls ``seen(step, value)`` with what each step gives: codes as an array, floats as a
        tensor.

        Raises ValueError and TypeError for inputs that do not fit, naming the layer or the argument. Who looks at codes
        is told of no NaN, which is refused there.
        """
        program = self.program
        values = Values(bind(program.inputs, program.defaults, batch), refuse=seen is not ignore)
        with torch.no_grad():
            for step, done in zip(program.steps, self.last):
                values[step.name] = run_step(step, values, program.callables, self.dialect)
                seen(step, values[step.name])
                for name in done:
                    del values[name]
        return replace_refs(program.output, values.__getitem__)

    def single(self, x: Any) -> Any:
        """The output of a program with one input."""
        return self({self.program.inputs[0]: x})

    @property
    def engines(self) -> dict[str, str]:
        """By which engine each layer is run, by the name of its step."""
        return {step.name: self.name for step in self.program.layers}


def run_step(step: Step, values: Values, callables: Callables, choices: Dialect) -> Any:
    """What a step gives (STA-NAN)."""
    result = STEPS[type(step)](step, values, callables, choices)
    return values.spread(step, result) if values.masks else result


def call(step: Call, values: Values, callables: Callables, choices: Dialect) -> Any:
    # Only what reads shapes is given codes, which have them too.
    return call_float(step, callables, lambda name: rearrange.as_tensors(values[name]))


def attended(step: Attention, values: Values, callables: Callables, choices: Dialect) -> Any:
    result = reference_attention.attended(step, values.__getitem__)
    return call(step, values, callables, choices) if result is None else result


def floats_of(step: Quantize | LinearDynamic | LinearWeight, values: Values) -> Float32:
    """What a step reads. Raises TypeError naming it for what is no dense tensor of values that float32 holds."""
    return float32_array(array(values[step.x], step.x), step.x)


def quantize(step: Quantize, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    grid = step.qparams
    x = values.numbers(step.name, floats_of(step, values))
    return choices.quantize(x, grid.scale, grid.zero_point, qmin=grid.qmin, qmax=grid.qmax)


def dequantize(step: Dequantize, values: Values, callables: Callables, choices: Dialect) -> torch.Tensor:
    return torch.from_numpy(np.asarray(step.qparams.dequantize(values[step.x])))


def linear(step: Linear, values: Values, callables: Callables, choices: Dialect) -> Value:
    x = values[step.x]
    check_fits(step, x.shape)
    rows = x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
    shape = (*x.shape[:-1], codes_shape(step)[0])
    if step.y_qparams is None:
        accumulator = choices.accumulate(rows, step.x_qparams.zero_point, step.weight, step.w_qparams.zero_point)
        real = choices.real(accumulator, step.bias, step.x_qparams.scale, step.w_qparams.scale, relu=step.relu)
        return torch.from_numpy(real.reshape(shape))
    layer = rows, step.x_qparams, step.weight, step.w_qparams, step.bias, step.y_qparams
    return choices.linear(*layer, relu=step.relu).reshape(shape)


def conv(step: Conv, values: Values, callables: Callables, choices: Dialect) -> Value:
    x = values[step.x]
    check_fits(step, x.shape)
    alone = x.ndim == len(codes_shape(step)) - 1  # one image without a batch axis
    images = x[None] if alone else x
    if step.y_qparams is None:
        accumulator = choices.accumulate_conv(images, step.x_qparams, step.weight, step.w_qparams, **places(step))
        real = choices.real(accumulator, step.bias, step.x_qparams.scale, step.w_qparams.scale, relu=step.relu)
        result: Value = torch.from_numpy(np.ascontiguousarray(np.moveaxis(real, -1, 1)))
    else:
        layer = images, step.x_qparams, step.weight, step.w_qparams, step.bias, step.y_qparams
        try:
            result = choices.conv(*layer, **places(step), relu=step.relu)
        except ValueError as error:
            raise ValueError(f"layer {step.layer!r}: {error}") from error
    return result[0] if alone else result


def places(step: Conv) -> dict[str, Any]:
    """Where the windows of a convolution lie."""
    return {key: getattr(step, key) for key in ("stride", "padding", "dilation", "input_dilation", "groups")}


def table(step: Table, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    try:
        return integer.look_up(step.table, values[step.x])
    except ValueError as error:
        raise ValueError(f"{step.function} at {step.name!r}: {error}") from error


def relu(step: Relu, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    return integer.relu(values[step.x], step.qparams.zero_point)


def added(step: Add, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    a, b = np.broadcast_arrays(values[step.a], values[step.b])
    return add(choices, a, step.a_qparams, b, step.b_qparams, step.y_qparams, relu=step.relu)


def multiplied(step: Mul, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    a, b = np.broadcast_arrays(values[step.a], values[step.b])
    return mul(choices, a, step.a_qparams, b, step.b_qparams, step.y_qparams)


def joined(step: Concat, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    parts = [(values[x], grid) for x, grid in zip(step.xs, step.x_qparams)]
    return concat(choices, parts, step.y_qparams, axis=step.axis)


def max_pool(step: MaxPool, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    return integer.max_pool(values[step.x], step.kernel, step.stride, step.padding, step.dilation, step.ceil_mode)


def average_pool(step: AvgPool, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    places = step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad
    return avg_pool(choices, values[step.x], step.qparams, *places)


def adaptive(step: AdaptiveAvgPool, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    return adaptive_avg_pool(choices, values[step.x], step.qparams, step.size)


def averaged(step: Mean, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    return mean(choices, values[step.x], step.qparams, step.axes, keepdim=step.keepdim)


def interpolated(step: Bilinear, values: Values, callables: Callables, choices: Dialect) -> np.ndarray:
    try:
        return bilinear.interpolate(
            values[step.x], step.qparams, length_pair(step, values), step.factors, exact=step.exact,
            align_corners=step.align_corners,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"interpolation at {step.name!r}: {error}") from error


def length_pair(step: Bilinear, values: Values) -> tuple[int, int] | None:
    """The lengths that an interpolation is given; None where they follow from factors."""
    if step.like is None:
        return step.size
    height, width = values[step.like].shape[-2:]
    return height, width


def moved(step: Move, values: Values, callables: Callables, choices: Dialect) -> Any:
    return rearrange.apply(step, values.__getitem__)


def linear_dynamic(step: LinearDynamic, values: Values, callables: Callables, choices: Dialect) -> torch.Tensor:
    x = floats_of(step, values)
    check_fits(step, x.shape)
    rows = x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
    layer = step.weight, step.w_qparams, step.bias
    with reference_dynamic.range_of(step.layer):
        y = reference_dynamic.linear(choices, rows, *layer, reduce_range=step.reduce_range, rows=step.rows)
    return torch.from_numpy(y.reshape(*x.shape[:-1], codes_shape(step)[0]))


def linear_weight(step: LinearWeight, values: Values, callables: Callables, choices: Dialect) -> torch.Tensor:
    x = floats_of(step, values)
    check_fits(step, x.shape)
    y = weight_only.linear(x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1]), step.weight, step.w_qparams, step.bias)
    return torch.from_numpy(y.reshape(*x.shape[:-1], codes_shape(step)[0]))


def embedding(step: Embedding, values: Values, callables: Callables, choices: Dialect) -> torch.Tensor:
    return reference_embedding.embedding(step, values, reference_embedding.Codes())


def recurrent(step: Recurrent, values: Values, callables: Callables, choices: Dialect) -> Any:
    return reference_dynamic.recurrent(step, values[step.x], replace_refs(step.state, values.__getitem__), choices)


STEPS: dict[type, Callable[[Any, Values, Callables, Dialect], Any]] = {
    Attention: attended, Call: call, Quantize: quantize, Dequantize: dequantize, Linear: linear, Conv: conv,
    Table: table, Relu: relu, Add: added, Mul: multiplied, Concat: joined,
    MaxPool: max_pool, AvgPool: average_pool, AdaptiveAvgPool: adaptive, Mean: averaged, Bilinear: interpolated,
    Move: moved, LinearDynamic: linear_dynamic, LinearWeight: linear_weight, Embedding: embedding, Recurrent: recurrent,
}  # fmt: skip
