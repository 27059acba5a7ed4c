"""Faults in counting bytes, and in what has to be stored (chapter 8)."""

from faults.fault import Fault

LAYER = "arrays = [step.weight, step.bias, step.w_qparams.scale, step.w_qparams.zero_point]"

FAULTS = [
    Fault(
        "buffers-not-counted", "module.size", ("SIZ-BYTES",),
        "parameters() has no buffers, so that running statistics cost nothing.",
        "[*model.parameters(), *model.buffers()]", "[*model.parameters()]",
    ),
    Fault(
        "bias-not-counted", 'module.size', ("SIZ-BYTES", "SIZ-LAYER", "SIZ-NETWORK"),
        "Only the weights are counted, as in the rule of thumb of a byte a weight.",
        'if path.partition(".")[0] not in READ_GRIDS]', 'if path.partition(".")[0] not in (*READ_GRIDS, "bias")]',
    ),
    Fault(
        "codes-counted-as-elements", "module.size", ("SIZ-BYTES", "SIZ-LAYER"),
        "Elements are counted instead of bytes, which is the same for codes only.",
        "sum(array.nbytes for array in", "sum(array.size for array in",
    ),
    Fault(
        "shared-arrays-counted-again", "module.size", ("SIZ-ONCE",),
        "Every layer counts its arrays, whoever else has them too.",
        "in {id(array): array for array in arrays}.values())", "in arrays)",
    ),
    Fault(
        "equal-arrays-counted-once", "module.size", ("SIZ-NETWORK",),
        "Arrays are told apart by what they hold, so that one of two equal ones is forgotten.",
        "{id(array): array for array in arrays}", "{array.tobytes(): array for array in arrays}",
    ),
    Fault(
        "zero-point-for-each-channel", "numerics.affine", ("SIZ-QPARAMS", "SIZ-LAYER", "SIZ-RATIO"),
        "The zero point is stored for each channel, though it is 0 in all.",
        "zero_point = np.int32(center)", "zero_point = np.full(low.shape, center, np.int32)",
    ),
    Fault(
        "input-grid-not-counted", 'module.size', ("SIZ-NETWORK", "SIZ-BYTES"),
        "Layers are counted, and the input's scale and zero point are nobody's.",
        'if isinstance(step, SHARING):', 'if hasattr(step, "qparams"):',
    ),
    Fault(
        "weights-in-int32", "ir.held", ("SIZ-LAYER", "SIZ-RATIO", "SIZ-SMALLER"),
        "Codes count as what they are computed in, four bytes each.",
        "return int(np.prod(self.shape))", "return 4 * int(np.prod(self.shape))",
    ),
    Fault(
        'macs-of-the-input', 'module.size', ('SIZ-MACS',),
        'Multiply-accumulates of a convolution with stride are counted at every input.',
        'shape = x_shape if spread else y_shape',
        'shape = x_shape',
    ),
    Fault(
        'transposed-work-of-the-output', 'ptq.work', ('SIZ-REPORT',),
        'The work of a transposed convolution is counted at every position of its output.',
        '(x if transposed else result).numel()', 'result.numel()',
    ),
    Fault(
        'python-reported-as-int8', 'ptq.work', ('SIZ-REPORT',),
        'What Python computes between the networks is taken for a part of them.',
        'return [Work(path, count, PYTHON, reason(path))', 'return [Work(path, count, INT8, reason(path))',
    ),
    Fault(
        'warning-at-half', 'ptq.work', ('SIZ-WARN',),
        'As long as half of the work is in int8 nothing is said.',
        'ENOUGH = 0.9', 'ENOUGH = 0.5',
    ),
    Fault(
        'excluded-work-counts', 'module.report', ('SIZ-WARN',),
        'Who excludes a layer is warned that it is in float.',
        'wanted = self.macs - self.excluded_macs\n        return self.int8',
        'wanted = self.macs\n        return self.int8',
    ),
    Fault(
        "codes-kept-beside-packed", "module.module", ("SIZ-RESIDENT",),
        "The engine packs the weights, and the program keeps its codes.",
        'weights="taken" if own else "held")', 'weights="copied")',
    ),
    Fault(
        "last-codes-lost", "kernels.packed", ("SIZ-CODES",),
        "Codes are unpacked from whole groups of four inputs only.",
        "codes[first:last] = own[: outputs - first, :, :inputs]",
        "codes[first:last] = own[: outputs - first, :, :inputs] * (np.arange(inputs) < inputs // 4 * 4)",
    ),
    Fault(
        "recurrent-unpacks-for-shapes", "engines.reference_dynamic", ("SIZ-CALL",),
        "A recurrent layer reads its codes in each call, to see how many inputs there are.",
        'inputs = codes_shape(step.cells[0], "input_weight")[1]', "inputs = step.cells[0].input_weight.shape[1]",
    ),
    Fault(
        "values-held-to-the-end", "engines.compiled.engine", ("SIZ-VALUES",),
        "The compiled engine holds every value until the call returns.",
        "for name in done:", "for name in ():",
    ),
    Fault(
        "value-held-for-one-more-step", "ir.traverse", ("SIZ-VALUES",),
        "A value is given up one step after its last reader.",
        "done[index].append(name)", "done[min(index + 1, len(steps) - 1)].append(name)",
    ),
    Fault(
        "workspace-for-each-layer", "kernels.memory", ("SIZ-WORKSPACE",),
        "Every layer has memory of its own to work in.",
        "if existing is None or existing.nbytes < nbytes:", "if True:",
    ),
    Fault(
        "packed-over-what-is-read", "kernels.packed", ("SIZ-CODES",),
        "Codes are packed where they are, though their rows are shorter than packed ones.",
        "if take and weight[:1].nbytes == row else None",
        "if take and weight[:1].nbytes == row or outputs % 16 else None",
    ),
    Fault(
        "model-copied-to-be-run", "ptq.static", ("SIZ-PEAK",),
        "A copy of the whole float model is made to be calibrated.",
        "exclude=exclude, share=True)", "exclude=exclude, share=False)",
    ),
    Fault(
        "file-read-whole", "storage.file", ("SIZ-PEAK",),
        "The bytes of the file are read, and then the arrays in them.",
        "return contents(source, modules or {}, model=model, limits=limits)",
        "return contents(io.BytesIO(source.read()), modules or {}, model=model, limits=limits)",
    ),
    Fault(
        "padding-not-told", "module.size", ("SIZ-TOLD",),
        "What fills whole vectors up is taken for nothing.",
        "return sum(item.resident - item.nbytes for item in found.values())", "return 0 * len(found)",
    ),
]
