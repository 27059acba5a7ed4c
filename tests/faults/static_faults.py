"""Faults in preparing, calibrating, converting and running static networks (chapter 5)."""

from faults.fault import Fault

CALIBRATE = 'for batch in progress(calibration, "calibrate"):\n        prepared.observe(batch)'
UNCALIBRATED = 'raise CalibrationError(f"{self.prepared.place(name)}: {error}; run calibration data through it first") from error'

FAULTS = [
    Fault(
        "quantize-always-fuses", "static", ("STA-STEPS",),
        "quantize() does not hand its options on to prepare().",
        "prepared = prepare(model, **options)", "prepared = prepare(model, **(options | dict(fuse=True)))",
    ),
    Fault(
        "observer-at-every-value", "static", ("STA-STEPS",),
        "Every value of the network is observed, those that no layer makes or reads too.",
        "            places |= {sources[node.x]: None, node.name: None}",
        "            places |= {sources[node.x]: None, node.name: None}\n        places |= {node.name: None}",
    ),
    Fault(
        "parameters-frozen", "capture", ("STA-UNTOUCHED", "DYN-NO-CALIBRATION"),
        "Gradients are switched off in the model that was given, which cannot be trained any more.",
        "    check_model(model)\n    try:", "    check_model(model)\n    model.requires_grad_(False)\n    try:",
    ),
    Fault(
        "hooks-left-behind", "capture", ("STA-UNTOUCHED", "DYN-NO-CALIBRATION"),
        "A hook that watched the model is not taken off again.",
        "    check_model(model)\n    try:", "    check_model(model)\n    model.register_forward_hook(lambda *_: None)\n    try:",
    ),
    Fault(
        "uncalibrated-defaults", "static", ("STA-CALIBRATED",),
        "A place without data gets the range from 0 to 1, as torch's observers do with a warning.",
        UNCALIBRATED, "ends = np.float32(0), np.float32(1)",
    ),
    Fault(
        "first-batch-twice", "static", ("STA-EVERY-BATCH",),
        "The model is traced with the first batch, which is observed once more afterwards.",
        CALIBRATE, f"for batch in calibration if isinstance(calibration, (list, tuple)) else []:\n        prepared.observe(batch)\n        break\n    {CALIBRATE}",
    ),
    Fault(
        "last-batch-dropped", "static", ("STA-EVERY-BATCH",),
        "The loop looks one batch ahead and ends before the last.",
        CALIBRATE, f"calibration = list(calibration)\n    calibration = calibration[:-1] or calibration\n    {CALIBRATE}",
    ),
    Fault(
        "calibrated-in-bfloat16", "static", ("STA-FLOAT",),
        "To be quick the observers see values of eight digits.",
        "fresh[name].observe(value.detach().numpy())", "fresh[name].observe(value.detach().bfloat16().float().numpy())",
    ),
    Fault(
        "weights-affine", "static", ("STA-WEIGHT",),
        "Weights get a zero point of their own, like activations.",
        "symmetric=True, axis=axis)", "symmetric=False, axis=axis)",
    ),
    Fault(
        "weights-always-per-channel", "static", ("STA-WEIGHT",),
        "The option is read nowhere, and every row has its own scale.",
        "axis = 0 if per_channel else None", "axis, per_channel = 0, True",
    ),
    Fault(
        "activations-symmetric", "dialects", ("STA-ACTIVATION",),
        "Activations are spread symmetrically about zero, and one behind a ReLU uses half of its codes.",
        "grid = self.qparams(minimum, maximum, qmin=0, qmax=127 if reduce_range else 255, symmetric=False)",
        "grid = self.qparams(minimum, maximum, qmin=0, qmax=127 if reduce_range else 255, symmetric=True)",
    ),
    Fault(
        "reduced-range-lost", "static", ("STA-REDUCE",),
        "The option does not reach the activations.",
        "reduce_range=self.prepared.reduce_range)", "reduce_range=False)",
    ),
    Fault(
        "reduced-scale-only", "dialects", ("STA-REDUCE", "DIA-REDUCED"),
        "The scale is that of seven bits, and the codes still go up to 255.",
        'REDUCED = {"codes": (0, 127)', 'REDUCED = {"codes": (0, 255)',
    ),
    Fault(
        "relu-observed-by-itself", "static", ("STA-SAME-GRID", "STA-BOUNDARY"),
        "An unfused ReLU is computed in float and quantized again on a grid of its own.",
        "kept = isinstance(node, capture.Flatten) or (isinstance(node, capture.Relu) and sources[node.x] in linear)", "kept = isinstance(node, capture.Flatten)",
    ),
    Fault(
        "layers-read-the-inputs-grid", "engines.reference", ("STA-RUN",),
        "Each layer takes its input to be on the grid of the network's input.",
        "y = choices.linear(rows, step.x_qparams, step",
        "y = choices.linear(rows, program.steps[0].qparams if isinstance((program := self.program).steps[0], Quantize) else step.x_qparams, step",
    ),
    Fault(
        "range-goes-on-moving", "engines.reference", ("STA-FROZEN",),
        "The observer of the input stays on when the network runs, and larger inputs widen its grid for good.",
        "            grid = step.qparams\n",
        "            grid = step.qparams\n"
        "            self.peak = max(getattr(self, 'peak', 0.0), float(x.abs().max()) if x.numel() else 0.0)\n"
        "            grid = type(grid)(max(grid.scale, np.float32(self.peak / 255)), grid.zero_point, grid.qmin, grid.qmax)\n",
    ),
    Fault(
        "grids-kept-with-calibration", "static", ("STA-LATER",),
        "The grids are computed once and kept, so that data seen after the first conversion counts for nothing.",
        "self.grids: dict[str, QParams] = {}", 'self.grids = prepared.__dict__.setdefault("grids", {})',
    ),
    Fault(
        "float-parts-shared", "module", ("STA-NO-LEAK",),
        "Networks made from one calibration hold the same modules for what stays in float.",
        "{key: copy.deepcopy(what) for key, what in callables.items() if key in used}", "{key: what for key, what in callables.items() if key in used}",
    ),
    Fault(
        "batch-of-one-loses-its-axis", "engines.reference", ("STA-BATCH-SIZE",),
        "A squeeze that was meant for the channels removes the axis of a single row too.",
        "y = y.reshape(*x.shape[:-1], outputs)", "y = y.reshape(*x.shape[:-1], outputs)\n        y = y[0] if x.ndim == 2 and len(y) == 1 else y",
    ),
    Fault(
        "float-parts-without-a-reason", "capture", ("STA-REST",),
        "What stays in float is computed, and nobody is told why.",
        'else f"{shown} {NO_INTEGER_FORM}"', 'else ""',
    ),
    Fault(
        "overflow-refuses-the-network", "static", ("STA-OVERFLOW",),
        "One layer that could overflow makes the whole conversion fail.",
        "            self.keep(node, str(error))", "            raise error\n            self.keep(node, str(error))",
    ),
    Fault(
        "division-in-place", "dialects", ("STA-ARGUMENTS",),
        "To save memory the quotients are written over the caller's tensor.",
        "np.rint(x / scale)", "np.rint(np.divide(x, scale, out=x if x.shape == np.broadcast_shapes(x.shape, np.shape(scale)) and x.flags.writeable else None))",
    ),
]
