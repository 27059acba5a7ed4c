"""Faults in the error bound and in the confidence bound (chapter 9)."""

from faults.fault import Fault

TERMS = "terms = x.sum(axis=1, keepdims=True) * s_w / 2 + weight.sum(axis=1) * s_x / 2 + inputs * s_x * s_w / 4"
QUANTILE = "float(beta.ppf(confidence, k + 1, n - k))"

FAULTS = [
    Fault(
        "bound-without-cross-terms",
        "The product of the two rounding errors is dropped as small of second order, and the bound does not hold any more.",
        "accuracy",
        TERMS,
        TERMS.replace(" + inputs * s_x * s_w / 4", ""),
        ("ACC-LAYER", "ACC-TIGHT"),
    ),
    Fault(
        "bound-of-whole-steps",
        "Each rounding is taken to cost a whole step, and the bound is reached by no layer.",
        "accuracy",
        TERMS,
        TERMS.replace("/ 2", "/ 1"),
        ("ACC-LAYER", "ACC-TIGHT"),
    ),
    Fault(
        "bound-without-the-outputs-step",
        "The rounding of the output is forgotten, and with small weights it is nearly all of the error.",
        "accuracy",
        "return terms + s_x * s_w / 2 + s_y / 2",
        "return terms + s_x * s_w / 2",
        ("ACC-LAYER", "ACC-TIGHT"),
    ),
    Fault(
        "disagreements-balanced",
        "What changed for the better is set off against what changed for the worse.",
        "accuracy",
        "k = int((a != b).sum())",
        "k = abs(int((a < b).sum()) - int((a > b).sum()))",
        ("ACC-DROP",),
    ),
    Fault(
        "upper-bound-of-the-normal-distribution",
        "Wald's interval takes the share itself for the bound where nothing was seen.",
        "accuracy",
        QUANTILE,
        "min(k / n + 2.3263478740408408 * (k / n * (1 - k / n) / n) ** 0.5, 1.0)",
        ("ACC-UPPER",),
    ),
    Fault(
        "upper-bound-two-sided",
        "Half of the error probability is kept for a lower bound that nobody asked for.",
        "accuracy",
        QUANTILE,
        QUANTILE.replace("confidence", "(1 + confidence) / 2"),
        ("ACC-UPPER",),
    ),
    Fault(
        "lower-bound-for-the-upper",
        "The beta distribution of the lower bound is taken.",
        "accuracy",
        QUANTILE,
        "float(beta.ppf(confidence, max(k, 1e-9), n - k + 1))",
        ("ACC-UPPER",),
    ),
    Fault(
        "tutorial-calibrated-on-raw-pixels",
        "The network is calibrated with pixels from 0 to 1 and then reads normalised ones from -1 to 1, of which half saturate.",
        "tutorial",
        "dataset.x_train[:CALIBRATION_IMAGES]",
        "((dataset.x_train[:CALIBRATION_IMAGES] + 1) / 2)",
        ("ACC-TUTORIAL",),
    ),
]
