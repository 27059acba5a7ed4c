"""A quantized network as an ONNX model in QDQ form, for ONNX Runtime and whoever else reads it.

ONNX Runtime with its default optimisation gives the codes that engine ``reference`` gives in dialect ``onnx``, given the same floats where operations in float
stand (STA-RUNTIME): those have the last bits of whoever computes them. On x86 CPUs without VNNI its integer kernels saturate in between (DIA-ACCUMULATE, `pairs`)
unless the session option ``session.x64quantprecision`` is 1.
"""

import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from quantspec.engines.reference import Reference
from quantspec.errors import UnsupportedError
from quantspec.ir import rearrange
from quantspec.ir.float_run import FloatLayer, bind
from quantspec.ir.program import Call, Conv, Dequantize, Embedding, Linear, LinearDynamic, LinearWeight, Move, Program, Quantize, Recurrent, Ref
from quantspec.ir.traverse import reads, refs, replace_refs
from quantspec.module.module import QuantizedModule
from quantspec.storage.file import write_whole

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 21, 10


def needed(name: str) -> Any:
    """A package of the extra ``onnx``. Raises ImportError saying how to have it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed; pip install 'quantspec[onnx]'") from error


def export_onnx(q: QuantizedModule, path: str | os.PathLike | None = None, *, example: Any = None) -> "onnx.ModelProto":
    """The network as an ONNX model of opset 21, written to ``path`` where one is given. Batch and image sizes stay open.

    Inputs have the names of the network's, outputs are ``output``, or ``output_0`` and so on, in order. ``example``: a batch, which tells how many axes each
    input has; without it that is told by the layers that read them, and a linear layer is taken to read [rows, features].
    Raises UnsupportedError naming a step that has no ONNX operator, before anything is written; ImportError without the extra ``onnx``.
    """
    onnx = needed("onnx")
    model = build(q.program, ranks(q, example))
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        write_whole(path, model.SerializeToString())
    return model


def ranks(q: QuantizedModule, example: Any = None) -> dict[str, tuple[int, bool] | None]:
    """For each input its number of axes and whether it holds integers; None for those that have a default and are left out."""
    program = q.program
    if example is not None:
        given = bind(program.inputs, program.defaults, example)
        tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
        return {name: (tensors[name].ndim, not tensors[name].is_floating_point()) if name in tensors else None for name in program.inputs}
    return {name: None if name in program.defaults else reader_rank(q, name) for name in program.inputs}


def reader_rank(q: QuantizedModule, name: str) -> tuple[int, bool]:
    """The axes of an input by the first layer that reads it, directly or behind what leaves shapes as they are."""
    same = {name}
    for step in q.program.steps:
        if not same.intersection(reads(step)):
            continue
        if isinstance(step, (Linear, LinearDynamic, LinearWeight)):
            return 2, False
        if isinstance(step, Conv):
            return step.weight.ndim, False
        if isinstance(step, Embedding):
            return 2, True
        if isinstance(step, Call) and isinstance(layer := q.callables.get((step.kind, step.target)), FloatLayer):
            return layer.weight.ndim, False
        if isinstance(step, Quantize):
            same.add(step.name)
    raise UnsupportedError(f"input {name!r}: how many axes it has is not known; export with an example batch")


def build(program: Program, axes: dict[str, tuple[int, bool] | None], shown: Sequence[str] = ()) -> "onnx.ModelProto":
    """The model. ``shown``: steps whose codes are outputs too. Raises UnsupportedError naming the step that it is about."""
    helper, TensorProto = needed("onnx").helper, needed("onnx").TensorProto
    from . import codes, float_ops, rearrange
    from .builder import Graph, Tensor

    g, values, inputs = Graph(), dict(program.defaults), []
    for name, known in axes.items():
        if known is not None:
            rank, integers = known
            dims = [f"{name}_{axis}" if axis else "batch" for axis in range(rank)]
            # An axis of features, or of channels, has the length that its reader asks for; the runtime says so itself.
            values[name] = Tensor(name, tuple((name, axis) for axis in range(rank)))
            inputs.append(helper.make_tensor_value_info(name, TensorProto.INT64 if integers else TensorProto.FLOAT, dims))
            g.names.add(name)
    for step in program.steps:
        g.step = step.name
        try:
            if isinstance(step, Call):
                values[step.name] = float_ops.call(g, step, values, program.callables)
            elif isinstance(step, Move):
                values[step.name] = moved(g, step, values, rearrange.MOVES)
            elif isinstance(step, Recurrent):
                raise UnsupportedError(f"{step.kind.upper()}, whose steps ONNX has no operators for")
            else:
                values[step.name] = codes.STEPS[type(step)](g, step, values)
        except UnsupportedError as error:
            raise UnsupportedError(f"step {step.name!r} has no ONNX form: {error}") from error
    g.step, outputs = "", []
    names = refs(program.output)
    made = {g.fresh(f"output_{index}" if len(names) > 1 else "output"): name for index, name in enumerate(names)}
    for out, name in (made | {name: name for name in shown}).items():
        value = values[name]
        if isinstance(value, Tensor):
            code = TensorProto.FLOAT if value.grid is None else TensorProto.UINT8
            open_dims = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
            outputs.append(helper.make_tensor_value_info(out, code, open_dims))
            g.nodes.append(helper.make_node("Identity", [value.name], [out], name=f"{out}:Identity"))
    graph = g.proto(inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="quantspec")


def moved(g: Any, step: Move, values: dict[str, Any], known: dict) -> Any:
    """A rearrangement of codes."""
    target = step.target.rpartition(".")[2]
    if target not in known or not rearrange.known(step.kind, step.target):
        raise UnsupportedError(step.target)
    args, kwargs = replace_refs(step.args, values.__getitem__), replace_refs(step.kwargs, values.__getitem__)
    return known[target](g, *args, **kwargs)


def compare_codes(q: QuantizedModule, batch: Any, *, steps: bool = False, same_floats: bool = False) -> tuple[int, int]:
    """(outputs compared, differences) of ONNX Runtime, with default optimisation and exact accumulators, and engine ``reference`` in dialect ``onnx``, for one batch.

    An output that was dequantized is compared as codes, others by their bits. ``steps``: every step that gives codes is compared too. ``same_floats``: ONNX
    Runtime is given what our operations in float give, and all that they read is compared too (STA-RUNTIME).
    """
    if same_floats:
        q, batch = between_floats(q, batch)
    found = differences(q, batch, steps=steps)
    return sum(total for total, _ in found.values()), sum(count for _, count in found.values())


def between_floats(q: QuantizedModule, batch: Any) -> tuple[QuantizedModule, dict[str, Any]]:
    """The network without its operations in float, and a batch for it: what those give are inputs, what they read is output."""
    program = replace(q.program, dialect="onnx")
    values: dict[str, Any] = {}
    Reference(program)(batch, lambda step, value: values.setdefault(step.name, value))

    def real(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    # An operation may give several tensors at once, which others take out of the tuple.
    removed = [step for step in program.steps if isinstance(step, Call) and any(map(real, several(values[step.name])))]
    steps = tuple(step for step in program.steps if step not in removed)
    read = [name for step in removed for name in reads(step)] + refs(program.output)
    made = {step.name for step in steps}
    output = tuple(Ref(name) for name in dict.fromkeys(read) if name in made and real(values[name]))
    given = {step.name: values[step.name] for step in removed if real(values[step.name])}
    rest = replace(program, inputs=(*program.inputs, *given), steps=steps, output=output)
    given = bind(program.inputs, program.defaults, batch) | given
    return QuantizedModule(rest, "reference"), given


def several(value: Any) -> tuple | list:
    """A value's own values, where it is a tuple."""
    return value if isinstance(value, (tuple, list)) else (value,)


