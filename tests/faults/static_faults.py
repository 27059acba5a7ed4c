"""Faults in preparing, calibrating, converting and running static networks (chapter 5)."""

from faults.fault import Fault

CALIBRATE = 'for batch in progress(calibration, "calibrate"):\n        network.observe(batch)'

FAULTS = [
    Fault(
        "quantize-always-fuses", "ptq.static", ("STA-STEPS",),
        "quantize() does not hand its options on to prepare().",
        "fuse=fuse, exclude=exclude, share=True)", "fuse=True, exclude=exclude, share=True)",
    ),
    Fault(
        "observer-at-every-value", 'ptq.placement', ("STA-STEPS",),
        "Every value of the network is observed, those that no layer makes or reads too.",
        "        return list(places)\n\n    def place(",
        "        places |= dict.fromkeys(node.name for node in self.graph.nodes)\n        return list(places)\n\n"
        "    def place(",
    ),
    Fault(
        "parameters-frozen", "capture.copies", ("STA-UNTOUCHED", "DYN-NO-CALIBRATION"),
        "Gradients are switched off in the model that was given, which cannot be trained any more.",
        "    twin = copied(model, share=share and", "    twin = copied(model.requires_grad_(False), share=share and",
    ),
    Fault(
        "hooks-left-behind", "capture.copies", ("STA-UNTOUCHED", "DYN-NO-CALIBRATION"),
        "A hook that watched the model is not taken off again.",
        "    twin = copied(model, share=share and",
        "    model.register_forward_hook(lambda *_: None)\n    twin = copied(model, share=share and",
    ),
    Fault(
        "uncalibrated-defaults", 'ptq.conversion', ("STA-CALIBRATED",),
        "A place without data gets the range from 0 to 1, as torch's observers do with a warning.",
        'raise CalibrationError(f"{place}: {error}; call the network with calibration data first") from error',
        'low, high = np.float32(0), np.float32(1)',
    ),
    Fault(
        "first-batch-twice", "ptq.static", ("STA-EVERY-BATCH",),
        "The model is traced with the first batch, which is observed once more afterwards.",
        CALIBRATE,
        "for batch in calibration if isinstance(calibration, (list, tuple)) else []:\n"
        f"        network.observe(batch)\n        break\n    {CALIBRATE}",
    ),
    Fault(
        "last-batch-dropped", "ptq.static", ("STA-EVERY-BATCH",),
        "The loop looks one batch ahead and ends before the last.",
        CALIBRATE,
        f"calibration = list(calibration)\n    calibration = calibration[:-1] or calibration\n    {CALIBRATE}",
    ),
    Fault(
        "calibrated-in-bfloat16", "ptq.static", ("STA-FLOAT",),
        "To be quick the observers see values of eight digits.",
        "observed(fresh[name], value)", "observed(fresh[name], value.bfloat16().float())",
    ),
    Fault(
        "weights-affine", 'ptq.conversion', ("STA-WEIGHT",),
        "Weights get a zero point of their own, like activations.",
        'symmetric=True, axis=axis)', 'symmetric=False, axis=axis)',
    ),
    Fault(
        "weights-always-per-channel", 'ptq.conversion', ("STA-WEIGHT",),
        "The option is read nowhere, and every row has its own scale.",
        'axis = 0 if per_channel else None', 'axis, per_channel = 0, True',
    ),
    Fault(
        "activations-symmetric", 'numerics.dialects.dialect', ("STA-ACTIVATION",),
        "Activations are spread symmetrically about zero, and one behind a ReLU uses half of its codes.",
        'grid = self.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=False)',
        'grid = self.qparams(minimum, maximum, qmin=qmin, qmax=qmax, symmetric=True)',
    ),
    Fault(
        "reduced-range-lost", 'ptq.conversion', ("STA-REDUCE",),
        "The option does not reach the activations.",
        'low, high, reduce_range=reduce_range, bits=bits)',
        'low, high, reduce_range=False, bits=bits)',
    ),
    Fault(
        "reduced-scale-only", 'numerics.dialects.dialect', ("STA-REDUCE", "DIA-REDUCED"),
        "The scale is that of seven bits, and the codes still go up to 255.",
        '(whole if self.reduced_rule == "container" else (grid.qmin, grid.qmax))', 'whole',
    ),
    Fault(
        "relu-observed-by-itself", 'ptq.placement', ("STA-SAME-GRID", "STA-BOUNDARY"),
        "An unfused ReLU is computed in float and quantized again on a grid of its own.",
        'if not isinstance(node, Elementwise) and passes',
        'if not isinstance(node, (Elementwise, Relu)) and passes',
    ),
    Fault(
        "layers-read-the-inputs-grid", "engines.reference", ("STA-RUN",),
        "Each layer takes its input to be on the grid of the network's input.",
        "    layer = rows, step.x_qparams, step.weight",
        "    linear.first = getattr(linear, 'first', step.x_qparams)\n    layer = rows, linear.first, step.weight",
    ),
    Fault(
        "range-goes-on-moving", 'engines.reference', ("STA-FROZEN",),
        "The observer of the input stays on when the network runs, and larger inputs widen its grid for good.",
        '    grid = step.qparams\n',
        "    grid = step.qparams\n"
        "    quantize.peak = max(getattr(quantize, 'peak', 0.0), float(values[step.x].abs().max()) if "
        "values[step.x].numel() else 0.0)\n    grid = grid if quantize.peak < 255 * float(grid.scale) else "
        "type(grid)(np.float32(quantize.peak / 255), grid.zero_point, grid.qmin, grid.qmax)\n",
    ),
    Fault(
        "grids-kept-with-calibration", 'ptq.conversion', ("STA-LATER",),
        "The grids are computed once and kept, so that data seen after the first conversion counts for nothing.",
        'self.grids: dict[str, QParams] = {}', 'self.grids = placement.__dict__.setdefault("grids", {})',
    ),
    Fault(
        "float-parts-shared", "module.module", ("STA-NO-LEAK",),
        "Networks made from one calibration hold the same modules for what stays in float.",
        "{key: copy.deepcopy(what) for key, what in program", "{key: what for key, what in program",
    ),
    Fault(
        "batch-of-one-loses-its-axis", 'engines.reference', ("STA-BATCH-SIZE",),
        "A squeeze that was meant for the channels removes the axis of a single row too.",
        '    return choices.linear(*layer, relu=step.relu).reshape(shape)\n',
        '    y = choices.linear(*layer, relu=step.relu).reshape(shape)\n'
        '    return y[0] if x.ndim == 2 and len(y) == 1 else y\n',
    ),
    Fault(
        "float-parts-without-a-reason", "capture.builder", ("STA-REST",),
        "What stays in float is computed, and nobody is told why.",
        'else f"{shown} {NO_INTEGER_FORM}"', 'else ""',
    ),
    Fault(
        "overflow-refuses-the-network", 'ptq.conversion', ("STA-OVERFLOW",),
        "One layer that could overflow makes the whole conversion fail.",
        '            self.keep(node, str(error))', '            raise error\n            self.keep(node, str(error))',
    ),
    Fault(
        "division-in-place", "numerics.dialects.quantize", ("STA-ARGUMENTS",),
        "To save memory the quotients are written over the caller's tensor.",
        "np.rint(x / scale)",
        "np.rint(np.divide(x, scale, out=x if x.shape "
        "== np.broadcast_shapes(x.shape, np.shape(scale)) and x.flags.writeable else None))",
    ),
    Fault(
        'pads-with-code-0', 'ir.rearrange', ('STA-MOVE',),
        'Padding puts the code 0 around, whatever it stands for.',
        'return F.pad(x, widths, mode, zero_point)',
        'return F.pad(x, widths, mode, 0)',
    ),
    Fault(
        'moves-are-float', 'ptq.placement', ('STA-SAME-GRID',),
        'Pooled values get a grid of their own.',
        'if not isinstance(node, Elementwise) and passes',
        'if not isinstance(node, Elementwise | Pool) and passes',
    ),
    Fault(
        'joins-always-in-codes', 'ptq.placement', ('STA-PLACE',),
        'Whatever is added to codes is quantized for it.',
        'if all(in_codes(name) for name in dict.fromkeys(own_reads(node))):',
        'if any(in_codes(name) for name in dict.fromkeys(own_reads(node))):',
    ),
    Fault(
        "sums-for-float-in-codes", "ptq.placement", ("STA-PLACE",),
        "What layers gave is added in codes, whoever reads the sum.",
        "self.placed(fed, self.for_float_alone())", "self.placed(fed, frozenset())",
    ),
    Fault(
        "joined-though-a-layer-reads-it", "ptq.placement", ("STA-JOIN",),
        "Whatever is joined has the join's grid, though a layer reads it too and wants its own.",
        "in self.coded - others]", "in self.coded]",
    ),
    Fault(
        "joins-rounded-twice", "ptq.placement", ("STA-JOIN",),
        "What is joined has a grid of its own, and is rounded to the join's afterwards.",
        "self.joined = self.share_grids()", "self.joined = {}",
    ),
    Fault(
        "floats-kept-in-half", "engines.reference", ("STA-RUNTIME",),
        "What operations in float give is kept in 16 bits on the way to the codes behind it.",
        "    return call_float(step, callables, lambda name: rearrange.as_tensors(values[name]))",
        "    y = call_float(step, callables, lambda name: rearrange.as_tensors(values[name]))\n"
        "    return y.half().float() if isinstance(y, torch.Tensor) and y.is_floating_point() else y",
    ),
    Fault(
        'sizes-of-floats', 'ptq.conversion', ('STA-SIZES',),
        'A size is read from the dequantized value.',
        'read = self.codes.get(node.x) or self.as_float(node.x)',
        'read = self.as_float(node.x)',
    ),
    Fault(
        'one-leaf-spoils-all', 'capture.parts', ('STA-LEAF',),
        'Where the whole model cannot be captured, its children are tried, and not what is in them.',
        'if path in self.paths if self.paths is not None else has_layers(module):',
        'if path in self.paths if self.paths is not None else has_layers(module) and "." not in path:',
    ),
    Fault(
        'each-call-begins-anew', 'module.islands', ('STA-PARTS',),
        'What the Python of the model keeps from one call is gone at the next.',
        'return self.python(*args, **kwargs)', 'return copy.deepcopy(self.python)(*args, **kwargs)',
    ),
    Fault(
        'bias-beyond-its-code', 'ptq.conversion', ('STA-WEIGHT-BIAS',),
        'The scale of a channel is that of its weights, however small beside its bias.',
        'np.maximum(grid.scale, floor))', 'grid.scale)',
    ),
    Fault(
        'captured-and-believed', 'capture.parts', ('STA-SAME', 'DYN-EXAMPLE'),
        'What was traced is used without a look at what the model computes.',
        '    if type(expected) is not type(got):', '    return None\n    if type(expected) is not type(got):',
    ),
    Fault(
        'flags-forgotten', 'capture.calls', ('STA-WAYS',),
        'A call with another flag runs the network of the calls that calibration had.',
        '    shape: str\n    constants: tuple[Any, ...]\n',
        '    shape: str\n    constants: tuple[Any, ...] = field(compare=False)\n',
    ),
    Fault(
        'constants-computed-each-time', 'capture.constants', ('STA-CONSTANT',),
        'A weight that the forward computes is no weight, and its layer stays in float.',
        '            attributes[name] = value.detach().clone()', '            continue',
    ),
    Fault(
        'hooks-lost-with-the-layer', 'ptq.dynamic', ('DYN-LAYERS',),
        'What runs around a layer is lost when the layer is replaced.',
        '        return QuantizedModel(copies.own_copy(self.model), {}, layers, tuple(stops), report)\n',
        '        for path in networks:\n            self.model.get_submodule(path)._forward_hooks.clear()\n'
        '        return QuantizedModel(copies.own_copy(self.model), {}, layers, tuple(stops), report)\n',
    ),
    Fault(
        'inputs-given-as-they-are', 'module.islands', ('STA-IN-PLACE', 'STA-ARGUMENTS'),
        'Python between the parts writes to the input that the caller gave.',
        '            if "" not in self.islands:', '            if False:',
    ),
    Fault(
        'masks-forgotten', 'ir.attention', ('STA-ATTENTION',),
        'A key padding mask does not reach the attention.',
        '        parts.append(floating(key_padding_mask, query).reshape(-1, 1, 1, keys))', '        pass',
    ),
    Fault(
        'excluded-only-by-full-path', 'ptq.exclude', ('STA-EXCLUDE',),
        'Excluding a module leaves what is below it in.',
        'for n in range(1, len(parts) + 1))',
        'for n in [len(parts)])',
    ),
    Fault(
        "unknown-names-exclude-nothing", "ptq.exclude", ("STA-EXCLUDE-NAME",),
        "A misspelled name excludes nothing, and nobody hears of it.",
        "if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):", "if not paths:",
    ),
    Fault(
        "weight-bits-up-to-sixteen", "ptq.options", ("STA-BITS-RANGE",),
        "The range of the option is that of a wider integer, and what is refused later names another argument.",
        '"weight_bits") not in range(2, 9)', '"weight_bits") not in range(1, 17)',
    ),
    Fault(
        'bits-of-weights-only', 'ptq.conversion', ('STA-BITS',),
        'Activations keep eight bits.',
        'low, high, reduce_range=reduce_range, bits=bits)',
        'low, high, reduce_range=reduce_range)',
    ),
    Fault(
        'nothing-without-a-word', 'ptq.work', ('STA-NOTHING',),
        'A network that stayed in float is handed out without a warning.',
        '    if not any(program.layers for program in programs):\n',
        '    if programs is None:\n',
    ),
    Fault(
        'state-of-weights-only', 'module.module', ('STA-COPY',),
        'A state_dict carries no grids of activations.',
        'for step in steps for path, array in arrays(step)}',
        'for step in steps for path, array in arrays(step) if "qparams" not in path}',
    ),
    Fault(
        "direct-though-read-as-codes", "ptq.placement", ("STA-DIRECT",),
        "A layer gives floats as soon as one reader wants them, and they are quantized again for the others.",
        "if node.name in floats - kept}", "if node.name in floats}",
    ),
    Fault(
        "direct-without-relu-only", "ptq.placement", ("STA-DIRECT",),
        "What only float operations read keeps codes behind a ReLU, whatever the range.",
        'isinstance(node, Layer) and node.ceiling == float("inf"))', "isinstance(node, Layer) and not node.relu)",
    ),
    Fault(
        "direct-without-ceiling", "ptq.placement", ("STA-DIRECT",),
        "A layer whose clamp ends at 6 gives floats, which end nowhere.",
        'isinstance(node, Layer) and node.ceiling == float("inf"))', "isinstance(node, Layer))",
    ),
    Fault(
        "checksum-not-looked-at", "storage.file", ("STA-FORMAT",),
        "What a file says is taken for what was written to it.",
        'if header["sha256"] != digest(content, tensors):', "if not header:",
    ),
    Fault(
        "scales-in-six-digits", "storage.json_fields", ("STA-STORED",),
        "Scales are written with the six digits that %g prints.",
        "row[key] = array.item() if array.ndim == 0 else",
        'row[key] = np.float32(f"{array:g}").item() if array.dtype == np.float32 and not array.ndim else '
        "array.item() if array.ndim == 0 else",
    ),
    Fault(
        "eval-on-the-list", "storage.allowed", ("STA-NO-CODE",),
        "The list of built-in functions that a file may name is not read with an attacker's eyes.",
        '"builtins": "abs bool float getattr', '"builtins": "abs bool eval float getattr',
    ),
    Fault(
        "any-model-is-taken", "module.load", ("STA-OTHER-MODEL",),
        "The model is not compared with the one that the file was written for.",
        "    same_modules(own, network)\n", "    assert network is not own\n",
    ),
    Fault(
        'weights-held-twice', 'module.islands', ('STA-CODED',),
        'The copy of the model keeps its weights in float beside the codes of its parts.',
        '            coded_weights.keep_codes(model, programs)\n', '            pass\n',
    ),
    Fault(
        'python-sees-few-parameters', 'module.coded', ('STA-CODED',),
        "A module of the copy that is asked for its parameters gives those that are held in float.",
        'OWN.items() if tensors else ()', 'OWN.items() if not tensors else ()',
    ),
    Fault(
        'codes-of-another-layer', 'module.coded', ('STA-CODED',),
        'The codes of whatever layer has a weight of the same shape are taken for a weight.',
        'if (np.abs(codes * steps - wanted) <= np.abs(steps)).all():', 'if steps is not None:',
    ),
    Fault(
        'own-weights-kept', 'module.load', ('STA-MODEL-STORED',),
        'The model that is given keeps its own weights, which are others than those of the file.',
        'tensor.data = network.state[name]', 'tensor.data = tensor.data',
    ),
    Fault(
        'model-written-to', 'module.load', ('STA-MODEL-STORED',),
        'The tensors of the file are put into the model of the caller.',
        'own = None if model is None else copies.own_copy(copies.inside(model))', 'own = model',
    ),
    Fault(
        "relu-behind-a-sum-in-float", "ptq.conversion", ("STA-REST",),
        "A sum has absorbed the ReLU behind it, and is computed in float without it.",
        "if isinstance(node, float_graph.Add) and node.relu and isinstance(step, Call):", "if node is None:",
    ),
    Fault(
        "random-numbers-drawn", "ptq.static", ("STA-UNTOUCHED",),
        "Calibration draws from the user's random numbers.",
        "            torch.set_rng_state(random)", "            assert random is not None",
    ),
    Fault(
        "left-out-arguments-not-asked", "ptq.captured", ("STA-WAYS",),
        "A network that was traced with an optional argument is used without it.",
        "if self.traced is not None and not gives_optional(self.traced, args, kwargs):", "if self.traced is not None:",
    ),
    Fault(
        "zeros-need-memory", "engines.tensors", ("STA-MEMORY",),
        "Tensors of zeros without memory are handed on as they are, and torch refuses to show them.",
        "if x._is_zerotensor():", "if False:",
    ),
    Fault(
        "observed-inside-vmap", "capture.calls", ("STA-MEMORY",),
        "What vmap hands on is taken for the values of one sample, until an operation refuses it in torch's words.",
        "elif not training and stands_for_others(value):", "elif False:",
    ),
    Fault(
        "last-floats-read-whole", "kernels.quantize", ("STA-BOUNDS",),
        "The last floats are read as sixteen, since only the lanes of the mask are written.",
        "x = emit.read_some(emit.add(source, emit.shl(at, I64(2))), FLOATS, mask, emit.splat(0.0, FLOATS))",
        "x = emit.read(emit.add(source, emit.shl(at, I64(2))), FLOATS)",
    ),
    Fault(
        "rows-of-images-one-more", "engines.compiled.layer_instructions", ("STA-BOUNDS",),
        "A layer has a row more than there are, whose places lie behind the table of places.",
        "x_offsets=planner.keep(sources.offsets),", "x_offsets=planner.keep(sources.offsets[:-1]),",
    ),
    Fault(
        "outputs-on-the-default-device", "engines.tensors", ("STA-DEFAULTS",),
        "Outputs are made on whatever device the process has as its default.",
        "return functools.partial(torch.empty_strided, shape, steps, dtype=dtype, device=CPU)",
        "return functools.partial(torch.empty_strided, shape, steps, dtype=dtype)",
    ),
    Fault(
        "inference-mode-goes-on", "surroundings", ("STA-SURROUNDINGS",),
        "Models are copied and observed in the inference mode of the caller, where torch keeps no versions.",
        "if torch.is_inference_mode_enabled():", "if False:",
    ),
    Fault(
        "autocast-observed", "surroundings", ("STA-SURROUNDINGS",),
        "Autocast stays on while a network is observed.",
        "and not torch.is_autocast_enabled(\"cpu\")", "",
    ),
    Fault(
        "models-autocast-unseen", "module.modes", ("STA-MODES",),
        "A layer gives float32 where the model itself has autocast on.",
        'return network(*args, **kwargs).to(torch.get_autocast_dtype("cpu"))', "return network(*args, **kwargs)",
    ),
    Fault(
        "contiguous-is-a-copy", "capture.aliases", ("STA-LAYOUT",),
        "What contiguous gives is taken for a copy, though it is its input where that lies in order.",
        "    contiguous reshape reshape_as flatten", "    reshape reshape_as flatten",
    ),
    Fault(
        "lists-are-arguments", "ptq.captured", ("STA-LIST",),
        "A list is the arguments in order, whatever the model takes.",
        "self.one_list = parts.as_given(self.model, batch) is not batch", "self.one_list = False",
    ),
    Fault(
        "distances-wrap", "kernels.memory", ("STA-LARGE",),
        "Distances in memory are cut to 32 bits, whatever they are.",
        "if distances.size and not -LONGEST", "if not distances.size and not -LONGEST",
    ),
    Fault(
        "steps-left-over-dropped", "kernels.gemm", ("STA-INSTRUCTIONS",),
        "Inputs behind the last whole round of several steps are left out.",
        "return emit.loop(emit.sub(steps, done), emit.loop(count, carried, several), single)",
        "return emit.loop(emit.sub(done, done), emit.loop(count, carried, several), single)",
    ),
    Fault(
        "pairs-that-overflow", "kernels.magnitudes", ("STA-PAIRS",),
        "Negative bytes are read as unsigned ones, of which two products leave 16 bits.",
        "return emit.select(negative, emit.neg(values), values), emit.sext(negative, CODES)",
        "return values, emit.sext(negative, CODES)",
    ),
    Fault(
        "lacking-products-forgotten", "kernels.magnitudes", ("STA-PAIRS", "STA-INSTRUCTIONS"),
        "Sums begin with zero, and not with what products of rewritten weights lack.",
        "result.append(emit.sub(total, products(emit, magnitude, turned)))", "result.append(total)",
    ),
    Fault(
        "lacking-codes-forgotten", "kernels.magnitudes", ("STA-PAIRS", "STA-INSTRUCTIONS"),
        "Sums do not begin with what products of rewritten codes lack.",
        "totals += [emit.add(start, lost) for start in begin]", "totals += begin",
    ),
    Fault(
        "lacking-of-channels-forgotten", "kernels.depthwise", ("STA-PAIRS", "STA-INSTRUCTIONS"),
        "Sums of channels that are each on their own do not begin with what products in pairs lack.",
        "    return emit.sub(total, magnitudes.products(emit, *weights))", "    return total",
    ),
    Fault(
        "tiles-refused-in-silence", "kernels.tiles", ("STA-TILES",),
        "A process without leave computes by other instructions, and nobody is told.",
        "    if refused:\n", "    if refused < 0:\n",
    ),
    Fault(
        "links-replaced", "storage.file", ("STA-FILE",),
        "A link is replaced by the file, and what it led to is left as it was.",
        "path = Path(os.path.realpath(path_of(path)))", "path = Path(path_of(path))",
    ),
    Fault(
        "buffers-are-weights", "capture.products", ("STA-PRODUCT",),
        "Tables that a model only reads are taken for weights of layers, in eight bits.",
        "isinstance(value, nn.Parameter) and value.dtype", "isinstance(value, torch.Tensor) and value.dtype",
    ),
    Fault(
        "angles-are-layers", "capture.products", ("STA-PRODUCT",),
        "What sines are taken of has eight bits, where one step may turn an angle all around.",
        "if user.target in CIRCULAR or (moves", "if user is node or (moves",
    ),
    Fault(
        "hidden-functions-are-traced", "capture.builder", ("STA-IN-PLACE",),
        "A graph calls functions that torch.fx.wrap hides, and what they write to is lost where it is in codes.",
        "aliases.hides_writes(target):", "not aliases.HIDDEN:",
    ),
    Fault(
        "defaults-given-twice", "capture.calls", ("STA-PARTS", "STA-WAYS"),
        "A part is called with defaults that nobody gave, which its decorator gives too.",
        "if list(map(id, filter(is_tensor, passed))) != list(map(id, tensors)):", "if passed is not None:",
    ),
    Fault(
        "search-with-eight-bits", "ptq.static", ("STA-SEARCH",),
        "Ranges are searched with 256 codes, also where there will be sixteen.",
        "qmax=2 ** (options.bits - options.reduce_range) - 1)", "qmax=255)",
    ),
    Fault(
        "sizes-limited-each-alone", "storage.limits", ("STA-LIMITS",),
        "Of the sizes that multiply only the largest is held to a limit.",
        "positions = math.prod(windows)", "positions = max(windows)",
    ),
    Fault(
        "limits-not-looked-at", "storage.limits", ("STA-LIMITS",),
        "What a file states is added up, and any file is loaded.",
        "            if total > limit:", "            if total < 0:",
    ),
    Fault(
        "biases-held-twice", "module.islands", ("STA-CODED",),
        "The biases of layers stay parameters of the model around the networks that have them.",
        'self.__dict__["biases"] = coded_weights.keep_biases(model, programs)', 'self.__dict__["biases"] = frozenset()',
    ),
    Fault(
        "nan-is-zero-in-codes", "engines.not_numbers", ("STA-NAN",),
        "NaN becomes the code of 0, and nothing tells it from a measurement.",
        "        self.masks[name] = found.astype(np.uint8)\n", "",
    ),
    Fault(
        "nan-beyond-its-group", "engines.not_numbers", ("STA-NAN",),
        "A NaN in one group of a convolution spoils the outputs of all groups.",
        "    result = np.repeat(windows, shape[0] // step.groups, axis=1)",
        "    result = np.repeat(windows.max(1, keepdims=True), shape[0], axis=1)",
    ),
    Fault(
        "nan-forgotten-by-kernels", "engines.compiled.engine", ("STA-NAN",),
        "Where the kernels run again with numbers, their outputs are taken as they are.",
        "return [values.masked(name, y, masks[name]) for name, y in zip(segment.outputs, outputs)]", "return outputs",
    ),
]
