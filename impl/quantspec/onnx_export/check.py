"""Codes of ONNX Runtime compared with those of engine ``reference`` in dialect ``onnx`` (STA-RUNTIME)."""

import platform
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from quantspec.engines.reference import Reference
from quantspec.extras import needed
from quantspec.ir.float_run import bind
from quantspec.ir.program import Call, Dequantize, Program, Recurrent, Ref
from quantspec.ir.traverse import reads, refs
from quantspec.module.module import QuantizedModule

from .export import build, input_axes, several

PURPOSE = "comparing with ONNX Runtime"


def compare_codes(
    q: QuantizedModule, batch: Any, *, steps: bool = False, same_floats: bool = False
) -> tuple[int, int]:
    """Compares ONNX Runtime with the engine ``reference`` in dialect ``onnx`` on one batch.

    ONNX Runtime uses its default optimization and exact accumulators. Dequantized outputs are compared as codes, other
    outputs by their bits.

    Args:
        q: the quantized network.
        batch: a batch in the form that ``quantize`` takes.
        steps: whether the output of every step that gives codes is compared, too.
        same_floats: whether ONNX Runtime gets the results of our float operations as inputs; what these operations
            read is then compared, too (STA-RUNTIME).

    Returns:
        The number of values compared, and how many of them differ.
    """
    program = q.program
    if same_floats:
        program, batch = between_floats(program, batch)
    found = differences(program, batch, steps=steps)
    return sum(count for count, _ in found.values()), sum(differing for _, differing in found.values())


def between_floats(program: Program, batch: Any) -> tuple[Program, dict[str, Any]]:
    """The network without its operations in float, and a batch for it.

    What those operations give are inputs, what they read is output.
    """
    program = replace(program, dialect="onnx")
    values: dict[str, Any] = {}
    Reference(program)(batch, lambda step, value: values.setdefault(step.name, value))

    def real(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    # An operation may give several tensors at once, which others take out of the tuple.
    removed = [
        step
        for step in program.steps
        if isinstance(step, Call | Recurrent) and any(map(real, several(values[step.name])))
    ]
    steps = tuple(step for step in program.steps if step not in removed)
    read = [name for step in removed for name in reads(step)] + refs(program.output)
    remaining = {step.name for step in steps}
    output = tuple(Ref(name) for name in dict.fromkeys(read) if name in remaining and real(values[name]))
    given = {step.name: values[step.name] for step in removed if real(values[step.name])}
    rest = replace(program, inputs=(*program.inputs, *given), steps=steps, output=output)
    return rest, bind(program.inputs, program.defaults, batch) | given


def differences(program: Program, batch: Any, *, steps: bool = False) -> dict[str, tuple[int, int]]:
    """``compare_codes`` by output, and with ``steps`` by step in the order of the network."""
    runtime = needed("onnxruntime", "onnx", PURPOSE)
    program = replace(program, dialect="onnx")
    coded = {step.name for step in program.steps if steps and not isinstance(step, (Call, Dequantize, Recurrent))}
    expected: dict[str, np.ndarray] = {}

    def see(step: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and step.name in coded:
            expected[step.name] = value

    output = Reference(program)(batch, see)
    given = bind(program.inputs, program.defaults, batch)
    tensors = [value.numpy() for value in leaves(program.output, output) if isinstance(value, torch.Tensor)]
    model = build(program, input_axes(program, given), tuple(expected))
    options = exact_options()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {info.name: given[info.name].detach().numpy() for info in session.get_inputs()}
    results = dict(zip([info.name for info in session.get_outputs()], session.run(None, feeds)))
    found = {name: differing(expected[name], results.pop(name)) for name in expected}
    outputs = zip(tensors, results.items(), strict=True)
    return found | {name: differing(ours, theirs) for ours, (name, theirs) in outputs}


def exact_options() -> Any:
    """onnxruntime.SessionOptions with which sums of products do not saturate (DIA-ACCUMULATE), whatever the CPU."""
    options = needed("onnxruntime", "onnx", PURPOSE).SessionOptions()
    if saturates():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def saturates() -> bool:
    """Whether this is an x86 CPU without VNNI, on which ONNX Runtime's kernels saturate in between by default."""
    from llvmlite import binding

    features = {name for name, present in binding.get_host_cpu_features().items() if present}
    return platform.machine() in ("x86_64", "AMD64") and not {"avx512vnni", "avxvnni"} & features


def leaves(tree: Any, values: Any) -> list[Any]:
    """What stands in ``values`` where ``tree`` has its ``Ref``s, in order."""
    if isinstance(tree, Ref):
        return several(values)
    if isinstance(tree, dict):
        return [leaf for key, item in tree.items() for leaf in leaves(item, values[key])]
    if isinstance(tree, (tuple, list)):
        return [leaf for item, value in zip(tree, values) for leaf in leaves(item, value)]
    return []


def differing(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """(elements, how many differ). Raises ValueError for different shapes."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ValueError(f"expected {ours.dtype}{list(ours.shape)}, got {theirs.dtype}{list(theirs.shape)}")
    return ours.size, int(np.count_nonzero(ours != theirs))
