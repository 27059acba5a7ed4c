"""Which steps of a Program the kernels know, whatever the shapes."""

from collections.abc import Collection

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
    Mean,
    Move,
    Program,
    Ref,
)
from quantspec.ir.traverse import is_direct, refs

from .lowering import argument, flattens, is_sum, readers, turns
from .packing import FloatLayer, is_depthwise
from .shapes import SHAPES


def compilable(program: Program, refused: Collection[str] = ()) -> set[str]:
    """The names of the steps that the kernels know. ``refused``: those that cannot be packed.

    A ReLU of floats is known as a part of its layer alone, so that no other step may come between that is not compiled.
    """
    names = {step.name for step in program.steps if is_known(step)}.difference(refused)
    outputs, read_by = set(refs(program.output)), readers(program.steps)
    layers = {step.name for step in program.steps if isinstance(step, FloatLayer)} & names - outputs
    direct = {step.name for step in program.steps if isinstance(step, Linear) and is_direct(step)} & names
    run: set[str] = set()  # the steps before, since the last one that is not compiled
    for previous, step in zip(["", *(step.name for step in program.steps)], program.steps):
        if not isinstance(step, Call):
            pass
        elif is_relu(step, program):
            if argument(step) in layers and argument(step) in run and len(read_by[argument(step)]) == 1:
                names.add(step.name)
        elif is_sum(step):
            # What is added is there before the run, and has to be asked whether it fits.
            before = [name for name in refs(step.args) if name != previous]
            alone = previous in direct & run - outputs and len(read_by[previous]) == 1
            if alone and len(before) == 1 and before[0] not in run:
                names.add(step.name)
        elif flattens(step) and argument(step) in program.inputs:
            if all(isinstance(reader, FloatLayer) for reader in read_by.get(step.name, ())):
                names.add(step.name)
        if step.name in names and not is_sum(step):
            run.add(step.name)
        else:
            run.clear()
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
    if isinstance(step, Mean):
        return not {0, 1}.intersection(step.axes)
    if isinstance(step, Move):
        return flattens(step) or turns(step) is not None
    return type(step) in SHAPES
