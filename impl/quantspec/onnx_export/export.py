"""A quantized network as an ONNX model in QDQ form, for ONNX Runtime and whatever else reads it.

ONNX Runtime with its default optimisation gives the codes that engine ``reference`` gives in dialect ``onnx``, given
the same floats where operations in float stand (STA-RUNTIME): those have the last bits of the library that computes
them. On x86 CPUs without VNNI its integer kernels saturate in between (DIA-ACCUMULATE, `pairs`) unless the session
option ``session.x64quantprecision`` is 1.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from quantspec.errors import UnsupportedError, near_names
from quantspec.extras import needed
from quantspec.ir.float_run import FloatLayer, bind
from quantspec.ir.program import (
    Attention,
    Call,
    Conv,
    Embedding,
    Linear,
    LinearDynamic,
    LinearWeight,
    Move,
    Program,
    Quantize,
    Recurrent,
    Step,
)
from quantspec.ir.traverse import reads, refs
from quantspec.module.islands import QuantizedModel
from quantspec.module.module import QuantizedModule
from quantspec.storage.file import write_whole

if TYPE_CHECKING:
    import onnx

    from .builder import Graph

OPSET, IR_VERSION = 21, 10
PURPOSE = "the export to ONNX"
# For each input its number of axes and whether it holds integers; None for those that have a default and are left out.
Axes = dict[str, tuple[int, bool] | None]


@near_names
def export_onnx(
    q: QuantizedModule | QuantizedModel, path: str | os.PathLike[str] | None = None, *, example: Any = None
) -> "onnx.ModelProto":
    """Exports a quantized network as an ONNX model of opset 21.

    Batch and image sizes stay open. Inputs keep the names of the network's inputs; outputs are named ``output``, or
    ``output_0``, ``output_1`` and so on.

    Args:
        q: the quantized network.
        path: the file to write. None: no file is written.
        example: a batch, from which the number of axes of each input is taken. Without it, that follows from the layers
            which read the input; linear layers are then assumed to read [rows, features].

    Returns:
        The ONNX model.

    Raises:
        TypeError, ValueError: for an example that the network does not take.
        UnsupportedError: for a step without an ONNX form; the message names it, and nothing is written.
        MissingExtraError: when the extra ``onnx`` is not installed.
    """
    if not isinstance(q, (QuantizedModule, QuantizedModel)):
        raise TypeError(f"q: expected a network quantized by quantspec, got {type(q).__name__}")
    network = q.program  # which a model of several parts refuses, whatever is installed
    onnx = needed("onnx", "onnx", PURPOSE)
    given = None if example is None else bind(network.inputs, network.defaults, example)
    if given is not None:  # which has to be a batch that the network takes
        runs = q if isinstance(q, QuantizedModule) else QuantizedModule(network)
        runs.compiled(given)
    model = build(network, input_axes(network, given))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        # Such as operators that take no integers; the text names the node, and so the step.
        raise UnsupportedError(f"the network cannot be exported to ONNX: {error}") from error
    if path is not None:
        write_whole(path, model.SerializeToString())
    return model


def input_axes(program: Program, given: dict[str, Any] | None = None) -> Axes:
    """The axes of the inputs: those of a batch by name (``bind``), or those that the first layers ask for."""
    if given is None:
        return {name: None if name in program.defaults else axes_read(program, name) for name in program.inputs}
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    # Bytes are taken as numbers that floats are made of, which images are; what names entries of a table is int64.
    floats = {name: tensor.is_floating_point() or tensor.dtype == torch.uint8 for name, tensor in tensors.items()}
    axes: Axes = {name: (tensor.ndim, not floats[name]) for name, tensor in tensors.items()}
    return {name: axes.get(name) for name in program.inputs}


def axes_read(program: Program, name: str) -> tuple[int, bool]:
    """The axes of an input by the first layer that reads it, directly or quantized."""
    same = {name}
    for step in program.steps:
        if not same.intersection(reads(step)):
            continue
        if isinstance(step, (Linear, LinearDynamic, LinearWeight)):
            return 2, False
        if isinstance(step, Conv):
            return step.weight.ndim, False
        if isinstance(step, Embedding):
            return 2, True
        if isinstance(step, Call):
            layer = program.callables.get((step.kind, step.target))
            if isinstance(layer, FloatLayer):
                return layer.weight.ndim, False
        if isinstance(step, Quantize):
            same.add(step.name)
    raise UnsupportedError(f"input {name!r}: its number of axes is unknown; pass a batch as example=")


def build(program: Program, axes: Axes, shown: Sequence[str] = ()) -> "onnx.ModelProto":
    """The model. ``shown``: steps whose codes are outputs too.

    Raises UnsupportedError naming the step that cannot be exported to ONNX.
    """
    onnx = needed("onnx", "onnx", PURPOSE)
    helper, TensorProto = onnx.helper, onnx.TensorProto
    from .builder import Graph, Tensor, tensor_of

    g, values, inputs = Graph(), dict(program.defaults), []
    codes: dict[str, int] = {}  # the types of inputs and of constants; other tensors are floats, or codes
    for name, present in axes.items():
        if present is not None:
            rank, integers = present
            # An axis of features, or of channels, has the length that its reader asks for; the runtime says so itself.
            values[name] = Tensor(name, tuple((name, axis) for axis in range(rank)))
            dims = [f"{name}_{axis}" if axis else "batch" for axis in range(rank)]
            codes[name] = TensorProto.INT64 if integers else TensorProto.FLOAT
            inputs.append(helper.make_tensor_value_info(name, codes[name], dims))
            g.names.add(name)
    for step in program.steps:
        g.step = step.name
        try:
            values[step.name] = value_of(g, step, values, program)
        except UnsupportedError as error:
            raise UnsupportedError(f"step {step.name!r} cannot be exported to ONNX: {error}") from error
    g.step, outputs = "", []
    given = [value for name in refs(program.output) for value in several(values[name])]
    ends = {g.fresh(f"output_{index}" if len(given) > 1 else "output"): value for index, value in enumerate(given)}
    for out, value in (ends | {name: values[name] for name in shown}).items():
        if isinstance(value, torch.Tensor):  # a constant of the model
            kind = helper.np_dtype_to_tensor_dtype(value.detach().numpy().dtype)
            value = tensor_of(g, value)
            codes[value.name] = kind
        if isinstance(value, Tensor):
            code = codes.get(value.name, TensorProto.FLOAT if value.grid is None else TensorProto.UINT8)
            open_dims = [d if isinstance(d, int) else None for d in value.shape]
            outputs.append(helper.make_tensor_value_info(out, code, open_dims))
            g.nodes.append(helper.make_node("Identity", [value.name], [out], name=f"{out}:Identity"))
    opsets = [helper.make_opsetid("", OPSET)]
    graph = g.proto(inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="quantspec")


def several(value: Any) -> list[Any]:
    """A value's own values, where it is a tuple, such as the state of an LSTM."""
    return [inner for item in value for inner in several(item)] if isinstance(value, (tuple, list)) else [value]


def value_of(g: "Graph", step: Step, values: dict[str, Any], program: Program) -> Any:
    """What a step gives: a tensor of the graph, a length, a constant, or a tuple of these."""
    from . import attention, codes, float_ops, rearrange, recurrent
    from .builder import tensor_of

    if isinstance(step, Attention):
        return attention.attention(g, step, values)
    if isinstance(step, Call):
        return float_ops.call(g, step, values, program.callables)
    if isinstance(step, Move):
        return rearrange.move(g, step, values)
    if isinstance(step, Recurrent):
        return recurrent.recurrent(g, step, values)
    # What a step reads may be a constant of the model, such as a table of positions.
    constants = {n: values[n] for n in reads(step) if isinstance(values[n], torch.Tensor)}
    given = {name: tensor_of(g, value) for name, value in constants.items()}
    return codes.STEPS[type(step)](g, step, values | given)
