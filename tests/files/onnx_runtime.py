"""Exported networks in ONNX Runtime: run, and compared with engine ``reference``."""

import pytest

from quantspec.ir.program import Call
from quantspec.onnx_export import check

# Raised here, the skip is that of the test file that imports this one.
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def compared(q, batch, least=1):
    """All codes and outputs equal; gives how many were compared."""
    found = check.differences(q.program, batch, steps=True)
    # Of floats that a runtime computes with other last bits, only what comes before is equal.
    if isinstance(q.program.steps[-1], Call):
        found.pop("output")
        least = 0
    assert {name: count for name, (_, count) in found.items() if count} == {}
    outputs, different = check.compare_codes(q, batch) if least else (0, 0)
    assert different == 0 and outputs >= least
    return outputs


def run(model, **feeds):
    source = model if isinstance(model, str) else model.SerializeToString()
    options = check.exact_options()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # as starting others takes longer than such graphs
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    results = session.run(None, {name: value.numpy() for name, value in feeds.items()})
    return dict(zip([output.name for output in session.get_outputs()], results))
