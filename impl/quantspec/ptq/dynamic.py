"""Dynamic quantization: weights beforehand, activations by the range they arrive with (chapter 6)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from quantspec.capture.tracer import capture
from quantspec.errors import UnsupportedError
from quantspec.ir import float_graph, float_run, program
from quantspec.ir.program import Call, LinearDynamic, LinearWeight, Program
from quantspec.module.module import QuantizedModule
from quantspec.numerics.affine import QParams
from quantspec.numerics.integer import check_overflow

from .conversion import Weights, embedding_step, recurrent_step
from .options import Options, checked, warn_if_nothing, without

STAYS_FLOAT = "dynamic quantization keeps activations in float"
# Codes up to 255 steps from their zero point.
COARSEST = QParams(np.ones((), np.float32), np.zeros((), np.int32), 0, 255)
ACTIVATIONS = ("per_tensor", "per_token", None)


def quantize_dynamic(
    model: nn.Module,
    *,
    per_channel: bool = True,
    reduce_range: bool | None = None,
    dialect: str = "onnx",
    bits: int = 8,
    activations: str | None = "per_tensor",
    exclude: str | Sequence[str] = (),
    engine: str = "auto",
) -> QuantizedModule:
    """``model`` with int8 weights, whose activations are quantized when they arrive (DYN-NO-CALIBRATION). The model is
    not modified.

    ``activations``: ``per_tensor`` (one range for the whole input of a layer), ``per_token`` (one for each row,
    DYN-ROWS), or None: only weights are quantized (DYN-WEIGHT-ONLY). ``bits``: of the weights. A layer whose
    accumulators could overflow stays in float (STA-OVERFLOW). Other options as in ``quantspec.prepare``. Raises as
    ``capture`` does, ValueError for other ``activations``.
    """
    if activations not in ACTIVATIONS:
        raise ValueError(f"activations: expected {', '.join(map(repr, ACTIVATIONS))}, got {activations!r}")
    options = checked(per_channel=per_channel, reduce_range=reduce_range, dialect=dialect, bits=bits, engine=engine)
    captured = without(capture(model), model, exclude)
    weights, callables = Weights(options), dict(captured.callables)
    steps: list[program.Step] = []
    for node in captured.nodes:
        if isinstance(node, Call):
            steps.append(node)
            continue
        converted = step(node, weights, options, activations)
        if isinstance(converted, str):
            calls, called = float_step(node, converted)
            steps += calls
            callables |= called
        else:
            steps.append(converted)
    network = Program(
        options.dialect.name, captured.inputs, captured.defaults, tuple(steps), captured.output, callables
    )
    warn_if_nothing(network, captured)
    return QuantizedModule(network, options.engine)


FloatNode = float_graph.Layer | float_graph.Operation


def step(node: FloatNode, weights: Weights, options: Options, activations: str | None) -> program.Step | str:
    """The step for a node, or why it stays in float."""
    if isinstance(node, float_graph.Linear):
        codes, grid = weights.codes(node.weight, node.layer)
        if activations is None:
            return LinearWeight(node.name, node.x, node.layer, codes, node.bias, grid)
        try:
            # Before any input is known, this grid tells the worst case.
            check_overflow(COARSEST, codes, grid, np.zeros(len(codes), np.int32))
        except UnsupportedError as error:
            return str(error)
        layer = node.name, node.x, node.layer, codes, node.bias, grid
        return LinearDynamic(*layer, options.reduce_range, rows=activations == "per_token")
    if isinstance(node, float_graph.Conv):
        return "a convolution, which dynamic quantization leaves in float"
    if isinstance(node, float_graph.Embedding):
        return embedding_step(node, options, node.x, lambda name: name)
    if isinstance(node, float_graph.Recurrent) and activations is not None:
        return recurrent_step(node, weights, options, node.x, lambda name: name)
    if isinstance(node, (float_graph.Shape, float_graph.Move)):
        return replace(node.call, reason="")
    return node.call.reason if isinstance(node, float_graph.BatchNorm) else STAYS_FLOAT


def float_step(node: FloatNode, reason: str) -> tuple[list[Call], dict[tuple[str, str], Any]]:
    """A node in float, as calls, and what they call beside what the graph has."""
    if isinstance(node, float_graph.Layer):
        return float_run.float_calls(node, reason)
    return [replace(node.call, reason=reason)], {}
