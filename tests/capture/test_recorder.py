"""The recorder by itself: what it records of a forward computes what that computes, and what ends a recording has a
reason that says so."""

import importlib

import numpy as np
import pytest
import torch
from recordings import recorded
from torch import nn
from torch.nn import functional as F

from networks import seeded
from quantspec.capture import parts
from quantspec.errors import UnsupportedError
from quantspec.torchvision_compat import import_torchvision

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))


class Written(nn.Module):
    """A layer, and what is written behind it, which may read a parameter of the model, too."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write = nn.Linear(8, 8), write
        self.table, self.kernel = nn.Parameter(torch.ones(8)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x):
        return self.write(self, self.layer(x))


class WithMore(nn.Module):
    """Attention with keys and values of its own, which is not written out."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)

    def forward(self, x):
        return self.attention(x[None], x[None], x[None], need_weights=False)[0][0]


class OfOtherSizes(nn.Module):
    """Attention with a weight each for queries, keys and values, which a bias of all three stands beside."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)
        nn.init.uniform_(self.attention.in_proj_bias)

    def forward(self, x):
        return self.attention(x[None], x[None, :, :6], x[None, :, 3:], need_weights=False)[0][0]


def by_an_odd_size(_, x):
    whole = x.shape[1] / 2
    return x * whole.is_integer() * (x.shape[1] // 2).__add__(1) / divmod(x.shape[1], 3)[1]


def of_a_new_tensor(_, x):
    ones = torch.ones(8)
    ones.requires_grad = False
    return x + ones


RECORDED = {
    "a whole size": lambda _, x: x.reshape(torch.Size((x.shape[0], 8))),
    "a whole size for zeros": lambda _, x: x + torch.zeros(x.shape),
    "a size times a tensor": lambda _, x: x.shape[1] * x / 8,
    "a question": lambda _, x: x if x.is_floating_point() else -x,
    "a type": lambda _, x: x if x.type() == "torch.FloatTensor" else -x,
    "as another type": lambda _, x: x * (x > 0).type(torch.float32) - (x < 0).type(dtype=torch.float32),
    "what becomes of a size": by_an_odd_size,
    "a new tensor's attribute": of_a_new_tensor,
    "values and indices": lambda _, x: torch.stack([*x.max(1)][:1], 1) * x,
    "values and indices at once": lambda _, x: (lambda found: found.values[:, None] * x)(x.max(1)),
    "values and indices as they are": lambda _, x: x.max(1),
    "an attribute of a size": lambda _, x: x * x.shape[1].real,
    "equal parts": lambda _, x: torch.cat(x.split(4, 1)[::-1], 1),
    "parts of a batch": lambda _, x: torch.cat(x.split(3)[::-1]),
    "parts of features": lambda _, x: torch.cat(x.transpose(0, 1).chunk(2)[::-1]).t(),
    "parts of channels": lambda m, x: torch.cat(F.conv1d(x[:, None], m.kernel).chunk(2, 1)[::-1]),
    "as many parts as a number says": lambda _, x: torch.cat(x.chunk(2)[::-1]),
    "first named": lambda _, x: torch.flatten(start_dim=0, input=x),
    "new": lambda _, x: x + x.new([1.0] * 8) + x.new(8).zero_(),
    "a constant of a size": lambda m, x: x + m.table.reshape(1, x.shape[1]),
    "a constant of a type": lambda m, x: x + m.table.type_as(x),
    "a loop over features": lambda _, x: x * sum(range(x.shape[1])), "a key": lambda _, x: x * {x.shape[1]: 2}[8],
    "a root of features by NumPy": lambda _, x: x / float(np.sqrt(x.shape[-1])),
    "a power of a size": lambda _, x: x * pow(x.shape[1], 2) / (x.shape[0] ** 2),
}  # fmt: skip


def through_a_new_view(_, x):
    y = torch.zeros(8)
    view = y[:4]
    y.add_(x.mean(0))
    return x + view.sum()


def at_random(_, x):
    y = x.clone()
    y.random_(0, 1)  # zeros
    return x + y


def to_a_parameter(model, x):
    with torch.no_grad():
        model.table.add_(x[0])
    return x


def to_a_parameter_alone(model, x):
    with torch.no_grad():
        model.table.mul_(1)
    return x * model.table


def unseen(model, x):
    with torch._C.DisableTorchFunction():
        model.table.data.mul_(2)
        model.table.mul_(2)
    return x * model.table


def written_later(_, x):
    y = torch.reshape(shape=(-1,), input=x.t())  # a copy here, and none where x is one column
    y.mul_(2)
    return x + y.reshape(8, -1).t()


def without_a_word(_, x):
    if type(x.shape[0]) is not int:
        raise ZeroDivisionError
    return x


STOPPED = {
    "an error without a text": (without_a_word, "ZeroDivisionError \\("),
    "a view at some calls": (written_later, "memory was written through another tensor"),
    "a complex number of a size": (lambda _, x: x * ((-x.shape[0]) ** 0.5).imag, "a size becomes a complex number"),
    "a parameter, unseen": (unseen, "it writes to the model's 'table'"),
    "written through a view": (through_a_new_view, "memory was written through another tensor"),
    "without another name": (at_random, "random_ writes in place"),
    "an attribute": (lambda _, x: x if x.nbytes else -x, "it reads a tensor's nbytes"),
    "a loop": (lambda _, x: x * sum(1 for _ in range(x.shape[0])), "Python counts to a size"),
    "a parameter": (to_a_parameter, "it writes to the model's 'table'"),
    "a parameter, by a constant": (to_a_parameter_alone, "it writes to the model's 'table'"),
    "a key": (lambda _, x: x * {x.shape[0]: 2}[6], "a size cannot be hashed while a model is recorded"),
    "a storage": (lambda _, x: x + x.new(x.untyped_storage())[:8], "Python reads values of a tensor"),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_is_recorded_computes_what_ran(name):
    model = seeded(lambda: Written(RECORDED[name])).requires_grad_(False)
    graph = recorded(model, ROWS)
    for x in (ROWS, ROWS.flip(0) * 3):
        assert parts.graph_differs(graph, (x,), model(x)) is None


def test_attention_of_other_sizes_is_written_out():
    model = seeded(OfOtherSizes).requires_grad_(False)
    graph = recorded(model, ROWS)
    assert parts.graph_differs(graph, (ROWS * 2,), model(ROWS * 2)) is None
    assert not [node for node in graph.nodes if getattr(node, "kind", "") == "module"]


@pytest.mark.parametrize("shift", [0, 1])
def test_windows_of_images_are_written_out_for_images_of_that_size(shift):
    swin = import_torchvision() and importlib.import_module("torchvision.models.swin_transformer")
    model = seeded(lambda: nn.Sequential(swin.ShiftedWindowAttention(4, [3, 3], [shift, shift], 2)))
    model.requires_grad_(False)
    x = torch.randn(2, 7, 6, 4, generator=torch.Generator().manual_seed(5))
    graph = recorded(model, x)
    assert parts.graph_differs(graph, (x * 2,), model(x * 2)) is None


def test_attention_that_is_not_written_out_is_one_node():
    model = seeded(WithMore).requires_grad_(False)
    graph = recorded(model, ROWS)
    assert parts.graph_differs(graph, (ROWS * 2,), model(ROWS * 2)) is None
    assert [node.target for node in graph.nodes if getattr(node, "kind", "") == "module"] == ["attention"]


@pytest.mark.parametrize("name", STOPPED)
def test_what_ends_a_recording_is_told(name):
    write, reason = STOPPED[name]
    with pytest.raises(UnsupportedError, match=reason):
        recorded(seeded(lambda: Written(write)).requires_grad_(False), ROWS)


def test_sizes_that_a_model_has_noted_are_plain_numbers_afterwards():
    noted = []

    def noting(_, x):
        noted.append(x.shape[1])
        noted.append(x.shape[0] / 4)
        return x

    recorded(seeded(lambda: Written(noting)), ROWS)
    columns, quarter = noted
    assert [0] * columns == [0] * 8 and len(range(columns)) == 8 and columns == 8 and {columns} == {8}
    assert columns + 1 == 9 and type(columns + 1) is int and quarter == 1.5 and quarter.as_integer_ratio() == (3, 2)


class Ignoring(nn.Module):
    """Takes tensors that it does not read."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, unread, x, more):
        return self.layer(x)


def test_a_tensor_that_is_not_read_is_an_input_all_the_same():
    model = seeded(Ignoring).requires_grad_(False)
    graph = recorded(model, ROWS * 2, ROWS, ROWS * 3)
    assert list(graph.inputs) == ["unread", "x", "more"]
    assert parts.graph_differs(graph, (ROWS * 3, ROWS.flip(0), ROWS), model(ROWS, ROWS.flip(0), ROWS)) is None
