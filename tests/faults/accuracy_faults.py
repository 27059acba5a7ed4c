"""Faults in the error bound and in the confidence bound (chapter 9)."""

from faults.fault import Fault

TERMS = "x.sum(axis=1, keepdims=True) * s_w / 2 + weight.sum(axis=1) * s_x / 2 + inputs * s_x * s_w / 4"

FAULTS = [
    Fault(
        "bound-without-cross-terms", "numerics.accuracy", ("ACC-LAYER", "ACC-TIGHT"),
        "The product of the two rounding errors is dropped as small "
        "of second order, and the bound does not hold any more.",
        TERMS, TERMS.replace(" + inputs * s_x * s_w / 4", ""),
    ),
    Fault(
        "bound-of-whole-steps", "numerics.accuracy", ("ACC-LAYER", "ACC-TIGHT"),
        "Each rounding is taken to cost a whole step, and the bound is reached by no layer.",
        TERMS, TERMS.replace("/ 2", "/ 1"),
    ),
    Fault(
        "bound-without-output-step", "numerics.accuracy", ("ACC-LAYER", "ACC-TIGHT"),
        "The rounding of the output is forgotten, and with small weights it is nearly all of the error.",
        "return terms + s_x * s_w / 2 + s_y / 2", "return terms + s_x * s_w / 2",
    ),
    Fault(
        "disagreements-balanced", "numerics.accuracy", ("ACC-DROP",),
        "What changed for the better is set off against what changed for the worse.",
        "k = int((a != b).sum())", "k = abs(int((a < b).sum()) - int((a > b).sum()))",
    ),
    Fault(
        "upper-bound-of-the-bell-curve", 'numerics.accuracy', ("ACC-UPPER",),
        "Wald's interval takes the share itself for the bound where nothing was seen.",
        "return high", "return min(k / n + 2.3263478740408408 * (k / n * (1 - k / n) / n) ** 0.5, 1.0)",
    ),
    Fault(
        "upper-bound-two-sided", 'numerics.accuracy', ("ACC-UPPER",),
        "Half of the error probability is kept for a lower bound that nobody asked for.",
        "< 1 - confidence else", "< (1 - confidence) / 2 else",
    ),
    Fault(
        "lower-bound-for-the-upper", 'numerics.accuracy', ("ACC-UPPER",),
        "Fewer than k events are counted, as for the lower bound.",
        "events = np.arange(k + 1)", "events = np.arange(max(k, 1))",
    ),
    Fault(
        "calibrated-on-raw-pixels", "tutorial.tutorial", ("ACC-TUTORIAL",),
        "The network is calibrated with pixels from 0 to 1 and then "
        "reads normalised ones from -1 to 1, of which half saturate.",
        "dataset.x_train[:CALIBRATION_IMAGES]", "((dataset.x_train[:CALIBRATION_IMAGES] + 1) / 2)",
    ),
    Fault(
        'sqnr-of-amplitudes', 'numerics.accuracy', ('ACC-SQNR',),
        'Decibels of amplitudes are taken of powers.',
        'return 10 * math.log10(signal / noise) if signal else -math.inf',
        'return 20 * math.log10(signal / noise) if signal else -math.inf',
    ),
    Fault(
        "recurrent-layers-not-compared", "comparison.compare", ("ACC-COMPARE",),
        "Only values that are one tensor are put beside each other, and outputs of recurrent layers are not.",
        "        if isinstance(node, float_graph.Recurrent):\n            floats",
        "        if False:\n            floats",
    ),
    Fault(
        'compared-with-codes', 'comparison.compare', ('ACC-COMPARE',),
        "A layer's codes are compared as if they were its values.",
        'torch.from_numpy(grid.dequantize(value))',
        'torch.from_numpy(value.astype(np.float32))',
    ),
]
