"""Faults in scale, zero point, quantize, dequantize and qparams (chapter 1)."""

from faults.fault import Fault

ROUND_AND_ADD = "codes = saturate(np.rint(steps) + along(axis, zero_point, x.shape), qmin, qmax)"
QUOTIENT = "steps = np.divide(x, along(axis, scale, x.shape), dtype=np.float64)"

CODES = [
    Fault(
        "signed-codes-narrow", "numerics.affine", ("AFF-CODES",),
        "TensorFlow's narrow range leaves out the lowest signed code, for activations too where somebody copies it.",
        "(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed",
        "(1 - (1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed",
    ),
    Fault(
        "qmax-is-the-count", "numerics.affine", ("AFF-CODES",),
        "Whoever takes the number of codes for the largest code has one that no byte holds.",
        "else (0, (1 << bits) - 1)", "else (0, 1 << bits)",
    ),
    Fault(
        "one-bit-is-allowed", "numerics.affine", ("AFF-BITS",),
        "Binary networks exist, so somebody lets one bit through, which leaves a signed code nothing above zero.",
        "range(2, 9)", "range(1, 9)",
    ),
    Fault(
        "sixteen-bits-are-allowed", "numerics.affine", ("AFF-BITS",),
        "int16 activations exist elsewhere, so somebody lets any width through, which does not fit a byte.",
        "range(2, 9)", "range(2, 17)",
    ),
    Fault(
        "dequantize-multiplies-out", "numerics.affine", ("AFF-MEANING",),
        "scale * q - scale * zero_point looks the same and saves a subtraction, but rounds three times.",
        "return steps * along(axis, scale, q.shape)",
        "return q.astype(np.float32) * along(axis, scale, q.shape) "
        "- (along(axis, scale, q.shape) * along(axis, zero_point, q.shape)).astype(np.float32)",
    ),
    Fault(
        "dequantize-wraps", "numerics.affine", ("AFF-MEANING", "AFF-ROUNDTRIP"),
        "Subtracting the zero point in the code's own eight bits wraps around.",
        "steps = (q.astype(np.int32) - along(axis, zero_point, q.shape)).astype(np.float32)",
        "steps = (q.astype(np.int32) - along(axis, zero_point, q.shape)).astype(np.int8).astype(np.float32)",
    ),
    Fault(
        "dequantize-without-zero-point", "numerics.affine", ("AFF-MEANING", "AFF-ZERO", "AFF-ROUNDTRIP"),
        "Symmetric code forgets the zero point where it is not 0.",
        "(q.astype(np.int32) - along(axis, zero_point, q.shape)).astype(np.float32)", "q.astype(np.float32)",
    ),
    Fault(
        "dequantize-to-the-middle", "numerics.affine", ("AFF-MEANING", "AFF-ZERO"),
        "A mid-rise quantizer stands for the middle between two codes, and has no exact zero.",
        "return steps * along(axis, scale, q.shape)", "return (steps + np.float32(0.5)) * along(axis, scale, q.shape)",
    ),
    Fault(
        "float32-rounded-twice", "numerics.affine", ("OBS-AVERAGE",),
        "Rounding an exact value to float64 and then to float32 rounds twice.",
        "return min(candidates, key=distance)", "return nearest",
    ),
    Fault(
        "zero-point-may-be-any-integer", "numerics.affine", ("AFF-ZERO-POINT",),
        "A zero point outside the codes is taken as it is, and the real number 0 has no code.",
        "np.all((points >= qmin) & (points <= qmax) & (points == np.round(points)))",
        "np.all(points == np.round(points))",
    ),
    Fault(
        "zero-point-may-be-a-fraction", "numerics.affine", ("AFF-ZERO-POINT",),
        "Some formats store zero points as floats, and a cast drops their fraction silently.",
        "(points <= qmax) & (points == np.round(points))", "(points <= qmax)",
    ),
    Fault(
        "subnormal-scales", "numerics.affine", ("AFF-SCALE",),
        "Any positive float32 passes, subnormal ones whose reciprocal overflows too.",
        "SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, 2.0**119", "SMALLEST_SCALE, LARGEST_SCALE = 2.0**-149, 2.0**119",
    ),
    Fault(
        "scale-without-a-top", "numerics.affine", ("AFF-SCALE", "AFF-RANGE-HUGE"),
        "Any large scale passes, though codes far from the zero point are then infinite.",
        "SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, 2.0**119", "SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, np.inf",
    ),
    Fault(
        "negative-scales", "numerics.affine", ("AFF-SCALE",),
        "Only the size of a scale is looked at, not its sign.",
        "np.all((scale >= SMALLEST_SCALE) & (scale <= LARGEST_SCALE))",
        "np.all((np.abs(scale) >= SMALLEST_SCALE) & (np.abs(scale) <= LARGEST_SCALE))",
    ),
]

