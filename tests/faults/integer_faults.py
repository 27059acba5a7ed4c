"""Faults in accumulators, bias, requantization, convolution, addition and pooling (chapter 3)."""

from faults.fault import Fault

PRODUCT = "return product(x, w.T).astype(np.int32)"
CONVOLVE = "convolve(real, weight.astype(exact), stride, dilation, groups)"
# The row and column sums, with what corrects them to be filled in.
SUMS = """points = np.broadcast_to(np.asarray(w_zero_point, np.float64), len(w_q))
    x, w, z = x_q.astype(np.float64), w_q.astype(np.float64), float(x_zero_point)
    return (x @ w.T - z * w.sum(axis=1) - {rows} * points + {count} * z * points).astype(np.int32)"""
ROWS, COUNT = "x.sum(axis=1, keepdims=True)", "x.shape[1]"

ACCUMULATORS = [
    Fault(
        "int16-accumulator", "numerics.integer", ("INT-ACC",),
        "An accumulator of 16 bits wraps after a few products.",
        PRODUCT, PRODUCT.replace(".astype(np.int32)", ".astype(np.int64).astype(np.int16).astype(np.int32)"),
    ),
    Fault(
        "float32-accumulator", "numerics.integer", ("INT-ACC",),
        "Simulated quantization sums codes in float32, which drops the last bits of large sums.",
        PRODUCT, "return (x.astype(np.float32) @ w.astype(np.float32).T).astype(np.int32)",
    ),
    Fault(
        "input-zero-point-forgotten", "numerics.integer", ("INT-ACC", "INT-LINEAR", "INT-NEAREST"),
        "Raw input codes are multiplied, as if their zero point were 0.",
        "x = x_q.astype(np.float64) - x_zero_point", "x = x_q.astype(np.float64)",
    ),
    Fault(
        "weight-zero-point-forgotten", "numerics.integer", ("INT-ACC", "INT-SUMS", "INT-LINEAR"),
        "Weights are nearly always symmetric, so somebody never subtracts their zero point.",
        "w = w_q.astype(np.float64) - along(0, np.asarray(w_zero_point), w_q.shape)", "w = w_q.astype(np.float64)",
    ),
    Fault(
        "sums-without-the-count", "numerics.integer", ("INT-ACC", "INT-SUMS"),
        "The last term of the row and column sums, K * z_x * z_w, is left out.",
        PRODUCT, SUMS.format(rows=ROWS, count="0"),
    ),
    Fault(
        "sums-count-the-padding", "numerics.integer", ("INT-ACC", "INT-SUMS"),
        "A kernel that packs inputs in fours takes the packed length for the number of inputs.",
        PRODUCT, SUMS.format(rows=ROWS, count="-(-x.shape[1] // 4) * 4"),
    ),
    Fault(
        "sum-of-all-rows", "numerics.integer", ("INT-SUMS", "INT-BATCH"),
        "The sum of input codes is taken over the whole batch instead of each row.",
        PRODUCT, SUMS.format(rows="x.sum()", count=COUNT),
    ),
    Fault(
        "block-floating-point", "numerics.integer", ("INT-ACC", "INT-BATCH", "STA-BATCH-SIZE"),
        "Signal processors shift a whole block down until its "
        "largest number fits, so that rows lose bits to each other.",
        PRODUCT,
        "total = (x @ w.T).astype(np.int64)\n"
        "    shift = max(int(np.abs(total).max(initial=0)).bit_length() - 12, 0)\n"
        "    return (total >> shift << shift).astype(np.int32)",
    ),
    Fault(
        "overflow-check-without-bias", "numerics.integer", ("INT-OVERFLOW", "STA-OVERFLOW"),
        "The worst sum of products is checked, and the bias that is added to it is not.",
        "worst = step * sizes + np.abs(bias_q.astype(np.int64))", "worst = step * sizes",
    ),
    Fault(
        "overflow-check-from-qmax", "numerics.integer", ("INT-OVERFLOW",),
        "Only the step from the zero point up to qmax is thought of, not the one down to qmin.",
        "step = max(int(x.zero_point) - x.qmin, x.qmax - int(x.zero_point))", "step = x.qmax - int(x.zero_point)",
    ),
    Fault(
        "overflow-check-of-plain-sums", "numerics.integer", ("INT-OVERFLOW",),
        "Weights of both signs cancel in a plain sum, but inputs need not let them.",
        "np.abs(w_q[rows].astype(np.int64) - own).sum(axis=tuple(range(1, w_q.ndim)))",
        "np.abs((w_q[rows].astype(np.int64) - own).sum(axis=tuple(range(1, w_q.ndim))))",
    ),
    Fault(
        "overflow-limit-is-2-to-the-31", "numerics.integer", ("INT-OVERFLOW",),
        "2^31 is taken for the largest int32, which is one less.",
        "if worst.size and worst.max() > INT32_MAX:", "if worst.size and worst.max() > INT32_MAX + 1:",
    ),
]

