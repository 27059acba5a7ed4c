"""The named dialects (DIA-NAMED).

What a dialect does not name it chooses as ``exact`` does, or as the one that it is derived from.
"""

from dataclasses import replace

from quantspec.errors import expected_one_of

from .dialect import Dialect

EXACT = Dialect("exact")
PAPER = Dialect(
    "paper",
    qparams_rule="half-up",
    qparams_dynamic_rule="half-up",
    requantize_rule="fixed-one",
    windows_rule="fixed-one",
)

# PyTorch: quantized tensors outside of layers, and its engines.
TORCH_QUANTIZE = Dialect(
    "torch-quantize",
    quantize_rule="fused",
    quantize_channels_rule="add",
    qparams_rule="float32",
    symmetric_rule="half",
    reduced_rule="container",
    qparams_dynamic_rule="float32",
    quantize_dynamic_rule="fused",
    add_rule="real",
    mul_rule="reciprocal",
    rescale_rule="quantize",
    average_rule="inside",
    mean_rule="inside",
    fold_rule="float32",
)
TORCH_QUANTIZE_TAIL = replace(TORCH_QUANTIZE, name="torch-quantize-tail", add_rule="real-inside", mean_rule="codes")
# What adds the zero point after rounding, as most versions of PyTorch do.
OUTSIDE = dict.fromkeys(("quantize_rule", "quantize_channels_rule", "quantize_dynamic_rule"), "reciprocal")
TORCH_QUANTIZE_OUTSIDE = replace(TORCH_QUANTIZE, name="torch-quantize-outside", **OUTSIDE)
TORCH_QUANTIZE_OUTSIDE_TAIL = replace(
    TORCH_QUANTIZE_OUTSIDE, name="torch-quantize-outside-tail", add_rule="real-outside", mean_rule="codes"
)
TORCH_QUANTIZE_OUTSIDE_ONE = replace(
    TORCH_QUANTIZE_OUTSIDE,
    name="torch-quantize-outside-one",
    add_rule="real-outside",
    average_rule="outside",
    mean_rule="outside",
)
TORCH_FAKE_QUANTIZE = Dialect(
    "torch-fake-quantize",
    qparams_rule="float32",
    symmetric_rule="half",
    reduced_rule="container",
    qparams_dynamic_rule="float32",
    **OUTSIDE,
)
FBGEMM = replace(
    TORCH_QUANTIZE,
    name="fbgemm",
    qparams_dynamic_rule="float64",
    output_rule="fused",
    requantize_rule="float-bias",
    windows_rule="float-bias",
)
FBGEMM_OUTSIDE = replace(FBGEMM, name="fbgemm-outside", **OUTSIDE)
QNNPACK = replace(
    FBGEMM,
    name="qnnpack",
    output_rule="multiply-add",
    requantize_rule="integer-bias-reciprocal",
    windows_rule="integer-bias-reciprocal",
    add_rule="fixed-away",
    average_rule="ratio",
    mean_rule="ratio",
)
QNNPACK_OUTSIDE = replace(QNNPACK, name="qnnpack-outside", **OUTSIDE)
ONEDNN = replace(
    TORCH_QUANTIZE,
    name="onednn",
    qparams_dynamic_rule="float64",
    quantize_dynamic_rule="inverted",
    output_rule="in-turn",
    requantize_rule="real-in-turn",
    windows_rule="real-weight-once",
    channels_rule="even",
)
ONEDNN_DIVIDED = replace(ONEDNN, name="onednn-divided", requantize_rule="real-in-turn-divided")
ONEDNN_PRODUCT = replace(
    ONEDNN,
    name="onednn-product",
    output_rule="product",
    requantize_rule="real-product",
    windows_rule="real-weight-once-product",
)
ONEDNN_POINTWISE = replace(
    ONEDNN,
    name="onednn-pointwise",
    quantize_dynamic_rule="fused",
    requantize_rule="real-plain",
    windows_rule="real-plain",
)
ONEDNN_POINTWISE_PRODUCT = replace(
    ONEDNN_POINTWISE,
    name="onednn-pointwise-product",
    output_rule="product",
    requantize_rule="real-plain-product",
    windows_rule="real-plain-product",
)
ONEDNN_REFERENCE = replace(
    ONEDNN_POINTWISE,
    name="onednn-reference",
    requantize_rule="real-divided",
    windows_rule="real-divided",
)