QUANTIZE = [
    Fault(
        "reciprocal-for-division", "numerics.affine", ("AFF-NEAREST",),
        "Kernels multiply by 1 / scale in float32, because that is fast, and land on the other side of ties.",
        QUOTIENT,
        'with np.errstate(over="ignore"):\n'
        '        steps = (x * (np.float32(1) / along(axis, scale, x.shape))).astype(np.float64)',
    ),
    Fault(
        "quotient-in-float32", "numerics.affine", ("AFF-NEAREST",),
        "Dividing in float32 rounds quotients onto ties that they only came close to.",
        QUOTIENT,
        'with np.errstate(over="ignore"):\n'
        '        steps = np.divide(x, along(axis, scale, x.shape), dtype=np.float32).astype(np.float64)',
    ),
    Fault(
        "truncate", "numerics.affine", ("AFF-NEAREST", "AFF-ERROR"),
        "A cast to an integer without rounding cuts the fraction off.",
        ROUND_AND_ADD, ROUND_AND_ADD.replace("np.rint", "np.trunc"),
    ),
    Fault(
        "floor", "numerics.affine", ("AFF-NEAREST", "AFF-ERROR", "AFF-SYMMETRY"),
        "An arithmetic shift right rounds downward, negative numbers away from zero.",
        ROUND_AND_ADD, ROUND_AND_ADD.replace("np.rint", "np.floor"),
    ),
    Fault(
        "ties-away", "numerics.affine", ("AFF-TIES",),
        "C's round() and LiteRT's reference kernels move every tie away from zero.",
        ROUND_AND_ADD, ROUND_AND_ADD.replace("np.rint(steps)", "np.copysign(np.floor(np.abs(steps) + 0.5), steps)"),
    ),
    Fault(
        "ties-up", "numerics.affine", ("AFF-TIES", "AFF-SYMMETRY"),
        "floor(x + 0.5) moves every tie upward, and shifts every average with them.",
        ROUND_AND_ADD, ROUND_AND_ADD.replace("np.rint(steps)", "np.floor(steps + 0.5)"),
    ),
    Fault(
        "zero-point-before-rounding", "numerics.affine", ("AFF-ORDER", "AFF-TIES"),
        "torch.quantize_per_tensor adds the zero point to the quotient and rounds the sum, so that ties depend on it.",
        ROUND_AND_ADD, "codes = np.clip(np.rint(steps + along(axis, zero_point, x.shape)), qmin, qmax)",
    ),
    Fault(
        "half-and-cast", "numerics.affine", ("AFF-ORDER", "AFF-NEAREST", "AFF-TIES"),
        "(int)(x / scale + zero_point + 0.5) truncates towards zero, so that rounding depends on the sign of the code.",
        ROUND_AND_ADD, "codes = np.clip(np.trunc(steps + along(axis, zero_point, x.shape) + 0.5), qmin, qmax)",
    ),
    Fault(
        "wrap-for-saturate", "numerics.affine", ("AFF-SATURATE", "AFF-INFINITY", "AFF-MONOTONE"),
        "A cast to the code's type without a clamp keeps the lowest eight bits.",
        ROUND_AND_ADD,
        "codes = (np.rint(np.clip(steps, -(2.0**40), 2.0**40)) + along(axis, zero_point, x.shape)).astype(np.int64)",
    ),
    Fault(
        "int32-before-clamp", "numerics.affine", ("AFF-SATURATE", "AFF-INFINITY", "AFF-MONOTONE"),
        "x86 converts what int32 cannot hold to -2^31, and the clamp comes too late: huge values get the lowest code.",
        ROUND_AND_ADD,
        ROUND_AND_ADD.replace("np.rint(steps)", "np.where(np.abs(steps) < 2.0**31, np.rint(steps), -(2.0**31))"),
    ),
    Fault(
        "clamp-before-zero-point", "numerics.affine", ("AFF-SATURATE", "AFF-ROUNDTRIP", "AFF-ERROR"),
        "Whoever clamps the steps and adds the zero point afterwards leaves the codes, or does not reach their ends.",
        ROUND_AND_ADD, "codes = np.clip(np.rint(steps), qmin, qmax) + along(axis, zero_point, x.shape)",
    ),
    Fault(
        "narrow-range", "numerics.affine", ("AFF-SATURATE", "AFF-INFINITY", "AFF-ROUNDTRIP", "AFF-ERROR"),
        "A narrow range everywhere, as TensorFlow has it for weights, never uses the code qmin.",
        ROUND_AND_ADD, ROUND_AND_ADD.replace("qmin, qmax", "qmin + 1, qmax"),
    ),
    Fault(
        "infinity-is-refused", "numerics.affine", ("AFF-INFINITY",),
        "Whoever checks for finite values instead of for NaN refuses infinities, which have a code.",
        "if np.isnan(steps).any():", "if not np.isfinite(steps).all():",
    ),
    Fault(
        "nan-is-zero", "numerics.affine", ("AFF-NAN",),
        "Sanitizing the input first turns NaN into 0, a measurement from there on.",
        "if np.isnan(steps).any():",
        "steps = np.nan_to_num(steps, nan=0.0, posinf=np.inf, neginf=-np.inf)\n    if np.isnan(steps).any():",
    ),
    Fault(
        "nan-in-the-first-vector-only", "numerics.affine", ("AFF-NAN",),
        "A vectorised check looks at its first 16 values, and lets a NaN behind them through.",
        "if np.isnan(steps).any():",
        "steps = np.where(np.isnan(steps) & (np.arange(steps.size).reshape(steps.shape) >= 16), qmin, steps)\n"
        "    if np.isnan(steps).any():",
    ),
    Fault(
        "tail-rounds-otherwise", "numerics.affine", ("AFF-ELEMENT", "AFF-TIES"),
        "Whole vectors of 16 are rounded by an instruction, "
        "and what is left over by C's round(), which moves ties away from zero.",
        ROUND_AND_ADD,
        "tail = np.arange(steps.size).reshape(steps.shape) >= steps.size // 16 * 16\n    "
        + ROUND_AND_ADD.replace(
            "np.rint(steps)",
            "np.where(tail, np.copysign(np.floor(np.abs(steps) + 0.5), steps), np.rint(steps))",
        ),
    ),
    Fault(
        "elements-in-memory-order", "numerics.affine", ("AFF-ELEMENT",),
        "A kernel reads memory from front to back, whatever the strides of the array.",
        QUOTIENT, f'x = x.ravel(order="K").reshape(x.shape)\n    {QUOTIENT}',
    ),
    Fault(
        "dequantized-in-memory-order", "numerics.affine", ("AFF-ELEMENT",),
        "A kernel reads codes from front to back, whatever the strides of their array.",
        "    return steps * along(axis, scale, q.shape)",
        '    steps = steps.ravel(order="K").reshape(q.shape)\n    return steps * along(axis, scale, q.shape)',
    ),
]

