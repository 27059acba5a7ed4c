"""Networks of any layers, sums, joins, averages and orders of axes, drawn one after the other: all engines give the
reference's bits, for the batch of calibration and for a larger one.
"""

import random
import warnings

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import networks
import quantspec as qs
from evidence import clause

CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
MAXIMA = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
AVERAGES = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
ADAPTIVE = {3: F.adaptive_avg_pool1d, 4: F.adaptive_avg_pool2d, 5: F.adaptive_avg_pool3d}


def convolution(r, shape):
    size, channels = r.choice([1, 3]), shape[1]
    outputs, groups = (channels, channels) if r.random() < 0.3 else (r.randint(1, 20), 1)
    stride = r.choice([1, 1, 2])
    return CONVOLUTIONS[len(shape)](channels, outputs, size, padding=size // 2, groups=groups, stride=stride)


def order(r, shape):
    rank = len(shape)
    turned = [(0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))]
    return r.choice([*turned, tuple(r.sample(range(rank), rank))])


def part(r, shape):
    axis = r.randrange(1, len(shape))
    start = r.randrange(shape[axis])
    return axis, start, r.randint(1, shape[axis] - start)


def padding(r, shape):
    return tuple(r.randint(0, 2) for _ in range(2 * r.randint(1, min(2, len(shape) - 1))))


# What to draw for each kind of step, from random numbers and the shape that it is given; what it then does to all
# values so far.
STEPS = {
    "linear": (lambda r, s: nn.Linear(s[-1], r.randint(1, 20)), lambda vs, a: a(vs[-1])),
    "convolution": (convolution, lambda vs, a: a(vs[-1])),
    "relu": (lambda r, s: None, lambda vs, a: torch.relu(vs[-1])),
    "table": (lambda r, s: None, lambda vs, a: torch.sigmoid(vs[-1])),
    "order": (order, lambda vs, a: vs[-1].permute(a)),
    "flat": (lambda r, s: r.randrange(len(s)), lambda vs, a: torch.flatten(vs[-1], a)),
    "mean": (
        lambda r, s: (r.sample(range(1, len(s)), r.randint(1, len(s) - 1)), r.random() < 0.5),
        lambda vs, a: vs[-1].mean(a[0], keepdim=a[1]),
    ),
    "sum": (lambda r, s: r.random(), lambda vs, a: vs[-1] + vs[int(a * len(vs))]),
    "product": (lambda r, s: r.random(), lambda vs, a: vs[-1] * vs[int(a * len(vs))]),
    "join": (
        lambda r, s: (r.random(), r.randrange(len(s))),
        lambda vs, a: torch.cat([vs[-1], vs[int(a[0] * len(vs))]], a[1]),
    ),
    "part": (part, lambda vs, a: vs[-1].narrow(*a)),
    "pad": (padding, lambda vs, a: F.pad(vs[-1], a)),
    "axis": (lambda r, s: r.randint(1, len(s)), lambda vs, a: vs[-1].unsqueeze(a)),
    "no axis": (lambda r, s: r.randrange(1, len(s)), lambda vs, a: vs[-1].squeeze(a)),
    "maxima": (lambda r, s: 2, lambda vs, a: MAXIMA[vs[-1].dim()](vs[-1], a)),
    "averages": (lambda r, s: 2, lambda vs, a: AVERAGES[vs[-1].dim()](vs[-1], a)),
    "adaptive": (lambda r, s: r.randint(1, 3), lambda vs, a: ADAPTIVE[vs[-1].dim()](vs[-1], a)),
    "larger": (
        lambda r, s: r.choice(["nearest", "bilinear"]), lambda vs, a: F.interpolate(vs[-1], scale_factor=2, mode=a),
    ),
    "float": (lambda r, s: None, lambda vs, a: vs[-1].cumsum(-1)),
}  # fmt: skip


class Network(nn.Module):
    """Steps, each of which reads what those before gave."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList(argument for _, argument in steps if isinstance(argument, nn.Module))

    def forward(self, x):
        values, layers = [x], iter(self.layers)
        for kind, argument in self.steps:
            own = next(layers) if isinstance(argument, nn.Module) else argument
            values.append(STEPS[kind][1](values, own))
        return values[-1]


@st.composite
def drawn(draw):
    """A network with a layer, and a batch of two for it; steps that do not fit what is before them are left out."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    seed = draw(st.integers(0, 2**16))
    x, steps = networks.inputs(2, tuple(shape), seed=seed), []
    kinds = draw(st.lists(st.sampled_from(["linear", "convolution", *STEPS]), min_size=2, max_size=9))
    for number, kind in enumerate(kinds):
        r = random.Random(f"{seed} {number}")
        torch.default_generator.manual_seed(seed + number)
        try:
            with torch.no_grad():
                y = Network(steps)(x)
                more = [*steps, (kind, STEPS[kind][0](r, y.shape))]
                y = Network(more)(x)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError, NotImplementedError):
            continue
        if y.dim() <= 5 and 0 < y.numel() <= 20_000:
            steps = more
    return Network(steps).eval(), x


@clause("STA-RUN", "STA-MOVE", "STA-BATCH-SIZE")
@given(drawn().filter(lambda pair: len(pair[0].layers) > 0))
def test_every_engine_gives_the_references_bits(pair):
    model, x = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        q = qs.quantize(model, [x])
    others = [q, q.run_on("torch")]
    for batch in (x, torch.cat([x, 0.5 * x, x[:1]])):
        try:
            with torch.no_grad():
                shape = model(batch).shape
        except (RuntimeError, ValueError, IndexError):
            continue  # the model itself takes another number of samples only
        expected = q.run_on("reference")(batch)
        assert expected.shape == shape and all(torch.equal(other(batch), expected) for other in others)