# ONNX: the kernels of ONNX Runtime, and the evaluator of the onnx package.
ONNX = Dialect(
    "onnx",
    quantize_rule="divide",
    quantize_channels_rule="divide",
    qparams_rule="float32-bare",
    qparams_dynamic_rule="float32-bare",
    quantize_dynamic_rule="divide",
    output_rule="multiply-add",
    requantize_rule="integer-bias",
    windows_rule="integer-bias",
    add_rule="ratios",
    mul_rule="inside",
    rescale_rule="quantize",
    average_rule="real",
    mean_rule="ratio",
)
ONNX_REFERENCE = replace(ONNX, name="onnx-reference", requantize_rule="double-inside", windows_rule="double-inside")

# LiteRT: its default delegate, its reference kernels, and its builtin ones.
XNNPACK = Dialect(
    "xnnpack",
    quantize_rule="reciprocal",
    quantize_channels_rule="divide-away",
    quantize_dynamic_rule="reciprocal",
    output_rule="multiply-add",
    requantize_rule="integer-bias",
    windows_rule="integer-bias",
    add_rule="fixed-up",
    mul_rule="outside",
    rescale_rule="ratio-away",
    average_rule="codes-away",
    mean_rule="inside",
)
TFLITE_REFERENCE = Dialect(
    "tflite-reference",
    quantize_rule="divide-away",
    quantize_channels_rule="divide-away",
    quantize_dynamic_rule="divide-away",
    output_rule="multiply-add",
    requantize_rule="fixed-one",
    windows_rule="fixed-two",
    add_rule="shifted",
    mul_rule="fixed-two",
    rescale_rule="ratio-away",
    average_rule="codes-away",
    mean_rule="fixed-two",
)
TFLITE_TWO_ROUNDINGS = replace(TFLITE_REFERENCE, name="tflite-two-roundings", requantize_rule="fixed-two")
TFLITE_RUY = replace(
    TFLITE_REFERENCE,
    name="tflite-ruy",
    requantize_rule="fixed-two-up",
    windows_rule="fixed-two-up",
)

OPENVINO = Dialect(
    "openvino",
    quantize_rule="levels",
    quantize_channels_rule="levels",
    quantize_dynamic_rule="levels",
    requantize_rule="real-product",
    windows_rule="real-product",
    channels_rule="even",
)

# In the order of the chapter's table.
NAMED = (
    EXACT, ONNX, FBGEMM, FBGEMM_OUTSIDE, ONEDNN, ONEDNN_DIVIDED, ONEDNN_PRODUCT, QNNPACK, QNNPACK_OUTSIDE, PAPER,
    ONNX_REFERENCE, TORCH_QUANTIZE, TORCH_QUANTIZE_TAIL, TORCH_QUANTIZE_OUTSIDE, TORCH_QUANTIZE_OUTSIDE_TAIL,
    TORCH_QUANTIZE_OUTSIDE_ONE, TORCH_FAKE_QUANTIZE,
    ONEDNN_POINTWISE, ONEDNN_POINTWISE_PRODUCT, ONEDNN_REFERENCE,
    XNNPACK, TFLITE_REFERENCE, TFLITE_TWO_ROUNDINGS, TFLITE_RUY, OPENVINO,
)  # fmt: skip
# What x86 CPUs without dot-product instructions make of a dialect (DIA-ACCUMULATE).
INT16 = tuple(
    replace(choices, name=f"{choices.name}-int16", accumulate_rule="pairs")
    for choices in (
        ONNX, FBGEMM, FBGEMM_OUTSIDE, ONEDNN, ONEDNN_DIVIDED, ONEDNN_PRODUCT, ONEDNN_POINTWISE,
        ONEDNN_POINTWISE_PRODUCT, OPENVINO,
    )
)
DIALECTS = {choices.name: choices for choices in NAMED + INT16}


def dialect(name: str) -> Dialect:
    """The dialect of that name; ValueError listing the known ones when there is none."""
    if not isinstance(name, str) or name not in DIALECTS:
        raise ValueError(expected_one_of("dialect", DIALECTS, name))
    return DIALECTS[name]
