"""Faults in observers and their ranges (chapter 2)."""

from faults.fault import Fault

IMPORTS = (
    "from .affine import Float32, Float64, float32_array, nearest_float32, nearest_float32s, qparams\n"
)
SANITIZED = f"""{IMPORTS}
exact_array = float32_array


def float32_array(x):
    x = exact_array(x)
    return {{}}
"""
MERGED = "return replace(self, minimum=np.minimum(lowest, low), maximum=np.maximum(highest, high))"
FIRST = "return replace(self, minimum=low, maximum=high)\n        check_channels"
KNOWN = "ends = wider()(address, count, self._known)"
NEXT = "        if ends is None:\n            return self\n        low, high = finite_ends(*ends)\n"
MOVED = (
    "exact = [Fraction(float(a)) + Fraction(constant) * (Fraction(float(b)) - Fraction(float(a))) for a, b in pairs]"
)
BATCH_OF_AN_AVERAGE = (
    '"""The observer after one more batch ``x`` (float32, any shape). Raises as ``MinMaxObserver.observe`` does."""\n'
)
WIDTH = "exact = fraction == -0.5"
EDGES = "return np.maximum(left, minimum), np.minimum(right, maximum)"

FAULTS = [
    Fault(
        "last-batch-only", "numerics.observers", ("OBS-MINMAX", "OBS-ORDER", "OBS-SPLIT", "OBS-GROW", "OBS-MERGE"),
        "Each batch replaces the range instead of widening it.",
        KNOWN, KNOWN.replace("self._known", "held(NOTHING)"),
    ),
    Fault(
        "range-starts-at-zero", "numerics.observers", ("OBS-MINMAX",),
        "The ends start as 0 instead of as nothing, so that every range holds 0.",
        "NOTHING = PAIR(math.inf, -math.inf)", "NOTHING = PAIR(0, 0)",
    ),
    Fault(
        "first-batch-only", "numerics.observers", ("OBS-MINMAX", "OBS-ORDER", "OBS-SPLIT", "OBS-MERGE"),
        "The range is set when the observer is made ready and never looked at again.",
        NEXT, NEXT.replace("ends is None", "ends is None or self.minimum is not None"),
    ),
    Fault(
        "merge-keeps-the-narrower", "numerics.observers", ("OBS-MERGE",),
        "minimum and maximum are taken of the wrong pairs, and merging gives what both saw in common.",
        MERGED, "return replace(self, minimum=np.maximum(lowest, low), maximum=np.minimum(highest, high))",
    ),
    Fault(
        "empty-observer-erases", "numerics.observers", ("OBS-MERGE",),
        "Merging with an observer that saw nothing gives nothing.",
        "return self if other.minimum is None else self._merged(*other.range())",
        "return other if other.minimum is None else self._merged(*other.range())",
    ),
    Fault(
        "margin-with-every-batch", "numerics.observers", ("OBS-IDEMPOTENT", "OBS-MINMAX", "OBS-SPLIT"),
        "A margin for safety is added whenever a batch is seen, so that the same data twice widens the range twice.",
        NEXT,
        "        low, high = self.range() if ends is None else finite_ends(*ends)\n"
        "        low, high = low - np.float32(0.01), high + np.float32(0.01)\n",
    ),
    Fault(
        "nan-skipped", "numerics.observers", ("OBS-FINITE",),
        "nanmin and nanmax pass over what shows that the data is broken.",
        IMPORTS, SANITIZED.format("np.where(np.isnan(x), np.float32(0), x)"),
    ),
    Fault(
        "infinity-is-the-largest-number", "numerics.observers", ("OBS-FINITE",),
        "The input is sanitized, and one infinity makes every code useless.",
        IMPORTS, SANITIZED.format("np.clip(x, np.finfo(np.float32).min, np.finfo(np.float32).max)"),
    ),
    Fault(
        "no-data-is-zero-to-zero", "numerics.observers", ("OBS-NOTHING",),
        "An observer that saw nothing says that it saw zeros.",
        '        raise CalibrationError("the observer has seen no values, so there is no range")',
        "        return np.float32(0), np.float32(0)",
    ),
    Fault(
        "empty-tensor-is-zero", "numerics.observers", ("OBS-EMPTY", "OBS-NOTHING"),
        "A tensor without elements counts as a zero.",
        "    if x.size == 0:\n        return None",
        "    if x.size == 0:\n        x = np.zeros([max(n, 1) for n in x.shape], np.float32)",
    ),
    Fault(
        "negative-axis-misread", "numerics.observers", ("OBS-CHANNEL",),
        "An axis counted from the end is counted from the start.",
        "tuple(i for i in range(x.ndim) if i != axis % x.ndim)", "tuple(i for i in range(x.ndim) if i != abs(axis))",
    ),
    Fault(
        "range-of-the-whole-tensor", "numerics.observers", ("OBS-CHANNEL",),
        "The axis shapes the result, and every channel has the range of all.",
        "low, high = np.asarray(np.minimum.reduce(x, axis=others)), np.asarray(np.maximum.reduce(x, axis=others))",
        "low, high = (np.broadcast_to(end, np.shape(x.min(axis=others))).copy() for end in (x.min(), x.max()))",
    ),
    Fault(
        "other-channels-start-anew", "numerics.observers", ("OBS-CHANNEL-COUNT",),
        "A tensor with another number of channels resets the observer, as torch's does.",
        "        if self.minimum is None:\n            " + FIRST,
        "        if self.minimum is None or self.minimum.shape != low.shape:\n            " + FIRST,
    ),
    Fault(
        "channels-merged-together", "numerics.observers", ("OBS-CHANNEL-MERGE",),
        "Merging widens every channel by the whole of the other observer.",
        "self._merged(*other.range())",
        "self._merged(*(np.full_like(end, most) for end, "
        "most in ((other.minimum, other.minimum.min()), (other.maximum, other.maximum.max()))))",
    ),
    Fault(
        "average-shares-swapped", "numerics.observers", ("OBS-AVERAGE",),
        "The constant is the share of what was, not of the newest batch.",
        MOVED, MOVED.replace("Fraction(constant)", "(1 - Fraction(constant))"),
    ),
    Fault(
        "average-in-float32", "numerics.observers", ("OBS-AVERAGE",),
        "torch computes the average in float32, with a rounding after each of three operations.",
        MOVED,
        "exact = [Fraction(float(a + np.float32(constant) * np.float32(float(b) / 2 - float(a) / 2) * np.float32(2))) "
        "for a, b in pairs]",
    ),
    Fault(
        "average-starts-at-zero", "numerics.observers", ("OBS-AVERAGE",),
        "The first batch pulls a range of zero towards its own instead of setting it.",
        "return replace(self, minimum=batch[0], maximum=batch[1])",
        "return replace(self, minimum=moved(batch[0] * 0, batch[0], self.constant), "
        "maximum=moved(batch[1] * 0, batch[1], self.constant))",
    ),
    Fault(
        "large-tensors-in-pieces", "numerics.observers", ("OBS-AVERAGE-ORDER", "OBS-AVERAGE"),
        "To save memory a long tensor is observed in pieces, each of which pulls the average.",
        BATCH_OF_AN_AVERAGE,
        BATCH_OF_AN_AVERAGE
        + "        if self.axis is None and np.size(x) > 16:\n"
        "            return self.observe(np.ravel(x)[:16]).observe(np.ravel(x)[16:])\n",
    ),
    Fault(
        "average-constant-may-be-zero", "numerics.observers", ("OBS-AVERAGE-CONSTANT",),
        "A constant of 0 passes, with which the range stays that of the first batch.",
        'if not 0 < real_number(self.constant, "constant") <= 1:', "if not 0 <= self.constant <= 1:",
    ),
    Fault(
        "bins-too-coarse-below", "numerics.observers", ("OBS-HIST-WIDTH",),
        "-2^k is taken not to fit bins that end there, though the lowest bin begins at it.",
        WIDTH, "exact = False",
    ),
    Fault(
        "bins-truncate", "numerics.observers", ("OBS-HIST-COUNT",),
        "A cast to an integer rounds towards zero, so that the bins beside zero become one.",
        "index = np.floor(np.ldexp(", "index = np.trunc(np.ldexp(",
    ),
    Fault(
        "merge-adds-bins-as-they-are", "numerics.observers", ("OBS-HIST-MERGE", "OBS-HIST-COUNT"),
        "Counts are added bin by bin, whatever the width of either histogram's bins.",
        "coarser(ours, exponent - our_exponent) + coarser(theirs, exponent - their_exponent)",
        "self.counts + other.counts",
    ),
    Fault(
        "any-even-number-of-bins", "numerics.observers", ("OBS-HIST-BINS",),
        "Evenness is checked where a power of two is needed.",
        "if not 2 <= bins <= MOST_BINS or bins.bit_count() != 1:", "if not 2 <= bins <= MOST_BINS or bins % 2:",
    ),
    Fault(
        "percentile-from-one-end", "numerics.observers", ("OBS-PERCENTILE", "OBS-PERCENTILE-NARROWEST"),
        "The whole share that may be cut off is cut off at each end.",
        "(100 - Fraction(self.percent)) // 200", "(100 - Fraction(self.percent)) // 100",
    ),
    Fault(
        "percentile-cuts-too-little", "numerics.observers", ("OBS-PERCENTILE", "OBS-PERCENTILE-NARROWEST"),
        "A bin whose values could just be cut off is kept.",
        "low = int(np.argmax(np.cumsum(counts) > allowed)) - half",
        "low = int(np.argmax(np.cumsum(counts) >= max(allowed, 1))) - half",
    ),
    Fault(
        "percentile-ends-at-bin-edges", "numerics.observers", ("OBS-PERCENTILE", "OBS-PERCENTILE-ALL"),
        "The range ends where its bins end, beyond what was seen.",
        EDGES, "return left, right",
    ),
    Fault(
        "percent-may-be-zero", "numerics.observers", ("OBS-PERCENTILE-SHARE",),
        "0 percent passes, of which no range is left.",
        'if not 0 < real_number(self.percent, "percent") <= 100:', "if not 0 <= self.percent <= 100:",
    ),
    Fault(
        "histogram-without-a-search", "numerics.observers", ("OBS-HIST-SEARCH",),
        "The histogram is counted, and the range is that of the smallest and the largest value.",
        "        return self.within(low, high, exponent)", "        return self.ends()",
    ),
    Fault(
        "search-of-eight-bits", "numerics.observers", ("OBS-HIST-SEARCH", "STA-SEARCH"),
        "The steps are those of 256 codes, however many the network has.",
        "least_expected_error(counts, self.qmax - self.qmin)", "least_expected_error(counts, 255)",
    ),
    Fault(
        "absolute-error", "numerics.observers", ("OBS-MSE",),
        "The error is not squared, and outliers weigh less.",
        "np.multiply(real, real, out=real)", "np.abs(real, out=real)",
    ),
    Fault(
        "narrowest-of-equals", "numerics.observers", ("OBS-MSE",),
        "The candidates come narrowest first, and of equal errors the first is taken.",
        "np.arange(self.candidates, 0, -1)", "np.arange(1, self.candidates + 1)",
    ),
    Fault(
        "error-of-one-in-each-bin", "numerics.observers", ("OBS-MSE",),
        "A bin counts once, however many values it holds.",
        "centres, counts[used])))", "centres, np.minimum(self.histogram.counts[used], 1))))",
    ),
]