CHANNELS = [
    Fault(
        "scale-of-channel-0", "numerics.affine", ("AFF-CHANNEL",),
        "A kernel written per tensor reads the first scale for every channel.",
        QUOTIENT,
        QUOTIENT.replace("scale, x.shape", "np.resize(scale[:1], scale.shape) if scale.ndim else scale, x.shape"),
    ),
    Fault(
        "zero-point-of-channel-0", "numerics.affine", ("AFF-CHANNEL",),
        "Per-channel weights nearly always share a zero point, so somebody reads the first for every channel.",
        ROUND_AND_ADD,
        ROUND_AND_ADD.replace(
            "zero_point, x",
            "np.resize(zero_point[:1], zero_point.shape) if zero_point.ndim else zero_point, x",
        ),
    ),
    Fault(
        "channels-along-the-last-axis", "numerics.affine", ("AFF-CHANNEL",),
        "NumPy broadcasts a vector along the last axis, wherever the channels are.",
        "if i != axis % len(shape)]", "if i != (axis % len(shape) if shape[-1] != channels.size else len(shape) - 1)]",
    ),
    Fault(
        "per-channel-order", "numerics.affine", ("AFF-CHANNEL", "AFF-ONE-CHANNEL"),
        "torch.quantize_per_channel adds the zero point before rounding where quantizing per tensor adds it after.",
        ROUND_AND_ADD,
        "codes = np.rint(steps) if axis is None else np.rint(steps + along(axis, zero_point, x.shape)) "
        "- along(axis, zero_point, x.shape)\n    "
        + ROUND_AND_ADD.replace("np.rint(steps)", "codes"),
    ),
    Fault(
        "per-channel-reciprocal", "numerics.affine", ("AFF-CHANNEL", "AFF-ONE-CHANNEL"),
        "The loop over channels takes 1 / scale out, once for each channel, and rounds it.",
        QUOTIENT,
        f'{QUOTIENT}\n    with np.errstate(over="ignore"):\n'
        "        steps = steps if axis is None "
        "else (x * (np.float32(1) / along(axis, scale, x.shape))).astype(np.float64)",
    ),
    Fault(
        "one-scale-for-all-channels", "numerics.affine", ("AFF-CHANNEL-COUNT",),
        "Broadcasting stretches a single scale over any number of channels.",
        "if channels.size != shape[axis]:", "if channels.size not in (1, shape[axis]):",
    ),
    Fault(
        "surplus-scales-are-ignored", "numerics.affine", ("AFF-CHANNEL-COUNT",),
        "A loop over the channels never looks at the scales behind the last.",
        "if channels.size != shape[axis]:", "channels = channels[: shape[axis]]\n    if channels.size != shape[axis]:",
    ),
]

