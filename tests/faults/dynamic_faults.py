"""Faults in dynamic quantization (chapter 6). Two more against DYN-NO-CALIBRATION are among those of chapter 5."""

from faults.fault import Fault

FINITE = "finite = np.isfinite(x).all(-1)"
ENDS = "low, high = np.asarray(x.min()), np.asarray(x.max())"
EXACT_GRID = "grid = affine.qparams(low, high, qmin=0, qmax=127 if reduce_range else 255, symmetric=False)"
EXACT_OUTPUT = "    unit = np.float64(np.float32(s_x)) * s_w.astype(np.float64)  # exact: 48 bits\n"
NO_BIAS = (
    "codes, scale, grid = self.quantize_dynamic(x, reduce_range=reduce_range)\n"
    "        bias = np.zeros(len(w_q), np.float32) if bias is None"
)

FAULTS = [
    Fault(
        "dynamic-range-of-the-first-row", "numerics.dialects.dialect", ("DYN-RANGE", "DYN-STATIC"),
        "The range is measured on the first row, as if all were alike.",
        ENDS, "low, high = np.asarray(x[:1].min()), np.asarray(x[:1].max())",
    ),
    Fault(
        "dynamic-range-from-deviation", "numerics.dialects.dialect", ("DYN-RANGE", "DYN-BATCH"),
        "Three standard deviations about the mean stand for the range, and every row moves them.",
        ENDS,
        "middle, away = x.mean(dtype=np.float64), 3 * x.std(dtype=np.float64)\n"
        "        low, high = np.maximum(x.min(), np.float32(middle - away)), "
        "np.minimum(x.max(), np.float32(middle + away))",
    ),
    Fault(
        "dynamic-activations-symmetric", "numerics.dialects.dialect", ("DYN-RANGE", "DYN-STATIC"),
        "Inputs get a symmetric grid, of which one behind a ReLU uses half.",
        EXACT_GRID, EXACT_GRID.replace("False", "True"),
    ),
    Fault(
        "dynamic-weights-per-tensor", 'ptq.dynamic', ("DYN-WEIGHT",),
        "Dynamic layers ignore the option and give all channels one scale.",
        'options = checked(per_channel=per_channel,', 'options = checked(per_channel=False,',
    ),
    Fault(
        "dynamic-bias-quantized", "numerics.dialects.float_output", ("DYN-OUTPUT",),
        "The bias is rounded to the accumulator's unit, as in a static layer.",
        EXACT_OUTPUT, f"{EXACT_OUTPUT}    bias = np.rint(bias / unit) * unit\n",
    ),
    Fault(
        "dynamic-output-rounds-twice", "numerics.dialects.float_output", ("DYN-OUTPUT",),
        "The product is rounded to float32 before the bias is added to it.",
        EXACT_OUTPUT,
        "    return (accumulator * (np.float64(np.float32(s_x)) * s_w.astype(np.float64))).astype(np.float32) "
        f"+ bias\n{EXACT_OUTPUT}",
    ),
    Fault(
        "dynamic-output-in-float64", "numerics.dialects.float_output", ("DYN-OUTPUT",),
        "The sum is rounded to float64 first and to float32 again, and what cancels loses its digits.",
        "doubtful = (real - slack).astype(np.float32) != (real + slack).astype(np.float32)",
        "doubtful = np.zeros(real.shape, bool)",
    ),
    Fault(
        "no-inputs-no-bias", "numerics.dialects.dialect", ("DYN-ZERO-INPUTS",),
        "A layer without input features gives zeros, as an empty sum is 0.",
        NO_BIAS, NO_BIAS.replace("if bias is None", "if bias is None or not np.size(x)"),
    ),
    Fault(
        "dynamic-nan-is-zero", "engines.reference_dynamic", ("DYN-FINITE",),
        "NaN is replaced by 0 before the range is measured.",
        FINITE, f"x = np.where(np.isnan(x), np.float32(0), x)\n    {FINITE}",
    ),
    Fault(
        "dynamic-infinity-is-cut", "engines.reference_dynamic", ("DYN-FINITE",),
        "Infinities become the largest float32, which leaves the other rows no grid.",
        FINITE, f"x = np.nan_to_num(x, nan=np.nan)\n    {FINITE}",
    ),
    Fault(
        "dynamic-range-remembered", "numerics.dialects.dialect", ("DYN-STATELESS", "DYN-RANGE"),
        "An observer stays on, and the range is that of everything that ever came.",
        f"        {ENDS}",
        f"        {ENDS}\n"
        "        if np.isfinite(low) and np.isfinite(high):\n"
        "            low, high = np.minimum(low, ACCUMULATE.get('low', low)), "
        "np.maximum(high, ACCUMULATE.get('high', high))\n"
        "            ACCUMULATE.update(low=low, high=high)",
    ),
    Fault(
        'rows-share-the-first-range', 'engines.reference_dynamic', ('DYN-ROWS',),
        'All rows are quantized at once though each was to have its range.',
        '    if not rows or len(x) == 1:',
        '    if True:',
    ),
    Fault(
        'weight-only-quantizes-inputs', 'ptq.dynamic', ('DYN-WEIGHT-ONLY',),
        'Without a choice for activations they are quantized as usual.',
        '        if activations is None:\n            return LinearWeight',
        '        if activations == 0:\n            return LinearWeight',
    ),
    Fault(
        "weight-only-sums-in-float64", "numerics.weight_only", ("DYN-WEIGHT-ONLY",),
        "Sums in float64 are taken for exact, and rounded to float32.",
        "doubtful = np.isfinite(off) &", "doubtful = np.zeros(off.shape, bool) &",
    ),
    Fault(
        "weight-only-rounds-weights", "numerics.weight_only", ("DYN-WEIGHT-ONLY",),
        "Weights are dequantized to float32 before they are multiplied.",
        "codes = w_q[part].astype(np.float64) - point[part, None]",
        "codes = ((w_q[part] - point[part, None]).astype(np.float32) * scale[part, None]).astype(np.float64) / "
        "scale[part, None].astype(np.float64)",
    ),
    Fault(
        "many-low-bytes-left-out", "kernels.weight_only", ("DYN-WEIGHT-ONLY",),
        "Low bytes are multiplied in the steps of a list, and nowhere where there are too many for that.",
        "lambda: emit.zext(emit.not_(lists_much(emit, op)), I64)", "lambda: I64(1)",
    ),
    Fault(
        "few-low-bytes-left-out", "kernels.weight_only", ("DYN-WEIGHT-ONLY",),
        "The last step in the list of those with low bytes is not multiplied.",
        "emit.loop(emit.int_at(entries, I64(0)), [emit.splat(0, INTS)] * (LOW * blocks), step)",
        "emit.loop(emit.sub(emit.int_at(entries, I64(0)), I64(1)), [emit.splat(0, INTS)] * (LOW * blocks), step)",
    ),
    Fault(
        "low-bytes-of-three-lanes", "kernels.weight_only", ("DYN-WEIGHT-ONLY",),
        "A step is listed for the low bytes of its first three inputs alone.",
        "I64(15 << 4 * four)", "I64(7 << 4 * four)",
    ),
    Fault(
        'embedding-per-tensor', 'ptq.conversion', ('DYN-EMBEDDING',),
        'A table of embeddings has one scale.',
        'codes, grid = Weights(replace(options, per_channel=True)).codes(node.weight, node.layer)',
        'codes, grid = Weights(replace(options, per_channel=False)).codes(node.weight, node.layer)',
    ),
    Fault(
        "outside-is-the-first-row", "engines.compiled.embedding", ("DYN-EMBEDDING",),
        "What the kernel says about an index outside the table is not asked.",
        "if len(index) and not self.table.rows(", "if len(index) and None is self.table.rows(",
    ),
    Fault(
        "bags-round-products", "numerics.bags", ("DYN-BAG",),
        "A row of a bag is dequantized before it is added, so that it is rounded twice.",
        "fma(codes, factor[:, None], result[longer])", "codes.astype(np.float32) * factor[:, None] + result[longer]",
    ),
    Fault(
        "compiled-bags-have-padding", "engines.compiled.embedding", ("DYN-BAG",),
        "The kernel is not told which index stands for padding.",
        "padding = -1 if step.padding_idx is None else step.padding_idx", "padding = -1",
    ),
    Fault(
        'state-has-the-inputs-range', 'engines.reference_dynamic', ('DYN-RECURRENT',),
        'The gates of the state are added to the state and not to those of the input.',
        'now = KINDS[step.kind](gates[index],',
        'now = KINDS[step.kind](gates[index] * 0 if step.kind == "rnn_relu" else gates[index],',
    ),
    Fault(
        "packed-backwards-from-first", "engines.reference_dynamic", ("DYN-PACKED",),
        "A direction that reads backwards takes the steps in order.",
        "in reversed(by_step) if backward else by_step:", "in by_step:",
    ),
    Fault(
        "keys-share-a-scale", "numerics.attention", ("DYN-ATTENTION",),
        "All rows have the scale of the largest value.",
        "largest = np.abs(x).max(axis, keepdims=True)", "largest = np.abs(x).max((-2, -1), keepdims=True)",
    ),
    Fault(
        "scores-in-another-order", "kernels.attention", ("DYN-ATTENTION",),
        "The kernel multiplies the scales of a query and of a key with each other first.",
        "emit.fmul(emit.fmul(emit.sitofp(total, FLOATS), unit), emit.read(emit.add(key_scales, at), FLOATS))",
        "emit.fmul(emit.sitofp(total, FLOATS), emit.fmul(unit, emit.read(emit.add(key_scales, at), FLOATS)))",
    ),
    Fault(
        "heads-from-the-first", "engines.compiled.attention", ("DYN-ATTENTION",),
        "Every thread begins with the first head.",
        "            turn[0] = first\n", "            turn[0] = 0\n",
    ),
    Fault(
        "weights-of-8-bits", "numerics.attention", ("DYN-ATTENTION-BOUND", "DYN-ATTENTION"),
        "Weights of attention have 8 bits.",
        "CODES, WEIGHTS = 127, 65535", "CODES, WEIGHTS = 127, 255",
    ),
    Fault(
        "hidden-keys-are-seen", "numerics.attention", ("DYN-ATTENTION-FLOAT",),
        "A query of which no key is visible attends to all of them.",
        "    if not np.isfinite(greatest).all():\n        return None\n",
        "    scores = np.where(np.isfinite(greatest), scores, np.float32(0))\n"
        "    greatest = np.where(np.isfinite(greatest), greatest, np.float32(0))\n",
    ),
    Fault(
        "attention-in-every-dialect", "ptq.attending", ("DYN-ATTENTION-FLOAT",),
        "Attention is computed in integers whatever the dialect.",
        'if network.dialect != "onnx":', 'if network.dialect == "":',
    ),
    Fault(
        "large-values-have-codes", "kernels.attention", ("DYN-ATTENTION-FLOAT",),
        "The kernel gives codes to values of any size.",
        "TOO_LARGE = float_bits(LARGEST)", "TOO_LARGE = 0x7FFFFFFF",
    ),
    Fault(
        "heads-begin-at-their-base", "engines.compiled.heads", ("DYN-ATTENTION",),
        "Queries, keys and values of one tensor are taken from its start.",
        "[starts[number] + apart for number, apart in ready.places]", "[starts[number] for number, _ in ready.places]",
    ),
    Fault(
        "weights-over-any-axis", "ptq.attending", ("DYN-ATTENTION",),
        "A softmax over any axis makes weights of attention.",
        "return call if dim == -1 or axes is not None and dim == axes - 1 else None", "return call",
    ),
    Fault(
        "any-score-that-is-set-is-low", "ir.attention", ("DYN-ATTENTION",),
        "A key whose score is set to any number is taken for hidden.",
        "return isinstance(value, (int, float)) and value <= HIDDEN", "return isinstance(value, (int, float))",
    ),
    Fault(
        "state-of-the-call-before", "engines.compiled.recurrent", ("DYN-RECURRENT",),
        "A whole sequence begins from the state that the last one ended with.",
        "in zip(self.present, before or itertools.repeat(0)):", "in zip(self.present, before or self.present):",
    ),
    Fault(
        "samples-taken-for-steps", "engines.compiled.recurrent", ("DYN-RECURRENT",),
        "Whole sequences are read as if their samples were steps.",
        "Shape(second, first, True) if by_sample", "Shape(first, second, False) if by_sample",
    ),
    Fault(
        "state-is-the-engines-own", "engines.compiled.recurrent", ("DYN-RECURRENT",),
        "The state that is returned is the memory that the next call writes to.",
        "torch.from_numpy(self.present.copy())", "torch.from_numpy(self.present)",
    ),
    Fault(
        "packed-backwards-in-order", "engines.compiled.recurrent", ("DYN-PACKED",),
        "Backwards, only steps with as many sequences are run from the last one to the first.",
        "            self.turns.reverse()\n", "            pass\n",
    ),
    Fault(
        "states-of-sequences-that-ended", "engines.compiled.recurrent", ("DYN-PACKED",),
        "A step of a packed sequence has the states of all sequences, whose range is another one.",
        "quantize.count = product.product.rows = cell.rows", "product.product.rows = cell.rows",
    ),
    Fault(
        "fused-encoder-reads-weights", "module.coded", ("DYN-LAYERS",),
        "Torch's own encoder layers take their fused form, which reads dequantized weights and calls no layer.",
        "            return func(*args, **(kwargs or {}))\n",
        "            return func(*args, **(kwargs or {}))\n\n"
        "    __torch_function__ = torch._C._disabled_torch_function_impl\n",
    ),
    Fault(
        "weights-of-any-axes", "ptq.contraction", ("DYN-ATTENTION-FLOAT",),
        "A sum by letters whose weights or scores have their axes in another order is attention as well.",
        "or whole != lead + rows + (columns if weights is None else summed):", "or not lead + rows:",
    ),
    Fault(
        "results-as-they-lie", "ptq.contraction", ("DYN-ATTENTION-FLOAT",),
        "The axes of what a sum by letters gives are taken to be in order.",
        "order(of_b, forms[1]), order(forms[2], result)", "order(of_b, forms[1]), None",
    ),
]