UNITS = "units = np.broadcast_to(np.multiply(x_scale, w_scale, dtype=np.float64), bias.shape)"
BIAS_STEPS = "steps = np.clip(bias / units, -INT32_MAX, INT32_MAX)"

BIAS = [
    Fault(
        "bias-at-the-weights-scale", "numerics.integer", ("INT-BIAS", "INT-LINEAR"),
        "The bias is a parameter like the weights, so somebody gives it their scale instead of the accumulator's.",
        UNITS, "units = np.broadcast_to(np.asarray(w_scale, np.float64), bias.shape)",
    ),
    Fault(
        "bias-at-channel-0s-scale", "numerics.integer", ("INT-BIAS",),
        "The weights have a scale for each channel, and the bias has the first for all.",
        UNITS, UNITS.replace("w_scale", "np.ravel(w_scale)[:1]"),
    ),
    Fault(
        "bias-truncated", "numerics.integer", ("INT-BIAS",),
        "A cast to int32 without rounding cuts the bias's fraction off.",
        "codes: Float64 = np.rint(steps)", "codes: Float64 = np.trunc(steps)",
    ),
    Fault(
        "bias-ties-up", "numerics.integer", ("INT-BIAS",),
        "floor(b + 0.5) moves the bias's ties upward.",
        "codes[index] = round(Fraction(float(bias[index])) / Fraction(float(units[index])))",
        "codes[index] = (2 * Fraction(float(bias[index])) / Fraction(float(units[index])) + 1) // 2",
    ),
    Fault(
        "bias-in-float64", "numerics.integer", ("INT-BIAS",),
        "float64 is taken to be exact enough, and a quotient that it rounds onto a tie goes to the even side of it.",
        "for index in np.nonzero(np.abs(steps - codes) == 0.5)[0]:", "for index in ():",
    ),
    Fault(
        "bias-wraps", "numerics.integer", ("INT-BIAS-SATURATE",),
        "A cast to int32 without a clamp keeps the lowest 32 bits of the bias.",
        "return codes.astype(np.int32)",
        "return np.rint(np.clip(bias / units, -(2.0**62), 2.0**62)).astype(np.int64).astype(np.int32)",
    ),
    Fault(
        "bias-reaches-int32-min", "numerics.integer", ("INT-BIAS-SATURATE",),
        "The whole of int32 is used, whose lowest number has no opposite.",
        BIAS_STEPS, BIAS_STEPS.replace("-INT32_MAX, INT32_MAX", "-INT32_MAX - 1, INT32_MAX"),
    ),
]

STEPS = "steps = accumulator * unit / np.float64(y.scale)"
ROUNDED = "steps = rounded(steps, lambda index: int(accumulator[index]) * Fraction(float(units[index])) / scale)"
CLAMPED = "return saturate(steps + y.zero_point, lowest, y.qmax).astype(y.dtype)"

