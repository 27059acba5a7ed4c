"""Dynamic quantization: weights beforehand, activations by the range they arrive with (chapter 6)."""

from dataclasses import replace

import numpy as np
from torch import nn

from . import capture
from .affine import QParams
from .dialects import dialect as find_dialect
from .errors import UnsupportedError
from .integer import check_overflow
from .module import QuantizedModule
from .program import Call, LinearDynamic, Program
from .static import layer_codes

STAYS_FLOAT = "dynamic quantization keeps activations in float"


def quantize_dynamic(
    model: nn.Module, *, per_channel: bool = True, reduce_range: bool = False, dialect: str = "onnx"
) -> QuantizedModule:
    """``model`` with int8 weights, whose activations are quantized when they arrive (DYN-NO-CALIBRATION). The model is not modified.

    A layer whose accumulators could overflow stays in float (STA-OVERFLOW). Options as in ``quantspec.prepare``. Raises as ``capture`` does.
    """
    choices, graph = find_dialect(dialect), capture.capture(model)
    weights: dict[int, tuple[np.ndarray, QParams]] = {}
    steps: list = []
    callables = dict(graph.callables)
    for node in graph.nodes:
        if isinstance(node, capture.Linear):
            if id(node.weight) not in weights:
                weights[id(node.weight)] = layer_codes(node, choices, per_channel)
            codes, grid = weights[id(node.weight)]
            try:
                # Before any input is known, the grid with the largest steps tells the worst case.
                check_overflow(QParams(1, 0, 0, 255), codes, grid, np.zeros(len(codes), np.int32))
            except UnsupportedError as error:
                calls, called = capture.float_calls(node, str(error))
                steps, callables = steps + calls, callables | called
            else:
                steps.append(LinearDynamic(node.name, node.x, node.layer, codes, node.bias, grid, reduce_range))
        else:
            call = node if isinstance(node, Call) else node.call
            steps.append(replace(call, reason=STAYS_FLOAT) if isinstance(node, (capture.Relu, capture.Flatten)) else call)
    return QuantizedModule(Program(choices.name, graph.inputs, graph.defaults, tuple(steps), graph.output), callables)
