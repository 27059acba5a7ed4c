"""Faults in the steps of real kernels and in who takes which (chapter 10)."""

from faults.fault import Fault

ZERO_POINT_INSIDE = "np.rint(value * (ONE / twice(y.scale)) + y.zero_point.astype(np.float32))"

FAULTS = [
    Fault(
        "divide-is-exact", "numerics.dialects.quantize", ("DIA-QUANTIZE",),
        "The quotient is kept in float64, which sees that it is no tie where the kernel's float32 does not.",
        "np.rint(x / scale).astype(np.float64)", "np.rint(x.astype(np.float64) / scale)",
    ),
    Fault(
        "fused-rounds-twice", "numerics.dialects.quantize", ("DIA-QUANTIZE",),
        "The product is rounded before the zero point is added, which a fused instruction does not do.",
        "np.rint(fma(x, ONE / scale, zero_point))",
        "np.rint(x * (ONE / scale) + zero_point.astype(np.float32))",
    ),
    Fault(
        "float64-rule-always-from-below", "numerics.dialects.qparams", ("DIA-QPARAMS",),
        "The zero point is always computed from the minimum.",
        "start = from_low if abs(qmin) - abs(low / scale) < abs(qmax) - abs(high / scale) else from_high",
        "start = from_low",
    ),
    Fault(
        "float64-rule-without-stretch", "numerics.dialects.qparams", ("DIA-QPARAMS",),
        "Small scales are lifted to 6.1e-5, and the range that they were computed from stays.",
        "low, high = float(np.float32(low) * stretch), float(np.float32(high) * stretch)", "low, high = low, high",
    ),
    Fault(
        "half-rounded-down", "numerics.dialects.qparams", ("DIA-SYMMETRIC",),
        "127.5 steps become 127 in an integer division.",
        "np.float32((qmax - qmin) / 2)", "np.float32((qmax - qmin) // 2)",
    ),
    Fault(
        "container-is-reduced", 'numerics.dialects.dialect', ("DIA-REDUCED",),
        "Codes are clamped at 127 in the engines too, which clamp at 255.",
        '(whole if self.reduced_rule == "container" else', '(whole if self.reduced_rule == "nothing" else',
    ),
    Fault(
        "int16-without-its-minimum", "numerics.dialects.accumulate", ("DIA-ACCUMULATE",),
        "Pairs saturate at -32767, symmetrically.",
        "lowest, highest = -(2**15), 2**15 - 1", "lowest, highest = -(2**15) + 1, 2**15 - 1",
    ),
    Fault(
        "products-saturate-one-by-one", "numerics.dialects.accumulate", ("DIA-ACCUMULATE",),
        "Each product is held in 16 bits, and the sum of two is not.",
        "total[:, outputs] -= sums - np.clip(sums, lowest, highest)",
        "total[:, outputs] -= sums - np.clip(sums, 2 * lowest, 2 * highest)",
    ),
    Fault(
        "float-bias-always-fused", "numerics.dialects.requantize", ("DIA-REQUANTIZE",),
        "The fused instruction of the per-tensor kernel is taken per channel too.",
        "total = accumulator.astype(np.float32) + bias / unit",
        "total = fma(bias, np.float32(1) / unit, accumulator.astype(np.float32))",
    ),
    Fault(
        "in-turn-is-the-product", "numerics.dialects.requantize", ("DIA-REQUANTIZE",),
        "The two scales are multiplied first, which saves an operation and rounds otherwise.",
        "accumulator.astype(np.float32) * twice(s_x) * twice(s_w) + bias, y, lowest",
        "accumulator.astype(np.float32) * (twice(s_x) * twice(s_w)) + bias, y, lowest",
    ),
    Fault(
        "onednn-adds-zero-point-last", "numerics.dialects.requantize", ("DIA-REQUANTIZE", "DIA-EITHER"),
        "The output's zero point is added after rounding, as chapter 3 has it and oneDNN has not.",
        ZERO_POINT_INSIDE, "np.rint(value * (ONE / twice(y.scale))) + y.zero_point.astype(np.float32)",
    ),
    Fault(
        "subnormal-units-admitted", "numerics.dialects.float32", ("DIA-UNIT",),
        "Any product of scales above zero passes, those with fewer digits too.",
        "np.isfinite(value) & (value >= SMALLEST_SCALE)", "np.isfinite(value) & (value > 0)",
    ),
    Fault(
        "multiplier-not-checked", "numerics.dialects.float32", ("DIA-UNIT",),
        "The unit of the accumulator is checked, and its quotient by the output's scale is not.",
        '{"scale of input times scale of weight": unit, "multiplier": unit / y_scale}',
        '{"scale of input times scale of weight": unit}',
    ),
    Fault(
        "fused-output-rounds-twice", "numerics.dialects.float_output", ("DIA-DYNAMIC",),
        "The product is rounded before the bias is added, which a fused instruction does not do.",
        "return fma(accumulator.astype(np.float32), np.float32(s_x) * s_w, bias)",
        "return accumulator.astype(np.float32) * (np.float32(s_x) * s_w) + bias",
    ),
    Fault(
        "inverted-scale-loses-digits", "numerics.dialects.dialect", ("DIA-DYNAMIC-QUANTIZE",),
        "The float64 scale is rounded to float32 before it is inverted.",
        'used = scale if self.quantize_dynamic_rule == "inverted" else grid.scale', "used = grid.scale",
    ),
    Fault(
        "onednns-kernels-mixed-up", "numerics.dialects.named", ("DIA-NAMED",),
        "onednn multiplies by the product, and onednn-product in turn.",
        'output_rule="in-turn",\n    requantize_rule="real-in-turn",',
        'output_rule="product",\n    requantize_rule="real-product",',
    ),
    Fault(
        "averages-of-one-as-others", "numerics.dialects.operations", ("DIA-AVERAGE",),
        "The zero point of an average is added before rounding, as torch 2.13 does and other versions do not.",
        "(ONE / positions.astype(np.float32))).astype(np.float64) + grid.zero_point",
        "(ONE / positions.astype(np.float32)) + grid.zero_point.astype(np.float32))",
    ),
    Fault(
        "division-by-the-scale-undone", "numerics.dialects.requantize", ("DIA-REQUANTIZE",),
        "An output that is divided by its scale is multiplied by the reciprocal.",
        "value / twice(y.scale)", "value * (ONE / twice(y.scale))",
    ),
    Fault(
        "reciprocal-bias-truncated", "numerics.dialects.requantize", ("DIA-EVERYWHERE", "DIA-REQUANTIZE"),
        "A cast without rounding turns a bias of just under a whole number of LSBs into one LSB less.",
        "codes = np.rint((bias * (ONE / unit)).astype(np.float64))",
        "codes = np.trunc((bias * (ONE / unit)).astype(np.float64))",
    ),
    Fault(
        "windows-take-the-linear-rule", "numerics.dialects.dialect", ("DIA-WINDOWS",),
        "Convolutions are requantized as linear layers are, which oneDNN does not do.",
        "relu=relu, rule=self.windows_rule)", "relu=relu)",
    ),
    Fault(
        "outside-less-weights-as-codes", "numerics.dialects.dialect", ("DIA-WINDOWS",),
        "What lies outside an image is compensated for by the codes of weights, without their zero point.",
        "integer.accumulate(added[g], 0, weight, of_group)", "integer.accumulate(added[g], 0, weight, 0)",
    ),
    Fault(
        "channel-of-weight-codes-0", "numerics.patches", ("DIA-WINDOWS",),
        "The weights that make the number of channels even have code 0, which stands for another number than 0.",
        "np.broadcast_to(w_zero_point.reshape", "np.broadcast_to(0 * w_zero_point.reshape",
    ),
    Fault(
        "sum-rounded-term-by-term", "numerics.dialects.operations", ("DIA-ADD",),
        "Each term is multiplied by its ratio and rounded before "
        "the other is added, where one fused instruction does both.",
        "fma(a_q, r_a, fma(b_q, r_b, start))",
        "a_q.astype(np.float32) * r_a + (b_q.astype(np.float32) * r_b + start)",
    ),
    Fault(
        "zero-point-inside-the-tail", "numerics.dialects.operations", ("DIA-ADD",),
        "The zero point of a sum is added before rounding, as torch 2.13 does and torch 2.11 does not.",
        "return rint(real * (ONE / y.scale)).astype(np.float64) + y.zero_point",
        "return rint(real * (ONE / y.scale) + y.zero_point.astype(np.float32))",
    ),
    Fault(
        "older-qnnpack-as-the-newest", "numerics.dialects.named", ("DIA-NAMED",),
        "The dynamic layers of torch 2.11's qnnpack are given the rule of 2.13.",
        'name="qnnpack-outside", **OUTSIDE)',
        'name="qnnpack-outside", **OUTSIDE | {"quantize_dynamic_rule": QNNPACK.quantize_dynamic_rule})',
    ),
    Fault(
        "product-by-the-quotient", "numerics.dialects.operations", ("DIA-MUL",),
        "The multiplier is divided by the output's scale where the kernel multiplies by its reciprocal.",
        "(a.scale * b.scale * (ONE / y.scale))", "(a.scale * b.scale / y.scale)",
    ),
    Fault(
        "joined-by-the-ratio", "numerics.dialects.operations", ("DIA-RESCALE",),
        "Codes are rescaled by the ratio of the scales in one step, instead of being dequantized and quantized.",
        "quantize(rule, centred(q, x) * x.scale, y.scale,", "quantize(rule, centred(q, x) * (x.scale / y.scale), ONE,",
    ),
    Fault(
        "average-divides", "numerics.dialects.operations", ("DIA-AVERAGE",),
        "The zero point is added behind the rounding of the average, which moves ties.",
        "(ONE / positions.astype(np.float32)) + grid.zero_point.astype(np.float32))",
        "(ONE / positions.astype(np.float32))) + grid.zero_point",
    ),
    Fault(
        "convolutions-fold-as-layers", "numerics.dialects.operations", ("DIA-FOLD",),
        "The order of the products is taken from linear layers, where torch's convolutions have another.",
        "(bias - mean) * factor if weight.ndim == 2 else (bias - mean) * inverse * gamma", "(bias - mean) * factor",
    ),
    Fault(
        "left-shift-overflows", "numerics.dialects.fixed_point", ("DIA-REQUANTIZE",),
        "A sum is shifted to the left as far as its multiplier says, and the product leaves its 64 bits.",
        "shifted = np.clip(total, -(2**31), 2**31 - 1) << min(max(-n, 0), 31)\n"
        "    high = (np.clip(shifted, -(2**31), 2**31) * m + 2**30) >> 31",
        "high = ((np.clip(total, -(2**31), 2**31 - 1) << max(-n, 0)) * m + 2**30) >> 31",
    ),
    Fault(
        "sum-shifted-right-only", "numerics.dialects.operations", ("DIA-ADD",),
        "A sum is only ever shifted to the right, as where the output's steps are about as large as the inputs'.",
        "return total << min(max(-shift, 0), 31), min(max(shift, 0), 62)", "return total, min(max(shift, 0), 62)",
    ),
    Fault(
        "ratio-of-nothing", "numerics.dialects.float32", ("DIA-RATIO",),
        "Any ratio above zero passes, infinity and numbers with fewer digits too.",
        "if not np.all(np.isfinite(value) & (value >= SMALLEST_SCALE)):", "if not np.all(value > 0):",
    ),
    Fault(
        "remainder-always-away", "numerics.dialects.float32", ("DIA-QUANTIZE",),
        "What a product's rounding lost moves the sum away from zero, also where it points the other way.",
        "np.where((rest > 0) == (total > 0), 1, -1)", "1",
    ),
    Fault(
        "shift-of-31-leaves-nothing", "numerics.dialects.fixed_point", ("DIA-REQUANTIZE",),
        "The largest shift that 32-bit instructions have is taken for one too many.",
        "if n > 31:", "if n >= 31:",
    ),
    Fault(
        "pairs-by-the-first-weight", "numerics.dialects.accumulate", ("DIA-ACCUMULATE",),
        "Of signed inputs only products of 127 are thought to fill a register, so that -128 * -128 twice does not.",
        "most = np.maximum(low * w0,", "most = np.maximum(max(low, -127) * w0,",
    ),
    Fault(
        "two-to-the-31-fits", "numerics.dialects.float32", ("DIA-REQUANTIZE",),
        "The conversion to int32 takes 2^31 itself, which is one too large.",
        "(rounded < 2.0**31), rounded", "(rounded <= 2.0**31), rounded",
    ),
]