REQUANTIZE = [
    Fault(
        "multiplier-in-float32", "numerics.integer", ("INT-MULTIPLIER", "INT-REQUANT"),
        "Kernels keep the multiplier as a float32, and its rounding decides ties.",
        STEPS, "steps = accumulator * (unit / np.float64(y.scale)).astype(np.float32).astype(np.float64)",
    ),
    Fault(
        "requantize-in-float64", "numerics.integer", ("INT-REQUANT",),
        "float64 is taken to be exact enough, and a product that it rounds onto a tie goes to the even side of it.",
        ROUNDED, "steps = np.rint(steps)",
    ),
    Fault(
        "multiplier-of-channel-0", "numerics.integer", ("INT-MULTIPLIER", "INT-LINEAR"),
        "A kernel written per tensor requantizes every channel with the first one's scale.",
        STEPS, f"unit = unit if unit.ndim == 0 else np.resize(unit[:1], unit.shape)\n    {STEPS}",
    ),
    Fault(
        "requantize-ties-away", "numerics.integer", ("INT-REQUANT", "INT-NEAREST"),
        "C's round() moves the output's ties away from zero.",
        ROUNDED, "steps = np.copysign(np.floor(np.abs(steps) + 0.5), steps)",
    ),
    Fault(
        "requantize-order", "numerics.integer", ("INT-REQUANT", "INT-NEAREST"),
        "oneDNN adds the output's zero point before it rounds, so that ties depend on it.",
        ROUNDED, "steps = np.rint(steps + y.zero_point) - y.zero_point",
    ),
    Fault(
        "requantize-clamps-early", "numerics.integer", ("INT-REQUANT",),
        "The steps are clamped to the codes and the zero point is added afterwards, which wraps around.",
        CLAMPED, "return (np.clip(steps, lowest, y.qmax) + y.zero_point).astype(np.int64).astype(y.dtype)",
    ),
    Fault(
        "requantize-wraps", "numerics.integer", ("INT-REQUANT",),
        "A cast to a byte without a clamp keeps the lowest eight bits of the output.",
        CLAMPED,
        "return np.maximum(np.clip(steps, -(2.0**40), 2.0**40) + y.zero_point, "
        "lowest if relu else -(2.0**40)).astype(np.int64).astype(y.dtype)",
    ),
]

SUM_AND_BIAS = "accumulator = accumulate(x_q, x.zero_point, w_q, w.zero_point) + bias_q"
LOWEST = "lowest = int(y.zero_point) if relu else y.qmin"
RETURN_LINEAR = "return requantize(accumulator, x.scale, w.scale, y, relu=relu)"

