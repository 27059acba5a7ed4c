"""Which steps of a Program the kernels know, whatever the shapes."""

from torch import nn

from quantspec.ir.held import codes_shape
from quantspec.ir.program import (
    AdaptiveAvgPool,
    AvgPool,
    Call,
    Conv,
    Linear,
    LinearDynamic,
    LinearWeight,
    MaxPool,
    Move,
    Program,
    Ref,
)
from quantspec.ir.traverse import refs

from .lowering import argument, readers
from .packing import FloatLayer, is_depthwise
from .shapes import SHAPES


def compilable(program: Program) -> set[str]:
    """The names of the steps that the kernels know."""
    names = {step.name for step in program.steps if is_known(step)}
    outputs, read_by = set(refs(program.output)), readers(program.steps)
    layers = {step.name for step in program.steps if isinstance(step, FloatLayer)} & names - outputs
    for step in program.steps:
        if not isinstance(step, Call):
            continue
        if is_relu(step, program) and argument(step) in layers and len(read_by[argument(step)]) == 1:
            names.add(step.name)
        elif flattens(step) and argument(step) in program.inputs:
            if all(isinstance(reader, FloatLayer) for reader in read_by.get(step.name, ())):
                names.add(step.name)
    return names


def is_relu(step: Call, program: Program) -> bool:
    """Whether a call is a ReLU of floats."""
    if len(step.args) != 1 or not isinstance(step.args[0], Ref):
        return False
    if step.kind == "module":
        return type(program.callables.get((step.kind, step.target))) is nn.ReLU
    in_place = step.kwargs.get("inplace", False) is not False
    return step.target in ("torch.relu", "torch.nn.functional.relu", "relu") and not in_place


def is_known(step: object) -> bool:
    """Whether the kernels know a step by itself."""
    if isinstance(step, Conv):
        shape = codes_shape(step)
        in_planes = len(shape) <= 4 or not is_depthwise(step)
        return in_planes and 0 not in shape and all(1 in pair for pair in zip(step.stride, step.input_dilation))
    if isinstance(step, LinearWeight) and step.w_qparams.zero_point.any():
        return False
    if isinstance(step, (Linear, LinearDynamic, LinearWeight)):
        return 0 not in codes_shape(step)
    if isinstance(step, (MaxPool, AvgPool)):
        return len(step.kernel) <= 3
    if isinstance(step, AdaptiveAvgPool):
        return len(step.size) <= 3
    if isinstance(step, Move):
        return flattens(step)
    return type(step) in SHAPES


def flattens(step: Move | Call) -> bool:
    """Whether a step makes rows of images: ``flatten`` from axis 1 on."""
    given = dict(zip(("x", "start_dim", "end_dim"), step.args)) | step.kwargs
    of_value = step.target in ("torch.flatten", "flatten") and len(step.args) > 0 and isinstance(step.args[0], Ref)
    return of_value and given.get("start_dim", 0) == 1 and given.get("end_dim", -1) == -1
