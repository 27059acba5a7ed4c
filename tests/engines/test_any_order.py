"""Models of layers and of what lies between them in any order, on all engines: what is put together, and how memory is
shared, depends on who reads what, and when."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import quantspec as qs
from evidence import clause

WIDTH, SIDE = 8, 4
ROWS, IMAGES = 2, 4  # axes of the two kinds of values


class InAnyOrder(nn.Module):
    """Computes the operations of ``plan``, (name, number of a layer, numbers of the values that are read), each of
    which adds a value; gives back some of them."""

    def __init__(self, plan: list[tuple[str, int, tuple[int, ...]]], wanted: tuple[int, ...]):
        super().__init__()
        self.plan, self.wanted = plan, wanted
        self.linear = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.conv = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 1, groups=4)])
        self.narrow = nn.Linear(WIDTH * SIDE * SIDE, WIDTH)
        self.relu = nn.ReLU()

    def __repr__(self) -> str:
        return f"InAnyOrder({self.plan}, {self.wanted})"

    def forward(self, x: torch.Tensor, image: torch.Tensor):
        values = [x, image]
        for name, layer, read in self.plan:
            given = [values[number] for number in read]
            values.append(OPERATIONS[name](self, layer, *given))
        return [values[number] for number in self.wanted]


# What becomes of values: a number for that of axes, which all that are read have, and which the result has.
OPERATIONS = {
    "layer": lambda m, k, v: (m.linear if v.ndim == ROWS else m.conv)[k](v),
    "relu": lambda m, k, v: (m.relu if k else torch.relu)(v),
    "in place": lambda m, k, v: F.relu(v + 1, inplace=True),
    "add": lambda m, k, v, w: v + w,
    "subtract": lambda m, k, v, w: v - w,
    "multiply": lambda m, k, v, w: v * w,
    "double": lambda m, k, v: v * 2,
    "tanh": lambda m, k, v: torch.tanh(v),
    "hardswish": lambda m, k, v: F.hardswish(v),
    "flip": lambda m, k, v: v.flip(0),
    "half of two": lambda m, k, v, w: torch.cat([v, w], 1)[:, WIDTH // 2 : -WIDTH // 2],
    "pool": lambda m, k, v: F.avg_pool1d(v, 3, 1, 1) if v.ndim == ROWS else F.avg_pool2d(v, 3, 1, 1),
    "again": lambda m, k, v: v,
}
FLATTENED = {
    "narrow": lambda m, k, v: m.narrow(torch.flatten(v, 1)),
    "narrow, clamped": lambda m, k, v: torch.relu(m.narrow(v.flatten(1))),
    "mean": lambda m, k, v: v.mean((2, 3)),
}
OPERATIONS |= FLATTENED
OF_TWO = ("add", "subtract", "multiply", "half of two")


@st.composite
def models(draw) -> InAnyOrder:
    """A model of up to a dozen operations."""
    axes, plan = [ROWS, IMAGES], []
    for _ in range(draw(st.integers(1, 12))):
        first = draw(st.integers(0, len(axes) - 1))
        # Layers and ReLUs more often than what they lie between.
        names = ["layer", "layer", "relu", "relu", *OPERATIONS]
        name = draw(st.sampled_from([name for name in names if axes[first] == IMAGES or name not in FLATTENED]))
        alike = [number for number, of in enumerate(axes) if of == axes[first]]
        others = (draw(st.sampled_from(alike)),) if name in OF_TWO else ()
        plan.append((name, draw(st.integers(0, 1)), (first, *others)))
        axes.append(ROWS if name in FLATTENED else axes[first])
    more = draw(st.lists(st.integers(2, len(axes) - 1), max_size=2))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw(st.integers(0, 3)))
        return InAnyOrder(plan, (len(axes) - 1, *more)).eval()


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    r = torch.Generator().manual_seed(rows)
    return torch.randn(rows, WIDTH, generator=r), torch.randn(rows, WIDTH, SIDE, SIDE, generator=r)


WAYS = {
    "static": lambda model, **how: qs.quantize(model, [batch(4)], **how),
    "static, not fused": lambda model, **how: qs.quantize(model, [batch(4)], fuse=False, **how),
    "dynamic": lambda model, **how: qs.quantize_dynamic(model, example=batch(2), **how),
    "weights alone": lambda model, **how: qs.quantize_dynamic(model, example=batch(2), activations=None, **how),
}


@clause("STA-RUN", "DYN-OUTPUT")
@pytest.mark.parametrize("way", WAYS)
@given(model=models())
@settings(deadline=None, max_examples=max(10, settings().max_examples // 4))
def test_every_engine_gives_the_outputs_of_the_reference(way, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = WAYS[way](model, engine="reference")
        for engine in ("compiled", "torch"):
            q = reference.run_on(engine)
            for rows in (4, 1, 4):
                given, expected = q(*batch(rows)), reference(*batch(rows))
                assert [torch.equal(a, b) for a, b in zip(given, expected, strict=True)] == [True] * len(given), engine