LINEAR = [
    Fault(
        "bias-forgotten", "numerics.integer", ("INT-LINEAR",),
        "The products are summed, and the bias is never added.",
        SUM_AND_BIAS, SUM_AND_BIAS.replace(" + bias_q", ""),
    ),
    Fault(
        "bias-after-requantizing", "numerics.integer", ("INT-LINEAR",),
        "The bias is rounded to the output's steps and added there, so that two roundings add up.",
        f"{SUM_AND_BIAS}\n    {RETURN_LINEAR}",
        f"{SUM_AND_BIAS.replace(' + bias_q', '')}\n"
        "    shift = 0 if bias is None else np.rint(np.asarray(bias, np.float64) / float(y.scale))\n"
        "    codes = requantize(accumulator, x.scale, w.scale, y).astype(np.float64) + shift\n"
        "    return np.clip(codes, y.zero_point if relu else y.qmin, y.qmax).astype(y.dtype)",
    ),
    Fault(
        "correction-comes-with-the-bias", "numerics.integer", ("INT-NO-BIAS", "INT-NEAREST"),
        "Kernels pack the zero point's correction into the bias, and a layer without bias goes without it.",
        SUM_AND_BIAS, SUM_AND_BIAS.replace("x.zero_point", "0 if bias is None else x.zero_point"),
    ),
    Fault(
        "output-zero-comes-with-bias", "numerics.integer", ("INT-NO-BIAS", "INT-NEAREST"),
        "The output's zero point is packed into the bias, and a layer without bias goes without it.",
        RETURN_LINEAR,
        "return requantize(accumulator, x.scale, w.scale, y if bias is not None "
        "else QParams(y.scale, y.qmin, y.qmin, y.qmax), relu=relu)",
    ),
    Fault(
        "relu-at-code-0", "numerics.integer", ("INT-RELU",),
        "ReLU keeps what is above the code 0 instead of what is above the code of the real number 0.",
        "clamped: np.ndarray = np.maximum(q, np.asarray(zero_point).astype(q.dtype))",
        "clamped = np.maximum(q, q.dtype.type(0))",
    ),
    Fault(
        "relu-by-the-codes-sign", "numerics.integer", ("INT-RELU",),
        "ReLU looks at the sign of the code, and puts the zero point in place of negative ones.",
        "clamped: np.ndarray = np.maximum(q, np.asarray(zero_point).astype(q.dtype))",
        "clamped = np.where(q > 0, q, np.asarray(zero_point).astype(q.dtype))",
    ),
    Fault(
        "fused-relu-at-code-0", "numerics.integer", ("INT-RELU-LINEAR", "FUS-RELU"),
        "The clamp of a fused ReLU begins at the code 0 instead of at the zero point.",
        LOWEST, "lowest = 0 if relu else y.qmin",
    ),
    Fault(
        "relu-before-bias", "numerics.integer", ("INT-RELU-LINEAR", "FUS-RELU"),
        "The sum of products is clamped at 0, and the bias is added to that.",
        SUM_AND_BIAS,
        "accumulator = accumulate(x_q, x.zero_point, w_q, w.zero_point)\n"
        "    accumulator = (np.maximum(accumulator, 0) if relu else accumulator) + bias_q",
    ),
]

M = "m = round(multiplier * Fraction(2) ** (31 + n))"
CARRY = "return (m // 2, n - 1) if m == 2**31 else (m, n)"
ONE = "sizes = ((product >> (shift - 1)) + 1) >> 1"
SIGNED = "steps = np.sign(accumulator) * sizes"
TWO = "steps = np.sign(high) * ((np.abs(high) + (2**n >> 1)) >> n)"

