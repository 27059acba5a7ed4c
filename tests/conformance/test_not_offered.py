"""What the kernels of others cannot do: their adapters say so, and ask them for nothing else."""

import numpy as np
import pytest

from quantspec.backends import protocol, registry
from quantspec.backends.worker import Worker
from quantspec.numerics.affine import QParams

pytestmark = pytest.mark.usefixtures("copied_workers")
HALF = np.float32(0.5)
BYTES, SIGNED = QParams(HALF, np.int32(3), 0, 255), QParams(HALF, np.int32(0), -128, 127)
NARROW = QParams(HALF, np.int32(0), 0, 127)
OF_CHANNELS = QParams(np.float32([0.5, 0.25]), np.int32([0, 0]), 0, 255, axis=1)
TURNED = QParams(HALF, np.int32(3), -128, 127)
ROWS, OTHERS = np.uint8([[1, 2], [3, 4]]), np.int8([[1, -2], [3, -4]])
IMAGES = np.zeros((0, 1, 3, 3), np.int8)
LITERT, ONNX = ("litert-builtin", "litert-xnnpack", "litert-reference"), ("onnx-reference", "onnxruntime")
POINTWISE = "torch-onednn-pointwise"
TYPES = "one type of codes, got signed and unsigned ones"
CALLS = {
    "codes from 0 to 127": (
        (*LITERT, *ONNX), "quantize", (np.float32([1, 2]), HALF, 0), {"qmin": 0, "qmax": 127},
    ),
    "one channel: the format cannot distinguish": (
        LITERT, "quantize", (np.float32([[1, 2]]), np.float32([0.5]), np.int32([3])),
        {"qmin": 0, "qmax": 255, "axis": 0},
    ),
    "zero_point: a graph stores it as uint8, got 300": (
        ONNX, "quantize", (np.float32([1, 2]), HALF, 300), {"qmin": 0, "qmax": 255},
    ),
    TYPES: ((*LITERT, "onnxruntime", "torch-fbgemm"), "add", (ROWS, BYTES, OTHERS, SIGNED, BYTES), {}),
    f"{TYPES} ": (
        (*LITERT, "onnxruntime", "torch-fbgemm"), "concat", ([(ROWS, BYTES), (OTHERS, SIGNED)], BYTES), {"axis": 0},
    ),
    "codes from 0 to 127: the kernel saturates": (
        ("onnxruntime", "onnx-reference", POINTWISE), "linear", (ROWS, BYTES, OTHERS, SIGNED, None, NARROW), {},
    ),
    "x: the kernel takes one scale, got one per channel": (
        ("onnxruntime", POINTWISE), "linear", (ROWS, OF_CHANNELS, OTHERS, SIGNED, None, BYTES), {},
    ),
    "zero point 0 only": (
        ("openvino", POINTWISE), "linear", (ROWS, BYTES, OTHERS, TURNED, None, BYTES), {},
    ),
    "no images: XNNPACK takes the size": (("litert-xnnpack",), "max_pool2d", (IMAGES, SIGNED), {"kernel": (2, 2)}),
}  # fmt: skip


@pytest.mark.parametrize(("message", "name"), [(text, name) for text, call in CALLS.items() for name in call[0]])
def test_what_a_kernel_has_no_way_for_is_not_offered(message, name):
    if reason := registry.why_not_installed(name):
        pytest.skip(reason)
    _, operation, arguments, options = CALLS[message]
    with Worker(name) as worker:
        if operation not in worker.operations:
            with pytest.raises(AttributeError, match="does not offer"):
                getattr(worker, operation)
            return
        with pytest.raises(protocol.NotOffered, match=message.strip()):
            getattr(worker, operation)(*arguments, **options)


@pytest.mark.parametrize("name", ["litert-reference", "onnxruntime", POINTWISE, "torch-fbgemm"])
def test_what_is_kept_in_a_story_gives_what_it_gave(name):
    """The same layer twice, and one with other weights between: a story answers as single calls do."""
    if reason := registry.why_not_installed(name):
        pytest.skip(reason)
    calls = [("linear", (ROWS, BYTES, weights, SIGNED, None, BYTES), {}) for weights in (OTHERS, -OTHERS, OTHERS)]
    with Worker(name) as worker:
        if worker.name.startswith("litert"):
            calls = [
                ("linear", (OTHERS, SIGNED, weights, SIGNED, None, SIGNED), {}) for weights in (OTHERS, -OTHERS, OTHERS)
            ]
        answers = worker.story(calls)
        for (operation, arguments, _), answer in zip(calls, answers, strict=True):
            assert answer.kind == "value", answer.message
            assert np.array_equal(answer.value, getattr(worker, operation)(*arguments))
