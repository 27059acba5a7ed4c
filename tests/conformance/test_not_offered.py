"""What the kernels of others cannot do: their adapters say so, and ask them for nothing else."""

import functools

import numpy as np
import pytest

from quantspec.backends import registry
from quantspec.backends.outcome import outcome
from quantspec.backends.worker import Worker
from quantspec.numerics.affine import QParams

pytestmark = pytest.mark.usefixtures("copied_workers")
HALF = np.float32(0.5)
BYTES, SIGNED = QParams(HALF, np.int32(3), 0, 255), QParams(HALF, np.int32(0), -128, 127)
NARROW = QParams(HALF, np.int32(0), 0, 127)
OF_CHANNELS = QParams(np.float32([0.5, 0.25]), np.int32([0, 0]), 0, 255, axis=1)
TURNED, QUARTERS = (QParams(*of, -128, 127) for of in ((HALF, np.int32(3)), (np.float32(0.25), np.int32(0))))
ROWS, OTHERS = np.uint8([[1, 2], [3, 4]]), np.int8([[1, -2], [3, -4]])
BIAS = np.float32([1, 2])
IMAGES = np.arange(25, dtype=np.int8).reshape(1, 1, 5, 5)
NO_IMAGES, WINDOW = np.zeros((0, 1, 3, 3), np.int8), np.ones((1, 1, 2, 2), np.int8)
FLOATS = np.float32([1, 2])
LITERT, ONNX = ("litert-builtin", "litert-xnnpack", "litert-reference"), ("onnx-reference", "onnxruntime")
TORCH = "torch-x86", "torch-fbgemm", "torch-onednn", "torch-qnnpack"
POINTWISE = "torch-onednn-pointwise"
TYPES, AT_ENDS = "takes one type of codes, got signed and unsigned ones", "saturates at the ends of a byte only"
ONE_SCALE = "the kernel takes one scale, got one per channel"
TO_127, TO_255 = {"qmin": 0, "qmax": 127}, {"qmin": 0, "qmax": 255}
LINEAR = ROWS, BYTES, OTHERS, SIGNED, None
IMAGE = IMAGES, SIGNED
# What is said, by whom, of which call.
CALLS = [
    (f"codes from 0 to 127: QUANTIZE {AT_ENDS}", LITERT, "quantize", (FLOATS, HALF, 0), TO_127),
    (f"codes from 0 to 127: QuantizeLinear {AT_ENDS}", ONNX, "quantize", (FLOATS, HALF, 0), TO_127),
    (
        "codes from 0 to 127: quantized tensors saturate at the ends of a byte only",
        TORCH, "quantize", (FLOATS, HALF, 0), TO_127,
    ),
    (
        "one channel: the format cannot distinguish its scale from a scale per tensor",
        LITERT, "quantize", (np.float32([[1, 2]]), np.float32([0.5]), np.int32([3])), {**TO_255, "axis": 0},
    ),
    (
        "one channel: the format cannot distinguish its scale from a scale per tensor",
        LITERT, "dequantize", (ROWS[:1], np.float32([0.5]), np.int32([3])), {"axis": 0},
    ),
    ("zero_point: a graph stores it as uint8, got 300", ONNX, "quantize", (FLOATS, HALF, 300), TO_255),
    *(
        ("DynamicQuantizeLinear gives affine qparams for codes 0 to 255 only", ONNX, "qparams", (-HALF, HALF), options)
        for options in ({**TO_255, "symmetric": True}, {**TO_127, "symmetric": False})
    ),
    *(
        (f"the {what} {TYPES}", names, *call)
        for what, names in (("operator", LITERT), ("kernel", ("onnxruntime", *TORCH)))
        for call in (
            ("add", (ROWS, BYTES, OTHERS, SIGNED, BYTES), {}), ("mul", (ROWS, BYTES, ROWS, BYTES, SIGNED), {}),
            ("concat", ([(ROWS, BYTES), (OTHERS, SIGNED)], BYTES), {"axis": 0}),
            ("concat", ([(ROWS, BYTES)], SIGNED), {"axis": 0}),
        )
    ),
    (
        f"codes from 0 to 127: the kernel {AT_ENDS}",
        (*ONNX, *TORCH, "openvino", POINTWISE), "linear", (*LINEAR, NARROW), {},
    ),
    (f"codes from 0 to 127: the kernel {AT_ENDS}", LITERT, "add", (ROWS, BYTES, ROWS, BYTES, NARROW), {}),
    *(
        (f"codes from 0 to 127: the kernel {AT_ENDS}", ("onnxruntime",), operation, (*arguments, NARROW), options)
        for operation, arguments, options in (
            ("add", (ROWS, BYTES, ROWS, BYTES), {}), ("concat", ([(ROWS, BYTES)],), {"axis": 0}),
        )
    ),
    (
        f"x: {ONE_SCALE}", ("onnxruntime", "openvino", POINTWISE),
        "linear", (ROWS, OF_CHANNELS, OTHERS, SIGNED, None, BYTES), {},
    ),
    (f"y: {ONE_SCALE}", ("openvino", POINTWISE), "linear", (*LINEAR, OF_CHANNELS), {}),
    (f"activation: {ONE_SCALE}", LITERT, "add", (ROWS, OF_CHANNELS, ROWS, BYTES, BYTES), {}),
    (
        "w: the int8 kernels take weights with zero point 0 only",
        ("openvino",), "linear", (ROWS, BYTES, OTHERS, TURNED, None, BYTES), {},
    ),
    (
        "w: the kernels take weights with zero point 0 only",
        (POINTWISE,), "linear", (ROWS, BYTES, OTHERS, TURNED, None, BYTES), {},
    ),
    ("bias: QLinearMatMul has none", ("onnx-reference",), "linear", (ROWS, BYTES, OTHERS, SIGNED, BIAS, BYTES), {}),
    *(
        ("signed activations: the packed kernels take unsigned ones only", TORCH, "linear", layer, {})
        for layer in ((OTHERS, SIGNED, *LINEAR[2:], BYTES), (*LINEAR, SIGNED))
    ),
    (
        "signed activations: qconv2d_pointwise takes unsigned ones only",
        (POINTWISE,), "conv2d", (*IMAGE, WINDOW, SIGNED, None, BYTES), {},
    ),
    (
        "x: this adapter takes uint8 codes, got int8",
        (POINTWISE,), "linear", (OTHERS, SIGNED, OTHERS, SIGNED, None, BYTES), {},
    ),
    (
        "the operator takes one type of codes, got unsigned activations and signed weights",
        LITERT, "linear", (*LINEAR, BYTES), {},
    ),
    (
        "signed codes: CONCATENATION takes one grid, got different ones",
        LITERT, "concat", ([(OTHERS, SIGNED), (OTHERS, QUARTERS)], SIGNED), {"axis": 0},
    ),
    (
        "no images: XNNPACK takes the size of the output from uninitialized memory",
        ("litert-xnnpack",), "max_pool2d", (NO_IMAGES, SIGNED), {"kernel": (2, 2)},
    ),
    (
        "dilation: MAX_POOL_2D has none, got (1, 2)",
        LITERT, "max_pool2d", IMAGE, {"kernel": (2, 2), "dilation": (1, 2)},
    ),
    (
        "count_include_pad: AVERAGE_POOL_2D does not count padding",
        LITERT, "avg_pool2d", IMAGE, {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)},
    ),
    *(
        (
            f"padding: pooling offers 'valid' and 'same' only, got {padding}",
            LITERT, "max_pool2d", IMAGE, {"kernel": kernel, "stride": (2, 1), "padding": padding},
        )
        for kernel, padding in (((3, 3), (1, 0)), ((2, 2), (1, 0)), ((5, 3), (1, 1)))
    ),
    ("size: MEAN gives 1 by 1, got 1 by 2", LITERT, "adaptive_avg_pool2d", IMAGE, {"size": (1, 2)}),
    (
        "size: QLinearGlobalAveragePool gives 1 by 1, got 2 by 1",
        ("onnxruntime",), "adaptive_avg_pool2d", IMAGE, {"size": (2, 1)},
    ),
]  # fmt: skip
made = functools.cache(lambda name: registry.find(name).make())


@pytest.mark.parametrize("name", sorted({name for _, names, *_ in CALLS for name in names}))
def test_what_a_kernel_has_no_way_for_is_not_offered(name):
    if reason := registry.why_not_installed(name):
        pytest.skip(reason)
    for message, names, operation, arguments, options in CALLS:
        if name in names:
            got = outcome(made(name), operation, *arguments, **options)
            assert (got.kind, got.message) == ("not offered", message)


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