FIXED_POINT = [
    Fault(
        "fixed-point-truncated", "numerics.integer", ("INT-FIXED", "INT-FIXED-DISTANCE"),
        "A cast to int32 cuts the multiplier's last bit off instead of rounding it.",
        M, M.replace("round", "int"),
    ),
    Fault(
        "fixed-point-of-a-float32", "numerics.integer", ("INT-FIXED", "INT-FIXED-DISTANCE"),
        "The multiplier is a float32 first, so that seven of its 31 bits are empty.",
        M, "m = round(Fraction(float(np.float32(float(multiplier * Fraction(2) ** n)))) * 2**31)",
    ),
    Fault(
        "fixed-point-without-carry", "numerics.integer", ("INT-FIXED",),
        "A multiplier that rounds up to 2^31 does not fit 31 bits and is not normalised again.",
        CARRY, "return m, n",
    ),
    Fault(
        "fixed-point-carry-keeps-n", "numerics.integer", ("INT-FIXED", "INT-FIXED-DISTANCE"),
        "A multiplier that rounds up to 2^31 is halved, and its shift stays as it was.",
        CARRY, CARRY.replace("n - 1", "n"),
    ),
    Fault(
        "one-rounding-ties-to-even", "numerics.integer", ("INT-FIXED-ONE",),
        "The float path's rule for ties is carried over to the fixed-point path.",
        ONE,
        f"{ONE}\n        sizes -= (sizes & 1) * ((product & ((1 << min(shift, 62)) - 1)) == 1 << (min(shift, 62) - 1))",
    ),
    Fault(
        "one-rounding-ties-up", "numerics.integer", ("INT-FIXED-ONE",),
        "Adding half and shifting right moves negative ties up, towards zero.",
        SIGNED, "steps = ((accumulator * m >> (shift - 1)) + 1) >> 1",
    ),
    Fault(
        "one-rounding-truncates", "numerics.integer", ("INT-FIXED-ONE", "INT-FIXED-NEAR"),
        "The product is shifted right without adding half.",
        ONE, "sizes = product >> shift",
    ),
    Fault(
        "double-rounding", "numerics.integer", ("INT-FIXED-ONE",),
        "The high half of the product is rounded before the shift, as "
        "32-bit instructions do it, where one rounding was asked for.",
        SIGNED,
        "high = (accumulator * m + 2**30) >> 31\n"
        "        steps = np.sign(high) * ((np.abs(high) + (2**n >> 1)) >> n) "
        "if 0 <= n <= 31 else np.sign(accumulator) * sizes",
    ),
    Fault(
        "high-multiply-truncates", "numerics.integer", ("INT-FIXED-TWO",),
        "The doubling high multiply takes the upper half of the product and forgets to round it.",
        "high = (accumulator * m + 2**30) >> 31", "high = (accumulator * m) >> 31",
    ),
    Fault(
        "shift-rounds-half-up", "numerics.integer", ("INT-FIXED-TWO",),
        "Adding half and shifting right moves negative ties of the second rounding up.",
        TWO, "steps = (high + (2**n >> 1)) >> n",
    ),
    Fault(
        "shift-truncates", "numerics.integer", ("INT-FIXED-TWO", "INT-FIXED-NEAR"),
        "The second rounding is a plain shift, which throws the rest away.",
        TWO, "steps = np.sign(high) * (np.abs(high) >> n)",
    ),
]


CONVOLUTION = [
    Fault(
        "stride-swapped", 'numerics.integer', ("INT-CONV",),
        "Widths come first in one interface and heights in the other.",
        CONVOLVE,
        "convolve(real, weight.astype(exact), stride[::-1], dilation, groups)",
    ),
    Fault(
        "kernel-turned-over", 'numerics.integer', ("INT-CONV",),
        "The mathematical convolution turns its kernel over; that of neural networks does not.",
        CONVOLVE,
        "convolve(real, weight[..., ::-1].astype(exact), stride, dilation, groups)",
    ),
    Fault(
        "dilation-ignored", 'numerics.integer', ("INT-CONV",),
        "The windows are dense, whatever the dilation.",
        CONVOLVE,
        "convolve(real, weight.astype(exact), stride, (1,) * len(dilation), groups)",
    ),
    Fault(
        "padding-is-code-0", 'numerics.integer', ("INT-CONV-PAD",),
        "Buffers are cleared to the code 0, which stands for a "
        "real number below zero wherever the zero point is not 0.",
        'real = spread(x_q.astype(exact) - exact(x_zero_point), input_dilation, padding, 0)',
        'real = spread(x_q.astype(exact) - exact(x_zero_point), input_dilation, padding, -exact(x_zero_point))',
    ),
    Fault(
        "padding-repeats-the-border", 'numerics.integer', ("INT-CONV-PAD",),
        "Image filters repeat the border outside the image.",
        'around, constant_values=fill)',
        'around, mode="edge")',
    ),
    Fault(
        "groups-interleaved", 'numerics.integer', ("INT-CONV-GROUPS",),
        "Channels last in memory make every G-th channel a group instead of neighbouring ones.",
        CONVOLVE,
        "convolve(real.reshape(len(real), real.shape[1] // groups, groups, *real.shape[2:]).swapaxes(1, 2)"
        ".reshape(real.shape), weight.astype(exact), stride, dilation, groups)",
    ),
    Fault(
        "every-group-reads-the-first", 'numerics.integer', ("INT-CONV-GROUPS",),
        "The pointer to the input is not moved on from group to group.",
        CONVOLVE,
        "convolve(np.concatenate([real[:, : real.shape[1] // groups]] * groups, axis=1), weight.astype(exact), stride, "
        "dilation, groups)",
    ),
]


