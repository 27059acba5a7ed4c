"""Faults in absorbing ReLU and batch normalization (chapter 4). Two more against FUS-RELU are among those of chapter 3."""

from faults.fault import Fault

FACTOR = "factor = gamma / np.sqrt(total)"
FOLDED_BIAS = "((start - mean) * factor + beta)"
MAY_FUSE = "return reads == 1 and calls == 1"

FAULTS = [
    Fault(
        "observed-before-the-relu", "capture", ("FUS-RANGE",),
        "A hook on the linear module sees its output, and the ReLU that it was fused with comes only afterwards.",
        "values[node.name] = run_linear(node, values[node.x])",
        "values[node.name] = run_linear(node, values[node.x])\n                seen(node.name, run_linear(replace(node, relu=False), values[node.x]))",
    ),
    Fault(
        "observers-expect-a-relu", "static", ("FUS-RANGE", "STA-FLOAT"),
        "Every layer's range begins at 0, as if each had a ReLU behind it that it was fused with.",
        "fresh[name] = fresh[name].observe(value.detach().numpy())",
        "fresh[name] = fresh[name].observe((value if name in self.graph.inputs else value.relu()).detach().numpy())",
    ),
    Fault(
        "eps-forgotten", "fusion", ("FUS-FOLD-EPS", "FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS"),
        "The variance is used as it is, and a channel that never varied is divided by zero.",
        FACTOR, 'with np.errstate(divide="ignore", invalid="ignore"):\n        factor = gamma / np.sqrt(var)',
    ),
    Fault(
        "eps-outside-the-root", "fusion", ("FUS-FOLD-EPS", "FUS-FOLD-WEIGHT", "FUS-FOLD-BOUND"),
        "eps is added to the deviation instead of to the variance.",
        FACTOR, "factor = gamma / (np.sqrt(var) + eps)",
    ),
    Fault(
        "variance-for-deviation", "fusion", ("FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS", "FUS-FOLD-BOUND"),
        "The root is forgotten, which is right for a variance of 1 only.",
        FACTOR, "factor = gamma / (var + eps)",
    ),
    Fault(
        "fold-in-float32", "fusion", ("FUS-FOLD-WEIGHT", "FUS-FOLD-BIAS"),
        "torch folds in float32, with a rounding after each of four operations.",
        FACTOR, "factor = (np.float32(1) / np.sqrt((var + eps).astype(np.float32)) * gamma.astype(np.float32)).astype(np.float64)",
    ),
    Fault(
        "fold-with-channel-0", "fusion", ("FUS-FOLD-WEIGHT", "FUS-FOLD-BOUND"),
        "One factor for the whole tensor scales every output channel as the first.",
        FACTOR, f"{FACTOR}\n    factor = np.resize(factor[:1], factor.shape)",
    ),
    Fault(
        "fold-without-mean", "fusion", ("FUS-FOLD-BIAS", "FUS-FOLD-BOUND"),
        "The weights are scaled, and the mean that moves the bias is forgotten.",
        FOLDED_BIAS, "(start * factor + beta)",
    ),
    Fault(
        "fold-leaves-bias-unscaled", "fusion", ("FUS-FOLD-BIAS", "FUS-FOLD-BOUND"),
        "The layer's own bias is carried over as it is, though the normalization scales it too.",
        FOLDED_BIAS, "(start - mean * factor + beta)",
    ),
    Fault(
        "no-bias-no-mean", "fusion", ("FUS-FOLD-BIAS",),
        "A layer without bias gets beta as its bias, and the mean is dropped with the bias that is not there.",
        FOLDED_BIAS, "((start - mean) * factor + beta if bias is not None else beta)",
    ),
    Fault(
        "negative-variance-is-zero", "fusion", ("FUS-FOLD-REFUSE",),
        "Broken statistics are repaired silently.",
        "total = var + eps", "total = np.maximum(var, 0) + eps",
    ),
    Fault(
        "infinite-variance-is-taken", "fusion", ("FUS-FOLD-REFUSE",),
        "Only the sign is checked, and an overflowed variance folds to weights of 0.",
        "good = (total > 0) & (total < np.inf)", "good = total > 0",
    ),
    Fault(
        "second-reader-ignored", "fusion", ("FUS-READER", "FUS-KEEP"),
        "The ReLU is fused because it follows the layer, whoever else reads the value between them.",
        MAY_FUSE, "return calls == 1",
    ),
    Fault(
        "an-output-is-no-reader", "capture", ("FUS-READER",),
        "Only nodes count as readers, and the network's own output is none.",
        "for name in refs(self.output):", "for name in ():",
    ),
    Fault(
        "second-call-ignored", "fusion", ("FUS-SHARED", "FUS-KEEP"),
        "The normalization behind one call of a shared layer goes into weights that the other call reads too.",
        MAY_FUSE, "return reads == 1",
    ),
    Fault(
        "calls-counted-once", "capture", ("FUS-SHARED",),
        "The set of called modules is kept, not how many times each is called.",
        "self.calls[target] = self.calls.get(target, 0) + 1", "self.calls[target] = 1",
    ),
    Fault(
        "only-the-root-is-asked", "capture", ("FUS-TRAINING", "STA-TRAINING"),
        "model.training is looked at, and a part that was put into training mode by itself is not.",
        "        if module.training:", "        if module.training and module is model:",
    ),
    Fault(
        "training-mode-ended-silently", "capture", ("FUS-TRAINING", "STA-TRAINING"),
        "The model is put into evaluation mode instead of being refused.",
        "        if module.training:", "        if module.train(False).training:",
    ),
    Fault(
        "absorbed-relu-lost", "fusion", ("FUS-KEEP",),
        "The ReLU is taken out of the graph, and the layer is not told.",
        "replace(layer, relu=True)", "replace(layer, relu=False)",
    ),
    Fault(
        "only-the-bias-is-folded", "fusion", ("FUS-KEEP",),
        "The normalization disappears into the bias, and the weights stay as they were.",
        "replace(layer, weight=weight, bias=bias)", "replace(layer, bias=bias)",
    ),
    Fault(
        "norm-behind-relu-folded", "fusion", ("FUS-KEEP",),
        "A normalization that follows a fused ReLU is folded into the layer in front of that ReLU.",
        "isinstance(layer, Linear) and not layer.relu and may_fuse", "isinstance(layer, Linear) and may_fuse",
    ),
]