def differences(q: QuantizedModule, batch: Any, *, steps: bool = False) -> dict[str, tuple[int, int]]:
    """``compare_codes`` by output, and with ``steps`` by step in the order of the network."""
    runtime = needed("onnxruntime")
    program = replace(q.program, dialect="onnx")
    coded = [step.name for step in program.steps if not isinstance(step, (Call, Dequantize, Recurrent))] if steps else []
    expected: dict[str, Any] = {}

    def see(step: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and step.name in coded:
            expected[step.name] = value

    output = Reference(program)(batch, see)
    given = bind(program.inputs, program.defaults, batch)
    flat: list[torch.Tensor] = []
    gather(program.output, output, flat)
    model = build(program, ranks(q, batch), tuple(expected))
    options = runtime.SessionOptions()
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = torch.get_num_threads(), 1, 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {info.name: given[info.name].detach().numpy() for info in session.get_inputs()}
    results = dict(zip([info.name for info in session.get_outputs()], session.run(None, feeds)))
    found = {name: differing(expected[name], results.pop(name)) for name in expected}
    tensors = [tensor.numpy() for tensor in flat if isinstance(tensor, torch.Tensor)]
    return found | {name: differing(one, other) for one, (name, other) in zip(tensors, results.items(), strict=True)}


def saturates() -> bool:
    """Whether this is an x86 CPU without VNNI, on which ONNX Runtime's kernels saturate in between unless they are told not to."""
    from llvmlite import binding

    return platform.machine() in ("x86_64", "AMD64") and not {"avx512vnni", "avxvnni"} & {name for name, has in binding.get_host_cpu_features().items() if has}


def gather(tree: Any, made: Any, flat: list[Any]) -> None:
    """What stands in ``made`` where ``tree`` has its ``Ref``s, in order."""
    if isinstance(tree, Ref):
        flat.append(made)
    elif isinstance(tree, (tuple, list)):
        for one, other in zip(tree, made):
            gather(one, other, flat)
    elif isinstance(tree, dict):
        for key, one in tree.items():
            gather(one, made[key], flat)


def differing(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """(elements, how many differ). Raises ValueError for different shapes."""
    if one.shape != other.shape or one.dtype != other.dtype:
        raise ValueError(f"expected {one.dtype}{list(one.shape)}, got {other.dtype}{list(other.shape)}")
    return one.size, int(np.count_nonzero(one != other))
