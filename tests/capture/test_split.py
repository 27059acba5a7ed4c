"""Values that Python takes apart: a network has as many parts as there were, and is none for sizes that have others."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from networks import seeded
from quantspec.errors import ShapeError
from quantspec.ir import program
from quantspec.numerics import accuracy


class Apart(nn.Module):
    """Layers, something that takes what they give apart, and a sum of the parts, each with a factor of its own."""

    def __init__(self, before, split):
        super().__init__()
        self.linear, self.conv, self.row = nn.Linear(6, 8), nn.Conv2d(3, 8, 3, padding=1), nn.Conv1d(4, 8, 3, padding=1)
        self.norm, self.before, self.split = nn.GroupNorm(2, 8), before, split

    def forward(self, x):
        assert x.shape[0] > 1  # which symbolic tracing cannot tell
        parts = self.split(self.before(self, x))
        return torch.stack([(number + 1) * part.abs().mean() for number, part in enumerate(parts)])


def conditions(q):
    """What the network of a whole model checks of sizes, as its messages say it."""
    steps = (step for _, network in q.networks() for step in network.program.steps)
    return [step.args[1] for step in steps if isinstance(step, program.Call) and step.target == "torch._assert"]


ROWS, SEQUENCE, IMAGES = (4, 6), (4, 5, 6), (4, 3, 6, 5)
# What comes before, the shapes of calibration and of later calls, and along which axes there are always as many parts.
BEFORE = {
    "linear": (lambda s, x: s.linear(x), [SEQUENCE, (7, 3, 6)], {2, -1}),
    "linear, two axes": (lambda s, x: s.linear(x), [ROWS, (7, 6)], {1, -1}),
    "a function": (lambda s, x: F.linear(x, s.linear.weight), [SEQUENCE, (7, 3, 6)], {2, -1}),
    "convolution": (lambda s, x: s.conv(x), [IMAGES, (7, 3, 9, 10)], {1, -3}),
    "one of one image": (lambda s, x: s.conv(x), [IMAGES[1:], (3, 9, 10)], {0, -3}),
    "a convolution's function": (lambda s, x: F.conv2d(x, s.conv.weight), [IMAGES, (7, 3, 9, 10)], {1, -3}),
    "one axis": (lambda s, x: s.row(x), [(4, 4, 6), (7, 4, 9)], {1, -2}),
    "view": (lambda s, x: s.linear(x).view(x.shape[0], -1, 2, 4), [SEQUENCE, (7, 3, 6)], {2, 3, -1, -2}),
    "reshape": (lambda s, x: s.linear(x).reshape((x.shape[0], 8, -1)), [SEQUENCE, (7, 3, 6)], {1, -2}),
    "a norm": (lambda s, x: F.layer_norm(torch.relu(s.linear(x)) * 2, (8,)), [SEQUENCE, (7, 3, 6)], {2, -1}),
    "a module": (lambda s, x: s.norm(s.conv(x)), [IMAGES, (7, 3, 9, 10)], {1, -3}),
    "a part": (lambda s, x: s.linear(x).chunk(2, -1)[1], [SEQUENCE, (7, 3, 6)], {2, -1}),
    "a part of rows": (lambda s, x: torch.split(s.linear(x), 2)[0], [SEQUENCE, (7, 3, 6)], set()),
    "a slice as long as another axis": (
        lambda s, x: torch.relu(s.linear(x))[:, : x.shape[0]], [ROWS, (7, 6)], set(),
    ),
    "permute": (lambda s, x: s.conv(x).permute(0, 2, 3, 1), [IMAGES, (7, 3, 9, 10)], {3, -1}),
    "permute, a tuple": (lambda s, x: s.conv(x).permute((-3, 2, 3, 0)), [IMAGES, (7, 3, 9, 10)], {0, -4}),
    "transpose": (lambda s, x: s.linear(x).transpose(1, 2), [SEQUENCE, (7, 3, 6)], {1, -2}),
    "transpose from behind": (lambda s, x: s.linear(x).transpose(-1, 0), [SEQUENCE, (7, 3, 6)], {0, -3}),
    "transpose of others": (lambda s, x: s.linear(x).transpose(0, 1), [SEQUENCE, (7, 3, 6)], {2, -1}),
}
SPLIT = {
    "unbind": lambda axis: lambda y: y.unbind(axis), "unbind by name": lambda axis: lambda y: torch.unbind(y, dim=axis),
    "chunk": lambda axis: lambda y: y.chunk(3, axis), "torch.chunk": lambda axis: lambda y: torch.chunk(y, 4, dim=axis),
    "chunk by name": lambda axis: lambda y: y.chunk(dim=axis, chunks=4),
    "split": lambda axis: lambda y: y.split(2, axis), "torch.split": lambda axis: lambda y: torch.split(y, 3, dim=axis),
    "split by name": lambda axis: lambda y: y.split(split_size=3, dim=axis),
    "torch.split by name": lambda axis: lambda y: torch.split(y, split_size_or_sections=2, dim=axis),
}  # fmt: skip


USUAL = "unbind", "chunk", "torch.split"
SELDOM = [split for split in SPLIT if split not in USUAL]


@pytest.mark.parametrize(("name", "split"), [*itertools.product(BEFORE, USUAL), *itertools.product(["linear"], SELDOM)])
def test_a_value_is_taken_apart_as_the_model_does_it_at_every_size(name, split):
    """In a network, along axes that are as long for every input, or else by Python, of which the user is told."""
    before, shapes, fixed = BEFORE[name]
    first, other = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes)
    for axis in range(-first.ndim - (name == "view"), first.ndim + (name == "view")):
        model = seeded(lambda axis=axis: Apart(before, SPLIT[split](axis))).requires_grad_(False)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            q = qs.quantize(model, [first])
            assert accuracy.sqnr(model(first).numpy(), q(first).numpy()) > 20
            del told[:]
            expected, got = model(other), q(other)
        # By as much less as values go beyond those of calibration.
        assert got.shape == expected.shape and accuracy.sqnr(expected.numpy(), got.numpy()) > 12
        if axis in fixed:
            assert not told and not any(" == " in condition for condition in conditions(q)), axis


# A size, others that have as many parts, and some that have not.
COUNTED = {"unbind": (7, (7,), (6, 8)), "torch.chunk": (7, (8, 13), (9, 6)), "torch.split": (7, (8, 9), (10, 6))}


@pytest.mark.parametrize("split", COUNTED)
def test_a_network_is_one_for_all_sizes_with_as_many_parts(split):
    size, same, others = COUNTED[split]
    model = seeded(lambda: Apart(lambda s, x: s.linear(x), SPLIT[split](0))).requires_grad_(False)
    example = torch.randn(size, 6, generator=torch.Generator().manual_seed(1))
    q = qs.quantize_dynamic(model, example=example)
    assert any(" == " in condition for condition in conditions(q))
    for rows in same:
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))
        assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 20
    for rows in others:
        with pytest.warns(UserWarning, match="^module '': it is called with arguments or sizes that did not occur"):
            qs.quantize_dynamic(model, example=example)(torch.ones(rows, 6))


def test_a_loaded_network_says_for_which_sizes_it_has_a_part_that_there_is_not(tmp_path):
    model = seeded(lambda: Apart(lambda s, x: s.linear(x), lambda y: y.chunk(3)[2:]))
    rows = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    qs.quantize_dynamic(model, example=rows).save(tmp_path / "q")
    told = "^batch: the network was captured where .* == 3.* is True .*, and has no Python that decides for others$"
    with pytest.raises(ShapeError, match=told):
        qs.load(tmp_path / "q")(rows[:4])


def test_a_part_is_as_long_as_another_value_says_at_each_call():
    def cut(s, x):
        y = s.linear(x)
        part = y.split([x.shape[0], 8 - x.shape[0]], 1)[0]
        return y * part.shape[1]

    model = seeded(lambda: Apart(cut, lambda y: (y,))).requires_grad_(False)
    q = qs.quantize_dynamic(model, example=torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
    for rows in (2, 5, 7):
        x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
        assert accuracy.sqnr(model(x).numpy(), q(x).numpy()) > 30


def test_a_value_has_as_many_parts_as_another_value_says_at_each_call():
    model = seeded(lambda: Apart(lambda s, x: s.linear(x), lambda y: y.chunk(y.shape[0], 1))).requires_grad_(False)
    example, other = (torch.randn(n, 6, generator=torch.Generator().manual_seed(1)) for n in (4, 2))
    q = qs.quantize_dynamic(model, example=example)
    assert accuracy.sqnr(model(example).numpy(), q(example).numpy()) > 20
    with pytest.warns(UserWarning, match="^module '': it is called with arguments or sizes that did not occur"):
        got = q(other)
    assert accuracy.sqnr(model(other).numpy(), got.numpy()) > 20