EXTEND = "low, high = np.minimum(low, 0), np.maximum(high, 0)"
EXTENT = "(last - first) / steps, lambda i: (Fraction(last[i]) - Fraction(first[i])) / steps"
SCALES = "scale = np.where(ends[0] == ends[1], np.float32(1), np.maximum(scale, np.float32(SCALE_FLOOR)))"
ZERO_POINT = "qmin - np.rint(np.divide(low, scale, dtype=np.float64))"

RANGES = [
    Fault(
        "zero-not-included", "numerics.affine", ("AFF-RANGE-ZERO", "AFF-RANGE-COVERS"),
        "The range is taken as it was seen, so that a one-sided one has no exact zero.",
        EXTEND, "low, high = low, high",
    ),
    Fault(
        "only-the-minimum-includes-zero", "numerics.affine", ("AFF-RANGE-ZERO",),
        "Whoever thinks of activations behind a ReLU pulls the minimum down to 0 and forgets ranges below zero.",
        EXTEND, "low, high = np.minimum(low, 0), high",
    ),
    Fault(
        "range-over-the-number-of-codes", "numerics.affine", ("AFF-RANGE-SCALE", "AFF-RANGE-COVERS"),
        "Dividing the range by 256 codes instead of 255 steps leaves its end a whole step outside.",
        "steps = qmax - qmin\n", "steps = qmax - qmin + 1\n",
    ),
    Fault(
        "extent-in-float32", "numerics.affine", ("AFF-RANGE-SCALE",),
        "maximum - minimum in float32 rounds before the division rounds again.",
        EXTENT,
        "(last - first).astype(np.float32) / np.float64(steps), "
        "lambda i: Fraction(float(np.float32(last[i] - first[i]))) / steps",
    ),
    Fault(
        "scale-rounded-down-at-ties", "numerics.affine", ("AFF-RANGE-SCALE",),
        "A quotient that lies too close to the middle of two float32 for float64 to tell is not looked at again.",
        "for i in np.flatnonzero(below != above):", "for i in ():",
    ),
    Fault(
        "zero-point-half-up", "numerics.affine", ("AFF-RANGE-ZERO-POINT",),
        "Jacob et al. (2018) round the zero point half up.",
        ZERO_POINT, "qmin + np.floor(np.divide(-low, scale, dtype=np.float64) + 0.5)",
    ),
    Fault(
        "zero-point-of-unrounded-scale", "numerics.affine", ("AFF-RANGE-ZERO-POINT",),
        "The zero point comes from the scale before its rounding "
        "to float32, which sees a tie at every symmetric range.",
        ZERO_POINT,
        "qmin - np.rint(low.astype(np.float64) * (qmax - qmin) "
        "/ np.where(high > low, high.astype(np.float64) - low, 1))",
    ),
    Fault(
        "zero-point-truncated", "numerics.affine", ("AFF-RANGE-ZERO-POINT", "AFF-RANGE-COVERS"),
        "A cast without rounding cuts the zero point's fraction off, "
        "and an end of the range sticks out by up to a whole step.",
        ZERO_POINT, ZERO_POINT.replace("np.rint", "np.trunc"),
    ),
    Fault(
        "empty-range-has-the-floor", "numerics.affine", ("AFF-RANGE-EMPTY",),
        "A range of nothing but zero falls to the smallest scale, as in torch's min-max observer.",
        SCALES, "scale = np.maximum(scale, np.float32(SCALE_FLOOR))",
    ),
    Fault(
        "empty-range-has-a-tenth", "numerics.affine", ("AFF-RANGE-EMPTY",),
        "torch's dynamic quantization takes 0.1 where there is no range.",
        SCALES, SCALES.replace("np.float32(1)", "np.float32(0.1)"),
    ),
    Fault(
        "floor-of-torch", "numerics.affine", ("AFF-RANGE-TINY", "AFF-RANGE-SCALE"),
        "torch's min-max observer keeps scales at 2^-23 or above, which is coarse for small ranges.",
        "SCALE_FLOOR = 2.0**-63", "SCALE_FLOOR = 2.0**-23",
    ),
    Fault(
        "floor-at-the-smallest-normal", "numerics.affine", ("AFF-RANGE-TINY",),
        "With the smallest normal number as the floor, the product of two scales underflows.",
        "SCALE_FLOOR = 2.0**-63", "SCALE_FLOOR = 2.0**-126",
    ),
    Fault(
        "too-wide-a-range-is-cut", "numerics.affine", ("AFF-RANGE-HUGE",),
        "A scale beyond the largest becomes the largest, and the ends of the range are lost in silence.",
        SCALES,
        SCALES.replace(
            "np.maximum(scale, np.float32(SCALE_FLOOR))",
            "np.clip(scale, np.float32(SCALE_FLOOR), np.float32(LARGEST_SCALE))",
        ),
    ),
    Fault(
        "ends-are-sorted", "numerics.affine", ("AFF-RANGE-ORDER",),
        "A minimum above the maximum is swapped silently, which hides that the data is broken.",
        "    if np.any(low > high):",
        "    low, high = np.minimum(low, high), np.maximum(low, high)\n    if np.any(low > high):",
    ),
    Fault(
        "nan-ends-count-as-zero", "numerics.affine", ("AFF-RANGE-ORDER",),
        "fmin and fmax skip a NaN, so that a range with one looks one-sided.",
        "    if not (np.isfinite(low).all() and np.isfinite(high).all()):\n"
        "        raise ValueError(f\"minimum, maximum",
        "    low, high = (np.where(np.isnan(end), np.float32(0), end) for end in (low, high))\n"
        "    if not (np.isfinite(low).all() and np.isfinite(high).all()):\n"
        "        raise ValueError(f\"minimum, maximum",
    ),
]