JOINING = [
    Fault(
        "add-on-one-scale", "numerics.integer", ("INT-ADD",),
        "The two inputs are taken to be on one grid, as they are in the paper's residual blocks.",
        "terms = [np.float64(g.scale) * (q", "terms = [np.float64(a.scale) * (q",
    ),
    Fault(
        "add-rounds-each-input", "numerics.integer", ("INT-ADD",),
        "Each input is rounded to the output's steps first, so that two roundings add up.",
        "return saturate(steps + y.zero_point, int(y.zero_point) if relu else y.qmin, y.qmax)",
        "steps = np.rint(terms[0] / float(y.scale)) + np.rint(terms[1] / float(y.scale))\n"
        "    return saturate(steps + y.zero_point, int(y.zero_point) if relu else y.qmin, y.qmax)",
    ),
    Fault(
        "add-in-float64", "numerics.integer", ("INT-ADD",),
        "float64 is taken to be exact enough, and a small number that is added to a tie is lost.",
        "steps = rounded((terms[0] + terms[1]) / float(y.scale), exact)",
        "steps = np.rint((terms[0] + terms[1]) / float(y.scale))",
    ),
    Fault(
        "add-relu-at-code-0", "numerics.integer", ("INT-ADD",),
        "The ReLU behind an addition clamps at the code 0.",
        "int(y.zero_point) if relu else y.qmin, y.qmax)", "0 if relu else y.qmin, y.qmax)",
    ),
    Fault(
        "concat-copies-codes", "numerics.integer", ("INT-CONCAT",),
        "Joining copies memory, and codes of other grids change their meaning.",
        "np.concatenate([rescale(q, grid, y) for q, grid in parts], axis=axis)",
        "np.concatenate([checked_codes(q, 'q').astype(y.dtype) for q, grid in parts], axis=axis)",
    ),
    Fault(
        "same-scale-is-the-same-grid", "numerics.integer", ("INT-CONCAT",),
        "Codes whose scale is that of the output are copied, though their zero point is another.",
        "real = np.float64(x.scale) * (q",
        "if x.scale == y.scale and x.dtype == y.dtype:\n        return q.copy()\n    real = np.float64(x.scale) * (q",
    ),
    Fault(
        "same-grid-of-other-codes", "numerics.integer", ("INT-CONCAT",),
        "Codes with the output's scale and zero point are copied, those that the output does not have too.",
        "real = np.float64(x.scale) * (q",
        "if (x.scale, x.zero_point) == (y.scale, y.zero_point):\n        return q.copy()\n"
        "    real = np.float64(x.scale) * (q",
    ),
    Fault(
        "maxpool-chooses-the-padding", 'numerics.integer', ("INT-MAXPOOL",),
        "The border is filled with the code 0, which is larger than every negative code.",
        'ceil_mode, np.iinfo(q.dtype).min)',
        'ceil_mode, 255 if q.dtype == np.uint8 else 127)',
    ),
    Fault(
        "maxpool-compares-signed-bytes", 'numerics.integer', ("INT-MAXPOOL",),
        "Unsigned bytes are compared by an instruction for signed ones, to which 200 is -56.",
        'np.maximum(largest, view, out=largest)',
        'largest = np.maximum(largest.view(np.int8), np.ascontiguousarray(view).view(np.int8)).view(q.dtype)',
    ),
    Fault(
        "avgpool-truncates", 'numerics.integer', ("INT-AVGPOOL",),
        "An integer division of the sum cuts the fraction off.",
        'np.rint(total / counts) + grid.zero_point', 'np.trunc(total / counts) + grid.zero_point',
    ),
    Fault(
        "avgpool-pads-with-code-0", 'numerics.integer', ("INT-AVGPOOL",),
        "The raw codes are averaged, and the padding among them has the code 0.",
        'ceil_mode, 0.0)',
        'ceil_mode, -float(grid.zero_point))',
    ),
    Fault(
        "avgpool-always-counts-padding", 'numerics.integer', ("INT-AVGPOOL",),
        "The sum is divided by the size of the window, even where the layer says to count only what lies inside.",
        'padding, ceil_mode, count_include_pad)\n    return total', 'padding, ceil_mode, True)\n    return total',
    ),
]

