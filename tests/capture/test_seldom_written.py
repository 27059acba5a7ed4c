"""Forms that models seldom have: what no layer computes stays an operation in float, and the graph is the model."""

import importlib
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import quantspec as qs
from networks import seeded
from quantspec.capture import parts, tracer
from quantspec.ir import float_graph
from quantspec.numerics import accuracy
from quantspec.torchvision_compat import import_torchvision

ROWS = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
IMAGES = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1))
LAYERS = float_graph.Linear, float_graph.Conv


class OfWeight(nn.Module):
    """A parameter and a constant, in an expression."""

    def __init__(self, written, *shape):
        super().__init__()
        self.weight, self.written = nn.Parameter(torch.randn(shape or (8, 8)) / 4), written
        self.register_buffer("table", torch.linspace(-1, 1, 8))

    def forward(self, x):
        return self.written(x, self.weight, self.table)


# What is written, how many layers of the graph it is, and of which shape the parameter is.
ROW_FORMS = {
    "einsum of one": (lambda x, w, c: torch.einsum("ij->ji", x).t() * w[0], 0),
    "einsum without a result": (lambda x, w, c: torch.einsum("ij,jk", x, w), 0),
    "einsum of a diagonal": (lambda x, w, c: torch.einsum("bi,ii->bi", x, w), 0),
    "einsum of any weight": (lambda x, w, c: torch.einsum("bi,...i->...b", x, w), 0),
    "einsum of a row": (lambda x, w, c: torch.einsum("bi,i->b", x, w), 0, 8),
    "einsum of an outer product": (lambda x, w, c: torch.einsum("bi,jk->bijk", x, w), 0),
    "einsum without outputs": (lambda x, w, c: torch.einsum("nzi,zi->nz", x.unflatten(1, (2, 4)), w), 0, 2, 4),
    "einsum of many groups": (
        lambda x, w, c: torch.einsum("ngi,gio->ngo", x.reshape(-1, 1, 8).expand(-1, 70, -1), w), 0, 70, 8, 2,
    ),
    "a product of values and a sum": (lambda x, w, c: torch.addmm(x, x @ x.t(), x) + w[0], 0),
    "a product, and a sum with values": (lambda x, w, c: torch.addmm(x, x, w), 1),
    "a layer, and its input": (lambda x, w, c: F.linear(x, w) + x, 1),
    "a weight twice": (lambda x, w, c: x @ w + x.relu() @ w, 2),
    "a bias that is computed": (lambda x, w, c: F.linear(x, w, x.mean(0)), 0),
    "sorted constants": (lambda x, w, c: x @ w + w.sort(descending=True)[0][0], 1),
    "a constant beside it": (lambda x, w, c: (x @ w, w.max(0)), 1),
    "a type of a constant": (lambda x, w, c: (x @ w).to(c.dtype).to(c), 1),
}  # fmt: skip
IMAGE_FORMS = {
    "bilinear, one length of it": (
        lambda x, w, c: F.interpolate(x, size=(x.shape[2], 7), mode="bilinear") * w[0, 0], 0,
    ),
    "bilinear, of a part of a shape": (
        lambda x, w, c: F.interpolate(x, size=(x.shape[1:][-2], x.shape[1:][-1]), mode="bilinear") * w[0, 0], 0,
    ),
    "bilinear, twice in one direction": (
        lambda x, w, c: F.interpolate(x, scale_factor=(2.0, 1.0), mode="bilinear") * w[0, 0], 0,
    ),
    "values of channels that may be 0": (lambda x, w, c: (x / w.round()).nan_to_num(0.0, 9.0, -9.0), 0, 1, 4, 1, 1),
    "a convolution with one stride": (lambda x, w, c: F.conv2d(x, w, stride=(2,)), 1, 4, 4, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ROW_FORMS, *IMAGE_FORMS])
def test_what_is_captured_is_the_model_and_has_the_layers_that_there_are(name):
    written, layers, *shape = (ROW_FORMS | IMAGE_FORMS)[name]
    model = seeded(lambda: OfWeight(written, *shape)).requires_grad_(False)
    graph = tracer.capture(model)
    for x in (ROWS, ROWS[:3] * 3) if name in ROW_FORMS else (IMAGES, IMAGES[:1, :, :7, :7] * 3):
        assert parts.graph_differs(graph, (x,), model(x)) is None
    assert sum(isinstance(node, LAYERS) for node in graph.nodes) == layers


