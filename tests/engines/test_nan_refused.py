"""Where NaN is refused: whoever looks at codes would be shown what stands in its place, and no range holds it; and who
computes what lies beside it."""

import pytest
import torch

import networks
import quantspec as qs
from quantspec.engines.compiled import engine
from quantspec.engines.reference import Reference
from quantspec.numerics.dialects.named import dialect
from told import exactly


def test_who_looks_at_codes_is_shown_no_nan():
    model, x = networks.seeded(networks.Perceptron), networks.inputs(6)
    q, bad = qs.quantize(model, [x]), x.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match="x: expected numbers, got 1 NaN"):
        Reference(q.program)({q.program.inputs[0]: bad}, lambda step, value: None)
    for network in (q, qs.quantize_dynamic(model), qs.quantize_dynamic(model, example=x)):
        with pytest.raises(ValueError, match="^data: expected numbers, got NaN"):
            qs.compare(model, network, [bad])


def test_numbers_beside_nan_are_computed_by_kernels(monkeypatch):
    model, x = networks.seeded(networks.Perceptron), networks.inputs(6)
    q, bad = qs.quantize(model, [x]), x.clone()
    bad[2, 1] = torch.nan
    with pytest.warns(RuntimeWarning, match="values are NaN"):
        expected = q.run_on("reference")(bad)

    def reference(step, *_):
        raise AssertionError(f"{step.name} is left to the reference engine")

    monkeypatch.setattr(engine, "run_step", reference)
    with pytest.warns(RuntimeWarning, match="values are NaN"):
        got = q(bad)
    assert got[2].isnan().all() and torch.equal(got.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_range_with_nan_or_infinity_makes_no_grid(bad):
    x = networks.inputs(3).numpy()
    x[1, 2] = bad
    with pytest.raises(ValueError, match="x: expected finite values"):
        dialect("exact").quantize_dynamic(x)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (1e-40, "values from 1e-40 to 1e-40: scale: expected float32 from 2^-126 to 2^119, got {}"),
        (3e38, "values from 3e+38 to 3e+38: maximum: the range is too wide, its scale {} exceeds 2^119"),
    ],
)
def test_a_range_that_makes_no_grid_names_its_place_in_training_as_in_calibration(value, why):
    model = networks.seeded(lambda: torch.nn.Sequential(torch.nn.Linear(4, 3)))
    batch = torch.full((2, 4), value)
    message = f"input 'input': {why.format(float(batch[0, 0] / 255))}"
    with pytest.raises(qs.CalibrationError, match=exactly(message)):
        qs.quantize(model, [batch])
    trained = qs.prepare_qat(model).train()
    trained(batch)  # of which the ranges are
    with pytest.raises(qs.CalibrationError, match=exactly(message)):
        trained(batch)


@pytest.mark.parametrize("value", [1e-40, 3e38])
@pytest.mark.parametrize("kind", [torch.nn.Linear, torch.nn.LSTM])
def test_a_range_that_makes_no_grid_names_the_layer(kind, value):
    model = networks.seeded(lambda: torch.nn.Sequential(kind(4, 3)))
    q, x = qs.quantize_dynamic(model), torch.full((2, 4), value)
    with pytest.raises(ValueError, match="^batch: layer '0': the range of its input makes no grid; scale: expected"):
        q(x)
