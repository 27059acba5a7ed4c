"""Faults in quantization-aware training (chapter 7)."""

from faults.fault import Fault

STE = "passed: torch.Tensor = torch.ops.aten.hardtanh_backward(gradient, steps, low, high)"
ENDS = "ends = grid.low - 0.5, grid.high + 0.5"
MOVED = "approximate, slack = old + constant * (new - old),"
ROUNDED = "fast, before = near(emit, nearest, self.low, self.high), emit.block"

FAULTS = [
    Fault(
        "qat-passes-everywhere", "qat.functions", ("QAT-STE",),
        "The gradient passes beyond the ends of the range, too.",
        STE, "passed: torch.Tensor = gradient.clone()",
    ),
    Fault(
        "qat-half-a-step-is-outside", "qat.functions", ("QAT-STE",),
        "What rounds to the last code is taken for outside of the range.",
        ENDS, "ends = float(grid.low), float(grid.high)",
    ),
    Fault(
        "qat-relu-passes-below-zero", "qat.functions", ("QAT-LAYER",),
        "Behind a ReLU the gradient passes where the real value is below 0.",
        "return 0.0 if self.relu else self.y.low - 0.5, self.y.high + 0.5",
        "return self.y.low - 0.5, self.y.high + 0.5",
    ),
    Fault(
        "qat-direct-without-relu", "qat.steps", ("QAT-EQUAL", "QAT-LAYER"),
        "A layer whose output has no codes gives it without its ReLU.",
        "return result.relu() if step.relu and y_grid is None else result", "return result",
    ),
    Fault(
        "qat-gradient-in-codes", "qat.functions", ("QAT-LAYER",),
        "The gradient of a weight is formed with the codes of the input, not with what they mean.",
        "outputs, plan.x.scale, *plan.limits())", "outputs, 1.0, *plan.limits())",
    ),
    Fault(
        "qat-conv-gradient-in-codes", "qat.functions", ("QAT-LAYER",),
        "The gradient of a convolution's weight is formed with the codes of the input.",
        "of_weight.mul_(plan.x.scale), of_bias", "of_weight, of_bias",
    ),
    Fault(
        "qat-weight-gradient-clipped", "qat.functions", ("QAT-WEIGHT",),
        "The largest weight, which is the end of its range, gets no gradient.",
        "return gradients[0], None, None, None, None",
        "return gradients[0] * (gradients[0] < gradients[0].max()), None, None, None, None",
    ),
    Fault(
        "qat-scale-not-divided", "qat.functions", ("QAT-SCALE",),
        "The gradient of a learned scale is not divided by the number of values.",
        "/ (size * max(ends[1], 1)) ** 0.5", "/ max(ends[1], 1) ** 0.5",
    ),
    Fault(
        "qat-scale-codes-alone", "qat.functions", ("QAT-SCALE",),
        "The gradient of a learned scale forgets what the value is in steps.",
        "gradient * (codes - between)", "gradient * codes",
    ),
    Fault(
        "qat-sums-in-float32", "qat.functions", ("QAT-EXACT",),
        "Accumulators beyond 2^24 are formed in float32.",
        "if largest <= EXACT:", "if True:",
    ),
    Fault(
        "qat-range-of-the-last-batch", "qat.grids", ("QAT-RANGE",),
        "A range is that of the last batch.",
        MOVED, "approximate, slack = new + 0 * old,",
    ),
    Fault(
        "qat-range-moves-once-more", "qat.network", ("QAT-RANGE",),
        "A place without a range begins with a part of the first batch's.",
        "after = [new if math.isinf(old)", "after = [new / 2 if math.isinf(old)",
    ),
    Fault(
        "qat-no-delay", "qat.run", ("QAT-DELAY",),
        "Activations are in codes as soon as there are ranges.",
        "delayed = network.training and int(network.batches) < network.how.delay", "delayed = False",
    ),
    Fault(
        "qat-frozen-moves", "qat.run", ("QAT-FREEZE",),
        "Ranges move after they were frozen.",
        "network.training and not bool(network.frozen) and not network.scale_names",
        "network.training and not network.scale_names",
    ),
    Fault(
        "qat-frozen-statistics-move", "qat.run", ("QAT-FREEZE",),
        "Normalizations are folded with the batch's statistics after those were frozen.",
        "network.training and not bool(network.statistics_frozen)", "network.training",
    ),
    Fault(
        "qat-evaluation-counts-batches", "qat.network", ("QAT-EVALUATION",),
        "Batches of evaluation count for the delay.",
        "if self.training:\n            with torch.no_grad():", "if True:\n            with torch.no_grad():",
    ),
    Fault(
        "qat-weight-bits-are-bits", "ptq.options", ("QAT-BITS", "STA-WEIGHT-BITS"),
        "The number of bits of activations decides over weights.",
        "bits if weight_bits is None else weight_bits, engine)", "bits, engine)",
    ),
    Fault(
        "qat-weights-rounded-away", "kernels.steps", ("QAT-EQUAL", "QAT-CONVERT", "QAT-FORWARD", "QAT-START"),
        "In training weights are truncated, in conversion rounded.",
        ROUNDED, ROUNDED.replace("nearest", 'emit.native("llvm.trunc.v16f32", FLOATS, steps)'),
    ),
    Fault(
        "qat-autocast-reaches-codes", "qat.network", ("QAT-AUTOCAST",),
        "Autocast computes products of codes in bfloat16.",
        'torch.autocast("cpu", enabled=False)', 'torch.autocast("cpu", enabled=torch.is_autocast_enabled("cpu"))',
    ),
    Fault(
        "qat-steps-twice-the-gradient", "qat.functions", ("QAT-SURROGATE",),
        "Steps on codes double the gradient that they pass.",
        "rounded_gradients(gradient, real, ctx.grid, ctx.learned)",
        "rounded_gradients(2 * gradient, real, ctx.grid, ctx.learned)",
    ),
    Fault(
        "qat-float-layer-without-norm", "qat.network", ("QAT-FOLD",),
        "A layer that stays in float for its accumulators is trained without the normalization that it absorbed.",
        "            if isinstance(what, float_run.FloatLayer):", "            if False:",
    ),
    Fault(
        "qat-conversion-asks-again", "qat.network", ("QAT-OVERFLOW",),
        "Conversion asks again which layers stay in float.",
        "Converter(graph, Placement(graph), observers, self.options, self.in_float, trained=True)",
        "Converter(graph, Placement(graph), observers, self.options, trained=True)",
    ),
    Fault(
        "qat-excluded-is-its-module", "qat.network", ("QAT-OVERFLOW",),
        "A layer of an excluded module is trained as all that the module does.",
        "what if path in layers else LiveLayer", "what if path in layers else own or LiveLayer",
    ),
    Fault(
        "qat-first-batch-sets-modes", "qat.prepare", ("QAT-ACTS",),
        "The first batch puts all modules of the model into training mode.",
        """self.settle()
        if late""",
        """self.settle()
        self.train(self.training)
        if late""",
    ),
    Fault(
        "qat-names-without-dots", "qat.weights", ("QAT-SCALE",),
        "Two layers whose paths differ in a dot alone have one parameter.",
        "name.replace('.', '-')", "name.replace('.', '_')",
    ),
    Fault(
        "qat-constants-stay", "qat.weights", ("QAT-PARAMETERS",),
        "What the model computes of parameters stays what it was when the network was prepared.",
        "if torch.equal(each.tensor, recipes[path].value)", "if False",
    ),
    Fault(
        "qat-writes-are-forgotten", "capture.recorder", ("QAT-PARAMETERS",),
        "A constant that was written to through another tensor is not computed of its parameter.",
        "if self.memory(tensor) == self.memory(writing):", "if False:",
    ),
    Fault(
        "qat-scales-in-other-shapes", "qat.weights", ("QAT-PARAMETERS",),
        "A factor for each channel that a layer absorbed is not trained.",
        "== array.ctypes.data and tensor.numel() == array.size",
        "== array.ctypes.data and tuple(tensor.shape) == array.shape",
    ),
    Fault(
        "qat-wide-layers-unobserved", "qat.steps", ("QAT-RANGE",),
        "What a layer in float gives has no range of its own, so that a network that ends with one is never ready.",
        "    if step.name in placement.coded:", "    if False:",
    ),
    Fault(
        "qat-clones-train-the-first", "qat.weights", ("QAT-PARAMETERS",),
        "Of layers of attention that are copies of each other, as torch makes them, one is trained for all.",
        'around = layer.rpartition(".")[0] or layer', 'around = layer.partition(".")[0] or layer',
    ),
    Fault(
        "qat-convert-moves-a-norm", "qat.network", ("QAT-CONVERT",),
        "Conversion in training mode changes the statistics of spectral norms.",
        "with still(self.model):", "with torch.no_grad():",
    ),
    Fault(
        "qat-a-bias-ends-learning", "qat.steps", ("QAT-SCALE",),
        "Where one output's scale is its bias's, those of the layer's other outputs learn nothing.",
        "torch.where(raised.scale == coded.scale, learned, raised.scale)", "None",
    ),
    Fault(
        "qat-statistics-as-folded", "qat.weights", ("QAT-FOLD",),
        "A normalization behind a layer gets the statistics of what the layer gives without the one before it.",
        'sorted(self.norms, key=lambda norm: norm.place == "behind")', "list(self.norms)",
    ),
    Fault(
        "qat-folding-has-another-slope", "qat.weights", ("QAT-FOLD",),
        "The gradient of a folded weight is multiplied by the deviation instead of divided.",
        "factor = gamma / torch.sqrt(var + norm.eps)", "factor = gamma * torch.sqrt(var + norm.eps)",
    ),
    Fault(
        "qat-folds-running-statistics", "qat.run", ("QAT-FOLD",),
        "In training, normalizations are folded with the statistics of before.",
        "network.training and not bool(network.statistics_frozen)", "False",
    ),
    Fault(
        "qat-bias-without-gradient", "qat.functions", ("QAT-PARAMETERS", "QAT-LAYER"),
        "Biases of linear layers get no gradient.",
        "return of_x, of_weight, of_bias if wanted[2] else None", "return of_x, of_weight, None",
    ),
    Fault(
        "qat-python-has-other-tensors", "qat.prepare", ("QAT-PYTHON",),
        "The Python between parts computes with copies of the tensors that are trained.",
        'self.__dict__["running"], self.__dict__["twins"] = sharing(self.model, parts)',
        'self.__dict__["running"] = copies.own_copy(self.model)',
    ),
    Fault(
        "qat-batches-are-forgotten", "qat.network", ("QAT-RESUME",),
        "How many batches have passed is no part of the state.",
        "torch.zeros((), dtype=torch.int64))", "torch.zeros((), dtype=torch.int64), persistent=False)",
    ),
    Fault(
        "training-is-traced", "qat.eager", ("QAT-COMPILE",),
        "torch's compiler traces the steps of training, with their integer kernels.",
        'if "torch._dynamo" not in sys.modules:', 'if sys.modules:',
    ),
    Fault(
        "qat-ranges-of-one-process", "qat.ranks", ("QAT-RANKS",),
        "Each process has the ranges of its own batches.",
        "distributed.all_reduce(both, op=distributed.ReduceOp.MAX)", "pass",
    ),
    Fault(
        "qat-negative-delay", "qat.prepare", ("QAT-REFUSE",),
        "A negative delay is taken.",
        'if whole_number(delay, "delay") < 0:', 'if whole_number(delay, "delay") is None:',
    ),
    Fault(
        "qat-dropout-left-out", "qat.run", ("QAT-ACTS",),
        "What acts in training mode only is left out, as it is in evaluation.",
        "if act is None or not any(", "if act is None or any(",
    ),
    Fault(
        "qat-dropout-on-the-codes", "qat.steps", ("QAT-ACTS",),
        "Dropout and noise act on codes as if these were real values.",
        "before = apply(Real, value, grid.scale)", "before, grid = value, type(grid)(1.0, 0, 0, 1)",
    ),
    Fault(
        "qat-old-optimizers-step", "qat.prepare", ("QAT-OPTIMIZER",),
        "An optimizer of the model that was copied steps, and nothing is trained.",
        "    optimizers.replace(given.parameters())\n", "",
    ),
    Fault(
        "qat-late-parameters-in-silence", "qat.prepare", ("QAT-COMPUTED",),
        "Nothing tells that an optimizer does not hold what the first batch added.",
        "if late := [name for name, _ in self.named_parameters() if name not in before]:",
        "if late := [name for name in before if name not in before]:",
    ),
    Fault(
        "qat-packed-as-they-lie", "qat.recurrent", ("DYN-PACKED",),
        "The state of packed sequences is not put into their order.",
        "states = [part[:, x.sorted_indices] for part in states]", "states = list(states)",
    ),
    Fault(
        "qat-noise-once", "capture.acting", ("QAT-ACTS",),
        "What Python draws at random is what it was when the model was traced.",
        "if python_random() != pythons or not torch.equal(torch.get_rng_state(), before):", "if False:",
    ),
    Fault(
        "trained-without-room-for-bias", "qat.steps", ("QAT-EQUAL",),
        "Weights are trained on the scales of their range, which conversion raises where the bias does not fit.",
        "if bias is not None and coded.tight:", "if False:",
    ),
]