WRONG = {
    "a window of three axes": (lambda x, w, c: F.max_pool2d(F.conv2d(x, w), (2, 2, 2)), IMAGES),
    "an average of three axes": (lambda x, w, c: F.avg_pool2d(F.conv2d(x, w), (2, 2, 2)), IMAGES),
    "averages for one axis": (lambda x, w, c: F.adaptive_avg_pool2d(F.conv2d(x, w), (3,)), IMAGES),
    "no size": (lambda x, w, c: F.interpolate(F.conv2d(x, w), mode="bilinear"), IMAGES),
    "strides for three axes": (lambda x, w, c: F.conv2d(x, w, stride=(1, 1, 1)), IMAGES),
    "an end that is no number": (lambda x, w, c: F.conv2d(x, w).clamp(min=(0,)), IMAGES),
    "constants that do not fit": (lambda x, w, c: F.conv2d(x, w) + w.flatten() @ w.flatten()[:3], IMAGES),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_model_that_fails_by_itself_fails_with_its_own_error(name):
    written, x = WRONG[name]
    model = seeded(lambda: OfWeight(written, 4, 4, 1, 1))
    with pytest.raises((RuntimeError, ValueError, TypeError)) as own:
        model(x)
    with pytest.raises((RuntimeError, ValueError, TypeError), match=re.escape(str(own.value)[:40])):
        qs.quantize(model, [x])


class Several(nn.Module):
    """A layer, and a module that gives several values of a parameter alone."""

    def __init__(self, module):
        super().__init__()
        self.layer, self.module = nn.Linear(8, 8), module
        self.weight = nn.Parameter(torch.linspace(-2, 3, 40).view(5, 8))

    def forward(self, x):
        return self.layer(x) * self.module(self.weight)[0].mean()


SEVERAL = {"LSTM": lambda: nn.LSTM(8, 4), "largest": lambda: nn.MaxPool1d(2, return_indices=True)}


@pytest.mark.parametrize("name", SEVERAL)
def test_a_module_that_gives_several_values_of_parameters_is_trained_with_them(name):
    model = seeded(lambda: Several(SEVERAL[name]()))
    assert parts.graph_differs(tracer.capture(model), (ROWS,), model(ROWS)) is None
    trained = qs.prepare_qat(model, [ROWS]).train()
    trained(ROWS).sum().backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


class Merging(nn.Module):
    def __init__(self, merging):
        super().__init__()
        self.merging, self.last = merging, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.merging(x))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["PatchMerging", "PatchMergingV2"])
def test_patches_are_merged_in_images_of_any_size(name, whole):
    swin = import_torchvision() and importlib.import_module("torchvision.models.swin_transformer")
    model = seeded(lambda: getattr(swin, name)(4) if whole else Merging(getattr(swin, name)(4))).requires_grad_(False)
    graph = tracer.capture(model)
    for x in (torch.randn(2, 6, 5, 4), torch.randn(1, 3, 8, 4)):
        assert parts.graph_differs(graph, (x,), model(x)) is None
    assert sum(isinstance(node, LAYERS) for node in graph.nodes) == 1 + (not whole)


class ByTruth(nn.Module):
    """A model that decides by data, and how it calls its part."""

    def __init__(self, part, call):
        super().__init__()
        self.part, self.call = part, call

    def forward(self, x):
        y = self.call(self.part, x)
        return y if y.sum() < 1e9 else -y


def test_a_layer_of_the_transformers_library_has_its_weight_turned():
    def __init__(self):
        nn.Module.__init__(self)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 3)), nn.Parameter(torch.randn(3))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)

    body = {"__init__": __init__, "forward": forward, "__module__": "transformers.pytorch_utils"}
    model = seeded(lambda: ByTruth(type("Conv1D", (nn.Module,), body)(), lambda part, x: part(x))).requires_grad_(False)
    q = qs.quantize_dynamic(model)
    assert list(q.islands) == ["part"]
    assert accuracy.sqnr(model(ROWS).numpy(), q(ROWS).numpy()) > 30


def test_a_default_that_is_given_is_a_default():
    model = seeded(lambda: ByTruth(nn.LSTM(8, 4), lambda part, x: part(x[None], None)[0])).requires_grad_(False)
    q = qs.quantize(model, [ROWS])
    assert list(q.islands) == ["part"]
    assert accuracy.sqnr(model(ROWS).numpy(), q(ROWS).numpy()) > 20


NAMED = {
    "where": lambda x, w, c: torch.where(condition=x > 0, input=x, other=c) @ w,
    "searchsorted": lambda x, w, c: x @ w + torch.searchsorted(sorted_sequence=c, input=x),
    "polygamma": lambda x, w, c: torch.polygamma(n=1, input=x.abs() + 1) @ w,
    "linear": lambda x, w, c: F.linear(bias=c, weight=w, input=x),
    "linalg": lambda x, w, c: torch.linalg.diagonal(A=x @ w) * 2,
    "matmul": lambda x, w, c: torch.matmul(other=w, input=x), "mm": lambda x, w, c: torch.mm(mat2=w, input=x),
    "a method": lambda x, w, c: x.matmul(other=w) - x.where(condition=x > 0, other=c),
    "cat": lambda x, w, c: torch.cat(dim=1, tensors=[x, x @ w]),
    "addmm": lambda x, w, c: torch.addmm(mat2=w, input=c, mat1=x),
    "add": lambda x, w, c: torch.add(other=x @ w, input=c),
    "twice": lambda x, w, c: torch.sub(alpha=2, other=c, input=x @ w), "rsub": lambda x, w, c: (x @ w).sub(other=c),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("recorded", [False, True])
def test_arguments_are_what_their_names_say_in_any_order(name, recorded):
    def written(x, w, c):
        assert not recorded or x.shape[1] == 8  # which symbolic tracing cannot tell
        return NAMED[name](x, w, c)

    model = seeded(lambda: OfWeight(written)).requires_grad_(False)
    prepared = qs.prepare(model)
    for x in (ROWS, 2 * ROWS[:3]):
        assert parts.difference(model(x), prepared(x)) is None
    assert len(qs.convert(prepared).program.layers) == 1
