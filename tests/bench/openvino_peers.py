"""OpenVINO's ways to run a network: in float32, in bfloat16 where it takes that by itself, and in NNCF's int8."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

try:
    import openvino
except ImportError:
    openvino = None
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf
except ImportError:
    nncf = None

FLOAT32, OWN_CHOICE = "f32", ""


def quantized(source: Path, batches: Iterable[torch.Tensor], transformer: bool, target: Path) -> Path:
    """The network of a file of ONNX with NNCF's static codes, as a file of OpenVINO's."""
    data = [batch.numpy() for batch in batches]
    settings = {"subset_size": len(data), "model_type": nncf.ModelType.TRANSFORMER if transformer else None}
    openvino.save_model(nncf.quantize(openvino.Core().read_model(source), nncf.Dataset(data), **settings), target)
    return target


def compressed(source: Path, target: Path) -> Path:
    """The network of a file of ONNX with codes of weights, whose inputs OpenVINO quantizes while it runs."""
    mode = nncf.CompressWeightsMode.INT8_SYM
    openvino.save_model(nncf.compress_weights(openvino.Core().read_model(source), mode=mode), target)
    return target


def attends(model: nn.Module) -> bool:
    """Whether a network is a transformer."""
    return any(isinstance(module, nn.MultiheadAttention) for module in model.modules())


def compiled(path: Path, shape: Iterable[int], threads: int, precision: str) -> "openvino.CompiledModel":
    """A file's network for inputs of one shape; ``precision``: of what is not int8, OWN_CHOICE to leave it to it."""
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({0: list(shape)})
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return core.compile_model(model, "CPU", settings)


def chooses_bfloat16(network: "openvino.CompiledModel") -> bool:
    """Whether floats of a network whose precision was left to OpenVINO are bfloat16 inside."""
    return network.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.bf16


def call(network: "openvino.CompiledModel", batch: torch.Tensor) -> Callable[[], object]:
    """One call of a network, which has run once."""
    request, feed = network.create_infer_request(), {0: batch.numpy()}
    request.infer(feed, share_inputs=True)
    return lambda: request.infer(feed, share_inputs=True)
