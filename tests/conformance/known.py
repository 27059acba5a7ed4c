"""Where a backend is known to leave every dialect that it declares, and why. A cell that is here and agrees is as wrong as one that is not and differs."""

ADAPTIVE = "torch, channels last: ties of means over many positions go another way than those of avg_pool2d; no form found that gives all of them"
GROUPED = "oneDNN's AVX2 kernel for grouped convolutions: a few outputs in ten thousand beside ties follow neither product nor turn"

KNOWN = {
    ("torch-fbgemm", "conv2d"): "FBGEMM's depthwise 3x3 kernel adds products in pairs into saturating int16 on every CPU, with VNNI too",
    ("torch-qnnpack", "max_pool2d"): "QNNPACK's max pooling reads other windows when there is padding and dilation",
    ("torch-qnnpack", "avg_pool2d"): "QNNPACK's average pooling ignores count_include_pad=False",
    ("torch-x86-no-vnni", "conv2d"): GROUPED,
    ("torch-onednn-no-vnni", "conv2d"): GROUPED,
    ("torch-onednn-pointwise-no-vnni", "conv2d"): GROUPED,
    ("onnx-reference", "max_pool2d"): "the reference evaluator takes pads in another order, and fails on integer codes where a window is all padding",
    ("litert-xnnpack", "adaptive_avg_pool2d"): "XNNPACK's mean beside ties; no form found",
    ("litert-builtin", "quantize"): "the elements that fill no vector take steps of their own",
    ("litert-builtin", "dequantize"): "q * scale - zero_point * scale, with two roundings",
    ("litert-builtin", "linear"): "the product of the scales is rounded to float32 before the multiplier is formed, for one scale a tensor",
    ("litert-builtin", "add"): "one sum in 800,000 beside a tie",
    ("litert-builtin", "adaptive_avg_pool2d"): "the mean of codes in fixed point with the multiplier 1/n rounded, not cut off",
    ("openvino", "linear"): "the form in which the plugin fuses the output's quantization; no form found",
    ("openvino", "conv2d"): "the form in which the plugin fuses the output's quantization; no form found",
} | {
    (f"torch-{engine}", "adaptive_avg_pool2d"): ADAPTIVE
    for engine in ("x86", "fbgemm", "onednn", "qnnpack", "x86-no-vnni", "fbgemm-no-vnni", "onednn-no-vnni")
}
