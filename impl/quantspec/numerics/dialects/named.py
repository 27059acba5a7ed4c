"""The named dialects (DIA-NAMED)."""

from dataclasses import replace

from .dialect import Dialect

TORCH = ("fused", "add", "float32", "half", "container")
TORCH_CODES = ("real", "reciprocal", "quantize", "inside", "inside", "float32")
ONNX = ("divide", "divide", "float32-bare", "narrow", "codes")
ONNX_CODES = ("ratios", "inside", "quantize", "real", "ratio", "exact")
TFLITE = ("divide-away", "divide-away", "exact", "narrow", "codes")
TFLITE_CODES = ("shifted", "fixed-two", "ratio-away", "codes-away", "fixed-two", "exact")
EXACT_CODES = ("exact",) * 6
INT16 = ("fbgemm", "onednn", "onednn-product", "onednn-pointwise", "onednn-pointwise-product")
DIALECTS = {
    choices.name: choices
    for choices in (
        Dialect("exact", "exact", "exact", "exact", "narrow", "codes", "exact", "exact", "exact", "exact", "exact", *EXACT_CODES),
        Dialect("onnx", *ONNX, "integer-bias", "float32-bare", "divide", "multiply-add", "integer-bias", *ONNX_CODES),
        Dialect("fbgemm", *TORCH, "float-bias", "float64", "fused", "fused", "float-bias", *TORCH_CODES),
        Dialect("onednn", *TORCH, "real-in-turn", "float64", "inverted", "in-turn", "real-weight-once", *TORCH_CODES, "even"),
        Dialect("onednn-product", *TORCH, "real-product", "float64", "inverted", "product", "real-weight-once-product", *TORCH_CODES, "even"),
        Dialect(
            "qnnpack", *TORCH, "integer-bias-reciprocal", "float64", "fused", "multiply-add", "integer-bias-reciprocal",
            "fixed-away", "reciprocal", "quantize", "ratio", "ratio", "float32",
        ),
        Dialect("paper", "exact", "exact", "half-up", "narrow", "codes", "fixed-one", "half-up", "exact", "exact", "fixed-one", *EXACT_CODES),
        Dialect("onnx-reference", *ONNX, "double-inside", "float32-bare", "divide", "multiply-add", "double-inside", *ONNX_CODES),
        Dialect("torch-quantize", *TORCH, "exact", "float32", "fused", "exact", "exact", *TORCH_CODES),
        Dialect("torch-quantize-tail", *TORCH, "exact", "float32", "fused", "exact", "exact", "real-inside", *TORCH_CODES[1:4], "codes", "float32"),
        Dialect("torch-fake-quantize", "reciprocal", "reciprocal", *TORCH[2:], "exact", "float32", "reciprocal", "exact", "exact", *EXACT_CODES),
        Dialect("onednn-pointwise", *TORCH, "real-plain", "float64", "fused", "in-turn", "real-plain", *TORCH_CODES, "even"),
        Dialect("onednn-pointwise-product", *TORCH, "real-plain-product", "float64", "fused", "product", "real-plain-product", *TORCH_CODES, "even"),
        Dialect("onednn-reference", *TORCH, "real-divided", "float64", "fused", "in-turn", "real-divided", *TORCH_CODES, "even"),
        Dialect(
            "xnnpack", "reciprocal", "divide-away", "exact", "narrow", "codes", "integer-bias", "exact", "reciprocal", "multiply-add", "integer-bias",
            "fixed-up", "outside", "ratio-away", "codes-away", "inside", "exact",
        ),
        Dialect("tflite-reference", *TFLITE, "fixed-one", "exact", "divide-away", "multiply-add", "fixed-two", *TFLITE_CODES),
        Dialect("tflite-two-roundings", *TFLITE, "fixed-two", "exact", "divide-away", "multiply-add", "fixed-two", *TFLITE_CODES),
        Dialect("tflite-ruy", *TFLITE, "fixed-two-up", "exact", "divide-away", "multiply-add", "fixed-two-up", *TFLITE_CODES),
        Dialect("openvino", "levels", "levels", "exact", "narrow", "codes", "real-product", "exact", "levels", "exact", "real-product", *EXACT_CODES),
    )
}  # fmt: skip
DIALECTS |= {f"{name}-int16": replace(DIALECTS[name], name=f"{name}-int16", accumulate_rule="pairs") for name in INT16}

def dialect(name: str) -> Dialect:
    """The dialect of that name; ValueError listing the known ones when there is none."""
    if name not in DIALECTS:
        raise ValueError(f"dialect: expected one of {', '.join(DIALECTS)}, got {name!r}")
    return DIALECTS[name]
