"""Bytes that networks take when stored (chapter 8): weights, biases, scales and zero points, each array once."""

import math
from collections.abc import Iterable

import numpy as np
from torch import nn

from quantspec.ir import float_graph
from quantspec.ir.held import Held, codes_shape, held
from quantspec.ir.program import (
    AdaptiveAvgPool,
    AvgPool,
    Bilinear,
    Conv,
    Dequantize,
    Linear,
    LinearDynamic,
    LinearWeight,
    Mean,
    Move,
    Program,
    Recurrent,
    Relu,
    Step,
)
from quantspec.ir.traverse import code_fields, held_arrays

READ_GRIDS = ("x_qparams", "a_qparams", "b_qparams")
# Steps whose only arrays are the grid that they read.
SHARING = (Dequantize, Relu, AvgPool, AdaptiveAvgPool, Mean, Bilinear, Move)


def float_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a module; a shared tensor counts once."""
    tensors = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def step_arrays(step: Step) -> list[np.ndarray | Held]:
    """The arrays that a step needs stored. A grid belongs to the step that makes the value; its readers, and what only
    rearranges it, share it."""
    if isinstance(step, SHARING):
        return []
    return [array for path, array in held_arrays(step) if path.partition(".")[0] not in READ_GRIDS]


def arrays_bytes(arrays: Iterable[np.ndarray | Held]) -> int:
    """Bytes of arrays; the same array counts once."""
    return sum(array.nbytes for array in {id(array): array for array in arrays}.values())


def step_bytes(step: Step) -> int:
    """Bytes that one step needs stored."""
    return arrays_bytes(step_arrays(step))


def program_bytes(program: Program, float_parts: nn.Module) -> int:
    """Bytes of a whole quantized network: its steps' arrays, and the parameters and buffers of what stays in float
    (``float_parts``)."""
    return arrays_bytes(array for step in program.steps for array in step_arrays(step)) + float_bytes(float_parts)


def held_bytes(program: Program) -> int:
    """Bytes that codes take beyond their own where they are held as an engine reads them: padding to whole vectors."""
    found = {id(item): item for owner, name in code_fields(program) if isinstance(item := held(owner, name), Held)}
    return sum(item.resident - item.nbytes for item in found.values())


def macs(layer: float_graph.Node | Step, x_shape: tuple[int, ...], y_shape: tuple[int, ...]) -> int:
    """The multiply-accumulates of a layer, of a float graph or of a Program, for the shapes of an input and its output
    (SIZ-MACS); 0 for what is no layer."""
    if isinstance(layer, (float_graph.Linear, Linear, LinearDynamic, LinearWeight)):
        return math.prod(x_shape[:-1]) * math.prod(weight_shape(layer))
    if isinstance(layer, (float_graph.Recurrent, Recurrent)):
        weights = ((cell, name) for cell in layer.cells for name in ("input_weight", "state_weight"))
        return math.prod(x_shape[:-1]) * sum(math.prod(codes_shape(cell, name)) for cell, name in weights)
    if not isinstance(layer, (float_graph.Conv, Conv)):
        return 0
    weight = weight_shape(layer)
    positions = len(weight) - 2
    spread = any(d > 1 for d in layer.input_dilation) or (isinstance(layer, float_graph.Conv) and layer.transposed)
    shape = x_shape if spread else y_shape
    images = math.prod(shape[: len(shape) - positions - 1])
    return images * math.prod(shape[len(shape) - positions :]) * math.prod(weight)


def weight_shape(layer: float_graph.Node | Step) -> tuple[int, ...]:
    """The shape of a layer's weight, of a float graph or of a Program."""
    if isinstance(layer, (float_graph.Linear, float_graph.Conv)):
        return layer.weight.shape
    return codes_shape(layer)