NETWORKS = [
    Fault(
        'after-is-before', 'numerics.integer', ('INT-CONV-ANY',),
        'The padding after an axis is that before it, as in most libraries.',
        'around = [(0, 0), (0, 0), *((max(before, 0), max(after, 0)) for before, after in padding)]',
        'around = [(0, 0), (0, 0), *((max(before, 0), max(before, 0)) for before, after in padding)]',
    ),
    Fault(
        'negative-padding-ignored', 'numerics.integer', ('INT-CONV-ANY',),
        'Negative padding cuts nothing off.',
        'cut = tuple(slice(max(-before, 0), n - max(-after, 0)) for',
        'cut = tuple(slice(0, n) for',
    ),
    Fault(
        'always-float32-sums', 'numerics.integer', ('INT-CONV-ANY',),
        'Sums beyond 2^24 are formed in float32, which is faster.',
        'np.float32 if worst <= 2**24 else np.float64',
        'np.float32 if worst else np.float64',
    ),
    Fault(
        'spread-one-too-wide', 'numerics.integer', ('INT-CONV-TRANSPOSED',),
        'Behind the last input there are zeros too.',
        'sizes = [max((n - 1) * d + 1, 0) for n, d in zip(values.shape[2:], input_dilation)]',
        'sizes = [n * d for n, d in zip(values.shape[2:], input_dilation)]',
    ),
    Fault(
        'transposed-not-flipped', 'ir.float_run', ('INT-CONV-TRANSPOSED',),
        'The kernel of a transposed convolution is taken as it is stored.',
        '.flip(tuple(range(2, weight.ndim))).contiguous()',
        '.contiguous()',
    ),
    Fault(
        'transposed-groups-mixed', 'ir.float_run', ('INT-CONV-TRANSPOSED',),
        'Inputs and outputs are exchanged over all groups at once.',
        'grouped = weight.reshape(groups, first // groups, second, *kernel).transpose(1, 2)',
        'grouped = weight.reshape(first // groups, groups, second, *kernel).transpose(0, 1).transpose(1, 2)',
    ),
    Fault(
        'product-of-rounded-scales', 'numerics.integer', ('INT-MUL',),
        'The scales are multiplied and divided in float32 before the codes come in.',
        'steps = rounded(steps, lambda index: int(product[index]) * units)',
        'steps = np.rint(product * np.float64(a.scale * b.scale / y.scale))',
    ),
    Fault(
        'product-ties-away', 'numerics.integer', ('INT-MUL',),
        'Half a step is rounded away from zero.',
        'steps = rounded(steps, lambda index: int(product[index]) * units)',
        'steps = np.sign(steps) * np.floor(np.abs(steps) + 0.5)',
    ),
    Fault(
        'sums-repeat-from-the-left', 'engines.reference', ('INT-BROADCAST',),
        "A sum's shorter shape is repeated along the wrong axes.",
        '    a, b = np.broadcast_arrays(values[step.a], values[step.b])\n    return add(',
        '    a, b = values[step.a], np.resize(values[step.b], values[step.a].shape)\n    return add(',
    ),
    Fault(
        'products-repeat-the-values', 'engines.reference', ('INT-BROADCAST',),
        "A product's second factor is repeated value after value until it is as long.",
        '    a, b = np.broadcast_arrays(values[step.a], values[step.b])\n    return mul(',
        '    a, b = values[step.a], np.resize(values[step.b], values[step.a].shape)\n    return mul(',
    ),
    Fault(
        'last-window-begins-outside', 'numerics.windows', ('INT-POOL-WINDOWS',),
        'With ceil_mode a window that begins in the padding behind the input counts.',
        '    if ceil_mode and (count - 1) * stride >= length + padding:\n        count -= 1\n',
        '',
    ),
    Fault(
        'beyond-the-padding-counts', 'numerics.windows', ('INT-POOL-WINDOWS', 'INT-AVGPOOL'),
        'Positions beyond the padding count as if they were padding.',
        'low, high = (-p, n + p) if include_pad else (0, n)',
        'low, high = (-p, n + p + k) if include_pad else (0, n)',
    ),
    Fault(
        'mean-parts-end-early', 'numerics.windows', ('INT-MEAN',),
        'Parts of an axis do not overlap where it cannot be split evenly.',
        'return index * length // parts, -(-(index + 1) * length // parts)',
        'return index * length // parts, max((index + 1) * length // parts, index * length // parts + 1)',
    ),
    Fault(
        'mean-of-codes-rounded', 'numerics.dialects.operations', ('INT-MEAN',),
        'Codes are averaged with their zero point, which decides ties.',
        '        return integer.average(total, positions, grid)\n    return saturate(AVERAGE[rules.mean_rule]',
        '        return np.rint(total / positions + grid.zero_point).astype(grid.dtype)\n'
        '    return saturate(AVERAGE[rules.mean_rule]',
    ),
    Fault(
        'table-in-float32-of-halves', 'ptq.conversion', ('INT-TABLE',),
        'The table is computed at the middle between two codes.',
        '* (codes - int(x.zero_point)))',
        '* (codes + 0.5 - int(x.zero_point)))',
    ),
    Fault(
        'table-without-zero-point', 'ptq.conversion', ('INT-TABLE',),
        'The table takes codes for steps from zero.',
        '* (codes - int(x.zero_point)))',
        '* codes)',
    ),
    Fault(
        'positions-rounded-down', 'numerics.bilinear', ('INT-BILINEAR-PLACES',),
        'Positions are cut to 256ths.',
        'return whole + (2 * rest > b or (2 * rest == b and whole % 2))',
        'return whole',
    ),
    Fault(
        'factor-for-lengths', 'numerics.bilinear', ('INT-BILINEAR-PLACES',),
        'Positions follow from the lengths where a factor is given.',
        'ratio = Fraction(n, m) if factor is None else 1 / Fraction(factor)',
        'ratio = Fraction(n, m)',
    ),
    Fault(
        'between-rounded-per-axis', 'numerics.bilinear', ('INT-BILINEAR',),
        'What lies between two rows is rounded to codes before columns are looked at.',
        'values = weighted(values, rows, 2)\n',
        'values = np.rint(weighted(values, rows, 2) / 256) * 256\n',
    ),
    Fault(
        'between-without-zero-point', 'numerics.bilinear', ('INT-BILINEAR',),
        'Codes are averaged with their zero point, which decides ties.',
        '(np.rint(values / np.float32(UNIT**2)) + np.float32(grid.zero_point))',
        'np.rint(values / np.float32(UNIT**2) + np.float32(grid.zero_point))',
    ),
    Fault(
        'tables-of-the-next-channel', 'numerics.integer', ('INT-TABLE-CHANNEL',),
        'Tables lie one channel further than the channels.',
        'along(1, np.arange(len(table)), q.shape)',
        'along(1, (np.arange(len(table)) + 1) % len(table), q.shape)',
    ),
    Fault(
        'one-table-for-all-channels', 'ptq.conversion', ('INT-TABLE-CHANNEL',),
        'The first slope is taken for all channels.',
        'values = np.ascontiguousarray(values.T)',
        'values = np.ascontiguousarray(values.T)\n'
        '    values = values if node.channels is None else np.repeat(values[:1], node.channels, 0)',
    ),
]

FAULTS = [*ACCUMULATORS, *BIAS, *REQUANTIZE, *LINEAR, *FIXED_POINT, *CONVOLUTION, *JOINING, *NETWORKS]
