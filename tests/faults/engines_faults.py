"""Faults of what a network goes through between its capture and its answer: conversion, the engines, its module."""

from faults.fault import Fault

LOWERING = "engines.compiled.lowering"
BATCHING = "engines.compiled.batching"
FLOAT_RUN = "ir.float_run"
MODULE = "module.module"
STATE = "module.state"
PARALLEL = "engines.compiled.parallel"
TRAVERSE = "ir.traverse"
CONVERSION = "ptq.conversion"

FAULTS = [
    Fault(
        "relu-behind-another-step", "engines.compiled.selection", ("DYN-OUTPUT",),
        "A ReLU of floats is taken for a part of its layer though a step between the two is not compiled.",
        "argument(step) in layers and argument(step) in run and",
        "argument(step) in layers and",
    ),
    Fault(
        "fused-sum-read-elsewhere", LOWERING, ("STA-RUN",),
        "A convolution is put into the sum behind it though somebody else reads it too.",
        "return numbers.get(latest) if len(read_by[latest]) == 1 and latest not in outputs else None",
        "return numbers.get(latest) if latest not in outputs else None",
    ),
    Fault(
        "fused-sum-given-out", LOWERING, ("STA-RUN",),
        "A convolution is put into the sum behind it though a step outside the compiled run reads it.",
        "if len(read_by[latest]) == 1 and latest not in outputs else None",
        "if len(read_by[latest]) == 1 else None",
    ),
    Fault(
        "fused-sum-of-the-first", LOWERING, ("STA-RUN",),
        "The convolution is taken for the sum's first operand, which it mostly is; DIA-ADD is not symmetric.",
        "first = step.a == conv.name",
        "first = True",
    ),
    Fault(
        "grid-of-the-other-operand", LOWERING, ("STA-RUN",),
        "The operand beside a fused convolution has the convolution's grid.",
        "return self.add.b_qparams if self.first else self.add.a_qparams",
        "return self.add.a_qparams if self.first else self.add.b_qparams",
    ),
    Fault(
        "relu-behind-dynamic-lost", LOWERING, ("DYN-OUTPUT",),
        "A ReLU is put into the dynamic layer before it, and forgotten there.",
        "DynamicLinear(step.name, layer.x, layer, True)",
        "DynamicLinear(step.name, layer.x, layer, False)",
    ),
    Fault(
        "slices-begin-at-the-first", BATCHING, ("STA-BATCH-SIZE",),
        "Every thread's slice of a batch begins where the first one's does.",
        "result.append((plan, tuple(start * step for step in steps)))",
        "result.append((plan, tuple(0 * step for step in steps)))",
    ),
    Fault(
        "slices-of-one-stride", BATCHING, ("STA-BATCH-SIZE",),
        "From slice to slice the inputs move on, by the bytes of one sample.",
        "plan.frame.strides[: len(steps)] = [samples * step for step in steps]",
        "plan.frame.strides[: len(steps)] = [step for step in steps]",
    ),
    Fault(
        "last-samples-left-out", BATCHING, ("STA-BATCH-SIZE",),
        "What is left of a batch behind whole slices is not computed.",
        "[(size, count // size), (count % size, 1)]", "[(size, count // size), (0, 1)]",
    ),
    Fault(
        "ceiling-lost-in-float", FLOAT_RUN, ("FUS-CLAMP",),
        "A layer that stays in float keeps its ReLU, and not where that ends.",
        'ceiling = None if node.ceiling == float("inf") else node.ceiling',
        "ceiling = None",
    ),
    Fault(
        "ceiling-lost-in-calibration", FLOAT_RUN, ("STA-SAME",),
        "While ranges are observed, a ReLU6 has no upper end.",
        'return y.relu_() if node.ceiling == float("inf") else y.clamp_(0, node.ceiling)',
        "return y.relu_()",
    ),
    Fault(
        "state-takes-floats", STATE, ("STA-COPY",),
        "load_state_dict looks at the shapes of codes, and not at their type.",
        "if (tensor.dtype, tuple(tensor.shape)) != have[name]:",
        "if tuple(tensor.shape) != have[name][1]:",
    ),
    Fault(
        "state-of-any-shape", STATE, ("STA-COPY",),
        "load_state_dict looks at the types of codes, and not at their shape.",
        "if (tensor.dtype, tuple(tensor.shape)) != have[name]:",
        "if tensor.dtype != have[name][0]:",
    ),
    Fault(
        "state-with-names-left-out", STATE, ("STA-COPY",),
        "A state that lacks arrays is taken, and the network keeps its own.",
        "if set(have) != set(state):",
        "if not set(have) >= set(state):",
    ),
    Fault(
        "state-with-names-to-spare", STATE, ("STA-COPY",),
        "A state that has more arrays than the network is taken.",
        "if set(have) != set(state):",
        "if not set(have) <= set(state):",
    ),
    Fault(
        "state-is-borrowed", MODULE, ("STA-COPY",),
        "load_state_dict keeps the caller's arrays instead of its own.",
        "{name: tensor.numpy().copy() for name, tensor in state.items()}",
        "{name: tensor.numpy() for name, tensor in state.items()}",
    ),
    Fault(
        "engine-of-the-old-state", MODULE, ("STA-COPY",),
        "load_state_dict changes the program, and goes on running what was compiled before.",
        'self.compiled = find_engine(self.asked_engine)(self.program, weights="held")\n\n    def check_arrays',
        "\n\n    def check_arrays",
    ),
    Fault(
        "float-parts-are-the-models", MODULE, ("STA-NO-LEAK", "STA-UNTOUCHED"),
        "What stays in float is shared with whoever has the program.",
        "return {key: copy.deepcopy(what) for key, what in program.callables.items() if key in called}",
        "return {key: what for key, what in program.callables.items() if key in called}",
    ),
    Fault(
        "zero-points-not-restored", TRAVERSE, ("STA-COPY",),
        "Arrays that are put into a program leave the grids' zero points as they were.",
        'inner.get("scale", value.scale), inner.get("zero_point", value.zero_point)',
        'inner.get("scale", value.scale), value.zero_point',
    ),
    Fault(
        "scales-not-restored", TRAVERSE, ("STA-COPY",),
        "Arrays that are put into a program leave the grids' scales as they were.",
        'inner.get("scale", value.scale), inner.get("zero_point", value.zero_point)',
        'value.scale, inner.get("zero_point", value.zero_point)',
    ),
    Fault(
        "sum-in-float-without-relu", CONVERSION, ("FUS-SUM",),
        "A sum that stays in float loses the ReLU that it absorbed.",
        "if isinstance(node, float_graph.Add) and node.relu and isinstance(step, Call):",
        "if isinstance(node, float_graph.Concat) and isinstance(step, Call):",
    ),
    Fault(
        "flat-layers-forget-it", CONVERSION, ("FUS-ROWS",),
        "Whether a linear layer has absorbed a normalization of rows is lost in conversion.",
        "self.steps.append(program.Linear(*layer, node.flat))",
        "self.steps.append(program.Linear(*layer))",
    ),
    Fault(
        "embeddings-on-one-scale", CONVERSION, ("DYN-EMBEDDING",),
        "A table has one scale, as weights have where that is asked for.",
        "Weights(replace(options, per_channel=True)).codes(node.weight, node.layer)",
        "Weights(replace(options, per_channel=False)).codes(node.weight, node.layer)",
    ),
    Fault(
        "pools-count-padding", CONVERSION, ("STA-SAME",),
        "Whether an average counts the padding is lost in conversion.",
        "places = node.kernel, node.stride, node.padding, node.ceil_mode, node.count_include_pad",
        "places = node.kernel, node.stride, node.padding, node.ceil_mode, True",
    ),
    Fault(
        "maxima-not-dilated", CONVERSION, ("STA-SAME",),
        "The dilation of a maximum is lost in conversion.",
        "return program.MaxPool(name, x, node.kernel, node.stride, node.padding, node.dilation, node.ceil_mode)",
        "return program.MaxPool(name, x, node.kernel, node.stride, node.padding, (1, 1), node.ceil_mode)",
    ),
    Fault(
        "means-never-keep", CONVERSION, ("STA-SAME",),
        "A mean's keepdim is lost in conversion.",
        "return program.Mean(name, x, grid, node.axes, node.keepdim)",
        "return program.Mean(name, x, grid, node.axes, False)",
    ),
    Fault(
        "groups-lost-in-conversion", CONVERSION, ("STA-SAME",),
        "A convolution's groups are lost in conversion.",
        "places = node.stride, node.padding, node.dilation, node.input_dilation, node.groups",
        "places = node.stride, node.padding, node.dilation, node.input_dilation, 1",
    ),
    Fault(
        "rest-of-samples-left-out", PARALLEL, ("STA-THREADS",),
        "Threads have equal shares, and nobody what is left.",
        "ends = [count * index // threads for index in range(threads + 1)]",
        "ends = [count // threads * index for index in range(threads + 1)]",
    ),
    Fault(
        "factors-of-the-first-panel", PARALLEL, ("STA-THREADS",),
        "Each thread scales its panels of outputs by the first one's factors.",
        "product.factor += 4 * outputs", "product.factor += 0",
    ),
    Fault(
        "float-bias-of-the-first-panel", PARALLEL, ("STA-THREADS",),
        "Each thread adds to the floats of its panels the first panel's bias.",
        "part.float_bias += 4 * outputs", "part.float_bias += 0",
    ),
    Fault(
        "codes-where-values-are", "engines.compiled.planner", ("STA-THREADS",),
        "A dynamic layer's codes lie where the values of other steps do.",
        'self.work("layer", nbytes)', 'self.work("values", nbytes)',
    ),
    Fault(
        "members-work-in-one-memory", "engines.compiled.batching", ("STA-THREADS",),
        "Threads that run at once work in the same memory.",
        "macs, member, *part)", "macs, 0, *part)",
    ),
    Fault(
        "sums-of-a-part-lost", "kernels.tiles", ("STA-INSTRUCTIONS",),
        "Tiles begin every part of a panel with zero, so that only the last one counts.",
        "each(go_on)", "each(from_zero)",
    ),
    Fault(
        "rows-between-lines-kept", "engines.compiled.layer_instructions", ("STA-INSTRUCTIONS",),
        "What tiles compute between two lines of an image is written over its first output.",
        "np.where(self.rows < 0, spare,", "np.where(self.rows < 0, values[0],",
    ),
    Fault(
        "rows-between-lines-behind", "engines.compiled.sixteens", ("STA-INSTRUCTIONS",),
        "What tiles compute between two lines of an image is written over the output before it.",
        "np.minimum.accumulate(own[:, ::-1], axis=1)[:, ::-1]",
        "np.maximum.accumulate(np.where(own == missing, -1, own), axis=1)",
    ),
    Fault(
        "lines-of-a-kernel-alike", "kernels.grouped", ("STA-INSTRUCTIONS",),
        "Tiles read the first line of a window for every line of the kernel.",
        "np.add.outer(run_offsets, inside)", "np.add.outer([0] * len(run_offsets), inside)",
    ),
    Fault(
        "tiles-of-other-steps", "kernels.tiles", ("STA-INSTRUCTIONS",),
        "Tiles are set up for one step less than they have.",
        "4 * steps] * 2", "4 * steps - 4] * 2",
    ),
    Fault(
        "a-bundle-of-the-first-panel", "kernels.grouped", ("STA-INSTRUCTIONS",),
        "Of the panels that a group passes one after the other, it passes the first one again and again.",
        "panel = emit.add(begin, n)\n                    told", "panel = begin\n                    told",
    ),
    Fault(
        "weights-moved-for-each-engine", "kernels.packed", ("SIZ-RESIDENT",),
        "Each engine of a network moves the weights to memory of its own.",
        "and not product.moved", "",
    ),
    Fault(
        "outputs-of-the-first-depthwise", PARALLEL, ("STA-THREADS",),
        "All threads write the rows of a depthwise convolution where the first one does.",
        "layer.y_offsets += 4 * first", "layer.y_offsets += 0",
    ),
    Fault(
        "summand-of-the-first-thread", PARALLEL, ("STA-THREADS",),
        "All threads add the other operand's first rows.",
        "part.b_offsets += 4 * first", "part.b_offsets += 0",
    ),
    Fault(
        "states-of-the-first-thread", PARALLEL, ("STA-THREADS",),
        "All threads step the cells of an LSTM that are the first one's.",
        "part.c += before", "part.c += 0",
    ),
    Fault(
        "windows-counted-by-the-first", PARALLEL, ("STA-THREADS",),
        "Averages are those over as many positions as the first thread's windows have.",
        'for entry in ("counts", "y_offsets", "factors"):', 'for entry in ("y_offsets",):',
    ),
    Fault(
        "bags-of-the-first-thread", "kernels.table", ("STA-THREADS",),
        "All threads make their bags of the first one's indices.",
        "frame.x_from, frame.y_from = 8 * size * first,", "frame.x_from, frame.y_from = 0,",
    ),
    Fault(
        "nan-of-a-worker-lost", "kernels.sharing", ("STA-THREADS",),
        "What a worker says of its part, such as that it holds NaN, is not heard.",
        "return emit.or_(mine, emit.any_of(others, lambda i: emit.call(wait, [pair(i)[0], apart])))",
        "return emit.select(emit.flag(op, ShareOut.busy), mine,"
        " emit.any_of(others, lambda i: emit.call(wait, [pair(i)[0], apart])))",
    ),
    Fault(
        "nan-of-a-team-lost", "kernels.team", ("STA-THREADS",),
        "Only the first of torch's threads is heard.",
        "return emit.any_of(members, lambda i: emit.read(result_of(emit, op, i), I64, 8))",
        "return emit.read(result_of(emit, op, I64(0)), I64, 8)",
    ),
    Fault(
        "turned-images-begin-anew", "engines.compiled.copy_instructions", ("STA-MOVE",),
        "The rows of all images of planes are put where those of the first one are.",
        "before += count * of_rows[0]", "before += 0",
    ),
    Fault(
        "lying-floats-for-anybody", "engines.compiled.engine", ("STA-RUNTIME",),
        "What a convolution gives is left as it lies though its order in memory makes a difference to who reads it.",
        "return turned is not None and not turned[0] and all(map(normalizes, of.get(step.name, ())))",
        "return turned is not None and not turned[0]",
    ),
    Fault(
        "lying-floats-given-out", "engines.compiled.engine", ("STA-RUNTIME",),
        "What a convolution gives is left as it lies though it is an output.",
        "return {name for name, steps in of.items() if name not in given and all(map(puts_last, steps))}",
        "return {name for name, steps in of.items() if all(map(puts_last, steps))}",
    ),
    Fault(
        "run-refused-as-a-whole", "engines.compiled.segment", ("STA-RUN",),
        "All layers around a step that kernels refuse are left to the reference engine.",
        "steps = self.steps if len(self.steps) > 1 else ()", "steps = ()",
    ),
    Fault(
        "no-axes-are-one", "engines.tensors", ("STA-RUN",),
        "A value without axes gets one.",
        "return torch.from_numpy(np.ascontiguousarray(x).reshape(x.shape))",
        "return torch.from_numpy(np.ascontiguousarray(x))",
    ),
    Fault(
        "rows-broadcast-as-images", "engines.compiled.planner", ("STA-RUN",),
        "Rows of one feature are added to others as if their channels were positions.",
        "return a[1] == b[1] if images else", "return a[1] == b[1] if not images else",
    ),
    Fault(
        "sums-of-any-shapes", "engines.compiled.shapes", ("STA-DIRECT",),
        "Sums in products take operands of any shapes for alike.",
        "    shape = features(step.linear, shapes[step.x])\n    if shape != shapes[step.b]:",
        "    shape = features(step.linear, shapes[step.x])\n    if not shape:",
    ),
    Fault(
        "sums-with-the-first-outputs", "kernels.float_output", ("STA-THREADS",),
        "What a thread adds to its share of outputs is the first share's.",
        "emit.put_field(op, ProductSum.b, emit.add(slot_address(emit, frame, slot), ahead))",
        "emit.put_field(op, ProductSum.b, emit.add(slot_address(emit, frame, slot), emit.mul(ahead, I64(0))))",
    ),
    Fault(
        "sums-of-what-others-read", "engines.compiled.selection", ("STA-DIRECT",),
        "A sum is made in a product whose outputs are read elsewhere.",
        "alone = previous in direct & run - outputs and len(read_by[previous]) == 1",
        "alone = previous in direct & run - outputs",
    ),
]  # fmt: skip
