"""Faults in counting bytes, and in what has to be stored (chapter 8)."""

from faults.fault import Fault

LAYER = "arrays = [step.weight, step.bias, step.w_qparams.scale, step.w_qparams.zero_point]"
GRID_RETURNED = "return dialect.quantize(weight, grid.scale, grid.zero_point, qmin=qmin, qmax=qmax, axis=axis), grid"

FAULTS = [
    Fault(
        "buffers-not-counted",
        "parameters() has no buffers, so that running statistics cost nothing.",
        "footprint",
        "[*model.parameters(), *model.buffers()]",
        "[*model.parameters()]",
        ("SIZ-BYTES",),
    ),
    Fault(
        "bias-not-counted",
        "Only the weights are counted, as in the rule of thumb of a byte a weight.",
        "footprint",
        LAYER,
        LAYER.replace("step.bias, ", ""),
        ("SIZ-BYTES", "SIZ-LAYER", "SIZ-NETWORK"),
    ),
    Fault(
        "codes-counted-as-elements",
        "Elements are counted instead of bytes, which is the same for codes only.",
        "footprint",
        "sum(array.nbytes for array in",
        "sum(array.size for array in",
        ("SIZ-BYTES", "SIZ-LAYER", "SIZ-ONCE"),
    ),
    Fault(
        "shared-arrays-counted-again",
        "Every layer counts its arrays, whoever else has them too.",
        "footprint",
        "in {id(array): array for array in arrays}.values())",
        "in arrays)",
        ("SIZ-ONCE",),
    ),
    Fault(
        "equal-arrays-counted-once",
        "Arrays are told apart by what they hold, so that one of two equal ones is forgotten.",
        "footprint",
        "{id(array): array for array in arrays}",
        "{array.tobytes(): array for array in arrays}",
        ("SIZ-NETWORK",),
    ),
    Fault(
        "zero-point-for-each-channel",
        "The zero point is stored for each channel, though it is 0 in all.",
        "affine",
        "zero_point = np.int32(center)",
        "zero_point = np.full(low.shape, center, np.int32)",
        ("SIZ-QPARAMS", "SIZ-LAYER", "SIZ-RATIO"),
    ),
    Fault(
        "input-grid-not-counted",
        "Layers are counted, and the input's scale and zero point are nobody's.",
        "footprint",
        "arrays = [step.qparams.scale, step.qparams.zero_point]",
        "arrays = []",
        ("SIZ-NETWORK", "SIZ-BYTES"),
    ),
    Fault(
        "weights-in-int32",
        "Codes are kept in the type in which they were computed, four bytes each.",
        "static",
        GRID_RETURNED,
        GRID_RETURNED.replace("axis=axis), grid", "axis=axis).astype(np.int32), grid"),
        ("SIZ-LAYER", "SIZ-RATIO", "SIZ-SMALLER"),
    ),
]
