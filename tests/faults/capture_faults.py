"""Faults of the front end: what is written in torch is taken for something else, or for nothing that is known."""

from faults.fault import Fault

OPERATORS, LAYERS = "capture.operators", "capture.layers"

FAULTS = [
    Fault(
        "two-values-of-a-name", "capture.builder", ("STA-SAME",),
        "A module may have the name of a function that was called before.",
        "while found in self.taken:",
        "while False:",
    ),
    Fault(
        "relu-in-place-by-function", OPERATORS, ("FUS-WRITTEN",),
        "ReLU in place is known as a method, and not as the function of that name.",
        'torch.relu, F.relu, torch.relu_, F.relu_, "relu", "relu_")',
        'torch.relu, F.relu, "relu", "relu_")',
    ),
    Fault(
        "clamp-by-place-forgotten", OPERATORS, ("FUS-WRITTEN",),
        "The ends of a clamp are looked for among its keyword arguments only.",
        'ends = dict(zip(("min", "max"), others)) | named',
        "ends: dict[str, Any] = dict(named)",
    ),
    Fault(
        "prelu-of-channels", OPERATORS, ("STA-SAME",),
        "A PReLU with a slope for each channel is made a table, of which there is one for all.",
        "channels = what.num_parameters",
        "channels = None",
    ),
    Fault(
        "clamp-from-anywhere", OPERATORS, ("STA-SAME",),
        "A clamp with an upper end is taken for a ReLU with one, wherever it begins.",
        'low_zero = name in ("hardtanh", "clamp") and ends.get("min") == 0 and isinstance(largest, NUMBER)',
        'low_zero = name in ("hardtanh", "clamp") and isinstance(largest, NUMBER)',
    ),
    Fault(
        "factor-of-a-sum-ignored", OPERATORS, ("STA-SAME",),
        "torch.add's alpha is not looked at.",
        'if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:',
        'if given.get("rounding_mode") is not None:',
    ),
    Fault(
        "floor-of-a-quotient-ignored", OPERATORS, ("STA-SAME", "FUS-WRITTEN"),
        "torch.div's rounding_mode is not looked at.",
        'if given.get("alpha", 1) != 1 or given.get("rounding_mode") is not None:',
        'if given.get("alpha", 1) != 1:',
    ),
    Fault(
        "padding-with-any-value", OPERATORS, ("STA-SAME",),
        "A padding moves codes, and puts the zero point where another value was asked for.",
        "if node.target is F.pad and value in (None, 0):",
        "if node.target is F.pad:",
    ),
    Fault(
        "interpolation-of-any-kind", OPERATORS, ("STA-SAME",),
        "Every interpolation is taken for one that copies pixels.",
        'if mode not in ("nearest", "nearest-exact"):',
        "if mode is None:",
    ),
    Fault(
        "divisor-ignored", OPERATORS, ("STA-SAME",),
        "An average's divisor_override is not looked at.",
        'if given.get("divisor_override") is not None or not constants(',
        "if not constants(",
    ),
    Fault(
        "places-of-maxima-ignored", OPERATORS, ("STA-SAME",),
        "A maximum that gives its places too is taken for one that does not.",
        'if given["return_indices"] or not constants(',
        "if not constants(",
    ),
    Fault(
        "padding-always-counted", OPERATORS, ("STA-SAME",),
        "An average's count_include_pad is lost on the way.",
        'bool(given["ceil_mode"]), bool(given["count_include_pad"])',
        'bool(given["ceil_mode"]), True',
    ),
    Fault(
        "maximum-never-ceiled", OPERATORS, ("STA-SAME",),
        "A maximum's ceil_mode is lost on the way.",
        'places = kernel, stride, padding, dilation, bool(given["ceil_mode"])',
        "places = kernel, stride, padding, dilation, False",
    ),
    Fault(
        "mean-without-its-axes", OPERATORS, ("STA-SAME",),
        "A mean's keepdim is lost on the way.",
        'tuple(axes), given["keepdim"], builder.call(node)',
        "tuple(axes), False, builder.call(node)",
    ),
    Fault(
        "padding-modes-are-one", OPERATORS, ("STA-SAME",),
        "A module that pads by reflection pads with zeros.",
        'return F.pad, (list(module.padding),), {"mode": mode}',
        "return F.pad, (list(module.padding),), {}",
    ),
    Fault(
        "joined-along-channels", OPERATORS, ("STA-SAME",),
        "Joining without an axis is taken for joining channels.",
        '@function(signature("tensors dim", dim=0)',
        '@function(signature("tensors dim", dim=1)',
    ),
    Fault(
        "upsampled-by-factor-only", OPERATORS, ("STA-SAME",),
        "An Upsample with a size is asked for its factor.",
        '{"size": module.size, "scale_factor"',
        '{"size": None, "scale_factor"',
    ),
    Fault(
        "same-padding-turned-round", LAYERS, ("STA-SAME",),
        "Where the padding `same` is odd, the surplus goes before.",
        "        padding = tuple((r // 2, r - r // 2) for r in reach)",
        "        padding = tuple((r - r // 2, r // 2) for r in reach)",
    ),
    Fault(
        "same-by-function-turned-round", LAYERS, ("STA-SAME",),
        "So it does for a convolution that is called as a function.",
        "pairs = tuple((r // 2, r - r // 2) for r in reach)",
        "pairs = tuple((r - r // 2, r // 2) for r in reach)",
    ),
    Fault(
        "circular-is-zeros", LAYERS, ("STA-SAME",),
        "A convolution pads by reflection or with zeros, and otherwise not at all.",
        'if what.padding_mode != "zeros" and any(map(any, padding)):',
        'if what.padding_mode == "reflect" and any(map(any, padding)):',
    ),
    Fault(
        "output-padding-lost", LAYERS, ("STA-SAME",),
        "A transposed convolution's output_padding is lost on the way.",
        "padding = tuple((r - p, r - p + o) for r, p, o in sides)",
        "padding = tuple((r - p, r - p) for r, p, o in sides)",
    ),
    Fault(
        "norm-by-the-batch-folded", LAYERS, ("STA-SAME",),
        "A normalization by the batch's own statistics is asked for those that it never kept.",
        "if public(what, NORMS) and what.track_running_stats:",
        "if public(what, NORMS):",
    ),
    Fault(
        "usual-eps", LAYERS, ("STA-SAME",),
        "Every normalization has the eps that torch gives it where none is asked for.",
        "norm = gamma, beta, *statistics, what.eps",
        "norm = gamma, beta, *statistics, 1e-5",
    ),
    Fault(
        "bags-are-means", LAYERS, ("DYN-EMBEDDING",),
        "A bag takes the mean, which is the default.",
        "bag=what.mode,",
        'bag="mean",',
    ),
    Fault(
        "last-offset-is-a-bag", LAYERS, ("DYN-EMBEDDING",),
        "A bag's include_last_offset is lost on the way.",
        "include_last_offset=what.include_last_offset",
        "include_last_offset=False",
    ),
    Fault(
        "padding-is-in-the-bag", LAYERS, ("DYN-EMBEDDING",),
        "A bag's padding_idx is lost on the way.",
        "include_last_offset=what.include_last_offset, padding_idx=what.padding_idx,",
        "include_last_offset=what.include_last_offset, padding_idx=None,",
    ),
    Fault(
        "samples-weigh-one", LAYERS, ("DYN-EMBEDDING",),
        "The weights of a bag's samples are lost on the way.",
        'given = dict(zip(("input", "offsets", "per_sample_weights"), node.args)) | node.kwargs',
        'given = dict(zip(("input", "offsets"), node.args))',
    ),
    Fault(
        "one-way-only", LAYERS, ("STA-SAME",),
        "A recurrent network that runs both ways is captured running forwards.",
        'for suffix in ("", "_reverse") if what.bidirectional else ("",):',
        'for suffix in ("",):',
    ),
    Fault(
        "time-first-always", LAYERS, ("STA-SAME",),
        "A recurrent network's batch_first is lost on the way.",
        "tuple(cells), what.bidirectional, what.batch_first, builder.call(node))",
        "tuple(cells), what.bidirectional, False, builder.call(node))",
    ),
    Fault(
        "rnn-is-tanh", LAYERS, ("STA-SAME",),
        "An RNN's nonlinearity is taken for the usual one.",
        ".get(what.mode, what.mode.lower())",
        '.get(what.mode, "rnn_tanh")',
    ),
    Fault(
        "first-recurrent-layer-only", LAYERS, ("STA-SAME",),
        "Of several recurrent layers the first is captured.",
        "for layer in range(what.num_layers):",
        "for layer in range(1):",
    ),
    Fault(
        "functions-have-no-groups", LAYERS, ("STA-SAME",),
        "A convolution that is called as a function has one group.",
        'padding, groups = given.get("padding", 0), given.get("groups", 1)',
        'padding, groups = given.get("padding", 0), 1',
    ),
    Fault(
        "dilation-of-functions-lost", LAYERS, ("STA-SAME",),
        "A convolution that is called as a function has its dilation by place only.",
        'stride, dilation = (each(given.get(key, 1), positions) for key in ("stride", "dilation"))',
        'stride, dilation = each(given.get("stride", 1), positions), (1,) * positions',
    ),
    Fault(
        "results-in-a-given-tensor", "capture.aliases", ("STA-FROZEN",),
        "The tensor of an out= argument, made while a forward is traced, is taken for a constant of the network.",
        'node.kwargs.get("out") is not None:', 'node.kwargs.get("out") is node:',
    ),
    Fault(
        "iterators-are-no-state", "capture.copies", ("STA-PARTS",),
        "What an iterator gives next is not looked at, so that next() is a constant of the network.",
        "        return (rest_of(value),)", "        return ()",
    ),
    Fault(
        "state-in-objects-not-seen", "capture.copies", ("STA-PARTS",),
        "What a forward keeps in attributes of an object is no state of it.",
        'yield from chain.from_iterable(getattr(value, "__dict__", {}).items())', "pass",
    ),
    Fault(
        "types-are-no-condition", "capture.recorder", ("STA-WAYS",),
        "A network whose Python asked for the type of an input takes any type.",
        "                self.types.add(node)", "                pass",
    ),
    Fault(
        "kept-whatever-the-values", "capture.kept", ("STA-FIRST-CALL",),
        "What a first call made of its values is taken for a constant.",
        "chain([values], of_other_sizes(given))", "of_other_sizes(given)",
    ),
    Fault(
        "kept-whatever-the-sizes", "capture.kept", ("STA-FIRST-CALL",),
        "What a first call made for its sizes is taken for a constant.",
        "chain([values], of_other_sizes(given))", "[values]",
    ),
    Fault(
        "kept-where-no-value-differs", "capture.kept", ("STA-FIRST-CALL",),
        "What a first call made of values that are the same in any order is taken for a constant.",
        "if parts.difference(given, values) is None:", "if False:",
    ),
    Fault(
        "no-first-call", "capture.kept", ("STA-FIRST-CALL",),
        "A model whose first call makes a table is quantized in parts around that.",
        "    if path is None:", "    if True:",
    ),
    Fault(
        "called-before-training", "ptq.captured", ("STA-FIRST-CALL",),
        "What is gathered from parameters stays as it is while they are trained.",
        "if not self.acts:", "if True:",
    ),
]  # fmt: skip