CENTRE = "center = (qmin + qmax + 1) // 2"
SYMMETRIC_STEPS = "steps = min(center - qmin, qmax - center)"

SYMMETRIC = [
    Fault(
        "symmetric-half-steps", "numerics.affine", ("AFF-SYMMETRIC", "AFF-NARROW"),
        "torch divides symmetric ranges by 127.5, and the negative end rounds to the odd code.",
        SYMMETRIC_STEPS, "steps = Fraction(qmax - qmin, 2)",
    ),
    Fault(
        "symmetric-by-the-longer-side", "numerics.affine", ("AFF-SYMMETRIC", "AFF-NARROW"),
        "Dividing by the 128 negative codes pushes +maximum off the end and uses -128.",
        SYMMETRIC_STEPS, "steps = max(center - qmin, qmax - center)",
    ),
    Fault(
        "symmetric-by-the-maximum", "numerics.affine", ("AFF-SYMMETRIC", "AFF-NARROW"),
        "Whoever forgets the minimum's size cuts off weights that are larger below zero than above.",
        "np.maximum(np.abs(low), np.abs(high))", "np.maximum(high, 0)",
    ),
    Fault(
        "symmetric-centre-rounded-down", "numerics.affine", ("AFF-SYMMETRIC",),
        "(0 + 255) // 2 is 127, one code below the centre of unsigned codes.",
        CENTRE, "center = (qmin + qmax) // 2 if qmin == 0 else 0",
    ),
]

FAULTS = [*CODES, *QUANTIZE, *CHANNELS, *RANGES, *SYMMETRIC]
