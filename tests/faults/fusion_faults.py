"""Faults in absorbing ReLU and batch normalization (chapter 4). Two more against FUS-RELU are those of chapter 3."""

from faults.fault import Fault

FACTOR = "factor: Float64 = gamma / np.sqrt(total)"
MAY_FUSE = "return reads == 1 and calls == 1"

FAULTS = [
    Fault(
        "observed-before-the-relu", 'ir.float_run', ("FUS-RANGE",),
        "A hook on the linear module sees its output, and the ReLU that it was fused with comes only afterwards.",
        '            values[node.name] = value = compute(node, values, graph.callables)',
        '            values[node.name] = value = compute(node, values, graph.callables)\n'
        '            if isinstance(node, Layer) and '
        'node.relu:\n                seen(node.name, run_layer(replace(node, relu=False), values[node.x]))',
    ),
    Fault(
        "observers-expect-a-relu", "ptq.static", ("FUS-RANGE", "STA-FLOAT"),
        "Every layer's range begins at 0, as if each had a ReLU behind it that it was fused with.",
        "fresh[name] = observed(fresh[name], value)",
        "fresh[name] = observed(fresh[name], value if name in self.graph.inputs else value.relu())",
    ),
    Fault(
        "eps-forgotten", "numerics.folding", ("FUS-FOLD-EPS", "FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS"),
        "The variance is used as it is, and a channel that never varied is divided by zero.",
        FACTOR, 'with np.errstate(divide="ignore", invalid="ignore"):\n        factor = gamma / np.sqrt(var)',
    ),
    Fault(
        "eps-outside-the-root", "numerics.folding", ("FUS-FOLD-EPS", "FUS-FOLD-WEIGHT", "FUS-FOLD-BOUND"),
        "eps is added to the deviation instead of to the variance.",
        FACTOR, "factor = gamma / (np.sqrt(var) + eps)",
    ),
    Fault(
        "variance-for-deviation", "numerics.folding", ("FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS", "FUS-FOLD-BOUND"),
        "The root is forgotten, which is right for a variance of 1 only.",
        FACTOR, "factor = gamma / (var + eps)",
    ),
    Fault(
        "fold-in-float32", "numerics.folding", ("FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS"),
        "torch folds in float32, with a rounding after each of four operations.",
        FACTOR,
        "factor = (np.float32(1) / np.sqrt((var + eps).astype(np.float32)) "
        "* gamma.astype(np.float32)).astype(np.float64)",
    ),
    Fault(
        "fold-with-channel-0", "numerics.folding", ("FUS-FOLD-WEIGHT", "FUS-FOLD-BOUND"),
        "One factor for the whole tensor scales every output channel as the first.",
        FACTOR, f"{FACTOR}\n    factor = np.resize(factor[:1], factor.shape)",
    ),
    Fault(
        "fold-without-mean", "numerics.folding", ("FUS-FOLD-BIAS", "FUS-FOLD-BOUND"),
        "The weights are scaled, and the mean that moves the bias is forgotten.",
        '((start - np.asarray(mean, np.float64)) * factor + beta)', '(start * factor + beta)',
    ),
    Fault(
        "fold-leaves-bias-unscaled", "numerics.folding", ("FUS-FOLD-BIAS", "FUS-FOLD-BOUND"),
        "The layer's own bias is carried over as it is, though the normalization scales it too.",
        '((start - np.asarray(mean, np.float64)) * factor + beta)',
        '(start - np.asarray(mean, np.float64) * factor + beta)',
    ),
    Fault(
        "no-bias-no-mean", "numerics.folding", ("FUS-FOLD-BIAS",),
        "A layer without bias gets beta as its bias, and the mean is dropped with the bias that is not there.",
        '((start - np.asarray(mean, np.float64)) * factor + beta)',
        '((start - np.asarray(mean, np.float64)) * factor + beta if bias is not None else beta + 0 * factor)',
    ),
    Fault(
        "negative-variance-is-zero", "numerics.folding", ("FUS-FOLD-REFUSE",),
        "Broken statistics are repaired silently.",
        "total = var + eps", "total = np.maximum(var, 0) + eps",
    ),
    Fault(
        "infinite-variance-is-taken", "numerics.folding", ("FUS-FOLD-REFUSE",),
        "Only the sign is checked, and an overflowed variance folds to weights of 0.",
        "good = (total > 0) & (total < np.inf)", "good = total > 0",
    ),
    Fault(
        "second-reader-ignored", "ptq.fusion", ("FUS-READER", "FUS-KEEP"),
        "The ReLU is fused because it follows the layer, whoever else reads the value between them.",
        MAY_FUSE, "return calls == 1",
    ),
    Fault(
        "an-output-is-no-reader", 'ir.float_graph', ("FUS-READER",),
        "Only nodes count as readers, and the network's own output is none.",
        'for name in refs(self.output):', 'for name in ():',
    ),
    Fault(
        "second-call-ignored", "ptq.fusion", ("FUS-SHARED", "FUS-KEEP"),
        "The normalization behind one call of a shared layer goes into weights that the other call reads too.",
        MAY_FUSE, "return reads == 1",
    ),
    Fault(
        "eps-of-a-function-left-out", "capture.norms", ("FUS-WRITTEN",),
        "A normalization that is called as a function is folded without its eps.",
        'float(given["eps"])', "0.0",
    ),
    Fault(
        "products-are-no-normalizations", "capture.norms", ("FUS-WRITTEN",),
        "A normalization is known by its class or function, and one that is written out stays in float.",
        "    return per_channel(builder, node)", "    return None",
    ),
    Fault(
        "calls-counted-once", "capture.builder", ("FUS-SHARED",),
        "The set of called modules is kept, not how many times each is called.",
        "self.calls[target] = self.calls.get(target, 0) + 1", "self.calls[target] = 1",
    ),
    Fault(
        "only-the-root-is-asked", "capture.tracer", ("FUS-TRAINING", "STA-TRAINING"),
        "model.training is looked at, and a part that was put into training mode by itself is not.",
        'if getattr(module, "training", False):', 'if getattr(module, "training", False) and module is model:',
    ),
    Fault(
        "training-mode-ended-silently", "capture.tracer", ("FUS-TRAINING", "STA-TRAINING"),
        "The model is put into evaluation mode instead of being refused.",
        'if getattr(module, "training", False):', "if module.train(False).training:",
    ),
    Fault(
        "absorbed-relu-lost", 'ptq.fusion', ("FUS-KEEP",),
        "The ReLU is taken out of the graph, and the layer is not told.",
        'return replace(before, relu=True)\n    if isinstance(before, Add)',
        'return replace(before, relu=False)\n    if isinstance(before, Add)',
    ),
    Fault(
        "only-the-bias-is-folded", 'ptq.fusion', ("FUS-KEEP",),
        "The normalization disappears into the bias, and the weights stay as they were.",
        'return with_weight(before, weight, bias)', 'return with_weight(before, before.weight, bias)',
    ),
    Fault(
        "norm-behind-relu-folded", 'ptq.fusion', ("FUS-KEEP",),
        "A normalization that follows a fused ReLU is folded into the layer in front of that ReLU.",
        'isinstance(before, Layer | Add) or before.relu:', 'isinstance(before, Layer | Add):',
    ),
    Fault(
        'transposed-folds-its-inputs', 'capture.layers', ('FUS-FOLD-TRANSPOSED',),
        'The weight of a transposed convolution is folded as torch stores it.',
        'weight = float_run.transposed_weight(what.weight.detach(), what.groups).numpy()',
        'weight = float_run.transposed_weight(what.weight.detach(), 1).numpy() if what.groups == 1 else '
        'graph.transposed_weight(what.weight.detach(), what.groups).numpy()[::-1].copy()',
    ),
    Fault(
        'transposed-folds-no-groups', 'ptq.fusion', ('FUS-FOLD-TRANSPOSED',),
        'The normalization of a layer with groups has its channels in another order.',
        'before.weight, before.bias, node.gamma,',
        'before.weight, before.bias, np.roll(node.gamma, 1),',
    ),
    Fault(
        'before-shift-not-summed', "numerics.folding", ('FUS-FOLD-BEFORE',),
        'The shift of a normalization before a layer is added to its bias once, without the weights.',
        '(start + (sums * shift[channels]).sum(axis=1))',
        '(start + shift[channels].sum(axis=1))',
    ),
    Fault(
        'before-factor-of-first-group', "numerics.folding", ('FUS-FOLD-BEFORE',),
        'Every group takes the statistics of the first channels.',
        'channels = np.arange(outputs)[:, None] // (outputs // groups) * inputs + np.arange(inputs)',
        'channels = np.zeros((outputs, 1), int) + np.arange(inputs)',
    ),
    Fault(
        'folded-before-padding', 'ptq.fusion', ('FUS-FOLD-PADDING',),
        'A normalization is folded into any convolution behind it.',
        'if isinstance(node, Conv) and (any(map(any, node.padding)) or node.transposed):',
        'if isinstance(node, Conv) and node.transposed:',
    ),
    Fault(
        'folded-before-two-readers', 'ptq.fusion', ('FUS-FOLD-PADDING',),
        'Only padding that is the same on both sides counts as padding.',
        'if isinstance(node, Conv) and (any(map(any, node.padding)) or node.transposed):',
        'if isinstance(node, Conv) and (any(a != b for a, b in node.padding) or node.transposed):',
    ),
    Fault(
        'alone-per-tensor', 'ptq.conversion', ('FUS-ALONE',),
        'A normalization of its own has one scale for all channels where weights have.',
        'per_channel = self.options.per_channel or (weight.ndim > 2 and weight.size == len(weight))',
        'per_channel = self.options.per_channel',
    ),
    Fault(
        'alone-without-eps', 'ptq.fusion', ('FUS-ALONE',),
        'A normalization of its own forgets eps.',
        'factor, shift = factor_and_shift(node.gamma, node.beta, node.mean, node.var, node.eps)\n            ones',
        'factor, shift = factor_and_shift(node.gamma, node.beta, node.mean, node.var + 1e-30, 0.0)\n            ones',
    ),
    Fault(
        'sum-relu-though-read-twice', 'ptq.fusion', ('FUS-SUM',),
        'A sum absorbs its ReLU though something else reads the sum.',
        'not may_fuse(reads[before.name], calls(before, graph)):',
        'not (isinstance(before, Add) or may_fuse(reads[before.name], calls(before, graph))):',
    ),
    Fault(
        'sum-keeps-its-relu', 'ptq.fusion', ('FUS-SUM',),
        'Only layers absorb a ReLU.',
        'if not isinstance(before, Layer | Add) or before.relu',
        'if not isinstance(before, Layer) or before.relu',
    ),
    Fault(
        'clamp-without-its-end', 'ptq.fusion', ('FUS-CLAMP',),
        'A ReLU6 is absorbed as a ReLU.',
        'return replace(before, relu=True, ceiling=node.ceiling)',
        'return replace(before, relu=True)',
    ),
    Fault(
        'any-clamp-is-a-relu', 'capture.operators', ('FUS-CLAMP',),
        'A clamp whose lower end is not zero is absorbed too.',
        'what.max_val if name == "hardtanh" and what.min_val == 0 else None',
        'what.max_val if name == "hardtanh" else None',
    ),
    Fault(
        "rows-forgotten-when-folded", "ptq.fusion", ("FUS-ROWS",),
        "The layer with a normalization inside is a layer like others.",
        "replace(layer, weight=weight, bias=bias, flat=True)", "replace(layer, weight=weight, bias=bias)",
    ),
    Fault(
        "rows-forgotten-when-converted", "ptq.conversion", ("FUS-ROWS",),
        "What calibration refuses is no question for the network.",
        "program.Linear(*layer, node.flat)", "program.Linear(*layer)",
    ),
]
