"""Chapter 5, NaN: where it goes is what the float model says, and it changes nothing else."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause
from quantspec.capture.operators import ALONE
from quantspec.engines.not_numbers import TOLD

quiet = pytest.mark.filterwarnings("ignore:values are NaN")


class Between(nn.Module):
    """A convolution, something, and another convolution or, for rows, a linear layer."""

    def __init__(self, what, channels=6, axes=2):
        super().__init__()
        kinds = nn.Conv1d, nn.Conv2d, nn.Conv3d
        self.first, self.what = kinds[axes - 1](4, 6, 3, padding=1, groups=2), what
        self.last = kinds[axes - 1](channels, 5, 1) if channels else None

    def forward(self, x):
        y = self.what(self.first(x))
        return y if self.last is None else self.last(y)


WHAT = {
    "nothing": nn.Identity(), "relu": nn.ReLU(), "groups": nn.Conv2d(6, 6, 3, groups=3),
    "depthwise": nn.Conv2d(6, 6, 3, groups=6, padding=2, dilation=2, stride=2),
    "transposed": nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    "max pool": nn.MaxPool2d(3, 2, 1, ceil_mode=True), "average pool": nn.AvgPool2d(2, 1, 1, count_include_pad=False),
    "adaptive pool": nn.AdaptiveAvgPool2d((3, None)), "bilinear": nn.Upsample(scale_factor=1.7, mode="bilinear"),
    "bilinear to ends": nn.UpsamplingBilinear2d((11, 5)), "nearest": nn.Upsample(scale_factor=2),
    "mean": lambda y: y.mean((2, 3), keepdim=True), "sum": lambda y: y + y.flip(3), "product": lambda y: y * y[:1],
    "broadcast": lambda y: y * torch.sigmoid(y.mean((2, 3), keepdim=True)),
    "join": lambda y: torch.cat([y.roll(1, 2), y], 1)[:, 3:9], "pad": lambda y: F.pad(y, (1, 2, 0, 1)),
    "permute": lambda y: y.permute(0, 1, 3, 2), "chunk": lambda y: torch.cat(y.chunk(2, 1)[::-1], 1),
    "shuffle": lambda y: F.pixel_unshuffle(F.pixel_shuffle(torch.cat([y, y], 1)[:, :8], 2), 2)[:, 1:7],
    "normalization": nn.GroupNorm(2, 6), "softmax": nn.Softmax(1), "what takes NaN away": torch.nan_to_num,
    "what asks for NaN": lambda y: torch.where(y.isnan(), y.mean(), y),
}  # fmt: skip


def broken(x, seed):
    """A batch with NaN: a sample of nothing else, and single values of another."""
    g = torch.Generator().manual_seed(seed)
    x = x.clone()
    x[1] = torch.nan
    for _ in range(int(torch.randint(1, 4, (), generator=g))):
        x[(3, *(int(torch.randint(n, (), generator=g)) for n in x.shape[1:]))] = torch.nan
    return x


def check(model, x, bad, engine):
    """NaN is where the model has it, and what it has not is as if there were a 0."""
    q = qs.quantize(model, [x], engine=engine)
    with torch.no_grad():
        expected = model(bad)
    found, numbers = q(bad), q(torch.where(bad.isnan(), 0, bad))
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found[~found.isnan()], numbers[~found.isnan()])
    return found


@clause("STA-NAN")
@quiet
@pytest.mark.filterwarnings("ignore:only .* of the work")
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("name", WHAT)
def test_nan_is_where_the_float_model_has_it(name, engine):
    for seed in range(3):
        model = networks.seeded(lambda: Between(copy.deepcopy(WHAT[name])), seed)
        x = networks.inputs(4, (4, 7, 6), seed)
        if "NaN" in name:  # which changes other outputs where a NaN was, as it does in floats
            bad = broken(x, seed)
            q = qs.quantize(model, [x], engine=engine)
            assert q(bad).isfinite().all() == model(bad).isfinite().all()
            assert torch.equal(q(bad)[[0, 2]], q(x)[[0, 2]]) or "asks" in name
        else:
            check(model, x, broken(x, seed), engine)


@clause("STA-NAN")
@quiet
@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("axes", [1, 3])
def test_nan_in_other_numbers_of_positions(axes, engine):
    pools = (nn.MaxPool1d, nn.AdaptiveAvgPool1d), None, (nn.MaxPool3d, nn.AdaptiveAvgPool3d)
    largest, adaptive = pools[axes - 1]
    model = networks.seeded(lambda: Between(nn.Sequential(largest(2, 1), adaptive(3)), axes=axes))
    x = networks.inputs(4, (4, *(5, 6, 4)[:axes]))
    check(model, x, broken(x, axes), engine)


@clause("STA-NAN")
@quiet
@given(networks.perceptrons(), st.integers(0, 999), st.sampled_from(["auto", "reference"]))
def test_nan_in_rows(case, seed, engine):
    model, batches, x = case
    x = torch.cat([x] * 4)[: max(4, len(x))]
    bad = broken(x, seed)
    found = check(model, x, bad, engine)
    rows = bad.isnan().any(1)
    assert found[rows].isnan().all() and not found[~rows].isnan().any()


@clause("STA-NAN")
@quiet
@pytest.mark.parametrize("name", ALONE)
def test_functions_of_nan_are_nan(name):
    kind = next(target for target in ALONE[name] if callable(target))
    more = {"threshold": (0.1, 0.2), "clamp": (0.25,)}.get(name, ())
    model = networks.seeded(lambda: Between(kind() if isinstance(kind, type) else lambda y: kind(y, *more)))
    x = networks.inputs(4, (4, 5, 5))
    check(model, x, broken(x, 0), "auto")


@clause("STA-NAN")
def test_one_row_of_a_thousand_is_nan_and_a_warning_names_the_line():
    model, x = networks.seeded(networks.Perceptron), networks.inputs(1000)
    q = qs.quantize(model, [x])
    expected, bad = q(x), x.clone()
    bad[500] = torch.nan
    with pytest.warns(RuntimeWarning, match=f"^{TOLD}$") as seen:
        found = q(bad)
    assert [warning.filename for warning in seen] == [__file__]
    rows = torch.arange(1000) != 500
    assert torch.equal(found[rows], expected[rows]) and found[500].isnan().all()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "values are NaN")
        with pytest.raises(RuntimeWarning, match=TOLD):
            q(bad)
        assert torch.equal(q(x), expected)


@clause("STA-NAN")
@quiet
def test_outputs_in_codes_of_one_part_are_nan_in_the_next():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x, y):
            first = self.a(x)
            return self.c(first.view(-1, 2, 4).flip(1).reshape(-1, 4)) + self.c(self.b(y)), first

    model, x = networks.seeded(Two), networks.inputs(6)
    bad = x.clone()
    bad[2, 1] = torch.nan
    for engine in ("auto", "reference"):
        q = qs.quantize(model, [(x, x)], engine=engine)
        for found, floats, numbers in zip(q(bad, x), model(bad, x), q(x, x), strict=True):
            assert torch.equal(found.isnan(), floats.isnan()) and found.isnan().any()
            assert torch.equal(found[~found.isnan()], numbers[~found.isnan()])
