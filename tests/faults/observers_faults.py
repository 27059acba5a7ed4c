"""Faults in observers and their ranges (chapter 2)."""

from faults.fault import Fault

IMPORTS = "from .errors import CalibrationError\n"
SANITIZED = f"""{IMPORTS}
exact_array = float32_array


def float32_array(x):
    x = exact_array(x)
    return {{}}
"""
MERGED = "return replace(self, minimum=np.minimum(self.minimum, low), maximum=np.maximum(self.maximum, high))"
FIRST = "return replace(self, minimum=low, maximum=high)\n        check_channels(self.minimum, low)"
MOVED = "exact = [Fraction(float(a)) + Fraction(constant) * (Fraction(float(b)) - Fraction(float(a))) for a, b in pairs]"
BATCH_OF_AN_AVERAGE = '"""The observer after one more batch ``x`` (float32, any shape); raises as ``MinMaxObserver.observe`` does."""\n'
WIDTH = "exact = end < 0 and fraction == 0.5"
EDGES = "return np.maximum(edges[0], minimum), np.minimum(edges[1], maximum)"

FAULTS = [
    Fault(
        "last-batch-only",
        "Each batch replaces the range instead of widening it.",
        "observers",
        MERGED,
        "return replace(self, minimum=low, maximum=high)",
        ("OBS-MINMAX", "OBS-ORDER", "OBS-SPLIT", "OBS-GROW", "OBS-MERGE"),
    ),
    Fault(
        "range-starts-at-zero",
        "The ends start as 0 instead of as nothing, so that every range holds 0.",
        "observers",
        FIRST,
        FIRST.replace("minimum=low, maximum=high", "minimum=np.minimum(low, np.float32(0)), maximum=np.maximum(high, np.float32(0))"),
        ("OBS-MINMAX", "OBS-CHANNEL"),
    ),
    Fault(
        "first-batch-only",
        "The range is set when the observer is made ready and never looked at again.",
        "observers",
        MERGED,
        "return self",
        ("OBS-MINMAX", "OBS-ORDER", "OBS-SPLIT", "OBS-MERGE"),
    ),
    Fault(
        "merge-keeps-the-narrower",
        "minimum and maximum are taken of the wrong pairs, and merging gives what both saw in common.",
        "observers",
        MERGED,
        "return replace(self, minimum=np.maximum(self.minimum, low), maximum=np.minimum(self.maximum, high))",
        ("OBS-MERGE", "OBS-GROW"),
    ),
    Fault(
        "empty-observer-erases",
        "Merging with an observer that saw nothing gives nothing.",
        "observers",
        "return self if other.minimum is None else self._merged(other.minimum, other.maximum)",
        "return other if other.minimum is None else self._merged(other.minimum, other.maximum)",
        ("OBS-MERGE",),
    ),
    Fault(
        "margin-with-every-batch",
        "A margin for safety is added whenever a batch is seen, so that the same data twice widens the range twice.",
        "observers",
        MERGED,
        "return replace(self, minimum=np.minimum(self.minimum, low) - np.float32(0.01), maximum=np.maximum(self.maximum, high) + np.float32(0.01))",
        ("OBS-IDEMPOTENT", "OBS-MINMAX", "OBS-SPLIT"),
    ),
    Fault(
        "nan-skipped",
        "nanmin and nanmax pass over what shows that the data is broken.",
        "observers",
        IMPORTS,
        SANITIZED.format("np.where(np.isnan(x), np.float32(0), x)"),
        ("OBS-FINITE",),
    ),
    Fault(
        "infinity-is-the-largest-number",
        "The input is sanitized, and one infinity makes every code useless.",
        "observers",
        IMPORTS,
        SANITIZED.format("np.clip(x, np.finfo(np.float32).min, np.finfo(np.float32).max)"),
        ("OBS-FINITE",),
    ),
    Fault(
        "no-data-is-zero-to-zero",
        "An observer that saw nothing says that it saw zeros.",
        "observers",
        '            raise CalibrationError("the observer has seen no values, so there is no range")',
        "            return np.float32(0), np.float32(0)",
        ("OBS-NOTHING", "STA-CALIBRATED"),
    ),
    Fault(
        "empty-tensor-is-zero",
        "A tensor without elements counts as a zero.",
        "observers",
        "    if x.size == 0:\n        return None",
        "    if x.size == 0:\n        x = np.zeros([max(n, 1) for n in x.shape], np.float32)",
        ("OBS-EMPTY", "OBS-NOTHING"),
    ),
    Fault(
        "negative-axis-misread",
        "An axis counted from the end is counted from the start.",
        "observers",
        "tuple(i for i in range(x.ndim) if i != axis % x.ndim)",
        "tuple(i for i in range(x.ndim) if i != abs(axis))",
        ("OBS-CHANNEL",),
    ),
    Fault(
        "range-of-the-whole-tensor",
        "The axis shapes the result, and every channel has the range of all.",
        "observers",
        "low, high = np.asarray(x.min(axis=others)), np.asarray(x.max(axis=others))",
        "low, high = (np.broadcast_to(end, np.shape(x.min(axis=others))).copy() for end in (x.min(), x.max()))",
        ("OBS-CHANNEL",),
    ),
    Fault(
        "other-channels-start-anew",
        "A tensor with another number of channels resets the observer, as torch's does.",
        "observers",
        "        if self.minimum is None:\n            " + FIRST,
        "        if self.minimum is None or self.minimum.shape != low.shape:\n            " + FIRST,
        ("OBS-CHANNEL-COUNT",),
    ),
    Fault(
        "average-shares-swapped",
        "The constant is the share of what was, not of the newest batch.",
        "observers",
        MOVED,
        MOVED.replace("Fraction(constant)", "(1 - Fraction(constant))"),
        ("OBS-AVERAGE", "OBS-AVERAGE-CONSTANT"),
    ),
    Fault(
        "average-in-float32",
        "torch computes the average in float32, with a rounding after each of three operations.",
        "observers",
        MOVED,
        "exact = [Fraction(float(a + np.float32(constant) * np.float32(float(b) / 2 - float(a) / 2) * np.float32(2))) for a, b in pairs]",
        ("OBS-AVERAGE",),
    ),
    Fault(
        "average-starts-at-zero",
        "The first batch pulls a range of zero towards its own instead of setting it.",
        "observers",
        "return replace(self, minimum=batch[0], maximum=batch[1])",
        "return replace(self, minimum=moved(batch[0] * 0, batch[0], self.constant), maximum=moved(batch[1] * 0, batch[1], self.constant))",
        ("OBS-AVERAGE",),
    ),
    Fault(
        "large-tensors-in-pieces",
        "To save memory a long tensor is observed in pieces, each of which pulls the average.",
        "observers",
        BATCH_OF_AN_AVERAGE,
        BATCH_OF_AN_AVERAGE + "        if self.axis is None and np.size(x) > 16:\n            return self.observe(np.ravel(x)[:16]).observe(np.ravel(x)[16:])\n",
        ("OBS-AVERAGE-ORDER", "OBS-AVERAGE"),
    ),
    Fault(
        "average-constant-may-be-zero",
        "A constant of 0 passes, with which the range stays that of the first batch.",
        "observers",
        "if not 0 < self.constant <= 1:",
        "if not 0 <= self.constant <= 1:",
        ("OBS-AVERAGE-CONSTANT",),
    ),
    Fault(
        "bins-too-coarse-below",
        "-2^k is taken not to fit bins that end there, though the lowest bin begins at it.",
        "observers",
        WIDTH,
        "exact = False",
        ("OBS-HIST-WIDTH",),
    ),
    Fault(
        "bins-truncate",
        "A cast to an integer rounds towards zero, so that the bins beside zero become one.",
        "observers",
        "index = np.floor(np.ldexp(",
        "index = np.trunc(np.ldexp(",
        ("OBS-HIST-COUNT",),
    ),
    Fault(
        "merge-adds-bins-as-they-are",
        "Counts are added bin by bin, whatever the width of either histogram's bins.",
        "observers",
        "coarser(self.counts, exponent - self.exponent) + coarser(other.counts, exponent - other.exponent)",
        "self.counts + other.counts",
        ("OBS-HIST-MERGE", "OBS-HIST-COUNT"),
    ),
    Fault(
        "any-even-number-of-bins",
        "Evenness is checked where a power of two is needed.",
        "observers",
        "if self.bins < 2 or self.bins & (self.bins - 1):",
        "if self.bins < 2 or self.bins % 2:",
        ("OBS-HIST-BINS",),
    ),
    Fault(
        "percentile-from-one-end",
        "The whole share that may be cut off is cut off at each end.",
        "observers",
        "(100 - Fraction(self.percent)) // 200",
        "(100 - Fraction(self.percent)) // 100",
        ("OBS-PERCENTILE",),
    ),
    Fault(
        "percentile-cuts-too-little",
        "A bin whose values could just be cut off is kept.",
        "observers",
        "low = int(np.argmax(np.cumsum(counts) > allowed)) - half",
        "low = int(np.argmax(np.cumsum(counts) >= max(allowed, 1))) - half",
        ("OBS-PERCENTILE",),
    ),
    Fault(
        "percentile-ends-at-bin-edges",
        "The range ends where its bins end, beyond what was seen.",
        "observers",
        EDGES,
        "return np.asarray(edges[0]), np.asarray(edges[1])",
        ("OBS-PERCENTILE", "OBS-PERCENTILE-ALL"),
    ),
    Fault(
        "percent-may-be-zero",
        "0 percent passes, of which no range is left.",
        "observers",
        "if not 0 < self.percent <= 100:",
        "if not 0 <= self.percent <= 100:",
        ("OBS-PERCENTILE-SHARE",),
    ),
    Fault(
        "absolute-error",
        "The error is not squared, and outliers weigh less.",
        "observers",
        "(counts * (centres - steps * scale) ** 2).sum()",
        "(counts * np.abs(centres - steps * scale)).sum()",
        ("OBS-MSE",),
    ),
    Fault(
        "narrowest-of-equals",
        "The candidates come narrowest first, and of equal errors the first is taken.",
        "observers",
        "for k in range(self.candidates, 0, -1)]",
        "for k in range(1, self.candidates + 1)]",
        ("OBS-MSE",),
    ),
    Fault(
        "error-of-one-in-each-bin",
        "A bin counts once, however many values it holds.",
        "observers",
        "counts = self.histogram.counts[used]",
        "counts = np.minimum(self.histogram.counts[used], 1)",
        ("OBS-MSE",),
    ),
]
