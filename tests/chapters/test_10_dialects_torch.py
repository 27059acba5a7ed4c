"""torch's quantized engines beside our arithmetic in their dialects: the tutorial's network, and layers near ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as draws
from evidence import clause
from quantspec.backends.pytorch import quantized
from quantspec.numerics.affine import QParams
from quantspec.numerics.dialects.named import dialect
from quantspec.tutorial import tutorial

OFFERED = [engine for engine in quantized.ENGINES if not quantized.why_not_offered(engine)]


@clause(
    "DIA-REQUANTIZE", "DIA-QUANTIZE", "DIA-QPARAMS", "DIA-SYMMETRIC", "DIA-EITHER", "DIA-DYNAMIC",
    "DIA-DYNAMIC-QUANTIZE", "DIA-ACCUMULATE", "DIA-REDUCED",
)
@pytest.mark.parametrize("engine", OFFERED)
@pytest.mark.parametrize("variant", tutorial.VARIANTS[1:])
@pytest.mark.parametrize("reduce_range", [False, True])
def test_every_code_of_the_tutorials_network_is_torchs(engine, variant, reduce_range, model, dataset):
    rows, parameters = tutorial.compare(model, dataset, engine, variant, reduce_range)
    assert [row.layer for row in rows] == ["fc1", "fc2", "fc3"]
    assert all(row.codes == len(dataset.x_test) * n for row, n in zip(rows, (100, 100, 10)))
    assert [(row.layer, row.differ) for row in rows if row.differ] == []
    assert [(p.layer, p.what, p.differ) for p in parameters if p.differ] == []
    assert len(parameters) == (12 if variant == "dynamic" else 24)


def check_codes(engine, *layer, relu):
    """Each of torch's codes of a layer is that of a dialect which the engine speaks here."""
    theirs = quantized.linear(*layer, relu=relu, engine=engine)
    agrees = np.zeros(theirs.shape, bool)
    for name in quantized.dialects_here(engine):
        agrees |= dialect(name).linear(*layer, relu=relu) == theirs
    assert agrees.all(), f"{int((~agrees).sum())} of {agrees.size} codes differ"


@clause("DIA-REQUANTIZE", "DIA-EITHER")
@pytest.mark.parametrize("engine", OFFERED)
@given(
    draws.seeds(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.booleans(), st.booleans(),
    st.sampled_from([0.5, 1.0, 1.25, 3.0, 1.3]),
)
def test_layers_near_ties_have_torchs_codes(engine, generator, rows, inputs, outputs, relu, per_channel, ratio):
    x = QParams(np.float32(2.0**-5), int(generator.integers(128)), 0, 127)
    scale = (2.0**-6 * generator.choice([1, 1, 1.5, 1.1], outputs)).astype(np.float32)
    w = QParams(scale, 0, -128, 127, axis=0) if per_channel else QParams(scale[0], 0, -128, 127)
    # With s_y a small multiple of the unit, every second output or so is a tie or next to one.
    y = QParams(np.float32(2.0**-11 * ratio * inputs), int(generator.integers(256)), 0, 255)
    weight = generator.integers(-9, 10, (outputs, inputs)).astype(np.int8)
    bias = (generator.integers(-40, 40, outputs) * 2.0**-12).astype(np.float32)
    x_q = generator.integers(0, 128, (rows, inputs)).astype(np.uint8)
    check_codes(engine, x_q, x, weight, w, bias, y, relu=relu)


@clause("DIA-REQUANTIZE", "DIA-EITHER")
@pytest.mark.parametrize("engine", OFFERED)
@given(
    draws.seeds(), st.integers(1, 40), st.integers(1, 800), st.integers(1, 40), st.booleans(), st.booleans(),
    st.sampled_from([2, 6, 10, 14, 18]),
)
def test_layers_within_ulps_of_ties_have_torchs_codes(engine, generator, rows, inputs, outputs, biased, relu, ratio):
    """Which steps round to float32, and whether an output is divided or multiplied, shows nowhere else."""
    s_x, s_w = (np.float32(generator.uniform(0.5, 1) * 2.0**exponent) for exponent in (-5, -6))
    x, w = QParams(s_x, int(generator.integers(128)), 0, 127), QParams(s_w, 0, -128, 127)
    # Every second accumulator or so is half a step from a code, but for what the scales are rounded by.
    unit = float(s_x) * float(s_w)
    y = QParams(np.float32(unit * ratio * (1 + generator.uniform(-2e-7, 2e-7))), int(generator.integers(256)), 0, 255)
    weight = generator.integers(-3, 4, (outputs, inputs)).astype(np.int8)
    bias = (generator.integers(-40, 40, outputs) * unit * biased).astype(np.float32)
    x_q = np.clip(x.zero_point + generator.integers(-3, 4, (rows, inputs)), 0, 127).astype(np.uint8)
    check_codes(engine, x_q, x, weight, w, bias, y, relu=relu)


@clause("DIA-ACCUMULATE")
@pytest.mark.parametrize("engine", OFFERED)
@given(draws.seeds(), st.integers(1, 70), st.integers(1, 20))
def test_full_range_layers_have_torchs_codes_on_this_cpu(engine, generator, inputs, outputs):
    x, w = QParams(0.02, int(generator.integers(256)), 0, 255), QParams(0.013, 0, -128, 127)
    y = QParams(np.float32(0.02 * 0.013 * 255 * 127 * inputs / 200), int(generator.integers(256)), 0, 255)
    weight = generator.choice([-128, 127, 100, -3], (outputs, inputs)).astype(np.int8)
    x_q = generator.choice([0, 255, 200], (5, inputs)).astype(np.uint8)
    bias = np.zeros(outputs, np.float32)
    theirs = quantized.linear(x_q, x, weight, w, bias, y, relu=False, engine=engine)
    allowed = [dialect(name).linear(x_q, x, weight, w, None, y) for name in quantized.dialects_here(engine)]
    assert np.logical_or.reduce([codes == theirs for codes in allowed]).all()
